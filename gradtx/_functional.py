"""Functional use: trees in, trees out. The case of one group, whose state is one nested dict."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._context import ALWAYS_KNOWN, Clock
from gradtx._exact import exact
from gradtx._messages import nearest
from gradtx._program import (
    OWN_STATE,
    Block,
    Leaf,
    Path,
    Run,
    execute,
    initialize,
    lacking,
)
from gradtx._torch import inside_transform

if TYPE_CHECKING:
    from gradtx.core import GradientTransformation


class TreeRun(Run):
    """A run whose old state is a nested dict, as `init` makes it."""

    keeps_trees = True
    params: dict[str, Any]
    unflatten_params: Any
    grad_fn: Any

    def __init__(self, tx: GradientTransformation, like: dict[str, Any], unflatten: Any, state: Any = None):
        super().__init__()
        self._unflatten, self._state, self._like = unflatten, state, like
        self.initial = state is None
        self.device = next((leaf.device for leaf in like.values() if leaf is not None), torch.device("cpu"))
        if state is not None and not (isinstance(state, dict) and isinstance(state.get("step"), Tensor)):
            raise ValueError(f"{tx._name}: state is not a dict with a 'step'; {OWN_STATE}")
        self.old_step = torch.zeros((), dtype=torch.int64, device=self.device) if state is None else state["step"]
        self.clock = Clock(self.old_step + 1)
        self.watch()
        self.block = Block.of(tx, self, self.old_step)
        self._slot_lists: dict[Path, list[tuple[str, dict[str, Tensor]]]] = {}

    def _entry(self, path: Path) -> dict[str, Any]:
        entry = self._state
        for key in path:
            entry = entry.get(key, {}) if isinstance(entry, dict) else {}
        return entry if isinstance(entry, dict) else {}

    def scalars(self, path: Path) -> dict[str, Tensor]:
        return {key: value for key, value in self._entry(path).items() if isinstance(value, Tensor)}

    def slot_dicts(self, path: Path) -> list[tuple[str, dict[str, Tensor]]]:
        if path not in self._slot_lists:
            self._slot_lists[path] = [
                (key, value)
                for key, value in self._entry(path).items()
                if isinstance(value, dict) and (*path, key) not in self.stages
            ]
        return self._slot_lists[path]

    def slots(self, path: Path, leaf: Leaf) -> dict[str, Tensor]:
        if self._state is None:
            return {}
        return {slot: values[leaf.name] for slot, values in self.slot_dicts(path) if leaf.name in values}

    def tree(self, path: Path) -> Any:
        entry = self._state
        for key in path:
            if not isinstance(entry, dict) or key not in entry:
                raise lacking(path)
            entry = entry[key]
        return entry

    def select(self, accept: Tensor, new: Any, old: Any) -> Any:
        return _tree.map_tensors(lambda a, b: torch.where(accept, a, b), new, old)

    def whole(self, values: dict[str, Any]) -> Any:
        return self._unflatten({name: values.get(name) for name in self._like})

    def by_name(self, tree: Any) -> dict[str, Any]:
        return _tree.match(tree, self._like, "updates returned by a plain function", "the updates given to it")

    def gradients_at(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {name: value.to(self.params[name].dtype) for name, value in values.items()}
        params = self.unflatten_params({**self.params, **moved})
        found = _tree.match(self.grad_fn(params), self.params, "gradients from grad_fn", "params")
        return {
            name: torch.zeros_like(value) if found[name] is None else found[name].to(value.dtype)
            for name, value in values.items()
        }

    def choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        if self.initial:
            label = selector.choose(leaf.name, leaf.given[1])
            # A predicate may depend on the parameter of today, so the state remembers what it said, as a mark.
            if not selector.by_name:
                where = selector.mark(path, label)
                leaf.new.setdefault(where[:-1], {})[where[-1]] = torch.empty(0, device=leaf.device)
            return label
        if selector.by_name:
            return selector.choose(leaf.name, None)
        label = selector.recall(path, lambda where: leaf.name in self._entry(where))
        if label is None:
            raise lacking(path, leaf.name)
        return label

    def template(self, name: str) -> Tensor | None:
        """Some stored tensor shaped as the leaf, for a leaf that comes without gradient and parameter."""
        for path in self.stages:
            for slot, values in self.slot_dicts(path):
                if slot == "acc" and name in values:
                    return values[name]
        return None

    def check(self, names: dict[str, Any]) -> None:
        """Before anything runs: is this a state of this chain, with these leaves?"""
        for key in self._state:
            if key != "step" and (key,) not in self.stages:
                raise foreign((key,))
        for path in self.stages:
            if path in self.opaque:
                continue
            for name in self.scalars(path) if path not in self.free else ():
                if name not in self.declared.get(path, ()) and (*path, name) not in self.opaque:
                    raise foreign((*path, name))
            for slot, values in self.slot_dicts(path):
                self._check_slot((*path, slot), values, names)

    @staticmethod
    def _check_slot(path: Path, values: dict[str, Any], names: dict[str, Any]) -> None:
        where = ".".join(path)
        for name, value in values.items():
            if isinstance(value, dict):
                raise foreign(path)
            if name not in names:
                raise ValueError(
                    f"updates lack leaf {name!r}, which the state has at {where!r}; "
                    "pass None for a leaf without gradient"
                )
            if not isinstance(value, Tensor):
                raise ValueError(f"state at {where!r} has no tensor for leaf {name!r}, got {value!r}; {OWN_STATE}")

    def rebuilt(self, leaves: dict[str, Leaf], entry: dict[str, Any], path: Path = ()) -> dict[str, Any]:
        """The new state, in the order of the old one."""
        shared = self.new_shared.get(path, {})
        new: dict[str, Any] = {}
        for key, value in entry.items():
            below = (*path, key)
            if below in self.opaque:
                new[key] = self.new_trees.get(below, value)
            elif below in self.stages:
                new[key] = self.rebuilt(leaves, value, below)
            elif isinstance(value, dict):
                new[key] = {name: self._slot(leaves.get(name), path, key, old) for name, old in value.items()}
            else:
                new[key] = shared.get(key, value)
        return new

    def _slot(self, leaf: Leaf | None, path: Path, slot: str, old: Tensor) -> Tensor:
        if leaf is None or leaf.update is None:
            return old  # no gradient: unchanged
        new = leaf.new.get(path, {}).get(slot)
        passed_by = leaf.given[0] is None  # a link in front of the accumulation that made an update of it
        if new is None and old.numel() and not passed_by:  # a selector's mark is empty, and stays
            raise foreign((*path, slot))
        return old if new is None else new


def foreign(path: Path) -> ValueError:
    return ValueError(f"state has {'.'.join(path)!r}, which this chain does not keep; {OWN_STATE}")


def init(tx: GradientTransformation, params: Any) -> dict[str, Any]:
    leaves, unflatten = _tree.flatten(params, "params")
    run = TreeRun(tx, leaves, unflatten)
    cells = [Leaf(run, name, None, leaf, {}, run.clock) for name, leaf in leaves.items() if leaf is not None]
    for cell in cells:
        cell.program = run.block.for_leaf(cell)
    for selector in run.selectors:
        selector.check_used([cell.name for cell in cells])
    initialize(cells)
    state: dict[str, Any] = {"step": run.old_step}
    for path in run.stages:
        if path in run.new_trees:
            _enter(state, path[:-1])[path[-1]] = run.new_trees[path]
        for name, value in run.new_shared.get(path, {}).items():
            _enter(state, path)[name] = value
        for cell in cells:
            for slot, value in cell.new.get(path, {}).items():
                _enter(state, (*path, slot))[cell.name] = value
    run.memory.take(_tree.tensors(params))
    state = _tree.map_tensors(run.memory.fresh, state)
    if not cells or not inside_transform():
        return state
    # Under vmap a count is the same for all members, and would come out with stride 0: unlike the next one, so that
    # a compiled step would be compiled twice.
    own = cells[0].given[1].new_ones((), dtype=torch.bool)
    return _tree.map_tensors(lambda tensor: torch.where(own, tensor, tensor), state)


def _enter(state: dict[str, Any], path: Path) -> dict[str, Any]:
    for key in path:
        state = state.setdefault(key, {})
    return state


def update(
    tx: GradientTransformation, updates: Any, state: Any, params: Any, extras: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    grads, unflatten = _tree.flatten(updates, "updates")
    by_name, unflatten_params = {}, None
    if params is not None:
        by_name, unflatten_params = _tree.flatten(params, "params")
        _tree.check_names(by_name, grads, "params", "updates")
    kinds = check_extras(tx, params, extras)
    run = TreeRun(tx, by_name or grads, unflatten, state)
    run.params, run.unflatten_params, run.grad_fn = by_name, unflatten_params, extras.get("grad_fn")
    run.check(grads)
    scalars, trees = split_extras(extras, kinds, grads)
    run.known_extras, run.leaf_extras = kinds, trees
    leaves = {}
    for name, grad in grads.items():
        param = by_name.get(name)
        like = run.template(name) if grad is None and param is None else None
        if grad is None and param is None and like is None:
            continue
        if grad is not None and param is None and params is not None:
            raise ValueError(f"params: leaf {name!r} is None, but it has a gradient")
        if grad is not None and param is not None and grad.shape != param.shape:
            raise ValueError(
                f"updates: leaf {name!r} has shape {tuple(grad.shape)}, its parameter {tuple(param.shape)}"
            )
        leaf = leaves[name] = Leaf(run, name, grad, param, scalars, run.clock, like)
        if trees:
            leaf.extras = {**scalars, **{key: by_leaf(key, values[name], leaf) for key, values in trees.items()}}
    for leaf in leaves.values():
        leaf.program = run.block.for_leaf(leaf)

    execute(leaves.values(), lambda leaf: None)
    for commit in reversed(run.commits):
        commit()
    outputs = {name: leaves[name].result() if name in leaves else None for name in grads}
    new_state = {**run.rebuilt(leaves, state), "step": run.clock.step}
    run.memory.take(_tree.tensors((updates, state, params, extras)))
    return _tree.map_tensors(run.memory.fresh, (unflatten(outputs), new_state))


def by_leaf(extra: str, value: Any, leaf: Leaf) -> Any:
    """A leaf's own part of an extra, in the dtype that rules compute in."""
    if value is None:
        return None
    shape = next(tensor.shape for tensor in leaf.given if tensor is not None)
    if value.shape != shape:
        raise ValueError(f"{extra}: leaf {leaf.name!r} has shape {tuple(value.shape)}, needs {tuple(shape)}")
    return value.to(leaf.wide)


