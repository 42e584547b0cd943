"""Types of this module, written by docs/stubs.py: run `make docs-tables`."""

from collections.abc import Sequence
from typing import overload
from gradtx.base.exact import Scalar
from gradtx.base.exact import Schedule
from gradtx.schedules.adapter import as_lr_scheduler as as_lr_scheduler
from gradtx.schedules.chebyshev import get_chebyshev_schedule as get_chebyshev_schedule

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
    "polynomial_schedule",
    "proportion_schedule",
    "ranger21_schedule",
    "rectification_schedule",
    "restart_warmup_schedule",
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
    lr: Scalar,
    factor: Scalar = 1.0,
    total_iters: int = 0,
) -> Schedule: ...
@overload
def constant_schedule(
    lr: Scalar,
    factor: Scalar = 1.0,
    total_steps: int = 0,
) -> Schedule: ...
@overload
def cosine_schedule(
    lr: Scalar,
    T_max: int,
    eta_min: Scalar = 0.0,
) -> Schedule: ...
@overload
def cosine_schedule(
    lr: Scalar,
    T_max: int,
    min_lr: Scalar = 0.0,
) -> Schedule: ...
@overload
def cosine_schedule(
    lr: Scalar,
    total_steps: int,
    eta_min: Scalar = 0.0,
) -> Schedule: ...
@overload
def cosine_schedule(
    lr: Scalar,
    total_steps: int,
    min_lr: Scalar = 0.0,
) -> Schedule: ...
@overload
def cosine_warm_restarts_schedule(
    lr: Scalar,
    T_0: int,
    T_mult: int = 1,
    eta_min: Scalar = 0.0,
) -> Schedule: ...
@overload
def cosine_warm_restarts_schedule(
    lr: Scalar,
    T_0: int,
    T_mult: int = 1,
    min_lr: Scalar = 0.0,
) -> Schedule: ...
@overload
def cyclic_schedule(
    base_lr: Scalar,
    max_lr: Scalar,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: Scalar = 1.0,
) -> Schedule: ...
@overload
def cyclic_schedule(
    min_lr: Scalar,
    max_lr: Scalar,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: Scalar = 1.0,
) -> Schedule: ...
@overload
def cyclic_schedule(
    base_lr: Scalar,
    lr: Scalar,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: Scalar = 1.0,
) -> Schedule: ...
@overload
def cyclic_schedule(
    min_lr: Scalar,
    lr: Scalar,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: Scalar = 1.0,
) -> Schedule: ...
def exponential_schedule(
    lr: Scalar,
    gamma: Scalar,
) -> Schedule: ...
def join_schedules(
    schedules: Sequence[Schedule],
    milestones: Sequence[int],
) -> Schedule: ...
@overload
def linear_schedule(
    lr: Scalar,
    start_factor: Scalar = 0.3333333333333333,
    end_factor: Scalar = 1.0,
    total_iters: int = 5,
) -> Schedule: ...
@overload
def linear_schedule(
    lr: Scalar,
    start_factor: Scalar = 0.3333333333333333,
    end_factor: Scalar = 1.0,
    total_steps: int = 5,
) -> Schedule: ...
def multistep_schedule(
    lr: Scalar,
    milestones: Sequence[int],
    gamma: Scalar = 0.1,
) -> Schedule: ...
@overload
def one_cycle_schedule(
    max_lr: Scalar,
    total_steps: int,
    pct_start: Scalar = 0.3,
    anneal_strategy: str = "cos",
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 10000.0,
    three_phase: bool = False,
    *,
    warmup_steps: int | None = None,
    min_lr: Scalar | None = None,
) -> Schedule: ...
@overload
def one_cycle_schedule(
    lr: Scalar,
    total_steps: int,
    pct_start: Scalar = 0.3,
    anneal_strategy: str = "cos",
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 10000.0,
    three_phase: bool = False,
    *,
    warmup_steps: int | None = None,
    min_lr: Scalar | None = None,
) -> Schedule: ...
@overload
def polynomial_schedule(
    lr: Scalar,
    total_iters: int = 5,
    power: Scalar = 1.0,
) -> Schedule: ...
@overload
def polynomial_schedule(
    lr: Scalar,
    total_steps: int = 5,
    power: Scalar = 1.0,
) -> Schedule: ...
def step_schedule(
    lr: Scalar,
    step_size: int,
    gamma: Scalar = 0.1,
) -> Schedule: ...
@overload
def chebyshev_schedule(
    lr: Scalar,
    num_epochs: int,
    small_m: Scalar = 0.1,
    big_m: Scalar = 1.0,
) -> Schedule: ...
@overload
def chebyshev_schedule(
    lr: Scalar,
    total_steps: int,
    small_m: Scalar = 0.1,
    big_m: Scalar = 1.0,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: Scalar,
    num_iterations: int,
    beta2: Scalar = 0.999,
    num_warm_up_iterations: int | None = None,
    num_warm_down_iterations: int | None = None,
    warm_down_min_lr: Scalar = 3e-05,
    chebyshev_epochs: int | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: Scalar,
    num_iterations: int,
    beta2: Scalar = 0.999,
    num_warm_up_iterations: int | None = None,
    num_warm_down_iterations: int | None = None,
    min_lr: Scalar = 3e-05,
    chebyshev_epochs: int | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: Scalar,
    num_iterations: int,
    beta2: Scalar = 0.999,
    warmup_steps: int | None = None,
    num_warm_down_iterations: int | None = None,
    warm_down_min_lr: Scalar = 3e-05,
    chebyshev_epochs: int | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: Scalar,
    num_iterations: int,
    beta2: Scalar = 0.999,
    warmup_steps: int | None = None,
    num_warm_down_iterations: int | None = None,
    min_lr: Scalar = 3e-05,
    chebyshev_epochs: int | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: Scalar,
    total_steps: int,
    beta2: Scalar = 0.999,
    num_warm_up_iterations: int | None = None,
    num_warm_down_iterations: int | None = None,
    warm_down_min_lr: Scalar = 3e-05,
    chebyshev_epochs: int | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: Scalar,
    total_steps: int,
    beta2: Scalar = 0.999,
    num_warm_up_iterations: int | None = None,
    num_warm_down_iterations: int | None = None,
    min_lr: Scalar = 3e-05,
    chebyshev_epochs: int | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: Scalar,
    total_steps: int,
    beta2: Scalar = 0.999,
    warmup_steps: int | None = None,
    num_warm_down_iterations: int | None = None,
    warm_down_min_lr: Scalar = 3e-05,
    chebyshev_epochs: int | None = None,
) -> Schedule: ...
@overload
def ranger21_schedule(
    lr: Scalar,
    total_steps: int,
    beta2: Scalar = 0.999,
    warmup_steps: int | None = None,
    num_warm_down_iterations: int | None = None,
    min_lr: Scalar = 3e-05,
    chebyshev_epochs: int | None = None,
) -> Schedule: ...
def ademamix_alpha_schedule(
    alpha: Scalar,
    warmup_steps: int | None,
) -> Schedule: ...
def half_life_schedule(
    end: Scalar,
    warmup_steps: int | None,
    start: Scalar,
) -> Schedule: ...
def restart_warmup_schedule(
    lr: Scalar,
    every: int,
    warmup_steps: int,
) -> Schedule: ...
@overload
def cosine_warmup_restarts_schedule(
    first_cycle_steps: int,
    cycle_mult: int | float = 1.0,
    max_lr: Scalar = 0.0001,
    min_lr: Scalar = 1e-06,
    warmup_steps: int = 0,
    gamma: Scalar = 0.9,
) -> Schedule: ...
@overload
def cosine_warmup_restarts_schedule(
    first_cycle_steps: int,
    cycle_mult: int | float = 1.0,
    lr: Scalar = 0.0001,
    min_lr: Scalar = 1e-06,
    warmup_steps: int = 0,
    gamma: Scalar = 0.9,
) -> Schedule: ...
@overload
def explore_exploit_schedule(
    peak_lr: Scalar,
    warmup_steps: int = 0,
    explore_steps: int = 0,
    total_steps: int = 0,
) -> Schedule: ...
@overload
def explore_exploit_schedule(
    lr: Scalar,
    warmup_steps: int = 0,
    explore_steps: int = 0,
    total_steps: int = 0,
) -> Schedule: ...
@overload
def proportion_schedule(
    lr_schedule: Schedule,
    max_lr: Scalar,
    min_lr: Scalar = 0.0,
    max_value: Scalar = 2.0,
    min_value: Scalar = 2.0,
) -> Schedule: ...
@overload
def proportion_schedule(
    lr_schedule: Schedule,
    lr: Scalar,
    min_lr: Scalar = 0.0,
    max_value: Scalar = 2.0,
    min_value: Scalar = 2.0,
) -> Schedule: ...
def rectification_schedule(
    lr: Scalar,
    beta2: Scalar = 0.999,
    silent: bool = True,
) -> Schedule: ...
def untuned_exponential_warmup(
    lr: Scalar = 1.0,
    beta2: Scalar = 0.999,
) -> Schedule: ...
def untuned_linear_warmup(
    lr: Scalar = 1.0,
    beta2: Scalar = 0.999,
) -> Schedule: ...
@overload
def warmup_cosine_schedule(
    t_max: int,
    max_lr: Scalar,
    min_lr: Scalar = 0.0,
    init_lr: Scalar = 0.0,
    warmup_steps: int = 0,
) -> Schedule: ...
@overload
def warmup_cosine_schedule(
    total_steps: int,
    max_lr: Scalar,
    min_lr: Scalar = 0.0,
    init_lr: Scalar = 0.0,
    warmup_steps: int = 0,
) -> Schedule: ...
@overload
def warmup_cosine_schedule(
    t_max: int,
    lr: Scalar,
    min_lr: Scalar = 0.0,
    init_lr: Scalar = 0.0,
    warmup_steps: int = 0,
) -> Schedule: ...
@overload
def warmup_cosine_schedule(
    total_steps: int,
    lr: Scalar,
    min_lr: Scalar = 0.0,
    init_lr: Scalar = 0.0,
    warmup_steps: int = 0,
) -> Schedule: ...
@overload
def warmup_linear_schedule(
    t_max: int,
    max_lr: Scalar,
    min_lr: Scalar = 0.0,
    init_lr: Scalar = 0.0,
    warmup_steps: int = 0,
) -> Schedule: ...
@overload
def warmup_linear_schedule(
    total_steps: int,
    max_lr: Scalar,
    min_lr: Scalar = 0.0,
    init_lr: Scalar = 0.0,
    warmup_steps: int = 0,
) -> Schedule: ...
@overload
def warmup_linear_schedule(
    t_max: int,
    lr: Scalar,
    min_lr: Scalar = 0.0,
    init_lr: Scalar = 0.0,
    warmup_steps: int = 0,
) -> Schedule: ...
@overload
def warmup_linear_schedule(
    total_steps: int,
    lr: Scalar,
    min_lr: Scalar = 0.0,
    init_lr: Scalar = 0.0,
    warmup_steps: int = 0,
) -> Schedule: ...
@overload
def warmup_poly_schedule(
    t_max: int,
    max_lr: Scalar,
    min_lr: Scalar = 0.0,
    init_lr: Scalar = 0.0,
    warmup_steps: int = 0,
    poly_order: Scalar = -0.5,
) -> Schedule: ...
@overload
def warmup_poly_schedule(
    total_steps: int,
    max_lr: Scalar,
    min_lr: Scalar = 0.0,
    init_lr: Scalar = 0.0,
    warmup_steps: int = 0,
    poly_order: Scalar = -0.5,
) -> Schedule: ...
@overload
def warmup_poly_schedule(
    t_max: int,
    lr: Scalar,
    min_lr: Scalar = 0.0,
    init_lr: Scalar = 0.0,
    warmup_steps: int = 0,
    poly_order: Scalar = -0.5,
) -> Schedule: ...
@overload
def warmup_poly_schedule(
    total_steps: int,
    lr: Scalar,
    min_lr: Scalar = 0.0,
    init_lr: Scalar = 0.0,
    warmup_steps: int = 0,
    poly_order: Scalar = -0.5,
) -> Schedule: ...
@overload
def wsd_schedule(
    lr: Scalar,
    num_warmup_steps: int,
    num_stable_steps: int | None = None,
    num_decay_steps: int | None = None,
    min_lr_ratio: Scalar = 0.0,
    num_cycles: Scalar = 0.5,
    cooldown_type: str = "1-sqrt",
    *,
    total_steps: int | None = None,
    min_lr: Scalar | None = None,
    init_lr: Scalar = 0.0,
) -> Schedule: ...
@overload
def wsd_schedule(
    lr: Scalar,
    warmup_steps: int,
    num_stable_steps: int | None = None,
    num_decay_steps: int | None = None,
    min_lr_ratio: Scalar = 0.0,
    num_cycles: Scalar = 0.5,
    cooldown_type: str = "1-sqrt",
    *,
    total_steps: int | None = None,
    min_lr: Scalar | None = None,
    init_lr: Scalar = 0.0,
) -> Schedule: ...
