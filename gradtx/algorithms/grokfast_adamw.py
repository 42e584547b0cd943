"""Grokfast: AdamW on gradients with an amplified slow component."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam
from gradtx.arguments import Decay, NonNegative
from gradtx.links.decay import with_decay
from gradtx.links.gradients import amplify_slow_gradients
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["grokfast_adamw"]


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
