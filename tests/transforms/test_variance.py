import pytest
import torch

import gradtx
from tests.references import Transformed, problem


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
