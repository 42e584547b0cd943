"""Rules that read values on the host, or write in place: no program repeats them with the values of another leaf."""

import pytest
import torch

import gradtx
from tests.optim.problems import assert_equal

READS = {
    "item": lambda x: x * x.abs().max().item(),
    "tolist": lambda x: x * x.abs().amax().reshape(1).tolist()[0],
    "float": lambda x: x * float(x.abs().max()),
    "int": lambda x: x * int(x.abs().max() * 8),
    "bool": lambda x: x if bool(x.sum() > 0) else -x,
    "a branch": lambda x: x if x.sum() > 0 else -x,
    "numpy": lambda x: x * float(x.abs().max().numpy()),
    "a factory": lambda x: x * torch.full(x.shape, x.abs().max()),
    "a scalar argument": lambda x: torch.add(x, x, alpha=x.abs().max().item()),
    "format": lambda x: x * float(f"{x.abs().max():.3f}"),
    "nonzero": lambda x: x * len(x.nonzero()),
}
WRITES = {
    "the update": lambda update, state, param: (update.mul_(0.5), {"slot": state["slot"]}),
    "the slot": lambda update, state, param: (update, {"slot": state["slot"].add_(update)}),
    "the parameter": lambda update, state, param: (update, {"slot": param.mul_(0.5)}),
    "a view of the parameter": lambda update, state, param: (update + param.view(-1).fill_(1.0), state),
    "out": lambda update, state, param: (torch.add(update, 1.0, out=update), state),
}
VALUES = ([1.0, -2.0, 3.0], [0.5, -8.0, 0.25], [-1.0, 2.0, -0.5])
MODES = pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])


def reading(function):
    @gradtx.per_tensor
    def read():
        def update(update, state, param, ctx):
            return function(update), state

        return update

    return read()


def writing(function):
    @gradtx.per_tensor(needs=("params",))
    def write():
        def init(param):
            return {"slot": torch.zeros_like(param)}

        def update(update, state, param, ctx):
            return function(update, state, param)

        return init, update

    return write()


def leaves():
    return [torch.nn.Parameter(torch.tensor(values)) for values in VALUES]


@pytest.mark.slow
@MODES
@pytest.mark.parametrize("elementwise", [False, True])
@pytest.mark.parametrize("name", READS)
def test_each_leaf_is_updated_with_the_values_that_its_own_rule_read(name, elementwise, compile):
    @gradtx.per_tensor(elementwise=elementwise)
    def read():
        def update(update, state, param, ctx):
            return READS[name](update), state

        return update

    params = leaves()
    optimizer = gradtx.as_optimizer(gradtx.chain(read(), gradtx.sgd(lr=1.0)), params, compile=compile)
    for _ in range(2):
        expected = [param.detach() - READS[name](0.5 * param.detach()) for param in params]
        for param in params:
            param.grad = 0.5 * param.detach()
        optimizer.step()
        assert_equal([param.detach() for param in params], expected)
    (way,) = {(each.way, each.reason) for each in optimizer.explain()}
    assert way[0] == "alone"
    assert "test_impure_rules.py" in way[1]


@pytest.mark.slow
@MODES
@pytest.mark.parametrize("name", WRITES)
def test_a_rule_that_writes_in_place_is_an_error_and_moves_no_weight(name, compile):
    params = leaves()
    optimizer = gradtx.as_optimizer(gradtx.chain(writing(WRITES[name]), gradtx.sgd(lr=1.0)), params, compile=compile)
    before = [param.detach().clone() for param in params]
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.raises((RuntimeError, ValueError), match="the rule writes to"):
        optimizer.step()
    assert_equal([param.detach() for param in params], before)


@pytest.mark.slow
@MODES
def test_pure_rules_beside_an_impure_one_stay_in_programs(compile):
    tx = gradtx.partition(
        {"mine": gradtx.chain(reading(READS["item"]), gradtx.sgd(lr=1.0)), "rest": gradtx.adamw()},
        {"mine": "first", "rest": "*"},
    )
    params = dict(zip(("first", "second", "third"), leaves(), strict=True))
    optimizer = gradtx.as_optimizer(tx, params.items(), compile=compile)
    for param in params.values():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert [each.way for each in optimizer.explain()] == ["alone", *["kernels" if compile else "lists"] * 2]


@MODES
def test_a_rule_that_draws_from_torchs_generator_draws_the_same_numbers_in_every_way(compile):
    def steps(**options):
        torch.manual_seed(0)
        params = leaves()
        tx = gradtx.chain(reading(lambda x: torch.rand_like(x) - torch.rand_like(x)), gradtx.sgd(lr=0.1))
        optimizer = gradtx.as_optimizer(tx, params, **options)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        return params, optimizer

    with gradtx.eagerly():
        expected, _ = steps()
    found, optimizer = steps(compile=compile)
    assert all(map(torch.equal, found, expected))
    assert all("draws random numbers" in step.reason for step in optimizer.explain())
