import math

import dadaptation
import prodigyopt
import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import LONG, STEPS

WARM_UP = gradtx.Schedule(lambda step: step / 8 if step < 8 else 1.0)  # from 0
FADING = gradtx.linear_schedule(1.0, start_factor=1.0, end_factor=0.2, total_iters=25)
RISING = gradtx.linear_schedule(0.9, start_factor=0.5, total_iters=20)
RATES = dict(zip(ref.problem(), (1.0, 0.5, 0.0, 2.0, 1.0, 0.3), strict=True))  # one leaf stands still
# The same sums in other orders, over 32 steps, in estimates that are differences.
CLOSE = 1e-13


# The published equations, for all weights as one vector. `lr` may be a vector: that of groups.


def dadapt_adagrad(
    s, t, g, p, lr=1.0, momentum=0.0, weight_decay=0.0, eps=1e-6, d0=1e-6, growth_rate=math.inf
):  # fmt: skip
    if t == 1:
        s.d, s.x0, s.A = d0, p, torch.full_like(p, 1e-6)
    delta, g = s.d * lr, g + weight_decay * p
    s.A = s.A + g**2
    D = s.A.sqrt() + eps
    s.s = s.s + delta * g
    if s.s.abs().sum() == 0:
        return p
    s.G = s.G + (delta**2 * g**2 / D).sum()
    d_hat = ((s.s**2 / D).sum() - s.G) / s.s.abs().sum()
    s.d = max(s.d, min(d_hat, s.d * growth_rate))
    return momentum * p + (1 - momentum) * (s.x0 - s.s / D)


def dadapt_adam(
    s, t, g, p, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False,
    use_bias_correction=False, d0=1e-6, growth_rate=math.inf,
):  # fmt: skip
    b1, b2 = betas
    if t == 1:
        s.d, s.v, s.s = d0, 0 * p, 0 * p
    correction = math.sqrt(1 - b2**t) / (1 - b1**t) if use_bias_correction else 1
    delta, c = s.d * lr * correction, math.sqrt(b2)
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    N = (delta * g * s.s / (s.v.sqrt() + eps)).sum()
    s.m = b1 * s.m + (1 - b1) * delta * g
    s.v = b2 * s.v + (1 - b2) * g**2
    s.s = c * s.s + (1 - c) * delta * g
    if s.s.abs().sum() == 0:
        return p
    s.r = c * s.r + (1 - c) * N
    d_hat = s.r / ((1 - c) * s.s.abs().sum())
    s.d = max(s.d, min(d_hat, s.d * growth_rate))
    if decoupled_weight_decay:
        p = p - weight_decay * delta * p
    return p - s.m / (s.v.sqrt() + eps)


def dadapt_sgd(s, t, g, p, lr=1.0, momentum=0.0, weight_decay=0.0, d0=1e-6, growth_rate=math.inf):
    if t == 1:
        s.d, s.x0, s.s = d0, p, 0 * p
    if not s.s.any():
        s.G0 = g[torch.as_tensor(lr) * torch.ones_like(g) != 0].norm()
    if s.G0 == 0:
        return p
    delta, g = s.d * lr / s.G0, g + weight_decay * p
    s.N = s.N + (delta * g * s.s).sum()
    s.s = s.s + delta * g
    d_hat = 2 * s.N / s.s.norm()
    s.d = max(s.d, min(d_hat, s.d * growth_rate))
    return momentum * p + (1 - momentum) * (s.x0 - s.s)


