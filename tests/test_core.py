"""The one type, the decorators that make it, what a rule receives, and the layout of states."""

import collections
import copy
import io
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import gradtx
from gradtx import Betas, GradientTransformation, Scalar, Schedule, alias, chain, per_tensor, whole_tree
from tests.conformance import (
    assert_close,
    assert_own_memory,
    assert_same,
    layout,
    noise,
    snapshot,
    tensors,
    untouched,
)

VECTORS = {"a": (3,), "b": (2, 2), "c": ()}
FLAT = {"a": (3,), "b": (3,), "c": (3,)}


def ones(**changes):
    return {"a": torch.ones(3), "b": torch.ones(2, 2), "c": torch.tensor(1.0), **changes}


def made(update, init=None, evaluate=None, **options):
    """The transformation of a rule without arguments."""

    @per_tensor(**options)
    def rule():
        return update if init is None else (init, update) if evaluate is None else (init, update, evaluate)

    return rule()


def run(tx, steps, params=None, grads=None, **extras):
    """Updates and state after some steps, at the same parameters."""
    params, grads = ones() if params is None else params, ones() if grads is None else grads
    state, updates = tx.init(params), None
    for _ in range(steps):
        updates, state = tx.update(grads, state, params, **extras)
    return updates, state


def constant(value):
    return lambda *args: value


# The type.


def _halve_init(params):
    return {"calls": torch.zeros(())}


def _halve(updates, state, params):
    halves = {name: None if u is None else u / 2 for name, u in updates.items()}
    return halves, {"calls": state["calls"] + 1}


HALVE = GradientTransformation(_halve_init, _halve)
SAMPLES = [
    gradtx.adamw(lr=0.1, betas=(0.8, torch.tensor(0.9)), state_dtype=torch.float64),
    chain(gradtx.clip_by_global_norm(1.0), gradtx.trace(0.9), gradtx.scale_by_learning_rate(0.1)),
    gradtx.accumulate(chain(gradtx.adam(lr=gradtx.cosine_schedule(0.1, 5)), gradtx.freeze("b")), every=2),
    gradtx.partition({"x": gradtx.sgd(0.1), "rest": gradtx.masked(HALVE, "b")}, {"x": "a", "rest": "*"}),
    chain(),
    HALVE,
]


def test_a_transformation_unpacks_into_its_two_functions():
    init, update = gradtx.sgd(lr=1.0)
    updates, _ = update(ones(), init(ones()))
    assert torch.equal(updates["a"], -torch.ones(3))


@pytest.mark.parametrize("tx", SAMPLES, ids=repr)
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda tx: pickle.loads(pickle.dumps(tx))])
def test_a_copy_behaves_as_the_original(tx, copied):
    other = copied(tx)
    assert repr(other) == repr(tx)
    assert_same(run(other, 3), run(tx, 3))


@pytest.mark.parametrize("name", ["lr", "_name", "_parts", "_txs", "anything"])
@pytest.mark.parametrize("tx", SAMPLES, ids=repr)
def test_no_attribute_can_be_set(tx, name):
    with pytest.raises(AttributeError, match="can't be changed; use replace"):
        setattr(tx, name, 1.0)


def test_no_attribute_can_be_deleted():
    tx = gradtx.adam()
    with pytest.raises(AttributeError, match="can't be changed"):
        del tx._arguments


def test_what_hyperparams_gives_is_a_copy():
    tx = gradtx.adam(lr=0.1)
    tx.hyperparams["lr"] = 7.0
    assert tx.hyperparams["lr"] == 0.1


def test_hyperparams_is_a_dict_whose_copies_are_plain_ones():
    found = gradtx.adam(lr=0.1).hyperparams
    plain = dict(found)
    for other in (found, copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found)), found | {}):
        assert other == plain
    assert "lrr" not in found
    assert found.get("lrr") is None
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == plain


def test_hyperparams_can_be_read_in_a_compiled_function():
    tx = gradtx.adam(lr=0.5)
    compiled = torch.compile(lambda x: x * tx.hyperparams["lr"], backend="eager", fullgraph=True)
    assert compiled(torch.ones(1)).item() == 0.5


# Any two functions, as in optax.

Count = collections.namedtuple("Count", "calls total")
PLAIN_STATES = {
    "namedtuple": Count(torch.tensor(0.0), [torch.zeros(2)]),
    "dict": {"calls": torch.tensor(0.0), "deep": {"b": [torch.zeros(2)]}},
    "empty tuple": (),
    "none": None,
    "bare tensor": torch.tensor(0.0),
}


def counting(first):
    """Doubles updates, and adds one to every tensor of a state of any form."""

    def mapped(function, tree):
        return torch.utils._pytree.tree_map(lambda leaf: None if leaf is None else function(leaf), tree)

    return GradientTransformation(
        lambda params: first,
        lambda u, s, p: (mapped(lambda leaf: 2 * leaf, u), mapped(lambda leaf: leaf + 1, s)),
    )


