"""Codes whose parts are per entry, per block or per leaf, as users write them, in every way of updating."""

import copy
import io
import math
from typing import Any

import pytest
import torch

import gradtx
from gradtx import Codec
from tests.codecs import AFFINE, DOUBLY, FOUR_BITS, OF_USERS
from tests.conformance import assert_same
from tests.tiers import by_day

# "odd" has incomplete blocks, "long" is divided by list programs, and "small" is not coded.
SHAPES = {"matrix": (64, 128), "odd": (50, 101), "filters": (32, 3, 7, 7), "long": (300_000,), "small": (10,)}
# Sizes of gradients: what is per leaf differs between leaves of one bundle.
SIZES = {"matrix": 1.0, "odd": 30.0, "filters": 1e-3, "long": 0.1, "small": 1.0}
FIXED = [name for name, codec in OF_USERS.items() if not codec.random]


def tree(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def gradients(seed, dtype=torch.float32):
    return {name: value * SIZES[name] for name, value in tree(seed, dtype).items()}


def in_rows_of_blocks(values, block):
    """Blocks of each row by slices, with the last entry repeated."""
    rows = values.reshape(values.shape[0] if values.ndim > 1 else 1, -1)
    missing = -rows.shape[1] % block
    rows = torch.cat((rows, rows[:, -1:].expand(-1, missing)), 1)
    return torch.stack(rows.split(block, 1), 1)


def coded(codec, values):
    """What a slot is after its code: the user's functions, called on blocks that were cut out by a loop."""
    if codec.block is None:
        return codec.decode(*codec.encode(values))
    blocks = in_rows_of_blocks(values, codec.block)
    scale = () if codec.scale is None else (codec.scale(blocks.abs().amax(-1, keepdim=True)),)
    decoded = codec.decode(*codec.encode(blocks, *scale), *scale)
    rows = decoded.reshape(decoded.shape[0], -1)
    return rows[:, : math.prod(values.shape) // rows.shape[0]].reshape(values.shape)


# What the functions of the tests keep of a value.


def test_affine_codes_by_hand():
    codec = Codec(AFFINE.encode, AFFINE.decode, block=4, scale=None, per_block=("step", "zero"))
    packed = codec.pack(torch.tensor([[-51.0, 0.0, 10.4, 204.0], [0.0, 2.0, 5.0, 8.0]]))
    assert list(packed) == ["", "step", "zero"]
    assert packed["step"].tolist() == [[1.0], [pytest.approx(8 / 255)]]
    assert packed["zero"].tolist() == [[51], [0]]
    assert packed[""].tolist() == [[0, 51, 61, 255], [0, 64, 159, 255]]  # 2 and 5 times 255 / 8: 63.75, 159.375
    assert codec.unpack(packed, (2, 4))[0].tolist() == [-51.0, 0.0, 10.0, 204.0]


def test_scales_in_8_bits_by_hand():
    codec = Codec(DOUBLY.encode, DOUBLY.decode, block=2, scale=None, per_block=("scale",), per_leaf=("largest",))
    packed = codec.pack(torch.tensor([[255.0, -127.5], [50.8, -50.0]]))
    assert packed["largest"].shape == ()
    assert packed["largest"].item() == 255.0
    assert packed["scale"].tolist() == [[255], [51]]  # rounded up, so that no entry is larger than its scale
    assert packed[""].tolist() == [[127, -64], [127, -125]]  # 50.8 / 51 * 127 = 126.5, -50 / 51 * 127 = -124.5
    assert packed["scale"].dtype == torch.uint8


@pytest.mark.parametrize("name", SHAPES)
def test_errors_are_at_most_half_a_unit(name):
    x = gradients(0)[name]
    blocks = in_rows_of_blocks(x, 64).double()
    largest = blocks.abs().amax()
    low, high = blocks.amin(-1, keepdim=True).clamp(max=0), blocks.amax(-1, keepdim=True).clamp(min=0)
    most = {"affine": (high - low) / 255 / 2, "doubly": (blocks.abs().amax(-1, keepdim=True) + largest / 255) / 127 / 2}
    for code, bound in most.items():
        error = in_rows_of_blocks(coded(OF_USERS[code], x) - x, 64).double().abs()
        # Quotients and products of float32, of which the largest are some hundreds.
        assert (error <= bound * (1 + 1e-4)).all(), code


def test_parts_are_stored_by_block_and_by_leaf_in_their_dtypes():
    tx = gradtx.adamw(state_dtype={"exp_avg": FOUR_BITS})
    slots = tx.init(tree(0))["scale_by_adam"]
    assert {key: value["odd"].dtype for key, value in slots.items() if key.startswith("exp_avg")} == {
        "exp_avg": torch.int8,
        "exp_avg.rest": torch.int8,
        "exp_avg.scale": torch.float8_e4m3fn,
        "exp_avg.largest": torch.float32,
        "exp_avg_sq": torch.float32,
    }
    shapes = {key: tuple(value["filters"].shape) for key, value in slots.items() if "." in key}
    assert shapes == {"exp_avg.rest": (32, 3, 7, 7), "exp_avg.scale": (32, 10), "exp_avg.largest": ()}
    assert slots["exp_avg"]["filters"].shape == (32, 3, 7, 4)
    assert slots["exp_avg.scale"]["long"].shape == (300_000 // 16,)


def test_memory_counts_what_is_per_block_and_per_leaf():
    plan = gradtx.memory(gradtx.ema(0.9, state_dtype=DOUBLY), {"w": torch.zeros(1024, 1024)})
    assert sum(plan.slots.values()) == 1024 * 1024 + 1024 * 1024 // 64 + 4
    plan = gradtx.memory(gradtx.ema(0.9, state_dtype=AFFINE), {"w": torch.zeros(1024, 1024)})
    assert sum(plan.slots.values()) == 1024 * 1024 + 1024 * 1024 // 64 * 5


# All ways of updating, against a loop.

STEPS, LR, BETAS, EPS = 4, 1e-2, (0.9, 0.999), 1e-8


def chain_of(codec):
    return gradtx.adamw(LR, betas=BETAS, eps=EPS, weight_decay=0.0, state_dtype={"*avg": codec})


def weights_of_a_loop(codec, dtype):
    """AdamW, whose first average is coded after each step."""
    params = tree(1000, dtype)
    first = {name: torch.zeros_like(value) for name, value in params.items()}
    second = {name: torch.zeros_like(value) for name, value in params.items()}
    for t in range(1, STEPS + 1):
        for name, gradient in gradients(t, dtype).items():
            m = BETAS[0] * first[name] + (1 - BETAS[0]) * gradient
            v = BETAS[1] * second[name] + (1 - BETAS[1]) * gradient * gradient
            size = v / (1 - BETAS[1] ** t)
            params[name] = params[name] - LR * m / (1 - BETAS[0] ** t) / (size.sqrt() + EPS)
            first[name] = m if name == "small" else coded(codec, m).to(dtype)
            second[name] = v
    return params


def optimizer_of(codec, dtype=torch.float32, **options):
    params = {name: torch.nn.Parameter(value) for name, value in tree(1000, dtype).items()}
    return params, gradtx.as_optimizer(chain_of(codec), list(params.items()), **options)


def step(params, optimizer, seed, dtype=torch.float32):
    for name, gradient in gradients(seed, dtype).items():
        params[name].grad = gradient
    optimizer.step()


def weights_of(way, codec, dtype):
    if way == "pure":
        tx, params = chain_of(codec), tree(1000, dtype)
        state = tx.init(params)
        for t in range(1, STEPS + 1):
            updates, state = tx.update(gradients(t, dtype), state, params)
            params = gradtx.apply_updates(params, updates)
        return params
    params, optimizer = optimizer_of(codec, dtype, compile=way == "compiled")
    for t in range(1, STEPS + 1):
        step(params, optimizer, t, dtype)
    return {name: param.detach() for name, param in params.items()}


@by_day("*-torch.float32", "doubly-*")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("way", ["pure", "default", "compiled"])
@pytest.mark.parametrize("name", FIXED)
def test_adamw_with_a_code_of_a_user_is_the_loop(name, way, dtype):
    codec = OF_USERS[name]
    expected = weights_of_a_loop(codec, dtype)
    for leaf, weight in weights_of(way, codec, dtype).items():
        error = (weight - expected[leaf]).abs()
        # A value between two codes may be rounded to either: a few entries differ by what a unit moves.
        near = error <= (1e-5 if dtype == torch.float32 else 1e-7)
        assert near.double().mean() >= 1 - 1e-3, leaf
        assert error.max() <= LR


@pytest.mark.parametrize(("name", "launches"), [("affine", 1), ("by leaf", 4), ("doubly", 4), ("beside scale", 1)])
def test_kernels_run_codes_of_users(name, launches):
    params, optimizer = optimizer_of(OF_USERS[name], compile=True)
    step(params, optimizer, 1)
    ways = {way.name: way.way for way in optimizer.explain()}
    assert ways["matrix"] == ways["small"] == "kernels"
    assert len(optimizer.explain().launches) >= launches


@pytest.mark.parametrize("name", OF_USERS)
def test_members_of_an_ensemble_have_the_codes_of_one_model(name):
    tx = chain_of(OF_USERS[name])
    members = [{"w": tree(seed)["odd"]} for seed in range(3)]
    params = gradtx.stack(members)
    state = torch.vmap(tx.init)(params)
    updates, state = torch.vmap(tx.update)(params, state, params)
    for member, found in zip(members, gradtx.unstack((updates, state)), strict=True):
        with gradtx.eagerly():  # programs round each operation in their own order
            assert_same(found, tx.update(member, tx.init(member), member))


@pytest.mark.parametrize("name", ["affine", "doubly"])
def test_an_update_in_a_compiled_function_has_the_codes_of_one_that_is_not(name):
    tx, params = chain_of(OF_USERS[name]), {"w": tree(0)["odd"]}
    state, gradient = tx.init(params), {"w": gradients(1)["odd"]}
    expected, expected_state = tx.update(gradient, state, params)
    updates, compiled_state = torch.compile(tx.update, backend="aot_eager", fullgraph=True)(gradient, state, params)
    torch.testing.assert_close(updates, expected)
    for slot in ("exp_avg", *(f"exp_avg.{suffix}" for suffix in OF_USERS[name].suffixes)):
        ours, theirs = (of["scale_by_adam"][slot]["w"] for of in (compiled_state, expected_state))
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(
            ours.double(), theirs.double(), rtol=1e-6, atol=1.0 if ours.dtype.itemsize == 1 else 0
        )


@pytest.mark.parametrize(
    "wrap", [gradtx.skip_nonfinite, lambda tx: gradtx.accumulate(tx, every=2)], ids=["skip", "accumulate"]
)
@pytest.mark.parametrize("name", FIXED)
def test_combinators_hold_codes_of_users(name, wrap):
    ours, plain = (wrap(tx) for tx in (chain_of(OF_USERS[name]), chain_of(torch.float32)))
    results = []
    for tx in (ours, plain):
        params, state = tree(1000), None
        state = tx.init(params)
        for t in range(1, 5):
            updates, state = tx.update(gradients(t), state, params)
            params = gradtx.apply_updates(params, updates)
        results.append(params)
    for leaf, weight in results[0].items():
        assert (weight - results[1][leaf]).square().mean().sqrt() <= 0.02 * LR * 4


@pytest.mark.parametrize("name", ["doubly", "by leaf"])
def test_each_block_of_a_leaf_has_its_part_per_leaf(name):
    """Experts whose gradients are of other sizes, as leaves of their own."""
    inner = chain_of(OF_USERS[name])
    tx = gradtx.blocks(inner, "*", batch=1)
    sizes = torch.tensor([1e-3, 1.0, 1e3]).reshape(3, 1, 1)
    stacked = torch.stack([tree(seed)["matrix"] for seed in range(3)]) * sizes
    apart = {f"expert{i}": expert for i, expert in enumerate(stacked)}
    _, state = tx.update({"experts": stacked}, tx.init({"experts": stacked}), {"experts": stacked})
    _, expected = inner.update(apart, inner.init(apart), apart)
    for suffix in OF_USERS[name].suffixes:
        (value,) = gradtx.get(state, f"exp_avg.{suffix}").values()
        of_experts = gradtx.get(expected, f"exp_avg.{suffix}").values()
        assert value.shape[0] == 3
        torch.testing.assert_close(value, torch.stack([*of_experts]), rtol=1e-6, atol=0)


# Checkpoints.


@pytest.mark.parametrize("way", [{}, {"compile": True}], ids=["default", "compiled"])
@pytest.mark.parametrize("name", OF_USERS)
def test_an_optimizer_resumes_bit_for_bit(name, way):
    params, optimizer = optimizer_of(OF_USERS[name], **way)
    for t in range(3):
        step(params, optimizer, t)
    file = io.BytesIO()
    torch.save((params, optimizer.state_dict()), file)
    file.seek(0)
    saved_params, saved = torch.load(file, weights_only=True)
    again, resumed = optimizer_of(OF_USERS[name], **way)
    for leaf, param in again.items():
        param.data = saved_params[leaf].data
    resumed.load_state_dict(saved)
    for t in range(3, 5):
        step(params, optimizer, t)
        step(again, resumed, t)
    assert_same(again, params)
    for leaf, param in again.items():
        assert_same(resumed.state[param], optimizer.state[params[leaf]])


@pytest.mark.parametrize("name", OF_USERS)
def test_a_pure_run_resumes_bit_for_bit(name, tmp_path):
    tx, params = chain_of(OF_USERS[name]), tree(1000)
    _, state = tx.update(gradients(1), tx.init(params), params)
    gradtx.save(tmp_path / "run.safetensors", params, state)
    loaded_params, loaded = gradtx.load(tmp_path / "run.safetensors", params, tx.init(params))
    assert_same((loaded_params, loaded), (params, state))
    assert_same(tx.update(gradients(2), loaded, params), tx.update(gradients(2), copy.deepcopy(state), params))


@pytest.mark.parametrize("name", FIXED)
def test_a_run_in_float32_continues_in_a_code_of_a_user_and_not_back(name):
    codec = OF_USERS[name]
    params, optimizer = optimizer_of(torch.float32)
    step(params, optimizer, 1)
    again, continued = optimizer_of(codec)
    continued.load_state_dict(optimizer.state_dict())
    for leaf in ("matrix", "odd", "filters", "long"):
        values, entry = optimizer.state[params[leaf]]["exp_avg"], continued.state[again[leaf]]
        tensors = {suffix: entry[f"exp_avg.{suffix}"] for suffix in codec.suffixes}
        decoded = codec.unpack({"": entry["exp_avg"], **tensors}, values.shape)
        torch.testing.assert_close(decoded, coded(codec, values), rtol=0, atol=0)
    step(again, continued, 2)
    _, back = optimizer_of(torch.float32)
    with pytest.raises(ValueError, match=f"'exp_avg' is stored in the code '{codec.label}', which is not built in"):
        back.load_state_dict(continued.state_dict())


# Declarations.


def free(*arguments) -> Any:
    return arguments


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"per_block": ("zero",)}, r"per_block=\('zero',\) needs a block"),
        ({"block": 64, "scale": None}, r"scale=None share what per_block names, which is empty; omit block"),
        ({"block": 64, "per_block": ("scale",)}, "two parts have the name 'scale'; pass scale=None if encode returns"),
        ({"random": True, "per_leaf": ("key",)}, "two parts have the name 'key'; codes that round at random store a"),
        ({"parts": ("low",), "per_leaf": ("low",)}, "two parts have the name 'low'; rename one of them"),
        ({"per_leaf": "largest"}, r"per_leaf must be a tuple of names, such as \('error',\), got 'largest'"),
        ({"parts": ("a.b",)}, r"parts must be a tuple of names, such as \('error',\), got \('a.b',\)"),
        ({"shapes_of": lambda shape: (shape,), "per_leaf": ("largest",)}, "name all of its parts in parts"),
        ({"shapes_of": lambda shape: (shape,), "per_block": ("zero",)}, "name all of its parts in parts"),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else "",
)
def test_wrong_declarations_are_one_error(options, error):
    with pytest.raises(ValueError, match=f"^Codec: .*{error}"):
        Codec(free, free, **options)


