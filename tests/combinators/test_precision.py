"""The last links: how weights of 16 bits are rounded."""

import copy
import itertools
import pickle

import pytest
import torch

import gradtx
from gradtx import chain, compensate_rounding, round_stochastically
from gradtx.plans.bundle import CHUNK
from gradtx.state.codes import CODES
from gradtx.state.random import bits16
from tests.conformance import assert_same
from tests.tiers import by_day

LINKS = {
    "stochastic": round_stochastically(seed=5),
    "compensated 16": compensate_rounding(),
    "compensated 8": compensate_rounding(bits=8),
}
HALVES = [torch.bfloat16, torch.float16]
SHAPES = {"matrix": (33, 70), "large": (CHUNK // 256 + 3, 256), "vector": (100,), "single": (1,)}


def weights(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def pure(tx, params, steps, state=None):
    state = tx.init(params) if state is None else state
    for i in range(steps):
        updates, state = tx.update(weights(next(iter(params.values())).dtype, 10 + i), state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


@by_day("dtype0")
@pytest.mark.parametrize("dtype", HALVES)
def test_small_steps_arrive_where_nearest_stands_still(dtype):
    step = 1e-4
    # Eight bits of compensation are a grid of 2^-15 here, on which a step of 1e-4 is 3 points: 9.2e-5.
    bars = {"stochastic": (0.95, 1.05), "compensated 16": (0.95, 1.05), "compensated 8": (0.88, 1.02)}
    for last, (low, high) in ((chain(), (0.0, 0.0)), *((link, bars[name]) for name, link in LINKS.items())):
        tx = chain(gradtx.sgd(lr=step), last)
        params = {"w": torch.ones(500, dtype=dtype)}
        state = tx.init(params)
        for _ in range(2000):
            updates, state = tx.update({"w": torch.full((500,), -1.0, dtype=dtype)}, state, params)
            params = gradtx.apply_updates(params, updates)
        way = (params["w"].double().mean().item() - 1) / (2000 * step)
        assert low <= way <= high


def neighbours(exact, dtype):
    near = exact.to(dtype)
    step = torch.where(near.double() < exact, torch.tensor(torch.inf), torch.tensor(-torch.inf)).to(dtype)
    other = torch.nextafter(near, step)
    return near, torch.where(near.double() == exact, near, other)


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_rounding_gives_a_neighbour_of_the_sum_with_the_right_mean(dtype):
    for scale in (1e-3, 1.0, 300.0):
        exact = scale * (1 + torch.arange(1, 40, dtype=torch.float64) / 77)
        params = {"w": exact.to(dtype).repeat(20_000, 1)}
        update = torch.full((20_000, 39), 0.3 * scale * torch.finfo(dtype).eps)
        tx = round_stochastically(seed=1)
        updates, _ = tx.update({"w": update}, tx.init(params), params)
        target = (params["w"].float() + update).double()
        new = gradtx.apply_updates(params, updates)["w"]
        near, other = neighbours(target, dtype)
        assert ((new == near) | (new == other)).all()
        gap = (near.double() - other.double()).abs().amax()
        error = (new.double().mean(0) - target.mean(0)).abs()
        assert (error <= 5 * gap / 20_000**0.5 / 2).all()  # five standard deviations at most


def test_noise_differs_between_steps_leaves_seeds_and_entries():
    params = {"a": torch.ones(1000, dtype=torch.bfloat16), "b": torch.ones(1000, dtype=torch.bfloat16)}
    grads = {name: torch.full((1000,), 2**-9) for name in params}

    def drawn(seed, steps):
        tx = round_stochastically(seed)
        state = tx.init(params)
        for _ in range(steps):
            updates, state = tx.update(grads, state, params)
        return updates

    first = drawn(0, 1)
    assert_same(drawn(0, 1), first)
    for other in (first["b"], drawn(0, 2)["a"], drawn(1, 1)["a"], first["a"].roll(1)):
        assert 0.2 < (first["a"] != other).double().mean() < 0.55  # a quarter of the entries go up: 0.375


def compensated(p, kept):
    """The number that a weight and its compensation stand for."""
    if kept.dtype != torch.int8:
        return p.double() + kept.double()
    if p.dtype == torch.bfloat16:  # the next 8 bits of float32, with a sign
        return CODES["bfloat16+8"].decode(p, kept).double()
    unit = 2.0 ** (p.double().abs().log2().floor() - 10)
    return p.double() + kept.double() * unit.clamp(min=2**-24) / 254


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bits", [8, 16])
def test_a_weight_with_its_compensation_is_the_sum(bits, dtype, seed):
    tx = compensate_rounding(bits)
    params = weights(dtype, seed)
    state = tx.init(params)
    for i in range(5):
        grads = {name: 1e-3 * g.float() for name, g in weights(dtype, 20 + i).items()}
        kept = state["compensate_rounding"]["compensation"]
        exact = {name: compensated(p, kept[name]) + grads[name].double() for name, p in params.items()}
        updates, state = tx.update(grads, state, params)
        old, params = params, gradtx.apply_updates(params, updates)
        for name, p in params.items():
            kept = state["compensate_rounding"]["compensation"][name]
            assert kept.dtype == (torch.int8 if bits == 8 else dtype)
            size = torch.maximum(p.double().abs(), old[name].double().abs()).clamp(min=2**-14)
            in_float32 = 2**-22 * size
            bar = (
                2**-16 * size if bits == 8 else 2**-8 * kept.double().abs() + (2**-25 if dtype == torch.float16 else 0)
            )
            assert ((compensated(p, kept) - exact[name]).abs() <= bar + in_float32).all()


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_leaves_pass_unchanged_without_slots(name, dtype):
    tx, plain = chain(gradtx.adam(lr=1e-2), LINKS[name]), gradtx.adam(lr=1e-2)
    actual, state = pure(tx, weights(dtype), 3)
    assert_same(actual, pure(plain, weights(dtype), 3)[0])
    assert set(state) == {"step", "scale_by_adam"}


@by_day(
    "stochastic-dtype0-True", "stochastic-dtype1-False", "compensated 16-dtype0-False",
    "compensated 16-dtype1-True", "compensated 8-dtype0-True", "compensated 8-dtype1-False",
)  # fmt: skip
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LINKS)
def test_an_optimizer_has_the_bits_of_pure_use_also_after_a_resume(name, dtype, compile):
    tx = chain(gradtx.sgd(lr=1e-2), LINKS[name])
    expected, _ = pure(tx, weights(dtype), 4)
    params = {name: torch.nn.Parameter(p) for name, p in weights(dtype).items()}
    optimizer = gradtx.as_optimizer(tx, list(params.items()), compile=compile)
    for i in range(4):
        for param, grad in zip(params.values(), weights(dtype, 10 + i).values(), strict=True):
            param.grad = grad
        if i == 2:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = gradtx.as_optimizer(tx, list(params.items()), compile=compile)
            optimizer.load_state_dict(saved)
        optimizer.step()
    for name, param in params.items():
        # The noise is the same; a sum that is contracted otherwise may round a tie the other way.
        assert (param.detach() != expected[name]).double().mean() <= (1e-2 if compile else 0.0)


@pytest.mark.parametrize("compile", [False, True])
def test_noise_follows_the_places_of_entries_in_any_layout(compile):
    """A flat alias of a tensor in channels_last has its entries in another order."""
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        param = torch.nn.Parameter(torch.ones(8, 6, 5, 4, dtype=torch.bfloat16).to(memory_format=layout))
        optimizer = gradtx.as_optimizer(chain(gradtx.sgd(lr=1e-3), round_stochastically()), [param], compile=compile)
        for _ in range(3):
            param.grad = torch.ones_like(param)
            optimizer.step()
        results.append(param.detach().contiguous())
    assert torch.equal(*results)


def bits_of_16(key, step, place):
    """The same noise in Python's whole numbers."""

    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    def hash32(x):
        x = (x ^ (x >> 16)) * 0x21F0AAAD % 2**32
        x = (x ^ (x >> 15)) * 0x735A2D97 % 2**32
        return x ^ (x >> 15)

    key = mix((mix(key % 2**64) + step) % 2**64)
    x = hash32((place ^ (place >> 32) ^ key) % 2**32)
    return hash32((x + (key >> 32)) % 2**32) >> 16


def test_noise_is_the_hash_of_key_step_and_place():
    keys = [-(2**63), -5, 0, 12345678901234567, 2**63 - 1]
    places = torch.tensor([0, 1, 77, 2**31, 2**32 - 1, 2**32 + 5, 2**40 + 123])
    for key, step in itertools.product(keys, (0, 1, 1000)):
        found = bits16(torch.tensor(key), torch.tensor(step), places)
        assert found.tolist() == [bits_of_16(key, step, place) for place in places.tolist()]


def test_compiled_kernels_round_as_eager_ones():
    for link in LINKS.values():
        results = []
        for compile in (False, True):
            param = torch.nn.Parameter(weights(torch.bfloat16)["matrix"])
            optimizer = gradtx.as_optimizer(chain(gradtx.sgd(lr=1e-3), link), [param], compile=compile)
            for i in range(3):
                param.grad = weights(torch.bfloat16, i)["matrix"]
                optimizer.step()
            results.append(param.detach())
        assert torch.equal(*results)


@gradtx.combinator
def halved(tx: gradtx.GradientTransformation):
    def leave(update, state, param, ctx):
        return update / 2, state

    return gradtx.Frame(tx, leave=leave)


# Combinators whose inner updates change when they leave, or whose inner leaves are others.
CHANGING = {
    "with_lookahead": gradtx.with_lookahead,
    "graft": lambda tx: gradtx.graft(tx, gradtx.sgd()),
    "scale_by_norm_ratio": gradtx.scale_by_norm_ratio,
    "schedule_free": lambda tx: gradtx.schedule_free(gradtx.chain(gradtx.scale(2.0), tx), lr=0.1, beta=0.9),
    "mechanize": gradtx.mechanize,
    "trac": gradtx.trac,
    "line_search": gradtx.line_search,
    "blocks": lambda tx: gradtx.blocks(tx, heads=2),
    "rotated": gradtx.rotated,
    "low_rank": lambda tx: gradtx.low_rank(tx, 2),
    "halved": halved,
}
KEEPING = {
    "accumulate": lambda tx: gradtx.accumulate(tx, 2),
    "skip_nonfinite": gradtx.skip_nonfinite,
    "restart": lambda tx: gradtx.restart(tx, 50),
    "masked": lambda tx: gradtx.masked(tx, "*"),
    "partition": lambda tx: gradtx.partition({"all": tx}, {"all": "*"}),
    "with_state_dtype": lambda tx: gradtx.with_state_dtype(tx, torch.bfloat16),
    "sam": gradtx.sam,
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("around", CHANGING)
def test_they_do_not_stand_inside_combinators_that_change_updates(around, link):
    rounds = rf"{LINKS[link]._name} rounds weights, but updates change when they leave"
    for inner in (LINKS[link], gradtx.accumulate(LINKS[link], 2)):
        with pytest.raises(TypeError, match=rf"^{around}: {rounds} {around}; move it after {around}$"):
            CHANGING[around](inner)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("around", KEEPING)
def test_small_steps_add_up_inside_combinators_that_keep_updates(around, link):
    tx = KEEPING[around](chain(gradtx.sgd(lr=1e-3), LINKS[link]))
    extras = {"grad_fn": lambda params: {"w": torch.full_like(params["w"], -1.0)}} if "grad_fn" in tx.needs else {}
    params = {"w": torch.ones(1000, dtype=torch.bfloat16)}
    state = tx.init(params)
    calls = 200 if around == "accumulate" else 100
    for _ in range(calls):
        updates, state = tx.update({"w": torch.full_like(params["w"], -1.0)}, state, params, **extras)
        params = gradtx.apply_updates(params, updates)
    # In float32, 1.1; the units of bfloat16 are 0.008 here.
    assert params["w"].float().mean().item() == pytest.approx(1.1, abs=0.008)


@pytest.mark.parametrize("name", LINKS)
def test_they_stand_last(name):
    link = LINKS[name]
    with pytest.raises(
        ValueError, match=rf"chain: {link._name} .* must be last, but scale follows it; only record may follow"
    ):
        chain(link, gradtx.scale(2.0))
    assert chain(gradtx.sgd(), link, gradtx.record("norm"))
    inside = gradtx.partition({"a": chain(gradtx.sgd(), link), "b": gradtx.sgd()}, {"a": "m*", "b": "*"})
    with pytest.raises(ValueError, match="must be last, but scale follows it"):
        chain(inside, gradtx.scale(2.0))
    params, state = pure(inside, weights(torch.bfloat16), 2)
    assert params["matrix"].dtype == torch.bfloat16
    assert list(state["partition"]["a"]) == [link._name]
    assert pickle.loads(pickle.dumps(link)).init(params)


@pytest.mark.parametrize("name", LINKS)
def test_eval_params_gives_the_weights_as_stored(name):
    tx = chain(gradtx.sgd(), LINKS[name])
    params, state = pure(tx, weights(torch.bfloat16), 2)
    assert_same(tx.eval_params(state, params), params)


def test_errors():
    params = weights(torch.bfloat16)
    tx = round_stochastically()
    with pytest.raises(ValueError, match="round_stochastically needs params"):
        tx.update(params, tx.init(params))

    def new(scale):
        return tx.update({"w": torch.ones(3) * scale}, tx.init(halves), halves)[0]["w"].sum()

    halves = {"w": torch.ones(3, dtype=torch.bfloat16)}
    with pytest.raises(ValueError, match="cannot differentiate through the rounding of leaf 'w'"):
        torch.func.grad(new)(torch.tensor(1.0))


@pytest.mark.parametrize("link", [gradtx.compensate_rounding(), gradtx.round_stochastically()], ids=str)
def test_a_parameter_that_was_converted_after_its_state_was_created_is_named(link):
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = gradtx.as_optimizer(gradtx.chain(gradtx.sgd(lr=0.1), link), [("w", param)])
    param.grad = torch.ones_like(param)
    optimizer.step()
    param.data = param.data.bfloat16()
    before = param.detach().clone()
    param.grad = torch.ones_like(param)
    with pytest.raises(
        ValueError, match=r"parameter 'w' is torch\.bfloat16 .* but its state was created for torch\.float32"
    ):
        optimizer.step()
    assert torch.equal(param, before)
