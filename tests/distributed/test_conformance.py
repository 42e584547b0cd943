"""Every rule, alias and combinator on divided tensors; whatever has a `.spec` in `gradtx.__all__` joins by itself."""

import functools
from unittest import mock

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils import _pytree

import gradtx
from gradtx.compiler import kernels
from tests.conformance import all_cases, chosen_aliases, examples_of, functions, noise
from tests.distributed.problems import assert_close, bundled, engine, whole
from tests.examples import PAIR
from tests.tiers import by_day

# All switches of rules, once what is made of them, and some aliases, which are chains of these. Not where rounding
# decides a basis: sums here have another order.
CASES = {
    str(case): case
    for case in all_cases()
    if (case.factory.spec.kind in ("rule", "tree") or not case.label)
    and (case.factory.spec.kind != "alias" or case in chosen_aliases())
    and case.is_determined()
    and not functions(case.example)  # test_curvature.py has those
}

# The last process has nothing of `row`; `scalar` is not divided, as parameters that FSDP ignores.
SHAPES = {"conv": (3, 2, 2, 2), "matrix": (3, 4), "columns": (2, 3), "row": (1, 4), "vector": (5,), "scalar": ()}
DIVIDED = tuple(name for name, shape in SHAPES.items() if shape)
ALL_SHAPES = {**SHAPES, **PAIR}
OFFSETS = noise(7, ALL_SHAPES)


@functools.cache
def mesh():
    return init_device_mesh("cpu", (torch.distributed.get_world_size(),))


def divided(tensor):
    dim = 1 if tensor.shape == SHAPES["columns"] else 0
    return distribute_tensor(tensor, mesh(), [Shard(dim)]) if tensor.ndim else tensor


def run(tx, place, compile=False, names=tuple(SHAPES), steps=3):
    """Parameters, state and weights to evaluate with after some steps, and the optimizer; `place` divides, or not."""
    start = {name: value for name, value in noise(1, ALL_SHAPES).items() if name in names}
    params = {name: torch.nn.Parameter(place(value).clone()) for name, value in start.items()}
    optimizer = gradtx.as_optimizer(tx, list(params.items()), compile=compile)

    def slope(p, name):
        return 0.5 * p + 0.3 * (2 * p).sin() + OFFSETS[name]

    def closure():
        found = {name: whole(param) for name, param in params.items()}
        for name, param in params.items():
            param.grad = place(slope(found[name], name))
        return sum(p.square().sum() for p in found.values())

    for _ in range(steps):
        extras = {}
        if "hessian_diag" in tx.needs:
            curved = {name: 0.5 + 0.6 * (2 * whole(param)).cos() for name, param in params.items()}
            extras["hessian_diag"] = {name: place(value) for name, value in curved.items()}
        if "max_logits" in tx.needs:
            extras["max_logits"] = {"layer": torch.tensor([150.0], dtype=torch.float64)}
        if "grad_sample" in tx.needs:
            slopes = {name: slope(whole(param), name) for name, param in params.items()}
            extras["grad_sample"] = {name: examples_of(place(g)) for name, g in slopes.items()}
        optimizer.step(closure, **extras)
    found = [[whole(param) for param in params.values()]]
    states = optimizer.state_dict()["state"].values()  # by rows, also what the owner of a leaf keeps
    found.append([{key: whole(value) for key, value in state.items()} for state in states])
    with optimizer.eval_params():
        found.append([whole(param) for param in params.values()])
    return found, optimizer


def undivided(tensor):
    return tensor.clone()


# Sums over leaves, rows and columns, matrices, random numbers and evaluation weights, and what wraps them.
CHOSEN = (
    "accumulate", "adamuon", "adopt", "asam", "average", "blocks", "centralize", "clip_adaptive", "clip_by_global_norm",
    "freeze", "lookahead", "masked", "mechanize", "muon", "normalize_neurons", "partition", "rotated", "sam",
    "scale_by_adafactor", "scale_by_adagrad", "scale_by_block_adam", "scale_by_lars", "scale_by_prodigy",
    "scale_by_psgd_kron", "scale_by_radam", "scale_by_shampoo", "scale_by_sm3", "scale_by_trust_ratio",
    "schedule_free", "skip_nonfinite",
)  # fmt: skip


def steps_of(case, place):
    return run(CASES[case].make(), place, names=tuple(CASES[case].noise(1, SHAPES)))[0]


def divided_steps_of(case):
    return steps_of(case, divided)


@by_day(*(case for case in CHOSEN if case in CASES))
@pytest.mark.parametrize("case", CASES)
def test_divided_tensors_take_the_steps_of_whole_ones(case, two):
    expected = steps_of(case, undivided)
    for found in two.run(divided_steps_of, case):
        assert_close(found, expected)


CLIP = gradtx.clip_by_global_norm(0.5)
# With the number of leaves that kernels update in each process: all, even those without entries there, if the chain is
# elementwise and has no sums over leaves.
IN_THE_ENGINE = {
    "adamw": (gradtx.adamw(lr=0.1), (5, 5)),
    "adamp": (gradtx.adamp(lr=0.1, weight_decay=0.1), (0, 0)),
    "lamb": (gradtx.lamb(lr=0.1), (0, 0)),
    "clip and adamw": (gradtx.chain(CLIP, gradtx.adamw(lr=0.1)), (0, 0)),
    "prodigy": (gradtx.prodigy(lr=0.1, d0=0.1), (0, 0)),
    # What a process has nothing of is the first to step eagerly there: its branch is not to be the first to sum.
    "sums of branches": (
        gradtx.partition(
            {"one": gradtx.chain(CLIP, gradtx.sgd(lr=0.1)), "other": gradtx.chain(CLIP, gradtx.sgd(lr=0.2))},
            {"one": ("conv", "matrix"), "other": "*"},
        ),
        (0, 0),
    ),
    "branches": (
        gradtx.partition(
            {"one": gradtx.chain(CLIP, gradtx.adamp(lr=0.1)), "other": gradtx.sgd(lr=0.1, momentum=0.9)},
            {"one": ("conv", "matrix"), "other": "*"},
        ),
        (3, 3),
    ),
}


