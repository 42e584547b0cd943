import functools

import pytest
import torch

import gradtx

# Loops and published code: tests/optimizers/test_layerwise.py.


@pytest.mark.parametrize(
    ("slot", "shape", "expected"),
    [
        ("scalar", (3, 4), ()),
        ("scalar", (5,), ()),
        ("rows", (3, 4), (3, 1)),
        ("rows", (2, 3, 2, 2), (2, 1, 1, 1)),
        ("rows", (5,), (5,)),
        ("rows", (), ()),
        ("full", (3, 4), (3, 4)),
    ],
    ids=str,
)
def test_slots_have_the_size_that_the_option_says(slot, shape, expected):
    state = gradtx.scale_by_amos(slot=slot).init({"w": torch.ones(shape)})["scale_by_amos"]
    assert {name: tuple(leaves["w"].shape) for name, leaves in state.items()} == {
        "exp_avg_sq": expected,
        "decay": expected,
    }
    assert state["decay"]["w"].dtype == (torch.float64 if slot == "scalar" else torch.float32)


def test_decays_run_over_a_scale_under_vmap_as_one_by_one():
    params, grads = {"w": torch.ones(3)}, {"w": torch.tensor([1.0, -2.0, 3.0])}

    def update(eta):
        tx = gradtx.scale_by_amos(lr=0.1, eta=eta)
        return tx.update(grads, tx.init(params), params)[0]["w"]

    etas = torch.tensor([0.1, 2.0], dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(update)(etas), torch.stack([update(0.1), update(2.0)]))


def test_a_slot_for_every_entry_and_one_scale_is_elementwise():
    # what the adapter asks before it runs a large leaf in parts; a scale from the shape needs the whole leaf
    elementwise = functools.partial(gradtx.scale_by_amos.spec.option, "elementwise")
    assert elementwise({"slot": "full", "eta": 0.5})
    assert not elementwise({"slot": "full", "eta": None})
    assert not elementwise({"slot": "full", "eta": len})
    assert not elementwise({"slot": "rows", "eta": 0.5})


def test_an_unknown_slot_is_refused():
    with pytest.raises(ValueError, match=r"^scale_by_amos: slot must be 'scalar', 'rows' or 'full', got 'row'$"):
        gradtx.scale_by_amos(slot="row")
