"""`lazy_rows` against plain loops over rows, in float64, for dense and for sparse gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradtx
from gradtx import lazy_rows
from tests.conformance import assert_same

ROWS, WIDTH, STEPS = 12, 3, 30
WAYS = {"lists": False, "compiled": True, "alone": None}


def gradients(steps=STEPS, shape=(ROWS, WIDTH), seed=0, share=0.3):
    """The rows with a gradient and their gradients, in each step."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = (torch.rand(shape[0], generator=draw) < share).nonzero()[:, 0]
        yield rows, torch.randn((len(rows), *shape[1:]), generator=draw, dtype=torch.float64)


def start(shape=(ROWS, WIDTH), seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sparse(rows, values, shape):
    return torch.sparse_coo_tensor(rows[None], values, shape, check_invariants=True)


def trained(tx, is_sparse, way, shape=(ROWS, WIDTH), **data):
    """The weights after the steps of an optimizer, and the optimizer."""
    table = torch.nn.Parameter(start(shape))
    optimizer = gradtx.as_optimizer(tx, [("table", table)], compile=bool(WAYS[way]))
    for rows, values in gradients(shape=shape, **data):
        gradient = sparse(rows, values, shape)
        table.grad = gradient if is_sparse else gradient.to_dense()
        if way == "alone":
            with gradtx.eagerly():
                optimizer.step()
        else:
            optimizer.step()
    return table.detach(), optimizer


def adamw_by_rows(lr, decay, catches_up, betas=(0.9, 0.999), eps=1e-8, shape=(ROWS, WIDTH), **data):
    """Each row alone, in Python."""
    p = start(shape)
    m, v, last = torch.zeros_like(p), torch.zeros_like(p), [0] * len(p)
    b1, b2 = betas
    for step, (rows, values) in enumerate(gradients(shape=shape, **data), 1):
        for row, g in zip(rows.tolist(), values, strict=True):
            missed = step - last[row] - 1 if catches_up else 0
            last[row] = step
            m[row] *= b1**missed
            v[row] *= b2**missed
            p[row] *= (1 - lr * decay) ** missed
            m[row] = b1 * m[row] + (1 - b1) * g
            v[row] = b2 * v[row] + (1 - b2) * g * g
            direction = m[row] / (1 - b1**step) / ((v[row] / (1 - b2**step)).sqrt() + eps)
            p[row] = p[row] * (1 - lr * decay) - lr * direction
    return p, m, v


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("catches_up", [False, True], ids=["", "catch_up"])
@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (ROWS,), (ROWS, 2, 2)], ids=str)
def test_adamw_by_rows_is_the_loop_over_rows(catches_up, is_sparse, way, shape):
    tx = lazy_rows(gradtx.adamw(lr=0.1, weight_decay=0.3), catch_up=catches_up)
    found, optimizer = trained(tx, is_sparse, way, shape)
    expected, m, v = adamw_by_rows(0.1, 0.3, catches_up, shape=shape)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    (state,) = optimizer.state.values()
    torch.testing.assert_close(state["exp_avg"], m, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(state["exp_avg_sq"], v, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "sparse"])
def test_momentum_of_sgd_stands_still_in_rows_without_a_gradient(is_sparse, way):
    """As in optimizers that keep rows on another machine; torch's SGD moves all rows that have had a gradient."""
    tx = lazy_rows(gradtx.sgd(lr=0.1, momentum=0.9))
    found, _ = trained(tx, is_sparse, way)
    p = start()
    buffer = torch.zeros_like(p)
    for rows, values in gradients():
        for row, g in zip(rows.tolist(), values, strict=True):
            buffer[row] = 0.9 * buffer[row] + g
            p[row] -= 0.1 * buffer[row]
    torch.testing.assert_close(found, p, rtol=1e-9, atol=1e-12)


