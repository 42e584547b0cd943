"""Pairs of leaves against plain float64 loops, written from the papers."""

import math

import pytest
import torch

import gradtx
from tests.references import TOLERANCE, Published, Transformed, TreeLoop, compare

STEPS = 30
# A pair of matrices whose B starts at 0, as LoRA does, one of convolutions, and a leaf in no pair.
SHAPES = {"1.A": (3, 4), "1.B": (6, 3), "2.A": (2, 3, 2, 2), "2.B": (5, 2, 1, 1), "bias": (5,)}
LORA = {"*.B": "*.A"}
HEADS = {"k.v": (6, 4), "k.o": (5, 6), "c.v": (4, 3, 2), "c.o": (3, 4), "bias": (5,)}


def weights(step, shapes, seed, steps=STEPS, zero=()):
    step = Transformed(step) if hasattr(step, "init") else step
    rng, history = torch.Generator().manual_seed(seed), []
    params = {n: (n not in zero) * torch.randn(s, generator=rng, dtype=torch.float64) for n, s in shapes.items()}
    for _ in range(steps):
        grads = {n: 0.5 * torch.randn(p.shape, generator=rng, dtype=torch.float64) + p.sin() for n, p in params.items()}
        updates = step(grads, params)
        params = {n: p + updates[n] for n, p in params.items()}
        history.append(params)
    return history


def follows(tx, reference, shapes, tolerance=TOLERANCE, **start):
    step = gradtx.chain(tx, gradtx.scale_by_learning_rate(0.02))
    compare(weights(step, shapes, 0, **start), weights(reference, shapes, 0, **start), tolerance)


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def solved(slots, t, grads, params, lr, damping):
    new = {n: p - lr * grads[n] for n, p in params.items()}
    for k in "12":
        A, B = params[f"{k}.A"].flatten(1), params[f"{k}.B"].flatten(1)
        a = torch.linalg.inv(B.T @ B + damping * eye(len(A))) @ grads[f"{k}.A"].flatten(1)
        b = grads[f"{k}.B"].flatten(1) @ torch.linalg.inv(A @ A.T + damping * eye(len(A)))
        new[f"{k}.A"] = params[f"{k}.A"] - lr * a.reshape(params[f"{k}.A"].shape)
        new[f"{k}.B"] = params[f"{k}.B"] - lr * b.reshape(params[f"{k}.B"].shape)
    return new


def test_preconditioned_pairs_follow_the_loop():
    reference = TreeLoop(solved, lr=0.02, damping=1e-2)
    follows(gradtx.precondition_pairs(LORA, 1e-2), reference, SHAPES, zero=("1.B",))


def test_a_solve_of_pairs_makes_the_step_of_the_product_independent_of_its_split():
    tx, gradient = gradtx.precondition_pairs({"B": "A"}, 1e-12), torch.randn(4, 5, dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    A, B, mix = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((2, 5), (4, 2), (2, 2)))
    changes = []
    for X, Y in ((A, B), (mix @ A, B @ torch.linalg.inv(mix))):
        params = {"A": X, "B": Y}
        updates, _ = tx.update({"A": Y.T @ gradient, "B": gradient @ X.T}, tx.init(params), params)
        changes.append(updates["B"] @ X + Y @ updates["A"])
    torch.testing.assert_close(*changes, rtol=1e-9, atol=1e-9)


