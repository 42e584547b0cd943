import math

import pytest
import torch

import gradtx
from gradtx.maths.entries import atan2 as atan2_of
from tests.references import Loop, caution_weights, first_update, follows

RISING = gradtx.linear_schedule(0.99, start_factor=0.5, total_iters=20)


def cautious_momentum(s, t, g, p, factor):
    s.b = 0.9 * s.b + g
    s.seen.update((s.b * g > 0).flatten().tolist())
    return s.b * caution_weights(s.b, g, factor)


@pytest.mark.parametrize("factor", [0.0, 0.4, RISING], ids=str)
def test_scale_by_caution_compares_with_the_gradient_before_all_links(factor):
    reference = Loop(cautious_momentum, factor=factor)
    follows(gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_caution(factor)), reference, -0.05)
    assert reference.seen == {True, False}


def test_a_literal_factor_of_one_leaves_caution_out():
    follows(gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_caution(1.0)), gradtx.trace(0.9), -0.05, tolerance=0.0)


def orthogonalized(s, t, g, p, beta=0.9):
    result = g
    if t > 1:
        u = s.e / max(s.e.norm().item(), 1e-12)
        result = g - (g * u).sum() * u
    s.e = beta * s.e + (1 - beta) * g
    return result


@pytest.mark.parametrize("options", [{}, {"beta": 0.0}, {"beta": 0.5}, {"beta": RISING}], ids=str)
def test_orthogonalize_against_ema_follows_the_loop(options):
    follows(gradtx.orthogonalize_against_ema(**options), Loop(orthogonalized, **options), -0.1)


def test_a_leaf_of_one_entry_gets_zero_from_the_second_step_on():
    assert [first_update(gradtx.orthogonalize_against_ema(), 0.7, steps=n) for n in (1, 2, 3)] == [0.7, 0.0, 0.0]


def test_the_part_along_earlier_gradients_of_a_float32_leaf_is_taken_out_in_float64():
    first = torch.tensor([0.1, 0.2, 0.3])
    second = first + torch.tensor([1e-5, 0.0, -1e-5])
    tx = gradtx.orthogonalize_against_ema(0.5)
    _, state = tx.update({"w": first}, tx.init({"w": torch.zeros(3)}))
    updates, _ = tx.update({"w": second}, state)
    u, g = torch.nn.functional.normalize(first.double(), dim=0), second.double()
    assert torch.equal(updates["w"], (g - (g * u).sum() * u).float())


def test_where_no_entry_agrees_a_zero_factor_gives_zero_and_another_one_nothing_at_all():
    against = [gradtx.chain(gradtx.scale(-1.0), gradtx.scale_by_caution(factor)) for factor in (0.0, 0.3)]
    assert [first_update(tx, [1.0, 2.0]) for tx in against] == [[0.0, 0.0], [-1.0, -2.0]]


def test_an_entry_of_zero_counts_as_disagreeing():
    assert first_update(gradtx.scale_by_caution(0.5), [0.0, 2.0]) == pytest.approx([0.0, 8 / 3])  # 2 / 0.75


def test_signs_agree_even_where_their_product_underflows():
    assert first_update(gradtx.scale_by_caution(0.0), [1e-200, -1e-200]) == [1e-200, -1e-200]


def test_a_gradient_whose_square_underflows_gives_a_quarter_turn_with_its_sign():
    # as atan2(g, 0)
    assert first_update(gradtx.scale_by_atan2(a=1.0), [1e-200, -1e-200]) == pytest.approx([math.pi / 2, -math.pi / 2])


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch.func.jvp's
@pytest.mark.parametrize("gradient", [0.0, 1e-30, 1e-40], ids=str)
def test_derivatives_are_finite_at_zero_and_where_squares_underflow(gradient):
    tx = gradtx.scale_by_atan2()
    state = tx.init({"w": torch.zeros(())})

    def direction(gradient):
        return tx.update({"w": gradient}, state)[0]["w"]

    at = torch.tensor(gradient)
    assert torch.func.grad(direction)(at).isfinite()
    _, tangent = torch.func.jvp(direction, (at,), (torch.ones(()),))
    assert tangent.isfinite()


def test_values_are_those_of_torch_atan2_whether_or_not_a_derivative_is_taken():
    y, x = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).pow(9)
    x = torch.cat([x.abs(), torch.zeros(2)])
    y = torch.cat([y, torch.tensor([1.0, 0.0])])
    values = [atan2_of(y.clone().requires_grad_(), x)]
    with torch.no_grad():
        values.append(atan2_of(y, x))
    assert values[0].requires_grad
    for value in values:
        assert torch.equal(value, torch.atan2(y, x))
