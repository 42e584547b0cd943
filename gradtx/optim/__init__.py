"""Transformations as torch optimizers: `as_optimizer` for any chain, and a drop-in class for every alias."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from gradtx.core import GradientTransformation, chain
from gradtx.optim._doubts import warn_of_turned_signs
from gradtx.optim._groups import REFUSED, refused
from gradtx.optim.adapter import ChainOptimizer
from gradtx.optimizers.adafactor import adafactor, adafactor_torch
from gradtx.optimizers.adam import adam, adam_atan2, adamp, adamw, adopt, adopt_atan2, sgdp
from gradtx.optimizers.adam_relatives import adabelief, adamd, adams, diffgrad, radam, sadam, yogi
from gradtx.optimizers.adaptive import adabound, adamod, adanorm, adashift, adasmooth, avagrad, swats
from gradtx.optimizers.averaging import madgrad, srmm
from gradtx.optimizers.classic import adadelta, adagrad, adamax, nadam, rmsprop, rprop
from gradtx.optimizers.diagonal import acprop, bcos, fadam, kate
from gradtx.optimizers.directed import adatam, focus, sgd_sai, tam
from gradtx.optimizers.inertia import adai, adan, lion
from gradtx.optimizers.layerwise import amos, fromage, lamb, lars, nero, novograd, sm3
from gradtx.optimizers.learning_rate_free import (
    alig,
    dadapt_adagrad,
    dadapt_adam,
    dadapt_adan,
    dadapt_lion,
    dadapt_sgd,
    prodigy,
)
from gradtx.optimizers.matrix import muon, muon_adam_atan2, polar_adam_atan2, scalable_shampoo, shampoo, soap
from gradtx.optimizers.momentum import accsgd, aggmo, gravity, pid, qhadam, qhm
from gradtx.optimizers.noisy import noisy_sgd
from gradtx.optimizers.optimistic import optimistic_adam, optimistic_gradient_descent
from gradtx.optimizers.parameter_free import cocob, dog, dowg, ldog, momo, momo_adam
from gradtx.optimizers.positive_negative import adapnm, pnm
from gradtx.optimizers.quasi_newton import apollo
from gradtx.optimizers.ranger import ranger, ranger21
from gradtx.optimizers.schedule_free import schedule_free_adamw, schedule_free_radam, schedule_free_sgd
from gradtx.optimizers.second_order import adahessian, sophia
from gradtx.optimizers.sgd import adaptive_gd, asgd, sgd, sgds, sgdw
from gradtx.optimizers.variance import a2grad, msvag

__all__ = [
    "ADOPT",
    "ASGD",
    "BCOS",
    "COCOB",
    "FOCUS",
    "LARS",
    "MADGRAD",
    "MSVAG",
    "PID",
    "PNM",
    "QHM",
    "SGD",
    "SGDP",
    "SGDS",
    "SGDW",
    "SM3",
    "SOAP",
    "SRMM",
    "SWATS",
    "TAM",
    "A2Grad",
    "ACProp",
    "AccSGD",
    "AdaBelief",
    "AdaBound",
    "AdaFactor",
    "AdaHessian",
    "AdaMod",
    "AdaNorm",
    "AdaPNM",
    "AdaShift",
    "AdaSmooth",
    "AdaTAM",
    "Adadelta",
    "AdafactorTorch",
    "Adagrad",
    "Adai",
    "Adam",
    "AdamAtan2",
    "AdamD",
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
    "ApolloDQN",
    "AvaGrad",
    "ChainOptimizer",
    "DAdaptAdaGrad",
    "DAdaptAdam",
    "DAdaptAdan",
    "DAdaptLion",
    "DAdaptSGD",
    "DiffGrad",
    "DoG",
    "DoWG",
    "FAdam",
    "Fromage",
    "Gravity",
    "Kate",
    "LDoG",
    "Lamb",
    "Lion",
    "MoMo",
    "MoMoAdam",
    "Muon",
    "MuonAdamAtan2",
    "NAdam",
    "Nero",
    "NoisySGD",
    "NovoGrad",
    "OptimisticAdam",
    "OptimisticGradientDescent",
    "PolarAdamAtan2",
    "Prodigy",
    "QHAdam",
    "RAdam",
    "RMSprop",
    "Ranger",
    "Ranger21",
    "Rprop",
    "SGDSaI",
    "Sadam",
    "ScalableShampoo",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Shampoo",
    "SophiaH",
    "Yogi",
    "as_optimizer",
]


def as_optimizer(
    tx: GradientTransformation, params: Any, *, compile: bool | str | Mapping[str, Any] = False, seed: int = 0
) -> ChainOptimizer:
    """Wrap any transformation as a real `torch.optim.Optimizer`.

    Parameter groups hold the hyperparameters (`tx.hyperparams`) as numbers; whoever writes them, such as torch's LR
    schedulers, is obeyed at the next step. State is per parameter and flat, as torch's.

    Args:
        tx: A transformation whose updates are to be added to the parameters.
        params: `model.parameters()`, `model.named_parameters()` (for name patterns), or a list of group dicts, each
            with "params" and hyperparameters of its own.
        compile: True for steps through torch's compiler, in place and at the speed of fused kernels; or a mode of
            `torch.compile` ("max-autotune"), or a dict of its options. The first step compiles, about 10 s for chains
            that work element by element and up to 30 s for those that work by rows; later processes find most of it
            in torch's cache on disk. Without a working compiler there is one warning, and steps run eagerly.
        seed: Of the random vectors for links that need `hessian_diag`, when the optimizer estimates it. Shown in the
            groups as `hessian_seed`, and saved with them. The Hessian is that of the loss whose `backward` ran: use
            no GradScaler.

    Warns of links that would turn the sign twice (a learning rate, or a decay, behind a learning rate), and of a key in
    a group that looks like a hyperparameter's name and is none; other unknown keys are kept.

    Raises:
        TypeError: `tx` is no transformation, or something that is no tensor.
        ValueError: an unknown mode, no parameters, a parameter twice, a hyperparameter out of range, a pattern without
            a match.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=1e-2))
        >>> optimizer = gradtx.as_optimizer(tx, model.named_parameters())
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.param_groups[0]["lr"], sorted(optimizer.state[model.bias])
        (0.01, ['exp_avg', 'exp_avg_sq', 'step'])
    """
    optimizer = ChainOptimizer(tx, params, compile=compile, seed=seed)
    warn_of_turned_signs(tx)
    return optimizer


class AliasOptimizer(ChainOptimizer):
    """Base of the classes below: `class Name(AliasOptimizer, alias=name)` takes `params` and the alias's arguments."""

    _alias: Callable[..., GradientTransformation]
    _seeded = False  # whether `seed` is the optimizer's own; else it is an argument of the alias, if anything

    def __init_subclass__(cls, alias: Any = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if alias is None:  # a user's subclass of one of the classes below
            if "__init__" in cls.__dict__:
                _, *own = inspect.signature(cls.__init__).parameters.values()
                cls.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
            return
        cls._alias = staticmethod(alias)
        cls.__doc__ = (
            f"`gradtx.{alias.__name__}` as a torch optimizer: `{cls.__name__}(params, ...)`.\n\n    {alias.__doc__}"
        )
        own = inspect.signature(alias)
        params = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        engine = [inspect.Parameter("compile", inspect.Parameter.KEYWORD_ONLY, default=False, annotation="bool")]
        example = alias.spec.example
        options: Any = example(chain()) if callable(example) else example
        if "hessian_diag" in alias(**options).needs:
            cls._seeded = True
            engine.append(inspect.Parameter("seed", inspect.Parameter.KEYWORD_ONLY, default=0, annotation="int"))
        cls.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[params, *own.parameters.values(), *engine], return_annotation=own.empty
        )

    def __init__(self, params: Any, *args: Any, compile: bool | str | Mapping[str, Any] = False, **kwargs: Any):
        for option in REFUSED:
            if option in kwargs:
                raise refused(option, kwargs[option])
        seed = kwargs.pop("seed", 0) if self._seeded else 0
        super().__init__(self._alias(*args, **kwargs), params, compile=compile, seed=seed)


