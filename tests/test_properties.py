"""Properties that hold for any tree, any chain and any split of the leaves."""

import collections
import io

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import gradtx
from gradtx import accumulate, chain, freeze, masked, partition, skip_nonfinite
from gradtx.programs import pure as _pure_lists
from tests.conformance import assert_close, assert_own_memory, assert_same, layout, snapshot, tensors, untouched

examples = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

Pair = collections.namedtuple("Pair", "first second")
SHAPES = [(), (1,), (3,), (0,), (2, 2), (0, 2), (2, 1, 2)]
NAMES = ["a", "b", "c", "d"]


def filled(shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(autouse=True, scope="module")
def _leaf_by_leaf():
    """Without programs: these round otherwise, and most equalities here hold bit for bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pure_lists, "update", lambda *arguments: None)
        yield


# Trees: the same form holds parameters and gradients; a leaf is (shape, seed) until then.

specs = st.tuples(st.sampled_from(SHAPES), st.integers(0, 99))


def forms(leaves):
    keys = st.sampled_from(["x", "y", "z", "0", "w_1"])
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.dictionaries(keys, inner, max_size=3),
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=2).map(lambda items: ("t", *items)),
            st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        ),
        max_leaves=6,
    )


def is_spec(form):
    return isinstance(form, tuple) and not isinstance(form, Pair) and len(form) == 2 and isinstance(form[0], tuple)


def build(form, shift=0):
    """A tree of tensors of a form."""
    if form is None:
        return None
    if is_spec(form):
        return filled(form[0], form[1] + 1000 * shift)
    if isinstance(form, dict):
        return {key: build(inner, shift) for key, inner in form.items()}
    if isinstance(form, Pair):
        return Pair(*(build(inner, shift) for inner in form))
    if isinstance(form, tuple):
        return tuple(build(inner, shift) for inner in form[1:])
    return [build(inner, shift) for inner in form]


def backwards(form):
    """The same form, its dicts in the other order."""
    if isinstance(form, dict):
        return {key: backwards(form[key]) for key in reversed(form)}
    if is_spec(form) or form is None:
        return form
    if isinstance(form, Pair):
        return Pair(*(backwards(inner) for inner in form))
    return type(form)("t" if inner == "t" else backwards(inner) for inner in form)


trees = forms(st.one_of(specs, st.none())).filter(lambda form: form is not None)
flat_trees = st.dictionaries(st.sampled_from(NAMES), specs, min_size=1)

# Chains.

LINKS = [
    gradtx.scale(0.5),
    gradtx.clip_by_global_norm(1.0),
    gradtx.trace(0.9),
    gradtx.add_decayed_weights(0.1),
    gradtx.scale_by_adam(),
    gradtx.ema(0.5, debias=True),
    gradtx.record("norm"),
    gradtx.lookahead(k=2),
    gradtx.adamw(lr=gradtx.linear_schedule(0.1)),
    accumulate(gradtx.sgd(lr=0.1, momentum=0.9), every=2),
    skip_nonfinite(gradtx.scale_by_rms()),
    masked(gradtx.trace(0.5), lambda name, p: p.ndim == 0),
    gradtx.with_lookahead(gradtx.trace(0.5), k=2, pullback_momentum="reset"),
]
links = st.sampled_from(LINKS)
chains = st.lists(links, max_size=4).map(lambda txs: chain(*txs))


def steps(tx, params, gradients):
    """Updates of every step, the last state and the last parameters."""
    state, found = tx.init(params), []
    for grads in gradients:
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        found.append(updates)
    return found, state, params


UPDATE_BY_PROGRAM = _pure_lists.update


@examples
@given(trees, chains)
def test_programs_equal_updates_leaf_by_leaf(form, tx):
    params, gradients = build(form), [build(form, seed) for seed in (1, 2, 3)]
    expected = steps(tx, params, gradients)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pure_lists, "update", UPDATE_BY_PROGRAM)
        for tree in (params, *gradients):
            before = snapshot(tree)
            found = steps(tx, params, gradients)
            assert_same(snapshot(tree), before)
    assert_close(found, expected, rtol=1e-11, atol=1e-13)


@examples
@given(st.lists(links, min_size=1, max_size=5), st.data())
def test_chains_are_associative(txs, data):
    def nested(items):
        if len(items) <= 1:
            return chain(*items)
        cut = data.draw(st.integers(0, len(items)))
        return chain(nested(items[:cut]), *items[cut:]) if cut < len(items) else chain(*items)

    params, grads = {"a": filled((3,), 1), "b": filled((2, 2), 2)}, {"a": filled((3,), 3), "b": filled((2, 2), 4)}
    one, flat = nested(txs), chain(*txs)
    assert repr(one) == repr(flat)
    assert_same(steps(one, params, [grads] * 3), steps(flat, params, [grads] * 3))


@examples
@given(chains, st.integers(0, 2))
def test_the_empty_chain_is_the_identity_of_chain(tx, place):
    params, grads = {"a": filled((3,), 1)}, {"a": filled((3,), 2)}
    with_empty = chain(chain(), tx) if place == 0 else chain(tx, chain()) if place == 1 else chain(chain(tx))
    assert_same(steps(with_empty, params, [grads] * 3), steps(tx, params, [grads] * 3))


@examples
@given(trees, chains)
def test_any_tree_goes_through_any_chain_and_comes_back_in_its_form(form, tx):
    params, grads = build(form), build(form, 1)
    (_, updates), state, after = steps(tx, params, [grads] * 2)
    for tree in (updates, after):
        assert layout(tree) == layout(params)
        assert torch.utils._pytree.tree_structure(tree) == torch.utils._pytree.tree_structure(params)
    assert state["step"] == 2


@examples
@given(trees, st.lists(st.booleans(), min_size=9, max_size=9), chains)
def test_gradients_may_be_none_anywhere(form, missing, tx):
    params, coins = build(form), iter(missing * 9)
    grads = torch.utils._pytree.tree_map(lambda leaf: None if next(coins) else leaf, build(form, 1))
    before = tx.init(params)
    with untouched(params, grads, before):
        updates, state = tx.update(grads, before, params)
    assert layout(state) == layout(before)
    assert layout(gradtx.apply_updates(params, updates)) == layout(params)


@examples
@given(trees, chains)
def test_inputs_are_bit_identical_afterwards_and_outputs_own_their_memory(form, tx):
    params, state = build(form), tx.init(build(form))
    for shift in (1, 2):
        grads = build(form, shift)
        with untouched(params, grads, state):
            updates, new = tx.update(grads, state, params)
            gradtx.apply_updates(params, updates)
            tx.eval_params(new, params)
        assert_own_memory([updates, new], params, grads, state)
        state = new


@examples
@given(trees, chains)
def test_states_survive_torch_save_with_weights_only(form, tx):
    params, grads = build(form), build(form, 1)
    _, state, _ = steps(tx, params, [grads] * 2)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert_same(loaded, state)
    assert_same(tx.update(grads, loaded, params), tx.update(grads, state, params))


@examples
@given(trees, chains)
def test_the_order_of_dicts_does_not_matter(form, tx):
    params, grads = build(form), build(form, 1)
    found, state, after = steps(tx, params, [grads] * 2)
    other = backwards(form)
    theirs, their_state, their_after = steps(tx, build(other), [build(other, 1)] * 2)
    mixed, mixed_state = tx.update(build(other, 1), tx.init(params), params)
    assert_close((theirs, their_after), (found, after), rtol=0)
    assert_close(their_state, state, rtol=0)
    assert_close(mixed, found[0], rtol=0)
    assert layout(mixed_state) == layout(tx.init(params))


@examples
@given(flat_trees, st.lists(links, min_size=1, max_size=3))
def test_how_leaves_are_grouped_into_dicts_does_not_matter(form, txs):
    tx = chain(*txs)
    params, grads = build(form), build(form, 1)
    nest = lambda tree: {"top": [tree], "none": None}  # noqa: E731
    found, _, after = steps(tx, params, [grads] * 2)
    nested, _, nested_after = steps(tx, nest(params), [nest(grads)] * 2)
    assert_same(nested, [nest(updates) for updates in found])
    assert_same(nested_after, nest(after))


# Splits of the leaves.

labelled = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["x", "y"]), min_size=1)


def leaves_of(labels, shift=0):
    return {name: filled((2, 2) if name in "ab" else (), NAMES.index(name) + 10 * shift) for name in labels}


@examples
@given(labelled, links, links)
def test_a_partition_equals_its_branches_run_apart(labels, x, y):
    txs = {"x": x, "y": y}
    params, grads = leaves_of(labels), leaves_of(labels, 1)
    together, _, after = steps(partition(txs, lambda name, p: labels[name]), params, [grads] * 3)
    for label, tx in txs.items():
        mine = {name for name in labels if labels[name] == label}
        part = lambda tree, mine=mine: {name: leaf for name, leaf in tree.items() if name in mine}  # noqa: E731
        alone, _, alone_after = steps(tx, part(params), [part(grads)] * 3)
        assert_same([part(updates) for updates in together], alone)
        assert_same(part(after), alone_after)


@examples
@given(st.lists(st.sets(st.sampled_from(NAMES), min_size=1), min_size=1, max_size=3), st.booleans())
def test_overlapping_selectors_give_a_leaf_to_the_first(selections, by_pattern):
    selectors = {
        str(i): tuple(sorted(chosen)) if by_pattern else lambda name, p, chosen=chosen: name in chosen
        for i, chosen in enumerate(selections)
    }
    txs = {label: gradtx.scale(float(label) + 2) for label in reversed(selectors)} | {"rest": gradtx.scale(1.0)}
    grads = leaves_of(NAMES)
    tx = partition(txs, selectors | {"rest": "*"})
    updates, _ = tx.update(grads, tx.init(grads))
    for name, g in grads.items():
        first = next((i + 2.0 for i, chosen in enumerate(selections) if name in chosen), 1.0)
        assert_same(updates[name], first * g)


@examples
@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_a_leaf_that_no_selector_covers_is_an_error_that_names_it(covered):
    grads = leaves_of(NAMES)
    tx = partition({"x": gradtx.scale(1.0)}, {"x": tuple(sorted(covered))})
    missing = [name for name in NAMES if name not in covered]
    if not missing:
        tx.init(grads)
        return
    with pytest.raises(ValueError, match=f"partition: leaf '{missing[0]}' has no label"):
        tx.init(grads)


@examples
@given(labelled, chains, st.integers(0, 4), st.booleans())
def test_freeze_gives_exactly_zero_and_the_rest_trains_as_if_alone(labels, tx, place, by_pattern):
    frozen = {name for name, label in labels.items() if label == "y"}
    assume(frozen)
    selector = tuple(sorted(frozen)) if by_pattern else lambda name, p: name in frozen
    txs = [tx, tx]
    txs.insert(min(place, 2), freeze(selector))
    params, grads = leaves_of(labels), leaves_of(labels, 1)
    found, state, after = steps(chain(*txs), params, [grads] * 3)
    part = lambda tree: {name: leaf for name, leaf in tree.items() if name not in frozen}  # noqa: E731
    for name in frozen:
        assert_same(after[name], params[name])
        assert_same([updates[name] for updates in found], [torch.zeros_like(params[name])] * 3)
    slots = [path for path in tensors(state) if "['members']" not in path]
    assert not any(path.endswith(f"['{name}']") for path in slots for name in frozen)
    alone, _, _ = steps(chain(tx, tx), part(params), [part(grads)] * 3)
    assert_same([part(updates) for updates in found], alone)


# Accumulation.

DYADIC = st.integers(-8, 8).map(lambda n: n / 4)  # sums and halves of these are exact


@examples
@given(
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.lists(st.one_of(st.none(), DYADIC), min_size=12, max_size=12),
    chains,
)
def test_accumulate_equals_the_big_batch(every, cycles, values, inner):
    def gradient(i):
        value = values[i]
        return {
            "w": None if value is None else torch.tensor([value, 1.0]).double(),
            "b": torch.tensor(float(i)).double(),
        }

    calls = [gradient(i) for i in range(every * cycles)]
    batches = []
    for start in range(0, len(calls), every):
        cycle = calls[start : start + every]
        given_w = [call["w"] for call in cycle if call["w"] is not None]
        batches.append({"w": sum(given_w) / every if given_w else None, "b": sum(call["b"] for call in cycle) / every})
    params = {"w": filled((2,), 1), "b": filled((), 2)}
    tx = accumulate(inner, every=every)
    expected, _, _ = steps(inner, params, batches)
    state = tx.init(params)
    for i, call in enumerate(calls):
        updates, state = tx.update(call, state, params)
        emitted = i % every == every - 1
        for name, update in updates.items():
            wanted = expected[i // every][name] if emitted else None
            assert_same(_or_zero(update, params[name]), _or_zero(wanted, params[name]))
        if emitted:
            params = gradtx.apply_updates(params, updates)


def _or_zero(update, param):
    return torch.zeros_like(param) if update is None else update


@examples
@given(st.lists(st.booleans(), min_size=1, max_size=6), chains)
def test_skipped_steps_leave_no_trace(good, inner):
    params, state = {"w": filled((2,), 1), "b": filled((), 2)}, None
    tx = skip_nonfinite(inner)
    calls = [{"w": filled((2,), 10 + i), "b": filled((), 20 + i)} for i in range(len(good))]
    _, expected, after = steps(inner, params, [call for call, ok in zip(calls, good, strict=True) if ok])
    state = tx.init(params)
    for call, ok in zip(calls, good, strict=True):
        updates, state = tx.update(call if ok else {**call, "b": call["b"] * torch.inf}, state, params)
        params = gradtx.apply_updates(params, updates)
    entry = dict(snapshot(state["skip_nonfinite"]))
    assert entry.pop("skipped") == good.count(False)
    assert_close(entry, expected, rtol=0)
    assert_same(params, after)
