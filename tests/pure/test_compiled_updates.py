"""Pure updates under torch.compile: one node of the graph, equal to the update that runs eagerly."""

import enum
import gc
import itertools
import threading
import weakref

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend, EagerAndRecordGraphs
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

import gradtx
from gradtx.plans.kernel_function import KernelFunctionOfRows
from gradtx.pure import graph_node as graphs
from gradtx.pure import tree_plan
from tests.conformance import Case, assert_close, assert_own_memory, composed_cases, extras, field, tensors
from tests.test_slots import shared_constant
from tests.tiers import by_day

# torch.func.jvp and inductor load parts of torch that use it.
torchs_own_deprecation = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
SHAPES = {"weight": (3, 4), "bias": (5,), "columns": (2, 3)}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Programs run for any number of leaves."""
    monkeypatch.setattr(graphs, "FEW_LEAVES", 1)


def drawn(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}


def one_leaf():
    return {"bias": drawn(0)["bias"]}


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def compiled(function, backend="aot_eager"):
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True)


def calls_of(function, *args):
    """The operations of the graph that dynamo makes."""
    recorder = EagerAndRecordGraphs()
    compiled(function, recorder)(*args)
    (graph,) = recorder.graphs
    names = [getattr(node.target, "__name__", "") for node in graph.graph.nodes if node.op == "call_function"]
    return [name for name in names if name != "getitem"]


CHAINS = {
    "adamw": lambda lr=0.1: gradtx.adamw(lr),
    "sum": lambda lr=0.1: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr)),
    "momentum": lambda lr=0.1: gradtx.sgd(lr, momentum=0.9),
    "shared value": lambda lr=1.0: gradtx.prodigy(lr),
    "own count": lambda lr=0.1: gradtx.accumulate(gradtx.adam(lr), every=2),
    "rows": lambda lr=0.1: gradtx.adamp(lr),
    "schedule": lambda lr=0.1: gradtx.sgd(gradtx.cosine_schedule(lr, T_max=5), momentum=0.9),
    "branches": lambda lr=0.1: gradtx.partition({"a": gradtx.sgd(lr), "b": gradtx.lion(lr)}, {"a": "bias", "b": "*"}),
}


@by_day("*adamw", "*own count")
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("few_leaves", [1, 100])
def test_a_compiled_update_of_any_number_of_leaves_is_one_call_in_the_graph(few_leaves, chain, monkeypatch):
    monkeypatch.setattr(graphs, "FEW_LEAVES", few_leaves)
    tx, params = CHAINS[chain](), drawn(0)
    assert calls_of(tx.update, drawn(1), tx.init(params), params) == ["_run"]


@by_day("sum", "rows", "branches")
@pytest.mark.parametrize("chain", CHAINS)
def test_compiled_updates_equal_eager_ones_for_several_steps_of_one_graph(chain):
    tx, params = CHAINS[chain](), drawn(0)
    counter = CompileCounter()

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return gradtx.apply_updates(params, updates), state

    one_graph = compiled(step, counter)
    at = eager = params, tx.init(params)
    for i in range(4):
        at, eager = one_graph(drawn(i), at[1], at[0]), step(drawn(i), eager[1], eager[0])
        assert_close(at, eager, rtol=1e-11, atol=1e-13)  # fused sums round differently
    assert counter.frame_count == 1


def loss_fn(params, x):
    return sum((p * x - 1).square().sum() for p in params.values())


@by_day("sum")
@pytest.mark.parametrize("chain", ["sum", "own count", "branches"])
def test_a_compiled_training_step_equals_the_eager_one_and_owns_its_results(chain):
    tx, params, x = CHAINS[chain](), drawn(0), number(0.5)
    step, state = gradtx.train_step(loss_fn, tx), CHAINS[chain]().init(params)
    found = compiled(step)(params, state, x)
    assert_close(found, step(params, state, x), rtol=1e-11)
    assert_own_memory(found, params, state)


def test_parameters_may_be_nested_and_lack_gradients():
    params = {"a": [torch.ones(3), None], "b": (torch.ones(2, 2), torch.ones(4))}
    grads = {"a": [torch.ones(3), None], "b": (None, torch.ones(4))}
    tx = gradtx.sgd(0.1)
    state = tx.init(params)

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return gradtx.apply_updates(params, updates), state

    found, expected = compiled(step)(grads, state, params), step(grads, state, params)
    assert_close(tree_leaves(found), tree_leaves(expected), rtol=1e-6)
    assert found[0]["a"][1] is None


def test_a_number_that_changes_in_place_needs_no_second_graph():
    lr, counter, params = number(0.1), CompileCounter(), drawn(0)
    tx = gradtx.sgd(lr)
    step = compiled(tx.update, counter)
    state = tx.init(params)
    before, _ = step(params, state, params)
    lr.mul_(2)
    after, _ = step(params, state, params)
    assert_close(after, tree_map(lambda u: 2 * u, before), rtol=1e-12)
    assert counter.frame_count == 1


def test_chains_with_other_floats_are_compiled_once_each():
    counter, params = CompileCounterWithBackend("aot_eager"), {"w": torch.ones(3)}
    step = compiled(lambda tx, state: tx.update(params, state)[0], counter)
    for i in range(1, 4):
        tx = gradtx.sgd(0.1 * i)
        at = params, tx.init(params)
        assert_close(step(tx, at[1]), tx.update(*at)[0], rtol=0)
    assert counter.frame_count == 3


@pytest.mark.nightly
def test_a_chain_that_the_compiled_function_makes_of_floats_is_traced():
    def step(rate, grads, state):
        return gradtx.sgd(rate, momentum=0.9).update(grads, state)

    params, one_graph = one_leaf(), compiled(step)
    state = gradtx.sgd(0.1, momentum=0.9).init(params)
    for rate in (0.1, 0.2, 0.3):  # dynamo makes a symbol of a float that changes
        assert_close(one_graph(rate, params, state), step(rate, params, state), rtol=1e-12)


FIXED = {
    "alias": gradtx.adamw(number(0.2), weight_decay=number(0.1), mask="b*"),
    "chain": gradtx.chain(gradtx.clip_by_global_norm(number(0.7)), gradtx.trace(0.9), gradtx.scale(-0.1)),
    "schedule": gradtx.chain(gradtx.trace(gradtx.cosine_schedule(0.9, T_max=5)), gradtx.scale_by_learning_rate(0.1)),
    "combinator": gradtx.schedule_free(gradtx.trace(0.5), number(0.1), beta=number(0.9)),
    "branches": gradtx.partition({"a": gradtx.sgd(0.1), "b": gradtx.lion(number(0.1))}, {"a": "bias", "b": "*"}),
}
WITH_NEW_VALUES = {
    "alias": lambda x: FIXED["alias"].replace(weight_decay=x).replace(eps=x / 1000),
    "chain": lambda x: FIXED["chain"].replace(**{"trace.momentum": x, "scale.factor": -x}),
    "schedule": lambda x: FIXED["schedule"].replace(**{"scale_by_learning_rate.lr": x}),
    "combinator": lambda x: FIXED["combinator"].replace(**{"trace.momentum": x}),
    "branches": lambda x: FIXED["branches"].replace(**{"a.lr": x}),
}


@by_day("1-alias", "100-combinator")
@pytest.mark.parametrize("chain", WITH_NEW_VALUES)
@pytest.mark.parametrize("few_leaves", [1, 100])
def test_a_chain_that_gets_new_values_in_the_compiled_function_is_one_call(few_leaves, chain, monkeypatch):
    monkeypatch.setattr(graphs, "FEW_LEAVES", few_leaves)
    tx, params, counter = WITH_NEW_VALUES[chain], drawn(0), CompileCounterWithBackend("aot_eager")

    def step(x, grads, state):
        return tx(x).update(grads, state, params)

    state = FIXED[chain].init(params)
    assert calls_of(step, number(0.3), drawn(1), state).count("_run") == 1
    assert calls_of(lambda x: tx(x).init(params), number(0.3)).count("_run") == 1
    one_graph, counts = compiled(step, counter), set()
    for i in range(3):
        at = number(0.3 + 0.1 * i), drawn(i), state
        expected, state = step(*at)
        assert_close(one_graph(*at)[0], expected, rtol=1e-11, atol=1e-13)
        counts.add(counter.frame_count)
    assert len(counts) == 1


@pytest.mark.parametrize("value", [0.0, torch.tensor([0.5])], ids=["off", "vector"])
def test_a_new_value_in_the_compiled_function_may_be_of_any_form(value):
    fixed, params = gradtx.sgd(0.1, momentum=0.9), drawn(0)

    def step(grads):
        tx = fixed.replace(momentum=value)
        return tx.update(grads, tx.init(params))

    found, expected = compiled(step)(params), step(params)
    assert tree_structure(found) == tree_structure(expected)
    assert_close(found, expected, rtol=1e-12)


@gradtx.per_tensor(needs="value")
def scale_by_value():
    return lambda update, state, param, ctx: (update * ctx.value, state)


def test_an_extra_may_be_a_float_that_changes():
    tx, params, counter = scale_by_value(), one_leaf(), CompileCounter()
    step = compiled(lambda value: tx.update(params, tx.init(params), params, value=value)[0], counter)
    for value in (1.0, 2.0, 3.0):
        assert_close(step(value), tree_map(lambda p, value=value: value * p, params), rtol=1e-12)
    assert counter.frame_count == 2  # then dynamo makes a symbol of it


START = one_leaf()


def trained(lr, steps=2):
    tx, params = gradtx.adam(lr), START
    state = tx.init(params)
    for _ in range(steps):
        grads = torch.func.grad(loss_fn)(params, number(0.5))
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
    return loss_fn(params, number(0.5))


TRANSFORMS = {
    "gradient": torch.func.grad(trained),
    "second derivative": torch.func.grad(torch.func.grad(trained)),
    "vmap": lambda lr: torch.vmap(trained)(torch.stack([lr, 2 * lr])),
    "forward derivative": lambda lr: torch.func.jvp(trained, (lr,), (torch.ones_like(lr),)),
}


@torchs_own_deprecation
@pytest.mark.nightly
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_training_compile_and_equal_eager_ones(transform):
    function = TRANSFORMS[transform]
    assert_close(compiled(function)(number(0.05)), function(number(0.05)), rtol=1e-10)


def test_autograd_differentiates_through_a_compiled_update():
    tx, params = gradtx.adamw(0.1), drawn(0)
    state = tx.init(params)

    def moved(grads):
        return sum(u.square().sum() for u in tree_leaves(tx.update(grads, state, params)[0]))

    found, expected = ({name: g.requires_grad_() for name, g in drawn(1).items()} for _ in range(2))
    compiled(moved)(found).backward()
    moved(expected).backward()
    assert_close([g.grad for g in found.values()], [g.grad for g in expected.values()], rtol=1e-9)


OUTSIDE = number(2.0)


@gradtx.per_tensor
def scale_by_outside():
    return lambda update, state, param, ctx: (update * OUTSIDE, state)


def test_what_a_rule_takes_from_outside_is_still_read_at_each_call():
    tx, params = scale_by_outside(), one_leaf()
    step, state = compiled(tx.update), tx.init(params)
    for value in (2.0, 3.0):
        OUTSIDE.fill_(value)
        assert_close(step(params, state)[0], tree_map(lambda p, value=value: value * p, params), rtol=1e-12)


def test_a_learned_rate_in_a_schedule_keeps_its_gradient():
    rate, params = number(0.1).requires_grad_(), one_leaf()
    tx = gradtx.sgd(gradtx.Schedule(lambda step: rate / (1 + step)))
    state = tx.init(params)

    def moved(grads):
        return sum(u.sum() for u in tx.update(grads, state, params)[0].values())

    compiled(moved)(params).backward()
    assert_close(rate.grad, -params["bias"].sum(), rtol=1e-12)


def test_a_state_whose_structure_changes_costs_one_more_graph():
    tx, params, counter = gradtx.adam(0.1), drawn(0), CompileCounter()
    step, state = compiled(tx.update, counter), tx.init(params)
    expected = state
    partly = {**drawn(1), "bias": None}
    for grads in (drawn(1), partly, partly, partly):
        updates, state = step(grads, state, params)
        eager, expected = tx.update(grads, expected, params)
        assert_close(tree_leaves(updates), tree_leaves(eager), rtol=1e-11)
        assert_close(state, expected, rtol=1e-11)
    assert counter.frame_count == 3  # all gradients; one missing; with counts by leaf


@pytest.mark.parametrize("chain", ["sum", "rows"])
def test_leaves_of_any_widths_cost_one_more_graph(chain):
    tx, counter = CHAINS[chain](), CompileCounterWithBackend("aot_eager")
    step = compiled(tx.update, counter)
    for width in range(2, 14):  # torch's limit is 8 graphs
        params = {"w": torch.linspace(-1, 1, 3 * width, dtype=torch.float64).reshape(width, 3)}
        at = params, tx.init(params), params
        assert_close(step(*at), tx.update(*at), rtol=1e-11, atol=1e-13)  # fused sums round differently
    assert counter.frame_count == 2


@pytest.mark.parametrize("side", ["short", "long"])
def test_the_side_of_a_projection_follows_sizes_that_the_graph_does_not_know(side):
    tx = gradtx.low_rank(gradtx.trace(0.9), rank=2, side=side)
    update = compiled(tx.update, "eager")
    for shape in ((4, 3), (5, 3), (3, 6)):
        params = {"w": torch.linspace(-1, 1, shape[0] * shape[1], dtype=torch.float64).cos().reshape(shape)}
        at = params, tx.init(params)
        assert_close(update(*at), tx.update(*at), rtol=1e-11, atol=1e-13)


@gradtx.per_tensor(elementwise=True)
def double_long_leaves():
    return lambda update, state, param, ctx: (update * (2 if update.shape[0] > 2 else 1), state)


def test_an_elementwise_rule_may_ask_for_the_shape_of_some_leaves():
    tx, params = double_long_leaves(), drawn(0)
    found, _ = compiled(tx.update)(params, tx.init(params))
    assert_close(
        found, {"weight": 2 * params["weight"], "bias": 2 * params["bias"], "columns": params["columns"]}, rtol=0
    )


@gradtx.per_tensor
def scale_by_first_entry():
    return lambda update, state, param, ctx: (update * update[0].item(), state)


@torch._dynamo.config.patch(capture_scalar_outputs=True)
@pytest.mark.parametrize("few_leaves", [1, 2])
def test_a_rule_that_reads_a_value_runs_as_without_the_node(few_leaves, monkeypatch):
    monkeypatch.setattr(graphs, "FEW_LEAVES", few_leaves)
    tx, params = scale_by_first_entry(), one_leaf()
    step, state = compiled(tx.update, "aot_eager"), tx.init(params)
    for seed in (1, 2):
        grads = {"bias": drawn(seed)["bias"]}
        assert_close(step(grads, state)[0], {"bias": grads["bias"] * grads["bias"][0]}, rtol=1e-12)


@pytest.mark.parametrize("few_leaves", [3, 4])
def test_leaves_of_all_shapes_are_one_operator_unless_they_are_few(few_leaves, monkeypatch):
    monkeypatch.setattr(graphs, "FEW_LEAVES", few_leaves)
    tx, params, operations = gradtx.adamw(0.1), drawn(0), []

    def keep(graph, examples):
        operations.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    compiled(tx.update, aot_autograd(fw_compiler=keep))(params, tx.init(params), params)
    if few_leaves == len(SHAPES):
        assert set(operations) == {"gradtx.run.default", "<built-in function getitem>"}
    else:
        assert operations.count("aten.sqrt.default") >= len(SHAPES)
        assert not any("_foreach" in operation or operation.startswith("gradtx") for operation in operations)


@pytest.mark.skipif(torch.__version__ < "2.12", reason="dynamo crashes there when two threads trace at once")
def test_threads_may_make_the_first_call_at_once():
    tx, params, errors = CHAINS["sum"](), one_leaf(), []
    step, state = compiled(tx.update), tx.init(params)

    def call():
        try:
            step(params, state, params)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_what_a_graph_needs_is_freed_with_the_chain():
    gc.collect()
    before, tx, params = len(graphs._NODES), gradtx.adamw(0.1), one_leaf()
    step = compiled(tx.update)
    step(params, tx.init(params), params)
    assert len(graphs._NODES) > before
    torch._dynamo.reset()
    del step, tx
    gc.collect()
    assert len(graphs._NODES) <= before


def test_a_chain_is_freed_at_once_though_it_owns_its_nodes():
    tx = gradtx.sgd(0.1)
    alive = weakref.ref(tx)
    gc.disable()
    try:
        graphs.node_for(tx, (), "update", ("tuple", ()), (), ())
        del tx
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("few_leaves", [1, 2])
def test_no_output_shares_memory_with_an_input(few_leaves, monkeypatch):
    monkeypatch.setattr(graphs, "FEW_LEAVES", few_leaves)
    tx, params = shared_constant(), one_leaf()
    state = tx.init(params)
    assert_own_memory(compiled(tx.update)(params, state, params), params, state)


# What nodes leave to dynamo.


def sums_up(state):
    return gradtx.GradientTransformation(
        lambda params: state, lambda u, s, p: (u, {"m": torch.ones(5), "z": s["z"] + 1})
    )


@pytest.mark.parametrize("few_leaves", [1, 100])
@pytest.mark.parametrize(
    "chain",
    [
        lambda: gradtx.accumulate(gradtx.adam(0.1), every=2),  # makes an update of a leaf without a gradient
        lambda: sums_up({"m": None, "z": torch.zeros(5)}),
        lambda: sums_up({"z": torch.zeros(5), "m": torch.zeros(5)}),
    ],
    ids=["updates", "state", "order"],
)
def test_results_may_have_another_structure_than_the_arguments(chain, few_leaves, monkeypatch):
    monkeypatch.setattr(graphs, "FEW_LEAVES", few_leaves)
    tx, params = chain(), drawn(0)
    at = {**drawn(1), "bias": None}, tx.init(params), params
    found, expected = compiled(tx.update)(*at), tx.update(*at)
    assert tree_structure(found) == tree_structure(expected)
    assert_close(tree_leaves(found), tree_leaves(expected), rtol=1e-11)


RATE = {"lr": 0.1}
FUNCTIONS_OF_USERS = {
    "schedule": lambda: gradtx.sgd(gradtx.Schedule(lambda step: RATE["lr"])),
    "schedule in a schedule": lambda: gradtx.sgd(
        gradtx.join_schedules([gradtx.Schedule(lambda step: RATE["lr"]), gradtx.constant_schedule(0.1)], [5])
    ),
    "pair": lambda: gradtx.GradientTransformation(
        lambda params: {}, lambda u, s, p: ({name: RATE["lr"] * value for name, value in u.items()}, s)
    ),
}


@by_day("schedule-2", "pair-1")
@pytest.mark.parametrize("few_leaves", [1, 2])
@pytest.mark.parametrize("chain", FUNCTIONS_OF_USERS)
def test_what_a_function_of_a_user_reads_in_python_is_read_at_each_call(chain, few_leaves, monkeypatch):
    monkeypatch.setattr(graphs, "FEW_LEAVES", few_leaves)
    tx, params = FUNCTIONS_OF_USERS[chain](), one_leaf()
    step, state = compiled(tx.update), tx.init(params)
    for rate in (0.1, 0.5):
        monkeypatch.setitem(RATE, "lr", rate)
        assert_close(step(params, state)[0], tx.update(params, state)[0], rtol=1e-12)


def test_an_extra_by_leaf_may_be_a_single_tensor():
    tx, weights = gradtx.sophia(0.1), drawn(0)["bias"]
    at = weights, tx.init(weights), weights

    def step(diagonal):
        return tx.update(*at, hessian_diag=diagonal)[0]

    assert_close(compiled(step)(weights), step(weights), rtol=1e-12)


class Layer(enum.Enum):
    FIRST = "first"
    LAST = "last"


def test_keys_may_be_of_any_kind():
    tx, params = gradtx.adamw(0.1), {Layer.FIRST: torch.ones(2), Layer.LAST: torch.ones(3)}

    def step(state):
        updates, state = tx.update(params, state, params)
        return gradtx.apply_updates(params, updates), state

    assert_close(tree_leaves(compiled(step)(tx.init(params))), tree_leaves(step(tx.init(params))), rtol=1e-6)


def test_an_exported_step_needs_no_plan_of_this_process():
    tx, params = gradtx.sgd(0.1), drawn(0)

    class Step(torch.nn.Module):
        def forward(self, grads, state, params):
            updates, _ = tx.update(grads, state, params)
            return gradtx.apply_updates(params, updates)

    at = drawn(1), tx.init(params), params
    exported = torch.export.export(Step(), at, strict=True)
    assert "gradtx" not in exported.graph_module.code
    assert_close(exported.module()(*at), Step()(*at), rtol=1e-12)


def test_calls_of_operators_whose_results_differ_in_form_have_other_texts(monkeypatch):
    """Inductor keeps graphs on disk, where a process finds those of another by their texts."""
    calls = []
    for tx in (gradtx.sgd(0.1, momentum=0.9), gradtx.muon(0.1)):
        monkeypatch.setattr(graphs, "_KEYS", itertools.count())  # as in a new process
        params = {"w": torch.randn(8, 4)}

        def keep(graph, examples):
            calls.append(next(node.args[0] for node in graph.graph.nodes if "gradtx.run" in str(node.target)))
            return graph.forward

        compiled(tx.update, aot_autograd(fw_compiler=keep))(params, tx.init(params), params)
    assert len(set(calls)) == 2


def test_errors_keep_the_text_of_the_library():
    tx, params = gradtx.adamw(0.1), drawn(0)
    other = gradtx.sgd(0.1, momentum=0.9).init(params)
    with pytest.raises(Exception, match="state has 'trace', which this chain does not use"):
        compiled(tx.update)(drawn(1), other, params)
    with pytest.raises(Exception, match="needs params"):
        compiled(tx.update)(drawn(1), tx.init(params))
    with pytest.raises(Exception, match="did you mean 'value'"):
        compiled(lambda state: tx.update(params, state, params, vlaue=1.0))(tx.init(params))
    with pytest.raises(Exception, match="no hyperparameter 'rate'"):
        compiled(lambda: tx.replace(rate=0.1).init(params))()


def test_patterns_may_select_leaves_in_a_chain_that_the_compiled_function_makes():
    params = drawn(0)

    def step(grads):
        tx = gradtx.masked(gradtx.adamw(0.1, mask="w*"), ("weight", "bias"))
        return tx.update(grads, tx.init(params), params)

    assert_close(compiled(step)(drawn(1)), step(drawn(1)), rtol=1e-12)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 2, (torch.float64, torch.float32), (torch.complex64,) * 2])
def test_updates_of_any_dtypes_are_as_wide_as_eager_ones_and_are_rounded_when_they_are_added(dtypes):
    of_params, of_grads = dtypes
    params, grads = ({"bias": drawn(0)["bias"].to(dtype)} for dtype in (of_params, of_grads))
    tx = gradtx.adamw(0.1)

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return updates, state, gradtx.apply_updates(params, updates)

    at = grads, tx.init(params), params
    found, expected = compiled(step)(*at), step(*at)
    assert [x.dtype for x in tree_leaves(found)] == [x.dtype for x in tree_leaves(expected)]
    assert_close(found, expected, rtol=1e-2 if of_params is torch.bfloat16 else 1e-6)


def test_leaves_with_other_strides_get_results_with_the_same_strides():
    tx = gradtx.adamw(0.1)
    params = {"image": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "turned": torch.randn(3, 4).t()}
    state = tx.init(params)
    found, expected = compiled(tx.update)(params, state, params), tx.update(params, state, params)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)  # single precision
    assert [u.stride() for u in tree_leaves(found)] == [u.stride() for u in tree_leaves(expected)]


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.to(memory_format=torch.channels_last) if x.ndim == 4 else x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.ndim > 1 else x,
}
# Of weights and gradients.
PAIRS_OF_LAYOUTS = (
    ("channels last", "channels last"),
    ("channels last", "contiguous"),
    ("contiguous", "channels last"),
    ("transposed", "contiguous"),
)


@by_day("adopt", "adamw-int8")
@pytest.mark.parametrize("case", [*composed_cases(), Case(gradtx.adamw, {"state_dtype": "int8"}, "int8")], ids=str)
def test_results_have_the_strides_that_compilers_were_told(case, monkeypatch):
    """Inductor's code addresses the entries of results by these strides."""
    params = case.noise(3, {"image": (8, 16, 8, 4), "matrix": (6, 4), "vector": (5,)}, torch.float32)
    differences = []

    def computed(plan, given):
        results = running(plan, given)
        for result, form in zip(results, plan.like(), strict=True):
            if (result.stride(), result.dtype) != (form.stride(), form.dtype):
                differences.append((of_params, of_grads, form.stride(), result.stride()))
        return results

    running = graphs.GraphNode.computed
    monkeypatch.setattr(graphs.GraphNode, "computed", computed)
    for of_params, of_grads in PAIRS_OF_LAYOUTS:
        tx, at = case.make(), {name: LAYOUTS[of_params](value) for name, value in params.items()}
        grads = {name: LAYOUTS[of_grads](value) for name, value in field(at).items()}
        state, update = tx.init(at), compiled(tx.update)
        for _ in range(2):
            expected = tx.update(grads, state, at, **extras(tx, at))
            found = update(grads, state, at, **extras(tx, at))
            state = found[1]
        if case.is_determined():
            assert_close(tensors(found), tensors(expected), rtol=1e-3, atol=1e-4)
    assert differences == []


