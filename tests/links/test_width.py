"""muP against torch's optimizers with the groups that microsoft/mup makes."""

import pytest
import torch
from torch import nn

import gradtx
from tests.references import BETA, DECAY, Published, follows, problem

WIDTHS = {
    "matrix": (4.0, None),
    "kernel": (2.0, 3.0, None, None),
    "rows": (None, None),
    "whole": (6.0, 5.0),
    "bias": (5.0,),
    "scalar": (),
}


def groups_of_mup(params, rule, lr, weight_decay, decoupled, eps=1e-8):
    """`MuAdam` and `MuSGD`: the rate of a group, and the decay that mup multiplies by the inverse."""
    for widths, param in zip(WIDTHS.values(), params, strict=True):
        infinite = [width for width in widths if width is not None]
        factor, matrix = 1.0, len(infinite) == 2
        if rule == "sgd" and infinite:
            factor = widths[0] / widths[1] if matrix else infinite[-1]
        elif matrix:
            factor = 1 / infinite[-1]
        yield {
            "params": [param],
            "lr": lr * factor,
            "weight_decay": weight_decay if decoupled else weight_decay / factor,
            **({} if rule == "sgd" else {"eps": eps * factor}),
        }


class DecayedSGD(torch.optim.SGD):
    """torch's SGD with decoupled decay."""

    def step(self):
        for group in self.param_groups:
            for param in group["params"]:
                param.data *= 1 - group["lr"] * group["decay"]
        super().step()


def sgd(groups):
    groups = [{"decay": group.pop("weight_decay"), **group} for group in groups]
    return DecayedSGD(groups, momentum=0.9)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("rule", ["adam", "adam_eps", "sgd"])
def test_the_steps_are_those_of_mups_groups(rule, decoupled):
    is_sgd, eps = rule == "sgd", 0.01
    decay, width = gradtx.add_decayed_weights(0.3), gradtx.scale_by_width(WIDTHS, "sgd" if is_sgd else "adam")
    tx = gradtx.chain(
        gradtx.scale_by_width(WIDTHS, "adam_eps") if rule == "adam_eps" else gradtx.chain(),
        gradtx.trace(0.9) if is_sgd else gradtx.scale_by_adam(eps=eps),
        *((decay, width) if decoupled else (width, decay)),
        gradtx.scale_by_learning_rate(0.05),
    )

    def published(params):
        # In front of Adam, the gradient of a matrix times m acts as eps / m.
        groups = list(groups_of_mup(params, "sgd" if is_sgd else "adam", 0.05, 0.3, decoupled, eps))
        if rule == "adam":
            groups = [{**group, "eps": eps} for group in groups]
        return sgd(groups) if is_sgd else torch.optim.AdamW(groups)

    follows(tx, Published(published), steps=30)


def test_an_optimizer_takes_the_same_steps_with_patterns_and_schedules():
    patterns = {"[kw]*": (2.0, 4.0), "*": (3.0,)}
    tx = gradtx.chain(gradtx.scale_by_adam((BETA, 0.99)), gradtx.scale_by_width(patterns), gradtx.scale(-0.1))
    by_hand = gradtx.chain(
        gradtx.scale_by_adam((BETA, 0.99)),
        gradtx.partition({"a": gradtx.scale(0.25), "b": gradtx.chain()}, {"a": "[kw]*", "b": "*"}),
        gradtx.scale(-0.1),
    )
    follows(tx, by_hand, tolerance=0.0)
    params = {name: nn.Parameter(p) for name, p in problem().items()}
    optimizer = gradtx.as_optimizer(gradtx.chain(tx, gradtx.add_decayed_weights(DECAY, fixed=True)), params.items())
    pure = gradtx.chain(by_hand, gradtx.add_decayed_weights(DECAY, fixed=True))
    state = pure.init(problem())
    updates, _ = pure.update(problem(), state, problem())
    for p in params.values():
        p.grad = p.detach().clone()
    optimizer.step()
    torch.testing.assert_close({n: p.detach() for n, p in params.items()}, gradtx.apply_updates(problem(), updates))


