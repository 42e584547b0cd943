"""Matrix rules on divided parameters: each matrix is computed once, by its owner, as one process computes it."""

import sys
from unittest import mock

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import gradtx
from gradtx.base.dtensor import from_local_like
from gradtx.distributed.layouts import pieces_of
from gradtx.execution import owners
from gradtx.maths import polynomials
from tests.distributed.problems import whole
from tests.distributed.traffic import Traffic
from tests.tiers import by_day

STEPS = 4
# Neither 2 nor 4 divides these; the last ranks have nothing of `thin` and `row`.
SHAPES = {
    "tall": (37, 11),
    "wide": (9, 30),
    "square": (13, 13),
    "thin": (2, 7),
    "row": (1, 5),
    "bias": (37,),
    "norm": (3,),
}
MATRICES = {name: shape for name, shape in SHAPES.items() if len(shape) == 2}

ADAMW = gradtx.adamw(lr=1e-2)
SOAP = {"lr": 0.02, "precondition_frequency": 2}
STATEFUL = {
    "soap": gradtx.soap(**SOAP),
    "soap with a decay of weights": gradtx.chain(gradtx.clip_by_value(0.5), gradtx.soap(weight_decay=0.1, **SOAP)),
    "soap in turns": gradtx.soap(weight_decay=0.1, stagger=True, **SOAP),
    "kl_soap": gradtx.kl_soap(**SOAP),
    "kl_shampoo": gradtx.kl_shampoo(lr=1e-3, precondition_frequency=2),
    "shampoo": gradtx.shampoo(lr=0.02, momentum=0.5, weight_decay=0.1, preconditioning_compute_steps=2),
    "scalable_shampoo": gradtx.scalable_shampoo(
        lr=0.02, block_size=8, start_preconditioning_step=2, preconditioning_compute_steps=2, weight_decay=0.0
    ),
    "rotated chain": gradtx.chain(
        gradtx.trace(0.9), gradtx.rotated(gradtx.chain(gradtx.scale_by_adam(), gradtx.trace(0.5))), gradtx.scale(-0.02)
    ),
    "accumulate": gradtx.accumulate(gradtx.soap(**SOAP), every=2),
    "skip": gradtx.skip_nonfinite(gradtx.shampoo(lr=0.02)),
    "normuon": gradtx.normuon(lr=0.02, fallback=ADAMW),
    "normuon in accumulate": gradtx.accumulate(gradtx.normuon(lr=0.02, fallback=ADAMW), every=2),
    "adamuon": gradtx.adamuon(lr=0.02, fallback=ADAMW),
    "namo": gradtx.namo(lr=0.02, correct_bias=True, fallback=ADAMW),
    "soap_muon": gradtx.soap_muon(lr=0.02, fallback=ADAMW),
    "muown": gradtx.muown(lr=0.02, weight_decay=0.1, fallback=ADAMW),
    "dion": gradtx.dion(lr=0.02, rank=0.5, fallback=ADAMW),
    "mano": gradtx.mano(lr=0.02, fallback=ADAMW),
    "namo_d": gradtx.namo_d(lr=0.02, fallback=ADAMW),
    "adago": gradtx.adago(lr=0.02, fallback=ADAMW),
    "aro": gradtx.aro(lr=0.02, fallback=ADAMW),
    "asgo": gradtx.asgo(lr=0.02, fallback=ADAMW),
    "cosmos": gradtx.cosmos(lr=0.02, rank=2, fallback=ADAMW),
    "mousse": gradtx.mousse(lr=0.02, precondition_frequency=2, fallback=ADAMW),
    "dion2": gradtx.dion2(lr=0.02, beta2=0.9, fallback=ADAMW),
    "psgd_kron": gradtx.psgd_kron(lr=0.02, weight_decay=0.1),
    "psgd_kron with probes": gradtx.psgd_kron(lr=0.02, probes="random", precondition_frequency=2),
    "psgd_pro": gradtx.psgd_pro(lr=0.02, max_update_rms=1.0),
    "muon in blocks": gradtx.partition(
        {"cut": gradtx.blocks(gradtx.muon(lr=0.02, weight_decay=0.1), heads=3, dim=-1), "rest": ADAMW},
        {"cut": "wide", "rest": "*"},
    ),
    "soap in blocks": gradtx.partition(
        {"cut": gradtx.blocks(gradtx.soap(**SOAP), heads=2, dim=1), "rest": ADAMW}, {"cut": "wide", "rest": "*"}
    ),
    "normuon in uneven blocks": gradtx.partition(
        {"cut": gradtx.blocks(gradtx.normuon(lr=0.02), sizes=(6, 7), heads=(2, 1)), "rest": ADAMW},
        {"cut": "square", "rest": "*"},
    ),
    "soap for matrices": gradtx.partition(
        {"matrices": gradtx.soap(**SOAP), "rest": ADAMW}, {"matrices": tuple(MATRICES), "rest": "*"}
    ),
}
CHAINS = {
    "muon": gradtx.muon(lr=0.02, fallback=ADAMW),
    "muon in full precision": gradtx.muon(lr=0.02, ns_dtype=None, nesterov=False, fallback=ADAMW),
    "polargrad": gradtx.polargrad(lr=0.02, fallback=ADAMW),
    "polargrad by eigenvalues": gradtx.polargrad(lr=0.02, method="exact", center_rows=True, fallback=ADAMW),
    "scion": gradtx.scion(lr=0.02, momentum=0.5, scale=0.7),
    "mud": gradtx.mud(lr=0.02, fallback=ADAMW),
    "sinkgd": gradtx.sinkgd(lr=0.02, momentum=0.5),
    "muon_eq": gradtx.muon_eq(lr=0.02, fallback=ADAMW),
    "muon_eq of columns": gradtx.muon_eq(lr=0.02, normalize="both", fallback=ADAMW),
    "muon and adamw": gradtx.partition(
        {"matrices": gradtx.muon(lr=0.02, adjust_lr_fn="match_rms_adamw"), "rest": ADAMW},
        {"matrices": tuple(MATRICES), "rest": "*"},
    ),
}
# Their sums over shards are added in another order than in one process.


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def undivided(tensor):
    return tensor.clone()


