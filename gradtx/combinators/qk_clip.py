"""Bound attention logits by shrinking the weights of queries and keys: QK-clip, as in MuonClip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gradtx.arguments import Fraction, Positive, Scalar, Static
from gradtx.base.exact import exact_dtype
from gradtx.base.inputs import as_builtin
from gradtx.base.messages import describe
from gradtx.base.selectors import Selector, check_not_empty
from gradtx.base.torch_names import readable
from gradtx.combinators.selection import Fork
from gradtx.rules import combinator, per_tensor
from gradtx.transform import chain

__all__ = ["qk_clip"]

ROLES = ("query", "key", "query_rotary", "key_rotary")


@combinator(needs="params", extras={"max_logits": "tensors"})
def qk_clip(
    roles: Static[Mapping[str, tuple[str, str]]],
    tau: Positive = 100.0,
    alpha: Fraction = 0.5,
):
    r"""Shrink the query and key heads whose largest attention logit was above a bound.

    Use it as the last link of a chain. With the largest logit $S_h$ of head $h$ and
    $\gamma_h = \tau / \max(S_h, \tau)$, the head's rows, after the step, are multiplied by $\gamma_h^\alpha$ ("query"),
    $\gamma_h^{1-\alpha}$ ("key"), $\gamma_h$ ("query_rotary") or 1 ("key_rotary"). Rows are indices of the first
    dimension, divided equally among the heads.

    The caller passes `max_logits`, a dict of 1-D tensors with one value per head, to `update` or `step`: the largest
    scaled logits before the softmax in the forward pass of this step. Leaves whose name it lacks do not change.

    Args:
        roles: Pattern of leaf names -> (name in `max_logits`, role), tried in order. Biases need a role too. With
            grouped queries, assign the keys to an entry that contains the maximum over each group.
        tau: $\tau > 0$.
        alpha: $\alpha$ in [0, 1], the share of the queries.

    Returns:
        A transformation that preserves shapes and dtypes; no state.

    Raises:
        TypeError: If `roles` is not a dict pattern -> (name, role), or if `max_logits` is not a dict of real tensors.
        ValueError: If an argument is out of range, if a role is unknown, if a pattern matches no leaf, if `params` or
            `max_logits` is missing, if the logits are not one value per head, if the heads do not divide the number of
            rows, or if, on the CPU, a logit is NaN or positive infinity. All checks run before any leaf changes.

    Example:
        >>> tx = gradtx.qk_clip({"q": ("layer", "query"), "k": ("layer", "key")}, tau=25.0)
        >>> # two heads
        >>> params = {"q": torch.tensor([[4.0], [4.0]]), "k": torch.tensor([[2.0], [2.0]])}
        >>> zeros = {"q": torch.zeros(2, 1), "k": torch.zeros(2, 1)}
        >>> logits = {"layer": torch.tensor([100.0, 8.0])}
        >>> updates, _ = tx.update(zeros, tx.init(params), params, max_logits=logits)
        >>> gradtx.apply_updates(params, updates)["q"].T
        tensor([[2., 4.]])

    Source: Kimi K2 2025, MuonClip, arXiv:2507.20534. Departures: none. Momentum is not clipped.
    """
    if not isinstance(roles, Mapping) or not roles:
        raise TypeError(
            f"qk_clip: roles must be a dict of pattern -> (name, role), got {describe(roles)}"
        )
    powers = {"query": alpha, "key": 1 - alpha, "query_rotary": 1.0}
    branches = {}
    for i, (pattern, value) in enumerate(roles.items()):
        check_not_empty("qk_clip: roles", pattern)
        logits, role = _checked(pattern, value)
        shrinks = role in powers
        link = _shrink_heads(logits, tau, powers[role]) if shrinks else chain()
        branches[str(i)] = link
    branches[False] = chain()
    selector = Selector("qk_clip", tuple(branches), (*roles, "*"))
    return Fork(selector, branches)


def _checked(pattern: str, value) -> tuple[str, str]:
    value = as_builtin(value)
    if not (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(item, str) for item in value)
    ):
        raise TypeError(
            f"qk_clip: roles[{pattern!r}] must be (name, role), got {describe(value)}"
        )
    logits, role = value
    if role not in ROLES:
        raise ValueError(
            f"qk_clip: roles[{pattern!r}] has the unknown role {role!r}; roles: {', '.join(ROLES)}"
        )
    return logits, role


def _check_heads(
    arguments: Mapping[str, Any],
    name: str,
    shape: Sequence[int],
    extras: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Check that the largest logits are real and finite, with one value per head of a leaf."""
    key, logits = arguments["logits"], extras["max_logits"]
    if key not in logits:
        return
    largest = logits[key]
    if largest.ndim != 1 or not len(largest):
        of_shape = f"of shape {tuple(largest.shape)}"
        raise ValueError(
            f"qk_clip: max_logits[{key!r}] must be 1-D with one value per head, got a tensor {of_shape}"
        )
    rows = shape[0] if shape else 1
    if rows % len(largest):
        raise ValueError(
            f"qk_clip: max_logits[{key!r}] has {len(largest)} heads, but the {rows} rows of leaf {name!r} of shape "
            f"{tuple(shape)} are not divisible by {len(largest)}"
        )
    # Elsewhere, reading would synchronize with the device.
    values = (
        largest.tolist() if largest.device.type == "cpu" and readable(largest) else []
    )
    for head, value in enumerate(values):
        if not value < math.inf:  # also NaN
            raise ValueError(
                f"qk_clip: max_logits[{key!r}] has {value} for head {head}; skip steps whose forward pass overflowed"
            )


@per_tensor(
    check=_check_heads,
    compiles=False,
    because="which logits were passed may differ in each step",
    capturable=True,
)
def _shrink_heads(logits: str, tau: Scalar, power: Scalar):
    """Multiply each head by a power of its gamma."""

    def update(update, state, param, ctx):
        if logits not in ctx.max_logits:
            return update, state
        largest = ctx.max_logits[logits].to(update.device, exact_dtype(update))
        gamma = tau / largest.clamp(min=tau)
        heads = (param + update).reshape(len(gamma), -1)
        shrunk = heads * (gamma**power).to(update.dtype)[:, None]
        return shrunk.reshape(update.shape) - param, state

    return update
