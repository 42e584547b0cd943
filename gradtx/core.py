"""The one type, `GradientTransformation`, and the decorators that make it from a rule for one tensor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, ParamSpec, Protocol, overload

import torch

from gradtx import _functional
from gradtx._arguments import Argument, Arguments, Range, describe, nearest, resolve, varies
from gradtx._program import NEGATE, Scope
from gradtx._stages import Parts, RuleStage, TreeStage


class GradientTransformation:
    """A pair of pure functions over trees of tensors; the value that everything in gradtx is, or makes.

    Immutable, picklable, deep-copyable. `init, update = tx` unpacks it. Factories and combinators make most of
    them; any two functions on trees do as well:

    Args:
        init: `init(params) -> state`, any tree of tensors.
        update: `update(updates, state, params) -> (updates, state)`. Leaves without a gradient, and those that
            another combinator took out, are None in its trees.

    Raises:
        TypeError: `init` or `update` is not callable.

    Example:
        >>> halve = GradientTransformation(lambda params: {}, lambda u, s, p: ({k: v / 2 for k, v in u.items()}, s))
        >>> tx = gradtx.chain(halve, gradtx.scale(-1.0))
        >>> updates, state = tx.update({"w": torch.tensor([2.0, 4.0])}, tx.init({"w": torch.zeros(2)}))
        >>> updates["w"]
        tensor([-1., -2.])
    """

    _name = "transformation"

    def __init__(self, init: Callable[..., Any], update: Callable[..., Any]):
        for what, function in (("init", init), ("update", update)):
            if not callable(function):
                raise TypeError(f"GradientTransformation: {what} must be a function, got {describe(function)}")
        self._set(_parts=Parts(init, update))

    def _set(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self._name}: a GradientTransformation can't be changed; use replace({name}=...)")

    def __reduce__(self) -> tuple:
        return GradientTransformation, (self._parts.init, self._parts.update)

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        yield self.init
        yield self.update

    def __repr__(self) -> str:
        return f"GradientTransformation({describe(self._parts.init)}, {describe(self._parts.update)})"

    # What users call.

    def init(self, params: Any) -> dict[str, Any]:
        """The state before the first update, for a tree of parameters: nested dicts of tensors by leaf name.

        Raises:
            TypeError: a leaf is not a floating-point tensor.
            ValueError: a selector matches no leaf, or a leaf has no label.
        """
        return _functional.init(self, params)

    def update(self, updates: Any, state: dict[str, Any], params: Any = None, **extras: Any) -> tuple[Any, dict]:
        """One step, as a pure function: `(updates, state)`, both new; nothing given is changed.

        Args:
            updates: A tree of gradients; a None leaf stays None and keeps its slots.
            state: What `init` or the last `update` returned.
            params: The parameters, needed if `"params" in tx.needs`.
            **extras: `value` (the loss, 0-d), `grad_fn` (params -> gradients), `hessian_diag` (a tree), and
                whatever else a link declares; see `needs`.

        Raises:
            TypeError: an extra that no link knows, or a required one that is missing.
            ValueError: trees that don't fit together, or the state of another chain.
        """
        return _functional.update(self, updates, state, params, extras)

    def eval_params(self, state: dict[str, Any], params: Any) -> Any:
        """The weights to evaluate with: those of the last link that has an opinion (averages, lookahead's slow
        weights), leaf by leaf; `params` for the rest.
        """
        return _functional.eval_params(self, state, params)

    @property
    def hyperparams(self) -> dict[str, Any]:
        """Name -> value of every hyperparameter. The outermost decorated call owns a name; its first owner keeps
        it bare, a later one has it as `owner.name`.
        """
        return {entry.name: entry.value for entry in self._entries()}

    @property
    def needs(self) -> tuple[str, ...]:
        """What `update` requires beyond `updates` and `state`: `params` and names of extras, sorted."""
        return tuple(sorted({need for link in self._links() for need in link._needs}))

    def replace(self, **hyperparams: Any) -> GradientTransformation:
        """The same transformation with other hyperparameters; names as in `hyperparams`.

        Raises:
            TypeError: an unknown name.

        Example:
            >>> gradtx.adamw(lr=1e-3).replace(lr=1e-4)
            adamw(lr=0.0001)
        """
        places = self._places()
        for name in hyperparams:
            if name not in places:
                raise TypeError(f"{self._name}: no hyperparameter {name!r}; {nearest(name, places)}")
        return self._replaced({places[name].place: value for name, value in hyperparams.items()}, True)

    # How combinators and engines see it. A place is (indices of children down to a node, argument).

    _needs: tuple[str, ...] = ()
    _extras: Mapping[str, str] = {}
    _lr_role: str | None = None  # "owner", or "before owner" for what has no place after one

    def _children(self) -> tuple[GradientTransformation, ...]:
        return ()

    def _own_entries(self) -> Iterable[tuple[str, Any, Argument]]:
        return ()

    def _expand(self, scope: Scope) -> list[Any]:
        """The operations that a leaf goes through, for this run."""
        return [TreeStage(scope.claim(self._name), scope.run, self._name, self._parts, plain=True)]

    def _links(self) -> list[GradientTransformation]:
        """The links that this comes down to, aliases opened, wrappers as one."""
        return [self]

    def _entries(self, labels: Mapping[int, str] | None = None) -> list[Entry]:
        """Every hyperparameter with its public name; with `labels` (id of a partition's selector -> label), as the
        leaves of these labels see it: their branches' names are their own."""
        entries: list[Entry] = []
        taken: set[str] = set()
        counts: dict[str, int] = {}

        def visit(node: GradientTransformation, at: tuple[int, ...], prefix: str) -> None:
            own = list(node._own_entries())
            if own:
                n = counts.get(node._name, 0)
                counts[node._name] = n + 1
                owner = node._name if n == 0 else f"{node._name}_{n}"
                for name, value, argument in own:
                    names = [name, f"{prefix}{name}", f"{prefix}{owner}.{name}"]
                    public = next(name for name in names if name not in taken)
                    taken.add(public)
                    entries.append(Entry(public, names[-1], value, argument, (at, name)))
            branches = node._branches()
            for i, child in enumerate(node._children()):
                if branches is None:
                    visit(child, (*at, i), prefix)
                elif labels is None:
                    visit(child, (*at, i), f"{prefix}{branches[i]}.")
                elif labels.get(id(node._body.selector)) == branches[i]:  # type: ignore[attr-defined]
                    visit(child, (*at, i), prefix)

        visit(self, (), "")
        return entries

    def _branches(self) -> tuple[str, ...] | None:
        """The label of each child where they are alternatives."""
        return None

    def _places(self) -> dict[str, Entry]:
        entries = self._entries()
        return {entry.full: entry for entry in entries} | {entry.name: entry for entry in entries}

    def _replaced(self, values: Mapping[tuple, Any], checked: bool) -> GradientTransformation:
        """With other values at some places; `checked` as for a user's, else taken as they are (the adapter's)."""
        children = list(self._children())
        for i, child in enumerate(children):
            below = {(at[1:], name): value for (at, name), value in values.items() if at and at[0] == i}
            if below:
                children[i] = child._replaced(below, checked)
        here = {name: value for (at, name), value in values.items() if not at}
        return self._rebuilt(tuple(children), here, checked)

    def _rebuilt(self, children: tuple, arguments: dict[str, Any], checked: bool) -> GradientTransformation:
        return self


class Entry(NamedTuple):
    """A hyperparameter of a transformation: public name, name with its owner, value, what it accepts, place."""

    name: str
    full: str
    value: Any
    argument: Argument
    place: tuple[tuple[int, ...], str]


def same(node: GradientTransformation, children: tuple) -> bool:
    return all(a is b for a, b in zip(node._children(), children, strict=True))


class Chain(GradientTransformation):
    """Transformations one after another; made by `chain`."""

    _name = "chain"

    def __init__(self, txs: tuple[GradientTransformation, ...], checked: bool = True):
        self._set(_txs=txs)
        if checked:
            _check_owners(self._links())

    def __reduce__(self) -> tuple:
        return Chain, (self._txs,)

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self._txs))})"

    def _children(self) -> tuple[GradientTransformation, ...]:
        return self._txs

    def _expand(self, scope: Scope) -> list[Any]:
        operations: list[Any] = []
        here = scope.place
        for i, tx in enumerate(self._txs):
            scope.place = None if here is None else (*here, i)
            operations.extend(tx._expand(scope))
        scope.place = here
        return operations

    def _links(self) -> list[GradientTransformation]:
        return [link for tx in self._txs for link in tx._links()]

    def _rebuilt(self, children: tuple, arguments: dict[str, Any], checked: bool) -> GradientTransformation:
        return self if same(self, children) else Chain(children, checked)


