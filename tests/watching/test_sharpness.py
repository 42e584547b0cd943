"""Sharpness against the eigenvalues of dense Hessians, and gradient descent at the edge of stability."""

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import gradtx
from tests.tiers import by_day

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


@by_day("*-options2", "*-options3")
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


def linear_chain(*links):
    return gradtx.chain(*links, gradtx.scale_by_learning_rate(RATE))


RATE = 0.01
TRACE, FAST = gradtx.trace(0.9), gradtx.trace(0.5)
LINEAR = {
    "sgd": gradtx.sgd(lr=RATE),
    "momentum": gradtx.sgd(lr=RATE, momentum=0.9),
    "dampening": gradtx.sgd(lr=RATE, momentum=0.9, dampening=0.5),
    "nesterov": gradtx.sgd(lr=RATE, momentum=0.9, nesterov=True),
    "qhm": gradtx.qhm(lr=RATE),
    "qhm-decay": gradtx.qhm(lr=RATE, momentum=0.9, weight_decay=3.0, decoupled_weight_decay=True),
    "pnm": gradtx.pnm(lr=RATE),
    "pnm-decay": gradtx.pnm(lr=RATE, weight_decay=5.0),
    "aggmo": gradtx.aggmo(lr=RATE),
    "schedule-free": gradtx.schedule_free_sgd(lr=RATE),
    "schedule-free-decay": gradtx.schedule_free_sgd(lr=RATE, weight_decay=3.0),
    "schedule-free-momentum": gradtx.schedule_free(gradtx.trace(0.5), lr=RATE, beta=0.8),
    "optimistic": gradtx.optimistic_gradient_descent(lr=RATE),
    "optimistic-momentum": linear_chain(gradtx.scale_by_optimistic_gradient(0.3, 0.5), gradtx.trace(0.7)),
    "ema": linear_chain(gradtx.ema(0.9)),
    "ema-debias": linear_chain(gradtx.ema(0.9, debias=True)),
    "trace-ema": linear_chain(gradtx.trace_ema(0.9)),
    "ema-nesterov": linear_chain(gradtx.ema_nesterov()),
    "two-traces": linear_chain(TRACE, FAST),
    "two-traces-decay": linear_chain(TRACE, FAST, gradtx.add_decayed_weights(1.0)),
    "rate-first": gradtx.chain(gradtx.scale_by_learning_rate(RATE), TRACE),
    "decoupled": gradtx.sgdw(lr=RATE, momentum=0.9, weight_decay=2.0),
    "coupled": gradtx.sgd(lr=RATE, momentum=0.9, weight_decay=2.0),
    "maximize": gradtx.sgd(lr=RATE, momentum=0.9, weight_decay=1.0, maximize=True),
    "accumulate": gradtx.accumulate(gradtx.sgd(lr=RATE, momentum=0.9, weight_decay=2.0), every=3),
    "lookahead": gradtx.chain(gradtx.sgd(lr=RATE, momentum=0.9), gradtx.lookahead(k=5)),
    "accsgd": gradtx.accsgd(lr=RATE),
    "pid": gradtx.pid(lr=RATE),
    "partition": gradtx.partition({"all": gradtx.qhm(lr=RATE)}, {"all": "*"}),
}


def at_rate(tx, rate):
    name = next(name for name in tx.hyperparams if name.rpartition(".")[2] == "lr")
    return tx.replace(**{name: rate})


