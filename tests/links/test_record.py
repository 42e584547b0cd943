import math

import pytest
import torch

import gradtx
from gradtx import chain, record, recorded
from tests.conformance import assert_close
from tests.references import Transformed, run


def test_record_keeps_the_norm_of_the_whole_tree_at_its_place():
    tx = gradtx.chain(gradtx.record("before"), gradtx.clip_by_global_norm(0.3, eps=0.0), gradtx.record("after"))
    step, norms = Transformed(tx), []

    def spy(grads, params):
        updates = step(grads, params)
        for tree, entry in ((grads, step.state["record"]["before"]), (updates, step.state["record_1"]["after"])):
            assert (entry.shape, entry.dtype) == ((), torch.float64)
            assert entry.item() == pytest.approx(math.sqrt(sum((x**2).sum() for x in tree.values())), rel=1e-14)
        norms.append((step.state["record"]["before"].item(), step.state["record_1"]["after"].item()))
        return updates

    run(spy, rate=-0.1)
    assert len({before for before, _ in norms}) == len(norms)
    assert all(after == pytest.approx(min(before, 0.3)) for before, after in norms)


WHAT = ("norm", "rms", "max", "update_to_weight", "cos_grad", "cos_previous")
GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


PARAMS = {"w": drawn(3, 4), "b": drawn(5), "s": drawn()}
GRADS = [{name: drawn(*p.shape) for name, p in PARAMS.items()} for _ in range(3)]
LINK = gradtx.scale_by_adam()


def flat(tree, names):
    return torch.cat([tree[name].reshape(-1) for name in names])


def expected(u, g, p, previous):
    """The definitions, for vectors."""

    def cos(a, b):
        bottom = a.norm() * b.norm()
        return a @ b / bottom if bottom else torch.tensor(0.0)

    return {
        "norm": u.norm(),
        "rms": u.square().mean().sqrt(),
        "max": u.abs().max(),
        "update_to_weight": u.norm() / p.norm(),
        "cos_grad": cos(u, g),
        "cos_previous": cos(u, previous),
    }


def updates_of_link():
    """The updates that the recorded link gives, and those of the step before."""
    state, before = LINK.init(PARAMS), {name: torch.zeros_like(p) for name, p in PARAMS.items()}
    for grads in GRADS:
        updates, state = LINK.update(grads, state, PARAMS)
        yield grads, updates, before
        before = updates


@pytest.mark.parametrize("per", ["leaf", "all"])
@pytest.mark.parametrize("eagerly", [False, True])
def test_quantities_follow_their_definitions(per, eagerly):
    tx = chain(LINK, record(what=WHAT, per=per))
    state = tx.init(PARAMS)
    for grads, updates, before in updates_of_link():
        if eagerly:
            with gradtx.eagerly():
                ours, state = tx.update(grads, state, PARAMS)
        else:
            ours, state = tx.update(grads, state, PARAMS)
        assert_close(ours, updates, rtol=1e-12)
        for names in [[name] for name in PARAMS] if per == "leaf" else [list(PARAMS)]:
            wanted = expected(*(flat(tree, names) for tree in (updates, grads, PARAMS, before)))
            for what, value in wanted.items():
                key = f"record/{what}/{names[0]}" if per == "leaf" else f"record/{what}"
                assert recorded(state)[key] == pytest.approx(value.item(), rel=1e-12, abs=1e-15), key
    assert len(recorded(state)) == (len(WHAT) * (3 if per == "leaf" else 1))


@pytest.mark.parametrize("name", [None, "total"])
def test_a_single_quantity_needs_no_tuple(name):
    one, many = record(name, what="norm"), record(name, what=("norm",))
    grads = GRADS[0]
    assert recorded(one.update(grads, one.init(PARAMS))[1]) == recorded(many.update(grads, many.init(PARAMS))[1])
    with pytest.raises(ValueError, match=r"what must contain names among norm, .*, got 'norms'"):
        record(what="norms")


@pytest.mark.parametrize("per", ["leaf", "all"])
def test_an_optimizer_records_what_pure_use_records(per):
    tx = chain(gradtx.record("before"), LINK, record(what=WHAT, per=per), gradtx.scale(-0.1))
    params = {name: torch.nn.Parameter(p.clone()) for name, p in PARAMS.items()}
    optimizer = gradtx.as_optimizer(tx, params.items())
    state, values = tx.init(PARAMS), PARAMS
    for grads in GRADS:
        for name, param in params.items():
            param.grad = grads[name]
        optimizer.step()
        updates, state = tx.update(grads, state, values)
        values = gradtx.apply_updates(values, updates)
    assert optimizer.recorded() == pytest.approx(recorded(state), rel=1e-12)


def test_zeros_give_zeros():
    tx = record(what=WHAT)
    zeros = {"w": torch.zeros(3)}
    _, state = tx.update(zeros, tx.init(zeros), zeros)
    assert set(recorded(state).values()) == {0.0}


def test_several_records_and_those_inside_combinators_have_names_of_their_own():
    tx = chain(record(what=("max",)), gradtx.accumulate(chain(record("inside"), gradtx.sgd(0.1)), every=2), record())
    params = {"w": torch.ones(2)}
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(params, state, params)
    assert recorded(state) == pytest.approx(
        {"record/max/w": 1.0, "accumulate/record/inside": math.sqrt(2), "record_1/norm/w": 0.1 * math.sqrt(2)}
    )


def test_a_quantity_that_is_unknown_and_a_name_with_quantities_are_refused():
    with pytest.raises(ValueError, match=r"record: what must contain names among norm, rms, .*, got 'mean'"):
        record(what=("mean",))
    with pytest.raises(ValueError, match="pass either name, or what and per"):
        record("norm", what=("rms",))


@pytest.mark.parametrize("division", [{"heads": 3}, {"sizes": (1, 2)}], ids=["equal blocks", "other blocks"])
def test_inside_blocks_each_block_has_a_value_and_the_tree_has_that_of_all(division):
    params = {"w": drawn(3, 4), "b": drawn(5)}
    parts = params["w"].split(division.get("sizes", 1))
    links = chain(record(what="norm"), record(what=("norm", "max"), per="all"))
    optimizer = gradtx.as_optimizer(
        gradtx.blocks(links, "w", **division), [(n, torch.nn.Parameter(p.clone())) for n, p in params.items()]
    )
    for param in optimizer.param_groups[0]["params"]:
        param.grad = param.detach().clone()
    optimizer.step()
    tx = gradtx.blocks(links, "w", **division)
    _, state = tx.update(params, tx.init(params), params)
    expected = {f"blocks/record/norm/w/{i}": part.norm().item() for i, part in enumerate(parts)}
    expected["blocks/record/norm/b"] = params["b"].norm().item()
    whole = flat(params, params)
    expected |= {"blocks/record_1/norm": whole.norm().item(), "blocks/record_1/max": whole.abs().max().item()}
    assert recorded(state) == pytest.approx(expected)
    assert optimizer.recorded() == pytest.approx(expected)


def test_the_values_of_an_ensemble_are_not_added_up():
    tx = record(what="norm", per="all")
    members = gradtx.stack([PARAMS, PARAMS])
    _, state = torch.vmap(tx.update)(members, torch.vmap(tx.init)(members))
    with pytest.raises(ValueError, match=r"state of an ensemble; call it for each member of gradtx.unstack\(state\)"):
        recorded(state)
    assert recorded(gradtx.unstack(state)[0]) == recorded(tx.update(PARAMS, tx.init(PARAMS))[1])
