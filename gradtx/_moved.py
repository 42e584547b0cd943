"""Old import paths and defaults of functions that have changed since 0.1, for pickles that refer to them."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

# Old module -> the modules that its names moved to. Moved in 0.2; kept as long as pickles of 0.1 are supported.
MODULES = {
    "gradtx.combine": ("gradtx.combinators.selection", "gradtx.transforms.constraints"),
    "gradtx.sharpness": ("gradtx.combinators.sharpness",),
    "gradtx.transforms.graft": ("gradtx.combinators.graft",),
    "gradtx.transforms.schedule_free": ("gradtx.combinators.schedule_free",),
    "gradtx.wrappers": ("gradtx.combinators.clocks",),
}
# Names that moved out of a module that still exists.
NAMES = {
    ("gradtx.transforms.averaging", "with_lookahead"): "gradtx.combinators.lookahead"
}
# Factory -> (an argument added later, {argument: its default until then}). If a pickled call lacks the later argument,
# its old defaults stand for today's.
DEFAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "muon": ("view", {"ns_steps": 5}),
    "orthogonalize": ("start", {"steps": 5}),
}


def as_today(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a pickled call without old defaults, so that today's defaults apply."""
    newer, before = DEFAULTS.get(name, ("", {}))
    if newer in arguments:
        return arguments
    return {
        key: value
        for key, value in arguments.items()
        if key not in before or value != before[key]
    }


class _Moved(ModuleType):
    """A placeholder for a module that no longer exists."""

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
        setattr(
            importlib.import_module(module),
            name,
            getattr(importlib.import_module(target), name),
        )
