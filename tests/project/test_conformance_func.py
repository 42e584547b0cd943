"""What every rule, alias and combinator does under torch.func and torch.compile; they join as in test_conformance."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._pytree import tree_map

import gradtx
from gradtx.pure import graph_node as graphs
from tests.conformance import (
    ALL_SHAPES,
    assert_close,
    assert_own_memory,
    chain_of,
    extras,
    field,
    floats_of,
    loss,
    noise,
    plain_cases,
    step,
    tensors,
    train,
)
from tests.tiers import each_case, each_pack, each_set

COMBINATORS = [case for case in plain_cases() if case.factory.spec.kind == "combinator"]
WEIGHTS = noise(9, ALL_SHAPES)


# Inductor and torch.func.jvp load parts of torch that use torch.jit.
torchs_own_deprecation = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def values(places):
    return double([place.value for place in places])


def made(case, places, numbers):
    return case.make(dict(zip(places, numbers.unbind(), strict=True)))


def objective(params):
    return sum(((WEIGHTS[name] * p).sum() for name, p in params.items()), double(0.0))


def stacked(trees):
    return tree_map(lambda *leaves: torch.stack(leaves), *trees)


def member(tree, i):
    return tree_map(lambda leaf: leaf[i], tree)


# vmap.


def members_of(case, places, count):
    """Members that differ in every number and in their weights."""
    return [(values(places) * (1 - 0.05 * i), case.noise(1 + i)) for i in range(count)]


def advanced(tx, params, state):
    state = tx.init(params) if state is None else state
    updates, state = step(tx, field(params), state, params)
    return gradtx.apply_updates(params, updates), state


def run_of(case, places, member, steps):
    """The weights and states of a member that steps alone, with Python floats, whose programs other tests share."""
    numbers, params = member
    tx = case.make(dict(zip(places, numbers.tolist(), strict=True)))
    run, state = [], None
    for _ in range(steps):
        params, state = advanced(tx, params, state)
        run.append((params, state))
    return run


@each_set
def test_vmap_over_every_float_and_over_stacked_weights_and_states_equals_a_loop(case, places):
    def advance(numbers, params, state):
        return advanced(made(case, places, numbers), params, state)

    # Later, members differ in the steps that they have done too.
    members = members_of(case, places, 3)
    runs = [run_of(case, places, each, 4) for each in members]
    numbers, params = stacked(members)
    first = torch.vmap(lambda numbers, params: advance(numbers, params, None))(numbers, params)
    later = torch.vmap(advance)(numbers, *stacked([run[i] for i, run in enumerate(runs)]))
    for i, run in enumerate(runs):
        # Batched kernels may add in another order.
        assert_close(member(first, i), run[0], rtol=1e-11, atol=1e-12)
        assert_close(member(later, i), run[i + 1], rtol=1e-11, atol=1e-12)


@each_set
def test_vmap_over_numbers_alone_with_weights_that_members_share_equals_a_loop(case, places):
    # Weights of float32, whose dtype those of the numbers must not widen; values that are known outside of vmap.
    params = case.noise(1, dtype=torch.float32)
    numbers = torch.stack([values(places), 0.95 * values(places)])

    def second(numbers):
        tx = made(case, places, numbers)
        return advanced(tx, *advanced(tx, params, None))

    weights, state = torch.vmap(second)(numbers)
    for i, own in enumerate(numbers):
        tx = case.make(dict(zip(places, own.tolist(), strict=True)))
        alone, state_alone = advanced(tx, *advanced(tx, params, None))
        assert {path: x.dtype for path, x in tensors(state).items()} == {
            path: x.dtype for path, x in tensors(state_alone).items()
        }
        # float32, which some rules divide by small differences
        assert_close(member(weights, i), alone, rtol=1e-2, atol=1e-4)


@each_set
def test_the_first_step_of_an_alias_under_vmap_equals_a_loop(case, places):
    members = members_of(case, places, 2)
    batched = torch.vmap(lambda numbers, params: advanced(made(case, places, numbers), params, None))
    weights, state = batched(*stacked(members))
    for i, each in enumerate(members):
        alone, state_alone = run_of(case, places, each, 1)[0]
        assert_close(member(weights, i), alone, rtol=1e-11, atol=1e-12)
        # A first gradient leaves eigenvalues of 0, whose eigenvectors are free.
        assert_close(_without_bases(member(state, i)), _without_bases(state_alone), rtol=1e-11, atol=1e-12)


def _without_bases(state):
    return {path: tensor for path, tensor in tensors(state).items() if "'Q_" not in path}


# Derivatives.


@torchs_own_deprecation
@each_set
def test_reverse_and_forward_derivatives_by_every_float_and_by_the_first_weights_are_difference_quotients(case, places):
    params, direction = case.noise(1), case.noise(3)

    def result(numbers, far):
        """Of a run with these numbers, from weights that are moved along the direction."""
        start = {name: p + far * direction[name] for name, p in params.items()}
        return objective(train(made(case, places, numbers), start, 5))

    at, ways = (values(places), double(0.0)), torch.eye(len(places) + 1, dtype=torch.float64)
    reverse = torch.cat([slope.reshape(-1) for slope in torch.func.grad(result, (0, 1))(*at)])
    forward = torch.vmap(lambda way: torch.func.jvp(result, at, (way[:-1], way[-1]))[1])(ways)
    # The longer difference is for results whose rounding is too large for the shorter one: 1e-15 / h of their terms.
    for h in (1e-6, 1e-5):
        up, down = (
            torch.vmap(lambda way, far=far: result(at[0] + far * way[:-1], far * way[-1]))(ways) for far in (h, -h)
        )
        quotients = (up - down) / (2 * h)
        tolerance = 1e-7 * (1 + up.abs()) + 1e-5 * quotients.abs()
        wrong = ~(((reverse - quotients).abs() < tolerance) & ((forward - quotients).abs() < tolerance))
        if not wrong.any():
            return
    names = [*map(str, places), "first weights"]
    raise AssertionError([(names[i], reverse[i], forward[i], quotients[i]) for i in wrong.nonzero().flatten()])


@each_set
def test_grad_of_a_vmapped_run_and_vmap_of_grad_equal_the_grad_of_each_member(case, places):
    def result(numbers, params):
        return objective(train(made(case, places, numbers), params, 3))

    members = [(values(places) * (1 - 0.05 * i), case.noise(1 + i)) for i in range(2)]
    slopes = torch.func.grad(result, (0, 1))
    batched = torch.vmap(slopes)(*stacked(members))
    whole = torch.func.grad(lambda *at: torch.vmap(result)(*at).sum(), (0, 1))(*stacked(members))
    for i, at in enumerate(members):
        for found in (batched, whole):
            # Batched kernels may add in another order, and slopes add up over steps.
            assert_close(member(found, i), slopes(*at), rtol=1e-9, atol=1e-11)


@torchs_own_deprecation
@each_case
def test_forward_derivatives_are_the_same_under_no_grad(case):
    def result(far):
        start = {name: p * (1 + far) for name, p in case.noise(1).items()}
        return objective(train(case.make(), start, 2))

    at, along = (double(0.0),), (double(1.0),)
    with torch.no_grad():
        found = torch.func.jvp(result, at, along)[1]
    assert_close([found], [torch.func.jvp(result, at, along)[1]], rtol=1e-12, atol=1e-14)  # other roots, same numbers


# Compilation.

MATRIX, VECTOR = {"matrix": (3, 4)}, {"vector": (5,)}


def training_step(tx):
    """A whole step along the gradient of `loss`, which `shift` moves."""
    whole = gradtx.train_step(loss, tx)

    def advance(params, state, shift):
        known = {need: x for need, x in extras(tx, params).items() if need not in ("value", "grad_fn")}
        return whole(params, state, shift, **known)

    return advance


# Every rule stands in a pack, and aliases are chains of these. Tracing takes a time for each leaf.
@pytest.mark.parametrize("shapes", [MATRIX, VECTOR], ids=["matrix", "vector"])
@each_pack
def test_a_compiled_training_step_is_one_graph_for_twenty_steps_of_new_numbers(pack, shapes):
    torch._dynamo.reset()
    floats, counter = {place: double(place[1].value) for place in floats_of(pack)}, CompileCounter()
    tx = chain_of(pack, floats)
    advance = training_step(tx)
    compiled = torch.compile(advance, backend=counter, fullgraph=True)
    state = tx.init(pack[0].noise(1, shapes))
    for i in range(20):
        at = (pack[0].noise(1 + i, shapes), state, double(0.1 * i))  # other weights, since those of a rule may grow
        found = compiled(*at)
        assert_own_memory(found, at[0], at[2])
        if i in (0, 1, 19):
            assert_close(found, advance(*at), rtol=1e-12, atol=1e-12)  # the same operations, traced
        state = found[1]
        for tensor in floats.values():
            tensor.mul_(0.99)
    assert counter.frame_count == 1


@each_case
@pytest.mark.parametrize("few", [1, 100])
def test_a_compiled_update_equals_the_eager_one(few, case, monkeypatch):
    monkeypatch.setattr(graphs, "FEW_LEAVES", few)
    torch._dynamo.reset()
    tx = chain_of((case,), {})
    compiled = torch.compile(training_step(tx), backend="aot_eager", fullgraph=True)
    params = case.noise(1, ALL_SHAPES)
    at = eager = params, tx.init(params)
    for i in range(3):
        at = compiled(*at, double(0.1 * i))[:2]
        eager = training_step(tx)(*eager, double(0.1 * i))[:2]
        assert_close(at, eager, rtol=1e-9, atol=1e-11)  # kernels fuse products and sums
        eager = at  # differences may grow


# Bodies with constant arguments run only at construction, so dynamo sees their closures from outside.
CONSTANTS = {
    "bfloat16": lambda: gradtx.muon(),
    "sides": lambda: gradtx.psgd_kron(),
    "schedule": lambda: gradtx.sgd(lr=gradtx.cosine_schedule(0.1, 5), momentum=0.9),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONSTANTS)
def test_a_compiled_update_in_single_precision_with_constants_is_one_graph(name):
    torch._dynamo.reset()
    counter, tx = CompileCounter(), CONSTANTS[name]()
    # With dynamic=True, dynamo treats floats as symbols.
    compiled = torch.compile(lambda *trees: tx.update(*trees), backend=counter, fullgraph=True, dynamic=True)
    params = noise(1, {"matrix": (3, 4)}, torch.float32)
    state = tx.init(params)
    for i in range(2):
        at = (noise(2 + i, {"matrix": (3, 4)}, torch.float32), state, params)
        found = compiled(*at)
        assert_close(found, tx.update(*at), rtol=1e-5, atol=1e-6)  # sums in another order
        state = found[1]
    assert counter.frame_count == 1


def step_of_members(pack):
    """A training step with its own numbers, and two members for it; of one leaf, so that it compiles fast."""
    places = floats_of(pack)
    present = double([place.value for _, place in places])

    def chain_with(numbers):
        return chain_of(pack, dict(zip(places, numbers.unbind(), strict=True)))

    def advance(numbers, params, state, shift):
        return training_step(chain_with(numbers))(params, state, shift)

    members = []
    for i in range(2):
        params, numbers = pack[0].noise(1 + i, {"matrix": (3, 4)}), present * (1 - 0.05 * i)
        members.append((numbers, params, chain_with(numbers).init(params), double(0.1 * i)))
    return advance, stacked(members)


@each_pack
def test_a_compiled_step_of_members_with_their_own_numbers_is_one_graph(pack):
    torch._dynamo.reset()
    counter = CompileCounter()
    advance, (numbers, params, state, shift) = step_of_members(pack)
    together = torch.vmap(advance)
    compiled = torch.compile(together, backend=counter, fullgraph=True)
    for i in range(3):
        at = (numbers * (1 - 0.01 * i), params, state, shift + 0.1 * i)
        found = compiled(*at)
        assert_close(found, together(*at), rtol=1e-12, atol=1e-12)  # the same operations, traced
        params, state, _ = found
    assert counter.frame_count == 1


@each_case
def test_vmap_of_a_compiled_step_equals_the_vmap_of_the_step(case):
    torch._dynamo.reset()
    advance, members = step_of_members((case,))
    # Not "eager": there torch looks away.
    found = torch.vmap(torch.compile(advance, backend="aot_eager", fullgraph=True))(*members)
    assert_close(found, torch.vmap(advance)(*members), rtol=1e-12, atol=1e-12)


@torchs_own_deprecation
def test_a_whole_step_through_inductor_equals_eager():
    torch._dynamo.reset()
    lr = torch.tensor(0.1)
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=lr))
    params, advance = noise(1, {"matrix": (3, 4), "columns": (2, 5)}, torch.float32), training_step(tx)
    compiled, state = torch.compile(advance, fullgraph=True), tx.init(params)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for i in range(3):
            at = (params, state, torch.tensor(0.1 * i))
            found = compiled(*at)
            # Fused kernels contract multiplications and additions: a few units in the last place of float32.
            assert_close(found, advance(*at), rtol=1e-5, atol=1e-6)
            params, state, _ = found
            lr.mul_(0.5)


@pytest.mark.slow
def test_a_chain_built_inside_a_compiled_step_does_not_recompile_either():
    torch._dynamo.reset()
    counter = CompileCounter()

    def update(lr, beta, grads, state, params):
        tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=lr, betas=(beta, 0.99)))
        return tx.update(grads, state, params)

    compiled = torch.compile(update, backend=counter, fullgraph=True)
    params, grads = noise(1, MATRIX), noise(2, MATRIX)
    plain = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(betas=(0.9, 0.99)))
    state = plain.init(params)
    for lr, beta in ((1e-3, 0.9), (1e-2, 0.8), (1.0, 0.5)):
        updates, _ = compiled(double(lr), double(beta), grads, state, params)
        expected = plain.replace(lr=lr, betas=(beta, 0.99)).update(grads, state, params)[0]
        assert_close(updates, expected, rtol=1e-12)  # the same operations, traced
    assert counter.frame_count == 1
