"""Parameter groups: hyperparameters that users read, pass and overwrite."""

import copy

import pytest
import torch

import gradtx
from tests.optim.chains import scale_by_mean_of_trees
from tests.optim.problems import (
    assert_close,
    assert_equal,
    descend,
    functional,
    hyperparameters,
    parameters,
    set_gradients,
    unchanged,
)

TOLERANCE = 1e-12  # the same float64 sums in a different order

OVERRIDES = {
    "SGD": {"lr": 0.2, "momentum": 0.5, "dampening": 0.1, "weight_decay": 0.3, "nesterov": True, "maximize": True},
    "Adam": {
        **{"lr": 0.2, "betas": (0.5, 0.6), "eps": 1e-2, "weight_decay": 0.3, "amsgrad": True, "maximize": True},
        "decoupled_weight_decay": True,
    },
    "AdamW": {"lr": 0.2, "betas": [0.5, 0.6], "eps": 1e-2, "weight_decay": 0.3, "amsgrad": True, "maximize": True},
}
CASES = [(name, {key: value}) for name, options in OVERRIDES.items() for key, value in options.items()]


def in_groups(make, *overrides, **options):
    """Return parameters in one group each, which cycle through these overrides, and their optimizer."""
    params = parameters()
    groups = [{"params": [param], **overrides[i % len(overrides)]} for i, param in enumerate(params.values())]
    return make(groups, **options), params


@pytest.mark.parametrize(("name", "override"), CASES, ids=str)
def test_a_group_that_overrides_a_hyperparameter_steps_as_torch(name, override):
    options = {"lr": 0.05, **({"momentum": 0.9} if name == "SGD" else {})}
    results = []
    for module in (gradtx.optim, torch.optim):
        optimizer, params = in_groups(getattr(module, name), {}, override, **options)
        descend(optimizer, params, 20)
        results.append(params.values())
    assert_close(*results, tolerance=TOLERANCE)


@pytest.mark.parametrize(("name", "override"), CASES, ids=str)
def test_a_hyperparameter_written_between_steps_is_obeyed_at_the_next_as_torch(name, override):
    options = {"lr": 0.05, **({"momentum": 0.9} if name == "SGD" else {})}
    if "amsgrad" in override:
        pytest.skip("torch fails here: it makes max_exp_avg_sq at the first step only")
    results = []
    for module in (gradtx.optim, torch.optim):
        optimizer, params = in_groups(getattr(module, name), {}, **options)
        descend(optimizer, params, 5)
        optimizer.param_groups[1].update(override)
        descend(optimizer, params, 5, start=5)
        results.append(params.values())
    assert_close(*results, tolerance=TOLERANCE)


def test_amsgrad_switched_on_between_steps_starts_from_a_fresh_maximum():
    params = parameters()
    optimizer = gradtx.optim.Adam(params.values(), lr=0.1)
    descend(optimizer, params, 3)
    optimizer.param_groups[0]["amsgrad"] = True
    descend(optimizer, params, 1, start=3)
    for param in params.values():
        assert_equal(optimizer.state[param]["max_exp_avg_sq"], optimizer.state[param]["exp_avg_sq"])


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "AdamP", "SGDP", "SGDW", "AdamAtan2", "ADOPT", "AdoptAtan2"])
def test_groups_show_every_hyperparameter_at_its_default(name):
    required = {"lr": 0.1} if name == "SGDP" else {}
    optimizer = getattr(gradtx.optim, name)([torch.nn.Parameter(torch.zeros(2))], **required)
    shown = hyperparameters(optimizer.param_groups[0])
    if name == "AdamW":
        assert shown.pop("decoupled_weight_decay") is True  # torch's AdamW shows this option, ours fixes it
    assert shown == optimizer._tx.hyperparams
    assert optimizer.defaults == optimizer._tx.hyperparams


