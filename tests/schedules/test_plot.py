"""Plots of schedules and of records show their values."""

import pytest
import torch

import gradtx

pytest.importorskip("matplotlib")


def curves(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_the_curve_of_a_schedule_has_its_value_at_each_step(tmp_path):
    schedule = gradtx.step_schedule(1.0, step_size=2, gamma=0.5)
    figure = gradtx.plot(schedule, 5, tmp_path / "lr.png")
    (curve,) = curves(figure.axes[0]).values()
    assert curve == [[0, 1.0], [1, 1.0], [2, 0.5], [3, 0.5], [4, 0.25]]
    assert (tmp_path / "lr.png").stat().st_size > 1000


def test_records_of_a_run_have_a_panel_for_each_link_and_a_curve_for_each_leaf():
    params = {name: torch.nn.Parameter(torch.ones(2)) for name in "ab"}
    tx = gradtx.chain(gradtx.record(what=("max",)), gradtx.scale(3.0), gradtx.record("scaled"), gradtx.sgd(lr=0.1))
    optimizer = gradtx.as_optimizer(tx, params.items())
    history = []
    for step in (1.0, 2.0):
        for param in params.values():
            param.grad = torch.full((2,), step)
        optimizer.step()
        history.append(optimizer.recorded())
    figure = gradtx.plot(history)
    panels = {axes.get_ylabel(): curves(axes) for axes in figure.axes}
    assert panels["record/max"] == {"a": [[0, 1.0], [1, 2.0]], "b": [[0, 1.0], [1, 2.0]]}
    assert len(panels) == 2


@pytest.mark.parametrize(
    ("kind", "message", "arguments"),
    [
        (TypeError, "plot: needs a schedule, a dict of schedules or a list of records, got 3", (3,)),
        (TypeError, "plot: pass steps, the number of steps to plot", (gradtx.constant_schedule(1.0),)),
        (ValueError, "plot: steps must be at least 1, got 0", (gradtx.constant_schedule(1.0), 0)),
        (ValueError, "plot: got no schedule", ({}, 3)),
        (TypeError, "plot: 'lr' must be a gradtx.Schedule, got 0.1", ({"lr": 0.1}, 3)),
        (TypeError, "plot: steps is the number of steps of a schedule; omit it for records", ([{"a": 1.0}], 3)),
        (TypeError, "plot: each record must be a dict of name -> value, got 1", ([1],)),
        (ValueError, "plot: the records are empty", ([],)),
    ],
)
def test_what_cannot_be_plotted_is_refused(kind, message, arguments):
    with pytest.raises(kind, match=f"^{message}$"):
        gradtx.plot(*arguments)
