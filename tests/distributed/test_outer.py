"""Outer optimizers over processes: the loop of all ranks, and no message but those of the rule."""

import time

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gradtx
from gradtx import TopK, outer
from tests.combinators.test_outer import NESTEROV, OPTIONS, OUTERS, START, gradients, loop
from tests.conformance import assert_close, assert_same
from tests.distributed.problems import engine, whole
from tests.distributed.traffic import Traffic
from tests.tiers import by_day

EVERY, STEPS = 6, 18
DIGEST = 16  # bytes of the message by which ranks compare what they are about to send
ADAMW = gradtx.adamw(0.1)


def of_all_ranks(option="plain", inner=ADAMW, tx=NESTEROV, group=None, every=EVERY):
    group = distributed.group.WORLD if group is None else group
    return outer(inner, tx, every, **OPTIONS[option], process_group=group)


def adapted(tx, start=START, **options):
    params = {name: torch.nn.Parameter(p.clone()) for name, p in start.items()}
    return gradtx.as_optimizer(tx, list(params.items()), **options), params


def advance(optimizer, params, first=1, last=STEPS, rank=None, without=None):
    """Step along the gradients of this rank; the bytes of the messages of each step."""
    rank = distributed.get_rank() if rank is None else rank
    traffic = {}
    for step in range(first, last + 1):
        for name, g in gradients(step, params, without, rank).items():
            params[name].grad = g
        with Traffic() as messages:
            optimizer.step()
        if messages.count:
            assert messages.count == len(messages.reduced + messages.gathered)
            traffic[step] = messages.reduced + messages.gathered
    return traffic


def results(optimizer, params):
    local = {name: p.detach().clone() for name, p in params.items()}
    with optimizer.eval_params():
        return [local, {name: p.detach().clone() for name, p in params.items()}]


def train(option, way, without=None):
    """The weights and global weights of a rank, and the messages of its steps."""
    tx = of_all_ranks(option, tx=OUTERS["dampened" if without else "adamw"][0])
    without = without if distributed.get_rank() == distributed.get_world_size() - 1 else None
    if way == "pure":
        params, state, traffic = START, tx.init(START), {}
        for step in range(1, STEPS + 1):
            with Traffic() as messages:
                grads = gradients(step, params, without, distributed.get_rank())
                updates, state = tx.update(grads, state, params)
            params = gradtx.apply_updates(params, updates)
            traffic.update({step: messages.reduced + messages.gathered} if messages.count else {})
        entries = state["outer"].values() if "fragments" in OPTIONS[option] else [state["outer"]]
        errors = {name: error for entry in entries for name, error in entry.get("error", {}).items()}
        return [params, tx.eval_params(state, params)], errors, traffic
    with engine("compiled" if way == "compiled" else "eager") as compile:
        optimizer, params = adapted(tx, compile=compile)
        traffic = advance(optimizer, params, without=without)
    states = {name: optimizer.state[p] for name, p in params.items()}
    errors = {name: state["error"] for name, state in states.items() if "error" in state}
    return results(optimizer, params), errors, traffic


def entries_of(sizes, compress):
    """The number of entries that a rank sends of leaves of these sizes."""
    if compress is None:
        return sum(sizes)
    chunks = [min(compress.chunk, size - i) for size in sizes for i in range(0, size, compress.chunk)]
    return sum(min(compress.k, chunk) for chunk in chunks)


def expected_traffic(option, ranks):
    """Two messages per due fragment: a digest of what the rank sends, then its entries and one number of each rank.

    With compression, a rank sends its own number alone, and an index of two bytes beside each entry.
    """
    options = OPTIONS[option]
    sizes = [[12, 2], [4]] if "fragments" in options else [[12, 4, 2]]
    gap = EVERY // len(sizes)
    messages = []
    for of_fragment in sizes:
        entries = entries_of(of_fragment, options.get("compress"))
        messages.append(8 * (entries + 1) + 2 * entries if "compress" in options else 8 * (entries + ranks))
    sent = range(gap - options.get("delay", 0), STEPS + 1, gap)
    return {step: [DIGEST, messages[i % len(sizes)]] for i, step in enumerate(sent)}


CASES = [("plain", "adapted"), ("all", "adapted"), ("fragments", "compiled"), ("delay", "pure"), ("all", "pure")]
CASES += [("compress", "adapted"), ("compress", "compiled"), ("all compressed", "adapted"), ("all compressed", "pure")]


