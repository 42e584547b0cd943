"""Pure updates with sparse gradients, as of `nn.Embedding(sparse=True)`: the listed rows are a leaf."""

import itertools
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradtx
from gradtx.pure import tree_plan
from tests.conformance import all_cases, first_state, functions
from tests.tiers import by_day

ROWS, WIDTH = 12, 3
ROUNDING = 1e-9  # of a few steps in float64, in another order
NARROW = 1e-6  # the same in float32


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sparse(rows, values=None, shape=(ROWS, WIDTH), seed=0):
    rows = torch.tensor(rows, dtype=torch.int64)
    values = noise(len(rows), *shape[1:], seed=seed) if values is None else values
    return torch.sparse_coo_tensor(rows[None], values, shape, check_invariants=True)


def rows_of(gradient):
    """Row -> gradient, of rows that a sparse gradient lists, in any order and any number of times."""
    of_row = {}
    for row, value in zip(gradient._indices()[0].tolist(), gradient._values(), strict=True):
        of_row[row] = of_row.get(row, 0) + value
    return of_row


def trained(tx, params, gradients):
    """The parameters and the state after a pure update with each tree of gradients."""
    state = tx.init(params)
    for of_step in gradients:
        updates, state = tx.update(of_step, state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


def stepped(tx, params, gradients):
    """The same by the chain's optimizer."""
    weights = {name: nn.Parameter(value.clone()) for name, value in params.items()}
    optimizer = gradtx.as_optimizer(tx, weights.items())
    for of_step in gradients:
        for name, param in weights.items():
            param.grad = of_step[name]
        optimizer.step()
    return {name: param.detach() for name, param in weights.items()}


def assert_close(actual, expected, tolerance=ROUNDING):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


PARAMS = {"table": noise(ROWS, WIDTH, seed=1), "bias": noise(5, seed=2)}
GRADIENTS = [
    {"table": sparse(rows, seed=i), "bias": noise(5, seed=10 + i)}
    for i, rows in enumerate([[3, 1, 3], [1, 7], [], [0, 11, 5, 0], [3]])
]
CHAINS = {
    "sgd": gradtx.sgd(lr=0.1),
    "momentum": gradtx.sgd(lr=0.1, momentum=0.9),
    "sparse_adam": gradtx.sparse_adam(lr=0.1),
    "adamw": gradtx.adamw(lr=0.1, weight_decay=0.1),
    "adagrad": gradtx.adagrad(lr=0.1),
    "schedule": gradtx.sparse_adam(lr=gradtx.cosine_schedule(0.1, T_max=10)),
    "clip": gradtx.chain(gradtx.clip_by_value(0.5), gradtx.sparse_adam(lr=0.1)),
    "accumulate": gradtx.accumulate(gradtx.sparse_adam(lr=0.1), every=2),
    "skip": gradtx.skip_nonfinite(gradtx.sgd(lr=0.1, momentum=0.9)),
    "masked": gradtx.masked(gradtx.sparse_adam(lr=0.1), "table"),
    "partition": gradtx.partition(
        {"rows": gradtx.sparse_adam(lr=0.1), "rest": gradtx.adamw(lr=0.1)}, {"rows": "table", "rest": "*"}
    ),
}
of_chains = pytest.mark.parametrize("tx", CHAINS.values(), ids=CHAINS)


# Results.


def test_sparse_adam_is_adam_of_the_listed_rows():
    params, state = trained(gradtx.sparse_adam(lr=0.1), PARAMS, GRADIENTS)
    table, mean, square = PARAMS["table"].clone(), torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, WIDTH)
    mean, square = mean.double(), square.double()
    for t, of_step in enumerate(GRADIENTS, start=1):
        for row, g in rows_of(of_step["table"]).items():
            mean[row] = 0.9 * mean[row] + 0.1 * g
            square[row] = 0.999 * square[row] + 0.001 * g * g
            rate = 0.1 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
            table[row] -= rate * mean[row] / (square[row].sqrt() + 1e-8)
    assert_close(params["table"], table)
    assert_close(state["scale_by_adam_hat"]["exp_avg"]["table"], mean)


