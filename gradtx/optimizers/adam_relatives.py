"""Adam with one link replaced: AdaBelief, RAdam, Yogi, AdamD, diffGrad, Sadam, Padam, AdamS."""

from __future__ import annotations

from typing import Annotated

from gradtx.arguments import Decays, NonNegative, Positive
from gradtx.base.exact import Scalar
from gradtx.optimizers.adam import with_decay
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.adam import (
    scale_by_adam_hat,
    scale_by_diffgrad,
    scale_by_yogi,
)
from gradtx.transforms.adam_variants import (
    hold_until_rectified,
    scale_by_adam_stable_decay,
    scale_by_belief,
    scale_by_radam,
)
from gradtx.transforms.scaling import scale_by_learning_rate

__all__ = ["adabelief", "adamd", "adams", "diffgrad", "padam", "radam", "sadam", "yogi"]


@alias(class_name="AdaBelief")
def adabelief(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-16,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = True,
    fixed_decay: bool = False,
    rectify: bool = True,
    degenerated_to_sgd: bool = True,
    amsgrad: bool = False,
):
    r"""AdaBelief: Adam that divides by the deviation of gradients from their mean.

    $p \leftarrow p - \eta r_t \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{s_t} + \epsilon)$, with $s$ and $r_t$ of
    `scale_by_belief`.

    When to use: networks on which Adam is fast but SGD generalizes better, and training of GANs; eps matters more than
    in Adam.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step, more where gradients agree.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added to $s$, where it accumulates, and to its square root.
        weight_decay: $\lambda \ge 0$.
        decoupled_weight_decay: Apply the decay to the weights, $p (1 - \eta \lambda)$; if False, add it to the
            gradient.
        fixed_decay: Use $p (1 - \lambda)$, without the learning rate; read only if decoupled.
        rectify: Rectify the variance of the first steps where $\rho_t > 5$, as `radam` does.
        degenerated_to_sgd: Move by $\eta \hat m_t$ before that; if False, only the decay acts.
        amsgrad: Use the running maximum of $s$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_var`,
        [`max_exp_avg_var`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adabelief(lr=0.1, rectify=False)  # in the first step, g - m is 0.9 g
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.1111,  0.1111])

    Source: Zhuang et al. 2020, arXiv:2010.07468. Departures: amsgrad also acts when rectifying; adabelief-pytorch 0.2
    ignores it there. pytorch_optimizer's AdaBelief does not rectify by default.
    """
    direction = scale_by_belief(betas, eps, amsgrad, rectify, degenerated_to_sgd)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr, fixed_decay)


@alias(class_name="RAdam")
def radam(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    rho_threshold: Annotated[Scalar, "[4, inf)"] = 5.0,
    degenerated_to_sgd: bool = True,
):
    r"""RAdam, equivalent to torch.optim.RAdam: plain momentum steps until Adam's step size is reliable.

    $p \leftarrow p - \eta r_t \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)$ with $r_t$ of `scale_by_radam`
    once $\rho_t$ exceeds the threshold; before that, $p \leftarrow p - \eta \hat m_t$.

    When to use: Adam or AdamW without a warm-up to tune.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step; the first steps are in units of the
            gradient.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        rho_threshold: Threshold of $\rho_t$, >= 4; the paper uses 4.
        degenerated_to_sgd: If False, neither the update nor the decay acts before the first rectified step.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.radam(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-1.0000e-04,  4.0000e-01])

    Source: Liu et al. 2019, arXiv:1908.03265. Departures: none from torch.optim.RAdam, which lacks the last two
    options. pytorch_optimizer's RAdam decouples the decay and has `degenerated_to_sgd=False` by default.
    """
    radam = with_decay(
        scale_by_radam(betas, eps, rho_threshold, degenerated_to_sgd),
        weight_decay,
        decoupled_weight_decay,
        lr,
    )
    return (
        radam
        if degenerated_to_sgd
        else chain(radam, hold_until_rectified(betas[1], rho_threshold))
    )