@by_day(
    *("plain-adapted-None", "all-adapted-c", "fragments-compiled-None", "delay-pure-c", "all-pure-None"),
    *("compress-adapted-c", "all compressed-adapted-None", "all compressed-pure-None"),
)
@pytest.mark.parametrize("without", [None, "c"])
@pytest.mark.parametrize(("option", "way"), CASES)
def test_two_ranks_are_the_loop_and_send_one_message_with_entries_per_due_fragment(option, way, without, two):
    check(two, option, way, without)


@by_day("all-adapted", "all compressed-adapted")
@pytest.mark.parametrize(("option", "way"), [("plain", "compiled"), ("all", "adapted"), ("all compressed", "adapted")])
def test_four_ranks_are_the_loop_and_send_one_message_with_entries_per_due_fragment(option, way, four):
    check(four, option, way)


def check(world, option, way, without=None):
    make_outer = OUTERS["dampened" if without else "adamw"][1]
    errors = {}
    options = {**OPTIONS[option], "steps": STEPS, "without": without, "ranks": world.size, "errors": errors}
    *weights, anchor = loop(make_outer, **options)
    for rank, ((local, common), kept, traffic) in enumerate(world.run(train, option, way, without)):
        assert_close([local, common], [weights[rank], anchor], 1e-10)
        assert_close(kept, {name: errors[rank, name] for name in kept}, 1e-10)
        assert bool(kept) == ("compress" in OPTIONS[option])
        assert traffic == expected_traffic(option, world.size)


def one_step_each():
    """Plain data parallel: the mean of the gradients, in SGD."""
    tx = of_all_ranks(inner=gradtx.sgd(0.1), tx=gradtx.scale_by_learning_rate(1.0), every=1)
    optimizer, params = adapted(tx)
    advance(optimizer, params, last=4)
    return results(optimizer, params)


def test_synchronizing_every_step_of_sgd_is_data_parallel(two):
    params = START
    for step in range(1, 5):
        grads = [gradients(step, params, rank=rank) for rank in (0, 1)]
        params = {name: p - 0.1 * (grads[0][name] + grads[1][name]) / 2 for name, p in params.items()}
    for found in two.run(one_step_each):
        assert_close(found, [params, params], 1e-12)


def resumed(option):
    optimizer, params = adapted(of_all_ranks(option))
    advance(optimizer, params, last=7)
    saved = optimizer.state_dict()
    again, values = adapted(of_all_ranks(option), params)
    again.load_state_dict(saved)
    return results(*resume(optimizer, params)), results(*resume(again, values))


def resume(optimizer, params):
    advance(optimizer, params, 8, 17)
    return optimizer, params


@pytest.mark.parametrize("option", ["all", "all compressed"])
def test_ranks_resume_in_the_middle_of_an_interval(option, two):
    ranks = two.run(resumed, option)
    for through, again in ranks:
        assert_close(again, through, 1e-14)
    assert_close(ranks[0][0][1], ranks[1][0][1], 0.0)  # global weights are equal to the last bit


