"""Curvature: L-BFGS and Apollo from changes of the gradient, AdaHessian and Sophia from the Hessian's diagonal."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.algorithms.scaling import scale_by_learning_rate
from gradtx.algorithms.weight_decay import add_decayed_weights, with_decay
from gradtx.arguments import (
    Count,
    Decay,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    is_off,
)
from gradtx.base.dtensor import full_tensor
from gradtx.base.exact import exact_dtype
from gradtx.maths.entries import (
    at_least,
    at_most,
    largest,
    norm,
    running_mean,
    safe_pow,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor
from gradtx.schedules import warmup_cosine_schedule
from gradtx.slots import ema, linear, square
from gradtx.transform import chain

__all__ = [
    "adahessian",
    "apollo",
    "lbfgs",
    "scale_by_apollo",
    "scale_by_hessian",
    "scale_by_lbfgs",
    "scale_by_sophia",
    "sophia",
]


@per_tensor(
    takes_complex=True,
    needs="params",
    shared={"count": 0.0, "gamma": 1.0},
    agree=("history", "curvature", "first"),
    compiles=False,
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

        def kept(new, old):
            return torch.where(accepted, new, old)

        S = [kept(new, old) for old, new in itertools.pairwise(S)]
        Y = [kept(new, old) for old, new in itertools.pairwise(Y)]
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
        new = {
            "prev_param": p,
            "previous_grad": g,
            "s": S,
            "y": Y,
            "products_s": products_s,
            "products_y": products_y,
            "count": kept(at_most(count + 1, history), count),
            "gamma": gamma,
        }
        yield torch.where(ctx.seen, direction, first_direction), new

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


@per_tensor(needs="params")
def scale_by_apollo(
    beta: Decay = 0.9,
    eps: Positive = 1e-4,
    rebound: Literal["constant", "belief"] = "constant",
    weight_decay=0.0,
    weight_decay_type: Literal["decoupled", "stable"] = "decoupled",
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
    belief, stable = rebound == "belief", weight_decay_type == "stable"

    def update(g, state, p, ctx):
        d, B = state["update"], state["approx_hessian"]
        a = (1 - beta) / ctx.bias_correction(beta)
        change = g - state["exp_avg_grad"]
        m = state["exp_avg_grad"] + a * change
        # The 4-norm as two roots, which are safe to differentiate at 0.
        n = safe_sqrt(norm(d.square())) + (eps if belief else eps / 0.01)
        q = d / n
        misfit = a / n * (change * q).sum() + (B * q.square()).sum()
        B = B - misfit * q.square()
        size = at_least(B.abs(), largest(change.abs()) if belief else 0.01)
        if belief:
            size = size + eps / a
        decay = weight_decay / size.mean() if stable else weight_decay
        d = m / size if is_off(weight_decay) else m / size + decay * p
        return d, {"exp_avg_grad": m, "approx_hessian": B, "update": d}

    return {
        "exp_avg_grad": linear(),
        "approx_hessian": torch.zeros_like,
        "update": linear(),
    }, update


@alias(class_name="ApolloDQN")
def apollo(
    lr=0.01,
    beta: Decay = 0.9,
    eps: Positive = 1e-4,
    rebound: Literal["constant", "belief"] = "constant",
    warmup: NonNegativeInt = 500,
    init_lr: NonNegative | None = None,
    weight_decay=0.0,
    weight_decay_type: Literal["L2", "decoupled", "stable"] | None = None,
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
    first = lr / 1000 if init_lr is None else init_lr
    # The cosine part, from lr to lr, is constant.
    rate = warmup_cosine_schedule(warmup, lr, lr, first, warmup) if warmup else lr
    if kind == "L2":
        links = add_decayed_weights(weight_decay), scale_by_apollo(beta, eps, rebound)
    else:
        links = (scale_by_apollo(beta, eps, rebound, weight_decay, kind),)
    return chain(*links, scale_by_learning_rate(rate))


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
    return with_decay(scale_by_lbfgs(**direction), weight_decay, True, lr)


@per_tensor(
    elementwise=lambda arguments: not arguments["spatial_average"],
    needs="hessian_diag",
)
def scale_by_hessian(
    betas=(0.9, 0.999),
    eps=1e-4,
    hessian_power: Fraction = 1.0,
    update_period: Count = 1,
    spatial_average=True,
):
    r"""Divide the mean gradient by the root mean square of the Hessian's diagonal: AdaHessian's direction.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$, $v_t = \beta_2 v_{t-1} + (1-\beta_2) D_t^2$, direction
    $\hat m_t / (\hat v_t^{k/2} + \epsilon)$ with $\hat m_t = m_t/(1-\beta_1^t)$, $\hat v_t = v_t/(1-\beta_2^t)$. $D_t$
    is the extra `hessian_diag` where $(t-1) \bmod$ `update_period` $= 0$, otherwise the last one used.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the power.
        hessian_power: $k$ in [0, 1]; 0 divides by $1 + \epsilon$.
        update_period: Steps between two Hessians, >= 1. Pass `hessian_diag` at every call; None keeps the last, also of
            a leaf without a gradient in the call that ends a cycle of `accumulate`.
        spatial_average: Average $|D|$ over dimensions 2 and above of leaves that have them.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_hessian_diag_sq` and, with an
        `update_period` above 1, `hessian_diag` (the last $|D|$), shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `hessian_diag` is missing, or if it is None although
            `update_period` is 1.

    Example:
        >>> tx = gradtx.scale_by_hessian(eps=0.0)
        >>> params = {"w": torch.zeros(2)}
        >>> diag = {"w": torch.tensor([2.0, -8.0])}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([4.0, 4.0])}, tx.init(params), hessian_diag=diag
        ... )
        >>> updates["w"]
        tensor([2.0000, 0.5000])

    Source: Yao et al. 2020, arXiv:2006.00719. Departures: 2-d weights are not averaged over rows, as in the authors'
    image code; $v$ is averaged at every step, even where $D$ is reused, to match its bias correction.
    """
    beta1, beta2 = betas

    size = average_over_space if spatial_average else torch.abs

    def update(g, state, p, ctx):
        D, v = ctx.hessian_diag, state["exp_hessian_diag_sq"]
        new = {}
        if update_period == 1:
            _check_diagonal("scale_by_hessian", ctx)
        D = None if D is None else size(D)
        if update_period > 1:
            old, latest = state["hessian_diag"], D
            D = old
            if latest is not None:
                D = ctx.every(update_period, 1, lambda: latest, lambda: old)
            new["hessian_diag"] = D
        if D is not None:
            v = running_mean(v, D.square(), beta2)
        m = running_mean(state["exp_avg"], g, beta1)
        new |= {"exp_avg": m, "exp_hessian_diag_sq": v}
        root = safe_pow(v / ctx.bias_correction(beta2), hessian_power / 2)
        u = m / ctx.bias_correction(beta1) / (root + eps)
        if not ctx.has_gradient:
            # Where no curvature is known yet, eps alone would be the divisor.
            u = torch.where(v == 0, 0.0, u)
        return u, new

    slots = {
        "exp_avg": ema(beta1),
        "exp_hessian_diag_sq": square(),
        "hessian_diag": torch.zeros_like if update_period > 1 else None,
    }
    return slots, update


@per_tensor(elementwise=True, needs="hessian_diag")
def scale_by_sophia(
    betas=(0.96, 0.99),
    gamma: NonNegative = 0.01,
    eps=1e-12,
    update_period: Count = 10,
):
    r"""Divide the mean gradient by the mean of the Hessian's diagonal, and clip each entry to $\pm 1$: Sophia.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t$; where $(t-1) \bmod$ `update_period` $= 0$,
    $h \leftarrow \beta_2 h + (1-\beta_2) D_t$ with $D_t$ the extra `hessian_diag`; direction
    $\mathrm{clip}(m_t / \max(\gamma h, \epsilon), -1, 1)$. There is no bias correction. Where $h \le 0$, the direction
    is the sign of $m$ if $|m| \ge \epsilon$.

    Args:
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        gamma: $\gamma \ge 0$; smaller values clip more entries.
        eps: $\epsilon \ge 0$, lower bound of the denominator; use a positive value if an entry may have no gradient and
            no Hessian.
        update_period: Steps between two Hessians, >= 1. Pass `hessian_diag` at every call; None keeps the last, also of
            a leaf without a gradient in the call that ends a cycle of `accumulate`.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `hessian`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `hessian_diag` is missing, or if it is None although
            `update_period` is 1.

    Example:
        >>> tx = gradtx.scale_by_sophia(betas=(0.0, 0.0), gamma=1.0)
        >>> params = {"w": torch.zeros(3)}
        >>> diag = {"w": torch.tensor([8.0, 0.1, -8.0])}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([2.0, 2.0, 2.0])}, tx.init(params), hessian_diag=diag
        ... )
        >>> updates["w"]
        tensor([0.2500, 1.0000, 1.0000])

    Source: Liu et al. 2023, arXiv:2305.14342. Departures: none from its last version. In the first version, the
    threshold $\rho$ is $\gamma$ here, and both its rate and its eps are divided by $\gamma$.
    """
    beta1, beta2 = betas

    def update(g, state, p, ctx):
        h, D = state["hessian"], ctx.hessian_diag
        if update_period == 1:
            _check_diagonal("scale_by_sophia", ctx)
        if D is not None:
            old, new = h, running_mean(h, D, beta2)
            h = ctx.every(update_period, 1, lambda: new, lambda: old)
        m = running_mean(state["exp_avg"], g, beta1)
        u = (m / at_least(gamma * h, eps)).clamp(-1, 1)
        return u, {"exp_avg": m, "hessian": h}

    return {"exp_avg": ema(beta1), "hessian": torch.zeros_like}, update


def _check_diagonal(who: str, ctx) -> None:
    """Check that a leaf with a gradient has a new diagonal."""
    if ctx.hessian_diag is None and ctx.has_gradient:
        raise ValueError(
            f"{who}: hessian_diag is None, which keeps the last one, but update_period=1 requires a new one at "
            "every step; pass a tensor for each leaf with a gradient"
        )


def average_over_space(diag: Tensor) -> Tensor:
    """Return the absolute diagonal of a Hessian, with each entry replaced by its mean over dimensions 2 and above."""
    size = diag.abs()
    if diag.ndim <= 2:
        return size
    return size.mean(dim=tuple(range(2, diag.ndim)), keepdim=True).expand_as(size)


@alias(class_name="AdaHessian")
def adahessian(
    lr=0.15,
    betas=(0.9, 0.999),
    eps=1e-4,
    weight_decay=0.0,
    **options: Annotated[Any, scale_by_hessian],
):
    r"""AdaHessian: Adam with the diagonal of the Hessian instead of the gradient in the denominator.

    $p \leftarrow p (1 - \eta \lambda) - \eta \hat m_t / (\hat v_t^{k/2} + \epsilon)$ with the bias-corrected averages
    $\hat m$ of $g$ and $\hat v$ of $D^2$. $D$ is the extra `hessian_diag`, as computed by `hutchinson_hessian_diag`;
    the torch optimizer obtains it from `loss.backward(create_graph=True)` or from a closure.

    When to use: when curvature differs widely between weights, and a second backward pass at every step is affordable.

    Args:
        lr: $\eta$ in [0, inf): 1 is a Newton step, so rates are larger than Adam's.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the power, in units of the Hessian.
        weight_decay: $\lambda \ge 0$, decoupled.
        hessian_power: $k$ in [0, 1]; 0 is momentum SGD.
        update_period: Number of steps between Hessian estimates, >= 1.
        spatial_average: Average $|D|$ over dimensions 2 and up of leaves that have them.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_hessian_diag_sq`,
        [`hessian_diag`].

    Raises:
        ValueError: If a hyperparameter is out of range, if `hessian_diag` is missing, or if `params` is missing and
            `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adahessian(lr=1.0, eps=0.0)
        >>> # the loss 2 a^2 + 5 b^2, minimized in one step
        >>> params = {"w": torch.tensor([3.0, -1.0])}
        >>> grads = {"w": params["w"] * torch.tensor([4.0, 10.0])}
        >>> diag = {"w": torch.tensor([4.0, 10.0])}
        >>> updates, _ = tx.update(grads, tx.init(params), params, hessian_diag=diag)
        >>> gradtx.apply_updates(params, updates)["w"].abs().max() < 1e-6
        tensor(True)

    Source: Yao et al. 2020, arXiv:2006.00719. Departures: those of `scale_by_hessian`; the decay is decoupled, as in
    the authors' code.
    """
    direction = scale_by_hessian(betas, eps, **options)
    return with_decay(direction, weight_decay, True, lr)


@alias(class_name="SophiaH")
def sophia(
    lr=6e-4,
    betas=(0.96, 0.99),
    gamma: NonNegative = 0.01,
    eps=1e-12,
    weight_decay=0.1,
    update_period: Count = 10,
):
    r"""Sophia-H: the mean gradient over the mean of the Hessian's diagonal, clipped entry by entry.

    $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{clip}(m_t / \max(\gamma h, \epsilon), -1, 1)$ with averages $m$
    of $g$ and $h$ of the extra `hessian_diag`, needed every `update_period` steps; the torch optimizer obtains it from
    `loss.backward(create_graph=True)` or from a closure.

    When to use: pre-training of language models: the Hessian is estimated about every ten steps, and clipping bounds
    the error of the estimate.

    Args:
        lr: $\eta$ in [0, inf), the largest change of a weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        gamma: $\gamma \ge 0$: the smaller it is, the more entries are clipped.
        eps: $\epsilon \ge 0$, the lower bound of the denominator.
        weight_decay: $\lambda \ge 0$, decoupled.
        update_period: Number of steps between Hessian estimates, >= 1.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `hessian`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `hessian_diag` is missing, or if `params` is missing and
            `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.sophia(lr=0.1, weight_decay=0.0)
        >>> params = {"w": torch.zeros(2)}
        >>> diag = {"w": torch.tensor([1e6, -1.0])}  # steep, and a saddle
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([1.0, 1.0])}, tx.init(params), params, hessian_diag=diag
        ... )
        >>> updates["w"]
        tensor([-4.0000e-05, -1.0000e-01])

    Source: Liu et al. 2023, arXiv:2305.14342. Departures: none from its last version; the authors' code contains only
    Sophia-G.
    """
    return with_decay(
        scale_by_sophia(betas, gamma, eps, update_period), weight_decay, True, lr
    )
