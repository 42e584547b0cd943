"""Our own checkpoints: saved runs continue bit for bit; a checkpoint that does not fit changes nothing."""

import copy

import pytest
import torch

import gradtx
from gradtx.base.table import CLASSES
from tests.optim.chains import CHAINS, WARM_UP
from tests.optim.problems import (
    assert_equal,
    descend,
    parameters,
    saved_and_loaded,
    set_gradients,
    twins,
    unchanged,
    values,
    whole,
)


def trained(tx, steps=7, dtype=torch.float32):
    params = parameters(dtype)
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    descend(optimizer, params, steps)
    return optimizer, params


def assert_resumes(tx, dtype=torch.float32):
    """Assert that an optimizer that has taken other steps continues like the first one after loading its state."""
    optimizer, params = trained(tx, dtype=dtype)
    again, own = trained(tx, steps=2, dtype=dtype)
    checkpoint = saved_and_loaded({"optimizer": optimizer.state_dict(), "params": params})
    again.load_state_dict(checkpoint["optimizer"])
    with torch.no_grad():
        for name, param in own.items():
            param.copy_(checkpoint["params"][name])
    set_gradients(params, 6)
    set_gradients(own, 6)
    assert_equal(whole(again), whole(optimizer))
    descend(optimizer, params, 7, start=7)
    descend(again, own, 7, start=7)
    assert_equal(whole(again), whole(optimizer))


@pytest.mark.parametrize("name", CHAINS)
def test_a_saved_run_resumes_bit_for_bit(name):
    assert_resumes(CHAINS[name])


@pytest.mark.parametrize("state_dtype", [None, torch.float32])
def test_a_saved_run_of_bfloat16_parameters_resumes_bit_for_bit(state_dtype):
    assert_resumes(gradtx.adamw(lr=WARM_UP, state_dtype=state_dtype), torch.bfloat16)


def test_state_keeps_its_dtype_where_torch_would_cast_it_to_the_parameters():
    optimizer, _ = trained(gradtx.adamw(state_dtype=torch.float32), dtype=torch.bfloat16)
    optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {torch.float32}


def test_a_state_dict_has_the_format_of_torchs():
    optimizer, params = trained(gradtx.adamw())
    theirs = torch.optim.AdamW(params.values())
    descend(theirs, params, 1)
    own, expected = optimizer.state_dict(), theirs.state_dict()
    assert own.keys() == expected.keys()
    assert list(own["state"]) == list(expected["state"])
    assert own["state"][0].keys() == expected["state"][0].keys()
    assert own["param_groups"][0]["params"] == expected["param_groups"][0]["params"]


def test_loading_neither_changes_the_given_state_dict_nor_ties_it_to_the_optimizer():
    optimizer, params = trained(CHAINS["record"])
    saved = saved_and_loaded(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    for _ in range(2):  # loading twice is the same as loading once
        optimizer.load_state_dict(saved)
        descend(optimizer, params, 2)
        assert_equal(saved, kept)


def test_a_state_dict_loads_into_the_optimizer_that_it_came_from():
    optimizer, _ = trained(CHAINS["design"])
    with unchanged(optimizer):
        optimizer.load_state_dict(optimizer.state_dict())


def test_a_list_in_place_of_a_parameters_number_is_an_error_that_changes_nothing():
    optimizer, _ = trained(CHAINS["design"])
    saved = optimizer.state_dict()
    saved["param_groups"][0]["params"] = [[]]
    with unchanged(optimizer), pytest.raises(TypeError, match=r"entry of 'params' of loaded group 0 .*, got \[\]"):
        optimizer.load_state_dict(saved)


def test_an_older_checkpoint_takes_everything_back():
    optimizer, params = trained(CHAINS["accumulate"])
    saved, old = saved_and_loaded(optimizer.state_dict()), values(params)
    descend(optimizer, params, 4, start=7)
    expected = values(params)
    descend(optimizer, params, 4, start=11)
    optimizer.load_state_dict(saved)
    with torch.no_grad():
        for param, value in zip(params.values(), old, strict=True):
            param.copy_(value)
    descend(optimizer, params, 4, start=7)
    assert_equal(values(params), expected)


def test_hyperparameters_come_from_the_checkpoint_as_in_torch():
    for module in (gradtx.optim, torch.optim):
        params = parameters()
        saved = module.AdamW(params.values(), lr=0.5, betas=(0.1, 0.2)).state_dict()
        optimizer = module.AdamW(params.values(), lr=0.3)
        optimizer.load_state_dict(saved)
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]) == (0.5, (0.1, 0.2))