def kernels_equal_whole(name):
    tx, _ = IN_THE_ENGINE[name]
    with engine("compiled") as compile:
        found, optimizer = run(tx, divided, compile, DIVIDED)
    assert_close(found, run(tx, undivided, names=DIVIDED)[0])
    return bundled(optimizer)


@pytest.mark.parametrize("name", IN_THE_ENGINE)
def test_kernels_update_shards_of_elementwise_chains_and_leave_sums_to_lists(name, two):
    assert tuple(two.run(kernels_equal_whole, name)) == IN_THE_ENGINE[name][1]


@gradtx.per_tensor(elementwise=True)
def divide_by_size():
    return lambda update, state, param, ctx: (update / update.numel() * len(update), state)


def sizes_are_those_of_whole_tensors(compile):
    tx = gradtx.chain(divide_by_size(), gradtx.sgd(lr=0.1, momentum=0.5))
    with engine("compiled" if compile else "eager") as compile:
        found, optimizer = run(tx, divided, compile, DIVIDED)
    assert_close(found, run(tx, undivided, names=DIVIDED)[0])
    return optimizer.explain().summary() if hasattr(optimizer.explain(), "summary") else str(optimizer.explain())


@pytest.mark.parametrize("compile", [False, True])
def test_an_elementwise_rule_reads_the_size_of_the_whole_tensor(compile, two):
    for explanation in two.run(sizes_are_those_of_whole_tensors, compile):
        assert "a rule reads the shape of its leaf" in explanation


def pure_functions_agree():
    tx = gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamp(lr=0.1), gradtx.lookahead(k=2))
    results = []
    for place in (divided, undivided):
        params = {name: place(value) for name, value in noise(1, SHAPES).items()}
        state = tx.init(params)
        for t in range(4):
            grads = {name: place(value) for name, value in noise(10 + t, SHAPES).items()}
            updates, state = tx.update(grads, state, params)
            params = gradtx.apply_updates(params, updates)
        found = _pytree.tree_map(whole, (params, state, tx.eval_params(state, params)))
        results.append(_pytree.tree_leaves(found))
    assert_close(*results)


def test_pure_functions_take_divided_tensors(two):
    two.run(pure_functions_agree)


@gradtx.per_tensor
def sort_entries():
    """Torch can't flatten what does not divide evenly, so this runs on gathered tensors."""

    def init(param):
        first = param.flatten().sort().values.view_as(param)
        return {"first": first, "sizes": [param.square().sum(dim=-1), param.square().sum()]}

    def update(update, state, param, ctx):
        rows, all_rows = state["sizes"]
        update = update.flatten().sort().values.view_as(param) + state["first"]
        sizes = [rows + update.sum(dim=-1), all_rows + update.sum()]
        return update / (1 + sizes[1].square()), {"first": state["first"] + param, "sizes": sizes}

    return init, update


@gradtx.per_tensor
def refuse():
    def update(update, state, param, ctx):
        raise RuntimeError("not today")

    return update


def gathers_what_cannot_be_divided():
    tx = gradtx.chain(sort_entries(), gradtx.sgd(lr=0.1))
    assert_close(run(tx, divided)[0], run(tx, undivided)[0])
    param = torch.nn.Parameter(divided(torch.ones(SHAPES["conv"], dtype=torch.float64)))
    optimizer = gradtx.as_optimizer(tx, [param])
    for _ in range(2):
        param.grad = param.detach()
        optimizer.step()
        state = optimizer.state[param]
        assert state["first"].placements == param.placements
        assert [isinstance(state[key], DTensor) for key in ("sizes_0", "sizes_1", "step")] == [True, False, False]
        assert all(placement.is_replicate() for placement in state["sizes_0"].placements)
    with pytest.raises(RuntimeError, match="not today"):
        run(refuse(), divided)


def test_rules_that_cannot_be_divided_run_on_gathered_tensors_and_keep_divided_state(two):
    two.run(gathers_what_cannot_be_divided)


def says_what_is_not_compiled(name):
    """What `explain` says of every tensor, and for how many phases kernels were looked up or written."""
    tx, _ = IN_THE_ENGINE[name]
    written = mock.Mock(wraps=kernels.PhaseKernels.of)
    with engine("compiled") as compile, mock.patch.object(kernels.PhaseKernels, "of", written):
        _, optimizer = run(tx, divided, compile, DIVIDED)
    return [(item.way, item.reason) for item in optimizer.explain()], written.call_count


@pytest.mark.parametrize("name", ["lamb", "clip and adamw", "adamp"])
def test_sums_over_shards_are_left_to_lists_before_kernels_are_written(name, two):
    for ways, written in two.run(says_what_is_not_compiled, name):
        assert written == 0
        # `columns` is divided along its rows, of which AdamP needs the sums.
        alone = ["alone"] if name == "adamp" else ["lists"]
        assert [way for way, _ in ways] == ["lists", "lists", *alone, "lists", "lists"]
