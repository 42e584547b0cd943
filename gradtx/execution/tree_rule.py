"""Operations for functions of whole trees: those of `@whole_tree` factories, and plain pairs as in optax."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gradtx.base.errors import Path
from gradtx.base.jacobian import Jacobian, Vectorizer
from gradtx.base.messages import note_rule
from gradtx.distributed.redistribution import full_tensor
from gradtx.execution.context import OF_LOSS, Clock, Context, negated
from gradtx.execution.execute import Leaf, Operation, Steps
from gradtx.execution.leaf_rule import without_params
from gradtx.execution.runs import Run, Scope
from gradtx.execution.traits import Traits
from gradtx.slots import Slot, declared, init_of
from gradtx.state.slots import check_slots
from gradtx.state.storage import Store

PLAIN_EXTRAS = ("value", "hessian_diag")  # the extras that plain functions may accept
# Must be in `needs`: a step that calls them writes nothing before the call.
CALLED_EXTRAS = ("grad_fn", "value_fn")


class Functions(NamedTuple):
    """The functions that the body of a factory returns, and what it declares of its slots."""

    init: Any
    update: Callable[..., Any]
    evaluate: Callable[..., Any] | None = None
    slots: Mapping[str, Slot] = {}

    def slot(self, name: str) -> Slot:
        """Return what is known of a slot."""
        return self.slots.get(name, Slot(torch.zeros_like))

    @classmethod
    def of(cls, returned: Any, name: str) -> Functions:
        functions: tuple[Any, ...] = (
            returned if isinstance(returned, tuple) else (None, returned)
        )
        has_functions = all(map(callable, functions[1:]))
        if not (has_functions and 2 <= len(functions) <= 3):
            raise TypeError(
                f"{name}: must return update, (init, update) or (init, update, evaluate), got {returned!r}"
            )
        made = cls(*functions)
        if not isinstance(made.init, Mapping):
            return made
        slots = declared(made.init)
        return made._replace(init=init_of(slots), slots=slots)


class TreeOperation(Operation):
    """Run functions of dicts keyed by leaf name. All leaves wait until `combine` calls the function once.

    The state is stored as slots (dicts keyed by leaf name) and shared 0-d tensors.
    """

    def __init__(
        self,
        path: Path,
        scope: Scope,
        name: str,
        functions: Functions,
        agree: Mapping[str, Any],
        capturable: bool = False,
        makes_gradient: bool = False,
        closure_extra: str = "",
    ):
        if makes_gradient and scope.negated:
            raise ValueError(
                f"{name}: maximize=True has no meaning for what computes its own gradient of a loss; minimize the "
                "negated loss"
            )
        if scope.restarts is not False:
            raise TypeError(
                f"{name}: processes whole trees, whose state a restart cannot reset; move it outside"
            )
        if scope.space is not None:
            around = scope.space.name
            raise TypeError(
                f"{name}: processes whole trees, whose slots {around} cannot transform; move it outside {around}"
            )
        self.path = path
        self.traits = Traits(
            elementwise=False,
            takes_complex=False,
            refusal="it processes whole trees at once",
            capturable=capturable,
            agree=agree,
            waits=True,
            makes_gradient=makes_gradient,
            closure_extra=closure_extra,
            needs_all_rows="it processes whole trees at once",
        )
        self._run: Run = scope.run
        self._name = name
        self._functions = functions
        self._store = Store(
            path,
            name,
            scope.state_dtype,
            functions.slot,
            scope.run,
            is_amplified=scope.amplified,
        )
        self._run.free.add(path)

    def compute_dtype(self, leaf: Leaf) -> torch.dtype:
        """Return the dtype of all tensors that the functions receive: a wide state or an earlier link may widen it."""
        dtype = self._store.compute_dtype(leaf)
        if leaf.update is None:
            return dtype
        return torch.promote_types(dtype, leaf.update.dtype)

    def check_dtype(self, leaf: Leaf) -> None:
        """Refuse a leaf whose dtype cannot hold what the functions compute."""
        if self.traits.makes_gradient and leaf.param_dtype is torch.float16:
            raise TypeError(
                f"{self._name}: leaf {leaf.name!r} has dtype torch.float16, in which derivatives of residuals round to "
                "0; use bfloat16, float32 or float64"
            )

    def init_all(self, members: list[Leaf]) -> None:
        for leaf in members:
            self.check_dtype(leaf)
        if self._functions.init is not None:
            leaves = {leaf.name: leaf for leaf in members}
            params = self._tree(self._widened(leaves, "param"))
            try:
                state = self._functions.init(params)
            except Exception as error:
                note_rule(error, self._name, members)
                raise
            self._keep(state, leaves)

    def _keep(self, state: Any, leaves: Mapping[str, Leaf]) -> None:
        """Store a state that a function returned."""
        if not state:
            return
        of_leaf = self._split(state, leaves)
        for name, leaf in leaves.items():
            slots = of_leaf.get(name, {})
            if not self._run.initial:
                stored = self._encoded(slots, leaf)
            else:
                check_slots(slots, self._name)
                like = self._wide(leaf, leaf.param)
                stored = self._store.first(slots, like, leaf, None)
            if slots:
                leaf.new[self.path] = stored

    def _split(
        self, state: Any, leaves: Mapping[str, Leaf]
    ) -> dict[str, dict[str, Tensor]]:
        """Store the shared values of a state that a function returned, and return the slots of each leaf."""
        of_leaf = {}
        shared: dict[str, Tensor] = {}
        if not isinstance(state, dict):
            state = {"": state}
        for slot, value in state.items():
            if isinstance(value, Tensor) and value.ndim == 0:
                shared[slot] = full_tensor(value)
            elif isinstance(value, dict) and value.keys() <= leaves.keys():
                for name, tensor in value.items():
                    of_leaf.setdefault(name, {})[slot] = tensor
            else:
                raise TypeError(
                    f"{self._name}: its state {slot!r} is neither a dict keyed by leaf name nor a 0-d tensor; "
                    "return only these"
                )
        self._run.new_shared[self.path] = shared
        return of_leaf

    def start(self, leaf: Leaf) -> Steps:
        # Nothing to send: `combine` reads the leaves themselves.
        updates, gradients = yield True
        self._set_update(leaf, updates[leaf.name])
        if gradients is not None:
            leaf.grad = self._wide(leaf, gradients[leaf.name])

    def combine(self, waiting: list[tuple[Leaf, Any]]) -> Any:
        leaves = {leaf.name: leaf for leaf, _ in waiting}
        try:
            out = self._call_update(leaves)
        except Exception as error:
            note_rule(error, self._name, leaves.values())
            raise
        size = 3 if self.traits.makes_gradient else 2
        if not (isinstance(out, tuple) and len(out) == size):
            more = ", gradients" if size == 3 else ""
            raise TypeError(
                f"{self._name}: update must return (updates, state{more}), got {type(out).__name__}"
            )
        updates, state, *gradients = out
        self._keep(state, leaves)
        update_of_leaf = self._by_name(updates)
        for name in leaves:
            if not isinstance(update_of_leaf, dict) or not isinstance(
                update_of_leaf.get(name), Tensor
            ):
                raise TypeError(
                    f"{self._name}: update must return a tensor for each leaf, got none for {name!r}"
                )
        return update_of_leaf, gradients[0] if gradients else None

    def _call_update(self, leaves: dict[str, Leaf]) -> Any:
        updates = self._tree(self._widened(leaves, "update"))
        state = self._old(leaves)
        params = None
        if all(leaf.param is not None for leaf in leaves.values()):
            params = self._tree(self._widened(leaves, "param"))
        try:
            return self._updated(leaves, updates, state, params)
        except (AttributeError, TypeError) as error:
            if params is None and "NoneType" in str(error):
                raise without_params(
                    self._name, error, isinstance(self, PlainOperation)
                ) from error
            raise

    def _updated(
        self, leaves: dict[str, Leaf], updates: Any, state: Any, params: Any
    ) -> Any:
        """Call the user's function."""
        gradients = self._widened(leaves, "grad")
        context = TreeContext(leaves, gradients, self.path)
        return self._functions.update(updates, state, params, context)

    def _wide(self, leaf: Leaf, tensor: Any) -> Any:
        """Return a tensor of a leaf in the dtype that the functions compute in."""
        return None if tensor is None else tensor.to(self.compute_dtype(leaf))

    def _widened(
        self, leaves: Mapping[str, Leaf], attribute: Literal["update", "param", "grad"]
    ) -> dict[str, Any]:
        """Return a tensor of each leaf, by name, in the dtype that rules compute in."""
        return {
            name: self._wide(leaf, getattr(leaf, attribute))
            for name, leaf in leaves.items()
        }

    def _old(self, leaves: dict[str, Leaf]) -> Any:
        state: dict[str, Any] = dict(self._run.scalars(self.path))
        for name, leaf in leaves.items():
            stored = self._run.slots(self.path, leaf)
            values = self._store.decode_slots(stored, self.compute_dtype(leaf), leaf)
            for slot, value in values.items():
                state.setdefault(slot, {})[name] = value
        return state

    def _encoded(self, slots: dict[str, Tensor], leaf: Leaf) -> dict[str, Tensor]:
        """Return the new slots of a leaf as they are stored, or the old ones if it is skipped."""
        old = self._run.slots(self.path, leaf)
        kept = self._store.slots_of(old, leaf)
        if kept != set(slots):
            raise ValueError(
                f"{self._name}: the slots of leaf {leaf.name!r} must remain {sorted(kept)}, got {sorted(slots)}"
            )
        return leaf.unless_skipped(self._store.encode_slots(slots, old, leaf), old)

    def _set_update(self, leaf: Leaf, update: Tensor) -> None:
        if update.shape != leaf.update.shape:
            raise ValueError(
                f"{self._name}: leaf {leaf.name!r} has shape {tuple(leaf.update.shape)}, "
                f"but its update has shape {tuple(update.shape)}"
            )
        leaf.update = self._wide(leaf, update)

    # Conversion between leaves by name and the trees that the functions receive and return.

    def _tree(self, values: dict[str, Any]) -> Any:
        return values

    def _by_name(self, tree: Any) -> Any:
        return tree