@gradtx.per_tensor(elementwise=True, needs="params")
def move_to_the_sign(rate: gradtx.Scalar = 0.1):
    """A user's rule, whose slot follows the weights."""

    def update(update, state, param, ctx):
        anchor = 0.5 * state["anchor"] + 0.5 * param
        return -rate * update.sign() * anchor.abs() * ctx.time, {"anchor": anchor}

    return {"anchor": gradtx.slots.start()}, update


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "sparse"])
def test_a_rule_of_ones_own_steps_by_rows(is_sparse, way):
    found, _ = trained(lazy_rows(move_to_the_sign(0.01)), is_sparse, way)
    p = start()
    anchor = p.clone()
    for step, (rows, values) in enumerate(gradients(), 1):
        for row, g in zip(rows.tolist(), values, strict=True):
            anchor[row] = 0.5 * anchor[row] + 0.5 * p[row]
            p[row] += -0.01 * g.sign() * anchor[row].abs() * step
    torch.testing.assert_close(found, p, rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([(0.9, 0.999), (0.0, 0.5), (0.5, 0.0)]),
    st.booleans(),
)
def test_any_rows_any_decays(seed, share, betas, is_sparse):
    tx = lazy_rows(gradtx.adamw(lr=0.05, betas=betas, weight_decay=0.4), catch_up=True)
    found, _ = trained(tx, is_sparse, "lists", steps=8, seed=seed, share=share)
    expected, _, _ = adamw_by_rows(0.05, 0.4, True, betas, steps=8, seed=seed, share=share)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_catching_up_is_exact_for_decay_and_averages():
    """A row that has a gradient in the last step again has the averages and the decay of AdamW on all rows.

    Its rate is 0 until then, so that no momentum moves it.
    """
    lr = torch.tensor(0.1, dtype=torch.float64)
    found, expected = (
        gradtx.as_optimizer(tx, [torch.nn.Parameter(torch.ones(2, 1, dtype=torch.float64))])
        for tx in (
            lazy_rows(gradtx.adamw(lr=lr, weight_decay=0.5), catch_up=True),
            gradtx.adamw(lr=lr, weight_decay=0.5),
        )
    )
    for optimizer in (found, expected):
        (param,) = optimizer.param_groups[0]["params"]
        for step in range(10):
            param.grad = torch.tensor([[1.0], [0.5 if step in (0, 9) else 0.0]], dtype=torch.float64)
            optimizer.step()
    for key in ("exp_avg", "exp_avg_sq"):
        a, b = (next(iter(optimizer.state.values()))[key] for optimizer in (found, expected))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_a_schedule_decays_missed_steps_at_the_present_rate():
    rates = gradtx.Schedule(lambda count: 0.1 / (count + 1))
    tx = lazy_rows(gradtx.sgdw(lr=rates, weight_decay=0.5), catch_up=True)
    params = {"w": torch.ones(2, 1, dtype=torch.float64)}
    state = tx.init(params)
    for step in range(4):
        last = 1.0 if step == 3 else 0.0
        grads = {"w": torch.tensor([[1.0], [last]], dtype=torch.float64)}
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
    rate = 0.1 / 4
    decay = 1 - rate * 0.5
    expected = decay**3 * decay - rate
    torch.testing.assert_close(params["w"][1, 0].item(), expected, rtol=1e-12, atol=0)


def test_rows_of_zeros_count_as_rows_without_a_gradient_also_if_they_are_listed():
    tx = lazy_rows(gradtx.adamw(lr=0.1))
    params = {"w": torch.ones(3, 2)}
    _, state = tx.update({"w": torch.ones(3, 2)}, tx.init(params), params)
    listed = sparse(torch.tensor([0, 2]), torch.tensor([[0.0, 0.0], [0.0, 1.0]]), (3, 2))
    for gradient in (listed, listed.to_dense()):
        updates, after = tx.update({"w": gradient}, state, params)
        dense = updates["w"].to_dense()
        assert dense[:2].eq(0).all()
        assert dense[2].ne(0).all()
        average = after["lazy_rows"]["scale_by_adam"]["exp_avg"]["w"]
        assert_same(average[:2], state["lazy_rows"]["scale_by_adam"]["exp_avg"]["w"][:2])


def test_a_row_of_nan_is_no_row_of_zeros():
    tx = lazy_rows(gradtx.sgd(lr=1.0))
    params = {"w": torch.ones(2, 2)}
    gradient = torch.tensor([[float("nan"), 0.0], [0.0, 0.0]])
    updates, _ = tx.update({"w": gradient}, tx.init(params), params)
    assert updates["w"][0, 0].isnan()
    assert updates["w"][1].eq(0).all()


