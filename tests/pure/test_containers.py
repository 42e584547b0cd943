"""Trees of any container that torch has registered take the programs of dicts, and come back as they are."""

import collections
import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from torch.utils import _pytree

import gradtx
from gradtx.pure import tree_plan
from gradtx.pure import tree_run as definition
from tests.conformance import noise
from tests.optim.problems import assert_equal

SHAPES = {"weight": (3, 4), "bias": (4,), "scale": ()}
Pair = collections.namedtuple("Pair", list(SHAPES))


@dataclasses.dataclass
class Layer:
    weight: Any
    bias: Any
    scale: Any


class Line:
    """A container whose class tells torch its parts, and what else it has."""

    def __init__(self, parts, label):
        self.parts, self.label = parts, label


class Labelled:
    """A label of a user, such as a function or a module."""


class Nameless(list):
    """A container that does not tell the names of its parts."""


_pytree.register_dataclass(Layer)
_pytree.register_pytree_node(
    Line,
    lambda line: (list(line.parts.values()), (tuple(line.parts), line.label)),
    lambda parts, context: Line(dict(zip(context[0], parts, strict=True)), context[1]),
    flatten_with_keys_fn=lambda line: (
        [(_pytree.MappingKey(name), part) for name, part in line.parts.items()],
        (tuple(line.parts), line.label),
    ),
)
_pytree.register_pytree_node(Nameless, lambda parts: (list(parts), None), lambda parts, context: Nameless(parts))

CONTAINERS = {
    "OrderedDict": collections.OrderedDict,
    "defaultdict": lambda tree: collections.defaultdict(list, tree),
    "namedtuple": lambda tree: Pair(**tree),
    "dataclass": lambda tree: Layer(**tree),
    "own class": lambda tree: Line(tree, "a"),
}
NESTED = {
    "dict of OrderedDict": lambda tree: {"a": collections.OrderedDict(tree)},
    "namedtuple of lists": lambda tree: Pair(*([part] for part in tree.values())),
    "deque of own classes": lambda tree: collections.deque([Line(tree, "a")]),
    "tuple of dataclasses": lambda tree: (Layer(**tree),),
}
ALL = CONTAINERS | NESTED
CHAINS = {
    "adamw": gradtx.adamw,
    "clip": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.sgd(0.1, momentum=0.9)),
    "no program": lambda: gradtx.noisy_sgd(lr=0.1),
}


@pytest.fixture
def definitions(monkeypatch):
    """The calls that run the definition, leaf by leaf."""
    calls, update = [], definition._update
    monkeypatch.setattr(definition, "_update", lambda *args: calls.append(args) or update(*args))
    return calls


def drawn(seed):
    return noise(seed, SHAPES, torch.float32)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("container", ALL)
def test_a_container_has_the_bits_of_a_dict_and_its_type(container, chain):
    make, tx = ALL[container], CHAINS[chain]()
    kept = drawn(0)
    params = make(kept)
    plain_state, state = tx.init(_dict_of(params)), tx.init(params)
    plain = _dict_of(params)
    for step in range(1, 4):
        grads = make(drawn(step))
        expected, plain_state = tx.update(_dict_of(grads), plain_state, plain)
        plain = gradtx.apply_updates(plain, expected)
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        for tree, values in ((updates, expected), (params, plain)):
            assert _pytree.tree_structure(tree) == _pytree.tree_structure(grads)
            assert_equal(_dict_of(tree), values)
        assert_equal(state, plain_state)


def _dict_of(tree):
    """The leaves as a dict, whose keys are the names that gradtx gives them."""
    paths, _ = _pytree.tree_flatten_with_path(tree)
    return {".".join(str(_name(key)) for key in path): leaf for path, leaf in paths}


def _name(key):
    return next(getattr(key, part) for part in ("key", "idx", "name") if hasattr(key, part))


@pytest.mark.parametrize("container", ALL)
def test_a_container_runs_programs(container, definitions):
    make, tx = ALL[container], gradtx.adamw()
    params = make(drawn(0))
    state = tx.init(params)
    for step in range(3):
        _, state = tx.update(make(drawn(step)), state, params)
    assert not definitions


