"""Image models in the style of timm, early stopping, GANs and mixed precision, as ported by their users."""

import copy

import torch
from torch import nn
from torch.nn import functional

import gradtx
from tests.users.common import assert_same_losses, drawn, perceptron, through_a_file

IMAGES, LABELS = drawn(24, 3, 6, 6), torch.arange(24) % 4
BATCHES = list(zip(IMAGES.split(8), LABELS.split(8), strict=True))


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.double()

    def forward(self, x):
        return self.head(functional.relu(self.norm(self.stem(x))).mean((2, 3)))


# Adaptive gradient clipping, for all but the head, before SGD with Nesterov's momentum.


def unit_norms(x):
    return x.norm() if x.ndim < 2 else x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


def clip_adaptively(params, factor):
    for p in params:
        bound = factor * unit_norms(p.detach()).clamp(min=1e-3)
        norms = unit_norms(p.grad)
        p.grad = torch.where(norms > bound, p.grad * (bound / norms.clamp(min=1e-6)), p.grad)


def train_with_agc(model, optimizer, before_step, epochs=4):
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    losses = []
    for _ in range(epochs):
        for x, y in BATCHES:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y, label_smoothing=0.1)
            loss.backward()
            before_step()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
    return losses


def test_a_timm_loop_with_adaptive_clipping_of_all_but_the_head_has_the_losses_of_the_plain_loop():
    model = ConvNet()
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    options = {"lr": 1.0, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}
    body = [p for name, p in model.named_parameters() if not name.startswith("head.")]
    sgd = torch.optim.SGD(groups, **options)
    theirs = train_with_agc(model, sgd, lambda: clip_adaptively(body, 0.05))

    model = ConvNet()
    tx = gradtx.chain(
        gradtx.masked(gradtx.clip_adaptive(0.05), ("stem.*", "norm.*")),
        gradtx.sgd(**options, mask=lambda name, p: p.ndim > 1),
    )
    optimizer = gradtx.as_optimizer(tx, model.named_parameters())
    assert_same_losses(train_with_agc(model, optimizer, lambda: None), theirs)


# Early stopping.


def train_with_patience(optimizer_class, restored):
    """Validation losses and rates; two bad epochs restore the best checkpoint at a lower rate."""
    model = perceptron()
    x, y = drawn(8, 3, seed=1), drawn(8, 1, seed=2)
    optimizer = optimizer_class(model.parameters(), lr=0.4)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=1)
    best, checkpoint, losses, rates = float("inf"), None, [], []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            validation = (model(x + 0.1) - y).square().mean().item()
        scheduler.step(validation)
        losses.append(validation)
        rates.append(optimizer.param_groups[0]["lr"])
        if validation < best:
            best = validation
            checkpoint = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        elif scheduler.num_bad_epochs == 0:  # the rate was just reduced
            model.load_state_dict(checkpoint["model"])
            optimizer.load_state_dict(restored(checkpoint["optimizer"]))
            optimizer.param_groups[0]["lr"] = rates[-1]
    return losses, rates


def test_early_stopping_on_a_plateau_that_restores_the_best_checkpoint_has_torchs_losses_and_rates():
    ours, our_rates = train_with_patience(gradtx.optim.Adam, lambda state_dict: state_dict)
    # torch's optimizer would go on inside the checkpoint, so that the second restart would not be from the best.
    theirs, their_rates = train_with_patience(torch.optim.Adam, copy.deepcopy)
    assert_same_losses(ours, theirs)
    assert our_rates == their_rates
    assert len(set(our_rates)) >= 3  # two reductions


# A Wasserstein GAN: two optimizers in turn, and a critic with clipped weights.


def train_gan(make_generator, make_critic, after_critic):
    generator, critic = perceptron(2, 3, seed=1), perceptron(3, 1, seed=2)
    real, losses = drawn(16, 3, seed=3) + 1.0, []
    of_generator, of_critic = make_generator(generator), make_critic(critic)
    for i in range(10):
        for k in range(3):
            noise = drawn(16, 2, seed=10 * i + k)
            of_critic.zero_grad()
            loss = critic(generator(noise).detach()).mean() - critic(real).mean()
            loss.backward()
            of_critic.step()
            after_critic(critic)
        of_generator.zero_grad()
        loss_of_generator = -critic(generator(drawn(16, 2, seed=10 * i + 9))).mean()
        loss_of_generator.backward()
        of_generator.step()
        losses += [loss.item(), loss_of_generator.item()]
    return losses


def clamp_weights(critic):
    with torch.no_grad():
        for p in critic.parameters():
            p.clamp_(-0.3, 0.3)


def test_a_gan_whose_critics_weights_are_clamped_in_the_chain_has_the_losses_of_torchs_two_optimizers():
    tx = gradtx.chain(gradtx.rmsprop(lr=1e-2), gradtx.map_after_step(lambda p: p.clamp(-0.3, 0.3)))
    ours = train_gan(
        lambda model: gradtx.optim.Adam(model.parameters(), lr=1e-2, betas=(0.5, 0.9)),
        lambda model: gradtx.as_optimizer(tx, model.parameters()),
        lambda critic: None,
    )
    theirs = train_gan(
        lambda model: torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.5, 0.9)),
        lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-2),
        clamp_weights,
    )
    assert_same_losses(ours, theirs)


# Distillation in mixed precision: overflows, unscaling before the clip, and a resumed scaler.


def distil(optimizer_class, resume_at=None):
    teacher, student = perceptron(seed=5).requires_grad_(False), perceptron(seed=6)
    optimizer = optimizer_class(student.parameters(), lr=2e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-2, total_steps=16)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    losses, scales = [], []
    for it in range(16):
        if it == resume_at:
            parts = student, optimizer, scheduler, scaler
            saved = through_a_file([part.state_dict() for part in parts])
            student = perceptron(seed=7)
            optimizer = optimizer_class(student.parameters(), lr=1.0)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-2, total_steps=16)
            scaler = torch.amp.GradScaler("cpu")
            for part, state in zip((student, optimizer, scheduler, scaler), saved, strict=True):
                part.load_state_dict(state)
        x = drawn(8, 3, seed=it % 4)
        optimizer.zero_grad()
        loss = functional.mse_loss(student(x), teacher(x))
        scaler.scale(loss * (float("inf") if it in (2, 9) else 1.0)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(student.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    return losses, scales


def test_distillation_under_a_grad_scaler_skips_clips_and_resumes_as_torch():
    theirs, their_scales = distil(torch.optim.AdamW)
    for resume_at in (None, 7):
        ours, our_scales = distil(gradtx.optim.AdamW, resume_at)
        assert_same_losses(ours, theirs)
        assert our_scales == their_scales
    assert min(their_scales) < 2.0**10 < max(their_scales)
