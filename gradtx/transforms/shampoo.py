"""Shampoo and SOAP: links with factors for the rows and columns of a matrix."""

from __future__ import annotations

import functools
from typing import Any

import torch

from gradtx.arguments import (
    Count,
    Decay,
    Decays,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Static,
    is_off,
)
from gradtx.base.exact import Betas, Scalar, exact
from gradtx.rules import per_tensor
from gradtx.slots import init_of, linear, square
from gradtx.transform import GradientTransformation, chain
from gradtx.transforms._math import (
    adam_moments,
    at_least,
    grafted,
    hat_rate,
    plus_decay,
    rms,
    running_mean,
    safe_sqrt,
)
from gradtx.transforms._matrix import (
    blocks,
    eigenbasis,
    gram,
    inverse_root,
    joined,
    merged,
    multiplied,
)
from gradtx.transforms._rotation import (
    Factors,
    Rotation,
    averaged,
    change_basis,
    is_empty,
    iterated,
    kl_scales,
    kl_statistics,
    whitened,
)
from gradtx.transforms.adam import scale_by_adam_hat

__all__ = [
    "scale_by_gradient_rms",
    "scale_by_kl_shampoo",
    "scale_by_late_rms",
    "scale_by_mean_side",
    "scale_by_scalable_shampoo",
    "scale_by_shampoo",
    "scale_by_soap",
]


def _decays(arguments: dict[str, Any]) -> tuple[str, ...]:
    """Return the arguments that the owner of a leaf needs: the parameter, if it is decayed."""
    return () if is_off(arguments["weight_decay"]) else ("param",)


@per_tensor(needs=("params",), compiles="lists", whole=_decays)
def scale_by_shampoo(
    momentum: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
    matrix_eps: Positive = 1e-4,
    preconditioning_compute_steps: Count = 1,
    variant: str = "paper",
    *,
    stagger: Static[bool] = False,
):
    r"""Multiply a gradient along each of its k dimensions by an inverse root of its accumulated statistics: Shampoo.

    $u = (1-\mu) g_t + \mu b_{t-1} + \lambda p$, where $b$ is the previous result ($u = g_1 + \lambda p$ at first).
    For each dimension $i$: $H_i \leftarrow H_i + \mathrm{mat}_i(x) \mathrm{mat}_i(x)^\top$ from $\epsilon I$, where
    $\mathrm{mat}_i$ moves dimension i to the front and flattens the others, and $R_i = H_i^{-e}$, refreshed where
    $(t-1) \bmod n = 0$. The result is $b_t = u \times_1 R_1 \cdots \times_k R_k$.

    Args:
        momentum: $\mu$ in [0, 1).
        weight_decay: $\lambda \ge 0$, coupled; it is part of this link, because $b$ is its output.
        matrix_eps: $\epsilon > 0$, in the units of a squared gradient.
        preconditioning_compute_steps: $n \ge 1$, steps between the roots. An optimizer from `as_optimizer` computes a
            root only when it is due. So does pure use of plain tensors on the CPU without `stagger`; otherwise, it
            computes roots at every step and selects.
        variant: "paper": $x = u$ and $e = 1/(2k)$. "moskomule": $x$ is $u$ after the previous dimensions, and
            $e = 1/k$.
        stagger: Compute the roots of each leaf at the first step, and then at its own step within the period, derived
            from its name, so that no later step computes those of all leaves.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer`, shaped as the parameter, and for each
        dimension i of size n `pre_cond_i` ($H_i$) and `inv_pre_cond_i` ($R_i$), n x n. Memory n^2 and time n^3 per
        dimension: for large ones use `scale_by_scalable_shampoo`. For a 0-d leaf, the result is $u$.

    Raises:
        ValueError: If an argument is out of range, if `variant` is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_shampoo(matrix_eps=1e-8)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> # orthogonal
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[3.0, 0.0], [0.0, -0.1]])}, tx.init(params), params
        ... )
        >>> updates["w"]
        tensor([[ 1.0000,  0.0000],
                [ 0.0000, -1.0000]])

    Source: Gupta et al. 2018, arXiv:1802.09568, Algorithm 2; momentum and "moskomule": moskomule/shampoo.pytorch.
    Departures: none. Derivatives through the roots are exact, even at equal eigenvalues; second derivatives are not:
    they lack terms.
    """
    if variant not in ("paper", "moskomule"):
        raise ValueError(
            f"scale_by_shampoo: variant must be 'paper' or 'moskomule', got {variant!r}"
        )

    def exponent(tensor):
        return 1 / (2 * tensor.ndim) if variant == "paper" else 1 / tensor.ndim

    def init(param):
        eyes = [
            torch.eye(size, dtype=param.dtype, device=param.device)
            for size in param.shape
        ]
        return {
            "momentum_buffer": torch.zeros_like(param),
            "pre_cond": [matrix_eps * eye for eye in eyes],
            # Their roots, so that a leaf whose first gradient arrives between two roots can move.
            "inv_pre_cond": [matrix_eps ** -exponent(param) * eye for eye in eyes],
        }

    def update(update, state, param, ctx):
        mixed = (1 - momentum) * update + momentum * state["momentum_buffer"]
        start = torch.where(ctx.seen, mixed, update)
        phase = 1 + ctx.turn(preconditioning_compute_steps) if stagger else 1

        def due(step):
            return (step == 1) | (
                step % preconditioning_compute_steps
                == phase % preconditioning_compute_steps
            )

        direction = start = plus_decay(start, weight_decay, param)
        statistics, roots = [], []
        for i in range(update.ndim):
            seen = start if variant == "paper" else direction
            statistics.append(state["pre_cond"][i] + gram(seen, i))
            root = functools.partial(
                inverse_root, statistics[i], exponent(update), floor=matrix_eps
            )
            old = state["inv_pre_cond"][i]
            roots.append(ctx.when(due, root, lambda old=old: old))
            direction = multiplied(direction, roots[i], i)
        slots = {"pre_cond": statistics, "inv_pre_cond": roots} if update.ndim else {}
        return direction, {"momentum_buffer": direction, **slots}

    return init, update


