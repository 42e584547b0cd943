"""Combinators that break their contract get one error that names the fault."""

import pytest
import torch

import gradtx
from gradtx import Frame, InnerClock, Scalar

ONES = {"w": torch.ones(2)}


def combined(**parts):
    """A combinator around SGD with momentum, made of these parts of a frame."""

    @gradtx.combinator
    def mine(tx: gradtx.GradientTransformation, size: Scalar = 1.0):
        return Frame(tx, **parts)

    return mine(gradtx.sgd(lr=1.0, momentum=0.5))


def clocked(ticks, **options):
    return combined(clock=InnerClock(ticks, {"calls": 0}, **options))


YES = torch.tensor(True)


def two_steps(tx):
    state = tx.init(ONES)
    for _ in range(2):
        updates, state = tx.update(ONES, state, ONES)
    return updates, state


def test_ticks_may_return_the_values_that_it_gets():
    _, state = two_steps(clocked(lambda values, sums: (values["calls"] >= 0, values)))
    assert int(state["mine"]["step"]) == 2


BROKEN = {
    "a bool of Python": (
        lambda: clocked(lambda values, sums: (True, values)),
        r"mine: ticks must return \(counts, values\), a 0-d bool tensor and a dict, got \(True, ",
    ),
    "an int tensor": (
        lambda: clocked(lambda values, sums: (torch.tensor(1), values)),
        r"mine: ticks must return \(counts, values\), a 0-d bool tensor and a dict, got \(tensor\(1\), ",
    ),
    "a bool alone": (
        lambda: clocked(lambda values, sums: YES),
        r"mine: ticks must return \(counts, values\), a 0-d bool tensor and a dict, got tensor",
    ),
    "a value left out": (
        lambda: clocked(lambda values, sums: (YES, {})),
        r"mine: ticks must return 0-d int64 tensors for \['calls'\], got \{\}",
    ),
    "an int of Python": (
        lambda: clocked(lambda values, sums: (YES, {"calls": 3})),
        r"mine: ticks must return 0-d int64 tensors for \['calls'\], got \{'calls': 3\}",
    ),
    "a measure that is no dict": (
        lambda: clocked(lambda values, sums: (YES, values), measure=lambda update: update.sum()),
        "mine: measure must return a dict of 0-d tensors, got tensor",
    ),
    "a measure with a dimension": (
        lambda: clocked(lambda values, sums: (YES, values), measure=lambda update: {"a": update}),
        "mine: measure must return a dict of 0-d tensors, got {'a': tensor",
    ),
    "an enter that yields": (
        lambda: combined(enter=lambda update, state, param, ctx: ((yield {"a": update.sum()}), state)),
        "mine: enter cannot yield sums; yield them in leave",
    ),
    "a slot and a shared value of one name": (
        lambda: combined(init=lambda param: {"a": param}, shared={"a": 0.0}, leave=lambda u, s, p, ctx: (u, s)),
        r"mine: \['a'\] are both slots and shared values; rename one of them",
    ),
    "an unknown inner slot": (
        lambda: combined(
            inner_slots=("momentum_buffer",), leave=lambda u, s, p, ctx: (u, s, {"momentum_buffer": ctx.inner})
        ),
        r"mine: leave must return inner slots in their shapes, .*'trace.momentum_buffer'.*; got 'momentum_buffer': \{",
    ),
    "an inner slot of another shape": (
        lambda: combined(
            inner_slots=("momentum_buffer",),
            leave=lambda u, s, p, ctx: (u, s, {name: x.sum() for name, x in ctx.inner.items()}),
        ),
        r"mine: leave must return inner slots in their shapes, .*; got 'trace.momentum_buffer': tensor\(2\)",
    ),
    "a third value without inner_slots": (
        lambda: combined(leave=lambda u, s, p, ctx: (u, s, {})),
        r"mine: leave returned a third value \(new inner slots\); list these slots in inner_slots=",
    ),
    "an enter that returns nothing": (
        lambda: combined(enter=lambda u, s, p, ctx: None),
        r"mine: enter must return \(update, state\), got None",
    ),
    "an enter that returns the update alone": (
        lambda: combined(enter=lambda u, s, p, ctx: u),
        r"mine: enter must return \(update, state\), got tensor",
    ),
    "an enter whose third value is no flag": (
        lambda: combined(enter=lambda u, s, p, ctx: (u, s, {})),
        r"mine: the third value of enter must be a 0-d bool tensor, got \{\}",
    ),
    "a leave that returns nothing": (
        lambda: combined(leave=lambda u, s, p, ctx: None),
        r"mine: leave must return \(update, state\), got None",
    ),
    "a leave that returns the update alone": (
        lambda: combined(leave=lambda u, s, p, ctx: u),
        r"mine: leave must return \(update, state\), got tensor",
    ),
    "shared values beside a clock": (
        lambda: combined(clock=InnerClock(lambda values, sums: (YES, values)), shared={"a": 0.0}),
        r"Frame: shared cannot be combined with clock; the values of a clock are in InnerClock\(start=...\)",
    ),
    "a start that is no int": (
        lambda: combined(clock=InnerClock(lambda values, sums: (YES, values), {"calls": 0.5})),
        r"InnerClock: start must be ints by name, without 'step', .*; got \{'calls': 0.5\}",
    ),
}


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN)
def test_a_fault_is_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        two_steps(make())


def test_what_is_no_transformation_is_refused_when_it_is_made():
    @gradtx.combinator
    def mine(tx: gradtx.GradientTransformation):
        return Frame(tx)

    with pytest.raises(TypeError, match="mine: tx must be a GradientTransformation, got sgd; call it"):
        mine(gradtx.sgd)


def test_inner_slots_need_no_init():
    tx = combined(
        inner_slots=("momentum_buffer",),
        leave=lambda u, s, p, ctx: (u, s, {name: 0 * x for name, x in ctx.inner.items()}),
    )
    _, state = two_steps(tx)
    assert not state["mine"]["trace"]["momentum_buffer"]["w"].any()
