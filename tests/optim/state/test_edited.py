"""Optimizers that users edit by hand: what torch allows works alike, the rest is one error before any write."""

import copy
import doctest
from pathlib import Path

import pytest
import torch

import gradtx
from tests.optim.problems import (
    assert_close,
    assert_equal,
    both,
    descend,
    made,
    parameters,
    saved_and_loaded,
    set_gradients,
    twins,
    unchanged,
    values,
)

TOLERANCE = 1e-12  # the same float64 sums in a different order
PAGE = "edit-an-optimizer"
PAGE_FILE = Path(__file__).parents[3] / "docs" / "howto" / f"{PAGE}.md"
CLASSES = {
    "AdamW": {"lr": 0.1},
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "NAdam": {"lr": 0.1},
    "RMSprop": {"lr": 0.01, "centered": True},
}
# Of a few float64 operations in another order; torch keeps NAdam's product of rates in float32.
TOLERANCES = {"NAdam": 1e-7}
each_class = pytest.mark.parametrize("name", CLASSES)


def edited(module, name, edit, dtype=torch.float64, named=False):
    """Take two steps, edit the optimizer, take two more."""
    params = parameters(dtype)
    optimizer = getattr(module, name)(list(params.items()) if named else params.values(), **CLASSES[name])
    descend(optimizer, params, 2)
    for param in params.values():
        param.grad = None
    edit(optimizer, params)
    descend(optimizer, params, 2, start=2)
    return optimizer, params


# Parameters and state.


def convert(change):
    def edit(optimizer, params):
        for param in params.values():
            param.data = change(param.data)
            state = optimizer.state[param]
            for key, value in state.items():
                if value.is_floating_point() and (value.ndim or key != "step"):
                    state[key] = change(value)

    return edit


CONVERSIONS = {
    "double": (torch.float32, torch.Tensor.double),
    "float": (torch.float64, torch.Tensor.float),
    "bfloat16": (torch.float32, torch.Tensor.bfloat16),
    "doubled rows": (torch.float64, lambda value: torch.cat([value, value]) if value.ndim else value),
    "half of the columns": (torch.float64, lambda value: value[..., :2].clone() if value.ndim else value),
    "transposed": (torch.float64, lambda value: value.mT if value.ndim > 1 else value),
}


@each_class
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_weights_and_slots_that_were_converted_together_step_as_in_torch(name, conversion):
    dtype, change = CONVERSIONS[conversion]
    (_, ours), (_, theirs) = both(lambda module: edited(module, name, convert(change), dtype))
    tolerance = {torch.float64: TOLERANCES.get(name, TOLERANCE), torch.float32: 1e-6}.get(
        ours["body.weight"].dtype, 0.05
    )
    if conversion == "double":
        tolerance = 1e-6  # of the first two steps
    assert_close(ours.values(), theirs.values(), tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_and_averages_that_were_converted_to_16_bits_with_the_weights_go_on_in_float32(dtype):
    """As in torch, where a sum of 16 bits would lose small squares later."""

    def run(module):
        params = parameters(torch.float32)
        optimizer = module.Adagrad(params.values(), lr=0.1)
        descend(optimizer, params, 2)
        for param in params.values():
            param.grad, param.data = None, param.data.to(dtype)
            optimizer.state[param]["sum"] = optimizer.state[param]["sum"].to(dtype)
        descend(optimizer, params, 2, start=2)
        return optimizer, params.values()

    (ours, our_params), (_, their_params) = both(run)
    assert {ours.state[param]["sum"].dtype for param in our_params} == {torch.float32}
    assert_close(our_params, their_params, 0.02)


def test_state_that_was_converted_alone_to_more_bits_keeps_them():
    def edit(optimizer, params):
        for param in params.values():
            state = optimizer.state[param]
            state["exp_avg_sq"] = state["exp_avg_sq"].double()

    optimizer, params = edited(gradtx.optim, "AdamW", edit, torch.float32)
    assert {optimizer.state[param]["exp_avg_sq"].dtype for param in params.values()} == {torch.float64}


@each_class
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64])
def test_a_count_in_another_dtype_counts_on_as_in_torch(name, dtype):
    def edit(optimizer, params):
        for param in list(params.values())[1:]:
            if "step" in optimizer.state[param]:
                optimizer.state[param]["step"] = torch.tensor(7, dtype=dtype)

    def run(module):
        optimizer, params = edited(module, name, edit)
        return params.values(), [optimizer.state[param].get("step") for param in params.values()]

    (ours, steps), (theirs, expected) = both(run)
    assert_close(ours, theirs, TOLERANCES.get(name, TOLERANCE))
    if name != "SGD":  # torch's keeps no count
        assert_equal(steps, expected)


