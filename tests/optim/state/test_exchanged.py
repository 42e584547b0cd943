"""Parameters, groups and state that users exchange, move and discard."""

import collections
import gc
import weakref

import pytest
import torch

import gradtx
from tests.optim.problems import assert_close, assert_equal, both, descend, parameters, set_gradients, unchanged, values

TOLERANCE = 1e-12  # the same float64 sums in a different order


def grown(optimizer, params, more=2):
    """Enlarge every parameter along with its state, as 3D Gaussian splatting does to densify."""
    for group in optimizer.param_groups:
        (old,) = group["params"]
        state = optimizer.state.get(old)
        extension = torch.ones(more, dtype=old.dtype)
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.cat([state[key], torch.zeros_like(extension)])
        del optimizer.state[old]
        group["params"][0] = torch.nn.Parameter(torch.cat([old.detach(), extension]))
        optimizer.state[group["params"][0]] = state
        params[group["name"]] = group["params"][0]


def test_parameters_exchanged_with_their_state_moved_along_step_as_in_torch():
    def run(module):
        params = parameters(shapes={"xyz": (3,), "opacity": (4,)})
        optimizer = module.Adam([{"params": [param], "name": name} for name, param in params.items()], lr=0.1)
        for start in (0, 3, 6):
            descend(optimizer, params, 3, start=start)
            grown(optimizer, params)
        descend(optimizer, params, 3, start=9)
        return params.values(), [optimizer.state[param]["step"] for param in params.values()]

    (ours, steps), (theirs, expected) = both(run)
    assert_close(ours, theirs, TOLERANCE)
    assert_equal(steps, expected)


def test_parameters_that_were_exchanged_are_freed():
    params = parameters(shapes={"xyz": (300,), "opacity": (400,)})
    optimizer = gradtx.optim.Adam([{"params": [param], "name": name} for name, param in params.items()], lr=0.1)
    descend(optimizer, params, 2)
    old = [weakref.ref(param) for param in params.values()]
    grown(optimizer, params)
    descend(optimizer, params, 2)
    gc.collect()
    assert [ref() for ref in old] == [None, None]


def exchanged(optimizer, params, name, new=None):
    """Replace a named parameter by another tensor, along with its state."""
    old = params[name]
    new = torch.nn.Parameter(old.detach().clone()) if new is None else new
    for group in optimizer.param_groups:
        group["params"] = [new if param is old else param for param in group["params"]]
    optimizer.state[new] = optimizer.state.pop(old)
    params[name] = new


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.chain(gradtx.adam(lr=0.1), gradtx.freeze("head.*")),
        gradtx.partition(
            {"bias": gradtx.sgd(momentum=0.9), "weight": gradtx.adam()}, {"bias": "*.bias", "weight": "*.*"}
        ),
        gradtx.chain(gradtx.masked(gradtx.ema(0.5), "*.bias"), gradtx.adam(lr=0.1)),
        gradtx.accumulate(gradtx.adam(lr=0.1), every=2),
    ],
    ids=["freeze", "partition", "masked", "accumulate"],
)
@pytest.mark.parametrize("names", [["body.bias"], ["head.weight"], ["body.weight", "body.bias"]], ids="-".join)
def test_a_parameter_exchanged_keeps_its_name_and_so_its_place_in_the_chain(tx, names):
    params, others = parameters(), parameters()
    optimizer, reference = (gradtx.as_optimizer(tx, list(leaves.items())) for leaves in (params, others))
    descend(optimizer, params, 3)
    for name in names:
        exchanged(optimizer, params, name)
    descend(optimizer, params, 3, start=3)
    descend(reference, others, 6)
    assert_equal(values(params), values(others))


def test_a_parameter_exchanged_is_evaluated_with_the_average_that_moved_along():
    params = parameters()
    optimizer = gradtx.as_optimizer(gradtx.chain(gradtx.sgd(lr=0.1), gradtx.average()), list(params.items()))
    descend(optimizer, params, 3)
    exchanged(optimizer, params, "body.bias")
    average = optimizer.state[params["body.bias"]]["average"].clone()
    with optimizer.eval_params():
        assert_equal(params["body.bias"].detach(), average)


