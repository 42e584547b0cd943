"""A2Grad: Nesterov's accelerated gradient with steps damped by the deviation of gradients from their mean."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from gradtx.arguments import Decay, NonNegative, Positive
from gradtx.maths.entries import running_mean, safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square, start

__all__ = ["a2grad", "scale_by_a2grad"]


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_a2grad(
    variant: Literal["uni", "inc", "exp"] = "uni",
    beta: NonNegative = 10.0,
    lips: Positive = 10.0,
    rho: Decay = 0.5,
):
    r"""Damp accelerated gradient descent by the deviation of gradients from their mean: A2Grad.

    With $k = t - 1$ and $\bar g_k$ the mean of all gradients so far, $\delta_k = g_k - \bar g_k$,
    $\gamma_k = 2L/(k+1)$, $\alpha_k = 2/(k+2)$, $c_k = 1/(\gamma_k + \beta h_k)$, entry by entry:
    $x_{k+1} = x_k - c_k g_k$, $p_{k+1} = (1-\alpha_{k+1}) (p_k - \alpha_k c_k g_k) + \alpha_{k+1} x_{k+1}$. The
    damping, starting from 0, is:

    - uni: $v_k = v_{k-1} + \delta_k^2$, $h_k = \sqrt{v_k}$;
    - inc: $v_k = (\frac{k}{k+1})^2 v_{k-1} + \delta_k^2$, $h_k = \sqrt{v_k}$;
    - exp: $\tilde v_k = \rho \tilde v_{k-1} + (1-\rho) \delta_k^2$, $v_k = \max(v_{k-1}, \tilde v_k)$,
      $h_k = \sqrt{(k+1) v_k}$.

    Args:
        variant: "uni", "inc" or "exp": how quickly earlier deviations are forgotten.
        beta: $\beta \ge 0$, the weight of the damping.
        lips: $L > 0$, the Lipschitz constant of the gradient: step sizes are of the order 1/L.
        rho: $\rho$ in [0, 1); only used by "exp".

    Returns:
        A transformation whose updates are added to the parameters; it has no learning rate. State: `x` (initially the
        parameter), `avg_grad`, `v` and, for "exp", `v_tilde`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_a2grad(lips=2.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> # no deviation yet: 4 / (2 L)
        >>> tx.update({"w": torch.tensor([4.0])}, tx.init(params), params)[0]["w"]
        tensor([-1.])

    Source: Deng et al. 2018, arXiv:1810.00553, algorithms 4 to 7. Departures: none from the paper. Published
    implementations, including torch_optimizer's and pytorch_optimizer's, use one $\lVert\delta\rVert^2$ per leaf
    instead of a vector.
    """

    def update(g, state, p, ctx):
        t, old = ctx.time, state["avg_grad"]  # t = k + 1
        mean = old + (g - old) / t
        stray = (g - mean).square()
        new_state = {"avg_grad": mean}
        if variant == "exp":
            new_state["v_tilde"] = running_mean(state["v_tilde"], stray, rho)
            new_state["v"] = torch.maximum(state["v"], new_state["v_tilde"])
        else:
            keep = ((t - 1) / t).square() if variant == "inc" else 1.0
            new_state["v"] = keep * state["v"] + stray
        damping = safe_sqrt(t * new_state["v"] if variant == "exp" else new_state["v"])
        step = g / (2 * lips / t + beta * damping)
        x = new_state["x"] = state["x"] - step
        alpha, following = 2 / (t + 1), 2 / (t + 2)
        return following * (x - p) - (1 - following) * alpha * step, new_state

    slots = {
        "x": start(slow=True),
        "avg_grad": linear(slow=True),
        "v": square(slow=True),
        "v_tilde": square() if variant == "exp" else None,
    }
    return slots, update


@alias(class_name="A2Grad")
def a2grad(**arguments: Annotated[Any, scale_by_a2grad]):
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
    return scale_by_a2grad(**arguments)
