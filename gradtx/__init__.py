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
from gradtx.optimizers.adafactor import adafactor, adafactor_torch
from gradtx.optimizers.adam import adam, adam_atan2, adamp, adamw, adopt, adopt_atan2, sgdp
from gradtx.optimizers.classic import adadelta, adagrad, adamax, nadam, rmsprop, rprop
from gradtx.optimizers.matrix import muon, muon_adam_atan2, polar_adam_atan2, scalable_shampoo, shampoo, soap
from gradtx.optimizers.momentum import accsgd, aggmo, gravity, pid, qhadam, qhm
from gradtx.optimizers.sgd import sgd, sgdw
from gradtx.schedules import (
    constant_schedule,
    cosine_schedule,
    join_schedules,
    linear_schedule,
    warmup_cosine_schedule,
)
from gradtx.transforms.accelerated import scale_by_accsgd, scale_by_aggmo, scale_by_gravity, scale_by_pid
from gradtx.transforms.accumulators import scale_by_adadelta, scale_by_adamax, scale_by_rss
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
from gradtx.transforms.decay import add_decayed_weights, add_norm_loss, regenerate_towards_init
from gradtx.transforms.factored import (
    clip_by_block_rms,
    scale_by_adafactor,
    scale_by_adafactor_torch,
    scale_by_factored_rms,
    scale_by_factored_rms_torch,
    scale_by_param_block_rms,
)
from gradtx.transforms.graft import graft
from gradtx.transforms.momentum import ema, trace, trace_ema
from gradtx.transforms.nadam import scale_by_nadam
from gradtx.transforms.orthogonalize import normalize_neurons, orthogonalize, scale_by_shape
from gradtx.transforms.projection import project_scale_invariant
from gradtx.transforms.quasi_hyperbolic import scale_by_qhadam, scale_by_qhm
from gradtx.transforms.rprop import scale_by_rprop
from gradtx.transforms.scaling import scale, scale_by_inverse_time, scale_by_learning_rate
from gradtx.transforms.shampoo import scale_by_scalable_shampoo, scale_by_shampoo
from gradtx.transforms.soap import scale_by_soap
from gradtx.wrappers import accumulate, skip_nonfinite

__version__ = "0.1.0"

__all__ = [
    "Betas",
    "GradientTransformation",
    "Scalar",
    "Schedule",
    "accsgd",
    "accumulate",
    "adadelta",
    "adafactor",
    "adafactor_torch",
    "adagrad",
    "adam",
    "adam_atan2",
    "adamax",
    "adamp",
    "adamw",
    "add_decayed_weights",
    "add_norm_loss",
    "adopt",
    "adopt_atan2",
    "aggmo",
    "alias",
    "apply_updates",
    "as_optimizer",
    "average",
    "centralize",
    "chain",
    "clip_adaptive",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "constant_schedule",
    "cosine_schedule",
    "ema",
    "freeze",
    "graft",
    "gravity",
    "hold_until",
    "is_off",
    "join_schedules",
    "linear_schedule",
    "lookahead",
    "map_after_step",
    "masked",
    "muon",
    "muon_adam_atan2",
    "nadam",
    "normalize_by_std",
    "normalize_neurons",
    "optim",
    "orthogonalize",
    "orthogonalize_against_ema",
    "partition",
    "per_tensor",
    "pid",
    "polar_adam_atan2",
    "project_scale_invariant",
    "qhadam",
    "qhm",
    "record",
    "regenerate_towards_init",
    "rmsprop",
    "rprop",
    "scalable_shampoo",
    "scale",
    "scale_by_accsgd",
    "scale_by_adadelta",
    "scale_by_adafactor",
    "scale_by_adafactor_torch",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adopt",
    "scale_by_adopt_atan2",
    "scale_by_aggmo",
    "scale_by_atan2",
    "scale_by_caution",
    "scale_by_factored_rms",
    "scale_by_factored_rms_torch",
    "scale_by_gravity",
    "scale_by_inverse_time",
    "scale_by_learning_rate",
    "scale_by_nadam",
    "scale_by_param_block_rms",
    "scale_by_pid",
    "scale_by_qhadam",
    "scale_by_qhm",
    "scale_by_rms",
    "scale_by_rprop",
    "scale_by_rss",
    "scale_by_scalable_shampoo",
    "scale_by_shampoo",
    "scale_by_shape",
    "scale_by_soap",
    "schedules",
    "sgd",
    "sgdp",
    "sgdw",
    "shampoo",
    "skip_nonfinite",
    "soap",
    "soft_row_clip",
    "trace",
    "trace_ema",
    "warmup_cosine_schedule",
    "whole_tree",
    "with_lookahead",
]