@pytest.mark.parametrize(("saved", "built"), [(0.0, 0.9), (0.9, 0.0), (0.9, 0.5)])
def test_momentum_comes_from_the_checkpoint_whatever_the_optimizer_was_built_with(saved, built):
    params = parameters()
    optimizer = gradtx.optim.SGD(params.values(), lr=0.1, momentum=saved)
    descend(optimizer, params, 3)
    own = twins(params)
    again = gradtx.optim.SGD(own.values(), momentum=built)
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    descend(optimizer, params, 3, start=3)
    descend(again, own, 3, start=3)
    assert_equal(values(own), values(params))


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", ["SGD", "RMSprop"])
def test_a_momentum_that_was_written_since_the_last_step_is_saved_with_its_buffers(name, steps):
    params = parameters()
    optimizer = getattr(gradtx.optim, name)(params.values(), lr=0.1)
    descend(optimizer, params, steps)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)  # writes a momentum
    saved = saved_and_loaded(optimizer.state_dict())
    own = twins(params)
    again = getattr(gradtx.optim, name)(own.values(), lr=0.1)
    again.load_state_dict(saved)
    descend(optimizer, params, 3, start=steps)
    descend(again, own, 3, start=steps)
    assert_equal(values(own), values(params))


def test_a_parameter_without_any_entry_starts_again_with_its_next_gradient():
    optimizer, _ = trained(gradtx.adam(lr=0.1))
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["state"][1]
    again, own = trained(gradtx.adam(lr=0.1), steps=2)
    again.load_state_dict(saved)
    assert own["body.bias"] not in again.state
    again.state_dict()
    state = again.state[own["body.bias"]]
    assert_equal(dict(state), {"step": torch.tensor(0.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)})
    assert again.state[own["body.weight"]]["step"].item() == 7


def test_shared_state_is_fresh_too_where_the_checkpoint_has_none():
    optimizer, _ = trained(gradtx.accumulate(gradtx.sgd(lr=1.0), every=2), steps=1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"] = {}
    optimizer.load_state_dict(saved)
    assert {entry["mini_step"].item() for entry in optimizer.state_dict()["state"].values()} == {0}


def test_state_that_belongs_to_no_parameter_is_kept_as_in_torch():
    optimizer, _ = trained(gradtx.adam())
    optimizer.state["note"] = {"epoch": 3}
    again, _ = trained(gradtx.adam())
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert again.state["note"] == {"epoch": 3}


def test_parameters_may_be_numbered_by_anything_as_in_torch():
    for module in (gradtx.optim, torch.optim):
        params = parameters()
        optimizer = module.AdamW(params.values())
        descend(optimizer, params, 2)
        saved = saved_and_loaded(optimizer.state_dict())
        saved["state"] = {f"p{i}": entry for i, entry in saved["state"].items()}
        saved["param_groups"][0]["params"] = [f"p{i}" for i in range(4)]
        again = module.AdamW(params.values())
        again.load_state_dict(saved)
        assert set(again.state) == set(params.values())
        assert again.state[params["body.bias"]]["step"].item() == 2


def test_the_state_of_a_lazy_parameter_is_loaded_after_its_first_forward_pass():
    source = torch.nn.Linear(3, 2)
    optimizer = gradtx.optim.AdamW(source.parameters())
    source(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    lazy = torch.nn.LazyLinear(2)
    again = gradtx.optim.AdamW(lazy.parameters())
    with pytest.raises(ValueError, match=r"'0' has no values yet.*; load it after the first forward pass"):
        again.load_state_dict(optimizer.state_dict())
    lazy(torch.ones(1, 3)).sum().backward()
    again.load_state_dict(optimizer.state_dict())
    again.step()
    assert again.state[lazy.weight]["step"].item() == 2


def named(names, steps):
    params = [(name, torch.nn.Parameter(torch.ones(3))) for name in names]
    optimizer = gradtx.optim.AdamW(params)
    for i in range(steps):
        for k, (_, param) in enumerate(params):
            param.grad = torch.full((3,), 1.0 + i + k)
        optimizer.step()
    return optimizer


def test_names_in_another_order_than_in_the_checkpoint_warn_since_state_goes_by_position():
    saved = named(["a", "b", "c"], 2).state_dict()
    loaded = named(["a", "c", "b"], 0)
    message = (
        "^AdamW: the checkpoint has 'b' where this optimizer has 'c'; state is loaded by position, as in torch.optim"
    )
    with pytest.warns(UserWarning, match=message):
        loaded.load_state_dict(saved)


# Averages of weights: 16-bit weights need a slot more, which follows from the weights and the other slots.

AVERAGES = {
    "schedule_free_sgd": (gradtx.schedule_free_sgd(lr=0.5), 0.9),
    "schedule_free_adamw": (gradtx.schedule_free_adamw(lr=0.05, warmup_steps=3), 0.9),
    "schedule_free_radam": (gradtx.schedule_free_radam(lr=0.05), 0.9),
    "gpa_adamw": (gradtx.gpa_adamw(lr=0.05), 0.7),
    "accumulate": (gradtx.accumulate(gradtx.schedule_free_adamw(lr=0.05), every=2), 0.9),
    "a chain": (gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.gpa_adamw(lr=0.05)), 0.7),
}
DTYPES = [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float64, torch.float16)]


