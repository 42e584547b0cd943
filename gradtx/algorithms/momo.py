"""MoMo: SGD with momentum whose rate follows the value of the loss. Also `momo_adam`."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gradtx.arguments import Decay, Scalar
from gradtx.base.exact import exact
from gradtx.maths.entries import (
    adam_moments,
    at_least,
    at_most,
    corrected_root,
    quotient,
    running_mean,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear

__all__ = [
    "momo",
    "momo_adam",
    "scale_by_momo",
    "scale_by_momo_adam",
]


def _shared(arguments: dict[str, Any]) -> dict[str, Any]:
    averages = {"loss_avg": 0.0, "dot_avg": 0.0}
    return {**averages, "lb": arguments["lb"]} if arguments["use_fstar"] else averages


def _sums(g: Tensor, p: Tensor, d: Tensor, direction: Tensor) -> dict[str, Tensor]:
    return {
        "product": (g * p).sum(),
        "slope": (d * p).sum(),
        "square": (d * direction).sum(),
    }


def _followed(
    state: dict[str, Tensor],
    total: dict[str, Tensor],
    ctx,
    keep,
    rho,
    lr,
    shrinkage,
    lb,
    use_fstar: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Return $\tau$, at which the averaged model of the loss reaches its lower bound, and the next shared values."""
    slope, square = total["slope"], total["square"]
    value = exact(ctx.value, slope.device)
    loss = running_mean(state["loss_avg"], value, keep)  # F
    product = running_mean(state["dot_avg"], total["product"], keep)  # Gamma
    new_state = {"loss_avg": loss, "dot_avg": product}
    bound = lb
    if use_fstar:
        # Lower the bound if the model is already below it.
        bound, cap = state["lb"], shrinkage * (loss - product) + slope
        again = at_least(cap / (2 * shrinkage * rho), lb)
        bound = torch.where(cap < shrinkage * rho * bound, again, bound)
    height = shrinkage * (loss - rho * bound - product) + slope
    tau = at_most(quotient(at_least(height, 0.0), square), lr / rho)
    if use_fstar:
        decrease = loss + slope - product - tau * square / 2
        new_state["lb"] = at_least(decrease / rho, lb)
    return tau, new_state


@per_tensor(
    elementwise=True,
    needs=("params", "value"),
    owns_lr=True,
    shared=_shared,
    agree=("beta", "lb", "bias_correction", "use_fstar"),
)
def scale_by_momo(
    lr=1.0,
    beta: Decay = 0.9,
    weight_decay=0.0,
    lb: Scalar = 0.0,
    bias_correction=False,
    use_fstar=False,
):
    r"""Step along the mean gradient until the averaged model of the loss reaches a lower bound: MoMo.

    With averages over the steps, $F$ of the loss, $d$ of the gradient, $\Gamma$ of $\langle g, p \rangle$, each with
    weight $\beta$ of the old value (0 at $t = 1$, $\rho = 1$; with `bias_correction` from 0, $\rho = 1 - \beta^t$), and
    $s = 1 + \eta \lambda$:
    $\tau = \min(\eta / \rho, \max(0, s (F - \rho b - \Gamma) + \langle d, p \rangle) / \lVert d \rVert^2)$,
    $p \leftarrow (p - \tau d) / s$. Products and norms are over all leaves.

    Args:
        lr: $\eta \ge 0$, the maximum rate.
        beta: $\beta$ in [0, 1).
        weight_decay: $\lambda \ge 0$, as a proximal step.
        lb: $b$, a lower bound of the loss; with `use_fstar`, its initial value and its lower limit.
        bias_correction: Start the averages from 0 and divide by $1 - \beta^t$.
        use_fstar: Learn $b$: it becomes $\frac{s (F - \Gamma) + \langle d, p \rangle}{2 s \rho}$ where the model is
            below it, and after the step
            $(F + \langle d, p \rangle - \Gamma - \tau \lVert d \rVert^2 / 2) / \rho$. All groups of an optimizer must
            then have the same rate and decay, because they share $b$.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State: `exp_avg`
        ($d$), shaped as the parameter; shared by all leaves, `loss_avg`, `dot_avg` and, with `use_fstar`, `lb`,
        0-d.

    Example:
        >>> tx = gradtx.scale_by_momo(lr=10.0)
        >>> # the loss is the norm of w, and 0 is its lower bound
        >>> params = {"w": torch.tensor([1.5, 2.0])}
        >>> tx.update({"w": params["w"] / 2.5}, tx.init(params), params, value=2.5)[0]["w"]
        tensor([-1.5000, -2.0000])

    Source: Schaipp et al. 2023, arXiv:2305.07583. Departures: the step is 0 where the mean gradient is 0.
    """

    def update(g, state, p, ctx):
        keep, rho = beta, 1.0
        if bias_correction:
            rho = ctx.bias_correction(beta)
        else:
            keep = torch.where(ctx.seen, exact(beta, g.device), 0.0)
        d = running_mean(state["exp_avg"], g, keep)
        total = yield _sums(g, p, d, d)
        decay = lr * weight_decay
        tau, shared = _followed(
            state, total, ctx, keep, rho, lr, 1 + decay, lb, use_fstar
        )
        yield -(tau * d + decay * p) / (1 + decay), {"exp_avg": d, **shared}

    return {"exp_avg": linear()}, update


