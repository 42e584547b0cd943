"""Graphs that inductor compiles: scalars as arguments, a copy of a program per leaf, and other forms of operations."""

import math

import pytest
import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

import gradtx
from gradtx.base import torch_names as _torch
from gradtx.execution.runs import LateTerm
from gradtx.optim.engine.inductor import REPLACED
from gradtx.programs import record
from gradtx.programs.lower import lower
from gradtx.programs.record import PhaseResult
from gradtx.programs.scalars import Scalars
from gradtx.programs.write_inductor import _in_memory, write_graph

CPU = torch.device("cpu")


def written(function, numbers, leaves, names=("a",), width=1, adds_up=False):
    """Return the graph of a function of scalars and of the tensors of a leaf, its scalars, and its names."""

    def result(arguments):
        return PhaseResult(function(*arguments), tuple(names), None)

    recording = record(result, numbers, leaves)
    program = lower(recording, on_device=None, decides=False)
    graph, all_names, read = write_graph(program, names, width, adds_up)
    scalars = Scalars(program, CPU, read)
    module = GraphModule({}, graph)

    def run(given, *tensors, on_device=frozenset()):
        computed = scalars.given(on_device)
        return module(*computed.function(given)[len(computed.nodes) :], *tensors)

    return run, graph, all_names


def operations(graph):
    return [node.target for node in graph.nodes if node.op == "call_function"]


REAL = torch.float64
VECTOR = (REAL, (5,))


@pytest.mark.parametrize("on_device", [(), (1,), (0, 1)])
def test_scalars_are_computed_outside_and_each_once(on_device):
    def function(a, b, x, y):
        return x * torch.expm1(a * b), y * torch.expm1(a * b) + torch.log(b)

    run, graph, _ = written(function, [REAL, REAL], [VECTOR, VECTOR], "ab")
    x, y = torch.randn(2, 5, dtype=REAL)
    given = [torch.tensor(value, dtype=REAL) if i in on_device else value for i, value in enumerate((0.3, 0.7))]
    found = run(given, x, y, on_device=frozenset(on_device))
    expected = function(*(torch.tensor(value, dtype=REAL) for value in (0.3, 0.7)), x, y)
    torch.testing.assert_close(found, list(expected), rtol=1e-15, atol=0)
    assert len(graph.find_nodes(op="placeholder")) == 2 + 2
    aten = torch.ops.aten
    assert operations(graph) == [aten.mul.Tensor, aten.mul.Tensor, aten.add.Tensor]


def test_a_division_by_a_scalar_is_a_multiplication_unless_the_scalar_is_whole():
    def function(a, n, x):
        return x / a, x / n

    run, graph, _ = written(function, [REAL, torch.int64], [VECTOR], "ab")
    assert operations(graph) == [torch.ops.aten.mul.Tensor, torch.ops.aten.div.Tensor]
    x = torch.randn(5, dtype=REAL)
    torch.testing.assert_close(run([0.3, 7], x), [x / 0.3, x / 7], rtol=1e-15, atol=0)


def test_scalars_that_loops_in_single_precision_read_are_rounded_outside():
    def function(a, b, x, y):
        return a * x + b, torch.where(x > a, b, x), y * b

    run, graph, _ = written(function, [REAL, REAL], [(torch.float32, (5,)), VECTOR], "abc")
    x, y = torch.randn(5), torch.randn(5, dtype=REAL)
    found = run([0.1, 0.7], x, y)
    a, b = torch.tensor(0.1, dtype=REAL), torch.tensor(0.7, dtype=REAL)
    torch.testing.assert_close(found, list(function(a, b, x, y)), rtol=0, atol=0)
    # `a` and `b` in both dtypes: the comparison and the other leaf read them in float64.
    assert len(graph.find_nodes(op="placeholder")) == 4 + 2


def test_leaves_repeat_what_depends_on_them_and_share_the_rest():
    def function(a, x):
        return torch.arange(3) * 2, x * a, x.sum()

    late = LateTerm(("sum",), "s", "0", False)
    run, graph, names = written(function, [REAL], [VECTOR], ("shared", "first", late), width=3)
    leaves = [torch.randn(size, dtype=REAL) for size in (5, 2, 7)]
    found = dict(zip(names, run([0.5], *leaves), strict=True))
    assert found["shared"].tolist() == [0, 2, 4]
    assert operations(graph).count(torch.ops.aten.arange.default) == 1
    assert torch.equal(found["first"], leaves[0] / 2)
    sums = [found[late._replace(leaf=str(i))] for i in range(3)]
    assert sums == [leaf.sum() for leaf in leaves]