WRAPPINGS = {
    "alone": lambda tx: tx,
    "chain": lambda tx: chain(gradtx.trace(0.9), tx),
    "partition": lambda tx: gradtx.partition({"x": tx, "y": gradtx.scale(1.0)}, {"x": "a", "y": "*"}),
    "masked": lambda tx: gradtx.masked(tx, "a"),
    "accumulate": lambda tx: gradtx.accumulate(tx, every=1),
    "skip_nonfinite": gradtx.skip_nonfinite,
    "with_lookahead": gradtx.with_lookahead,
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("first", PLAIN_STATES.values(), ids=PLAIN_STATES)
def test_two_plain_functions_work_wherever_a_factory_does(first, wrap):
    tx = wrap(counting(first))
    updates, state = run(tx, 1)
    assert torch.equal(updates["a"], torch.full((3,), 2.0))
    zeros = [t for path, t in tensors(tx.init(ones())).items() if "transformation" in path]
    after = [t for path, t in tensors(state).items() if "transformation" in path]
    assert len(zeros) == len(tensors(first))
    assert all(torch.equal(new, old + 1) for new, old in zip(after, zeros, strict=True))


def test_plain_functions_get_the_callers_trees_with_none_for_what_is_not_there():
    seen = []

    def update(updates, state, params):
        seen.append((updates, params))
        return updates, state

    params = {"x": [torch.ones(1), torch.ones(2)], "y": (torch.ones(3),)}
    grads = {"x": [torch.ones(1), None], "y": (torch.ones(3),)}
    tx = chain(gradtx.freeze("y.*"), GradientTransformation(lambda params: {}, update))
    updates, _ = tx.update(grads, tx.init(params), params)
    ((given, given_params),) = seen
    assert given["x"][1] is None
    assert given["y"] == (None,)
    assert torch.equal(given_params["x"][0], torch.ones(1))
    assert updates["x"][1] is None
    assert torch.equal(updates["y"][0], torch.zeros(3))


def test_the_state_of_plain_functions_stands_still_while_a_wrapper_waits():
    tx = gradtx.accumulate(HALVE, every=2)
    state = tx.init(ones())
    counts = []
    for _ in range(5):
        _, state = tx.update(ones(), state)
        counts.append(state["accumulate"]["transformation"]["calls"].item())
    assert counts == [0, 1, 1, 2, 2]


def test_the_state_of_plain_functions_survives_a_skipped_step():
    tx = gradtx.skip_nonfinite(HALVE)
    _, state = run(tx, 1)
    _, state = tx.update(ones(a=torch.full((3,), torch.nan)), state)
    assert state["skip_nonfinite"]["transformation"]["calls"] == 1


# Forms of a rule for one tensor.


def test_a_rule_may_be_a_bare_update():
    tx = made(lambda update, state, param, ctx: (2 * update, state))
    updates, state = run(tx, 1)
    assert torch.equal(updates["a"], torch.full((3,), 2.0))
    assert set(state) == {"step"}


def _count_init(param):
    return {"sum": torch.zeros_like(param)}


def _count(update, state, param, ctx):
    return update, {"sum": state["sum"] + update}


def test_a_rule_may_be_init_and_update():
    _, state = run(made(_count, _count_init), 3)
    assert torch.equal(state["rule"]["sum"]["b"], torch.full((2, 2), 3.0))


def test_a_rule_may_say_what_to_evaluate_with():
    tx = made(_count, _count_init, lambda state, param: param - state["sum"])
    _, state = run(tx, 3)
    assert torch.equal(tx.eval_params(state, ones())["a"], torch.full((3,), -2.0))


def test_a_rule_that_returns_a_chain_is_replaced_by_it():
    @per_tensor
    def sometimes(factor: Scalar, keep: bool = True):
        return chain() if not keep else lambda update, state, param, ctx: (factor * update, state)

    assert torch.equal(run(sometimes(3.0), 1)[0]["a"], torch.full((3,), 3.0))
    assert torch.equal(run(sometimes(3.0, keep=False), 1)[0]["a"], torch.ones(3))


def test_a_list_is_kept_as_numbered_slots():
    def init(param):
        return {"axis": [param.new_zeros(n) for n in param.shape], "sum": torch.zeros_like(param)}

    def update(update, state, param, ctx):
        assert isinstance(state["axis"], list)
        return update, {"axis": [axis + i + 1 for i, axis in enumerate(state["axis"])], "sum": state["sum"]}

    _, state = run(made(update, init), 2, *(noise(1, {"w": (2, 3), "v": (5,)}),) * 2)
    assert set(state["rule"]) == {"axis_0", "axis_1", "sum"}
    assert torch.equal(state["rule"]["axis_1"]["w"], torch.full((3,), 4.0).double())
    assert set(state["rule"]["axis_1"]) == {"w"}  # v has one axis, hence no key


def test_a_list_that_is_empty_for_a_leaf_comes_back_empty():
    def update(update, state, param, ctx):
        assert len(state["axis"]) == update.ndim
        return update, state

    run(made(update, lambda param: {"axis": [param.new_zeros(n) for n in param.shape]}), 2)  # c is 0-d


def test_a_list_of_more_than_ten_slots_keeps_its_order():
    init = lambda param: {"x": [param.new_zeros(()) + i for i in range(12)]}  # noqa: E731

    def update(update, state, param, ctx):
        assert [int(x) for x in state["x"]] == list(range(12))
        return update, state

    run(made(update, init), 2)


# Sums over leaves.


def test_a_sum_runs_over_all_leaves_and_every_leaf_gets_it():
    def update(update, state, param, ctx):
        total = yield {"square": update.square().sum(), "count": update.numel()}
        yield torch.zeros_like(update) + total["square"] / total["count"], state

    updates, _ = run(made(update), 1, grads=ones(c=torch.tensor(3.0)))
    assert all(torch.equal(u, torch.full_like(u, 2.0)) for u in updates.values())  # (3 + 4 + 9) / 8


def test_several_yields_are_several_barriers():
    def update(update, state, param, ctx):
        mean = yield {"sum": update.sum(), "n": update.numel()}
        centred = update - mean["sum"] / mean["n"]
        square = yield {"square": centred.square().sum()}
        yield centred / square["square"].sqrt(), state

    grads = noise(2, VECTORS)
    updates, _ = run(made(update), 1, grads, grads)
    flat = torch.cat([g.flatten() for g in grads.values()])
    expected = (flat - flat.mean()) / (flat - flat.mean()).norm()
    # sums are added in another order
    torch.testing.assert_close(torch.cat([u.flatten() for u in updates.values()]), expected, rtol=1e-13, atol=1e-14)


def test_two_stages_with_sums_do_not_mix_them_up():
    def update(update, state, param, ctx):
        total = yield {"n": update.sum()}
        yield update * total["n"], state

    tx = chain(made(update), gradtx.scale(2.0), made(update))
    updates, _ = run(tx, 1)
    assert torch.equal(updates["a"], torch.full((3,), 16.0 * 128.0))  # 8 leaves' entries: u = 16, then their sum


def test_sums_of_low_precision_leaves_are_exact():
    def update(update, state, param, ctx):
        total = yield {"sum": update.sum()}
        assert total["sum"].dtype == torch.float64
        yield torch.where(total["sum"] == 2049, update, 0.0), state

    leaves = {"a": torch.full((1,), 2048, dtype=torch.float16), "b": torch.ones(1, dtype=torch.float16)}
    updates, _ = run(made(update), 1, leaves, leaves)  # float16 can't hold 2049
    assert updates["b"] == 1


@pytest.mark.parametrize("order", ["abc", "acb", "bca", "cba"])
def test_sums_are_added_in_name_order_whatever_the_order_of_the_dict(order):
    def update(update, state, param, ctx):
        total = yield {"sum": update.sum()}
        yield 0 * update + total["sum"], state

    values = {"a": 1e17, "b": 1.0, "c": -1e17}  # 0 in name order, 1 if b comes last
    leaves = {name: torch.tensor([values[name]], dtype=torch.float64) for name in order}
    assert run(made(update), 1, leaves, leaves)[0]["b"] == 0


def test_leaves_that_wait_at_different_stages_all_get_through():
    def update(update, state, param, ctx):
        if update.ndim == 2:
            yield {"n": torch.ones(())}
        total = yield {"n": torch.ones(())}
        yield update * 0 + total["n"], state

    summing = made(update)
    tx = gradtx.partition({"x": chain(summing, summing), "y": summing}, {"x": "a", "y": "*"})
    updates, _ = run(tx, 1)
    assert updates["a"].tolist() == [1.0] * 3
    assert run(tx, 2)[1]["step"] == 2


def _ends_with_return(update, state, param, ctx):
    yield {"n": update.sum()}
    return update, state


def _returns_at_once(update, state, param, ctx):
    if param is None:
        yield {"n": update.sum()}
    return update, state


@pytest.mark.parametrize("update", [_ends_with_return, _returns_at_once])
def test_a_generator_that_ends_with_return_is_told_to_yield(update):
    with pytest.raises(TypeError, match="rule: end with `yield update, state`, not with return"):
        run(made(update), 1)


# Scalars.


def test_shared_scalars_are_stored_once_in_float64():
    def update(update, state, param, ctx):
        total = yield {"sum": update.sum()}
        yield update * state["d"], {"d": state["d"] + total["sum"]}

    @per_tensor(shared={"d": lambda arguments: arguments["d0"]}, agree=("d0",))
    def growing(d0: Scalar = 0.1):
        return update

    tx = growing(d0=0.5)
    assert_same(tx.init(ones())["growing"], {"d": torch.tensor(0.5, dtype=torch.float64)})
    updates, state = run(tx, 2)
    assert_same(state["growing"], {"d": torch.tensor(16.5, dtype=torch.float64)})
    assert torch.equal(updates["a"], torch.full((3,), 8.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32])
def test_a_0d_float64_slot_of_a_leaf_stays_float64(dtype, state_dtype):
    @per_tensor
    def product():
        def init(param):
            return {"mu_product": torch.ones((), dtype=torch.float64), "sum": torch.zeros_like(param)}

        def update(update, state, param, ctx):
            assert state["mu_product"].dtype == torch.float64
            return update * state["mu_product"], {"mu_product": state["mu_product"] * 0.9, "sum": state["sum"]}

        return init, update

    params = {"w": torch.ones(3, dtype=dtype)}
    updates, state = run(product(state_dtype=state_dtype), 2, params, params)
    assert_same(state["product"]["mu_product"], {"w": torch.tensor(0.9 * 0.9, dtype=torch.float64)})
    assert state["product"]["sum"]["w"].dtype == (state_dtype or dtype)
    assert updates["w"].dtype == dtype


def test_float64_scalars_do_not_widen_a_0d_leaf():
    def update(update, state, param, ctx):
        assert update.dtype == param.dtype == torch.float32
        return update * ctx.bias_correction(0.9), {"sum": state["sum"] + ctx.time}

    updates, state = run(chain(made(update, _count_init), made(update, _count_init)), 2)
    assert updates["c"].dtype == state["rule"]["sum"]["c"].dtype == torch.float32


# Randomness.


def noisy(draw, init=None):
    @per_tensor(random=True)
    def noise_rule(seed: int = 0):
        update = lambda update, state, param, ctx: (draw(ctx.rng, update), state)  # noqa: E731
        return update if init is None else (init, update)

    return noise_rule


normal, rademacher = noisy(lambda rng, like: rng.normal(like)), noisy(lambda rng, like: rng.rademacher(like))
MANY = {"w": torch.zeros(200, 500, dtype=torch.float64)}


def draws(factory, seed=0, steps=1, params=MANY):
    return run(factory(seed=seed), steps, params, params)[0]


def test_normal_numbers_have_the_moments_and_quantiles_of_the_normal_distribution():
    x = draws(normal, seed=3)["w"].flatten()
    n = x.numel()
    # five standard errors of each moment: of x, x^2, x^3 and x^4 they are 1, 2, 15 and 96, over n, rooted
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs((x**power).mean() - moment) < 5 * (variance / n) ** 0.5
    for q in (0.001, 0.1, 0.5, 0.9, 0.999):
        below = (x < torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(q))).double().mean()
        assert abs(below - q) < 5 * (q * (1 - q) / n) ** 0.5
    assert x.isfinite().all()
    assert x.unique().numel() == n