def test_containers_of_the_same_names_share_a_plan():
    tx = gradtx.chain(gradtx.scale(0.25), gradtx.adamw(lr=0.5))
    for make in (dict, *CONTAINERS.values()):
        params = make(drawn(0))
        tx.update(params, tx.init(params), params)
    ((_,),) = tree_plan.plans_of(tx).values()


@pytest.mark.parametrize("container", ["OrderedDict", "defaultdict", "own class"])
def test_updates_and_parameters_may_be_in_other_containers(container):
    tx, params, grads = gradtx.adamw(), drawn(0), drawn(1)
    expected = tx.update(grads, tx.init(params), params)
    updates, state = tx.update(grads, tx.init(params), CONTAINERS[container](params))
    assert type(updates) is dict
    assert_equal((updates, state), expected)
    updates, state = tx.update(CONTAINERS[container](grads), tx.init(params), params)
    assert_equal((_dict_of(updates), state), expected)


def test_keys_in_another_order_find_their_own_gradients():
    tx, params = gradtx.adamw(), drawn(0)
    grads = drawn(1)
    state = tx.init(params)
    expected, _ = tx.update(grads, state, params)
    backward = collections.OrderedDict(reversed(grads.items()))
    for _ in range(2):
        updates, _ = tx.update(backward, state, collections.OrderedDict(params))
        assert list(updates) == list(backward)
        assert_equal(dict(updates), {name: expected[name] for name in backward})
    moved = gradtx.apply_updates(collections.OrderedDict(params), updates)
    assert list(moved) == list(params)
    assert_equal(dict(moved), {name: params[name] + expected[name] for name in params})


def test_a_defaultdict_keeps_its_factory_and_a_container_its_label():
    tx = gradtx.adamw()
    for label in ("a", "b"):
        params = Line(drawn(0), label)
        updates, _ = tx.update(params, tx.init(params), params)
        assert updates.label == gradtx.apply_updates(params, updates).label == label
    for factory in (list, int):
        params = collections.defaultdict(factory, drawn(0))
        updates, _ = tx.update(params, tx.init(params), params)
        assert updates.default_factory is gradtx.apply_updates(params, updates).default_factory is factory


@pytest.mark.parametrize("container", ["OrderedDict", "defaultdict", "namedtuple", "own class"])
def test_gradients_may_be_missing_in_a_container(container, definitions):
    make, tx = CONTAINERS[container], gradtx.adamw()
    params = drawn(0)
    plain_state = state = tx.init(params)
    for step, missing in enumerate([None, "bias", "weight"]):
        grads = {name: None if name == missing else grad for name, grad in drawn(step).items()}
        expected, plain_state = tx.update(grads, plain_state, params)
        updates, state = tx.update(make(grads), state, make(params))
        assert_equal((_dict_of(updates), state), (expected, plain_state))
    assert not definitions


def test_a_plan_keeps_nothing_of_a_users_container_alive():
    tx, label = gradtx.adamw(), Labelled()
    params = Line(drawn(0), label)
    updates, state = tx.update(params, tx.init(params), params)
    assert any(tree_plan.plans_of(tx).values())
    ref = weakref.ref(label)
    del params, updates, state, label
    gc.collect()
    assert ref() is None


def test_names_that_two_leaves_share_are_an_error_in_any_container():
    tx = gradtx.sgd(0.1)
    twice = collections.OrderedDict({"a.b": torch.ones(2), "a": {"b": torch.ones(2)}})
    for tree in (twice, dict(twice)):
        with pytest.raises(ValueError, match=r"two leaves are both named 'a\.b'"):
            tx.update(tree, {"step": torch.tensor(0)}, tree)
        with pytest.raises(ValueError, match=r"two leaves are both named 'a\.b'"):
            gradtx.apply_updates(tree, tree)


def test_a_container_that_does_not_name_its_parts_is_an_error():
    params = Nameless([torch.ones(2)])
    with pytest.raises(ValueError, match="flatten_with_keys_fn"):
        gradtx.sgd(0.1).update(params, {"step": torch.tensor(0)}, params)
    with pytest.raises(ValueError, match="flatten_with_keys_fn"):
        gradtx.apply_updates(params, params)
