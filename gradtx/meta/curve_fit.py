"""Fit a curve to data, or a thousand curves at once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import is_number
from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.inputs import parameters_of
from gradtx.base.messages import describe, nearest, warn_user
from gradtx.meta.fit import Fit, is_batched
from gradtx.meta.least_squares import fitted, search_of
from gradtx.transform import GradientTransformation

__all__ = ["curve_fit"]

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def curve_fit(
    model: Callable[..., Tensor],
    x: Any,
    y: Any,
    start: Mapping[str, Any] | Sequence[Any],
    sigma: Any = None,
    *,
    absolute_sigma: bool = False,
    args: Sequence[Any] = (),
    steps: int = 100,
    until: float | Callable[..., Any] | None = None,
    tx: GradientTransformation | None = None,
    tolerance: float | None = None,
    progress: bool | None = None,
) -> Fit:
    r"""Fit the parameters of a model to data by least squares, with their standard errors.

    $$p^\star = \arg\min_p \tfrac12 \sum_i \left(\frac{f(x_i, p) - y_i}{\sigma_i}\right)^2$$

    and the covariance of `least_squares`, as `scipy.optimize.curve_fit` returns it. The result has a gradient by `x`,
    `y`, `sigma` and `args`, that of the minimum.

    Leading dimensions of `y` are a batch: `y` of shape [1000, 25] is 1,000 fits of 25 points. Those that have converged
    leave the batch, so that the others cost less. A member whose data are not finite does not converge, and changes
    nothing for the others.

    Pass float64: in float32, a fit has three to six digits.

    Args:
        model: `model(x, *args, **params)`, or `model(x, *args, *params)` if `start` is a sequence. It computes one fit:
            `x` without the dimensions of a batch, and a result of shape [m].
        x: The points, [m] or [k, m]; with the leading dimensions of `y` if each member of a batch has its own. Or
            anything that the model takes, such as a dict of tensors.
        y: The data, [*batch, m]; tensors, arrays or lists.
        start: The first parameters, by name or as a sequence: numbers, or tensors of at least the dtype of `y`. A leaf
            with the leading dimensions of `y` has a value for each member.
        sigma: Standard deviations of the points, 0-d, [m] or [*batch, m]; or their covariance matrix, [m, m] or
            [*batch, m, m]. None for equal ones.
        absolute_sigma: Whether `sigma` is meant as it is. If not, only its proportions matter, and the covariance is
            multiplied by the mean square $s^2$ of the weighted residuals.
        args: What the model takes between `x` and the parameters, the same for all members.
        steps: The largest number of steps.
        until: As in `least_squares`.
        tx: As in `least_squares`.
        tolerance: As in `least_squares`.
        progress: As in `least_squares`.

    Returns:
        A `Fit`; `fit.predict(x)` and `fit.plot(path)` use the model.

    Raises:
        TypeError: If `model` is no function, or does not take the parameters of `start`.
        ValueError: If `y`, `x` or `sigma` is not finite, if shapes do not match, if there are fewer points than
            parameters, if `sigma` is not positive, if the model returns another shape than that of `y`; also the errors
            of `least_squares`.

    Warnings say which fits have not converged, and which have a covariance of inf.

    Example:
        >>> x = torch.linspace(0.0, 4.0, 50, dtype=torch.float64)
        >>> rates = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
        >>> y = 2.5 * torch.exp(-rates * x) + 0.5  # three fits
        >>> def decay(x, a, k, c):
        ...     return a * torch.exp(-k * x) + c
        >>> fit = gradtx.curve_fit(decay, x, y, {"a": 1.0, "k": 1.0, "c": 0.0})
        >>> fit.params["k"]
        tensor([0.5000, 1.0000, 2.0000], dtype=torch.float64)
        >>> fit.covariance.shape
        torch.Size([3, 3, 3])

    Source: scipy.optimize.curve_fit. Departures: a matrix `sigma` and its batches, gradients, and the test of
    convergence; `params` are by name.
    """
    if not callable(model):
        raise TypeError(
            f"curve_fit: model must be a function of (x, *args, parameters), got {describe(model)}"
        )
    if not isinstance(args, Sequence):
        raise TypeError(
            f"curve_fit: args must be a tuple of what the model takes behind x, got {describe(args)}"
        )
    data = _checked_data(x, y, sigma, tuple(args))
    params = _started(model, start, data)
    tensors, rebuild = _tree.split((data.x, data.y, data.factor, data.args))

    def residuals(params: Any, tensors: Sequence[Tensor]) -> Tensor:
        x, y, factor, args = rebuild(tensors)
        curve = _called(model, x, args, params)
        if not isinstance(curve, Tensor) or curve.shape != y.shape:
            raise ValueError(
                f"curve_fit: the model must return a tensor of shape {tuple(y.shape)}, one value for each point of y, "
                f"got {describe(curve)}"
            )
        return _weighted(curve - y, factor)

    fitter = search_of("curve_fit", residuals, tx, steps, until, tolerance, progress)
    run = _untraced if torch.compiler.is_dynamo_compiling() else _fitted
    fit = run(fitter, params, tensors, data, absolute_sigma)
    _warn_of_errors(fit)

    shown = {"x": data.x, "y": data.y, "sigma": data.sigma, "args": data.args}
    return replace(fit, **shown, model=_Modelled(model))


@dataclass(frozen=True)
class _Modelled:
    """A model as a function of points, arguments and a tree of parameters, which can be pickled if the model can."""

    model: Callable[..., Tensor]

    def __call__(self, x: Any, args: Any, params: Any) -> Tensor:
        return _called(self.model, x, args, params)


@dataclass(frozen=True)
class _Data:
    """Checked data: tensors, and what divides residuals.

    Attributes:
        factor: Standard deviations, or the Cholesky factor of a covariance matrix; None for 1.
    """

    x: Any
    y: Tensor
    sigma: Tensor | None
    factor: Tensor | None
    args: tuple[Any, ...]

    @property
    def batch(self) -> torch.Size:
        return self.y.shape[:-1]

    def has_members(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor of the data has the dimensions of the batch."""
        return name != "args" and is_batched(tensor, self.y.shape)


