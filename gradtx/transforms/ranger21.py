"""Positive-negative momentum over Adam's smoothed denominator, with stable decay and norm loss: Ranger21's step."""

from __future__ import annotations

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    peak,
    running_mean,
    safe_sqrt,
    softplus,
    unit_norm,
    zeros,
)
from gradtx.transforms.positive_negative import positive_negative
from gradtx.transforms.stable_decay import stable_decay

__all__ = ["scale_by_ranger21"]


@per_tensor(
    needs=("params",),
    owns_lr=True,
    ranges={
        "beta0": "[0, 1]",
        "beta_softplus": "(0, inf)",
        "norm_loss_factor": "[0, inf)",
    },
    example={"lr": 0.1},
    nonnegative=("exp_avg_sq", "max_exp_avg_sq"),
)
def scale_by_ranger21(
    lr: Scalar,
    beta0: Scalar = 0.9,
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-8,
    use_softplus: bool = True,
    beta_softplus: Scalar = 50.0,
    weight_decay: Scalar = 1e-4,
    norm_loss_factor: Scalar = 1e-4,
    amsgrad: bool = True,
):
    r"""Step along positive-negative momentum over a smoothed denominator, after two decays: Ranger21's update.

    With $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$ and $c_i = 1 - \beta_i^t$: first stable decay,
    $q = p (1 - \eta \lambda / \ell)$, where $\ell^2$ is the mean of $v_t / c_2$ over all entries of all leaves (no
    decay while it is 0); then the norm loss, $r = q (1 - 2 \eta \kappa (1 - 1 / (\lVert q_i \rVert + \epsilon)))$ for
    each output unit; then $p \leftarrow r - \frac{\eta}{c_1} n_t / D_t$. $n_t$ is the direction of `scale_by_pnm` for
    $(\beta_1, \beta_0)$; $D_t$ is $\sqrt{v_t / c_2} + \epsilon$ or its softplus.

    Args:
        lr: $\eta$ in [0, inf). The stage owns it: its update is the full step.
        beta0: $\beta_0$ in [0, 1], the weight of the negative momentum.
        betas: $(\beta_1, \beta_2)$, each in [0, 1): decay of the momenta per step, and of $v$.
        eps: $\epsilon \ge 0$; use a positive value.
        use_softplus: Whether to keep the denominator away from 0 smoothly.
        beta_softplus: $b > 0$: the denominator is $\log(1 + \exp(b D)) / b$.
        weight_decay: $\lambda \ge 0$, in the units of a gradient over a weight.
        norm_loss_factor: $\kappa \ge 0$.
        amsgrad: Use the running maximum of $v$ in $D_t$.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_ma`, which the next step updates, and
        `neg_grad_ma`, swapped at every step, `exp_avg_sq` and, with `amsgrad`, `max_exp_avg_sq`, shaped as the
        parameter.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> tx = gradtx.scale_by_ranger21(
        ...     lr=0.1, beta0=0.0, use_softplus=False, weight_decay=1.0, norm_loss_factor=0.5
        ... )
        >>> params = {"w": torch.tensor([2.0, 0.0])}
        >>> state = tx.init(params)
        >>> # a tenth of the way from norm 2 to 1
        >>> tx.update({"w": torch.zeros(2)}, state, params)[0]["w"] + params["w"]
        tensor([1.9000, 0.0000])

    Source: Wright and Demeure 2021, arXiv:2106.13731. Departures from the authors' code: the decay uses all leaves,
    the mean of $v$ starts at 0, the maximum is stored, and `beta0` is the weight of the noise (theirs is 1).
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        correction = ctx.bias_correction(beta2)
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        total = yield {"square": square.sum() / correction, "count": square.numel()}
        # p becomes p (1 - a) (1 - b); computed as a sum, because 1 - a would round to 1 in half precision.
        stable = stable_decay(lr * weight_decay, total)
        size = unit_norm((1 - stable) * param)
        pull = 2 * lr * norm_loss_factor * (1 - 1 / (size + eps))
        decay = stable + pull - stable * pull

        negative = state["neg_grad_ma"]
        direction, positive = positive_negative(
            state["grad_ma"], negative, update, beta1, beta0
        )
        new = {"grad_ma": negative, "neg_grad_ma": positive, "exp_avg_sq": square}
        square = peak(new, state, "exp_avg_sq", amsgrad)
        root = safe_sqrt(square / correction) + eps
        if use_softplus:
            root = softplus(root, beta_softplus)
        yield -(lr / ctx.bias_correction(beta1)) * direction / root - decay * param, new

    init = zeros("grad_ma", "neg_grad_ma", "exp_avg_sq", max_exp_avg_sq=amsgrad)
    return init, update
