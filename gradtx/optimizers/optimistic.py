"""Optimistic methods for games: optimistic gradient descent, optimistic Adam."""

from __future__ import annotations

from gradtx.arguments import Decays, NonNegative
from gradtx.base.exact import Scalar
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.adam import scale_by_adam
from gradtx.transforms.momentum import scale_by_optimistic_gradient
from gradtx.transforms.scaling import scale_by_learning_rate
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = ["optimistic_adam", "optimistic_gradient_descent"]


@alias(class_name="OptimisticGradientDescent")
def optimistic_gradient_descent(
    lr: NonNegative, alpha: Scalar = 1.0, beta: Scalar = 1.0
):
    r"""Optimistic gradient descent: SGD that looks ahead by the last change of the gradient.

    $p \leftarrow p - \eta (\alpha g_t + \beta (g_t - g_{t-1}))$ with $g_0 = g_1$.

    When to use: games and saddle points (a GAN, a Lagrangian), where plain descent circles around the solution.

    Args:
        lr: $\eta$ in [0, inf).
        alpha: $\alpha$, any number.
        beta: $\beta$, any number.

    Returns:
        A transformation whose updates are added to the parameters. State: `previous_grad`.

    Raises:
        ValueError: If `lr` is negative.

    Example:
        >>> tx = gradtx.optimistic_gradient_descent(lr=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 3.0):  # 3 + (3 - 4)
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-4.])
        tensor([-2.])

    Source: Mokhtari et al. 2019, arXiv:1901.08511; Daskalakis et al. 2017, arXiv:1711.00141. Departures: none.
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), scale_by_learning_rate(lr))


@alias(class_name="OptimisticAdam")
def optimistic_adam(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    weight_decay: NonNegative = 0.0,
):
    r"""Optimistic Adam: Adam that looks ahead by the last change of its direction.

    $p \leftarrow p - \eta (\alpha u_t + \beta (u_t - u_{t-1}) + \lambda p)$ with Adam's direction $u$, $u_0 = u_1$.

    When to use: games and saddle points with Adam, such as the training of a GAN.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        alpha: $\alpha$, any number.
        beta: $\beta$, any number.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `previous_grad`
        (the last $u$).

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> # u is the sign of the gradient
        >>> tx = gradtx.optimistic_adam(lr=1.0, betas=(0.0, 0.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, -3.0):  # -1 + (-1 - 1)
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-1.])
        tensor([3.])

    Source: Daskalakis et al. 2017, arXiv:1711.00141. Departures: none; optax's version has Nesterov momentum by
    default.
    """
    return chain(
        scale_by_adam(betas, eps),
        scale_by_optimistic_gradient(alpha, beta),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