def rite(slots, t, grads, params, lr, betas=(0.9, 0.999), eps=1e-6, clip=1.0, skip=1.0, cap=0.0):
    b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in betas)

    def tall(n, x):
        return x.flatten(1).T if n.endswith("A") else x.flatten(1)

    new = {n: p - lr * grads[n] for n, p in params.items()}
    names = [n for n in params if "." in n]
    other = {n: n[:-1] + ("B" if n.endswith("A") else "A") for n in names}
    U, R, g = {}, {}, {}
    for n in names:
        U[n], R[n] = torch.linalg.qr(tall(n, params[n]))
    for n in names:
        g[n] = tall(n, grads[n]) @ torch.linalg.pinv(R[other[n]])
        if skip and g[n].square().mean().sqrt() > skip:
            g[n] = 0 * g[n]
            slots[n].seen.add("skipped")
    norm = math.sqrt(sum(x.square().sum().item() for x in g.values()))
    for n in names:
        s, r = slots[n], g[n].shape[1]
        if clip:
            g[n] = g[n] * min(1, clip / norm)
            s.seen.add("clipped" if norm > clip else "whole")
        old = s.basis if t > 1 else 0 * U[other[n]]
        P = U[other[n]].T @ old
        V = P @ (s.V + torch.zeros(r, r, dtype=P.dtype)) @ P.T
        s.V = b2 * (V + V.T) / 2 + (1 - b2) * g[n].T @ g[n] / len(g[n])
        w, E = torch.linalg.eigh(s.V)
        u = g[n] @ E @ torch.diag(1 / (w.clamp(min=0).sqrt() + eps)) @ E.T
        s.m = b1 * (s.m + 0 * g[n]) @ P.T + (1 - b1) * u
        d = s.m
        if cap and s.m.square().mean().sqrt() > cap:
            d = d * cap / s.m.square().mean().sqrt()
            s.seen.add("capped")
        d = d @ torch.linalg.pinv(R[other[n]]).T
        new[n] = params[n] - lr * (d.T if n.endswith("A") else d).reshape(params[n].shape)
    for n in names:
        slots[n].basis = U[other[n]]
    return new


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, {"clipped", "skipped"}),
        ({"clip": 3.0, "skip": 2.0}, {"clipped", "skipped", "whole"}),
        ({"clip": 0.0, "skip": 0.0, "betas": (0.8, 0.9), "eps": 0.1}, set()),
        ({"clip": 0.5, "skip": 0.8, "cap": 0.2, "betas": (0.9, 0.95)}, {"clipped", "skipped", "capped"}),
    ],
)
def test_lora_rite_follows_the_loop(options, seen):
    reference = TreeLoop(rite, lr=0.02, **options)
    follows(gradtx.scale_by_lora_rite(LORA, **options), reference, SHAPES, zero=("1.B",))
    assert reference.seen == seen


def test_lora_rite_of_pytorch_optimizer_is_near():
    from pytorch_optimizer import LoRARite

    shapes = {n: SHAPES[n] for n in ("1.A", "1.B")}
    reference = Published(LoRARite, lr=0.02, betas=(0.9, 0.999), eps=1e-6)
    # eps**2 inside the root, where the authors have none: 1e-12 against mean squares of 0.01.
    follows(gradtx.scale_by_lora_rite(LORA), reference, shapes, tolerance=1e-7)


def test_the_direction_of_lora_rite_in_the_product_does_not_depend_on_its_split():
    rng = torch.Generator().manual_seed(1)
    A, B, mix = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((2, 5), (4, 2), (2, 2)))
    changes = []
    for X, Y in ((A, B), (mix @ A, B @ torch.linalg.inv(mix))):
        gradient, params, step = torch.Generator().manual_seed(2), {"A": X, "B": Y}, None
        step = Transformed(gradtx.scale_by_lora_rite({"B": "A"}, skip=0.0))
        for _ in range(5):
            G = torch.randn(4, 5, generator=gradient, dtype=torch.float64)
            d = step({"A": params["B"].T @ G, "B": G @ params["A"].T}, params)
            params = {n: p - 0.1 * d[n] for n, p in params.items()}
        changes.append(params["B"] @ params["A"])
    torch.testing.assert_close(*changes, rtol=1e-9, atol=1e-9)


def coupled(slots, t, grads, params, lr, heads, damping=1e-3):
    new = {n: p - lr * grads[n] for n, p in params.items()}
    for v, o in [(n, n[:-1] + "o") for n in params if n.endswith(".v")]:
        V, W, v_grad, w_grad = (x[n].flatten(1) for x in (params, grads) for n in (v, o))
        s = len(V) // heads
        rows = [slice(h * s, h * s + s) for h in range(heads)]
        dV, dW = torch.zeros_like(V), torch.zeros_like(W)
        for h in rows:
            dV[h] = v_grad[h] * (W[:, h].norm() ** 2 / s + damping) ** -0.5
            dW[:, h] = w_grad[:, h] * (V[h].norm() ** 2 / s + damping) ** -0.5
        dV, dW = dV * v_grad.norm() / dV.norm(), dW * w_grad.norm() / dW.norm()
        for h in rows:
            x = (V[h] * dV[h]).sum() - (W[:, h] * dW[:, h]).sum()
            x = x / (V[h].norm() ** 2 + W[:, h].norm() ** 2 + 2 * s * damping)
            dV[h], dW[:, h] = dV[h] - x * V[h], dW[:, h] + x * W[:, h]
        new[v] = params[v] - lr * dV.reshape(params[v].shape)
        new[o] = params[o] - lr * dW.reshape(params[o].shape)
    return new


