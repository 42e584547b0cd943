"""L-BFGS: the gradient multiplied by an inverse Hessian estimated from the last steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.arguments import Count, NonNegative
from gradtx.base import torch_names as _torch
from gradtx.base.dtensor import is_sharded
from gradtx.base.exact import exact_dtype
from gradtx.base.plain import is_plain
from gradtx.distributed.redistribution import full_tensor
from gradtx.links.decay import with_decay
from gradtx.maths.entries import at_least, at_most
from gradtx.rules import alias, per_tensor

__all__ = ["lbfgs", "scale_by_lbfgs"]


@per_tensor(
    takes_complex=True,
    needs="params",
    shared={"count": 0.0, "gamma": 1.0},
    agree=("history", "curvature", "first"),
    compiles=False,
    because="its small systems amplify how a program rounds",
    capturable=True,
)
def scale_by_lbfgs(
    history: Count = 10,
    curvature: NonNegative = 1e-10,
    first: Literal["l1", "none"] = "l1",
):
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

    def init(param):
        zeros = [torch.zeros_like(param) for _ in range(history)]
        products = param.new_zeros((history, history))
        return {
            "prev_param": param,
            "previous_grad": torch.zeros_like(param),
            "s": zeros,
            "y": zeros,
            "products_s": products,
            "products_y": products,
        }

    last: list[_Solution] = []

    def update(g, state, p, ctx):
        S = [*state["s"], p - state["prev_param"]]
        Y = [*state["y"], g - state["previous_grad"]]
        rows = _as_rows([*S, *Y])
        totals = yield {"length": g.abs().sum(), "products": _products(rows, Y[-1], g)}
        products = totals["products"]
        # All leaves have the same, unless one has been without a gradient.
        old = [
            ctx.step,
            full_tensor(state["products_s"]).to(products.dtype),
            full_tensor(state["products_y"]).to(products.dtype),
        ]
        is_same = bool(last) and last[0].is_of(products, old)
        solution = last[0] if is_same else _Solution(products, old, state, curvature)
        if solution.is_known and not products.requires_grad:
            last[:] = [solution]
        direction = solution.gamma * g + solution.combined(rows, S, Y, g)
        seen = ctx.seen
        if not (_is_known(seen) and seen):
            length = at_least(totals["length"], 1.0)
            first_direction = g * (1 / length) if first == "l1" else g
            direction = torch.where(seen, direction, first_direction)
        new_state = {
            "prev_param": p,
            "previous_grad": g,
            "s": solution.kept(S),
            "y": solution.kept(Y),
            "products_s": solution.products_s,
            "products_y": solution.products_y,
            "count": solution.count,
            "gamma": solution.gamma,
        }
        yield direction, new_state

    return init, update


class _Solution:
    """The direction of a step as a combination of the pairs, which all leaves share.

    Args:
        products: The inner products of the newest y and of g with all s, then all y, newest last, summed over leaves.
        old: The number of the step, and the inner products of the pairs before it: of s with y, and of y with y.
        state: The state, of which it reads what all leaves share.
        curvature: As for `scale_by_lbfgs`.

    Attributes:
        accepted: Whether the newest pair joins the history, a 0-d tensor.
        is_known: Whether the host may read this.
        count, gamma, products_s, products_y: The new values.
    """

    def __init__(
        self,
        products: Tensor,
        old: list[Tensor],
        state: Mapping[str, Tensor],
        curvature: Any,
    ):
        self._products, self._old = products, old
        step, *pairs = old
        (sy, yy), (sg, yg) = products.view(2, 2, -1)
        self.accepted = (sy[-1] > curvature) & (step > 1)
        self.is_known = _is_known(self.accepted)
        self._joins = self.is_known and bool(self.accepted)
        new_gamma = sy[-1] / torch.where(yy[-1] == 0, 1.0, yy[-1])
        self.gamma = torch.where(self.accepted, new_gamma, state["gamma"])
        count = at_most(state["count"] + 1, len(sy) - 1)
        self.count = torch.where(self.accepted, count, state["count"])
        self.products_s, self.products_y = (
            torch.where(self.accepted, _with_newest(before, edge[1:]), before)
            for before, edge in zip(pairs, (sy, yy), strict=True)
        )
        sg, yg = (
            torch.where(self.accepted, column[1:], column[:-1]) for column in (sg, yg)
        )
        self._weights = _weights(self.products_s, self.products_y, sg, yg, self.gamma)

    def is_of(self, products: Tensor, old: list[Tensor]) -> bool:
        """Whether it follows from these."""
        return products is self._products and all(map(torch.equal, old, self._old))

    def kept(self, vectors: list[Tensor]) -> list[Tensor]:
        """Return the vectors of the pairs after this step: without the oldest, or without the newest."""
        if self.is_known:
            return vectors[1:] if self._joins else vectors[:-1]
        return [
            torch.where(self.accepted, new_vector, old)
            for old, new_vector in itertools.pairwise(vectors)
        ]

    def combined(
        self, rows: Tensor, S: list[Tensor], Y: list[Tensor], g: Tensor
    ) -> Tensor:
        """Return the combination of all pairs; `rows` has their vectors."""
        weights = self._weights.to(g.dtype)
        if self.is_known and not is_sharded(rows):
            history = len(S) - 1
            oldest = int(self._joins)
            of_s, of_y = rows[oldest:][:history], rows[history + 1 + oldest :][:history]
            # Products of matrices: those with a vector are slower.
            of_pairs = weights[None, :history] @ of_s + weights[None, history:] @ of_y
            return of_pairs.view(g.shape)
        direction = torch.zeros_like(g)
        vectors = [*self.kept(S), *self.kept(Y)]
        for weight, vector in zip(weights, vectors, strict=True):
            direction = direction + weight * vector
        return direction


def _is_known(value: Tensor) -> bool:
    """Whether the host may read a value without waiting for a device."""
    is_on_host = value.device.type == "cpu" and is_plain(value)
    return is_on_host and _torch.readable(value) and not _torch.is_intercepted()


def _products(rows: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """Return one leaf's terms of the inner products of y and g with the rows."""
    # Several times faster than the transposed product.
    products = full_tensor(_as_rows([y, g]) @ rows.mT)
    return products.to(exact_dtype(products))


