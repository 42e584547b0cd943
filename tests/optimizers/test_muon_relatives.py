"""Muon's relatives against plain loops in float64, written from the papers."""

import math
import sys

import pytest
import torch
from torch import Tensor

import gradtx
from tests.references import BETA, RATE, WeightsLoop, named, weights_follow
from tests.transforms.test_orthogonalize import SETS

NOT_MATRICES = ("kernel", "bias", "scalar")


def polynomial(values, name, steps):
    triples, default = SETS[name]
    for i in range(default if steps is None else steps):
        a, b, c = triples[min(i, len(triples) - 1)]
        values = a * values + b * values**3 + c * values**5
    return values


def orthogonal(u: Tensor, name="simple", steps=None) -> Tensor:
    """By singular values: an odd polynomial of a matrix is that of each of them."""
    left, values, right = torch.linalg.svd(u, full_matrices=False)
    return left @ torch.diag(polynomial(values / max(u.norm().item(), 1e-7), name, steps)) @ right


def shape(p, name):
    rows, cols = p.shape
    return {
        "original": math.sqrt(max(1, rows / cols)),
        "spectral": math.sqrt(rows / cols),
        "max_dim": math.sqrt(max(rows, cols)),
        "match_rms_adamw": 0.2 * math.sqrt(max(rows, cols)),
        "none": 1.0,
    }[name]


def momentum_of(s, g, beta, nesterov):
    s.m = beta * s.m + (1 - beta) * g
    return beta * s.m + (1 - beta) * g if nesterov else s.m


def normuon(
    s, t, g, p, lr=1e-2, weight_decay=0.01, momentum=0.95, beta2=0.95, nesterov=True, eps=1e-10, axis="rows",
    rms=None, ns_coefficients="simple", ns_steps=None, adjust_lr_fn="original", ns_dtype=None, fallback=None,
):  # fmt: skip
    o = orthogonal(momentum_of(s, g, momentum, nesterov), ns_coefficients, ns_steps)
    rows, cols = o.shape
    dim = 0 if axis == "long" and cols > rows else 1
    s.seen.add(dim)
    s.q = beta2 * s.q + (1 - beta2) * (o**2).mean(dim)
    n = o / (s.q.sqrt() + eps).unsqueeze(dim)
    if rms is None:
        n = n * o.norm() / max(n.norm().item(), eps) * shape(p, adjust_lr_fn)
    else:
        n = n * rms * math.sqrt(rows * cols) / max(n.norm().item(), eps)
    return p * (1 - lr * weight_decay) - lr * n


def adamuon(
    s, t, g, p, lr=0.02, weight_decay=0.01, betas=(0.95, 0.999), nesterov=True, eps=1e-8, sign=False,
    rescale="sqrt_min", correct_bias=True, ns_coefficients="simple", ns_steps=None, adjust_lr_fn="match_rms_adamw",
    ns_dtype=None, fallback=None,
):  # fmt: skip
    u = momentum_of(s, g, betas[0], nesterov)
    o = orthogonal(u.sign() if sign else u, ns_coefficients, ns_steps)
    s.v = betas[1] * s.v + (1 - betas[1]) * o**2
    d = o / ((s.v / (1 - betas[1] ** t if correct_bias else 1)).sqrt() + eps)
    if rescale == "rms":
        d = d * 0.2 * math.sqrt(d.numel()) / (d.norm() + eps)
    if rescale == "sqrt_min":
        d = d * math.sqrt(min(d.shape)) / (d.norm() + eps)
    return p * (1 - lr * weight_decay) - lr * shape(p, adjust_lr_fn) * d


def namo(
    s, t, g, p, lr=3e-4, weight_decay=0.01, betas=(0.95, 0.95), nesterov=False, eps=1e-8, correct_bias=False,
    ns_coefficients="quintic", ns_steps=None, adjust_lr_fn="max_dim", ns_dtype=None, fallback=None,
):  # fmt: skip
    u = momentum_of(s, g, betas[0], nesterov)
    s.v = betas[1] * s.v + (1 - betas[1]) * (g**2).sum()
    size, v = u.norm(), s.v
    if correct_bias:
        size, v = size / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    d = orthogonal(u, ns_coefficients, ns_steps) * size / (v.sqrt() + eps)
    return p * (1 - lr * weight_decay) - lr * shape(p, adjust_lr_fn) * d


