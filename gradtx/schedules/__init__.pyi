"""Types of this module, written by docs/stubs.py: run `make docs-tables`."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Annotated
from typing import Literal
from typing import overload
from gradtx.arguments import Scalar
from gradtx.base.exact import Schedule
from gradtx.arguments import Count
from gradtx.arguments import Decay
from gradtx.arguments import Fraction
from gradtx.arguments import NonNegative
from gradtx.arguments import NonNegativeInt
from gradtx.arguments import Positive
from gradtx.schedules.adapter import as_lr_scheduler as as_lr_scheduler
from gradtx.schedules.plot import plot as plot
from gradtx.schedules.special import get_chebyshev_schedule as get_chebyshev_schedule

__all__ = [
    "ademamix_alpha_schedule",
    "as_lr_scheduler",
    "chebyshev_schedule",
    "constant_schedule",
    "cosine_schedule",
    "cosine_warm_restarts_schedule",
    "cosine_warmup_restarts_schedule",
    "cyclic_schedule",
    "explore_exploit_schedule",
    "exponential_schedule",
    "get_chebyshev_schedule",
    "half_life_schedule",
    "join_schedules",
    "linear_schedule",
    "multistep_schedule",
    "one_cycle_schedule",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "plot",
    "polynomial_schedule",
    "proportion_schedule",
    "ranger21_schedule",
    "rectification_schedule",
    "restart_warmup_schedule",
    "sigmoid_schedule",
    "step_schedule",
    "untuned_exponential_warmup",
    "untuned_linear_warmup",
    "warmup_cosine_schedule",
    "warmup_linear_schedule",
    "warmup_poly_schedule",
    "wsd_schedule",
]

@overload
def constant_schedule(
    lr: NonNegative,
    factor: NonNegative = 1.0,
    total_iters: NonNegativeInt = 0,
) -> Schedule: ...
@overload
def constant_schedule(
    lr: NonNegative,
    factor: NonNegative = 1.0,
    total_steps: NonNegativeInt = 0,
) -> Schedule: ...
@overload
def cosine_schedule(
    lr: NonNegative,
    T_max: Count,
    eta_min: NonNegative = 0.0,
) -> Schedule: ...
@overload
def cosine_schedule(
    lr: NonNegative,
    T_max: Count,
    min_lr: NonNegative = 0.0,
) -> Schedule: ...
@overload
def cosine_schedule(
    lr: NonNegative,
    total_steps: Count,
    eta_min: NonNegative = 0.0,
) -> Schedule: ...
@overload
def cosine_schedule(
    lr: NonNegative,
    total_steps: Count,
    min_lr: NonNegative = 0.0,
) -> Schedule: ...
@overload
def cosine_warm_restarts_schedule(
    lr: NonNegative,
    T_0: Count,
    T_mult: Count = 1,
    eta_min: NonNegative = 0.0,
) -> Schedule: ...
@overload
def cosine_warm_restarts_schedule(
    lr: NonNegative,
    T_0: Count,
    T_mult: Count = 1,
    min_lr: NonNegative = 0.0,
) -> Schedule: ...
@overload
def cyclic_schedule(
    base_lr: NonNegative,
    max_lr: NonNegative,
    step_size_up: Count = 2000,
    step_size_down: Count | None = None,
    mode: Literal['triangular', 'triangular2', 'exp_range'] = "triangular",
    gamma: NonNegative = 1.0,
) -> Schedule: ...
@overload
def cyclic_schedule(
    min_lr: NonNegative,
    max_lr: NonNegative,
    step_size_up: Count = 2000,
    step_size_down: Count | None = None,
    mode: Literal['triangular', 'triangular2', 'exp_range'] = "triangular",
    gamma: NonNegative = 1.0,
) -> Schedule: ...
@overload
def cyclic_schedule(
    base_lr: NonNegative,
    lr: NonNegative,
    step_size_up: Count = 2000,
    step_size_down: Count | None = None,
    mode: Literal['triangular', 'triangular2', 'exp_range'] = "triangular",
    gamma: NonNegative = 1.0,
) -> Schedule: ...
@overload
def cyclic_schedule(
    min_lr: NonNegative,
    lr: NonNegative,
    step_size_up: Count = 2000,
    step_size_down: Count | None = None,
    mode: Literal['triangular', 'triangular2', 'exp_range'] = "triangular",
    gamma: NonNegative = 1.0,
) -> Schedule: ...
def exponential_schedule(
    lr: NonNegative,
    gamma: NonNegative,
) -> Schedule: ...
def join_schedules(
    schedules: Sequence[Schedule],
    milestones: Sequence[int],
) -> Schedule: ...
@overload
def linear_schedule(
    lr: NonNegative,
    start_factor: Fraction = 0.3333333333333333,
    end_factor: Fraction = 1.0,
    total_iters: Count = 5,
) -> Schedule: ...
@overload
def linear_schedule(
    lr: NonNegative,
    start_factor: Fraction = 0.3333333333333333,
    end_factor: Fraction = 1.0,
    total_steps: Count = 5,
) -> Schedule: ...
def multistep_schedule(
    lr: NonNegative,
    milestones: Sequence[NonNegativeInt],
    gamma: NonNegative = 0.1,
) -> Schedule: ...
@overload
def one_cycle_schedule(
    max_lr: NonNegative,
    total_steps: Count,
    pct_start: Fraction = 0.3,
    anneal_strategy: Literal['cos', 'linear'] = "cos",
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 10000.0,
    three_phase: bool = False,
    *,
    warmup_steps: NonNegativeInt | None = None,
    min_lr: NonNegative | None = None,
) -> Schedule: ...
@overload
def one_cycle_schedule(
    lr: NonNegative,
    total_steps: Count,
    pct_start: Fraction = 0.3,
    anneal_strategy: Literal['cos', 'linear'] = "cos",
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 10000.0,
    three_phase: bool = False,
    *,
    warmup_steps: NonNegativeInt | None = None,
    min_lr: NonNegative | None = None,
) -> Schedule: ...
def piecewise_constant_schedule(
    lr: NonNegative,
    boundaries_and_scales: Mapping[int, float] | None = None,
) -> Schedule: ...
def piecewise_interpolate_schedule(
    interpolate_type: Literal['linear', 'cosine'],
    lr: NonNegative,
    boundaries_and_scales: Mapping[int, float] | None = None,
) -> Schedule: ...
@overload
def polynomial_schedule(
    lr: NonNegative,
    total_iters: Count = 5,
    power: NonNegative = 1.0,
) -> Schedule: ...
@overload
def polynomial_schedule(
    lr: NonNegative,
    total_steps: Count = 5,
    power: NonNegative = 1.0,
) -> Schedule: ...
def sigmoid_schedule(
    start: Scalar,
    end: Scalar,
    total_steps: Count,
    center: Scalar,
    width: Positive,
) -> Schedule: ...
def step_schedule(
    lr: NonNegative,
    step_size: Count,
    gamma: NonNegative = 0.1,
) -> Schedule: ...
def ademamix_alpha_schedule(
    alpha: NonNegative,
    warmup_steps: NonNegativeInt | None,
) -> Schedule: ...
@overload
def chebyshev_schedule(
    lr: NonNegative,
    num_epochs: Annotated[int, '[3, inf)'],
    small_m: Positive = 0.1,
    big_m: Positive = 1.0,
) -> Schedule: ...
@overload
def chebyshev_schedule(
    lr: NonNegative,
    total_steps: Annotated[int, '[3, inf)'],
    small_m: Positive = 0.1,
    big_m: Positive = 1.0,
) -> Schedule: ...
def half_life_schedule(
    end: Decay,
    warmup_steps: NonNegativeInt | None,
    start: Decay,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: NonNegative,
    num_iterations: Count,
    beta2: Decay = 0.999,
    num_warm_up_iterations: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    warm_down_min_lr: NonNegative = 3e-05,
    chebyshev_epochs: Annotated[int, '[3, inf)'] | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: NonNegative,
    num_iterations: Count,
    beta2: Decay = 0.999,
    num_warm_up_iterations: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    min_lr: NonNegative = 3e-05,
    chebyshev_epochs: Annotated[int, '[3, inf)'] | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: NonNegative,
    num_iterations: Count,
    beta2: Decay = 0.999,
    warmup_steps: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    warm_down_min_lr: NonNegative = 3e-05,
    chebyshev_epochs: Annotated[int, '[3, inf)'] | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: NonNegative,
    num_iterations: Count,
    beta2: Decay = 0.999,
    warmup_steps: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    min_lr: NonNegative = 3e-05,
    chebyshev_epochs: Annotated[int, '[3, inf)'] | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: NonNegative,
    total_steps: Count,
    beta2: Decay = 0.999,
    num_warm_up_iterations: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    warm_down_min_lr: NonNegative = 3e-05,
    chebyshev_epochs: Annotated[int, '[3, inf)'] | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: NonNegative,
    total_steps: Count,
    beta2: Decay = 0.999,
    num_warm_up_iterations: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    min_lr: NonNegative = 3e-05,
    chebyshev_epochs: Annotated[int, '[3, inf)'] | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: NonNegative,
    total_steps: Count,
    beta2: Decay = 0.999,
    warmup_steps: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    warm_down_min_lr: NonNegative = 3e-05,
    chebyshev_epochs: Annotated[int, '[3, inf)'] | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: NonNegative,
    total_steps: Count,
    beta2: Decay = 0.999,
    warmup_steps: NonNegativeInt | None = None,
    num_warm_down_iterations: NonNegativeInt | None = None,
    min_lr: NonNegative = 3e-05,
    chebyshev_epochs: Annotated[int, '[3, inf)'] | None = None,
) -> Schedule: ...
@overload
def cosine_warmup_restarts_schedule(
    first_cycle_steps: Count,
    cycle_mult: Annotated[int | float, '(0, inf)'] = 1.0,
    max_lr: NonNegative = 0.0001,
    min_lr: NonNegative = 1e-06,
    warmup_steps: NonNegativeInt = 0,
    gamma: NonNegative = 0.9,
) -> Schedule: ...
@overload
def cosine_warmup_restarts_schedule(
    first_cycle_steps: Count,
    cycle_mult: Annotated[int | float, '(0, inf)'] = 1.0,
    lr: NonNegative = 0.0001,
    min_lr: NonNegative = 1e-06,
    warmup_steps: NonNegativeInt = 0,
    gamma: NonNegative = 0.9,
) -> Schedule: ...
@overload
def explore_exploit_schedule(
    peak_lr: NonNegative,
    warmup_steps: NonNegativeInt = 0,
    explore_steps: NonNegativeInt = 0,
    total_steps: NonNegativeInt = 0,
) -> Schedule: ...
@overload
def explore_exploit_schedule(
    lr: NonNegative,
    warmup_steps: NonNegativeInt = 0,
    explore_steps: NonNegativeInt = 0,
    total_steps: NonNegativeInt = 0,
) -> Schedule: ...
@overload
def proportion_schedule(
    lr_schedule: Schedule,
    max_lr: NonNegative,
    min_lr: NonNegative = 0.0,
    max_value: Scalar = 2.0,
    min_value: Scalar = 2.0,
) -> Schedule: ...
@overload
def proportion_schedule(
    lr_schedule: Schedule,
    lr: NonNegative,
    min_lr: NonNegative = 0.0,
    max_value: Scalar = 2.0,
    min_value: Scalar = 2.0,
) -> Schedule: ...
def rectification_schedule(
    lr: NonNegative,
    beta2: Decay = 0.999,
    silent: bool = True,
) -> Schedule: ...
def restart_warmup_schedule(
    lr: NonNegative,
    every: Count,
    warmup_steps: NonNegativeInt,
) -> Schedule: ...
def untuned_exponential_warmup(
    lr: NonNegative = 1.0,
    beta2: Decay = 0.999,
) -> Schedule: ...
def untuned_linear_warmup(
    lr: NonNegative = 1.0,
    beta2: Decay = 0.999,
) -> Schedule: ...
@overload
def warmup_cosine_schedule(
    t_max: Count,
    max_lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
) -> Schedule: ...
@overload
def warmup_cosine_schedule(
    total_steps: Count,
    max_lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
) -> Schedule: ...
@overload
def warmup_cosine_schedule(
    t_max: Count,
    lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
) -> Schedule: ...
@overload
def warmup_cosine_schedule(
    total_steps: Count,
    lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
) -> Schedule: ...
@overload
def warmup_linear_schedule(
    t_max: Count,
    max_lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
) -> Schedule: ...
@overload
def warmup_linear_schedule(
    total_steps: Count,
    max_lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
) -> Schedule: ...
@overload
def warmup_linear_schedule(
    t_max: Count,
    lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
) -> Schedule: ...
@overload
def warmup_linear_schedule(
    total_steps: Count,
    lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
) -> Schedule: ...
@overload
def warmup_poly_schedule(
    t_max: Count,
    max_lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
    poly_order: Scalar = -0.5,
) -> Schedule: ...
@overload
def warmup_poly_schedule(
    total_steps: Count,
    max_lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
    poly_order: Scalar = -0.5,
) -> Schedule: ...
@overload
def warmup_poly_schedule(
    t_max: Count,
    lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
    poly_order: Scalar = -0.5,
) -> Schedule: ...
@overload
def warmup_poly_schedule(
    total_steps: Count,
    lr: NonNegative,
    min_lr: NonNegative = 0.0,
    init_lr: NonNegative = 0.0,
    warmup_steps: NonNegativeInt = 0,
    poly_order: Scalar = -0.5,
) -> Schedule: ...
@overload
def wsd_schedule(
    lr: NonNegative,
    num_warmup_steps: NonNegativeInt,
    num_stable_steps: NonNegativeInt | None = None,
    num_decay_steps: NonNegativeInt | None = None,
    min_lr_ratio: Fraction = 0.0,
    num_cycles: NonNegative = 0.5,
    cooldown_type: Literal['1-sqrt', 'linear', '1-square', 'cosine'] = "1-sqrt",
    *,
    total_steps: NonNegativeInt | None = None,
    min_lr: NonNegative | None = None,
    init_lr: NonNegative = 0.0,
) -> Schedule: ...
@overload
def wsd_schedule(
    lr: NonNegative,
    warmup_steps: NonNegativeInt,
    num_stable_steps: NonNegativeInt | None = None,
    num_decay_steps: NonNegativeInt | None = None,
    min_lr_ratio: Fraction = 0.0,
    num_cycles: NonNegative = 0.5,
    cooldown_type: Literal['1-sqrt', 'linear', '1-square', 'cosine'] = "1-sqrt",
    *,
    total_steps: NonNegativeInt | None = None,
    min_lr: NonNegative | None = None,
    init_lr: NonNegative = 0.0,
) -> Schedule: ...
