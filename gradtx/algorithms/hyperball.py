"""Weights kept on their initial sphere, and relative steps there: `adam_h` and `muon_h`."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam
from gradtx.algorithms.muon import with_fallback
from gradtx.arguments import Decay
from gradtx.links.decay import add_decayed_weights
from gradtx.links.momentum import trace_ema
from gradtx.links.orthogonal import orthogonalize
from gradtx.links.projection import keep_norm, scale_to_radius
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.polynomials import Coefficients, Steps
from gradtx.rules import alias, combinator
from gradtx.transform import GradientTransformation, chain

__all__ = ["adam_h", "hyperball", "muon_h"]


@combinator
def hyperball(tx: GradientTransformation, lr, eps=1e-12):
    r"""Take steps of a fixed fraction of a leaf's norm, and preserve that norm.

    With $R = \lVert p_0 \rVert$, $N(x) = x / \max(\lVert x \rVert, \epsilon)$ and the direction $u$ of `tx`,
    $p \leftarrow R\, N(p - \eta R\, N(u))$.

    Suited to weights whose scale does not matter because a normalization layer follows: one learning rate then fits
    layers of all sizes, and weight decay is unnecessary.

    Args:
        tx: Computes the direction, without a learning rate.
        lr: $\eta \ge 0$, the relative step size.
        eps: $\epsilon \ge 0$. Keep it above 0 in case an update is 0.

    Returns:
        A transformation whose updates are added to the parameters. State: the entries of `tx`, and `radius`, 0-d, in
        each of `scale_to_radius` and `keep_norm`.

    Raises:
        ValueError: If the initial norm of a leaf is 0.

    Example:
        >>> tx = gradtx.hyperball(gradtx.trace(0.9), lr=0.75)
        >>> params = {"w": torch.tensor([4.0, 0.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([0.0, -1e-3])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"]  # (4, 3), brought back to norm 4
        tensor([3.2000, 2.4000])

    Source: Hyperball, blog of K. Wen 2025; HeavyBall. Departures: none.
    """
    return chain(tx, scale_to_radius(eps), scale_by_learning_rate(lr), keep_norm(eps))


@alias(class_name="AdamH")
def adam_h(
    lr=1e-2,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.0,
):
    r"""AdamH: Adam's direction in relative steps, with weights kept on their initial sphere.

    $p \leftarrow R\, N(p - \eta R\, N(u + \lambda p))$ with Adam's direction $u$, $R = \lVert p_0 \rVert$ and
    $N(x) = x / \lVert x \rVert$; see `hyperball`.

    When to use: matrices that are followed by normalization, with one rate for layers of all sizes. Exclude leaves that
    start at 0, such as biases, with `partition`.

    Args:
        lr: $\eta \ge 0$, the relative step.
        betas: Adam's betas, each in [0, 1).
        eps: Adam's eps, >= 0.
        weight_decay: $\lambda \ge 0$; it rotates the step, and the norm of the weights does not change.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, and `radius` twice,
        0-d.

    Raises:
        ValueError: If the initial norm of a leaf is 0.

    Example:
        >>> tx = gradtx.adam_h(lr=0.1)
        >>> params = {"w": torch.tensor([1.5, 2.0])}
        >>> updates, _ = tx.update({"w": torch.tensor([1.0, -9.0])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"].norm()
        tensor(2.5000)

    Source: Hyperball, blog of K. Wen 2025; HeavyBall. Departures: none.
    """
    return hyperball(
        chain(scale_by_adam(betas, eps), add_decayed_weights(weight_decay)), lr
    )


@alias(class_name="MuonH")
def muon_h(
    lr=1e-2,
    momentum: Decay = 0.95,
    nesterov=True,
    ns_coefficients: Coefficients = "simple",
    ns_steps: Steps | None = None,
    fallback: GradientTransformation | None = None,
):
    r"""MuonH: Muon's direction in relative steps, with weights kept on their initial sphere.

    $p \leftarrow R\, N(p - \eta R\, N(O(u)))$ with the momentum $u$, $O$ of `orthogonalize`, $R = \lVert p_0 \rVert$
    and $N(x) = x / \lVert x \rVert$; see `hyperball`.

    When to use: the hidden matrices of transformers that are followed by normalization, without weight decay.

    Args:
        lr: $\eta \ge 0$, the relative step.
        momentum: Decay rate of the gradient average, in [0, 1).
        nesterov: Use Nesterov momentum.
        ns_coefficients: Coefficients of the iteration, as in `orthogonalize`.
        ns_steps: Number of iterations, in [0, 100); None for 5, or for the number that belongs to a named set.
        fallback: A complete transformation, such as `adamw(...)`, for all leaves that are not matrices.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and `radius` twice, 0-d;
        with a fallback, these and the fallback's entries, under `partition`.

    Raises:
        ValueError: If the initial norm of a matrix is 0, or if a leaf is not a matrix and there is no `fallback`.

    Example:
        >>> tx = gradtx.muon_h(lr=0.1)
        >>> params = {"w": torch.tensor([[1.5, 2.0]])}
        >>> updates, _ = tx.update({"w": torch.tensor([[1.0, -9.0]])}, tx.init(params), params)
        >>> gradtx.apply_updates(params, updates)["w"].norm()
        tensor(2.5000)

    Source: Hyperball, blog of K. Wen 2025; NVIDIA Emerging-Optimizers. Departures: every leaf has its own radius.
    """
    matrices = hyperball(
        chain(trace_ema(momentum, nesterov), orthogonalize(ns_coefficients, ns_steps)),
        lr,
    )
    return with_fallback("muon_h", matrices, fallback)
