"""Remove the radial part of updates and gradients: AdamP's projection, gradients orthogonal to the weights."""

from __future__ import annotations

import torch

from gradtx.base.exact import Scalar
from gradtx.execution.rule import OfLeaf
from gradtx.rules import per_tensor
from gradtx.transforms._math import at_least, norm, plus_decay, quotient, safe_sqrt

__all__ = ["orthogonalize_against_params", "project_scale_invariant"]


@per_tensor(
    sums_of_leaf=True,
    ranges={"delta": "[0, inf)", "wd_ratio": "[0, inf)"},
    needs=("params",),
)
def project_scale_invariant(
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
):
    r"""Remove the radial part of updates of weights that appear to be scale-invariant, and decay those less.

    With $\cos_i = |\langle g_i, p_i \rangle| / (\max(\lVert g_i \rVert, \epsilon) \max(\lVert p_i \rVert, \epsilon))$
    for the rows (indices of dimension 0) of a leaf, where $g$ is the gradient as passed to the clock: if
    $\max_i \cos_i < \delta / \sqrt n$, with $n$ the length of a row, then
    $u_i \leftarrow u_i - e_i \langle e_i, u_i \rangle$ with $e_i = p_i / (\lVert p_i \rVert + \epsilon)$, and $r$ =
    `wd_ratio`. Otherwise, the test is repeated with the whole leaf as one row; if that fails, $u$ is unchanged and
    $r = 1$. The result is $u + \lambda r p$: the link applies the decay itself, because only it knows $r$. Leaves with
    0 or 1 dimensions have $r = 1$.

    Args:
        delta: $\delta \ge 0$, the threshold of the test.
        wd_ratio: $r \ge 0$ for projected leaves.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$; decoupled where a `scale_by_learning_rate` follows.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If an argument is negative, or if `params` is missing.

    Example:
        >>> tx = gradtx.chain(gradtx.trace(0.9), gradtx.project_scale_invariant())
        >>> params = {"w": torch.tensor([[1.0, 0.0]])}
        >>> _, state = tx.update({"w": torch.tensor([[1.0, 1.0]])}, tx.init(params), params)
        >>> # the momentum along w is gone
        >>> tx.update({"w": torch.tensor([[0.0, 1.0]])}, state, params)[0]["w"]
        tensor([[0.0000, 1.9000]])

    Source: Heo et al. 2021, arXiv:2006.08217. Departures: none from the authors' adamp 0.3.0.
    """

    def update(update, state, param, ctx):
        if param.ndim <= 1 or param.numel() == 0:
            yield plus_decay(update, weight_decay, param), state
            return
        grad, inner = ctx.grad, tuple(range(1, param.ndim))

        def rows(x, y):
            return (x * y).sum(dim=inner, keepdim=True)

        # Four sums per row determine everything; those of the whole leaf are their sums.
        sums = [
            rows(grad, param),
            rows(grad, grad),
            rows(param, param),
            rows(update, param),
        ]
        aligned, row_radial = _view(sums, param.shape[1:].numel(), delta, eps)
        of_leaf = [x.sum() for x in sums]
        totals = yield OfLeaf(
            aligned=aligned.to(param.dtype).sum(),
            **dict(zip(_SUMS, of_leaf, strict=True)),
        )
        by_row = totals["aligned"] == 0
        aligned, leaf_radial = _view(
            [totals[name] for name in _SUMS], param.numel(), delta, eps
        )
        by_leaf = ~aligned
        radial = torch.where(by_row, row_radial, torch.where(by_leaf, leaf_radial, 0.0))
        projected = (by_row | by_leaf).to(param.dtype)
        ratio = 1 - (1 - wd_ratio) * projected
        yield plus_decay(update - radial * param, weight_decay, param, ratio), state

    return update


_SUMS = ("grad_param", "grad_grad", "param_param", "update_param")


def _view(sums, length, delta, eps):
    """Return which rows of a view are not orthogonal enough to p, and their radial part as a multiple of p."""
    grad_param, grad_grad, param_param, update_param = sums
    param_norm = safe_sqrt(param_param)
    cosine = grad_param.abs() / (
        at_least(safe_sqrt(grad_grad), eps) * at_least(param_norm, eps)
    )
    return ~(cosine < delta / length**0.5), update_param / (param_norm + eps).square()


@per_tensor(needs=("params",))
def orthogonalize_against_params():
    r"""Remove a gradient's component along the weights, and restore its norm.

    $g_\perp = g - p \langle g, p \rangle / \lVert p \rVert^2$, result
    $g_\perp \lVert g \rVert / \lVert g_\perp \rVert$, over the whole leaf. The result is 0 where only rounding errors
    remain in $g_\perp$, as always for a leaf with one entry, and $g$ where the weights are 0.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Raises:
        ValueError: If `params` is missing.

    Example:
        >>> tx = gradtx.orthogonalize_against_params()
        >>> params = {"w": torch.tensor([2.0, 0.0])}
        >>> tx.update({"w": torch.tensor([3.0, 4.0])}, tx.init(params), params)[0]["w"]
        tensor([0., 5.])

    Source: Prieto et al. 2025, arXiv:2501.04697. Departures: no eps is added to the norms.
    """

    def update(update, state, param, ctx):
        rest = update - quotient((update * param).sum(), param.square().sum()) * param
        before, after = norm(update), norm(rest)
        left = after > 4 * torch.finfo(rest.dtype).eps * before
        return rest * quotient(before, after, left), state

    return update