def chain(*txs: GradientTransformation) -> GradientTransformation:
    """Run transformations one after another, each on the updates of the one before.

    Associative and flat: `chain(a, chain(b, c))` and `chain(a, b, c)` are the same and have the same state.
    `chain(a)` is `a`, `chain()` passes updates through.

    Raises:
        TypeError: an argument is no GradientTransformation (such as a factory that was not called).
        ValueError: a learning rate, a decay or a second owner follows a link that owns the learning rate.

    Example:
        >>> gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=1e-4))
        chain(clip_by_global_norm(1.0), adamw(lr=0.0001))
    """
    for i, tx in enumerate(txs):
        check_transformation("chain", f"argument {i + 1}", tx)
    flat = tuple(link for tx in txs for link in (tx._txs if isinstance(tx, Chain) else (tx,)))
    return flat[0] if len(flat) == 1 else Chain(flat)


def check_transformation(owner: str, what: str, tx: Any) -> None:
    if not isinstance(tx, GradientTransformation):
        remedy = f"; call it: {describe(tx)}(...)" if callable(tx) else ""
        raise TypeError(f"{owner}: {what} must be a GradientTransformation, got {describe(tx)}{remedy}")


def _check_owners(links: Iterable[GradientTransformation]) -> None:
    owner = None
    for link in links:
        if owner is not None and link._lr_role in ("owner", "before owner"):
            raise ValueError(
                f"chain: {owner._name} owns the learning rate and returns the finished update, "
                f"so {link._name} can't follow it; give {owner._name} its lr and decay, or leave one of them out"
            )
        if link._lr_role == "owner":
            owner = link


