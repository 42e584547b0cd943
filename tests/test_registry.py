import fnmatch
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest
import pytorch_optimizer
import torch
from torch.optim import lr_scheduler

import gradtx
from gradtx.optim.classes import CLASSES
from gradtx.optim.engine.kernels import KernelEngine
from tests.conformance import functions
from tests.references import rates_left_by
from tests.tiers import by_day

ROOT = pathlib.Path(__file__).parents[1]
ALIASES = [
    name for name in gradtx.__all__ if getattr(getattr(getattr(gradtx, name), "spec", None), "kind", "") == "alias"
]


def model(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(4, 5), torch.nn.LayerNorm(5), torch.nn.Tanh(), torch.nn.Linear(5, 3, bias=False)
    return torch.nn.Sequential(*layers).to(dtype)


def trained(net, optimizer, steps=12, takes_residuals=False):
    """The weights after some steps on fixed data."""
    rng = torch.Generator().manual_seed(1)
    count = 20 if takes_residuals else 8  # dogleg needs as many residuals as parameters
    for _ in range(steps):
        x = torch.randn(count, 4, generator=rng, dtype=torch.float64)
        y = torch.randn(count, 3, generator=rng, dtype=torch.float64)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            residuals = net(x) - y
            if takes_residuals:
                return residuals
            loss = residuals.square().mean()
            if torch.is_grad_enabled():  # not for estimates from losses alone
                loss.backward()
                for param in net.parameters():
                    param.grad_sample = torch.stack([param.grad, -0.5 * param.grad])
            return loss

        optimizer.step(closure)
    return torch.cat([param.detach().flatten() for param in net.parameters()])


def made(name, seed=0, **options):
    net = model(seed)
    return trained(net, gradtx.create_optimizer(net, name, **options))


def theirs(name, **options):
    net = model()
    return trained(net, pytorch_optimizer.create_optimizer(net, name, **options))


def named(optimizer):
    return [(group["weight_decay"], group["param_names"]) for group in optimizer.param_groups]


# Classes by name.


@pytest.mark.parametrize("name", ALIASES)
def test_every_alias_is_found_by_its_name_and_by_that_of_its_class(name):
    cls = gradtx.load_optimizer(name)
    assert cls._alias is getattr(gradtx, name)
    for spelling in (name.upper(), name.replace("_", "-"), name.replace("_", ""), cls.__name__):
        assert gradtx.load_optimizer(spelling) is cls
    lower = cls.__name__.lower()
    assert gradtx.load_optimizer(lower) is CLASSES.get(lower, cls)  # `adafactor` is the paper's


def test_supported_optimizers_are_all_aliases_sorted():
    assert gradtx.get_supported_optimizers() == sorted(ALIASES)


@pytest.mark.parametrize("pattern", ["adam*", "*adam*", "*sgd", "ranger?", "lion", "nothing*", "ad[a-d]*"])
def test_a_pattern_finds_what_it_matches(pattern):
    assert gradtx.get_supported_optimizers(pattern) == sorted(fnmatch.filter(ALIASES, pattern))


def test_several_patterns_find_what_any_matches_in_any_spelling():
    found = gradtx.get_supported_optimizers(["schedule-free*", "Sophia?", "ScheduleFreeSGD", "LION"])
    schedule_free = [f"schedule_free_{name}" for name in ("adamw", "plus", "radam", "sgd")]
    assert found == ["lion", *schedule_free, "sophia"]
    assert gradtx.get_supported_optimizers(()) == []


# Schedulers by name.

OPTIONS = {
    "chebyshev": {"num_epochs": 6},
    "constant": {},
    "cosine": {"T_max": 6},
    "cosine_warm_restarts": {"T_0": 3},
    "cosine_warmup_restarts": {"first_cycle_steps": 4},
    "cyclic": {"base_lr": 0.1, "max_lr": 0.2, "step_size_up": 2},
    "explore_exploit": {"peak_lr": 0.1, "total_steps": 4},
    "exponential": {"gamma": 0.5},
    "linear": {},
    "multistep": {"milestones": [2, 3]},
    "one_cycle": {"max_lr": 0.2, "total_steps": 6},
    "piecewise_constant": {"boundaries_and_scales": {2: 0.5}},
    "piecewise_interpolate": {"interpolate_type": "linear", "boundaries_and_scales": {2: 0.5, 4: 0.1}},
    "polynomial": {},
    "rectification": {},
    "ranger21": {"num_iterations": 8},
    "restart_warmup": {"every": 3, "warmup_steps": 2},
    "step": {"step_size": 2},
    "untuned_exponential_warmup": {},
    "untuned_linear_warmup": {},
    "warmup_cosine": {"t_max": 6, "max_lr": 0.3},
    "warmup_linear": {"t_max": 6, "max_lr": 0.3},
    "warmup_poly": {"t_max": 6, "max_lr": 0.3},
    "wsd": {"num_warmup_steps": 1, "num_stable_steps": 1, "num_decay_steps": 2},
}


def test_supported_schedulers_are_the_schedules_of_a_rate():
    assert gradtx.get_supported_lr_schedulers() == sorted(OPTIONS)
    assert gradtx.get_supported_lr_schedulers(["*cosine*", "Multi-Step"]) == [
        "cosine", "cosine_warm_restarts", "cosine_warmup_restarts", "multistep", "warmup_cosine",
    ]  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_a_scheduler_by_name_sets_the_rates_of_its_schedule(name):
    factory = getattr(gradtx, f"{name}_schedule", None) or getattr(gradtx, name)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.25, 0.5)]
    optimizer = torch.optim.SGD(groups)
    scheduler = gradtx.load_lr_scheduler(name.upper().replace("_", "-"))(optimizer, **OPTIONS[name])
    assert isinstance(scheduler, lr_scheduler.LRScheduler)
    own = "lr" in factory.arguments.by_name
    for step in range(8):
        expected = [factory(**({"lr": lr} if own else {}), **OPTIONS[name])(step) for lr in (0.25, 0.5)]
        assert scheduler.get_last_lr() == expected
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("ConstantLR", (0.5, 3), {}),
        ("LinearLR", (), {"start_factor": 0.5}),
        ("PolynomialLR", (4,), {"power": 2.0}),
        ("ExponentialLR", (0.9,), {}),
        ("StepLR", (2, 0.5), {}),
        ("MultiStepLR", ([2, 4],), {}),
        ("CosineAnnealingLR", (5,), {}),
        ("CosineAnnealingWarmRestarts", (3, 2), {}),
        ("OneCycleLR", (0.3, 20), {}),
        ("CyclicLR", (0.1, 0.3, 2), {}),
    ],
)
def test_torchs_names_take_torchs_arguments(name, args, options):
    rates = [
        rates_left_by(lambda optimizer, make=make: make(optimizer, *args, **options), 12)
        for make in (getattr(lr_scheduler, name), gradtx.load_lr_scheduler(name))
    ]
    assert rates[0] == pytest.approx(rates[1], abs=1e-14)


