"""Padam: Adam that divides by a power of the root mean square, between Adam and SGD with momentum."""

from __future__ import annotations

from typing import Annotated

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.arguments import Scalar
from gradtx.links.decay import with_decay
from gradtx.rules import alias

__all__ = ["padam"]


@alias(class_name="PAdam")
def padam(
    lr=0.1,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    partial: Annotated[Scalar, "[0, 0.5]; off at 0.5"] = 0.25,
    amsgrad=True,
    decoupled_weight_decay=False,
):
    r"""Padam: Adam that divides by a power of the root mean square, between Adam and SGD with momentum.

    $p \leftarrow p - \eta \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)^{2q}$, where $v$ is its running
    maximum.

    When to use: image classifiers that Adam trains quickly and SGD trains well; the paper reports SGD's accuracy at
    most of Adam's speed. Choose a learning rate as for SGD.

    Args:
        lr: $\eta$ in [0, inf), larger than Adam's; the smaller `partial`, the larger.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        partial: $q$ in [0, 0.5]: 0.5 is Adam, 0 is SGD with momentum.
        amsgrad: Use the running maximum of $v$.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`].

    Example:
        >>> tx = gradtx.padam(lr=1.0, betas=(0.0, 0.0))  # g / sqrt(|g|)
        >>> tx.update({"w": torch.tensor([0.25, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.5000,  2.0000])

    Source: Chen et al. 2018, arXiv:1806.06763. Departures: none from the authors' code. pytorch_optimizer's PAdam has
    no amsgrad.
    """
    direction = scale_by_adam_hat(betas, eps, amsgrad, partial=partial)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)
