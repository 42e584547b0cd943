"""Draw docs/watch.png, the plot of a watch of a small transformer: `python docs/draw_watch.py`."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

import gradtx

PATH = Path(__file__).parent / "watch.png"
STEPS, SYMBOLS, LENGTH, WIDTH = 300, 20, 16, 32
COLORS = 256  # fewer would merge those of lines


class Transformer(nn.Module):
    """Predicts the symbol of three places before."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, 4, 64, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(3)
        )
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(symbols) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def watched_run() -> gradtx.Seen:
    """Train with Adam, a clip and a warm-up, and return what is seen."""
    torch.manual_seed(0)
    model = Transformer()
    schedule = gradtx.warmup_cosine_schedule(STEPS, 3e-3, warmup_steps=30)
    tx = gradtx.chain(
        gradtx.clip_by_global_norm(1.0), gradtx.adamw(schedule, weight_decay=0.1)
    )
    optimizer = gradtx.as_optimizer(tx, model.named_parameters())
    with gradtx.watch(optimizer, every=10) as seen:
        for _ in range(STEPS):
            symbols = torch.randint(SYMBOLS, (32, LENGTH))
            earlier = symbols.roll(3, dims=1)
            optimizer.zero_grad()
            loss = cross_entropy(model(symbols).flatten(0, 1), earlier.flatten())
            loss.backward()
            optimizer.step()
            seen.note(loss)
    return seen


if __name__ == "__main__":
    picture = io.BytesIO()
    watched_run().plot().savefig(picture, dpi=70)
    Image.open(picture).convert("RGB").quantize(
        COLORS, method=Image.Quantize.MAXCOVERAGE
    ).save(PATH, optimize=True)
