"""Find the axes of the leaf that each value of a lowered graph depends on: those of its rows, columns, channels, ..."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from gradtx.base import torch_names as _torch
from gradtx.compiler.graph import is_list, is_scalar
from gradtx.compiler.lower import LoweredGraph
from gradtx.compiler.simplify import (
    SAME,
    SAME_ENTRIES,
    VIEWS,
    reduced_dimensions,
)
from gradtx.compiler.terms import is_pointwise
from gradtx.compiler.write_expressions import (
    CONSTANTS,
    REDUCTIONS,
    UnsuitableProgramError,
)

aten = torch.ops.aten

POINTWISE = (
    *SAME,
    aten._to_copy.default,
    aten.clone.default,
    aten.copy_.default,
    aten.view.dtype,
)
FILLED = (*CONSTANTS, aten.full_like.default, aten.full.default)
UNRELATED = "it has values of rows or columns that kernels cannot compute"
EMPTY = "it is empty, with rows or columns"


@dataclass(eq=False)
class Axis:
    """A dimension of a value, which is known to be an axis of the leaf, or will turn out to be one.

    Attributes:
        size: Its number of entries.
        position: Its position among the axes of the leaf; None if that is not known.
        same: The axes that are the same as this one, if that has been found.
    """

    size: int
    position: int | None = None
    same: Dimension | None = None


# A dimension of a value: the axes that it consists of; none if all of its entries are equal.
Dimension: TypeAlias = tuple[Axis, ...]


def axes_of(lowered: LoweredGraph, leaf: Node) -> dict[Node, tuple[int, ...]]:
    """Return the positions of the axes of the leaf that each of its values depends on, in the order of its dimensions.

    Raises:
        UnsuitableProgramError: If a value depends on others than entries, rows, columns, ...
    """
    dimensions: dict[Node, list[Dimension]] = {}
    for node in lowered.graph.nodes:
        if node.op == "output" or not is_list(node):
            continue
        is_argument = node.op == "placeholder" and node is not leaf
        if is_argument and not node.users:  # other phases read it
            continue
        shape = _shape(node)
        if node is leaf:
            dimensions[node] = [(Axis(n, i),) for i, n in enumerate(shape)]
        elif node.op == "placeholder":
            dimensions[node] = [(Axis(n),) for n in shape]
        else:
            dimensions[node] = _dimensions(node, dimensions)
    # Of the leaf's shape, although they do not meet the leaf, such as weights of which a rule only takes the norm.
    for node, of_node in dimensions.items():
        if node.op == "placeholder" and _shape(node) == _shape(leaf):
            for pair in zip(of_node, dimensions[leaf], strict=True):
                _joined(*pair)
    return {node: _positions(of_node) for node, of_node in dimensions.items()}


def _shape(node: Node) -> torch.Size:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        raise UnsuitableProgramError(f"kernels have no {type(value).__name__}")
    return value.shape


def _positions(dimensions: Iterable[Dimension]) -> tuple[int, ...]:
    positions: list[int] = []
    for dimension in dimensions:
        for axis in _expanded(dimension):
            if axis.position is not None:
                positions.append(axis.position)
            elif axis.size != 1:
                raise UnsuitableProgramError(UNRELATED)
    return tuple(positions)


def _expanded(dimension: Dimension) -> Dimension:
    """Return the axes of a dimension, as far as they are known."""
    axes: Dimension = ()
    for axis in dimension:
        axes += (axis,) if axis.same is None else _expanded(axis.same)
    return axes


def _joined(x: Dimension, y: Dimension) -> Dimension:
    """Return the dimension of a result that has those of two operands in the same place."""
    x, y = _expanded(x), _expanded(y)
    if not x or not y:
        return x or y
    for these, those in ((x, y), (y, x)):
        if len(these) == 1 and these[0].position is None:
            if these[0] not in those:
                these[0].same = those
            elif len(those) > 1:  # an axis is no part of itself
                raise UnsuitableProgramError(UNRELATED)
            return those
    if len(x) != len(y):
        raise UnsuitableProgramError(UNRELATED)
    for of_x, of_y in zip(x, y, strict=True):
        if of_x.position is None or of_y.position is None:
            _joined((of_x,), (of_y,))
        elif of_x is not of_y:
            raise UnsuitableProgramError(UNRELATED)
    return _expanded(x)


def _dimensions(
    node: Node, dimensions_of: dict[Node, list[Dimension]]
) -> list[Dimension]:
    """Return the dimensions of a result."""
    shape, target = _shape(node), node.target
    operands = [
        dimensions_of[item] for item in node.all_input_nodes if item in dimensions_of
    ]
    if target in FILLED:
        return [()] * len(shape)
    if target in REDUCTIONS:
        return _reduced(node, operands[0])
    if target is aten.unsqueeze.default:
        position: Any = node.args[1]
        dimensions = [*operands[0]]
        dimensions.insert(position % len(shape), ())
        return dimensions
    if target in (*VIEWS, aten._unsafe_view.default):
        return _viewed(operands[0], shape)
    if target is aten.expand.default:
        before = [()] * (len(shape) - len(operands[0]))
        pairs = zip([*before, *operands[0]], shape, strict=True)
        return [axes if _size(axes) == size else () for axes, size in pairs]
    if target is aten.permute.default:
        order: Any = node.args[1]
        return [operands[0][i] for i in order]
    if target is aten.copy_.default or target in POINTWISE or is_pointwise(target):
        return _broadcast(operands, shape)
    raise UnsuitableProgramError(
        f"kernels have no {getattr(target, '__name__', target)}"
    )


def _size(dimension: Dimension) -> int:
    size = 1
    for axis in dimension:
        size *= axis.size
    return size


def _broadcast(
    operands: Sequence[list[Dimension]], shape: Sequence[int]
) -> list[Dimension]:
    dimensions: list[Dimension] = [()] * len(shape)
    for operand in operands:
        start = len(shape) - len(operand)
        for i, dimension in enumerate(operand, start):
            if dimension and _size(dimension) == shape[i]:
                dimensions[i] = _joined(dimensions[i], dimension)
    return dimensions


def _reduced(node: Node, operand: list[Dimension]) -> list[Dimension]:
    source: Any = node.args[0]
    sizes = _shape(source)
    dims = {dim % len(sizes) for dim in reduced_dimensions(node)} if sizes else set()
    dims = dims or set(range(len(sizes)))
    for i in dims:
        if not operand[i] and sizes[i] != 1:
            raise UnsuitableProgramError("a reduction of a constant")
    if len(_shape(node)) == len(sizes):
        return [() if i in dims else axes for i, axes in enumerate(operand)]
    return [axes for i, axes in enumerate(operand) if i not in dims]


def _viewed(operand: list[Dimension], shape: Sequence[int]) -> list[Dimension]:
    """Return the dimensions of a view, each of which consists of whole axes of the operand."""
    axes = [axis for dimension in operand for axis in _expanded(dimension)]
    dimensions: list[Dimension] = []
    for size in shape:
        dimension: Dimension = ()
        while axes and _size(dimension) < size:
            dimension += (axes.pop(0),)
        if axes and size == 1 and axes[0].size == 1 and len(axes) > len(shape):
            dimension = (axes.pop(0),)
        if _size(dimension) != size:
            raise UnsuitableProgramError(UNRELATED)
        dimensions.append(dimension)
    if any(axis.size != 1 for axis in axes):
        raise UnsuitableProgramError(UNRELATED)
    return dimensions


# The indices of the groups of which a value has a number for each index.
Extent: TypeAlias = tuple[int, ...]
# Groups with fewer indices are too short for the vectors of a loop; a tile has the entries of this many indices of a
# longer group at most, and of those after it.
SHORT, LEAST_LANES, MOST_LANES, TILE = 32, 16, 64, 4096


class Tile(NamedTuple):
    """Neighbouring indices of one group, with the entries of all indices of the short groups after it.

    Attributes:
        lane: The group.
        lanes: How many of its indices there are at most; what is computed for all of them is a vector.
    """

    lane: int
    lanes: int


def tile_of(sizes: Sequence[int]) -> Tile | None:
    """Return the tiles of a leaf whose last groups are short, such as those of filters; None if they are not."""
    if sizes[-1] >= SHORT:
        return None
    width = 1
    for lane in reversed(range(len(sizes) - 1)):
        width *= sizes[lane + 1]
        most = TILE // width
        if most < LEAST_LANES // 2:
            return None
        if sizes[lane] >= LEAST_LANES:
            return Tile(lane, min(MOST_LANES, 1 << (most.bit_length() - 1)))
    return None


def padded_sizes(sizes: Sequence[int]) -> list[int]:
    """Return the powers of two that hold the indices of each group of a batch but the first."""
    return [1 << (size - 1).bit_length() for size in sizes[1:]]


@dataclass(frozen=True)
class Groups:
    """Neighbouring axes of a leaf on which the same values depend, as one.

    Attributes:
        extents: The groups on which each value depends.
        axes: The axes of each group; None where only the number of entries counts: all entries are one group, or rows
            and their entries are two.
        row: The number of entries of a row; 1 where there are none.
        tile: The tiles of entries; None where the last group is long enough for vectors.
    """

    extents: dict[Node, Extent]
    axes: tuple[tuple[int, ...], ...] | None = None
    row: int = 1
    tile: Tile | None = None

    @property
    def full(self) -> Extent:
        """The extent of entries."""
        if self.axes is not None:
            return tuple(range(len(self.axes)))
        return (0, 1) if self.are_rows else (0,)

    @property
    def are_rows(self) -> bool:
        """Whether the leaf consists of rows, and no value has a number for each column."""
        return self.row > 1

    @property
    def are_batches(self) -> bool:
        """Whether tiles have all that belongs to an index of the first group: entries of small matrices, ..."""
        is_first = self.tile is not None and self.tile.lane == 0
        return is_first and all(
            0 in extent for extent in self.extents.values() if extent
        )

    @property
    def key(self) -> Any:
        """What tells leaves of other groups apart; all shapes of entries alone have one key."""
        return self.row, self.axes, self.tile

    def sizes(self, shape: Sequence[int]) -> list[int]:
        """Return the number of entries of each group of a leaf."""
        if self.axes is not None:
            return [math.prod(shape[axis] for axis in group) for group in self.axes]
        size = math.prod(shape)
        return [size // self.row, self.row] if self.are_rows else [size]


def groups_of(lowered: LoweredGraph, leaf: Node) -> Groups:
    """Return what the kernels of a lowered graph go through: entries, rows of these, or other groups of a leaf's axes.

    Raises:
        UnsuitableProgramError: If a value depends on anything else.
    """
    groups = RowGroups(lowered, leaf).groups()
    if groups is None:
        groups = _groups_of_axes(axes_of(lowered, leaf), _shape(leaf), lowered.results)
    return groups


def _groups_of_axes(
    axes: dict[Node, tuple[int, ...]], shape: Sequence[int], results: Sequence[Any]
) -> Groups:
    """Return the groups of a leaf of this shape; axes of size 1 need none.

    Args:
        axes: Those that each value depends on.
        shape: The shape of the leaf.
        results: The results of the graph, which may go to new memory.

    Raises:
        UnsuitableProgramError: If a value in memory has its axes in another order.
    """
    sets = [set(of_node) for of_node in axes.values()]
    groups: list[tuple[int, ...]] = []
    for i in range(len(shape)):
        if shape[i] == 1:
            continue
        last = groups[-1][-1] if groups else None
        is_joined = groups and all((i in own) == (last in own) for own in sets)
        groups = [*groups[:-1], (*groups[-1], i)] if is_joined else [*groups, (i,)]
    # The loops of kernels have two levels at least.
    is_vector = len(groups) == 1
    extents = {}
    for node, positions in axes.items():
        kept = [i for i, group in enumerate(groups) if group[0] in positions]
        extents[node] = (0, 1) if is_vector and kept else tuple(kept)
        # In memory, and for the writes of views, the axes have their usual order.
        is_argument = node.op == "placeholder" or _torch.writes(node.target)
        is_stored = is_argument or node in results
        if is_stored and list(positions) != sorted(positions):
            raise UnsuitableProgramError(UNRELATED)
    if not groups:
        raise UnsuitableProgramError(UNRELATED)
    if is_vector:
        return Groups(extents, ((), *groups))
    sizes = [math.prod(shape[axis] for axis in group) for group in groups]
    if 0 in sizes and len(sizes) > 2:  # of which kernels divide by extents
        raise UnsuitableProgramError(EMPTY)
    return Groups(extents, tuple(groups), tile=tile_of(sizes))


class RowGroups:
    """Divide the values of a graph by what they have one number for: each entry, each row of entries, or a leaf.

    A row is the entries that have one value, such as those of one channel, or of codes with one scale.

    Args:
        lowered: The lowered graph.
        leaf: An argument with the shape of the leaf.
    """

    def __init__(self, lowered: LoweredGraph, leaf: Node):
        self._lowered = lowered
        value: Any = leaf.meta["val"]
        self._size = value.numel()
        self._is_0d = value.ndim == 0  # then so are its slots
        self._row = 1
        self._levels: dict[
            Node, int
        ] = {}  # 0 for a leaf, 1 for each row, 2 for entries

    def groups(self) -> Groups | None:
        """Return the groups; None if a value depends on anything else."""
        for node in self._lowered.graph.nodes:
            if node.op == "output" or is_scalar(node):
                continue
            # Phases of sums often read few slots.
            is_unread = is_mark(node, self._size) or not node.users
            if is_unread and node.op == "placeholder":
                continue
            if not self._has_level(node):
                return None
            if node.op == "call_function" and not self._agrees(node):
                return None
        axes_of_level = [(), (0,), (0, 1) if self._row > 1 else (0,)]
        extents = {node: axes_of_level[level] for node, level in self._levels.items()}
        return Groups(extents, row=self._row)

    def _has_level(self, node: Node) -> bool:
        """Note what a value has one number for; False if that is none of the above."""
        value: Any = node.meta["val"]
        if not isinstance(value, Tensor):
            return False
        if value.ndim == 0 or (self._is_0d and value.numel() == 1):
            self._levels[node] = 0
            return True
        if value.numel() == self._size:
            self._levels[node] = 2
            return True
        row = self._size // max(value.numel(), 1)
        if row * value.numel() != self._size or row == 1 or self._row not in (1, row):
            return False
        self._row = row
        self._levels[node] = 1
        return True

    def _agrees(self, node: Node) -> bool:
        """Whether an operation takes the values of rows in their order, and reduces whole rows only."""
        level = self._levels[node]
        operand: Any = next(iter(node.args), None)
        is_view = node.target in SAME_ENTRIES and self._levels.get(operand) == level
        if is_view:
            return True
        if node.target in REDUCTIONS and operand in self._levels:
            of, dims = self._levels[operand], reduced_dimensions(node)
            if of and not dims:
                return True
            if of and level != of:
                ndim = operand.meta["val"].ndim
                reduced = sorted(dim % ndim for dim in dims)
                is_last = reduced == [*range(ndim)][-len(reduced) :]
                return is_last and (of, level) == (2, 1)
        inputs = [x for x in node.all_input_nodes if self._levels.get(x) == 1]
        return level < 2 or all(self._is_in_order(x, node) for x in inputs)

    def _is_in_order(self, values: Node, node: Node) -> bool:
        """Whether a value of each row meets the entries of its row."""
        shape: Any = node.meta["val"].shape
        own: Any = values.meta["val"].shape
        own = (1,) * (len(shape) - len(own)) + tuple(own)
        rest = list(shape)
        for size in own:
            if size != rest[0]:
                break
            rest.pop(0)
        kept = len(shape) - len(rest)
        return not set(own[kept:]) - {1} and math.prod(rest) == self._row


def is_mark(node: Node, size: int) -> bool:
    """Whether a value has no entries, although the leaf has some: slots that only mark a choice."""
    value = node.meta["val"]
    return isinstance(value, Tensor) and value.numel() == 0 < size
