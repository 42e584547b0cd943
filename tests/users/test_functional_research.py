"""Ensembles, meta-learning, a loop ported from optax, and federated averaging: pure functions against torch's loops."""

import math

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import gradtx
from tests.users.common import assert_same_losses, drawn, perceptron

X, Y = drawn(16, 3, seed=1), drawn(16, 1, seed=2)
MODEL = perceptron()


def weights(seed=0):
    return {name: p.detach().clone() for name, p in perceptron(seed=seed).named_parameters()}


def loss_fn(params, x=X, y=Y):
    return (functional_call(MODEL, params, (x,)) - y).square().mean()


# An ensemble over learning rates and decays.


def members_by_hand(rates, decays, steps):
    """Losses of all members at each step, each trained by an optimizer of torch."""
    losses = []
    for rate, decay in zip(rates, decays, strict=True):
        model = perceptron()
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        of_member = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_fn(dict(model.named_parameters()))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.2)
            optimizer.step()
            scheduler.step()
            of_member.append(loss.item())
        losses.append(of_member)
    return losses


def test_one_vmap_over_rates_and_decays_has_the_losses_of_one_torch_run_for_each():
    rates, decays, steps, start = [1e-3, 1e-2, 1e-1], [0.0, 0.1, 0.3], 12, weights()

    def train(rate, decay):
        adamw = gradtx.adamw(gradtx.cosine_schedule(rate, T_max=steps), weight_decay=decay)
        tx = gradtx.chain(gradtx.clip_by_global_norm(0.2), adamw)
        params, losses = start, []
        state, step = tx.init(params), gradtx.train_step(loss_fn, tx)
        for _ in range(steps):
            params, state, loss = step(params, state)
            losses.append(loss)
        return torch.stack(losses)

    ours = vmap(train)(torch.tensor(rates, dtype=torch.float64), torch.tensor(decays, dtype=torch.float64))
    for mine, theirs in zip(ours.tolist(), members_by_hand(rates, decays, steps), strict=True):
        assert_same_losses(mine, theirs)


# MAML: three steps of momentum inside, Adam outside, with a learned inner rate.


def task(i):
    x = drawn(10, 3, seed=20 + i)
    return x, (x.sum(1, keepdim=True) + i).sin()


def adapted_by_hand(params, rate, x, y):
    buffers = {name: torch.zeros_like(p) for name, p in params.items()}
    for _ in range(3):
        grads = torch.autograd.grad(loss_fn(params, x, y), list(params.values()), create_graph=True)
        buffers = {name: 0.5 * buffers[name] + g for name, g in zip(params, grads, strict=True)}
        params = {name: p - rate * buffers[name] for name, p in params.items()}
    return params


def adapted(params, rate, x, y):
    tx = gradtx.sgd(lr=rate, momentum=0.5)
    state, step = tx.init(params), gradtx.train_step(loss_fn, tx)
    for _ in range(3):
        params, state, _ = step(params, state, x, y)
    return params


def test_maml_with_inner_momentum_and_a_learned_inner_rate_has_the_losses_of_create_graph():
    by_hand = [*(p.requires_grad_() for p in weights().values()), torch.tensor(0.1).double().requires_grad_()]
    adam, theirs = torch.optim.Adam(by_hand, lr=1e-2), []
    for it in range(8):
        x, y = task(it % 3)
        params = dict(zip(weights(), by_hand, strict=False))
        loss = loss_fn(adapted_by_hand(params, by_hand[-1], x[:5], y[:5]), x[5:], y[5:])
        adam.zero_grad()
        loss.backward()
        adam.step()
        theirs.append(loss.item())

    def meta_loss(meta, x, y):
        return loss_fn(adapted(meta["params"], meta["rate"], x[:5], y[:5]), x[5:], y[5:])

    meta, tx, ours = {"params": weights(), "rate": torch.tensor(0.1).double()}, gradtx.adam(lr=1e-2), []
    state, step = tx.init(meta), gradtx.train_step(meta_loss, tx)
    for it in range(8):
        meta, state, loss = step(meta, state, *task(it % 3))
        ours.append(loss.item())
    assert_same_losses(ours, theirs)
    torch.testing.assert_close(meta["rate"], by_hand[-1].detach(), rtol=1e-10, atol=0.0)


# An optax loop: MultiSteps around clip, multi_transform and a warmup-cosine schedule.


