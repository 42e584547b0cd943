"""Estimate the memory of a training run before anything is allocated."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradtx.base import tree as _tree
from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import local
from gradtx.base.selectors import NumberedName
from gradtx.pure.tree_run import TreeRun
from gradtx.state.nested import NestedState
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
        by_steps = 0 if self.offloaded else self.state + self.master
        return self.weights + self.gradients + by_steps

    @property
    def host(self) -> int:
        """Bytes on the host if state is offloaded: state, and copies of weights and gradients."""
        if not self.offloaded:
            return 0
        return self.weights + self.gradients + self.state + self.master

    @property
    def slots(self) -> dict[str, int]:
        """Bytes of each slot, summed over the parameters."""
        slots: Counter[str] = Counter()
        for row in self.rows:
            slots.update(row.slots)
        return dict(slots)

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
        name_length = max(map(len, sizes))
        lines = [f"{'':{name_length}}  {'bytes':>16}  per entry"]
        for name, size in sizes.items():
            per_entry = size / max(self.entries, 1)
            lines.append(f"{name:{name_length}}  {size:>16,}  {per_entry:>9.2f}")
        return "\n".join(lines)


def memory(
    tx: GradientTransformation,
    params: Any,
    *,
    state_device: torch.device | str | None = None,
) -> Memory:
    """Compute the memory of a training run without allocating any; parameters may be on the meta device.

    Slots have the dtypes that `init` gives them: sums and averages of 16-bit weights are float32.

    Args:
        tx: The transformation.
        params: A model, a tree of tensors, or pairs (name, tensor). For sharded tensors, the local shard counts.
            Parameters that require no gradient have neither gradient nor state.
        state_device: As for `as_optimizer`: "cpu" to keep the state on the host.

    Returns:
        A `Memory` with the bytes of weights, gradients, state and master copies, also by slot and by parameter.

    Raises:
        TypeError: If `tx` is not a transformation, or if `params` are not tensors.
        ValueError: If there are no parameters, or if one is lazy.

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
    tensors = _named(params)
    stand_ins = {
        name: torch.empty_like(as_real(local(tensor.detach())), device=META)
        for name, tensor in tensors.items()
    }
    state = tx.init(stand_ins)
    stages = TreeRun(tx, stand_ins, None, state).stages
    nested = NestedState(state, stages)
    shared = 0
    # The bytes of each leaf's slots by name, with all tensors of a coded slot.
    slots: dict[str, Counter[str]] = defaultdict(Counter)
    for path in stages:
        shared += sum(value.nbytes for value in nested.scalars(path).values())
        for name, values in nested.slots(path):
            for leaf, tensor in values.items():
                if tensor.numel():  # a partition stores its decisions as empty tensors
                    slots[leaf][name.partition(".")[0]] += tensor.nbytes
    rows: list[MemoryRow] = []
    for name, stand_in in stand_ins.items():
        tensor = tensors[name]
        is_frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        of_leaf = Counter[str]() if is_frozen else slots[name]
        master = of_leaf.pop(COMPENSATION, 0)
        rows.append(
            MemoryRow(
                name=name,
                shape=local(tensor.detach()).shape,
                weights=stand_in.nbytes,
                gradient=0 if is_frozen else stand_in.nbytes,
                slots=dict(of_leaf),
                master=master,
            )
        )
    return Memory(rows, shared, offloaded=state_device is not None)


def _named(params: Any) -> dict[str, Tensor]:
    """Return the parameters by name.

    Raises:
        TypeError, ValueError: If a leaf is no tensor, if there are no parameters, or if one has no shape yet.
    """
    if isinstance(params, nn.Module):
        params = dict(params.named_parameters())
    elif not isinstance(params, Mapping | Tensor):
        params = list(params)
        if all(isinstance(entry, tuple) and len(entry) == 2 for entry in params):
            params = dict(params)
        else:
            params = {NumberedName(i): entry for i, entry in enumerate(params)}
    leaves, _ = _tree.flatten(params, WHO)
    tensors = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise ValueError(
                f"{WHO}: {name!r} is lazy and has no shape yet; run the model once on an input"
            )
    if not tensors:
        raise ValueError(f"{WHO}: got no parameters")
    return tensors
