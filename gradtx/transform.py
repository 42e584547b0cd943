"""The central type, `GradientTransformation`, and `chain`."""

from __future__ import annotations

import functools
import inspect
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch

from gradtx.arguments import Argument
from gradtx.base import torch_names as _torch
from gradtx.base.ambient import ambient, without_ambient
from gradtx.base.messages import describe, nearest, shortly, warn_user
from gradtx.base.recent import Recent
from gradtx.execution.chain_order import order_faults
from gradtx.execution.context import ALWAYS_KNOWN
from gradtx.execution.execute import negating
from gradtx.execution.expansion import is_checked_already
from gradtx.execution.extras import FUNCTION_KINDS
from gradtx.execution.runs import Place, Scope
from gradtx.execution.tree_rule import Functions, PlainOperation, check_plain
from gradtx.pure import first_trees as _first_trees
from gradtx.pure import graph_node as _graphs
from gradtx.pure import listed as _listed
from gradtx.pure import tree_plan as _tree_plans
from gradtx.pure import tree_run as _pure

__all__ = ["GradientTransformation", "apply_updates", "chain"]


Update = TypeVar("Update", bound=Callable[..., Any])
# A tree keeps its type, so that checkers tell a pair of updates and state from updates.
Tree = TypeVar("Tree")


def _asks_for_state(update: Update) -> Update:
    """Have `update` say what it needs when it is called without a state, as code for torch's optimizers would."""

    @functools.wraps(update)
    def call(self: GradientTransformation, *args: Any, **kwargs: Any) -> Any:
        if len(args) < 2 and "state" not in kwargs:
            raise TypeError(
                f"{self._name}: update needs the state as well: call update(updates, state, params) with the state "
                "that init(params), or the last update, returned"
            )
        return update(self, *args, **kwargs)

    return cast("Update", call)


