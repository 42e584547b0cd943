"""Types of this module, written by docs/stubs.py: run `make docs-tables`."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Annotated
from typing import Any
from typing import Literal
import torch
from torch import Tensor
from gradtx.arguments import Scalar
from gradtx.base.selectors import Where
from gradtx.arguments import AnyLength
from gradtx.arguments import AtLeastFour
from gradtx.arguments import AtLeastOne
from gradtx.arguments import AtLeastOneOrInf
from gradtx.arguments import Count
from gradtx.arguments import Decay
from gradtx.arguments import Decays
from gradtx.arguments import Fraction
from gradtx.arguments import FractionOffAtOne
from gradtx.arguments import NonNegative
from gradtx.arguments import NonNegativeInt
from gradtx.arguments import NonPositive
from gradtx.arguments import OpenFraction
from gradtx.arguments import Positive
from gradtx.arguments import PositiveOrInf
from gradtx.arguments import Static
from gradtx.state.storage import StateDtype
from gradtx.transform import GradientTransformation
from gradtx.combinators.coordinates import Bases
from gradtx.combinators.coordinates import Carry
from gradtx.combinators.coordinates import Side
from gradtx.maths.polynomials import Coefficients
from gradtx.maths.polynomials import Mixture
from gradtx.maths.polynomials import StaticCoefficients
from gradtx.maths.polynomials import Steps
from gradtx.links.orthogonal import Adjustment
from gradtx.links.orthogonal import View
from gradtx.algorithms.muon_eq import Sides
from gradtx.algorithms.psgd import Mode
from gradtx.algorithms.sinkgd import Order
from gradtx.algorithms.zero_order import Distribution
from gradtx.algorithms.zero_order import Method
from gradtx.links.record import Quantity
from gradtx.links.lmo import Kind
from gradtx.algorithms.scalable_shampoo import Graft
from gradtx.links.width import Multipliers
from gradtx.arguments import AnyLength as AnyLength
from gradtx.base.exact import Betas as Betas
from gradtx.state.codes import Codec as Codec
from gradtx.execution.context import Context as Context
from gradtx.arguments import Count as Count
from gradtx.arguments import Decay as Decay
from gradtx.arguments import Decays as Decays
from gradtx.watching.findings import Finding as Finding
from gradtx.arguments import Fraction as Fraction
from gradtx.combinators.frame import Frame as Frame
from gradtx.transform import GradientTransformation as GradientTransformation
from gradtx.combinators.frame import InnerClock as InnerClock
from gradtx.model_memory import Memory as Memory
from gradtx.model_memory import MemoryRow as MemoryRow
from gradtx.meta.module import MetaOptimizer as MetaOptimizer
from gradtx.models import ModelOptimizer as ModelOptimizer
from gradtx.watching.noise_scale import NoiseScale as NoiseScale
from gradtx.arguments import NonNegative as NonNegative
from gradtx.arguments import NonNegativeInt as NonNegativeInt
from gradtx.arguments import Positive as Positive
from gradtx.watching.range_test import RangeTest as RangeTest
from gradtx.multitask import RotoGrad as RotoGrad
from gradtx.base.exact import Scalar as Scalar
from gradtx.base.exact import Schedule as Schedule
from gradtx.watching.seen import Seen as Seen
from gradtx.watching.sharpness import Sharpness as Sharpness
from gradtx.combinators.clocks import SkipTest as SkipTest
from gradtx.arguments import Static as Static
from gradtx.sweeps.result import Sweep as Sweep
from gradtx.combinators.top_k import TopK as TopK
from gradtx.schedules import ademamix_alpha_schedule as ademamix_alpha_schedule
from gradtx.rules import alias as alias
from gradtx.transform import apply_updates as apply_updates
from gradtx.schedules import as_lr_scheduler as as_lr_scheduler
from gradtx.optim import as_optimizer as as_optimizer
from gradtx.transform import chain as chain
from gradtx.schedules import chebyshev_schedule as chebyshev_schedule
from gradtx.models import collect_input_grams as collect_input_grams
from gradtx.rules import combinator as combinator
from gradtx.schedules import constant_schedule as constant_schedule
from gradtx.schedules import cosine_schedule as cosine_schedule
from gradtx.schedules import cosine_warm_restarts_schedule as cosine_warm_restarts_schedule
from gradtx.schedules import cosine_warmup_restarts_schedule as cosine_warmup_restarts_schedule
from gradtx.registry import create_optimizer as create_optimizer
from gradtx.meta.implicit import custom_fixed_point as custom_fixed_point
from gradtx.meta.implicit import custom_root as custom_root
from gradtx.schedules import cyclic_schedule as cyclic_schedule
from gradtx.watching.diagnose import diagnose as diagnose
from gradtx.base.ambient import eagerly as eagerly
from gradtx.schedules import explore_exploit_schedule as explore_exploit_schedule
from gradtx.schedules import exponential_schedule as exponential_schedule
from gradtx.functional import get as get
from gradtx.schedules import get_chebyshev_schedule as get_chebyshev_schedule
from gradtx.registry import get_supported_lr_schedulers as get_supported_lr_schedulers
from gradtx.registry import get_supported_optimizers as get_supported_optimizers
from gradtx.schedules import half_life_schedule as half_life_schedule
from gradtx.hessian import hutchinson_hessian_diag as hutchinson_hessian_diag
from gradtx.links.lmo import init_for_lmo as init_for_lmo
from gradtx.links.width import init_for_width as init_for_width
from gradtx.arguments import is_off as is_off
from gradtx.schedules import join_schedules as join_schedules
from gradtx.models import label_by_role as label_by_role
from gradtx.models import label_lora as label_lora
from gradtx.functional import learning_rate as learning_rate
from gradtx.schedules import linear_schedule as linear_schedule
from gradtx.checkpoint import load as load
from gradtx.registry import load_lr_scheduler as load_lr_scheduler
from gradtx.registry import load_optimizer as load_optimizer
from gradtx.model_memory import memory as memory
from gradtx.meta.fit import Fit as Fit
from gradtx.meta.curve_fit import curve_fit as curve_fit
from gradtx.meta.least_squares import least_squares as least_squares
from gradtx.meta.minimize import minimize as minimize
from gradtx.schedules import multistep_schedule as multistep_schedule
from gradtx.models import muon_for as muon_for
from gradtx.watching.noise_scale import noise_scale as noise_scale
from gradtx.schedules import one_cycle_schedule as one_cycle_schedule
from gradtx import optim as optim
from gradtx.registry import optimizer_class as optimizer_class
from gradtx.multitask import pcgrad as pcgrad
from gradtx.multitask import pcgrad_backward as pcgrad_backward
from gradtx.rules import per_tensor as per_tensor
from gradtx.schedules import piecewise_constant_schedule as piecewise_constant_schedule
from gradtx.schedules import piecewise_interpolate_schedule as piecewise_interpolate_schedule
from gradtx.schedules import plot as plot
from gradtx.schedules import polynomial_schedule as polynomial_schedule
from gradtx.links.projection import project_neurons as project_neurons
from gradtx import projections as projections
from gradtx.schedules import proportion_schedule as proportion_schedule
from gradtx.functional import put as put
from gradtx.watching.range_test import range_test as range_test
from gradtx.schedules import ranger21_schedule as ranger21_schedule
from gradtx.functional import recorded as recorded
from gradtx.schedules import rectification_schedule as rectification_schedule
from gradtx.schedules import restart_warmup_schedule as restart_warmup_schedule
from gradtx.multitask import rotograd_rotation_loss as rotograd_rotation_loss
from gradtx.multitask import rotograd_scale as rotograd_scale
from gradtx.checkpoint import save as save
from gradtx.functional import scale_gradient as scale_gradient
from gradtx import schedules as schedules
from gradtx.watching.sharpness import sharpness as sharpness
from gradtx.schedules import sigmoid_schedule as sigmoid_schedule
from gradtx.combinators.clocks import skip_large_updates as skip_large_updates
from gradtx.combinators.clocks import skip_not_finite as skip_not_finite
from gradtx import slots as slots
from gradtx.links.clipping import soft_row_clip as soft_row_clip
from gradtx.functional import stack as stack
from gradtx.schedules import step_schedule as step_schedule
from gradtx.sweeps.run import sweep as sweep
from gradtx.functional import train_step as train_step
from gradtx.functional import unstack as unstack
from gradtx.schedules import untuned_exponential_warmup as untuned_exponential_warmup
from gradtx.schedules import untuned_linear_warmup as untuned_linear_warmup
from gradtx.schedules import warmup_cosine_schedule as warmup_cosine_schedule
from gradtx.schedules import warmup_linear_schedule as warmup_linear_schedule
from gradtx.schedules import warmup_poly_schedule as warmup_poly_schedule
from gradtx.watching.watch import watch as watch
from gradtx.watching.watched import watched as watched
from gradtx.rules import whole_tree as whole_tree
from gradtx.links.width import width_multipliers as width_multipliers
from gradtx.schedules import wsd_schedule as wsd_schedule
from gradtx.algorithms.zero_order import zero_order_grad as zero_order_grad

__all__ = [
    "AnyLength",
    "Betas",
    "Codec",
    "Context",
    "Count",
    "Decay",
    "Decays",
    "Finding",
    "Fit",
    "Fraction",
    "Frame",
    "GradientTransformation",
    "InnerClock",
    "Memory",
    "MemoryRow",
    "MetaOptimizer",
    "ModelOptimizer",
    "NoiseScale",
    "NonNegative",
    "NonNegativeInt",
    "Positive",
    "RangeTest",
    "RotoGrad",
    "Scalar",
    "Schedule",
    "Seen",
    "Sharpness",
    "SkipTest",
    "Static",
    "Sweep",
    "TopK",
    "a2grad",
    "accsgd",
    "accumulate",
    "acprop",
    "adabelief",
    "adabound",
    "adadelta",
    "adafactor",
    "adafactor_torch",
    "adagc",
    "adago",
    "adagrad",
    "adahessian",
    "adai",
    "adam",
    "adam_atan2",
    "adam_h",
    "adam_mini",
    "adamax",
    "adamc",
    "adamd",
    "adamod",
    "adamp",
    "adams",
    "adamuon",
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
    "ademamix",
    "ademamix_alpha_schedule",
    "adopt",
    "adopt_atan2",
    "aggmo",
    "alias",
    "alig",
    "amos",
    "amplify_slow_gradients",
    "amplify_slow_gradients_window",
    "ano",
    "apollo",
    "apollo_low_rank",
    "apply_if",
    "apply_updates",
    "aro",
    "as_lr_scheduler",
    "as_optimizer",
    "asam",
    "asgd",
    "asgo",
    "aurora",
    "avagrad",
    "average",
    "balance_energy",
    "bcos",
    "blend_by_agreement",
    "blocks",
    "bound_norm",
    "came",
    "cautious_decay_after",
    "centralize",
    "chain",
    "chebyshev_schedule",
    "clip_adaptive",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "clip_by_zscore",
    "clip_singular_values",
    "clip_spikes",
    "clip_to_history",
    "clip_to_peak_history",
    "cocob",
    "collect_input_grams",
    "combinator",
    "compensate_rounding",
    "conda",
    "constant_schedule",
    "contra_muon",
    "correct_variance",
    "cosine_schedule",
    "cosine_warm_restarts_schedule",
    "cosine_warmup_restarts_schedule",
    "cosmos",
    "couple_pairs",
    "create_optimizer",
    "curve_fit",
    "custom_fixed_point",
    "custom_root",
    "cyclic_schedule",
    "dadapt_adagrad",
    "dadapt_adam",
    "dadapt_adan",
    "dadapt_lion",
    "dadapt_sgd",
    "decorrelate",
    "descend",
    "diagnose",
    "differentially_private_aggregate",
    "diffgrad",
    "dion",
    "dion2",
    "distributed_shampoo",
    "dog",
    "dowg",
    "dpsgd",
    "eagerly",
    "ema",
    "ema_nesterov",
    "equilibrate",
    "estimate_gradient",
    "explore_exploit_schedule",
    "exponential_schedule",
    "fadam",
    "fira",
    "floor_relative_update",
    "focus",
    "freeze",
    "friendly_sam",
    "fromage",
    "ftrl",
    "galore",
    "get",
    "get_chebyshev_schedule",
    "get_supported_lr_schedulers",
    "get_supported_optimizers",
    "gpa_adamw",
    "graft",
    "grams",
    "gravity",
    "grokfast_adamw",
    "gsam",
    "half_life_schedule",
    "hold_until",
    "hold_until_rectified",
    "hutchinson_hessian_diag",
    "hyperball",
    "init_for_lmo",
    "init_for_width",
    "is_off",
    "join_schedules",
    "kate",
    "keep_norm",
    "kl_shampoo",
    "kl_soap",
    "kourkoutas_adamw",
    "label_by_role",
    "label_lora",
    "lamb",
    "laprop",
    "lars",
    "lbfgs",
    "ldog",
    "learning_rate",
    "least_squares",
    "line_search",
    "linear_schedule",
    "lion",
    "lmo",
    "load",
    "load_lr_scheduler",
    "load_optimizer",
    "lookahead",
    "looksam",
    "low_rank",
    "madgrad",
    "mano",
    "map_after_step",
    "map_tree_after_step",
    "mars_adamw",
    "mars_lion",
    "mask_by_alignment",
    "mask_if",
    "masked",
    "measure",
    "mechanize",
    "memory",
    "mezo",
    "minimize",
    "momo",
    "momo_adam",
    "mousse",
    "msvag",
    "mud",
    "multistep_schedule",
    "muon",
    "muon_adam_atan2",
    "muon_eq",
    "muon_for",
    "muon_h",
    "muown",
    "nadam",
    "namo",
    "namo_d",
    "nero",
    "noise_scale",
    "noisy_sgd",
    "normalize_by_global_norm",
    "normalize_by_norm_history",
    "normalize_by_std",
    "normalize_entries",
    "normalize_neurons",
    "normuon",
    "novograd",
    "one_cycle_schedule",
    "optim",
    "optimistic_adam",
    "optimistic_gradient_descent",
    "optimizer_class",
    "orthogonalize",
    "orthogonalize_against_ema",
    "orthogonalize_against_params",
    "orthogonalize_slices",
    "orthogonalize_tangent",
    "outer",
    "padam",
    "partition",
    "pcgrad",
    "pcgrad_backward",
    "per_tensor",
    "pid",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "plot",
    "pnm",
    "polar_adam_atan2",
    "polargrad",
    "polynomial_schedule",
    "power_entries",
    "precondition_inputs",
    "precondition_pairs",
    "prodigy",
    "prodigy_schedule_free",
    "project_l2_ball",
    "project_neurons",
    "project_scale_invariant",
    "project_tangent",
    "projections",
    "proportion_schedule",
    "psgd_kron",
    "psgd_pro",
    "put",
    "qhadam",
    "qhm",
    "qk_clip",
    "radam",
    "radial_brake",
    "range_test",
    "ranger",
    "ranger21",
    "ranger21_schedule",
    "record",
    "recorded",
    "rectification_schedule",
    "reduce_on_plateau",
    "regenerate_towards_init",
    "restart",
    "restart_warmup_schedule",
    "retract",
    "rmsprop",
    "rose",
    "rotated",
    "rotograd_rotation_loss",
    "rotograd_scale",
    "round_stochastically",
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
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_adopt_atan2",
    "scale_by_aggmo",
    "scale_by_agreement_rank",
    "scale_by_amos",
    "scale_by_ano",
    "scale_by_apollo",
    "scale_by_apollo_low_rank",
    "scale_by_asgd",
    "scale_by_atan2",
    "scale_by_avagrad",
    "scale_by_bcos",
    "scale_by_belief",
    "scale_by_block_adam",
    "scale_by_caution",
    "scale_by_cocob",
    "scale_by_confidence",
    "scale_by_dadapt_adagrad",
    "scale_by_dadapt_adam",
    "scale_by_dadapt_adan",
    "scale_by_dadapt_lion",
    "scale_by_dadapt_sgd",
    "scale_by_diffgrad",
    "scale_by_dion",
    "scale_by_distributed_shampoo",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_factored_rms",
    "scale_by_factored_rms_torch",
    "scale_by_fadam",
    "scale_by_fira",
    "scale_by_focus",
    "scale_by_ftrl",
    "scale_by_gradient_rms",
    "scale_by_gravity",
    "scale_by_gsnr",
    "scale_by_hessian",
    "scale_by_inverse_time",
    "scale_by_kate",
    "scale_by_kl_shampoo",
    "scale_by_kourkoutas",
    "scale_by_lamb",
    "scale_by_laprop",
    "scale_by_lars",
    "scale_by_late_rms",
    "scale_by_layer_rms",
    "scale_by_lbfgs",
    "scale_by_ldog",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_local_smoothness",
    "scale_by_lora_rite",
    "scale_by_madgrad",
    "scale_by_mean_side",
    "scale_by_momo",
    "scale_by_momo_adam",
    "scale_by_msvag",
    "scale_by_muown",
    "scale_by_nadam",
    "scale_by_neuron_norm",
    "scale_by_norm_ratio",
    "scale_by_nuclear_norm",
    "scale_by_optimistic_gradient",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "scale_by_pid",
    "scale_by_pnm",
    "scale_by_polyak",
    "scale_by_prodigy",
    "scale_by_prodigy_schedule_free",
    "scale_by_psgd_kron",
    "scale_by_psgd_pro",
    "scale_by_qhadam",
    "scale_by_qhm",
    "scale_by_radam",
    "scale_by_range",
    "scale_by_ranger21",
    "scale_by_rectified_rms",
    "scale_by_rms",
    "scale_by_rprop",
    "scale_by_rss",
    "scale_by_scalable_shampoo",
    "scale_by_schedule_free_plus",
    "scale_by_shampoo",
    "scale_by_shape",
    "scale_by_sign",
    "scale_by_simplified_ademamix",
    "scale_by_sm3",
    "scale_by_soap",
    "scale_by_sophia",
    "scale_by_spam",
    "scale_by_srmm",
    "scale_by_stable_adam",
    "scale_by_stateful",
    "scale_by_swats",
    "scale_by_tam",
    "scale_by_trust_ratio",
    "scale_by_width",
    "scale_by_yogi",
    "scale_gradient",
    "scale_to_radius",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_plus",
    "schedule_free_radam",
    "schedule_free_sgd",
    "schedules",
    "scion",
    "sgd",
    "sgd_sai",
    "sgdp",
    "sgds",
    "sgdw",
    "shampoo",
    "sharpness",
    "sigmoid_schedule",
    "signsgd",
    "signum",
    "simplified_ademamix",
    "sinkgd",
    "skip_large_updates",
    "skip_nonfinite",
    "skip_not_finite",
    "slots",
    "sm3",
    "soap",
    "soap_laprop",
    "soap_muon",
    "soft_row_clip",
    "sophia",
    "spam",
    "spectral_sphere",
    "splus",
    "srmm",
    "stable_adamw",
    "stable_spam",
    "stack",
    "step_schedule",
    "swats",
    "sweep",
    "take_signs_of_gradient",
    "tam",
    "tiger",
    "trac",
    "trace",
    "trace_ema",
    "train_step",
    "unstack",
    "untuned_exponential_warmup",
    "untuned_linear_warmup",
    "warmup_cosine_schedule",
    "warmup_linear_schedule",
    "warmup_poly_schedule",
    "watch",
    "watched",
    "whole_tree",
    "width_multipliers",
    "with_lookahead",
    "with_state_dtype",
    "wsam",
    "wsd_schedule",
    "yogi",
    "zero_nans",
    "zero_order_grad",
]

__version__: str
def a2grad(
    variant: Literal['uni', 'inc', 'exp'] = "uni",
    beta: NonNegative = 10.0,
    lips: Positive = 10.0,
    rho: Decay = 0.5,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def accsgd(
    lr: NonNegative,
    kappa: AtLeastOne = 1000.0,
    xi: NonNegative = 10.0,
    small_const: Annotated[Scalar, '(0, 1]'] = 0.7,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def accumulate(
    tx: GradientTransformation,
    every: Count | Callable[[Tensor], Any],
    use_grad_mean: bool = True,
    skip: Static[SkipTest] | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def acprop(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-16,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = True,
    amsgrad: bool = False,
    momentum_update: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adabelief(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-16,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = True,
    fixed_decay: bool = False,
    rectify: bool = True,
    degenerated_to_sgd: bool = True,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adabound(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    final_lr: NonNegative = 0.1,
    gamma: Positive = 0.001,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    fixed_decay: bool = False,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adadelta(
    lr: NonNegative = 1.0,
    rho: Fraction = 0.9,
    eps: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.0,
    *,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adafactor(
    lr: NonNegative | None = None,
    eps: tuple[Positive, NonNegative] = (1e-30, 0.001),
    clip_threshold: Positive = 1.0,
    decay_rate: NonPositive = -0.8,
    beta1: Decay | None = None,
    weight_decay: NonNegative = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adafactor_torch(
    lr: NonNegative = 0.01,
    beta2_decay: NonPositive = -0.8,
    eps: tuple[NonNegative | None, NonNegative] = (None, 0.001),
    d: AtLeastOne = 1.0,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adagc(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    beta: Decay = 0.98,
    lambda_abs: Positive = 1.0,
    lambda_rel: Positive = 1.05,
    warmup_steps: NonNegativeInt = 100,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adago(
    lr: NonNegative = 0.05,
    momentum: Decay = 0.95,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
    gamma: Positive = 10.0,
    eps: NonNegative = 0.0005,
    v0: Positive = 0.001,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adagrad(
    lr: NonNegative = 0.01,
    lr_decay: NonNegative = 0.0,
    weight_decay: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 0.0,
    eps: NonNegative = 1e-10,
    *,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adahessian(
    lr: NonNegative = 0.15,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 0.0001,
    weight_decay: NonNegative = 0.0,
    hessian_power: Fraction = 1.0,
    update_period: Count = 1,
    spatial_average: bool = True,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adai(
    lr: NonNegative,
    betas: Decays = (0.1, 0.99),
    eps: OpenFraction = 0.001,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    dampening: Fraction = 1.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adam(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = False,
    *,
    decoupled_weight_decay: bool = False,
    correct_bias: Static[bool] = True,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adam_atan2(
    lr: NonNegative = 0.0001,
    betas: Decays = (0.9, 0.99),
    weight_decay: NonNegative = 0.0,
    regen_reg_rate: NonNegative = 0.0,
    decoupled_wd: bool = False,
    cautious_wd: bool = False,
    cautious_factor: FractionOffAtOne = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
    *,
    wasserstein_reg: bool = False,
    orthog_grad: bool = False,
    orig_grad_ema_beta: Decay = 0.9,
    clip_to_grok: bool = False,
    clip_to_grok_max_norm: Annotated[Scalar, '(1, inf)'] = 2.0,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adam_h(
    lr: NonNegative = 0.01,
    betas: Decays = (0.9, 0.95),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adam_mini(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    block: Count | Literal['row', 'tensor'] = "row",
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adamax(
    lr: NonNegative = 0.002,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    *,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adamc(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.01,
    amsgrad: bool = False,
    max_lr: Positive | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adamd(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adamod(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    beta3: Decay = 0.999,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = True,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adamp(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adams(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0001,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adamuon(
    lr: NonNegative = 0.02,
    weight_decay: NonNegative = 0.01,
    betas: Decays = (0.95, 0.999),
    nesterov: bool = True,
    eps: NonNegative = 1e-08,
    sign: bool = False,
    rescale: Literal['sqrt_min', 'rms'] | None = "sqrt_min",
    correct_bias: bool = True,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "match_rms_adamw",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adamw(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.01,
    amsgrad: bool = False,
    *,
    correct_bias: Static[bool] = True,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adan(
    lr: NonNegative = 0.001,
    betas: Decays = (0.98, 0.92, 0.99),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    max_grad_norm: Annotated[Scalar, '[0, inf]'] = 0.0,
    no_prox: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adanorm(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    r: Decay = 0.95,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    accumulate_eps: bool = False,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adapnm(
    lr: NonNegative = 0.001,
    betas: tuple[Decay, Decay, Fraction] = (0.9, 0.999, 1.0),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = True,
    decoupled_weight_decay: bool = True,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adaptive_gd(
    lr: NonNegative = 0.2,
    amplifier: NonNegative = 0.02,
    damping: Positive = 1.0,
    theta: PositiveOrInf = 1.0,
    eps: NonNegative = 1e-05,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adashift(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    keep_num: Count = 10,
    eps: NonNegative = 1e-10,
    reduce: Literal['max', 'mean', 'none'] = "max",
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adasmooth(
    lr: NonNegative = 0.001,
    betas: Decays = (0.5, 0.99),
    eps: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    reset_every: Count | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adatam(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    decay_rate: Decay = 0.9,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def add_decayed_weights(
    weight_decay: NonNegative,
    *,
    fixed: bool = False,
    cautious: Literal[True, False, 'inclusive'] = False,
    relative_to: Scalar | None = None,
    corrected_by: NonNegative | None = None,
    max_lr: Positive | None = None,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def add_noise(
    eta: NonNegative,
    gamma: NonNegative,
    seed: int,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def add_norm_loss(
    factor: NonNegative = 0.0001,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def ademamix(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999, 0.9999),
    alpha: NonNegative = 2.0,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    alpha_warmup: NonNegativeInt | None = None,
    beta3_warmup: NonNegativeInt | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adopt(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.9999),
    eps: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    clip_exponent: NonNegative | None = 0.25,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def adopt_atan2(
    lr: NonNegative = 0.0001,
    betas: Decays = (0.9, 0.99),
    weight_decay: NonNegative = 0.0,
    regen_reg_rate: NonNegative = 0.0,
    decoupled_wd: bool = True,
    cautious_factor: FractionOffAtOne = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def aggmo(
    lr: NonNegative,
    betas: AnyLength[Decays] = (0.0, 0.9, 0.99),
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def alig(
    max_lr: Annotated[Scalar, '[0, inf]'] | None = None,
    momentum: Decay = 0.0,
    adjusted_momentum: bool = False,
    eps: NonNegative = 1e-05,
    max_norm: PositiveOrInf | None = None,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def amos(
    lr: NonNegative = 0.001,
    beta: Decay = 0.999,
    momentum: Decay = 0.0,
    extra_l2: NonNegative = 0.0,
    eta: Scalar | Callable[[torch.Size], float] | None = None,
    slot: Literal['scalar', 'rows', 'full'] = "scalar",
    c_coef: NonNegative = 0.25,
    d_coef: NonNegative = 0.25,
    eps: Positive = 2.350988701644575e-38,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def amplify_slow_gradients(
    alpha: Decay = 0.98,
    lamb: NonNegative = 2.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def amplify_slow_gradients_window(
    window_size: Count = 100,
    lamb: NonNegative = 5.0,
    filter_type: Literal['mean', 'sum'] = "mean",
    warmup: bool = True,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def ano(
    lr: NonNegative = 0.0001,
    betas: Decays = (0.92, 0.99),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    logarithmic: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def apollo(
    lr: NonNegative = 0.01,
    beta: Decay = 0.9,
    eps: Positive = 0.0001,
    rebound: Literal['constant', 'belief'] = "constant",
    warmup: NonNegativeInt = 500,
    init_lr: NonNegative | None = None,
    weight_decay: NonNegative = 0.0,
    weight_decay_type: Literal['L2', 'decoupled', 'stable'] | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def apollo_low_rank(
    lr: NonNegative = 0.01,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.0,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 1.0,
    side: Side = "short",
    projection: Bases = "random",
    scale_type: Literal['channel', 'tensor'] = "channel",
    scale_front: bool = False,
    limit: AtLeastOne = 1.01,
    seed: int = 0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def apply_if(
    tx: GradientTransformation,
    condition: Static[Callable[..., Any]],
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def aro(
    lr: NonNegative = 0.01,
    weight_decay: NonNegative = 0.01,
    momentum: Decay = 0.95,
    nesterov: bool = False,
    base: Literal['sinkhorn', 'row'] = "sinkhorn",
    iterations: Count = 5,
    adjust_lr_fn: Adjustment | None = "none",
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def asam(
    base: GradientTransformation,
    rho: NonNegative = 0.5,
    eta: NonNegative = 0.01,
    eps: NonNegative = 1e-12,
    mask: Static[Callable[[str], bool]] | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def asgd(
    lr: NonNegative = 0.01,
    lambd: NonNegative = 0.0001,
    alpha: NonNegative = 0.75,
    t0: NonNegative = 1000000.0,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def asgo(
    lr: NonNegative = 0.01,
    momentum: Decay = 0.9,
    beta2: Decay = 0.8,
    eps: Positive = 1e-10,
    weight_decay: NonNegative = 0.1,
    factor: NonNegative = 0.2,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def aurora(
    lr: NonNegative = 0.05,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    weight_decay: NonNegative = 0.025,
    balance: NonNegativeInt = 2,
    balance_power: NonNegative = 0.5,
    ns_coefficients: Coefficients = "newton_schulz",
    ns_steps: Steps | None = 12,
    adjust_lr_fn: Adjustment | None = "original",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def avagrad(
    lr: NonNegative = 0.1,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 0.1,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    lagged_norm: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def average(
    decay: Decay | None = None,
    start: NonNegativeInt = 0,
    debias: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def balance_energy(
    steps: NonNegativeInt = 10,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def bcos(
    lr: NonNegative = 0.001,
    beta: Decay = 0.9,
    beta2: Decay | None = None,
    eps: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.1,
    mode: Literal['c', 'm', 'g'] = "c",
    simple_cond: bool = False,
    decoupled_weight_decay: bool = True,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def blend_by_agreement(
    tx: GradientTransformation,
    least: Annotated[Scalar, '[-1, 1)'] = 0.2,
    least_gradient: Scalar = 0.0,
    *,
    floor: Scalar = 0.0,
    cap: Scalar = 1.0,
    eps: NonNegative = 1e-08,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def blocks(
    tx: GradientTransformation,
    where: Static[Where] = "*",
    *,
    heads: Static[int | tuple[int, ...]] | None = None,
    sizes: Static[tuple[int, ...]] | None = None,
    batch: Static[int] | None = None,
    view: Static[tuple[Callable[..., Any], Callable[..., Any]]] | None = None,
    dim: Static[int] = 0,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def bound_norm(
    p_bound: Positive,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def came(
    lr: NonNegative = 0.0002,
    betas: Decays = (0.9, 0.999, 0.9999),
    eps: tuple[Positive, Positive] = (1e-30, 1e-16),
    clip_threshold: Positive = 1.0,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def cautious_decay_after(
    tx: GradientTransformation,
    weight_decay: NonNegative,
    lr: NonNegative,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def centralize(
    conv_only: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def clip_adaptive(
    clipping: Positive = 0.01,
    eps: NonNegative = 0.001,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def clip_by_block_rms(
    threshold: Positive = 1.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def clip_by_global_norm(
    max_norm: PositiveOrInf,
    eps: NonNegative = 1e-06,
    stale: Static[bool] = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def clip_by_norm(
    max_norm: PositiveOrInf,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def clip_by_value(
    max_value: PositiveOrInf,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def clip_by_zscore(
    z_thresh: Positive = 2.5,
    alpha: Decay = 0.97,
    warmup_steps: Count = 25,
    max_norm: PositiveOrInf | None = 1.0,
    eps: NonNegative = 1e-06,
    mode: Literal['zscore', 'percentile'] = "zscore",
    clip_to: Literal['scaled', 'mean'] = "scaled",
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def clip_singular_values(
    bound: Positive = 1.0,
    kind: Literal['hard', 'soft'] = "hard",
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def clip_spikes(
    threshold: Positive = 5000.0,
    beta2: Decay = 0.999,
    clip_after: NonNegativeInt = 20,
    every: Count = 500,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def clip_to_history(
    lambda_rel: Positive = 1.05,
    lambda_abs: Positive = 1.0,
    beta: Decay = 0.98,
    warmup_steps: NonNegativeInt = 100,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def clip_to_peak_history(
    theta: Decay = 0.999,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def cocob(
    alpha: NonNegative = 100.0,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def compensate_rounding(
    bits: Literal[8, 16] = 16,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def conda(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    weight_decay: NonNegative = 0.0,
    eps: NonNegative = 1e-08,
    update_proj_gap: Count = 2000,
    scale: NonNegative = 1.0,
    *,
    stagger: Static[bool] = False,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def contra_muon(
    lr: NonNegative = 0.0375,
    weight_decay: NonNegative = 0.0,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    contra: Scalar = 0.4,
    power_steps: Count = 5,
    ns_coefficients: Coefficients = "newton_schulz",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "original",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def correct_variance(
    gamma: NonNegative = 0.025,
    beta: Decay = 0.95,
    exact: bool = False,
    min_ndim: NonNegativeInt = 0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def cosmos(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    rank: Count = 64,
    lr_ratio: NonNegative = 0.1,
    gamma: NonNegative = 0.2,
    eps: NonNegative = 1e-08,
    nesterov: bool = True,
    weight_decay: NonNegative = 0.0,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def couple_pairs(
    pairs: Static[Mapping[str, str]],
    heads: Count,
    damping: Positive = 0.001,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def dadapt_adagrad(
    lr: NonNegative = 1.0,
    momentum: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
    eps: NonNegative = 1e-06,
    d0: Positive = 1e-06,
    growth_rate: AtLeastOneOrInf = float("inf"),
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def dadapt_adam(
    lr: NonNegative = 1.0,
    betas: Decays = (0.9, 0.999),
    eps: Positive = 1e-08,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    use_bias_correction: bool = False,
    d0: Positive = 1e-06,
    growth_rate: AtLeastOneOrInf = float("inf"),
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def dadapt_adan(
    lr: NonNegative = 1.0,
    betas: Decays = (0.98, 0.92, 0.99),
    eps: Positive = 1e-08,
    weight_decay: NonNegative = 0.02,
    no_prox: bool = False,
    d0: Positive = 1e-06,
    growth_rate: AtLeastOneOrInf = float("inf"),
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def dadapt_lion(
    lr: NonNegative = 1.0,
    betas: Decays = (0.9, 0.99),
    weight_decay: NonNegative = 0.0,
    d0: Positive = 1e-06,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def dadapt_sgd(
    lr: NonNegative = 1.0,
    momentum: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
    d0: Positive = 1e-06,
    growth_rate: AtLeastOneOrInf = float("inf"),
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def decorrelate(
    passes: Count = 1,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def descend(
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def differentially_private_aggregate(
    l2_norm_clip: Positive,
    noise_multiplier: NonNegative,
    seed: int = 0,
    expected_batch_size: Static[Count] | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def diffgrad(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def dion(
    lr: NonNegative = 0.01,
    mu: Decay = 0.95,
    rank: Annotated[float | int, '(0, inf)'] = 1.0,
    weight_decay: NonNegative = 0.01,
    eps: NonNegative = 1e-08,
    adjust_lr_fn: Adjustment | None = "spectral",
    init: Literal['random', 'eye'] = "random",
    seed: int = 0,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def dion2(
    lr: NonNegative = 0.01,
    fraction: Annotated[float | int, '(0, 1]'] = 0.25,
    ef_decay: Decay = 0.95,
    weight_decay: NonNegative = 0.01,
    select: Literal['rows', 'columns', 'short'] = "short",
    beta2: Decay | None = None,
    neuron_eps: NonNegative = 1e-08,
    ns_coefficients: Coefficients = "polar_express",
    ns_steps: int | None = None,
    adjust_lr_fn: Adjustment | None = "spectral",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def distributed_shampoo(
    lr: NonNegative = 0.01,
    betas: tuple[Decay, Fraction] = (0.9, 1.0),
    beta3: Decay | None = None,
    eps: NonNegative = 1e-12,
    weight_decay: NonNegative = 0.0,
    max_preconditioner_dim: Count = 1024,
    target_dims: Count = 1,
    precondition_frequency: Count = 1,
    start_preconditioning_step: Count | None = None,
    use_bias_correction: bool = True,
    exponent: Positive | None = None,
    pseudo_inverse: bool = False,
    graft: Literal['adam', 'rmsprop', 'adagrad', 'sgd'] | None = "adam",
    graft_beta2: Decay = 0.999,
    graft_eps: NonNegative = 1e-08,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def dog(
    lr: NonNegative = 1.0,
    reps_rel: Positive = 1e-06,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    init_eta: NonNegative | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def dowg(
    lr: NonNegative = 1.0,
    eps: Positive = 0.0001,
    init_estim_sq_dist: Positive | None = None,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def dpsgd(
    lr: NonNegative,
    l2_norm_clip: Positive,
    noise_multiplier: NonNegative,
    seed: int = 0,
    momentum: Decay = 0.0,
    nesterov: bool = False,
    expected_batch_size: Static[Count] | None = None,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def ema(
    decay: Decay,
    debias: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def ema_nesterov(
    decay: Decay = 0.99,
    step_size: Scalar = 0.3,
    start: NonNegativeInt = 0,
    stop: NonNegativeInt | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def equilibrate(
    kind: Sides = "row",
    power: Positive = 0.5,
    eps: NonNegative = 1e-08,
    clip: AtLeastOne | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def estimate_gradient(
    method: Static[Method] = "central",
    samples: Static[Count] = 1,
    scale: Positive = 0.001,
    distribution: Static[Distribution] = "normal",
    seed: Static[int] = 0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def fadam(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.1,
    clip: PositiveOrInf = 1.0,
    p: NonNegative = 0.5,
    eps2: NonNegative = 0.01,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def fira(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.0,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 0.25,
    side: Side = "short",
    projection: Bases = "svd",
    carry: Carry = "keep",
    limit: AtLeastOne = 1.01,
    seed: int = 0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def floor_relative_update(
    floor: NonNegative = 0.35,
    per: Literal['leaf', 'row'] = "leaf",
    power: NonNegative = 1.0,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def focus(
    lr: NonNegative = 0.01,
    betas: Decays = (0.9, 0.999),
    gamma: NonNegative = 0.1,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def freeze(
    where: Static[Where],
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def friendly_sam(
    base: GradientTransformation,
    rho: NonNegative = 0.05,
    sigma: NonNegative = 1.0,
    lmbda: Decay = 0.9,
    adaptive: bool = False,
    eps: NonNegative = 1e-12,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def fromage(
    lr: NonNegative = 0.01,
    p_bound: Positive | None = None,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def ftrl(
    lr: NonNegative = 0.001,
    lr_power: NonPositive = -0.5,
    beta: NonNegative = 0.0,
    l1: NonNegative = 0.0,
    l2: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 0.0,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def galore(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.0,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 0.25,
    side: Side = "short",
    projection: Bases = "svd",
    carry: Carry = "keep",
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def gpa_adamw(
    lr: NonNegative = 1.0,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    mu_x: Decay = 0.9967,
    mu_y: OpenFraction = 0.7,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def graft(
    direction: GradientTransformation,
    magnitude: GradientTransformation,
    eps: NonNegative = 1e-16,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def grams(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def gravity(
    lr: NonNegative = 0.1,
    alpha: NonNegative = 0.01,
    beta: Decay = 0.9,
    seed: int = 0,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def grokfast_adamw(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.01,
    alpha: Decay = 0.98,
    lamb: NonNegative = 2.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def gsam(
    base: GradientTransformation,
    rho: NonNegative = 0.05,
    alpha: NonNegative = 0.4,
    adaptive: bool = False,
    eps: NonNegative = 1e-12,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def hold_until(
    t0: NonNegativeInt,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def hold_until_rectified(
    beta2: Decay = 0.999,
    rho_threshold: AtLeastFour = 5.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def hyperball(
    tx: GradientTransformation,
    lr: NonNegative,
    eps: NonNegative = 1e-12,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def kate(
    lr: NonNegative = 0.001,
    delta: NonNegative = 0.0,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def keep_norm(
    eps: NonNegative = 1e-12,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def kl_shampoo(
    lr: NonNegative = 0.003,
    betas: Decays = (0.95, 0.95),
    eps: NonNegative = 1e-08,
    adam_eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    *,
    stagger: Static[bool] = False,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def kl_soap(
    lr: NonNegative = 0.003,
    betas: Decays = (0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    correct_bias: bool = True,
    *,
    stagger: Static[bool] = False,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def kourkoutas_adamw(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    beta2_min: Decay = 0.9,
    spike_beta: Decay = 0.9,
    tiny_spike: NonNegative = 1e-08,
    warmup_steps: NonNegativeInt = 0,
    correct_bias: Literal[True, False, 'exact'] = True,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def lamb(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.0,
    bias_correction: bool = True,
    grad_averaging: bool = True,
    max_grad_norm: PositiveOrInf | None = None,
    trust_clip: bool = False,
    always_adapt: bool = True,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def laprop(
    lr: NonNegative = 0.0004,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-15,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = False,
    centered: bool = False,
    fixed_decay: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def lars(
    lr: NonNegative = 1.0,
    momentum: NonNegative = 0.9,
    dampening: Scalar = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
    trust_coefficient: Positive = 0.001,
    eps: NonNegative = 1e-08,
    trust_clip: bool = False,
    min_ndim: NonNegativeInt = 0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def lbfgs(
    lr: NonNegative = 1.0,
    history: Count = 10,
    curvature: NonNegative = 1e-10,
    first: Literal['l1', 'none'] = "l1",
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def ldog(
    lr: NonNegative = 1.0,
    reps_rel: Positive = 1e-06,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    init_eta: NonNegative | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def line_search(
    tx: GradientTransformation,
    max_steps: Count = 10,
    shrink: OpenFraction = 0.5,
    c1: OpenFraction = 0.0001,
    start: Positive = 1.0,
    growth: AtLeastOne | None = None,
    conditions: Literal['armijo', 'strong_wolfe'] = "armijo",
    c2: OpenFraction = 0.9,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def lion(
    lr: NonNegative = 0.0001,
    betas: Decays = (0.9, 0.99),
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def lmo(
    kind: Kind = "auto",
    *,
    normalized: bool | None = None,
    transpose: bool = False,
    maximum: bool = False,
    steps: Steps | None = None,
    coefs: StaticCoefficients = "simple",
    eps: NonNegative = 1e-08,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def lookahead(
    k: Count = 5,
    alpha: Fraction = 0.5,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def looksam(
    base: GradientTransformation,
    rho: NonNegative = 0.1,
    k: Count = 10,
    alpha: NonNegative = 0.7,
    adaptive: bool = False,
    eps: NonNegative = 1e-12,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def low_rank(
    tx: GradientTransformation,
    rank: Count,
    every: Count = 200,
    projection: Bases = "svd",
    side: Side = "short",
    scale: NonNegative = 1.0,
    carry: Carry = "keep",
    seed: int = 0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def madgrad(
    lr: NonNegative = 0.01,
    momentum: Decay = 0.9,
    eps: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def mano(
    lr: NonNegative = 0.001,
    weight_decay: NonNegative = 0.1,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    normalize_params: bool = False,
    eps: NonNegative = 1e-08,
    factor: NonNegative = 0.2,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def map_after_step(
    fn: Static[Callable[[Tensor], Tensor]],
    before: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def map_tree_after_step(
    fn: Static[Callable[[dict[str, Tensor]], dict[str, Tensor]]],
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def mars_adamw(
    lr: NonNegative = 0.003,
    betas: Decays = (0.95, 0.99),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    gamma: NonNegative = 0.025,
    amsgrad: bool = False,
    exact: bool = False,
    optimize_1d: bool = False,
    lr_1d: NonNegative | None = None,
    betas_1d: Decays = (0.9, 0.95),
    weight_decay_1d: NonNegative = 0.1,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def mars_lion(
    lr: NonNegative = 0.003,
    beta: Decay = 0.95,
    weight_decay: NonNegative = 0.0,
    gamma: NonNegative = 0.025,
    exact: bool = False,
    optimize_1d: bool = False,
    lr_1d: NonNegative | None = None,
    betas_1d: Decays = (0.9, 0.95),
    eps: NonNegative = 1e-08,
    weight_decay_1d: NonNegative = 0.1,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def mask_by_alignment(
    keep: Fraction = 0.5,
    tau: Positive = 2.0,
    momentum: Decay = 0.9,
    smoothing: Decay = 0.9,
    *,
    seed: int = 0,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def mask_if(
    tx: GradientTransformation,
    condition: Static[Callable[..., Any]],
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def masked(
    tx: GradientTransformation,
    where: Static[Where],
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def measure(
    name: Static[str],
    fn: Static[Callable[[dict[str, Tensor]], Any]],
    decay: Decay = 0.0,
    debias: bool = True,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def mechanize(
    tx: GradientTransformation,
    s_init: Positive = 1e-08,
    s_decay: NonNegative = 0.01,
    betas: AnyLength[Decays] = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999),
    eps: Positive = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def mezo(
    lr: NonNegative = 1e-06,
    scale: Positive = 0.001,
    samples: Static[Count] = 1,
    seed: Static[int] = 0,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def momo(
    lr: NonNegative = 1.0,
    beta: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    lb: Scalar = 0.0,
    bias_correction: bool = False,
    use_fstar: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def momo_adam(
    lr: NonNegative = 0.01,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    lb: Scalar = 0.0,
    proximal_decay: bool = True,
    use_fstar: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def mousse(
    lr: NonNegative = 0.01,
    weight_decay: NonNegative = 0.01,
    momentum: Decay = 0.95,
    nesterov: bool = False,
    beta: Decay = 0.95,
    alpha: NonNegative = 0.125,
    eps: Positive = 1e-10,
    precondition_frequency: Count = 10,
    sides: Literal['both', 'left', 'right'] = "both",
    correct_bias: bool = True,
    graft: bool = True,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "spectral",
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def msvag(
    lr: NonNegative,
    beta: Decay = 0.9,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def mud(
    lr: NonNegative = 0.001,
    weight_decay: NonNegative = 0.01,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    passes: Count = 1,
    eps: NonNegative = 1e-08,
    adjust_lr_fn: Adjustment | None = "match_rms_adamw",
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def muon(
    lr: NonNegative = 0.001,
    weight_decay: NonNegative = 0.1,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    ns_coefficients: Coefficients = (3.4445, -4.775, 2.0315),
    eps: NonNegative = 1e-07,
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = None,
    ns_dtype: torch.dtype | None = torch.bfloat16,
    flatten: bool = False,
    fallback: GradientTransformation | None = None,
    view: View = "matrix",
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def muon_adam_atan2(
    lr: NonNegative = 0.0001,
    betas: Decays = (0.9, 0.99),
    muon_lr: NonNegative | None = None,
    weight_decay: NonNegative = 0.0,
    decoupled_wd: bool = False,
    cautious_factor: FractionOffAtOne = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
    muon_beta1: Decay = 0.95,
    muon_beta2: Decay = 0.95,
    muon_steps: Steps = 5,
    muon_rms_factor: NonNegative = 0.2,
    use_normuon: bool = False,
    normuon_eps: NonNegative = 1e-10,
    matrix_ndims: tuple[Annotated[int, '[2, inf)'], ...] = (2, 3),
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def muon_eq(
    lr: NonNegative = 0.001,
    weight_decay: NonNegative = 0.1,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    normalize: Sides = "row",
    power: Positive = 0.5,
    eps: NonNegative = 1e-08,
    clip: AtLeastOne | None = None,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "match_rms_adamw",
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def muon_h(
    lr: NonNegative = 0.01,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def muown(
    lr: NonNegative = 0.0003,
    momentum: Decay = 0.95,
    weight_decay: NonNegative = 0.0,
    betas: Decays = (0.9, 0.95),
    eps: NonNegative = 1e-08,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "max_dim",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def nadam(
    lr: NonNegative = 0.002,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    momentum_decay: NonNegative = 0.004,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def namo(
    lr: NonNegative = 0.0003,
    weight_decay: NonNegative = 0.01,
    betas: Decays = (0.95, 0.95),
    nesterov: bool = False,
    eps: NonNegative = 1e-08,
    correct_bias: bool = False,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "max_dim",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def namo_d(
    lr: NonNegative = 0.01,
    weight_decay: NonNegative = 0.1,
    betas: Decays = (0.95, 0.99),
    nesterov: bool = True,
    clamp: Fraction = 0.75,
    eps: NonNegative = 1e-08,
    factor: NonNegative = 0.2,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def nero(
    lr: NonNegative = 0.01,
    beta: Decay = 0.999,
    constraints: bool = True,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def noisy_sgd(
    lr: NonNegative,
    eta: NonNegative = 0.01,
    gamma: NonNegative = 0.55,
    seed: int = 0,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def normalize_by_global_norm(
    eps: NonNegative = 1e-06,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def normalize_by_norm_history(
    gammas: Decays = (0.7, 0.9),
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def normalize_by_std(
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def normalize_entries(
    beta: Decay = 0.999,
    eps: NonNegative = 1e-08,
    correct_bias: bool = True,
    rescale: Literal['sqrt_min', 'rms'] | None = "sqrt_min",
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def normalize_neurons(
    beta: Decay = 0.95,
    eps: NonNegative = 1e-10,
    axis: Literal['rows', 'long'] = "rows",
    rms: NonNegative | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def normuon(
    lr: NonNegative = 0.01,
    weight_decay: NonNegative = 0.01,
    momentum: Decay = 0.95,
    beta2: Decay = 0.95,
    nesterov: bool = True,
    eps: NonNegative = 1e-10,
    axis: Literal['rows', 'long'] = "rows",
    rms: NonNegative | None = None,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "original",
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def novograd(
    lr: NonNegative = 0.001,
    betas: Decays = (0.95, 0.98),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    grad_averaging: bool = False,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def optimistic_adam(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def optimistic_gradient_descent(
    lr: NonNegative,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def orthogonalize(
    coefs: StaticCoefficients = (3.4445, -4.775, 2.0315),
    steps: Steps | None = None,
    eps: NonNegative = 1e-07,
    dtype: torch.dtype | None = None,
    view: View = "matrix",
    start: Literal['fro', 'schatten4', 'aol'] = "fro",
    contra: Scalar = 0.0,
    power_steps: Count = 5,
    power: Scalar = 0.0,
    mixture: Mixture | None = None,
    balance: NonNegativeInt = 0,
    balance_power: NonNegative = 0.5,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def orthogonalize_against_ema(
    beta: Decay = 0.9,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def orthogonalize_against_params(
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def orthogonalize_slices(
    fraction: Annotated[float | int, '(0, 1]'] = 0.25,
    ef_decay: Decay = 0.95,
    select: Literal['rows', 'columns', 'short'] = "short",
    beta2: Decay | None = None,
    neuron_eps: NonNegative = 1e-08,
    coefs: Coefficients = "polar_express",
    steps: Steps | None = None,
    dtype: torch.dtype | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def orthogonalize_tangent(
    coefs: StaticCoefficients = "polar_express",
    steps: Steps | None = 8,
    power_steps: Count = 10,
    dtype: torch.dtype | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def outer(
    inner: GradientTransformation,
    tx: GradientTransformation,
    every: Static[Count],
    *,
    fragments: Static[Sequence[str | tuple[str, ...]]] | None = None,
    delay: Static[NonNegativeInt] = 0,
    mix: Fraction = 0.0,
    process_group: Any = None,
    compress: Static[TopK] | None = None,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def padam(
    lr: NonNegative = 0.1,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    partial: Annotated[Scalar, '[0, 0.5]; off at 0.5'] = 0.25,
    amsgrad: bool = True,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def partition(
    transforms: Mapping[str, GradientTransformation],
    labels: Static[Mapping[str, Any] | Callable[[str, Tensor], str]],
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def pid(
    lr: NonNegative,
    momentum: NonNegative = 0.0,
    dampening: Scalar = 0.0,
    integral: Scalar = 5.0,
    derivative: Scalar = 10.0,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def pnm(
    lr: NonNegative,
    betas: tuple[Decay, Fraction] = (0.9, 1.0),
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = True,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def polar_adam_atan2(
    lr: NonNegative = 0.0001,
    betas: Decays = (0.9, 0.99),
    polar_lr: NonNegative | None = None,
    weight_decay: NonNegative = 0.0,
    decoupled_wd: bool = False,
    cautious_factor: FractionOffAtOne = 1.0,
    a: Positive = 1.27,
    b: Positive = 1.0,
    polar_beta1: Decay = 0.95,
    polar_steps: Steps = 5,
    polar_rms_factor: NonNegative = 0.2,
    matrix_ndims: tuple[Annotated[int, '[2, inf)'], ...] = (2, 3),
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def polargrad(
    lr: NonNegative = 0.0003,
    momentum: Decay = 0.95,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.01,
    method: Literal['newton_schulz', 'exact'] = "newton_schulz",
    alpha: NonNegative = 1.0,
    center_rows: bool = False,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Steps | None = None,
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def power_entries(
    power: Positive = 1.2,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def precondition_inputs(
    every: Count = 64,
    rate: Fraction = 0.05,
    *,
    start: Positive = 0.001,
    ridge: NonNegative = 0.2,
    blocks: Static[Count] = 1,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def precondition_pairs(
    pairs: Static[Mapping[str, str]],
    damping: Positive = 1e-06,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def prodigy(
    lr: NonNegative = 1.0,
    betas: Decays = (0.9, 0.999),
    beta3: Decay | None = None,
    eps: Positive = 1e-08,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: Positive = 1e-06,
    d_coef: Positive = 1.0,
    growth_rate: AtLeastOneOrInf = float("inf"),
    slice_p: Count = 1,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def prodigy_schedule_free(
    lr: NonNegative = 1.0,
    betas: tuple[OpenFraction, Decay] = (0.9, 0.99),
    beta3: Decay | None = None,
    weight_decay: NonNegative = 0.0,
    d0: Positive = 1e-06,
    d_coef: Positive = 1.0,
    d_limiter: bool = True,
    prodigy_steps: NonNegativeInt = 0,
    decoupling_c: NonNegative = 0.0,
    eps: Positive | None = 1e-08,
    stable: bool = True,
    slice_p: Count = 11,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def project_l2_ball(
    max_norm: PositiveOrInf,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def project_scale_invariant(
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def project_tangent(
    kind: Literal['rows', 'columns'],
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def psgd_kron(
    lr: NonNegative = 0.0003,
    b1: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    precond_lr: NonNegative = 0.1,
    precond_init_scale: Positive = 1.0,
    precondition_frequency: Count | Literal['annealed'] = "annealed",
    balance_every: Count = 100,
    probes: Literal['expected', 'random'] = "expected",
    seed: int = 0,
    momentum_into_precond_update: bool = True,
    max_size_triangular: NonNegativeInt = 8192,
    min_ndim_triangular: NonNegativeInt = 2,
    memory_save_mode: Mode | None = None,
    merge_dims: bool = True,
    clip_rms: Positive = 1.1,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def psgd_pro(
    lr: NonNegative = 0.003,
    momentum: Decay = 0.9,
    weight_decay: NonNegative = 0.01,
    beta_lip: Decay = 0.9,
    precond_lr: NonNegative = 0.1,
    precond_init_scale: Positive = 1.0,
    damping_noise_scale: NonNegative = 0.1,
    min_precond_lr: NonNegative = 0.01,
    warmup_steps: Positive = 10000.0,
    max_update_rms: NonNegative = 0.0,
    max_precondition_dim: NonNegativeInt = 10000,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def qhadam(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    nus: tuple[Scalar, Fraction] = (1.0, 1.0),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def qhm(
    lr: NonNegative,
    momentum: Decay = 0.999,
    nu: Scalar = 0.7,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def qk_clip(
    roles: Static[Mapping[str, tuple[str, str]]],
    tau: Positive = 100.0,
    alpha: Fraction = 0.5,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def radam(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    rho_threshold: AtLeastFour = 5.0,
    degenerated_to_sgd: bool = True,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def radial_brake(
    outward: Scalar = 0.5,
    inward: Scalar = 1.0,
    form: Literal['direction', 'norm', 'component'] = "direction",
    eps: NonNegative = 1e-08,
    *,
    descent: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def ranger(
    lr: NonNegative = 0.001,
    betas: Decays = (0.95, 0.999),
    eps: NonNegative = 1e-05,
    weight_decay: NonNegative = 0.0,
    alpha: Fraction = 0.5,
    k: Count = 6,
    n_sma_threshold: AtLeastFour = 5.0,
    use_gc: bool = True,
    gc_conv_only: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def ranger21(
    num_iterations: Count,
    lr: NonNegative = 0.001,
    beta0: Fraction = 0.9,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    use_softplus: bool = True,
    beta_softplus: Positive = 50.0,
    num_warm_up_iterations: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    warm_down_min_lr: NonNegative = 3e-05,
    agc_clipping_value: Positive = 0.01,
    agc_eps: NonNegative = 0.001,
    centralize_gradients: bool = True,
    normalize_gradients: bool = True,
    lookahead_merge_time: Count = 5,
    lookahead_blending_alpha: Fraction = 0.5,
    weight_decay: NonNegative = 0.0001,
    norm_loss_factor: NonNegative = 0.0001,
    amsgrad: bool = True,
    chebyshev_epochs: Annotated[int, '[3, inf)'] | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def record(
    name: Static[str | None] = None,
    what: Quantity | tuple[Quantity, ...] = ('norm',),
    per: Literal['leaf', 'all'] = "leaf",
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def reduce_on_plateau(
    factor: Annotated[Scalar, '(0, 1)'] = 0.1,
    patience: Count = 10,
    rtol: Fraction = 0.0001,
    atol: NonNegative = 0.0,
    cooldown: NonNegativeInt = 0,
    accumulation_size: Count = 1,
    min_scale: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def regenerate_towards_init(
    rate: NonNegative,
    wasserstein: bool = False,
    *,
    relative_to: Scalar | None = None,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def restart(
    tx: GradientTransformation,
    every: Count,
    keep_clock: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def retract(
    kind: Literal['polar', 'qr', 'rows', 'columns', 'spectral', 'cap'],
    radius: Positive = 1.0,
    *,
    adjust: Adjustment | None = "none",
    coefs: StaticCoefficients = "newton_schulz",
    steps: Steps | None = None,
    power_steps: Count = 10,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def rmsprop(
    lr: NonNegative = 0.01,
    alpha: NonNegative = 0.99,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    momentum: NonNegative = 0.0,
    centered: bool = False,
    *,
    eps_in_root: bool = False,
    initial_accumulator_value: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def rose(
    lr: NonNegative = 0.001,
    weight_decay: NonNegative = 0.0001,
    centralize: bool = True,
    stabilize: bool = True,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def rotated(
    inner: GradientTransformation,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    *,
    stagger: Static[bool] = False,
    statistics: Literal['shampoo', 'kl'] = "shampoo",
    sides: Literal['both', 'left', 'right', 'short'] = "both",
    beta: Decay = 0.95,
    precondition_1d: bool = False,
    start: Literal['skip', 'identity'] = "skip",
    refresh: Literal['qr', 'eigh', 'svd'] = "qr",
    offset: NonNegativeInt = 1,
    of: Literal['update', 'grad'] = "update",
    eps: NonNegative = 1e-08,
    order: Literal['after', 'before'] = "after",
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def round_stochastically(
    seed: int = 0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def rprop(
    lr: NonNegative = 0.01,
    etas: tuple[OpenFraction, Annotated[Scalar, '(1, inf)']] = (0.5, 1.2),
    step_sizes: tuple[NonNegative, NonNegative] = (1e-06, 50.0),
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def sadam(
    lr: NonNegative = 0.1,
    betas: Decays = (0.9, 0.999),
    beta_softplus: Positive = 50.0,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def sam(
    base: GradientTransformation,
    rho: NonNegative = 0.05,
    adaptive: bool = False,
    eps: NonNegative = 1e-12,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scalable_shampoo(
    lr: NonNegative = 0.001,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    moving_average_for_momentum: bool = False,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    inverse_exponent_override: NonNegativeInt = 0,
    start_preconditioning_step: NonNegativeInt = 25,
    preconditioning_compute_steps: Count = 1000,
    statistics_compute_steps: Count = 1,
    block_size: Count = 512,
    skip_preconditioning_rank_lt: NonNegativeInt = 1,
    no_preconditioning_for_layers_with_dim_gt: NonNegativeInt = 8192,
    shape_interpretation: bool = True,
    graft_type: Graft = "sgd",
    pre_conditioner_type: Literal['all', 'input', 'output'] = "all",
    nesterov: bool = True,
    diagonal_eps: NonNegative = 1e-10,
    matrix_eps: Positive = 1e-06,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale(
    factor: Scalar,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_a2grad(
    variant: Literal['uni', 'inc', 'exp'] = "uni",
    beta: NonNegative = 10.0,
    lips: Positive = 10.0,
    rho: Decay = 0.5,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_accsgd(
    lr: NonNegative,
    kappa: AtLeastOne = 1000.0,
    xi: NonNegative = 10.0,
    small_const: Annotated[Scalar, '(0, 1]'] = 0.7,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_acprop(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-16,
    amsgrad: bool = False,
    momentum_update: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adabound(
    lr: NonNegative,
    final_lr: NonNegative = 0.1,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    gamma: Positive = 0.001,
    amsgrad: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adadelta(
    rho: Fraction = 0.9,
    eps: NonNegative = 1e-06,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adafactor(
    lr: NonNegative | None = None,
    eps: NonNegative = 0.001,
    beta1: Decay | None = None,
    weight_decay: NonNegative = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adafactor_torch(
    lr: NonNegative = 0.01,
    weight_decay: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adai(
    betas: Decays = (0.1, 0.99),
    eps: OpenFraction = 0.001,
    dampening: Fraction = 1.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adam(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    amsgrad: bool = False,
    nesterov: bool = False,
    *,
    correct_bias: bool = True,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adam_hat(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    amsgrad: bool = False,
    debias_first: bool = True,
    softplus: Positive | None = None,
    partial: Annotated[Scalar, '[0, 0.5]; off at 0.5'] = 0.5,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adam_stable_decay(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0001,
    amsgrad: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adamax(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adamod(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    beta3: Decay = 0.999,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adan(
    betas: Decays = (0.98, 0.92, 0.99),
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adanorm(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    r: Decay = 0.95,
    amsgrad: bool = False,
    accumulate_eps: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adapnm(
    betas: tuple[Decay, Decay, Fraction] = (0.9, 0.999, 1.0),
    eps: NonNegative = 1e-08,
    amsgrad: bool = True,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adashift(
    betas: Decays = (0.9, 0.999),
    keep_num: Count = 10,
    eps: NonNegative = 1e-10,
    reduce: Literal['max', 'mean', 'none'] = "max",
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adasmooth(
    betas: Decays = (0.5, 0.99),
    eps: NonNegative = 1e-06,
    reset_every: Count | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adatam(
    betas: Decays = (0.9, 0.999),
    decay_rate: Decay = 0.9,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_ademamix(
    betas: Decays = (0.9, 0.999, 0.9999),
    alpha: NonNegative = 2.0,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adopt(
    betas: Decays = (0.9, 0.9999),
    eps: NonNegative = 1e-06,
    clip_exponent: NonNegative | None = 0.25,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_adopt_atan2(
    betas: Decays = (0.9, 0.99),
    a: Positive = 1.27,
    b: Positive = 1.0,
    cautious_factor: FractionOffAtOne = 1.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_aggmo(
    betas: AnyLength[Decays] = (0.0, 0.9, 0.99),
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_agreement_rank(
    fraction: Annotated[int | float, '(0, 1]'] = 0.5,
    alpha: NonNegative = 2.0,
    gamma: NonNegative = 0.1,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_amos(
    lr: NonNegative = 0.001,
    beta: Decay = 0.999,
    extra_l2: NonNegative = 0.0,
    eta: Scalar | Callable[[torch.Size], float] | None = None,
    slot: Literal['scalar', 'rows', 'full'] = "scalar",
    c_coef: NonNegative = 0.25,
    d_coef: NonNegative = 0.25,
    eps: Positive = 2.350988701644575e-38,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_ano(
    betas: Decays = (0.92, 0.99),
    eps: NonNegative = 1e-08,
    logarithmic: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_apollo(
    beta: Decay = 0.9,
    eps: Positive = 0.0001,
    rebound: Literal['constant', 'belief'] = "constant",
    weight_decay: NonNegative = 0.0,
    weight_decay_type: Literal['decoupled', 'stable'] = "decoupled",
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_apollo_low_rank(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-06,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 1.0,
    side: Side = "short",
    projection: Bases = "random",
    scale_type: Literal['channel', 'tensor'] = "channel",
    scale_front: bool = False,
    limit: AtLeastOne = 1.01,
    seed: int = 0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_asgd(
    lr: NonNegative = 0.01,
    lambd: NonNegative = 0.0001,
    alpha: NonNegative = 0.75,
    t0: NonNegative = 1000000.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_atan2(
    betas: Decays = (0.9, 0.99),
    a: Positive = 1.27,
    b: Positive = 1.0,
    cautious_factor: FractionOffAtOne = 1.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_avagrad(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 0.1,
    lagged_norm: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_bcos(
    beta: Decay = 0.9,
    beta2: Decay | None = None,
    eps: NonNegative = 1e-06,
    mode: Literal['c', 'm', 'g'] = "c",
    simple_cond: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_belief(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-16,
    amsgrad: bool = False,
    rectify: bool = True,
    degenerated_to_sgd: bool = True,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_block_adam(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    block: Count | Literal['row', 'tensor'] = "row",
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_caution(
    factor: FractionOffAtOne = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_cocob(
    alpha: NonNegative = 100.0,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_confidence(
    beta1: Decay = 0.9,
    beta3: Decay = 0.9999,
    eps: Positive = 1e-16,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_dadapt_adagrad(
    lr: NonNegative = 1.0,
    momentum: Decay = 0.0,
    eps: NonNegative = 1e-06,
    d0: Positive = 1e-06,
    growth_rate: AtLeastOneOrInf = float("inf"),
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_dadapt_adam(
    lr: NonNegative = 1.0,
    betas: Decays = (0.9, 0.999),
    eps: Positive = 1e-08,
    weight_decay: NonNegative = 0.0,
    use_bias_correction: bool = False,
    d0: Positive = 1e-06,
    growth_rate: AtLeastOneOrInf = float("inf"),
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_dadapt_adan(
    lr: NonNegative = 1.0,
    betas: Decays = (0.98, 0.92, 0.99),
    eps: Positive = 1e-08,
    weight_decay: NonNegative = 0.02,
    no_prox: bool = False,
    d0: Positive = 1e-06,
    growth_rate: AtLeastOneOrInf = float("inf"),
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_dadapt_lion(
    lr: NonNegative = 1.0,
    betas: Decays = (0.9, 0.99),
    weight_decay: NonNegative = 0.0,
    d0: Positive = 1e-06,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_dadapt_sgd(
    lr: NonNegative = 1.0,
    momentum: Decay = 0.0,
    d0: Positive = 1e-06,
    growth_rate: AtLeastOneOrInf = float("inf"),
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_diffgrad(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_dion(
    mu: Decay = 0.95,
    rank: Annotated[float | int, '(0, inf)'] = 1.0,
    eps: NonNegative = 1e-08,
    init: Literal['random', 'eye'] = "random",
    seed: int = 0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_distributed_shampoo(
    betas: tuple[Decay, Fraction] = (0.9, 1.0),
    beta3: Decay | None = None,
    eps: NonNegative = 1e-12,
    max_preconditioner_dim: Count = 1024,
    target_dims: Count = 1,
    precondition_frequency: Count = 1,
    start_preconditioning_step: Count | None = None,
    use_bias_correction: bool = True,
    exponent: Positive | None = None,
    pseudo_inverse: bool = False,
    graft: Literal['adam', 'rmsprop', 'adagrad', 'sgd'] | None = "adam",
    graft_beta2: Decay = 0.999,
    graft_eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_dog(
    reps_rel: Positive = 1e-06,
    eps: NonNegative = 1e-08,
    init_eta: NonNegative | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_dowg(
    eps: Positive = 0.0001,
    init_estim_sq_dist: Positive | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_factored_rms(
    decay_rate: NonPositive = -0.8,
    eps: Positive = 1e-30,
    beta: Decay | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_factored_rms_torch(
    beta2_decay: NonPositive = -0.8,
    eps: NonNegative | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_fadam(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.1,
    clip: PositiveOrInf = 1.0,
    p: NonNegative = 0.5,
    eps2: NonNegative = 0.01,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_fira(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-06,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 0.25,
    side: Side = "short",
    projection: Bases = "svd",
    carry: Carry = "keep",
    limit: AtLeastOne = 1.01,
    seed: int = 0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_focus(
    betas: Decays = (0.9, 0.999),
    gamma: NonNegative = 0.1,
    weight_decay: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_ftrl(
    lr: NonNegative = 0.001,
    lr_power: NonPositive = -0.5,
    beta: NonNegative = 0.0,
    l1: NonNegative = 0.0,
    l2: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_gradient_rms(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_gravity(
    lr: NonNegative,
    alpha: NonNegative = 0.01,
    beta: Decay = 0.9,
    seed: int = 0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_gsnr(
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_hessian(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 0.0001,
    hessian_power: Fraction = 1.0,
    update_period: Count = 1,
    spatial_average: bool = True,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_inverse_time(
    lr_decay: NonNegative,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_kate(
    delta: NonNegative = 0.0,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_kl_shampoo(
    betas: Decays = (0.95, 0.95),
    eps: NonNegative = 1e-08,
    adam_eps: NonNegative = 1e-08,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    *,
    stagger: Static[bool] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_kourkoutas(
    betas: Decays = (0.9, 0.999),
    beta2_min: Decay = 0.9,
    spike_beta: Decay = 0.9,
    tiny_spike: NonNegative = 1e-08,
    warmup_steps: NonNegativeInt = 0,
    correct_bias: Literal[True, False, 'exact'] = True,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_lamb(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-06,
    bias_correction: bool = True,
    grad_averaging: bool = True,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_laprop(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-15,
    amsgrad: bool = False,
    centered: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_lars(
    trust_coefficient: Positive = 0.001,
    weight_decay: NonNegative = 0.0,
    eps: NonNegative = 1e-08,
    trust_clip: bool = False,
    min_ndim: NonNegativeInt = 0,
    lr: NonNegative | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_late_rms(
    beta: Decay = 0.9,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_layer_rms(
    beta: Decay = 0.98,
    eps: NonNegative = 1e-08,
    amsgrad: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_lbfgs(
    history: Count = 10,
    curvature: NonNegative = 1e-10,
    first: Literal['l1', 'none'] = "l1",
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_ldog(
    reps_rel: Positive = 1e-06,
    eps: NonNegative = 1e-08,
    init_eta: NonNegative | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_learning_rate(
    lr: NonNegative,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_lion(
    betas: Decays = (0.9, 0.99),
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_local_smoothness(
    lr: NonNegative = 0.2,
    amplifier: NonNegative = 0.02,
    damping: Positive = 1.0,
    theta: PositiveOrInf = 1.0,
    eps: NonNegative = 1e-05,
    weight_decay: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_lora_rite(
    pairs: Static[Mapping[str, str]],
    betas: Decays = (0.9, 0.999),
    eps: Positive = 1e-06,
    *,
    clip: NonNegative = 1.0,
    skip: NonNegative = 1.0,
    cap: NonNegative = 0.0,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_madgrad(
    lr: NonNegative = 0.01,
    momentum: Decay = 0.9,
    eps: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_mean_side(
    otherwise: NonNegative = 0.001,
    max_dim: NonNegativeInt = 10000,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_momo(
    lr: NonNegative = 1.0,
    beta: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    lb: Scalar = 0.0,
    bias_correction: bool = False,
    use_fstar: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_momo_adam(
    lr: NonNegative = 0.01,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    lb: Scalar = 0.0,
    proximal_decay: bool = True,
    use_fstar: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_msvag(
    beta: Decay = 0.9,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_muown(
    lr: NonNegative,
    momentum: Decay = 0.95,
    weight_decay: NonNegative = 0.0,
    betas: Decays = (0.9, 0.95),
    eps: NonNegative = 1e-08,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Steps | None = None,
    adjust_lr_fn: Adjustment | None = "max_dim",
    ns_dtype: torch.dtype | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_nadam(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    momentum_decay: NonNegative = 0.004,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_neuron_norm(
    beta: Decay = 0.999,
    constraints: bool = True,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_norm_ratio(
    tx: GradientTransformation,
    betas: Decays = (0.95, 0.95),
    eps: NonNegative = 1e-08,
    correct_bias: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_nuclear_norm(
    method: Literal['newton_schulz', 'exact'] = "newton_schulz",
    alpha: NonNegative = 1.0,
    center_rows: bool = False,
    ns_coefficients: Coefficients = "quintic",
    ns_steps: Steps | None = None,
    ns_dtype: torch.dtype | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_optimistic_gradient(
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_param_block_norm(
    min_scale: NonNegative = 0.001,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_param_block_rms(
    min_scale: NonNegative = 0.001,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_pid(
    momentum: NonNegative,
    dampening: Scalar = 0.0,
    integral: Scalar = 5.0,
    derivative: Scalar = 10.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_pnm(
    betas: tuple[Decay, Fraction] = (0.9, 1.0),
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_polyak(
    max_lr: Annotated[Scalar, '[0, inf]'] | None = None,
    eps: NonNegative = 1e-05,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_prodigy(
    lr: NonNegative = 1.0,
    betas: Decays = (0.9, 0.999),
    beta3: Decay | None = None,
    eps: Positive = 1e-08,
    weight_decay: NonNegative = 0.0,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: Positive = 1e-06,
    d_coef: Positive = 1.0,
    growth_rate: AtLeastOneOrInf = float("inf"),
    slice_p: Count = 1,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_prodigy_schedule_free(
    lr: NonNegative = 1.0,
    betas: tuple[OpenFraction, Decay] = (0.9, 0.99),
    beta3: Decay | None = None,
    weight_decay: NonNegative = 0.0,
    d0: Positive = 1e-06,
    d_coef: Positive = 1.0,
    d_limiter: bool = True,
    prodigy_steps: NonNegativeInt = 0,
    decoupling_c: NonNegative = 0.0,
    eps: Positive | None = 1e-08,
    stable: bool = True,
    slice_p: Count = 11,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_psgd_kron(
    b1: Decay = 0.9,
    precond_lr: NonNegative = 0.1,
    precond_init_scale: Positive = 1.0,
    precondition_frequency: Count | Literal['annealed'] = "annealed",
    balance_every: Count = 100,
    probes: Literal['expected', 'random'] = "expected",
    seed: int = 0,
    momentum_into_precond_update: bool = True,
    max_size_triangular: NonNegativeInt = 8192,
    min_ndim_triangular: NonNegativeInt = 2,
    memory_save_mode: Mode | None = None,
    merge_dims: bool = True,
    clip_rms: Positive = 1.1,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_psgd_pro(
    momentum: Decay = 0.9,
    beta_lip: Decay = 0.9,
    precond_lr: NonNegative = 0.1,
    precond_init_scale: Positive = 1.0,
    damping_noise_scale: NonNegative = 0.1,
    min_precond_lr: NonNegative = 0.01,
    warmup_steps: Positive = 10000.0,
    max_update_rms: NonNegative = 0.0,
    max_precondition_dim: NonNegativeInt = 10000,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_qhadam(
    betas: Decays = (0.9, 0.999),
    nus: tuple[Scalar, Fraction] = (1.0, 1.0),
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_qhm(
    momentum: Decay = 0.999,
    nu: Scalar = 0.7,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_radam(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    rho_threshold: AtLeastFour = 5.0,
    degenerated_to_sgd: bool = True,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_range(
    centralize: bool = True,
    stabilize: bool = True,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_ranger21(
    lr: NonNegative,
    beta0: Fraction = 0.9,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    use_softplus: bool = True,
    beta_softplus: Positive = 50.0,
    weight_decay: NonNegative = 0.0001,
    norm_loss_factor: NonNegative = 0.0001,
    amsgrad: bool = True,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_rectified_rms(
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_rms(
    alpha: NonNegative = 0.99,
    eps: NonNegative = 1e-08,
    eps_in_root: bool = False,
    centered: bool = False,
    initial_accumulator_value: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_rprop(
    lr: NonNegative,
    etas: tuple[OpenFraction, Annotated[Scalar, '(1, inf)']] = (0.5, 1.2),
    step_sizes: tuple[NonNegative, NonNegative] = (1e-06, 50.0),
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_rss(
    eps: NonNegative = 1e-10,
    initial_accumulator_value: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_scalable_shampoo(
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    moving_average_for_momentum: bool = False,
    weight_decay: NonNegative = 0.0,
    inverse_exponent_override: NonNegativeInt = 0,
    start_preconditioning_step: NonNegativeInt = 25,
    preconditioning_compute_steps: Count = 1000,
    statistics_compute_steps: Count = 1,
    block_size: Count = 512,
    skip_preconditioning_rank_lt: NonNegativeInt = 1,
    no_preconditioning_for_layers_with_dim_gt: NonNegativeInt = 8192,
    shape_interpretation: bool = True,
    graft_type: Graft = "sgd",
    pre_conditioner_type: Literal['all', 'input', 'output'] = "all",
    nesterov: bool = True,
    diagonal_eps: NonNegative = 1e-10,
    matrix_eps: Positive = 1e-06,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_schedule_free_plus(
    lr: NonNegative = 1.0,
    betas: Decays = (0.9, 0.95),
    sf_beta1: OpenFraction = 0.9,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    r: NonNegative = 0.0,
    polyak_beta: Decay = 0.0,
    c_warmup: NonNegativeInt = 0,
    sf_beta1_anneal_steps: NonNegativeInt = 0,
    sf_beta1_max: OpenFraction = 0.965,
    weight_lr_power: NonNegative = 2.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_shampoo(
    momentum: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
    matrix_eps: Positive = 0.0001,
    preconditioning_compute_steps: Count = 1,
    variant: Literal['paper', 'moskomule'] = "paper",
    *,
    stagger: Static[bool] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_shape(
    adjust: Adjustment | None = None,
    factor: NonNegative = 0.2,
    view: View = "matrix",
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_sign(
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_simplified_ademamix(
    betas: Decays = (0.99, 0.95),
    alpha: NonNegative = 0.0,
    eps: NonNegative = 1e-08,
    bias_correction1: bool = False,
    bias_correction2: bool = True,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_sm3(
    beta: Decay = 0.0,
    eps: Positive = 1e-30,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_soap(
    betas: Decays = (0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps: NonNegative = 1e-08,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_gradient: bool = False,
    correct_bias: bool = True,
    *,
    stagger: Static[bool] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_sophia(
    betas: Decays = (0.96, 0.99),
    gamma: NonNegative = 0.01,
    eps: NonNegative = 1e-12,
    update_period: Count = 10,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_spam(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-06,
    threshold: Positive = 5000.0,
    clip_after: NonNegativeInt = 20,
    every: Count = 500,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_srmm(
    lr: NonNegative = 0.01,
    beta: NonNegative = 0.5,
    memory_length: Count | None = 100,
    proximal: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_stable_adam(
    betas: Decays = (0.9, 0.99),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_stateful(
    step: Static[Callable[..., Any]],
    start: Static[Mapping[str, float]],
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_swats(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-09,
    amsgrad: bool = False,
    switch_tol: NonNegative | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_tam(
    momentum: Decay = 0.9,
    decay_rate: Decay = 0.9,
    eps: NonNegative = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_trust_ratio(
    clip: bool = False,
    weight_decay: NonNegative = 0.0,
    always_adapt: bool = True,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_width(
    multipliers: Static[Multipliers],
    rule: Literal['adam', 'sgd', 'adam_eps'] = "adam",
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_by_yogi(
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 0.001,
    initial_accumulator_value: NonNegative = 1e-06,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scale_to_radius(
    eps: NonNegative = 1e-12,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def schedule_free(
    base: GradientTransformation,
    lr: NonNegative,
    beta: OpenFraction,
    warmup_steps: NonNegativeInt = 0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    averaging: Fraction | None = None,
    decoupling_c: NonNegative = 0.0,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def schedule_free_adamw(
    lr: NonNegative = 0.0025,
    betas: tuple[OpenFraction, Decay] = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    decoupling_c: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def schedule_free_plus(
    lr: NonNegative = 1.0,
    betas: Decays = (0.9, 0.95),
    sf_beta1: OpenFraction = 0.9,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    r: NonNegative = 0.0,
    polyak_beta: Decay = 0.0,
    c_warmup: NonNegativeInt = 0,
    sf_beta1_anneal_steps: NonNegativeInt = 0,
    sf_beta1_max: OpenFraction = 0.965,
    weight_lr_power: NonNegative = 2.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def schedule_free_radam(
    lr: NonNegative = 0.0025,
    betas: tuple[OpenFraction, Decay] = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    silent_sgd_phase: bool = True,
    decoupling_c: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def schedule_free_sgd(
    lr: NonNegative = 1.0,
    momentum: OpenFraction = 0.9,
    weight_decay: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    decoupling_c: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def scion(
    lr: NonNegative = 0.001,
    momentum: FractionOffAtOne = 0.1,
    scale: NonNegative = 1.0,
    unconstrained: bool = False,
    kinds: Static[Mapping[str, Any]] | None = None,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def sgd(
    lr: NonNegative = 0.001,
    momentum: NonNegative = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def sgd_sai(
    lr: NonNegative = 0.01,
    momentum: Decay = 0.9,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.01,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def sgdp(
    lr: NonNegative,
    momentum: Decay = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
    eps: NonNegative = 1e-08,
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def sgds(
    lr: NonNegative = 0.001,
    momentum: Decay = 0.0,
    dampening: Fraction = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def sgdw(
    lr: NonNegative = 0.001,
    momentum: NonNegative = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def shampoo(
    lr: NonNegative = 0.1,
    momentum: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    matrix_eps: Positive = 0.0001,
    preconditioning_compute_steps: Count = 1,
    variant: Literal['paper', 'moskomule'] = "paper",
    *,
    stagger: Static[bool] = False,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def signsgd(
    lr: NonNegative = 0.001,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = True,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def signum(
    lr: NonNegative = 0.001,
    momentum: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = True,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def simplified_ademamix(
    lr: NonNegative = 0.001,
    betas: Decays = (0.99, 0.95),
    alpha: NonNegative = 0.0,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    min_beta1: Decay = 0.9,
    beta1_warmup: NonNegativeInt | None = None,
    bias_correction1: bool = False,
    bias_correction2: bool = True,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def sinkgd(
    lr: NonNegative = 0.001,
    momentum: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
    iterations: Count = 5,
    order: Order = "long",
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def skip_nonfinite(
    tx: GradientTransformation,
    max_consecutive: NonNegativeInt | None = None,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def sm3(
    lr: NonNegative = 0.1,
    momentum: Decay = 0.0,
    beta: Decay = 0.0,
    eps: Positive = 1e-30,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def soap(
    lr: NonNegative = 0.003,
    betas: Decays = (0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_gradient: bool = False,
    correct_bias: bool = True,
    *,
    stagger: Static[bool] = False,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def soap_laprop(
    lr: NonNegative = 0.003,
    betas: Decays = (0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    *,
    stagger: Static[bool] = False,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def soap_muon(
    lr: NonNegative = 0.02,
    weight_decay: NonNegative = 0.0,
    momentum: Decay = 0.95,
    nesterov: bool = True,
    beta2: Decay = 0.9,
    eps: NonNegative = 1e-08,
    precondition_frequency: Count = 1,
    max_precondition_dim: Count = 10000,
    ns_coefficients: Coefficients = "newton_schulz",
    ns_steps: Steps = 12,
    adjust_lr_fn: Adjustment | None = "original",
    fallback: GradientTransformation | None = None,
    *,
    stagger: Static[bool] = False,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def sophia(
    lr: NonNegative = 0.0006,
    betas: Decays = (0.96, 0.99),
    gamma: NonNegative = 0.01,
    eps: NonNegative = 1e-12,
    weight_decay: NonNegative = 0.1,
    update_period: Count = 10,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def spam(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.0,
    threshold: Positive = 5000.0,
    clip_after: NonNegativeInt = 20,
    every: Count = 500,
    warmup_steps: NonNegativeInt = 150,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def spectral_sphere(
    lr: NonNegative = 0.005,
    momentum: Decay = 0.9,
    nesterov: bool = True,
    weight_decay: NonNegative = 0.0,
    radius_scale: Positive = 1.0,
    power_steps: Count = 10,
    ns_coefficients: Coefficients = "polar_express",
    ns_steps: Steps | None = 8,
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def splus(
    lr: NonNegative = 0.1,
    betas: Decays = (0.9, 0.999),
    weight_decay: NonNegative = 0.01,
    ema_rate: Decay = 0.999,
    inverse_steps: Count = 100,
    nonstandard_constant: NonNegative = 0.001,
    max_dim: Count = 10000,
    *,
    stagger: Static[bool] = False,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def srmm(
    lr: NonNegative = 0.01,
    beta: NonNegative = 0.5,
    memory_length: Count | None = 100,
    proximal: NonNegative = 0.0,
    *,
    maximize: bool = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def stable_adamw(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.99),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.01,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def stable_spam(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    gammas: Decays = (0.7, 0.9),
    theta: Decay = 0.999,
    every: Count = 1000,
    total_steps: Count | None = None,
    eta_min: Fraction = 0.5,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def swats(
    lr: NonNegative = 0.001,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-09,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = False,
    switch_tol: NonNegative | None = None,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def take_signs_of_gradient(
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def tam(
    lr: NonNegative = 0.001,
    momentum: Decay = 0.9,
    decay_rate: Decay = 0.9,
    eps: NonNegative = 1e-08,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def tiger(
    lr: NonNegative = 0.001,
    beta: Decay = 0.965,
    weight_decay: NonNegative = 0.01,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def trac(
    tx: GradientTransformation,
    betas: AnyLength[Decays] = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999),
    s_prev: Positive = 1e-08,
    eps: Positive = 1e-08,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def trace(
    momentum: NonNegative,
    dampening: Scalar = 0.0,
    nesterov: bool = False,
    dampen_first: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def trace_ema(
    beta: Decay,
    nesterov: bool = False,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def with_lookahead(
    tx: GradientTransformation,
    k: Count = 5,
    alpha: Fraction = 0.5,
    pullback_momentum: Literal['none', 'reset', 'pullback'] = "none",
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def with_state_dtype(
    tx: GradientTransformation,
    state_dtype: Static[StateDtype],
    min_size: Static[int] = 4096,
) -> GradientTransformation: ...
def wsam(
    base: GradientTransformation,
    rho: NonNegative = 0.05,
    gamma: Decay = 0.9,
    adaptive: bool = False,
    eps: NonNegative = 1e-12,
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def yogi(
    lr: NonNegative = 0.01,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 0.001,
    initial_accumulator_value: NonNegative = 1e-06,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: Where | None = None,
    cautious_decay: Literal[True, False, "inclusive"] = False,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
def zero_nans(
    *,
    state_dtype: StateDtype | None = None,
) -> GradientTransformation: ...
