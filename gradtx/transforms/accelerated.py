"""Momentum variants: long and short steps, several momenta, a derivative term, bounded gradients."""

from __future__ import annotations

import math

import torch

from gradtx.arguments import is_off
from gradtx.base.exact import Betas, Scalar, exact
from gradtx.base.torch_names import readable
from gradtx.rules import per_tensor
from gradtx.transform import chain
from gradtx.transforms._math import change_of, largest, running_mean, zeros
from gradtx.transforms.decay import check_initial_lr
from gradtx.transforms.momentum import accumulated

__all__ = ["scale_by_accsgd", "scale_by_aggmo", "scale_by_gravity", "scale_by_pid"]


@per_tensor(
    ranges={"kappa": "[1, inf)", "xi": "[0, inf)", "small_const": "(0, 1]"},
    elementwise=True,
    needs=("params",),
    owns_lr=True,
    example={"lr": 0.1},
)
def scale_by_accsgd(
    lr: Scalar, kappa: Scalar = 1000.0, xi: Scalar = 10.0, small_const: Scalar = 0.7
):
    r"""Combine a short step with an average of long steps: accelerated SGD.

    With $\alpha = 1 - c^2 \xi / \kappa$, $\zeta = c / (c + 1 - \alpha)$: $\bar p \leftarrow \alpha \bar p + (1-\alpha)
    (p - \frac{\eta \kappa}{c} g)$, then $p \leftarrow \zeta (p - \eta g) + (1 - \zeta) \bar p$.

    Args:
        lr: $\eta$ in [0, inf), the short step.
        kappa: $\kappa \ge 1$, ratio of the long step to the short step (apart from $c$).
        xi: $\xi$ in $[0, \sqrt{\kappa}]$, the statistical advantage parameter.
        small_const: $c$ in (0, 1].

    Returns:
        A transformation that owns the learning rate: its updates are added to the parameters. State: `avg`
        ($\bar p$), shaped as the parameter and initialized to it.

    Raises:
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> # alpha = 1/2, zeta = 2/3
        >>> tx = gradtx.scale_by_accsgd(lr=0.1, kappa=4.0, xi=2.0, small_const=1.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)
        >>> updates["w"], state["scale_by_accsgd"]["avg"]["w"]  # -(0.1 * 2 + 0.2) / 3
        (tensor([-0.1333]), tensor([0.8000]))

    Source: Jain et al. 2017, arXiv:1704.08227; Kidambi et al. 2018, arXiv:1803.05591. Departures: none in value; the
    authors divide by $1 - \alpha$, which fails at $\xi = 0$.
    """
    if isinstance(kappa, float) and isinstance(xi, float) and xi > math.sqrt(kappa):
        raise ValueError(
            f"scale_by_accsgd: xi must be at most sqrt(kappa) = {math.sqrt(kappa):g}, got {xi!r}"
        )
    rest = small_const * small_const * xi / kappa  # 1 - alpha
    zeta = small_const / (small_const + rest)
    long_lr = lr * kappa / small_const

    def init(param):
        return {"avg": param}

    def update(update, state, param, ctx):
        average = (1 - rest) * state["avg"] + rest * (param - long_lr * update)
        return (1 - zeta) * (average - param) - (zeta * lr) * update, {"avg": average}

    return init, update


@per_tensor(elementwise=True, any_length=("betas",))
def scale_by_aggmo(betas: Betas = (0.0, 0.9, 0.99)):
    r"""Average momenta with different decay rates: aggregated momentum.

    $b^{(i)}_t = \beta_i b^{(i)}_{t-1} + g_t$, direction $\frac1K \sum_i b^{(i)}_t$.

    Args:
        betas: $(\beta_1, \ldots, \beta_K)$, one or more, each in [0, 1).

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer_0`, `momentum_buffer_1`, ..., one per
        beta in the given order, shaped as the parameter.

    Raises:
        ValueError: If there is no beta, or if one is outside [0, 1).

    Example:
        >>> tx = gradtx.scale_by_aggmo((0.0, 0.5))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([4.0])}, state)
        >>> # the other one is 4
        >>> state["scale_by_aggmo"]["momentum_buffer_1"]["w"], updates["w"]
        (tensor([6.]), tensor([5.]))

    Source: Lucas et al. 2018, arXiv:1804.00325. Departures: buffers belong to positions, so equal betas have separate
    buffers (in the authors' code they share one, which is updated twice).
    """

    def init(param):
        return {"momentum_buffer": [torch.zeros_like(param) for _ in betas]}

    def update(update, state, param, ctx):
        buffers = [
            beta * old + update
            for beta, old in zip(betas, state["momentum_buffer"], strict=True)
        ]
        return sum(buffers[1:], buffers[0]) / len(buffers), {"momentum_buffer": buffers}

    return init, update