_GRAFTS = ("none", "sgd", "adagrad", "rmsprop", "sqrtn")
_DIMENSIONS = {"all": slice(None), "input": slice(-1), "output": slice(-1, None)}


@per_tensor(needs=("params",), compiles="lists", whole=_decays)
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
    graft_type: str = "sgd",
    pre_conditioner_type: str = "all",
    nesterov: bool = True,
    diagonal_eps: NonNegative = 1e-10,
    matrix_eps: Positive = 1e-6,
):
    r"""Combine blockwise Shampoo with averaged statistics, the step length of a simpler method, and momentum.

    A leaf is reshaped (neighboring dimensions are merged while their product is at most `block_size`) and split into
    blocks. For each block $G$ and preconditioned dimension:
    $L \leftarrow \beta_2 L + w_2\, \mathrm{mat}(G) \mathrm{mat}(G)^\top$ from $\epsilon I$ ($w_2 = 1-\beta_2$, or 1 for
    $\beta_2 = 1$) and
    $P = (L + \epsilon \max(\lambda_{\max}(L), 10^{-16}) I)^{-1/e}$, initially $I$. $s$ is the gradient with each block
    multiplied by its $P$s, rescaled to the norm of $u$, the step of the grafted method. Two momenta are kept, of $s$
    and of $u$; the latter is returned before `start_preconditioning_step`.

    Args:
        betas: Decay of the momenta and of the statistics, each in [0, 1].
        moving_average_for_momentum: Weight the input of a momentum by $1 - \beta_1$ instead of 1.
        weight_decay: $\lambda \ge 0$, coupled: added to $s$ and to $u$ after grafting.
        inverse_exponent_override: $e > 0$, or 0 for twice the number of preconditioned dimensions.
        start_preconditioning_step: The first step with a preconditioned direction, >= 0.
        preconditioning_compute_steps: Roots are computed where $t$ is a multiple of this, >= 1. An optimizer from
            `as_optimizer` computes them only when they are due. So does pure use of plain tensors on the CPU;
            otherwise, it computes roots at every step and selects.
        statistics_compute_steps: Statistics are updated where $t$ is a multiple of this, >= 1.
        block_size: Largest side of a block, >= 1.
        skip_preconditioning_rank_lt: Leaves with fewer dimensions than this, >= 0, are not preconditioned.
        no_preconditioning_for_layers_with_dim_gt: Leaves with a larger dimension, >= 0, are not preconditioned.
        shape_interpretation: Whether to merge dimensions. A leaf that merges into a vector is not preconditioned.
        graft_type: Determines $u$: "sgd" is $g$, "adagrad" and "rmsprop" are $g / (\sqrt{D} + \epsilon_d)$ with $D$ the
            sum or the average of $g^2$, "sqrtn" is the sign of $g$; "none" keeps the norm of $s$ (and $u = g$).
        pre_conditioner_type: Preconditioned dimensions: "all", "input" (all but the last) or "output" (the last).
        nesterov: Look one step ahead in both momenta.
        diagonal_eps: $\epsilon_d \ge 0$, in the units of a gradient.
        matrix_eps: $\epsilon > 0$, relative to the largest eigenvalue.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum`, `graft_momentum`, with "adagrad" and "rmsprop"
        `graft_statistics`, shaped as the parameter; `statistics_i` and `preconditioners_i`, n x n, numbered block by
        block, with the dimensions of each block in order.

    Raises:
        ValueError: If an argument is out of range, if `graft_type` or `pre_conditioner_type` is unknown, or if `params`
            is missing.

    Example:
        >>> tx = gradtx.scale_by_scalable_shampoo(block_size=4)
        >>> state = tx.init({"w": torch.zeros(4, 6)})["scale_by_scalable_shampoo"]
        >>> [tuple(state[f"statistics_{i}"]["w"].shape) for i in range(4)]  # 4 x 4, then 4 x 2
        [(4, 4), (4, 4), (4, 4), (2, 2)]

    Source: Anil et al. 2020, arXiv:2002.09018; grafting: Agarwal et al. 2020, arXiv:2002.11803; in the form of
    google-research's scalable_shampoo. Departures: exact roots from eigenvalues, where the authors iterate. Derivatives
    through the roots are exact, even at equal eigenvalues (except that of the ridge at equal largest ones); second
    derivatives are not available.
    """
    if graft_type not in _GRAFTS:
        raise ValueError(
            f"scale_by_scalable_shampoo: graft_type must be one of {_GRAFTS}, got {graft_type!r}"
        )
    if pre_conditioner_type not in _DIMENSIONS:
        known = tuple(_DIMENSIONS)
        raise ValueError(
            f"scale_by_scalable_shampoo: pre_conditioner_type must be one of {known}, got {pre_conditioner_type!r}"
        )
    beta1, beta2 = betas
    has_statistics = graft_type in ("adagrad", "rmsprop")
    share = 1 - beta1 if moving_average_for_momentum else 1.0

    def shape_of(x):
        """Return the shape in which a leaf is preconditioned, or () if it is not."""
        shape = merged(x.shape, block_size) if shape_interpretation else tuple(x.shape)
        small = (
            x.numel() == 0 or len(shape) < 2 or x.ndim < skip_preconditioning_rank_lt
        )
        return (
            ()
            if small or max(x.shape) > no_preconditioning_for_layers_with_dim_gt
            else shape
        )

    def dimensions(shape):
        return list(range(len(shape)))[_DIMENSIONS[pre_conditioner_type]]

    def identities(param):
        shape = shape_of(param)
        pieces = blocks(param.reshape(shape), block_size) if shape else []
        sizes = [piece.shape[i] for piece in pieces for i in dimensions(shape)]
        return [
            torch.eye(size, dtype=param.dtype, device=param.device) for size in sizes
        ]

    def preconditioned(update, state, shape, ctx):
        """Return the direction, the statistics and the roots."""
        dims, pieces = dimensions(shape), blocks(update.reshape(shape), block_size)
        exponent = 1 / (inverse_exponent_override or 2 * len(dims))
        directions, statistics, roots = [], [], []
        for piece in pieces:
            direction = piece
            for i in dims:
                old = state["statistics"][len(roots)]
                old_root = state["preconditioners"][len(roots)]
                seen = functools.partial(averaged, old, gram(piece, i), ctx)
                statistics.append(
                    ctx.every(statistics_compute_steps, 0, seen, lambda old=old: old)
                )
                root = functools.partial(
                    inverse_root, statistics[-1], exponent, ridge=matrix_eps
                )
                roots.append(
                    ctx.every(
                        preconditioning_compute_steps, 0, root, lambda old=old_root: old
                    )
                )
                direction = multiplied(direction, roots[-1], i)
            directions.append(direction)
        return (
            joined(directions, shape, block_size).reshape(update.shape),
            statistics,
            roots,
        )

    def averaged(old, fresh, ctx):
        decay = exact(beta2, ctx.time.device)
        # A decay of 1 computes a sum.
        return beta2 * old + torch.where(decay == 1, 1.0, 1 - decay) * fresh

    def update(update, state, param, ctx):
        new, simple = {}, update
        if has_statistics:
            square = update.square()
            old = state["graft_statistics"]
            seen = (
                old + square if graft_type == "adagrad" else averaged(old, square, ctx)
            )
            new["graft_statistics"] = seen
            simple = update / (safe_sqrt(seen) + diagonal_eps)
        elif graft_type == "sqrtn":
            simple = update.sign()
        shape, direction = shape_of(update), simple
        if shape:
            direction, new["statistics"], new["preconditioners"] = preconditioned(
                update, state, shape, ctx
            )
        if graft_type != "none":
            direction = grafted(direction, simple, 1e-16)
        direction = plus_decay(direction, weight_decay, param)
        simple = plus_decay(simple, weight_decay, param)
        momentum = new["momentum"] = beta1 * state["momentum"] + share * direction
        simple_momentum = new["graft_momentum"] = (
            beta1 * state["graft_momentum"] + share * simple
        )
        if nesterov:
            momentum = beta1 * momentum + share * direction
            simple_momentum = beta1 * simple_momentum + share * simple
        return torch.where(
            ctx.step >= start_preconditioning_step, momentum, simple_momentum
        ), new

    slots = {
        "momentum": linear(),
        "graft_momentum": linear(),
        "graft_statistics": square() if has_statistics else None,
        "statistics": lambda p: [matrix_eps * eye for eye in identities(p)],
        "preconditioners": identities,
    }
    return slots, update


