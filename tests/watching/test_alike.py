"""A measured step runs the links of many leaves that are alike together, and shows of each what it would show alone."""

import math

import pytest
import torch
from torch import nn

import gradtx
from gradtx.watching.alike import ENTRIES

BOUND, DECAY, RATE, EPS, BETAS = 0.5, 0.1, 0.01, 1e-2, (0.9, 0.99)
LIMIT = 1e-4
SHAPES = [(4, 3), (3,), (4, 3), (3,), (), (4, 3), (3,), (2, 2), (4, 3)]
CHAINS = {
    "clip before": gradtx.chain(gradtx.clip_by_global_norm(BOUND), gradtx.adamw(lr=RATE, betas=BETAS, eps=EPS)),
    "clip behind": gradtx.chain(
        gradtx.scale_by_adam(BETAS, EPS), gradtx.clip_by_global_norm(BOUND), gradtx.sgd(lr=RATE)
    ),
    "two clips": gradtx.chain(
        gradtx.clip_by_global_norm(BOUND),
        gradtx.scale_by_adam(BETAS),
        gradtx.clip_by_global_norm(BOUND),
        gradtx.scale(-1.0),
    ),
    "by leaf": gradtx.chain(gradtx.clip_by_norm(BOUND), gradtx.lamb(lr=RATE)),
    "16-bit state": gradtx.adamw(lr=RATE, state_dtype="bfloat16"),
    "codes": gradtx.adamw(lr=RATE, state_dtype="int8"),
    "noise": gradtx.chain(gradtx.add_noise(0.1, 0.5, seed=0), gradtx.sgd(lr=RATE)),
    "accumulate": gradtx.accumulate(gradtx.adamw(lr=RATE), every=2),
    "skip_nonfinite": gradtx.skip_nonfinite(gradtx.adamw(lr=RATE)),
    "stale": gradtx.chain(gradtx.clip_by_global_norm(BOUND, stale=True), gradtx.adamw(lr=RATE)),
    "prodigy": gradtx.prodigy(lr=1.0),
    "schedule_free": gradtx.schedule_free_adamw(lr=RATE),
    "lion": gradtx.lion(lr=RATE),
}


def weights(shapes=SHAPES, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(params, step, absent=()):
    generator = torch.Generator().manual_seed(100 + step)
    for i, param in enumerate(params):
        gradient = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)
        param.grad = None if i in absent else gradient


def trained(tx, is_watched, shapes=SHAPES, absences=((), (1, 2), (), (0, 5), ()), **options):
    params = weights(shapes)
    optimizer = gradtx.as_optimizer(tx, [(f"p{i}", p) for i, p in enumerate(params)], **options)
    seen = gradtx.watch(optimizer, every=1) if is_watched else None
    for step, absent in enumerate(absences):
        set_gradients(params, step, absent)
        optimizer.step()
    return params, optimizer.state_dict()["state"], seen


@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["default", "compiled"])
@pytest.mark.parametrize("name", CHAINS)
def test_many_leaves_that_are_alike_step_to_the_bit_as_without_a_watch(name, options):
    params, state, _ = trained(CHAINS[name], False, **options)
    watched, watched_state, seen = trained(CHAINS[name], True, **options)
    assert seen.samples
    assert all(map(torch.equal, params, watched))
    for key, slots in state.items():
        for slot, value in slots.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(watched_state[key][slot])), slot


