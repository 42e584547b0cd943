"""The Jacobian of a vector by the entries of some tensors: as rows, and as products with vectors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gradtx.base.torch_names import any_member, is_intercepted, is_transformed
from gradtx.base.vectors import JointVector

# A batched pass computes so many rows or columns that its tensors stay in the cache of a core, or fill a GPU: those of
# one row have an entry for each parameter, and about so many for each entry of the vector, since layers are that wide.
WIDTH = 32
CACHE = 2**18  # entries
ON_DEVICE = 2**26
LEAST_ROWS = 8


class Vectorizer(Protocol):
    """Makes a vector of what a caller's function returns."""

    @property
    def who(self) -> str:
        """The link, for messages."""
        ...

    @property
    def takes_means(self) -> bool:
        """Whether each term is divided by the root of its size."""
        ...

    @property
    def is_loss(self) -> bool:
        """Whether the vector makes the loss by itself, so that those of several ranks can be joined."""
        ...

    def __call__(self, result: Any) -> Tensor: ...

    def parts(self, result: Any) -> list[Tensor]:
        """Return the parts of the vector, one for each term, of one dtype on one device."""
        ...


NO_PRODUCTS = (
    "a function in the residuals has a backward pass that cannot be differentiated, so there are no products with "
    "their Jacobian; use solve='qr', 'dense' or 'kernel'"
)
# Of the wider of two vectors that differ by rounding errors alone, also in float32.
NEAR = 1e-3


def _probe(like: Tensor) -> Tensor:
    """Return a vector that is the same in each step, without zeros."""
    return torch.arange(1, len(like) + 1, dtype=like.dtype, device=like.device).cos()


def _are_near(x: Tensor, y: Tensor, scale: Tensor | None = None) -> bool:
    """Whether two results agree but for rounding errors, or cannot be read, or one of them is not finite."""
    if is_intercepted() or torch.compiler.is_compiling() or x.is_meta:
        return True
    size = x.norm() + y.norm() if scale is None else scale
    return not any_member((x - y).norm() > NEAR * size)


class Jacobian:
    """The derivatives of a vector of m entries by n entries of parameters, at one point.

    Attributes:
        joint: The parameters as one vector.
        value: The vector at the point, without a graph.
    """

    joint: JointVector
    value: Tensor
    is_constant = False  # whether it is known to depend on no parameter
    _is_checked = False  # whether products J v are known to be right
    _bends = False  # whether a second derivative was asked for

    @property
    def size(self) -> tuple[int, int]:
        """The numbers m and n."""
        return len(self.value), sum(self.joint.sizes)

    @property
    def is_tall(self) -> bool:
        """Whether there are more entries than parameters, so that columns cost less than rows."""
        m, n = self.size
        return m > n

    @property
    def _entries(self) -> int:
        """About the entries of the tensors of a pass for one row or column."""
        m, n = self.size
        return n + WIDTH * m

    @functools.cached_property
    def rows(self) -> Tensor:
        """The matrix J, of shape [m, n]."""
        return self._columns().mT if self.is_tall else self._rows()

    def squares_of_columns(self) -> Tensor:
        """Return the sum of squares of each column, without the whole matrix if this is large."""
        m, n = self.size
        if "rows" in self.__dict__ or m * n <= ON_DEVICE:
            return self.rows.square().sum(0)
        total = torch.zeros_like(self.transposed(self.value))
        for i in range(m):
            unit = torch.zeros_like(self.value)
            unit[i] = 1.0
            total += self.transposed(unit).square()
        return total

    def _product(self, vector: Tensor) -> Tensor:
        """Return J v as the derivative of a backward pass."""
        raise NotImplementedError

    def _check_products(self) -> None:
        """Check products J v, from the derivative of a backward pass, by the backward pass itself.

        torch leaves out parts of a function whose backward pass is declared `once_differentiable`, without an error.

        Raises:
            RuntimeError: If they are not.
        """
        if self._is_checked:
            return
        u = _probe(self.value)
        of_rows = self.transposed(u)
        v = _probe(of_rows)
        product = self._product(v)
        scale = product.norm() * u.norm() + of_rows.norm() * v.norm()
        if not _are_near(product @ u, of_rows @ v, scale):
            raise RuntimeError(NO_PRODUCTS)
        self._is_checked = True

    def _checked_columns(self, columns: Tensor) -> Tensor:
        """Return J^T, from products J v if these are right, else from rows."""
        probe = _probe(self.value)
        is_right = _are_near(columns @ probe, self.transposed(probe))
        return columns if is_right else self._rows().mT

    def kept(self) -> Jacobian | None:
        """Return it without what it is computed from, if its rows are known and no second derivative was asked for."""
        if "rows" not in self.__dict__ or self._bends:
            return None
        kept = MatrixJacobian(self.rows, self.joint)
        kept.value = self.value
        return kept

    def times(self, vector: Tensor) -> Tensor:
        """Return J v for a vector of n entries."""
        self._check_products()
        return self._product(vector)

    def transposed(self, vector: Tensor) -> Tensor:
        """Return J^T u for a vector of m entries."""
        raise NotImplementedError

    def second(self, vector: Tensor) -> Tensor:
        """Return the second derivative along a vector of n entries, a vector of m entries."""
        raise NotImplementedError

    def _rows(self) -> Tensor:
        raise NotImplementedError

    def _columns(self) -> Tensor:
        """Return J^T, one row for each parameter."""
        raise NotImplementedError


