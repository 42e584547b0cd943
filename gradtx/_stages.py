"""The operations that hold maths: a rule for one tensor, and functions of whole trees."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._arguments import UnfitError, exact, exact_dtype, nearest, readable, tensors_in
from gradtx._context import Context
from gradtx._program import OWN_STATE, Leaf, Operation, Path, Run, lacking
from gradtx._random import Stream
from gradtx._sharding import gathered, is_sharded, placed_as, undivided


class Parts(NamedTuple):
    """What the body of a `@per_tensor` or `@whole_tree` factory returns."""

    init: Callable | None
    update: Callable
    evaluate: Callable | None = None

    @classmethod
    def of(cls, made: Any, name: str) -> Parts:
        parts: tuple = made if isinstance(made, tuple) else (None, made)
        if not 2 <= len(parts) <= 3 or not all(callable(part) for part in parts[1:]):
            raise TypeError(f"{name}: return update, (init, update) or (init, update, evaluate), got {made!r}")
        return cls(*parts)


class Watch:
    """Finds out whether a rule works in place on what it gets, by the versions that torch counts."""

    def __init__(self, given: dict[str, Tensor | None]):
        self._before = {
            name: (tensor, tensor._version)
            for name, tensor in given.items()
            if tensor is not None and not tensor.is_inference()  # which have no version
        }

    def check(self, owner: str, leaf: str) -> None:
        for name, (tensor, version) in self._before.items():
            if tensor._version != version:
                raise ValueError(
                    f"{owner}: the rule writes into {name} of leaf {leaf!r}; "
                    "return new tensors, without methods that end in an underscore"
                )


class RuleStage(Operation):
    """A rule written for one tensor."""

    def __init__(self, path: Path, run: Run, spec: Any, parts: Parts, arguments: dict[str, Any], state_dtype: Any):
        self.path, self._spec, self._parts, self._state_dtype = path, spec, parts, state_dtype
        self.elementwise = spec.elementwise(arguments) if callable(spec.elementwise) else spec.elementwise
        self.compiles = spec.compiles and "grad_fn" not in spec.needs
        self.agree = {name: arguments[name] for name in spec.agree}
        self._dims = spec.dims(arguments)
        self._readable = all(readable(tensor) for value in arguments.values() for tensor in tensors_in(value))
        start = {name: _scalar_maker(value, arguments, run.device) for name, value in spec.shared_of(arguments).items()}
        if spec.random:
            start["seed"] = lambda: torch.tensor(arguments["seed"], device=run.device)
            start["counter"] = lambda: torch.zeros((), dtype=torch.int64, device=run.device)
        self._shared = run.shared(path, start) if start else {}
        self._watched: set[int] | None = set() if run.watches else None  # the numbers of dimensions of watched leaves

    def init(self, leaf: Leaf) -> None:
        self._check_dims(leaf)
        slots = self._first(leaf)
        if slots:
            leaf.new[self.path] = slots

    def _check_dims(self, leaf: Leaf) -> None:
        if self._dims is None:
            return
        shape, (least, most) = tuple((leaf.param if leaf.param is not None else leaf.update).shape), self._dims
        if not least <= len(shape) <= most:
            count = str(least) if least == most else f"at least {least}"
            raise ValueError(
                f"{self._spec.name}: leaf {leaf.name!r} has shape {shape}, needs {count} dimensions; "
                "send it through another transformation, by partition(...) or an optimizer's fallback"
            )

    def _like(self, leaf: Leaf, device: Any = None) -> Tensor:
        return (leaf.param if leaf.param is not None else leaf.update).to(device or leaf.device, self._wide(leaf))

    def _made(self, leaf: Leaf, device: Any = None) -> dict[str, Any]:
        """What the rule's own `init` returns."""
        rng = (Stream(self._shared["seed"], self._shared["counter"], leaf.name),) if self._spec.random else ()
        like, init = self._like(leaf, device), self._parts.init
        assert init is not None
        try:
            return init(like, *rng)
        except UnfitError as error:
            raise ValueError(f"{self._spec.name}: leaf {leaf.name!r} {error}") from None
        except RuntimeError:
            if not is_sharded(like):
                raise
            return init(undivided(like), *rng)

    def _first(self, leaf: Leaf) -> dict[str, Tensor]:
        if self._parts.init is None:
            return {}
        stored = self._state_dtype or leaf.param_dtype
        return first_slots(self._made(leaf), self._like(leaf), stored, self._spec.name)

    def _wide(self, leaf: Leaf) -> torch.dtype:
        return leaf.wide if self._state_dtype is None else torch.promote_types(leaf.wide, self._state_dtype)

    def start(self, leaf: Leaf) -> Any:
        self._check_dims(leaf)
        wide, update = self._wide(leaf), leaf.update
        if update.dtype != wide:
            wide = torch.promote_types(wide, update.dtype)
            leaf.update = update = update.to(wide)
        old, state = self._state(leaf, wide)
        param = leaf.param if leaf.param is None else leaf.param.to(wide)
        context = Context(leaf, leaf.clock, wide, self._stream(leaf)) if self._spec.random else leaf.context(wide)
        whole, watch = False, None
        if self._watched is not None and update.ndim not in self._watched:  # one leaf of a kind: it costs little then
            self._watched.add(update.ndim)
            watch = self._watch(leaf, update, param, old)
        while True:
            try:
                out = self._parts.update(update, state, param, context)
                waits = isinstance(out, types.GeneratorType)
                sums = self._advanced(out, None) if waits else None
                if watch is not None:
                    watch.check(self._spec.name, leaf.name)
                if not waits:
                    break
                leaf.pending = (out, old, wide)
                return self._payload(leaf, sums)
            except KeyError as error:
                self._supply(error, state, leaf)
            except (AttributeError, TypeError) as error:
                if param is None and "NoneType" in str(error):
                    raise without_params(self._spec.name, error) from error
                raise
            except RuntimeError:
                self._check_shapes(leaf, old)
                if whole or not is_sharded(update):
                    raise
                # Some operations have no form for divided tensors; which ones is the same on every process.
                whole, update, param = True, undivided(update), undivided(param)
                state = _tree.map_tensors(undivided, state)
                context = context.undivided()
        self._finish(leaf, out, old, wide)
        return None

    def _watch(self, leaf: Leaf, update: Tensor, param: Any, old: dict[str, Tensor]) -> Watch:
        slots = {f"state[{slot!r}]": value for slot, value in {**old, **self._shared}.items()}
        # A closure that computes gradients elsewhere puts the weights back, by writing them.
        fixed = leaf.extras.get("grad_fn") is None
        return Watch({"update": update, "param": param if fixed else None, **slots})

    def _state(self, leaf: Leaf, wide: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The leaf's slots as they are kept, and the state as the rule gets it."""
        if self._parts.init is None:
            return {}, dict(self._shared)
        old = leaf.run.slots(self.path, leaf)
        if not old and self._first(leaf):
            raise lacking(self.path, leaf.name)
        flat = {slot: widened(value, wide) for slot, value in old.items()}
        state = with_lists(flat)
        like = leaf.given[0] if leaf.given[0] is not None else leaf.given[1]
        if state is not flat and self._readable and readable(like):
            # A list that lost an entry would just be a shorter list.
            for slot in numbered(self._made(leaf, "meta")):
                if slot not in old:
                    raise lacking((*self.path, slot), leaf.name)
        return old, {**state, **self._shared} if self._shared else state

    def _stream(self, leaf: Leaf) -> Stream:
        seed, counter = self._shared["seed"], self._shared["counter"] + 1
        leaf.run.new_shared.setdefault(self.path, {}).update(seed=seed, counter=counter)
        return Stream(seed, counter, leaf.name)

    def resume(self, leaf: Leaf, total: Any) -> Any:
        generator, old, wide = leaf.pending
        out = self._advanced(generator, total)
        if isinstance(out, dict):
            return self._payload(leaf, out)
        leaf.pending = None
        self._finish(leaf, out, old, wide)
        return None

    def _advanced(self, generator: Any, total: Any) -> Any:
        try:
            return generator.send(total)
        except StopIteration as stop:
            raise TypeError(f"{self._spec.name}: end with `yield update, state`, not with return") from stop

    def _payload(self, leaf: Leaf, sums: Any) -> dict[str, Tensor]:
        if not isinstance(sums, dict):
            raise TypeError(f"{self._spec.name}: yield a dict of 0-d sums before the result, got {sums!r}")
        payload = {}
        for name, value in sums.items():
            value = exact(value, leaf.device)
            if value.ndim:
                raise ValueError(f"{self._spec.name}: the sum {name!r} has shape {tuple(value.shape)}, needs 0-d")
            # A leaf that is skipped adds nothing; where, since 0 * inf is NaN.
            payload[name] = value if leaf.active is None else torch.where(leaf.active, value, 0.0)
        return payload

    def _finish(self, leaf: Leaf, out: Any, old: dict[str, Tensor], wide: torch.dtype) -> None:
        if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict)):
            raise TypeError(f"{self._spec.name}: a rule returns (update, state), got {type(out).__name__}")
        update, state = out
        if not isinstance(update, Tensor):
            raise TypeError(f"{self._spec.name}: the update of leaf {leaf.name!r} came out as {update!r}")
        if update.shape != leaf.update.shape:
            raise ValueError(
                f"{self._spec.name}: leaf {leaf.name!r} has shape {tuple(leaf.update.shape)}, "
                f"its update came out as {tuple(update.shape)}"
            )
        leaf.update = placed_as(update if update.dtype == wide else update.to(wide), leaf.update)
        if not old and not state and not self._shared:
            return
        state = numbered(state)
        if self._shared:
            new = leaf.run.new_shared.setdefault(self.path, {})
            for name, value in self._shared.items():
                if not self._spec.random or name in state:
                    found = state.pop(name, None)
                    if isinstance(found, Tensor) and found.ndim:
                        shape = tuple(found.shape)
                        raise ValueError(f"{self._spec.name}: the shared {name!r} comes in shape {shape}, needs 0-d")
                    new.setdefault(name, value_for(found, value, self.path, name, leaf.name))
        if old.keys() != state.keys():
            raise self._other_slots(leaf, old, state)
        if old:
            try:
                new = {slot: value_for(state[slot], value, self.path, slot, leaf.name) for slot, value in old.items()}
            except ValueError as error:
                raise self._other_shapes(leaf, old, state, error) from None
            leaf.new[self.path] = leaf.accepted(new, old)

    def _other_slots(self, leaf: Leaf, old: dict[str, Tensor], new: dict[str, Any]) -> ValueError:
        """Whose fault it is that a rule returns other slots than it got: its own, if `init` makes those it got."""
        if self._first(leaf).keys() != old.keys():
            return ValueError(
                f"{'.'.join(self.path)}: leaf {leaf.name!r} has the slots {sorted(old)} where this chain keeps "
                f"{sorted(new)}; {OWN_STATE}"
            )
        none = self._parts.init is None
        whose = "though there is no init to make it: return init, update" if none else "which its init does not make"
        missing, unknown = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
        faults = [f"without the slot {missing[0]!r}, which its init makes"] if missing else []
        faults += [f"with the slot {unknown[0]!r}, {whose}"] if unknown else []
        return ValueError(f"{self._spec.name}: the rule returns a state {', and '.join(faults)}")

    def _other_shapes(
        self, leaf: Leaf, old: dict[str, Tensor], new: dict[str, Any], otherwise: ValueError
    ) -> ValueError:
        """The same for shapes; `otherwise` blames the state."""
        made = self._first(leaf)
        for slot, value in old.items():
            if made[slot].shape == value.shape != new[slot].shape:
                return ValueError(
                    f"{self._spec.name}: the rule returns the slot {slot!r} of leaf {leaf.name!r} in shape "
                    f"{tuple(new[slot].shape)}, its init makes it in shape {tuple(value.shape)}"
                )
        return otherwise

    def _supply(self, error: KeyError, state: dict[str, Any], leaf: Leaf) -> None:
        """A slot that the rule missed: an empty list leaves nothing in the state; anything else is an error."""
        missing = error.args[0] if error.args else None
        if not isinstance(missing, str) or missing in state:
            raise error
        made = {} if self._parts.init is None else self._made(leaf)
        if missing not in made and missing not in numbered(made):
            raise ValueError(
                f"{self._spec.name}: the rule asks for {missing!r}, which is no slot that its init makes; "
                f"{nearest(missing, [*made, *self._shared])}"
            ) from error
        if made.get(missing) != []:
            raise lacking((*self.path, missing), leaf.name) from error
        state[missing] = []

    def _check_shapes(self, leaf: Leaf, old: dict[str, Tensor]) -> None:
        """Something went wrong in the rule: perhaps the state is of other tensors."""
        for slot, value in self._first(leaf).items():
            if slot in old and old[slot].shape != value.shape:
                raise wrong_shape(self.path, slot, leaf.name, old[slot].shape, value.shape)

    def evaluate(self, leaf: Leaf) -> Any:
        if self._parts.evaluate is None:
            return None
        wide = self._wide(leaf)
        _, state = self._state(leaf, wide)
        try:
            return self._parts.evaluate(state, leaf.param.to(wide))
        except KeyError as error:
            self._supply(error, state, leaf)
            raise


