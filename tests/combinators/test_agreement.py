"""Cautious decay, as an option of aliases and after the step, and the trust gate."""

import math

import pytest
import torch

import gradtx
from gradtx.optim.classes import CLASSES
from tests.references import DECAY, RATE, Loop, Transformed, WeightsLoop, follows, problem

MASKS = {False: lambda x: torch.ones_like(x, dtype=torch.bool), True: lambda x: x > 0, "inclusive": lambda x: x >= 0}


def adamw(s, t, g, p, lr, weight_decay, cautious):
    """dion's: sign(u) sign(p) >= 0, or > 0."""
    s.m, s.v = 0.9 * s.m + 0.1 * g, 0.999 * s.v + 0.001 * g * g
    u = s.m / (1 - 0.9**t) / ((s.v / (1 - 0.999**t)).sqrt() + 1e-8)
    mask = MASKS[cautious](u * p)
    s.seen.update(mask.flatten().tolist())
    return p - lr * u - lr * weight_decay * p * mask


def lion(s, t, g, p, lr, weight_decay, cautious):
    u = (0.9 * s.m + 0.1 * g).sign()
    s.m = 0.99 * s.m + 0.01 * g
    return p - lr * (u + weight_decay * p * MASKS[cautious](u * p))


@pytest.mark.parametrize("cautious", MASKS)
@pytest.mark.parametrize(("make", "rule"), [(gradtx.adamw, adamw), (gradtx.lion, lion)])
def test_cautious_decay_of_an_alias_follows_the_loop(make, rule, cautious):
    loop = WeightsLoop(rule, lr=RATE, weight_decay=DECAY, cautious=cautious)
    follows(make(lr=RATE, weight_decay=DECAY, cautious_decay=cautious), loop, steps=30)
    assert rule is lion or loop.seen == {True, cautious is False}


def test_inclusive_decays_where_the_update_is_zero_and_strict_does_not():
    for cautious, expected in ((True, [0.0, 0.0, -1.0]), ("inclusive", [-0.5, 0.0, -1.0])):
        tx = gradtx.chain(gradtx.add_decayed_weights(1.0, cautious=cautious), gradtx.scale(-0.5))
        params = {"w": torch.tensor([1.0, -1.0, 1.0])}
        updates = tx.update({"w": torch.tensor([0.0, 0.0, 1.0])}, tx.init(params), params)[0]["w"]
        expected = torch.tensor(expected if cautious is True else [-0.5, 0.5, -1.0])
        assert torch.equal(updates, expected)


def muon_by_hand(cautious):
    return gradtx.chain(
        gradtx.trace_ema(0.95, nesterov=True),
        gradtx.orthogonalize(view="batch"),
        gradtx.scale_by_shape("original", view="batch"),
        gradtx.add_decayed_weights(0.1, cautious=cautious),
        gradtx.scale_by_learning_rate(0.02),
    )


@pytest.mark.parametrize("cautious", [True, pytest.param("inclusive", marks=pytest.mark.slow)])
def test_the_option_reaches_the_link_of_a_chain_of_every_form(cautious):
    sgd = gradtx.chain(
        gradtx.trace(0.9), gradtx.add_decayed_weights(0.3, cautious=cautious), gradtx.scale_by_learning_rate(0.05)
    )
    plain = gradtx.chain(gradtx.add_decayed_weights(0.3, cautious=cautious), gradtx.scale_by_learning_rate(0.05))
    fallback = gradtx.adamw(lr=0.05, weight_decay=0.3)
    pairs = [
        (gradtx.sgdw(0.05, momentum=0.9, weight_decay=0.3, cautious_decay=cautious), sgd),
        (gradtx.sgdw(0.05, weight_decay=0.3, cautious_decay=cautious), plain),
        # Of the leaves in `mask` only.
        (
            gradtx.sgdw(0.05, weight_decay=0.3, cautious_decay=cautious, mask="[kmw]*"),
            gradtx.partition({"a": plain, "b": gradtx.sgd(0.05)}, {"a": "[kmw]*", "b": "*"}),
        ),
        # Inside a combinator.
        (
            gradtx.schedule_free_sgd(0.05, weight_decay=0.3, cautious_decay=cautious),
            gradtx.schedule_free(gradtx.add_decayed_weights(0.3, cautious=cautious), lr=0.05, beta=0.9),
        ),
        # An alias in an alias; the caller's own transformation stays as it is.
        (
            gradtx.muon_adam_atan2(0.05, weight_decay=0.3, cautious_decay=cautious),
            gradtx.muon_adam_atan2(0.05, weight_decay=0.3, cautious_decay=cautious, mask="*"),
        ),
        (
            gradtx.adopt(0.05, weight_decay=0.3, decoupled_weight_decay=True, cautious_decay=cautious),
            gradtx.chain(
                gradtx.scale_by_adopt(),
                gradtx.add_decayed_weights(0.3, cautious=cautious),
                gradtx.scale_by_learning_rate(0.05),
                gradtx.hold_until(2),
            ),
        ),
    ]
    for tx, by_hand in pairs:
        follows(tx, by_hand)
    muon = gradtx.muon(0.05, weight_decay=0.3, fallback=fallback, cautious_decay=cautious)
    kept = gradtx.muon(0.05, weight_decay=0.3, fallback=fallback)
    updates, others = (Transformed(tx)(problem(), problem()) for tx in (muon, kept))
    assert torch.equal(updates["bias"], others["bias"])
    assert not torch.equal(updates["rows"], others["rows"])
    assert muon.replace(**{"adamw.lr": 0.5}).hyperparams["adamw.lr"] == 0.5