class Combinator:
    """What the body of a combinator returns: how its operations stand around those of inner transformations."""

    def expand(self, scope: Scope) -> list[Any]:
        raise NotImplementedError


class Spec:
    """A decorated factory: its signature and what it declares."""

    def __init__(self, kind: str, function: Callable[..., Any], **options: Any):
        self.kind, self.function, self.name = kind, function, function.__name__
        self.ranges: Mapping[str, Range] = {
            name: Range(text) if isinstance(text, str) else text for name, text in options.get("ranges", {}).items()
        }
        self.arguments = Arguments(self.name, function, self.ranges, options.get("static", ()), kind == "alias")
        self.extras: dict[str, str] = dict(options.get("extras", {}))
        required = (name for name, kind in self.extras.items() if not kind.endswith("?"))
        self.needs: tuple[str, ...] = (*options.get("needs", ()), *required)
        self.lr_role = options.get("lr_role")
        self.elementwise = options.get("elementwise", False)
        self.random: bool = options.get("random", False)
        self.agree: tuple[str, ...] = options.get("agree", ())
        self.example: dict[str, Any] = options.get("example", {})
        self._shared = options.get("shared", {})
        self.factory: Any = None
        if self.random and "seed" not in self.arguments.by_name:
            raise TypeError(f"{self.name}: a random rule takes `seed: int`")

    def shared_of(self, arguments: dict[str, Any]) -> Mapping[str, Any]:
        return self._shared(arguments) if callable(self._shared) else self._shared

    def body(self, arguments: dict[str, Any]) -> Any:
        """What the factory's function returns for these values, in the form that its kind asks for."""
        given = {name: value for name, value in arguments.items() if name not in self.arguments.added}
        made = self.function(**given)
        if isinstance(made, GradientTransformation | Combinator):
            return made
        if self.kind in ("alias", "combinator"):
            raise TypeError(f"{self.name}: must return a transformation, such as chain(...), got {describe(made)}")
        return Parts.of(made, self.name)