def test_a_momentum_moves_rows_that_the_gradient_does_not_list():
    params, _ = trained(gradtx.sgd(lr=0.1, momentum=0.9), PARAMS, GRADIENTS)
    table, momentum = PARAMS["table"].clone(), {}
    for of_step in GRADIENTS:
        of_row = rows_of(of_step["table"])
        for row in of_row.keys() | momentum.keys():
            momentum[row] = 0.9 * momentum.get(row, 0) + of_row.get(row, 0)
            table[row] -= 0.1 * momentum[row]
    assert_close(params["table"], table)
    torch_params = nn.Parameter(PARAMS["table"].clone())
    optimizer = torch.optim.SGD([torch_params], lr=0.1, momentum=0.9)
    for of_step in GRADIENTS:
        torch_params.grad = of_step["table"]
        optimizer.step()
    assert_close(params["table"], torch_params.detach())


def test_adagrad_sums_the_squares_of_listed_rows():
    params, _ = trained(gradtx.adagrad(lr=0.1), PARAMS, GRADIENTS)
    table, total = PARAMS["table"].clone(), torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    for of_step in GRADIENTS:
        for row, g in rows_of(of_step["table"]).items():
            total[row] += g * g
            table[row] -= 0.1 * g / (total[row].sqrt() + 1e-10)
    assert_close(params["table"], table)


@of_chains
def test_a_chain_computes_what_its_optimizer_does(tx):
    params, _ = trained(tx, PARAMS, GRADIENTS)
    assert_close(params, stepped(tx, PARAMS, GRADIENTS))


@of_chains
def test_rows_that_are_not_listed_keep_their_bits(tx):
    params, state = trained(tx, PARAMS, GRADIENTS)
    untouched = [2, 4, 6, 8, 9, 10]
    assert torch.equal(params["table"][untouched], PARAMS["table"][untouched])
    start = tx.init(PARAMS)
    for slot, first in slots_of(start).items():
        if first.ndim == 2:
            assert torch.equal(slots_of(state)[slot][untouched], first[untouched])


def slots_of(state, path=()):
    """The tensors of a state by path."""
    if isinstance(state, torch.Tensor):
        return {path: state}
    return {at: x for key, value in state.items() for at, x in slots_of(value, (*path, key)).items()}


@of_chains
def test_the_result_is_that_of_eager_rules(tx):
    params, state = trained(tx, PARAMS, GRADIENTS)
    with gradtx.eagerly():
        eager, eager_state = trained(tx, PARAMS, GRADIENTS)
    assert_close(params, eager)
    assert_close(slots_of(state), slots_of(eager_state))


def test_where_a_sparse_gradient_lists_all_rows_it_is_a_dense_one():
    dense = noise(ROWS, WIDTH, seed=3)
    rows = torch.arange(ROWS).flip(0)
    listed = sparse(rows.tolist(), dense[rows])
    for tx in CHAINS.values():
        of_rows, state = trained(tx, PARAMS, [{"table": listed, "bias": None}] * 2)
        expected, expected_state = trained(tx, PARAMS, [{"table": dense, "bias": None}] * 2)
        assert_close(of_rows, expected)
        assert_close(slots_of(state), slots_of(expected_state))


CASES = [
    case
    for case in all_cases()
    if {*case.example.needs} <= {"params"} and not functions(case.example)
    if "partner" not in repr(case.arguments)  # these need two leaves
]


@pytest.mark.parametrize("case", CASES, ids=str)
@by_day(
    "sgd*",
    "adamw*",
    "adagrad*",
    "lion",
    "muon",
    "scale_by_adam*",
    "trace*",
    "accumulate*",
    "skip*",
    "clip_by_global_norm*",
)
def test_every_chain_steps_rows_as_its_optimizer_does_or_says_why_not(case):
    tx, table = case.make(), {"table": PARAMS["table"]}
    gradients = [{"table": of_step["table"]} for of_step in GRADIENTS]
    if first_state(tx, table) is None:
        return
    try:
        params, _ = trained(tx, table, gradients)
    except RuntimeError as error:
        assert "cannot update its rows alone" in str(error) or "is not one of rows" in str(error)  # noqa: PT017
    else:
        assert_close(params, stepped(tx, table, gradients))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_rows_step_as_in_an_optimizer(data):
    rows = data.draw(st.integers(0, 40), label="rows of the table")
    shape = (rows, *data.draw(st.sampled_from([(), (1,), (5,), (2, 3)]), label="shape of a row"))
    tx = CHAINS[data.draw(st.sampled_from(["sparse_adam", "momentum", "accumulate", "adagrad", "clip"]))]
    indices = st.lists(st.integers(0, rows - 1), max_size=2 * rows) if rows else st.just([])
    gradients = []
    for seed in range(data.draw(st.integers(1, 4), label="steps")):
        gradient = sparse(data.draw(indices), shape=shape, seed=seed)
        gradients.append({"w": gradient.coalesce() if data.draw(st.booleans()) else gradient})
    params = {"w": noise(*shape, seed=9)}
    assert_close(trained(tx, params, gradients)[0], stepped(tx, params, gradients))


