"""Warnings at the caller's line, for example about chains and groups that are valid but rarely intended."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gradtx._arguments import OTHER_WORDS, Schedule
from gradtx._messages import close, describe
from gradtx.core import Chain, Entry, GradientTransformation
from gradtx.factories import FactoryCall
from gradtx.optim._groups import ENGINE_OPTIONS, SCHEDULER_KEYS, GroupView

RATE = "scale_by_learning_rate"
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
# Links of chains whose purpose may be to record or average weights, not to take steps.
WITHOUT_DIRECTION = ("average", "freeze", "lookahead", "scale")
INNER_PACKAGES = ("gradtx", "torch", "contextlib", "functools")


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the line that called gradtx, at any depth of the call stack."""
    level = 1  # the frame of this function
    frame = inspect.currentframe()
    while (
        frame is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] in INNER_PACKAGES
    ):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)


def warn_of_ascent(tx: GradientTransformation) -> None:
    """Warn about a chain of known links none of which flips the sign: its steps increase the loss."""
    if not (_makes_direction(tx) and _keeps_sign(tx)):
        return
    warn_user(
        "as_optimizer: no link of this chain flips the sign, so its steps increase the loss; end it with "
        "scale_by_learning_rate(lr), or with scale(-1.0) if it already applies the rate (add scale(1.0) if this is "
        "intended)",
        UserWarning,
    )


def _makes_direction(tx: GradientTransformation) -> bool:
    """Whether a link changes gradients; a chain that only averages or records is not an optimizer."""
    for link in tx._links():
        inner = link._children()
        if any(map(_makes_direction, inner)) or not (
            inner or link._name in WITHOUT_DIRECTION
        ):
            return True
    return False


def _keeps_sign(tx: GradientTransformation) -> bool:
    """Whether every part of a transformation is known to keep the sign of its input."""
    if isinstance(tx, Chain):
        return all(map(_keeps_sign, tx._children()))
    if not isinstance(tx, FactoryCall) or not (
        tx._spec.function.__module__ or ""
    ).startswith("gradtx."):
        return False  # a user function may flip the sign
    if (
        tx._name in (RATE, "scale", "freeze")
        or tx._lr_role == "owner"
        or tx._arguments.get("maximize")
    ):
        return False
    if isinstance(tx._body, GradientTransformation):
        return _keeps_sign(tx._body)
    inner = tx._children()
    if tx._name == "graft":
        return _keeps_sign(inner[0])  # the second determines only the length
    if tx._branches() is not None:
        return any(map(_keeps_sign, inner))
    return all(map(_keeps_sign, inner))


def warn_of_two_schedules(owner: str, views: Iterable[GroupView]) -> None:
    """Warn, once per group, about a torch scheduler on a group whose learning rate follows a schedule."""
    for view in views:
        if "initial_lr" not in view.group or view.expects_scheduler:
            continue
        view.expects_scheduler = True
        source = view.sources.get("lr")
        if isinstance(source, Schedule):
            scheduler = f"gradtx.as_lr_scheduler(optimizer, {describe(source)})"
            warn_user(
                f"{owner}: the lr of a group follows {describe(source)}, and an LRScheduler now writes it as well: "
                "it overrides the schedule with multiples of the schedule's first value. Pass a number as lr to the "
                f"optimizer, and the schedule as a scheduler to the trainer: {scheduler}",
                UserWarning,
            )


def warn_of_unread_cycles(owner: str, views: Iterable[GroupView]) -> None:
    """Warn, once per group, about a momentum that a scheduler cycles and no link reads."""
    for view in views:
        if view.ignores_cycle() and not view.expects_cycle:
            view.expects_cycle = True
            label = view.group.get("label")
            which = "a group" if label is None else f"the group {label!r}"
            warn_user(
                f"{owner}: an LRScheduler cycles the momentum of {which}, where no link has a momentum or betas; its "
                "rate follows the scheduler. cycle_momentum=False leaves momenta unchanged",
                UserWarning,
            )


def warn_of_flipped_signs(tx: GradientTransformation) -> None:
    """Warn about a learning rate, or a decay, after a learning rate on the same path: its sign is wrong."""
    misplaced = next(_misplaced_links(tx), None)
    if misplaced is None:
        return
    first, second, link = misplaced
    if link._name == RATE or link._lr_role == "owner":
        fault = (
            f"{second} follows {first}, and both scale by a learning rate, which flips the sign twice, so the loss "
            "increases; remove one of them"
        )
    else:
        fixed = ", or pass fixed=True to it" if "fixed" in link._arguments else ""
        fault = (
            f"{second} follows {first}, which has already flipped the sign, so it pulls the weights the wrong way; "
            f"move it before the learning rate{fixed}"
        )
    warn_user(f"as_optimizer: {fault}", UserWarning)


