"""Adam and RMSprop with bounded or modified rates: AdaBound, AdaMod, AdaNorm, AvaGrad, AdaShift, AdaSmooth, SWATS."""

from __future__ import annotations

from gradtx.arguments import Count, Decay, Decays, NonNegative, Positive
from gradtx.optimizers.adam import with_decay
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.adagrad import (
    scale_by_adanorm,
    scale_by_adashift,
    scale_by_adasmooth,
    scale_by_avagrad,
)
from gradtx.transforms.adam_variants import scale_by_adabound, scale_by_adamod
from gradtx.transforms.adaptive_momentum import scale_by_swats
from gradtx.transforms.scaling import hold_until, scale_by_learning_rate
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = ["adabound", "adamod", "adanorm", "adashift", "adasmooth", "avagrad", "swats"]


@alias(class_name="AdaBound")
def adabound(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    final_lr: NonNegative = 0.1,
    gamma: Positive = 1e-3,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    fixed_decay: bool = False,
    amsgrad: bool = False,
):
    r"""AdaBound, with amsgrad AMSBound: Adam whose rates are clipped ever more tightly to one SGD rate.

    $p \leftarrow p - \mathrm{clip}(\frac{\eta_t \sqrt{c_2}}{c_1 (\sqrt{v_t} + \epsilon)},
    f_t (1 - \frac{1}{\gamma t + 1}), f_t (1 + \frac{1}{\gamma t})) \, m_t$ with Adam's averages, $c_i = 1-\beta_i^t$
    and $f_t$ = `final_lr` times $\eta_t/\eta_1$.

    When to use: Adam's fast start and SGD's final phase in one run, if the final SGD rate is roughly known.

    Args:
        lr: $\eta$, initially in (0, inf): approximately the change of each weight per step at the beginning.
        betas: Decay rates of the two averages, each in [0, 1).
        final_lr: Final SGD rate, >= 0.
        gamma: Speed at which the bounds converge, > 0: they are within a factor of 2 after $1/\gamma$ steps.
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        fixed_decay: Use $p (1 - \lambda)$ instead of that; read only if decoupled.
        amsgrad: Use the running maximum of $v$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`] and the 0-d `initial_lr`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `params` is missing and `weight_decay` is not 0.0, or if the
            learning rate is 0 at `init`.

    Example:
        >>> tx = gradtx.adabound(lr=1e-3, final_lr=0.1, gamma=1e6)  # SGD from the start
        >>> # 0.1 (1 - beta1) g
        >>> tx.update({"w": torch.tensor([1.0, -2.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-0.0100,  0.0200])

    Source: Luo et al. 2019, "Adaptive Gradient Methods with Dynamic Bound of Learning Rate" (ICLR). Departures: none.
    The authors' AdaBoundW is decoupled with a fixed decay; pytorch_optimizer's AdaBound is decoupled by default.
    """
    direction = scale_by_adabound(lr, final_lr, betas, eps, gamma, amsgrad)
    return with_decay(direction, weight_decay, decoupled_weight_decay, lr, fixed_decay)


@alias(class_name="AdaMod")
def adamod(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    beta3: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = True,
):
    r"""AdaMod: Adam whose rate for each weight is at most the average of its past values.

    $p \leftarrow p (1 - \eta_t \lambda) - \min(r_t, n_t) m_t$, where $r_t$ is Adam's rate, including $\eta_t$, and
    $n_t$ is its average, started at 0; see `scale_by_adamod`.

    When to use: deep networks in which Adam takes a few extreme steps early on; replaces a warm-up.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step once warmed up.
        betas: Decay rates of the two averages, each in [0, 1).
        beta3: Decay rate of the average rate, in [0, 1); acts as a warm-up of about $1/(1-\beta_3)$ steps.
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction.
        weight_decay: $\lambda \ge 0$, applied to the weights.
        decoupled_weight_decay: If False, the decay is added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, `exp_avg_lr`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adamod(lr=0.1, beta3=0.9)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(3):  # a constant gradient: the rate warms up
        ...     updates, state = tx.update({"w": torch.tensor([5.0])}, state)
        ...     print(updates["w"])
        tensor([-0.0100])
        tensor([-0.0271])
        tensor([-0.0448])

    Source: Ding et al. 2019, arXiv:1910.12249. Departures: none; pytorch_optimizer's takes $\beta_3$ as a third beta,
    0.9999 by default.
    """
    if decoupled_weight_decay:
        return scale_by_adamod(lr, betas, beta3, eps, weight_decay)
    return chain(
        add_decayed_weights(weight_decay), scale_by_adamod(lr, betas, beta3, eps)
    )


