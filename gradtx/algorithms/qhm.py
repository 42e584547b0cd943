"""QHM, quasi-hyperbolic momentum: SGD with a mix of the gradient and its average. Also `qhadam`."""

from __future__ import annotations

from typing import Annotated, Any

from gradtx.arguments import Decay, Fraction, Scalar
from gradtx.links.decay import with_decay
from gradtx.maths.entries import adam_moments, running_mean, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema as average_of

__all__ = [
    "qhadam",
    "qhm",
    "scale_by_qhadam",
    "scale_by_qhm",
]


@per_tensor(elementwise=True, length="sets")
def scale_by_qhadam(
    betas=(0.9, 0.999),
    nus: tuple[Scalar, Fraction] = (1.0, 1.0),
    eps=1e-8,
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
        ValueError: If the second nu is outside [0, 1].

    Example:
        >>> tx = gradtx.scale_by_qhadam(nus=(0.0, 0.0))  # the sign of each gradient
        >>> tx.update({"w": torch.tensor([3.0, -0.1])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 1.0000, -1.0000])

    Source: Ma and Yarats 2018, arXiv:1810.06801. Departures: none in value; the authors store corrected averages.
    """
    (beta1, beta2), (nu1, nu2) = betas, nus
    moments, average = adam_moments(betas)

    def update(g, state, p, ctx):
        m, v, new_state = average(g, state)
        top = (1 - nu1) * g + (nu1 / ctx.bias_correction(beta1)) * m
        # The product from the left, so that an infinite square with the weight 0 is not NaN.
        square = (1 - nu2) * g * g + (nu2 / ctx.bias_correction(beta2)) * v
        return top / (safe_sqrt(square) + eps), new_state

    return moments, update


@per_tensor(elementwise=True)
def scale_by_qhm(momentum: Decay = 0.999, nu: Scalar = 0.7):
    r"""Mix the gradient with its average: quasi-hyperbolic momentum.

    $b_t = \beta b_{t-1} + (1-\beta) g_t$, direction $(1-\nu) g_t + \nu b_t$.

    Args:
        momentum: $\beta$, in [0, 1).
        nu: $\nu$, usually in [0, 1]: 0 is plain gradient descent, 1 an average, $\nu = \beta$ Nesterov momentum.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer` ($b$), shaped as the parameter.

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

    return {"momentum_buffer": average_of(momentum)}, update


@alias(class_name="QHAdam")
def qhadam(
    lr=1e-3,
    *,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    **direction: Annotated[Any, scale_by_qhadam],
):
    r"""QHAdam: Adam whose averages are both mixed with the current gradient.

    $p \leftarrow p - \eta \frac{(1-\nu_1) g + \nu_1 \hat m}{\sqrt{(1-\nu_2) g^2 + \nu_2 \hat v} + \epsilon}$.

    When to use: when Adam is unstable or forgets too slowly: lower one of the nus slightly, without changing the betas.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        nus: $(\nu_1, \nu_2)$; the second in [0, 1], usually the first as well. (1, 1) is Adam; the paper suggests (0.7,
            1).
        eps: $\epsilon \ge 0$, added outside the square root, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Example:
        >>> # the gradient over Adam's root
        >>> tx, state = gradtx.qhadam(lr=0.1, nus=(0.0, 1.0)), {}
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 0.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"].abs())
        tensor([0.1000])
        tensor([0.])

    Source: Ma and Yarats 2018, arXiv:1810.06801. Departures: none.
    """
    return with_decay(
        scale_by_qhadam(**direction), weight_decay, decoupled_weight_decay, lr
    )


@alias(class_name="QHM")
def qhm(
    lr,
    momentum: Decay = 0.999,
    nu: Scalar = 0.7,
    weight_decay=0.0,
    decoupled_weight_decay=False,
):
    r"""QHM, quasi-hyperbolic momentum: SGD with a mix of the gradient and its average.

    $b \leftarrow \beta b + (1-\beta) g$, $p \leftarrow p - \eta ((1-\nu) g + \nu b)$.

    When to use: instead of SGD with momentum: the paper's defaults tolerate a long memory, and the current gradient
    takes effect immediately.

    Args:
        lr: $\eta$ in [0, inf); about $1/(1-\beta)$ times the rate of `sgd`, whose momentum is a sum. The authors give
            no default.
        momentum: $\beta$ in [0, 1).
        nu: $\nu$, usually in [0, 1]: 0 is SGD, $\beta$ is Nesterov's momentum.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Example:
        >>> tx = gradtx.qhm(lr=1.0, momentum=0.75, nu=0.5)
        >>> # half of 8, half of 8 / 4
        >>> tx.update({"w": torch.tensor([8.0])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([-5.])

    Source: Ma and Yarats 2018, arXiv:1810.06801. Departures: the defaults of momentum and nu are the paper's rule of
    thumb.
    """
    return with_decay(
        scale_by_qhm(momentum, nu), weight_decay, decoupled_weight_decay, lr
    )