def test_repeated_names_are_shown_with_their_owner():
    tx = gradtx.chain(gradtx.add_decayed_weights(0.1), gradtx.sgd(lr=0.2, weight_decay=0.3))
    params = parameters()
    optimizer = gradtx.as_optimizer(tx, [{"params": params.values(), "add_decayed_weights.weight_decay": 0.5}])
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    assert optimizer.param_groups[0]["add_decayed_weights.weight_decay"] == 0.5
    expected = functional(tx.replace(**{"add_decayed_weights.weight_decay": 0.5}), parameters(), 5)[0]
    descend(optimizer, params, 5)
    assert_close(params.values(), expected.values(), TOLERANCE)


def test_unknown_keys_of_a_group_are_kept():
    params = parameters()
    optimizer = gradtx.optim.AdamW([{"params": params.values(), "name": "all", "initial_lr": 3.0, "depth": [1, 2]}])
    descend(optimizer, params, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    group = optimizer.param_groups[0]
    assert (group["name"], group["initial_lr"], group["depth"]) == ("all", 3.0, [1, 2])


def test_a_key_of_a_group_that_is_nearly_a_hyperparameter_is_warned_of_and_kept():
    params = list(parameters().values())
    groups = [{"params": params[:1]}, {"params": params[1:2], "weigth_decay": 0.3}]
    message = "^{}: no link reads {!r} of this parameter group; did you mean {!r}[?]$"
    for make, owner in ((gradtx.optim.AdamW, "AdamW"), (lambda g: gradtx.as_optimizer(gradtx.adamw(), g), "Chain.*")):
        with pytest.warns(UserWarning, match=message.format(owner, "weigth_decay", "weight_decay")) as found:
            optimizer = make(groups)
        assert [warning.filename for warning in found] == [__file__]
        assert optimizer.param_groups[1]["weigth_decay"] == 0.3
    with pytest.warns(UserWarning, match=message.format("AdamW", "learning_rate", "lr")):
        gradtx.optim.AdamW([{"params": params, "learning_rate": 0.1}])
    with pytest.warns(UserWarning, match=message.format("Chain.*", "beta", "betas")) as found:
        optimizer.add_param_group({"params": params[2:], "beta": (0.9, 0.9)})
    assert [warning.filename for warning in found] == [__file__]


def test_names_with_an_owner_or_a_label_set_the_values_of_a_group():
    params = [torch.nn.Parameter(torch.eye(2)), torch.nn.Parameter(torch.ones(2))]
    tx = gradtx.partition({"a": gradtx.sgd(), "b": gradtx.adamw()}, {"a": lambda name, p: p.ndim == 1, "b": "*"})
    optimizer = gradtx.as_optimizer(tx, [{"params": params, "a.lr": 0.1, "b.adamw.lr": 0.2}])
    assert {group["label"]: group["lr"] for group in optimizer.param_groups} == {"a": 0.1, "b": 0.2}
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw())
    optimizer = gradtx.as_optimizer(tx, [{"params": params, "adamw.lr": 0.3, "clip_by_global_norm.eps": 0.1}])
    group = optimizer.param_groups[0]
    assert (group["lr"], group["clip_by_global_norm.eps"], "adamw.lr" in group) == (0.3, 0.1, False)


def makers(option, value):
    """Return the forms in which code written for torch passes an option of its implementations."""
    param = torch.nn.Parameter(torch.zeros(2))
    return {
        "class": lambda: gradtx.optim.AdamW([param], **{option: value}),
        "group": lambda: gradtx.optim.AdamW([{"params": [param], option: value}]),
        "create_optimizer": lambda: gradtx.create_optimizer([param], "adamw", **{option: value}),
    }


