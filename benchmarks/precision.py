"""Train the byte transformer of examples/muon_chars.py with coded state and with rounded weights, beside float32.

Every run has the same batches and, for a seed, the same first weights; its loss is that of the last steps over that of
float32 with the same seed. Weights in bfloat16 run their model in float32, on the rounded weights, so that only the
optimizer differs.

    python benchmarks/precision.py [--steps 1000] [--seeds 3] [--only AdamW Lion] [--peers]

Writes docs/precision.md and docs/precision.png. `--peers` adds torchao's coded optimizers, which must be installed.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import machine

sys.path.append(str(Path(__file__).parent.parent / "examples"))

import matplotlib.pyplot as plt
import torch
from muon_chars import BATCH, Transformer, library, windows_of  # pyright: ignore[reportMissingImports]
from torch import Tensor
from tqdm import tqdm

import gradtx
from gradtx import GradientTransformation, chain, compensate_rounding, round_stochastically, with_state_dtype

DOCS = Path(__file__).parent.parent / "docs"
LAST = 50  # steps whose losses are averaged
EVERY = 10  # steps between the points of the plot
CODES = ["bfloat16+8", "bfloat16:stochastic", "float8", "int8", "int4"]
FLOAT32 = "float32"


def falling(lr: float, steps: int) -> gradtx.Schedule:
    return gradtx.warmup_cosine_schedule(steps, max_lr=lr, warmup_steps=max(steps // 10, 1))


def muon_and_adamw(steps: int) -> GradientTransformation:
    return gradtx.muon(falling(5e-2, steps), ns_dtype=None, fallback=gradtx.adamw(falling(5e-3, steps)))


ALGORITHMS: dict[str, Callable[[int], GradientTransformation]] = {
    "AdamW": lambda steps: gradtx.adamw(falling(5e-3, steps), betas=(0.9, 0.95)),
    "Lion": lambda steps: gradtx.lion(falling(1e-3, steps)),
    "AdamP": lambda steps: gradtx.adamp(falling(5e-3, steps)),
    "LAMB": lambda steps: gradtx.lamb(falling(2e-2, steps)),
    "Muon + AdamW": muon_and_adamw,
    "SOAP": lambda steps: gradtx.soap(falling(5e-3, steps)),
}
ROUNDINGS: dict[str, GradientTransformation] = {
    "to the nearest": chain(),
    "round_stochastically()": round_stochastically(),
    "compensate_rounding(16)": compensate_rounding(bits=16),
    "compensate_rounding(8)": compensate_rounding(bits=8),
}
PEERS = {"torchao int8": "AdamW8bit", "torchao int4": "AdamW4bit", "torchao float8": "AdamWFp8"}


@dataclass
class Result:
    """The losses of the runs of one mode, one for each seed.

    Attributes:
        losses: The training losses of each run.
        state: Bytes of state for each entry of the weights.
        seconds: Seconds of each run's steps of the optimizer.
    """

    losses: list[list[float]] = field(default_factory=list[list[float]])
    state: float = 0.0
    seconds: list[float] = field(default_factory=list[float])

    def last(self) -> list[float]:
        return [statistics.fmean(of_run[-LAST:]) for of_run in self.losses]

    def over(self, reference: Result) -> list[float]:
        """The losses at the end over those of a reference with the same seeds."""
        return [own / other for own, other in zip(self.last(), reference.last(), strict=True)]


class Narrow:
    """Weights in bfloat16 of a model that computes in float32."""

    def __init__(self, model: Transformer):
        self._wide = dict(model.named_parameters())
        self.params = {name: param.detach().bfloat16().requires_grad_() for name, param in self._wide.items()}
        self.show()

    @torch.no_grad()
    def show(self) -> None:
        """Put the weights into the model."""
        for name, param in self._wide.items():
            param.copy_(self.params[name])

    def take(self) -> None:
        """Take the gradients of the model."""
        for name, param in self._wide.items():
            self.params[name].grad = None if param.grad is None else param.grad.bfloat16()


def train(
    make: Callable[[Any], torch.optim.Optimizer], seed: int, steps: int, text: Tensor, narrow: bool, result: Result
) -> None:
    """One run."""
    torch.manual_seed(seed)
    model = Transformer()
    weights = Narrow(model) if narrow else None
    optimizer = make(list(weights.params.items() if weights else model.named_parameters()))
    batches = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    spent = 0.0
    for _ in tqdm(range(steps), desc="steps", leave=False, disable=None):
        model.zero_grad()
        loss = model.loss(windows_of(text, BATCH, batches))
        loss.backward()
        if weights is not None:
            weights.take()
        start = time.perf_counter()
        optimizer.step()
        spent += time.perf_counter() - start
        if weights is not None:
            weights.show()
        losses.append(loss.item())
    result.losses.append(losses)
    result.seconds.append(spent)
    result.state = bytes_of(optimizer) / sum(param.numel() for param in model.parameters())


def bytes_of(optimizer: torch.optim.Optimizer) -> int:
    """The bytes of an optimizer's state; coded tensors of peers are added up by their parts."""
    sizes: dict[int, int] = {}
    for state in optimizer.state.values():
        for value in state.values():
            parts = [value]
            if hasattr(value, "__tensor_flatten__"):
                names, _ = value.__tensor_flatten__()
                parts = [getattr(value, name) for name in names]
            for tensor in parts:
                if isinstance(tensor, Tensor) and tensor.numel():
                    sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(sizes.values())


