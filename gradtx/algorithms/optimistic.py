"""Looking ahead by the last change of the gradient: `optimistic_gradient_descent` and `optimistic_adam`."""

from __future__ import annotations

from typing import Annotated, Any

from gradtx.algorithms.adam import scale_by_adam
from gradtx.arguments import Scalar
from gradtx.links.decay import with_decay
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import change_of
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear
from gradtx.transform import chain

__all__ = [
    "optimistic_adam",
    "optimistic_gradient_descent",
    "scale_by_optimistic_gradient",
]


@per_tensor(elementwise=True)
def scale_by_optimistic_gradient(alpha: Scalar = 1.0, beta: Scalar = 1.0):
    r"""Add the last change of the update to extrapolate the next one.

    $u_t = \alpha g_t + \beta (g_t - g_{t-1})$ with $g_0 = g_1$.

    Args:
        alpha: $\alpha$, any number.
        beta: $\beta$, any number; with 0, updates are only scaled.

    Returns:
        A transformation that keeps shapes and dtypes. State: `previous_grad`, the previous input of the link, shaped as
        the parameter.

    Example:
        >>> tx = gradtx.chain(
        ...     gradtx.scale_by_optimistic_gradient(), gradtx.scale_by_learning_rate(0.5)
        ... )
        >>> params = {"x": torch.tensor([1.0]), "y": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> # the saddle x y: plain descent in x and ascent in y would spiral out
        >>> for _ in range(30):
        ...     grads = {"x": params["y"], "y": -params["x"]}
        ...     updates, state = tx.update(grads, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> bool(params["x"].abs() < 0.1), bool(params["y"].abs() < 0.1)
        (True, True)

    Source: Daskalakis et al. 2017, arXiv:1711.00141; with two rates: Mokhtari et al. 2019, arXiv:1901.08511.
    Departures: none.
    """

    def update(update, state, param, ctx):
        change = change_of(update, state, ctx)
        return alpha * update + beta * change, {"previous_grad": update}

    return {"previous_grad": linear(decay=0.0)}, update


@alias(class_name="OptimisticGradientDescent")
def optimistic_gradient_descent(
    lr, **direction: Annotated[Any, scale_by_optimistic_gradient]
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
    return chain(scale_by_optimistic_gradient(**direction), scale_by_learning_rate(lr))


@alias(class_name="OptimisticAdam")
def optimistic_adam(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    weight_decay=0.0,
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
    direction = chain(
        scale_by_adam(betas, eps), scale_by_optimistic_gradient(alpha, beta)
    )
    return with_decay(direction, weight_decay, True, lr)
