"""Helpers of the benchmarks: allocator settings, the shapes of real models, and interleaved timing.

Import this module first. It restarts the process with glibc's allocator set to keep freed memory, because page faults
under the default settings dominate the time of every out-of-place method.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

TUNED = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
if any(os.environ.get(key) != value for key, value in TUNED.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **TUNED})

import torch
from tqdm import tqdm

SEED, THREADS = 0, 2
Shapes = list[tuple[int, ...]]


def resnet50() -> Shapes:
    """Return the shapes of torchvision's resnet50().parameters(), in order: 161 tensors, 25.6 million entries."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    width = 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for out, inp, kernel in (
                (planes, width, 1),
                (planes, planes, 3),
                (planes * 4, planes, 1),
            ):
                shapes += [(out, inp, kernel, kernel), (out,), (out,)]
            if block == 0:
                shapes += [(planes * 4, width, 1, 1), (planes * 4,), (planes * 4,)]
            width = planes * 4
    return [*shapes, (1000, 2048), (1000,)]


def gpt(
    width: int = 512, layers: int = 12, words: int = 8192, length: int = 256
) -> Shapes:
    """Return the shapes of a GPT without biases in its linear layers: 76 tensors, 42 million entries by default."""
    shapes: Shapes = [(words, width), (length, width)]
    for _ in range(layers):
        shapes += [
            (width,),
            (3 * width, width),
            (width, width),
            (width,),
            (4 * width, width),
            (width, 4 * width),
        ]
    return [*shapes, (width,), (width,)]


def parameters(shapes: Shapes) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    params = [
        torch.randn(shape, generator=generator).requires_grad_() for shape in shapes
    ]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    return params


def interleaved(
    steps: Mapping[str, Callable[[], object]], rounds: int, warm: int = 3
) -> dict[str, list[float]]:
    """Return the seconds per round of each contestant. All step once per round, so noise affects all equally."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in tqdm(range(rounds + warm), desc="rounds", disable=None, leave=False):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_ >= warm:  # the first rounds create state and fill caches
                times[name].append(time.perf_counter() - start)
    return times


def seconds(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ratio(times: list[float], reference: list[float]) -> float:
    """Return the median over rounds of the ratio of the time to the reference's time in the same round."""
    return statistics.median(
        own / other for own, other in zip(times, reference, strict=True)
    )


def log_ticks(axes: Any, ticks: list[float]) -> None:
    """Label a logarithmic x axis with plain numbers."""
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    count = torch.get_num_threads()
    threads = "1 thread" if count == 1 else f"{count} threads"
    return f"torch {torch.__version__}, {device}, {threads}, seed {SEED}, {time.strftime('%Y-%m-%d')}"


torch.set_num_threads(THREADS)
