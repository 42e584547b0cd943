import pytest
import torch

import gradtx
from tests.references import Transformed, WeightsLoop, compare_trees, follows, problem, run

DECAYING = gradtx.linear_schedule(0.2, start_factor=1.0, end_factor=0.1, total_iters=25)


def on_momentum(s, t, g, p, lr=0.1, beta=0.9, warmup_steps=0, r=0.0, weight_lr_power=2.0):
    """The paper's three sequences; x as the mean of all z, weighted."""
    if t == 1:
        s.z, s.zs, s.rates, s.weights = p, [], [], []
    s.m = 0.5 * s.m + g
    s.rates.append(lr * min(1, t / max(warmup_steps, 1)))
    s.z = s.z - s.rates[-1] * s.m
    s.zs.append(s.z)
    s.weights.append(t**r * max(s.rates) ** weight_lr_power)
    s.x = sum(w * z for w, z in zip(s.weights, s.zs, strict=True)) / sum(s.weights)
    return (1 - beta) * s.z + beta * s.x


OPTIONS = [
    {},
    {"lr": 0.3, "beta": 0.4, "warmup_steps": 9},
    {"lr": 0.3, "beta": 0.6, "r": 2.0, "warmup_steps": 9, "weight_lr_power": 0.5},
    {"lr": DECAYING, "r": DECAYING, "weight_lr_power": DECAYING},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_around_any_direction_it_follows_the_loop(options):
    step = Transformed(gradtx.schedule_free(gradtx.trace(0.5), **{"lr": 0.1, "beta": 0.9, **options}))
    reference = WeightsLoop(on_momentum, **options)
    follows(step, reference)
    weights = run(WeightsLoop(on_momentum, **options), weights=True)[-1]
    found = step.tx.eval_params(step.state, weights)
    expected = {name: slots.x for name, slots in reference.slots.items()}
    compare_trees(found, expected)


def test_the_average_is_never_stored():
    params = problem()
    state = gradtx.schedule_free(gradtx.trace(0.5), lr=0.1, beta=0.9).init(params)["schedule_free"]
    assert list(state) == ["z", "lr_max", "weight_sum", "trace"]
    for leaf in params:
        assert (state["lr_max"][leaf].item(), state["weight_sum"][leaf].item()) == (-1.0, 0.0)
        assert state["lr_max"][leaf].dtype == state["weight_sum"][leaf].dtype == torch.float64


def test_eval_params_leaves_parameters_and_state_alone_and_works_inside_chains():
    tx = gradtx.chain(
        gradtx.clip_by_global_norm(1.0), gradtx.masked(gradtx.schedule_free_sgd(lr=0.1), ("matrix", "bias"))
    )
    params = problem()
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(params, state, params)
        params = gradtx.apply_updates(params, updates)
    before = {name: param.clone() for name, param in params.items()}
    first, second = tx.eval_params(state, params), tx.eval_params(state, params)
    for name, param in params.items():
        assert torch.equal(param, before[name])
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], param) == (name not in ("matrix", "bias"))


def test_inside_accumulate_it_steps_once_a_cycle():
    slow = Transformed(gradtx.accumulate(gradtx.schedule_free_sgd(lr=0.1, warmup_steps=3), every=2))
    fast = Transformed(gradtx.schedule_free_sgd(lr=0.1, warmup_steps=3))
    params = other = problem()
    for _ in range(6):
        for _ in range(2):
            grads = {name: p.sin() for name, p in params.items()}
            params = gradtx.apply_updates(params, slow(grads, params))
        other = gradtx.apply_updates(other, fast({name: p.sin() for name, p in other.items()}, other))
    torch.testing.assert_close(params, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("base", "culprit"),
    [
        (gradtx.sgd(lr=0.1), "scale_by_learning_rate"),
        (gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_learning_rate(0.1)), "scale_by_learning_rate"),
        (gradtx.alig(), "scale_by_polyak"),
        (gradtx.schedule_free_sgd(), "schedule_free"),
    ],
    ids=str,
)
def test_a_base_that_steps_on_its_own_is_an_error(base, culprit):
    message = f"^schedule_free: base must return a direction, but it contains {culprit}, which applies a learning"
    with pytest.raises(ValueError, match=message):
        gradtx.schedule_free(base, lr=0.1, beta=0.9)


def test_wrapped_it_still_owns_the_learning_rate():
    for tx in (
        gradtx.schedule_free(gradtx.add_decayed_weights(0.1), lr=0.1, beta=0.9),
        gradtx.masked(gradtx.schedule_free_sgd(), "*"),
        gradtx.accumulate(gradtx.schedule_free_sgd(), every=2),
    ):
        with pytest.raises(ValueError, match="schedule_free owns the learning rate"):
            gradtx.chain(tx, gradtx.scale_by_learning_rate(0.1))


def test_a_base_that_is_no_transformation_is_refused():
    with pytest.raises(TypeError, match=r"schedule_free: base must be a GradientTransformation, got trace; call it"):
        gradtx.schedule_free(gradtx.trace, lr=0.1, beta=0.9)
