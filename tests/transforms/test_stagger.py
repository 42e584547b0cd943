"""Bases and roots that leaves renew in turns, against plain loops."""

import hashlib

import pytest
import torch

import gradtx

PERIOD = 4
NAMES = ["a.weight", "b.weight", "c.weight", "d.weight", "e.weight", "f.weight"]


def turn_of(name):
    """The leaf's step in the period, from its name alone."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) % PERIOD


def gradients(seed, steps=11):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(steps)]


def eigenvectors(matrix):
    return torch.linalg.eigh(matrix).eigenvectors.flip(1)


def soap_loop(grads, turn, b1=0.8, b2=0.7, bs=0.6, eps=1e-3, lr=0.1):
    """Weights of SOAP after each step, without decay; the bases are renewed where (t - 1 - turn) mod PERIOD = 0."""
    p, m, v = (torch.zeros_like(grads[0]) for _ in range(3))
    L, R = (1 - bs) * grads[0] @ grads[0].T, (1 - bs) * grads[0].T @ grads[0]
    QL, QR = eigenvectors(L), eigenvectors(R)
    yield p
    for t, g in enumerate(grads[1:], 2):
        s = t - 1
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * (QL.T @ g @ QR) ** 2
        d = (QL.T @ m @ QR) / (v.sqrt() + eps) * (1 - b2**s) ** 0.5 / (1 - b1**s)
        p = p - lr * QL @ d @ QR.T
        yield p
        L, R = bs * L + (1 - bs) * g @ g.T, bs * R + (1 - bs) * g.T @ g
        if (s - turn) % PERIOD == 0:
            rows = (QL.T @ L @ QL).diag().argsort(descending=True)
            columns = (QR.T @ R @ QR).diag().argsort(descending=True)
            v = v[rows][:, columns]
            QL, QR = torch.linalg.qr(L @ QL[:, rows]).Q, torch.linalg.qr(R @ QR[:, columns]).Q


def shampoo_loop(grads, turn, eps=0.1, lr=0.1):
    """Weights of Shampoo after each step; roots at the first, then where (t - 1 - turn) mod PERIOD = 0."""

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ torch.diag(values**-0.25) @ vectors.T

    p = torch.zeros_like(grads[0])
    L, R = (eps * torch.eye(n, dtype=torch.float64) for n in p.shape)
    for t, g in enumerate(grads, 1):
        L, R = L + g @ g.T, R + g.T @ g
        if t == 1 or (t - 1 - turn) % PERIOD == 0:
            LR, RR = root(L), root(R)
        p = p - lr * LR @ g @ RR
        yield p


def pure_run(tx, grads):
    params = {name: torch.zeros_like(steps[0]) for name, steps in grads.items()}
    state = tx.init(params)
    for t in range(len(grads[NAMES[0]])):
        updates, state = tx.update({name: steps[t] for name, steps in grads.items()}, state, params)
        params = gradtx.apply_updates(params, updates)
        yield params


def optimizer_run(tx, grads, **options):
    params = {name: torch.nn.Parameter(torch.zeros_like(steps[0])) for name, steps in grads.items()}
    optimizer = gradtx.as_optimizer(tx, params.items(), **options)
    for t in range(len(grads[NAMES[0]])):
        for name, param in params.items():
            param.grad = grads[name][t].clone()
        optimizer.step()
        yield params


RUNS = {
    "pure": pure_run,
    "default": optimizer_run,
    "compiled": lambda tx, grads: optimizer_run(tx, grads, compile=True),
}
CASES = {
    "soap": (
        gradtx.chain(
            gradtx.scale_by_soap((0.8, 0.7), 0.6, 1e-3, precondition_frequency=PERIOD, stagger=True),
            gradtx.scale_by_learning_rate(0.1),
        ),
        soap_loop,
    ),
    "shampoo": (
        gradtx.chain(
            gradtx.scale_by_shampoo(matrix_eps=0.1, preconditioning_compute_steps=PERIOD, stagger=True),
            gradtx.scale_by_learning_rate(0.1),
        ),
        shampoo_loop,
    ),
}


def test_the_names_of_these_tests_take_several_turns():
    assert len({turn_of(name) for name in NAMES}) > 2


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", CASES)
def test_each_leaf_renews_at_its_turn(case, run, seed):
    tx, loop = CASES[case]
    grads = {name: gradients(seed + 10 * i) for i, name in enumerate(NAMES)}
    expected = {name: loop(steps, turn_of(name)) for name, steps in grads.items()}
    for params in RUNS[run](tx, grads):
        for name, param in params.items():
            torch.testing.assert_close(param.detach(), next(expected[name]), rtol=1e-9, atol=1e-9)


KL = {"precondition_frequency": PERIOD, "stagger": True}
OTHERS = {
    "rotated": gradtx.rotated(gradtx.scale_by_adam_hat(), **KL),
    "rotated, svd": gradtx.rotated(gradtx.scale_by_adam_hat(), refresh="svd", start="identity", **KL),
    "rotated, kl": gradtx.rotated(gradtx.scale_by_adam_hat(), statistics="kl", **KL),
    "kl_shampoo": gradtx.scale_by_kl_shampoo(**KL),
}


@pytest.mark.parametrize("case", OTHERS)
def test_others_renew_at_the_same_turns(case):
    tx = OTHERS[case]
    grads = {name: gradients(i) for i, name in enumerate(NAMES)}
    params = {name: torch.zeros(4, 5, dtype=torch.float64) for name in NAMES}
    state = tx.init(params)
    for t in range(1, 10):
        old = state
        _, state = tx.update({name: steps[t] for name, steps in grads.items()}, old, params)
        for name in NAMES:
            same = torch.equal(basis_of(old)[name], basis_of(state)[name])
            assert same != (t == 1 or (t - 1 - turn_of(name)) % PERIOD == 0), (t, name)


def basis_of(state):
    (stage,) = (stage for stage in state.values() if isinstance(stage, dict) and any(key[:1] == "Q" for key in stage))
    return stage.get("Q_0", stage.get("Q"))


def test_without_it_all_leaves_renew_at_one_step():
    tx = gradtx.soap(precondition_frequency=PERIOD)
    assert "stagger" not in repr(tx)
    leaf = gradients(0)
    together = list(pure_run(tx, dict.fromkeys(NAMES, leaf)))[-1]
    for name in NAMES:
        torch.testing.assert_close(together[name], together[NAMES[0]], rtol=0, atol=0)
