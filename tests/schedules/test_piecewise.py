"""Schedules with a factor of its own at each boundary."""

import math

import pytest
import torch

import gradtx

PIECES = {3: 0.5, 5: 0.1, 9: 4.0}


def values(schedule, steps=12):
    return [schedule(step) for step in range(steps)]


def test_each_boundary_has_its_own_factor():
    expected = [2.0] * 3 + [1.0] * 2 + [0.1] * 4 + [0.4] * 3
    assert values(gradtx.piecewise_constant_schedule(2.0, PIECES)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_values_between_boundaries_lie_on_a_line_or_half_a_cosine(kind):
    def at(step):
        start, value = 0, 2.0
        for boundary, factor in PIECES.items():
            if step < boundary:
                share = (step - start) / (boundary - start)
                share = share if kind == "linear" else (1 - math.cos(math.pi * share)) / 2
                return value + share * (factor - 1) * value
            start, value = boundary, value * factor
        return value

    found = values(gradtx.piecewise_interpolate_schedule(kind, 2.0, PIECES))
    assert found == pytest.approx([at(step) for step in range(12)])


@pytest.mark.parametrize(
    "make",
    [
        gradtx.piecewise_constant_schedule,
        lambda lr, pieces=None: gradtx.piecewise_interpolate_schedule("linear", lr, pieces),
    ],
)
def test_without_boundaries_the_value_is_constant_and_rates_may_be_learned(make):
    assert values(make(0.3), 3) == pytest.approx([0.3] * 3)
    rate = torch.tensor(2.0, dtype=torch.float64)
    assert torch.func.grad(lambda lr: make(lr, {3: 0.5})(4))(rate) == 0.5


@pytest.mark.parametrize(
    ("pieces", "error", "message"),
    [
        ({5: 0.5, 3: 0.1}, ValueError, "boundaries must be in increasing order, got 5, 3"),
        ({-1: 0.5}, ValueError, "boundaries and factors must be at least 0, got -1: 0.5"),
        ({3: -0.5}, ValueError, "boundaries and factors must be at least 0, got 3: -0.5"),
        ({2.5: 0.5}, TypeError, "must map ints to numbers, got 2.5: 0.5"),
        ({3: "half"}, TypeError, "must map ints to numbers, got 3: 'half'"),
        ([(3, 0.5)], TypeError, "must be a dict of boundary -> factor"),
    ],
)
def test_bad_boundaries_are_named(pieces, error, message):
    for name in ("piecewise_constant_schedule", "piecewise_interpolate_schedule"):
        arguments = ("linear", 0.1) if "interpolate" in name else (0.1,)
        with pytest.raises(error, match=f"{name}: .*{message}"):
            getattr(gradtx, name)(*arguments, pieces)


def test_an_unknown_interpolation_is_named():
    with pytest.raises(ValueError, match="interpolate_type must be 'linear' or 'cosine', got 'cubic'"):
        gradtx.piecewise_interpolate_schedule("cubic", 0.1, {3: 0.5})
