import math

import pytest
import torch

import gradtx
from gradtx.algorithms import psgd
from gradtx.state.random import Stream
from tests.matrix_problem import SEEDS, follows, times, unfolded, weights
from tests.optim.problems import assert_close, descend, gradient, parameters
from tests.references import BETA, RATE, WeightsLoop, named

AGREEMENT = 1e-11


def apply(x, factors):
    for i, Q in enumerate(factors):
        x = times(x, Q, i)
    return x


def merged(shape, merges):
    shape = tuple(shape) or (1,)
    if not merges or len(shape) <= 2:
        return shape
    a, b = (math.prod(shape[:-1]), shape[-1]), (shape[0], math.prod(shape[1:]))
    return a if a[1] - a[0] <= b[1] - b[0] else b


def diagonal_sides(shape, limit, least, mode):
    flags = []
    for i, n in enumerate(shape):
        first_largest = n == max(shape) and n not in shape[:i]
        chosen = mode == "one_diag" and first_largest
        chosen = chosen or (mode == "smart_one_diag" and len(shape) > 1 and first_largest and shape.count(n) == 1)
        flags.append(mode == "all_diag" or len(shape) < least or n == 1 or n > limit or chosen)
    return flags


def kron_bound(T):
    X = T / T.abs().max()
    x = X[:, X.norm(dim=0).argmax()]
    return (X @ ((X @ x) / (X @ x).norm())).norm() * T.abs().max()


def levelled(Q):
    sizes = [q.abs().max().item() for q in Q]
    mean = math.prod(sizes) ** (1 / len(Q))
    return [q * (mean / size) for q, size in zip(Q, sizes, strict=True)]


def psgd_kron(
    s, t, g, p, lr=3e-4, b1=0.9, weight_decay=0.0, precond_lr=0.1, precond_init_scale=1.0,
    precondition_frequency="annealed", balance_every=100, probes="expected", seed=0, momentum_into_precond_update=True,
    max_size_triangular=8192, min_ndim_triangular=2, memory_save_mode=None, merge_dims=True, clip_rms=1.1,
):  # fmt: skip
    shape = merged(p.shape, merge_dims)
    diagonal = diagonal_sides(shape, max_size_triangular, min_ndim_triangular, memory_save_mode)
    s.m = b1 * s.m + (1 - b1) * g
    mean = (s.m / (1 - b1**t)).reshape(shape)
    if t == 1:
        scale = precond_init_scale ** (1 / len(shape))
        s.Q = [scale * torch.eye(n, dtype=p.dtype) for n in shape]
    if precondition_frequency == "annealed":
        s.count += 1
        due = s.count >= 1 / max(0.03, min(1.0, math.exp(-0.001 * (t - 1 - 500))))
        s.count = 0 if due else s.count
    else:
        due = t % precondition_frequency == 0
    if due:
        s.updates += 1
        if s.updates % balance_every == 0 and len(shape) > 1:
            s.Q = levelled(s.Q)
            s.seen.add("levelled")
        h = mean if momentum_into_precond_update else g.reshape(shape)
        delta = math.sqrt(2**-23) * h.abs().mean()
        inverse = [torch.linalg.inv(Q) for Q in s.Q]
        new = []
        for i, Q in enumerate(s.Q):
            if probes == "random":
                v = Stream(torch.tensor(seed), torch.tensor(t), s.name).normal(h)
                A, B = apply(h + delta * v, s.Q), apply(v, [x.T for x in inverse])
                T1, T2 = unfolded(A, i) @ unfolded(A, i).T, unfolded(B, i) @ unfolded(B, i).T
            else:
                A = apply(h, s.Q)
                others = math.prod(x.norm().item() ** 2 for k, x in enumerate(s.Q) if k != i)
                inverses = math.prod(x.norm().item() ** 2 for k, x in enumerate(inverse) if k != i)
                T1 = unfolded(A, i) @ unfolded(A, i).T + delta**2 * others * Q @ Q.T
                T2 = inverses * inverse[i].T @ inverse[i]
            if diagonal[i]:
                T1, T2 = torch.diag(torch.diag(T1)), torch.diag(torch.diag(T2))
                nu = (T1 + T2).abs().max()
            else:
                nu = kron_bound(T1 + T2)
            new.append(Q - precond_lr * torch.triu(T1 - T2) / nu @ Q)
        s.Q = new
    s.seen.add(due)
    u = apply(mean, [Q.T @ Q for Q in s.Q])
    u = (u * min(1.0, clip_rms / ((u**2).mean().sqrt().item() + 1e-12))).reshape(p.shape)
    return p - lr * (u + (weight_decay * p if p.ndim >= 2 else 0.0))


