"""A torch optimizer class for each alias of `gradtx.algorithms`; the generated classes.pyi types their arguments."""

from __future__ import annotations

import functools
import inspect
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch  # noqa: F401, in annotations, which tools evaluate here

from gradtx.base.docstrings import of_class, with_arguments
from gradtx.base.inputs import Params
from gradtx.base.names import public_value
from gradtx.base.table import CLASSES as CLASS_NAMES
from gradtx.base.torch_names import not_traced
from gradtx.maths.polynomials import default_steps
from gradtx.optim.chain_checks import drop_engine_options
from gradtx.optim.engine import Engine as Engine  # as torch above
from gradtx.optim.groups import Group, names_in_group
from gradtx.optim.optimizer import ChainOptimizer
from gradtx.rules import complete_docstring, is_constant
from gradtx.transform import GradientTransformation

# Options of torch's class that our class fixes. They are saved so that other classes interpret checkpoints correctly.
FIXED_OPTIONS = {"adamw": {"decoupled_weight_decay": True}}
# Arguments for which groups show a number in place of None, as those of torch's class do, which checkpoints of ours may
# be loaded into; each with a function that computes it from the group.
NUMBERS_OF_TORCH: dict[str, dict[str, Callable[[Group], Any]]] = {
    "muon": {"ns_steps": lambda group: default_steps(group["ns_coefficients"])}
}


# Constructor arguments in addition to those of the alias, for its docstring; their defaults are those of the base.
TOLD = {
    "compile": "True runs steps as kernels that write in place; an `Engine` is a back end of your own. This and the "
    "following arguments are those of `as_optimizer`, whose docstring says more.",
    "process_group": "Ranks that have these parameters and equal gradients, as under DDP, and divide the work of "
    "matrix methods.",
    "state_device": '"cpu" keeps the state, and computes steps, on the host; None: on the device of each parameter.',
    "capturable": "Whether `torch.cuda.graph` may capture steps: counts are kept on the parameters' device.",
    "amp_scaling": "Whether a `GradScaler` leaves unscaling and the skipping of steps to `step`, as to fused "
    "optimizers.",
    "seed": "Seed of the random vectors with which steps estimate `hessian_diag`.",
}
OPTIONS = inspect.signature(ChainOptimizer.__init__).parameters
MODULE = "gradtx.optim"  # of all classes that this library creates


