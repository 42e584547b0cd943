"""Scale a direction of fixed size by the size of the momentum relative to that of the gradients: NAMO."""

from __future__ import annotations

from gradtx.algorithms._math import norm, safe_sqrt
from gradtx.combinators.frame import Frame
from gradtx.rules import combinator
from gradtx.transform import GradientTransformation

__all__ = ["scale_by_norm_ratio"]


@combinator
def scale_by_norm_ratio(
    tx: GradientTransformation,
    betas=(0.95, 0.95),
    eps=1e-8,
    correct_bias=False,
):
    r"""Scale the direction of a transformation by the norm of its input, relative to that of the gradients.

    With the input $u$, the gradient $g$ of the leaf and $v_t = \beta_2 v_{t-1} + (1-\beta_2) \lVert g \rVert^2$ from 0,
    the update is $\mathrm{tx}(u)\, \lVert u \rVert / (\sqrt{v_t} + \epsilon)$: the ratio is near 1 while gradients
    agree, and small while they are noise. Suited to directions whose size carries no information, such as that of
    `orthogonalize`.

    Args:
        tx: Computes the direction.
        betas: $\beta_1$ of the momentum $u$, used by `correct_bias` only, and $\beta_2$, each in [0, 1).
        eps: $\epsilon \ge 0$.
        correct_bias: Divide $\lVert u \rVert$ by $1 - \beta_1^t$ and $v_t$ by $1 - \beta_2^t$.

    Returns:
        A transformation that preserves shapes and dtypes. State: `exp_avg_sq`, 0-d in the dtype of the leaf, and the
        entries of `tx`.

    Raises:
        TypeError: If `tx` is not a transformation.
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.scale_by_norm_ratio(gradtx.scale_by_sign(), betas=(0.0, 0.75))
        >>> # 5 / sqrt(25 / 4)
        >>> tx.update({"w": torch.tensor([3.0, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([ 2., -2.])

    Source: NAMO, arXiv:2602.17080. Departures: none.
    """
    beta1, beta2 = betas

    def init(param):
        return {"exp_avg_sq": param.new_zeros(())}

    def enter(update, state, param, ctx):
        square = beta2 * state["exp_avg_sq"] + (1 - beta2) * ctx.grad.square().sum()
        return update, {"exp_avg_sq": square, "size": norm(update)}

    def leave(update, state, param, ctx):
        size, square = state["size"], state["exp_avg_sq"]
        if correct_bias:
            size = size / ctx.bias_correction(beta1)
            corrected = square / ctx.bias_correction(beta2)
        else:
            corrected = square
        return update * (size / (safe_sqrt(corrected) + eps)), {"exp_avg_sq": square}

    return Frame(tx, init, enter, leave, elementwise=False, whole=True)
