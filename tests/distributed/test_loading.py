"""Loading needs no other rank, unless its page says so; whole states of one process are divided."""

import copy
import time
from collections import Counter

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import gradtx
from tests.distributed.problems import Model, assert_close, sharded, sharded_twice, train, weights, whole
from tests.distributed.traffic import Traffic
from tests.tiers import by_day

BEFORE, STEPS = 3, 6
CHAINS = {
    "adamw": gradtx.adamw(lr=0.01),
    "lookahead": gradtx.chain(gradtx.adamw(lr=0.01), gradtx.lookahead(k=2)),
    "prodigy": gradtx.prodigy(),
    "adam_mini": gradtx.adam_mini(lr=0.01),
    "adafactor": gradtx.adafactor(),
    "ldog": gradtx.ldog(),
    "soap": gradtx.soap(lr=0.02, precondition_frequency=2),
    "shampoo": gradtx.shampoo(lr=0.02, momentum=0.5),
    "kron": gradtx.psgd_kron(lr=0.01, seed=0),
    "int8": gradtx.chain(gradtx.scale_by_adam(state_dtype="int8"), gradtx.scale(-0.01)),
}


def made(name, model):
    return gradtx.as_optimizer(CHAINS[name], model.named_parameters())


def messages_of(function, *args):
    with Traffic() as traffic:
        result = function(*args)
    return result, dict(Counter(traffic.messages))


def built_and_loaded(name):
    model = sharded()
    optimizer, built = messages_of(made, name, model)
    train(model, optimizer, BEFORE)
    saved = optimizer.state_dict()
    _, loaded = messages_of(made(name, model).load_state_dict, saved)
    return built, loaded


@pytest.mark.parametrize("name", CHAINS)
def test_building_and_loading_send_nothing(name, two):
    assert two.run(built_and_loaded, name) == [({}, {})] * 2


def loaded_before_any_step(name):
    model = sharded()
    saved = made(name, model).state_dict()
    optimizer = made(name, model)
    _, sent = messages_of(optimizer.load_state_dict, saved)
    train(model, optimizer, 1)
    return sent


@pytest.mark.parametrize("name", ["adamw", "lookahead", "prodigy", "adam_mini", "int8"])
def test_a_state_before_any_step_is_compared_without_messages(name, two):
    assert two.run(loaded_before_any_step, name) == [{}, {}]


def whole_states(name):
    """State dicts of a run in one process, and its weights afterwards."""
    plain = Model()
    optimizer = made(name, plain)
    train(plain, optimizer, BEFORE)
    saved = copy.deepcopy(optimizer.state_dict())
    at_save = copy.deepcopy(plain)
    train(plain, optimizer, STEPS - BEFORE, start=BEFORE)
    return at_save, saved, plain, optimizer


def divided_and_continued(name, divide=sharded):
    at_save, saved, plain, reference = whole_states(name)
    model = divide(at_save)
    optimizer = made(name, model)
    _, sent = messages_of(optimizer.load_state_dict, saved)
    train(model, optimizer, STEPS - BEFORE, start=BEFORE)
    assert_close(weights(model), weights(plain))
    ours, theirs = optimizer.state_dict()["state"], reference.state_dict()["state"]
    for i, entry in theirs.items():
        assert_close((whole(ours[i][key]) for key in entry), entry.values())
    return sent


@pytest.mark.parametrize("name", [name for name in CHAINS if name not in ("kron",)])
def test_a_state_of_one_process_is_divided_and_continues(name, two):
    assert two.run(divided_and_continued, name) == [{}, {}]


@pytest.mark.parametrize("name", ["adamw", "soap", "lookahead"])
def test_a_state_of_one_process_is_divided_on_two_meshes(name, four):
    assert four.run(divided_and_continued, name, sharded_twice) == [{}] * 4


def stage_alone(name):
    """Each rank is a pipeline stage with a mesh of its own; the first one loads a state before any step."""
    rank = distributed.get_rank()
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("stage", "shard"))["shard"]
    model = fully_shard(Model(), mesh=mesh)
    optimizer = made(name, model)
    start = time.monotonic()
    if rank == 0:
        optimizer.load_state_dict(made(name, model).state_dict())
    train(model, optimizer, 1)
    return time.monotonic() - start


