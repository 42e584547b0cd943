"""Factored and blockwise second moments: Adafactor, CAME, Adam-mini."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.algorithms.weight_decay import with_decay
from gradtx.arguments import (
    AtLeastOne,
    Count,
    Decay,
    NonNegative,
    NonPositive,
    Positive,
    UnfitError,
)
from gradtx.execution.leaf_rule import OfLeaf
from gradtx.maths.entries import (
    at_least,
    at_most,
    corrected_root,
    mean,
    plus_decay,
    running_mean,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import Slot, ema, linear, square
from gradtx.transform import chain

__all__ = [
    "adafactor",
    "adafactor_torch",
    "adam_mini",
    "came",
    "clip_by_block_rms",
    "scale_by_adafactor",
    "scale_by_adafactor_torch",
    "scale_by_block_adam",
    "scale_by_confidence",
    "scale_by_factored_rms",
    "scale_by_factored_rms_torch",
    "scale_by_param_block_rms",
]


def _vector(param):
    """Return the slot of a leaf that has no rows and columns."""
    return torch.zeros_like(param) if param.ndim < 2 else None


def _means_over(dim: int, keepdim: bool = False) -> Slot:
    """Declare means over the columns (-1) or the rows (-2) of leaves that have both."""

    def first(param):
        if param.ndim < 2:
            return None
        shape = list(param.shape)
        del shape[dim]
        means = param.new_zeros(shape)
        return means.unsqueeze(dim) if keepdim else means

    return square(first)


@per_tensor(whole="sums")
def scale_by_factored_rms(
    decay_rate: NonPositive = -0.8,
    eps: Positive = 1e-30,
    beta: Decay | None = None,
):
    r"""Divide by the root of a second moment of which only row and column means are stored.

    With $s = g_t^2 + \epsilon$ and $\beta = 1 - t^{c}$: $R_t = \beta R_{t-1} + (1-\beta)\, \mathrm{mean}_{-1}(s)$,
    $C_t = \beta C_{t-1} + (1-\beta)\, \mathrm{mean}_{-2}(s)$, $V_{ij} = R_i C_j / \mathrm{mean}(R)$; the result is
    $g_t / \sqrt{V}$. Leaves with fewer than two dimensions store the whole
    $V_t = \beta V_{t-1} + (1-\beta) s$.

    Args:
        decay_rate: $c \le 0$. The first step has $\beta = 0$.
        eps: $\epsilon > 0$, in the units of a squared gradient; prevents a division by 0 for rows of zeros.
        beta: A constant $\beta$ in [0, 1) instead of $1 - t^c$, starting from 0 without bias correction (CAME).

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq_row` (the parameter's shape without the last
        dimension) and `exp_avg_sq_col` (without the second to last), or `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If `decay_rate` is positive, if `eps` is not above 0, or if `beta` is outside [0, 1).

    Example:
        >>> tx = gradtx.scale_by_factored_rms()
        >>> state = tx.init({"w": torch.zeros(2, 3)})
        >>> {
        ...     slot: tuple(by_leaf["w"].shape)
        ...     for slot, by_leaf in state["scale_by_factored_rms"].items()
        ... }
        {'exp_avg_sq_row': (2,), 'exp_avg_sq_col': (3,)}
        >>> tx.update({"w": torch.tensor([[1.0, -2.0, 4.0], [3.0, 4.0, 6.0]])}, state)[0]["w"]
        tensor([[ 0.6249, -0.8837,  1.0961],
                [ 1.0999,  1.0370,  0.9647]])

    Source: Shazeer and Stern 2018, arXiv:1804.04235. Departures: means instead of sums, which is equivalent; the last
    two dimensions are factored for any rank, as in tensor2tensor and fairseq.
    """

    def update(g, state, p, ctx):
        beta2 = 1 - ctx.time**decay_rate if beta is None else beta
        square = g.square() + eps
        if g.ndim < 2:
            v = running_mean(state["exp_avg_sq"], square, beta2)
            yield g / v.sqrt(), {"exp_avg_sq": v}
            return
        sums = yield OfLeaf(rows=square.sum(dim=-1), columns=square.sum(dim=-2))
        old = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        rows, columns = _averaged(*old, sums, g, beta2)
        new = {"exp_avg_sq_row": rows, "exp_avg_sq_col": columns}
        yield over_root(g, rows, columns), new

    slots = {
        "exp_avg_sq": square(_vector),
        "exp_avg_sq_row": _means_over(-1),
        "exp_avg_sq_col": _means_over(-2),
    }
    return slots, update


def _averaged(
    rows: Tensor, columns: Tensor, sums, x: Tensor, beta
) -> tuple[Tensor, Tensor]:
    """Average the mean squares of rows and columns over time."""
    of_rows = sums["rows"] / max(x.shape[-1], 1)
    of_columns = sums["columns"] / max(x.shape[-2], 1)
    return running_mean(rows, of_rows, beta), running_mean(columns, of_columns, beta)


def _rms(sums, x: Tensor) -> Tensor:
    """Return the root mean square of a whole leaf, or 0 if it is empty."""
    return safe_sqrt(sums["square"] / max(x.numel(), 1))


def over_root(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Divide by the root of the outer product of rows and columns, over the mean of the rows."""
    # Two roots, because the product of two eps underflows to 0 in float32.
    share = (rows / mean(rows, -1, keepdim=True)).sqrt()
    return x / share.unsqueeze(-1) / columns.sqrt().unsqueeze(-2)


