"""Errors of the matrix methods: one clear TypeError or ValueError that names the entry, from each kind of misuse."""

import math
import re

import pytest
import torch

import gradtx

# Calls that no argument check of the decorators catches.
NS_DTYPES = ["muon", "normuon", "adamuon", "namo", "contra_muon", "muown", "polargrad", "dion2"]
SQUARE = torch.zeros(3, 3)


def lmo_start(*args, **options):
    return lambda: gradtx.init_for_lmo(*args, **options)


@pytest.mark.parametrize("alias", NS_DTYPES)
@pytest.mark.parametrize("dtype", [3, "float31", torch.int64, math.nan])
def test_a_dtype_of_the_iteration_must_be_a_floating_point_one(alias, dtype):
    with pytest.raises(TypeError, match=rf"^{alias}: \w+: dtype must be a floating-point torch.dtype or None, got "):
        getattr(gradtx, alias)(ns_dtype=dtype)


@pytest.mark.parametrize("alias", [*NS_DTYPES, "soap_muon"])
@pytest.mark.parametrize("coefficients", [3, (), (1.0,), (1.0, 2.0), ((1.0, 2.0, "x"),)])
def test_coefficients_must_be_triples_of_numbers(alias, coefficients):
    with pytest.raises(ValueError, match=rf"^{alias}: \w+: coefs must be three plain numbers, .*got "):
        getattr(gradtx, alias)(ns_coefficients=coefficients)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gradtx.dion(rank="x"), TypeError, "dion: rank must be a plain number, got 'x'"),
        (lambda: gradtx.dion(rank=True), TypeError, "dion: rank must be a plain number, got True"),
        (lambda: gradtx.dion(rank=torch.ones(2)), TypeError, "dion: rank must be a plain number, got "),
        (lambda: gradtx.dion(rank=math.nan), ValueError, "dion: rank must be in (0, inf), got nan"),
        (
            lambda: gradtx.dion(rank=1.5),
            ValueError,
            "dion: scale_by_dion: rank must be a positive int or a fraction in",
        ),
        (lambda: gradtx.scion(kinds={}), TypeError, "scion: kinds must be a dict of name pattern -> kind, such as"),
        (lmo_start(3), TypeError, "init_for_lmo: param must be a tensor of a floating-point dtype, got 3"),
        (lmo_start(SQUARE.long()), TypeError, "init_for_lmo: param must be a tensor of a floating-point dtype"),
        (lmo_start(SQUARE, scale="x"), TypeError, "init_for_lmo: scale must be a number, got 'x'"),
        (lmo_start(SQUARE, scale=math.nan), ValueError, "init_for_lmo: scale must be in [0, inf), got nan"),
        (lmo_start(SQUARE[0], "row"), ValueError, "init_for_lmo: kind 'row' needs at least 2 dimensions, got a tensor"),
        (lmo_start(SQUARE[0], "spectral"), ValueError, "init_for_lmo: kind 'spectral' needs at least 2 dimensions"),
        (lmo_start(SQUARE[0, 0], "column"), ValueError, "init_for_lmo: kind 'column' needs at least 2 dimensions"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("split", "join"),
    [
        (lambda x: [2 * x], lambda blocks: blocks[0] / 2),
        (lambda x: [x[:2], x[:2]], lambda blocks: torch.cat([blocks[0], 2 + blocks[1]])),
    ],
    ids=["scaled", "twice"],
)
def test_a_view_that_is_no_permutation_is_an_error(split, join):
    tx = gradtx.blocks(gradtx.muon(), view=(split, join))
    with pytest.raises(
        ValueError, match=r"blocks: view: join\(split\(x\)\) does not equal x for leaf 'w' of shape \(4,\)"
    ):
        tx.init({"w": torch.zeros(4)})


# Leaves that a rule does not take, and steps that fail.

MATRICES_ONLY = [
    *NS_DTYPES,
    *("soap_muon", "muon_h", "dion", "orthogonalize", "scale_by_shape", "scale_by_dion", "orthogonalize_slices"),
    "scale_by_nuclear_norm",
]


@pytest.mark.parametrize("entry", MATRICES_ONLY)
def test_a_leaf_that_is_no_matrix_is_named_with_the_remedy(entry):
    tx = getattr(gradtx, entry)()
    for shape in ((), (5,), (0,), (2, 3, 4), (2, 3, 2, 2)):
        with pytest.raises(ValueError, match=r"leaf 'b' has shape .*, needs 2 dimensions; .*partition\(\.\.\.\)"):
            tx.init({"a": torch.ones(2, 2), "b": torch.ones(shape)})
