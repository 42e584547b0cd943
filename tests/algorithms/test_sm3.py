import itertools

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, RATE, Loop, Transformed, finite_without_gradient, first_update, gradients, problem


def sm3(s, t, g, p, lr=0.1, momentum=0.0, beta=0.0, eps=1e-30):
    if t == 1:
        s.a = [torch.zeros(n, dtype=g.dtype) for n in g.shape] or [torch.zeros((), dtype=g.dtype)]
    u, c = torch.empty_like(g), torch.empty_like(g)
    for at in (
        torch.cartesian_prod(*map(torch.arange, g.shape)).reshape(-1, max(g.ndim, 1)).tolist() if g.ndim else [()]
    ):
        at = tuple(at)
        least = min(a[i] for a, i in zip(s.a, at, strict=True)) if at else s.a[0]
        c[at] = least + g[at] ** 2 if beta == 0 else beta * least + (1 - beta) * g[at] ** 2
        u[at] = g[at] / (c[at] + eps).sqrt()
    for i, old in enumerate(s.a):
        new = c.movedim(i, 0).flatten(1).max(dim=1).values if g.ndim > 1 else c.clone()
        s.a[i] = torch.maximum(old, new) if beta > 0 else new
    s.m = momentum * s.m + (1 - momentum) * u
    return p - lr * s.m


OPTIONS = [
    (gradtx.sm3, sm3, {}),
    (gradtx.sm3, sm3, {"lr": 0.03, "momentum": 0.8, "eps": 0.1}),
    (gradtx.sm3, sm3, {"lr": 0.03, "beta": 0.6}),
    (gradtx.sm3, sm3, {"lr": RATE, "momentum": BETA, "beta": BETA}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


def covers(s, t, g, p, beta=0.0, eps=1e-30):
    dims = range(max(g.ndim, 1))
    entries = list(itertools.product(*map(range, g.shape)))
    if t == 1:
        s.a = {(i, at[i] if at else 0): 0.0 for i in dims for at in entries}
    c = {}
    for at in entries:
        least = min(s.a[i, at[i] if at else 0] for i in dims)
        square = g[at].item() ** 2
        c[at] = beta * least + (1 - beta) * square if beta > 0 else least + square
    for i, k in s.a:
        largest = max(c[at] for at in entries if not at or at[i] == k)
        s.a[i, k] = max(largest, s.a[i, k]) if beta > 0 else largest
    return torch.tensor([g[at].item() / (c[at] + eps) ** 0.5 for at in entries], dtype=g.dtype).reshape(g.shape)


def test_the_maxima_follow_the_loop():
    loop, step, params = Loop(covers, beta=0.6), Transformed(gradtx.scale_by_sm3(beta=0.6)), problem()
    for t in range(1, 10):
        grads = gradients(params, t)
        loop(grads, params)
        step(grads, params)
    for (i, k), expected in loop.slots["kernel"].a.items():
        kept = step.state["scale_by_sm3"][f"accumulator_{i}"]["kernel"]
        assert kept.flatten()[k].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), [()]), ((5,), [(5,)]), ((3, 4), [(3, 1), (1, 4)]), ((2, 3, 4), [(2, 1, 1), (1, 3, 1), (1, 1, 4)])],
    ids=str,
)
def test_there_is_one_vector_a_dimension(shape, expected):
    state = gradtx.scale_by_sm3().init({"w": torch.ones(shape)})["scale_by_sm3"]
    assert [tuple(state[f"accumulator_{i}"]["w"].shape) for i in range(len(state))] == expected


def test_zero_gradients_give_zero_and_not_nan():
    assert first_update(gradtx.scale_by_sm3(), [[0.0, 0.0]]) == [[0.0, 0.0]]
    assert finite_without_gradient(gradtx.scale_by_sm3())