@pytest.mark.parametrize("engine", ["lists", "one leaf at a time"])
@pytest.mark.parametrize("step", [7, 7.0, torch.tensor([7.0])])
def test_a_count_that_is_a_number_counts_on(step, engine):
    tx = gradtx.adam(lr=0.1)
    tx = tx if engine == "lists" else gradtx.chain(unprogrammed(), tx)
    (optimizer, params), (expected, theirs) = made(tx), made(tx)
    for each, leaves, count in ((optimizer, params, step), (expected, theirs, torch.tensor(7.0))):
        descend(each, leaves, 2)
        each.state[leaves["body.bias"]]["step"] = copy.deepcopy(count)
        descend(each, leaves, 2, start=2)
    assert optimizer.state[params["body.bias"]]["step"] == 9
    assert_equal(values(params), values(theirs))
    optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))


@gradtx.per_tensor(compiles=False)
def unprogrammed():
    def update(update, state, param, ctx):
        return update, state

    return update


DAMAGES = {
    "a slot of another shape": (
        lambda state, param: state.update(exp_avg=torch.zeros(5, dtype=param.dtype)),
        r"'exp_avg' is torch.float64 of shape \(5,\) on cpu, needs .*\(2, 3\)",
    ),
    "a slot of less precision": (
        lambda state, param: state.update(exp_avg=state["exp_avg"].float()),
        "'exp_avg' is torch.float32 .*needs torch.float64",
    ),
    "a slot of integers": (
        lambda state, param: state.update(exp_avg=state["exp_avg"].long()),
        "'exp_avg' is torch.int64 .*needs torch.float64",
    ),
    "a slot that is no tensor": (lambda state, param: state.update(exp_avg=0.0), "'exp_avg' must be a tensor, got 0.0"),
    "a missing slot": (lambda state, param: state.pop("exp_avg"), "lacks 'exp_avg'"),
    "a missing count": (lambda state, param: state.pop("step"), "lacks 'step'"),
    "a count that is none": (
        lambda state, param: state.update(step=torch.tensor(float("nan"))),
        "'step' must be a number of steps, got",
    ),
    "an expanded parameter": (
        lambda state, param: setattr(param, "data", torch.ones(1, 3, dtype=param.dtype).expand(2, 3)),
        "has several entries in the same memory, as after expand",
    ),
    "a parameter of another shape": (
        lambda state, param: setattr(param, "data", torch.ones(4, 3, dtype=param.dtype)),
        r"is torch.float64 of shape \(4, 3\) on cpu, but its state was created for",
    ),
}


