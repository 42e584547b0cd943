"""`reduce_on_plateau`, against torch's scheduler and a plain loop."""

import pytest
import torch

import gradtx

LOSSES = [3.0, 2.0, 2.5, 2.0, 1.0, 1.0, 1.1, 1.0, 1.2, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.2, 0.2, 0.2]


def scales(tx, losses):
    state, found = tx.init({"w": torch.zeros(1)}), []
    for value in losses:
        updates, state = tx.update({"w": torch.ones(1, dtype=torch.float64)}, state, value=value)
        found.append(float(updates["w"]))
    return found


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("cooldown", [0, 1, 2])
@pytest.mark.parametrize("min_scale", [0.0, 0.2])
def test_factors_are_those_of_torchs_scheduler(patience, cooldown, min_scale):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    # torch's patience is the number of bad epochs that it lets pass.
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, threshold=1e-4, cooldown=cooldown, min_lr=min_scale, eps=0.0
    )
    expected = []
    for loss in LOSSES:
        scheduler.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
    tx = gradtx.reduce_on_plateau(factor=0.5, patience=patience, cooldown=cooldown, min_scale=min_scale)
    assert scales(tx, LOSSES) == pytest.approx(expected)


def test_means_of_several_values_decide():
    tx = gradtx.reduce_on_plateau(factor=0.5, patience=1, accumulation_size=2)
    # Means 3, 2.5, 2.6, 1: the third is no improvement.
    assert scales(tx, [2.0, 4.0, 1.0, 4.0, 5.2, 0.0, 1.0, 1.0]) == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("compile", [False, True])
def test_an_optimizer_takes_the_same_steps_and_resumes(compile):
    tx = gradtx.chain(gradtx.sgd(lr=1.0), gradtx.reduce_on_plateau(factor=0.5, patience=2))
    expected = scales(tx, LOSSES)
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer, found = gradtx.as_optimizer(tx, [weight], compile=compile), []
    for i, loss in enumerate(LOSSES):
        if i == 7:
            saved = optimizer.state_dict()
            optimizer = gradtx.as_optimizer(tx, [weight], compile=compile)
            optimizer.load_state_dict(saved)
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        optimizer.step(value=loss)
        found.append(float((weight.detach() - before)[0]))
    assert found == pytest.approx(expected)


def test_members_fall_alone_under_vmap():
    tx = gradtx.reduce_on_plateau(factor=0.5, patience=1)

    def last(losses):
        state = tx.init({"w": torch.zeros(1)})
        for value in losses:
            updates, state = tx.update({"w": torch.ones(1)}, state, value=value)
        return updates["w"][0]

    assert torch.vmap(last)(torch.tensor([[3.0, 2.0], [2.0, 3.0]])).tolist() == [1.0, 0.5]


def test_bad_options_and_a_missing_loss_are_named():
    with pytest.raises(ValueError, match=r"reduce_on_plateau: factor must be in \(0, 1\), got 1.5"):
        gradtx.reduce_on_plateau(factor=1.5)
    with pytest.raises(ValueError, match="reduce_on_plateau needs value"):
        gradtx.reduce_on_plateau().update({"w": torch.ones(1)}, gradtx.reduce_on_plateau().init({"w": torch.ones(1)}))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.func.jvp
def test_scale_gradient_scales_only_derivatives_in_each_mode():
    x = {"a": torch.tensor([3.0, float("inf")]), "b": torch.tensor(2.0)}
    same = gradtx.scale_gradient(x, 0.25)
    assert torch.equal(same["a"], x["a"])

    def loss(b, scale):
        return gradtx.scale_gradient(b, scale) ** 2

    assert torch.func.grad(loss)(x["b"], -0.5) == -2.0
    assert torch.func.grad(loss)(x["b"], 0.0) == 0.0
    _, tangent = torch.func.jvp(lambda b: loss(b, 0.25), (x["b"],), (torch.tensor(1.0),))
    assert tangent == 1.0
    scales = torch.tensor([0.0, 1.0, 2.0])
    assert torch.vmap(lambda s: torch.func.grad(loss)(x["b"], s))(scales).tolist() == [0, 4, 8]
