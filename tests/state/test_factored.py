"""The code "factored", for whole slots, against SMMF's rule written as a plain loop, and codes of users like it."""

import math
import pickle

import pytest
import torch

import gradtx
from gradtx import Codec, Schedule
from gradtx.state.codes import CODES
from tests.conformance import lean_cases, tensors
from tests.tiers import by_day

SHAPES = {"matrix": (64, 96), "filters": (32, 16, 3, 3), "vector": (4160,), "prime": (4099,), "small": (5, 3)}


def gradients_of(step):
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def first():
    return gradients_of(1000)


def smmf(lr=0.1, beta=0.9, growth=0.999, decay=-0.5, eps=1e-8, weight_decay=0.0):
    """SMMF (Park & Lee 2024) as a chain."""
    betas = (Schedule(lambda step: beta * growth**step), Schedule(lambda step: 1 - (step + 1.0) ** decay))
    return gradtx.chain(
        gradtx.scale_by_adam(betas, eps, correct_bias=False, state_dtype="factored"),
        gradtx.add_decayed_weights(weight_decay),
        gradtx.scale_by_learning_rate(lr),
    )


def sides(entries):
    """The divisor nearest to the root, by trying all."""
    best = max(d for d in range(1, entries + 1) if entries % d == 0 and d * d <= entries)
    return entries // best, best


def weights_of_a_loop(steps, lr=0.1, beta=0.9, growth=0.999, decay=-0.5, eps=1e-8, weight_decay=0.0):
    """The authors' loop; leaves of fewer than 4096 entries are not factored."""
    params, memory = first(), {}
    for t in range(1, steps + 1):
        for name, gradient in gradients_of(t).items():
            rows, columns = sides(gradient.numel())
            g = gradient.reshape(rows, columns)
            old_m, old_v = memory.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
            beta_m, beta_v = beta * growth ** (t - 1), 1 - t**decay
            m = beta_m * old_m + (1 - beta_m) * g
            v = beta_v * old_v + (1 - beta_v) * g * g
            update = (m / (v.sqrt() + eps)).reshape(gradient.shape)
            params[name] = params[name] - lr * (update + weight_decay * params[name])
            if gradient.numel() < 4096:
                memory[name] = m, v
                continue
            size = m.abs()
            kept_m = torch.outer(size.sum(1), size.sum(0) / size.sum())
            kept_v = torch.outer(v.sum(1), v.sum(0) / v.sum())
            memory[name] = torch.where(m > 0, kept_m, -kept_m), kept_v
    return params


@pytest.mark.parametrize(
    "options", [{}, {"decay": -0.8, "weight_decay": 0.1, "growth": 0.9}], ids=["defaults", "others"]
)
@pytest.mark.parametrize("form", ["pure", "default", "compiled"])
def test_a_chain_with_factored_moments_is_smmf(form, options):
    expected = weights_of_a_loop(6, **options)
    params, tx = first(), smmf(**options)
    if form == "pure":
        state = tx.init(params)
        for t in range(1, 7):
            updates, state = tx.update(gradients_of(t), state, params)
            params = gradtx.apply_updates(params, updates)
    else:
        params = {name: torch.nn.Parameter(value) for name, value in params.items()}
        optimizer = gradtx.as_optimizer(tx, list(params.items()), compile=form == "compiled")
        for t in range(1, 7):
            for name, gradient in gradients_of(t).items():
                params[name].grad = gradient
            optimizer.step()
    for name, value in expected.items():
        torch.testing.assert_close(params[name].detach(), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(64, 128), (7, 100), (5, 3, 3, 3), (4099,), (3, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("positive", [False, True])
def test_sums_of_rows_and_columns_and_signs_are_kept(shape, positive):
    codec = CODES["factored"].for_sign(positive)
    x = torch.randn(shape, dtype=torch.float64)
    x = x.abs() if positive else x
    packed = codec.pack(x)
    assert {suffix: tuple(tensor.shape) for suffix, tensor in packed.items()} == codec.shapes(shape)
    y = codec.unpack(packed, shape)
    assert torch.equal(y.sign(), x.sign())
    matrix, kept = x.abs().reshape(sides(x.numel())), y.abs().reshape(sides(x.numel()))
    for dim in (0, 1):
        torch.testing.assert_close(kept.sum(dim), matrix.sum(dim), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 5), (5, 0)], ids=str)
@pytest.mark.parametrize("positive", [False, True])
def test_leaves_without_dimension_or_entries_are_factored(shape, positive):
    codec = CODES["factored"].for_sign(positive)
    x = torch.full(shape, 3.0)
    assert torch.equal(codec.unpack(codec.pack(x), shape), x)


def test_zeros_stay_zeros_and_a_value_that_is_not_finite_is_never_hidden():
    for positive in (False, True):
        codec = CODES["factored"].for_sign(positive)
        zeros = torch.zeros(8, 8)
        assert torch.equal(codec.unpack(codec.pack(zeros), (8, 8)), zeros)
        for value in (math.nan, math.inf):
            x = torch.ones(8, 8)
            x[2, 3] = value
            assert not codec.unpack(codec.pack(x), (8, 8))[2, 3].isfinite()


