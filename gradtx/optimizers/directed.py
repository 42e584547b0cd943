"""Momentum methods that depend on directions or fix a rate per leaf: FOCUS, TAM, AdaTAM, SGD-SaI."""

from __future__ import annotations

from gradtx.arguments import Decay, Decays, NonNegative
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.adaptive_momentum import scale_by_adatam, scale_by_tam
from gradtx.transforms.layerwise import scale_by_gsnr
from gradtx.transforms.momentum import trace_ema
from gradtx.transforms.scaling import scale_by_learning_rate
from gradtx.transforms.sign import scale_by_focus
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = ["adatam", "focus", "sgd_sai", "tam"]


@alias(class_name="FOCUS")
def focus(
    lr: NonNegative = 1e-2,
    betas: Decays = (0.9, 0.999),
    gamma: NonNegative = 0.1,
    weight_decay: NonNegative = 0.0,
):
    r"""FOCUS: the sign of a momentum, plus an attraction to the average of the weights.

    $p \leftarrow p - \eta (\mathrm{sign}(m_t) + \gamma\, \mathrm{sign}(p - \hat p) + \lambda \hat p)$ with the average
    $\hat p$ of the weights; see `scale_by_focus`.

    When to use: like Signum or Lion, if gradients are noisy: it finds the bottom of a narrow valley (the paper's
    claim).

    Args:
        lr: $\eta$ in [0, inf), the change of each weight per step.
        betas: $(\beta_1, \beta_2)$, the decay rates of the momentum and of the average of the weights, each in [0, 1).
        gamma: $\gamma \ge 0$, the strength of the attraction.
        weight_decay: $\lambda \ge 0$, applied to the average of the weights.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `pbar`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.focus(lr=0.1, gamma=0.5)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # one weight is now above its average, the other below
        >>> for at in ([0.0, 0.0], [1.0, -1.0]):
        ...     updates, state = tx.update({"w": torch.ones(2)}, state, {"w": torch.tensor(at)})
        >>> updates["w"]
        tensor([-0.1500, -0.0500])

    Source: Liu, Liu and Gore 2025, arXiv:2501.12243. Departures: see `scale_by_focus`. (pytorch_optimizer's class
    applies the decay before it takes the sign.)
    """
    return chain(scale_by_focus(betas, gamma, weight_decay), scale_by_learning_rate(lr))


@alias(class_name="TAM")
def tam(
    lr: NonNegative = 1e-3,
    momentum: Decay = 0.9,
    decay_rate: Decay = 0.9,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
):
    r"""TAM: SGD whose momentum gives less weight to gradients that point away from it.

    $p \leftarrow p - \eta (m_t + \lambda p)$, $m_t = \mu m_{t-1} + (\frac{1 + s_t}{2} + \epsilon) g_t$ with the average
    agreement $s$ of $m$ and $g$; see `scale_by_tam`.

    When to use: instead of SGD with momentum if gradients are misaligned, at about twice the rate.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1).
        decay_rate: $\gamma$ in [0, 1), the decay rate of the average agreement.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `s`, `momentum_buffer`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.tam(lr=1.0, momentum=0.0, decay_rate=0.0)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> # no momentum yet, then a right angle: half of each
        >>> for grads in ([1.0, 0.0], [0.0, 1.0]):
        ...     updates, state = tx.update({"w": torch.tensor(grads)}, state)
        ...     print(updates["w"])
        tensor([-0.5000, -0.0000])
        tensor([-0.0000, -0.5000])

    Source: Malviya et al. 2024, arXiv:2412.18790. Departures: see `scale_by_tam`.
    """
    return chain(
        scale_by_tam(momentum, decay_rate, eps),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )


@alias(class_name="AdaTAM")
def adatam(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    decay_rate: Decay = 0.9,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
):
    r"""AdaTAM: Adam whose momentum gives less weight to gradients that point away from it.

    $p \leftarrow p - \eta (m_t / (\sqrt{v_t} + \epsilon) + \lambda p)$ with the momentum of `scale_by_tam` and the
    average $v$ of $g^2$, without bias correction; see `scale_by_adatam`.

    When to use: instead of Adam if gradients are misaligned. The momentum is a sum, not an average: steps are up to
    $1 / (1-\beta_1)$ times as long as Adam's.

    Args:
        lr: $\eta$ in [0, inf).
        betas: $(\beta_1, \beta_2)$, each in [0, 1).
        decay_rate: $\gamma$ in [0, 1), the decay rate of the average agreement.
        eps: $\epsilon \ge 0$.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `s`, `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adatam(lr=0.1, betas=(0.9, 0.0))
        >>> # half a sign
        >>> tx.update({"w": torch.tensor([7.0, -0.2])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0500,  0.0500])

    Source: Malviya et al. 2024, arXiv:2412.18790. Departures: see `scale_by_adatam`.
    """
    return chain(
        scale_by_adatam(betas, decay_rate, eps),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )


@alias(class_name="SGDSaI")
def sgd_sai(
    lr: NonNegative = 1e-2,
    momentum: Decay = 0.9,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-2,
):
    r"""SGD-SaI: SGD with momentum and one rate per leaf, the signal-to-noise ratio of its first gradient.

    $p \leftarrow p - \eta (q m_t + \lambda p)$ with the average $m$ of the gradients and
    $q = \lVert g_1 \rVert / (\sigma(g_1) + \epsilon)$, fixed at the first step; see `scale_by_gsnr`.

    When to use: instead of AdamW, at half the memory, for transformers (the paper's claim). The first gradient should
    be typical.

    Args:
        lr: $\eta$ in [0, inf).
        momentum: $\mu$ in [0, 1).
        eps: $\epsilon \ge 0$, in units of the gradient.
        weight_decay: $\lambda \ge 0$, decoupled.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, and per leaf `gsnr`, 0-d
        float64.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.sgd_sai(lr=1.0, momentum=0.0, eps=0.0, weight_decay=0.0)
        >>> params = {"w": torch.zeros(2, 1), "b": torch.zeros(1)}
        >>> updates, _ = tx.update(
        ...     {"w": torch.tensor([[4.0], [3.0]]), "b": torch.tensor([3.0])},
        ...     tx.init(params),
        ...     params,
        ... )
        >>> updates
        {'w': tensor([[-28.2843],
                [-21.2132]]), 'b': tensor([-9.])}

    Source: Xu et al. 2024, arXiv:2412.11768. Departures: none from the authors' code.
    """
    return chain(
        trace_ema(momentum),
        scale_by_gsnr(eps),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