def test_functions_must_take_the_parts_in_their_order():
    with pytest.raises(
        TypeError, match=r"decode must be a function of \(codes, rest, zero, most, scale\), got <lambda>"
    ):
        Codec(free, lambda codes: codes, block=8, parts=("rest",), per_block=("zero",), per_leaf=("most",))
    with pytest.raises(TypeError, match=r"encode must be a function of \(values\), got <lambda>"):
        Codec(lambda values, scale: values, free, block=8, scale=None, per_block=("zero",))


BLOCKS = {"block": 4, "scale": None, "per_block": ("low",), "per_leaf": ("most",)}


@pytest.mark.parametrize(
    ("encode", "error"),
    [
        (lambda x: x, r"encode must return \(codes, low, most\) of shape \[\(8, 2, 4\), \(8, 2, 1\), \(\)\], got"),
        (lambda x: (x, x.amin(-1), x.amax()), r"of shape \[\(8, 2, 4\), \(8, 2, 1\), \(\)\], got \(tensor.*8, 2\)"),
        (lambda x: (x, x.amin(-1, keepdim=True), 3.0), r"\(\)\], got \(.*3.0\)"),
        (lambda x: (x, x.amin(-1, keepdim=True), x.amax(), x), r"\(\)\], got \("),
    ],
)
def test_parts_of_other_shapes_are_an_error_that_says_those_of_each(encode, error):
    codec = Codec(encode, lambda codes, low, most: codes, **BLOCKS, name="mine")
    with pytest.raises(ValueError, match=f"Codec 'mine': .*{error}"):
        codec.pack(torch.ones(8, 8))


def test_a_scale_of_another_shape_is_an_error():
    codec = Codec(lambda x, scale: x, lambda codes, scale: codes, block=4, scale=torch.sum, name="mine")
    with pytest.raises(ValueError, match=r"Codec 'mine': scale must return a tensor of shape \(8, 2, 1\), got tensor"):
        codec.pack(torch.ones(8, 8))
