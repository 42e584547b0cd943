"""Arguments of factories: which ranges follow from names, and how a user-defined factory replaces them."""

import pytest

import gradtx
from gradtx import Betas, Scalar
from gradtx._arguments import RANGES


def rule(**options):
    @gradtx.per_tensor(**options)
    def scale_by_all(
        lr: Scalar = 0.1,
        betas: Betas = (0.9,),
        eps: Scalar = 0.1,
        weight_decay: Scalar = 0.0,
        momentum: Scalar = 0.0,
        alpha: Scalar = 0.5,
        beta: Scalar = 0.5,
        k: int = 5,
    ):
        return lambda update, state, param, ctx: (update, state)

    return scale_by_all


def test_five_names_have_ranges():
    assert sorted(RANGES) == ["betas", "eps", "lr", "momentum", "weight_decay"]


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [
        ("lr", -1.0, "[0, inf)"),
        ("betas", (1.0,), "[0, 1)"),
        ("eps", -1.0, "[0, inf)"),
        ("weight_decay", -1.0, "[0, inf)"),
        ("momentum", -1.0, "[0, inf)"),
    ],
)
def test_a_user_defined_factory_hears_of_ranges_where_a_name_sets_one(name, value, interval):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        rule()(**{name: value})
    shown, number = (f"{name}[0]", value[0]) if isinstance(value, tuple) else (name, value)
    remedy = f"for another range pass ranges={{'{name}': '(-inf, inf)'}} to the decorator"
    assert str(error.value) == f"scale_by_all: {shown} must be in {interval}, got {number}; {remedy}"
    assert rule(ranges={name: "(-inf, inf)"})(**{name: value}).hyperparams[name] == value


def test_other_names_take_any_number_in_a_user_defined_factory():
    tx = rule()(alpha=5.0, beta=-2.0, k=-1)
    assert (tx.hyperparams["alpha"], tx.hyperparams["beta"], tx.hyperparams["k"]) == (5.0, -2.0, -1)


def test_a_range_of_the_decorator_is_an_error_without_a_remedy():
    with pytest.raises(ValueError, match=r"^scale_by_all: momentum must be in \[0, 1\), got 1.0$"):
        rule(ranges={"momentum": "[0, 1)"})(momentum=1.0)
    with pytest.raises(ValueError, match=r"^scale_by_all: alpha must be in \(0, inf\), got 0.0$"):
        rule(ranges={"alpha": "(0, inf)"})(alpha=0.0)


def test_factories_of_the_library_name_no_remedy():
    with pytest.raises(ValueError, match=r"^adamw: lr must be in \[0, inf\), got -1.0$"):
        gradtx.adamw(lr=-1.0)