def test_two_averages_take_a_bit_per_entry_and_four_short_vectors():
    weights = {"w": torch.zeros(1024, 1024)}
    plan = gradtx.memory(gradtx.adamw(state_dtype="factored"), weights)
    assert sum(plan.slots.values()) <= 1024 * 1024 / 8 + 4 * 1024 * 4 + 64


def test_factors_follow_each_member_of_a_batch():
    params = torch.randn(3, 64, 80)
    tx = gradtx.adamw(lr=0.1, state_dtype="factored")

    def trained(weights):
        tree, state = {"w": weights}, tx.init({"w": weights})
        for _ in range(3):
            updates, state = tx.update(tree, state, tree)
            tree = gradtx.apply_updates(tree, updates)
        return tree["w"]

    together = torch.func.vmap(trained)(params)
    for i, member in enumerate(params):
        torch.testing.assert_close(together[i], trained(member))


@pytest.mark.parametrize("other", [torch.float32, "int8"], ids=str)
def test_a_run_continues_with_factors_and_back(other):
    def made(code):
        param = torch.nn.Parameter(torch.ones(64, 64))
        return param, gradtx.optim.AdamW([param], lr=0.1, state_dtype=code)

    def step(param, optimizer, seed):
        param.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    param, optimizer = made(other)
    step(param, optimizer, 0)
    ours, factored = made("factored")
    factored.load_state_dict(optimizer.state_dict())
    assert factored.state[ours]["exp_avg.row"].shape == (64,)
    plain, back = made(torch.float32)
    back.load_state_dict(factored.state_dict())
    for slot in ("exp_avg", "exp_avg_sq"):
        start, _ = made(torch.float32)
        reference = gradtx.optim.AdamW([start], lr=0.1)
        reference.load_state_dict(optimizer.state_dict())
        expected, actual = reference.state[start][slot], back.state[plain][slot]
        torch.testing.assert_close(actual.abs().sum(1), expected.abs().sum(1), rtol=1e-4, atol=0.0)
    step(ours, factored, 1)


# Codes of users.


