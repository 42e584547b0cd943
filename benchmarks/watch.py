"""Time training with `gradtx.watch` against training without, on the byte transformer of examples/muon_chars.py.

Both runs take 50 steps in turn, of which one is measured, so that other work affects both. A table gives the median
over rounds of the ratio of the two times, for a step of the optimizer alone and for a whole step of training.

    python benchmarks/watch.py [--every 50] [--rounds 12]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import machine, ratio

sys.path.append(str(Path(__file__).parent.parent / "examples"))

import torch
from muon_chars import BATCH, Transformer, library, windows_of  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

import gradtx

CHAINS: dict[str, Callable[[], gradtx.GradientTransformation]] = {
    "clip and AdamW": lambda: gradtx.chain(
        gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=2e-3)
    ),
    "Lion": lambda: gradtx.lion(lr=3e-4),
    "Muon + AdamW": lambda: gradtx.muon(
        lr=2e-2, ns_dtype=None, fallback=gradtx.adamw(lr=2e-3)
    ),
}


class Run:
    """A run of training, and the seconds that its steps have taken."""

    def __init__(self, tx: gradtx.GradientTransformation, compile: bool):
        torch.manual_seed(0)
        self.model = Transformer()
        self.optimizer = gradtx.as_optimizer(
            tx, self.model.named_parameters(), compile=compile
        )

    def train(self, windows: torch.Tensor) -> tuple[float, float]:
        """Train on some batches; return the seconds of the optimizer, and of all."""
        in_steps, start = 0.0, time.perf_counter()
        for batch in windows:
            self.optimizer.zero_grad()
            self.model.loss(batch).backward()
            before = time.perf_counter()
            self.optimizer.step()
            in_steps += time.perf_counter() - before
        return in_steps, time.perf_counter() - start


@contextlib.contextmanager
def two_runs(
    tx: gradtx.GradientTransformation, compile: bool, every: int
) -> Iterator[tuple[Run, Run]]:
    plain, watched = Run(tx, compile), Run(tx, compile)
    with gradtx.watch(watched.optimizer, every=every):
        yield plain, watched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)  # more threads barely help for tensors this small
    text, _ = library()
    generator = torch.Generator().manual_seed(0)
    print(f"{machine()}, of which 1 thread was used\n")
    print("| chain | mode | ms per step | the optimizer's | training | its step |")
    print("|---|---|---:|---:|---:|---:|")
    for name, make in CHAINS.items():
        for compile in (False, True):
            times: list[list[tuple[float, float]]] = [[], []]
            with two_runs(make(), compile, options.every) as runs:
                for round_ in tqdm(range(options.rounds + 1), desc=name, disable=None):
                    batches = [
                        windows_of(text, BATCH, generator) for _ in range(options.every)
                    ]
                    for run, own in zip(runs, times, strict=True):
                        seconds = run.train(torch.stack(batches))
                        if round_:  # the first one creates state
                            own.append(seconds)
            for a, b in zip(
                runs[0].model.parameters(), runs[1].model.parameters(), strict=True
            ):
                assert torch.equal(a, b), "a watch has changed the run"
            of_steps, of_all = (
                ratio([both[i] for both in times[1]], [both[i] for both in times[0]])
                for i in (0, 1)
            )
            own, whole = (
                1e3 * min(both[i] for both in times[0]) / options.every for i in (0, 1)
            )
            mode = "compiled" if compile else "default"
            print(
                f"| {name} | {mode} | {whole:.2f} | {own:.2f} | {of_all:.3f} | {of_steps:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
