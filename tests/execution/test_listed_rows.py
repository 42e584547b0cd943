"""Sparse gradients: what all factories of the library do with the rows that one lists, and what refuses them."""

import re

import pytest
import torch

import gradtx
from tests.conformance import assert_close, assert_same, extras, field, noise, snapshot, step_extras, tensors
from tests.tiers import each_case

COUNT = 7
SHAPES = {"table": (COUNT, 3), "vector": (COUNT,)}
DENSE = {"dense": (4, 3)}
# The rule adds up in another order, and over fewer terms.
TOLERANCE = 1e-12
# The slots whose rows move rows that a step does not list.
MOVING = re.compile(r"\['(trace(?:_\d+)?'\]\['momentum_buffer|accumulate'\]\['acc)'\]\['(?:table|vector)'\]")


def rows_of_step(t):
    """Different rows in each step, some in two in a row."""
    generator = torch.Generator().manual_seed(t)
    return torch.randperm(COUNT, generator=generator)[:3].sort().values


def sparse(index, values, shape):
    return torch.sparse_coo_tensor(index[None], values, shape, check_invariants=True)


def has_rows(value):
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == COUNT


def gathered(tree, index):
    if isinstance(tree, dict):
        return {name: gathered(value, index) for name, value in tree.items()}
    return tree[index] if has_rows(tree) else tree


def scattered(old, new, index):
    if isinstance(new, dict):
        return {name: scattered(old[name], value, index) for name, value in new.items()}
    return old.index_copy(0, index, new) if has_rows(old) else new


def moving(state, index):
    """The rows of a step, and those that move without a gradient."""
    slots = [slot for path, slot in tensors(state).items() if MOVING.search(path)]
    rows = [slot.reshape(COUNT, -1).any(1).nonzero()[:, 0] for slot in slots]
    return torch.cat([index, *rows]).unique()


class Rows:
    """A chain whose table is in each step a leaf of the listed rows, with the same rows of the slots."""

    def __init__(self, tx, params, name):
        self.tx, self.params, self.name = tx, params, name
        self.state = tx.init(params)

    def step(self, index, gradients):
        index = moving(self.state, index)
        leaves = {**self.params, self.name: self.params[self.name][index]}
        gradients = {**gradients, self.name: gradients[self.name][index]}
        # The loss is that of all parameters.
        known = {**extras(self.tx, leaves), **scalars(extras(self.tx, self.params))}
        updates, state = self.tx.update(gradients, gathered(self.state, index), leaves, **known)
        leaves = gradtx.apply_updates(leaves, updates)
        self.state = scattered(self.state, state, index)
        table = self.params[self.name].index_copy(0, index, leaves[self.name])
        self.params = {**leaves, self.name: table}
        return index


def scalars(known):
    return {name: value for name, value in known.items() if isinstance(value, torch.Tensor)}


def error_of_step(optimizer, tx, leaves):
    """Step, and return the message of an error, or ""."""
    known, closure = step_extras(tx, leaves), ()
    if "value_fn" in tx.needs or "grad_fn" in tx.needs:
        known.pop("value_fn", None)
        closure = (lambda: sum(leaf.sum() for leaf in leaves.values()),)
    try:
        optimizer.step(*closure, **known)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


@each_case
@pytest.mark.parametrize("name", SHAPES)
def test_listed_rows_step_as_a_leaf_of_their_own_and_others_stand_still_or_the_error_says_why(case, name):
    start = noise(1, {name: SHAPES[name], **DENSE})
    tx = case.make()
    try:
        reference = Rows(case.make(), start, name)
    except ValueError as error:
        pytest.skip(f"other leaves than these: {error}")
    leaves = {key: torch.nn.Parameter(value.clone()) for key, value in start.items()}
    table = leaves[name]
    optimizer = gradtx.as_optimizer(tx, leaves.items())
    for t in range(5):
        index = rows_of_step(t)
        gradients = field({key: leaf.detach() for key, leaf in leaves.items()})
        dense = torch.zeros_like(table).index_copy(0, index, gradients[name][index])
        table.grad, leaves["dense"].grad = sparse(index, dense[index], table.shape), gradients["dense"]
        before, old = table.detach().clone(), snapshot(optimizer.state[table])
        error = error_of_step(optimizer, tx, leaves)
        if error:
            assert t == 0, error
            assert_names_the_reason_and_a_remedy(error, name)
            assert_same({key: leaf.detach() for key, leaf in leaves.items()}, start)
            assert not optimizer.state[table] or int(optimizer.state[table]["step"]) == 0
            return
        listed = reference.step(index, {**gradients, name: dense})
        others = torch.ones(COUNT, dtype=torch.bool).index_fill(0, listed, False)
        assert torch.equal(table.detach()[others], before[others])
        for key, value in old.items():
            if has_rows(value):
                assert torch.equal(optimizer.state[table][key][others], value[others]), key
        weights = {key: leaf.detach() for key, leaf in leaves.items()}
        assert_close(weights, reference.params, rtol=TOLERANCE, atol=TOLERANCE)


def assert_names_the_reason_and_a_remedy(message, name):
    if "cannot be used here" in message:
        assert re.search(r"here: .+; omit sparse=True in nn.Embedding", message)
    else:
        assert re.search(rf"parameter '{name}' .*but \w+ cannot update its rows alone: .+; .*to_dense\(\)", message)