def check_extras(
    tx: GradientTransformation, params: Any, extras: dict[str, Any], call: str = "update(updates, state, params"
) -> dict[str, str]:
    """The kinds of the extras that `tx` knows, after checking that these are the right ones."""
    kinds = dict.fromkeys(ALWAYS_KNOWN, "scalar") | {"hessian_diag": "leaf"}
    for link in tx._links():
        kinds.update(link._extras)
    for name in extras:
        if name not in kinds:
            raise TypeError(f"{tx._name}: unknown extra {name!r}; {nearest(name, kinds)}")
    for link in tx._links():
        for need in link._needs:
            if need == "params" and params is None:
                raise ValueError(f"{link._name} needs params: call {call})")
            # hessian_diag=None means 'keep the last one'; the key is required all the same.
            given = extras.get(need) is not None or (need == "hessian_diag" and need in extras)
            if need != "params" and not given:
                # A closure is itself the grad_fn of an optimizer's step.
                more = "" if need == "grad_fn" and "closure" in call else f", {need}=..."
                raise ValueError(f"{link._name} needs {need}: call {call}{more})")
    return kinds


def split_extras(
    extras: dict[str, Any], kinds: dict[str, str], names: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Extras that all leaves share, and those by leaf."""
    scalars: dict[str, Any] = {}
    trees: dict[str, dict[str, Any]] = {}
    for name, value in extras.items():
        if value is None:
            scalars[name] = None
        elif kinds[name].startswith("leaf"):
            trees[name] = _tree.match(value, names, name, "updates")
        elif name == "grad_fn":
            if not callable(value):
                raise TypeError(f"grad_fn must be a function params -> gradients, got {value!r}")
            scalars[name] = value
        else:
            if not isinstance(value, Tensor | numbers.Real):
                raise TypeError(f"{name} must be a number or a 0-d tensor, got {value!r}")
            number = value if isinstance(value, Tensor) else exact(value, torch.device("cpu"))
            if number.ndim:
                raise ValueError(f"{name} must be 0-d, got a tensor of shape {tuple(number.shape)}")
            scalars[name] = number.to(torch.promote_types(number.dtype, torch.float32))
    return scalars, trees


def eval_params(tx: GradientTransformation, state: Any, params: Any) -> Any:
    by_name, unflatten = _tree.flatten(params, "params")
    run = TreeRun(tx, by_name, unflatten, state)
    run.check(by_name)
    chosen = {}
    for name, param in by_name.items():
        chosen[name] = param
        if param is not None:
            leaf = Leaf(run, name, None, param, {}, run.clock)
            found = evaluated(leaf, run.block.for_leaf(leaf))
            if found is not None:
                if found.shape != param.shape:
                    raise ValueError(
                        f"eval_params: leaf {name!r} has shape {tuple(param.shape)}, its state {tuple(found.shape)}; "
                        f"{OWN_STATE}"
                    )
                chosen[name] = found.to(param.dtype, copy=True)
    return unflatten(chosen)


def evaluated(leaf: Leaf, program: list[Any]) -> Any:
    """What the last link with an opinion says to evaluate with."""
    for operation in reversed(program):
        value = operation.evaluate(leaf)
        if value is not None:
            return value
    return None


def apply_updates(params: Any, updates: Any) -> Any:
    by_name, unflatten = _tree.flatten(params, "params")
    steps = _tree.match(updates, by_name, "updates", "params")
    for name, param in by_name.items():
        if param is not None and steps[name] is not None and steps[name].shape != param.shape:
            shapes = f"{tuple(steps[name].shape)}, its parameter {tuple(param.shape)}"
            raise ValueError(f"apply_updates: leaf {name!r} has shape {shapes}")
    return unflatten(
        {
            name: param if param is None or steps[name] is None else (param + steps[name]).to(param.dtype)
            for name, param in by_name.items()
        }
    )