@torchs_own_deprecation
@pytest.mark.nightly
@pytest.mark.parametrize("chain", ["adamw", "sum", "momentum"])
def test_a_step_through_inductor_equals_eager_in_single_precision(chain, monkeypatch):
    monkeypatch.undo()
    tx, params = CHAINS[chain](), drawn(0, torch.float32)
    step, at = compiled(tx.update, "inductor"), tx.init(params)
    eager = at
    for i in range(3):
        grads = drawn(i, torch.float32)
        updates, at = step(grads, at, params)
        expected, eager = tx.update(grads, eager, params)
        assert_close(updates, expected, rtol=1e-5, atol=1e-6)  # kernels fuse products and sums


def test_a_tree_without_leaves_is_returned_as_it_is():
    assert compiled(gradtx.apply_updates)({}, {}) == {}


# Missing gradients, and the initial state.


def step_of(tx):
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return gradtx.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("chain", ["adamw", "sum", "own count"])
def test_steps_without_some_gradients_are_one_call_and_equal_eager_ones(chain):
    """The counts of leaves then differ: the state gains them, and their values decide what the operator runs."""
    tx, params, calls = CHAINS[chain](), drawn(0), []

    def keep(graph, examples):
        calls.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    step = compiled(step_of(tx), aot_autograd(fw_compiler=keep))
    at = eager = params, tx.init(params)
    for i, missing in enumerate(["bias", "bias", None, "weight", "bias"]):
        grads = {name: None if name == missing else grad for name, grad in drawn(i).items()}
        at, eager = step(grads, at[1], at[0]), step_of(tx)(grads, eager[1], eager[0])
        assert_close(at, eager, rtol=1e-11, atol=1e-13)
    for operations in calls:
        assert operations.count("gradtx.run.default") == 1
        assert operations.count("gradtx.add.default") == 1
    if chain != "own count":  # whose inner clock has them
        assert at[1]["leaf_steps"]["columns"].item() == 5