@per_tensor(
    elementwise=True, example={"momentum": 0.9, "dampening": 0.1, "derivative": 0.5}
)
def scale_by_pid(
    momentum: Scalar,
    dampening: Scalar = 0.0,
    integral: Scalar = 5.0,
    derivative: Scalar = 10.0,
):
    r"""Combine the gradient, its sum and its change: a PID controller.

    $I_1 = g_1$, $D_1 = 0$; then $I_t = \mu I_{t-1} + (1-\tau) g_t$, $D_t = \mu D_{t-1} + (1-\mu)(g_t - g_{t-1})$;
    direction $g_t + K_I I_t + K_D D_t$.

    Args:
        momentum: $\mu$, in [0, inf), below 1 in practice. A literal 0.0 omits the link: plain gradient descent.
        dampening: $\tau$, usually in [0, 1); not applied at the first step.
        integral: $K_I$, weight of the sum, any number.
        derivative: $K_D$, weight of the change, any number.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer` ($I$), `d_buffer` ($D$),
        `previous_grad`, shaped as the parameter.

    Raises:
        ValueError: If `momentum` is negative.

    Example:
        >>> tx = gradtx.scale_by_pid(momentum=0.5, integral=0.0, derivative=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 4.0, 6.0):  # the change of 2 adds half of it
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([4.])
        tensor([4.])
        tensor([7.])

    Source: An et al. 2018, "A PID controller approach for stochastic optimization of deep networks", CVPR.
    Departures: none from the paper; the authors' code does not store $g_1$, so its $D_2$ contains $g_2 - 0$.
    """
    if is_off(momentum):
        return chain()

    def update(update, state, param, ctx):
        total = accumulated(state["momentum_buffer"], update, momentum, dampening, ctx)
        change = change_of(update, state, ctx)
        trend = running_mean(state["d_buffer"], change, momentum)
        new = {"momentum_buffer": total, "d_buffer": trend, "previous_grad": update}
        return update + integral * total + derivative * trend, new

    return zeros("momentum_buffer", "d_buffer", "previous_grad"), update


@per_tensor(
    random=True,
    compiles=True,
    ranges={"beta": "[0, 1)", "alpha": "[0, inf)"},
    example={"lr": 0.1},
)
def scale_by_gravity(
    lr: Scalar, alpha: Scalar = 0.01, beta: Scalar = 0.9, seed: int = 0
):
    r"""Average gradients after damping their large entries toward zero: Gravity's direction.

    $v_0 \sim N(0, (\alpha / \eta)^2)$, $\hat\beta = \frac{\beta t + 1}{t + 2}$,
    $\zeta = g / (1 + (g \max |g|)^2)$, $v_t = \hat\beta v_{t-1} + (1-\hat\beta) \zeta$, direction $v_t$. The maximum
    is taken over the leaf.

    Args:
        lr: $\eta > 0$, read only when the state is initialized; a later link applies the learning rate.
        alpha: $\alpha \ge 0$, standard deviation of the first change of the weights. 0 starts from $v_0 = 0$.
        beta: $\beta$ in [0, 1), the limit of $\hat\beta$.
        seed: Seed of $v_0$, which also depends on the leaf's name.

    Returns:
        A transformation that keeps shapes and dtypes. State: `v`, shaped as the parameter; `seed` and `counter`, shared
        by the whole stage.

    Raises:
        ValueError: If an argument is out of range, or if `lr` is initially 0 and `alpha` is not.

    Example:
        >>> # 2/3 of zeta at the first step
        >>> tx = gradtx.scale_by_gravity(lr=0.1, alpha=0.0, beta=0.0)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([0.5, 1.0, 3.0])}, tx.init({"w": torch.zeros(3)})
        ... )
        >>> updates["w"]
        tensor([0.1026, 0.0667, 0.0244])

    Source: Bahrami and Pouriyan Zadeh 2021, arXiv:2101.09192. Departures: none in value from the authors' PyTorch
    code, which divides by $1 / \max |g|$ and therefore fails for a zero gradient.
    """

    def init(param, rng):
        rate, spread = exact(lr, param.device), exact(alpha, param.device)
        if readable(spread) and spread != 0:
            check_initial_lr(
                "scale_by_gravity",
                rate,
                "alpha",
                "use an initial value above 0, or set alpha to 0",
            )
        still = spread == 0
        size = torch.where(
            still, spread, spread / torch.where(still, torch.ones_like(rate), rate)
        )
        return {"v": (size * rng.normal(param)).to(param.dtype)}

    def update(update, state, param, ctx):
        bounded_update = update / (1 + (update * largest(update.abs())).square())
        beta_t = (beta * ctx.time + 1) / (ctx.time + 2)
        velocity = beta_t * state["v"] + (1 - beta_t) * bounded_update
        return velocity, {"v": velocity}

    return init, update
