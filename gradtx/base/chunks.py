"""Divide consecutive items into slices of bounded size: leaves of one call, tensors of one message."""

from collections.abc import Iterator, Sequence


def slices_within(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Yield slices of items whose sizes add up to at most `limit`, or of one larger item."""
    start = 0
    total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            yield slice(start, i)
            start = i
            total = 0
        total += size
    yield slice(start, len(sizes))
