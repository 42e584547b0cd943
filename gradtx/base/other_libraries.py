"""What people of other libraries type, and what to use here: functions, schedulers, and options.

docs/optax-names.md has all names of optax, docs/other-names.md those of `gradtx.base.other_names`.
"""

from __future__ import annotations

from collections.abc import Collection

_WARM_UP = "use gradtx.warmup_cosine_schedule(...) as lr, or as_lr_scheduler(optimizer, schedule)"
_CLIP = "use clip_by_global_norm(...) for the norm of all gradients, clip_by_norm(...) for that of each"
_TORCHOPT = "docs/howto/from-torchopt.md"
_META = f"use MetaOptimizer(net, tx) with any chain, such as sgd(...); see {_TORCHOPT}"
_FUNC = f"use tx.update and apply_updates, which are pure; see {_TORCHOPT}"
_OF_TORCHOPT = (
    *("Optimizer", "SGD", "Adam", "AdamW", "Adamax", "RAdam", "RMSprop", "AdaGrad"),
    "AdaDelta",
)
_BRANCH = f"use the methods extract, recover and stop_gradient of MetaOptimizer; see {_TORCHOPT}"
_AVERAGE = "use average(decay) as the last link for weights, ema(decay) for updates"

# Name -> what to use here, for errors.
COUNTERPARTS = {
    "MultiSteps": "use accumulate(tx, every=...)",
    "multi_transform": "use partition({label: tx, ...}, labels)",
    "inject_hyperparams": "pass a schedule, such as adam(cosine_schedule(lr, 10))",
    "apply_if_finite": "use skip_nonfinite(tx, max_consecutive=...)",
    "adaptive_grad_clip": "use clip_adaptive(...)",
    "normalize": "use normalize_by_global_norm()",
    "amsgrad": "use adam(lr, amsgrad=True)",
    "scale_by_amsgrad": "use scale_by_adam(amsgrad=True)",
    "scale_by_stddev": "use scale_by_rms(0.9, eps_in_root=True, centered=True)",
    "scale_by_novograd": "use chain(scale_by_layer_rms(0.25), trace(0.9))",
    "scale_by_muon": "use chain(trace_ema(0.95, nesterov=True), orthogonalize(), scale_by_shape())",
    "named_chain": "use chain(...)",
    "scale_by_schedule": "use scale(schedule)",
    "set_to_zero": "use scale(0.0)",
    "global_norm": "use torch.nn.utils.get_total_norm",
    "incremental_update": "use average(...)",
    "warmup_cosine_decay_schedule": "use warmup_cosine_schedule(...)",
    "cosine_decay_schedule": "use warmup_cosine_schedule(...) or cosine_schedule(...)",
    "exponential_decay": "use exponential_schedule(...)",
    "sgdr_schedule": "use cosine_warmup_restarts_schedule(...)",
    "tree_utils": "index the state, a dict: state[stage][slot][leaf]",
    **dict.fromkeys([f"Meta{name}" for name in _OF_TORCHOPT], _META),
    **dict.fromkeys([f"Func{name}" for name in _OF_TORCHOPT], _FUNC),
    **dict.fromkeys(
        ("solve_cg", "solve_normal_cg", "solve_inv"), 'use custom_root(..., solve="cg")'
    ),
    "ImplicitMetaGradientModule": "use custom_root(torch.func.grad(loss)), or minimize(tx, loss, start, ...); see "
    "docs/howto/implicit-gradients.md",
    "zero_order": "use zero_order_grad(loss)",
    **dict.fromkeys(
        ("extract_state_dict", "recover_state_dict", "stop_gradient"), _BRANCH
    ),
    "nan_to_num": "use zero_nans()",
    "FusedAdam": "use gradtx.optim.AdamW(params, compile=True)",
    "AdamWScheduleFree": "use gradtx.optim.ScheduleFreeAdamW",
    "ProdigyPlusScheduleFree": "use gradtx.optim.ProdigyScheduleFree",
    "prodigyplus": "use gradtx.optim.ProdigyScheduleFree",
    "AdamCScheduleFreePlusPaper": "use gradtx.optim.ScheduleFreePlus",
    **dict.fromkeys(
        ("KourkoutasSoftmaxFlex", "KourkoutasBeta", "KBeta"),
        "use gradtx.optim.KourkoutasAdamW",
    ),
    "MuonClip": "use gradtx.chain(gradtx.muon(...), gradtx.qk_clip(...)), and pass max_logits to each step",
    "AdamW8bit": 'pass state_dtype="int8" to any optimizer',
    "ZeroRedundancyOptimizer": "use torch.distributed.optim.ZeroRedundancyOptimizer",
    "AveragedModel": "add gradtx.average(...), or use torch.optim.swa_utils.AveragedModel",
    "create_optimizer_v2": "use gradtx.create_optimizer(model, name)",
    "get_cosine_schedule_with_warmup": _WARM_UP,
    **dict.fromkeys(("clip_grad_norm", "clip_norm", "clip_gradients"), _CLIP),
    "clip": "use clip_by_value(...) for entries, clip_by_global_norm(...) for the norm of all gradients",
    "MuonWithAuxAdam": "use muon_for(model)",
    **dict.fromkeys(("EMA", "average_weights", "weight_ema"), _AVERAGE),
    "ExponentialMovingAverage": _AVERAGE,
    "add_weight_decay": "use add_decayed_weights(...), or weight_decay= of an optimizer",
    "scale_by_lr": "use scale_by_learning_rate(lr)",
    "gradient_centralization": "use centralize()",
    "stochastic_rounding": "add round_stochastically() as the last link",
}

