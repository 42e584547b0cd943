import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, PUBLISHED, RATE


def laprop(
    s, t, g, p, lr=4e-4, betas=(0.9, 0.999), eps=1e-15, weight_decay=0.0, amsgrad=False, centered=False,
    fixed_decay=False,
):  # fmt: skip
    b1, b2 = betas
    v = s.v = b2 * s.v + (1 - b2) * g**2
    if centered:
        s.a = b2 * s.a + (1 - b2) * g
        if t > 10:
            v = (v - s.a**2).clamp(min=0)
    if amsgrad and (not centered or t > 10):
        s.top = torch.maximum(s.top + 0 * v, v)
        s.seen.update((s.top > v).flatten().tolist())
        v = s.top
    s.m = b1 * s.m + (1 - b1) * g / ((v / (1 - b2**t)).sqrt() + eps)
    return p - lr * s.m / (1 - b1**t) - (1 if fixed_decay else lr) * weight_decay * p


def grams(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0):
    b1, b2 = betas
    ref.adam_moments(s, t, g, betas)
    s.seen.update((g * s.m < 0).flatten().tolist())
    size = math.sqrt(1 - b2**t) / (1 - b1**t) * s.m.abs() / (s.v.sqrt() + eps)
    return p - lr * g.sign() * size - lr * weight_decay * p


def stable_adamw(s, t, g, p, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=1e-2):
    m, v = ref.adam_moments(s, t, g, betas)
    r = (g**2 / v.clamp(min=eps**2)).mean().sqrt().item()
    s.seen.add(r > 1)
    return p - lr / max(1.0, r) * (m / (v.sqrt() + eps) + weight_decay * p)


def adamc(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, max_lr=None):
    ref.adam_moments(s, t, g, betas)
    s.top = torch.maximum(s.top + 0 * s.v, s.v)
    v = (s.top if amsgrad else s.v) / (1 - betas[1] ** t)
    s.peak = max(s.peak, lr)
    peak = s.peak if max_lr is None else max_lr
    decay = lr**2 / peak * weight_decay if peak else 0.0
    return p - lr * s.m / (1 - betas[0] ** t) / (v.sqrt() + eps) - decay * p


def inverse_root(R, C):
    return (R[..., :, None] * C[..., None, :] / R.mean(dim=-1)[..., None, None]).rsqrt()


def came(
    s, t, g, p, lr=2e-4, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16), clip_threshold=1.0, weight_decay=0.0
):  # fmt: skip
    b1, b2, b3 = betas
    sq = g**2 + eps[0]
    if g.ndim >= 2:
        s.R = b2 * s.R + (1 - b2) * sq.mean(dim=-1)
        s.C = b2 * s.C + (1 - b2) * sq.mean(dim=-2)
        x = g * inverse_root(s.R, s.C)
    else:
        s.v = b2 * s.v + (1 - b2) * sq
        x = g / s.v.sqrt()
    rms = x.square().mean().sqrt().item()
    s.seen.add(rms > clip_threshold)
    x = x / max(1.0, rms / clip_threshold)
    u = s.m = b1 * s.m + (1 - b1) * x
    if g.ndim >= 2:
        res = (x - s.m) ** 2 + eps[1]
        s.Rr = b3 * s.Rr + (1 - b3) * res.mean(dim=-1)
        s.Cr = b3 * s.Cr + (1 - b3) * res.mean(dim=-2)
        u = s.m * inverse_root(s.Rr, s.Cr)
    return p - lr * (u + weight_decay * p)


def adam_mini(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, block="row"):
    b1, b2 = betas
    if block == "tensor" or (g.ndim < 2 and block == "row"):
        blocks = [slice(None)]
    else:
        n = g.shape[0] if block == "row" else block
        size = g.shape[0] // n if g.ndim else 1
        blocks = [slice(i * size, (i + 1) * size) for i in range(n)]
    s.m = b1 * s.m + (1 - b1) * g
    s.v = s.v or [0.0] * len(blocks)
    d = torch.empty_like(g)
    for i, rows in enumerate(blocks):
        part = (lambda x, rows=rows: x) if g.ndim == 0 else (lambda x, rows=rows: x[rows])
        s.v[i] = b2 * s.v[i] + (1 - b2) * part(g).square().mean().item()
        scaled = part(s.m) / (1 - b1**t) / (math.sqrt(s.v[i] / (1 - b2**t)) + eps)
        if g.ndim:
            d[rows] = scaled
        else:
            d = scaled
    return p - lr * (d + weight_decay * p)