def placement(kind):
    """A function that divides a tensor: as FSDP2, as FSDP2 with copies, or by rows and by columns."""
    size = distributed.get_world_size()
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (size,))
        return lambda tensor: distribute_tensor(tensor.clone(), mesh, [Shard(0)])
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("outer", "inner"))
    if kind == "hsdp":
        return lambda tensor: distribute_tensor(tensor.clone(), mesh, [Replicate(), Shard(0)])
    return lambda tensor: distribute_tensor(tensor.clone(), mesh, [Shard(0), Shard(tensor.ndim - 1)])


def trained(tx, place, steps=STEPS, **options):
    """An optimizer after some steps, its parameters, and the traffic of the last step."""
    params = {name: torch.nn.Parameter(place(value)) for name, value in gradients(100).items()}
    optimizer = gradtx.as_optimizer(tx, list(params.items()), **options)
    traffic = Traffic()
    for step in range(steps):
        for name, gradient in gradients(step).items():
            params[name].grad = place(gradient)
        if step < steps - 1:
            optimizer.step()
    with traffic:
        optimizer.step()
    return optimizer, {name: whole(param) for name, param in params.items()}, traffic


def weights_and_traffic(name, kind):
    _, weights, traffic = trained(CHAINS[name], placement(kind))
    return weights, traffic.messages


@by_day("scion-rows and columns-4", "muon and adamw-hsdp-4", "muon and adamw-rows and columns-2")
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", ["fsdp", "hsdp", "rows and columns"])
@pytest.mark.parametrize("name", CHAINS)
def test_muon_sends_two_messages_and_equals_one_process_bitwise(name, kind, ranks, two, four):
    _, expected, _ = trained(CHAINS[name], undivided)
    answers = {2: two, 4: four}[ranks].run(weights_and_traffic, name, kind)
    for weights, messages in answers:
        assert messages == ["alltoall_base_", "alltoall_base_"]
        for key, weight in weights.items():
            assert torch.equal(weight, expected[key]), key


class Calls:
    """Counts the calls of functions of a module, by name."""

    def __init__(self, module, *names):
        self.count = 0
        self._patches = [mock.patch.object(module, name, self._counted(getattr(module, name))) for name in names]

    def _counted(self, function):
        def counted(*args, **kwargs):
            self.count += 1
            return function(*args, **kwargs)

        return counted

    def __enter__(self):
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *error):
        for patch in self._patches:
            patch.stop()


def work_of_a_step(kind):
    """How many matrices this rank iterates, and for how many it computes a basis."""
    with Calls(polynomials, "newton_schulz") as iterated:
        trained(CHAINS["muon"], placement(kind), steps=1)
    with Calls(sys.modules["gradtx.combinators.coordinates"], "eigenbasis", "iterated") as bases:
        trained(STATEFUL["soap for matrices"], placement(kind), steps=1)
    return iterated.count, bases.count


