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

from gradtx._errors import Path
from gradtx._execution import Block, Leaf, initialize, takes_none
from gradtx._pure import evaluated
from gradtx._runs import clock_at
from gradtx._tree import check_leaf
from gradtx.context import Clock
from gradtx.core import Entry, GradientTransformation, check_transformation
from gradtx.optim._checkpoint import load, matched
from gradtx.optim._doubts import warn_of_misspelt
from gradtx.optim._engine import Engine, compiler_options
from gradtx.optim._groups import GroupView
from gradtx.optim._hessian import HessianSource, HessianStep
from gradtx.optim._run import Layout, OptimizerRun, Record
from gradtx.optim._scaling import Count, Scaling
from gradtx.optim._step import Step

CPU = torch.device("cpu")


class ChainOptimizer(torch.optim.Optimizer):
    """A GradientTransformation as a torch optimizer; made by `as_optimizer` and by the classes of `gradtx.optim`."""

    _step_supports_amp_scaling = True  # torch's word for: GradScaler leaves unscaling and skipping to `step`

    def __init__(
        self,
        tx: GradientTransformation,
        params: Any,
        *,
        compile: bool | str | Mapping[str, Any] = False,
        seed: int = 0,
    ):
        owner = type(self).__name__
        check_transformation(owner, "tx", tx)
        _check_no_module(owner, params)
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
        self._agrees = any(operation.agree for operation in block.walk())
        # Links that choose by the count what they do at all, and functions of the user's, have the host wait anyway.
        self._host_counts = self._hessian.link is not None or not all(op.compiles for op in block.walk())
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
        if isinstance(param_group, Mapping):
            _check_no_module(type(self).__name__, param_group.get("params"))
        before, defaults, self.defaults = len(self.param_groups), self.defaults, {}
        try:
            super().add_param_group(param_group)
            group = self.param_groups[-1]
        finally:
            del self.param_groups[before:]
            self.defaults = defaults
        params, keys = group["params"], list(group)
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
        # Before anything changes, since a warning may be an error. While this is made, torch's constructor calls.
        warn_of_misspelt(type(self).__name__, keys, self._tx._entries(), 2 if self.defaults else 5)
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
        """The largest step of the parameters; for a hyperparameter inside a wrapper with a clock, that clock's.

        Where a device counts, this is as much as the host knows.
        """
        path = self._clock_path(entry)
        if path is not None:
            return int(self._run(initial=False).scalars(path).get("step", 0))
        counts = (record.counted(self.state.get(param, {})) for param, record in self._records.items())
        return max((count.most if isinstance(count, Count) else count for count in counts), default=0)

    def _counts_on_host(self) -> bool:
        """Whether the host has to know the counts, also under a GradScaler."""
        return self._host_counts or len({param.device for param in self._records}) > 1

    def _clock_path(self, entry: Entry | None) -> Path | None:
        return None if entry is None else clock_at(entry.place[0], self._clock_paths)

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
            RuntimeError: a sparse gradient; a closure, or a `hessian_diag` to estimate, under an enabled GradScaler.
            TypeError, ValueError: an unknown or missing extra, a hyperparameter that is out of range; nothing has
                changed then.
        """
        scaling = Scaling.asked_of(self)
        if scaling is not None:
            if closure is not None:
                raise RuntimeError("closures are not supported under an enabled GradScaler: call step without one")
            if self._counts_on_host() and not scaling.proceed:
                scaling.unscale(self._records)
                return None
        loss, hessian = None, HessianStep(self, extras)
        if closure is not None:
            with torch.enable_grad(), hessian:
                loss = closure()
            if loss is not None:
                extras.setdefault("value", loss.detach() if isinstance(loss, Tensor) else loss)
            extras.setdefault("grad_fn", closure)
        step = Step(self, extras, scaling)
        hessian.supply(step)
        step.run()
        return loss

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
        own = ["_tx", "_views", "_clock_paths", "_records", "_present", "_hessian", "_engine"]
        own += ["_takes_none", "_agrees", "_host_counts"]
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


def _check_no_module(owner: str, params: Any) -> None:
    if isinstance(params, torch.nn.Module) and not isinstance(params, torch.nn.ParameterList):
        kind = type(params).__name__
        raise TypeError(f"{owner}: needs parameters, got a {kind}; pass model.parameters() or model.named_parameters()")


def _step_dtype() -> torch.dtype:
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32  # as torch.optim


def _unique(name: str, records: dict[Tensor, Record]) -> str:
    """A name that no other parameter has: leaves go by name."""
    taken = {record.name for record in records.values()}
    return name if name not in taken else next(n for i in range(1, len(taken) + 2) if (n := f"{name}#{i}") not in taken)
