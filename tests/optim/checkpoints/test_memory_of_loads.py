"""Memory of loads and first steps, as the allocator hands it out; what a load leaves as it was: a state, or a plan."""

import copy

import pytest
import torch

import gradtx
from gradtx.execution.runs import OwnMemory
from gradtx.optim.engine.step_plan import StepPlan
from gradtx.state import codes
from tests.memory import most_of, sizes_of

ENTRIES = 1 << 16
LEAVES = 4
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# What counts, numbers and the lists of a step need, beside tensors of the size of a leaf.
SLACK = 1 << 14


def peak_of(call):
    """Return the bytes that a call needs at its peak beyond what was there before, and those that stay."""
    sizes = sizes_of(call)
    return most_of(sizes), sum(sizes)


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


# Failures.


@pytest.mark.parametrize("damage", ["exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("number", range(LEAVES))
@pytest.mark.parametrize("compile", [False, True])
def test_a_load_that_fails_in_the_middle_changes_nothing(compile, number, damage):
    optimizer = trained(adamw(compile=compile), torch.float32, steps=2)
    saved = copy.deepcopy(trained(adamw(), torch.float32).state_dict())
    saved["state"][number][damage] = torch.full((3,), 2.0)
    slots = {param: dict(state) for param, state in optimizer.state.items()}
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=f"state of parameter '{number}': '{damage}'"):
        optimizer.load_state_dict(saved)
    for param, state in optimizer.state.items():
        assert all(state[key] is slot for key, slot in slots[param].items())
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
    theirs = torch.optim.AdamW(leaves(torch.float32))
    for _ in range(3):
        theirs.step()
    optimizer.step()
    for param, reference in zip(
        *[group["params"] for group in optimizer.param_groups + theirs.param_groups], strict=True
    ):
        torch.testing.assert_close(param, reference)


@pytest.mark.parametrize("compile", [False, True])
def test_a_load_without_memory_for_its_copies_leaves_a_whole_state(compile, monkeypatch):
    optimizer = trained(adamw(compile=compile), torch.float32, steps=3)
    saved = copy.deepcopy(trained(adamw(), torch.float32).state_dict())
    made = []

    def short_of_memory(*arguments):
        made.append(arguments)
        if len(made) > LEAVES:
            raise torch.OutOfMemoryError
        return unshared(*arguments)

    unshared = OwnMemory.unshared
    monkeypatch.setattr(OwnMemory, "unshared", short_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.load_state_dict(saved)
    monkeypatch.undo()
    for number, state in enumerate(optimizer.state.values()):
        torch.testing.assert_close(state, saved["state"][number], rtol=0, atol=0)
    optimizer.step()
    assert {int(state["step"]) for state in optimizer.state.values()} == {2}


# Plans.


@pytest.mark.parametrize("compile", [False, True])
def test_the_step_after_a_load_uses_the_plan_of_the_last_one(compile, monkeypatch):
    optimizer = trained(adamw(compile=compile), torch.float32)
    reference = torch.optim.AdamW(leaves(torch.float32))
    reference.step()
    saved = copy.deepcopy(optimizer.state_dict())
    monkeypatch.setattr(StepPlan, "__init__", lambda *_: pytest.fail("a new plan"))
    for _ in range(3):
        optimizer.load_state_dict(saved)
        reference.load_state_dict(copy.deepcopy(saved))
        optimizer.step()
        reference.step()
    for param, other in zip(optimizer.param_groups[0]["params"], reference.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(param, other)


@pytest.mark.parametrize("compile", [False, True])
def test_a_loaded_slot_in_another_order_in_memory_steps_as_ever(compile):
    runs = []
    for is_transposed in (False, True):
        optimizer = trained(adamw(compile=compile), torch.float32)
        saved = copy.deepcopy(optimizer.state_dict())
        if is_transposed:
            for entry in saved["state"].values():
                entry["exp_avg"] = entry["exp_avg"].mul(3).t().contiguous().t()
        else:
            for entry in saved["state"].values():
                entry["exp_avg"] = entry["exp_avg"].mul(3)
        optimizer.load_state_dict(saved)
        optimizer.step()
        runs.append(optimizer.param_groups[0]["params"])
    for param, other in zip(*runs, strict=True):
        torch.testing.assert_close(param, other, rtol=0, atol=0)
