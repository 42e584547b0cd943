"""Print docs/from-pytorch-optimizer.md, from the signatures: `python -m tests.migration > docs/...`."""

import enum
import inspect
import sys

import pytorch_optimizer
import torch

import gradtx

PAGE = "docs/from-pytorch-optimizer.md"
TEXT = """# From pytorch_optimizer and torch.optim

`create_optimizer`, `load_optimizer`, `get_supported_optimizers`, `load_lr_scheduler` and `get_supported_lr_schedulers`
have the same signatures as in pytorch_optimizer. Names ignore case, dashes and underscores.

```python
>>> import torch, gradtx
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
>>> optimizer = gradtx.create_optimizer(
...     model, "AdamP", lr=1e-3, weight_decay=1e-3, use_gc=True, use_lookahead=True
... )
>>> scheduler = gradtx.load_lr_scheduler("warmup_cosine")(
...     optimizer, t_max=100, max_lr=1e-3, warmup_steps=10
... )
>>> gradtx.get_supported_optimizers("schedule*")
['schedule_free_adamw', 'schedule_free_radam', 'schedule_free_sgd']

```

Differences:

- `create_optimizer` excludes biases and the weights of all normalization layers from weight decay; pytorch_optimizer
  excludes only biases and the weights of LayerNorm. `wd_ban_list` accepts parts of names and wildcard patterns.
- `create_optimizer` passes all matrices, including embeddings and heads, to "muon" and its variants, and warns;
  `muon_for(model)` trains embeddings and heads with AdamW.
- Instead of `get_optimizer_parameters`, use `mask=`, which every optimizer with `weight_decay` accepts.
- Lookahead, gradient centralization and orthogonal gradients are links of a chain instead of wrappers around an
  optimizer, so there is one state dict and one set of groups. `use_gc` works with every optimizer.
- `adanorm`, `adam_debias`, `rectify`, `fixed_decay` and `kahan_sum` are links, not options: `scale_by_adanorm`,
  `scale_by_adam_hat(debias_first=False)`, `scale_by_radam`, `add_decayed_weights(..., fixed=True)`, and
  `compensate_rounding()` as the last link.
- "ASGD" is torch's averaged SGD; pytorch_optimizer's ASGD is "adaptive_gd".
- `foreach` and `fused` have no effect, which a warning reports; use `compile=True` for speed. `differentiable=True` is
  an error; differentiate through `tx.update` instead.
- Complex parameters step as in torch, with real and imaginary parts as separate entries. Methods that read rows,
  matrices or second derivatives reject them by name. For these, use `torch.view_as_real(tensor)` as the parameter and
  apply `torch.view_as_complex` in the model.
- Gradients must be dense, also for SGD and Adagrad; sparse gradients are rejected. Do not pass `sparse=True` to
  embeddings, or set `param.grad = param.grad.to_dense()` before `step()`: the steps equal those of torch with the
  sparse gradient.
- `create_optimizer` accepts old option names with a FutureWarning. The classes accept the names on this page.

## Optimizers

The column "here" lists the function and the class of `gradtx.optim`. `a` → `b` means that option `a` is named `b` here.
Defaults are those of gradtx, with those of the other library in parentheses. `=` gives the fixed behavior of gradtx if
it does not have the option.

"""
REQUIRED = "required"
OURS = {"params", "state_dtype", "maximize", "compile", "seed"}
ENGINES = {"self", "kwargs", "foreach", "fused", "capturable", "differentiable"}
SAME_NAME_ONLY = {  # classes of pytorch_optimizer that differ from the method of that name in gradtx or torch
    "ASGD": "adaptive_gd",
    "APOLLO": None,
}
NOTES = {
    ("pytorch_optimizer", "ASGD"): "`asgd` is torch's averaged SGD",
    ("pytorch_optimizer", "APOLLO"): "`apollo` is ApolloDQN",
    ("pytorch_optimizer", "AdaFactor"): "no lr with `relative_step`",
    ("pytorch_optimizer", "AdaMod"): "the third beta is `beta3`",
    ("pytorch_optimizer", "ADOPT"): "`clip_lambda` is an exponent of the step, `clip_exponent`",
    ("pytorch_optimizer", "Adan"): "`no_prox` has the meaning of `weight_decouple`",
    ("pytorch_optimizer", "AliG"): "`lr` sets `max_lr`",
    (
        "pytorch_optimizer",
        "AdamC",
    ): "corrects all groups, by the largest rate so far; theirs corrects groups marked `normalized`",
    ("pytorch_optimizer", "AdamMini"): "takes parameters, not the model; `block` replaces the names of modules",
    ("pytorch_optimizer", "FTRL"): "theirs uses the square root in the denominator for any `lr_power`",
    ("pytorch_optimizer", "GrokFastAdamW"): "no `normalize_lr`: divide `lr` by 1 + `lamb`",
    ("pytorch_optimizer", "LaProp"): "here, the decay precedes the step and eps is added once",
    ("pytorch_optimizer", "MARS"): '`mars_type="lion"` is `mars_lion`; `lr_1d=None` means `lr`',
    ("pytorch_optimizer", "SignSGD"): "with `momentum` it is `signum`",
    (
        "pytorch_optimizer",
        "SimplifiedAdEMAMix",
    ): "theirs is a different rule: it averages with 1 - beta1 and corrects v twice",
    ("pytorch_optimizer", "SPAM"): "their warm-up is one step ahead, and wrong from the second restart on",
    ("pytorch_optimizer", "StableSPAM"): "their cosine is one step ahead",
    ("pytorch_optimizer", "BCOS"): "in mode `c`, theirs uses the new momentum where the rule has the old one",
    ("pytorch_optimizer", "FOCUS"): "theirs decays before taking the sign of the pull",
    ("pytorch_optimizer", "TAM"): "the momentum starts at 0; theirs starts at the first gradient",
    ("pytorch_optimizer", "Muon"): "other leaves go to `fallback`, not to `adamw_...`",
    (
        "pytorch_optimizer",
        "A2Grad",
    ): "one damping per entry, as in the paper; theirs has one per leaf and no learning rate",
    ("pytorch_optimizer", "AvaGrad"): "theirs is `lagged_norm=True`",
    ("pytorch_optimizer", "Fira"): "theirs runs AdamW for groups without the key `rank`",
    ("pytorch_optimizer", "GaLore"): "theirs runs AdamW for groups without the key `rank`",
    ("pytorch_optimizer", "Gravity"): "the initial velocity is random and differs, because the random streams differ",
    (
        "pytorch_optimizer",
        "Lamb",
    ): "theirs has no bias correction, bounds the norm of weights by 10 and decays before the ratio",
    ("pytorch_optimizer", "LARS"): "theirs is `min_ndim=2, eps=0` and also dampens the first step",
    ("pytorch_optimizer", "Ranger"): "theirs is `degenerated_to_sgd=True`",
    (
        "pytorch_optimizer",
        "SCION",
    ): "`constraint` is the inverse of `unconstrained` here; theirs does not shrink the weights by default",
    ("pytorch_optimizer", "SophiaH"): "the Hessian estimate is random and differs, because the random streams differ",
    ("pytorch_optimizer", "SRMM"): "theirs overwrites the averaged weights, so it averages only gradients",
    ("pytorch_optimizer", "Yogi"): "theirs initializes the mean with 1e-6 and adds eps after the correction",
    ("torch.optim", "Adafactor"): "`adafactor` is the paper's",
    (
        "torch.optim",
        "LBFGS",
    ): "one update per step, or `step(closure, max_iter=20)`; "
    'line search: `line_search(lbfgs(), conditions="strong_wolfe")`',
    ("torch.optim", "Muon"): "for models with other leaves, pass a `fallback`",
}
SCHEDULER_NOTES = {
    "constant": "`factor=1` and `total_iters=0` by default; theirs is torch's, with 1/3 and 5",
    "linear": "theirs repeats the first rate",
    "cosine": "theirs repeats the first rate",
    "poly": "`poly_order` is -0.5 (the rate falls), theirs 0.5 (the rate rises); theirs repeats the first rate",
    "warmup_stable_decay": "`min_lr_ratio` applies to every `cooldown_type`; theirs jumps at the end except for cosine",
    "chebyshev": "nodes for the number of epochs; theirs are those for the next power of two, the first one thrice",
}
SCHEDULERS = [
    ("ConstantLR", "constant", "constant"),
    ("LinearLR", "", "linear"),
    ("PolynomialLR", "", "polynomial"),
    ("ExponentialLR", "", "exponential"),
    ("StepLR", "step", "step"),
    ("MultiStepLR", "multi_step", "multistep"),
    ("CosineAnnealingLR", "cosine_annealing", "cosine"),
    ("CosineAnnealingWarmRestarts", "cosine_annealing_with_warm_restart", "cosine_warm_restarts"),
    ("OneCycleLR", "one_cycle", "one_cycle"),
    ("CyclicLR", "cyclic", "cyclic"),
    ("LinearScheduler", "linear", "warmup_linear"),
    ("CosineScheduler", "cosine", "warmup_cosine"),
    ("PolyScheduler", "poly", "warmup_poly"),
    ("CosineAnnealingWarmupRestarts", "cosine_annealing_with_warmup", "cosine_warmup_restarts"),
    ("get_wsd_schedule", "warmup_stable_decay", "wsd"),
    ("get_chebyshev_schedule", "chebyshev", "chebyshev"),
]


