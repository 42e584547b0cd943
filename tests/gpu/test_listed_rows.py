"""Sparse gradients on a GPU: the rows that they list step as on the CPU, in kernels and in lists.

The pretended GPU has no sparse tensors: dense gradients stand for those that list their rows that are not 0.
"""

import pytest
import torch

import gradtx
from gradtx.execution.listed_rows import ListedRows
from gradtx.optim import step
from tests.gpu.problem import on_host
from tests.gpu.test_kernels import running  # noqa: F401
from tests.tiers import by_day

TOLERANCE = 1e-7
SHAPES = {"a": (40, 3), "b": (300, 5), "c": (9,), "d": (40, 3), "dense": (6, 4), "bias": (3,)}
# The rows that tables list, step by step; None for no gradient, "dense" for a dense one.
STEPS = (
    {"a": 3, "b": 5, "c": 2, "d": 3},
    {"a": 4, "b": 6, "c": 3, "d": 2},
    {"a": 0, "b": 300, "c": 9, "d": 1},
    {"a": 1, "b": None, "c": 0, "d": 40},
    {"a": 40, "b": 1, "c": None, "d": "dense"},
    {"a": None, "b": 280, "c": 1, "d": 7},
    {"a": 2, "b": 281, "c": 4, "d": 8},
)
CHAINS = {
    "adamw": lambda: gradtx.adamw(lr=0.01),
    "momentum": lambda: gradtx.sgd(lr=0.01, momentum=0.9),
    "clipped": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adam(lr=0.01)),
    "clipped behind": lambda: gradtx.chain(gradtx.adam(lr=0.01), gradtx.clip_by_global_norm(0.05)),
    "by leaf": lambda: gradtx.chain(gradtx.clip_by_norm(0.5), gradtx.adam(lr=0.01)),
    "lazy": lambda: gradtx.lazy_rows(gradtx.adamw(lr=0.01)),
    "caught up": lambda: gradtx.lazy_rows(gradtx.adamw(lr=0.01), catch_up=True),
    "partition": lambda: gradtx.partition(
        {
            "adam": gradtx.sparse_adam(lr=0.01),
            "lazy": gradtx.lazy_rows(gradtx.rmsprop(lr=0.01), True),
            "rest": gradtx.adafactor(),
        },
        {"adam": ["a", "d"], "lazy": ["b", "c"], "rest": "*"},
    ),
    "partition, clipped": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.5), CHAINS["partition"]()),
}


@pytest.fixture
def listing(gpu, monkeypatch):
    """Returns a function that makes the gradient of some rows."""
    if gpu.is_real:
        return lambda index, values, shape: gpu.to(sparse(index, values, shape))
    listed: dict[int, torch.Tensor] = {}
    of, is_sparse = ListedRows.of, step._is_sparse

    def rows_of(what, gradient, param):
        if id(gradient) not in listed:
            return of(what, gradient, param)
        index = gpu.to(listed[id(gradient)])
        return ListedRows(index, gradient.index_select(0, index))

    def made(index, values, shape):
        gradient = gpu.to(torch.zeros(shape, dtype=values.dtype).index_copy(0, index, values))
        listed[id(gradient)] = index
        keep.append(gradient)
        return gradient

    keep: list[torch.Tensor] = []
    monkeypatch.setattr(ListedRows, "of", staticmethod(rows_of))
    monkeypatch.setattr(step, "_is_sparse", lambda gradient: id(gradient) in listed or is_sparse(gradient))
    monkeypatch.setattr(step.Step, "_has_sparse", True)
    return made


def sparse(index, values, shape):
    return torch.sparse_coo_tensor(index[None], values, shape, check_invariants=True)


def trained(chain, compile, to, listing):
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
    params = {name: torch.nn.Parameter(to(value)) for name, value in values.items()}
    named = list(params.items())
    last = {"params": named[3:]}
    if chain == "adamw":
        last["weight_decay"] = 0.1
    groups = [{"params": named[:3]}, last]
    optimizer = gradtx.as_optimizer(CHAINS[chain](), groups, compile=compile)
    for counts in STEPS:
        for name, param in params.items():
            shape, count = SHAPES[name], counts.get(name, "dense")
            full = torch.randn(shape, generator=generator, dtype=torch.float64)
            index = torch.randperm(shape[0], generator=generator)
            if count is None:
                param.grad = None
            elif count == "dense":
                param.grad = to(full)
            else:
                index = index[:count].sort().values
                param.grad = listing(index, full[index], shape)
        optimizer.step()
    return on_host(([*params.values()], [optimizer.state[param] for param in params.values()])), optimizer


@by_day("*adamw*", "*partition, clipped*")
@pytest.mark.parametrize("compile", [False, True], ids=["lists", "kernels"])
@pytest.mark.parametrize("chain", CHAINS)
def test_rows_step_as_on_the_cpu(chain, compile, gpu, listing):
    expected, _ = trained(chain, False, lambda tensor: tensor.clone(), sparse)
    found, optimizer = trained(chain, compile, gpu.to, listing)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    if compile:
        assert {item.way for item in optimizer.explain()} == {"kernels"}, optimizer.explain()