@_torch.not_traced
def _untraced(*arguments: Any) -> Fit:
    """Run outside of the compiled graph."""
    return _fitted(*arguments)


def _fitted(
    fitter: Any, params: Any, tensors: list[Tensor], data: _Data, absolute_sigma: bool
) -> Fit:
    """Fit, with all dimensions of a batch as one."""
    batch = data.batch
    if not batch:
        return fitted(fitter, params, tensors, None, absolute_sigma)
    members = math.prod(batch)

    def flat(leaf: Tensor) -> Tensor:
        return leaf.reshape((members, *leaf.shape[len(batch) :]))

    dims: list[int | None] = []
    parts = {"x": data.x, "y": data.y, "factor": data.factor, "args": data.args}
    for name, part in parts.items():
        for tensor in _tree.tensors(part):
            dims.append(0 if data.has_members(name, tensor) else None)
    merged = [
        tensor if dim is None else flat(tensor)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]
    start = _tree.map_tensors(flat, params)
    fit = fitted(fitter, start, merged, dims, absolute_sigma)
    return _tree.map_tensors(lambda leaf: leaf.reshape((*batch, *leaf.shape[1:])), fit)


def _warn_of_errors(fit: Fit) -> None:
    """Warn once of parameters that the data do not determine."""
    covariance = fit.covariance
    if covariance is None or not _torch.readable(covariance):
        return
    is_known = covariance.isfinite().flatten(-2).all(-1)
    unknown = int((~is_known & fit.converged).sum())
    if unknown:
        count = fit.converged.numel()
        which = "" if count == 1 else f" of {unknown} of {count} fits"
        warn_user(
            f"curve_fit: the covariance{which} is inf: the Jacobian is singular, or there are as many parameters as "
            "points; drop parameters that the data do not determine"
        )


def _called(model: Any, x: Any, args: Any, params: Any) -> Any:
    if isinstance(params, Mapping):
        return model(x, *args, **params)
    return model(x, *args, *params)


def _weighted(residuals: Tensor, factor: Tensor | None) -> Tensor:
    """Divide residuals by standard deviations, or solve with a Cholesky factor."""
    if factor is None:
        return residuals
    if factor.ndim < 2:
        return residuals / factor
    column = residuals[:, None]
    return torch.linalg.solve_triangular(factor, column, upper=False)[:, 0]


# Data.


def _checked_data(x: Any, y: Any, sigma: Any, args: tuple[Any, ...]) -> _Data:
    y = _as_tensor("y", y)
    if y.is_complex():
        raise ValueError(
            "curve_fit: y is complex; fit its real and imaginary parts as points of their own"
        )
    if not y.is_floating_point():
        y = y.to(torch.float64)
    if not y.ndim or not y.numel():
        raise ValueError(
            f"curve_fit: y must have the shape [points] or [*batch, points], got {describe(y)}"
        )
    is_tree = isinstance(x, Mapping | tuple) or not hasattr(x, "__len__")
    x = x if is_tree or isinstance(x, Tensor) else _as_tensor("x", x)
    x = _tree.map_tensors(
        lambda leaf: leaf if leaf.is_floating_point() else leaf.to(y.dtype), x
    )
    for leaf in _tree.tensors(x):
        _check_finite("x", leaf, is_batched(leaf, y.shape))
    _check_finite("y", y, y.ndim > 1)
    if sigma is None:
        return _Data(x, y, None, None, args)
    sigma = _as_tensor("sigma", sigma).to(y.dtype)
    return _Data(x, y, sigma, _factor(sigma, y.shape), args)


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        if hasattr(value, "dtype"):
            return torch.as_tensor(value)
        return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"curve_fit: {name} must be a tensor, an array or a list of numbers, got {type(value).__name__}"
        ) from error