@pytest.mark.parametrize("damage", ["another shape", "a slot is missing"])
def test_state_moved_along_that_does_not_fit_is_an_error_that_changes_nothing(damage):
    params = parameters()
    optimizer = gradtx.as_optimizer(gradtx.adam(lr=0.1), list(params.items()))
    descend(optimizer, params, 3)
    if damage == "another shape":
        exchanged(optimizer, params, "head.weight", torch.nn.Parameter(torch.ones(7, dtype=torch.float64)))
    else:
        exchanged(optimizer, params, "head.weight")
        del optimizer.state[params["head.weight"]]["exp_avg"]
    set_gradients(params, 3)
    with unchanged(optimizer), pytest.raises(ValueError, match="exp_avg"):
        optimizer.step()


def test_a_parameter_exchanged_without_its_state_starts_afresh_as_in_torch():
    def run(module):
        params = parameters()
        optimizer = module.AdamW(params.values(), lr=0.1)
        descend(optimizer, params, 3)
        old = params["body.bias"]
        del optimizer.state[old]
        params["body.bias"] = optimizer.param_groups[0]["params"][1] = torch.nn.Parameter(old.detach() + 1)
        descend(optimizer, params, 3, start=3)
        return params.values()

    assert_close(*both(run), tolerance=TOLERANCE)


def test_a_parameter_appended_to_a_group_joins_as_in_torch():
    def run(module):
        params = parameters()
        late = params.pop("head.scale")
        optimizer = module.AdamW(params.values(), lr=0.1)
        descend(optimizer, params, 3)
        optimizer.param_groups[0]["params"].append(late)
        params["head.scale"] = late
        descend(optimizer, params, 3, start=3)
        return params.values()

    assert_close(*both(run), tolerance=TOLERANCE)


def test_a_parameter_taken_out_of_its_group_with_its_state_stays_where_it_is():
    def run(module):
        params = parameters()
        optimizer = module.AdamW(params.values(), lr=0.1)
        descend(optimizer, params, 2)
        del optimizer.state[optimizer.param_groups[0]["params"].pop()]
        descend(optimizer, params, 2, start=2)
        return [*params.values(), torch.tensor(float(len(optimizer.state_dict()["state"])))]

    assert_close(*both(run), tolerance=TOLERANCE)


@pytest.mark.parametrize("reset", ["clear", "replace"])
def test_state_thrown_away_is_made_afresh_as_in_torch(reset):
    def run(module):
        params = parameters()
        optimizer = module.AdamW(params.values(), lr=0.1)
        descend(optimizer, params, 3)
        if reset == "clear":
            optimizer.state.clear()
        else:
            optimizer.state = collections.defaultdict(dict)
        descend(optimizer, params, 3, start=3, skip=lambda name, t: name == "body.bias" and t < 5)
        return params.values()

    assert_close(*both(run), tolerance=TOLERANCE)


def test_a_slot_that_somebody_deleted_is_an_error_that_names_it_and_changes_nothing():
    params = parameters()
    optimizer = gradtx.optim.AdamW(params.values())
    descend(optimizer, params, 2)
    del optimizer.state[params["head.scale"]]["exp_avg"]
    with unchanged(optimizer), pytest.raises(ValueError, match="exp_avg"):
        optimizer.step()


def flattened(tx):
    """Return an optimizer whose parameters were replaced by one flat tensor, as DeepSpeed does."""
    model = torch.nn.Linear(3, 2)
    optimizer = gradtx.as_optimizer(tx, model.named_parameters())
    flat = torch.nn.Parameter(torch.cat([param.detach().flatten() for param in model.parameters()]))
    flat.grad = torch.ones_like(flat)
    optimizer.param_groups[0]["params"] = [flat]
    return optimizer, flat


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.lamb(),
        gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw()),
        gradtx.chain(gradtx.clip_by_global_norm(1.0, stale=True), gradtx.adamw()),
        gradtx.adamp(),
    ],
    ids=repr,
)
def test_flattened_memory_in_place_of_parameters_is_refused_where_links_act_by_leaf(tx):
    optimizer, flat = flattened(tx)
    before = flat.detach().clone()
    with pytest.raises(ValueError, match=r"these parameters are flat pieces of memory.*use FSDP2"):
        optimizer.step()
    assert torch.equal(flat, before)
