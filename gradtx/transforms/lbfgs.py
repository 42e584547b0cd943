"""L-BFGS: quasi-Newton directions from the last few steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx.base.dtensor import full_tensor
from gradtx.base.exact import Scalar, exact_dtype
from gradtx.rules import per_tensor

__all__ = ["scale_by_lbfgs"]


@per_tensor(
    takes_complex=True,
    needs=("params",),
    shared={"count": 0.0, "gamma": 1.0},
    agree=("history", "curvature", "first"),
    compiles=False,
    ranges={"history": "[1, inf)", "curvature": "[0, inf)"},
    example={"history": 2},
)
def scale_by_lbfgs(history: int = 10, curvature: Scalar = 1e-10, first: str = "l1"):
    r"""Multiply the gradient by an inverse Hessian estimated from the last steps and gradients: L-BFGS.

    From the second step on, $s = p - p_{t-1}$ and $y = g - g_{t-1}$ over all leaves together. If
    $\langle s, y \rangle$ is larger than `curvature`, the pair joins the history, the oldest pair is dropped, and
    $\gamma = \langle s, y \rangle / \langle y, y \rangle$ (initially 1). The direction is $H g$, where $H$ is
    $\gamma I$ after the BFGS update with each pair, oldest first. The inner products of all pairs are summed over
    leaves in one step, and small triangular systems replace the two-loop recursion.

    Args:
        history: Number of pairs, >= 1.
        curvature: Lower bound of $\langle s, y \rangle$, >= 0.
        first: Result of the first step: $g \min(1, 1/\lVert g \rVert_1)$ for "l1", $g$ for "none".

    Returns:
        A transformation that keeps shapes and dtypes. State: `prev_param`, `previous_grad`, and `s_i`, `y_i` for each
        pair, newest last, shaped as the parameter; `products_s` and `products_y` (inner products of the pairs,
        history x history), the same for every leaf; `count` of pairs and `gamma`, 0-d.

    Raises:
        ValueError: If an argument is out of range, if `first` is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_lbfgs()
        >>> params = {"w": torch.tensor([1.0, 1.0])}
        >>> curvatures = torch.tensor([1.0, 9.0])
        >>> state = tx.init(params)
        >>> for _ in range(4):  # a quadratic, with exact line searches
        ...     grads = {"w": curvatures * params["w"]}
        ...     u = tx.update(grads, state, params)[0]["w"]
        ...     _, state = tx.update(grads, state, params)
        ...     params = {
        ...         "w": params["w"]
        ...         - (grads["w"] @ u) / (u @ (curvatures * u)).clamp(min=1e-30) * u
        ...     }
        >>> params["w"].abs().max() < 1e-5
        tensor(True)

    Source: Liu and Nocedal 1989; the compact form: Byrd, Nocedal and Schnabel 1994. Departures: pairs are actual
    differences of parameters and therefore include later links (line searches, decay, projections); torch.optim.LBFGS
    uses its own step. Every leaf needs a gradient at every step, from the full batch or a large one.
    """
    if first not in ("l1", "none"):
        raise ValueError(f"scale_by_lbfgs: first must be 'l1' or 'none', got {first!r}")

    def init(param):
        zeros = [torch.zeros_like(param) for _ in range(history)]
        products = param.new_zeros((history, history))
        return {
            "prev_param": param,
            "previous_grad": torch.zeros_like(param),
            "s": zeros,
            "y": [zero.clone() for zero in zeros],
            "products_s": products,
            "products_y": products.clone(),
        }

    def update(update, state, param, ctx):
        step = param - state["prev_param"]  # s
        change = update - state["previous_grad"]  # y
        totals = yield _products(update, step, change, state)
        product = totals["sy_new"]
        accepted = (product > curvature) & (ctx.step > 1)
        pairs = _Pairs(state, accepted, totals, history)
        steps = pairs.kept(step, "s")
        changes = pairs.kept(change, "y")
        new_gamma = product / _or_one(totals["yy_new"])
        gamma = torch.where(accepted, new_gamma, state["gamma"])
        direction = pairs.direction(update, gamma, steps, changes)
        first_direction = update
        if first == "l1":
            first_direction = update * _first_factor(totals["size"])
        one_more = (state["count"] + 1).clamp(max=history)
        new_state = {
            "prev_param": param,
            "previous_grad": update,
            "s": steps,
            "y": changes,
            "products_s": pairs.products_s,
            "products_y": pairs.products_y,
            "count": torch.where(accepted, one_more, state["count"]),
            "gamma": gamma,
        }
        yield torch.where(ctx.step == 1, first_direction, direction), new_state

    return init, update


def _or_one(x: Tensor) -> Tensor:
    return torch.where(x == 0, 1.0, x)


def _first_factor(size: Tensor) -> Tensor:
    """Return min(1, 1 / size)."""
    return 1 / size.clamp(min=1.0)


def _products(
    update: Tensor, step: Tensor, change: Tensor, state: Any
) -> dict[str, Tensor]:
    """Return one leaf's terms of all inner products that are new in this step, and of the gradient's 1-norm."""
    vectors_of_name = {"s": [*state["s"], step], "y": [*state["y"], change]}
    columns = _as_rows([change, update])
    terms = {"size": update.abs().sum()}
    for name, vectors in vectors_of_name.items():
        products = full_tensor(_as_rows(vectors) @ columns.mT)
        products = products.to(exact_dtype(products))
        labels = [*range(len(vectors) - 1), "new"]
        for label, row in zip(labels, products.unbind(), strict=True):
            with_change, with_gradient = row
            terms[f"{name}y_{label}"] = with_change
            terms[f"{name}g_{label}"] = with_gradient
    return terms


def _as_rows(tensors: list[Tensor]) -> Tensor:
    """Stack tensors as the rows of a matrix."""
    return torch.stack([tensor.reshape(-1) for tensor in tensors])


class _Pairs:
    """Store the pairs after a step and compute the direction from their inner products.

    Attributes:
        products_s: Inner products of each s (row) with its own and later y (column); the others are never read.
        products_y: Inner products of each y with each y.
    """

    def __init__(
        self, state: Any, accepted: Tensor, totals: dict[str, Tensor], history: int
    ):
        self._state = state
        self._accepted = accepted
        self._history = history
        self.products_s = self._with_newest(
            state["products_s"], self._with_change(totals, "s")
        )
        self.products_y = self._with_newest(
            state["products_y"], self._with_change(totals, "y")
        )
        self._with_gradient: dict[str, Tensor] = {}
        for name in ("s", "y"):
            old = torch.stack([totals[f"{name}g_{i}"] for i in range(history)])
            new = torch.cat([old[1:], totals[f"{name}g_new"][None]])
            self._with_gradient[name] = torch.where(accepted, new, old)

    def _with_change(self, totals: dict[str, Tensor], name: str) -> Tensor:
        """Return the inner products of the newest y with all vectors of a history but the oldest, newest last."""
        labels = [*range(1, self._history), "new"]
        return torch.stack([totals[f"{name}y_{label}"] for label in labels])

    def _with_newest(self, old: Tensor, edge: Tensor) -> Tensor:
        """Drop the oldest pair and append `edge` as a row and a column for the newest, if it was accepted."""
        old = full_tensor(old).to(edge.dtype)
        upper = torch.cat([old[1:, 1:], edge[:-1, None]], dim=1)
        new = torch.cat([upper, edge[None, :]])
        return torch.where(self._accepted, new, old)

    def kept(self, newest: Tensor, name: str) -> list[Tensor]:
        """Return the vectors of a history after this step."""
        old = self._state[name]
        shifted = [*old[1:], newest]
        kept: list[Tensor] = []
        for old_vector, new_vector in zip(old, shifted, strict=True):
            kept.append(torch.where(self._accepted, new_vector, old_vector))
        return kept

    def direction(
        self,
        gradient: Tensor,
        gamma: Tensor,
        steps: list[Tensor],
        changes: list[Tensor],
    ) -> Tensor:
        """Return gamma g + S c - gamma Y u with R u = S^T g and R^T c = (D + gamma Y^T Y) u - gamma Y^T g.

        R is the upper triangle of S^T Y and D its diagonal; pairs that do not exist yet have a 1 in R.
        """
        present = self.products_s.diagonal() != 0
        triangle = self.products_s.triu() + torch.diag((~present).to(gamma.dtype))
        along_steps = self._with_gradient["s"][:, None]
        along_changes = self._with_gradient["y"][:, None]
        u = torch.linalg.solve_triangular(triangle, along_steps, upper=True)
        diagonal = torch.diag(self.products_s.diagonal())
        right = (diagonal + gamma * self.products_y) @ u - gamma * along_changes
        c = torch.linalg.solve_triangular(triangle.mT, right, upper=False)
        weights = torch.cat([c, -gamma * u]).squeeze(1).to(gradient.dtype)
        direction = gamma * gradient
        for weight, vector in zip(weights, [*steps, *changes], strict=True):
            direction = direction + weight * vector
        return direction
