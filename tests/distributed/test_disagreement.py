"""Ranks that disagree: on every rank that takes part in the optimizer an error at once, whichever mesh notices.

Four ranks hold parameters on two meshes, as in FSDP2 with tensor parallelism: of two ranks (`columns`), and of all four
(`grid`). The last rank differs.
"""

import os
import time
from unittest import mock

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import gradtx
from gradtx.base.dtensor import local
from gradtx.execution.owners import Exchange
from tests.distributed.traffic import Traffic
from tests.distributed.worlds import World
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


def on_two_meshes(tx, **options):
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
    return gradtx.as_optimizer(tx, list(params.items()), **options), params


# Two for each mesh; of a norm, one for each dimension of a mesh.
HEALTHY = {"adamw": 0, "muon": 4, "soap": 4, "clip and muon": 7}


def on_two_meshes_and_on_none(name):
    """Steps on two meshes equal those of one process bit by bit; the number of messages of the last one."""
    tx = LOSING.get(name, OPTIMIZERS.get(name))
    optimizer, params = on_two_meshes(tx)
    generator = torch.Generator().manual_seed(0)
    plain = {key: torch.nn.Parameter(torch.randn(shape, generator=generator)) for key, shape in SHAPES.items()}
    reference = gradtx.as_optimizer(tx, list(plain.items()))
    for _ in range(3):
        for key, param in params.items():
            plain[key].grad = torch.randn(param.shape, generator=generator)
            param.grad = distribute_tensor(plain[key].grad, param.device_mesh, param.placements)
        with Traffic() as traffic:
            optimizer.step()
        reference.step()
    tolerance = 1e-6 if "clip" in name else 0.0  # a norm is added in another order
    for key, param in params.items():
        shard = distribute_tensor(plain[key].detach(), param.device_mesh, param.placements)
        torch.testing.assert_close(local(param), local(shard), rtol=tolerance, atol=tolerance)
    assert 16 not in traffic.reduced
    return traffic.count


@pytest.mark.parametrize("name", HEALTHY)
def test_steps_on_two_meshes_are_those_of_one_process_and_send_no_more_messages(name, four):
    counts = four.run(on_two_meshes_and_on_none, name, limit=DEADLINE)
    assert len(set(counts)) == 1
    assert counts[0] == HEALTHY[name]


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


def with_a_failing_check_later(name, change):
    """A check fails on the last rank in a later step, whose plan has changed on all ranks."""
    optimizer, params = on_two_meshes(OPTIMIZERS[name])
    optimizer.step()
    if change == "loaded":
        optimizer.load_state_dict(optimizer.state_dict())
    else:
        params["columns.b"].grad = None
    if is_last():
        optimizer.param_groups[0]["lr"] = -1.0
    text, at, _ = failure(optimizer, params)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    return text, at, True


@by_day("loaded-muon", "gradient-soap")
@pytest.mark.parametrize("name", ["adamw", "muon", "soap"])
@pytest.mark.parametrize("change", ["loaded", "gradient"])
def test_a_check_that_fails_on_one_rank_in_a_step_that_compares_is_an_error_on_all(change, name, four):
    answers = four.run(with_a_failing_check_later, name, change, limit=DEADLINE)
    check(answers, named="rank 3 failed before this step", of_last="-1.0")


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


