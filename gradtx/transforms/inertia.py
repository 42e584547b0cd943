"""Adai: a separate momentum coefficient for each entry."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import quotient, running_mean, zeros

__all__ = ["scale_by_adai"]


@per_tensor(
    elementwise=True,
    ranges={"dampening": "[0, 1]", "eps": "(0, 1)"},
    nonnegative=("exp_avg_sq", "beta1_prod"),
)
def scale_by_adai(
    betas: Betas = (0.1, 0.99), eps: Scalar = 1e-3, dampening: Scalar = 1.0
):
    r"""Average gradients with a separate inertia per entry, lower where gradients are large: Adai.

    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$, $\hat v_t = v_t / (1 - \beta_2^t)$, $M$ the mean of $\hat v_t$ over all
    leaves; $\beta_{1,t} = \mathrm{clip}(1 - \beta_0 (\hat v_t / M)^{1/(3 - 2\tau)}, 0, 1 - \epsilon)$;
    $m_t = \beta_{1,t} m_{t-1} + (1 - \beta_{1,t})^\tau g_t$; direction
    $\beta_0^{1-\tau} m_t / (1 - \prod_s \beta_{1,s})$.

    Args:
        betas: $(\beta_0, \beta_2)$, each in [0, 1): the distance of an average entry's inertia from 1, and the weight
            of the old average of squares.
        eps: $\epsilon$ in (0, 1): the inertia is at most $1 - \epsilon$. It does not guard a division.
        dampening: $\tau$ in [0, 1]. 1 is Adai; smaller values are AdaiV2.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, `beta1_prod` (initially 1),
        shaped as the parameter. bfloat16 is too coarse for the product: pass `state_dtype`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_adai(betas=(0.1, 0.0))
        >>> grads = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([0.0, 0.0])}
        >>> _, state = tx.update(grads, tx.init(grads))
        >>> state["scale_by_adai"]["beta1_prod"]  # the mean of the squares is 2.5
        {'a': tensor([0.9600, 0.6400]), 'b': tensor([0.9990, 0.9990])}

    Source: Xie et al. 2020, arXiv:2006.15815. Departures: none; the ratio is 0 where all gradients are 0.
    """
    beta0, beta2 = betas
    exponent, factor = 1 / (3 - 2 * dampening), beta0 ** (1 - dampening)

    def init(param):
        moments = zeros("exp_avg", "exp_avg_sq")(param)
        return {**moments, "beta1_prod": torch.ones_like(param)}

    def update(update, state, param, ctx):
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        unbiased = square / ctx.bias_correction(beta2)
        total = yield {"square": unbiased.sum(), "entries": update.numel()}
        share = unbiased * quotient(
            total["entries"], total["square"], total["square"] > 0
        )
        none = share == 0  # a power has no finite derivative there
        share = torch.where(none, 0.0, torch.where(none, 1.0, share) ** exponent)
        inertia = (1 - beta0 * share).clamp(min=0).clamp(max=1 - eps)
        product = state["beta1_prod"] * inertia
        mean = inertia * state["exp_avg"] + (1 - inertia) ** dampening * update
        yield (
            factor * mean / (1 - product),
            {"exp_avg": mean, "exp_avg_sq": square, "beta1_prod": product},
        )

    return init, update
