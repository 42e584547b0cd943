"""Create optimizers and schedulers by name, with the option names of pytorch_optimizer."""

from __future__ import annotations

import fnmatch
import inspect
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradtx import schedules
from gradtx.arguments import Argument
from gradtx.base.exact import Scalar, Schedule
from gradtx.base.inputs import as_builtin
from gradtx.base.messages import describe, nearest, warn_user
from gradtx.base.other_libraries import SCHEDULERS, name_here, plain
from gradtx.base.selectors import named_in_model
from gradtx.combinators.slow_weights import with_lookahead
from gradtx.links.averaging import lookahead
from gradtx.links.projection import centralize, orthogonalize_against_params
from gradtx.models import label_by_role, uses_of
from gradtx.optim import ChainOptimizer, as_optimizer, class_names, optimizer_hint
from gradtx.optim.chain_checks import drop_engine_options
from gradtx.optim.classes import (
    ALIASES,
    CLASSES,
    AliasOptimizer,
    class_of_user,
    classes_of_users,
)
from gradtx.schedules.adapter import ScheduleLR
from gradtx.transform import GradientTransformation, chain

__all__ = [
    "create_optimizer",
    "get_supported_lr_schedulers",
    "get_supported_optimizers",
    "load_lr_scheduler",
    "load_optimizer",
    "optimizer_class",
]

Names = str | Sequence[str] | None
Options: TypeAlias = dict[str, Any]


# Biases and the weights of normalization layers, matched by the class of their module (LayerNorm, BatchNorm2d, RMSNorm)
# or, for parameters without a model, by common names (norm, norm1, layer_norm).
WD_BAN_LIST = ("bias", "*Norm", "*Norm?d", "*norm.weight", "*norm?.weight")

# `proportion` requires another schedule, `join_schedules` a list of schedules; AdEMAMix's and the sigmoid, which
# may end below 0, are not learning rates.
_NO_RATES = (
    "ademamix_alpha_schedule",
    "half_life_schedule",
    "join_schedules",
    "proportion_schedule",
    "sigmoid_schedule",
)


@dataclass(frozen=True)
class _Catalog:
    """What can be found by name.

    Attributes:
        what: The kind of entries, for errors.
        entries: The entries by name.
        synonyms: Other name -> name.
        hint: Function of an unknown name and of the name for each plain spelling that says what to use instead.
    """

    what: str
    entries: Mapping[str, Any]
    synonyms: Mapping[str, str]
    hint: Callable[[str, Mapping[str, str]], str]

    def find(self, who: str, name: Any) -> Any:
        """Return the entry of a name or a synonym; if none has this spelling, of one that differs in case, - or _."""
        if not isinstance(name, str):
            raise TypeError(
                f"{who}: the name of {self.what} must be a str, got {describe(name)}"
            )
        target = self.synonyms.get(name, name)
        if target not in self.entries:
            names = self.by_spelling()
            if plain(name) not in names:
                raise ValueError(
                    f"{who}: unknown {self.what} {name!r}; {self.hint(name, names)}"
                )
            target = names[plain(name)]
        return self.entries[target]

    def by_spelling(self) -> dict[str, str]:
        """Return the name for each plain spelling of a name or a synonym."""
        names = {**self.synonyms, **{name: name for name in self.entries}}
        return {plain(spelling): name for spelling, name in names.items()}

    def matching(self, who: str, filters: Names) -> list[str]:
        """Return the sorted names with a spelling that matches one of the wildcard patterns."""
        patterns = [filters] if isinstance(filters, str) else as_builtin(filters)
        if patterns is None:
            patterns = ["*"]
        if not _are_strings(patterns):
            raise TypeError(
                f"{who}: filters must be a pattern or a list of patterns, got {describe(filters)}"
            )
        names: set[str] = set()
        for pattern in patterns:
            # A dash inside brackets denotes a range, so keep it.
            pattern = pattern.lower() if "[" in pattern else plain(pattern)
            for spelling, name in self.by_spelling().items():
                if fnmatch.fnmatchcase(spelling, pattern):
                    names.add(name)
        return sorted(names)


