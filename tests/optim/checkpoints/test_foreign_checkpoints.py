"""Checkpoints of torch.optim, adamp and adam-atan2-pytorch continue here, and ours there; others are refused."""

import copy

import adam_atan2_pytorch
import adamp
import pytest
import torch

import gradtx
from tests.optim.problems import assert_close, assert_equal, descend, parameters, saved_and_loaded, twins, unchanged

# The same float64 sums in a different order.
TOLERANCE = 1e-12

CASES = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adam", {}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("Adam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("AdamW", {"betas": (0.5, 0.9), "eps": 1e-3}),
    ("AdamW", {"amsgrad": True}),
    ("RAdam", {}),
    ("RAdam", {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adafactor", {"d": 1.5, "weight_decay": 0.1}),
    ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1}),
    ("Adagrad", {"initial_accumulator_value": 0.5, "eps": 0.01}),
    ("Adadelta", {"rho": 0.6, "eps": 1e-3, "weight_decay": 0.1}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "alpha": 0.8, "weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.5, "centered": True, "eps": 1e-3}),
    ("Rprop", {}),
    ("Rprop", {"etas": (0.3, 1.5), "step_sizes": (0.02, 0.2)}),
    ("Adamax", {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("NAdam", {"betas": (0.5, 0.9), "momentum_decay": 0.1, "weight_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("ASGD", {"lambd": 0.3, "alpha": 0.5, "t0": 4}),
    ("ASGD", {"lambd": 0.3, "alpha": 2.0, "t0": 0, "weight_decay": 0.1}),
]

# torch.optim.NAdam stores its product in the default dtype.
pytestmark = pytest.mark.usefixtures("float64_by_default")


def continues(make, remake, skip=lambda name, t: False, tolerance=TOLERANCE, change=lambda state: state):
    """Check that the checkpoint of one optimizer continues in another for ten more steps as in the first."""
    params = parameters()
    optimizer = make(params.values())
    descend(optimizer, params, 10, skip=skip)
    own = twins(params)
    other = remake(own.values())
    other.load_state_dict(change(saved_and_loaded(optimizer.state_dict())))
    descend(optimizer, params, 10, start=10)
    descend(other, own, 10, start=10)
    assert_close(own.values(), params.values(), tolerance)


def pair(name, options):
    """Return constructors of torch's optimizer, and of ours with defaults that the checkpoint replaces."""
    structure = {key: value for key, value in options.items() if isinstance(value, bool) or key == "momentum"}
    return (
        lambda params: getattr(torch.optim, name)(params, lr=0.03, **options),
        lambda params: getattr(gradtx.optim, name)(params, **structure),
    )


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_checkpoint_of_torch_continues_here(name, options):
    continues(*pair(name, options))


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_checkpoint_of_torch_continues_in_an_optimizer_built_with_defaults(name, options):
    continues(pair(name, options)[0], lambda params: getattr(gradtx.optim, name)(params))


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_checkpoint_of_ours_continues_in_torch(name, options):
    ours = lambda params: getattr(gradtx.optim, name)(params, lr=0.03, **options)  # noqa: E731
    continues(ours, lambda params: getattr(torch.optim, name)(params))


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_checkpoint_of_torch_in_which_a_parameter_never_stepped_continues_here(name, options):
    continues(*pair(name, options), skip=lambda leaf, t: leaf == "head.scale")


# torch's SGD has no count: it takes the zero buffer that ours has from the start as evidence of an earlier step, so
# with dampening it would dampen the first one (docs/design.md, "Differences from torch").
NEVER_STEPPED = [case for case in CASES if not case[1].get("dampening")]


@pytest.mark.parametrize(("name", "options"), NEVER_STEPPED, ids=str)
def test_a_checkpoint_of_ours_in_which_a_parameter_never_stepped_continues_in_torch(name, options):
    ours = lambda params: getattr(gradtx.optim, name)(params, lr=0.03, **options)  # noqa: E731
    theirs = lambda params: getattr(torch.optim, name)(params)  # noqa: E731
    continues(ours, theirs, skip=lambda leaf, t: leaf == "head.scale")


@pytest.mark.parametrize("step", [10, 10.0, torch.tensor(10), torch.tensor(10.0)], ids=str)
def test_a_step_of_any_kind_loads_as_older_versions_of_torch_saved_it(step):
    def change(state):
        for entry in state["state"].values():
            entry["step"] = step
        return state

    continues(*pair("AdamW", {}), change=change)


def test_a_momentum_buffer_of_none_loads_as_older_versions_of_torch_saved_it():
    def change(state):
        state["state"] = {i: {"momentum_buffer": None} for i in range(4)}
        return state

    continues(*pair("SGD", {}), change=change)


def test_options_of_torchs_engines_in_a_checkpoint_are_ignored():
    params = parameters()
    optimizer = gradtx.optim.AdamW(params.values())
    optimizer.load_state_dict(torch.optim.AdamW(params.values(), foreach=True).state_dict())
    assert not {"foreach", "fused", "capturable", "differentiable"} & optimizer.param_groups[0].keys()


def test_a_checkpoint_of_groups_continues_in_groups():
    def groups(params):
        params = list(params)
        return [{"params": params[:1], "lr": 0.1}, {"params": params[1:], "betas": (0.5, 0.6), "name": "rest"}]

    make = lambda params: torch.optim.AdamW(groups(params))  # noqa: E731
    continues(make, lambda params: gradtx.optim.AdamW(groups(params)))


PACKAGES = {
    "adamp": (
        lambda params: adamp.AdamP(params, lr=0.03, weight_decay=0.1, nesterov=True, delta=0.2, wd_ratio=0.3),
        lambda params: gradtx.optim.AdamP(params),
    ),
    "adam_atan2": (
        lambda params: adam_atan2_pytorch.AdamAtan2(params, lr=0.03, weight_decay=0.1, cautious_factor=0.3),
        lambda params: gradtx.optim.AdamAtan2(params),
    ),
    "regenerating adam_atan2": (
        lambda params: adam_atan2_pytorch.AdamAtan2(params, lr=0.03, regen_reg_rate=0.1),
        lambda params: gradtx.optim.AdamAtan2(params, regen_reg_rate=0.1),
    ),
    "decoupled adam_atan2, whose decay is stored divided": (
        lambda params: adam_atan2_pytorch.AdamAtan2(params, lr=0.03, weight_decay=0.1, decoupled_wd=True),
        lambda params: gradtx.optim.AdamAtan2(params),
    ),
    "decoupled adam_atan2 into the same option": (
        lambda params: adam_atan2_pytorch.AdamAtan2(params, lr=0.03, weight_decay=0.1, decoupled_wd=True),
        lambda params: gradtx.optim.AdamAtan2(params, lr=0.03, weight_decay=0.1, decoupled_wd=True),
    ),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_checkpoints_of_the_authors_packages_continue(name):
    continues(*PACKAGES[name])


OURS_IN_PACKAGES = {
    "adamp": (
        "step",
        lambda params: gradtx.optim.AdamP(params, lr=0.03, weight_decay=0.1, nesterov=True, delta=0.2),
        lambda params: adamp.AdamP(params),
    ),
    "adam_atan2": (
        "steps",
        lambda params: gradtx.optim.AdamAtan2(params, lr=0.03, weight_decay=0.1, cautious_factor=0.3),
        lambda params: adam_atan2_pytorch.AdamAtan2(params, cautious_factor=0.3),
    ),
    "regenerating adam_atan2": (
        "steps",
        lambda params: gradtx.optim.AdamAtan2(params, lr=0.03, regen_reg_rate=0.1),
        lambda params: adam_atan2_pytorch.AdamAtan2(params, regen_reg_rate=0.1),
    ),
}


# With our count left a tensor, they compute 1 - beta**t in float32, which at 0.999 is off by 1e-5.
@pytest.mark.parametrize(("count", "tolerance"), [(int, TOLERANCE), (torch.clone, 1e-4)])
@pytest.mark.parametrize("name", OURS_IN_PACKAGES)
def test_checkpoints_of_ours_continue_in_the_authors_packages(name, count, tolerance):
    word, make, remake = OURS_IN_PACKAGES[name]

    def change(state):
        for entry in state["state"].values():
            entry[word] = count(entry.pop("step"))
        return state

    continues(make, remake, tolerance=tolerance, change=change)


SAME_STATE = ("Adam", "AdamW", "AdamP", "ADOPT")
OTHERS = ["Adam", "NAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop", "Adafactor"]
INTO = ["AdamW", "SGD", "AdamP", "ADOPT", "Adagrad", "Adadelta", "RMSprop", "Rprop", "Adamax", "NAdam", "QHM"]
FOREIGN = [(name, into) for name in OTHERS for into in INTO if name != into and not {name, into} <= set(SAME_STATE)]


@pytest.mark.parametrize(("name", "into"), FOREIGN)
def test_checkpoints_of_other_optimizers_are_refused_and_change_nothing(name, into):
    params = parameters()
    other = getattr(torch.optim, name)(params.values())
    descend(other, params, 3)
    optimizer = getattr(gradtx.optim, into)(params.values(), lr=0.1)
    descend(optimizer, params, 1)
    with unchanged(optimizer), pytest.raises((ValueError, TypeError)):
        optimizer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_float32_product_of_torchs_nadam_goes_on_in_float64(dtype):
    torch.set_default_dtype(torch.float32)
    params = parameters(dtype)
    theirs = torch.optim.NAdam(params.values(), lr=0.03)
    descend(theirs, params, 5)
    own = twins(params)
    ours = gradtx.optim.NAdam(own.values())
    ours.load_state_dict(saved_and_loaded(theirs.state_dict()))
    for a, b in zip(own.values(), params.values(), strict=True):
        product = theirs.state[b]["mu_product"]
        assert product.dtype == torch.float32
        assert_equal(ours.state[a]["mu_product"], product.double())
    descend(theirs, params, 5, start=5)
    descend(ours, own, 5, start=5)
    # five roundings of the dtype
    assert_close(own.values(), params.values(), 1e-5 if dtype == torch.float32 else 0.03)


def test_a_count_and_a_product_that_are_numbers_load_as_older_versions_of_torch_saved_them():
    def change(state):
        for entry in state["state"].values():
            entry.update(step=10, mu_product=entry["mu_product"].item())
        return state

    continues(*pair("NAdam", {}), change=change, tolerance=1e-7)  # torch also computes such a product in float32


def test_adam_moments_whose_step_is_kept_elsewhere_are_refused():
    # apex's FusedAdam keeps its count in the group: a step of 1 would undo the bias correction of a long run.
    params = parameters()
    theirs = torch.optim.AdamW(params.values())
    descend(theirs, params, 3)
    saved = copy.deepcopy(theirs.state_dict())
    for entry in saved["state"].values():
        del entry["step"]
    saved["param_groups"][0]["step"] = 3
    optimizer = gradtx.optim.AdamW(params.values())
    with unchanged(optimizer), pytest.raises(ValueError, match="lacks 'step'"):
        optimizer.load_state_dict(saved)


def test_an_sgd_checkpoint_without_a_step_means_step_1():
    params = parameters()
    theirs = torch.optim.SGD(params.values(), momentum=0.9)
    descend(theirs, params, 5)
    optimizer = gradtx.optim.SGD(params.values(), momentum=0.9)
    optimizer.load_state_dict(theirs.state_dict())
    for param in params.values():
        assert_equal(optimizer.state[param]["step"], torch.tensor(1.0))


BY_ROWS = [
    ("SparseAdam", {}),
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adagrad", {"initial_accumulator_value": 0.5}),
]


def step_rows(optimizer, params, t):
    generator = torch.Generator().manual_seed(t)
    for param in params:
        index = torch.randint(len(param), (1, 3), generator=generator)
        values = torch.randn(3, *param.shape[1:], generator=generator)
        param.grad = torch.sparse_coo_tensor(index, values, param.shape, check_invariants=True)
    optimizer.step()


@pytest.mark.parametrize("direction", ["from torch", "to torch"])
@pytest.mark.parametrize(("name", "options"), BY_ROWS, ids=str)
def test_checkpoints_after_sparse_gradients_continue(name, options, direction):
    """SparseAdam of torch counts in an int, and SGD has a sparse momentum, which becomes a dense one."""
    modules = [torch.optim, gradtx.optim]
    saving, loading = modules if direction == "from torch" else modules[::-1]
    if loading is torch.optim and options.get("nesterov"):
        pytest.skip("torch's SGD has no Nesterov momentum of a sparse gradient with a dense buffer")
    params = [torch.nn.Parameter(torch.ones(6, 3)), torch.nn.Parameter(torch.ones(7))]
    optimizer = getattr(saving, name)(params, lr=0.03, **options)
    for t in range(10):
        step_rows(optimizer, params, t)
    own = [torch.nn.Parameter(param.detach().clone()) for param in params]
    other = getattr(loading, name)(own, **options)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    slots = [value for entry in other.state.values() for value in entry.values() if isinstance(value, torch.Tensor)]
    assert not any(value.is_sparse for value in slots)
    for t in range(10, 20):
        step_rows(optimizer, params, t)
        step_rows(other, own, t)
    assert_close(own, params, TOLERANCE)
