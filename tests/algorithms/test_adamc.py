import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, PUBLISHED, RATE


def adamc(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, max_lr=None):
    ref.adam_moments(s, t, g, betas)
    s.top = torch.maximum(s.top + 0 * s.v, s.v)
    v = (s.top if amsgrad else s.v) / (1 - betas[1] ** t)
    s.peak = max(s.peak, lr)
    peak = s.peak if max_lr is None else max_lr
    decay = lr**2 / peak * weight_decay if peak else 0.0
    return p - lr * s.m / (1 - betas[0] ** t) / (v.sqrt() + eps) - decay * p


SOME = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.3}
SCHEDULED = {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}
OPTIONS = [
    *((gradtx.adamc, adamc, options, set()) for options in ({}, SOME, SCHEDULED)),
    (gradtx.adamc, adamc, {"lr": RATE, "weight_decay": 0.5, "max_lr": 0.07}, set()),
    (gradtx.adamc, adamc, {"lr": RATE, "weight_decay": 0.5}, set()),
    (gradtx.adamc, adamc, {"lr": gradtx.warmup_cosine_schedule(20, 0.05, warmup_steps=8), "weight_decay": 0.5}, set()),
    (gradtx.adamc, adamc, {"lr": RATE, "max_lr": RATE, "betas": (0.8, 0.7), "amsgrad": True}, set()),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options", "seen"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options, seen):
    reference = ref.WeightsLoop(rule, **options)
    ref.follows(alias(**options), reference)
    assert reference.seen >= seen


class Decaying(ref.Published):
    """AdamW whose rate, and with it the decay that makes it AdamC, is written at every step."""

    def __init__(self, optimizer, rates, peak, weight_decay, **options):
        super().__init__(optimizer, lr=1.0, weight_decay=weight_decay, **options)
        self.rates, self.peak, self.weight_decay = iter(rates), peak, weight_decay

    def advance(self):
        rate = next(self.rates)
        self.optimizer.param_groups[0].update(lr=rate, weight_decay=self.weight_decay * rate / self.peak)
        super().advance()


def test_adamc_is_adamw_with_the_decay_written_at_every_step():
    rates = [RATE(t) for t in range(40)]
    published = Decaying(torch.optim.AdamW, rates, max(rates), 0.5)
    ref.weights_follow(gradtx.adamc(lr=RATE, weight_decay=0.5), published, tolerance=PUBLISHED)
    ref.follows(gradtx.adamc(lr=0.05, weight_decay=0.5), gradtx.adamw(lr=0.05, weight_decay=0.5))
