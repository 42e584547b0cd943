"""Plan a run: the memory that training needs, before anything is allocated."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradtx import _torch, _tree
from gradtx._complex import check_real
from gradtx._execution import Leaf, execute
from gradtx._given import listed_group, listed_params
from gradtx._lists.bundle import entries_of_a_call
from gradtx._messages import check_state_device, describe
from gradtx._narrowing import is_mapping, is_sequence, is_tuple
from gradtx._pure import TreeRun, leaves_of
from gradtx._sharding import local
from gradtx._tree import check_leaf
from gradtx.core import GradientTransformation, check_transformation

__all__ = ["Memory", "MemoryRow", "memory"]

WHO = "memory"
COUNT = 4  # bytes of a parameter's count of steps
COMPENSATION = "compensation"
META = torch.device("meta")


@dataclass(frozen=True)
class MemoryRow:
    """The bytes of one parameter.

    Attributes:
        name: The parameter.
        shape: Its shape; of a sharded one, that of this process's part.
        weights: Bytes of the weights, and as many of the gradient.
        slots: Bytes of each slot of its state, by name; the tensors of a coded slot are added.
        master: Bytes that keep what 16-bit weights lose by rounding, in place of a float32 copy.
        temporaries: Bytes that its update allocates for a while, at most; None if that depends on values.
    """

    name: str
    shape: torch.Size
    weights: int
    slots: Mapping[str, int]
    master: int
    temporaries: int | None

    @property
    def state(self) -> int:
        """Bytes of its state, without `master`."""
        return COUNT + sum(self.slots.values())


@dataclass(frozen=True)
class Memory:
    """The memory of a training run, in bytes. Printed, it is a table.

    Attributes:
        rows: One `MemoryRow` for each parameter.
        shared: Bytes of numbers that all parameters share.
        offloaded: Whether state is on the host, by `state_device`.
    """

    rows: list[MemoryRow] = field(default_factory=list[MemoryRow])
    shared: int = 0
    offloaded: bool = False

    @property
    def entries(self) -> int:
        """How many entries the parameters have together."""
        return sum(row.shape.numel() for row in self.rows)

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return sum(row.weights for row in self.rows)

    @property
    def gradients(self) -> int:
        """Bytes of all gradients, as an ordinary step needs them."""
        return self.weights

    @property
    def largest_gradient(self) -> int:
        """Bytes of the largest gradient, which stands for all of them after `release_gradients`."""
        return max((row.weights for row in self.rows), default=0)

    @property
    def state(self) -> int:
        """Bytes of the optimizer's state, without `master`."""
        return self.shared + sum(row.state for row in self.rows)

    @property
    def master(self) -> int:
        """Bytes that keep what 16-bit weights lose by rounding (`compensate_rounding`)."""
        return sum(row.master for row in self.rows)

    @property
    def temporaries(self) -> int | None:
        """Bytes that a step by default allocates for a while, at most; None if that depends on values."""
        of_rows = [row.temporaries for row in self.rows]
        return None if None in of_rows else max(cast("list[int]", of_rows), default=0)

    @property
    def total(self) -> int:
        """Bytes on the parameters' device: weights, gradients, state and temporaries, as far as these are known."""
        used = self.weights + self.gradients
        return used if self.offloaded else used + self._by_steps

    @property
    def host(self) -> int:
        """Bytes on the host, if state is there: state, temporaries, and copies of weights and gradients."""
        return self.weights + self.gradients + self._by_steps if self.offloaded else 0

    @property
    def _by_steps(self) -> int:
        """Bytes that steps use beyond weights and gradients, as far as these are known."""
        return self.state + self.master + (self.temporaries or 0)

    @property
    def slots(self) -> dict[str, int]:
        """Bytes of each slot."""
        slots: dict[str, int] = {}
        for row in self.rows:
            for name, size in row.slots.items():
                slots[name] = slots.get(name, 0) + size
        return slots

    def __repr__(self) -> str:
        lines = [("", "bytes", "per entry")]
        sizes: dict[str, int | None] = {"weights": self.weights, "gradients": self.gradients, "state": self.state}
        sizes.update({f"  {name}": size for name, size in self.slots.items()})
        sizes.update({"master": self.master, "temporaries": self.temporaries, "total": self.total})
        if self.offloaded:
            sizes["on the host"] = self.host
        for name, size in sizes.items():
            if size is None:
                lines.append((name, "unknown", ""))
            else:
                lines.append((name, f"{size:,}", f"{size / max(self.entries, 1):.2f}"))
        first, second = (max(len(line[i]) for line in lines) for i in range(2))
        return "\n".join(f"{name:<{first}}  {size:>{second}}  {each:>9}".rstrip() for name, size, each in lines)