def contra_muon(
    s, t, g, p, lr=0.0375, weight_decay=0.0, momentum=0.95, nesterov=True, contra=0.4, power_steps=5,
    ns_coefficients="newton_schulz", ns_steps=None, adjust_lr_fn="original", ns_dtype=None, fallback=None,
):  # fmt: skip
    u = momentum_of(s, g, momentum, nesterov)
    o = orthogonal(u, ns_coefficients, ns_steps)
    v = torch.ones(u.shape[1], dtype=u.dtype) / math.sqrt(u.shape[1])
    for _ in range(power_steps):
        w = u @ v / (u @ v).norm()
        v = u.T @ w / (u.T @ w).norm()
    d = o - contra / 2 * u / max((u @ v).norm().item(), 1e-10)
    d = d * o.norm() / max(d.norm().item(), 1e-10)
    return p * (1 - lr * weight_decay) - lr * shape(p, adjust_lr_fn) * d


def aurora(
    s, t, g, p, lr=0.05, momentum=0.95, nesterov=True, weight_decay=0.025, balance=2, balance_power=0.5,
    ns_coefficients="newton_schulz", ns_steps=12, adjust_lr_fn="original", ns_dtype=None, fallback=None,
):  # fmt: skip
    y = momentum_of(s, g, momentum, nesterov)
    rows, cols = p.shape
    if rows == cols or balance == 0:
        d = orthogonal(y, ns_coefficients, ns_steps)
    else:
        y = y.T if rows < cols else y
        D = 1 / y.norm(dim=1).clamp(min=1e-7)
        for _ in range(balance):
            d = orthogonal(torch.diag(D) @ y, ns_coefficients, ns_steps)
            D = D * (y.shape[1] / y.shape[0] / d.square().sum(1).clamp(min=1e-14)) ** balance_power
        d = d.T if rows < cols else d
    return p * (1 - lr * weight_decay) - lr * shape(p, adjust_lr_fn) * d


def muown(
    s, t, g, p, lr=3e-4, momentum=0.95, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8, ns_coefficients="quintic",
    ns_steps=None, adjust_lr_fn="max_dim", ns_dtype=None, fallback=None,
):  # fmt: skip
    if t == 1:
        s.gamma = s.length = p.norm(dim=1, keepdim=True)
    unit = p / s.gamma
    dgamma = (g * unit).sum(1, keepdim=True)
    s.B = momentum * s.B + (1 - momentum) * s.gamma / s.length * (g - unit * dgamma)
    v = unit * s.length - lr * shape(p, adjust_lr_fn) * orthogonal(s.B, ns_coefficients, ns_steps)
    s.m = betas[0] * s.m + (1 - betas[0]) * dgamma
    s.v = betas[1] * s.v + (1 - betas[1]) * dgamma**2
    adam = s.m / (1 - betas[0] ** t) / ((s.v / (1 - betas[1] ** t)).sqrt() + eps)
    s.gamma = (s.gamma - lr * adam) * (1 - lr * weight_decay)
    s.length = v.norm(dim=1, keepdim=True)
    return s.gamma * v / s.length


def polargrad(
    s, t, g, p, lr=3e-4, momentum=0.95, nesterov=False, weight_decay=0.01, method="newton_schulz", alpha=1.0,
    center_rows=False, ns_coefficients="quintic", ns_steps=None, ns_dtype=None, fallback=None,
):  # fmt: skip
    u = momentum_of(s, g, momentum, nesterov)
    if center_rows:
        u = u - u.mean(0)
    if method == "exact":
        left, values, right = torch.linalg.svd(u, full_matrices=False)
        known = values > 1e-7 * values.max()
        s.seen.add(bool(known.all()))
        o = left[:, known] @ right[known]
        nuclear = values[known].sum()
    else:
        o = orthogonal(u, ns_coefficients, ns_steps)
        nuclear = (o * u).sum()
    d = o * nuclear**alpha
    return p * (1 - lr * weight_decay) - lr * (d - d.mean(0) if center_rows else d)


