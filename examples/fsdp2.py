"""Train with Muon on shards (FSDP2), save, and resume on another number of processes: the same losses.

Data and model are those of `outer.py`: the next character in Python's standard library. Every matrix is divided among
the processes, one of which orthogonalizes it; each process computes the gradient of its part of a batch. Halfway, all
processes save model and optimizer by torch.distributed.checkpoint. The second run resumes on `--resume-on` processes.
Run: `torchrun --nproc-per-node 2 examples/fsdp2.py`. Prints both final losses and writes out/fsdp2.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from outer import batches, library, network
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tqdm import tqdm

import gradtx

BATCH = 96  # of all processes together, so that their number changes nothing


class Run:
    """A model on shards and its optimizer, the same in every process."""

    def __init__(self) -> None:
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        self.model = network()
        for layer in self.model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        muon = gradtx.muon(lr=0.01, ns_dtype=None)
        tx = gradtx.partition(
            {"muon": muon, "adamw": gradtx.adamw(lr=5e-3)},
            {"muon": "[24].weight", "adamw": "*"},
        )
        self.optimizer = gradtx.as_optimizer(tx, self.model.named_parameters())

    def train(self, text: Any, start: int, stop: int) -> list[float]:
        """Return the loss of each step, the mean over all processes."""
        rank, processes = distributed.get_rank(), distributed.get_world_size()
        common = batches(text, BATCH, seed=1)
        for _ in range(start):
            next(common)
        losses = []
        for _ in tqdm(range(start, stop), leave=False, disable=rank > 0 or None):
            contexts, characters = (part[rank::processes] for part in next(common))
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(contexts), characters)
            loss.backward()
            self.optimizer.step()
            mean = loss.detach() / processes
            distributed.all_reduce(mean)
            losses.append(mean.item())
        return losses

    def save(self, folder: Path) -> None:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        checkpoint.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        self.optimizer.zero_grad()
        model, optimizer = get_state_dict(self.model, self.optimizer)
        parts = {"model": model, "optimizer": optimizer}
        checkpoint.load(parts, checkpoint_id=folder)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=parts["model"],
            optim_state_dict=parts["optimizer"],
        )


def resumed(options: argparse.Namespace, folder: Path) -> list[float]:
    """Return the losses of a run that other processes resume."""
    environment = {name: os.environ[name] for name in os.environ if name in KEPT}
    environment["OMP_NUM_THREADS"] = "1"  # as torchrun would set it, with a warning
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(options.resume_on), __file__),
        *("--steps", str(options.steps), "--resume", str(folder)),
    ]
    subprocess.run(command, check=True, env=environment)
    return json.loads((folder / "losses.json").read_text())


# Of the environment, which torchrun fills with ranks and addresses of its own.
KEPT = ("PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "GLOO_SOCKET_IFNAME")


def plot(first: list[float], second: list[float], options: Any) -> None:
    """Draw the losses of both runs, and how they differ."""
    half = len(first) - len(second)
    steps = range(1, len(first) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    processes = distributed.get_world_size()
    left.plot(steps, first, label=f"{processes} processes")
    after = f"resumed on {options.resume_on}"
    left.plot(steps[half:], second, "--", label=after)
    left.axvline(half, color="gray", linewidth=0.8, label="saved")
    left.set(title="Loss", xlabel="step", ylabel="loss (nats per character)")
    differences = [abs(a - b) for a, b in zip(first[half:], second, strict=True)]
    right.plot(steps[half:], differences, ".")
    right.set(title="Difference of the two", xlabel="step", ylabel="nats per character")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.plot, dpi=110)


def compare(run: Run, text: Any, options: argparse.Namespace) -> None:
    """Train to the end, resume from half of it on other processes, and show both."""
    half = options.steps // 2
    first = run.train(text, 0, half)
    with tempfile.TemporaryDirectory() as name:
        names = [name]
        distributed.broadcast_object_list(names)  # the folder of the first process
        folder = Path(names[0])
        run.save(folder)
        first += run.train(text, half, options.steps)
        if distributed.get_rank() == 0:
            second = resumed(options, folder)
            plot(first, second, options)
            pairs = zip(first[half:], second, strict=True)
            largest = max(abs(a - b) for a, b in pairs)
            print(f"\nplot: {options.plot}")
            print(
                f"loss after {options.steps} steps: {first[-1]:.4f} on "
                f"{distributed.get_world_size()} processes, {second[-1]:.4f} resumed on "
                f"{options.resume_on}; they differ by at most {largest:.0e}"
            )
        distributed.barrier()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--resume-on", type=int, default=3)
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plot", type=Path, default=Path("out/fsdp2.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    try:
        text, _ = library()
        run = Run()
        if options.resume is None:
            compare(run, text, options)
            return
        run.load(options.resume)
        losses = run.train(text, options.steps // 2, options.steps)
        if distributed.get_rank() == 0:
            (options.resume / "losses.json").write_text(json.dumps(losses))
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
