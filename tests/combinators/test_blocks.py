"""`blocks`: the result is that of separate parameters, one for each block."""

import functools
import itertools

import pytest
import torch

import gradtx
from tests.conformance import field
from tests.tiers import by_day

# Batched kernels may add in another order.
SAME = {"rtol": 1e-12, "atol": 1e-12}
MUON = gradtx.muon(lr=0.1, ns_dtype=None)
FIRST_MUON = gradtx.muon(lr=0.1, ns_dtype=None, fallback=gradtx.adamw(lr=0.01))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def interleaved(x):
    """Three parts in turns of two rows, as in fused projections of some models."""
    turns = x.unflatten(0, (-1, 6))
    return [turns[:, 2 * i : 2 * i + 2].flatten(0, 1) for i in range(3)]


def in_turns(parts):
    return torch.cat([part.unflatten(0, (-1, 2)) for part in parts], dim=1).flatten(0, 1)


class Cut:
    """A way to divide a leaf, and the same by hand."""

    def __init__(self, shape, split, join, **options):
        self.shape, self.split, self.join, self.options = shape, split, join, options

    def separate(self, tree):
        parts = {f"w#{i}": part.contiguous() for i, part in enumerate(self.split(tree["w"]))}
        return {**parts, "b": tree["b"]}

    def whole(self, tree):
        parts = [tree[name] for name in tree if name.startswith("w#")]
        return {"w": self.join(parts), "b": tree["b"]}


CUTS = {
    "heads": Cut((8, 3), lambda x: x.split(2), torch.cat, heads=4),
    "heads of dimension 1": Cut((4, 6), lambda x: x.split(2, 1), lambda parts: torch.cat(parts, 1), heads=3, dim=1),
    "the last dimension": Cut((4, 6), lambda x: x.split(2, 1), lambda parts: torch.cat(parts, 1), heads=3, dim=-1),
    "sizes": Cut((9, 4), lambda x: x.split([4, 3, 2]), torch.cat, sizes=(4, 3, 2)),
    "equal sizes": Cut((8, 4), lambda x: x.split(4), torch.cat, sizes=(4, 4)),
    "sizes with heads": Cut((12, 3), lambda x: x.split([2, 2, 2, 3, 3]), torch.cat, sizes=(6, 6), heads=(3, 2)),
    "sizes with as many heads each": Cut((12, 3), lambda x: x.split([4, 4, 2, 2]), torch.cat, sizes=(8, 4), heads=2),
    "batch": Cut((3, 4, 2), torch.unbind, torch.stack, batch=1),
    "two dimensions of a batch": Cut(
        (2, 3, 4, 2), lambda x: x.flatten(0, 1).unbind(), lambda p: torch.stack(p).unflatten(0, (2, 3)), batch=2
    ),
    "view": Cut((12, 3), interleaved, in_turns, view=(interleaved, in_turns)),
}
INNER = {
    "muon with a fallback": FIRST_MUON,
    "lamb": gradtx.lamb(lr=0.1, weight_decay=0.1),
    "a norm of all leaves": gradtx.chain(gradtx.clip_by_global_norm(0.3), gradtx.sgd(lr=0.5, momentum=0.9)),
    "two sums": gradtx.chain(gradtx.clip_by_global_norm(0.3), gradtx.prodigy()),
    "factored moments": gradtx.adafactor(lr=0.1, relative_step=False),
    "numbers of a leaf": gradtx.nadam(lr=0.1),
    "a clock that measures": gradtx.skip_nonfinite(gradtx.lamb(lr=0.1)),
    "two arms": gradtx.graft(gradtx.scale_by_adam(), gradtx.clip_by_global_norm(0.2)),
    "random numbers": gradtx.chain(gradtx.add_noise(0.1, 0.55, seed=3), gradtx.adam(lr=0.1)),
    "a selector of whole names": gradtx.masked(gradtx.trace(0.9), "w*"),
    "freeze": gradtx.chain(gradtx.adam(lr=0.1), gradtx.freeze("b")),
    "a schedule": gradtx.sgd(lr=gradtx.cosine_schedule(0.1, 5), momentum=0.9),
    "maximize": gradtx.adam(lr=0.1, maximize=True),
    "lists of slots": gradtx.shampoo(lr=0.1, preconditioning_compute_steps=2),
}