@pytest.mark.parametrize("chain", ["adamw", "sum"])
def test_graphs_of_all_patterns_of_missing_gradients_share_a_plan_and_its_kernels(chain, monkeypatch):
    tx, params, made, ran = CHAINS[chain](), drawn(0), [], []
    monkeypatch.setattr(tree_plan, "_SHARED", tree_plan.SharedTrees())
    init, run = tree_plan.TreePlan.__init__, KernelFunctionOfRows.run
    monkeypatch.setattr(tree_plan.TreePlan, "__init__", lambda *args: made.append(1) or init(*args))
    monkeypatch.setattr(KernelFunctionOfRows, "run", lambda *args: ran.append(1) or run(*args))
    step = compiled(step_of(tx))
    at = eager = params, tx.init(params)
    for i, missing in enumerate(["bias", "weight", None, "weight", "columns"]):
        grads = {name: None if name == missing else grad for name, grad in drawn(i).items()}
        at = step(grads, at[1], at[0])
        with gradtx.eagerly():
            eager = step_of(tx)(grads, eager[1], eager[0])
        assert_close(at, eager, rtol=1e-11, atol=1e-13)
    assert len(made) == 2  # the second one is for the counts that then differ
    assert ran


def test_a_missing_update_keeps_the_parameter():
    params = {"a": [torch.ones(3), torch.ones(2)], "b": None, "c": {"d": torch.ones(1)}}
    updates = {"a": [None, torch.ones(2)], "b": None, "c": {"d": torch.ones(1)}}
    assert calls_of(gradtx.apply_updates, params, updates) == ["_applied"]
    assert_close(compiled(gradtx.apply_updates)(params, updates), gradtx.apply_updates(params, updates), rtol=0)
    with pytest.raises(Exception, match="updates"):
        compiled(gradtx.apply_updates)(params, {**updates, "c": {"e": torch.ones(1)}})