class AliasOptimizer(ChainOptimizer):
    """Base of alias classes: `class Name(AliasOptimizer, alias=name)` accepts `params` and the alias's arguments."""

    _alias: Callable[..., GradientTransformation]
    _arguments: inspect.Signature  # the signature of the alias
    _fixed_options: Mapping[str, Any] = types.MappingProxyType({})
    _told: Mapping[str, str]  # the arguments of the optimizer that are not the alias's

    def __init_subclass__(cls, alias: Any = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if alias is None:  # a user's subclass of an alias class
            return
        cls._alias = staticmethod(alias)
        cls._fixed_options = FIXED_OPTIONS.get(alias.__name__, {})
        own = cls._arguments = inspect.signature(alias)
        of_instance = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        params = of_instance.replace(name="params", annotation="Params")
        cls._told = told = dict(TOLD)
        if "hessian_diag" not in alias(**alias.spec.arguments.sample()).needs:
            del told["seed"]  # the alias may have one
        options = [OPTIONS[name] for name in told]
        parameters = [of_instance, params, *own.parameters.values(), *options]
        signature = own.replace(parameters=parameters, return_annotation=own.empty)
        cls.__init__ = _constructor(cls, signature)
        complete_docstring(alias)
        cls.__doc__ = _docstring(cls, alias, told)

    @classmethod
    def __subclasses__(cls) -> list[type]:
        """Return the classes that users derive: those of this library exist only from their first use on.

        Tools that look up short names, such as `AdamW`, then find the same class whatever was used before: torch's.
        """
        found: list[type] = []
        for subclass in type.__subclasses__(cls):
            if subclass.__module__ == MODULE:
                found += subclass.__subclasses__()
            else:
                found.append(subclass)
        return found

    def __init__(self, params: Params, *args: Any, **kwargs: Any):
        for name, value in self._options_of_groups(params).items():
            kwargs.setdefault(name, value)
        engine = {name: kwargs.pop(name, OPTIONS[name].default) for name in self._told}
        engine["capturable"] = bool(engine["capturable"])
        drop_engine_options(type(self).__name__, kwargs)
        named = {self._argument_named(name): value for name, value in kwargs.items()}
        super().__init__(_built(self._alias, args, named), params, **engine)
        positional = dict(zip(self._arguments.parameters, args, strict=False))
        passed = {**positional, **named}  # which the alias has accepted
        arguments = {
            name: passed[name] for name in self._arguments.parameters if name in passed
        }
        del engine["process_group"]  # `defaults` are copied and pickled
        for name, value in engine.items():
            if value != OPTIONS[name].default:
                arguments[name] = value
        self._take_defaults(_defaults_of(self._tx, arguments))
        _LIVING.add(self)

    def _options_of_groups(self, params: Any) -> dict[str, Any]:
        """Return the options that groups lack, if they are those of another optimizer of this class.

        So `cls([*first.param_groups, *second.param_groups])`, as torchrl merges optimizers, keeps all options.
        """
        if not isinstance(params, list | tuple):
            return {}
        ids = {id(group) for group in params if isinstance(group, dict)}
        for other in _LIVING if ids else ():
            for group in other.param_groups if type(other) is type(self) else ():
                if id(group) in ids:
                    options = other.defaults.items()
                    return {name: value for name, value in options if name not in group}
        return {}

    def _argument_named(self, key: str) -> str:
        """Return the name of the alias's argument that groups and `defaults` show under this key."""
        arguments = self._arguments.parameters
        name = key.removeprefix(f"{self._alias.__name__}.")
        if name == "lr" and "lr" not in arguments:
            # Which groups show as `lr` if there is no other learning rate.
            name = "max_lr"
        return name if name in arguments else key

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as `ChainOptimizer.add_param_group` does, with the options that this class fixes."""
        size = len(self.param_groups)
        super().add_param_group(param_group)
        for group in self.param_groups[size:]:
            self._check_fixed("group", group, "use Adam")
            for option, value in self._fixed_options.items():
                group.setdefault(option, value)
            for name, number in NUMBERS_OF_TORCH.get(self._alias.__name__, {}).items():
                if group.get(name, 0) is None:
                    group[name] = number(group)

    def _check_fixed(self, what: str, group: Group, remedy: str) -> None:
        """Reject another value of an option that this class fixes, if it would have an effect."""
        for option, value in self._fixed_options.items():
            group_value = group.get(option, value)
            if group_value != value and group.get("weight_decay", 0.0) != 0.0:
                raise ValueError(
                    f"{type(self).__name__}: {what} has {option}={group_value}, which this class does not support; "
                    f"{remedy}"
                )

    def _copy_hyperparameters(
        self, tx: GradientTransformation
    ) -> GradientTransformation:
        # Created for this optimizer: tensors passed by the user are not copied, as in torch.
        return tx

    def _accepted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups: list[Group] = []
        for group in state_dict["param_groups"]:
            self._check_fixed("loaded group", group, "load it into Adam")
            groups.append({**group, **self._fixed_options})
        return {**state_dict, "param_groups": groups}


# Weakly, so that optimizers end with their owners.
_LIVING: weakref.WeakSet[AliasOptimizer] = weakref.WeakSet()


def _constructor(
    cls: type[AliasOptimizer], signature: inspect.Signature
) -> Callable[..., None]:
    """Return an `__init__` with the signature of a class, which frameworks read to know the class's arguments."""

    @not_traced
    def init(self: AliasOptimizer, *args: Any, **kwargs: Any) -> None:
        AliasOptimizer.__init__(self, *args, **kwargs)

    function: Any = init
    function.__name__ = "__init__"
    function.__qualname__ = f"{cls.__qualname__}.__init__"
    function.__module__ = cls.__module__
    function.__signature__ = signature
    function.__annotations__ = _annotations(cls, signature)
    return function


def _annotations(
    cls: type[AliasOptimizer], signature: inspect.Signature
) -> dict[str, Any]:
    """Return annotations that can be evaluated here; those of the alias are names in the module that defines it."""
    alias: Any = cls._alias
    types_of_alias = alias.spec.arguments.types
    return {
        name: types_of_alias.get(name, parameter.annotation)
        for name, parameter in signature.parameters.items()
        if name != "self"
    }


def _docstring(cls: type[AliasOptimizer], alias: Any, told: Mapping[str, str]) -> str:
    """Return the docstring of a class: that of the alias, with what differs for an optimizer."""
    summary = f"`{alias.__name__}` as a torch optimizer: `{cls.__name__}(params, ...)`, as for `as_optimizer`."
    docstring = with_arguments(inspect.getdoc(alias), told)
    if not docstring:
        return summary
    sample = alias.spec.arguments.sample()
    required = "".join(f", {name}={value!r}" for name, value in sample.items())
    tx = alias(**sample)
    call = "closure" if {"value_fn", "grad_fn", "value"} & {*tx.needs} else ""
    if "residual_fn" in tx._requirements()[0]:
        call = "lambda: model(x) - y"  # residuals: no loss, and no backward
    example = (
        "Example:\n"
        f"    >>> optimizer = {cls.__module__}.{cls.__name__}(model.parameters(){required})\n"
        f"    >>> optimizer.step({call})\n"
    )
    return f"{summary}\n\n{of_class(docstring, example)}"


def _built(
    alias: Any, args: tuple[Any, ...], named: dict[str, Any]
) -> GradientTransformation:
    """Return an alias's transformation: the same one for equal constants, of which all that follows is known."""
    if alias.spec.is_ours and all(map(is_constant, (*args, *named.values()))):
        return _built_of_constants(alias, _EqualArguments(args, named))
    return alias(*args, **named)


class _EqualArguments:
    """Arguments that are equal if they have one text: 1, 1.0 and True differ, as do zeros of other signs."""

    def __init__(self, args: tuple[Any, ...], named: dict[str, Any]):
        self.args, self.named = args, named
        self._text = repr((args, named))

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _EqualArguments) and self._text == other._text


