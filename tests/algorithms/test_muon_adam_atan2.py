import adam_atan2_pytorch
import pytest
import torch

import gradtx
from tests import references as ref
from tests.algorithms.matrices import mixed, polar
from tests.matrix_problem import newton_schulz
from tests.references import BETA, PUBLISHED, RATE

JORDAN = (3.4445, -4.7750, 2.0315)
muon_mixed = mixed(lambda m, steps: newton_schulz(m, [JORDAN] * steps), "muon")
polar_mixed = mixed(lambda m, steps: newton_schulz(m, polar(steps), shrink=1.01), "polar")
MIXED = [
    {},
    {"lr": 0.02, "X_lr": 0.05, "weight_decay": 0.3, "X_steps": 3, "X_rms_factor": 0.5, "X_beta1": 0.8},
    {"lr": 0.02, "weight_decay": 0.01, "decoupled_wd": True, "cautious_factor": 0.3, "betas": (0.8, 0.9), "a": 0.7},
    {"lr": 0.02, "X_steps": 9, "cautious_factor": 0.0, "matrix_ndims": (4,), "b": 2.0},
    {"lr": RATE, "X_beta1": BETA, "weight_decay": RATE, "decoupled_wd": True},
]
NORMUON = [
    {"lr": 0.02, "use_normuon": True, "muon_beta2": 0.8},
    {"lr": 0.02, "use_normuon": True, "normuon_eps": 0.3, "matrix_ndims": (2, 4)},
]


def spelled(options, prefix):
    return {key.replace("X_", f"{prefix}_"): value for key, value in options.items()}


MIXTURES = [
    *((gradtx.muon_adam_atan2, muon_mixed, spelled(options, "muon")) for options in [*MIXED, *NORMUON]),
    *((gradtx.polar_adam_atan2, polar_mixed, spelled(options, "polar")) for options in MIXED),
]


@pytest.mark.parametrize(("alias", "rule", "options"), MIXTURES, ids=ref.named)
def test_mixtures_with_adam_atan2_follow_the_loop(alias, rule, options):
    ref.weights_follow(alias(**options), ref.WeightsLoop(rule, **options), tolerance=PUBLISHED)


def published_mixture(cls):
    def make(params, **options):
        chosen = [p for p in params if p.ndim == 2]
        return cls(chosen, [p for p in params if p.ndim != 2], remove_muon_params_from_params=False, **options)

    def make_polar(params, **options):
        chosen = [p for p in params if p.ndim == 2]
        return cls(chosen, [p for p in params if p.ndim != 2], remove_polar_params_from_params=False, **options)

    return make if cls is adam_atan2_pytorch.MuonAdamAtan2 else make_polar


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alias", "options"),
    [
        *(
            (alias, spelled(options, prefix))
            for alias, prefix in ((gradtx.muon_adam_atan2, "muon"), (gradtx.polar_adam_atan2, "polar"))
            for options in MIXED[:3]
        ),
        (gradtx.muon_adam_atan2, NORMUON[0]),
    ],
    ids=ref.named,
)
def test_mixtures_are_those_of_adam_atan2_pytorch(alias, options):
    cls = {"muon": adam_atan2_pytorch.MuonAdamAtan2, "polar": adam_atan2_pytorch.PolarAdamAtan2}
    make = published_mixture(cls[alias.__name__.partition("_")[0]])
    ref.weights_follow(alias(**options), ref.Published(make, **options), tolerance=PUBLISHED)


def test_a_batch_of_matrices_is_treated_matrix_by_matrix():
    grads = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tx = gradtx.muon_adam_atan2(lr=0.1, use_normuon=True)
    one = lambda g: tx.update({"w": g}, tx.init({"w": g}), {"w": g})[0]["w"]  # noqa: E731
    torch.testing.assert_close(one(grads), torch.stack([one(g) for g in grads]), rtol=1e-12, atol=1e-14)