class PlainOperation(TreeOperation):
    """Run a pair of plain functions, which receive trees in the caller's structure, and no context.

    Extras are passed to parameters with their names, or to `**extras`. In functional use the state is stored exactly
    as the functions return it.
    """

    def __init__(self, path: Path, scope: Scope, name: str, functions: Functions):
        super().__init__(path, scope, name, functions, agree={})
        self._extras = extras_of(functions.update)
        self._opaque = self._run.is_pure
        if self._opaque:
            self._run.opaque.add(path)

    def _old(self, leaves: dict[str, Leaf]) -> Any:
        return self._run.tree(self.path) if self._opaque else super()._old(leaves)

    def _keep(self, state: Any, leaves: Mapping[str, Leaf]) -> None:
        if self._opaque:
            self._run.new_trees[self.path] = state
        else:
            super()._keep(state, leaves)

    def _tree(self, values: dict[str, Any]) -> Any:
        return self._run.whole(values)

    def _by_name(self, tree: Any) -> Any:
        return self._run.by_name(tree)

    def _updated(
        self, leaves: dict[str, Leaf], updates: Any, state: Any, params: Any
    ) -> Any:
        context = TreeContext(leaves, self._widened(leaves, "grad"), self.path)
        available = {"value": context.value}
        if "hessian_diag" in self._run.leaf_extras:
            available["hessian_diag"] = self._tree(context.hessian_diag)
        extras = {}
        for name, value in available.items():
            if name in self._extras and value is not None:
                extras[name] = value
        return self._functions.update(updates, state, params, **extras)