def in_sharded_replicas(differs):
    """Outer optimizers of two replicas, each sharded over two ranks; the last rank has another rate or a fault."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
    param = torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh["shard"], [Shard(0)]))
    param.grad = torch.ones_like(param)
    tx = gradtx.outer(gradtx.sgd(0.1), gradtx.sgd(0.7), 4, process_group=mesh["replica"])
    optimizer = gradtx.as_optimizer(tx, [("w", param)])
    if is_last():
        optimizer.param_groups[0]["lr"] = {"rate": 0.2, "check": -1.0}[differs]
    answer = failure(optimizer, {"w": param})
    optimizer.param_groups[0]["lr"] = 0.1
    for _ in range(5):
        optimizer.step()
    return answer


@pytest.mark.parametrize("differs", ["rate", "check"])
def test_a_shard_of_one_replica_that_disagrees_at_the_first_step_is_an_error_on_all(differs, four):
    of_last = "-1.0" if differs == "check" else None
    check(four.run(in_sharded_replicas, differs, limit=DEADLINE), of_last=of_last)


def at_other_steps():
    """Outer optimizers of two replicas, each sharded over two ranks; the last one synchronizes more often."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
    param = torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh["shard"], [Shard(0)]))
    param.grad = torch.ones_like(param)
    every = 4 if mesh.get_coordinate()[0] == 0 else 2
    tx = gradtx.outer(gradtx.sgd(0.1), gradtx.sgd(0.7), every, process_group=mesh["replica"])
    optimizer = gradtx.as_optimizer(tx, [("w", param)])
    for _ in range(every - 1):
        optimizer.step()
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    return str(caught.value), time.monotonic(), True


def test_outer_optimizers_of_sharded_replicas_that_disagree_raise_on_all_ranks(four):
    texts, times, _ = zip(*four.run(at_other_steps, limit=DEADLINE), strict=True)
    assert max(times) - min(times) < 1
    assert len(set(texts)) == 1, texts
    assert "at step 4, every=4" in texts[0]
    assert "at step 2, every=2" in texts[0]


# Failures in a step.


def failing(where):
    """A rule that owners run, and that fails on leaves of one mesh on the ranks of the last row."""

    @gradtx.per_tensor(whole=True, dims=(2, 2))
    def fail():
        def update(update, state, param, ctx):
            of_where = {"columns": SHAPES["columns.w"], "grid": SHAPES["grid.w"]}[where]
            if tuple(update.shape) == of_where and not update.is_meta and Failing.now:
                raise torch.linalg.LinAlgError("not today")
            return update, state

        return update

    return fail()


class Failing:
    """Whether rules of this process fail."""

    now = False


def with_a_failing_rule(where, inner, again):
    tx = gradtx.partition(
        {"matrices": gradtx.chain(failing(where), OPTIMIZERS[inner]), "rest": FALLBACK},
        {"matrices": "*.w", "rest": "*"},
    )
    optimizer, params = on_two_meshes(tx)
    for _ in range(again):
        optimizer.step()
    before = [param.to_local().clone() for param in params.values()], saved_slots(optimizer)
    Failing.now = where == "grid" or distributed.get_rank() % 2 == 1
    with pytest.raises((RuntimeError, torch.linalg.LinAlgError)) as caught:
        optimizer.step()
    at = time.monotonic()
    Failing.now = False
    distributed.barrier()
    after = [param.to_local().clone() for param in params.values()], saved_slots(optimizer)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    optimizer.step()
    return str(caught.value), at, True


def saved_slots(optimizer):
    return [{key: local(value).clone() for key, value in state.items()} for state in optimizer.state.values()]


@pytest.mark.parametrize("again", [0, 2])
@pytest.mark.parametrize("inner", ["muon", "soap"])
@pytest.mark.parametrize("where", ["columns", "grid"])
def test_a_rule_that_fails_at_an_owner_is_an_error_on_all_ranks_and_nothing_has_changed(where, inner, again, four):
    answers = four.run(with_a_failing_rule, where, inner, again, limit=DEADLINE)
    texts, times, _ = zip(*answers, strict=True)
    assert max(times) - min(times) < 1
    assert 1 <= texts.count("not today") < 4
    for text in texts:
        rank = texts.index("not today")
        assert text == "not today" or "failed in this step; see the error raised on that rank" in text
        if text != "not today":
            assert texts[int(text.split()[1])] == "not today", (texts, rank)


# A peer that dies: a message does not arrive.

