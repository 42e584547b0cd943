import contextlib
import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import (
    BETA,
    STEPS,
    Loop,
    WeightsLoop,
    arguments,
    first_update,
    follows,
    named,
    problem,
    run,
    unit_norm,
)


def normalized(s, t, g, p, eps=1e-8):
    return g / (g.std(correction=1) + eps) if g.numel() > 2 else g


@pytest.mark.parametrize("options", [{}, {"eps": 0.1}, {"eps": gradtx.linear_schedule(0.3)}], ids=str)
def test_normalize_by_std_follows_the_loop(options):
    follows(gradtx.normalize_by_std(**options), Loop(normalized, **options), rate=-0.02)


FALLING = gradtx.linear_schedule(0.5, start_factor=1.0, end_factor=0.01, total_iters=20)


def clipped_by_value(s, t, g, p, max_value):
    s.seen.update((g.abs() > max_value).flatten().tolist())
    return g.clamp(-max_value, max_value)


def clipped_by_norm(s, t, g, p, max_norm):
    s.seen.add(bool(g.norm() > max_norm))
    return g * min(1.0, max_norm / g.norm().item())


@pytest.mark.parametrize("bound", [0.1, FALLING], ids=str)
@pytest.mark.parametrize(
    ("make", "rule", "argument"),
    [(gradtx.clip_by_value, clipped_by_value, "max_value"), (gradtx.clip_by_norm, clipped_by_norm, "max_norm")],
)
def test_a_clip_of_single_leaves_follows_the_loop(make, rule, argument, bound):
    reference = Loop(rule, **{argument: bound})
    follows(make(bound), reference, rate=-0.2)
    assert reference.seen == {True, False}


class GlobalNorm:
    """The rule as a plain function of the whole tree."""

    def __init__(self, max_norm, eps):
        self.max_norm, self.eps, self.seen = max_norm, eps, set()

    def __call__(self, grads, params):
        norm = math.sqrt(sum((g**2).sum().item() for g in grads.values()))
        self.seen.add(norm > self.max_norm)
        return {name: g * min(1.0, self.max_norm / (norm + self.eps)) for name, g in grads.items()}


@pytest.mark.parametrize(("max_norm", "eps"), [(0.5, 1e-6), (0.5, 0.0), (0.6, 0.1)])
def test_clip_by_global_norm_follows_the_loop(max_norm, eps):
    reference = GlobalNorm(max_norm, eps)
    follows(gradtx.clip_by_global_norm(max_norm, eps), reference, rate=-0.2)
    assert reference.seen == {True, False}


def test_clip_by_global_norm_is_clip_grad_norm_of_torch():
    def torchs(grads, params):
        leaves = {name: torch.nn.Parameter(param) for name, param in params.items()}
        for name, leaf in leaves.items():
            leaf.grad = grads[name].clone()
        torch.nn.utils.clip_grad_norm_(leaves.values(), 0.5)
        return {name: leaf.grad for name, leaf in leaves.items()}

    follows(gradtx.clip_by_global_norm(0.5), torchs, rate=-0.2)


def clipped_adaptively(s, t, g, p, clipping=0.01, eps=1e-3):
    limit = clipping * unit_norm(p).clamp(min=eps)
    norm = unit_norm(g)
    s.seen.update((norm > limit).flatten().tolist())
    s.seen.update("floor" for floor in (unit_norm(p) < eps).flatten().tolist() if floor)
    return torch.where(norm > limit, g * limit / norm.clamp(min=1e-6), g)


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, {True, False}),
        ({"clipping": 0.05}, {True, False}),
        ({"clipping": 0.05, "eps": 2.0}, {True, False, "floor"}),
        ({"clipping": FALLING}, {True, False}),
    ],
    ids=named,
)
def test_clip_adaptive_follows_the_loop(options, seen):
    reference = Loop(clipped_adaptively, **options)
    follows(gradtx.clip_adaptive(**options), reference, rate=-0.5)
    assert reference.seen == seen