class SGD(AliasOptimizer, alias=sgd): ...


class SGDW(AliasOptimizer, alias=sgdw): ...


class Adam(AliasOptimizer, alias=adam): ...


class AdamW(AliasOptimizer, alias=adamw): ...


class AdamP(AliasOptimizer, alias=adamp): ...


class SGDP(AliasOptimizer, alias=sgdp): ...


class AdamAtan2(AliasOptimizer, alias=adam_atan2): ...


class ADOPT(AliasOptimizer, alias=adopt): ...


class AdoptAtan2(AliasOptimizer, alias=adopt_atan2): ...


class RAdam(AliasOptimizer, alias=radam): ...


class AdaBelief(AliasOptimizer, alias=adabelief): ...


class Yogi(AliasOptimizer, alias=yogi): ...


class AdamD(AliasOptimizer, alias=adamd): ...


class DiffGrad(AliasOptimizer, alias=diffgrad): ...


class Sadam(AliasOptimizer, alias=sadam): ...


class AdamS(AliasOptimizer, alias=adams): ...


class SGDS(AliasOptimizer, alias=sgds): ...


class A2Grad(AliasOptimizer, alias=a2grad): ...


class AdaBound(AliasOptimizer, alias=adabound): ...


class AdaMod(AliasOptimizer, alias=adamod): ...


class AdaNorm(AliasOptimizer, alias=adanorm): ...


class AdaShift(AliasOptimizer, alias=adashift): ...


class AdaSmooth(AliasOptimizer, alias=adasmooth): ...


class ApolloDQN(AliasOptimizer, alias=apollo): ...


