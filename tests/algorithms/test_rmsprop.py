import pytest

import gradtx
from tests.algorithms.loops import with_decay
from tests.algorithms.shared_with_torch import SHARED
from tests.optim.problems import descend, parameters
from tests.references import BETA, DECAY, RATE, WeightsLoop, follows, named


def rmsprop(
    s, t, g, p, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False, eps_in_root=False,
    initial_accumulator_value=0.0, decoupled_weight_decay=False,
):  # fmt: skip
    def direction(s, t, g, p):
        s.q = alpha * (initial_accumulator_value if t == 1 else s.q) + (1 - alpha) * g**2
        s.a = alpha * s.a + (1 - alpha) * g
        spread = s.q - s.a**2 if centered else s.q
        s.b = momentum * s.b + g / ((spread + eps).sqrt() if eps_in_root else spread.sqrt() + eps)
        return s.b

    return with_decay(direction)(s, t, g, p, lr, weight_decay, decoupled_weight_decay)


DECOUPLED = {"weight_decay": 0.2, "decoupled_weight_decay": True}
TF = {"eps_in_root": True, "initial_accumulator_value": 1.0, "alpha": 0.9, "eps": 1e-10, "momentum": 0.5}
OPTIONS = [
    *((gradtx.rmsprop, rmsprop, options) for options in SHARED["RMSprop"]),
    (gradtx.rmsprop, rmsprop, {"lr": 0.02, "momentum": 0.7, **DECOUPLED}),
    (gradtx.rmsprop, rmsprop, TF),
    (gradtx.rmsprop, rmsprop, {"lr": RATE, "alpha": BETA, "momentum": BETA, "weight_decay": DECAY, "eps": DECAY}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), WeightsLoop(rule, **options))


def test_a_literal_momentum_of_zero_keeps_no_buffer():
    for momentum, kept in ((0.0, False), (0.1, True)):
        params = parameters()
        optimizer = gradtx.optim.RMSprop(params.values(), momentum=momentum)
        descend(optimizer, params, 1)
        assert ("momentum_buffer" in optimizer.state[params["body.bias"]]) == kept
