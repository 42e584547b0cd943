import pytest
import torch

import gradtx
from tests.tiers import by_day

ROLES = {
    "q.*": ("layer", "query"), "k.weight": ("keys", "key"), "qr.*": ("layer", "query_rotary"),
    "kr.*": ("keys", "key_rotary"),
}  # fmt: skip


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tree(seed=0):
    shapes = {"q.weight": (6, 4), "q.bias": (6,), "k.weight": (4, 4), "qr.weight": (3, 2), "kr.weight": (2, 2)}
    shapes["o"] = (4, 6)
    return {name: normal(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


def clipped(p, S, tau, power):
    p = p.clone()
    rows = p.shape[0] // len(S)
    for h, s in enumerate(S.tolist()):
        p[h * rows : (h + 1) * rows] *= (tau / max(s, tau)) ** power
    return p


@pytest.mark.parametrize(("tau", "alpha"), [(100.0, 0.5), (3.0, 0.2), (gradtx.Schedule(lambda step: 5.0 - step), 0.8)])
def test_heads_are_multiplied_after_the_step_as_their_role_says(tau, alpha):
    for seed in (0, 10):
        params = tree(seed)
        tx = gradtx.chain(gradtx.sgd(lr=0.1), gradtx.qk_clip(ROLES, tau, alpha))
        state = tx.init(params)
        for step in range(3):
            grads = {name: p.sin() for name, p in params.items()}
            S = {"layer": 4 * normal(3, seed=step).exp(), "keys": 9 * normal(2, seed=step + 5).exp()}
            bound = tau(step) if isinstance(tau, gradtx.Schedule) else tau
            moved = {name: p - 0.1 * grads[name] for name, p in params.items()}
            updates, state = tx.update(grads, state, params, max_logits=S)
            params = gradtx.apply_updates(params, updates)
            for name, logits, power in (
                ("q.weight", "layer", alpha), ("q.bias", "layer", alpha), ("k.weight", "keys", 1 - alpha),
                ("qr.weight", "layer", 1.0), ("kr.weight", "keys", 0.0),
            ):  # fmt: skip
                expected = clipped(moved[name], S[logits], bound, power)
                torch.testing.assert_close(params[name], expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(params["o"], moved["o"], rtol=0, atol=1e-15)


@pytest.mark.parametrize("compile", [False, True])
def test_an_optimizer_takes_the_logits_in_its_step(compile):
    params = {name: torch.nn.Parameter(p) for name, p in tree().items()}
    tx = gradtx.chain(gradtx.adamw(lr=0.1), gradtx.qk_clip(ROLES, tau=2.0))
    optimizer = gradtx.as_optimizer(tx, params.items(), compile=compile)
    assert len(optimizer.param_groups) == 1
    pure = {name: p.detach().clone() for name, p in params.items()}
    state = tx.init(pure)
    for step in range(3):
        S = {"layer": 4 * normal(3, seed=step).exp(), "keys": 9 * normal(2, seed=step + 5).exp()}
        grads = {name: p.sin() for name, p in pure.items()}
        for name, grad in grads.items():
            params[name].grad = grad.clone()
        optimizer.step(max_logits=S)
        updates, state = tx.update(grads, state, pure, max_logits=S)
        pure = gradtx.apply_updates(pure, updates)
    torch.testing.assert_close({n: p.detach() for n, p in params.items()}, pure, rtol=1e-12, atol=1e-12)


def test_names_without_logits_stay_and_large_bounds_change_nothing():
    params = tree()
    tx = gradtx.qk_clip(ROLES)
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    for S in ({}, {"other": torch.ones(3)}, {"layer": torch.full((3,), 99.0), "keys": torch.zeros(2)}):
        updates, _ = tx.update(zeros, tx.init(params), params, max_logits=S)
        torch.testing.assert_close(updates, zeros, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("S", "error", "message"),
    [
        (
            {"layer": torch.ones(4)},
            ValueError,
            r"max_logits\['layer'\] has 4 heads, but the 6 rows of leaf .* are not divisible by 4",
        ),
        (
            {"layer": torch.ones(3, 1)},
            ValueError,
            r"max_logits\['layer'\] must be 1-D with one value per head, .* of shape \(3, 1\)",
        ),
        (
            {"layer": torch.tensor(3.0)},
            ValueError,
            r"max_logits\['layer'\] must be 1-D with one value per head, .* of shape \(\)",
        ),
        (
            {"layer": torch.ones(0)},
            ValueError,
            r"max_logits\['layer'\] must be 1-D with one value per head, .* of shape \(0,\)",
        ),
        ({"keys": torch.tensor([1.0, torch.nan])}, ValueError, r"max_logits\['keys'\] has nan for head 1; skip"),
        ({"keys": torch.tensor([torch.inf, 1.0])}, ValueError, r"max_logits\['keys'\] has inf for head 0; skip"),
        ({"layer": [1.0]}, TypeError, "max_logits must be a dict of tensors"),
        (torch.ones(3), TypeError, "max_logits must be a dict of tensors"),
        (None, ValueError, "qk_clip needs max_logits"),
    ],
)
def test_logits_that_do_not_fit(S, error, message):
    params = tree()
    tx = gradtx.qk_clip(ROLES)
    with pytest.raises(error, match=message):
        tx.update(params, tx.init(params), params, max_logits=S)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gradtx.qk_clip({}), TypeError, "roles must be a dict of pattern -> "),
        (
            lambda: gradtx.qk_clip({(): ("a", "key")}),
            ValueError,
            r"qk_clip: roles: \(\) selects no leaves; pass a name",
        ),
        (lambda: gradtx.qk_clip({"q": "query"}), TypeError, r"roles\['q'\] must be \(name, role\), got 'query'"),
        (lambda: gradtx.qk_clip({"q": ("a", "value")}), ValueError, "the unknown role 'value'; roles: query, key,"),
        (lambda: gradtx.qk_clip({"x.*": ("a", "key")}).init(tree()), ValueError, r"qk_clip: 'x.\*' matches no leaf"),
        (lambda: gradtx.blocks(gradtx.qk_clip(ROLES), heads=2), TypeError, "blocks: qk_clip processes whole"),
    ],
)
def test_what_makes_no_sense(make, error, message):
    with pytest.raises(error, match=message):
        make()


