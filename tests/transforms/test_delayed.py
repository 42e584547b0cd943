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
