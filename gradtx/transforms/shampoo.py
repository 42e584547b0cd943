"""Shampoo: inverse roots of Kronecker factors, and its scalable form with blocks and grafting."""

from __future__ import annotations

import functools
from typing import Any

import torch

from gradtx.arguments import is_off
from gradtx.base.exact import Betas, Scalar, exact
from gradtx.rules import per_tensor
from gradtx.transforms._math import grafted, plus_decay, safe_sqrt, zeros
from gradtx.transforms._matrix import (
    blocks,
    gram,
    inverse_root,
    joined,
    merged,
    multiplied,
)

__all__ = ["scale_by_scalable_shampoo", "scale_by_shampoo"]

# Roots that are not due at every step, of matrices far from singular, which rounding barely changes.
ROOTS = {"preconditioning_compute_steps": 2, "matrix_eps": 0.1}
# Small blocks as well, so that a few steps on small leaves cover the whole rule; momenta that do not diverge.
BLOCKS = {
    "betas": (0.5, 0.9),
    **ROOTS,
    "block_size": 3,
    "start_preconditioning_step": 2,
    "graft_type": "rmsprop",
}


def _decays(arguments: dict[str, Any]) -> tuple[str, ...]:
    """Return the arguments that the owner of a leaf needs: the parameter, if it is decayed."""
    return () if is_off(arguments["weight_decay"]) else ("param",)


@per_tensor(
    needs=("params",),
    compiles=False,
    lists=lambda arguments, shape: True,
    static=("stagger",),
    whole=_decays,
    ranges={
        "matrix_eps": "(0, inf)",
        "preconditioning_compute_steps": "[1, inf)",
        "momentum": "[0, 1)",
    },
    example=ROOTS,
)
def scale_by_shampoo(
    momentum: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    matrix_eps: Scalar = 1e-4,
    preconditioning_compute_steps: int = 1,
    variant: str = "paper",
    *,
    stagger: bool = False,
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
        start = torch.where(ctx.step == 1, update, mixed)
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


SCALABLE_RANGES = {
    "inverse_exponent_override": "[0, inf)",
    "start_preconditioning_step": "[0, inf)",
    "preconditioning_compute_steps": "[1, inf)",
    "statistics_compute_steps": "[1, inf)",
    "block_size": "[1, inf)",
    "skip_preconditioning_rank_lt": "[0, inf)",
    "no_preconditioning_for_layers_with_dim_gt": "[0, inf)",
    "diagonal_eps": "[0, inf)",
    "matrix_eps": "(0, inf)",
    "betas": "[0, 1]",
}


@per_tensor(
    needs=("params",),
    compiles=False,
    lists=lambda arguments, shape: True,
    whole=_decays,
    ranges=SCALABLE_RANGES,
    example=BLOCKS,
    nonnegative=("graft_statistics",),
)
def scale_by_scalable_shampoo(
    betas: Betas = (0.9, 0.999),
    moving_average_for_momentum: bool = False,
    weight_decay: Scalar = 0.0,
    inverse_exponent_override: int = 0,
    start_preconditioning_step: int = 25,
    preconditioning_compute_steps: int = 1000,
    statistics_compute_steps: int = 1,
    block_size: int = 512,
    skip_preconditioning_rank_lt: int = 1,
    no_preconditioning_for_layers_with_dim_gt: int = 8192,
    shape_interpretation: bool = True,
    graft_type: str = "sgd",
    pre_conditioner_type: str = "all",
    nesterov: bool = True,
    diagonal_eps: Scalar = 1e-10,
    matrix_eps: Scalar = 1e-6,
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

    def init(param):
        shape = shape_of(param)
        pieces = blocks(param.reshape(shape), block_size) if shape else []
        sizes = [piece.shape[i] for piece in pieces for i in dimensions(shape)]
        eyes = [
            torch.eye(size, dtype=param.dtype, device=param.device) for size in sizes
        ]
        momenta = ["momentum", "graft_momentum"]
        if graft_type in ("adagrad", "rmsprop"):
            momenta.append("graft_statistics")
        return {
            **zeros(*momenta)(param),
            "statistics": [matrix_eps * eye for eye in eyes],
            "preconditioners": eyes,
        }

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
        if graft_type in ("adagrad", "rmsprop"):
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

    return init, update
