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


@pytest.mark.parametrize("compile", [False, True])
def test_groups_of_an_optimizer_are_preconditioned_each_by_its_rate_and_momentum(compile):
    model, loss = network()
    model[0].bias.requires_grad_(False)
    rates, betas, beta2 = {"weight": 0.02, "bias": 0.005}, {"weight": 0.9, "bias": 0.5}, 0.99
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [(n, p) for n, p in named if kind in n], "lr": rate, "betas": (betas[kind], beta2)}
        for kind, rate in rates.items()
    ]
    optimizer = gradtx.as_optimizer(gradtx.adam(lr=1.0), groups, compile=compile)
    v = {name: torch.zeros_like(p) for name, p in named}
    for _ in range(3):
        optimizer.zero_grad()
        loss(model).backward()
        v = {name: beta2 * v[name] + (1 - beta2) * p.grad**2 for name, p in named}
        optimizer.step()
    # Of step 4 with a gradient of 0; steps are stable up to 2 of the rate, divided by 1 + beta, times J H.
    steps = []
    for name, _ in named:
        kind = name.rpartition(".")[2]
        root = (beta2 * v[name] / (1 - beta2**4)).sqrt().reshape(-1) + 1e-8
        response = (1 - betas[kind]) / (1 - betas[kind] ** 4) / root
        steps.append(rates[kind] * response / (1 + betas[kind]))
    hessian = dense_hessian(
        lambda params: loss({**dict(model.named_parameters()), **params}), {n: p.detach() for n, p in named}
    )
    expected = torch.linalg.eigvals(torch.cat(steps)[:, None] * hessian).real.sort(descending=True).values[:3] / 2
    result = gradtx.sharpness(loss, model, optimizer, k=3)
    assert [value / result.bound for value in result.values] == pytest.approx(expected.tolist(), rel=EXACT)
    assert result.lr == 0.02


def test_branches_of_a_partition_are_groups_and_those_of_muon_are_refused():
    model, loss = network()
    tx = gradtx.partition(
        {"weights": gradtx.sgd(lr=0.1), "biases": gradtx.sgd(lr=0.2)}, {"weights": "*w*", "biases": "*"}
    )
    muon = gradtx.muon_for(model, lr=0.02)
    optimizer = gradtx.as_optimizer(tx, model.named_parameters())
    for trained in (optimizer, muon):
        loss(model).backward()
        trained.step()
    result = gradtx.sharpness(loss, model, optimizer)
    rates = torch.cat([torch.full((p.numel(),), 0.1 if p.ndim == 2 else 0.2).double() for p in model.parameters()])
    expected = torch.linalg.eigvals(rates[:, None] * dense_hessian(loss, tree_of(model))).real.max().item() / 2
    assert result.ratio == pytest.approx(expected, rel=EXACT)
    # Newton-Schulz iterations divide by a norm, and only approach the polar factor, whose derivative is symmetric.
    with pytest.raises(ValueError, match="sharpness: the response of the chain to a small gradient is not symmetric"):
        gradtx.sharpness(loss, model, muon)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}]
)
@pytest.mark.parametrize(("share", "is_stable"), [(0.98, True), (1.02, False)])
def test_steps_below_the_stable_rate_converge_and_steps_above_it_diverge(options, share, is_stable):
    params = {"w": torch.tensor([1.0, 1.0], dtype=torch.float64)}
    curvature = torch.tensor([1.0, 20.0], dtype=torch.float64)
    loss = lambda params: (curvature * params["w"] ** 2).sum() / 2  # noqa: E731
    tx = gradtx.sgd(lr=0.01, **options)
    _, state = tx.update(params, tx.init(params), params)  # torch does not dampen the first gradient
    result = gradtx.sharpness(loss, params, tx, state)
    assert result.values[0] == pytest.approx(20.0)  # plain, because all entries are treated alike
    assert repr(result).startswith("sharpness 20: ")
    optimizer = torch.optim.SGD([torch.nn.Parameter(params["w"])], lr=share * result.stable_lr, **options)
    weight = optimizer.param_groups[0]["params"][0]
    for _ in range(3000):
        weight.grad = curvature * weight.detach()
        optimizer.step()
    assert (weight.abs().max().item() < 1e-3) == is_stable


def test_a_chain_whose_bound_is_not_known_is_an_error():
    model, loss = network()
    params = tree_of(model)
    with pytest.raises(ValueError, match="sharpness: what the chain makes of a gradient depends on its state"):
        gradtx.sharpness(loss, params, gradtx.adam(lr=0.1))
    for tx, message in [
        (gradtx.lamb(lr=0.1), "sharpness: the response of the chain to a small gradient is not symmetric"),
        (gradtx.adan(lr=0.1), "sharpness: no bound is known for this chain, because past gradients change what it"),
    ]:
        state = tx.init(params)
        for _ in range(2):
            _, state = tx.update(torch.func.grad(loss)(params), state, params)
        with pytest.raises(ValueError, match=message):
            gradtx.sharpness(loss, params, tx, state)


def test_a_loss_that_ignores_its_argument_is_an_error():
    model, loss = network()
    with pytest.raises(ValueError, match="sharpness: the loss does not depend on params"):
        gradtx.sharpness(lambda params: loss(model), tree_of(model))


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
    with pytest.raises(ValueError, match="sharpness: with an optimizer, params must be its module"):
        gradtx.sharpness(loss, params, optimizer)
    with pytest.raises(ValueError, match="sharpness: the optimizer has no state before its first step"):
        gradtx.sharpness(lambda model: model.weight.square().sum(), model, optimizer)
    with pytest.raises(ValueError, match="sharpness: params has no leaf"):
        gradtx.sharpness(loss, {})