@per_tensor(compiles=False)
def scale_by_soap(
    betas: Decays = (0.95, 0.95),
    shampoo_beta: Decay | None = None,
    eps: NonNegative = 1e-8,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_gradient: bool = False,
    correct_bias: bool = True,
    *,
    stagger: Static[bool] = False,
):
    r"""Run Adam on the gradient rotated into the eigenbases of its Kronecker factors: SOAP.

    The first step returns 0: it sets $G_i = (1-\beta_s)\, \mathrm{mat}_i(g) \mathrm{mat}_i(g)^\top$ for each dimension
    i and $Q_i$ to its eigenvectors, largest eigenvalue first. Then, with $s = t - 1$ and a prime denoting rotation by
    all $Q_i^\top$: $m \leftarrow \beta_1 m + (1-\beta_1) g$, $v \leftarrow \beta_2 v + (1-\beta_2) g'^2$, and the
    direction is $m' / (\sqrt{v} + \epsilon)$ rotated back, times $\sqrt{1-\beta_2^s} / (1-\beta_1^s)$. Afterwards,
    $G_i \leftarrow \beta_s G_i + (1-\beta_s)\, \mathrm{mat}_i(g) \mathrm{mat}_i(g)^\top$, and where $s \bmod n = 0$
    the columns of $Q_i$, and $v$ with them, are sorted by $\mathrm{diag}(Q_i^\top G_i Q_i)$, and
    $Q_i \leftarrow \mathrm{QR}(G_i Q_i)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        shampoo_beta: $\beta_s$ in [0, 1); None for $\beta_2$.
        eps: $\epsilon \ge 0$, added to the root before its bias correction.
        precondition_frequency: $n \ge 1$. An optimizer from `as_optimizer` computes bases only when they are due, and
            so does pure use of plain tensors on the CPU without `stagger`; otherwise, it computes bases at every step
            and selects.
        max_precondition_dim: Dimensions larger than this, >= 1, are not rotated.
        merge_dims: Merge neighboring dimensions, left to right, while their product is at most that limit.
        precondition_1d: Whether to rotate 1-d leaves as well.
        normalize_gradient: Divide the direction by its root mean square.
        correct_bias: Whether to apply the factor of the two bias corrections.
        stagger: Refresh the bases of each leaf at its own step within the period, derived from its name, so that no
            step after the first refreshes all leaves.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` and `exp_avg_sq` (in the rotated basis), shaped
        as the parameter, and `GG_i`, `Q_i`, n x n, for each rotated dimension in order. A leaf without any uses plain
        Adam. Time: n^3.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_soap(eps=1e-2)
        >>> state = tx.init({"w": torch.zeros(2, 2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([[1.0, 1.0], [2.0, 2.0]])}, state)
        >>> # along one pair of eigenvectors, whereas Adam's direction would be all ones
        >>> updates["w"]
        tensor([[0.3118, 0.3118],
                [0.6236, 0.6236]])

    Source: Vyas et al. 2024, arXiv:2409.11321. Departures: none from the authors' code, without its casts to float32.
    Where statistics are rank-deficient (a rotated vector, a zero gradient, or, at the first step, a dimension that
    exceeds the product of the others by two or more, as in a 5 x 2 matrix), part of the basis is arbitrary, so results
    depend on the back end. There is then no derivative with respect to the inputs of these statistics (the first
    weights and gradients, $\beta_s$, and $\beta_2$ if it replaces $\beta_s$): the computed one omits the arbitrary
    part, is finite, and does not match difference quotients. Second derivatives through the bases are not available.
    """
    beta = betas[1] if shampoo_beta is None else shampoo_beta
    factors = Factors("both", max_precondition_dim, merge_dims, precondition_1d)
    rotation = Rotation(factors, beta, precondition_frequency, staggers=stagger)
    adam = adam_along_bases(betas, eps, correct_bias, normalize_gradient)
    return rotation.space(adam, hidden=True)


