"""Sharpness against the eigenvalues of dense Hessians, and gradient descent at the edge of stability."""

import pytest
import torch
from torch import nn

import gradtx

EXACT = 1e-6  # relative


def network(activation=nn.Tanh):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), activation(), nn.Linear(6, 2)).double()
    x, y = torch.randn(24, 3).double(), torch.randn(24, 2).double()
    return model, lambda params: (applied(model, params, x) - y).square().mean()


def applied(model, params, x):
    return model(x) if params is model else torch.func.functional_call(model, params, (x,))


def tree_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def dense_hessian(loss, params):
    def of_vector(vector):
        parts = vector.split([p.numel() for p in params.values()])
        return loss({name: part.view(p.shape) for (name, p), part in zip(params.items(), parts, strict=True)})

    return torch.autograd.functional.hessian(of_vector, torch.cat([p.reshape(-1) for p in params.values()]))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.Softplus])
def test_eigenvalues_are_those_of_the_dense_hessian(activation):
    model, loss = network(activation)
    expected = torch.linalg.eigvalsh(dense_hessian(loss, tree_of(model))).flip(0)[:3].tolist()
    for params in (model, tree_of(model)):
        assert gradtx.sharpness(loss, params, k=3).values == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("seed", [0, 1])
def test_preconditioned_eigenvalues_are_those_of_adams_root(seed):
    model, loss = network()
    params, rate, beta1, beta2, eps = tree_of(model), 1e-2, 0.9, 0.99, 1e-8
    tx = gradtx.adam(lr=rate, betas=(beta1, beta2), eps=eps)
    state, v = tx.init(params), {name: torch.zeros_like(p) for name, p in params.items()}
    for _ in range(4):
        gradients = torch.func.grad(loss)(params)
        v = {name: beta2 * v[name] + (1 - beta2) * gradients[name] ** 2 for name in v}
        _, state = tx.update(gradients, state, params)
    # Of step 5 with a gradient of 0, which v does not see to first order.
    root = torch.cat([(beta2 * v[name] / (1 - beta2**5)).sqrt().reshape(-1) for name in v]) + eps
    response = (1 - beta1) / (1 - beta1**5) / root
    expected = torch.linalg.eigvals(response[:, None] * dense_hessian(loss, params)).real.max().item()
    result = gradtx.sharpness(loss, params, tx, state, seed=seed)
    assert result.values[0] == pytest.approx(expected, rel=EXACT)
    assert result.bound == pytest.approx(2 * (1 + beta1) / rate)
    assert result.ratio == pytest.approx(expected * rate / 3.8, rel=EXACT)
    assert result.stable_lr == pytest.approx(3.8 / expected, rel=EXACT)


def test_an_optimizer_gives_its_chain_and_its_state():
    model, loss = network()
    optimizer = gradtx.as_optimizer(gradtx.adamw(lr=0.01), model.named_parameters())
    params = tree_of(model)
    tx = gradtx.adamw(lr=0.01)
    state = tx.init(params)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        updates, state = tx.update(torch.func.grad(loss)(params), state, params)
        params = gradtx.apply_updates(params, updates)
    result = gradtx.sharpness(loss, model, optimizer, k=2)
    expected = gradtx.sharpness(loss, params, tx, state, k=2)
    assert result.values == pytest.approx(expected.values, rel=1e-9)
    assert result.bound == pytest.approx(expected.bound)


def test_a_preconditioner_that_mixes_entries_is_symmetric_enough_for_lanczos():
    params = {"w": torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    a = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss = lambda params: (a @ params["w"]).square().sum() / 2 + params["w"].sin().sum()  # noqa: E731
    tx = gradtx.soap(lr=0.1, weight_decay=0.0)
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(torch.func.grad(loss)(params), state, params)

    def updates_of(gradient):
        return tx.update({"w": gradient}, state, params)[0]["w"]

    response = -torch.autograd.functional.jacobian(updates_of, torch.zeros(4, 3, dtype=torch.float64)) / 0.1
    product = response.reshape(12, 12) @ dense_hessian(loss, params)
    expected = torch.linalg.eigvals(product).real.max().item()
    assert gradtx.sharpness(loss, params, tx, state).values[0] == pytest.approx(expected, rel=1e-5)


def test_gradient_descent_settles_near_2_over_the_rate():
    model, loss = network()
    params, rate = tree_of(model), 0.6
    tx = gradtx.sgd(lr=rate)
    state = tx.init(params)
    start = gradtx.sharpness(loss, params, tx).ratio
    ratios = []
    for t in range(3000):
        updates, state = tx.update(torch.func.grad(loss)(params), state, params)
        params = gradtx.apply_updates(params, updates)
        if t >= 2500 and t % 100 == 0:
            ratios.append(gradtx.sharpness(loss, params, tx, state).ratio)
    assert start < 0.7
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.1)
    assert "at the edge of stability" in repr(gradtx.sharpness(loss, params, tx, state))


def test_buffers_and_random_streams_are_restored_and_a_seed_gives_the_same_value():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(16, 3)
    buffers, stream = [b.clone() for b in model.buffers()], torch.get_rng_state()
    values = [gradtx.sharpness(lambda model: model(x).square().mean(), model).values for _ in range(2)]
    assert values[0] == values[1]
    assert all(map(torch.equal, buffers, model.buffers()))
    assert torch.equal(stream, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_a_linear_loss_has_no_curvature():
    result = gradtx.sharpness(lambda params: params["w"].sum(), {"w": torch.ones(3)})
    assert result.values == (0.0,)
    assert result.stable_lr == float("inf")


def test_bad_input_is_one_clear_error():
    loss, params = (lambda params: params["w"].square().sum()), {"w": torch.ones(2)}
    with pytest.raises(TypeError, match="sharpness: loss_fn must be a function of params"):
        gradtx.sharpness(3.0, params)
    with pytest.raises(TypeError, match="sharpness: loss_fn must return the loss"):
        gradtx.sharpness(lambda params: params["w"], params)
    with pytest.raises(TypeError, match="sharpness: tx must be"):
        gradtx.sharpness(loss, params, torch.optim.SGD([torch.ones(1)], lr=1.0))
    with pytest.raises(ValueError, match="sharpness: the chain has no learning rate"):
        gradtx.sharpness(loss, params, gradtx.scale_by_adam())
    with pytest.raises(ValueError, match="sharpness: the updates of the chain do not respond"):
        gradtx.sharpness(loss, params, gradtx.signsgd(lr=0.1))
    with pytest.raises(ValueError, match="sharpness: k must be an int of at least 1, got 0"):
        gradtx.sharpness(loss, params, k=0)
    with pytest.raises(ValueError, match="sharpness: a state needs its chain"):
        gradtx.sharpness(loss, params, state={})
    model = nn.Linear(2, 1)
    optimizer = gradtx.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="sharpness: an optimizer must have one group, and params be its module"):
        gradtx.sharpness(loss, params, optimizer)
    with pytest.raises(ValueError, match="sharpness: the optimizer has no state before its first step"):
        gradtx.sharpness(lambda model: model.weight.square().sum(), model, optimizer)
    with pytest.raises(ValueError, match="sharpness: params has no leaf"):
        gradtx.sharpness(loss, {})
