"""Updates under `torch.vmap`: later calls repeat the operations of earlier ones, with the same bits, on new data."""

import collections

import pytest
import torch
from torch.func import grad, vmap

import gradtx
from gradtx.compiler.repeat import Repeated
from gradtx.pure import repeated_calls
from tests.conformance import assert_own_memory, assert_same, plain_cases, tensors
from tests.tiers import by_day

MEMBERS, STEPS = 3, repeated_calls.CALLS_BEFORE + 3
SHAPES = {"a": (4, 3), "b": (5,), "c": ()}
# Averages, matrices, sums over leaves, decisions, random numbers, combinators, periods.
CHAINS = {
    "adamw": gradtx.adamw,
    "sgd": lambda: gradtx.sgd(0.1, momentum=0.9, nesterov=True),
    "clip": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adam(1e-2)),
    "prodigy": gradtx.prodigy,
    "adafactor": gradtx.adafactor,
    "lion": gradtx.lion,
    "noise": lambda: gradtx.chain(gradtx.add_noise(0.1, 0.5, 0), gradtx.sgd(0.1)),
    "accumulate": lambda: gradtx.accumulate(gradtx.adamw(1e-2), every=2),
    "lookahead": lambda: gradtx.chain(gradtx.adam(1e-2), gradtx.lookahead()),
    "skip": lambda: gradtx.skip_nonfinite(gradtx.adam(1e-2)),
    "schedule": lambda: gradtx.sgd(gradtx.linear_schedule(1.0, 0.1, 1.0, total_iters=3)),
    "ranger": gradtx.ranger,
}


