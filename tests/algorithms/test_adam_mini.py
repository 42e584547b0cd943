import math

import pytest
import torch

import gradtx
from tests import references as ref
from tests.references import BETA, DECAY, RATE


def adam_mini(s, t, g, p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, block="row"):
    b1, b2 = betas
    if block == "tensor" or (g.ndim < 2 and block == "row"):
        blocks = [slice(None)]
    else:
        n = g.shape[0] if block == "row" else block
        size = g.shape[0] // n if g.ndim else 1
        blocks = [slice(i * size, (i + 1) * size) for i in range(n)]
    s.m = b1 * s.m + (1 - b1) * g
    s.v = s.v or [0.0] * len(blocks)
    d = torch.empty_like(g)
    for i, rows in enumerate(blocks):
        part = (lambda x, rows=rows: x) if g.ndim == 0 else (lambda x, rows=rows: x[rows])
        s.v[i] = b2 * s.v[i] + (1 - b2) * part(g).square().mean().item()
        scaled = part(s.m) / (1 - b1**t) / (math.sqrt(s.v[i] / (1 - b2**t)) + eps)
        if g.ndim:
            d[rows] = scaled
        else:
            d = scaled
    return p - lr * (d + weight_decay * p)


SOME = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 0.05, "weight_decay": 0.3}
SCHEDULED = {"lr": RATE, "betas": (BETA, BETA), "weight_decay": DECAY}
OPTIONS = [
    *((gradtx.adam_mini, adam_mini, options, set()) for options in ({}, SOME, SCHEDULED)),
    (gradtx.adam_mini, adam_mini, {**SOME, "block": "tensor"}, set()),
    (gradtx.adam_mini, adam_mini, {**SOME, "block": 1}, set()),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "rule", "options", "seen"), OPTIONS, ids=ref.named)
def test_the_weights_follow_the_loop(alias, rule, options, seen):
    reference = ref.WeightsLoop(rule, **options)
    ref.follows(alias(**options), reference)
    assert reference.seen >= seen


def test_adam_mini_of_four_heads_follows_the_loop_on_leaves_that_they_divide():
    options = {**SOME, "block": 4}
    tx, loop = ref.Transformed(gradtx.adam_mini(**options)), ref.WeightsLoop(adam_mini, **options)
    generator = torch.Generator().manual_seed(0)
    shapes = {"heads": (8, 3), "kernel": (4, 2, 2, 2), "vector": (12,)}
    params = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    for _ in range(30):
        grads = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in params.items()}
        updates, expected = tx(grads, params), loop(grads, params)
        for name, update in updates.items():
            torch.testing.assert_close(update, expected[name], rtol=1e-10, atol=0)
        params = {name: p + updates[name] for name, p in params.items()}


def test_blocks_that_do_not_divide_a_leaf_are_an_error_that_names_it():
    message = (
        "^scale_by_block_adam: leaf 'head.weight' has 6 entries along dimension 0, "
        "which is not divisible into 4 blocks; use partition"
    )
    with pytest.raises(ValueError, match=message):
        gradtx.adam_mini(block=4).init({"head": {"weight": torch.zeros(6, 2)}, "w": torch.zeros(8, 2)})
    with pytest.raises(ValueError, match="leaf 'scalar' has 1 entries"):
        gradtx.adam_mini(block=2).init({"scalar": torch.zeros(())})


def test_blocks_have_one_entry_each():
    params = {"w": torch.zeros(8, 2), "b": torch.zeros(8)}

    def shapes(block):
        slots = gradtx.scale_by_block_adam(block=block).init(params)["scale_by_block_adam"]["vmean"]
        return {name: tuple(value.shape) for name, value in slots.items()}

    assert shapes("row") == {"w": (8,), "b": (1,)}
    assert shapes("tensor") == {"w": (1,), "b": (1,)}
    assert shapes(4) == {"w": (4,), "b": (4,)}
