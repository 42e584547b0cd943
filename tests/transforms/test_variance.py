import pytest
import torch

import gradtx
from tests.references import Transformed, first_update, problem


def updates_of(tx, *grads):
    """The updates of a leaf with one entry."""
    step = Transformed(tx)
    double = [torch.tensor([grad], dtype=torch.float64) for grad in grads]
    return [step({"w": grad}, {"w": torch.zeros_like(grad)})["w"].item() for grad in double]


def test_a_mean_of_zero_gives_zero():
    # beta 0.5: 0.25 * 2 - 0.5 * 1 = 0
    assert updates_of(gradtx.scale_by_msvag(0.5), 2.0, -1.0) == [pytest.approx(2.0), 0.0]
    assert updates_of(gradtx.scale_by_msvag(0.5), 0.0, 0.0) == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_first_step_of_msvag_is_the_gradient_but_for_rounding(dtype):
    grads = {"w": torch.linspace(-3, 3, 101).to(dtype)}
    tx = gradtx.scale_by_msvag()
    updates, _ = tx.update(grads, tx.init(grads))
    # the rounding of v - m**2 in float32, 1e-7, times 1e4
    torch.testing.assert_close(updates["w"].double(), grads["w"].double(), rtol=1e-2, atol=0)


def test_without_deviation_a2grad_takes_the_steps_of_accelerated_gradient_descent():
    # L = 1, a gradient of 1: x falls by k+1 over 2 at each step
    got = updates_of(gradtx.scale_by_a2grad(lips=1.0), 1.0, 1.0)
    # p stays 0 here: alpha' x - (1 - alpha') alpha c g, with alpha = 1, 2/3 and alpha' = 2/3, 1/2
    assert got == pytest.approx([2 / 3 * -0.5 - 1 / 3 * 0.5, 1 / 2 * -1.5 - 1 / 2 * 2 / 3 * 1.0], rel=1e-15)


@pytest.mark.parametrize(
    ("variant", "v"),
    # means 4, 2, 2: deviations 0, -2, 0
    [("uni", [0.0, 4.0, 4.0]), ("inc", [0.0, 4.0, 4 * 4 / 9]), ("exp", [0.0, 2.0, 2.0])],
)
def test_the_damping_of_a2grad_collects_deviations_from_the_mean_gradient(variant, v):
    tx, seen = gradtx.scale_by_a2grad(variant), []
    step = Transformed(tx)
    for grad in (4.0, 0.0, 2.0):
        step({"w": torch.tensor([grad], dtype=torch.float64)}, {"w": torch.zeros(1, dtype=torch.float64)})
        seen.append(step.state["scale_by_a2grad"]["v"]["w"].item())
    assert seen == pytest.approx(v, rel=1e-15)


@pytest.mark.parametrize(("variant", "h"), [("uni", 2.0), ("inc", 2.0), ("exp", 2.0)])
def test_the_second_step_of_a2grad_is_damped(variant, h):
    # deviation 2: v = 4, and in "exp" sqrt(2 v) with v = 0.5 * 4; x: -4/(2 L) = -2, then -4 + c 0
    got = updates_of(gradtx.scale_by_a2grad(variant, beta=0.5, lips=1.0), 0.0, 4.0)
    c = 1 / (1.0 + 0.5 * h)
    assert got[1] == pytest.approx(0.5 * -4 * c - 0.5 * 2 / 3 * 4 * c)


def test_a2grad_damps_every_entry_on_its_own():
    tx = gradtx.scale_by_a2grad(lips=1.0)
    alone = [first_update(tx, [grad], steps=3)[0] for grad in (1.0, -5.0)]
    assert first_update(tx, [1.0, -5.0], steps=3) == alone


@pytest.mark.parametrize(
    ("variant", "slots"),
    [("uni", {"x", "avg_grad", "v"}), ("inc", {"x", "avg_grad", "v"}), ("exp", {"x", "avg_grad", "v", "v_tilde"})],
)
def test_a2grad_starts_from_the_parameters(variant, slots):
    kept = gradtx.scale_by_a2grad(variant).init(problem())["scale_by_a2grad"]
    assert kept.keys() == slots
    assert all(torch.equal(kept["x"][name], param) for name, param in problem().items())


def test_an_unknown_variant_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"^scale_by_a2grad: variant must be 'uni', 'inc' or 'exp', got 'both'$"):
        gradtx.scale_by_a2grad("both")
