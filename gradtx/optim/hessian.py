"""Estimates `hessian_diag` from the graph of the gradients if the caller does not pass it.

The estimate is one Hessian-vector product with a random vector (Hutchinson), computed only at the steps that use it.
The vector is determined by the seed in the parameter groups and the step count. Both are in the state dict, so a
resumed run is bitwise identical.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradtx.base.dtensor import is_sharded
from gradtx.base.errors import Path
from gradtx.base.messages import describe
from gradtx.distributed.redistribution import gradient_like
from gradtx.execution.execute import Leaf
from gradtx.optim.run import clock_after, leaf_of
from gradtx.optim.state import States
from gradtx.optim.step import Step
from gradtx.state.random import Stream
from gradtx.transform import GradientTransformation

Diagonal: TypeAlias = dict[Tensor, Tensor]
SEED = "hessian_seed"  # the seed's key in a group


@dataclass
class HessianSource:
    """Supplies the steps of a chain that needs it with `hessian_diag`.

    Attributes:
        who: The optimizer's class, for error messages.
        link: The first link that needs `hessian_diag`, by the name that the caller typed.
        seed: The seed for new groups.
    """

    who: str
    link: str
    seed: int

    @classmethod
    def of_chain(
        cls, who: str, tx: GradientTransformation, seed: Any
    ) -> HessianSource | None:
        """Return the source for a chain; None if no link needs `hessian_diag`."""
        seed = _checked_seed(f"{who}: seed", seed)
        _, needs = tx._requirements()
        for typed, _, need in needs:
            if need == "hessian_diag":
                return cls(who, typed, seed)
        return None

    # Around the closure.

    @contextlib.contextmanager
    def keeping_graphs(self, states: States) -> Generator[None, None, None]:
        """Let `backward` keep its graph inside a `with` block, if second derivatives may be used."""
        if not self._may_be_due(states):
            yield
            return
        try:
            with _KeepGraph():
                yield
        except BaseException:
            drop_graphs(states.members.by_param)
            raise

    def _may_be_due(self, states: States) -> bool:
        """Whether any parameter would use second derivatives if it received a gradient now."""
        for run, route, row in states.routes(states.count()):
            for member in row:
                if not member.param.requires_grad:
                    continue
                made = int(states.of(member.param).get("step", 0))
                leaf = leaf_of(run, member, clock_after(made))
                leaf.operations = route.for_leaf(leaf)
                if is_used(leaf):
                    return True
        return False

    # In a step.

    def supply(self, step: Step, estimates: bool) -> None:
        """Pass each leaf of a step its part of the diagonal, before the step writes anything.

        Args:
            step: The step.
            estimates: Whether the caller did not pass a diagonal.

        Raises:
            RuntimeError: If the diagonal would have to be estimated from gradients that a GradScaler has scaled.
            ValueError: If the diagonal is due, but was neither passed nor can be estimated.
        """
        leaves = step.leaves.without_values(step.members)
        lacks_none = all(
            leaf.extras.get("hessian_diag") is not None or not leaf.has_gradient
            for leaf in leaves
        )
        if lacks_none and not estimates:
            return
        if isinstance(step.counts.updates, Tensor):
            raise RuntimeError(
                f"{self.link}: with capturable=True, every step needs step(hessian_diag=...) with a tensor for each "
                "parameter that has a gradient; an estimate depends on a count that only the device knows"
            )
        uses = {leaf: is_used(leaf) for leaf in leaves}
        diagonal: Diagonal = {}
        if estimates:
            due = [leaf for leaf in leaves if uses[leaf] and leaf.has_gradient]
            try:
                if due:
                    diagonal = self._estimate(due, step)
            finally:
                drop_graphs(leaf.key.param for leaf in leaves)
        tree = {leaf.name: self._part(leaf, uses[leaf], diagonal) for leaf in leaves}
        step.trees = step.run.leaf_extras = {**step.trees, "hessian_diag": tree}

    def _part(
        self, leaf: Leaf, is_due: bool | None, diagonal: Diagonal
    ) -> Tensor | None:
        """Return a leaf's part of the diagonal; None for "keep the last one"."""
        value = diagonal.get(leaf.key.param, leaf.extras.get("hessian_diag"))
        if value is not None or is_due is None:
            return value
        if not is_due:
            # No rule reads it in this step. A zero, because some rules have no last one to keep.
            zero = torch.zeros((), device=leaf.device, dtype=leaf.compute_dtype)
            return zero.expand(leaf.shape)
        if leaf.has_gradient:
            raise ValueError(
                f"{self.link}: hessian_diag of parameter {leaf.name!r} is None at a step that requires "
                "a new one; pass a tensor, or omit the argument to have it estimated"
            )
        return None

    def _estimate(self, due: list[Leaf], step: Step) -> Diagonal:
        """Return z * (H z) for parameters, and zeros for those on which no gradient depends."""
        if step.scaling is not None:
            raise RuntimeError(
                f"{self.link}: hessian_diag cannot be estimated from gradients that a GradScaler has "
                "scaled; call step(hessian_diag=...), or train in bfloat16 without a scaler"
            )
        every: list[Tensor] = [leaf.key.param for leaf in due]
        params = [param for param in every if param.requires_grad]
        gradients: Diagonal = {}
        for param in params:
            if param.grad is not None and param.grad.requires_grad:
                gradients[param] = param.grad
        if not gradients:
            error = (
                f"{self.link} needs hessian_diag: call step(closure, hessian_diag=...); or omit it, and "
                "call loss.backward(create_graph=True) before step(), or step(closure) with a closure that calls "
                "loss.backward()"
            )
            if any(map(is_sharded, params)):
                error += (
                    "; under FSDP2, pass it, because its gradients never have a graph"
                )
            raise ValueError(error)
        z = self._random_vectors(due, step)
        vectors = [z[param].to(gradient.dtype) for param, gradient in gradients.items()]
        try:
            columns = torch.autograd.grad(
                list(gradients.values()), params, vectors, allow_unused=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"{self.link}: hessian_diag cannot be estimated, because a part of the model has no second "
                f"derivative ({error}); call step(closure, hessian_diag=...), or replace this part: a model under "
                "torch.compile by the plain module, fused attention by SDPBackend.MATH"
            ) from error
        diagonal = {param: torch.zeros_like(param) for param in every}
        for param, column in zip(params, columns, strict=True):
            if column is not None:
                diagonal[param] = gradient_like(z[param] * column, param)
        return diagonal

    def _random_vectors(self, due: list[Leaf], step: Step) -> Diagonal:
        counter = torch.as_tensor(step.counts.updates)
        vectors = {}
        for leaf in due:
            member = leaf.key
            group = step.groups[member.group].group
            seed = _checked_seed(f"{self.who}: {SEED}", group.get(SEED, self.seed))
            stream = Stream(torch.tensor(seed), counter, leaf.name)
            vectors[member.param] = stream.rademacher(member.param.detach())
        return vectors