WAYS = ["class", "group", "create_optimizer"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("option", ["foreach", "fused"])
def test_an_option_that_chooses_between_torchs_implementations_is_accepted_with_one_warning_that_names_compile(
    option, way
):
    with pytest.warns(
        UserWarning, match=rf"{option}=True chooses between .* without effect here.*compile=True"
    ) as said:
        optimizer = makers(option, True)[way]()
    assert len(said) == 1
    assert said[0].filename == __file__
    param = optimizer.param_groups[0]["params"][0]
    plain = torch.nn.Parameter(torch.zeros(2))
    for each, steps in ((param, optimizer), (plain, type(optimizer)([plain], **optimizer.defaults))):
        each.grad = torch.tensor([1.0, -2.0])
        steps.step()
    assert torch.equal(param, plain)


@pytest.mark.parametrize("way", WAYS)
def test_a_differentiable_step_is_refused_with_the_pure_update_as_remedy(way):
    with pytest.raises(TypeError, match=r"^'differentiable' is not an option of gradtx: .*tx\.update"):
        makers("differentiable", True)[way]()


def test_capturable_is_an_option_of_all_groups_together():
    param = torch.nn.Parameter(torch.zeros(2))
    with pytest.warns(UserWarning, match="^AdamW: capturable=True has no effect in a group; pass it to AdamW"):
        gradtx.optim.AdamW([{"params": [param], "capturable": True}])
    for optimizer in (
        gradtx.optim.AdamW([param], capturable=True),
        gradtx.as_optimizer(gradtx.adamw(), [param], capturable=True),
        gradtx.create_optimizer([param], "adamw", capturable=True),
        gradtx.create_optimizer([param], "adamw", use_gc=True, capturable=True),
    ):
        param.grad = torch.ones(2)
        optimizer.step()
        assert optimizer._core.capturable


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, r"adamw: lr must be in \[0, inf\), got -1.0"),
        ({"betas": (0.9, 1.0)}, ValueError, r"adamw: betas\[1\] must be in \[0, 1\), got 1.0"),
        ({"betas": (0.9,)}, ValueError, "adamw: betas must have 2 entries, got 1"),
        ({"betas": 0.9}, TypeError, "adamw: betas must be a tuple of numbers"),
        ({"lr": "fast"}, TypeError, "adamw: lr must be a number"),
        ({"lr": lambda step: 0.1}, TypeError, r"wrap it: gradtx.Schedule\(...\)"),
        ({"lr": float("nan")}, ValueError, r"adamw: lr must be in \[0, inf\), got nan"),
        ({"amsgrad": 1}, TypeError, "adamw: amsgrad must be a bool"),
        ({"lr": torch.ones(2)}, ValueError, "adamw: lr must be 0-d"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_a_bad_value_is_an_error_in_a_group_as_in_a_constructor_and_at_a_step_changes_nothing(override, error, message):
    params = parameters()
    items = list(params.values())
    with pytest.raises(error, match=message):
        gradtx.optim.AdamW([{"params": items[:1]}, {"params": items[1:], **override}])
    optimizer = gradtx.optim.AdamW([{"params": items[:1]}, {"params": items[1:]}])
    descend(optimizer, params, 2)
    optimizer.param_groups[1].update(override)
    with unchanged(optimizer), pytest.raises(error, match=message):
        optimizer.step()


def test_options_that_exclude_each_other_in_one_group_change_nothing_in_another():
    params = parameters()
    items = list(params.values())
    optimizer = gradtx.optim.SGD([{"params": items[:1]}, {"params": items[1:]}])
    descend(optimizer, params, 2)
    optimizer.param_groups[0]["momentum"] = 0.9
    optimizer.param_groups[1]["nesterov"] = True  # requires momentum
    with unchanged(optimizer), pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
        optimizer.step()


def test_hyperparameters_of_a_sum_that_differ_between_groups_are_an_error_and_change_nothing():
    optimizer, params = in_groups(
        lambda groups: gradtx.as_optimizer(gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adam()), groups),
        {},
        {"max_norm": 2.0},
    )
    set_gradients(params)
    message = r"clip_by_global_norm: max_norm must agree across groups, got 1.0 and 2.0"
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.step()
    for group in optimizer.param_groups:
        group["max_norm"] = 3.0
    optimizer.step()


