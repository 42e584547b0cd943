"""Programs on shards: their terms of sums over leaves, or over one leaf, are those of whole tensors."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import gradtx
from tests.distributed.problems import assert_close, whole
from tests.distributed.traffic import Traffic

# The last of four ranks has nothing of `matrix`, the last two nothing of `row`.
SHAPES = {"matrix": (5, 3), "row": (1, 4), "conv": (6, 2, 2, 2), "vector": (7,)}
REDUCES = "it is sharded, and a reduction over a shard differs from one over the whole tensor"
PARTS_OF_ROWS = "it is sharded, and a rank has only a part of its rows"


@gradtx.per_tensor(elementwise=True)
def divide_by_rms():
    """The number of leaves is a sum of terms that no rank may repeat."""

    def update(update, state, param, ctx):
        total = yield {"square": update.square().sum(), "leaves": torch.ones((), dtype=torch.float64)}
        yield update * (total["leaves"] / total["square"]).sqrt(), state

    return update


@gradtx.per_tensor
def divide_rows():
    """Norms of rows, for leaves that have rows, and a size of the whole leaf."""

    def update(update, state, param, ctx):
        if update.ndim < 2:
            return update, state
        inner = tuple(range(1, update.ndim))
        return update / (1 + update.square().sum(dim=inner, keepdim=True)) * update.numel(), state

    return update


@gradtx.per_tensor
def divide_columns():
    return lambda update, state, param, ctx: (update / (1 + update.square().sum(dim=0, keepdim=True)), state)


@gradtx.per_tensor
def weigh_rows():
    """A constant with the size of the whole leaf, which no shard has."""

    def update(update, state, param, ctx):
        weights = torch.arange(1, len(update) + 1, device=update.device)
        return update * weights.view(-1, *[1] * (update.ndim - 1)), state

    return update


CLIP = gradtx.clip_by_global_norm(0.1)
SGD = gradtx.sgd(lr=0.1, momentum=0.5)
CHAINS = {
    "clip": gradtx.chain(CLIP, gradtx.adamw(lr=0.1)),
    "stale": gradtx.chain(gradtx.clip_by_global_norm(0.1, stale=True), SGD),
    "constants": gradtx.chain(divide_by_rms(), SGD),
    "two sums": gradtx.chain(CLIP, gradtx.lamb(lr=0.1)),
    "prodigy": gradtx.prodigy(lr=1.0, d0=0.1),
    "adamp": gradtx.adamp(lr=0.1, weight_decay=0.1, delta=2.0),
    "adamp with few projections": gradtx.adamp(lr=0.1, weight_decay=0.1),
    "rows": gradtx.chain(divide_rows(), SGD),
    "columns": gradtx.chain(divide_columns(), SGD),
    "sizes": gradtx.chain(weigh_rows(), SGD),
    "owners": gradtx.chain(
        CLIP,
        gradtx.partition({"matrix": gradtx.muon(lr=0.1), "other": SGD}, {"matrix": ("matrix", "row"), "other": "*"}),
    ),
    "skip": gradtx.skip_nonfinite(gradtx.chain(CLIP, SGD)),
}


def trained(name, place, compile=False):
    """The weights, what `explain` says, and the messages of the last step."""
    generator = torch.Generator().manual_seed(0)

    def noise(shape):
        return place(torch.randn(shape, generator=generator, dtype=torch.float64))

    params = {leaf: torch.nn.Parameter(noise(shape)) for leaf, shape in SHAPES.items()}
    optimizer = gradtx.as_optimizer(CHAINS[name], list(params.items()), compile=compile)
    for _ in range(4):
        for leaf, param in params.items():
            param.grad = noise(SHAPES[leaf])
        with Traffic() as traffic:
            optimizer.step()
    return [whole(param) for param in params.values()], list(optimizer.explain()), traffic.count


def along(dim, copies=1):
    """Place tensors on all ranks, divided along a dimension if they have it, with several copies of each shard."""
    size = distributed.get_world_size()
    mesh = init_device_mesh("cpu", (copies, size // copies))

    def place(tensor):
        return distribute_tensor(tensor, mesh, [Replicate(), Shard(min(dim, tensor.ndim - 1))])

    return place


def reasons_on_shards(name, dim, copies=1):
    """Compare with whole tensors; return the reasons of leaves that no program ran, and the messages of a step."""
    expected, _, _ = trained(name, torch.clone)
    weights, ways, messages = trained(name, along(dim, copies))
    assert_close(weights, expected)
    for item in ways:
        assert item.way == ("alone" if item.reason else "lists")
    return {item.name: item.reason for item in ways if item.reason}, messages


@pytest.mark.parametrize("name", [name for name in CHAINS if name not in ("columns", "sizes")])
def test_programs_run_shards_of_whole_rows_and_equal_whole_tensors(name, two):
    for reasons, _ in two.run(reasons_on_shards, name, 0):
        assert reasons == {}


@pytest.mark.parametrize(("name", "count"), [("clip", 1), ("two sums", 2), ("adamp", 1), ("prodigy", 2), ("owners", 3)])
def test_a_barrier_sends_one_message_on_copies_of_empty_and_uneven_shards(name, count, four):
    for reasons, messages in four.run(reasons_on_shards, name, 0, 2):
        assert reasons == {}
        assert messages == count


@pytest.mark.parametrize("name", ["clip", "two sums"])
def test_sums_over_entries_take_shards_of_any_dimension(name, two):
    for reasons, _ in two.run(reasons_on_shards, name, 1):
        assert reasons == {}


@pytest.mark.parametrize("name", ["adamp", "rows"])
def test_leaves_with_parts_of_rows_step_alone_and_explain_says_so(name, two):
    for reasons, _ in two.run(reasons_on_shards, name, 1):
        assert reasons == dict.fromkeys(("matrix", "row", "conv"), PARTS_OF_ROWS)


@pytest.mark.parametrize("name", ["columns", "sizes"])
def test_leaves_step_alone_if_a_value_depends_on_other_rows_or_has_their_number(name, two):
    for reasons, _ in two.run(reasons_on_shards, name, 0):
        assert reasons == dict.fromkeys(SHAPES, REDUCES)


def ways_with_kernels(name):
    """The ways of leaves where kernels would run, were it not for their shards."""
    return [item.way for item in trained(name, along(0), compile=True)[1]]


@pytest.mark.parametrize("name", ["clip", "stale", "two sums"])
def test_kernels_leave_sums_over_shards_to_lists(name, two):
    for ways in two.run(ways_with_kernels, name):
        assert ways == ["lists"] * len(SHAPES)
