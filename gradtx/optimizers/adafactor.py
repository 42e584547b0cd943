"""Factored second moments: Adafactor as in the paper and as in torch.optim."""

from __future__ import annotations

from typing import Annotated

from gradtx.arguments import Decay, NonNegative, Positive
from gradtx.base.exact import Scalar
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.memory_efficient import (
    clip_by_block_rms,
    scale_by_adafactor,
    scale_by_adafactor_torch,
    scale_by_factored_rms,
    scale_by_factored_rms_torch,
    scale_by_param_block_rms,
)

__all__ = ["adafactor", "adafactor_torch"]


@alias(class_name="AdaFactor")
def adafactor(
    lr: NonNegative | None = None,
    eps: tuple[Positive, NonNegative] = (1e-30, 1e-3),
    clip_threshold: Positive = 1.0,
    decay_rate: Annotated[Scalar, "(-inf, 0]"] = -0.8,
    beta1: Decay | None = None,
    weight_decay: NonNegative = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
):
    r"""Adafactor as in the paper: factored second moments, clipped updates, and steps relative to the weights.

    $u = g / \sqrt{V}$ with the factored $V$ of `scale_by_factored_rms`, $u \leftarrow u / \max(1, \mathrm{rms}(u)/d)$,
    $\alpha = \rho_t \max(\epsilon_2, \mathrm{rms}(p))$, $m \leftarrow \beta_1 m + (1-\beta_1) \alpha u$,
    $p \leftarrow p (1 - \alpha \lambda) - m$.

    When to use: large transformers whose optimizer state must be far smaller than Adam's, with the relative steps of
    the paper.

    Args:
        lr: $\rho \ge 0$; must be None with `relative_step`.
        eps: $(\epsilon_1, \epsilon_2)$: the term added to $g^2$ (> 0), and the lower bound of a leaf's root mean square
            (>= 0).
        clip_threshold: $d > 0$.
        decay_rate: $c \le 0$ in $\beta_{2,t} = 1 - t^{c}$.
        beta1: $\beta_1$ in [0, 1), or None for no momentum.
        weight_decay: $\lambda \ge 0$, decoupled, scaled by $\alpha$.
        scale_parameter: Whether steps are relative to the size of the weights; if False, $\alpha = \rho$.
        relative_step: Use $\rho_t = \min(10^{-2}, 1/\sqrt{t})$ instead of `lr`.
        warmup_init: Use $\rho_t = \min(10^{-6} t, 1/\sqrt{t})$ instead of that.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq_row` and `exp_avg_sq_col`, or
        `exp_avg_sq` for leaves with fewer than two dimensions; with `beta1`, also `exp_avg`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `params` is missing, if both or neither of `lr` and
            `relative_step` are given, or if `warmup_init` is set without `relative_step`.

    Example:
        >>> tx = gradtx.adafactor()
        >>> params = {"w": torch.full((2, 2), 3.0)}
        >>> # a hundredth of the weights
        >>> tx.update({"w": torch.full((2, 2), 1e-5)}, tx.init(params), params)[0]["w"]
        tensor([[-0.0300, -0.0300],
                [-0.0300, -0.0300]])

    Source: Shazeer and Stern 2018, arXiv:1804.04235. Departures: none from tensor2tensor; fairseq compounds the rate if
    `scale_parameter` is True and `relative_step` is False. For the version of torch.optim, see `adafactor_torch`.
    """
    return chain(
        scale_by_factored_rms(decay_rate, eps[0]),
        clip_by_block_rms(clip_threshold),
        scale_by_adafactor(
            lr, eps[1], beta1, weight_decay, scale_parameter, relative_step, warmup_init
        ),
    )


@alias(class_name="Adafactor")
def adafactor_torch(
    lr: NonNegative = 1e-2,
    beta2_decay: Annotated[Scalar, "(-inf, 0]"] = -0.8,
    eps: tuple[NonNegative | None, NonNegative] = (None, 1e-3),
    d: Annotated[Scalar, "[1, inf)"] = 1.0,
    weight_decay: NonNegative = 0.0,
):
    r"""Adafactor, equivalent to torch.optim.Adafactor: other bounds and slots, and a rate that caps the relative step.

    $u = g / \sqrt{\max(V, \epsilon_1^2)}$ with the factored $V$ of `scale_by_factored_rms_torch`,
    $\alpha = \max(\epsilon_2, \mathrm{rms}(p)) \min(\eta, 1/\sqrt{t})$,
    $p \leftarrow p (1 - \eta \lambda) - \alpha u / \max(1, \mathrm{rms}(u)/d)$.

    When to use: like `adafactor`, if results or checkpoints must match torch.optim.Adafactor.

    Args:
        lr: $\eta \ge 0$, the cap of the relative step $1/\sqrt{t}$; not a learning rate in the usual sense.
        beta2_decay: $c \le 0$ in $\beta_{2,t} = 1 - t^{c}$.
        eps: $(\epsilon_1, \epsilon_2)$, each >= 0. If $\epsilon_1$ is None, it is the machine epsilon of the compute
            dtype.
        d: Clipping threshold, >= 1.
        weight_decay: $\lambda \ge 0$, decoupled, scaled by $\eta$.

    Returns:
        A transformation whose updates are added to the parameters. State: `row_var` and `col_var`, or `variance` for
        leaves with fewer than two dimensions.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.adafactor_torch(lr=0.5)
        >>> params = {"w": torch.full((2, 2), 3.0)}
        >>> # half of the weights
        >>> tx.update({"w": torch.ones(2, 2)}, tx.init(params), params)[0]["w"]
        tensor([[-1.5000, -1.5000],
                [-1.5000, -1.5000]])

    Source: torch.optim.Adafactor, after Shazeer and Stern 2018, arXiv:1804.04235. Departures: for half-precision
    parameters, $\epsilon_1$ = None means the machine epsilon of float32, the dtype in which rules compute. For the
    version of the paper, see `adafactor`.
    """
    return chain(
        scale_by_factored_rms_torch(beta2_decay, eps[0]),
        clip_by_block_rms(d),
        scale_by_param_block_rms(eps[1]),
        scale_by_adafactor_torch(lr, weight_decay),
    )
