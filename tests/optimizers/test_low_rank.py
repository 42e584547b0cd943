import math

import pytest
import torch

import gradtx
from gradtx.state.random import Stream
from tests.matrix_problem import MATRICES, SEEDS, follows, newton_schulz, start, weights
from tests.optimizers.test_matrix import polar
from tests.references import BETA, RATE, TOLERANCE, Transformed, WeightsLoop, named

AGREEMENT = 1e-12


def shape_factor(p, adjust):
    rows, columns = p.shape
    if adjust == "spectral":
        return math.sqrt(rows / columns)
    return 0.2 * math.sqrt(max(p.shape)) if adjust == "match_rms_adamw" else math.sqrt(max(1, rows / columns))


# Dion.


def dion(
    s, t, g, p, lr=0.01, mu=0.95, rank=1.0, weight_decay=0.01, eps=1e-8, adjust_lr_fn="spectral", init="random", seed=0,
    fallback=None,
):  # fmt: skip
    rows, columns = p.shape
    k = rank if isinstance(rank, int) else math.ceil(rank * min(p.shape))
    k = max(1, min(k, rows, columns))
    if t == 1:
        zero = torch.zeros((), dtype=torch.int64)
        drawn = Stream(zero + seed, zero, s.name).normal(torch.zeros(columns, k, dtype=p.dtype))
        s.Q = drawn if init == "random" else torch.eye(columns, k, dtype=p.dtype)
    M = s.M + g
    P = torch.linalg.qr(M @ s.Q)[0]
    R = M.T @ P
    s.M = M - (1 - mu) * P @ R.T
    s.Q = R / (R.norm(dim=0) + eps)
    return p * (1 - lr * weight_decay) - lr * shape_factor(p, adjust_lr_fn) * P @ s.Q.T


