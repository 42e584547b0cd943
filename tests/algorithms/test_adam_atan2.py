import math

import adam_atan2_pytorch
import pytest
import torch
from adam_atan2_pytorch import adam_atan2_with_orthog_grad, adam_atan2_with_wasserstein_reg

import gradtx
from gradtx.maths.entries import atan2 as atan2_of
from tests import references as ref
from tests.references import BETA, DECAY, PUBLISHED, RATE, first_update


def adam_atan2(
    s, t, g, p, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, regen_reg_rate=0.0, decoupled_wd=False,
    cautious_wd=False, cautious_factor=1.0, a=1.27, b=1.0, wasserstein_reg=False, orthog_grad=False,
    orig_grad_ema_beta=0.9, clip_to_grok=False, clip_to_grok_max_norm=2.0,
):  # fmt: skip
    if t == 1:
        s.initial, s.initial_lr = p, lr if decoupled_wd else 1.0
    wd, regen = weight_decay / s.initial_lr, regen_reg_rate / s.initial_lr
    target = ref.placed_by_rank(s.initial, p) if wasserstein_reg else s.initial
    x = p + lr * regen * (target - p)
    if orthog_grad:
        u = s.e / max(s.e.norm().item(), 1e-12) if t > 1 else 0 * g
        s.e = orig_grad_ema_beta * s.e + (1 - orig_grad_ema_beta) * g
        g = g - (g * u).sum() * u
    m, v = ref.adam_moments(s, t, g, betas)
    u = torch.atan2(m, b * v.sqrt())
    if cautious_factor < 1:
        u = u * ref.caution_weights(u, g, cautious_factor)
    s.seen.update((u * x > 0).flatten().tolist())
    x = torch.where(u * x > 0, x * (1 - lr * wd), x) if cautious_wd else x * (1 - lr * wd)
    x = x - lr * a * u
    if clip_to_grok and p.ndim >= 2:
        c, h = (clip_to_grok_max_norm + 1) / 2, (clip_to_grok_max_norm - 1) / 2
        x = x / (h * torch.tanh((x.norm(dim=-1, keepdim=True) - c) / h) + c).clamp(min=1e-5)
    return x


OPTIONS = [
    (gradtx.adam_atan2, adam_atan2, {}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "betas": (0.8, 0.95), "a": 0.7, "b": 3.0, "weight_decay": 0.3}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "weight_decay": 0.004, "decoupled_wd": True}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "weight_decay": 0.3, "cautious_wd": True, "cautious_factor": 0.3}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "weight_decay": 0.3, "cautious_wd": True, "cautious_factor": 0.0}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "regen_reg_rate": 2.0, "cautious_factor": 0.3}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "regen_reg_rate": 0.1, "decoupled_wd": True, "orthog_grad": True}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.1, "regen_reg_rate": 2.0, "wasserstein_reg": True}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "orthog_grad": True, "orig_grad_ema_beta": 0.6, "weight_decay": 0.1}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "orthog_grad": True, "cautious_factor": 0.3}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "clip_to_grok": True, "weight_decay": 0.3}),
    (gradtx.adam_atan2, adam_atan2, {"lr": 0.02, "clip_to_grok": True, "clip_to_grok_max_norm": 1.2}),
    (
        gradtx.adam_atan2,
        adam_atan2,
        {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY, "decoupled_wd": True, "cautious_wd": True},
    ),
    (
        gradtx.adam_atan2,
        adam_atan2,
        {"lr": RATE, "regen_reg_rate": DECAY, "decoupled_wd": True, "wasserstein_reg": True, "orthog_grad": True},
    ),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


def test_cautious_decay_spares_some_entries_and_takes_others():
    reference = ref.WeightsLoop(adam_atan2, lr=0.02, weight_decay=0.3, cautious_wd=True)
    ref.run(reference)
    assert reference.seen == {True, False}


