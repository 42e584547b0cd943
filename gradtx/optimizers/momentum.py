"""Momentum variants: AccSGD, AggMo, QHM, QHAdam, PID, Gravity."""

from __future__ import annotations

from typing import Annotated

from gradtx.arguments import AnyLength, Decay, Decays, Fraction, NonNegative
from gradtx.base.exact import Scalar
from gradtx.optimizers.adam import with_decay
from gradtx.rules import alias
from gradtx.transform import chain
from gradtx.transforms.momentum import (
    scale_by_accsgd,
    scale_by_aggmo,
    scale_by_gravity,
    scale_by_pid,
    scale_by_qhadam,
    scale_by_qhm,
)
from gradtx.transforms.scaling import scale_by_learning_rate
from gradtx.transforms.weight_decay import add_decayed_weights

__all__ = ["accsgd", "aggmo", "gravity", "pid", "qhadam", "qhm"]


@alias(class_name="AccSGD")
def accsgd(
    lr: NonNegative,
    kappa: Annotated[Scalar, "[1, inf)"] = 1000.0,
    xi: NonNegative = 10.0,
    small_const: Annotated[Scalar, "(0, 1]"] = 0.7,
    weight_decay: NonNegative = 0.0,
):
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

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing.

    Example:
        >>> tx = gradtx.accsgd(lr=0.1, kappa=4.0, xi=0.0)  # without advantage it is SGD
        >>> params = {"w": torch.tensor([1.0])}
        >>> tx.update({"w": torch.tensor([2.0])}, tx.init(params), params)[0]["w"]
        tensor([-0.2000])

    Source: Jain et al. 2017, arXiv:1704.08227; Kidambi et al. 2018, arXiv:1803.05591. Departures: none in value. The
    steps are those of `qhm(lr * c * (1 + xi) / (1 + c), (kappa - c * c * xi) / (kappa + c * xi), (c * xi - 1) / (c *
    (1 + xi)))`.
    """
    return chain(
        add_decayed_weights(weight_decay), scale_by_accsgd(lr, kappa, xi, small_const)
    )


@alias(class_name="AggMo")
def aggmo(
    lr: NonNegative,
    betas: AnyLength[Decays] = (0.0, 0.9, 0.99),
    weight_decay: NonNegative = 0.0,
):
    r"""AggMo: SGD with the average of several momenta.

    $b^{(i)} \leftarrow \beta_i b^{(i)} + g$, $p \leftarrow p - \frac{\eta}{K} \sum_i b^{(i)}$.

    When to use: when momentum as large as 0.99 pays off but makes the loss oscillate: the faster buffers damp the
    slower ones.

    Args:
        lr: $\eta$ in [0, inf); the authors give no default.
        betas: $(\beta_1, \ldots, \beta_K)$, one or more, each in [0, 1). The paper uses $1 - 0.1^i$, i = 0, 1, ...
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer_0`,
        `momentum_buffer_1`, ..., in the order of `betas`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.aggmo(lr=0.1, betas=(0.0, 0.5))
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for _ in range(2):
        ...     updates, state = tx.update({"w": torch.tensor([4.0])}, state)
        >>> updates["w"]  # buffers of 4 and 6
        tensor([-0.5000])

    Source: Lucas et al. 2018, arXiv:1804.00325. Departures: equal betas each have their own buffer.
    """
    return with_decay(scale_by_aggmo(betas), weight_decay, False, lr)


@alias(class_name="QHM")
def qhm(
    lr: NonNegative,
    momentum: Decay = 0.999,
    nu: Scalar = 0.7,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
):
    r"""QHM, quasi-hyperbolic momentum: SGD with a mix of the gradient and its average.

    $b \leftarrow \beta b + (1-\beta) g$, $p \leftarrow p - \eta ((1-\nu) g + \nu b)$.

    When to use: instead of SGD with momentum: the paper's defaults tolerate a long memory, and the current gradient
    takes effect immediately.

    Args:
        lr: $\eta$ in [0, inf); about $1/(1-\beta)$ times the rate of `sgd`, whose momentum is a sum. The authors give
            no default.
        momentum: $\beta$ in [0, 1).
        nu: $\nu$, usually in [0, 1]: 0 is SGD, $\beta$ is Nesterov's momentum.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.qhm(lr=1.0, momentum=0.75, nu=0.5)
        >>> # half of 8, half of 8 / 4
        >>> tx.update({"w": torch.tensor([8.0])}, tx.init({"w": torch.zeros(1)}))[0]["w"]
        tensor([-5.])

    Source: Ma and Yarats 2018, arXiv:1810.06801. Departures: the defaults of momentum and nu are the paper's rule of
    thumb.
    """
    return with_decay(
        scale_by_qhm(momentum, nu), weight_decay, decoupled_weight_decay, lr
    )


@alias(class_name="QHAdam")
def qhadam(
    lr: NonNegative = 1e-3,
    betas: Decays = (0.9, 0.999),
    nus: tuple[Scalar, Fraction] = (1.0, 1.0),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
):
    r"""QHAdam: Adam whose averages are both mixed with the current gradient.

    $p \leftarrow p - \eta \frac{(1-\nu_1) g + \nu_1 \hat m}{\sqrt{(1-\nu_2) g^2 + \nu_2 \hat v} + \epsilon}$.

    When to use: when Adam is unstable or forgets too slowly: lower one of the nus slightly, without changing the betas.

    Args:
        lr: $\eta$ in [0, inf), approximately the change of each weight per step.
        betas: Decay rates of the two averages, each in [0, 1).
        nus: $(\nu_1, \nu_2)$; the second in [0, 1], usually the first as well. (1, 1) is Adam; the paper suggests (0.7,
            1).
        eps: $\epsilon \ge 0$, added outside the square root, in units of the gradient.
        weight_decay: $\lambda \ge 0$, added to the gradient unless decoupled.
        decoupled_weight_decay: Apply the decay to the weights instead of the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> # the gradient over Adam's root
        >>> tx, state = gradtx.qhadam(lr=0.1, nus=(0.0, 1.0)), {}
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 0.0):
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"].abs())
        tensor([0.1000])
        tensor([0.])

    Source: Ma and Yarats 2018, arXiv:1810.06801. Departures: none.
    """
    return with_decay(
        scale_by_qhadam(betas, nus, eps), weight_decay, decoupled_weight_decay, lr
    )


@alias(class_name="PID")
def pid(
    lr: NonNegative,
    momentum: NonNegative = 0.0,
    dampening: Scalar = 0.0,
    integral: Scalar = 5.0,
    derivative: Scalar = 10.0,
    weight_decay: NonNegative = 0.0,
):
    r"""PID: SGD as a PID controller, along the gradient, its sum with momentum, and its change.

    $p \leftarrow p - \eta (g_t + K_I I_t + K_D D_t)$ with $I_t = \mu I_{t-1} + (1-\tau) g_t$,
    $D_t = \mu D_{t-1} + (1-\mu)(g_t - g_{t-1})$; $I_1 = g_1$, $D_1 = 0$.

    When to use: when momentum overshoots: the derivative term slows down where gradients change. It adds two gains to
    tune.

    Args:
        lr: $\eta$ in [0, inf); the authors give no default.
        momentum: $\mu$ in [0, inf), below 1 in practice. With a literal 0.0, this is plain SGD, without the other
            terms.
        dampening: $\tau$, usually in [0, 1); not applied to the first step.
        integral: $K_I$, the weight of the sum, any number.
        derivative: $K_D$, the weight of the change, any number.
        weight_decay: $\lambda \ge 0$, added to the gradient.

    Returns:
        A transformation whose updates are added to the parameters. State: `momentum_buffer`, `d_buffer`,
        `previous_grad` (including the decay).

    Raises:
        ValueError: If a hyperparameter is out of range, or if `params` is missing and `weight_decay` is not 0.0.

    Example:
        >>> tx = gradtx.pid(lr=0.1, momentum=0.5)
        >>> state = tx.init({"w": torch.zeros(1)})
        >>> for grad in (1.0, 0.0):  # 1 + 5, then 5 / 2 - 10 / 2
        ...     updates, state = tx.update({"w": torch.tensor([grad])}, state)
        ...     print(updates["w"])
        tensor([-0.6000])
        tensor([0.2500])

    Source: An et al. 2018, "A PID controller approach for stochastic optimization of deep networks", CVPR. Departures:
    none from the paper; the authors' code starts $D$ from $g_2 - 0$. Their `nesterov` had no effect.
    """
    return with_decay(
        scale_by_pid(momentum, dampening, integral, derivative), weight_decay, False, lr
    )


@alias
def gravity(
    lr: NonNegative = 0.1, alpha: NonNegative = 0.01, beta: Decay = 0.9, seed: int = 0
):
    r"""Gravity: a moving average of gradients whose large entries are pushed back toward zero.

    $v \leftarrow \hat\beta v + (1-\hat\beta) g / (1 + (g \max|g|)^2)$ with $\hat\beta = \frac{\beta t + 1}{t + 2}$ and
    $v_0 \sim N(0, (\alpha/\eta)^2)$, $p \leftarrow p - \eta v$; the maximum is over each tensor.

    When to use: to try a bound on large entries of the gradient; the evidence is limited to small networks, so compare
    it with `sgd`.

    Args:
        lr: $\eta$ in [0, inf).
        alpha: $\alpha \ge 0$, the standard deviation of the initial movement of the weights; 0 starts from $v_0 = 0$.
        beta: $\beta$ in [0, 1), the limit of $\hat\beta$.
        seed: Seed of $v_0$, which also depends on the name of the parameter.

    Returns:
        A transformation whose updates are added to the parameters. State: `v`; shared by all leaves, `seed` and
        `counter`.

    Raises:
        ValueError: If a hyperparameter is out of range, or if `lr` is initially 0 and `alpha` is not.

    Example:
        >>> tx = gradtx.gravity(lr=0.1, alpha=0.0, beta=0.0)
        >>> tx.update({"w": torch.tensor([1.0, 30.0])}, tx.init({"w": torch.zeros(2)}))[0]["w"]
        tensor([-7.3992e-05, -2.4691e-06])

    Source: Bahrami and Pouriyan Zadeh 2021, arXiv:2101.09192. Departures: $v_0$ comes from gradtx's own random stream,
    not from torch's global generator.
    """
    return chain(scale_by_gravity(lr, alpha, beta, seed), scale_by_learning_rate(lr))