def history_clipped(s, t, grads, lambda_rel, lambda_abs, beta, warmup_steps, eps):
    clipped, whole = {}, ref.global_norm(grads)
    for name, g in grads.items():
        own, n = s[name], g.norm().item()
        gamma = own.gamma if t > 1 else math.inf
        if t == 1 or t < warmup_steps:
            clipped[name] = g * min(1.0, lambda_abs / (whole + eps))
            own.gamma = min(gamma, clipped[name].norm().item())
        else:
            clipped[name] = g * min(1.0, lambda_rel * max(gamma, eps) / max(n, eps))
            own.seen.add(clipped[name].norm().item() < n * (1 - 1e-12))
            own.gamma = beta * gamma + (1 - beta) * clipped[name].norm().item()
    return clipped


def adagc(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, beta=0.98, lambda_abs=1.0, lambda_rel=1.05,
    warmup_steps=100,
):  # fmt: skip
    new = {}
    for name, c in history_clipped(s, t, g, lambda_rel, lambda_abs, beta, warmup_steps, eps).items():
        m, v = ref.adam_moments(s[name], t, c, betas)
        new[name] = p[name] - lr * (m / (v.sqrt() + eps) + weight_decay * p[name])
    return new


def ftrl(s, t, g, p, lr=1e-3, lr_power=-0.5, beta=0.0, l1=0.0, l2=0.0, initial_accumulator_value=0.0):
    q = -lr_power
    n = torch.full_like(g, initial_accumulator_value) if t == 1 else s.n
    s.n = n + g**2
    s.z = s.z + g - (s.n**q - n**q) / lr * p
    s.seen.update((s.z.abs() <= l1).flatten().tolist())
    moved = (s.z.sign() * l1 - s.z) / ((beta + s.n**q) / lr + l2)
    return torch.where(s.z.abs() <= l1, 0.0, moved)


SOME = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.3}
SCHEDULED = {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}
BOTH = {True, False}
OPTIONS = [
    *(
        (alias, rule, options, set())
        for alias, rule in (
            (gradtx.laprop, laprop), (gradtx.grams, grams), (gradtx.stable_adamw, stable_adamw),
            (gradtx.adamc, adamc), (gradtx.adam_mini, adam_mini),
        )
        for options in ({}, SOME, SCHEDULED)
    ),
    (gradtx.laprop, laprop, {**SOME, "weight_decay": 0.01, "fixed_decay": True}, set()),
    (gradtx.laprop, laprop, {**SOME, "betas": (0.8, 0.7), "amsgrad": True}, BOTH),
    (gradtx.laprop, laprop, {**SOME, "betas": (0.8, 0.99), "centered": True}, set()),
    (gradtx.laprop, laprop, {**SOME, "betas": (0.8, 0.9), "centered": True, "amsgrad": True}, BOTH),
    (gradtx.laprop, laprop, {**SCHEDULED, "centered": True, "amsgrad": True, "fixed_decay": True}, BOTH),
    (gradtx.grams, grams, {"lr": 0.02}, BOTH),
    (gradtx.stable_adamw, stable_adamw, {"lr": 0.02, "betas": (0.5, 0.7), "weight_decay": 0.3}, BOTH),
    (gradtx.stable_adamw, stable_adamw, {"lr": 0.02, "betas": (0.5, 0.7), "weight_decay": 0.0, "eps": 0.2}, BOTH),
    (gradtx.adamc, adamc, {"lr": RATE, "weight_decay": 0.5, "max_lr": 0.07}, set()),
    (gradtx.adamc, adamc, {"lr": RATE, "weight_decay": 0.5}, set()),
    (gradtx.adamc, adamc, {"lr": gradtx.warmup_cosine_schedule(20, 0.05, warmup_steps=8), "weight_decay": 0.5}, set()),
    (gradtx.adamc, adamc, {"lr": RATE, "max_lr": RATE, "betas": (0.8, 0.7), "amsgrad": True}, set()),
    (gradtx.came, came, {}, {True}),
    (gradtx.came, came, {"lr": 0.002, "betas": (0.8, 0.9, 0.95), "weight_decay": 0.3, "clip_threshold": 1.4}, BOTH),
    (gradtx.came, came, {"lr": 0.002, "eps": (0.01, 0.02), "clip_threshold": 0.5}, {True}),
    (gradtx.came, came, {"lr": RATE, "betas": (BETA, BETA, BETA), "eps": (BETA, BETA), "weight_decay": DECAY}, set()),
    (gradtx.adam_mini, adam_mini, {**SOME, "block": "tensor"}, set()),
    (gradtx.adam_mini, adam_mini, {**SOME, "block": 1}, set()),
    (gradtx.ftrl, ftrl, {"lr": 0.1}, {False}),
    (gradtx.ftrl, ftrl, {"lr": 0.1, "beta": 0.5, "l1": 0.05, "l2": 0.3}, BOTH),
    (gradtx.ftrl, ftrl, {"lr": 0.1, "lr_power": -0.8, "l1": 0.02, "initial_accumulator_value": 0.1}, BOTH),
    (gradtx.ftrl, ftrl, {"lr": 0.1, "lr_power": 0.0}, {False}),
    (gradtx.ftrl, ftrl, {"lr": RATE, "beta": BETA, "l1": BETA, "l2": DECAY}, BOTH),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options", "seen"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options, seen):
    reference = ref.WeightsLoop(rule, **options)
    ref.follows(alias(**options), reference)
    assert reference.seen >= seen


GC = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}
ADAGC = [
    ({}, set()),
    ({**GC, "beta": 0.7, "lambda_abs": 0.3, "lambda_rel": 1.02, "warmup_steps": 6}, BOTH),
    ({**GC, "warmup_steps": 0, "lambda_rel": 1.5}, BOTH),
    ({**GC, "warmup_steps": 1, "lambda_abs": 0.05, "lambda_rel": 1.3, "beta": 0.0}, BOTH),
    (
        {"lr": RATE, "beta": BETA, "lambda_abs": BETA, "lambda_rel": BETA, "weight_decay": DECAY, "warmup_steps": 5},
        BOTH,
    ),
]