@per_tensor(
    elementwise=True,
    needs=("params", "value"),
    owns_lr=True,
    shared=_shared,
    agree=("betas", "lb", "use_fstar"),
)
def scale_by_momo_adam(
    lr=1e-2,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    lb: Scalar = 0.0,
    proximal_decay=True,
    use_fstar=False,
):
    r"""Step along Adam's direction until the averaged model of the loss reaches a lower bound: MoMo-Adam.

    $F$, $d$, $\Gamma$ are averages of the loss, of the gradient and of $\langle g, p \rangle$ from 0 with weight
    $\beta_1$ of the old value, $v$ is Adam's; $c_i = 1-\beta_i^t$, $D = \sqrt{v / c_2} + \epsilon$,
    $N = \langle d, d/D \rangle$, $s = 1 + \eta \lambda$:
    $\tau = \min(\eta / c_1, \max(0, s (F - c_1 b - \Gamma) + \langle d, p \rangle) / N)$,
    $p \leftarrow (p - \tau d / D) / s$. Products are over all leaves.

    Args:
        lr: $\eta \ge 0$, the maximum rate.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$.
        lb: $b$, a lower bound of the loss; with `use_fstar`, its initial value and its lower limit.
        proximal_decay: False uses $p \leftarrow p (1 - \eta \lambda) - \tau d / D$.
        use_fstar: Learn $b$, as in `scale_by_momo`.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State: `exp_avg`
        ($d$), `exp_avg_sq`, shaped as the parameter; shared by all leaves, `loss_avg`, `dot_avg` and, with
        `use_fstar`, `lb`, 0-d.

    Example:
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> for value in (0.7, -0.1):  # Adam's step far above the lower bound, no step below it
        ...     tx = gradtx.scale_by_momo_adam(lr=0.01)
        ...     tx.update({"w": params["w"] / 5}, tx.init(params), params, value=value)[0]["w"]
        tensor([-0.0100, -0.0100])
        tensor([-0., -0.])

    Source: Schaipp et al. 2023, arXiv:2305.07583. Departures: the step is 0 where the mean gradient is 0; the authors
    call `proximal_decay` `divide`.
    """
    beta1, beta2 = betas
    moments, average = adam_moments(betas)

    def update(g, state, p, ctx):
        d, v, new_state = average(g, state)
        direction = quotient(d, corrected_root(v, ctx, beta2) + eps, floor=eps)
        total = yield _sums(g, p, d, direction)
        decay, rho = lr * weight_decay, ctx.bias_correction(beta1)
        tau, shared = _followed(
            state, total, ctx, beta1, rho, lr, 1 + decay, lb, use_fstar
        )
        moved = -(tau * direction + decay * p)
        yield moved / (1 + decay) if proximal_decay else moved, {**new_state, **shared}

    return moments, update


@alias(class_name="MoMo")
def momo(**arguments: Annotated[Any, scale_by_momo]):
    r"""MoMo: SGD with momentum whose rate follows the value of the loss.

    $p \leftarrow (p - \tau d) / (1 + \eta \lambda)$ along the mean gradient $d$, where $\tau$ is at most $\eta$ and
    takes an averaged linear model of the loss no further than to its lower bound; see `scale_by_momo`.

    When to use: SGD with momentum at a rate that may be too large, if the loss has a known lower bound such as 0.
    Updates need the extra `value`; an optimizer takes it from the closure.

    Args:
        lr: $\eta \ge 0$, the largest rate.
        beta: $\beta$ in [0, 1), the decay rate of all averages.
        weight_decay: $\lambda \ge 0$, applied as a proximal step.
        lb: A lower bound of the loss.
        bias_correction: Start the averages at 0 and divide by $1 - \beta^t$.
        use_fstar: Learn the lower bound, starting from `lb`.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`; shared by all leaves, 0-d:
        `loss_avg`, `dot_avg` and, with `use_fstar`, `lb`.

    Example:
        >>> tx = gradtx.momo(lr=100.0)
        >>> params = {"w": torch.tensor([8.0])}
        >>> # the loss is w^2: a rate of 0.25, and less for a higher bound
        >>> for lb in (0.0, 16.0):
        ...     tx = gradtx.momo(lr=100.0, lb=lb)
        ...     tx.update({"w": 2 * params["w"]}, tx.init(params), params, value=64.0)[0]["w"]
        tensor([-4.])
        tensor([-3.])

    Source: Schaipp et al. 2023, arXiv:2305.07583. Departures: see `scale_by_momo`. (optax divides only the decay by
    $1 + \eta\lambda$.)
    """
    return scale_by_momo(**arguments)


@alias(class_name="MoMoAdam")
def momo_adam(**arguments: Annotated[Any, scale_by_momo_adam]):
    r"""MoMo-Adam: Adam whose rate follows the value of the loss.

    $p \leftarrow (p - \tau d / D) / (1 + \eta \lambda)$ with Adam's mean gradient $d$ and denominator $D$, where $\tau$
    is at most $\eta / (1-\beta_1^t)$ and takes an averaged linear model of the loss no further than to its lower bound;
    see `scale_by_momo_adam`.

    When to use: Adam at a rate that may be too large, if the loss has a known lower bound such as 0. Updates need the
    extra `value`; an optimizer takes it from the closure.

    Args:
        lr: $\eta \ge 0$, the largest rate.
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$.
        lb: A lower bound of the loss.
        proximal_decay: If False, use a decay of $p (1 - \eta \lambda)$, as AdamW does.
        use_fstar: Learn the lower bound, starting from `lb`.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`; shared by all
        leaves, 0-d: `loss_avg`, `dot_avg` and, with `use_fstar`, `lb`.

    Example:
        >>> tx = gradtx.momo_adam(lr=100.0)
        >>> params = {"w": torch.tensor([8.0])}
        >>> # the loss is w^2
        >>> tx.update({"w": 2 * params["w"]}, tx.init(params), params, value=64.0)[0]["w"]
        tensor([-4.])

    Source: Schaipp et al. 2023, arXiv:2305.07583. Departures: see `scale_by_momo_adam`.
    """
    return scale_by_momo_adam(**arguments)
