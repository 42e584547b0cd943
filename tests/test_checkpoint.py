"""A checkpoint continues bit for bit, is never half a file, and is refused as a whole where it does not fit."""

import os
import re
import sys

import pytest
import safetensors
import torch
from safetensors.torch import load_file

import gradtx
from tests.conformance import all_cases, assert_same, noise, untouched

SHAPES = {"head.weight": (2, 3), "body.weight": (3,), "body.scale": ()}
PARAMS = noise(0, SHAPES)


def trained(tx, steps, params=PARAMS, state=None, start=0):
    state = tx.init(params) if state is None else state
    for step in range(start, start + steps):
        updates, state = tx.update(noise(step, SHAPES), state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


CHAINS = {
    "schedule": lambda: gradtx.adamw(lr=gradtx.cosine_schedule(0.1, T_max=9), state_dtype=torch.bfloat16),
    "wrappers": lambda: gradtx.skip_nonfinite(gradtx.accumulate(gradtx.adam(lr=0.1), every=2)),
    "random": lambda: gradtx.gravity(lr=0.1),
    "members": lambda: gradtx.chain(gradtx.masked(gradtx.trace(0.9), lambda name, p: p.ndim > 0), gradtx.sgd(lr=0.1)),
    "shared": lambda: gradtx.prodigy(),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_resumed_run_continues_bit_for_bit(name, tmp_path):
    make, path = CHAINS[name], tmp_path / "run.safetensors"
    whole = trained(make(), 9)
    gradtx.save(path, *trained(make(), 4))
    params, state = gradtx.load(path, PARAMS, make().init(PARAMS))
    assert_same(trained(make(), 5, params, state, start=4), whole)


MISSED = {0: ("body.scale",), 1: (), 2: ("body.weight", "body.scale")}  # the leaves without a gradient, by step


def trained_with_gaps(tx, params, state, steps):
    for step in steps:
        grads = {name: None if name in MISSED.get(step, ()) else grad for name, grad in noise(step, SHAPES).items()}
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("template", ["calls", "leaves"])
@pytest.mark.parametrize("missing_from", [0, 2])
@pytest.mark.parametrize("name", ["plain", "wrappers"])
def test_a_run_whose_gradients_go_missing_resumes_from_every_step(name, missing_from, template, tmp_path):
    make = {**CHAINS, "plain": gradtx.adam}[name]
    first, last = missing_from, missing_from + 4
    whole, _ = trained_with_gaps(make(), PARAMS, make().init(PARAMS), range(first, last))
    for middle in range(first, last):
        gradtx.save(tmp_path / "run", *trained_with_gaps(make(), PARAMS, make().init(PARAMS), range(first, middle)))
        params, state = gradtx.load(tmp_path / "run", PARAMS, make().init(PARAMS, counts=template))
        assert_same(trained_with_gaps(make(), params, state, range(middle, last))[0], whole)


def test_states_before_and_after_a_missing_gradient_fill_each_other(tmp_path):
    tx, path = gradtx.adam(), tmp_path / "run"
    early, late = (trained_with_gaps(tx, PARAMS, tx.init(PARAMS), range(1, last)) for last in (2, 4))
    gradtx.save(path, *early)
    _, state = gradtx.load(path, *late)
    assert {name: int(count) for name, count in state["leaf_steps"].items()} == dict.fromkeys(SHAPES, 1)
    gradtx.save(path, *late)
    assert_same(gradtx.load(path, *early), late)


@pytest.mark.slow
def test_the_state_of_everything_comes_back_bit_for_bit(tmp_path):
    params = {str(case).replace(".", "_"): case.noise() for case in all_cases()}
    states = {str(case).replace(".", "_"): case.make().init(case.noise()) for case in all_cases()}
    gradtx.save(tmp_path / "run", params, states)
    assert_same(gradtx.load(tmp_path / "run", params, states), (params, states))


def test_entries_have_flat_names_that_any_reader_of_the_format_sees(tmp_path):
    params, state = trained(gradtx.sgd(lr=0.1, momentum=0.9), 2)
    gradtx.save(tmp_path / "run.safetensors", {"net": params, "none": None}, state)
    found = load_file(tmp_path / "run.safetensors")
    slots = {f"state.trace.momentum_buffer.{name}": value for name, value in state["trace"]["momentum_buffer"].items()}
    entries = {**{f"params.net.{name}": p for name, p in params.items()}, **slots, "state.step": state["step"]}
    assert {name: value.tolist() for name, value in found.items()} == {k: v.tolist() for k, v in entries.items()}
    with safetensors.safe_open(tmp_path / "run.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape_comes_back_bit_for_bit(dtype, tmp_path):
    drawn = noise(0, {"matrix": (3, 4), "scalar": (), "empty": (0,), "hollow": (2, 0)})
    tree = {name: (100 * value).to(dtype) for name, value in drawn.items()}
    if dtype.is_floating_point:
        tree["odd"] = torch.tensor([float("nan"), -0.0, float("inf"), 5e-324], dtype=dtype)
    gradtx.save(tmp_path / "run", tree["matrix"], tree)  # parameters may be one tensor
    blank = {name: torch.zeros_like(value) for name, value in tree.items()}
    assert_same(gradtx.load(tmp_path / "run", blank["matrix"], blank), (tree["matrix"], tree))


def test_conjugated_and_negated_views_are_saved_as_they_are_read(tmp_path):
    complex_view = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj()
    params = {"conjugated": complex_view, "negated": complex_view.imag}
    gradtx.save(tmp_path / "run", params, {})
    loaded, _ = gradtx.load(tmp_path / "run", params, {})
    assert all(torch.equal(loaded[name], params[name]) for name in params)


def test_leaves_of_a_network_are_saved_as_plain_values(tmp_path):
    params = dict(torch.nn.Linear(2, 3).named_parameters())
    gradtx.save(tmp_path / "run", params, {})
    found, state = gradtx.load(tmp_path / "run", params, {})
    assert {name: value.tolist() for name, value in found.items()} == {k: v.tolist() for k, v in params.items()}
    assert not any(value.requires_grad for value in found.values())
    assert state == {}


# Failures.


def fails(*args, **kwargs):
    raise OSError("no space left on device")


@pytest.mark.parametrize("step", ["write", "sync", "move"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(step, tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    params, state = trained(gradtx.adam(), 1)
    gradtx.save(path, params, state)

    def half(tensors, filename, metadata):
        filename.write_bytes(b"half a file")
        fails()

    target, name, broken = {
        "write": (safetensors.torch, "save_file", half),
        "sync": (os, "fsync", fails),
        "move": (os, "replace", fails),
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, broken)
        with pytest.raises(OSError, match="no space left"):
            gradtx.save(path, *trained(gradtx.adam(), 2))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert_same(gradtx.load(path, params, state), (params, state))


def test_saving_and_loading_change_nothing_that_is_given(tmp_path):
    params, state = trained(gradtx.adam(), 1)
    with untouched(params, state):
        gradtx.save(tmp_path / "run", params, state)
        later = trained(gradtx.adam(), 2)
        gradtx.save(tmp_path / "run", *later)
        found = gradtx.load(tmp_path / "run", params, state)
    assert_same(found, later)
    (tmp_path / "run").write_bytes(b"")
    assert_same(found, later)  # the file may go


def test_a_file_of_another_chain_is_one_error_that_names_what_differs(tmp_path):
    params, state = trained(gradtx.sgd(lr=0.1, momentum=0.9), 1)
    gradtx.save(tmp_path / "run", {**params, "body.scale": torch.ones(2), "extra": torch.ones(1)}, state)
    wanted = gradtx.adam(state_dtype=torch.float32).init(PARAMS)
    with (
        untouched(PARAMS, wanted),
        pytest.raises(ValueError, match="does not match these params and this state") as error,
    ):
        gradtx.load(tmp_path / "run", PARAMS, wanted)
    text = str(error.value)
    missing = [f"'state.scale_by_adam.exp_avg.{name}'" for name in SHAPES]
    assert f"missing: {', '.join(missing)} and 3 more" in text
    assert "unknown: 'params.extra', 'state.trace.momentum_buffer.body.scale'" in text
    assert "different: 'params.body.scale' is torch.float32 (2,) on cpu, needs torch.float64 () on cpu" in text


def test_another_dtype_is_no_fit(tmp_path):
    gradtx.save(tmp_path / "run", PARAMS, {})
    half = {name: p.half() for name, p in PARAMS.items()}
    with pytest.raises(ValueError, match=r"'params.head.weight' is torch.float64 .*, needs torch.float16"):
        gradtx.load(tmp_path / "run", half, {})


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_that_is_cut_short_or_foreign_is_no_whole_file(keep, tmp_path):
    path = tmp_path / "run"
    params, state = trained(gradtx.adam(), 1)
    gradtx.save(path, params, state)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"load: '.*run' is not a complete safetensors file \("):
        gradtx.load(path, params, state)
    torch.save(params, path)
    with pytest.raises(ValueError, match=r"load: '.*run' is not a complete safetensors file \("):
        gradtx.load(path, params, state)


def test_places_that_are_not_there_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"load: file {str(tmp_path / 'run')!r}")):
        gradtx.load(tmp_path / "run", PARAMS, {})
    with pytest.raises(FileNotFoundError, match=r"save: folder '.*new'"):
        gradtx.save(tmp_path / "new" / "run", PARAMS, {})


def test_leaves_without_values_and_other_leaves_are_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match=r"save: leaf 'state.count' is a int, needs a tensor or None"):
        gradtx.save(tmp_path / "run", PARAMS, {"count": 1})
    with pytest.raises(TypeError, match=r"save: the values of 'params.w' cannot be read"):
        gradtx.save(tmp_path / "run", {"w": torch.empty(2, device="meta")}, {})

    def inside(value):
        gradtx.save(tmp_path / "run", {"w": value}, {})
        return value

    with pytest.raises(TypeError, match=r"save: the values of 'params.w' cannot be read: .*inside a transform"):
        torch.vmap(inside)(torch.ones(2))
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (gradtx.save, gradtx.load):
        with pytest.raises(ImportError, match=r"needs the package safetensors: pip install safetensors"):
            call(tmp_path / "run", PARAMS, {})
