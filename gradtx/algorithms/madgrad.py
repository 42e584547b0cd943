"""MADGRAD: dual averaging from the initial weights, divided by the cube root of the sum of squares."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import Decay, is_off
from gradtx.base.exact import exact
from gradtx.links.decay import add_decayed_weights, split_decay
from gradtx.maths.entries import plus_decay, quotient, safe_pow
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square, start
from gradtx.transform import chain

__all__ = ["madgrad", "scale_by_madgrad"]


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_madgrad(
    lr=1e-2,
    momentum: Decay = 0.9,
    eps=1e-6,
    weight_decay=0.0,
):
    r"""Step from the starting point along the weighted sum of gradients, divided by a cube root: MADGRAD.

    With $\lambda_t = r \sqrt t$, $r = \eta + \epsilon$ (0 where $\eta = 0$): $s_t = s_{t-1} + \lambda_t g_t$,
    $\nu_t = \nu_{t-1} + \lambda_t g_t^2$, $z_t = x_0 - s_t / (\sqrt[3]{\nu_t} + \epsilon)$,
    $p \leftarrow \mu p + (1-\mu) z_t - r \lambda p$.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1). With a literal 0.0, $x_0$ is recomputed from the weights instead of stored.
        eps: $\epsilon \ge 0$; with 0, entries that have had only zero gradients do not move.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation that keeps shapes and dtypes; its updates are added to the parameters. State:
        `grad_sum_sq`, `s` and, with momentum, `x0`, shaped as the parameter.

    Example:
        >>> tx = gradtx.scale_by_madgrad(lr=0.125, momentum=0.0, eps=0.0)
        >>> params = {"w": torch.tensor([1.0, 1.0])}
        >>> # 0.125 * 8 / cbrt(8)
        >>> tx.update({"w": torch.tensor([8.0, 0.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.5000,  0.0000])

    Source: Defazio and Jelassi 2021, arXiv:2101.11075. Departures: none from the authors' code. With momentum, $x_0$
    never decays, so later steps undo the decoupled decay of a step; without momentum, the decay persists.
    """
    reconstructs = is_off(momentum)

    def moved(sums):
        root = safe_pow(sums["grad_sum_sq"], 1 / 3) + eps
        return quotient(sums["s"], root, floor=eps)

    def update(g, state, p, ctx):
        rate = exact(lr, g.device)
        rate = torch.where(rate == 0, 0.0, rate + eps)
        weight = rate * ctx.time.sqrt()
        new_state = {
            "grad_sum_sq": state["grad_sum_sq"] + weight * g.square(),
            "s": state["s"] + weight * g,
        }
        first = p + moved(state) if reconstructs else state["x0"]
        target = first - moved(new_state)
        step = (1 - momentum) * (target - p)
        return plus_decay(step, weight_decay, p, -rate), new_state

    slots = {
        "grad_sum_sq": square(slow=True),
        "s": linear(slow=True),
        "x0": None if reconstructs else start(),
    }
    return slots, update


@alias(class_name="MADGRAD")
def madgrad(
    *,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    **options: Annotated[Any, scale_by_madgrad],
):
    r"""MADGRAD: dual averaging from the initial weights, divided by the cube root of the sum of squares.

    With $\lambda_t = r \sqrt t$, $r = \eta + \epsilon$: $s \leftarrow s + \lambda_t g$,
    $\nu \leftarrow \nu + \lambda_t g^2$, $p \leftarrow \mu p + (1-\mu) (x_0 - s / (\sqrt[3]\nu + \epsilon))$.

    When to use: sparse problems, and vision tasks on which SGD beats Adam; needs less weight decay than other methods,
    often none.

    Args:
        lr: $\eta$ in [0, inf). Good values differ from those of SGD and of Adam; try powers of 2.
        momentum: $\mu$ in [0, 1). With a literal 0.0, $x_0$ is computed from the weights instead of stored.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$; smaller values than with other optimizers, often 0.
        decoupled_weight_decay: Subtract $r \lambda p$ from the weights; if False, add $\lambda p$ to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_sum_sq`, `s`, [`x0`].

    Example:
        >>> tx = gradtx.madgrad(lr=0.125, momentum=0.5, eps=0.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> # half of 0.125 * 8 / cbrt(8)
        >>> tx.update({"w": torch.tensor([8.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.2500])

    Source: Defazio and Jelassi 2021, arXiv:2101.11075. Departures: none from the authors' code. As there, later steps
    undo decoupled decay with momentum, because $x_0$ never decays.
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        add_decayed_weights(coupled),
        scale_by_madgrad(weight_decay=decoupled, **options),
    )
