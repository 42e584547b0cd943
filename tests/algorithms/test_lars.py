import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, LONG, RATE


def lars(
    s, t, g, p, lr=1.0, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False, trust_coefficient=0.001,
    eps=1e-8, trust_clip=False, min_ndim=0,
):  # fmt: skip
    d = g
    if p.ndim >= min_ndim:
        ratio = (trust_coefficient * p.norm() / (g.norm() + weight_decay * p.norm() + eps)).item()
        if trust_clip:
            s.seen.add(ratio > lr)
            ratio = min(ratio / lr, 1.0)
        d = ratio * (g + weight_decay * p)
    if momentum == 0:
        return p - lr * d
    s.b = d if t == 1 else momentum * s.b + (1 - dampening) * d
    return p - lr * (d + momentum * s.b if nesterov else s.b)


OPTIONS = [
    (gradtx.lars, lars, {}),
    (gradtx.lars, lars, {"lr": 0.5, "weight_decay": 0.3, "trust_coefficient": 0.05, "eps": 0.1, "dampening": 0.3}),
    (gradtx.lars, lars, {"lr": 0.5, "weight_decay": 0.3, "trust_coefficient": 0.05, "momentum": 0.0, "eps": 0.0}),
    (gradtx.lars, lars, {"lr": 0.5, "weight_decay": 0.3, "trust_coefficient": 0.05, "nesterov": True, "min_ndim": 2}),
    (gradtx.lars, lars, {"lr": 0.2, "weight_decay": 0.3, "trust_coefficient": 0.1, "trust_clip": True}),
    (gradtx.lars, lars, {"lr": RATE, "momentum": BETA, "weight_decay": DECAY, "trust_clip": True, "min_ndim": 1}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


@pytest.mark.parametrize(
    ("rule", "options", "seen"),
    [(lars, {"lr": 0.2, "weight_decay": 0.3, "trust_coefficient": 0.1, "trust_clip": True}, {True, False})],
    ids=ref.named,
)
def test_the_options_above_take_both_branches(rule, options, seen):
    loop = ref.WeightsLoop(rule, **options)
    ref.run(loop, steps=LONG)
    assert loop.seen == seen


# Errors.


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"dampening": 0.1}], ids=str)
def test_lars_with_nesterov_but_without_momentum_or_with_dampening_is_an_error(options):
    with pytest.raises(ValueError, match=r"^lars: .*nesterov needs a momentum above 0 and a dampening of 0$"):
        gradtx.lars(nesterov=True, **options)


def test_a_ratio_clipped_by_the_rate_needs_the_rate():
    with pytest.raises(ValueError, match=r"^scale_by_lars: trust_clip needs lr; pass the rate used by"):
        gradtx.scale_by_lars(trust_clip=True)


@pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
@pytest.mark.parametrize("shape", [(), (1,), (3,)], ids=str)
@pytest.mark.parametrize("size", [1e-25, 1e-15])
def test_a_square_that_underflows_does_so_in_a_leaf_of_one_entry_too(size, shape, compile):
    tx = gradtx.chain(gradtx.scale_by_lars(eps=0.0), gradtx.scale_by_learning_rate(1.0))
    gradient, weights = {"w": torch.full(shape, size)}, {"w": torch.zeros(shape) + 1e-3}
    with gradtx.eagerly():
        expected, _ = tx.update(gradient, tx.init(weights), weights)
    param = torch.nn.Parameter(weights["w"].clone())
    optimizer = gradtx.as_optimizer(tx, [("w", param)], compile=compile)
    param.grad = gradient["w"].clone()
    optimizer.step()
    torch.testing.assert_close(param.detach(), gradtx.apply_updates(weights, expected)["w"], rtol=1e-6, atol=0.0)