class Made(GradientTransformation):
    """The call of a decorated factory: bound arguments, and the body to run with each step's values."""

    def __init__(self, spec: Spec, arguments: dict[str, Any], state_dtype: Any = None, checked: bool = True):
        self._set(_name=spec.name, _spec=spec, _arguments=arguments, _state_dtype=state_dtype)
        self._set(_varies=any(varies(value) for value in arguments.values()), _first=None)
        if checked and state_dtype is not None and isinstance(self._body, Parts) and self._body.init is None:
            raise TypeError(f"{spec.name}: keeps no state with these options; leave out state_dtype")

    @property
    def _body(self) -> Any:
        """What the body returns for the values of the first step; they decide structure, whatever comes later."""
        if self._first is None:
            self._set(_first=self._spec.body({name: resolve(value, 0) for name, value in self._arguments.items()}))
        return self._first

    def __reduce__(self) -> tuple:
        return _remade, (self._spec.factory, self._arguments, self._state_dtype)

    def __repr__(self) -> str:
        shown = []
        for argument in self._spec.arguments.all:
            value = self._arguments[argument.name]
            if argument.required:
                shown.append(f"{argument.name}={describe(value)}" if argument.keyword_only else describe(value))
            elif varies(value) or value != argument.default:
                shown.append(f"{argument.name}={describe(value)}")
        if self._state_dtype is not None:
            shown.append(f"state_dtype={self._state_dtype}")
        return f"{self._name}({', '.join(shown)})"

    @property
    def _needs(self) -> tuple[str, ...]:
        return (*self._spec.needs, *(need for link in self._inner_links() for need in link._needs))

    @property
    def _extras(self) -> Mapping[str, str]:
        extras = dict(self._spec.extras)
        for link in self._inner_links():
            extras.update(link._extras)
        return extras

    @property
    def _lr_role(self) -> str | None:
        inner = any(link._lr_role == "owner" for link in self._inner_links())
        return "owner" if inner else self._spec.lr_role

    def _inner_links(self) -> list[GradientTransformation]:
        return [link for child in self._children() for link in child._links()]

    def _children(self) -> tuple[GradientTransformation, ...]:
        return tuple(child for value in self._arguments.values() for child in _transformations(value))

    def _branches(self) -> tuple[str, ...] | None:
        labels = [list(value) for value in self._arguments.values() if isinstance(value, Mapping)]
        return tuple(labels[0]) if labels and self._children() else None

    def _own_entries(self) -> Iterable[tuple[str, Any, Argument]]:
        for argument in self._spec.arguments.all:
            if argument.is_hyperparameter:
                yield argument.name, self._arguments[argument.name], argument

    def _links(self) -> list[GradientTransformation]:
        return self._body._links() if isinstance(self._body, GradientTransformation) else [self]

    def _expand(self, scope: Scope) -> list[Any]:
        spec, arguments, made = self._spec, self._arguments, None if self._varies else self._body
        if self._varies:
            arguments = {name: resolve(value, scope.count) for name, value in arguments.items()}
            made = spec.body(arguments)
        outer = scope.state_dtype
        scope.state_dtype = outer if self._state_dtype is None else self._state_dtype
        if isinstance(made, GradientTransformation):
            here, scope.place = scope.place, None
            operations = made._expand(scope)
            scope.place = here
            if arguments.get("maximize"):
                operations = [NEGATE, *operations]
        elif isinstance(made, Combinator):
            operations = made.expand(scope)
        elif spec.kind == "tree":
            operations = [TreeStage(scope.claim(spec.name), scope.run, spec.name, made, scope.state_dtype)]
        else:
            path = scope.claim(spec.name)
            operations = [RuleStage(path, scope.run, spec, made, arguments, scope.state_dtype)]
        scope.state_dtype = outer
        return operations

    def _rebuilt(self, children: tuple, arguments: dict[str, Any], checked: bool) -> GradientTransformation:
        if not arguments and same(self, children):
            return self
        new = iter(children)
        bound = {}
        for name, value in self._arguments.items():
            if isinstance(value, GradientTransformation):
                bound[name] = next(new)
            elif isinstance(value, Mapping) and _transformations(value):
                bound[name] = {label: next(new) for label in value}
            elif name in arguments and checked:
                bound[name] = self._spec.arguments.by_name[name].check(arguments[name])
            else:
                bound[name] = arguments.get(name, value)
        made = Made(self._spec, bound, self._state_dtype, checked)
        if checked:
            made._links()  # runs the body, which may have its own say on the values
        return made


