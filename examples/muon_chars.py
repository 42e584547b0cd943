"""Train a small character-level transformer with Muon for its matrices and AdamW for the rest, and with AdamW alone.

Data: the source files of Python's standard library; every tenth file is held out. Each optimizer runs at three learning
rates, a factor of 2.5 apart, on the same batches, and is evaluated by its best run on the held-out files.
Run: `python examples/muon_chars.py`. Prints a table and writes out/muon_chars.png.
"""

from __future__ import annotations

import argparse
import platform
import sysconfig
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from tqdm import tqdm

import gradtx

SEED, CHARACTERS = 0, 128  # ASCII
CONTEXT, WIDTH, HEADS, BLOCKS, BATCH = 64, 64, 4, 2, 32
RATES = {"AdamW alone": (2e-3, 5e-3, 1.25e-2), "Muon + AdamW": (2e-2, 5e-2, 1.25e-1)}
# For the parameters that Muon does not train: the middle rate of AdamW alone.
ADAMW_RATE = 5e-3
EVERY = 20


class Block(nn.Module):
    """Causal attention and a perceptron, each with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        # Three matrices instead of one with three times the rows, so that Muon orthogonalizes each separately.
        self.query, self.key, self.value, self.out = (
            nn.Linear(WIDTH, WIDTH) for _ in range(4)
        )
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        query, key, value = (
            each(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Predicts the next character at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.characters, self.places = (
            nn.Embedding(CHARACTERS, WIDTH),
            nn.Embedding(CONTEXT, WIDTH),
        )
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHARACTERS)
        for embedding in (self.characters, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[1])
        return self.head(
            self.norm(self.blocks(self.characters(text) + self.places(places)))
        )

    def loss(self, windows: Tensor) -> Tensor:
        """Return the loss in nats per character. Each window has one character more than the context."""
        logits = self(windows[:, :-1])
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), windows[:, 1:].flatten()
        )


def library() -> tuple[Tensor, Tensor]:
    """Return the characters of the standard library's modules, for training and held out."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [
        file.read_text(encoding="utf-8", errors="ignore").encode("ascii", "ignore")
        for file in files
    ]
    held_out = b"".join(texts[9::10])
    train = b"".join(text for i, text in enumerate(texts) if i % 10 != 9)
    as_tensor = [
        torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        for text in (train, held_out)
    ]
    return as_tensor[0], as_tensor[1]


def windows_of(text: Tensor, count: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - CONTEXT, (count, 1), generator=generator)
    return text[starts + torch.arange(CONTEXT + 1)]


