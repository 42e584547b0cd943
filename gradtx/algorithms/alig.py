"""ALI-G: SGD whose rate is computed from the loss, for models that can reach a loss of 0."""

from __future__ import annotations

from typing import Annotated

import torch

from gradtx.arguments import Decay, PositiveOrInf, Scalar, is_off
from gradtx.base.exact import exact
from gradtx.links.momentum import trace
from gradtx.links.projection import project_l2_ball
from gradtx.maths.entries import quotient
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["alig", "scale_by_polyak"]


@per_tensor(elementwise=True, needs="value", owns_lr=True, agree="eps", by_rows=True)
def scale_by_polyak(max_lr: Annotated[Scalar, "[0, inf]"] | None = None, eps=1e-5):
    r"""Step to the point where the loss would be 0 if its slope were constant: Polyak's step size.

    $u \mapsto -\gamma u$ with $\gamma = \min(f / (\lVert g \rVert^2 + \epsilon), \eta)$, where $f$ is the extra `value`
    and $g$ the gradient as passed to the clock, before any link; its norm is over the whole tree.

    Args:
        max_lr: $\eta \ge 0$, the largest step size; None for no bound. A parameter group stores it as `lr`.
        eps: $\epsilon \ge 0$, in the units of a squared gradient.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.scale_by_polyak(eps=0.0)
        >>> # loss: the norm of w, which becomes 0 in one step
        >>> params = {"w": torch.tensor([1.5, 2.0])}
        >>> updates, _ = tx.update({"w": params["w"] / 2.5}, tx.init(params), value=2.5)
        >>> updates["w"]
        tensor([-1.5000, -2.0000])

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


@alias(class_name="AliG")
def alig(
    max_lr: Annotated[Scalar, "[0, inf]"] | None = None,
    momentum: Decay = 0.0,
    adjusted_momentum=False,
    eps=1e-5,
    max_norm: PositiveOrInf | None = None,
):
    r"""ALI-G: SGD whose rate is computed from the loss, for models that can reach a loss of 0.

    $\gamma = \min(f / (\lVert g \rVert^2 + \epsilon), \eta)$ with the loss $f$ at the parameters and batch of $g$, and
    the norm over the whole tree; $b \leftarrow \mu b - \gamma g$, $p \leftarrow p - \gamma g + \mu b$, then
    $p \leftarrow p \min(1, r / \lVert p \rVert)$.

    When to use: models that can fit their training data (loss 0), with one hyperparameter to tune, the largest rate.

    Args:
        max_lr: $\eta \ge 0$, the largest rate; None for no bound. A parameter group shows it as `lr`.
        momentum: $\mu$ in [0, 1). With a literal 0.0, no buffer is kept.
        adjusted_momentum: Use $b \leftarrow \mu b - g$, $p \leftarrow p + \gamma (-g + \mu b)$: the rate of the step
            then multiplies the whole momentum.
        eps: $\epsilon \ge 0$, in units of the squared gradient.
        max_norm: $r > 0$, instead of weight decay; None for no bound.

    Returns:
        A transformation whose updates are added to the parameters. State: [`momentum_buffer`].

    Raises:
        ValueError: If `max_norm` is set and `params` is missing.

    Example:
        >>> tx = gradtx.alig(eps=0.0)
        >>> # loss: half the square, which falls to a quarter in a step
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> updates, _ = tx.update({"w": params["w"]}, tx.init(params), value=12.5)
        >>> updates["w"]
        tensor([-1.5000, -2.0000])

    Source: Berrada et al. 2019, arXiv:1906.05661. Departures: the initial weights are not projected (the authors' code
    does). pytorch_optimizer's class has a fixed eps of 1e-6.
    """
    step = scale_by_polyak(max_lr, eps)
    average = trace(momentum, nesterov=not is_off(momentum))
    links = (average, step) if adjusted_momentum else (step, average)
    return chain(*links, chain() if max_norm is None else project_l2_ball(max_norm))
