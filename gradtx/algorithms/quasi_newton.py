"""Quasi-Newton methods: L-BFGS, Apollo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradtx.algorithms._math import at_least, largest, safe_sqrt
from gradtx.algorithms.scaling import scale_by_learning_rate
from gradtx.algorithms.weight_decay import add_decayed_weights
from gradtx.arguments import Count, Decay, NonNegative, NonNegativeInt, Positive, is_off
from gradtx.base.dtensor import full_tensor
from gradtx.base.exact import exact_dtype
from gradtx.rules import alias, per_tensor
from gradtx.schedules import warmup_cosine_schedule
from gradtx.slots import linear
from gradtx.transform import chain

__all__ = [
    "apollo",
    "lbfgs",
    "scale_by_apollo",
    "scale_by_lbfgs",
]


@per_tensor(
    takes_complex=True,
    needs=("params",),
    shared={"count": 0.0, "gamma": 1.0},
    agree=("history", "curvature", "first"),
    compiles=False,
)
def scale_by_lbfgs(
    history: Count = 10, curvature: NonNegative = 1e-10, first: str = "l1"
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
        yield torch.where(ctx.seen, direction, first_direction), new_state

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


@per_tensor(needs=("params",))
def scale_by_apollo(
    beta: Decay = 0.9,
    eps: Positive = 1e-4,
    rebound: str = "constant",
    weight_decay: NonNegative = 0.0,
    weight_decay_type: str = "decoupled",
):
    r"""Divide the mean gradient by a diagonal Hessian fitted to the change of gradients along the steps: Apollo.

    For each leaf, with $a = (1-\beta)/(1-\beta^t)$: $\Delta = g_t - m_{t-1}$, $m_t = m_{t-1} + a \Delta$;
    $n = \lVert d_{t-1} \rVert_4 + \epsilon'$, $q = d_{t-1}/n$,
    $B_t = B_{t-1} - (\frac{a}{n} \sum \Delta q + \sum B_{t-1} q^2) q^2$; direction
    $d_t = m_t / \max(|B_t|, \sigma)$, from $m_0 = B_0 = d_0 = 0$. $B$ is the curvature times the learning rate, because
    $d$ is the step before the learning rate is applied. There are two bounds: "constant" has
    $\sigma = 0.01$, $\epsilon' = \epsilon / 0.01$; "belief" has $\sigma = \max |\Delta|$, $\epsilon' = \epsilon$,
    and adds $\epsilon / a$ to the denominator.

    Args:
        beta: $\beta$ in [0, 1).
        eps: $\epsilon > 0$.
        rebound: Lower bound of the curvature: "constant" or "belief".
        weight_decay: $\lambda \ge 0$. The decay is part of $d$ and therefore of the next curvature.
        weight_decay_type: "decoupled" adds $\lambda p$ to $d$, "stable" adds $\lambda p$ over the mean denominator.
            (For L2 decay, place `add_decayed_weights` before this link.)

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg_grad` ($m$), `approx_hessian` ($B$), `update`
        ($d$), shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if an option is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.scale_by_apollo(beta=0.0, eps=1e-8)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> # the loss is 2 w**2; after two steps its curvature of 4 is known
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": 4 * params["w"]}, state, params)
        ...     params = gradtx.apply_updates(params, {"w": -1e-3 * updates["w"]})
        >>> state["scale_by_apollo"]["approx_hessian"]["w"]
        tensor([0.0040])

    Source: Ma 2020, arXiv:2009.13586. Departures: none from the authors' 2021 code; torch_optimizer's Apollo is an
    earlier version with $\sigma = 1$. Not the low-rank APOLLO of arXiv:2412.05270.
    """
    if rebound not in ("constant", "belief"):
        raise ValueError(
            f"scale_by_apollo: rebound must be 'constant' or 'belief', got {rebound!r}"
        )
    if weight_decay_type not in ("decoupled", "stable"):
        raise ValueError(
            f"scale_by_apollo: weight_decay_type must be 'decoupled' or 'stable', got {weight_decay_type!r}; "
            "for 'L2', place add_decayed_weights before this link"
        )
    belief, stable = rebound == "belief", weight_decay_type == "stable"

    def update(update, state, param, ctx):
        share = (1 - beta) / ctx.bias_correction(beta)
        change = update - state["exp_avg_grad"]
        mean = state["exp_avg_grad"] + share * change
        last, curvature = state["update"], state["approx_hessian"]
        # The 4-norm as two roots, which are safe to differentiate at 0.
        length = safe_sqrt(safe_sqrt(last.square().square().sum())) + (
            eps if belief else eps / 0.01
        )
        along = last / length
        squares = along.square()
        misfit = share / length * (change * along).sum() + (curvature * squares).sum()
        curvature = curvature - misfit * squares
        bound = largest(change.abs()) if belief else 0.01
        size = at_least(curvature.abs(), bound)
        if belief:
            size = size + eps / share
        direction = mean / size
        if not is_off(weight_decay):
            decay = weight_decay / size.mean() if stable else weight_decay
            direction = direction + decay * param
        return direction, {
            "exp_avg_grad": mean,
            "approx_hessian": curvature,
            "update": direction,
        }

    return {
        "exp_avg_grad": linear(),
        "approx_hessian": torch.zeros_like,
        "update": linear(),
    }, update


@alias(class_name="ApolloDQN")
def apollo(
    lr: NonNegative = 0.01,
    beta: Decay = 0.9,
    eps: Positive = 1e-4,
    rebound: str = "constant",
    warmup: NonNegativeInt = 500,
    init_lr: NonNegative | None = None,
    weight_decay: NonNegative = 0.0,
    weight_decay_type: str | None = None,
):
    r"""Apollo: momentum divided by a diagonal quasi-Newton estimate of the curvature, with a warm-up of the rate.

    $p \leftarrow p - \eta_t d_t$ with $d_t$ of `scale_by_apollo`; $\eta_t$ rises linearly from `init_lr` at the first
    step to `lr` after `warmup` steps.

    When to use: when curvature would help but a second backward pass is too expensive; needs a long warm-up.

    Args:
        lr: $\eta$ in [0, inf) after the warm-up.
        beta: Decay rate of the mean gradient, in [0, 1).
        eps: $\epsilon > 0$.
        rebound: Lower bound of the curvature: "constant" (0.01) or "belief" (the largest change of the leaf's
            gradient).
        warmup: Number of warm-up steps, >= 0.
        init_lr: Rate of the first step, >= 0; None for lr/1000.
        weight_decay: $\lambda \ge 0$.
        weight_decay_type: "L2" adds the decay to the gradient, "decoupled" to the direction, "stable" to the direction,
            divided by the mean denominator; None for "L2" with "constant" and "decoupled" with "belief".

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_grad`, `approx_hessian`, `update`.

    Raises:
        ValueError: If a hyperparameter is out of range, if an option is unknown, or if `params` is missing.

    Example:
        >>> tx = gradtx.apollo(lr=0.1, warmup=2, init_lr=0.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> # the first three rates are 0, 0.05 and 0.1; the curvature stays at its bound
        >>> for _ in range(3):
        ...     updates, state = tx.update({"w": torch.tensor([1e-4])}, state, params)
        ...     print(updates["w"])
        tensor([-0.])
        tensor([-0.0005])
        tensor([-0.0010])

    Source: Ma 2020, arXiv:2009.13586. Departures: none from the authors' code. pytorch_optimizer's ApolloDQN is one
    step ahead in its warm-up; its APOLLO is a different method.
    """
    kind = weight_decay_type or ("L2" if rebound == "constant" else "decoupled")
    if kind not in ("L2", "decoupled", "stable"):
        raise ValueError(
            f"weight_decay_type must be 'L2', 'decoupled' or 'stable', got {weight_decay_type!r}"
        )
    first = lr / 1000 if init_lr is None else init_lr
    # The cosine part, from lr to lr, is constant.
    rate = warmup_cosine_schedule(warmup, lr, lr, first, warmup) if warmup else lr
    if kind == "L2":
        direction = chain(
            add_decayed_weights(weight_decay), scale_by_apollo(beta, eps, rebound)
        )
    else:
        direction = scale_by_apollo(beta, eps, rebound, weight_decay, kind)
    return chain(direction, scale_by_learning_rate(rate))


@alias(class_name="LBFGS")
def lbfgs(
    lr: NonNegative = 1.0,
    history: Count = 10,
    curvature: NonNegative = 1e-10,
    first: str = "l1",
    weight_decay: NonNegative = 0.0,
):
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

    Raises:
        ValueError: If a hyperparameter is out of range, if `first` is unknown, or if `params` is missing.

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
    return chain(
        scale_by_lbfgs(history, curvature, first),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
