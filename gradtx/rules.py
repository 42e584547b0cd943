"""Decorators that create transformation factories from single-tensor rules, functions of trees, or chains."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import (
    Any,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypedDict,
    Unpack,
    cast,
    overload,
)

import torch
from torch import Tensor

from gradtx.arguments import (
    Argument,
    Arguments,
    OfCount,
    has_schedule,
    is_off,
    items_of,
    tensors_in,
    varies,
)
from gradtx.base.docstrings import with_arguments, with_errors
from gradtx.base.exact import Schedule, resolve
from gradtx.base.messages import describe, nearest
from gradtx.base.names import is_ours, publish
from gradtx.base.selectors import Selector, Where
from gradtx.distributed.layouts import is_process_group, unpicklable
from gradtx.execution.context import ALWAYS_KNOWN
from gradtx.execution.execute import (
    Branch,
    Route,
    around_alias,
)
from gradtx.execution.expansion import (
    Expansion,
    expanding,
    is_checked_already,
    present,
    running_body,
)
from gradtx.execution.leaf_rule import Rule, RuleOperation, StageState
from gradtx.execution.nesting import check_inner
from gradtx.execution.runs import Passed, Place, Scope
from gradtx.execution.traits import (
    DRAWS,
    ONLY_LISTS,
    READS_EXTRA,
    SUMS_ROWS,
    Traits,
    reason_for_all_rows,
)
from gradtx.execution.tree_rule import Functions, TreeOperation
from gradtx.state.storage import StateDtype, Storage
from gradtx.transform import (
    Branches,
    Chain,
    GradientTransformation,
    check_transformation,
    same,
    warn_of_order,
)

__all__ = ["alias", "combinator", "per_tensor", "whole_tree"]


class Combinator:
    """The value that the body of a combinator returns; it adds operations around those of inner transformations."""

    # Chooses between the inner transformations if they are alternatives.
    selector: Any = None

    def rejects(self) -> tuple[str, ...]:
        """Return the effects of links that do not work inside; see `gradtx.execution.nesting`."""
        return ("rounds",)  # because updates may change when they leave

    def effects(self) -> set[str]:
        """Return its own effects."""
        return set()

    def expand(self, scope: Scope, name: str) -> list[Any]:
        raise NotImplementedError


INPUTS = ("params", *ALWAYS_KNOWN)  # the names allowed in `needs`
EXTRA_KINDS = {
    *("leaf", "scalar", "tensors", "function", "outputs"),
    *("leaf?", "scalar?", "tensors?", "function?", "outputs?"),
    "examples",
}

Bound: TypeAlias = dict[str, Any]  # a call's arguments by name
# The number of dimensions of a leaf, or the minimum and maximum.
Dims: TypeAlias = int | tuple[int, float] | None

# Have the shapes of real leaves.
REAL_EXTRAS = frozenset(("hessian_diag", "grad_fn", "value_fn"))


# What a link does to the sign of an update; "first" is what its first transformation does, "neutral" links are often
# alone, where the update is what they observe.
Sign: TypeAlias = Literal["keeps", "flips", "either", "neutral", "first"]
# What a link does to the length of an update: "sets" makes it independent of what comes in, "bounds" compares it with a
# number.
Length: TypeAlias = Literal["keeps", "sets", "bounds"]


class InputOptions(TypedDict, total=False):
    """The options of all decorators but `alias`."""

    needs: str | tuple[str, ...] | Callable[[Bound], Iterable[str]]
    extras: Mapping[str, str] | Callable[[Bound], Mapping[str, str]]
    sign: Sign


class TreeOptions(InputOptions, total=False):
    """The options of `whole_tree`, documented there and at `per_tensor`."""

    capturable: bool | str | Callable[[Bound], bool | str] | None
    rate: Literal["before", "after"] | None
    amplifies: bool | Callable[[Bound], bool]
    length: Length
    makes_gradient: bool
    owns_lr: bool
    closure: str | Callable[[Bound], str]


class CombinatorOptions(InputOptions, total=False):
    """The options of `combinator`, documented there."""

    owns_lr: bool
    rounds: bool
    amplifies: bool | Callable[[Bound], bool]


class Options(TreeOptions, total=False):
    """The options of `per_tensor`, documented there; functions receive a call's arguments."""

    elementwise: bool | Callable[[Bound], bool]
    by_rows: bool | str | Callable[[Bound], bool | str | None] | None
    moving_slot: str | None
    shared: Mapping[str, Any] | Callable[[Bound], Mapping[str, Any]]
    dims: Dims | Callable[[Bound], Dims]
    random: bool | Callable[[Bound], bool]
    owns_lr: bool
    agree: str | tuple[str, ...]
    takes_complex: bool | Callable[[Bound], bool] | None
    compiles: bool | str | Callable[[Bound], bool | str] | None
    because: str | Callable[[Bound], str]
    whole: bool | str | Callable[[Bound], bool | tuple[str, ...]]
    check: Callable[[Bound, str, torch.Size, Mapping[str, Any]], None] | None
    ahead: str | tuple[str, ...]
    summed: Mapping[str, Callable[[Tensor], Tensor]]
    wire: Callable[[Bound], torch.dtype | None] | None


class AliasOptions(TypedDict, total=False):
    """The options of `alias`, documented there."""

    class_name: str


OPTIONS: dict[str, Any] = {
    "rule": Options,
    "tree": TreeOptions,
    "alias": AliasOptions,
    "combinator": CombinatorOptions,
}
# The defaults of all options. A value may be a function of a call's arguments.
_DEFAULTS: dict[str, Any] = {
    "elementwise": False,
    "by_rows": None,
    "moving_slot": None,
    "takes_complex": None,
    "needs": (),
    "extras": {},
    "check": None,
    "shared": {},
    "summed": {},
    "agree": (),
    "ahead": (),
    "owns_lr": False,
    "rate": None,
    "sign": "keeps",
    "length": "keeps",
    "dims": None,
    "compiles": None,
    "because": "",
    "capturable": None,
    "random": False,
    "whole": False,
    "wire": None,
    "makes_gradient": False,
    "closure": "",
    "amplifies": False,
    "rounds": False,
    "class_name": "",
}


