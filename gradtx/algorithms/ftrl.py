"""FTRL-Proximal: one rate per weight, and weights that are exactly 0."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import NonNegative, NonPositive
from gradtx.base.exact import exact
from gradtx.maths.entries import quotient, safe_pow
from gradtx.rules import alias, per_tensor
from gradtx.slots import filled, linear, square

__all__ = ["ftrl", "scale_by_ftrl"]


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_ftrl(
    lr=1e-3,
    lr_power: NonPositive = -0.5,
    beta: NonNegative = 0.0,
    l1: NonNegative = 0.0,
    l2: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 0.0,
):
    r"""Move to the minimizer of the sum of gradients plus regularization terms: FTRL-Proximal.

    With $q = -$`lr_power`, $n' = n + g^2$, $z \leftarrow z + g - (n'^q - n^q)/\eta \, p$: $p$ becomes 0 where
    $|z| \le \lambda_1$, and $(\mathrm{sign}(z) \lambda_1 - z) / ((\beta + n'^q)/\eta + \lambda_2)$ elsewhere.

    Args:
        lr: $\eta \ge 0$. The method divides by it; a step with a rate of 0 leaves weights and state as they are.
        lr_power: At most 0; rates decrease with this power of the sum of squares.
        beta: $\beta \ge 0$, smooths the first rates.
        l1: $\lambda_1 \ge 0$; sets weights to exactly 0.
        l2: $\lambda_2 \ge 0$.
        initial_accumulator_value: $n_0 \ge 0$. If above 0, the first step pulls nonzero initial weights toward 0.

    Returns:
        A transformation that keeps shapes and dtypes and owns the learning rate. State: `z`, `n`, shaped as the
        parameter. A weight whose gradient has always been 0 becomes 0.

    Example:
        >>> tx = gradtx.scale_by_ftrl(lr=1.0, l1=1.0)
        >>> params = {"w": torch.zeros(2)}
        >>> tx.update({"w": torch.tensor([0.5, -3.0])}, tx.init(params), params)[0]["w"]
        tensor([0.0000, 0.6667])

    Source: McMahan et al. 2013, "Ad click prediction: a view from the trenches", KDD. Departures: none; Keras doubles
    `l2`, and pytorch_optimizer uses the root of $n$ for any `lr_power`.
    """
    power = -lr_power

    def update(g, state, p, ctx):
        rate = exact(lr, g.device)
        moves = rate != 0  # not part of the method, which divides by the rate
        rate = torch.where(moves, rate, 1.0)
        n = state["n"] + g.square()
        size = safe_pow(n, power)
        z = state["z"] + g - (size - safe_pow(state["n"], power)) / rate * p
        curvature = (beta + size) / rate + l2
        # The curvature is 0 if the squares underflow.
        solved = (z.abs() > l1) & (curvature != 0)
        change = quotient(z.sign() * l1 - z, curvature, solved) - p
        new_state = {
            "z": torch.where(moves, z, state["z"]),
            "n": torch.where(moves, n, state["n"]),
        }
        return torch.where(moves, change, 0.0), new_state

    return {
        "z": linear(slow=True, decay=1.0),
        "n": square(filled(initial_accumulator_value), slow=True, decay=1.0),
    }, update


@alias(class_name="FTRL")
def ftrl(**arguments: Annotated[Any, scale_by_ftrl]):
    r"""FTRL-Proximal: one rate per weight, and weights that are exactly 0.

    Equivalent to `scale_by_ftrl`, whose updates are final: no learning rate may follow.

    When to use: sparse linear models and embeddings of rare features, trained online. Weights should start at 0: a
    weight whose gradient has always been 0 becomes 0.

    Args:
        lr: $\eta \ge 0$. The method divides by it; a step with a rate of 0 leaves weights and state as they are.
        lr_power: At most 0; rates fall with this power of the sum of squares.
        beta: $\beta \ge 0$, smooths the first rates.
        l1: $\lambda_1 \ge 0$; makes weights exactly 0.
        l2: $\lambda_2 \ge 0$.
        initial_accumulator_value: Initial value of the sum of squares, >= 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `z`, `n`.

    Example:
        >>> tx = gradtx.ftrl(lr=1.0, l1=1.0)
        >>> params = {"w": torch.zeros(2)}
        >>> tx.update({"w": torch.tensor([0.5, -3.0])}, tx.init(params), params)[0]["w"]
        tensor([0.0000, 0.6667])

    Source: McMahan et al. 2013, "Ad click prediction: a view from the trenches", KDD. Departures: none; Keras doubles
    `l2`, and pytorch_optimizer takes the square root of the sum for any `lr_power`.
    """
    return scale_by_ftrl(**arguments)