def test_the_alias_of_a_user_hands_the_option_to_what_it_consists_of():
    @gradtx.alias
    def averaged(lr: gradtx.Scalar = 0.1, weight_decay: gradtx.Scalar = 0.3):
        return gradtx.chain(gradtx.lion(lr, weight_decay=weight_decay), gradtx.average(0.9))

    @gradtx.alias
    def own(weight_decay: gradtx.Scalar = 0.3, cautious_decay: gradtx.Scalar = 0.5):
        return gradtx.chain(gradtx.scale(cautious_decay), gradtx.add_decayed_weights(weight_decay))

    by_hand = gradtx.chain(gradtx.lion(0.1, weight_decay=0.3, cautious_decay=True), gradtx.average(0.9))
    follows(averaged(cautious_decay=True), by_hand, tolerance=0.0)
    follows(own(), gradtx.chain(gradtx.scale(0.5), gradtx.add_decayed_weights(0.3)), rate=-0.1, tolerance=1e-14)

    @gradtx.alias
    def coupled(weight_decay: gradtx.Scalar = 0.3):
        return gradtx.chain(gradtx.adam(weight_decay=weight_decay), gradtx.average(0.9))

    with pytest.raises(ValueError, match="coupled: adam: cautious_decay needs decoupled"):
        coupled(cautious_decay=True)


def test_decay_after_the_step_is_cautious_too():
    tx = gradtx.soap(0.05, weight_decay=0.3, eps=0.1, cautious_decay=True)
    plain = Transformed(gradtx.soap(0.05, weight_decay=0.0, eps=0.1))

    def reference(grads, params):
        steps = plain(grads, params)
        if plain.state["step"] == 1:
            return steps
        return {
            name: torch.where(u * params[name] < 0, (1 - 0.05 * 0.3) * (params[name] + u), params[name] + u)
            - params[name]
            for name, u in steps.items()
        }

    follows(tx, reference)


def test_every_alias_takes_the_option_or_refuses_it_by_name():
    refused = []
    for name in CLASSES:
        alias = getattr(gradtx, name)
        arguments = alias.spec.arguments
        if "weight_decay" not in arguments.by_name:
            continue
        given = {**arguments.sample(), "weight_decay": 0.1}
        if "decoupled_weight_decay" in arguments.by_name:
            given["decoupled_weight_decay"] = True
        try:
            alias(**given, cautious_decay=True)
        except ValueError as error:
            if str(error).startswith(f"{name}: cautious_decay needs decoupled weight decay in a link of its own"):
                refused.append(name)
        alias(**{**given, "weight_decay": 0.0}, cautious_decay=True)
    coupled = (
        "sgd asgd accsgd aggmo pid swats apollo dadapt_adagrad dadapt_sgd cocob dog dowg ldog adaptive_gd lars rose"
    )
    own = "focus adamp sgdp ranger21 adamod fadam adams stable_adamw adafactor adafactor_torch muown splus namo_d adago"
    free = "dadapt_adam dadapt_adan dadapt_lion prodigy momo momo_adam madgrad prodigy_schedule_free schedule_free_plus"
    assert set(refused) == {*coupled.split(), *own.split(), *free.split()}


def test_an_optimizer_takes_the_option_and_groups_do_not_show_it():
    params = {name: torch.nn.Parameter(p) for name, p in problem().items()}
    optimizer = gradtx.optim.AdamW(params.items(), lr=0.1, weight_decay=0.3, cautious_decay="inclusive")
    assert "cautious_decay" not in optimizer.param_groups[0]
    loop = WeightsLoop(adamw, lr=0.1, weight_decay=0.3, cautious="inclusive")
    for t in range(6):
        grads = {n: torch.sin(3 * p.detach() + t) for n, p in params.items()}
        start = {n: p.detach().clone() for n, p in params.items()}
        updates = loop(grads, start)
        for n, p in params.items():
            p.grad = grads[n]
        optimizer.step()
        moved = {n: p.detach() - start[n] for n, p in params.items()}
        torch.testing.assert_close(moved, updates, rtol=0, atol=1e-12)


