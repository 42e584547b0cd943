"""SPlus: signs of the momentum in Shampoo's eigenbases, and an average of the weights for evaluation."""

from __future__ import annotations

from gradtx.algorithms.muon import by_matrix
from gradtx.arguments import Count, Decay, NonNegative, NonNegativeInt, Static
from gradtx.combinators.coordinates import rotated
from gradtx.links.averaging import average
from gradtx.links.caution import scale_by_sign
from gradtx.links.momentum import trace_ema
from gradtx.links.projection import map_after_step
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["scale_by_mean_side", "splus"]


@per_tensor
def scale_by_mean_side(otherwise: NonNegative = 1e-3, max_dim: NonNegativeInt = 10000):
    r"""Divide the update of a matrix by the mean of its two sides: $2 u / (\mathrm{rows} + \mathrm{columns})$.

    Args:
        otherwise: Factor for all other leaves, >= 0.
        max_dim: Matrices with a larger side are treated as other leaves.

    Returns:
        A transformation that keeps shapes and dtypes; no state.

    Example:
        >>> tx = gradtx.scale_by_mean_side()
        >>> tx.update({"w": torch.ones(1, 3)}, tx.init({}))[0]["w"]
        tensor([[0.5000, 0.5000, 0.5000]])

    Source: Frans et al. 2025, SPlus, arXiv:2506.07254. Departures: none.
    """

    def update(update, state, param, ctx):
        return mean_side_factor(update.shape, otherwise, max_dim) * update, state

    return update


def mean_side_factor(shape, otherwise, max_dim):
    """Return the factor for a leaf of this shape."""
    if len(shape) != 2 or max(shape) > max_dim:
        return otherwise
    return 2 / max(sum(shape), 1)


@alias(class_name="SPlus")
def splus(
    lr=0.1,
    betas=(0.9, 0.999),
    weight_decay=1e-2,
    ema_rate: Decay = 0.999,
    inverse_steps: Count = 100,
    nonstandard_constant: NonNegative = 1e-3,
    max_dim: Count = 10000,
    *,
    stagger: Static[bool] = False,
):
    r"""SPlus: signs of the momentum in Shampoo's eigenbases, and an average of the weights for evaluation.

    $m \leftarrow \beta_1 m + (1-\beta_1) g$; matrices are rotated into the eigenbases of their factors (decay
    $\beta_2$), $u = \mathrm{sign}(m')$ is rotated back; $p \leftarrow p - \eta' u$ with
    $\eta' = 2 \eta / (\mathrm{rows} + \mathrm{columns})$; $p$ enters the average of the weights; then
    $p \leftarrow p (1 - \eta' \lambda)$. Other leaves are not rotated, and $\eta' = c\, \eta$.

    When to use: large batches, where Shampoo's directions stay valid for a hundred steps; evaluate with `eval_params`.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        weight_decay: $\lambda \ge 0$, applied to the weights after the step and after they enter the average.
        ema_rate: Decay rate of the average of the weights, in [0, 1).
        inverse_steps: Number of steps between computations of the bases, >= 1.
        nonstandard_constant: $c \ge 0$.
        max_dim: Sides larger than this (>= 1) are not rotated, and a leaf with such a side is treated like the other
            leaves.
        stagger: Update the bases of each leaf at a separate step within the period, derived from the name of the leaf,
            so that only the first step updates the bases of all leaves.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, `average`, and, for
        matrices, `GG_i` and `Q_i` under `partition`. `eval_params` returns `average`.

    Example:
        >>> tx = gradtx.splus(lr=1.0, weight_decay=0.0)
        >>> params = {"w": torch.zeros(2, 2), "b": torch.zeros(1)}
        >>> grads = {"w": torch.tensor([[3.0, -4.0], [0.1, 0.2]]), "b": torch.ones(1)}
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> updates["w"], updates["b"]
        (tensor([[-0.5000,  0.5000],
                [-0.5000, -0.5000]]), tensor([-0.0010]))

    Source: Frans et al. 2025, arXiv:2506.07254. Departures: the average is stored without its bias.
    """
    signs = rotated(
        scale_by_sign(),
        beta=betas[1],
        precondition_frequency=inverse_steps,
        max_precondition_dim=max_dim,
        start="identity",
        refresh="eigh",
        offset=0,
        of="grad",
        stagger=stagger,
    )

    def shrunk(weights):
        factor = mean_side_factor(weights.shape, nonstandard_constant, max_dim)
        return (1 - lr * factor * weight_decay) * weights

    return chain(
        trace_ema(betas[0]),
        by_matrix(signs, scale_by_sign()),
        scale_by_mean_side(nonstandard_constant, max_dim),
        scale_by_learning_rate(lr),
        average(ema_rate, debias=True),
        # After the average, which takes the weights before this decay.
        map_after_step(shrunk),
    )
