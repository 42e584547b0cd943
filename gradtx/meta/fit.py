"""`Fit`, what least squares returns: parameters, their standard errors, and how the search ended."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.base import tree as _tree
from gradtx.base.jacobian import FunctionJacobian, Jacobian
from gradtx.base.messages import describe
from gradtx.base.vectors import JointVector

__all__ = ["Fit"]

CHILDREN = (
    *("params", "errors", "covariance", "residuals", "steps", "converged"),
    *("x", "y", "sigma", "args"),
)


@dataclass(frozen=True, eq=False)
class Fit:
    """The result of `least_squares` and `curve_fit`; `torch.vmap` may return it. A batch has leading dimensions.

    Attributes:
        params: The parameters, a tree like the start.
        errors: Their standard errors, a tree like `params`: the roots of the diagonal of `covariance`; inf where the
            data do not determine them, None for more than 1,000 parameters.
        covariance: The covariance matrix of all entries of `params`, in their order, [n, n]; inf if the Jacobian is
            singular; None for more than 1,000 parameters.
        residuals: What was minimized, at `params`: for `curve_fit` the model minus `y`, divided by `sigma`.
        steps: How many steps ran, 0-d int64; in a batch, which looks for minima in turns, up to three more than alone.
        converged: Whether a minimum was reached, 0-d bool.
        x, y, sigma, args, model: What `curve_fit` received; None from `least_squares`. `model(x, args, params)`.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
        >>> y = torch.tensor([1.0, 3.1, 4.9, 7.0], dtype=torch.float64)
        >>> fit = gradtx.curve_fit(lambda x, a, b: a * x + b, x, y, {"a": 1.0, "b": 0.0})
        >>> fit
        Fit(a = 1.98 ± 0.0424, b = 1.03 ± 0.0794, converged in 4 steps)
        >>> fit.predict(torch.tensor([10.0], dtype=torch.float64))
        tensor([20.8300], dtype=torch.float64)
    """

    params: Any
    errors: Any
    covariance: Tensor | None
    residuals: Tensor
    steps: Tensor
    converged: Tensor
    x: Any = None
    y: Tensor | None = None
    sigma: Tensor | None = None
    args: tuple[Any, ...] = ()
    model: Callable[..., Any] | None = None

    def predict(self, x: Any) -> Tensor:
        """Return the model at other points, which all fits of a batch share: [*batch, points].

        Raises:
            ValueError: If `least_squares` made this fit, which has no model.
        """
        model, points = self._modelled("predict"), self._points(x)
        return self._of_members(lambda params: model(points, params))

    def band(self, x: Any) -> Tensor:
        r"""Return the standard error of `predict(x)`: the root of the diagonal of $J C J^\top$, [*batch, points].

        Raises:
            ValueError: If `least_squares` made this fit, which has no model.
        """
        model, points = self._modelled("band"), self._points(x)

        def of_member(params: Any, covariance: Tensor) -> Tensor:
            jacobian = jacobian_of(lambda params: model(points, params), params)
            rows = jacobian.rows
            return ((rows @ covariance.to(rows)) * rows).sum(-1).clamp(min=0).sqrt()

        return self._of_members(of_member, self.covariance)

    def member(self, index: Any) -> Fit:
        """Return one fit of a batch, by an index of its leading dimensions.

        Raises:
            IndexError: If this is no batch, or if the index is out of range.
        """
        if not self.steps.ndim:
            raise IndexError("Fit.member: this is a single fit, not a batch")
        index = index if isinstance(index, tuple) else (index,)
        if len(index) != self.steps.ndim:
            raise IndexError(
                f"Fit.member: the batch has the shape {tuple(self.steps.shape)}, got the index {describe(index)}"
            )
        batch, points = self.steps.shape, None if self.y is None else self.y.shape

        def of_member(leaf: Tensor) -> Tensor:
            return leaf[index] if leaf.shape[: len(batch)] == batch else leaf

        def of_data(leaf: Tensor) -> Tensor:
            return leaf[index] if is_batched(leaf, points) else leaf

        results = {name: getattr(self, name) for name in CHILDREN[:6]}
        return Fit(
            **_tree.map_tensors(of_member, results),
            x=_tree.map_tensors(of_data, self.x),
            y=None if self.y is None else self.y[index],
            sigma=None if self.sigma is None else of_data(self.sigma),
            args=self.args,
            model=self.model,
        )

    def plot(self, path: str | os.PathLike[str] | None = None, index: Any = 0) -> Any:
        """Draw data, fit with a band of one standard error, and residuals below.

        Args:
            path: Where to save the plot, for example "fit.png"; None to only return it.
            index: Which fit of a batch.

        Returns:
            The `matplotlib` figure.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If `least_squares` made this fit, or if `x` is not one number a point.
        """
        from gradtx.meta.fit_plot import plot_of  # matplotlib takes a second to import

        self._modelled("plot")
        figure = plot_of(self.member(index) if self.steps.ndim else self)
        if path is not None:
            figure.savefig(path, dpi=75)
        return figure

    def __repr__(self) -> str:
        batch = tuple(self.steps.shape)
        if batch:
            found = int(self.converged.sum())
            return f"Fit(batch of {batch}, {found} of {self.steps.numel()} converged)"
        how = "converged" if self.converged else "not converged"
        parts = [*self._lines(), f"{how} in {int(self.steps)} steps"]
        return f"Fit({', '.join(parts)})"

    def _lines(self) -> list[str]:
        """Return each parameter with its error."""
        params = _tree.named(self.params)
        errors = {} if self.errors is None else _tree.named(self.errors)
        lines: list[str] = []
        for name, leaf in params.items():
            if leaf.numel() > 1:
                lines.append(f"{name}: {tuple(leaf.shape)}")
                continue
            error = f" ± {errors[name].item():.3g}" if name in errors else ""
            lines.append(f"{name or 'params'} = {leaf.item():.6g}{error}")
        return lines

    def _modelled(self, what: str) -> Callable[..., Tensor]:
        """Return the model as a function of points and parameters."""
        model = self.model
        if model is None:
            raise ValueError(
                f"Fit.{what}: a fit of least_squares has no model; use curve_fit"
            )
        return lambda x, params: model(x, self.args, params)

    def _points(self, x: Any) -> Any:
        """Return points as a tensor, as `curve_fit` takes them: arrays and lists, too."""
        is_array = hasattr(x, "__array__") or isinstance(x, list)
        if isinstance(x, Tensor) or not is_array or self.y is None:
            return x
        return torch.as_tensor(x, dtype=self.y.dtype, device=self.y.device)

    def _of_members(self, function: Callable[..., Tensor], *others: Any) -> Tensor:
        """Return what a function makes of each member's parameters."""
        for _ in range(self.steps.ndim):
            function = torch.vmap(function)
        return function(self.params, *others)