@pytest.mark.parametrize("engine", ["lists", "one leaf at a time", "both"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_is_an_error_with_its_name_before_anything_is_written(damage, engine):
    change, message = DAMAGES[damage]
    links = {"lists": [], "one leaf at a time": [unprogrammed()], "both": [gradtx.masked(unprogrammed(), "head.*")]}
    optimizer, params = made(gradtx.chain(*links[engine], gradtx.adamw(lr=0.1)))
    descend(optimizer, params, 2)
    set_gradients(params, 2)
    param = params["head.weight"]
    param.grad = None
    before = copy.deepcopy(optimizer.state[param]), param.data
    change(optimizer.state[param], param)
    param.grad = torch.ones_like(param)
    with unchanged(optimizer), pytest.raises(ValueError, match=f"'head.weight'.*{message}"):
        optimizer.step()
    optimizer.state[param], param.data = before
    param.grad = torch.ones_like(param)
    optimizer.step()


def test_a_gradient_from_before_a_change_of_shape_is_an_error_before_anything_is_written():
    params = parameters()
    optimizer = gradtx.optim.AdamW(params.items())
    descend(optimizer, params, 2)
    param = params["head.weight"]
    param.data = torch.ones(3, 2, dtype=param.dtype)
    for key in ("exp_avg", "exp_avg_sq"):
        optimizer.state[param][key] = torch.zeros(3, 2, dtype=param.dtype)
    with unchanged(optimizer), pytest.raises(ValueError, match=r"'head.weight' has shape \(3, 2\), but its gradient"):
        optimizer.step()


# Codes.


def grown(optimizer, rows, append):
    """Append rows to the only parameter of an optimizer and to its state."""
    group = optimizer.param_groups[0]
    (old,) = group["params"]
    state = optimizer.state.pop(old)
    for key, value in state.items():
        if value.ndim:
            state[key] = append(key, value, (rows, *value.shape[1:]))
    new = torch.nn.Parameter(torch.cat([old.detach(), old.new_zeros(rows, *old.shape[1:])]))
    group["params"] = [new]
    optimizer.state[new] = state
    return new


CODES = ["int8", "int4", "float8", "bfloat16+8", "bfloat16:stochastic"]


def of_codes(code, rows=64, dtype=torch.float32):
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(rows, 128, dtype=dtype))
    optimizer = gradtx.optim.AdamW([param], lr=0.1, state_dtype=code)
    for _ in range(2):
        param.grad = torch.randn(rows, 128, dtype=dtype)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("code", CODES)
def test_rows_of_zeros_appended_in_the_dtypes_of_the_state_are_zeros(code):
    """The first 64 rows step as without the others, whose averages are those of a new parameter at this count."""
    optimizer, same = of_codes(code), of_codes(code)
    (old,) = same.param_groups[0]["params"]
    new = grown(optimizer, 8, lambda key, value, shape: torch.cat([value, value.new_zeros(shape)]))
    gradient = torch.randn(72, 128)
    new.grad, old.grad = gradient, gradient[:64].clone()
    optimizer.step()
    same.step()
    if code != "bfloat16:stochastic":  # whose noise depends on the positions of entries
        assert_equal(new.detach()[:64], old.detach())
    assert_close([new[:64]], [old], 1e-2)
    # At count 3, from 0: (1 - 0.9) / (1 - 0.9**3) of the gradient over the root of (1 - 0.999) / (1 - 0.999**3).
    expected = -0.1 * gradient[64:].sign() * (0.1 / (1 - 0.9**3)) / (0.001 / (1 - 0.999**3)) ** 0.5
    assert_close([new[64:]], [expected], 1e-3)


@pytest.mark.parametrize("code", ["int8", "int4", "bfloat16+8", "bfloat16:stochastic"])
@pytest.mark.parametrize("scales", [False, True])
def test_values_appended_to_codes_are_an_error_that_names_the_page(code, scales):
    def append(key, value, shape):
        if "." in key and not scales:
            return value
        return torch.cat([value, torch.zeros(shape)])

    optimizer = of_codes(code)
    new = grown(optimizer, 8, append)
    new.grad = torch.ones_like(new)
    with unchanged(optimizer), pytest.raises(ValueError, match=f"'0'.*'exp_avg.*{PAGE}"):
        optimizer.step()


def test_values_in_place_of_codes_are_encoded():
    def append(key, value, shape):
        return torch.ones(72, 128)

    optimizer = of_codes("int8")
    new = grown(optimizer, 8, append)
    state = optimizer.state[new]
    del state["exp_avg.scale"], state["exp_avg_sq.scale"]
    new.grad = torch.ones_like(new)
    before = new.detach().clone()
    optimizer.step()
    assert state["exp_avg"].dtype == torch.float32  # the user's dict; the optimizer's has codes
    assert optimizer.state[new]["exp_avg"].dtype == torch.int8
    expected = before * (1 - 0.1 * 0.01) - 0.1 / (1 - 0.9**3) / (1 / (1 - 0.999**3)) ** 0.5
    assert_close([new], [expected], 1e-4)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("code", CODES)
def test_rows_pruned_to_fewer_entries_than_are_coded_keep_their_values(code, dtype, in_place):
    """The other rows step as in an optimizer that keeps all, whose slots stay coded."""
    optimizer, same = of_codes(code, dtype=dtype), of_codes(code, dtype=dtype)
    (old,) = same.param_groups[0]["params"]
    (new,) = optimizer.param_groups[0]["params"]
    state = optimizer.state[new]
    for key, value in state.items():
        state[key] = value[1::3] if value.ndim else value
    new.grad = None
    if in_place:
        new.data = new.data[1::3]
    else:
        new = torch.nn.Parameter(new.detach()[1::3])
        optimizer.state[new] = optimizer.state.pop(optimizer.param_groups[0]["params"][0])
        optimizer.param_groups[0]["params"] = [new]
    old.grad = torch.randn(64, 128, dtype=dtype)
    new.grad = old.grad[1::3].clone()
    optimizer.step()
    same.step()
    assert_close([new.float()], [old[1::3].float()], 1e-6 if dtype == torch.float32 else 1e-2)
    optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    optimizer.step()


@pytest.mark.parametrize("code", CODES)
def test_a_parameter_that_grows_until_its_slots_are_coded_keeps_their_values(code):
    """As in an optimizer without codes, up to what they round off."""

    def grown_twice(state_dtype):
        optimizer = of_codes(state_dtype, rows=20)
        new = grown(optimizer, 44, lambda key, value, shape: torch.cat([value, value.new_zeros(shape)]))
        new.grad = torch.linspace(-1, 1, new.numel()).reshape(new.shape)
        optimizer.step()
        return optimizer.state[new]["exp_avg"].dtype, new

    (dtype, ours), (_, theirs) = grown_twice(code), grown_twice(None)
    assert dtype != torch.float32
    assert_close([ours], [theirs], 0.1 if code == "int4" else 0.02)


def test_a_saved_state_with_values_appended_to_codes_is_an_error_too():
    saved = of_codes("int8").state_dict()
    saved["state"][0]["exp_avg"] = torch.cat([saved["state"][0]["exp_avg"], torch.zeros(8, 128)])
    for code in ("int8", torch.float32):
        optimizer = gradtx.optim.AdamW([torch.nn.Parameter(torch.zeros(72, 128))], state_dtype=code)
        with unchanged(optimizer), pytest.raises(ValueError, match=f"'exp_avg' has dtype torch.float32.*{PAGE}"):
            optimizer.load_state_dict(saved)


# Groups.


def split(optimizer, params):
    (group,) = optimizer.param_groups
    first, *rest = group["params"]
    optimizer.param_groups = [{**group, "params": [first], "lr": 0.02}, {**group, "params": rest}]


def exchanged(optimizer, params):
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]


