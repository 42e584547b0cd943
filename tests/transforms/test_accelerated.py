import pytest
import torch

import gradtx
from tests.references import first_update

# AggMo.


def test_buffers_are_kept_by_place_so_that_equal_betas_have_one_each():
    params = {"w": torch.zeros(2), "s": torch.zeros(())}
    tx = gradtx.scale_by_aggmo((0.5, 0.5, 0.0))
    state = tx.init(params)
    assert list(state["scale_by_aggmo"]) == ["momentum_buffer_0", "momentum_buffer_1", "momentum_buffer_2"]
    for _ in range(2):
        updates, state = tx.update({"w": torch.ones(2), "s": torch.ones(())}, state)
    assert [slot["s"].item() for slot in state["scale_by_aggmo"].values()] == [1.5, 1.5, 1.0]
    assert updates["w"].tolist() == pytest.approx([4 / 3, 4 / 3])


def test_a_state_of_another_number_of_betas_is_refused():
    params = {"w": torch.zeros(2)}
    with pytest.raises(ValueError, match="momentum_buffer"):
        gradtx.scale_by_aggmo((0.5, 0.6)).update(params, gradtx.scale_by_aggmo((0.5,)).init(params))


# PID.


def test_a_literal_momentum_of_zero_is_plain_descent_and_a_tensor_follows_the_formula():
    off, on = gradtx.scale_by_pid(0.0), gradtx.scale_by_pid(torch.tensor(0.0))
    assert off.init({"w": torch.zeros(1)}).keys() <= {"step"}
    assert first_update(off, [2.0]) == [2.0]
    assert first_update(on, [2.0]) == [12.0]  # 2 + 5 * 2


# Gravity.


def starts(seed=0, names=("w",), shape=(200, 500), **options):
    state = gradtx.scale_by_gravity(**{"lr": 0.2, "alpha": 0.05, "seed": seed, **options}).init(
        {name: torch.zeros(shape, dtype=torch.float64) for name in names}
    )
    return state["scale_by_gravity"]["v"]


def test_the_first_velocity_is_normal_with_a_deviation_of_alpha_over_lr():
    z = starts()["w"].flatten() / 0.25
    n = z.numel()
    # four deviations of each estimate: of the mean 1, of the square 2, of the fourth power 96, of |z| < 1 0.216
    assert z.mean().abs() < 4 / n**0.5
    assert (z.square().mean() - 1).abs() < 4 * (2 / n) ** 0.5
    assert (z.pow(4).mean() - 3).abs() < 4 * (96 / n) ** 0.5
    assert ((z.abs() < 1).double().mean() - 0.6826895).abs() < 4 * (0.2166 / n) ** 0.5


def test_it_follows_from_seed_and_leaf_name_and_never_from_torchs_generator():
    before = torch.get_rng_state()
    first, again = starts(names=("a", "b")), starts(names=("b", "a"))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["a"], again["a"])
    assert torch.equal(first["b"], again["b"])
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], starts(seed=1, names=("a",))["a"])


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0), gradtx.Schedule(lambda step: 0.1 * step)], ids=str)
def test_at_an_initial_rate_of_zero_there_is_no_initial_velocity(lr):
    assert gradtx.scale_by_gravity(lr).init({"w": torch.zeros(2)})["scale_by_gravity"]["v"]["w"].tolist() == [0.0, 0.0]


def test_gradients_whose_square_overflows_are_bent_to_zero():
    tx = gradtx.scale_by_gravity(0.1, alpha=0.0)
    updates, _ = tx.update({"w": torch.tensor([1e30, -2.0])}, tx.init({"w": torch.zeros(2)}))
    assert updates["w"].tolist() == [0.0, 0.0]