@by_day("hsdp")
@pytest.mark.parametrize("kind", ["fsdp", "hsdp", "rows and columns"])
def test_every_matrix_is_computed_by_one_rank(kind, four):
    iterated, bases = zip(*four.run(work_of_a_step, kind), strict=True)
    assert sum(iterated) == len(MATRICES)
    assert max(iterated) <= 2
    assert sum(bases) == 2 * len(MATRICES)


def entries_of_state(name, kind):
    optimizer, _, _ = trained(STATEFUL[name], placement(kind), steps=2)
    kept = 0
    for state in optimizer.state.values():
        kept += sum(value.numel() for value in state.values() if value.ndim and not value.is_meta)
    return kept


@by_day("soap", "shampoo")
@pytest.mark.parametrize("name", ["soap", "shampoo", "kl_soap"])
def test_the_state_is_kept_once_in_all_ranks_together(name, four):
    optimizer, _, _ = trained(STATEFUL[name], undivided, steps=1)
    of_leaves = []
    for state in optimizer.state.values():
        of_leaves.append(sum(value.numel() for value in state.values() if value.ndim))
    kept = four.run(entries_of_state, name, "hsdp")
    assert sum(kept) == sum(of_leaves)
    assert max(kept) <= 1.2 * max(of_leaves)  # the largest matrix has more than a quarter of all


def small_buckets(name):
    with mock.patch.object(owners, "BUCKET", 1000):
        _, weights, traffic = trained({**CHAINS, **STATEFUL}[name], placement("fsdp"))
    return weights, traffic.count


@pytest.mark.parametrize("name", ["muon", "soap for matrices"])
def test_messages_are_bounded_and_their_number_changes_nothing_else(name, two):
    _, expected, _ = trained({**CHAINS, **STATEFUL}[name], undivided)
    for weights, count in two.run(small_buckets, name):
        assert count > 2
        for key, weight in weights.items():
            assert torch.equal(weight, expected[key]), key


@gradtx.per_tensor(whole=True)
def fail_on_tall():
    def update(update, state, param, ctx):
        if update.shape == SHAPES["tall"] and not update.is_meta:
            raise torch.linalg.LinAlgError("not today")
        return update, state

    return update


def fails_everywhere():
    with pytest.raises(RuntimeError) as caught:
        trained(gradtx.chain(fail_on_tall(), gradtx.scale(-1.0)), placement("fsdp"), steps=1)
    distributed.barrier()  # nothing is left under way
    return str(caught.value)


def test_a_failure_at_an_owner_is_raised_on_all_ranks(four):
    messages = four.run(fails_everywhere)
    assert messages.count("not today") == 1
    assert (
        messages.count(f"rank {messages.index('not today')} failed in this step; see the error raised on that rank")
        == 3
    )


@gradtx.per_tensor(whole="shape")
def scale_by_norm_of_all():
    """Divides by the norm of all leaves, and by the number of rows of the whole leaf."""

    def update(update, state, param, ctx):
        total = yield {"square": update.square().sum()}
        yield update / total["square"].sqrt() / len(update), state

    return update


def weights_behind_owners(divide):
    tx = gradtx.chain(gradtx.scale_by_shampoo(), scale_by_norm_of_all(), gradtx.scale(-1.0))
    return trained(tx, placement("fsdp") if divide else undivided)[1]


def test_a_rule_that_reads_the_shape_behind_an_owner_may_sum_over_leaves(two):
    expected = weights_behind_owners(False)
    for weights in two.run(weights_behind_owners, True):
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name])