KRON = [
    {},
    {"lr": 0.02, "b1": 0.8, "weight_decay": 0.3, "precond_lr": 0.3, "precond_init_scale": 2.0, "clip_rms": 0.5},
    {"lr": 0.02, "precondition_frequency": 3, "balance_every": 2, "momentum_into_precond_update": False},
    {"lr": 0.02, "precondition_frequency": 2, "probes": "random", "seed": 4, "balance_every": 1},
    {"lr": 0.02, "memory_save_mode": "one_diag", "clip_rms": 10.0, "precond_lr": 0.5},
    {"lr": 0.02, "memory_save_mode": "smart_one_diag", "max_size_triangular": 4, "probes": "random"},
    {"lr": 0.02, "memory_save_mode": "smart_one_diag", "min_ndim_triangular": 1, "precondition_frequency": 1},
    {"lr": 0.02, "memory_save_mode": "all_diag", "balance_every": 3},
    {"lr": 0.02, "min_ndim_triangular": 1, "merge_dims": False, "max_size_triangular": 4},
    {"lr": RATE, "b1": BETA, "weight_decay": RATE, "precond_lr": RATE},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", KRON, ids=named)
def test_psgd_kron_follows_the_loop(options, seed):
    follows(gradtx.psgd_kron(**options), WeightsLoop(psgd_kron, **options), seed, tolerance=AGREEMENT)


@pytest.mark.slow
def test_the_expected_terms_are_the_mean_of_random_ones():
    rng = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    x, factors = draw(3, 2), [torch.eye(3, dtype=torch.float64) + 0.3 * draw(3, 3).triu(), 1 + 0.3 * draw(2).abs()]
    damping = torch.tensor(0.7, dtype=torch.float64)
    drawn = torch.vmap(lambda probe: psgd.random_terms(x, factors, damping, probe))(draw(20000, 3, 2))
    for i, expected in enumerate(psgd.expected_terms(x, factors, damping)):
        for k in range(2):
            mean = drawn[i][k].mean(dim=0)
            torch.testing.assert_close(mean, expected[k], rtol=0.05, atol=0.05 * expected[k].abs().max().item())


def test_annealed_updates_are_due_at_every_step_at_first_and_later_rarely():
    counts, count = [], 0
    for t in range(1, 9001):
        count += 1
        due = count >= 1 / max(0.03, min(1.0, math.exp(-0.001 * (t - 501))))
        count = 0 if due else count
        counts.append(due)
    numbers = [psgd.annealed_number(t) for t in range(9001)]
    assert [numbers[t] > numbers[t - 1] for t in range(1, 9001)] == counts
    assert all(counts[:501])
    assert sum(counts[-340:]) == 10
    assert numbers[9000] == sum(counts)


@pytest.mark.slow
def test_annealed_steps_of_the_optimizer_are_those_of_the_pure_functions(monkeypatch, forget_programs):
    monkeypatch.setattr(psgd, "annealed_probability", lambda step: 0.4 + 0 * step)
    monkeypatch.setattr(psgd, "LEAST", 0.4)
    monkeypatch.setattr(psgd, "PERIOD", 3)
    monkeypatch.setattr(psgd, "annealed_updates", psgd.annealed_updates.__wrapped__)
    forget_programs()  # no later test may get one with this probability
    agree_in_both_ways(gradtx.psgd_kron(lr=0.1, balance_every=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 3, 2, 2), (24, 2)), ((3, 2, 3), (6, 3)), ((2, 3, 50), (6, 50)), ((5,), (5,)), ((), (1,))],
)
def test_dimensions_are_merged_as_in_kron_torch(shape, expected):
    assert merged(shape, True) == expected
    assert (psgd.matrix_shape(shape) or (1,)) == expected


@pytest.mark.parametrize(
    ("mode", "shape"), [(None, (5, 5)), ("smart_one_diag", (5, 5)), ("one_diag", (5,)), ("all_diag", (5,))]
)
def test_only_one_diag_and_all_diag_make_the_factor_of_a_vector_diagonal(mode, shape):
    tx = gradtx.scale_by_psgd_kron(memory_save_mode=mode, min_ndim_triangular=1)
    state = tx.init({"w": torch.zeros(5)})["scale_by_psgd_kron"]
    assert state["Q_0"]["w"].shape == shape


# PSGD-PRO.


def power_bound(A, scale):
    A = A / scale if scale > 0 else A
    v = A[A.norm(dim=1).argmax()]
    for _ in range(2):
        v = v @ A
        v = v / (v.norm() + 1e-8)
        v = v @ A
    return (v.norm() * scale).item()


