"""Rules for whole trees, and all kinds of rules under torch.compile and vmap."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import gradtx
from gradtx import Schedule, chain, per_tensor
from tests.conformance import assert_close, assert_same, noise
from tests.rules import FLAT, double, look_ahead, normal, ones, run

# Rules for whole trees.


def test_a_tree_rule_works_on_dicts_by_leaf_name_and_keeps_slots_and_scalars():
    nested = {"x": {"w": torch.ones(2)}, "y": [torch.ones(3)]}
    tx = look_ahead(distance=0.25)
    state = tx.init(nested)
    assert set(state["look_ahead"]["mean"]) == {"x.w", "y.0"}
    grad_fn = lambda p: {"x": {"w": 2 * p["x"]["w"]}, "y": [2 * p["y"][0]]}  # noqa: E731
    updates, state = tx.update(nested, state, nested, grad_fn=grad_fn)
    assert updates["x"]["w"].tolist() == [1.5, 1.5]
    assert state["look_ahead"]["mean"]["y.0"].tolist() == [0.75] * 3
    assert state["look_ahead"]["calls"] == 1


def test_a_tree_rule_without_a_gradient_for_a_leaf_leaves_its_slots_alone():
    tx = look_ahead()
    state = tx.init(ones())
    updates, new = tx.update(ones(b=None), state, ones(), grad_fn=double)
    assert updates["b"] is None
    assert_same(new["look_ahead"]["mean"]["b"], state["look_ahead"]["mean"]["b"])


# All of it under torch.compile and vmap.


@per_tensor
def refreshed():
    """An update divided by its size of three steps ago at most."""

    def update(update, state, param, ctx):
        size = ctx.every(3, 1, lambda: update.square().mean(), lambda: state["size"])
        return update / (size + 1), {"size": size}

    return lambda param: {"size": param.new_zeros(())}, update


def _everything():
    return chain(
        normal(seed=3),
        refreshed(),
        look_ahead(0.5),
        gradtx.adam(lr=gradtx.warmup_cosine_schedule(9, max_lr=0.1, init_lr=0.01, warmup_steps=2)),
        gradtx.scale(Schedule(lambda step: 1.0 + step)),
    )


@pytest.mark.slow
def test_noise_schedules_and_tree_rules_compile_to_one_graph_for_all_steps():
    torch._dynamo.reset()
    tx, counter, params, grads = _everything(), CompileCounter(), noise(1, FLAT), noise(2, FLAT)
    compiled = torch.compile(lambda g, s, p: tx.update(g, s, p, grad_fn=double), backend=counter, fullgraph=True)
    state = tx.init(params)
    for _ in range(4):
        expected = tx.update(grads, state, params, grad_fn=double)
        # the same operations, traced
        assert_close(compiled(grads, state, params), expected, rtol=1e-12)
        state = expected[1]
    assert counter.frame_count == 1


def test_noise_schedules_and_tree_rules_work_under_vmap():
    tx, params, grads = _everything(), noise(1, FLAT), noise(2, FLAT)
    scales = torch.tensor([1.0, -2.0], dtype=torch.float64)
    train = lambda x: run(tx, 3, params, {name: x * g for name, g in grads.items()}, grad_fn=double)  # noqa: E731
    together = torch.vmap(train)(scales)
    for i, x in enumerate(scales):
        member = torch.utils._pytree.tree_map(lambda leaf, i=i: leaf[i], together)
        assert_close(member, train(x), rtol=1e-12)  # batched kernels may round differently


# Extras of plain functions.


def plain(update):
    return gradtx.GradientTransformation(lambda params: {}, update)


def by_value(updates, state, params=None, value=None):
    return {name: u * (1.0 if value is None else value) for name, u in updates.items()}, state


def by_keywords(updates, state, params=None, **extras):
    return by_value(updates, state, params, extras.get("value"))


@pytest.mark.parametrize("update", [by_value, by_keywords])
@pytest.mark.parametrize("around", [lambda tx: tx, lambda tx: chain(gradtx.trace(0.0), tx)], ids=["alone", "chain"])
def test_a_plain_pair_of_functions_gets_the_loss(update, around):
    tx, params = around(plain(update)), {"w": torch.ones(2)}
    state = tx.init(params)
    assert torch.equal(tx.update(params, state, params, value=3.0)[0]["w"], torch.full((2,), 3.0))
    assert torch.equal(tx.update(params, state, params)[0]["w"], torch.ones(2))
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = gradtx.as_optimizer(around(plain(update)), [("w", weight)])

    def closure():
        weight.grad = torch.ones(2)
        return torch.tensor(3.0)

    optimizer.step(closure)
    assert torch.equal(weight, torch.full((2,), 3.0))


@pytest.mark.parametrize("name", ["grad_fn", "value_fn"])
def test_a_plain_pair_that_asks_for_a_function_is_told_what_to_write(name):
    message = rf"plain functions do not receive {name!r}, but update has this parameter.*whole_tree\(needs="
    with pytest.raises(TypeError, match=message):
        plain(eval(f"lambda updates, state, params=None, {name}=None: (updates, state)"))


# State of a wider dtype than the weights.

PAIR_OF_FACTORS = {"up": (4, 2), "down": (2, 3)}


@pytest.mark.parametrize(("dtype", "wide"), [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize(
    "make",
    [
        lambda **options: gradtx.precondition_inputs(every=1, **options),
        lambda **options: gradtx.scale_by_lora_rite({"up": "down"}, **options),
        lambda **options: gradtx.precondition_pairs({"up": "down"}, damping=0.1, **options),
        lambda **options: gradtx.chain(gradtx.scale_by_adam(**options), gradtx.precondition_inputs(every=1)),
        lambda **options: gradtx.chain(gradtx.scale_by_adam(**options), gradtx.scale_by_lora_rite({"up": "down"})),
    ],
    ids=["inputs", "lora_rite", "pairs", "inputs after wide", "lora_rite after wide"],
)
def test_rules_for_whole_trees_compute_in_the_dtype_of_a_wide_state(make, dtype, wide):
    params = noise(0, PAIR_OF_FACTORS, dtype)
    exact = {name: param.double() for name, param in params.items()}
    gram = {"up": torch.eye(2, dtype=torch.float64) + 0.5}
    extras = {"input_gram": gram} if "precondition_inputs" in repr(make()) else {}
    tx, reference = make(state_dtype=wide), make()
    state, expected_state = tx.init(params), reference.init(exact)
    for t in range(3):
        gradients = noise(t + 1, PAIR_OF_FACTORS, dtype)
        updates, state = tx.update(gradients, state, params, **extras)
        expected, expected_state = reference.update(
            {name: gradient.double() for name, gradient in gradients.items()}, expected_state, exact, **extras
        )
        for name, update in updates.items():
            # The other link keeps its state in bfloat16.
            tolerance = 1e-3 if dtype == torch.float32 else 0.06
            torch.testing.assert_close(update.double(), expected[name], rtol=tolerance, atol=tolerance)
