"""Rules for one tensor: sums over leaves, shared scalars, dtypes."""

import functools

import pytest
import torch

import gradtx
from gradtx import Scalar, chain, per_tensor
from gradtx.execution.traits import Traits
from tests.conformance import assert_same, noise, tensors
from tests.rules import VECTORS, count_init, made, ones, run

# Sums over leaves.


def test_a_sum_runs_over_all_leaves_and_every_leaf_gets_it():
    def update(update, state, param, ctx):
        total = yield {"square": update.square().sum(), "count": update.numel()}
        yield torch.zeros_like(update) + total["square"] / total["count"], state

    updates, _ = run(made(update), 1, grads=ones(c=torch.tensor(3.0)))
    assert all(torch.equal(u, torch.full_like(u, 2.0)) for u in updates.values())  # (3 + 4 + 9) / 8


def test_several_yields_are_several_barriers():
    def update(update, state, param, ctx):
        mean = yield {"sum": update.sum(), "n": update.numel()}
        centred = update - mean["sum"] / mean["n"]
        square = yield {"square": centred.square().sum()}
        yield centred / square["square"].sqrt(), state

    grads = noise(2, VECTORS)
    updates, _ = run(made(update), 1, grads, grads)
    flat = torch.cat([g.flatten() for g in grads.values()])
    expected = (flat - flat.mean()) / (flat - flat.mean()).norm()
    # sums are added in another order
    torch.testing.assert_close(torch.cat([u.flatten() for u in updates.values()]), expected, rtol=1e-13, atol=1e-14)


def test_two_stages_with_sums_do_not_mix_them_up():
    def update(update, state, param, ctx):
        total = yield {"n": update.sum()}
        yield update * total["n"], state

    tx = chain(made(update), gradtx.scale(2.0), made(update))
    updates, _ = run(tx, 1)
    assert torch.equal(updates["a"], torch.full((3,), 16.0 * 128.0))  # 8 leaves' entries: u = 16, then their sum


def test_sums_of_low_precision_leaves_are_exact():
    def update(update, state, param, ctx):
        total = yield {"sum": update.sum()}
        assert total["sum"].dtype == torch.float64
        yield torch.where(total["sum"] == 2049, update, 0.0), state

    leaves = {"a": torch.full((1,), 2048, dtype=torch.float16), "b": torch.ones(1, dtype=torch.float16)}
    updates, _ = run(made(update), 1, leaves, leaves)  # float16 can't hold 2049
    assert updates["b"] == 1


@pytest.mark.parametrize("order", ["abc", "acb", "bca", "cba"])
def test_sums_are_added_in_name_order_whatever_the_order_of_the_dict(order):
    def update(update, state, param, ctx):
        total = yield {"sum": update.sum()}
        yield 0 * update + total["sum"], state

    values = {"a": 1e17, "b": 1.0, "c": -1e17}  # 0 in name order, 1 if b comes last
    leaves = {name: torch.tensor([values[name]], dtype=torch.float64) for name in order}
    assert run(made(update), 1, leaves, leaves)[0]["b"] == 0


def test_leaves_that_wait_at_different_stages_all_get_through():
    def update(update, state, param, ctx):
        if update.ndim == 2:
            yield {"n": torch.ones(())}
        total = yield {"n": torch.ones(())}
        yield update * 0 + total["n"], state

    summing = made(update)
    tx = gradtx.partition({"x": chain(summing, summing), "y": summing}, {"x": "a", "y": "*"})
    updates, _ = run(tx, 1)
    assert updates["a"].tolist() == [1.0] * 3
    assert run(tx, 2)[1]["step"] == 2


def _ends_with_return(update, state, param, ctx):
    yield {"n": update.sum()}
    return update, state


def _returns_at_once(update, state, param, ctx):
    if param is None:
        yield {"n": update.sum()}
    return update, state


