"""L-BFGS: quasi-Newton directions from the last few steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx._arguments import Scalar
from gradtx._exact import exact_dtype
from gradtx._sharding import full_tensor
from gradtx.factories import per_tensor

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
        ...     params = {"w": params["w"] - (grads["w"] @ u) / (u @ (curvatures * u)).clamp(min=1e-30) * u}
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
        step, change = param - state["prev_param"], update - state["previous_grad"]
        totals = yield _products(update, step, change, state)
        accepted = (totals["sy_new"] > curvature) & (ctx.step > 1)
        pairs = _Pairs(state, accepted, totals, history)
        gamma = torch.where(
            accepted, totals["sy_new"] / _or_one(totals["yy_new"]), state["gamma"]
        )
        direction = pairs.direction(
            update, gamma, pairs.kept(step, "s"), pairs.kept(change, "y")
        )
        initial = update * _first_factor(totals["size"]) if first == "l1" else update
        yield (
            torch.where(ctx.step == 1, initial, direction),
            {
                "prev_param": param,
                "previous_grad": update,
                "s": pairs.kept(step, "s"),
                "y": pairs.kept(change, "y"),
                "products_s": pairs.products_s,
                "products_y": pairs.products_y,
                "count": torch.where(
                    accepted, (state["count"] + 1).clamp(max=history), state["count"]
                ),
                "gamma": gamma,
            },
        )

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
    rows = {"s": [*state["s"], step], "y": [*state["y"], change]}
    columns = _flat([change, update])
    terms = {"size": update.abs().sum()}
    for name, tensors in rows.items():
        products = full_tensor(_flat(tensors) @ columns.mT)
        products = products.to(exact_dtype(products))
        labels = [*range(len(tensors) - 1), "new"]
        for label, (with_change, with_gradient) in zip(
            labels, products.unbind(), strict=True
        ):
            terms[f"{name}y_{label}"] = with_change
            terms[f"{name}g_{label}"] = with_gradient
    return terms


def _flat(tensors: list[Tensor]) -> Tensor:
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
        self.products_s = self._grown(
            state["products_s"], [totals[f"sy_{i}"] for i in self._labels()]
        )
        self.products_y = self._grown(
            state["products_y"], [totals[f"yy_{i}"] for i in self._labels()]
        )
        self._with_gradient = {}
        for name in ("s", "y"):
            old = torch.stack([totals[f"{name}g_{i}"] for i in range(history)])
            new = torch.cat([old[1:], totals[f"{name}g_new"][None]])
            self._with_gradient[name] = torch.where(accepted, new, old)

    def _labels(self) -> list[Any]:
        return [*range(1, self._history), "new"]

    def _grown(self, old: Tensor, new: list[Tensor]) -> Tensor:
        """Drop the oldest pair and append a row and a column for the newest, if it was accepted."""
        edge = torch.stack(new)
        old = full_tensor(old).to(edge.dtype)
        rest = torch.cat([old[1:, 1:], edge[:-1, None]], dim=1)
        return torch.where(self._accepted, torch.cat([rest, edge[None, :]]), old)

    def kept(self, new: Tensor, name: str) -> list[Tensor]:
        """Return the vectors of a history after this step."""
        old = self._state[name]
        return [
            torch.where(self._accepted, b, a)
            for a, b in zip(old, [*old[1:], new], strict=True)
        ]

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
