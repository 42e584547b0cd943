"""Chains of docs/other-names.md run, and those that are said to be equal take the steps of a plain loop."""

import math
import re
import runpy
from pathlib import Path

import pytest
import torch

import gradtx
from gradtx.base.other_names import ALL_LEAVES, MATRICES, OTHER_NAMES
from tests.algorithms.matrices import orthogonal, shape
from tests.matrix_problem import newton_schulz
from tests.references import Transformed, TreeLoop, WeightsLoop, adam_moments, compare

DOCS = Path(__file__).parents[2] / "docs"
LR = 0.02
SIMPLE = (3.4445, -4.7750, 2.0315)
SHAPES = {"wide": (4, 6), "tall": (6, 4), "head": (4, 4)}
VECTORS = {"wbias": (5,), "scalar": ()}
STEPS = 30  # beyond the first synchronization of SNOO


def drawn(seed, shapes):
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()}


def walk(stepper, shapes):
    """The weights after each step."""
    params = drawn(0, shapes)
    for t in range(STEPS):
        noise = drawn(t + 1, shapes)
        grads = {name: 0.3 * param.sin() + noise[name] for name, param in params.items()}
        updates = stepper(grads, params)
        params = {name: param + updates[name] for name, param in params.items()}
        yield params


def transformation(chain):
    """What a row of the page has for gradtx."""
    names = {name: getattr(gradtx, name) for name in gradtx.__all__}
    return eval(chain, {**names, "lr": LR})


def shapes_of(name):
    return SHAPES if name in MATRICES else {**SHAPES, **VECTORS}


# The rules of the papers, one line per symbol. `O` is the polynomial of Newton-Schulz on singular values.


def mars_m(s, t, g, p):
    c = g + 0.025 * 0.95 / 0.05 * (g - s.last)
    s.last = g
    c = c / max(1.0, c.norm().item())
    s.m = 0.95 * s.m + 0.05 * c
    return p * (1 - 0.1 * LR) - LR * shape(p, "match_rms_adamw") * orthogonal(s.m)


def rmnp(s, t, g, p):
    s.m = 0.95 * s.m + g
    u = g + 0.95 * s.m
    return p * (1 - 0.1 * LR) - LR * math.sqrt(max(1, p.shape[0] / p.shape[1])) * u / u.norm(dim=1, keepdim=True)


def muon_plus(s, t, g, p):
    s.m = 0.95 * s.m + g
    o = orthogonal(g + 0.95 * s.m)
    o = o / o.norm(dim=0)
    return p - LR * math.sqrt(p.shape[0] / p.shape[1]) * o / o.norm(dim=1, keepdim=True)


def muon_bp(s, t, g, p):
    s.m = 0.95 * s.m + 0.05 * g
    if (t - 1) % 5 == 0:
        return p - LR * 2 * orthogonal(s.m)
    return p - LR * torch.cat([orthogonal(block) for block in s.m.chunk(2)])


def turbo_muon(s, t, g, p):
    s.m = 0.95 * s.m + 0.05 * g
    u = 0.95 * s.m + 0.05 * g
    x = (u if u.shape[0] <= u.shape[1] else u.T) / u.norm()
    x = x / (x @ x.T).abs().sum(dim=1, keepdim=True).sqrt()
    for _ in range(4):
        a = x @ x.T
        x = SIMPLE[0] * x + (SIMPLE[1] * a + SIMPLE[2] * a @ a) @ x
    x = x if u.shape[0] <= u.shape[1] else x.T
    return p * (1 - 0.1 * LR) - LR * shape(p, "original") * x


def muon_squared(s, t, g, p):
    m, v = adam_moments(s, t, g, (0.95, 0.95))
    direction = newton_schulz(m / (v.sqrt() + 1e-8), [SIMPLE] * 5)
    return p * (1 - 0.1 * LR) - LR * shape(p, "original") * direction


def moso(s, t, g, p):
    s.m = 0.95 * s.m + 0.05 * g
    is_left = p.shape[0] < p.shape[1]
    u = s.m if is_left else s.m.T
    s.S = 0.95 * s.S + 0.05 * u @ u.T
    q = torch.linalg.eigh(s.S)[1].flip(1)
    rotated = q.T @ u
    s.v = 0.95 * s.v + 0.05 * rotated**2
    direction = q @ (rotated / (s.v.sqrt() + 1e-8))
    return p * (1 - 0.1 * LR) - LR * (direction if is_left else direction.T)


def sf_normuon(s, t, g, p):
    if t == 1:
        s.z = s.x = p
    s.m = 0.95 * s.m + 0.05 * g
    o = orthogonal(s.m)
    s.v = 0.95 * s.v + 0.05 * o.square().mean(dim=1, keepdim=True)
    o = o / (s.v.sqrt() + 1e-10)
    s.z = s.z - 0.2 * LR * math.sqrt(o.numel()) / o.norm() * o
    s.x = s.x + (s.z - s.x) / t
    return 0.1 * s.z + 0.9 * s.x


def snoo(s, t, grads, params):
    new = {}
    for name, p in params.items():
        leaf = s[name]
        leaf.anchor = p if t == 1 else leaf.anchor
        m, v = adam_moments(leaf, t, grads[name], (0.9, 0.999))
        new[name] = p * (1 - 0.01 * LR) - LR * m / (v.sqrt() + 1e-8)
        if t % 28 == 0:
            delta = leaf.anchor - new[name]
            leaf.b = 0.37 * leaf.b + delta
            leaf.anchor = new[name] = leaf.anchor - 0.68 * (delta + 0.37 * leaf.b)
    return new