def transformation(name: str, rate: float, steps: int) -> gradtx.GradientTransformation:
    def falling(lr: float) -> gradtx.Schedule:
        return gradtx.warmup_cosine_schedule(steps, max_lr=lr, warmup_steps=steps // 10)

    if name == "AdamW alone":
        return gradtx.adamw(falling(rate), betas=(0.9, 0.95), weight_decay=0.1)
    return gradtx.partition(
        {
            # The iteration's default, bfloat16, is for GPUs; CPUs are faster in float32.
            "muon": gradtx.muon(falling(rate), weight_decay=0.1, ns_dtype=None),
            "adamw": gradtx.adamw(
                falling(ADAMW_RATE), betas=(0.9, 0.95), weight_decay=0.1
            ),
        },
        {
            "muon": lambda name, param: name.startswith("blocks.") and param.ndim == 2,
            "adamw": "*",  # embeddings, norms, biases and the head
        },
    )


class Run:
    """A training run and its measurements."""

    def __init__(self, name: str, rate: float, steps: int):
        self.name, self.rate = name, rate
        torch.manual_seed(SEED)
        self.model = Transformer()
        self.optimizer = gradtx.as_optimizer(
            transformation(name, rate, steps), self.model.named_parameters()
        )
        self.losses: list[float] = []
        self.held_out: list[float] = []
        self.steps: list[int] = []
        self.seconds: list[float] = []  # training time so far, on one core
        self.spent = 0.0

    def step(self, windows: Tensor) -> None:
        start = time.process_time()
        self.optimizer.zero_grad()
        loss = self.model.loss(windows)
        loss.backward()
        self.optimizer.step()
        self.spent += time.process_time() - start
        self.losses.append(loss.item())

    def evaluate(self, windows: Tensor) -> None:
        with torch.no_grad():
            self.held_out.append(self.model.loss(windows).item())
        self.steps.append(len(self.losses))
        self.seconds.append(self.spent)


def train(runs: list[Run], text: Tensor, unseen: Tensor, steps: int) -> None:
    """Train all runs in turn, step by step, on the same batches."""
    batches = torch.Generator().manual_seed(SEED)
    with tqdm(range(1, steps + 1), leave=False, disable=None) as bar:
        for step in bar:
            windows = windows_of(text, BATCH, batches)
            for run in runs:
                run.step(windows)
            if step % EVERY == 0 or step == steps:
                for run in runs:
                    run.evaluate(unseen)
                bar.set_postfix(
                    held_out=" ".join(f"{run.held_out[-1]:.2f}" for run in runs)
                )


def plot(runs: list[Run], best: dict[str, Run], path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(15, 4.5), layout="constrained"
    )
    for run in runs:
        chosen = best[run.name] is run
        i, j = list(RATES).index(run.name), RATES[run.name].index(run.rate)
        style: dict[str, Any] = {
            "color": f"C{i}",
            "linestyle": ("--", "-", ":")[j],
            "linewidth": 2.2 if chosen else 1.0,
            "label": f"{run.name}, rate {run.rate:g}" + (" (best)" if chosen else ""),
        }
        window = (
            torch.tensor(run.losses).unfold(0, min(EVERY, len(run.losses)), 1).mean(-1)
        )
        left.plot(
            range(len(run.losses) - len(window) + 1, len(run.losses) + 1),
            window,
            **style,
        )
        middle.plot(run.steps, run.held_out, **style)
        if chosen:
            right.plot(run.seconds, run.held_out, **style)
    left.set(title=f"Training loss (mean of {EVERY} steps)", xlabel="step")
    middle.set(title="Loss on held-out files", xlabel="step")
    right.set(
        title="The best of each, by time", xlabel="processor time of training (seconds)"
    )
    top = max(run.losses[len(run.losses) // 10] for run in runs)
    bottom = min(min(run.losses) for run in runs)
    for axes in (left, middle, right):
        axes.set(ylabel="loss (nats per character)", ylim=(0.95 * bottom, 1.05 * top))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--plot", type=Path, default=Path("out/muon_chars.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # more threads barely help for tensors this small
    text, rest = library()
    unseen = windows_of(rest, 4 * BATCH, torch.Generator().manual_seed(SEED))
    print(
        f"{len(text):,} characters to train with, {len(rest):,} held out, of Python {platform.python_version()}"
    )
    runs = [
        Run(name, rate, options.steps)
        for name, rates in RATES.items()
        for rate in rates
    ]
    train(runs, text, unseen, options.steps)
    print(
        f"\n{'':15}{'rate':>8}{'training loss':>15}{'held-out loss':>15}{'ms a step':>11}"
    )
    for run in runs:
        loss = sum(run.losses[-EVERY:]) / len(run.losses[-EVERY:])
        per_step = 1000 * run.seconds[-1] / len(run.losses)
        print(
            f"{run.name:15}{run.rate:8g}{loss:15.3f}{run.held_out[-1]:15.3f}{per_step:11.1f}"
        )
    best = {
        name: min(
            (run for run in runs if run.name == name), key=lambda run: run.held_out[-1]
        )
        for name in RATES
    }
    plot(runs, best, options.plot)
    print(f"\nplot: {options.plot}")
    figures = ", ".join(
        f"{name} {run.held_out[-1]:.3f} (rate {run.rate:g})"
        for name, run in best.items()
    )
    print(f"held-out loss after {options.steps} steps, nats per character: {figures}")


if __name__ == "__main__":
    main()