def with_another(optimizer, params):
    new = params["new"] = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    (group,) = optimizer.param_groups
    optimizer.param_groups.append({**group, "params": [new], "lr": 0.02})


def with_only_another(optimizer, params):
    (group,) = optimizer.param_groups
    params.clear()
    params["new"] = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.param_groups = [{**group, "params": list(params.values()), "lr": 0.02}]


def merged(optimizer, params):
    split(optimizer, params)
    descend(optimizer, params, 1)
    first, second = optimizer.param_groups
    optimizer.param_groups = [{**first, "params": second["params"] + first["params"]}]


def moved(optimizer, params):
    split(optimizer, params)
    descend(optimizer, params, 1)
    first, second = optimizer.param_groups
    first["params"].append(second["params"].pop())


def narrowed(optimizer, params):
    params.pop("body.weight")
    optimizer.param_groups[0]["params"] = list(params.values())


EDITS = [split, exchanged, with_another, with_only_another, merged, moved, narrowed]


@each_class
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_groups_that_were_edited_by_hand_step_as_in_torch(name, edit):
    (ours, our_params), (theirs, their_params) = both(lambda module: edited(module, name, edit))
    assert_close(our_params.values(), their_params.values(), TOLERANCES.get(name, TOLERANCE))
    assert [group["lr"] for group in ours.param_groups] == [group["lr"] for group in theirs.param_groups]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_optimizer_whose_named_groups_were_edited_loads_its_own_checkpoint(edit):
    optimizer, params = edited(gradtx.optim, "AdamW", edit, named=True)
    name_of = {param: name for name, param in params.items()}
    for group in optimizer.param_groups:
        named = [name_of[param] for param in group["params"]]
        assert [name for name in group["param_names"] if name in named] == [name for name in named if name != "new"]
        assert len(group["param_names"]) == len(named)
    optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))  # warnings are errors in these tests
    descend(optimizer, params, 1, start=4)


