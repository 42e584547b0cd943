"""Leaves with other counts than others have, bit for bit, what each would have in an optimizer of its own."""

import random

import pytest
import torch

import gradtx
from tests.conformance import bits
from tests.examples import example_of

SHAPES = {"a": (3, 4), "b": (3, 4), "c": (5,), "d": (4, 4), "e": (2, 7), "f": (5,)}
STEPS = 12
# Whose rates follow the updates of all leaves.
FOLLOWING_ALL = ("apollo", "schedule_free_radam")


NAMES = sorted(
    name for name in gradtx.__all__ if getattr(getattr(getattr(gradtx, name), "spec", None), "kind", "") == "alias"
)
BY_DAY = ("adamw", "asgd", "lamb", "lion", "nadam", "radam", "rprop", "schedule_free_adamw")


def computes_by_entry(name):
    """Whether an optimizer computes entry by entry; None if its leaves do not step each for itself."""
    factory = getattr(gradtx, name)
    try:
        tx = factory(**example_of(factory))
        optimizer = gradtx.as_optimizer(tx, list(parameters().items()))
    except (TypeError, ValueError):
        return None  # it needs the whole model, or more arguments
    core = optimizer._core
    traits = [operation.traits for operation in core.members.expanded.route.walk()]
    is_random = "seed" in optimizer.param_groups[0]  # all leaves draw from one stream
    if {*tx.needs} - {"params"} or is_random or core.traits.clocks or core.traits.takes_none or name in FOLLOWING_ALL:
        return None
    if any(x.waits or x.hessian_period or x.exchanges for x in traits):
        return None
    return all(x.elementwise and not x.has_sums and not x.of_leaf for x in traits)


def parameters():
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {name: torch.nn.Parameter(value) for name, value in drawn.items()}


def run(name, compile):
    """The state and weights of each leaf among others, and alone."""
    factory = getattr(gradtx, name)
    options = example_of(factory)
    ours, single = parameters(), parameters()
    together = gradtx.as_optimizer(factory(**options), list(ours.items()), compile=compile)
    alone = {
        key: gradtx.as_optimizer(factory(**options), [(key, param)], compile=compile) for key, param in single.items()
    }
    rng, generator = random.Random(name), torch.Generator().manual_seed(1)
    for t in range(STEPS):
        share = (1.0, 0.5, 0.5, 0.3)[t % 4]
        present = [key for key in SHAPES if rng.random() < share]
        for key in SHAPES:
            ours[key].grad = single[key].grad = None
            gradient = torch.randn(SHAPES[key], generator=generator)
            if key in present:
                ours[key].grad, single[key].grad = gradient, gradient.clone()
        together.step()
        for key in present:
            alone[key].step()
        yield t, {key: (together.state[ours[key]], alone[key].state[single[key]]) for key in present}, ours, single


@pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
@pytest.mark.parametrize(
    "name", [name if name in BY_DAY else pytest.param(name, marks=pytest.mark.nightly) for name in NAMES]
)
def test_leaves_of_uneven_counts_step_as_each_alone(name, compile):
    is_by_entry = computes_by_entry(name)
    if is_by_entry is None:
        pytest.skip("its leaves do not step each for itself")
    for t, states, ours, single in run(name, compile):
        for key, (state, other) in states.items():
            pairs = {"weight": (ours[key].detach(), single[key].detach())}
            for slot in state.keys() & other.keys() - {"missed_updates"}:
                if isinstance(state[slot], torch.Tensor):
                    pairs[slot] = state[slot], other[slot]
            for slot, (found, expected) in pairs.items():
                what = f"{name}, step {t}: {slot} of {key}"
                if is_by_entry or not compile:
                    assert torch.equal(bits(found), bits(expected)), what
                else:
                    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=what)
