import pytest
import torch

import gradtx
from tests import references as ref
from tests.optim.problems import assert_close, assert_equal, descend, parameters, saved_and_loaded, twins
from tests.references import BETA, DECAY, RATE


def aggmo(s, t, g, p, lr, betas=(0.0, 0.9, 0.99), weight_decay=0.0):
    if t == 1:
        s.b = [0 * g for _ in betas]
    for i, beta in enumerate(betas):
        s.b[i] = beta * s.b[i] + g + weight_decay * p
    return p - lr / len(betas) * sum(s.b)


OPTIONS = [    (gradtx.aggmo, aggmo, {"lr": 0.02}),
    (gradtx.aggmo, aggmo, {"lr": 0.05, "betas": (0.3, 0.8), "weight_decay": 0.2}),
    (gradtx.aggmo, aggmo, {"lr": 0.05, "betas": (0.9,)}),
    (gradtx.aggmo, aggmo, {"lr": RATE, "betas": (BETA, 0.5, BETA, 0.0), "weight_decay": DECAY}),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options):
    ref.follows(alias(**options), ref.WeightsLoop(rule, **options))


# The number of betas is the structure of aggmo's state.


@pytest.mark.slow
def test_groups_of_aggmo_may_have_different_numbers_of_betas():
    first, second = parameters(), parameters()
    names = list(first)
    groups = [{"params": [first[n] for n in names[:2]], "betas": (0.5,)}, {"params": [first[n] for n in names[2:]]}]
    descend(gradtx.optim.AggMo(groups, lr=0.05, betas=(0.3, 0.6, 0.9, 0.0)), first, 5)
    for chosen, betas in ((names[:2], (0.5,)), (names[2:], (0.3, 0.6, 0.9, 0.0))):
        own = {n: second[n] for n in chosen}
        descend(gradtx.optim.AggMo(own.values(), lr=0.05, betas=betas), own, 5)
    assert_equal(list(first.values()), list(second.values()))


def test_betas_written_into_a_group_may_be_more_or_fewer():
    params = parameters()
    optimizer = gradtx.optim.AggMo(params.values(), lr=0.05, betas=(0.5, 0.9))
    descend(optimizer, params, 3)
    buffers = [optimizer.state[params["body.bias"]][f"momentum_buffer_{i}"].clone() for i in range(2)]
    for betas in ((0.5, 0.9, 0.99), (0.5,)):
        optimizer.param_groups[0]["betas"] = betas
        descend(optimizer, params, 1, start=3)
        state = optimizer.state[params["body.bias"]]
        assert [key for key in state if key != "step"] == [f"momentum_buffer_{i}" for i in range(len(betas))]
        gradient = params["body.bias"].grad
        buffers = [beta * b + gradient for beta, b in zip(betas, [*buffers, 0.0], strict=False)]
        assert_close([state[f"momentum_buffer_{i}"] for i in range(len(betas))], buffers, 1e-14)
    optimizer.param_groups[0]["betas"] = ()
    with pytest.raises(ValueError, match=r"^aggmo: betas must have at least one entry$"):
        descend(optimizer, params, 1)


@pytest.mark.slow
@pytest.mark.parametrize("betas", [(0.3, 0.8), (0.9,), (0.0, 0.1, 0.2, 0.3)], ids=str)
def test_a_checkpoint_of_other_betas_continues_in_an_aggmo_built_with_defaults(betas):
    params = parameters()
    optimizer = gradtx.optim.AggMo(params.values(), lr=0.05, betas=betas)
    descend(optimizer, params, 5)
    own = twins(params)
    other = gradtx.optim.AggMo(own.values(), lr=0.01)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    descend(optimizer, params, 5, start=5)
    descend(other, own, 5, start=5)
    assert_equal(list(own.values()), list(params.values()))


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
