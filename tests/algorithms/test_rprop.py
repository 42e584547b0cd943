import pytest
import torch

import gradtx
from tests.algorithms.shared_with_torch import SHARED
from tests.optim.problems import descend, parameters
from tests.references import BETA, RATE, WeightsLoop, follows, named


def rprop(s, t, g, p, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50.0)):
    if t == 1:
        s.size, s.last = torch.full_like(p, lr), torch.zeros_like(p)
    a = torch.sign(g) * torch.sign(s.last)
    factor = torch.ones_like(p)
    factor[a > 0], factor[a < 0] = etas[1], etas[0]
    s.size = (s.size * factor).clamp(*step_sizes)
    s.last = torch.where(a < 0, torch.zeros_like(g), g)
    return p - torch.sign(s.last) * s.size


OPTIONS = [
    *((gradtx.rprop, rprop, options) for options in SHARED["Rprop"]),
    (gradtx.rprop, rprop, {"lr": 0.1, "etas": (BETA, 1.2), "step_sizes": (RATE, 0.5)}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), WeightsLoop(rule, **options))


def test_a_group_is_checked_as_the_constructor_is():
    params = parameters()
    optimizer = gradtx.optim.Rprop(params.values())
    optimizer.param_groups[0]["etas"] = (0.5, 0.9)
    with pytest.raises(ValueError, match=r"^rprop: etas\[1\] must be in \(1, inf\), got 0.9$"):
        descend(optimizer, params, 1)


def steps(tx, grads, dtype=torch.float64):
    state, updates = tx.init({"w": torch.zeros(1, dtype=dtype)}), []
    for grad in grads:
        update, state = tx.update({"w": torch.tensor([grad], dtype=dtype)}, state)
        updates.append(update["w"].item())
    return updates


def test_a_product_of_gradients_that_underflows_still_has_its_sign():
    assert steps(gradtx.scale_by_rprop(1.0), [1e-30, 1e-30], torch.float32) == pytest.approx([-1.0, -1.2])
    assert steps(gradtx.scale_by_rprop(1.0), [1e-200, -1e-200]) == [-1.0, 0.0]


def test_the_state_starts_with_the_rate_in_the_dtype_of_each_leaf():
    lr = torch.tensor(0.25, dtype=torch.float64)
    params = {"w": torch.zeros(2, 2, dtype=torch.bfloat16), "s": torch.zeros((), dtype=torch.float32)}
    state = gradtx.scale_by_rprop(lr).init(params)["scale_by_rprop"]
    assert state["step_size"]["w"].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    for slot in ("prev", "step_size"):
        assert [state[slot][name].dtype for name in "ws"] == [torch.bfloat16, torch.float32]