class AvaGrad(AliasOptimizer, alias=avagrad): ...


class MSVAG(AliasOptimizer, alias=msvag): ...


class SWATS(AliasOptimizer, alias=swats): ...


class Adadelta(AliasOptimizer, alias=adadelta): ...


class Adagrad(AliasOptimizer, alias=adagrad): ...


class Adamax(AliasOptimizer, alias=adamax): ...


class NAdam(AliasOptimizer, alias=nadam): ...


class RMSprop(AliasOptimizer, alias=rmsprop): ...


class Rprop(AliasOptimizer, alias=rprop): ...


class AccSGD(AliasOptimizer, alias=accsgd): ...


class AggMo(AliasOptimizer, alias=aggmo): ...


class Gravity(AliasOptimizer, alias=gravity): ...


class PID(AliasOptimizer, alias=pid): ...


class QHAdam(AliasOptimizer, alias=qhadam): ...


class QHM(AliasOptimizer, alias=qhm): ...


class Lamb(AliasOptimizer, alias=lamb): ...


class LARS(AliasOptimizer, alias=lars): ...


class NovoGrad(AliasOptimizer, alias=novograd): ...


class Nero(AliasOptimizer, alias=nero): ...


class Fromage(AliasOptimizer, alias=fromage): ...


class SM3(AliasOptimizer, alias=sm3): ...


class Amos(AliasOptimizer, alias=amos): ...


class Lion(AliasOptimizer, alias=lion): ...


class Adan(AliasOptimizer, alias=adan): ...


class Adai(AliasOptimizer, alias=adai): ...


class ASGD(AliasOptimizer, alias=asgd): ...


class AdaptiveGD(AliasOptimizer, alias=adaptive_gd): ...


class PNM(AliasOptimizer, alias=pnm): ...


class AdaPNM(AliasOptimizer, alias=adapnm): ...


class SRMM(AliasOptimizer, alias=srmm): ...


class MADGRAD(AliasOptimizer, alias=madgrad): ...


class AliG(AliasOptimizer, alias=alig): ...


class DAdaptAdaGrad(AliasOptimizer, alias=dadapt_adagrad): ...


class DAdaptAdam(AliasOptimizer, alias=dadapt_adam): ...


class DAdaptSGD(AliasOptimizer, alias=dadapt_sgd): ...


class DAdaptAdan(AliasOptimizer, alias=dadapt_adan): ...


class DAdaptLion(AliasOptimizer, alias=dadapt_lion): ...


class Prodigy(AliasOptimizer, alias=prodigy): ...


class ScheduleFreeSGD(AliasOptimizer, alias=schedule_free_sgd): ...


class ScheduleFreeAdamW(AliasOptimizer, alias=schedule_free_adamw): ...


class AdaHessian(AliasOptimizer, alias=adahessian): ...


class SophiaH(AliasOptimizer, alias=sophia): ...


class Ranger(AliasOptimizer, alias=ranger): ...


class Ranger21(AliasOptimizer, alias=ranger21): ...


class AdaFactor(AliasOptimizer, alias=adafactor): ...


class AdafactorTorch(AliasOptimizer, alias=adafactor_torch): ...


class Muon(AliasOptimizer, alias=muon): ...


class MuonAdamAtan2(AliasOptimizer, alias=muon_adam_atan2): ...


class PolarAdamAtan2(AliasOptimizer, alias=polar_adam_atan2): ...


class ScalableShampoo(AliasOptimizer, alias=scalable_shampoo): ...


class Shampoo(AliasOptimizer, alias=shampoo): ...


class SOAP(AliasOptimizer, alias=soap): ...


class ACProp(AliasOptimizer, alias=acprop): ...


class BCOS(AliasOptimizer, alias=bcos): ...


class FAdam(AliasOptimizer, alias=fadam): ...


class Kate(AliasOptimizer, alias=kate): ...


class AdaTAM(AliasOptimizer, alias=adatam): ...


class FOCUS(AliasOptimizer, alias=focus): ...


class SGDSaI(AliasOptimizer, alias=sgd_sai): ...


class TAM(AliasOptimizer, alias=tam): ...


class NoisySGD(AliasOptimizer, alias=noisy_sgd): ...


class OptimisticAdam(AliasOptimizer, alias=optimistic_adam): ...


class OptimisticGradientDescent(AliasOptimizer, alias=optimistic_gradient_descent): ...


class COCOB(AliasOptimizer, alias=cocob): ...


class DoG(AliasOptimizer, alias=dog): ...


class DoWG(AliasOptimizer, alias=dowg): ...


class LDoG(AliasOptimizer, alias=ldog): ...


class MoMo(AliasOptimizer, alias=momo): ...


class MoMoAdam(AliasOptimizer, alias=momo_adam): ...


class ScheduleFreeRAdam(AliasOptimizer, alias=schedule_free_radam): ...