@per_tensor(whole="sums")
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
            new = {"variance": variance}
        else:
            sums = yield OfLeaf(
                rows=square.sum(dim=-1, keepdim=True),
                columns=square.sum(dim=-2, keepdim=True),
            )
            old = state["row_var"], state["col_var"]
            rows, columns = _averaged(*old, sums, g, beta2)
            variance = rows * columns / at_least(mean(rows, -2, keepdim=True), bound)
            new = {"row_var": rows, "col_var": columns}
        yield g / at_least(variance, bound * bound).sqrt(), new

    slots = {
        "variance": square(_vector),
        "row_var": _means_over(-1, keepdim=True),
        "col_var": _means_over(-2, keepdim=True),
    }
    return slots, update


@per_tensor(whole="sums")
def clip_by_block_rms(threshold: Positive = 1.0):
    r"""Scale each leaf to a root mean square of at most `threshold`: $u / \max(1, \mathrm{rms}(u)/d)$.

    An infinite root mean square gives the factor 0, a NaN makes the whole leaf NaN.

    Args:
        threshold: $d > 0$.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `threshold` is not above 0.

    Example:
        >>> tx = gradtx.clip_by_block_rms(1.0)
        >>> tx.update({"a": torch.tensor([4.0, 4.0]), "b": torch.tensor([0.5])}, tx.init({}))[0]
        {'a': tensor([1., 1.]), 'b': tensor([0.5000])}

    Source: Shazeer and Stern 2018, arXiv:1804.04235. Departures: none.
    """

    def update(update, state, param, ctx):
        sums = yield OfLeaf(square=update.square().sum())
        yield update / at_least(_rms(sums, update) / threshold, 1.0), state

    return update


