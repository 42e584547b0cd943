import copy

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import PUBLISHED, STEPS, gradients

OPTIONS = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}


class Zeroed(ref.Published):
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
    ref.weights_follow(tx, Zeroed(every, keep_clock), tolerance=PUBLISHED)


def test_the_first_stretch_is_one_step_shorter():
    tx = gradtx.restart(gradtx.trace(1.0), every=4)
    step, seen = ref.Transformed(tx), []
    for _ in range(9):
        seen.append(step({"w": torch.ones(1)}, {"w": torch.zeros(1)})["w"].item())
    assert seen == [1, 2, 3, 1, 2, 3, 4, 1, 2]


def test_slots_that_depend_on_the_parameters_start_at_the_present_ones():
    tx = gradtx.restart(gradtx.regenerate_towards_init(1.0), every=3)
    step, updates = ref.Transformed(tx), []
    for value in (5.0, 6.0, 7.0, 9.0):  # the first was the parameter at init, the third is that of the restart
        updates.append(step({"w": torch.zeros(1)}, {"w": torch.tensor([value])})["w"].item())
    assert updates == [0.0, 1.0, 0.0, 2.0]


def test_shared_values_start_again():
    tx = gradtx.restart(gradtx.clip_by_zscore(warmup_steps=10, max_norm=None), every=3)
    step, counts = ref.Transformed(tx), []
    for _ in range(7):
        step({"w": torch.ones(1)}, {"w": torch.zeros(1)})
        counts.append(int(step.state["restart"]["clip_by_zscore"]["count"]))
    assert counts == [1, 2, 1, 2, 3, 1, 2]


@pytest.mark.parametrize(("keep_clock", "expected"), [(False, [0, 1, 0, 1, 2, 0]), (True, [0, 1, 2, 3, 4, 5])])
def test_schedules_inside_follow_the_clock_inside(keep_clock, expected):
    tx = gradtx.restart(gradtx.scale(gradtx.Schedule(lambda step: 1.0 * step)), 3, keep_clock)
    step, seen = ref.Transformed(tx), []
    for _ in expected:
        seen.append(step({"w": torch.ones(1)}, {"w": torch.zeros(1)})["w"].item())
    assert seen == expected


def test_a_period_without_end_changes_nothing():
    adamw = gradtx.adamw(**OPTIONS)
    for keep_clock in (True, False):
        ref.follows(gradtx.restart(adamw, STEPS + 1, keep_clock), adamw)


