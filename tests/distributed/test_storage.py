"""Coded slots of divided parameters: codes and scales are divided as the parameter, and nothing is sent for them."""

import contextlib
import copy

import pytest
import torch
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import gradtx
from gradtx.distributed.layouts import splits_rows
from gradtx.state.codes import CODES
from tests.codecs import AFFINE, DOUBLY
from tests.distributed.problems import engine
from tests.tiers import by_day

SHAPES = {"matrix": (67, 128), "vector": (8192,), "cut": (4100,), "odd": (70, 101), "small": (5, 3)}
AFFINE_BESIDE_INT8 = {"exp_avg": AFFINE, "exp_avg_sq": "int8"}
# Two codes in a byte, and noise by the places of entries in the whole tensor.
WITHOUT_KERNELS = ("int4", "bfloat16:stochastic")


def whole(seed, name):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPES[name], generator=generator)


def divided(seed, dims):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    return {name: distribute_tensor(whole(seed, name), mesh, [Shard(dims.get(name, 0))]) for name in SHAPES}


def trained(code, kind, steps, dims, optimizer=None, first=0):
    with engine(kind) as compile:
        if optimizer is None:
            params = {name: torch.nn.Parameter(p) for name, p in divided(0, dims).items()}
            optimizer = gradtx.as_optimizer(
                gradtx.adamw(lr=1e-2, state_dtype=code), list(params.items()), compile=compile
            )
        params = optimizer.param_groups[0]["params"]
        for i in range(first, first + steps):
            for param, grad in zip(params, divided(i + 1, dims).values(), strict=True):
                param.grad = grad
            optimizer.step()
    return optimizer


def full(optimizer):
    tensors = {}
    for name, param in zip(SHAPES, optimizer.param_groups[0]["params"], strict=True):
        tensors[name] = param.detach().full_tensor()
        for key, value in optimizer.state[param].items():
            if value.dtype == torch.float8_e4m3fn:  # which gloo can't send
                value = value.to_local().view(torch.uint8)
            tensors[f"{name}.{key}"] = value.full_tensor() if isinstance(value, DTensor) else value
    return tensors


def alone(code, steps):
    params = {name: torch.nn.Parameter(whole(0, name)) for name in SHAPES}
    optimizer = gradtx.as_optimizer(gradtx.adamw(lr=1e-2, state_dtype=code), list(params.items()))
    # Divided leaves with random codes step alone. Programs differ from that in the last bit, and a value on the edge
    # between two roundings would then show a whole unit of bfloat16.
    with gradtx.eagerly() if isinstance(code, str) and CODES[code].random else contextlib.nullcontext():
        for i in range(steps):
            for name, param in params.items():
                param.grad = whole(i + 1, name)
            optimizer.step()
    return {name: param.detach() for name, param in params.items()}, optimizer


def run(code, kind, dims):
    optimizer = trained(code, kind, 3, dims)
    plans = optimizer._core.back_ends[0].plans[None] if kind == "compiled" else None
    resumed = copy.deepcopy(optimizer)
    trained(code, kind, 2, dims, optimizer, 3)
    trained(code, kind, 2, dims, resumed, 3)
    same = all(torch.equal(a, b) for a, b in zip(full(optimizer).values(), full(resumed).values(), strict=True))
    rows = {}
    for name, param in zip(SHAPES, optimizer.param_groups[0]["params"], strict=True):
        state = optimizer.state[param]
        rows[name] = sorted(state), state["exp_avg"].placements == param.placements
    return full(optimizer), same, rows, [m.name for m in plans.rest] if plans else []


@by_day("int8-compiled", "int4-eager", "float8-eager", "bfloat16+8-eager", "bfloat16:stochastic-compiled")
@pytest.mark.parametrize("kind", ["eager", "compiled"])
@pytest.mark.parametrize("code", [name for name, codec in CODES.items() if codec.shapes_of is None])
def test_a_divided_run_equals_that_of_one_process_and_resumes_bitwise(code, kind, two):
    expected, _ = alone(code, 5)
    block = CODES[code].block
    for tensors, same, rows, rest in two.run(run, code, kind, {}):
        assert same
        for name, keys_and_placement in rows.items():
            keys, placed = keys_and_placement
            assert placed
            is_coded = any(key.startswith("exp_avg.") for key in keys)
            assert is_coded == (name != "small" and not (name == "cut" and block))
        for name, param in zip(SHAPES, expected, strict=True):
            if name == "cut" and block:
                continue  # in float32, since the shards cut a block
            atol = 1e-6 if kind == "eager" else 1e-5
            torch.testing.assert_close(tensors[name], expected[param], rtol=0.0, atol=atol)
        if kind == "compiled":
            assert ("matrix" in rest) == (code in WITHOUT_KERNELS)


