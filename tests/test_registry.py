import fnmatch
import importlib.util
import operator
import pathlib
import re
import subprocess
import sys

import pytest
import pytorch_optimizer
import torch
from torch.optim import lr_scheduler

import gradtx
from gradtx import _counterparts
from gradtx.optim.classes import CLASSES
from tests import migration
from tests.daily import by_day
from tests.migration import NOTES, PAGE, REQUIRED, SCHEDULER_NOTES, SCHEDULERS, counterpart, page
from tests.references import rates_left_by

ROOT = pathlib.Path(__file__).parents[1]
ALIASES = [
    name for name in gradtx.__all__ if getattr(getattr(getattr(gradtx, name), "spec", None), "kind", "") == "alias"
]


def model(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = torch.nn.Linear(4, 5), torch.nn.LayerNorm(5), torch.nn.Tanh(), torch.nn.Linear(5, 3, bias=False)
    return torch.nn.Sequential(*layers).to(dtype)


def trained(net, optimizer, steps=12):
    """The weights after some steps on fixed data."""
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(8, 4, generator=rng, dtype=torch.float64)
        y = torch.randn(8, 3, generator=rng, dtype=torch.float64)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
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


def test_what_stands_for_a_name_of_another_library_exists():
    for use in _counterparts.USE.values():
        for path in re.findall(r"gradtx\.([\w.]+)", use):
            operator.attrgetter(path)(gradtx)


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
    assert found == ["lion", "schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd", "sophia"]
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
    options = {"num_iterations": 20} if name == "ranger21" else {"ns_dtype": None} if name == "muon" else {}
    decays = "weight_decay" in getattr(gradtx, name).spec.arguments.by_name
    options |= {"weight_decay": 0.1} if decays else {}
    net = model()
    torch.nn.init.normal_(net[1].bias)  # adam_h takes no leaf that starts at 0
    start = torch.cat([param.detach().flatten() for param in net.parameters()])
    optimizer = gradtx.create_optimizer(net, name, **options)
    assert type(optimizer) is gradtx.load_optimizer(name)
    assert len(optimizer.param_groups) >= (2 if decays else 1)
    end = trained(net, optimizer, 11)  # AdaShift waits for ten
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


def test_the_list_may_be_overridden_by_parts_of_names_classes_and_patterns():
    for ban, banned in (
        ([], []),
        (["bias"], ["0.bias", "1.bias"]),
        (["LayerNorm.weight"], ["1.weight"]),
        (["LayerNorm"], ["1.weight", "1.bias"]),
        (["3.*", "0.w"], ["0.weight", "3.weight"]),
    ):
        groups = named(gradtx.create_optimizer(model(), "adamw", weight_decay=0.1, wd_ban_list=ban))
        kept = [name for name, _ in model().named_parameters() if name not in banned]
        assert groups == [(0.1, kept)] + ([(0.0, banned)] if banned else [])
    everything = gradtx.create_optimizer(model(), "adamw", weight_decay=0.1, wd_ban_list=("*",))
    assert [group["weight_decay"] for group in everything.param_groups] == [0.0]


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


@pytest.mark.parametrize(
    ("name", "remedy"),
    {"muon": r"gradtx\.muon_for\(model\)", "normuon": "gradtx.partition, by the roles of label_by_role"}.items(),
)
def test_a_method_for_hidden_matrices_warns_of_embeddings_and_heads(name, remedy):
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
    compiled = gradtx.create_optimizer(model(), "adamw", compile=True, compile_kwargs={"mode": "default"})
    assert compiled._engine is not None
    assert gradtx.create_optimizer(model(), "adamw", compile_kwargs={"mode": "default"})._engine is None


@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        ({"mode": "default"}, {}),
        ({"options": {"max_autotune": True}}, {"max_autotune": True}),
        ({"max_autotune": True}, {"max_autotune": True}),
    ],
)
def test_keywords_of_torch_compile_reach_the_compiler(keywords, options):
    optimizer = gradtx.create_optimizer(model(), "adamw", compile=True, compile_kwargs=keywords)
    assert optimizer._engine._options == options


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"mode": "default", "options": {"max_autotune": True}}, "compile_kwargs contains both a mode and options"),
        ({"mode": "fast"}, "unknown mode 'fast'"),
        ({"fullgraph": True}, "torch's compiler has no option 'fullgraph'"),
    ],
)
def test_keywords_that_do_not_fit_are_refused_when_the_optimizer_is_made(keywords, text):
    with pytest.raises(ValueError, match=text):
        gradtx.create_optimizer(model(), "adamw", compile=True, compile_kwargs=keywords)


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
    ("name", "old", "new"),
    [
        ("came", {"eps2": 1e-9}, {"eps": (1e-30, 1e-9)}),
        ("came", {"eps1": 1e-20, "eps2": 1e-9}, {"eps": (1e-20, 1e-9)}),
        ("stable_spam", {"gamma1": 0.5}, {"gammas": (0.5, 0.9)}),
        ("ademamix", {"t_alpha_beta3": 40}, {"alpha_warmup": 40, "beta3_warmup": 40}),
    ],
    ids=str,
)
def test_old_names_are_put_together_and_shared_out(name, old, new):
    with pytest.warns(FutureWarning, match=r"^create_optimizer: '\w+' is now ") as seen:
        optimizer = gradtx.create_optimizer(model(), name, **old)
    assert [warning.filename for warning in seen] == [__file__] * len(old)
    assert {option: optimizer.param_groups[0][option] for option in new} == new


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("adamp", {"weight_decouple": True}, "the decay of adamp always is decoupled; omit 'weight_decouple'"),
        ("sgd", {"weight_decouple": False}, "the decay of sgd always is added to the gradient; omit"),
        ("adamp", {"fixed_decay": False}, "adamp does not accept 'fixed_decay'; omit it"),
        ("adamp", {"adam_debias": False}, "adamp does not accept 'adam_debias'; omit it"),
        ("adamp", {"adanorm": False}, "adamp does not accept 'adanorm'; omit it"),
        ("lion", {"ams_bound": False}, "lion does not accept 'ams_bound'; omit it"),
        ("diffgrad", {"rectify": False}, "diffgrad does not accept 'rectify'; omit it"),
    ],
    ids=str,
)
def test_a_switch_that_says_what_is_so_anyway_only_warns(name, option, message):
    with pytest.warns(FutureWarning, match=f"^create_optimizer: {message}"):
        gradtx.create_optimizer(model(), name, **option)