@pytest.mark.parametrize(("options", "seen"), ADAGC, ids=ref.named)
def test_adagc_follows_the_loop(options, seen):
    reference = ref.TreeLoop(adagc, **options)
    ref.follows(gradtx.adagc(**options), reference)
    assert reference.seen >= seen


class Decaying(ref.Published):
    """AdamW whose rate, and with it the decay that makes it AdamC, is written at every step."""

    def __init__(self, optimizer, rates, peak, weight_decay, **options):
        super().__init__(optimizer, lr=1.0, weight_decay=weight_decay, **options)
        self.rates, self.peak, self.weight_decay = iter(rates), peak, weight_decay

    def advance(self):
        rate = next(self.rates)
        self.optimizer.param_groups[0].update(lr=rate, weight_decay=self.weight_decay * rate / self.peak)
        super().advance()


def test_adamc_is_adamw_with_the_decay_written_at_every_step():
    rates = [RATE(t) for t in range(40)]
    published = Decaying(torch.optim.AdamW, rates, max(rates), 0.5)
    ref.weights_follow(gradtx.adamc(lr=RATE, weight_decay=0.5), published, tolerance=PUBLISHED)
    ref.follows(gradtx.adamc(lr=0.05, weight_decay=0.5), gradtx.adamw(lr=0.05, weight_decay=0.5))


def test_adam_mini_of_four_heads_follows_the_loop_on_leaves_that_they_divide():
    options = {**SOME, "block": 4}
    tx, loop = ref.Transformed(gradtx.adam_mini(**options)), ref.WeightsLoop(adam_mini, **options)
    generator = torch.Generator().manual_seed(0)
    shapes = {"heads": (8, 3), "kernel": (4, 2, 2, 2), "vector": (12,)}
    params = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    for _ in range(30):
        grads = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in params.items()}
        updates, expected = tx(grads, params), loop(grads, params)
        for name, update in updates.items():
            torch.testing.assert_close(update, expected[name], rtol=1e-10, atol=0)
        params = {name: p + updates[name] for name, p in params.items()}


def test_blocks_that_do_not_divide_a_leaf_are_an_error_that_names_it():
    message = (
        "^scale_by_block_adam: leaf 'head.weight' has 6 entries along dimension 0, "
        "which is not divisible into 4 blocks; use partition"
    )
    with pytest.raises(ValueError, match=message):
        gradtx.adam_mini(block=4).init({"head": {"weight": torch.zeros(6, 2)}, "w": torch.zeros(8, 2)})
    with pytest.raises(ValueError, match="leaf 'scalar' has 1 entries"):
        gradtx.adam_mini(block=2).init({"scalar": torch.zeros(())})


def test_blocks_have_one_entry_each():
    params = {"w": torch.zeros(8, 2), "b": torch.zeros(8)}

    def shapes(block):
        slots = gradtx.scale_by_block_adam(block=block).init(params)["scale_by_block_adam"]["vmean"]
        return {name: tuple(value.shape) for name, value in slots.items()}

    assert shapes("row") == {"w": (8,), "b": (1,)}
    assert shapes("tensor") == {"w": (1,), "b": (1,)}
    assert shapes(4) == {"w": (4,), "b": (4,)}


def test_ftrl_makes_a_weight_without_gradients_zero():
    assert ref.first_update(gradtx.ftrl(), [0.0, 0.0], [3.0, -1.0]) == [-3.0, 1.0]


def test_the_decay_of_stable_adamw_is_shortened_too():
    tx = gradtx.stable_adamw(lr=1.0, betas=(0.0, 0.99), weight_decay=0.5)
    step = ref.Transformed(tx)
    for grad in (1.0, 100.0):
        update = step({"w": torch.tensor([grad])}, {"w": torch.tensor([2.0])})["w"]
    v = (0.01 * 0.99 + 100) / (1 - 0.99**2)
    r = 100 / math.sqrt(v)
    assert update.item() == pytest.approx(-(r + 1) / r, rel=1e-5)