def test_rademacher_numbers_are_both_signs_with_equal_odds():
    x = draws(rademacher, seed=3)["w"].flatten()
    assert set(x.tolist()) == {-1.0, 1.0}
    assert abs(x.mean()) < 5 * x.numel() ** -0.5  # five standard errors


def _correlation(x, y):
    return ((x * y).mean() - x.mean() * y.mean()).abs() * x.numel() ** 0.5  # in standard errors


@pytest.mark.parametrize("factory", [normal, rademacher], ids=["normal", "rademacher"])
def test_leaves_steps_seeds_neighbours_and_draws_are_independent(factory):
    params = {"w": MANY["w"], "v": MANY["w"]}
    first = draws(factory, params=params)
    w = first["w"].flatten()
    others = {
        "leaf": first["v"],
        "step": draws(factory, steps=2)["w"],
        "seed": draws(factory, seed=1)["w"],
        "neighbour": w.roll(1),
        "row": first["w"].roll(1, 0),
    }
    for name, other in others.items():
        assert _correlation(w, other.flatten()) < 5, name


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_a_second_draw_is_neither_the_first_again_nor_the_first_shifted(shift):
    for draw in ("normal", "rademacher"):
        product = noisy(
            lambda rng, like, draw=draw: getattr(rng, draw)(like).roll(shift, -1) * getattr(rng, draw)(like)
        )
        assert abs(draws(product)["w"].mean()) < 5 * MANY["w"].numel() ** -0.5  # five standard errors