def test_names_that_come_with_new_parameters_are_theirs():
    optimizer, params = made(gradtx.chain(gradtx.freeze(lambda name, p: name.startswith("tail")), gradtx.sgd(lr=0.1)))
    descend(optimizer, params, 1)
    group = optimizer.param_groups[0]
    for name in ("tail.weight", "head.bias"):
        params[name] = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        group["params"].append(params[name])
        group["param_names"].append(name)
    before = values(params)
    descend(optimizer, params, 1, start=1)
    assert group["param_names"] == list(params)
    assert_equal(params["tail.weight"].detach(), before[-2])
    assert not torch.equal(params["head.bias"], before[-1])


def test_a_schedule_of_a_group_that_was_split_goes_on_in_both_parts():
    schedule = gradtx.cosine_schedule(0.1, T_max=20)
    (optimizer, params), (expected, theirs) = made(gradtx.sgd(lr=schedule)), made(gradtx.sgd(lr=schedule))
    descend(optimizer, params, 2)
    (group,) = optimizer.param_groups
    optimizer.param_groups = [{**group, "params": [param]} for param in group["params"]]
    descend(optimizer, params, 3, start=2)
    descend(expected, theirs, 5)
    assert_equal(values(params), values(theirs))
    assert {group["lr"] for group in optimizer.param_groups} == {schedule(5)}


def of_two_labels():
    params = parameters()
    tx = gradtx.partition({"slow": gradtx.sgd(lr=0.1), "fast": gradtx.adam(lr=0.2)}, {"slow": "body.*", "fast": "*"})
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    descend(optimizer, params, 2)
    set_gradients(params, 2)
    return optimizer, params


def test_a_parameter_in_the_group_of_another_label_is_an_error_at_the_next_step():
    optimizer, _ = of_two_labels()
    slow, fast = optimizer.param_groups
    fast["params"].append(slow["params"].pop())
    with (
        unchanged(optimizer),
        pytest.raises(
            ValueError, match=r"'body.bias' has the label 'slow', but is in a group of 'fast'; .*move it back"
        ),
    ):
        optimizer.step()
    slow["params"].append(fast["params"].pop())
    optimizer.step()


def test_a_new_parameter_in_the_group_of_another_label_is_an_error_too():
    optimizer, _ = of_two_labels()
    new = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    new.grad = torch.ones_like(new)
    slow, fast = optimizer.param_groups
    slow["params"].append(new)
    slow["param_names"].append("tail.bias")
    with unchanged(optimizer), pytest.raises(ValueError, match=r"'tail.bias' has the label 'fast', but is in a group"):
        optimizer.step()
    fast["params"].append(slow["params"].pop())
    fast["param_names"].append(slow["param_names"].pop())
    optimizer.step()
    assert optimizer.state[new].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_a_checkpoint_of_a_group_that_was_appended_without_its_label_loads_in_a_new_process():
    optimizer, _ = of_two_labels()
    slow, fast = optimizer.param_groups
    optimizer.param_groups = [slow]
    optimizer.step()
    optimizer.param_groups.append({"params": fast["params"], "param_names": fast["param_names"]})
    optimizer.step()
    other, _ = of_two_labels()
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert [group["label"] for group in other.param_groups] == ["slow", "fast"]