def test_hyperparameters_of_a_whole_tree_that_differ_between_groups_are_an_error():
    optimizer, params = in_groups(
        lambda groups: gradtx.as_optimizer(scale_by_mean_of_trees(1.0), groups), {}, {"factor": 2.0}
    )
    with pytest.raises(ValueError, match="factor must agree across groups"):
        descend(optimizer, params, 1)


def test_cycles_of_an_accumulation_that_differ_between_groups_are_an_error():
    optimizer, params = in_groups(
        lambda groups: gradtx.as_optimizer(gradtx.accumulate(gradtx.sgd(), every=2), groups), {}, {"every": 3}
    )
    with pytest.raises(ValueError, match="every must agree across groups"):
        descend(optimizer, params, 1)


def test_schedules_that_agree_at_first_and_differ_later_are_an_error_at_that_step():
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(lr=1.0))
    falling = gradtx.linear_schedule(1.0, 1.0, 0.1, total_iters=4)
    optimizer = gradtx.as_optimizer(tx, [{"params": params[:1], "max_norm": falling}, {"params": params[1:]}])
    for param in params:
        param.grad = torch.ones(2)
    optimizer.step()
    before = [param.detach().clone() for param in params]
    with pytest.raises(
        ValueError, match=r"clip_by_global_norm: max_norm must agree across groups, got 0\.775 and 1\.0"
    ):
        optimizer.step()
    assert all(map(torch.equal, params, before))


def test_a_partition_makes_a_group_of_each_user_group_and_label_in_this_order():
    tx = gradtx.partition(
        {"bias": gradtx.sgd(momentum=0.9), "weight": gradtx.adamw()}, {"weight": "*.weight", "bias": "*"}
    )
    params = parameters()
    items = list(params.items())
    optimizer = gradtx.as_optimizer(tx, [{"params": items[2:], "lr": 0.5, "name": "head"}, {"params": items[:2]}])
    shown = [(g["label"], g["param_names"], g["lr"], g.get("name")) for g in optimizer.param_groups]
    assert shown == [
        ("weight", ["head.weight"], 0.5, "head"),
        ("bias", ["head.scale"], 0.5, "head"),
        ("weight", ["body.weight"], 1e-3, None),
        ("bias", ["body.bias"], 1e-3, None),
    ]
    own = [set(hyperparameters(group)) - {"label", "name"} for group in optimizer.param_groups[2:]]
    assert own == [set(gradtx.adamw().hyperparams), set(gradtx.sgd().hyperparams)]


def test_a_group_added_to_a_partition_is_divided_too():
    tx = gradtx.partition({"bias": gradtx.sgd(lr=0.1), "weight": gradtx.adamw()}, {"weight": "*.weight", "bias": "*"})
    items = list(parameters().items())
    optimizer = gradtx.as_optimizer(tx, items[:2])
    optimizer.add_param_group({"params": items[2:], "lr": 0.7})
    shown = [(group["label"], group["param_names"][0], group["lr"]) for group in optimizer.param_groups]
    assert shown[2:] == [("weight", "head.weight", 0.7), ("bias", "head.scale", 0.7)]
    descend(optimizer, dict(items), 2)


def test_groups_without_a_learning_rate_show_one_that_nobody_reads():
    params = parameters()
    optimizer = gradtx.as_optimizer(gradtx.scale(-0.1), params.values())
    assert optimizer.param_groups[0]["lr"] == 0.0
    optimizer.param_groups[0]["lr"] = 77.0
    with pytest.warns(UserWarning, match=r"no link of this chain \(scale\) reads a learning rate") as warned:
        descend(optimizer, params, 3)
    assert len(warned) == 1
    assert_close(params.values(), functional(gradtx.scale(-0.1), parameters(), 3)[0].values(), TOLERANCE)


