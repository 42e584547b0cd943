"""The chains of docs/howto/records.md against plain loops of the records, written from their scripts."""

import doctest
import functools
from pathlib import Path

import pytest
import torch

import gradtx
from tests.references import Slots, Transformed, compare

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "records.md"


@functools.cache
def page():
    """The names that the page's blocks define."""
    names = {"__name__": "records"}  # the module of rules that the page defines
    for example in doctest.DocTestParser().get_examples(PAGE.read_text(encoding="utf-8")):
        exec(compile(example.source, str(PAGE), "single"), names)
    return names


def draws(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}


def follows(tx, rules, shapes, steps=30, seed=0):
    """The weights of a chain and those of a loop per leaf, `rules[name](s, t, g, p)`, each along its own path."""
    ours = draws(shapes, seed)
    theirs, slots = dict(ours), {name: Slots() for name in shapes}
    step, history, expected = Transformed(tx), [], []
    for t in range(1, steps + 1):
        noise = draws(shapes, 1000 * seed + t)
        pull = 1.0 if t % 20 < 10 else -0.5  # steps toward 0, and away from it
        ours = gradtx.apply_updates(ours, step({n: (pull * p + noise[n]).tanh() for n, p in ours.items()}, ours))
        theirs = {n: rules[n](slots[n], t, (pull * p + noise[n]).tanh(), p) for n, p in theirs.items()}
        history.append(ours)
        expected.append(theirs)
    compare(history, expected)


def iterated(x, polynomials, norm):
    """Newton-Schulz of a wide matrix or the transpose of a tall one."""
    x = x / norm
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for a, b, c in polynomials:
        A = x @ x.mT
        x = a * x + (b * A + c * A @ A) @ x
    return x.mT if tall else x


def momentum(s, g, mu):
    s.m = mu * s.m + (1 - mu) * g
    return (1 - mu) * g + mu * s.m


def shape_factor(p):
    return max(1, p.shape[-2] / p.shape[-1]) ** 0.5


CLASSICAL = [(2, -1.5, 0.5)] * 12


def muon_squared(s, t, g, p, lr=0.1):
    s.v = 0.95 * s.v + 0.05 * g * g
    update = momentum(s, g, 0.95) / (s.v.sqrt() + 1e-10)
    update = iterated(update, CLASSICAL, max(update.norm().item(), 1e-7)) * shape_factor(p)
    return p * (1 - lr * 0.0125) - lr * update


@pytest.mark.parametrize("seed", [0, 3])
def test_record_7_takes_the_steps_of_the_script(seed):
    shapes = {"square": (4, 4), "wide": (3, 6), "tall": (7, 2)}
    follows(page()["muon_squared"](), dict.fromkeys(shapes, muon_squared), shapes, seed=seed)


def rate(step):
    return 0.023 * (1 - 0.9 * min(step, 1500) / 1500)


def normuon(s, t, g, p):
    lr = rate(t - 1)
    polynomials = page()["POLAR_EXPRESS"]
    update = momentum(s, g, 0.95)
    norms = update.norm(dim=(-2, -1), keepdim=True)
    v = iterated(update, polynomials, norms * 1.02)
    dim = -1 if v.shape[-2] >= v.shape[-1] else -2
    mean = v.square().mean(dim=dim, keepdim=True)
    s.second = 0.9 * s.second + 0.1 * mean
    scaled = v * s.second.clamp(min=1e-10).rsqrt()
    v = scaled * v.norm(dim=(-2, -1), keepdim=True) / scaled.norm(dim=(-2, -1), keepdim=True)
    wd, lr = 1.2 * lr, shape_factor(p) * lr
    return p - p * (v * p >= 0).double() * wd * lr - v * lr


def adam(s, t, g, p, lr=lambda step: 5 * rate(step), betas=(0.5, 0.95), decay=0.75):
    lr, (b1, b2) = lr(t - 1), betas
    s.m, s.v = b1 * s.m + (1 - b1) * g, b2 * s.v + (1 - b2) * g * g
    update = s.m / (s.v.sqrt() + 1e-10) * lr * (1 - b2**t) ** 0.5 / (1 - b1**t)
    return p - update - lr * lr * decay * p * (update * p > 0).double()


def test_track_1_takes_the_steps_of_the_script():
    names = page()
    lr = gradtx.linear_schedule(0.023, 1.0, 0.1, total_steps=1500)
    shapes = {"square": (4, 4), "wide": (3, 6), "tall": (7, 2), "bank": (3, 5, 4)}
    follows(names["track_1"](lr), dict.fromkeys(shapes, normuon), shapes)
    tx = names["track_1_adam"](names["in_proportion"](5.0, lr), (0.5, 0.95), 0.75)
    follows(tx, {"w": adam}, {"w": (5, 3)})


def powercool(step, lr, c, end=2900):
    return min(lr, c * max(0.0, end - step) ** 1.2)


def momentum_at(step):
    if step < 300:
        return 0.85 + step / 300 * 0.1
    return 0.95 - (step - 2490) / 200 * 0.1 if step > 2490 else 0.95


def schatten4(x):
    return max((x @ x.mT).norm().sqrt().item(), 1e-8)


