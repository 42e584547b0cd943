"""What a rule receives: extras and `ctx`."""

import pytest
import torch

import gradtx
from gradtx import chain
from tests.conformance import assert_same, noise
from tests.rules import VECTORS, made, ones, run

# Extras.


def test_extras_by_leaf_and_scalars_reach_the_rule_as_declared():
    def update(update, state, param, ctx):
        assert ctx.value == 3.0
        return update * ctx.fisher + ctx.temperature, state

    tx = made(update, extras={"fisher": "leaf", "temperature": "scalar"}, needs=("value",))
    assert tx.needs == ("fisher", "temperature", "value")
    updates, _ = run(tx, 1, fisher=ones(a=torch.tensor([1.0, 2.0, 3.0])), temperature=0.5, value=torch.tensor(3.0))
    assert updates["a"].tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize("kind", ["leaf?", "scalar?"])
def test_an_optional_extra_is_none_when_it_is_not_given(kind):
    def update(update, state, param, ctx):
        return update if ctx.fisher is None else update * ctx.fisher, state

    tx = made(update, extras={"fisher": kind})
    assert tx.needs == ()
    assert torch.equal(run(tx, 1)[0]["a"], torch.ones(3))
    fisher = torch.tensor(2.0) if kind == "scalar?" else {name: 2 * leaf for name, leaf in ones().items()}
    assert torch.equal(run(tx, 1, fisher=fisher)[0]["a"], torch.full((3,), 2.0))


def test_value_grad_fn_and_hessian_diag_are_always_accepted():
    given = {"value": torch.tensor(1.0), "grad_fn": lambda p: p, "hessian_diag": ones()}
    with_them, without = run(gradtx.adam(), 2, **given), run(gradtx.adam(), 2)
    torch.testing.assert_close(with_them, without, rtol=1e-6, atol=0.0)  # programs over lists round differently


def test_hessian_diag_of_none_means_keep_the_last_one():
    def update(update, state, param, ctx):
        hessian = state["h"] if ctx.hessian_diag is None else 1.0 * ctx.hessian_diag
        return update / hessian, {"h": hessian}

    tx = made(update, lambda param: {"h": torch.ones_like(param)}, needs=("hessian_diag",))
    _, state = run(tx, 1, hessian_diag=ones(a=torch.full((3,), 4.0)))
    updates, _ = tx.update(ones(), state, ones(), hessian_diag=None)
    assert updates["a"].tolist() == [0.25] * 3


def test_a_half_precision_extra_is_widened_as_its_leaf():
    def update(update, state, param, ctx):
        assert ctx.hessian_diag.dtype == torch.float32
        return update, state

    low = {"a": torch.ones(3, dtype=torch.bfloat16)}
    run(made(update, needs=("hessian_diag",)), 1, low, low, hessian_diag=low)


def test_extras_are_matched_by_leaf_name_in_any_order():
    tx = made(lambda update, state, param, ctx: (update * ctx.hessian_diag, state), needs=("hessian_diag",))
    hessian = noise(3, VECTORS)
    first, _ = run(tx, 1, hessian_diag=hessian)
    again, _ = run(tx, 1, hessian_diag=dict(reversed(hessian.items())))
    assert_same(again, first)


# What a rule receives.


def test_step_counts_from_one_as_int64_and_time_is_the_same_in_float64():
    seen = []

    def update(update, state, param, ctx):
        seen.append((ctx.step, ctx.time))
        return update, state

    tx = made(update, compiles=False)  # without a program it is called at every step
    run(tx, 3, {"a": torch.ones(1)}, {"a": torch.ones(1)})
    assert_same(seen, [(torch.tensor(i), torch.tensor(float(i), dtype=torch.float64)) for i in (1, 2, 3)])


def test_ctx_grad_is_the_gradient_before_any_link():
    def update(update, state, param, ctx):
        return ctx.grad + 0 * update, state

    tx = chain(gradtx.scale(5.0), gradtx.trace(0.9), made(update))
    assert_same(run(tx, 3, grads=noise(2, VECTORS, torch.float32))[0], noise(2, VECTORS, torch.float32))
    assert_same(run(chain(tx), 1, grads=ones())[0], ones())


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("form", [float, lambda x: torch.tensor(x, dtype=torch.float64)], ids=["number", "tensor"])
def test_bias_correction_is_exact_in_float64(beta, form):
    def update(update, state, param, ctx):
        result = ctx.bias_correction(form(beta))
        assert result.dtype == torch.float64
        return update, {"c": result, "other": ctx.bias_correction(form(beta), step=ctx.step - 1)}

    init = lambda param: dict.fromkeys(("c", "other"), torch.zeros((), dtype=torch.float64))  # noqa: E731
    tx = made(update, init)
    for steps in (1, 2, 1000):
        state = {**tx.init({"w": torch.ones(2)}), "step": torch.tensor(steps - 1)}
        _, new = tx.update({"w": torch.ones(2)}, state)
        for name, t in (("c", steps), ("other", steps - 1)):
            # a few units in the last place of float64; at beta = 0 and step 0 it is 0, the sum of no gradients
            exact = -torch.expm1(t * torch.tensor(beta, dtype=torch.float64).log()) if beta else min(t, 1)
            assert new["rule"][name]["w"].item() == pytest.approx(float(exact), rel=1e-14, abs=0)


def test_every_k_steps_selects_tensors_and_trees_of_them():
    def update(update, state, param, ctx):
        fresh = ctx.every(3, 4, lambda: {"x": [update * 10]}, lambda: {"x": [state["x"]]})
        return update + ctx.every(2, 0, lambda: torch.ones_like(update), lambda: torch.zeros_like(update)), {
            "x": fresh["x"][0]
        }

    tx = made(update, lambda param: {"x": torch.zeros_like(param)})
    state, kept, added = tx.init(ones()), [], []
    for i in range(1, 6):
        updates, state = tx.update({name: i * leaf for name, leaf in ones().items()}, state)
        kept.append(state["rule"]["x"]["c"].item())
        added.append(updates["c"].item() - i)
    assert kept == [10, 10, 10, 40, 40]  # steps 1 and 4
    assert added == [0, 1, 0, 1, 0]