@pytest.mark.parametrize("factory", [normal, rademacher], ids=["normal", "rademacher"])
def test_the_same_seed_gives_the_same_numbers_and_torchs_generator_is_left_alone(factory):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draws(factory, seed=5, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert_same(draws(factory, seed=5, steps=3), first)


def test_random_numbers_depend_on_the_leafs_name_not_its_place():
    params = noise(1, VECTORS)
    alone = {"b": params["b"]}
    assert_same(draws(normal, params=params)["b"], draws(normal, params=alone)["b"])
    assert_same(draws(normal, params=dict(reversed(params.items())))["b"], draws(normal, params=alone)["b"])


def test_a_random_rule_may_draw_its_first_state_and_not_repeat_it():
    factory = noisy(lambda rng, like: rng.normal(like), lambda param, rng: {"start": rng.normal(param)})
    tx = factory(seed=2)
    state = tx.init(MANY)
    start = state["noise_rule"]["start"]["w"]
    assert abs(start.std() - 1) < 0.02  # 4 standard errors
    updates, new = tx.update(MANY, state, MANY)
    assert _correlation(start, updates["w"]) < 5
    assert new["noise_rule"]["counter"] == state["noise_rule"]["counter"] + 1
    assert new["noise_rule"]["seed"] == 2


def test_random_numbers_come_in_every_dtype_and_shape():
    params = {
        name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in {"e": (0,), "s": (), "m": (2, 3)}.items()
    }
    assert layout(draws(normal, params=params)) == layout(params)
    assert layout(draws(rademacher, params=params)) == layout(params)


def test_a_random_rule_draws_anew_for_every_vmap_member_only_if_the_seed_differs():
    def first(seed):
        tx = normal()
        state = tx.init(MANY)
        return tx.update(MANY, {**state, "noise_rule": {**state["noise_rule"], "seed": seed}}, MANY)[0]["w"]

    both = torch.vmap(first)(torch.tensor([0, 1]))
    assert_same(both[0], draws(normal)["w"])
    assert_same(both[1], draws(normal, seed=1)["w"])


def test_a_random_rule_may_keep_shared_scalars_too():
    @per_tensor(random=True, shared={"d": 1.0})
    def doubling(seed: int = 0):
        return lambda update, state, param, ctx: (update, {"d": 2 * state["d"]})

    _, state = run(doubling(), 3)
    assert state["doubling"]["d"] == 8


def test_skipped_and_waiting_steps_do_not_consume_random_numbers():
    tx = gradtx.accumulate(normal(seed=1), every=2)
    state, seen = tx.init(MANY), []
    for _ in range(4):
        updates, state = tx.update(MANY, state, MANY)
        seen.append(updates["w"])
    assert_same(seen[1::2], [draws(normal, seed=1)["w"], draws(normal, seed=1, steps=2)["w"]])


# Who owns the learning rate.


@per_tensor(owns_lr=True)
def owner(lr: Scalar = 1.0):
    return lambda update, state, param, ctx: (-lr * update, state)


AFTER_OWNER = {
    "scale_by_learning_rate": gradtx.scale_by_learning_rate(0.1),
    "add_decayed_weights": gradtx.add_decayed_weights(0.1),
    "owner": owner(),
    "regenerate_towards_init": gradtx.regenerate_towards_init(0.1),
}


@pytest.mark.parametrize(("name", "tx"), AFTER_OWNER.items(), ids=AFTER_OWNER)
@pytest.mark.parametrize("before", [(), (gradtx.trace(0.9),)], ids=["first", "later"])
def test_what_has_no_place_after_an_owner_of_the_rate_is_refused_by_name(name, tx, before):
    with pytest.raises(ValueError, match=f"owner owns the learning rate .* so {name} can't follow it"):
        chain(*before, owner(), gradtx.scale(1.0), tx)


@pytest.mark.parametrize(
    "tx",
    [gradtx.accumulate(owner(), every=2), gradtx.masked(owner(), "a"), gradtx.skip_nonfinite(owner())],
    ids=["accumulate", "masked", "skip_nonfinite"],
)
def test_an_owner_inside_a_wrapper_owns_the_rate_of_the_chain_too(tx):
    with pytest.raises(ValueError, match=r"owns the learning rate .* so scale_by_learning_rate can't follow it"):
        chain(tx, gradtx.scale_by_learning_rate(0.1))


def test_an_alias_with_a_rate_after_an_owner_is_refused():
    with pytest.raises(ValueError, match="so scale_by_learning_rate can't follow it"):
        chain(owner(), gradtx.adam())


def test_an_owner_may_stand_after_clipping_and_before_lookahead():
    tx = chain(gradtx.clip_by_global_norm(1.0), owner(lr=2.0), gradtx.lookahead())
    assert tx.hyperparams["lr"] == 2.0


# Extras.


def test_extras_by_leaf_and_scalars_reach_the_rule_as_declared():
    def update(update, state, param, ctx):
        assert ctx.value == 3.0
        return update * ctx.fisher + ctx.temperature, state

    tx = made(update, extras={"fisher": "leaf", "temperature": "scalar"}, needs=("value",))
    assert tx.needs == ("fisher", "temperature", "value")
    updates, _ = run(tx, 1, fisher=ones(a=torch.tensor([1.0, 2.0, 3.0])), temperature=0.5, value=torch.tensor(3.0))
    assert updates["a"].tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize("kind", ["leaf?", "scalar?"])
def test_an_optional_extra_is_none_when_it_is_not_given(kind):
    def update(update, state, param, ctx):
        return update if ctx.fisher is None else update * ctx.fisher, state

    tx = made(update, extras={"fisher": kind})
    assert tx.needs == ()
    assert torch.equal(run(tx, 1)[0]["a"], torch.ones(3))
    fisher = torch.tensor(2.0) if kind == "scalar?" else {name: 2 * leaf for name, leaf in ones().items()}
    assert torch.equal(run(tx, 1, fisher=fisher)[0]["a"], torch.full((3,), 2.0))


def test_value_grad_fn_and_hessian_diag_are_always_accepted():
    given = {"value": torch.tensor(1.0), "grad_fn": lambda p: p, "hessian_diag": ones()}
    assert_same(run(gradtx.adam(), 2, **given), run(gradtx.adam(), 2))


def test_hessian_diag_of_none_means_keep_the_last_one():
    def update(update, state, param, ctx):
        hessian = state["h"] if ctx.hessian_diag is None else 1.0 * ctx.hessian_diag
        return update / hessian, {"h": hessian}

    tx = made(update, lambda param: {"h": torch.ones_like(param)}, needs=("hessian_diag",))
    _, state = run(tx, 1, hessian_diag=ones(a=torch.full((3,), 4.0)))
    updates, _ = tx.update(ones(), state, ones(), hessian_diag=None)
    assert updates["a"].tolist() == [0.25] * 3


def test_a_half_precision_extra_is_widened_as_its_leaf():
    def update(update, state, param, ctx):
        assert ctx.hessian_diag.dtype == torch.float32
        return update, state

    low = {"a": torch.ones(3, dtype=torch.bfloat16)}
    run(made(update, needs=("hessian_diag",)), 1, low, low, hessian_diag=low)


def test_extras_are_matched_by_leaf_name_in_any_order():
    tx = made(lambda update, state, param, ctx: (update * ctx.hessian_diag, state), needs=("hessian_diag",))
    hessian = noise(3, VECTORS)
    first, _ = run(tx, 1, hessian_diag=hessian)
    again, _ = run(tx, 1, hessian_diag=dict(reversed(hessian.items())))
    assert_same(again, first)


# What a rule receives.


def test_step_counts_from_one_as_int64_and_time_is_the_same_in_float64():
    seen = []

    def update(update, state, param, ctx):
        seen.append((ctx.step, ctx.time))
        return update, state

    run(made(update), 3, {"a": torch.ones(1)}, {"a": torch.ones(1)})
    assert_same(seen, [(torch.tensor(i), torch.tensor(float(i), dtype=torch.float64)) for i in (1, 2, 3)])


def test_ctx_grad_is_the_gradient_before_any_link():
    def update(update, state, param, ctx):
        return ctx.grad + 0 * update, state

    tx = chain(gradtx.scale(5.0), gradtx.trace(0.9), made(update))
    assert_same(run(tx, 3, grads=noise(2, VECTORS, torch.float32))[0], noise(2, VECTORS, torch.float32))
    assert_same(run(chain(tx), 1, grads=ones())[0], ones())


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("form", [float, lambda x: torch.tensor(x, dtype=torch.float64)], ids=["number", "tensor"])
def test_bias_correction_is_exact_in_float64(beta, form):
    def update(update, state, param, ctx):
        result = ctx.bias_correction(form(beta))
        assert result.dtype == torch.float64
        return update, {"c": result, "other": ctx.bias_correction(form(beta), step=ctx.step - 1)}

    init = lambda param: dict.fromkeys(("c", "other"), torch.zeros((), dtype=torch.float64))  # noqa: E731
    tx = made(update, init)
    for steps in (1, 2, 1000):
        state = {**tx.init({"w": torch.ones(2)}), "step": torch.tensor(steps - 1)}
        _, new = tx.update({"w": torch.ones(2)}, state)
        for name, t in (("c", steps), ("other", steps - 1)):
            # a few units in the last place of float64; at beta = 0 and step 0 it is 0, the sum of no gradients
            exact = -torch.expm1(t * torch.tensor(beta, dtype=torch.float64).log()) if beta else min(t, 1)
            assert new["rule"][name]["w"].item() == pytest.approx(float(exact), rel=1e-14, abs=0)


def test_every_k_steps_selects_tensors_and_trees_of_them():
    def update(update, state, param, ctx):
        fresh = ctx.every(3, 4, lambda: {"x": [update * 10]}, lambda: {"x": [state["x"]]})
        return update + ctx.every(2, 0, lambda: torch.ones_like(update), lambda: torch.zeros_like(update)), {
            "x": fresh["x"][0]
        }

    tx = made(update, lambda param: {"x": torch.zeros_like(param)})
    state, kept, added = tx.init(ones()), [], []
    for i in range(1, 6):
        updates, state = tx.update({name: i * leaf for name, leaf in ones().items()}, state)
        kept.append(state["rule"]["x"]["c"].item())
        added.append(updates["c"].item() - i)
    assert kept == [10, 10, 10, 40, 40]  # steps 1 and 4
    assert added == [0, 1, 0, 1, 0]


# Rules for whole trees.


@whole_tree(needs=("params", "grad_fn"))
def look_ahead(distance: Scalar = 1.0):
    """The gradient some way downhill, minus a running mean that is kept as a slot, and a count."""

    def init(params):
        return {"mean": {name: torch.zeros_like(p) for name, p in params.items()}, "calls": torch.zeros(())}

    def update(updates, state, params, ctx):
        there = ctx.grad_fn({name: params[name] - distance * u for name, u in updates.items()})
        mean = {name: 0.5 * state["mean"][name] + 0.5 * g for name, g in there.items()}
        new = {name: there[name] + 0 * ctx.grad[name] for name in updates}
        return new, {"mean": mean, "calls": state["calls"] + 1}

    return init, update


def _double(params):
    return {name: 2 * p for name, p in params.items()}


def test_a_tree_rule_works_on_dicts_by_leaf_name_and_keeps_slots_and_scalars():
    nested = {"x": {"w": torch.ones(2)}, "y": [torch.ones(3)]}
    tx = look_ahead(distance=0.25)
    state = tx.init(nested)
    assert set(state["look_ahead"]["mean"]) == {"x.w", "y.0"}
    grad_fn = lambda p: {"x": {"w": 2 * p["x"]["w"]}, "y": [2 * p["y"][0]]}  # noqa: E731
    updates, state = tx.update(nested, state, nested, grad_fn=grad_fn)
    assert updates["x"]["w"].tolist() == [1.5, 1.5]
    assert state["look_ahead"]["mean"]["y.0"].tolist() == [0.75] * 3
    assert state["look_ahead"]["calls"] == 1


WITHOUT = {
    "freeze": lambda tx: chain(tx, gradtx.freeze("b")),
    "masked": lambda tx: gradtx.masked(tx, lambda name, param: name != "b"),
    "partition": lambda tx: gradtx.partition({"x": tx, "y": gradtx.scale(0.0)}, {"y": "b", "x": "*"}),
    "inside accumulate": lambda tx: gradtx.accumulate(chain(tx, gradtx.freeze("b")), every=1),
}


@pytest.mark.parametrize("wrap", WITHOUT.values(), ids=WITHOUT)
def test_grad_fn_is_called_with_the_full_tree_when_a_combinator_took_leaves_out(wrap):
    calls = []

    def grad_fn(params):
        calls.append(snapshot(params))
        return _double(params)

    params = {"c": torch.full((), 3.0), "a": torch.full((3,), 2.0), "b": torch.full((2, 2), 5.0)}
    tx = wrap(look_ahead(distance=1.0))
    updates, _ = tx.update(ones(), tx.init(params), params, grad_fn=grad_fn)
    (seen,) = calls
    assert {name: float(p.mean()) for name, p in seen.items()} == {"c": 2.0, "a": 1.0, "b": 5.0}
    assert torch.equal(updates["a"], torch.full((3,), 2.0))


def test_extras_by_leaf_are_cut_to_the_leaves_that_a_tree_rule_has():
    @whole_tree(needs=("hessian_diag",))
    def divide():
        def update(updates, state, params, ctx):
            assert set(ctx.hessian_diag) == set(updates) == {"a", "c"}
            return {name: u / ctx.hessian_diag[name] for name, u in updates.items()}, state

        return update

    tx = chain(divide(), gradtx.freeze("b"))
    updates, _ = run(tx, 1, hessian_diag={name: 2 * leaf for name, leaf in ones().items()})
    assert updates["a"].tolist() == [0.5] * 3


def test_a_tree_rule_without_a_gradient_for_a_leaf_leaves_its_slots_alone():
    tx = look_ahead()
    state = tx.init(ones())
    updates, new = tx.update(ones(b=None), state, ones(), grad_fn=_double)
    assert updates["b"] is None
    assert_same(new["look_ahead"]["mean"]["b"], state["look_ahead"]["mean"]["b"])


# All of it under torch.compile and vmap.


@per_tensor
def refreshed():
    """An update divided by its size of three steps ago at most."""

    def update(update, state, param, ctx):
        size = ctx.every(3, 1, lambda: update.square().mean(), lambda: state["size"])
        return update / (size + 1), {"size": size}

    return lambda param: {"size": param.new_zeros(())}, update


def _everything():
    return chain(
        normal(seed=3),
        refreshed(),
        look_ahead(0.5),
        gradtx.adam(lr=gradtx.warmup_cosine_schedule(9, max_lr=0.1, init_lr=0.01, warmup_steps=2)),
        gradtx.scale(Schedule(lambda step: 1.0 + step)),
    )


def test_noise_schedules_and_tree_rules_compile_to_one_graph_for_all_steps():
    torch._dynamo.reset()
    tx, counter, params, grads = _everything(), CompileCounter(), noise(1, FLAT), noise(2, FLAT)
    compiled = torch.compile(lambda g, s, p: tx.update(g, s, p, grad_fn=_double), backend=counter, fullgraph=True)
    state = tx.init(params)
    for _ in range(4):
        expected = tx.update(grads, state, params, grad_fn=_double)
        # the same operations, traced
        assert_close(compiled(grads, state, params), expected, rtol=1e-12)
        state = expected[1]
    assert counter.frame_count == 1


def test_noise_schedules_and_tree_rules_work_under_vmap():
    tx, params, grads = _everything(), noise(1, FLAT), noise(2, FLAT)
    scales = torch.tensor([1.0, -2.0], dtype=torch.float64)
    train = lambda x: run(tx, 3, params, {name: x * g for name, g in grads.items()}, grad_fn=_double)  # noqa: E731
    together = torch.vmap(train)(scales)
    for i, x in enumerate(scales):
        member = torch.utils._pytree.tree_map(lambda leaf, i=i: leaf[i], together)
        assert_close(member, train(x), rtol=1e-12)  # batched kernels may round differently


# Hyperparameters, replace, repr.


def test_the_outermost_decorated_call_owns_a_name():
    tx = chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=0.1), gradtx.lookahead())
    names = ["max_norm", "eps", "lr", "betas", "adamw.eps", "weight_decay", "amsgrad", "maximize", "k", "alpha"]
    assert list(tx.hyperparams) == names
    assert tx.hyperparams["eps"] == 1e-6
    assert tx.hyperparams["adamw.eps"] == 1e-8


