"""Estimate the memory of a training run before anything is allocated."""

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
COUNT = 4  # bytes of a parameter's step count
COMPENSATION = "compensation"
META = torch.device("meta")


@dataclass(frozen=True)
class MemoryRow:
    """The memory of one parameter, in bytes.

    Attributes:
        name: The name of the parameter.
        shape: Its shape; for a sharded parameter, that of the local shard.
        weights: Bytes of the weights; the gradient needs the same amount.
        slots: Bytes of each slot of its state, by name; for a coded slot the sum over its tensors.
        master: Bytes that store the rounding errors of 16-bit weights, in place of a float32 copy.
        temporaries: Peak bytes of temporary tensors in its update; None if this depends on values.
    """

    name: str
    shape: torch.Size
    weights: int
    slots: Mapping[str, int]
    master: int
    temporaries: int | None

    @property
    def state(self) -> int:
        """Bytes of its state, excluding `master`."""
        return COUNT + sum(self.slots.values())


@dataclass(frozen=True)
class Memory:
    """The memory of a training run, in bytes. It prints as a table.

    Attributes:
        rows: One `MemoryRow` per parameter.
        shared: Bytes of values that all parameters share.
        offloaded: Whether the state is on the host, as `state_device` requests.
    """

    rows: list[MemoryRow] = field(default_factory=list[MemoryRow])
    shared: int = 0
    offloaded: bool = False

    @property
    def entries(self) -> int:
        """Total number of entries of all parameters."""
        return sum(row.shape.numel() for row in self.rows)

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return sum(row.weights for row in self.rows)

    @property
    def gradients(self) -> int:
        """Bytes of all gradients, as an ordinary step requires."""
        return self.weights

    @property
    def largest_gradient(self) -> int:
        """Bytes of the largest gradient, which replaces `gradients` if you use `release_gradients`."""
        return max((row.weights for row in self.rows), default=0)

    @property
    def state(self) -> int:
        """Bytes of the optimizer's state, excluding `master`."""
        return self.shared + sum(row.state for row in self.rows)

    @property
    def master(self) -> int:
        """Bytes that store the rounding errors of 16-bit weights (`compensate_rounding`)."""
        return sum(row.master for row in self.rows)

    @property
    def temporaries(self) -> int | None:
        """Peak bytes of temporary tensors in a default step; None if this depends on values."""
        of_rows = [row.temporaries for row in self.rows]
        return None if None in of_rows else max(cast("list[int]", of_rows), default=0)

    @property
    def total(self) -> int:
        """Bytes on the parameters' device: weights, gradients, state, and temporaries if known."""
        used = self.weights + self.gradients
        return used if self.offloaded else used + self._by_steps

    @property
    def host(self) -> int:
        """Bytes on the host if state is offloaded: state, temporaries, and copies of weights and gradients."""
        return self.weights + self.gradients + self._by_steps if self.offloaded else 0

    @property
    def _by_steps(self) -> int:
        """Bytes that steps use in addition to weights and gradients, with temporaries if known."""
        return self.state + self.master + (self.temporaries or 0)

    @property
    def slots(self) -> dict[str, int]:
        """Bytes of each slot, summed over the parameters."""
        slots: dict[str, int] = {}
        for row in self.rows:
            for name, size in row.slots.items():
                slots[name] = slots.get(name, 0) + size
        return slots

    def __repr__(self) -> str:
        lines = [("", "bytes", "per entry")]
        sizes: dict[str, int | None] = {
            "weights": self.weights,
            "gradients": self.gradients,
            "state": self.state,
        }
        sizes.update({f"  {name}": size for name, size in self.slots.items()})
        sizes.update(
            {
                "master": self.master,
                "temporaries": self.temporaries,
                "total": self.total,
            }
        )
        if self.offloaded:
            sizes["on the host"] = self.host
        for name, size in sizes.items():
            if size is None:
                lines.append((name, "unknown", ""))
            else:
                lines.append((name, f"{size:,}", f"{size / max(self.entries, 1):.2f}"))
        first, second = (max(len(line[i]) for line in lines) for i in range(2))
        return "\n".join(
            f"{name:<{first}}  {size:>{second}}  {each:>9}".rstrip()
            for name, size, each in lines
        )