# What an update is.


def test_the_update_of_a_sparse_leaf_is_sparse_in_the_same_rows_and_others_are_dense():
    tx = gradtx.sparse_adam(lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        updates, _ = tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS)
    assert updates["table"].is_sparse
    assert updates["table"].is_coalesced()
    assert updates["table"].indices().tolist() == [[1, 3]]
    assert updates["table"].shape == (ROWS, WIDTH)
    assert updates["bias"].layout is torch.strided


@of_chains
def test_an_update_changes_no_argument(tx):
    state = tx.init(PARAMS)
    _, state = tx.update(GRADIENTS[0], state, PARAMS)
    gradient = GRADIENTS[3]["table"].coalesce()
    arguments = {**slots_of(state), **slots_of(PARAMS), "i": gradient.indices(), "v": gradient.values()}
    before = {name: tensor.clone() for name, tensor in arguments.items()}
    updates, after = tx.update({"table": gradient, "bias": None}, state, PARAMS)
    results = [*slots_of(after).values(), updates["table"].indices(), updates["table"].values()]
    for name, tensor in arguments.items():
        assert torch.equal(tensor, before[name])
        for result in results:
            if result.numel():
                assert result.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_without_params_a_chain_that_reads_none_takes_rows():
    tx = gradtx.sparse_adam(lr=0.1)
    with_params, _ = tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS)
    without, _ = tx.update(GRADIENTS[0], tx.init(PARAMS))
    assert torch.equal(without["table"].to_dense(), with_params["table"].to_dense())


def test_a_leaf_may_be_sparse_dense_or_absent_in_turn():
    tx = gradtx.sparse_adam(lr=0.1)
    dense = {"table": noise(ROWS, WIDTH, seed=4), "bias": None}
    absent = {"table": None, "bias": noise(5, seed=5)}
    gradients = [GRADIENTS[0], dense, absent, GRADIENTS[1], dense, GRADIENTS[3]]
    params, state = trained(tx, PARAMS, gradients)
    assert_close(params, stepped(tx, PARAMS, gradients))
    assert state["leaf_steps"]["table"] == 5


@pytest.mark.parametrize("counts", ["calls", "leaves"])
def test_each_step_of_a_table_counts_once_whatever_it_lists(counts):
    tx = gradtx.sparse_adam(lr=0.1)
    state = tx.init(PARAMS, counts=counts)
    for of_step in GRADIENTS:
        _, state = tx.update(of_step, state, PARAMS)
    assert state["step"] == len(GRADIENTS)


def test_a_tree_that_is_one_tensor_and_nested_trees_take_rows():
    tx, table = gradtx.sparse_adam(lr=0.1), PARAMS["table"]
    gradient = GRADIENTS[0]["table"]
    expected = trained(tx, {"w": table}, [{"w": gradient}])[0]["w"]
    assert torch.equal(trained(tx, table, [gradient])[0], expected)
    nested, _ = trained(tx, {"a": [table, None]}, [{"a": [gradient, None]}])
    assert torch.equal(nested["a"][0], expected)


def test_frozen_tables_get_an_update_of_zeros():
    tx = gradtx.chain(gradtx.freeze("table"), gradtx.sparse_adam(lr=0.1))
    updates, state = tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS)
    assert not updates["table"].to_dense().any()
    assert "table" not in state["scale_by_adam_hat"]["exp_avg"]


def test_complex_tables_take_rows():
    tx = gradtx.adam(lr=0.1)
    params = {"w": torch.complex(noise(ROWS, 2, seed=1), noise(ROWS, 2, seed=2))}
    values = torch.complex(noise(3, 2, seed=3), noise(3, 2, seed=4))
    gradients = [{"w": sparse([1, 5, 1], values, shape=(ROWS, 2))}] * 3
    assert_close(trained(tx, params, gradients)[0], stepped(tx, params, gradients))


