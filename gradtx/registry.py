"""Create optimizers and schedulers by name, with the option names of pytorch_optimizer."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradtx import schedules
from gradtx.algorithms.adam import adamw
from gradtx.algorithms.averaging import lookahead
from gradtx.algorithms.projection import centralize, orthogonalize_against_params
from gradtx.arguments import Argument
from gradtx.base.counterparts import plain
from gradtx.base.exact import Scalar, Schedule
from gradtx.base.messages import describe, nearest, warn_user
from gradtx.combinators.lookahead import with_lookahead
from gradtx.models import label_by_role, named_in_model, named_modules
from gradtx.optim import ChainOptimizer, as_optimizer, class_names, optimizer_hint
from gradtx.optim.chain_checks import warn_of_engine_options
from gradtx.optim.classes import CLASSES, AliasOptimizer, class_of
from gradtx.optim.groups import ENGINE_OPTIONS, check_differentiable
from gradtx.rules import Alias
from gradtx.schedules._factory import in_its_words
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

# `proportion` requires another schedule, `join_schedules` a list of schedules; AdEMAMix's are not learning rates.
_NO_RATES = (
    "ademamix_alpha_schedule",
    "half_life_schedule",
    "join_schedules",
    "proportion_schedule",
)
_SCHEDULES: dict[str, Any] = {
    name.removesuffix("_schedule"): getattr(schedules, name)
    for name in schedules.__all__
    if hasattr(getattr(schedules, name), "arguments") and name not in _NO_RATES
}
# Names in torch and pytorch_optimizer that differ from ours.
_SCHEDULERS_ELSEWHERE = {
    "ConstantLR": "constant",
    "LinearLR": "linear",
    "PolynomialLR": "polynomial",
    "ExponentialLR": "exponential",
    "StepLR": "step",
    "MultiStepLR": "multistep",
    "CosineAnnealingLR": "cosine",
    "CosineAnnealingWarmRestarts": "cosine_warm_restarts",
    "OneCycleLR": "one_cycle",
    "CyclicLR": "cyclic",
    "LinearScheduler": "warmup_linear",
    "CosineScheduler": "warmup_cosine",
    "PolyScheduler": "warmup_poly",
    "CosineAnnealingWarmupRestarts": "cosine_warmup_restarts",
    "poly": "warmup_poly",
    "cosine_annealing": "cosine",
    "cosine_annealing_with_warm_restart": "cosine_warm_restarts",
    "cosine_annealing_with_warmup": "cosine_warmup_restarts",
    "warmup_stable_decay": "wsd",
}


def _lookup(
    owner: str,
    what: str,
    name: Any,
    known: Mapping[str, Any],
    synonyms: Mapping[str, str],
) -> Any:
    """Return the entry of a name or a synonym; if none has this spelling, of one that differs in case, - or _."""
    if not isinstance(name, str):
        raise TypeError(
            f"{owner}: the name of {what} must be a str, got {describe(name)}"
        )
    target = synonyms.get(name, name)
    if target in known:
        return known[target]
    names = {**synonyms, **{target: target for target in known}}
    name_of = {plain(spelling): target for spelling, target in names.items()}
    if plain(name) in name_of:
        return known[name_of[plain(name)]]
    suggest = optimizer_hint if what == "optimizer" else nearest
    hint = suggest(plain(name), name_of)
    raise ValueError(f"{owner}: unknown {what} {name!r}; {hint}")


def _matching(
    owner: str, filters: Any, spellings: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the names with a spelling that matches one of the wildcard patterns."""
    patterns = [filters] if isinstance(filters, str) else filters
    if patterns is None:
        patterns = ["*"]
    if not _are_strings(patterns):
        raise TypeError(
            f"{owner}: filters must be a pattern or a list of patterns, got {describe(filters)}"
        )
    # A dash inside brackets denotes a range, so keep it.
    patterns = [
        pattern.lower() if "[" in pattern else plain(pattern) for pattern in patterns
    ]
    names: list[str] = []
    for name, synonyms in spellings.items():
        known = list(map(plain, (name, *synonyms)))
        if any(fnmatch.filter(known, pattern) for pattern in patterns):
            names.append(name)
    return sorted(names)