def stacked(seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(MEMBERS, *shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def recordings(monkeypatch):
    """The functions that were recorded."""
    made = []

    class Counted(Repeated):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(repeated_calls.ALL_CALLS, "_values", collections.OrderedDict())
    monkeypatch.setattr(repeated_calls, "Repeated", Counted)
    return made


def assert_equals_eager_rules(update, state, calls, equal_strides=True):
    """Each call has the bits and layouts of rules that run line by line."""
    expected_state = state
    for arguments in calls:
        result = update(arguments[0], state, *arguments[1:])
        with gradtx.eagerly():
            expected = update(arguments[0], expected_state, *arguments[1:])
        assert_same(result, expected)
        strides = [[x.stride() for x in tensors(tree).values()] for tree in (result, expected)]
        assert strides[0] == strides[1]
        _, state = result
        _, expected_state = expected
    return result


@pytest.mark.parametrize("name", CHAINS)
def test_every_call_has_the_bits_of_rules_line_by_line(name):
    tx, params = CHAINS[name](), stacked(0)
    state = vmap(tx.init)(params)
    calls = [(stacked(seed), params) for seed in range(STEPS)]
    result = assert_equals_eager_rules(vmap(tx.update), state, calls)
    assert_own_memory(result, (*calls, state))


@pytest.mark.parametrize("case", plain_cases(), ids=str)
@by_day("scale_by_sign", "orthogonalize", "scale_by_sm3")
def test_every_method_has_the_bits_of_its_rules_line_by_line(case):
    tx = case.make()
    if {*tx.needs} - {"params"}:
        pytest.skip("it needs more than gradients")
    params = gradtx.stack([case.noise(seed) for seed in range(MEMBERS)])
    calls = [(gradtx.stack([case.noise(10 * step + i) for i in range(MEMBERS)]), params) for step in range(STEPS)]
    try:
        state = vmap(tx.init)(params)
        vmap(tx.update)(params, state, params)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"vmap cannot run it: {error}")
    assert_equals_eager_rules(vmap(tx.update), state, calls)


def test_each_member_takes_the_steps_of_torch():
    tx, params = gradtx.adamw(0.1), stacked(0)
    weights = [{n: torch.nn.Parameter(x[i].clone()) for n, x in params.items()} for i in range(MEMBERS)]
    optimizers = [torch.optim.AdamW(list(tree.values()), lr=0.1) for tree in weights]
    state = vmap(tx.init)(params)
    for seed in range(8):
        grads = stacked(seed + 1)
        updates, state = vmap(tx.update)(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        for i, optimizer in enumerate(optimizers):
            for name, weight in weights[i].items():
                weight.grad = grads[name][i]
            optimizer.step()
    for i, tree in enumerate(weights):
        for name, weight in tree.items():
            torch.testing.assert_close(params[name][i], weight.detach(), rtol=1e-5, atol=1e-6)


def test_later_calls_repeat_what_is_recorded_once(recordings):
    tx, params = gradtx.adamw(), stacked(0)
    state = vmap(tx.init)(params)
    for _ in range(6):
        _, state = vmap(tx.update)(params, state, params)
    assert len(recordings) == 1


def test_each_call_has_its_own_rates(recordings):
    def update(rate, grads, state, params):
        return gradtx.adamw(rate).update(grads, state, params)

    params = stacked(0)
    state = vmap(gradtx.adamw().init)(params)
    for scale in range(1, STEPS):
        rates = 0.1 * scale * torch.arange(1, MEMBERS + 1)
        result = vmap(update)(rates, params, state, params)
        for i, rate in enumerate(rates):
            of_member = lambda tree, i=i: torch.utils._pytree.tree_map(lambda x: x[i], tree)  # noqa: E731
            with gradtx.eagerly():
                expected = gradtx.adamw(rate).update(*map(of_member, (params, state, params)))
            torch.testing.assert_close(of_member(result), expected)
    assert len(recordings) == 1


def test_a_number_that_changes_is_another_program():
    params = stacked(0)
    for _ in range(4):
        for rate in (0.1, 0.2):
            updates, _ = vmap(gradtx.sgd(rate).update)(params, vmap(gradtx.sgd(rate).init)(params))
            assert_same(updates, {name: -rate * x for name, x in params.items()})


def test_numbers_and_tensors_in_each_others_place_are_other_programs():
    params = stacked(0)

    def update(rate, momentum):
        tx = gradtx.sgd(rate, momentum)
        state = vmap(tx.init)(params)
        state = gradtx.put(state, "momentum_buffer", params)
        return vmap(tx.update)(params, state)[0]

    half = torch.tensor(0.5, dtype=torch.float64)
    for _ in range(4):
        for arguments in ((0.25, half), (half, 0.25)):
            rate, momentum = map(float, arguments)
            expected = {name: -rate * (1 + momentum) * x for name, x in params.items()}
            torch.testing.assert_close(update(*arguments), expected)


def test_containers_stay_what_they_are(recordings):
    tx, pair = gradtx.sgd(0.5), collections.namedtuple("Pair", "a b")
    leaves = stacked(0, {"a": (2,), "b": (3,)})
    for container in (pair, lambda **named: dict(named), lambda **named: collections.OrderedDict(named)) * 4:
        params = container(**leaves)
        updates, _ = vmap(tx.update)(params, vmap(tx.init)(params))
        assert type(updates) is type(params)
    assert len(recordings) == 1


def test_leaves_without_a_gradient_stay_without_an_update():
    tx, params = gradtx.adamw(), stacked(0)
    state = vmap(lambda params: tx.init(params, counts="leaves"))(params)

    def update(grads, state, params):
        present = {name: x for name, x in grads.items() if x is not None}

        def of_member(of, *rest):
            updates, state = tx.update({**grads, **of}, *rest)
            assert updates.keys() - {name for name, x in updates.items() if x is None} == present.keys()
            return {name: updates[name] for name in present}, state

        return vmap(of_member)(present, state, params)

    calls = []
    for seed in range(2 * STEPS):
        grads = stacked(seed)
        calls.append(({**grads, "b": None} if seed % 2 else grads, params))
    assert_equals_eager_rules(update, state, calls)


@pytest.mark.parametrize("dim", [0, 1])
def test_members_may_lie_along_any_dimension(dim):
    tx = gradtx.adamw()
    params = {"a": torch.randn(MEMBERS, MEMBERS, 2, generator=torch.Generator().manual_seed(0))}
    state = vmap(tx.init)(params)
    update = vmap(tx.update, in_dims=(dim, 0, 0))
    calls = [({"a": seed * params["a"]}, params) for seed in range(STEPS)]
    assert_equals_eager_rules(update, state, calls)


def test_what_members_share_is_not_batched():
    tx, params = gradtx.adamw(), {"a": torch.ones(4)}
    state = tx.init(params)
    update = vmap(tx.update, in_dims=(0, None, None))
    for seed in range(STEPS):
        grads = stacked(seed, {"a": (4,)})
        result = update(grads, state, params)
        with gradtx.eagerly():
            assert_same(result, update(grads, state, params))


def test_derivatives_of_members_and_vmaps_of_derivatives_run_the_rules(recordings):
    tx, params = gradtx.adamw(0.1), stacked(0, {"a": (4,)})
    state = vmap(tx.init)(params)

    def stepped(grads, state, params):
        return tx.update(grads, state, params)[0]["a"].square().sum()

    def of_all(grads):
        return vmap(stepped)(grads, state, params).sum()

    for _ in range(STEPS):
        outside, inside = grad(of_all)(params), vmap(grad(stepped))(params, state, params)
        torch.testing.assert_close(outside, inside)
        leaf = {"a": params["a"].clone().requires_grad_()}
        of_all(leaf).backward()
        torch.testing.assert_close(leaf["a"].grad, outside["a"])
    assert not recordings


def test_a_vmap_in_a_vmap_runs_the_rules(recordings):
    tx = gradtx.adamw(0.1)
    params = {"a": torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))}
    state = vmap(vmap(tx.init))(params)
    flat = [{"a": params["a"][i]} for i in range(2)]
    for _ in range(STEPS):
        updates, _ = vmap(vmap(tx.update))(params, state, params)
        expected = [vmap(tx.update)(tree, vmap(tx.init)(tree), tree)[0]["a"] for tree in flat]
        assert_same(updates["a"], torch.stack(expected))
    assert len(recordings) == 1