def memory(
    tx: GradientTransformation,
    params: Any,
    device: torch.device | str | None = None,
    state_device: torch.device | str | None = None,
) -> Memory:
    """Compute the memory of a training run without allocating any; parameters may be on the meta device.

    Args:
        tx: The transformation.
        params: A model, a tree of tensors in a dict, or the first argument of an optimizer: tensors, pairs
            (name, tensor) or groups, whose hyperparameters are ignored. For sharded tensors, the local shard counts.
        device: The device for training, which determines how many entries a step processes at once. The default is the
            device of the parameters; for the meta device, an accelerator.
        state_device: As for `as_optimizer`: "cpu" to keep the state on the host.

    Returns:
        A `Memory` with the bytes of weights, gradients, state, master copies and temporaries, also by slot and by
        parameter. Temporaries are an upper bound for the default step.

    Raises:
        TypeError: If `tx` is not a transformation, or if `params` are not tensors.
        ValueError: If there are no parameters, if two have the same name, if one is lazy, if `device` is unknown, or if
            `state_device` is not "cpu".

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
                slots={
                    slot: size for slot, size in of_leaf.items() if slot != COMPENSATION
                },
                master=of_leaf.get(COMPENSATION, 0),
                temporaries=temporaries.of(name, entries_of_a_call(where)),
            )
        )
    return Memory(rows, shared, offloaded=state_device is not None)


def _named(params: Any) -> dict[str, Tensor]:
    """Return the parameters by name.

    Raises:
        TypeError, ValueError: If there are no parameters, if two have the same name, or if one has no shape yet.
    """
    if isinstance(params, nn.Module):
        params = dict(params.named_parameters())
    if isinstance(params, Tensor | str) or not isinstance(params, Iterable):
        raise TypeError(
            f"{WHO}: needs a model, a dict or a list of tensors, got {describe(params)}"
        )
    if is_mapping(params):
        leaves, _ = _tree.flatten_real(dict(params), WHO)
    else:
        leaves = _by_name(listed_params(WHO, params))
    tensors: dict[str, Tensor] = {}
    for name, leaf in leaves.items():
        if leaf is None:
            continue
        if is_lazy(leaf):
            raise ValueError(
                f"{WHO}: {name!r} is lazy and has no shape yet; run the model once on an input"
            )
        tensors[name] = leaf
    if not tensors:
        raise ValueError(f"{WHO}: got no parameters")
    return tensors


def _by_name(entries: Iterable[Any]) -> dict[str, Tensor]:
    """Return the parameters of a list, or of a list of groups, by name or position."""
    leaves: dict[str, Tensor] = {}
    for entry in entries:
        params: Any = (
            listed_group(WHO, dict(entry))["params"] if is_mapping(entry) else [entry]
        )
        for param in [params] if isinstance(params, Tensor) else params:
            name, tensor = param if is_tuple(param) else (str(len(leaves)), param)
            if name in leaves:
                raise ValueError(
                    f"{WHO}: two parameters are named {name!r}; names must be unique"
                )
            check_leaf(name, tensor, WHO)
            check_real(name, tensor, WHO)
            leaves[name] = tensor
    return leaves


def _device(given: Any) -> torch.device:
    """Return a `torch.device`, or raise an error for an unknown one."""
    try:
        return torch.device(given)
    except (RuntimeError, TypeError) as error:
        kind = ValueError if isinstance(given, str | int) else TypeError
        raise kind(
            f"{WHO}: device must be one of torch's, such as 'cpu' or 'cuda', got {describe(given)}"
        ) from error


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _slots_of(
    state: Mapping[str, Any], run: TreeRun
) -> tuple[dict[str, dict[str, int]], int]:
    """Return the bytes of each leaf's slots by name, with all tensors of a coded slot, and of shared values."""
    slots: dict[str, dict[str, int]] = {}
    shared = 0
    for path, stage in _stages(state, (), run):
        for name, values in stage.items():
            if isinstance(values, Tensor):
                # The outermost count is part of each parameter's bytes, COUNT.
                shared += _bytes(values) if path else 0
                continue
            slot = name.partition(".")[0]
            for leaf, tensor in values.items():
                of_leaf = slots.setdefault(leaf, {})
                if tensor.numel():  # a partition stores its decisions as empty tensors
                    of_leaf[slot] = of_leaf.get(slot, 0) + _bytes(tensor)
    return slots, shared


def _stages(
    state: Mapping[str, Any], path: tuple[str, ...], run: TreeRun
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the direct entries of each stage."""
    entries: dict[str, Any] = {}
    for key, value in state.items():
        if (*path, key) in run.stages:
            yield from _stages(value, (*path, key), run)
        else:
            entries[key] = value
    yield path, entries


# Temporaries.


class _Temporaries:
    """Run the update of single leaves on the meta device and measure its allocations.

    Args:
        tx: The transformation.
        run: A run for all leaves.
        stand_ins: The leaves, on the meta device.
    """

    def __init__(
        self, tx: GradientTransformation, run: TreeRun, stand_ins: Mapping[str, Tensor]
    ):
        self._tx = tx
        self._leaves = leaves_of(run, dict(stand_ins), dict(stand_ins), {}, {})
        self._stand_ins = stand_ins
        # Part size -> parts of leaves, and their state.
        self._states: dict[int, tuple[dict[str, Tensor], Any]] = {}
        self._known: dict[Any, int | None] = {}

    def of(self, name: str, most: int) -> int | None:
        """Return the peak bytes of a leaf's update, or of a part of `most` entries if a step processes parts."""
        if most not in self._states:
            parts = {
                key: self._part(key, tensor, most)
                for key, tensor in self._stand_ins.items()
            }
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
        except Exception:  # a rule reads values, or requires extras
            return None
        return counter.most


def _finish(leaf: Leaf) -> None:
    """Compute the result, as a step does."""
    leaf.result()


def _goes_in_parts(leaf: Leaf) -> bool:
    """Whether a step may update a leaf in parts, one at a time."""
    return all(
        operation.elementwise and operation.compiles for operation in leaf.program
    )


class _Allocations:
    """Track the bytes of live tensors and their peak.

    Attributes:
        most: The peak number of bytes alive at once.
    """

    def __init__(self) -> None:
        self.most = 0
        self._present = 0
        self._tensors: dict[int, int] = {}  # number of tensors that share each storage

    def counting(self) -> Any:
        def call(
            function: Any, arguments: tuple[Any, ...], options: dict[str, Any]
        ) -> Any:
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