def memory(
    tx: GradientTransformation,
    params: Any,
    device: torch.device | str | None = None,
    state_device: torch.device | str | None = None,
) -> Memory:
    """Compute the memory of a training run without allocating any: parameters may be on the meta device.

    Args:
        tx: The transformation.
        params: A model, a tree of tensors in a dict, or what an optimizer takes: tensors, pairs (name, tensor) or
            groups, whose hyperparameters are not read. Of sharded tensors, this process's part counts.
        device: Where training runs, which decides how many entries a step takes at once; by default where the
            parameters are, and for the meta device an accelerator.
        state_device: As for `as_optimizer`: "cpu" if state is kept on the host.

    Returns:
        A `Memory` with the bytes of weights, gradients, state, master copies and temporaries, also by slot and by
        parameter. Temporaries are those of the default step, an upper bound.

    Raises:
        TypeError: `tx` is no transformation, `params` are no tensors.
        ValueError: no parameters, two of one name, a lazy one, an unknown `device`, another `state_device` than "cpu".

    Example:
        >>> with torch.device("meta"):
        ...     model = torch.nn.Linear(1024, 1024, bias=False)
        >>> plan = gradtx.memory(gradtx.adamw(lr=1e-3, state_dtype="int8"), model, device="cpu")
        >>> plan.state / plan.entries < 2.2
        True
        >>> plan.slots
        {'exp_avg': 1114112, 'exp_avg_sq': 1114112}
    """
    check_transformation(WHO, "tx", tx)
    if state_device is not None:
        check_state_device(WHO, state_device)
    place = None if device is None else _device(device)
    tensors = _named(params)
    stand_ins: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stand_ins[name] = torch.empty_like(local(tensor.detach()), device=META)
    state = tx.init(stand_ins)
    run = TreeRun(tx, stand_ins, None, state)
    slots, shared = _slots_of(state, run)
    temporaries = _Temporaries(tx, run, stand_ins)
    rows: list[MemoryRow] = []
    for name, stand_in in stand_ins.items():
        where = torch.device(state_device or place or tensors[name].device)
        of_leaf = slots.get(name, {})
        rows.append(
            MemoryRow(
                name=name,
                shape=stand_in.shape,
                weights=_bytes(stand_in),
                slots={slot: size for slot, size in of_leaf.items() if slot != COMPENSATION},
                master=of_leaf.get(COMPENSATION, 0),
                temporaries=temporaries.of(name, entries_of_a_call(where)),
            )
        )
    return Memory(rows, shared, offloaded=state_device is not None)


def _named(params: Any) -> dict[str, Tensor]:
    """Parameters by name.

    Raises:
        TypeError, ValueError: there are none, two have one name, or one has no shape yet.
    """
    if isinstance(params, nn.Module):
        params = dict(params.named_parameters())
    if isinstance(params, Tensor | str) or not isinstance(params, Iterable):
        raise TypeError(f"{WHO}: needs a model, a dict or a list of tensors, got {describe(params)}")
    if is_mapping(params):
        leaves, _ = _tree.flatten_real(dict(params), WHO)
    else:
        leaves = _by_name(listed_params(WHO, params))
    tensors: dict[str, Tensor] = {}
    for name, leaf in leaves.items():
        if leaf is None:
            continue
        if is_lazy(leaf):
            raise ValueError(f"{WHO}: {name!r} is lazy and has no shape yet; run the model once on an input")
        tensors[name] = leaf
    if not tensors:
        raise ValueError(f"{WHO}: got no parameters")
    return tensors


def _by_name(entries: Iterable[Any]) -> dict[str, Tensor]:
    """Parameters of a list, or of a list of groups, by their names or positions."""
    leaves: dict[str, Tensor] = {}
    for entry in entries:
        params: Any = listed_group(WHO, dict(entry))["params"] if is_mapping(entry) else [entry]
        for param in [params] if isinstance(params, Tensor) else params:
            name, tensor = param if is_tuple(param) else (str(len(leaves)), param)
            if name in leaves:
                raise ValueError(f"{WHO}: two parameters are named {name!r}; give them names of their own")
            check_leaf(name, tensor, WHO)
            check_real(name, tensor, WHO)
            leaves[name] = tensor
    return leaves