def _are_strings(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(
        isinstance(item, str) for item in value
    )


_SCHEDULERS = _Catalog(
    "scheduler",
    {
        name.removesuffix("_schedule"): getattr(schedules, name)
        for name in schedules.__all__
        if hasattr(getattr(schedules, name), "arguments") and name not in _NO_RATES
    },
    SCHEDULERS,
    nearest,
)


def _optimizers() -> _Catalog:
    ours = cast("dict[str, type[AliasOptimizer]]", CLASSES)  # never written
    of_users = cast("dict[str, type[AliasOptimizer]]", classes_of_users())
    classes = ChainMap(of_users, ours)
    own = {cls.__name__: alias for alias, cls in of_users.items()}
    alias_of_class = {**ALIASES, **own}
    return _Catalog("optimizer", classes, alias_of_class, optimizer_hint)


def optimizer_class(
    alias: Callable[..., GradientTransformation],
) -> type[AliasOptimizer]:
    """Create the optimizer class of your own alias, as `gradtx.optim` has one for each of its aliases.

    From then on, `create_optimizer`, `load_optimizer` and `get_supported_optimizers` know the alias and the class by
    their names. To pickle its optimizers, assign the class to a variable of its name at the top level of the module
    that defines the alias.

    Args:
        alias: A function decorated with `gradtx.alias`. Arguments without a default must be numbers.

    Returns:
        A class that accepts `params`, the arguments of the alias and those of `as_optimizer`. Its name is the alias's
        in CamelCase, or its `class_name`. Every call with the same alias returns the same class; for an alias of
        gradtx, the one in `gradtx.optim`.

    Raises:
        TypeError: If `alias` is not an alias, or if it has a required argument that is not a number.
        ValueError: If gradtx has another optimizer of this name.

    Example:
        >>> @gradtx.alias
        ... def centralized_sgd(lr: gradtx.Scalar = 1e-3):
        ...     return gradtx.chain(gradtx.centralize(), gradtx.scale_by_learning_rate(lr))
        >>> CentralizedSgd = gradtx.optimizer_class(centralized_sgd)
        >>> gradtx.create_optimizer(
        ...     torch.nn.Linear(2, 2), "centralized_sgd", lr=0.1
        ... ).param_groups[0]["lr"]
        0.1
        >>> gradtx.load_optimizer("CentralizedSgd") is CentralizedSgd
        True
    """
    spec = getattr(alias, "spec", None)
    if spec is None or spec.kind != "alias":
        raise TypeError(
            f"optimizer_class: needs an alias, got {describe(alias)}; decorate a function that returns a chain with "
            "@gradtx.alias"
        )
    ours = CLASSES.get(spec.name)
    if ours is not None and ours._alias is alias:
        return ours
    spec.arguments.sample()  # raises an error for a required argument that is not a number
    names_of_ours = class_names()
    for name in (spec.name, spec.class_name):
        if plain(name) in names_of_ours:
            raise ValueError(
                f"optimizer_class: gradtx has an optimizer {name!r}; rename the alias, or its class by "
                "@gradtx.alias(class_name=...)"
            )
    return class_of_user(alias)


def load_optimizer(optimizer: str) -> type[AliasOptimizer]:
    """Return the class of an optimizer: `load_optimizer("adamp")` is `gradtx.optim.AdamP`.

    Args:
        optimizer: The name of an alias or a class. If none has this spelling, case, dashes and underscores are ignored.

    Raises:
        TypeError: If the name is not a str.
        ValueError: If the name is unknown; the error lists the nearest names.

    Example:
        >>> gradtx.load_optimizer("Adam-W").__name__
        'AdamW'
    """
    return _optimizers().find("load_optimizer", optimizer)


def get_supported_optimizers(filters: Names = None) -> list[str]:
    """List the names of all optimizers, or of those that match a filter, sorted.

    Args:
        filters: A wildcard pattern such as "*adam*", or a list of patterns, any of which may match. None for all.

    Raises:
        TypeError: If `filters` is neither a pattern nor a list of patterns.

    Example:
        >>> gradtx.get_supported_optimizers(["lion", "schedule*adam*"])
        ['lion', 'schedule_free_adamw', 'schedule_free_radam']
    """
    return _optimizers().matching("get_supported_optimizers", filters)


def get_supported_lr_schedulers(filters: Names = None) -> list[str]:
    """List the names of all learning rate schedulers, or of those that match a filter, sorted.

    Args:
        filters: A wildcard pattern such as "*cosine*", or a list of patterns, any of which may match. None for all.

    Raises:
        TypeError: If `filters` is neither a pattern nor a list of patterns.

    Example:
        >>> gradtx.get_supported_lr_schedulers("warmup_*e*r")
        ['warmup_linear']
    """
    return _SCHEDULERS.matching("get_supported_lr_schedulers", filters)


def load_lr_scheduler(lr_scheduler_name: str) -> Callable[..., LRScheduler]:
    """Return a scheduler by name, to call like torch's: `load_lr_scheduler("cosine")(optimizer, T_max=10)`.

    It accepts the optimizer, the arguments of the schedule with this name (`cosine_schedule`) and `last_epoch`, and
    returns `as_lr_scheduler` of that schedule. `lr` defaults to the learning rate of each group.

    Args:
        lr_scheduler_name: The name of a schedule, or its name in torch or pytorch_optimizer (`CosineAnnealingLR`);
            case, dashes and underscores are ignored. "linear" and "cosine" refer to torch's schedules; those of
            pytorch_optimizer are "warmup_linear" and "warmup_cosine".

    Raises:
        TypeError: If the name is not a str.
        ValueError: If the name is unknown; the error lists the nearest names.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> gradtx.load_lr_scheduler("linear")(optimizer, start_factor=0.5).get_last_lr()
        [0.25]
    """
    factory = _SCHEDULERS.find("load_lr_scheduler", lr_scheduler_name)
    who = factory.__name__
    has_rate = "lr" in factory.arguments.by_name

    def scheduler(
        optimizer: Optimizer, *args: Any, last_epoch: int = -1, **options: Any
    ) -> LRScheduler:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{who}: the first argument must be the optimizer, got {describe(optimizer)}"
            )
        if not has_rate:
            return ScheduleLR(optimizer, [factory(*args, **options)], last_epoch)
        groups = optimizer.param_groups
        rates = [group.get("initial_lr", group["lr"]) for group in groups]
        if "lr" in options:
            rates = [options.pop("lr")] * len(groups)
        # Other arguments may precede it.
        position = list(factory.arguments.by_name).index("lr")
        schedule_of_group: list[Schedule] = []
        for rate in rates:
            if len(args) < position:
                schedule = factory(*args, lr=float(rate), **options)
            else:
                schedule = factory(
                    *args[:position], float(rate), *args[position:], **options
                )
            schedule_of_group.append(schedule)
        return ScheduleLR(optimizer, schedule_of_group, last_epoch)

    scheduler.__name__ = who
    scheduler.__doc__ = factory.__doc__
    return scheduler