def test_a_rule_of_a_user_runs_in_every_call():
    calls = []

    @gradtx.per_tensor
    def counting():
        def update(update, state, param, ctx):
            calls.append(update)
            return -update, state

        return update

    tx, params = counting(), stacked(0, {"a": (4,)})
    for _ in range(STEPS):
        vmap(tx.update)(params, vmap(tx.init)(params))
    assert len(calls) == STEPS


def test_an_extra_that_a_rule_reads_is_an_argument():
    tx, params = gradtx.chain(gradtx.scale_by_polyak(), gradtx.scale(-1.0)), stacked(0, {"a": (4,)})

    def update(value, params):
        return tx.update(params, tx.init(params), params, value=value)[0]

    for scale in range(1, STEPS):
        value = scale * torch.arange(1.0, MEMBERS + 1)
        result = vmap(update)(value, params)
        with gradtx.eagerly():
            assert_same(result, vmap(update)(value, params))


def test_a_state_of_another_chain_is_refused_in_every_call():
    params = stacked(0)
    state = vmap(gradtx.adam().init)(params)
    for _ in range(STEPS):
        with pytest.raises(ValueError, match="this chain does not use"):
            vmap(gradtx.sgd(0.1, momentum=0.9).update)(params, state, params)


def test_a_leaf_without_a_gradient_may_have_an_update(recordings):
    tx, params = gradtx.accumulate(gradtx.adamw(), every=2), stacked(0)
    all_leaves = vmap(tx.update)
    without_b = vmap(lambda grads, state, params: tx.update({**grads, "b": None}, state, params))
    state = vmap(tx.init)(params)
    for step in range(STEPS):
        _, state = assert_equals_eager_rules(all_leaves, state, [(stacked(2 * step), params)])
        _, state = assert_equals_eager_rules(without_b, state, [(stacked(2 * step + 1), params)])


def test_members_on_another_device_have_operations_of_their_own(recordings):
    tx = gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw())
    for device in ("pretend", "cpu"):
        params = {name: x.to(device) for name, x in stacked(0).items()}
        state = vmap(tx.init)(params)
        for _ in range(STEPS):
            updates, state = vmap(tx.update)(params, state, params)
        assert {x.device.type for x in updates.values()} == {device}
    assert len(recordings) == 2
