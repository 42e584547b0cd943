import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.matrix_problem import newton_schulz
from tests.optim.problems import assert_close, descend, gradient, parameters, saved_and_loaded, twins
from tests.references import BETA, PUBLISHED, RATE, named

NOT_MATRICES = ("kernel", "bias", "scalar")
JORDAN = (3.4445, -4.7750, 2.0315)


def muon(
    s, t, g, p, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, ns_coefficients=JORDAN, eps=1e-7,
    ns_steps=None, adjust_lr_fn=None, ns_dtype=torch.bfloat16, flatten=False, fallback=None, view="matrix",
):  # fmt: skip
    s.B = momentum * s.B + (1 - momentum) * g
    U = momentum * s.B + (1 - momentum) * g if nesterov else s.B
    U = U.reshape(p.shape[0], -1)
    X = newton_schulz(U, [ns_coefficients] * (ns_steps or 5), eps).reshape(p.shape)
    rows, cols = U.shape
    r = 0.2 * math.sqrt(max(rows, cols)) if adjust_lr_fn == "match_rms_adamw" else math.sqrt(max(1, rows / cols))
    return p * (1 - lr * weight_decay) - lr * r * X


MUON = [
    {},
    {"lr": 0.02, "momentum": 0.8, "nesterov": False, "weight_decay": 0.3, "adjust_lr_fn": "original"},
    {"lr": 0.02, "ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 3, "eps": 2.0, "adjust_lr_fn": "match_rms_adamw"},
    {"lr": RATE, "momentum": BETA, "weight_decay": RATE},
]


@pytest.mark.parametrize("options", MUON, ids=ref.named)
@pytest.mark.parametrize("flatten", [False, True])
def test_muon_follows_the_loop(options, flatten):
    without = ("bias", "scalar") if flatten else NOT_MATRICES
    tx = gradtx.muon(**options, flatten=flatten, ns_dtype=torch.float64)
    ref.weights_follow(tx, ref.WeightsLoop(muon, **options), without=without, tolerance=PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.02, "momentum": 0.8, "nesterov": False, "weight_decay": 0.3, "adjust_lr_fn": "original"},
        {"lr": 0.02, "ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 3, "adjust_lr_fn": "match_rms_adamw"},
    ],
    ids=ref.named,
)
def test_muon_is_torch_optim_muon_in_bfloat16(options):
    published = ref.Published(torch.optim.Muon, **options)
    ref.weights_follow(gradtx.muon(**options), published, without=NOT_MATRICES, tolerance=PUBLISHED)


def matrices(dtype=torch.float64):
    return parameters(dtype, {"wide": (5, 24), "tall": (17, 6), "square": (9, 9)})


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="on this processor, torch's own products in bfloat16 round partial sums, so that they depend on the shape",
)
@pytest.mark.parametrize("options", [{}, {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 4}], ids=ref.named)
def test_the_class_takes_the_steps_of_torchs_on_larger_matrices(options):
    (own, other) = matrices(), matrices()
    descend(gradtx.optim.Muon(own.values(), lr=0.02, **options), own)
    descend(torch.optim.Muon(other.values(), lr=0.02, **options), other)
    assert_close(own.values(), other.values(), PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("ours_first", [True, False])
def test_checkpoints_of_muon_continue_in_and_from_torch(ours_first):
    makes = (gradtx.optim.Muon, torch.optim.Muon)
    make, remake = makes if ours_first else makes[::-1]
    params = matrices()
    optimizer = make(params.values(), lr=0.02, momentum=0.8, ns_coefficients=(2.0, -1.5, 0.5), ns_steps=4)
    descend(optimizer, params, 10)
    own = twins(params)
    other = remake(own.values())
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    descend(optimizer, params, 10, start=10)
    descend(other, own, 10, start=10)
    assert_close(own.values(), params.values(), PUBLISHED)


def test_muon_sends_other_leaves_to_its_fallback():
    tx = gradtx.muon(lr=0.02, ns_dtype=None, fallback=gradtx.adamw(lr=0.03))
    alone, other = gradtx.muon(lr=0.02, ns_dtype=None), gradtx.adamw(lr=0.03)
    both = ref.run(tx, weights=True)[-1]
    grads = {name: torch.ones_like(p) for name, p in both.items()}
    updates = tx.update(grads, tx.init(both), both)[0]
    for name, tree in (("rows", alone), ("bias", other), ("kernel", other)):
        one = {name: both[name]}
        expected = tree.update({name: grads[name]}, tree.init(one), one)[0]
        torch.testing.assert_close(updates[name], expected[name])


@pytest.mark.slow
def test_muon_with_a_fallback_is_an_optimizer_whose_groups_name_both_rates():
    params = parameters()
    optimizer = gradtx.optim.Muon(params.values(), fallback=gradtx.adamw(lr=0.03))
    descend(optimizer, params, 3)
    assert [group["label"] for group in optimizer.param_groups] == ["muon", "fallback"]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.03]
    assert ["momentum" in group for group in optimizer.param_groups] == [True, False]
    assert ["amsgrad" in group for group in optimizer.param_groups] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.02, gradtx.Schedule(lambda step: 0.02 + 0 * step)], ids=["number", "schedule"])
