"""Errors of `init`: parameters that do not fit."""

import pytest
import torch

import gradtx
from gradtx import chain
from tests.errors.common import ADAM, COMPLEX, DTYPE, NAMED, matching, params

INIT = {
    "params: leaf 'b' has dtype torch.int64, " + DTYPE: (TypeError, ADAM, params(b=torch.ones(3, dtype=torch.int64))),
    "centralize: leaf 'b' is complex, " + COMPLEX: (
        TypeError,
        chain(gradtx.centralize(), ADAM),
        params(b=torch.ones(3, dtype=torch.complex64)),
    ),
    f"params: leaf 'b' is a float, needs a tensor or None{NAMED}": (TypeError, ADAM, params(b=1.0)),
    f"params: leaf '0.0' is a str, needs a tensor or None{NAMED}": (
        TypeError,
        ADAM,
        list(torch.nn.Linear(1, 1).named_parameters()),
    ),
    "params: two leaves are both named 'a.b'; rename a key, because leaves are identified by dotted name": (
        ValueError,
        ADAM,
        {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}},
    ),
    "freeze: 'x.*' matches no leaf; leaves: w, b": (ValueError, chain(gradtx.freeze("x.*"), ADAM), params()),
    "masked: 'zz' matches no leaf; leaves: w, b": (ValueError, gradtx.masked(ADAM, ("w", "zz")), params()),
    "freeze: 'B' matches no leaf; leaves: w, b": (ValueError, gradtx.accumulate(gradtx.freeze("B"), 2), params()),
    "partition: 'c' matches no leaf; leaves: w, b": (
        ValueError,
        gradtx.partition({"x": ADAM, "y": ADAM}, {"x": "c", "y": "*"}),
        params(),
    ),
    "partition: leaf 'b' has no label; add a pattern that matches it, such as '*' for the rest": (
        ValueError,
        gradtx.partition({"x": ADAM}, {"x": "w"}),
        params(),
    ),
    "partition: leaf 'w' has the unknown label 'zz'; labels: x, y": (
        ValueError,
        gradtx.partition({"x": ADAM, "y": ADAM}, lambda name, p: "zz"),
        params(),
    ),
}


@pytest.mark.parametrize(("message", "kind", "tx", "tree"), [(m, *rest) for m, rest in INIT.items()], ids=INIT)
def test_parameters_that_do_not_fit_are_refused(message, kind, tx, tree):
    with pytest.raises(kind, match=matching(message)):
        tx.init(tree)