@per_tensor(whole="sums", needs="params")
def scale_by_param_block_rms(min_scale: NonNegative = 1e-3):
    r"""Make updates relative to the size of a leaf's weights: $u \max(\epsilon, \mathrm{rms}(p))$.

    Args:
        min_scale: $\epsilon \ge 0$, which allows zero weights to learn.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `min_scale` is negative, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_param_block_rms()
        >>> params = {"w": torch.tensor([5.0, -5.0])}
        >>> tx.update({"w": torch.tensor([1.0, 0.5])}, tx.init(params), params)[0]["w"]
        tensor([5.0000, 2.5000])

    Source: Shazeer and Stern 2018, arXiv:1804.04235. Departures: none.
    """

    def update(update, state, param, ctx):
        sums = yield OfLeaf(square=param.square().sum())
        yield update * at_least(_rms(sums, param), min_scale), state

    return update


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
        ValueError: If an argument is out of range, if `params` is missing, if both or neither of `lr` and
            `relative_step` are given, if `warmup_init` is set without `relative_step`, or if a later link scales by a
            learning rate or decays.

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
            rate = rate * at_least(_rms(sums, p), eps)
        step, new = rate * u, {}
        if beta1 is not None:
            step = new["exp_avg"] = running_mean(state["exp_avg"], step, beta1)
        yield plus_decay(-step, weight_decay, p, -rate), new

    return update if beta1 is None else ({"exp_avg": linear()}, update)


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_adafactor_torch(lr=1e-2, weight_decay=0.0):
    r"""Turn a direction into torch.optim.Adafactor's step: $-\min(\eta, 1/\sqrt{t}) u - \eta \lambda p$.

    Args:
        lr: $\eta \ge 0$, the upper bound of the relative step.
        weight_decay: $\lambda \ge 0$; the decay is $\eta \lambda$, without the root.

    Returns:
        A transformation that keeps shapes and dtypes and owns the learning rate; no state.

    Raises:
        ValueError: If an argument is negative, if `params` is missing, or if a later link scales by a learning rate or
            decays.

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


@per_tensor
def scale_by_confidence(
    beta1: Decay = 0.9, beta3: Decay = 0.9999, eps: Positive = 1e-16
):
    r"""Average updates and divide by their deviation from the average: CAME's confidence.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) u_t$, $s = (u_t - m_t)^2 + \epsilon$. The state averages the row means,
    $R \leftarrow \beta_3 R + (1-\beta_3) \, \mathrm{mean}_{-1}(s)$, and likewise the column means $C$. The result is
    $m_t / \sqrt{R_i C_j / \mathrm{mean}(R)}$. There is no bias correction, so updates are large in the first
    $1/(1-\beta_3)$ steps. Leaves with fewer than two dimensions return $m_t$.

    Args:
        beta1: $\beta_1$ in [0, 1).
        beta3: $\beta_3$ in [0, 1).
        eps: $\epsilon > 0$, in the units of a squared update.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, shaped as the parameter, and for leaves with
        two or more dimensions `exp_avg_res_row` (the parameter's shape without the last dimension) and
        `exp_avg_res_col` (without the second to last).

    Raises:
        ValueError: If `beta1` or `beta3` is outside [0, 1), or if `eps` is not above 0.

    Example:
        >>> tx = gradtx.scale_by_confidence(beta1=0.5, beta3=0.0)
        >>> state = tx.init({"w": torch.zeros(2, 1)})
        >>> # the second row's updates disagree
        >>> for update in ([[1.0], [1.0]], [[1.0], [-1.0]]):
        ...     updates, state = tx.update({"w": torch.tensor(update)}, state)
        ...     print(updates["w"].T)
        tensor([[1., 1.]])
        tensor([[ 3.0000, -0.3333]])

    Source: Luo et al. 2023, arXiv:2307.02047. Departures: none.
    """

    def update(u, state, p, ctx):
        m = running_mean(state["exp_avg"], u, beta1)
        if u.ndim < 2:
            return m, {"exp_avg": m}
        residual = (u - m).square() + eps
        rows = running_mean(state["exp_avg_res_row"], mean(residual, -1), beta3)
        columns = running_mean(state["exp_avg_res_col"], mean(residual, -2), beta3)
        new = {"exp_avg": m, "exp_avg_res_row": rows, "exp_avg_res_col": columns}
        return over_root(m, rows, columns), new

    slots = {
        "exp_avg": ema(beta1),
        "exp_avg_res_row": _means_over(-1),
        "exp_avg_res_col": _means_over(-2),
    }
    return slots, update


def _blocks(x: Tensor, block) -> int:
    """Return the number of blocks of a leaf, which are equal parts along dimension 0."""
    if block == "row":
        return x.shape[0] if x.ndim > 1 else 1
    if block == "tensor":
        return 1
    size = x.shape[0] if x.ndim else 1
    if size % block:
        raise UnfitError(
            f"has {size} entries along dimension 0, which is not divisible into {block} blocks; use partition(...)"
        )
    return block


def _means(x: Tensor, count: int) -> Tensor:
    """Return the mean of each block, or 0 for empty blocks."""
    if not x.numel():
        return x.new_zeros((count,))
    return x.reshape(count, -1).sum(dim=1) / (x.numel() // count)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """Repeat each block's value for its indices of dimension 0, in a shape that broadcasts."""
    if values.numel() == 1 or not like.numel():
        return values.sum()
    repeated = values.unsqueeze(1).expand(-1, like.shape[0] // values.numel())
    return repeated.reshape(-1, *[1] * (like.ndim - 1))


@per_tensor
def scale_by_block_adam(
    betas=(0.9, 0.999), eps=1e-8, block: Count | Literal["row", "tensor"] = "row"
):
    r"""Divide the mean gradient by one root mean square per block of weights: Adam-mini's direction.

    Adam's $m_t$ and, for every block $b$, $v_b \leftarrow \beta_2 v_b + (1-\beta_2) \, \mathrm{mean}_b(g_t^2)$;
    direction $\hat m_t / (\sqrt{\hat v_b} + \epsilon)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root.
        block: "row": each index of dimension 0 (the whole leaf if it has fewer than two dimensions); "tensor": the
            leaf; a number: that many equal blocks along dimension 0, such as attention heads.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, shaped as the parameter, and `vmean`, one entry
        per block.

    Raises:
        TypeError: If `block` is neither a name nor a number.
        ValueError: If an argument is out of range, if the name of a block is unknown, or if the number of blocks does
            not divide dimension 0.

    Example:
        >>> tx = gradtx.scale_by_block_adam(betas=(0.0, 0.999))
        >>> state = tx.init({"w": torch.zeros(2, 2)})
        >>> updates, state = tx.update({"w": torch.tensor([[1.0, 7.0], [10.0, 70.0]])}, state)
        >>> # the rms of the first row is 5
        >>> updates["w"], state["scale_by_block_adam"]["vmean"]["w"].shape
        (tensor([[0.2000, 1.4000],
                [0.2000, 1.4000]]), torch.Size([2]))

    Source: Zhang et al. 2024, arXiv:2406.16793. Departures: blocks are selected by `block` and by `partition`, whereas
    the authors' code uses module names. Row blocks apply to leaves of any rank.
    """
    beta1, beta2 = betas

    def first(param):
        return param.new_zeros((_blocks(param, block),))

    def update(g, state, p, ctx):
        m = running_mean(state["exp_avg"], g, beta1)
        means = _means(g.square(), _blocks(g, block))
        v = running_mean(state["vmean"], means, beta2)
        root = corrected_root(v, ctx, beta2) + eps
        direction = m / ctx.bias_correction(beta1) / _spread(root, g)
        return direction, {"exp_avg": m, "vmean": v}

    return {"exp_avg": torch.zeros_like, "vmean": first}, update


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
        ValueError: If a hyperparameter is out of range, if `params` is missing, if both or neither of `lr` and
            `relative_step` are given, or if `warmup_init` is set without `relative_step`.

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

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

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


@alias(class_name="CAME")
def came(
    lr=2e-4,
    betas=(0.9, 0.999, 0.9999),
    eps: tuple[Positive, Positive] = (1e-30, 1e-16),
    clip_threshold: Positive = 1.0,
    weight_decay=0.0,
):
    r"""CAME: Adafactor with a momentum weighted by its agreement with updates.

    $x$ = `scale_by_factored_rms`$(g)$, clipped to a root mean square of `clip_threshold`,
    $p \leftarrow p (1 - \eta \lambda) - \eta u$ with $u$ = `scale_by_confidence`$(x)$.

    When to use: large models for which AdamW's second moment does not fit; the paper reports AdamW's quality with the
    memory of SGD with momentum.

    Args:
        lr: $\eta$ in [0, inf). The first $1/(1-\beta_3)$ steps are much longer than that.
        betas: Decay rates of the momentum, of the mean squares of gradients and of the residuals, each in [0, 1).
        eps: Added to the squares of gradients and of residuals, each above 0.
        clip_threshold: Largest root mean square of a leaf's $x$, > 0.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`; for leaves with two or more
        dimensions, `exp_avg_sq_row`, `exp_avg_sq_col`, `exp_avg_res_row`, `exp_avg_res_col`; for others, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.came(lr=0.1)  # a vector has a momentum only
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0100,  0.0100])

    Source: Luo et al. 2023, arXiv:2307.02047. Departures: none from the authors' code.
    """
    beta1, beta2, beta3 = betas
    direction = chain(
        scale_by_factored_rms(eps=eps[0], beta=beta2),
        clip_by_block_rms(clip_threshold),
        scale_by_confidence(beta1, beta3, eps[1]),
    )
    return with_decay(direction, weight_decay, True, lr)


@alias
def adam_mini(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    block: Count | Literal["row", "tensor"] = "row",
):
    r"""Adam-mini: AdamW with one second moment per block of weights.

    $v_b \leftarrow \beta_2 v_b + (1-\beta_2) \, \mathrm{mean}_b(g^2)$,
    $p \leftarrow p (1 - \eta \lambda) - \eta \hat m / (\sqrt{\hat v_b} + \epsilon)$.

    When to use: transformers, at half of AdamW's memory; the paper reports equal losses with AdamW's hyperparameters.
    Queries and keys need one block per head: use `partition`.

    Args:
        lr: $\eta$ in [0, inf), the root mean square change of the weights of a block per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        block: "row": each index of dimension 0 (the leaf, if it has fewer than two dimensions); "tensor": the leaf; a
            number: that many equal blocks along dimension 0, such as heads.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `vmean`.

    Raises:
        TypeError: If `block` is neither a name nor a number.
        ValueError: If a hyperparameter is out of range, if the name of a block is unknown, if the number of blocks does
            not divide dimension 0 of a leaf, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adam_mini(lr=0.1)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[1.0, 7.0], [10.0, 70.0]])},
        ...     tx.init({"w": torch.zeros(2, 2)}),
        ... )
        >>> updates["w"]
        tensor([[-0.0200, -0.1400],
                [-0.0200, -0.1400]])

    Source: Zhang et al. 2024, arXiv:2406.16793. Departures: see `scale_by_block_adam`.
    """
    return with_decay(scale_by_block_adam(betas, eps, block), weight_decay, True, lr)
