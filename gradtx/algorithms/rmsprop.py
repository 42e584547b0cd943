"""RMSprop, equivalent to torch.optim.RMSprop: the gradient over its root mean square, optionally with momentum."""

from __future__ import annotations

from gradtx.arguments import NonNegative
from gradtx.links.decay import with_decay
from gradtx.links.momentum import trace
from gradtx.links.scaling import scale_by_rms
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["rmsprop"]


@alias(class_name="RMSprop")
def rmsprop(
    lr=1e-2,
    alpha: NonNegative = 0.99,
    eps=1e-8,
    weight_decay=0.0,
    momentum=0.0,
    centered=False,
    *,
    eps_in_root=False,
    initial_accumulator_value: NonNegative = 0.0,
    decoupled_weight_decay=False,
):
    r"""RMSprop, equivalent to torch.optim.RMSprop: the gradient over its root mean square, optionally with momentum.

    $q_t = \alpha q_{t-1} + (1-\alpha) g_t^2$, $b_t = \mu b_{t-1} + g_t / (\sqrt{q_t} + \epsilon)$,
    $p \leftarrow p - \eta b_t$.

    When to use: recurrent networks, reinforcement learning, and existing recipes tuned for it.

    Args:
        lr: $\eta$ in [0, inf); the length of the first step is $\eta / \sqrt{1-\alpha}$, by default ten times $\eta$.
        alpha: $\alpha$ in [0, inf), below 1 in practice.
        eps: $\epsilon \ge 0$: in units of the gradient outside the square root, of the squared gradient inside.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        momentum: $\mu$ in [0, inf). With a literal 0.0, no buffer is kept.
        centered: Subtract the square of the mean gradient from $q_t$.
        eps_in_root: Use $\sqrt{q_t + \epsilon}$. With `initial_accumulator_value=1.0`, `alpha=0.9` and `eps=1e-10`,
            this is TensorFlow's RMSprop at a constant rate.
        initial_accumulator_value: $q_0 \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `square_avg`, [`grad_avg`],
        [`momentum_buffer`].

    Example:
        >>> tx = gradtx.rmsprop(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-4, -7.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.9990,  1.0000])

    Source: Tieleman and Hinton 2012, lecture 6.5; centered: Graves 2013, arXiv:1308.0850. Departures: none from
    torch.optim.RMSprop, except that the centered average cannot round to a negative value (NaN there).
    """
    direction = chain(
        scale_by_rms(alpha, eps, eps_in_root, centered, initial_accumulator_value),
        trace(momentum),
    )
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)
