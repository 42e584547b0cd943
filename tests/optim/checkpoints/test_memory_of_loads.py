"""Memory of loads and first steps: how much the allocator has handed out at its peak."""

import copy
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import gradtx
from gradtx.state import codes

ENTRIES = 1 << 16
LEAVES = 4
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# What counts, numbers and the lists of a step need, beside tensors of the size of a leaf.
SLACK = 1 << 14


def peak_of(call):
    """Return the bytes that a call needs at its peak beyond what was there before, and those that stay."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    profiler: Any = seen.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    present = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        present += event.nbytes()
        peak = max(peak, present)
    return peak, present


def leaf(entries, dtype):
    param = torch.nn.Parameter(torch.ones(entries // 256, 256, dtype=dtype))
    param.grad = torch.ones_like(param)
    return param


def leaves(dtype):
    return [leaf(ENTRIES, dtype) for _ in range(LEAVES)]


def bytes_of(optimizer):
    return [value.nbytes for state in optimizer.state.values() for value in state.values()]


def trained(make, dtype, steps=1):
    optimizer = make(leaves(dtype))
    for _ in range(steps):
        optimizer.step()
    return optimizer


def adamw(**options):
    return lambda params: gradtx.optim.AdamW(params, **options)


SAVED_BY = {"ours": adamw(), "torch's": torch.optim.AdamW, "codes": adamw(state_dtype="int8")}
LOADED_BY = {"plain": {}, "codes": {"state_dtype": "int8"}, "float32": {"state_dtype": torch.float32}}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loaded_by", LOADED_BY)
@pytest.mark.parametrize("saved_by", SAVED_BY)
def test_a_load_needs_no_more_than_one_slot_beyond_its_state(saved_by, loaded_by, dtype, monkeypatch):
    monkeypatch.setattr(codes, "PART", ENTRIES // 64)
    saved = copy.deepcopy(trained(SAVED_BY[saved_by], dtype).state_dict())
    optimizer = adamw(**LOADED_BY[loaded_by])(leaves(dtype))
    peak, _ = peak_of(lambda: optimizer.load_state_dict(saved))
    assert peak <= sum(bytes_of(optimizer)) + 4 * ENTRIES + SLACK


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compile", [False, True])
def test_the_step_after_a_load_needs_no_more_than_any_other(compile, dtype):
    make = adamw(compile=compile)
    saved = copy.deepcopy(trained(make, dtype).state_dict())
    optimizer = trained(make, dtype, steps=2)
    usual, _ = peak_of(optimizer.step)
    optimizer.load_state_dict(saved)
    after_load, _ = peak_of(optimizer.step)
    resumed = make(leaves(dtype))
    resumed.load_state_dict(saved)
    first, _ = peak_of(resumed.step)
    assert max(after_load, first) <= usual + SLACK


@pytest.mark.parametrize("compile", [False, True])
def test_a_load_frees_the_state_before_it_copies_the_loaded_one(compile):
    def train_and_load():
        optimizer = trained(adamw(compile=compile), torch.float32, steps=2)
        optimizer.load_state_dict(saved)
        optimizer.step()

    saved = copy.deepcopy(trained(adamw(), torch.float32).state_dict())
    state = [2 * 4 * ENTRIES] * LEAVES
    weights_and_gradients = sum(state)
    peak, _ = peak_of(train_and_load)
    usual, _ = peak_of(lambda: trained(adamw(compile=compile), torch.float32, steps=2))
    assert peak <= max(usual, weights_and_gradients + sum(state)) + 4 * ENTRIES + SLACK


@pytest.mark.parametrize("compile", [False, True])
def test_slots_that_a_load_has_replaced_belong_to_their_holders_alone(compile):
    optimizer = trained(adamw(compile=compile), torch.float32)
    saved, held = copy.deepcopy(optimizer.state_dict()), optimizer.state_dict()
    before = copy.deepcopy(held["state"])
    optimizer.load_state_dict(saved)
    optimizer.step()
    for number, entry in held["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, before[number][key])
            assert torch.equal(value, saved["state"][number][key])


def test_a_load_of_a_state_before_any_step_needs_no_more_than_one_slot_beyond_it():
    saved = copy.deepcopy(adamw()(leaves(torch.float32)).state_dict())
    optimizer = adamw()(leaves(torch.float32))
    peak, _ = peak_of(lambda: optimizer.load_state_dict(saved))
    assert peak <= sum(bytes_of(optimizer)) + 4 * ENTRIES + SLACK
    with torch.no_grad():
        optimizer.step()
    assert all(int(state["step"]) == 1 for state in optimizer.state.values())


def test_slots_that_an_entry_lacks_need_their_own_memory_only():
    saved = copy.deepcopy(trained(torch.optim.AdamW, torch.float32).state_dict())
    tx = gradtx.chain(gradtx.adamw(), gradtx.lookahead(k=3))
    optimizer = gradtx.as_optimizer(tx, leaves(torch.float32))
    peak, _ = peak_of(lambda: optimizer.load_state_dict(saved, strict=False))
    # The slots of one leaf are there as first values, and as loaded ones.
    assert peak <= sum(bytes_of(optimizer)) + 6 * 4 * ENTRIES + SLACK
    for param, state in optimizer.state.items():
        assert torch.equal(state["slow"], param)
        assert int(state["step"]) == 1


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_first_step_of_one_large_leaf_peaks_as_torchs(dtype, compile):
    entries = 1 << 23
    adamw(compile=compile)([leaf(256, dtype)]).step()  # what every first step loads
    ours, theirs = (
        adamw(compile=compile)([leaf(entries, dtype)]),
        torch.optim.AdamW([leaf(entries, dtype)], foreach=True),
    )
    peak, _ = peak_of(ours.step)
    reference, _ = peak_of(theirs.step)
    assert peak <= 1.1 * reference


def test_a_loaded_file_is_mapped_and_copied_once(tmp_path):
    pytest.importorskip("safetensors")
    params = {f"w{i}": param.detach() for i, param in enumerate(leaves(torch.float32))}
    state = gradtx.adamw().init(params)
    gradtx.save(tmp_path / "run.safetensors", params, state)
    peak, stays = peak_of(lambda: gradtx.load(tmp_path / "run.safetensors", params, state))
    mapped, copied = 3 * LEAVES * 4 * ENTRIES, 3 * LEAVES * 4 * ENTRIES
    assert peak <= mapped + copied + SLACK
    assert stays <= SLACK