# Names in torch and pytorch_optimizer that differ from ours.
SCHEDULERS = {
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

# Options of other libraries -> names here with the same values; the first one that a factory has applies.
OPTIONS = {
    **dict.fromkeys(("learning_rate", "step_size"), ("lr",)),
    **dict.fromkeys(
        ("b1", "b2", "b3", "beta", "beta1", "beta2", "beta3"),
        ("betas", "alpha", "momentum", "decay", "rho"),
    ),
    "weight_decouple": ("decoupled_weight_decay", "no_prox"),
    "history_size": ("history",),
    "ams_bound": ("amsgrad",),
    "n_sma_threshold": ("rho_threshold",),
    "cautious_wd": ("cautious_decay",),
    "initial_accumulator": ("initial_accumulator_value",),
    "constant": ("small_const",),
    "bias_correction": ("use_bias_correction", "correct_bias"),
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
    "mask": ("where",),
}
# Those that are something else here, such as a link, and the hint for each.
HINTS_OF_OPTIONS = {
    **dict.fromkeys(
        ("max_iter", "max_eval"),
        "pass the number of iterations to the step: optimizer.step(closure, max_iter=20)",
    ),
    **dict.fromkeys(
        ("tolerance_grad", "tolerance_change"),
        "steps do not stop on their own: end the loop instead",
    ),
    "line_search_fn": 'use line_search(lbfgs(), conditions="strong_wolfe")',
    "weight_decouple": "this optimizer has only one form of weight decay; omit it",
    "fixed_decay": "add add_decayed_weights(weight_decay, fixed=True) after the optimizer",
    "cautious": "add scale_by_caution(0.0) after the link that computes the direction; for the decay, pass "
    "cautious_decay=True",
    "mask": "wrap the call: masked(..., where) applies it to some parameters",
    "kahan_sum": "add gradtx.compensate_rounding() as the last link",
    "use_gc": "add gradtx.centralize() before the optimizer",
    "use_lookahead": "add gradtx.lookahead() after the optimizer",
    "use_orthograd": "add gradtx.orthogonalize_against_params() before the optimizer",
    "compile_kwargs": "omit it; compile=True writes kernels of its own, which have no options",
}


def plain(name: str) -> str:
    """Return a name in lowercase, without dashes and underscores."""
    return name.replace("-", "").replace("_", "").lower()


def counterpart(name: str) -> str | None:
    """Return the replacement for a name in another library or a paper, or None if it is unknown."""
    # Only here, because only errors need it.
    from gradtx.base.other_names import OTHER_NAMES

    found = {plain(word): use for word, use in COUNTERPARTS.items()}
    for method in OTHER_NAMES:
        for spelling in (method.title, *method.spellings):
            use = f"use {method.chain}; see docs/other-names.md"
            found.setdefault(plain(spelling), use)
    return found.get(plain(name))


def name_here(name: str, known: Collection[str]) -> str | None:
    """Return the known name of another library's option, or None."""
    for word in OPTIONS.get(name, ()):
        if word in known:
            return word
    return None