def adam_hd(s, t, g, p):
    m, v = adam_moments(s, t, g, (0.9, 0.999))
    p = p - LR * m / (v.sqrt() + 1e-8)
    return p - 1e-4 * torch.where(p.abs() <= 0.1, p, 0.1 * p.sign())


def power_step(s, t, g, p):
    s.b = 0.9 * s.b + g
    return p - LR * (s.b.sign() * s.b.abs() ** 0.2 + 0.1 * p)


LOOPS = {
    "MARS-M": WeightsLoop(mars_m),
    "RMNP": WeightsLoop(rmnp),
    "Muon+": WeightsLoop(muon_plus),
    "MuonBP": WeightsLoop(muon_bp),
    "Turbo-Muon": WeightsLoop(turbo_muon),
    "Muon^2": WeightsLoop(muon_squared),
    "MOSO": WeightsLoop(moso),
    "SF-NorMuon": WeightsLoop(sf_normuon),
    "SNOO": TreeLoop(snoo),
    "AdamHD": WeightsLoop(adam_hd),
    "PowerStep": WeightsLoop(power_step),
}
# Small singular values of a momentum amplify rounding; moso divides by entries that its basis makes nearly 0.
TOLERANCE = 1e-9


def titled(method):
    return method.title


@pytest.mark.parametrize("method", OTHER_NAMES, ids=titled)
def test_the_chain_of_a_name_trains(method):
    tx = transformation(method.chain)
    first, *_, last = walk(Transformed(tx), shapes_of(method))
    assert all(param.isfinite().all() for param in last.values())
    assert all(not torch.equal(first[name], last[name]) for name in last)


@pytest.mark.parametrize("method", [method for method in OTHER_NAMES if method.equal], ids=titled)
def test_the_chain_of_a_name_takes_the_steps_of_the_paper(method):
    shapes = shapes_of(method)
    ours = walk(Transformed(transformation(method.chain)), shapes)
    compare(ours, walk(LOOPS[method.title], shapes), TOLERANCE)


def test_the_first_eight_are_compared():
    assert all(method.equal for method in OTHER_NAMES[:8])
    assert {method.title for method in OTHER_NAMES if method.equal} == set(LOOPS)


def typed(title):
    """A title as an attribute."""
    return re.sub(r"[^A-Za-z0-9]+", "_", title).strip("_").lower()


@pytest.mark.parametrize("module", [gradtx, gradtx.optim], ids=["gradtx", "optim"])
@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("mars_m", "MARS-M"), ("MARSM", "MARS-M"), ("rmnp", "RMNP"), ("MuonPlus", "Muon+"), ("muon_bp", "MuonBP"),
        ("TurboMuon", "Turbo-Muon"), ("turbo_muon", "Turbo-Muon"), ("muon2", "Muon^2"), ("MOSO", "MOSO"),
        ("SFNorMuon", "SF-NorMuon"), ("sf_soap", "SOAP with Schedule-Free"), ("adana", "ADANA"), ("SODA", "SODA"),
        ("snoo", "SNOO"), ("MuLoCo", "MuLoCo"), ("diloco", "DiLoCo"), ("AdamHD", "AdamHD"), ("ada_hd", "AdamHD"),
        ("AdamPower", "AdamPower"), ("powerstep", "PowerStep"), ("mgup", "MGUP-AdamW"), ("SCALE", "SCALE"),
    ],
)  # fmt: skip
def test_a_name_that_is_looked_up_is_told_its_chain(module, name, title):
    method = next(method for method in OTHER_NAMES if method.title == title)
    with pytest.raises(AttributeError, match=re.escape(f"; use {method.chain}; see docs/other-names.md")):
        getattr(module, name)


def test_an_optimizer_by_such_a_name_is_told_its_chain():
    with pytest.raises(ValueError, match=r"unknown optimizer 'turbo-muon'; use chain\(trace_ema.*docs/other-names.md"):
        gradtx.create_optimizer([torch.nn.Parameter(torch.ones(2, 2))], "turbo-muon")


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("ProdigyPlusScheduleFree", "ProdigyScheduleFree"),
        ("AdamCScheduleFreePlusPaper", "ScheduleFreePlus"),
        ("KourkoutasSoftmaxFlex", "KourkoutasAdamW"),
    ],
)
def test_the_authors_class_is_told_that_of_gradtx(name, use):
    assert hasattr(gradtx.optim, use)
    with pytest.raises(AttributeError, match=f"use gradtx.optim.{use}"):
        getattr(gradtx.optim, name)


def test_no_name_of_the_table_is_one_of_gradtx():
    taken = {typed(name).replace("_", "") for name in (*gradtx.__all__, *gradtx.optim.__all__)} - {"scale"}
    spelled = {typed(word).replace("_", "") for name in OTHER_NAMES for word in (name.title, *name.spellings)}
    assert not {word for word in spelled if word != "muon"} & taken


def test_all_titles_and_spellings_differ():
    words = [word.lower().replace("-", "") for name in OTHER_NAMES for word in (name.title, *name.spellings)]
    assert len(words) == len(set(words))
    assert len(ALL_LEAVES) + len(MATRICES) == len(OTHER_NAMES)


def test_the_page_is_up_to_date():
    page = runpy.run_path(str(DOCS / "other_names.py"))["page"]()
    assert (DOCS / "other-names.md").read_text(encoding="utf-8") == page, "run `make docs-tables`"
