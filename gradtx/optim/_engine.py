"""The compiled engine: leaves in bundles, each updated in place by one program that all bundles of a kind share.

A bundle takes the place of its leaves in `execute`. What decides a program is what decides structure: a chain's static
options, which slots there are, dtypes and which sizes are 1. The rest is an argument, so that no number, schedule,
group or missing gradient compiles anything twice.
"""

from __future__ import annotations

import logging
import operator
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._dynamo.guards import TensorGuards

from gradtx._exact import exact
from gradtx._execution import FROZEN, Leaf, Operation
from gradtx._sharding import is_sharded, local
from gradtx.optim._groups import GroupView
from gradtx.optim._run import OptimizerRun, Record
from gradtx.optim._scaling import Count, Scaling, next_number, on_device
from gradtx.optim._trace import Form, Pass, Program

logger = logging.getLogger("gradtx")

WIDTH = 8  # leaves in a bundle, where these are flat: more of them compile longer than they save
LARGE = 2**15  # entries from which a flat leaf is worth more than one thread, as torch's own kernels have it
PATIENCE = 3.0  # seconds of compiling after which a line is logged
COMPILING = threading.RLock()  # torch's tracer patches what is global while it is at work


Trees = Mapping[str, Mapping[str, Any]]  # extras by leaf: name -> leaf name -> tensor


class Call(NamedTuple):
    """What a step gives the engine: `structures` and `numbers` are those of the groups, `count` is the schedules',
    `work` are the parameters that step.
    """

    run: OptimizerRun
    count: int | Tensor
    views: list[GroupView]
    structures: list[Any]
    numbers: list[list[Any]]
    work: list[Record]
    leaves_of: Callable[[list[Record]], list[Leaf]]
    scalars: Mapping[str, Any]
    trees: Trees
    scaling: Scaling | None


class Bundle:
    """Leaves of one group and count that go through a program together; stands for them in `execute`."""

    update = True

    def __init__(self, records: list[Record], form: Form, flat: bool, name: str):
        self.records, self.form, self.flat, self.name = records, form, flat, name
        self.device = local(records[0].param).device
        self.template: list[Any] = []  # the leaves' arguments, without what is read from outside in each step
        self.program: list[Any] = []
        self.at = -1

    @torch.inference_mode(False)  # what pads is written in later steps too
    @torch.no_grad()
    def fill(self, flag: Callable[[torch.device, bool], Tensor], trees: Trees) -> None:
        """Make the aliases of what is held, and what pads a short bundle."""
        given, slots = 1 + len(self.form.by_leaf), self.form.slots
        for record in self.records:
            held = (record.param, *map(record.state.__getitem__, slots))
            own = [alias(tensor, record.param, self.flat) for tensor in held]
            self.template += [flag(self.device, True), *own, *[None] * given]
        self._size = len(self.template) // len(self.records)
        like = self.arguments(trees)[1 : self._size]
        for i in range(len(self.records), self.form.width):
            padding = (torch.zeros_like(t) if t.ndim == 0 else t.new_zeros(5 + i) for t in like)
            self.template += [flag(self.device, False), *padding]

    def arguments(self, trees: Trees) -> list[Tensor]:
        """What a program gets of the leaves: what is held; then gradients and extras, which are only read."""
        tensors, size, end = self.template.copy(), self._size, self._size * len(self.records)
        outside: list[list[Any]] = [[record.param.grad for record in self.records]]
        outside += [[trees[key][record.name] for record in self.records] for key in self.form.by_leaf]
        for i, column in enumerate(outside, start=size - len(outside)):
            tensors[i:end:size] = map(self._read, column, self.records)
        return tensors

    def _read(self, tensor: Any, record: Record) -> Tensor:
        """An alias of a tensor, or of a copy where its entries are laid out otherwise."""
        if tensor.ndim == 1 and type(tensor) is Tensor and not tensor.requires_grad and tensor.is_contiguous():
            return tensor  # it is what an alias would be
        try:
            return alias(tensor, record.param, self.flat)
        except OddTensorError:
            return alias(torch.empty_like(record.param, dtype=tensor.dtype).copy_(tensor), record.param, self.flat)

    def begin(self, run: OptimizerRun, first: list[Tensor], trees: Trees, ready: dict[Any, Any]) -> None:
        """Take what this step gives; `ready` is where bundles keep for one another what follows from numbers alone."""
        self.run, self.at, self._arguments, self._tensors = run, -1, first, self.arguments(trees)
        self._ready = ready

    def call(self, compiled: Pass) -> dict[Any, Tensor]:
        key = id(compiled.common), *map(id, self._arguments)  # bundles of a group and count have the same ones
        if key not in self._ready:
            self._ready[key] = self._arguments, compiled.prepare(self._arguments)
        return dict(zip(compiled.names, compiled.call(self._ready[key][1], self._tensors), strict=True))

    def know(self, totals: list[Tensor]) -> None:
        self._arguments = [*self._arguments, *(total.to(self.device) for total in totals)]

    def end(self, new: Mapping[Any, Tensor]) -> None:
        for (path, name), value in new.items():
            self.run.new_shared.setdefault(path, {}).setdefault(name, value)
        del self.run, self._arguments, self._tensors, self._ready