DION = [
    {},
    {"lr": 0.1, "mu": 0.7, "rank": 2, "weight_decay": 0.2, "eps": 0.1, "adjust_lr_fn": None, "seed": 3},
    {"lr": 0.1, "rank": 0.3, "init": "eye", "adjust_lr_fn": "match_rms_adamw"},
    {"lr": RATE, "mu": BETA, "weight_decay": RATE, "rank": 3},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", DION, ids=named)
def test_dion_follows_the_loop(options, seed):
    reference = WeightsLoop(dion, **options)
    follows(gradtx.dion(**options), reference, seed, names=MATRICES, tolerance=AGREEMENT)


def test_a_column_without_residual_keeps_its_direction():
    tx = gradtx.scale_by_dion(rank=1)
    params = {"w": torch.ones(3, 2, dtype=torch.float64)}
    state = tx.init(params)
    before = state["scale_by_dion"]["Q"]["w"]
    updates, state = tx.update({"w": torch.zeros(3, 2, dtype=torch.float64)}, state)
    assert torch.equal(state["scale_by_dion"]["Q"]["w"], before)
    assert torch.equal(updates["w"], torch.zeros(3, 2, dtype=torch.float64))


# Dion2.


def dion2(
    s, t, g, p, lr=0.01, fraction=0.25, ef_decay=0.95, weight_decay=0.01, select="short", beta2=None, neuron_eps=1e-8,
    ns_coefficients="polar_express", ns_steps=None, adjust_lr_fn="spectral", ns_dtype=None, fallback=None,
):  # fmt: skip
    shrink = 1.0
    if not isinstance(ns_coefficients, str):
        polynomials = [ns_coefficients] * ns_steps
    elif ns_coefficients == "newton_schulz":
        polynomials = [(2.0, -1.5, 0.5)] * (ns_steps or 12)
    else:
        polynomials, shrink = polar(ns_steps or 5), 1.01
    s.M = s.M + g
    rows = select == "rows" or (select == "short" and p.shape[0] <= p.shape[1])
    M = s.M if rows else s.M.T.clone()
    sizes = M.abs().sum(dim=1).tolist()
    chosen = sorted(range(len(sizes)), key=lambda i: -sizes[i])[: math.ceil(fraction * len(sizes))]
    part = M[chosen] if rows else M[chosen].T
    o = newton_schulz(part, polynomials, shrink=shrink)
    if beta2 is not None:
        if not isinstance(s.q, torch.Tensor):
            s.q = torch.zeros(p.shape[0], 1, dtype=p.dtype)
        where = chosen if rows else list(range(p.shape[0]))
        s.q[where] = beta2 * s.q[where] + (1 - beta2) * (o**2).mean(dim=1, keepdim=True)
        n = o / (s.q[where].sqrt() + neuron_eps)
        o = n * o.norm() / max(n.norm().item(), neuron_eps)
    u = torch.zeros_like(M)
    u[chosen] = o if rows else o.T
    M[chosen] *= ef_decay
    s.M, u = (M, u) if rows else (M.T, u.T)
    return p * (1 - lr * weight_decay) - lr * shape_factor(p, adjust_lr_fn) * u


DION2 = [
    {},
    {"lr": 0.1, "fraction": 0.5, "ef_decay": 0.6, "weight_decay": 0.2, "select": "columns", "adjust_lr_fn": None},
    {"lr": 0.1, "fraction": 1, "select": "rows", "ns_coefficients": "newton_schulz"},
    {"lr": 0.1, "fraction": 0.6, "beta2": 0.8, "neuron_eps": 0.01, "ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 4},
    {"lr": 0.1, "fraction": 0.4, "beta2": 0.9, "select": "columns", "ns_steps": 7},
    {"lr": RATE, "ef_decay": BETA, "weight_decay": RATE, "beta2": BETA, "select": "rows"},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", DION2, ids=named)
def test_dion2_follows_the_loop(options, seed):
    reference = WeightsLoop(dion2, **options)
    follows(gradtx.dion2(**options), reference, seed, names=MATRICES, tolerance=1e-11)  # of singular values, by svd


def test_of_equal_slices_the_first_are_chosen():
    tx = gradtx.orthogonalize_slices(fraction=0.5, select="columns")
    grads = {"w": torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])}
    updates, _ = tx.update(grads, tx.init(grads))
    assert (updates["w"][0] != 0).tolist() == [True, True, False, False]


# GaLore, Fira, APOLLO.


def signed(Q):
    largest = Q.abs().argmax(dim=0)
    return Q * torch.stack([Q[i, k].sign() for k, i in enumerate(largest)])


def projected(s, t, x, gap, rank, projection, side, seed=0):
    """Whether the basis is on the right, and the basis; the last one is in `s.old`."""
    rows, columns = x.shape
    right = {"short": rows >= columns, "long": rows < columns, "right": True, "left": False}[side]
    A = x.T if right else x
    if (t - 1) % gap == 0:
        s.old = s.Q
        k = rank if projection == "random" else min(rank, rows, columns)
        if projection == "svd":
            s.Q = signed(torch.linalg.svd(A)[0][:, :k])
        elif projection == "power":
            Q = torch.eye(len(A), k, dtype=x.dtype) if t == 1 else s.Q
            s.Q = signed(torch.linalg.qr(A @ A.T @ Q)[0])
        else:
            counts = torch.tensor(seed), torch.tensor(t)
            s.Q = Stream(*counts, s.name).normal(torch.zeros(len(A), k, dtype=x.dtype)) / math.sqrt(rank)
    return right, s.Q


def carried(s, t, gap, right, carry):
    if t == 1 or (t - 1) % gap:
        return
    if carry == "reset":
        s.m, s.v = 0 * s.m, 0 * s.v
    elif carry == "rotate":
        s.m = s.m @ s.old.T @ s.Q if right else s.Q.T @ s.old @ s.m


def adam(s, t, x, betas, eps):
    """Adam's direction without its factor, and the factor."""
    b1, b2 = betas
    s.m, s.v = b1 * s.m + (1 - b1) * x, b2 * s.v + (1 - b2) * x**2
    return s.m / (s.v.sqrt() + eps), math.sqrt(1 - b2**t) / (1 - b1**t)


def galore(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, rank=128, update_proj_gap=200, scale=0.25,
    side="short", projection="svd", carry="keep",
):  # fmt: skip
    if p.ndim != 2:
        d, c = adam(s, t, g, betas, eps)
        return (p - lr * c * d) * (1 - lr * weight_decay)
    right, Q = projected(s, t, g, update_proj_gap, rank, projection, side)
    carried(s, t, update_proj_gap, right, carry)
    d, c = adam(s, t, g @ Q if right else Q.T @ g, betas, eps)
    return (p - lr * c * scale * (d @ Q.T if right else Q @ d)) * (1 - lr * weight_decay)


def fira(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, rank=128, update_proj_gap=200, scale=0.25,
    side="short", projection="svd", carry="keep", limit=1.01,
):  # fmt: skip
    if p.ndim != 2:
        d, c = adam(s, t, g, betas, eps)
        return (p - lr * c * d) * (1 - lr * weight_decay)
    right, Q = projected(s, t, g, update_proj_gap, rank, projection, side)
    carried(s, t, update_proj_gap, right, carry)
    low = g @ Q if right else Q.T @ g
    d, c = adam(s, t, low, betas, eps)
    up = (lambda x: x @ Q.T) if right else (lambda x: Q @ x)
    dim = 1 if right else 0
    phi = d.norm(dim=dim, keepdim=True) / (low.norm(dim=dim, keepdim=True) + 1e-8)
    x = (g - scale * up(low)) * phi
    n = x.norm()
    growth = max(n / (s.n + 1e-8), limit) / limit if t > 1 else 1.0
    s.seen.add(bool(growth > 1) or t == 1)
    s.n = n / growth
    return (p - lr * c * (scale * up(d) + x / growth)) * (1 - lr * weight_decay)


def apollo(
    s, t, g, p, lr=1e-2, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, rank=128, update_proj_gap=200, scale=1.0,
    side="short", projection="random", scale_type="channel", scale_front=False, limit=1.01, seed=0,
):  # fmt: skip
    if p.ndim != 2:
        d, c = adam(s, t, g, betas, eps)
        return (p - lr * c * d) * (1 - lr * weight_decay)
    right, Q = projected(s, t, g, update_proj_gap, rank, projection, side, seed)
    low = g @ Q if right else Q.T @ g
    d, c = adam(s, t, low, betas, eps)
    if scale_type == "tensor":
        phi = d.norm() / (low.norm() + 1e-8)
    else:
        dim = 1 if right else 0
        phi = d.norm(dim=dim, keepdim=True) / (low.norm(dim=dim, keepdim=True) + 1e-8)
    u = g * phi * (math.sqrt(scale) if scale_front else 1.0)
    n = u.norm()
    growth = max(n / (s.n + 1e-8), limit) / limit if t > 1 else 1.0
    s.seen.add(bool(growth > 1) or t == 1)
    s.n = n / growth
    u = u / growth * (1.0 if scale_front else math.sqrt(scale))
    return (p - lr * c * u) * (1 - lr * weight_decay)


GAP = {"rank": 2, "update_proj_gap": 4, "lr": 0.02}
GALORE = [
    {},
    {**GAP, "betas": (0.8, 0.9), "eps": 0.01, "weight_decay": 0.3, "scale": 0.7, "side": "long", "carry": "rotate"},
    {**GAP, "side": "left", "projection": "power", "carry": "reset"},
    {**GAP, "side": "right", "projection": "random", "rank": 6},
    {**GAP, "lr": RATE, "betas": (BETA, BETA), "weight_decay": RATE, "projection": "power", "carry": "rotate"},
]
FIRA = [*GALORE, {**GAP, "limit": 1.3, "scale": 1.0}]
APOLLO = [
    {},
    {**GAP, "betas": (0.8, 0.9), "eps": 0.01, "weight_decay": 0.3, "scale": 4.0, "side": "long", "projection": "svd"},
    {**GAP, "rank": 1, "scale": 128.0, "scale_type": "tensor", "scale_front": True, "limit": 1.2, "seed": 5},
    {**GAP, "lr": RATE, "betas": (BETA, BETA), "weight_decay": RATE, "side": "left"},
]
LOOPS = [
    *((gradtx.galore, galore, options) for options in GALORE),
    *((gradtx.fira, fira, options) for options in FIRA),
    *((gradtx.apollo_low_rank, apollo, options) for options in APOLLO),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("alias", "rule", "options"), LOOPS, ids=named)
def test_projected_adam_follows_the_loop(alias, rule, options, seed):
    follows(alias(**options), WeightsLoop(rule, **options), seed, tolerance=1e-11)


@pytest.mark.parametrize(("alias", "rule"), [(gradtx.fira, fira), (gradtx.apollo_low_rank, apollo)], ids=named)
def test_growth_is_limited_in_some_steps_only(alias, rule):
    reference = WeightsLoop(rule, **GAP)
    weights(reference, 0)
    assert reference.seen == {True, False}


def test_adam_at_full_rank_is_adam_along_the_singular_vectors():
    tx = gradtx.low_rank(gradtx.trace(0.9), rank=100, every=3, carry="rotate")
    follows(
        gradtx.chain(tx, gradtx.scale(-0.02)), gradtx.sgd(lr=0.02, momentum=0.9), 0, names=MATRICES, tolerance=TOLERANCE
    )


def test_any_chain_runs_at_low_rank_with_projected_parameters():
    seen = {}

    @gradtx.per_tensor(needs=("params",))
    def look():
        def update(update, state, param, ctx):
            seen.update(update=update, grad=ctx.grad, param=param)
            return update, state

        return update

    tx = gradtx.chain(gradtx.scale(2.0), gradtx.low_rank(look(), rank=2))
    params = start(0, ("tall",))
    tx.update(params, tx.init(params), params)
    assert seen["update"].shape == (5, 2)
    torch.testing.assert_close(seen["update"], 2 * seen["grad"])
    torch.testing.assert_close(seen["param"], seen["grad"])


def test_a_reset_restores_initial_values_other_than_0():
    @gradtx.per_tensor()
    def double():
        def init(param):
            return {"size": torch.ones_like(param)}

        def update(update, state, param, ctx):
            return update, {"size": 2 * state["size"]}

        return init, update

    step = Transformed(gradtx.low_rank(double(), rank=2, every=3, carry="reset"))
    params, sizes = start(0, ("tall",)), []
    for _ in range(7):
        step(params, params)
        sizes.append(step.state["low_rank"]["double"]["size"]["tall"].unique().item())
    assert sizes == [2, 4, 8, 2, 4, 8, 2]


def test_it_nests_with_rotations():
    inner = gradtx.rotated(gradtx.scale_by_adam_hat(eps=0.1), precondition_frequency=2)
    tx = gradtx.chain(gradtx.low_rank(inner, rank=2, every=3), gradtx.scale_by_learning_rate(0.1))
    step = Transformed(tx)
    history = weights(step, 0)
    assert all(leaf.isfinite().all() for leaf in history[-1].values())
    assert step.state["low_rank"]["rotated"]["Q_1"]["tall"].shape == (2, 2)


# All.


def test_a_slot_without_a_kind_matters_only_where_slots_are_turned():
    tx = gradtx.scale_by_tam()
    params = {"w": torch.ones(4, 4)}
    gradtx.low_rank(tx, rank=2).init(params)
    with pytest.raises(TypeError, match=r"low_rank: the inner link 'scale_by_tam' has the slot 's'"):
        gradtx.low_rank(tx, rank=2, carry="rotate").init(params)