@pytest.mark.parametrize("update", [_ends_with_return, _returns_at_once])
def test_a_generator_that_ends_with_return_is_told_to_yield(update):
    with pytest.raises(
        TypeError, match="rule: a rule that yields sums must end with `yield update, state`, not with return"
    ):
        run(made(update), 1)


# Scalars.


def test_shared_scalars_are_stored_once_in_float64():
    def update(update, state, param, ctx):
        total = yield {"sum": update.sum()}
        yield update * state["d"], {"d": state["d"] + total["sum"]}

    @per_tensor(shared={"d": lambda arguments: arguments["d0"]}, agree=("d0",))
    def growing(d0: Scalar = 0.1):
        return update

    tx = growing(d0=0.5)
    assert_same(tx.init(ones())["growing"], {"d": torch.tensor(0.5, dtype=torch.float64)})
    updates, state = run(tx, 2)
    assert_same(state["growing"], {"d": torch.tensor(16.5, dtype=torch.float64)})
    assert torch.equal(updates["a"], torch.full((3,), 8.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32])
def test_a_0d_float64_slot_of_a_leaf_stays_float64(dtype, state_dtype):
    @per_tensor
    def product():
        def init(param):
            return {"mu_product": torch.ones((), dtype=torch.float64), "sum": torch.zeros_like(param)}

        def update(update, state, param, ctx):
            assert state["mu_product"].dtype == torch.float64
            return update * state["mu_product"], {"mu_product": state["mu_product"] * 0.9, "sum": state["sum"]}

        return init, update

    params = {"w": torch.ones(3, dtype=dtype)}
    updates, state = run(product(state_dtype=state_dtype), 2, params, params)
    assert_same(state["product"]["mu_product"], {"w": torch.tensor(0.9 * 0.9, dtype=torch.float64)})
    assert state["product"]["sum"]["w"].dtype == (state_dtype or dtype)
    assert updates["w"].dtype == torch.promote_types(dtype, torch.float32)  # rounded when it is added


# Dtypes.


