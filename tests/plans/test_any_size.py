"""Leaves of many sizes share a recording where no rule can tell their shapes."""

import pytest
import torch

import gradtx
from gradtx.plans.function import LeafFunction
from gradtx.plans.planner import ListPrograms
from tests.examples import example_of

SHAPES = [(3, 4), (5, 2), (7, 6), (2, 9), (4, 4), (1, 5), (8,), (3,), (6,), (), (2, 3, 4), (3, 3, 2), (4, 2, 5)]


def trained(tx, steps=3, **options):
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]
    optimizer = gradtx.as_optimizer(tx, params, **options)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    return optimizer, [param.detach() for param in params]


@pytest.fixture
def recorded(monkeypatch):
    """The shapes of the leaves whose steps were recorded."""
    shapes, record = [], LeafFunction.record

    def noted(self, leaves):
        shapes.append(tuple(leaves[0].shape))
        return record(self, leaves)

    monkeypatch.setattr(LeafFunction, "record", noted)
    return shapes


@pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
@pytest.mark.parametrize(
    "tx",
    [gradtx.adamw(lr=0.1), gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.lion(lr=0.1))],
    ids=["adamw", "clip"],
)
def test_two_sizes_of_as_many_dimensions_are_recorded_and_others_share_the_program(
    tx, compile, recorded, forget_programs
):
    forget_programs()
    _, found = trained(tx, compile=compile)
    full = [shape for shape in recorded if shape and 1 not in shape]
    assert {len(shape): sum(len(x) == len(shape) for x in full) for shape in full} == {1: 2, 2: 2, 3: 2}
    with gradtx.eagerly():
        _, expected = trained(tx)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@gradtx.per_tensor(elementwise=True)
def double_if_large():
    def update(update, state, param, ctx):
        return update * (2.0 if update.numel() > 15 else 1.0), state

    return update


@pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
def test_a_rule_of_the_user_may_look_at_the_size(compile):
    tx = gradtx.chain(double_if_large(), gradtx.scale(-0.1))
    _, found = trained(tx, compile=compile)
    with gradtx.eagerly():
        _, expected = trained(tx)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
def test_a_function_of_the_user_in_a_rule_of_the_library_may_look_at_the_size(compile):
    tx = gradtx.chain(gradtx.sgd(lr=0.1), gradtx.map_after_step(lambda p: p * (0.5 if p.numel() > 15 else 1.0)))
    _, found = trained(tx, compile=compile)
    with gradtx.eagerly():
        _, expected = trained(tx)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def programs_of_sizes(tx, monkeypatch):
    """The program of each shape that ignores sizes, as it is recorded for this shape alone."""
    seen, of = {}, ListPrograms.of

    def alone(self, tensors):
        program = of(self, tensors)
        shape = tuple(tensors[0].shape)
        if self.ignores_sizes and shape and 1 not in shape:
            seen.setdefault(len(shape), {})[shape] = (program, self._recorded(tensors))
        return program

    monkeypatch.setattr(ListPrograms, "of", alone)
    trained(tx, steps=1)
    return seen


@pytest.mark.parametrize("name", ["adamw", "nadam", "asgd", "prodigy", "schedule_free_adamw"])
def test_the_shared_program_is_that_of_each_size(name, monkeypatch, forget_programs):
    forget_programs()
    factory = getattr(gradtx, name)
    of_dimensions = programs_of_sizes(factory(**example_of(factory)), monkeypatch)
    assert set(of_dimensions) == {1, 2, 3}
    for programs in of_dimensions.values():
        for shared, own in programs.values():
            assert shared is own


@pytest.mark.nightly
def test_the_shared_program_is_that_of_each_size_in_all_optimizers(monkeypatch, forget_programs):
    for name in gradtx.get_supported_optimizers():
        with monkeypatch.context() as patch:
            forget_programs()
            factory = getattr(gradtx, name)
            try:
                of_dimensions = programs_of_sizes(factory(**example_of(factory)), patch)
            except (ValueError, TypeError, RuntimeError):  # it needs matrices, or extras
                continue
            for programs in of_dimensions.values():
                for shape, (shared, own) in programs.items():
                    assert shared is own, (name, shape)
