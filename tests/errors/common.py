"""What tests of errors share.

Every misuse is one TypeError or ValueError that names the culprit and the remedy; nothing is half done. The tables of
messages are frozen: change a message here and there together, on purpose.
"""

import math
import re

import pytest
import torch

import gradtx
from gradtx import per_tensor
from tests.conformance import untouched

# When a slot has another shape than its new value.
SHAPES = (
    "; a rule must return the shapes that its init creates; if it does, pass the state made by this chain's own init, "
    "with these parameters"
)
OWN = "; pass the state made by this chain's own init, with these parameters"
NAN = math.nan
COMPLEX = (
    "which this link does not support because it depends on more than entries and norms; keep "
    "torch.view_as_real(tensor) as the parameter, and apply torch.view_as_complex in the model, or send the leaf "
    "to another transformation with partition(...)"
)
DTYPE = "needs a floating-point one; remove integer tensors from the tree, or pass it as the state if it is one"
ADAM = gradtx.adam()
NAMED = "; pass a tree of tensors, such as dict(model.named_parameters())"


def params(**changes):
    return {"w": torch.ones(2, 3), "b": torch.ones(3), **changes}


def without(name):
    return {key: leaf for key, leaf in params().items() if key != name}


def matching(message):
    return f"^{re.escape(message)}$"


def failing(kind, match, tx, changes):
    """Call update as a case says; the error must come and the inputs stay."""
    state = tx.init(params())
    arguments = {"updates": params(), "state": state, "params": params(), **changes}
    with untouched(*arguments.values()), pytest.raises(kind, match=match):
        tx.update(**arguments)


def rule(update, init=None, **options):
    @per_tensor(**options)
    def broken():
        return update if init is None else (init, update)

    return broken()


def slot(param):
    return {"x": torch.zeros_like(param)}