def test_a_scheduler_of_a_partition_leaves_the_branch_without_a_rate_in_silence():
    params = parameters()
    first, *_ = params
    tx = gradtx.partition({"fixed": gradtx.scale(-0.1), "rest": gradtx.sgd(lr=0.1)}, {"fixed": first, "rest": "*"})
    optimizer = gradtx.as_optimizer(tx, params.items())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    descend(optimizer, params, 1)
    scheduler.step()
    for group in optimizer.param_groups:
        group["lr"] = 0.2
    descend(optimizer, params, 1)


@pytest.mark.parametrize("name", ["initial_lr", "max_lr"])
def test_names_that_torchs_schedulers_write_are_never_hyperparameter_names(name):
    @gradtx.per_tensor
    def rule(initial_lr: gradtx.Scalar = 0.5, max_lr: gradtx.Scalar = 0.5):
        def update(update, state, param, ctx):
            return -initial_lr * max_lr * update, state

        return update

    tx = rule()
    params = parameters()
    optimizer = gradtx.as_optimizer(tx, params.values())
    optimizer.param_groups[0][name] = 77.0
    descend(optimizer, params, 1)
    assert_close(params.values(), functional(tx, parameters(), 1)[0].values(), TOLERANCE)


def test_an_empty_group_is_kept_as_in_torch():
    params = parameters()
    optimizer = gradtx.optim.AdamW([{"params": params.values()}, {"params": [], "weight_decay": 0.0}])
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 0]
    descend(optimizer, params, 2)
    optimizer.load_state_dict(optimizer.state_dict())


# Shared hyperparameters of all leaves, written into groups.


def test_defaults_are_those_of_the_constructor_whatever_the_first_group_says():
    optimizers = []
    for module in (gradtx.optim, torch.optim):
        optimizer, _ = in_groups(module.Adam, {"lr": 0.3}, {}, lr=0.1, weight_decay=0.2)
        optimizers.append(optimizer)
    ours, theirs = optimizers
    assert ours.defaults.items() <= theirs.defaults.items()
    assert [group["lr"] for group in ours.param_groups] == [0.3, 0.1, 0.3, 0.1]


@pytest.mark.parametrize("module", [torch.optim, gradtx.optim])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_group_added_later_has_defaults_that_were_changed_meanwhile(module, copied):
    optimizer = copied(module.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.1, betas=(0.5, 0.9)))
    optimizer.defaults.update(lr=0.01, mine=7)
    for group in ({}, {"lr": 0.25}):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], **group})
    assert [(group["lr"], group["betas"]) for group in optimizer.param_groups] == [
        (lr, (0.5, 0.9)) for lr in (0.1, 0.01, 0.25)
    ]
    assert [group.get("mine") for group in optimizer.param_groups] == [None, 7, 7]


@pytest.mark.parametrize("cleared", [False, True])
def test_a_group_added_later_shows_the_number_of_its_schedule_that_the_next_step_uses(cleared):
    first, late = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = gradtx.optim.SGD([first], lr=gradtx.Schedule(lambda step: 1.0 - 0.25 * step))
    first.grad = torch.ones(2)
    optimizer.step()
    if cleared:
        optimizer.param_groups.clear()
    optimizer.add_param_group({"params": [first, late] if cleared else [late]})
    late.grad = torch.ones(2)
    shown = []
    for _ in range(2):
        shown.append(optimizer.param_groups[-1]["lr"])
        before = late.detach().clone()
        optimizer.step()
        assert_equal(late.detach(), before - shown[-1])
    assert shown == [0.75, 0.5]


def test_groups_may_be_replaced_by_copies_and_reordered():
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = gradtx.optim.SGD([{"params": [param], "lr": 0.1 * (1 + i)} for i, param in enumerate(params)])
    optimizer.param_groups = [dict(group) for group in reversed(optimizer.param_groups)]
    optimizer.param_groups[0]["lr"] = 0.5
    for param in params:
        param.grad = torch.ones(2)
    optimizer.step()
    assert [param[0].item() for param in params] == pytest.approx([0.9, 0.5])
