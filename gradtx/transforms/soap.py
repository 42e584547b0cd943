"""SOAP: Adam in the eigenbasis of Shampoo's statistics."""

from __future__ import annotations

from gradtx.base.exact import Betas, Scalar
from gradtx.rules import per_tensor
from gradtx.transform import GradientTransformation, chain
from gradtx.transforms._math import rms
from gradtx.transforms._rotation import Factors, Rotation
from gradtx.transforms.adam_hat import scale_by_adam_hat

__all__ = ["scale_by_soap"]

# Early refreshes of the bases, and an eps far above rounding, because it divides entries that the rotation makes 0.
EXAMPLE = {"precondition_frequency": 2, "eps": 0.1}


SOAP_RANGES = {
    "precondition_frequency": "[1, inf)",
    "max_precondition_dim": "[1, inf)",
    "shampoo_beta": "[0, 1)",
}


def _full_rank(arguments):
    """Whether leaves that merge into one long dimension, whose statistics initially have rank 1, are not rotated."""
    return not (arguments["merge_dims"] or arguments["precondition_1d"])


@per_tensor(
    determined=_full_rank,
    compiles=False,
    static=("stagger",),
    ranges=SOAP_RANGES,
    example=EXAMPLE,
    nonnegative=("exp_avg_sq",),
)
def scale_by_soap(
    betas: Betas = (0.95, 0.95),
    shampoo_beta: Scalar | None = None,
    eps: Scalar = 1e-8,
    precondition_frequency: int = 10,
    max_precondition_dim: int = 10000,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_gradient: bool = False,
    correct_bias: bool = True,
    *,
    stagger: bool = False,
):
    r"""Run Adam on the gradient rotated into the eigenbases of its Kronecker factors: SOAP.

    The first step returns 0: it sets $G_i = (1-\beta_s)\, \mathrm{mat}_i(g) \mathrm{mat}_i(g)^\top$ for each dimension
    i and $Q_i$ to its eigenvectors, largest eigenvalue first. Then, with $s = t - 1$ and a prime denoting rotation by
    all $Q_i^\top$: $m \leftarrow \beta_1 m + (1-\beta_1) g$, $v \leftarrow \beta_2 v + (1-\beta_2) g'^2$, and the
    direction is $m' / (\sqrt{v} + \epsilon)$ rotated back, times $\sqrt{1-\beta_2^s} / (1-\beta_1^s)$. Afterwards,
    $G_i \leftarrow \beta_s G_i + (1-\beta_s)\, \mathrm{mat}_i(g) \mathrm{mat}_i(g)^\top$, and where $s \bmod n = 0$
    the columns of $Q_i$, and $v$ with them, are sorted by $\mathrm{diag}(Q_i^\top G_i Q_i)$, and
    $Q_i \leftarrow \mathrm{QR}(G_i Q_i)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        shampoo_beta: $\beta_s$ in [0, 1); None for $\beta_2$.
        eps: $\epsilon \ge 0$, added to the root before its bias correction.
        precondition_frequency: $n \ge 1$. An optimizer from `as_optimizer` computes bases only when they are due, and
            so does pure use of plain tensors on the CPU without `stagger`; otherwise, it computes bases at every step
            and selects.
        max_precondition_dim: Dimensions larger than this, >= 1, are not rotated.
        merge_dims: Merge neighboring dimensions, left to right, while their product is at most that limit.
        precondition_1d: Whether to rotate 1-d leaves as well.
        normalize_gradient: Divide the direction by its root mean square.
        correct_bias: Whether to apply the factor of the two bias corrections.
        stagger: Refresh the bases of each leaf at its own step within the period, derived from its name, so that no
            step after the first refreshes all leaves.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` and `exp_avg_sq` (in the rotated basis), shaped
        as the parameter, and `GG_i`, `Q_i`, n x n, for each rotated dimension in order. A leaf without any uses plain
        Adam. Time: n^3.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_soap(eps=1e-2)
        >>> state = tx.init({"w": torch.zeros(2, 2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([[1.0, 1.0], [2.0, 2.0]])}, state)
        >>> # along one pair of eigenvectors, whereas Adam's direction would be all ones
        >>> updates["w"]
        tensor([[0.3118, 0.3118],
                [0.6236, 0.6236]])

    Source: Vyas et al. 2024, arXiv:2409.11321. Departures: none from the authors' code, without its casts to float32.
    Where statistics are rank-deficient (a rotated vector, a zero gradient, or, at the first step, a dimension that
    exceeds the product of the others by two or more, as in a 5 x 2 matrix), part of the basis is arbitrary, so results
    depend on the back end. There is then no derivative with respect to the inputs of these statistics (the first
    weights and gradients, $\beta_s$, and $\beta_2$ if it replaces $\beta_s$): the computed one omits the arbitrary
    part, is finite, and does not match difference quotients. Second derivatives through the bases are not available.
    """
    beta = betas[1] if shampoo_beta is None else shampoo_beta
    factors = Factors("both", max_precondition_dim, merge_dims, precondition_1d)
    rotation = Rotation(factors, beta, precondition_frequency, staggers=stagger)
    adam = adam_along_bases(betas, eps, correct_bias, normalize_gradient)
    return rotation.space(adam, hidden=True)


def adam_along_bases(
    betas: Betas, eps: Scalar, corrects: bool, normalizes: bool = False
) -> GradientTransformation:
    """Return Adam's direction, optionally without its bias correction or normalized before it."""
    adam = scale_by_adam_hat(betas, eps)
    return (
        adam
        if corrects and not normalizes
        else chain(adam, corrected_later(betas, normalizes, corrects))
    )


@per_tensor
def corrected_later(betas: Betas, normalizes: bool, corrects: bool):
    """Remove the bias correction from Adam's direction, normalize the result, and apply the correction again."""
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        factor = ctx.bias_correction(beta2).sqrt() / ctx.bias_correction(beta1)
        if not normalizes:
            return update / factor, state
        update = update / (1e-30 + rms(update))
        return factor * update if corrects else update, state

    return update
