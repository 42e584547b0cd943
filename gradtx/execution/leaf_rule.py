"""Run single-tensor rules as operations: their state, their calls, and errors for rules that break the contract."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from gradtx.arguments import UnfitError
from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import is_sharded
from gradtx.base.errors import OWN_STATE, Path, lacking
from gradtx.base.exact import exact
from gradtx.base.inputs import accepts
from gradtx.base.messages import check_device, nearest, note_rule, shortly
from gradtx.base.names import is_ours
from gradtx.base.torch_names import readable
from gradtx.base.tree import map_tensors
from gradtx.distributed.redistribution import distributed_like, full_tensor
from gradtx.distributed.sums import summed_over_ranks
from gradtx.execution.context import Context
from gradtx.execution.execute import Leaf, Operation, Steps
from gradtx.execution.runs import LateTerm, Scope
from gradtx.execution.traits import Traits, empty_dict
from gradtx.slots import Slot
from gradtx.state.random import Stream
from gradtx.state.slots import (
    check_slots,
    numbered,
    value_for,
    with_lists,
    without_number,
)
from gradtx.state.storage import Store


class RuleFactory(Protocol):
    """Makes rules of arguments."""

    is_ours: bool

    def remade(self, arguments: Mapping[str, Any]) -> Rule:
        """Return the rule for these argument values."""
        ...


@dataclasses.dataclass(frozen=True)
class Rule:
    """A single-tensor rule whose arguments are bound to values.

    Attributes:
        name: The factory's name.
        update: `(update, state, param, ctx) -> (update, state)`.
        traits: What combinators and back ends may assume of the rule.
        init: `param -> slots`, or None for a rule without slots.
        evaluate: `(state, param) -> tensor`, or None.
        shared: Name -> initial value or function that returns it, for each 0-d value that all leaves share.
        dims: The minimum and maximum number of dimensions of a leaf.
        seed: The seed if the rule draws random numbers, else None.
        slots: What the rule declares of its slots, by name; empty for a rule with a function `init`.
        single: Whether this is a combinator's: every slot is one tensor, so that its name may end in a number, in the
            leaf's own coordinates, and `slow` unless it is declared, as sums and weights that follow others are.
        inner: Function of the leaf that returns a second argument of `init`, or None.
        summed: Name -> function of the sum that returns the stored value, for shared values that are sums over
            leaves and that `update` does not read within the same step.
        check: `(name, shape, extras) -> None`, which raises an error for extras that do not fit a leaf; or None.
        factory: What has made the rule of its arguments (`Spec`), if it is no combinator's.
        arguments: These, by name.
    """

    name: str
    update: Callable[..., Any]
    traits: Traits
    init: Callable[..., Any] | None = None
    evaluate: Callable[..., Any] | None = None
    shared: Mapping[str, Any] = dataclasses.field(default_factory=empty_dict)
    dims: tuple[int, float] | None = None
    seed: int | None = None
    slots: Mapping[str, Slot] = dataclasses.field(default_factory=empty_dict)
    single: bool = False
    inner: Callable[[Leaf], Any] | None = None
    summed: Mapping[str, Callable[[Tensor], Tensor]] = dataclasses.field(
        default_factory=empty_dict
    )
    check: Callable[[str, torch.Size, Mapping[str, Any]], None] | None = None
    factory: RuleFactory | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=empty_dict)

    def with_arguments(self, **changes: Any) -> Rule:
        """Return the same rule with other values of some arguments."""
        assert self.factory is not None
        return self.factory.remade({**self.arguments, **changes})

    def slot(self, name: str) -> Slot:
        """Return what the rule declares of a slot, or of the list of which it is an entry."""
        declared = self.slots.get(name) or self.slots.get(without_number(name))
        return declared or Slot(torch.zeros_like, slow=self.single)


class OfLeaf:
    """Partial sums over the entries of one leaf, of any shape, which a rule yields to sum them over the ranks.

    The rule receives the complete sums by name on every rank. For a leaf that is not sharded, the sums are already
    complete. For sharded leaves, sums with the same layout share one collective.
    """

    def __init__(self, **sums: Tensor):
        self.sums = sums


class RuleState(dict[str, Any]):
    """The state passed to a rule: its slots and shared values. A missing key raises an error that names the cause."""

    def __init__(self, values: Mapping[str, Any], stage: StageState, leaf: Leaf):
        super().__init__(values)
        self._stage = stage
        self._leaf = leaf

    def __missing__(self, name: Any) -> Any:
        return self._stage.missing(name, self._leaf)

    def with_full_tensors(self) -> RuleState:
        """Return a copy with full tensors instead of shards."""
        values = map_tensors(full_tensor, dict(self))
        return RuleState(values, self._stage, self._leaf)


class StageState:
    """Create the state of one stage, and convert it between its stored form and the form that the rule sees."""

    def __init__(self, path: Path, scope: Scope, rule: Rule):
        device = scope.run.device
        self.watches = not scope.run.is_recorded
        self._rule = rule
        self.path = path
        self.shared: dict[str, Tensor] = {}
        self.store = Store(
            path,
            rule.name,
            scope.state_dtype,
            rule.slot,
            scope.run,
            is_amplified=scope.amplified,
        )
        self._space = scope.space
        starts: dict[str, Callable[[], Tensor]] = {}
        for name, value in rule.shared.items():
            dtype = self.store.shared_dtype(name)
            starts[name] = functools.partial(_initial_value, value, device, dtype)
        seed = rule.seed
        self._random_index = 0 if seed is None else scope.run.random_index(path)
        if seed is not None:
            starts["seed"] = lambda: torch.full((), seed, device=device)
            starts["counter"] = lambda: torch.zeros(
                (), dtype=torch.int64, device=device
            )
        if starts:
            self.shared = scope.shared(path, starts)

    def like(self, leaf: Leaf, device: Any = None) -> Tensor:
        """Return a tensor with the shape of the leaf as the rule sees it, in the rule's dtype."""
        outside = self._outside(leaf, device)
        return outside if self._space is None else self._space.stand_in(leaf, outside)

    def _outside(self, leaf: Leaf, device: Any = None) -> Tensor:
        """Like `like`, but with the leaf's shape outside all combinators that change coordinates."""
        update, param = (
            (leaf.update, leaf.param) if self._space is None else leaf.inputs
        )
        tensor = param if param is not None else update
        return tensor.to(device or leaf.device, self.store.compute_dtype(leaf))

    def init_slots(self, leaf: Leaf, device: Any = None) -> dict[str, Any]:
        """Return the slots exactly as the rule's `init` returns them."""
        if self._rule.init is None:
            return {}
        return self._init_of(self.like(leaf, device), leaf)

    def _init_of(self, like: Tensor, leaf: Leaf) -> dict[str, Any]:
        """Call the rule's `init`; an error names the leaf."""
        try:
            return self._call_init(like, leaf)
        except Exception as error:
            note_rule(error, self._rule.name, [leaf])
            raise

    def _call_init(self, like: Tensor, leaf: Leaf) -> dict[str, Any]:
        created = self._created(like, leaf)
        rounded = [name for name, slot in self._rule.slots.items() if slot.rounded]
        if leaf.param_dtype.itemsize < 4 or not rounded:
            return created
        return {name: created[name] for name in created if name not in rounded}

    def _created(self, like: Tensor, leaf: Leaf) -> dict[str, Any]:
        init = self._rule.init
        assert init is not None
        if self._rule.inner is not None:
            return init(like, self._rule.inner(leaf))
        random = ()
        if self._rule.seed is not None:
            random = (self._stream(leaf, self.shared["counter"]),)
        try:
            return init(like, *random)
        except UnfitError as error:
            raise ValueError(f"{self._rule.name}: leaf {leaf.name!r} {error}") from None
        except TypeError:
            if not random or accepts(init, like, *random):
                raise
            raise TypeError(
                f"{self._rule.name}: init of a random rule receives a parameter and rng; write `def init(param, rng)`"
            ) from None
        except RuntimeError as error:
            if not is_sharded(like) or isinstance(error, _torch.NOT_OF_LAYOUT):
                raise
            return init(full_tensor(like), *random)

    @property
    def starts_alike(self) -> bool:
        """Whether initial slots depend on the shape, dtype and device of a leaf alone; see `Operation`."""
        rule = self._rule
        if rule.init is None:
            return True
        # Random keys of codes depend on the name of the leaf.
        is_its_own = rule.seed is not None or rule.inner is not None or self.store.draws
        if is_its_own or self._space is not None or not rule.slots:
            return False
        return all(slot.starts_alike for slot in rule.slots.values())

    def starts_at_zero(self, slot: str) -> bool:
        """Whether an initial slot is stored as zeros."""
        declared = self._rule.slots.get(slot)
        is_coded = self.store.storage is not None and self.store.storage.has_codes
        return declared is not None and declared.starts_at_zero and not is_coded

    def first(
        self, leaf: Leaf, old: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the initial slots in stored form, with codes for the slots that are coded in `old`."""
        if self._rule.init is None:
            return {}
        like = self._outside(leaf)
        seen = like if self._space is None else self._space.stand_in(leaf, like)
        slots = self._init_of(seen, leaf)
        single = self._rule.single
        check_slots(slots, self._rule.name, numbers=single)
        twice = slots.keys() & self._rule.shared.keys()
        if twice:
            raise TypeError(
                f"{self._rule.name}: {sorted(twice)} are both slots and shared values; rename one of them"
            )

        def probe(like: Tensor) -> dict[str, Any]:
            return numbered(self._call_init(like, leaf))

        flat = numbered(slots)
        if self._space is not None and not single:
            flat = {
                slot: self._space.first(self._rule, slot, value, leaf, like)
                for slot, value in flat.items()
            }
        return self.store.first(
            flat,
            like,
            leaf,
            old,
            None if single else probe,
            has_coordinates=self._space is not None,
        )

    def read(
        self, leaf: Leaf, compute_dtype: torch.dtype
    ) -> tuple[dict[str, Tensor], RuleState]:
        """Return a leaf's slots in stored form, and the state to pass to the rule."""
        shared = {name: value.to(leaf.device) for name, value in self.shared.items()}
        if self._rule.init is None:
            return {}, RuleState(shared, self, leaf)
        old = leaf.run.slots(self.path, leaf)
        if not old and self.first(leaf):
            raise lacking(self.path, leaf.name)
        if leaf.restarts is not False:
            leaf.starts[self.path] = self.first(leaf, old)
            old = leaf.kept_slots(self.path, leaf.restarts)
        flat = self.store.decode_slots(old, compute_dtype, leaf)
        if self._space is not None:
            flat = {
                slot: self._space.read(self._rule, slot, value, leaf)
                for slot, value in flat.items()
            }
        if leaf.missed is not None:
            flat = self._caught_up(flat, leaf.missed)
        # Lists replace numbered slots.
        state = flat if self._rule.single else with_lists(flat)
        # With a layout, an optimizer's slots are already known.
        if leaf.layout is None and set(state) != set(flat):
            self._check_lists(leaf, old)
        return old, RuleState({**state, **shared}, self, leaf)

    def _caught_up(self, slots: dict[str, Tensor], missed: Tensor) -> dict[str, Tensor]:
        """Return slots after steps that each row has missed, in which the gradient was 0."""
        present = dict(slots)
        for name, value in slots.items():
            fading = self._rule.slot(name).fading
            if value.ndim == missed.ndim and fading is not None:
                factor = exact(fading, value.device) ** missed
                present[name] = (value * factor).to(value.dtype)
        return present

    def _check_lists(self, leaf: Leaf, old: dict[str, Tensor]) -> None:
        # A missing entry of a list would otherwise go unnoticed: the list would only be shorter.
        update, param = leaf.inputs
        if readable(param if update is None else update):
            for slot in self._created_names(leaf):
                if slot not in old:
                    raise lacking((*self.path, slot), leaf.name)

    def _created_names(self, leaf: Leaf) -> set[str]:
        """Return the names of the slots that `init` creates, without memory where possible."""
        # Numbers that vmap has batched cannot meet tensors on another device.
        device = leaf.device if _torch.inside_transform() else "meta"
        return {*numbered(self.init_slots(leaf, device))}

    def missing(self, name: Any, leaf: Leaf) -> Any:
        """Return an empty list if `init` makes one, since the state stores nothing for it; raise an error otherwise."""
        made = self.init_slots(leaf)
        if name in made and made[name] == []:
            return []
        if name in made or name in numbered(made):
            raise lacking((*self.path, name), leaf.name)
        raise ValueError(
            f"{self._rule.name}: the rule reads {name!r}, which its init does not create; "
            f"{nearest(str(name), [*made, *self.shared])}"
        )

    def following(self, leaf: Leaf) -> dict[str, Tensor]:
        """Return, in stored form, a leaf's slots, with those that follow from others computed from these."""
        compute_dtype = self.store.compute_dtype(leaf)
        old, state = self.read(leaf, compute_dtype)
        param = leaf.param.to(compute_dtype)
        values: dict[str, Tensor] = {}
        for name, slot in self._rule.slots.items():
            if slot.follows is not None and name in old:
                values[name] = slot.follows(state, param)
        return self.store.encode_slots(values, old, leaf)

    def write(
        self, leaf: Leaf, state: Mapping[str, Any], old: dict[str, Tensor]
    ) -> None:
        """Store the rule's new slots in the dtypes of the old state."""
        if not old and not state and not self.shared:
            return
        slots = numbered(dict(state))
        if self.shared:
            self._write_shared(leaf, slots)
        if self.store.slots_of(old, leaf) != set(slots):
            self._check_names(leaf, old, slots)
        if not old:
            return
        if self._space is not None:
            slots = {
                slot: self._space.write(self._rule, slot, value, leaf)
                for slot, value in slots.items()
            }
        new_slots = self.store.encode_slots(slots, old, leaf)
        leaf.new[self.path] = leaf.unless_skipped(new_slots, old)

    def _write_shared(self, leaf: Leaf, slots: dict[str, Any]) -> None:
        """Move the shared values from the rule's result to the run."""
        new_values = leaf.run.new_shared.setdefault(self.path, {})
        for name, old in self.shared.items():
            if self._rule.seed is not None and name not in slots:
                continue  # `stream` updates the seed and counter of a random rule
            value = slots.pop(name, None)
            if isinstance(value, Tensor) and value.ndim:
                shape = tuple(value.shape)
                raise ValueError(
                    f"{self._rule.name}: shared value {name!r} has shape {shape}, must be 0-d"
                )
            if name in self._rule.summed:
                late = LateTerm(self.path, name, self._rule.summed[name])
                leaf.run.add_late(late, leaf.name, leaf.term(value))
            else:
                new_values.setdefault(
                    name, value_for(value, old, self.path, name, leaf.name)
                )

    def _check_names(
        self, leaf: Leaf, old: dict[str, Tensor], new: dict[str, Any]
    ) -> None:
        """Raise an error unless the rule returns some of the slots that it creates; the state keeps the others."""
        kept = self.store.slots_of(old, leaf)
        declared = self._rule.slots
        if {*new} <= kept and {*map(without_number, kept)} <= {
            *map(without_number, declared)
        }:
            return
        created = self._created_names(leaf)
        if kept != created:
            raise ValueError(
                f"{'.'.join(self.path)}: leaf {leaf.name!r} has the slots {sorted(kept)}, but this chain uses "
                f"{sorted(created)}; {OWN_STATE}"
            )
        unknown = sorted(new.keys() - kept)
        if not unknown:
            return
        remedy = "which its init does not create"
        if self._rule.init is None:
            remedy = "but has no init to create it; return (init, update)"
        raise ValueError(
            f"{self._rule.name}: the rule returns a state with the slot {unknown[0]!r}, {remedy}"
        )

    def stream(self, leaf: Leaf) -> Stream:
        """Return the random stream of this leaf at this step."""
        seed = self.shared["seed"]
        counter = self.shared["counter"] + 1
        new_shared = leaf.run.new_shared.setdefault(self.path, {})
        new_shared.update(seed=seed, counter=counter)
        return self._stream(leaf, counter)

    def _stream(self, leaf: Leaf, counter: Tensor) -> Stream:
        seed = self.shared["seed"]
        return Stream(seed, counter, leaf.stream_name, self._random_index)


def _initial_value(
    value: Any, device: torch.device, dtype: torch.dtype | None
) -> Tensor:
    number = value() if callable(value) else value
    return exact(number, device).to(dtype)


@dataclasses.dataclass
class RuleCall:
    """One call of a rule's function for one leaf."""

    leaf: Leaf
    update: Any
    state: RuleState
    param: Any
    context: Context
    compute_dtype: torch.dtype
    old: dict[str, Tensor]
    generator: Generator[Any, Any, Any] | None = None
    totals: tuple[Any, ...] = ()

    def with_full_tensors(self) -> RuleCall:
        """Return the same call on full tensors instead of shards."""
        return dataclasses.replace(
            self,
            update=full_tensor(self.update),
            state=self.state.with_full_tensors(),
            param=full_tensor(self.param),
            context=self.context.with_full_tensors(),
        )


def _is_all_ours(function: Any) -> bool:
    """Whether gradtx defines a function, and all functions that it has from its surroundings."""
    seen: set[int] = set()
    left: list[Any] = [function]
    while left:
        value = left.pop()
        if not callable(value) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, functools.partial):
            left += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, types.FunctionType):
            if not is_ours(value):
                return False
            left += [cell.cell_contents for cell in value.__closure__ or ()]
        elif not is_ours(value if isinstance(value, type) else type(value)):
            return False
    return True