def test_a_scheduler_drives_the_rate_of_the_fallback_too_each_from_its_own(rate):
    params, split = parameters(), parameters()
    fallback = gradtx.adamw(lr=0.03)
    mixed = gradtx.optim.Muon(params.values(), lr=rate, ns_dtype=None, fallback=fallback)
    if rate != 0.02:
        mixed.expect_scheduler()
    is_matrix = [p.ndim == 2 for p in split.values()]
    ours = [p for p, matrix in zip(split.values(), is_matrix, strict=True) if matrix]
    rest = [p for p, matrix in zip(split.values(), is_matrix, strict=True) if not matrix]
    parts = [gradtx.optim.Muon(ours, lr=0.02, ns_dtype=None), gradtx.optim.AdamW(rest, lr=0.03)]
    optimizers = [mixed, *parts]
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step) for o in optimizers]
    for step in range(4):
        for p in (*params.values(), *split.values()):
            p.grad = gradient(p, step)
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert [group["lr"] for group in mixed.param_groups] == [0.02 / 16, 0.03 / 16]
    assert_close(params.values(), split.values(), PUBLISHED)


@pytest.mark.slow
def test_in_groups_of_the_user_bare_names_are_muons_and_the_fallbacks_have_its_name():
    params = list(parameters().values())
    groups = [{"params": params[:3], "lr": 0.5, "adamw.lr": 0.25, "eps": 1e-3}, {"params": params[3:], "lr": 0.125}]
    with pytest.warns(
        UserWarning, match="'lr' of this group is not that of its .*; pass 'adamw.lr'"
    ):  # the second group has no matrix
        optimizer = gradtx.optim.Muon(groups, fallback=gradtx.adamw(lr=0.03))
    rates = {(group["label"], group["lr"]) for group in optimizer.param_groups}
    assert rates <= {("muon", 0.5), ("fallback", 0.25), ("muon", 0.125), ("fallback", 0.03)}
    assert {group["eps"] for group in optimizer.param_groups if group["label"] == "fallback"} == {1e-8}


def framework_groups(named, lr=None):
    """Groups as the Trainer of transformers and timm make them, and mmengine with rates that are multiples of one."""
    groups = []
    for name, param in named.items():
        bare = param.ndim < 2
        rate = {} if lr is None else {"lr": lr / 2 if bare else lr}
        groups.append({"params": [param], "weight_decay": 0.0 if bare else 0.25, "name": name, **rate})
    return groups


@pytest.mark.parametrize("lr", [None, 0.5], ids=["decay alone", "rates too"])
def test_groups_that_a_framework_made_hold_for_the_fallback_too(lr):
    """Like two optimizers whose groups have these decays, and rates with the factors of the framework."""
    sizes = {"weight": (2, 2), "kernel": (2, 2, 2), "bias": (2,)}
    ours, theirs = (
        {name: torch.nn.Parameter(torch.ones(size).double()) for name, size in sizes.items()} for _ in range(2)
    )
    optimizer = gradtx.optim.Muon(framework_groups(ours, lr), lr=0.5, ns_dtype=None, fallback=gradtx.adamw(lr=0.125))
    factor = 1.0 if lr is None else 0.5
    others = (
        torch.optim.AdamW([theirs["kernel"]], lr=0.125, weight_decay=0.25),
        torch.optim.AdamW([theirs["bias"]], lr=0.125 * factor, weight_decay=0.0),
        gradtx.optim.Muon([theirs["weight"]], lr=0.5, ns_dtype=None, weight_decay=0.25),
    )
    for step in range(3):
        for param in (*ours.values(), *theirs.values()):
            param.grad = gradient(param, step)
        for each in (optimizer, *others):
            each.step()
    assert_close(ours.values(), theirs.values(), PUBLISHED)


def test_a_fallback_without_decay_stays_without_and_a_group_in_which_leaves_mix_scales_both_rates():
    params = [torch.nn.Parameter(torch.ones(size)) for size in ((2, 2), (2,))]
    groups = [{"params": params, "lr": 0.0, "weight_decay": 0.5}]
    fallback = gradtx.adamw(lr=0.125, weight_decay=0.0)
    optimizer = gradtx.optim.Muon(groups, lr=0.5, fallback=fallback)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.0, 0.5), (0.0, 0.0)]
    groups = [{"params": params, "lr": 0.25, "adamw.lr": 1.0}]
    optimizer = gradtx.optim.Muon(groups, lr=0.5, fallback=fallback)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 1.0]


@pytest.mark.parametrize("view", ["flatten", "batch"])
def test_a_view_takes_kernels_too(view):
    chained = gradtx.chain(
        gradtx.trace_ema(0.95, nesterov=True),
        gradtx.orthogonalize("cans", view=view),
        gradtx.scale_by_shape("spectral", view=view),
        gradtx.scale_by_learning_rate(0.02),
    )
    tx = gradtx.muon(0.02, 0.0, ns_coefficients="cans", adjust_lr_fn="spectral", ns_dtype=None, view=view)
    without = ("bias", "scalar")
    ref.weights_follow(tx, chained, without=without, tolerance=PUBLISHED)
    with pytest.raises(ValueError, match="muon: flatten=True is equivalent to view='flatten', but view='batch'"):
        gradtx.muon(flatten=True, view="batch")


