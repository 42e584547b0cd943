"""Scalable Shampoo: blocks, averaged statistics, rare roots, and step lengths grafted from a simpler method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradtx.algorithms.shampoo import params_if_decayed
from gradtx.arguments import Count, Fraction, NonNegative, NonNegativeInt, Positive
from gradtx.base.exact import exact
from gradtx.combinators.coordinates import change_basis
from gradtx.links.decay import add_decayed_weights, split_decay
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import (
    corrected_root,
    grafted,
    identity,
    plus_decay,
    safe_sqrt,
)
from gradtx.maths.matrices import blocks, gram, inverse_root, joined, merged
from gradtx.rules import alias, per_tensor
from gradtx.slots import Slot, linear, square
from gradtx.transform import chain

__all__ = ["scalable_shampoo", "scale_by_scalable_shampoo"]


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
        return [
            _averaged(statistics, latest, beta, ctx) for statistics, latest in pairs
        ]

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


def _averaged(old, latest, beta, ctx):
    """Return the average with this decay, or the sum if it is 1."""
    decay = exact(beta, ctx.time.device)
    return beta * old + torch.where(decay == 1, 1.0, 1 - decay) * latest


# Grafted methods with an average or a sum of squares.
_WITH_SQUARES = ("adam", "adagrad", "rmsprop")


def grafted_method(kind: str | None, slot: str, beta, eps) -> tuple[Slot | None, Any]:
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


@per_tensor(needs="params", compiles="lists", capturable=False, whole=params_if_decayed)
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
    squares, magnitude = grafted_method(
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
        u, new_state = magnitude(g, g, state, ctx)
        s, blocked = u, blocks_of(g)
        if blocked.dims and g.numel():
            s, of_blocks = preconditioned(blocked, g, state, ctx)
            new_state |= of_blocks
        if graft_type != "none":
            s = grafted(s, u, 1e-16)
        directions = []
        for slot, x in ("momentum", s), ("graft_momentum", u):
            x = plus_decay(x, weight_decay, p)
            m = new_state[slot] = beta1 * state[slot] + share * x
            directions.append(beta1 * m + share * x if nesterov else m)
        has_started = ctx.step >= start_preconditioning_step
        return torch.where(has_started, *directions), new_state

    slots = {
        "momentum": linear(),
        "graft_momentum": linear(),
        "graft_statistics": squares,
        "statistics": Slot(
            lambda p: [matrix_eps * eye for eye in blocks_of(p).identities(p)],
            slow=True,
        ),
        "preconditioners": lambda p: blocks_of(p).identities(p),
    }
    return slots, update


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