@pytest.mark.parametrize("absent", [(), (0, 4, 6)], ids=["all", "some absent"])
def test_figures_of_leaves_together_are_those_of_a_loop_over_leaves(absent):
    params = weights(dtype=torch.float64)
    tx = gradtx.chain(
        gradtx.clip_by_global_norm(BOUND),
        gradtx.scale_by_adam(BETAS, EPS),
        gradtx.add_decayed_weights(DECAY),
        gradtx.clip_by_global_norm(LIMIT),
        gradtx.scale_by_learning_rate(RATE),
    )
    optimizer = gradtx.as_optimizer(tx, [(f"p{i}", p) for i, p in enumerate(params)])
    set_gradients(params, 0, absent)
    start = [param.detach().clone() for param in params]
    with gradtx.watch(optimizer, every=1) as seen:
        optimizer.step()
    present = [i for i in range(len(params)) if i not in absent]
    norm = math.sqrt(sum(params[i].grad.square().sum().item() for i in present)) + 1e-6
    adam, decayed = {}, {}
    for i in present:
        clipped = params[i].grad * min(1, BOUND / norm)
        adam[i] = clipped / (clipped.abs() + EPS)
        decayed[i] = adam[i] + DECAY * start[i]
    size = math.sqrt(sum(update.square().sum().item() for update in decayed.values())) + 1e-6
    of = {(record["leaf"], record["link"]): record for record in seen.records}
    assert {leaf for leaf, _ in of} == {f"p{i}" for i in present}
    for i in present:
        g, update = params[i].grad, -RATE * decayed[i] * min(1, LIMIT / size)
        first, second = of[f"p{i}", "clip_by_global_norm"], of[f"p{i}", "clip_by_global_norm_1"]
        rule, whole = of[f"p{i}", "scale_by_adam"], of[f"p{i}", "step"]
        assert first["norm_before"] == pytest.approx(g.norm().item(), rel=1e-12)
        assert first["change"] == pytest.approx(BOUND / norm, rel=1e-12)
        assert first["decided"] == second["decided"] == 1.0
        assert second["change"] == pytest.approx(LIMIT / size, rel=1e-12)
        assert rule["norm_after"] == pytest.approx(adam[i].norm().item(), rel=1e-12)
        share = (adam[i].abs() < 0.5).double().mean().item()  # that of entries that eps more than halves
        assert rule["decided"] == pytest.approx(share, rel=1e-12)
        cosine = (update * g).sum() / update.norm() / g.norm()
        assert whole["cos_grad"] == pytest.approx(cosine.item(), rel=1e-12)
        assert whole["update_to_weight"] == pytest.approx((update.norm() / start[i].norm()).item(), rel=1e-12)
        assert whole["lost"] == 0.0


@pytest.mark.parametrize("name", CHAINS)
def test_a_leaf_among_others_has_the_figures_that_it_has_where_no_other_is_alike(name):
    alike = [(4, 3)] * 5
    apart = [(12,), (4, 3), (3, 4), (6, 2), (2, 6)]
    if name in ("noise", "codes"):
        pytest.skip("positions and blocks of entries follow from shapes")
    params = weights(alike)
    records = []
    for shapes in (alike, apart):
        own = [nn.Parameter(p.detach().reshape(shape).clone()) for p, shape in zip(params, shapes, strict=True)]
        optimizer = gradtx.as_optimizer(CHAINS[name], [(f"p{i}", p) for i, p in enumerate(own)])
        with gradtx.watch(optimizer, every=1) as seen:
            for step in range(4):
                set_gradients(params, step)
                for param, other in zip(params, own, strict=True):
                    other.grad = param.grad.reshape(other.shape)
                optimizer.step()
        records.append(seen.records)
    assert len(records[0]) == len(records[1])
    for one, other in zip(*records, strict=True):
        for figure, value in one.items():
            if isinstance(value, float):
                assert value == pytest.approx(other[figure], rel=2e-5, abs=1e-5, nan_ok=True), (figure, one)
            else:
                assert value == other[figure]


def operations_of_a_measured_step(count):
    """Return how many operations a measured step of so many leaves runs beyond those of one without a watch."""
    params = weights([(4, 3)] * count)
    optimizer = gradtx.as_optimizer(CHAINS["clip behind"], [(f"p{i}", p) for i, p in enumerate(params)])
    counts = []
    for is_watched in (False, True):
        with gradtx.watch(optimizer, every=1) if is_watched else torch.no_grad():
            for step in range(3):
                set_gradients(params, step)
                with torch.autograd.profiler.profile() as profile:
                    optimizer.step()
        counts.append(len(profile.function_events))
    return counts[1] - counts[0]


def test_a_measured_step_of_many_alike_leaves_runs_few_operations_for_each():
    few, many = (operations_of_a_measured_step(count) for count in (10, 210))
    assert (many - few) / 200 < 25  # of a leaf alone, 500


def test_leaves_are_measured_a_chunk_at_a_time():
    edge = math.isqrt(ENTRIES // 2)
    params = weights([(edge, edge)] * 8)
    optimizer = gradtx.optim.AdamW(params)
    set_gradients(params, 0)
    sizes = []
    joint = torch.cat

    def noted(tensors, *arguments, **options):
        result = joint(tensors, *arguments, **options)
        sizes.append(result.numel())
        return result

    with gradtx.watch(optimizer, every=1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "cat", noted)
        optimizer.step()
    assert max(sizes) == 2 * edge**2 <= ENTRIES
