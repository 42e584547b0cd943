"""Composable gradient transformations for PyTorch.

An optimizer is a value, made by `chain()` from small named pieces. It runs as pure functions, under `torch.func`
transforms and `torch.compile`, and, wrapped by `as_optimizer`, as a real `torch.optim.Optimizer`.
"""

from gradtx import optim as optim
from gradtx import schedules as schedules
from gradtx._arguments import Betas, Scalar, Schedule, is_off
from gradtx.checkpoint import load, save
from gradtx.combine import freeze, map_after_step, masked, partition
from gradtx.core import GradientTransformation, apply_updates, chain
from gradtx.factories import alias, per_tensor, whole_tree
from gradtx.functional import stack, train_step, unstack
from gradtx.hessian import hutchinson_hessian_diag
from gradtx.multitask import RotoGrad, pcgrad, pcgrad_backward, rotograd_rotation_loss, rotograd_scale
from gradtx.optim import as_optimizer
from gradtx.optimizers.adafactor import adafactor, adafactor_torch
from gradtx.optimizers.adam import adam, adam_atan2, adamp, adamw, adopt, adopt_atan2, sgdp
from gradtx.optimizers.adam_relatives import adabelief, adamd, adams, diffgrad, radam, sadam, yogi
from gradtx.optimizers.adaptive import adabound, adamod, adanorm, adashift, adasmooth, avagrad, swats
from gradtx.optimizers.averaging import madgrad, srmm
from gradtx.optimizers.classic import adadelta, adagrad, adamax, nadam, rmsprop, rprop
from gradtx.optimizers.diagonal import acprop, bcos, fadam, kate
from gradtx.optimizers.directed import adatam, focus, sgd_sai, tam
from gradtx.optimizers.inertia import adai, adan, lion
from gradtx.optimizers.layerwise import amos, fromage, lamb, lars, nero, novograd, sm3
from gradtx.optimizers.learning_rate_free import (
    alig,
    dadapt_adagrad,
    dadapt_adam,
    dadapt_adan,
    dadapt_lion,
    dadapt_sgd,
    prodigy,
)
from gradtx.optimizers.matrix import muon, muon_adam_atan2, polar_adam_atan2, scalable_shampoo, shampoo, soap
from gradtx.optimizers.momentum import accsgd, aggmo, gravity, pid, qhadam, qhm
from gradtx.optimizers.noisy import noisy_sgd
from gradtx.optimizers.optimistic import optimistic_adam, optimistic_gradient_descent
from gradtx.optimizers.parameter_free import cocob, dog, dowg, ldog, momo, momo_adam
from gradtx.optimizers.positive_negative import adapnm, pnm
from gradtx.optimizers.quasi_newton import apollo
from gradtx.optimizers.ranger import ranger, ranger21
from gradtx.optimizers.schedule_free import schedule_free_adamw, schedule_free_radam, schedule_free_sgd
from gradtx.optimizers.second_order import adahessian, sophia
from gradtx.optimizers.sgd import adaptive_gd, asgd, sgd, sgds, sgdw
from gradtx.optimizers.variance import a2grad, msvag
from gradtx.registry import (
    create_optimizer,
    get_supported_lr_schedulers,
    get_supported_optimizers,
    load_lr_scheduler,
    load_optimizer,
)
from gradtx.schedules import (
    as_lr_scheduler,
    chebyshev_schedule,
    constant_schedule,
    cosine_schedule,
    cosine_warm_restarts_schedule,
    cosine_warmup_restarts_schedule,
    cyclic_schedule,
    explore_exploit_schedule,
    exponential_schedule,
    get_chebyshev_schedule,
    join_schedules,
    linear_schedule,
    multistep_schedule,
    one_cycle_schedule,
    polynomial_schedule,
    proportion_schedule,
    ranger21_schedule,
    rectification_schedule,
    step_schedule,
    untuned_exponential_warmup,
    untuned_linear_warmup,
    warmup_cosine_schedule,
    warmup_linear_schedule,
    warmup_poly_schedule,
    wsd_schedule,
)
from gradtx.sharpness import asam, gsam, sam
from gradtx.state import get, learning_rate, put
from gradtx.transforms.accelerated import scale_by_accsgd, scale_by_aggmo, scale_by_gravity, scale_by_pid
from gradtx.transforms.accumulators import scale_by_adadelta, scale_by_adamax, scale_by_rss
from gradtx.transforms.acprop import scale_by_acprop
from gradtx.transforms.adam_hat import scale_by_adam_hat, scale_by_diffgrad, scale_by_yogi
from gradtx.transforms.adaptive import scale_by_adam, scale_by_adopt, scale_by_rms
from gradtx.transforms.asgd import scale_by_asgd
from gradtx.transforms.atan2 import orthogonalize_against_ema, scale_by_adopt_atan2, scale_by_atan2, scale_by_caution
from gradtx.transforms.averaging import average, lookahead, with_lookahead
from gradtx.transforms.bcos import scale_by_bcos
from gradtx.transforms.betting import scale_by_cocob
from gradtx.transforms.bounded import scale_by_adabound, scale_by_adamod
from gradtx.transforms.centralize import centralize, normalize_by_std
from gradtx.transforms.clipping import (
    bound_norm,
    clip_adaptive,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    normalize_by_global_norm,
    soft_row_clip,
)
from gradtx.transforms.control import hold_until, record, zero_nans
from gradtx.transforms.covers import scale_by_sm3
from gradtx.transforms.dadapt import (
    scale_by_dadapt_adagrad,
    scale_by_dadapt_adam,
    scale_by_dadapt_adan,
    scale_by_dadapt_lion,
    scale_by_dadapt_sgd,
)
from gradtx.transforms.decay import add_decayed_weights, add_norm_loss, regenerate_towards_init
from gradtx.transforms.delayed import scale_by_adashift, scale_by_avagrad
from gradtx.transforms.distance import scale_by_dog, scale_by_dowg, scale_by_ldog
from gradtx.transforms.dual_averaging import scale_by_madgrad
from gradtx.transforms.factored import (
    clip_by_block_rms,
    scale_by_adafactor,
    scale_by_adafactor_torch,
    scale_by_factored_rms,
    scale_by_factored_rms_torch,
    scale_by_param_block_rms,
)
from gradtx.transforms.fisher import scale_by_fadam
from gradtx.transforms.focus import scale_by_focus
from gradtx.transforms.graft import graft
from gradtx.transforms.gsnr import scale_by_gsnr
from gradtx.transforms.history import scale_by_adanorm, scale_by_adasmooth
from gradtx.transforms.inertia import scale_by_adai
from gradtx.transforms.layer_rms import scale_by_layer_rms
from gradtx.transforms.local_smoothness import scale_by_local_smoothness
from gradtx.transforms.majorization import scale_by_srmm
from gradtx.transforms.model_based import scale_by_momo, scale_by_momo_adam
from gradtx.transforms.model_scale import scale_by_amos
from gradtx.transforms.momentum import ema, trace, trace_ema
from gradtx.transforms.nadam import scale_by_nadam
from gradtx.transforms.nesterov import scale_by_adan
from gradtx.transforms.neurons import project_neurons, scale_by_neuron_norm
from gradtx.transforms.noise import add_noise
from gradtx.transforms.optimistic import scale_by_optimistic_gradient
from gradtx.transforms.orthogonalize import normalize_neurons, orthogonalize, scale_by_shape
from gradtx.transforms.polyak import project_l2_ball, scale_by_polyak
from gradtx.transforms.positive_negative import scale_by_adapnm, scale_by_pnm
from gradtx.transforms.prodigy import scale_by_prodigy
from gradtx.transforms.projection import orthogonalize_against_params, project_scale_invariant
from gradtx.transforms.quasi_hyperbolic import scale_by_qhadam, scale_by_qhm
from gradtx.transforms.quasi_newton import scale_by_apollo
from gradtx.transforms.ranger21 import scale_by_ranger21
from gradtx.transforms.rectified import hold_until_rectified, scale_by_belief, scale_by_radam, scale_by_rectified_rms
from gradtx.transforms.rprop import scale_by_rprop
from gradtx.transforms.scale_invariant import scale_by_kate
from gradtx.transforms.scaling import scale, scale_by_inverse_time, scale_by_learning_rate
from gradtx.transforms.schedule_free import schedule_free
from gradtx.transforms.second_order import scale_by_hessian, scale_by_sophia
from gradtx.transforms.shampoo import scale_by_scalable_shampoo, scale_by_shampoo
from gradtx.transforms.sign import scale_by_lion
from gradtx.transforms.soap import scale_by_soap
from gradtx.transforms.stable_decay import scale_by_adam_stable_decay
from gradtx.transforms.switching import scale_by_swats
from gradtx.transforms.torque import scale_by_adatam, scale_by_tam
from gradtx.transforms.trust_ratio import scale_by_lamb, scale_by_lars, scale_by_trust_ratio
from gradtx.transforms.variance import scale_by_a2grad, scale_by_msvag
from gradtx.wrappers import accumulate, skip_nonfinite

