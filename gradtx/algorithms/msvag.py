"""M-SVAG: momentum SGD that shortens the step of each weight by the share of variance in its gradient."""

from __future__ import annotations

from gradtx.arguments import Decay
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import adam_moments, at_most, quotient
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["msvag", "scale_by_msvag"]


@per_tensor(elementwise=True)
def scale_by_msvag(beta: Decay = 0.9):
    r"""Shorten each entry of the mean gradient by the share of variance in its square: M-SVAG's direction.

    $m_t$, $v_t$ are averages of $g$ and $g^2$ with the same $\beta$; $\hat m$ and $\hat v$ are divided by $1-\beta^t$;
    $\rho_t = \min(0.9999, \frac{(1-\beta)^2 (1-\beta^{2t})}{(1-\beta^t)^2 (1-\beta^2)})$,
    $s_t = (\hat v_t - \hat m_t^2)/(1-\rho_t)$, direction
    $\hat m_t \, \mathrm{clip}(\hat m_t^2 / (\hat m_t^2 + \rho_t s_t), 0, 1)$, and 0 where this is 0/0.

    Args:
        beta: $\beta$ in [0, 1).

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_msvag(beta=0.5)
        >>> state = tx.init({"w": torch.zeros(2, dtype=torch.float64)})
        >>> for grads in ([4.0, 1.0], [4.0, 7.0]):  # a steady gradient, and one with variance
        ...     updates, state = tx.update(
        ...         {"w": torch.tensor(grads, dtype=torch.float64)}, state
        ...     )
        >>> updates["w"]
        tensor([4.0000, 3.5714], dtype=torch.float64)

    Source: Balles and Hennig 2018, arXiv:1705.07774. Departures: none from the authors' code. At the first step, where
    $\hat v = \hat m^2$ up to rounding, $1 - \rho_t$ is 1e-4, which amplifies rounding errors 10,000 times.
    """
    moments, average = adam_moments((beta, beta))

    def update(g, state, p, ctx):
        m, v, new_state = average(g, state)
        correction = ctx.bias_correction(beta)
        # The paper's quotient with common factors canceled: 1 - b**2 = (1 - b) * (1 + b) for b = beta and b = beta**t.
        rho = (1 - beta) * (2 - correction) / ((1 + beta) * correction)
        rho = at_most(rho, 0.9999)
        mean = m / correction
        square = mean.square()
        size = square + rho / (1 - rho) * (v / correction - square)
        return quotient(square, size).clamp(0, 1) * mean, new_state

    return moments, update


@alias(class_name="MSVAG")
def msvag(lr, beta: Decay = 0.9):
    r"""M-SVAG: momentum SGD that shortens the step of each weight by the share of variance in its gradient.

    $p \leftarrow p - \eta f_t \hat m_t$, where $f_t$ in [0, 1] is the estimated share of the squared mean in the square
    of $\hat m_t$; see `scale_by_msvag`.

    When to use: when Adam's sign-like steps hurt generalization, yet noise differs widely between weights.

    Args:
        lr: $\eta$ in [0, inf), on the scale of SGD's rates; the authors give no default.
        beta: Decay rates of both averages, in [0, 1).

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

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