def evaluated(optimizer, params):
    with optimizer.eval_params():
        return {name: param.detach().clone() for name, param in params.items()}


@pytest.mark.parametrize("weights", ["before", "after"])
@pytest.mark.parametrize(("saved_in", "loaded_in"), DTYPES)
@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_of_weights_is_loaded_into_weights_of_other_dtypes(name, saved_in, loaded_in, weights):
    """The average x follows from y and z, y = (1 - beta) z + beta x, whichever of weights and state comes first."""
    tx, beta = AVERAGES[name]
    optimizer, params = trained(tx, steps=8, dtype=saved_in)
    saved = saved_and_loaded(optimizer.state_dict())
    loaded = {key: torch.nn.Parameter(torch.zeros_like(param, dtype=loaded_in)) for key, param in params.items()}

    def load_weights():
        for key, param in loaded.items():
            param.data.copy_(params[key].detach())

    if weights == "before":
        load_weights()
    again = gradtx.as_optimizer(tx, list(loaded.items()))
    again.load_state_dict(saved)
    if weights == "after":
        load_weights()
    found = evaluated(again, loaded)
    for key, param in loaded.items():
        z, y = again.state[param]["z"].double(), param.detach().double()
        # float32 holds x, and 16-bit weights hold it only while they are evaluated.
        expected = z + (y - z) / beta
        torch.testing.assert_close(found[key], expected.to(loaded_in), rtol=1e-5, atol=1e-6)
        if loaded_in.itemsize < 4:
            assert again.state[param]["x"].dtype == torch.float32
            torch.testing.assert_close(again.state[param]["x"].double(), expected, rtol=1e-6, atol=1e-6)
        else:
            assert "x" not in again.state[param]
    descend(optimizer, params, 4, start=8)
    descend(again, loaded, 4, start=8)
    for key, average in evaluated(optimizer, params).items():
        # bfloat16 keeps 8 bits of y; the average is off by up to 1 / beta of that.
        torch.testing.assert_close(evaluated(again, loaded)[key].double(), average.double(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_that_become_16_bit_and_back_in_a_run_keep_their_average(dtype):
    model = torch.nn.Linear(3, 2).to(torch.float32 if dtype == torch.bfloat16 else torch.bfloat16)
    optimizer = gradtx.optim.GPAAdamW(model.parameters(), lr=0.05)

    def step():
        optimizer.zero_grad()
        model(torch.ones(2, 3, dtype=model.weight.dtype)).square().mean().backward()
        optimizer.step()

    for _ in range(5):
        step()
    before = evaluated(optimizer, dict(model.named_parameters()))
    model.to(dtype)
    optimizer.load_state_dict(optimizer.state_dict())
    after = evaluated(optimizer, dict(model.named_parameters()))
    for name, average in before.items():
        torch.testing.assert_close(after[name].double(), average.double(), rtol=0.02, atol=0.02)
    step()
    assert ("x" in optimizer.state[model.weight]) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("tuner", [gradtx.mechanize, gradtx.trac])
@pytest.mark.parametrize(("saved_in", "loaded_in"), DTYPES[:2])
def test_a_tuned_sum_of_updates_is_loaded_into_weights_of_other_dtypes(saved_in, loaded_in, tuner):
    """Mechanic's and TRAC's weights are those of the start and the scale times the sum of updates."""
    tx = tuner(gradtx.sgd(lr=1.0))
    optimizer, params = trained(tx, steps=30, dtype=saved_in)
    loaded = {key: torch.nn.Parameter(param.detach().to(loaded_in)) for key, param in params.items()}
    again = gradtx.as_optimizer(tx, list(loaded.items()))
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    descend(optimizer, params, 1, start=30)
    descend(again, loaded, 1, start=30)
    for key, param in params.items():
        ours, old = again.state[loaded[key]], optimizer.state[param]
        assert ("sum" in ours) == (loaded_in == torch.bfloat16)
        torch.testing.assert_close(ours["param_init"], old["param_init"].to(ours["param_init"].dtype))
        torch.testing.assert_close(loaded[key].double(), param.double(), rtol=0.02, atol=0.02)


def test_an_average_in_codes_is_loaded_from_exact_weights():
    params = {"w": torch.nn.Parameter(torch.randn(64, 128))}
    optimizer = gradtx.as_optimizer(gradtx.schedule_free_sgd(lr=0.5), list(params.items()))
    descend(optimizer, params, 5)
    rounded = {"w": torch.nn.Parameter(params["w"].detach().bfloat16())}
    tx = gradtx.schedule_free_sgd(lr=0.5, state_dtype={"x": "int8"})
    again = gradtx.as_optimizer(tx, list(rounded.items()))
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    found, expected = evaluated(again, rounded)["w"], evaluated(optimizer, params)["w"]
    assert again.state[rounded["w"]]["x"].dtype == torch.int8
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


# Formats without shared memory, such as safetensors, in which lerobot saves states.


def flattened(state_dict):
    tensors = {}
    for number, entry in state_dict["state"].items():
        for key, value in entry.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{key}"] = value
    return tensors


SHARING = {
    "prodigy": gradtx.prodigy(),
    "prodigy in slices": gradtx.prodigy(slice_p=3),
    "dadapt_adam": gradtx.dadapt_adam(),
    "dog": gradtx.dog(),
    "dowg": gradtx.dowg(),
    "swats": gradtx.swats(lr=0.1),
    "stable_spam": gradtx.stable_spam(lr=0.1),
    "accumulate": gradtx.accumulate(gradtx.adamw(lr=0.1), every=2),
    "mechanize": gradtx.mechanize(gradtx.sgd(lr=1.0)),
    "record": gradtx.chain(gradtx.record("norm"), gradtx.adamw(lr=0.1)),
    "int8": gradtx.adamw(lr=0.1, state_dtype="int8"),
    "apply_if": gradtx.skip_nonfinite(gradtx.adamw(lr=0.1)),
}


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", SHARING)
def test_parameters_share_no_memory_in_a_state_dict_so_safetensors_takes_it(name, steps, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    optimizer, params = trained(SHARING[name], steps)
    tensors = flattened(optimizer.state_dict())
    assert tensors
    safetensors.save_file(tensors, tmp_path / "state.safetensors")
    loaded = safetensors.load_file(tmp_path / "state.safetensors")
    again = copy.deepcopy(optimizer.state_dict())
    for number, entry in again["state"].items():
        entry.update({key: loaded[f"{number}.{key}"] for key in entry})
    resumed = gradtx.as_optimizer(
        SHARING[name], [(key, torch.nn.Parameter(p.detach().clone())) for key, p in params.items()]
    )
    resumed.load_state_dict(again)
    torch.testing.assert_close(flattened(resumed.state_dict()), flattened(optimizer.state_dict()), rtol=0, atol=0)
    for key, value in optimizer.state.items():  # the state itself is not copied
        if steps:
            number = next(i for i, param in enumerate(params.values()) if param is key)
            assert all(tensors[f"{number}.{slot}"] is value[slot] for slot in value if value[slot].ndim)


def test_every_class_saves_states_without_shared_memory():
    safetensors = pytest.importorskip("safetensors.torch")
    refused = {}
    for name in sorted(set(CLASSES.values())):
        params = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(3, 2))]
        try:
            optimizer = getattr(gradtx.optim, name)(params)
        except TypeError:  # needs an argument
            continue
        try:
            safetensors.save(flattened(optimizer.state_dict()))
        except (RuntimeError, ValueError) as error:
            refused[name] = error
    assert refused == {}
