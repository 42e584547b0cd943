"""Rules for one tensor as operations: their state, their calls, and the errors of rules that break the contract."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import types
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from gradtx import _torch
from gradtx._arguments import UnfitError
from gradtx._errors import OWN_STATE, Path, lacking
from gradtx._exact import exact
from gradtx._execution import Leaf, Operation
from gradtx._messages import nearest, shortly
from gradtx._narrowing import is_dict, is_list, is_tuple
from gradtx._random import Stream
from gradtx._runs import LateTerm, Run, Scope
from gradtx._sharding import is_sharded, placed_as, summed_over_ranks, undivided
from gradtx._slots import WrongShapeError, check_slots, numbered, value_for, with_lists, wrong_shape
from gradtx._storage import Store
from gradtx._torch import readable
from gradtx.context import ALWAYS_KNOWN, Context, StandInCalledError


def _empty() -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule for one tensor with these values of its arguments.

    Attributes:
        name: The factory's name.
        update: `(update, state, param, ctx) -> (update, state)`.
        init: `param -> slots`, or None for a rule without slots.
        evaluate: `(state, param) -> tensor`, or None.
        shared: A function for each 0-d value that all leaves share, which gives its start.
        elementwise, takes_complex, compiles, agree: As in `Operation`.
        dims: The least and the largest number of dimensions of a leaf.
        seed: The seed of a rule that draws random numbers, else None.
        nonnegative: The slots that are never negative.
        readable: Whether the values of all arguments can be read on the host.
        kinds: Slot -> "linear", "square" or "scalar", for combinators that change coordinates.
        averages: Slot -> decay, of linear slots that are running averages of the update that the rule gets.
        summed: Shared values that are sums over leaves, which `update` does not read in its own step: name -> what is
            kept, as a function of the sum.
        sums_of_leaf: Whether all its sums are of one leaf, so that it waits for no other one, see `OfLeaf`.
        whole: Whether it needs the whole of a divided leaf; "shape" if only its shape.
        owner_reads, wire: As in `Operation`.
        check: `(name, shape, extras) -> None`, which raises an error for extras that don't fit a leaf; or None.
    """

    name: str
    update: Callable[..., Any]
    init: Callable[..., Any] | None = None
    evaluate: Callable[..., Any] | None = None
    shared: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=_empty)
    elementwise: bool = False
    takes_complex: bool = False
    compiles: bool = True
    agree: Mapping[str, Any] = dataclasses.field(default_factory=_empty)
    dims: tuple[int, float] | None = None
    seed: int | None = None
    readable: bool = True
    nonnegative: tuple[str, ...] = ()
    kinds: Mapping[str, str] = dataclasses.field(default_factory=_empty)
    averages: Mapping[str, Any] = dataclasses.field(default_factory=_empty)
    summed: Mapping[str, Callable[[Tensor], Tensor]] = dataclasses.field(default_factory=_empty)
    sums_of_leaf: bool = False
    whole: bool | str = False
    owner_reads: tuple[str, ...] = ()
    wire: torch.dtype | None = None
    check: Callable[[str, torch.Size, Mapping[str, Any]], None] | None = None


class OfLeaf:
    """What a rule yields to add up over the ranks that a leaf is divided among: sums of its entries, of any shape.

    The rule gets them back by name, complete on every rank. For a leaf that is not divided they are so at once. For
    divided ones they travel in one message for all leaves.
    """

    def __init__(self, **sums: Tensor):
        self.sums = sums


class RuleState(dict[str, Any]):
    """The state that a rule gets: its slots and shared values. A missing key says what is wrong."""

    def __init__(self, values: Mapping[str, Any], stage: StageState, leaf: Leaf):
        super().__init__(values)
        self._stage = stage
        self._leaf = leaf

    def __missing__(self, name: Any) -> Any:
        return self._stage.missing(name, self._leaf)

    def map(self, function: Callable[[Any], Any]) -> RuleState:
        """The same with `function` of every tensor."""
        values: dict[str, Any] = {}
        for name, value in self.items():
            if is_list(value):
                values[name] = [function(item) for item in value]
            else:
                values[name] = function(value)
        return RuleState(values, self._stage, self._leaf)