def test_without_any_gradient_nothing_moves():
    tx = lazy_rows(gradtx.adamw(lr=0.1), catch_up=True)
    params = {"w": torch.ones(3, 2)}
    state = tx.init(params)
    updates, after = tx.update({"w": torch.zeros(3, 2)}, state, params)
    assert updates["w"].eq(0).all()
    assert_same(after["lazy_rows"], state["lazy_rows"])


@pytest.mark.parametrize("shape", [(), (1,), (0, 2), (2, 0), (2, 1, 3)], ids=str)
def test_leaves_of_any_shape(shape):
    tx = lazy_rows(gradtx.adamw(lr=0.1), catch_up=True)
    params = {"w": torch.ones(shape)}
    updates, _ = tx.update({"w": torch.ones(shape)}, tx.init(params), params)
    torch.testing.assert_close(updates["w"], torch.full(shape, -0.1 - 0.001))


def test_complex_rows():
    tx = lazy_rows(gradtx.sgd(lr=1.0, momentum=0.5))
    params = {"w": torch.ones(2, 2, dtype=torch.complex64)}
    gradient = torch.tensor([[1j, 0], [0, 0]])
    updates, _ = tx.update({"w": gradient}, tx.init(params), params)
    assert torch.equal(updates["w"], -gradient)


def test_members_of_an_ensemble_have_rows_of_their_own():
    tx = lazy_rows(gradtx.adamw(lr=0.1), catch_up=True)
    params = {"w": torch.ones(2, 3, 2)}
    grads = {"w": torch.zeros(2, 3, 2)}
    grads["w"][0, 1], grads["w"][1, 2] = 1.0, -1.0
    states = torch.func.vmap(tx.init)(params)
    updates, _ = torch.func.vmap(tx.update)(grads, states, params)
    for member in range(2):
        own = {"w": params["w"][member]}
        alone, _ = tx.update({"w": grads["w"][member]}, tx.init(own), own)
        torch.testing.assert_close(updates["w"][member], alone["w"])


def test_links_inside_a_partition_and_a_mask_keep_their_leaves():
    branches = {"a": gradtx.adamw(lr=0.1, weight_decay=0.5, mask="a.x"), "b": gradtx.sgd(lr=0.1)}
    tx = lazy_rows(gradtx.partition(branches, {"a": "a.*", "b": "*"}), catch_up=True)
    params = {"a": {"x": torch.ones(2, 1), "y": torch.ones(2, 1)}, "b": torch.ones(2, 1)}
    state = tx.init(params)
    one = torch.tensor([[1.0], [0.0]])
    for grad in (one, one, torch.ones(2, 1)):
        grads = {"a": {"x": grad, "y": grad}, "b": grad}
        updates, state = tx.update(grads, state, params)
    # Two missed steps and this one decay, of the leaf in the mask alone.
    decayed = 0.95**3
    first = 0.1 * (0.1 / (1 - 0.9**3)) / (0.001 / (1 - 0.999**3)) ** 0.5
    torch.testing.assert_close(updates["a"]["x"][1, 0].item(), decayed - 1 - first, rtol=1e-5, atol=0)
    torch.testing.assert_close(updates["a"]["y"][1, 0].item(), -first, rtol=1e-5, atol=0)
    torch.testing.assert_close(updates["b"][1, 0].item(), -0.1)


@pytest.mark.parametrize("state_dtype", ["int8", "bfloat16:stochastic", torch.bfloat16])
@pytest.mark.parametrize("catches_up", [False, True], ids=["", "catch_up"])
def test_rows_of_codes_stand_still(state_dtype, catches_up):
    tx = lazy_rows(gradtx.adamw(lr=0.1, state_dtype=state_dtype), catch_up=catches_up)
    params = {"w": torch.randn(4, 80, generator=torch.Generator().manual_seed(0))}
    _, state = tx.update({"w": params["w"]}, tx.init(params), params)
    grads = {"w": torch.zeros(4, 80)}
    grads["w"][2] = 1.0
    _, after = tx.update(grads, state, params)
    for slot, value in state["lazy_rows"]["scale_by_adam"].items():
        found = after["lazy_rows"]["scale_by_adam"][slot]["w"]
        if value["w"].ndim:
            assert_same(found[[0, 1, 3]], value["w"][[0, 1, 3]])


