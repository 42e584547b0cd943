"""Estimates `hessian_diag` from the graph of the gradients if the caller does not pass it.

The estimate is one Hessian-vector product with a random vector (Hutchinson), computed only at the steps that use it.
The vector is determined by the seed in the parameter groups and the step count. Both are in the state dict, so a
resumed run is bitwise identical.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradtx.base.dtensor import gradient_like, is_sharded
from gradtx.execution.context import Clock
from gradtx.execution.execute import Block, Leaf, Position
from gradtx.optim._parts import Parts
from gradtx.optim._step import Step
from gradtx.optim._step_input import Extras
from gradtx.state.random import Stream

Diagonal: TypeAlias = dict[Tensor, Tensor]


class HessianStep:
    """Supplies one step of a chain that needs it with `hessian_diag`.

    As a context manager around the closure, lets `backward` keep its graph.

    Args:
        parts: The parts of the optimizer.
        extras: The caller's extras. A `hessian_diag` to be estimated is entered as None.
    """

    def __init__(self, parts: Parts, extras: Extras):
        self._parts = parts
        self._source = parts.hessian
        self._estimates = "hessian_diag" not in extras
        self._mode: Any = None  # active around the closure if the graph is to be kept
        if self._estimates:
            extras["hessian_diag"] = None

    def __enter__(self) -> None:
        if self._estimates and self._may_be_due():
            self._mode = _KeepGraph()
            self._mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._mode is not None:
            self._mode.__exit__(*error)
            if error[0] is not None:
                self._drop_graphs()

    def _may_be_due(self) -> bool:
        """Whether any parameter would use second derivatives if it received a gradient now."""
        members, states = self._parts.members, self._parts.states
        run = states.run()
        count = states.count()
        for view in members.views:
            block = Block.of(view.chain(view.values()), run, count)
            for param in view.group["params"]:
                if not param.requires_grad:
                    continue
                member, state = members.by_param[param], states.of(param)
                if member.layout is None or not state:
                    return True  # without state the answer is unknown
                made = int(state["step"])
                clock = Clock(torch.tensor(made + 1), made + 1)
                leaf = states.leaf(run, member, clock)
                leaf.program = block.for_leaf(leaf)
                if sign_of_use(leaf):
                    return True
        run.commits.clear()  # breaks a reference cycle with the run
        return False

    def supply(self, step: Step) -> None:
        """Pass each leaf of a step its part of the diagonal, before the step writes anything.

        Raises:
            RuntimeError: If the diagonal would have to be estimated from gradients that a GradScaler has scaled.
            ValueError: If the diagonal is due, but was neither passed nor can be estimated.
        """
        leaves = step.leaves(step.members)
        signs = list(map(sign_of_use, leaves))
        due: dict[Tensor, str] = {}
        for leaf, sign in zip(leaves, signs, strict=True):
            if sign and leaf.has_gradient:
                due[leaf.key] = leaf.name
        try:
            diagonal = self._diagonal(due, step)
        finally:
            self._drop_graphs()
        for leaf, sign in zip(leaves, signs, strict=True):
            if sign is not None:
                self._supply_leaf(leaf, sign, diagonal)
        tree = {leaf.name: leaf.extras.get("hessian_diag") for leaf in leaves}
        step.trees = {**step.trees, "hessian_diag": tree}

    def _diagonal(self, due: Mapping[Tensor, str], step: Step) -> Diagonal:
        """Estimate the diagonal for the parameters that are due; return an empty dict if the caller passed one."""
        if not self._estimates or not due:
            return {}
        if step.scaling is not None:
            raise RuntimeError(
                f"{self._source.link}: hessian_diag cannot be estimated from gradients that a GradScaler has "
                "scaled; call step(hessian_diag=...), or train in bfloat16 without a scaler"
            )
        return self._estimate(due)

    def _supply_leaf(
        self,
        leaf: Leaf,
        sign: int,
        diagonal: Diagonal,
    ) -> None:
        if leaf.key in diagonal:
            value = diagonal[leaf.key].to(leaf.compute_dtype) * sign
        elif leaf.extras.get("hessian_diag") is not None:
            return
        elif not sign:
            # No rule reads it in this step. A zero, because None means "keep the last one", which some rules lack.
            zero = torch.zeros((), device=leaf.device, dtype=leaf.compute_dtype)
            value = zero.expand(leaf.inputs[1].shape)
        elif leaf.has_gradient:
            raise ValueError(
                f"{self._source.link}: hessian_diag of parameter {leaf.name!r} is None at a step that requires "
                "a new one; pass a tensor, or omit the argument to have it estimated"
            )
        else:
            return  # None: it keeps the last one
        leaf.extras = {**leaf.extras, "hessian_diag": value}
        leaf.run.leaf_extras = {*leaf.run.leaf_extras, "hessian_diag"}  # type: ignore[misc]

    def _estimate(self, names: Mapping[Tensor, str]) -> Diagonal:
        """Return z * (H z) for the parameters in `names`, and zeros for parameters on which no gradient depends."""
        params = [param for param in names if param.requires_grad]
        gradients: Diagonal = {}
        for param in params:
            if param.grad is not None and param.grad.requires_grad:
                gradients[param] = param.grad
        if not gradients:
            error = (
                f"{self._source.link} needs hessian_diag: call step(closure, hessian_diag=...); or omit it, and "
                "call loss.backward(create_graph=True) before step(), or step(closure) with a closure that calls "
                "loss.backward()"
            )
            if any(map(is_sharded, params)):
                error += (
                    "; under FSDP2, pass it, because its gradients never have a graph"
                )
            raise ValueError(error)
        z = self._random_vectors(names)
        vectors = [z[param].to(gradient.dtype) for param, gradient in gradients.items()]
        try:
            columns: Any = torch.autograd.grad(
                list(gradients.values()), params, vectors, allow_unused=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"{self._source.link}: hessian_diag cannot be estimated, because a part of the model has no second "
                f"derivative ({error}); call step(closure, hessian_diag=...), or replace this part: a model under "
                "torch.compile by the plain module, fused attention by SDPBackend.MATH"
            ) from error
        diagonal = {param: torch.zeros_like(param) for param in names}
        for param, column in zip(params, columns, strict=True):
            if column is not None:
                diagonal[param] = gradient_like(z[param] * column, param)
        return diagonal

    def _random_vectors(self, names: Mapping[Tensor, str]) -> Diagonal:
        counter = torch.tensor(self._parts.states.count())
        vectors: Diagonal = {}
        for view in self._parts.members.views:
            seed = torch.tensor(self._source.seed_of(view.group))
            for param in names.keys() & set(view.group["params"]):
                stream = Stream(seed, counter, names[param])
                vectors[param] = stream.rademacher(param.detach())
        return vectors

    def _drop_graphs(self) -> None:
        """Detach gradients whose graph was kept only for the estimate."""
        if self._mode is None:
            return
        for param in self._parts.members.by_param:
            if param.grad is not None and param.grad.requires_grad:
                param.grad = param.grad.detach()


BACKWARD: Any = Tensor.__dict__.get("backward")


class _KeepGraph(TorchFunctionMode):
    """Adds `create_graph=True` to `loss.backward()`, so that gradients can be differentiated."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not BACKWARD:
            return func(*args, **kwargs)
        # Ignore the reference-cycle warning: `_drop_graphs` breaks the cycle.
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", r"Using backward\(\) with create_graph", UserWarning
            )
            return func(*args, **{**kwargs, "create_graph": True})


def sign_of_use(leaf: Leaf) -> int | None:
    """Return the sign that `hessian_diag` needs; 0 if no link uses it at this step, None if none ever reads it."""
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
