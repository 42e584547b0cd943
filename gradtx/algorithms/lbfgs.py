"""L-BFGS: the gradient multiplied by an inverse Hessian estimated from the last steps."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.arguments import Count, NonNegative
from gradtx.base.exact import exact_dtype
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

    def update(g, state, p, ctx):
        S = [*state["s"], p - state["prev_param"]]
        Y = [*state["y"], g - state["previous_grad"]]
        totals = yield _products(S, Y, g)

        def stacked(name) -> Any:
            return torch.stack([totals[f"{name}_{i}"] for i in range(history + 1)])

        sy, yy, sg, yg = stacked("sy"), stacked("yy"), stacked("sg"), stacked("yg")
        accepted = (sy[-1] > curvature) & (ctx.step > 1)

        def kept(new_state, old):
            return torch.where(accepted, new_state, old)

        S = [kept(new_state, old) for old, new_state in itertools.pairwise(S)]
        Y = [kept(new_state, old) for old, new_state in itertools.pairwise(Y)]
        gamma = kept(sy[-1] / torch.where(yy[-1] == 0, 1.0, yy[-1]), state["gamma"])
        old_sy = full_tensor(state["products_s"]).to(sy.dtype)
        old_yy = full_tensor(state["products_y"]).to(yy.dtype)
        products_s = kept(_with_newest(old_sy, sy[1:]), old_sy)
        products_y = kept(_with_newest(old_yy, yy[1:]), old_yy)
        sg, yg = kept(sg[1:], sg[:-1]), kept(yg[1:], yg[:-1])
        weights = _weights(products_s, products_y, sg, yg, gamma).to(g.dtype)
        direction = gamma * g
        for weight, vector in zip(weights, [*S, *Y], strict=True):
            direction = direction + weight * vector
        length = at_least(totals["length"], 1.0)
        first_direction = g * (1 / length) if first == "l1" else g
        count = state["count"]
        new_state = {
            "prev_param": p,
            "previous_grad": g,
            "s": S,
            "y": Y,
            "products_s": products_s,
            "products_y": products_y,
            "count": kept(at_most(count + 1, history), count),
            "gamma": gamma,
        }
        yield torch.where(ctx.seen, direction, first_direction), new_state

    return init, update


def _products(S: list[Tensor], Y: list[Tensor], g: Tensor) -> dict[str, Tensor]:
    """Return one leaf's terms of the inner products with the newest y and with g, and of the 1-norm of g."""
    terms = {"length": g.abs().sum()}
    columns = _as_rows([Y[-1], g]).mT
    for name, vectors in {"s": S, "y": Y}.items():
        products = full_tensor(_as_rows(vectors) @ columns)
        products = products.to(exact_dtype(products))
        for i, (with_y, with_g) in enumerate(products.unbind()):
            terms[f"{name}y_{i}"] = with_y
            terms[f"{name}g_{i}"] = with_g
    return terms


def _as_rows(tensors: list[Tensor]) -> Tensor:
    """Stack tensors as the rows of a matrix."""
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