def softly_clipped(s, t, g, p, max_norm):
    x = p - 0.3 * g
    if p.ndim < 2:
        return x
    c, h = (max_norm + 1) / 2, (max_norm - 1) / 2
    n = x.norm(dim=-1, keepdim=True)
    s.seen.update((n > max_norm).flatten().tolist())
    return x / (h * torch.tanh((n - c) / h) + c).clamp(min=1e-5)


@pytest.mark.parametrize("max_norm", [1.05, 1.5, 5.0])
def test_soft_row_clip_after_a_step_follows_the_loop(max_norm):
    tx = gradtx.chain(gradtx.scale(-0.3), gradtx.map_after_step(lambda x: gradtx.soft_row_clip(x, max_norm)))
    reference = WeightsLoop(softly_clipped, max_norm=max_norm)
    follows(tx, reference)
    assert reference.seen == {True, False} or max_norm == 5.0


def bound_norm(s, t, g, p, p_bound):
    if t == 1:
        s.limit = p_bound * p.norm()
    x = p + g
    s.seen.add((x.norm() > s.limit).item())
    return x * min(1.0, s.limit / x.norm()) - p


def test_bound_norm_follows_the_loop_and_bounds_the_weights():
    tx, loop = gradtx.chain(gradtx.scale(-3.0), gradtx.bound_norm(1.05)), Loop(bound_norm, p_bound=1.05)
    reference = lambda grads, params: loop({name: -3.0 * g for name, g in grads.items()}, params)  # noqa: E731
    follows(tx, reference)
    assert loop.seen == {True, False}
    for params in run(tx, weights=True):
        assert all(p.norm() <= 1.05 * problem()[name].norm() * (1 + 1e-12) for name, p in params.items())


def test_bound_norm_keeps_weights_that_start_at_zero_there():
    assert first_update(gradtx.bound_norm(2.0), [3.0, 4.0], [0.0, 0.0]) == [0.0, 0.0]


def test_normalize_by_global_norm_divides_by_the_norm_of_all_leaves():
    grads = problem()
    size = sum(g.square().sum() for g in grads.values()).sqrt()
    updates, _ = gradtx.normalize_by_global_norm(eps=0.01).update(grads, gradtx.chain().init(grads))
    for name, g in grads.items():
        torch.testing.assert_close(updates[name], g / (size + 0.01), rtol=1e-15, atol=0.0)


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_a_tree_of_zeros_has_no_direction(eps):
    zeros = {"a": torch.zeros(3), "b": torch.zeros(())}
    updates, _ = gradtx.normalize_by_global_norm(eps).update(zeros, gradtx.chain().init(zeros))
    assert not any(update.any() for update in updates.values())


class NormOfBefore:
    """Clipping by the norm of the step before, as a plain function of the whole tree."""

    def __init__(self, max_norm, eps):
        self.max_norm, self.eps, self.norm, self.seen = max_norm, eps, 0.0, set()

    def __call__(self, grads, params):
        factor = min(1.0, self.max_norm / (self.norm + self.eps)) if self.norm + self.eps else 1.0
        self.norm = math.sqrt(sum((g**2).sum().item() for g in grads.values()))
        self.seen.add(factor < 1)
        return {name: g * factor for name, g in grads.items()}


@pytest.mark.parametrize(("max_norm", "eps"), [(0.5, 1e-6), (0.4, 0.0), (0.6, 0.1)])
def test_a_stale_clip_by_global_norm_follows_the_loop(max_norm, eps):
    reference = NormOfBefore(max_norm, eps)
    follows(gradtx.clip_by_global_norm(max_norm, eps, stale=True), reference, rate=-0.2)
    assert reference.seen == {True, False}


@pytest.mark.parametrize("compile", [False, True])
def test_an_optimizer_keeps_the_norm_and_clips_by_it_at_the_next_step(compile):
    params = [torch.nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (1, 9, 2)]
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0, eps=0.0, stale=True), gradtx.scale(-1.0))
    optimizer = gradtx.as_optimizer(tx, params, compile=compile)
    for size in (2.0, 1.0):
        for param in params:
            param.grad = torch.full_like(param, size)
        optimizer.step()
    assert torch.allclose(params[1], torch.tensor(-2.0 - 1.0 / math.sqrt(48.0), dtype=torch.float64))
    for param in params:
        assert optimizer.state[param]["norm"].item() == pytest.approx(math.sqrt(12.0))


