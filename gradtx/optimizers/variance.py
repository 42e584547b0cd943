"""Shorter steps where gradients vary: M-SVAG, A2Grad."""

from __future__ import annotations

from gradtx.arguments import Decay, NonNegative, Positive
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.scaling import scale_by_learning_rate
from gradtx.transforms.variance_reduction import scale_by_a2grad, scale_by_msvag

__all__ = ["a2grad", "msvag"]


@alias(class_name="MSVAG")
def msvag(lr: NonNegative, beta: Decay = 0.9):
    r"""M-SVAG: momentum SGD that shortens the step of each weight by the share of variance in its gradient.

    $p \leftarrow p - \eta f_t \hat m_t$, where $f_t$ in [0, 1] is the estimated share of the squared mean in the square
    of $\hat m_t$; see `scale_by_msvag`.

    When to use: when Adam's sign-like steps hurt generalization, yet noise differs widely between weights.

    Args:
        lr: $\eta$ in [0, inf), on the scale of SGD's rates; the authors give no default.
        beta: Decay rates of both averages, in [0, 1).

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Example:
        >>> tx = gradtx.msvag(lr=0.1)
        >>> state = tx.init({"w": torch.zeros(2, dtype=torch.float64)})
        >>> for grads in ([1.0, 1.0], [1.0, 0.0], [1.0, 2.0]):  # without and with variance
        ...     updates, state = tx.update(
        ...         {"w": torch.tensor(grads, dtype=torch.float64)}, state
        ...     )
        >>> updates["w"]
        tensor([-0.1000, -0.0780], dtype=torch.float64)

    Source: Balles and Hennig 2018, arXiv:1705.07774. Departures: none from the authors' code.
    """
    return chain(scale_by_msvag(beta), scale_by_learning_rate(lr))


@alias(class_name="A2Grad")
def a2grad(
    variant: str = "uni",
    beta: NonNegative = 10.0,
    lips: Positive = 10.0,
    rho: Decay = 0.5,
):
    r"""A2Grad: Nesterov's accelerated gradient with steps damped by the deviation of gradients from their mean.

    Equivalent to `scale_by_a2grad`.

    When to use: convex or nearly convex problems with noise, if acceleration should come with a guarantee; `lips` must
    be approximately right.

    Args:
        variant: "uni", "inc" or "exp": how quickly earlier deviations are forgotten.
        beta: $\beta \ge 0$, the weight of the damping.
        lips: $L > 0$, the Lipschitz constant of the gradient: the step size is 1/L.
        rho: Decay rate of the average deviation, in [0, 1); read only by "exp".

    Returns:
        A transformation whose updates are added to the parameters; there is no learning rate. State: `x`, `avg_grad`,
        `v`, [`v_tilde`].

    Raises:
        ValueError: If a hyperparameter is out of range, if `variant` is unknown, or if `params` is missing.

    Example:
        >>> tx, params = gradtx.a2grad(beta=0.0, lips=1.0), {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> for _ in range(4):  # the loss is w**2 / 2, without damping
        ...     updates, state = tx.update(params, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(params["w"])
        tensor([0.5000])
        tensor([0.0833])
        tensor([-0.0375])
        tensor([-0.0217])

    Source: Deng et al. 2018, arXiv:1810.00553. Departures: none from the paper; published implementations have one
    damping per leaf, and pytorch_optimizer's counts from 1.
    """
    return scale_by_a2grad(variant, beta, lips, rho)