def _in_chunks(
    pass_of: Callable[[Tensor], Tensor], like: Tensor, entries: int
) -> Tensor:
    """Return what batched passes make of all unit vectors of the length of `like`.

    Args:
        pass_of: Returns the results for the rows of a matrix.
        like: A vector.
        entries: The entries of the tensors of a pass for one row.
    """
    unit = torch.eye(len(like), dtype=like.dtype, device=like.device)
    most = CACHE if like.device.type == "cpu" else ON_DEVICE
    chunk = max(LEAST_ROWS, most // max(entries, 1))
    if len(like) <= chunk:
        return pass_of(unit)
    return torch.cat([pass_of(part) for part in unit.split(chunk)])


class FunctionJacobian(Jacobian):
    """The Jacobian of a function of a vector, by the transforms of `torch.func`, inside which it also runs.

    Args:
        function: Maps a vector of all parameters to a vector.
        joint: The parameters as one vector.
        point: The vector of parameters.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        joint: JointVector,
        point: Tensor,
    ) -> None:
        follows: list[bool] = []

        def noting(point: Tensor) -> Tensor:
            value = function(point)
            follows.append(is_transformed(value) and value.requires_grad)
            return value.to(torch.promote_types(value.dtype, point.dtype))

        pulled: Any = torch.func.vjp(noting, point)
        value, _ = pulled
        wide = JointVector(joint.like, value.dtype)
        if wide.dtype != point.dtype:  # all products have the wider of the two dtypes
            point = point.to(wide.dtype)
            pulled = torch.func.vjp(noting, point)
        self._function, self.joint, self._point = noting, wide, point
        self.value, self._pullback = pulled
        self.is_constant = not follows[0]

    def _product(self, vector: Tensor) -> Tensor:
        (product,) = self._forward(vector.to(self._point.dtype))
        return product

    def transposed(self, vector: Tensor) -> Tensor:
        (product,) = self._pullback(vector, retain_graph=True)
        return product

    @functools.cached_property
    def _forward(self) -> Any:
        """The function v -> (J v,), by a backward pass of the backward pass, which is linear.

        It takes half the time of a forward mode, whose tangents of constants torch computes in Python, and needs none.
        """

        def pulled_back(vector: Tensor) -> Tensor:
            return self._pullback(vector)[0]

        pulled: Any = torch.func.vjp(pulled_back, torch.zeros_like(self.value))
        _, forward = pulled
        return forward

    def second(self, vector: Tensor) -> Tensor:
        def slope(point: Tensor) -> Tensor:
            return torch.func.jvp(self._function, (point,), (vector,))[1]

        bend = torch.func.jvp(slope, (self._point,), (vector,))[1]
        return bend.to(self.value.dtype)

    def _rows(self) -> Tensor:
        return _in_chunks(torch.vmap(self.transposed), self.value, self._entries)

    def _columns(self) -> Tensor:
        columns = _in_chunks(torch.vmap(self._product), self._point, self._entries)
        return self._checked_columns(columns)


class GraphJacobian(Jacobian):
    """The Jacobian of a vector by the tensors that its graph starts from, by backward passes.

    A product J v is a backward pass of the backward pass, which is linear in the vector that it starts with.

    Args:
        parts: The parts of a vector, each with a graph. Rows of one part need no backward pass through the others.
        sources: The tensors that require gradients.
        joint: These as one vector.
    """

    def __init__(
        self, parts: Sequence[Tensor], sources: Sequence[Tensor], joint: JointVector
    ) -> None:
        self._parts, self._sources, self.joint = parts, sources, joint
        with torch.enable_grad():
            self._traced = torch.cat(list(parts))
        self.value = self._traced.detach()

    @functools.cached_property
    def is_constant(self) -> bool:
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                self._traced,
                list(self._sources),
                torch.zeros_like(self._traced),
                allow_unused=True,
                retain_graph=True,
            )
        return all(gradient is None for gradient in gradients)

    def _product(self, vector: Tensor) -> Tensor:
        return self._forward(vector, create_graph=False)

    def transposed(self, vector: Tensor) -> Tensor:
        return self._pulled_back(self._traced, vector)

    def second(self, vector: Tensor) -> Tensor:
        self._bends = True
        slope = self._forward(vector, create_graph=True)
        if not slope.requires_grad:  # the vector is linear in the parameters
            return torch.zeros_like(self.value)
        weights = torch.zeros_like(self.value, requires_grad=True)
        pulled = self._pulled_back(slope, weights, create_graph=True)
        return self._derivative(pulled, weights, vector)

    def _rows(self) -> Tensor:
        rows: list[Tensor] = []
        for part in self._parts:
            if not part.requires_grad:
                rows.append(part.new_zeros(len(part), sum(self.joint.sizes)))
                continue

            def pass_of(unit: Tensor, part: Tensor = part) -> Tensor:
                try:
                    return self._pulled_back(part, unit, is_grads_batched=True)
                except RuntimeError:  # as in what inductor has compiled
                    alone = [self._pulled_back(part, row) for row in unit]
                    return torch.stack(alone)

            rows.append(_in_chunks(pass_of, part.detach(), self._entries))
        return torch.cat(rows)

    def _columns(self) -> Tensor:
        def pass_of(unit: Tensor) -> Tensor:
            weights, pulled = self._linear
            return self._derivative(pulled, weights, unit, is_grads_batched=True)

        try:
            columns = _in_chunks(pass_of, self._linear[1].detach(), self._entries)
        except (
            RuntimeError
        ):  # as what AOTAutograd has compiled, without a second backward pass
            return self._rows().mT
        return self._checked_columns(columns)

    @functools.cached_property
    def _linear(self) -> tuple[Tensor, Tensor]:
        """Weights w of 0, and J^T w with a graph."""
        weights = torch.zeros_like(self.value, requires_grad=True)
        pulled = self._pulled_back(self._traced, weights, create_graph=True)
        if not pulled.requires_grad:
            raise RuntimeError(NO_PRODUCTS)
        return weights, pulled

    def _forward(self, vector: Tensor, create_graph: bool) -> Tensor:
        weights, pulled = self._linear
        return self._derivative(pulled, weights, vector, create_graph=create_graph)

    def _pulled_back(self, traced: Tensor, vector: Tensor, **options: Any) -> Tensor:
        """Return the product of the transposed Jacobian of a vector with another one, or with each row of a matrix."""
        leading = vector.shape[:-1]
        parts: list[Tensor] = []
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                traced,
                list(self._sources),
                vector.to(traced.dtype),
                allow_unused=True,
                retain_graph=True,
                **options,
            )
            for gradient, source in zip(gradients, self._sources, strict=True):
                if gradient is None:
                    gradient = source.new_zeros(()).expand((*leading, *source.shape))
                part = gradient.reshape(*leading, source.numel())
                parts.append(part.to(self.joint.device, self.joint.dtype))
            return torch.cat(parts, dim=-1)

    def _derivative(
        self, pulled: Tensor, weights: Tensor, vector: Tensor, **options: Any
    ) -> Tensor:
        """Return the derivative of `pulled`, which is linear in `weights`, transposed and applied to a vector."""
        if not pulled.requires_grad:
            return weights.new_zeros(*vector.shape[:-1], len(weights))
        with torch.enable_grad():
            (derivative,) = torch.autograd.grad(
                pulled,
                [weights],
                vector,
                allow_unused=True,
                retain_graph=True,
                **options,
            )
        if derivative is None:
            return weights.new_zeros(*vector.shape[:-1], len(weights))
        return derivative


class MatrixJacobian(Jacobian):
    """A Jacobian that is known as a matrix.

    Args:
        rows: The matrix.
        joint: The parameters as one vector.
    """

    def __init__(self, rows: Tensor, joint: JointVector) -> None:
        self.joint, self._matrix = joint, rows
        self.value = rows.new_zeros(len(rows))

    def times(self, vector: Tensor) -> Tensor:
        return self._matrix @ vector

    def transposed(self, vector: Tensor) -> Tensor:
        return self._matrix.mT @ vector

    def _rows(self) -> Tensor:
        return self._matrix

    def _columns(self) -> Tensor:
        return self._matrix.mT
