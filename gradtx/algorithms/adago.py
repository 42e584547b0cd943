"""AdaGO: Muon's direction with AdaGrad's step size, from the norms of all gradients so far."""

from __future__ import annotations

import torch

from gradtx.algorithms.muon import with_fallback
from gradtx.arguments import Decay, Positive
from gradtx.base.exact import exact
from gradtx.maths.entries import at_least, at_most, norm, plus_decay, running_mean
from gradtx.maths.polynomials import Coefficients, Steps, orthogonalizer
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema, scalar
from gradtx.transform import GradientTransformation

__all__ = ["adago"]


@per_tensor(whole=True, dims=(2, 2), needs="params", owns_lr=True, amplifies=True)
def scale_by_adago(
    lr,
    momentum: Decay = 0.95,
    nesterov=False,
    weight_decay=0.0,
    gamma: Positive = 10.0,
    eps=5e-4,
    v0: Positive = 1e-3,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
):
    r"""Return the update of `adago`."""
    iterate = orthogonalizer("adago", ns_coefficients, ns_steps)

    def update(g, state, p, ctx):
        m = running_mean(state["momentum_buffer"], g, momentum)
        u = running_mean(m, g, momentum) if nesterov else m
        size = at_most(norm(g), gamma)
        V = state["sum"] + size.square()
        rate = at_least(lr * size / V.sqrt(), eps)
        # A schedule that pauses training stops it here, too.
        rate = torch.where(exact(lr, g.device) > 0, rate, 0.0)
        step = plus_decay(rate * iterate(u), weight_decay, p, rate=lr)
        return -step, {"momentum_buffer": m, "sum": V}

    slots = {"momentum_buffer": ema(momentum), "sum": scalar(v0 * v0)}
    return slots, update


@alias(class_name="AdaGO")
def adago(
    lr=0.05,
    momentum: Decay = 0.95,
    nesterov=False,
    weight_decay=0.0,
    gamma: Positive = 10.0,
    eps=5e-4,
    v0: Positive = 1e-3,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""AdaGO: Muon's direction with AdaGrad's step size, from the norms of all gradients so far.

    $m \leftarrow \mu m + (1-\mu) g$, $u = m$ or $\mu m + (1-\mu) g$ with `nesterov`; with
    $n = \min(\lVert g \rVert, \gamma)$, $V \leftarrow V + n^2$ from $v_0^2$, and
    $p \leftarrow p (1 - \eta \lambda) - \max(\epsilon, \eta n / \sqrt V)\, O(u)$ with $O$ of `orthogonalize`.

    When to use: like `muon`, where no schedule of the rate is known: steps shrink like $1/\sqrt t$, and with the
    gradient.

    Args:
        lr: $\eta$ in [0, inf), the largest step.
        momentum: $\mu$ in [0, 1).
        nesterov: Use Nesterov momentum.
        weight_decay: $\lambda \ge 0$, decoupled; multiplied by $\eta$.
        gamma: $\gamma > 0$, the largest norm of a gradient that counts.
        eps: $\epsilon \ge 0$, the smallest step, unless $\eta$ is 0.
        v0: $v_0 > 0$, in the units of a gradient.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `sum` ($V$), 0-d; with
        a fallback, these and the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.adago(lr=1.0, momentum=0.0, ns_coefficients="newton_schulz")
        >>> params = {"w": torch.zeros(1, 1)}
        >>> state = tx.init(params)
        >>> for g in (3.0, 4.0):
        ...     updates, state = tx.update({"w": torch.tensor([[g]])}, state, params)
        ...     print(f"{updates['w'].item():.3f}")  # 3 / 3, then 4 / 5
        -1.000
        -0.800

    Source: Zhang et al. 2025, AdaGrad meets Muon, arXiv:2509.02981. Departures: a rate of 0 stops the leaf, where the
    paper still takes steps of $\epsilon$. pytorch_optimizer divides by $V$ without the root, and with `nesterov` takes
    the norm of $u$ for that of the gradient.
    """
    rule = scale_by_adago(
        lr,
        momentum,
        nesterov,
        weight_decay,
        gamma,
        eps,
        v0,
        ns_coefficients,
        ns_steps,
    )
    return with_fallback("adago", rule, fallback)