def test_a_scheduler_by_name_resumes_from_the_last_step_at_the_rate_that_training_began_with():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    make = gradtx.load_lr_scheduler("exponential")
    make(optimizer, gamma=0.5)
    optimizer.param_groups[0]["lr"] = 0.125
    assert make(optimizer, gamma=0.5, last_epoch=3).get_last_lr() == [0.5**5]


# Making optimizers.


@by_day(
    "a2grad", "adafactor", "adam", "adamd", "adan", "adatam", "amos", "came", "dadapt_adan", "dog", "ftrl", "kate",
    "lbfgs", "momo", "muown", "novograd", "polar_adam_atan2", "qhm", "sadam", "sgd", "signsgd", "soap_muon",
    "stable_spam",
)  # fmt: skip
@pytest.mark.parametrize("name", ALIASES)
def test_every_optimizer_can_be_made_from_a_model_and_trains(name):
    required = {
        "ranger21": {"num_iterations": 20},
        "muon": {"ns_dtype": None},
        "dpsgd": {"l2_norm_clip": 1.0, "noise_multiplier": 0.5},
    }
    options = required.get(name, {})
    decays = "weight_decay" in getattr(gradtx, name).spec.arguments.by_name
    options |= {"weight_decay": 0.1} if decays else {}
    net = model()
    torch.nn.init.normal_(net[1].bias)  # adam_h takes no leaf that starts at 0
    start = torch.cat([param.detach().flatten() for param in net.parameters()])
    optimizer = gradtx.create_optimizer(net, name, **options)
    assert type(optimizer) is gradtx.load_optimizer(name)
    assert len(optimizer.param_groups) >= (2 if decays else 1)
    takes_residuals = "residual_fn" in functions(optimizer._tx)
    end = trained(net, optimizer, 11, takes_residuals)  # AdaShift waits for ten
    assert end.isfinite().all()
    assert not torch.equal(start, end)