def test_weights_of_16_bits_are_rounded_once():
    tx = gradtx.sgd(lr=0.1)
    params = {"w": noise(ROWS, WIDTH).bfloat16()}
    gradient = sparse([1, 4], noise(2, WIDTH).bfloat16())
    updates, _ = tx.update({"w": gradient}, tx.init(params), params)
    after = gradtx.apply_updates(params, updates)["w"]
    assert after.dtype is torch.bfloat16
    expected = params["w"].float() - 0.1 * gradient.to_dense().float()
    assert torch.equal(after, expected.bfloat16())


@pytest.mark.parametrize("state_dtype", ["int8", "int4", "float8", "bfloat16+8", torch.bfloat16], ids=str)
@pytest.mark.parametrize("momentum", [False, True], ids=["adam", "momentum"])
def test_slots_may_be_stored_in_fewer_bits(state_dtype, momentum):
    inner = gradtx.sgd(lr=0.1, momentum=0.9) if momentum else gradtx.adam(lr=0.1)
    tx = gradtx.with_state_dtype(inner, state_dtype, min_size=0)
    params = {"w": noise(200, 64, dtype=torch.float32)}
    used = [1, 5, 60, 61, 62]
    gradients, of_used = [], []
    for i in range(3):
        values = noise(3, 64, seed=i, dtype=torch.float32)
        gradients.append({"w": sparse([1, 5, 60 + i], values, shape=(200, 64))})
        of_used.append({"w": sparse([0, 1, 2 + i], values, shape=(5, 64))})
    after, state = trained(tx, params, gradients)
    # A table of these rows alone.
    expected, _ = trained(tx, {"w": params["w"][used]}, of_used)
    assert_close(after["w"][used], expected["w"], NARROW)
    assert torch.equal(after["w"][100:], params["w"][100:])
    first = slots_of(tx.init(params))
    assert {at: (x.dtype, x.shape) for at, x in slots_of(state).items()} == {
        at: (x.dtype, x.shape) for at, x in first.items()
    }


def test_rules_that_read_another_tensor_of_the_leaf_are_refused():
    tx = gradtx.chain(gradtx.scale_by_sophia(), gradtx.scale_by_learning_rate(0.1))
    diagonal = {name: torch.ones_like(leaf) for name, leaf in PARAMS.items()}
    state = tx.init(PARAMS)
    with pytest.raises(
        RuntimeError, match=r"leaf 'table' has a sparse gradient, but scale_by_sophia cannot .* besides"
    ):
        tx.update(GRADIENTS[0], state, PARAMS, hessian_diag=diagonal)


def test_extras_by_leaf_are_those_of_the_rows():
    @gradtx.per_tensor(elementwise=True)  # which every chain accepts
    def divided():
        def update(update, state, param, ctx):
            return -update / ctx.hessian_diag, state

        return None, update

    diagonal = {"table": noise(ROWS, WIDTH, seed=7).abs() + 1, "bias": noise(5, seed=8).abs() + 1}
    tx = divided()
    updates, _ = tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS, hessian_diag=diagonal)
    assert_close(updates["table"].to_dense(), -GRADIENTS[0]["table"].to_dense() / diagonal["table"])
    assert_close(updates["bias"], -GRADIENTS[0]["bias"] / diagonal["bias"])
    wrong = {**diagonal, "table": torch.ones(3, WIDTH)}
    with pytest.raises(ValueError, match=r"hessian_diag: leaf 'table' has shape \(3, 3\), needs \(12, 3\)"):
        tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS, hessian_diag=wrong)


# Other entry points.


def embedding_loss(params, words):
    vectors = nn.functional.embedding(words, params["table"], sparse=True)
    return (vectors.sum(0) - 1).square().sum() + params["bias"].square().sum()


def test_a_training_step_trains_the_rows_that_its_loss_reads():
    tx = gradtx.sparse_adam(lr=0.1)
    step = gradtx.train_step(embedding_loss, tx)
    params, state = PARAMS, tx.init(PARAMS)
    for words in ([1, 1, 4], [2]):
        params, state, _ = step(params, state, torch.tensor(words))
    changed = (params["table"] != PARAMS["table"]).any(1).nonzero()[:, 0]
    assert changed.tolist() == [1, 2, 4]
    assert state["step"] == 2