def check_plain(update: Callable[..., Any]) -> None:
    """Reject a plain function with a parameter for an extra that plain functions do not receive.

    Raises:
        TypeError: If `update` has such a parameter.
    """
    parameters = _parameters(update)
    for name in CALLED_EXTRAS:
        if name in parameters:
            raise TypeError(
                f"GradientTransformation: plain functions do not receive {name!r}, but update has this parameter; "
                f"write a rule for whole trees, @gradtx.whole_tree(needs=({name!r},))"
            )


def extras_of(update: Callable[..., Any]) -> tuple[str, ...]:
    """Return the extras that a plain function accepts, as parameters with their names or by `**extras`."""
    parameters = _parameters(update)
    if any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    ):
        return PLAIN_EXTRAS
    return tuple(name for name in PLAIN_EXTRAS if name in parameters)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a function without a signature
        return {}


class GradientOperation(TreeOperation):
    """Run a function of whole trees whose result also replaces the gradient that later links read."""

    def _set_update(self, leaf: Leaf, update: Tensor) -> None:
        super()._set_update(leaf, update)
        leaf.grad = leaf.update


def _latest(leaves: Iterable[Leaf]) -> Clock:
    """Return the clock with the highest count, independent of the order of the leaves."""
    clocks = {leaf.clock: leaf.device for leaf in leaves}
    first, device = next(iter(clocks.items()))
    if len(clocks) == 1:
        return first
    if all(clock.step_on_host is not None for clock in clocks):
        return max(clocks, key=lambda clock: clock.step_on_host or 0)
    return Clock(torch.stack([clock.step.to(device) for clock in clocks]).amax())


