"""Adam in the eigenbasis of Shampoo's statistics: SOAP."""

from __future__ import annotations

from gradtx._arguments import Betas, Scalar
from gradtx.core import GradientTransformation, chain
from gradtx.factories import per_tensor
from gradtx.transforms._math import rms
from gradtx.transforms._rotation import Factors, Rotation
from gradtx.transforms.adam_hat import scale_by_adam_hat

__all__ = ["scale_by_soap"]

# Bases that are renewed early, and an eps far above rounding: entries that the rotation makes 0 are divided by it.
EXAMPLE = {"precondition_frequency": 2, "eps": 0.1}


def _full_rank(arguments):
    """Whether leaves that become a single long dimension, whose statistics have rank 1 at first, stay unrotated."""
    return not (arguments["merge_dims"] or arguments["precondition_1d"])


@per_tensor(
    determined=_full_rank,
    compiles=False,
    static=("stagger",),
    ranges={"precondition_frequency": "[1, inf)", "max_precondition_dim": "[1, inf)", "shampoo_beta": "[0, 1)"},
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
    r"""Run Adam on the gradient rotated into the eigenbases of its Kronecker factors.

    The first step gives 0: it sets $G_i = (1-\beta_s)\, \mathrm{mat}_i(g) \mathrm{mat}_i(g)^\top$ for every dimension i
    and $Q_i$ to its eigenvectors, the largest eigenvalue first. Then, with $s = t - 1$ and a rotation by all $Q_i^\top$
    written as a prime: $m \leftarrow \beta_1 m + (1-\beta_1) g$, $v \leftarrow \beta_2 v + (1-\beta_2) g'^2$, gives
    $m' / (\sqrt{v} + \epsilon)$ rotated back, times $\sqrt{1-\beta_2^s} / (1-\beta_1^s)$. After that
    $G_i \leftarrow \beta_s G_i + (1-\beta_s)\, \mathrm{mat}_i(g) \mathrm{mat}_i(g)^\top$, and where $s \bmod n = 0$
    the columns of $Q_i$ are put in the order of $\mathrm{diag}(Q_i^\top G_i Q_i)$, $v$ with them, and
    $Q_i \leftarrow \mathrm{QR}(G_i Q_i)$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        shampoo_beta: $\beta_s$ in [0, 1); None for $\beta_2$.
        eps: $\epsilon \ge 0$, added to the root before its bias correction.
        precondition_frequency: $n \ge 1$. In pure use bases are computed at every step and selected; an optimizer of
            `as_optimizer` computes them when they are due only.
        max_precondition_dim: Dimensions larger than this, >= 1, are not rotated.
        merge_dims: Merge neighbouring dimensions, left to right, while their product is at most that.
        precondition_1d: Rotate leaves of one dimension too.
        normalize_gradient: Divide the direction by its root mean square.
        correct_bias: Whether to apply the factor of the two corrections.
        stagger: Renew the bases of each leaf at a step of its own within the period, which follows from its name, so
            that no step after the first renews those of all leaves.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg` and `exp_avg_sq` (in the rotated basis), shaped
        as the parameter, and `GG_i`, `Q_i`, n x n, for every rotated dimension in order. A leaf without any is plain
        Adam. Time n^3.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> tx = gradtx.scale_by_soap(eps=1e-2)
        >>> state = tx.init({"w": torch.zeros(2, 2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([[1.0, 1.0], [2.0, 2.0]])}, state)
        >>> updates["w"]  # along one pair of eigenvectors, where Adam's would be all ones
        tensor([[0.3118, 0.3118],
                [0.6236, 0.6236]])

    Source: Vyas et al. 2024, arXiv:2409.11321. Departures: none from the authors' code, without its casts to float32.
    Where statistics are rank-deficient (a rotated vector, a zero gradient, and at the first step a dimension that is
    larger by two or more than the product of the others, as in a 5 x 2 matrix), part of the basis is arbitrary, so
    results depend on the backend. Then there is no derivative by what reaches these statistics (the first weights and
    gradients, $\beta_s$, and $\beta_2$ in its place): the one that is computed leaves out what is arbitrary, is finite,
    and is no difference quotient. Second derivatives through the bases are not available.
    """
    beta = betas[1] if shampoo_beta is None else shampoo_beta
    factors = Factors("both", max_precondition_dim, merge_dims, precondition_1d)
    rotation = Rotation(factors, "shampoo", beta, precondition_frequency, "skip", "qr", 1, "update", 0.0, stagger)
    return rotation.space(adam_along_bases(betas, eps, correct_bias, normalize_gradient), hidden=True)


def adam_along_bases(betas: Betas, eps: Scalar, corrects: bool, normalizes: bool = False) -> GradientTransformation:
    """Adam's direction; without its correction, or normalized in front of it."""
    adam = scale_by_adam_hat(betas, eps)
    return adam if corrects and not normalizes else chain(adam, corrected_later(betas, normalizes, corrects))


@per_tensor
def corrected_later(betas: Betas, normalizes: bool, corrects: bool):
    """Take the correction out of Adam's direction, normalize what is left, and put it in again."""
    beta1, beta2 = betas

    def update(update, state, param, ctx):
        factor = ctx.bias_correction(beta2).sqrt() / ctx.bias_correction(beta1)
        if not normalizes:
            return update / factor, state
        update = update / (1e-30 + rms(update))
        return factor * update if corrects else update, state

    return update