@alias(class_name="AdaNorm")
def adanorm(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    r: Decay = 0.95,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    accumulate_eps: bool = False,
    amsgrad: bool = False,
):
    r"""AdamNorm: Adam that lengthens gradients shorter than usual before its first average.

    $p \leftarrow p - \eta \hat m_t / (\sqrt{\hat v_t} + \epsilon)$, where $m$ averages
    $g_t \max(1, e_t / \lVert g_t \rVert)$ with $e$ the average norm of the leaf's gradients, and $v$ averages $g_t^2$.

    When to use: convolutional networks whose gradients vanish for many steps in a row, so that Adam's average fades
    away.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root.
        r: Decay rate of the average norm, in [0, 1).
        weight_decay: $\lambda \ge 0$, added to the gradient and therefore part of its norm.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        accumulate_eps: Also add $\epsilon$ to the stored $v$ at every step, as the authors' code does.
        amsgrad: Use the running maximum of $v$.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`,
        [`max_exp_avg_sq`] and the 0-d `exp_grad_norm`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.adanorm(lr=0.1, betas=(0.0, 0.0), r=0.5)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (4.0, 1.0):  # the second is lengthened to (2 + 1) / 2
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.1000])
        tensor([-0.1500])

    Source: Dubey et al. 2022, arXiv:2210.06364. Departures: none from the paper. pytorch_optimizer's class always
    accumulates eps, and also divides it by the bias correction of $v$.
    """
    return with_decay(
        scale_by_adanorm(betas, eps, r, amsgrad, accumulate_eps),
        weight_decay,
        decoupled_weight_decay,
        lr,
    )


@alias(class_name="AvaGrad")
def avagrad(
    lr: NonNegative = 0.1,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 0.1,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    lagged_norm: bool = False,
):
    r"""AvaGrad: Adam with rates from earlier gradients, normalized to an overall scale that eps does not change.

    $p \leftarrow p - \eta \gamma_t \eta_t m_t/(1-\beta_1^t)$; see `scale_by_avagrad`. The learning rate and eps can
    therefore be tuned separately. The first step moves nothing.

    When to use: when eps and the learning rate should be tuned independently, from SGD-like (large eps) to Adam-like
    (small eps).

    Args:
        lr: $\eta$ in [0, inf), on the scale of SGD's rates.
        betas: Decay rates of the two averages, each in [0, 1).
        eps: $\epsilon \ge 0$, added outside the square root: small values are adaptive, large ones approach SGD with
            momentum.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$.
        lagged_norm: Use $\gamma$ of the previous step, as in the authors' code.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`; with `lagged_norm`,
        `gamma`, shared by all leaves.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> params = {"w": torch.tensor([0.0, 0.0])}
        >>> for eps in (1.0, 1e6):  # the largest eps is SGD
        ...     tx = gradtx.avagrad(lr=1.0, betas=(0.0, 0.5), eps=eps)
        ...     state = tx.init(params)
        ...     for _ in range(2):
        ...         updates, state = tx.update({"w": torch.tensor([1.0, 3.0])}, state)
        ...     print(updates["w"])
        tensor([-1.2649, -1.8974])
        tensor([-1.0000, -3.0000])

    Source: Savarese et al. 2019, arXiv:1912.01823. Departures: none from the paper; the authors' code and
    pytorch_optimizer's class correspond to `lagged_norm=True`.
    """
    return chain(
        with_decay(
            scale_by_avagrad(betas, eps, lagged_norm),
            weight_decay,
            decoupled_weight_decay,
            lr,
        ),
        hold_until(2),  # neither the update nor the decay acts in the first step
    )


@alias(class_name="AdaShift")
def adashift(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    keep_num: Count = 10,
    eps: NonNegative = 1e-10,
    reduce: str = "max",
):
    r"""AdaShift: the mean of the last n gradients, divided by the size of the gradients before those.

    $p \leftarrow p - \eta m_t / (\sqrt{v_t/(1-\beta_2^{t-n})} + \epsilon)$; see `scale_by_adashift`. Nothing moves in
    the first n steps.

    When to use: problems with rare, large gradients that send Adam in the wrong direction; needs memory for the last n
    gradients.

    Args:
        lr: $\eta$ in [0, inf), approximately the change per step of the weight with the largest gradients ("max").
        betas: Decay rates of the weights within the window and of the average, each in [0, 1).
        keep_num: $n \ge 1$, the number of gradients in the window; all of them are stored.
        eps: $\epsilon \ge 0$, added outside the square root.
        reduce: "max" or "mean" of the squares over a leaf, or "none" for a separate rate per weight.

    Returns:
        A transformation whose updates are added to the parameters. State: `grad_0` ... `grad_{n-1}`, `exp_avg_sq`
        (0-d unless reduce is "none").

    Raises:
        ValueError: If a hyperparameter is out of range, or if `reduce` is unknown.

    Example:
        >>> tx = gradtx.adashift(lr=0.1, keep_num=1)
        >>> state = tx.init({"w": torch.zeros(2)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([4.0, 1.0])}, state)
        ...     print(updates["w"])
        tensor([-0., -0.])
        tensor([-0.1000, -0.0250])

    Source: Zhou et al. 2018, arXiv:1810.00143. Departures: none from the paper; pytorch_optimizer takes a function
    instead, `reduce_func`.
    """
    return chain(
        scale_by_adashift(betas, keep_num, eps, reduce), scale_by_learning_rate(lr)
    )


