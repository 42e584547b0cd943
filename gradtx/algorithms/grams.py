"""Grams: steps as long as Adam's, in the direction of the gradient's signs."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.links.caution import take_signs_of_gradient
from gradtx.links.decay import with_decay
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["grams"]


@alias
def grams(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.0,
):
    r"""Grams: steps as long as Adam's, in the direction of the gradient's signs.

    $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{sign}(g) |\hat m| \sqrt{1-\beta_2^t} / (\sqrt v + \epsilon)$.

    When to use: instead of AdamW with caution (`scale_by_caution`), which it takes one step further; the paper reports
    faster convergence for language models. Use large batches, because the sign is that of a single batch.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Example:
        >>> tx = gradtx.grams(lr=0.1)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, -0.1):  # Adam would still move by -0.0593
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        >>> updates["w"]
        tensor([0.0593])

    Source: Cao et al. 2024, arXiv:2412.17107. Departures: none from the authors' code. pytorch_optimizer adds eps after
    the correction.
    """
    direction = chain(scale_by_adam_hat(betas, eps), take_signs_of_gradient())
    return with_decay(direction, weight_decay, True, lr)
