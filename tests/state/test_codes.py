"""The built-in codes, as functions of tensors."""

import math
import pickle

import pytest
import torch

from gradtx import Codec
from gradtx.state.codes import CODES

SHAPES = [(64, 128), (7, 100), (5, 3, 3, 3), (4096,), (130,), (3, 7), (1, 1)]
# Codes of entries; that of whole slots follows below.
PLAIN = [name for name, codec in CODES.items() if not codec.random and codec.shapes_of is None]


def values_of(shape, seed, positive, dtype=torch.float32):
    """Numbers over many orders of magnitude, every fifth of them 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    x = x * 10 ** (3 * torch.randn(shape, generator=generator, dtype=dtype) - 3)
    x.view(-1)[::5] = 0
    return x.abs() if positive else x


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_encoding_what_was_decoded_changes_nothing(name, positive, shape, dtype):
    codec = CODES[name].for_sign(positive)
    for seed in (0, 1):
        packed = codec.pack(values_of(shape, seed, positive, dtype))
        decoded = codec.unpack(packed, shape)
        again = codec.pack(decoded.to(dtype))
        assert again.keys() == packed.keys()
        for suffix, tensor in packed.items():
            assert torch.equal(bits(tensor), bits(again[suffix])), suffix


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("positive", [False, True])
def test_no_positive_value_is_stored_as_0_and_0_stays_0(name, positive):
    codec = CODES[name].for_sign(positive)
    for shape in SHAPES:
        x = values_of(shape, 2, positive)
        assert torch.equal(codec.unpack(codec.pack(x), shape).sign(), x.sign())
    tiny = torch.full((2, 64), 1e-37)
    tiny[0, 0] = 1e30
    assert (codec.unpack(codec.pack(tiny), tiny.shape) > 0).all()
    zeros = torch.zeros(3, 64)
    assert torch.equal(codec.unpack(codec.pack(zeros), zeros.shape), zeros)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 5), (5, 0), (0, 3, 4)], ids=str)
def test_leaves_without_dimension_or_entries_are_coded(name, shape):
    for positive in (False, True):
        codec = CODES[name].for_sign(positive)
        x = torch.full(shape, 3.0)
        packed = codec.pack(x)
        assert {suffix: tuple(tensor.shape) for suffix, tensor in packed.items()} == codec.shapes(shape)
        assert torch.allclose(codec.unpack(packed, shape), x)


def test_int8_is_softsign_of_the_largest_entry_of_a_block_for_signed_slots():
    x = torch.tensor([[1.0, -2.0, 0.5, 0.01]])
    packed = CODES["int8"].pack(x)
    assert packed["scale"].tolist() == [[2.0]]
    assert packed[""].tolist() == [[85, -127, 51, 1]]  # 254 |x| / (2 + |x|): 84.7, 127, 50.8, 1.3
    y = packed[""].double() / 127
    expected = 2 * y / (2 - y.abs())
    torch.testing.assert_close(CODES["int8"].unpack(packed, x.shape).double(), expected, rtol=1e-6, atol=0.0)


def test_int8_is_the_square_root_for_slots_that_are_never_negative():
    x = torch.tensor([[4.0, 1.0, 1e-9, 0.0]])
    codec = CODES["int8"].for_sign(True)
    packed = codec.pack(x)
    assert packed[""].dtype == torch.uint8
    assert packed[""].tolist() == [[255, 128, 1, 0]]  # 255 sqrt(x / 4): 255, 127.5, 0.004, 0
    expected = 4 * (packed[""].double() / 255) ** 2
    torch.testing.assert_close(codec.unpack(packed, x.shape).double(), expected, rtol=1e-6, atol=0.0)


def test_int4_keeps_two_codes_in_a_byte_and_has_15_levels():
    x = torch.tensor([[7.0, -7.0, 1.0, 0.0, 3.0]])
    packed = CODES["int4"].pack(x)
    assert packed[""].shape == (1, 3)
    levels = {
        CODES["int4"].unpack(CODES["int4"].pack(torch.tensor([[1.0, i / 500]])), (1, 2))[0, 1].item()
        for i in range(-500, 501)
    }
    assert len(levels) == 15
    assert CODES["int4"].unpack(packed, x.shape)[0, :2].tolist() == [7.0, -7.0]
    assert CODES["int4"].block <= 32


@pytest.mark.parametrize("seed", [0, 1])
def test_bfloat16_and_8_bits_have_a_relative_error_of_2_to_the_minus_16(seed):
    codec = CODES["bfloat16+8"]
    x = values_of((64, 64), seed, False)
    packed = codec.pack(x)
    assert packed[""].dtype == torch.bfloat16
    assert packed["error"].dtype == torch.int8
    assert ((codec.unpack(packed, x.shape).double() - x.double()).abs() <= 2**-16 * x.double().abs()).all()
    # The code alone is a neighbour of the value, at most half a unit away.
    unit = 2.0 ** (x.double().abs().log2().floor() - 7)
    assert ((packed[""].double() - x.double()).abs() <= unit * (0.5 + 2**-9))[x != 0].all()


def test_stochastic_rounding_gives_a_neighbour_and_is_right_on_average():
    codec = CODES["bfloat16:stochastic"]
    x = torch.full((65536,), 1 + 2**-9)  # a quarter of the way from 1 to 1 + 2^-7
    stored = codec.pack(x, torch.arange(65536))[""].float()
    assert set(stored.tolist()) == {1.0, 1 + 2**-7}
    assert stored.mean().item() == 1 + 2**-9


@pytest.mark.parametrize("name", PLAIN)
def test_small_entries_of_a_block_keep_relative_precision(name):
    codec = CODES[name]
    x = torch.full((1, codec.block or 64), 0.05)
    x[0, 0] = 1.0
    error = (codec.unpack(codec.pack(x), x.shape)[0, 1] / 0.05 - 1).abs()
    assert error < {"int8": 0.05, "float8": 0.0625, "int4": 1.0, "bfloat16+8": 1e-4}[name]


@pytest.mark.parametrize("name", PLAIN)
def test_a_value_that_is_not_finite_is_never_hidden(name):
    for value in (math.nan, math.inf):
        x = torch.ones(1, 64)
        x[0, 3] = value
        codec = CODES[name]
        assert not codec.unpack(codec.pack(x), x.shape)[0, 3].isfinite()


def test_the_bytes_of_a_megabyte_of_entries():
    for name, most in (("int8", 1.1), ("int4", 0.65), ("float8", 1.1), ("bfloat16+8", 3.05)):
        packed = CODES[name].pack(torch.rand(1024, 1024))
        assert sum(tensor.nbytes for tensor in packed.values()) <= most * 2**20


def test_a_code_is_named_with_another_block():
    assert Codec.named("int8", block=128).nonnegative.block == 128
    assert repr(Codec.named("int8", block=32)) == "Codec.named('int8', block=32)"
    assert pickle.loads(pickle.dumps(Codec.named("int4", block=16))) == Codec.named("int4", block=16)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"Codec: unknown code 'int9'; did you mean 'int[48]'\?"):
        Codec.named("int9")
    with pytest.raises(ValueError, match="'bfloat16\\+8' has no scales, so it does not accept a block; omit block"):
        Codec.named("bfloat16+8", block=32)
    with pytest.raises(ValueError, match="block must be a power of two, got 48"):
        Codec.named("int8", block=48)
