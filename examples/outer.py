"""Train a small model in several processes: with gradients averaged at every step, and with outer optimizers.

Data: the source files of Python's standard library, of which the model predicts the next character from the last eight;
every tenth file is held out. Each process draws batches of its own. AdamW and Muon run under DistributedDataParallel,
which averages gradients. DiLoCo and MuLoCo send no gradients: each process trains alone, and every 30 steps the
processes average the differences to common weights. Streaming DiLoCo sends one layer after the other. SparseLoCo sends
the largest entries of each chunk of 4096.
Run: `torchrun --nproc-per-node 2 examples/outer.py`. Prints a table and writes out/outer.png.
"""

from __future__ import annotations

import argparse
import os
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import gradtx

CHARACTERS, CONTEXT, WIDTH, BATCH = 128, 8, 128, 64
INTERVAL = 30  # steps between two synchronizations of a weight
EVALUATE = 30


def network() -> nn.Sequential:
    """Return the model, with the same weights in all processes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(CHARACTERS, 16),
        nn.Flatten(),
        nn.Linear(16 * CONTEXT, WIDTH),
        nn.GELU(),
        nn.Linear(WIDTH, WIDTH),
        nn.GELU(),
        nn.Linear(WIDTH, CHARACTERS),
    )


def library() -> tuple[Tensor, Tensor]:
    """Return the characters of the standard library's modules, for training and held out."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts: tuple[list[bytes], list[bytes]] = [], []
    for i, file in enumerate(files):
        text = file.read_text(encoding="utf-8", errors="ignore")
        texts[i % 10 == 9].append(text.encode("ascii", "ignore"))
    train, held_out = (
        torch.frombuffer(bytearray(b"".join(of)), dtype=torch.uint8) for of in texts
    )
    return train, held_out