@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["lists", "compiled"])
@pytest.mark.parametrize(
    ("shape", "label", "lr", "own"),
    [((2, 2), "muon", 0.02, {}), ((2, 2), "muon", 0.5, {"lr": 0.5}), ((2,), "fallback", 1e-3, {})],
)
def test_a_group_that_is_empty_at_construction_takes_the_label_of_its_first_parameter(shape, label, lr, own, options):
    def of_late_parameter(is_late):
        first, late = torch.nn.Parameter(torch.eye(3)), torch.nn.Parameter(torch.full(shape, 0.5))
        group = {"params": [] if is_late else [late], **own}
        optimizer = gradtx.optim.Muon([{"params": [first]}, group], lr=0.02, fallback=gradtx.adamw(lr=1e-3), **options)
        if is_late:
            optimizer.param_groups[1]["params"].append(late)
        for _ in range(2):
            first.grad, late.grad = torch.ones_like(first), torch.ones_like(late)
            optimizer.step()
        return optimizer, [first, late]

    (optimizer, weights), (expected, others) = of_late_parameter(True), of_late_parameter(False)
    assert optimizer.param_groups[1]["label"] == label
    assert optimizer.param_groups[1]["lr"] == lr
    ours, theirs = (dict(each.param_groups[1], params=[]) for each in (optimizer, expected))
    assert ours == theirs
    assert_equal(weights, others)
    optimizer.load_state_dict(saved_and_loaded(expected.state_dict()))


def test_an_empty_group_that_says_its_label_has_the_numbers_of_that_branch():
    first, late = torch.nn.Parameter(torch.eye(3)), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [first]}, {"params": [], "label": "fallback"}]
    optimizer = gradtx.optim.Muon(groups, lr=0.02, fallback=gradtx.adamw(lr=1e-3))
    assert [(group["label"], group["lr"]) for group in optimizer.param_groups] == [("muon", 0.02), ("fallback", 1e-3)]
    optimizer.param_groups[1]["params"].append(late)
    first.grad, late.grad = torch.ones_like(first), torch.ones_like(late)
    optimizer.step()
    assert_equal([late], [torch.ones(2) * (1 - 1e-5) - 1e-3])


def test_the_numbers_of_a_group_without_parameters_and_label_are_not_loaded_into_one_with_them():
    params = [torch.nn.Parameter(torch.eye(3)), torch.nn.Parameter(torch.ones(2))]

    def saved_by(groups):
        return gradtx.optim.Muon(groups, lr=0.02, fallback=gradtx.adamw(lr=1e-3))

    saved = saved_by([{"params": params[:1]}, {"params": []}]).state_dict()
    saved["param_groups"][1]["params"] = [1]
    optimizer = saved_by([{"params": params[:1]}, {"params": params[1:]}])
    with (
        unchanged(optimizer),
        pytest.raises(ValueError, match=r"loaded group has label '', .* write them and the label"),
    ):
        optimizer.load_state_dict(saved)


def test_a_number_that_the_first_parameter_of_an_empty_group_does_not_read_is_warned_of():
    late = torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [torch.nn.Parameter(torch.eye(3))]}, {"params": [], "lr": 0.5}]
    optimizer = gradtx.optim.Muon(groups, fallback=gradtx.adamw(lr=1e-3))
    optimizer.param_groups[1]["params"].append(late)
    late.grad = torch.ones_like(late)
    with pytest.warns(UserWarning, match=r"the 'lr' of this group is not that of its parameters, .*; pass 'adamw.lr'"):
        optimizer.step()


def test_an_empty_group_does_not_take_parameters_of_two_labels():
    params = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
    groups = [{"params": [torch.nn.Parameter(torch.eye(3))]}, {"params": []}]
    optimizer = gradtx.optim.Muon(groups, fallback=gradtx.adamw())
    before = dict(optimizer.param_groups[1], params=params)
    optimizer.param_groups[1]["params"] = params
    with unchanged(optimizer), pytest.raises(ValueError, match="has the label 'fallback', but is in a group of 'muon'"):
        optimizer.step()
    assert optimizer.param_groups[1] == before


