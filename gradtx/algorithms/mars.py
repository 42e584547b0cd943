"""MARS, gradients corrected by their change since the last step: `mars_adamw` and `mars_lion`."""

from __future__ import annotations

from gradtx.algorithms.adam import scale_by_adam
from gradtx.algorithms.lion import scale_by_lion
from gradtx.algorithms.muon import by_matrix, has_a_matrix
from gradtx.arguments import Decay, Decays, NonNegative
from gradtx.links.decay import with_decay
from gradtx.links.gradients import correct_variance
from gradtx.rules import alias
from gradtx.transform import chain

__all__ = ["mars_adamw", "mars_lion"]


def _mars(mars, vectors, gamma, beta, exact: bool, optimize_1d: bool):
    """Correct gradients, and use another chain for leaves with less than two dimensions unless `optimize_1d` is set."""
    if not optimize_1d:
        mars = by_matrix(mars, vectors, has_a_matrix, ("mars", "vectors"))
    return chain(correct_variance(gamma, beta, exact, 0 if optimize_1d else 2), mars)


@alias(class_name="MARS")
def mars_adamw(
    lr=3e-3,
    betas=(0.95, 0.99),
    eps=1e-8,
    weight_decay=0.0,
    gamma: NonNegative = 0.025,
    amsgrad=False,
    exact=False,
    optimize_1d=False,
    lr_1d: NonNegative | None = None,
    betas_1d: Decays = (0.9, 0.95),
    weight_decay_1d: NonNegative = 0.1,
):
    r"""MARS-AdamW: AdamW on gradients corrected by their change since the last step.

    $c = g + \gamma \frac{\beta_1}{1-\beta_1} (g - g')$, shortened to a norm of at most 1 (`correct_variance`), then
    AdamW with $c$ instead of $g$. Leaves with fewer than two dimensions use plain AdamW unless `optimize_1d`.

    When to use: instead of AdamW on noisy batches; the paper reports lower losses at equal numbers of tokens for GPT-2.
    Needs one more float per weight.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1); the first one also sets the size of the correction.
        eps: $\epsilon \ge 0$, added outside the square root, for all leaves.
        weight_decay: Decoupled weight decay, >= 0, multiplied by the learning rate.
        gamma: $\gamma \ge 0$, the strength of the correction.
        amsgrad: Use the running maximum of $v$, for all leaves.
        exact: Evaluate $g'$ at the previous parameters on the current batch with the extra `grad_fn`, at the cost of
            one more gradient per step. If False, $g'$ is the gradient of the previous step.
        optimize_1d: Treat leaves with fewer than two dimensions like all others.
        lr_1d: Learning rate of those leaves, >= 0; None for `lr`.
        betas_1d: Decay rates of their two averages, each in [0, 1).
        weight_decay_1d: Their decoupled decay, >= 0; `mask` does not change it.

    Returns:
        A transformation whose updates are added to the parameters. State: `last_grad` (or `prev_param`), and `exp_avg`,
        `exp_avg_sq`, [`max_exp_avg_sq`], under `partition` unless `optimize_1d`.

    Raises:
        ValueError: If `params` is missing and a decay is not 0.0, or if `exact` is set and `params` or `grad_fn` is
            missing.

    Example:
        >>> tx = gradtx.mars_adamw(lr=0.1, lr_1d=0.2)
        >>> params = {"w": torch.zeros(1, 2), "b": torch.zeros(1)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[1e-3, -4.0]]), "b": torch.ones(1)}, tx.init(params), params
        ... )
        >>> updates
        {'w': tensor([[-0.1000,  0.1000]]), 'b': tensor([-0.2000])}

    Source: Yuan et al. 2024, arXiv:2411.10438. Departures: leaves with three or more dimensions are corrected, too; if
    exact, the first step has no correction, as in the paper. pytorch_optimizer also adds eps to the square root.
    """
    mars = with_decay(scale_by_adam(betas, eps, amsgrad), weight_decay, True, lr)
    rate = lr if lr_1d is None else lr_1d
    vectors = with_decay(
        scale_by_adam(betas_1d, eps, amsgrad), weight_decay_1d, True, rate
    )
    return _mars(mars, vectors, gamma, betas[0], exact, optimize_1d)


@alias(class_name="MARSLion")
def mars_lion(
    lr=3e-3,
    beta: Decay = 0.95,
    weight_decay=0.0,
    gamma: NonNegative = 0.025,
    exact=False,
    optimize_1d=False,
    lr_1d: NonNegative | None = None,
    betas_1d: Decays = (0.9, 0.95),
    eps=1e-8,
    weight_decay_1d: NonNegative = 0.1,
):
    r"""MARS-Lion: the sign of a momentum of gradients corrected by their change since the last step.

    $c = g + \gamma \frac{\beta}{1-\beta} (g - g')$, shortened to a norm of at most 1 (`correct_variance`),
    $m \leftarrow \beta m + (1-\beta) c$, $p \leftarrow p (1 - \eta \lambda) - \eta \, \mathrm{sign}(m)$. Leaves with
    fewer than two dimensions use AdamW unless `optimize_1d`.

    When to use: like `mars_adamw`, with one float per weight less; choose a learning rate as for `lion`, well below
    this default, which is the authors' default for all variants.

    Args:
        lr: $\eta$ in [0, inf), the change of each weight per step.
        beta: $\beta$ in [0, 1), the decay rate of the momentum; it also sets the size of the correction.
        weight_decay: $\lambda \ge 0$, multiplied by the learning rate.
        gamma: $\gamma \ge 0$, the strength of the correction.
        exact: Evaluate $g'$ at the previous parameters on the current batch with the extra `grad_fn`, at the cost of
            one more gradient per step. If False, $g'$ is the gradient of the previous step.
        optimize_1d: Treat leaves with fewer than two dimensions like all others.
        lr_1d: Learning rate of AdamW for those leaves, >= 0; None for `lr`.
        betas_1d: Decay rates of AdamW's two averages, each in [0, 1).
        eps: AdamW's $\epsilon \ge 0$, added outside the square root.
        weight_decay_1d: AdamW's decoupled decay, >= 0; `mask` does not change it.

    Returns:
        A transformation whose updates are added to the parameters. State: `last_grad` (or `prev_param`), and `exp_avg`;
        unless `optimize_1d`, both under `partition`, with `exp_avg_sq` for the other leaves.

    Raises:
        ValueError: If `params` is missing and a decay is not 0.0, or if `exact` is set and `params` or `grad_fn` is
            missing.

    Example:
        >>> tx = gradtx.mars_lion(lr=0.1, optimize_1d=True)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1000,  0.1000])

    Source: Yuan et al. 2024, arXiv:2411.10438. Departures: as for `mars_adamw`. As in the authors' code, the direction
    is the sign of the momentum, not Lion's interpolation.
    """
    mars = with_decay(scale_by_lion((beta, beta)), weight_decay, True, lr)
    rate = lr if lr_1d is None else lr_1d
    vectors = with_decay(scale_by_adam(betas_1d, eps), weight_decay_1d, True, rate)
    return _mars(mars, vectors, gamma, beta, exact, optimize_1d)