@pytest.mark.parametrize("few_leaves", [1, 100])
@pytest.mark.parametrize("chain", ["adamw", "shared value", "own count", "branches"])
def test_the_initial_state_is_one_call_and_equals_the_eager_one(chain, few_leaves, monkeypatch):
    monkeypatch.setattr(graphs, "FEW_LEAVES", few_leaves)
    tx, params = CHAINS[chain](), {**drawn(0), "none": None}
    assert calls_of(tx.init, params) == ["_run"]
    for counts in ("calls", "leaves"):
        found, expected = compiled(lambda p, c=counts: tx.init(p, counts=c))(params), tx.init(params, counts=counts)
        assert tree_structure(found) == tree_structure(expected)
        assert_close(found, expected, rtol=0)
        assert_own_memory(found, params)
    with pytest.raises(Exception, match="counts must be 'calls' or 'leaves'"):
        compiled(lambda p: tx.init(p, counts="none"))(params)


@pytest.mark.parametrize("few_leaves", [1, 100])
def test_an_initial_state_of_plain_functions_reads_python_at_each_call(few_leaves, monkeypatch):
    monkeypatch.setattr(graphs, "FEW_LEAVES", few_leaves)
    given = {"value": 1.0}
    tx = gradtx.GradientTransformation(lambda p: {"s": torch.tensor(given["value"])}, lambda u, s, p: (u, s))
    start = compiled(tx.init)
    for value in (1.0, 2.0):
        given["value"] = value
        assert tree_leaves(start(one_leaf()))[-1].item() == value


def test_gradients_pass_through_an_initial_state_that_copies_the_parameters():
    """Of a lookahead, whose slow weights are the parameters."""
    tx, params = gradtx.with_lookahead(gradtx.sgd(0.1), k=1), drawn(0)

    def loss(params):
        updates, _ = tx.update(params, tx.init(params), params)
        return sum(value.square().sum() for value in gradtx.apply_updates(params, updates).values())

    weights = [value.clone().requires_grad_() for value in params.values()]
    total = compiled(lambda *values: loss(dict(zip(params, values, strict=True))))(*weights)
    found = torch.autograd.grad(total, weights)
    expected = torch.func.grad(loss)(params)
    assert_close(list(found), list(expected.values()), rtol=1e-12)
