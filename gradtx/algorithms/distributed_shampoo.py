"""Distributed Shampoo: blocks, roots of averaged statistics, and Adam's step lengths; Meta's form of Shampoo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch

from gradtx.algorithms.scalable_shampoo import Blocked, grafted_method
from gradtx.arguments import Count, Decay, Fraction, NonNegative, Positive, is_off
from gradtx.base.exact import exact
from gradtx.links.decay import add_decayed_weights
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import grafted, running_mean
from gradtx.maths.matrices import inverse_root
from gradtx.rules import alias, per_tensor
from gradtx.slots import Slot, ema
from gradtx.transform import chain

__all__ = ["distributed_shampoo", "scale_by_distributed_shampoo"]


def _merged_from_the_end(shape: Sequence[int], limit: int, target: int) -> list[int]:
    """Merge neighboring dimensions while their product is at most `limit`, until `target` dimensions are left."""
    sizes = [size for size in shape if size != 1] or [1]
    merged_sizes = [sizes.pop()]
    while sizes:
        merges = len(merged_sizes) + len(sizes) > target
        size = sizes.pop()
        if merges and size * merged_sizes[0] <= limit:
            merged_sizes[0] *= size
        else:
            merged_sizes.insert(0, size)
    return merged_sizes


def _check(start: int, frequency: int, eps: Any, pseudo_inverse: bool) -> None:
    """Check arguments that exclude one another."""
    if start < frequency:
        raise ValueError(
            f"scale_by_distributed_shampoo: start_preconditioning_step must be at least precondition_frequency="
            f"{frequency}, got {start}"
        )
    if is_off(eps) != pseudo_inverse:
        raise ValueError(
            "scale_by_distributed_shampoo: pass either a positive eps or pseudo_inverse=True with eps=0.0"
        )


@per_tensor(
    compiles="lists", capturable=False, whole=True, amplifies=True, length="sets"
)
def scale_by_distributed_shampoo(
    betas: tuple[Decay, Fraction] = (0.9, 1.0),
    beta3: Decay | None = None,
    eps=1e-12,
    max_preconditioner_dim: Count = 1024,
    target_dims: Count = 1,
    precondition_frequency: Count = 1,
    start_preconditioning_step: Count | None = None,
    use_bias_correction=True,
    exponent: Positive | None = None,
    pseudo_inverse=False,
    graft: Literal["adam", "rmsprop", "adagrad", "sgd"] | None = "adam",
    graft_beta2: Decay = 0.999,
    graft_eps: NonNegative = 1e-8,
):
    r"""Multiply a filtered gradient by roots of averaged statistics, with the step length of a simpler method.

    Sizes of 1 are dropped. From the last dimension backwards, a dimension is merged with the next one while there would
    be more than `target_dims` dimensions and their product is at most `max_preconditioner_dim`; then every dimension is
    cut into runs of that length. Each block with k dimensions is treated as a leaf:
    $S_i \leftarrow \beta_2 S_i + (1-\beta_2)\, \mathrm{mat}_i(g) \mathrm{mat}_i(g)^\top$ (a sum for $\beta_2 = 1$),
    $R_i = (S_i / (1-\beta_2^t) + \epsilon I)^{-1/(2k)}$ where due, initially $I$;
    $f = \frac{\beta_3 m_{t-1} + (1-\beta_3) g}{1 - \beta_3 \beta_1^{t-1}}$,
    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g$; $d = f \times_1 R_1 \cdots \times_k R_k$, rescaled to the norm of the
    grafted method's direction.

    Args:
        betas: $\beta_1$ in [0, 1), and $\beta_2$ in [0, 1].
        beta3: $\beta_3$ in [0, 1); None for $\beta_1$, which makes $f$ Adam's corrected momentum. Unused if $\beta_1$
            is 0.
        eps: $\epsilon > 0$, or 0 with `pseudo_inverse`. If statistics are singular, rounding decides the result unless
            it is well above rounding (1e-8).
        max_preconditioner_dim: Largest size of a block, >= 1. The root of a block costs the cube of it.
        target_dims: Number of dimensions, >= 1, at which merging stops. With 1, a small matrix becomes a vector with a
            full matrix as preconditioner; with 2, matrices remain.
        precondition_frequency: Roots are computed at multiples of this, >= 1, from the start on. An optimizer from
            `as_optimizer` computes them only when they are due. So does pure use of plain tensors on the CPU;
            otherwise, it computes roots at every step and selects.
        start_preconditioning_step: The first step with roots; until then, the direction is the grafted one. At least
            `precondition_frequency`, which is also the default.
        use_bias_correction: Whether to divide $f$ and $S_i$ by their corrections.
        exponent: A positive number in place of $1/(2k)$.
        pseudo_inverse: Ignore eigenvalues that are 0 up to rounding.
        graft: With $v$ the average ($\beta$ = `graft_beta2`) of $g^2$: "adam" is
            $f / (\sqrt{v / (1-\beta^t)} + \epsilon_g)$, "rmsprop" the same without correction, "adagrad" with the sum
            of $g^2$; "sgd" is $f$. None keeps the norm of $d$.
        graft_beta2: In [0, 1).
        graft_eps: $\epsilon_g \ge 0$, in the units of a gradient.

    Returns:
        A transformation that keeps shapes and dtypes. State: `filtered_grad` ($m$) and `adagrad` ($v$), shaped as the
        parameter; `factor_matrices_i` ($S$) and `inv_factor_matrices_i` ($R$), n x n, numbered block by block, with the
        dimensions of each block in order.

    Raises:
        ValueError: If an argument is out of range, if the start precedes the first multiple of the frequency, or unless
            exactly one of `eps` and `pseudo_inverse` is set.

    Example:
        >>> tx = gradtx.scale_by_distributed_shampoo(target_dims=2, max_preconditioner_dim=4)
        >>> state = tx.init({"w": torch.zeros(6, 2, 2)})["scale_by_distributed_shampoo"]
        >>> [tuple(state[f"factor_matrices_{i}"]["w"].shape) for i in range(4)]  # two blocks
        [(4, 4), (4, 4), (2, 2), (4, 4)]

    Source: Shi et al. 2023, arXiv:2309.06497, and facebookresearch/optimizers (AlgoPerf). Departures: $\epsilon = 0$
    requires `pseudo_inverse`, because a singular matrix has no root; eigenvalues that rounding moved below $\epsilon$
    are raised to it, where the authors shift all of them by the difference. Derivatives through the roots are exact,
    even at equal eigenvalues; second derivatives are not available.
    """
    beta1, beta2 = betas
    beta3 = beta1 if beta3 is None else beta3
    start = start_preconditioning_step or precondition_frequency
    _check(start, precondition_frequency, eps, pseudo_inverse)
    squares, magnitude = grafted_method(graft, "adagrad", graft_beta2, graft_eps)

    def blocks_of(x):
        shape = _merged_from_the_end(x.shape, max_preconditioner_dim, target_dims)
        return Blocked(shape, max_preconditioner_dim, range(len(shape)))

    def identities(param):
        return blocks_of(param).identities(param)

    def is_due(step):
        return (step == start) | (step > start) & (step % precondition_frequency == 0)

    def update(g, state, p, ctx):
        f, new_state, blocked = g, {}, blocks_of(g)
        if not is_off(beta1):
            m = state["filtered_grad"]
            new_state["filtered_grad"] = running_mean(m, g, beta1)
            f = running_mean(m, g, beta3)
            if use_bias_correction:
                power = 1 - ctx.bias_correction(beta1, ctx.time - 1)
                f = f / (1 - beta3 * power)
            f = f.to(g.dtype)  # a 0-d leaf would become float64
        u, of_graft = magnitude(f, g, state, ctx)
        new_state |= of_graft
        if not g.numel():
            return u, new_state
        S = blocked.averages(state["factor_matrices"], g, beta2, ctx)
        corrects = (exact(beta2, ctx.time.device) < 1) & use_bias_correction
        c = torch.where(corrects, ctx.bias_correction(beta2), 1.0)
        e = 1 / (2 * len(blocked.dims)) if exponent is None else exponent

        def roots():
            return [
                inverse_root(s / c + eps * eye, e, floor=eps, pseudo=pseudo_inverse)
                for s, eye in zip(S, blocked.identities(g), strict=True)
            ]

        R = ctx.when(is_due, roots, lambda: state["inv_factor_matrices"])
        directions = blocked.products(f, R)
        if graft is not None:
            pairs = zip(directions, blocked.pieces(u), strict=True)
            directions = [grafted(d, step, 1e-16) for d, step in pairs]
        d = blocked.joined(directions, g)
        new_state |= {"factor_matrices": S, "inv_factor_matrices": R}
        return torch.where(ctx.step >= start, d, u), new_state

    slots = {
        "filtered_grad": None if is_off(beta1) else ema(beta1),
        "adagrad": squares,
        "factor_matrices": Slot(
            lambda p: [0 * eye for eye in identities(p)], slow=True
        ),
        "inv_factor_matrices": identities,
    }
    return slots, update


@alias
def distributed_shampoo(
    lr=1e-2,
    betas: tuple[Decay, Fraction] = (0.9, 1.0),
    beta3: Decay | None = None,
    eps=1e-12,
    weight_decay=0.0,
    **options: Annotated[Any, scale_by_distributed_shampoo],
):
    r"""Distributed Shampoo: blocks, roots of averaged statistics, and Adam's step lengths; Meta's form of Shampoo.

    $p \leftarrow p - \eta\, (d + \lambda p)$ with the direction $d$ of `scale_by_distributed_shampoo`.

    When to use: large batches, with hyperparameters of the AlgoPerf benchmark, which it won; `scalable_shampoo` is
    Google's form, and `soap` needs less tuning. For matrices, set `target_dims=2`, and $\beta_2 < 1$ to forget.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $\beta_1$ in [0, 1) of the filtered gradient, and $\beta_2$ in [0, 1] of the statistics, which are summed
            if it is 1.
        beta3: Decay of the filtered gradient where it is used, in [0, 1); None for $\beta_1$.
        eps: $\epsilon > 0$, added to the statistics, or 0 with `pseudo_inverse`.
        weight_decay: $\lambda \ge 0$, decoupled.
        max_preconditioner_dim: Largest size of a block, >= 1.
        target_dims: Number of dimensions, >= 1, at which merging stops; 2 keeps matrices.
        precondition_frequency: Number of steps between computations of the roots, >= 1.
        start_preconditioning_step: The first step with roots, at least the frequency, which is the default.
        use_bias_correction: Whether to correct the averages.
        exponent: A positive number in place of $1/(2k)$ for blocks with k dimensions.
        pseudo_inverse: Ignore eigenvalues that are 0 up to rounding.
        graft: Method that determines the step length: "adam", "rmsprop", "adagrad", "sgd", or None.
        graft_beta2: Decay of its average, in [0, 1).
        graft_eps: Its eps, >= 0.

    Returns:
        A transformation whose updates are added to the parameters. State: [`filtered_grad`], [`adagrad`],
        `factor_matrices_i`, `inv_factor_matrices_i`.

    Raises:
        ValueError: If a hyperparameter is out of range, if the start precedes the frequency, unless exactly one of
            `eps` and `pseudo_inverse` is set, or if `params` is missing.

    Example:
        >>> tx = gradtx.distributed_shampoo(lr=1.0, eps=1e-2)
        >>> params = {"w": torch.zeros(2)}
        >>> # along the gradient, because its full matrix is used, with the norm of Adam's step
        >>> tx.update({"w": torch.tensor([3.0, 4.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.8485, -1.1314])

    Source: Shi et al. 2023, arXiv:2309.06497; facebookresearch/optimizers. Departures: as for
    `scale_by_distributed_shampoo`.
    """
    return chain(
        scale_by_distributed_shampoo(betas, beta3, eps, **options),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
