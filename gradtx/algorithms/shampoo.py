"""Shampoo, as in the paper, as scaled up by Google and by Meta; SPlus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradtx.algorithms.averaging import average
from gradtx.algorithms.momentum import trace_ema
from gradtx.algorithms.muon import by_matrix
from gradtx.algorithms.projection import map_after_step
from gradtx.algorithms.scaling import scale_by_learning_rate
from gradtx.algorithms.sign import scale_by_sign
from gradtx.algorithms.weight_decay import add_decayed_weights, split_decay
from gradtx.arguments import (
    Count,
    Decay,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Static,
    is_off,
)
from gradtx.base.exact import exact
from gradtx.combinators.coordinates import change_basis, rotated
from gradtx.maths.entries import (
    corrected_root,
    grafted,
    identity,
    plus_decay,
    running_mean,
    safe_sqrt,
)
from gradtx.maths.matrices import (
    blocks,
    gram,
    inverse_root,
    joined,
    merged,
    multiplied,
)
from gradtx.rules import alias, per_tensor
from gradtx.slots import Slot, ema, linear, square
from gradtx.transform import chain

__all__ = [
    "distributed_shampoo",
    "scalable_shampoo",
    "scale_by_distributed_shampoo",
    "scale_by_mean_side",
    "scale_by_scalable_shampoo",
    "scale_by_shampoo",
    "shampoo",
    "splus",
]


def _decays(arguments: dict[str, Any]) -> tuple[str, ...]:
    """Return the arguments that the owner of a leaf needs: the parameter, if it is decayed."""
    return () if is_off(arguments["weight_decay"]) else ("param",)


@per_tensor(needs="params", compiles="lists", capturable=False, whole=_decays)
def scale_by_shampoo(
    momentum: Decay = 0.0,
    weight_decay=0.0,
    matrix_eps: Positive = 1e-4,
    preconditioning_compute_steps: Count = 1,
    variant: Literal["paper", "moskomule"] = "paper",
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

    def exponent(tensor):
        return 1 / (2 * tensor.ndim) if variant == "paper" else 1 / tensor.ndim

    def factors(param):
        return [matrix_eps * identity(size, param) for size in param.shape]

    def roots(param):
        # Of the factors, so that a leaf whose first gradient arrives between two roots can move.
        eyes = [identity(size, param) for size in param.shape]
        return [matrix_eps ** -exponent(param) * eye for eye in eyes]

    def update(g, state, p, ctx):
        u = (1 - momentum) * g + momentum * state["momentum_buffer"]
        b = u = plus_decay(torch.where(ctx.seen, u, g), weight_decay, p)
        n = preconditioning_compute_steps
        phase = 1 + ctx.turn(n) if stagger else 1
        H, R = [], []
        for i in range(g.ndim):
            x = u if variant == "paper" else b
            H.append(state["pre_cond"][i] + gram(x, i))

            def root(H=H[i]):
                return inverse_root(H, exponent(g), floor=matrix_eps)

            old = state["inv_pre_cond"][i]
            R.append(ctx.every(n, phase, root, lambda old=old: old, first=stagger))
            b = multiplied(b, R[i], i)
        new = {"pre_cond": H, "inv_pre_cond": R} if g.ndim else {}
        return b, {"momentum_buffer": b, **new}

    slots = {
        "momentum_buffer": torch.zeros_like,
        "pre_cond": Slot(factors, slow=True),
        "inv_pre_cond": roots,
    }
    return slots, update


class Blocked(NamedTuple):
    """The blocks of a leaf in some shape, and their factors: one for each of some dimensions of each block."""

    shape: Sequence[int]
    size: int
    dims: Sequence[int]

    def pieces(self, x: Tensor) -> list[Tensor]:
        return blocks(x.reshape(self.shape), self.size) if x.numel() else []

    def identities(self, x: Tensor) -> list[Tensor]:
        sizes = [piece.shape[i] for piece in self.pieces(x) for i in self.dims]
        return [identity(size, x) for size in sizes]

    def averages(self, old: Sequence[Tensor], g: Tensor, beta, ctx) -> Any:
        """Return the statistics after this gradient."""
        grams = [gram(piece, i) for piece in self.pieces(g) for i in self.dims]
        pairs = zip(old, grams, strict=True)
        return [_averaged(statistics, new, beta, ctx) for statistics, new in pairs]

    def products(self, x: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
        """Multiply each block along its dimensions by its factors."""
        remaining = iter(factors)
        return [
            change_basis(
                piece, self.dims, [next(remaining) for _ in self.dims], back=True
            )
            for piece in self.pieces(x)
        ]

    def joined(self, pieces: list[Tensor], like: Tensor) -> Tensor:
        return joined(pieces, self.shape, self.size).reshape(like.shape)


def _averaged(old, new, beta, ctx):
    """Return the average with this decay, or the sum if it is 1."""
    decay = exact(beta, ctx.time.device)
    return beta * old + torch.where(decay == 1, 1.0, 1 - decay) * new


# Grafted methods with an average or a sum of squares.
_WITH_SQUARES = ("adam", "adagrad", "rmsprop")


def _grafted_method(kind: str | None, slot: str, beta, eps) -> tuple[Slot | None, Any]:
    """Return the slot for the squares that a method averages or sums, and its step.

    The step is a function of the filtered gradient f, the gradient g, state and context; it also returns the new slot.
    """
    summed, has_squares = kind == "adagrad", kind in _WITH_SQUARES

    def step(f, g, state, ctx):
        if not has_squares:
            return f.sign() if kind == "sqrtn" else f, {}
        v, square_of_g = state[slot], g.square()
        v = v + square_of_g if summed else _averaged(v, square_of_g, beta, ctx)
        root = corrected_root(v, ctx, beta) if kind == "adam" else safe_sqrt(v)
        return f / (root + eps), {slot: v}

    return square(slow=summed) if has_squares else None, step


Graft: TypeAlias = Literal["none", "sgd", "adagrad", "rmsprop", "sqrtn"]
_DIMENSIONS = {"all": slice(None), "input": slice(-1), "output": slice(-1, None)}


@per_tensor(needs="params", compiles="lists", capturable=False, whole=_decays)
def scale_by_scalable_shampoo(
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    moving_average_for_momentum=False,
    weight_decay=0.0,
    inverse_exponent_override: NonNegativeInt = 0,
    start_preconditioning_step: NonNegativeInt = 25,
    preconditioning_compute_steps: Count = 1000,
    statistics_compute_steps: Count = 1,
    block_size: Count = 512,
    skip_preconditioning_rank_lt: NonNegativeInt = 1,
    no_preconditioning_for_layers_with_dim_gt: NonNegativeInt = 8192,
    shape_interpretation=True,
    graft_type: Graft = "sgd",
    pre_conditioner_type: Literal["all", "input", "output"] = "all",
    nesterov=True,
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
    beta1, beta2 = betas
    share = 1 - beta1 if moving_average_for_momentum else 1.0
    squares, magnitude = _grafted_method(
        graft_type, "graft_statistics", beta2, diagonal_eps
    )

    def blocks_of(x):
        """Return the blocks of a leaf, without dimensions if it is not preconditioned."""
        shape = merged(x.shape, block_size) if shape_interpretation else tuple(x.shape)
        dims = range(len(shape))[_DIMENSIONS[pre_conditioner_type]]
        is_small = len(shape) < 2 or x.ndim < skip_preconditioning_rank_lt
        if is_small or max(x.shape) > no_preconditioning_for_layers_with_dim_gt:
            dims = range(0)
        return Blocked(shape, block_size, dims)

    def identities(param):
        return blocks_of(param).identities(param)

    def preconditioned(blocked, g, state, ctx):
        """Return the direction, and the new statistics and roots."""
        old_L, old_P = state["statistics"], state["preconditioners"]
        exponent = 1 / (inverse_exponent_override or 2 * len(blocked.dims))

        def roots():
            return [inverse_root(x, exponent, ridge=matrix_eps) for x in L]

        L = ctx.every(
            statistics_compute_steps,
            0,
            lambda: blocked.averages(old_L, g, beta2, ctx),
            lambda: old_L,
        )
        P = ctx.every(preconditioning_compute_steps, 0, roots, lambda: old_P)
        s = blocked.joined(blocked.products(g, P), g)
        return s, {"statistics": L, "preconditioners": P}

    def update(g, state, p, ctx):
        u, new = magnitude(g, g, state, ctx)
        s, blocked = u, blocks_of(g)
        if blocked.dims and g.numel():
            s, of_blocks = preconditioned(blocked, g, state, ctx)
            new |= of_blocks
        if graft_type != "none":
            s = grafted(s, u, 1e-16)
        directions = []
        for slot, x in ("momentum", s), ("graft_momentum", u):
            x = plus_decay(x, weight_decay, p)
            m = new[slot] = beta1 * state[slot] + share * x
            directions.append(beta1 * m + share * x if nesterov else m)
        return torch.where(ctx.step >= start_preconditioning_step, *directions), new

    slots = {
        "momentum": linear(),
        "graft_momentum": linear(),
        "graft_statistics": squares,
        "statistics": Slot(
            lambda p: [matrix_eps * eye for eye in identities(p)], slow=True
        ),
        "preconditioners": identities,
    }
    return slots, update


def _merged_from_the_end(shape: Sequence[int], limit: int, target: int) -> list[int]:
    """Merge neighboring dimensions while their product is at most `limit`, until `target` dimensions are left."""
    sizes = [size for size in shape if size != 1] or [1]
    merged_sizes = [sizes.pop()]
    while sizes:
        merges = len(merged_sizes) + len(sizes) > target
        size = sizes.pop()
        if merges and size * merged_sizes[0] <= limit:
            merged_sizes[0] *= size
        else:
            merged_sizes.insert(0, size)
    return merged_sizes


@per_tensor(compiles="lists", capturable=False, whole=True)
def scale_by_distributed_shampoo(
    betas: tuple[Decay, Fraction] = (0.9, 1.0),
    beta3: Decay | None = None,
    eps=1e-12,
    max_preconditioner_dim: Count = 1024,
    target_dims: Count = 1,
    precondition_frequency: Count = 1,
    start_preconditioning_step: Count | None = None,
    use_bias_correction=True,
    exponent: Positive | None = None,
    pseudo_inverse=False,
    graft: Literal["adam", "rmsprop", "adagrad", "sgd"] | None = "adam",
    graft_beta2: Decay = 0.999,
    graft_eps: NonNegative = 1e-8,
):
    r"""Multiply a filtered gradient by roots of averaged statistics, with the step length of a simpler method.

    Sizes of 1 are dropped. From the last dimension backwards, a dimension is merged with the next one while there would
    be more than `target_dims` dimensions and their product is at most `max_preconditioner_dim`; then every dimension is
    cut into runs of that length. Each block with k dimensions is treated as a leaf:
    $S_i \leftarrow \beta_2 S_i + (1-\beta_2)\, \mathrm{mat}_i(g) \mathrm{mat}_i(g)^\top$ (a sum for $\beta_2 = 1$),
    $R_i = (S_i / (1-\beta_2^t) + \epsilon I)^{-1/(2k)}$ where due, initially $I$;
    $f = \frac{\beta_3 m_{t-1} + (1-\beta_3) g}{1 - \beta_3 \beta_1^{t-1}}$,
    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g$; $d = f \times_1 R_1 \cdots \times_k R_k$, rescaled to the norm of the
    grafted method's direction.

    Args:
        betas: $\beta_1$ in [0, 1), and $\beta_2$ in [0, 1].
        beta3: $\beta_3$ in [0, 1); None for $\beta_1$, which makes $f$ Adam's corrected momentum. Unused if $\beta_1$
            is 0.
        eps: $\epsilon > 0$, or 0 with `pseudo_inverse`. If statistics are singular, rounding decides the result unless
            it is well above rounding (1e-8).
        max_preconditioner_dim: Largest size of a block, >= 1. The root of a block costs the cube of it.
        target_dims: Number of dimensions, >= 1, at which merging stops. With 1, a small matrix becomes a vector with a
            full matrix as preconditioner; with 2, matrices remain.
        precondition_frequency: Roots are computed at multiples of this, >= 1, from the start on. An optimizer from
            `as_optimizer` computes them only when they are due. So does pure use of plain tensors on the CPU;
            otherwise, it computes roots at every step and selects.
        start_preconditioning_step: The first step with roots; until then, the direction is the grafted one. At least
            `precondition_frequency`, which is also the default.
        use_bias_correction: Whether to divide $f$ and $S_i$ by their corrections.
        exponent: A positive number in place of $1/(2k)$.
        pseudo_inverse: Ignore eigenvalues that are 0 up to rounding.
        graft: With $v$ the average ($\beta$ = `graft_beta2`) of $g^2$: "adam" is
            $f / (\sqrt{v / (1-\beta^t)} + \epsilon_g)$, "rmsprop" the same without correction, "adagrad" with the sum
            of $g^2$; "sgd" is $f$. None keeps the norm of $d$.
        graft_beta2: In [0, 1).
        graft_eps: $\epsilon_g \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `filtered_grad` ($m$) and `adagrad` ($v$), shaped as the
        parameter; `factor_matrices_i` ($S$) and `inv_factor_matrices_i` ($R$), n x n, numbered block by block, with the
        dimensions of each block in order.

    Raises:
        ValueError: If an argument is out of range, if the start precedes the first multiple of the frequency, or unless
            exactly one of `eps` and `pseudo_inverse` is set.

    Example:
        >>> tx = gradtx.scale_by_distributed_shampoo(target_dims=2, max_preconditioner_dim=4)
        >>> state = tx.init({"w": torch.zeros(6, 2, 2)})["scale_by_distributed_shampoo"]
        >>> [tuple(state[f"factor_matrices_{i}"]["w"].shape) for i in range(4)]  # two blocks
        [(4, 4), (4, 4), (2, 2), (4, 4)]

    Source: Shi et al. 2023, arXiv:2309.06497, and facebookresearch/optimizers (AlgoPerf). Departures: $\epsilon = 0$
    requires `pseudo_inverse`, because a singular matrix has no root; eigenvalues that rounding moved below $\epsilon$
    are raised to it, where the authors shift all of them by the difference. Derivatives through the roots are exact,
    even at equal eigenvalues; second derivatives are not available.
    """
    beta1, beta2 = betas
    beta3 = beta1 if beta3 is None else beta3
    start = start_preconditioning_step or precondition_frequency
    if start < precondition_frequency:
        raise ValueError(
            f"scale_by_distributed_shampoo: start_preconditioning_step must be at least precondition_frequency="
            f"{precondition_frequency}, got {start}"
        )
    if is_off(eps) != pseudo_inverse:
        raise ValueError(
            "scale_by_distributed_shampoo: pass either a positive eps or pseudo_inverse=True with eps=0.0"
        )
    squares, magnitude = _grafted_method(graft, "adagrad", graft_beta2, graft_eps)

    def blocks_of(x):
        shape = _merged_from_the_end(x.shape, max_preconditioner_dim, target_dims)
        return Blocked(shape, max_preconditioner_dim, range(len(shape)))

    def identities(param):
        return blocks_of(param).identities(param)

    def is_due(step):
        return (step == start) | (step > start) & (step % precondition_frequency == 0)

    def update(g, state, p, ctx):
        f, new, blocked = g, {}, blocks_of(g)
        if not is_off(beta1):
            m = state["filtered_grad"]
            new["filtered_grad"] = running_mean(m, g, beta1)
            f = running_mean(m, g, beta3)
            if use_bias_correction:
                power = 1 - ctx.bias_correction(beta1, ctx.time - 1)
                f = f / (1 - beta3 * power)
            f = f.to(g.dtype)  # a 0-d leaf would become float64
        u, of_graft = magnitude(f, g, state, ctx)
        new |= of_graft
        if not g.numel():
            return u, new
        S = blocked.averages(state["factor_matrices"], g, beta2, ctx)
        corrects = (exact(beta2, ctx.time.device) < 1) & use_bias_correction
        c = torch.where(corrects, ctx.bias_correction(beta2), 1.0)
        e = 1 / (2 * len(blocked.dims)) if exponent is None else exponent

        def roots():
            return [
                inverse_root(s / c + eps * eye, e, floor=eps, pseudo=pseudo_inverse)
                for s, eye in zip(S, blocked.identities(g), strict=True)
            ]

        R = ctx.when(is_due, roots, lambda: state["inv_factor_matrices"])
        directions = blocked.products(f, R)
        if graft is not None:
            pairs = zip(directions, blocked.pieces(u), strict=True)
            directions = [grafted(d, step, 1e-16) for d, step in pairs]
        d = blocked.joined(directions, g)
        new |= {"factor_matrices": S, "inv_factor_matrices": R}
        return torch.where(ctx.step >= start, d, u), new

    slots = {
        "filtered_grad": None if is_off(beta1) else ema(beta1),
        "adagrad": squares,
        "factor_matrices": Slot(
            lambda p: [0 * eye for eye in identities(p)], slow=True
        ),
        "inv_factor_matrices": identities,
    }
    return slots, update


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


@alias
def shampoo(
    lr=1e-1,
    momentum: Decay = 0.0,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    **options: Annotated[Any, scale_by_shampoo],
):
    r"""Shampoo: a full-matrix preconditioner for every dimension of a leaf.

    $p \leftarrow p - \eta\, u \times_1 H_1^{-e} \cdots \times_k H_k^{-e}$; see `scale_by_shampoo`.

    When to use: small and medium-sized layers, where a full preconditioner for every dimension is affordable.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1), the share of the previous direction.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.
        matrix_eps: $\epsilon > 0$: $H_i$ starts at $\epsilon I$.
        preconditioning_compute_steps: Number of steps between computations of the roots, >= 1.
        variant: "paper" ($e = 1/(2k)$, statistics of the gradient), or "moskomule" ($e = 1/k$, statistics of the
            gradient as preconditioned along the preceding dimensions).
        stagger: Compute the roots of each leaf at the first step, and then at a separate step within the period,
            derived from the name of the leaf, so that no later step computes the roots of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `pre_cond_i` and
        `inv_pre_cond_i`, n x n, for every dimension i of size n.

    Raises:
        ValueError: If a hyperparameter is out of range, if `variant` is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.shampoo(lr=1.0, matrix_eps=1e-3)
        >>> params = {"w": torch.zeros(3)}
        >>> # of norm 1
        >>> tx.update({"w": torch.tensor([30.0, 0.0, -40.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.6000, -0.0000,  0.8000])

    Source: Gupta et al. 2018, arXiv:1802.09568; momentum and "moskomule": moskomule/shampoo.pytorch. Departures: none.
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        scale_by_shampoo(momentum, coupled, **options),
        add_decayed_weights(decoupled),
        scale_by_learning_rate(lr),
    )


@alias
def scalable_shampoo(
    lr=1e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    moving_average_for_momentum=False,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    **options: Annotated[Any, scale_by_scalable_shampoo],
):
    r"""Scalable Shampoo: blocks, averaged statistics, rare roots, and step lengths grafted from a simpler method.

    $p \leftarrow p - \eta\, d$ with the direction $d$ of `scale_by_scalable_shampoo`.

    When to use: large models and batches, where second-order steps pay off and roots may be computed rarely and in
    blocks.

    Args:
        lr: $\eta$ in [0, inf).
        betas: Decay rates of the momenta and of the statistics, each in [0, 1]; with a second one of 1, statistics are
            summed.
        moving_average_for_momentum: Multiply the input of the momenta by $1 - \beta_1$ instead of 1.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights; if False, it is added before the momenta.
        inverse_exponent_override: $e > 0$ of the roots $-1/e$; 0 for twice the number of preconditioned dimensions.
        start_preconditioning_step: The first step with a preconditioned direction, >= 0.
        preconditioning_compute_steps: Roots are computed at steps $t$ that are multiples of this, >= 1.
        statistics_compute_steps: Statistics are updated at steps $t$ that are multiples of this, >= 1.
        block_size: Largest side of a block, >= 1.
        skip_preconditioning_rank_lt: Leaves with fewer dimensions than this (>= 0) are not preconditioned.
        no_preconditioning_for_layers_with_dim_gt: Leaves with a dimension larger than this (>= 0) are not
            preconditioned either.
        shape_interpretation: Whether to merge adjacent dimensions.
        graft_type: Method that determines the step length: "sgd", "adagrad", "rmsprop", "sqrtn", or "none".
        pre_conditioner_type: Preconditioned dimensions: "all", "input" or "output".
        nesterov: Use Nesterov momentum.
        diagonal_eps: $\ge 0$, the eps of the grafted method.
        matrix_eps: > 0, relative to the largest eigenvalue.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum`, `graft_momentum`,
        [`graft_statistics`], `statistics_i`, `preconditioners_i`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `graft_type` or `pre_conditioner_type` is unknown, or if
            `params` is missing.

    Example:
        >>> tx = gradtx.scalable_shampoo(lr=1.0, betas=(0.0, 0.9))
        >>> params = {"w": torch.zeros(2)}
        >>> # a vector uses SGD
        >>> tx.update({"w": torch.tensor([3.0, 4.0])}, tx.init(params), params)[0]["w"]
        tensor([-3., -4.])

    Source: Anil et al. 2020, arXiv:2002.09018. Departures: exact roots from eigenvalues, where the authors iterate.
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        scale_by_scalable_shampoo(
            betas, moving_average_for_momentum, coupled, **options
        ),
        add_decayed_weights(decoupled),
        scale_by_learning_rate(lr),
    )


@alias
def distributed_shampoo(
    lr=1e-2,
    betas: tuple[Decay, Fraction] = (0.9, 1.0),
    beta3: Decay | None = None,
    eps=1e-12,
    weight_decay=0.0,
    **options: Annotated[Any, scale_by_distributed_shampoo],
):
    r"""Distributed Shampoo: blocks, roots of averaged statistics, and Adam's step lengths; Meta's form of Shampoo.

    $p \leftarrow p - \eta\, (d + \lambda p)$ with the direction $d$ of `scale_by_distributed_shampoo`.

    When to use: large batches, with hyperparameters of the AlgoPerf benchmark, which it won; `scalable_shampoo` is
    Google's form, and `soap` needs less tuning. For matrices, set `target_dims=2`, and $\beta_2 < 1$ to forget.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $\beta_1$ in [0, 1) of the filtered gradient, and $\beta_2$ in [0, 1] of the statistics, which are summed
            if it is 1.
        beta3: Decay of the filtered gradient where it is used, in [0, 1); None for $\beta_1$.
        eps: $\epsilon > 0$, added to the statistics, or 0 with `pseudo_inverse`.
        weight_decay: $\lambda \ge 0$, decoupled.
        max_preconditioner_dim: Largest size of a block, >= 1.
        target_dims: Number of dimensions, >= 1, at which merging stops; 2 keeps matrices.
        precondition_frequency: Number of steps between computations of the roots, >= 1.
        start_preconditioning_step: The first step with roots, at least the frequency, which is the default.
        use_bias_correction: Whether to correct the averages.
        exponent: A positive number in place of $1/(2k)$ for blocks with k dimensions.
        pseudo_inverse: Ignore eigenvalues that are 0 up to rounding.
        graft: Method that determines the step length: "adam", "rmsprop", "adagrad", "sgd", or None.
        graft_beta2: Decay of its average, in [0, 1).
        graft_eps: Its eps, >= 0.

    Returns:
        A transformation whose updates are added to the parameters. State: [`filtered_grad`], [`adagrad`],
        `factor_matrices_i`, `inv_factor_matrices_i`.

    Raises:
        ValueError: If a hyperparameter is out of range, if the start precedes the frequency, unless exactly one of
            `eps` and `pseudo_inverse` is set, or if `params` is missing.

    Example:
        >>> tx = gradtx.distributed_shampoo(lr=1.0, eps=1e-4)
        >>> params = {"w": torch.zeros(2)}
        >>> # along the gradient, because its full matrix is used, with the norm of Adam's step
        >>> tx.update({"w": torch.tensor([3.0, 4.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.8485, -1.1314])

    Source: Shi et al. 2023, arXiv:2309.06497; facebookresearch/optimizers. Departures: as for
    `scale_by_distributed_shampoo`.
    """
    return chain(
        scale_by_distributed_shampoo(betas, beta3, eps, **options),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )


@alias(class_name="SPlus")
def splus(
    lr=0.1,
    betas=(0.9, 0.999),
    weight_decay=1e-2,
    ema_rate: Decay = 0.999,
    inverse_steps: Count = 100,
    nonstandard_constant: NonNegative = 1e-3,
    max_dim: Count = 10000,
    *,
    stagger: Static[bool] = False,
):
    r"""SPlus: signs of the momentum in Shampoo's eigenbases, and an average of the weights for evaluation.

    $m \leftarrow \beta_1 m + (1-\beta_1) g$; matrices are rotated into the eigenbases of their factors (decay
    $\beta_2$), $u = \mathrm{sign}(m')$ is rotated back; $p \leftarrow p - \eta' u$ with
    $\eta' = 2 \eta / (\mathrm{rows} + \mathrm{columns})$; $p$ enters the average of the weights; then
    $p \leftarrow p (1 - \eta' \lambda)$. Other leaves are not rotated, and $\eta' = c\, \eta$.

    When to use: large batches, where Shampoo's directions stay valid for a hundred steps; evaluate with `eval_params`.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        weight_decay: $\lambda \ge 0$, applied to the weights after the step and after they enter the average.
        ema_rate: Decay rate of the average of the weights, in [0, 1).
        inverse_steps: Number of steps between computations of the bases, >= 1.
        nonstandard_constant: $c \ge 0$.
        max_dim: Sides larger than this (>= 1) are not rotated, and a leaf with such a side is treated like the other
            leaves.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, `average`, and, for
        matrices, `GG_i` and `Q_i` under `partition`. `eval_params` returns `average`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.splus(lr=1.0, weight_decay=0.0)
        >>> params = {"w": torch.zeros(2, 2), "b": torch.zeros(1)}
        >>> grads = {"w": torch.tensor([[3.0, -4.0], [0.1, 0.2]]), "b": torch.ones(1)}
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> updates["w"], updates["b"]
        (tensor([[-0.5000,  0.5000],
                [-0.5000, -0.5000]]), tensor([-0.0010]))

    Source: Frans et al. 2025, arXiv:2506.07254. Departures: the average is stored without its bias.
    """
    signs = rotated(
        scale_by_sign(),
        beta=betas[1],
        precondition_frequency=inverse_steps,
        max_precondition_dim=max_dim,
        start="identity",
        refresh="eigh",
        offset=0,
        of="grad",
        stagger=stagger,
    )

    def shrunk(weights):
        factor = mean_side_factor(weights.shape, nonstandard_constant, max_dim)
        return (1 - lr * factor * weight_decay) * weights

    return chain(
        trace_ema(betas[0]),
        by_matrix(signs, scale_by_sign()),
        scale_by_mean_side(nonstandard_constant, max_dim),
        scale_by_learning_rate(lr),
        average(ema_rate, debias=True),
        # After the average, which takes the weights before this decay.
        map_after_step(shrunk),
    )
