"""Step sizes from the value of the loss (Polyak, ALI-G), and the ball constraint that such steps need."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar, exact
from gradtx.rules import per_tensor
from gradtx.transforms._math import quotient, safe_sqrt
from gradtx.transforms.clipping import shrink

__all__ = ["project_l2_ball", "scale_by_polyak"]


@per_tensor(
    elementwise=True,
    needs=("value",),
    owns_lr=True,
    agree=("eps",),
    ranges={"max_lr": "[0, inf]"},
)
def scale_by_polyak(max_lr: Scalar | None = None, eps: Scalar = 1e-5):
    r"""Step to the point where the loss would be 0 if its slope were constant: Polyak's step size.

    $u \mapsto -\gamma u$ with $\gamma = \min(f / (\lVert g \rVert^2 + \epsilon), \eta)$, where $f$ is the extra `value`
    and $g$ the gradient as passed to the clock, before any link; its norm is over the whole tree.

    Args:
        max_lr: $\eta \ge 0$, the largest step size; None for no bound. A parameter group stores it as `lr`.
        eps: $\epsilon \ge 0$, in the units of a squared gradient.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is negative, if `value` is missing, or if a later link scales by a learning rate or
            decays.

    Example:
        >>> tx = gradtx.scale_by_polyak(eps=0.0)
        >>> # loss: the norm of w, which becomes 0 in one step
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, _ = tx.update({"w": params["w"] / 5}, tx.init(params), value=5.0)
        >>> updates["w"]
        tensor([-3., -4.])

    Source: Polyak 1969; Berrada et al. 2019, arXiv:1906.05661. Departures: the step is 0 where both the gradient and
    eps are 0.
    """

    def update(update, state, param, ctx):
        total = yield {"square": ctx.grad.square().sum()}
        step = quotient(exact(ctx.value, update.device), total["square"] + eps)
        if max_lr is not None:
            step = torch.minimum(step, exact(max_lr, update.device))
        yield -step * update, state

    return update


@per_tensor(
    ranges={"max_norm": "(0, inf]"},
    elementwise=True,
    needs=("params",),
    agree=("max_norm",),
    example={"max_norm": 1.0},
)
def project_l2_ball(max_norm: Scalar):
    r"""Constrain all weights together to a ball: after the step, $p \leftarrow p \min(1, r / \lVert p \rVert)$.

    Last link of a chain: it changes the update so that $p + u$ is in the ball. The norm is over the whole tree; leaves
    without a gradient are neither counted nor moved.

    Args:
        max_norm: $r > 0$.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `max_norm` is not above 0, or if `params` is missing.

    Example:
        >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.project_l2_ball(10.0))
        >>> params = {"a": torch.tensor([6.0]), "b": torch.tensor([16.0])}
        >>> updates, _ = tx.update(
        ...     {"a": torch.tensor([-6.0]), "b": torch.tensor([0.0])}, tx.init(params), params
        ... )
        >>> gradtx.apply_updates(params, updates)  # the step leads to 12 and 16, of norm 20
        {'a': tensor([6.]), 'b': tensor([8.])}

    Source: Berrada et al. 2019, arXiv:1906.05661. Departures: the initial weights are not projected (the authors' code
    projects these as well).
    """

    def update(update, state, param, ctx):
        moved = param + update
        total = yield {"square": moved.square().sum()}
        size = safe_sqrt(total["square"])
        yield (
            torch.where(
                size > exact(max_norm, size.device),
                shrink(size, max_norm) * moved - param,
                update,
            ),
            state,
        )

    return update