def batches(text: Tensor, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random contexts and the character after each."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - CONTEXT, (size, 1), generator=generator)
        windows = text[starts + torch.arange(CONTEXT + 1)].long()
        yield windows[:, :-1], windows[:, -1]


def transformations() -> dict[str, gradtx.GradientTransformation]:
    """Return the optimizers by name."""
    group = distributed.group.WORLD
    # The best of three rates each, a factor of two or more apart; the same one with and without an outer optimizer.
    adamw = gradtx.adamw(lr=5e-3)
    muon = gradtx.partition(
        {"muon": gradtx.muon(lr=5e-3, ns_dtype=None), "adamw": adamw},
        {"muon": "[246].weight", "adamw": "*"},
    )
    nesterov = gradtx.sgd(lr=0.7, momentum=0.5, nesterov=True)
    plain = gradtx.sgd(lr=1.0)  # errors that accumulate take the place of a momentum
    layers = (("0.*", "2.*"), "4.*", "6.*")
    return {
        "AdamW, DDP": adamw,
        "DiLoCo": gradtx.outer(adamw, nesterov, INTERVAL, process_group=group),
        "Streaming DiLoCo": gradtx.outer(
            adamw, nesterov, INTERVAL, fragments=layers, process_group=group
        ),
        **{
            f"SparseLoCo, k={k}": gradtx.outer(
                adamw, plain, INTERVAL, process_group=group, compress=gradtx.TopK(k)
            )
            for k in (512, 64)
        },
        "Muon, DDP": muon,
        "MuLoCo": gradtx.outer(muon, nesterov, INTERVAL, process_group=group),
    }


class Bytes:
    """Counts the bytes that a process gives to `all_reduce` and `all_gather`."""

    def __init__(self) -> None:
        self.total = self.largest = 0
        self._all_reduce = distributed.all_reduce
        self._all_gather = distributed.all_gather

    def add(self, tensor: Tensor) -> None:
        self.total += tensor.nbytes
        self.largest = max(self.largest, tensor.nbytes)

    def all_reduce(self, tensor: Tensor, *args: Any, **options: Any) -> Any:
        self.add(tensor)
        return self._all_reduce(tensor, *args, **options)

    def all_gather(self, received: list[Tensor], tensor: Tensor, **options: Any) -> Any:
        self.add(tensor)
        return self._all_gather(received, tensor, **options)

    def counting(self) -> Any:
        """Return a context in which they are counted."""
        return mock.patch.multiple(
            distributed, all_reduce=self.all_reduce, all_gather=self.all_gather
        )


class Run:
    """A training run and its measurements."""

    def __init__(self, name: str, tx: gradtx.GradientTransformation):
        self.name = name
        self.bytes = Bytes()
        self.model: nn.Module = network()
        if "DDP" in name:
            self.model = DistributedDataParallel(self.model)
            # Averages by the function of Python, whose bytes are counted.
            self.model.register_comm_hook(None, allreduce_hook)
        self.optimizer = gradtx.as_optimizer(tx, self.model.named_parameters())
        self.steps: list[int] = []
        self.held_out: list[float] = []
        self.sent: list[int] = []

    def train(self, text: Tensor, unseen: Any, steps: int) -> None:
        own = batches(text, BATCH, seed=1 + distributed.get_rank())
        hidden = None if distributed.get_rank() == 0 else True
        with self.bytes.counting():
            for step in tqdm(range(1, steps + 1), leave=False, disable=hidden):
                contexts, characters = next(own)
                self.optimizer.zero_grad()
                logits = self.model(contexts)
                nn.functional.cross_entropy(logits, characters).backward()
                self.optimizer.step()
                if step % EVALUATE == 0 or step == steps:
                    self.evaluate(step, *unseen)

    def evaluate(self, step: int, contexts: Tensor, characters: Tensor) -> None:
        """Measure the loss with the common weights."""
        with torch.no_grad(), self.optimizer.eval_params():
            loss = nn.functional.cross_entropy(self.model(contexts), characters)
        self.steps.append(step)
        self.held_out.append(loss.item())
        self.sent.append(self.bytes.total)


def plot(runs: list[Run], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for run in runs:
        left.plot(run.steps, run.held_out, label=run.name)
        right.plot(
            [sent / 1e6 for sent in run.sent], run.held_out, ".-", label=run.name
        )
    left.set(title="Loss on held-out files", xlabel="step")
    right.set(title="By communication", xlabel="sent by a process (MB)", xscale="log")
    for axes in (left, right):
        axes.set(ylabel="loss (nats per character)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def report(runs: list[Run], steps: int) -> str:
    """Print the table, and return a line about its result."""
    print(f"\n{'':18}{'held-out loss':>14}{'bytes a step':>14}{'largest message':>17}")
    for run in runs:
        mean = run.bytes.total / steps
        print(
            f"{run.name:18}{run.held_out[-1]:14.3f}{mean:14,.0f}{run.bytes.largest:17,}"
        )
    figures = ", ".join(f"{run.name} {run.held_out[-1]:.3f}" for run in runs)
    return f"held-out loss after {steps} steps, nats per character: {figures}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--plot", type=Path, default=Path("out/outer.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        alone = {"init_method": f"file://{folder}/store", "rank": 0, "world_size": 1}
        # torchrun sets these variables; without it, there is one process.
        distributed.init_process_group(
            "gloo", **({} if "RANK" in os.environ else alone)
        )
        try:
            text, rest = library()
            unseen = next(batches(rest, 4096, seed=0))
            runs = [Run(name, tx) for name, tx in transformations().items()]
            for run in runs:
                run.train(text, unseen, options.steps)
            if distributed.get_rank() == 0:
                processes = distributed.get_world_size()
                print(f"{processes} processes, {BATCH} characters a step in each")
                line = report(runs, options.steps)
                plot(runs, options.plot)
                print(f"\nplot: {options.plot}\n{line}")
        finally:
            distributed.destroy_process_group()


if __name__ == "__main__":
    main()
