"""Coded slots in optimizers: equal to pure use, compiled, resumed, converted."""

import copy
import io
import itertools
import pickle

import pytest
import torch

import gradtx
from gradtx import chain, with_state_dtype
from gradtx.plans import bundle
from gradtx.plans.bundle import CHUNK
from gradtx.state.codes import CODES
from tests.optim.problems import assert_equal
from tests.tiers import by_day

NAMES = list(CODES)
ENTRYWISE = [name for name, codec in CODES.items() if codec.shapes_of is None]
SHAPES = [(64, 128), (8192,), (32, 3, 7, 7), (10,), (CHUNK // 512 + 3, 1024), (5000,), (50, 101)]
KERNELS = ("int8", "float8", "bfloat16:stochastic", "bfloat16+8")
FEW = [(64, 128), (8192,), (10,), (50, 101)]  # in which rows of blocks, a vector, a leaf in float32, and padding are


@pytest.fixture(params=["eager", "compiled"])
def compile(request):
    return request.param == "compiled"


def parameters(shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def run(optimizer, params, steps, first=0):
    for i in range(first, first + steps):
        generator = torch.Generator().manual_seed(i)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def made(name, compile=False, shapes=FEW, **options):
    params = parameters(shapes)
    chosen = {} if name is None else {"state_dtype": name}
    return params, gradtx.optim.AdamW(params, lr=1e-2, compile=compile, **chosen, **options)


@by_day("eager-*", "compiled-int8", "compiled-bfloat16*")
@pytest.mark.parametrize("name", ENTRYWISE)
def test_an_optimizer_equals_pure_use(name, compile):
    params, optimizer = made(name, compile, SHAPES)
    tx = gradtx.adamw(lr=1e-2, state_dtype=name)
    pure = {str(i): param.detach().clone() for i, param in enumerate(parameters())}
    state = tx.init(pure)
    agree = [torch.ones_like(param, dtype=torch.bool) for param in params]  # entries whose codes have never differed
    for i in range(4):
        run(optimizer, params, 1, first=i)
        updates, state = tx.update({str(j): param.grad for j, param in enumerate(params)}, state, pure)
        pure = gradtx.apply_updates(pure, updates)
        for j, param in enumerate(params):
            for slot in ("exp_avg", "exp_avg_sq"):
                ours, theirs = optimizer.state[param][slot].float(), state["scale_by_adam"][slot][str(j)].float()
                agree[j] &= of_entries(torch.isclose(ours, theirs, rtol=3e-7, atol=1e-7), param.shape)
    if compile:
        assert not optimizer._core.back_ends[0].failed
        assert optimizer.explain()[0].way == ("kernels" if name in KERNELS else "lists")
    for i, param in enumerate(params):
        expected = pure[str(i)]
        torch.testing.assert_close(param.detach()[agree[i]], expected[agree[i]], rtol=0.0, atol=2e-6)
        torch.testing.assert_close(param.detach(), expected, rtol=0.0, atol=1e-3)  # a tenth of a step
        for slot in ("exp_avg", "exp_avg_sq"):
            ours, theirs = optimizer.state[param][slot], state["scale_by_adam"][slot][str(i)]
            assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
            # A program may round a tie in the other direction, which yields an adjacent code: of one entry in 1000.
            differ = ~torch.isclose(ours.float(), theirs.float(), rtol=3e-7, atol=0.0)
            assert differ.sum() <= max(1, 1e-3 * differ.numel())


def of_entries(of_codes, shape):
    """Expand a mask of codes to the entries that they represent: two entries may share a byte."""
    if of_codes.shape != shape:
        of_codes = of_codes.repeat_interleave(2, -1)
    return of_codes[..., : shape[-1]]


@by_day("eager-*", "compiled-int8", "compiled-bfloat16:stochastic")
@pytest.mark.parametrize("name", NAMES)
def test_resuming_is_bitwise(name, compile):
    params, optimizer = made(name, compile)
    run(optimizer, params, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others, other = made(name, compile)
    other.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(optimizer)
    if name != "float8":  # torch 2.13 pickles it but cannot unpickle it outside of torch.save
        copied = pickle.loads(pickle.dumps(copied))
    with torch.no_grad():
        for param, saved in zip(others, params, strict=True):
            param.copy_(saved)
    run(optimizer, params, 3, first=3)
    run(other, others, 3, first=3)
    third = copied.param_groups[0]["params"]
    run(copied, third, 3, first=3)
    for param, resumed, of_copy in zip(params, others, third, strict=True):
        assert torch.equal(param, resumed)
        assert torch.equal(param, of_copy)


@pytest.mark.parametrize("name", ENTRYWISE)
def test_checkpoints_are_converted_both_ways_with_torchs(name):
    params = parameters(FEW)
    theirs = torch.optim.AdamW(params, lr=1e-2)
    run(theirs, params, 3)
    coded_params, coded = made(name)
    coded.load_state_dict(theirs.state_dict())
    plain_params, plain = made(None)
    saved = coded.state_dict()
    plain.load_state_dict(saved)
    back = torch.optim.AdamW(parameters(FEW), lr=1e-2)
    back.load_state_dict(plain.state_dict())
    for param, plain_param, coded_param in zip(params, plain_params, coded_params, strict=True):
        for slot in ("exp_avg", "exp_avg_sq"):
            value = theirs.state[param][slot]
            assert plain.state[plain_param][slot].dtype == torch.float32
            error = (plain.state[plain_param][slot] - value).abs().max()
            assert error <= {"int4": 0.15, "int8": 0.01}.get(name, 0.04) * value.abs().max()
        assert coded.state[coded_param]["step"] == 3
    before = copy.deepcopy(coded.state_dict()["state"])
    assert {key for group in saved["param_groups"] for key in group["codes"]} == {"exp_avg", "exp_avg_sq"}
    coded.load_state_dict(plain.state_dict())  # encoding the decoded values changes nothing
    for number, entry in coded.state_dict()["state"].items():
        for key, tensor in entry.items():
            if not key.endswith(".key"):
                assert torch.equal(tensor, before[number][key]), key


PAIRS = list(itertools.permutations([*NAMES, gradtx.Codec.named("int8", block=2)], 2))


def stepped_with(code, **cut):
    params = [torch.nn.Parameter(torch.ones(8, 7)), torch.nn.Parameter(torch.ones(8))]
    tx = with_state_dtype(gradtx.adam(lr=0.1), code, min_size=0)
    optimizer = gradtx.as_optimizer(gradtx.blocks(tx, **cut) if cut else tx, params)
    run(optimizer, params, 3)
    return optimizer


@pytest.mark.parametrize(("there", "here"), PAIRS, ids=str)
def test_a_checkpoint_of_another_code_is_decoded_and_encoded(there, here):
    saved, optimizer = stepped_with(there).state_dict(), stepped_with(here)
    plain = gradtx.as_optimizer(gradtx.adam(lr=0.1), [torch.nn.Parameter(torch.ones(shape)) for shape in ((8, 7), 8)])
    plain.load_state_dict(saved)
    expected = stepped_with(here)
    expected.load_state_dict(plain.state_dict())
    optimizer.load_state_dict(saved)
    assert_equal(optimizer.state_dict()["state"], expected.state_dict()["state"])


@pytest.mark.parametrize("here", NAMES)
def test_values_of_16_bits_are_encoded_as_those_of_32(here):
    params = parameters([(64, 64)])
    halves = gradtx.optim.AdamW(params, state_dtype=torch.bfloat16)
    run(halves, params, 4)
    expected, optimizer = (gradtx.optim.AdamW(params, state_dtype=here) for _ in range(2))
    saved = halves.state_dict()
    optimizer.load_state_dict(saved)
    for slot in ("exp_avg", "exp_avg_sq"):
        saved["state"][0][slot] = saved["state"][0][slot].float()
    expected.load_state_dict(saved)
    assert_equal(optimizer.state_dict()["state"], expected.state_dict()["state"])


@pytest.mark.parametrize("code", ENTRYWISE)
def test_a_group_without_a_step_names_its_codes(code):
    params = [torch.nn.Parameter(torch.full((64, 64), value)) for value in (1.0, 0.7)]
    tx = gradtx.chain(gradtx.sgd(lr=0.1), gradtx.lookahead(k=2, state_dtype=code))
    groups = [{"params": [param]} for param in params]
    optimizer = gradtx.as_optimizer(tx, groups)
    run(optimizer, params[:1], 1)
    saved = optimizer.state_dict()
    first, second = saved["param_groups"]
    assert first["codes"] == second["codes"]
    plain = gradtx.as_optimizer(gradtx.chain(gradtx.sgd(lr=0.1), gradtx.lookahead(k=2)), groups)
    plain.load_state_dict(saved)
    torch.testing.assert_close(plain.state[params[1]]["slow"], params[1].detach(), rtol=0.02, atol=0.0)


def test_a_group_whose_only_slots_are_weights_names_no_code_of_factors():
    params = [torch.nn.Parameter(torch.full((64, 64), value)) for value in (1.0, 0.7)]
    tx = gradtx.chain(gradtx.sgd(lr=0.1), gradtx.lookahead(k=2, state_dtype="factored"))
    optimizer = gradtx.as_optimizer(tx, params)
    run(optimizer, params, 1)
    saved = optimizer.state_dict()
    assert "codes" not in saved["param_groups"][0]
    plain = gradtx.as_optimizer(gradtx.chain(gradtx.sgd(lr=0.1), gradtx.lookahead(k=2)), params)
    plain.load_state_dict(saved)
    assert_equal(plain.state[params[0]]["slow"], optimizer.state[params[0]]["slow"])


@pytest.mark.parametrize("there", ENTRYWISE)
def test_a_leaf_that_was_too_small_for_a_code_is_encoded(there):
    params = parameters([(64, 64), (64,)])
    saved = gradtx.optim.AdamW(params, state_dtype=there)
    run(saved, params, 2)
    # A slot without wildcards is coded at any size.
    optimizer = gradtx.optim.AdamW(params, state_dtype={"exp_avg": there})
    optimizer.load_state_dict(saved.state_dict())
    run(optimizer, params, 1)
    plain = gradtx.optim.AdamW(params)
    plain.load_state_dict(optimizer.state_dict())
    run(saved, params, 1)
    torch.testing.assert_close(plain.state[params[1]]["exp_avg"], saved.state[params[1]]["exp_avg"], rtol=0.0, atol=0.1)


@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_of_a_users_code_is_an_error_that_changes_nothing(strict):
    halves = gradtx.Codec(lambda values: values.half(), lambda codes: codes.float(), name="halves")
    saved = stepped_with(halves).state_dict()
    stepped_with(halves).load_state_dict(saved, strict=strict)
    # Codes of the same dtype are not the same codes.
    doubled = gradtx.Codec(lambda values: 2 * values.half(), lambda codes: codes.float() / 2, name="doubled")
    for here in (torch.float32, torch.float16, "int8", "bfloat16:stochastic", doubled):
        optimizer = stepped_with(here)
        before = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(ValueError, match=r"'0': 'exp_avg' is stored in the code 'halves', which"):
            optimizer.load_state_dict(saved, strict=strict)
        assert_equal(optimizer.state_dict(), before)


def test_a_users_code_is_loaded_beside_a_leaf_that_is_too_small_for_it():
    code = gradtx.Codec(
        lambda values, scale: (values / scale).round().to(torch.int16),
        lambda codes, scale: codes * scale,
        block=64,
        scale=lambda largest: largest.float().clamp(min=1e-30) / 32767,
        name="int16",
    )
    params = [torch.nn.Parameter(torch.ones(80, 100)), torch.nn.Parameter(torch.ones(80))]
    optimizer = gradtx.as_optimizer(gradtx.adam(lr=0.1, state_dtype=code), params)
    run(optimizer, params, 3)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(before)
    assert_equal(optimizer.state_dict(), before)


@pytest.mark.parametrize(
    ("there", "here"), [("int8", "int4"), ("int8", "float8"), ("float8", "int8"), ("bfloat16+8", "int8")]
)
def test_codes_of_blocks_are_not_converted(there, here):
    saved, optimizer = stepped_with(there, heads=2).state_dict(), stepped_with(here, heads=2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"state of parameter '0': 'exp_avg.*' has (shape|dtype)"):
        optimizer.load_state_dict(saved, strict=False)
    assert_equal(optimizer.state_dict(), before)


@pytest.mark.parametrize("cut", [{"batch": 1}, {"heads": 2}], ids=str)
def test_codes_of_blocks_are_loaded_beside_codes_of_a_whole_leaf(cut):
    """One label names the code of both."""
    params = [("w", torch.nn.Parameter(torch.ones(2, 2))), ("b", torch.nn.Parameter(torch.ones(2)))]
    tx = with_state_dtype(gradtx.blocks(gradtx.adam(lr=0.1), where="w", **cut), "int8", min_size=0)
    optimizer = gradtx.as_optimizer(tx, params)
    run(optimizer, [param for _, param in params], 3)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(before)
    assert_equal(optimizer.state_dict(), before)


@pytest.mark.parametrize("cut", [{}, {"heads": 2}, {"sizes": (2, 6)}], ids=str)
@pytest.mark.parametrize("code", ["int8", "int4", "float8"])
def test_codes_and_scales_that_do_not_fit_are_errors_that_name_the_parameter(code, cut):
    tx = gradtx.trace(0.9)
    tx = chain(gradtx.blocks(tx, **cut) if cut else tx, gradtx.scale(-1.0))
    param = torch.nn.Parameter(torch.ones(8, 6))
    optimizers = [gradtx.as_optimizer(each, [param]) for each in (tx, with_state_dtype(tx, code, min_size=0))]
    damages = [lambda x: x.reshape(-1)[:1], lambda x: x.reshape(-1)[:0], lambda x: x[None], lambda x: x.new_zeros(())]
    if code != "float8":  # whose codes alone could be values in float8
        damages.append(lambda x: None)
    saved = optimizers[1].state_dict()
    for key, damage in itertools.product(list(saved["state"][0])[1:], damages):
        damaged = copy.deepcopy(saved)
        damaged["state"][0][key] = damage(damaged["state"][0][key])
        for optimizer in optimizers:
            before = copy.deepcopy(optimizer.state_dict())
            with pytest.raises(ValueError, match="state of parameter '0'"):
                optimizer.load_state_dict(damaged)
            assert_equal(optimizer.state_dict(), before)


def test_a_slot_of_another_shape_is_the_usual_error():
    _, plain = made(None)
    saved = plain.state_dict()
    saved["state"][0]["exp_avg"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"'exp_avg' has shape \(3, 3\), needs \(64, 128\)"):
        made("int8")[1].load_state_dict(saved)


def test_the_bytes_of_adamw():
    for name, most in (("int8", 2.2), ("int4", 1.3), ("bfloat16+8", 6.1)):
        param = torch.nn.Parameter(torch.zeros(1024, 1024))
        optimizer = gradtx.optim.AdamW([param], state_dtype=name)
        assert sum(t.nbytes for t in optimizer.state[param].values()) <= most * 2**20


@by_day("eager-*", "compiled-lookahead", "compiled-partition")
@pytest.mark.parametrize("wrap", ["accumulate", "lookahead", "partition", "lamb"])
def test_chains_of_all_kinds_step_with_codes(wrap, compile):
    params = parameters(FEW[:3])
    inner = gradtx.adamw(lr=1e-2)
    chains = {
        "accumulate": gradtx.accumulate(inner, every=2),
        "lookahead": chain(inner, gradtx.lookahead(2, 0.5)),
        "partition": gradtx.partition({"a": inner, "b": gradtx.sgd(momentum=0.9)}, {"a": ("0", "2"), "b": "*"}),
        "lamb": gradtx.lamb(lr=1e-2),
    }
    coded = gradtx.as_optimizer(with_state_dtype(chains[wrap], "int8"), params, compile=compile)
    others = parameters(FEW[:3])
    plain = gradtx.as_optimizer(chains[wrap], others)
    run(coded, params, 4)
    run(plain, others, 4)
    for param, other in zip(params, others, strict=True):
        assert (param - other).square().mean().sqrt() <= 0.03
        assert not torch.equal(param, other) or param.numel() < 4096


@by_day(
    "eager-int8-(1,)", "eager-int8-(64, 1)", "eager-int8-(1, 5)", "eager-int8-()", "eager-int4-(5, 1)",
    "eager-int4-(4, 1, 1)", "eager-int4-(0, 5)", "compiled-int8-(1,)", "compiled-int8-(64, 1)", "compiled-int4-(5, 1)",
)  # fmt: skip
@pytest.mark.parametrize("shape", [(1,), (5, 1), (64, 1), (4, 1, 1), (1, 5), (0, 5), ()], ids=str)
@pytest.mark.parametrize("code", ["int8", "int4"])
def test_leaves_with_one_entry_a_row_equal_pure_use(shape, code, compile):
    """A scale then has the same shape as its parameter by coincidence; padding does not belong to any block."""
    tx = with_state_dtype(gradtx.adamw(lr=1e-2), code, min_size=0)
    params = {"w": torch.nn.Parameter(noise(0, shape)), "v": torch.nn.Parameter(noise(1, (5, 70)))}
    optimizer = gradtx.as_optimizer(tx, params.items(), compile=compile)
    pure = {name: param.detach().clone() for name, param in params.items()}
    state = tx.init(pure)
    for step in range(3):
        gradients = {name: noise(10 * step + i, param.shape) for i, (name, param) in enumerate(params.items())}
        for name, param in params.items():
            param.grad = gradients[name].clone()
        optimizer.step()
        updates, state = tx.update(gradients, state, pure)
        pure = gradtx.apply_updates(pure, updates)
    for name, param in params.items():
        assert torch.allclose(param, pure[name], rtol=1e-5, atol=1e-6)


def test_programs_are_shared_by_lengths():
    params = [torch.nn.Parameter(torch.randn(64 * i, 64)) for i in range(2, 7)]
    optimizer = gradtx.optim.AdamW(params, compile=True, state_dtype="int8")
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    assert len(optimizer._core.back_ends[0].plans[None].bundles) == 1


def test_a_pattern_without_match_is_an_error_when_the_optimizer_is_made():
    tx = with_state_dtype(gradtx.adamw(lr=1e-2), {"nothing*": "int8"}, min_size=1)
    with pytest.raises(ValueError, match="matches no slot of the chain; its slots: exp_avg, exp_avg_sq"):
        gradtx.as_optimizer(tx, parameters())


@pytest.mark.parametrize("code", ["int8", "int4", "float8", "bfloat16+8", "bfloat16:stochastic"])
def test_a_large_coded_leaf_is_decoded_in_parts_with_the_same_numbers(code, monkeypatch):
    shapes = [(96, 128), (30, 256), (8192,), (7, 64), (5000, 3)]
    runs = []
    for most in (4096, 2**18):
        monkeypatch.setattr(bundle, "CHUNK", most)
        params = [torch.nn.Parameter(noise(i, shape)) for i, shape in enumerate(shapes)]
        optimizer = gradtx.as_optimizer(gradtx.adamw(lr=1e-2, state_dtype=code), params)
        for step in range(3):
            for i, param in enumerate(params):
                param.grad = noise(10 * step + i, param.shape)
            optimizer.step()
        sizes = [
            sum(param.numel() for param in each.columns(call)[0]) for each in plan_of(optimizer) for call in each._whole
        ]
        # Rows of three entries do not fill a block, so such a leaf is not divided.
        assert max(sizes) <= most or (
            not code.startswith("bfloat16") and sorted(sizes)[-2] <= most and max(sizes) == 15000
        )
        runs.append([*params, *(optimizer.state[p][key] for p in params for key in optimizer.state[p])])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def compared(tx, shapes, dtype=torch.float32):
    """Run three compiled and three default steps; return the parameters and the state of each."""
    runs = []
    for compile in (True, False):
        params = [torch.nn.Parameter(noise(i, (*shape, 2))) for i, shape in enumerate(shapes)]
        for param in params:
            param.data = torch.view_as_complex(param.data) if dtype.is_complex else param.data[..., 0].contiguous()
        optimizer = gradtx.as_optimizer(tx, params, compile=compile)
        for step in range(3):
            for i, param in enumerate(params):
                param.grad = noise(10 * step + i, (*param.shape, 2))[..., 0].to(dtype)
            optimizer.step()
        runs.append((params, [optimizer.state[param] for param in params]))
    return runs


def test_numbers_with_blocks_step_as_by_default():
    tx = gradtx.nadam(lr=1e-2, state_dtype={"mu_product": "int8", "*": "int8"})
    (params, _), (by_default, _) = compared(tx, [(64, 128)])
    torch.testing.assert_close(params, by_default, rtol=0.0, atol=1e-4)


def test_coded_and_small_leaves_of_one_dtype_have_kernels_of_their_own():
    roots = gradtx.Codec(lambda values: values.sign() * values.abs().sqrt(), lambda codes: codes * codes.abs())
    (params, slots), (by_default, default_slots) = compared(
        with_state_dtype(gradtx.ema(0.9), roots), [(64, 128), (5, 3), (7,)]
    )
    torch.testing.assert_close(params, by_default)
    torch.testing.assert_close(slots, default_slots)


def noise(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plan_of(optimizer):
    return optimizer._core.back_ends[-1].plans[None].bundles


# A name used by several links, some of which are coded.


def stepped(tx):
    param = torch.nn.Parameter(torch.ones(4, 8))
    optimizer = gradtx.as_optimizer(tx, [param])
    for t in range(3):
        param.grad = noise(t, (4, 8))
        optimizer.step()
    return optimizer, param


def test_a_pickle_of_float8_state_is_refused_when_it_is_made_and_other_copies_work():
    params, optimizer = made("float8")
    run(optimizer, params, 1)
    with pytest.raises(TypeError, match=r"AdamW: .* pickles of float8 .*torch.save\(optimizer.state_dict\(\), path\)"):
        pickle.dumps(optimizer)
    expected = optimizer.state_dict()["state"]
    assert_equal(copy.deepcopy(optimizer).state_dict()["state"], expected)
    with pytest.raises(TypeError, match="pickles of float8"):
        torch.save(optimizer, io.BytesIO())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert_equal(torch.load(file)["state"], expected)


def test_optimizers_with_other_codes_can_be_pickled():
    for code in ("int8", "int4", "bfloat16+8"):
        params, optimizer = made(code)
        run(optimizer, params, 1)
        assert_equal(pickle.loads(pickle.dumps(optimizer)).state_dict()["state"], optimizer.state_dict()["state"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_slot_that_is_the_update_is_not_the_sum_of_weights_and_update(dtype, compile):
    param = torch.nn.Parameter(torch.full((4,), 2.0, dtype=dtype))
    tx = chain(gradtx.scale(-1.0), gradtx.trace_ema(0.5, state_dtype=torch.float32))
    optimizer = gradtx.as_optimizer(tx, [param], compile=compile)
    for momentum, weight in ((-0.25, 1.75), (-0.375, 1.375)):
        param.grad = torch.full_like(param, 0.5)
        optimizer.step()
        assert optimizer.state[param]["momentum_buffer"].tolist() == [momentum] * 4
        assert param.tolist() == [weight] * 4