def _device(given: Any) -> torch.device:
    """A device, by its name."""
    try:
        return torch.device(given)
    except (RuntimeError, TypeError) as error:
        kind = ValueError if isinstance(given, str | int) else TypeError
        raise kind(f"{WHO}: device must be one of torch's, such as 'cpu' or 'cuda', got {describe(given)}") from error


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _slots_of(state: Mapping[str, Any], run: TreeRun) -> tuple[dict[str, dict[str, int]], int]:
    """The bytes of each leaf's slots by name, and of all other numbers; the tensors of a coded slot are added."""
    slots: dict[str, dict[str, int]] = {}
    shared = 0
    for path, stage in _stages(state, (), run):
        for name, values in stage.items():
            if isinstance(values, Tensor):
                shared += _bytes(values) if path else 0  # the outermost count is one of each parameter
                continue
            slot = name.partition(".")[0]
            for leaf, tensor in values.items():
                of_leaf = slots.setdefault(leaf, {})
                if tensor.numel():  # a partition keeps its decisions as tensors without entries
                    of_leaf[slot] = of_leaf.get(slot, 0) + _bytes(tensor)
    return slots, shared


def _stages(state: Mapping[str, Any], path: tuple[str, ...], run: TreeRun) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each stage's own entries."""
    entries: dict[str, Any] = {}
    for key, value in state.items():
        if (*path, key) in run.stages:
            yield from _stages(value, (*path, key), run)
        else:
            entries[key] = value
    yield path, entries


# Temporaries.


class _Temporaries:
    """Runs the update of single leaves on the meta device, and counts what it allocates.

    Args:
        tx: The transformation.
        run: A call for all leaves.
        stand_ins: The leaves.
    """

    def __init__(self, tx: GradientTransformation, run: TreeRun, stand_ins: Mapping[str, Tensor]):
        self._tx = tx
        self._leaves = leaves_of(run, dict(stand_ins), dict(stand_ins), {}, {})
        self._stand_ins = stand_ins
        self._states: dict[int, tuple[dict[str, Tensor], Any]] = {}  # leaves in parts, and their state
        self._known: dict[Any, int | None] = {}

    def of(self, name: str, most: int) -> int | None:
        """The most bytes that a leaf's update allocates at once; of a part of `most` entries, if a step takes parts."""
        if most not in self._states:
            parts = {key: self._part(key, tensor, most) for key, tensor in self._stand_ins.items()}
            self._states[most] = parts, self._tx.init(parts)
        parts, state = self._states[most]
        part = parts[name]
        kind = part.shape, part.dtype, tuple(map(id, self._leaves[name].program))
        if kind not in self._known:
            self._known[kind] = self._peak(name, parts, state)
        return self._known[kind]

    def _part(self, name: str, tensor: Tensor, most: int) -> Tensor:
        if not _goes_in_parts(self._leaves[name]):
            return tensor
        sizes = list(tensor.shape)
        for dim, size in enumerate(sizes):
            inside = math.prod(sizes[dim + 1 :])
            sizes[dim] = min(size, max(1, most // max(inside, 1)))
        return tensor.new_empty(sizes)

    def _peak(self, name: str, parts: dict[str, Tensor], state: Any) -> int | None:
        counter = _Allocations()
        run = TreeRun(self._tx, parts, None, state)
        gradient = {name: torch.empty_like(parts[name])}
        try:
            leaves = leaves_of(run, gradient, {name: parts[name]}, {}, {})
            with torch.no_grad(), counter.counting():
                execute(leaves.values(), _finish)
        except Exception:  # a rule reads values, or needs more than gradients
            return None
        return counter.most


def _finish(leaf: Leaf) -> None:
    """Make the result, as a step does."""
    leaf.result()


def _goes_in_parts(leaf: Leaf) -> bool:
    """Whether a step may update parts of a leaf one after another."""
    return all(operation.elementwise and operation.compiles for operation in leaf.program)


class _Allocations:
    """Counts the bytes of tensors that are alive, and the most of them.

    Attributes:
        most: The most bytes that were alive at once.
    """

    def __init__(self) -> None:
        self.most = 0
        self._present = 0
        self._tensors: dict[int, int] = {}  # how many tensors share each storage

    def counting(self) -> Any:
        def call(function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            results: Any = function(*arguments, **options)
            for result in results if is_sequence(results) else (results,):
                if isinstance(result, Tensor) and result.device.type == "meta":
                    self._add(result)
            return results

        return _torch.intercepting(call)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = _torch.storage_id(tensor), storage.nbytes()
        self._tensors[key] = self._tensors.get(key, 0) + 1
        if self._tensors[key] == 1:
            self._present += size
            self.most = max(self.most, self._present)
        weakref.finalize(tensor, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._tensors[key] -= 1
        if not self._tensors[key]:
            del self._tensors[key]
            self._present -= size
