"""A run over the parameters of an optimizer, each of which has a flat dict of state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base import tree as _tree
from gradtx.base.complex_views import real_views
from gradtx.base.dtensor import gradient_like, placed_as, total
from gradtx.base.errors import Path
from gradtx.base.tree import check_names
from gradtx.execution.execute import Leaf, Operation
from gradtx.execution.pure import as_number, moved_along
from gradtx.execution.runs import Run
from gradtx.optim.closure import check_closure
from gradtx.optim.member import Member

Leaves: TypeAlias = dict[str, Tensor]  # by name


class OptimizerRun(Run):
    """A call of `init` or `update` for the parameters of an optimizer.

    Args:
        state: The optimizer's state, by parameter.
        members: The optimizer's parameters.
        initial: Whether this is a call of `init`.

    Attributes:
        state: The optimizer's state, by parameter.
        functions: The closure, as `grad_fn` and `value_fn`.
        tick: The increment that this step adds to counts.
    """

    functions: Mapping[str, Callable[[], Any]]
    tick: int | Tensor = 1

    def __init__(
        self,
        state: Mapping[Any, dict[str, Any]],
        members: Mapping[Tensor, Member],
        initial: bool,
    ):
        super().__init__()
        self.initial = initial
        self.device = next(iter(members)).device if members else torch.device("cpu")
        self.state = state
        self._members = members
        self._sums: dict[Path, Mapping[str, Tensor]] = {}
        self.watch()

    def scalars(self, path: Path) -> Leaves:
        for param, member in self._members.items():
            state = self.state.get(param)
            if state and member.layout is not None and path in member.layout.shared:
                keys = member.layout.shared[path]
                return {name: state[key] for name, key in keys.items()}
        return {}

    def shared(self, path: Path, start: Mapping[str, Callable[[], Tensor]]) -> Leaves:
        """Return the shared values of a stage; initial values for a branch without parameters, which has no state."""
        if self.initial or any(
            member.layout is not None and path in member.layout.shared
            for member in self._members.values()
        ):
            return super().shared(path, start)
        return {name: make() for name, make in start.items()}

    def slots(self, path: Path, leaf: Leaf) -> Leaves:
        if self.initial:
            return {}
        keys = leaf.layout.slots.get(path, {})
        slots = {slot: leaf.state[key] for slot, key in keys.items()}
        return real_views(slots) if leaf.is_complex else slots

    def choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        choices = self._members[leaf.key].choices
        if path not in choices:
            choices[path] = selector.choose(leaf.name, leaf.key)
        return choices[path]

    def combined(self, operation: Operation, waiting: list[tuple[Leaf, Any]]) -> Any:
        total = super().combined(operation, waiting)
        if operation.sums and not operation.of_leaf:
            self._sums[operation.path] = total
        return total

    def sums_of_programs(self, path: Path) -> Mapping[str, Tensor]:
        return self._sums.get(path, {})

    def whole(self, values: dict[str, Any]) -> Any:
        return values

    def by_name(self, tree: Any) -> dict[str, Any]:
        leaves, _ = _tree.flatten_real(tree, "updates returned by a plain function")
        return leaves

    def gradients_at(self, values: Leaves) -> Leaves:
        with self._moved_to(values) as params:
            self.functions["grad_fn"]()
            return _gradients(params, values)

    def value_along(
        self,
        origin: Leaves,
        direction: Leaves,
        length: Tensor,
        sloped: bool,
    ) -> tuple[Tensor, Tensor | None]:
        with self._moved_to(moved_along(origin, direction, length)) as params:
            loss = self.functions["value_fn"]()
            value = as_number("the result of value_fn", loss).detach()
            if not sloped:
                return value, None
            gradients = _gradients(params, direction)
            return value, total(
                {name: gradients[name] * direction[name] for name in direction}
            )

    @contextlib.contextmanager
    def _moved_to(self, values: Leaves) -> Generator[Leaves, None, None]:
        """Set parameters to other weights, without gradients, and restore both at the end."""
        params = {member.name: param for param, member in self._members.items()}
        check_names(
            values,
            [name for name in params if name in values],
            "params",
            "the optimizer's parameters",
        )
        saved: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for param in params.values():
            if not is_lazy(param):
                saved.append((param, param.detach().clone(), param.grad))
                param.grad = None
        try:
            for name, value in values.items():
                params[name].copy_(placed_as(value, params[name]))
            with torch.enable_grad():
                yield params
        finally:
            for param, value, gradient in saved:
                param.copy_(value)
                param.grad = gradient


def _gradients(params: Leaves, likes: Leaves) -> Leaves:
    """Return the gradients that a closure has computed, in the dtypes of `likes`."""
    check_closure(params.values())
    gradients: Leaves = {}
    for name, like in likes.items():
        param = params[name]
        gradients[name] = torch.zeros_like(like)
        if param.grad is not None:
            gradient = gradient_like(param.grad.detach(), param)
            gradients[name] = gradient.to(like.dtype)
    return gradients