class StageState:
    """The state of one stage: makes it, and converts it between the stored form and the rule's."""

    def __init__(self, path: Path, scope: Scope, rule: Rule):
        device = scope.run.device
        self.path = path
        self.shared: dict[str, Tensor] = {}
        self.store = Store(path, rule.name, scope.state_dtype, rule.nonnegative, scope.run)
        self._rule = rule
        self._space = scope.space
        starts: dict[str, Callable[[], Tensor]] = {}
        for name, value in rule.shared.items():
            starts[name] = _maker(value, device, self.store.shared_dtype(name))
        if rule.seed is not None:
            starts["seed"] = lambda: torch.tensor(rule.seed, device=device)
            starts["counter"] = lambda: torch.zeros((), dtype=torch.int64, device=device)
        if starts:
            self.shared = scope.shared(path, starts)

    def wide(self, leaf: Leaf) -> torch.dtype:
        """The dtype that the rule computes in."""
        return self.store.wide(leaf)

    def like(self, leaf: Leaf, device: Any = None) -> Tensor:
        """A tensor shaped as the rule sees the leaf, in the dtype of the rule."""
        outside = self._outside(leaf, device)
        return outside if self._space is None else self._space.stand_in(leaf, outside)

    def _outside(self, leaf: Leaf, device: Any = None) -> Tensor:
        """The same, shaped as the leaf outside of all combinators that change coordinates."""
        update, param = (leaf.update, leaf.param) if self._space is None else leaf.given
        tensor = param if param is not None else update
        return tensor.to(device or leaf.device, self.wide(leaf))

    def made(self, leaf: Leaf, device: Any = None) -> dict[str, Any]:
        """The slots as the rule's own `init` returns them."""
        if self._rule.init is None:
            return {}
        return self._made_for(self.like(leaf, device), leaf)

    def _made_for(self, like: Tensor, leaf: Leaf) -> dict[str, Any]:
        init = self._rule.init
        assert init is not None
        random: tuple[Any, ...] = ()
        if self._rule.seed is not None:
            random = (Stream(self.shared["seed"], self.shared["counter"], leaf.stream_name),)
        try:
            return init(like, *random)
        except UnfitError as error:
            raise ValueError(f"{self._rule.name}: leaf {leaf.name!r} {error}") from None
        except RuntimeError as error:
            if not is_sharded(like) or isinstance(error, _torch.NOT_OF_LAYOUT):
                raise
            return init(undivided(like), *random)

    def first(self, leaf: Leaf, old: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The first slots as they are stored; those that `old` has coded are coded."""
        if self._rule.init is None:
            return {}
        return self.stored(self.made(leaf), leaf, old)

    def stored(self, slots: dict[str, Any], leaf: Leaf, old: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Slots that `init` returned, as they are stored."""
        check_slots(slots, self._rule.name)
        twice = slots.keys() & self._rule.shared.keys()
        if twice:
            raise TypeError(f"{self._rule.name}: {sorted(twice)} are both slots and shared values; rename one of them")

        def probe(like: Tensor) -> dict[str, Any]:
            return numbered(self._made_for(like, leaf))

        like = self._outside(leaf)
        flat = numbered(slots)
        if self._space is not None:
            flat = {slot: self._space.first(self._rule, slot, value, leaf, like) for slot, value in flat.items()}
        return self.store.first(flat, like, leaf, old, probe)

    def _flat(self, state: dict[str, Any]) -> dict[str, Any]:
        """A rule's state with lists as numbered slots."""
        return numbered(state)

    def _as_rule_sees(self, leaf: Leaf, old: dict[str, Tensor], flat: dict[str, Tensor]) -> dict[str, Any]:
        """The reverse of `_flat`."""
        state = with_lists(flat)
        if state is not flat and leaf.layout is None:  # layouts of optimizers know their slots
            self._check_lists(leaf, old)
        return state

    def read(self, leaf: Leaf, wide: torch.dtype) -> tuple[dict[str, Tensor], RuleState]:
        """A leaf's slots as they are kept, and the state as the rule gets it."""
        if self._rule.init is None:
            return {}, RuleState(self.shared, self, leaf)
        old = leaf.run.slots(self.path, leaf)
        if not old and self.first(leaf):
            raise lacking(self.path, leaf.name)
        if leaf.restarts is not False:
            old = _restarted(leaf.restarts, self.first(leaf, old), old)
        flat = self.store.opened(old, wide, leaf)
        if self._space is not None:
            flat = {slot: self._space.read(self._rule, slot, value, leaf) for slot, value in flat.items()}
        state = self._as_rule_sees(leaf, old, flat)
        return old, RuleState({**state, **self.shared}, self, leaf)

    def _check_lists(self, leaf: Leaf, old: dict[str, Tensor]) -> None:
        # A list that lost an entry would just be a shorter list.
        update, param = leaf.given
        if self._rule.readable and readable(param if update is None else update):
            for slot in numbered(self.made(leaf, "meta")):
                if slot not in old:
                    raise lacking((*self.path, slot), leaf.name)

    def missing(self, name: Any, leaf: Leaf) -> Any:
        """A key that the rule did not find: an empty list leaves nothing in the state; anything else is an error."""
        made = self.made(leaf)
        if name in made and made[name] == []:
            return []
        if name in made or name in numbered(made):
            raise lacking((*self.path, name), leaf.name)
        raise ValueError(
            f"{self._rule.name}: the rule asks for {name!r}, which is no slot that its init makes; "
            f"{nearest(str(name), [*made, *self.shared])}"
        )

    def write(self, leaf: Leaf, state: Mapping[str, Any], old: dict[str, Tensor]) -> None:
        """Store the rule's new slots, in the dtypes of the old state."""
        if not old and not state and not self.shared:
            return
        slots = self._flat(dict(state))
        if self.shared:
            self._write_shared(leaf, slots)
        if self.store.slots_of(old, leaf) != slots.keys():
            raise self._other_slots(leaf, old, slots)
        if old:
            new = self._closed(leaf, slots, old)
            leaf.new[self.path] = leaf.accepted(new, old)

    def _closed(self, leaf: Leaf, slots: dict[str, Any], old: dict[str, Tensor]) -> dict[str, Tensor]:
        """The rule's new slots as they are stored."""
        if self._space is not None:
            slots = {slot: self._space.write(self._rule, slot, value, leaf) for slot, value in slots.items()}
        try:
            return self.store.closed(slots, old, leaf)
        except WrongShapeError as error:
            raise self._other_shapes(leaf, old, slots, error) from None

    def _write_shared(self, leaf: Leaf, slots: dict[str, Any]) -> None:
        """Move the shared values from the rule's result to the run."""
        new = leaf.run.new_shared.setdefault(self.path, {})
        for name, old in self.shared.items():
            if self._rule.seed is not None and name not in slots:
                continue  # the library counts the draws of a random rule
            value = slots.pop(name, None)
            if isinstance(value, Tensor) and value.ndim:
                shape = tuple(value.shape)
                raise ValueError(f"{self._rule.name}: the shared {name!r} comes in shape {shape}, needs 0-d")
            if name in self._rule.summed:
                late = LateTerm(self.path, name, self._rule.summed[name])
                leaf.run.add_late(late, leaf.name, _term(value, leaf))
            else:
                new.setdefault(name, value_for(value, old, self.path, name, leaf.name))

    def _other_slots(self, leaf: Leaf, old: dict[str, Tensor], new: dict[str, Any]) -> ValueError:
        """The error for other slots than before: the rule's fault if its `init` makes the old ones."""
        if self.first(leaf, old).keys() != old.keys():
            return ValueError(
                f"{'.'.join(self.path)}: leaf {leaf.name!r} has the slots {sorted(old)} where this chain keeps "
                f"{sorted(new)}; {OWN_STATE}"
            )
        kept = self.store.slots_of(old, leaf)
        missing = sorted(kept - new.keys())
        unknown = sorted(new.keys() - kept)
        faults: list[str] = []
        if missing:
            faults.append(f"without the slot {missing[0]!r}, which its init makes")
        if unknown and self._rule.init is None:
            faults.append(f"with the slot {unknown[0]!r}, though there is no init to make it: return init, update")
        elif unknown:
            faults.append(f"with the slot {unknown[0]!r}, which its init does not make")
        return ValueError(f"{self._rule.name}: the rule returns a state {', and '.join(faults)}")

    def _other_shapes(
        self, leaf: Leaf, old: dict[str, Tensor], new: dict[str, Any], otherwise: ValueError
    ) -> ValueError:
        """The same for shapes; `otherwise` blames the state."""
        made = self.first(leaf, old)
        for slot, value in old.items():
            if slot not in new:  # a tensor beside codes
                continue
            if made[slot].shape == value.shape != new[slot].shape:
                return ValueError(
                    f"{self._rule.name}: the rule returns the slot {slot!r} of leaf {leaf.name!r} in shape "
                    f"{tuple(new[slot].shape)}, its init makes it in shape {tuple(value.shape)}"
                )
        return otherwise

    def check_shapes(self, leaf: Leaf, old: dict[str, Tensor]) -> None:
        """A rule failed: perhaps the state belongs to other tensors."""
        for slot, value in self.first(leaf, old).items():
            if slot in old and old[slot].shape != value.shape:
                raise wrong_shape(self.path, slot, leaf.name, old[slot].shape, value.shape)

    def stream(self, leaf: Leaf) -> Stream:
        """The random numbers of this leaf at this step."""
        seed = self.shared["seed"]
        counter = self.shared["counter"] + 1
        new_shared = leaf.run.new_shared.setdefault(self.path, {})
        new_shared.update(seed=seed, counter=counter)
        return Stream(seed, counter, leaf.stream_name)


def _term(value: Any, leaf: Leaf) -> Tensor:
    """The term of a leaf in a sum over leaves; a leaf that is skipped adds nothing."""
    term = exact(value, leaf.device)
    if leaf.active is None:
        return term
    return torch.where(leaf.active, term, 0.0)  # not a product: 0 * inf is NaN


def _restarted(restarts: bool | Tensor, first: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Tensor]:
    """First slots where a combinator starts its inner transformation again, else the old ones."""
    if not isinstance(restarts, Tensor):
        return first if restarts else old
    return {slot: torch.where(restarts, first.get(slot, value), value) for slot, value in old.items()}


def _maker(value: Callable[[], Any], device: torch.device, dtype: torch.dtype | None) -> Callable[[], Tensor]:
    return lambda: exact(value(), device).to(dtype)


@dataclasses.dataclass
class Call:
    """One call of a rule's function for one leaf."""

    leaf: Leaf
    update: Any
    state: RuleState
    param: Any
    context: Context
    wide: torch.dtype
    old: dict[str, Tensor]
    generator: Generator[Any, Any, Any] | None = None
    totals: tuple[Any, ...] = ()
    sums_of_leaf: bool = False

    def undivided(self) -> Call:
        """The same call on whole tensors in place of shards."""
        return dataclasses.replace(
            self,
            update=undivided(self.update),
            state=self.state.map(undivided),
            param=undivided(self.param),
            context=self.context.undivided(),
        )


_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class RuleOperation(Operation):
    """A rule written for one tensor.

    Attributes:
        at_owner: Whether one rank runs it for the whole of a divided leaf.
    """

    def __init__(self, rule: Rule, stage: StageState, run: Run):
        self.path = stage.path
        self.elementwise = rule.elementwise
        self.takes_complex = rule.takes_complex
        self.compiles = rule.compiles
        self.agree = rule.agree
        self.random = rule.seed is not None
        self.positional = stage.store.draws
        self.sums_late = bool(rule.summed)
        self.of_leaf = rule.sums_of_leaf
        self.waits = inspect.isgeneratorfunction(rule.update) and not rule.sums_of_leaf
        self.whole_until = self if rule.whole is True else None
        self.needs_shape = rule.whole == "shape"
        self.owner_reads = rule.owner_reads
        self.keeps_slots = rule.init is not None
        self.wire = rule.wire
        self.checks_extras = rule.check is not None
        self.at_owner = rule.whole is True
        self.stage = stage
        self.rule = rule
        self._function = rule.update
        self._watched: set[int] | None = set() if run.watches else None  # the numbers of dimensions of watched leaves

    def wide(self, leaf: Leaf) -> torch.dtype:
        return self.stage.wide(leaf)

    def check(self, leaf: Leaf) -> None:
        if self.rule.check is not None:
            self.rule.check(leaf.name, leaf.shape, leaf.extras)

    def init(self, leaf: Leaf) -> None:
        self._check_dims(leaf)
        slots = self.stage.first(leaf)
        if slots:
            leaf.new[self.path] = slots

    def _check_dims(self, leaf: Leaf) -> None:
        if self.rule.dims is None:
            return
        shape = tuple(self.stage.like(leaf).shape)
        least, most = self.rule.dims
        if not least <= len(shape) <= most:
            count = str(least) if least == most else f"at least {least}"
            raise ValueError(
                f"{self.rule.name}: leaf {leaf.name!r} has shape {shape}, needs {count} dimensions; "
                "send it through another transformation, by partition(...), an optimizer's fallback or muon_for(model)"
            )

    # One call of the rule: prepared, run up to a sum or to the end, finished.

    def start(self, leaf: Leaf) -> Any:
        self._check_dims(leaf)
        with self._as_owners_do(leaf):
            return self._begun(self._call(leaf))

    def _as_owners_do(self, leaf: Leaf) -> contextlib.AbstractContextManager[None]:
        """Keep operations from being joined with those around, if owners run these alone for divided leaves."""
        if not self.at_owner:
            return _NOTHING
        leaf.update = leaf.run.apart(leaf.update)
        return leaf.run.as_written()

    def _call(self, leaf: Leaf) -> Call:
        wide = self.stage.wide(leaf)
        if leaf.update.dtype != wide:
            wide = torch.promote_types(wide, leaf.update.dtype)
            leaf.update = leaf.update.to(wide)
        old, state = self.stage.read(leaf, wide)
        param = None if leaf.param is None else leaf.param.to(wide)
        context = self._context(leaf, wide)
        return Call(leaf, leaf.update, state, param, context, wide, old)

    def _context(self, leaf: Leaf, wide: torch.dtype) -> Context:
        if self.rule.seed is not None:
            return Context(leaf, leaf.clock, wide, self.stage.stream(leaf))
        return leaf.context(wide)

    def _begun(self, call: Call) -> Any:
        watch = self._watch(call)
        out = self._guarded(call)
        if _is_generator(out):
            call.generator = out
            out = self._answered(call, self._guarded(call, None))
        if watch is not None:
            watch.check(self.rule.name, call.leaf.name)
        if call.generator is not None and not isinstance(out, tuple):
            return self._waiting(call, out)
        self._finish(call, out)
        return None

    def resume(self, leaf: Leaf, total: Any) -> Any:
        call = leaf.pending
        if call.sums_of_leaf:
            total = total[leaf.name]
        out = self._answered(call, self._guarded(call, total))
        if isinstance(out, dict | OfLeaf):
            return self._waiting(call, out)
        leaf.pending = None
        self._finish(call, out)
        return None

    def _answered(self, call: Call, out: Any) -> Any:
        """What the rule yields behind sums of the leaf that are complete."""
        while isinstance(out, OfLeaf) and not any(map(is_sharded, out.sums.values())):
            out = self._guarded(call, out.sums)
        return out

    def combine(self, waiting: list[tuple[Leaf, Any]]) -> Any:
        if not isinstance(waiting[0][1], OfLeaf):
            return super().combine(waiting)
        return summed_over_ranks({leaf.name: sums.sums for leaf, sums in waiting})

    def _guarded(self, call: Call, *total: Any) -> Any:
        """Call the rule, or continue it with a total; say what is missing if it fails over that."""
        try:
            if not total:
                return self._function(call.update, call.state, call.param, call.context)
            call.totals = (*call.totals, total[0])
            return self._continued(call, total[0])
        except (AttributeError, TypeError) as error:
            cause = self._missing_input(call, error)
            if cause is None:
                raise
            raise cause from error
        except RuntimeError as error:
            self.stage.check_shapes(call.leaf, call.old)
            has_totals = len(call.totals) > 1
            if not is_sharded(call.update) or isinstance(error, _torch.NOT_OF_LAYOUT) or has_totals:
                raise
            # Some operations have no form for shards; which ones is the same on every process.
            return self._again(call.undivided(), call)

    def _missing_input(self, call: Call, error: Exception) -> Exception | None:
        """The error for what the caller did not pass, if the rule gets past this point with it."""
        if call.param is None and self._works(call, torch.zeros_like(call.leaf.update), call.context):
            return without_params(self.rule.name, error)
        if not isinstance(error, TypeError):
            return None
        for name in ALWAYS_KNOWN:
            if name not in call.leaf.extras and self._works(call, call.param, call.context.with_stand_in(name)):
                return without_extra(self.rule.name, name, error)
        return None

    def _again(self, whole: Call, call: Call) -> Any:
        out = self._function(whole.update, whole.state, whole.param, whole.context)
        if _is_generator(out) and call.totals:
            call.generator = out
            return self._continued(call, None)
        return out

    def _continued(self, call: Call, total: Any) -> Any:
        assert call.generator is not None
        try:
            return call.generator.send(total)
        except StopIteration as stop:
            raise TypeError(f"{self.rule.name}: end with `yield update, state`, not with return") from stop

    def _works(self, call: Call, param: Any, context: Context) -> bool:
        """Whether the rule gets past this point with these."""
        try:
            out = self._function(call.update, call.state, param, context)
            for total in call.totals:
                out.send(total)
        except StandInCalledError:
            return True
        except Exception:
            return False
        return True

    def _watch(self, call: Call) -> Watch | None:
        """Watch one leaf of each number of dimensions: it costs little then."""
        if self._watched is None or call.leaf.update.ndim in self._watched:
            return None
        self._watched.add(call.leaf.update.ndim)
        # A closure that computes gradients elsewhere puts the weights back, by writing them.
        fixed = call.leaf.extras.get("grad_fn") is None
        update = call.update if isinstance(call.update, Tensor) else None  # not the dict that a combinator may get
        given = {"update": update, "param": call.param if fixed else None}
        for slot, value in {**call.old, **self.stage.shared}.items():
            given[f"state[{slot!r}]"] = value
        return Watch(given)

    def _waiting(self, call: Call, sums: Any) -> Any:
        """The terms of the sums that the rule asks for."""
        call.sums_of_leaf = isinstance(sums, OfLeaf)
        if call.sums_of_leaf:
            call.leaf.pending = call
            return sums
        if not is_dict(sums):
            raise TypeError(f"{self.rule.name}: yield a dict of 0-d sums before the result, got {shortly(sums)}")
        leaf = call.leaf
        leaf.pending = call
        payload: dict[str, Tensor] = {}
        for name, value in sums.items():
            term = _term(value, leaf)
            if term.ndim:
                raise ValueError(f"{self.rule.name}: the sum {name!r} has shape {tuple(term.shape)}, needs 0-d")
            payload[name] = term
        return payload

    def _finish(self, call: Call, out: Any) -> None:
        if not (is_tuple(out) and len(out) == 2 and is_dict(out[1])):
            raise TypeError(f"{self.rule.name}: a rule returns (update, state), got {type(out).__name__}")
        update, state = out
        self._accept(call, update)
        self.stage.write(call.leaf, state, call.old)

    def _accept(self, call: Call, update: Any) -> None:
        """Take over a new update."""
        leaf = call.leaf
        if not isinstance(update, Tensor):
            raise TypeError(f"{self.rule.name}: the update of leaf {leaf.name!r} came out as {update!r}")
        if update.shape != leaf.update.shape:
            raise ValueError(
                f"{self.rule.name}: leaf {leaf.name!r} has shape {tuple(leaf.update.shape)}, "
                f"its update came out as {tuple(update.shape)}"
            )
        if update.dtype != call.wide:
            update = update.to(call.wide)
        leaf.update = placed_as(update, leaf.update)
        if self.at_owner or self.needs_shape:
            leaf.update = leaf.run.apart(leaf.update)

    def evaluate(self, leaf: Leaf) -> Any:
        if self.rule.evaluate is None:
            return None
        wide = self.stage.wide(leaf)
        _, state = self.stage.read(leaf, wide)
        return self.rule.evaluate(state, leaf.param.to(wide))


def _is_generator(value: Any) -> TypeGuard[Generator[Any, Any, Any]]:
    return isinstance(value, types.GeneratorType)


class Watch:
    """Detects a rule that writes into its inputs, by the versions that torch counts."""

    def __init__(self, given: Mapping[str, Tensor | None]):
        self._before: dict[str, tuple[Tensor, int]] = {}
        for name, tensor in given.items():
            if tensor is not None and not tensor.is_inference():  # which have no version
                self._before[name] = (tensor, _torch.version_of(tensor))

    def check(self, owner: str, leaf: str) -> None:
        for name, (tensor, version) in self._before.items():
            if _torch.version_of(tensor) != version:
                raise ValueError(
                    f"{owner}: the rule writes into {name} of leaf {leaf!r}; "
                    "return new tensors, without methods that end in an underscore"
                )


def without_extra(owner: str, name: str, error: Exception) -> TypeError:
    """The error for a rule that failed because the caller did not pass an extra."""
    return TypeError(
        f"{owner}: ctx.{name} was not passed, and the rule fails without it ({error}): pass {name}= to update or step; "
        f"if the rule always reads it, declare needs=({name!r},)"
    )


def without_params(owner: str, error: Exception, plain: bool = False) -> ValueError:
    """The error for a rule that failed because the caller passed no parameters."""
    remedy = "" if plain else "; if it always reads them, declare needs=('params',)"
    return ValueError(
        f"{owner}: params were not passed, and the rule fails without them ({error}): "
        f"call update(updates, state, params){remedy}"
    )