def adam_along_bases(
    betas: Betas, eps: Scalar, corrects: bool, normalizes: bool = False
) -> GradientTransformation:
    """Return Adam's direction, optionally without its bias correction or normalized before it."""
    adam = scale_by_adam_hat(betas, eps)
    return (
        adam
        if corrects and not normalizes
        else chain(adam, corrected_later(betas, normalizes, corrects))
    )


@per_tensor
def corrected_later(betas: Decays, normalizes: bool, corrects: bool):
    """Remove the bias correction from Adam's direction, normalize the result, and apply the correction again."""
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        factor = ctx.bias_correction(beta2).sqrt() / ctx.bias_correction(beta1)
        if not normalizes:
            return update / factor, state
        update = update / (1e-30 + rms(update))
        return factor * update if corrects else update, state

    return update


@per_tensor(whole=True, compiles="lists")
def scale_by_kl_shampoo(
    betas: Decays = (0.95, 0.95),
    eps: NonNegative = 1e-8,
    adam_eps: NonNegative = 1e-8,
    precondition_frequency: Count = 10,
    max_precondition_dim: Count = 10000,
    merge_dims: bool = False,
    *,
    stagger: Static[bool] = False,
):
    r"""Whiten the momentum with Kronecker factors that minimize a Kullback-Leibler divergence: KL-Shampoo.

    The first gradient that is not 0 initializes the factors; until then the result is 0. Then, with $s = t - 1$:
    $m \leftarrow \beta_1 m + (1-\beta_1) g$, direction
    $m \times_i Q_i\, \mathrm{diag}(\lambda_i^{-1/2})\, Q_i^\top / (1-\beta_1^s)$ with
    $\lambda_i = \max(\mathrm{diag}(Q_i^\top S_i Q_i), \epsilon)$. The factors $S_i$ and their bases are then updated as
    in `rotated` with "kl", $\beta$ = $\beta_2$ and "qr". Leaves without factors use `scale_by_adam_hat`.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, the least eigenvalue.
        adam_eps: eps of Adam, >= 0.
        precondition_frequency: Steps between two refreshes of the bases, >= 1.
        max_precondition_dim: Dimensions larger than this, >= 1, have no factor.
        merge_dims: Merge neighboring dimensions, left to right, while their product is at most that limit.
        stagger: Refresh the bases of each leaf at its own step within the period, derived from its name, so that no
            step after the first refreshes all leaves.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, shaped as the parameter, and `GG_i` ($S_i$)
        and `Q_i`, n x n, for each dimension with a factor; `exp_avg_sq` for a leaf without any. Time: n^3.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_kl_shampoo(betas=(0.0, 0.0))
        >>> state = tx.init({"w": torch.zeros(2, 2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update(
        ...         {"w": torch.tensor([[2.0, 0.0], [0.0, 50.0]])}, state
        ...     )
        >>> updates["w"]  # the factors' entries are half the squares of the singular values
        tensor([[1.0000, 0.0000],
                [0.0000, 0.0400]])

    Source: Lin et al. 2025, arXiv:2509.03378. Departures: $m$ is bias-corrected. As for `scale_by_soap`, results depend
    on rounding where statistics are rank-deficient.
    """
    beta1, beta2 = betas
    factors = Factors("both", max_precondition_dim, merge_dims)
    moments, average = adam_moments(betas)

    def init(param):
        if not factors.dims(param.shape):
            return init_of(moments)(param)
        return {
            "exp_avg": torch.zeros_like(param),
            "GG": factors.zeros(param),
            "Q": factors.identities(param),
        }

    def update(update, state, param, ctx):
        count = (ctx.time - 1).clamp(min=1)  # the first step returns 0 in any case
        dims, shape = factors.dims(update.shape), factors.shape(update.shape)
        if not dims:
            seen = ctx.seen
            mean, square, new = average(update, state)
            for slot, value in new.items():
                new[slot] = torch.where(seen, value, state[slot])
            rate = ctx.bias_correction(beta2, count).sqrt() / ctx.bias_correction(
                beta1, count
            )
            direction = rate * mean / (safe_sqrt(square) + adam_eps)
            return torch.where(seen, direction, 0.0), new
        first = is_empty(state["GG"][0])
        mean = torch.where(
            first, state["exp_avg"], running_mean(state["exp_avg"], update, beta1)
        )
        scales = kl_scales(state["GG"], state["Q"], eps)
        direction = change_basis(
            whitened(mean.reshape(shape), dims, state["Q"], scales),
            dims,
            state["Q"],
            back=True,
        )
        direction = direction.reshape(update.shape) / ctx.bias_correction(beta1, count)
        new_statistics = kl_statistics(update.reshape(shape), dims, state["Q"], scales)
        statistics = averaged(
            state["GG"], new_statistics, (1 - beta2) / ctx.bias_correction(beta2)
        )
        phase = 1 + ctx.turn(precondition_frequency) if stagger else 1
        bases = _next_bases(statistics, state["Q"], precondition_frequency, phase, ctx)
        return torch.where(first, 0.0, direction), {
            "exp_avg": mean,
            "GG": statistics,
            "Q": bases,
        }

    return init, update