def cosine(a, b):
    return ((a * b).sum() / max((a.norm() * b.norm()).item(), 1e-8)).item()


def bounds_at(step):
    floor = 0.45 if step < 1375 else 0.45 * max(1625 - step, 0) / 250
    return floor, 0.85 if step < 1625 else 1.0


def whitened(s, update):
    if s.t == 1:
        return update
    projected = s.rows.mT @ update @ s.columns
    s.v = 0.9 * s.v + 0.1 * projected.square()
    result = s.rows @ (projected / s.v.clamp(min=1e-16).sqrt()) @ s.columns.mT
    return result * schatten4(update) / schatten4(result)


def renew_bases(s, g):
    s.gram_rows = 0.9 * s.gram_rows + 0.1 * g @ g.mT
    s.gram_columns = 0.9 * s.gram_columns + 0.1 * g.mT @ g
    if s.t == 1:
        s.rows, s.columns = (torch.linalg.eigh(x)[1].flip(1) for x in (s.gram_rows, s.gram_columns))
        s.v = 0 * g
        return
    for name, gram, dim in (("rows", s.gram_rows, 0), ("columns", s.gram_columns, 1)):
        basis = getattr(s, name)
        order = torch.diag(basis.mT @ gram @ basis).argsort(descending=True)
        s.v = s.v.index_select(dim, order)
        setattr(s, name, torch.linalg.qr(gram @ basis[:, order])[0])


def blended(raw, soap, g, step):
    floor, cap = bounds_at(step)
    gate = min(max((cosine(soap, raw) - 0.2) / 0.8, 0), 1)
    gate *= min(max(cosine(soap, g) / max(cosine(raw, g), 1e-8), 0), 1)
    result = raw + (soap - raw) * min(max(gate, floor), cap)
    return result * schatten4(raw) / schatten4(result)


def soap_muon(s, t, g, p, gated=False):
    s.t, lr = t, powercool(t - 1, 0.0375, 3.3169534699576625e-06)
    raw = momentum(s, g, momentum_at(t - 1))
    update = whitened(s, raw)
    if gated:
        update = blended(raw, update, g, t - 1)
    update = update / max(update.norm().item(), 1e-7)
    update = iterated(update, CLASSICAL, schatten4(update)) * shape_factor(p)
    along = (update * p).sum() / p.square().sum()
    update = update + ((0.5 if along < 0 else 1.0) - 1) * along * p
    lift = 0.3825 * p.norm(dim=1, keepdim=True) / update.norm(dim=1, keepdim=True)
    update = update * lift.clamp(min=1.0)
    radius = p.norm() - lr * (update * p).sum() / p.norm()
    decays = (update * p > 0).double()
    new = p - lr * update
    new = new * radius / new.norm()
    renew_bases(s, g)
    return new * (1 - lr * 0.025 * decays)


def adamw(s, t, g, p, lr, c, beta2=0.99, correct=True):
    s.m, s.v = 0.8 * s.m + 0.2 * g, beta2 * s.v + (1 - beta2) * g * g
    m, v = (s.m / (1 - 0.8**t), s.v / (1 - beta2**t)) if correct else (s.m, s.v)
    return p - powercool(t - 1, lr, c) * m / (v.sqrt() + 1e-10)


def vector(beta2):
    return functools.partial(adamw, lr=0.01, c=1.6589351369335795e-06, beta2=beta2, correct=False)


# Hidden matrices are square, since the first bases of others are arbitrary.
RECORD_46 = {
    "embed.weight": ((6, 4), functools.partial(adamw, lr=0.3, c=4.976805410800738e-05)),
    "proj.weight": ((6, 4), functools.partial(adamw, lr=1 / 320, c=5.184172302917436e-07)),
    "blocks.0.attn.q.weight": ((4, 4), soap_muon),
    "blocks.0.attn.proj.weight": ((4, 4), functools.partial(soap_muon, gated=True)),
    "blocks.1.mlp.fc.weight": ((5, 5), soap_muon),
    "blocks.0.attn.proj.bias": ((4,), vector(0.9965)),
    "blocks.0.norm1.gains": ((4,), vector(0.99)),
    "blocks.0.mlp.fc.bias": ((5,), vector(0.997)),
}


@pytest.mark.parametrize("seed", [0, pytest.param(3, marks=pytest.mark.nightly)])
def test_record_46_takes_the_steps_of_the_script(seed):
    shapes = {name: shape for name, (shape, _) in RECORD_46.items()}
    rules = {name: rule for name, (_, rule) in RECORD_46.items()}
    follows(page()["record_46"], rules, shapes, seed=seed)


def test_the_schedules_of_record_46_follow_the_script():
    names = page()
    for step in (0, 1, 150, 299, 300, 513, 514, 515, 1375, 1376, 1500, 1624, 1625, 2490, 2491, 2600, 2689, 2900, 3000):
        count = torch.tensor(step, dtype=torch.float64)
        pairs = [
            (names["LR"], powercool(step, 0.0375, 3.3169534699576625e-06)),
            (names["AHEAD"], powercool(step, 0.3, 4.976805410800738e-05)),
            (names["MOMENTUM"], momentum_at(min(step, 2690))),
            (names["FLOOR"], bounds_at(step)[0]),
            (names["CAP"], bounds_at(step)[1]),
        ]
        for schedule, expected in pairs:
            assert float(schedule(count)) == pytest.approx(expected, rel=1e-13, abs=1e-16)