_WITH_LOOKAHEAD = ("ranger", "ranger21")


def _translated(arguments: Mapping[str, Argument], options: Options) -> Options:
    """Rename options of other libraries, with a warning for each; the optimizer raises errors for unknown ones."""
    translated = {}
    for name, value in options.items():
        new_name = None if name in arguments else name_here(name, arguments)
        if new_name is not None:
            if new_name in options:
                raise TypeError(
                    f"create_optimizer: {name!r} is an alias of {new_name!r}, but both are given; pass one"
                )
            warn_user(f"create_optimizer: {name!r} is now {new_name!r}", FutureWarning)
        translated[new_name or name] = value
    return translated


def _parameters(model: Any, weight_decay: Any, ban_list: Sequence[str]) -> Any:
    """Return the parameters for the optimizer; if they have names, in groups with and without decay."""
    if isinstance(model, Tensor) or not isinstance(model, torch.nn.Module | Iterable):
        received = "one tensor" if isinstance(model, Tensor) else describe(model)
        raise TypeError(
            f"create_optimizer: needs a model or a list of parameters, got {received}"
        )
    # By which the ban list may call a parameter.
    names: dict[Tensor, list[str]] = {}
    if isinstance(model, torch.nn.Module):
        items = [item for item in model.named_parameters() if item[1].requires_grad]
        if not items:
            raise ValueError(
                "create_optimizer: the model has no parameter that requires a gradient"
            )
        for param, uses in uses_of(model).items():
            names[param] = []
            for use in uses:
                kind = type(use.module).__name__
                names[param] += [use.path, kind, f"{kind}.{use.name}"]
    else:
        items = list(model)
        if not all(isinstance(item, tuple) and len(item) == 2 for item in items):
            return items  # patterns require names; the user's groups stay unchanged
        names = {param: [name] for name, param in items}
    if _is_zero(weight_decay):
        return items
    decayed = {"params": []}
    undecayed = {"params": [], "weight_decay": 0.0}
    for name, param in items:
        group = undecayed if _is_banned(ban_list, names[param]) else decayed
        group["params"].append((name, param))
    return [group for group in (decayed, undecayed) if group["params"]]


