import copy

import pytest
import torch

import gradtx
from tests.references import (
    PUBLISHED,
    STEPS,
    TOLERANCE,
    Published,
    Transformed,
    difference,
    difference_of_weights,
    gradients,
    problem,
)

OPTIONS = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}


class Zeroed(Published):
    """torch's AdamW, whose state is set to zero every so many steps, with or without its count."""

    def __init__(self, every, keep_clock):
        super().__init__(torch.optim.AdamW, **OPTIONS)
        self.every, self.keep_clock, self.t = every, keep_clock, 0

    def advance(self):
        self.t += 1
        if self.t % self.every == 0:
            for state in self.optimizer.state.values():
                for name, value in state.items():
                    if name != "step" or not self.keep_clock:
                        value.zero_()
        super().advance()


@pytest.mark.parametrize("every", [1, 2, 7, 100])
@pytest.mark.parametrize("keep_clock", [True, False])
def test_adamw_is_torchs_with_its_state_zeroed(every, keep_clock):
    tx = gradtx.restart(gradtx.adamw(**OPTIONS), every, keep_clock)
    assert difference_of_weights(tx, Zeroed(every, keep_clock)) < PUBLISHED


def test_the_first_stretch_is_one_step_shorter():
    tx = gradtx.restart(gradtx.trace(1.0), every=4)
    step, seen = Transformed(tx), []
    for _ in range(9):
        seen.append(step({"w": torch.ones(1)}, {"w": torch.zeros(1)})["w"].item())
    assert seen == [1, 2, 3, 1, 2, 3, 4, 1, 2]


def test_slots_that_depend_on_the_parameters_start_at_the_present_ones():
    tx = gradtx.restart(gradtx.regenerate_towards_init(1.0), every=3)
    step, updates = Transformed(tx), []
    for value in (5.0, 6.0, 7.0, 9.0):  # the first was the parameter at init, the third is that of the restart
        updates.append(step({"w": torch.zeros(1)}, {"w": torch.tensor([value])})["w"].item())
    assert updates == [0.0, 1.0, 0.0, 2.0]


def test_shared_values_start_again():
    tx = gradtx.restart(gradtx.clip_by_zscore(warmup_steps=10, max_norm=None), every=3)
    step, counts = Transformed(tx), []
    for _ in range(7):
        step({"w": torch.ones(1)}, {"w": torch.zeros(1)})
        counts.append(int(step.state["restart"]["clip_by_zscore"]["count"]))
    assert counts == [1, 2, 1, 2, 3, 1, 2]


@pytest.mark.parametrize(("keep_clock", "expected"), [(False, [0, 1, 0, 1, 2, 0]), (True, [0, 1, 2, 3, 4, 5])])
def test_schedules_inside_follow_the_clock_inside(keep_clock, expected):
    tx = gradtx.restart(gradtx.scale(gradtx.Schedule(lambda step: 1.0 * step)), 3, keep_clock)
    step, seen = Transformed(tx), []
    for _ in expected:
        seen.append(step({"w": torch.ones(1)}, {"w": torch.zeros(1)})["w"].item())
    assert seen == expected


def test_a_period_without_end_changes_nothing():
    adamw = gradtx.adamw(**OPTIONS)
    for keep_clock in (True, False):
        assert difference(gradtx.restart(adamw, STEPS + 1, keep_clock), adamw) < TOLERANCE


def test_a_restart_inside_a_restart_starts_again_with_it():
    inner = gradtx.restart(gradtx.trace(1.0), every=4)
    step, seen = Transformed(gradtx.restart(inner, every=3)), []
    for _ in range(8):
        seen.append(step({"w": torch.ones(1)}, {"w": torch.zeros(1)})["w"].item())
    # steps 3 and 6 of the outer clock; the inner one never counts to 4
    assert seen == [1, 2, 1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("keep_clock", [True, False])
def test_a_torch_optimizer_restarts_too(keep_clock):
    tx = gradtx.restart(gradtx.adamw(**OPTIONS), 5, keep_clock)
    weights = {name: torch.nn.Parameter(p) for name, p in problem().items()}
    optimizer = gradtx.as_optimizer(tx, list(weights.items()))
    params, step = problem(), Transformed(tx)
    for t in range(1, 13):
        for name, g in gradients({name: p.detach() for name, p in weights.items()}, t).items():
            weights[name].grad = g
        optimizer.step()
        updates = step(gradients(params, t), params)
        params = {name: p + updates[name] for name, p in params.items()}
    for name, p in params.items():
        torch.testing.assert_close(weights[name].detach(), p, rtol=1e-12, atol=1e-14)


def test_every_step_may_be_a_restart():
    assert difference(gradtx.restart(gradtx.trace(0.9), 1), gradtx.chain(), rate=-0.02) < TOLERANCE


def test_something_else_than_a_transformation_is_an_error():
    with pytest.raises(TypeError, match="restart: tx"):
        gradtx.restart(torch.optim.Adam, 3)


def test_a_rule_on_whole_trees_inside_is_an_error():
    tx = gradtx.restart(gradtx.correct_variance(exact=True), 3)
    params = {"w": torch.zeros(1)}
    with pytest.raises(TypeError, match="correct_variance_exactly: processes whole trees"):
        tx.update(params, tx.init(params), params, grad_fn=lambda at: at)


def test_rules_for_whole_trees_inside_are_refused_at_init():
    tx = gradtx.restart(gradtx.line_search(gradtx.sgd()), 4)
    with pytest.raises(TypeError, match="line_search: processes whole trees, whose state a restart cannot reset"):
        tx.init({"w": torch.ones(2)})
    with pytest.raises(TypeError, match="line_search: processes whole trees, whose state a restart cannot reset"):
        gradtx.as_optimizer(tx, [torch.nn.Parameter(torch.ones(2))])


RISING = gradtx.Schedule(lambda step: 0.1 * (step + 1))
SCHEDULED = {
    "restart": lambda keep: gradtx.restart(gradtx.sgd(lr=RISING), 3, keep_clock=keep),
    "in accumulate": lambda keep: gradtx.accumulate(gradtx.restart(gradtx.sgd(lr=RISING), 3, keep_clock=keep), 2),
    "around accumulate": lambda keep: gradtx.restart(gradtx.accumulate(gradtx.sgd(lr=RISING), 2), 3, keep_clock=keep),
    "in restart": lambda keep: gradtx.restart(gradtx.restart(gradtx.sgd(lr=RISING), 2), 5, keep_clock=keep),
}


@pytest.mark.parametrize("keep_clock", [False, True])
@pytest.mark.parametrize("make", SCHEDULED.values(), ids=list(SCHEDULED))
def test_a_group_shows_the_rate_of_the_next_step_also_after_resuming(make, keep_clock):
    def steps(resume_at):
        param = torch.nn.Parameter(torch.zeros(()))
        optimizer = gradtx.as_optimizer(make(keep_clock), [param])
        rates = []
        for step in range(12):
            if step == resume_at:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = gradtx.as_optimizer(make(keep_clock), [param])
                optimizer.load_state_dict(saved)
            shown, before = optimizer.param_groups[0]["lr"], param.item()
            param.grad = torch.ones(())
            optimizer.step()
            rates.append((shown, before - param.item()))
        return rates

    rates = steps(resume_at=None)
    for shown, used in rates:
        assert used == pytest.approx(shown, rel=1e-5) or used == 0  # a call that only accumulates
    for resume_at in range(1, 7):
        assert steps(resume_at) == rates
