"""Optimizers and schedulers by name, with the options that users of pytorch_optimizer know."""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradtx import schedules
from gradtx._arguments import Scalar, describe
from gradtx.core import chain
from gradtx.optim import ChainOptimizer, as_optimizer
from gradtx.optim._groups import REFUSED, refused
from gradtx.optim.classes import CLASSES, AliasOptimizer
from gradtx.optimizers.adam import adamw
from gradtx.transforms.averaging import lookahead, with_lookahead
from gradtx.transforms.centralize import centralize
from gradtx.transforms.projection import orthogonalize_against_params

__all__ = [
    "create_optimizer",
    "get_supported_lr_schedulers",
    "get_supported_optimizers",
    "load_lr_scheduler",
    "load_optimizer",
]

Names = str | Sequence[str] | None

# Biases, and the weights of normalization layers: by the class of their module (LayerNorm, BatchNorm2d, RMSNorm), and
# for parameters without a model by the usual names (norm, norm1, layer_norm).
WD_BAN_LIST = ("bias", "*Norm", "*Norm?d", "*norm.weight", "*norm?.weight")

# Schedules of a learning rate; `proportion` follows one, `join_schedules` is for Python.
_SCHEDULES: dict[str, Callable[..., Any]] = {
    name.removesuffix("_schedule"): getattr(schedules, name)
    for name in schedules.__all__
    if hasattr(getattr(schedules, name), "arguments") and name not in ("join_schedules", "proportion_schedule")
}
# What torch and pytorch_optimizer call them, where that is not our name.
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


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _found(owner: str, what: str, name: Any, known: Mapping[str, Any], others: Mapping[str, str]) -> Any:
    """The entry of a name, or of another name for it; case, dashes and underscores don't count."""
    if not isinstance(name, str):
        raise TypeError(f"{owner}: the name of {what} must be a str, got {describe(name)}")
    names = {_plain(other): own for other, own in others.items()} | {_plain(own): own for own in known}
    if _plain(name) in names:
        return known[names[_plain(name)]]
    raise ValueError(f"{owner}: unknown {what} {name!r}; {_hint(what, _plain(name), names, known)}")


def _hint(what: str, name: str, names: Mapping[str, str], known: Iterable[str]) -> str:
    """What an unknown name was meant to be if it is a slip of the keyboard, else how to see what there is.

    Algorithms have names that look alike (AdamC, FAdam and Adam; AdEMAMix and Adamax): those are no slips.
    """
    slips = [plain for plain in difflib.get_close_matches(name, names, n=3, cutoff=0.8) if not _is_longer(name, plain)]
    if slips and difflib.SequenceMatcher(None, slips[0], name).ratio() > 0.85:
        return f"did you mean {' or '.join(repr(own) for own in dict.fromkeys(names[plain] for plain in slips))}?"
    for start in (name[:n] for n in range(len(name), 1, -1)):
        if any(_plain(own).startswith(start) for own in known):
            lister = "get_supported_optimizers" if what == "optimizer" else "get_supported_lr_schedulers"
            return f"gradtx.{lister}({f'{start}*'!r}) lists those that begin like it"
    return f"known: {', '.join(sorted(known))}"


def _is_longer(name: str, plain: str) -> bool:
    """Whether it has one letter more at an end; a letter that is there twice is a slip."""
    return (name[1:] == plain and name[0] != name[1]) or (name[:-1] == plain and name[-1] != name[-2])


def _matching(owner: str, filters: Names, spellings: Mapping[str, Iterable[str]]) -> list[str]:
    """The names of which a spelling matches one of the wildcard patterns."""
    if filters is None:
        return sorted(spellings)
    patterns = [filters] if isinstance(filters, str) else filters
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"{owner}: filters must be a pattern or a list of patterns, got {describe(filters)}")
    # Inside brackets a dash is a range.
    patterns = [pattern.lower() if "[" in pattern else _plain(pattern) for pattern in patterns]
    return sorted(
        name
        for name, others in spellings.items()
        if any(fnmatch.fnmatchcase(_plain(one), p) for one in (name, *others) for p in patterns)
    )


def load_optimizer(name: str) -> type[AliasOptimizer]:
    """The class of an optimizer: `load_optimizer("adamp")` is `gradtx.optim.AdamP`.

    Args:
        name: Of an alias or of a class; case, dashes and underscores don't count.

    Raises:
        TypeError: a name that is no str.
        ValueError: an unknown name; the nearest ones are listed.

    Example:
        >>> gradtx.load_optimizer("Adam-W").__name__
        'AdamW'
    """
    return _class("load_optimizer", name)