def test_a_value_per_row_is_written_to_memory_before_entries_read_it():
    def function(x):
        scale = x.square().sum(1, keepdim=True).sqrt() + 1.0
        return [x / scale]

    run, graph, _ = written(function, [], [(REAL, (3, 4))])
    kept = [node for node in graph.nodes if node.target is _in_memory]
    assert len(kept) == 1
    assert [reader.target for reader in kept[0].users] == [torch.ops.aten.div.Tensor]
    x = torch.randn(3, 4, dtype=REAL)
    torch.testing.assert_close(run([], x), function(x), rtol=1e-15, atol=0)


def test_terms_of_all_leaves_are_added_up_in_order():
    run, _, names = written(lambda x: [(x * x).sum()], [], [VECTOR], ("sum",), width=3, adds_up=True)
    leaves = [torch.randn(size, dtype=REAL) for size in (5, 2, 7)]
    first, second, third = [(leaf * leaf).sum() for leaf in leaves]
    assert names == ("sum",)
    assert run([], *leaves) == [first + second + third]


def test_the_arc_tangent_in_single_precision_is_right_to_rounding():
    sizes = torch.cat([torch.logspace(-30, 30, 4001), torch.linspace(0, 4, 4001), torch.tensor([float("inf")])])
    x = torch.cat([sizes, -sizes])
    module = make_fx(torch.atan, decomposition_table=REPLACED)(x)
    assert torch.ops.aten.atan.default not in {node.target for node in module.graph.nodes}
    torch.testing.assert_close(module(x).double(), x.double().atan(), rtol=2e-7, atol=0)
    assert module(torch.full((3,), math.nan)).isnan().all()
    double = make_fx(torch.atan, decomposition_table=REPLACED)(x.double())
    assert torch.equal(double(x.double()), x.double().atan())


def test_codes_are_stored_and_nan_is_found_by_operations_that_vectors_have():
    def function(x):
        return x.to(torch.int8), x.abs().to(torch.uint8), x.isnan(), x.nan_to_num(math.nan, math.inf, -math.inf)

    x = torch.tensor([-127.0, -0.0, 3.0, 127.0, 0.0, 1.0])
    module = make_fx(function, decomposition_table=REPLACED)(x)
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert torch.ops.aten.isnan.default not in targets
    assert targets.count(torch.ops.aten._to_copy.default) == 4  # by way of int32
    for found, expected in zip(module(x), function(x), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    integers = torch.arange(3)
    module_of_integers = make_fx(lambda x: x.nan_to_num(0.0, math.inf, -math.inf), decomposition_table=REPLACED)(
        integers
    )
    assert module_of_integers(integers).dtype == torch.int64
    x = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 1.0])
    *_, found, filled = module(x)
    assert found.tolist() == [True, True, False, False, False]
    # NVIDIA's GPUs produce other bits.
    assert torch.equal(filled.view(torch.int32), function(x)[-1].view(torch.int32))


@pytest.mark.parametrize("has_units", [True, False])
def test_products_in_bfloat16_go_through_float32_where_the_processor_has_none(has_units, monkeypatch):
    monkeypatch.setattr(_torch, "multiplies_in_bfloat16", lambda: has_units)
    torch.manual_seed(0)
    x, y = torch.randn(5, 7).bfloat16(), torch.randn(7, 3).bfloat16()
    module = make_fx(lambda x, y: torch.addmm(y[:5], x, y, beta=0.5, alpha=-2.0), decomposition_table=REPLACED)(x, y)
    products = [node for node in module.graph.nodes if node.target is torch.ops.aten.addmm.default]
    assert [node.meta["val"].dtype for node in products] == [torch.bfloat16 if has_units else torch.float32]
    exact = 0.5 * y[:5].double() - 2.0 * x.double() @ y.double()
    assert module(x, y).dtype == torch.bfloat16
    torch.testing.assert_close(module(x, y).double(), exact, rtol=2**-8, atol=0)


@pytest.mark.parametrize("name", ["adamw", "nadam", "radam", "prodigy", "schedule_free_adamw"])
def test_no_kernel_computes_numbers_of_the_step(name, monkeypatch):
    kernels = []
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, *_, **__: kernels.append(graph) or graph)
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.ones(5)
    gradtx.as_optimizer(getattr(gradtx, name)(), [param], compile=True).step()
    assert kernels
    for kernel in kernels:
        scalars = {node for node in kernel.graph.nodes if node.name.startswith("scalar")}
        computed = [node for node in kernel.graph.nodes if node.op == "call_function" and node.all_input_nodes]
        assert scalars
        assert not [node for node in computed if scalars.issuperset(node.all_input_nodes)]
