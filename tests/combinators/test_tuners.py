"""Mechanic and TRAC against loops over all leaves as one vector."""

import math

import mpmath
import pytest
import torch

import gradtx
from gradtx.combinators.tuners import erfi
from tests.references import Transformed, WholeLoop, follows_along, gradients, named, problem

RISING = gradtx.linear_schedule(0.9, start_factor=0.5, total_iters=20)
FEW = (0.5, 0.9)
BETAS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
# Differences of weights, divided by a scale of 1e-8 at first: 1e-16 / 1e-8, times that scale again.
CLOSE = 1e-10


def sgd(s, t, g, p):
    return -0.5 * g


def adam(s, t, g, p):
    s.mean, s.square = 0.9 * s.mean + 0.1 * g, 0.999 * s.square + 0.001 * g**2
    return -0.1 * ((s.mean / (1 - 0.9**t)) / ((s.square / (1 - 0.999**t)).sqrt() + 1e-8) + 0.2 * p)


INNER = {sgd: gradtx.sgd(lr=0.5), adam: gradtx.adamw(lr=0.1, weight_decay=0.2)}


def mechanize(s, t, g, p, tx, s_init=1e-8, s_decay=1e-2, betas=BETAS, eps=1e-8):
    n = len(betas)
    if t == 1:
        s.p0, s.s, s.top, s.v, s.r = p, [0.0] * n, [1e-6] * n, [0.0] * n, [0.0] * n
    u, S = tx(s, t, g, p), sum(s.s)
    way = (p - s.p0) / (S + eps)
    h = (way * (g + s_decay * S * g.norm() / (p.norm() + eps) * p)).sum().item()
    for i, b in enumerate(betas):
        s.top[i] = max(b * s.top[i], abs(h))
        s.v[i] = b**2 * s.v[i] + h**2
        s.r[i] = max(0.0, b * s.r[i] - s.s[i] * h)
        s.s[i] = (s_init / n * s.top[i] + s.r[i]) / (math.sqrt(s.v[i]) + eps)
    s.highest = max(s.highest, sum(s.s))
    return s.p0 + (way + u) * sum(s.s)


def trac(s, t, g, p, tx, betas=BETAS, s_prev=1e-8, eps=1e-8):
    n = len(betas)
    if t == 1:
        s.p0, s.s, s.v, s.sigma = p, [0.0] * n, [0.0] * n, [1e-8] * n
    u, S = tx(s, t, g, p), sum(s.s)
    way = (p - s.p0) / (S + eps)
    h = (way * g).sum().item()
    unit = s_prev / float(mpmath.erfi(mpmath.sqrt(0.5)))
    for i, b in enumerate(betas):
        s.v[i] = b**2 * s.v[i] + h**2
        s.sigma[i] = b * s.sigma[i] - h
        s.s[i] = unit * float(mpmath.erfi(s.sigma[i] / (math.sqrt(2 * s.v[i]) + eps)))
    s.highest = max(s.highest, sum(s.s))
    return s.p0 + (way + u) * max(sum(s.s), 0.0)


OPTIONS = [
    (gradtx.mechanize, mechanize, {}),
    (gradtx.mechanize, mechanize, {"s_init": 0.1, "s_decay": 0.0}),
    (gradtx.mechanize, mechanize, {"s_init": 0.1, "s_decay": 0.3, "betas": FEW, "eps": 1e-4}),
    (gradtx.mechanize, mechanize, {"s_init": 0.1, "s_decay": RISING, "betas": (RISING, 0.99, 0.5)}),
    (gradtx.trac, trac, {}),
    (gradtx.trac, trac, {"s_prev": 0.1, "betas": FEW, "eps": 1e-4}),
    (gradtx.trac, trac, {"s_prev": RISING, "betas": (RISING, 0.99, 0.5)}),
]


@pytest.mark.parametrize("base", INNER, ids=named)
@pytest.mark.parametrize(("make", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(make, rule, options, base):
    reference = WholeLoop(rule, tx=base, **options)
    follows_along(make(INNER[base], **options), reference, tolerance=CLOSE)
    assert reference.slots.highest > 0, "the scale was 0 at all times, so nothing was tested"


@pytest.mark.parametrize("x", [0.0, 1e-12, 1e-3, 0.1, 2**-0.5, 1.0, 2.5, 5.0, 10.0, 26.0, -3.3])
def test_erfi_is_exact(x):
    expected = float(mpmath.erfi(x))
    assert erfi(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-15, abs=0.0)


@pytest.mark.parametrize("make", [gradtx.mechanize, gradtx.trac], ids=named)
def test_zero_gradients_leave_the_weights_where_they_are(make):
    step, params = Transformed(make(gradtx.adam())), problem()
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    for _ in range(3):
        assert not any(update.any() for update in step(zeros, params).values())


@pytest.mark.parametrize("make", [gradtx.mechanize, gradtx.trac], ids=named)
def test_the_gradient_is_what_arrives_at_the_combinator(make):
    params = problem()
    tx, other = gradtx.chain(gradtx.scale(3.0), make(gradtx.sgd(lr=1.0))), make(gradtx.sgd(lr=1.0))
    state, other_state = tx.init(params), other.init(params)
    for t in range(1, 6):
        grads = gradients(params, t)
        updates, state = tx.update(grads, state, params)
        expected, other_state = other.update({name: 3.0 * g for name, g in grads.items()}, other_state, params)
        assert all(torch.equal(updates[name], expected[name]) for name in params)
        params = gradtx.apply_updates(params, updates)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch.func.jvp's
@pytest.mark.parametrize(("make", "first_scale"), [(gradtx.mechanize, "s_init"), (gradtx.trac, "s_prev")])
@pytest.mark.parametrize("options", [{}, {"betas": FEW}])
def test_the_derivative_of_a_run_by_its_first_weights_is_the_same_in_both_modes(make, first_scale, options):
    """Forward mode is exact: the tangents of the weights and of their initial values start out equal."""
    tx, start = make(gradtx.sgd(lr=0.5), **options, **{first_scale: 0.01}), problem()

    def final(distance):
        params = {name: p + distance * (1 + p.sin()) for name, p in start.items()}
        state = tx.init(params)
        for t in range(1, 6):
            updates, state = tx.update({name: (t * p).sin() for name, p in params.items()}, state, params)
            params = gradtx.apply_updates(params, updates)
        return sum(p.square().sum() for p in params.values())

    zero = torch.zeros((), dtype=torch.float64)
    _, forward = torch.func.jvp(final, (zero,), (torch.ones_like(zero),))
    torch.testing.assert_close(torch.func.grad(final)(zero), forward, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [gradtx.mechanize, gradtx.trac], ids=named)
def test_as_an_optimizer_it_takes_the_same_steps_and_keeps_its_numbers(make):
    expected = problem()
    tx = make(gradtx.adamw(lr=0.1, weight_decay=0.2), betas=FEW)
    params = [torch.nn.Parameter(p.clone()) for p in expected.values()]
    optimizer, state = gradtx.as_optimizer(tx, params), tx.init(expected)
    for t in range(1, 6):
        grads = gradients(expected, t)
        for p, g in zip(params, grads.values(), strict=True):
            p.grad = g
        optimizer.step()
        updates, state = tx.update(grads, state, expected)
        expected = gradtx.apply_updates(expected, updates)
    for p, q in zip(params, expected.values(), strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=1e-14)
    assert {"s_0", "s_1", "param_init", "exp_avg"} <= {key.split(".")[-1] for key in optimizer.state[params[0]]}