def trained(tx, params, steps=5):
    state = tx.init(params)
    seen = []
    for t in range(steps):
        grads = {name: (t - 1) * g for name, g in field(params).items()}
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        seen.append(params)
    return seen, state


def start(cut, seed):
    return {"w": normal(*cut.shape, seed=seed), "b": normal(3, seed=seed + 1)}


@by_day(
    "heads-lamb", "heads-two arms", "heads of dimension 1-muon with a fallback", "heads of dimension 1-lists of slots",
    "the last dimension-two sums", "the last dimension-a selector of whole names", "sizes-a norm of all leaves",
    "sizes-random numbers", "equal sizes-lamb", "equal sizes-two arms", "sizes with heads-muon with a fallback",
    "sizes with heads-two arms", "sizes with as many heads each-two sums",
    "sizes with as many heads each-a selector of whole names", "batch-a norm of all leaves", "batch-random numbers",
    "two dimensions of a batch-lamb", "two dimensions of a batch-two arms", "view-muon with a fallback",
    "view-a clock that measures",
)  # fmt: skip
@pytest.mark.parametrize("tx", INNER.values(), ids=INNER)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_it_equals_separate_parameters(cut, tx):
    for seed in (0, 5):
        params = start(cut, seed)
        whole, _ = trained(gradtx.blocks(tx, "w", **cut.options), params)
        separate, _ = trained(tx, cut.separate(params))
        for one, other in zip(whole, separate, strict=True):
            torch.testing.assert_close(one, cut.whole(other), **SAME)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1)])
def test_slots_in_a_rotated_basis_follow_the_columns_that_change_places(sizes):
    tx = gradtx.rotated(gradtx.scale_by_adam_hat((0.9, 0.9)), beta=0.5, precondition_frequency=1)
    params = {"w": torch.zeros(sum(sizes), 4, 3, dtype=torch.float64)}
    inner = gradtx.blocks(tx, sizes=sizes)
    state, separate = inner.init(params), tx.init(dict(enumerate(params["w"].split(sizes))))
    for t in range(6):
        # The largest column is another one in every step.
        gradient = normal(sum(sizes), 4, 3, seed=t) * torch.ones(3).index_fill(0, torch.tensor(t % 3), 10.0)
        updates, state = inner.update({"w": gradient}, state)
        expected, separate = tx.update(dict(enumerate(gradient.split(sizes))), separate)
        torch.testing.assert_close(updates["w"], torch.cat(list(expected.values())), **SAME)


@by_day("heads-False", "heads-True", "sizes-True", "batch-False", "batch-True")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    "cut", [CUTS["heads"], CUTS["sizes with heads"], CUTS["batch"]], ids=["heads", "sizes", "batch"]
)
def test_as_an_optimizer_it_equals_separate_parameters(cut, compile):
    tx = gradtx.chain(gradtx.clip_by_global_norm(0.3), FIRST_MUON)
    params = {name: torch.nn.Parameter(p) for name, p in start(cut, 0).items()}
    parts = {name: torch.nn.Parameter(p) for name, p in cut.separate(params).items()}
    runs = [(gradtx.blocks(tx, "w", **cut.options), params), (tx, parts)]
    optimizers = [gradtx.as_optimizer(tx, tree.items(), compile=compile) for tx, tree in runs]
    for _ in range(4):
        for optimizer, (_, tree) in zip(optimizers, runs, strict=True):
            for name, grad in field({name: p.detach() for name, p in tree.items()}).items():
                tree[name].grad = grad
            optimizer.step()
    torch.testing.assert_close(dict(params), cut.whole(parts), **SAME)
    again = gradtx.as_optimizer(runs[0][0], params.items(), compile=compile)
    again.load_state_dict(optimizers[0].state_dict())
    torch.testing.assert_close(again.state_dict()["state"], optimizers[0].state_dict()["state"], rtol=0, atol=0)


def test_vmap_over_members_equals_a_loop():
    cut = CUTS["heads"]
    members = [start(cut, seed) for seed in range(3)]
    stacked = {name: torch.stack([member[name] for member in members]) for name in members[0]}
    tx = gradtx.blocks(FIRST_MUON, "w", heads=4)
    batched = torch.vmap(lambda params: trained(tx, params)[0][-1])(stacked)
    for i, member in enumerate(members):
        expected = trained(tx, member)[0][-1]
        torch.testing.assert_close({name: p[i] for name, p in batched.items()}, expected, **SAME)