def lmo(x, kind="auto", normalized=None, transpose=False, maximum=False):
    if kind == "auto":
        kind = {0: "bias", 1: "bias", 2: "spectral"}.get(x.ndim, "conv")
    y = x.transpose(0, 1) if transpose else x
    if kind in ("spectral", "conv"):
        out, inputs = x.shape[:2]
        size = math.sqrt(out) if normalized is False else math.sqrt(out / inputs)
        o = orthogonal(x.flatten(1), "simple").reshape(x.shape) * (max(1, size) if maximum else size)
        return o / math.prod(x.shape[2:])
    if kind == "sign":
        return x.sign() / (1 if normalized is False else x.shape[1])
    if kind == "column":
        y = y / ((y**2).mean(0) ** 0.5 * (y.shape[1] if normalized else 1) + 1e-8)
    elif kind == "row":
        y = y / ((y**2).sum(-1, keepdim=True) ** 0.5 * (1 if normalized is False else math.sqrt(y.shape[-1])) + 1e-8)
    else:
        return x / ((x**2).mean().sqrt() + 1e-8)
    return y.transpose(0, 1) if transpose else y


def scion(s, t, g, p, lr=1e-3, momentum=0.1, scale=1.0, unconstrained=False, kinds=None, oracle=lmo):
    s.b = (1 - momentum) * s.b + momentum * g
    return p * (1 if unconstrained else 1 - lr) - lr * scale * oracle(s.b)


def on_sphere(s, t, p, u, lr):
    if t == 1:
        s.R = p.norm()
    q = p - lr * s.R * u / u.norm()
    return s.R * q / q.norm()


def adam_h(s, t, g, p, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0):
    s.m = betas[0] * s.m + (1 - betas[0]) * g
    s.v = betas[1] * s.v + (1 - betas[1]) * g**2
    u = s.m / (1 - betas[0] ** t) / ((s.v / (1 - betas[1] ** t)).sqrt() + eps) + weight_decay * p
    return on_sphere(s, t, p, u, lr)


def muon_h(s, t, g, p, lr=1e-2, momentum=0.95, nesterov=True, ns_coefficients="simple", ns_steps=None, fallback=None):
    return on_sphere(s, t, p, orthogonal(momentum_of(s, g, momentum, nesterov), ns_coefficients, ns_steps), lr)


FASTER = gradtx.Schedule(lambda step: 0.02 + 0.001 * step)
CASES = [
    (gradtx.normuon, normuon, {}),
    (gradtx.normuon, normuon, {"lr": RATE, "axis": "long", "beta2": 0.7, "eps": 1e-3, "adjust_lr_fn": "spectral"}),
    (gradtx.normuon, normuon, {"rms": 0.2, "nesterov": False, "ns_coefficients": "cans", "weight_decay": 0.3}),
    (gradtx.normuon, normuon, {"momentum": BETA, "rms": FASTER, "ns_coefficients": "quintic", "ns_steps": 7}),
    (gradtx.adamuon, adamuon, {}),
    (gradtx.adamuon, adamuon, {"lr": RATE, "betas": (0.8, BETA), "nesterov": False, "rescale": None, "eps": 1e-3}),
    (gradtx.adamuon, adamuon, {"sign": True, "rescale": "rms", "correct_bias": False, "adjust_lr_fn": "none"}),
    (gradtx.namo, namo, {"lr": 0.01}),
    (gradtx.namo, namo, {"lr": RATE, "nesterov": True, "betas": (0.7, 0.9), "correct_bias": True, "eps": 1e-2}),
    (gradtx.namo, namo, {"lr": 0.02, "ns_coefficients": "deepseekv4", "adjust_lr_fn": "original", "weight_decay": 0.2}),
    (gradtx.contra_muon, contra_muon, {}),
    (gradtx.contra_muon, contra_muon, {"lr": RATE, "contra": BETA, "power_steps": 2, "ns_coefficients": "simple"}),
    (gradtx.contra_muon, contra_muon, {"contra": -0.7, "nesterov": False, "weight_decay": 0.2, "momentum": 0.6}),
    (gradtx.aurora, aurora, {}),
    (gradtx.aurora, aurora, {"lr": RATE, "balance": 5, "balance_power": 0.3, "nesterov": False, "weight_decay": 0.2}),
    (gradtx.aurora, aurora, {"balance": 1, "momentum": BETA, "ns_coefficients": "quintic", "ns_steps": 5}),
    (gradtx.aurora, aurora, {"balance": 0, "adjust_lr_fn": "spectral"}),
    (gradtx.muown, muown, {}),
    (gradtx.muown, muown, {"lr": RATE, "momentum": 0.7, "weight_decay": 0.4, "betas": (0.7, 0.8), "eps": 1e-3}),
    (gradtx.muown, muown, {"lr": 0.02, "ns_coefficients": "simple", "ns_steps": 3, "adjust_lr_fn": "spectral"}),
    (gradtx.muown, muown, {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw"}),
    (gradtx.polargrad, polargrad, {"lr": 0.01}),
    (gradtx.polargrad, polargrad, {"lr": RATE, "method": "exact", "momentum": 0.5, "nesterov": True, "alpha": 0.6}),
    (gradtx.polargrad, polargrad, {"lr": 0.03, "method": "exact", "center_rows": True, "weight_decay": 0.3}),
    (gradtx.polargrad, polargrad, {"lr": 0.03, "alpha": BETA, "center_rows": True, "ns_coefficients": "cans"}),
    (gradtx.muon_h, muon_h, {}),
    (gradtx.muon_h, muon_h, {"lr": RATE, "momentum": 0.5, "nesterov": False, "ns_coefficients": "quintic"}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), CASES, ids=named)
def test_the_matrices_follow_the_loop(alias, rule, options):
    loop = WeightsLoop(rule, **options)
    weights_follow(alias(**options), loop, without=NOT_MATRICES, steps=30, tolerance=1e-10)
    if options.get("axis") == "long":
        assert loop.seen == {0, 1}


@pytest.mark.parametrize(
    "options", [{}, {"lr": RATE, "betas": (0.6, 0.7), "eps": 1e-2, "weight_decay": 0.3}], ids=named
)
def test_adam_h_follows_the_loop(options):
    weights_follow(gradtx.adam_h(**options), WeightsLoop(adam_h, **options), without=("scalar",), tolerance=1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"lr": RATE, "momentum": BETA, "scale": 3.0}, {"unconstrained": True, "scale": FASTER}], ids=named
)
def test_scion_follows_the_loop(options):
    weights_follow(gradtx.scion(**options), WeightsLoop(scion, **options), tolerance=1e-10)


