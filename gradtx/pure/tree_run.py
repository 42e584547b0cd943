"""Functional use: trees in, trees out. There is a single group, whose state is one nested dict."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.complex_views import real_views
from gradtx.base.errors import OWN_STATE, Path, foreign, lacking
from gradtx.base.exact import CPU, is_stored_only
from gradtx.base.forward import Transformation
from gradtx.base.jacobian import FunctionJacobian, Jacobian, Vectorizer
from gradtx.base.messages import warn_user
from gradtx.base.plain import DTYPE, SHAPE, TYPES, are_strided
from gradtx.base.vectors import JointVector
from gradtx.distributed.redistribution import completed
from gradtx.execution.context import Clock
from gradtx.execution.execute import (
    FROZEN,
    Leaf,
    Observer,
    Route,
    evaluation_weights,
    execute,
    initialize,
    prepare,
)
from gradtx.execution.extras import (
    add_extras,
    as_scalar,
    check_examples,
    check_extras,
    check_extras_of,
    split_extras,
)
from gradtx.execution.listed_rows import with_rows_added
from gradtx.execution.runs import Run, moved_along
from gradtx.pure.structures import (
    UnsuitableError,
    have_own_names,
    is_flat,
    structure_of,
    tree_of,
)
from gradtx.state.nested import (
    LEAF_STEPS,
    NestedState,
    can_be_kept,
    check_plain,
    enter,
)
from gradtx.state.slots import kind_of
from gradtx.state.storage import check_patterns

LONG = 100  # updates of one graph, after which a loop is warned


class UpdateCall(NamedTuple):
    """The arguments of `update`."""

    tx: Transformation
    updates: Any
    state: Any
    params: Any
    extras: dict[str, Any]


class TreeRun(Run):
    """A run whose old state is a nested dict, as created by `init`.

    Attributes:
        route: The expanded transformation.
        names: The leaves of the parameters, or of the updates if there are none, by name.
        clock: The outermost clock.
        old_step: The count of finished updates.
        unflatten_params: The function that rebuilds the tree of the caller's parameters.
        extras: The caller's extras.
        choices: The decisions of selectors for each leaf, by path.
    """

    is_pure = True
    unflatten_params: Any
    extras: dict[str, Any]

    def __init__(
        self,
        tx: Transformation,
        like: dict[str, Any],
        unflatten: Any,
        state: Any = None,
    ):
        super().__init__()
        self._unflatten = unflatten
        self.names = like
        self.initial = state is None
        devices = (leaf.device for leaf in like.values() if leaf is not None)
        self.device = next(devices, CPU)
        if state is None:
            self.old_step = torch.zeros((), dtype=torch.int64, device=self.device)
        elif isinstance(state, dict) and isinstance(state.get("step"), Tensor):
            self.old_step = _checked_count("step", state["step"])
        else:
            raise ValueError(
                f"{tx._name}: state is not a dict with a 'step'; {OWN_STATE}"
            )
        self._old = NestedState(state or {}, self.stages)
        self.choices: dict[str, dict[Path, Any]] = {}
        self.clock = Clock(self.old_step + 1)
        self.leaf_steps = (
            None if state is None else _checked_leaf_steps(state.get(LEAF_STEPS))
        )
        self.route = Route.of(tx, self, self.schedule_count())

    def release(self) -> None:
        super().release()
        self.route = Route([], [])
        self.extras = {}  # a loss that follows from residuals refers to the run

    def schedule_count(self) -> Tensor:
        """Return the count that schedules follow: the finished updates in which any leaf had a gradient."""
        return self.old_step

    def clock_of(self, name: str) -> Clock:
        """Return the outermost clock of a leaf."""
        if self.leaf_steps is None:
            return self.clock
        if name not in self.leaf_steps:
            raise lacking((LEAF_STEPS,), name)
        return Clock(self.leaf_steps[name] + 1)

    def scalars(self, path: Path) -> dict[str, Tensor]:
        return self._old.scalars(path)

    def shared(
        self, path: Path, start: Mapping[str, Callable[[], Tensor]]
    ) -> dict[str, Tensor]:
        for name, value in self.scalars(path).items():
            check_plain((*path, name), value)
        values = super().shared(path, start)
        for name, value in values.items() if not self.initial else ():
            if not value.is_floating_point():
                continue
            needed = start[name]().dtype
            if kind_of(needed) != "float":
                raise ValueError(
                    f"state has {'.'.join((*path, name))!r} of dtype {value.dtype}, needs {needed}; {OWN_STATE}"
                )
        return values

    def slots(self, path: Path, leaf: Leaf) -> dict[str, Tensor]:
        slots = self._old.slots_of(path, leaf.name)
        return real_views(slots) if leaf.is_complex else slots

    def tree(self, path: Path) -> Any:
        return self._old.tree(path)

    def whole(self, values: dict[str, Any]) -> Any:
        return self._unflatten({name: values.get(name) for name in self.names})

    def by_name(self, tree: Any) -> dict[str, Any]:
        return _tree.match(
            tree,
            self.names,
            "updates returned by a plain function",
            "the updates given to it",
        )

    def _params_with(self, values: dict[str, Tensor]) -> Any:
        """Return the caller's parameters with some leaves replaced."""
        moved = {
            name: value.to(self.names[name].dtype) for name, value in values.items()
        }
        return self.unflatten_params({**self.names, **moved})

    def gradients_at(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        gradients = _tree.match(
            self.extras["grad_fn"](self._params_with(values)),
            self.names,
            "gradients from grad_fn",
            "params",
        )
        at = {}
        for name, value in values.items():
            gradient = gradients[name]
            at[name] = (
                torch.zeros_like(value)
                if gradient is None
                else gradient.to(value.dtype)
            )
        return at

    def value_along(
        self,
        origin: dict[str, Tensor],
        direction: dict[str, Tensor],
        length: Tensor,
        sloped: bool,
    ) -> tuple[Tensor, Tensor | None]:
        def value_at(length: Tensor) -> Tensor:
            moved = self._params_with(moved_along(origin, direction, length))
            value = self.extras["value_fn"](moved)
            return as_scalar("the result of value_fn", value)

        if not sloped:
            return value_at(length), None
        slope, value = torch.func.grad_and_value(value_at)(length)
        return value, slope

    def linearized(
        self,
        extra: str,
        finish: Vectorizer,
        params: dict[str, Tensor],
    ) -> Jacobian:
        joint = JointVector(list(params.values()))

        def function(vector: Tensor) -> Tensor:
            values = dict(zip(params, joint.parts(vector), strict=True))
            return self.evaluated(extra, finish, values)

        return FunctionJacobian(function, joint, joint.joined(list(params.values())))

    def evaluated(
        self,
        extra: str,
        finish: Vectorizer,
        params: dict[str, Tensor],
    ) -> Tensor:
        return finish(self.extras[extra](self._params_with(params)))

    def follow_loss(
        self, extra: str, finish: Vectorizer, loss_of: Callable[[Tensor], Tensor]
    ) -> None:
        if self.extras.get("value_fn") is not None:
            return
        function = self.extras[extra]

        def value_fn(params: Any) -> Tensor:
            return loss_of(finish(function(params)))

        self.extras = {**self.extras, "value_fn": value_fn}

    def typical_call(self, how: str) -> str:
        return f"update(updates, state, params, {how})"

    def losses_along(
        self, estimator: Any, points: list[tuple[int, Any]], leaves: list[Leaf]
    ) -> list[Tensor]:
        losses = []
        for sample, length in points:
            moved = {
                leaf.name: estimator.shifted(
                    sample, leaf.stream_name, self.names[leaf.name], length
                )
                for leaf in leaves
            }
            value = self.extras["value_fn"](self._params_with(moved))
            losses.append(as_scalar("the result of value_fn", value))
        return losses

    def choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        choices = self.choices.setdefault(leaf.name, {})
        if path not in choices:
            choices[path] = self._choice(path, leaf, selector)
        return choices[path]

    def _choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        if self.initial:
            return self._first_choice(path, leaf, selector)
        if selector.by_name:
            return selector.choose(leaf.name, None)

        def is_marked(where: Path) -> bool:
            return self._old.marks(where, leaf.name)

        label = selector.recall(path, is_marked)
        if label is None:
            raise lacking(path, leaf.name)
        return label

    def _first_choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        chooser = self.resolved(selector, lambda: self.whole(self.names))
        label = chooser.choose(leaf.name, self.names[leaf.name])
        # A predicate may depend on the parameter's current value, so the state records its answer as a mark.
        if not selector.by_name:
            *stage, slot = selector.mark(path, label)
            leaf.new.setdefault(tuple(stage), {})[slot] = torch.empty(
                0, device=leaf.device
            )
        return label

    def template(self, name: str) -> Tensor | None:
        """Return a stored tensor with the leaf's shape, for a leaf that has neither gradient nor parameter, or None.

        Only a combinator that accepts leaves without a gradient processes such a leaf, and it keeps such a tensor.
        """
        for operation in self.route.walk():
            slot = operation.traits.template_slot
            slots = self._old.slots_of(operation.path, name)
            if slot is not None and slot in slots:
                return self.stores[operation.path].template(slot, slots[slot])
        return None

    def check(self, names: dict[str, Any]) -> None:
        """Raise an error, before anything runs, unless this is a state of this chain for these leaves."""
        may_be_complex = {
            name
            for name, leaf in self.names.items()
            if leaf is None or leaf.is_complex()
        }
        self._old.check(names, self.opaque, self._has_shared_value, may_be_complex)

    def _has_shared_value(self, path: Path, name: str) -> bool:
        """Whether a stage keeps a shared value of this name."""
        return path in self.free or name in self.declared.get(path, ())

    def rebuilt(self, leaves: dict[str, Leaf]) -> dict[str, Any]:
        """Return the new state, in the order of the old one."""

        def new(path: Path, key: str, old: Any) -> Any:
            if path == () and key == LEAF_STEPS:
                return {
                    name: count_after(leaves.get(name), count)
                    for name, count in old.items()
                }
            if not isinstance(old, dict):
                return self.new_shared.get(path, {}).get(key, old)
            return {
                name: new_slot(leaves.get(name), path, key, tensor)
                for name, tensor in old.items()
            }

        state = self._old.rebuilt(new, self.new_trees, self.opaque)
        state["step"] = self.clock.step
        if self.leaf_steps is None and self.has_lag(leaves):
            state[LEAF_STEPS] = {
                name: count_after(leaves.get(name), self.old_step).clone()
                for name in self.names
            }
        return state

    def unchanged(self) -> dict[str, Any]:
        """Return the old state."""

        def keep(path: Path, key: str, old: Any) -> Any:
            return old

        state = self._old.rebuilt(keep, {}, self.opaque)
        state["step"] = self.old_step
        return state

    def has_lag(self, leaves: dict[str, Leaf]) -> bool:
        """Whether the counts of leaves differ after this update."""
        return any(self._lags(name, leaves.get(name)) for name in self.names)

    def _lags(self, name: str, leaf: Leaf | None) -> bool:
        """Whether a leaf takes no part in an update that the common count counts."""
        if leaf is None:  # an update without parameters, or no leaf at all
            return any(self._old.slots_of(path, name) for path in self.stages)
        is_counted = leaf.update is not None and leaf.counts
        return not is_counted and leaf.operations != [FROZEN]


def _checked_count(name: str, value: Any) -> Tensor:
    """Return a count from a state after checking that it is valid."""
    fits = (
        isinstance(value, Tensor)
        and value.ndim == 0
        and can_be_kept(value)
        and kind_of(value.dtype) == "int"
    )
    if not fits:
        is_stacked = isinstance(value, Tensor) and value.ndim > 0
        hint = "map over members with torch.vmap" if is_stacked else OWN_STATE
        raise ValueError(
            f"state[{name!r}] must be a 0-d integer tensor, got {value!r}; {hint}"
        )
    if (
        value.device.type == "cpu"
        and _torch.readable(value)
        and not _torch.is_intercepted()
        and value < 0
    ):
        raise ValueError(
            f"state[{name!r}] must be at least 0, got {value.item()}; {OWN_STATE}"
        )
    return value


def _checked_leaf_steps(counts: Any) -> dict[str, Tensor] | None:
    if counts is None:
        return None
    if not isinstance(counts, dict):
        raise ValueError(
            f"state[{LEAF_STEPS!r}] must be a dict of counts by leaf, got {counts!r}; {OWN_STATE}"
        )
    return {
        name: _checked_count(f"{LEAF_STEPS}.{name}", count)
        for name, count in counts.items()
    }


def blame_state(tx: Transformation, like: Any, state: Any, error: Exception) -> None:
    """After a failed call, raise an error that blames the state if it differs from `init`'s in shapes or dtypes."""
    try:
        expected = init(tx, like)
    except Exception:
        return
    present = _tree.named(state)
    for name, needed in _tree.named(expected).items():
        value = present.get(name, needed)
        if isinstance(value, Tensor) and isinstance(needed, Tensor):
            needs, has = _summary(needed), _summary(value)
            fault = None if needs == has else f"is {has}, needs {needs}"
        else:
            is_same = type(value) is type(needed)
            fault = None if is_same else f"has an unexpected value {value!r}"
        if fault is not None:
            raise ValueError(f"state at {name!r} {fault}; {OWN_STATE}") from error


def _summary(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), kind_of(tensor.dtype), tensor.device.type


def count_after(leaf: Leaf | None, count: Any) -> Any:
    """Return a leaf's count after the update, which counts if the leaf took part and is not frozen."""
    if leaf is None or leaf.update is None or leaf.operations == [FROZEN]:
        return count
    return count + 1 if leaf.counts else count


def new_slot(leaf: Leaf | None, path: Path, slot: str, old: Tensor) -> Tensor:
    if leaf is None or leaf.update is None:
        return old  # no gradient: unchanged
    new_value = leaf.new.get(path, {}).get(slot)
    if new_value is not None:
        return leaf.in_callers_form(new_value)
    # Only a combinator after this link processed the leaf.
    passed_by = leaf.inputs[0] is None
    if old.numel() and not passed_by:  # a selector's mark is empty and remains
        raise foreign((*path, slot))
    return old


def init(tx: Transformation, params: Any, counts: str = "calls") -> dict[str, Any]:
    state, _ = started(tx, params, counts)
    return state


def started(
    tx: Transformation, params: Any, counts: str
) -> tuple[dict[str, Any], bool]:
    """Return the first state of a tree, and whether it is 0 for all values of parameters."""
    if counts not in ("calls", "leaves"):
        raise ValueError(f"init: counts must be 'calls' or 'leaves', got {counts!r}")
    leaves, unflatten = _tree.flatten(params, "params")
    run = TreeRun(tx, leaves, unflatten)
    cells: list[Leaf] = []
    for name, tensor in leaves.items():
        if tensor is not None:
            cells.append(Leaf(run, name, None, tensor, {}, run.clock))
    for cell in cells:
        cell.operations = run.route.for_leaf(cell)
    for selector in run.selectors:
        selector.check_used([cell.name for cell in cells])
    initialize(cells)
    if cells:
        check_patterns(run.seen_slots)
    state = _first_state(run, cells)
    is_zero = _starts_at_zero(run, cells)
    run.release()
    if counts == "leaves":
        state[LEAF_STEPS] = {
            cell.name: torch.zeros((), dtype=torch.int64, device=cell.device)
            for cell in cells
        }
    run.memory.register(_tree.tensors(params))
    state = _tree.map_tensors(run.memory.unshared, state)
    if not cells or not _torch.inside_transform():
        return state, is_zero
    # Under vmap a count is the same for all members and would be returned with stride 0. Later counts have another
    # stride, so a compiled step would be compiled twice.
    batched = cells[0].inputs[1].new_ones((), dtype=torch.bool)

    def batch(tensor: Tensor) -> Tensor:
        return torch.where(batched, tensor, tensor)

    return _tree.map_tensors(batch, state), is_zero


def _starts_at_zero(run: TreeRun, cells: list[Leaf]) -> bool:
    """Whether a first state consists of slots that are 0 for all values of parameters."""
    has_others = run.new_trees or run.selectors or any(run.new_shared.values())
    if has_others or not all(operation.starts_alike for operation in run.route.walk()):
        return False
    slots: dict[Path, set[str]] = {}
    for cell in cells:
        for path, of_cell in cell.new.items():
            slots.setdefault(path, set()).update(of_cell)
    for operation in run.route.walk():
        if not all(map(operation.starts_at_zero, slots.pop(operation.path, ()))):
            return False
    return not slots


def _first_state(run: TreeRun, cells: list[Leaf]) -> dict[str, Any]:
    state = {"step": run.old_step}
    for path in run.stages:
        if path in run.new_trees:
            enter(state, path[:-1])[path[-1]] = run.new_trees[path]
        for name, value in run.new_shared.get(path, {}).items():
            enter(state, path)[name] = value
        for cell in cells:
            for slot, value in cell.new.get(path, {}).items():
                enter(state, (*path, slot))[cell.name] = cell.in_callers_form(value)
    return state


def update(
    call: UpdateCall, observer: Observer | None = None
) -> tuple[Any, dict[str, Any]]:
    warn_of_graphs(call.state, call.params)
    try:
        return _update(call, observer)
    except (RuntimeError, IndexError) as error:
        like = call.updates if call.params is None else call.params
        blame_state(call.tx, like, call.state, error)
        raise


def warn_of_graphs(state: Any, params: Any) -> None:
    """Warn once in a loop whose parameters require gradients: autograd records each update, or keeps all of them."""
    if not torch.is_grad_enabled() or _torch.inside_transform():
        return
    if _torch.is_intercepted() or not isinstance(state, dict):
        return  # make_fx cannot read the count
    recorded = [leaf for leaf in _tree.tensors(params) if leaf.requires_grad]
    if not recorded:
        return
    count = state.get("step")
    if not isinstance(count, Tensor) or count.device.type != "cpu" or count.ndim:
        return
    if count.item() != LONG:
        return
    costs = (
        f"each of these {LONG} updates was recorded for autograd, one leaf at a time"
    )
    remedy = "call update under torch.no_grad(), or "
    if any(leaf.grad_fn is not None for leaf in recorded):
        costs = f"the graph of {LONG} updates is kept, and each step needs more memory"
        remedy = ""
    warn_user(
        f"update: {costs}, because the parameters require gradients; {remedy}detach them before the loop: "
        "{name: p.detach() for name, p in params.items()}. Ignore this warning if you differentiate through training"
    )


def _update(call: UpdateCall, observer: Observer | None) -> tuple[Any, dict[str, Any]]:
    run, leaves = begin(call)
    outputs = {}
    is_counted = is_update(leaves.values())
    running = leaves
    if (
        not is_counted
    ):  # frozen leaves alone: no combinator returns what others have saved
        running = {name: leaf for name, leaf in leaves.items() if leaf.has_gradient}
    if running:
        if is_counted and run.route.traits().prepares:
            prepare(leaves.values())
        execute(running.values(), watch=observer)
        run.end()
        for name, leaf in running.items():
            result = leaf.result()
            if result is not None:
                outputs[name] = leaf.in_callers_form(result)
    else:
        run.release()
    new_state = run.rebuilt(leaves) if is_counted else run.unchanged()
    _, *trees = call
    run.memory.register(_tree.tensors(trees))
    return _tree.map_tensors(run.memory.unshared, (run.whole(outputs), new_state))


def is_update(leaves: Iterable[Leaf]) -> bool:
    """Whether a call is an update; otherwise it changes no state, and no clock counts it: frozen leaves do not."""
    return any(leaf.has_gradient and leaf.operations != [FROZEN] for leaf in leaves)


def begin(
    call: UpdateCall, only: Container[str] | None = None
) -> tuple[TreeRun, dict[str, Leaf]]:
    """Check a call of `update`; return its run, and the leaves that take part in it, with their operations.

    `only` are the names of the leaves to return if the caller processes the others itself.
    """
    tx, updates, state, params, extras = call
    grads, unflatten = _tree.flatten(updates, "updates")
    by_name = {}
    unflatten_params = None
    if params is not None:
        by_name, unflatten_params = _tree.flatten(params, "params")
        _tree.check_names(by_name, grads, "params", "updates")
    kinds = check_extras(tx, params, extras)
    # A run without a state would be one of `init`.
    run = TreeRun(tx, by_name or grads, unflatten, {} if state is None else state)
    run.unflatten_params, run.extras = unflatten_params, extras
    run.check(grads)
    values = None if params is None else by_name
    return run, _leaves_of(run, grads, values, extras, kinds, only)


def _leaves_of(
    run: TreeRun,
    grads: dict[str, Any],
    params: dict[str, Any] | None,
    extras: dict[str, Any],
    kinds: dict[str, str],
    only: Container[str] | None,
) -> dict[str, Leaf]:
    scalars, trees = split_extras(extras, kinds, grads)
    run.known_extras, run.leaf_extras, run.call_extras = kinds, trees, scalars
    leaves = {}
    for name, grad in grads.items():
        if only is not None and name not in only:
            continue
        grad = completed(grad)
        param = None if params is None else params[name]
        like = None
        if grad is None and param is None:
            like = run.template(name)
            if like is None:
                continue
        if params is not None and grad is not None:
            if param is None:
                raise ValueError(
                    f"params: leaf {name!r} is None, but it has a gradient"
                )
            if grad.shape != param.shape:
                shapes = (
                    f"{tuple(grad.shape)}, but its parameter has {tuple(param.shape)}"
                )
                raise ValueError(f"updates: leaf {name!r} has shape {shapes}")
        leaf = leaves[name] = Leaf(
            run, name, grad, param, scalars, run.clock_of(name), like
        )
        if trees:
            add_extras(leaf, trees)
    for leaf in leaves.values():
        leaf.operations = run.route.for_leaf(leaf)
    if extras and run.route.traits().checks_extras:
        check_extras_of(leaves.values())
    return leaves


def with_examples(call: UpdateCall) -> UpdateCall:
    """Return a call whose updates are gradients of examples, for a chain that takes these, with them as an extra.

    The updates become zeros without memory of their own, because the chain's first link replaces them.
    """
    samples, unflatten = _tree.flatten(call.updates, "updates")
    check_examples("updates", samples)
    placeholders = {
        name: None if value is None else value.new_zeros(()).expand(value.shape[1:])
        for name, value in samples.items()
    }
    extras = {**call.extras, "grad_sample": call.updates}
    return call._replace(updates=unflatten(placeholders), extras=extras)


def eval_params(tx: Transformation, state: Any, params: Any) -> Any:
    try:
        return _eval_params(tx, state, params)
    except (RuntimeError, IndexError) as error:
        blame_state(tx, params, state, error)
        raise


def _eval_params(tx: Transformation, state: Any, params: Any) -> Any:
    by_name, unflatten = _tree.flatten(params, "params")
    run = TreeRun(tx, by_name, unflatten, state)
    run.check(by_name)
    chosen = dict(by_name)
    for name, param in by_name.items():
        if param is None:
            continue
        leaf = Leaf(run, name, None, param, {}, run.clock)
        weights = evaluation_weights(leaf, run.route.for_leaf(leaf))
        if weights is None:
            continue
        weights = leaf.in_callers_form(weights)
        if weights.shape != param.shape:
            raise ValueError(
                f"eval_params: leaf {name!r} has shape {tuple(param.shape)}, but its state has {tuple(weights.shape)}; "
                f"{OWN_STATE}"
            )
        chosen[name] = weights.to(param.dtype, copy=True)
    run.release()
    return unflatten(chosen)


def records_gradients(tensors: Iterable[Tensor], numbers: Iterable[Any]) -> bool:
    """Whether autograd would record a call with these values."""
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:
        if tensor.requires_grad:
            return True
    return any(
        isinstance(number, Tensor) and number.requires_grad for number in numbers
    )


# Of most weights; those of other dtypes need a closer look.
USUAL_DTYPES = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))