def seeing(dtypes):
    """A rule that notes the dtypes of all it gets."""

    def init(param):
        dtypes.add(param.dtype)
        return {"sum": torch.zeros_like(param)}

    def update(update, state, param, ctx):
        dtypes.update(x.dtype for x in (update, state["sum"], param, ctx.grad))
        return update, {"sum": state["sum"] + update}

    return made(update, init, lambda state, param: dtypes.add(param.dtype) or state["sum"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rules_never_see_half_precision(dtype):
    seen, params = set(), noise(1, VECTORS, dtype)
    tx = chain(seeing(seen), gradtx.accumulate(seeing(seen), every=1), gradtx.skip_nonfinite(seeing(seen)))
    _, state = run(tx, 2, params, params)
    tx.eval_params(state, params)
    assert seen == {torch.promote_types(dtype, torch.float32)}
    stored = torch.float32 if dtype == torch.float16 else dtype
    assert {t.dtype for p, t in tensors(state).items() if "'sum'" in p} == {stored}


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_state_dtype_is_what_slots_are_kept_in_and_what_rules_compute_in(dtype, state_dtype):
    seen, params = set(), noise(1, VECTORS, dtype)

    @per_tensor
    def watched():
        return (
            count_init,
            lambda update, state, param, ctx: (
                seen.update({update.dtype, param.dtype, state["sum"].dtype, ctx.grad.dtype}) or update,
                {"sum": state["sum"] + update},
            ),
        )

    updates, state = run(watched(state_dtype=state_dtype), 2, params, params)
    assert {t.dtype for t in state["watched"]["sum"].values()} == {state_dtype}
    assert seen == {torch.promote_types(torch.promote_types(dtype, state_dtype), torch.float32)}
    assert {u.dtype for u in updates.values()} == {torch.promote_types(dtype, torch.float32)}


def test_an_alias_passes_state_dtype_on_to_its_links():
    params = noise(1, VECTORS, torch.bfloat16)
    tx = gradtx.adam(amsgrad=True, state_dtype=torch.float32)
    assert {t.dtype for t in tensors(tx.init(params)["scale_by_adam"]).values()} == {torch.float32}
    inner = gradtx.accumulate(gradtx.chain(gradtx.trace(0.9, state_dtype=torch.float64), gradtx.adam()), every=2)
    state = inner.init(params)["accumulate"]
    assert {t.dtype for t in tensors(state["trace"]).values()} == {torch.float64}
    assert {t.dtype for t in tensors(state["scale_by_adam"]).values()} == {torch.bfloat16}


def test_an_update_is_not_rounded_before_it_is_added():
    third = made(lambda update, state, param, ctx: (update / 3, state))
    triple = made(lambda update, state, param, ctx: (update * 3, state))
    grads = {"w": torch.arange(1, 200).bfloat16()}
    updates, _ = run(chain(third, triple), 1, grads, grads)  # rounding in between would change many of these
    assert_same(updates, {"w": grads["w"].float() / 3 * 3})
    weights = {"w": torch.full((199,), 1000.0).bfloat16()}
    added = gradtx.apply_updates(weights, updates)
    assert_same(added, {"w": (weights["w"].float() + updates["w"]).bfloat16()})


def test_gradients_of_another_dtype_give_wide_updates_and_slots_of_the_parameters():
    params, grads = noise(1, VECTORS, torch.float32), noise(2, VECTORS, torch.bfloat16)
    updates, state = run(gradtx.adamw(), 2, params, grads)
    assert {u.dtype for u in updates.values()} == {torch.float32}
    assert {t.dtype for t in state["scale_by_adam"]["exp_avg"].values()} == {torch.float32}
    assert {p.dtype for p in gradtx.apply_updates(params, updates).values()} == {torch.float32}


def test_a_rule_may_ask_for_a_dtype_of_its_own():
    init = lambda param: {"bits": torch.zeros_like(param, dtype=torch.uint8), "n": torch.zeros((), dtype=torch.int64)}  # noqa: E731
    update = lambda update, state, param, ctx: (update, {"bits": state["bits"] + 1, "n": state["n"] + 1})  # noqa: E731
    _, state = run(made(update, init), 2, *(noise(1, VECTORS, torch.bfloat16),) * 2)
    assert state["rule"]["bits"]["a"].tolist() == [2] * 3
    assert state["rule"]["bits"]["a"].dtype == torch.uint8
    assert_same(state["rule"]["n"]["a"], torch.tensor(2))


def times(factor, update, state, param, ctx):
    return factor * update, state


class OfNoModule:
    """A rule that no module defines, such as a built-in function."""

    __module__ = None

    def __call__(self, update, state, param, ctx):
        return 2.0 * update, state


@pytest.mark.parametrize("rule", [functools.partial(times, 2.0), OfNoModule()], ids=["partial", "object"])
def test_a_rule_may_be_any_callable(rule):
    updates, _ = run(made(rule), 1)
    assert all(torch.equal(u, torch.full_like(u, 2.0)) for u in updates.values())


def test_a_chain_has_the_traits_that_its_operations_declare():
    entries = Traits(agree={"eps": 1e-8})
    draws = Traits(elementwise=False, random=True, refusal="draws", agree={"seed": 0}, wire=torch.bfloat16)
    waits = Traits(capturable=False, refusal="waits", hessian_period=10)
    chain = Traits.combined([entries, draws, waits])
    assert (chain.elementwise, chain.capturable, chain.takes_complex) == (False, False, True)
    assert (chain.random, chain.takes_none, chain.compiles) == (True, False, False)
    assert chain.refusal == "draws"
    assert chain.agree == {"eps": 1e-8, "seed": 0}
    # What belongs to an operation alone.
    assert (chain.wire, chain.hessian_period) == (None, 0)
    assert Traits.combined([]) == Traits()