def test_the_second_owner_of_a_name_has_a_number():
    tx = chain(gradtx.adamw(lr=0.1), gradtx.adamw(lr=0.2), gradtx.sgd(lr=0.3))
    assert tx.hyperparams["lr"] == 0.1
    assert tx.hyperparams["adamw_1.lr"] == 0.2
    assert tx.hyperparams["sgd.lr"] == 0.3


def test_in_a_partition_the_label_is_the_owner():
    tx = gradtx.partition(
        {"body": gradtx.adamw(lr=0.1), "head": chain(gradtx.sgd(lr=0.2), gradtx.sgd(lr=0.3))},
        {"head": "a", "body": "*"},
    )
    assert tx.hyperparams["lr"] == 0.1
    assert tx.hyperparams["head.lr"] == 0.2
    assert tx.hyperparams["head.sgd_1.lr"] == 0.3
    assert tx.replace(**{"head.lr": 0.5}).hyperparams["head.lr"] == 0.5


def test_hyperparameters_are_numbers_switches_and_tuples_but_not_functions():
    tx = chain(gradtx.map_after_step(torch.tanh), gradtx.average(), gradtx.adam())
    assert "fn" not in tx.hyperparams
    assert tx.hyperparams["before"] is False
    assert tx.hyperparams["decay"] is None
    assert tx.hyperparams["betas"] == (0.9, 0.999)


NESTED = chain(
    gradtx.adamw(lr=0.1, weight_decay=0.5),
    gradtx.accumulate(gradtx.partition({"x": gradtx.sgd(0.2), "y": gradtx.sgd(0.3)}, {"x": "a", "y": "*"}), every=1),
)


@pytest.mark.parametrize("name", list(NESTED.hyperparams))
def test_every_name_of_hyperparams_can_be_replaced_alone(name):
    old = NESTED.hyperparams
    value = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 + 0.1, tuple: lambda v: (0.5, 0.5)}
    new = value[type(old[name])](old[name])
    if name.endswith("nesterov"):
        with pytest.raises(ValueError, match="nesterov needs a momentum"):
            NESTED.replace(**{name: new})
        return
    assert NESTED.replace(**{name: new}).hyperparams == {**old, name: new}
    assert NESTED.hyperparams == old


def test_a_bare_name_can_also_be_given_with_its_owner():
    tx = chain(gradtx.adamw(lr=0.1), gradtx.sgd(lr=0.2))
    assert tx.replace(**{"adamw.lr": 0.5}).hyperparams["lr"] == 0.5


def test_a_bare_name_can_also_be_given_with_its_label():
    tx = gradtx.partition({"a": gradtx.sgd(lr=0.1), "b": gradtx.sgd(lr=0.2)}, {"a": "w", "b": "*"})
    assert tx.replace(**{"a.lr": 0.5}).hyperparams["lr"] == 0.5
    assert tx.replace(**{"a.lr": 0.5}).hyperparams["b.lr"] == 0.2


def test_a_name_that_is_shown_means_that_also_where_a_label_would_lead_to_another():
    tx = gradtx.partition({"a": chain(gradtx.sgd(lr=0.1), gradtx.sgd(lr=0.2))}, {"a": "*"})
    assert tx.hyperparams["a.lr"] == 0.2
    assert tx.replace(**{"a.lr": 0.5}).hyperparams["a.lr"] == 0.5


def test_replace_rebuilds_what_an_alias_derives_from_its_arguments():
    tx = chain(gradtx.clip_by_value(5.0), gradtx.sgdp(lr=1.0, momentum=0.0, weight_decay=0.5, wd_ratio=1.0))
    faster = tx.replace(momentum=0.5)  # the decay is weight_decay / (1 - momentum)
    zero = {name: torch.zeros_like(leaf) for name, leaf in ones().items()}
    assert run(tx, 1, grads=zero)[0]["a"].tolist() == [-0.5] * 3
    assert run(faster, 1, grads=zero)[0]["a"].tolist() == [-1.0] * 3


@pytest.mark.parametrize(
    ("text", "tx"),
    {
        "adamw(lr=0.1)": gradtx.adamw(lr=0.1),
        "adamw()": gradtx.adamw(lr=1e-3),
        "adamw(state_dtype=torch.float32)": gradtx.adamw(state_dtype=torch.float32),
        "chain()": chain(),
        "adam(lr=tensor(0.5), maximize=True)": gradtx.adam(torch.tensor(0.5), maximize=True),
        "adam(lr=cosine_schedule(1.0, 10))": gradtx.adam(gradtx.cosine_schedule(1.0, 10)),
        "chain(scale(2.0), trace(0.9))": chain(gradtx.scale(2), chain(gradtx.trace(0.9))),
        "accumulate(masked(sgd(), '*'), 2)": gradtx.accumulate(gradtx.masked(gradtx.sgd(), "*"), every=2),
        "partition({'x': sgd()}, {'x': '*'})": gradtx.partition({"x": gradtx.sgd()}, {"x": "*"}),
        "map_after_step(_double, before=True)": gradtx.map_after_step(_double, before=True),
        "GradientTransformation(_halve_init, _halve)": HALVE,
    }.items(),
)
def test_the_repr_is_what_one_would_type(text, tx):
    assert repr(tx) == text


# Numbers, tensors, schedules, and the one exception for a literal 0.0.


def test_an_int_where_a_number_is_annotated_becomes_a_float():
    tx = gradtx.adam(lr=1, betas=(0, 0.5))
    assert repr(tx.hyperparams["lr"]) == "1.0"
    assert repr(tx.hyperparams["betas"]) == "(0.0, 0.5)"


ZEROS = {
    "literal": (0.0, False),
    "int": (0, False),
    "tensor": (torch.tensor(0.0), True),
    "schedule": (Schedule(constant(0.0)), True),
}


@pytest.mark.parametrize(("zero", "kept"), ZEROS.values(), ids=ZEROS)
def test_only_a_literal_zero_leaves_a_slot_out(zero, kept):
    assert ("trace" in gradtx.sgd(momentum=zero).init(ones())) == kept
    assert ("params" in gradtx.sgd(weight_decay=zero).needs) == kept
    assert ("regenerate_towards_init" in gradtx.adam_atan2(regen_reg_rate=zero).init(ones())) == kept


