"""Adai: momentum SGD whose inertia, not its rate, adapts to the gradients of each entry."""

from __future__ import annotations

import torch

from gradtx.arguments import Fraction, OpenFraction
from gradtx.links.decay import with_decay
from gradtx.maths.entries import (
    MOMENTS,
    at_least,
    at_most,
    quotient,
    running_mean,
    safe_pow,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import square

__all__ = ["adai", "scale_by_adai"]


@per_tensor(elementwise=True)
def scale_by_adai(
    betas=(0.1, 0.99),
    eps: OpenFraction = 1e-3,
    dampening: Fraction = 1.0,
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

    def update(g, state, p, ctx):
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        unbiased = v / ctx.bias_correction(beta2)
        total = yield {"square": unbiased.sum(), "entries": g.numel()}
        scale = quotient(total["entries"], total["square"], total["square"] > 0)
        share = safe_pow(unbiased * scale, exponent)
        inertia = at_most(at_least(1 - beta0 * share, 0), 1 - eps)
        product = state["beta1_prod"] * inertia
        m = inertia * state["exp_avg"] + (1 - inertia) ** dampening * g
        new_state = {"exp_avg": m, "exp_avg_sq": v, "beta1_prod": product}
        yield factor * m / (1 - product), new_state

    return {
        **MOMENTS,
        "beta1_prod": square(torch.ones_like),
    }, update


@alias
def adai(
    lr,
    betas=(0.1, 0.99),
    eps: OpenFraction = 1e-3,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    dampening: Fraction = 1.0,
):
    r"""Adai: momentum SGD whose inertia, not its rate, adapts to the gradients of each entry.

    $\beta_1 = \mathrm{clip}(1 - \beta_0 (\hat v / M)^{1/(3 - 2\tau)}, 0, 1 - \epsilon)$ with $M$ the mean of $\hat v$
    over all weights, $m \leftarrow \beta_1 m + (1-\beta_1)^\tau g$,
    $p \leftarrow p - \eta \beta_0^{1-\tau} m / (1 - \prod \beta_1)$.

    When to use: networks for which SGD generalizes better than Adam, but escapes from flat regions too slowly.

    Args:
        lr: $\eta$ in [0, inf), the change of a weight per unit of gradient; 1 to 10 times the rate of SGD without
            momentum.
        betas: $(\beta_0, \beta_2)$, each in [0, 1).
        eps: $\epsilon$ in (0, 1): the inertia stays below $1 - \epsilon$.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead, multiplied by the learning rate (AdaiS).
        dampening: $\tau$ in [0, 1]. Values below 1 give AdaiV2.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `beta1_prod`.

    Example:
        >>> tx = gradtx.adai(lr=0.1)
        >>> # like SGD
        >>> tx.update({"w": torch.tensor([1.0, -3.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.3000])

    Source: Xie et al. 2020, arXiv:2006.15815; AdaiS: Xie et al. 2020, arXiv:2011.11152. Departures: none from the
    authors' code, except for a ratio of 0 where all gradients are 0.
    """
    return with_decay(
        scale_by_adai(betas, eps, dampening), weight_decay, decoupled_weight_decay, lr
    )