def _is_banned(patterns: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a name contains a plain pattern or matches a wildcard pattern."""
    for pattern in patterns:
        if not set("*?[").intersection(pattern):
            pattern = f"*{pattern}*"
        if fnmatch.filter(names, pattern):
            return True
    return False


def _warn_of_embeddings(name: str, model: Any) -> None:
    """Warn of embeddings and heads: as matrices, they go to a method designed for hidden matrices."""
    if not isinstance(model, torch.nn.Module):
        return
    roles = label_by_role(model)
    named = [
        leaf
        for leaf, param in named_in_model(model)
        if roles[leaf] in ("embedding", "head") and param.ndim == 2
    ]
    if named:
        warn_user(
            f"create_optimizer: {name} also steps embeddings and heads ({', '.join(named)}), since they are matrices; "
            "gradtx.muon_for(model), or partition by the roles of label_by_role(model), sends them to AdamW"
        )


def _rate(name: str, arguments: Mapping[str, Argument], lr: Any) -> Options:
    """Return the learning rate as an option, under the optimizer's name for it."""
    rate = "lr" if "lr" in arguments else "max_lr"
    if rate in arguments:
        if lr is not None:
            return {rate: lr}
        is_optional = not arguments[rate].required and arguments[rate].default is None
        return {} if is_optional else {rate: 1e-3}
    if lr is not None:
        raise TypeError(f"create_optimizer: {name} has no learning rate; omit 'lr'")
    return {}


def _is_zero(number: Any) -> bool:
    return isinstance(number, int | float) and number == 0


def create_optimizer(
    model: Any,
    optimizer_name: str,
    lr: Scalar | None = None,
    weight_decay: Scalar = 0.0,
    wd_ban_list: Sequence[str] = WD_BAN_LIST,
    use_lookahead: bool = False,
    use_orthograd: bool = False,
    use_gc: bool | None = None,
    **options: Any,
) -> ChainOptimizer:
    """Create an optimizer by name for a model, with common links before and after it.

    Args:
        model: A module, whose parameters that require a gradient are used; or parameters: tensors, pairs of name and
            tensor, or parameter groups, which are not modified.
        optimizer_name: As for `load_optimizer`.
        lr: The learning rate. None means 1e-3, or no rate if the optimizer does not require one.
        weight_decay: The weight decay, in the optimizer's own form. 0 for every optimizer, as in pytorch_optimizer,
            also where the class has another default: `AdamW` decays by 0.01 unless told otherwise.
        wd_ban_list: Selects parameters without decay, by substrings or wildcard patterns of the parameter's name
            ("blocks.0.bias"), its module's class ("LayerNorm") or both ("LayerNorm.weight"). By default, biases and
            the weights of norms. Parameters without names always have decay.
        use_lookahead: Add `lookahead` after the optimizer, with the options `k`, `alpha` and `pullback_momentum`
            (an option that the optimizer also has goes to the optimizer). Ranger already includes lookahead.
        use_orthograd: Add `orthogonalize_against_params` before the optimizer.
        use_gc: Add `centralize` before the optimizer, with the option `gc_conv_only`. None: the optimizer's default.
        **options: Other options of the optimizer, and those of `as_optimizer` (`compile`, `state_device`, ...). Option
            names of other libraries are accepted, with a FutureWarning that states the new name.

    Returns:
        An instance of `load_optimizer(optimizer_name)`; with additional links, the result of `as_optimizer`. `muon`
        and its relatives use `adamw(lr=3e-4, betas=(0.9, 0.95), eps=1e-10)` for parameters that are not matrices,
        unless you pass `fallback`. They also step embeddings and heads, which are matrices; a warning suggests an
        alternative.

    Raises:
        TypeError: If an option is unknown, or if an option of another library has no counterpart.
        ValueError: If the name is unknown, if a hyperparameter is out of range, or if there are no parameters.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
        >>> optimizer = gradtx.create_optimizer(
        ...     model, "adamp", lr=1e-3, weight_decay=1e-2, use_gc=True
        ... )
        >>> [(group["weight_decay"], group["param_names"]) for group in optimizer.param_groups]
        [(0.01, ['0.weight']), (0.0, ['0.bias', '1.weight', '1.bias'])]
    """
    cls = _optimizers().find("create_optimizer", optimizer_name)
    alias = cls._alias
    name = alias.__name__
    arguments = alias.spec.arguments.by_name
    of_optimizer: Options = {}
    for option in inspect.signature(as_optimizer).parameters:
        if option in options and option not in arguments:
            of_optimizer[option] = options.pop(option)
    drop_engine_options("create_optimizer", options)
    if not _are_strings(wd_ban_list):
        raise TypeError(
            f"create_optimizer: wd_ban_list must be a list of patterns, got {describe(wd_ban_list)}"
        )
    if use_lookahead and name in _WITH_LOOKAHEAD:
        warn_user(
            f"create_optimizer: {name} already includes a lookahead; omit use_lookahead"
        )
        use_lookahead = False
    before: list[GradientTransformation] = []
    if use_gc is not None and "use_gc" in arguments:
        options["use_gc"] = use_gc
    elif use_gc:
        before.append(centralize(options.pop("gc_conv_only", False)))
    if use_orthograd:
        before.append(orthogonalize_against_params())
    of_lookahead: Options = {}
    for option in ("k", "alpha", "pullback_momentum") if use_lookahead else ():
        if option in options and option not in arguments:
            of_lookahead[option] = options.pop(option)
    options = _translated(arguments, options)
    if "weight_decay" in arguments:
        options["weight_decay"] = weight_decay
    elif not _is_zero(weight_decay):
        raise TypeError(f"create_optimizer: {name} has no weight_decay; omit it")
    options.update(_rate(name, arguments, options.pop("lr", lr)))
    if "fallback" in arguments and "fallback" not in options:
        _warn_of_embeddings(name, model)
        # Imported here, so that a fault in one optimizer is no fault of all others.
        from gradtx.algorithms.adam import adamw

        options["fallback"] = adamw(
            lr=3e-4, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0
        )
    params = _parameters(model, weight_decay, wd_ban_list)
    if not before and not use_lookahead:
        return cls(params, **options, **of_optimizer)
    tx = alias(**options)
    if "pullback_momentum" in of_lookahead:
        tx = with_lookahead(tx, **of_lookahead)
    elif use_lookahead:
        tx = chain(tx, lookahead(**of_lookahead))
    return as_optimizer(chain(*before, tx), params, **of_optimizer)