def adapter(tx: GradientTransformation) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda params: gradtx.as_optimizer(tx, params)


def peers(steps: int) -> dict[str, Callable[[Any], torch.optim.Optimizer]]:
    """torchao's optimizers, with AdamW's numbers at a constant rate."""
    try:
        low_bit = importlib.import_module("torchao.optim")
    except ImportError:
        sys.exit("--peers needs torchao: pip install torchao")

    def make(name: str) -> Callable[[Any], torch.optim.Optimizer]:
        return lambda params: getattr(low_bit, name)([param for _, param in params], lr=2e-3, betas=(0.9, 0.95))

    modes = {title: make(name) for title, name in PEERS.items()}
    for code in (None, "int8", "int4", "float8"):
        tx = gradtx.adamw(2e-3, betas=(0.9, 0.95), weight_decay=0.01, state_dtype=code)
        modes[f"gradtx {code or FLOAT32}"] = adapter(tx)
    return modes


def modes_of(name: str, steps: int) -> dict[str, tuple[Callable[[Any], torch.optim.Optimizer], bool]]:
    """The ways to train with an algorithm, and whether weights are in bfloat16."""
    tx = ALGORITHMS[name](steps)
    modes: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], bool]] = {FLOAT32: (adapter(tx), False)}
    for code in CODES:
        modes[f'state "{code}"'] = adapter(with_state_dtype(tx, code)), False
    for title, link in ROUNDINGS.items():
        modes[f"bfloat16 weights, {title}"] = adapter(chain(with_state_dtype(tx, torch.float32), link)), True
    return modes


def cell(result: Result, reference: Result) -> str:
    ratios = [100 * (ratio - 1) for ratio in result.over(reference)]
    if len(ratios) == 1:
        return f"{ratios[0]:+.2f}%"
    return f"{statistics.fmean(ratios):+.2f}% ({min(ratios):+.2f} to {max(ratios):+.2f})"


def page(results: dict[str, dict[str, Result]], steps: int, seeds: int) -> str:
    first = next(iter(results.values()))
    lines = [
        "# Accuracy of coded state and rounded weights",
        "",
        f"The byte transformer of [examples/muon_chars.py](../examples/muon_chars.py), {steps} steps, {seeds} "
        f"seed{'s' if seeds > 1 else ''}: training loss of the last {LAST} steps against float32 with the same seed, "
        "the mean and the range over seeds. Leaves below 4096 entries are not coded, as always. The first row is the "
        "loss of float32 itself.",
        "",
        f"Written by `benchmarks/precision.py` on {machine()}.",
        "",
        f"| mode | {' | '.join(results)} |",
        "|---|" + "---:|" * len(results),
    ]
    for mode in first:
        cells = [mode]
        for modes in results.values():
            own, reference = modes[mode], next(iter(modes.values()))
            cells.append(f"{statistics.fmean(own.last()):.3f}" if own is reference else cell(own, reference))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "![Training loss of AdamW in each mode](precision.png)", ""]
    return "\n".join(lines)


def plot(modes: dict[str, Result], title: str) -> None:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for mode, result in modes.items():
        losses = torch.tensor(result.losses).mean(0)
        smooth = losses[: len(losses) // EVERY * EVERY].unflatten(0, (-1, EVERY)).mean(1)
        axes.plot(range(EVERY, EVERY * len(smooth) + 1, EVERY), smooth, label=mode, linewidth=1)
    axes.set(xlabel="step", ylabel="training loss, nats a character", title=title)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(DOCS / "precision.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--modes", nargs="+", default=[], help="only modes that contain one of these words")
    parser.add_argument("--peers", action="store_true", help="compare with torchao's optimizers instead")
    options = parser.parse_args()
    text, _ = library()
    plans: dict[str, dict[str, Any]] = {}
    if options.peers:
        plans["AdamW"] = {title: (make, False) for title, make in peers(options.steps).items()}
    for name in () if options.peers else options.only:
        modes = modes_of(name, options.steps)
        chosen = [mode for mode in modes if mode == FLOAT32 or any(word in mode for word in options.modes)]
        plans[name] = {mode: modes[mode] for mode in chosen} if options.modes else modes
    results = {name: {mode: Result() for mode in modes} for name, modes in plans.items()}
    runs = [(name, mode, seed) for seed in range(options.seeds) for name, modes in plans.items() for mode in modes]
    for name, mode, seed in tqdm(runs, desc="runs", disable=None):
        make, narrow = plans[name][mode]
        train(make, seed, options.steps, text, narrow, results[name][mode])
    for name, modes in results.items():
        for mode, result in modes.items():
            loss, seconds = statistics.fmean(result.last()), statistics.fmean(result.seconds)
            milliseconds = 1000 * seconds / options.steps
            print(
                f"{name:14}{mode:44} loss {loss:.4f}, {result.state:5.2f} bytes an entry, {milliseconds:6.2f} ms a step"
            )
    if options.peers:
        return
    (DOCS / "precision.md").write_text(page(results, options.steps, options.seeds), encoding="utf-8")
    plot(next(iter(results.values())), next(iter(results)))


if __name__ == "__main__":
    main()