def test_a_skipped_call_keeps_the_stale_norm():
    params = {"w": torch.zeros(2), "b": torch.zeros(1)}
    tx = gradtx.accumulate(gradtx.clip_by_global_norm(1.0, stale=True), every=2)
    state = tx.init(params)
    norms = []
    for size in (1.0, 3.0, 100.0, 2.0):
        _, state = tx.update({name: torch.full_like(p, size) for name, p in params.items()}, state, params)
        norms.append(round(state["accumulate"]["clip_by_global_norm"]["norm"].item() / math.sqrt(3), 3))
    assert norms == [0.0, 2.0, 2.0, 51.0]


@pytest.mark.parametrize("compile", [False, True])
def test_a_step_that_a_scaler_skips_keeps_the_stale_norm(compile):
    param = torch.nn.Parameter(torch.zeros(4))
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0, stale=True), gradtx.scale(-1.0))
    optimizer = gradtx.as_optimizer(tx, [param], compile=compile)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for size in (1.0, math.inf, 3.0):
        scaler.scale((param * size).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        expected = {1.0: 2.0, math.inf: 2.0, 3.0: 6.0}[size]
        assert optimizer.state[param]["norm"].item() == pytest.approx(expected)
    assert torch.allclose(param, torch.full((4,), -1.0 - 0.5 * 3.0))


def test_a_sum_that_its_own_step_does_not_read_is_no_part_of_blocks():
    tx = gradtx.blocks(gradtx.clip_by_global_norm(1.0, stale=True), sizes=(2, 2))
    params = {"w": torch.ones(4, 4)}
    with pytest.raises(ValueError, match="'norm' cannot be summed over blocks; move it outside blocks"):
        tx.update(params, tx.init(params), params)


def test_a_norm_over_more_leaves_than_these_replaces_their_own():
    tx = gradtx.clip_by_global_norm(1.0, eps=0.0)
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    for total, factor in ((5.0, 0.2), (10.0, 0.1), (0.5, 1.0)):
        updates, _ = tx.update(grads, tx.init(grads), global_norm=torch.tensor(total))
        for name, update in updates.items():
            torch.testing.assert_close(update, factor * grads[name])


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
def test_an_optimizer_clips_by_the_norm_passed_to_its_step(compile):
    params = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(5))]
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0, eps=0.0), gradtx.sgd(lr=1.0))
    optimizer = gradtx.as_optimizer(tx, params, compile=compile)
    for total in (4.0, 8.0):
        for param in params:
            param.grad = torch.ones_like(param)
        before = [param.detach().clone() for param in params]
        optimizer.step(global_norm=torch.tensor(total))
        for param, old in zip(params, before, strict=True):
            torch.testing.assert_close(param.detach(), old - 1.0 / total)


# A gradient that is not finite: by links that scale all leaves by one norm, and by those that scale leaves alone.
WEIGHTS = {"bad": torch.tensor([3.0, 4.0]), "good": torch.tensor([6.0, 8.0])}
OF_THE_TREE = {
    "clip_by_global_norm": lambda: gradtx.clip_by_global_norm(1.0),
    "normalize_by_global_norm": gradtx.normalize_by_global_norm,
    "normalize_by_global_norm without eps": lambda: gradtx.normalize_by_global_norm(0.0),
    "clip_to_history, warming up": gradtx.clip_to_history,
    "clip_by_zscore, warming up": gradtx.clip_by_zscore,
    "clip_by_zscore": lambda: gradtx.clip_by_zscore(warmup_steps=1, max_norm=None),
    "clip_by_zscore of percentiles": lambda: gradtx.clip_by_zscore(warmup_steps=1, mode="percentile", max_norm=None),
    "project_l2_ball": lambda: gradtx.project_l2_ball(5.0),
    "lamb": lambda: gradtx.lamb(max_grad_norm=1.0),
    "sam": lambda: gradtx.sam(gradtx.sgd(lr=1.0)),
}
OF_A_LEAF = {
    "clip_by_norm": lambda: gradtx.clip_by_norm(1.0),
    "clip_adaptive": gradtx.clip_adaptive,
    "bound_norm": lambda: gradtx.bound_norm(1.0),
    "clip_to_history": lambda: gradtx.clip_to_history(warmup_steps=0),
    "normalize_by_norm_history": gradtx.normalize_by_norm_history,
    "clip_to_peak_history": gradtx.clip_to_peak_history,
    "clip_by_block_rms": lambda: gradtx.clip_by_block_rms(1.0),
    "scale_by_trust_ratio": gradtx.scale_by_trust_ratio,
    "scale_by_lars": gradtx.scale_by_lars,
}


