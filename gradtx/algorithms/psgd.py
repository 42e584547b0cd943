"""PSGD, momentum whitened by factors that gradient descent fits: `psgd_kron` and `psgd_pro`."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import Count, Decay, NonNegative, NonNegativeInt, Positive, is_off
from gradtx.links.decay import add_decayed_weights
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import (
    at_least,
    at_most,
    identity,
    norm,
    plus_decay,
    quotient,
    rms,
    running_mean,
)
from gradtx.maths.matrices import gram, multiplied, symmetric_product
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = [
    "psgd_kron",
    "psgd_pro",
    "scale_by_psgd_kron",
    "scale_by_psgd_pro",
]


# Squared noise relative to the mean gradient: float32's eps, as in the authors' code.
DAMPING = 2.0**-23

Mode: TypeAlias = Literal["one_diag", "smart_one_diag", "all_diag"]


def first_factors(
    x: Tensor, shape: Sequence[int], scale, diagonal: Sequence[bool]
) -> list[Tensor]:
    """Return multiples of the identity, as vectors where a factor is diagonal."""
    factors = []
    for size, is_diagonal in zip(shape, diagonal, strict=True):
        entries = x.new_ones((size,)) * scale
        factors.append(entries if is_diagonal else torch.diag(entries))
    return factors


def applied(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Multiply a tensor along each dimension by that dimension's factor."""
    for i, factor in enumerate(factors):
        x = _times(x, factor, i)
    return x


