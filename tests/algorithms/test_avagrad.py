import math

import pytest
import torch

import gradtx
from tests.algorithms.loops import step_along_cosines, updates_of, weights
from tests.references import BETA, DECAY, RATE, Transformed, TreeLoop, follows, named, problem


def avagrad(
    s, t, g, p, lr=0.1, betas=(0.9, 0.999), eps=0.1, weight_decay=0.0, decoupled_weight_decay=False,
    lagged_norm=False,
):  # fmt: skip
    b1, b2 = betas
    d = sum(x.numel() for x in g.values())

    def scale(v, t):
        """gamma from the v of all leaves, corrected as that of step t."""
        total = sum(((1 / ((v[name] / (1 - b2**t)).sqrt() + eps)) ** 2).sum().item() for name in g)
        return 1 / math.sqrt(total / d)

    old = {name: s[name].v + 0 * g[name] for name in g}
    new = dict(p)
    for name in g:
        u = g[name] if decoupled_weight_decay else g[name] + weight_decay * p[name]
        s[name].m = b1 * s[name].m + (1 - b1) * u
        s[name].v = b2 * s[name].v + (1 - b2) * u**2
        if t >= 2:
            gamma = s[""].gamma if lagged_norm else scale(old, t - 1)
            eta = 1 / ((old[name] / (1 - b2 ** (t - 1))).sqrt() + eps)
            new[name] = p[name] - lr * gamma * eta * s[name].m / (1 - b1**t)
            if decoupled_weight_decay:
                new[name] = new[name] - lr * weight_decay * p[name]
    s[""].gamma = scale(old, t)
    return new


OPTIONS = [
    (gradtx.avagrad, avagrad, {}),
    (gradtx.avagrad, avagrad, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    (gradtx.avagrad, avagrad, {"lr": 0.02, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    (gradtx.avagrad, avagrad, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.3, "lagged_norm": True}),
    (gradtx.avagrad, avagrad, {"weight_decay": 0.2, "decoupled_weight_decay": True, "lagged_norm": True}),
    (gradtx.avagrad, avagrad, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}),
    (gradtx.avagrad, avagrad, {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY, "lagged_norm": True}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), TreeLoop(rule, **options))


@pytest.mark.slow
def test_avagrad_has_one_scale_for_all_parameter_groups():
    together, apart = weights(), weights()
    one = gradtx.optim.AvaGrad(together, lr=0.1)
    two = gradtx.optim.AvaGrad([{"params": apart[:1]}, {"params": apart[1:]}], lr=0.1)
    for t in range(5):
        step_along_cosines(one, together, t)
        step_along_cosines(two, apart, t)
    for first, second in zip(together, apart, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-13, atol=0)


@pytest.mark.slow
def test_groups_of_avagrad_must_agree_on_the_kind_of_scale():
    params = weights()
    optimizer = gradtx.optim.AvaGrad([{"params": params[:1], "lagged_norm": True}, {"params": params[1:]}])
    with pytest.raises(ValueError, match="lagged_norm must agree across groups"):
        step_along_cosines(optimizer, params, 0)


def test_a_parameter_without_gradient_does_not_count_in_the_mean_of_avagrad():
    params, alone = weights(2), weights(1)
    both, one = gradtx.optim.AvaGrad(params), gradtx.optim.AvaGrad(alone)
    for t in range(3):
        params[1].grad = None
        step_along_cosines(both, params[:1], t)
        step_along_cosines(one, alone, t)
    assert torch.equal(params[0], alone[0])


def test_a_parameter_in_its_first_step_does_not_count_in_the_mean_of_avagrad_either():
    params, alone = weights(2), weights(1)
    both, one = gradtx.optim.AvaGrad(params), gradtx.optim.AvaGrad(alone)
    late = params[1].detach().clone()
    for t in range(3):
        params[1].grad = None
        step_along_cosines(both, params[: 2 if t == 2 else 1], t)
        step_along_cosines(one, alone, t)
    assert torch.equal(params[0], alone[0])
    assert torch.equal(params[1], late)


DOUBLE = {"dtype": torch.float64}


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
