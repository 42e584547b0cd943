"""Combinators that act where a transformation agrees with its input: cautious decay after the step, a trust gate."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from gradtx.algorithms._math import at_least, at_most, may_decay, norm
from gradtx.algorithms._matrix import schatten4_norms
from gradtx.arguments import Scalar
from gradtx.combinators.frame import Frame
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation, chain

__all__ = ["blend_by_agreement", "cautious_decay_after"]


@combinator(needs="params")
def cautious_decay_after(tx: GradientTransformation, weight_decay, lr):
    r"""Decay the weights after the step, where the step as passed to `tx` shrinks them.

    With the update $u$ and $q = p + \mathrm{tx}(u)$, the weights become
    $q \, (1 - \eta \lambda [u \cdot p < 0])$. Place it after the learning rate, around the links that act on the
    finished step: those that keep a norm do not undo this decay.

    Args:
        tx: The links behind the learning rate; `chain()` for none.
        weight_decay: $\lambda \ge 0$.
        lr: $\eta \ge 0$, by which the decay is multiplied.

    Returns:
        A transformation that keeps shapes and dtypes. State: that of `tx`.

    Raises:
        TypeError: If `tx` is not a transformation.
        ValueError: If a number is negative, or if `params` is missing.

    Example:
        >>> step = gradtx.scale_by_learning_rate(0.1)
        >>> tx = gradtx.chain(step, gradtx.cautious_decay_after(gradtx.chain(), 1.0, 0.1))
        >>> params = {"w": torch.tensor([1.0, -1.0])}
        >>> updates, _ = tx.update({"w": torch.ones(2)}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]  # only the first one shrinks
        tensor([ 0.8100, -1.1000])

    Source: Chen et al. 2025, arXiv:2510.12402; the place: modded-nanogpt, track 3, record 46. Departures: none.
    """
    kept = 1 - lr * weight_decay

    def leave(updates, state, param, ctx):
        moved = param + updates["tx"]
        decays = may_decay(-updates["raw"], param, True)
        return torch.where(decays, kept * moved, moved) - param, state

    return Frame({"raw": chain(), "tx": tx}, leave=leave)


@combinator
def blend_by_agreement(
    tx: GradientTransformation,
    least: Annotated[Scalar, "[-1, 1)"] = 0.2,
    least_gradient: Scalar = 0.0,
    *,
    floor: Scalar = 0.0,
    cap: Scalar = 1.0,
    eps=1e-8,
):
    r"""Move from the update to that of `tx` as far as both, and the gradient, agree (a trust gate).

    With $s = \mathrm{tx}(u)$, rescaled to the norm of $u$, and the gradient $g$ as passed to the clock,

    $$ w = \left[\frac{\cos(s, u) - a}{1 - a}\right]_0^1
    \left[\frac{\cos(s, g) - b}{\cos(u, g) - b}\right]_0^1, $$

    bounded by `floor` and `cap`. The result is $u + w (s - u)$, rescaled to the norm of $u$. Norms here are Schatten-4
    norms, $\lVert X X^\top \rVert_F^{1/2}$; leaves with more than two dimensions are flattened to (first, rest), others
    are one row.

    Args:
        tx: The transformation to blend in, such as `rotated(..., of="grad")`, which reads the gradient.
        least: $a$ in [-1, 1), the cosine with the update at which the gate closes.
        least_gradient: $b$, the cosine with the gradient at which it closes.
        floor: Lower bound of $w$.
        cap: Upper bound of $w$.
        eps: Lower bound of divisors, >= 0; use a positive value if an update may be 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: that of `tx`.

    Raises:
        TypeError: If `tx` is not a transformation.
        ValueError: If `least` or `eps` is out of range.

    Example:
        >>> tx = gradtx.blend_by_agreement(gradtx.scale(-1.0))
        >>> # the opposite is not trusted
        >>> tx.update({"w": torch.tensor([[3.0, 4.0]])}, tx.init({}))[0]["w"]
        tensor([[3., 4.]])

    Source: modded-nanogpt, track 3, records 16 to 46. Departures: none.
    """

    def resized(x: Tensor, size: Tensor) -> Tensor:
        return x * (at_least(size, eps) / at_least(_schatten4(x), eps))

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum() / at_least(norm(a) * norm(b), eps)

    def leave(updates, state, param, ctx):
        update, g = updates["raw"], ctx.grad
        size = _schatten4(update)
        other = resized(updates["tx"], size)
        trusted = ((cosine(other, update) - least) / (1 - least)).clamp(0, 1)
        downhill = at_least(cosine(update, g) - least_gradient, eps)
        follows = ((cosine(other, g) - least_gradient) / downhill).clamp(0, 1)
        weight = at_most(at_least(trusted * follows, floor), cap)
        return resized(update + weight * (other - update), size), state

    return Frame({"raw": chain(), "tx": tx}, leave=leave, elementwise=False)


def _schatten4(x: Tensor) -> Tensor:
    matrix = x.flatten(1) if x.ndim > 1 else x.reshape(1, -1)
    return schatten4_norms(matrix).reshape(())