def psgd_pro(
    s, t, g, p, lr=3e-3, momentum=0.9, weight_decay=0.01, beta_lip=0.9, precond_lr=0.1, precond_init_scale=1.0,
    damping_noise_scale=0.1, min_precond_lr=0.01, warmup_steps=10000, max_update_rms=0.0, max_precondition_dim=10000,
):  # fmt: skip
    shape = tuple(p.shape) or (1,)
    diagonal = [n > max_precondition_dim or p.ndim == 0 for n in shape]
    if t == 1:
        s.Q = [precond_init_scale * torch.eye(n, dtype=p.dtype) for n in shape]
        s.L = [1.0] * len(shape)
    s.m = momentum * s.m + (1 - momentum) * g
    m = s.m.reshape(shape)
    mu = max(precond_lr / math.sqrt(1 + (t - 1) / warmup_steps), min_precond_lr)
    P = [Q.T @ Q for Q in s.Q]
    x = apply(m, P)
    new = []
    for i, Q in enumerate(s.Q):
        others = math.prod(q.norm().item() ** 2 for k, q in enumerate(P) if k != i)
        C = unfolded(x, i) @ unfolded(x, i).T + damping_noise_scale**2 * others * P[i] @ P[i]
        n = m.numel() / shape[i]
        if diagonal[i]:
            C = torch.diag(torch.diag(C))
            bound = C.max().item() + n
        else:
            bound = power_bound(C, torch.diag(C).max().item()) + n
        s.L[i] = max(beta_lip * s.L[i] + (1 - beta_lip) * bound, bound)
        Q = Q - mu / s.L[i] * (C @ Q - n * Q)
        if not diagonal[i]:
            R = Q.T - Q
            R = R / max(power_bound(R, R.abs().max().item()), 1e-8)
            slope, bend = torch.trace(R @ Q).item(), torch.trace(R @ R @ Q).item()
            a = min(max(-slope / bend, 0.0), 0.125) if bend < 0 else 0.125
            s.seen.add("short" if a < 0.125 else "long")
            Q = Q + a * (R @ Q + a / 2 * R @ R @ Q)
        new.append(Q)
    s.Q = levelled(new) if len(new) > 1 else new
    u = apply(m, [Q.T @ Q for Q in s.Q]).reshape(p.shape)
    if max_update_rms > 0:
        u = u * min(1.0, max_update_rms / ((u**2).mean().sqrt().item() + 1e-7))
    return p * (1 - lr * weight_decay) - lr * u


PRO = [
    {},
    {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.3, "beta_lip": 0.6, "precond_lr": 0.4, "precond_init_scale": 2.0},
    {"lr": 0.1, "damping_noise_scale": 0.5, "warmup_steps": 2, "min_precond_lr": 0.06, "max_update_rms": 0.3},
    {"lr": 0.1, "max_precondition_dim": 4, "precond_lr": 0.7},
    {"lr": RATE, "momentum": BETA, "weight_decay": RATE, "precond_lr": RATE, "beta_lip": BETA},
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", PRO, ids=named)
def test_psgd_pro_follows_the_loop(options, seed):
    follows(gradtx.psgd_pro(**options), WeightsLoop(psgd_pro, **options), seed, tolerance=AGREEMENT)


def test_every_factor_of_psgd_pro_starts_at_the_given_scale():
    state = gradtx.scale_by_psgd_pro(precond_init_scale=3.0).init({"w": torch.zeros(2, 4)})["scale_by_psgd_pro"]
    for slot, size in (("Q_0", 2), ("Q_1", 4)):
        assert torch.equal(state[slot]["w"], 3 * torch.eye(size))


def test_both_lengths_of_a_rotation_occur():
    reference = WeightsLoop(psgd_pro, **PRO[1])
    weights(reference, 0)
    assert reference.seen == {"short", "long"}


# All.


def agree_in_both_ways(tx):
    params = parameters(shapes={"wide": (3, 4), "kernel": (2, 3, 2), "bias": (3,), "scale": ()})
    values = {name: param.detach().clone() for name, param in params.items()}
    optimizer, state = gradtx.as_optimizer(tx, params.items()), tx.init(values)
    for t in range(8):
        grads = {name: gradient(value, t) for name, value in values.items()}
        updates, state = tx.update(grads, state, values)
        values = gradtx.apply_updates(values, updates)
        descend(optimizer, params, 1, start=t)
    assert_close(params.values(), values.values(), 1e-10)
