"""MoMo, MoMo-Adam: step sizes from a model of the loss built from past losses and gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base.exact import Betas, Scalar, exact
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    adam_moments,
    at_least,
    at_most,
    corrected_root,
    quotient,
    running_mean,
    zeros,
)

__all__ = ["scale_by_momo", "scale_by_momo_adam"]


class Model(NamedTuple):
    """Averaged linear model of the loss at a step, and the values that determine how far to follow it."""

    loss: Tensor  # F
    product: Tensor  # Gamma
    slope: Tensor  # <d, p>
    square: Tensor  # N = <d, d / D>
    rho: Any
    shrinkage: Any  # 1 + lr * weight_decay
    least: Any  # lower limit of a learned lower bound

    def lowered(self, bound: Tensor) -> Tensor:
        """Return the lower bound of the loss, reduced if the model is already below it."""
        cap = self.shrinkage * (self.loss - self.product) + self.slope
        again = at_least(cap / (2 * self.shrinkage * self.rho), self.least)
        return torch.where(cap < self.shrinkage * self.rho * bound, again, bound)

    def step(self, lr: Any, bound: Any) -> Tensor:
        """Return tau, the step at which the model reaches the lower bound, limited by the rate."""
        height = (
            self.shrinkage * (self.loss - self.rho * bound - self.product) + self.slope
        )
        return at_most(quotient(at_least(height, 0.0), self.square), lr / self.rho)

    def estimate(self, step: Tensor) -> Tensor:
        """Return the next lower bound of the loss."""
        decrease = self.loss + self.slope - self.product - step * self.square / 2
        return at_least(decrease / self.rho, self.least)

    def followed(
        self, lr: Any, state: dict[str, Tensor], use_fstar: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the step size and the next shared values."""
        shared = {"loss_avg": self.loss, "dot_avg": self.product}
        if not use_fstar:
            return self.step(lr, self.least), shared
        bound = self.lowered(state["lb"])
        step = self.step(lr, bound)
        return step, {**shared, "lb": self.estimate(step)}


def _shared(arguments: dict[str, Any]) -> dict[str, Any]:
    averages = {"loss_avg": 0.0, "dot_avg": 0.0}
    return {**averages, "lb": arguments["lb"]} if arguments["use_fstar"] else averages


def _averaged(
    state: dict, ctx: Any, product: Tensor, beta: Any
) -> tuple[Tensor, Tensor]:
    """Return the averages of the loss and of <g, p>."""
    value = exact(ctx.value, product.device)
    return (
        running_mean(state["loss_avg"], value, beta),
        running_mean(state["dot_avg"], product, beta),
    )


@per_tensor(
    elementwise=True,
    needs=("params", "value"),
    owns_lr=True,
    shared=_shared,
    agree=("beta", "lb", "bias_correction", "use_fstar"),
    ranges={"beta": "[0, 1)"},
)
def scale_by_momo(
    lr: Scalar = 1.0,
    beta: Scalar = 0.9,
    weight_decay: Scalar = 0.0,
    lb: Scalar = 0.0,
    bias_correction: bool = False,
    use_fstar: bool = False,
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

    Raises:
        ValueError: If an argument is out of range, if `params` or `value` is missing, or if a later link scales by a
            learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_momo(lr=10.0)
        >>> # the loss is the norm of w, and 0 is its lower bound
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> tx.update({"w": params["w"] / 5}, tx.init(params), params, value=5.0)[0]["w"]
        tensor([-3., -4.])

    Source: Schaipp et al. 2023, arXiv:2305.07583. Departures: the step is 0 where the mean gradient is 0.
    """

    def update(update, state, param, ctx):
        keep = (
            beta
            if bias_correction
            else torch.where(ctx.step == 1, 0.0, exact(beta, update.device))
        )
        rho = ctx.bias_correction(beta) if bias_correction else 1.0
        mean = running_mean(state["exp_avg"], update, keep)
        total = yield {
            "product": (update * param).sum(),
            "slope": (mean * param).sum(),
            "square": mean.square().sum(),
        }
        averages = _averaged(state, ctx, total["product"], keep)
        model = Model(
            *averages, total["slope"], total["square"], rho, 1 + lr * weight_decay, lb
        )
        step, shared = model.followed(lr, state, use_fstar)
        yield (
            -(step * mean + lr * weight_decay * param) / model.shrinkage,
            {"exp_avg": mean, **shared},
        )

    return zeros("exp_avg"), update


@per_tensor(
    elementwise=True,
    needs=("params", "value"),
    owns_lr=True,
    shared=_shared,
    agree=("betas", "lb", "use_fstar"),
    nonnegative=("exp_avg_sq",),
)
def scale_by_momo_adam(
    lr: Scalar = 1e-2,
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    lb: Scalar = 0.0,
    proximal_decay: bool = True,
    use_fstar: bool = False,
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

    Raises:
        ValueError: If an argument is out of range, if `params` or `value` is missing, or if a later link scales by a
            learning rate or decays.

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
    init, average = adam_moments(betas)

    def update(update, state, param, ctx):
        mean, square, new = average(update, state)
        root = corrected_root(square, ctx, beta2) + eps
        direction = quotient(mean, root, floor=eps)
        total = yield {
            "product": (update * param).sum(),
            "slope": (mean * param).sum(),
            "square": (mean * direction).sum(),
        }
        averages = _averaged(state, ctx, total["product"], beta1)
        rho = ctx.bias_correction(beta1)
        model = Model(
            *averages, total["slope"], total["square"], rho, 1 + lr * weight_decay, lb
        )
        step, shared = model.followed(lr, state, use_fstar)
        moved = -(step * direction + lr * weight_decay * param)
        yield moved / model.shrinkage if proximal_decay else moved, {**new, **shared}

    return init, update