class PassOperation(Operation):
    """One pass of a bundle as an operation: up to a sum over leaves, or to the end."""

    def __init__(self, compiled: Pass):
        self._compiled, self._operation = compiled, compiled.operation
        self.path = () if compiled.operation is None else compiled.operation.path

    def start(self, bundle: Any) -> Any:
        found = bundle.call(self._compiled)
        return bundle.end(found) if self._operation is None else found

    def combine(self, waiting: list[tuple[Any, Any]]) -> Any:
        assert self._operation is not None
        return self._operation.combine(waiting)

    def resume(self, bundle: Any, total: dict[str, Tensor]) -> None:
        bundle.know([total[name] for name in self._compiled.names])


class OddTensorError(Exception):
    """A tensor that no program takes: its leaf steps eagerly."""


def alias(tensor: Tensor, like: Tensor, flat: bool) -> Tensor:
    """The same memory as a plain tensor; flattened so that its entries go with those of `like` one by one."""
    tensor = _plain(tensor)
    flat = flat and (tensor.ndim > 0 or like.ndim == 0)
    if tensor.is_contiguous() and (not flat or like.is_contiguous()):
        return tensor.view(-1) if flat and tensor.ndim != 1 else tensor
    if flat and tensor.stride() == local(like).stride() and _dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    raise OddTensorError


def _plain(tensor: Tensor) -> Tensor:
    """A tensor that a program takes: of a DTensor, what this process has."""
    if type(tensor) is not Tensor:
        tensor = local(tensor).detach()
        if type(tensor) is not Tensor:
            raise OddTensorError
    return tensor.detach() if tensor.requires_grad else tensor


