"""Run any chain in other coordinates: in the eigenbases of Kronecker factors, or projected to a low rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.arguments import Count, Decay, NonNegative, NonNegativeInt, Static
from gradtx.combinators._spaces import Coordinates, LeafCoordinates, Space
from gradtx.maths.entries import at_least, blended, identity
from gradtx.maths.matrices import (
    eigenbasis,
    gram,
    left_basis,
    merged,
    multiplied,
    orthonormal,
    unfolded,
)
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation

__all__ = [
    "low_rank",
    "rotated",
]


def change_basis(
    x: Tensor, dims: Sequence[int], bases: Sequence[Tensor], back: bool = False
) -> Tensor:
    """Transform a tensor into the coordinates of bases, or back."""
    for i, basis in zip(dims, bases, strict=True):
        x = multiplied(x, basis if back else basis.mT, i)
    return x


def whitened(
    x: Tensor,
    dims: list[int],
    bases: list[Tensor],
    scales: list[Tensor],
    skipped: int = -1,
) -> Tensor:
    """Transform a tensor into bases and divide by the root of the scales; one dimension may be skipped."""
    for i, basis, scale in zip(dims, bases, scales, strict=True):
        if i != skipped:
            whitening = scale.rsqrt()[:, None] * basis.mT
            x = multiplied(x, whitening, i)
    return x


def kl_scales(statistics: list[Tensor], bases: list[Tensor], floor) -> list[Tensor]:
    """Return the eigenvalues used for whitening, diag(Q^T S Q) before this step, or 1 before the first gradient."""
    scales = []
    for matrix, basis in zip(statistics, bases, strict=True):
        eigenvalues = at_least((basis * (matrix @ basis)).sum(dim=0), floor)
        scales.append(torch.where(is_empty(matrix), 1.0, eigenvalues))
    return scales


def is_empty(statistics: Tensor) -> Tensor:
    """Return whether no gradient has entered the statistics; the clock cannot tell, as leaves may share it."""
    return (statistics == 0).all()


def iterated(statistics: Tensor, basis: Tensor) -> Tensor:
    """Run one step of power iteration, with the column of the largest eigenvalue first.

    Then every column returns to its place, so that what is kept for each of them need not move.
    """
    product = statistics @ basis
    eigenvalues = (basis * product).sum(dim=0)  # diag(Q^T S Q)
    order = eigenvalues.argsort(descending=True)
    basis = orthonormal(product.index_select(1, order))
    return basis.index_select(1, order.argsort())


@dataclasses.dataclass(frozen=True)
class Factors:
    """The options of `rotated` that SOAP and its relatives have, too."""

    precondition_frequency: Count = 10
    max_precondition_dim: Count = 10000
    merge_dims: bool = False
    _: dataclasses.KW_ONLY
    stagger: Static[bool] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotation(Factors, Coordinates):
    """The options of `rotated`, which documents them."""

    statistics: Literal["shampoo", "kl"] = "shampoo"
    sides: Literal["both", "left", "right", "short"] = "both"
    beta: Decay = 0.95
    precondition_1d: bool = False
    start: Literal["skip", "identity"] = "skip"
    refresh: Literal["qr", "eigh", "svd"] = "qr"
    offset: NonNegativeInt = 1
    of: Literal["update", "grad"] = "update"
    eps: NonNegative = 1e-8
    order: Literal["after", "before"] = "after"
    waits_at_first = True
    spreads_errors = True

    @property
    def capturable(self) -> bool:
        return self.refresh == "qr"

    @property
    def delayed(self) -> bool:
        return self.start == "skip" and self.order == "after"

    def changes(self, shape: torch.Size) -> list[int]:
        return self.dims(shape)

    def stored(self, value: Tensor, like: Tensor) -> Tensor:
        # One value per entry; others, such as a single mean, are unchanged.
        return value.reshape(like.shape) if value.numel() == like.numel() else value

    def shape(self, of_leaf: torch.Size) -> tuple[int, ...]:
        """Return the shape of a leaf after the merge."""
        if self.merge_dims and len(of_leaf) > 1:
            return merged(of_leaf, self.max_precondition_dim)
        return tuple(of_leaf)

    def inside(self, x: Tensor) -> Tensor:
        """Return a tensor in that shape."""
        return x.reshape(self.shape(x.shape))

    def dims(self, of_leaf: torch.Size) -> list[int]:
        """Return the dimensions that have a factor."""
        if len(of_leaf) == 1 and not self.precondition_1d:
            return []
        shape = self.shape(of_leaf)
        return [
            i for i in self._candidates(shape) if shape[i] <= self.max_precondition_dim
        ]

    def _candidates(self, shape: tuple[int, ...]) -> list[int]:
        """Return the dimensions that `sides` selects, whatever their size."""
        if self.sides == "both":
            return list(range(len(shape)))
        if len(shape) != 2:
            return []
        if self.sides == "short":
            return [0] if shape[0] < shape[1] else [1]
        return [0] if self.sides == "left" else [1]

    def init(self, param: Tensor, *random) -> dict[str, Any]:
        shape = self.shape(param.shape)
        sizes = [shape[i] for i in self.dims(param.shape)]
        # A leaf whose first gradient arrives later starts from the identity.
        bases = [identity(n, param) for n in sizes]
        if self.refresh == "svd":
            return {"Q": bases}
        return {"GG": [torch.zeros_like(basis) for basis in bases], "Q": bases}

    def of_leaf(
        self, update: Tensor, state: dict[str, Any], param, ctx
    ) -> LeafRotation:
        return LeafRotation(self, update, state, ctx)

    def kl_averages(
        self,
        x: Tensor,
        dims: list[int],
        old: list[Tensor],
        bases: list[Tensor],
        scales: list[Tensor],
        ctx,
    ) -> list[Tensor]:
        """Return the factors after this step for "kl".

        Gram matrices are whitened along all other dimensions and divided by their size.
        """
        # Unbiased, because the scale of the factors matters. `blended` does not support such weights, which start at 1.
        weight = (1 - self.beta) / ctx.bias_correction(self.beta)
        averages = []
        for i, statistics in zip(dims, old, strict=True):
            size_of_others = max(x.numel(), 1) / max(x.shape[i], 1)
            white = whitened(x, dims, bases, scales, skipped=i)
            latest = gram(white, i) / size_of_others
            averages.append((1 - weight) * statistics + weight * latest)
        return averages

    def next_bases(self, new: list[Tensor], old: list[Tensor], ctx) -> list[Tensor]:
        """Return the bases after this step."""

        def initial() -> list[Tensor]:
            return [eigenbasis(statistics) for statistics in new]

        def iterate() -> list[Tensor]:
            return list(map(iterated, new, old))

        refreshed = initial if self.refresh == "eigh" else iterate
        return self.if_due(ctx, initial, refreshed, old)

    def if_due(self, ctx, first, refreshed, old) -> Any:
        """Return `first()` in a leaf's first update, `refreshed()` at steps that refresh its bases, else `old`."""
        phase = (
            self.offset + ctx.turn(self.precondition_frequency)
            if self.stagger
            else self.offset
        )
        return ctx.first(
            first,
            lambda: ctx.every(
                self.precondition_frequency, phase, refreshed, lambda: old
            ),
        )


