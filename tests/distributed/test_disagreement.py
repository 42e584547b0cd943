"""Ranks that disagree: on every rank that takes part in the optimizer an error at once, whichever mesh notices.

Four ranks hold parameters on two meshes, as in FSDP2 with tensor parallelism: of two ranks (`columns`), and of all four
(`grid`). The last rank differs.
"""

import time

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gradtx
from tests.tiers import by_day

DEADLINE = 20.0  # seconds that a rank may say nothing
SHAPES = {"columns.w": (6, 4), "columns.b": (6,), "grid.w": (8, 6), "grid.b": (4,)}
FALLBACK = gradtx.adamw(lr=1e-2)
OPTIMIZERS = {
    "adamw": gradtx.adamw(lr=0.1),
    "lamb": gradtx.lamb(lr=0.1),
    "muon": gradtx.muon(lr=0.1, fallback=FALLBACK),
    "soap": gradtx.soap(lr=0.1),
    "shampoo": gradtx.shampoo(lr=0.1),
    "psgd_kron": gradtx.psgd_kron(lr=0.1),
    "dion": gradtx.dion(lr=0.1, fallback=FALLBACK),
}


def on_two_meshes(tx):
    """An optimizer of parameters on two meshes, with gradients, and the parameters."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    placed = {"columns": (mesh["dp"], [Shard(0)]), "grid": (mesh, [Shard(0), Shard(0)])}
    params = {}
    generator = torch.Generator().manual_seed(0)
    for name, shape in SHAPES.items():
        where, placements = placed[name.partition(".")[0]]
        value = torch.randn(shape, generator=generator)
        params[name] = torch.nn.Parameter(distribute_tensor(value, where, placements))
        params[name].grad = params[name].detach().clone()
    return gradtx.as_optimizer(tx, list(params.items())), params


def is_last():
    return distributed.get_rank() == distributed.get_world_size() - 1


def failure(optimizer, params):
    """The error of a step, the time when it was raised, and whether nothing has changed."""
    before = {name: param.to_local().clone() for name, param in params.items()}
    with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
        optimizer.step()
    at = time.monotonic()
    unchanged = all(torch.equal(param.to_local(), before[name]) for name, param in params.items())
    distributed.barrier()  # nothing is left under way
    return str(caught.value), at, unchanged and not optimizer.state


def check(answers, *, named="", of_last=None):
    """All ranks raise within a second, in one text that names what differs; nothing has changed anywhere."""
    texts, times, unchanged = zip(*answers, strict=True)
    assert max(times) - min(times) < 1
    assert all(unchanged)
    if of_last is not None:
        assert of_last in texts[-1]
        texts = texts[:-1]
    assert len(set(texts)) == 1, texts
    assert "rank 3" in texts[0]
    assert named in texts[0]


def with_another_rate(name):
    optimizer, params = on_two_meshes(OPTIMIZERS[name])
    if is_last():
        optimizer.param_groups[0]["lr"] = 0.2
    return failure(optimizer, params)


@by_day("soap", "adamw")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_rate_of_one_rank_is_an_error_on_all_ranks_of_both_meshes(name, four):
    check(four.run(with_another_rate, name, limit=DEADLINE), named="'lr': 0.2")


def without_gradient(name, missing):
    optimizer, params = on_two_meshes(OPTIMIZERS[name])
    for key, param in params.items():
        if is_last() and key.startswith(missing):
            param.grad = None
    return failure(optimizer, params)


MISSING = {
    "columns.w": "parameter 'columns.w'",
    "grid.w": "parameter 'grid.w'",
    "columns": "nothing there",
    "grid": "nothing there",
    "": "nothing there",
}


@by_day("soap-columns.w", "soap-", "muon-columns", "adamw-grid", "dion-grid.w")
@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_missing_gradient_is_an_error_on_all_ranks_of_both_meshes(name, missing, four):
    check(four.run(without_gradient, name, missing, limit=DEADLINE), named=MISSING[missing])


def with_a_failing_check(name):
    optimizer, params = on_two_meshes(OPTIMIZERS[name])
    if is_last():
        optimizer.param_groups[0]["lr"] = -1.0
    answer = failure(optimizer, params)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    return answer


@by_day("psgd_kron", "adamw")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_check_that_fails_on_one_rank_at_the_first_step_is_an_error_on_all(name, four):
    answers = four.run(with_a_failing_check, name, limit=DEADLINE)
    check(answers, named="rank 3 failed before this step; see the error raised on that rank", of_last="-1.0")


def with_another_count(name):
    optimizer, params = on_two_meshes(OPTIMIZERS[name])
    optimizer.step()
    saved = optimizer.state_dict()
    again, params = on_two_meshes(OPTIMIZERS[name])
    if name == "soap":  # all ranks load it together
        again.load_state_dict(saved)
    if is_last():
        for state in again.state.values() if name == "soap" else ():
            state["step"] = torch.tensor(7.0)
    if name != "soap" and is_last():
        again.load_state_dict(saved)
    text, at, _ = failure(again, params)
    return text, at, True


@by_day("soap")
@pytest.mark.parametrize("name", ["adamw", "soap"])
def test_another_number_of_steps_of_one_rank_is_an_error_on_all(name, four):
    check(four.run(with_another_count, name, limit=DEADLINE), named="after 0 steps" if name == "adamw" else "after 7")
