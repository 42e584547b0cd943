"""Transformations as torch optimizers: `as_optimizer` for any chain, and a drop-in class for every alias."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from gradtx.core import GradientTransformation
from gradtx.optim._groups import REFUSED, refused
from gradtx.optim.adapter import ChainOptimizer
from gradtx.optimizers.adafactor import adafactor, adafactor_torch
from gradtx.optimizers.adam import adam, adam_atan2, adamp, adamw, adopt, adopt_atan2, sgdp
from gradtx.optimizers.classic import adadelta, adagrad, adamax, nadam, rmsprop, rprop
from gradtx.optimizers.matrix import muon, muon_adam_atan2, polar_adam_atan2, scalable_shampoo, shampoo, soap
from gradtx.optimizers.momentum import accsgd, aggmo, gravity, pid, qhadam, qhm
from gradtx.optimizers.sgd import sgd, sgdw

__all__ = [
    "ADOPT",
    "PID",
    "QHM",
    "SGD",
    "SGDP",
    "SGDW",
    "SOAP",
    "AccSGD",
    "AdaFactor",
    "Adadelta",
    "AdafactorTorch",
    "Adagrad",
    "Adam",
    "AdamAtan2",
    "AdamP",
    "AdamW",
    "Adamax",
    "AdoptAtan2",
    "AggMo",
    "ChainOptimizer",
    "Gravity",
    "Muon",
    "MuonAdamAtan2",
    "NAdam",
    "PolarAdamAtan2",
    "QHAdam",
    "RMSprop",
    "Rprop",
    "ScalableShampoo",
    "Shampoo",
    "as_optimizer",
]


def as_optimizer(tx: GradientTransformation, params: Any, *, compile: bool = False) -> ChainOptimizer:
    """Wrap any transformation as a real `torch.optim.Optimizer`.

    Parameter groups hold the hyperparameters (`tx.hyperparams`) as numbers; whoever writes them, such as torch's LR
    schedulers, is obeyed at the next step. State is per parameter and flat, as torch's.

    Args:
        tx: A transformation whose updates are to be added to the parameters.
        params: `model.parameters()`, `model.named_parameters()` (for name patterns), or a list of group dicts, each
            with "params" and hyperparameters of its own.
        compile: Reserved for compiled steps; only False for now.

    Raises:
        NotImplementedError: `compile=True`.
        TypeError: `tx` is no transformation, or something that is no tensor.
        ValueError: no parameters, a parameter twice, a hyperparameter out of range, a pattern without a match.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=1e-2))
        >>> optimizer = gradtx.as_optimizer(tx, model.named_parameters())
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.param_groups[0]["lr"], sorted(optimizer.state[model.bias])
        (0.01, ['exp_avg', 'exp_avg_sq', 'step'])
    """
    return ChainOptimizer(tx, params, compile=compile)


class AliasOptimizer(ChainOptimizer):
    """Base of the classes below: `class Name(AliasOptimizer, alias=name)` takes `params` and the alias's arguments."""

    _alias: Callable[..., GradientTransformation]

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
        engine = inspect.Parameter("compile", inspect.Parameter.KEYWORD_ONLY, default=False, annotation="bool")
        cls.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[params, *own.parameters.values(), engine], return_annotation=own.empty
        )

    def __init__(self, params: Any, *args: Any, compile: bool = False, **kwargs: Any):
        for option in REFUSED:
            if option in kwargs:
                raise refused(option)
        super().__init__(self._alias(*args, **kwargs), params, compile=compile)


class SGD(AliasOptimizer, alias=sgd): ...


class SGDW(AliasOptimizer, alias=sgdw): ...


class Adam(AliasOptimizer, alias=adam): ...


class AdamW(AliasOptimizer, alias=adamw): ...


class AdamP(AliasOptimizer, alias=adamp): ...


class SGDP(AliasOptimizer, alias=sgdp): ...


class AdamAtan2(AliasOptimizer, alias=adam_atan2): ...


class ADOPT(AliasOptimizer, alias=adopt): ...


class AdoptAtan2(AliasOptimizer, alias=adopt_atan2): ...


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


class AdaFactor(AliasOptimizer, alias=adafactor): ...


class AdafactorTorch(AliasOptimizer, alias=adafactor_torch): ...


class Muon(AliasOptimizer, alias=muon): ...


class MuonAdamAtan2(AliasOptimizer, alias=muon_adam_atan2): ...


class PolarAdamAtan2(AliasOptimizer, alias=polar_adam_atan2): ...


class ScalableShampoo(AliasOptimizer, alias=scalable_shampoo): ...


class Shampoo(AliasOptimizer, alias=shampoo): ...


class SOAP(AliasOptimizer, alias=soap): ...