@pytest.mark.parametrize(("heads", "damping"), [(1, 1e-3), (2, 0.3)])
def test_coupled_pairs_follow_the_loop(heads, damping):
    reference = TreeLoop(coupled, lr=0.02, heads=heads, damping=damping)
    follows(gradtx.couple_pairs({"*.v": "*.o"}, heads, damping), reference, HEADS)


LINKS = {
    "precondition_pairs": gradtx.precondition_pairs,
    "scale_by_lora_rite": gradtx.scale_by_lora_rite,
    "couple_pairs": lambda pairs: gradtx.couple_pairs({a: b for b, a in pairs.items()}, heads=1),
}
LEAVES = {"1.B": (4, 2), "1.A": (2, 5), "2.A": (3, 5)}
WRONG = [
    ({"*.C": "*.A"}, "(matches no|every leaf of a pair)"),
    ({"*.B": "x.A"}, "'x.A' matches no leaf; leaves: 1.B, 1.A, 2.A"),
    ({"?": "?"}, "'[?]' matches no leaf"),
    ({"1.B": "1.A", "1.A": "2.A"}, "every leaf of a pair needs exactly one partner.*1.A"),
    ({"1.B": "2.A"}, r"of shapes .* have no product"),
]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize(("pairs", "message"), WRONG)
def test_leaves_that_are_no_pair_are_an_error(name, pairs, message):
    params = {n: torch.ones(s) for n, s in LEAVES.items()}

    def step():
        tx = LINKS[name](pairs)
        tx.update(params, tx.init(params), params)

    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        step()


@pytest.mark.parametrize("name", LINKS)
def test_a_partner_without_gradient_is_an_error_and_a_pair_without_gradients_waits(name):
    tx, params = LINKS[name]({"1.B": "1.A"}), {n: torch.ones(s) for n, s in LEAVES.items()}
    state = tx.init(params)
    with pytest.raises(ValueError, match=f"{name}: every leaf of a pair needs exactly one partner, which has a grad"):
        tx.update({**params, "1.A": None}, state, params)
    updates, _ = tx.update({"1.A": None, "1.B": None, "2.A": params["2.A"]}, state, params)
    assert updates["1.A"] is None
    assert updates["2.A"].equal(params["2.A"])


@pytest.mark.parametrize("name", LINKS)
def test_the_factors_of_a_pair_may_be_in_different_groups(name):
    tx = gradtx.chain(LINKS[name]({"1.B": "1.A"}), gradtx.sgd(lr=0.1))
    params = {n: torch.nn.Parameter(torch.randn(s)) for n, s in LEAVES.items()}
    expected, _ = tx.update(params, tx.init(params), params)
    optimizer = gradtx.as_optimizer(tx, [{"params": [item]} for item in params.items()])
    before = {n: p.detach().clone() for n, p in params.items()}
    for p in params.values():
        p.grad = p.detach().clone()
    optimizer.step()
    for n, p in params.items():
        torch.testing.assert_close(p.detach() - before[n], expected[n].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [gradtx.precondition_pairs, gradtx.scale_by_lora_rite])
@pytest.mark.parametrize("pairs", [{}, [("B", "A")], {"B": 1}])
def test_pairs_are_a_dict_of_patterns(make, pairs):
    with pytest.raises(TypeError, match="pairs must be a dict of name pattern -> pattern of the partner, got"):
        make(pairs)


def test_heads_divide_and_ranks_fit():
    params = {"v": torch.ones(4, 2), "o": torch.ones(3, 4)}
    tx = gradtx.couple_pairs({"v": "o"}, heads=3)
    with pytest.raises(ValueError, match="couple_pairs: 3 heads do not divide the rows of 'v', 4"):
        tx.update(params, tx.init(params), params)
    tx = gradtx.scale_by_lora_rite({"o": "v"})
    with pytest.raises(ValueError, match=r"scale_by_lora_rite: leaf '[ov]' has rank 4, which exceeds its other size"):
        tx.update(params, tx.init(params), params)


def test_names_of_wrapped_modules_match():
    tx = gradtx.precondition_pairs(LORA)
    params = {"_orig_mod.1.B": torch.ones(4, 2), "_orig_mod.1.A": torch.ones(2, 3)}
    assert not tx.update(params, tx.init(params), params)[0]["_orig_mod.1.A"].equal(params["_orig_mod.1.A"])
