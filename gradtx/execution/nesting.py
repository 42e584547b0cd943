"""Links that do not work inside some combinators: one table of effects, and one check."""

from __future__ import annotations

from collections.abc import Iterable

from gradtx.base.forward import Transformation

# An effect of a link that some combinators reject -> what the link does, and what to do.
FAULTS = {
    "rounds": "rounds weights, but updates change when they leave {outer}; move it after {outer}",
    "whole": "processes whole trees or leaves; move it outside {outer}",
    "averages": "averages weights, which {outer} transforms; move it outside {outer}",
    "exchanges": "exchanges tensors with other ranks, in steps that {outer} may discard; move {outer} inside {link}",
    "makes gradient": "computes the gradient from other inputs, so {outer} would process the wrong one; move it before "
    "{outer}, as the first link of a chain",
    "takes None": "also processes leaves without a gradient, which {outer} cannot transform; move it outside, as in "
    "{link}({outer}(...))",
}


def check_inner(
    outer: str, rejects: Iterable[str], inner: Iterable[Transformation]
) -> None:
    """Check that a combinator works around these transformations.

    Args:
        outer: The name of the combinator.
        rejects: The effects of links that do not work inside.
        inner: The inner transformations.

    Raises:
        TypeError: If a link inside has one of these effects.
    """
    links = [link for tx in inner for link in tx._every_link()]
    for effect in rejects:
        for link in links:
            if effect in link._effects:
                fault = FAULTS[effect].format(outer=outer, link=link._name)
                raise TypeError(f"{outer}: {link._name} {fault}")
