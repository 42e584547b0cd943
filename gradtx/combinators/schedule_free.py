"""Average the weights instead of scheduling the learning rate: Schedule-Free."""

from __future__ import annotations

import torch

from gradtx.algorithms._math import quotient
from gradtx.algorithms.scaling import descend
from gradtx.arguments import Fraction, NonNegative, NonNegativeInt, OpenFraction
from gradtx.base.exact import exact
from gradtx.combinators.frame import Frame
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation

__all__ = ["schedule_free"]


@combinator(needs="params", owns_lr=True)
def schedule_free(
    base: GradientTransformation,
    lr,
    beta: OpenFraction,
    warmup_steps: NonNegativeInt = 0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    averaging: Fraction | None = None,
):
    r"""Step along a direction that is computed between the latest point and the average of all points.

    With $\eta_t = \eta \min(1, t / \mathrm{warmup})$, $L = \max_{i \le t} \eta_i$, $w_t = t^r L^{power}$,
    $a = w_t / \sum_{i \le t} w_i$ and $d_t$ the base's direction at $y$: $z \leftarrow z - \eta_t d_t$,
    $x \leftarrow (1-a) x + a z$, $y \leftarrow (1-\beta) z + \beta x$. The caller's parameters are $y$;
    evaluate and save $x$, which `eval_params` returns, and recompute batch norm statistics for it. No link that changes
    updates may follow.

    Args:
        base: The transformation of the gradient, without a learning rate: `chain()` for the gradient itself. Weight
            decay in it acts on $y$. An optimizer that estimates its learning rate, `prodigy` or one of `dadapt_*`,
            returns its rate times its direction, computed at $y$; `lr` multiplies the result, so set it to 1. Prefer
            `prodigy`, whose estimate uses the actual position of the weights; those of `dadapt_*` assume their own
            steps.
        lr: $\eta \ge 0$; no schedule is needed.
        beta: $\beta$ in (0, 1), the position of $y$ between $z$ and $x$; it acts as a momentum. Keep it constant:
            $x$ is computed with the current one.
        warmup_steps: Steps over which the rate rises to `lr`, >= 0.
        r: Exponent of the step in the weights of the average, >= 0.
        weight_lr_power: Exponent of the largest rate so far in these weights, >= 0.
        averaging: A constant $a$ in [0, 1] instead of these weights: an exponential average of the points, as in
            Generalized Primal Averaging. None for the weights of Schedule-Free.

    Returns:
        A transformation whose updates are added to the parameters. State: `z`, shaped like the parameter, `lr_max` and
        `weight_sum`, 0-d float64 per leaf (not with `averaging`), and the entries of `base`. $x$ is computed from
        $y$ and $z$.

    Raises:
        TypeError: If `base` is not a transformation.
        ValueError: If an argument is out of range, if `params` is missing, if `base` scales by a learning rate, or if a
            later link scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.schedule_free(gradtx.chain(), lr=1.0, beta=0.5)
        >>> params = {"w": torch.tensor([8.0])}
        >>> state = tx.init(params)
        >>> for _ in range(3):  # z: 6, 4, 2; x: 6, 5, 4; y is between
        ...     updates, state = tx.update({"w": torch.tensor([2.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([3.]), tensor([4.]))

    Source: Defazio et al. 2024, arXiv:2405.15682; `averaging`: Defazio et al. 2025, arXiv:2512.17131. Departures: none
    from the authors' released optimizers; with `averaging` decay is part of the direction (see `gpa_adamw`).
    """
    links = base._links()
    # A base that estimates its learning rate negates the update in its last link, as `prodigy` does.
    descends = bool(links) and links[-1]._name == descend.__name__
    for link in links[:-1] if descends else links:
        if link._lr_role == "owner" or link._name == "scale_by_learning_rate":
            raise ValueError(
                f"schedule_free: base must return a direction, but it contains {link._name}, which applies a learning "
                "rate; remove it and pass lr to schedule_free"
            )

    sign = -1.0 if descends else 1.0

    def init(param):
        slots = {"z": param}
        if averaging is None:
            slots["lr_max"] = exact(-1.0, param.device)
            slots["weight_sum"] = exact(0.0, param.device)
        return slots

    def share_of(rate, state, ctx):
        """Return the share of the new point in the average, and the slots that determine the next share."""
        if averaging is not None:
            return averaging, {}
        largest = torch.maximum(state["lr_max"], rate)
        weight = ctx.time**r * largest**weight_lr_power
        weight_sum = state["weight_sum"] + weight
        numbers = {"lr_max": largest, "weight_sum": weight_sum}
        return quotient(weight, weight_sum), numbers

    def leave(update, state, y, ctx):
        z = state["z"]
        rate = exact(lr, y.device)
        if warmup_steps:
            rate = rate * (ctx.time / warmup_steps).clamp(max=1)
        share, numbers = share_of(rate, state, ctx)
        direction = sign * update
        # y' - y, with x computed from y and the z before and after the step
        step = share * (z - y) - (rate * (1 - beta * (1 - share))) * direction
        return step, {"z": z - rate * direction, **numbers}

    def evaluate(state, y):
        x = state["z"] + (y - state["z"]) / beta
        if averaging is not None:
            return x
        # Exactly the caller's parameters before the first step.
        return torch.where(state["lr_max"] < 0, y, x)

    return Frame(base, init, leave=leave, evaluate=evaluate)
