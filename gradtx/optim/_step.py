"""One step of an optimizer: what it reads, checks, computes and writes, in this order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx._execution import FROZEN, Block, Leaf, execute
from gradtx._pure import by_leaf, check_extras, split_extras
from gradtx._runs import memory_of
from gradtx._sharding import placed_as
from gradtx._tree import check_names, tensors
from gradtx.context import Clock
from gradtx.core import Entry
from gradtx.optim._engine import Bundle, Call
from gradtx.optim._run import Record, check_agreement, part, parts_of
from gradtx.optim._scaling import Count, Scaling, as_step, highest, place_counts, unscaling

CALL = "step(closure"
CPU = torch.device("cpu")


class Step:
    """Everything is checked, and state is seen to, when this is made; `run` computes and writes.

    `work` are the parameters that step, `trees` the extras that are given by leaf, `scaling` is what a scaler asks for.
    """

    def __init__(self, optimizer: Any, extras: dict[str, Any], scaling: Scaling | None):
        self._optimizer, self._extras, self.scaling = optimizer, extras, scaling
        self._views = optimizer._synced()
        self._run = run = optimizer._run(initial=False)
        run.grad_fn = lambda values: _gradients_at(optimizer, values, extras)  # not a method: that would be a cycle
        self._scalars, self.trees = self._split()
        rows = optimizer._rows(self._views)
        self._values = self._checked(rows)
        for view, row, present in zip(self._views, rows, self._values, strict=True):
            optimizer._prepare(view, row, view.settle(present))
        self.work = [
            record
            for row in rows
            for record in row
            if record.layout is not None and (record.param.grad is not None or optimizer._takes_none)
        ]
        self._counts_there = scaling is not None and not optimizer._counts_on_host()  # on the device
        if scaling is not None and self._counts_there:
            run.tick = scaling.on(run.device)[1]
        records = [record for row in rows for record in row]
        place_counts(records, run.device if self._counts_there else None)
        counts = {record.count for record in records}
        self._count = highest(counts)  # that which schedules follow
        self._after = {count: count.after(run.tick) if isinstance(count, Count) else count + 1 for count in counts}
        self._unscale = None if scaling is None else unscaling(run, scaling)
        self._blocks: list[Block] = []
        self._leaves: dict[int, Leaf] = {}

    def _split(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Extras as 0-d values and as trees by leaf."""
        optimizer, extras, run = self._optimizer, self._extras, self._run
        kinds = check_extras(optimizer._tx, True, extras, CALL)
        names = [record.name for record in optimizer._records.values()] if extras else []
        for key, value in extras.items():
            if kinds[key].startswith("leaf") and isinstance(value, list | tuple):
                if len(value) != len(names):
                    raise ValueError(f"{key}: {len(value)} tensors for {len(names)} parameters")
                extras[key] = dict(zip(names, value, strict=True))
        scalars, trees = split_extras(extras, kinds, dict.fromkeys(names))
        run.known_extras, run.leaf_extras = kinds, trees
        run.memory.take(tensors(trees))  # a rule may keep one as it is
        return scalars, trees

    def _checked(self, rows: list[list[Record]]) -> list[dict[str, Any]]:
        """The values of all groups, after everything that can be checked before anything changes."""
        owner = type(self._optimizer).__name__
        values = [view.values() for view in self._views]
        for view, row, present in zip(self._views, rows, values, strict=True):
            view.check(present)
            for record in row:
                grad, state, layout = record.param.grad, record.state, record.layout
                if grad is not None and grad.is_sparse:
                    raise RuntimeError(f"{owner}: parameter {record.name!r} has a sparse gradient")
                if state and layout is not None and not layout.keys <= state.keys():
                    raise ValueError(
                        f"{owner}: the state of parameter {record.name!r} lacks {min(layout.keys - state.keys())!r}"
                    )
                record.look(state)
        return values

    def leaves(self, work: list[Record]) -> list[Leaf]:
        """Made when they are asked for first: what goes into bundles needs none."""
        if not self._blocks:
            for view, present in zip(self._views, self._values, strict=True):
                self._blocks.append(Block.of(view.chain(present, CPU), self._run, self._count, self._unscale))
        missing = [record for record in work if id(record) not in self._leaves]
        self._leaves.update((id(record), leaf) for record, leaf in self._made(missing))
        return [self._leaves[id(record)] for record in work]

    def _made(self, work: list[Record]) -> Iterator[tuple[Record, Leaf]]:
        clocks: dict[int | Count, Clock] = {}
        for record in work:
            count = record.count
            if count not in clocks:
                known = not isinstance(count, Count)
                clocks[count] = (
                    Clock(torch.tensor(count + 1, device=CPU), count + 1) if known else Clock(count.made + 1)
                )
            leaf = self._optimizer._leaf(self._run, record.param, clocks[count], record.param.grad, self._scalars)
            if self.trees:
                own = {key: by_leaf(key, values[leaf.name], leaf) for key, values in self.trees.items()}
                leaf.extras = {**self._scalars, **own}
            leaf.program = self._blocks[record.group].for_leaf(leaf)
            yield record, leaf

    def run(self) -> None:
        optimizer, run, work = self._optimizer, self._run, self.work
        calls_again = "grad_fn" in self._extras and "grad_fn" in optimizer._tx.needs
        bundles: list[Bundle] = []
        if optimizer._engine is not None and not calls_again:
            bundles, work = optimizer._engine.bundles(self._call())
        leaves: list[Any] = [*bundles]
        if work or not bundles or (len(self._views) > 1 and optimizer._agrees):
            leaves += (each for leaf in self.leaves(work) if FROZEN not in leaf.program[:1] for each in parts_of(leaf))
            if len(self._views) > 1:
                check_agreement(self._blocks)
        if calls_again:
            done: list[Leaf] = []  # a leaf that is through early must not move before the closure is called again
            execute(leaves, done.append)
            for leaf in done:
                self._write(leaf)
        else:
            self._execute(leaves, bundles)
        for commit in reversed(run.commits):
            commit()
        run.commits.clear()  # they refer to the run: a cycle would keep its tensors until Python's collector comes
        self._write_shared()
        if self.scaling is not None:
            self.scaling.unscale(optimizer._records)
        for view in self._views:
            view.show(optimizer._count)

    def _call(self) -> Call:
        pairs = zip(self._views, self._values, strict=True)
        frames = [view.structure(present, self._counted) for view, present in pairs]
        structures, numbers = [frame for frame, _ in frames], [own for _, own in frames]
        extras = self._scalars, self.trees
        return Call(
            self._run, self._count, self._views, structures, numbers, self.work, self.leaves, *extras, self.scaling
        )

    def _counted(self, entry: Entry) -> int | Tensor:
        """The count that a schedule follows."""
        path = self._optimizer._clock_path(entry)
        if path is None:
            return self._count
        step = self._run.scalars(path).get("step", 0)
        return step if isinstance(self._count, Tensor) else int(step)

    def _execute(self, leaves: Iterable[Any], bundles: list[Bundle]) -> None:
        waiting = list(bundles)

        def finish(leaf: Any) -> None:
            if not isinstance(leaf, Bundle):
                return self._write(leaf)
            waiting.remove(leaf)
            for record in leaf.records if self._counts_there else ():
                record.count_as(self._after[record.count])
            return None

        self._count_steps(bundles, self._after)  # now, while all this is in the processor's cache
        try:
            execute(leaves, finish)
        finally:  # what was not written doesn't count, where a leaf raises
            self._count_steps(waiting, {})

    @staticmethod
    def _count_steps(bundles: list[Bundle], becomes: dict[int | Count, int | Count]) -> None:
        records = [record for bundle in bundles for record in bundle.records]
        values = {count: as_step(becomes.get(count, count)) for count in {record.count for record in records}}
        if records:
            steps = [record.state["step"] for record in records]
            torch._foreach_copy_(steps, [values[record.count] for record in records])

    def _write(self, leaf: Leaf) -> None:
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
            state["step"] = state["step"] + self._run.tick
            if self._counts_there:
                record = self._optimizer._records[param]
                record.count_as(self._after[record.count])
        if update is not None:
            leaf.given[1].add_(update)
        leaf.release()

    def _write_shared(self) -> None:
        run = self._run
        new = {
            path: {name: run.memory.fresh(value) for name, value in found.items()}
            for path, found in run.new_shared.items()
        }
        if not new:
            return
        for param, record in self._optimizer._records.items():
            for path, slots in record.layout.shared.items() if record.layout is not None else ():
                if path in new:
                    self._optimizer.state[param].update({key: new[path][slot] for slot, key in slots.items()})


def _gradients_at(optimizer: Any, values: dict[str, Tensor], extras: dict[str, Any]) -> dict[str, Tensor]:
    """Gradients by the closure at other weights; weights and gradients are put back whatever happens."""
    named = {record.name: param for param, record in optimizer._records.items()}
    check_names(values, [name for name in named if name in values], "params", "the optimizer's parameters")
    old = {name: (param.detach().clone(), param.grad) for name, param in named.items() if not is_lazy(param)}
    try:
        for name in old:
            named[name].grad = None
            if name in values:
                named[name].copy_(placed_as(values[name], named[name]))
        with torch.enable_grad():
            extras["grad_fn"]()
        found = {}
        for name, value in values.items():
            grad = named[name].grad
            found[name] = torch.zeros_like(value) if grad is None else grad.detach().to(value.dtype)
        return found
    finally:
        for name, (own, grad) in old.items():
            named[name].copy_(own)
            named[name].grad = grad