@pytest.mark.parametrize("name", ["adamw", "ldog", "soap"])
def test_a_pipeline_stage_loads_alone(name, two):
    assert max(two.run(stage_alone, name)) < 15.0


def on_another_mesh():
    model = sharded()
    optimizer = made("adamw", model)
    train(model, optimizer, BEFORE)
    saved = copy.deepcopy(optimizer.state_dict())
    mesh = DeviceMesh("cpu", [[0, 1]])
    entry = saved["state"][0]
    value = entry["exp_avg"]
    entry["exp_avg"] = DTensor.from_local(
        value.to_local(),
        mesh,
        [Replicate(), *value.placements],
        run_check=False,
        shape=value.shape,
        stride=value.stride(),
    )
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"parameter 'image.weight': 'exp_avg' is divided on .*DeviceMesh"):
        optimizer.load_state_dict(saved)
    for old, now in zip(before["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(old[key].to_local(), now[key].to_local()) for key in ("exp_avg", "exp_avg_sq"))


def test_a_slot_of_another_mesh_is_an_error_that_names_it(two):
    two.run(on_another_mesh)


# A number of the model as a DTensor, such as a logit scale after `distribute_module`.

WITH_A_NUMBER = {
    name: getattr(gradtx, name)(lr=0.02)
    for name in ("adamw", "soap", "kl_soap", "shampoo", "scalable_shampoo", "kl_shampoo", "psgd_kron", "psgd_pro")
}
WITH_A_NUMBER["prodigy"] = gradtx.prodigy(slice_p=2)
WITH_A_NUMBER["muon"] = gradtx.muon(lr=0.02, fallback=gradtx.adamw(lr=0.02))
WITH_A_NUMBER["int8"] = gradtx.adamw(lr=0.02, state_dtype="int8")
SHAPES_WITH_A_NUMBER = {"scale": (), "matrix": (5, 4), "bias": (5,)}


def tensors_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES_WITH_A_NUMBER.items()}


class RunWithANumber:
    """Parameters of which one is a number, placed by a function, and their optimizer."""

    def __init__(self, name, place, weights):
        self._place = place
        self.params = {key: torch.nn.Parameter(place(value)) for key, value in weights.items()}
        self.optimizer = gradtx.as_optimizer(WITH_A_NUMBER[name], list(self.params.items()))

    def step(self, steps):
        for t in steps:
            for name, gradient in tensors_of(t).items():
                self.params[name].grad = self._place(gradient)
            self.optimizer.step()

    def weights(self):
        return {name: whole(param) for name, param in self.params.items()}


def number_is_loaded(name):
    """A divided run resumes from its own state and from that of one process, and goes on as one process does."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))

    def place(tensor):
        return distribute_tensor(tensor.clone(), mesh, [Shard(0) if tensor.ndim else Replicate()])

    plain = RunWithANumber(name, torch.clone, tensors_of(100))
    divided = RunWithANumber(name, place, tensors_of(100))
    plain.step(range(BEFORE))
    divided.step(range(BEFORE))
    resumed = []
    for saved in (divided.optimizer.state_dict(), plain.optimizer.state_dict()):
        again = RunWithANumber(name, place, divided.weights())
        again.optimizer.load_state_dict(copy.deepcopy(saved))
        state = again.optimizer.state[again.params["scale"]]
        for key, value in divided.optimizer.state[divided.params["scale"]].items():
            assert type(state[key]) is type(value), key
        resumed.append(again)
    for run in (plain, divided, *resumed):
        run.step(range(BEFORE, STEPS))
    for run in (divided, *resumed):
        torch.testing.assert_close(run.weights(), plain.weights(), rtol=1e-5, atol=1e-6)


@by_day("adamw", "soap", "psgd_kron", "muon")
@pytest.mark.parametrize("name", WITH_A_NUMBER)
def test_the_state_of_a_number_on_all_ranks_is_loaded_and_continues(name, two):
    two.run(number_is_loaded, name)