def loop_by_hand(calls, every, total, warmup, peak):
    """Losses of AdamW on weights and SGD with momentum on biases, one line for each symbol."""
    p, losses = weights(), []
    sums = {name: torch.zeros_like(w) for name, w in p.items()}
    m, v = ({name: torch.zeros_like(w) for name, w in p.items()} for _ in range(2))
    for call in range(calls):
        x, y = X[call % 4 :: 4], Y[call % 4 :: 4]
        losses.append(loss_fn(p, x, y).item())
        sums = {name: sums[name] + g for name, g in grad(loss_fn)(p, x, y).items()}
        if (call + 1) % every:
            continue
        t = (call + 1) // every
        g = {name: total / every for name, total in sums.items()}
        sums = {name: torch.zeros_like(w) for name, w in p.items()}
        norm = math.sqrt(sum(leaf.square().sum().item() for leaf in g.values()))
        g = {name: leaf * min(1.0, 0.3 / (norm + 1e-6)) for name, leaf in g.items()}
        done = t - 1
        angle = math.pi * (done - warmup) / (total - warmup)
        lr = peak * done / warmup if done < warmup else peak * 0.5 * (1 + math.cos(angle))
        for name in p:
            if name.endswith("bias"):
                m[name] = 0.9 * m[name] + g[name]
                p[name] = p[name] - lr * m[name]
                continue
            m[name] = 0.9 * m[name] + 0.1 * g[name]
            v[name] = 0.99 * v[name] + 0.01 * g[name].square()
            direction = m[name] / (1 - 0.9**t) / ((v[name] / (1 - 0.99**t)).sqrt() + 1e-8)
            p[name] = p[name] - lr * (direction + 0.1 * p[name])
    return losses


def test_a_loop_ported_from_optax_has_the_losses_of_the_same_loop_by_hand():
    calls, every, total, warmup, peak = 24, 2, 12, 3, 5e-2
    schedule = gradtx.warmup_cosine_schedule(total, max_lr=peak, warmup_steps=warmup)
    branches = {
        "decay": gradtx.adamw(schedule, betas=(0.9, 0.99), weight_decay=0.1),
        "plain": gradtx.sgd(schedule, momentum=0.9),
    }
    tx = gradtx.accumulate(
        gradtx.chain(
            gradtx.clip_by_global_norm(0.3), gradtx.partition(branches, {"decay": "*.weight", "plain": "*.bias"})
        ),
        every,
    )
    params, losses = weights(), []
    state = tx.init(params)
    for call in range(calls):
        x, y = X[call % 4 :: 4], Y[call % 4 :: 4]
        grads, value = torch.func.grad_and_value(loss_fn)(params, x, y)
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        losses.append(value.item())
    assert_same_losses(losses, loop_by_hand(calls, every, total, warmup, peak))


# Federated averaging: clients train side by side and keep their states; a server steps by Adam.

CLIENTS = torch.stack([X[i::4] + i for i in range(4)]), torch.stack([Y[i::4] for i in range(4)])


def federated_by_hand(rounds):
    server, losses = perceptron(), []
    adam = torch.optim.Adam(server.parameters(), lr=1e-2)
    clients = [perceptron() for _ in range(4)]
    optimizers = [torch.optim.SGD(client.parameters(), lr=0.05, momentum=0.9) for client in clients]
    for _ in range(rounds):
        total = 0.0
        for client, optimizer, x, y in zip(clients, optimizers, *CLIENTS, strict=True):
            client.load_state_dict(server.state_dict())
            for _ in range(3):
                optimizer.zero_grad()
                loss = (client(x) - y).square().mean()
                loss.backward()
                optimizer.step()
            total += loss.item()
        losses.append(total)
        for p, *of_clients in zip(server.parameters(), *(client.parameters() for client in clients), strict=True):
            p.grad = p.detach() - torch.stack([w.detach() for w in of_clients]).mean(0)
        adam.step()
    return losses


def test_federated_averaging_with_stacked_states_has_the_losses_of_a_loop_over_clients():
    local, server = gradtx.sgd(lr=0.05, momentum=0.9), gradtx.adam(lr=1e-2)
    step = vmap(gradtx.train_step(loss_fn, local))
    params, losses = weights(), []
    server_state = server.init(params)
    states = gradtx.stack([local.init(params)] * 4)
    for _ in range(6):
        members = gradtx.stack([params] * 4)
        for _ in range(3):
            members, states, loss = step(members, states, *CLIENTS)
        losses.append(loss.sum().item())
        moved = {name: params[name] - leaves.mean(0) for name, leaves in members.items()}
        updates, server_state = server.update(moved, server_state, params)
        params = gradtx.apply_updates(params, updates)
    assert_same_losses(losses, federated_by_hand(6))