def test_by_default_the_rate_is_a_thousandth_and_nothing_decays():
    optimizer = gradtx.create_optimizer(model(), "AdamW")
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(1e-3, 0.0)]
    assert gradtx.create_optimizer(model(), "pid").param_groups[0]["lr"] == 1e-3
    assert gradtx.create_optimizer(model(), "adafactor").param_groups[0]["relative_step"] is True


# Where pytorch_optimizer's class of the name has our defaults; decay of all weights, so that ban lists don't matter.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamp", {"eps": 1e-16}),  # which they add at another place
        ("adamw", {}),
        ("lion", {"betas": (0.8, 0.9)}),
        ("adan", {}),
        ("adabelief", {"rectify": False}),
        ("sgdp", {"momentum": 0.9, "nesterov": True}),
        ("adamp", {"use_gc": True, "eps": 1e-16}),
        ("adamw", {"use_lookahead": True}),
        ("lion", {"use_lookahead": True, "k": 3, "alpha": 0.8}),
        ("sgdw", {"momentum": 0.9, "use_lookahead": True, "k": 2, "pullback_momentum": "reset"}),
        ("sgdw", {"momentum": 0.9, "use_lookahead": True, "k": 3, "pullback_momentum": "pullback"}),
        ("adamw", {"use_orthograd": True}),
        ("adamp", {"use_gc": True, "use_lookahead": True, "k": 4, "eps": 1e-16}),
        ("ranger", {"degenerated_to_sgd": True}),
    ],
    ids=str,
)
def test_trains_as_the_one_that_pytorch_optimizer_makes(name, options):
    own = {key: value for key, value in options.items() if key != "degenerated_to_sgd"}  # what ours always does
    numbers = {"lr": 0.01, "weight_decay": 0.1, "wd_ban_list": []}
    ours, other = made(name, **numbers, **own), theirs(name, **numbers, **options)
    assert ((ours - other).norm() / other.norm()).item() < 1e-10


def test_biases_and_norms_do_not_decay_by_default():
    net = model()
    optimizer = gradtx.create_optimizer(net, "adamw", weight_decay=0.1)
    expected = [(0.1, ["0.weight", "3.weight"]), (0.0, ["0.bias", "1.weight", "1.bias"])]
    assert named(optimizer) == expected
    for group in optimizer.param_groups:
        for name, param in zip(group["param_names"], group["params"], strict=True):
            assert param is dict(net.named_parameters())[name]


@pytest.mark.parametrize(
    "norm",
    [
        torch.nn.LayerNorm(3),
        torch.nn.BatchNorm1d(3),
        torch.nn.BatchNorm2d(3),
        torch.nn.SyncBatchNorm(3),
        torch.nn.GroupNorm(1, 3),
        torch.nn.InstanceNorm3d(3, affine=True),
        torch.nn.RMSNorm(3),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_every_kind_of_norm_is_one(norm):
    net = torch.nn.ModuleDict({"normal": torch.nn.Linear(2, 3, bias=False), "x": norm})
    groups = named(gradtx.create_optimizer(net, "sgd", weight_decay=0.1))
    assert groups[0] == (0.1, ["normal.weight"])
    assert groups[1][1][0] == "x.weight"


def test_a_list_of_named_parameters_is_told_apart_by_names():
    pairs = [
        (f"block.{name}", torch.nn.Parameter(torch.ones(2))) for name in ("w", "bias", "norm.weight", "norm1.weight")
    ]
    optimizer = gradtx.create_optimizer(pairs, "adamw", weight_decay=0.1)
    assert named(optimizer) == [(0.1, ["block.w"]), (0.0, ["block.bias", "block.norm.weight", "block.norm1.weight"])]
    optimizer = gradtx.create_optimizer(iter(pairs), "adamw", weight_decay=0.1, wd_ban_list=["w"])
    assert named(optimizer)[0] == (0.1, ["block.bias"])


def test_parameters_without_names_all_decay_and_groups_stay_as_they_are():
    optimizer = gradtx.create_optimizer(model().parameters(), "adamw", weight_decay=0.1)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(5, 0.1)]
    net = model()
    groups = [{"params": net[0].parameters(), "lr": 0.5}, {"params": net[3].parameters(), "weight_decay": 0.3}]
    optimizer = gradtx.create_optimizer(groups, "adamw", weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.5, 0.1), (1e-3, 0.3)]


