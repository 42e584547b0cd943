"""Minimize a loss with any chain, as a function whose result has the gradient of the minimum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import is_number, tensors_in
from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.messages import describe, warn_user
from gradtx.execution.context import selected_tree
from gradtx.functional import LossAt
from gradtx.meta import graphs as _graphs
from gradtx.meta.implicit import custom_root
from gradtx.transform import (
    GradientTransformation,
    apply_updates,
    check_transformation,
)

__all__ = ["minimize"]

Until: TypeAlias = float | Callable[[Any, Any, Tensor], Any]


def minimize(
    tx: GradientTransformation,
    loss: Callable[..., Tensor],
    start: Any,
    *args: Any,
    steps: int,
    until: float | Callable[..., Any] | None = None,
    solve: str | Callable[..., Any] = "cg",
    nondiff: str | int | Iterable[str | int] = (),
    **linear: Any,
) -> Any:
    r"""Minimize a loss with a chain, and return the minimum, which has a gradient by `args`.

    The steps are not recorded: memory does not depend on their number, and the gradient costs one linear solve with the
    Hessian of the loss, as in `custom_root` with `optimality=torch.func.grad(loss)`. It is the gradient of the minimum
    of the loss, whatever the chain and its hyperparameters, and as exact as the minimum. So decay belongs into the
    loss: `weight_decay` in the chain moves the result away from the minimum of the loss, and the gradient does not know
    it; the same holds for `freeze` (pass frozen weights in `args`).

    Args:
        tx: The chain that steps.
        loss: `loss(params, *args)`, a 0-d tensor; twice differentiable.
        start: The first parameters, a tree of tensors. The result has no gradient by them.
        *args: What the loss needs besides: hyperparameters, weights, data.
        steps: The largest number of steps.
        until: When to stop earlier: where the norm of all gradients is at most this number; or a function `(params,
            gradients, value)` that returns a bool or a 0-d tensor of one. Under `torch.vmap`, each member stops on its
            own, and the loop ends with the last one. A check waits for the device. None runs all steps.
        solve: How to solve the linear system, as in `custom_root`.
        nondiff: Names, or positions in `args`, of arguments without gradients.
        **linear: Further options of `custom_root`: `tolerance`, `max_steps`, `ridge`, `precondition`, `unconverged`.

    Returns:
        A tree like `start`: the weights for evaluation, if the chain has some (averages, schedule-free).

    Raises:
        TypeError: If `tx` is not a transformation, or if an option of `custom_root` is unknown.
        ValueError: If `steps` or `until` is out of range, if the loss is not 0-d, or if `tx` needs residuals, which
            `least_squares` takes; also the errors of `custom_root`.

    A warning says if `until` is not reached within `steps`.

    Example:
        >>> def loss(w, target, decay):
        ...     return (w - target).square().sum() / 2 + decay * w.square().sum() / 2
        >>> def outer(decay):
        ...     start, target = torch.zeros(2), torch.tensor([2.0, 4.0])
        ...     return gradtx.minimize(
        ...         gradtx.adam(lr=0.1), loss, start, target, decay, steps=500, until=1e-5
        ...     ).sum()
        >>> torch.func.grad(outer)(torch.tensor(1.0))  # of 6 / (1 + decay)
        tensor(-1.5000)
    """
    _check(tx, steps, until)
    if torch.compiler.is_dynamo_compiling():
        options = tuple(linear.items())
        chosen = (steps, until, solve, nondiff, options)
        node = None
        # Dynamo has no values of a chain that the compiled function makes.
        if _torch.TRACES_OBJECTS and not (tx._is_traced or tx._origin):
            # Dynamo guards functions whose ids it takes, and only the code of others.
            arguments = (tx, loss, until, solve, *linear.values())
            ids = tuple(
                id(value) for value in arguments if callable(value) or value is tx
            )
            node = _graphs.solution(
                (start, *args),
                lambda structure, are_real: _node_key_of(
                    ids, tx, loss, *chosen, structure, are_real
                ),
            )
        return _untraced(tx, loss, start, args, *chosen) if node is None else node[0]
    # Tensors of a transform that a node's function reads from outside are errors of torch.
    varying = {n: value for n, value in tx.hyperparams.items() if tensors_in(value)}
    solver = _solver(tx, loss, steps, until, solve, nondiff, linear)
    return solver(start, *args, hyperparams=varying)


def _check(tx: Any, steps: Any, until: Any) -> None:
    check_transformation("minimize", "tx", tx)
    kinds, _ = tx._requirements()
    if "residual_fn" in kinds:
        raise ValueError(
            f"minimize: {tx._name} steps by residuals, and the loss alone does not tell the residuals; call "
            "least_squares(residual_fn, start, ..., tx=...)"
        )
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"minimize: steps must be in [1, inf), got {describe(steps)}")
    if until is None or callable(until):
        return
    if not is_number(until) or until < 0:
        raise ValueError(
            f"minimize: until must be a number in [0, inf) or a function of (params, gradients, value), got "
            f"{describe(until)}"
        )


def _solver(
    tx: GradientTransformation,
    loss: Callable[..., Tensor],
    steps: int,
    until: Until | None,
    solve: Any,
    nondiff: Any,
    linear: Mapping[str, Any],
) -> Any:
    """Return the function of `(start, *args)` that minimizes."""

    def optimality(params: Any, *args: Any) -> Any:
        return LossAt(loss, args).gradients(params)[0]

    def solver(start: Any, *args: Any, hyperparams: Any = None) -> Any:
        stepper = tx.replace(**hyperparams) if hyperparams else tx
        # torch.func.grad works inside, and nothing else is recorded.
        with torch.no_grad():
            return _minimized(stepper, LossAt(loss, args), start, steps, until)

    # `nondiff` names arguments of the loss.
    optimality.__wrapped__ = loss  # type: ignore[attr-defined]
    solved: Any = custom_root(optimality, solve=solve, nondiff=nondiff, **linear)(
        solver
    )
    solved.implicit.who = "minimize"  # in messages
    return solved


@_torch.assume_constant
def _node_key_of(
    ids: tuple[int, ...],
    tx: Any,
    loss: Any,
    steps: int,
    until: Any,
    solve: Any,
    nondiff: Any,
    options: Any,
    structure: Any,
    are_real: tuple[bool, ...],
) -> str:
    """Return the key of a node for a chain and a loss that exist before the compiled function runs."""
    implicit = _solver(tx, loss, steps, until, solve, nondiff, dict(options)).implicit
    # As long as the chain, whose program the graph may run.
    tx._set(_graph_nodes=(*tx._graph_nodes, implicit))
    return _graphs.node_key_of(implicit, structure, are_real)


@_torch.not_traced
def _untraced(
    tx: Any,
    loss: Any,
    start: Any,
    args: Any,
    steps: Any,
    until: Any,
    solve: Any,
    nondiff: Any,
    options: Any,
) -> Any:
    """Run outside of the compiled graph: a graph of all steps would take hours."""
    chosen = {"steps": steps, "until": until, "solve": solve, "nondiff": nondiff}
    return minimize(tx, loss, start, *args, **chosen, **dict(options))


def _minimized(
    tx: GradientTransformation,
    at: LossAt,
    start: Any,
    steps: int,
    until: Until | None,
) -> Any:
    params, state = start, tx.init(start)
    done: Tensor | None = None
    for _ in range(steps):
        grads, value = _evaluated(at, params)
        if until is not None:
            done = _reached(until, params, grads, value, done)
            if not _torch.any_member(~done):
                return tx.eval_params(state, params)
        updates, new_state = tx.update(grads, state, params, **at.extras(value))
        new_params = apply_updates(params, updates)
        if done is not None and _torch.is_batched(done):
            new_params = selected_tree(done, params, new_params)
            new_state = selected_tree(done, state, new_state)
        params, state = new_params, new_state
    if until is not None:
        grads, value = _evaluated(at, params)
        if _torch.any_member(~_reached(until, params, grads, value, done)):
            _warn(steps, until, grads)
    return tx.eval_params(state, params)


def _evaluated(at: LossAt, params: Any) -> tuple[Any, Tensor]:
    """Return gradients and loss."""

    def checked(params: Any, *args: Any) -> Tensor:
        value = at.loss_fn(params, *args)
        if not isinstance(value, Tensor) or value.ndim:
            raise ValueError(
                f"minimize: the loss must be a 0-d tensor, got {describe(value)}"
            )
        return value

    if _torch.inside_transform() or torch.compiler.is_compiling():
        grads, (value, _) = LossAt(checked, at.batch).gradients(params)
        return grads, value
    # Backward of plain tensors takes less than half of the time of torch.func.grad, for small models.
    tensors, rebuild = _tree.split(params)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        value = checked(rebuild(leaves), *at.batch)
    if not value.requires_grad:
        return rebuild([torch.zeros_like(tensor) for tensor in tensors]), value
    grads = torch.autograd.grad(value, leaves, materialize_grads=True)
    return rebuild(grads), value.detach()


def _reached(
    until: Until, params: Any, grads: Any, value: Tensor, done: Tensor | None
) -> Tensor:
    """Return whether the minimum is reached, or was before."""
    is_function = callable(until)
    reached = until(params, grads, value) if is_function else _norm(grads) <= until
    reached = torch.as_tensor(reached, device=value.device)
    return reached if done is None else done | reached


def _norm(grads: Any) -> Tensor:
    total = torch.zeros(())
    for leaf in _tree.tensors(grads):
        exact = leaf.to(torch.promote_types(leaf.dtype, torch.float32))
        total = total.to(leaf.device) + exact.square().sum()
    return total.sqrt()


def _warn(steps: int, until: Until, grads: Any) -> None:
    norm = _torch.largest_of_members(_norm(grads))
    aim = "`until` is not true" if callable(until) else f"above until={until:.1e}"
    warn_user(
        f"minimize: after {steps} steps the norm of the gradient is {norm:.1e}, {aim}, and a gradient of the result "
        "is that of a minimum; take more steps or a larger rate, without weight_decay in the chain and frozen weights"
    )