def _checked_seed(what: str, seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{what} must be an int, got {describe(seed)}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{what} must fit in 64 bits, got {seed}")
    return seed


def drop_graphs(params: Iterable[Tensor]) -> None:
    """Detach gradients from their graphs, which estimates no longer need."""
    for param in params:
        if param.grad is not None and param.grad.requires_grad:
            param.grad = param.grad.detach()


BACKWARD: Any = Tensor.__dict__.get("backward")


class _KeepGraph(TorchFunctionMode):
    """Adds `create_graph=True` to `loss.backward()`, so that gradients can be differentiated."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not BACKWARD:
            return func(*args, **kwargs)
        # Ignore the reference-cycle warning: `drop_graphs` breaks the cycle.
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", r"Using backward\(\) with create_graph", UserWarning
            )
            return func(*args, **{**kwargs, "create_graph": True})


def is_used(leaf: Leaf) -> bool | None:
    """Return whether a link uses `hessian_diag` at this step; None if none ever reads it."""
    reads = is_due = False
    for operation in leaf.operations:
        period = operation.traits.hessian_period
        if period:
            reads = True
            count = _count_at(operation.path, leaf)
            is_due = is_due or (count is not None and count % period == 0)
    return is_due if reads else None


def _count_at(path: Path, leaf: Leaf) -> int | None:
    """Return the finished updates on the clock of a stage; None if a clock around it does not count this step.

    Clocks that need a sum over leaves are assumed to count.
    """
    count = int(leaf.clock.step) - 1
    for length in range(1, len(path)):
        clock = path[:length]
        if clock not in leaf.run.inner_counts:
            continue
        if not leaf.run.ticks.get(clock, True):
            return None
        count = int(leaf.run.inner_counts[clock])
    return count
