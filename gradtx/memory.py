"""Estimate the memory of a training run before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradtx.base import tree as _tree
from gradtx.base.complex_views import check_real
from gradtx.base.dtensor import local
from gradtx.base.inputs import listed_group, listed_params
from gradtx.base.messages import check_state_device, describe
from gradtx.base.selectors import NumberedName
from gradtx.base.tree import check_leaf
from gradtx.execution.pure import TreeRun
from gradtx.transform import GradientTransformation, check_transformation

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
        weights: Bytes of the weights.
        gradient: Bytes of the gradient; 0 for a parameter that requires none, which has no state either.
        slots: Bytes of each slot of its state, by name; for a coded slot the sum over its tensors.
        master: Bytes that store the rounding errors of 16-bit weights, in place of a float32 copy.
    """

    name: str
    shape: torch.Size
    weights: int
    gradient: int
    slots: Mapping[str, int]
    master: int

    @property
    def state(self) -> int:
        """Bytes of its state, excluding `master`."""
        return COUNT + sum(self.slots.values()) if self.gradient else 0


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
        return sum(row.gradient for row in self.rows)

    @property
    def largest_gradient(self) -> int:
        """Bytes of the largest gradient, which replaces `gradients` if you use `release_gradients`."""
        return max((row.gradient for row in self.rows), default=0)

    @property
    def state(self) -> int:
        """Bytes of the optimizer's state, excluding `master`."""
        return self.shared + sum(row.state for row in self.rows)

    @property
    def master(self) -> int:
        """Bytes that store the rounding errors of 16-bit weights (`compensate_rounding`)."""
        return sum(row.master for row in self.rows)

    @property
    def total(self) -> int:
        """Bytes on the parameters' device: weights, gradients and state, without the temporaries of a step."""
        used = self.weights + self.gradients
        return used if self.offloaded else used + self._by_steps

    @property
    def host(self) -> int:
        """Bytes on the host if state is offloaded: state, and copies of weights and gradients."""
        return self.weights + self.gradients + self._by_steps if self.offloaded else 0

    @property
    def _by_steps(self) -> int:
        """Bytes that steps use in addition to weights and gradients."""
        return self.state + self.master

    @property
    def slots(self) -> dict[str, int]:
        """Bytes of each slot, summed over the parameters."""
        slots: dict[str, int] = {}
        for row in self.rows:
            for name, size in row.slots.items():
                slots[name] = slots.get(name, 0) + size
        return slots

    def __repr__(self) -> str:
        sizes = {
            "weights": self.weights,
            "gradients": self.gradients,
            "state": self.state,
        }
        for name, size in self.slots.items():
            sizes[f"  {name}"] = size
        sizes["master"] = self.master
        sizes["total"] = self.total
        if self.offloaded:
            sizes["on the host"] = self.host
        lines = [("", "bytes", "per entry")]
        for name, size in sizes.items():
            lines.append((name, f"{size:,}", f"{size / max(self.entries, 1):.2f}"))
        first, second = (max(len(line[i]) for line in lines) for i in range(2))
        return "\n".join(
            f"{name:<{first}}  {size:>{second}}  {each:>9}".rstrip()
            for name, size, each in lines
        )


def memory(
    tx: GradientTransformation,
    params: Any,
    *,
    state_device: torch.device | str | None = None,
) -> Memory:
    """Compute the memory of a training run without allocating any; parameters may be on the meta device.

    Args:
        tx: The transformation.
        params: A model, a tree of tensors in a dict, or the first argument of an optimizer: tensors, pairs
            (name, tensor) or groups, whose hyperparameters are ignored. For sharded tensors, the local shard counts.
            Parameters that require no gradient have neither gradient nor state.
        state_device: As for `as_optimizer`: "cpu" to keep the state on the host.

    Returns:
        A `Memory` with the bytes of weights, gradients, state and master copies, also by slot and by parameter.

    Raises:
        TypeError: If `tx` is not a transformation, or if `params` are not tensors.
        ValueError: If there are no parameters, if two have the same name, if one is lazy, or if `state_device` is not
            "cpu".

    Example:
        >>> with torch.device("meta"):
        ...     model = torch.nn.Linear(1024, 1024, bias=False)
        >>> plan = gradtx.memory(gradtx.adamw(lr=1e-3, state_dtype="int8"), model)
        >>> plan.state / plan.entries < 2.2
        True
        >>> plan.slots
        {'exp_avg': 1114112, 'exp_avg_sq': 1114112}
    """
    check_transformation(WHO, "tx", tx)
    if state_device is not None:
        check_state_device(WHO, state_device)
    tensors = _named(params)
    stand_ins: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stand_ins[name] = torch.empty_like(local(tensor.detach()), device=META)
    state = tx.init(stand_ins)
    run = TreeRun(tx, stand_ins, None, state)
    slots, shared = _slots_of(state, run)
    rows: list[MemoryRow] = []
    for name, stand_in in stand_ins.items():
        is_frozen = isinstance(tensors[name], nn.Parameter) and not (
            tensors[name].requires_grad
        )
        of_leaf = {} if is_frozen else slots.get(name, {})
        rows.append(
            MemoryRow(
                name=name,
                shape=stand_in.shape,
                weights=_bytes(stand_in),
                gradient=0 if is_frozen else _bytes(stand_in),
                slots={
                    slot: size for slot, size in of_leaf.items() if slot != COMPENSATION
                },
                master=of_leaf.get(COMPENSATION, 0),
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
    if isinstance(params, Mapping):
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
            listed_group(WHO, dict(entry))["params"]
            if isinstance(entry, Mapping)
            else [entry]
        )
        for param in [params] if isinstance(params, Tensor) else params:
            name, tensor = (
                param
                if isinstance(param, tuple)
                else (NumberedName(len(leaves)), param)
            )
            if name in leaves:
                raise ValueError(
                    f"{WHO}: two parameters are named {name!r}; names must be unique"
                )
            check_leaf(name, tensor, WHO)
            check_real(name, tensor, WHO)
            leaves[name] = tensor
    return leaves


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
