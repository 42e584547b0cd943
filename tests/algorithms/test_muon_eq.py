import pytest
import torch

import gradtx
from tests.algorithms.matrices import matrices_follow, orthogonal, shape, summed_momentum_of
from tests.references import BETA, DECAY, RATE, named


def equilibrated(u, kind="row", power=0.5, eps=1e-8, clip=None):
    rows = ((u**2).sum(-1, keepdim=True) + eps) ** -power
    columns = ((u**2).sum(-2, keepdim=True) + eps) ** -power
    if clip is not None:
        rows, columns = (factors.clamp(1 / clip, clip) for factors in (rows, columns))
    return {"row": u * rows, "column": u * columns, "both": u * rows * columns}[kind]


def muon_eq(
    s, t, g, p, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, normalize="row", power=0.5, eps=1e-8,
    clip=None, ns_coefficients="simple", ns_steps=None, adjust_lr_fn="match_rms_adamw", fallback=None,
):  # fmt: skip
    u = equilibrated(summed_momentum_of(s, g, momentum, nesterov), normalize, power, eps, clip)
    d = orthogonal(u, ns_coefficients, ns_steps)
    return p * (1 - lr * weight_decay) - lr * shape(p, adjust_lr_fn) * d


CASES = [
    {"lr": 0.01},
    {"lr": RATE, "nesterov": False, "normalize": "column", "momentum": BETA, "eps": 1e-2, "weight_decay": DECAY},
    {"lr": 0.02, "normalize": "both", "power": 0.3, "ns_coefficients": "quintic", "adjust_lr_fn": "original"},
    {"lr": 0.02, "normalize": "both", "clip": 1.5, "ns_steps": 3, "momentum": 0.0},
]


@pytest.mark.parametrize("options", CASES, ids=named)
def test_the_matrices_follow_the_loop(options):
    matrices_follow(gradtx.muon_eq, muon_eq, options)


def muon_plus(s, t, g, p):
    d = orthogonal(summed_momentum_of(s, g, 0.95, True))
    d = equilibrated(equilibrated(d, "column", eps=1e-7), "row", eps=1e-7)
    return p * (1 - 0.02 * 0.1) - 0.02 * shape(p, "spectral") * d


def test_muon_plus_is_a_chain():
    def chain():
        return gradtx.chain(
            gradtx.trace(0.95, nesterov=True), gradtx.orthogonalize(), gradtx.equilibrate("column", eps=1e-7),
            gradtx.equilibrate("row", eps=1e-7), gradtx.scale_by_shape("spectral"), gradtx.add_decayed_weights(0.1),
            gradtx.scale_by_learning_rate(0.02),
        )  # fmt: skip

    matrices_follow(chain, muon_plus, {})


@pytest.mark.parametrize("clip", [None, 1.0, 3.0])
@pytest.mark.parametrize("power", [0.5, 1.25])
@pytest.mark.parametrize("kind", ["row", "column", "both"])
def test_rows_and_columns_are_divided_by_powers_of_their_sums_of_squares(kind, power, clip):
    u = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tx = gradtx.equilibrate(kind, power=power, clip=clip)
    updates, _ = tx.update({"w": u, "v": u.T}, tx.init({}))
    torch.testing.assert_close(updates["w"], equilibrated(u, kind, power, clip=clip), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(updates["v"], equilibrated(u.T, kind, power, clip=clip), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("kind", ["row", "column", "both"])
def test_zeros_stay_zeros_without_eps(kind):
    u = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    tx = gradtx.equilibrate(kind, eps=0.0)
    assert tx.update({"w": u}, tx.init({}))[0]["w"].tolist() == [[0.0, 0.5 if kind == "both" else 1.0, 0.0], [0.0] * 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 0.0}, r"equilibrate: power must be in \(0, inf\), got 0.0"),
        ({"power": -1}, r"equilibrate: power must be in \(0, inf\), got -1"),
        ({"clip": 0.5}, r"equilibrate: clip must be in \[1, inf\), got 0.5"),
        ({"kind": "rows"}, r"equilibrate: kind must be 'row', 'column' or 'both', got 'rows'"),
    ],
    ids=named,
)
def test_options_out_of_range_are_errors_that_name_them(options, message):
    with pytest.raises(ValueError, match=message):
        gradtx.equilibrate(**options)
