import math

import dadaptation
import prodigyopt
import pytest
import torch

import gradtx
from gradtx.algorithms.dadapt import limited
from tests import references as ref
from tests.algorithms.test_prodigy import prodigy
from tests.references import LONG, STEPS, follows, gradients, named, problem
from tests.tiers import by_day

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


PIECES = {
    "dadapt_adagrad": gradtx.scale_by_dadapt_adagrad,
    "dadapt_adam": gradtx.scale_by_dadapt_adam,
    "dadapt_sgd": gradtx.scale_by_dadapt_sgd,
    "dadapt_adan": gradtx.scale_by_dadapt_adan,
    "dadapt_lion": gradtx.scale_by_dadapt_lion,
    "prodigy": gradtx.scale_by_prodigy,
}


def double(x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.slow
def test_an_endless_growth_rate_has_finite_derivatives():
    d, estimate, growth = (double(x).requires_grad_() for x in (1e-6, 3.0, math.inf))
    slopes = torch.autograd.grad(limited(estimate, d, growth), (d, estimate, growth))
    assert [slope.item() for slope in slopes] == [0.0, 1.0, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("make", PIECES.values(), ids=named)
def test_shared_scalars_are_kept_in_float64_and_d_starts_at_d0(make):
    params = {"w": torch.ones(3, dtype=torch.bfloat16)}
    (entry,) = [entry for key, entry in make(d0=0.3).init(params).items() if key != "step"]
    scalars = {name: value for name, value in entry.items() if isinstance(value, torch.Tensor)}
    assert scalars["d"].item() == 0.3
    assert {value.dtype for value in scalars.values()} == {torch.float64}


# What directions are good for: chains with a rate, a decay, an average of their own.


@pytest.mark.slow
@pytest.mark.parametrize("name", PIECES)
def test_a_piece_and_descend_are_the_optimizer(name):
    options = {} if name == "dadapt_adan" else {"lr": 0.7}
    own = gradtx.chain(PIECES[name](d0=0.01, **options), gradtx.descend())
    follows(own, getattr(gradtx, name)(d0=0.01, **options), tolerance=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PIECES)
def test_decay_and_a_rate_may_follow_a_piece(name):
    tx = gradtx.chain(PIECES[name](d0=0.01), gradtx.add_decayed_weights(0.1), gradtx.scale_by_learning_rate(0.5))
    params, piece = problem(), PIECES[name](d0=0.01)
    updates, _ = tx.update(params, tx.init(params), params)
    directions, _ = piece.update(params, piece.init(params), params)
    for leaf, p in params.items():
        torch.testing.assert_close(updates[leaf], -0.5 * (directions[leaf] + 0.1 * p), rtol=1e-14, atol=0.0)


def descended(tx, steps):
    """The loss |w - 7| from w = 10, where the chain evaluates."""
    params = {"w": double([10.0, 10.0])}
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        params = gradtx.apply_updates(params, updates)
    return (tx.eval_params(state, params)["w"] - 7).abs().max().item()


@pytest.mark.slow
@by_day("prodigy")
@pytest.mark.parametrize("name", ["dadapt_adagrad", "prodigy"])  # the estimates of the others assume their own steps
def test_schedule_free_and_averages_descend_by_a_rate_that_is_found(name):
    make = getattr(gradtx, name)
    assert descended(gradtx.schedule_free(make(), lr=1.0, beta=0.9), 2000) < 0.5
    assert descended(gradtx.chain(make(), gradtx.average()), 2000) < 3.0


@pytest.mark.slow
@by_day("dadapt_adam", "prodigy")
@pytest.mark.parametrize("name", PIECES)
def test_the_steps_under_schedule_free_are_those_of_the_paper_along_the_directions_of_the_piece(name):
    """z, x, y of Schedule-Free, over the directions that the link gives at y."""
    piece = PIECES[name](d0=0.01)
    tx = gradtx.schedule_free(getattr(gradtx, name)(d0=0.01), lr=0.8, beta=0.9)
    follows(tx, gradtx.schedule_free(piece, lr=0.8, beta=0.9), tolerance=0.0)
    y = z = x = problem()
    inner, state = piece.init(y), tx.init(y)
    for t in range(1, 31):
        grads = gradients(y, t)
        directions, inner = piece.update(grads, inner, y)
        updates, state = tx.update(grads, state, y)
        z = {leaf: z[leaf] - 0.8 * directions[leaf] for leaf in z}
        x = {leaf: (1 - 1 / t) * x[leaf] + z[leaf] / t for leaf in x}
        expected = {leaf: 0.1 * z[leaf] + 0.9 * x[leaf] for leaf in x}
        for leaf in y:
            torch.testing.assert_close(y[leaf] + updates[leaf], expected[leaf], rtol=1e-10, atol=1e-12)
        y = expected
