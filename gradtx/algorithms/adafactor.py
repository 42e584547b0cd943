"""Adafactor as in the paper; also `adafactor_torch`.

Factored second moments, clipped updates, and steps relative to the weights.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch

from gradtx.arguments import AtLeastOne, Decay, NonNegative, NonPositive, Positive
from gradtx.execution.leaf_rule import OfLeaf
from gradtx.links.clipping import clip_by_block_rms, rms_of_sums
from gradtx.links.factored import (
    averaged_means,
    means_over,
    scale_by_factored_rms,
    vector_slot,
)
from gradtx.links.scaling import scale_by_param_block_rms
from gradtx.maths.entries import at_least, at_most, mean, plus_decay, running_mean
from gradtx.rules import alias, per_tensor
from gradtx.slots import linear, square
from gradtx.transform import chain

__all__ = [
    "adafactor",
    "adafactor_torch",
    "scale_by_adafactor",
    "scale_by_adafactor_torch",
    "scale_by_factored_rms_torch",
]


@per_tensor(whole="sums", length="sets")
def scale_by_factored_rms_torch(
    beta2_decay: NonPositive = -0.8, eps: NonNegative | None = None
):
    r"""Divide by the root of a factored second moment, with the bounds and slots of torch.optim.Adafactor.

    As `scale_by_factored_rms`, but nothing is added to $g_t^2$: $V_{ij} = R_i C_j / \max(\mathrm{mean}(R), \epsilon)$,
    result $g_t / \sqrt{\max(V, \epsilon^2)}$.

    Args:
        beta2_decay: $c \le 0$ in $\beta = 1 - t^{c}$.
        eps: $\epsilon \ge 0$, in the units of a gradient; None for the machine epsilon of the computation dtype.

    Returns:
        A transformation that keeps shapes and dtypes. State: `row_var` and `col_var`, shaped as the parameter with
        size 1 in the last and the second to last dimension, or `variance`, shaped as the parameter.

    Raises:
        ValueError: If `beta2_decay` is positive or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_factored_rms_torch(eps=1.0)
        >>> tx.update({"w": torch.tensor([0.5, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 0.5000, -1.0000])

    Source: torch.optim.Adafactor, after Shazeer and Stern 2018, arXiv:1804.04235. Departures: for parameters in half
    precision, eps=None means the machine epsilon of float32, in which rules compute.
    """

    def update(g, state, p, ctx):
        bound = torch.finfo(g.dtype).eps if eps is None else eps
        beta2, square = 1 - ctx.time**beta2_decay, g.square()
        if g.ndim < 2:
            variance = running_mean(state["variance"], square, beta2)
            new_state = {"variance": variance}
        else:
            sums = yield OfLeaf(
                rows=square.sum(dim=-1, keepdim=True),
                columns=square.sum(dim=-2, keepdim=True),
            )
            old = state["row_var"], state["col_var"]
            rows, columns = averaged_means(*old, sums, g, beta2)
            variance = rows * columns / at_least(mean(rows, -2, keepdim=True), bound)
            new_state = {"row_var": rows, "col_var": columns}
        yield g / at_least(variance, bound * bound).sqrt(), new_state

    slots = {
        "variance": square(vector_slot),
        "row_var": means_over(-1, keepdim=True),
        "col_var": means_over(-2, keepdim=True),
    }
    return slots, update


@per_tensor(whole="sums", needs="params", owns_lr=True)
def scale_by_adafactor(
    lr: NonNegative | None = None,
    eps=1e-3,
    beta1: Decay | None = None,
    weight_decay=0.0,
    scale_parameter=True,
    relative_step=True,
    warmup_init=False,
):
    r"""Turn Adafactor's clipped direction into its step, with relative step size, momentum and decay.

    $\alpha_t = \rho_t \max(\epsilon, \mathrm{rms}(p))$, $m_t = \beta_1 m_{t-1} + (1-\beta_1) \alpha_t u_t$, update
    $-m_t - \alpha_t \lambda p$; without $\beta_1$, $m_t = \alpha_t u_t$.

    Args:
        lr: $\rho \ge 0$, or None with `relative_step`.
        eps: $\epsilon \ge 0$, lower bound of the root mean square of a leaf's weights.
        beta1: $\beta_1$ in [0, 1), or None for no momentum (and no slot).
        weight_decay: $\lambda \ge 0$.
        scale_parameter: Whether $\alpha$ is relative to the weights; otherwise $\alpha = \rho$.
        relative_step: Use $\rho_t = \min(10^{-2}, 1/\sqrt{t})$.
        warmup_init: Use $\rho_t = \min(10^{-6} t, 1/\sqrt{t})$.

    Returns:
        A transformation that keeps shapes and dtypes and owns the learning rate. State: `exp_avg`, shaped as the
        parameter, with `beta1`.

    Raises:
        ValueError: If both or neither of `lr` and `relative_step` are given, or if `warmup_init` is set without
            `relative_step`.

    Example:
        >>> tx = gradtx.scale_by_adafactor()
        >>> params = {"w": torch.tensor([2.0, -2.0])}
        >>> # 0.01 of rms 2
        >>> tx.update({"w": torch.tensor([1.0, 0.5])}, tx.init(params), params)[0]["w"]
        tensor([-0.0200, -0.0100])

    Source: Shazeer and Stern 2018, arXiv:1804.04235. Departures: none from tensor2tensor; fairseq compounds the rate
    where `scale_parameter` is on and `relative_step` off.
    """
    if relative_step and lr is not None:
        raise ValueError(
            "scale_by_adafactor: relative_step sets the rate itself; omit lr, or pass relative_step=False"
        )
    if not relative_step and lr is None:
        raise ValueError("scale_by_adafactor: needs lr, or relative_step=True")
    if warmup_init and not relative_step:
        raise ValueError(
            "scale_by_adafactor: warmup_init applies to the relative step; pass relative_step=True as well"
        )

    def update(u, state, p, ctx):
        rate: Any = lr
        if relative_step:
            most = 1e-6 * ctx.time if warmup_init else 0.01
            rate = at_most(ctx.time**-0.5, most)
        if scale_parameter:
            sums = yield OfLeaf(square=p.square().sum())
            rate = rate * at_least(rms_of_sums(sums, p), eps)
        step, new_state = rate * u, {}
        if beta1 is not None:
            step = new_state["exp_avg"] = running_mean(state["exp_avg"], step, beta1)
        yield plus_decay(-step, weight_decay, p, -rate), new_state

    return update if beta1 is None else ({"exp_avg": linear()}, update)


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_adafactor_torch(lr=1e-2, weight_decay=0.0):
    r"""Turn a direction into torch.optim.Adafactor's step: $-\min(\eta, 1/\sqrt{t}) u - \eta \lambda p$.

    Args:
        lr: $\eta \ge 0$, the upper bound of the relative step.
        weight_decay: $\lambda \ge 0$; the decay is $\eta \lambda$, without the root.

    Returns:
        A transformation that keeps shapes and dtypes and owns the learning rate; no state.

    Example:
        >>> tx = gradtx.scale_by_adafactor_torch(lr=0.8)
        >>> params = {"w": torch.zeros(1)}
        >>> state = tx.init(params)
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": torch.ones(1)}, state, params)
        >>> updates["w"]
        tensor([-0.5000])

    Source: torch.optim.Adafactor. Departures: none.
    """

    def update(update, state, param, ctx):
        step = -at_most(ctx.time**-0.5, lr) * update
        return plus_decay(step, weight_decay, param, -lr), state

    return update


@alias(class_name="AdaFactor")
def adafactor(
    lr: NonNegative | None = None,
    eps: tuple[Positive, NonNegative] = (1e-30, 1e-3),
    clip_threshold: Positive = 1.0,
    decay_rate: NonPositive = -0.8,
    **options: Annotated[Any, scale_by_adafactor],
):
    r"""Adafactor as in the paper: factored second moments, clipped updates, and steps relative to the weights.

    $u = g / \sqrt{V}$ with the factored $V$ of `scale_by_factored_rms`, $u \leftarrow u / \max(1, \mathrm{rms}(u)/d)$,
    $\alpha = \rho_t \max(\epsilon_2, \mathrm{rms}(p))$, $m \leftarrow \beta_1 m + (1-\beta_1) \alpha u$,
    $p \leftarrow p (1 - \alpha \lambda) - m$.

    When to use: large transformers whose optimizer state must be far smaller than Adam's, with the relative steps of
    the paper.

    Args:
        lr: $\rho \ge 0$; must be None with `relative_step`.
        eps: $(\epsilon_1, \epsilon_2)$: the term added to $g^2$ (> 0), and the lower bound of a leaf's root mean square
            (>= 0).
        clip_threshold: $d > 0$.
        decay_rate: $c \le 0$ in $\beta_{2,t} = 1 - t^{c}$.
        beta1: $\beta_1$ in [0, 1), or None for no momentum.
        weight_decay: $\lambda \ge 0$, decoupled, scaled by $\alpha$.
        scale_parameter: Whether steps are relative to the size of the weights; if False, $\alpha = \rho$.
        relative_step: Use $\rho_t = \min(10^{-2}, 1/\sqrt{t})$ instead of `lr`.
        warmup_init: Use $\rho_t = \min(10^{-6} t, 1/\sqrt{t})$ instead of that.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq_row` and `exp_avg_sq_col`, or
        `exp_avg_sq` for leaves with fewer than two dimensions; with `beta1`, also `exp_avg`.

    Raises:
        ValueError: If both or neither of `lr` and `relative_step` are given, or if `warmup_init` is set without
            `relative_step`.

    Example:
        >>> tx = gradtx.adafactor()
        >>> params = {"w": torch.full((2, 2), 3.0)}
        >>> # a hundredth of the weights
        >>> tx.update({"w": torch.full((2, 2), 1e-5)}, tx.init(params), params)[0]["w"]
        tensor([[-0.0300, -0.0300],
                [-0.0300, -0.0300]])

    Source: Shazeer and Stern 2018, arXiv:1804.04235. Departures: none from tensor2tensor; fairseq compounds the rate if
    `scale_parameter` is True and `relative_step` is False. For the version of torch.optim, see `adafactor_torch`.
    """
    return chain(
        scale_by_factored_rms(decay_rate, eps[0]),
        clip_by_block_rms(clip_threshold),
        scale_by_adafactor(lr, eps[1], **options),
    )


@alias(class_name="Adafactor")
def adafactor_torch(
    lr=1e-2,
    beta2_decay: NonPositive = -0.8,
    eps: tuple[NonNegative | None, NonNegative] = (None, 1e-3),
    d: AtLeastOne = 1.0,
    weight_decay=0.0,
):
    r"""Adafactor, equivalent to torch.optim.Adafactor: other bounds and slots, and a rate that caps the relative step.

    $u = g / \sqrt{\max(V, \epsilon_1^2)}$ with the factored $V$ of `scale_by_factored_rms_torch`,
    $\alpha = \max(\epsilon_2, \mathrm{rms}(p)) \min(\eta, 1/\sqrt{t})$,
    $p \leftarrow p (1 - \eta \lambda) - \alpha u / \max(1, \mathrm{rms}(u)/d)$.

    When to use: like `adafactor`, if results or checkpoints must match torch.optim.Adafactor.

    Args:
        lr: $\eta \ge 0$, the cap of the relative step $1/\sqrt{t}$; not a learning rate in the usual sense.
        beta2_decay: $c \le 0$ in $\beta_{2,t} = 1 - t^{c}$.
        eps: $(\epsilon_1, \epsilon_2)$, each >= 0. If $\epsilon_1$ is None, it is the machine epsilon of the compute
            dtype.
        d: Clipping threshold, >= 1.
        weight_decay: $\lambda \ge 0$, decoupled, scaled by $\eta$.

    Returns:
        A transformation whose updates are added to the parameters. State: `row_var` and `col_var`, or `variance` for
        leaves with fewer than two dimensions.

    Example:
        >>> tx = gradtx.adafactor_torch(lr=0.5)
        >>> params = {"w": torch.full((2, 2), 3.0)}
        >>> # half of the weights
        >>> tx.update({"w": torch.ones(2, 2)}, tx.init(params), params)[0]["w"]
        tensor([[-1.5000, -1.5000],
                [-1.5000, -1.5000]])

    Source: torch.optim.Adafactor, after Shazeer and Stern 2018, arXiv:1804.04235. Departures: for half-precision
    parameters, $\epsilon_1$ = None means the machine epsilon of float32, the dtype in which rules compute. For the
    version of the paper, see `adafactor`.
    """
    return chain(
        scale_by_factored_rms_torch(beta2_decay, eps[0]),
        clip_by_block_rms(d),
        scale_by_param_block_rms(eps[1]),
        scale_by_adafactor_torch(lr, weight_decay),
    )
