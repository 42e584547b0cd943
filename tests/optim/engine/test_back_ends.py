"""The contract of back ends, docs/howto/write-a-back-end.md, for any engine."""

import copy
import doctest
from pathlib import Path

import pytest
import torch

import gradtx
from gradtx.optim.engine.kernels import KernelEngine
from gradtx.optim.engine.lists import ListEngine
from tests.optim.problems import descend, parameters

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "write-a-back-end.md"


def toy():
    """Return the engine of the page."""
    names = {}
    for example in doctest.DocTestParser().get_examples(PAGE.read_text(encoding="utf-8")):
        exec(example.source, names)
    return names["CountingEngine"]()


ENGINES = {"lists": ListEngine, "toy": toy, "kernels": KernelEngine}
each_engine = pytest.mark.parametrize("engine", ENGINES)

CHAINS = {
    "a sum": gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.adamw(lr=0.1)),
    "two sums": gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.normalize_by_global_norm(), gradtx.sgd(lr=0.1)),
    "shared values": gradtx.prodigy(lr=1.0, d0=0.1),
    "a late sum": gradtx.chain(gradtx.clip_by_global_norm(0.1, stale=True), gradtx.sgd(lr=0.1, momentum=0.9)),
}
# Every leaf is a bundle of its own, in another order than that of names, in which totals are added.
SHAPES = {"z": (3, 4), "a": (5,), "m": (2, 2), "b": (7,)}


def made(chain, compile):
    generator = torch.Generator().manual_seed(0)
    params = {}
    for name, shape in SHAPES.items():
        dtype = torch.float64 if name in "za" else torch.float32
        params[name] = torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
    groups = [{"params": [(name, params[name])], "lr": 0.1 + i / 10} for i, name in enumerate(params)]
    return gradtx.as_optimizer(chain, groups, compile=compile), params


def steps(optimizer, params, count=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for param in params.values():
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


@each_engine
@pytest.mark.parametrize("name", CHAINS)
def test_sums_shared_values_and_late_sums_are_those_of_single_leaves(name, engine):
    of_engine = ENGINES[engine]()
    optimizer, params = made(CHAINS[name], of_engine)
    steps(optimizer, params)
    assert {item.way for item in optimizer.explain()} == {of_engine.way}
    expected, leaves = made(CHAINS[name], False)
    with gradtx.eagerly():
        steps(expected, leaves)
    # Rounding of float32, and of operations that programs merge.
    torch.testing.assert_close(list(params.values()), list(leaves.values()), rtol=1e-5, atol=1e-6)
    states = [
        [dict(each.state[param]) for param in of.values()] for each, of in ((optimizer, params), (expected, leaves))
    ]
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-6)


@each_engine
def test_a_step_counts_a_version_of_each_parameter_so_graphs_of_the_old_weights_fail(engine):
    optimizer, params = made(CHAINS["a sum"], ENGINES[engine]())
    steps(optimizer, params, 1)
    versions = [param._version for param in params.values()]
    losses = [param.square().sum() for param in params.values()]
    steps(optimizer, params, 1)
    assert all(param._version > version for param, version in zip(params.values(), versions, strict=True))
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@each_engine
def test_parameters_and_slots_keep_their_memory(engine):
    optimizer, params = made(CHAINS["a sum"], ENGINES[engine]())

    def addresses():
        slots = [optimizer.state[param]["exp_avg"] for param in params.values()]
        return [tensor.data_ptr() for tensor in (*params.values(), *slots)]

    steps(optimizer, params, 1)
    before = addresses()
    steps(optimizer, params, 1)
    assert addresses() == before


@each_engine
def test_a_bundle_keeps_no_tensors_of_a_finished_step(engine):
    of_engine = ENGINES[engine]()
    optimizer, params = made(CHAINS["shared values"], of_engine)
    steps(optimizer, params)
    for bundle in of_engine.plans[None].bundles:
        assert bundle.run is None


@each_engine
def test_what_an_engine_refuses_runs_alone_or_in_lists_with_the_same_totals(engine):
    class Refuse(torch.Tensor):
        """No program accepts a subclass."""

    chain = CHAINS["shared values"]
    optimizer, params = made(chain, ENGINES[engine]())
    params["m"].data = params["m"].data.as_subclass(Refuse)
    expected, leaves = made(chain, False)
    steps(optimizer, params)
    with gradtx.eagerly():
        steps(expected, leaves)
    torch.testing.assert_close(
        [param.detach().as_subclass(torch.Tensor) for param in params.values()],
        [param.detach() for param in leaves.values()], rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_an_engine_of_ones_own_serves_one_optimizer_and_its_copies_have_engines_of_their_own():
    class Mine(ListEngine):
        way = "mine"

    params, engine = parameters(shapes={"weight": (3,)}), Mine()
    with pytest.raises(ValueError, match="empty parameter list"):
        gradtx.optim.SGD([], lr=0.1, compile=engine)
    optimizer = gradtx.optim.SGD(params.values(), lr=0.1, compile=engine)
    with pytest.raises(ValueError, match="compile: this Mine belongs to another optimizer; create one for each"):
        gradtx.optim.Adam(params.values(), compile=engine)
    for each in (optimizer, copy.deepcopy(optimizer)):
        descend(each, dict(enumerate(each.param_groups[0]["params"])), 1)
        assert [step.way for step in each.explain()] == ["mine"]