def test_a_gradient_through_training_equals_that_of_separate_parameters():
    cut = CUTS["heads"]

    def result(tx, divided, lr):
        params = start(cut, 0)
        params = trained(tx(lr=lr), cut.separate(params) if divided else params, 3)[0][-1]
        return sum(p.square().sum() for p in params.values())

    def make(lr):
        return gradtx.blocks(gradtx.lamb(lr=lr), "w", heads=4)

    rate = torch.tensor(0.1, dtype=torch.float64)
    slope = torch.func.grad(functools.partial(result, make, False))(rate)
    torch.testing.assert_close(slope, torch.func.grad(functools.partial(result, gradtx.lamb, True))(rate), **SAME)


def test_equal_blocks_have_stacked_slots_and_unequal_ones_numbered_slots():
    tx = gradtx.scale_by_nadam()
    slots = gradtx.blocks(tx, heads=4).init({"w": torch.zeros(8, 3)})["blocks"]["scale_by_nadam"]
    names = ("exp_avg", "mu_product")
    assert {name: tuple(slots[name]["w"].shape) for name in names} == {"exp_avg": (4, 2, 3), "mu_product": (4,)}
    slots = gradtx.blocks(tx, sizes=(6, 2)).init({"w": torch.zeros(8, 3)})["blocks"]["scale_by_nadam"]
    shapes = {name: tuple(slots[name]["w"].shape) for name in slots if "_sq_" not in name}
    assert shapes == {"exp_avg_0": (6, 3), "exp_avg_1": (2, 3), "mu_product_0": (), "mu_product_1": ()}


def test_blocks_round_the_same_state_at_random_each_in_another_way():
    inner = gradtx.with_state_dtype(gradtx.trace(0.9), "bfloat16:stochastic", min_size=0)
    tx = gradtx.blocks(gradtx.blocks(inner, "w", heads=2), "w", batch=1)
    params = {"w": torch.zeros(2, 40, 5)}
    middle = 1 + 2**-8  # of two neighbors in bfloat16
    _, state = tx.update({"w": torch.full_like(params["w"], middle)}, tx.init(params))
    moments = state["blocks"]["blocks"]["trace"]["momentum_buffer"]["w"].reshape(4, 100)
    for one, other in itertools.combinations(moments, 2):
        assert 30 < (one != other).sum() < 70  # 4 standard deviations from 50


def test_other_leaves_go_through_whole():
    tx = gradtx.blocks(gradtx.scale_by_trust_ratio(), "q.*", heads=2)
    params = {"q": {"w": torch.tensor([3.0, 4.0])}, "o": {"w": torch.tensor([3.0, 4.0])}}
    grads = {"q": {"w": torch.tensor([2.0, 2.0])}, "o": {"w": torch.tensor([0.0, 1.0])}}
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["q"]["w"].tolist() == [3.0, 4.0]
    assert updates["o"]["w"].tolist() == [0.0, 5.0]


