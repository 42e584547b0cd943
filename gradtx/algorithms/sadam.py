"""Sadam: Adam that divides by a softplus of the root mean square and needs no eps; with amsgrad, SAMSGrad."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam_hat
from gradtx.arguments import Positive
from gradtx.links.decay import with_decay
from gradtx.rules import alias

__all__ = ["sadam"]


@alias
def sadam(
    lr=0.1,
    betas=(0.9, 0.999),
    beta_softplus: Positive = 50.0,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    amsgrad=False,
):
    r"""Sadam: Adam that divides by a softplus of the root mean square and needs no eps; with amsgrad, SAMSGrad.

    $p \leftarrow p - \eta \hat m_t \sqrt{1-\beta_2^t} / s(\sqrt{v_t})$, $s(x) = \log(1 + \exp(b x)) / b$.

    When to use: when the choice of eps decides whether Adam works; the softplus bounds small denominators smoothly.

    Args:
        lr: $\eta$ in [0, inf).
        betas: Decay rates of the two averages, each in [0, 1).
        beta_softplus: $b > 0$. The divisor is at least $\log(2)/b$: a large $b$ approaches Adam, a small one SGD with
            momentum. Where $b x > 20$, $s(x) = x$.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        amsgrad: Use the running maximum of $v$; the authors' class does so by default.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`].

    Example:
        >>> tx = gradtx.sadam(lr=0.1)
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([1e-3, -400.0])}, tx.init({"w": torch.zeros(2)})
        ... )
        >>> updates["w"]
        tensor([-0.0002,  0.1000])

    Source: Tong et al. 2019, arXiv:1908.00700. Departures: none from the authors' code.
    """
    direction = scale_by_adam_hat(betas, amsgrad=amsgrad, softplus=beta_softplus)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)