def _class(owner: str, name: Any) -> type[AliasOptimizer]:
    return _found(owner, "optimizer", name, CLASSES, {cls.__name__: own for own, cls in CLASSES.items()})


def get_supported_optimizers(filters: Names = None) -> list[str]:
    """The names of all optimizers, sorted, or of those that match.

    Args:
        filters: A wildcard pattern such as "*adam*" or a list of them; those that match any count. None for all.

    Raises:
        TypeError: something else.

    Example:
        >>> gradtx.get_supported_optimizers(["lion", "schedule*"])
        ['lion', 'schedule_free_adamw', 'schedule_free_radam', 'schedule_free_sgd']
    """
    return _matching("get_supported_optimizers", filters, {own: [cls.__name__] for own, cls in CLASSES.items()})


def get_supported_lr_schedulers(filters: Names = None) -> list[str]:
    """The names of all schedulers of a learning rate, sorted, or of those that match.

    Args:
        filters: A wildcard pattern such as "*cosine*" or a list of them; those that match any count. None for all.

    Raises:
        TypeError: something else.

    Example:
        >>> gradtx.get_supported_lr_schedulers("warmup*")
        ['warmup_cosine', 'warmup_linear', 'warmup_poly']
    """
    return _matching("get_supported_lr_schedulers", filters, {name: [] for name in _SCHEDULES})


def load_lr_scheduler(name: str) -> Callable[..., LRScheduler]:
    """A scheduler by name, to be called as torch's: `load_lr_scheduler("cosine")(optimizer, T_max=10)`.

    What is called takes the optimizer, the arguments of the schedule of this name (`cosine_schedule`) and `last_epoch`,
    and returns `as_lr_scheduler` of it. An `lr` that is left out is that of each group.

    Args:
        name: Of a schedule, or what torch and pytorch_optimizer call it (`CosineAnnealingLR`); case, dashes and
            underscores don't count. "linear" and "cosine" are torch's; pytorch_optimizer's are "warmup_linear" and
            "warmup_cosine".

    Raises:
        TypeError: a name that is no str.
        ValueError: an unknown name; the nearest ones are listed.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> gradtx.load_lr_scheduler("linear")(optimizer, start_factor=0.5).get_last_lr()
        [0.25]
    """
    factory = _found("load_lr_scheduler", "scheduler", name, _SCHEDULES, _SCHEDULERS_ELSEWHERE)
    names = [argument.name for argument in factory.arguments.all]

    def scheduler(optimizer: Optimizer, *args: Any, last_epoch: int = -1, **options: Any) -> LRScheduler:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{factory.__name__}: the first argument must be the optimizer, got {describe(optimizer)}")
        own = "lr" in names and "lr" not in options
        places = [name for name in names if name != "lr"]
        if len(args) > len(places):
            raise TypeError(f"{factory.__name__}: takes at most {len(places)} arguments after the optimizer")
        for place, value in zip(places, args, strict=False):
            if place in options:
                raise TypeError(f"{factory.__name__}: got two values for {place!r}")
            options[place] = value
        if not own:
            return schedules.as_lr_scheduler(optimizer, factory(**options), last_epoch)
        rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        return schedules.as_lr_scheduler(optimizer, [factory(lr=rate, **options) for rate in rates], last_epoch)

    scheduler.__name__, scheduler.__doc__ = factory.__name__, factory.__doc__
    return scheduler


_WITH_LOOKAHEAD = ("ranger", "ranger21")
# Names of options elsewhere. Those of the first table have the same values here, where an optimizer has the new one.
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
}
# Switches that are links or optimizers of their own here.
_SWITCHES = {
    "ams_bound": "it has no amsgrad",
    "adam_debias": "its place is gradtx.adamd, or scale_by_adam_hat(debias_first=False)",
    "fixed_decay": "put add_decayed_weights(weight_decay, fixed=True) behind the optimizer, which gets no decay itself",
    "adanorm": "its place is gradtx.adanorm, or scale_by_adanorm",
    "rectify": "its place is gradtx.radam, or scale_by_radam",
}
_DECOUPLED = frozenset(
    {
        "adafactor", "adafactor_torch", "adahessian", "adam_atan2", "adamp", "adams", "adamw", "adatam", "adopt_atan2",
        "dadapt_lion", "fadam", "focus", "kate", "lion", "muon", "muon_adam_atan2", "optimistic_adam",
        "polar_adam_atan2", "ranger", "ranger21", "sgd_sai", "sgdp", "sgds", "sgdw", "soap", "sophia", "tam",
    }
)  # fmt: skip
_COUPLED = frozenset(
    {
        "accsgd", "aggmo", "asgd", "cocob", "dadapt_adagrad", "dadapt_sgd", "dog", "dowg", "ldog", "pid", "sgd",
        "swats",
    }
)  # fmt: skip