def added(params: list[Tensor], steps: list[Tensor]) -> list[Tensor]:
    """Return new parameters, given their updates; one operation adds all plain tensors without derivatives."""
    dtypes = [param.dtype for param in params]
    if torch.compiler.is_dynamo_compiling() or not USUAL_DTYPES.issuperset(dtypes):
        # torch stores float8, such as frozen weights, but does not add to it.
        params = [
            param.to(step.dtype) if is_stored_only(param.dtype) else param
            for param, step in zip(params, steps, strict=True)
        ]
    tensors = [*params, *steps]
    needs_each = (
        torch.compiler.is_dynamo_compiling()
        or not TYPES.issuperset(map(type, tensors))
        or _torch.inside_transform()
        or _torch.forward_mode_active()
        or records_gradients(tensors, ())
    )
    if needs_each or not tensors:
        sums = [param + step for param, step in zip(params, steps, strict=True)]
    else:
        sums = _torch.added_lists(params, steps)
        if len({*dtypes, *map(DTYPE, steps)}) == 1:  # a shortcut
            return sums
    return [total.to(dtype) for total, dtype in zip(sums, dtypes, strict=True)]


def _usual_sums(params: Any, updates: Any) -> Any:
    """Return the sums of trees of plain real tensors that match each other, in the same order; None for other trees."""
    weights: list[Tensor] = []
    steps: list[Tensor] = []
    try:
        structure = structure_of(params, weights, opens=True)
        if structure_of(updates, steps, opens=True) != structure:
            return None
    except UnsuitableError:
        return None
    leaves = [*weights, *steps]
    are_usual = (
        bool(leaves)
        and USUAL_DTYPES.issuperset(map(DTYPE, leaves))
        and are_strided(leaves)
        and list(map(SHAPE, weights)) == list(map(SHAPE, steps))
        and (is_flat(structure) or have_own_names(structure))
    )
    if not are_usual:
        return None
    return tree_of(structure, iter(added(weights, steps)), opens=True)