@alias(class_name="AdaSmooth")
def adasmooth(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.5, 0.99),
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
    reset_every: Count | None = None,
):
    r"""AdaSmooth: RMSprop with a short memory for weights that move straight, and a long one where they oscillate.

    $p \leftarrow p - \eta g_t / \sqrt{v_t + \epsilon}$ with $v_t = c_t g_t^2 + (1 - c_t) v_{t-1}$ and $c_t$ from
    $(1-\rho_2)^2$ (oscillating) to $(1-\rho_1)^2$ (straight); see `scale_by_adasmooth`.

    When to use: when RMSprop's decay rate should follow the movement of each weight instead of being tuned.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step; in the first step, $\eta/(1-\rho_2)$.
        betas: $(\rho_1, \rho_2)$, the fast and the slow decay rate, $0 \le \rho_1 < \rho_2 < 1$.
        eps: $\epsilon \ge 0$, added inside the square root, in units of the squared gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient.
        decoupled_weight_decay: Apply the decay to the weights instead, $p (1 - \eta \lambda)$; it counts as movement.
        reset_every: Number of steps in a window of movement (one epoch in the paper); None for a window without end.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg_sq`, `prev_param`, `sum`,
        `abs_sum`.

    Raises:
        ValueError: If a hyperparameter is out of range, if `betas` is not increasing, or if `params` is missing.

    Example:
        >>> tx = gradtx.adasmooth(lr=1e-3)
        >>> params = {"w": torch.tensor([0.0])}
        >>> # lr / (1 - 0.99)
        >>> tx.update({"w": torch.tensor([7.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.1000])

    Source: Lu 2022, arXiv:2204.00825. Departures: none from the paper. pytorch_optimizer's class adds eps to the length
    of the path, and counts the decoupled decay of the first step as earlier movement.
    """
    return with_decay(
        scale_by_adasmooth(betas, eps, reset_every),
        weight_decay,
        decoupled_weight_decay,
        lr,
    )


@alias(class_name="SWATS")
def swats(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    eps: NonNegative = 1e-9,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = False,
    switch_tol: NonNegative | None = None,
):
    r"""SWATS: Adam that switches to SGD with momentum once the equivalent SGD rate has settled.

    See `scale_by_swats`. Adam's phase uses `lr`; the SGD phase estimates its own rate, one for all parameters.

    When to use: to combine Adam's fast start with SGD's generalization, without choosing the time of the switch or
    SGD's rate.

    Args:
        lr: $\eta$ in [0, inf), for Adam's phase; the SGD phase ignores it, including a schedule.
        betas: Decay rates of the two averages, each in [0, 1); the first is also SGD's momentum.
        eps: $\epsilon \ge 0$, added outside the square root, before its bias correction.
        weight_decay: $\lambda \ge 0$, added to the gradient in both phases.
        amsgrad: Use the running maximum of $v$.
        switch_tol: Tolerance of the test, >= 0, in units of a learning rate; None for `eps`, as in the paper.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`, [`max_exp_avg_sq`],
        `momentum_buffer`; shared by all leaves: `count`, `rate_avg`, `sgd_rate`, `switched`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.swats(lr=0.1, switch_tol=1e-3)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> # a constant gradient: Adam's steps of 0.1 equal SGD's at a rate of 0.025
        >>> for _ in range(2):
        ...     _, state = tx.update({"w": torch.tensor([4.0])}, state)
        >>> state["scale_by_swats"]["sgd_rate"], state["scale_by_swats"]["switched"]
        (tensor(0.0250, dtype=torch.float64), tensor(1., dtype=torch.float64))

    Source: Keskar and Socher 2017, arXiv:1712.07628. Departures: none from the paper, which treats all parameters as
    one vector and has an absolute tolerance; torch_optimizer's and pytorch_optimizer's classes do neither.
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_swats(lr, betas, eps, amsgrad, switch_tol),
    )