def test_frozen_parameters_are_left_out_and_shared_ones_taken_once():
    net = model()
    net[0].weight.requires_grad_(False)
    assert named(gradtx.create_optimizer(net, "adamw")) == [(0.0, ["0.bias", "1.weight", "1.bias", "3.weight"])]
    tied = torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)])
    tied[1].weight = tied[0].weight
    assert named(gradtx.create_optimizer(tied, "adamw", weight_decay=0.1)) == [(0.1, ["0.weight"])]
    assert named(gradtx.create_optimizer(tied, "adamw", weight_decay=0.1, wd_ban_list=["1.w"])) == [(0.0, ["0.weight"])]


def test_links_around_it_are_the_ones_of_a_chain():
    for options, tx in (
        ({"use_gc": True}, gradtx.chain(gradtx.centralize(), gradtx.adamp(0.01))),
        ({"use_gc": True, "gc_conv_only": True}, gradtx.chain(gradtx.centralize(conv_only=True), gradtx.adamp(0.01))),
        ({"use_orthograd": True}, gradtx.chain(gradtx.orthogonalize_against_params(), gradtx.adamp(0.01))),
        ({"use_lookahead": True, "k": 3}, gradtx.chain(gradtx.adamp(0.01), gradtx.lookahead(k=3))),
        (
            {"use_lookahead": True, "k": 3, "pullback_momentum": "pullback"},
            gradtx.with_lookahead(gradtx.adamp(0.01), k=3, pullback_momentum="pullback"),
        ),
    ):
        net = model()
        assert torch.equal(made("adamp", lr=0.01, **options), trained(net, gradtx.as_optimizer(tx, net.parameters())))


def test_an_option_that_the_optimizer_has_itself_is_its_own():
    optimizer = gradtx.create_optimizer(model(), "rmsprop", use_lookahead=True, alpha=0.7, k=3)
    assert optimizer.param_groups[0]["alpha"] == 0.7
    assert (optimizer.param_groups[0]["k"], optimizer.param_groups[0]["lookahead.alpha"]) == (3, 0.5)
    assert gradtx.create_optimizer(model(), "ranger").param_groups[0]["use_gc"] is True
    optimizer = gradtx.create_optimizer(model(), "ranger", use_gc=False)
    assert type(optimizer) is gradtx.optim.Ranger
    assert optimizer.param_groups[0]["use_gc"] is False


def test_ranger_has_a_lookahead_already():
    with pytest.warns(
        UserWarning, match=r"^create_optimizer: ranger already includes a lookahead; omit use_lookahead$"
    ) as seen:
        optimizer = gradtx.create_optimizer(model(), "ranger", use_lookahead=True)
    assert seen[0].filename == __file__
    assert type(optimizer) is gradtx.optim.Ranger


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_a_method_for_hidden_matrices_warns_of_embeddings_and_heads(name):
    remedy = r"gradtx\.muon_for\(model\), or partition by the roles of label_by_role"
    net = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 5))
    with pytest.warns(UserWarning, match=rf"{name} also steps embeddings and heads \(0.weight, 2.weight\).*{remedy}"):
        gradtx.create_optimizer(net, name)
    gradtx.create_optimizer(net, name, fallback=gradtx.adamw())  # whoever passes one has chosen
    gradtx.create_optimizer(net[1:2], name)


def test_muon_has_an_adamw_for_what_is_no_matrix_and_a_group_a_part():
    optimizer = gradtx.create_optimizer(model(), "muon", lr=0.02, weight_decay=0.1, ns_dtype=None)
    assert [group["label"] for group in optimizer.param_groups] == ["muon", "fallback"]
    assert trained(model(), optimizer, 1).isfinite().all()
    own = gradtx.create_optimizer(model(), "muon", fallback=gradtx.sgd(0.1))
    assert [("dampening" in group, group["lr"]) for group in own.param_groups] == [(False, 1e-3), (True, 0.1)]