def test_an_option_that_is_an_optimizers_own_is_not_translated():
    optimizer = gradtx.create_optimizer(model(), "ranger", n_sma_threshold=4.5)
    assert optimizer.param_groups[0]["n_sma_threshold"] == 4.5
    optimizer = gradtx.create_optimizer(model(), "adabelief", fixed_decay=True)
    assert optimizer.param_groups[0]["fixed_decay"] is True


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamp", {"weight_decouple": False}, "the decay of adamp is decoupled; omit 'weight_decouple'"),
        ("sgd", {"weight_decouple": True}, "the decay of sgd is added to the gradient; omit 'weight_decouple'"),
        (
            "novograd",
            {"weight_decouple": False},
            "the decay of novograd has its own form; omit 'weight_decouple'",
        ),
        ("adamp", {"ams_bound": True}, "adamp does not accept 'ams_bound'; this optimizer has no amsgrad"),
        ("adam", {"adam_debias": True}, "adam does not accept 'adam_debias'; use gradtx.adamd"),
        (
            "adamp",
            {"fixed_decay": True},
            "adamp does not accept 'fixed_decay'; add add_decayed_weights(weight_decay, fixed=",
        ),
        ("adamp", {"adanorm": True}, "adamp does not accept 'adanorm'; use gradtx.adanorm"),
        ("diffgrad", {"rectify": True}, "diffgrad does not accept 'rectify'; use gradtx.radam"),
        (
            "adam",
            {"ams_bound": True, "amsgrad": True},
            "'ams_bound' is an alias of 'amsgrad', but both are given; pass one",
        ),
        ("mars", {"mars_type": "lion"}, "mars_adamw does not accept 'mars_type'; use gradtx.mars_adamw or"),
        (
            "grokfast_adamw",
            {"normalize_lr": True},
            "grokfast_adamw does not accept 'normalize_lr'; divide lr by 1 + lamb",
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
            "load_optimizer: unknown optimizer 'adampp'; did you mean 'adamp' or 'adam",
        ),
        (
            lambda: gradtx.create_optimizer(None, "adampp"),
            ValueError,
            "create_optimizer: unknown optimizer 'adampp'; did you mean 'adamp'",
        ),
        *(
            (
                lambda name=name: gradtx.create_optimizer(None, name),
                ValueError,
                f"create_optimizer: unknown optimizer {name!r}; "
                f"gradtx.get_supported_optimizers({pattern!r}) lists names with this prefix",
            )
            for name, pattern in {
                "adlomo": "ad*",
                "AdamQ": "adam*",
                "lasgd": "la*",
            }.items()
        ),
        *(
            (
                lambda name=name: gradtx.load_optimizer(name),
                ValueError,
                f"load_optimizer: unknown optimizer {name!r}; did you mean {meant!r}",
            )
            for name, meant in {"admw": "adamw", "muonn": "muon", "RMSporp": "rmsprop", "shampo": "shampoo"}.items()
        ),
        *(
            (
                lambda name=name: gradtx.load_optimizer(name),
                ValueError,
                f"load_optimizer: unknown optimizer {name!r}; closest matches: {nearest}; "
                f"gradtx.get_supported_optimizers() lists all {len(CLASSES)}",
            )
            for name, nearest in {"EXAdam": "adam, sadam, radam", "vsgd": "sgd, sgdw, sgds"}.items()
        ),
        *(
            (
                lambda name=name: gradtx.load_optimizer(name),
                ValueError,
                f"load_optimizer: unknown optimizer {name!r}; {use}",
            )
            for name, use in {
                "lomo": "use gradtx.optim.SGD and call its release_gradients()",
                "AdaLOMO": "use gradtx.optim.AdaFactor and call its release_gradients()",
                "DistributedMuon": "use gradtx.optim.Muon, which divides its work among ranks",
                "AdamWScheduleFree": "use gradtx.optim.ScheduleFreeAdamW",
                "StepLR": "use torch's own, which works with gradtx optimizers: torch.optim.lr_scheduler.StepLR",
            }.items()
        ),
        (
            lambda: gradtx.load_lr_scheduler("warmup_restarts"),
            ValueError,
            "load_lr_scheduler: unknown scheduler 'warmup_restarts'; "
            "gradtx.get_supported_lr_schedulers('warmup*') lists names with this prefix",
        ),
        *(
            (
                lambda name=name: gradtx.load_optimizer(name),
                ValueError,
                f'load_optimizer: unknown optimizer {name!r}; for 8-bit state, pass state_dtype="int8"',
            )
            for name in ("adamw8bit", "bnb_adamw8bit")
        ),
        (
            lambda: gradtx.load_optimizer(optimizer="kron"),
            ValueError,
            "load_optimizer: unknown optimizer 'kron'; did you mean 'psgd_kron'?",
        ),
        (
            lambda: gradtx.load_optimizer("quux!"),
            ValueError,
            f"load_optimizer: unknown optimizer 'quux!'; gradtx.get_supported_optimizers() lists all {len(CLASSES)}",
        ),
        (
            lambda: gradtx.load_optimizer(torch.optim.Adam),
            TypeError,
            "load_optimizer: the name of optimizer must be a str, got Adam",
        ),
        (
            lambda: gradtx.load_lr_scheduler("cosin"),
            ValueError,
            "load_lr_scheduler: unknown scheduler 'cosin'; did you mean 'cosine'",
        ),
        (
            lambda: gradtx.get_supported_optimizers(3),
            TypeError,
            "get_supported_optimizers: filters must be a pattern or a list of patterns, got 3",
        ),
        (
            lambda: gradtx.get_supported_lr_schedulers([3]),
            TypeError,
            "get_supported_lr_schedulers: filters must be a pattern or a list of patterns, got [3]",
        ),
        (
            lambda: gradtx.load_lr_scheduler("step")(0.1),
            TypeError,
            "step_schedule: the first argument must be the optimizer, got 0.1",
        ),
        (
            lambda: scheduled("step", 2, 0.1, 3),
            TypeError,
            "step_schedule: takes at most 2 arguments after the optimizer",
        ),
        *(
            (
                lambda name=name, option=option: scheduled(name, **{option: 3}),
                TypeError,
                f"{name}_schedule is torch's schedule, without {option!r}; use load_lr_scheduler('warmup_{name}')",
            )
            for name in ("cosine", "linear")
            for option in ("t_max", "max_lr", "warmup_steps")
        ),
        *(
            (
                lambda option=option: gradtx.optim.AdamP([torch.zeros(1)], lr=0.1, **{option: True}),
                TypeError,
                f"adamp: unknown argument {option!r}; {remedy}",
            )
            for option, remedy in {
                "fixed_decay": "add add_decayed_weights(weight_decay, fixed=True) after",
                "adanorm": "use gradtx.adanorm",
                "use_gc": "add gradtx.centralize() before",
            }.items()
        ),
        (lambda: scheduled("step", 2, step_size=2), TypeError, "step_schedule: got two values for 'step_size'"),
        (lambda: scheduled("step"), TypeError, "step_schedule: missing argument 'step_size'"),
        (
            lambda: scheduled("step", step_sizes=2),
            TypeError,
            "step_schedule: unknown argument 'step_sizes'; did you mean 'step_size'?",
        ),
    ],
)
def test_a_wrong_name_is_an_error_with_the_nearest_ones(call, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()


def scheduled(name, *args, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    return gradtx.load_lr_scheduler(name)(optimizer, *args, **options)


# What the tables of the module say of each optimizer.


def test_decay_that_is_said_to_be_decoupled_or_coupled_is():
    registry = gradtx.registry
    own = {name for name in ALIASES if "weight_decay" in gradtx.load_optimizer(name)._alias.spec.arguments.by_name}
    switched = {
        name
        for name in own
        if {"decoupled_weight_decay", "no_prox"} & set(getattr(gradtx, name).spec.arguments.by_name)
    }
    assert own - switched >= registry._DECOUPLED | registry._COUPLED
    assert not registry._DECOUPLED & registry._COUPLED
    with_a_form_of_its_own = {
        "adaptive_gd", "apollo", "gpa_adamw", "lamb", "lars", "momo", "momo_adam", "muown", "novograd",
        "schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd",
    }  # fmt: skip
    assert own - switched == registry._DECOUPLED | registry._COUPLED | with_a_form_of_its_own


@pytest.mark.parametrize("name", sorted(gradtx.registry._DECOUPLED | gradtx.registry._COUPLED))
def test_coupled_decay_enters_what_is_remembered_of_gradients_and_decoupled_decay_does_not(name):
    options = {"ranger21": {"num_iterations": 20}, "muon": {"ns_dtype": None}, "adafactor": {"relative_step": False}}
    options |= {"sgd": {"momentum": 0.9}, "pid": {"momentum": 0.9}}
    rng = torch.Generator().manual_seed(0)
    params, grads, hessian = ({"w": torch.randn(3, 3, generator=rng, dtype=torch.float64)} for _ in range(3))
    states = []
    for decay in (0.1, 0.3):
        rate = {"lr": 0.1} if "lr" in getattr(gradtx, name).spec.arguments.by_name else {}
        tx = getattr(gradtx, name)(**rate, weight_decay=decay, **options.get(name, {}))
        extras = {"hessian_diag": hessian} if "hessian_diag" in tx.needs else {}
        state = tx.init(params)
        for _ in range(2):
            _, state = tx.update(grads, state, params, **extras)
        states.append(torch.cat([leaf.flatten().to(torch.float64) for leaf in torch.utils._pytree.tree_leaves(state)]))
    same = torch.equal(*states)
    assert same == (name in gradtx.registry._DECOUPLED)


# torch.hub, and the page for those who come from elsewhere.


def test_torch_hub_finds_the_class_of_every_optimizer():
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    listed = [name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")]
    assert listed == gradtx.get_supported_optimizers()  # what torch.hub.list says of a repository
    cls = torch.hub.load(str(ROOT), "adamp", source="local")
    assert cls is gradtx.optim.AdamP
    assert "AdamP" in module.adamp.__doc__


def test_torch_hub_works_where_gradtx_is_not_installed(tmp_path):
    code = f"import torch; print(torch.hub.load({str(ROOT)!r}, 'lion', source='local').__module__)"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "gradtx.optim", run.stderr


def test_the_page_says_what_the_signatures_say():
    assert (ROOT / PAGE).read_text() == page(), f"run: python -m tests.migration > {PAGE}"


# The page names every class whose steps, and every scheduler whose rates, differ at the options of pytorch_optimizer.

PUBLISHED = {cls.__name__: cls for cls in pytorch_optimizer.optimizer.OPTIMIZER_LIST}
# Required or other kinds of options: these rows have notes, or tests of their own.
OF_ANOTHER_KIND = {
    "AdaFactor",
    "AdaMod",
    "AdamMini",
    "AdaMuon",
    "AliG",
    "ApolloDQN",
    "FAdam",
    "Muon",
    "NorMuon",
    "Ranger21",
    "ScalableShampoo",
}


def same_options(theirs, rate):
    """The defaults of a class of pytorch_optimizer that ours may take, at one rate for all."""
    given = {
        option: value for option, value in migration.options(theirs).items() if value is not None and value != REQUIRED
    }
    return {**given, "lr": rate} if "lr" in given else given


def ours_like(params, theirs, rate):
    """Our optimizer with as many of the options of theirs as it has."""
    name = counterpart("pytorch_optimizer", theirs.__name__)._alias.__name__
    given = same_options(theirs, rate)
    while True:
        try:
            return gradtx.create_optimizer(params, name, **{"weight_decay": 0.0, **given})
        except TypeError as error:
            option = re.search(r"'(\w+)'", str(error)).group(1)
            if option not in given:
                raise
            del given[option]


def trained_by(make, steps):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    params = {"w": random(4, 3), "b": random(5), "c": random(2, 3, 2, 2)}
    params = {name: torch.nn.Parameter(value) for name, value in params.items()}
    optimizer = make(list(params.values()))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum((param - 0.3 * random(*param.shape)).square().sum() for param in params.values())
        loss.backward(create_graph=type(optimizer).__name__ in ("SophiaH", "AdaHessian"))
        optimizer.step()
    return torch.cat([param.detach().flatten() for param in params.values()])


@pytest.mark.filterwarnings("ignore")  # of their optimizers, and names of options that are translated
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, cls in PUBLISHED.items()
        if name not in OF_ANOTHER_KIND
        and counterpart("pytorch_optimizer", name) is not None
        and cls is not getattr(torch.optim, name, None)
    ],
)
def test_the_page_names_the_classes_whose_steps_differ(name):
    theirs = PUBLISHED[name]
    rate = {"lr": 1e-2} if "lr" in migration.options(theirs) else {}
    expected = trained_by(lambda params: theirs(params, **rate), steps=7)
    found = trained_by(lambda params: ours_like(params, theirs, 1e-2), steps=7)
    # 1e-5: eps inside or outside of a correction, sums in float32
    if (expected - found).abs().max() > 1e-5:
        assert ("pytorch_optimizer", name) in NOTES


@pytest.mark.parametrize(
    "arguments", [{"t_max": 12, "max_lr": 1.0, "warmup_steps": 3}, {"num_epochs": 10}, {}], ids=str
)
@pytest.mark.parametrize(("name", "ours"), [row[1:] for row in SCHEDULERS if row[1]])
def test_the_page_names_the_schedulers_whose_rates_differ(name, ours, arguments):
    wsd = {"num_warmup_steps": 3, "num_stable_steps": 3, "num_decay_steps": 5, "min_lr_ratio": 0.1}
    arguments = arguments or (wsd if ours == "wsd" else {})
    rates = []
    for load, key in ((pytorch_optimizer.load_lr_scheduler, name), (gradtx.load_lr_scheduler, ours)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        try:
            scheduler = load(key)(optimizer, **arguments)
        except TypeError:
            return  # it takes other arguments
        rates.append([])
        for _ in range(14):
            rates[-1].append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
    if rates[1] != pytest.approx(rates[0], abs=1e-12):
        assert name in SCHEDULER_NOTES


def test_the_page_shows_defaults_that_are_required_here():
    lines = (ROOT / PAGE).read_text().splitlines()
    for name, theirs in PUBLISHED.items():
        cls = counterpart("pytorch_optimizer", name)
        if cls is None or theirs is getattr(torch.optim, name, None):
            continue
        line = next(line for line in lines if line.startswith(f"| {name} | `{cls._alias.__name__}`"))
        for option, value in migration.options(cls).items():
            if value == REQUIRED and migration.options(theirs).get(option, REQUIRED) != REQUIRED:
                assert f"`{option}` required (" in line
