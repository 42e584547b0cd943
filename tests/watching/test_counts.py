"""Findings are judged by the steps that each leaf took itself, and by what the watch knows of rates and losses."""

import math

import pytest
import torch
from torch import nn

import gradtx


def leaf(*shape):
    return nn.Parameter(torch.ones(shape))


def findings_of(tx, steps, gradients, every=2, loss=None, start=1.0):
    """Train two matrices by the gradients that a function gives for a step, and return the findings by their kinds."""
    params = {name: nn.Parameter(torch.full((3, 3), start)) for name in ("w", "v")}
    optimizer = gradtx.as_optimizer(tx, params.items())
    with gradtx.watch(optimizer, every=every) as seen:
        for t in range(steps):
            for param, gradient in zip(params.values(), gradients(t), strict=True):
                param.grad = None if gradient is None else torch.full((3, 3), float(gradient))
            optimizer.step()
            if loss is not None:
                seen.note(loss(t))
    return {finding.kind: finding for finding in seen.diagnose()}


def sign(t):
    return 1 if t % 4 < 2 else -1


@pytest.mark.parametrize("every", [1, 2, 3, 50])
def test_a_leaf_that_trains_between_the_measured_steps_only_has_a_gradient(every):
    in_turn = lambda t: (sign(t), None) if t % 2 == 0 else (None, sign(t))  # noqa: E731
    assert "no gradient" not in findings_of(gradtx.adamw(lr=1e-3), 120, in_turn, every)
    never = findings_of(gradtx.adamw(lr=1e-3), 120, lambda t: (sign(t), None), every)
    assert never["no gradient"].leaves == ("v",)


@pytest.mark.parametrize("every", [2, 50])
def test_a_gradient_of_0_in_the_measured_steps_only_is_not_that_of_a_dead_leaf(every):
    in_turn = lambda t: (sign(t), 0) if t % 2 == 0 else (0, sign(t))  # noqa: E731
    assert "dead leaves" not in findings_of(gradtx.adamw(lr=1e-3), 200, in_turn, every)


@pytest.mark.parametrize("weight_decay", [0.01, 10.0])
def test_decay_is_judged_by_the_rate_of_the_steps_that_a_leaf_took(weight_decay):
    tx = gradtx.adamw(lr=1e-3, weight_decay=weight_decay)
    found = findings_of(tx, 90, lambda t: (1, 1 if t % 3 == 0 else None), every=4, start=0.02)
    shrinks = found.get("decay outweighs the step")
    assert (shrinks is None) == (weight_decay == 0.01)
    if shrinks is not None:
        assert shrinks.figure == pytest.approx(1e-3 * weight_decay, rel=1e-3)  # in each step


def test_decay_of_vectors_is_counted_by_updates_not_by_micro_batches():
    params = {"w": leaf(3, 3), "b": leaf(3)}
    tx = gradtx.accumulate(gradtx.adamw(lr=1e-2, weight_decay=0.5), every=4)
    optimizer = gradtx.as_optimizer(tx, params.items())
    with gradtx.watch(optimizer, every=4) as seen:
        for _ in range(160):
            for param in params.values():
                param.grad = torch.ones_like(param)
            optimizer.step()
    finding = next(finding for finding in seen.diagnose() if finding.kind == "decay of norms and biases")
    assert finding.figure == pytest.approx(1 - math.exp(-0.5 * 1e-2 * 40), rel=1e-3)  # 40 updates


