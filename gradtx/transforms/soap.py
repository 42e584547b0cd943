"""Adam in the eigenbasis of Shampoo's statistics: SOAP."""

from __future__ import annotations

import torch
from torch import Tensor

from gradtx._arguments import Betas, Scalar
from gradtx.factories import per_tensor
from gradtx.transforms._math import rms, safe_sqrt
from gradtx.transforms._matrix import eigenbasis, gram, merged, multiplied, orthonormal

__all__ = ["scale_by_soap"]

# Bases that are renewed early, and an eps far above rounding: entries that the rotation makes 0 are divided by it.
EXAMPLE = {"precondition_frequency": 2, "eps": 0.1}


def _full_rank(arguments):
    """Whether leaves that become a single long dimension, whose statistics have rank 1 at first, stay unrotated."""
    return not (arguments["merge_dims"] or arguments["precondition_1d"])


@per_tensor(
    determined=_full_rank,
    compiles=False,
    ranges={"precondition_frequency": "[1, inf)", "max_precondition_dim": "[1, inf)", "shampoo_beta": "[0, 1)"},
    example=EXAMPLE,
    nonnegative=("exp_avg_sq",),
)
def scale_by_soap(
    betas: Betas = (0.95, 0.95),
    shampoo_beta: Scalar | None = None,
    eps: Scalar = 1e-8,
    precondition_frequency: int = 10,
    max_precondition_dim: int = 10000,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_gradient: bool = False,
    correct_bias: bool = True,
):
    r"""Run Adam on the gradient rotated into the eigenbases of its Kronecker factors.

    The first step gives 0: it sets $G_i = (1-\beta_s)\, \mathrm{mat}_i(g) \mathrm{mat}_i(g)^\top$ for every dimension i
    and $Q_i$ to its eigenvectors, the largest eigenvalue first. Then, with $s = t - 1$ and a rotation by all $Q_i^\top$
    written as a prime: $m \leftarrow \beta_1 m + (1-\beta_1) g$, $v \leftarrow \beta_2 v + (1-\beta_2) g'^2$, gives
    $m' / (\sqrt{v} + \epsilon)$ rotated back, times $\sqrt{1-\beta_2^s} / (1-\beta_1^s)$. After that
    $G_i \leftarrow \beta_s G_i + (1-\beta_s)\, \mathrm{mat}_i(g) \mathrm{mat}_i(g)^\top$, and where $s \bmod n = 0$
    the columns of $Q_i$ are put in the order of $\mathrm{diag}(Q_i^\top G_i Q_i)$, $v$ with them, and
    $Q_i \leftarrow \mathrm{QR}(G_i Q_i)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        shampoo_beta: $\beta_s$ in [0, 1); None for $\beta_2$.
        eps: $\epsilon \ge 0$, added to the root before its bias correction.
        precondition_frequency: $n \ge 1$. In pure use bases are computed at every step and selected; an optimizer of
            `as_optimizer` computes them when they are due only.
        max_precondition_dim: Dimensions larger than this, >= 1, are not rotated.
        merge_dims: Merge neighbouring dimensions, left to right, while their product is at most that.
        precondition_1d: Rotate leaves of one dimension too.
        normalize_gradient: Divide the direction by its root mean square.
        correct_bias: Whether to apply the factor of the two corrections.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` and `exp_avg_sq` (in the rotated basis), shaped
        as the parameter, and `GG_i`, `Q_i`, n x n, for every rotated dimension in order. A leaf without any is plain
        Adam. Time n^3.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> tx = gradtx.scale_by_soap(eps=1e-2)
        >>> state = tx.init({"w": torch.zeros(2, 2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([[1.0, 1.0], [2.0, 2.0]])}, state)
        >>> updates["w"]  # along one pair of eigenvectors, where Adam's would be all ones
        tensor([[0.3118, 0.3118],
                [0.6236, 0.6236]])

    Source: Vyas et al. 2024, arXiv:2409.11321. Departures: none from the authors' code, without its casts to float32.
    Where statistics are rank-deficient (a rotated vector, a zero gradient, and at the first step a dimension that is
    larger by two or more than the product of the others, as in a 5 x 2 matrix), part of the basis is arbitrary, so
    results depend on the backend. Then there is no derivative by what reaches these statistics (the first weights and
    gradients, $\beta_s$, and $\beta_2$ in its place): the one that is computed leaves out what is arbitrary, is finite,
    and is no difference quotient. Second derivatives through the bases are not available.
    """
    beta1, beta2 = betas
    beta = beta2 if shampoo_beta is None else shampoo_beta

    def shape_of(x: Tensor) -> tuple[int, ...]:
        return merged(x.shape, max_precondition_dim) if merge_dims and x.ndim > 1 else tuple(x.shape)

    def rotated_dims(x: Tensor) -> list[int]:
        if x.ndim == 1 and not precondition_1d:
            return []
        return [i for i, size in enumerate(shape_of(x)) if size <= max_precondition_dim]

    def init(param):
        sizes = [shape_of(param)[i] for i in rotated_dims(param)]
        return {
            "exp_avg": torch.zeros_like(param),
            "exp_avg_sq": torch.zeros_like(param),
            "GG": [param.new_zeros((size, size)) for size in sizes],
            # A leaf whose first gradient comes later starts as plain Adam.
            "Q": [torch.eye(size, dtype=param.dtype, device=param.device) for size in sizes],
        }

    def update(update, state, param, ctx):
        dims, shape = rotated_dims(update), shape_of(update)
        statistics, bases = (state["GG"], state["Q"]) if dims else ([], [])
        gradient = update.reshape(shape)

        def turned(x, back=False):
            for i, basis in zip(dims, bases, strict=True):
                x = multiplied(x, basis if back else basis.mT, i)
            return x

        started = ctx.step > 1
        mean = torch.where(started, beta1 * state["exp_avg"] + (1 - beta1) * update, state["exp_avg"])
        square = state["exp_avg_sq"].reshape(shape)
        square = torch.where(started, beta2 * square + (1 - beta2) * turned(gradient).square(), square)
        direction = turned(turned(mean.reshape(shape)) / (safe_sqrt(square) + eps), back=True)
        if normalize_gradient:
            direction = direction / (1e-30 + rms(direction))
        if correct_bias:
            count = (ctx.time - 1).clamp(min=1)  # the first step gives 0 in any case
            factor = ctx.bias_correction(beta2, count).sqrt() / ctx.bias_correction(beta1, count)
            direction = factor * direction

        new = [beta * old + (1 - beta) * gram(gradient, i) for i, old in zip(dims, statistics, strict=True)]

        def initial():
            return [eigenbasis(x) for x in new], square

        def refreshed():
            return ctx.first(initial, lambda: _refreshed(new, bases, square, dims))

        next_bases, next_square = ctx.every(precondition_frequency, 1, refreshed, lambda: (bases, square))
        slots = {"GG": new, "Q": next_bases} if dims else {}
        return direction.reshape(update.shape), {
            "exp_avg": mean,
            "exp_avg_sq": next_square.reshape(update.shape),
            **slots,
        }

    return init, update


def _refreshed(statistics: list[Tensor], bases: list[Tensor], square: Tensor, dims: list[int]):
    """One step of power iteration for every basis, its columns in order; and second moments in the same order."""
    found = []
    for i, x, basis in zip(dims, statistics, bases, strict=True):
        product = x @ basis
        order = (basis * product).sum(dim=0).argsort(descending=True)
        found.append(orthonormal(product.take_along_dim(order[None, :], dim=1)))
        square = square.take_along_dim(order.view([-1 if i == k else 1 for k in range(square.ndim)]), dim=i)
    return found, square