def _transformations(value: Any) -> list[GradientTransformation]:
    values = value.values() if isinstance(value, Mapping) else [value]
    return [item for item in values if isinstance(item, GradientTransformation)]


def _remade(factory: Any, arguments: dict[str, Any], state_dtype: Any) -> Made:
    return Made(factory.spec, arguments, state_dtype)


P = ParamSpec("P")


class Factory(Protocol[P]):
    """A decorated factory. It takes its function's arguments, and `state_dtype`."""

    spec: Spec
    __name__: str

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> GradientTransformation: ...
    @overload
    def __call__(self, *args: Any, state_dtype: torch.dtype | None, **kwargs: Any) -> GradientTransformation: ...


class Alias(Protocol[P]):
    """A decorated alias. It takes its function's arguments, `state_dtype` and `maximize`."""

    spec: Spec
    __name__: str

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> GradientTransformation: ...
    @overload
    def __call__(self, *args: Any, state_dtype: torch.dtype | None, **kwargs: Any) -> GradientTransformation: ...
    @overload
    def __call__(self, *args: Any, maximize: bool, **kwargs: Any) -> GradientTransformation: ...


def _factory(kind: str, function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    spec = Spec(kind, function, **options)

    @functools.wraps(function)
    def factory(*args: Any, **kwargs: Any) -> GradientTransformation:
        state_dtype = kwargs.pop("state_dtype", None)
        if state_dtype is not None and not (isinstance(state_dtype, torch.dtype) and state_dtype.is_floating_point):
            raise TypeError(f"{spec.name}: state_dtype must be a floating-point torch.dtype, got {state_dtype!r}")
        made = Made(spec, spec.arguments.bind(args, kwargs), state_dtype)
        made._links()  # runs the body: its own checks belong to construction
        return made

    factory.spec, spec.factory = spec, factory  # type: ignore[attr-defined]
    factory.__signature__ = spec.arguments.signature  # type: ignore[attr-defined]
    return factory


@overload
def per_tensor(function: Callable[P, Any], /) -> Factory[P]: ...
@overload
def per_tensor(**options: Any) -> Callable[[Callable[P, Any]], Factory[P]]: ...
def per_tensor(function: Any = None, /, **options: Any) -> Any:
    """Make a transformation factory from a rule written for one tensor.

    The function picks options and returns `(init, update)`, or `update` alone for a rule without state, or
    `(init, update, evaluate)`; or another transformation, such as `chain()` to leave the link out:

    - `init(param) -> {slot: tensor}`; a list is kept as numbered slots.
    - `update(update, state, param, ctx) -> (update, state)`, pure; `ctx` is a `Context`. For sums over all leaves
      it yields `{name: 0-d}` and gets the totals under the same names, then yields `(update, state)` at the end.
    - `evaluate(state, param) -> tensor`: what `eval_params` gives in place of the parameter.

    Every argument is annotated: `Scalar` or `Betas` for numbers, which may then be 0-d tensors and schedules and
    never decide structure; `int`, `bool`, `str` and the rest are static. The factory also takes `state_dtype`.

    Args:
        elementwise: Whether every entry of the update depends on that entry of the inputs only (sums apart).
        needs: What `update` requires: "params", "value", "grad_fn", "hessian_diag".
        extras: Other extras, name -> "leaf", "leaf?" (optional), "scalar" or "scalar?".
        shared: 0-d values of the whole stage, name -> start (a number or a function of the arguments); or a
            function of the arguments that gives such a dict. Read and returned like slots, kept in float64.
        agree: Hyperparameters that must agree across the groups of an adapter.
        owns_lr: The update is finished, sign included; nothing after it may scale by a learning rate or decay.
        before_owner: The link has no place after one that owns the learning rate.
        random: Adds `ctx.rng` (and a second argument to `init`), with `normal(like)` and `rademacher(like)`.
        ranges: Intervals for arguments, name -> "[0, 1)", where the library's table does not fit.
        static: Arguments that are no hyperparameters.
        example: Arguments with which the conformance tests call the factory.

    Raises:
        TypeError: an argument without annotation, or an unknown option.

    Example:
        >>> @gradtx.per_tensor(elementwise=True)
        ... def scale_by_sign(factor: gradtx.Scalar = 1.0):
        ...     def update(update, state, param, ctx):
        ...         return factor * update.sign(), state
        ...     return update
        >>> updates, _ = scale_by_sign(2.0).update({"w": torch.tensor([3.0, -0.1])}, scale_by_sign().init({}))
        >>> updates["w"]
        tensor([ 2., -2.])
    """
    return _decorated("per_tensor", "rule", function, options)


@overload
def whole_tree(function: Callable[P, Any], /) -> Factory[P]: ...
@overload
def whole_tree(**options: Any) -> Callable[[Callable[P, Any]], Factory[P]]: ...
def whole_tree(function: Any = None, /, **options: Any) -> Any:
    """Make a transformation factory from functions of whole trees, for what one sum cannot express.

    As `per_tensor`, but `init(params)` and `update(updates, state, params, ctx)` get dicts by leaf name where the
    others get tensors; the state is a dict of slots (dicts by leaf name) and 0-d tensors. `ctx.grad_fn(params)`
    takes and returns such dicts. Takes the options `needs`, `extras`, `ranges`, `static`, `example`.
    """
    return _decorated("whole_tree", "tree", function, options)


@overload
def alias(function: Callable[P, Any], /) -> Alias[P]: ...
@overload
def alias(**options: Any) -> Callable[[Callable[P, Any]], Alias[P]]: ...
def alias(function: Any = None, /, **options: Any) -> Any:
    """Make an optimizer with a name from a function that returns a chain.

    The alias owns its arguments as hyperparameters, and its body is run again with each step's values, so what it
    derives from them stays right. It also takes `maximize` (negates the gradient before all else) and
    `state_dtype` (for every link inside). Takes the options `ranges`, `static`, `example` of `per_tensor`.

    Example:
        >>> @gradtx.alias
        ... def sign_sgd(lr: gradtx.Scalar = 1e-3, momentum: gradtx.Scalar = 0.9):
        ...     return gradtx.chain(gradtx.trace(momentum), gradtx.scale_by_learning_rate(lr))
        >>> sign_sgd(momentum=0.5)
        sign_sgd(momentum=0.5)
    """
    return _decorated("alias", "alias", function, options)


def combinator(**options: Any) -> Callable[[Callable[P, Any]], Factory[P]]:
    """Make a factory whose arguments hold transformations; its function returns a `Combinator`."""
    return _decorated("combinator", "combinator", None, options)


_OPTIONS = {
    "rule": "elementwise needs extras shared agree owns_lr before_owner random ranges static example",
    "tree": "needs extras ranges static example",
    "alias": "ranges static example",
    "combinator": "needs ranges static example",
}


def _decorated(name: str, kind: str, function: Any, options: dict[str, Any]) -> Any:
    for option in options:
        if option not in _OPTIONS[kind].split():
            raise TypeError(f"{name}: unknown option {option!r}; {nearest(option, _OPTIONS[kind].split())}")
    if options.pop("owns_lr", False):
        options["lr_role"] = "owner"
    if options.pop("before_owner", False):
        options["lr_role"] = "before owner"
    if function is not None:
        return _factory(kind, function, options)
    return lambda function: _factory(kind, function, options)


def apply_updates(params: Any, updates: Any) -> Any:
    """`params + updates`, leaf by leaf, in the dtypes of `params`; a None update keeps the parameter.

    Example:
        >>> gradtx.apply_updates({"w": torch.ones(2), "b": torch.ones(1)}, {"w": torch.tensor([1.0, 2.0]), "b": None})
        {'w': tensor([2., 3.]), 'b': tensor([1.])}
    """
    return _functional.apply_updates(params, updates)