def test_the_fallback_gets_what_the_view_does_not_take():
    params = {"kernel": torch.ones(2, 2, 2), "bias": torch.ones(2)}
    for view, labels in (("matrix", {"fallback"}), ("batch", {"muon", "fallback"})):
        state = gradtx.muon(view=view, fallback=gradtx.sgd(momentum=0.9)).init(params)["partition"]
        assert {label for label in state if any(key != "members" for key in state[label])} == labels


@pytest.mark.slow
def test_groups_and_checkpoints_say_how_many_steps_none_stands_for_since_torch_needs_the_number():
    weight = [torch.nn.Parameter(torch.ones(2, 2))]
    for coefficients, steps in (((2.0, -1.5, 0.5), 5), ("deepseekv4", 10), ("newton_schulz", 12)):
        optimizer = gradtx.optim.Muon(weight, ns_coefficients=coefficients)
        assert optimizer.param_groups[0]["ns_steps"] == steps
        assert optimizer.state_dict()["param_groups"][0]["ns_steps"] == steps
        optimizer.param_groups[0]["ns_steps"] = None
        assert optimizer.state_dict()["param_groups"][0]["ns_steps"] is None


def test_a_group_of_other_coefficients_shows_their_own_number_of_steps_and_steps_as_with_none():
    weights = [torch.nn.Parameter(torch.linspace(0, 1, 6).view(2, 3)) for _ in range(4)]
    groups = [{"params": weights[:1]}, {"params": weights[1:2], "ns_coefficients": "deepseekv4"}]
    optimizer = gradtx.optim.Muon(groups, lr=0.1, fallback=gradtx.adamw())
    assert [group["ns_steps"] for group in optimizer.param_groups] == [5, 10]
    twins = [gradtx.muon(lr=0.1), gradtx.muon(lr=0.1, ns_coefficients="deepseekv4")]
    others = [gradtx.as_optimizer(tx, [weight]) for tx, weight in zip(twins, weights[2:], strict=True)]
    for weight in weights:
        weight.grad = torch.sin(torch.arange(6.0)).view(2, 3)
    for each in (optimizer, *others):
        each.step()
    torch.testing.assert_close(weights[:2], weights[2:], rtol=0.0, atol=0.0)
    torch_muon = torch.optim.Muon([weights[0]])
    saved = optimizer.state_dict()
    torch_muon.load_state_dict({"state": {0: saved["state"][0]}, "param_groups": saved["param_groups"][:1]})
    torch_muon.step()


@pytest.mark.parametrize("name", ["kernel", "bias", "scalar"])
def test_a_leaf_that_is_no_matrix_is_an_error_that_names_it(name):
    params = {"matrix": torch.ones(2, 2), name: torch.ones({"kernel": (2, 2, 2, 2), "bias": (2,), "scalar": ()}[name])}
    message = rf"orthogonalize: leaf '{name}' has shape \(.*\), needs 2 dimensions; .*partition.*fallback"
    with pytest.raises(ValueError, match=message):
        gradtx.muon().init(params)
    with pytest.raises(ValueError, match=rf"leaf '{name}'"):
        gradtx.optim.Muon([(key, torch.nn.Parameter(value)) for key, value in params.items()])


WITH_FALLBACK = [
    gradtx.normuon,
    gradtx.adamuon,
    gradtx.namo,
    gradtx.contra_muon,
    gradtx.aurora,
    gradtx.spectral_sphere,
    gradtx.muown,
    gradtx.polargrad,
    gradtx.muon_h,
    gradtx.muon_eq,
    gradtx.mousse,
    gradtx.mud,
    gradtx.mano,
    gradtx.asgo,
    gradtx.cosmos,
    gradtx.namo_d,
    gradtx.adago,
    gradtx.aro,
]


@pytest.mark.parametrize("alias", WITH_FALLBACK, ids=named)
def test_other_leaves_go_to_the_fallback_or_are_an_error_that_names_them(alias):
    params = {"w": torch.ones(2, 3), "b": torch.ones(3)}
    # A program of the default search takes seconds to record.
    short = {"ns_coefficients": "newton_schulz", "ns_steps": 1} if alias is gradtx.spectral_sphere else {}
    tx = alias(fallback=gradtx.sgd(lr=0.5), **short)
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["b"].tolist() == [-0.5] * 3
    with pytest.raises(ValueError, match=r"leaf 'b' has shape \(3,\), needs 2 dimensions"):
        alias().init(params)
    with pytest.raises(ValueError, match=r"leaf 'k' has shape \(2, 2, 2\), needs 2 dimensions"):
        alias().init({"k": torch.ones(2, 2, 2)})
    with pytest.raises(TypeError, match=f"{alias.__name__}: fallback must be a GradientTransformation, got sgd; call"):
        alias(fallback=gradtx.sgd)
