"""Gravity: a moving average of gradients whose large entries are pushed back toward zero."""

from __future__ import annotations

from typing import Annotated, Any

from gradtx.arguments import Decay, NonNegative
from gradtx.base.exact import exact
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import largest, quotient, running_mean
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["gravity", "scale_by_gravity"]


@per_tensor(random=True, compiles=True, by_rows=True)
def scale_by_gravity(lr, alpha: NonNegative = 0.01, beta: Decay = 0.9, seed: int = 0):
    r"""Average gradients after damping their large entries toward zero: Gravity's direction.

    $v_0 \sim N(0, (\alpha / \eta)^2)$, $\hat\beta = \frac{\beta t + 1}{t + 2}$,
    $\zeta = g / (1 + (g \max |g|)^2)$, $v_t = \hat\beta v_{t-1} + (1-\hat\beta) \zeta$, direction $v_t$. The maximum
    is taken over the leaf.

    Args:
        lr: $\eta \ge 0$, read only when the state is initialized; a later link applies the learning rate. 0 starts from
            $v_0 = 0$.
        alpha: $\alpha \ge 0$, standard deviation of the first change of the weights. 0 starts from $v_0 = 0$.
        beta: $\beta$ in [0, 1), the limit of $\hat\beta$.
        seed: Seed of $v_0$, which also depends on the leaf's name.

    Returns:
        A transformation that keeps shapes and dtypes. State: `v`, shaped as the parameter; `seed` and `counter`, shared
        by the whole stage.

    Example:
        >>> # 2/3 of zeta at the first step
        >>> tx = gradtx.scale_by_gravity(lr=0.1, alpha=0.0, beta=0.0)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([0.5, 1.0, 3.0])}, tx.init({"w": torch.zeros(3)})
        ... )
        >>> updates["w"]
        tensor([0.1026, 0.0667, 0.0244])

    Source: Bahrami and Pouriyan Zadeh 2021, arXiv:2101.09192. Departures: none in value from the authors' PyTorch
    code, which divides by $1 / \max |g|$ and therefore fails for a zero gradient.
    """

    def init(param, rng):
        # Without a rate, no velocity moves the weights by alpha.
        size = quotient(exact(alpha, param.device), exact(lr, param.device))
        return {"v": (size * rng.normal(param)).to(param.dtype)}

    def update(update, state, param, ctx):
        bounded_update = update / (1 + (update * largest(update.abs())).square())
        beta_t = (beta * ctx.time + 1) / (ctx.time + 2)
        velocity = running_mean(state["v"], bounded_update, beta_t)
        return velocity, {"v": velocity}

    return init, update


@alias
def gravity(lr=0.1, **options: Annotated[Any, scale_by_gravity]):
    r"""Gravity: a moving average of gradients whose large entries are pushed back toward zero.

    $v \leftarrow \hat\beta v + (1-\hat\beta) g / (1 + (g \max|g|)^2)$ with $\hat\beta = \frac{\beta t + 1}{t + 2}$ and
    $v_0 \sim N(0, (\alpha/\eta)^2)$, $p \leftarrow p - \eta v$; the maximum is over each tensor.

    When to use: to try a bound on large entries of the gradient; the evidence is limited to small networks, so compare
    it with `sgd`.

    Args:
        lr: $\eta$ in [0, inf).
        alpha: $\alpha \ge 0$, the standard deviation of the initial movement of the weights; 0, or an $\eta$ that is
            initially 0, starts from $v_0 = 0$.
        beta: $\beta$ in [0, 1), the limit of $\hat\beta$.
        seed: Seed of $v_0$, which also depends on the name of the parameter.

    Returns:
        A transformation whose updates are added to the parameters. State: `v`; shared by all leaves, `seed` and
        `counter`.

    Example:
        >>> tx = gradtx.gravity(lr=0.1, alpha=0.0, beta=0.0)
        >>> tx.update({"w": torch.tensor([1.0, 30.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-7.3992e-05, -2.4691e-06])

    Source: Bahrami and Pouriyan Zadeh 2021, arXiv:2101.09192. Departures: $v_0$ comes from gradtx's own random stream,
    not from torch's global generator.
    """
    return chain(scale_by_gravity(lr, **options), scale_by_learning_rate(lr))