def warn_of_early_links(tx: GradientTransformation) -> None:
    """Warn about a learning rate, or a decay, after a link that expects the finished step, such as `average`."""
    pair = next(_early_links(tx), None)
    if pair is not None:
        early, late = pair
        warn_user(
            f"as_optimizer: {early} needs the finished step, but {late} follows it, so {early} does not receive the "
            f"finished step; move {early} after {late}",
            UserWarning,
        )


def _early_links(tx: GradientTransformation) -> Iterator[tuple[str, str]]:
    """Yield (link that expects the finished step, later link that should precede it), for every chain."""
    for part in tx._children():
        yield from _early_links(part)
    early = None
    for link in tx._links() if isinstance(tx, Chain) else ():
        if early is not None and link._lr_role is not None:
            yield early._name, link._name
        if link._follows_rate:
            early = link


def _misplaced_links(
    tx: GradientTransformation,
) -> Iterator[tuple[str, str, FactoryCall]]:
    """Yield (part of a chain with the first learning rate, later part, misplaced link in the later part)."""
    while isinstance(tx, FactoryCall) and isinstance(tx._body, GradientTransformation):
        tx = tx._body
    for part in tx._children():
        yield from _misplaced_links(part)
    if not isinstance(tx, Chain):
        return
    parts = tx._children()
    if any(_may_flip_sign(part) for part in parts):
        return
    first = None
    for part in parts:
        links = _links_on_path(part)
        if first is not None:
            misplaced = _link_before_rate(links)
            if misplaced is not None:
                yield first, part._name, misplaced
        elif any(link._name == RATE for link in links):
            first = part._name


def _link_before_rate(links: list[FactoryCall]) -> FactoryCall | None:
    """Return the last link that must precede a learning rate."""
    for link in reversed(links):
        if link._lr_role is not None and not link._arguments.get("fixed"):
            return link
    return None


def _links_on_path(part: GradientTransformation) -> list[FactoryCall]:
    """Return the links that apply to every leaf at every step, which excludes links inside combinators."""
    links: list[FactoryCall] = []
    for link in part._links():
        if isinstance(link, FactoryCall) and not link._children():
            links.append(link)
    return links


def _may_flip_sign(part: GradientTransformation) -> bool:
    """Whether a part may flip the sign on its own."""
    if isinstance(part, FactoryCall) and part._arguments.get("maximize", False):
        return True
    return any(link._name == "scale" for link in _links_on_path(part))


def warn_of_misspelt(owner: str, keys: Iterable[Any], entries: Iterable[Entry]) -> None:
    """Warn about unknown group keys that resemble a hyperparameter; other unknown keys are kept, as in torch."""
    known: set[str] = set()
    for entry in entries:
        known.update((entry.name, entry.full, entry.labelled, entry.argument.name))
    for key in keys:
        if (
            not isinstance(key, str)
            or key in known
            or key in FOREIGN_KEYS
            or _contains_name(key, known)
        ):
            continue
        intended = OTHER_WORDS.get(key)
        if intended not in known:
            intended = close(key, known, 0.8)
        if intended is not None:
            message = f"{owner}: no link reads {key!r} of this parameter group; did you mean {intended!r}?"
            warn_user(message, UserWarning)


def warn_of_unread(owner: str, unread: Mapping[str, str]) -> None:
    """Warn about hyperparameters that the parameters of a group do not read, because they take another branch."""
    for key, name in unread.items():
        warn_user(
            f"{owner}: the parameters of this group do not read its {key!r}; pass {name!r}",
            UserWarning,
        )


def _contains_name(key: str, names: set[str]) -> bool:
    """Whether a key contains a whole name, as in `lr_scale`: then it is a different key, not a misspelled name."""
    return any(f"_{name}_" in f"_{key}_" for name in (*names, "lr"))


def warn_of_engine_options(owner: str, options: Mapping[str, Any]) -> None:
    """Warn about enabled options that choose between torch's implementations; disabled options have no effect."""
    if options.get("capturable"):
        warn_user(
            f"{owner}: capturable=True has no effect in a group; pass it to {owner}, for all groups",
            UserWarning,
        )
    given = [
        f"{name}={options[name]}" for name in ("foreach", "fused") if options.get(name)
    ]
    if given:
        verb = "chooses" if len(given) == 1 else "choose"
        warn_user(
            f"{owner}: {' and '.join(given)} {verb} between implementations of torch, without effect here; "
            "omit it. A step runs over lists of tensors by default, and in compiled programs with compile=True",
            UserWarning,
        )
