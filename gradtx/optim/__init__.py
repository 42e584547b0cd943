"""Transformations as torch optimizers: `as_optimizer` for any chain, and a drop-in class for every alias."""

from __future__ import annotations

import inspect
from typing import Any

from gradtx.core import GradientTransformation
from gradtx.optim._groups import REFUSED
from gradtx.optim.adapter import ChainOptimizer
from gradtx.optimizers.adam import adam, adam_atan2, adamp, adamw, adopt, adopt_atan2, sgdp
from gradtx.optimizers.sgd import sgd, sgdw

__all__ = [
    "ADOPT",
    "SGD",
    "SGDP",
    "SGDW",
    "Adam",
    "AdamAtan2",
    "AdamP",
    "AdamW",
    "AdoptAtan2",
    "ChainOptimizer",
    "as_optimizer",
]


def as_optimizer(tx: GradientTransformation, params: Any) -> ChainOptimizer:
    """Wrap any transformation as a real `torch.optim.Optimizer`.

    Parameter groups hold the hyperparameters (`tx.hyperparams`) as numbers; whoever writes them, such as torch's LR
    schedulers, is obeyed at the next step. State is per parameter and flat, as torch's.

    Args:
        tx: A transformation whose updates are to be added to the parameters.
        params: `model.parameters()`, `model.named_parameters()` (for name patterns), or a list of group dicts, each
            with "params" and hyperparameters of its own.

    Raises:
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
    return ChainOptimizer(tx, params)


def _class(name: str, alias: Any) -> type[ChainOptimizer]:
    """The optimizer class of an alias: its arguments, after `params`."""

    def __init__(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        for option in REFUSED:
            if option in kwargs:
                raise TypeError(f"{name}: {option!r} is not an option of gradtx; drop it")
        ChainOptimizer.__init__(self, alias(*args, **kwargs), params)

    first = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    own = inspect.signature(alias)
    __init__.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[inspect.Parameter("self", first.kind), first, *own.parameters.values()]
    )
    summary = f"`gradtx.{alias.__name__}` as a torch optimizer: `{name}(params, ...)`.\n\n    "
    return type(
        name, (ChainOptimizer,), {"__init__": __init__, "__doc__": summary + alias.__doc__, "__module__": __name__}
    )


SGD = _class("SGD", sgd)
SGDW = _class("SGDW", sgdw)
Adam = _class("Adam", adam)
AdamW = _class("AdamW", adamw)
AdamP = _class("AdamP", adamp)
SGDP = _class("SGDP", sgdp)
AdamAtan2 = _class("AdamAtan2", adam_atan2)
ADOPT = _class("ADOPT", adopt)
AdoptAtan2 = _class("AdoptAtan2", adopt_atan2)
