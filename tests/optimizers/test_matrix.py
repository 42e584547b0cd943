import itertools
import math

import adam_atan2_pytorch
import pytest
import torch
from torch import Tensor

import gradtx
from tests import references as ref
from tests.matrix_problem import merge, newton_schulz, times, unfolded
from tests.optim.problems import assert_close, descend, gradient, parameters, saved_and_loaded, twins
from tests.references import BETA, PUBLISHED, RATE

NOT_MATRICES = ("kernel", "bias", "scalar")
JORDAN = (3.4445, -4.7750, 2.0315)
PUBLISHED_POLAR = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]


def polar(steps):
    listed = [(a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in PUBLISHED_POLAR[:-1]] + [PUBLISHED_POLAR[-1]]
    return [listed[min(i, 7)] for i in range(steps)]


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


# Matrices and Adam-atan2.


def mixed(orth, prefix):
    def rule(s, t, g, p, **options):
        o = {
            "lr": 1e-4, "betas": (0.9, 0.99), f"{prefix}_lr": None, "weight_decay": 0.0, "decoupled_wd": False,
            "cautious_factor": 1.0, "a": 1.27, "b": 1.0, f"{prefix}_beta1": 0.95, f"{prefix}_beta2": 0.95,
            f"{prefix}_steps": 5, f"{prefix}_rms_factor": 0.2, "use_normuon": False, "normuon_eps": 1e-10,
            "matrix_ndims": (2, 3), **options,
        }  # fmt: skip
        lr, factor = o["lr"], o["cautious_factor"]
        if p.ndim not in o["matrix_ndims"]:
            wd = o["weight_decay"] / (s.first if t > 1 else lr) if o["decoupled_wd"] else o["weight_decay"]
            if t == 1:
                s.first = lr
            b1, b2 = o["betas"]
            s.m, s.v = b1 * s.m + (1 - b1) * g, b2 * s.v + (1 - b2) * g**2
            u = torch.atan2(s.m / (1 - b1**t), o["b"] * (s.v / (1 - b2**t)).sqrt())
            if factor < 1:
                u = u * ref.caution_weights(u, g, factor)
            return p * (1 - lr * wd) - lr * o["a"] * u
        lr = lr if o[f"{prefix}_lr"] is None else o[f"{prefix}_lr"]
        if t == 1:
            s.first = lr
        wd = o["weight_decay"] / s.first if o["decoupled_wd"] else o["weight_decay"]
        s.m = o[f"{prefix}_beta1"] * s.m + (1 - o[f"{prefix}_beta1"]) * g
        batch = s.m.reshape(-1, *p.shape[-2:])
        u = torch.stack([orth(m, o[f"{prefix}_steps"]) for m in batch])
        if o["use_normuon"]:
            beta, eps = o[f"{prefix}_beta2"], o["normuon_eps"]
            size = u.flatten(1).norm(dim=1)[:, None, None]
            s.q = beta * s.q + (1 - beta) * (u**2).mean(-1, keepdim=True)
            u = u / (s.q.sqrt() + eps)
            u = u * size / u.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
        u = u.reshape(p.shape) * math.sqrt(max(p.shape[-2:])) * o[f"{prefix}_rms_factor"]
        if factor < 1:
            u = u * ref.caution_weights(u, g, factor)
        return p * (1 - lr * wd) - lr * u

    return rule


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


CASES = [
    *((gradtx.muon_adam_atan2, muon_mixed, spelled(options, "muon")) for options in [*MIXED, *NORMUON]),
    *((gradtx.polar_adam_atan2, polar_mixed, spelled(options, "polar")) for options in MIXED),
]


@pytest.mark.parametrize(("alias", "rule", "options"), CASES, ids=ref.named)
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


# Shampoo.


def powered(H: Tensor, exponent: float, floor: float = 0.0) -> Tensor:
    left, values, right = torch.linalg.svd(H)
    return left @ torch.diag(values.clamp(min=floor) ** exponent) @ right


def shampoo(
    s, t, g, p, lr=1e-1, momentum=0.0, weight_decay=0.0, decoupled_weight_decay=False, matrix_eps=1e-4,
    preconditioning_compute_steps=1, variant="paper",
):  # fmt: skip
    k = p.ndim
    if t == 1:
        s.b, s.H, s.R = g, [matrix_eps * torch.eye(n, dtype=p.dtype) for n in p.shape], [0] * k
    u = (1 - momentum) * g + momentum * s.b
    decayed = p * (1 - lr * weight_decay) if decoupled_weight_decay else p
    u = u if decoupled_weight_decay else u + weight_decay * p
    d = u
    for i in range(k):
        x = unfolded(u if variant == "paper" else d, i)
        s.H[i] = s.H[i] + x @ x.T
        if (t - 1) % preconditioning_compute_steps == 0:
            s.R[i] = powered(s.H[i], -1 / (2 * k) if variant == "paper" else -1 / k, matrix_eps)
        d = times(d, s.R[i], i)
    s.b = d
    return decayed - lr * d


SHAMPOO = [
    {},
    {"lr": 0.02, "momentum": 0.7, "weight_decay": 0.3, "preconditioning_compute_steps": 3, "matrix_eps": 0.01},
    {"lr": 0.02, "momentum": 0.7, "weight_decay": 0.3, "decoupled_weight_decay": True, "matrix_eps": 0.1},
    {"lr": 0.02, "variant": "moskomule", "momentum": 0.5, "weight_decay": 0.1, "matrix_eps": 0.01},
    {"lr": 0.02, "variant": "moskomule", "preconditioning_compute_steps": 4, "matrix_eps": 0.1},
    {"lr": RATE, "momentum": BETA, "weight_decay": RATE, "matrix_eps": 0.1},
]
# The null space of H is magnified by its inverse root: 1e-16 of H is 1e-12 of matrix_eps.
ROOTS = 1e-10


@pytest.mark.parametrize("options", SHAMPOO, ids=ref.named)
def test_shampoo_follows_the_loop(options):
    ref.follows(gradtx.shampoo(**options), ref.WeightsLoop(shampoo, **options), tolerance=ROOTS)


# Scalable Shampoo.


def cut(shape, size):
    """Slices of all blocks, the last dimension fastest."""
    edges = [[slice(k, min(k + size, n)) for k in range(0, n, size)] for n in shape]
    return list(itertools.product(*edges))


def scalable_shampoo(
    s, t, g, p, lr=1e-3, betas=(0.9, 0.999), moving_average_for_momentum=False, weight_decay=0.0,
    decoupled_weight_decay=False, inverse_exponent_override=0, start_preconditioning_step=25,
    preconditioning_compute_steps=1000, statistics_compute_steps=1, block_size=512, skip_preconditioning_rank_lt=1,
    no_preconditioning_for_layers_with_dim_gt=8192, shape_interpretation=True, graft_type="sgd",
    pre_conditioner_type="all", nesterov=True, diagonal_eps=1e-10, matrix_eps=1e-6,
):  # fmt: skip
    b1, b2 = betas
    w2 = 1.0 if b2 == 1 else 1 - b2
    shape = merge(p.shape, block_size) if shape_interpretation else list(p.shape)
    skipped = len(shape) <= 1 or p.ndim < skip_preconditioning_rank_lt
    skipped = skipped or any(n > no_preconditioning_for_layers_with_dim_gt for n in p.shape)
    every = list(range(len(shape)))
    dims = {"all": every, "input": every[:-1], "output": every[-1:]}[pre_conditioner_type]
    where = [] if skipped else cut(shape, block_size)
    s.seen.add((s.name, len(where)))
    if t == 1:
        sizes = [[index[i].stop - index[i].start for i in dims] for index in where]
        s.L = [[matrix_eps * torch.eye(n, dtype=p.dtype) for n in block] for block in sizes]
        s.P = [[torch.eye(n, dtype=p.dtype) for n in block] for block in sizes]
    if graft_type == "adagrad":
        s.D = s.D + g**2
    if graft_type == "rmsprop":
        s.D = b2 * s.D + w2 * g**2
    u = g
    if graft_type in ("adagrad", "rmsprop"):
        u = g / (s.D.sqrt() + diagonal_eps)
    if graft_type == "sqrtn":
        u = torch.sign(g)
    out = u if skipped else torch.zeros(shape, dtype=p.dtype)
    for n, index in enumerate(where):
        G = g.reshape(shape)[index]
        for j, i in enumerate(dims):
            if t % statistics_compute_steps == 0:
                s.L[n][j] = b2 * s.L[n][j] + w2 * unfolded(G, i) @ unfolded(G, i).T
            if t % preconditioning_compute_steps == 0:
                L, top = s.L[n][j], torch.linalg.matrix_norm(s.L[n][j], 2).item()
                e = inverse_exponent_override or 2 * len(dims)
                s.P[n][j] = powered(L + matrix_eps * max(top, 1e-16) * torch.eye(len(L), dtype=p.dtype), -1 / e)
        block = G
        for j, i in enumerate(dims):
            block = times(block, s.P[n][j], i)
        out[index] = block
    out = out.reshape(p.shape)
    if graft_type != "none":
        out = out * u.norm() / (out.norm() + 1e-16)
    if not decoupled_weight_decay:
        out, u = out + weight_decay * p, u + weight_decay * p
    w = 1 - b1 if moving_average_for_momentum else 1.0
    s.M, s.U = b1 * s.M + w * out, b1 * s.U + w * u
    d, c = (s.M, out) if t >= start_preconditioning_step else (s.U, u)
    if nesterov:
        d = b1 * d + w * c
    return p - lr * (d + weight_decay * p if decoupled_weight_decay else d)


BLOCKS = {"lr": 0.02, "block_size": 3, "start_preconditioning_step": 5, "preconditioning_compute_steps": 2}
SCALABLE = [
    {},
    {**BLOCKS, "betas": (0.8, 0.9), "weight_decay": 0.2, "matrix_eps": 1e-3},
    {**BLOCKS, "block_size": 4, "graft_type": "rmsprop", "weight_decay": 0.2, "decoupled_weight_decay": True},
    {**BLOCKS, "graft_type": "adagrad", "diagonal_eps": 0.1, "nesterov": False, "moving_average_for_momentum": True},
    {**BLOCKS, "graft_type": "sqrtn", "shape_interpretation": False, "statistics_compute_steps": 3},
    {**BLOCKS, "graft_type": "none", "pre_conditioner_type": "input", "inverse_exponent_override": 3},
    {**BLOCKS, "pre_conditioner_type": "output", "betas": (0.9, 1.0), "graft_type": "rmsprop"},
    {**BLOCKS, "skip_preconditioning_rank_lt": 3, "moving_average_for_momentum": True},
    {**BLOCKS, "no_preconditioning_for_layers_with_dim_gt": 3},
    {**BLOCKS, "lr": RATE, "betas": (BETA, BETA), "weight_decay": RATE, "matrix_eps": 0.1},
]


@pytest.mark.parametrize("options", SCALABLE, ids=ref.named)
def test_scalable_shampoo_follows_the_loop(options):
    ref.follows(gradtx.scalable_shampoo(**options), ref.WeightsLoop(scalable_shampoo, **options), tolerance=ROOTS)


def test_leaves_are_cut_into_as_many_blocks_as_the_reference_says():
    reference = ref.WeightsLoop(scalable_shampoo, **BLOCKS)
    ref.run(reference)
    assert reference.seen == {("matrix", 2), ("kernel", 1), ("rows", 2), ("whole", 2), ("bias", 0), ("scalar", 0)}


# SOAP; tests/optimizers/test_eigenbasis.py has its loop.


@pytest.mark.parametrize(("shape", "is_quotient"), [((3, 4), True), ((5, 2), False), ((2, 5), False)], ids=str)
def test_soap_has_a_derivative_by_its_second_beta_where_the_first_statistics_leave_no_basis_open(shape, is_quotient):
    """A dimension larger by two or more than the product of the others has a repeated eigenvalue 0 at first."""
    start, fixed, weights = (gradient(torch.zeros(shape, dtype=torch.float64), t) for t in range(3))

    def result(beta):
        tx, params = gradtx.soap(lr=0.1, betas=(0.95, beta), eps=0.1, precondition_frequency=2), {"w": start}
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update({"w": params["w"].sin() + fixed}, state, params)
            params = gradtx.apply_updates(params, updates)
        return (weights * params["w"]).sum()

    beta, h = torch.tensor(0.95, dtype=torch.float64), 1e-6
    slope, quotient = torch.func.grad(result)(beta), (result(beta + h) - result(beta - h)) / (2 * h)
    assert slope.isfinite()
    assert ((slope - quotient).abs() < 1e-5 * (1 + quotient.abs())) == is_quotient  # rounding of 1e-15 / h


# All.


@pytest.mark.parametrize("make", [gradtx.shampoo, gradtx.scalable_shampoo, gradtx.soap], ids=ref.named)
def test_a_leaf_whose_first_gradient_comes_late_moves(make):
    options = {gradtx.shampoo: {"preconditioning_compute_steps": 100}}.get(make, {})
    tx, params = make(**options), {"w": torch.ones(2, 3), "x": torch.ones(2)}
    state = tx.init(params)
    for t in range(3):
        grads = {"w": torch.randn(2, 3) if t else None, "x": torch.ones(2)}
        updates, state = tx.update(grads, state, params)
    assert updates["w"].abs().min() > 0


@pytest.mark.parametrize("tx", [gradtx.shampoo(lr=1.0), gradtx.soap(lr=1.0, precondition_1d=True)], ids=ref.named)
def test_gradients_through_training_are_finite_at_equal_eigenvalues(tx):
    scale = torch.tensor(1.0, requires_grad=True)
    params = {"w": torch.ones(4), "m": torch.eye(3)}
    state, total = tx.init(params), 0.0
    for _ in range(3):
        updates, state = tx.update({name: scale * p for name, p in params.items()}, state, params)
        total = total + sum(u.sum() for u in updates.values())
    (slope,) = torch.autograd.grad(total, scale)
    assert slope.isfinite()