def in_partition(tx):
    rest = gradtx.chain(gradtx.adamw(lr=0.1), gradtx.scale(2.0))
    return gradtx.partition({"first": rest, "attention": tx}, {"first": "o", "attention": "*"})


def in_accumulate(tx):
    return gradtx.accumulate(tx, every=2)


@by_day("*-False", "S0-*-in_accumulate-1-True")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(("around", "steps"), [(in_partition, 0), (in_accumulate, 1)])
@pytest.mark.parametrize(
    ("S", "message"),
    [
        # Of the last leaf only: those in front would have stepped by then.
        ({"keys": torch.ones(3)}, r"max_logits\['keys'\] has 3 heads, but the 4 rows of leaf 'k.weight'"),
        ({"layer": torch.ones(6)}, r"max_logits\['layer'\] has 6 heads, .* the 3 rows of leaf 'qr.weight'"),
        ({"keys": torch.tensor([1.0, torch.nan])}, "has nan for head 1"),
    ],
)
def test_an_optimizer_changes_nothing_when_logits_do_not_fit(compile, around, steps, S, message):
    params = {name: torch.nn.Parameter(p) for name, p in tree().items()}
    tx = around(gradtx.chain(gradtx.adamw(lr=0.1), gradtx.qk_clip(ROLES, tau=2.0)))
    optimizer = gradtx.as_optimizer(tx, params.items(), compile=compile)
    good = {"layer": torch.full((3,), 4.0), "keys": torch.full((2,), 3.0)}
    for p in params.values():
        p.grad = p.detach().sin()
    for _ in range(steps):
        optimizer.step(max_logits=good)
    before = {name: p.detach().clone() for name, p in params.items()}
    old = {name: dict(optimizer.state[p]) for name, p in params.items()}
    slots = {name: {slot: value.clone() for slot, value in of_leaf.items()} for name, of_leaf in old.items()}
    for _ in range(2):  # the second time, too
        with pytest.raises(ValueError, match=message):
            optimizer.step(max_logits={**good, **S})
    for name, p in params.items():
        assert torch.equal(p, before[name])
        for slot, value in slots[name].items():
            assert torch.equal(optimizer.state[p][slot], value)
    optimizer.step(max_logits=good)
    assert any(not torch.equal(p, before[name]) for name, p in params.items()) or around is in_accumulate
