"""Muown: Muon for the directions of rows, Adam for their lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import (
    at_least,
    corrected_root,
    quotient,
    running_mean,
    safe_sqrt,
)
from gradtx.transforms._matrix import newton_schulz
from gradtx.transforms._polynomials import Coefficients, polynomials
from gradtx.transforms.orthogonalize import check_adjustment, shape_factor

__all__ = ["scale_by_muown"]

LEAST = 1e-12  # lower bound of the lengths of rows


@per_tensor(
    whole=True,
    dims=(2, 2),
    needs=("params",),
    owns_lr=True,
    ranges={"momentum": "[0, 1)", "ns_steps": "[0, 100)"},
    example={"lr": 0.1},
)
def scale_by_muown(
    lr: Scalar,
    momentum: Scalar = 0.95,
    weight_decay: Scalar = 0.0,
    betas: Betas = (0.9, 0.95),
    eps: Scalar = 1e-8,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: int | None = None,
    adjust_lr_fn: str | None = "max_dim",
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
        `magnitude` ($\gamma$), `length` ($\ell$), `exp_avg` and `exp_avg_sq`, one value per row.

    Raises:
        TypeError: If `ns_dtype` is not a floating-point dtype.
        ValueError: If an argument is out of range, if `ns_coefficients` or `adjust_lr_fn` is unknown, if `params` is
            missing, if a leaf is not a matrix, or if a later link scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_muown(lr=0.1)
        >>> params = {"w": torch.tensor([[3.0, 4.0]])}
        >>> updates, _ = tx.update({"w": torch.tensor([[3.0, 4.0]])}, tx.init(params), params)
        >>> # a gradient along the row changes only its length
        >>> gradtx.apply_updates(params, updates)["w"].norm()
        tensor(4.9000)

    Source: Muown, arXiv:2605.10797. Departures: none.
    """
    beta1, beta2 = betas
    check_adjustment("scale_by_muown", "adjust_lr_fn", adjust_lr_fn)
    iteration = polynomials("scale_by_muown", ns_coefficients, ns_steps, ns_dtype)

    def init(param):
        lengths = at_least(_row_norms(param), LEAST)
        zeros = torch.zeros_like(lengths)
        return {
            "momentum_buffer": torch.zeros_like(param),
            "magnitude": lengths,
            "length": lengths,
            "exp_avg": zeros,
            "exp_avg_sq": zeros,
        }

    def update(grad, state, param, ctx):
        magnitude = state["magnitude"]
        # Half precision rounds this bound to 0.
        length = at_least(state["length"], LEAST)
        unit = quotient(param, magnitude)
        along = (grad * unit).sum(dim=1, keepdim=True)
        across = magnitude / length * (grad - unit * along)
        average = running_mean(state["momentum_buffer"], across, momentum)
        step = newton_schulz(average, iteration, dtype=ns_dtype)
        direction = unit * length - lr * shape_factor(adjust_lr_fn, *grad.shape) * step
        mean = running_mean(state["exp_avg"], along, beta1)
        square = running_mean(state["exp_avg_sq"], along.square(), beta2)
        corrected = corrected_root(square, ctx, beta2) + eps
        magnitude = (magnitude - lr * mean / ctx.bias_correction(beta1) / corrected) * (
            1 - lr * weight_decay
        )
        length = at_least(_row_norms(direction), LEAST)
        new = {
            "momentum_buffer": average,
            "magnitude": magnitude,
            "length": length,
            "exp_avg": mean,
            "exp_avg_sq": square,
        }
        return magnitude * direction / length - param, new

    return init, update


def _row_norms(x: Tensor) -> Tensor:
    return safe_sqrt(x.square().sum(dim=1, keepdim=True))
