"""Spectral sphere optimizer: Muon for matrices whose largest singular value stays the same."""

from __future__ import annotations

import torch

from gradtx.algorithms.muon import with_fallback
from gradtx.arguments import Count, Decay, Positive
from gradtx.links.decay import add_decayed_weights
from gradtx.links.manifolds import orthogonalize_tangent, retract
from gradtx.links.momentum import trace_ema
from gradtx.links.orthogonal import scale_by_shape
from gradtx.links.scaling import scale, scale_by_learning_rate
from gradtx.maths.polynomials import Coefficients, Steps
from gradtx.rules import alias
from gradtx.transform import GradientTransformation, chain

__all__ = ["spectral_sphere"]


@alias
def spectral_sphere(
    lr=5e-3,
    momentum: Decay = 0.9,
    nesterov=True,
    weight_decay=0.0,
    radius_scale: Positive = 1.0,
    power_steps: Count = 10,
    ns_coefficients: Coefficients = "polar_express",
    ns_steps: Steps | None = 8,
    ns_dtype: torch.dtype | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""Spectral sphere optimizer: Muon for matrices whose largest singular value stays the same.

    $d = r R\, O(\hat u + \lambda \Theta)$ for the momentum $u$, as in `orthogonalize_tangent`, with
    $R = \sqrt{\mathrm{rows} / \mathrm{columns}}$ and the radius scale $r$;
    $p \leftarrow p (1 - \eta \lambda') - \eta d$, and then $p \leftarrow r R\, p / \sigma(p)$: `retract("spectral")`.

    When to use: hidden matrices of large models, if activations must keep their size at every width; one rate then fits
    all widths. It costs about 60 iterations of `orthogonalize` in every step.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: Decay rate of the gradient average, in [0, 1).
        nesterov: Use Nesterov momentum.
        weight_decay: $\lambda' \ge 0$, decoupled.
        radius_scale: $r > 0$.
        power_steps: Power iterations for singular vectors, >= 1.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        ns_dtype: Dtype of the iteration; None for the dtype of the leaf.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`; with a fallback, that and
        the fallback's entries, under `partition`.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.spectral_sphere(lr=0.1)
        >>> params = {"w": torch.eye(2)}
        >>> grads = {"w": torch.tensor([[0.0, 1.0], [-1.0, 0.1]])}
        >>> params = gradtx.apply_updates(params, tx.update(grads, tx.init(params), params)[0])
        >>> torch.linalg.matrix_norm(params["w"], 2).round(decimals=3)
        tensor(1.)

    Source: the spectral sphere optimizer, arXiv:2601.08393. Departures: the authors project the weights at the start of
    the next step, so that its gradient belongs to the weights before; here, the projection ends the step. The
    iteration runs in the dtype of the leaf.
    """
    matrices = chain(
        trace_ema(momentum, nesterov),
        orthogonalize_tangent(ns_coefficients, ns_steps, power_steps, ns_dtype),
        scale_by_shape("spectral"),
        scale(radius_scale),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
        retract("spectral", radius_scale, adjust="spectral", power_steps=power_steps),
    )
    return with_fallback("spectral_sphere", matrices, fallback)