@pytest.mark.parametrize("recorded", [True, False], ids=["autograd", "no_grad"])
def test_parameters_that_require_gradients_take_rows(recorded):
    params = {name: nn.Parameter(value.clone()) for name, value in PARAMS.items()}
    tx = gradtx.adamw(lr=0.1)
    with torch.set_grad_enabled(recorded):
        updates, _ = tx.update(GRADIENTS[0], tx.init(params), params)
        after = gradtx.apply_updates(params, updates)["table"]
    assert_close(after.detach(), trained(tx, PARAMS, GRADIENTS[:1])[0]["table"])


@pytest.fixture
def dynamo():
    """Dynamo skips functions for the rest of a process once it has met a sparse tensor in them."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("dynamo")
def test_a_compiled_step_takes_rows_outside_of_the_graph():
    tx = gradtx.sparse_adam(lr=0.1)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return gradtx.apply_updates(params, updates), state

    expected, _ = step(PARAMS, tx.init(PARAMS), GRADIENTS[0])
    compiled, _ = torch.compile(step, backend="eager")(PARAMS, tx.init(PARAMS), GRADIENTS[0])
    assert_close(compiled, expected)


def test_transforms_refuse_sparse_gradients():
    tx = gradtx.sparse_adam(lr=0.1)
    state = tx.init(PARAMS)

    def change(rate):
        updates, _ = tx.replace(lr=rate).update(GRADIENTS[0], state, PARAMS)
        return updates["bias"].sum()

    message = r"leaf 'table' has layout torch\.sparse_coo, needs a dense tensor; call to_dense"
    for transform, rate in ((torch.vmap, torch.ones(2)), (torch.func.grad, torch.tensor(1.0))):
        with pytest.raises(TypeError, match=message):
            transform(change)(rate)


def test_watched_updates_see_the_rows():
    tx = gradtx.sgd(lr=0.1)
    _, _, seen = gradtx.watched(tx).update(GRADIENTS[0], tx.init(PARAMS), PARAMS)
    assert_close(seen["table"]["step"]["norm_before"], GRADIENTS[0]["table"].to_dense().norm())


def test_the_first_value_that_is_not_finite_is_found_in_rows():
    gradient = sparse([1], torch.full((1, WIDTH), torch.nan, dtype=torch.float64))
    tx = gradtx.adagrad(lr=0.1)
    with gradtx.eagerly(nan="raise"), pytest.raises(FloatingPointError, match="table"):
        tx.update({"table": gradient, "bias": None}, tx.init(PARAMS), PARAMS)


def test_a_gradient_that_is_not_finite_skips_the_update_of_a_table():
    tx = gradtx.skip_nonfinite(gradtx.adagrad(lr=0.1, eps=0.0))
    gradient = sparse([1, 2], torch.tensor([[1.0] * WIDTH, [torch.nan] * WIDTH]).double())
    params, _ = trained(tx, PARAMS, [{"table": gradient, "bias": None}])
    assert torch.equal(params["table"], PARAMS["table"])
    params, _ = trained(tx, PARAMS, [{"table": sparse([1]), "bias": None}])
    assert (params["table"] != PARAMS["table"]).any(1).nonzero().tolist() == [[1]]


# apply_updates.


def test_a_sparse_update_is_added_to_its_rows_and_others_keep_their_bits():
    table = PARAMS["table"].clone()
    table[0] = torch.nan
    update = sparse([4, 2, 4])
    after = gradtx.apply_updates({"w": table, "b": None}, {"w": update, "b": None})["w"]
    assert_close(after[1:], (table + update.to_dense())[1:])
    others = [0, 1, *range(5, ROWS)]
    assert torch.equal(after[others].view(torch.int64), table[others].view(torch.int64))


def test_a_sparse_update_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"apply_updates: the update of leaf 'w' has shape \(12, 3\), but .* \(5, 3\)"):
        gradtx.apply_updates({"w": torch.zeros(5, 3)}, {"w": sparse([1])})


# What is refused.


def test_a_chain_that_needs_all_rows_is_refused_before_anything_is_computed():
    calls = itertools.count()
    params = {"table": PARAMS["table"], "other": PARAMS["table"]}

    @gradtx.per_tensor(elementwise=True)
    def counting():
        def update(update, state, param, ctx):
            next(calls)
            return update, state

        return None, update

    tx = gradtx.chain(counting(), gradtx.muon(lr=0.1))
    with pytest.raises(RuntimeError, match=r"leaf 'table' has a sparse gradient, but .* cannot update its rows alone"):
        tx.update({"table": sparse([1]), "other": PARAMS["table"]}, tx.init(params), params)
    assert next(calls) == 0


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_only_rows_of_a_sparse_gradient_are_taken():
    tx = gradtx.sparse_adam(lr=0.1)
    table = PARAMS["table"]
    cases = {
        RuntimeError: [table.to_sparse_coo(), table.to_sparse_csr()],
        ValueError: [sparse([1], shape=(ROWS + 1, WIDTH))],
    }
    for error, gradients in cases.items():
        for gradient in gradients:
            with pytest.raises(error, match="sparse_adam: the gradient of leaf 'table' "):
                tx.update({"table": gradient, "bias": None}, tx.init(PARAMS), PARAMS)


def test_a_row_that_the_table_does_not_have_is_named():
    gradient = torch.sparse_coo_tensor(
        torch.tensor([[ROWS]]), torch.ones(1, WIDTH), (ROWS, WIDTH), check_invariants=False
    )
    tx = gradtx.sparse_adam(lr=0.1)
    with pytest.raises(ValueError, match="leaf 'table' lists row 12, but its parameter has rows 0 to 11"):
        tx.update({"table": gradient, "bias": None}, tx.init(PARAMS), PARAMS)


def test_a_link_that_calls_the_loss_at_other_weights_is_refused():
    tx = gradtx.sam(gradtx.sgd(lr=0.1))
    with pytest.raises(RuntimeError, match="leaf 'table' has a sparse gradient"):
        tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS, grad_fn=lambda params: GRADIENTS[0])
    tx = gradtx.partition({"rows": gradtx.sparse_adam(lr=0.1), "rest": tx}, {"rows": "table", "rest": "*"})
    with pytest.raises(RuntimeError, match="the chain calls grad_fn at other weights, where other rows"):
        tx.update(GRADIENTS[0], tx.init(PARAMS), PARAMS, grad_fn=lambda params: GRADIENTS[0])


@pytest.mark.parametrize(("state_dtype", "shape"), [("factored", (200, 64)), ("int8", (5000,)), ("int4", (5000,))])
def test_codes_that_several_rows_share_are_refused(state_dtype, shape):
    tx = gradtx.adam(lr=0.1, state_dtype=state_dtype)
    params = {"w": noise(*shape)}
    with pytest.raises(RuntimeError, match=r"the code '\w+' of its slot 'exp_avg' is not one of rows"):
        tx.update({"w": sparse([1], shape=shape)}, tx.init(params), params)


def test_the_state_of_another_table_is_named_with_both_shapes():
    tx = gradtx.sparse_adam(lr=0.1)
    state = tx.init({"table": torch.zeros(4, WIDTH), "bias": PARAMS["bias"]})
    with pytest.raises(ValueError, match=r"exp_avg.table' is \(\(4, 3\), .* needs \(\(12, 3\)"):
        tx.update(GRADIENTS[0], state, PARAMS)


# Speed.


def test_sparse_gradients_do_not_import_dynamo():
    """Which takes longer than many steps."""
    code = """