def test_scion_takes_kinds_by_name_and_a_literal_momentum_of_one_keeps_no_state():
    def oracle(x):
        if x.shape == (4, 3):
            return lmo(x, "row", normalized=False)
        return lmo(x, "sign", normalized=False) if x.ndim < 2 else lmo(x)

    kinds = {"matrix": gradtx.lmo("row", normalized=False), "bias": gradtx.lmo("sign", normalized=False)}
    kinds |= {"scalar": gradtx.lmo("sign", normalized=False), "*": "auto"}
    tx = gradtx.scion(0.02, 1.0, kinds=kinds)
    weights_follow(tx, WeightsLoop(scion, lr=0.02, momentum=1.0, oracle=oracle), tolerance=1e-10)
    assert "trace_ema" not in tx.init({"matrix": torch.ones(4, 3), "bias": torch.ones(1), "scalar": torch.ones(())})
    assert repr(gradtx.scion(kinds={"*": "sign"})) == "scion(kinds={'*': 'sign'})"
    assert gradtx.scion(kinds={"a": "sign", "*": gradtx.lmo("row")}).replace(eps=0.5).hyperparams["eps"] == 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "spectral"}, {"kind": "spectral", "normalized": False}, {"kind": "spectral", "maximum": True},
        {"kind": "sign"}, {"kind": "sign", "normalized": False}, {"kind": "sign", "transpose": True},
        {"kind": "column"}, {"kind": "column", "normalized": True}, {"kind": "column", "transpose": True},
        {"kind": "row"}, {"kind": "row", "normalized": False}, {"kind": "row", "transpose": True}, {"kind": "bias"},
    ],
    ids=named,
)  # fmt: skip
def test_each_oracle_of_a_matrix(options):
    for seed in (1, 2):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for matrix in (x, x.T.contiguous()):
            tx = gradtx.lmo(**options)
            updates, _ = tx.update({"w": matrix}, tx.init({"w": matrix}))
            torch.testing.assert_close(updates["w"], lmo(matrix, **options), rtol=1e-10, atol=1e-10)