def _dense(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


class Plan:
    """The bundles of a step, and the parameters that step eagerly; the same as long as `token` is, and `holds`."""

    def __init__(self, token: Any, work: list[Record], bundles: list[Bundle], rest: list[Record]):
        self.token, self.bundles, self.rest = token, bundles, rest
        self._records, self._states = work, [record.state for record in work]
        self._params = [record.param for record in work]
        slots = [(record.state, key) for bundle in bundles for record in bundle.records for key in bundle.form.slots]
        # Eager steps make new slots, so theirs are not among these.
        self._owners, self._keys = [state for state, _ in slots], [key for _, key in slots]
        self._held = self._present()
        self._addresses = [tensor.data_ptr() for tensor in self._held]
        sizes: Any = [list(tensor.shape) for tensor in self._held]
        strides: Any = [list(tensor.stride()) for tensor in self._held]
        self._forms = TensorGuards(*self._held, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)

    def _present(self) -> list[Tensor]:
        return [*self._params, *map(operator.getitem, self._owners, self._keys)]

    def holds(self) -> bool:
        """Whether everything is still where it was, and shaped as it was."""
        if not all(map(operator.is_, map(operator.attrgetter("state"), self._records), self._states)):
            return False
        held = self._present()
        return (
            all(map(operator.is_, held, self._held))
            and list(map(Tensor.data_ptr, held)) == self._addresses
            and self._forms.check(*held)
        )


class Engine:
    """Programs, and the plan of the last step. `options` are the compiler's."""

    def __init__(self, options: Mapping[str, Any]):
        self._options = dict(options)
        self._programs: dict[Any, list[Program]] = {}
        self._known: dict[str, Any] = {}  # functions of numbers, by their code
        self._plan: Plan | None = None
        self._numbers: dict[Any, tuple[list[Any], list[Tensor]]] = {}
        self._flags: dict[Any, Tensor] = {}
        self._told: set[str] = set()
        self._broken = False

    def __reduce__(self) -> tuple:
        return Engine, (self._options,)  # programs are made again where they are needed

    def bundles(self, call: Call) -> tuple[list[Bundle], list[Record]]:
        """The bundles of this step, ready to run, and the work that is left for eager leaves."""
        if self._broken or not call.work:
            return [], call.work
        gradients, counts = [record.param.grad for record in call.work], [record.count for record in call.work]
        ranks = {count: i for i, count in enumerate(dict.fromkeys(counts))}
        token = (
            call.work,
            [record.group for record in call.work],
            [ranks[count] for count in counts],
            [record.layout for record in call.work],
            list(map(_form, gradients)),
            call.structures,
            {name: value.dtype for name, value in call.scalars.items() if isinstance(value, Tensor)},
            {key: {name: _form(value) for name, value in tree.items()} for key, tree in call.trees.items()},
            torch.is_inference_mode_enabled(),
            call.scaling is not None,
        )
        plan = self._plan
        known = plan is not None and plan.token == token and plan.holds()
        leaves = [] if known else call.leaves_of(call.work)  # raises what is wrong with the call, as without an engine
        try:
            if plan is None or not known:
                plan = self._plan = self._planned(token, leaves, call)
            beginnings: dict[Any, list[Tensor]] = {}
            ready: dict[Any, Any] = {}
            for bundle in plan.bundles:
                key = bundle.records[0].count, bundle.device
                if key not in beginnings:
                    beginnings[key] = _beginning(*key, call)
                first = [*beginnings[key], *self._first(bundle.records[0].group, bundle.form, bundle.device, call)]
                bundle.begin(call.run, first, call.trees, ready)
            return plan.bundles, plan.rest
        except Exception as error:
            self._broken = True
            reason = next(iter(str(error).strip().splitlines()), "")
            warnings.warn(
                f"compile=True has no effect, steps run eagerly: {type(error).__name__}: {reason}",
                RuntimeWarning,
                stacklevel=6,  # who called `step`
            )
        return [], call.work

    def _first(self, group: int, form: Form, device: torch.device, call: Call) -> list[Tensor]:
        """A group's numbers as 0-d tensors (the same ones as long as nobody changes them), shared values, extras."""
        numbers, known = call.numbers[group], self._numbers.get((group, device))
        if known is None or any(isinstance(value, Tensor) for value in numbers) or known[0] != numbers:
            known = self._numbers[group, device] = (list(numbers), [exact(value, device) for value in numbers])
        if not (form.shared or form.scalars):
            return known[1]
        shared = [call.run.scalars(path)[name].to(device, dtype) for (path, name), dtype in form.shared.items()]
        return [*known[1], *shared, *(call.scalars[name].to(device) for name in form.scalars)]

    def _flag(self, device: torch.device, real: bool) -> Tensor:
        if (device, real) not in self._flags:
            self._flags[device, real] = torch.tensor(real, device=device)
        return self._flags[device, real]

    # Planning.

    def _planned(self, token: Any, leaves: list[Leaf], call: Call) -> Plan:
        kinds: dict[Any, list[tuple[Record, Leaf]]] = {}
        bundles, rest, entangled = [], [], _overlapping(call.work)
        for record, leaf in zip(call.work, leaves, strict=True):
            kind = None if id(record) in entangled else self._kind(record, leaf, call)
            if kind is None:
                rest.append(record)
            else:
                kinds.setdefault((record.group, record.count, kind), []).append((record, leaf))
        for (group, _, kind), found in kinds.items():
            found.sort(key=lambda pair: -pair[0].param.numel())  # compilers look at the first sizes they see
            for i in range(0, len(found), kind.width):
                members = [record for record, _ in found[i : i + kind.width]]
                bundle = self._bundle(members, found[i][1], kind, (call.structures[group], kind), call)
                if bundle is None:
                    rest.extend(members)
                else:
                    bundles.append(bundle)
        return Plan(token, call.work, bundles, rest)

    def _kind(self, record: Record, leaf: Leaf, call: Call) -> Kind | None:
        """What leaves of one program share; None for a leaf that steps eagerly."""
        param = record.param
        if param.grad is None or param.grad.shape != param.shape or leaf.program[:1] == [FROZEN]:
            return None
        for operation in leaf.program:
            if not operation.compiles:
                name = ".".join(operation.path)
                if name not in self._told:
                    self._told.add(name)
                    logger.warning("%s is not compiled: leaves that pass it step eagerly", name)
                return None
        assert record.layout is not None
        slots = [record.state[key] for key in record.layout.slot_keys]
        flat = all(operation.elementwise for operation in leaf.program)
        flat = flat and all(slot.shape in (param.shape, ()) for slot in slots)
        if not flat and is_sharded(param):
            return None  # a reduction over a shard is not that over the whole
        by_leaf = tuple(key for key, tree in call.trees.items() if tree[leaf.name] is not None)
        try:
            tensors = [alias(tensor, param, flat) for tensor in (param, *slots)]
        except OddTensorError:
            return None
        if (
            any(tensor.is_inference() for tensor in (*tensors, record.state["step"]))
            and not torch.is_inference_mode_enabled()
        ):
            return None  # can't be written in place
        entries, dimensions = tensors[0].numel(), tensors[0].ndim
        if entries <= 1:
            return None  # compilers make programs of their own for sizes 0 and 1
        outside = (param.grad, *(call.trees[key][leaf.name] for key in by_leaf))
        return Kind(
            flat,
            tuple((tensor.dtype, tensor.device, tuple(size == 1 for size in tensor.shape)) for tensor in tensors),
            tuple((tensor.dtype, tensor.device) for tensor in outside),
            by_leaf,
            tuple(sorted(record.choices.items())),
            repr(record.layout[:2]),
            WIDTH if dimensions <= 1 else 1,
            flat and entries >= LARGE,
        )

    def _bundle(self, records: list[Record], leaf: Leaf, kind: Kind, key: Any, call: Call) -> Bundle | None:
        record, layout = records[0], records[0].layout
        assert layout is not None
        form = Form(
            layout,
            record.choices,
            len(call.numbers[record.group]),
            {
                (path, name): call.run.scalars(path)[name].dtype
                for path, names in layout.shared.items()
                for name in names
            },
            {name: value.dtype for name, value in call.scalars.items() if isinstance(value, Tensor)},
            kind.by_leaf,
            tuple(name for name, value in leaf.extras.items() if value is None),
            call.run.known_extras,
            kind.width,
            call.scaling is not None,
        )
        bundle = Bundle(records, form, kind.flat, leaf.name)
        bundle.fill(self._flag, call.trees)
        first = _beginning(record.count, bundle.device, call)
        first += self._first(record.group, form, bundle.device, call)
        tensors = bundle.arguments(call.trees)
        key = (*key, tuple(form.shared.items()), tuple(form.scalars.items()), form.absent, form.scaled)
        programs = self._programs.setdefault(key, [])
        program = next((program for program in programs if program.fits(tensors)), None)
        if program is None:
            start, chain = time.monotonic(), call.views[record.group].chain_of(key[0])
            examples = tensors
            if kind.flat and not programs:  # lengths that tell the compiler whether threads are worth it
                size, length = len(tensors) // kind.width, 4 * LARGE if kind.large else 64
                examples = [t if t.ndim == 0 else t.new_empty(length + i // size) for i, t in enumerate(tensors)]
            with COMPILING:
                program = Program(form, chain, first, examples)
                if not program.fits(tensors):  # a rule asks for the length
                    program = Program(form, chain, first, tensors)
                if len(program.passes) > 1 and is_sharded(record.param):
                    return None  # a sum over this process's part is not that over all
                # Said outright: the compiler's cache does not tell programs apart by the lengths that it was shown.
                threads = {} if records[0].param.numel() >= LARGE else {"cpp.threads": 1}
                program.compile({**threads, **self._options}, self._known)
            programs.append(program)
            if time.monotonic() - start > PATIENCE:
                logger.info("compiled a program for %s in %.1f s", leaf.name, time.monotonic() - start)
        bundle.program = [PassOperation(each) for each in program.passes]
        return bundle


class Kind(NamedTuple):
    """What leaves of one program share, besides the structure of their group's chain."""

    flat: bool
    held: tuple[Any, ...]
    outside: tuple[Any, ...]
    by_leaf: tuple[str, ...]
    choices: tuple[Any, ...]
    layout: str
    width: int
    large: bool


def _form(tensor: Tensor | None) -> Any:
    """What of a tensor a plan depends on, besides where it is."""
    return None if tensor is None else (tensor.dtype, tensor.shape)


def _overlapping(records: list[Record]) -> set[int]:
    """The records with a parameter or slot that shares entries with another: what one writes, the next has to see."""
    spans, found = [], set()
    for record in records:
        assert record.layout is not None
        for tensor in (record.param, *map(record.state.__getitem__, record.layout.slot_keys)):
            tensor = local(tensor)
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            if tensor.numel():
                start = tensor.data_ptr()
                end = start + (last + 1) * tensor.element_size()
                spans.append((str(tensor.device), start, end, id(record)))
    device, until, owner = "", 0, 0
    for place, start, end, one in sorted(spans):
        if place == device and start < until:
            found.update((owner, one))
        if place != device or end > until:
            device, until, owner = place, end, one
    return found


def _beginning(made: int | Count, device: torch.device, call: Call) -> list[Tensor]:
    """The number of this step for leaves that have made so many, the schedules' count, the numbers of a scaler."""
    scaler = () if call.scaling is None else call.scaling.on(device)
    return [next_number(made, device), on_device(call.count, device), *scaler]


def compiler_options(compile: Any) -> dict[str, Any]:
    """What `compile=` says, as options of torch's compiler: True, a mode of `torch.compile`, or its `options`."""
    if compile is True:
        return {}
    if isinstance(compile, Mapping):
        return dict(compile)
    if isinstance(compile, str):
        modes = torch._inductor.list_mode_options()
        if compile not in modes:
            raise ValueError(f"compile: unknown mode {compile!r}; modes: {', '.join(modes)}")
        return modes[compile]
    raise TypeError(f"compile must be True, False, a mode of torch.compile or a dict of its options, got {compile!r}")