class TreeContext(Context):
    """The context of a `@whole_tree` rule: like `Context`, with dicts keyed by leaf name instead of single tensors."""

    def __init__(self, leaves: dict[str, Leaf], gradients: dict[str, Any], path: Path):
        self._path = path
        self._first = next(iter(leaves.values()))
        self._leaves = leaves
        self._gradients = gradients
        super().__init__(
            self._first, _latest(leaves.values()), self._first.compute_dtype
        )

    @property
    def grad(self) -> Any:
        return self._gradients

    def linearized(
        self,
        extra: str,
        finish: Vectorizer,
        params: dict[str, Tensor],
    ) -> Jacobian:
        """Return the Jacobian, by these leaves, of the vector that `finish` makes of what an extra returns.

        Args:
            extra: The name of a function of the parameters among the extras of the call.
            finish: Returns a vector, without operations that stop derivatives.
            params: The present values of the leaves, by name.
        """
        return self._first.run.linearized(extra, finish, params)

    def evaluated(
        self,
        extra: str,
        finish: Vectorizer,
        params: dict[str, Tensor],
    ) -> Tensor:
        """Return the vector of `linearized` with some leaves at other values."""
        return self._first.run.evaluated(extra, finish, params)

    def tell_loss(self, problem: Any) -> None:
        """Tell later links the loss of a problem, as `value`, and as `value_fn` of other parameters."""
        run = self._first.run
        if run.estimated_loss is None:
            run.estimated_loss = problem.loss
            run.follow_loss(problem.extra, problem.finish, problem.loss_of)
        for leaf in self._leaves.values():
            if leaf.extras.get("value") is None:
                leaf.extras = {**leaf.extras, "value": problem.loss}

    def report(self, way: Any, measured: Mapping[str, Tensor]) -> None:
        """Report how the step was computed, for `explain()`, and what `watch` shows of it."""
        run = self._first.run
        run.ways[self._path] = str(way)
        run.measured[self._path] = dict(measured)

    def typical_call(self, how: str) -> str:
        """Return how a caller passes an extra, for messages."""
        return self._first.run.typical_call(how)

    def grad_fn(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients at `params` (by leaf name; missing leaves keep their current values)."""
        gradients = self._first.run.gradients_at(params)
        return negated(gradients) if self._negated else gradients

    def value_along(
        self,
        origin: dict[str, Tensor],
        direction: dict[str, Tensor],
        length: Tensor,
        sloped: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss at `origin` + length x direction (by leaf name; others stay), and if `sloped`, its slope."""
        ends = self._first.run.value_along(origin, direction, length, sloped)
        return negated(ends) if self._negated else ends

    def __getattr__(self, name: str) -> Any:
        # While a context is being copied, its attributes are not set yet.
        attributes = self.__dict__
        if "_leaves" in attributes and name in self._first.run.leaf_extras:
            tree = {key: leaf.extras.get(name) for key, leaf in self._leaves.items()}
            return negated(tree) if self._negated and name in OF_LOSS else tree
        return super().__getattr__(name)
