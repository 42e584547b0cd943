"""The optimizers of the guide: how each is called with a rate, a schedule and a weight decay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import gradtx

# The argument that takes the place of a rate, and its centre.
OTHER_RATES = {
    "alig": ("max_lr", 1.0),
    "a2grad": ("lips", 10.0),
    "cocob": ("alpha", 100.0),
}
# What no task fits: gradients of single samples, and a step from losses alone. The sweeps that train the members pass
# no residuals and no outputs, and have dense gradients, for which sparse_adam is Adam.
LEFT_OUT = (
    *("dpsgd", "mezo"),
    *("dogleg", "gauss_newton", "hessian_free", "levenberg_marquardt"),
    *("natural_gradient", "spring", "sparse_adam"),
)
# Methods whose authors use no schedule: they average, or find their own rate.
WITHOUT_SCHEDULE = (
    *(
        "schedule_free_sgd",
        "schedule_free_adamw",
        "schedule_free_radam",
        "schedule_free_plus",
        "prodigy_schedule_free",
        "cocob",
        "alig",
        "a2grad",
    ),
    *(
        "prodigy",
        "dadapt_adam",
        "dadapt_sgd",
        "dadapt_adagrad",
        "dadapt_adan",
        "dadapt_lion",
        "dog",
        "dowg",
    ),
    *("momo", "momo_adam"),
)
CENTRE = 0.1  # of methods without a default rate
REST_RATE = 3e-3  # of AdamW for what a method for matrices leaves out


@dataclass(frozen=True)
class Entry:
    """One way to run an optimizer.

    Attributes:
        name: The name of the optimizer, with "(no schedule)" for the second way.
        centre: The middle of the grid of rates.
        decays: The weight decays to try.
        gradients: The number of gradients of a step.
    """

    name: str
    centre: float
    decays: tuple[float, ...]
    gradients: int

    def make(self, steps: int) -> Callable[..., gradtx.GradientTransformation]:
        """Return a function of `rate` and `weight_decay` that makes the optimizer for a number of steps."""
        name, _, way = self.name.partition(" ")
        factory = getattr(gradtx, name)
        arguments = factory.spec.arguments.by_name
        rate_name = OTHER_RATES.get(name, ("lr", 0.0))[0]

        def scheduled(rate: Any) -> Any:
            if way:
                return rate
            warmup = max(1, steps // 20)
            return gradtx.warmup_cosine_schedule(
                steps, max_lr=rate, init_lr=rate / (warmup + 1), warmup_steps=warmup
            )

        def rest(rate: float) -> gradtx.GradientTransformation:
            return gradtx.adamw(lr=scheduled(rate), weight_decay=0.0)

        def made(rate: Any, weight_decay: Any = 0.0) -> gradtx.GradientTransformation:
            options: dict[str, Any] = {rate_name: scheduled(rate)}
            if "weight_decay" in arguments:
                options["weight_decay"] = weight_decay
            if "relative_step" in arguments:
                options["relative_step"] = False  # the rate is ours
            if "num_iterations" in arguments and arguments["num_iterations"].required:
                options["num_iterations"] = steps
            tx = factory(**options)
            dims = _dims_taken(tx)
            if dims is None:
                return tx
            return gradtx.partition(
                {"taken": tx, "rest": rest(REST_RATE)},
                lambda leaf, tensor: "taken" if tensor.ndim in dims else "rest",
            )

        return made


def _dims_taken(tx: gradtx.GradientTransformation) -> tuple[int, ...] | None:
    """Return the numbers of dimensions of what a method trains; None for all.

    Some take matrices only, others no weights that start at 0, as biases do.
    """
    try:
        tx.init({"vector": torch.zeros(3)})
    except ValueError as error:
        if "dimensions" in str(error):
            return (2,)
        if "initial norm 0" in str(error):
            return (2, 3, 4)
    return None


def entries() -> dict[str, Entry]:
    """Return all entries by name."""
    result: dict[str, Entry] = {}
    for name in gradtx.get_supported_optimizers():
        if name in LEFT_OUT:
            continue
        factory = getattr(gradtx, name)
        arguments = factory.spec.arguments.by_name
        rate_name, centre = OTHER_RATES.get(name, ("lr", CENTRE))
        default = arguments[rate_name].default
        if isinstance(default, float) and rate_name == "lr":
            centre = default
        decays = (0.0, 0.1) if "weight_decay" in arguments else (0.0,)
        needs = _needs(factory, arguments)
        gradients = 2 if needs & {"grad_fn", "hessian_diag"} else 1
        ways = ["", " (no schedule)"] if name in WITHOUT_SCHEDULE else [""]
        for way in ways:
            result[name + way] = Entry(name + way, centre, decays, gradients)
    return result


def _needs(factory: Any, arguments: Any) -> set[str]:
    required = {"lr": 0.1, "num_iterations": 100}
    options = {a.name: required[a.name] for a in arguments.values() if a.required}
    return set(factory(**options).needs)