@alias
def yogi(
    lr: NonNegative = 1e-2,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-3,
    initial_accumulator_value: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
):
    r"""Yogi: Adam whose mean square changes by at most the new squared gradient.

    $v_t = v_{t-1} - (1-\beta_2) \mathrm{sign}(v_{t-1} - g_t^2) g_t^2$,
    $p \leftarrow p - \eta \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)$.

    When to use: sparse gradients, or gradients that suddenly become small, after which Adam's rates jump up.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the mean and of the mean square, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        initial_accumulator_value: $v_0 \ge 0$.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> for tx in (
        ...     gradtx.adam(lr=0.1, betas=(0.0, 0.99)),
        ...     gradtx.yogi(lr=0.1, betas=(0.0, 0.99)),
        ... ):
        ...     state = tx.init({"w": torch.zeros(1)})
        ...     # one large gradient, which Adam forgets by the end
        ...     for grad in [10.0, *200 * [0.1]]:
        ...         updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.0247])
        tensor([-0.0094])

    Source: Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization", NeurIPS. Departures: bias correction as
    in the authors' code. torch_optimizer's and pytorch_optimizer's Yogi also start the mean at 1e-6 and add eps after
    the correction, which with this eps makes a difference of 1 %.
    """
    direction = scale_by_yogi(betas, eps, initial_accumulator_value)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)


@alias(class_name="AdamD")
def adamd(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
):
    r"""AdamD: Adam without bias correction of its first moment, which acts as a built-in warm-up.

    $p \leftarrow p - \eta m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)$. The size of the first step is
    $(1-\beta_1) \eta$; after about $1/(1-\beta_1)$ steps the rule equals Adam.

    When to use: Adam with a large learning rate and no warm-up, where the first steps are too long.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adamd(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0100,  0.0100])

    Source: St John 2021, arXiv:2110.10828. Departures: eps is added before the correction.
    """
    return with_decay(
        scale_by_adam_hat(betas, eps, debias_first=False),
        weight_decay,
        decoupled_weight_decay,
        lr,
    )


@alias(class_name="DiffGrad")
def diffgrad(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
):
    r"""diffGrad: Adam that shortens its steps, down to half, where the gradient barely changes.

    $p \leftarrow p - \eta \xi_t \hat m_t \sqrt{1-\beta_2^t} / (\sqrt{v_t} + \epsilon)$ with
    $\xi_t = 1 / (1 + \exp(-|g_{t-1} - g_t|))$, $g_0 = 0$.

    When to use: when Adam overshoots near the end, where gradients barely change; needs one more float per weight.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient and therefore part of the comparison.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `previous_grad`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.diffgrad(lr=0.1)
        >>> tx.update({"w": torch.tensor([1e-3, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0500,  0.0982])

    Source: Dubey et al. 2019, arXiv:1909.11015. Departures: none from the authors' code.
    """
    return with_decay(
        scale_by_diffgrad(betas, eps), weight_decay, decoupled_weight_decay, lr
    )


@alias
def sadam(
    lr: NonNegative = 0.1,
    betas: Decays = (0.9, 0.999),
    beta_softplus: Positive = 50.0,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    amsgrad: bool = False,
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

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

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


@alias(class_name="PAdam")
def padam(
    lr: NonNegative = 0.1,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    partial: Annotated[Scalar, "[0, 0.5]"] = 0.25,
    amsgrad: bool = True,
    decoupled_weight_decay: bool = False,
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

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.padam(lr=1.0, betas=(0.0, 0.0))  # g / sqrt(|g|)
        >>> tx.update({"w": torch.tensor([0.25, -4.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.5000,  2.0000])

    Source: Chen et al. 2018, arXiv:1806.06763. Departures: none from the authors' code. pytorch_optimizer's PAdam has
    no amsgrad.
    """
    direction = scale_by_adam_hat(betas, eps, amsgrad, partial=partial)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr)


@alias(class_name="AdamS")
def adams(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-4,
    amsgrad: bool = False,
):
    r"""AdamS: Adam with a decoupled decay scaled like its average adaptive rate (stable weight decay).

    $p \leftarrow p (1 - \eta \lambda / \sqrt{\bar v_t}) - \eta \hat m_t / (\sqrt{\hat v_t} + \epsilon)$, with
    $\bar v_t$ the mean of $\hat v_t$ over all entries of all leaves.

    When to use: Adam with weight decay, if one value of the decay should fit a range of learning rates and gradient
    sizes.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root; not part of the decay.
        weight_decay: $\lambda \ge 0$, as for SGD: in units of the gradient divided by the weight.
        amsgrad: Use the running maximum of $v$, in the decay as well.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`].

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.adams(lr=0.1, weight_decay=1.0)
        >>> params = {"w": torch.tensor([4.0, 4.0])}
        >>> tx.update({"w": torch.tensor([0.0, 1.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.5657, -0.6657])

    Source: Xie et al. 2020, arXiv:2011.11152. Departures: no decay as long as all gradients are zero, where the
    authors' code divides by 0. pytorch_optimizer's AdamS adds eps to $\sqrt{\bar v_t}$.
    """
    return chain(
        scale_by_adam_stable_decay(betas, eps, weight_decay, amsgrad),
        scale_by_learning_rate(lr),
    )
