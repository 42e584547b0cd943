"""TAM, AdaTAM: damp gradients that turn away from the momentum."""

from __future__ import annotations

from torch import Tensor

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import at_least, quotient, running_mean, safe_sqrt, zeros

__all__ = ["scale_by_adatam", "scale_by_tam"]

RANGES = {"momentum": "[0, 1)", "decay_rate": "[0, 1)"}


def _directed(x: Tensor) -> Tensor:
    """Divide by the norms along dimension 0, or by the absolute value of a 0-d tensor."""
    square = x.square().sum(dim=0, keepdim=True) if x.ndim else x.square()
    return x / at_least(safe_sqrt(square), 1e-12)


def _damped(
    update: Tensor, momentum: Tensor, smooth: Tensor, decay_rate, eps
) -> tuple[Tensor, Tensor]:
    """Return the gradient weighted by its agreement with the momentum, and the average of that agreement."""
    along = (1 - decay_rate) * _directed(momentum) * _directed(update)
    smooth = decay_rate * smooth + along
    return ((1 + smooth) / 2 + eps) * update, smooth


@per_tensor(ranges=RANGES)
def scale_by_tam(momentum: Scalar = 0.9, decay_rate: Scalar = 0.9, eps: Scalar = 1e-8):
    r"""Add gradients to a momentum, damping those that turn away from it: torque-aware momentum.

    $n(x) = x / \lVert x \rVert$ with norms along dimension 0,
    $s_t = \gamma s_{t-1} + (1-\gamma)\, n(m_{t-1})\, n(g_t)$ entry by entry,
    $m_t = \mu m_{t-1} + (\frac{1 + s_t}{2} + \epsilon) g_t$, direction $m_t$.

    Args:
        momentum: $\mu$ in [0, 1).
        decay_rate: $\gamma$ in [0, 1), decay of the average agreement.
        eps: $\epsilon \ge 0$, which gives an opposite gradient some weight.

    Returns:
        A transformation that keeps shapes and dtypes. State: `s`, `momentum_buffer` ($m$), shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_tam(momentum=0.5, decay_rate=0.0, eps=0.0)
        >>> state = tx.init({"w": torch.zeros(())})
        >>> # half of the gradient at first, then all of it, then nothing
        >>> for grad in (2.0, 2.0, -8.0):
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor(1.)
        tensor(2.5000)
        tensor(1.2500)

    Source: Malviya et al. 2024, arXiv:2412.18790. Departures: as in the public code, norms are along dimension 0 (the
    paper's cosine is over the whole leaf). pytorch_optimizer starts $m$ at $g_1$.
    """

    def update(update, state, param, ctx):
        buffer = state["momentum_buffer"]
        damped, smooth = _damped(update, buffer, state["s"], decay_rate, eps)
        buffer = momentum * buffer + damped
        return buffer, {"s": smooth, "momentum_buffer": buffer}

    return zeros("s", "momentum_buffer"), update


@per_tensor(ranges=RANGES, nonnegative=("exp_avg_sq",))
def scale_by_adatam(
    betas: Betas = (0.9, 0.999), decay_rate: Scalar = 0.9, eps: Scalar = 1e-8
):
    r"""Divide a torque-aware momentum by the root mean square of the gradients: AdaTAM's direction.

    $s_t$ as in `scale_by_tam`, $m_t = \beta_1 m_{t-1} + (\frac{1 + s_t}{2} + \epsilon) g_t$,
    $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$, direction $m_t / (\sqrt{v_t} + \epsilon)$, without bias correction.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        decay_rate: $\gamma$ in [0, 1), decay of the average agreement.
        eps: $\epsilon \ge 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `s`, `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_adatam(betas=(0.0, 0.75), decay_rate=0.0, eps=0.0)
        >>> state = tx.init({"w": torch.zeros(())})
        >>> for grad in (2.0, 2.0):  # half of the gradient at first
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor(1.)
        tensor(1.5119)

    Source: Malviya et al. 2024, arXiv:2412.18790. Departures: as for `scale_by_tam`; the public code has neither the
    factor $1-\beta_1$ nor bias correction.
    """
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        mean = state["exp_avg"]
        damped, smooth = _damped(update, mean, state["s"], decay_rate, eps)
        mean = beta1 * mean + damped
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        return quotient(mean, safe_sqrt(square) + eps, floor=eps), {
            "s": smooth,
            "exp_avg": mean,
            "exp_avg_sq": square,
        }

    return zeros("s", "exp_avg", "exp_avg_sq"), update
