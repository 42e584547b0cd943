"""The diagonal of a Hessian from Hessian-vector products: Hutchinson's estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._arguments import functorch
from gradtx.transforms.second_order import average_over_space

__all__ = ["hutchinson_hessian_diag"]

NO_GRAPH = (
    "the gradients are cut off from the parameters, so they have no second derivatives; "
    "make them with torch.func.grad, or with torch.autograd.grad(..., create_graph=True)"
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
    rademacher vectors.

    Args:
        grad_fn: `params -> gradients`, differentiable: `torch.func.grad(loss)`, or gradients made with
            `create_graph=True`.
        params: Where to take the Hessian, a tree of tensors.
        generator: What draws $z$, or a seed.
        n_samples: The number of vectors, >= 1.
        distribution: Of the entries of $z$: "rademacher" (-1 or 1 with equal odds) or "gaussian" (noisier).
        spatial_average: Average the absolute values over dimensions 2 and up, as `scale_by_hessian` does.

    Returns:
        A tree like `params`. The sign is kept, except with `spatial_average`. A leaf whose gradient does not depend
        on the parameters has zeros.

    Raises:
        TypeError: a generator of another type.
        ValueError: an unknown distribution, fewer than one sample, gradients that are all cut off from `params`.

    Example:
        >>> loss = lambda params: (params["w"] ** 3).sum()
        >>> gradtx.hutchinson_hessian_diag(torch.func.grad(loss), {"w": torch.tensor([1.0, -2.0])}, 0)["w"]
        tensor([  6., -12.])

    Source: Bekas et al. 2007; Yao et al. 2020, arXiv:2006.00719.
    """
    if isinstance(generator, int) and not isinstance(generator, bool):
        generator = torch.Generator().manual_seed(generator)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"hutchinson_hessian_diag: generator must be a torch.Generator or a seed, got {generator!r}")
    if distribution not in ("rademacher", "gaussian"):
        raise ValueError(
            f"hutchinson_hessian_diag: distribution must be 'rademacher' or 'gaussian', got {distribution!r}"
        )
    if n_samples < 1:
        raise ValueError(f"hutchinson_hessian_diag: n_samples must be in [1, inf), got {n_samples!r}")
    leaves, unflatten = _tree.flatten(params, "params")
    at = {name: leaf.detach() for name, leaf in leaves.items() if leaf is not None}

    def gradients(values: dict[str, Tensor]) -> dict[str, Tensor]:
        tree = grad_fn(unflatten({**leaves, **values}))
        found = _tree.match(tree, leaves, "gradients from grad_fn", "params")
        found = {name: torch.zeros_like(values[name]) if found[name] is None else found[name] for name in values}
        if not any(grad.requires_grad for grad in found.values()):
            raise ValueError(f"hutchinson_hessian_diag: {NO_GRAPH}")
        return found

    totals = {name: torch.zeros_like(value) for name, value in at.items()}
    product = _hessian_product(gradients, at) if at else lambda z, again: {}
    for i in range(n_samples):
        z = {name: _drawn(value, generator, distribution) for name, value in at.items()}
        columns = product(z, i + 1 < n_samples)
        totals = {name: total + z[name] * columns[name] for name, total in totals.items()}
    mean = {name: total / n_samples for name, total in totals.items()}
    if spatial_average:
        mean = {name: average_over_space(value) for name, value in mean.items()}
    return unflatten({**leaves, **mean})


def _hessian_product(gradients: Callable[[Any], dict[str, Tensor]], at: dict[str, Tensor]) -> Callable[..., Any]:
    """The function (z, whether it will be called again) -> H z."""
    # Inside vmap, grad and compile plain autograd is not to be had; elsewhere it takes more kinds of functions.
    if torch.compiler.is_compiling() or functorch.peek_interpreter_stack() is not None:
        with torch.enable_grad():
            pull = torch.func.vjp(gradients, at)[1]
        return lambda z, again: pull(z, retain_graph=again, create_graph=False)[0]
    at = {name: value.requires_grad_() for name, value in at.items()}
    with torch.enable_grad():
        outputs = {name: grad for name, grad in gradients(at).items() if grad.requires_grad}

    def product(z: dict[str, Tensor], again: bool) -> dict[str, Tensor]:
        columns = torch.autograd.grad(
            list(outputs.values()), list(at.values()), [z[name] for name in outputs], again, materialize_grads=True
        )
        return dict(zip(at, columns, strict=True))

    return product


def _drawn(like: Tensor, generator: torch.Generator, distribution: str) -> Tensor:
    # In the generator's place and in float32, so that a seed means the same vectors everywhere.
    options: Any = {"generator": generator, "device": generator.device}
    shape = tuple(like.shape)
    z = torch.randn(shape, **options) if distribution == "gaussian" else 2 * torch.randint(0, 2, shape, **options) - 1
    return z.to(like.device, like.dtype)
