import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import LONG, problem

FADING = gradtx.linear_schedule(1.0, start_factor=1.0, end_factor=0.2, total_iters=25)
RISING = gradtx.linear_schedule(0.9, start_factor=0.5, total_iters=20)
# The same sums in other orders, over 32 steps, in estimates that are differences.
CLOSE = 1e-13


# ALI-G.


def alig(s, t, g, p, f, max_lr=None, momentum=0.0, adjusted_momentum=False, eps=1e-5, max_norm=None):
    gamma = f / (g.norm() ** 2 + eps)
    gamma = gamma if max_lr is None else min(gamma, max_lr)
    if adjusted_momentum:
        s.b = momentum * s.b - g
        p = p + gamma * (-g + momentum * s.b)
    else:
        s.b = momentum * s.b - gamma * g
        p = p - gamma * g + momentum * s.b
    s.clipped = s.clipped + (max_lr is not None and gamma == max_lr)
    if max_norm is not None and p.norm() > max_norm:
        s.projected = s.projected + 1
        p = p * max_norm / p.norm()
    return p


def loss(t):
    return 0.02 + 0.015 * math.sin(5.0 * t)  # any positive number: rules only see its value


class Valued:
    """A transformation that is handed the loss."""

    def __init__(self, tx):
        self.tx, self.state, self.t = tx, None, 0

    def __call__(self, grads, params):
        self.t += 1
        state = self.tx.init(params) if self.state is None else self.state
        updates, self.state = self.tx.update(grads, state, params, value=loss(self.t))
        return updates


class ValuedLoop(ref.WholeLoop):
    def __call__(self, grads, params):
        self.options["f"] = loss(self.t + 1)
        return super().__call__(grads, params)


class ValuedOptimizer(ref.Published):
    """A torch optimizer that takes the loss from a closure."""

    t = 0

    def advance(self):
        self.t += 1
        self.optimizer.step(lambda: loss(self.t))


ALIG = [
    {},
    {"momentum": 0.8, "max_lr": 0.2, "eps": 0.1},
    {"momentum": 0.8, "max_lr": 0.2, "adjusted_momentum": True},
    {"max_lr": FADING, "momentum": RISING, "max_norm": 6.0},
    {"max_norm": 5.0, "momentum": 0.5, "adjusted_momentum": True, "max_lr": 0.1},
]


@pytest.mark.parametrize("options", ALIG, ids=str)
def test_alig_follows_the_loop(options):
    reference = ValuedLoop(alig, **options)
    ref.follows_along(Valued(gradtx.alig(**options)), reference, steps=LONG, tolerance=CLOSE)
    seen = reference.slots
    assert "max_lr" not in options or 0 < seen.clipped < LONG or options["max_lr"] == 0.1, seen.clipped
    assert "max_norm" not in options or seen.projected > 0


def test_alig_in_an_optimizer_shows_its_largest_rate_as_lr():
    params = [torch.nn.Parameter(p) for p in ref.problem().values()]
    optimizer = gradtx.optim.AliG(params, max_lr=0.2)
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert "max_lr" not in optimizer.param_groups[0]
    optimizer.param_groups[0]["lr"] = 0.0
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step(lambda: torch.tensor(1.0))
    assert all(torch.equal(param, start) for param, start in zip(params, ref.problem().values(), strict=True))


def test_alig_in_an_optimizer_follows_the_loop_also_under_a_scheduler():
    def make(params):
        optimizer = gradtx.optim.AliG(params, max_lr=0.5, momentum=0.8, max_norm=6.0)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer

    falling = gradtx.Schedule(lambda t: 0.5 * 0.9**t)
    reference = ValuedLoop(alig, max_lr=falling, momentum=0.8, max_norm=6.0)
    ref.follows_along(ValuedOptimizer(make), reference, tolerance=CLOSE)


def test_alig_without_a_bound_shows_none():
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = gradtx.optim.AliG([param], eps=0.0)
    assert optimizer.param_groups[0]["lr"] is None
    param.grad = param.detach().clone()
    optimizer.step(lambda: torch.tensor(12.5))
    torch.testing.assert_close(param.detach(), torch.tensor([1.5, 2.0]))
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step(lambda: torch.tensor(12.5))
    torch.testing.assert_close(param.detach(), torch.tensor([1.2, 1.6]))


def test_alig_without_the_loss_says_what_to_pass():
    params = ref.problem()
    tx = gradtx.alig()
    with pytest.raises(ValueError, match=r"alig needs value: call update\(updates, state, params, value="):
        tx.update(params, tx.init(params), params)


def test_the_norm_is_that_of_the_gradient_before_the_chain():
    params = {"w": torch.tensor([3.0, 4.0])}
    tx = gradtx.chain(gradtx.scale(10.0), gradtx.scale_by_polyak(eps=0.0))
    updates, _ = tx.update(params, tx.init(params), params, value=5.0)
    torch.testing.assert_close(updates["w"], torch.tensor([-6.0, -8.0]))


def test_a_gradient_of_zero_gives_no_step_even_without_eps():
    params = {"w": torch.zeros(2)}
    tx = gradtx.scale_by_polyak(eps=0.0)
    assert not tx.update(params, tx.init(params), params, value=2.0)[0]["w"].any()


def test_a_loss_in_float64_counts_with_all_its_digits():
    params = {"w": torch.ones(1, dtype=torch.float64)}
    tx = gradtx.scale_by_polyak(eps=0.0)
    for value in (1 / 3, torch.tensor(1 / 3, dtype=torch.float64)):
        assert tx.update(params, tx.init(params), params, value=value)[0]["w"].item() == -1 / 3


def test_missing_params_and_a_missing_loss_are_errors():
    params = problem()
    with pytest.raises(ValueError, match="project_l2_ball needs params"):
        gradtx.project_l2_ball(1.0).update(params, gradtx.project_l2_ball(1.0).init(params))
    with pytest.raises(ValueError, match="scale_by_polyak needs value"):
        gradtx.scale_by_polyak().update(params, gradtx.scale_by_polyak().init(params), params)
