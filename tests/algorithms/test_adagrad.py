import pytest
import torch

import gradtx
from tests.algorithms.loops import with_decay
from tests.algorithms.shared_with_torch import SHARED
from tests.references import BETA, DECAY, RATE, WeightsLoop, first_update, follows, named


def adagrad(
    s, t, g, p, lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10,
    decoupled_weight_decay=False,
):  # fmt: skip
    def direction(s, t, g, p):
        s.total = (initial_accumulator_value if t == 1 else s.total) + g**2
        return g / (s.total.sqrt() + eps)

    rate = lr / (1 + (t - 1) * lr_decay)
    return with_decay(direction)(s, t, g, p, rate, weight_decay, decoupled_weight_decay)


DECOUPLED = {"weight_decay": 0.2, "decoupled_weight_decay": True}
OPTIONS = [
    *((gradtx.adagrad, adagrad, options) for options in SHARED["Adagrad"]),
    (gradtx.adagrad, adagrad, {"lr": 0.1, "lr_decay": 0.5, **DECOUPLED}),
    (gradtx.adagrad, adagrad, {"lr": RATE, "lr_decay": DECAY, "weight_decay": DECAY, "eps": BETA}),
]


@pytest.mark.parametrize(("alias", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(alias, rule, options):
    follows(alias(**options), WeightsLoop(rule, **options))


def test_decoupled_decay_of_adagrad_falls_with_its_rate():
    tx = gradtx.adagrad(lr=1.0, lr_decay=1.0, weight_decay=0.5, decoupled_weight_decay=True)
    assert [first_update(tx, [0.0], [4.0], steps=n) for n in (1, 2, 3, 4)] == [[-2.0], [-1.0], [-2 / 3], [-0.5]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_initial_value_has_the_dtype_of_its_slot_also_if_it_is_a_tensor_or_the_leaf_is_0d(dtype):
    value = torch.tensor(0.5, dtype=torch.float64)
    for tx, of_slot in (
        (gradtx.scale_by_rss(initial_accumulator_value=value), torch.float32),  # a sum, to which little is added
        (gradtx.scale_by_rms(initial_accumulator_value=value), torch.float32 if dtype == torch.float16 else dtype),
    ):
        state = tx.init({"w": torch.zeros(2, dtype=dtype), "s": torch.zeros((), dtype=dtype)})
        (slots,) = (entry for key, entry in state.items() if key != "step")
        (slot,) = slots.values()
        assert {value.dtype for value in slot.values()} == {of_slot}
