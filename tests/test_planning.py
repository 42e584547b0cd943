"""The memory of a run, computed before anything is allocated."""

import pytest
import torch

import gradtx
from gradtx import chain


def model(width=96, dtype=torch.float32, device="cpu"):
    with torch.device(device):
        net = torch.nn.Sequential(torch.nn.Linear(width, 128), torch.nn.LayerNorm(128), torch.nn.Linear(128, width))
    return net.to(dtype)


TRANSFORMATIONS = {
    "sgd": gradtx.sgd(lr=0.1),
    "adamw": gradtx.adamw(),
    "int8": gradtx.adamw(state_dtype="int8"),
    "int4": gradtx.adamw(state_dtype="int4"),
    "stochastic": gradtx.adamw(state_dtype="bfloat16:stochastic"),
    "lion": gradtx.lion(),
    "muon": gradtx.muon(fallback=gradtx.adamw()),
    "soap": gradtx.soap(),
    "accumulate": gradtx.accumulate(gradtx.adamw(), 2),
    "schedule": gradtx.skip_nonfinite(gradtx.schedule_free_radam(lr=gradtx.linear_schedule(0.1))),
    "stale": chain(gradtx.clip_by_global_norm(1.0, stale=True), gradtx.adamw()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_bytes_of_state_are_those_of_an_optimizer(name, dtype):
    tx = TRANSFORMATIONS[name]
    net = model(dtype=dtype)
    optimizer = gradtx.as_optimizer(tx, net.named_parameters())
    memory = gradtx.memory(tx, net)
    tensors = {}
    for param in net.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for state in optimizer.state.values():  # where parameters share values that a state dict copies
        tensors.update({tensor.data_ptr(): tensor for tensor in state.values() if tensor.numel()})
    assert memory.state == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert memory.weights == memory.gradients == sum(p.numel() * p.element_size() for p in net.parameters())
    assert memory.entries == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("code", "most"), [(None, 8.01), ("int8", 2.2), ("int4", 1.3), ("bfloat16+8", 6.1)])
def test_bytes_of_a_coded_matrix_are_within_the_bars(code, most):
    tx = gradtx.adamw(state_dtype=code)
    plan = gradtx.memory(tx, {"w": torch.empty(1024, 1024, device="meta")})
    assert plan.state / plan.entries <= most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_on_the_host_leaves_weights_and_gradients_on_the_device(dtype):
    net, tx = model(dtype=dtype, device="meta"), gradtx.adamw(state_dtype="int8")
    plan, beside = gradtx.memory(tx, net, state_device="cpu"), gradtx.memory(tx, net)
    assert plan.total == plan.weights + plan.gradients
    assert plan.host == beside.total
    assert beside.host == 0
    assert "on the host" in repr(plan)


def test_nothing_is_allocated_for_a_model_that_would_not_fit():
    plan = gradtx.memory(gradtx.adamw(state_dtype="int8"), model(2**30, device="meta"))
    assert plan.weights > 2**39
    assert plan.state == pytest.approx(plan.entries * 2.125, rel=0.01)


def test_a_compensation_counts_as_a_master_copy():
    net = model(dtype=torch.bfloat16)
    plan = gradtx.memory(chain(gradtx.sgd(lr=0.1), gradtx.compensate_rounding(bits=8)), net)
    assert plan.master == plan.entries
    assert plan.slots == {}
    wide = gradtx.memory(gradtx.sgd(lr=0.1), net)
    assert wide.master == 0


def test_the_largest_gradient_stands_for_all_that_are_released():
    plan = gradtx.memory(gradtx.adamw(), model())
    assert plan.largest_gradient == 128 * 96 * 4
    assert plan.total == plan.weights + plan.gradients + plan.state


def test_parameters_come_as_a_model_a_dict_pairs_or_a_list():
    net = model()
    plans = [
        gradtx.memory(gradtx.adamw(), form)
        for form in (net, dict(net.named_parameters()), net.named_parameters(), list(net.parameters()))
    ]
    assert len({repr(plan) for plan in plans}) == 1
    assert [row.name for row in plans[0].rows] == [name for name, _ in net.named_parameters()]
    assert plans[0].rows[0].shape == (128, 96)


@pytest.mark.parametrize(
    "tx", [gradtx.adamw(), gradtx.adamw(state_dtype="int8"), gradtx.lamb(), gradtx.lbfgs(history=2)], ids=repr
)
def test_the_memory_of_complex_parameters_is_that_of_their_state(tx):
    params = {"w": torch.nn.Parameter(torch.randn(40, 70, dtype=torch.complex64))}
    plan = gradtx.memory(tx, params)
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    params["w"].grad = torch.randn_like(params["w"])
    optimizer.step()
    state = optimizer.state[params["w"]].values()
    assert sum(plan.slots.values()) == sum(slot.nbytes for slot in state if slot.ndim)
    assert (plan.weights, plan.rows[0].shape) == (40 * 70 * 8, (40, 70))


def test_a_table_lists_slots():
    plan = gradtx.memory(gradtx.lion(), [torch.empty(1000, device="meta")])
    assert repr(plan).splitlines()[:6] == [
        "                      bytes  per entry",
        "weights               4,000       4.00",
        "gradients             4,000       4.00",
        "state                 4,004       4.00",
        "  exp_avg             4,000       4.00",
        "master                    0       0.00",
    ]


@pytest.mark.parametrize(
    ("tx", "params", "message"),
    [
        (torch.optim.SGD, [torch.ones(1)], "tx must be"),
        (gradtx.adamw(), 3, "'int' object is not iterable"),
        (gradtx.adamw(), [3], "memory: leaf '0' is a int, needs a tensor"),
    ],
)
def test_what_is_no_transformation_and_no_tensors_is_an_error(tx, params, message):
    with pytest.raises(TypeError, match=message):
        gradtx.memory(tx, params)