class TreeStage(Operation):
    """Functions of whole trees: a `@whole_tree` factory's, of dicts by leaf name, or any two as in optax.

    The latter (`plain`) get trees as the caller built them and no context. What they return is kept as the caller's
    own tree where there is one (functional use), else as slots (dicts by leaf name) and shared 0-d tensors.
    """

    compiles = False

    def __init__(
        self,
        path: Path,
        run: Run,
        name: str,
        parts: Parts,
        state_dtype: Any = None,
        plain: bool = False,
        agree: dict[str, Any] | None = None,
    ):
        self.agree = agree or {}
        self.path, self._run, self._name, self._parts, self._state_dtype = path, run, name, parts, state_dtype
        self._plain, self._opaque = plain, plain and run.keeps_trees
        self._members: list[Leaf] = []
        self.elementwise = False
        run.free.add(path)
        if self._opaque:
            run.opaque.add(path)

    def _tree(self, values: dict[str, Any]) -> Any:
        return self._run.whole(values) if self._plain else values

    def init(self, leaf: Leaf) -> None:
        self._members.append(leaf)

    def init_all(self) -> None:
        if self._parts.init is None:
            return
        state = self._parts.init(self._tree({leaf.name: leaf.param for leaf in self._members}))
        if self._opaque:
            self._run.new_trees[self.path] = state
            return
        leaves = {leaf.name: leaf for leaf in self._members}
        slots, self._run.new_shared[self.path] = self._split(state, leaves)
        for name, values in slots.items():
            leaf = leaves[name]
            leaf.new[self.path] = first_slots(values, leaf.param, self._state_dtype or leaf.param_dtype, self._name)

    def _split(self, state: Any, leaves: dict[str, Leaf]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        slots: dict[str, dict[str, Tensor]] = {}
        shared: dict[str, Tensor] = {}
        for key, value in state.items() if isinstance(state, dict) else [("", state)] if state else []:
            if isinstance(value, Tensor) and value.ndim == 0:
                shared[key] = undivided(value)
            elif isinstance(value, dict) and set(value) <= set(leaves):
                for name, tensor in value.items():
                    slots.setdefault(name, {})[key] = tensor
            else:
                raise TypeError(
                    f"{self._name}: its state {key!r} is neither a dict keyed by leaf name nor a 0-d tensor; "
                    "only these can be kept here"
                )
        return slots, shared

    def start(self, leaf: Leaf) -> Any:
        return True  # nothing to send: `combine` reads the leaves themselves

    def combine(self, waiting: list[tuple[Leaf, Any]]) -> Any:
        leaves = {leaf.name: leaf for leaf, _ in waiting}
        updates = self._tree({name: leaf.update for name, leaf in leaves.items()})
        known = waiting[0][0].param is not None
        params = self._tree({name: leaf.param for name, leaf in leaves.items()}) if known else None
        context = () if self._plain else (TreeContext(leaves),)
        try:
            out = self._parts.update(updates, self._old(leaves), params, *context)
        except (AttributeError, TypeError) as error:
            if not known and "NoneType" in str(error):
                raise without_params(self._name, error, self._plain) from error
            raise
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(f"{self._name}: update returns (updates, state), got {type(out).__name__}")
        updates, state = out
        if self._opaque:
            self._run.new_trees[self.path] = state
        elif state:
            self._keep(state, leaves)
        found = self._run.by_name(updates) if self._plain else updates
        for name in leaves:
            if not isinstance(found, dict) or not isinstance(found.get(name), Tensor):
                raise TypeError(f"{self._name}: update returned no tensor for leaf {name!r}")
        return found

    def _old(self, leaves: dict[str, Leaf]) -> Any:
        if self._opaque:
            return self._run.tree(self.path)
        state: dict[str, Any] = dict(self._run.scalars(self.path))
        for name, leaf in leaves.items():
            for slot, value in self._run.slots(self.path, leaf).items():
                state.setdefault(slot, {})[name] = widened(value, leaf.wide)
        return state

    def _keep(self, state: Any, leaves: dict[str, Leaf]) -> None:
        slots, self._run.new_shared[self.path] = self._split(state, leaves)
        for name, leaf in leaves.items():
            old, new = self._run.slots(self.path, leaf), slots.get(name, {})
            if old.keys() != new.keys():
                raise ValueError(f"{self._name}: the slots of leaf {name!r} became {sorted(new)}, were {sorted(old)}")
            if new:
                new = {slot: value_for(new[slot], value, self.path, slot, name) for slot, value in old.items()}
                leaf.new[self.path] = leaf.accepted(new, old)

    def resume(self, leaf: Leaf, total: Any) -> None:
        update = total[leaf.name]
        if update.shape != leaf.update.shape:
            raise ValueError(
                f"{self._name}: leaf {leaf.name!r} has shape {tuple(leaf.update.shape)}, "
                f"its update came out as {tuple(update.shape)}"
            )
        leaf.update = update.to(leaf.wide)


class TreeContext(Context):
    """What a `@whole_tree` rule may know: as `Context`, with dicts by leaf name where that has one tensor."""

    def __init__(self, leaves: dict[str, Leaf]):
        first = next(iter(leaves.values()))
        super().__init__(first, first.clock, first.wide)
        self._leaves = leaves

    @property
    def grad(self) -> Any:
        return {name: leaf.grad for name, leaf in self._leaves.items()}

    def grad_fn(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradients at `params` (by leaf name; leaves not given stay where they are)."""
        gradients = next(iter(self._leaves.values())).run.gradients_at(params)
        turned = {name: -gradients[name] for name, leaf in self._leaves.items() if leaf.negated}
        return {**gradients, **turned} if turned else gradients

    def __getattr__(self, name: str) -> Any:
        if name in next(iter(self._leaves.values())).run.leaf_extras:
            return {key: leaf.extras.get(name) for key, leaf in self._leaves.items()}
        return super().__getattr__(name)


def without_params(owner: str, error: Exception, plain: bool = False) -> ValueError:
    """The error for a rule that failed on a None when it had no parameters."""
    remedy = "" if plain else "; if it always reads them, declare needs=('params',)"
    return ValueError(
        f"{owner}: params were not passed, and the rule fails without them ({error}): "
        f"call update(updates, state, params){remedy}"
    )


def first_slots(slots: dict[str, Any], like: Tensor, stored: torch.dtype, owner: str) -> dict[str, Tensor]:
    """What `init` made, in the dtype it is kept in: `stored`, unless the rule asked for a dtype of its own."""
    kept = {}
    if not isinstance(slots, dict) or not all(isinstance(slot, str) for slot in slots):
        raise TypeError(f"{owner}: init returns a dict of slot name -> tensor, got {slots!r}")
    if any(slot.rpartition("_")[2].isdigit() for slot in slots):
        raise TypeError(
            f"{owner}: slots {sorted(slots)}: a trailing number is the library's; return a list in one slot"
        )
    for slot, value in numbered(slots).items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{owner}: init returns a dict of slot name -> tensor, got {value!r} for {slot!r}")
        scalar = value.ndim == 0 and like.ndim > 0 and value.dtype == exact_dtype(value)
        value = value.to(stored) if value.dtype == like.dtype and not scalar else value
        if value.shape == like.shape:
            kept[slot] = placed_as(value, like)
        else:
            kept[slot] = gathered(value, like) if value.ndim else undivided(value)
    return kept


def widened(value: Tensor, wide: torch.dtype) -> Tensor:
    """A stored tensor as rules see it: never in half precision."""
    if value.dtype == wide or not value.dtype.is_floating_point:
        return value
    return value.to(torch.promote_types(value.dtype, wide))


def value_for(value: Any, old: Tensor, path: Path, slot: str, leaf: str) -> Tensor:
    """A new value of a slot, in the slot's own dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{'.'.join([*path, slot])}: the new value of leaf {leaf!r} came out as {value!r}")
    if value.shape != old.shape:
        raise wrong_shape(path, slot, leaf, old.shape, value.shape)
    return placed_as(value if value.dtype == old.dtype else value.to(old.dtype), old)


def wrong_shape(path: Path, slot: str, leaf: str, old: torch.Size, new: torch.Size) -> ValueError:
    return ValueError(
        f"{'.'.join([*path, slot])}: leaf {leaf!r} has a slot of shape {tuple(old)}, "
        f"its new value has shape {tuple(new)}; {OWN_STATE}"
    )


def numbered(state: dict[str, Any]) -> dict[str, Any]:
    """A list becomes numbered slots: `{"x": [a, b]}` is kept as `{"x_0": a, "x_1": b}`."""
    if not any(isinstance(value, list) for value in state.values()):
        return dict(state)
    flat: dict[str, Any] = {}
    for slot, value in state.items():
        flat.update({f"{slot}_{i}": item for i, item in enumerate(value)} if isinstance(value, list) else {slot: value})
    return flat


def with_lists(state: dict[str, Any]) -> dict[str, Any]:
    """The reverse of `numbered`."""
    if not any(slot[-1].isdigit() and slot.rpartition("_")[2].isdigit() for slot in state):
        return state
    whole: dict[str, Any] = {}
    for slot in sorted(state, key=lambda slot: (len(slot), slot)):
        name, _, number = slot.rpartition("_")
        if number.isdigit():
            whole.setdefault(name, []).append(state[slot])
        else:
            whole[slot] = state[slot]
    return whole


def _scalar_maker(value: Any, arguments: dict[str, Any], device: torch.device) -> Callable[[], Tensor]:
    def make() -> Tensor:
        number = value(arguments) if callable(value) else value
        return exact(number, device)

    return make
