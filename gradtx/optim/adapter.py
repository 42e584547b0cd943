"""Any transformation as a torch.optim.Optimizer."""

from __future__ import annotations

import contextlib
import difflib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx._context import Clock
from gradtx._functional import by_leaf, check_extras, evaluated, split_extras
from gradtx._program import FROZEN, Block, Leaf, Path, execute, initialize, memory_of, takes_none
from gradtx._sharding import placed_as
from gradtx._tree import check_leaf, check_names, tensors
from gradtx.core import Entry, GradientTransformation, check_transformation
from gradtx.optim._checkpoint import load, matched
from gradtx.optim._engine import Bundle, Call, Engine, compiler_options
from gradtx.optim._groups import GroupView
from gradtx.optim._hessian import HessianSource, HessianStep
from gradtx.optim._run import Layout, OptimizerRun, Record, check_agreement, operations_of, part, parts_of

CALL = "step(closure"
CPU = torch.device("cpu")


class ChainOptimizer(torch.optim.Optimizer):
    """A GradientTransformation as a torch optimizer; made by `as_optimizer` and by the classes of `gradtx.optim`."""

    def __init__(
        self,
        tx: GradientTransformation,
        params: Any,
        *,
        compile: bool | str | Mapping[str, Any] = False,
        seed: int = 0,
    ):
        check_transformation(type(self).__name__, "tx", tx)
        self._tx, self._engine = tx, None if compile is False else Engine(compiler_options(compile))
        self._hessian = HessianSource(type(self).__name__, tx, seed)
        self._views: list[GroupView] = []
        self._records: dict[Tensor, Record] = {}
        self._present: list[Tensor] = []  # the parameters in the order of the groups, as last seen
        self._clock_paths: dict[Any, Path] = {}
        super().__init__(params, {})
        run = self._run(initial=True)
        block = Block.of(tx, run, 0)
        self._takes_none = takes_none(block.operations)
        self._agrees = any(operation.agree for operation in operations_of(block))
        for selector in run.selectors:
            try:
                selector.check_used([record.name for record in self._records.values()])
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
        names = group.get("param_names") or [str(len(self._records) + i) for i in range(len(params))]
        records = dict(self._records)
        for name, param in zip(names, params, strict=True):
            check_leaf(name, param, type(self).__name__)
            records[param] = Record(_unique(name, records), param)
        run = self._run(initial=True, records=records)
        block = Block.of(self._tx, run, 0)
        parts: dict[tuple, list[int]] = {} if params else {(): []}
        for i, param in enumerate(params):
            parts.setdefault(self._labels(run, block, param), []).append(i)
        views = []
        for labels, members in sorted(parts.items(), key=lambda item: [s.labels.index(v) for s, v in item[0]]):
            own = group if len(parts) == 1 else dict(group)  # the dict that the user gave, as in torch
            own["params"] = [params[i] for i in members]
            if "param_names" in own:
                own["param_names"] = [names[i] for i in members]
            if labels:
                own["label"] = ".".join(label for _, label in labels)
            view = GroupView(self._tx, own, {id(selector): label for selector, label in labels})
            view.show(lambda entry: 0)
            self._hessian.mark(own)
            views.append(view)
        made = [self._initial(view, view.group["params"], records) for view in views]
        self._records, self._clock_paths = records, run.clock_paths
        for view, (layouts, states) in zip(views, made, strict=True):
            self._views.append(view)
            self.param_groups.append(view.group)
            self._keep(layouts, states)
        self._present = [param for view in self._views for param in view.group["params"]]

    def _labels(self, run: OptimizerRun, block: Block, param: Tensor) -> tuple:
        leaf = self._leaf(run, param, Clock(torch.ones((), dtype=torch.int64, device=CPU)))
        try:
            return tuple(block.labels(leaf))
        except ValueError:
            if block.is_frozen(leaf):
                return ()
            raise

    def _synced(self) -> list[GroupView]:
        """The views of the present groups and parameters, also after somebody changed `param_groups`."""
        views, groups = self._views, self.param_groups
        if len(views) != len(groups) or any(v.group is not g for v, g in zip(views, groups, strict=True)):
            by_dict = {id(view.group): view for view in views}
            by_params = {tuple(map(id, view.group["params"])): view for view in views}
            found = [by_dict.get(id(g)) or by_params.get(tuple(map(id, g["params"]))) for g in groups]
            self._views = [view or self._adopted(g) for view, g in zip(found, groups, strict=True)]
            for view, group in zip(self._views, groups, strict=True):
                view.group = group
        present = [param for group in groups for param in group["params"]]
        if not _identical(present, self._present) or len(present) != len(self._records):
            if len(present) != len(self._records) or any(param not in self._records for param in present):
                self._exchange(present)
            self._present = present
        return self._views

    def _rows(self, views: list[GroupView]) -> list[list[Record]]:
        """The records of each group's parameters."""
        rows = [[self._records[param] for param in view.group["params"]] for view in views]
        for i, row in enumerate(rows):
            for record in row:
                record.group, record.state = i, self.state.get(record.param, {})
        return rows

    def _exchange(self, present: list[Tensor]) -> None:
        """Somebody put other parameters in the groups: those that stand in the place of one that is gone take over
        its name and what selectors said of it.
        """
        old = self._records
        matcher = difflib.SequenceMatcher(None, list(map(id, self._present)), list(map(id, present)), autojunk=False)
        heirs: dict[Tensor, Tensor] = {}
        for tag, a, b, c, d in matcher.get_opcodes():
            if tag == "replace" and b - a == d - c:
                heirs.update(zip(self._present[a:b], present[c:d], strict=True))
        here = set(present)
        self._records = {}
        for param, record in old.items():  # in the old order, which lists of extras follow
            if param in here:
                self._records[param] = record
            elif param in heirs and heirs[param] not in old:
                heir = self._records[heirs[param]] = Record(record.name, heirs[param])
                heir.choices = dict(record.choices)
        for i, param in enumerate(present):
            if param not in self._records:
                self._records[param] = Record(_unique(str(len(old) + i), self._records), param)

    def _adopted(self, group: dict[str, Any]) -> GroupView:
        for param in group["params"]:
            self._records.setdefault(param, Record(_unique(str(len(self._records)), self._records), param))
        run = self._run(initial=True)
        block = Block.of(self._tx, run, 0)
        labels = self._labels(run, block, group["params"][0]) if group["params"] else ()
        view = GroupView(self._tx, group, {id(selector): label for selector, label in labels})
        view.show(self._count)
        return view

    # Runs, and the state of parameters.

    def _run(self, initial: bool, records: Any = None) -> OptimizerRun:
        records = self._records if records is None else records
        device = next((param.device for param in records), CPU)
        return OptimizerRun(self.state, records, device, initial)

    @staticmethod
    def _leaf(run: OptimizerRun, param: Tensor, clock: Clock, grad: Tensor | None = None, extras: Any = None) -> Leaf:
        record = run._records[param]
        shown = torch.empty(0, dtype=param.dtype, device=CPU) if is_lazy(param) else param.detach()
        leaf = Leaf(run, record.name, None if grad is None else grad.detach(), shown, extras or {}, clock)
        leaf.key, leaf.layout, leaf.state = param, record.layout, run._state.get(param, {})
        return leaf

    @torch.no_grad()
    def _initial(
        self, view: GroupView, params: list[Tensor], records: Any, anew: bool = False
    ) -> tuple[dict[Tensor, Layout], dict[Tensor, dict[str, Tensor]]]:
        """Layouts and first states of parameters, with the hyperparameters that the group was made with.

        Values that all parameters share are those of the others, if there are any and not all is made `anew`.
        """
        params = [param for param in params if not (is_lazy(param) or param.is_meta)]
        run = self._run(initial=True, records=records)
        clock = Clock(torch.ones((), dtype=torch.int64, device=run.device))
        block = Block.of(view.chain(view.first, CPU), run, 0)
        leaves = [self._leaf(run, param, clock) for param in params]
        for leaf in leaves:
            leaf.program = block.for_leaf(leaf)
        initialize(leaves)
        layouts, states = {}, {}
        for leaf in leaves:
            run.memory.take([leaf.given[1]])
            layout = layouts[leaf.key] = Layout.of(run, leaf)
            state = states[leaf.key] = {"step": torch.zeros((), dtype=_step_dtype(), device=CPU)}
            for path, slots in layout.slots.items():
                state.update({key: run.memory.fresh(leaf.new[path][slot]) for slot, key in slots.items()})
            for path, slots in layout.shared.items():
                values = run.new_shared[path] if anew else run.scalars(path) or run.new_shared[path]
                state.update({key: values[slot] for slot, key in slots.items()})
        run.commits.clear()
        return layouts, states

    def _keep(self, layouts: dict[Tensor, Layout], states: dict[Tensor, dict[str, Tensor]]) -> None:
        for param, state in states.items():
            self._records[param].layout = layouts[param]
            self._records[param].note(state)
            self.state[param] = state

    def _refresh(self, view: GroupView, params: Iterable[Tensor]) -> None:
        """Make state that nobody has used or touched once more, from the parameters' present values."""
        params = list(params)
        for param in params:
            record, state = self._records[param], self.state.get(param)
            if record.layout is None and state and record.waiting is None:  # state that moved along with a parameter
                layouts, fresh = self._initial(view, [param], self._records)
                matched(record.name, state, fresh[param], param.device, True)
                record.layout = layouts[param]
        again = [p for p in params if self._records[p].untouched(self.state.get(p, {}))]
        if again:
            self._keep(*self._initial(view, again, self._records))

    def _refresh_all(self) -> None:
        for view in self._synced():
            self._refresh(view, view.group["params"])

    def _prepare(self, view: GroupView, row: list[Record], changed: bool) -> None:
        """See to it that every parameter that is about to step has the slots of its group's links."""
        fresh = [record for record in row if record.made is not None or record.layout is None or not record.state]
        if not (fresh or changed):
            return
        stepping = [record.param for record in row if record.param.grad is not None]
        self._refresh(view, stepping)
        missing = [p for p in stepping if self._records[p].layout is None or not self.state.get(p)]
        if changed:
            missing = [p for p in view.group["params"] if self._records[p].layout is not None or p in missing]
        if missing:
            layouts, states = self._initial(view, missing, self._records)
            for param, state in states.items():
                record, new = self._records[param], layouts[param]
                old, keys = self.state.get(param, {}), (record.layout or new).owners()
                if record.waiting is not None:
                    old, record.waiting = matched(record.name, record.waiting, state, param.device, True), None
                # By stage, since a link that was switched on may now be the first owner of a key.
                kept = {key: old.get(keys.get(owner, ""), state[key]) for owner, key in new.owners().items()}
                self.state[param] = {"step": old.get("step", state["step"]), **kept}
                record.layout = new
        for record in row:
            record.made = None if record.param.grad is not None else record.made
            record.look(self.state.get(record.param, {}))

    def _count(self, entry: Entry | None = None) -> int:
        """The largest step of the parameters; for a hyperparameter inside a wrapper with a clock, that clock's."""
        path = self._clock_path(entry)
        if path is not None:
            return int(self._run(initial=False).scalars(path).get("step", 0))
        steps = (self.state.get(param, {}).get("step", 0) for param in self._records)
        return max(map(int, steps), default=0)

    def _clock_path(self, entry: Entry | None) -> Path | None:
        place = () if entry is None else entry.place[0]
        paths = (self._clock_paths.get(place[:n]) for n in range(len(place), -1, -1))
        return None if entry is None else next((path for path in paths if path is not None), None)

    # Steps.

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, **extras: Any) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradients anew and returns the loss; links may call it again.
            **extras: What links need beyond the gradients; by leaf as a list in parameter order or a dict by name.
                A `hessian_diag` that is left out is estimated at the steps that use it, from the gradients of
                `loss.backward(create_graph=True)` or by a closure that calls `loss.backward()`.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: a sparse gradient.
            TypeError, ValueError: an unknown or missing extra, a hyperparameter that is out of range; nothing has
                changed then.
        """
        loss, hessian = None, HessianStep(self, extras)
        if closure is not None:
            with torch.enable_grad(), hessian:
                loss = closure()
            if loss is not None:
                extras.setdefault("value", loss.detach() if isinstance(loss, Tensor) else loss)
            extras.setdefault("grad_fn", closure)
        views = self._synced()
        run = self._run(initial=False)
        run.grad_fn = lambda values: self._gradients_at(values, extras["grad_fn"])
        scalars, trees = self._extras(run, extras)
        rows = self._rows(views)
        values = self._checked(views, rows)
        for view, row, present in zip(views, rows, values, strict=True):
            self._prepare(view, row, view.settle(present))
        work = [
            record
            for row in rows
            for record in row
            if record.layout is not None and (record.param.grad is not None or self._takes_none)
        ]
        count = max((record.count for row in rows for record in row), default=0)
        blocks: list[Block] = []
        made: dict[int, Leaf] = {}

        def leaves_of(work: list[Record]) -> list[Leaf]:
            """Made when they are asked for first: what goes into bundles needs none."""
            if not blocks:
                pairs = zip(views, values, strict=True)
                blocks.extend(Block.of(view.chain(present, CPU), run, count) for view, present in pairs)
            missing = [record for record in work if id(record) not in made]
            made.update((id(record), leaf) for record, leaf in self._leaves(run, blocks, missing, scalars, trees))
            return [made[id(record)] for record in work]

        if self._hessian.link is not None:
            found = leaves_of(work)
            hessian.supply(found)
            trees = {**trees, "hessian_diag": {leaf.name: leaf.extras.get("hessian_diag") for leaf in found}}
        calls_again = "grad_fn" in extras and "grad_fn" in self._tx.needs
        bundles: list[Bundle] = []
        if self._engine is not None and not calls_again:
            pairs = zip(views, values, strict=True)
            frames = [view.structure(present, self._count) for view, present in pairs]
            structures, numbers = [frame for frame, _ in frames], [own for _, own in frames]
            given = Call(run, count, views, structures, numbers, work, leaves_of, scalars, trees)
            bundles, work = self._engine.bundles(given)
        leaves: list[Any] = [*bundles]
        if work or not bundles or (len(views) > 1 and self._agrees):
            leaves += (each for leaf in leaves_of(work) if FROZEN not in leaf.program[:1] for each in parts_of(leaf))
            check_agreement(blocks)
        if calls_again:
            done: list[Leaf] = []  # a leaf that is through early must not move before the closure is called again
            execute(leaves, done.append)
            for leaf in done:
                self._write(leaf)
        else:
            waiting = list(bundles)
            self._count_steps(bundles, 1)  # now, while all this is in the processor's cache
            try:
                execute(leaves, lambda leaf: waiting.remove(leaf) if isinstance(leaf, Bundle) else self._write(leaf))
            finally:  # what was not written doesn't count, where a leaf raises
                self._count_steps(waiting, 0)
        for commit in reversed(run.commits):
            commit()
        run.commits.clear()  # they refer to the run: a cycle would keep its tensors until Python's collector comes
        self._write_shared(run)
        for view in views:
            view.show(self._count)
        return loss

    def _extras(self, run: OptimizerRun, extras: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        kinds = check_extras(self._tx, True, extras, CALL)
        names = [record.name for record in self._records.values()] if extras else []
        for key, value in extras.items():
            if kinds[key].startswith("leaf") and isinstance(value, list | tuple):
                if len(value) != len(names):
                    raise ValueError(f"{key}: {len(value)} tensors for {len(names)} parameters")
                extras[key] = dict(zip(names, value, strict=True))
        scalars, trees = split_extras(extras, kinds, dict.fromkeys(names))
        run.known_extras, run.leaf_extras = kinds, trees
        run.memory.take(tensors(trees))  # a rule may keep one as it is
        return scalars, trees

    def _checked(self, views: list[GroupView], rows: list[list[Record]]) -> list[dict[str, Any]]:
        """The values of all groups, after everything that can be checked before anything changes."""
        values = [view.values() for view in views]
        for view, row, present in zip(views, rows, values, strict=True):
            view.check(present)
            for record in row:
                grad, state = record.param.grad, record.state
                if grad is not None and grad.is_sparse:
                    raise RuntimeError(f"{type(self).__name__}: parameter {record.name!r} has a sparse gradient")
                lacking = record.layout.lacking(state) if state and record.layout is not None else None
                if lacking is not None:
                    raise ValueError(f"{type(self).__name__}: the state of parameter {record.name!r} lacks {lacking!r}")
                record.look(state)
        return values

    def _leaves(
        self, run: Any, blocks: list[Block], work: list[Record], scalars: Any, trees: Any
    ) -> Iterator[tuple[Record, Leaf]]:
        clocks: dict[int, Clock] = {}
        for record in work:
            count = record.count
            if count not in clocks:
                clocks[count] = Clock(torch.tensor(count + 1, device=CPU), count + 1)
            leaf = self._leaf(run, record.param, clocks[count], record.param.grad, scalars)
            if trees:
                own = {key: by_leaf(key, values[leaf.name], leaf) for key, values in trees.items()}
                leaf.extras = {**scalars, **own}
            leaf.program = blocks[record.group].for_leaf(leaf)
            yield record, leaf

    @staticmethod
    def _count_steps(bundles: list[Bundle], by: int) -> None:
        records = [record for bundle in bundles for record in bundle.records]
        counts = {count: torch.tensor(float(count + by), device=CPU) for count in {record.count for record in records}}
        if records:
            steps = [record.state["step"] for record in records]
            torch._foreach_copy_(steps, [counts[record.count] for record in records])

    @staticmethod
    def _write(leaf: Leaf) -> None:
        """The one place that changes a parameter: when its values (or those of a part of it) are all there."""
        param, state, update = leaf.key, leaf.state, leaf.result()
        last = leaf.window is None or leaf.window.stop == param.numel()
        # Only now: once old state is replaced, its memory may come back as that of a later leaf's new state.
        old = [*(tensor for tensor in leaf.given if tensor is not None), *state.values()]
        taken = {memory_of(tensor) for tensor in old}
        for path, slots in leaf.new.items():
            keys = leaf.layout.slots[path]
            if leaf.window is not None:  # written in place, so nothing may still be a view of old state
                slots = {slot: v.clone() if memory_of(v) in taken else v for slot, v in slots.items()}
            for slot, value in slots.items():
                key = keys[slot]
                if leaf.window is not None and state[key].shape == param.shape:
                    part(state[key], leaf).copy_(value)
                elif last:
                    state[key] = leaf.run.memory.fresh(value, taken)
        if leaf.given[0] is not None and last:
            state["step"] = state["step"] + 1
        if update is not None:
            leaf.given[1].add_(update)
        leaf.release()

    def _write_shared(self, run: OptimizerRun) -> None:
        new = {
            path: {name: run.memory.fresh(value) for name, value in found.items()}
            for path, found in run.new_shared.items()
        }
        if not new:
            return
        for param, record in self._records.items():
            for path, slots in record.layout.shared.items() if record.layout is not None else ():
                if path in new:
                    self.state[param].update({key: new[path][slot] for slot, key in slots.items()})

    def _gradients_at(self, values: dict[str, Tensor], closure: Callable[[], Any]) -> dict[str, Tensor]:
        """Gradients by the closure at other weights; weights and gradients are put back whatever happens."""
        named = {record.name: param for param, record in self._records.items()}
        check_names(values, [name for name in named if name in values], "params", "the optimizer's parameters")
        old = {name: (param.detach().clone(), param.grad) for name, param in named.items() if not is_lazy(param)}
        try:
            for name in old:
                named[name].grad = None
                if name in values:
                    named[name].copy_(placed_as(values[name], named[name]))
            with torch.enable_grad():
                closure()
            found = {}
            for name, value in values.items():
                grad = named[name].grad
                found[name] = torch.zeros_like(value) if grad is None else grad.detach().to(value.dtype)
            return found
        finally:
            for name, (own, grad) in old.items():
                named[name].copy_(own)
                named[name].grad = grad

    @contextlib.contextmanager
    def eval_params(self) -> Iterator[None]:
        """Put the weights to evaluate with in place of the parameters, and the parameters back at the end."""
        with torch.no_grad():
            self._refresh_all()
            run = self._run(initial=False)
            clock = Clock(torch.tensor(self._count() + 1, device=CPU))
            swapped = {}
            for view in self._views:
                block = Block.of(view.chain(view.values(), CPU), run, self._count())
                for param in view.group["params"]:
                    if self._records[param].layout is not None:
                        leaf = self._leaf(run, param, clock)
                        found = evaluated(leaf, block.for_leaf(leaf))
                        if found is not None:
                            swapped[param] = (param.detach().clone(), found)
            run.commits.clear()
            for param, (_, found) in swapped.items():
                param.copy_(found)
        try:
            yield
        finally:
            with torch.no_grad():
                for param, (own, _) in swapped.items():
                    param.copy_(own)

    # Checkpoints and copies.

    def state_dict(self) -> dict[str, Any]:
        """As torch's; state that no step has used yet is made from the present parameters."""
        self._refresh_all()
        return super().state_dict()

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
        load(self, state_dict, strict)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_tx", "_views", "_clock_paths", "_records", "_present", "_hessian", "_engine", "_takes_none", "_agrees")
        for param, record in self._records.items():
            if not record.untouched(self.state.get(param, {})):
                record.made = None
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for param, record in self._records.items():
            if record.made is not None:  # copies start counting their versions anew
                record.note(self.state[param])


def _identical(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def _step_dtype() -> torch.dtype:
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32  # as torch.optim


def _unique(name: str, records: dict[Tensor, Record]) -> str:
    """A name that no other parameter has: leaves go by name."""
    taken = {record.name for record in records.values()}
    return name if name not in taken else next(n for i in range(1, len(taken) + 2) if (n := f"{name}#{i}") not in taken)
