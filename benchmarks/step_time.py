"""Step time of optimizers as a ratio to torch.optim.AdamW(foreach=False), measured in one interleaved run.

Tensors: ResNet-50's 161 parameters (25.6 million entries). Every contestant steps once per round, in turn, so that a
change of the machine's speed hits all alike; the ratio is the median over rounds of (its time / the reference's).
Run as `make bench`. Writes nothing; copy the table with its header to docs/performance.md.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

# Page faults of the stock allocator swamp every out-of-place method; glibc reads these when a process starts.
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
if any(os.environ.get(key) != value for key, value in TUNED.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **TUNED})

import torch
from tqdm import tqdm

import gradtx

SEED, THREADS, ROUNDS = 0, 2, 30


def resnet50_shapes() -> list[tuple[int, ...]]:
    """The shapes of torchvision's resnet50().parameters(), in order."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    width = 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for out, inp, kernel in ((planes, width, 1), (planes, planes, 3), (planes * 4, planes, 1)):
                shapes += [(out, inp, kernel, kernel), (out,), (out,)]
            if block == 0:
                shapes += [(planes * 4, width, 1, 1), (planes * 4,), (planes * 4,)]
            width = planes * 4
    return [*shapes, (1000, 2048), (1000,)]


def parameters(shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    return params


CONTESTANTS = {
    "torch AdamW, loop": lambda params: torch.optim.AdamW(params, foreach=False),
    "torch AdamW, foreach": lambda params: torch.optim.AdamW(params, foreach=True),
    "torch AdamW, fused": lambda params: torch.optim.AdamW(params, fused=True),
    "gradtx AdamW, eager": gradtx.optim.AdamW,
    "gradtx AdamP, eager": lambda params: gradtx.optim.AdamP(params, weight_decay=0.01),
    "gradtx AdamAtan2, eager": lambda params: gradtx.optim.AdamAtan2(params, weight_decay=0.01),
}


def main() -> None:
    torch.set_num_threads(THREADS)
    shapes = resnet50_shapes()
    entries = sum(torch.Size(shape).numel() for shape in shapes)
    print(f"torch {torch.__version__}, cpu, {THREADS} threads, seed {SEED}, {ROUNDS} rounds")
    print(f"{len(shapes)} tensors, {entries / 1e6:.1f} million entries, float32\n")
    optimizers = {name: make(parameters(shapes)) for name, make in CONTESTANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for round_ in tqdm(range(ROUNDS + 3), desc="rounds", disable=None):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            if round_ >= 3:  # the first rounds make state and warm caches
                times[name].append(time.perf_counter() - start)
    reference = times["torch AdamW, loop"]
    print(f"{'':26}{'ms (median)':>12}{'ratio':>8}")
    for name, own in times.items():
        ratio = statistics.median(t / r for t, r in zip(own, reference, strict=True))
        print(f"{name:26}{1e3 * statistics.median(own):12.1f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
