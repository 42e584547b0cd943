"""Scalar computations hoisted out of traced programs, on small programs traced here."""

import functools
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import gradtx
from gradtx.base import torch_names as _torch
from gradtx.optim.engine import torch_names
from gradtx.optim.engine.hoist import REPLACED, StepNumbers, hoist, is_number, module_of, multiply, narrow


def traced(function, *arguments):
    module = make_fx(function)(*arguments)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module, module.graph.find_nodes(op="placeholder")


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def computed(module):
    """Return the nodes of a graph's operations with 0-d results."""
    return [node for node in module.graph.nodes if node.op == "call_function" and is_number(node)]


def test_numbers_are_computed_outside_and_each_once():
    def function(a, b, x, y):
        return x * torch.expm1(a * b), y * torch.expm1(a * b) + torch.log(b)

    arguments = (number(0.3), number(0.7), torch.randn(5, dtype=torch.float64), torch.randn(6, dtype=torch.float64))
    expected = function(*arguments)
    module, (a, b, x, _) = traced(function, *arguments)
    numbers, added = hoist(module, [a, b], x)
    assert len(added) == 2
    assert not computed(module)
    assert len(computed(numbers)) == 3  # a product, its expm1, and a logarithm
    found = module(*arguments[:2], *module_of(numbers, module)(*arguments[:2]), *arguments[2:])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_sums_over_entries_constants_and_writes_stay():
    def function(a, x, slot):
        slot.copy_(slot * a)
        return x * x.sum() + torch.ones((), dtype=torch.float64)

    arguments = (number(0.5), torch.randn(4, dtype=torch.float64), number(3.0))
    module, (a, x, slot) = traced(function, *(argument.clone() for argument in arguments))
    assert hoist(module, [a], x)[1] == []
    numbers, added = hoist(module, [a, slot], x)
    assert len(added) == 1
    own = arguments[2].clone()
    module(arguments[0], *module_of(numbers, module)(arguments[0], own), arguments[1], own)
    assert own == 1.5


def test_a_division_by_a_number_is_a_multiplication_unless_the_number_is_whole():
    def function(a, n, x):
        return x / a, x / n, a / n

    arguments = (number(0.3), torch.tensor(7), torch.randn(50, dtype=torch.float64))
    module, (a, n, x) = traced(function, *arguments)
    multiply(module)
    hoist(module, [a, n], x)
    assert [node.target for node in module.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.mul.Tensor,
        torch.ops.aten.div.Tensor,
    ]


def test_numbers_that_loops_in_single_precision_read_are_rounded_outside():
    def function(a, b, x, y):
        return a * x + b, torch.where(x > a, b, x), y * b

    x, y = torch.randn(50), torch.randn(50, dtype=torch.float64)
    arguments = (number(0.1), number(0.7), x, y)
    expected = function(*arguments)
    module, (a, b, first, _) = traced(function, *arguments)
    narrow(module)
    numbers, added = hoist(module, [a, b], first)
    assert [node.meta["val"].dtype for node in added] == [torch.float32, torch.float32]
    comparison = torch.ops.aten.gt.Tensor  # still in double precision
    assert [user.target for user in a.users] == [comparison]
    assert [user.target for user in b.users] == [torch.ops.aten.mul.Tensor]
    found = module(*arguments[:2], *module_of(numbers, module)(*arguments[:2]), *arguments[2:])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


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
    module = make_fx(function, decomposition_table={**torch_names.decompositions(), **REPLACED})(x)
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert torch.ops.aten.isnan.default not in targets
    assert targets.count(torch.ops.prims.convert_element_type.default) == 4  # by way of int32
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


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_of_a_step_that_simplify_to_arguments_stay_in_their_places(on_host, dtype):
    def function(a, b, c, x):
        return x * (1 - a) + b, x * (b * 1.0), x * (c * 1.0)

    arguments = (number(0.25), number(-2.0), number(3.0), torch.randn(4, dtype=dtype))
    expected = function(*arguments)
    module, (a, b, c, x) = traced(function, *arguments)
    narrow(module)
    numbers, _ = hoist(module, [a, b, c], x)
    kept = [copy for node, copy in zip((a, b, c), numbers.numbers, strict=True) if node.users]
    given = StepNumbers(numbers, kept, module).compute([0.25, -2.0, 3.0], torch.device("cpu"), on_host)
    for node in (a, b, c):
        if not node.users:
            module.graph.erase_node(node)
    module.recompile()
    torch.testing.assert_close(module(*given, arguments[-1]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("on_host", [True, False])
def test_numbers_of_a_step_are_the_same_computed_in_python_and_on_a_device(on_host):
    def function(a, n, b, x):
        return x * (1 - a**n) + b, torch.where(n > 3, a, b) * x

    arguments = (number(0.3), torch.tensor(7), number(-2.0), torch.randn(4, dtype=torch.float64))
    expected = function(*arguments)
    module, (a, n, b, x) = traced(function, *arguments)
    numbers, added = hoist(module, [a, n, b], x)
    kept = [copy for node, copy in zip((a, n, b), numbers.numbers, strict=True) if node.users]
    given = StepNumbers(numbers, kept, module).compute([0.3, 7, torch.tensor(-2.0)], torch.device("cpu"), on_host)
    assert [node.users for node in (a, n)] == [{}, {}]
    assert len(given) == len(kept) + len(added) == 3
    by_node = dict(zip((b, *added), given, strict=True))
    for node in (a, n):
        by_node[node] = number(math.nan)  # never read
    order = [by_node.get(node, arguments[-1]) for node in module.graph.find_nodes(op="placeholder")]
    torch.testing.assert_close(module(*order), expected, rtol=1e-15, atol=0)


def test_only_numbers_with_other_values_than_in_the_previous_step_are_created():
    module, (a, b, x) = traced(lambda a, b, x: x * (1 - a) + b, number(0.25), number(-2.0), torch.randn(4))
    numbers, _ = hoist(module, [a, b], x)
    kept = [copy for node, copy in zip((a, b), numbers.numbers, strict=True) if node.users]
    compute = functools.partial(StepNumbers(numbers, kept, module).compute, device=torch.device("cpu"), on_host=True)
    runs = [compute([0.25, 3.0]), compute([0.25, 4.0]), compute([0.25, 0.0]), compute([0.25, -0.0])]
    assert [[value.item() for value in run] for run in runs] == [[3, 0.75], [4, 0.75], [0, 0.75], [-0.0, 0.75]]
    assert len({id(run[1]) for run in runs}) == 1
    assert math.copysign(1, runs[3][0]) == -1
    with FakeTensorMode():
        assert type(compute([0.5, 5.0])[1]) is FakeTensor
    assert type(compute([0.5, 5.0])[1]) is torch.Tensor


@pytest.mark.parametrize("name", ["adamw", "nadam", "radam", "prodigy", "schedule_free_adamw"])
def test_no_kernel_computes_numbers_of_the_step(name, monkeypatch):
    """All 0-d values in an elementwise kernel are sums over entries or values written into 0-d slots."""
    kernels = []
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, *_, **__: kernels.append(graph) or graph)
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.ones(5)
    gradtx.as_optimizer(getattr(gradtx, name)(), [param], compile=True).step()
    entries = [graph for graph in kernels if any(not is_number(n) for n in graph.graph.nodes if n.op == "placeholder")]
    assert entries
    for kernel in entries:
        known = {n for n in kernel.graph.nodes if n.op == "placeholder" and is_number(n)}
        for node in computed(kernel):
            fixed = not node.all_input_nodes  # constant
            assert fixed or node.target._schema.is_mutable or not known.issuperset(node.all_input_nodes)
