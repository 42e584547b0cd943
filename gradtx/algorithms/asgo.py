"""ASGO: Shampoo with one side: the momentum times the inverse root of the smaller Gram matrix's average."""

from __future__ import annotations

import math

from torch import Tensor

from gradtx.algorithms.muon import with_fallback
from gradtx.arguments import Decay, NonNegative, Positive
from gradtx.links.decay import add_decayed_weights
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import identity, norm, quotient, running_mean
from gradtx.maths.matrices import gram, inverse_root, multiplied
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema
from gradtx.transform import GradientTransformation, chain

__all__ = ["asgo"]


def smaller_side(x: Tensor) -> int:
    """Return the dimension that has a factor; that of the columns, if the matrix is square."""
    return 0 if x.shape[0] < x.shape[1] else 1


@per_tensor(
    whole=True,
    dims=(2, 2),
    compiles="lists",
    because="no kernel computes its eigenvalues",
    capturable=False,
    amplifies=True,
    length="sets",
)
def scale_by_asgo(
    momentum: Decay = 0.9,
    beta2: Decay = 0.8,
    eps: Positive = 1e-10,
    factor: NonNegative = 0.2,
):
    r"""Return the direction of `asgo`."""

    def update(g, state, p, ctx):
        i = smaller_side(g)
        m = running_mean(state["momentum_buffer"], g, momentum)
        V = running_mean(state["pre_cond"], gram(g, i), beta2)
        root = inverse_root(V + eps * identity(len(V), V), 0.5, floor=eps)
        u = multiplied(m, root, i)
        u = u * quotient(factor * math.sqrt(g.numel()), norm(u))
        return u, {"momentum_buffer": m, "pre_cond": V}

    def first(param):
        size = param.shape[smaller_side(param)]
        return param.new_zeros(size, size)

    return {"momentum_buffer": ema(momentum), "pre_cond": first}, update


@alias(class_name="ASGO")
def asgo(
    lr=0.01,
    momentum: Decay = 0.9,
    beta2: Decay = 0.8,
    eps: Positive = 1e-10,
    weight_decay=0.1,
    factor: NonNegative = 0.2,
    fallback: GradientTransformation | None = None,
):
    r"""ASGO: Shampoo with one side: the momentum times the inverse root of the smaller Gram matrix's average.

    $m \leftarrow \mu m + (1-\mu) g$. With fewer rows than columns, $V \leftarrow \beta_2 V + (1-\beta_2) g g^\top$ and
    $u = (V + \epsilon I)^{-1/2} m$; else $V$ of $g^\top g$ and $u = m (V + \epsilon I)^{-1/2}$. Then
    $p \leftarrow p (1 - \eta \lambda) - \eta f \sqrt{r c}\, u / \lVert u \rVert$ for $r$ rows and $c$ columns.

    When to use: in place of `shampoo` and `soap`, with one factor per matrix in place of two; like `muon`, but with a
    root of an average of several steps.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1).
        beta2: $\beta_2$ in [0, 1).
        eps: $\epsilon > 0$, in the units of a squared gradient.
        weight_decay: $\lambda \ge 0$, decoupled.
        factor: $f \ge 0$, the root mean square of a direction.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `pre_cond`, n x n for
        the smaller side n; with a fallback, these and the fallback's entries, under `partition`. Time: n^3 in every
        step.

    Raises:
        ValueError: If a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.asgo(lr=1.0, weight_decay=0.0, factor=1.0)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> # as orthogonal as Muon's first step, of root mean square 1
        >>> grads = {"w": torch.tensor([[0.0, 300.0], [-2.0, 0.0]])}
        >>> tx.update(grads, tx.init(params), params)[0]["w"].round(decimals=4) + 0.0
        tensor([[ 0.0000, -1.4142],
                [ 1.4142,  0.0000]])

    Source: An et al. 2025, arXiv:2503.20762, and the authors' code at d3ef14b. Departures: the paper adds $\epsilon$ to
    the root of $V$. The code computes the root by ten steps of an iteration, exact to 3e-11, and takes the identity
    where that is NaN. Here `eigh` computes it, so a GPU's host waits: in float32, rounding gives $V + \epsilon I$ of
    gradients of low rank negative eigenvalues, which `eigh` shows, to be raised to $\epsilon$, and with which an
    iteration ends in NaN.
    """
    matrices = chain(
        scale_by_asgo(momentum, beta2, eps, factor),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
    return with_fallback("asgo", matrices, fallback)
