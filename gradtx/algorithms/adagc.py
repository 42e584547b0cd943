"""AdaGC: AdamW on gradients whose norms are bounded by their history, leaf by leaf."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam
from gradtx.arguments import Decay, NonNegativeInt, Positive
from gradtx.links.clipping import clip_to_history
from gradtx.links.decay import with_decay
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["adagc"]


@alias(class_name="AdaGC")
def adagc(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    beta: Decay = 0.98,
    lambda_abs: Positive = 1.0,
    lambda_rel: Positive = 1.05,
    warmup_steps: NonNegativeInt = 100,
):
    r"""AdaGC: AdamW on gradients whose norms are bounded by their history, leaf by leaf.

    AdamW after `clip_to_history`.

    When to use: language models whose loss spikes although the global norm is clipped; the paper reports no spikes.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of AdamW's two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, and in the clipping.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.
        beta: Decay rate of the average norm, in [0, 1).
        lambda_abs: Bound of the norm over all leaves during the warm-up, > 0.
        lambda_rel: Bound of a leaf's norm relative to its average, > 0.
        warmup_steps: Before this step, >= 0, the bound is absolute.

    Returns:
        A transformation whose updates are added to the parameters. State: `gamma`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> # the first gradient is shortened to 1 over 1 + eps
        >>> tx = gradtx.adagc(lr=0.1, eps=1.0)
        >>> tx.update({"w": torch.tensor([1e6])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([-0.0500])

    Source: Wang et al. 2025, arXiv:2502.11034. Departures: none from pytorch_optimizer, which takes the norm over all
    leaves in float32.
    """
    clipping = clip_to_history(lambda_rel, lambda_abs, beta, warmup_steps, eps)
    direction = scale_by_adam(betas, eps)
    return chain(clipping, with_decay(direction, weight_decay, True, lr))
