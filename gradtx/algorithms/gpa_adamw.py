"""GPA-AdamW: AdamW with an exponential average of its weights, near which gradients are computed."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam
from gradtx.arguments import Decay, OpenFraction
from gradtx.combinators.slow_weights import schedule_free
from gradtx.links.decay import add_decayed_weights
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["gpa_adamw"]


@alias(class_name="GPAAdamW")
def gpa_adamw(
    lr=1.0,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    mu_x: Decay = 0.9967,
    mu_y: OpenFraction = 0.7,
):
    r"""GPA-AdamW: AdamW with an exponential average of its weights, near which gradients are computed.

    With Adam's direction $d$ at $y$: $z \leftarrow z - \eta (d + \lambda y)$, $x \leftarrow \mu_x x + (1-\mu_x) z$,
    $y \leftarrow \mu_y x + (1-\mu_y) z$. The parameters are $y$; evaluate with `eval_params`, which returns the average
    $x$.

    When to use: wherever you would use `schedule_free_adamw`, or DiLoCo on one machine; unlike Schedule-Free, it
    forgets early points, with one more hyperparameter, and works well with a learning rate schedule.

    Args:
        lr: $\eta$ in [0, inf); it may be larger than AdamW's.
        betas: $(\beta_1, \beta_2)$ of Adam's averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        weight_decay: $\lambda \ge 0$, multiplied by the rate.
        mu_x: $\mu_x$ in [0, 1), weight of the old average.
        mu_y: $\mu_y$ in (0, 1), the position of $y$ between $z$ and $x$.

    Returns:
        A transformation whose updates are added to the parameters. State: `z`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> tx = gradtx.gpa_adamw(lr=1.0, mu_x=0.5, mu_y=0.5)
        >>> params = {"w": torch.tensor([8.0])}
        >>> state = tx.init(params)
        >>> for _ in range(2):  # z: 7, 6; x: 7.5, 6.75; y is between
        ...     updates, state = tx.update({"w": torch.tensor([3.0])}, state, params)
        ...     params = gradtx.apply_updates(params, updates)
        >>> params["w"], tx.eval_params(state, params)["w"]
        (tensor([6.3750]), tensor([6.7500]))

    Source: Defazio et al. 2025, arXiv:2512.17131. Departures: decay is part of the direction, at $y$; in the authors'
    code it shrinks $z$ or $y$, and $x$ does not follow.
    """
    base = chain(scale_by_adam(betas, eps), add_decayed_weights(weight_decay))
    return schedule_free(base, lr, mu_y, averaging=1 - mu_x)
