"""Bases and roots that leaves renew in turns, against plain loops."""

import hashlib

import pytest
import torch

import gradtx
from gradtx.execution.leaf_rule import RuleOperation

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


# Alias -> its options, the first slot of what it renews, and the steps at which it does without turns, modulo PERIOD.
ALIASES = {
    "soap": (gradtx.soap, {"precondition_frequency": PERIOD}, "Q_0", 1),
    "kl_soap": (gradtx.kl_soap, {"precondition_frequency": PERIOD}, "Q_0", 1),
    "soap_laprop": (gradtx.soap_laprop, {"precondition_frequency": PERIOD}, "Q_0", 1),
    "kl_shampoo": (gradtx.kl_shampoo, {"precondition_frequency": PERIOD}, "Q_0", 1),
    "soap_muon": (gradtx.soap_muon, {"precondition_frequency": PERIOD}, "Q_0", 1),
    "splus": (gradtx.splus, {"inverse_steps": PERIOD}, "Q_0", 0),
    "conda": (gradtx.conda, {"update_proj_gap": PERIOD}, "Q_0", 0),
    "shampoo": (gradtx.shampoo, {"preconditioning_compute_steps": PERIOD}, "inv_pre_cond_0", 1),
}


def slot_in(state, slot):
    """The slot of the one stage that has it, by leaf."""
    for name, value in state.items():
        if name == slot:
            return value
        if isinstance(value, dict) and slot_in(value, slot) is not None:
            return slot_in(value, slot)
    return None


@pytest.mark.parametrize("name", ALIASES)
def test_no_later_step_of_an_alias_renews_all_leaves(name):
    alias, options, slot, phase = ALIASES[name]
    tx = alias(stagger=True, **options)
    grads = {leaf: gradients(i) for i, leaf in enumerate(NAMES)}
    params = {leaf: torch.zeros(4, 5, dtype=torch.float64) for leaf in NAMES}
    state = tx.init(params)
    for t in range(1, 11):
        before = slot_in(state, slot)
        _, state = tx.update({leaf: steps[t - 1] for leaf, steps in grads.items()}, state, params)
        renewed = {leaf for leaf in NAMES if not torch.equal(before[leaf], slot_in(state, slot)[leaf])}
        due = {leaf for leaf in NAMES if t == 1 or (t - phase - turn_of(leaf)) % PERIOD == 0}
        assert renewed == due, t
        assert (renewed == set(NAMES)) == (t == 1)


@pytest.fixture
def alone(monkeypatch, forget_programs):
    """Leaves without turns step one at a time, like those with turns: programs may round differently."""
    monkeypatch.setattr(RuleOperation, "refusal", lambda operation, leaf, skips_work: "a test")
    forget_programs()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_steps_a_leaf_whose_turn_comes_first_as_without_turns(name):
    alias, options, _, _ = ALIASES[name]
    first = next(f"leaf{i}" for i in range(100) if turn_of(f"leaf{i}") == 0)
    grads = {first: gradients(3)}
    results = [list(one_leaf(alias(stagger=stagger, **options), grads))[-1] for stagger in (False, True)]
    assert torch.equal(*results)


def one_leaf(tx, grads):
    (name,) = grads
    params = {name: torch.ones(4, 5, dtype=torch.float64)}
    state = tx.init(params)
    for grad in grads[name]:
        updates, state = tx.update({name: grad}, state, params)
        params = gradtx.apply_updates(params, updates)
        yield params[name]


def soap_of_phase(turn):
    inner = gradtx.scale_by_adam_hat((0.9, 0.8), 1e-3)
    return gradtx.rotated(inner, beta=0.7, precondition_frequency=PERIOD, offset=1 + turn)


def kl_soap_of_phase(turn):
    inner = gradtx.scale_by_adam_hat((0.9, 0.8), 1e-3)
    return gradtx.rotated(inner, statistics="kl", beta=0.7, precondition_frequency=PERIOD, offset=1 + turn)


def splus_of_phase(turn):
    options = {"start": "identity", "refresh": "eigh", "of": "grad"}
    signs = gradtx.rotated(gradtx.scale_by_sign(), beta=0.8, precondition_frequency=PERIOD, offset=turn, **options)
    return gradtx.chain(gradtx.trace_ema(0.9), signs, gradtx.scale_by_mean_side())


SHIFTED = {
    "soap": (soap_of_phase, {"shampoo_beta": 0.7, "eps": 1e-3, "precondition_frequency": PERIOD}),
    "kl_soap": (kl_soap_of_phase, {"shampoo_beta": 0.7, "eps": 1e-3, "precondition_frequency": PERIOD}),
    "splus": (splus_of_phase, {"inverse_steps": PERIOD}),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("leaf", NAMES[:3])
@pytest.mark.parametrize("name", SHIFTED)
def test_an_alias_steps_a_leaf_as_without_turns_at_another_phase(name, leaf):
    of_phase, options = SHIFTED[name]
    alias = getattr(gradtx, name)(0.1, (0.9, 0.8), weight_decay=0.0, stagger=True, **options)
    grads = {leaf: gradients(5)}
    shifted = gradtx.chain(of_phase(turn_of(leaf)), gradtx.scale_by_learning_rate(0.1))
    for ours, expected in zip(one_leaf(alias, grads), one_leaf(shifted, grads), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_turns_are_no_hyperparameter_and_old_state_dicts_load():
    param = torch.nn.Parameter(torch.ones(4, 5))
    param.grad = gradients(0)[0].float()
    old = gradtx.optim.SOAP([param])
    old.step()
    optimizer = gradtx.optim.SOAP([param], stagger=True)
    assert "stagger" not in optimizer.param_groups[0]
    optimizer.load_state_dict(old.state_dict())
    optimizer.step()
