"""Warnings about what is allowed, since somebody may mean it, and is hardly ever meant."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

from gradtx._messages import close
from gradtx.core import Chain, Entry, GradientTransformation
from gradtx.factories import Made
from gradtx.optim._groups import SCHEDULERS_OWN

RATE = "scale_by_learning_rate"
# Keys that others write into groups: torch and its schedulers, trainers, this library.
OTHERS_OWN = {*SCHEDULERS_OWN, "params", "param_names", "lr", "swa_lr", "name", "label", "layer_decay", "hessian_seed"}


def warn_of_turned_signs(tx: GradientTransformation) -> None:
    """Where a learning rate, or a decay, follows a learning rate on the same path: the step goes the wrong way."""
    found = next(_turned(tx), None)
    if found is None:
        return
    first, second, link = found
    if link._name == RATE or link._lr_role == "owner":
        doubt = f"{second} follows {first}, and both scale by a learning rate, which turns the sign twice, so that the "
        doubt += "loss climbs; leave one of them out"
    else:
        doubt = f"{second} follows {first}, which has turned the sign, so it pulls the weights the wrong way; put it "
        doubt += f"in front of the learning rate{', or give it fixed=True' if 'fixed' in link._arguments else ''}"
    warnings.warn(f"as_optimizer: {doubt}", UserWarning, stacklevel=3)


def _turned(tx: GradientTransformation) -> Iterator[tuple[str, str, Made]]:
    """(the part of a chain with the first rate, a part behind it, its link that has no place there)."""
    while isinstance(tx, Made) and isinstance(tx._body, GradientTransformation):
        tx = tx._body
    for part in tx._children():
        yield from _turned(part)
    if not isinstance(tx, Chain):
        return
    # What wrappers hold may be for other leaves, or for other steps.
    parts = [(part, [link for link in _made(part) if not link._children()]) for part in tx._children()]
    if any(_may_turn_back(part, links) for part, links in parts):
        return
    first = None
    for part, links in parts:
        wrong = [link for link in links if link._lr_role is not None and not link._arguments.get("fixed")]
        if first is None:
            first = part._name if any(link._name == RATE for link in links) else None
        elif wrong:
            yield first, part._name, wrong[-1]


def _may_turn_back(part: GradientTransformation, links: list[Made]) -> bool:
    maximizes = isinstance(part, Made) and part._arguments.get("maximize", False)
    return maximizes or any(link._name == "scale" for link in links)


def _made(part: GradientTransformation) -> Iterator[Made]:
    return (link for link in part._links() if isinstance(link, Made))


def warn_of_misspelt(owner: str, keys: Iterable[str], entries: Iterable[Entry], stacklevel: int) -> None:
    """Keys of a group that nobody reads, where they look like a hyperparameter; others are kept, as in torch."""
    known = {name for entry in entries for name in (entry.name, entry.full, entry.labelled, entry.argument.name)}
    for key in keys:
        if not isinstance(key, str) or key in known or key in OTHERS_OWN:
            continue
        # With a whole name in it, as in lr_scale and weight_decay_multiplier, it is one of its own.
        if any(f"_{name}_" in f"_{key}_" for name in (*known, "lr")):
            continue
        meant = close(key, known, 0.8)
        if meant is not None:
            message = f"{owner}: nothing reads {key!r} of this parameter group; did you mean {meant!r}?"
            warnings.warn(message, UserWarning, stacklevel=stacklevel + 1)
