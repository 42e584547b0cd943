import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, STEPS


class ZClip:
    """The authors' loop: the norms of the warm-up are kept; `outliers` has the steps that were cut."""

    def __init__(
        self, z_thresh=2.5, alpha=0.97, warmup_steps=25, max_norm=1.0, eps=1e-6, mode="zscore", clip_to="scaled"
    ):
        self.z, self.a, self.W, self.top, self.eps = z_thresh, alpha, warmup_steps, max_norm, eps
        self.mode, self.clip_to = mode, clip_to
        self.norms, self.outliers, self.t = [], [], 0

    def level(self, n):
        sigma = math.sqrt(self.var)
        if self.mode == "percentile":
            return min(n, self.mean + self.z * sigma)
        z = (n - self.mean) / (sigma + self.eps)
        if z <= self.z:
            return n
        return self.mean if self.clip_to == "mean" else self.mean + self.z**2 * sigma / z

    def __call__(self, grads, params):
        self.t += 1
        n = ref.global_norm(grads)
        level = n if self.t <= self.W else self.level(n)
        if level < n:
            self.outliers.append(self.t)
        bound = level if self.top is None else min(level, self.top)
        scale = bound / (n + 1e-6) if n > bound else 1.0
        if self.t <= self.W:
            self.norms.append(n)
            if self.t == self.W:
                self.mean = sum(self.norms) / self.W
                self.var = sum((x - self.mean) ** 2 for x in self.norms) / self.W
        else:
            self.mean = self.a * self.mean + (1 - self.a) * level
            self.var = self.a * self.var + (1 - self.a) * (level - self.mean) ** 2
        return {name: scale * g for name, g in grads.items()}


Z_OPTIONS = [
    {},
    {"warmup_steps": 5, "z_thresh": 0.5},
    {"warmup_steps": 5, "z_thresh": 0.5, "max_norm": None},
    {"warmup_steps": 3, "z_thresh": 0.4, "max_norm": None, "alpha": 0.5, "eps": 0.01},
    {"warmup_steps": 5, "z_thresh": 0.5, "max_norm": None, "clip_to": "mean"},
    {"warmup_steps": 5, "z_thresh": 0.5, "max_norm": None, "mode": "percentile"},
    {"warmup_steps": 1, "z_thresh": 1.0, "max_norm": 0.7, "mode": "percentile", "alpha": 0.0},
    {"warmup_steps": 1, "z_thresh": 1.0, "max_norm": None, "eps": 1e-3},
    {"warmup_steps": 40, "max_norm": 0.3},
]


def spiky(step):
    """The stepper on gradients of which every seventh is ten times as long."""
    t = 0

    def turned(grads, params):
        nonlocal t
        t += 1
        return step({name: (10 if t % 7 == 0 else 1) * g for name, g in grads.items()}, params)

    return turned


@pytest.mark.parametrize("options", Z_OPTIONS, ids=str)
def test_clip_by_zscore_follows_the_loop(options):
    reference = ZClip(**options)
    step = ref.Transformed(gradtx.clip_by_zscore(**options))
    ref.follows(spiky(step), spiky(reference), rate=-0.1)
    assert len(reference.outliers) >= 1 or options.get("warmup_steps", 25) >= 25
    if reference.t > reference.W:
        state = step.state["clip_by_zscore"]
        assert state["mean"].item() == pytest.approx(reference.mean, rel=1e-10)
        assert state["var"].item() == pytest.approx(reference.var, rel=1e-10)


def test_clip_by_zscore_takes_schedules():
    tx = gradtx.clip_by_zscore(alpha=BETA, warmup_steps=3, max_norm=BETA)
    step, params = ref.Transformed(tx), ref.problem()
    for t in range(1, STEPS + 1):
        updates = step(ref.gradients(params, t), params)
    assert all(update.isfinite().all() for update in updates.values())


def test_the_statistics_count_steps_of_the_whole_tree():
    # A parameter that had no gradient during the warm-up is clipped as the others.
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    tx = gradtx.chain(gradtx.clip_by_zscore(warmup_steps=2, max_norm=None), gradtx.sgd(lr=1.0))
    optimizer = gradtx.as_optimizer(tx, weights)
    for step, grad in enumerate((1.0, 3.0, 100.0)):
        weights[0].grad = torch.tensor([grad])
        weights[1].grad = torch.tensor([0.0]) if step == 2 else None
        optimizer.step()
    assert weights[0].item() == pytest.approx(-1 - 3 - (2 + 2.5**2 / 98), rel=1e-4)


def history(s, t, g, p, gammas=(0.7, 0.9), eps=1e-8):
    g1, g2 = gammas
    n = g.norm().item()
    s.n1 = g1 * s.n1 + (1 - g1) * n
    s.n2 = g2 * s.n2 + (1 - g2) * n**2
    return g / n * (s.n1 / (1 - g1**t)) / (math.sqrt(s.n2 / (1 - g2**t)) + eps)


@pytest.mark.parametrize(
    "options", [{}, {"gammas": (0.9, 0.5), "eps": 0.1}, {"gammas": (0.0, 0.0)}, {"gammas": (BETA, BETA)}], ids=str
)
def test_normalize_by_norm_history_follows_the_loop(options):
    tx = gradtx.normalize_by_norm_history(**options)
    ref.follows(tx, ref.Loop(history, **options), rate=-0.02)
    assert ref.arguments(gradtx.normalize_by_norm_history) == ref.arguments(history)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e15])
def test_an_extreme_leaf_stays_finite(scale):
    tx = gradtx.chain(gradtx.clip_to_history(warmup_steps=2), gradtx.normalize_by_norm_history())
    step = ref.Transformed(tx)
    for _ in range(4):
        grads = {"w": scale * torch.ones(3), "b": torch.ones(2)}
        updates = step(grads, grads)
        assert all(update.isfinite().all() for update in updates.values())
    if scale == 0:
        assert updates["w"].tolist() == [0.0, 0.0, 0.0]