__version__ = "0.1.0"

__all__ = [
    "Betas",
    "GradientTransformation",
    "RotoGrad",
    "Scalar",
    "Schedule",
    "a2grad",
    "accsgd",
    "accumulate",
    "acprop",
    "adabelief",
    "adabound",
    "adadelta",
    "adafactor",
    "adafactor_torch",
    "adagrad",
    "adahessian",
    "adai",
    "adam",
    "adam_atan2",
    "adamax",
    "adamd",
    "adamod",
    "adamp",
    "adams",
    "adamw",
    "adan",
    "adanorm",
    "adapnm",
    "adaptive_gd",
    "adashift",
    "adasmooth",
    "adatam",
    "add_decayed_weights",
    "add_noise",
    "add_norm_loss",
    "adopt",
    "adopt_atan2",
    "aggmo",
    "alias",
    "alig",
    "amos",
    "apollo",
    "apply_updates",
    "as_lr_scheduler",
    "as_optimizer",
    "asam",
    "asgd",
    "avagrad",
    "average",
    "bcos",
    "bound_norm",
    "centralize",
    "chain",
    "chebyshev_schedule",
    "clip_adaptive",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "cocob",
    "constant_schedule",
    "cosine_schedule",
    "cosine_warm_restarts_schedule",
    "cosine_warmup_restarts_schedule",
    "create_optimizer",
    "cyclic_schedule",
    "dadapt_adagrad",
    "dadapt_adam",
    "dadapt_adan",
    "dadapt_lion",
    "dadapt_sgd",
    "diffgrad",
    "dog",
    "dowg",
    "ema",
    "explore_exploit_schedule",
    "exponential_schedule",
    "fadam",
    "focus",
    "freeze",
    "fromage",
    "get",
    "get_chebyshev_schedule",
    "get_supported_lr_schedulers",
    "get_supported_optimizers",
    "graft",
    "gravity",
    "gsam",
    "hold_until",
    "hold_until_rectified",
    "hutchinson_hessian_diag",
    "is_off",
    "join_schedules",
    "kate",
    "lamb",
    "lars",
    "ldog",
    "learning_rate",
    "linear_schedule",
    "lion",
    "load",
    "load_lr_scheduler",
    "load_optimizer",
    "lookahead",
    "madgrad",
    "map_after_step",
    "masked",
    "momo",
    "momo_adam",
    "msvag",
    "multistep_schedule",
    "muon",
    "muon_adam_atan2",
    "nadam",
    "nero",
    "noisy_sgd",
    "normalize_by_global_norm",
    "normalize_by_std",
    "normalize_neurons",
    "novograd",
    "one_cycle_schedule",
    "optim",
    "optimistic_adam",
    "optimistic_gradient_descent",
    "orthogonalize",
    "orthogonalize_against_ema",
    "orthogonalize_against_params",
    "partition",
    "pcgrad",
    "pcgrad_backward",
    "per_tensor",
    "pid",
    "pnm",
    "polar_adam_atan2",
    "polynomial_schedule",
    "prodigy",
    "project_l2_ball",
    "project_neurons",
    "project_scale_invariant",
    "proportion_schedule",
    "put",
    "qhadam",
    "qhm",
    "radam",
    "ranger",
    "ranger21",
    "ranger21_schedule",
    "record",
    "rectification_schedule",
    "regenerate_towards_init",
    "rmsprop",
    "rotograd_rotation_loss",
    "rotograd_scale",
    "rprop",
    "sadam",
    "sam",
    "save",
    "scalable_shampoo",
    "scale",
    "scale_by_a2grad",
    "scale_by_accsgd",
    "scale_by_acprop",
    "scale_by_adabound",
    "scale_by_adadelta",
    "scale_by_adafactor",
    "scale_by_adafactor_torch",
    "scale_by_adai",
    "scale_by_adam",
    "scale_by_adam_hat",
    "scale_by_adam_stable_decay",
    "scale_by_adamax",
    "scale_by_adamod",
    "scale_by_adan",
    "scale_by_adanorm",
    "scale_by_adapnm",
    "scale_by_adashift",
    "scale_by_adasmooth",
    "scale_by_adatam",
    "scale_by_adopt",
    "scale_by_adopt_atan2",
    "scale_by_aggmo",
    "scale_by_amos",
    "scale_by_apollo",
    "scale_by_asgd",
    "scale_by_atan2",
    "scale_by_avagrad",
    "scale_by_bcos",
    "scale_by_belief",
    "scale_by_caution",
    "scale_by_cocob",
    "scale_by_dadapt_adagrad",
    "scale_by_dadapt_adam",
    "scale_by_dadapt_adan",
    "scale_by_dadapt_lion",
    "scale_by_dadapt_sgd",
    "scale_by_diffgrad",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_factored_rms",
    "scale_by_factored_rms_torch",
    "scale_by_fadam",
    "scale_by_focus",
    "scale_by_gravity",
    "scale_by_gsnr",
    "scale_by_hessian",
    "scale_by_inverse_time",
    "scale_by_kate",
    "scale_by_lamb",
    "scale_by_lars",
    "scale_by_layer_rms",
    "scale_by_ldog",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_local_smoothness",
    "scale_by_madgrad",
    "scale_by_momo",
    "scale_by_momo_adam",
    "scale_by_msvag",
    "scale_by_nadam",
    "scale_by_neuron_norm",
    "scale_by_optimistic_gradient",
    "scale_by_param_block_rms",
    "scale_by_pid",
    "scale_by_pnm",
    "scale_by_polyak",
    "scale_by_prodigy",
    "scale_by_qhadam",
    "scale_by_qhm",
    "scale_by_radam",
    "scale_by_ranger21",
    "scale_by_rectified_rms",
    "scale_by_rms",
    "scale_by_rprop",
    "scale_by_rss",
    "scale_by_scalable_shampoo",
    "scale_by_shampoo",
    "scale_by_shape",
    "scale_by_sm3",
    "scale_by_soap",
    "scale_by_sophia",
    "scale_by_srmm",
    "scale_by_swats",
    "scale_by_tam",
    "scale_by_trust_ratio",
    "scale_by_yogi",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "schedules",
    "sgd",
    "sgd_sai",
    "sgdp",
    "sgds",
    "sgdw",
    "shampoo",
    "skip_nonfinite",
    "sm3",
    "soap",
    "soft_row_clip",
    "sophia",
    "srmm",
    "stack",
    "step_schedule",
    "swats",
    "tam",
    "trace",
    "trace_ema",
    "train_step",
    "unstack",
    "untuned_exponential_warmup",
    "untuned_linear_warmup",
    "warmup_cosine_schedule",
    "warmup_linear_schedule",
    "warmup_poly_schedule",
    "whole_tree",
    "with_lookahead",
    "wsd_schedule",
    "yogi",
    "zero_nans",
]