def test_no_experts_and_a_leaf_without_gradient_are_fine():
    tx = gradtx.accumulate(gradtx.blocks(gradtx.lamb(lr=0.1), batch=1), every=2)
    params = {"none": torch.zeros(0, 2, 3), "w": torch.ones(2, 2, 3)}
    state = tx.init(params)
    for grads in ({"none": torch.zeros(0, 2, 3), "w": None}, {"none": None, "w": torch.ones(2, 2, 3)}):
        updates, state = tx.update(grads, state, params)
    assert updates["none"].shape == (0, 2, 3)
    assert (updates["w"] < 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "blocks: pass exactly one of heads, sizes, batch and view, or heads with sizes; got none"),
        ({"heads": 2, "batch": 1}, "got heads and batch"),
        ({"heads": 0}, r"heads must be positive integers, got \(0,\)"),
        ({"sizes": (2, 0)}, r"sizes must be positive integers, got \(2, 0\)"),
        ({"sizes": (2, 4), "heads": (1,)}, "heads must have one entry per entry of sizes, got 1 and 2"),
        ({"where": (), "heads": 2}, r"blocks: where: \(\) selects no leaves; pass a name pattern, such as '\*'"),
        ({"where": [], "heads": 2}, r"blocks: where: \[\] selects no leaves; .* or omit it"),
        ({"sizes": ()}, r"sizes must be positive integers, got \(\)"),
        ({"sizes": (2, 4), "heads": ()}, r"heads must be positive integers, got \(\)"),
        ({"batch": 0}, "batch must be positive integers"),
        ({"view": torch.unbind}, r"view must be two functions \(split, join\)"),
    ],
)
def test_arguments_that_make_no_blocks(options, message):
    with pytest.raises(ValueError, match=message):
        gradtx.blocks(gradtx.adam(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 4}, "blocks: leaf 'a.w' has size 6 in dimension 0, which is not divisible by heads=4"),
        ({"heads": 2, "dim": 2}, r"leaf 'a.w' has shape \(6, 3\) and no dimension 2"),
        ({"sizes": (4, 4)}, r"leaf 'a.w' has size 6 in dimension 0, but sizes=\(4, 4\) sum to 8"),
        (
            {"sizes": (4, 2), "heads": (3, 2)},
            r"leaf 'a.w' has sizes\[0\]=4 in dimension 0, which is not divisible by heads=3",
        ),
        ({"batch": 2}, r"leaf 'a.w' has shape \(6, 3\), but batch=2 requires more than 2 dimensions"),
        ({"view": (torch.unbind, torch.cat)}, r"view: join\(split\(x\)\) does not equal x for leaf 'a.w'"),
        (
            {"view": (lambda x: [x, x], lambda parts: parts[0])},
            r"view: join\(split\(x\)\) does not equal x for leaf 'a.w'",
        ),
        (
            {"view": (lambda x: None, torch.cat)},
            "view: split must return a non-empty list of tensors for leaf 'a.w', got NoneType",
        ),
        ({"where": "b.*", "heads": 2}, r"blocks: 'b.\*' matches no leaf; leaves: a.w"),
    ],
)
def test_leaves_that_it_does_not_divide(options, message):
    for tx in (gradtx.adam(), FIRST_MUON):
        with pytest.raises(ValueError, match=message):
            gradtx.blocks(tx, **options).init({"a": {"w": torch.zeros(6, 3)}})


def test_transformations_that_need_whole_trees():
    plain = gradtx.GradientTransformation(lambda params: {}, lambda u, s, p: (u, s))
    for tx, name in (
        (plain, "transformation"),
        (gradtx.chain(gradtx.trace(0.9), gradtx.sam(gradtx.sgd(lr=0.1))), "sam"),
        (gradtx.accumulate(plain, every=2), "transformation"),
    ):
        with pytest.raises(TypeError, match=f"blocks: {name} processes whole trees or leaves; move it outside blocks"):
            gradtx.blocks(tx, heads=2)
    with pytest.raises(TypeError, match="blocks: tx must be a GradientTransformation, got adam; call it"):
        gradtx.blocks(gradtx.adam, heads=2)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (gradtx.with_lookahead(gradtx.adam()), "with_lookahead averages weights"),
        (gradtx.chain(gradtx.schedule_free_adamw()), "schedule_free averages weights"),
        (gradtx.accumulate(gradtx.adam(), 2), "accumulate also processes leaves without a gradient"),
    ],
)
def test_transformations_that_belong_outside(inner, message):
    with pytest.raises(TypeError, match=f"blocks: {message}, which blocks .*; move it outside"):
        gradtx.blocks(inner, heads=2)


def test_a_rule_that_does_not_take_the_blocks_names_the_leaf():
    with pytest.raises(ValueError, match=r"orthogonalize: leaf 'w' has shape \(2,\), needs 2 dimensions"):
        gradtx.blocks(MUON, batch=1).init({"w": torch.zeros(3, 2)})


@pytest.mark.parametrize("around", [gradtx.rotated, lambda tx: gradtx.low_rank(tx, 1)])
def test_slots_of_blocks_in_other_coordinates_are_refused_at_init(around):
    params = {"w": torch.ones(4, 3)}
    with pytest.raises(
        TypeError, match=r"blocks: divides leaves into blocks, whose slots \w+ cannot rotate; move it outside"
    ):
        around(gradtx.blocks(gradtx.trace(0.5), heads=2)).init(params)
    tx = around(gradtx.blocks(gradtx.clip_by_norm(1.0), heads=2))  # which keeps none
    tx.update(params, tx.init(params), params)
