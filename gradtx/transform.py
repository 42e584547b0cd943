"""The central type, `GradientTransformation`, and `chain`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import Module
from torch.optim import Optimizer

from gradtx.arguments import Argument
from gradtx.base.ambient import ambient, without_ambient
from gradtx.base.exact import Schedule
from gradtx.base.messages import describe, nearest_dotted, shortly
from gradtx.execution import pure as _pure
from gradtx.execution.context import ALWAYS_KNOWN
from gradtx.execution.runs import Place, Scope
from gradtx.execution.tree_rule import Functions, PlainOperation, check_plain
from gradtx.programs import pure as _pure_lists

__all__ = ["GradientTransformation", "apply_updates", "chain"]


OF_OPTIMIZERS = (
    "step",
    "zero_grad",
    "param_groups",
    "state_dict",
    "load_state_dict",
    "add_param_group",
)


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

    def _set(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"{self._name}: a GradientTransformation is immutable; use replace({name}=...)"
        )

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{self._name}: a GradientTransformation is immutable")

    def __reduce__(self) -> tuple[Any, ...]:
        return GradientTransformation, (self._functions.init, self._functions.update)

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        yield self.init
        yield self.update

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pure = (
            f"{self._name}.init(params) and {self._name}.update(updates, state, params)"
        )
        raise TypeError(
            f"{self._name}: a transformation is not callable; use {pure}, or "
            f"gradtx.as_optimizer({self._name}(...), params) for a torch optimizer"
        )

    if not TYPE_CHECKING:  # type checkers report unknown attributes themselves

        def __getattr__(self, name: str) -> Any:
            if name in OF_OPTIMIZERS:
                optimizer = f"gradtx.as_optimizer({self._name}(...), params)"
                raise AttributeError(
                    f"{self._name}: a transformation has no {name!r}; {optimizer} creates a torch optimizer"
                )
            if isinstance(getattr(type(self), name, None), property):
                # Raise the property's own AttributeError again.
                return object.__getattribute__(self, name)
            if not name.startswith("_") and name in self.hyperparams:
                raise AttributeError(
                    f"{self._name}: a transformation has no {name!r}; read hyperparams[{name!r}]"
                )
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}"
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
                the beginning, so that the structure of the state never changes.

        Raises:
            TypeError: If a leaf is neither a floating-point or complex tensor nor None.
            ValueError: If `counts` is unknown, if a selector matches no leaf, or if a leaf has no label.
        """
        return _pure.init(self, params, counts)

    def update(
        self, updates: Any, state: dict[str, Any], params: Any = None, **extras: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Compute one step as a pure function: return new `(updates, state)` without changing any argument.

        Args:
            updates: A tree of gradients; a None leaf stays None and keeps its slots.
            state: The state returned by `init` or by the previous `update`.
            params: The parameters, required if `"params" in tx.needs`.
            **extras: `value` (the loss, 0-d), `value_fn` (params -> loss), `grad_fn` (params -> gradients),
                `hessian_diag` (a tree), and any other extra that a link declares; see `needs`.

        Raises:
            TypeError: If no link declares an extra that was passed.
            ValueError: If `params` or a required extra is missing, if the trees do not match each other, or if the
                state belongs to another chain.
        """
        around = ambient()
        if around is None:
            return self._updated(updates, state, params, extras)
        extras = around.around_all(extras)
        return around.suspend(self._updated, updates, state, params, extras)

    def _updated(
        self, updates: Any, state: dict[str, Any], params: Any, extras: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        result = _pure_lists.update(self, updates, state, params, extras)
        return (
            _pure.update(self, updates, state, params, extras)
            if result is None
            else result
        )

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

        Raises:
            KeyError: If the name is unknown.
        """
        return Hyperparams(self)

    @property
    def needs(self) -> tuple[str, ...]:
        """The sorted inputs that `update` requires beyond `updates` and `state`: `params` and names of extras."""
        _, needs = self._requirements()
        return tuple(sorted({need for _, need in needs}))

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
        places = self._places()
        for name in hyperparams:
            if name not in places:
                raise TypeError(
                    f"{self._name}: no hyperparameter {name!r}; {nearest_dotted(name, places)}"
                )
        return self._replaced(
            {places[name].place: value for name, value in hyperparams.items()}, True
        )

    def _skeleton(self) -> Any:
        """Return the structure without hyperparameter values; None if its programs cannot be shared."""
        return None

    # The interface for combinators and engines. A place is (child indices down to a node, argument).

    @property
    def _needs(self) -> tuple[str, ...]:
        """The inputs that `update` requires."""
        return ()

    @property
    def _extras(self) -> Mapping[str, str]:
        """The extras that it accepts in addition to those known to every link: name -> kind."""
        return {}

    @property
    def _rounds(self) -> bool:
        """Whether its updates yield weights that are already rounded."""
        return False

    @property
    def _follows_rate(self) -> bool:
        """Whether it processes the finished step, so that no learning rate or decay should follow."""
        return False

    @property
    def _is_optimizer(self) -> bool:
        """Whether this is an alias, whose hyperparameters have bare names."""
        return False

    @property
    def _traits(self) -> set[str]:
        """Its properties for which some combinators reject it; see `gradtx.execution.nesting`."""
        return {"whole"}

    @property
    def _lr_role(self) -> str | None:
        """Role for the learning rate: "owner" owns it, "before owner" must precede the owner, None is neither."""
        return None

    _numbers: Any = None  # the hyperparameters that programs take as arguments
    _program_cache: dict[Any, Any] | None = None  # the programs of pure updates

    _required: tuple[dict[str, str], list[tuple[str, str]]] | None = None

    def _requirements(self) -> tuple[dict[str, str], list[tuple[str, str]]]:
        """Return the kind of each known extra, and the requirements of the links as (link name, requirement)."""
        # Dynamo would guard a cache that it reads, and compile again once an eager call has filled it.
        caches = not torch.compiler.is_compiling()
        if caches and self._required is not None:
            return self._required
        kinds = dict.fromkeys(ALWAYS_KNOWN, "scalar") | {"hessian_diag": "leaf"}
        needs: list[tuple[str, str]] = []
        for link in self._links():
            kinds.update(link._extras)
            needs.extend((link._name, need) for need in link._needs)
        if caches:
            self._set(_required=(kinds, needs))
        return kinds, needs

    def _children(self) -> tuple[GradientTransformation, ...]:
        return ()

    def _own_entries(self) -> Iterable[tuple[str, Any, Argument]]:
        return ()

    def _expand(self, scope: Scope) -> list[Any]:
        """Return the operations that process a leaf in this run."""
        return [
            PlainOperation(scope.claim(self._name), scope, self._name, self._functions)
        ]

    def _owner(self) -> GradientTransformation:
        """Return the link that owns the learning rate, also inside combinators."""
        return self

    def _links(self) -> list[GradientTransformation]:
        """Return the links of this transformation; aliases are expanded, a combinator counts as one link."""
        return [self]

    def _entries(
        self, labels: Mapping[Any, str] | None = None, apart: bool = True
    ) -> list[Entry]:
        """Return all hyperparameters with their public names.

        With `labels` (key of a partition's selector -> label), return them as leaves with these labels see them: names
        in their branches are bare. If `apart`, an alias's own hyperparameters are hidden from leaves in its other
        branches.
        """
        names = _Names(labels, apart)
        names.visit(self, (), "")
        return names.entries()

    def _branches(self) -> Branches | None:
        """Return the branches among which each leaf takes one, or None."""
        return None

    def _places(self) -> dict[str, Entry]:
        """Return every accepted name of a hyperparameter; shown names take precedence, then names with an owner."""
        entries = self._entries()
        by_name: dict[str, Entry] = {}
        for level in range(3):
            for entry in entries:
                by_name.setdefault(entry.names[level], entry)
        return by_name

    def _replaced(
        self, values: Mapping[tuple[Place, str], Any], checked: bool
    ) -> GradientTransformation:
        """Return a copy with other values at some places; validate them if `checked` (the adapter's are not)."""
        own_values: dict[str, Any] = {}
        values_of_children: dict[int, dict[tuple[Place, str], Any]] = {}
        for (place, name), value in values.items():
            if place:
                values_of_children.setdefault(place[0], {})[place[1:], name] = value
            else:
                own_values[name] = value
        children = list(self._children())
        for i, inner in values_of_children.items():
            children[i] = children[i]._replaced(inner, checked)
        return self._rebuilt(tuple(children), own_values, checked)

    def _rebuilt(
        self,
        children: tuple[GradientTransformation, ...],
        arguments: dict[str, Any],
        checked: bool,
    ) -> GradientTransformation:
        return self


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
    """A hyperparameter of a transformation: public name, name with owner, value, argument specification, place."""

    name: str
    full: str
    value: Any
    argument: Argument
    place: tuple[tuple[int, ...], str]

    @property
    def names(self) -> tuple[str, str, str]:
        """All its names: the public one, the one with its owner, and the one with the labels of its branches."""
        return self.name, self.full, self.labelled

    @property
    def labelled(self) -> str:
        """The name with the labels of its branches, without its owner."""
        *labels, _, name = self.full.split(".")
        return ".".join([*labels, name])


class _Names:
    """Collect the hyperparameters of a transformation and assign their public names.

    The first optimizer (alias) that has a name keeps the bare name, else the first link; later ones add their owner.
    """

    def __init__(
        self,
        labels: Mapping[Any, str] | None,
        apart: bool = True,
    ):
        self._labels = labels
        self._apart = apart
        self._found: list[_Hyperparameter] = []
        self._owners: dict[str, int] = {}

    def visit(self, node: GradientTransformation, place: Place, prefix: str) -> None:
        branches = node._branches()
        if branches is not None and branches.own and not self._apart:
            branches = None
        if branches is None:
            self._add(node, place, prefix)
            for i, child in enumerate(node._children()):
                self.visit(child, (*place, i), prefix)
        else:
            self._visit_branches(node, branches, place, prefix)

    def _visit_branches(
        self,
        node: GradientTransformation,
        branches: Branches,
        place: Place,
        prefix: str,
    ) -> None:
        """Visit the branch that a leaf's label selects, or all branches, with their labels in the names."""
        label = None if self._labels is None else self._labels.get(branches.selector)
        if label is None or label in branches.own:
            self._add(node, place, prefix)
        for i, child in enumerate(node._children()):
            branch = branches.children[i]
            if self._labels is None:
                child_prefix = prefix if branches.own else f"{prefix}{branch}."
                self.visit(child, (*place, i), child_prefix)
            elif branch == label:
                self.visit(child, (*place, i), prefix)

    def _add(self, node: GradientTransformation, place: Place, prefix: str) -> None:
        """Add a node's own hyperparameters."""
        entries = list(node._own_entries())
        if not entries:
            return
        owner = self._owner(node)
        for name, value, argument in entries:
            names = (name, f"{prefix}{name}", f"{prefix}{owner}.{name}")
            self._found.append(
                _Hyperparameter(
                    names, value, argument, (place, name), node._is_optimizer
                )
            )

    def _owner(self, node: GradientTransformation) -> str:
        """Return the unique owner name of a node; the second node with a name is `name_1`."""
        occurrence = self._owners.get(node._name, 0)
        self._owners[node._name] = occurrence + 1
        return node._name if occurrence == 0 else f"{node._name}_{occurrence}"

    def entries(self) -> list[Entry]:
        """Return all hyperparameters in chain order."""
        public: dict[int, str] = {}
        taken: set[str] = set()
        for hyperparameter in sorted(self._found, key=_rank):
            name = _first_free(hyperparameter.names, taken)
            taken.add(name)
            public[id(hyperparameter)] = name
        entries: list[Entry] = []
        for item in self._found:
            entries.append(
                Entry(
                    public[id(item)],
                    item.names[-1],
                    item.value,
                    item.argument,
                    item.place,
                )
            )
        return entries


class _Hyperparameter(NamedTuple):
    """A hyperparameter without a public name yet, with its candidate names, shortest first."""

    names: tuple[str, ...]
    value: Any
    argument: Argument
    place: tuple[Place, str]
    of_optimizer: bool


def _rank(hyperparameter: _Hyperparameter) -> bool:
    return not hyperparameter.of_optimizer


def _first_free(names: tuple[str, ...], taken: set[str]) -> str:
    for name in names:
        if name not in taken:
            return name
    return names[-1]


class Hyperparams(dict[str, Any]):
    """The result of `hyperparams`: a dict whose KeyError suggests the right name. Copies are plain dicts."""

    def __init__(self, tx: GradientTransformation):
        super().__init__({entry.name: entry.value for entry in tx._entries()})
        self._tx = tx

    def __missing__(self, name: str) -> Any:
        places = self._tx._places()
        shown = (
            f"its name is {places[name].name!r}"
            if name in places
            else nearest_dotted(name, places)
        )
        raise KeyError(f"{self._tx._name}: no hyperparameter {name!r}; {shown}")

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError(
            f"{self._tx._name}: hyperparams is a copy; replace({name}=...) returns a transformation with another value"
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
        if checked:
            links = self._links()
            _check_owners(links)
            _check_last(links)

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, (self._txs,)

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self._txs))})"

    def _children(self) -> tuple[GradientTransformation, ...]:
        return self._txs

    def _expand(self, scope: Scope) -> list[Any]:
        operations: list[Any] = []
        scope = scope.of(self)
        for i, tx in enumerate(self._txs):
            operations.extend(tx._expand(scope.child(i, changed=bool(operations))))
        return operations

    def _links(self) -> list[GradientTransformation]:
        return [link for tx in self._txs for link in tx._links()]

    def _skeleton(self) -> Any:
        skeletons = tuple(tx._skeleton() for tx in self._txs)
        return None if None in skeletons else ("chain", skeletons)

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

    Raises:
        TypeError: If an argument is not a GradientTransformation (such as a factory that was not called).
        ValueError: If a learning rate, a decay or a second owner follows a link that owns the learning rate.

    Example:
        >>> gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=1e-4))
        chain(clip_by_global_norm(1.0), adamw(lr=0.0001))
    """
    for i, tx in enumerate(txs):
        check_transformation(
            "chain", f"argument {i + 1}", tx, "unpack it: chain(*links)"
        )
    flat = tuple(
        link for tx in txs for link in (tx._txs if isinstance(tx, Chain) else (tx,))
    )
    return flat[0] if len(flat) == 1 else Chain(flat)


def check_transformation(owner: str, what: str, tx: Any, of_list: str = "") -> None:
    """Check that an argument is a transformation.

    Args:
        owner: The name of the calling function, for the error.
        what: The name of the argument.
        tx: Its value.
        of_list: The remedy to suggest for a list of transformations.

    Raises:
        TypeError: If `tx` is not a transformation.
    """
    if isinstance(tx, GradientTransformation):
        return
    remedy = _remedy(tx, of_list)
    end = f"; {remedy}" if remedy else ""
    raise TypeError(
        f"{owner}: {what} must be a GradientTransformation, got {_given(tx)}{end}"
    )


def _torch_optimizer(value: Any) -> type | None:
    """Return the class of a torch optimizer, given an instance or the class itself; else None."""
    cls = value if isinstance(value, type) else type(value)
    return cls if issubclass(cls, Optimizer) else None


def _given(value: Any) -> str:
    """Describe a value that is not a transformation; an optimizer by its class, since its repr has many lines."""
    cls = _torch_optimizer(value)
    return shortly(value) if cls is None else f"the torch optimizer {cls.__name__}"


def _remedy(value: Any, of_list: str) -> str:
    """Return a suggestion for what to pass instead of a value that is not a transformation."""
    if _torch_optimizer(value) is not None:
        return "pass the corresponding function, such as gradtx.adamw(...)"
    if isinstance(value, Schedule):
        return f"pass it as a learning rate: scale_by_learning_rate({describe(value)})"
    if isinstance(value, tuple | list):
        return (
            of_list
            if value and all(isinstance(item, GradientTransformation) for item in value)
            else ""
        )
    is_factory = (
        callable(value)
        and hasattr(value, "__name__")
        and not isinstance(value, Module | type)
    )
    return (
        f"call it: {describe(value)}(...)"
        if is_factory and value.__name__ != "<lambda>"
        else ""
    )


def _check_owners(links: Iterable[GradientTransformation]) -> None:
    owner = None
    for link in links:
        if owner is not None and link._lr_role in ("owner", "before owner"):
            raise ValueError(
                f"chain: {owner._name} owns the learning rate and returns the final update, so "
                f"{link._name} cannot follow it; pass lr and decay to {owner._name}, or remove one of the two links"
            )
        if link._lr_role == "owner":
            owner = link._owner()


def _check_last(links: Iterable[GradientTransformation]) -> None:
    last = None
    for link in links:
        if last is not None and link._name != "record":
            raise ValueError(
                f"chain: {last._name} returns the update to the rounded weight, so it must be last, but "
                f"{link._name} follows it; only record may follow"
            )
        if link._rounds:
            last = link


def apply_updates(params: Any, updates: Any) -> Any:
    """Return `params + updates`, rounded once to the dtypes of `params`; a None update keeps the parameter.

    Example:
        >>> gradtx.apply_updates(
        ...     {"w": torch.ones(2), "b": torch.ones(1)},
        ...     {"w": torch.tensor([1.0, 2.0]), "b": None},
        ... )
        {'w': tensor([2., 3.]), 'b': tensor([1.])}
    """
    return _pure.apply_updates(params, updates)