def needs_all_rows(tx, params):
    leaves = [(name, torch.nn.Parameter(value.clone())) for name, value in params.items()]
    return gradtx.as_optimizer(tx, leaves)._core.traits.needs_all_rows


@each_case
@pytest.mark.parametrize("name", SHAPES)
def test_a_rule_that_takes_rows_updates_them_as_it_does_beside_rows_of_zeros(case, name):
    """What it sums gets nothing from rows without a gradient, so that these may be absent."""
    params = noise(1, {name: SHAPES[name], **DENSE})
    tx = case.make()
    try:
        state = tx.init(params)
    except ValueError as error:
        pytest.skip(f"other leaves than these: {error}")
    if needs_all_rows(tx, params):
        pytest.skip("it needs all rows")
    for t in range(4):
        index = rows_of_step(t)
        gradients = field(params)
        gradients[name] = torch.zeros_like(params[name]).index_copy(0, index, gradients[name][index])
        known = scalars(extras(tx, params))
        updates, whole = tx.update(gradients, state, params, **known)
        rows = {**params, name: params[name][index]}
        of_rows, rows_state = tx.update(
            {**gradients, name: gradients[name][index]}, gathered(state, index), rows, **known
        )
        assert_close({**updates, name: updates[name][index]}, of_rows, rtol=TOLERANCE, atol=TOLERANCE)
        assert_close(gathered(whole, index), rows_state, rtol=TOLERANCE, atol=TOLERANCE)
        state = scattered(state, rows_state, index)
        params = gradtx.apply_updates(
            params, {**of_rows, name: torch.zeros_like(params[name]).index_copy(0, index, of_rows[name])}
        )


@pytest.mark.parametrize("code", ["int8", "int4", "factored"])
@pytest.mark.parametrize("shape", [(600, 8), (70, 200), (5000,)])
def test_coded_slots_of_listed_rows_are_those_of_all_rows_or_the_error_says_why(shape, code):
    """As after dense gradients in the same rows, with a code per row; a block of a vector covers several rows."""
    table = torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))
    whole = torch.nn.Parameter(table.detach().clone())
    tx = gradtx.rmsprop(lr=0.1, state_dtype=code)  # whose slots decay to 0 without gradients, and whose weights stand
    optimizer, other = (gradtx.as_optimizer(tx, [leaf]) for leaf in (table, whole))
    index = torch.tensor([3, 40, 69])
    for t in range(3):
        values = noise(t, {"rows": (3, *shape[1:])})["rows"]
        table.grad = sparse(index, values, shape)
        whole.grad = table.grad.to_dense()
        if code == "factored" or len(shape) == 1:
            with pytest.raises(RuntimeError, match=r"code '\S.*' of its slot 'square_avg' covers several rows; omit"):
                optimizer.step()
            assert torch.equal(table.detach(), torch.ones(shape, dtype=torch.float64))
            return
        optimizer.step()
        other.step()
        assert torch.equal(table.detach(), whole.detach())
        for key, value in optimizer.state[table].items():
            assert torch.equal(value, other.state[whole][key]), key


CHAINS = {
    "clipped": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=0.1)),
    "clipped before": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.5, stale=True), gradtx.sgd(lr=0.1)),
    "by leaf": lambda: gradtx.chain(gradtx.clip_by_norm(0.5), gradtx.centralize(), gradtx.novograd(lr=0.1)),
    "momentum": lambda: gradtx.chain(gradtx.normalize_by_global_norm(), gradtx.sgd(lr=0.1, momentum=0.9)),
    "covers": lambda: gradtx.sm3(lr=0.1),
    "grafted": lambda: gradtx.graft(gradtx.lion(lr=0.1), gradtx.adam(lr=0.1)),
    "accumulated": lambda: gradtx.accumulate(gradtx.adam(lr=0.1), every=2),
    "averaged": lambda: gradtx.chain(gradtx.adam(lr=0.1), gradtx.average(0.9)),
    "two branches": lambda: gradtx.partition(
        {"rows": gradtx.sparse_adam(lr=0.1), "rest": gradtx.muon(lr=0.1, fallback=gradtx.sgd(lr=0.1))},
        {"rows": "table", "rest": "*"},
    ),
}


def descended(tx, **options):
    leaves = {name: torch.nn.Parameter(value.clone()) for name, value in noise(1, {**SHAPES, **DENSE}).items()}
    optimizer = gradtx.as_optimizer(tx, leaves.items(), **options)
    for t in range(6):
        gradients = field({name: leaf.detach() for name, leaf in leaves.items()})
        for name, leaf in leaves.items():
            index = rows_of_step(t + len(name))
            leaf.grad = gradients[name] if name in DENSE else sparse(index, gradients[name][index], leaf.shape)
        optimizer.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_compiled_steps_of_rows_equal_those_of_lists_and_of_each_leaf_alone(chain):
    tx = CHAINS[chain]()
    lists = descended(tx)
    assert_close(descended(tx, compile=True), lists, rtol=TOLERANCE, atol=TOLERANCE)
    with gradtx.eagerly():
        assert_close(descended(tx), lists, rtol=TOLERANCE, atol=TOLERANCE)
