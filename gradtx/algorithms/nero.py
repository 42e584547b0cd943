"""Nero: one rate per neuron, with the weights of each neuron kept at mean 0 and norm 1."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtx.arguments import Decay
from gradtx.base.exact import exact_dtype
from gradtx.links.projection import (
    centered_unit_neurons,
    map_after_step,
    project_neurons,
)
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import corrected_root, quotient, running_mean, unit_norm
from gradtx.rules import alias, per_tensor
from gradtx.slots import scalar, square
from gradtx.transform import chain

__all__ = ["nero", "scale_by_neuron_norm"]


def _neuron_norm(x: Tensor) -> Tensor:
    """Return one norm per neuron; each entry of a bias or scale is a neuron."""
    return x.abs() if x.ndim < 2 else unit_norm(x)


@per_tensor(length="sets", by_rows=True)
def scale_by_neuron_norm(beta: Decay = 0.999, constraints=True):
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
        ValueError: If `constraints` is set and a neuron has a single weight.

    Example:
        >>> tx = gradtx.scale_by_neuron_norm()
        >>> state = tx.init({"w": torch.tensor([[1.0, 3.0], [0.0, 8.0]])})
        >>> tx.update({"w": torch.tensor([[30.0, 40.0], [0.0, -0.1]])}, state)[0]["w"]
        tensor([[ 0.6000,  0.8000],
                [ 0.0000, -1.0000]])

    Source: Liu et al. 2021, arXiv:2102.07227. Departures: none, except 0 where the paper divides by 0.
    """

    def sizes(param):
        return _neuron_norm(centered_unit_neurons(param) if constraints else param)

    def scale(param):
        of_units = sizes(param)
        mean = of_units.sum(dtype=exact_dtype(param)) / max(of_units.numel(), 1)
        return torch.where(mean == 0, 0.01, mean)

    def update(g, state, p, ctx):
        v = running_mean(state["exp_avg_sq"], _neuron_norm(g).square(), beta)
        size = corrected_root(v, ctx, beta)
        return g * quotient(state["scale"], size, size > 0), {"exp_avg_sq": v}

    slots = {
        "exp_avg_sq": square(lambda p: torch.zeros_like(sizes(p))),
        "scale": scalar(scale),
    }
    return slots, update


@alias
def nero(lr=0.01, beta: Decay = 0.999, constraints=True):
    r"""Nero: one rate per neuron, with the weights of each neuron kept at mean 0 and norm 1.

    $v \leftarrow \beta v + (1-\beta) \lVert g \rVert^2$ for every neuron,
    $p \leftarrow N(N(p) - \eta \sigma g / \sqrt{v / (1 - \beta^t)})$, where $N$ is `project_neurons` and $\sigma$ the
    initial mean norm of the leaf's neurons (see `scale_by_neuron_norm`).

    When to use: when one untuned rate, 0.01, should work on many architectures, with almost no additional memory (the
    paper's claim).

    Args:
        lr: $\eta$ in [0, inf), the change of a neuron per step relative to its norm.
        beta: $\beta$ in [0, 1).
        constraints: If False, $N$ is omitted.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq`, one entry per neuron, and
        `scale`, 0-d per leaf.

    Raises:
        ValueError: If `constraints` is set and `params` is missing or neurons have a single weight.

    Example:
        >>> params = gradtx.project_neurons({"w": torch.tensor([[1.0, 3.0, 2.0]])})
        >>> tx = gradtx.nero(lr=0.1)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[5.0, 5.0, -5.0]])}, tx.init(params), params
        ... )
        >>> after = gradtx.apply_updates(params, updates)["w"]
        >>> f"{after.norm():.4f}", bool(after.mean().abs() < 1e-6)
        ('1.0000', True)

    Source: Liu et al. 2021, arXiv:2102.07227. Departures: the authors project the weights when the optimizer is
    constructed; here, call `project_neurons` before training. Otherwise the first step projects them, with a gradient
    from before the projection.
    """
    return chain(
        scale_by_neuron_norm(beta, constraints),
        scale_by_learning_rate(lr),
        map_after_step(project_neurons, before=True) if constraints else chain(),
    )
