"""Adam's relatives with a link of their own in its place: RAdam."""

from __future__ import annotations

from gradtx._arguments import Betas, Scalar
from gradtx.core import chain
from gradtx.factories import alias
from gradtx.optimizers.adam import with_decay
from gradtx.transforms.rectified import hold_until_rectified, scale_by_radam


@alias
def radam(
    lr: Scalar = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    rho_threshold: Scalar = 5.0,
    degenerated_to_sgd: bool = True,
):
    r"""RAdam, as torch.optim.RAdam: Adam that takes plain momentum steps until its step size is reliable.

    $p \leftarrow p - \eta r_t \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)$ with $r_t$ of `scale_by_radam`
    where $\rho_t$ is above the threshold; before, $p \leftarrow p - \eta \hat m_t$.

    Args:
        lr: $\eta$ in [0, inf), about the change of each weight per step; the first steps are in units of a gradient.
        betas: Decay of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, outside the root and before its correction.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights, $p (1 - \eta \lambda)$.
        rho_threshold: What $\rho_t$ must exceed, >= 4; the paper's is 4.
        degenerated_to_sgd: If False, nothing moves before the first rectified step, the decay included.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: numbers out of range, missing `params` unless `weight_decay` is 0.0.

    Example:
        >>> tx = gradtx.radam(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-1.0000e-04,  4.0000e-01])

    Source: Liu et al. 2019, arXiv:1908.03265. Departures: none from torch.optim.RAdam, which lacks the last two
    options. pytorch_optimizer's RAdam decouples the decay and has `degenerated_to_sgd=False` by default.
    """
    radam = with_decay(
        scale_by_radam(betas, eps, rho_threshold, degenerated_to_sgd), weight_decay, decoupled_weight_decay, lr
    )
    return radam if degenerated_to_sgd else chain(radam, hold_until_rectified(betas[1], rho_threshold))