def _translated(alias: str, arguments: Iterable[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in this library's names, with a warning for each that has another one."""
    new: dict[str, Any] = {}

    def warn(message: str) -> None:
        warnings.warn(f"create_optimizer: {message}", FutureWarning, stacklevel=4)

    for name, value in options.items():
        renamed = next((own for own in _RENAMED.get(name, ()) if own in arguments), None)
        if name in arguments:
            new[name] = value
        elif renamed is not None:
            if renamed in options:
                raise TypeError(f"create_optimizer: {name!r} is {renamed!r}, and both are given")
            warn(f"{name!r} is now {renamed!r}")
            new[renamed] = value
        elif name == "weight_decouple":
            placed = True if alias in _DECOUPLED else False if alias in _COUPLED else None
            form = {True: "is decoupled", False: "is added to the gradient", None: "has a form of its own"}[placed]
            if value is not placed:
                raise TypeError(f"create_optimizer: the decay of {alias} {form}; leave 'weight_decouple' out")
            warn(f"the decay of {alias} always {form}; leave 'weight_decouple' out")
        elif name in _SWITCHES:
            if value:
                raise TypeError(f"create_optimizer: {alias} does not take {name!r}; {_SWITCHES[name]}")
            warn(f"{alias} does not take {name!r}; leave it out")
        else:
            new[name] = value  # its own error says what is wrong
    return new


def _parameters(model: Any, weight_decay: Any, ban_list: Sequence[str]) -> Any:
    """What an optimizer is given: groups with and without decay, of named parameters where there are names."""
    if isinstance(model, Tensor):
        raise TypeError("create_optimizer: needs a model or a list of parameters, got one tensor")
    banned: set[int] = set()
    if isinstance(model, torch.nn.Module):
        for prefix, module in model.named_modules():
            kind = type(module).__name__
            for name, param in module.named_parameters(recurse=False):
                if _banned(ban_list, f"{prefix}.{name}" if prefix else name, kind, f"{kind}.{name}"):
                    banned.add(id(param))
        items: list[Any] = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        if not items:
            raise ValueError("create_optimizer: the model has no parameter that requires a gradient")
    else:
        if not isinstance(model, Iterable):
            raise TypeError(f"create_optimizer: needs a model or a list of parameters, got {describe(model)}")
        items = list(model)
        if not all(isinstance(item, tuple) and len(item) == 2 for item in items):
            return items  # without names there is nothing to tell them apart by; groups are as the user made them
        banned = {id(param) for name, param in items if _banned(ban_list, name)}
    if _is_zero(weight_decay):
        return items
    groups = (
        {"params": [item for item in items if id(item[1]) not in banned]},
        {"params": [item for item in items if id(item[1]) in banned], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def _banned(patterns: Sequence[str], *names: str) -> bool:
    """Whether a name contains a pattern, or matches it if that has wildcards."""

    def one(pattern: str, name: str) -> bool:
        return fnmatch.fnmatchcase(name, pattern) if any(c in pattern for c in "*?[") else pattern in name

    return any(one(pattern, name) for pattern in patterns for name in names)


def _numbers(name: str, arguments: Mapping[str, Any], lr: Any, weight_decay: Any) -> dict[str, Any]:
    """Learning rate and decay, under the names that the optimizer has for them."""
    rate = next((own for own in ("lr", "max_lr") if own in arguments), None)
    if lr is not None and rate is None:
        raise TypeError(f"create_optimizer: {name} has no learning rate; leave 'lr' out")
    if not _is_zero(weight_decay) and "weight_decay" not in arguments:
        raise TypeError(f"create_optimizer: {name} has no weight_decay; leave it out")
    found = {"weight_decay": weight_decay} if "weight_decay" in arguments else {}
    if rate is not None and (lr is not None or arguments[rate].required or arguments[rate].default is not None):
        found[rate] = 1e-3 if lr is None else lr
    return found


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
    **options: Any,
) -> ChainOptimizer:
    """An optimizer by name for a model, with the links around it that are often wanted.

    Args:
        model: A module, whose parameters that require a gradient are taken; or parameters: tensors, pairs of name and
            tensor, or groups of your own, which stay as they are.
        optimizer_name: As for `load_optimizer`.
        lr: The learning rate. None: 1e-3, or nothing where the optimizer can do without.
        weight_decay: As the optimizer defines it.
        wd_ban_list: Which parameters get no decay: parts of names, or wildcard patterns, of the parameter
            ("blocks.0.bias"), of its module's class ("LayerNorm") or of both ("LayerNorm.weight"). Biases and the
            weights of norms by default. Parameters without names are all decayed.
        use_lookahead: Put `lookahead` behind it, with the options `k`, `alpha` and `pullback_momentum` (of which those
            that the optimizer itself has are its own). Not for Ranger, which has one.
        use_orthograd: Put `orthogonalize_against_params` in front.
        use_gc: Put `centralize` in front, with the option `gc_conv_only`. None: as the optimizer has it.
        compile: As for `as_optimizer`.
        compile_kwargs: Options of `torch.compile`, read with `compile=True`.
        **options: Other options of the optimizer. Names that other libraries have for them are taken with a
            FutureWarning that tells the new one.

    Returns:
        An instance of `load_optimizer(optimizer_name)`, or with links around it what `as_optimizer` makes.
        `muon` gets `adamw(lr=3e-4, betas=(0.9, 0.95), eps=1e-10)` for what is no matrix, unless `fallback` says more.

    Raises:
        TypeError: an unknown option, an option of another library that has no meaning here.
        ValueError: an unknown name, numbers out of range, no parameters.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
        >>> optimizer = gradtx.create_optimizer(model, "adamp", lr=1e-3, weight_decay=1e-2, use_gc=True)
        >>> [(group["weight_decay"], group["param_names"]) for group in optimizer.param_groups]
        [(0.01, ['0.weight']), (0.0, ['0.bias', '1.weight', '1.bias'])]
    """
    cls = _class("create_optimizer", optimizer_name)
    alias, name, arguments = cls._alias, cls._alias.__name__, cls._alias.spec.arguments.by_name
    for option in REFUSED:
        if option in options:
            raise refused(option, options[option])
    if isinstance(wd_ban_list, str) or not all(isinstance(pattern, str) for pattern in wd_ban_list):
        raise TypeError(f"create_optimizer: wd_ban_list must be a list of patterns, got {describe(wd_ban_list)}")
    if use_lookahead and name in _WITH_LOOKAHEAD:
        warnings.warn(f"create_optimizer: {name} has a lookahead already", UserWarning, stacklevel=2)
        use_lookahead = False

    def taken(*names: str) -> dict[str, Any]:
        """Options of the links around the optimizer, without those that are the optimizer's own."""
        return {key: options.pop(key) for key in names if key in options and key not in arguments}

    links: list[Any] = []
    if use_gc is not None and "use_gc" in arguments:
        options["use_gc"] = use_gc
    elif use_gc:
        links.append(centralize(**{key.removeprefix("gc_"): value for key, value in taken("gc_conv_only").items()}))
    if use_orthograd:
        links.append(orthogonalize_against_params())
    ahead = taken("k", "alpha", "pullback_momentum") if use_lookahead else {}
    own = _numbers(name, arguments, lr, weight_decay)
    options = {**_translated(name, [*arguments, "state_dtype", "seed"], options), **own}
    if name == "muon":
        options.setdefault("fallback", adamw(lr=3e-4, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0))
    params = _parameters(model, weight_decay, wd_ban_list)
    settings: dict[str, Any] = {"compile": dict(compile_kwargs) if compile is True and compile_kwargs else compile}
    if not (links or use_lookahead):
        return cls(params, **options, **settings)
    if cls._seeded and "seed" in options:
        settings["seed"] = options.pop("seed")
    tx = alias(**options)
    if "pullback_momentum" in ahead:
        tx = with_lookahead(tx, **ahead)
    elif use_lookahead:
        tx = chain(tx, lookahead(**ahead))
    return as_optimizer(chain(*links, tx), params, **settings)