def _as_rows(tensors: list[Tensor]) -> Tensor:
    """Stack tensors of one shape as the rows of a matrix."""
    if not is_sharded(tensors[0]):
        return torch.stack(tensors).reshape(len(tensors), tensors[0].numel())
    return torch.stack([tensor.reshape(-1) for tensor in tensors])


def _with_newest(old: Tensor, edge: Tensor) -> Tensor:
    """Drop the oldest pair from a matrix of products, and append `edge` as the newest row and column."""
    upper = torch.cat([old[1:, 1:], edge[:-1, None]], dim=1)
    return torch.cat([upper, edge[None, :]])


def _weights(sy: Tensor, yy: Tensor, sg: Tensor, yg: Tensor, gamma: Tensor) -> Tensor:
    """Return c and -gamma u of H g = gamma g + S c - gamma Y u.

    With the upper triangle R of S^T Y and its diagonal D, R u = S^T g and R^T c = (D + gamma Y^T Y) u - gamma Y^T g.
    Pairs that do not exist yet have a 1 in R; the entries of `sy` below the diagonal are never read.
    """
    diagonal = sy.diagonal()
    R = sy.triu() + torch.diag((diagonal == 0).to(sy.dtype))
    u = torch.linalg.solve_triangular(R, sg[:, None], upper=True)
    right = (torch.diag(diagonal) + gamma * yy) @ u - gamma * yg[:, None]
    c = torch.linalg.solve_triangular(R.mT, right, upper=False)
    return torch.cat([c, -gamma * u]).squeeze(1)


@alias(class_name="LBFGS")
def lbfgs(lr=1.0, *, weight_decay=0.0, **direction: Annotated[Any, scale_by_lbfgs]):
    r"""L-BFGS: the gradient multiplied by an inverse Hessian estimated from the last steps.

    $p \leftarrow p (1 - \eta \lambda) - \eta\, H g$ with $H$ of `scale_by_lbfgs`.

    When to use: smooth problems without noise, such as physics-informed fits with all points in one batch, inside
    `line_search`: `line_search(lbfgs(), conditions="strong_wolfe")`.

    Args:
        lr: $\eta$ in [0, inf).
        history: Number of stored pairs, >= 1.
        curvature: Minimum of $\langle s, y \rangle$ for a pair, >= 0.
        first: Treatment of the first gradient: "l1" divides it by its 1-norm if that is above 1, "none" leaves it
            unchanged.
        weight_decay: $\lambda \ge 0$, decoupled; in a line search, add it to the loss instead.

    Returns:
        A transformation whose updates are added to the parameters. State: `prev_param`, `previous_grad`, `s_i`, `y_i`,
        `products_s`, `products_y`, `count`, `gamma`.

    Example:
        >>> # Rosenbrock's
        >>> loss = lambda p: (1 - p["x"]) ** 2 + 100 * (p["y"] - p["x"] ** 2) ** 2
        >>> tx = gradtx.line_search(gradtx.lbfgs())
        >>> params = {
        ...     "x": torch.tensor(-1.2, dtype=torch.float64),
        ...     "y": torch.tensor(1.0, dtype=torch.float64),
        ... }
        >>> state = tx.init(params)
        >>> for _ in range(60):
        ...     updates, state = tx.update(
        ...         torch.func.grad(loss)(params), state, params, value_fn=loss
        ...     )
        ...     params = gradtx.apply_updates(params, updates)
        >>> loss(params) < 1e-20
        tensor(True)

    Source: Liu and Nocedal 1989. Departures: see `scale_by_lbfgs`; `max_iter` is an argument of
    the optimizer's `step`, and the line search is a separate transformation.
    """
    return with_decay(scale_by_lbfgs(**direction), weight_decay, True, lr)
