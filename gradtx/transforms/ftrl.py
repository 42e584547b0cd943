"""FTRL-Proximal: follow the regularized leader."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar
from gradtx.rules import per_tensor
from gradtx.transforms._math import quotient, safe_pow

__all__ = ["scale_by_ftrl"]

FTRL_RANGES = {
    "lr": "(0, inf)",
    "lr_power": "(-inf, 0]",
    "beta": "[0, inf)",
    "l1": "[0, inf)",
    "l2": "[0, inf)",
    "initial_accumulator_value": "[0, inf)",
}


@per_tensor(
    elementwise=True,
    needs=("params",),
    owns_lr=True,
    ranges=FTRL_RANGES,
    nonnegative=("n",),
)
def scale_by_ftrl(
    lr: Scalar = 1e-3,
    lr_power: Scalar = -0.5,
    beta: Scalar = 0.0,
    l1: Scalar = 0.0,
    l2: Scalar = 0.0,
    initial_accumulator_value: Scalar = 0.0,
):
    r"""Move to the minimizer of the sum of gradients plus regularization terms: FTRL-Proximal.

    With $q = -$`lr_power`, $n' = n + g^2$, $z \leftarrow z + g - (n'^q - n^q)/\eta \, p$: $p$ becomes 0 where
    $|z| \le \lambda_1$, and $(\mathrm{sign}(z) \lambda_1 - z) / ((\beta + n'^q)/\eta + \lambda_2)$ elsewhere.

    Args:
        lr: $\eta > 0$.
        lr_power: At most 0; rates decrease with this power of the sum of squares.
        beta: $\beta \ge 0$, smooths the first rates.
        l1: $\lambda_1 \ge 0$; sets weights to exactly 0.
        l2: $\lambda_2 \ge 0$.
        initial_accumulator_value: $n_0 \ge 0$. If above 0, the first step pulls nonzero initial weights toward 0.

    Returns:
        A transformation that keeps shapes and dtypes and owns the learning rate. State: `z`, `n`, shaped as the
        parameter. A weight whose gradient has always been 0 becomes 0.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> tx = gradtx.scale_by_ftrl(lr=1.0, l1=1.0)
        >>> params = {"w": torch.zeros(2)}
        >>> tx.update({"w": torch.tensor([0.5, -3.0])}, tx.init(params), params)[0]["w"]
        tensor([0.0000, 0.6667])

    Source: McMahan et al. 2013, "Ad click prediction: a view from the trenches", KDD. Departures: none; Keras doubles
    `l2`, and pytorch_optimizer uses the root of $n$ for any `lr_power`.
    """
    power = -lr_power

    def init(param):
        zeros = torch.zeros_like(param)
        return {"z": zeros, "n": zeros + initial_accumulator_value}

    def update(update, state, param, ctx):
        squares = state["n"] + update.square()
        size = safe_pow(squares, power)
        gradients = (
            state["z"] + update - (size - safe_pow(state["n"], power)) / lr * param
        )
        pull = gradients.sign() * l1 - gradients
        curvature = (beta + size) / lr + l2
        # The curvature is 0 if the squares underflow.
        moved = (gradients.abs() > l1) & (curvature != 0)
        weight = quotient(pull, curvature, moved)
        return weight - param, {"z": gradients, "n": squares}

    return init, update