# Powers of two: the package's mask for cautious decay is float32, and 1 - lr * weight_decay is exact in it.
CAUTIOUS = {"lr": 2**-5, "weight_decay": 2**-2, "cautious_wd": True}
PLAIN_ATAN2 = [
    {},
    {"lr": 0.02, "betas": (0.8, 0.95), "a": 0.7, "b": 3.0, "weight_decay": 0.3},
    {"lr": 0.02, "weight_decay": 0.004, "decoupled_wd": True, "cautious_factor": 0.3},
    {**CAUTIOUS, "cautious_factor": 0.0},
    {"lr": 0.02, "regen_reg_rate": 2.0},
    {"lr": 0.02, "regen_reg_rate": 0.1, "decoupled_wd": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", PLAIN_ATAN2, ids=str)
def test_the_weights_are_those_of_adam_atan2_pytorch(options):
    published = ref.Published(adam_atan2_pytorch.AdamAtan2, **options)
    ref.weights_follow(gradtx.adam_atan2(**options), published, tolerance=PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("options", [*PLAIN_ATAN2, {"lr": 0.02, "clip_to_grok_max_norm": 1.2}], ids=str)
def test_with_clip_to_grok_they_are_those_of_its_class(options):
    published = ref.Published(adam_atan2_pytorch.AdamAtan2ClipGrok, **options)
    ref.weights_follow(gradtx.adam_atan2(**options, clip_to_grok=True), published, tolerance=PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("options", [*PLAIN_ATAN2, {"lr": 0.02, "orig_grad_ema_beta": 0.6}], ids=str)
def test_with_orthogonal_gradients_they_are_those_of_its_class(options):
    published = ref.Published(adam_atan2_with_orthog_grad.AdamAtan2, **options)
    tx = gradtx.adam_atan2(**options, orthog_grad=True)
    ref.weights_follow(tx, published, without=("scalar",), tolerance=PUBLISHED)  # the package fails on 0-d leaves


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1, "regen_reg_rate": 0.2, "decoupled_wd": True, "betas": (0.8, 0.95), "a": 0.7, "b": 3.0},
        {"lr": 0.02, "weight_decay": 0.3},
        {"lr": 0.02, "weight_decay": 0.01, "decoupled_wd": True},
    ],
    ids=str,
)
def test_with_wasserstein_regularization_they_are_those_of_its_class(options):
    published = ref.Published(adam_atan2_with_wasserstein_reg.AdamAtan2, **options)
    ref.weights_follow(gradtx.adam_atan2(**options, wasserstein_reg=True), published, tolerance=PUBLISHED)


@pytest.mark.parametrize("alias", [gradtx.adam_atan2], ids=ref.named)
def test_decay_and_regeneration_together_are_an_error_that_names_the_optimizer(alias):
    with pytest.raises(ValueError, match=f"^{alias.__name__}: weight_decay and regen_reg_rate are mutually exclusive"):
        alias(weight_decay=0.1, regen_reg_rate=0.1)


def test_a_gradient_whose_square_underflows_gives_a_quarter_turn_with_its_sign():
    # as atan2(g, 0)
    assert first_update(gradtx.scale_by_atan2(a=1.0), [1e-200, -1e-200]) == pytest.approx([math.pi / 2, -math.pi / 2])


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch.func.jvp's
@pytest.mark.parametrize("gradient", [0.0, 1e-30, 1e-40], ids=str)
def test_derivatives_are_finite_at_zero_and_where_squares_underflow(gradient):
    tx = gradtx.scale_by_atan2()
    state = tx.init({"w": torch.zeros(())})

    def direction(gradient):
        return tx.update({"w": gradient}, state)[0]["w"]

    at = torch.tensor(gradient)
    assert torch.func.grad(direction)(at).isfinite()
    _, tangent = torch.func.jvp(direction, (at,), (torch.ones(()),))
    assert tangent.isfinite()


def test_values_are_those_of_torch_atan2_whether_or_not_a_derivative_is_taken():
    y, x = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).pow(9)
    x = torch.cat([x.abs(), torch.zeros(2)])
    y = torch.cat([y, torch.tensor([1.0, 0.0])])
    values = [atan2_of(y.clone().requires_grad_(), x)]
    with torch.no_grad():
        values.append(atan2_of(y, x))
    assert values[0].requires_grad
    for value in values:
        assert torch.equal(value, torch.atan2(y, x))