LOSING = {
    **{name: OPTIMIZERS[name] for name in ("lamb", "muon", "soap")},
    "clip and muon": gradtx.chain(gradtx.clip_by_global_norm(0.1), OPTIMIZERS["muon"]),
    "muon and soap": gradtx.partition(
        {"muon": gradtx.muon(lr=0.1), "soap": gradtx.soap(lr=0.1), "rest": FALLBACK},
        {"muon": "grid.w", "soap": "columns.*", "rest": "*"},
    ),
    "adafactor": gradtx.adafactor(lr=0.1, relative_step=False),
    "accumulate": gradtx.accumulate(OPTIMIZERS["soap"], every=2),
    "random": gradtx.chain(
        gradtx.clip_by_global_norm(0.1), gradtx.add_noise(0.1, 0.5, seed=0), gradtx.sgd(0.1, momentum=0.9)
    ),
}
MESSAGES = [(distributed, name) for name in ("all_reduce", "all_to_all_single", "all_gather_into_tensor")]
MESSAGES += [(DTensor, "full_tensor"), (DTensor, "redistribute")]


class LostError(RuntimeError):
    pass


class Lost:
    """Raises an error in place of one of the messages of a block, on all ranks alike."""

    def __init__(self, which):
        self.count = 0
        self._which = which
        self._patches = [
            mock.patch.object(owner, name, self._counted(getattr(owner, name))) for owner, name in MESSAGES
        ]

    def _counted(self, send):
        def counted(*args, **options):
            self.count += 1
            if self.count - 1 == self._which:
                raise LostError("Connection closed by peer")
            return send(*args, **options)

        return counted

    def __enter__(self):
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *error):
        for patch in self._patches:
            patch.stop()


def replicated(tx, **options):
    generator = torch.Generator().manual_seed(0)
    params = {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}
    for param in params.values():
        param.grad = param.detach().clone()
    group = distributed.group.WORLD
    return gradtx.as_optimizer(tx, list(params.items()), process_group=group, **options), params


def everything(optimizer, params):
    return [local(param).detach().clone() for param in params.values()], saved_slots(optimizer)


def messages_are_lost(name, kind):
    """Steps each of whose messages is lost once, and the same steps without a loss."""
    results = []
    for loses in (True, False):
        make, _, compiled = kind.partition(", ")
        make = {"two meshes": on_two_meshes, "replicas": replicated}[make]
        optimizer, params = make(LOSING[name], compile=bool(compiled))
        optimizer.step()
        for _ in range(3):
            which, lost = 0, loses
            while lost:
                before = everything(optimizer, params)
                with Lost(which):
                    try:
                        optimizer.step()
                        lost = False
                    except LostError:
                        torch.testing.assert_close(everything(optimizer, params), before, rtol=0, atol=0)
                which += 1
            assert not loses or which > 1
            if not loses:
                optimizer.step()
        results.append(everything(optimizer, params))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    return True


KINDS = [(name, "two meshes") for name in LOSING]
KINDS += [(name, "replicas") for name in ("muon", "soap", "clip and muon", "muon and soap", "accumulate")]
KINDS += [(name, "two meshes, compiled") for name in ("lamb", "clip and muon", "muon and soap")]
KINDS += [("muon", "replicas, compiled")]


@by_day("muon-*", "lamb-*", "random-*", "muon and soap-two meshes", "adafactor-*")
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_nothing_is_written_before_the_last_message_and_a_repeated_step_is_taken_once(name, kind, four):
    assert all(four.run(messages_are_lost, name, kind, limit=DEADLINE))


def with_a_peer_that_dies():
    """Rank 1 dies while the results of matrices are under way; the other one sees it, and has written nothing."""
    optimizer, params = replicated(OPTIMIZERS["muon"])
    optimizer.step()
    before = everything(optimizer, params)
    if distributed.get_rank() == 1:
        mock.patch.object(Exchange, "_from_owners", side_effect=lambda *args: os._exit(0)).start()
    with pytest.raises(RuntimeError):
        optimizer.step()
    torch.testing.assert_close(everything(optimizer, params), before, rtol=0, atol=0)
    return "saw it"


def test_a_rank_whose_peer_dies_raises_and_has_written_nothing():
    assert World(2).survivors(with_a_peer_that_dies, limit=DEADLINE) == {0: "saw it"}
