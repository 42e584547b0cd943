"""Combinators that compare transformations with each other or with their input: agreement, lengths."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from gradtx.arguments import Scalar
from gradtx.combinators.frame import Frame
from gradtx.maths.entries import (
    at_least,
    at_most,
    grafted,
    may_decay,
    norm,
    running_mean,
    safe_sqrt,
)
from gradtx.maths.matrices import schatten4_norms
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation, chain

__all__ = [
    "blend_by_agreement",
    "cautious_decay_after",
    "graft",
    "scale_by_norm_ratio",
]


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


@combinator(sign="first")
def graft(
    direction: GradientTransformation,
    magnitude: GradientTransformation,
    eps=1e-16,
):
    r"""Take the direction of one transformation and the length of another, leaf by leaf.

    Both receive the same update. With the result $d$ of the first and $m$ of the second, the update is
    $d \, \lVert m \rVert / (\lVert d \rVert + \epsilon)$. This transfers a tuned learning rate to a new direction.

    Args:
        direction: Computes the direction $d$, usually without a learning rate.
        magnitude: Determines the length $\lVert m \rVert$.
        eps: $\epsilon \ge 0$, for leaves where $d$ is 0.

    Returns:
        A transformation that preserves shapes and dtypes. State: the entries of both transformations, under `direction`
        and `magnitude`; `graft` itself has none.

    Raises:
        TypeError: If an argument is not a transformation.
        ValueError: If `eps` is negative.

    Example:
        >>> tx = gradtx.graft(gradtx.scale(1.0), gradtx.clip_by_value(0.5))
        >>> # 5 long -> as long as (0.5, 0.5)
        >>> tx.update({"w": torch.tensor([3.0, 4.0])}, tx.init({}))[0]["w"]
        tensor([0.4243, 0.5657])

    Source: Agarwal et al. 2020, arXiv:2002.11803. Departures: none.
    """

    def leave(updates, state, param, ctx):
        return grafted(updates["direction"], updates["magnitude"], eps), state

    return Frame(
        {"direction": direction, "magnitude": magnitude},
        leave=leave,
        elementwise=False,
        by_rows=True,
    )


@combinator
def scale_by_norm_ratio(
    tx: GradientTransformation,
    betas=(0.95, 0.95),
    eps=1e-8,
    correct_bias=False,
):
    r"""Scale the direction of a transformation by the norm of its input, relative to that of the gradients.

    With the input $u$, the gradient $g$ of the leaf and $v_t = \beta_2 v_{t-1} + (1-\beta_2) \lVert g \rVert^2$ from 0,
    the update is $\mathrm{tx}(u)\, \lVert u \rVert / (\sqrt{v_t} + \epsilon)$: the ratio is near 1 while gradients
    agree, and small while they are noise. Suited to directions whose size carries no information, such as that of
    `orthogonalize`.

    Args:
        tx: Computes the direction.
        betas: $\beta_1$ of the momentum $u$, used by `correct_bias` only, and $\beta_2$, each in [0, 1).
        eps: $\epsilon \ge 0$.
        correct_bias: Divide $\lVert u \rVert$ by $1 - \beta_1^t$ and $v_t$ by $1 - \beta_2^t$.

    Returns:
        A transformation that preserves shapes and dtypes. State: `exp_avg_sq`, 0-d in the dtype of the leaf, and the
        entries of `tx`.

    Raises:
        TypeError: If `tx` is not a transformation.
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_norm_ratio(gradtx.scale_by_sign(), betas=(0.0, 0.75))
        >>> # 5 / sqrt(25 / 4)
        >>> tx.update({"w": torch.tensor([3.0, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 2., -2.])

    Source: NAMO, arXiv:2602.17080. Departures: none.
    """
    beta1, beta2 = betas

    def init(param):
        return {"exp_avg_sq": param.new_zeros(())}

    def enter(update, state, param, ctx):
        total = ctx.grad.square().sum()
        square = running_mean(state["exp_avg_sq"], total, beta2)
        return update, {"exp_avg_sq": square, "size": norm(update)}

    def leave(update, state, param, ctx):
        size, square = state["size"], state["exp_avg_sq"]
        if correct_bias:
            size = size / ctx.bias_correction(beta1)
            corrected = square / ctx.bias_correction(beta2)
        else:
            corrected = square
        return update * (size / (safe_sqrt(corrected) + eps)), {"exp_avg_sq": square}

    return Frame(tx, init, enter, leave, elementwise=False, whole=True)
