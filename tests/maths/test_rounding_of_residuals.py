"""What is left after a projection is 0 if it is 0 but for rounding errors, and makes no step of full length."""

import pytest
import torch

import gradtx
from tests.tiers import by_day

# Rules that divide by its norm what is left of a subtraction, or coordinates of a basis.
RULES = {
    "cosmos": lambda: gradtx.cosmos(rank=2),
    "dion": lambda: gradtx.dion(rank=3, fallback=gradtx.sgd()),
    "mud": lambda: gradtx.mud(),
    "aro": lambda: gradtx.aro(),
    "aro of rows": lambda: gradtx.aro(base="row"),
    "muown": lambda: gradtx.muown(),
    "against the mean": lambda: gradtx.chain(
        gradtx.orthogonalize_against_ema(), gradtx.normalize_by_global_norm(eps=0.0)
    ),
    "against the weights": lambda: gradtx.orthogonalize_against_params(),
}
# For each, gradients of which something that it removes is all.
GRADIENTS = {
    "rank 1": lambda p, a, b: a[:, :1] @ b[:1],
    "rank 2": lambda p, a, b: a @ b,
    "the weights": lambda p, a, b: p.clone(),
    "0": lambda p, a, b: torch.zeros_like(p),
}


def steps_of(make, gradient, noise, dtype, shape):
    """The updates of three steps along a gradient whose last bits, which a backward pass rounds, `noise` seeds."""
    generator = torch.Generator().manual_seed(0)
    p, a, b = (torch.randn(size, generator=generator, dtype=dtype) for size in (shape, (shape[0], 2), (2, shape[1])))
    last_bits = torch.randn(shape, generator=torch.Generator().manual_seed(noise), dtype=dtype)
    tx = make()
    params, updates = {"w": p}, []
    state = tx.init(params)
    for step in range(3):
        g = gradient(p, a, b) * (1 + step)
        update, state = tx.update({"w": g * (1 + torch.finfo(dtype).eps * last_bits)}, state, params)
        updates.append(update["w"])
    return torch.stack(updates)


@by_day("*float32-(6, 5)", "cosmos-*", "mud-rank 1-*")
@pytest.mark.parametrize("shape", [(6, 5), (4, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("rule", RULES)
def test_the_last_bits_of_a_gradient_do_not_decide_a_step(rule, gradient, dtype, shape):
    with gradtx.eagerly():
        one, other = (steps_of(RULES[rule], GRADIENTS[gradient], noise, dtype, shape) for noise in (1, 2))
    # Divisors amplify errors, but not to the size of a step.
    assert (one - other).norm() <= 1e-3 * one.norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", RULES)
def test_a_gradient_that_is_not_finite_is_not_taken_for_rounding(rule, bad):
    p = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    tx, params = RULES[rule](), {"w": p}
    gradient = p.clone()
    gradient[1, 2] = bad
    try:
        update, _ = tx.update({"w": gradient}, tx.init(params), params)
    except torch.linalg.LinAlgError:
        return
    assert not update["w"].isfinite().all()