def after(s, t, g, p, weight_decay, lr, inner=lambda u, p: u):
    u = -0.05 * g
    q = p + inner(u, p)
    s.seen.update((u * p < 0).flatten().tolist())
    return q * (1 - lr * weight_decay * (u * p < 0).double())


def braked(u, p, outward=0.5, inward=1.0):
    """The record's: the component, then the pin."""
    a = (u * p).sum() / p.norm() ** 2
    u = u + ((outward if a > 0 else inward) - 1) * a * p
    q = p + u
    return q * (p.norm() + (u * p).sum() / p.norm()) / q.norm() - p


@pytest.mark.parametrize("inner", [False, True])
def test_decay_after_the_step_follows_the_loop(inner):
    tx = gradtx.radial_brake(0.5, 1.0) if inner else gradtx.chain()
    loop = WeightsLoop(after, weight_decay=DECAY, lr=RATE, **({"inner": braked} if inner else {}))
    step = gradtx.chain(gradtx.scale(-0.05), gradtx.cautious_decay_after(tx, DECAY, RATE))
    follows(step, loop, steps=30)
    assert loop.seen == {False, True}


def schatten4(x):
    x = x.flatten(1) if x.ndim > 1 else x.reshape(1, -1)
    return torch.linalg.svdvals(x).pow(4).sum().pow(0.25)


def cosine(a, b, eps):
    return ((a * b).sum() / max((a.norm() * b.norm()).item(), eps)).item()


def gated(s, t, g, p, least=0.2, least_gradient=0.0, floor=0.0, cap=1.0, eps=1e-8):
    s.m = 0.9 * s.m + 0.1 * g
    s.v = 0.8 * s.v + 0.2 * g * g  # reads the gradient, not u
    u, other = s.m, s.m / (s.v.sqrt() + 0.1)
    size = max(schatten4(u).item(), eps)
    other = other * size / max(schatten4(other).item(), eps)
    gate = min(max((cosine(other, u, eps) - least) / (1 - least), 0), 1)
    downhill = max(cosine(u, g, eps) - least_gradient, eps)
    gate *= min(max((cosine(other, g, eps) - least_gradient) / downhill, 0), 1)
    gate = min(max(gate, floor), cap)
    s.seen.add(0 < gate < 1)
    out = u + (other - u) * gate
    return out * size / max(schatten4(out).item(), eps)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"least": 0.9, "floor": gradtx.linear_schedule(0.6, 1.0, 0.0, 20), "cap": 0.7},
        {"least": -0.5, "least_gradient": 0.1, "eps": 0.3},
    ],
    ids=str,
)
def test_the_gate_follows_the_loop(options):
    tx = gradtx.chain(gradtx.trace_ema(0.9), gradtx.blend_by_agreement(reads_gradient(), **options))
    loop = Loop(gated, **options)
    follows(tx, loop, rate=-0.1, steps=30)
    assert True in loop.seen


@gradtx.per_tensor(elementwise=True)
def reads_gradient():
    def update(u, state, p, ctx):
        v = 0.8 * state["v"] + 0.2 * ctx.grad.square()
        return u / (v.sqrt() + 0.1), {"v": v}

    return {"v": gradtx.slots.square()}, update


def test_what_makes_no_sense():
    with pytest.raises(TypeError, match="adamw: cautious_decay must be a bool or name, got 3"):
        gradtx.adamw(cautious_decay=3)
    with pytest.raises(
        ValueError, match=r"adam: cautious_decay needs .* another rule; pass decoupled_weight_decay=True"
    ):
        gradtx.adam(weight_decay=0.1, cautious_decay=True)
    with pytest.raises(ValueError, match="adabelief: add_decayed_weights: fixed and cautious cannot be combined"):
        gradtx.adabelief(weight_decay=0.1, fixed_decay=True, cautious_decay=True)
    with pytest.raises(TypeError, match=r"unknown argument 'cautious_wd'; did you mean 'cautious_decay'\?"):
        gradtx.lion(cautious_wd=True)
    assert math.isfinite(
        gradtx.blend_by_agreement(gradtx.chain()).update({"w": torch.zeros(2)}, {"step": torch.tensor(0)})[0]["w"].sum()
    )
