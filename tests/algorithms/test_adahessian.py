import pytest
import torch

import gradtx
from tests.algorithms.hessians import RISING, diagonal, with_hessian
from tests.references import RATE, WeightsLoop, follows, named


def hessian(s, t, g, p, betas=(0.9, 0.999), eps=1e-4, hessian_power=1.0, update_period=1, spatial_average=True):
    b1, b2 = betas
    if (t - 1) % update_period == 0:
        s.d = diagonal(p, t)
        if spatial_average:
            s.d = s.d.abs()
            if p.ndim > 2:
                s.d = s.d.flatten(2).mean(dim=2).reshape(*p.shape[:2], *[1] * (p.ndim - 2)) + 0 * p
    s.m = b1 * s.m + (1 - b1) * g
    s.v = b2 * s.v + (1 - b2) * s.d * s.d
    return s.m / (1 - b1**t) / ((s.v / (1 - b2**t)) ** (hessian_power / 2) + eps)


def adahessian(
    s, t, g, p, lr=0.15, betas=(0.9, 0.999), eps=1e-4, weight_decay=0.0, hessian_power=1.0, update_period=1,
    spatial_average=True,
):  # fmt: skip
    return p - lr * (hessian(s, t, g, p, betas, eps, hessian_power, update_period, spatial_average) + weight_decay * p)


OPTIONS = [
    (gradtx.adahessian, adahessian, {}),
    (gradtx.adahessian, adahessian, {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.2, "hessian_power": 0.5}),
    (gradtx.adahessian, adahessian, {"lr": 0.02, "eps": 0.1, "update_period": 3, "spatial_average": False}),
    (gradtx.adahessian, adahessian, {"lr": RATE, "betas": (RISING, 0.9), "weight_decay": RISING, "update_period": 2}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    # an update of 1e-4 as the difference of two weights: 1e-12 of rounding
    follows(with_hessian(alias, options), WeightsLoop(rule, **options))


def updates_of(tx, grads, diags):
    """The updates of a leaf of numbers, with a Hessian (or None) at each step."""
    state, found = tx.init({"w": torch.zeros(len(grads[0]))}), []
    for grad, diag in zip(grads, diags, strict=True):
        given = None if diag is None else {"w": torch.tensor(diag)}
        updates, state = tx.update({"w": torch.tensor(grad)}, state, hessian_diag=given)
        found.append(updates["w"].tolist())
    return found


def test_the_average_is_over_dimensions_two_and_up_and_idempotent():
    tx = gradtx.scale_by_hessian((0.0, 0.0), eps=0.0)
    params = {"kernel": torch.zeros(2, 1, 2), "matrix": torch.zeros(1, 2)}
    grads = {name: torch.ones_like(p) for name, p in params.items()}
    diag = {"kernel": torch.tensor([[[1.0, -3.0]], [[4.0, 4.0]]]), "matrix": torch.tensor([[1.0, -4.0]])}
    averaged = {"kernel": torch.tensor([[[2.0, 2.0]], [[4.0, 4.0]]]), "matrix": torch.tensor([[1.0, 4.0]])}
    for given in (diag, averaged):
        updates, _ = tx.update(grads, tx.init(params), params, hessian_diag=given)
        for name in params:
            torch.testing.assert_close(updates[name], 1 / averaged[name])


@pytest.mark.parametrize(
    "tx",
    [
        gradtx.scale_by_hessian(),
        gradtx.scale_by_hessian(hessian_power=0.5, update_period=2),
        gradtx.scale_by_sophia(update_period=2),
    ],
    ids=str,
)
def test_zero_gradients_and_zero_hessians_give_zero_updates(tx):
    assert updates_of(tx, [[0.0, 0.0]] * 3, [[0.0, 0.0]] * 3) == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_derivatives_at_a_zero_hessian_are_finite_and_the_value_is_that_without_them(power):
    tx = gradtx.scale_by_hessian(eps=0.5, hessian_power=power)
    params, grads = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0], requires_grad=True)}
    diag = {"w": torch.zeros(2, requires_grad=True)}
    updates, _ = tx.update(grads, tx.init(params), params, hessian_diag=diag)
    with torch.no_grad():
        plain, _ = tx.update(grads, tx.init(params), params, hessian_diag=diag)
    assert torch.equal(updates["w"], plain["w"])
    assert updates["w"].tolist() == pytest.approx([1 / 1.5 if power == 0 else 2.0, 0.0])
    assert all(g.isfinite().all() for g in torch.autograd.grad(updates["w"].sum(), [grads["w"], diag["w"]]))


@pytest.mark.parametrize("make", [gradtx.scale_by_hessian, gradtx.scale_by_sophia], ids=named)
class TestErrors:
    def test_a_missing_hessian_is_an_error(self, make):
        tx = make()
        with pytest.raises(ValueError, match=rf"^{make.__name__} needs hessian_diag: call update"):
            tx.update({"w": torch.ones(1)}, tx.init({"w": torch.ones(1)}))

    def test_none_is_an_error_where_every_step_uses_a_new_one(self, make):
        tx = make(update_period=1)
        with pytest.raises(ValueError, match=rf"^{make.__name__}: hessian_diag is None, .*update_period=1"):
            tx.update({"w": torch.ones(1)}, tx.init({"w": torch.ones(1)}), hessian_diag=None)

    def test_a_period_of_zero_is_an_error(self, make):
        with pytest.raises(ValueError, match=rf"^{make.__name__}: update_period must be in \[1, inf\), got 0$"):
            make(update_period=0)

    def test_a_beta_of_one_is_an_error(self, make):
        with pytest.raises(ValueError, match=rf"^{make.__name__}: betas\[1\] must be in \[0, 1\), got 1.0$"):
            make(betas=(0.9, 1.0))