def test_accumulate_around_it_steps_the_rows_of_all_gradients_of_a_cycle():
    tx = gradtx.accumulate(lazy_rows(gradtx.adamw(lr=0.1)), every=2)
    params = {"w": torch.ones(3, 1)}
    state = tx.init(params)
    for row in (0, 2):
        updates, state = tx.update({"w": sparse(torch.tensor([row]), torch.ones(1, 1), (3, 1))}, state, params)
    dense = updates["w"].to_dense()
    assert dense[[0, 2]].lt(0).all()
    assert dense[1].eq(0)


SUMS = {
    "the norm of all leaves": lambda: gradtx.chain(gradtx.trace(0.9), gradtx.clip_by_global_norm(0.1)),
    "the norm of a leaf": lambda: gradtx.chain(gradtx.add_decayed_weights(0.5), gradtx.novograd(lr=0.1)),
    "two branches": lambda: gradtx.graft(gradtx.lion(lr=0.1), gradtx.adamw(lr=0.1, weight_decay=0.5)),
    "a part of the leaves": lambda: gradtx.chain(
        gradtx.trace(0.9), gradtx.masked(gradtx.clip_by_norm(0.1), "table"), gradtx.scale(-0.1)
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chain", SUMS)
def test_rows_without_a_gradient_add_nothing_to_sums_over_rows(chain, way):
    """Neither their momentum nor their weight decay does, which take part in dense gradients alone."""
    tx = lazy_rows(SUMS[chain]())
    dense, _ = trained(tx, False, way)
    listed, _ = trained(tx, True, way)
    torch.testing.assert_close(dense, listed, rtol=1e-11, atol=1e-12)


@gradtx.per_tensor(elementwise=True)
def scale_by_largest():
    """A rule whose `init` is a function, which says nothing of its slot."""

    def update(update, state, param, ctx):
        largest = torch.maximum(0.9 * state["largest"], update.abs())
        return update / (largest + 1e-8), {"largest": largest}

    return lambda param: {"largest": torch.zeros_like(param)}, update


INVALID = {
    "a slot of a rule of one's own": (
        lambda: lazy_rows(scale_by_largest(), catch_up=True),
        ValueError,
        "'largest' of scale_by_largest; declare it with a decay",
    ),
    "a link that needs all rows": (
        lambda: lazy_rows(gradtx.muon()),
        ValueError,
        r"lazy_rows: orthogonalize cannot update some rows alone: .*; move it outside of lazy_rows",
    ),
    "accumulate inside": (
        lambda: lazy_rows(gradtx.accumulate(gradtx.sgd(), 2)),
        TypeError,
        r"lazy_rows: accumulate .* as in accumulate\(lazy_rows\(...\)\)",
    ),
    "coupled decay": (
        lambda: lazy_rows(gradtx.adam(weight_decay=0.1), catch_up=True),
        ValueError,
        "decoupled weight decay, but scale_by_adam follows this decay; use decoupled decay, as adamw",
    ),
    "slots that a function creates": (
        lambda: lazy_rows(gradtx.gravity(), catch_up=True),
        ValueError,
        "catch_up does not know what a step without a gradient makes of 'v' of scale_by_gravity",
    ),
    "an average behind a momentum": (
        lambda: lazy_rows(gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_adam()), catch_up=True),
        ValueError,
        "multiplies the slots of scale_by_adam by their decay, but those of trace, which comes before it, may move",
    ),
    "a clock inside": (
        lambda: lazy_rows(gradtx.skip_nonfinite(gradtx.adamw()), catch_up=True),
        ValueError,
        r"skip_nonfinite inside of it counts its own; put lazy_rows inside, as in skip_nonfinite\(lazy_rows\(...\)\)",
    ),
    "a slot without rows": (
        lambda: lazy_rows(gradtx.sm3(lr=0.1)),
        ValueError,
        r"slot 'accumulator_1' has shape \(1, 2\), without a row for each of the 3 of its leaf",
    ),
    "a slot of unknown decay": (
        lambda: lazy_rows(gradtx.adabelief(), catch_up=True),
        ValueError,
        "'exp_avg_var' of scale_by_belief; declare it with a decay",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_bad_input_is_one_named_error(case):
    make, error, message = INVALID[case]
    with pytest.raises(error, match=message):
        make().init({"w": torch.zeros(3, 2)})
    with pytest.raises(error, match=message):
        gradtx.as_optimizer(make(), [("w", torch.nn.Parameter(torch.zeros(3, 2)))]).state_dict()
