"""AdamC: AdamW whose weight decay falls with the square of the learning rate."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam
from gradtx.arguments import Positive
from gradtx.links.decay import add_decayed_weights
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["adamc"]


@alias(class_name="AdamC")
def adamc(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-2,
    amsgrad=False,
    max_lr: Positive | None = None,
):
    r"""AdamC: AdamW whose weight decay falls with the square of the learning rate.

    $p \leftarrow p (1 - \eta_t^2 \lambda / \eta_{max}) - \eta_t \hat m / (\sqrt{\hat v} + \epsilon)$. At a constant
    rate, it is AdamW.

    When to use: long runs with a decaying learning rate, in which the gradients of normalized layers grow toward the
    end; the paper corrects only the decay of these layers (`partition`).

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate and by its ratio to the largest rate.
        amsgrad: Use the running maximum of $v$.
        max_lr: $\eta_{max} > 0$, the peak of the schedule. None for the largest rate so far, which is the current one
            during a warm-up.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, [`max_exp_avg_sq`];
        without `max_lr`, also `lr_max`.

    Example:
        >>> tx = gradtx.adamc(
        ...     lr=gradtx.Schedule(lambda step: 0.1 * 0.5**step), weight_decay=1.0
        ... )
        >>> params = {"w": torch.ones(1)}
        >>> state = tx.init(params)
        >>> for _ in range(3):  # AdamW: 0.1, 0.05, 0.025
        ...     updates, state = tx.update({"w": torch.zeros(1)}, state, params)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.0250])
        tensor([-0.0063])

    Source: Defazio 2025, arXiv:2506.02285. Departures: without `max_lr`, the largest rate so far stands in for the
    peak. pytorch_optimizer uses the rate passed to the constructor, and corrects only groups that are marked
    `normalized`.
    """
    return chain(
        scale_by_adam(betas, eps, amsgrad),
        add_decayed_weights(weight_decay, corrected_by=lr, max_lr=max_lr),
        scale_by_learning_rate(lr),
    )