@pytest.mark.parametrize(("length", "ends"), [(60, False), (20, True)])
def test_a_schedule_inside_accumulate_is_judged_by_updates(length, ends):
    schedule = gradtx.linear_schedule(1e-2, 1.0, 0.0, total_iters=length)
    tx = gradtx.accumulate(gradtx.adam(lr=schedule), every=4)
    found = findings_of(tx, 240, lambda t: (sign(t // 4), sign(t // 4)), every=4)
    assert ("schedule ended" in found) == ends


@pytest.mark.parametrize("every", [1, 5])
def test_a_leaf_whose_gradient_stays_0_from_a_step_on_has_died_there(every):
    found = findings_of(gradtx.adam(lr=1e-3), 150, lambda t: (sign(t), sign(t) if t < 50 else 0), every)
    assert found["dead leaves"].leaves == ("v",)
    assert 51 <= found["dead leaves"].steps[0] <= 51 + every


def test_an_expert_that_is_chosen_now_and_then_is_not_dead():
    found = findings_of(gradtx.sgd(lr=1e-3), 120, lambda t: (sign(t), sign(t) if t in (0, 40) else 0), every=10)
    assert "dead leaves" not in found


def test_a_momentum_tells_of_gradients_between_measured_steps():
    between = lambda t: (sign(t), 1 if t % 10 == 5 else 0)  # noqa: E731
    assert "dead leaves" not in findings_of(gradtx.adamw(lr=1e-3), 120, between, every=10)
    never = findings_of(gradtx.adamw(lr=1e-3), 120, lambda t: (sign(t), 0), every=10)
    assert never["dead leaves"].leaves == ("v",)  # decay alone moves it


@pytest.mark.parametrize(("last", "is_fault"), [(0.0, False), (2.0, True)])
def test_gradients_of_0_everywhere_are_a_fault_unless_the_loss_is_gone(last, is_fault):
    found = findings_of(
        gradtx.adam(lr=1e-3), 100, lambda t: (sign(t), sign(t)) if t < 40 else (0, 0),
        loss=lambda t: 2.3 if t < 40 else last,
    )  # fmt: skip
    assert ("dead leaves" in found) == is_fault


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.adamw(betas=(0.95, 0.95)),
        gradtx.adamw(betas=(0.9, 0.95)),
        gradtx.adamw(betas=(0.98, 0.95)),
        gradtx.adam(betas=(0.0, 0.99)),
        gradtx.lion(),
        gradtx.lion(betas=(0.95, 0.98)),
        gradtx.adan(),
        gradtx.adopt(),
        gradtx.ademamix(),
        gradtx.simplified_ademamix(),
        gradtx.soap(),
    ],
    ids=repr,
)
def test_usual_betas_are_in_the_right_order(tx):
    assert "betas in the wrong order" not in findings_of(tx, 12, lambda t: (sign(t), sign(t)))


@pytest.mark.parametrize("rule", ["adamw", "nadam", "adamax", "lamb", "adabelief", "lion", "soap"])
def test_betas_in_the_wrong_order_are_named_with_the_right_one(rule):
    tx = getattr(gradtx, rule)(betas=(0.999, 0.9))
    finding = findings_of(tx, 12, lambda t: (sign(t), sign(t)))["betas in the wrong order"]
    assert "betas=(0.9, 0.999)" in finding.remedy
    assert finding.figure == pytest.approx(100)


def loss_of(kind):
    """A loss of ten classes whose logits are a hundred times too large, or one that only looks like it."""
    logits = 100 * torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(64) % 10
    return {
        "mean": nn.functional.cross_entropy(logits, labels),
        "dense": nn.functional.cross_entropy(logits.T[None], labels[None]),
        "negative dim": nn.functional.nll_loss(logits.log_softmax(-1), labels),
        "usual": nn.functional.cross_entropy(logits / 100, labels),
        "sum": nn.functional.cross_entropy(logits / 100, labels, reduction="sum"),
        "square": nn.functional.mse_loss(logits, torch.zeros(64, 10)),
        "number": 100.0,
    }[kind]


@pytest.mark.parametrize(
    ("kind", "is_high"),
    [("mean", True), ("dense", True), ("negative dim", True), ("usual", False), ("sum", False), ("square", False),
     ("number", False)],
)  # fmt: skip
@pytest.mark.parametrize("backward", [False, True])
def test_only_a_mean_cross_entropy_is_compared_with_guessing(kind, is_high, backward):
    loss = loss_of(kind)
    if backward and isinstance(loss, torch.Tensor):
        loss.backward()
    found = findings_of(gradtx.adam(lr=1e-3), 4, lambda t: (sign(t), sign(t)), loss=lambda t: loss)
    assert ("loss starts high" in found) == is_high
    if is_high:
        assert "guessing among 10 classes is 2.3" in str(found["loss starts high"])


@pytest.mark.parametrize(
    ("loss", "is_risen"),
    [
        (lambda t: 2.3 * 0.9**t, False),
        (lambda t: 2.3 * 0.9 ** min(t, 60) * (1 if t < 60 else 1000), True),
        (lambda t: 1e-6 * 10 ** (t % 3) if t else 2.3, False),  # goes up and down near 0
        (lambda t: 0.7 + 0.02 * t, False),  # a generator's
        (lambda t: 0.1 * 1.05**t, True),
        (lambda t: -0.1 * 1.05**t, False),
    ],
)
def test_a_loss_that_has_risen_many_fold_is_found(loss, is_risen):
    found = findings_of(gradtx.adam(lr=1e-3), 120, lambda t: (sign(t), sign(t)), every=4, loss=loss)
    assert ("loss has risen" in found) == is_risen


def test_decay_of_norms_and_biases_is_no_finding_beside_its_cause():
    params = {"w": leaf(3, 3), "b": leaf(3), "unused": leaf(3)}
    optimizer = gradtx.as_optimizer(gradtx.adamw(lr=1e-2, weight_decay=0.5), params.items())
    with gradtx.watch(optimizer, every=4) as seen:
        for _ in range(120):
            for name in ("w", "b"):
                params[name].grad = torch.ones_like(params[name])
            optimizer.step()
    kinds = [finding.kind for finding in seen.diagnose()]
    assert kinds[0] == "no gradient"
    assert "decay of norms and biases" not in kinds
