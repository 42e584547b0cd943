"""Composable gradient transformations for PyTorch.

An optimizer is a value, made by `chain()` from small named pieces. It runs as pure functions, under `torch.func`
transforms and `torch.compile`, and, wrapped by `as_optimizer`, as a real `torch.optim.Optimizer`.
"""

from gradtx import optim as optim
from gradtx import schedules as schedules
from gradtx._arguments import Betas, Scalar, Schedule, is_off
from gradtx.combine import freeze, map_after_step, masked, partition
from gradtx.core import GradientTransformation, apply_updates, chain
from gradtx.factories import alias, per_tensor, whole_tree
from gradtx.hessian import hutchinson_hessian_diag
from gradtx.multitask import RotoGrad, pcgrad, pcgrad_backward, rotograd_rotation_loss, rotograd_scale
from gradtx.optim import as_optimizer
from gradtx.optimizers.adam import adam, adam_atan2, adamp, adamw, adopt, adopt_atan2, sgdp
from gradtx.optimizers.adam_relatives import adabelief, adamd, adams, diffgrad, radam, sadam, yogi
from gradtx.optimizers.averaging import madgrad, srmm
from gradtx.optimizers.learning_rate_free import (
    alig,
    dadapt_adagrad,
    dadapt_adam,
    dadapt_adan,
    dadapt_lion,
    dadapt_sgd,
    prodigy,
)
from gradtx.optimizers.positive_negative import adapnm, pnm
from gradtx.optimizers.ranger import ranger, ranger21
from gradtx.optimizers.schedule_free import schedule_free_adamw, schedule_free_sgd
from gradtx.optimizers.second_order import adahessian, sophia
from gradtx.optimizers.sgd import sgd, sgds, sgdw
from gradtx.schedules import (
    constant_schedule,
    cosine_schedule,
    join_schedules,
    linear_schedule,
    ranger21_schedule,
    warmup_cosine_schedule,
)
from gradtx.sharpness import asam, gsam, sam
from gradtx.transforms.adam_hat import scale_by_adam_hat, scale_by_diffgrad, scale_by_yogi
from gradtx.transforms.adaptive import scale_by_adam, scale_by_adopt, scale_by_rms
from gradtx.transforms.atan2 import orthogonalize_against_ema, scale_by_adopt_atan2, scale_by_atan2, scale_by_caution
from gradtx.transforms.averaging import average, lookahead, with_lookahead
from gradtx.transforms.centralize import centralize, normalize_by_std
from gradtx.transforms.clipping import clip_adaptive, clip_by_global_norm, clip_by_norm, clip_by_value, soft_row_clip
from gradtx.transforms.control import hold_until, record
from gradtx.transforms.dadapt import (
    scale_by_dadapt_adagrad,
    scale_by_dadapt_adam,
    scale_by_dadapt_adan,
    scale_by_dadapt_lion,
    scale_by_dadapt_sgd,
)
from gradtx.transforms.decay import add_decayed_weights, add_norm_loss, regenerate_towards_init
from gradtx.transforms.dual_averaging import scale_by_madgrad
from gradtx.transforms.majorization import scale_by_srmm
from gradtx.transforms.momentum import ema, trace
from gradtx.transforms.polyak import project_l2_ball, scale_by_polyak
from gradtx.transforms.positive_negative import scale_by_adapnm, scale_by_pnm
from gradtx.transforms.prodigy import scale_by_prodigy
from gradtx.transforms.projection import project_scale_invariant
from gradtx.transforms.ranger21 import scale_by_ranger21
from gradtx.transforms.rectified import hold_until_rectified, scale_by_belief, scale_by_radam
from gradtx.transforms.scaling import scale, scale_by_learning_rate
from gradtx.transforms.schedule_free import schedule_free
from gradtx.transforms.second_order import scale_by_hessian, scale_by_sophia
from gradtx.transforms.stable_decay import scale_by_adam_stable_decay
from gradtx.wrappers import accumulate, skip_nonfinite

__version__ = "0.1.0"

__all__ = [
    "Betas",
    "GradientTransformation",
    "RotoGrad",
    "Scalar",
    "Schedule",
    "accumulate",
    "adabelief",
    "adahessian",
    "adam",
    "adam_atan2",
    "adamd",
    "adamp",
    "adams",
    "adamw",
    "adapnm",
    "add_decayed_weights",
    "add_norm_loss",
    "adopt",
    "adopt_atan2",
    "alias",
    "alig",
    "apply_updates",
    "as_optimizer",
    "asam",
    "average",
    "centralize",
    "chain",
    "clip_adaptive",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "constant_schedule",
    "cosine_schedule",
    "dadapt_adagrad",
    "dadapt_adam",
    "dadapt_adan",
    "dadapt_lion",
    "dadapt_sgd",
    "diffgrad",
    "ema",
    "freeze",
    "gsam",
    "hold_until",
    "hold_until_rectified",
    "hutchinson_hessian_diag",
    "is_off",
    "join_schedules",
    "linear_schedule",
    "lookahead",
    "madgrad",
    "map_after_step",
    "masked",
    "normalize_by_std",
    "optim",
    "orthogonalize_against_ema",
    "partition",
    "pcgrad",
    "pcgrad_backward",
    "per_tensor",
    "pnm",
    "prodigy",
    "project_l2_ball",
    "project_scale_invariant",
    "radam",
    "ranger",
    "ranger21",
    "ranger21_schedule",
    "record",
    "regenerate_towards_init",
    "rotograd_rotation_loss",
    "rotograd_scale",
    "sadam",
    "sam",
    "scale",
    "scale_by_adam",
    "scale_by_adam_hat",
    "scale_by_adam_stable_decay",
    "scale_by_adapnm",
    "scale_by_adopt",
    "scale_by_adopt_atan2",
    "scale_by_atan2",
    "scale_by_belief",
    "scale_by_caution",
    "scale_by_dadapt_adagrad",
    "scale_by_dadapt_adam",
    "scale_by_dadapt_adan",
    "scale_by_dadapt_lion",
    "scale_by_dadapt_sgd",
    "scale_by_diffgrad",
    "scale_by_hessian",
    "scale_by_learning_rate",
    "scale_by_madgrad",
    "scale_by_pnm",
    "scale_by_polyak",
    "scale_by_prodigy",
    "scale_by_radam",
    "scale_by_ranger21",
    "scale_by_rms",
    "scale_by_sophia",
    "scale_by_srmm",
    "scale_by_yogi",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "schedules",
    "sgd",
    "sgdp",
    "sgds",
    "sgdw",
    "skip_nonfinite",
    "soft_row_clip",
    "sophia",
    "srmm",
    "trace",
    "warmup_cosine_schedule",
    "whole_tree",
    "with_lookahead",
    "yogi",
]