def options(cls):
    return {
        name: REQUIRED if p.default is p.empty else p.default
        for name, p in inspect.signature(cls).parameters.items()
        if name not in OURS | ENGINES
    }


def shown(value):
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return str(value)


def counterpart(library, name):
    """Return the class of gradtx, or None."""
    if library == "pytorch_optimizer" and name in SAME_NAME_ONLY:
        name = SAME_NAME_ONLY[name]
    try:
        return None if name is None else gradtx.load_optimizer(name)
    except ValueError:
        return None


def fixed_value(cls, option, default):
    """Return the fixed behavior of an optimizer without this option, or None."""
    if option != "weight_decouple":
        return False if option in gradtx._arguments.OTHER_PLACES and isinstance(default, bool) else None
    name = cls._alias.__name__
    return True if name in gradtx.registry._DECOUPLED else False if name in gradtx.registry._COUPLED else None


def regrouped(option, ours):
    """Return the place of a value that is part of an option here or sets several options; None for other options."""
    new, place = gradtx.registry._ENTRIES.get(option, (None, 0))
    shared = gradtx.registry._SHARED.get(option, ())
    if new in ours:
        return f"`{new}[{place}]`"
    return " and ".join(f"`{name}`" for name in shared) if shared and set(shared) <= set(ours) else None


