"""Ranks that would step differently raise the same error, in place of hanging or of silently going apart."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gradtx
from tests.distributed.traffic import Traffic

MUON = gradtx.muon(lr=0.1, fallback=gradtx.adamw())


def made(tx=MUON, names=("w", "v", "b")):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    shapes = {"w": (5, 3), "v": (5, 3), "b": (5,)}
    params = {}
    for name in names:
        params[name] = torch.nn.Parameter(
            distribute_tensor(torch.ones(shapes[name]), mesh, [Shard(0)], src_data_rank=None)
        )
        params[name].grad = params[name].detach().clone()
    return gradtx.as_optimizer(tx, list(params.items())), params


def error_of(optimizer):
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    distributed.barrier()
    return str(caught.value)


def is_last():
    return distributed.get_rank() == distributed.get_world_size() - 1


def without_a_gradient():
    optimizer, params = made()
    if is_last():
        params["v"].grad = None
    return error_of(optimizer)


def with_other_numbers():
    return error_of(made(gradtx.muon(lr=0.2 if is_last() else 0.1, fallback=gradtx.adamw()))[0])


def with_another_chain():
    return error_of(made(gradtx.lamb() if is_last() else gradtx.adamw())[0])


def with_a_parameter_less():
    return error_of(made(gradtx.lamb(), ("b", "v", "w") if not is_last() else ("b", "v"))[0])


@pytest.mark.parametrize(
    ("function", "texts"),
    [
        (without_a_gradient, ("rank 0 steps parameter 'v'", "with a gradient", "rank 1 does not")),
        (with_other_numbers, ("rank 0 steps group 0", "'lr': 0.1", "rank 1 steps group 0", "'lr': 0.2")),
        (with_another_chain, ("rank 0 steps", "adamw", "rank 1 steps", "lamb")),
        (with_a_parameter_less, ("rank 0 steps parameter 'w'", "rank 1 does not")),
    ],
)
def test_all_ranks_raise_and_name_what_differs(function, texts, two):
    first, second = two.run(function)
    assert first == second
    for text in texts:
        assert text in first


def twice_without_a_gradient():
    optimizer, params = made()
    if is_last():
        params["v"].grad = None
    first = error_of(optimizer)
    again = error_of(optimizer)
    if is_last():
        params["v"].grad = params["w"].grad.clone()
    optimizer.step()
    return first, again


def test_ranks_that_differ_compare_again_and_go_on_when_they_agree(two):
    for first, again in two.run(twice_without_a_gradient):
        assert first == again


def fails_in_front_of_the_step():
    optimizer, params = made()
    if is_last():
        optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises((RuntimeError, ValueError)) as caught:
        optimizer.step()
    before = [param.to_local().clone() for param in params.values()]
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    moved = [not torch.equal(param.to_local(), old) for param, old in zip(params.values(), before, strict=True)]
    return str(caught.value), all(moved)


def test_a_rank_that_fails_in_its_checks_does_not_leave_the_others_waiting(two):
    (of_first, first_moved), (of_second, second_moved) = two.run(fails_in_front_of_the_step)
    assert "rank 1 failed before this step; see the error raised on that rank" in of_first
    assert "lr" in of_second
    assert "-1.0" in of_second
    assert first_moved
    assert second_moved


def messages_of_steps():
    optimizer, params = made(gradtx.adamw())
    counts = []
    for step in range(5):
        if step == 3:
            params["w"].grad = None
        with Traffic() as traffic:
            optimizer.step()
        counts.append(traffic.messages)
    return counts


def test_the_digest_travels_only_when_a_plan_is_made(two):
    for counts in two.run(messages_of_steps):
        assert counts == [["allreduce_"], [], [], ["allreduce_"], []]


def replicas(**numbers):
    """An optimizer of whole parameters whose matrices the ranks divide, and its parameters, after a step."""
    generator = torch.Generator().manual_seed(0)
    params = {name: torch.nn.Parameter(torch.randn(4, 4, generator=generator)) for name in ("w", "v")}
    for param in params.values():
        param.grad = torch.ones(4, 4)
    tx = gradtx.muon(**{"lr": 0.1, **numbers}, fallback=gradtx.adamw())
    optimizer = gradtx.as_optimizer(tx, list(params.items()), process_group=distributed.group.WORLD)
    optimizer.step()
    return optimizer, params


class Box:
    """A number of this process."""

    rate = 0.1


def at_a_later_step(kind):
    """The error of a second step in which the rate of the last rank is another one; no weight has moved."""
    box = Box()
    rates = {
        "number": 0.1,
        "tensor": torch.tensor(0.1, dtype=torch.float64),
        "function": gradtx.Schedule(lambda step: box.rate),
    }
    optimizer, params = replicas(lr=rates[kind])
    optimizer.step()
    before = {name: param.detach().clone() for name, param in params.items()}
    group = optimizer.param_groups[0]
    if is_last() and kind == "number":
        group["lr"] = 0.2
    elif is_last() and kind == "tensor":
        group["lr"].fill_(0.2)
    elif is_last():
        box.rate = 0.2
    text = error_of(optimizer)
    assert all(torch.equal(param, before[name]) for name, param in params.items())
    return text


@pytest.mark.parametrize("kind", ["number", "tensor", "function"])
def test_another_rate_of_one_replica_at_a_later_step_is_an_error_on_all(kind, two):
    first, second = two.run(at_a_later_step, kind, limit=20)
    assert first == second
    assert "rank 0 steps group 0" in first
    assert "0.1" in first.partition("rank 1 steps group 0")[0]
    assert "0.2" in first.partition("rank 1 steps group 0")[2]


def with_another_count():
    """The error of a step in which the last rank has another count than its replicas, and the steps after it."""
    optimizer, params = replicas()
    optimizer.step()
    step = optimizer.state[params["w"]]["step"]
    if is_last():
        step.data.fill_(7.0)
    text = error_of(optimizer)
    step.data.fill_(2.0)
    for _ in range(2):
        optimizer.step()
    return text, step.item()


def test_another_count_of_one_replica_is_an_error_on_all(two):
    first, second = two.run(with_another_count, limit=20)
    assert first == second
    assert first[0].count("parameter 'w'") == 2
    assert "after 2 steps" in first[0]
    assert "after 7 steps" in first[0]
    assert first[1] == 4.0


def messages_of_replicas():
    optimizer, _ = replicas()
    optimizer.step()
    with Traffic() as traffic:
        optimizer.step()
    return traffic.messages, traffic.reduced


def test_comparing_numbers_costs_replicas_no_other_message(two):
    assert two.run(messages_of_replicas) == [(["allreduce_", "_allgather_base_"], [16])] * 2


@gradtx.per_tensor(elementwise=True)
def scale_by_first(names: gradtx.Static[frozenset] = frozenset()):
    def update(update, state, param, ctx):
        return update, state

    return update


def with_a_set():
    names = (8, 0) if is_last() else (0, 8)
    assert repr(frozenset(names)) == f"frozenset({{{names[0]}, {names[1]}}})"
    optimizer, params = made(gradtx.chain(scale_by_first(frozenset(names)), gradtx.sgd(0.1)))
    optimizer.step()
    return params["w"].to_local().flatten()[0].item()


def test_a_set_among_arguments_has_another_order_in_each_process_and_is_the_same_plan(two):
    assert two.run(with_a_set, limit=20) == [pytest.approx(0.9)] * 2


def replica_without_gradients(accumulates, earlier):
    tx = gradtx.muon(lr=0.1, fallback=gradtx.adamw())
    tx = gradtx.accumulate(tx, 2) if accumulates else tx
    params = {name: torch.nn.Parameter(torch.eye(4)) for name in ("w", "v")}
    optimizer = gradtx.as_optimizer(tx, list(params.items()), process_group=distributed.group.WORLD)
    for step in range(earlier + 1):
        for param in params.values():
            param.grad = None if is_last() and step == earlier else torch.ones(4, 4)
        if step < earlier:
            optimizer.step()
    return error_of(optimizer)


@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("accumulates", [False, True])
def test_a_replica_without_any_gradient_is_an_error_on_all(accumulates, earlier, two):
    first, second = two.run(replica_without_gradients, accumulates, earlier, limit=20)
    assert first == second
    assert "rank 0 steps parameter 'v'" in first
    assert "rank 1 steps nothing there, as without gradients" in first