@functools.lru_cache(maxsize=128)
def _built_of_constants(
    alias: Any, constants: _EqualArguments
) -> GradientTransformation:
    return alias(*constants.args, **constants.named)


def _defaults_of(
    tx: GradientTransformation, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return constructor arguments by their names in groups, so that `type(opt)(params, **opt.defaults)` works.

    Args:
        tx: The transformation that the constructor created.
        arguments: The arguments passed to the constructor. Those that are not hyperparameters are included in the
            result.
    """
    defaults = {}
    hyperparameters: set[str] = set()
    for name, entry in names_in_group(tx, None).items():
        nodes, argument = entry.place
        if not nodes:  # an argument of the alias itself
            defaults[name] = entry.value
            hyperparameters.add(argument)
    for name, value in arguments.items():
        if name not in hyperparameters:
            defaults[name] = value
    return defaults


def class_of(alias: Any, module: str) -> type[AliasOptimizer]:
    """Create the class of an alias; pickle finds it by its name in the module."""
    namespace = {"__module__": module}
    return type(alias.spec.class_name, (AliasOptimizer,), namespace, alias=alias)


_LOCK = threading.RLock()  # threads that ask at once get one class
# By the alias's name. Replaced as a whole, so that other threads may read it at any time.
_classes_of_users: dict[str, type[AliasOptimizer]] = {}


def classes_of_users() -> Mapping[str, type[AliasOptimizer]]:
    """Return the classes of users' aliases, by the alias's name."""
    return _classes_of_users


def class_of_user(alias: Any) -> type[AliasOptimizer]:
    """Return the class of a user's alias, which is created once; another alias of the same name takes its place."""
    global _classes_of_users
    name = alias.spec.name
    with _LOCK:
        user_class = _classes_of_users.get(name)
        if user_class is None or user_class._alias is not alias:
            user_class = class_of(alias, alias.__module__)
            _classes_of_users = {**_classes_of_users, name: user_class}
    return user_class


class _Classes(Mapping[str, type[AliasOptimizer]]):
    """The class of each alias, by the alias's name; each is created at its first access, which loads the alias."""

    def __init__(self) -> None:
        self._created: dict[str, type[AliasOptimizer]] = {}

    def __getitem__(self, alias: str) -> type[AliasOptimizer]:
        if alias not in CLASS_NAMES:
            raise KeyError(alias)
        if alias not in self._created:
            # Not under the lock: imports have locks of their own.
            function = public_value(alias)
            with _LOCK:
                if alias not in self._created:
                    self._created[alias] = class_of(function, MODULE)
        return self._created[alias]

    def __iter__(self) -> Iterator[str]:
        return iter(CLASS_NAMES)

    def __len__(self) -> int:
        return len(CLASS_NAMES)


CLASSES = _Classes()
ALIASES = {class_name: alias for alias, class_name in CLASS_NAMES.items()}
__all__ = list(ALIASES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Create the class of this name."""
    if name not in ALIASES:
        raise AttributeError(f"module 'gradtx.optim.classes' has no attribute {name!r}")
    return CLASSES[ALIASES[name]]
