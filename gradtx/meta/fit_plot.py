"""The plot of a fit: data, the curve with a band of one standard error, and residuals below."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

POINTS = 400  # of the curve


def plot_of(fit: Any) -> Any:
    """Return the figure of one fit.

    Raises:
        ValueError: If `x` is not one number a point.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Fit.plot needs matplotlib: pip install matplotlib") from None
    x, y = fit.x, fit.y
    if not isinstance(x, Tensor) or x.shape != y.shape:
        raise ValueError(
            "Fit.plot: draws fits whose x is one number a point; use fit.predict(x) and fit.residuals"
        )
    figure = Figure(figsize=(8, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _draw_curve(upper, fit)
    _draw_residuals(lower, fit)
    return figure


def _draw_curve(axes: Any, fit: Any) -> None:
    x = fit.x.detach()
    fine = torch.linspace(x.min().item(), x.max().item(), POINTS).to(x)
    with torch.no_grad():
        curve, band = fit.predict(fine), fit.band(fine)
    _draw_points(axes, fit, fit.y)
    axes.plot(*_arrays(fine, curve), color="C3", label="fit")
    if band.isfinite().all():
        sides = _arrays(fine, curve - band, curve + band)
        axes.fill_between(
            *sides, color="C3", alpha=0.2, linewidth=0, label="± one standard error"
        )
    how = "" if fit.converged else " (not converged)"
    axes.set(ylabel="y", title=", ".join(fit._lines()) + how)
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)


def _draw_residuals(axes: Any, fit: Any) -> None:
    with torch.no_grad():
        _draw_points(axes, fit, fit.y - fit.predict(fit.x))
    axes.axhline(0.0, color="C3", linewidth=1)
    axes.set(xlabel="x", ylabel="data - fit")
    axes.grid(alpha=0.3)


def _draw_points(axes: Any, fit: Any, values: Tensor) -> None:
    sigma = fit.sigma
    if sigma is not None:
        variances = sigma.diagonal() if sigma.ndim == 2 else None
        sigma = sigma if variances is None else variances.sqrt()
        (sigma,) = _arrays(sigma.expand(values.shape))
    axes.errorbar(
        *_arrays(fit.x, values), yerr=sigma, fmt="o", color="C0", markersize=3
    )


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().cpu().numpy() for tensor in tensors]
