import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.optim.problems import assert_close, descend, parameters, saved_and_loaded, twins
from tests.references import BETA, PUBLISHED, RATE


def size(x):
    return math.sqrt((x * x).mean().item())


def adafactor(
    s, t, g, p, lr=None, eps=(1e-30, 1e-3), clip_threshold=1.0, decay_rate=-0.8, beta1=None, weight_decay=0.0,
    scale_parameter=True, relative_step=True, warmup_init=False,
):  # fmt: skip
    rho = lr
    if relative_step:
        rho = min(1e-6 * t if warmup_init else 1e-2, 1 / math.sqrt(t))
    alpha = rho * max(eps[1], size(p)) if scale_parameter else rho
    beta, square = 1 - t**decay_rate, g**2 + eps[0]
    if p.ndim >= 2:
        s.R = beta * s.R + (1 - beta) * square.mean(-1)
        s.C = beta * s.C + (1 - beta) * square.mean(-2)
        V = s.R[..., :, None] * s.C[..., None, :] / s.R.mean(-1)[..., None, None]
    else:
        V = s.V = beta * s.V + (1 - beta) * square
    u = g / V.sqrt()
    s.seen.add(size(u) > clip_threshold)
    u = alpha * u / max(1.0, size(u) / clip_threshold)
    if beta1 is not None:
        u = s.m = beta1 * s.m + (1 - beta1) * u
    return p * (1 - alpha * weight_decay) - u


def adafactor_torch(s, t, g, p, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0):
    eps1 = torch.finfo(torch.float64).eps if eps[0] is None else eps[0]
    beta = 1 - t**beta2_decay
    if p.ndim >= 2:
        s.R = beta * s.R + (1 - beta) * (g * g).mean(-1)
        s.C = beta * s.C + (1 - beta) * (g * g).mean(-2)
        V = s.R[..., :, None] * s.C[..., None, :] / s.R.mean(-1).clamp(min=eps1)[..., None, None]
    else:
        V = s.V = beta * s.V + (1 - beta) * g * g
    u = g / V.clamp(min=eps1**2).sqrt()
    s.seen.update((eps1**2 > V).flatten().tolist())
    alpha = max(eps[1], size(p)) * min(lr, 1 / math.sqrt(t))
    return p * (1 - lr * weight_decay) - alpha * u / max(1.0, size(u) / d)


OPTIONS = [
    (gradtx.adafactor, adafactor, {}),
    (gradtx.adafactor, adafactor, {"clip_threshold": 0.5}),
    (gradtx.adafactor, adafactor, {"beta1": 0.8, "weight_decay": 0.3, "decay_rate": -0.5, "eps": (0.1, 0.7)}),
    (gradtx.adafactor, adafactor, {"lr": 0.03, "relative_step": False, "beta1": 0.5, "weight_decay": 0.2}),
    (gradtx.adafactor, adafactor, {"lr": 0.03, "relative_step": False, "scale_parameter": False, "weight_decay": 0.2}),
    (gradtx.adafactor, adafactor, {"lr": RATE, "relative_step": False, "beta1": BETA, "eps": (1e-3, BETA)}),
    (gradtx.adafactor_torch, adafactor_torch, {}),
    (gradtx.adafactor_torch, adafactor_torch, {"lr": 0.3, "beta2_decay": -0.4, "d": 1.2, "weight_decay": 0.1}),
    (gradtx.adafactor_torch, adafactor_torch, {"lr": 0.05, "eps": (0.2, 0.7)}),
    (gradtx.adafactor_torch, adafactor_torch, {"lr": RATE, "eps": (BETA, 1e-3), "weight_decay": RATE}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


def test_a_warm_up_follows_the_loop():
    reference = ref.WeightsLoop(adafactor, warmup_init=True)
    # Steps of 1e-6: rounding of the weights hides more of them than rounding of the math.
    ref.weights_follow(gradtx.adafactor(warmup_init=True), reference, tolerance=1e-14)


def test_after_ten_thousand_steps_the_relative_step_falls_with_the_root_of_their_number():
    tx, params = gradtx.adafactor(scale_parameter=False), {"w": torch.ones(3, dtype=torch.float64)}
    state = tx.init(params)
    for step, rate in ((1, 0.01), (10_000, 0.01), (40_000, 0.005)):
        updates, _ = tx.update(params, state | {"step": torch.full_like(state["step"], step - 1)}, params)
        ref.compare_trees(updates, {"w": torch.full((3,), -rate, dtype=torch.float64)})


def test_the_bounds_of_the_references_are_met_and_not_met():
    clipped, bounded = ref.WeightsLoop(adafactor), ref.WeightsLoop(adafactor_torch, eps=(0.2, 1e-3))
    ref.run(clipped)
    ref.run(bounded)
    assert clipped.seen == bounded.seen == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"lr": None},
        {"lr": None, "warmup_init": True, "clip_threshold": 0.5, "decay_rate": -0.5},
        {"lr": None, "beta1": 0.8, "weight_decay": 0.3, "eps": (0.1, 0.7)},
        {"lr": 0.03, "relative_step": False, "scale_parameter": False},
        {"lr": 0.03, "relative_step": False, "beta1": 0.5, "weight_decay": 0.2},
    ],
    ids=str,
)
def test_adafactor_is_the_one_of_transformers(options):
    import transformers  # takes a second, which `make quick` need not wait for

    published = ref.Published(transformers.Adafactor, **options)
    ref.weights_follow(gradtx.adafactor(**options), published, tolerance=PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["row_var", "col_var", "variance", "step"])
def test_the_state_has_the_keys_shapes_and_dtypes_of_torch(name):
    params, others = parameters(torch.float32), parameters(torch.float32)
    ours, theirs = gradtx.optim.Adafactor(params.values()), torch.optim.Adafactor(others.values())
    descend(ours, params, 3)
    descend(theirs, others, 3)
    for a, b in zip(params.values(), others.values(), strict=True):
        assert ours.state[a].keys() == theirs.state[b].keys()
        if name in theirs.state[b]:
            x, y = ours.state[a][name], theirs.state[b][name]
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
            torch.testing.assert_close(x, y)


CHECKPOINTS = [{}, {"lr": 0.3, "eps": (1e-3, 1e-2), "d": 1.5, "weight_decay": 0.1, "beta2_decay": -0.5}]


@pytest.mark.slow
@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("options", CHECKPOINTS, ids=str)
def test_checkpoints_continue_in_and_from_torch(options, ours_first):
    makes = (gradtx.optim.Adafactor, torch.optim.Adafactor)
    make, remake = makes if ours_first else makes[::-1]
    params = parameters()
    optimizer = make(params.values(), **options)
    descend(optimizer, params, 10)
    own = twins(params)
    other = remake(own.values())
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    descend(optimizer, params, 10, start=10)
    descend(other, own, 10, start=10)
    assert_close(own.values(), params.values(), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [gradtx.adafactor, gradtx.adafactor_torch], ids=ref.named)
def test_rows_of_zeros_stay_finite_in_narrow_dtypes(make, dtype):
    params = {"w": torch.ones(2, 3, dtype=dtype)}
    grads = {"w": torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 1e-5]], dtype=dtype)}
    state, tx = make().init(params), make()
    for _ in range(3):
        updates, state = tx.update(grads, state, params)
        assert updates["w"].isfinite().all()
        assert not updates["w"][0].any()