class Spec:
    """A decorated factory: its signature and declared options.

    Attributes:
        kind: "rule", "tree", "alias" or "combinator".
        function: The decorated function.
        factory: The factory that the decorator created from it.
        is_ours: Whether it is one of this library.
        name: The name of both.
        class_name: The name of an alias's class in `gradtx.optim`.
        arguments: The signature of the factory.
        inner: The arguments that are transformations.
        lr_role: "owner", "before owner" or None, as in `GradientTransformation`.
        rounds, follows_rate, sign, length: As in the options and in `GradientTransformation`.
        extras: The kind of each extra.
    """

    factory: Any
    is_documented = False  # see `complete_docstring`

    def __init__(
        self, kind: str, function: Callable[..., Any], options: Mapping[str, Any]
    ):
        self.kind = kind
        self.function = function
        self.name = function.__name__
        self.is_ours = is_ours(function)
        self._options: dict[str, Any] = {**_DEFAULTS, **options}
        for option in ("needs", "agree", "ahead"):
            if isinstance(self._options[option], str):
                self._options[option] = (self._options[option],)
        self.class_name = self._options["class_name"]
        if not self.class_name:
            words = self.name.split("_")
            self.class_name = "".join(map(str.capitalize, words))
        self.arguments = Arguments(self.name, function, kind)
        self.inner = [
            argument.name
            for argument in self.arguments.all
            if argument.types == {GradientTransformation}
        ]
        rate = self._options["rate"]
        self.lr_role = "before owner" if rate == "before" else None
        if self._options["owns_lr"]:
            self.lr_role = "owner"
        self.follows_rate = rate == "after"
        self.rounds = self._options["rounds"]
        self.sign: Sign = self._options["sign"]
        self.length: Length = self._options["length"]
        extras = self._options["extras"]
        if callable(extras):
            extras = {}
        if not isinstance(extras, Mapping) or not set(extras.values()) <= EXTRA_KINDS:
            raise TypeError(
                f"{self.name}: extras must be a dict of name -> 'leaf', 'scalar' or 'tensors', with '?' appended if "
                f"optional, or 'examples', got {describe(extras)}; a rule for whole trees also takes 'function' and "
                "'outputs'"
            )
        self.extras: dict[str, str] = dict(extras)
        self._check_options()

    def _check_options(self) -> None:
        """Check the options that name inputs or arguments.

        Raises:
            TypeError: If an option names an unknown input or argument.
        """
        needs = self._options["needs"]
        for need in () if callable(needs) else needs:
            if need not in INPUTS and need not in self.extras:
                raise TypeError(
                    f"{self.name}: unknown entry {need!r} in needs; valid: {', '.join(INPUTS)}; "
                    f"declare others by extras={{{need!r}: 'leaf'}}"
                )
        for argument in (*self._options["agree"], *self._options["ahead"]):
            if argument not in self.arguments.by_name:
                raise TypeError(
                    f"{self.name}: an option names the unknown argument {argument!r}; "
                    f"{nearest(argument, self.arguments.by_name)}"
                )
        if self._options["random"] and "seed" not in self.arguments.by_name:
            raise TypeError(
                f"{self.name}: a random rule needs the argument `seed: int`"
            )

    def causes_of_types(self) -> list[str]:
        """Return what makes a call raise a TypeError, as clauses for a docstring."""
        return [
            f"`{argument.name}` is not a transformation"
            for argument in self.arguments.all
            if GradientTransformation in argument.types
        ]

    def causes(self) -> list[str]:
        """Return what makes a call or an update raise a ValueError, as clauses for a docstring."""
        clauses: list[str] = []
        own = [
            argument
            for argument in self.arguments.all
            if argument.name not in self.arguments.added
        ]
        if any(argument.has_range for argument in own):
            clauses.append("an argument is outside its range")
        if any(argument.choices for argument in own):
            clauses.append("an option is unknown")
        clauses += self._causes_of_needs()
        if self.lr_role == "owner":
            clauses.append("a later link scales by a learning rate or decays")
        elif self.lr_role == "before owner":
            clauses.append("the link follows one that owns the learning rate")
        return clauses

    def _causes_of_needs(self) -> list[str]:
        """Return which inputs of `update` may be missing: with default options, and where weights decay."""
        try:
            sample = self.arguments.sample()
            needs = self.factory(**sample).needs
            with_decay = needs
            if "weight_decay" in self.arguments.by_name:
                with_decay = self.factory(**{**sample, "weight_decay": 0.5}).needs
        except (TypeError, ValueError):  # it has arguments that cannot be guessed
            return []
        clauses: list[str] = []
        if needs:
            names = " or ".join(f"`{need}`" for need in sorted(needs, reverse=True))
            clauses.append(f"{names} is missing")
        for need in with_decay:
            if need not in needs:
                clauses.append(f"`{need}` is missing although weights decay")
        return clauses

    def option(self, name: str, arguments: Bound) -> Any:
        """Return an option for these arguments, which it may depend on."""
        value = self._options[name]
        # A dict is asked first, because dynamo does not trace `callable` for it.
        if isinstance(value, Mapping) or not callable(value):
            return value
        return value(arguments)

    def extras_of(self, arguments: Bound) -> dict[str, str]:
        """Return the kind of each extra with these arguments."""
        return {**self.option("extras", arguments)}

    def needs_of(self, arguments: Bound) -> tuple[str, ...]:
        """Return the requirements of `update` with these arguments."""
        return (
            *self.option("needs", arguments),
            *_required(self.extras_of(arguments)),
        )

    def rule(self, functions: Functions, arguments: Bound) -> Rule:
        """Return the rule for these argument values."""
        option = functools.partial(self.option, arguments=arguments)
        shared = {}
        for name, value in option("shared").items():
            shared[name] = _with_arguments(value, arguments)
        sums = option("summed").items()
        summed = {name: function for name, function in sums if name in shared}
        dims = option("dims")
        return Rule(
            self.name,
            functions.update,
            self._traits(functions, arguments, sums_late=bool(summed)),
            functions.init,
            functions.evaluate,
            shared,
            dims=(dims, dims) if isinstance(dims, int) else dims,
            seed=arguments["seed"] if option("random") else None,
            slots=functions.slots,
            summed=summed,
            check=_with_arguments(self._options["check"], arguments),
            factory=self,
            arguments=arguments,
        )

    def _traits(
        self, functions: Functions, arguments: Bound, sums_late: bool
    ) -> Traits:
        """Return the traits of the rule, which follow from its options."""
        option = functools.partial(self.option, arguments=arguments)
        compiles = option("compiles")
        capturable = option("capturable")
        if capturable is None:
            capturable = compiles is not False
        whole, owner_reads = self._whole(arguments)
        reads_hessian = "hessian_diag" in self.needs_of(arguments)
        return Traits(
            elementwise=option("elementwise"),
            takes_complex=self._takes_complex(arguments),
            refusal=self._refusal(arguments, compiles, capturable),
            skippable=compiles == "lists",
            capturable=capturable is not False,
            waits_at_first=capturable == "after first",
            compares_rates=any(slot.relative for slot in functions.slots.values()),
            agree={name: arguments[name] for name in self._options["agree"]},
            keeps_slots=functions.init is not None,
            random=option("random"),
            checks_extras=self._options["check"] is not None,
            waits=whole != "sums" and inspect.isgeneratorfunction(functions.update),
            sums_late=sums_late,
            of_leaf=whole == "sums",
            hessian_period=arguments.get("update_period", 1) if reads_hessian else 0,
            at_owner=whole is True,
            begins_at_owner=whole is True,
            needs_shape=whole == "shape",
            owner_reads=owner_reads,
            wire=option("wire"),
            makes_gradient=option("makes_gradient"),
            needs_all_rows=self._needs_all_rows(functions, arguments),
            moving_slot=self._options["moving_slot"],
        )

    def _needs_all_rows(self, functions: Functions, arguments: Bound) -> str:
        """Return why the rule cannot update some rows of a leaf without the others; empty if it can."""
        by_rows = self.option("by_rows", arguments)
        if by_rows is None:
            by_rows = self.option("elementwise", arguments)
            sums = inspect.isgeneratorfunction(functions.update)
            if by_rows and (sums or self.option("shared", arguments)):
                by_rows = SUMS_ROWS
        return reason_for_all_rows(by_rows) or READS_EXTRA * self._reads_leaves(
            arguments
        )

    def _reads_leaves(self, arguments: Bound) -> bool:
        """Whether the rule reads tensors of leaves that the caller passes, besides gradients."""
        kinds = self.extras_of(arguments).values()
        are_scalars = all(kind.startswith("scalar") for kind in kinds)
        return not are_scalars or "hessian_diag" in self.needs_of(arguments)

    def _whole(self, arguments: Bound) -> tuple[bool | str, tuple[str, ...]]:
        """Return the option `whole` without the tensors that it names, and the tensors that an owner reads."""
        whole = self.option("whole", arguments)
        if isinstance(whole, tuple):
            return True, cast("tuple[str, ...]", whole)
        reads_param = whole is True and "params" in self.needs_of(arguments)
        return whole, ("param",) if reads_param else ()

    def _refusal(self, arguments: Bound, compiles: Any, capturable: Any) -> str:
        """Return why programs may not run the rule, in words; empty if they may."""
        random = self._options["random"]
        if compiles is None:
            compiles = not random
        calls = "grad_fn" in self.needs_of(arguments)
        if compiles is True:
            return "it calls grad_fn at other weights" if calls else ""
        because = self.option("because", arguments)
        if because:
            return because
        if compiles == "lists":
            return ONLY_LISTS
        if random:
            return DRAWS
        return "it is declared to run alone" if capturable else "it may read values"

    def remade(self, arguments: Mapping[str, Any]) -> Rule:
        """Return the rule for other argument values than those of a call."""
        bound = dict(arguments)
        functions = self.body(bound)
        assert isinstance(functions, Functions)
        return self.rule(functions, bound)

    def _takes_complex(self, arguments: Bound) -> bool:
        """Whether the rule can process real views of complex leaves."""
        # Extras that are not scalars are read by leaf.
        are_scalars = all(kind.startswith("scalar") for kind in self.extras.values())
        if not are_scalars or REAL_EXTRAS.intersection(self.needs_of(arguments)):
            return False
        takes_complex = self.option("takes_complex", arguments)
        if takes_complex is None:
            takes_complex = self.option("elementwise", arguments)
        return takes_complex

    def resolved(self, arguments: Bound, count: Any) -> Bound:
        """Return the argument values at `count` finished updates; those in `ahead` at the next count."""
        ahead = self._options["ahead"]
        return {
            name: resolve(value, count + 1 if name in ahead else count)
            for name, value in arguments.items()
        }

    def selector(self, mask: Any) -> Selector:
        """Return the selector of the leaves to which an alias's `weight_decay` applies."""
        return Selector.of(f"{self.name}: mask", mask, trees=True)

    def body(self, arguments: Bound) -> Body:
        """Call the factory's function with these values, and return the result in the form of its kind."""
        function_arguments = {
            name: value
            for name, value in arguments.items()
            if name not in self.arguments.added
        }
        with running_body(self.is_ours):
            returned = self.function(**function_arguments)
        if arguments.get("cautious_decay") and "cautious_decay" in self.arguments.added:
            returned = self._with_cautious_decay(returned, arguments)
        if isinstance(returned, GradientTransformation | Combinator):
            return returned
        if self.kind in ("alias", "combinator"):
            raise TypeError(
                f"{self.name}: must return a transformation, such as chain(...), got {describe(returned)}"
            )
        functions = Functions.of(returned, self.name)
        if self._options["whole"] in (False, "shape", "sums"):
            return functions
        fault = None
        if inspect.isgeneratorfunction(functions.update):
            fault = "yield sums"
        elif self._options["shared"]:
            fault = "share values"
        if fault is not None:
            raise TypeError(
                f"{self.name}: a rule with whole=True runs only on the owner of a leaf and cannot {fault}"
            )
        return functions

    def _with_cautious_decay(
        self, body: GradientTransformation, arguments: Bound
    ) -> GradientTransformation:
        """Return the chain of an alias with cautious decay.

        Raises:
            ValueError: If the alias decays, but no link of it is decoupled decay that can be cautious.
        """
        # Those of the caller stay as they are.
        kept: set[int] = set()
        for _, _, tx in _transformations(arguments):
            kept.update(map(id, (tx, *tx._children())))
        cautious = with_cautious_decay(body, arguments["cautious_decay"], kept)
        decay = arguments["weight_decay"]
        if cautious is body and not is_off(decay):
            remedy = ""
            for name in arguments:
                if name.startswith("decoupled") and arguments[name] is False:
                    remedy = f"; pass {name}=True"
            raise ValueError(
                f"{self.name}: cautious_decay needs decoupled weight decay in a link of its own; here it is coupled or "
                f"part of another rule{remedy}"
            )
        return cautious

    def processes_whole_leaves(self, arguments: Bound) -> bool:
        """Whether parts of a leaf are not enough, because extras or other leaves belong to it."""
        needs = self.needs_of(arguments)
        return (
            self.kind == "tree"
            or self._options["check"] is not None
            or "tensors" in self.extras.values()  # their names refer to the whole model
            or "grad_fn" in needs
            or "value_fn" in needs
        )


