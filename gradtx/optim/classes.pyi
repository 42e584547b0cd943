"""Types of this module, written by docs/stubs.py: run `make docs-tables`."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Annotated
from typing import Any
from typing import Literal
import torch
from gradtx.base.inputs import Params
from gradtx.arguments import Scalar
from gradtx.base.exact import Schedule
from gradtx.base.selectors import Where
from gradtx.arguments import AnyLength
from gradtx.arguments import AtLeastFour
from gradtx.arguments import AtLeastOne
from gradtx.arguments import AtLeastOneOrInf
from gradtx.arguments import Count
from gradtx.arguments import Decay
from gradtx.arguments import Decays
from gradtx.arguments import Fraction
from gradtx.arguments import FractionOffAtOne
from gradtx.arguments import NonNegative
from gradtx.arguments import NonNegativeInt
from gradtx.arguments import NonPositive
from gradtx.arguments import OpenFraction
from gradtx.arguments import Positive
from gradtx.arguments import PositiveOrInf
from gradtx.arguments import Static
from gradtx.state.storage import StateDtype
from gradtx.transform import GradientTransformation
from gradtx.optim.engine import Engine
from gradtx.optim.optimizer import ChainOptimizer
from gradtx.combinators.coordinates import Bases
from gradtx.combinators.coordinates import Carry
from gradtx.combinators.coordinates import Side
from gradtx.maths.polynomials import Coefficients
from gradtx.maths.polynomials import Steps
from gradtx.links.orthogonal import Adjustment
from gradtx.links.orthogonal import View
from gradtx.algorithms.muon_eq import Sides
from gradtx.algorithms.psgd import Mode
from gradtx.algorithms.sinkgd import Order
from gradtx.curvature.fisher import Likelihood
from gradtx.curvature.solves import Solve
from gradtx.curvature.terms import Reduction
from gradtx.curvature.terms import Weights
from gradtx.algorithms.scalable_shampoo import Graft

__all__ = [
    "A2Grad",
    "ACProp",
    "ADOPT",
    "ARO",
    "ASGD",
    "ASGO",
    "AccSGD",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdaFactor",
    "AdaGC",
    "AdaGO",
    "AdaHessian",
    "AdaMod",
    "AdaMuon",
    "AdaNorm",
    "AdaPNM",
    "AdaShift",
    "AdaSmooth",
    "AdaTAM",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adai",
    "Adam",
    "AdamAtan2",
    "AdamC",
    "AdamD",
    "AdamH",
    "AdamMini",
    "AdamP",
    "AdamS",
    "AdamW",
    "Adamax",
    "Adan",
    "AdaptiveGD",
    "AdoptAtan2",
    "AggMo",
    "AliG",
    "Amos",
    "Ano",
    "ApolloDQN",
    "ApolloLowRank",
    "Aurora",
    "AvaGrad",
    "BCOS",
    "CAME",
    "COCOB",
    "COSMOS",
    "Conda",
    "ContraMuon",
    "DAdaptAdaGrad",
    "DAdaptAdam",
    "DAdaptAdan",
    "DAdaptLion",
    "DAdaptSGD",
    "DPSGD",
    "DiffGrad",
    "Dion",
    "Dion2",
    "DistributedShampoo",
    "DoG",
    "DoWG",
    "Dogleg",
    "FAdam",
    "FOCUS",
    "FTRL",
    "Fira",
    "Fromage",
    "GPAAdamW",
    "GaLore",
    "GaussNewton",
    "Grams",
    "Gravity",
    "GrokFastAdamW",
    "HessianFree",
    "KLSOAP",
    "KLShampoo",
    "Kate",
    "KourkoutasAdamW",
    "LARS",
    "LBFGS",
    "LDoG",
    "LaProp",
    "Lamb",
    "LevenbergMarquardt",
    "Lion",
    "MADGRAD",
    "MARS",
    "MARSLion",
    "MSVAG",
    "MUD",
    "Mano",
    "MeZO",
    "MoMo",
    "MoMoAdam",
    "Mousse",
    "Muon",
    "MuonAdamAtan2",
    "MuonEq",
    "MuonH",
    "Muown",
    "NAMO",
    "NAMOD",
    "NAdam",
    "NaturalGradient",
    "Nero",
    "NoisySGD",
    "NorMuon",
    "NovoGrad",
    "OptimisticAdam",
    "OptimisticGradientDescent",
    "PAdam",
    "PID",
    "PNM",
    "PSGDKron",
    "PSGDPro",
    "PolarAdamAtan2",
    "PolarGrad",
    "Prodigy",
    "ProdigyScheduleFree",
    "QHAdam",
    "QHM",
    "RAdam",
    "RMSprop",
    "ROSE",
    "Ranger",
    "Ranger21",
    "Rprop",
    "SGD",
    "SGDP",
    "SGDS",
    "SGDSaI",
    "SGDW",
    "SM3",
    "SOAP",
    "SOAPLaProp",
    "SOAPMuon",
    "SPAM",
    "SPlus",
    "SRMM",
    "SWATS",
    "Sadam",
    "ScalableShampoo",
    "ScheduleFreeAdamW",
    "ScheduleFreePlus",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Scion",
    "Shampoo",
    "SignSGD",
    "Signum",
    "SimplifiedAdEMAMix",
    "SinkGD",
    "SophiaH",
    "SparseAdam",
    "SpectralSphere",
    "Spring",
    "StableAdamW",
    "StableSPAM",
    "TAM",
    "Tiger",
    "Yogi",
]

class AliasOptimizer(ChainOptimizer):
    _alias: Callable[..., GradientTransformation]

    def __init__(self, params: Params, *args: Any, **kwargs: Any) -> None: ...

CLASSES: Mapping[str, type[AliasOptimizer]]
ALIASES: dict[str, str]

def class_of_user(alias: Any) -> type[AliasOptimizer]: ...
def classes_of_users() -> Mapping[str, type[AliasOptimizer]]: ...

class A2Grad(AliasOptimizer):
    """A2Grad: Nesterov's accelerated gradient with steps damped by the deviation of gradients from their mean."""

    def __init__(
        self,
        params: Params,
        variant: Literal['uni', 'inc', 'exp'] = "uni",
        beta: NonNegative = 10.0,
        lips: Positive = 10.0,
        rho: Decay = 0.5,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ACProp(AliasOptimizer):
    """ACProp: the gradient divided by the deviation of earlier gradients from their mean."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-16,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = True,
        amsgrad: bool = False,
        momentum_update: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ADOPT(AliasOptimizer):
    r"""ADOPT: Adam that divides by the size of earlier gradients only, and therefore converges with any $\beta_2$."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.9999),
        eps: NonNegative = 1e-06,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        clip_exponent: NonNegative | None = 0.25,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ARO(AliasOptimizer):
    """ARO: a base direction in a rotated space whose rotation follows the momentum."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        weight_decay: NonNegative = 0.01,
        momentum: Decay = 0.95,
        nesterov: bool = False,
        base: Literal['sinkhorn', 'row'] = "sinkhorn",
        iterations: Count = 5,
        adjust_lr_fn: Adjustment | None = "none",
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ASGD(AliasOptimizer):
    """ASGD, equivalent to torch.optim.ASGD: SGD with a decaying rate that also averages its weights."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        lambd: NonNegative = 0.0001,
        alpha: NonNegative = 0.75,
        t0: NonNegative = 1000000.0,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ASGO(AliasOptimizer):
    """ASGO: Shampoo with one side: the momentum times the inverse root of the smaller Gram matrix's average."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        momentum: Decay = 0.9,
        beta2: Decay = 0.8,
        eps: Positive = 1e-10,
        weight_decay: NonNegative = 0.1,
        factor: NonNegative = 0.2,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AccSGD(AliasOptimizer):
    """AccSGD: accelerated SGD, a short step pulled toward an average of long steps."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative,
        kappa: AtLeastOne = 1000.0,
        xi: NonNegative = 10.0,
        small_const: Annotated[Scalar, '(0, 1]'] = 0.7,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdEMAMix(AliasOptimizer):
    """AdEMAMix: AdamW with a second average of gradients that remembers thousands of steps."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999, 0.9999),
        alpha: NonNegative = 2.0,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        alpha_warmup: NonNegativeInt | None = None,
        beta3_warmup: NonNegativeInt | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaBelief(AliasOptimizer):
    """AdaBelief: Adam that divides by the deviation of gradients from their mean."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-16,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = True,
        fixed_decay: bool = False,
        rectify: bool = True,
        degenerated_to_sgd: bool = True,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaBound(AliasOptimizer):
    """AdaBound, with amsgrad AMSBound: Adam whose rates are clipped ever more tightly to one SGD rate."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        final_lr: NonNegative = 0.1,
        gamma: Positive = 0.001,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        fixed_decay: bool = False,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaFactor(AliasOptimizer):
    """Adafactor as in the paper: factored second moments, clipped updates, and steps relative to the weights."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative | None = None,
        eps: tuple[Positive, NonNegative] = (1e-30, 0.001),
        clip_threshold: Positive = 1.0,
        decay_rate: NonPositive = -0.8,
        beta1: Decay | None = None,
        weight_decay: NonNegative = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaGC(AliasOptimizer):
    """AdaGC: AdamW on gradients whose norms are bounded by their history, leaf by leaf."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        beta: Decay = 0.98,
        lambda_abs: Positive = 1.0,
        lambda_rel: Positive = 1.05,
        warmup_steps: NonNegativeInt = 100,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaGO(AliasOptimizer):
    """AdaGO: Muon's direction with AdaGrad's step size, from the norms of all gradients so far."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.05,
        momentum: Decay = 0.95,
        nesterov: bool = False,
        weight_decay: NonNegative = 0.0,
        gamma: Positive = 10.0,
        eps: NonNegative = 0.0005,
        v0: Positive = 0.001,
        ns_coefficients: Coefficients = "simple",
        ns_steps: Steps | None = None,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaHessian(AliasOptimizer):
    """AdaHessian: Adam with the diagonal of the Hessian instead of the gradient in the denominator."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.15,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 0.0001,
        weight_decay: NonNegative = 0.0,
        hessian_power: Fraction = 1.0,
        update_period: Count = 1,
        spatial_average: bool = True,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
        seed: int = 0,
    ) -> None: ...

class AdaMod(AliasOptimizer):
    """AdaMod: Adam whose rate for each weight is at most the average of its past values."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        beta3: Decay = 0.999,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = True,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaMuon(AliasOptimizer):
    """AdaMuon: Muon with a second moment for every entry of its direction."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.02,
        weight_decay: NonNegative = 0.01,
        betas: Decays = (0.95, 0.999),
        nesterov: bool = True,
        eps: NonNegative = 1e-08,
        sign: bool = False,
        rescale: Literal['sqrt_min', 'rms'] | None = "sqrt_min",
        correct_bias: bool = True,
        ns_coefficients: Coefficients = "simple",
        ns_steps: Steps | None = None,
        adjust_lr_fn: Adjustment | None = "match_rms_adamw",
        ns_dtype: torch.dtype | None = None,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaNorm(AliasOptimizer):
    """AdamNorm: Adam that lengthens gradients shorter than usual before its first average."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        r: Decay = 0.95,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        accumulate_eps: bool = False,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaPNM(AliasOptimizer):
    """AdaPNM: positive-negative momentum over Adam's denominator."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: tuple[Decay, Decay, Fraction] = (0.9, 0.999, 1.0),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        amsgrad: bool = True,
        decoupled_weight_decay: bool = True,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaShift(AliasOptimizer):
    """AdaShift: the mean of the last n gradients, divided by the size of the gradients before those."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        keep_num: Count = 10,
        eps: NonNegative = 1e-10,
        reduce: Literal['max', 'mean', 'none'] = "max",
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaSmooth(AliasOptimizer):
    """AdaSmooth: RMSprop with a short memory for weights that move straight, and a long one where they oscillate."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.5, 0.99),
        eps: NonNegative = 1e-06,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        reset_every: Count | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaTAM(AliasOptimizer):
    """AdaTAM: Adam whose momentum gives less weight to gradients that point away from it."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        decay_rate: Decay = 0.9,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Adadelta(AliasOptimizer):
    """Adadelta, equivalent to torch.optim.Adadelta: step sizes that follow those of earlier steps."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        rho: Fraction = 0.9,
        eps: NonNegative = 1e-06,
        weight_decay: NonNegative = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Adafactor(AliasOptimizer):
    """Adafactor, equivalent to torch.optim.Adafactor: other bounds and slots, and a rate that caps the relative step."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        beta2_decay: NonPositive = -0.8,
        eps: tuple[NonNegative | None, NonNegative] = (None, 0.001),
        d: AtLeastOne = 1.0,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Adagrad(AliasOptimizer):
    """Adagrad, equivalent to torch.optim.Adagrad: the gradient over the root of the sum of all squares so far."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        lr_decay: NonNegative = 0.0,
        weight_decay: NonNegative = 0.0,
        initial_accumulator_value: NonNegative = 0.0,
        eps: NonNegative = 1e-10,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Adai(AliasOptimizer):
    """Adai: momentum SGD whose inertia, not its rate, adapts to the gradients of each entry."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative,
        betas: Decays = (0.1, 0.99),
        eps: OpenFraction = 0.001,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        dampening: Fraction = 1.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Adam(AliasOptimizer):
    """Adam, equivalent to torch.optim.Adam: the mean gradient over its root mean square."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        amsgrad: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        correct_bias: Static[bool] = True,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdamAtan2(AliasOptimizer):
    """Adam-atan2: Adam without eps, invariant to the scale of the loss, with options that preserve plasticity."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0001,
        betas: Decays = (0.9, 0.99),
        weight_decay: NonNegative = 0.0,
        regen_reg_rate: NonNegative = 0.0,
        decoupled_wd: bool = False,
        cautious_wd: bool = False,
        cautious_factor: FractionOffAtOne = 1.0,
        a: Positive = 1.27,
        b: Positive = 1.0,
        *,
        wasserstein_reg: bool = False,
        orthog_grad: bool = False,
        orig_grad_ema_beta: Decay = 0.9,
        clip_to_grok: bool = False,
        clip_to_grok_max_norm: Annotated[Scalar, '(1, inf)'] = 2.0,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdamC(AliasOptimizer):
    """AdamC: AdamW whose weight decay falls with the square of the learning rate."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.01,
        amsgrad: bool = False,
        max_lr: Positive | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdamD(AliasOptimizer):
    """AdamD: Adam without bias correction of its first moment, which acts as a built-in warm-up."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdamH(AliasOptimizer):
    """AdamH: Adam's direction in relative steps, with weights kept on their initial sphere."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        betas: Decays = (0.9, 0.95),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdamMini(AliasOptimizer):
    """Adam-mini: AdamW with one second moment per block of weights."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        block: Count | Literal['row', 'tensor'] = "row",
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdamP(AliasOptimizer):
    """AdamP: Adam without the radial part of its direction where weights appear scale-invariant."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        delta: NonNegative = 0.1,
        wd_ratio: NonNegative = 0.1,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdamS(AliasOptimizer):
    """AdamS: Adam with a decoupled decay scaled like its average adaptive rate (stable weight decay)."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0001,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdamW(AliasOptimizer):
    """AdamW, equivalent to torch.optim.AdamW: Adam with decoupled weight decay."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.01,
        amsgrad: bool = False,
        *,
        correct_bias: Static[bool] = True,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Adamax(AliasOptimizer):
    """AdaMax, equivalent to torch.optim.Adamax: Adam with a decaying maximum instead of the root mean square."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.002,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Adan(AliasOptimizer):
    """Adan: Adam with Nesterov momentum, estimated from the change of the gradient, and a proximal decay."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.98, 0.92, 0.99),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        max_grad_norm: Annotated[Scalar, '[0, inf]'] = 0.0,
        no_prox: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdaptiveGD(AliasOptimizer):
    """Adaptive gradient descent without descent: the step size follows the local smoothness of the loss."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.2,
        amplifier: NonNegative = 0.02,
        damping: Positive = 1.0,
        theta: PositiveOrInf = 1.0,
        eps: NonNegative = 1e-05,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AdoptAtan2(AliasOptimizer):
    """ADOPT-atan2: ADOPT with the arc tangent instead of its division and clamp."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0001,
        betas: Decays = (0.9, 0.99),
        weight_decay: NonNegative = 0.0,
        regen_reg_rate: NonNegative = 0.0,
        decoupled_wd: bool = True,
        cautious_factor: FractionOffAtOne = 1.0,
        a: Positive = 1.27,
        b: Positive = 1.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AggMo(AliasOptimizer):
    """AggMo: SGD with the average of several momenta."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative,
        betas: AnyLength[Decays] = (0.0, 0.9, 0.99),
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AliG(AliasOptimizer):
    """ALI-G: SGD whose rate is computed from the loss, for models that can reach a loss of 0."""

    def __init__(
        self,
        params: Params,
        max_lr: Annotated[Scalar, '[0, inf]'] | None = None,
        momentum: Decay = 0.0,
        adjusted_momentum: bool = False,
        eps: NonNegative = 1e-05,
        max_norm: PositiveOrInf | None = None,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Amos(AliasOptimizer):
    """Amos: Adam-like steps in units of the weights, with rate and decay that adapt to the progress of training."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        beta: Decay = 0.999,
        momentum: Decay = 0.0,
        extra_l2: NonNegative = 0.0,
        eta: Scalar | Callable[[torch.Size], float] | None = None,
        slot: Literal['scalar', 'rows', 'full'] = "scalar",
        c_coef: NonNegative = 0.25,
        d_coef: NonNegative = 0.25,
        eps: Positive = 2.350988701644575e-38,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Ano(AliasOptimizer):
    """Ano: steps along the sign of the momentum, with the size of Adam's normalized gradient."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0001,
        betas: Decays = (0.92, 0.99),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        logarithmic: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ApolloDQN(AliasOptimizer):
    """Apollo: momentum divided by a diagonal quasi-Newton estimate of the curvature, with a warm-up of the rate."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        beta: Decay = 0.9,
        eps: Positive = 0.0001,
        rebound: Literal['constant', 'belief'] = "constant",
        warmup: NonNegativeInt = 500,
        init_lr: NonNegative | None = None,
        weight_decay: NonNegative = 0.0,
        weight_decay_type: Literal['L2', 'decoupled', 'stable'] | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ApolloLowRank(AliasOptimizer):
    """APOLLO: the gradient itself, with one rate per row computed by a projected Adam."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-06,
        weight_decay: NonNegative = 0.0,
        rank: Count = 128,
        update_proj_gap: Count = 200,
        scale: NonNegative = 1.0,
        side: Side = "short",
        projection: Bases = "random",
        scale_type: Literal['channel', 'tensor'] = "channel",
        scale_front: bool = False,
        limit: AtLeastOne = 1.01,
        seed: int = 0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Aurora(AliasOptimizer):
    """Aurora: Muon whose update of a matrix that is not square also has rows, or columns, of equal norms."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.05,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        weight_decay: NonNegative = 0.025,
        balance: NonNegativeInt = 2,
        balance_power: NonNegative = 0.5,
        ns_coefficients: Coefficients = "newton_schulz",
        ns_steps: Steps | None = 12,
        adjust_lr_fn: Adjustment | None = "original",
        ns_dtype: torch.dtype | None = None,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class AvaGrad(AliasOptimizer):
    """AvaGrad: Adam with rates from earlier gradients, normalized to an overall scale that eps does not change."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.1,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 0.1,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        lagged_norm: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class BCOS(AliasOptimizer):
    """BCOS: a momentum divided by an estimate of its root mean square, with one slot less than Adam."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        beta: Decay = 0.9,
        beta2: Decay | None = None,
        eps: NonNegative = 1e-06,
        weight_decay: NonNegative = 0.1,
        mode: Literal['c', 'm', 'g'] = "c",
        simple_cond: bool = False,
        decoupled_weight_decay: bool = True,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class CAME(AliasOptimizer):
    """CAME: Adafactor with a momentum weighted by its agreement with updates."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0002,
        betas: Decays = (0.9, 0.999, 0.9999),
        eps: tuple[Positive, Positive] = (1e-30, 1e-16),
        clip_threshold: Positive = 1.0,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class COCOB(AliasOptimizer):
    """COCOB-Backprop: a step size per weight from bets on its gradients, without a learning rate."""

    def __init__(
        self,
        params: Params,
        alpha: NonNegative = 100.0,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class COSMOS(AliasOptimizer):
    """COSMOS: Adam in the leading directions of the gradients' columns, as in SOAP, and Muon for what is left of them."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        rank: Count = 64,
        lr_ratio: NonNegative = 0.1,
        gamma: NonNegative = 0.2,
        eps: NonNegative = 1e-08,
        nesterov: bool = True,
        weight_decay: NonNegative = 0.0,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Conda(AliasOptimizer):
    """Conda: Adam along the singular vectors of the momentum, on the shorter side of a matrix."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        weight_decay: NonNegative = 0.0,
        eps: NonNegative = 1e-08,
        update_proj_gap: Count = 2000,
        scale: NonNegative = 1.0,
        *,
        stagger: Static[bool] = False,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ContraMuon(AliasOptimizer):
    """Contra-Muon: Muon's direction minus a share of the momentum, so that small singular values weigh more."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0375,
        weight_decay: NonNegative = 0.0,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        contra: Scalar = 0.4,
        power_steps: Count = 5,
        ns_coefficients: Coefficients = "newton_schulz",
        ns_steps: Steps | None = None,
        adjust_lr_fn: Adjustment | None = "original",
        ns_dtype: torch.dtype | None = None,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class DAdaptAdaGrad(AliasOptimizer):
    """D-Adapt AdaGrad: AdaGrad with an automatic learning rate."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        momentum: Decay = 0.0,
        weight_decay: NonNegative = 0.0,
        eps: NonNegative = 1e-06,
        d0: Positive = 1e-06,
        growth_rate: AtLeastOneOrInf = float("inf"),
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class DAdaptAdam(AliasOptimizer):
    """D-Adapt Adam: Adam with an automatic learning rate."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        betas: Decays = (0.9, 0.999),
        eps: Positive = 1e-08,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        use_bias_correction: bool = False,
        d0: Positive = 1e-06,
        growth_rate: AtLeastOneOrInf = float("inf"),
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class DAdaptAdan(AliasOptimizer):
    """D-Adapt Adan: Adan with an automatic learning rate."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        betas: Decays = (0.98, 0.92, 0.99),
        eps: Positive = 1e-08,
        weight_decay: NonNegative = 0.02,
        no_prox: bool = False,
        d0: Positive = 1e-06,
        growth_rate: AtLeastOneOrInf = float("inf"),
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class DAdaptLion(AliasOptimizer):
    """D-Adapt Lion: Lion with an automatic learning rate."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        betas: Decays = (0.9, 0.99),
        weight_decay: NonNegative = 0.0,
        d0: Positive = 1e-06,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class DAdaptSGD(AliasOptimizer):
    """D-Adapt SGD: SGD with an automatic learning rate."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        momentum: Decay = 0.0,
        weight_decay: NonNegative = 0.0,
        d0: Positive = 1e-06,
        growth_rate: AtLeastOneOrInf = float("inf"),
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class DPSGD(AliasOptimizer):
    """DP-SGD: SGD on the noisy mean of clipped gradients of examples."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative,
        l2_norm_clip: Positive,
        noise_multiplier: NonNegative,
        seed: int = 0,
        momentum: Decay = 0.0,
        nesterov: bool = False,
        expected_batch_size: Static[Count] | None = None,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class DiffGrad(AliasOptimizer):
    """diffGrad: Adam that shortens its steps, down to half, where the gradient barely changes."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Dion(AliasOptimizer):
    """Dion: orthogonal directions of low rank from one step of power iteration, with error feedback."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        mu: Decay = 0.95,
        rank: Annotated[float | int, '(0, inf)'] = 1.0,
        weight_decay: NonNegative = 0.01,
        eps: NonNegative = 1e-08,
        adjust_lr_fn: Adjustment | None = "spectral",
        init: Literal['random', 'eye'] = "random",
        seed: int = 0,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Dion2(AliasOptimizer):
    """Dion2: Muon on the largest rows or columns of the momentum, the only ones to decay."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        fraction: Annotated[float | int, '(0, 1]'] = 0.25,
        ef_decay: Decay = 0.95,
        weight_decay: NonNegative = 0.01,
        select: Literal['rows', 'columns', 'short'] = "short",
        beta2: Decay | None = None,
        neuron_eps: NonNegative = 1e-08,
        ns_coefficients: Coefficients = "polar_express",
        ns_steps: int | None = None,
        adjust_lr_fn: Adjustment | None = "spectral",
        ns_dtype: torch.dtype | None = None,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class DistributedShampoo(AliasOptimizer):
    """Distributed Shampoo: blocks, roots of averaged statistics, and Adam's step lengths; Meta's form of Shampoo."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        betas: tuple[Decay, Fraction] = (0.9, 1.0),
        beta3: Decay | None = None,
        eps: NonNegative = 1e-12,
        weight_decay: NonNegative = 0.0,
        max_preconditioner_dim: Count = 1024,
        target_dims: Count = 1,
        precondition_frequency: Count = 1,
        start_preconditioning_step: Count | None = None,
        use_bias_correction: bool = True,
        exponent: Positive | None = None,
        pseudo_inverse: bool = False,
        graft: Literal['adam', 'rmsprop', 'adagrad', 'sgd'] | None = "adam",
        graft_beta2: Decay = 0.999,
        graft_eps: NonNegative = 1e-08,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class DoG(AliasOptimizer):
    """DoG: SGD whose rate is the distance from the initial weights over the norm of all gradients."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        reps_rel: Positive = 1e-06,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        init_eta: NonNegative | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class DoWG(AliasOptimizer):
    """DoWG: SGD whose rate is the squared distance from the initial weights over a weighted norm of gradients."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        eps: Positive = 0.0001,
        init_estim_sq_dist: Positive | None = None,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Dogleg(AliasOptimizer):
    """Dogleg: least squares with steps of a bounded length, of Gauss-Newton inside the bound."""

    def __init__(
        self,
        params: Params,
        radius: Positive = 1.0,
        reduction: Static[Reduction] = "sum",
        weights: Static[Weights | None] = None,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class FAdam(AliasOptimizer):
    """FAdam: Adam as natural gradient descent, with gradients and decay divided by the root of the Fisher information."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.1,
        clip: PositiveOrInf = 1.0,
        p: NonNegative = 0.5,
        eps2: NonNegative = 0.01,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class FOCUS(AliasOptimizer):
    """FOCUS: the sign of a momentum, plus an attraction to the average of the weights."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        betas: Decays = (0.9, 0.999),
        gamma: NonNegative = 0.1,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class FTRL(AliasOptimizer):
    """FTRL-Proximal: one rate per weight, and weights that are exactly 0."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        lr_power: NonPositive = -0.5,
        beta: NonNegative = 0.0,
        l1: NonNegative = 0.0,
        l2: NonNegative = 0.0,
        initial_accumulator_value: NonNegative = 0.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Fira(AliasOptimizer):
    """Fira: GaLore plus the rest of the gradient, scaled row by row as Adam scales the projection."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-06,
        weight_decay: NonNegative = 0.0,
        rank: Count = 128,
        update_proj_gap: Count = 200,
        scale: NonNegative = 0.25,
        side: Side = "short",
        projection: Bases = "svd",
        carry: Carry = "keep",
        limit: AtLeastOne = 1.01,
        seed: int = 0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Fromage(AliasOptimizer):
    """Fromage: every leaf rotates by a fixed angle, and keeps its norm if its gradient is orthogonal to it."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        p_bound: Positive | None = None,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class GPAAdamW(AliasOptimizer):
    """GPA-AdamW: AdamW with an exponential average of its weights, near which gradients are computed."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        mu_x: Decay = 0.9967,
        mu_y: OpenFraction = 0.7,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class GaLore(AliasOptimizer):
    """GaLore: Adam on gradients projected to a low rank."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-06,
        weight_decay: NonNegative = 0.0,
        rank: Count = 128,
        update_proj_gap: Count = 200,
        scale: NonNegative = 0.25,
        side: Side = "short",
        projection: Bases = "svd",
        carry: Carry = "keep",
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class GaussNewton(AliasOptimizer):
    """Gauss-Newton for least squares, and generalized Gauss-Newton for any convex loss of outputs."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        damping: NonNegative = 0.001,
        solve: Static[Solve] = "auto",
        scaling: Literal['identity', 'diagonal'] = "identity",
        decay: Decay | None = None,
        reduction: Static[Reduction] = "sum",
        weights: Static[Weights | None] = None,
        max_steps: Static[Count] = 100,
        tolerance: Static[float | None] = None,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Grams(AliasOptimizer):
    """Grams: steps as long as Adam's, in the direction of the gradient's signs."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-06,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Gravity(AliasOptimizer):
    """Gravity: a moving average of gradients whose large entries are pushed back toward zero."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.1,
        alpha: NonNegative = 0.01,
        beta: Decay = 0.9,
        seed: int = 0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class GrokFastAdamW(AliasOptimizer):
    """Grokfast: AdamW on gradients with an amplified slow component."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.01,
        alpha: Decay = 0.98,
        lamb: NonNegative = 2.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class HessianFree(AliasOptimizer):
    """Hessian-free optimization: Gauss-Newton steps for models whose matrices do not fit into memory."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        damping: Positive = 1.0,
        max_steps: Static[Count] = 50,
        stop: Literal['martens', 'never'] = "martens",
        warm_start: Fraction = 0.95,
        adapt: bool = True,
        reduction: Static[Reduction] = "sum",
        weights: Static[Weights | None] = None,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class KLSOAP(AliasOptimizer):
    """KL-SOAP: SOAP with factors that minimize a Kullback-Leibler divergence."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.003,
        betas: Decays = (0.95, 0.95),
        shampoo_beta: Decay | None = None,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.01,
        precondition_frequency: Count = 10,
        max_precondition_dim: Count = 10000,
        merge_dims: bool = False,
        correct_bias: bool = True,
        *,
        stagger: Static[bool] = False,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class KLShampoo(AliasOptimizer):
    """KL-Shampoo: momentum, whitened by factors that minimize a Kullback-Leibler divergence."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.003,
        betas: Decays = (0.95, 0.95),
        eps: NonNegative = 1e-08,
        adam_eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.01,
        precondition_frequency: Count = 10,
        max_precondition_dim: Count = 10000,
        merge_dims: bool = False,
        *,
        stagger: Static[bool] = False,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Kate(AliasOptimizer):
    """KATE: AdaGrad without the square root, with steps that do not depend on the scale of the data."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        delta: NonNegative = 0.0,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class KourkoutasAdamW(AliasOptimizer):
    """Kourkoutas-beta: AdamW that forgets squares sooner after a spike of a leaf's gradient."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        beta2_min: Decay = 0.9,
        spike_beta: Decay = 0.9,
        tiny_spike: NonNegative = 1e-08,
        warmup_steps: NonNegativeInt = 0,
        correct_bias: Literal[True, False, 'exact'] = True,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class LARS(AliasOptimizer):
    """LARS: SGD with momentum and one rate per leaf, from the norms of its weights and its gradient."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        momentum: NonNegative = 0.9,
        dampening: Scalar = 0.0,
        weight_decay: NonNegative = 0.0,
        nesterov: bool = False,
        trust_coefficient: Positive = 0.001,
        eps: NonNegative = 1e-08,
        trust_clip: bool = False,
        min_ndim: NonNegativeInt = 0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class LBFGS(AliasOptimizer):
    """L-BFGS: the gradient multiplied by an inverse Hessian estimated from the last steps."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        history: Count = 10,
        curvature: NonNegative = 1e-10,
        first: Literal['l1', 'none'] = "l1",
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class LDoG(AliasOptimizer):
    """L-DoG: DoG with a separate rate for every leaf."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        reps_rel: Positive = 1e-06,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        init_eta: NonNegative | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class LaProp(AliasOptimizer):
    """LaProp: the average of normalized gradients, where Adam normalizes the average."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0004,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-15,
        weight_decay: NonNegative = 0.0,
        amsgrad: bool = False,
        centered: bool = False,
        fixed_decay: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Lamb(AliasOptimizer):
    """LAMB: Adam's direction plus decay, rescaled to the norm of each leaf's weights."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-06,
        weight_decay: NonNegative = 0.0,
        bias_correction: bool = True,
        grad_averaging: bool = True,
        max_grad_norm: PositiveOrInf | None = None,
        trust_clip: bool = False,
        always_adapt: bool = True,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class LevenbergMarquardt(AliasOptimizer):
    """Levenberg-Marquardt: least squares with a damping that follows how well its steps decrease the loss."""

    def __init__(
        self,
        params: Params,
        damping: Positive = 0.001,
        rule: Literal['nielsen', 'marquardt', 'thresholds'] = "nielsen",
        scaling: Literal['identity', 'diagonal', 'running'] = "identity",
        solve: Static[Solve] = "auto",
        relative: bool = True,
        geodesic: Positive | None = None,
        accept: Scalar = 0.0,
        low: NonNegative = 0.25,
        high: NonNegative = 0.75,
        up: Positive | None = None,
        down: Positive | None = None,
        reduction: Static[Reduction] = "sum",
        weights: Static[Weights | None] = None,
        max_steps: Static[Count] = 100,
        tolerance: Static[float | None] = None,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Lion(AliasOptimizer):
    """Lion: the sign of an interpolated momentum, with decoupled weight decay."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0001,
        betas: Decays = (0.9, 0.99),
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class MADGRAD(AliasOptimizer):
    """MADGRAD: dual averaging from the initial weights, divided by the cube root of the sum of squares."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        momentum: Decay = 0.9,
        eps: NonNegative = 1e-06,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class MARS(AliasOptimizer):
    """MARS-AdamW: AdamW on gradients corrected by their change since the last step."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.003,
        betas: Decays = (0.95, 0.99),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        gamma: NonNegative = 0.025,
        amsgrad: bool = False,
        exact: bool = False,
        optimize_1d: bool = False,
        lr_1d: NonNegative | None = None,
        betas_1d: Decays = (0.9, 0.95),
        weight_decay_1d: NonNegative = 0.1,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class MARSLion(AliasOptimizer):
    """MARS-Lion: the sign of a momentum of gradients corrected by their change since the last step."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.003,
        beta: Decay = 0.95,
        weight_decay: NonNegative = 0.0,
        gamma: NonNegative = 0.025,
        exact: bool = False,
        optimize_1d: bool = False,
        lr_1d: NonNegative | None = None,
        betas_1d: Decays = (0.9, 0.95),
        eps: NonNegative = 1e-08,
        weight_decay_1d: NonNegative = 0.1,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class MSVAG(AliasOptimizer):
    """M-SVAG: momentum SGD that shortens the step of each weight by the share of variance in its gradient."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative,
        beta: Decay = 0.9,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class MUD(AliasOptimizer):
    """MUD: Muon whose momentum is orthogonalized by a triangular solution in place of an iteration."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        weight_decay: NonNegative = 0.01,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        passes: Count = 1,
        eps: NonNegative = 1e-08,
        adjust_lr_fn: Adjustment | None = "match_rms_adamw",
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Mano(AliasOptimizer):
    """Mano: momentum orthogonal to the weights and of equal norms, along rows and along columns in turn."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        weight_decay: NonNegative = 0.1,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        normalize_params: bool = False,
        eps: NonNegative = 1e-08,
        factor: NonNegative = 0.2,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class MeZO(AliasOptimizer):
    """MeZO: SGD on zero-order estimates, which finetunes in the memory of inference."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1e-06,
        scale: Positive = 0.001,
        samples: Static[Count] = 1,
        seed: Static[int] = 0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class MoMo(AliasOptimizer):
    """MoMo: SGD with momentum whose rate follows the value of the loss."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        beta: Decay = 0.9,
        weight_decay: NonNegative = 0.0,
        lb: Scalar = 0.0,
        bias_correction: bool = False,
        use_fstar: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class MoMoAdam(AliasOptimizer):
    """MoMo-Adam: Adam whose rate follows the value of the loss."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        lb: Scalar = 0.0,
        proximal_decay: bool = True,
        use_fstar: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Mousse(AliasOptimizer):
    """Mousse: Muon on the momentum as Shampoo's factors whiten it, whitened once more afterwards."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        weight_decay: NonNegative = 0.01,
        momentum: Decay = 0.95,
        nesterov: bool = False,
        beta: Decay = 0.95,
        alpha: NonNegative = 0.125,
        eps: Positive = 1e-10,
        precondition_frequency: Count = 10,
        sides: Literal['both', 'left', 'right'] = "both",
        correct_bias: bool = True,
        graft: bool = True,
        ns_coefficients: Coefficients = "quintic",
        ns_steps: Steps | None = None,
        adjust_lr_fn: Adjustment | None = "spectral",
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Muon(AliasOptimizer):
    """Muon, equivalent to torch.optim.Muon: the orthogonalized momentum of matrices."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        weight_decay: NonNegative = 0.1,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = (3.4445, -4.775, 2.0315),
        eps: NonNegative = 1e-07,
        ns_steps: Steps | None = None,
        adjust_lr_fn: Adjustment | None = None,
        ns_dtype: torch.dtype | None = torch.bfloat16,
        flatten: bool = False,
        fallback: GradientTransformation | None = None,
        view: View = "matrix",
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class MuonAdamAtan2(AliasOptimizer):
    """Muon with Adam-atan2: Muon for matrices, Adam-atan2 for all other leaves."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0001,
        betas: Decays = (0.9, 0.99),
        muon_lr: NonNegative | None = None,
        weight_decay: NonNegative = 0.0,
        decoupled_wd: bool = False,
        cautious_factor: FractionOffAtOne = 1.0,
        a: Positive = 1.27,
        b: Positive = 1.0,
        muon_beta1: Decay = 0.95,
        muon_beta2: Decay = 0.95,
        muon_steps: Steps = 5,
        muon_rms_factor: NonNegative = 0.2,
        use_normuon: bool = False,
        normuon_eps: NonNegative = 1e-10,
        matrix_ndims: tuple[Annotated[int, '[2, inf)'], ...] = (2, 3),
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class MuonEq(AliasOptimizer):
    """MuonEq: Muon whose momentum has rows, columns, or both, of equal norms before the iteration."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        weight_decay: NonNegative = 0.1,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        normalize: Sides = "row",
        power: Positive = 0.5,
        eps: NonNegative = 1e-08,
        clip: AtLeastOne | None = None,
        ns_coefficients: Coefficients = "simple",
        ns_steps: Steps | None = None,
        adjust_lr_fn: Adjustment | None = "match_rms_adamw",
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class MuonH(AliasOptimizer):
    """MuonH: Muon's direction in relative steps, with weights kept on their initial sphere."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = "simple",
        ns_steps: Steps | None = None,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Muown(AliasOptimizer):
    """Muown: Muon for the directions of rows, Adam for their lengths."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0003,
        momentum: Decay = 0.95,
        weight_decay: NonNegative = 0.0,
        betas: Decays = (0.9, 0.95),
        eps: NonNegative = 1e-08,
        ns_coefficients: Coefficients = "quintic",
        ns_steps: Steps | None = None,
        adjust_lr_fn: Adjustment | None = "max_dim",
        ns_dtype: torch.dtype | None = None,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class NAMO(AliasOptimizer):
    """NAMO: Muon's direction with one adaptive step size for each matrix."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0003,
        weight_decay: NonNegative = 0.01,
        betas: Decays = (0.95, 0.95),
        nesterov: bool = False,
        eps: NonNegative = 1e-08,
        correct_bias: bool = False,
        ns_coefficients: Coefficients = "quintic",
        ns_steps: Steps | None = None,
        adjust_lr_fn: Adjustment | None = "max_dim",
        ns_dtype: torch.dtype | None = None,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class NAMOD(AliasOptimizer):
    """NAMO-D: Muon's direction with one adaptive step size for each column."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        weight_decay: NonNegative = 0.1,
        betas: Decays = (0.95, 0.99),
        nesterov: bool = True,
        clamp: Fraction = 0.75,
        eps: NonNegative = 1e-08,
        factor: NonNegative = 0.2,
        ns_coefficients: Coefficients = "simple",
        ns_steps: Steps | None = None,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class NAdam(AliasOptimizer):
    """NAdam, equivalent to torch.optim.NAdam: Adam with a Nesterov momentum that rises over time."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.002,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        momentum_decay: NonNegative = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class NaturalGradient(AliasOptimizer):
    """Natural gradient descent, with the Fisher matrix of the model's outputs."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        damping: NonNegative = 0.001,
        fisher: Literal['type2', 'sampled', 'empirical'] = "type2",
        solve: Static[Solve] = "auto",
        likelihood: Likelihood | None = None,
        samples: Static[Count] = 1,
        seed: Static[int] = 0,
        max_steps: Static[Count] = 100,
        tolerance: Static[float | None] = None,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Nero(AliasOptimizer):
    """Nero: one rate per neuron, with the weights of each neuron kept at mean 0 and norm 1."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        beta: Decay = 0.999,
        constraints: bool = True,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class NoisySGD(AliasOptimizer):
    """Noisy SGD: gradients with Gaussian noise that decays over time."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative,
        eta: NonNegative = 0.01,
        gamma: NonNegative = 0.55,
        seed: int = 0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class NorMuon(AliasOptimizer):
    """NorMuon: Muon whose rows are normalized to the same size over time."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        weight_decay: NonNegative = 0.01,
        momentum: Decay = 0.95,
        beta2: Decay = 0.95,
        nesterov: bool = True,
        eps: NonNegative = 1e-10,
        axis: Literal['rows', 'long'] = "rows",
        rms: NonNegative | None = None,
        ns_coefficients: Coefficients = "simple",
        ns_steps: Steps | None = None,
        adjust_lr_fn: Adjustment | None = "original",
        ns_dtype: torch.dtype | None = None,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class NovoGrad(AliasOptimizer):
    """NovoGrad: momentum of gradients divided by a running norm of their leaf."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.95, 0.98),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        grad_averaging: bool = False,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class OptimisticAdam(AliasOptimizer):
    """Optimistic Adam: Adam that looks ahead by the last change of its direction."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        alpha: Scalar = 1.0,
        beta: Scalar = 1.0,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class OptimisticGradientDescent(AliasOptimizer):
    """Optimistic gradient descent: SGD that looks ahead by the last change of the gradient."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative,
        alpha: Scalar = 1.0,
        beta: Scalar = 1.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class PAdam(AliasOptimizer):
    """Padam: Adam that divides by a power of the root mean square, between Adam and SGD with momentum."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.1,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        partial: Annotated[Scalar, '[0, 0.5]; off at 0.5'] = 0.25,
        amsgrad: bool = True,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class PID(AliasOptimizer):
    """PID: SGD as a PID controller, along the gradient, its sum with momentum, and its change."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative,
        momentum: NonNegative = 0.0,
        dampening: Scalar = 0.0,
        integral: Scalar = 5.0,
        derivative: Scalar = 10.0,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class PNM(AliasOptimizer):
    """PNM, positive-negative momentum: SGD whose gradient noise is amplified by subtracting an older momentum."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative,
        betas: tuple[Decay, Fraction] = (0.9, 1.0),
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = True,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class PSGDKron(AliasOptimizer):
    """PSGD Kron: momentum whitened by triangular factors that are fitted by gradient descent."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0003,
        b1: Decay = 0.9,
        weight_decay: NonNegative = 0.0,
        precond_lr: NonNegative = 0.1,
        precond_init_scale: Positive = 1.0,
        precondition_frequency: Count | Literal['annealed'] = "annealed",
        balance_every: Count = 100,
        probes: Literal['expected', 'random'] = "expected",
        seed: int = 0,
        momentum_into_precond_update: bool = True,
        max_size_triangular: NonNegativeInt = 8192,
        min_ndim_triangular: NonNegativeInt = 2,
        memory_save_mode: Mode | None = None,
        merge_dims: bool = True,
        clip_rms: Positive = 1.1,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class PSGDPro(AliasOptimizer):
    """PSGD-PRO: momentum whitened by symmetric factors that are fitted without inverses."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.003,
        momentum: Decay = 0.9,
        weight_decay: NonNegative = 0.01,
        beta_lip: Decay = 0.9,
        precond_lr: NonNegative = 0.1,
        precond_init_scale: Positive = 1.0,
        damping_noise_scale: NonNegative = 0.1,
        min_precond_lr: NonNegative = 0.01,
        warmup_steps: Positive = 10000.0,
        max_update_rms: NonNegative = 0.0,
        max_precondition_dim: NonNegativeInt = 10000,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class PolarAdamAtan2(AliasOptimizer):
    """Polar Express with Adam-atan2: orthogonalized momentum for matrices, Adam-atan2 for all other leaves."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0001,
        betas: Decays = (0.9, 0.99),
        polar_lr: NonNegative | None = None,
        weight_decay: NonNegative = 0.0,
        decoupled_wd: bool = False,
        cautious_factor: FractionOffAtOne = 1.0,
        a: Positive = 1.27,
        b: Positive = 1.0,
        polar_beta1: Decay = 0.95,
        polar_steps: Steps = 5,
        polar_rms_factor: NonNegative = 0.2,
        matrix_ndims: tuple[Annotated[int, '[2, inf)'], ...] = (2, 3),
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class PolarGrad(AliasOptimizer):
    """PolarGrad: Muon's direction scaled by the nuclear norm of the momentum."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0003,
        momentum: Decay = 0.95,
        nesterov: bool = False,
        weight_decay: NonNegative = 0.01,
        method: Literal['newton_schulz', 'exact'] = "newton_schulz",
        alpha: NonNegative = 1.0,
        center_rows: bool = False,
        ns_coefficients: Coefficients = "quintic",
        ns_steps: Steps | None = None,
        ns_dtype: torch.dtype | None = None,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Prodigy(AliasOptimizer):
    """Prodigy: Adam with an automatic learning rate, found faster than by D-Adaptation."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        betas: Decays = (0.9, 0.999),
        beta3: Decay | None = None,
        eps: Positive = 1e-08,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: Positive = 1e-06,
        d_coef: Positive = 1.0,
        growth_rate: AtLeastOneOrInf = float("inf"),
        slice_p: Count = 1,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ProdigyScheduleFree(AliasOptimizer):
    """Prodigy with Schedule-Free: AdamW with neither a learning rate nor a schedule."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        betas: tuple[OpenFraction, Decay] = (0.9, 0.99),
        beta3: Decay | None = None,
        weight_decay: NonNegative = 0.0,
        d0: Positive = 1e-06,
        d_coef: Positive = 1.0,
        d_limiter: bool = True,
        prodigy_steps: NonNegativeInt = 0,
        decoupling_c: NonNegative = 0.0,
        eps: Positive | None = 1e-08,
        stable: bool = True,
        slice_p: Count = 11,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class QHAdam(AliasOptimizer):
    """QHAdam: Adam whose averages are both mixed with the current gradient."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        nus: tuple[Scalar, Fraction] = (1.0, 1.0),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class QHM(AliasOptimizer):
    """QHM, quasi-hyperbolic momentum: SGD with a mix of the gradient and its average."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative,
        momentum: Decay = 0.999,
        nu: Scalar = 0.7,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class RAdam(AliasOptimizer):
    """RAdam, equivalent to torch.optim.RAdam: plain momentum steps until Adam's step size is reliable."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        rho_threshold: AtLeastFour = 5.0,
        degenerated_to_sgd: bool = True,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class RMSprop(AliasOptimizer):
    """RMSprop, equivalent to torch.optim.RMSprop: the gradient over its root mean square, optionally with momentum."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        alpha: NonNegative = 0.99,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        momentum: NonNegative = 0.0,
        centered: bool = False,
        *,
        eps_in_root: bool = False,
        initial_accumulator_value: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ROSE(AliasOptimizer):
    """Rose: gradient descent where each row of a gradient is divided by its range."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        weight_decay: NonNegative = 0.0001,
        centralize: bool = True,
        stabilize: bool = True,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Ranger(AliasOptimizer):
    """Ranger: RAdam on centralized gradients, with lookahead."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.95, 0.999),
        eps: NonNegative = 1e-05,
        weight_decay: NonNegative = 0.0,
        alpha: Fraction = 0.5,
        k: Count = 6,
        n_sma_threshold: AtLeastFour = 5.0,
        use_gc: bool = True,
        gc_conv_only: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Ranger21(AliasOptimizer):
    """Ranger21: eight ideas in one chain, from adaptive clipping to lookahead, with its own learning rate schedule."""

    def __init__(
        self,
        params: Params,
        num_iterations: Count,
        lr: NonNegative = 0.001,
        beta0: Fraction = 0.9,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        use_softplus: bool = True,
        beta_softplus: Positive = 50.0,
        num_warm_up_iterations: NonNegativeInt | None = None,
        num_warm_down_iterations: NonNegativeInt | None = None,
        warm_down_min_lr: NonNegative = 3e-05,
        agc_clipping_value: Positive = 0.01,
        agc_eps: NonNegative = 0.001,
        centralize_gradients: bool = True,
        normalize_gradients: bool = True,
        lookahead_merge_time: Count = 5,
        lookahead_blending_alpha: Fraction = 0.5,
        weight_decay: NonNegative = 0.0001,
        norm_loss_factor: NonNegative = 0.0001,
        amsgrad: bool = True,
        chebyshev_epochs: Annotated[int, '[3, inf)'] | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Rprop(AliasOptimizer):
    """Rprop, equivalent to torch.optim.Rprop: steps from the signs of full gradients, not for mini-batches."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        etas: tuple[OpenFraction, Annotated[Scalar, '(1, inf)']] = (0.5, 1.2),
        step_sizes: tuple[NonNegative, NonNegative] = (1e-06, 50.0),
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SGD(AliasOptimizer):
    """SGD, equivalent to torch.optim.SGD: stochastic gradient descent with optional momentum."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        momentum: NonNegative = 0.0,
        dampening: Scalar = 0.0,
        weight_decay: NonNegative = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SGDP(AliasOptimizer):
    """SGDP: SGD with momentum, without the radial part of its direction where weights appear scale-invariant."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative,
        momentum: Decay = 0.0,
        dampening: Scalar = 0.0,
        weight_decay: NonNegative = 0.0,
        nesterov: bool = False,
        eps: NonNegative = 1e-08,
        delta: NonNegative = 0.1,
        wd_ratio: NonNegative = 0.1,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SGDS(AliasOptimizer):
    """SGDS: SGD whose decoupled decay grows with the momentum, as its steps do (stable weight decay)."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        momentum: Decay = 0.0,
        dampening: Fraction = 0.0,
        weight_decay: NonNegative = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SGDSaI(AliasOptimizer):
    """SGD-SaI: SGD with momentum and one rate per leaf, the signal-to-noise ratio of its first gradient."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        momentum: Decay = 0.9,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.01,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SGDW(AliasOptimizer):
    """SGDW: SGD with decoupled weight decay."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        momentum: NonNegative = 0.0,
        dampening: Scalar = 0.0,
        weight_decay: NonNegative = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SM3(AliasOptimizer):
    """SM3: Adagrad whose state is one vector per dimension instead of one number per weight."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.1,
        momentum: Decay = 0.0,
        beta: Decay = 0.0,
        eps: Positive = 1e-30,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SOAP(AliasOptimizer):
    """SOAP: Adam in the eigenbasis of Shampoo's statistics."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.003,
        betas: Decays = (0.95, 0.95),
        shampoo_beta: Decay | None = None,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.01,
        precondition_frequency: Count = 10,
        max_precondition_dim: Count = 10000,
        merge_dims: bool = False,
        precondition_1d: bool = False,
        normalize_gradient: bool = False,
        correct_bias: bool = True,
        *,
        stagger: Static[bool] = False,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SOAPLaProp(AliasOptimizer):
    """SOAP with LaProp instead of Adam: gradients are normalized in the eigenbasis first, then averaged."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.003,
        betas: Decays = (0.95, 0.95),
        shampoo_beta: Decay | None = None,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.01,
        precondition_frequency: Count = 10,
        max_precondition_dim: Count = 10000,
        merge_dims: bool = False,
        *,
        stagger: Static[bool] = False,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SOAPMuon(AliasOptimizer):
    """SOAP-Muon: the momentum divided by its root mean square in the gradients' eigenbasis, then orthogonalized."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.02,
        weight_decay: NonNegative = 0.0,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        beta2: Decay = 0.9,
        eps: NonNegative = 1e-08,
        precondition_frequency: Count = 1,
        max_precondition_dim: Count = 10000,
        ns_coefficients: Coefficients = "newton_schulz",
        ns_steps: Steps = 12,
        adjust_lr_fn: Adjustment | None = "original",
        fallback: GradientTransformation | None = None,
        *,
        stagger: Static[bool] = False,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SPAM(AliasOptimizer):
    """SPAM: AdamW that clips spikes of the gradient and resets its averages periodically."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-06,
        weight_decay: NonNegative = 0.0,
        threshold: Positive = 5000.0,
        clip_after: NonNegativeInt = 20,
        every: Count = 500,
        warmup_steps: NonNegativeInt = 150,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SPlus(AliasOptimizer):
    """SPlus: signs of the momentum in Shampoo's eigenbases, and an average of the weights for evaluation."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.1,
        betas: Decays = (0.9, 0.999),
        weight_decay: NonNegative = 0.01,
        ema_rate: Decay = 0.999,
        inverse_steps: Count = 100,
        nonstandard_constant: NonNegative = 0.001,
        max_dim: Count = 10000,
        *,
        stagger: Static[bool] = False,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SRMM(AliasOptimizer):
    """SRMM: stochastic regularized majorization-minimization, a step from averaged weights along averaged gradients."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        beta: NonNegative = 0.5,
        memory_length: Count | None = 100,
        proximal: NonNegative = 0.0,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SWATS(AliasOptimizer):
    """SWATS: Adam that switches to SGD with momentum once the equivalent SGD rate has settled."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-09,
        weight_decay: NonNegative = 0.0,
        amsgrad: bool = False,
        switch_tol: NonNegative | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Sadam(AliasOptimizer):
    """Sadam: Adam that divides by a softplus of the root mean square and needs no eps; with amsgrad, SAMSGrad."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.1,
        betas: Decays = (0.9, 0.999),
        beta_softplus: Positive = 50.0,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ScalableShampoo(AliasOptimizer):
    """Scalable Shampoo: blocks, averaged statistics, rare roots, and step lengths grafted from a simpler method."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: tuple[Fraction, Fraction] = (0.9, 0.999),
        moving_average_for_momentum: bool = False,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        inverse_exponent_override: NonNegativeInt = 0,
        start_preconditioning_step: NonNegativeInt = 25,
        preconditioning_compute_steps: Count = 1000,
        statistics_compute_steps: Count = 1,
        block_size: Count = 512,
        skip_preconditioning_rank_lt: NonNegativeInt = 1,
        no_preconditioning_for_layers_with_dim_gt: NonNegativeInt = 8192,
        shape_interpretation: bool = True,
        graft_type: Graft = "sgd",
        pre_conditioner_type: Literal['all', 'input', 'output'] = "all",
        nesterov: bool = True,
        diagonal_eps: NonNegative = 1e-10,
        matrix_eps: Positive = 1e-06,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ScheduleFreeAdamW(AliasOptimizer):
    """Schedule-Free AdamW: AdamW that averages its weights instead of following a schedule."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0025,
        betas: tuple[OpenFraction, Decay] = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        warmup_steps: NonNegativeInt = 0,
        r: NonNegative = 0.0,
        weight_lr_power: NonNegative = 2.0,
        decoupling_c: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ScheduleFreePlus(AliasOptimizer):
    """ScheduleFree+: Schedule-Free AdamW whose rate follows from the loss, as in Polyak's step size."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        betas: Decays = (0.9, 0.95),
        sf_beta1: OpenFraction = 0.9,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        r: NonNegative = 0.0,
        polyak_beta: Decay = 0.0,
        c_warmup: NonNegativeInt = 0,
        sf_beta1_anneal_steps: NonNegativeInt = 0,
        sf_beta1_max: OpenFraction = 0.965,
        weight_lr_power: NonNegative = 2.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ScheduleFreeRAdam(AliasOptimizer):
    """Schedule-Free RAdam: AdamW with neither a schedule nor a warm-up."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0025,
        betas: tuple[OpenFraction, Decay] = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        r: NonNegative = 0.0,
        weight_lr_power: NonNegative = 2.0,
        silent_sgd_phase: bool = True,
        decoupling_c: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class ScheduleFreeSGD(AliasOptimizer):
    """Schedule-Free SGD: SGD that averages its weights instead of following a schedule."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 1.0,
        momentum: OpenFraction = 0.9,
        weight_decay: NonNegative = 0.0,
        warmup_steps: NonNegativeInt = 0,
        r: NonNegative = 0.0,
        weight_lr_power: NonNegative = 2.0,
        decoupling_c: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Scion(AliasOptimizer):
    """Scion: steps of a fixed size in a norm that suits the layer, with weights in a ball of that norm."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        momentum: FractionOffAtOne = 0.1,
        scale: NonNegative = 1.0,
        unconstrained: bool = False,
        kinds: Static[Mapping[str, Any]] | None = None,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Shampoo(AliasOptimizer):
    """Shampoo: a full-matrix preconditioner for every dimension of a leaf."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.1,
        momentum: Decay = 0.0,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        matrix_eps: Positive = 0.0001,
        preconditioning_compute_steps: Count = 1,
        variant: Literal['paper', 'moskomule'] = "paper",
        *,
        stagger: Static[bool] = False,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SignSGD(AliasOptimizer):
    """signSGD: every weight moves by the learning rate against its gradient."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = True,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Signum(AliasOptimizer):
    """Signum: every weight moves by the learning rate against its momentum."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        momentum: Decay = 0.9,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = True,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SimplifiedAdEMAMix(AliasOptimizer):
    """Simplified AdEMAMix: AdamW with one long sum of gradients, and extra weight on the newest."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.99, 0.95),
        alpha: NonNegative = 0.0,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        min_beta1: Decay = 0.9,
        beta1_warmup: NonNegativeInt | None = None,
        bias_correction1: bool = False,
        bias_correction2: bool = True,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SinkGD(AliasOptimizer):
    """SinkGD: gradients whose rows and columns all have root mean square 1, without state."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        momentum: Decay = 0.0,
        weight_decay: NonNegative = 0.0,
        nesterov: bool = False,
        iterations: Count = 5,
        order: Order = "long",
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SophiaH(AliasOptimizer):
    """Sophia-H: the mean gradient over the mean of the Hessian's diagonal, clipped entry by entry."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.0006,
        betas: Decays = (0.96, 0.99),
        gamma: NonNegative = 0.01,
        eps: NonNegative = 1e-12,
        weight_decay: NonNegative = 0.1,
        update_period: Count = 10,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
        seed: int = 0,
    ) -> None: ...

class SparseAdam(AliasOptimizer):
    """SparseAdam, equivalent to torch.optim.SparseAdam: Adam on the rows of a table that have a gradient."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class SpectralSphere(AliasOptimizer):
    """Spectral sphere optimizer: Muon for matrices whose largest singular value stays the same."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.005,
        momentum: Decay = 0.9,
        nesterov: bool = True,
        weight_decay: NonNegative = 0.0,
        radius_scale: Positive = 1.0,
        power_steps: Count = 10,
        ns_coefficients: Coefficients = "polar_express",
        ns_steps: Steps | None = 8,
        ns_dtype: torch.dtype | None = None,
        fallback: GradientTransformation | None = None,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Spring(AliasOptimizer):
    """SPRING: natural gradients in sample space with momentum, for wave functions and physics-informed fits."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        damping: Positive = 0.001,
        mu: Decay = 0.99,
        norm_constraint: Positive | None = 0.001,
        centered: bool = False,
        weights: Static[Weights | None] = None,
        *,
        maximize: bool = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class StableAdamW(AliasOptimizer):
    """StableAdamW: AdamW with shorter steps where its second moment lags behind the gradient."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.99),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.01,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class StableSPAM(AliasOptimizer):
    """Stable-SPAM: AdamW on gradients bounded by their history, restarted periodically."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        gammas: Decays = (0.7, 0.9),
        theta: Decay = 0.999,
        every: Count = 1000,
        total_steps: Count | None = None,
        eta_min: Fraction = 0.5,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class TAM(AliasOptimizer):
    """TAM: SGD whose momentum gives less weight to gradients that point away from it."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        momentum: Decay = 0.9,
        decay_rate: Decay = 0.9,
        eps: NonNegative = 1e-08,
        weight_decay: NonNegative = 0.0,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Tiger(AliasOptimizer):
    """Tiger: `signum` with a longer memory and decoupled weight decay."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.001,
        beta: Decay = 0.965,
        weight_decay: NonNegative = 0.01,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...

class Yogi(AliasOptimizer):
    """Yogi: Adam whose mean square changes by at most the new squared gradient."""

    def __init__(
        self,
        params: Params,
        lr: NonNegative = 0.01,
        betas: Decays = (0.9, 0.999),
        eps: NonNegative = 0.001,
        initial_accumulator_value: NonNegative = 1e-06,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        mask: Where | None = None,
        cautious_decay: Literal[True, False, "inclusive"] = False,
        state_dtype: StateDtype | None = None,
        compile: bool | Engine = False,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ) -> None: ...
