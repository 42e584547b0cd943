import math

import pytest
import torch

import gradtx
from tests.references import Loop, Transformed, finite_without_gradient, follows, named

GROWING = gradtx.Schedule(lambda step: 0.2 + 0.05 * step)


def floor_relative_update(s, t, g, p, floor=0.35, per="leaf", power=1.0, eps=1e-8):
    if per == "row" and p.ndim > 1:
        return torch.stack(
            [floor_relative_update(s, t, u, w, floor, "leaf", power, eps) for u, w in zip(g, p, strict=True)]
        )
    factor = max(floor * max(p.norm().item(), eps) / max(g.norm().item(), eps), 1.0)
    s.seen.add(factor > 1)
    return g * factor**power


def radial_brake(s, t, g, p, outward=0.5, inward=1.0, form="direction", eps=1e-8, descent=False):
    if form == "norm":
        q = p + g
        scale = outward if q.norm() >= p.norm() else inward
        s.seen.add(bool(q.norm() >= p.norm()))
        wanted = p.norm() + scale * (q.norm() - p.norm())
        return q * wanted / q.norm() - p
    a = (g * p).sum() / p.norm() ** 2
    s.seen.add(bool(a > 0))
    u = g + ((outward if (a < 0 if descent else a > 0) else inward) - 1) * a * p
    if form == "component":
        return u
    q = p + u
    return q * (p.norm() + (u * p).sum() / p.norm()) / q.norm() - p


@pytest.mark.parametrize(
    ("make", "rule", "options"),
    [
        (gradtx.floor_relative_update, floor_relative_update, {}),
        (gradtx.floor_relative_update, floor_relative_update, {"floor": GROWING, "per": "row", "power": 0.5}),
        (gradtx.floor_relative_update, floor_relative_update, {"floor": 0.1, "eps": 0.4}),
        (gradtx.radial_brake, radial_brake, {}),
        (gradtx.radial_brake, radial_brake, {"outward": GROWING, "inward": 0.3}),
        (gradtx.radial_brake, radial_brake, {"form": "component", "outward": GROWING, "inward": 0.3}),
        (gradtx.radial_brake, radial_brake, {"form": "component", "descent": True}),
        (gradtx.radial_brake, radial_brake, {"form": "norm"}),
        (gradtx.radial_brake, radial_brake, {"form": "norm", "outward": 0.1, "inward": 0.7}),
    ],
    ids=named,
)
def test_the_updates_follow_the_loop(make, rule, options):
    loop = Loop(rule, **options)
    factor = -9.0 if rule is floor_relative_update else -0.3
    scaled = gradtx.chain(gradtx.scale(factor), make(**options))

    def reference(grads, params):
        return loop({name: factor * g for name, g in grads.items()}, params)

    follows(scaled, reference, rate=0.1, tolerance=1e-10)
    assert loop.seen == {False, True}


@pytest.mark.parametrize(
    "tx", [gradtx.radial_brake(), gradtx.radial_brake(form="norm"), gradtx.floor_relative_update()], ids=str
)
def test_zeros_stay_finite_and_zero_weights_can_leave(tx):
    assert finite_without_gradient(tx)
    zero = {"w": torch.zeros(2)}
    updates, _ = tx.update({"w": torch.ones(2)}, tx.init(zero), zero)
    assert updates["w"].isfinite().all()
    if tx.hyperparams.get("form") == "direction":
        assert updates["w"].tolist() == [1.0, 1.0]


def test_what_makes_no_sense():
    with pytest.raises(ValueError, match="radial_brake needs params"):
        gradtx.radial_brake().update({"w": torch.ones(1)}, {"step": torch.tensor(0)})


# EMA-Nesterov.


def test_ema_nesterov_is_the_lookahead_of_a_plain_loop():
    rates = gradtx.Schedule(lambda step: 0.5 * 0.9**step)
    for options in ({}, {"decay": 0.7, "step_size": rates}, {"decay": 0.8, "step_size": rates, "start": 3, "stop": 9}):
        decay, step_size = options.get("decay", 0.99), options.get("step_size", 0.3)
        start, stop = options.get("start", 0), options.get("stop") or math.inf
        tx = gradtx.chain(gradtx.scale_by_adam((0.5, 0.8)), gradtx.scale(-0.05), gradtx.ema_nesterov(**options))
        inner = Transformed(gradtx.chain(gradtx.scale_by_adam((0.5, 0.8)), gradtx.scale(-0.05)))

        def reach(t, step_size=step_size, start=start, stop=stop):
            size = step_size(t - 1) if isinstance(step_size, gradtx.Schedule) else step_size
            return size if start < t <= stop else 0.0

        for seed in (0, 1):
            x = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            params, state = {"w": x}, tx.init({"w": x})
            average = torch.zeros_like(x)
            inner.state = None
            for t in range(1, 14):
                y = x + reach(t) * average
                torch.testing.assert_close(params["w"], y, rtol=1e-12, atol=1e-12)
                torch.testing.assert_close(tx.eval_params(state, params)["w"], x, rtol=1e-12, atol=1e-12)
                grad = y.sin() + 0.1 * t
                last, x = x, y + inner({"w": grad}, {"w": y})["w"]
                average = decay * average + (1 - decay) * (x - last)
                updates, state = tx.update({"w": grad}, state, params)
                params = gradtx.apply_updates(params, updates)


@pytest.mark.parametrize("compile", [False, True])
def test_ema_nesterov_sees_the_next_number_of_a_schedule_in_an_optimizer_too(compile):
    tx = gradtx.chain(
        gradtx.sgd(lr=0.1), gradtx.ema_nesterov(0.5, gradtx.Schedule(lambda step: 1.0 / (1 + step)), stop=6)
    )
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = gradtx.as_optimizer(tx, [("w", weight)], compile=compile)
    params = {"w": weight.detach().clone()}
    state = tx.init(params)
    for _ in range(8):
        grads = {"w": params["w"].sin()}
        weight.grad = grads["w"].clone()
        optimizer.step()
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        torch.testing.assert_close(weight.detach(), params["w"], rtol=1e-12, atol=1e-12)
    with optimizer.eval_params():
        torch.testing.assert_close(weight.detach(), tx.eval_params(state, params)["w"], rtol=1e-12, atol=1e-12)
