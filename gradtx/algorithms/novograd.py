"""NovoGrad: momentum of gradients divided by a running norm of their leaf."""

from __future__ import annotations

from gradtx.links.decay import add_decayed_weights
from gradtx.links.momentum import ema, trace
from gradtx.links.scaling import scale_by_layer_rms, scale_by_learning_rate
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["novograd"]


@alias(class_name="NovoGrad")
def novograd(
    lr=1e-3,
    betas=(0.95, 0.98),
    eps=1e-8,
    weight_decay=0.0,
    grad_averaging=False,
    amsgrad=False,
):
    r"""NovoGrad: momentum of gradients divided by a running norm of their leaf.

    $v \leftarrow \beta_2 v + (1-\beta_2) \lVert g \rVert^2$ ($v = \lVert g \rVert^2$ in the first step),
    $m \leftarrow \beta_1 m + g / (\sqrt v + \epsilon) + \lambda p$, $p \leftarrow p - \eta m$.

    When to use: speech models and others whose layers have very different gradients, at the cost of one extra number
    per layer.

    Args:
        lr: $\eta$ in [0, inf); a leaf moves by about $\eta / (1 - \beta_1)$ in norm.
        betas: Decay rates of the momentum and of $v$, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root; should be above 0.
        weight_decay: $\lambda \ge 0$; added after the division, so it is included in the momentum.
        grad_averaging: Use $m \leftarrow \beta_1 m + (1-\beta_1) (\ldots)$.
        amsgrad: Use the running maximum of $v$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq` and, with `amsgrad`,
        `max_exp_avg_sq`, 0-d per leaf; `momentum_buffer`, or `exp_avg` with `grad_averaging`.

    Example:
        >>> tx = gradtx.novograd(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([0.0, 2.0])}
        >>> tx.update({"w": torch.tensor([30.0, 40.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.0600, -0.2800])

    Source: Ginsburg et al. 2019, arXiv:1905.11286. Departures: none from the authors' code, except that its option
    `luc` is omitted. pytorch_optimizer's class does not average in the first step.
    """
    beta1, beta2 = betas
    return chain(
        scale_by_layer_rms(beta2, eps, amsgrad),
        add_decayed_weights(weight_decay),
        ema(beta1) if grad_averaging else trace(beta1),
        scale_by_learning_rate(lr),
    )
