"""Options that contradict each other, and values that no interval and no list of words describes.

The intervals and words of every argument are recorded in tests/signatures.txt.
"""

import pytest
import torch

import gradtx

PSEUDO = "pass either a positive eps or pseudo_inverse=True with eps=0.0"
FALLBACK = "fallback must be a GradientTransformation, .*call it.*"
POWER = "power cannot be combined with contra, mixture or balance.*"

CASES = [
    (gradtx.adafactor, {"lr": 0.1}, ".*omit lr, or pass relative_step=False"),
    (gradtx.adafactor, {"relative_step": False}, ".*needs lr, or relative_step=True"),
    (gradtx.adafactor, {"lr": 0.1, "relative_step": False, "warmup_init": True}, ".*pass relative_step=True as well"),
    (gradtx.adafactor_torch, {"eps": (0.1, None)}, r"eps\[1\] must be a number.*"),
    (gradtx.adashift, {"keep_num": 2.0}, "keep_num must be an int, got 2.0"),
    (gradtx.adasmooth, {"betas": (0.9, 0.5)}, r"scale_by_adasmooth: betas must be increasing .*, got \(0.9, 0.5\)"),
    (
        gradtx.srmm,
        {"lr": 0.5, "proximal": 3.0},
        r"scale_by_srmm: lr \* proximal must be in \[0, 1\], got 0.5 \* 3.0; lower one of them",
    ),
    (gradtx.soap_muon, {"fallback": gradtx.adamw}, FALLBACK),
    (gradtx.muon, {"fallback": gradtx.adamw}, FALLBACK),
    (gradtx.dion, {"fallback": gradtx.adamw}, FALLBACK),
    (gradtx.dion, {"rank": 1.5}, "scale_by_dion: rank must be a positive int or a .*, got 1.5"),
    (gradtx.muon_adam_atan2, {"matrix_ndims": (1, 2)}, r"matrix_ndims\[0\] must be in \[2, inf\), got 1"),
    (gradtx.accsgd, {"lr": 0.1, "xi": 40.0}, r"scale_by_accsgd: xi must be at most sqrt\(kappa\) = 31.6228, got 40.0"),
    (gradtx.aggmo, {"lr": 0.1, "betas": []}, "betas must have at least one entry"),
    (gradtx.scale_by_aggmo, {"betas": ()}, "betas must have at least one entry"),
    (gradtx.a2grad, {"lr": 0.1}, "unknown argument 'lr'; .*"),
    (gradtx.msvag, {}, "missing argument 'lr'"),
    (gradtx.psgd_kron, {"precondition_frequency": 0}, r"precondition_frequency must be in \[1, inf\), got 0"),
    (gradtx.psgd_kron, {"precondition_frequency": "x"}, "precondition_frequency must be 'annealed' or an int, got 'x'"),
    (gradtx.adam_mini, {"block": 0}, r"block must be .*"),
    (gradtx.adam_mini, {"block": 2.0}, r"block must be .*"),
    (gradtx.adam_mini, {"block": True}, r"block must be .*"),
    (gradtx.scion, {"kinds": {"*": "l2"}}, "lmo: kind must be 'auto', 'spectral', .*, got 'l2'"),
    (gradtx.muown, {"ns_coefficients": "other"}, "scale_by_muown: coefs must be one of simple, .*, got 'other'"),
    (gradtx.muon, {"ns_coefficients": torch.ones(2)}, ".*coefs must be three plain numbers, .*"),
    (gradtx.muon, {"ns_coefficients": "cans"}, ".*coefs='cans' overflows in torch.bfloat16.*"),
    (
        gradtx.ranger21,
        {"num_iterations": 10, "chebyshev_epochs": 11},
        ".*chebyshev_epochs must be at most num_iterations = 10, got 11",
    ),
    (
        gradtx.add_decayed_weights,
        {"relative_to": 0.1, "corrected_by": 0.1},
        "relative_to and corrected_by cannot be combined.*",
    ),
    (gradtx.add_decayed_weights, {"max_lr": 0.1}, "max_lr is the divisor of corrected_by; pass corrected_by as well"),
    (gradtx.retract, {"kind": "polar", "coefs": "aol"}, "coefs must be one of .*"),
    (
        gradtx.radial_brake,
        {"form": "norm", "descent": True},
        "form='norm' rescales the weights .*; descent is for .component.",
    ),
    (gradtx.orthogonalize, {"coefs": (1.0, 2.0)}, "coefs must be three plain numbers.*"),
    (gradtx.orthogonalize, {"coefs": ((1.0, 2.0, 3.0), (1.0,))}, "coefs must be three plain numbers.*"),
    (gradtx.orthogonalize, {"coefs": "aol"}, "coefs must be one of simple, quintic, .*, got 'aol'"),
    (gradtx.orthogonalize, {"coefs": "cubic5", "steps": 6}, "coefs='cubic5' requires steps=5, got 6"),
    (gradtx.orthogonalize, {"coefs": "cubic5", "mixture": "soft"}, "coefs='cubic5' requires steps=5, got 12"),
    (gradtx.orthogonalize, {"coefs": "cans", "dtype": torch.bfloat16}, "coefs='cans' overflows in torch.bfloat16.*"),
    (gradtx.orthogonalize, {"power": 0.1, "contra": 0.4}, POWER),
    (gradtx.orthogonalize, {"power": 0.1, "balance": 1}, POWER),
    (gradtx.orthogonalize, {"power": 0.1, "mixture": "soft"}, POWER),
    (gradtx.orthogonalize, {"mixture": "hard"}, "mixture must be 'soft' or a tuple of numbers, got 'hard'"),
    (gradtx.orthogonalize, {"mixture": ()}, "mixture must be .*"),
    (gradtx.orthogonalize, {"mixture": (0.5, 0.5), "steps": 3}, "a mixture of 2 requires steps=1, got 3"),
]

for make in (gradtx.scale_by_distributed_shampoo, gradtx.distributed_shampoo):
    CASES += [
        (
            make,
            {"precondition_frequency": 5, "start_preconditioning_step": 4},
            ".* at least precondition_frequency=5, got 4",
        ),
        (make, {"eps": 0.0}, f".*{PSEUDO}.*"),
        (make, {"pseudo_inverse": True}, f".*{PSEUDO}.*"),
        (make, {"graft": "lion"}, "graft must be 'adam', 'rmsprop', 'adagrad', 'sgd' or None, got 'lion'"),
        (make, {"betas": (1.0, 1.0)}, r"betas\[0\] must be in \[0, 1\), got 1.0"),
    ]


@pytest.mark.parametrize(("make", "options", "message"), CASES)
def test_what_makes_no_sense_is_named(make, options, message):
    if make is gradtx.add_decayed_weights:
        options = {"weight_decay": 0.1, **options}
    with pytest.raises((ValueError, TypeError), match=f"^{make.__name__}: {message}$"):
        make(**options)
