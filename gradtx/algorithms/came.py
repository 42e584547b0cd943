"""CAME: Adafactor with a momentum weighted by its agreement with updates."""

from __future__ import annotations

from gradtx.arguments import Decay, Positive
from gradtx.links.clipping import clip_by_block_rms
from gradtx.links.decay import with_decay
from gradtx.links.factored import means_over, over_root, scale_by_factored_rms
from gradtx.maths.entries import mean, running_mean
from gradtx.rules import alias, per_tensor
from gradtx.slots import ema
from gradtx.transform import chain

__all__ = ["came", "scale_by_confidence"]


@per_tensor(length="sets")
def scale_by_confidence(
    beta1: Decay = 0.9, beta3: Decay = 0.9999, eps: Positive = 1e-16
):
    r"""Average updates and divide by their deviation from the average: CAME's confidence.

    $m_t = \beta_1 m_{t-1} + (1-\beta_1) u_t$, $s = (u_t - m_t)^2 + \epsilon$. The state averages the row means,
    $R \leftarrow \beta_3 R + (1-\beta_3) \, \mathrm{mean}_{-1}(s)$, and likewise the column means $C$. The result is
    $m_t / \sqrt{R_i C_j / \mathrm{mean}(R)}$. There is no bias correction, so updates are large in the first
    $1/(1-\beta_3)$ steps. Leaves with fewer than two dimensions return $m_t$.

    Args:
        beta1: $\beta_1$ in [0, 1).
        beta3: $\beta_3$ in [0, 1).
        eps: $\epsilon > 0$, in the units of a squared update.

    Returns:
        A transformation that keeps shapes and dtypes. State: `exp_avg`, shaped as the parameter, and for leaves with
        two or more dimensions `exp_avg_res_row` (the parameter's shape without the last dimension) and
        `exp_avg_res_col` (without the second to last).

    Example:
        >>> tx = gradtx.scale_by_confidence(beta1=0.5, beta3=0.0)
        >>> state = tx.init({"w": torch.zeros(2, 1)})
        >>> # the second row's updates disagree
        >>> for update in ([[1.0], [1.0]], [[1.0], [-1.0]]):
        ...     updates, state = tx.update({"w": torch.tensor(update)}, state)
        ...     print(updates["w"].T)
        tensor([[1., 1.]])
        tensor([[ 3.0000, -0.3333]])

    Source: Luo et al. 2023, arXiv:2307.02047. Departures: none.
    """

    def update(u, state, p, ctx):
        m = running_mean(state["exp_avg"], u, beta1)
        if u.ndim < 2:
            return m, {"exp_avg": m}
        residual = (u - m).square() + eps
        rows = running_mean(state["exp_avg_res_row"], mean(residual, -1), beta3)
        columns = running_mean(state["exp_avg_res_col"], mean(residual, -2), beta3)
        new_state = {"exp_avg": m, "exp_avg_res_row": rows, "exp_avg_res_col": columns}
        return over_root(m, rows, columns), new_state

    slots = {
        "exp_avg": ema(beta1),
        "exp_avg_res_row": means_over(-1),
        "exp_avg_res_col": means_over(-2),
    }
    return slots, update


@alias(class_name="CAME")
def came(
    lr=2e-4,
    betas=(0.9, 0.999, 0.9999),
    eps: tuple[Positive, Positive] = (1e-30, 1e-16),
    clip_threshold: Positive = 1.0,
    weight_decay=0.0,
):
    r"""CAME: Adafactor with a momentum weighted by its agreement with updates.

    $x$ = `scale_by_factored_rms`$(g)$, clipped to a root mean square of `clip_threshold`,
    $p \leftarrow p (1 - \eta \lambda) - \eta u$ with $u$ = `scale_by_confidence`$(x)$.

    When to use: large models for which AdamW's second moment does not fit; the paper reports AdamW's quality with the
    memory of SGD with momentum.

    Args:
        lr: $\eta$ in [0, inf). The first $1/(1-\beta_3)$ steps are much longer than that.
        betas: Decay rates of the momentum, of the mean squares of gradients and of the residuals, each in [0, 1).
        eps: Added to the squares of gradients and of residuals, each above 0.
        clip_threshold: Largest root mean square of a leaf's $x$, > 0.
        weight_decay: $\lambda \ge 0$, decoupled, multiplied by the learning rate.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`; for leaves with two or more
        dimensions, `exp_avg_sq_row`, `exp_avg_sq_col`, `exp_avg_res_row`, `exp_avg_res_col`; for others, `exp_avg_sq`.

    Example:
        >>> tx = gradtx.came(lr=0.1)  # a vector has a momentum only
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0100,  0.0100])

    Source: Luo et al. 2023, arXiv:2307.02047. Departures: none from the authors' code.
    """
    beta1, beta2, beta3 = betas
    direction = chain(
        scale_by_factored_rms(eps=eps[0], beta=beta2),
        clip_by_block_rms(clip_threshold),
        scale_by_confidence(beta1, beta3, eps[1]),
    )
    return with_decay(direction, weight_decay, True, lr)
