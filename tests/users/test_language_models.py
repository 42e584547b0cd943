"""Pretraining in the style of nanoGPT, LoRA, and accumulation, as ported by their users."""

import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradtx
from tests.clients.contests import Lazily
from tests.clients.test_accelerate import forget_accelerators
from tests.users.common import assert_same_losses, through_a_file

accelerate = Lazily("accelerate")

VOCABULARY, BLOCK, WIDTH = 13, 8, 16
STEPS, WARMUP, MAX_LR, MIN_LR = 24, 4, 3e-2, 3e-3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        q, k, v = self.c_attn(self.ln_1(x)).split(WIDTH, dim=-1)
        x = x + self.c_proj(functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.block, self.ln_f = Block(), nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.wte.weight = self.lm_head.weight  # tied
        self.double()

    def forward(self, rows):
        x = self.wte(rows[:, :-1]) + self.wpe.weight
        logits = self.lm_head(self.ln_f(self.block(x)))
        return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def batch(it):
    return torch.randint(VOCABULARY, (4, BLOCK + 1), generator=torch.Generator().manual_seed(it % 3))


def get_lr(it):
    """NanoGPT's."""
    if it < WARMUP:
        return MAX_LR * (it + 1) / (WARMUP + 1)
    ratio = (it - WARMUP) / (STEPS - WARMUP)
    return MIN_LR + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (MAX_LR - MIN_LR)


def configure_optimizers(model, optimizer_class):
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decayed = [p for p in params.values() if p.dim() >= 2]
    others = [p for p in params.values() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return optimizer_class(groups, lr=MAX_LR, betas=(0.9, 0.95))


def pretrain(optimizer_class, checkpoint=None, until=STEPS):
    """The losses from the checkpoint on, and the checkpoint at the end."""
    model = GPT()
    optimizer = configure_optimizers(model, optimizer_class)
    start, losses = 0, []
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        start = checkpoint["iter_num"]
    for it in range(start, until):
        for group in optimizer.param_groups:
            group["lr"] = get_lr(it)
        loss = model(batch(it))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": until}


def test_a_nanogpt_run_that_stops_and_resumes_has_the_losses_of_torchs_uninterrupted_run():
    theirs, _ = pretrain(torch.optim.AdamW)
    first, checkpoint = pretrain(gradtx.optim.AdamW, until=STEPS // 2)
    second, _ = pretrain(gradtx.optim.AdamW, through_a_file(checkpoint))
    assert_same_losses(first + second, theirs)


def test_a_nanogpt_run_with_clip_decay_mask_and_schedule_in_the_chain_has_the_same_losses():
    def rate(step):
        cosine = MIN_LR + 0.5 * (1.0 + torch.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) * (MAX_LR - MIN_LR)
        return torch.where(step < WARMUP, MAX_LR * (step + 1) / (WARMUP + 1), cosine)

    adamw = gradtx.adamw(gradtx.Schedule(rate), (0.9, 0.95), weight_decay=0.1, mask=lambda name, p: p.ndim > 1)
    model = GPT()
    optimizer = gradtx.as_optimizer(gradtx.chain(gradtx.clip_by_global_norm(1.0), adamw), model.named_parameters())
    losses = []
    for it in range(STEPS):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(get_lr(it), rel=1e-14)
        optimizer.zero_grad()
        loss = model(batch(it))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert_same_losses(losses, pretrain(torch.optim.AdamW)[0])


# LoRA.


class LoRA(nn.Module):
    """A frozen layer, and a correction of low rank that trains."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, layer.in_features, dtype=torch.float64) / rank)
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank, dtype=torch.float64))

    def forward(self, x):
        return self.layer(x) + x @ self.a.T @ self.b.T


def with_adapters():
    model = GPT().requires_grad_(False)
    model.block.c_attn, model.block.c_proj = LoRA(model.block.c_attn), LoRA(model.block.c_proj)
    return model


def state_bytes(optimizer):
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.nbytes for tensor in tensors)


def file_bytes(checkpoint):
    file = io.BytesIO()
    torch.save(checkpoint, file)
    return file.tell()


def fine_tune(optimizer_class):
    """All parameters go to the optimizer, as most scripts have it."""
    model = with_adapters()
    optimizer = optimizer_class(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=STEPS)
    losses = []
    for it in range(STEPS):
        loss = model(batch(it))
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, optimizer, losses


def test_lora_has_the_losses_the_memory_and_the_checkpoint_of_torch_and_leaves_the_base_alone():
    model, optimizer, ours = fine_tune(gradtx.optim.AdamW)
    other, reference, theirs = fine_tune(torch.optim.AdamW)
    assert_same_losses(ours, theirs)
    assert state_bytes(optimizer) == state_bytes(reference)
    assert optimizer.state_dict()["state"].keys() == reference.state_dict()["state"].keys()
    assert file_bytes(optimizer.state_dict()) < 1.02 * file_bytes(reference.state_dict())
    before = dict(with_adapters().named_parameters())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.endswith((".a", ".b"))}
    other.load_state_dict(model.state_dict())
    reference.load_state_dict(optimizer.state_dict())  # torch resumes it


def test_accumulation_in_the_chain_equals_accelerates():
    """The loop calls `step` at every batch, and the chain clips and steps at every second one."""

    def losses_of(every, tx):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=every)
        model = GPT()
        optimizer = torch.optim.AdamW(model.parameters(), lr=MAX_LR)
        if tx is not None:
            optimizer = gradtx.as_optimizer(tx, model.named_parameters())
        model, optimizer = accelerator.prepare(model, optimizer)
        losses = []
        for it in range(STEPS):
            with accelerator.accumulate(model):
                loss = model(batch(it))
                accelerator.backward(loss)
                if accelerator.sync_gradients and tx is None:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        forget_accelerators()
        return losses

    inner = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=MAX_LR))
    assert_same_losses(losses_of(1, gradtx.accumulate(inner, every=2)), losses_of(2, None))