def test_a_restart_inside_a_restart_starts_again_with_it():
    inner = gradtx.restart(gradtx.trace(1.0), every=4)
    step, seen = ref.Transformed(gradtx.restart(inner, every=3)), []
    for _ in range(8):
        seen.append(step({"w": torch.ones(1)}, {"w": torch.zeros(1)})["w"].item())
    # steps 3 and 6 of the outer clock; the inner one never counts to 4
    assert seen == [1, 2, 1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("keep_clock", [True, False])
def test_a_torch_optimizer_restarts_too(keep_clock):
    tx = gradtx.restart(gradtx.adamw(**OPTIONS), 5, keep_clock)
    weights = {name: torch.nn.Parameter(p) for name, p in ref.problem().items()}
    optimizer = gradtx.as_optimizer(tx, list(weights.items()))
    params, step = ref.problem(), ref.Transformed(tx)
    for t in range(1, 13):
        for name, g in gradients({name: p.detach() for name, p in weights.items()}, t).items():
            weights[name].grad = g
        optimizer.step()
        updates = step(gradients(params, t), params)
        params = {name: p + updates[name] for name, p in params.items()}
    for name, p in params.items():
        torch.testing.assert_close(weights[name].detach(), p, rtol=1e-12, atol=1e-14)


def test_stochastic_rounding_of_slots_starts_again_with_the_key_of_each_leaf():
    tx = gradtx.restart(gradtx.trace(0.9), 3)
    tx = gradtx.chain(gradtx.with_state_dtype(tx, "bfloat16:stochastic", min_size=0), gradtx.scale(-0.1))
    params = {name: torch.nn.Parameter(torch.zeros(40)) for name in "ab"}
    optimizer = gradtx.as_optimizer(tx, params.items())
    alone = {name: {name: torch.zeros(40)} for name in "ab"}
    states = {name: tx.init(alone[name]) for name in "ab"}
    for i in range(7):
        grad = torch.randn(40, generator=torch.Generator().manual_seed(i))
        for param in params.values():
            param.grad = grad.clone()
        optimizer.step()
        for name, param in params.items():
            _, states[name] = tx.update({name: grad}, states[name], alone[name])
            for slot, value in states[name]["restart"]["trace"].items():
                assert torch.equal(optimizer.state[param][slot], value[name])
    keys = [optimizer.state[param]["momentum_buffer.key"] for param in params.values()]
    assert keys[0] != keys[1]


def test_every_step_may_be_a_restart():
    ref.follows(gradtx.restart(gradtx.trace(0.9), 1), gradtx.chain(), rate=-0.02)


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


@gradtx.per_tensor(shared={"mean": 3.0})
def _shared():
    def update(update, state, param, ctx):
        sums = yield {"square": update.square().sum()}
        mean = 0.8 * state["mean"] + 0.2 * sums["square"]
        yield update / mean.sqrt(), {"mean": mean}

    return (lambda param: {}), update


def _gradient(t):
    return {"w": torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(t))}


@gradtx.combinator
def _every_third(tx: gradtx.GradientTransformation):
    """Like `accumulate`, without gradients of other calls, so that it works inside blocks."""

    def ticks(values, sums):
        calls = (values["calls"] + 1) % 3
        return calls == 0, {"calls": calls}

    return gradtx.Frame(tx, clock=gradtx.InnerClock(ticks, {"calls": 0}))


CLOCKS = {
    "accumulate": lambda tx: gradtx.accumulate(tx, 3),
    "blocks": lambda tx: gradtx.blocks(_every_third(tx), sizes=(1, 2)),
    "rotated": gradtx.rotated,
}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("keep_clock", [False, True])
def test_a_restart_in_a_call_that_an_inner_clock_does_not_count_is_not_lost(clock, keep_clock):
    """Those at calls 7 and 14 are in the middle of cycles, and `rotated` skips the first call after a restart."""
    if clock == "rotated" and keep_clock:
        return  # its first step is that of the clock outside
    inside = CLOCKS[clock](gradtx.chain(gradtx.scale_by_adam_hat(), _shared()))
    tx, params = gradtx.restart(inside, every=7, keep_clock=keep_clock), _gradient(0)
    state, expected_state = tx.init(params), inside.init(params)
    for t in range(1, 22):
        if t % 7 == 0:
            expected_state = inside.init(params)
        updates, state = tx.update(_gradient(t), state, params)
        expected, expected_state = inside.update(_gradient(t), expected_state, params)
        torch.testing.assert_close(updates, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keep_clock", [False, True])
def test_inside_rotated_slots_and_shared_values_restart_in_the_same_step(keep_clock):
    """The inner clock is one step behind, and vectors are not rotated."""
    inner = gradtx.restart(gradtx.chain(gradtx.scale_by_adam_hat(), _shared()), every=5, keep_clock=keep_clock)
    tx, params = gradtx.rotated(inner), {"w": torch.zeros(6, dtype=torch.float64)}
    gradients = [{"w": _gradient(t)["w"].flatten()} for t in range(12)]
    _, state = tx.update(gradients[0], tx.init(params))
    expected_state = inner.init(params)
    for gradient in gradients[1:]:
        updates, state = tx.update(gradient, state)
        expected, expected_state = inner.update(gradient, expected_state)
        torch.testing.assert_close(updates, expected, rtol=1e-12, atol=1e-12)


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
