"""Warnings at the caller's line, for example about chains and groups that are valid but rarely intended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, distributed

from gradtx.base.dtensor import is_sharded
from gradtx.base.exact import Schedule, python_scalar
from gradtx.base.messages import close, describe, warn_user
from gradtx.base.names import is_ours
from gradtx.base.other_libraries import name_here
from gradtx.optim.groups import (
    ENGINE_OPTIONS,
    SCHEDULER_KEYS,
    GroupSettings,
    check_differentiable,
    next_value,
)
from gradtx.rules import FactoryCall
from gradtx.transform import Chain, Entry, GradientTransformation

# After so many steps without a gradient there is a mistake; the first few may be a test of a schedule.
IDLE_STEPS = 10
# Group keys written by torch and its schedulers, by trainers, and by this library.
FOREIGN_KEYS = {
    *SCHEDULER_KEYS,
    *ENGINE_OPTIONS,
    "params",
    "param_names",
    "lr",
    "swa_lr",
    "name",
    "label",
    "layer_decay",
    "hessian_seed",
}


def warn_of_ascent(tx: GradientTransformation) -> None:
    """Warn about a chain whose steps increase the loss; `chain` itself warns about the order of its links."""
    if _ascends(tx):
        warn_user(
            "as_optimizer: no link of this chain flips the sign, so its steps increase the loss; end it with "
            "scale_by_learning_rate(lr), or with scale(-1.0) if it already applies the rate (add scale(1.0) if this "
            "is intended)"
        )


def _ascends(tx: GradientTransformation) -> bool | None:
    """Whether steps are known to have the sign of the gradient; None if they are the gradient, as with `average`."""
    if isinstance(tx, Chain):
        return _jointly(map(_ascends, tx._children()))
    if not isinstance(tx, FactoryCall) or not is_ours(tx._spec.function):
        return False  # a user function may flip the sign
    if tx._name == "scale" and _is_positive_rate(tx._arguments["factor"]):
        return None
    if (
        tx._sign in ("flips", "either")
        or tx._lr_role == "owner"
        or tx._arguments.get("maximize")
    ):
        return False
    if isinstance(tx._body, GradientTransformation):
        return _ascends(tx._body)
    inner = tx._children()
    if not inner:
        return None if tx._sign == "neutral" else True
    if tx._sign == "first":
        return _ascends(inner[0])  # the second determines only the length
    if tx._branches() is not None:
        return any(map(_ascends, inner))
    return _jointly(map(_ascends, inner))


def _is_positive_rate(factor: Any) -> bool:
    """Whether a factor keeps the sign; not 1.0, with which a user says that it is intended."""
    value = python_scalar(factor)
    return isinstance(value, int | float) and 0 < value != 1


def _jointly(ascend: Iterable[bool | None]) -> bool | None:
    """Combine the answers for the links of a chain."""
    answers = set(ascend)
    return False not in answers and (True in answers or None)


def warn_of_misspelt(who: str, keys: Iterable[Any], tx: GradientTransformation) -> None:
    """Warn about unknown group keys that resemble a hyperparameter; other unknown keys are kept, as in torch."""
    keys = [key for key in keys if isinstance(key, str) and key not in FOREIGN_KEYS]
    if not keys:
        return
    known: set[str] = tx._once("known names", lambda: _names_of(tx._entries()))
    for key in keys:
        if key in known:
            continue
        # A key that contains a whole name, such as `lr_scale`, is another key, not a misspelled name.
        if any(f"_{name}_" in f"_{key}_" for name in (*known, "lr")):
            continue
        intended = name_here(key, known) or close(key, known, 0.8)
        if intended is not None:
            message = f"{who}: no link reads {key!r} of this parameter group; did you mean {intended!r}?"
            warn_user(message)


def _names_of(entries: Iterable[Entry]) -> set[str]:
    return {name for entry in entries for name in (*entry.names, entry.argument.name)}


def check_scheduler(who: str, groups: Iterable[GroupSettings]) -> bool:
    """Warn that a torch scheduler writes a learning rate that follows a schedule; return whether one does.

    Raises:
        ValueError: If a scheduler would multiply a schedule that starts at 0, or a rate that is None.
    """
    for settings in groups:
        schedule = settings.sources.get("lr")
        if settings.group.get("initial_lr", 0.0) is None:
            del settings.group["initial_lr"]
            raise ValueError(f"{who}: {_without_rate(settings.group)}")
        # torch's schedulers add the key.
        if "initial_lr" not in settings.group or not isinstance(schedule, Schedule):
            continue
        first, shown = next_value(schedule, 0), describe(schedule)
        remedy = (
            "pass a number as lr to the optimizer, and the schedule as a scheduler to the trainer: "
            f"gradtx.as_lr_scheduler(optimizer, {shown})"
        )
        if first == 0:
            del settings.group["initial_lr"]
            raise ValueError(
                f"{who}: the lr of a group follows {shown}, which starts at 0, and an LRScheduler multiplies "
                f"this first value, so the rate would stay 0 for the whole run; {remedy}"
            )
        warn_user(
            f"{who}: the lr of a group follows {shown}, and an LRScheduler now writes it as well: it "
            f"overrides the schedule with multiples of the schedule's first value, {first}; {remedy}"
        )
        return True
    return False


def warn_of_unread_rate(who: str, groups: Iterable[GroupSettings]) -> bool:
    """Warn that a rate was written into groups of a chain that reads none; return whether to look for it again.

    A branch without a rate beside others has an `lr` of 0.0, which whoever writes the rates of all groups may change.
    """
    groups = list(groups)
    if any(settings.reads_rate for settings in groups):
        return False
    has_scheduler = any("initial_lr" in settings.group for settings in groups)
    if not (has_scheduler or any(map(_has_written_rate, groups))):
        return True
    writer = "an LRScheduler" if has_scheduler else "a new value of `lr` in a group"
    names = dict.fromkeys(
        typed for settings in groups for typed, _ in settings.tx._typed_links()
    )
    warn_user(
        f"{who}: {writer} has no effect, because no link of this chain ({', '.join(names)}) reads a learning rate; end "
        "the chain with scale_by_learning_rate(lr), in place of a constant factor such as scale(-lr)"
    )
    return False


def _has_written_rate(settings: GroupSettings) -> bool:
    rate = settings.group.get("lr")
    return isinstance(rate, Tensor) or rate not in (0.0, None)


def _without_rate(group: Mapping[str, Any]) -> str:
    """Say what sets the rate of a group whose `lr` is None, and what to pass for a scheduler."""
    setter, remedy = (
        "the rule computes the rate of each step",
        "lr=..., its upper bound,",
    )
    if group.get("relative_step"):
        setter, remedy = (
            "relative_step sets the rate of each step",
            ("relative_step=False and lr=..."),
        )
    return f"lr is None, because {setter}, so an LRScheduler has no number to change; pass {remedy} or no scheduler"


def warn_of_unread(who: str, unread: Mapping[str, str]) -> None:
    """Warn about hyperparameters that the parameters of a group do not read, because they take another branch."""
    for key, name in unread.items():
        warn_user(
            f"{who}: the {key!r} of this group is not that of its parameters, which take another branch; pass {name!r}"
        )


def warn_of_idle_steps(who: str) -> None:
    """Warn about an optimizer that has not seen a gradient since it was created."""
    warn_user(
        f"{who}: no parameter had a gradient in the first {IDLE_STEPS} steps, so nothing was trained; call "
        "loss.backward() before step(), and pass the parameters of the model that computes the loss"
    )


def drop_engine_options(who: str, options: dict[str, Any]) -> None:
    """Remove the options of torch's implementations from arguments, with an error or a warning for enabled ones."""
    of_torch = {name: options.pop(name) for name in ENGINE_OPTIONS if name in options}
    check_differentiable(of_torch)
    warn_of_engine_options(who, of_torch)


def warn_of_engine_options(who: str, options: Mapping[str, Any]) -> None:
    """Warn about enabled options that choose between torch's implementations; disabled options have no effect."""
    if options.get("capturable"):
        warn_user(
            f"{who}: capturable=True has no effect in a group; pass it to {who}, for all groups"
        )
    for name in ("foreach", "fused"):
        if options.get(name):
            warn_user(
                f"{who}: {name}={options[name]} chooses between implementations of torch, without effect here; "
                "omit it. A step runs over lists of tensors by default, and as kernels with compile=True"
            )


def warn_of_replicas(feature: str, params: Iterable[Tensor], reason: str) -> None:
    """Warn if several processes may hold the same plain parameters, under DistributedDataParallel."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if distributed.get_world_size() > 1 and not all(map(is_sharded, params)):
        warn_user(
            f"{feature}: do not wrap these parameters in DistributedDataParallel: {reason}"
        )
