"""Averages of the weights in place of a schedule of the learning rate: Schedule-Free."""

from __future__ import annotations

from typing import Any

import torch

from gradtx._arguments import Scalar, exact
from gradtx._program import Leaf, Scope
from gradtx._stages import first_slots
from gradtx.core import GradientTransformation, check_transformation
from gradtx.factories import combinator
from gradtx.transforms._math import quotient
from gradtx.transforms.decay import add_decayed_weights
from gradtx.transforms.scaling import descend
from gradtx.wrappers import Frame, Wrapper

__all__ = ["schedule_free"]


class _ScheduleFree(Frame):
    """Steps of z along the base's direction, taken at y, which the caller holds; the average x is never stored."""

    def __init__(
        self, scope: Scope, base: GradientTransformation, lr: Any, beta: Any, warmup_steps: int, r: Any, power: Any
    ):
        super().__init__(scope, "schedule_free", base)
        self._sign = -1.0 if _descends(base) else 1.0
        self._lr, self._beta, self._warmup_steps, self._r, self._power = lr, beta, warmup_steps, r, power

    def init_exit(self, leaf: Leaf) -> None:
        numbers = {"lr_max": exact(-1.0, leaf.device), "weight_sum": exact(0.0, leaf.device)}
        slots = {"z": leaf.param, **numbers}
        leaf.new[self.path] = first_slots(slots, leaf.param, self.stored_dtype(leaf), "schedule_free")

    def exit(self, leaf: Leaf) -> None:
        own = self.own(leaf, "z", "lr_max", "weight_sum")
        z, y, direction, time = own["z"], leaf.param, self._sign * leaf.update, leaf.moment().time
        rate = exact(self._lr, leaf.device)
        if self._warmup_steps:
            rate = rate * (time / self._warmup_steps).clamp(max=1)
        largest = torch.maximum(own["lr_max"], rate)
        weight = time**self._r * largest**self._power
        weight_sum = own["weight_sum"] + weight
        share = quotient(weight, weight_sum)
        # y' - y, with x as it follows from y and z before and z after the step
        leaf.update = share * (z - y) - (rate * (1 - self._beta * (1 - share))) * direction
        self.store(leaf, {"z": z - rate * direction, "lr_max": largest, "weight_sum": weight_sum})

    def evaluate(self, leaf: Leaf) -> Any:
        own, y = self.own(leaf, "z", "lr_max"), leaf.param
        x = own["z"] + (y - own["z"]) / self._beta
        return torch.where(own["lr_max"] < 0, y, x)  # before the first step, exactly what the caller holds


def _descends(base: GradientTransformation) -> bool:
    """Whether a base finds its own rate and ends with the turn of the sign, as `prodigy` does."""
    links = base._links()
    return bool(links) and links[-1]._name == descend.__name__


@combinator(
    needs=("params",),
    owns_lr=True,
    ranges={"beta": "(0, 1)", "warmup_steps": "[0, inf)", "r": "[0, inf)"},
    example=lambda tx: {"base": add_decayed_weights(0.1), "lr": 0.1, "beta": 0.9},
)
def schedule_free(
    base: GradientTransformation,
    lr: Scalar,
    beta: Scalar,
    warmup_steps: int = 0,
    r: Scalar = 0.0,
    weight_lr_power: Scalar = 2.0,
):
    r"""Step along a direction that is measured between the last point and the average of all points.

    With $\eta_t = \eta \min(1, t / \mathrm{warmup})$, $L = \max_{i \le t} \eta_i$, $w_t = t^r L^{power}$,
    $a = w_t / \sum_{i \le t} w_i$ and $d_t$ the base's direction at $y$: $z \leftarrow z - \eta_t d_t$,
    $x \leftarrow (1-a) x + a z$, $y \leftarrow (1-\beta) z + \beta x$. The parameters that the caller holds are $y$;
    evaluate and keep $x$, which `eval_params` gives, and recompute the statistics of batch norm there. No link that
    changes updates may follow.

    Args:
        base: What the gradient goes through, without a learning rate: `chain()` for the gradient itself. Decay in it
            pulls at $y$. An optimizer that finds its rate, `prodigy` or one of `dadapt_*`, gives its rate times its
            direction, measured at $y$; `lr` multiplies it and is 1 then. Take `prodigy`, whose estimate knows where
            the weights are; those of `dadapt_*` assume their own steps.
        lr: $\eta \ge 0$; no schedule is needed.
        beta: $\beta$ in (0, 1), the place of $y$ between $z$ and $x$; in the role of a momentum. Keep it constant:
            $x$ is computed with the present one.
        warmup_steps: Steps over which the rate rises to `lr`, >= 0.
        r: Exponent of the step in the weights of the average, >= 0.
        weight_lr_power: Exponent of the largest rate so far in these weights, >= 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `z`, shaped as the parameter, `lr_max` and
        `weight_sum`, 0-d float64 of every leaf, and the entries of `base`. $x$ is computed from $y$ and $z$.

    Raises:
        TypeError: `base` is no transformation.
        ValueError: numbers out of range, missing `params`, a base that scales by a learning rate, or a link after it
            that does so or decays.

    Example:
        >>> tx = gradtx.schedule_free(gradtx.chain(), lr=1.0, beta=0.5)
        >>> params = {"w": torch.tensor([8.0])}
        >>> state = tx.init(params)
        >>> for _ in range(3):  # z: 6, 4, 2; x: 6, 5, 4; y is between
        ...     updates, state = tx.update({"w": torch.tensor([2.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([3.]), tensor([4.]))

    Source: Defazio et al. 2024, arXiv:2405.15682. Departures: none from the authors' released optimizers.
    """
    check_transformation("schedule_free", "base", base)
    for link in base._links()[:-1] if _descends(base) else base._links():
        if link._lr_role == "owner" or link._name == "scale_by_learning_rate":
            raise ValueError(
                f"schedule_free: base must give a direction, but {link._name} in it makes a step of it; "
                "leave that out and give schedule_free the lr"
            )
    return Wrapper(lambda scope: _ScheduleFree(scope, base, lr, beta, warmup_steps, r, weight_lr_power).around(scope))
