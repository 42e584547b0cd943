"""Schedule-Free methods: `schedule_free_sgd`, `schedule_free_adamw` and `schedule_free_radam`."""

from __future__ import annotations

from gradtx.arguments import Decay, NonNegative, NonNegativeInt, OpenFraction
from gradtx.combinators.slow_weights import schedule_free
from gradtx.links.decay import add_decayed_weights
from gradtx.links.scaling import scale_by_rectified_rms
from gradtx.maths.entries import corrected_root, running_mean
from gradtx.rules import alias, per_tensor
from gradtx.schedules.warmup import rectification_schedule
from gradtx.slots import square
from gradtx.transform import chain

__all__ = ["schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"]


@per_tensor(elementwise=True)
def scale_by_corrected_rms(beta2: Decay, eps: NonNegative):
    """Divide by the root mean square of the gradient: `scale_by_adam` without an average of gradients."""

    def update(g, state, p, ctx):
        v = running_mean(state["exp_avg_sq"], g.square(), beta2)
        return g / (corrected_root(v, ctx, beta2) + eps), {"exp_avg_sq": v}

    return {"exp_avg_sq": square(decay=beta2)}, update


@alias(class_name="ScheduleFreeSGD")
def schedule_free_sgd(
    lr=1.0,
    momentum: OpenFraction = 0.9,
    weight_decay=0.0,
    warmup_steps: NonNegativeInt = 0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    decoupling_c: NonNegative = 0.0,
):
    r"""Schedule-Free SGD: SGD that averages its weights instead of following a schedule.

    `schedule_free` with $\beta$ = `momentum` along $g + \lambda y$. The parameters are $y$, where gradients are
    computed; evaluate with `eval_params`, which returns the average $x$, and recompute the statistics of batch norm
    there.

    When to use: SGD when the length of training is not fixed in advance; evaluate with `eval_params`.

    Args:
        lr: $\eta$ in [0, inf); larger than a scheduled rate, from 1 to 50.
        momentum: $\beta$ in (0, 1).
        weight_decay: $\lambda \ge 0$, added to the gradient.
        warmup_steps: Number of steps over which the rate rises to `lr`, >= 0.
        r: Exponent of the step count in the averaging weights, >= 0.
        weight_lr_power: Exponent of the largest rate so far in the averaging weights, >= 0.
        decoupling_c: $C \ge 0$, a multiplier of the new point's share in the average, $\min(1, a (1-\beta) C)$; 0 for
            $a$. 6 to 12 for short, noisy runs, 50 to 200 for long ones (see `schedule_free`).

    Returns:
        A transformation whose updates are added to the parameters. State: `z`, and `lr_max`, `weight_sum`, 0-d.

    Example:
        >>> tx = gradtx.schedule_free_sgd(lr=1.0, warmup_steps=4)
        >>> params = {"w": torch.tensor([8.0])}
        >>> # at first x = y = z
        >>> tx.update({"w": torch.tensor([2.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.5000])

    Source: Defazio et al. 2024, arXiv:2405.15682. Departures: none from the authors' released optimizer.
    """
    return schedule_free(
        add_decayed_weights(weight_decay),
        lr,
        momentum,
        warmup_steps,
        r,
        weight_lr_power,
        decoupling_c=decoupling_c,
    )


