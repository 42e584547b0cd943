"""Residuals that are divided among ranks: the step is that of one process with all data."""

import pytest
import torch

import gradtx

METHODS = {
    "gauss_newton": gradtx.gauss_newton(damping=1e-3),
    "means of terms": gradtx.gauss_newton(damping=1e-3, reduction="mean", weights={"a": 1.0, "b": 3.0}),
    "dense": gradtx.gauss_newton(damping=1e-3, solve="dense", scaling="diagonal"),
    "kernel": gradtx.gauss_newton(damping=1e-2, solve="kernel"),
    "cg": gradtx.gauss_newton(damping=1e-2, solve="cg"),
    "lsmr": gradtx.gauss_newton(damping=1e-2, solve="lsmr"),
    "levenberg_marquardt": gradtx.levenberg_marquardt(scaling="running"),
    "geodesic": gradtx.levenberg_marquardt(geodesic=0.75),
    "dogleg": gradtx.dogleg(radius=0.1),
    "spring": gradtx.spring(lr=0.5, damping=1e-2, mu=0.5),
    "hessian_free": gradtx.hessian_free(),
    "search": gradtx.line_search(gradtx.gauss_newton(damping=1e-3)),
}


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(12, generator=generator, dtype=torch.float64)


def trained(tx, rows, group=None):
    x, y = (tensor[rows] for tensor in data())
    first = torch.linspace(-0.5, 0.5, 3, dtype=torch.float64)
    params = {"w": torch.nn.Parameter(first.clone()), "b": torch.nn.Parameter(first[0].clone())}
    optimizer = gradtx.as_optimizer(tx, params.items(), process_group=group)

    def residuals():
        a = torch.tanh(x @ params["w"] + params["b"]) - y
        return {"a": a, "b": a[:2] ** 2}

    losses = [float(optimizer.step(residuals)) for _ in range(5)]
    return losses, {name: param.detach() for name, param in params.items()}


def own_rows(rank):
    return slice(0, 7) if rank == 0 else slice(7, 12)


def of_rank(name):
    distributed = torch.distributed
    return trained(METHODS[name], own_rows(distributed.get_rank()), distributed.group.WORLD)


def of_all(name):
    """One process with all data, whose second term has the rows that both ranks have."""
    x, y = data()
    tx = METHODS[name]
    first = torch.linspace(-0.5, 0.5, 3, dtype=torch.float64)
    params = {"w": torch.nn.Parameter(first.clone()), "b": torch.nn.Parameter(first[0].clone())}
    optimizer = gradtx.as_optimizer(tx, params.items())

    def residuals():
        a = torch.tanh(x @ params["w"] + params["b"]) - y
        return {"a": a, "b": a[[0, 1, 7, 8]] ** 2}

    losses = [float(optimizer.step(residuals)) for _ in range(5)]
    return losses, {name: param.detach() for name, param in params.items()}


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_with_different_data_take_the_step_of_one_process_with_all_data(two, name):
    (losses, params), (others, same) = two.run(of_rank, name)
    assert losses == others
    assert all(torch.equal(params[leaf], same[leaf]) for leaf in params)
    expected_losses, expected = of_all(name)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected_losses), rtol=1e-9, atol=1e-12)
    for leaf in params:
        torch.testing.assert_close(params[leaf], expected[leaf], rtol=1e-9, atol=1e-9)


def failing_on_one_rank():
    distributed = torch.distributed
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = gradtx.as_optimizer(
        gradtx.levenberg_marquardt(), [("w", weight)], process_group=distributed.group.WORLD
    )

    def residuals():
        return weight[: 2 * distributed.get_rank()]

    try:
        optimizer.step(residuals)
    except Exception as error:
        return f"{type(error).__name__}: {error}", weight.tolist()
    return "no error", weight.tolist()


def test_no_rank_waits_for_one_without_residuals(two):
    (own, weight), (other, same) = two.run(failing_on_one_rank)
    assert "has no residuals; skip the step" in own
    assert other == "OtherRankError: rank 0 failed in this step; see the error raised on that rank"
    assert weight == same == [1.0, 1.0]


def outputs_on_ranks():
    weight = torch.nn.Parameter(torch.ones(2))
    group = torch.distributed.group.WORLD
    optimizer = gradtx.as_optimizer(gradtx.gauss_newton(), [("w", weight)], process_group=group)
    with pytest.raises(ValueError, match="outputs_fn cannot be combined with process_group"):
        optimizer.step(outputs_fn=lambda: 2 * weight, loss_of_outputs=lambda z: z.square().sum())


def test_a_loss_of_outputs_whose_labels_are_on_other_ranks_is_refused(two):
    two.run(outputs_on_ranks)