def test_a_divided_leaf_is_not_factored(two):
    expected, _ = alone(torch.float32, 5)
    for tensors, same, rows, _ in two.run(run, "factored", "eager", {}):
        assert same
        assert all("exp_avg.row" not in keys for keys, _ in rows.values())
        for name, param in zip(SHAPES, expected, strict=True):
            torch.testing.assert_close(tensors[name], expected[param], rtol=0.0, atol=1e-6)


def moved(state_dict):
    """Divide a factored run of one process, and return the values that it has then; and its run on whole leaves."""
    optimizer = trained("factored", "eager", 0, {})
    optimizer.load_state_dict(state_dict)
    tensors = full(trained("factored", "eager", 1, {}, optimizer, 3))
    _, back = alone("factored", 1)
    back.load_state_dict(optimizer.state_dict())
    return tensors, {name: back.state[p] for name, p in zip(SHAPES, back.param_groups[0]["params"], strict=True)}


def test_a_factored_run_continues_where_ranks_divide_leaves_and_back(two):
    _, optimizer = alone("factored", 3)
    state_dict = copy.deepcopy(optimizer.state_dict())
    # The run on whole leaves, whose averages in the next step are those of the factors it has.
    _, plain = alone(torch.float32, 1)
    plain.load_state_dict(state_dict)
    for name, param in zip(SHAPES, plain.param_groups[0]["params"], strict=True):
        param.grad = whole(4, name)
    plain.step()
    expected = {name: plain.state[p] for name, p in zip(SHAPES, plain.param_groups[0]["params"], strict=True)}
    for divided_run, whole_run in two.run(moved, state_dict):
        for name, slots in expected.items():
            for slot in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(divided_run[f"{name}.{slot}"], slots[slot], rtol=1e-5, atol=1e-7)
        for name in ("matrix", "vector", "cut", "odd"):
            total = expected[name]["exp_avg_sq"].sum()
            torch.testing.assert_close(whole_run[name]["exp_avg_sq.row"].sum(), total, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_a_part_per_block_is_divided_as_its_parameter(kind, two):
    expected, _ = alone(AFFINE_BESIDE_INT8, 5)
    for tensors, same, rows, _ in two.run(run, AFFINE_BESIDE_INT8, kind, {}):
        assert same
        for name, (keys, placed) in rows.items():
            assert placed
            assert ("exp_avg.step" in keys and "exp_avg.zero" in keys) == (name != "cut")
        for name, param in expected.items():
            if name != "cut":  # in float32, since the shards cut a block
                # A value between two codes may be rounded to either.
                near = (tensors[name] - param).abs() <= 1e-5
                assert near.float().mean() >= 1 - 1e-3


def test_a_divided_leaf_has_no_code_with_a_part_per_leaf(two):
    expected, _ = alone(torch.float32, 5)
    for tensors, same, rows, _ in two.run(run, DOUBLY, "eager", {}):
        assert same
        assert all("exp_avg.largest" not in keys for keys, _ in rows.values())
        for name, param in expected.items():
            torch.testing.assert_close(tensors[name], param, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("code", ["int8", "int4"])
def test_columns_are_divided_between_blocks(code, two):
    expected, _ = alone(code, 5)
    for tensors, same, rows, _ in two.run(run, code, "eager", {"matrix": 1}):
        assert same
        assert "exp_avg.scale" in rows["matrix"][0]
        torch.testing.assert_close(tensors["matrix"], expected["matrix"], rtol=0.0, atol=1e-6)


def cut():
    mesh = init_device_mesh("cpu", (2,))
    answers = []
    for shape, dim in (
        ((6, 128), 0),
        ((6, 128), 1),
        ((6, 130), 1),
        ((6, 4, 64), 1),
        ((6, 4, 64), 2),
        ((128,), 0),
        ((130,), 0),
    ):
        answers.append(splits_rows(distribute_tensor(torch.zeros(shape), mesh, [Shard(dim)]), 64))
    return answers


def save(code, folder):
    optimizer = trained(code, "eager", 3, {})
    checkpoint.save({"state": by_name(optimizer)}, checkpoint_id=folder)
    return full(trained(code, "eager", 2, {}, optimizer, 3))


def by_name(optimizer):
    params = optimizer.param_groups[0]["params"]
    return {name: {"param": p.detach(), **optimizer.state[p]} for name, p in zip(SHAPES, params, strict=True)}


def load(code, folder):
    optimizer = trained(code, "eager", 1, {})
    checkpoint.load({"state": by_name(optimizer)}, checkpoint_id=folder)
    return full(trained(code, "eager", 2, {}, optimizer, 3))


@by_day("int4", "bfloat16:stochastic", "affine")
@pytest.mark.parametrize("code", [*CODES, pytest.param(AFFINE_BESIDE_INT8, id="affine")])
def test_a_checkpoint_of_torch_distributed_resumes_bitwise(code, two, tmp_path):
    for expected, actual in zip(two.run(save, code, str(tmp_path)), two.run(load, code, str(tmp_path)), strict=True):
        for name, tensor in expected.items():
            assert torch.equal(tensor, actual[name]), name
