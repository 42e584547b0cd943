"""Two alternating momenta, one subtracted from the other: PNM, AdaPNM."""

from __future__ import annotations

from torch import Tensor

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import corrected_root, peak, running_mean, zeros

__all__ = ["scale_by_adapnm", "scale_by_pnm"]


def positive_negative(
    positive: Tensor, negative: Tensor, gradient: Tensor, beta, weight
) -> tuple[Tensor, Tensor]:
    """Return the direction and the positive momentum updated with the gradient; the negative one is unchanged.

    The decay is the square of beta, because each momentum is written at every second step. The direction is normalized
    so that two momenta with independent noise yield noise of the size of one.
    """
    positive = running_mean(positive, gradient, beta**2)
    size = ((1 + weight) ** 2 + weight**2) ** 0.5
    return ((1 + weight) / size) * positive - (weight / size) * negative, positive


@per_tensor(elementwise=True, ranges={"betas": ("[0, 1)", "[0, 1]")})
def scale_by_pnm(betas: Betas = (0.9, 1.0)):
    r"""Subtract an older momentum from a newer one: positive-negative momentum.

    Two averages, starting from 0, are updated alternately: $m_t = \beta_1^2 m_{t-2} + (1-\beta_1^2) g_t$; direction
    $((1+\beta_2) m_t - \beta_2 m_{t-1}) / \sqrt{(1+\beta_2)^2 + \beta_2^2}$.

    Args:
        betas: $(\beta_1, \beta_2)$: the decay per step, in [0, 1), and the weight of the negative part, in [0, 1].

    Returns:
        A transformation that keeps shapes and dtypes. State: `pos_momentum`, which the next step updates, and
        `neg_momentum`, shaped as the parameter; they are swapped at every step.

    Raises:
        ValueError: If the first beta is outside [0, 1) or the second is outside [0, 1].

    Example:
        >>> tx = gradtx.scale_by_pnm((0.0, 1.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(3):  # without decay: (2 g_t - g_{t-1}) / sqrt(5)
        ...     updates, state = tx.update({"w": torch.tensor([5**0.5])}, state)
        ...     print(updates["w"])
        tensor([2.])
        tensor([1.])
        tensor([1.])

    Source: Xie et al. 2021, arXiv:2103.17182. Departures: none from the authors' code.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        negative = state["neg_momentum"]
        direction, positive = positive_negative(
            state["pos_momentum"], negative, update, beta1, beta2
        )
        return direction, {"pos_momentum": negative, "neg_momentum": positive}

    return zeros("pos_momentum", "neg_momentum"), update


@per_tensor(
    elementwise=True,
    ranges={"betas": ("[0, 1)", "[0, 1)", "[0, 1]")},
    nonnegative=("exp_avg_sq", "max_exp_avg_sq"),
)
def scale_by_adapnm(
    betas: Betas = (0.9, 0.999, 1.0), eps: Scalar = 1e-8, amsgrad: bool = True
):
    r"""Divide positive-negative momentum by the root mean square of the gradient: AdaPNM's direction.

    With $n_t$ the direction of `scale_by_pnm` for $(\beta_1, \beta_3)$ and
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$: $n_t / (1-\beta_1^t) / (\sqrt{v_t / (1-\beta_2^t)} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2, \beta_3)$: decay of the momenta and of $v$, in [0, 1); weight of the negative
            part, in [0, 1].
        eps: $\epsilon \ge 0$, in the units of a gradient.
        amsgrad: Use the running maximum of $v$ instead of $v$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, which the next step updates, and
        `neg_exp_avg`, swapped at every step, `exp_avg_sq` and, with `amsgrad`, `max_exp_avg_sq`, shaped as the
        parameter.

    Raises:
        ValueError: If one of the first two betas is outside [0, 1), if the third is outside [0, 1], or if `eps` is
            negative.

    Example:
        >>> tx = gradtx.scale_by_adapnm((0.0, 0.9, 1.0))
        >>> # 2 / sqrt(5)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 0.8944, -0.8944])

    Source: Xie et al. 2021, arXiv:2103.17182. Departures: none from the authors' code, which corrects by
    $1-\beta_1^t$ although each momentum decays by $\beta_1^2$ at every second step.
    """
    beta1, beta2, beta3 = betas

    def update(update, state, param, ctx):
        negative = state["neg_exp_avg"]
        direction, positive = positive_negative(
            state["exp_avg"], negative, update, beta1, beta3
        )
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        new = {"exp_avg": negative, "neg_exp_avg": positive, "exp_avg_sq": square}
        square = peak(new, state, "exp_avg_sq", amsgrad)
        root = corrected_root(square, ctx, beta2)
        return direction / ctx.bias_correction(beta1) / (root + eps), new

    init = zeros("exp_avg", "neg_exp_avg", "exp_avg_sq", max_exp_avg_sq=amsgrad)
    return init, update