def halves(values):
    return values.reshape(-1)[: values.numel() // 2 + 1].clone()


def doubled(codes):
    return torch.cat((codes, codes))


def test_a_code_of_whole_slots_is_a_function_of_shapes():
    def mean(values):
        return values.mean(0).half()

    codec = Codec(mean, lambda codes: codes.float().expand(64, 80), shapes_of=lambda shape: (shape[1:],), name="mean")
    state = gradtx.adam(state_dtype={"exp_avg": codec}).init({"w": torch.zeros(64, 80)})
    assert state["scale_by_adam"]["exp_avg"]["w"].shape == (80,)
    assert pickle.loads(pickle.dumps(CODES["factored"])) == CODES["factored"]


@pytest.mark.parametrize("options", [{"block": 64}, {"packs": 2}, {"random": True}], ids=str)
def test_a_code_of_whole_slots_has_no_blocks_and_no_noise(options):
    def encode(values, scale=None, noise=None):
        return values

    with pytest.raises(ValueError, match="shapes_of describes a code of whole slots, which has no block"):
        Codec(encode, lambda codes, scale=None: codes, shapes_of=lambda shape: (shape,), **options)


def test_tensors_of_other_shapes_than_said_are_errors():
    codec = Codec(halves, doubled, shapes_of=lambda shape: ((3,),), name="halves")
    with pytest.raises(ValueError, match=r"Codec 'halves': encode must return \(codes\) of shape \[\(3,\)\]"):
        codec.pack(torch.zeros(4, 4))
    codec = Codec(halves, doubled, shapes_of=lambda shape: ((math.prod(shape) // 2 + 1,),), name="halves")
    with pytest.raises(ValueError, match=r"Codec 'halves': decode must return float32 values of shape \(4, 4\)"):
        codec.unpack(codec.pack(torch.zeros(4, 4)), (4, 4))


# What a code of factors cannot store.

FACTORED_BESIDE = [
    {"exp_avg": "factored"},
    {"exp_avg": "factored", "exp_avg_sq": "int8"},
    {"exp_avg": "factored", "*": torch.float32},
]
RATIOS = ("adam", "adamw", "nadam", "adamp", "ademamix", "stable_adamw", "yogi", "adai")
WHOLE = {"w": (64, 96)}


def ratio(name):
    return getattr(gradtx, name)(lr=1e-3)


@pytest.mark.parametrize("state_dtype", FACTORED_BESIDE, ids=str)
@pytest.mark.parametrize("name", RATIOS)
def test_a_first_average_is_not_factored_beside_an_exact_second_one(name, state_dtype):
    vector = "exp_avg_slow" if name == "ademamix" else "exp_avg"
    wanted = {vector if slot == "exp_avg" else slot: code for slot, code in state_dtype.items()}
    if name == "adai" and "exp_avg_sq" in wanted:
        pytest.skip("its slots are tested with the wildcard")
    tx = gradtx.with_state_dtype(ratio(name), wanted)
    with pytest.raises(ValueError, match=rf"state_dtype cannot store '{vector}' of leaf 'w' as 'factored' beside"):
        tx.init({"w": torch.zeros(64, 96)})


@pytest.mark.parametrize("name", ["soap", "kl_soap", "namo_d"])
def test_a_momentum_is_not_factored_in_other_coordinates_than_its_squares(name):
    options = {"fallback": gradtx.adamw()} if name == "namo_d" else {}
    tx = gradtx.with_state_dtype(getattr(gradtx, name)(**options), "factored")
    with pytest.raises(ValueError, match=r"as 'factored' beside 'exp_avg_sq'.*choose another code"):
        tx.init({"w": torch.zeros(64, 96)})


@pytest.mark.parametrize("state_dtype", ["factored", {"exp_avg": "int8", "exp_avg_sq": "factored"}], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-6], ids=["no", "tiny"])
def test_weights_with_no_or_tiny_gradients_move_no_farther_than_others(size, state_dtype):
    weight = torch.nn.Parameter(torch.zeros(64, 96))
    optimizer = gradtx.optim.AdamW([weight], lr=1e-3, weight_decay=0.0, state_dtype=state_dtype)
    unused = torch.zeros(64, 96, dtype=torch.bool)
    unused[::7, ::3] = True
    for step in range(20):
        gradient = torch.randn(64, 96, generator=torch.Generator().manual_seed(step))
        weight.grad = torch.where(unused, size * gradient, gradient)
        optimizer.step()
    moved = weight.detach().abs()
    assert moved[unused].max() <= 1.5 * moved[~unused].max()


def test_an_optimizer_says_so_when_it_is_built():
    with pytest.raises(ValueError, match="or 'factored' for both"):
        gradtx.optim.AdamW([torch.nn.Parameter(torch.ones(64, 96))], state_dtype={"exp_avg": "factored"})


OF_WEIGHTS = {
    "schedule_free_adamw": ({}, "z"),
    "prodigy": ({}, "p0"),
    "dog": ({}, "param_init"),
    "dadapt_sgd": ({}, "x0"),
    "madgrad": ({"momentum": 0.9}, "x0"),
}


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_weights_in_the_state_are_not_factored(name):
    options, slot = OF_WEIGHTS[name]
    params = {"w": torch.randn(64, 96, generator=torch.Generator().manual_seed(0))}
    tx = getattr(gradtx, name)(**options)
    state = gradtx.with_state_dtype(tx, "factored").init(params)
    kept = [slots[slot]["w"] for slots in state.values() if isinstance(slots, dict) and slot in slots]
    assert [tensor.shape for tensor in kept] == [(64, 96)]
    with pytest.raises(ValueError, match=rf"slot '{slot}' holds weights"):
        gradtx.with_state_dtype(tx, {slot: "factored"}).init(params)


@by_day("outer", "with_lookahead", "average", "regenerate_towards_init")
@pytest.mark.parametrize("case", lean_cases(), ids=str)
def test_no_slot_that_starts_as_its_weights_is_factored(case):
    params = case.noise(3, {"matrix": (3, 4), "vector": (5,)}, torch.float32)
    tx = case.make()
    try:
        state = gradtx.with_state_dtype(tx, "factored", min_size=0).init(params)
    except ValueError as error:
        if "state_dtype cannot store" not in str(error) and "has initial norm 0" not in str(error):
            raise
        return
    stored = tensors(state)
    for path, first in tensors(tx.init(params)).items():
        starts = [param for param in params.values() if param.shape == first.shape and torch.equal(param, first)]
        assert not starts or torch.equal(stored[path], first), path


@pytest.mark.parametrize("size", [1e17, 1e19])
def test_squares_whose_sums_overflow_are_not_read_as_0(size):
    weight = torch.nn.Parameter(torch.zeros(256, 256))
    optimizer = gradtx.optim.Adam([weight], lr=1e-3, state_dtype={"exp_avg_sq": "factored"})
    for _ in range(3):
        weight.grad = torch.full((256, 256), size)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((256, 256), -3e-3))


def test_factors_of_a_transposed_weight_are_refused():
    def built(*shape):
        weight = torch.nn.Parameter(torch.ones(shape))
        return weight, gradtx.optim.AdamW([weight], state_dtype="factored")

    weight, optimizer = built(80, 64)
    weight.grad = torch.ones(80, 64)
    optimizer.step()
    _, transposed = built(64, 80)
    with pytest.raises(ValueError, match=r"of shape \(80, 64\), in a code that does not tell it from one of shape"):
        transposed.load_state_dict(optimizer.state_dict())
    assert not transposed.state
    same, again = built(80, 64)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[same].keys() == optimizer.state[weight].keys()
