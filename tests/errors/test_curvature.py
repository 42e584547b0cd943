"""Misuse of methods with the model's curvature: residuals, outputs, solves, closures and chains that cannot be."""

import re
import time

import pytest
import torch

import gradtx
from tests.errors.common import NAN

PARAMS = {"w": torch.ones(3, dtype=torch.float64)}
DATA = torch.arange(15.0, dtype=torch.float64).reshape(5, 3).sin()


def residuals(p):
    return DATA @ p["w"] - 1


def square(z):
    return z.square().sum()


def update(tx, params=PARAMS, **functions):
    return tx.update(params, tx.init(params), params, **functions)


def optimizer_of(tx):
    weight = torch.nn.Parameter(PARAMS["w"].clone())
    return gradtx.as_optimizer(tx, [("w", weight)]), weight


CALL = "call update(updates, state, params, "
GN, LM = gradtx.scale_by_gauss_newton(), gradtx.levenberg_marquardt()
WEIGHTED = gradtx.scale_by_gauss_newton(weights={"a": 1.0, "b": 2.0})
NO_LABELS = gradtx.scale_by_natural_gradient(fisher="sampled")
OUTPUTS = {"outputs_fn": residuals, "loss_of_outputs": square}

UPDATES = {
    # functions
    "scale_by_gauss_newton needs residual_fn or outputs_fn: " + CALL + "residual_fn=... or outputs_fn=...)": (GN, {}),
    "scale_by_gauss_newton takes residual_fn=... or outputs_fn=..., not both: " + CALL: (
        GN,
        {"residual_fn": residuals, **OUTPUTS},
    ),
    "levenberg_marquardt needs residual_fn: call update(updates, state, params, residual_fn=...)": (LM, {}),
    "dogleg needs residual_fn: call update(updates, state, params, residual_fn=...)": (gradtx.dogleg(), {}),
    "unknown extra 'outputs_fn'": (LM, OUTPUTS),
    "residual_fn must be a function, got tensor(shape=(3,))": (GN, {"residual_fn": torch.ones(3)}),
    # residuals
    "residual_fn returns a 0-d tensor, as a loss is; return the residuals themselves": (
        GN,
        {"residual_fn": lambda p: square(residuals(p))},
    ),
    "scale_by_gauss_newton: has no residuals; skip the step": (GN, {"residual_fn": lambda p: p["w"][:0]}),
    "levenberg_marquardt: has no residuals; skip the step": (LM, {"residual_fn": lambda p: {}}),
    "residual_fn returns complex residuals; return torch.view_as_real(residuals)": (
        GN,
        {"residual_fn": lambda p: residuals(p) * 1j},
    ),
    "residual_fn must return floating-point residuals, got torch.int64": (
        GN,
        {"residual_fn": lambda p: residuals(p).long()},
    ),
    "residual_fn must return a tensor of residuals, or a dict of such tensors, got": (
        GN,
        {"residual_fn": lambda p: [residuals(p)]},
    ),
    "residual_fn: term 'a' must return a tensor of residuals": (GN, {"residual_fn": lambda p: {"a": 1.0}}),
    "what residual_fn returns does not depend on any of the parameters 'w'": (
        GN,
        {"residual_fn": lambda p: DATA[:, 0]},
    ),
    # terms
    "weights name ['b'], which residual_fn does not return; its terms are ['a']": (
        WEIGHTED,
        {"residual_fn": lambda p: {"a": residuals(p)}},
    ),
    "terms ['c', 'd'] have no weight; weights names ['a', 'b']": (
        WEIGHTED,
        {"residual_fn": lambda p: dict.fromkeys("abcd", residuals(p))},
    ),
    "weights name the terms ['a', 'b'], but residual_fn returns one tensor": (WEIGHTED, {"residual_fn": residuals}),
    # outputs
    "scale_by_gauss_newton needs loss_of_outputs with outputs_fn": (GN, {"outputs_fn": residuals}),
    "loss_of_outputs belongs to outputs_fn": (GN, {"residual_fn": residuals, "loss_of_outputs": square}),
    "loss_of_outputs must return a 0-d loss, got a tensor of shape (5,)": (
        GN,
        {"outputs_fn": residuals, "loss_of_outputs": torch.square},
    ),
    "loss_of_outputs must return a 0-d tensor, got": (GN, {"outputs_fn": residuals, "loss_of_outputs": lambda z: 1.0}),
    "outputs_fn must return a tensor, got": (GN, {"outputs_fn": lambda p: [p["w"]], "loss_of_outputs": square}),
    "has no outputs; skip the step": (GN, {"outputs_fn": lambda p: p["w"][:0], "loss_of_outputs": square}),
    "scale_by_spring needs output_grads with outputs_fn": (gradtx.spring(), {"outputs_fn": residuals}),
    "scale_by_spring: output_grads has 4 entries, but outputs_fn returns 5 outputs": (
        gradtx.spring(),
        {"outputs_fn": residuals, "output_grads": torch.ones(4)},
    ),
    "fisher='sampled' needs labels; choose likelihood='categorical', 'gaussian' or 'bernoulli'": (NO_LABELS, OUTPUTS),
    "output_samples has shape (2, 4), needs that of the outputs, (5,), behind a first dimension of draws": (
        NO_LABELS,
        {**OUTPUTS, "output_samples": torch.ones(2, 4)},
    ),
    # solves
    **{
        f"solve={solve!r} is for residuals; with outputs_fn use 'dense', 'kernel' or 'cg'": (
            gradtx.scale_by_gauss_newton(solve=solve),
            OUTPUTS,
        )
        for solve in ("qr", "lsmr")
    },
    **{
        f"damping=0.0 asks for the step of least norm, which solve={solve!r} does not compute; use solve='qr'": (
            gradtx.scale_by_gauss_newton(damping=0.0, solve=solve),
            {"residual_fn": residuals},
        )
        for solve in ("kernel", "cg", "lsmr")
    },
    "dogleg: needs at least as many residuals as parameters, got 2 for 3; use levenberg_marquardt": (
        gradtx.dogleg(),
        {"residual_fn": lambda p: residuals(p)[:2]},
    ),
    "has no gradients of examples; pass grad_sample, or freeze the leaf": (
        gradtx.natural_gradient(fisher="empirical"),
        {"grad_sample": {"w": None}},
    ),
}