class RuleOperation(Operation):
    """Run a rule that is written for one tensor."""

    def __init__(self, rule: Rule, stage: StageState):
        self.path = stage.path
        self.traits = rule.traits
        if stage.store.draws:
            self.traits = dataclasses.replace(rule.traits, positional=True)
        self.stage = stage
        self.rule = rule
        self._function = rule.update
        # Users' rules yield numbers, which every back end adds up.
        self._sums_vectors = is_ours(rule.update) and not self.traits.compiles
        # Numbers of dimensions already watched.
        watches = (
            stage.watches
            and not torch.compiler.is_compiling()
            and not _torch.inside_transform()
        )
        self._watched: set[int] | None = set() if watches else None

    def compute_dtype(self, leaf: Leaf) -> torch.dtype:
        return self.stage.store.compute_dtype(leaf)

    def check(self, leaf: Leaf) -> None:
        if self.rule.check is not None:
            self.rule.check(leaf.name, leaf.shape, leaf.extras)

    def init(self, leaf: Leaf) -> None:
        self._check_dims(leaf)
        slots = self.stage.first(leaf)
        if slots:
            leaf.new[self.path] = slots

    @property
    def ignores_sizes(self) -> bool:
        # A user's rule may do something else for large leaves, whatever it promises.
        return self.traits.elementwise and _is_all_ours(self.rule.update)

    @property
    def starts_alike(self) -> bool:
        return type(self).init is RuleOperation.init and self.stage.starts_alike

    def starts_at_zero(self, slot: str) -> bool:
        return self.stage.starts_at_zero(slot)

    @property
    def following_slots(self) -> list[str]:
        return [name for name, slot in self.rule.slots.items() if slot.follows]

    def follow(self, leaf: Leaf) -> None:
        if self.following_slots:
            leaf.new[self.path] = self.stage.following(leaf)

    def _check_dims(self, leaf: Leaf) -> None:
        if self.rule.dims is None:
            return
        shape = tuple(self.stage.like(leaf).shape)
        least, most = self.rule.dims
        if not least <= len(shape) <= most:
            count = str(least) if least == most else f"at least {least}"
            raise ValueError(
                f"{self.rule.name}: leaf {leaf.name!r} has shape {shape}, needs {count} dimensions; "
                "send it to another transformation with partition(...), an optimizer's fallback, or muon_for(model)"
            )

    # One call of the rule: prepare it, run it up to a sum or to the end, and finish it.

    def start(self, leaf: Leaf) -> Steps | None:
        self._check_dims(leaf)
        if not self.traits.at_owner:
            return self._begin(leaf)
        # Owners run it separately for sharded leaves, so nothing is fused with the operations around a region.
        # Nothing is fused inside one either, and a space compares the update there by identity.
        if self.traits.begins_at_owner:
            leaf.update = leaf.run.fusion_barrier(leaf.update)
        with leaf.run.as_written(self, leaf):
            return self._begin(leaf)

    def _begin(self, leaf: Leaf) -> Steps | None:
        """Run the rule up to its first sum over leaves."""
        call = self._call(leaf)
        if leaf.probe is not None:
            leaf.probed = leaf.probe(self, call)
        return self._begin_rule(call)

    def _call(self, leaf: Leaf) -> RuleCall:
        compute_dtype = self.compute_dtype(leaf)
        if leaf.update.dtype != compute_dtype:
            compute_dtype = torch.promote_types(compute_dtype, leaf.update.dtype)
            leaf.update = leaf.update.to(compute_dtype)
        old, state = self.stage.read(leaf, compute_dtype)
        param = None if leaf.param is None else leaf.param.to(compute_dtype)
        context = leaf.context(compute_dtype)
        if self.rule.seed is not None:
            rng = self.stage.stream(leaf)
            context = Context(leaf, leaf.clock, compute_dtype, rng)
        return RuleCall(leaf, leaf.update, state, param, context, compute_dtype, old)

    def _begin_rule(self, call: RuleCall) -> Steps | None:
        watch = self._watch(call)
        out = self._first_output(call)
        if watch is not None:
            watch.check(self.rule.name, call.leaf.name)
        if call.generator is not None and not isinstance(out, tuple):
            return self._wait(call, out)
        self._finish(call, out)
        return None

    def _first_output(self, call: RuleCall) -> Any:
        """Call the rule, and return its result, or the first sum for which it has to wait."""
        out = self._guarded(call)
        if _is_generator(out):
            call.generator = out
            out = self._continue_past_leaf_sums(call, self._guarded(call, None))
        return out

    def update_of(self, call: RuleCall) -> Tensor | None:
        """Return the update that the rule makes of a call, whose leaf stays as it is; None if it waits for a sum."""
        out = self._first_output(dataclasses.replace(call))
        is_result = isinstance(out, tuple) and isinstance(out[0], Tensor)
        return out[0].to(call.compute_dtype) if is_result else None

    def _wait(self, call: RuleCall, out: Any) -> Steps:
        """Wait for each sum that the rule yields."""
        is_sum = True
        while is_sum:
            total = yield self._terms(call, out)
            if isinstance(out, OfLeaf):
                total = total[call.leaf.name]
            else:
                device = call.leaf.device
                total = {name: value.to(device) for name, value in total.items()}
            out = self._continue_past_leaf_sums(call, self._guarded(call, total))
            is_sum = isinstance(out, dict | OfLeaf)
        self._finish(call, out)

    def _continue_past_leaf_sums(self, call: RuleCall, out: Any) -> Any:
        """Continue the rule past sums over its leaf that need no collective, and return the next value it yields."""
        if call.leaf.run.has_shards:
            return out
        while isinstance(out, OfLeaf) and not any(map(is_sharded, out.sums.values())):
            out = self._guarded(call, out.sums)
        return out

    def combine(self, waiting: list[tuple[Leaf, Any]]) -> Any:
        if not isinstance(waiting[0][1], OfLeaf):
            return super().combine(waiting)
        return summed_over_ranks({leaf.name: sums.sums for leaf, sums in waiting})

    def _guarded(self, call: RuleCall, *total: Any) -> Any:
        """Call the rule, or continue it with a total; a note of an error names the rule, the leaf and the line."""
        try:
            return self._called(call, *total)
        except Exception as error:
            note_rule(error, self.rule.name, [call.leaf])
            raise

    def _called(self, call: RuleCall, *total: Any) -> Any:
        """Call the rule, or continue it with a total; if it fails because of a missing input, name that input."""
        try:
            if not total:
                return self._function(call.update, call.state, call.param, call.context)
            call.totals = (*call.totals, total[0])
            return self._send(call, total[0])
        except (AttributeError, TypeError) as error:
            cause = self._missing_input_error(call, error)
            if cause is None:
                raise
            raise cause from error
        except RuntimeError as error:
            has_totals = len(call.totals) > 1
            if (
                not is_sharded(call.update)
                or isinstance(error, _torch.NOT_OF_LAYOUT)
                or has_totals
            ):
                raise
            # Some operations do not support DTensor. The failure is the same on every rank, so all ranks retry here.
            whole = call.with_full_tensors()
            out = self._function(whole.update, whole.state, whole.param, whole.context)
            if not (_is_generator(out) and call.totals):
                return out
            call.generator = out
            return self._send(call, None)

    def _missing_input_error(
        self, call: RuleCall, error: Exception
    ) -> Exception | None:
        """Return the error that names the input that the caller did not pass; None if the rule fails otherwise."""
        if "NoneType" not in str(error):
            return None
        if isinstance(error, TypeError) and call.context.absent is not None:
            return without_extra(self.rule.name, call.context.absent, error)
        if call.param is None:
            return without_params(self.rule.name, error)
        return None

    def _send(self, call: RuleCall, total: Any) -> Any:
        assert call.generator is not None
        try:
            return call.generator.send(total)
        except StopIteration as stop:
            raise TypeError(
                f"{self.rule.name}: a rule that yields sums must end with `yield update, state`, not with return"
            ) from stop

    def _watch(self, call: RuleCall) -> Watch | None:
        """Watch only one leaf of each number of dimensions, to keep the cost low."""
        if self._watched is None or call.leaf.update.ndim in self._watched:
            return None
        self._watched.add(call.leaf.update.ndim)
        # A closure that computes gradients at other weights restores the old ones by writing in place.
        fixed = call.leaf.extras.get("grad_fn") is None
        watched = {"update": call.update, "param": call.param if fixed else None}
        for slot, value in {**call.old, **self.stage.shared}.items():
            watched[f"state[{slot!r}]"] = value
        # Not earlier: dynamo of torch 2.11 does not trace it.
        return Watch(watched, not is_ours(self.rule.update))

    def _terms(self, call: RuleCall, sums: Any) -> Any:
        """Check the sums that the rule yields, and return this leaf's terms."""
        if isinstance(sums, OfLeaf):
            return sums
        if not isinstance(sums, dict):
            raise TypeError(
                f"{self.rule.name}: a rule must yield a dict of 0-d sums before the result, got {shortly(sums)}"
            )
        payload: dict[str, Tensor] = {}
        for name, value in sums.items():
            term = call.leaf.term(value)
            if term.ndim and not (self.traits.makes_gradient or self._sums_vectors):
                raise ValueError(
                    f"{self.rule.name}: the sum {name!r} has shape {tuple(term.shape)}, needs 0-d"
                )
            payload[name] = term
        return payload

    def _finish(self, call: RuleCall, out: Any) -> None:
        if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)):
            raise TypeError(
                f"{self.rule.name}: a rule must return (update, state), got {shortly(out)}"
            )
        update, state = out
        self._set_update(call, update)
        self.stage.write(call.leaf, state, call.old)

    def _set_update(self, call: RuleCall, update: Any) -> None:
        """Check a new update and assign it to the leaf."""
        leaf = call.leaf
        if not isinstance(update, Tensor):
            raise TypeError(
                f"{self.rule.name}: the update of leaf {leaf.name!r} must be a tensor, got {update!r}"
            )
        if update.shape != leaf.update.shape:
            raise ValueError(
                f"{self.rule.name}: leaf {leaf.name!r} has shape {tuple(leaf.update.shape)}, "
                f"but its update has shape {tuple(update.shape)}"
            )
        check_device(
            self.rule.name, f"the update of leaf {leaf.name!r}", update, leaf.update
        )
        leaf.update = distributed_like(update.to(call.compute_dtype), leaf.update)
        if self.traits.at_owner or self.traits.needs_shape:
            leaf.update = leaf.run.fusion_barrier(leaf.update)
        if self.traits.makes_gradient:
            leaf.grad = leaf.update

    def evaluate(self, leaf: Leaf) -> Any:
        if self.rule.evaluate is None:
            return None
        compute_dtype = self.compute_dtype(leaf)
        _, state = self.stage.read(leaf, compute_dtype)
        try:
            return self.rule.evaluate(state, leaf.param.to(compute_dtype))
        except Exception as error:
            note_rule(error, self.rule.name, [leaf])
            raise