class LeafRotation(LeafCoordinates):
    """The eigenvectors of a leaf's factors as its coordinates in one call."""

    def __init__(self, rotation: Rotation, update: Tensor, state: dict[str, Any], ctx):
        self._rotation = rotation
        self._ctx = ctx
        self._update = update
        self._shape = update.shape
        self._merged_shape = rotation.shape(update.shape)
        self._dims = rotation.dims(update.shape)
        self._slots: Mapping[str, Any] = state if self._dims else {"Q": []}
        if rotation.order == "before" or rotation.refresh == "svd":
            self._renew()
        if rotation.delayed:
            is_first = ctx.is_first
            self.takes_part = not is_first if isinstance(is_first, bool) else ~is_first

    def average(self, value: Tensor, decay) -> Tensor | None:
        return blended(value, self._update, 1 - decay) if self._dims else None

    def inward(self, x: Tensor) -> Tensor:
        return change_basis(x.reshape(self._merged_shape), self._dims, self._slots["Q"])

    def _outward(self, x: Tensor) -> Tensor:
        original = change_basis(x, self._dims, self._slots["Q"], back=True)
        return original.reshape(self._shape)

    def read(self, kind: str, value: Tensor) -> Tensor:
        if kind == "linear":
            return self.inward(value)
        is_of_leaf = value.shape == self._shape
        return value.reshape(self._merged_shape) if is_of_leaf else value

    def write(self, kind: str, value: Tensor) -> Tensor:
        if kind == "linear":
            return self._outward(value)
        is_of_leaf = value.shape == self._merged_shape
        return value.reshape(self._shape) if is_of_leaf else value

    def leave(self, update: Tensor) -> tuple[Tensor, dict[str, Any]]:
        update = self._outward(update)
        if self._rotation.order == "after" and self._rotation.refresh != "svd":
            self._renew()
        return update, dict(self._slots) if self._dims else {}

    def _renew(self) -> None:
        """Compute the factors and the bases after this step."""
        rotation, dims, ctx = self._rotation, self._dims, self._ctx
        if not dims:
            return
        Q, of_update = self._slots["Q"], rotation.inside(self._update)
        if rotation.refresh == "svd":

            def computed() -> list[Tensor]:
                return [left_basis(unfolded(of_update, i)) for i in dims]

            self._slots = {"Q": rotation.if_due(ctx, computed, computed, Q)}
            return
        GG = self._slots["GG"]
        x = rotation.inside(ctx.grad) if rotation.of == "grad" else of_update
        if rotation.statistics == "kl":
            scales = kl_scales(GG, Q, rotation.eps)
            GG = rotation.kl_averages(x, dims, GG, Q, scales, ctx)
        else:
            pairs = zip(dims, GG, strict=True)
            GG = [blended(S, gram(x, i), 1 - rotation.beta) for i, S in pairs]
        self._slots = {"GG": GG, "Q": rotation.next_bases(GG, Q, ctx)}