@pytest.mark.parametrize("zero", [torch.tensor(0.0), Schedule(constant(0.0))], ids=["tensor", "schedule"])
def test_a_zero_that_is_no_literal_gives_the_same_updates(zero):
    for name in ("momentum", "weight_decay"):
        general, literal = gradtx.sgd(lr=0.1, **{name: zero}), gradtx.sgd(lr=0.1, **{name: 0.0})
        assert_close(run(general, 3)[0], run(literal, 3)[0], rtol=1e-7)  # one unit in the last place of float32


def test_replace_may_cross_the_line_of_the_literal_zero():
    tx = gradtx.sgd(momentum=0.0)
    heavy = tx.replace(momentum=0.9)
    assert "trace" in heavy.init(ones())
    assert "trace" not in heavy.replace(momentum=0.0).init(ones())
    with pytest.raises(ValueError, match="state lacks 'trace' of leaf 'a'"):
        heavy.update(ones(), tx.init(ones()))


def test_schedules_see_the_number_of_finished_updates():
    rates = []
    tx = gradtx.sgd(lr=Schedule(lambda step: 1.0 + step))
    state = tx.init(ones())
    for _ in range(3):
        updates, state = tx.update(ones(), state)
        rates.append(-updates["c"].item())
    assert rates == [1.0, 2.0, 3.0]


def test_an_entry_of_betas_may_be_a_tensor_or_a_schedule():
    plain = gradtx.scale_by_adam(betas=(0.5, 0.9))
    mixed = gradtx.scale_by_adam(betas=(torch.tensor(0.5), gradtx.constant_schedule(0.9)))
    params = noise(1, VECTORS)
    # the general formula in float64 tensors: rounding only
    assert_close(run(mixed, 3, params, params)[0], run(plain, 3, params, params)[0], rtol=1e-13)


def test_a_tensor_that_is_written_in_place_is_followed_at_the_next_step():
    lr = torch.tensor(1.0)
    tx = gradtx.sgd(lr=lr)
    lr.fill_(3.0)
    assert run(tx, 1)[0]["c"] == -3.0


# Needs.


