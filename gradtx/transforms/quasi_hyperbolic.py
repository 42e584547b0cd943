"""QHM and QHAdam: averages of gradients, mixed with the gradient itself."""

from __future__ import annotations

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import running_mean, safe_sqrt, zeros

__all__ = ["scale_by_qhadam", "scale_by_qhm"]

# With a second nu above 1, the mean square of QHAdam could become negative.
NUS = ("(-inf, inf)", "[0, 1]")


@per_tensor(elementwise=True, ranges={"momentum": "[0, 1)"})
def scale_by_qhm(momentum: Scalar = 0.999, nu: Scalar = 0.7):
    r"""Mix the gradient with its average: quasi-hyperbolic momentum.

    $b_t = \beta b_{t-1} + (1-\beta) g_t$, direction $(1-\nu) g_t + \nu b_t$.

    Args:
        momentum: $\beta$, in [0, 1).
        nu: $\nu$, usually in [0, 1]: 0 is plain gradient descent, 1 an average, $\nu = \beta$ Nesterov momentum.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer` ($b$), shaped as the parameter.

    Raises:
        ValueError: If `momentum` is outside [0, 1).

    Example:
        >>> tx = gradtx.scale_by_qhm(momentum=0.75, nu=0.5)
        >>> # half of 8, half of 8 / 4
        >>> tx.update({"w": torch.tensor([8.0])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([5.])

    Source: Ma and Yarats 2018, arXiv:1810.06801. Departures: none.
    """

    def update(update, state, param, ctx):
        buffer = running_mean(state["momentum_buffer"], update, momentum)
        return (1 - nu) * update + nu * buffer, {"momentum_buffer": buffer}

    return zeros("momentum_buffer"), update


@per_tensor(elementwise=True, ranges={"nus": NUS}, nonnegative=("exp_avg_sq",))
def scale_by_qhadam(
    betas: Betas = (0.9, 0.999), nus: Betas = (1.0, 1.0), eps: Scalar = 1e-8
):
    r"""Mix both of Adam's averages with the gradient and its square: QHAdam's direction.

    $\frac{(1-\nu_1) g_t + \nu_1 \hat m_t}{\sqrt{(1-\nu_2) g_t^2 + \nu_2 \hat v_t} + \epsilon}$ with Adam's
    bias-corrected averages $\hat m$ of $g$ and $\hat v$ of $g^2$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        nus: $(\nu_1, \nu_2)$; the second in [0, 1], the first usually as well. (1, 1) is Adam.
        eps: $\epsilon \ge 0$, outside the root, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1), if the second nu is outside [0, 1], or if `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_qhadam(nus=(0.0, 0.0))  # the sign of each gradient
        >>> tx.update({"w": torch.tensor([3.0, -0.1])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 1.0000, -1.0000])

    Source: Ma and Yarats 2018, arXiv:1810.06801. Departures: none in value; the authors store corrected averages.
    """
    beta1, beta2 = betas
    nu1, nu2 = nus

    def update(update, state, param, ctx):
        mean = running_mean(state["exp_avg"], update, beta1)
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        top = (1 - nu1) * update + (nu1 / ctx.bias_correction(beta1)) * mean
        # The product from the left, so that an infinite square with the weight 0 is not NaN.
        root = safe_sqrt(
            (1 - nu2) * update * update + (nu2 / ctx.bias_correction(beta2)) * square
        )
        return top / (root + eps), {"exp_avg": mean, "exp_avg_sq": square}

    return zeros("exp_avg", "exp_avg_sq"), update
