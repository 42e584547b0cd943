"""Ranks with other parameters of one model, as the stages of a pipeline: sums over leaves run over all of them."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gradtx
from tests.distributed.problems import assert_close, engine, whole
from tests.distributed.traffic import Traffic
from tests.thinning import thinned

SHAPES = {"embed": (4, 3), "first": (3, 5), "bias": (5,), "second": (5, 3), "head": (3, 4)}
STAGES = [("embed", "first"), ("bias", "second", "head")]
STEPS = 5

OF_BRANCHES = gradtx.chain(
    gradtx.clip_by_global_norm(0.1),
    gradtx.partition(
        {"a": gradtx.chain(gradtx.clip_by_global_norm(0.05), gradtx.sgd(lr=0.1)), "b": gradtx.prodigy(lr=1.0)},
        {"a": "embed", "b": "*"},
    ),
)

# All leaves of the first stage go in blocks, and some of the second.
IN_BLOCKS = gradtx.chain(
    gradtx.blocks(gradtx.clip_by_global_norm(0.1), ("embed", "first", "second"), batch=1),
    gradtx.blocks(gradtx.prodigy(lr=1.0), ("embed", "head"), batch=1),
)

# A chain, and the messages of a step.
CHAINS = {
    "clip and adamw": (gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.adamw(lr=0.1)), 1),
    "clip, stale": (gradtx.chain(gradtx.clip_by_global_norm(0.1, stale=True), gradtx.adamw(lr=0.1)), 1),
    "lamb": (gradtx.lamb(lr=0.1, max_grad_norm=1.0), 1),
    "prodigy": (gradtx.prodigy(lr=1.0), 1),
    "adams": (gradtx.adams(lr=0.1, weight_decay=0.1), 1),
    "dadapt_adam": (gradtx.dadapt_adam(lr=1.0), 1),
    "accumulate": (gradtx.accumulate(gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.sgd(lr=0.1)), 2), 1),
    "skip_nonfinite": (gradtx.skip_nonfinite(gradtx.adamw(lr=0.1)), 1),
    "branches": (OF_BRANCHES, 3),
    "blocks": (IN_BLOCKS, 2),
    "adamw": (gradtx.adamw(lr=0.1), 0),
}


def model(names, place=torch.clone):
    generator = torch.Generator().manual_seed(0)
    params = {}
    for name, shape in SHAPES.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name in names:
            params[name] = torch.nn.Parameter(place(value))
    return params


def give_gradients(params, step, place=torch.clone, without=()):
    generator = torch.Generator().manual_seed(100 + step)
    for name, shape in SHAPES.items():
        gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name in params:
            params[name].grad = None if name in without else place(gradient)


def trained(tx, names, without=lambda step: (), place=torch.clone, steps=STEPS, **options):
    params = model(names, place)
    optimizer = gradtx.as_optimizer(tx, list(params.items()), **options)
    counts = []
    for step in range(steps):
        give_gradients(params, step, place, without(step))
        with Traffic() as traffic:
            optimizer.step()
        counts.append(traffic.count)
    return params, optimizer, counts


def comes_and_goes(step):
    """At step 1 the second stage has no gradient at all, at step 3 the first one has none."""
    return {1: STAGES[1], 3: STAGES[0]}.get(step, ())


def trained_with_gaps(name, with_gaps, names, **options):
    """Weights and states by name, and the messages of each step."""
    without = comes_and_goes if with_gaps else lambda step: ()
    params, optimizer, counts = trained(CHAINS[name][0], names, without, **options)
    found = {key: (param.detach(), optimizer.state[param]) for key, param in params.items()}
    return found, counts


def stage_of_rank(name, kind, with_gaps):
    stage = STAGES[distributed.get_rank()]
    with engine(kind) as compile:
        return trained_with_gaps(name, with_gaps, stage, sum_over=distributed.group.WORLD, compile=compile)


@thinned(4)
@pytest.mark.parametrize("with_gaps", [False, True])
@pytest.mark.parametrize("kind", ["eager", "traced"])
@pytest.mark.parametrize("name", CHAINS)
def test_stages_take_the_steps_of_one_process_with_one_message_a_sum(name, kind, with_gaps, two):
    expected, _ = trained_with_gaps(name, with_gaps, SHAPES)
    for stage, (found, counts) in zip(STAGES, two.run(stage_of_rank, name, kind, with_gaps), strict=True):
        assert_close(found.values(), [expected[key] for key in stage])
        assert counts[1:] == [CHAINS[name][1]] * (STEPS - 1)


SHAPES_SEEN = []


@gradtx.per_tensor(elementwise=True, compiles=False)
def seen():
    def update(update, state, param, ctx):
        SHAPES_SEEN.append(tuple(update.shape))
        return update, state

    return update


def shapes_that_rules_see():
    tx = gradtx.chain(gradtx.blocks(gradtx.clip_by_global_norm(0.1), batch=1), seen(), gradtx.sgd(lr=0.1))
    stage = [name for name in STAGES[distributed.get_rank()] if name != "bias"]
    SHAPES_SEEN.clear()
    trained(tx, stage, sum_over=distributed.group.WORLD, steps=1)
    assert sorted(SHAPES_SEEN) == sorted(SHAPES[name] for name in stage)


def test_sums_over_blocks_need_no_stand_in_where_leaves_have_them(two):
    two.run(shapes_that_rules_see)


def divided_stages_equal_the_whole():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    tx, _ = CHAINS["branches"]
    expected, _, _ = trained(tx, SHAPES)
    stage = STAGES[mesh["pp"].get_local_rank()]
    params, _, _ = trained(
        tx, stage, place=lambda tensor: distribute_tensor(tensor, mesh["dp"], [Shard(0)]), sum_over=mesh["pp"]
    )
    assert_close([whole(param) for param in params.values()], [expected[key] for key in stage])


def test_stages_that_are_divided_by_fsdp_take_the_steps_of_one_process(four):
    four.run(divided_stages_equal_the_whole)


def resumed():
    tx, _ = CHAINS["prodigy"]
    stage = STAGES[distributed.get_rank()]
    params, optimizer, _ = trained(tx, stage, sum_over=distributed.group.WORLD, steps=2)
    again = {name: torch.nn.Parameter(param.detach().clone()) for name, param in params.items()}
    other = gradtx.as_optimizer(tx, list(again.items()), sum_over=distributed.group.WORLD)
    other.load_state_dict(optimizer.state_dict())
    for each, of in ((params, optimizer), (again, other)):
        give_gradients(each, 2)
        of.step()
    assert all(torch.equal(param, again[name]) for name, param in params.items())


def test_a_stage_resumes_bit_by_bit(two):
    two.run(resumed)


# Ranks that fail, fail together.


def everything(params, optimizer):
    tensors = [param.detach().clone() for param in params.values()]
    for param in params.values():
        tensors += [value.clone() for value in optimizer.state[param].values()]
    return tensors


@gradtx.per_tensor(elementwise=True, compiles=False)
def fails_at(step: int, rank: int):
    def update(update, state, param, ctx):
        if distributed.get_rank() == rank and int(ctx.step) == step:
            raise ArithmeticError("a fault of the rule")
        return update, state

    return update


def bad_number(optimizer, params):
    optimizer.param_groups[0]["lr"] = -1.0


def sparse_gradient(optimizer, params):
    param = next(iter(params.values()))
    param.grad = param.grad.to_sparse()


def nothing(optimizer, params):
    pass


FAULTS = {"number": bad_number, "gradient": sparse_gradient, "rule": nothing}


def fails_together(case, at):
    rule = fails_at(at + 1 if case == "rule" else 99, 1)
    tx = gradtx.chain(rule, gradtx.clip_by_global_norm(0.1), gradtx.adamw(lr=0.1))
    stage = STAGES[distributed.get_rank()]
    params, optimizer, _ = trained(tx, stage, sum_over=distributed.group.WORLD, steps=at)
    give_gradients(params, at)
    if distributed.get_rank() == 1:
        FAULTS[case](optimizer, params)
    before = everything(params, optimizer)
    with pytest.raises((RuntimeError, ValueError, ArithmeticError)) as caught:
        optimizer.step()
    after = everything(params, optimizer)
    assert all(map(torch.equal, before, after))
    distributed.barrier()
    if case != "rule":
        optimizer.param_groups[0]["lr"] = 0.1
        give_gradients(params, at)
        optimizer.step()  # and go on together
    return str(caught.value)


CASES = [("number", 0), ("number", 4), ("gradient", 0), ("gradient", 4), ("rule", 2)]


@pytest.mark.parametrize(("case", "at"), CASES)
def test_all_ranks_fail_together_and_nothing_has_changed(case, at, two):
    first, second = two.run(fails_together, case, at)
    assert "rank 1 failed" in first
    assert "see the error raised on that rank" in first
    assert "rank 1 failed" not in second


def other_sums():
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0 + distributed.get_rank()), gradtx.sgd(lr=0.1))
    params = model(STAGES[0])
    optimizer = gradtx.as_optimizer(tx, list(params.items()), sum_over=distributed.group.WORLD)
    give_gradients(params, 0)
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    return str(caught.value)


def test_ranks_with_other_sums_raise_the_same_error(two):
    first, second = two.run(other_sums)
    assert first == second
    for text in ("clip_by_global_norm", "1.0", "2.0", "rank 1"):
        assert text in first


# What is refused.


@gradtx.whole_tree
def of_the_tree():
    def update(updates, state, params, ctx):
        return updates, state

    return update


def refused():
    params = model(SHAPES)
    group = distributed.group.WORLD
    for tx, text in ((of_the_tree(), "of_the_tree"), (gradtx.sam(gradtx.sgd()), "sam")):
        with pytest.raises(ValueError, match=text):
            gradtx.as_optimizer(gradtx.chain(tx, gradtx.scale(-0.1)), list(params.items()), sum_over=group)
    optimizer = gradtx.optim.AdamW(list(params.items()), sum_over=group)
    with pytest.raises(RuntimeError, match="release_gradients cannot be combined with sum_over"):
        optimizer.release_gradients()
    scaler = torch.amp.GradScaler("cpu")
    give_gradients(params, 0)
    scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match="a GradScaler reads only the gradients of its rank"):
        scaler.step(optimizer)


@pytest.mark.parametrize("option", ["sum_over", "process_group"])
def test_what_is_no_group_is_named(option, two):
    two.run(no_groups, option)
    params = list(model(SHAPES).items())
    with pytest.raises(ValueError, match=f"{option} needs processes: call torch.distributed.init_process_group first"):
        gradtx.as_optimizer(gradtx.adamw(), params, **{option: "world"})


def no_groups(option):
    params = list(model(SHAPES).items())
    with pytest.raises(TypeError, match=f"ChainOptimizer: {option} must be a process group.*got 5"):
        gradtx.as_optimizer(gradtx.adamw(), params, **{option: 5})
    first = distributed.new_group([0])
    if distributed.get_rank() == 1:
        with pytest.raises(ValueError, match=f"{option}: this rank is not in the group"):
            gradtx.as_optimizer(gradtx.adamw(), params, **{option: first})


def test_what_sums_alone_cannot_complete_is_refused_by_name(two):
    two.run(refused)


# Patterns of `state_dtype`.

OF_STAGES = gradtx.partition(
    {"a": gradtx.sgd(lr=0.1, momentum=0.9), "b": gradtx.adam(lr=0.1)}, {"a": STAGES[0], "b": STAGES[1]}
)


def stored_as(state_dtype):
    params = model(STAGES[distributed.get_rank()])
    tx = gradtx.with_state_dtype(OF_STAGES, state_dtype)
    optimizer = gradtx.as_optimizer(tx, list(params.items()), sum_over=distributed.group.WORLD)
    give_gradients(params, 0)
    optimizer.step()
    return [key for param in params.values() for key, value in optimizer.state[param].items() if value.dtype == HALF]


HALF = torch.bfloat16


def test_a_pattern_may_match_slots_of_another_stage_only(two):
    first, second = two.run(stored_as, {"momentum_buffer": HALF, "exp_avg_sq": HALF})
    assert (set(first), set(second)) == ({"momentum_buffer"}, {"exp_avg_sq"})


def unmatched(state_dtype):
    with pytest.raises(ValueError, match="matches no slot of the chain") as caught:
        stored_as(state_dtype)
    return str(caught.value)


def test_a_pattern_that_matches_on_no_stage_is_the_same_error_on_all(two):
    first, second = two.run(unmatched, {"momentum_buffer": HALF, "exp_avg_squared": HALF})
    assert first == second
    assert "'exp_avg_squared'" in first
    assert "exp_avg_sq, momentum_buffer" in first


def fails_to_make_one():
    params = list(model(STAGES[distributed.get_rank()]).items())
    if distributed.get_rank() == 1:
        params.append(("no leaf", 2 * params[0][1]))
    with pytest.raises((ValueError, RuntimeError), match=r"failed to construct|non-leaf") as caught:
        gradtx.as_optimizer(gradtx.adamw(lr=0.1), params, sum_over=distributed.group.WORLD)
    return str(caught.value)


def test_ranks_that_cannot_make_their_optimizer_do_not_let_others_wait(two):
    first, second = two.run(fails_to_make_one)
    assert "rank 1 failed to construct the optimizer; see the error raised on that rank" in first
    assert "rank 1" not in second