class TwoLayers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(6, 10)
        self.second = torch.nn.Linear(10, 7)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def tensor_parallel_and_fsdp(name):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = TwoLayers()
    parallelize_module(model, mesh["tp"], {"first": ColwiseParallel(), "second": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    optimizer = gradtx.as_optimizer({**CHAINS, **STATEFUL}[name], model.named_parameters())
    plain = TwoLayers()
    reference = gradtx.as_optimizer({**CHAINS, **STATEFUL}[name], plain.named_parameters())
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        for param, other in zip(model.parameters(), plain.parameters(), strict=True):
            other.grad = torch.randn(other.shape, generator=generator)
            param.grad = from_local_like(local_piece(other.grad, param), param)
        with Traffic() as traffic:
            optimizer.step()
        reference.step()
    for param, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(param.to_local(), local_piece(other, param))
    assert [type(placement).__name__ for placement in model.first.weight.placements] == ["_StridedShard", "Shard"]
    return traffic.messages


def local_piece(tensor, like):
    return tensor.detach()[pieces_of(like)[distributed.get_rank()].window].clone()


@by_day("soap")
@pytest.mark.parametrize("name", ["muon", "soap"])
def test_tensor_parallel_layers_under_fsdp_equal_one_process_bitwise(name, four):
    assert four.run(tensor_parallel_and_fsdp, name) == [["alltoall_base_", "alltoall_base_"]] * 4


def by_name(optimizer):
    """The saved slots, in one piece."""
    entries = optimizer.state_dict()["state"].values()
    return [{key: whole(value) for key, value in entry.items()} for entry in entries]


def assert_same_run(weights, states, expected, expected_states):
    """The same weights and saved slots, bit by bit."""
    for key, weight in weights.items():
        assert torch.equal(weight, expected[key]), key
    for state, of_one in zip(states, expected_states, strict=True):
        assert state.keys() == of_one.keys()
        for key, value in state.items():
            assert torch.equal(value, of_one[key]), key


def weights_states_and_traffic(name, kind):
    optimizer, weights, traffic = trained(STATEFUL[name], placement(kind))
    return weights, by_name(optimizer), traffic.messages


@by_day(
    "soap-hsdp-4", "soap in turns-fsdp-4", "accumulate-rows and columns-4", "skip-fsdp-2",
    "normuon in accumulate-fsdp-2", "dion2-fsdp-2", "psgd_pro-fsdp-2",
)  # fmt: skip
@pytest.mark.parametrize(("kind", "ranks"), [("fsdp", 2), ("fsdp", 4), ("hsdp", 4), ("rows and columns", 4)])
@pytest.mark.parametrize("name", STATEFUL)
def test_slots_live_with_the_owner_and_steps_equal_those_of_one_process_bitwise(name, kind, ranks, two, four):
    optimizer, expected, _ = trained(STATEFUL[name], undivided)
    answers = {2: two, 4: four}[ranks].run(weights_states_and_traffic, name, kind)
    dims = 2 if kind == "rows and columns" else 1
    sums = ["allreduce_"] * dims if name == "skip" else []  # whether a gradient is infinite
    for weights, states, messages in answers:
        assert messages == [*sums, "alltoall_base_", "alltoall_base_"]
        assert_same_run(weights, states, expected, by_name(optimizer))


# Parameters that every rank has, as under DDP.


def shared_work(name, steps):
    """Weights, saved states, the messages of the last step, and the work and the state of this rank."""
    tx = {**CHAINS, **STATEFUL}[name]
    group = distributed.group.WORLD
    with Calls(polynomials, "newton_schulz") as iterated:
        optimizer, weights, traffic = trained(tx, undivided, steps, process_group=group)
    kept = 0
    for state in optimizer.state.values():
        kept += sum(value.numel() for value in state.values() if value.ndim and not value.is_meta)
    return weights, by_name(optimizer), traffic.messages, iterated.count, kept


@by_day("muon-4", "scion-2", "normuon-2", "psgd_kron-2", "soap in blocks-2")
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["muon", "scion", "soap", "normuon", "namo", "dion", "psgd_kron", "soap in blocks"])
def test_replicas_divide_the_work_and_send_one_message_with_results(name, ranks, two, four):
    optimizer, expected, _ = trained({**CHAINS, **STATEFUL}[name], undivided)
    answers = {2: two, 4: four}[ranks].run(shared_work, name, STEPS)
    for weights, states, messages, _, _ in answers:
        assert messages == ["allreduce_", "_allgather_base_"]  # the first one of 16 bytes: do all step the same?
        assert_same_run(weights, states, expected, by_name(optimizer))


def test_replicas_orthogonalize_each_matrix_once_and_keep_slots_of_matrices_once(four):
    iterated = [count for _, _, _, count, _ in four.run(shared_work, "muon", 1)]
    assert sum(iterated) == len(MATRICES)
    assert max(iterated) <= 2
    optimizer, _, _ = trained(STATEFUL["soap"], undivided, steps=1)
    of_leaves = []
    for state in optimizer.state.values():
        of_leaves.append(sum(value.numel() for value in state.values() if value.ndim))
    kept = [entries for *_, entries in four.run(shared_work, "soap", 1)]
    assert sum(kept) == sum(of_leaves)
    assert max(kept) <= 1.2 * max(of_leaves)


# Parameters of both kinds in one optimizer, as when small layers stay whole under FSDP2.


def divided_but_for(*whole_ones):
    """A function that divides all tensors but these, which every rank has."""
    divide = placement("fsdp")
    stay = [SHAPES[name] for name in whole_ones]
    return lambda tensor: tensor.clone() if tuple(tensor.shape) in stay else divide(tensor)


def with_some_whole(name, whole_ones, compile):
    tx = {**CHAINS, **STATEFUL}[name]
    place, group = divided_but_for(*whole_ones), distributed.group.WORLD
    optimizer, weights, _ = trained(tx, place, process_group=group, compile=compile)
    return weights, by_name(optimizer)


@by_day("muon-first", "soap-first", "dion-first", "shampoo-last")
@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("name", ["muon", "scion", "soap", "shampoo", "dion", "psgd_kron", "normuon", "soap in blocks"])
def test_whole_and_divided_matrices_share_one_optimizer(name, order, two):
    """Leaves are exchanged in the order of their names: `square` and `bias` come first, `wide` and `tall` last."""
    whole_ones = {"first": ("square", "bias"), "last": ("wide", "tall", "norm")}[order]
    optimizer, expected, _ = trained({**CHAINS, **STATEFUL}[name], undivided)
    for weights, states in two.run(with_some_whole, name, whole_ones, False):
        assert_same_run(weights, states, expected, by_name(optimizer))


@by_day("muon")
@pytest.mark.parametrize("name", ["muon", "soap"])
def test_whole_and_divided_matrices_share_one_optimizer_of_kernels(name, two):
    optimizer, expected, _ = trained({**CHAINS, **STATEFUL}[name], undivided)
    for weights, states in two.run(with_some_whole, name, ("square", "bias"), True):
        torch.testing.assert_close((weights, states), (expected, by_name(optimizer)), rtol=1e-5, atol=1e-6)


def resumed_by_replicas(name):
    """The weights of training that stops, is saved, and goes on with another optimizer."""
    tx, group = STATEFUL[name], distributed.group.WORLD
    first, weights, _ = trained(tx, undivided, process_group=group)
    params = {key: torch.nn.Parameter(weight.clone()) for key, weight in weights.items()}
    second = gradtx.as_optimizer(tx, list(params.items()), process_group=group)
    second.load_state_dict(first.state_dict())
    for key, gradient in gradients(STEPS).items():
        params[key].grad = gradient
    second.step()
    kept = sum(value.is_meta for state in second.state.values() for value in state.values())
    return {key: param.detach() for key, param in params.items()}, kept


@by_day("soap", "normuon")
@pytest.mark.parametrize("name", ["soap", "normuon", "psgd_kron"])
def test_states_of_replicas_are_saved_whole_and_loaded_by_their_owners(name, two):
    _, expected, _ = trained(STATEFUL[name], undivided, STEPS + 1)
    for weights, kept_elsewhere in two.run(resumed_by_replicas, name):
        assert kept_elsewhere > 0
        for key, weight in weights.items():
            assert torch.equal(weight, expected[key]), key


def failing_replicas():
    with pytest.raises(RuntimeError) as caught:
        trained(gradtx.chain(fail_on_tall(), gradtx.scale(-1.0)), undivided, 1, process_group=distributed.group.WORLD)
    distributed.barrier()
    return str(caught.value)


def test_a_failure_of_one_replica_is_raised_on_all(two):
    messages = two.run(failing_replicas)
    assert sorted(messages)[0] == "not today"
    assert "failed in this step; see the error raised on that rank" in sorted(messages)[1]


def with_an_extra_too_many_on_one_rank():
    param = torch.nn.Parameter(torch.eye(3))
    optimizer = gradtx.as_optimizer(gradtx.muon(), [("w", param)], process_group=distributed.group.WORLD)
    param.grad = torch.ones(3, 3)
    optimizer.step()
    extras = {"value": "x"} if distributed.get_rank() == 1 else {}
    with pytest.raises((RuntimeError, TypeError)) as caught:
        optimizer.step(**extras)
    distributed.barrier()
    return str(caught.value)


def test_a_replica_whose_checks_fail_does_not_leave_the_others_waiting(two):
    first, second = two.run(with_an_extra_too_many_on_one_rank)
    assert "rank 1 failed before this step" in first
    assert "value" in second
