"""AccSGD: accelerated SGD, a short step pulled toward an average of long steps."""

from __future__ import annotations

import math
from typing import Annotated, Any

from gradtx.arguments import AtLeastOne, NonNegative, Scalar
from gradtx.links.decay import add_decayed_weights
from gradtx.rules import alias, per_tensor
from gradtx.slots import start
from gradtx.transform import chain

__all__ = ["accsgd", "scale_by_accsgd"]


@per_tensor(elementwise=True, needs="params", owns_lr=True)
def scale_by_accsgd(
    lr,
    kappa: AtLeastOne = 1000.0,
    xi: NonNegative = 10.0,
    small_const: Annotated[Scalar, "(0, 1]"] = 0.7,
):
    r"""Combine a short step with an average of long steps: accelerated SGD.

    With $\alpha = 1 - c^2 \xi / \kappa$, $\zeta = c / (c + 1 - \alpha)$: $\bar p \leftarrow \alpha \bar p + (1-\alpha)
    (p - \frac{\eta \kappa}{c} g)$, then $p \leftarrow \zeta (p - \eta g) + (1 - \zeta) \bar p$.

    Args:
        lr: $\eta$ in [0, inf), the short step.
        kappa: $\kappa \ge 1$, ratio of the long step to the short step (apart from $c$).
        xi: $\xi$ in $[0, \sqrt{\kappa}]$, the statistical advantage parameter.
        small_const: $c$ in (0, 1].

    Returns:
        A transformation that owns the learning rate: its updates are added to the parameters. State: `avg`
        ($\bar p$), shaped as the parameter and initialized to it.

    Example:
        >>> # alpha = 1/2, zeta = 2/3
        >>> tx = gradtx.scale_by_accsgd(lr=0.1, kappa=4.0, xi=2.0, small_const=1.0)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = tx.update({"w": torch.tensor([1.0])}, tx.init(params), params)
        >>> updates["w"], state["scale_by_accsgd"]["avg"]["w"]  # -(0.1 * 2 + 0.2) / 3
        (tensor([-0.1333]), tensor([0.8000]))

    Source: Jain et al. 2017, arXiv:1704.08227; Kidambi et al. 2018, arXiv:1803.05591. Departures: none in value; the
    authors divide by $1 - \alpha$, which fails at $\xi = 0$.
    """
    if isinstance(kappa, float) and isinstance(xi, float) and xi > math.sqrt(kappa):
        raise ValueError(
            f"scale_by_accsgd: xi must be at most sqrt(kappa) = {math.sqrt(kappa):g}, got {xi!r}"
        )
    rest = small_const * small_const * xi / kappa  # 1 - alpha
    zeta = small_const / (small_const + rest)
    long_lr = lr * kappa / small_const

    def update(update, state, param, ctx):
        average = (1 - rest) * state["avg"] + rest * (param - long_lr * update)
        return (1 - zeta) * (average - param) - (zeta * lr) * update, {"avg": average}

    return {"avg": start(slow=True)}, update


@alias(class_name="AccSGD")
def accsgd(*, weight_decay=0.0, **options: Annotated[Any, scale_by_accsgd]):
    r"""AccSGD: accelerated SGD, a short step pulled toward an average of long steps.

    $\bar p \leftarrow \alpha \bar p + (1-\alpha)(p - \frac{\eta \kappa}{c} g)$,
    $p \leftarrow \zeta (p - \eta g) + (1-\zeta) \bar p$ with $\alpha = 1 - c^2 \xi / \kappa$,
    $\zeta = c / (c + 1 - \alpha)$.

    When to use: small batches on smooth, ill-conditioned problems whose condition number you can estimate (kappa, xi);
    otherwise use `qhm`.

    Args:
        lr: $\eta$ in [0, inf), the short step; the authors give no default.
        kappa: $\kappa \ge 1$, the ratio of the long step to the short one (apart from $c$).
        xi: $\xi$ in $[0, \sqrt{\kappa}]$, the statistical advantage.
        small_const: $c$ in (0, 1].
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `avg`, initialized with the parameter.

    Example:
        >>> tx = gradtx.accsgd(lr=0.1, kappa=4.0, xi=0.0)  # without advantage it is SGD
        >>> params = {"w": torch.tensor([1.0])}
        >>> tx.update({"w": torch.tensor([2.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.2000])

    Source: Jain et al. 2017, arXiv:1704.08227; Kidambi et al. 2018, arXiv:1803.05591. Departures: none in value. The
    steps are those of `qhm(lr * c * (1 + xi) / (1 + c), (kappa - c * c * xi) / (kappa + c * xi), (c * xi - 1) / (c *
    (1 + xi)))`.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_accsgd(**options))