def apply_updates(params: Any, updates: Any) -> Any:
    if not torch.compiler.is_dynamo_compiling():
        result = _usual_sums(params, updates)
        if result is not None:
            return result
    by_name, unflatten = _tree.flatten(params, "params")
    steps, _ = _tree.flatten_any(updates, "updates")
    _tree.check_names(steps, by_name, "updates", "params")
    changed: dict[str, Tensor] = {}
    sparse: dict[str, Tensor] = {}
    for name, param in by_name.items():
        step = steps[name]
        if param is None or step is None:
            continue
        if step.is_complex() and not param.is_complex():
            raise TypeError(
                f"apply_updates: leaf {name!r} has dtype {step.dtype}, but its parameter has {param.dtype}"
            )
        if step.layout is not torch.strided:
            what = f"apply_updates: the update of leaf {name!r}"
            sparse[name] = with_rows_added(what, param, step)
            continue
        _tree.check_leaf(name, step, "updates")
        if step.shape != param.shape:
            shapes = f"{tuple(step.shape)}, but its parameter has {tuple(param.shape)}"
            raise ValueError(f"apply_updates: leaf {name!r} has shape {shapes}")
        changed[name] = param
    sums = added(list(changed.values()), [steps[name] for name in changed])
    dense = dict(zip(changed, sums, strict=True))
    return unflatten({**by_name, **sparse, **dense})