def grows(tx, curvature, steps=2500):
    """Whether steps on a quadratic diverge in the long run: averages over a run let them grow at first."""
    params = {"w": torch.tensor([1.0], dtype=torch.float64)}
    state, sizes = tx.init(params), []
    for _ in range(steps):
        updates, state = tx.update({"w": curvature * params["w"]}, state, params)
        params = gradtx.apply_updates(params, updates)
        sizes.append(abs(params["w"].item()))
    return max(sizes[-steps // 4 :]) > max(sizes[-steps // 2 : -steps // 4])


@by_day("qhm", "pnm", "lookahead")
@pytest.mark.parametrize("name", LINEAR)
def test_simulated_steps_converge_below_the_stable_rate_of_a_linear_chain_and_diverge_above_it(name):
    tx, curvature = LINEAR[name], 20.0
    sign = -1.0 if name == "maximize" else 1.0
    params = {"w": torch.tensor([1.0, 1.0], dtype=torch.float64)}
    loss = lambda params: sign * (torch.tensor([1.0, curvature]) * params["w"] ** 2).sum() / 2  # noqa: E731
    result = gradtx.sharpness(loss, params, tx)
    assert result.values[0] == pytest.approx(curvature)
    simulated = {share: grows(at_rate(tx, share * result.stable_lr), sign * curvature) for share in (0.99, 1.01)}
    assert simulated == {0.99: False, 1.01: True}
    # A state of a run says the same.
    _, state = tx.update({"w": torch.tensor([1.0, -3.0], dtype=torch.float64)}, tx.init(params), params)
    assert gradtx.sharpness(loss, params, tx, state).stable_lr == pytest.approx(result.stable_lr)


@by_day("aggmo-*", "momentum-*", "qhm-decay-*", "schedule-free-*")
@pytest.mark.parametrize(
    ("name", "stable"),
    [
        ("momentum", 2 * 1.9),
        ("ema", 2 * 1.9 / 0.1),
        ("trace-ema", 2 * 1.9 / 0.1),
        ("qhm-decay", None),
        ("nesterov", 2 * 1.9 / 2.8),
        ("aggmo", 6 / (1 + 1 / 1.9 + 1 / 1.99)),
        ("schedule-free", 2 / 0.1),
        ("optimistic", 2 / 3),
    ],
)
def test_the_stable_rate_times_the_curvature_is_that_of_the_alternating_sum(name, stable):
    # 2 / sum of (-1)^k h_k, where a gradient adds h_k to the step k later.
    if stable is None:
        m, nu, decay = 0.9, 0.7, 3.0
        alternating = (1 - nu) + nu * (1 - m) / (1 + m)
        stable = 20 * 2 / (20 * alternating + decay)
    params = {"w": torch.tensor([1.0, 1.0], dtype=torch.float64)}
    loss = lambda params: (torch.tensor([1.0, 20.0]) * params["w"] ** 2).sum() / 2  # noqa: E731
    assert gradtx.sharpness(loss, params, LINEAR[name]).stable_lr * 20 == pytest.approx(stable, rel=2e-3)


@pytest.mark.parametrize(
    ("tx", "coupled", "decoupled"),
    [(gradtx.adam(lr=0.01, weight_decay=2.0), 2.0, 0.0), (gradtx.adamw(lr=0.01, weight_decay=20.0), 0.0, 20.0)],
)
def test_decay_in_the_gradient_raises_the_values_and_other_decay_lowers_the_bound(tx, coupled, decoupled):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, dtype=torch.float64, generator=generator)
    hessian = root @ root.T
    params = {"w": torch.randn(5, dtype=torch.float64, generator=generator)}
    state, v = tx.init(params), torch.zeros(5, dtype=torch.float64)
    for _ in range(4):
        gradient = hessian @ params["w"]
        v = 0.999 * v + 0.001 * (gradient + coupled * params["w"]) ** 2
        updates, state = tx.update({"w": gradient}, state, params)
        params = gradtx.apply_updates(params, updates)
    response = 0.1 / (1 - 0.9**5) / ((0.999 * v / (1 - 0.999**5)).sqrt() + 1e-8)
    matrix = response[:, None] * (hessian + coupled * torch.eye(5))
    largest = torch.linalg.eigvals(matrix).real.max().item()
    result = gradtx.sharpness(lambda params: params["w"] @ hessian @ params["w"] / 2, params, tx, state)
    assert result.values[0] == pytest.approx(largest, rel=EXACT)
    assert result.bound == pytest.approx(1.9 * (2 / 0.01 - decoupled), rel=1e-6)
    # Where the rate times the curvature and the decay is 2, with momentum.
    assert result.stable_lr == pytest.approx(3.8 / (largest + 1.9 * decoupled), rel=1e-4)


def test_decay_that_alone_makes_steps_diverge_is_unstable():
    params = {"w": torch.tensor([1.0], dtype=torch.float64)}
    loss = lambda params: 10 * params["w"].square().sum()  # noqa: E731
    result = gradtx.sharpness(loss, params, gradtx.sgd(lr=0.01, weight_decay=300.0))
    assert result.ratio == float("inf")
    assert "unstable" in repr(result)
    assert result.stable_lr == pytest.approx(2 / (20 + 300), rel=1e-2)


def test_branches_whose_momenta_rotate_are_refused_unless_they_are_alike():
    model, loss = network()
    two = linear_chain(TRACE, FAST)

    def of(weights, biases):
        tx = gradtx.partition({"weights": weights, "biases": biases}, {"weights": "*w*", "biases": "*"})
        return gradtx.sharpness(loss, model, tx)

    with pytest.raises(ValueError, match="sharpness: leaves have different momenta, above whose bound steps do not"):
        of(two, gradtx.sgd(lr=RATE))
    slower = gradtx.chain(TRACE, FAST, gradtx.scale_by_learning_rate(RATE / 2))
    assert (
        of(two, two).ratio > of(two, slower).ratio > of(slower, slower).ratio == pytest.approx(of(two, two).ratio / 2)
    )
    with pytest.raises(ValueError, match="sharpness: the chain maximizes for some leaves and minimizes for others"):
        of(gradtx.sgd(lr=RATE), gradtx.sgd(lr=RATE, maximize=True))


@by_day("int8")
@pytest.mark.parametrize("code", ["int8", "bfloat16+8", torch.bfloat16])
def test_state_in_few_bits_is_that_of_its_values(code):
    torch.manual_seed(0)
    start, x = nn.Linear(80, 64), torch.randn(32, 80)
    loss = lambda model: model(x).tanh().square().mean()  # noqa: E731
    results = []
    for state_dtype in (None, code):
        model = copy.deepcopy(start)
        optimizer = gradtx.optim.AdamW(model.named_parameters(), lr=0.01, state_dtype=state_dtype)
        for _ in range(4):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
        results.append(gradtx.sharpness(loss, model, optimizer))
    assert results[1].values[0] == pytest.approx(results[0].values[0], rel=0.05)
    assert results[1].bound == pytest.approx(results[0].bound, rel=1e-6)


def test_accumulated_gradients_have_the_bound_of_their_mean_and_a_state_between_updates_is_refused():
    model, loss = network()
    plain, params = gradtx.adam(lr=0.01), tree_of(model)
    tx = gradtx.accumulate(plain, every=3)
    state, state_of_plain = tx.init(params), plain.init(params)
    gradients = torch.func.grad(loss)(params)
    for _ in range(2):
        _, state_of_plain = plain.update(gradients, state_of_plain, params)
    for _ in range(6):
        _, state = tx.update(gradients, state, params)
    result, expected = (
        gradtx.sharpness(loss, params, tx, state),
        gradtx.sharpness(loss, params, plain, state_of_plain),
    )
    assert result.values == pytest.approx(expected.values, rel=EXACT)
    assert result.bound == pytest.approx(expected.bound, rel=EXACT)
    _, state = tx.update(gradients, state, params)
    with pytest.raises(ValueError, match="sharpness: the chain updates weights in one of 3 calls, and is between two"):
        gradtx.sharpness(loss, params, tx, state)


def test_a_trainers_wrapper_is_the_optimizer_that_it_wraps():
    model, loss = network()
    optimizer = gradtx.optim.AdamW(model.named_parameters(), lr=0.01)
    loss(model).backward()
    optimizer.step()
    wrapper = types.SimpleNamespace(optimizer=optimizer)
    expected = gradtx.sharpness(loss, model, optimizer)
    assert gradtx.sharpness(loss, model, wrapper).values == pytest.approx(expected.values)


def test_a_loss_without_a_second_derivative_is_an_error_that_says_the_remedy():
    model, loss = network()
    with torch.no_grad():  # of the caller
        assert gradtx.sharpness(loss, model).values[0] > 0
    with torch.inference_mode(), pytest.raises(ValueError, match=r"sharpness: torch.inference_mode\(\) records no"):
        gradtx.sharpness(loss, model)
    with pytest.raises(ValueError, match=r"sharpness: the loss has no derivative: .* without torch.no_grad\(\)"):
        gradtx.sharpness(torch.no_grad()(loss), model)
    query, projection = torch.randn(1, 2, 8, 16), nn.Linear(16, 16)

    def attention(module):
        inputs = module(query)
        return nn.functional.scaled_dot_product_attention(inputs, inputs, inputs).square().mean()

    with pytest.raises(ValueError, match=r"no second derivative: .*sdpa_kernel\(SDPBackend.MATH\)"):
        gradtx.sharpness(attention, projection)
    with sdpa_kernel(SDPBackend.MATH):
        assert gradtx.sharpness(attention, projection).values[0] > 0


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
    with pytest.raises(TypeError, match=r"the order is sharpness\(loss_fn, params\)"):
        gradtx.sharpness(params, loss)
    with pytest.raises(ValueError, match="sharpness: the chain needs value in each step"):
        gradtx.sharpness(loss, params, gradtx.momo(lr=0.1))
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