def _is_generator(value: Any) -> TypeGuard[Generator[Any, Any, Any]]:
    return isinstance(value, types.GeneratorType)


class Watch:
    """Detect a rule that writes to its inputs in place, from the tensors' version counters.

    Args:
        inputs: The inputs, by name; those that are no tensors, such as the dict of a combinator, are left out.
        restores: Whether to copy the inputs, so that what the rule has written can be undone.
    """

    def __init__(self, inputs: Mapping[str, Any], restores: bool):
        self._before: dict[str, tuple[Tensor, int]] = {}
        self._copies: dict[str, Tensor] = {}
        for name, tensor in inputs.items():
            # Inference tensors have no version counter.
            if not isinstance(tensor, Tensor) or tensor.is_inference():
                continue
            self._before[name] = (tensor, _torch.version_of(tensor))
            if restores:
                self._copies[name] = tensor.detach().clone()

    def check(self, who: str, leaf: str) -> None:
        for name, (tensor, version) in self._before.items():
            if _torch.version_of(tensor) != version:
                with torch.no_grad():
                    for written, copy in self._copies.items():
                        self._before[written][0].copy_(copy)
                raise ValueError(
                    f"{who}: the rule writes to {name} of leaf {leaf!r}; "
                    "return new tensors, without methods that end in an underscore"
                )


def without_extra(who: str, name: str, error: Exception) -> TypeError:
    """Return the error for a rule that failed because the caller did not pass an extra."""
    return TypeError(
        f"{who}: ctx.{name} was not passed, and the rule fails ({error}): pass {name}= to update or step; "
        f"if the rule always reads it, declare needs=({name!r},)"
    )


def without_params(who: str, error: Exception, plain: bool = False) -> ValueError:
    """Return the error for a rule that failed because the caller passed no parameters."""
    remedy = "" if plain else "; if it always reads them, declare needs=('params',)"
    return ValueError(
        f"{who}: params were not passed, and the rule fails without them ({error}): "
        f"call update(updates, state, params){remedy}"
    )