@alias(class_name="ScheduleFreeAdamW")
def schedule_free_adamw(
    lr=0.0025,
    betas: tuple[OpenFraction, Decay] = (0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    warmup_steps: NonNegativeInt = 0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    decoupling_c: NonNegative = 0.0,
):
    r"""Schedule-Free AdamW: AdamW that averages its weights instead of following a schedule.

    `schedule_free` with $\beta = \beta_1$ along $g / (\sqrt{v/(1-\beta_2^t)} + \epsilon) + \lambda y$, $v$ the average
    of $g^2$. The parameters are $y$, where gradients are computed; evaluate with `eval_params`, which returns the
    average $x$, and recompute the statistics of batch norm there.

    When to use: AdamW when the length of training is not fixed in advance; evaluate with `eval_params`.

    Args:
        lr: $\eta$ in [0, inf); 1 to 10 times a scheduled rate.
        betas: $\beta_1$ in (0, 1), the position of $y$ between $z$ and $x$; $\beta_2$ in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the rate, including its warm-up.
        warmup_steps: Number of steps over which the rate rises to `lr`, >= 0.
        r: Exponent of the step count in the averaging weights, >= 0.
        weight_lr_power: Exponent of the largest rate so far in the averaging weights, >= 0.
        decoupling_c: $C \ge 0$, a multiplier of the new point's share in the average, $\min(1, a (1-\beta_1) C)$; 0 for
            $a$. 6 to 12 for short, noisy runs, 50 to 200 for long ones (see `schedule_free`).

    Returns:
        A transformation whose updates are added to the parameters. State: `z`, and `lr_max`, `weight_sum`, 0-d;
        `exp_avg_sq`. A checkpoint of schedulefree's AdamWScheduleFree in train mode loads.

    Example:
        >>> tx = gradtx.schedule_free_adamw(lr=0.1)
        >>> params = {"w": torch.tensor([1.0, 1.0])}
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([1e-4, -7.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> # the mean of two points, at 0.1 and 0.2 from the start
        >>> tx.eval_params(state, params)["w"]
        tensor([0.8500, 1.1500])

    Source: Defazio et al. 2024, arXiv:2405.15682. Departures: the bias of $v$ is corrected where it divides, as in the
    authors' released optimizer (the paper puts $\sqrt{1-\beta_2^t}$ into the rate, and thereby into the average).
    """
    direction = scale_by_corrected_rms(betas[1], eps)
    base = chain(direction, add_decayed_weights(weight_decay))
    return schedule_free(
        base,
        lr,
        betas[0],
        warmup_steps,
        r,
        weight_lr_power,
        decoupling_c=decoupling_c,
    )


@alias(class_name="ScheduleFreeRAdam")
def schedule_free_radam(
    lr=0.0025,
    betas: tuple[OpenFraction, Decay] = (0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    silent_sgd_phase=True,
    decoupling_c: NonNegative = 0.0,
):
    r"""Schedule-Free RAdam: AdamW with neither a schedule nor a warm-up.

    `schedule_free` with $\beta = \beta_1$ and the rate of `rectification_schedule`, along
    $g / (\sqrt{v/(1-\beta_2^t)} + \epsilon) + \lambda y$, $v$ the average of $g^2$, and along $g + \lambda y$ before
    the first rectified step. The parameters are $y$, where gradients are computed; evaluate with `eval_params`, which
    returns the average $x$, and recompute the statistics of batch norm there.

    When to use: like `schedule_free_adamw`, without a warm-up to tune.

    Args:
        lr: $\eta$ in [0, inf); 1 to 10 times a scheduled rate.
        betas: $\beta_1$ in (0, 1), the position of $y$ between $z$ and $x$; $\beta_2$ in [0, 1), above 0.6 for any step
            to be rectified.
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the rate.
        r: Exponent of the step count in the averaging weights, >= 0.
        weight_lr_power: Exponent of the largest rate so far in the averaging weights, >= 0; with 0, silent steps count
            as well.
        silent_sgd_phase: Do not move in the first steps, instead of taking them as SGD steps.
        decoupling_c: $C \ge 0$, a multiplier of the new point's share in the average, $\min(1, a (1-\beta_1) C)$; 0 for
            $a$. 6 to 12 for short, noisy runs, 50 to 200 for long ones (see `schedule_free`).

    Returns:
        A transformation whose updates are added to the parameters. State: `z`, and `lr_max`, `weight_sum`, 0-d;
        `exp_avg_sq`.

    Example:
        >>> tx = gradtx.schedule_free_radam(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> for _ in range(6):
        ...     updates, state = tx.update({"w": torch.tensor([100.0])}, state, params)
        ...     print(f"{updates['w'].item():.5f}")
        0.00000
        0.00000
        0.00000
        0.00000
        -0.00173
        -0.00306

    Source: Defazio et al. 2024, arXiv:2405.15682, with Liu et al. 2019, arXiv:1908.03265. Departures: none from the
    authors' released optimizer.
    """
    beta1, beta2 = betas
    base = chain(scale_by_rectified_rms(beta2, eps), add_decayed_weights(weight_decay))
    rate = rectification_schedule(lr, beta2, silent_sgd_phase)
    return schedule_free(
        base, rate, beta1, 0, r, weight_lr_power, decoupling_c=decoupling_c
    )
