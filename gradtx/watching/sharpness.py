"""`sharpness`: the largest eigenvalues of the Hessian, plain or preconditioned by a chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradtx.base import tree as _tree
from gradtx.base.inputs import check_count
from gradtx.base.messages import describe
from gradtx.base.progress import progress_bar
from gradtx.base.vectors import JointVector
from gradtx.optim.optimizer import ChainOptimizer
from gradtx.transform import GradientTransformation, check_transformation
from gradtx.watching.preconditioner import (
    Preconditioner,
    Product,
    of_chain,
    of_optimizer,
    trained_by,
)
from gradtx.watching.snapshot import Snapshot
from gradtx.watching.watch import optimizer_of

__all__ = ["Sharpness", "sharpness"]

# Iterations after which an eigenvalue that has not converged is returned as it is.
ITERATIONS = 100
# Relative to the largest eigenvalue; the error of an eigenvalue is of the order of the square of the residual.
RESIDUAL = 1e-5
# What to do about an operation without a second derivative, by what torch's error contains.
REMEDIES = {
    "attention": (
        "compute attention inside of `with torch.nn.attention.sdpa_kernel(SDPBackend.MATH):`"
    ),
    "_cudnn_rnn": "compute it inside of `with torch.backends.cudnn.flags(enabled=False):`",
    "torch.compile": "call the model without torch.compile",
    "aot_autograd": "call the model without torch.compile",
    "is not implemented": "compute it by operations that have one",
    "once_differentiable": "compute it by operations that have one",
}


@dataclass(frozen=True)
class Sharpness:
    r"""The result of `gradtx.sharpness`.

    Attributes:
        values: The largest eigenvalues, the largest first.
        residual: The residual of the last of them, relative to the largest: 0 if it is exact.
        stable_lr: The largest stable rate; infinite if no direction curves upwards.
        lr: The rate of the chain, the largest of its groups; None without a chain.
        bound: The largest value at which the chain is stable: with momentum, $2 (1 + \beta) / \eta$. None without a
            chain.
        is_preconditioned: Whether the values are those of $J H$: not without a chain, nor if it treats entries alike.
    """

    values: tuple[float, ...]
    residual: float
    stable_lr: float
    lr: float | None = None
    bound: float | None = None
    is_preconditioned: bool = False

    @property
    def ratio(self) -> float | None:
        """The largest value relative to the bound: about 1 at the edge of stability; None without a chain."""
        if self.bound is None:
            return None
        # Of steps that decay alone makes unstable.
        return self.values[0] / self.bound if self.bound > 0 else math.inf

    def __repr__(self) -> str:
        shown = ", ".join(f"{value:.4g}" for value in self.values)
        if self.ratio is None:
            return f"sharpness {shown}: gradient descent is stable up to the rate {self.stable_lr:.3g}"
        where = (
            "at the edge of stability"
            if 0.8 < self.ratio < 1.25
            else "below the edge"
            if self.ratio < 1
            else "unstable"
        )
        what = "preconditioned sharpness" if self.is_preconditioned else "sharpness"
        return (
            f"{what} {shown}: {self.ratio:.2g} of the bound {self.bound:.3g}, {where}"
        )


def sharpness(
    loss_fn: Callable[[Any], Tensor],
    params: Any,
    tx: GradientTransformation | ChainOptimizer | None = None,
    state: dict[str, Any] | None = None,
    k: int = 1,
    *,
    iterations: int = ITERATIONS,
    seed: int = 0,
    progress: bool | None = None,
) -> Sharpness:
    r"""Return the largest eigenvalues of the loss's Hessian, plain or preconditioned by a chain.

    Gradient descent with the rate $\eta$ is stable where the largest eigenvalue is at most $2 / \eta$, and training
    with a constant rate often rises to this edge and stays there. With a chain, $H$ is preconditioned by what the chain
    makes of a small gradient in its state: eigenvalues of $J H$, where $-\eta J$ is the derivative of the update by
    the gradient. Where the chain treats all entries alike, as SGD does, the values are those of $H$ itself. With
    `maximize=True`, they are those of the negated loss.

    The bound is measured: the chain steps leaves of a few entries, whose gradient is a curvature times the weights.
    Above the bound, its step as a matrix has an eigenvalue outside of the unit circle. So it holds for all rules that
    are linear in a small gradient, with any momenta, averages and decay, in the long run (there, a gradient has no
    weight in an average over the whole run). With momentum $\beta$ it is $2 (1 + \beta) / \eta$, also for Adam, whose
    $J$ is $(1 - \beta_1) / (\sqrt{\hat v} + \epsilon)$ and is held fixed. Weight decay counts as curvature: it lowers
    the bound or, in the gradient of a rule that treats entries differently, raises the values. Groups of an optimizer
    are scaled to the one with the largest rate.

    The method is Lanczos on Hessian-vector products, in float64, with full reorthogonalization: it keeps a vector of
    the size of the parameters for each iteration. The loss is computed once, so dropout has one mask. Everything is
    restored as after a `range_test`.

    Args:
        loss_fn: A function of `params` that returns the loss on a fixed batch, twice differentiable.
        params: A tree of tensors, or a module, of which all parameters that require a gradient count.
        tx: A chain with a learning rate, or an optimizer of a module, also in a trainer's wrapper, whose groups and
            state are used.
        state: The state of the chain; needed where its response to a gradient depends on it, as for Adam.
        k: The number of eigenvalues, >= 1; one that occurs several times counts once.
        iterations: The largest number of Hessian-vector products, >= 1.
        seed: Of the random first vector.
        progress: Whether to show a progress bar (tqdm); None for "if stderr is a terminal and tqdm is installed".

    Returns:
        A `Sharpness`: `values`, `stable_lr`, and with a chain `bound` and `ratio`.

    Raises:
        TypeError: If `loss_fn` is not callable or `tx` is not a transformation.
        ValueError: If `k` or `iterations` is below 1; if the loss does not depend on `params`, or has no second
            derivative, as fused attention; if the chain has no rate, does not respond to a gradient, as
            `scale_by_sign`, not symmetrically, as with a trust ratio, or in a way that past gradients decide; if it
            lacks a state that matters; or if there is a state without a chain.

    Example:
        >>> loss_fn = lambda params: (torch.tensor([1.0, 20.0]) * params["w"] ** 2).sum() / 2
        >>> params = {"w": torch.tensor([1.0, 1.0])}
        >>> gradtx.sharpness(loss_fn, params)
        sharpness 20: gradient descent is stable up to the rate 0.1
        >>> gradtx.sharpness(loss_fn, params, gradtx.sgd(lr=0.05, momentum=0.9)).ratio
        0.263...

    Source: Cohen et al. 2021, arXiv:2103.00065, and 2022, arXiv:2207.14484. Departures: none.
    """
    if isinstance(getattr(tx, "optimizer", None), ChainOptimizer):
        tx = optimizer_of("sharpness", tx)
    _check(loss_fn, params, tx, state, k, iterations)
    values = _values_of(params)
    if isinstance(tx, ChainOptimizer):
        values = trained_by(tx, params)
    # Of trees, too: their loss may call modules.
    snapshot = Snapshot(params.parameters() if isinstance(params, nn.Module) else ())
    try:
        size = sum(value.numel() for value in values.values())
        first = _first_vector(size, seed, next(iter(values.values())).device)
        preconditioner = Preconditioner(None, math.nan, 2.0)
        if isinstance(tx, ChainOptimizer):
            preconditioner = of_optimizer(tx, values, first)
        elif tx is not None:
            preconditioner = of_chain(tx, state, params, values, first)
        product = _hessian_product(loss_fn, params, values, preconditioner)
        respond = preconditioner.respond
        eigenvalues, residual = largest_eigenvalues(
            product, first, k, min(iterations, size), respond, progress
        )
        values_found = tuple(eigenvalues)
        if tx is None:
            return Sharpness(values_found, residual, _rate_of_descent(eigenvalues[0]))
        return Sharpness(
            values_found,
            residual,
            preconditioner.stable_rate(eigenvalues[0]),
            preconditioner.rate,
            preconditioner.bound,
            respond is not None,
        )
    finally:
        snapshot.restore()


def _rate_of_descent(largest: float) -> float:
    return 2 / largest if largest > 0 else math.inf


def _check(
    loss_fn: Any, params: Any, tx: Any, state: Any, k: int, iterations: int
) -> None:
    if callable(params) and not isinstance(params, nn.Module):
        raise TypeError(
            f"sharpness: params must be a tree of tensors or a module, got {describe(params)}; the order is "
            "sharpness(loss_fn, params)"
        )
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "sharpness: torch.inference_mode() records no derivatives; call sharpness outside of it"
        )
    if not callable(loss_fn):
        raise TypeError(
            f"sharpness: loss_fn must be a function of params, got {describe(loss_fn)}"
        )
    if isinstance(tx, ChainOptimizer):
        tx = tx._up_to_date().members.tx
    if tx is not None:
        check_transformation("sharpness", "tx", tx)
        _check_gradient(tx)
        if "lr" not in {name.rpartition(".")[2] for name in tx.hyperparams}:
            raise ValueError(
                "sharpness: the chain has no learning rate; add scale_by_learning_rate to it"
            )
    elif state is not None:
        raise ValueError("sharpness: a state needs its chain: pass tx= as well")
    for name, value in (("k", k), ("iterations", iterations)):
        check_count(f"sharpness: {name}", value)


def _check_gradient(tx: GradientTransformation) -> None:
    """Check that the steps of a chain follow from the gradient, whose response decides on stability."""
    for link in tx._every_link():
        if "makes gradient" in link._effects:
            raise ValueError(
                f"sharpness: the step of {link._name} is no function of the gradient alone; pass a chain without "
                "it, or none"
            )


# Vectors have the entries of all leaves, in float64.


def _values_of(params: Any) -> dict[str, Tensor]:
    """Return the leaves that are differentiated, by name."""
    values: dict[str, Tensor] = {}
    if isinstance(params, nn.Module):
        for name, param in params.named_parameters():
            if param.requires_grad:
                values[name] = param
    else:
        leaves, _ = _tree.flatten_real(params, "params")
        for name, leaf in leaves.items():
            if leaf is not None:
                values[name] = leaf.detach()
    if not values:
        raise ValueError("sharpness: params has no leaf that requires a gradient")
    return values


def _first_vector(size: int, seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(device)


def _hessian_product(
    loss_fn: Callable[[Any], Tensor],
    params: Any,
    values: dict[str, Tensor],
    preconditioner: Preconditioner,
) -> Product:
    """Return the function that multiplies a vector with the Hessian, and the decay in the chain's gradient.

    It has one graph of the gradients; for a chain that maximizes, the Hessian is that of the negated loss.
    """
    with torch.enable_grad():
        if isinstance(params, nn.Module):
            at, loss = list(values.values()), loss_fn(params)
        else:
            leaves, unflatten = _tree.flatten_real(params, "params")
            inputs = {
                name: value.clone().requires_grad_() for name, value in values.items()
            }
            at, loss = list(inputs.values()), loss_fn(unflatten({**leaves, **inputs}))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError(
                f"sharpness: loss_fn must return the loss, got {describe(loss)}"
            )
        with _names_second_derivatives():
            gradients = _gradients_of(loss.reshape(()), at)
    curved = [i for i, gradient in enumerate(gradients) if gradient.requires_grad]
    space = JointVector(list(values.values()), torch.float64)

    def product(vector: Tensor) -> Tensor:
        directions = space.parts(vector)
        decayed = preconditioner.decay * vector
        if not curved:  # the loss is linear
            return torch.zeros_like(vector) + decayed
        with _names_second_derivatives():
            columns = torch.autograd.grad(
                [gradients[i] for i in curved],
                at,
                [directions[i] for i in curved],
                retain_graph=True,
                materialize_grads=True,
            )
        product = space.joined([column.detach() for column in columns])
        return preconditioner.sign * product + decayed

    return product


@contextmanager
def _names_second_derivatives() -> Generator[None, None, None]:
    """Say what to do about an operation that has no second derivative."""
    try:
        yield
    except RuntimeError as error:
        remedy = next((r for name, r in REMEDIES.items() if name in str(error)), None)
        if remedy is None:
            raise
        raise ValueError(
            f"sharpness: the loss has no second derivative: {remedy} ({error})"
        ) from error


def _gradients_of(loss: Tensor, at: list[Tensor]) -> list[Tensor]:
    if not loss.requires_grad:
        raise ValueError(
            "sharpness: the loss has no derivative: loss_fn must compute it without torch.no_grad(), "
            "torch.inference_mode(), detach() and item(), from parameters that require gradients"
        )
    found = torch.autograd.grad(loss, at, create_graph=True, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise ValueError(
            "sharpness: the loss does not depend on params; loss_fn must compute it from its argument"
        )
    return [
        torch.zeros_like(value) if gradient is None else gradient
        for value, gradient in zip(at, found, strict=True)
    ]


def largest_eigenvalues(
    product: Product,
    first: Tensor,
    k: int,
    iterations: int,
    precondition: Product | None = None,
    progress: bool | None = False,
) -> tuple[list[float], float]:
    """Return the largest eigenvalues of a symmetric matrix by Lanczos, and the relative residual of the last.

    With a symmetric preconditioner J, they are those of J H: H J is symmetric in the inner product of J.

    Args:
        product: Multiplies the matrix with a vector.
        first: The first vector.
        k: The number of eigenvalues.
        iterations: The largest number of products.
        precondition: Multiplies the preconditioner with a vector.
        progress: Whether to show a progress bar.
    """
    vectors: list[Tensor] = []
    images: list[Tensor] = []  # J v; the vector itself without a preconditioner
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    vector, image, length = first, *_with_length(first, precondition)
    eigenvalues, residual = torch.zeros(0), 0.0
    with closing(progress_bar("sharpness", progress, iterations, "products")) as bar:
        for _ in range(iterations):
            scale = max(map(abs, (*diagonal, *off_diagonal)), default=0.0)
            # In an invariant subspace, the eigenvalues are exact.
            if vectors and length <= 1e-12 * scale:
                residual = 0.0
                break
            if vectors:
                off_diagonal.append(length)
            vectors.append(vector / length)
            images.append(image / length)
            vector = product(images[-1])
            diagonal.append(torch.dot(vector, images[-1]).item())
            for _ in range(2):  # once leaves rounding errors
                for basis, image_of_basis in zip(vectors, images, strict=True):
                    vector = vector - torch.dot(vector, image_of_basis) * basis
            tridiagonal = _tridiagonal(diagonal, off_diagonal)
            eigenvalues, coordinates = torch.linalg.eigh(tridiagonal)
            image, length = _with_length(vector, precondition)
            last = coordinates[-1].flip(0)[:k].abs().max().item()
            largest = eigenvalues.abs().max().item()
            residual = length * last / largest if largest > 0 else 0.0
            bar.update()
            # A first residual can be small by chance.
            if len(diagonal) > 2 * k and residual < RESIDUAL:
                break
    return eigenvalues.flip(0)[:k].tolist(), residual


def _with_length(vector: Tensor, precondition: Product | None) -> tuple[Tensor, float]:
    """Return what the preconditioner makes of a vector, and its length in the inner product of that."""
    image = vector if precondition is None else precondition(vector)
    return image, math.sqrt(max(torch.dot(vector, image).item(), 0.0))


def _tridiagonal(diagonal: list[float], off_diagonal: list[float]) -> Tensor:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off_diagonal:
        beside = torch.tensor(off_diagonal, dtype=torch.float64)
        matrix = matrix + torch.diag(beside, 1) + torch.diag(beside, -1)
    return matrix
