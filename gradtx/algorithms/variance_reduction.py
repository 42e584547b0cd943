"""Corrected gradients: MARS, M-SVAG, A2Grad, Grokfast, optimistic steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gradtx.algorithms.adam import scale_by_adam
from gradtx.algorithms.muon import by_matrix, has_a_matrix
from gradtx.algorithms.scaling import scale_by_learning_rate
from gradtx.algorithms.sign import scale_by_lion
from gradtx.algorithms.weight_decay import with_decay
from gradtx.arguments import (
    Count,
    Decay,
    Decays,
    NonNegative,
    NonNegativeInt,
    Positive,
    Scalar,
)
from gradtx.maths.entries import (
    adam_moments,
    at_least,
    at_most,
    change_of,
    norm,
    quotient,
    running_mean,
    safe_sqrt,
)
from gradtx.rules import alias, per_tensor, whole_tree
from gradtx.slots import linear, square, start, window
from gradtx.transform import chain

__all__ = [
    "a2grad",
    "amplify_slow_gradients",
    "amplify_slow_gradients_window",
    "correct_variance",
    "grokfast_adamw",
    "mars_adamw",
    "mars_lion",
    "msvag",
    "optimistic_adam",
    "optimistic_gradient_descent",
    "scale_by_a2grad",
    "scale_by_msvag",
    "scale_by_optimistic_gradient",
]


def _corrected(grad: Tensor, last: Tensor, gamma, beta) -> Tensor:
    """Return g + gamma beta / (1 - beta) (g - g_last), clipped to a norm of at most 1."""
    change = grad + gamma * beta / (1 - beta) * (grad - last)
    return change / at_least(norm(change), 1.0)


@whole_tree(needs=("params", "grad_fn"), capturable=True)
def correct_variance_exactly(gamma: NonNegative, beta: Decay, min_ndim: NonNegativeInt):
    """Apply `correct_variance` with the gradient of the current batch at the previous parameters."""

    def init(params):
        # All leaves are stored, because the gradient is computed at the complete previous parameters.
        return {"prev_param": params}

    def update(updates, state, params, ctx):
        last = ctx.grad_fn(state["prev_param"])
        corrected = dict(updates)
        for name, grad in updates.items():
            if grad.ndim >= min_ndim:
                corrected[name] = _corrected(grad, last[name], gamma, beta)
        return corrected, {"prev_param": params}

    return init, update


@per_tensor
def correct_variance(
    gamma: NonNegative = 0.025,
    beta: Decay = 0.95,
    exact=False,
    min_ndim: NonNegativeInt = 0,
):
    r"""Add a fraction of the gradient's last change to reduce its variance: MARS's correction.

    $c_t = g_t + \gamma \frac{\beta}{1-\beta} (g_t - g')$, then $c_t / \max(1, \lVert c_t \rVert)$, leaf by leaf, with
    $g' = g_{t-1}$ and $g_0 = 0$; or, if exact, $g'$ is the gradient of the current batch at the previous parameters
    (STORM), which costs a second gradient per step. First link of a chain.

    Args:
        gamma: $\gamma \ge 0$, strength of the correction.
        beta: $\beta$ in [0, 1), that of the momentum that follows.
        exact: Use the extra `grad_fn` to compute the gradient at the previous parameters.
        min_ndim: Leaves with fewer dimensions, >= 0, pass unchanged.

    Returns:
        A transformation that keeps shapes and dtypes. State: `last_grad`, shaped as the parameter, for the leaves that
        are corrected; if exact, `prev_param` for all leaves, under `correct_variance_exactly`.

    Raises:
        ValueError: If an argument is out of range, or if `exact` is set and `params` or `grad_fn` is missing.

    Example:
        >>> tx = gradtx.correct_variance(gamma=0.5, beta=0.5)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (0.2, 0.2, 0.4):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([0.3000])
        tensor([0.2000])
        tensor([0.5000])

    Source: Yuan et al. 2024, arXiv:2411.10438; exact: Cutkosky and Orabona 2019, arXiv:1905.10018. Departures: if
    exact, $g'$ is $g_1$ at the first step, as in the paper; the authors' code uses 0.
    """
    if exact:
        return correct_variance_exactly(gamma, beta, min_ndim)

    def first(param):
        return None if param.ndim < min_ndim else torch.zeros_like(param)

    def update(g, state, p, ctx):
        if g.ndim < min_ndim:
            return g, state
        return _corrected(g, state["last_grad"], gamma, beta), {"last_grad": g}

    return {"last_grad": linear(first)}, update


@per_tensor(elementwise=True)
def scale_by_msvag(beta: Decay = 0.9):
    r"""Shorten each entry of the mean gradient by the share of variance in its square: M-SVAG's direction.

    $m_t$, $v_t$ are averages of $g$ and $g^2$ with the same $\beta$; $\hat m$ and $\hat v$ are divided by $1-\beta^t$;
    $\rho_t = \min(0.9999, \frac{(1-\beta)^2 (1-\beta^{2t})}{(1-\beta^t)^2 (1-\beta^2)})$,
    $s_t = (\hat v_t - \hat m_t^2)/(1-\rho_t)$, direction
    $\hat m_t \, \mathrm{clip}(\hat m_t^2 / (\hat m_t^2 + \rho_t s_t), 0, 1)$, and 0 where this is 0/0.

    Args:
        beta: $\beta$ in [0, 1).

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, `exp_avg_sq`, shaped as the parameter.

    Raises:
        ValueError: If `beta` is outside [0, 1).

    Example:
        >>> tx = gradtx.scale_by_msvag(beta=0.5)
        >>> state = tx.init({"w": torch.zeros(2, dtype=torch.float64)})
        >>> for grads in ([4.0, 1.0], [4.0, 7.0]):  # a steady gradient, and one with variance
        ...     updates, state = tx.update(
        ...         {"w": torch.tensor(grads, dtype=torch.float64)}, state
        ...     )
        >>> updates["w"]
        tensor([4.0000, 3.5714], dtype=torch.float64)

    Source: Balles and Hennig 2018, arXiv:1705.07774. Departures: none from the authors' code. At the first step, where
    $\hat v = \hat m^2$ up to rounding, $1 - \rho_t$ is 1e-4, which amplifies rounding errors 10,000 times.
    """
    moments, average = adam_moments((beta, beta))

    def update(g, state, p, ctx):
        m, v, new = average(g, state)
        correction = ctx.bias_correction(beta)
        # The paper's quotient with common factors canceled: 1 - b**2 = (1 - b) * (1 + b) for b = beta and b = beta**t.
        rho = (1 - beta) * (2 - correction) / ((1 + beta) * correction)
        rho = at_most(rho, 0.9999)
        mean = m / correction
        square = mean.square()
        size = square + rho / (1 - rho) * (v / correction - square)
        return quotient(square, size).clamp(0, 1) * mean, new

    return moments, update


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_a2grad(
    variant: Literal["uni", "inc", "exp"] = "uni",
    beta: NonNegative = 10.0,
    lips: Positive = 10.0,
    rho: Decay = 0.5,
):
    r"""Damp accelerated gradient descent by the deviation of gradients from their mean: A2Grad.

    With $k = t - 1$ and $\bar g_k$ the mean of all gradients so far, $\delta_k = g_k - \bar g_k$,
    $\gamma_k = 2L/(k+1)$, $\alpha_k = 2/(k+2)$, $c_k = 1/(\gamma_k + \beta h_k)$, entry by entry:
    $x_{k+1} = x_k - c_k g_k$, $p_{k+1} = (1-\alpha_{k+1}) (p_k - \alpha_k c_k g_k) + \alpha_{k+1} x_{k+1}$. The
    damping, starting from 0, is:

    - uni: $v_k = v_{k-1} + \delta_k^2$, $h_k = \sqrt{v_k}$;
    - inc: $v_k = (\frac{k}{k+1})^2 v_{k-1} + \delta_k^2$, $h_k = \sqrt{v_k}$;
    - exp: $\tilde v_k = \rho \tilde v_{k-1} + (1-\rho) \delta_k^2$, $v_k = \max(v_{k-1}, \tilde v_k)$,
      $h_k = \sqrt{(k+1) v_k}$.

    Args:
        variant: "uni", "inc" or "exp": how quickly earlier deviations are forgotten.
        beta: $\beta \ge 0$, the weight of the damping.
        lips: $L > 0$, the Lipschitz constant of the gradient: step sizes are of the order 1/L.
        rho: $\rho$ in [0, 1); only used by "exp".

    Returns:
        A transformation whose updates are added to the parameters; it has no learning rate. State: `x` (initially the
        parameter), `avg_grad`, `v` and, for "exp", `v_tilde`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, if `variant` is unknown, if `params` is missing, or if a later link
            scales by a learning rate or decays.

    Example:
        >>> tx = gradtx.scale_by_a2grad(lips=2.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> # no deviation yet: 4 / (2 L)
        >>> tx.update({"w": torch.tensor([4.0])}, tx.init(params), params)[0]["w"]
        tensor([-1.])

    Source: Deng et al. 2018, arXiv:1810.00553, algorithms 4 to 7. Departures: none from the paper. Published
    implementations, including torch_optimizer's and pytorch_optimizer's, use one $\lVert\delta\rVert^2$ per leaf
    instead of a vector.
    """

    def update(g, state, p, ctx):
        t, old = ctx.time, state["avg_grad"]  # t = k + 1
        mean = old + (g - old) / t
        stray = (g - mean).square()
        new = {"avg_grad": mean}
        if variant == "exp":
            new["v_tilde"] = running_mean(state["v_tilde"], stray, rho)
            new["v"] = torch.maximum(state["v"], new["v_tilde"])
        else:
            keep = ((t - 1) / t).square() if variant == "inc" else 1.0
            new["v"] = keep * state["v"] + stray
        damping = safe_sqrt(t * new["v"] if variant == "exp" else new["v"])
        step = g / (2 * lips / t + beta * damping)
        x = new["x"] = state["x"] - step
        alpha, following = 2 / (t + 1), 2 / (t + 2)
        return following * (x - p) - (1 - following) * alpha * step, new

    slots = {
        "x": start(slow=True),
        "avg_grad": linear(slow=True),
        "v": square(slow=True),
        "v_tilde": square() if variant == "exp" else None,
    }
    return slots, update


@per_tensor(elementwise=True)
def amplify_slow_gradients(alpha: Decay = 0.98, lamb: NonNegative = 2.0):
    r"""Add a multiple of the average gradient to each gradient: Grokfast's filter.

    $e_1 = g_1$, $e_t = \alpha e_{t-1} + (1-\alpha) g_t$; returns $g_t + \lambda e_t$. First link of a chain, before a
    coupled decay. A constant gradient is multiplied by $1 + \lambda$, which does not affect methods such as Adam.

    Args:
        alpha: $\alpha$ in [0, 1), decay of the average.
        lamb: $\lambda \ge 0$, weight of the average.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_ema`, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tx = gradtx.amplify_slow_gradients(alpha=0.5, lamb=1.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for grad in ([1.0, 1.0], [1.0, -1.0]):  # entries that keep their sign are amplified
        ...     updates, state = tx.update({"w": torch.tensor(grad)}, state)
        ...     print(updates["w"])
        tensor([2., 2.])
        tensor([ 2., -1.])

    Source: Lee et al. 2024, arXiv:2405.20233. Departures: none.
    """

    def update(update, state, param, ctx):
        average = running_mean(state["grad_ema"], update, alpha)
        average = torch.where(ctx.seen, average, update)
        return update + lamb * average, {"grad_ema": average}

    return {"grad_ema": linear()}, update


@per_tensor(elementwise=True)
def amplify_slow_gradients_window(
    window_size: Count = 100,
    lamb: NonNegative = 5.0,
    filter_type: Literal["mean", "sum"] = "mean",
    warmup=True,
):
    r"""Add a multiple of the mean of the last gradients to each gradient: Grokfast's filter with a window.

    Returns $g_t + \lambda \bar g_t$, where $\bar g_t$ is the mean or the sum of the last $n = \min(t, w)$ gradients,
    including the current one. `amplify_slow_gradients` is a close approximation with only one slot.

    Args:
        window_size: $w \ge 1$, the number of gradients to keep.
        lamb: $\lambda \ge 0$, weight of the mean.
        filter_type: "mean" or "sum".
        warmup: Pass gradients unchanged until the window is full, while t < w.

    Returns:
        A transformation that keeps shapes and dtypes. State: `grad_0` ... `grad_{w-1}`, the last gradients, newest
        first, shaped as the parameter.

    Raises:
        ValueError: If an argument is out of range, or if `filter_type` is unknown.

    Example:
        >>> tx = gradtx.amplify_slow_gradients_window(window_size=2, lamb=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 3.0, -3.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([1.])
        tensor([5.])
        tensor([-3.])

    Source: Lee et al. 2024, arXiv:2405.20233. Departures: none.
    """

    def update(update, state, param, ctx):
        window = [update, *state["grad"][:-1]]
        slow = sum(window[1:], window[0])  # gradients before the first are zeros
        if filter_type == "mean":
            slow = slow / at_most(ctx.time, window_size)
        amplified = update + lamb * slow
        if warmup:
            amplified = torch.where(ctx.step < window_size, update, amplified)
        return amplified, {"grad": window}

    return {"grad": window(window_size)}, update


@per_tensor(elementwise=True)
def scale_by_optimistic_gradient(alpha: Scalar = 1.0, beta: Scalar = 1.0):
    r"""Add the last change of the update to extrapolate the next one.

    $u_t = \alpha g_t + \beta (g_t - g_{t-1})$ with $g_0 = g_1$.

    Args:
        alpha: $\alpha$, any number.
        beta: $\beta$, any number; with 0, updates are only scaled.

    Returns:
        A transformation that keeps shapes and dtypes. State: `previous_grad`, the previous input of the link, shaped as
        the parameter.

    Example:
        >>> tx = gradtx.chain(
        ...     gradtx.scale_by_optimistic_gradient(), gradtx.scale_by_learning_rate(0.5)
        ... )
        >>> params = {"x": torch.tensor([1.0]), "y": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> # the saddle x y: plain descent in x and ascent in y would spiral out
        >>> for _ in range(30):
        ...     grads = {"x": params["y"], "y": -params["x"]}
        ...     updates, state = tx.update(grads, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> bool(params["x"].abs() < 0.1), bool(params["y"].abs() < 0.1)
        (True, True)

    Source: Daskalakis et al. 2017, arXiv:1711.00141; with two rates: Mokhtari et al. 2019, arXiv:1901.08511.
    Departures: none.
    """

    def update(update, state, param, ctx):
        change = change_of(update, state, ctx)
        return alpha * update + beta * change, {"previous_grad": update}

    return {"previous_grad": linear()}, update


def _mars(mars, vectors, gamma, beta, exact: bool, optimize_1d: bool):
    """Correct gradients, and use another chain for leaves with less than two dimensions unless `optimize_1d` is set."""
    if not optimize_1d:
        mars = by_matrix(mars, vectors, has_a_matrix, ("mars", "vectors"))
    return chain(correct_variance(gamma, beta, exact, 0 if optimize_1d else 2), mars)


@alias(class_name="MARS")
def mars_adamw(
    lr=3e-3,
    betas=(0.95, 0.99),
    eps=1e-8,
    weight_decay=0.0,
    gamma: NonNegative = 0.025,
    amsgrad=False,
    exact=False,
    optimize_1d=False,
    lr_1d: NonNegative | None = None,
    betas_1d: Decays = (0.9, 0.95),
    weight_decay_1d: NonNegative = 0.1,
):
    r"""MARS-AdamW: AdamW on gradients corrected by their change since the last step.

    $c = g + \gamma \frac{\beta_1}{1-\beta_1} (g - g')$, shortened to a norm of at most 1 (`correct_variance`), then
    AdamW with $c$ instead of $g$. Leaves with fewer than two dimensions use plain AdamW unless `optimize_1d`.

    When to use: instead of AdamW on noisy batches; the paper reports lower losses at equal numbers of tokens for GPT-2.
    Needs one more float per weight.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1); the first one also sets the size of the correction.
        eps: $\epsilon \ge 0$, added outside the square root, for all leaves.
        weight_decay: Decoupled weight decay, >= 0, multiplied by the learning rate.
        gamma: $\gamma \ge 0$, the strength of the correction.
        amsgrad: Use the running maximum of $v$, for all leaves.
        exact: Evaluate $g'$ at the previous parameters on the current batch with the extra `grad_fn`, at the cost of
            one more gradient per step. If False, $g'$ is the gradient of the previous step.
        optimize_1d: Treat leaves with fewer than two dimensions like all others.
        lr_1d: Learning rate of those leaves, >= 0; None for `lr`.
        betas_1d: Decay rates of their two averages, each in [0, 1).
        weight_decay_1d: Their decoupled decay, >= 0; `mask` does not change it.

    Returns:
        A transformation whose updates are added to the parameters. State: `last_grad` (or `prev_param`), and `exp_avg`,
        `exp_avg_sq`, [`max_exp_avg_sq`], under `partition` unless `optimize_1d`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `params` is missing and a decay is not 0.0, or if `exact` is
            set and `params` or `grad_fn` is missing.

    Example:
        >>> tx = gradtx.mars_adamw(lr=0.1, lr_1d=0.2)
        >>> params = {"w": torch.zeros(1, 2), "b": torch.zeros(1)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[1e-3, -4.0]]), "b": torch.ones(1)}, tx.init(params), params
        ... )
        >>> updates
        {'w': tensor([[-0.1000,  0.1000]]), 'b': tensor([-0.2000])}

    Source: Yuan et al. 2024, arXiv:2411.10438. Departures: leaves with three or more dimensions are corrected, too; if
    exact, the first step has no correction, as in the paper. pytorch_optimizer also adds eps to the square root.
    """
    mars = with_decay(scale_by_adam(betas, eps, amsgrad), weight_decay, True, lr)
    rate = lr if lr_1d is None else lr_1d
    vectors = with_decay(
        scale_by_adam(betas_1d, eps, amsgrad), weight_decay_1d, True, rate
    )
    return _mars(mars, vectors, gamma, betas[0], exact, optimize_1d)


@alias(class_name="MARSLion")
def mars_lion(
    lr=3e-3,
    beta: Decay = 0.95,
    weight_decay=0.0,
    gamma: NonNegative = 0.025,
    exact=False,
    optimize_1d=False,
    lr_1d: NonNegative | None = None,
    betas_1d: Decays = (0.9, 0.95),
    eps=1e-8,
    weight_decay_1d: NonNegative = 0.1,
):
    r"""MARS-Lion: the sign of a momentum of gradients corrected by their change since the last step.

    $c = g + \gamma \frac{\beta}{1-\beta} (g - g')$, shortened to a norm of at most 1 (`correct_variance`),
    $m \leftarrow \beta m + (1-\beta) c$, $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{sign}(m)$. Leaves with
    fewer than two dimensions use AdamW unless `optimize_1d`.

    When to use: like `mars_adamw`, with one float per weight less; choose a learning rate as for `lion`, well below
    this default, which is the authors' default for all variants.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight per step.
        beta: $\beta$ in [0, 1), the decay rate of the momentum; it also sets the size of the correction.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        gamma: $\gamma \ge 0$, the strength of the correction.
        exact: Evaluate $g'$ at the previous parameters on the current batch with the extra `grad_fn`, at the cost of
            one more gradient per step. If False, $g'$ is the gradient of the previous step.
        optimize_1d: Treat leaves with fewer than two dimensions like all others.
        lr_1d: Learning rate of AdamW for those leaves, >= 0; None for `lr`.
        betas_1d: Decay rates of AdamW's two averages, each in [0, 1).
        eps: AdamW's $\epsilon \ge 0$, added outside the square root.
        weight_decay_1d: AdamW's decoupled decay, >= 0; `mask` does not change it.

    Returns:
        A transformation whose updates are added to the parameters. State: `last_grad` (or `prev_param`), and `exp_avg`;
        unless `optimize_1d`, both under `partition`, with `exp_avg_sq` for the other leaves.

    Raises:
        ValueError: If a hyperparameter is out of range, if `params` is missing and a decay is not 0.0, or if `exact` is
            set and `params` or `grad_fn` is missing.

    Example:
        >>> tx = gradtx.mars_lion(lr=0.1, optimize_1d=True)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Yuan et al. 2024, arXiv:2411.10438. Departures: as for `mars_adamw`. As in the authors' code, the direction
    is the sign of the momentum, not Lion's interpolation.
    """
    mars = with_decay(scale_by_lion((beta, beta)), weight_decay, True, lr)
    rate = lr if lr_1d is None else lr_1d
    vectors = with_decay(scale_by_adam(betas_1d, eps), weight_decay_1d, True, rate)
    return _mars(mars, vectors, gamma, beta, exact, optimize_1d)


@alias(class_name="MSVAG")
def msvag(lr, beta: Decay = 0.9):
    r"""M-SVAG: momentum SGD that shortens the step of each weight by the share of variance in its gradient.

    $p \leftarrow p - \eta f_t \hat m_t$, where $f_t$ in [0, 1] is the estimated share of the squared mean in the square
    of $\hat m_t$; see `scale_by_msvag`.

    When to use: when Adam's sign-like steps hurt generalization, yet noise differs widely between weights.

    Args:
        lr: $\eta$ in [0, inf), on the scale of SGD's rates; the authors give no default.
        beta: Decay rates of both averages, in [0, 1).

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Example:
        >>> tx = gradtx.msvag(lr=0.1)
        >>> state = tx.init({"w": torch.zeros(2, dtype=torch.float64)})
        >>> for grads in ([1.0, 1.0], [1.0, 0.0], [1.0, 2.0]):  # without and with variance
        ...     updates, state = tx.update(
        ...         {"w": torch.tensor(grads, dtype=torch.float64)}, state
        ...     )
        >>> updates["w"]
        tensor([-0.1000, -0.0780], dtype=torch.float64)

    Source: Balles and Hennig 2018, arXiv:1705.07774. Departures: none from the authors' code.
    """
    return chain(scale_by_msvag(beta), scale_by_learning_rate(lr))


@alias(class_name="A2Grad")
def a2grad(**arguments: Annotated[Any, scale_by_a2grad]):
    r"""A2Grad: Nesterov's accelerated gradient with steps damped by the deviation of gradients from their mean.

    Equivalent to `scale_by_a2grad`.

    When to use: convex or nearly convex problems with noise, if acceleration should come with a guarantee; `lips` must
    be approximately right.

    Args:
        variant: "uni", "inc" or "exp": how quickly earlier deviations are forgotten.
        beta: $\beta \ge 0$, the weight of the damping.
        lips: $L > 0$, the Lipschitz constant of the gradient: the step size is 1/L.
        rho: Decay rate of the average deviation, in [0, 1); read only by "exp".

    Returns:
        A transformation whose updates are added to the parameters; there is no learning rate. State: `x`, `avg_grad`,
        `v`, [`v_tilde`].

    Raises:
        ValueError: If a hyperparameter is out of range, if `variant` is unknown, or if `params` is missing.

    Example:
        >>> tx, params = gradtx.a2grad(beta=0.0, lips=1.0), {"w": torch.tensor([1.0])}
        >>> state = tx.init(params)
        >>> for _ in range(4):  # the loss is w**2 / 2, without damping
        ...     updates, state = tx.update(params, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        ...     print(params["w"])
        tensor([0.5000])
        tensor([0.0833])
        tensor([-0.0375])
        tensor([-0.0217])

    Source: Deng et al. 2018, arXiv:1810.00553. Departures: none from the paper; published implementations have one
    damping per leaf, and pytorch_optimizer's counts from 1.
    """
    return scale_by_a2grad(**arguments)


@alias(class_name="GrokFastAdamW")
def grokfast_adamw(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-2,
    alpha: Decay = 0.98,
    lamb: NonNegative = 2.0,
):
    r"""Grokfast: AdamW on gradients with an amplified slow component.

    $e \leftarrow \alpha e + (1-\alpha) g$, then AdamW with $g + \lambda e$ instead of $g$.

    When to use: small models on algorithmic data, where the test loss falls long after the training loss (grokking);
    the paper reports up to 50 times fewer steps there. For a filter other than the EMA, use
    `amplify_slow_gradients_window` in a chain before any optimizer.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: Decoupled weight decay, >= 0, multiplied by the learning rate.
        alpha: $\alpha$ in [0, 1), the decay rate of the average of gradients.
        lamb: $\lambda \ge 0$, the weight of that average.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_ema`, `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.grokfast_adamw(lr=0.1, eps=3.0)  # the first gradient counts three times
        >>> params = {"w": torch.zeros(1)}
        >>> tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.0500])

    Source: Lee et al. 2024, arXiv:2405.20233. Departures: none from the authors' filter before AdamW.
    pytorch_optimizer's GrokFastAdamW divides the rate by $1 + \lambda$.
    """
    return chain(
        amplify_slow_gradients(alpha, lamb),
        with_decay(scale_by_adam(betas, eps), weight_decay, True, lr),
    )


@alias(class_name="OptimisticGradientDescent")
def optimistic_gradient_descent(
    lr, **direction: Annotated[Any, scale_by_optimistic_gradient]
):
    r"""Optimistic gradient descent: SGD that looks ahead by the last change of the gradient.

    $p \leftarrow p - \eta (\alpha g_t + \beta (g_t - g_{t-1}))$ with $g_0 = g_1$.

    When to use: games and saddle points (a GAN, a Lagrangian), where plain descent circles around the solution.

    Args:
        lr: $\eta$ in [0, inf).
        alpha: $\alpha$, any number.
        beta: $\beta$, any number.

    Returns:
        A transformation whose updates are added to the parameters. State: `previous_grad`.

    Raises:
        ValueError: If `lr` is negative.

    Example:
        >>> tx = gradtx.optimistic_gradient_descent(lr=1.0)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 3.0):  # 3 + (3 - 4)
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-4.])
        tensor([-2.])

    Source: Mokhtari et al. 2019, arXiv:1901.08511; Daskalakis et al. 2017, arXiv:1711.00141. Departures: none.
    """
    return chain(scale_by_optimistic_gradient(**direction), scale_by_learning_rate(lr))


@alias(class_name="OptimisticAdam")
def optimistic_adam(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    weight_decay=0.0,
):
    r"""Optimistic Adam: Adam that looks ahead by the last change of its direction.

    $p \leftarrow p - \eta (\alpha u_t + \beta (u_t - u_{t-1}) + \lambda p)$ with Adam's direction $u$, $u_0 = u_1$.

    When to use: games and saddle points with Adam, such as the training of a GAN.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        alpha: $\alpha$, any number.
        beta: $\beta$, any number.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `previous_grad`
        (the last $u$).

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> # u is the sign of the gradient
        >>> tx = gradtx.optimistic_adam(lr=1.0, betas=(0.0, 0.0))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, -3.0):  # -1 + (-1 - 1)
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-1.])
        tensor([3.])

    Source: Daskalakis et al. 2017, arXiv:1711.00141. Departures: none; optax's version has Nesterov momentum by
    default.
    """
    direction = chain(
        scale_by_adam(betas, eps), scale_by_optimistic_gradient(alpha, beta)
    )
    return with_decay(direction, weight_decay, True, lr)