def updates_with(tx, entry):
    """The updates after two ordinary steps, and of huge gradients one of whose entries is `entry`."""
    state = tx.init(WEIGHTS)
    known = {"grad_fn": lambda params: params} if "grad_fn" in tx.needs else {}
    for _ in range(2):
        _, state = tx.update({name: torch.ones(2) for name in WEIGHTS}, state, WEIGHTS, **known)
    grads = {"bad": torch.tensor([entry, 1e6]), "good": torch.tensor([1e6, -1e6])}
    updates, _ = tx.update(grads, state, WEIGHTS, **known)
    return updates


@pytest.mark.parametrize("engine", ["lists", "eager"])
@pytest.mark.parametrize("name", [*OF_THE_TREE, *OF_A_LEAF])
def test_no_leaf_takes_an_unclipped_step_beside_an_entry_that_is_not_finite(name, engine):
    tx = {**OF_THE_TREE, **OF_A_LEAF}[name]()
    with gradtx.eagerly() if engine == "eager" else contextlib.nullcontext():
        of_nan, of_inf = updates_with(tx, math.nan), updates_with(tx, math.inf)
    scaled = WEIGHTS if name in OF_THE_TREE else ("bad",)
    assert all(of_nan[leaf].isnan().all() for leaf in scaled)
    assert all(of_inf[leaf].nan_to_num().abs().max() < 30 for leaf in scaled)


@pytest.mark.parametrize("entry", [math.nan, math.inf, 1e30])
def test_the_global_norm_treats_entries_that_are_not_finite_as_torch_does(entry):
    grads = {"bad": torch.tensor([entry, 1e6]), "good": torch.tensor([1e6, -1e6])}
    tx, params = gradtx.clip_by_global_norm(1.0), [torch.nn.Parameter(value.clone()) for value in grads.values()]
    for param, grad in zip(params, grads.values(), strict=True):
        param.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    updates, _ = tx.update(grads, tx.init(grads))
    for param, update in zip(params, updates.values(), strict=True):
        torch.testing.assert_close(update, param.grad, equal_nan=True)


def test_zero_nans_leaves_all_other_numbers():
    given = {"w": torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -2.0])}
    updates, _ = gradtx.zero_nans().update(given, gradtx.zero_nans().init(given))
    assert updates["w"].tolist() == [0.0, torch.inf, -torch.inf, 0.0, -2.0]


def test_zero_nans_keeps_them_from_the_state_but_not_from_the_gradient_itself():
    params = {"w": torch.ones(2)}
    tx = gradtx.chain(gradtx.zero_nans(), gradtx.adam(lr=0.1))
    updates, state = tx.update({"w": torch.tensor([torch.nan, 1.0])}, tx.init(params), params)
    assert updates["w"][0] == 0.0
    assert state["scale_by_adam"]["exp_avg"]["w"].isfinite().all()


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


def peaks(s, t, g, p, theta=0.999):
    top = g.abs().max().item()
    s.M = theta * s.M + (1 - theta) * top
    usual = s.M / (1 - theta**t)
    s.seen.update((g.abs() > usual * (1 + 1e-9)).flatten().tolist())
    return torch.where(g.abs() > usual, g * usual / top, g)


@pytest.mark.parametrize("options", [{}, {"theta": 0.5}, {"theta": 0.0}, {"theta": BETA}], ids=str)
def test_clip_to_peak_history_follows_the_loop(options):
    reference = Loop(peaks, **options)
    follows(gradtx.clip_to_peak_history(**options), reference, rate=-0.02)
    assert True in reference.seen or options.get("theta") == 0.0
    assert arguments(gradtx.clip_to_peak_history) == arguments(peaks)