@combinator(amplifies=True)
def rotated(
    inner: GradientTransformation,
    **options: Annotated[Any, Rotation],
):
    r"""Run a chain in the eigenbases of the Kronecker factors of its updates.

    With the update $u$, a basis $Q_i$ for every dimension i, and a rotation by all $Q_i^\top$ written as a prime, the
    inner transformation receives $u'$, and its update is rotated back. Then the factors are updated with $x = u$:
    "shampoo": $S_i \leftarrow \beta S_i + (1-\beta)\, \mathrm{mat}_i(x) \mathrm{mat}_i(x)^\top$. "kl":
    $S_i \leftarrow (1-w) S_i + w\, \mathrm{mat}_i(\tilde x) \mathrm{mat}_i(\tilde x)^\top d_i / n$ with
    $w = (1-\beta)/(1-\beta^t)$, where $\tilde x$ is x along every other basis, divided by the root of
    $\lambda_j = \max(\mathrm{diag}(Q_j^\top S_j Q_j), \epsilon)$ there (1 at the first step), all from before this
    step. The first bases are the eigenvectors of the first factors, sorted by decreasing eigenvalue.

    Slots of the inner transformation are of three kinds, which its links declare (see `gradtx.slots`): "linear"
    slots (`exp_avg`) are stored unrotated and rotated in every step, "square" slots (`exp_avg_sq`) are stored in the
    rotated coordinates, and "scalar" slots do not change. `ctx.grad` and `params` are rotated as well.

    Args:
        inner: The chain that runs in the rotated coordinates, such as `scale_by_adam_hat()`. Its last link returns a
            direction; a learning rate and weight decay usually follow `rotated`.
        precondition_frequency: Period >= 1: new bases are computed at steps t with (t - offset) mod period = 0.
        max_precondition_dim: Dimensions larger than this, >= 1, are not rotated.
        merge_dims: Merge neighboring dimensions, left to right, while their product does not exceed that limit.
        stagger: Renew the bases of each leaf at a separate step within the period, derived from its name, so that no
            step after the first renews the bases of all leaves.
        statistics: "shampoo" or "kl".
        sides: "both" rotates every dimension; "left", "right" and "short" rotate matrices only, along the first, the
            last, or the smaller dimension (the last of a square).
        beta: $\beta$ in [0, 1).
        precondition_1d: Also rotate leaves with one dimension.
        start: "skip": the first step only collects statistics and returns 0, so the inner clock is one step behind;
            inner schedules follow the outer count.
            "identity": the first step runs unrotated. Without effect if `order` is "before".
        refresh: "qr": $Q \leftarrow \mathrm{QR}(S Q)$, column by column in the order of $\mathrm{diag}(Q^\top S Q)$.
            "eigh": eigenvectors of S. "svd": the left singular vectors of $\mathrm{mat}_i(u)$, computed before the
            bases are used; there are no factors in this mode.
        offset: See `precondition_frequency`, >= 0.
        of: x: "update", or "grad" for the gradient itself, `ctx.grad`.
        eps: $\epsilon \ge 0$, for "kl".
        order: "after": a step rotates with the bases of earlier steps, and then updates factors and bases. "before":
            every step, also the first, updates factors and bases first and rotates with the result.

    Returns:
        A transformation that preserves shapes and dtypes. State: `GG_i` ($S_i$) and `Q_i`, n x n, for every rotated
        dimension in order, and the entries of `inner`. Time: O(n^3).

    Raises:
        TypeError: If `inner` is not a transformation, has a slot without a declared kind, works on whole trees or
            averages weights.
        ValueError: If an argument is out of range, or if an option is unknown.

    Example:
        >>> tx = gradtx.rotated(gradtx.clip_by_value(1.0))
        >>> state = tx.init({"w": torch.zeros(2, 2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([[3.0, 0.0], [4.0, 0.0]])}, state)
        >>> # its singular value 5 is clipped to 1; unrotated, the entries 3 and 4 would be
        >>> updates["w"]
        tensor([[0.6000, 0.0000],
                [0.8000, 0.0000]])

    Source: Vyas et al. 2024, arXiv:2409.11321 (SOAP); "kl": Lin et al. 2025, arXiv:2509.03378; "before": REKLS and MOSO
    of NVIDIA's Emerging-Optimizers. Departures: any inner
    chain. If statistics are rank-deficient, part of a basis is arbitrary; see `scale_by_soap`.
    """
    return Space(inner, Rotation(**options))


