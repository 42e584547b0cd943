"""LAMB, LARS: steps in proportion to the norm of a layer's weights."""

from __future__ import annotations

import torch

from gradtx.base.exact import Betas, Scalar, exact
from gradtx.execution.rule import OfLeaf
from gradtx.rules import per_tensor
from gradtx.transforms._math import plus_decay, quotient, running_mean, safe_sqrt, zeros

__all__ = ["scale_by_lamb", "scale_by_lars", "scale_by_trust_ratio"]


@per_tensor(sums_of_leaf=True, takes_complex=True, needs=("params",))
def scale_by_trust_ratio(
    clip: bool = False, weight_decay: Scalar = 0.0, always_adapt: bool = True
):
    r"""Rescale each update to the norm of its leaf's weights: $u \mapsto u \lVert p \rVert / \lVert u \rVert$.

    The ratio is 1 where either norm is 0.

    Args:
        clip: Limit the ratio to 1 (LAMBC).
        weight_decay: The decay already included in the update, >= 0; only read without `always_adapt`.
        always_adapt: If False, the ratio is 1 where `weight_decay` is 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `weight_decay` is negative, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_trust_ratio()
        >>> params = {"w": torch.tensor([6.0, 8.0]), "b": torch.zeros(1)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([0.0, 1e-3]), "b": torch.ones(1)}, tx.init(params), params
        ... )
        >>> updates
        {'w': tensor([ 0., 10.]), 'b': tensor([1.])}

    Source: You et al. 2019, arXiv:1904.00962; without clip and decay: Bernstein et al. 2020, arXiv:2002.03432.
    Departures: the optional bounds on the norm of the weights in LAMB's paper are omitted.
    """

    def update(update, state, param, ctx):
        sums = yield OfLeaf(weights=param.square().sum(), size=update.square().sum())
        weights, size = safe_sqrt(sums["weights"]), safe_sqrt(sums["size"])
        ratio = quotient(weights, size, (weights > 0) & (size > 0), 1.0)
        if clip:
            ratio = ratio.clamp(max=1)
        if not always_adapt:
            ratio = torch.where(exact(weight_decay, param.device) == 0, 1.0, ratio)
        yield ratio * update, state

    return update


@per_tensor(
    sums_of_leaf=True,
    takes_complex=lambda arguments: arguments["min_ndim"] == 0,
    needs=("params",),
    ranges={"trust_coefficient": "(0, inf)", "min_ndim": "[0, inf)"},
    example={"lr": 0.5},
)
def scale_by_lars(
    trust_coefficient: Scalar = 0.001,
    weight_decay: Scalar = 0.0,
    eps: Scalar = 1e-8,
    trust_clip: bool = False,
    min_ndim: int = 0,
    lr: Scalar | None = None,
):
    r"""Decay the weights and scale by one rate per leaf, from the norms of its weights and its gradient: LARS.

    $d = \gamma (g + \lambda p)$ with $\gamma = c \lVert p \rVert / (\lVert g \rVert + \lambda \lVert p \rVert +
    \epsilon)$, and $\gamma = 1$ where $\lVert p \rVert$ or $\lVert g \rVert$ is 0.

    Args:
        trust_coefficient: $c > 0$, the change of a leaf relative to its size, per unit of the learning rate.
        weight_decay: $\lambda \ge 0$.
        eps: $\epsilon \ge 0$, in the units of a gradient.
        trust_clip: Use $\gamma \leftarrow \min(\gamma / \eta, 1)$, so that no leaf moves further than under plain
            gradient descent (LARC).
        min_ndim: Leaves with fewer dimensions, >= 0, pass unchanged and without decay; 2 excludes biases and scales.
        lr: $\eta \ge 0$, for `trust_clip` only; a later link applies it.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is out of range, if `trust_clip` is set without `lr`, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_lars(trust_coefficient=0.1, eps=0.0, min_ndim=1)
        >>> params = {"w": torch.tensor([6.0, 8.0]), "scale": torch.tensor(2.0)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([0.0, 1e-3]), "scale": torch.tensor(5.0)},
        ...     tx.init(params),
        ...     params,
        ... )
        >>> updates
        {'w': tensor([0., 1.]), 'scale': tensor(5.)}

    Source: You et al. 2017, arXiv:1708.03888; trust_clip: NVIDIA's apex LARC. Departures: the paper has no eps.
    """
    if trust_clip and lr is None:
        raise ValueError(
            "scale_by_lars: trust_clip needs lr; pass the rate used by scale_by_learning_rate"
        )

    def update(update, state, param, ctx):
        if param.ndim < min_ndim:
            yield update, state
            return
        sums = yield OfLeaf(weights=param.square().sum(), size=update.square().sum())
        weights, size = safe_sqrt(sums["weights"]), safe_sqrt(sums["size"])
        total = size + weight_decay * weights + eps
        ratio = quotient(
            trust_coefficient * weights, total, (weights > 0) & (size > 0), 1.0
        )
        if trust_clip:
            # min(ratio / lr, 1), valid at lr 0.
            ratio = ratio / torch.maximum(ratio, exact(lr, param.device))
        yield ratio * plus_decay(update, weight_decay, param), state

    return update


@per_tensor(elementwise=True, nonnegative=("exp_avg_sq",))
def scale_by_lamb(
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-6,
    bias_correction: bool = True,
    grad_averaging: bool = True,
):
    r"""Divide the mean gradient by its root mean square as in Adam, with optional corrections: LAMB's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2$, direction
    $\hat m_t / (\sqrt{\hat v_t} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, in the units of a gradient.
        bias_correction: If False, use $m_t / (\sqrt{v_t} + \epsilon)$.
        grad_averaging: If False, use $m_t = \beta_1 m_{t-1} + g_t$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_lamb(betas=(0.9, 0.99), grad_averaging=False)
        >>> tx.update({"w": torch.tensor([1e-2, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([  9.9990, -10.0000])

    Source: You et al. 2019, arXiv:1904.00962. Departures: `grad_averaging` is from NVIDIA's apex.
    """
    beta1, beta2 = betas
    share = 1 - beta1 if grad_averaging else 1.0

    def update(update, state, param, ctx):
        mean = beta1 * state["exp_avg"] + share * update
        square = running_mean(state["exp_avg_sq"], update.square(), beta2)
        new = {"exp_avg": mean, "exp_avg_sq": square}
        if bias_correction:
            mean = mean / ctx.bias_correction(beta1)
            square = square / ctx.bias_correction(beta2)
        return mean / (safe_sqrt(square) + eps), new

    return zeros("exp_avg", "exp_avg_sq"), update
