"""Where an optimizer's links get `hessian_diag` from when nobody passes it: from the graph of the gradients.

One product of the Hessian with a random vector (Hutchinson), at the steps that use it only. The vector follows from
the seed in the parameter groups and the count of steps, both part of the state dict, so a resumed run is bitwise the
same.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradtx._execution import Block, Leaf, Position
from gradtx._random import Stream
from gradtx.context import Clock
from gradtx.core import GradientTransformation

if TYPE_CHECKING:
    from gradtx.optim._step import Step

SEED = "hessian_seed"  # its key in a group
CPU = torch.device("cpu")


class HessianSource:
    """What an optimizer knows of second derivatives: whether a link needs them, and the seed for new groups."""

    def __init__(self, owner: str, tx: GradientTransformation, seed: int):
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"{owner}: seed must be an int, got {seed!r}")
        self.link = next((link._name for link in tx._links() if "hessian_diag" in link._needs), None)
        self._seed = seed

    def mark(self, group: dict[str, Any]) -> None:
        if self.link is not None:
            group.setdefault(SEED, self._seed)

    def seed_of(self, group: Mapping[str, Any]) -> int:
        return int(group.get(SEED, self._seed))


class HessianStep:
    """One step's `hessian_diag`. As a context around the closure it makes `backward` keep a graph if need be."""

    def __init__(self, optimizer: Any, extras: dict[str, Any]):
        self._optimizer, self._source = optimizer, optimizer._hessian
        self._found = self._source.link is not None and "hessian_diag" not in extras
        self._mode: TorchFunctionMode | None = None
        if self._found:
            extras["hessian_diag"] = None

    def __enter__(self) -> None:
        if self._found and self._may_be_due():
            self._mode = _KeepGraph()
            self._mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._mode is not None:
            self._mode.__exit__(*error)
            if error[0] is not None:
                self._cut()

    def _may_be_due(self) -> bool:
        """Whether a parameter that gets a gradient now would use second derivatives."""
        optimizer, run = self._optimizer, self._optimizer._run(initial=False)
        views = optimizer._synced()
        params = [param for view in views for param in view.group["params"] if param.requires_grad]
        if any(optimizer._records[param].layout is None or not optimizer.state.get(param) for param in params):
            return True  # without a state as yet
        for view in views:
            block = Block.of(view.chain(view.values(), CPU), run, optimizer._count())
            for param in filter(lambda param: param.requires_grad, view.group["params"]):
                count = int(optimizer.state[param]["step"])
                leaf = optimizer._leaf(run, param, Clock(torch.tensor(count + 1), count + 1))
                leaf.program = block.for_leaf(leaf)
                if _use(leaf):
                    return True
        run.commits.clear()  # they refer to the run, see `step`
        return False

    def supply(self, step: Step) -> None:
        """Give the leaves of a step their part of the diagonal before anything is written.

        Raises:
            RuntimeError: it is to be estimated from gradients that a GradScaler has scaled.
            ValueError: it is due, and neither given nor to be had.
        """
        if self._source.link is None:
            return
        leaves = step.leaves(step.work)
        signs = [(leaf, sign) for leaf in leaves if (sign := _use(leaf)) is not None]
        due = {leaf.key: leaf.name for leaf, sign in signs if sign}
        if self._found and due and step.scaling is not None:
            raise RuntimeError(
                f"{self._source.link}: hessian_diag can't be estimated from gradients that a GradScaler has scaled; "
                "call step(hessian_diag=...), or train in bfloat16 without a scaler"
            )
        try:
            diagonal = self._estimate(due) if self._found and due else {}
        finally:
            self._cut()
        for leaf, sign in signs:
            if leaf.key in diagonal:
                own = diagonal[leaf.key].to(leaf.wide) * sign
                _give(leaf, own if leaf.window is None else own.reshape(-1)[leaf.window])
            elif leaf.extras.get("hessian_diag") is None:
                if sign:
                    raise ValueError(
                        f"{self._source.link}: hessian_diag of parameter {leaf.name!r} is None at a step that uses a "
                        "new one; pass a tensor, or leave the argument out to have it estimated"
                    )
                # Nobody will look at it; a None means 'keep the last one' to rules, which some don't have.
                _give(leaf, torch.zeros((), device=leaf.device, dtype=leaf.wide).expand(leaf.given[1].shape))
        step.trees = {**step.trees, "hessian_diag": {leaf.name: leaf.extras.get("hessian_diag") for leaf in leaves}}

    def _estimate(self, names: Mapping[Tensor, str]) -> dict[Tensor, Tensor]:
        optimizer = self._optimizer
        params = [param for param in names if param.requires_grad]
        graphs = {param: grad for param in params if (grad := param.grad) is not None and grad.requires_grad}
        if not graphs:
            raise ValueError(
                f"{self._source.link} needs hessian_diag: call step(closure, hessian_diag=...); or leave it out, and "
                "call loss.backward(create_graph=True) before step(), or step(closure) with a closure that calls "
                "loss.backward()"
            )
        counter, seeds = torch.tensor(optimizer._count()), {}
        for group in optimizer.param_groups:
            seeds.update(dict.fromkeys(group["params"], torch.tensor(self._source.seed_of(group))))
        z = {param: Stream(seeds[param], counter, names[param]).rademacher(param.detach()) for param in params}
        vectors = [z[param].to(grad.dtype) for param, grad in graphs.items()]
        columns = torch.autograd.grad(list(graphs.values()), params, vectors, allow_unused=True)
        diagonal = {param: torch.zeros_like(param) for param in names}
        diagonal.update({p: z[p] * column for p, column in zip(params, columns, strict=True) if column is not None})
        return diagonal

    def _cut(self) -> None:
        """Leave no graph behind that the caller did not ask for."""
        for param in self._optimizer._records if self._mode is not None else ():
            if param.grad is not None and param.grad.requires_grad:
                param.grad = param.grad.detach()


class _KeepGraph(TorchFunctionMode):
    """Makes `loss.backward()` differentiable in its turn."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not Tensor.backward:
            return func(*args, **kwargs)
        with warnings.catch_warnings():  # about the cycle of a parameter and its gradient, which is cut after the step
            warnings.filterwarnings("ignore", r"Using backward\(\) with create_graph", UserWarning)
            return func(*args, **{**kwargs, "create_graph": True})


def _give(leaf: Leaf, value: Tensor) -> None:
    leaf.extras = {**leaf.extras, "hessian_diag": value}
    leaf.run.leaf_extras = {*leaf.run.leaf_extras, "hessian_diag"}  # type: ignore[misc]


def _use(leaf: Leaf) -> int | None:
    """None if no link of the leaf reads `hessian_diag`, 0 if none does at this step, else the sign it needs."""
    position = Position(signs=[1], counts=[int(leaf.clock.step) - 1])
    reads, use = False, 0
    for operation in leaf.program:
        operation.follow(position)
        if operation.hessian_period:
            reads = True
            count = position.counts[-1]
            if count is not None and count % operation.hessian_period == 0:
                use = use or position.signs[-1]
    return use if reads else None
