"""Composable gradient transformations for PyTorch.

`chain()` composes small named links into an optimizer, which is a plain value. It runs as pure functions, including
under `torch.func` transforms and `torch.compile`, and through `as_optimizer` as a real `torch.optim.Optimizer`.

This module loads the core. A name of another module, such as `adamw`, is loaded at its first access.
"""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from sys import modules as _modules

from gradtx.base.names import public_value as _public_value
from gradtx.base.names import publish as _publish
from gradtx.base.table import CLASSES as _CLASSES
from gradtx.base.table import MODULES as _MODULES
from gradtx.rules import alias as alias
from gradtx.rules import complete_docstring as _complete_docstring
from gradtx.transform import chain as chain

__version__ = "0.1.0"
__all__ = sorted([*_MODULES, "optim", "projections", "schedules", "slots"])


def _load(name: str) -> object:
    """Load a public name, so that later accesses find it at once."""
    value = globals()[name] = _public_value(name)
    if hasattr(value, "__module__") and hasattr(value, "__name__"):
        _publish(value)
    _complete_docstring(value)
    return value


def __getattr__(name: str) -> object:
    """Load a public name or a module, or raise an AttributeError that names what to use instead."""
    if name in _MODULES:
        return _load(name)
    if not name.startswith("_") and _find_spec(f"gradtx.{name}") is not None:
        return _import_module(f"gradtx.{name}")
    raise AttributeError(f"module 'gradtx' has no attribute {name!r}{_hint(name)}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def _hint(name: str) -> str:
    """Return the equivalent of another library's name, or the closest spelling, for an error."""
    from gradtx.base.messages import close
    from gradtx.base.other_libraries import counterpart, plain

    hint = counterpart(name)
    for alias_name, class_name in _CLASSES.items():
        is_class = plain(name) in (plain(class_name), plain(alias_name))
        if name[:1].isupper() and is_class:
            hint = f"use gradtx.optim.{class_name}"
    if hint is None and not name.startswith("_"):
        longer = [known for known in __all__ if known.startswith(f"{name.lower()}_")]
        meant = longer[0] if longer else close(name.lower(), __all__, 0.8)
        pages = "see docs/optax-names.md and docs/other-names.md"
        hint = pages if meant is None else f"did you mean {meant!r}?"
    return f"; {hint}" if hint else ""


for _name, _module in _MODULES.items():
    if f"gradtx.{_module}" in _modules:
        _load(_name)
