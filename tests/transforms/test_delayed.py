import pytest
import torch

import gradtx
from tests.references import Transformed, problem

DOUBLE = {"dtype": torch.float64}


def updates_of(tx, *grads):
    """The updates of one leaf."""
    step = Transformed(tx)
    grads = [torch.tensor(grad, **DOUBLE) for grad in grads]
    return [step({"w": grad}, {"w": torch.zeros_like(grad)})["w"].tolist() for grad in grads]


def test_avagrad_divides_by_earlier_gradients_at_a_scale_of_the_whole_tree():
    tx = gradtx.scale_by_avagrad((0.0, 0.5), eps=1.0)
    step = Transformed(tx)
    params = {"a": torch.zeros(1, **DOUBLE), "b": torch.zeros((), **DOUBLE)}
    grads = [{"a": torch.tensor([1.0], **DOUBLE), "b": torch.tensor(3.0, **DOUBLE)}]
    grads.append({"a": torch.tensor([8.0], **DOUBLE), "b": torch.tensor(-8.0, **DOUBLE)})
    first, second = (step(g, params) for g in grads)
    assert (first["a"].item(), first["b"].item()) == (0.0, 0.0)
    # eta = 1/2, 1/4: their mean square is (1/4 + 1/16)/2
    scale = (32 / 5) ** 0.5
    assert (second["a"].item(), second["b"].item()) == pytest.approx((4 * scale, -2 * scale), rel=1e-14)


def test_the_size_of_the_steps_of_avagrad_does_not_depend_on_eps():
    for eps in (1e-3, 1.0, 1e3):
        got = updates_of(gradtx.scale_by_avagrad((0.0, 0.9), eps), [2.0], [5.0], [-3.0])
        assert [x for (x,) in got] == pytest.approx([0.0, 5.0, -3.0])  # of one entry: gamma * eta is 1


def test_the_lagged_scale_is_eps_in_the_second_step_and_then_a_step_behind():
    # v = 2 after the first gradient of 2 with beta2 = 0.5. Step 2: eta = 1/(2 + 1). Step 3: eta from v = 9 corrected by
    # 3/4, gamma from v = 2 corrected by 3/4
    got = updates_of(gradtx.scale_by_avagrad((0.0, 0.5), eps=1.0, lagged_norm=True), [2.0], [4.0], [1.0])
    expected = [0.0, 4 / 3, ((2 / 0.75) ** 0.5 + 1) / ((9 / 0.75) ** 0.5 + 1)]
    assert [x for (x,) in got] == pytest.approx(expected, rel=1e-14)


def test_only_the_lagged_form_keeps_a_scale():
    assert "gamma" not in gradtx.scale_by_avagrad().init(problem())["scale_by_avagrad"]
    assert gradtx.scale_by_avagrad(lagged_norm=True).init(problem())["scale_by_avagrad"]["gamma"].dtype == torch.float64


def test_avagrad_without_eps_is_finite_where_there_were_gradients():
    got = updates_of(gradtx.scale_by_avagrad((0.0, 0.5), eps=0.0), [3.0, 4.0], [3.0, 4.0])
    assert got == [[0.0, 0.0], [pytest.approx(24 / 50**0.5), pytest.approx(24 / 50**0.5)]]


def test_a_leaf_without_gradient_is_in_neither_part_of_the_mean():
    params = {"a": torch.ones(2, **DOUBLE), "b": torch.ones(1000, **DOUBLE)}
    grads = {"a": torch.tensor([1.0, 3.0], **DOUBLE), "b": None}
    tx = gradtx.scale_by_avagrad()
    both, alone = Transformed(tx), Transformed(tx)
    for _ in range(3):
        update = both(grads, params)
        assert torch.equal(update["a"], alone({"a": grads["a"]}, {"a": params["a"]})["a"])


def test_the_window_keeps_the_last_gradients_newest_first():
    step = Transformed(gradtx.scale_by_adashift(keep_num=3))
    for t in range(1, 6):
        step({"w": torch.tensor([float(t)])}, {"w": torch.zeros(1)})
    kept = step.state["scale_by_adashift"]
    assert sorted(kept) == ["exp_avg_sq", "grad_0", "grad_1", "grad_2"]
    assert [kept[f"grad_{i}"]["w"].item() for i in range(3)] == [5.0, 4.0, 3.0]


@pytest.mark.parametrize("reduce", ["max", "mean", "none"])
def test_gradients_that_start_with_zeros_give_zero_not_a_quotient_by_nothing(reduce):
    tx = gradtx.scale_by_adashift(keep_num=1, eps=0.0, reduce=reduce)
    got = updates_of(tx, [0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [2.0, 4.0])
    assert got[:3] == [[0.0, 0.0]] * 3
    assert all(0 < x < 100 for x in got[3])


@pytest.mark.parametrize(("reduce", "shape"), [("max", ()), ("mean", ()), ("none", (4, 3))])
def test_the_average_of_adashift_is_one_number_a_leaf_if_it_is_reduced(reduce, shape):
    kept = gradtx.scale_by_adashift(reduce=reduce).init(problem())["scale_by_adashift"]["exp_avg_sq"]
    assert kept["matrix"].shape == shape
    assert kept["matrix"].dtype == torch.float64


def test_an_unknown_reduction_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"^scale_by_adashift: reduce must be 'max', 'mean' or 'none', got 'median'$"):
        gradtx.scale_by_adashift(reduce="median")
