"""Hutchinson's estimate of the diagonal of a Hessian, from Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.maths.entries import average_over_space

__all__ = ["hutchinson_hessian_diag"]

Leaves: TypeAlias = dict[str, Tensor]
NO_GRAPH = (
    "the gradients are detached from the parameters, so they have no second derivatives; "
    "compute them with torch.func.grad, or with torch.autograd.grad(..., create_graph=True)"
)


def hutchinson_hessian_diag(
    grad_fn: Callable[[Any], Any],
    params: Any,
    generator: torch.Generator | int,
    n_samples: int = 1,
    distribution: str = "rademacher",
    spatial_average: bool = False,
) -> Any:
    r"""Estimate the diagonal of the Hessian: the mean of $z \odot H z$ over random vectors $z$.

    Each sample costs one Hessian-vector product. The estimate is unbiased; for a diagonal Hessian it is exact with
    Rademacher vectors.

    Args:
        grad_fn: `params -> gradients`, differentiable: `torch.func.grad(loss)`, or gradients computed with
            `create_graph=True`.
        params: The point at which to evaluate the Hessian, a tree of tensors.
        generator: The generator that draws $z$; an int is a seed.
        n_samples: The number of vectors, >= 1.
        distribution: The distribution of the entries of $z$: "rademacher" (-1 or 1 with equal probability) or
            "gaussian" (noisier).
        spatial_average: Average the absolute values over dimensions 2 and up, as `scale_by_hessian` does.

    Returns:
        A tree like `params`. Signs are kept, except with `spatial_average`. A leaf whose gradient does not depend on
        the parameters is zero.

    Raises:
        ValueError: If `distribution` is unknown, if `n_samples` is less than 1, or if the gradients have no graph.

    Example:
        >>> loss = lambda params: (params["w"] ** 3).sum()
        >>> gradtx.hutchinson_hessian_diag(
        ...     torch.func.grad(loss), {"w": torch.tensor([1.0, -2.0])}, 0
        ... )["w"]
        tensor([  6., -12.])

    Source: Bekas et al. 2007; Yao et al. 2020, arXiv:2006.00719.
    """
    if not isinstance(generator, torch.Generator):
        generator = torch.Generator().manual_seed(generator)
    if distribution not in ("rademacher", "gaussian"):
        raise ValueError(
            f"hutchinson_hessian_diag: distribution must be 'rademacher' or 'gaussian', got {distribution!r}"
        )
    if n_samples < 1:
        raise ValueError(
            f"hutchinson_hessian_diag: n_samples must be in [1, inf), got {n_samples!r}"
        )
    leaves, unflatten = _tree.flatten_real(params, "params")
    at = {name: leaf.detach() for name, leaf in leaves.items() if leaf is not None}
    if not at:
        return unflatten(leaves)

    def gradients(values: Leaves) -> Leaves:
        tree = grad_fn(unflatten({**leaves, **values}))
        grads = _tree.match(tree, leaves, "gradients from grad_fn", "params")
        dense = {}
        for name, value in values.items():
            grad = grads[name]
            dense[name] = torch.zeros_like(value) if grad is None else grad
        if not any(grad.requires_grad for grad in dense.values()):
            raise ValueError(f"hutchinson_hessian_diag: {NO_GRAPH}")
        return dense

    product = _hessian_product(gradients, at)
    diagonal = {name: torch.zeros_like(value) for name, value in at.items()}
    for i in range(n_samples):
        z = {
            name: draw_probe(value, generator, distribution)
            for name, value in at.items()
        }
        columns = product(z, i + 1 < n_samples)
        for name in diagonal:
            diagonal[name] = diagonal[name] + z[name] * columns[name]
    for name in diagonal:
        diagonal[name] = diagonal[name] / n_samples
        if spatial_average:
            diagonal[name] = average_over_space(diagonal[name])
    return unflatten({**leaves, **diagonal})


def _hessian_product(
    gradients: Callable[[Any], Leaves], at: Leaves
) -> Callable[..., Any]:
    """Create a function `(z, again) -> H z`, where `again` tells whether another call follows."""
    # torch.autograd.grad does not work inside vmap, grad and compile; elsewhere it supports more functions.
    if torch.compiler.is_compiling() or _torch.inside_transform():
        with torch.enable_grad():
            pull = torch.func.vjp(gradients, at)[1]

        def pulled(z: Leaves, again: bool) -> Leaves:
            (result,) = pull(z, retain_graph=again, create_graph=False)
            return result

        return pulled
    for value in at.values():
        value.requires_grad_()
    with torch.enable_grad():
        grads = gradients(at)
    outputs = {name: grad for name, grad in grads.items() if grad.requires_grad}

    def product(z: Leaves, again: bool) -> Leaves:
        vectors = [z[name] for name in outputs]
        columns = torch.autograd.grad(
            list(outputs.values()),
            list(at.values()),
            vectors,
            retain_graph=again,
            materialize_grads=True,
        )
        return dict(zip(at, columns, strict=True))

    return product


def draw_probe(
    like: Tensor, generator: torch.Generator, distribution: str = "rademacher"
) -> Tensor:
    """Return a random vector with the shape, the dtype and the device of a leaf."""
    # Drawn on the generator's device in float32, so that a seed yields the same vectors for all devices and dtypes.
    options = {"generator": generator, "device": generator.device}
    shape = tuple(like.shape)
    gaussian = distribution == "gaussian"
    z = (
        torch.randn(shape, **options)
        if gaussian
        else 2 * torch.randint(0, 2, shape, **options) - 1
    )
    return z.to(like.device, like.dtype)
