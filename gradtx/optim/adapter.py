"""Any transformation as a torch.optim.Optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx._context import Clock
from gradtx._functional import by_leaf, check_extras, evaluated, split_extras
from gradtx._program import Block, Leaf, Path, Scope, execute, initialize, takes_none
from gradtx._tree import check_leaf, check_names
from gradtx.core import Entry, GradientTransformation, check_transformation
from gradtx.optim._checkpoint import agree_on_shared, matched
from gradtx.optim._groups import REFUSED, GroupView
from gradtx.optim._run import Layout, OptimizerRun, layout_of

CALL = "step(closure"
# Entries of a part of a large leaf: temporaries of a rule stay in a core's cache, and few enough calls remain.
# Measured by benchmarks/step_time.py; from 2**15 to 2**18 the difference is small.
PART = 2**18


class ChainOptimizer(torch.optim.Optimizer):
    """A GradientTransformation as a torch optimizer; made by `as_optimizer` and by the classes of `gradtx.optim`."""

    def __init__(self, tx: GradientTransformation, params: Any):
        check_transformation(type(self).__name__, "tx", tx)
        self._tx = tx
        self._views: list[GroupView] = []
        self._names: dict[Tensor, str] = {}
        self._choices: dict[Tensor, dict[Path, Any]] = {}
        self._layouts: dict[Tensor, Layout] = {}
        self._fresh: dict[Tensor, dict[str, tuple[int, int]]] = {}
        self._clock_paths: dict[Any, Path] = {}
        super().__init__(params, {})
        run = self._run(initial=True)
        self._block(run, tx, 0)
        for selector in run.selectors:
            try:
                selector.check_used(list(self._names.values()))
            except ValueError as error:
                named = "param_names" in self.param_groups[0]
                hint = "" if named else "; these are parameters without names: pass model.named_parameters()"
                raise ValueError(f"{error}{hint}") from None
        self.defaults = {name: self.param_groups[0][name] for name in ("lr", *self._views[0].entries)}

    # Groups.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with hyperparameters of their own where the group names them.

        A partition makes one group of each label. As torch's method, and raises what that raises.
        """
        before, defaults, self.defaults = len(self.param_groups), self.defaults, {}
        try:
            super().add_param_group(param_group)
            group = self.param_groups[-1]
        finally:
            del self.param_groups[before:]
            self.defaults = defaults
        params = group["params"]
        names = group.get("param_names") or [str(len(self._names) + i) for i in range(len(params))]
        choices: dict[Tensor, dict[Path, Any]] = {}
        parts: dict[tuple, list[tuple[str, Tensor]]] = {}
        run = self._run(initial=True, choices=choices)
        block = self._block(run, self._tx, 0)
        for name, param in zip(names, params, strict=True):
            check_leaf(name, param, type(self).__name__)
            parts.setdefault(self._labels(run, block, name, param), []).append((name, param))
        views = []
        for labels, members in sorted(parts.items(), key=lambda item: [s.labels.index(v) for s, v in item[0]]):
            part = {**group, "params": [param for _, param in members]}
            if "param_names" in group:
                part["param_names"] = [name for name, _ in members]
            if labels:
                part["label"] = ".".join(label for _, label in labels)
            view = GroupView(self._tx, part, {id(selector): label for selector, label in labels})
            view.show(lambda entry: 0)
            views.append(view)
        states = [
            self._initial(view, view.group["params"], choices, dict(zip(params, names, strict=True))) for view in views
        ]
        self._names.update(zip(params, names, strict=True))
        self._choices.update(choices)
        self._clock_paths = run.clock_paths
        for view, (layouts, state) in zip(views, states, strict=True):
            self._views.append(view)
            self.param_groups.append(view.group)
            self._adopt(layouts, state)

    def _labels(self, run: OptimizerRun, block: Block, name: str, param: Tensor) -> tuple:
        leaf = self._leaf(run, name, param, None, Clock(torch.ones((), dtype=torch.int64)))
        try:
            return tuple(block.labels(leaf))
        except ValueError:
            if block.is_frozen(leaf):
                return ()
            raise

    def _synced(self) -> list[GroupView]:
        """The views of the present groups, also after somebody put other dicts in `param_groups`."""
        if len(self._views) != len(self.param_groups) or any(
            view.group is not group for view, group in zip(self._views, self.param_groups, strict=True)
        ):
            known = {id(view.group): view for view in self._views}
            self._views = [known.get(id(group)) or self._adopted(group) for group in self.param_groups]
        return self._views

    def _adopted(self, group: dict[str, Any]) -> GroupView:
        run = self._run(initial=True)
        block = self._block(run, self._tx, 0)
        labels = self._labels(run, block, self._name(group["params"][0]), group["params"][0])
        view = GroupView(self._tx, group, {id(selector): label for selector, label in labels})
        view.show(self._count)
        return view

    def _name(self, param: Tensor) -> str:
        return self._names.setdefault(param, str(len(self._names)))

    # Runs.

    def _run(self, initial: bool, choices: Any = None) -> OptimizerRun:
        device = self.param_groups[0]["params"][0].device if self.param_groups else torch.device("cpu")
        choices = self._choices if choices is None else choices
        return OptimizerRun(self.state, self._layouts, choices, device, initial)

    @staticmethod
    def _block(run: OptimizerRun, tx: GradientTransformation, count: int) -> Block:
        frozen: list[Any] = []
        return Block(tx._expand(Scope(run, (), torch.tensor(count), frozen)), frozen)

    @staticmethod
    def _leaf(
        run: OptimizerRun, name: str, param: Tensor, grad: Tensor | None, clock: Clock, extras: Any = None
    ) -> Leaf:
        leaf = Leaf(run, name, None if grad is None else grad.detach(), param.detach(), extras or {}, clock)
        leaf.key = param
        leaf.state, leaf.layout = run.kept(param)
        return leaf

    def _parts(self, leaf: Leaf) -> list[Leaf]:
        """A large leaf whose links are all elementwise, in parts that stay in cache; else the leaf itself."""
        param, grad = leaf.key, leaf.key.grad
        if grad is None:
            return [leaf]
        plain = type(grad) is Tensor and param.is_contiguous() and grad.is_contiguous()
        if param.numel() <= PART or not plain or not all(operation.elementwise for operation in leaf.program):
            return [leaf]
        slots = [leaf.state[key] for names in leaf.layout.slots.values() for key in names.values()]
        if any(value.shape == param.shape and not value.is_contiguous() for value in slots):
            return [leaf]
        flat_param, flat_grad, parts = param.detach().view(-1), grad.detach().view(-1), []
        for start in range(0, param.numel(), PART):
            window = slice(start, min(start + PART, param.numel()))
            extras = {
                k: v.reshape(-1)[window] if k in leaf.run.leaf_extras and v is not None else v
                for k, v in leaf.extras.items()
            }
            one = Leaf(leaf.run, leaf.name, flat_grad[window], flat_param[window], extras, leaf.clock)
            one.key, one.state, one.layout = param, leaf.state, leaf.layout
            one.window, one.program = window, leaf.program
            parts.append(one)
        return parts

    def _initial(
        self, view: GroupView, params: list[Tensor], choices: Any = None, names: Any = None
    ) -> tuple[dict[Tensor, Layout], dict[Tensor, dict[str, Tensor]]]:
        """Layouts and first states of parameters, with the hyperparameters that the group was made with."""
        params = [param for param in params if not (is_lazy(param) or param.is_meta)]
        run = self._run(initial=True, choices=choices)
        clock = Clock(torch.ones((), dtype=torch.int64, device=run.device))
        names = self._names if names is None else names
        with torch.no_grad():
            block = self._block(run, view.chain(view.first, torch.device("cpu")), 0)
            leaves = [self._leaf(run, names[param], param, None, clock) for param in params]
            for leaf in leaves:
                leaf.program = block.for_leaf(leaf)
            initialize(leaves)
            layouts, states = {}, {}
            for leaf in leaves:
                run.memory.take([leaf.given[1]])
                layout = layouts[leaf.key] = layout_of(run, leaf)
                state = states[leaf.key] = {"step": torch.tensor(0.0)}
                for path, slots in layout.slots.items():
                    state.update({key: run.memory.fresh(leaf.new[path][slot]) for slot, key in slots.items()})
                for path, slots in layout.shared.items():
                    values = run.scalars(path) or run.new_shared[path]
                    state.update({key: values[slot] for slot, key in slots.items()})
        return layouts, states

    def _adopt(self, layouts: dict[Tensor, Layout], states: dict[Tensor, dict[str, Tensor]]) -> None:
        for param, state in states.items():
            self._layouts[param] = layouts[param]
            self.state[param] = state
            self._fresh[param] = _versions(state)

    def _prepare(self, view: GroupView, changed: bool, stepping: list[Tensor]) -> None:
        """See to it that every parameter that is about to step has the slots of its group's links."""
        again = []
        for param in stepping:
            fresh = self._fresh.pop(param, None)
            if fresh is not None and fresh == _versions(self.state[param]):
                del self.state[param], self._layouts[param]
            if param not in self._layouts or not self.state.get(param):
                again.append(param)
        if again:
            layouts, states = self._initial(view, again, names={param: self._name(param) for param in again})
            self._layouts.update(layouts)
            self.state.update(states)
        if changed:
            members = [param for param in view.group["params"] if param in self._layouts]
            layouts, states = self._initial(view, members)
            for param, state in states.items():
                old = self.state[param]
                self.state[param] = {key: old.get(key, value) for key, value in state.items()}
                self._layouts[param] = layouts[param]

    def _count(self, entry: Entry | None = None) -> int:
        """The largest step of the parameters; for a hyperparameter inside a wrapper with a clock, that clock's."""
        place = entry.place[0] if entry is not None else ()
        for n in range(len(place), -1, -1):
            path = self._clock_paths.get(place[:n])
            if entry is not None and path is not None:
                scalars = self._run(initial=False).scalars(path)
                return int(scalars["step"]) if scalars else 0
        return max((int(self.state[param]["step"]) for param in self._layouts), default=0)

    # Steps.

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, **extras: Any) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradients anew and returns the loss; links may call it again.
            **extras: What links need beyond the gradients; by leaf as a list in parameter order or a dict by name.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: a sparse gradient.
            TypeError, ValueError: an unknown or missing extra, a hyperparameter that is out of range; nothing has
                changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if loss is not None:
                extras.setdefault("value", torch.as_tensor(loss).detach())
            extras.setdefault("grad_fn", closure)
        run = self._run(initial=False)
        run.grad_fn = lambda values: self._gradients_at(values, extras["grad_fn"])
        kinds = check_extras(self._tx, True, extras, CALL)
        extras = {
            key: self._by_name(key, value) if kinds[key].startswith("leaf") else value for key, value in extras.items()
        }
        scalars, trees = split_extras(extras, kinds, dict.fromkeys(self._names.values()))
        run.known_extras, run.leaf_extras = kinds, trees
        views = self._synced()
        values = [view.values() for view in views]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None and param.grad.is_sparse:
                    raise RuntimeError(f"{type(self).__name__}: parameter {self._name(param)!r} has a sparse gradient")
        for view, present in zip(views, values, strict=True):
            changed = view.settle(present)
            self._prepare(view, changed, [p for p in view.group["params"] if p.grad is not None])
        count = self._count()
        blocks = [
            self._block(run, view.chain(v, torch.device("cpu")), count) for view, v in zip(views, values, strict=True)
        ]
        _check_agreement(blocks)
        leaves = self._stepping(run, views, blocks, scalars, trees)
        execute(leaves, self._write)
        for commit in reversed(run.commits):
            commit()
        self._write_shared(run)
        for view in views:
            view.show(self._count)
        return loss

    def _stepping(self, run: Any, views: Any, blocks: list[Block], scalars: Any, trees: Any) -> list[Leaf]:
        clocks: dict[float, Clock] = {}
        leaves = []
        for view, block in zip(views, blocks, strict=True):
            all_enter = takes_none(block.operations)
            for param in view.group["params"]:
                if param not in self._layouts or (param.grad is None and not all_enter):
                    continue
                count = self.state[param]["step"].item()
                if count not in clocks:
                    clocks[count] = Clock(torch.tensor(int(count) + 1), int(count) + 1)
                leaf = self._leaf(run, self._name(param), param, param.grad, clocks[count], scalars)
                if trees:
                    own = {key: by_leaf(key, values[leaf.name], leaf) for key, values in trees.items()}
                    leaf.extras = {**scalars, **own}
                leaf.program = block.for_leaf(leaf)
                leaves.extend(self._parts(leaf))
        return leaves

    def _write(self, leaf: Leaf) -> None:
        """The one place that changes a parameter: when its values (or those of a part of it) are all there."""
        param, state, update = leaf.key, leaf.state, leaf.result()
        last = leaf.window is None or leaf.window.stop == param.numel()
        memory = leaf.run.memory
        memory.take((leaf.given[1], *state.values()) if leaf.given[0] is None else (*leaf.given, *state.values()))
        for path, slots in leaf.new.items():
            keys = leaf.layout.slots[path]
            for slot, value in slots.items():
                key = keys[slot]
                if leaf.window is not None and state[key].shape == param.shape:
                    state[key].view(-1)[leaf.window] = value
                elif last:
                    state[key] = memory.fresh(value)
        if leaf.given[0] is not None and last:
            state["step"] = state["step"] + 1
        if update is not None:
            leaf.given[1].add_(update)

    def _write_shared(self, run: OptimizerRun) -> None:
        new = {
            path: {name: run.memory.fresh(value) for name, value in found.items()}
            for path, found in run.new_shared.items()
        }
        for param, layout in self._layouts.items():
            for path, slots in layout.shared.items():
                for slot, key in slots.items() if path in new else ():
                    self.state[param][key] = new[path][slot]

    def _by_name(self, extra: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            if len(value) != len(self._names):
                raise ValueError(f"{extra}: {len(value)} tensors for {len(self._names)} parameters")
            return dict(zip(self._names.values(), value, strict=True))
        return value

    def _gradients_at(self, values: dict[str, Tensor], closure: Callable[[], Any]) -> dict[str, Tensor]:
        """Gradients by the closure at other weights; weights and gradients are put back whatever happens."""
        named = {self._names[param]: param for param in self._layouts}
        check_names(values, [name for name in named if name in values], "params", "the optimizer's parameters")
        old = {name: (param.detach().clone(), param.grad) for name, param in named.items()}
        try:
            for name, param in named.items():
                param.grad = None
                if name in values:
                    param.copy_(values[name])
            with torch.enable_grad():
                closure()
            found = {}
            for name in values:
                grad = named[name].grad
                found[name] = torch.zeros_like(values[name]) if grad is None else grad.detach().to(values[name].dtype)
            return found
        finally:
            for name, param in named.items():
                param.copy_(old[name][0])
                param.grad = old[name][1]

    @contextlib.contextmanager
    def eval_params(self) -> Iterator[None]:
        """Put the weights to evaluate with in place of the parameters, and the parameters back at the end."""
        with torch.no_grad():
            run = self._run(initial=False)
            clock = Clock(torch.tensor(self._count() + 1))
            swapped = {}
            for view in self._synced():
                block = self._block(run, view.chain(view.values(), torch.device("cpu")), self._count())
                for param in view.group["params"]:
                    if param in self._layouts:
                        leaf = self._leaf(run, self._name(param), param, None, clock)
                        found = evaluated(leaf, block.for_leaf(leaf))
                        if found is not None:
                            swapped[param] = (param.detach().clone(), found)
            for param, (_, found) in swapped.items():
                param.copy_(found)
        try:
            yield
        finally:
            with torch.no_grad():
                for param, (own, _) in swapped.items():
                    param.copy_(own)

    # Checkpoints and copies.

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:  # type: ignore[override]
        """Continue from a state dict of this optimizer, or of the torch.optim class with the same slots.

        Args:
            state_dict: As `state_dict()` gives it.
            strict: Whether an entry that lacks a slot is an error; else what is absent keeps fresh state. A
                parameter without any entry keeps fresh state in both cases.

        Raises:
            ValueError: groups, slots, shapes or values that don't fit; nothing has changed then.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        saved = deepcopy(state_dict["param_groups"])
        sizes, own = [len(group["params"]) for group in saved], [len(g["params"]) for g in self.param_groups]
        if len(sizes) != len(own):
            raise ValueError(f"loaded state dict has {len(sizes)} parameter groups, the optimizer has {len(own)}")
        if sizes != own:
            raise ValueError(f"loaded state dict has groups of {sizes} parameters, the optimizer's have {own}")
        steps = [_number(entry.get("step", entry.get("steps", 0))) for entry in state_dict["state"].values()]
        count = int(max(steps, default=0))
        views, states, layouts = [], {}, {}
        for view, group in zip(self._synced(), saved, strict=True):
            ids = group.pop("params")
            group = {key: value for key, value in group.items() if key not in REFUSED}
            for kept in ("param_names", "label"):
                if kept in view.group:
                    group.setdefault(kept, view.group[kept])
            if group.get("label") != view.group.get("label"):
                raise ValueError(f"loaded group has label {group.get('label')!r}, ours {view.group.get('label')!r}")
            group["params"] = view.group["params"]
            entries = {p: state_dict["state"].get(i, {}) for i, p in zip(ids, group["params"], strict=True)}
            new, found, places = self._loaded(view, group, entries, count, strict)
            views.append(new)
            states.update(found)
            layouts.update(places)
        absent = {
            p for i, p in enumerate(q for g in self.param_groups for q in g["params"]) if i not in state_dict["state"]
        }
        agree_on_shared(states, layouts, absent, self._name)
        foreign = {key: value for key, value in state_dict["state"].items() if not isinstance(key, int)}
        self.state.clear()
        self.state.update(states)
        self.state.update(foreign)
        self._layouts, self._views, self._fresh = layouts, views, {}
        self.param_groups = [view.group for view in views]
        for view in views:
            view.show(self._count)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _loaded(self, view: GroupView, group: Any, entries: dict[Tensor, Any], count: int, strict: bool) -> tuple:
        error = None
        for literal in (False, True):  # numbers that are off: as here, or else all literally, as when it was saved
            new = view.loaded(dict(group), literal, lambda entry: count)
            layouts, fresh = self._initial(new, group["params"])
            try:
                states = {
                    param: matched(self._name(param), entries[param], state, param.device, strict)
                    for param, state in fresh.items()
                }
                return new, states, layouts
            except ValueError as found:
                error = error or found
        assert error is not None
        raise error

    def __getstate__(self) -> dict[str, Any]:
        own = ("_tx", "_views", "_names", "_choices", "_layouts", "_clock_paths")
        untouched = [p for p, seen in self._fresh.items() if seen == _versions(self.state[p])]
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}, "_fresh": untouched}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._fresh = {param: _versions(self.state[param]) for param in self._fresh}


def _versions(state: dict[str, Tensor]) -> dict[str, tuple[int, int]]:
    """What changes when anybody writes to a state: which tensors, and how often each was written in place."""
    return {key: (id(value), value._version) for key, value in state.items()}


def _number(value: Any) -> float:
    return value.item() if isinstance(value, Tensor) else value


def _check_agreement(blocks: list[Block]) -> None:
    """Hyperparameters of one sum must agree across groups."""
    seen: dict[Any, Any] = {}
    for block in blocks:
        for operation in block.operations:
            if hasattr(operation, "blocks"):
                _check_agreement(list(operation.blocks.values()))
            for name, value in getattr(operation, "agree", {}).items():
                value = tuple(map(_number, value)) if isinstance(value, tuple) else _number(value)
                first = seen.setdefault((operation.path, name), value)
                if first != value:
                    raise ValueError(
                        f"{'.'.join(operation.path)}: {name} must agree across groups, got {first!r} and {value!r}"
                    )