@pytest.mark.parametrize(
    ("needs", "tx"),
    [
        ((), chain(gradtx.trace(0.9), gradtx.adam())),
        (("params",), gradtx.adamw()),
        ((), gradtx.adamw(weight_decay=0.0)),
        (("params",), gradtx.accumulate(chain(gradtx.adam(), gradtx.lookahead()), every=2)),
        (("params",), gradtx.partition({"x": gradtx.adam(), "y": gradtx.adamw()}, {"x": "a", "y": "*"})),
        (("grad_fn", "params"), chain(gradtx.adamw(), look_ahead())),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_needs_lists_what_update_requires(needs, tx):
    assert tx.needs == needs


# The layout of a state.


def test_the_state_has_one_step_and_an_entry_for_each_stage_with_state():
    tx = chain(
        gradtx.scale(2.0),
        gradtx.trace(0.9),
        gradtx.centralize(),
        gradtx.trace(0.5),
        gradtx.record("norm"),
        gradtx.adam(),
    )
    state = tx.init(ones())
    assert list(state) == ["step", "trace", "trace_1", "record", "scale_by_adam"]
    assert_same(state["step"], torch.tensor(0))
    assert_same(state["record"], {"norm": torch.tensor(0.0, dtype=torch.float64)})
    assert set(state["scale_by_adam"]) == {"exp_avg", "exp_avg_sq"}
    assert set(state["scale_by_adam"]["exp_avg"]) == {"a", "b", "c"}
    _, new = tx.update(ones(), state)
    assert layout(new) == layout(state)
    assert new["step"] == 1


def test_a_wrapper_holds_its_own_slots_beside_the_entries_of_its_chain():
    tx = chain(
        gradtx.trace(0.5), gradtx.accumulate(chain(gradtx.trace(0.9), gradtx.skip_nonfinite(gradtx.adam())), every=2)
    )
    state = tx.init(ones())
    assert set(state) == {"step", "trace", "accumulate"}
    assert set(state["accumulate"]) == {"step", "mini_step", "acc", "seen", "trace", "skip_nonfinite"}
    assert set(state["accumulate"]["skip_nonfinite"]) == {"step", "skipped", "scale_by_adam"}


def test_a_partition_has_one_entry_a_label():
    tx = gradtx.partition(
        {"x": gradtx.adam(), "y": gradtx.trace(0.9), "z": gradtx.scale(1.0)}, {"x": "a", "y": "b", "z": "c"}
    )
    state = tx.init(ones())
    assert set(state["partition"]) == {"x", "y"}  # z keeps nothing
    assert set(state["partition"]["x"]["scale_by_adam"]["exp_avg"]) == {"a"}
    assert set(state["partition"]["y"]["trace"]["momentum_buffer"]) == {"b"}


def test_the_state_of_a_chain_of_one_is_that_of_its_link():
    assert chain(HALVE) is HALVE
    assert_same(run(chain(gradtx.adam()), 2), run(gradtx.adam(), 2))


def test_leaf_names_are_dotted_paths():
    Point = collections.namedtuple("Point", "x y")
    params = {"layers": [{"w": torch.ones(1)}, {"w": torch.ones(1)}], "p": Point(torch.ones(1), (torch.ones(1),))}
    state = gradtx.trace(0.9).init(params)
    assert set(state["trace"]["momentum_buffer"]) == {"layers.0.w", "layers.1.w", "p.x", "p.y.0"}
    named = dict(torch.nn.Sequential(torch.nn.Linear(1, 1)).named_parameters())
    assert set(gradtx.trace(0.9).init(named)["trace"]["momentum_buffer"]) == {"0.weight", "0.bias"}


# Dtypes.


def seeing(dtypes):
    """A rule that notes the dtypes of all it gets."""

    def init(param):
        dtypes.add(param.dtype)
        return {"sum": torch.zeros_like(param)}

    def update(update, state, param, ctx):
        dtypes.update(x.dtype for x in (update, state["sum"], param, ctx.grad))
        return update, {"sum": state["sum"] + update}

    return made(update, init, lambda state, param: dtypes.add(param.dtype) or state["sum"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rules_never_see_half_precision(dtype):
    seen, params = set(), noise(1, VECTORS, dtype)
    tx = chain(seeing(seen), gradtx.accumulate(seeing(seen), every=1), gradtx.skip_nonfinite(seeing(seen)))
    _, state = run(tx, 2, params, params)
    tx.eval_params(state, params)
    assert seen == {torch.promote_types(dtype, torch.float32)}
    assert {t.dtype for p, t in tensors(state).items() if "'sum'" in p} == {dtype}


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_state_dtype_is_what_slots_are_kept_in_and_what_rules_compute_in(dtype, state_dtype):
    seen, params = set(), noise(1, VECTORS, dtype)

    @per_tensor
    def watched():
        return (
            _count_init,
            lambda update, state, param, ctx: (
                seen.update({update.dtype, param.dtype, state["sum"].dtype, ctx.grad.dtype}) or update,
                {"sum": state["sum"] + update},
            ),
        )

    updates, state = run(watched(state_dtype=state_dtype), 2, params, params)
    assert {t.dtype for t in state["watched"]["sum"].values()} == {state_dtype}
    assert seen == {torch.promote_types(torch.promote_types(dtype, state_dtype), torch.float32)}
    assert {u.dtype for u in updates.values()} == {dtype}


def test_an_alias_passes_state_dtype_on_to_its_links():
    params = noise(1, VECTORS, torch.bfloat16)
    tx = gradtx.adam(amsgrad=True, state_dtype=torch.float32)
    assert {t.dtype for t in tensors(tx.init(params)["scale_by_adam"]).values()} == {torch.float32}
    inner = gradtx.accumulate(gradtx.chain(gradtx.trace(0.9, state_dtype=torch.float64), gradtx.adam()), every=2)
    state = inner.init(params)["accumulate"]
    assert {t.dtype for t in tensors(state["trace"]).values()} == {torch.float64}
    assert {t.dtype for t in tensors(state["scale_by_adam"]).values()} == {torch.bfloat16}


def test_an_update_is_rounded_once_after_the_last_link():
    third = made(lambda update, state, param, ctx: (update / 3, state))
    triple = made(lambda update, state, param, ctx: (update * 3, state))
    grads = {"w": torch.arange(1, 200).bfloat16()}
    updates, _ = run(chain(third, triple), 1, grads, grads)  # rounding in between would change many of these
    assert_same(updates, grads)


def test_gradients_of_another_dtype_give_updates_of_theirs_and_slots_of_the_parameters():
    params, grads = noise(1, VECTORS, torch.float32), noise(2, VECTORS, torch.bfloat16)
    updates, state = run(gradtx.adamw(), 2, params, grads)
    assert {u.dtype for u in updates.values()} == {torch.bfloat16}
    assert {t.dtype for t in state["scale_by_adam"]["exp_avg"].values()} == {torch.float32}
    assert {p.dtype for p in gradtx.apply_updates(params, updates).values()} == {torch.float32}


def test_a_rule_may_ask_for_a_dtype_of_its_own():
    init = lambda param: {"bits": torch.zeros_like(param, dtype=torch.uint8), "n": torch.zeros((), dtype=torch.int64)}  # noqa: E731
    update = lambda update, state, param, ctx: (update, {"bits": state["bits"] + 1, "n": state["n"] + 1})  # noqa: E731
    _, state = run(made(update, init), 2, *(noise(1, VECTORS, torch.bfloat16),) * 2)
    assert state["rule"]["bits"]["a"].tolist() == [2] * 3
    assert state["rule"]["bits"]["a"].dtype == torch.uint8
    assert_same(state["rule"]["n"]["a"], torch.tensor(2))


# Memory: nothing that is returned shares it with what was given, or with one another.

LIKE = lambda param: {"prev": torch.zeros_like(param)}  # noqa: E731
TWO = lambda param: {"x": torch.zeros_like(param), "y": torch.ones_like(param)}  # noqa: E731
D = torch.tensor(0.5, dtype=torch.float64)


@per_tensor(shared={"d": lambda arguments: arguments["d0"]})
def shared_constant(d0: Scalar = 0.5):
    return lambda update, state, param, ctx: (update, {"d": state["d"]})


@per_tensor
def keeps_its_number(number: Scalar):
    return (
        lambda param: {"number": torch.zeros((), dtype=torch.float64)},
        lambda update, state, param, ctx: (update, {"number": number}),
    )


def _total_twice(update, state, param, ctx):
    total = yield {"n": update.sum()}
    yield update, {"x": total["n"] + 0 * state["x"], "y": total["n"].expand(update.shape)}


def _shared_totals(update, state, param, ctx):
    total = yield {"n": update.sum()}
    yield update, {"d": total["n"], "e": total["n"]}


def rotated(leaves):
    """Every leaf in the place of the one before it."""
    names = [name for name, leaf in leaves.items() if leaf is not None]
    return {**leaves, **{here: leaves[there] for here, there in zip(names, names[1:] + names[:1], strict=True)}}


@whole_tree
def rotate():
    return lambda updates, state, params, ctx: (rotated(updates), state)


@whole_tree
def swap_slots():
    init = lambda params: {"prev": {name: torch.zeros_like(p) for name, p in params.items()}, "n": torch.zeros(())}  # noqa: E731

    def update(updates, state, params, ctx):
        return updates, {"prev": rotated(params), "n": state["n"]}

    return init, update


ALIASING = {
    "update as it came": made(lambda update, state, param, ctx: (update, state)),
    "param as update": made(lambda update, state, param, ctx: (param, state), needs=("params",)),
    "a view of the update": made(lambda update, state, param, ctx: (update.flatten().view_as(update), state)),
    "update as slot": made(lambda update, state, param, ctx: (update, {"prev": update}), LIKE),
    "param as slot": made(lambda update, state, param, ctx: (update, {"prev": param}), lambda param: {"prev": param}),
    "grad as slot": made(lambda update, state, param, ctx: (2 * update, {"prev": ctx.grad}), LIKE),
    "state as it came": made(lambda update, state, param, ctx: (2 * update, state), LIKE),
    "slot as update": made(lambda update, state, param, ctx: (state["prev"], {"prev": update}), LIKE),
    "swapped slots": made(lambda update, state, param, ctx: (update, {"x": state["y"], "y": state["x"]}), TWO),
    "one tensor in two slots": made(lambda update, state, param, ctx: (update, dict.fromkeys("xy", update + 1)), TWO),
    "totals as slots": made(_total_twice, TWO),
    "totals as shared": made(_shared_totals, shared={"d": 0.0, "e": 0.0}),
    "unchanged shared": shared_constant(),
    "shared from a tensor": shared_constant(d0=D),
    "number as slot": keeps_its_number(D),
    "step as slot": made(
        lambda update, state, param, ctx: (update, {"prev": ctx.step}),
        lambda param: {"prev": torch.zeros((), dtype=torch.int64)},
    ),
    "time as slot": made(
        lambda update, state, param, ctx: (update, {"prev": ctx.time}),
        lambda param: {"prev": torch.zeros((), dtype=torch.float64)},
    ),
    "hessian as slot": made(
        lambda update, state, param, ctx: (update, {"prev": ctx.hessian_diag}), LIKE, needs=("hessian_diag",)
    ),
    "seed": normal(seed=1),
    "leaves of a tree as other leaves": rotate(),
    "params of a tree as other slots": swap_slots(),
    "plain functions": GradientTransformation(lambda params: params, lambda u, s, p: (p, s)),
    "plain state": GradientTransformation(lambda params: {"n": torch.zeros(())}, lambda u, s, p: (u, s)),
    "plain rotation": GradientTransformation(lambda params: (), lambda u, s, p: (rotated(u), s)),
}


@pytest.mark.parametrize("around", ["alone", "chain", "accumulate", "partition", "skip_nonfinite"])
@pytest.mark.parametrize("tx", ALIASING.values(), ids=ALIASING)
def test_no_output_shares_memory_with_an_input_or_another_output(tx, around):
    tx = WRAPPINGS[around](tx) if around != "chain" else chain(tx, gradtx.record("n"), tx)
    params, grads, hessian = noise(1, FLAT), noise(2, FLAT), noise(3, FLAT)
    state = tx.init(params)
    assert_own_memory(state, params, D)
    for _ in range(2):
        with untouched(params, grads, state, hessian):
            updates, new = tx.update(grads, state, params, hessian_diag=hessian)
        assert_own_memory([updates, new], params, grads, state, hessian, D)
        state = new


@pytest.mark.parametrize("tx", ALIASING.values(), ids=ALIASING)
def test_members_of_a_vmap_share_no_memory_either(tx):
    params, hessian = noise(1, FLAT), noise(3, FLAT)
    grads = {name: torch.stack([g, 2 * g]) for name, g in noise(2, FLAT).items()}
    state = tx.init(params)
    found = torch.vmap(lambda g: tx.update(g, state, params, hessian_diag=hessian))(grads)
    assert_own_memory(found, params, grads, state, hessian, D)


TRACED = [
    "update as it came",
    "param as slot",
    "swapped slots",
    "one tensor in two slots",
    "totals as slots",
    "unchanged shared",
    "step as slot",
]


@pytest.mark.parametrize("name", TRACED)
def test_outputs_of_a_compiled_update_share_no_memory_either(name):
    torch._dynamo.reset()
    tx, params, grads = ALIASING[name], noise(1, FLAT), noise(2, FLAT)
    state = tx.init(params)
    compiled = torch.compile(lambda g, s, p: tx.update(g, s, p), backend="eager", fullgraph=True)
    with untouched(params, grads, state):
        found = compiled(grads, state, params)
    assert_own_memory(found, params, grads, state)


@pytest.mark.parametrize("tx", [ALIASING["plain state"], gradtx.record("n"), normal(), ALIASING["update as slot"]])
@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_a_step_without_any_gradient_copies_the_state(tx, wrap):
    tx = wrap(tx)
    _, state = run(tx, 1)
    updates, new = tx.update(dict.fromkeys(ones()), state, ones())
    assert all(u is None or not u.any() for u in updates.values())
    assert_own_memory([updates, new], state, ones())


def test_a_leaf_that_is_given_twice_still_gives_two_updates():
    shared = torch.ones(3)
    tied = {"x": shared, "y": shared}
    updates, state = run(ALIASING["update as slot"], 2, tied, tied)
    assert_own_memory([updates, state], tied)


# None, names, evaluation.


def test_a_none_gradient_gives_a_none_update_and_is_left_out_of_sums():
    tx = chain(gradtx.record("norm"), gradtx.trace(0.9))
    state = tx.init(ones())
    updates, new = tx.update(ones(b=None), state)
    assert updates["b"] is None
    assert new["record"]["norm"] == 2.0  # of a and c: 3 + 1 entries of 1
    assert_same(new["trace"]["momentum_buffer"]["b"], state["trace"]["momentum_buffer"]["b"])


def test_a_none_leaf_of_the_parameters_is_no_parameter():
    params = ones(b=None)
    tx = gradtx.adamw()
    updates, state = run(tx, 2, params, params)
    assert updates["b"] is None
    assert set(state["scale_by_adam"]["exp_avg"]) == {"a", "c"}
    assert gradtx.apply_updates(params, updates)["b"] is None


def test_apply_updates_adds_in_the_parameters_dtype_and_keeps_what_has_no_update():
    params = {"x": torch.ones(2, dtype=torch.bfloat16), "y": [torch.ones(1), None]}
    updates = {"y": [None, None], "x": torch.full((2,), 2**-10)}
    with untouched(params, updates):
        new = gradtx.apply_updates(params, updates)
    assert new["x"].dtype == torch.bfloat16
    assert new["x"].tolist() == [1.0, 1.0]
    assert new["y"][0] is params["y"][0]


def test_apply_updates_adds_wide_updates_before_it_rounds():
    params, updates = {"w": torch.tensor(256.0).bfloat16()}, {"w": torch.tensor(1.5)}
    assert gradtx.apply_updates(params, updates)["w"] == 258.0  # 1.5 alone would add nothing to round(256 + 1)


def test_a_leaf_is_found_by_name_whatever_the_order_of_dicts():
    tx = chain(gradtx.adamw(lr=0.1), gradtx.lookahead(k=2))
    params, grads = noise(1, VECTORS), noise(2, VECTORS)
    backwards = lambda tree: dict(reversed(tree.items()))  # noqa: E731
    state = tx.init(params)
    for mine, theirs in ((backwards(grads), params), (grads, backwards(params)), (backwards(grads), backwards(params))):
        updates, new = tx.update(mine, state, theirs)
        expected, expected_state = tx.update(grads, state, params)
        assert list(updates) == list(mine)
        assert_same({name: updates[name] for name in grads}, expected)
        assert_same(new, expected_state)


def test_two_leaves_of_one_dotted_name_are_refused():
    with pytest.raises(ValueError, match=r"params: two leaves are both named 'x\.y'; rename a key"):
        gradtx.adam().init({"x": {"y": torch.ones(1)}, "x.y": torch.ones(1)})


def test_eval_params_asks_the_last_link_with_an_opinion_leaf_by_leaf():
    tx = gradtx.partition(
        {"x": chain(gradtx.sgd(0.1), gradtx.average(), gradtx.lookahead(k=9)), "y": gradtx.sgd(0.1)},
        {"x": "a", "y": "*"},
    )
    params = noise(1, VECTORS)
    _, state = run(tx, 2, params, noise(2, VECTORS))
    now = noise(3, VECTORS)
    with untouched(now, state):
        found = tx.eval_params(state, now)
    assert_same(found, {**now, "a": state["partition"]["x"]["lookahead"]["slow"]["a"]})
    assert_own_memory(found["a"], state)


EVALUATED = {
    "average in accumulate": (gradtx.accumulate(chain(gradtx.sgd(0.1), gradtx.average()), every=1), "average"),
    "average in skip": (gradtx.skip_nonfinite(chain(gradtx.sgd(0.1), gradtx.average())), "average"),
    "average in masked": (gradtx.masked(chain(gradtx.sgd(0.1), gradtx.average()), "a"), "average"),
    "with_lookahead": (gradtx.with_lookahead(gradtx.sgd(0.1), k=9), "slow"),
    "around an average": (gradtx.with_lookahead(chain(gradtx.sgd(0.1), gradtx.average()), k=9), "slow"),
    "before other links": (chain(gradtx.average(), gradtx.scale(1.0), gradtx.clip_by_value(9.0)), "average"),
}


@pytest.mark.parametrize(("tx", "slot"), EVALUATED.values(), ids=EVALUATED)
def test_eval_params_looks_inside_wrappers(tx, slot):
    _, state = run(tx, 2, grads=noise(2, VECTORS, torch.float32))
    kept = [value for path, value in tensors(state).items() if path.endswith(f"['{slot}']['a']")]
    assert torch.equal(tx.eval_params(state, ones())["a"], kept[0])


def test_eval_params_gives_the_parameters_where_no_link_has_an_opinion_or_they_are_frozen():
    tx = chain(gradtx.sgd(0.1), gradtx.average(), gradtx.freeze("b"))
    _, state = run(tx, 2)
    now = noise(3, VECTORS, torch.float32)
    found = tx.eval_params(state, now)
    assert_same(found["b"], now["b"])
    assert not torch.equal(found["a"], now["a"])
    assert_same(gradtx.adam().eval_params(gradtx.adam().init(now), now), now)


def test_eval_params_keeps_the_parameters_dtype():
    params = noise(1, VECTORS, torch.bfloat16)
    tx = chain(gradtx.sgd(0.1), gradtx.average(state_dtype=torch.float32))
    _, state = run(tx, 2, params, params)
    assert layout(tx.eval_params(state, params)) == layout(params)


# Aliases.


@alias
def derived(lr: Scalar = 0.1, betas: Betas = (0.81, 0.9), weight_decay: Scalar = 0.0, momentum: Scalar = 0.5):
    root = betas[0] ** 0.5
    decay = weight_decay / (1 - momentum)
    return chain(gradtx.ema(root), gradtx.add_decayed_weights(decay), gradtx.scale_by_learning_rate(lr))


def test_values_that_an_alias_derives_are_derived_anew_at_every_step():
    rising = Schedule(lambda step: torch.where(torch.as_tensor(step) < 1, 0.25, 0.81).double())
    tx, state = derived(lr=1.0, betas=(rising, 0.9)), derived().init(ones())
    first, state = tx.update(ones(), state, ones())
    second, state = tx.update(ones(), state, ones())
    # float32 values: m = 0.5, then 0.9 * 0.5 + 0.1
    assert first["c"].item() == pytest.approx(-0.5, rel=1e-6)
    assert second["c"].item() == pytest.approx(-0.55, rel=1e-6)


def test_derived_values_follow_replace_and_tensors():
    grads = {name: torch.zeros_like(leaf) for name, leaf in ones().items()}
    moved = [
        derived(lr=1.0, weight_decay=0.5, momentum=0.75),
        derived(lr=1.0, weight_decay=0.5).replace(momentum=0.75),
        derived(lr=1.0, weight_decay=torch.tensor(0.5), momentum=torch.tensor(0.75)),
        chain(gradtx.scale(1.0), derived(lr=1.0, weight_decay=0.5)).replace(momentum=0.75),
    ]
    for tx in moved:
        assert run(tx, 1, grads=grads)[0]["c"] == -2.0  # 0.5 / (1 - 0.75)


def test_an_alias_of_an_alias_owns_its_names():
    @alias
    def outer(lr: Scalar = 0.1, factor: Scalar = 2.0):
        return chain(derived(lr=factor * lr))

    assert set(outer().hyperparams) == {"lr", "factor", "maximize"}
    assert repr(chain(outer(factor=3.0))) == "outer(factor=3.0)"


def test_maximize_negates_the_gradient_that_rules_see_too():
    @alias
    def plain_gradient(lr: Scalar = 1.0):
        return chain(gradtx.trace(0.9), made(lambda update, state, param, ctx: (lr * ctx.grad, state)))

    assert torch.equal(run(plain_gradient(maximize=True), 2)[0]["a"], -torch.ones(3))


def test_maximize_inside_a_chain_negates_what_comes_in():
    tx = chain(gradtx.trace(0.5), gradtx.sgd(lr=1.0, maximize=True))
    assert torch.equal(run(tx, 2)[0]["a"], torch.full((3,), 1.5))