@pytest.mark.parametrize("message", UPDATES)
def test_an_update_of_it_says_what_is_wrong(message):
    tx, functions = UPDATES[message]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        update(tx, **functions)


BUILDING = {
    # owners of the rate, and what stands before or around what makes its own gradient
    "levenberg_marquardt owns the learning rate and returns the final update, so scale_by_learning_rate": lambda: (
        gradtx.chain(LM, gradtx.scale_by_learning_rate(0.1))
    ),
    "so add_decayed_weights cannot follow it": lambda: gradtx.chain(LM, gradtx.add_decayed_weights(0.1)),
    "computes the finished step, and judges it by the loss there, so clip_by_global_norm cannot follow it": (
        lambda: gradtx.chain(LM, gradtx.clip_by_global_norm(1.0))
    ),
    "scale_by_gauss_newton computes the gradient, so the updates of clip_by_global_norm before it would be lost": (
        lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.gauss_newton())
    ),
    "accumulate: scale_by_gauss_newton computes the gradient from other inputs": lambda: gradtx.accumulate(
        gradtx.gauss_newton(), 2
    ).init(PARAMS),
    "sam: scale_by_gauss_newton computes the gradient from other inputs": lambda: gradtx.sam(
        gradtx.gauss_newton()
    ).init(PARAMS),
    "maximize=True has no meaning for a loss of residuals or outputs": (
        lambda: gradtx.gauss_newton(maximize=True).init(PARAMS)
    ),
    # numbers
    "weights['a'] must be in [0, inf), got -1.0": lambda: gradtx.gauss_newton(weights={"a": -1.0}),
    "weights['a'] must be in [0, inf), got nan": lambda: gradtx.levenberg_marquardt(weights={"a": NAN}),
    "weights must be a dict of numbers by name of a term, got": lambda: gradtx.dogleg(weights=[1.0]),
    "solve must be 'auto', 'qr', 'dense', 'kernel', 'cg' or 'lsmr', got 'lu'": lambda: gradtx.gauss_newton(solve="lu"),
    "rule must be 'nielsen', 'marquardt' or 'thresholds', got 'fast'": lambda: gradtx.levenberg_marquardt(rule="fast"),
    "damping must be in (0, inf), got 0.0": lambda: gradtx.levenberg_marquardt(damping=0.0),
    "damping must be in [0, inf), got -1.0": lambda: gradtx.gauss_newton(damping=-1.0),
    "radius must be in (0, inf), got 0.0": lambda: gradtx.dogleg(radius=0.0),
}