def dadapt_adan(
    s, t, g, p, lr=1.0, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.02, no_prox=False, d0=1e-6,
    growth_rate=math.inf,
):  # fmt: skip
    b1, b2, b3 = betas
    if t == 1:
        s.d = d0
    delta, change = s.d * lr, g - s.before if t > 1 else 0 * g
    s.before = g
    s.m = b1 * s.m + (1 - b1) * delta * g
    s.f = b2 * s.f + (1 - b2) * delta * change
    s.n = b3 * s.n + (1 - b3) * (g + b2 * change) ** 2
    D = s.n.sqrt() + eps
    s.s = b3 * s.s + (1 - b3) * delta * g
    if s.s.abs().sum() == 0:
        return p
    s.G = b3 * s.G + (1 - b3) * (delta**2 * g**2 / D).sum()
    d_hat = ((s.s**2 / D).sum() / (1 - b3) - s.G) / s.s.abs().sum()
    s.d = max(s.d, min(d_hat, s.d * growth_rate))
    y = (s.m + b2 * s.f) / D
    return (1 - delta * weight_decay) * p - y if no_prox else (p - y) / (1 + delta * weight_decay)


def dadapt_lion(s, t, g, p, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0, d0=1e-6):
    b1, b2 = betas
    if t == 1:
        s.d, s.s = d0, 0 * p
    delta, c = s.d * lr, math.sqrt(b2)
    y = (b1 * s.m + (1 - b1) * g).sign()
    s.m = b2 * s.m + (1 - b2) * delta * g
    N = (delta * y * s.s).sum()
    s.s = c * s.s + (1 - c) * delta * y
    if s.s.abs().sum() == 0:
        return p
    s.r = c * s.r + (1 - c) * N
    s.d = max(s.d, s.r / ((1 - c) * s.s.abs().sum()))
    return (1 - delta * weight_decay) * p - delta * y


def prodigy(
    s, t, g, p, lr=1.0, betas=(0.9, 0.999), beta3=None, eps=1e-8, weight_decay=0.0, decoupled_weight_decay=True,
    use_bias_correction=False, safeguard_warmup=False, d0=1e-6, d_coef=1.0, growth_rate=math.inf, slice_p=1,
):  # fmt: skip
    b1, b2 = betas
    b3 = math.sqrt(b2) if beta3 is None else beta3
    if t == 1:
        s.d = s.d_max = d0
        s.p0, s.v = p, 0 * p
        # which entries of the long vector are every slice_p-th of their leaf
        s.S = torch.cat([torch.arange(n) % slice_p == 0 for n in s.sizes.values()])
    correction = math.sqrt(1 - b2**t) / (1 - b1**t) if use_bias_correction else 1
    lr = lr * torch.ones_like(p)
    delta = s.d * lr * correction
    if not decoupled_weight_decay:
        g = g + weight_decay * p
    N = b3 * s.N + (s.d / d0) * (delta * g * (s.p0 - p))[s.S].sum()
    s.m = b1 * s.m + (1 - b1) * s.d * g
    s.v = b2 * s.v + (1 - b2) * s.d**2 * g**2
    weight = s.d * (lr != 0).double() if safeguard_warmup else delta
    s.s = b3 * s.s + (s.d / d0) * (weight * g)[s.S]
    if s.s.abs().sum() == 0:
        return p
    s.N = N
    d_hat = d_coef * N / s.s.abs().sum()
    new = max(s.d, d_hat) if s.d == d0 else s.d
    s.d_max = max(s.d_max, d_hat)
    s.d = min(s.d_max, new * growth_rate)
    if decoupled_weight_decay:
        p = p - weight_decay * delta * p
    return p - delta * s.m / (s.v.sqrt() + s.d * eps)


