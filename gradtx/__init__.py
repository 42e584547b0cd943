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
from gradtx.optim import as_optimizer
from gradtx.optimizers.adam import adam, adam_atan2, adamp, adamw, adopt, adopt_atan2, sgdp
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
from gradtx.optimizers.schedule_free import schedule_free_adamw, schedule_free_sgd
from gradtx.optimizers.sgd import sgd, sgdw
from gradtx.schedules import (
    constant_schedule,
    cosine_schedule,
    join_schedules,
    linear_schedule,
    warmup_cosine_schedule,
)
from gradtx.transforms.adaptive import scale_by_adam, scale_by_adopt, scale_by_rms
from gradtx.transforms.atan2 import (
    orthogonalize_against_ema,
    scale_by_adopt_atan2,
    scale_by_atan2,
    scale_by_caution,
)
from gradtx.transforms.averaging import average, lookahead, with_lookahead
from gradtx.transforms.centralize import centralize, normalize_by_std
from gradtx.transforms.clipping import (
    clip_adaptive,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    soft_row_clip,
)
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
from gradtx.transforms.scaling import scale, scale_by_learning_rate
from gradtx.transforms.schedule_free import schedule_free
from gradtx.wrappers import accumulate, skip_nonfinite

__version__ = "0.1.0"

__all__ = [
    "Betas",
    "GradientTransformation",
    "Scalar",
    "Schedule",
    "accumulate",
    "adam",
    "adam_atan2",
    "adamp",
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
    "ema",
    "freeze",
    "hold_until",
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
    "per_tensor",
    "pnm",
    "prodigy",
    "project_l2_ball",
    "project_scale_invariant",
    "record",
    "regenerate_towards_init",
    "scale",
    "scale_by_adam",
    "scale_by_adapnm",
    "scale_by_adopt",
    "scale_by_adopt_atan2",
    "scale_by_atan2",
    "scale_by_caution",
    "scale_by_dadapt_adagrad",
    "scale_by_dadapt_adam",
    "scale_by_dadapt_adan",
    "scale_by_dadapt_lion",
    "scale_by_dadapt_sgd",
    "scale_by_learning_rate",
    "scale_by_madgrad",
    "scale_by_pnm",
    "scale_by_polyak",
    "scale_by_prodigy",
    "scale_by_rms",
    "scale_by_srmm",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "schedules",
    "sgd",
    "sgdp",
    "sgdw",
    "skip_nonfinite",
    "soft_row_clip",
    "srmm",
    "trace",
    "warmup_cosine_schedule",
    "whole_tree",
    "with_lookahead",
]