def _next_bases(statistics, bases, frequency, phase, ctx):
    """Return the eigenvectors at the first step, and later one step of power iteration when it is due."""

    def iterate():
        return [
            iterated(x, basis)[0] for x, basis in zip(statistics, bases, strict=True)
        ]

    def later():
        return ctx.every(frequency, phase, iterate, lambda: bases)

    return ctx.first(lambda: [eigenbasis(x) for x in statistics], later)


@per_tensor(elementwise=True)
def scale_by_late_rms(beta: Decay = 0.9, eps: NonNegative = 1e-8):
    r"""Divide updates by their root mean square from the second step on; the first update passes unchanged.

    From t = 2: $v \leftarrow \beta v + (1-\beta) u^2$ from 0, result $u / \sqrt{\max(v, \epsilon^2)}$; no bias
    correction. For use before links that normalize, such as `orthogonalize`.

    Args:
        beta: $\beta$ in [0, 1).
        eps: $\epsilon \ge 0$, the smallest root. Use a positive value if entries may be 0.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If `beta` is outside [0, 1) or `eps` is negative.

    Example:
        >>> tx = gradtx.scale_by_late_rms(beta=0.75)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([3.0])}, state)
        ...     print(updates["w"])
        tensor([3.])
        tensor([2.])

    Source: the preconditioner of SOAP-Muon, in the track 3 records of modded-nanogpt. Departures: none.
    """

    def update(update, state, param, ctx):
        seen, old = ctx.seen, state["exp_avg_sq"]
        square = torch.where(seen, running_mean(old, update.square(), beta), old)
        root = torch.where(seen, safe_sqrt(at_least(square, eps**2)), 1.0)
        return torch.where(seen, update / root, update), {"exp_avg_sq": square}

    return {"exp_avg_sq": square()}, update


