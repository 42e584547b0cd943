"""On shards, a watch measures what it measures on whole tensors, and training keeps its bits."""

import math

import pytest
import torch

import gradtx
from tests.distributed import test_sums_on_shards
from tests.distributed.problems import whole
from tests.distributed.test_sums_on_shards import SHAPES, along

IN_BLOCKS = gradtx.chain(gradtx.clip_by_block_rms(0.1), gradtx.adamw(lr=0.1, eps=0.1))
CHAINS = test_sums_on_shards.CHAINS | {
    "rows as blocks": gradtx.blocks(IN_BLOCKS, "matrix", batch=1),
    "columns as blocks": gradtx.blocks(IN_BLOCKS, "matrix", heads=3, dim=1),
    "int8": gradtx.adamw(lr=0.1, state_dtype="int8"),
    "sam": gradtx.sam(gradtx.adamw(lr=0.1)),
    "accumulate": gradtx.accumulate(gradtx.adamw(lr=0.1), every=2),
    "schedule_free": gradtx.schedule_free_adamw(lr=0.1),
    "lookahead": gradtx.chain(gradtx.adamw(lr=0.1), gradtx.lookahead(k=2)),
}
# Sums in float64 in another order, and weights in float32 for the cosine with the last step.
TOLERANCES = {"cos_last": 1e-3}
# The effect of its eps would need a second round of messages.
UNMEASURED = {(leaf, "project_scale_invariant") for leaf, shape in SHAPES.items() if len(shape) > 1}


def trained(name, place, is_watched, compile):
    generator = torch.Generator().manual_seed(0)

    def noise(shape):
        return place(torch.randn(shape, generator=generator, dtype=torch.float64))

    params = {leaf: torch.nn.Parameter(noise(shape)) for leaf, shape in SHAPES.items()}
    optimizer = gradtx.as_optimizer(CHAINS[name], list(params.items()), compile=compile)
    seen = gradtx.watch(optimizer, every=2) if is_watched else None

    def closure():
        for leaf, param in params.items():
            param.grad = noise(SHAPES[leaf]) + param.detach()
        return torch.zeros(())

    for _ in range(4):
        optimizer.step(closure)
    return [whole(param) for param in params.values()], seen


def keeps_bits(name, dim, compile):
    """Compare weights with and without a watch; return what was seen."""
    weights, _ = trained(name, along(dim), False, compile)
    watched_weights, seen = trained(name, along(dim), True, compile)
    assert all(map(torch.equal, weights, watched_weights))
    return seen


def steps_with_the_same_bits(name, compile):
    return keeps_bits(name, 0, compile).steps


def compared(name, dim, compile):
    """Compare figures with those of whole tensors, too."""
    seen = keeps_bits(name, dim, compile)
    _, expected = trained(name, torch.clone, True, compile)
    expected_rows = {(row["step"], row["leaf"], row["link"]): row for row in expected.records}
    for row in seen.records:
        if row["link"].endswith("orthogonalize"):  # one row for all links that an owner computes together
            continue
        other = expected_rows[row["step"], row["leaf"], row["link"]]
        for figure, value in row.items():
            if figure == "decided" and (row["leaf"], row["link"]) in UNMEASURED:
                assert math.isnan(value)
            elif isinstance(value, float):
                tolerance = TOLERANCES.get(figure, 1e-8)
                assert value == pytest.approx(other[figure], rel=tolerance, abs=tolerance, nan_ok=True), (row, figure)
    return len(seen.records), sorted({row["leaf"] for row in seen.records})


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ["clip", "two sums", "owners", "skip", "adamp", "rows as blocks", "columns as blocks"])
def test_figures_of_shards_are_those_of_whole_tensors(name, compile, two):
    for count, leaves in two.run(compared, name, 0, compile):
        assert count > 0
        assert leaves == sorted(SHAPES)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ["int8", "sam", "accumulate", "schedule_free", "lookahead"])
def test_training_on_shards_keeps_its_bits(name, compile, two):
    expected = [2] if name == "accumulate" else [1, 3]
    for steps in two.run(steps_with_the_same_bits, name, compile):
        assert steps == expected