def test_a_parameter_in_two_groups_is_an_error():
    params = parameters()
    optimizer = gradtx.optim.AdamW([{"params": [param]} for param in params.values()])
    descend(optimizer, params, 1)
    optimizer.param_groups[0]["params"].append(params["head.weight"])
    with unchanged(optimizer), pytest.raises(ValueError, match="'2' is twice in param_groups"):
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"compile": True}])
def test_a_state_dict_describes_groups_that_no_step_would_take(options):
    """As tests of torch and timm do, to load a state dict with other groups."""
    params = parameters()
    optimizer = gradtx.optim.AdamW(list(params.values()), **options)
    descend(optimizer, params, 1)
    saved = optimizer.state_dict()
    optimizer.param_groups.extend(optimizer.param_groups)
    twice = optimizer.state_dict()
    assert twice["state"].keys() == saved["state"].keys()
    assert twice["param_groups"] == saved["param_groups"] * 2
    with unchanged(optimizer), pytest.raises(ValueError, match="'0' is twice in param_groups"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"groups of \[4, 4\] parameters, the optimizer has"):
        gradtx.optim.AdamW(list(params.values())).load_state_dict(twice)
    del optimizer.param_groups[1:]
    descend(optimizer, params, 1)
    other = gradtx.optim.AdamW(list(params.values()))
    other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("consumed", [False, True])
@pytest.mark.parametrize("call", [lambda each: each.step(), lambda each: each.state_dict()], ids=["step", "state_dict"])
def test_a_generator_in_a_group_is_an_error_instead_of_a_step_that_trains_nothing(consumed, call):
    params = parameters()
    optimizer = gradtx.optim.AdamW(params.values())
    descend(optimizer, params, 1)
    generator = (param for param in params.values())
    if consumed:
        list(generator)
    optimizer.param_groups[0]["params"] = generator
    with pytest.raises(TypeError, match=r"param_groups\[0\]\['params'\] is <generator .*put a list there"):
        call(optimizer)


def test_a_tensor_in_a_group_is_an_error_instead_of_a_list_of_its_rows():
    params = parameters()
    optimizer = gradtx.optim.AdamW(params.values())
    descend(optimizer, params, 1)
    optimizer.param_groups[0]["params"] = params["head.weight"]
    with pytest.raises(TypeError, match=r"param_groups\[0\]\['params'\] is a tensor; put a list there: \[parameter\]"):
        optimizer.step()


# The recipes of the page, with its own functions, against torch's class.


def function_of_page(name):
    """Return a function that the page defines."""
    blocks = doctest.DocTestParser().get_examples(PAGE_FILE.read_text())
    (source,) = [block.source for block in blocks if block.source.startswith(f"def {name}(")]
    namespace = {"torch": torch}
    exec(source, namespace)
    return namespace[name]


def densified(module, first):
    """Append rows before step `first` and before the next one, as splatting does, and prune some."""
    append_rows = function_of_page("append_rows")
    start = parameters(shapes={"xyz": (3, 2), "opacity": (3, 1)})
    groups = [{"params": [param], "name": name} for name, param in start.items()]
    optimizer = module.Adam(groups, lr=0.1)
    descend(optimizer, start, first)
    for t in range(first, first + 2):
        extensions = {name: torch.ones(2, *param.shape[1:], dtype=param.dtype) for name, param in start.items()}
        append_rows(optimizer, extensions)
        params = {group["name"]: group["params"][0] for group in optimizer.param_groups}
        descend(optimizer, params, 1, start=t)
    for group in optimizer.param_groups:
        (old,) = group["params"]
        new = group["params"][0] = torch.nn.Parameter(old.detach()[1:])
        state = optimizer.state[new] = optimizer.state.pop(old)
        for key, slot in state.items():
            state[key] = slot[1:] if slot.ndim else slot
    params = {group["name"]: group["params"][0] for group in optimizer.param_groups}
    descend(optimizer, params, 2, start=t + 1)
    return params.values()


@pytest.mark.parametrize("first", [0, 2])
def test_points_added_before_and_after_the_first_step_train_as_in_torch(first):
    assert_close(*both(lambda module: densified(module, first)), TOLERANCE)


@each_class
@pytest.mark.parametrize("with_state", [True, False])
def test_a_larger_vocabulary_trains_as_in_torch(name, with_state):
    def enlarged(optimizer, params):
        old = params["head.weight"]
        new = params["head.weight"] = torch.nn.Parameter(torch.cat([old.detach(), torch.ones_like(old)]))
        if not with_state:
            del optimizer.state[old]
        function_of_page("replace")(optimizer, old, new)

    (_, ours), (_, theirs) = both(lambda module: edited(module, name, enlarged))
    assert_close(ours.values(), theirs.values(), TOLERANCES.get(name, TOLERANCE))


