"""Muown: Muon for the directions of rows, Adam for their lengths."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.algorithms.muon import with_fallback
from gradtx.arguments import Decay
from gradtx.links.orthogonal import Adjustment, shape_factor
from gradtx.maths.entries import (
    adam_moments,
    at_least,
    corrected_root,
    norms,
    quotient,
    remainder,
    running_mean,
)
from gradtx.maths.polynomials import Coefficients, Steps, orthogonalizer
from gradtx.rules import alias, per_tensor
from gradtx.slots import Slot, linear, square
from gradtx.transform import GradientTransformation

__all__ = ["muown", "scale_by_muown"]


LEAST = 1e-12  # lower bound of the lengths of rows


@per_tensor(whole=True, dims=(2, 2), needs="params", owns_lr=True, amplifies=True)
def scale_by_muown(
    lr,
    momentum: Decay = 0.95,
    weight_decay=0.0,
    betas=(0.9, 0.95),
    eps=1e-8,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "max_dim",
    ns_dtype: torch.dtype | None = None,
):
    r"""Update the directions of a matrix's rows by Muon and their lengths by Adam: Muown.

    Rows are $p = \gamma \hat u$, and $v = \ell \hat u$ is the vector that defines their direction. Starting from the
    row norms of the initial weights, $\gamma = \ell = \lVert p_0 \rVert$:
    $d_\gamma = \langle g, \hat u \rangle$, $d_v = \frac{\gamma}{\ell} (g - d_\gamma \hat u)$,
    $v = \ell \hat u - \eta r\, O(\mathrm{EMA}(d_v))$ with $O$ of `orthogonalize` and $r$ of `scale_by_shape`,
    $\gamma \leftarrow (\gamma - \eta\, \mathrm{Adam}(d_\gamma)) (1 - \eta \lambda)$, $\ell \leftarrow \lVert v \rVert$,
    $p \leftarrow \gamma v / \ell$.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: Decay of the average of $d_v$, in [0, 1).
        weight_decay: $\lambda \ge 0$, applied to the lengths.
        betas: Adam's betas, each in [0, 1).
        eps: Adam's eps, >= 0.
        ns_coefficients: Coefficients of $O$, as in `orthogonalize`.
        ns_steps: Iterations of $O$, in [0, 100); None for 5, or for the number of a named set.
        adjust_lr_fn: $r$, one of the names of `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the leaf's own dtype.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, shaped as the parameter;
        `magnitude` ($\gamma$) and `length` ($\ell$), float32 for 16-bit weights, `exp_avg` and `exp_avg_sq`, one value
        per row.

    Raises:
        TypeError: If `ns_dtype` is not a floating-point dtype.
        ValueError: If a leaf is not a matrix.

    Example:
        >>> tx = gradtx.scale_by_muown(lr=0.1)
        >>> params = {"w": torch.tensor([[3.0, 4.0]])}
        >>> updates, _ = tx.update({"w": torch.tensor([[3.0, 4.0]])}, tx.init(params), params)
        >>> # a gradient along the row changes only its length
        >>> gradtx.apply_updates(params, updates)["w"].norm()
        tensor(4.9000)

    Source: Muown, arXiv:2605.10797. Departures: a row of which only rounding errors are left across the weights is 0.
    """
    beta1, beta2 = betas
    iterate = orthogonalizer("scale_by_muown", ns_coefficients, ns_steps, ns_dtype)
    _, average_of_moments = adam_moments(betas)

    def lengths(param):
        return at_least(norms(param, 1), LEAST)

    def zeros(param):
        return torch.zeros_like(lengths(param))

    slow = Slot(lengths, slow=True)

    def update(g, state, p, ctx):
        gamma = state["magnitude"]
        # Half precision rounds this bound to 0.
        length = at_least(state["length"], LEAST)
        unit = quotient(p, gamma)
        along = (g * unit).sum(dim=1, keepdim=True)
        across = gamma / length * remainder(g, unit * along, 1)
        average = running_mean(state["momentum_buffer"], across, momentum)
        rate = lr * shape_factor(adjust_lr_fn, *g.shape)
        direction = unit * length - rate * iterate(average)
        m, v, moments = average_of_moments(along, state)
        root = corrected_root(v, ctx, beta2) + eps
        gamma = gamma - lr * m / ctx.bias_correction(beta1) / root
        gamma = gamma * (1 - lr * weight_decay)
        length = at_least(norms(direction, 1), LEAST)
        new_state = {
            "momentum_buffer": average,
            "magnitude": gamma,
            "length": length,
            **moments,
        }
        return gamma * direction / length - p, new_state

    slots = {
        "momentum_buffer": linear(),
        "magnitude": slow,
        "length": slow,
        "exp_avg": zeros,
        "exp_avg_sq": square(zeros),
    }
    return slots, update


@alias
def muown(
    lr=3e-4,
    *,
    fallback: GradientTransformation | None = None,
    **options: Annotated[Any, scale_by_muown],
):
    r"""Muown: Muon for the directions of rows, Adam for their lengths.

    See `scale_by_muown`.

    When to use: instead of `muon` with weight decay, if the norms of rows drift.

    Args:
        lr: Learning rate of both parts, in [0, inf).
        momentum: Decay rate of the average of gradients by directions, in [0, 1).
        weight_decay: Weight decay of the lengths, >= 0.
        betas: Adam's betas, each in [0, 1).
        eps: Adam's eps, >= 0.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        adjust_lr_fn: Name of the scale of Muon's step; see `scale_by_shape`.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and one number per row in
        `magnitude`, `length`, `exp_avg` and `exp_avg_sq`; with a fallback, these and the fallback's entries, under
        `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.muown(lr=0.1)
        >>> params = {"w": torch.tensor([[1.5, 2.0]])}
        >>> updates, state = tx.update(
        ...     {"w": torch.tensor([[-4.0, 3.0]])}, tx.init(params), params
        ... )
        >>> # a gradient orthogonal to the row keeps its length
        >>> gradtx.apply_updates(params, updates)["w"].norm()
        tensor(2.5000)

    Source: Muown, arXiv:2605.10797. Departures: none.
    """
    return with_fallback("muown", scale_by_muown(lr, **options), fallback)
