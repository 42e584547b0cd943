"""Nero: neurons as units of a constraint and of normalization."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gradtx.base import tree as _tree
from gradtx.base.exact import Scalar, exact_dtype
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    corrected_root,
    quotient,
    running_mean,
    unit_centered,
    unit_norm,
)

__all__ = ["project_neurons", "scale_by_neuron_norm"]


def project_neurons(params: Any) -> Any:
    r"""Normalize each neuron's weights to mean 0 and norm 1: $w \mapsto (w - \bar w) / \lVert w - \bar w \rVert$.

    A neuron is an index of dimension 0; a neuron with equal weights becomes 0. Leaves with 0 or 1 dimensions are
    unchanged. `nero` keeps weights in this form. Apply it to them once before training, so that the first gradient is
    computed there.

    Args:
        params: A tree of tensors or a single tensor.

    Returns:
        A tree of the same structure.

    Raises:
        ValueError: If a neuron has a single weight, which would become 0.

    Example:
        >>> project_neurons(
        ...     {"weight": torch.tensor([[1.0, 3.0], [0.0, 8.0]]), "bias": torch.tensor([5.0])}
        ... )
        {'weight': tensor([[-0.7071,  0.7071],
                [-0.7071,  0.7071]]), 'bias': tensor([5.])}

    Source: Liu et al. 2021, arXiv:2102.07227. Departures: neurons with equal weights become 0.
    """
    return _tree.map_tensors(_projected, params)


def _projected(x: Tensor) -> Tensor:
    if x.ndim < 2:
        return x
    if math.prod(x.shape[1:]) == 1:
        raise ValueError(
            f"project_neurons: neurons of shape {tuple(x.shape)} have a single weight each, which would become 0; "
            "train them without constraints in another branch of partition(...)"
        )
    centered = unit_centered(x)
    size = unit_norm(centered)
    return centered * quotient(1.0, size, size > 0)


def _neuron_norm(x: Tensor) -> Tensor:
    """Return one norm per neuron; each entry of a bias or scale is a neuron."""
    return x.abs() if x.ndim < 2 else unit_norm(x)


@per_tensor(ranges={"beta": "[0, 1)"}, nonnegative=("exp_avg_sq",))
def scale_by_neuron_norm(beta: Scalar = 0.999, constraints: bool = True):
    r"""Divide the gradient of each neuron by its running norm, and restore the initial scale of the weights: Nero.

    $v_t = \beta v_{t-1} + (1-\beta) \lVert g_t \rVert^2$ for each neuron, which is an index of dimension 0 or an entry
    of a leaf with 0 or 1 dimensions; direction $\sigma g_t / \sqrt{v_t / (1 - \beta^t)}$, or 0 where $v_t = 0$.
    $\sigma$ is the mean norm of the leaf's neurons at `init`, or 0.01 if that is 0.

    Args:
        beta: $\beta$, in [0, 1).
        constraints: Compute $\sigma$ from the weights after `project_neurons`, where `nero` keeps them.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, one entry per neuron (of size 1 in the other
        dimensions), and `scale` ($\sigma$), 0-d float64 for each leaf.

    Raises:
        ValueError: If `beta` is outside [0, 1), or if `constraints` is set and a neuron has a single weight.

    Example:
        >>> tx = gradtx.scale_by_neuron_norm()
        >>> state = tx.init({"w": torch.tensor([[1.0, 3.0], [0.0, 8.0]])})
        >>> tx.update({"w": torch.tensor([[30.0, 40.0], [0.0, -0.1]])}, state)[0]["w"]
        tensor([[ 0.6000,  0.8000],
                [ 0.0000, -1.0000]])

    Source: Liu et al. 2021, arXiv:2102.07227. Departures: none, except 0 where the paper divides by 0.
    """

    def init(param):
        sizes = _neuron_norm(_projected(param) if constraints else param)
        mean = sizes.sum(dtype=exact_dtype(param)) / max(sizes.numel(), 1)
        return {
            "exp_avg_sq": torch.zeros_like(sizes),
            "scale": torch.where(mean == 0, 0.01, mean),
        }

    def update(update, state, param, ctx):
        square = running_mean(state["exp_avg_sq"], _neuron_norm(update).square(), beta)
        size = corrected_root(square, ctx, beta)
        return update * quotient(state["scale"], size, size > 0), {
            "exp_avg_sq": square,
            "scale": state["scale"],
        }

    return init, update