@each_class
def test_a_model_that_is_unfrozen_step_by_step_trains_as_in_torch(name):
    def run(module):
        params = parameters()
        body = [params.pop("body.weight"), params.pop("body.bias")]
        optimizer = getattr(module, name)(params.values(), **CLASSES[name])
        descend(optimizer, params, 2)
        optimizer.add_param_group({"params": [body[0]], "lr": 0.01})
        params["body.weight"] = body[0]
        descend(optimizer, params, 2, start=2)
        optimizer.param_groups[1]["params"].append(body[1])
        params["body.bias"] = body[1]
        optimizer.param_groups[0]["params"] = [params["head.weight"]]
        descend(optimizer, params, 2, start=4)
        optimizer.param_groups[0]["params"].append(params["head.scale"])
        descend(optimizer, params, 2, start=6)
        return params.values()

    assert_close(*both(run), TOLERANCES.get(name, TOLERANCE))


@each_class
def test_groups_exchanged_at_resume_train_as_in_torch(name):
    """As by Lightning's BaseFinetuning: a fresh optimizer of the head gets the groups of the run, then its state."""

    def run(module):
        params = parameters()
        first = [params["head.weight"], params["head.scale"]]
        optimizer = getattr(module, name)(first, **CLASSES[name])
        descend(optimizer, params, 1)
        optimizer.add_param_group({"params": [params["body.weight"]], "lr": 0.01})
        descend(optimizer, params, 2, start=1)
        saved = saved_and_loaded(optimizer.state_dict())
        again = twins(params)
        resumed = getattr(module, name)([again["head.weight"], again["head.scale"]], **CLASSES[name])
        head, body = saved["param_groups"]
        resumed.param_groups = [
            {**head, "params": [again["head.weight"], again["head.scale"]]},
            {**body, "params": [again["body.weight"]]},
        ]
        resumed.load_state_dict(saved)
        descend(resumed, again, 2, start=3)
        descend(optimizer, params, 2, start=3)
        # torch's NAdam loads its float32 product of rates in the dtype of the parameter.
        exactly = 0.0 if module is gradtx.optim else TOLERANCES.get(name, 0.0)
        assert_close(values(again), values(params), exactly)
        return again.values()

    assert_close(*both(run), TOLERANCES.get(name, TOLERANCE))


@each_class
def test_a_reset_starts_the_averages_of_one_parameter_again_as_in_torch(name):
    def reset(optimizer, params):
        del optimizer.state[params["head.weight"]]
        for key, slot in optimizer.state[params["body.bias"]].items():
            if slot.ndim:
                optimizer.state[params["body.bias"]][key] = torch.zeros_like(slot)

    (_, ours), (_, theirs) = both(lambda module: edited(module, name, reset))
    assert_close(ours.values(), theirs.values(), TOLERANCES.get(name, TOLERANCE))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["moved first", "moved last"])
@pytest.mark.parametrize("apart", [True, False], ids=["groups", "one group"])
@pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
def test_a_first_gradient_has_what_a_state_that_was_moved_knows_of_all_gradients(compile, apart, order):
    """The norm of the last gradients, which clips these, is in the state that a user has moved to another parameter."""
    make = gradtx.chain(gradtx.clip_by_global_norm(0.5, stale=True), gradtx.sgd(lr=1.0, momentum=0.9))
    moved, late = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(4))
    params = [(moved, late)[i] for i in order]
    optimizer = gradtx.as_optimizer(make, [{"params": [x]} for x in params] if apart else params, compile=compile)
    moved.grad = torch.full((3,), 2.0)
    norm = float(moved.grad.norm())
    optimizer.step()
    new = torch.nn.Parameter(moved.detach().clone())
    for group in optimizer.param_groups:
        group["params"][:] = [new if param is moved else param for param in group["params"]]
    optimizer.state[new] = optimizer.state.pop(moved)
    new.grad, late.grad = torch.zeros(3), torch.ones(4)
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.full((4,), -0.5 / norm))