def row(library, name, cls, theirs):
    ours, other = options(cls), options(theirs)
    renamed, missing = [], []
    for option in (option for option in other if option not in ours):
        new = next((new for new in gradtx.registry._RENAMED.get(option, ()) if new in ours), None)
        parts = regrouped(option, ours)
        if parts is not None:
            renamed.append(f"`{option}` → {parts}")
        elif new is not None:
            renamed.append(f"`{option}` → `{new}`")
            other = {**other, new: other[option]}
        else:
            fixed = fixed_value(cls, option, other[option])
            missing.append(f"`{option}`" if fixed is None else f"`{option}` = {fixed}")
    defaults = [
        f"`{option}` {shown(ours[option])} ({shown(value)})"
        for option, value in other.items()
        if option in ours and ours[option] != value and shown(ours[option]) != shown(value)
    ]
    parts = [part for part in (NOTES.get((library, name)), *labelled(renamed, missing, defaults)) if part]
    return f"| {name} | `{cls._alias.__name__}`<br>`{cls.__name__}` | {'<br>'.join(parts)} |"


def labelled(renamed, missing, defaults):
    """Yield a line for each of the three kinds of differences."""
    if renamed:
        yield f"*renamed*: {', '.join(renamed)}"
    if missing:
        yield f"*not here*: {', '.join(missing)}"
    if defaults:
        yield f"*defaults*: {', '.join(defaults)}"


def tables():
    torchs = {
        name: cls
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
    }
    published = {cls.__name__: cls for cls in pytorch_optimizer.optimizer.OPTIMIZER_LIST}
    published = {name: cls for name, cls in published.items() if torchs.get(name) is not cls}
    for library, classes in (("torch.optim", torchs), ("pytorch_optimizer", published)):
        yield f"### {library}\n"
        yield "| there | here | differences |"
        yield "|---|---|---|"
        absent = []
        for name, theirs in sorted(classes.items(), key=lambda item: item[0].lower()):
            cls = counterpart(library, name)
            if cls is None:
                absent.append(name)
            else:
                yield row(library, name, cls, theirs)
        yield f"\nNot here: {', '.join(absent)}.\n"


def page():
    """Return the text of the page."""
    lines = [*tables(), "## Schedulers\n", "| there, its name | here | differences |", "|---|---|---|"]
    for cls, name, ours in SCHEDULERS:
        note = SCHEDULER_NOTES.get(name, "")
        function = gradtx.load_lr_scheduler(ours).__name__
        there = f"{cls}<br>{name}" if name else cls
        lines.append(f"| {there} | {ours}<br>`{function}` | {note} |")
    lines.append("\nFurther schedules are `explore_exploit`, `ranger21` and the untuned warm-ups. `join_schedules`")
    lines.append(
        "corresponds to SequentialLR, and `proportion_schedule` to ProportionScheduler. For groups with separate"
    )
    lines.append("schedules, pass a list to `as_lr_scheduler`; a schedule inside a chain needs no scheduler.")
    return TEXT + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
