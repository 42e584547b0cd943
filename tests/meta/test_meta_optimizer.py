"""Differentiable steps of a module: equal to plain torch, to pure updates, and gone at the end of the block."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import gradtx

X, Y = (torch.randn(8, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2))
CHAINS = {
    "sgd with momentum": gradtx.sgd(0.1, momentum=0.9),
    "adam": gradtx.adam(0.05),
    "clip and adamw": gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(0.05)),
    "lookahead": gradtx.chain(gradtx.sgd(0.1), gradtx.lookahead(k=2)),
}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def fit(outputs):
    return (outputs - Y).square().mean()


def by_pure_updates(tx, params, net, steps, first_order=False):
    state = tx.init(params)
    for _ in range(steps):
        loss = fit(functional_call(net, params, (X,)))
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
        updates, state = tx.update(dict(zip(params, grads, strict=True)), state, params, value=loss)
        params = gradtx.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", CHAINS)
def test_steps_of_a_module_have_the_gradients_of_pure_updates_and_leave_it_as_it_was(name):
    net, tx = network(), CHAINS[name]
    leaves = dict(net.named_parameters())
    before = copy.deepcopy(net.state_dict())
    with gradtx.MetaOptimizer(net, tx) as inner:
        for _ in range(4):
            inner.step(fit(net(X)))
        outer = net(2 * X).square().mean()
    params = by_pure_updates(tx, dict(net.named_parameters()), net, 4)
    expected = torch.autograd.grad(functional_call(net, params, (2 * X,)).square().mean(), list(leaves.values()))
    outer.backward()
    assert all(param is leaves[name] for name, param in net.named_parameters())
    torch.testing.assert_close([leaf.grad for leaf in leaves.values()], list(expected))
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_maml_with_one_step_of_sgd_equals_plain_torch():
    net = network()
    leaves = list(net.parameters())
    grads = torch.autograd.grad(fit(net(X)), leaves, create_graph=True)
    moved = dict(
        zip(dict(net.named_parameters()), (p - 0.3 * g for p, g in zip(leaves, grads, strict=True)), strict=True)
    )
    expected = torch.autograd.grad(fit(functional_call(net, moved, (Y,))), leaves)
    with gradtx.MetaOptimizer(net, gradtx.sgd(0.3)) as inner:
        inner.step(fit(net(X)))
        torch.testing.assert_close(torch.autograd.grad(fit(net(Y)), leaves), expected)


def test_a_learned_rate_and_a_learned_loss_have_gradients():
    net, rate, weight = network(), torch.tensor(0.1, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    with gradtx.MetaOptimizer(net, gradtx.sgd(rate)) as inner:
        inner.step(weight * fit(net(X)))
        fit(net(X)).backward()
    torch.testing.assert_close(rate.grad / 10, weight.grad, check_dtype=False)  # only their product counts


def test_first_order_takes_gradients_for_constants():
    net = network()
    with gradtx.MetaOptimizer(net, gradtx.adam(0.1), first_order=True) as inner:
        for _ in range(3):
            inner.step(fit(net(X)))
        fit(net(X)).backward()
    params = by_pure_updates(
        gradtx.adam(0.1), {n: p.detach().requires_grad_() for n, p in net.named_parameters()}, net, 3, first_order=True
    )
    at = {name: p.detach().requires_grad_() for name, p in params.items()}
    expected = torch.autograd.grad(fit(functional_call(net, at, (X,))), list(at.values()))
    torch.testing.assert_close([p.grad for p in net.parameters()], list(expected))


def test_extract_and_recover_branch_from_one_state_and_stop_gradient_cuts_the_graph():
    net = network()
    inner = gradtx.MetaOptimizer(net, gradtx.adam(0.1))
    initial = inner.extract()
    inner.step(fit(net(X)))
    after_one = inner.extract()
    branches = []
    for _ in range(2):
        inner.recover(after_one)
        inner.step(fit(net(X)))
        branches.append(fit(net(X)))
    assert branches[0] == branches[1]
    assert int(inner.state["step"]) == 2
    inner.stop_gradient()
    inner.step(fit(net(X)))
    leaves = list(initial.params.values())
    assert torch.autograd.grad(fit(net(X)), leaves, allow_unused=True) == (None,) * len(leaves)
    inner.recover(initial)
    assert inner.state is None
    assert all(p is q for p, q in zip(net.parameters(), leaves, strict=True))


def test_buffers_come_back_and_backward_still_works():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    with gradtx.MetaOptimizer(net, gradtx.sgd(0.1)) as inner:
        for _ in range(2):
            inner.step(fit(net(X)))
        loss = fit(net(X))
    assert int(net[1].num_batches_tracked) == 0
    assert net[1].running_mean.count_nonzero() == 0
    loss.backward()
    assert net[0].weight.grad.isfinite().all()


def test_a_shared_weight_is_one_weight_and_frozen_ones_stay():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3)).double()
    net[2].weight = net[0].weight
    net[2].bias.requires_grad_(False)
    with gradtx.MetaOptimizer(net, gradtx.sgd(0.1)) as inner:
        inner.step(fit(net(X)))
        assert list(inner.params) == ["0.weight"]
        assert net[2].weight is net[0].weight
        assert not isinstance(net[0].weight, nn.Parameter)
    assert isinstance(net[0].weight, nn.Parameter)
    assert net[2].weight is net[0].weight


def test_an_error_inside_the_block_gives_the_parameters_back():
    net = network()
    leaves = list(net.parameters())

    def broken():
        with gradtx.MetaOptimizer(net, gradtx.sgd(0.1)) as inner:
            inner.step(fit(net(X)))
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert all(p is q for p, q in zip(net.parameters(), leaves, strict=True))


def test_an_outer_optimizer_learns_initial_weights():
    net = network()
    outer_optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        with gradtx.MetaOptimizer(net, gradtx.sgd(0.1)) as inner:
            inner.step(fit(net(X)))
            loss = fit(net(X))
        outer_optimizer.zero_grad()
        loss.backward()
        outer_optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def _stale(net):
    inner, loss = gradtx.MetaOptimizer(net, gradtx.sgd(0.1)), fit(net(X))
    inner.step(loss)
    inner.step(loss)


MISTAKES = {
    "MetaOptimizer: needs a torch.nn.Module, got ": lambda net: gradtx.MetaOptimizer(gradtx.sgd(), net),
    "MetaOptimizer: tx must be a GradientTransformation": lambda net: gradtx.MetaOptimizer(net, torch.optim.SGD),
    "MetaOptimizer: no parameter of Sequential requires gradients": lambda net: gradtx.MetaOptimizer(
        net.requires_grad_(False), gradtx.sgd()
    ),
    "MetaOptimizer.step: the loss must be a 0-d tensor, got tensor(shape=(8, 3)": lambda net: gradtx.MetaOptimizer(
        net, gradtx.sgd()
    ).step(net(X)),
    "MetaOptimizer.step: the loss does not depend on the module's present weights": _stale,
    "MetaOptimizer.recover: leaf '0.weight' is missing": lambda net: gradtx.MetaOptimizer(net, gradtx.sgd()).recover(
        gradtx.MetaOptimizer(nn.Linear(2, 2), gradtx.sgd()).extract()
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_error_that_names_it(message):
    with pytest.raises((ValueError, TypeError)) as caught:
        MISTAKES[message](network())
    assert str(caught.value).startswith(message)