@per_tensor(elementwise=True)
def scale_by_gradient_rms(betas: Decays = (0.9, 0.999), eps: NonNegative = 1e-8):
    r"""Divide a momentum by the root mean square of the gradient: the second half of Adam's direction.

    $v \leftarrow \beta_2 v + (1-\beta_2) g^2$ with the gradient $g$ (`ctx.grad`), result
    $\frac{u}{1-\beta_1^t} \frac{\sqrt{1-\beta_2^t}}{\sqrt v + \epsilon}$. After `trace_ema(beta1)` it equals
    `scale_by_adam_hat`; links between the two may transform the momentum.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1); $\beta_1$ is that of the preceding momentum.
        eps: $\epsilon \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If a beta is outside [0, 1) or `eps` is negative.

    Example:
        >>> halves = gradtx.chain(
        ...     gradtx.trace_ema(0.9), gradtx.scale_by_gradient_rms((0.9, 0.999))
        ... )
        >>> for tx in (halves, gradtx.scale_by_adam_hat((0.9, 0.999))):
        ...     state = tx.init({"w": torch.zeros(1)})
        ...     updates, _ = tx.update({"w": torch.tensor([3.0])}, state)
        ...     print(round(updates["w"].item(), 4))
        1.0
        1.0

    Source: Kingma and Ba 2014, arXiv:1412.6980. Departures: none.
    """
    _, beta2 = betas

    def update(update, state, param, ctx):
        square = running_mean(state["exp_avg_sq"], ctx.grad.square(), beta2)
        return hat_rate(safe_sqrt(square) + eps, ctx, betas) * update, {
            "exp_avg_sq": square
        }

    return {"exp_avg_sq": square()}, update


@per_tensor
def scale_by_mean_side(otherwise: NonNegative = 1e-3, max_dim: NonNegativeInt = 10000):
    r"""Divide the update of a matrix by the mean of its two sides: $2 u / (\mathrm{rows} + \mathrm{columns})$.

    Args:
        otherwise: Factor for all other leaves, >= 0.
        max_dim: Matrices with a larger side are treated as other leaves.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_mean_side()
        >>> tx.update({"w": torch.ones(1, 3)}, tx.init({}))[0]["w"]
        tensor([[0.5000, 0.5000, 0.5000]])

    Source: Frans et al. 2025, SPlus, arXiv:2506.07254. Departures: none.
    """

    def update(update, state, param, ctx):
        return mean_side_factor(update.shape, otherwise, max_dim) * update, state

    return update


def mean_side_factor(shape, otherwise, max_dim):
    """Return the factor for a leaf of this shape."""
    if len(shape) != 2 or max(shape) > max_dim:
        return otherwise
    return 2 / max(sum(shape), 1)