@pytest.mark.parametrize("message", BUILDING)
def test_building_it_says_what_is_wrong(message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        BUILDING[message]()


def test_a_matrix_that_does_not_fit_is_refused_before_it_is_made_with_its_bytes_and_what_fits():
    x = torch.ones(520)
    params = {"w": torch.ones(250_000)}
    tx = gradtx.gauss_newton(solve="dense")
    message = (
        "scale_by_gauss_newton: solve='dense' needs a 250000 x 250000 matrix and a Jacobian of 520 x 250000, 500.5 GB, "
        "more than 16.0 GB; use solve='kernel' (520 x 520, 522.2 MB) or 'cg' or 'lsmr'"
    )
    start = time.perf_counter()
    with pytest.raises(ValueError, match=re.escape(message)):
        update(tx, params, residual_fn=lambda p: x * p["w"].mean())
    assert time.perf_counter() - start < 5


# Loaded once: their first call loads parts of torch.
@pytest.mark.parametrize("tx", [gradtx.gauss_newton(), LM, gradtx.dogleg(), gradtx.spring(), gradtx.hessian_free()])
def test_a_closure_that_calls_backward_is_refused_and_changes_nothing(tx):
    optimizer, weight = optimizer_of(tx)

    def closure():
        r = residuals({"w": weight})
        square(r).backward()
        return r

    with pytest.raises(
        RuntimeError, match=r"the closure called backward\(\), but this chain computes derivatives itself"
    ):
        optimizer.step(closure)
    assert torch.equal(weight, PARAMS["w"])
    assert not optimizer.state


def test_residuals_without_a_graph_are_refused():
    optimizer, weight = optimizer_of(gradtx.gauss_newton())
    for closure in (lambda: residuals({"w": weight.detach()}), torch.no_grad()(lambda: residuals({"w": weight}))):
        with pytest.raises(RuntimeError, match=r"residual_fn: its result has no graph; compute it from the parameters"):
            optimizer.step(closure)
    assert torch.equal(weight, PARAMS["w"])


def test_a_step_without_a_closure_says_how_to_call_it():
    optimizer, _ = optimizer_of(gradtx.gauss_newton())
    message = "needs residual_fn or outputs_fn: call step(closure), where the closure returns residuals, or step("
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.step()


def test_a_closure_and_residuals_are_one_too_many():
    optimizer, weight = optimizer_of(gradtx.gauss_newton())
    fn = lambda: residuals({"w": weight})  # noqa: E731
    with pytest.raises(TypeError, match="the closure is residual_fn; pass only one of the two"):
        optimizer.step(fn, residual_fn=fn)


def test_a_grad_scaler_is_refused():
    optimizer, weight = optimizer_of(gradtx.gauss_newton())
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(square(residuals({"w": weight}))).backward()
    with pytest.raises(RuntimeError, match="GradScaler"):
        scaler.step(optimizer, residual_fn=lambda: residuals({"w": weight}))
    assert torch.equal(weight, PARAMS["w"])


def test_a_loss_that_is_not_convex_is_said_to_be_so():
    tx = gradtx.gauss_newton(solve="dense", damping=1e-3)
    message = "the matrix of solve='dense' is not positive definite to working precision with damping 1.0e-03"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        update(tx, outputs_fn=residuals, loss_of_outputs=lambda z: -square(z))
    optimizer, weight = optimizer_of(tx)
    with pytest.raises(RuntimeError, match="check that loss_of_outputs is convex"):
        optimizer.step(outputs_fn=lambda: residuals({"w": weight}), loss_of_outputs=lambda z: -square(z))
    assert torch.equal(weight, PARAMS["w"])


def test_half_precision_is_refused():
    params = {"w": torch.ones(3, dtype=torch.float16)}
    tx = gradtx.gauss_newton()
    with pytest.raises(
        (TypeError, ValueError), match=r"'w' has dtype torch\.float16, in which derivatives of residuals"
    ):
        update(tx, params, residual_fn=lambda p: DATA.half() @ p["w"])


def test_complex_leaves_are_refused():
    params = {"w": torch.ones(3, dtype=torch.complex128)}
    with pytest.raises(TypeError, match="complex"):
        update(gradtx.gauss_newton(), params, residual_fn=lambda p: torch.view_as_real(p["w"]))
