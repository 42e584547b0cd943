"""Orders of links that are valid but rarely intended: a second sign, a rate that has no effect, a step not finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradtx.base.forward import Transformation


def order_faults(children: Sequence[Transformation]) -> Iterator[str]:
    """Describe the links of a chain whose sign, length or position is wrong, each with the link that precedes it.

    Args:
        children: The transformations of the chain, in their order.
    """
    yield from _early_links(children)
    if any(map(_may_flip_sign, children)):
        return
    rated = None  # the first child that scales by a learning rate
    for child in children:
        links = links_on_path(child)
        if rated is not None:
            misplaced = [link for link in links if link._lr_role and not link._is_fixed]
            if misplaced:
                yield f"{child._name} follows {rated}, {_wrong_sign(misplaced[-1])}"
            else:
                yield from (
                    f"{link._name} follows {rated}, {_WRONG_LENGTH[link._length]}; move {link._name} before {rated} "
                    "(or add scale(1.0) to the chain if this is intended)"
                    for link in links
                    if link._length in _WRONG_LENGTH
                )
        elif _is_rated(child):
            rated = child._name


# What a link that follows a learning rate does to the length of an update -> what is wrong.
_WRONG_LENGTH = {
    "sets": "but its updates do not depend on the length of what it receives, so the learning rate has no effect",
    "bounds": "so it bounds steps, which include the learning rate, in place of gradients",
}


def _early_links(children: Sequence[Transformation]) -> Iterator[str]:
    """Describe links that expect the finished step but precede a learning rate or a decay."""
    early = None
    for child in children:
        for link in child._links():
            if early is not None and link._lr_role is not None:
                yield (
                    f"{early} needs the finished step, but {link._name} follows it, so {early} does not receive the "
                    f"finished step; move {early} after {link._name}"
                )
            if link._follows_rate:
                early = link._name


def _wrong_sign(link: Transformation) -> str:
    """Describe the effect of a learning rate, or a decay, after a learning rate."""
    if link._sign == "flips" or link._lr_role == "owner":
        return (
            "and both scale by a learning rate, which flips the sign twice, so the loss increases; "
            "remove one of them"
        )
    fixed = ", or pass fixed=True to it" if link._is_fixed is not None else ""
    return (
        "which has already flipped the sign, so it pulls the weights the wrong way; move it before the learning "
        f"rate{fixed}"
    )


def links_on_path(child: Transformation) -> list[Transformation]:
    """Return the links that apply to every leaf at every step, which excludes links inside combinators."""
    return [link for link in child._links() if not link._children()]


def _is_rated(child: Transformation) -> bool:
    """Whether updates leave a child with a learning rate and a flipped sign, wherever they pass through it."""
    for link in child._links():
        inner = link._children()
        if link._sign == "flips" or (inner and all(map(_is_rated, inner))):
            return True
    return False


def _may_flip_sign(child: Transformation) -> bool:
    """Whether a child may flip the sign on its own."""
    return child._may_flip_sign or any(
        link._may_flip_sign for link in links_on_path(child)
    )
