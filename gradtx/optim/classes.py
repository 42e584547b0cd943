"""The torch optimizer of every alias of `gradtx.optimizers`; classes.pyi, which is generated, types their arguments."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

from gradtx import optimizers
from gradtx.core import GradientTransformation, chain
from gradtx.optim._groups import REFUSED, refused
from gradtx.optim.adapter import ChainOptimizer

COMPILE = "bool | str | Mapping[str, Any]"


class AliasOptimizer(ChainOptimizer):
    """Base of the classes of aliases: `class Name(AliasOptimizer, alias=name)` takes `params` and its arguments."""

    _alias: Callable[..., GradientTransformation]
    _seeded = False  # whether `seed` is the optimizer's own; else it is an argument of the alias, if anything

    def __init_subclass__(cls, alias: Any = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if alias is None:  # a user's subclass of the class of an alias
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
        engine = [inspect.Parameter("compile", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=COMPILE)]
        example = alias.spec.example
        options: Any = example(chain()) if callable(example) else example
        if "hessian_diag" in alias(**options).needs:
            cls._seeded = True
            engine.append(inspect.Parameter("seed", inspect.Parameter.KEYWORD_ONLY, default=0, annotation="int"))
        cls.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[params, *own.parameters.values(), *engine], return_annotation=own.empty
        )

    def __init__(
        self,
        params: Any,
        *args: Any,
        compile: bool | str | Mapping[str, Any] = False,
        **kwargs: Any,
    ):
        for option in REFUSED:
            if option in kwargs:
                raise refused(option, kwargs[option])
        seed = kwargs.pop("seed", 0) if self._seeded else 0
        super().__init__(self._alias(*args, **kwargs), params, compile=compile, seed=seed)


def optimizer_class(alias: Any) -> type[AliasOptimizer]:
    """Make the class of an alias, under the name by which `gradtx.optim` exports it and pickle finds it."""

    def fill(namespace: dict[str, Any]) -> None:
        namespace["__module__"] = "gradtx.optim"

    return types.new_class(alias.spec.class_name, (AliasOptimizer,), {"alias": alias}, fill)


CLASSES = {name: optimizer_class(getattr(optimizers, name)) for name in optimizers.__all__}
"""Name of an alias -> its class."""

_CLASS_OF_NAME = {cls.__name__: cls for cls in CLASSES.values()}
globals().update(_CLASS_OF_NAME)
__all__ = list(_CLASS_OF_NAME)  # pyright: ignore[reportUnsupportedDunderAll]
