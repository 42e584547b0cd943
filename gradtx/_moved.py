"""Old paths of functions that moved since 0.1, and old defaults, for pickles that refer to them."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

# Old module -> the modules that its names moved to. Moved in 0.2; kept as long as pickles of 0.1 load.
MODULES = {
    "gradtx.combine": ("gradtx.combinators.selection", "gradtx.transforms.constraints"),
    "gradtx.sharpness": ("gradtx.combinators.sharpness",),
    "gradtx.transforms.graft": ("gradtx.combinators.graft",),
    "gradtx.transforms.schedule_free": ("gradtx.combinators.schedule_free",),
    "gradtx.wrappers": ("gradtx.combinators.clocks",),
}
# Names that left a module which still exists.
NAMES = {("gradtx.transforms.averaging", "with_lookahead"): "gradtx.combinators.lookahead"}
# Factory -> (an argument that is newer, {argument: the default before it}): such a number stands for today's default.
DEFAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "muon": ("view", {"ns_steps": 5}),
    "orthogonalize": ("start", {"steps": 5}),
}


def as_today(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a pickled call, without defaults that have another spelling now."""
    newer, before = DEFAULTS.get(name, ("", {}))
    if newer in arguments:
        return arguments
    return {key: value for key, value in arguments.items() if key not in before or value != before[key]}


class _Moved(ModuleType):
    """Stands for a module that is gone."""

    def __getattr__(self, name: str) -> Any:
        for target in MODULES[self.__name__]:
            module = importlib.import_module(target)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def install() -> None:
    for old in MODULES:
        sys.modules.setdefault(old, _Moved(old))
    for (module, name), target in NAMES.items():
        setattr(importlib.import_module(module), name, getattr(importlib.import_module(target), name))