def sharded(option):
    """Two replicas of two shards each."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
    group, replica = mesh["replica"], mesh.get_coordinate()[0]

    def place(tensor):
        return distribute_tensor(tensor, mesh["shard"], [Shard(0)])

    clip = gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.sgd(0.7, momentum=0.9))
    tx, leaves = of_all_ranks(option, tx=clip, group=group), dict(START)
    if option == "compress":
        # The chunks of a leaf are those of its shards, but the shards of two entries have one each.
        tx = outer(ADAMW, clip, EVERY, delay=2, process_group=group, compress=TopK(1, 2))
        del leaves["c"]
    found = []
    for start, options in ((leaves, {}), ({name: place(p) for name, p in leaves.items()}, {"place": place})):
        optimizer, params = adapted(tx, start)
        for step in range(1, 14):
            place_gradient = options.get("place", torch.clone)
            values = {name: whole(p).detach() for name, p in params.items()}
            for name, g in gradients(step, values, rank=replica).items():
                params[name].grad = place_gradient(g)
            optimizer.step()
        found.append([{name: whole(p) for name, p in tree.items()} for tree in results(optimizer, params)])
        if option == "compress":
            errors = {name: optimizer.state[p]["error"] for name, p in params.items()}
            assert all(type(error) is type(params[name].data) for name, error in errors.items())
            found[-1].append({name: whole(error) for name, error in errors.items()})
    return found


@pytest.mark.parametrize("option", ["plain", "all", "compress"])
def test_shards_take_the_steps_of_whole_leaves(option, four):
    for unsharded, found in four.run(sharded, option):
        assert_close(found, unsharded, 1e-12)


def other_weights():
    rank = distributed.get_rank()
    start = {name: p + 1e-4 * rank for name, p in START.items()}
    optimizer, params = adapted(of_all_ranks())
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(start[name])
    with pytest.raises(ValueError, match="outer: the ranks' global weights differ, sums of their magnitudes: "):
        advance(optimizer, params)
    return {name: p.detach() for name, p in params.items()}


def test_ranks_with_different_global_weights_are_refused_at_the_first_message(two):
    two.run(other_weights)


def in_bfloat16(option):
    start = {name: p.bfloat16() for name, p in START.items()}
    optimizer, params = adapted(of_all_ranks(option), start)
    for p in params.values():
        p.grad = torch.ones_like(p)
    with Traffic() as traffic:
        for _ in range(EVERY):
            optimizer.step()
    return traffic.reduced + traffic.gathered


def test_messages_are_in_float32_at_least(two):
    assert two.run(in_bfloat16, "plain") == [[DIGEST, 4 * (18 + 2)]] * 2
    assert two.run(in_bfloat16, "compress") == [[DIGEST, 4 * (10 + 1) + 2 * 10]] * 2


def of_a_model():
    """The bytes of the messages about a layer of 256 outputs and inputs, and its bias, in float32."""
    rank = distributed.get_rank()
    sent = []
    for compress in (None, TopK(), TopK(chunk=2**15 + 1), TopK(chunk=2**15)):
        torch.manual_seed(0)
        layer = torch.nn.Linear(256, 256)
        tx = outer(ADAMW, NESTEROV, 1, process_group=distributed.group.WORLD, compress=compress)
        optimizer = gradtx.as_optimizer(tx, list(layer.named_parameters()))
        layer(torch.full((1, 256), rank + 1.0)).square().sum().backward()
        with Traffic() as messages:
            optimizer.step()
        _, message = messages.reduced + messages.gathered
        sent.append(message)
    weights = [p.detach().clone() for p in layer.parameters()]
    return sent, weights


def test_compression_sends_a_fortieth_of_the_bytes_and_ranks_agree_to_the_last_bit(two):
    (sent, weights), (also_sent, others) = two.run(of_a_model)
    assert sent == also_sent
    dense, usual, wide, narrow = sent
    assert dense == 4 * (256 * 256 + 256 + 2)
    assert usual == (16 * 64 + 64) * 6 + 4  # 16 chunks of the matrix, one of the bias, and a number: 2.5%
    assert wide == (2 * 64 + 64) * 8 + 4  # such an index takes four bytes
    assert narrow == (2 * 64 + 64) * 6 + 4
    assert_same(weights, others)


def in_two_groups():
    params = {name: torch.nn.Parameter(p.clone()) for name, p in START.items()}
    named = list(params.items())
    groups = [{"params": named[:1]}, {"params": named[1:], "mix": 0.0}]
    optimizer = gradtx.as_optimizer(of_all_ranks(tx=OUTERS["adamw"][0]), groups)
    traffic = advance(optimizer, params)
    return results(optimizer, params), traffic


def test_parameter_groups_share_a_message(two):
    *weights, anchor = loop(OUTERS["adamw"][1], steps=STEPS, ranks=2)
    for rank, (found, traffic) in enumerate(two.run(in_two_groups)):
        assert_close(found, [weights[rank], anchor], 1e-10)
        assert traffic == expected_traffic("plain", 2)


def refused():
    group, tx = distributed.group.WORLD, of_all_ranks()
    with pytest.raises(
        TypeError, match="accumulate: outer exchanges tensors with other ranks, in steps that accumulate"
    ):
        gradtx.accumulate(tx, 2)
    with pytest.raises(
        TypeError, match="outer: outer exchanges tensors with other ranks, in steps that outer may discard"
    ):
        outer(ADAMW, tx, 2)
    with pytest.raises(RuntimeError, match="cannot be combined with the optimizer's process_group"):
        advance(*adapted(tx, process_group=group), last=1)
    with pytest.raises(ValueError, match="capturable: outer has the host wait"):
        adapted(tx, capturable=True)
    optimizer, _ = adapted(tx)
    with pytest.raises(ValueError, match="release_gradients: outer needs the gradients of all parameters"):
        optimizer.release_gradients()
    with pytest.raises(RuntimeError, match=r"outer: process_group cannot be combined with torch\.func"):
        torch.vmap(lambda x: tx.init({"w": x}))(torch.ones(2, 3))
    optimizer, params = adapted(tx)
    scaler = torch.amp.GradScaler("cpu")
    for p in params.values():
        p.grad = torch.ones_like(p)
    scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match="cannot be combined with a GradScaler, which skips steps of single ranks"):
        scaler.step(optimizer)


def test_what_would_let_ranks_differ_is_refused_by_name(one):
    one.run(refused)


def pure_steps(tx, params, loads):
    state = tx.init(params)
    for _ in range(STEPS):
        updates, state = tx.update({name: torch.ones_like(p) for name, p in params.items()}, state, params)
        params = gradtx.apply_updates(params, updates)


def adapted_steps(tx, start, loads):
    optimizer, params = adapted(tx, start)
    for _ in range(STEPS):
        for p in params.values():
            p.grad = torch.ones_like(p)
        optimizer.step()
        for state in optimizer.state.values() if loads else ():
            state["step"] = torch.tensor(11.0)  # of another checkpoint


def disagreeing(kind, way):
    """The error of a rank, the last of which disagrees, and when it was raised."""
    last = distributed.get_rank() == distributed.get_world_size() - 1
    start, tx = dict(START), of_all_ranks("fragments" if kind == "fragments" else "plain")
    if last and kind == "every":
        tx = of_all_ranks(every=3)
    if last and kind == "delay":
        tx = of_all_ranks("delay")
    if last and kind == "parameters":
        start.pop("c")
    if last and kind == "shape":
        start["c"] = start["c"][:1]
    if last and kind == "fragments":
        tx = of_all_ranks()
    if kind == "compress":
        compress = TopK(3, 5) if last else TopK(2, 5)
        tx = outer(ADAMW, NESTEROV, EVERY, process_group=distributed.group.WORLD, compress=compress)
    if kind == "no compression" and last:
        tx = of_all_ranks("compress")
    run = pure_steps if way == "pure" else adapted_steps
    with pytest.raises(RuntimeError) as caught:
        run(tx, start, last and kind == "steps")
    at = time.monotonic()
    distributed.barrier()
    return str(caught.value), at


DISAGREEMENTS = {
    "every": ("every=6", "every=3"),
    "delay": ("delay=0", "delay="),
    "parameters": ("synchronizes leaf 'c'", "rank 1 does not"),
    "shape": ("leaf 'c' of shape", "rank 1 synchronizes leaf 'c'"),
    "fragments": ("at step",),
    "compress": ("compress=TopK(k=2, ", "compress=TopK(k=3, "),
    "no compression": ("rank 1 synchronizes at step 6, every=6 with delay=0 and compress=TopK(k=2, ",),
    "steps": ("at step 6", "at step 12"),
}
CASES_OF_DISAGREEMENTS = [(kind, "adapted") for kind in DISAGREEMENTS]
CASES_OF_DISAGREEMENTS += [(kind, "pure") for kind in ("every", "parameters", "fragments")]


@by_day("every-adapted", "parameters-*", "steps-adapted", "fragments-pure", "compress-adapted")
@pytest.mark.parametrize(("kind", "way"), CASES_OF_DISAGREEMENTS)
def test_ranks_that_would_exchange_other_tensors_or_at_other_steps_all_raise(kind, way, two):
    (first, at), (second, at_second) = two.run(disagreeing, kind, way, limit=20)
    assert first == second
    assert first.startswith("outer: ranks would synchronize differently: rank 0 synchronizes")
    assert abs(at - at_second) < 1
    for text in DISAGREEMENTS[kind]:
        assert text in first


def without_any_gradient(missing, passes_zeros):
    """The weights of a rank, the last of which has no data in some steps, and its messages."""
    optimizer, params = adapted(of_all_ranks("fragments"))
    last = distributed.get_rank() == distributed.get_world_size() - 1
    traffic = {}
    for step in range(1, STEPS + 1):
        for name, g in gradients(step, params, rank=distributed.get_rank()).items():
            params[name].grad = g
            if last and step in missing:
                params[name].grad = torch.zeros_like(g) if passes_zeros else None
        lacking = [name for name, p in params.items() if p.grad is None]
        with Traffic() as messages:
            optimizer.step()
        traffic[step] = messages.reduced
        assert lacking == [name for name, p in params.items() if p.grad is None]
    return results(optimizer, params), traffic


@pytest.mark.parametrize("missing", [(1,), (3, 6), (2, 5, 12)])
def test_a_step_of_a_rank_without_any_gradient_counts_as_one_with_gradients_of_zeros(missing, two):
    expected = two.run(without_any_gradient, missing, True, limit=20)
    answers = two.run(without_any_gradient, missing, False, limit=20)
    for (found, traffic), (weights, messages) in zip(answers, expected, strict=True):
        assert_close(found, weights, 0.0)
        assert traffic == messages