Bases: TypeAlias = Literal["svd", "power", "random"]
Side: TypeAlias = Literal["short", "long", "left", "right"]
Carry: TypeAlias = Literal["keep", "reset", "rotate"]


@dataclasses.dataclass(frozen=True)
class Projection(Coordinates):
    """Options of `low_rank`, which documents them, and how its result follows from the low-rank one.

    Attributes:
        finish: `(leaf, update) -> (update, numbers)`: the result for a matrix, and the new values of `numbers`.
        numbers: The names of 0-d slots of a matrix, besides its basis.
    """

    finish: Callable[[LeafProjection, Tensor], tuple[Tensor, dict[str, Any]]]
    rank: int
    every: int
    kind: Bases
    side: Side
    carry: Carry
    seed: int
    numbers: tuple[str, ...] = ()

    def init(self, param: Tensor, *random) -> dict[str, Any]:
        if param.ndim != 2:
            return {}
        # A leaf whose first gradient arrives later starts from the first columns of the identity.
        basis = torch.eye(
            param.shape[1 if self.is_right(param) else 0],
            self.width(param),
            dtype=param.dtype,
            device=param.device,
        )
        return {"Q": basis, **{name: param.new_zeros(()) for name in self.numbers}}

    def of_leaf(self, update: Tensor, state, param, ctx) -> LeafCoordinates:
        if update.ndim != 2:
            return LeafCoordinates()
        return LeafProjection(self, update, state, ctx)

    def changes(self, shape: torch.Size) -> bool:
        return len(shape) == 2

    @property
    def needs_kinds(self) -> bool:
        return self.carry == "rotate"

    @property
    def capturable(self) -> bool:
        return self.kind != "svd"

    @property
    def draws(self) -> int | None:
        return self.seed if self.kind == "random" else None

    def is_right(self, x: Tensor) -> bool:
        """Whether the basis multiplies the matrix from the right."""
        rows, columns = x.shape
        if self.side in ("left", "right"):
            return self.side == "right"
        # Inside torch.compile, comparisons of sizes are symbolic and cannot be compared.
        return rows >= columns if self.side == "short" else rows < columns

    def width(self, x: Tensor) -> int:
        """Return the number of columns of the basis."""
        return self.rank if self.kind == "random" else min(self.rank, *x.shape)

    def inside(self, x: Tensor) -> Tensor:
        """Return a matrix in the shape that the inner transformation receives, for `init`."""
        if x.ndim != 2:
            return x
        rows, columns = x.shape
        width = self.width(x)
        shape = (rows, width) if self.is_right(x) else (width, columns)
        return x.new_zeros(shape)

    def basis(self, x: Tensor, old: Tensor, ctx) -> Tensor:
        """Return the basis of this step: random, singular vectors of `x`, or after one step of power iteration."""

        def computed() -> Tensor:
            if self.kind == "random":
                return ctx.rng.normal(old) / self.rank**0.5
            matrix = x.mT if self.is_right(x) else x
            if self.kind == "svd":
                width = old.shape[1]
                return signed(left_basis(matrix)[:, :width])
            return signed(orthonormal(matrix @ (matrix.mT @ old)))

        return ctx.every(self.every, 1, computed, lambda: old)