def _are_strings(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(
        isinstance(item, str) for item in value
    )


# The classes of users' aliases, by the alias's name.
_OWN_CLASSES: dict[str, type[AliasOptimizer]] = {}


def _classes() -> dict[str, type[AliasOptimizer]]:
    return {**CLASSES, **_OWN_CLASSES}


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
        in CamelCase, or its `class_name`. For an alias of gradtx, the class in `gradtx.optim`.

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
    _OWN_CLASSES[spec.name] = class_of(alias, alias.__module__)
    return _OWN_CLASSES[spec.name]


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
    return _class("load_optimizer", optimizer)


def _class(owner: str, name: Any) -> type[AliasOptimizer]:
    classes = _classes()
    alias_of_class = {cls.__name__: alias for alias, cls in classes.items()}
    return _lookup(owner, "optimizer", name, classes, alias_of_class)


def get_supported_optimizers(filters: Names = None) -> list[str]:
    """List the names of all optimizers, or of those that match a filter, sorted.

    Args:
        filters: A wildcard pattern such as "*adam*", or a list of patterns, any of which may match. None for all.

    Raises:
        TypeError: If `filters` is neither a pattern nor a list of patterns.

    Example:
        >>> gradtx.get_supported_optimizers(["lion", "schedule*"])
        ['lion', 'schedule_free_adamw', 'schedule_free_radam', 'schedule_free_sgd']
    """
    spellings = {alias: [cls.__name__] for alias, cls in _classes().items()}
    return _matching("get_supported_optimizers", filters, spellings)


def get_supported_lr_schedulers(filters: Names = None) -> list[str]:
    """List the names of all learning rate schedulers, or of those that match a filter, sorted.

    Args:
        filters: A wildcard pattern such as "*cosine*", or a list of patterns, any of which may match. None for all.

    Raises:
        TypeError: If `filters` is neither a pattern nor a list of patterns.

    Example:
        >>> gradtx.get_supported_lr_schedulers("warmup*")
        ['warmup_cosine', 'warmup_linear', 'warmup_poly']
    """
    return _matching(
        "get_supported_lr_schedulers", filters, dict.fromkeys(_SCHEDULES, ())
    )


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
    factory = _lookup(
        "load_lr_scheduler",
        "scheduler",
        lr_scheduler_name,
        _SCHEDULES,
        _SCHEDULERS_ELSEWHERE,
    )
    owner = factory.__name__
    names = [argument.name for argument in factory.arguments.all]
    has_rate = "lr" in names
    positional = [name for name in names if name != "lr"]

    def scheduler(
        optimizer: Optimizer, *args: Any, last_epoch: int = -1, **options: Any
    ) -> LRScheduler:
        _check_optimizer(owner, optimizer)
        if len(args) > len(positional):
            raise TypeError(
                f"{owner}: takes at most {len(positional)} arguments after the optimizer"
            )
        arguments = in_its_words(factory.arguments, options)
        for name, value in zip(positional, args, strict=False):
            if name in arguments:
                raise TypeError(f"{owner}: got two values for {name!r}")
            arguments[name] = value
        if not has_rate or "lr" in arguments:
            return ScheduleLR(optimizer, [factory(**arguments)], last_epoch)
        schedule_of_group: list[Schedule] = []
        for group in optimizer.param_groups:
            rate = float(group.get("initial_lr", group["lr"]))
            schedule_of_group.append(factory(lr=rate, **arguments))
        return schedules.as_lr_scheduler(optimizer, schedule_of_group, last_epoch)

    scheduler.__name__ = owner
    scheduler.__doc__ = factory.__doc__
    return scheduler


def _check_optimizer(owner: str, optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"{owner}: the first argument must be the optimizer, got {describe(optimizer)}"
        )


_WITH_LOOKAHEAD = ("ranger", "ranger21")
# Option name in other libraries -> names here with the same values; the first one that the optimizer has applies.
_RENAMED = {
    "weight_decouple": ("decoupled_weight_decay", "no_prox"),
    "ams_bound": ("amsgrad",),
    "n_sma_threshold": ("rho_threshold",),
    "initial_accumulator": ("initial_accumulator_value",),
    "constant": ("small_const",),
    "bias_correction": ("use_bias_correction",),
    "warmup_steps": ("warmup",),
    "p": ("gamma",),
    "dampening": ("damping",),
    "eps_2": ("eps2",),
    "grokfast_alpha": ("alpha",),
    "grokfast_lamb": ("lamb",),
    "lambda_1": ("l1",),
    "lambda_2": ("l2",),
    "grad_accu_steps": ("clip_after",),
    "t_max": ("total_steps",),
    "update_proj_gap": ("every",),
    "warmup_epoch": ("warmup_steps",),
}


def _translated(arguments: Sequence[str], options: Options) -> Options:
    """Translate options of other libraries, with a warning for each; the optimizer raises errors for unknown ones."""
    translated: Options = {}
    for name, value in options.items():
        known = [word for word in _RENAMED.get(name, ()) if word in arguments]
        if name not in arguments and known:
            new_name = known[0]
            if new_name in options:
                raise TypeError(
                    f"create_optimizer: {name!r} is an alias of {new_name!r}, but both are given; pass one"
                )
            warn_user(f"create_optimizer: {name!r} is now {new_name!r}", FutureWarning)
            name = new_name
        translated[name] = value
    return translated


def _parameters(model: Any, weight_decay: Any, ban_list: Sequence[str]) -> Any:
    """Return the parameters for the optimizer; if they have names, in groups with and without decay."""
    if isinstance(model, Tensor) or not isinstance(model, torch.nn.Module | Iterable):
        given = "one tensor" if isinstance(model, Tensor) else describe(model)
        raise TypeError(
            f"create_optimizer: needs a model or a list of parameters, got {given}"
        )
    # By which the ban list may call a parameter.
    names: dict[Tensor, list[str]] = defaultdict(list)
    if isinstance(model, torch.nn.Module):
        items = [item for item in model.named_parameters() if item[1].requires_grad]
        if not items:
            raise ValueError(
                "create_optimizer: the model has no parameter that requires a gradient"
            )
        for prefix, module in named_modules(model):
            kind = type(module).__name__
            for name, param in module.named_parameters(recurse=False):
                full_name = f"{prefix}.{name}" if prefix else name
                names[param] += [full_name, kind, f"{kind}.{name}"]
    else:
        items = list(model)
        if not all(isinstance(item, tuple) and len(item) == 2 for item in items):
            return items  # patterns require names; the user's groups stay unchanged
        for name, param in items:
            names[param].append(name)
    if _is_zero(weight_decay):
        return items
    decayed: dict[str, Any] = {"params": []}
    undecayed: dict[str, Any] = {"params": [], "weight_decay": 0.0}
    for name, param in items:
        group = undecayed if _is_banned(ban_list, names[param]) else decayed
        group["params"].append((name, param))
    return [group for group in (decayed, undecayed) if group["params"]]


def _is_banned(patterns: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a name contains a plain pattern or matches a wildcard pattern."""
    for pattern in patterns:
        has_wildcards = any(character in pattern for character in "*?[")
        for name in names:
            if fnmatch.fnmatchcase(name, pattern) if has_wildcards else pattern in name:
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
        remedy = (
            "muon_for(model)"
            if name == "muon"
            else "partition, by the roles of label_by_role(model),"
        )
        warn_user(
            f"create_optimizer: {name} also steps embeddings and heads ({', '.join(named)}), since they are matrices; "
            f"gradtx.{remedy} sends them to AdamW",
            UserWarning,
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
    compile: bool | str | Mapping[str, Any] = False,
    compile_kwargs: Mapping[str, Any] | None = None,
    state_device: torch.device | str | None = None,
    capturable: bool = False,
    **options: Any,
) -> ChainOptimizer:
    """Create an optimizer by name for a model, with common links before and after it.

    Args:
        model: A module, whose parameters that require a gradient are used; or parameters: tensors, pairs of name and
            tensor, or parameter groups, which are not modified.
        optimizer_name: As for `load_optimizer`.
        lr: The learning rate. None means 1e-3, or no rate if the optimizer does not require one.
        weight_decay: The weight decay, in the optimizer's own form.
        wd_ban_list: Selects parameters without decay, by substrings or wildcard patterns of the parameter's name
            ("blocks.0.bias"), its module's class ("LayerNorm") or both ("LayerNorm.weight"). By default, biases and
            the weights of norms. Parameters without names always have decay.
        use_lookahead: Add `lookahead` after the optimizer, with the options `k`, `alpha` and `pullback_momentum`
            (an option that the optimizer also has goes to the optimizer). Ranger already includes lookahead.
        use_orthograd: Add `orthogonalize_against_params` before the optimizer.
        use_gc: Add `centralize` before the optimizer, with the option `gc_conv_only`. None: the optimizer's default.
        compile: As for `as_optimizer`.
        compile_kwargs: For `compile=True`: `mode` or `options` of `torch.compile`, or individual options.
        state_device: As for `as_optimizer`.
        capturable: As for `as_optimizer`.
        **options: Other options of the optimizer. Option names of other libraries are accepted, with a FutureWarning
            that states the new name.

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
    cls = _class("create_optimizer", optimizer_name)
    alias = cast("Alias[...]", cls._alias)
    name = alias.__name__
    arguments = alias.spec.arguments.by_name
    check_differentiable(options)
    warn_of_engine_options("create_optimizer", options)
    if not _are_strings(wd_ban_list):
        raise TypeError(
            f"create_optimizer: wd_ban_list must be a list of patterns, got {describe(wd_ban_list)}"
        )
    for option in ENGINE_OPTIONS:
        options.pop(option, None)
    if use_lookahead and name in _WITH_LOOKAHEAD:
        warn_user(
            f"create_optimizer: {name} already includes a lookahead; omit use_lookahead",
            UserWarning,
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
    options = _translated([*arguments, "state_dtype", "seed"], options)
    if "weight_decay" in arguments:
        options["weight_decay"] = weight_decay
    elif not _is_zero(weight_decay):
        raise TypeError(f"create_optimizer: {name} has no weight_decay; omit it")
    options.update(_rate(name, arguments, lr))
    if "fallback" in arguments and "fallback" not in options:
        _warn_of_embeddings(name, model)
        options["fallback"] = adamw(
            lr=3e-4, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0
        )
    params = _parameters(model, weight_decay, wd_ban_list)
    if compile is True and compile_kwargs:
        compile = _compile_argument(compile_kwargs)
    engine_options: Options = {
        "compile": compile,
        "state_device": state_device,
        "capturable": capturable,
    }
    if not before and not use_lookahead:
        return cls(params, **options, **engine_options)
    if cls._seeded:
        engine_options["seed"] = options.pop("seed", 0)
    tx = alias(**options)
    if "pullback_momentum" in of_lookahead:
        tx = with_lookahead(tx, **of_lookahead)
    elif use_lookahead:
        tx = chain(tx, lookahead(**of_lookahead))
    return as_optimizer(chain(*before, tx), params, **engine_options)


def _compile_argument(keywords: Mapping[str, Any]) -> str | Options:
    """Convert keyword arguments of `torch.compile` to the argument `compile`.

    Raises:
        ValueError: If both a mode and options are given, which torch rejects as well.
    """
    remaining = dict(keywords)
    mode, options = remaining.pop("mode", None), remaining.pop("options", None)
    remaining.update(options or {})
    if mode is None:
        return remaining
    if remaining:
        raise ValueError(
            "create_optimizer: compile_kwargs contains both a mode and options; pass one of them, as to torch.compile"
        )
    return mode