def _check_finite(name: str, tensor: Tensor, may_have_others: bool) -> None:
    """Raise an error for data that are not finite, unless other members of a batch may have finite ones."""
    if may_have_others or not _torch.readable(tensor):
        return
    wrong = int((~tensor.isfinite()).sum())
    if wrong:
        raise ValueError(
            f"curve_fit: {name} has {wrong} entries that are NaN or infinite; remove these points"
        )


def _factor(sigma: Tensor, shape: torch.Size) -> Tensor:
    """Return what divides residuals, of the shape of the data or of a matrix for them."""
    points = shape[-1:]
    if sigma.shape in (torch.Size(()), points, shape):
        if _torch.readable(sigma) and not bool((sigma > 0).all()):
            raise ValueError(
                "curve_fit: sigma must be positive; leave out points that are not to count"
            )
        return sigma
    if sigma.shape not in (points + points, shape + points):
        raise ValueError(
            f"curve_fit: sigma has the shape {tuple(sigma.shape)}, needs {tuple(points)} or {tuple(shape)} for "
            f"standard deviations, or {tuple(shape + points)} for a covariance matrix"
        )
    factor, info = torch.linalg.cholesky_ex(sigma)
    if _torch.readable(info) and bool((info > 0).any()):
        raise ValueError(
            "curve_fit: the covariance matrix sigma is not positive definite"
        )
    return factor


# Parameters.


def _started(model: Any, start: Any, data: _Data) -> Any:
    """Return the start as tensors, with a value for each member of a batch."""
    if isinstance(start, Tensor) and start.ndim == 1:
        start = tuple(start)
    elif hasattr(start, "tolist") and not isinstance(start, Tensor):
        start = start.tolist()
    if isinstance(start, Mapping):
        _check_names(model, start, len(data.args))
        start = dict(start)
    elif isinstance(start, Sequence) and not isinstance(start, str):
        _check_count(model, start, len(data.args))
        start = tuple(start)
    else:
        raise TypeError(
            f"curve_fit: start must be a dict of numbers by name of a parameter, or a sequence, got {describe(start)}"
        )
    named = start.items() if isinstance(start, dict) else enumerate(start)
    values = {name: _leaf(name, value, data) for name, value in named}
    params = values if isinstance(start, dict) else tuple(values.values())
    leaves = _tree.tensors(params)
    n = sum(leaf[(0,) * len(data.batch)].numel() for leaf in leaves)
    if not n:
        raise ValueError("curve_fit: start has no parameters")
    if n > data.y.shape[-1]:
        raise ValueError(
            f"curve_fit: {n} parameters need at least as many points, got {data.y.shape[-1]}; drop parameters, or pass "
            "some of them in args"
        )
    return params


def _leaf(name: Any, value: Any, data: _Data) -> Tensor:
    """Return a parameter's start as a tensor with the dimensions of the batch."""
    if is_number(value):
        value = torch.tensor(value, dtype=data.y.dtype, device=data.y.device)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"curve_fit: start: {name!r} must be a number or a tensor, got {describe(value)}"
        )
    value = value.detach().to(torch.promote_types(value.dtype, data.y.dtype))
    _check_finite("start", value, False)
    batch = data.batch
    if batch and value.shape[: len(batch)] == batch:
        return value
    return value.expand((*batch, *value.shape))


def _names(model: Any, skipped: int) -> tuple[list[str], list[str], bool]:
    """Return the model's parameters after `x` and `args`, those without defaults, and whether it takes any others."""
    parameters = parameters_of(model)
    takes_any = not parameters or any(p.kind in VARIADIC for p in parameters)
    plain = [p for p in parameters if p.kind not in VARIADIC][1 + skipped :]
    required = [p.name for p in plain if p.default is p.empty]
    return [p.name for p in plain], required, takes_any


def _check_names(model: Any, start: Mapping[str, Any], skipped: int) -> None:
    known, required, takes_any = _names(model, skipped)
    unknown = [name for name in start if name not in known and not takes_any]
    missing = [name for name in required if name not in start]
    if not unknown and not missing:
        return
    faults = [f"lacks {missing}"] if missing else []
    if unknown:
        faults.append(f"has {unknown}, {nearest(str(unknown[0]), known)}")
    raise TypeError(
        f"curve_fit: start {' and '.join(faults)}; the parameters of the model are {known}"
    )


def _check_count(model: Any, start: Sequence[Any], skipped: int) -> None:
    known, required, takes_any = _names(model, skipped)
    if len(start) >= len(required) and (takes_any or len(start) <= len(known)):
        return
    raise TypeError(
        f"curve_fit: start has {len(start)} values, but the parameters of the model are {known}"
    )