def signed(basis: Tensor) -> Tensor:
    """Make the entry of largest magnitude in each column positive, so that moments stay valid across refreshes."""
    if not basis.numel():
        return basis
    row_of_largest = basis.detach().abs().argmax(dim=0, keepdim=True)
    largest = basis.detach().take_along_dim(row_of_largest, dim=0)
    signs = largest.sign()
    return basis * torch.where(signs == 0, 1.0, signs)


class LeafProjection(LeafCoordinates):
    """Project a matrix to a low rank for one call."""

    def __init__(
        self, projection: Projection, update: Tensor, state: dict[str, Any], ctx
    ):
        self.ctx = ctx
        self.right = projection.is_right(update)
        self.update = update
        self.state = state
        self.basis = projection.basis(update, state["Q"], ctx)
        self._finish = projection.finish
        self._carry = projection.carry
        self._renews = ((ctx.step - 1) % projection.every == 0) & (ctx.step > 1)
        # The host already knows that no refresh is due.
        self._kept = self.basis is state["Q"]
        if self._carry == "reset" and not self._kept:
            self.restarts = self._renews

    def inward(self, x: Tensor) -> Tensor:
        return x @ self.basis if self.right else self.basis.mT @ x

    def outward(self, x: Tensor) -> Tensor:
        return x @ self.basis.mT if self.right else self.basis @ x

    def read(self, kind: str, value: Tensor) -> Tensor:
        if self._kept or self._carry != "rotate" or kind != "linear":
            return value
        rotation = self.basis.mT @ self.state["Q"]
        rotated = value @ rotation.mT if self.right else rotation @ value
        return torch.where(self._renews, rotated, value)

    def leave(self, update: Tensor) -> tuple[Tensor, dict[str, Any]]:
        update, numbers = self._finish(self, update)
        return update, {"Q": self.basis, **numbers}


@combinator(amplifies=True)
def low_rank(
    tx: GradientTransformation,
    rank: Count,
    every: Count = 200,
    projection: Bases = "svd",
    side: Side = "short",
    scale: NonNegative = 1.0,
    carry: Carry = "keep",
    seed: int = 0,
):
    r"""Run a chain on matrices projected to a low rank, so that its state is correspondingly small.

    At steps t with (t - 1) mod `every` = 0 a basis $Q$ with `rank` columns is computed from the update $G$. The chain
    receives $G Q$, or $Q^\top G$ if the basis is on the left; its update $u$ is mapped back to $a\, u\, Q^\top$, or
    $a\, Q u$. Other leaves pass through the chain without projection. The entry of largest magnitude in each basis
    vector is positive: without a sign convention, moments from before and after a new basis would not match.

    Args:
        tx: The chain that runs at low rank, such as `scale_by_adam_hat()`; `ctx.grad` and `params` are projected too.
        rank: Number of basis vectors, >= 1, at most the smaller side unless they are random.
        every: Steps between updates of the basis, >= 1.
        projection: "svd" for the first singular vectors, "power" for $\mathrm{QR}(G^\top G Q)$ (initially from the
            identity), "random" for normal random numbers divided by $\sqrt{\mathrm{rank}}$, not orthogonal.
        side: "short" projects the smaller dimension (the last of a square), "long" the other one; "left", "right".
        scale: $a \ge 0$.
        carry: The treatment of inner slots when the basis changes: "keep", "reset" to their initial values, or
            "rotate": "linear" slots (see `rotated`) are multiplied by $Q^\top Q_{old}$, others are kept.
        seed: Seed of random bases.

    Returns:
        A transformation that preserves shapes and dtypes. State: `Q`, side x rank, for matrices, and the entries of
        `tx`, at low rank; with random bases also `seed` and `counter`.

    Raises:
        TypeError: If `tx` is not a transformation, works on whole trees or averages weights, or if, with "rotate", it
            has a slot without a declared kind.
        ValueError: If an argument is out of range, or if an option is unknown.

    Example:
        >>> tx = gradtx.low_rank(gradtx.scale_by_adam(), rank=1)
        >>> state = tx.init({"w": torch.zeros(512, 64)})
        >>> state["low_rank"]["scale_by_adam"]["exp_avg"]["w"].shape
        torch.Size([512, 1])

    Source: Zhao et al. 2024, GaLore, arXiv:2403.03507. Departures: any chain; the sign convention, since the
    signs of LAPACK are arbitrary; "power", "reset" and "rotate" are added.
    """

    def finish(leaf, update):
        return scale * leaf.outward(update), {}

    return Space(tx, Projection(finish, rank, every, projection, side, carry, seed))