def test_schedules_tensors_seeds_and_engines_go_through():
    rate = gradtx.linear_schedule(0.1, 0.5, total_iters=2)
    optimizer = gradtx.create_optimizer(model(), "adamw", lr=rate, weight_decay=gradtx.constant_schedule(0.1))
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    optimizer = gradtx.create_optimizer(model(), "sophia", seed=3, use_lookahead=True)
    assert optimizer.param_groups[0]["hessian_seed"] == 3
    assert gradtx.create_optimizer(model(), "sophia", seed=3).param_groups[0]["hessian_seed"] == 3
    assert gradtx.create_optimizer(model(), "alig", lr=0.2).param_groups[0]["lr"] == 0.2
    for options in ({}, {"use_lookahead": True}):
        engine = KernelEngine()
        compiled = gradtx.create_optimizer(model(), "adamw", compile=engine, **options)
        assert compiled._core.back_ends[0] is engine


# Old names.


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("adam", {"weight_decouple": True}, {"decoupled_weight_decay": True}),
        ("adabelief", {"weight_decouple": False}, {"decoupled_weight_decay": False}),
        ("adan", {"weight_decouple": True}, {"no_prox": True}),
        ("adam", {"ams_bound": True}, {"amsgrad": True}),
        ("radam", {"n_sma_threshold": 4}, {"rho_threshold": 4}),
        ("yogi", {"initial_accumulator": 1e-3}, {"initial_accumulator_value": 1e-3}),
        ("accsgd", {"constant": 0.6}, {"small_const": 0.6}),
        ("prodigy", {"bias_correction": True}, {"use_bias_correction": True}),
        ("apollo", {"warmup_steps": 3}, {"warmup": 3}),
        ("sophia", {"p": 0.02}, {"gamma": 0.02}),
        ("grokfast_adamw", {"grokfast_alpha": 0.9}, {"alpha": 0.9}),
        ("grokfast_adamw", {"grokfast_lamb": 3.0}, {"lamb": 3.0}),
        ("spam", {"grad_accu_steps": 7}, {"clip_after": 7}),
        ("spam", {"update_proj_gap": 70}, {"every": 70}),
        ("spam", {"warmup_epoch": 5}, {"warmup_steps": 5}),
        ("stable_spam", {"t_max": 30}, {"total_steps": 30}),
        ("laprop", {"ams_bound": True}, {"amsgrad": True}),
        ("padam", {"weight_decouple": True}, {"decoupled_weight_decay": True}),
        ("adam", {"learning_rate": 0.5}, {"lr": 0.5}),
    ],
    ids=str,
)
def test_an_old_name_means_the_new_one_and_warns_at_the_callers_line(name, old, new):
    ((wrong, _),), ((right, value),) = old.items(), new.items()
    with pytest.warns(FutureWarning, match=f"^create_optimizer: '{wrong}' is now '{right}'$") as seen:
        optimizer = gradtx.create_optimizer(model(), name, weight_decay=0.1, **old)
    assert [warning.filename for warning in seen] == [__file__]
    assert all(group[right] == value for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "adam",
            {"ams_bound": True, "amsgrad": True},
            "'ams_bound' is an alias of 'amsgrad', but both are given; pass one",
        ),
        ("a2grad", {"lr": 0.1}, "a2grad has no learning rate; omit 'lr'"),
        ("nero", {"weight_decay": 0.1}, "nero has no weight_decay; omit it"),
        ("adamp", {"wd_ban_list": "bias"}, "wd_ban_list must be a list of patterns, got 'bias'"),
    ],
    ids=str,
)
def test_an_option_without_a_meaning_here_is_an_error_that_says_what_to_do(name, options, message):
    with pytest.raises(TypeError, match=f"^create_optimizer: {re.escape(message)}"):
        gradtx.create_optimizer(model(), name, **options)


def test_unknown_options_and_bad_numbers_are_errors_of_the_optimizer():
    with pytest.raises(TypeError, match=r"^adamp: unknown argument 'nesterof'; did you mean 'nesterov'\?$"):
        gradtx.create_optimizer(model(), "adamp", nesterof=True)
    with pytest.raises(TypeError, match="'differentiable' is not an option of gradtx"):
        gradtx.create_optimizer(model(), "adamp", differentiable=True, use_gc=True)
    with pytest.warns(UserWarning, match=r"^create_optimizer: foreach=True chooses between implementations of torch"):
        gradtx.create_optimizer(model(), "adamp", foreach=True, use_gc=True)
    with pytest.raises(TypeError, match=r"^adamp: unknown argument 'k'"):
        gradtx.create_optimizer(model(), "adamp", k=3)
    with pytest.raises(ValueError, match=r"^adamp: lr must be in \[0, inf\), got -1.0$"):
        gradtx.create_optimizer(model(), "adamp", lr=-1.0)
    with pytest.raises(ValueError, match=r"^adamp: weight_decay must be in \[0, inf\), got -0.1$"):
        gradtx.create_optimizer(model(), "adamp", weight_decay=-0.1)
    with pytest.raises(TypeError, match=r"^ranger21: missing argument 'num_iterations'$"):
        gradtx.create_optimizer(model(), "ranger21")


