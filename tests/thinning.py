"""Thin out tests whose cases multiply: `make test` runs part of a product, `make test-all` and the nightly CI all.

A case of a thinned test runs by default if the sum of its positions along the axes is a multiple of `every`. Along two
axes, each value of the longer one thus meets a part of the other, and each value of the other a part of the longer one;
along three, every pair of values meets if the third axis has at least `every` values. The name of the test shifts the
sum, so that tests with the same cases keep different ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def thinned(every: int, always: Callable[..., bool] | None = None) -> pytest.MarkDecorator:
    """Leave all but one in `every` cases of a parametrized test to the night.

    Args:
        every: How many cases there are for one that runs by default.
        always: A function of the test's parameters, by name, that says which cases run by default in any event.
    """
    return pytest.mark.thinned(every=every, always=always)


def is_nightly(item: pytest.Item) -> bool:
    """Whether a case of a thinned test is left to the night."""
    mark = item.get_closest_marker("thinned")
    if mark is None:
        return False
    every, always = mark.kwargs["every"], mark.kwargs["always"]
    parameters: dict[str, Any] = item.callspec.params  # type: ignore[attr-defined]
    if always is not None and always(**parameters):
        return False
    positions = _positions(item)
    return (sum(positions) + zlib.crc32(item.originalname.encode())) % every != 0  # type: ignore[attr-defined]


def _positions(item: Any) -> list[int]:
    """The position of a case along each axis; arguments of one `parametrize` are one axis.

    `callspec.indices` has the number of the case in its place.
    """
    parameters = dict(item.callspec.params)
    positions = []
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0]
        first = parameters[names[0].strip()]
        for name in names:
            del parameters[name.strip()]
        positions.append(_position(first, _positions_on(mark, len(names))))
    for name, value in parameters.items():  # of a fixture
        positions.append(_position(value, _by_key(item._fixtureinfo.name2fixturedefs[name][-1].params)))
    return positions


_AXES: dict[int, tuple[pytest.Mark, dict[Any, int]]] = {}  # by the id of the mark, which is kept so that it stays one


def _positions_on(mark: pytest.Mark, count: int) -> dict[Any, int]:
    """The positions of all cases of a `parametrize`, computed once for all of them."""
    if id(mark) not in _AXES:
        _AXES[id(mark)] = mark, _by_key(_first_of(values, count) for values in mark.args[1])
    return _AXES[id(mark)][1]


def _by_key(values: Iterable[Any]) -> dict[Any, int]:
    positions: dict[Any, int] = {}
    for i, value in enumerate(values):
        positions.setdefault(_key(value), i)
    return positions


def _key(value: Any) -> Any:
    """Numbers by value, which a range makes again; anything else by identity."""
    return value if isinstance(value, int) else ("id", id(value))


def _position(value: Any, positions: dict[Any, int]) -> int:
    if _key(value) not in positions:
        raise ValueError(f"{value!r} is not among the parameters of its axis, which must be a list")
    return positions[_key(value)]


def _first_of(values: Any, count: int) -> Any:
    """The first argument of a set of parameters."""
    if hasattr(values, "marks"):  # pytest.param
        return values.values[0]
    return values if count == 1 else values[0]
