"""Shampoo: a full-matrix preconditioner for every dimension of a leaf."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from gradtx.arguments import Count, Decay, Positive, Static, is_off
from gradtx.links.decay import add_decayed_weights, split_decay
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import identity, plus_decay
from gradtx.maths.matrices import gram, inverse_root, multiplied
from gradtx.rules import alias, per_tensor
from gradtx.slots import Slot
from gradtx.transform import chain

__all__ = ["scale_by_shampoo", "shampoo"]


def params_if_decayed(arguments: dict[str, Any]) -> tuple[str, ...]:
    """Return the arguments that the owner of a leaf needs: the parameter, if it is decayed."""
    return () if is_off(arguments["weight_decay"]) else ("param",)


@per_tensor(
    needs="params",
    compiles="lists",
    capturable=False,
    whole=params_if_decayed,
    amplifies=True,
    length="sets",
)
def scale_by_shampoo(
    momentum: Decay = 0.0,
    weight_decay=0.0,
    matrix_eps: Positive = 1e-4,
    preconditioning_compute_steps: Count = 1,
    variant: Literal["paper", "moskomule"] = "paper",
    *,
    stagger: Static[bool] = False,
):
    r"""Multiply a gradient along each of its k dimensions by an inverse root of its accumulated statistics: Shampoo.

    $u = (1-\mu) g_t + \mu b_{t-1} + \lambda p$, where $b$ is the previous result ($u = g_1 + \lambda p$ at first).
    For each dimension $i$: $H_i \leftarrow H_i + \mathrm{mat}_i(x) \mathrm{mat}_i(x)^\top$ from $\epsilon I$, where
    $\mathrm{mat}_i$ moves dimension i to the front and flattens the others, and $R_i = H_i^{-e}$, refreshed where
    $(t-1) \bmod n = 0$. The result is $b_t = u \times_1 R_1 \cdots \times_k R_k$.

    Args:
        momentum: $\mu$ in [0, 1).
        weight_decay: $\lambda \ge 0$, coupled; it is part of this link, because $b$ is its output.
        matrix_eps: $\epsilon > 0$, in the units of a squared gradient.
        preconditioning_compute_steps: $n \ge 1$, steps between the roots. An optimizer from `as_optimizer` computes a
            root only when it is due. So does pure use of plain tensors on the CPU without `stagger`; otherwise, it
            computes roots at every step and selects.
        variant: "paper": $x = u$ and $e = 1/(2k)$. "moskomule": $x$ is $u$ after the previous dimensions, and
            $e = 1/k$.
        stagger: Compute the roots of each leaf at the first step, and then at its own step within the period, derived
            from its name, so that no later step computes those of all leaves.

    Returns:
        A transformation that keeps shapes and dtypes. State: `momentum_buffer`, shaped as the parameter, and for each
        dimension i of size n `pre_cond_i` ($H_i$) and `inv_pre_cond_i` ($R_i$), n x n. Memory n^2 and time n^3 per
        dimension: for large ones use `scale_by_scalable_shampoo`. For a 0-d leaf, the result is $u$.

    Example:
        >>> tx = gradtx.scale_by_shampoo(matrix_eps=1e-8)
        >>> params = {"w": torch.zeros(2, 2)}
        >>> # orthogonal
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[3.0, 0.0], [0.0, -0.1]])}, tx.init(params), params
        ... )
        >>> updates["w"]
        tensor([[ 1.0000,  0.0000],
                [ 0.0000, -1.0000]])

    Source: Gupta et al. 2018, arXiv:1802.09568, Algorithm 2; momentum and "moskomule": moskomule/shampoo.pytorch.
    Departures: none. Derivatives through the roots are exact, even at equal eigenvalues; second derivatives are not:
    they lack terms.
    """

    def exponent(tensor):
        return 1 / (2 * tensor.ndim) if variant == "paper" else 1 / tensor.ndim

    def factors(param):
        return [matrix_eps * identity(size, param) for size in param.shape]

    def roots(param):
        # Of the factors, so that a leaf whose first gradient arrives between two roots can move.
        eyes = [identity(size, param) for size in param.shape]
        return [matrix_eps ** -exponent(param) * eye for eye in eyes]

    def update(g, state, p, ctx):
        u = (1 - momentum) * g + momentum * state["momentum_buffer"]
        b = u = plus_decay(torch.where(ctx.seen, u, g), weight_decay, p)
        n = preconditioning_compute_steps
        phase = 1 + ctx.turn(n) if stagger else 1
        H, R = [], []
        for i in range(g.ndim):
            x = u if variant == "paper" else b
            H.append(state["pre_cond"][i] + gram(x, i))

            def root(H=H[i]):
                return inverse_root(H, exponent(g), floor=matrix_eps)

            old = state["inv_pre_cond"][i]
            R.append(ctx.every(n, phase, root, lambda old=old: old, first=stagger))
            b = multiplied(b, R[i], i)
        new_state = {"pre_cond": H, "inv_pre_cond": R} if g.ndim else {}
        return b, {"momentum_buffer": b, **new_state}

    slots = {
        "momentum_buffer": torch.zeros_like,
        "pre_cond": Slot(factors, slow=True),
        "inv_pre_cond": roots,
    }
    return slots, update


@alias
def shampoo(
    lr=1e-1,
    momentum: Decay = 0.0,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    **options: Annotated[Any, scale_by_shampoo],
):
    r"""Shampoo: a full-matrix preconditioner for every dimension of a leaf.

    $p \leftarrow p - \eta\, u \times_1 H_1^{-e} \cdots \times_k H_k^{-e}$; see `scale_by_shampoo`.

    When to use: small and medium-sized layers, where a full preconditioner for every dimension is affordable.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1), the share of the previous direction.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.
        matrix_eps: $\epsilon > 0$: $H_i$ starts at $\epsilon I$.
        preconditioning_compute_steps: Number of steps between computations of the roots, >= 1.
        variant: "paper" ($e = 1/(2k)$, statistics of the gradient), or "moskomule" ($e = 1/k$, statistics of the
            gradient as preconditioned along the preceding dimensions).
        stagger: Compute the roots of each leaf at the first step, and then at a separate step within the period,
            derived from the name of the leaf, so that no later step computes the roots of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `pre_cond_i` and
        `inv_pre_cond_i`, n x n, for every dimension i of size n.

    Example:
        >>> tx = gradtx.shampoo(lr=1.0, matrix_eps=1e-3)
        >>> params = {"w": torch.zeros(3)}
        >>> # of norm 1
        >>> tx.update({"w": torch.tensor([30.0, 0.0, -40.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.6000, -0.0000,  0.8000])

    Source: Gupta et al. 2018, arXiv:1802.09568; momentum and "moskomule": moskomule/shampoo.pytorch. Departures: none.
    """
    coupled, decoupled = split_decay(weight_decay, decoupled_weight_decay)
    return chain(
        scale_by_shampoo(momentum, coupled, **options),
        add_decayed_weights(decoupled),
        scale_by_learning_rate(lr),
    )