def model(width, outputs=3):
    with torch.device("meta"):
        return nn.Sequential(nn.Conv1d(2, width, 5), nn.Linear(width, 2 * width), nn.Linear(2 * width, outputs))


def test_widths_are_where_sizes_differ_and_take_modules_tensors_and_shapes():
    expected = {
        "0.weight": (4.0, None, None),
        "0.bias": (4.0,),
        "1.weight": (4.0, 4.0),
        "1.bias": (4.0,),
        "2.weight": (None, 4.0),
        "2.bias": (None,),
    }
    tensors = dict(model(8).named_parameters())
    shapes = {name: tuple(p.shape) for name, p in model(32).named_parameters()}
    assert gradtx.width_multipliers(model(32), model(8)) == expected
    assert gradtx.width_multipliers(shapes, tensors) == expected
    at_base = gradtx.width_multipliers(model(8), tensors, model(16))
    assert at_base == {n: tuple(w and 1.0 for w in widths) for n, widths in expected.items()}
    assert set(sum(gradtx.width_multipliers(model(8), model(8)).values(), ())) == {None}
    # With delta, only its differences count.
    assert gradtx.width_multipliers(model(32, 4), model(8), model(9))["2.weight"] == (None, 4.0)


def test_initial_weights_follow_mup():
    widths = {**gradtx.width_multipliers(model(32), model(8)), "norm.weight": (4.0,)}
    params = {n: torch.ones(p.shape) for n, p in model(32).named_parameters()} | {"norm.weight": torch.ones(32)}
    scaled = gradtx.init_for_width(params, widths, readouts="2")
    factors = {name: x.unique().item() for name, x in scaled.items()}
    assert factors == {
        "0.weight": 1,
        "0.bias": 1,
        "1.weight": 1,
        "1.bias": 2,
        "2.weight": 2,
        "2.bias": 2,
        "norm.weight": 1,
    }
    assert all((p == 1).all() for p in params.values())
    by_function = gradtx.init_for_width(params, widths, readouts=lambda layer, weight: len(weight) == 3)
    torch.testing.assert_close(by_function, scaled)


def test_what_makes_no_sense():
    with pytest.raises(ValueError, match="leaf 'w' has 3 dimensions that are widths; muP has a rule for at most 2"):
        gradtx.scale_by_width({"w": (2.0, 2.0, 2.0)})
    with pytest.raises(ValueError, match="scale_by_width: rule must be 'adam', 'sgd' or 'adam_eps', got 'lion'"):
        gradtx.scale_by_width({"*": ()}, "lion")
    with pytest.raises(TypeError, match="scale_by_width: multipliers must be a dict of name -> widths"):
        gradtx.scale_by_width(2.0)
    with pytest.raises(ValueError, match="scale_by_width: leaf 'b' has no label"):
        gradtx.scale_by_width({"w": (2.0,)}).init({"w": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(ValueError, match="scale_by_width: 'other' matches no leaf"):
        gradtx.scale_by_width({"w": (2.0,), "other": ()}).init({"w": torch.ones(1)})
    with pytest.raises(ValueError, match="same names of parameters; these are not in all: a, b"):
        gradtx.width_multipliers({"a": (1,)}, {"b": (1,)})
    with pytest.raises(ValueError, match=r"'a' has shape \(1, 2\), but \(1,\) in the base"):
        gradtx.width_multipliers({"a": (1, 2)}, {"a": (1,)})
    ones = {"head.weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"the readout 'head.weight' has two widths"):
        gradtx.init_for_width(ones, {"head.weight": (2.0, 2.0)}, "head")
    with pytest.raises(ValueError, match="init_for_width: readouts: 'tail' matches no leaf"):
        gradtx.init_for_width(ones, {"head.weight": (None, 2.0)}, "tail")
    with pytest.raises(ValueError, match="init_for_width: all must have the same names"):
        gradtx.init_for_width(ones, {}, "head")
