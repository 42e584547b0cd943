"""Learn a scale for the sum of another optimizer's updates: Mechanic, TRAC.

Both store the initial parameters p0 and express the current ones as p0 + S D, with a scale S for the sum D of the inner
optimizer's updates. S is the sum of the scales of several learners, which forget at different rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradtx.arguments import AnyLength, Betas, Decays, NonNegative, Positive, Scalar
from gradtx.combinators.frame import Frame, Values
from gradtx.maths.entries import at_least, quotient, safe_sqrt
from gradtx.rules import combinator
from gradtx.slots import linear, rounded
from gradtx.slots import start as start_of_weights
from gradtx.state.slots import numbered, with_lists
from gradtx.transform import GradientTransformation

__all__ = ["mechanize", "trac"]

BETAS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)


def _scale_by_learners(
    tx: GradientTransformation,
    betas: Betas,
    start: dict[str, float],
    product: Callable[[Values, Tensor], Tensor],
    learner: Callable[[Any, Values, Tensor], Values],
    eps: Scalar,
) -> Frame:
    """Return a frame that scales the sum of all updates of `tx` by the sum of the learners' scales `s`.

    The learners receive `product(sums, scale)`; `learner(beta, old, product)` returns the next values of one learner,
    whose initial values are `start`.
    """
    shared = numbered({name: [value] * len(betas) for name, value in start.items()})

    def sum_of_updates(state, param):
        scale = torch.stack(with_lists(state)["s"]).sum()
        total = quotient(param - state["param_init"], scale)
        return torch.where(scale > 0, total, 0.0)

    def enter(update, state, param, ctx):
        return update, {**state, "gradient": update}

    def leave(update, state, param, ctx):
        origin, gradient = state["param_init"], state["gradient"]
        old = with_lists(state)
        scale = torch.stack(old["s"]).sum()
        # At scale 0 the parameters are the origin. Cotangents of 1 / eps for both would cancel only up to rounding.
        moved = scale * state["sum"] if "sum" in state else param - origin
        way = quotient(moved, scale + eps, floor=eps)
        way = torch.where(scale > 0, way, 0.0)
        sums = yield {
            "gradient": gradient.square().sum(),
            "param": param.square().sum(),
            "way_gradient": (way * gradient).sum(),
            "way_param": (way * param).sum(),
        }
        product_of_step = product(sums, scale)
        new_state = {name: [] for name in start}
        for i, beta in enumerate(betas):
            old_of_learner = {name: old[name][i] for name in start}
            for name, value in learner(beta, old_of_learner, product_of_step).items():
                new_state[name].append(value)
        scale = at_least(torch.stack(new_state["s"]).sum(), 0.0)
        if "sum" in state:
            new_state["sum"] = way + update
        yield origin + scale * (way + update) - param, new_state

    agree = {f"betas[{i}]": beta for i, beta in enumerate(betas)}
    agree["eps"] = eps
    # Rounded weights do not show the first, small steps.
    slots = {
        "param_init": start_of_weights(),
        "sum": rounded(linear(slow=True), sum_of_updates),
    }
    return Frame(tx, slots, enter, leave, shared=shared, agree=agree)


@combinator(needs="params", owns_lr=True)
def mechanize(
    tx: GradientTransformation,
    s_init: Positive = 1e-8,
    s_decay: NonNegative = 1e-2,
    betas: AnyLength[Decays] = BETAS,
    eps: Positive = 1e-8,
):
    r"""Find the learning rate of any optimizer by betting on the sum of its updates: Mechanic.

    With the update $u$ of the optimizer, $S = \sum_i s_i$ and $\Delta = (p - p_0) / (S + \epsilon)$:
    $h = \langle \Delta, g + \lambda S \frac{\lVert g \rVert}{\lVert p \rVert + \epsilon} p \rangle$; for every
    $\beta_i$ of $n$: $m \leftarrow \max(\beta m, |h|)$ from $10^{-6}$, $v \leftarrow \beta^2 v + h^2$ from 0,
    $r \leftarrow \max(0, \beta r - s h)$ with the old $s$,
    $s \leftarrow (m s_0 / n + r) / (\sqrt v + \epsilon)$ from 0;
    $p \leftarrow p_0 + (\Delta + u) \sum_i s_i$. Products and norms run over all leaves.

    Args:
        tx: A complete optimizer. Its learning rate is relative: leave it unchanged, or at 1, with its schedule.
        s_init: $s_0 > 0$, the initial scale, far below its final value.
        s_decay: $\lambda \ge 0$, a pull of the weights toward 0 that the scale takes into account.
        betas: Decay rate of each learner's statistics, each in [0, 1); any number of them.
        eps: $\epsilon > 0$.

    Returns:
        A transformation whose updates are added to the parameters. State: `param_init` and, for 16-bit
        weights, `sum`, that of all updates in float32, shaped like the parameter; for each beta, shared by all leaves,
        `s_i`, `max_product_i`, `sum_squared_products_i` and `reward_i`, 0-d; and the entries
        of `tx`.

    Raises:
        TypeError: If `tx` is not a transformation, or if it processes leaves without a gradient.
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> tx = gradtx.mechanize(gradtx.sgd(lr=1.0), s_decay=0.0)
        >>> params = {"w": torch.tensor([10.0], dtype=torch.float64)}
        >>> state = tx.init(params)
        >>> for _ in range(60):  # the loss is |w - 7|, for which no rate was chosen
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> bool((params["w"] - 7).abs() < 2)
        True

    Source: Cutkosky, Defazio and Mehta 2023, arXiv:2306.00144. Departures: none from the authors' code; for
    16-bit weights $\Delta$ is stored. The package mechanic-pytorch computes the decay at $p + u$; optax uses other
    initial values.
    """

    def product(sums, scale):
        size = safe_sqrt(sums["param"]) + eps
        pull = s_decay * scale * safe_sqrt(sums["gradient"]) / size
        return sums["way_gradient"] + pull * sums["way_param"]

    def learner(beta, old, h):
        largest = torch.maximum(beta * old["max_product"], h.abs())
        squares = beta**2 * old["sum_squared_products"] + h.square()
        reward = at_least(beta * old["reward"] - old["s"] * h, 0.0)
        s = (s_init / len(betas) * largest + reward) / (safe_sqrt(squares) + eps)
        return {
            "s": s,
            "max_product": largest,
            "sum_squared_products": squares,
            "reward": reward,
        }

    start = {"s": 0.0, "max_product": 1e-6, "sum_squared_products": 0.0, "reward": 0.0}
    return _scale_by_learners(tx, betas, start, product, learner, eps)


@combinator(needs="params", owns_lr=True)
def trac(
    tx: GradientTransformation,
    betas: AnyLength[Decays] = BETAS,
    s_prev: Positive = 1e-8,
    eps: Positive = 1e-8,
):
    r"""Scale the sum of an optimizer's updates by its success, and return to the initial parameters if it fails: TRAC.

    With the update $u$ of the optimizer, $S = \sum_i s_i$ and $\Delta = (p - p_0) / (S + \epsilon)$:
    $h = \langle \Delta, g \rangle$ over all leaves; for every $\beta_i$: $v \leftarrow \beta^2 v + h^2$ from 0,
    $\sigma \leftarrow \beta \sigma - h$ from $10^{-8}$,
    $s \leftarrow \frac{s_0}{\mathrm{erfi}(1/\sqrt 2)} \mathrm{erfi}\left(\frac{\sigma}{\sqrt{2 v} + \epsilon}\right)$
    from 0; $p \leftarrow p_0 + (\Delta + u) \max(\sum_i s_i, 0)$.

    Args:
        tx: A complete optimizer, with the learning rate that it would use alone.
        betas: Decay rate of each learner's statistics, each in [0, 1); any number of them.
        s_prev: $s_0 > 0$, the unit of the scale: far below 1.
        eps: $\epsilon > 0$.

    Returns:
        A transformation whose updates are added to the parameters. State: `param_init` and, for 16-bit
        weights, `sum`, that of all updates in float32, shaped like the parameter; for each beta, shared by all leaves,
        `s_i`, `variance_i` and `sigma_i`, 0-d; and the entries of `tx`.

    Raises:
        TypeError: If `tx` is not a transformation, or if it processes leaves without a gradient.
        ValueError: If an argument is out of range, if `params` is missing, or if a later link scales by a learning rate
            or decays.

    Example:
        >>> tx = gradtx.trac(gradtx.sgd(lr=0.1))
        >>> params = {"w": torch.tensor([10.0], dtype=torch.float64)}
        >>> state = tx.init(params)
        >>> for _ in range(200):  # the loss is |w - 7|
        ...     updates, state = tx.update({"w": (params["w"] - 7).sign()}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> bool((params["w"] - 7).abs() < 2)
        True

    Source: Muppidi, Zhang and Yang 2024, arXiv:2405.16642. Departures: erfi is computed to the last digit of float64
    (the authors' code uses a rational approximation of the complex error function in float32).
    """
    unit = s_prev / ERFI_OF_ROOT_HALF

    def product(sums, scale):
        return sums["way_gradient"]

    def learner(beta, old, h):
        squares = beta**2 * old["variance"] + h.square()
        gain = beta * old["sigma"] - h
        s = unit * erfi(gain / (safe_sqrt(2 * squares) + eps))
        return {"s": s, "variance": squares, "sigma": gain}

    start = {"s": 0.0, "variance": 0.0, "sigma": 1e-8}
    return _scale_by_learners(tx, betas, start, product, learner, eps)


ERFI_OF_ROOT_HALF = 0.9534382692512609  # erfi(1 / sqrt(2))


def erfi(x: Tensor) -> Tensor:
    r"""Return the imaginary error function of a 0-d tensor, $\frac{2}{\sqrt\pi} \int_0^x e^{t^2} dt$; inf above 26.6.

    The trapezoidal rule gives $\frac{4}{\pi} \sum_{n = 1, 3, ...} e^{-n^2 h^2} \sinh(2 n h x) / n$, whose error
    decreases as $e^{-(\pi / 2h)^2}$ (Rybicki 1989).
    """
    h = 0.25
    count = 68  # terms are largest where n h = x: up to 26.6, and 7 more
    odd = 2 * torch.arange(count, device=x.device, dtype=x.dtype) + 1
    size = x.abs()
    # e^(-a^2) sinh(2 a x) = e^(a (2 x - a)) (1 - e^(-4 a x)) / 2 with a = n h, without intermediate overflow
    growth = (odd * h * (2 * size - odd * h)).exp()
    terms = growth * -(-4 * odd * h * size).expm1() / 2
    return x.sign() * (4 / math.pi) * (terms / odd).sum()
