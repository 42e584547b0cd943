"""Composable gradient transformations for PyTorch.

`chain()` composes small named links into an optimizer, which is a plain value. It runs as pure functions, including
under `torch.func` transforms and `torch.compile`, and through `as_optimizer` as a real `torch.optim.Optimizer`.
"""

from gradtx import optim as optim
from gradtx import schedules as schedules
from gradtx import slots as slots
from gradtx.algorithms import *
from gradtx.arguments import *
from gradtx.base.ambient import *
from gradtx.base.exact import *
from gradtx.base.names import public_names as _public_names
from gradtx.base.names import publish as _publish
from gradtx.checkpoint import *
from gradtx.combinators import *
from gradtx.execution.context import *
from gradtx.functional import *
from gradtx.hessian import *
from gradtx.links import *
from gradtx.memory import *
from gradtx.models import *
from gradtx.multitask import *
from gradtx.optim import as_optimizer as as_optimizer
from gradtx.registry import *
from gradtx.rules import *
from gradtx.schedules import *
from gradtx.state.codes import *
from gradtx.sweeps import *
from gradtx.transform import *

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Raise an AttributeError that names the equivalent of another library's name, or the closest spelling."""
    from gradtx.base.counterparts import counterpart
    from gradtx.base.messages import close
    from gradtx.optim import class_names

    hint = counterpart(name)
    class_name = class_names().get(name.lower())
    if name[:1].isupper() and class_name is not None:
        hint = f"use gradtx.optim.{class_name}"
    if hint is None and not name.startswith("_"):
        longer = [known for known in __all__ if known.startswith(f"{name.lower()}_")]
        meant = longer[0] if longer else close(name.lower(), __all__, 0.8)
        hint = (
            "see docs/optax-names.md" if meant is None else f"did you mean {meant!r}?"
        )
    raise AttributeError(
        f"module 'gradtx' has no attribute {name!r}" + (f"; {hint}" if hint else "")
    )


# Type checkers infer the public names from the imports above.
__all__ = sorted([*_public_names(globals()), "optim", "schedules", "slots"])
_publish(__name__, {_name: globals()[_name] for _name in __all__})
