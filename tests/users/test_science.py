"""Physics, reinforcement learning, diffusion and recurrent models, as ported by their users."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import gradtx
from tests.users.common import assert_same_losses, drawn, perceptron, through_a_file

# A physics-informed network: u'' = -u on [0, 3], u(0) = 0, u'(0) = 1; Adam, then L-BFGS.


def physics_loss(model):
    x = torch.linspace(0.0, 3.0, 17, dtype=torch.float64).unsqueeze(1).requires_grad_()
    u = model(x)
    (u_x,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
    return (u_xx + u).square().mean() + u[0].square().sum() + (u_x[0] - 1.0).square().sum()


def fit(module, adam_steps=15, newton_steps=12, **lbfgs):
    model, losses = perceptron(1, 1), []
    optimizer = module.Adam(model.parameters(), lr=1e-2)

    def closure():
        optimizer.zero_grad()
        loss = physics_loss(model)
        loss.backward()
        return loss

    for _ in range(adam_steps):
        losses.append(optimizer.step(closure).item())
    optimizer = module.LBFGS(model.parameters(), lr=0.5, **lbfgs)
    for _ in range(newton_steps):
        losses.append(optimizer.step(closure).item())
    return losses


def test_a_physics_informed_network_trained_by_adam_then_lbfgs_has_torchs_losses():
    theirs = fit(torch.optim, max_iter=1, history_size=10, tolerance_grad=0.0, tolerance_change=0.0)
    assert_same_losses(fit(gradtx.optim, history=10), theirs, tolerance=1e-7)  # quotients of small differences


# Proximal policy optimization in the style of CleanRL, on a problem of one state at a time.


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor, self.critic = perceptron(3, 4, seed=1), perceptron(3, 1, seed=2)

    def forward(self, states):
        return functional.log_softmax(self.actor(states), dim=-1), self.critic(states).squeeze(-1)


def rollout(agent, iteration):
    states = drawn(32, 3, seed=iteration)
    with torch.no_grad():
        log_probs, values = agent(states)
    uniform = torch.rand(32, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(iteration))
    actions = (log_probs.exp().cumsum(-1) < uniform).sum(-1).clamp(max=3)
    rewards = torch.cos(states.sum(-1) - actions)
    taken = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    return states, actions, taken, rewards - values, rewards


def ppo_loss(agent, states, actions, old_log_probs, advantages, returns):
    log_probs, values = agent(states)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = (log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1) - old_log_probs).exp()
    policy = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    return policy - 0.01 * entropy + 0.5 * (values - returns).square().mean()


def ppo(make, clip, anneal, iterations=6, lr=2e-2):
    agent = Agent()
    optimizer, losses = make(agent), []
    for iteration in range(iterations):
        anneal(optimizer, lr * (1.0 - iteration / iterations))
        data = rollout(agent, iteration)
        for epoch in range(3):
            order = torch.randperm(32, generator=torch.Generator().manual_seed(epoch))
            for rows in order.split(16):
                optimizer.zero_grad()
                loss = ppo_loss(agent, *(part[rows] for part in data))
                loss.backward()
                clip(agent)
                optimizer.step()
                losses.append(loss.item())
    return losses


def write_rate(optimizer, rate):
    optimizer.param_groups[0]["lr"] = rate


def test_ppo_with_annealing_and_clip_has_torchs_losses_by_groups_and_by_chain():
    theirs = ppo(
        lambda agent: torch.optim.Adam(agent.parameters(), lr=2e-2, eps=1e-5),
        lambda agent: nn.utils.clip_grad_norm_(agent.parameters(), 0.5),
        write_rate,
    )
    tx = gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adam(lr=2e-2, eps=1e-5))
    assert_same_losses(
        ppo(lambda agent: gradtx.as_optimizer(tx, agent.parameters()), lambda agent: None, write_rate), theirs
    )
    by_iteration = gradtx.Schedule(lambda step: 2e-2 * (1.0 - torch.floor(step / 6) / 6))
    scheduled = tx.replace(lr=by_iteration)
    assert_same_losses(
        ppo(lambda agent: gradtx.as_optimizer(scheduled, agent.parameters()), lambda agent: None, lambda *rate: None),
        theirs,
    )


# Diffusion with an average of the weights, which is saved, loaded and evaluated with.

NOISE = torch.linspace(0.05, 0.95, 8, dtype=torch.float64)
DECAY, START = 0.9, 4


def denoising_loss(model, it):
    x, noise = drawn(16, 2, seed=1).sign(), drawn(16, 2, seed=2 + it % 5)
    level = NOISE[torch.arange(16) % 8].unsqueeze(1)
    noisy = (1 - level).sqrt() * x + level.sqrt() * noise
    return (model(torch.cat([noisy, level], dim=1)) - noise).square().mean()


def diffuse_by_hand(steps):
    """Losses of training, and of the averaged weights at the end."""
    model = perceptron(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    averaged = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for it in range(steps):
        optimizer.zero_grad()
        loss = denoising_loss(model, it)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for name, p in model.named_parameters():
            averaged[name] = DECAY * averaged[name] + (1 - DECAY) * p.detach() if it >= START else p.detach().clone()
    model.load_state_dict(averaged)
    return losses, denoising_loss(model, 0).item()


def diffuse(steps, resume_at):
    tx = gradtx.chain(gradtx.adam(lr=2e-2), gradtx.average(DECAY, start=START))
    model = perceptron(3, 2)
    optimizer, losses = gradtx.as_optimizer(tx, model.named_parameters()), []
    for it in range(steps):
        if it == resume_at:
            saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            model = perceptron(3, 2, seed=9)
            optimizer = gradtx.as_optimizer(tx, model.named_parameters())
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        optimizer.zero_grad()
        loss = denoising_loss(model, it)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with optimizer.eval_params():
        released = through_a_file(model.state_dict())
    sampler = perceptron(3, 2, seed=9)
    sampler.load_state_dict(released)
    return losses, denoising_loss(sampler, 0).item()


def test_diffusion_with_averaged_weights_that_are_resumed_and_released_equals_the_loop_by_hand():
    theirs, their_end = diffuse_by_hand(16)
    for resume_at in (None, 9):
        ours, our_end = diffuse(16, resume_at)
        assert_same_losses([*ours, our_end], [*theirs, their_end])
    assert abs(their_end - theirs[-1]) > 1e-3


# A recurrent model: truncated backpropagation, recomputed activations, gradients that add up over two chunks.


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = nn.GRUCell(2, 6), nn.Linear(6, 2)
        self.double()

    def chunk(self, xs, h):
        outputs = []
        for x in xs:
            h = self.cell(x, h)
            outputs.append(self.head(h))
        return torch.stack(outputs), h


def train_recurrent(optimizer_class, **options):
    model, series = Recurrent(), drawn(41, 4, 2).cumsum(0).sin()
    optimizer, losses = optimizer_class(model.parameters(), lr=1e-2, **options), []
    for _ in range(2):
        h = torch.zeros(4, 6, dtype=torch.float64)
        for i in range(0, 40, 5):
            predictions, h = checkpoint(model.chunk, series[i : i + 5], h, use_reentrant=False)
            loss = (predictions - series[i + 1 : i + 6]).square().mean()
            loss.backward()
            h = h.detach()  # the graph ends here
            losses.append(loss.item())
            if (i // 5) % 2:
                nn.utils.clip_grad_value_(model.parameters(), 0.05)
                optimizer.step()
                optimizer.zero_grad()
    return losses


def test_a_recurrent_model_with_truncated_and_checkpointed_backpropagation_has_torchs_losses():
    options = {"momentum": 0.9, "centered": True}
    assert_same_losses(
        train_recurrent(gradtx.optim.RMSprop, **options), train_recurrent(torch.optim.RMSprop, **options)
    )