def test_a_kernel_and_numbers_go_to_the_oracle_of_their_rank():
    grads = {"kernel": torch.randn(3, 2, 2, 2).double(), "bias": torch.randn(4).double(), "scalar": torch.tensor(-2.0)}
    tx = gradtx.lmo()
    updates, _ = tx.update(grads, tx.init(grads))
    for name, grad in grads.items():
        torch.testing.assert_close(updates[name], lmo(grad), rtol=1e-7, atol=1e-10)
    assert updates["scalar"].item() == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("spectral", (5, 3)),
        ("conv", (4, 3, 2, 2)),
        ("sign", (3, 4)),
        ("column", (3, 4)),
        ("row", (3, 4)),
        ("auto", (3, 4)),
    ],
)
def test_weights_that_start_on_the_ball_are_what_the_oracle_gives_for_themselves(kind, shape):
    rng = torch.Generator().manual_seed(1)
    start = gradtx.init_for_lmo(torch.empty(shape, dtype=torch.float64), kind, scale=3.0, generator=rng)
    tx = gradtx.lmo(kind, coefs="newton_schulz", steps=40, eps=0.0)
    updates, _ = tx.update({"w": start}, tx.init({"w": start}))
    torch.testing.assert_close(3.0 * updates["w"], start, rtol=1e-7, atol=1e-10)
    assert gradtx.init_for_lmo(torch.ones(3)).tolist() == [0.0] * 3
    with pytest.raises(ValueError, match=r"init_for_lmo: kind must be 'auto', .*, got 'l2'"):
        gradtx.init_for_lmo(torch.ones(3), "l2")


WITH_FALLBACK = [
    gradtx.normuon,
    gradtx.adamuon,
    gradtx.namo,
    gradtx.contra_muon,
    gradtx.aurora,
    gradtx.spectral_sphere,
    gradtx.muown,
    gradtx.polargrad,
    gradtx.muon_h,
]


@pytest.mark.parametrize("alias", WITH_FALLBACK, ids=named)
def test_other_leaves_go_to_the_fallback_or_are_an_error_that_names_them(alias):
    params = {"w": torch.ones(2, 3), "b": torch.ones(3)}
    # A program of the default search takes seconds to record.
    short = {"ns_coefficients": "newton_schulz", "ns_steps": 1} if alias is gradtx.spectral_sphere else {}
    tx = alias(fallback=gradtx.sgd(lr=0.5), **short)
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["b"].tolist() == [-0.5] * 3
    with pytest.raises(ValueError, match=r"leaf 'b' has shape \(3,\), needs 2 dimensions"):
        alias().init(params)
    with pytest.raises(ValueError, match=r"leaf 'k' has shape \(2, 2, 2\), needs 2 dimensions"):
        alias().init({"k": torch.ones(2, 2, 2)})
    with pytest.raises(TypeError, match=f"{alias.__name__}: fallback must be a GradientTransformation, got sgd; call"):
        alias(fallback=gradtx.sgd)


# Published optimizers. Theirs iterates in bfloat16, so the iteration is put in.


@pytest.fixture
def exact_iteration(monkeypatch):
    def iterate(G, num_steps=5, eps=1e-7, weights=(3.4445, -4.7750, 2.0315), **_):
        return orthogonal(G, "simple", num_steps)

    for module in list(sys.modules.values()):
        if module.__name__.startswith("pytorch_optimizer") and hasattr(module, "zero_power_via_newton_schulz_5"):
            monkeypatch.setattr(module, "zero_power_via_newton_schulz_5", iterate)


def test_a_kind_that_is_none():
    with pytest.raises(TypeError, match="scion: lmo: kind must be a str, got 3"):
        gradtx.scion(kinds={"*": 3})
    with pytest.raises(ValueError, match=r"lmo: leaf 'b' has shape \(2,\), needs at least 2 dimensions"):
        gradtx.scion(kinds={"*": "row"}).init({"b": torch.zeros(2)})
    with pytest.raises(ValueError, match="partition: leaf 'b' has no label"):
        gradtx.scion(kinds={"w": "row"}).init({"w": torch.zeros(2, 2), "b": torch.zeros(2)})


@pytest.mark.parametrize("tx", [gradtx.muon_h(), gradtx.hyperball(gradtx.trace(0.9), 0.1)], ids=str)
def test_a_leaf_that_starts_with_norm_0_is_an_error_that_names_it(tx):
    with pytest.raises(ValueError, match=r"scale_to_radius: leaf 'o' has initial norm 0 .*partition"):
        tx.init({"w": torch.ones(2, 2), "o": torch.zeros(2, 2)})


def test_on_the_sphere_an_update_of_zero_keeps_the_weights():
    tx = gradtx.hyperball(gradtx.chain(), 0.1)
    params = {"w": torch.tensor([3.0, 4.0])}
    updates, _ = tx.update({"w": torch.zeros(2)}, tx.init(params), params)
    torch.testing.assert_close(updates["w"], torch.zeros(2), atol=1e-6, rtol=0)