def applied_inverses(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Multiply a tensor along each dimension by the inverse of that dimension's upper factor, transposed."""
    for i, factor in enumerate(factors):
        if factor.ndim == 1:
            x = _times(x, 1 / factor, i)
            continue
        rows = x.movedim(i, 0)
        solution = torch.linalg.solve_triangular(
            factor.mT, rows.reshape(len(factor), -1), upper=False
        )
        x = solution.reshape(rows.shape).movedim(0, i)
    return x


def _times(x: Tensor, factor: Tensor, i: int) -> Tensor:
    """Multiply a tensor along a dimension by a matrix, or by a diagonal one given as a vector."""
    if factor.ndim == 2:
        return multiplied(x, factor, i)
    return x * factor.view([-1 if i == k else 1 for k in range(x.ndim)])


def _transposed(factor: Tensor) -> Tensor:
    return factor if factor.ndim == 1 else factor.mT


def _square(factor: Tensor) -> Tensor:
    """Return Q Q^T."""
    return factor.square() if factor.ndim == 1 else symmetric_product(factor, factor.mT)


def preconditioned(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Multiply a tensor along each dimension by Q^T Q."""
    for i, factor in enumerate(factors):
        if factor.ndim == 2 and factor.numel() > x.numel():
            # Two products with the tensor are cheaper than one of two factors.
            x = _times(_times(x, factor, i), factor.mT, i)
        else:
            x = _times(x, _square(_transposed(factor)), i)
    return x


def _outer(x: Tensor, i: int, factor: Tensor) -> Tensor:
    """Return mat_i(x) mat_i(x)^T, or its diagonal for a diagonal factor."""
    if factor.ndim == 2:
        return gram(x, i)
    others = [k for k in range(x.ndim) if k != i]
    return x.square().sum(dim=others) if others else x.square()


def _products_of_others(numbers: Sequence[Any]) -> list[Any]:
    """Return, for each number, the product of the others."""
    return [
        functools.reduce(operator.mul, [*numbers[:i], *numbers[i + 1 :]], 1.0)
        for i in range(len(numbers))
    ]


def rebalanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """Rescale factors to equal largest entries, preserving their product."""
    if len(factors) < 2:
        return list(factors)
    sizes = torch.stack([factor.abs().amax() for factor in factors])
    mean = sizes.log().mean().exp()
    return [
        factor * (mean / size)
        for factor, size in zip(factors, sizes.unbind(), strict=True)
    ]


def _above_zero(x: Tensor) -> Tensor:
    """Return a divisor: x, or 1 where x is 0."""
    return torch.where(x > 0, x, 1.0)


@functools.cache
def annealed_updates() -> list[int]:
    """Return the number of updates up to each step, until their period is constant."""
    updates, count = [0], 0
    while annealed_probability(float(len(updates))) > LEAST or count:
        count += 1
        due = count >= 1 / annealed_probability(float(len(updates)))
        count = 0 if due else count
        updates.append(updates[-1] + due)
    return updates


def annealed_number(step: int) -> int:
    """Return the number of updates up to a step: at every step at first, finally every `PERIOD` steps."""
    updates = annealed_updates()
    late = step - (len(updates) - 1)
    return updates[step] if late <= 0 else updates[-1] + late // PERIOD


LEAST = 0.03  # the fraction of steps with an update in the end

PERIOD = math.ceil(1 / LEAST)


def annealed_probability(step) -> Any:
    """Return the fraction of steps with an update, decreasing from step 500 on; a number or tensor, as `step`."""
    exponent = -0.001 * (step - 1 - 500)
    if isinstance(step, Tensor):
        return exponent.exp().clamp(LEAST, 1.0)
    return max(LEAST, min(1.0, math.exp(exponent)))


def matrix_shape(of_leaf: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a leaf whose dimensions are merged to at most two of similar size."""
    shape = tuple(of_leaf)
    if len(shape) <= 2:
        return shape
    leading = (math.prod(shape[:-1]), shape[-1])
    trailing = (shape[0], math.prod(shape[1:]))
    is_leading = leading[1] - leading[0] <= trailing[1] - trailing[0]
    return leading if is_leading else trailing


def diagonal_sides(
    shape: tuple[int, ...], limit: int, least: int, mode: Mode | None
) -> list[bool]:
    """Return whether each dimension has a diagonal factor; all have one below `least` dimensions."""
    if len(shape) < least or mode == "all_diag":
        return [True] * len(shape)
    flags = [size == 1 or size > limit for size in shape]
    largest = max(shape)
    stands_out = len(shape) > 1 and shape.count(largest) == 1
    if mode == "one_diag" or (mode == "smart_one_diag" and stands_out):
        flags[shape.index(largest)] = True
    return flags


def _noisy(x: Tensor, factors: Sequence[Tensor], square_of_damping) -> list[Tensor]:
    """Return mat_i(A) mat_i(A)^T for A = (x + noise) x_i Q_i and each factor, averaged over the noise."""
    whole = applied(x, factors)
    sizes = _products_of_others([factor.square().sum() for factor in factors])
    terms = []
    for i, factor in enumerate(factors):
        noise = square_of_damping * sizes[i] * _square(factor)
        terms.append(_outer(whole, i, factor) + noise)
    return terms


def expected_terms(
    x: Tensor, factors: Sequence[Tensor], damping: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Return the two terms of each factor's gradient, averaged analytically over the random probe."""
    inverses = [_inverse(factor) for factor in factors]
    sizes = _products_of_others([inverse.square().sum() for inverse in inverses])
    second = [
        size * _square(_transposed(inverse))
        for size, inverse in zip(sizes, inverses, strict=True)
    ]
    return list(zip(_noisy(x, factors, damping.square()), second, strict=True))


def random_terms(
    x: Tensor, factors: Sequence[Tensor], damping: Tensor, probe: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Return the two terms of each factor's gradient for a random probe."""
    whole = applied(x + damping * probe, factors)
    other = applied_inverses(probe, factors)
    return [
        (_outer(whole, i, factor), _outer(other, i, factor))
        for i, factor in enumerate(factors)
    ]


def _inverse(factor: Tensor) -> Tensor:
    if factor.ndim == 1:
        return 1 / factor
    eye = identity(len(factor), factor)
    return torch.linalg.solve_triangular(factor, eye, upper=True)


def descended(factor: Tensor, first: Tensor, second: Tensor, rate) -> Tensor:
    """Return a factor after one step of gradient descent."""
    bound = _above_zero(_lower_bound(first + second))
    if factor.ndim == 1:
        return factor - rate * (first - second) / bound * factor
    return factor - rate * (first - second).triu() / bound @ factor


def _lower_bound(x: Tensor) -> Tensor:
    """Return a lower bound of the spectral norm of a symmetric matrix, usually a tight one."""
    size = x.abs().amax()
    if x.ndim == 1:
        return size
    x = x / _above_zero(size)
    column = x.square().sum(dim=0).argmax()
    y = x @ x.index_select(1, column[None])
    y = quotient(y, norm(y))
    return norm(x @ y) * size


@per_tensor(
    whole=True,
    random=lambda arguments: arguments["probes"] == "random",
    # Random probes depend on a leaf's name, which programs for many leaves do not know.
    compiles=lambda arguments: "lists" if arguments["probes"] == "expected" else False,
    amplifies=True,
    length="sets",
)
def scale_by_psgd_kron(
    b1: Decay = 0.9,
    precond_lr: NonNegative = 0.1,
    precond_init_scale: Positive = 1.0,
    precondition_frequency: Count | Literal["annealed"] = "annealed",
    balance_every: Count = 100,
    probes: Literal["expected", "random"] = "expected",
    seed: int = 0,
    momentum_into_precond_update=True,
    max_size_triangular: NonNegativeInt = 8192,
    min_ndim_triangular: NonNegativeInt = 2,
    memory_save_mode: Mode | None = None,
    merge_dims=True,
    clip_rms: Positive = 1.1,
):
    r"""Whiten the momentum with triangular factors fitted by gradient descent: PSGD Kron.

    $\hat m$ is the bias-corrected mean gradient; the direction is $u = \hat m \times_i Q_i^\top Q_i$, times
    $\min(1, c / (\mathrm{rms}(u) + 10^{-12}))$. If an update of the factors is due, it comes first: with $h = \hat m$,
    $A = (h + \delta v) \times_i Q_i$ and $B = v \times_i Q_i^{-\top}$ for a random $v$,
    $\delta = 2^{-23/2}\, \mathrm{mean}|h|$, $T_1 = \mathrm{mat}_i(A) \mathrm{mat}_i(A)^\top$, and $T_2$ likewise for B:
    $Q_i \leftarrow Q_i - \mu\, \mathrm{triu}(T_1 - T_2) Q_i / \nu$ with a lower bound $\nu$ of the norm of $T_1 + T_2$.
    At regular intervals, all $Q_i$ are first rescaled to equal largest entries.

    Args:
        b1: Decay of the mean gradient, in [0, 1).
        precond_lr: $\mu \ge 0$.
        precond_init_scale: Initial product of the factors, > 0, as a multiple of the identity.
        precondition_frequency: Number of steps between two updates, or "annealed": every step up to 500, then a
            fraction $e^{-0.001 (t - 501)}$ of the steps, at least 0.03.
        balance_every: Updates between two rescalings to equal largest entries, >= 1.
        probes: "expected" uses the mean of $T_1$ and $T_2$ over $v$, "random" draws a $v$.
        seed: Seed of random probes.
        momentum_into_precond_update: False uses the gradient itself as $h$.
        max_size_triangular: Dimensions larger than this, >= 0, have a diagonal factor.
        min_ndim_triangular: Leaves with fewer dimensions after merging have only diagonal factors.
        memory_save_mode: "one_diag" makes the factor of the largest dimension diagonal, "smart_one_diag" only if there
            are others, all of them smaller, "all_diag" all factors.
        merge_dims: View leaves with more than two dimensions as matrices.
        clip_rms: $c > 0$.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer`, shaped as the parameter, and `Q_i`, n x
        n or n, for each dimension; if annealed, `since_update` and `updates` (0-d). Time: n^3.

    Example:
        >>> tx = gradtx.scale_by_psgd_kron(precondition_frequency=1, clip_rms=10.0)
        >>> grads = {"w": torch.tensor([[4.0, 0.0], [0.0, 0.5]])}
        >>> state = tx.init(grads)
        >>> for _ in range(200):
        ...     updates, state = tx.update(grads, state)
        >>> # whitened, although one entry of the gradient is 8 times the other
        >>> updates["w"].diagonal() > 0.9
        tensor([True, True])

    Source: Li 2015, arXiv:1512.04202; Pooladzandi and Li 2024, arXiv:2402.11858; kron-torch 0.3.3. Departures:
    "expected"; rescaling at fixed intervals instead of at random; the noise does not enter the direction.
    """
    every = None if precondition_frequency == "annealed" else precondition_frequency

    def shape_of(x):
        shape = matrix_shape(x.shape) if merge_dims else tuple(x.shape)
        return shape or (1,)

    def init(param, *random):
        shape = shape_of(param)
        diagonal = diagonal_sides(
            shape, max_size_triangular, min_ndim_triangular, memory_save_mode
        )
        scale = precond_init_scale ** (1 / len(shape))
        slots: dict[str, Any] = {"momentum_buffer": torch.zeros_like(param)}
        slots["Q"] = first_factors(param, shape, scale, diagonal)
        if every is None:
            zero = torch.zeros((), dtype=torch.int64, device=param.device)
            slots |= {"since_update": zero, "updates": zero}
        return slots

    def fitted(h, Q, number, ctx):
        """Return the factors after the update with this number."""
        Q = ctx.when(
            lambda step: number(step) % balance_every == 0,
            lambda: rebalanced(Q),
            lambda: Q,
        )
        damping = DAMPING**0.5 * h.abs().mean()
        terms = expected_terms
        if probes == "random":
            terms = functools.partial(random_terms, probe=ctx.rng.normal(h))
        pairs = zip(Q, terms(h, Q, damping), strict=True)
        return [descended(factor, *both, precond_lr) for factor, both in pairs]

    def update(g, state, p, ctx):
        if not g.numel():
            return g, {}
        m, Q = running_mean(state["momentum_buffer"], g, b1), state["Q"]
        mean = (m / ctx.bias_correction(b1)).reshape(shape_of(g))
        h = mean if momentum_into_precond_update else g.reshape(mean.shape)
        is_due, number, counts = _schedule(every, state, ctx)
        Q = ctx.when(is_due, lambda: fitted(h, Q, number, ctx), lambda: Q)
        u = preconditioned(mean, Q)
        u = u * at_most(clip_rms / (rms(u) + 1e-12), 1.0)
        return u.reshape(g.shape), {"momentum_buffer": m, "Q": Q, **counts}

    return init, update


def _schedule(every: int | None, state, ctx) -> tuple[Any, Any, dict[str, Tensor]]:
    """Return whether an update is due at a step, the number of updates up to it, and the new counts."""
    if every is not None:
        return lambda step: step % every == 0, lambda step: step // every, {}
    count = state["since_update"] + 1
    due = count >= 1 / annealed_probability(ctx.time)
    updates = state["updates"] + due.to(torch.int64)

    # From a table if the host knows the step.
    def is_due(step):
        if isinstance(step, int):
            return annealed_number(step) > annealed_number(step - 1)
        return due

    def number(step):
        return annealed_number(step) if isinstance(step, int) else updates

    counts = {"since_update": torch.where(due, 0, count), "updates": updates}
    return is_due, number, counts


@per_tensor(whole=True, amplifies=True, length="sets")
def scale_by_psgd_pro(
    momentum: Decay = 0.9,
    beta_lip: Decay = 0.9,
    precond_lr: NonNegative = 0.1,
    precond_init_scale: Positive = 1.0,
    damping_noise_scale: NonNegative = 0.1,
    min_precond_lr: NonNegative = 0.01,
    warmup_steps: Positive = 10000.0,
    max_update_rms: NonNegative = 0.0,
    max_precondition_dim: NonNegativeInt = 10000,
):
    r"""Whiten the momentum with factors fitted without inverses and kept nearly symmetric: PSGD-PRO.

    $m \leftarrow \beta m + (1-\beta) g$, $P_i = Q_i^\top Q_i$, $x = m \times_i P_i$; for each dimension, with
    $C = \mathrm{mat}_i(x) \mathrm{mat}_i(x)^\top + \sigma^2 \prod_{j \ne i} \lVert P_j \rVert^2 P_i^2$, $n$ the product
    of the other dimensions, and $\ell$ a lower bound of the norm of $C$, plus n:
    $L \leftarrow \max(\beta_L L + (1-\beta_L) \ell, \ell)$, $Q \leftarrow Q - \frac{\mu}{L} (C Q - n Q)$, then a
    rotation that brings $Q$ closer to a symmetric matrix. All $Q_i$ are rescaled to equal largest entries. The
    direction is $m \times_i P_i$ with the new factors, its root mean square limited to `max_update_rms`.

    Args:
        momentum: $\beta$ in [0, 1).
        beta_lip: $\beta_L$ in [0, 1).
        precond_lr: $\mu = \max(\mathrm{this} / \sqrt{1 + (t-1)/\mathrm{warmup\_steps}}, \mathrm{min\_precond\_lr})$.
        precond_init_scale: Initial value of every factor, > 0, as a multiple of the identity.
        damping_noise_scale: $\sigma \ge 0$.
        min_precond_lr: Lower bound of $\mu$, >= 0.
        warmup_steps: Steps until $\mu$ is divided by the root of 2, > 0.
        max_update_rms: Upper bound of the root mean square of an update, >= 0; a literal 0.0 disables it.
        max_precondition_dim: Dimensions larger than this, >= 0, have a diagonal factor, as do 0-d leaves.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, shaped as the parameter, `Q_i`, n x n or n, and
        `lipschitz_i` ($L$, 0-d) for each dimension. Time: n^3.

    Example:
        >>> tx = gradtx.scale_by_psgd_pro(momentum=0.0)
        >>> grads = {"w": torch.tensor([[4.0, 0.0], [0.0, 0.5]])}
        >>> state = tx.init(grads)
        >>> for _ in range(200):
        ...     updates, state = tx.update(grads, state)
        >>> updates["w"].diagonal()[0] < 1.5  # whitened, from 4
        tensor(True)

    Source: NVIDIA Emerging-Optimizers 2026-08; lixilinx/psgd_torch. Departures: the damping noise is averaged
    analytically, and the bounds start from one vector instead of 32 random ones.
    """

    def init(param):
        shape = tuple(param.shape) or (1,)
        diagonal = [size > max_precondition_dim or not param.ndim for size in shape]
        factors = first_factors(param, shape, precond_init_scale, diagonal)
        ones = [param.new_ones(()) for _ in factors]
        return {"exp_avg": torch.zeros_like(param), "Q": factors, "lipschitz": ones}

    def update(g, state, p, ctx):
        if not g.numel():
            return g, {}
        m = running_mean(state["exp_avg"], g, momentum)
        x = m.reshape(tuple(m.shape) or (1,))
        rate = precond_lr / (1 + (ctx.time - 1) / warmup_steps).sqrt()
        rate = at_least(rate, min_precond_lr)
        Q, bounds = fitted(x, state["Q"], state["lipschitz"], rate)
        u = preconditioned(x, Q)
        if not is_off(max_update_rms):
            u = u * at_most(max_update_rms / (rms(u) + 1e-7), 1.0)
        return u.reshape(g.shape), {"exp_avg": m, "Q": Q, "lipschitz": bounds}

    def fitted(x, factors, bounds, rate):
        squares = [_square(_transposed(factor)) for factor in factors]
        terms = _noisy(x, squares, damping_noise_scale**2)
        new_factors, new_bounds = [], []
        for i, (factor, statistics) in enumerate(zip(factors, terms, strict=True)):
            others = x.numel() / x.shape[i]
            length = others + _largest_eigenvalue(statistics)
            bound = torch.maximum(running_mean(bounds[i], length, beta_lip), length)
            if factor.ndim == 1:
                change = statistics * factor - others * factor
                factor = factor - rate / bound * change
            else:
                change = statistics @ factor - others * factor
                factor = symmetrized(factor - rate / bound * change)
            new_factors.append(factor.to(x.dtype))
            new_bounds.append(bound)
        return rebalanced(new_factors), new_bounds

    return init, update


def _largest_eigenvalue(x: Tensor) -> Tensor:
    """Return a lower bound of the largest eigenvalue of a matrix without negative ones; a vector is a diagonal."""
    if x.ndim == 1:
        return x.amax()
    return _power_bound(x, x.diagonal().amax())


def _power_bound(x: Tensor, scale: Tensor) -> Tensor:
    """Return a lower bound of the spectral norm of a matrix from four products with its row of largest norm."""
    x = x / _above_zero(scale)
    row = x.index_select(0, x.square().sum(dim=1).argmax()[None])
    for _ in range(2):
        row = row @ x
        row = row / (norm(row) + 1e-8)
        row = row @ x
    return norm(row) * scale


def symmetrized(factor: Tensor) -> Tensor:
    """Rotate a factor by one step toward the symmetric factor with the same square."""
    skew = factor.mT - factor
    skew = skew / at_least(_power_bound(skew, skew.abs().amax()), 1e-8)
    first_order = skew @ factor
    second_order = skew @ first_order
    slope, curvature = first_order.diagonal().sum(), second_order.diagonal().sum()
    step = torch.where(
        curvature < 0, quotient(-slope, curvature).clamp(0, 0.125), 0.125
    )
    return factor + step * (first_order + step / 2 * second_order)


@per_tensor(needs="params", rate="before")
def add_decayed_matrices(
    weight_decay, cautious: Literal[True, False, "inclusive"] = False
):
    """Add weight decay to leaves with two or more dimensions."""
    if is_off(weight_decay):
        return chain()

    def update(update, state, param, ctx):
        if param.ndim < 2:
            return update, state
        return plus_decay(update, weight_decay, param, cautious=cautious), state

    return update


@alias(class_name="PSGDKron")
def psgd_kron(
    lr=3e-4,
    b1: Decay = 0.9,
    weight_decay=0.0,
    **options: Annotated[Any, scale_by_psgd_kron],
):
    r"""PSGD Kron: momentum whitened by triangular factors that are fitted by gradient descent.

    $p \leftarrow p - \eta\, (u + \lambda p)$ with $u$ of `scale_by_psgd_kron`; only leaves with two or more dimensions
    decay.

    When to use: smooth problems without noise, instead of `shampoo` and `soap`, without eigenvectors and roots. Start
    with a third of Adam's rate.

    Args:
        lr: $\eta$ in [0, inf).
        b1: Decay rate of the momentum, in [0, 1).
        weight_decay: $\lambda \ge 0$.
        precond_lr: Learning rate of the factors, >= 0.
        precond_init_scale: Initial value of the product of the factors, > 0.
        precondition_frequency: Number of steps between updates of the factors, or "annealed".
        balance_every: Number of factor updates between two balancings, >= 1.
        probes: Kind of probes: "expected" or "random".
        seed: Seed of random probes.
        momentum_into_precond_update: If False, fit the factors to the gradient itself instead of the momentum.
        max_size_triangular: Dimensions larger than this (>= 0) have a diagonal factor.
        min_ndim_triangular: Leaves with fewer dimensions than this, after merging, have only diagonal factors.
        memory_save_mode: "one_diag", "smart_one_diag" or "all_diag"; see `scale_by_psgd_kron`.
        merge_dims: Treat leaves with more than two dimensions as matrices.
        clip_rms: Upper bound of the root mean square of $u$, > 0.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, `Q_i` for every dimension;
        if annealed, also `since_update` and `updates`.

    Example:
        >>> tx = gradtx.psgd_kron(lr=1.0)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update({"w": torch.full((2, 2), 1000.0)}, tx.init(params), params)
        >>> updates["w"].square().mean().sqrt()  # at most clip_rms
        tensor(1.1000)

    Source: Li 2015, arXiv:1512.04202; Pooladzandi and Li 2024, arXiv:2402.11858; kron-torch 0.3.3. Departures: see
    `scale_by_psgd_kron`.
    """
    return chain(
        scale_by_psgd_kron(b1, **options),
        add_decayed_matrices(weight_decay),
        scale_by_learning_rate(lr),
    )


@alias(class_name="PSGDPro")
def psgd_pro(
    lr=3e-3,
    momentum: Decay = 0.9,
    weight_decay=0.01,
    **options: Annotated[Any, scale_by_psgd_pro],
):
    r"""PSGD-PRO: momentum whitened by symmetric factors that are fitted without inverses.

    $p \leftarrow p (1 - \eta \lambda) - \eta\, u$ with $u$ of `scale_by_psgd_pro`.

    When to use: like `psgd_kron`, in low precision and on accelerators: it needs only products, no triangular solve.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: Decay rate of the momentum, in [0, 1).
        weight_decay: $\lambda \ge 0$, decoupled.
        beta_lip: Decay rate of the bounds of the factors' statistics, in [0, 1).
        precond_lr: Initial learning rate of the factors, >= 0.
        precond_init_scale: Initial value of every factor, > 0, as a multiple of the identity.
        damping_noise_scale: Size of the noise that damps the factors, >= 0.
        min_precond_lr: Lower bound of the learning rate of the factors, >= 0.
        warmup_steps: Number of steps until the learning rate of the factors is divided by the square root of 2, > 0.
        max_update_rms: Upper bound of the root mean square of $u$, >= 0; a literal 0.0 disables it.
        max_precondition_dim: Dimensions larger than this (>= 0) have a diagonal factor.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, and `Q_i` and `lipschitz_i` for
        every dimension.

    Example:
        >>> tx = gradtx.psgd_pro(lr=1.0, max_update_rms=0.5)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> updates, _ = tx.update({"w": torch.full((2, 2), 1000.0)}, tx.init(params), params)
        >>> updates["w"]
        tensor([[-0.5000, -0.5000],
                [-0.5000, -0.5000]])

    Source: NVIDIA Emerging-Optimizers 2026-08; lixilinx/psgd_torch. Departures: see `scale_by_psgd_pro`.
    """
    return chain(
        scale_by_psgd_pro(momentum, **options),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