class GradientTransformation:
    """A pair of pure functions over trees of tensors, `init` and `update`.

    Instances are immutable and support pickle and deepcopy. `init, update = tx` unpacks the pair. Factories and
    combinators create most transformations; the constructor accepts any two functions of trees:

    Args:
        init: `init(params) -> state`, any tree of tensors.
        update: `update(updates, state, params) -> (updates, state)`. Leaves without a gradient, and leaves that
            another combinator removed, are None in its trees. The extras `value` and `hessian_diag`, if the caller
            passes them, are passed to parameters with these names or to `**extras`.

    Raises:
        TypeError: If `init` or `update` is not callable, or if `update` has a parameter `grad_fn` or `value_fn`, which
            only `@whole_tree` rules receive.

    Example:
        >>> halve = GradientTransformation(
        ...     lambda params: {}, lambda u, s, p: ({k: v / 2 for k, v in u.items()}, s)
        ... )
        >>> tx = gradtx.chain(halve, gradtx.scale(-1.0))
        >>> updates, state = tx.update(
        ...     {"w": torch.tensor([2.0, 4.0])}, tx.init({"w": torch.zeros(2)})
        ... )
        >>> updates["w"]
        tensor([-1., -2.])
    """

    _name = "transformation"
    _functions: Functions

    def __init__(self, init: Callable[..., Any], update: Callable[..., Any]):
        for what, function in (("init", init), ("update", update)):
            if not callable(function):
                raise TypeError(
                    f"GradientTransformation: {what} must be a function, got {describe(function)}"
                )
        check_plain(update)
        self._set(_functions=Functions(init, update))

    # Whether dynamo traced its construction, so that it has no values.
    _is_traced: bool = False
    # The transformation that dynamo saw `replace` called on, and the new values by their places.
    _origin: tuple[GradientTransformation, dict[Any, Any]] | None = None
    _graph_nodes: tuple[Any, ...] = ()  # what graphs of compilers need

    def _set(self, **attributes: Any) -> None:
        if torch.compiler.is_dynamo_compiling():
            attributes["_is_traced"] = True
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"{self._name}: a GradientTransformation is immutable; use replace({name}=...)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return GradientTransformation, (self._functions.init, self._functions.update)

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        yield self.init
        yield self.update

    if not TYPE_CHECKING:  # type checkers report unknown attributes themselves

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                # Raises the AttributeError of a property again.
                return object.__getattribute__(self, name)
            raise AttributeError(
                f"{self._name}: a transformation has no {name!r}; its numbers are in hyperparams, and "
                f"gradtx.as_optimizer({self._name}(...), params) creates a torch optimizer"
            )

    def __repr__(self) -> str:
        return f"GradientTransformation({describe(self._functions.init)}, {describe(self._functions.update)})"

    # Public methods.

    @without_ambient
    def init(self, params: Any, *, counts: str = "calls") -> dict[str, Any]:
        """Return the initial state for a tree of parameters: nested dicts of tensors by leaf name.

        Args:
            params: The parameters.
            counts: As in torch's optimizers, each leaf counts the updates in which it had a gradient, or in which
                `accumulate` took a missing one for zero. "calls": one count for all leaves, until an update lacks the
                gradient of a leaf; that update adds an entry `leaf_steps` to the state. "leaves": with this entry from
                the beginning, so that the structure of the state never changes, as `gradtx.stack` and loops under
                transforms need. `gradtx.load` fills in the entry where it is missing.

        Raises:
            TypeError: If a leaf is neither a floating-point or complex tensor nor None.
            ValueError: If `counts` is unknown, if a selector matches no leaf, or if a leaf has no label.
        """
        if torch.compiler.is_dynamo_compiling():
            state = _graphs.init(self, params, counts)
            if state is not None:
                return state
        return _first_trees.init(self, params, counts)

    @_asks_for_state
    def update(
        self, updates: Tree, state: dict[str, Any], params: Any = None, **extras: Any
    ) -> tuple[Tree, dict[str, Any]]:
        """Compute one step as a pure function: return new `(updates, state)` without changing any argument.

        Args:
            updates: A tree of gradients; a None leaf stays None and keeps its slots. A call without any gradient
                changes nothing. Of a sparse leaf, as `nn.Embedding(sparse=True)` returns it, the listed rows are
                updated with the same rows of slots, and its update is sparse, too.
            state: The state returned by `init` or by the previous `update`.
            params: The parameters, required if `"params" in tx.needs`.
            **extras: `value` (the loss, 0-d), `value_fn` (params -> loss), `grad_fn` (params -> gradients),
                `hessian_diag` (a tree), and any other extra that a link declares; see `needs`.

        Raises:
            RuntimeError: If a leaf is sparse, and a link cannot update its rows alone.
            TypeError: If no link declares an extra that was passed, or if there is no `state`.
            ValueError: If `params` or a required extra is missing, if the trees do not match each other, or if the
                state belongs to another chain.

        Example:
            >>> tx = gradtx.sgd(lr=0.5)
            >>> rows, values = torch.tensor([[2]]), torch.ones(1, 4)
            >>> gradient = torch.sparse_coo_tensor(
            ...     rows, values, (1000, 4), check_invariants=True
            ... )
            >>> state = tx.init(torch.zeros(1000, 4))
            >>> update, state = tx.update(gradient, state)
            >>> update.indices(), update.values()
            (tensor([[2]]), tensor([[-0.5000, -0.5000, -0.5000, -0.5000]]))
        """
        around = ambient()
        if around is None:
            return self._updated(updates, state, params, extras)
        extras = around.around_all(extras)
        return around.suspend(self._updated, updates, state, params, extras)

    def _updated(
        self, updates: Any, state: dict[str, Any], params: Any, extras: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        is_traced = torch.compiler.is_dynamo_compiling()
        update = _graphs.update if is_traced else _tree_plans.update
        call = _pure.UpdateCall(self, updates, state, params, extras)
        kinds, _ = self._requirements()
        if is_traced and not FUNCTION_KINDS.isdisjoint(kinds.values()):
            return _updated_untraced(call)
        if "grad_sample" in kinds and "grad_sample" not in extras:
            call = _pure.with_examples(call)
        result = update(call)
        if result is None and not is_traced:
            result = _listed.update(call)
        return _pure.update(call) if result is None else result

    @_torch.assume_constant
    def _graph_node(self, identity: int, *arguments: Any) -> tuple[str, list[int]]:
        """Return a new node for graphs of `torch.compile`, which dynamo guards by this identity.

        Before torch 2.13, dynamo has only functions of constants called while it traces, and methods of other objects.
        """
        return _graphs.node_for(self, *arguments)

    @without_ambient
    def eval_params(self, state: dict[str, Any], params: Any) -> Any:
        """Return the weights for evaluation, such as averages or lookahead's slow weights.

        For each leaf, the last link that defines evaluation weights applies; other leaves are those of `params`.
        """
        return _pure.eval_params(self, state, params)

    @property
    def hyperparams(self) -> dict[str, Any]:
        """A new dict, name -> value, of all hyperparameters.

        The outermost decorated call owns a name. The bare name refers to the first optimizer that has it, such as
        `adamw`, else to the first link; those of other links are called `owner.name`, or in a partition `label.name`.
        """
        return Hyperparams(
            self._name, {entry.name: entry.value for entry in self._entries()}
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """The sorted inputs that `update` requires beyond `updates` and `state`: `params` and names of extras."""
        _, needs = self._requirements()
        return tuple(sorted({requirement.need for requirement in needs}))

    def replace(self, **hyperparams: Any) -> GradientTransformation:
        """Return a copy with other hyperparameter values; names are those of `hyperparams`.

        A name with its owner (`adamw.lr`) or its label (`head.lr`) is always accepted, even if `hyperparams` shows the
        bare name.

        Raises:
            TypeError: If a name is unknown.

        Example:
            >>> gradtx.adamw(lr=1e-3).replace(lr=1e-4)
            adamw(lr=0.0001)
        """
        origin, earlier = self._origin or (self, {})
        places = (
            self._places_of(*hyperparams)
            if origin._is_traced
            else origin._known_places(id(origin), *hyperparams)
        )
        values = dict(zip(places, hyperparams.values(), strict=True))
        replaced = self._replaced(values, True)
        if values and torch.compiler.is_dynamo_compiling():
            replaced._set(_origin=(origin, {**earlier, **values}))
        return replaced

    def _places_of(self, *names: str) -> list[tuple[Place, str]]:
        """Return the places of hyperparameters."""
        entries = self._places()
        for name in names:
            if name not in entries:
                raise TypeError(
                    f"{self._name}: no hyperparameter {name!r}; {nearest(name, entries)}"
                )
        return [entries[name].place for name in names]

    @_torch.assume_constant
    def _known_places(self, identity: int, *names: str) -> list[tuple[Place, str]]:
        """Return the places of hyperparameters, as of the transformation with this identity, which dynamo guards."""
        return self._places_of(*names)

    def _structure(self) -> Any:
        """Return the structure without hyperparameter values; None if its programs cannot be shared."""
        return None

    # The interface for combinators and engines. A place is (child indices down to a node, argument).

    # Whether it processes the finished step, so that no learning rate or decay should follow.
    _follows_rate: bool = False
    # Whether it minimizes the negated loss, as do chains with such an optimizer, and combinators of nothing else.
    _maximizes: bool = False
    # Whether this is an alias, whose hyperparameters have bare names.
    _is_optimizer: bool = False
    # Its own role for the learning rate: "owner" owns it, "before owner" must precede the owner, None is neither.
    _own_lr_role: str | None = None
    # What it does to the sign of an update; see `gradtx.rules.Sign`.
    _sign: str = "either"
    # Whether it is declared to flip the sign, if its arguments say so.
    _may_flip_sign: bool = False
    # What it does to the length of an update; see `gradtx.rules.Length`.
    _length: str = "keeps"
    # Whether its decay has a size of its own, as after a learning rate; None if it cannot have one.
    _is_fixed: bool | None = None
    # Whether its updates yield weights that are already rounded.
    _rounds: bool = False
    # Whether small errors in what it reads can become as large as its result.
    _amplifies: bool = False
    # The inputs that it requires.
    _needs: tuple[str, ...] = ()
    # The extras that it accepts in addition to those known to every link: name -> kind.
    _extras: Mapping[str, str] = {}

    @property
    def _effects(self) -> set[str]:
        """Its effects, for which some combinators reject it; see `gradtx.execution.nesting`."""
        return {"whole"}

    @property
    def _lr_role(self) -> str | None:
        """Its role for the learning rate, or that of what it wraps."""
        roles = [link._own_lr_role for link in self._every_link()]
        for role in ("owner", "before owner"):
            if role in roles:
                return role
        return None

    _hyperparameters: Any = None  # the hyperparameters that programs take as arguments
    _plan_cache: dict[Any, Any] | None = None  # the plans of pure updates

    _required: tuple[dict[str, str], list[Requirement]] | None = None

    def _requirements(self) -> tuple[dict[str, str], list[Requirement]]:
        """Return the kind of each known extra, and the requirements of the links."""
        # Dynamo would guard a cache that it reads, and compile again once an eager call has filled it.
        caches = not torch.compiler.is_compiling()
        if caches and self._required is not None:
            return self._required
        kinds = dict.fromkeys(ALWAYS_KNOWN, "scalar") | {"hessian_diag": "leaf"}
        needs: list[Requirement] = []
        for typed, link in self._typed_links():
            kinds.update(link._extras)
            needs.extend(Requirement(typed, link._name, need) for need in link._needs)
        if caches:
            self._set(_required=(kinds, needs))
        return kinds, needs

    def _children(self) -> tuple[GradientTransformation, ...]:
        return ()

    def _own_entries(self) -> Iterable[tuple[str, Any, Argument]]:
        return ()

    def _expand(self, scope: Scope) -> list[Any]:
        """Return the operations that process a leaf in this run; the outermost that maximizes negates the loss."""
        if scope.negated or not self._maximizes:
            return self._operations(scope)
        return negating(self._operations(scope._with(negated=True)))

    def _operations(self, scope: Scope) -> list[Any]:
        """Return the operations that process a leaf, below the sign of the loss."""
        return [
            PlainOperation(scope.claim(self._name), scope, self._name, self._functions)
        ]

    def _links(self) -> list[GradientTransformation]:
        """Return the links of this transformation; aliases are expanded, a combinator counts as one link."""
        return [self]

    def _every_link(self) -> list[GradientTransformation]:
        """Return all links, including those inside combinators, each combinator before what it wraps."""
        return [link for _, link in self._typed_links()]

    def _typed_links(self, typed: str = "") -> list[tuple[str, GradientTransformation]]:
        """Return all links, each with the name of the function that the caller typed, for messages.

        That is the outermost alias around the link, such as `adamw` around its `add_decayed_weights`, or the link.

        Args:
            typed: The outermost alias around this transformation, if there is one.
        """
        links: list[tuple[str, GradientTransformation]] = []
        for link in self._links():
            links.append((typed or link._name, link))
            for child in link._children():
                links.extend(child._typed_links(typed))
        return links

    _computed: dict[Any, Any] | None = None
    # What equal transformations have in common; None if it may refer to any object.
    _constants: Any = None

    def _takes_over(self) -> bool:
        """Take over what an equal transformation has computed, which was checked; return whether there is one."""
        equal = None if self._constants is None else _EQUALS.get(self._constants)
        if equal is None:
            return False
        own = vars(equal)
        self._set(**{name: own[name] for name in OF_EQUALS if name in own})
        return True

    def _note_for_equals(self) -> None:
        """Let later transformations that are equal take over what this one computes."""
        if self._constants is not None:
            self._set(_computed=self._computed or {})
            _EQUALS.put(self._constants, self)

    def _once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Return what follows from this transformation alone, which is computed once."""
        if torch.compiler.is_compiling():  # as for `_requirements`
            return compute()
        if self._computed is None:
            self._set(_computed={})
        computed = cast("dict[Any, Any]", self._computed)
        if key not in computed:
            computed[key] = compute()
        return computed[key]

    def _entries(
        self, labels: Mapping[Any, str] | None = None, apart: bool = True
    ) -> tuple[Entry, ...]:
        """Return all hyperparameters with their public names.

        With `labels` (key of a partition's selector -> label), return them as leaves with these labels see them: names
        in their branches are bare. If `apart`, an alias's own hyperparameters are hidden from leaves in its other
        branches.
        """
        of_labels = None if labels is None else tuple(labels.items())
        return self._once(
            ("entries", of_labels, apart), lambda: self._named_entries(labels, apart)
        )

    def _named_entries(
        self, labels: Mapping[Any, str] | None, apart: bool
    ) -> tuple[Entry, ...]:
        found = list(_found(self, labels, apart, (), "", Counter()))
        public: dict[Any, str] = {}
        # The first optimizer (alias) that has a name keeps it, else the first link.
        for entry in sorted(found, key=lambda entry: not entry.of_optimizer):
            taken = public.values()
            free = (name for name in entry.names if name not in taken)
            public[entry.place] = next(free, entry.full)
        return tuple(entry._replace(name=public[entry.place]) for entry in found)

    def _branches(self) -> Branches | None:
        """Return the branches among which each leaf takes one, or None."""
        return None

    def _places(self) -> dict[str, Entry]:
        """Return every accepted name of a hyperparameter; shown names take precedence, then names with an owner."""
        entries = self._entries()
        by_name = {}
        for level in range(3):
            for entry in entries:
                by_name.setdefault(entry.names[level], entry)
        return by_name

    def _replaced(
        self, values: Mapping[tuple[Place, str], Any], checked: bool, place: Place = ()
    ) -> GradientTransformation:
        """Return a copy with other values at some places; validate them if `checked` (the adapter's are not).

        `place` is that of this node, below the one that was asked for a copy.
        """
        children = tuple(
            child._replaced(values, checked, (*place, i))
            for i, child in enumerate(self._children())
        )
        own = {}
        for name, _, _ in self._own_entries():
            if (place, name) in values:
                own[name] = values[place, name]
        return self._rebuilt(children, own, checked)

    def _rebuilt(
        self,
        children: tuple[GradientTransformation, ...],
        arguments: dict[str, Any],
        checked: bool,
    ) -> GradientTransformation:
        return self


# Attributes that follow from the constants of a transformation.
OF_EQUALS = (
    "_arguments",
    "_computed",
    "_first",
    "_hyperparameters",
    "_last_amplifier",
    "_required",
)
_EQUALS: Recent[Any, GradientTransformation] = Recent()


class Requirement(NamedTuple):
    """An input of `update` that a link requires.

    Attributes:
        typed: The name of the function that the caller typed: the outermost alias around the link, or the link.
        link: The name of the link.
        need: The name of the input.
    """

    typed: str
    link: str
    need: str


class Branches(NamedTuple):
    """The branches of a partition, or of an alias that contains a partition.

    Attributes:
        selector: The key of the selector that chooses among them.
        children: The label of each child.
        own: The labels of leaves to which the transformation's own hyperparameters apply.
    """

    selector: Any
    children: tuple[str, ...]
    own: tuple[str, ...] = ()


class Entry(NamedTuple):
    """A hyperparameter of a transformation.

    Attributes:
        name: Its public name.
        full: Its name with the labels of its branches and its owner.
        value: Its value.
        argument: Its specification.
        place: The place of its node, and the name of the argument.
        of_optimizer: Whether an alias owns it.
    """

    name: str
    full: str
    value: Any
    argument: Argument
    place: tuple[Place, str]
    of_optimizer: bool

    @property
    def names(self) -> tuple[str, str, str]:
        """All its names: the public one, the one with the labels of its branches, and the one with its owner too."""
        *labels, _, name = self.full.split(".")
        return self.name, ".".join([*labels, name]), self.full


def _found(
    node: GradientTransformation,
    labels: Mapping[Any, str] | None,
    apart: bool,
    place: Place,
    prefix: str,
    owners: Counter[str],
) -> Iterator[Entry]:
    """Yield the hyperparameters of a node and those below, with their own names as public ones.

    Args:
        node: The node.
        labels, apart: As for `_entries`.
        place: The place of the node.
        prefix: The labels of its branches.
        owners: How many nodes of each name have hyperparameters; the second node with a name is `name_1`.
    """
    branches = node._branches()
    if branches is not None and branches.own and not apart:
        branches = None
    label = None
    if branches is not None and labels is not None:
        label = labels.get(branches.selector)
    if branches is None or label is None or label in branches.own:
        own = list(node._own_entries())
        occurrence = owners[node._name]
        owner = f"{node._name}_{occurrence}" if occurrence else node._name
        owners[node._name] += bool(own)
        for name, value, argument in own:
            full = f"{prefix}{owner}.{name}"
            of_optimizer = node._is_optimizer
            yield Entry(name, full, value, argument, (place, name), of_optimizer)
    for i, child in enumerate(node._children()):
        inner_prefix = prefix
        if branches is not None:
            branch = branches.children[i]
            if labels is not None and branch != label:
                continue
            if labels is None and not branches.own:
                inner_prefix = f"{prefix}{branch}."
        yield from _found(child, labels, apart, (*place, i), inner_prefix, owners)


class Hyperparams(dict[str, Any]):
    """The result of `hyperparams`, a dict that cannot be written to. Copies are plain dicts."""

    def __init__(self, who: str, values: Mapping[str, Any]):
        super().__init__(values)
        self._who = who

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError(
            f"{self._who}: hyperparams is a copy; replace({name}=...) returns a transformation with another value"
        )

    # Not `dict`, which torch.load(weights_only=True) rejects as code.
    def __reduce__(self) -> Any:
        return OrderedDict, (), None, None, iter(self.items())


def same(
    node: GradientTransformation, children: tuple[GradientTransformation, ...]
) -> bool:
    return all(a is b for a, b in zip(node._children(), children, strict=True))


class Chain(GradientTransformation):
    """A sequence of transformations, created by `chain`."""

    _name = "chain"
    _txs: tuple[GradientTransformation, ...]

    def __init__(self, txs: tuple[GradientTransformation, ...], checked: bool = True):
        self._set(_txs=txs)
        if not checked:
            return
        constants = tuple(tx._constants for tx in txs)
        if txs and None not in constants and not torch.compiler.is_compiling():
            self._set(_constants=("chain", constants))
        if self._takes_over():
            return
        links = self._links()
        _check_owners(links)
        _check_last(links)
        _check_first(links)
        self._note_for_equals()

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, (self._txs,)

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self._txs))})"

    def _children(self) -> tuple[GradientTransformation, ...]:
        return self._txs

    @property
    def _maximizes(self) -> bool:  # type: ignore[override]
        return any(tx._maximizes for tx in self._txs)

    _last_amplifier: int | None = None

    def _amplified(self) -> int:
        """Return the number of transformations before the last one that amplifies errors in what it reads."""
        if self._last_amplifier is not None and not torch.compiler.is_compiling():
            return self._last_amplifier
        last = 0
        for i, tx in enumerate(self._txs):
            for _, link in tx._typed_links():
                if link._amplifies:
                    last = i
        if not torch.compiler.is_compiling():  # dynamo would guard what it reads
            self._set(_last_amplifier=last)
        return last

    def _typed_links(self, typed: str = "") -> list[tuple[str, GradientTransformation]]:
        return [pair for tx in self._txs for pair in tx._typed_links(typed)]

    def _operations(self, scope: Scope) -> list[Any]:
        operations = []
        scope = scope.of(self)
        amplified = self._amplified()
        for i, tx in enumerate(self._txs):
            child = scope.child(i, changed=len(operations) > 0, amplified=i < amplified)
            operations.extend(tx._expand(child))
        return operations

    def _links(self) -> list[GradientTransformation]:
        return [link for tx in self._txs for link in tx._links()]

    def _structure(self) -> Any:
        structures = tuple(tx._structure() for tx in self._txs)
        return None if None in structures else ("chain", structures)

    def _rebuilt(
        self,
        children: tuple[GradientTransformation, ...],
        arguments: dict[str, Any],
        checked: bool,
    ) -> GradientTransformation:
        return self if same(self, children) else Chain(children, checked)


def chain(*txs: GradientTransformation) -> GradientTransformation:
    """Apply transformations in sequence, each to the updates of the previous one.

    Chains are associative and flat: `chain(a, chain(b, c))` and `chain(a, b, c)` are equivalent and have the same
    state. `chain(a)` returns `a`; `chain()` returns updates unchanged.

    Warns about orders that are rarely intended: behind a learning rate (or an optimizer, which has one), another rate
    or a decay, which flips the sign again; a link that normalizes (`scale_by_adam`, `scale_by_sign`), where the rate
    has no effect; a clip, which would bound steps; and before a rate, a link that expects the finished step (`average`,
    `lookahead`, `map_after_step`). A link `scale(1.0)` says that signs and lengths are intended.

    Raises:
        TypeError: If an argument is not a GradientTransformation (such as a factory that was not called).
        ValueError: If a learning rate, a decay or a second owner follows a link that owns the learning rate, or if a
            link that computes the gradient is not the first.

    Example:
        >>> gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=1e-4))
        chain(clip_by_global_norm(1.0), adamw(lr=0.0001))
    """
    flat: list[GradientTransformation] = []
    for i, tx in enumerate(txs):
        if isinstance(tx, list | tuple):
            raise TypeError(
                f"chain: argument {i + 1} is a {type(tx).__name__} of links; pass its items: chain(*links)"
            )
        check_transformation("chain", f"argument {i + 1}", tx)
        flat.extend(tx._txs if isinstance(tx, Chain) else (tx,))
    if not torch.compiler.is_compiling() and _is_called_by_user():
        warn_of_order("chain", txs)
    if len(flat) == 1:
        return flat[0]
    return Chain(tuple(flat), not is_checked_already())


def _is_called_by_user() -> bool:
    """Whether the caller of `chain` is neither of this library nor the body of an alias, which runs many times."""
    caller = sys._getframe(2)
    for frame in (caller, caller.f_back):
        if frame is None:
            continue
        if frame.f_globals.get("__name__", "").startswith("gradtx."):
            return False
    return True


def warn_of_order(who: str, txs: Iterable[GradientTransformation]) -> None:
    """Warn about the first fault in the order of a chain that none of the chains in it has.

    Args:
        who: The name of the function that creates the chain.
        txs: Its arguments, of which chains are flattened.
    """
    links: list[GradientTransformation] = []
    faults_of_parts: set[str] = set()
    for tx in txs:
        links.extend(tx._txs if isinstance(tx, Chain) else (tx,))
        if isinstance(tx, Chain):
            faults_of_parts.update(order_faults(tx._txs))
    fault = next(
        (fault for fault in order_faults(links) if fault not in faults_of_parts), None
    )
    if fault is not None:
        warn_user(f"{who}: {fault}")


@_torch.not_traced
def _updated_untraced(call: _pure.UpdateCall) -> tuple[Any, dict[str, Any]]:
    """Compute a step outside of the compiled graph: dynamo does not trace the derivatives that a link takes."""
    return _pure.update(call)


def check_transformation(who: str, what: str, tx: Any) -> None:
    """Check that an argument is a transformation.

    Args:
        who: The name of the calling function, for the error.
        what: The name of the argument.
        tx: Its value.

    Raises:
        TypeError: If `tx` is not a transformation.
    """
    if not isinstance(tx, GradientTransformation):
        remedy = "as returned by factories such as gradtx.adamw(lr=1e-3)"
        if hasattr(tx, "spec"):
            remedy = f"call it: {describe(tx)}(...)"
        elif inspect.isfunction(tx) and len(inspect.signature(tx).parameters) == 4:
            # That of a rule: (update, state, param, ctx).
            remedy = "decorate the function that returns it with @gradtx.per_tensor"
        raise TypeError(
            f"{who}: {what} must be a GradientTransformation, got {shortly(tx)}; {remedy}"
        )


def _check_owners(links: Iterable[GradientTransformation]) -> None:
    owner = None
    for link in links:
        if owner is not None and "makes gradient" in owner._effects:
            _check_behind_trials(owner, link)
        if owner is not None and link._lr_role is not None:
            raise ValueError(
                f"chain: {owner._name} owns the learning rate and returns the final update, so "
                f"{link._name} cannot follow it; pass lr and decay to {owner._name}, or remove one of the two links"
            )
        owners = (part for part in link._every_link() if part._own_lr_role == "owner")
        owner = next(owners, owner)


def _check_behind_trials(
    owner: GradientTransformation, link: GradientTransformation
) -> None:
    """Check that a link does not change the length of steps whose loss another one has judged."""
    if any(part._length != "keeps" for part in link._every_link()):
        raise ValueError(
            f"chain: {owner._name} computes the finished step, and judges it by the loss there, so {link._name} cannot "
            f"follow it; remove {link._name}, or use a method that returns a direction, such as gauss_newton"
        )


def _check_last(links: Iterable[GradientTransformation]) -> None:
    last = None
    for link in links:
        if last is not None and link._name != "record":
            raise ValueError(
                f"chain: {last._name} returns the update to the rounded weight, so it must be last, but "
                f"{link._name} follows it; only record may follow"
            )
        if any(part._rounds for part in link._every_link()):
            last = link


def _check_first(links: Iterable[GradientTransformation]) -> None:
    first = None
    for link in links:
        if first is None:
            first = link
            continue
        for part in link._every_link():
            if "makes gradient" in part._effects:
                raise ValueError(
                    f"chain: {part._name} computes the gradient, so the updates of {first._name} before it would be "
                    f"lost; make {part._name} the first link"
                )


def apply_updates(params: Tree, updates: Any) -> Tree:
    """Return `params + updates`, rounded once to the dtypes of `params`; a None update keeps the parameter.

    A parameter that is kept is the tensor in `params` itself: weights without gradients, such as those below adapters,
    take no second copy. Where an update is sparse, the other rows of the new parameter are those of the old one.

    Example:
        >>> gradtx.apply_updates(
        ...     {"w": torch.ones(2), "b": torch.ones(1)},
        ...     {"w": torch.tensor([1.0, 2.0]), "b": None},
        ... )
        {'w': tensor([2., 3.]), 'b': tensor([1.])}
    """
    _check_no_pair(params, updates)
    if torch.compiler.is_dynamo_compiling():
        result = _graphs.apply_updates(params, updates)
        if result is not None:
            return result
    return _pure.apply_updates(params, updates)


def _check_no_pair(params: Any, updates: Any) -> None:
    """Raise an error for what `update` returns, unless parameters are a pair, too."""
    is_pair = type(updates) is tuple and len(updates) == 2
    if is_pair and isinstance(updates[1], Mapping) and not isinstance(params, tuple):
        raise TypeError(
            "apply_updates: updates is a pair of updates and state, as update returns it; unpack it: "
            "updates, state = tx.update(...)"
        )