def test_a_wrong_model_is_an_error_that_says_so():
    for wrong, message in ((None, "got None"), (3, "got 3"), (torch.ones(2), "got one tensor")):
        with pytest.raises(TypeError, match=f"^create_optimizer: needs a model or a list of parameters, {message}$"):
            gradtx.create_optimizer(wrong, "adamp")
    with pytest.raises(ValueError, match=r"^create_optimizer: the model has no parameter that requires a gradient$"):
        gradtx.create_optimizer(torch.nn.Tanh(), "adamp")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: gradtx.load_optimizer("adampp"),
            ValueError,
            "load_optimizer: unknown optimizer 'adampp'; did you mean 'adamp'?",
        ),
        (
            lambda: gradtx.create_optimizer(None, "lomentum"),
            ValueError,
            "create_optimizer: unknown optimizer 'lomentum'; gradtx.get_supported_optimizers() lists all names",
        ),
        (
            lambda: gradtx.load_optimizer("adamw_8bit"),
            ValueError,
            "load_optimizer: unknown optimizer 'adamw_8bit'; pass state_dtype=\"int8\" to any optimizer",
        ),
        (lambda: gradtx.load_optimizer(3), TypeError, "load_optimizer: the name of optimizer must be a str, got 3"),
        (
            lambda: gradtx.create_optimizer(torch.nn.Linear(2, 2), "adamp", compile_kwargs={}),
            TypeError,
            "adamp: unknown argument 'compile_kwargs'; omit it; compile=True writes kernels of its own",
        ),
        (
            lambda: gradtx.create_optimizer(torch.nn.Linear(2, 2), "adamp", weight_decouple=True),
            TypeError,
            "adamp: unknown argument 'weight_decouple'; this optimizer has only one form of weight decay; omit it",
        ),
        (
            lambda: gradtx.load_lr_scheduler("cosin"),
            ValueError,
            "load_lr_scheduler: unknown scheduler 'cosin'; did you mean 'cosine'?",
        ),
        (
            lambda: gradtx.get_supported_optimizers(3),
            TypeError,
            "get_supported_optimizers: filters must be a pattern or a list of patterns, got 3",
        ),
        (
            lambda: gradtx.load_lr_scheduler("cosine")(None, 10),
            TypeError,
            "cosine_schedule: the first argument must be the optimizer, got None",
        ),
        (lambda: scheduled("cosine", 1, 2, 3, 4), TypeError, "cosine_schedule: takes at most 3 positional arguments"),
        (lambda: scheduled("cosine", 1, T_max=2), TypeError, "cosine_schedule: got two values for 'T_max'"),
        (
            lambda: scheduled("step", step_sizes=2),
            TypeError,
            "step_schedule: unknown argument 'step_sizes'; did you mean 'step_size'?",
        ),
    ],
)
def test_a_wrong_name_is_an_error_with_the_nearest_one(call, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()


def scheduled(name, *args, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    return gradtx.load_lr_scheduler(name)(optimizer, *args, **options)


# torch.hub.


def test_torch_hub_finds_the_class_of_every_optimizer():
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    listed = [name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")]
    assert listed == gradtx.get_supported_optimizers()  # what torch.hub.list says of a repository
    cls = torch.hub.load(str(ROOT), "adamp", source="local")
    assert cls is gradtx.optim.AdamP
    assert "AdamP" in module.adamp.__doc__


@pytest.mark.nightly  # another process; the test before has the same hubconf.py in this one
def test_torch_hub_works_where_gradtx_is_not_installed(tmp_path):
    code = f"import torch; print(torch.hub.load({str(ROOT)!r}, 'lion', source='local').__module__)"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "gradtx.optim", run.stderr
