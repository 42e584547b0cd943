"""Programs of the compiled engine: the links of a chain, traced for a bundle of leaves, compiled, working in place.

What is traced is the core itself, run on fake tensors with symbolic sizes; there is no second version of anything. A
sum over leaves cuts a program into passes. Each pass begins anew with the totals that are known by then, and all but
the last compute only what the sum needs, so that nothing is held in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from gradtx._errors import Path
from gradtx._execution import Block, Leaf, Operation, execute
from gradtx._runs import Run, memory_of
from gradtx.context import Clock
from gradtx.core import GradientTransformation
from gradtx.optim._compiler import compiled
from gradtx.optim._hoist import REPLACED, hoist, is_number, multiply
from gradtx.optim._run import Layout
from gradtx.optim._scaling import Scaling, unscaling


class Form(NamedTuple):
    """What decides a program besides the chain: what is passed, in which order, and what selectors said of the leaves.

    The flat arguments are: the number of this step, the count that schedules follow, where a GradScaler is at work its
    two numbers, hyperparameters, shared values, 0-d extras; then totals; then for each leaf whether it is real (a
    bundle may be padded), parameter, slots, gradient, extras.
    """

    layout: Layout
    choices: Mapping[Path, Any]
    numbers: int
    shared: Mapping[tuple[Path, str], torch.dtype]
    scalars: Mapping[str, torch.dtype]
    by_leaf: tuple[str, ...]
    absent: tuple[str, ...]  # extras that are None
    known_extras: Any
    width: int
    scaled: bool

    @property
    def slots(self) -> list[str]:
        """The keys of slots, in the order in which they are passed."""
        return self.layout.slot_keys


class Pass:
    """A function of flat arguments. It returns sums that `operation` waits for or, where that is None, writes what is
    new in place and returns new shared values; `names` says which.
    """

    sums: list[Tensor]
    operation: Operation | None
    names: tuple[Any, ...]

    def __init__(
        self, run: Callable[..., tuple[list[Tensor], Operation | None, tuple]], start: list[Tensor], leaves: Any
    ):
        self._sizes = ShapeEnv(duck_shape=False)
        self._mode = FakeTensorMode(shape_env=self._sizes, allow_non_fake_inputs=True)
        # Every argument is a tensor of its own: fakes of one and the same tensor would be taken for one argument.
        start, leaves = ([t.clone() if t.ndim == 0 else t for t in given] for given in (start, leaves))
        self._start = [self._mode.from_tensor(tensor, static_shapes=True) for tensor in start]
        self._leaves = [
            self._mode.from_tensor(tensor, symbolic_context=_symbolic(tensor), source=ConstantSource(f"leaf{i}"))
            if tensor.ndim
            else self._mode.from_tensor(tensor, static_shapes=True)
            for i, tensor in enumerate(leaves)
        ]

        def traced(*arguments: Tensor) -> list[Tensor]:
            self.sums, self.operation, self.names = run(list(arguments))
            return self.sums

        with self._mode, torch.no_grad():
            self._graph: Any = make_fx(traced, decomposition_table=REPLACED)(*self._start, *self._leaves)

    def fits(self, leaves: list[Tensor]) -> bool:
        """Whether the sizes of these tensors are as was assumed while tracing."""
        return self._sizes.evaluate_guards_for_args(self._leaves, leaves, ignore_static=False)

    def compile(self, options: Mapping[str, Any], known: dict[str, Any]) -> None:
        """Make three functions: what follows from numbers that bundles have in common (a bias correction) is computed
        once a step, what follows from 0-d slots as well (a product over steps) once a bundle, the rest for entries.
        Functions of the first kind are `known` by their code.
        """
        self._graph.graph.eliminate_dead_code()
        multiply(self._graph)
        arguments = self._graph.graph.find_nodes(op="placeholder")
        start, leaves = arguments[: len(self._start)], arguments[len(self._start) :]
        numbers = [node for node in leaves if is_number(node)]
        self._numbers = [leaves.index(node) for node in numbers]
        common, added = hoist(self._graph, start, start[-1])
        start = [*start, *added]
        own, added = hoist(self._graph, [*start, *numbers], start[-1])
        examples = [node.meta["val"] for node in (*start, *numbers)]
        self.common = (common and known.get(common.code)) or self._compiled(
            common, examples[: len(self._start)], options
        )
        if common is not None and not common.graph.find_nodes(op="get_attr"):
            known[common.code] = self.common
        self._own = self._compiled(own, examples, options)
        examples = [*examples[: len(start)], *(node.meta["val"] for node in added), *self._leaves]
        self._kernel: Any = self._compiled(self._graph, examples, options)
        del self._graph

    def _compiled(self, graph: Any, examples: list[Any], options: Mapping[str, Any]) -> Any:
        if graph is None:
            return None
        with tracing(TracingContext(self._mode)), torch.no_grad():
            return compiled(graph, examples, options)

    def prepare(self, start: list[Tensor]) -> list[Tensor]:
        """`start` and what follows from it alone."""
        return start if self.common is None else [*start, *self.common(*start)]

    def call(self, ready: list[Tensor], leaves: list[Tensor]) -> Sequence[Tensor]:
        """Run for a bundle; `ready` is what `prepare` made."""
        own = [] if self._own is None else self._own(*ready, *map(leaves.__getitem__, self._numbers))
        return self._kernel(*ready, *own, *leaves)


class Program:
    """The passes of one form, for one pattern of sizes: traced at once, compiled by `compile`."""

    def __init__(
        self,
        form: Form,
        chain: Callable[[list[Tensor]], GradientTransformation],
        start: list[Tensor],
        leaves: list[Tensor],
    ):
        self._form, self._chain = form, chain
        self.passes: list[Pass] = []
        totals: list[Tensor] = []
        while not self.passes or self.passes[-1].operation is not None:
            known = tuple(each.names for each in self.passes)
            self.passes.append(Pass(lambda arguments, known=known: self._run(arguments, known), start + totals, leaves))
            totals += [torch.zeros((), dtype=each.dtype, device=each.device) for each in self.passes[-1].sums]

    def fits(self, leaves: list[Tensor]) -> bool:
        return all(each.fits(leaves) for each in self.passes)

    def compile(self, options: Mapping[str, Any], known: dict[str, Any]) -> None:
        for each in self.passes:
            each.compile(options, known)

    def _run(
        self, arguments: list[Tensor], known: tuple[tuple[str, ...], ...]
    ) -> tuple[list[Tensor], Operation | None, tuple]:
        """One pass over a bundle, in the order of `Form`; `known` names the totals."""
        form, given = self._form, iter(arguments)
        step, count = next(given), next(given)
        scaling = Scaling(next(given), next(given)) if form.scaled else None
        tx = self._chain([next(given) for _ in range(form.numbers)])
        run = TracedRun(form, arguments[-1].device)
        for path, name in form.shared:
            run.old.setdefault(path, {})[name] = next(given)
        scalars: dict[str, Any] = {**{name: next(given) for name in form.scalars}, **dict.fromkeys(form.absent)}
        run.totals = [{name: next(given) for name in names} for names in known]
        unscale = None if scaling is None else unscaling(run, scaling)
        block = Block.of(tx, run, count, unscale)
        clock, leaves, taken = Clock(step), [], set()
        for i in range(form.width):
            real, param = next(given), next(given)
            state, grad = {key: next(given) for key in form.slots}, next(given)
            extras = {name: next(given) for name in form.by_leaf}
            leaf = Leaf(run, str(i), grad, param, scalars, clock)
            leaf.extras = {**scalars, **{name: value.to(leaf.wide) for name, value in extras.items()}}
            leaf.layout, leaf.state = form.layout, state
            leaf.program = block.for_leaf(leaf)
            run.real[leaf.name] = real
            leaves.append(leaf)
            taken.update(map(memory_of, (param, grad, *state.values(), *extras.values())))
        try:
            execute(leaves, lambda leaf: None)
        except AwaitedSumError as waiting:
            return list(waiting.sums.values()), waiting.operation, tuple(waiting.sums)
        for commit in reversed(run.commits):
            commit()
        new = {(path, name): value for path, values in run.new_shared.items() for name, value in values.items()}
        new = {key: value.clone() for key, value in new.items() if key in form.shared}
        results = [
            [
                (
                    leaf.state[form.layout.slots[path][slot]],
                    run.apart(leaf, value) if memory_of(value) in taken else value,
                )
                for path, slots in leaf.new.items()
                for slot, value in slots.items()
            ]
            for leaf in leaves
        ]
        updates = [
            run.apart(leaf, update) if memory_of(update) in taken else update
            for leaf in leaves
            for update in [leaf.result()]
        ]
        # Everything is computed before anything is written.
        for leaf, slots, update in zip(leaves, results, updates, strict=True):
            for old, value in slots:
                old.copy_(value)
            leaf.given[1].add_(update)
        return list(new.values()), None, tuple(new)


class AwaitedSumError(Exception):
    """A pass has come to a sum whose total is not known yet."""

    def __init__(self, operation: Operation, sums: dict[str, Tensor]):
        super().__init__(operation.path)
        self.operation, self.sums = operation, sums


class TracedRun(Run):
    """A run over the tensors that a program gets."""

    def __init__(self, form: Form, device: torch.device):
        super().__init__()
        self.device, self._choices = device, form.choices
        self.known_extras, self.leaf_extras = form.known_extras, form.by_leaf
        self.old: dict[Path, dict[str, Tensor]] = {}
        self.totals: list[dict[str, Tensor]] = []
        self.real: dict[str, Tensor] = {}

    def scalars(self, path: Path) -> dict[str, Tensor]:
        return self.old.get(path, {})

    def shared(self, path: Path, start: dict[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
        """As ever; of a branch that these leaves don't take there is nothing, and nothing comes of it."""
        return super().shared(path, start) if path in self.old else {name: make() for name, make in start.items()}

    def slots(self, path: Path, leaf: Leaf) -> dict[str, Tensor]:
        return {slot: leaf.state[key] for slot, key in leaf.layout.slots.get(path, {}).items()}

    def choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        return self._choices[path]

    def apart(self, leaf: Leaf, value: Tensor) -> Tensor:
        """The same numbers in memory of their own. Compilers take a clone away, and with it the order of writes."""
        return torch.where(self.real[leaf.name], value, value.new_zeros(()))

    def combined(self, operation: Operation, waiting: list[tuple[Leaf, Any]]) -> Any:
        if self.totals:
            return self.totals.pop(0)
        real = [
            (leaf, {name: torch.where(self.real[leaf.name], term, 0.0) for name, term in terms.items()})
            for leaf, terms in waiting
        ]
        raise AwaitedSumError(operation, operation.combine(real))


def _symbolic(tensor: Tensor) -> StatelessSymbolicContext:
    """Every size may change, except those that are 1."""
    return StatelessSymbolicContext(
        dynamic_sizes=[DimDynamic.STATIC if size == 1 else DimDynamic.DYNAMIC for size in tensor.shape]
    )