SOFT = (0.1091613623, 0.07085664498, 0.05210528973, 0.05457295795, 0.05011334061, 0.03334622198, 0.05022104481)
SOFT += (0.1053727358, 0.1187323776, 0.1185061091, 0.1185059576, 0.1185059576)


def contra_to_soft(u, step):
    """Record 29's direction; step counts from 0."""

    def sized(x):
        return x * (schatten4(polar) / schatten4(x))

    iterates = [u / schatten4(u)]
    for _ in range(12):
        iterates.append(iterated(iterates[-1], CLASSICAL[:1], 1.0))
    polar = iterates[12]
    contra = sized(polar - 0.2 * max(1 - step / 2000, 0) * iterates[0])
    soft = sized(sum(c * x for c, x in zip(SOFT, iterates[:12], strict=True)))
    return sized(contra + (soft - contra) * min(max((step - 2500) / 510, 0), 0.8))


def record_29(s, t, g, p, soap=False, lifted=False):
    lr, u = powercool(t - 1, 0.0375, 3.3169534699576625e-06, 3105), momentum(s, g, 0.95)
    if soap and t > 1:
        projected = s.rows.mT @ u @ s.columns
        s.v = 0.9 * s.v + 0.1 * projected.square()
        root = s.v.clamp(min=1e-16).sqrt()
        if lifted:
            root = root.clamp(min=0.55 * root.square().mean().sqrt().item())
        result = s.rows @ (projected / root) @ s.columns.mT
        u = 0.95 * result + 0.05 * u if lifted else result
    update = contra_to_soft(u, t - 1) * shape_factor(p)
    mean = update.square().mean(dim=-1 if p.shape[0] >= p.shape[1] else -2, keepdim=True)
    s.second = 0.95 * s.second + 0.05 * mean
    scaled = update * s.second.clamp(min=1e-10).rsqrt()
    update = scaled * schatten4(update) / schatten4(scaled)
    along = (update * p).sum() / p.square().sum()
    update = update - 0.5 * min(along.item(), 0.0) * p
    update = update * max(1.0, (0.3825 * p.norm() / update.norm()).item())
    radius = p.norm() - lr * (update * p).sum() / p.norm()
    if soap:
        renew_every_tenth(s, t, g)
    new = p - lr * update
    return new * radius / new.norm()


def renew_every_tenth(s, t, g):
    s.t = t
    if t % 10 == 1:
        return renew_bases(s, g)
    s.gram_rows = 0.9 * s.gram_rows + 0.1 * g @ g.mT
    s.gram_columns = 0.9 * s.gram_columns + 0.1 * g.mT @ g


def adam_29(s, t, g, p, lr, c):
    s.m, s.v = 0.8 * s.m + 0.2 * g, 0.95 * s.v + 0.05 * g * g
    m, v = s.m / (1 - 0.8**t), s.v / (1 - 0.95**t)
    return p - powercool(t - 1, lr, c, 3105) * m / (v.sqrt() + 1e-10)


RECORD_29 = {
    "blocks.0.attn.q.weight": ((4, 9), record_29),
    "blocks.0.attn.proj.weight": ((9, 4), record_29),
    "blocks.0.attn.v.weight": ((4, 4), functools.partial(record_29, soap=True, lifted=True)),
    "blocks.0.mlp.fc.weight": ((4, 4), functools.partial(record_29, soap=True)),
    "embed.weight": ((6, 4), functools.partial(adam_29, lr=0.3, c=4.976805410800738e-05)),
    "proj.weight": ((6, 4), functools.partial(adam_29, lr=1 / 320, c=5.184172302917436e-07)),
    "blocks.0.mlp.fc.bias": ((5,), functools.partial(adam_29, lr=0.01, c=1.6589351369335795e-06)),
}


# In the second step a whitened matrix has entries of equal size: with other seeds it is often singular, and the chain,
# which takes the rank as given, differs by 1e-3.
@pytest.mark.parametrize("seed", [6, pytest.param(8, marks=pytest.mark.nightly)])
def test_record_29_takes_the_steps_of_the_script(seed):
    shapes = {name: shape for name, (shape, _) in RECORD_29.items()}
    rules = {name: rule for name, (_, rule) in RECORD_29.items()}
    follows(page()["record_29"](rank=4), rules, shapes, seed=seed)


@pytest.mark.parametrize("step", [0, 700, 1999, 2200, 2600, 2800, 3000])
def test_the_direction_of_record_29_turns_from_contra_to_soft(step):
    u = draws({"w": (4, 9)}, step)
    tx = page()["contra_to_soft"](rank=4)
    updates, _ = tx.update(u, {name: x + step for name, x in tx.init(u).items()}, u)
    torch.testing.assert_close(updates["w"], contra_to_soft(u["w"], step), rtol=1e-10, atol=1e-10)