def _required(extras: Mapping[str, str]) -> list[str]:
    return [name for name, kind in extras.items() if not kind.endswith("?")]


Body: TypeAlias = GradientTransformation | Combinator | Functions


def _with_arguments(option: Any, arguments: Bound) -> Any:
    """Return an option; a function of the arguments and more as a function of the rest."""
    return functools.partial(option, arguments) if callable(option) else option


class FactoryCall(GradientTransformation):
    """A call of a decorated factory: its bound arguments, and the body to run with each step's values."""

    _spec: Spec
    _arguments: Bound
    _storage: Storage | None
    _varies: bool
    _is_scheduled: bool
    _first: Body | None
    # The expansion in which it was created, or in which its body runs for the first time.
    _expansion: Expansion | None
    # The argument, the key in it if it is a dict, and the transformation.
    _inner: tuple[tuple[str, Any, GradientTransformation], ...]

    def __init__(self, spec: Spec, arguments: Bound):
        storage = None
        if "state_dtype" in spec.arguments.added:
            state_dtype = arguments["state_dtype"]
            storage = None if state_dtype is None else Storage(spec.name, state_dtype)
        self._set(
            _name=spec.name,
            _spec=spec,
            _arguments=arguments,
            _storage=storage,
            _varies=any(map(varies, arguments.values())),
            _is_scheduled=any(map(has_schedule, arguments.values())),
            _first=None,
            _expansion=present(),
            _inner=tuple(_transformations(arguments)),
            _is_optimizer=spec.kind == "alias",
            _follows_rate=spec.follows_rate,
            _own_lr_role=spec.lr_role,
            _rounds=spec.rounds,
            _sign=spec.sign,
            _may_flip_sign=bool(spec.sign == "either" or arguments.get("maximize")),
            _length=spec.length,
            _is_fixed=arguments.get("fixed"),
        )

    @property
    def _body(self) -> Body:
        """The body's result for the values of the first step, which determine the structure of all steps."""
        if self._first is None:
            expansion = self._present_expansion()
            count = 0 if expansion is None else expansion.count
            arguments = self._spec.resolved(self._arguments, count)
            self._set(_first=self._spec.body(arguments))
        return cast("Body", self._first)

    def _present_expansion(self) -> Expansion | None:
        """Return the present expansion if it is the one in which the body runs for the first time."""
        expansion = present()
        # The structure is that of the first values of schedules.
        is_its_own = self._expansion is expansion and not self._is_scheduled
        return expansion if is_its_own else None

    @property
    def _needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._spec.needs_of(self._arguments)

    @property
    def _extras(self) -> Mapping[str, str]:  # type: ignore[override]
        return self._spec.extras_of(self._arguments)

    @property
    def _amplifies(self) -> bool:  # type: ignore[override]
        return self._spec.option("amplifies", self._arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        for name, value in self._arguments.items():
            if is_process_group(value):
                raise unpicklable(f"{self._name}: {name}")
        return _remade, (self._spec.factory, self._arguments)

    def __copy__(self) -> GradientTransformation:
        return self  # as it is immutable

    def __deepcopy__(self, memo: dict[int, Any]) -> GradientTransformation:
        for value in self._arguments.values():
            if is_process_group(value):
                memo[id(value)] = value  # the copy exchanges with the same ranks
        return _remade(self._spec.factory, copy.deepcopy(self._arguments, memo))

    def __repr__(self) -> str:
        shown = self._spec.arguments.shown(self._arguments)
        return f"{self._name}({', '.join(shown)})"

    @property
    def _maximizes(self) -> bool:  # type: ignore[override]
        if self._is_optimizer and self._arguments.get("maximize"):
            return True
        if isinstance(self._body, GradientTransformation):
            return self._body._maximizes
        children = self._children()
        return len(children) > 0 and all(child._maximizes for child in children)

    def _structure(self) -> Any:
        if not self._spec.is_ours:
            # A user's function may refer to any object, which a shared program would keep alive.
            return None
        # The group of an alias's other branch, such as Muon's fallback, does not show whether the alias maximizes.
        parts: list[Any] = [self._spec, self._maximizes]
        for argument in self._spec.arguments.all:
            value = self._arguments[argument.name]
            if argument.is_hyperparameter and not isinstance(value, OfCount):
                if not has_schedule(value):
                    continue
                value = _constants_of_schedules(argument.name, value)
                if value is None:  # as may a user's schedule
                    return None
            elif isinstance(value, GradientTransformation):
                value = value._structure()
                if value is None:
                    return None
            elif not is_constant(value):
                return None
            parts.append(value)
        return tuple(parts)

    def _children(self) -> tuple[GradientTransformation, ...]:
        return tuple(tx for _, _, tx in self._inner)

    @property
    def _effects(self) -> set[str]:
        body = self._body
        effects = set()
        if isinstance(body, Combinator):
            effects = body.effects()
        if isinstance(body, Functions) and body.evaluate is not None:
            effects.add("averages")
        if self._rounds:
            effects.add("rounds")
        if self._spec.processes_whole_leaves(self._arguments):
            effects.add("whole")
        if self._spec.option("makes_gradient", self._arguments):
            effects.add("makes gradient")
        return effects

    def _branches(self) -> Branches | None:
        body = self._body
        if isinstance(body, Combinator):
            selector = body.selector
            if selector is None or selector.branches is None:
                return None
            # Hyperparameters of branches carry their labels.
            return Branches(selector.key, selector.branches)
        if not isinstance(body, GradientTransformation):
            return None
        inner = body._branches()
        if inner is None or not self._children():
            return None
        label_of: dict[int, str] = {}
        for child, label in zip(body._children(), inner.children, strict=True):
            label_of[id(child)] = label
        labels = tuple(label_of.get(id(child), "") for child in self._children())
        other_labels = tuple(label for label in inner.children if label not in labels)
        return Branches(inner.selector, labels, other_labels)

    def _own_entries(self) -> Iterable[tuple[str, Any, Argument]]:
        for argument in self._spec.arguments.all:
            value = self._arguments[argument.name]
            if argument.is_hyperparameter and not isinstance(value, OfCount):
                yield argument.name, value, argument

    def _links(self) -> list[GradientTransformation]:
        return (
            self._body._links()
            if isinstance(self._body, GradientTransformation)
            else [self]
        )

    def _typed_links(self, typed: str = "") -> list[tuple[str, GradientTransformation]]:
        if isinstance(self._body, GradientTransformation):
            return self._body._typed_links(typed or self._name)
        return super()._typed_links(typed)

    def _expand(self, scope: Scope) -> list[Any]:
        with expanding(scope.count) as expansion:
            if self._first is None:
                self._set(_expansion=expansion)
            return super()._expand(scope)

    def _operations(self, scope: Scope) -> list[Any]:
        spec = self._spec
        arguments = self._arguments
        if self._varies:
            arguments = spec.resolved(arguments, scope.count)
            for value in arguments.values():
                scope.run.memory.register(tensors_in(value))
        runs_again = self._varies and self._present_expansion() is None
        body = spec.body(arguments) if runs_again else self._body
        scope = scope.of(self).stored_as(self._storage)
        if isinstance(body, Combinator):
            scope.own = {
                name: value
                for name, value in arguments.items()
                if name not in spec.inner
            }
            return body.expand(scope, spec.name)
        if isinstance(body, GradientTransformation):
            return self._expand_chain(body, arguments, scope)
        path = scope.claim(spec.name)
        scope = scope.amplifying(self._amplifies)
        if spec.kind == "tree":
            return [
                TreeOperation(
                    path,
                    scope,
                    spec.name,
                    body,
                    arguments,
                    bool(spec.option("capturable", arguments)),
                    spec.option("makes_gradient", arguments),
                    spec.option("closure", arguments),
                )
            ]
        rule = spec.rule(body, arguments)
        return [RuleOperation(rule, StageState(path, scope, rule))]

    def _expand_chain(
        self, body: GradientTransformation, arguments: Bound, scope: Scope
    ) -> list[Any]:
        """Return the operations of an alias, or of a link that stands for a chain."""
        if self._spec.kind != "alias":
            scope.skip(self._spec.name)
            return body._expand(scope.inner_chain(self._passed()))
        if arguments.get("mask") is None:
            return self._optimizer(body, arguments, scope)
        selector = self._spec.selector(arguments["mask"])
        # Expand the same stages twice: the leaves differ only in this argument, and sums include the leaves of both.
        again = scope.again()
        operations = self._optimizer(body, arguments, scope)
        rest = {**arguments, "weight_decay": 0.0}
        body_of_rest = cast("GradientTransformation", self._spec.body(rest))
        undecayed = self._optimizer(body_of_rest, rest, again)
        scope.run.selectors.append(selector)
        blocks = {True: Route(operations, []), False: Route(undecayed, [])}
        return [Branch(scope.claim(f"{self._name}_mask"), selector, blocks)]

    def _passed(self) -> Passed:
        """Return the transformations among the arguments, and the links of chains, which a longer chain takes over."""
        passed: list[tuple[GradientTransformation, Place]] = []
        for i, child in enumerate(self._children()):
            passed.append((child, (i,)))
            if isinstance(child, Chain):
                passed.extend(
                    (link, (i, k)) for k, link in enumerate(child._children())
                )
        return tuple(passed)

    def _optimizer(
        self, body: GradientTransformation, arguments: Bound, scope: Scope
    ) -> list[Any]:
        """Return the operations of an alias that treats all leaves alike."""
        operations = body._expand(scope.alias(self._passed()))
        return around_alias(operations) if scope.changed else operations

    def _rebuilt(
        self,
        children: tuple[GradientTransformation, ...],
        arguments: Bound,
        checked: bool,
    ) -> GradientTransformation:
        if not arguments and same(self, children):
            return self
        bound = dict(self._arguments)
        for (name, key, _), child in zip(self._inner, children, strict=True):
            bound[name] = child if key is None else {**bound[name], key: child}
        for name, value in arguments.items():
            argument = self._spec.arguments.by_name[name]
            bound[name] = argument.check(value) if checked else value
        rebuilt = FactoryCall(self._spec, bound)
        if checked:
            rebuilt._links()  # runs the body, which may check the values as well
        return rebuilt

    def _check(self) -> None:
        """Check the inner transformations, and run the body, so that its checks raise errors at construction.

        Raises:
            TypeError, ValueError: If the body raises one; in an alias, the alias's name is prepended to the message,
                since the user called the alias.
        """
        spec = self._spec
        if is_checked_already():
            return
        if spec.is_ours and present() is None and not torch.compiler.is_compiling():
            self._set(_constants=_constants_of_call(spec, self._arguments))
            if self._takes_over():
                return
        for name in spec.inner:
            check_transformation(spec.name, name, self._arguments[name])
        if spec.kind == "alias" and self._arguments.get("mask") is not None:
            # Raises an error for an invalid selector.
            spec.selector(self._arguments["mask"])
        try:
            # Raise the errors of options that are functions of the arguments.
            _ = self._needs, self._extras, self._amplifies
            self._links()
            if isinstance(self._body, Combinator):
                check_inner(spec.name, self._body.rejects(), self._children())
            self._check_sign()
        except (TypeError, ValueError) as error:
            if spec.kind != "alias" or str(error).startswith(f"{spec.name}:"):
                raise
            raise type(error)(f"{spec.name}: {error}") from error
        if isinstance(self._body, Chain) and not spec.is_ours:
            warn_of_order(spec.name, self._body._children())
        self._note_for_equals()

    def _check_sign(self) -> None:
        """Check that an alias that maximizes has no link that minimizes a loss of its own.

        Raises:
            ValueError: If it has one.
        """
        if not (self._is_optimizer and self._arguments.get("maximize")):
            return
        for link in self._every_link():
            is_tree = isinstance(link, FactoryCall) and link._spec.kind == "tree"
            if is_tree and "makes gradient" in link._effects:
                raise ValueError(
                    f"{self._name}: maximize=True has no meaning for a loss of residuals or outputs, whose minimum "
                    f"{link._name} looks for; minimize the negated loss"
                )


def with_cautious_decay(
    tx: GradientTransformation,
    cautious: bool | str,
    kept: set[int],
    is_first: bool = False,
) -> GradientTransformation:
    """Return a transformation whose decoupled decay is cautious; the same object if it has none.

    Transformations whose id is among those `kept` are not changed. Neither is decay in the first link of a chain,
    which is coupled.
    """
    if id(tx) in kept:
        return tx
    is_chain = isinstance(tx, Chain)
    children = tuple(
        with_cautious_decay(child, cautious, kept, is_chain and i == 0)
        for i, child in enumerate(tx._children())
    )
    arguments: Bound = {}
    if isinstance(tx, FactoryCall):
        option = "cautious_decay" if tx._is_optimizer else "cautious"
        decays = not is_off(tx._arguments.get("weight_decay", 0.0))
        can_be = option in tx._spec.arguments.by_name
        if decays and can_be and (tx._is_optimizer or not is_first):
            arguments[option] = cautious
    return tx._rebuilt(children, arguments, True)


def is_constant(value: Any) -> bool:
    """Whether a value is a plain constant, so that equal values imply equal programs."""
    if isinstance(value, tuple):
        return all(map(is_constant, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _constants_of_call(spec: Spec, arguments: Bound) -> Any:
    """Return what equal calls of a factory have in common; None if some argument may refer to any object."""
    texts: list[str] = []
    for value in arguments.values():
        # By their texts: 1, 1.0 and True differ, as do zeros of other signs.
        text = repr(value) if is_constant(value) else None
        if isinstance(value, Schedule):
            text = value.text()
        if text is None:
            return None
        texts.append(text)
    return spec, tuple(texts)


def _constants_of_schedules(name: str, value: Any) -> Any:
    """Return what equal schedules in an argument share, and where they are; None if they may refer to any object."""
    constants: list[Any] = [name]
    for i, item in enumerate(items_of(value)):
        if isinstance(item, Schedule):
            of_item = item.constants()
            if of_item is None:
                return None
            constants.append((i, of_item))
    return tuple(constants)


def _transformations(
    arguments: Bound,
) -> Iterator[tuple[str, Any, GradientTransformation]]:
    """Yield the transformations among the arguments and in their dicts: argument, key or None, transformation."""
    for name, value in arguments.items():
        entries = value.items() if isinstance(value, Mapping) else [(None, value)]
        for key, item in entries:
            if isinstance(item, GradientTransformation):
                yield name, key, item


def _remade(factory: Any, arguments: Bound) -> FactoryCall:
    """Rebuild a pickled call."""
    return FactoryCall(factory.spec, arguments)


P = ParamSpec("P")


class Factory(Protocol[P]):
    """A decorated factory. It accepts the arguments of its function and `state_dtype`.

    Of a keyword that neither overload has, type checkers say "No overloads", without its name. One signature cannot
    add a keyword to `P` (PEP 612 adds positional arguments only), and a third overload that refuses all keywords would
    name an unknown one, but would turn the message about a wrong type, which is clear now, into "No overloads".
    """

    spec: Spec
    __name__: str

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> GradientTransformation: ...
    @overload
    def __call__(
        self, *args: Any, state_dtype: StateDtype | None, **kwargs: Any
    ) -> GradientTransformation: ...


class Alias(Protocol[P]):
    """A decorated alias. It accepts the arguments of its function, and those of `ADDED`."""

    spec: Spec
    __name__: str

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> GradientTransformation: ...
    @overload
    def __call__(
        self, *args: Any, state_dtype: StateDtype | None, **kwargs: Any
    ) -> GradientTransformation: ...
    @overload
    def __call__(
        self, *args: Any, maximize: bool, **kwargs: Any
    ) -> GradientTransformation: ...
    @overload
    def __call__(
        self, *args: Any, mask: Where | None, **kwargs: Any
    ) -> GradientTransformation: ...
    @overload
    def __call__(
        self, *args: Any, cautious_decay: bool | str, **kwargs: Any
    ) -> GradientTransformation: ...


# What docstrings say of the arguments that decorators add.
ADDED = {
    "maximize": "Whether to maximize: all links see the gradient and the loss (`value`, `hessian_diag`, ...) negated.",
    "cautious_decay": "Whether to decay only where the step shrinks a weight, too: where direction and weight have the "
    'same sign; with "inclusive", also where either is 0 (Chen et al. 2025). Needs decoupled decay.',
    "mask": "The parameters to which `weight_decay` applies: a name pattern, a tuple of patterns, or a function "
    "`(name, parameter) -> bool`; a tree of bools, or a function of the tree of parameters that returns one; None for "
    "all. To select by name in an optimizer, pass it `named_parameters()`.",
    "state_dtype": "The dtype or code of the state, as for `with_state_dtype`; None for the dtype of each parameter.",
}


@overload
def per_tensor(function: Callable[P, Any], /) -> Factory[P]: ...
@overload
def per_tensor(
    **options: Unpack[Options],
) -> Callable[[Callable[P, Any]], Factory[P]]: ...
def per_tensor(function: Any = None, /, **options: Any) -> Any:
    """Create a transformation factory from a rule written for one tensor.

    The function evaluates options and returns `(init, update)`, or `update` alone for a rule without state, or
    `(init, update, evaluate)`; or another transformation, such as `chain()` to omit the link:

    - `init`: what the rule keeps for a leaf, a dict of slots such as `{"exp_avg": slots.ema(beta1)}`; see
      `gradtx.slots`. Each says how it starts and what it is, so that it can be stored in few bits, rotated and
      projected; a function of the parameter only says how. If what a rule keeps depends on the leaf, a function
      `init(param) -> {slot: tensor}` takes the place of the dict. A list is stored as numbered slots.
    - `update(update, state, param, ctx) -> (update, state)`, pure; `ctx` is a `Context`. To compute sums over all
      leaves, it yields `{name: 0-d}`, receives the totals under the same names, and finally yields `(update, state)`.
    - `evaluate(state, param) -> tensor`: the value that `eval_params` returns for the parameter.

    An annotation says which values of an argument are valid. `NonNegative`, `Positive`, `Fraction` ([0, 1]), `Decay`
    ([0, 1)), `Decays` and `Annotated[Scalar, "(0, 1)"]` mark hyperparameters, which may be 0-d tensors or schedules and
    must not affect structure; `Scalar` accepts any number, except that `lr`, `eps`, `momentum` and `weight_decay` are
    in [0, inf) and `betas` in [0, 1). These five need no annotation, nor does a bool with a default. `Count` (>= 1),
    `NonNegativeInt`, `bool`, `str` and `Literal["a", "b"]` are plain values; `Static[int]` is one that groups of an
    optimizer share. A tuple has as many entries as its default, unless it is annotated `AnyLength[Decays]`. The factory
    also accepts `state_dtype`.

    Args:
        elementwise: Whether each entry of the update depends only on the same entry of the inputs (apart from sums).
            A rule may also read the leaf's shape; leaves of other shapes may then have other programs.
        by_rows: Whether the rule may update some rows of a leaf, along its first dimension, without the others, as with
            a sparse gradient; defaults to `elementwise` for rules that neither yield nor share values. True is also
            correct for sums over a row, and for sums to which rows without an update add nothing. A text says why it
            may not, for errors; or a function of the arguments that returns any of these.
        moving_slot: The slot, such as a momentum, whose rows move rows without a gradient, unless they are 0: they take
            part in each step of a sparse gradient. None if only the rows of the gradient do.
        takes_complex: Whether the rule accepts complex leaves, whose real and imaginary parts it receives in a new last
            dimension; defaults to `elementwise`. True is also correct if entries interact only through norms of the
            leaf.
        needs: Requirements of `update`: "params", "value", "value_fn", "grad_fn", "hessian_diag", one or a tuple; or a
            function of the arguments that returns a tuple. With an argument `update_period`, the rule reads
            `hessian_diag` only at the first step of each period of that many steps.
        extras: Other extras, name -> "leaf", "scalar" or "tensors" (a dict of tensors with its own names); append a
            question mark for an optional extra. "examples" is a tensor per leaf with a leading axis, of equal size in
            all leaves.
        check: A function `(arguments, name, shape, extras)` that raises an error for extras that do not fit a leaf. It
            is called for all leaves before any computation, so that no leaf has been updated if it raises. Such a rule
            cannot be used inside `blocks`.
        shared: 0-d values of the whole stage, name -> initial value (a number or a function of the arguments); or a
            function of the arguments that returns such a dict. Read and returned like slots, stored in float64.
        summed: Shared values that are sums over leaves, name -> function of the sum, whose result is stored. `update`
            returns the leaf's term, and reads the value of the previous step. Unlike `yield`, leaves do not wait for
            each other.
        agree: Hyperparameters that must agree across the groups of an adapter.
        ahead: Hyperparameters whose schedules are evaluated for the next update instead of the current one.
        owns_lr: The update is final, including its sign; no later link may apply a learning rate or decay.
        rate: "before" for a link that must not follow a link that owns the learning rate; "after" for one that
            processes the final step: `chain` warns if a learning rate or decay follows it.
        sign: What the link does to the sign of an update: "keeps", "flips", "either" if that depends on its arguments,
            or "neutral" for one that is a chain of its own, as averages of weights are. `as_optimizer` warns about
            chains whose steps increase the loss.
        length: What the link does to the length of an update: "keeps" (larger updates give larger results), "sets" if
            the result does not depend on the length of what comes in, as with Adam and the sign, or "bounds" for a clip
            at a number. `chain` warns if a link that sets or bounds follows a learning rate.
        compiles: "lists" for a rule that only programs over lists may run, which skip work that is not due, even with
            the adapter's `compile=True`; False for one that always runs for each leaf alone; or a function of the
            arguments that returns this. Random rules default to False; with True or "lists", only `init` may draw,
            since noise depends on the leaf's name, which a program for many leaves does not know.
        because: Why, if `compiles` says that no program, or none of kernels, runs the rule: words that follow "it has
            no program:" in `optimizer.explain()`; or a function of the arguments that returns them. By default, what
            the other options tell.
        capturable: Whether a CUDA graph may replay the rule: it reads no value on the host, and calls no factorization
            for which the host waits (`torch.linalg.eigh`, `svd`, `inv`; `qr` and `cholesky_ex` are fine); "after first"
            if this holds for all updates of a leaf but the first; or a function of the arguments that returns this.
            Defaults to True, except for rules with `compiles=False`.
        dims: The number of dimensions of a leaf, or a pair of the minimum and maximum, or a function of the arguments
            that returns either; other leaves raise an error with their name.
        random: Whether to add `ctx.rng` (and a second argument to `init`), with `normal(like)`, `rademacher(like)` and
            `uniform(like)`; or a function of the arguments that returns this.
        whole: Whether `update` needs the full tensor of a sharded leaf. If so, one rank, its owner, gathers all shards,
            runs the rule once, keeps its slots, and sends the result back. The rule must not yield, share values or
            read `ctx.grad`. A function of the arguments returns a bool, or the inputs that the rule reads in addition
            to the update: ("param",) or (). "shape" for a rule that needs only the full shape; "sums" for one that
            yields `OfLeaf`, sums over the entries of its leaf.
        wire: A function of the arguments that returns the dtype in which collectives send the update, or None for its
            own dtype. The rule must convert its input to this dtype at once, and the dtype must represent the result
            exactly.
        makes_gradient: Whether the rule computes the gradient from extras, whatever the updates are. It must be the
            first link; later ones read its result as `ctx.grad`. Its sums may be vectors.
        amplifies: Whether small errors in what the rule reads can become as large as its result, as where it multiplies
            by a nearly singular root or makes all singular values equal. Beside 16-bit weights, its slots and those of
            the links before it then have float32, except squares, whose errors stay relative.

    Raises:
        TypeError: If an argument has no annotation, or if an option is unknown.

    Example:
        >>> @gradtx.per_tensor(elementwise=True)
        ... def scale_by_sign(factor: gradtx.Scalar = 1.0):
        ...     def update(update, state, param, ctx):
        ...         return factor * update.sign(), state
        ...     return update
        >>> updates, _ = scale_by_sign(2.0).update(
        ...     {"w": torch.tensor([3.0, -0.1])}, scale_by_sign().init({})
        ... )
        >>> updates["w"]
        tensor([ 2., -2.])
    """
    return _decorated("per_tensor", "rule", function, options)


@overload
def whole_tree(function: Callable[P, Any], /) -> Factory[P]: ...
@overload
def whole_tree(
    **options: Unpack[TreeOptions],
) -> Callable[[Callable[P, Any]], Factory[P]]: ...
def whole_tree(function: Any = None, /, **options: Any) -> Any:
    """Create a transformation factory from functions of whole trees, for methods that sums over leaves cannot express.

    Like `per_tensor`, but `init(params)` and `update(updates, state, params, ctx)` receive dicts keyed by leaf name
    instead of tensors. The state is a dict of slots (dicts keyed by leaf name) and 0-d tensors. `ctx.grad_fn(params)`
    accepts and returns such dicts. The options are `needs`, `extras`, `rate`, `sign`, `length`, `amplifies`, `owns_lr`
    and `capturable`, which defaults to False here, and two more:

    Args:
        makes_gradient: Whether the functions compute the gradient from extras, whatever the updates are. `update` then
            returns `(updates, state, gradients)`, of which later links read the gradients as `ctx.grad`.
        closure: The extra as which an optimizer passes the closure of `step(closure)`, which then calls no backward.

    Extras have two more kinds: "function" of the parameters, in an optimizer without arguments, and "outputs", a tensor
    of any shape. `ctx.linearized(extra, ...)` returns the Jacobian of what a function returns.
    """
    return _decorated("whole_tree", "tree", function, options)


@overload
def alias(function: Callable[P, Any], /) -> Alias[P]: ...
@overload
def alias(
    **options: Unpack[AliasOptions],
) -> Callable[[Callable[P, Any]], Alias[P]]: ...
def alias(function: Any = None, /, **options: Any) -> Any:
    """Create a named optimizer from a function that returns a chain.

    The alias owns its arguments as hyperparameters. Its body runs again with each step's values, so that values derived
    from them remain correct. The alias also accepts `maximize` (all links see the negated loss), `state_dtype` (for all
    inner links) and, if it has an argument `weight_decay`, `mask` and `cautious_decay`. Its only option is
    `class_name`, the name of its class in `gradtx.optim` if it differs from the function's name in CamelCase
    (`adam_atan2`: `AdamAtan2`). A last parameter `**options: Annotated[Any, link]` stands for all arguments of that
    link which the function does not name; arguments after a `*` follow them.

    Example:
        >>> @gradtx.alias
        ... def sign_sgd(lr: gradtx.Scalar = 1e-3, momentum: gradtx.Scalar = 0.9):
        ...     return gradtx.chain(gradtx.trace(momentum), gradtx.scale_by_learning_rate(lr))
        >>> sign_sgd(momentum=0.5)
        sign_sgd(momentum=0.5)
    """
    return _decorated("alias", "alias", function, options)


@overload
def combinator(function: Callable[P, Any], /) -> Factory[P]: ...
@overload
def combinator(
    **options: Unpack[CombinatorOptions],
) -> Callable[[Callable[P, Any]], Factory[P]]: ...
def combinator(function: Any = None, /, **options: Any) -> Any:
    """Create a combinator: a factory with transformations among its arguments, whose function returns a `Frame`.

    The frame specifies the operations before and after the inner transformation, and which clock counts.
    Hyperparameters are annotated and resolved as in `per_tensor`; the function runs again with each step's values.

    Args:
        needs: The requirements of `update`: "params", "value", "value_fn", "grad_fn", "hessian_diag".
        extras: Other extras, as in `per_tensor`.
        owns_lr: The update is final, including its sign; no later link may apply a learning rate or decay.
        sign: As in `per_tensor`, or "first" for what the first inner transformation does.
        rounds: The updates yield weights that are already rounded; only `record` may follow.
        amplifies: As in `per_tensor`, of the combinator with its inner transformation.

    Raises:
        TypeError: If an option is unknown, or if an argument has no annotation.

    Example:
        >>> @gradtx.combinator
        ... def amplified(tx: gradtx.GradientTransformation, factor: gradtx.Scalar = 2.0):
        ...     return gradtx.Frame(
        ...         tx, leave=lambda update, state, param, ctx: (factor * update, state)
        ...     )
        >>> tx = amplified(gradtx.sgd(lr=1.0), factor=3.0)
        >>> tx.update({"w": torch.ones(1)}, tx.init({"w": torch.ones(1)}))[0]["w"]
        tensor([-3.])
    """
    return _decorated("combinator", "combinator", function, options)


def complete_docstring(factory: Any) -> None:
    """Add to a factory's docstring the errors that its declarations know: ranges, choices, needs, and the order.

    Called when the factory is first looked up, because the body of an alias may need what follows it in its file.
    """
    spec: Spec | None = getattr(factory, "spec", None)
    if spec is None or spec.is_documented or factory.__doc__ is None:
        return
    spec.is_documented = True
    if spec.kind != "combinator":
        causes = {"TypeError": spec.causes_of_types(), "ValueError": spec.causes()}
        factory.__doc__ = with_errors(factory.__doc__, causes)


def _looked_up(signature: inspect.Signature) -> inspect.Signature:
    """Return a factory's signature with types in place of the texts that a class in another module cannot look up."""
    parameters = [
        parameter.replace(annotation=GradientTransformation | None)
        if parameter.annotation == "GradientTransformation | None"
        else parameter
        for parameter in signature.parameters.values()
    ]
    return signature.replace(
        parameters=parameters, return_annotation=GradientTransformation
    )


def _decorated(
    name: str, kind: str, function: Callable[..., Any] | None, options: dict[str, Any]
) -> Any:
    known = OPTIONS[kind].__annotations__
    for option in options.keys() - known.keys():
        raise TypeError(f"{name}: unknown option {option!r}; {nearest(option, known)}")

    def decorate(function: Callable[..., Any]) -> Any:
        if not hasattr(function, "__name__"):
            raise TypeError(
                f"{name}: needs a function that returns the {kind}, got {describe(function)}"
            )
        spec = Spec(kind, function, options)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> GradientTransformation:
            node = FactoryCall(spec, spec.arguments.bind(args, kwargs))
            node._check()
            return node

        factory: Any = call
        factory.spec = spec
        # Command lines and files name what returns a fallback.
        factory.__signature__ = _looked_up(spec.arguments.signature)
        factory.__annotations__ = {
            **spec.arguments.types,
            "return": GradientTransformation,
        }
        texts = {name: ADDED[name] for name in spec.arguments.added}
        factory.__doc__ = with_arguments(function.__doc__, texts)
        publish(factory)
        spec.factory = factory
        return factory

    return decorate if function is None else decorate(function)
