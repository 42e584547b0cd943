import math

import pytest
import torch

import gradtx
from tests.references import BETA, Loop, follows, named, problem

RISING = gradtx.linear_schedule(10.0, start_factor=0.5, total_iters=25)
ROUNDING = 1e-12
# M-SVAG's first step subtracts equal numbers and divides by 1e-4.
CANCELLED = 1e-11
loop = Loop


def a2grad(s, t, g, p, variant="uni", beta=10.0, lips=10.0, rho=0.5):
    k = t - 1
    x = p if k == 0 else s.x
    s.mean = (k * s.mean + g) / (k + 1)
    delta = g - s.mean
    gamma, alpha, following = 2 * lips / (k + 1), 2 / (k + 2), 2 / (k + 3)
    if variant == "uni":
        s.v = s.v + delta**2
        h = s.v.sqrt()
    elif variant == "inc":
        s.v = (k / (k + 1)) ** 2 * s.v + delta**2
        h = s.v.sqrt()
    else:
        s.w = delta**2 if k == 0 else rho * s.w + (1 - rho) * delta**2
        s.v = torch.maximum(s.v + 0 * g, s.w)
        h = ((k + 1) * s.v).sqrt()
    c = 1 / (gamma + beta * h)
    s.x = x - c * g
    return -following * p + following * s.x - (1 - following) * alpha * c * g


OPTIONS = [
    (gradtx.a2grad, a2grad, {}),
    (gradtx.a2grad, a2grad, {"beta": 3.0, "lips": 2.0}),
    (gradtx.a2grad, a2grad, {"beta": 0.0, "lips": 2.0}),
    (gradtx.a2grad, a2grad, {"variant": "inc"}),
    (gradtx.a2grad, a2grad, {"variant": "inc", "beta": 30.0, "lips": 2.0}),
    (gradtx.a2grad, a2grad, {"variant": "exp"}),
    (gradtx.a2grad, a2grad, {"variant": "exp", "beta": 3.0, "lips": 2.0, "rho": 0.8}),
    (gradtx.a2grad, a2grad, {"variant": "exp", "beta": RISING, "lips": RISING, "rho": BETA}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_updates_follow_the_loop(alias, rule, options):
    follows(alias(**options), loop(rule, **options), tolerance=ROUNDING)


@pytest.mark.slow
def test_a2grad_works_as_a_torch_optimizer_although_it_has_no_learning_rate():
    weights = [torch.nn.Parameter(x) for x in problem().values()]
    optimizer = gradtx.optim.A2Grad(weights, lips=2.0)
    before = math.sqrt(sum(w.square().sum().item() for w in weights))
    for _ in range(5):
        optimizer.zero_grad()
        sum(w.square().sum() for w in weights).backward()
        optimizer.step()
    assert math.sqrt(sum(w.square().sum().item() for w in weights)) < before


@pytest.mark.parametrize(
    ("variant", "slots"),
    [("uni", {"x", "avg_grad", "v"}), ("inc", {"x", "avg_grad", "v"}), ("exp", {"x", "avg_grad", "v", "v_tilde"})],
)
def test_a2grad_starts_from_the_parameters(variant, slots):
    kept = gradtx.scale_by_a2grad(variant).init(problem())["scale_by_a2grad"]
    assert kept.keys() == slots
    assert all(torch.equal(kept["x"][name], param) for name, param in problem().items())


def test_an_unknown_variant_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"^scale_by_a2grad: variant must be 'uni', 'inc' or 'exp', got 'both'$"):
        gradtx.scale_by_a2grad("both")
