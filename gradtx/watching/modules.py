"""The modules that hold an optimizer's parameters: it does not know them, and whoever had to name them would forget."""

from __future__ import annotations

import gc
from collections.abc import Iterable

from torch import Tensor, nn

from gradtx.base.selectors import named_in_model
from gradtx.models import label_by_role


def all_modules() -> list[nn.Module]:
    """Return all modules in memory."""
    return [
        item
        for item in gc.get_objects()
        if issubclass(type(item), nn.Module) and "_parameters" in item.__dict__
    ]


def modules_with(
    params: Iterable[Tensor], modules: Iterable[nn.Module] | None = None
) -> list[nn.Module]:
    """Return the modules that have some of the parameters, also in modules within them.

    Args:
        params: The parameters.
        modules: The modules; None for all in memory.
    """
    ids = set(map(id, params))
    return [
        module
        for module in (all_modules() if modules is None else modules)
        if any(id(param) in ids for param in module.parameters())
    ]


def roles_in(models: Iterable[nn.Module]) -> dict[Tensor, str]:
    """Return the role of each parameter of some models, as `label_by_role` does."""
    roles: dict[Tensor, str] = {}
    for model in models:
        of_names = label_by_role(model)
        roles |= {param: of_names[name] for name, param in named_in_model(model)}
    return roles


def outermost(modules: list[nn.Module]) -> list[nn.Module]:
    """Return the modules that no other one contains."""
    inner = {
        id(child)
        for module in modules
        for child in module.modules()
        if child is not module
    }
    return [module for module in modules if id(module) not in inner]