import sys, torch, gradtx
tx, params = gradtx.sparse_adam(lr=0.1), {"w": torch.ones(9, 2)}
gradient = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (9, 2), check_invariants=True)
updates, _ = tx.update({"w": gradient}, tx.init(params), params)
gradtx.apply_updates(params, updates)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_numbers_of_rows_share_plans(monkeypatch):
    made = []
    init = tree_plan.TreePlan.__init__

    def counted(plan, *arguments):
        made.append(plan)
        init(plan, *arguments)

    monkeypatch.setattr(tree_plan.TreePlan, "__init__", counted)
    tx = gradtx.sparse_adam(lr=0.1)
    params = {"w": torch.zeros(1000, 4)}
    state = tx.init(params)
    for count in range(1, 128, 3):
        values = torch.ones(count, 4)
        gradient = sparse(range(count), values, shape=(1000, 4))
        _, state = tx.update({"w": gradient}, state, params)
    assert len(made) <= 4


def test_a_table_without_rows_keeps_the_mark_of_a_selector():
    tx = gradtx.masked(gradtx.adam(lr=0.1), lambda name, param: param.ndim > 1)
    params = {"none": torch.zeros(0, 3), "w": torch.ones(2, 3)}
    state = tx.init(params)
    grads = {"none": torch.zeros(0, 3).to_sparse(1), "w": torch.ones(2, 3)}
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
    assert state["masked"]["members"]["none"].shape == (0,)
    assert updates["none"].shape == (0, 3)