OPTIONS = [
    (gradtx.dadapt_adagrad, dadapt_adagrad, {}),
    (gradtx.dadapt_adagrad, dadapt_adagrad, {"d0": 0.01, "eps": 0.05}),
    (gradtx.dadapt_adagrad, dadapt_adagrad, {"d0": 0.1, "momentum": 0.7, "weight_decay": 0.2, "growth_rate": 1.1}),
    (gradtx.dadapt_adagrad, dadapt_adagrad, {"d0": 0.1, "momentum": RISING, "weight_decay": FADING, "lr": WARM_UP}),
    (gradtx.dadapt_adam, dadapt_adam, {}),
    (gradtx.dadapt_adam, dadapt_adam, {"d0": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "use_bias_correction": True}),
    (gradtx.dadapt_adam, dadapt_adam, {"d0": 1e-3, "betas": (0.8, 0.9), "weight_decay": 0.2, "growth_rate": 1.1}),
    (gradtx.dadapt_adam, dadapt_adam, {"d0": 0.01, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    (gradtx.dadapt_adam, dadapt_adam, {"d0": 0.01, "lr": WARM_UP, "weight_decay": FADING, "use_bias_correction": True}),
    (gradtx.dadapt_sgd, dadapt_sgd, {}),
    (gradtx.dadapt_sgd, dadapt_sgd, {"d0": 0.01, "momentum": 0.7, "weight_decay": 0.2}),
    (gradtx.dadapt_sgd, dadapt_sgd, {"d0": 0.01, "lr": FADING, "growth_rate": 1.1}),
    (gradtx.dadapt_sgd, dadapt_sgd, {"d0": 0.01, "lr": WARM_UP, "weight_decay": FADING, "momentum": RISING}),
    (gradtx.dadapt_adan, dadapt_adan, {}),
    (gradtx.dadapt_adan, dadapt_adan, {"d0": 0.01, "betas": (0.8, 0.7, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
    (gradtx.dadapt_adan, dadapt_adan, {"d0": 0.01, "no_prox": True, "weight_decay": 0.3, "growth_rate": 1.1}),
    (gradtx.dadapt_adan, dadapt_adan, {"d0": 0.01, "lr": WARM_UP, "weight_decay": FADING}),
    (gradtx.dadapt_lion, dadapt_lion, {}),
    (gradtx.dadapt_lion, dadapt_lion, {"d0": 0.01, "betas": (0.7, 0.9), "weight_decay": 0.3}),
    (gradtx.dadapt_lion, dadapt_lion, {"d0": 0.01, "lr": WARM_UP, "weight_decay": FADING}),
    (gradtx.prodigy, prodigy, {}),
    (gradtx.prodigy, prodigy, {"d0": 1e-3, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.3}),
    (gradtx.prodigy, prodigy, {"d0": 1e-3, "betas": (0.0, 0.9), "beta3": 0.8, "eps": 0.1, "d_coef": 0.5}),
    (gradtx.prodigy, prodigy, {"d0": 1e-3, "weight_decay": 0.3, "decoupled_weight_decay": False, "slice_p": 3}),
    (gradtx.prodigy, prodigy, {"d0": 1e-3, "use_bias_correction": True, "growth_rate": 1.1, "slice_p": 2}),
    (gradtx.prodigy, prodigy, {"d0": 1e-3, "safeguard_warmup": True, "lr": WARM_UP, "use_bias_correction": True}),
    (gradtx.prodigy, prodigy, {"d0": 1e-3, "lr": WARM_UP, "weight_decay": FADING}),
]
RULES = {rule.__name__: (make, rule) for make, rule, _ in OPTIONS}
CLASSES = {
    "dadapt_adagrad": gradtx.optim.DAdaptAdaGrad,
    "dadapt_adam": gradtx.optim.DAdaptAdam,
    "dadapt_sgd": gradtx.optim.DAdaptSGD,
    "dadapt_adan": gradtx.optim.DAdaptAdan,
    "dadapt_lion": gradtx.optim.DAdaptLion,
    "prodigy": gradtx.optim.Prodigy,
}


def shared(step):
    """The values that all leaves of a functional run share."""
    (entry,) = [entry for name, entry in step.state.items() if name.startswith("scale_by")]
    return {name: value.item() for name, value in entry.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize(("make", "rule", "options"), OPTIONS, ids=ref.named)
def test_follows_the_loop_over_all_leaves_as_one_vector(make, rule, options):
    step, reference = ref.Transformed(make(**options)), ref.WholeLoop(rule, **options)
    ref.follows_along(step, reference, steps=LONG, tolerance=CLOSE)
    found = shared(step)
    assert found["d"] == pytest.approx(float(reference.slots.d), rel=1e-11)
    assert found["d"] > options.get("d0", 1e-6), "d never grew, so nothing was tested"
    other = {"gsq_weighted": "G", "d_numerator": "N", "d_max": "d_max", "g0_norm": "G0"}
    other["numerator_weighted"] = "N" if rule is dadapt_sgd else "r"
    for name, value in found.items():
        if name != "d":
            # a sum of terms of both signs
            assert value == pytest.approx(float(getattr(reference.slots, other[name])), rel=1e-9), name


# Parameter groups: sums go over all of them, rates are their own.


def grouped(cls, **options):
    def make(params):
        groups = [{"params": [param], "lr": lr} for param, lr in zip(params, RATES.values(), strict=True)]
        return cls(groups, **options)

    return ref.Published(make)


GROUPED = {
    "dadapt_adagrad": {"d0": 0.05, "momentum": 0.5, "weight_decay": 0.1},
    "dadapt_adam": {"d0": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "dadapt_sgd": {"d0": 0.01, "weight_decay": 0.1},
    "dadapt_adan": {"d0": 0.01},
    "dadapt_lion": {"d0": 0.01, "weight_decay": 0.1},
    "prodigy": {"d0": 0.01, "safeguard_warmup": True, "weight_decay": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_groups_with_rates_of_their_own_share_the_sums(name):
    options = GROUPED[name]
    step, reference = grouped(CLASSES[name], **options), ref.WholeLoop(RULES[name][1], lr=RATES, **options)
    ref.follows_along(step, reference, tolerance=CLOSE)
    assert torch.equal(step.params["rows"].detach(), ref.problem()["rows"])  # the rate is 0 there
    (d,) = {state["d"].item() for state in step.optimizer.state.values()}
    assert d == pytest.approx(float(reference.slots.d), rel=1e-11)


@pytest.mark.parametrize("name", CLASSES)
def test_a_warm_up_from_zero_by_a_torch_scheduler_follows_the_loop(name):
    def make(params):
        optimizer = CLASSES[name](params, d0=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(t / 5, 1.0))
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer

    warm_up = gradtx.Schedule(lambda t: min(t / 5, 1.0))
    ref.follows_along(ref.Published(make), ref.WholeLoop(RULES[name][1], lr=warm_up, d0=0.01), tolerance=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_numbers_that_the_sums_depend_on_must_agree_across_groups(name):
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = CLASSES[name]([{"params": [params[0]], "d0": 1e-3}, {"params": [params[1]]}])
    for param in params:
        param.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r"d0 must agree across groups, got 0\.001 and 1e-06"):
        optimizer.step()


# Steps without effect.


def silent(step, steps=3):
    """A stepper whose first gradients are 0."""
    step = ref.Transformed(step) if isinstance(step, gradtx.GradientTransformation) else step
    left = iter([0.0] * steps + [1.0] * STEPS)

    def quiet(grads, params):
        factor = next(left)
        return step({name: factor * g for name, g in grads.items()}, params)

    return quiet


@pytest.mark.parametrize("name", CLASSES)
def test_nothing_moves_before_the_first_gradient_and_then_all_goes_as_in_the_loop(name):
    (make, rule), options = RULES[name], {**GROUPED[name], "weight_decay": 0.0}
    ref.follows_along(silent(ref.Transformed(make(**options))), silent(ref.WholeLoop(rule, **options)), tolerance=CLOSE)
    for weights in ref.run(silent(make(**options)), weights=True)[:3]:
        assert all(torch.equal(weights[leaf], start) for leaf, start in ref.problem().items())


@pytest.mark.parametrize("name", ["dadapt_adam", "dadapt_lion", "dadapt_adan", "prodigy"])
def test_no_weight_decays_before_the_first_gradient(name):
    make, options = RULES[name][0], {"decoupled_weight_decay": True} if name in ("dadapt_adam", "prodigy") else {}
    step, params = ref.Transformed(make(weight_decay=0.5, d0=0.1, **options)), ref.problem()
    zeros = {leaf: torch.zeros_like(p) for leaf, p in params.items()}
    for _ in range(3):
        assert not any(update.any() for update in step(zeros, params).values())
    assert shared(step)["d"] == 0.1


@pytest.mark.parametrize("name", CLASSES)
def test_a_step_without_any_effect_leaves_d_and_the_numerator(name):
    make = RULES[name][0]
    slowly = {"growth_rate": 1.01} if "growth_rate" in make.spec.arguments.by_name else {}  # d is behind its estimate
    step, params = ref.Transformed(make(d0=0.01, **slowly)), ref.problem()
    ref.run(step)
    before = shared(step)
    # only one leaf comes, and nothing has ever pulled at it
    (key,) = [key for key in step.state if key.startswith("scale_by")]
    for slot, leaves in step.state[key].items():
        if isinstance(leaves, dict) and slot not in ("x0", "p0"):
            step.state[key][slot] = {**leaves, "bias": torch.zeros_like(leaves["bias"])}
    updates = step({leaf: torch.zeros_like(p) if leaf == "bias" else None for leaf, p in params.items()}, params)
    assert shared(step) == before
    assert not updates["bias"].any()


@pytest.mark.parametrize("name", CLASSES)
def test_a_leaf_that_is_left_out_is_left_out_of_the_sums(name):
    make, rule = RULES[name]
    step, reference = make(d0=0.01), ref.WholeLoop(rule, d0=0.01)
    ref.follows_along(step, reference, without=("whole", "bias"), tolerance=CLOSE)


def test_dadapt_sgd_waits_for_a_rate_above_zero_with_its_first_norm():
    step, params = (
        ref.Transformed(gradtx.dadapt_sgd(lr=gradtx.Schedule(lambda t: 0.0 if t < 2 else 1.0))),
        ref.problem(),
    )
    seen = []
    for size in (1.0, 2.0, 3.0, 4.0):
        step({leaf: torch.full_like(p, size) for leaf, p in params.items()}, params)
        seen.append(shared(step)["g0_norm"])
    count = sum(p.numel() for p in params.values())
    assert seen == pytest.approx([0.0, 0.0, 3 * count**0.5, 3 * count**0.5])


def test_an_endless_growth_rate_as_a_number_or_a_tensor_gives_the_same_finite_weights():
    for make, _ in RULES.values():
        if "growth_rate" in make.spec.arguments.by_name:
            other = ref.run(make(d0=0.01, growth_rate=torch.tensor(math.inf)), weights=True)
            ref.compare(other, ref.run(make(d0=0.01), weights=True), tolerance=CLOSE)


def test_prodigy_starts_from_weights_of_zero_too():
    step, reference = ref.Transformed(gradtx.prodigy(d0=0.01)), ref.WholeLoop(prodigy, d0=0.01)
    params = {"w": torch.zeros(3, dtype=torch.float64)}
    other = params
    for t in range(10):  # later weights are above 100, and the sine multiplies rounding by 7 a step
        pull = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        params = gradtx.apply_updates(params, step({"w": params["w"].sin() + pull}, params))
        other = gradtx.apply_updates(other, reference({"w": other["w"].sin() + pull}, other))
        torch.testing.assert_close(params, other, rtol=1e-12, atol=0, msg=str(t))


def test_prodigy_keeps_every_slice_p_th_entry_only():
    params = {"matrix": torch.ones(3, 4), "vector": torch.ones(5), "scalar": torch.ones(())}
    state = gradtx.prodigy(slice_p=3).init(params)["scale_by_prodigy"]
    assert {name: tuple(x.shape) for name, x in state["p0"].items()} == {"matrix": (4,), "vector": (2,), "scalar": (1,)}
    assert {name: x.shape for name, x in state["s"].items()} == {name: x.shape for name, x in state["p0"].items()}


# Public implementations.

PUBLISHED = [
    (gradtx.dadapt_adagrad, dadaptation.DAdaptAdaGrad, {"d0": 0.05, "momentum": 0.7, "eps": 1e-3}),
    (gradtx.dadapt_adagrad, dadaptation.DAdaptAdaGrad, {"d0": 0.05, "weight_decay": 0.2, "growth_rate": 1.1}),
    (gradtx.dadapt_adam, dadaptation.DAdaptAdam, {"d0": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.2}),
    (gradtx.dadapt_adam, dadaptation.DAdaptAdam, {"d0": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.2}),
    (gradtx.dadapt_adam, dadaptation.DAdaptAdam, {"d0": 0.01, "use_bias_correction": True, "growth_rate": 1.1}),
    (gradtx.dadapt_sgd, dadaptation.DAdaptSGD, {"d0": 0.01, "weight_decay": 0.2, "momentum": 0.7}),
    (gradtx.dadapt_sgd, dadaptation.DAdaptSGD, {"d0": 0.01, "lr": 0.5, "growth_rate": 1.1}),
    (gradtx.dadapt_adan, dadaptation.DAdaptAdan, {"d0": 0.01, "betas": (0.8, 0.7, 0.95), "weight_decay": 0.3}),
    (gradtx.dadapt_adan, dadaptation.DAdaptAdan, {"d0": 0.01, "no_prox": True, "growth_rate": 1.1}),
    (gradtx.dadapt_lion, dadaptation.DAdaptLion, {"d0": 0.01, "betas": (0.7, 0.9), "weight_decay": 0.3}),
    (gradtx.prodigy, prodigyopt.Prodigy, {"d0": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.3}),
    (gradtx.prodigy, prodigyopt.Prodigy, {"d0": 1e-3, "weight_decay": 0.3, "decoupled_weight_decay": False}),
    (gradtx.prodigy, prodigyopt.Prodigy, {"d0": 1e-3, "beta3": 0.8, "d_coef": 0.5, "slice_p": 3}),
    (gradtx.prodigy, prodigyopt.Prodigy, {"d0": 1e-3, "use_bias_correction": True, "growth_rate": 1.1}),
    (gradtx.prodigy, prodigyopt.Prodigy, {"d0": 1e-3, "safeguard_warmup": True, "lr": 0.3}),
]


def theirs(options):
    return {{"decoupled_weight_decay": "decouple"}.get(name, name): value for name, value in options.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "published", "options"), PUBLISHED, ids=ref.named)
def test_equals_the_authors_optimizer(make, published, options):
    extra = {"decouple": options.get("decoupled_weight_decay", True)} if make is gradtx.prodigy else {}
    ref.follows_along(make(**options), ref.Published(published, **theirs(options) | extra), tolerance=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dadapt_adam", "dadapt_sgd", "prodigy"])  # their Lion moves such groups
def test_a_group_at_rate_zero_is_as_in_the_authors_optimizers(name):
    authors = {
        "dadapt_adam": dadaptation.DAdaptAdam,
        "dadapt_sgd": dadaptation.DAdaptSGD,
        "prodigy": prodigyopt.Prodigy,
    }

    def of(cls):
        return ref.Published(lambda params: cls([{"params": params[:4]}, {"params": params[4:], "lr": 0.0}], d0=0.01))

    ref.follows_along(of(CLASSES[name]), of(authors[name]), tolerance=CLOSE)


# ALI-G.


def alig(s, t, g, p, f, max_lr=None, momentum=0.0, adjusted_momentum=False, eps=1e-5, max_norm=None):
    gamma = f / (g.norm() ** 2 + eps)
    gamma = gamma if max_lr is None else min(gamma, max_lr)
    if adjusted_momentum:
        s.b = momentum * s.b - g
        p = p + gamma * (-g + momentum * s.b)
    else:
        s.b = momentum * s.b - gamma * g
        p = p - gamma * g + momentum * s.b
    s.clipped = s.clipped + (max_lr is not None and gamma == max_lr)
    if max_norm is not None and p.norm() > max_norm:
        s.projected = s.projected + 1
        p = p * max_norm / p.norm()
    return p


def loss(t):
    return 0.02 + 0.015 * math.sin(5.0 * t)  # any positive number: rules only see its value


class Valued:
    """A transformation that is handed the loss."""

    def __init__(self, tx):
        self.tx, self.state, self.t = tx, None, 0

    def __call__(self, grads, params):
        self.t += 1
        state = self.tx.init(params) if self.state is None else self.state
        updates, self.state = self.tx.update(grads, state, params, value=loss(self.t))
        return updates


class ValuedLoop(ref.WholeLoop):
    def __call__(self, grads, params):
        self.options["f"] = loss(self.t + 1)
        return super().__call__(grads, params)


class ValuedOptimizer(ref.Published):
    """A torch optimizer that takes the loss from a closure."""

    t = 0

    def advance(self):
        self.t += 1
        self.optimizer.step(lambda: loss(self.t))


ALIG = [
    {},
    {"momentum": 0.8, "max_lr": 0.2, "eps": 0.1},
    {"momentum": 0.8, "max_lr": 0.2, "adjusted_momentum": True},
    {"max_lr": FADING, "momentum": RISING, "max_norm": 6.0},
    {"max_norm": 5.0, "momentum": 0.5, "adjusted_momentum": True, "max_lr": 0.1},
]


@pytest.mark.parametrize("options", ALIG, ids=str)
def test_alig_follows_the_loop(options):
    reference = ValuedLoop(alig, **options)
    ref.follows_along(Valued(gradtx.alig(**options)), reference, steps=LONG, tolerance=CLOSE)
    seen = reference.slots
    assert "max_lr" not in options or 0 < seen.clipped < LONG or options["max_lr"] == 0.1, seen.clipped
    assert "max_norm" not in options or seen.projected > 0


def test_alig_in_an_optimizer_shows_its_largest_rate_as_lr():
    params = [torch.nn.Parameter(p) for p in ref.problem().values()]
    optimizer = gradtx.optim.AliG(params, max_lr=0.2)
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert "max_lr" not in optimizer.param_groups[0]
    optimizer.param_groups[0]["lr"] = 0.0
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step(lambda: torch.tensor(1.0))
    assert all(torch.equal(param, start) for param, start in zip(params, ref.problem().values(), strict=True))


def test_alig_in_an_optimizer_follows_the_loop_also_under_a_scheduler():
    def make(params):
        optimizer = gradtx.optim.AliG(params, max_lr=0.5, momentum=0.8, max_norm=6.0)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer

    falling = gradtx.Schedule(lambda t: 0.5 * 0.9**t)
    reference = ValuedLoop(alig, max_lr=falling, momentum=0.8, max_norm=6.0)
    ref.follows_along(ValuedOptimizer(make), reference, tolerance=CLOSE)


def test_alig_without_a_bound_shows_none():
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = gradtx.optim.AliG([param], eps=0.0)
    assert optimizer.param_groups[0]["lr"] is None
    param.grad = param.detach().clone()
    optimizer.step(lambda: torch.tensor(12.5))
    torch.testing.assert_close(param.detach(), torch.tensor([1.5, 2.0]))
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step(lambda: torch.tensor(12.5))
    torch.testing.assert_close(param.detach(), torch.tensor([1.2, 1.6]))


def test_alig_without_the_loss_says_what_to_pass():
    params = ref.problem()
    tx = gradtx.alig()
    with pytest.raises(ValueError, match=r"scale_by_polyak needs value: call update\(updates, state, params, value="):
        tx.update(params, tx.init(params), params)