_tree.register(Fit, CHILDREN, ("model",))


def is_batched(leaf: Tensor, shape_of_y: torch.Size | None) -> bool:
    """Whether a tensor of the data has the leading dimensions of a batch."""
    leading = () if shape_of_y is None else shape_of_y[:-1]
    return bool(leading) and leaf.ndim > 1 and leaf.shape[: len(leading)] == leading


def jacobian_of(function: Callable[[Any], Tensor], params: Any) -> Jacobian:
    """Return the Jacobian of a function of a tree, which returns a vector."""
    leaves, rebuild = _tree.split(params)
    joint = JointVector(leaves)
    return FunctionJacobian(
        lambda point: function(rebuild(joint.parts(point))), joint, joint.joined(leaves)
    )


class Factor:
    """QR of a Jacobian with at least as many rows as columns, each divided by its norm.

    Attributes:
        is_singular: Whether a column depends on others, or is not finite; 0-d bool.
    """

    def __init__(self, rows: Tensor) -> None:
        norms = rows.norm(dim=0)
        self.norms = torch.where(norms > 0, norms, 1.0)
        self.q, self.r = torch.linalg.qr(rows / self.norms)
        heights = self.r.diagonal().abs()
        least = torch.finfo(rows.dtype).eps * max(rows.shape)
        self._depends = ~(heights > least)
        self.is_singular = self._depends.any()

    def projected(self, vector: Tensor) -> Tensor:
        """Return the coordinates of a vector in the span of the columns."""
        return torch.where(self._depends, 0.0, self.q.mT @ vector)

    def solved(self, coordinates: Tensor) -> Tensor:
        """Return what the Jacobian maps to these coordinates; 0 for columns that depend on others."""
        unit = torch.eye(len(coordinates), dtype=self.r.dtype, device=self.r.device)
        r = torch.where(self._depends[:, None], unit, self.r)
        solution = torch.linalg.solve_triangular(r, coordinates[:, None], upper=True)
        return solution[:, 0] / self.norms

    def inverse_of_square(self) -> Tensor:
        """Return the inverse of J^T J; inf for a singular Jacobian."""
        unit = torch.eye(len(self.r), dtype=self.r.dtype, device=self.r.device)
        r = torch.where(self.is_singular, unit, self.r)
        inverse = torch.linalg.solve_triangular(r, unit, upper=True)
        inverse = inverse / self.norms[:, None]
        return torch.where(self.is_singular, torch.inf, inverse @ inverse.mT)


def uncertainty(
    function: Callable[[Any], Tensor], params: Any, is_absolute: bool
) -> tuple[Tensor, Any, Tensor]:
    """Return covariance, errors and residuals of one fit.

    Args:
        function: The residuals as a function of the parameters, a vector.
        params: The parameters at the minimum.
        is_absolute: Whether residuals have the variance 1; otherwise it is their mean square.
    """
    jacobian = jacobian_of(function, params)
    m, n = jacobian.size
    rows, residuals = jacobian.rows, jacobian.value
    if m < n or (m == n and not is_absolute):
        covariance = rows.new_full((n, n), torch.inf)
    else:
        covariance = Factor(rows).inverse_of_square()
        if not is_absolute:
            covariance = covariance * (residuals.square().sum() / (m - n))
            # 0 * inf of an exact fit
            covariance = covariance.nan_to_num(torch.inf, torch.inf)
    _, rebuild = _tree.split(params)
    errors = rebuild(jacobian.joint.parts(covariance.diagonal().sqrt()))
    return covariance, errors, residuals
