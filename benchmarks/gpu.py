"""Compare steps on a GPU with torch's AdamW on the tensors of real models, with memory use and CUDA graphs, in one run.

`make gpu` runs the tests that need a GPU and then this script, which writes docs/performance-gpu.md. It needs no
network. To try the script without a GPU, pass `--device cpu`, which only prints the tables.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Shapes, gpt, interleaved, machine, parameters, resnet50

import gradtx

ROUNDS = 50
PAGE = Path(__file__).parent.parent / "docs" / "performance-gpu.md"
MODELS: dict[str, Shapes] = {
    "ResNet-50": resnet50(),
    "GPT, 12 layers": gpt(),
    "161 tensors of 64 x 64": [(64, 64)] * 161,
    "4 tensors of 16 x 16": [(16, 16)] * 4,
}
Make = Callable[..., torch.optim.Optimizer]
CONTESTANTS: dict[str, Make] = {
    "torch AdamW, fused": lambda params, **options: torch.optim.AdamW(
        params, fused=True, **options
    ),
    "torch AdamW, foreach": lambda params, **options: torch.optim.AdamW(
        params, foreach=True, **options
    ),
    "torch AdamW, loop": lambda params, **options: torch.optim.AdamW(
        params, foreach=False, **options
    ),
    "gradtx AdamW": lambda params, **options: gradtx.optim.AdamW(params, **options),
    "gradtx AdamW, compiled": lambda params, **options: gradtx.optim.AdamW(
        params, compile=True, **options
    ),
    "gradtx clip + AdamW": lambda params, **options: gradtx.as_optimizer(
        gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw()), params, **options
    ),
    "gradtx Muon + AdamW": lambda params, **options: gradtx.optim.Muon(
        params, fallback=gradtx.adamw(), **options
    ),
}


def on_device(shapes: Shapes, device: torch.device) -> list[torch.Tensor]:
    params: list[torch.Tensor] = []
    for param in parameters(shapes):
        placed = param.detach().to(device).requires_grad_()
        placed.grad = None if param.grad is None else param.grad.to(device)
        params.append(placed)
    return params


def synchronized(
    optimizer: torch.optim.Optimizer, device: torch.device
) -> Callable[[], None]:
    def step() -> None:
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def extra_memory(step: Callable[[], None], device: torch.device) -> float:
    """Return the peak bytes of a step in addition to parameters, gradients and state."""
    if device.type != "cuda":
        return math.nan
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def captured(make: Make, shapes: Shapes, device: torch.device) -> str:
    """Return the milliseconds of a step replayed from a CUDA graph, or the reason why the capture failed."""
    if device.type != "cuda":
        return "no CUDA"
    try:
        optimizer = make(on_device(shapes, device), capturable=True)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                optimizer.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(ROUNDS):
            graph.replay()
        torch.cuda.synchronize()
        return f"{1e3 * (time.perf_counter() - start) / ROUNDS:.3f}"
    except Exception as error:  # a failed capture is a result, which the table shows
        reason: str = str(error).strip().splitlines()[0]
        return f"{type(error).__name__}: {reason[:60]}"


def table(name: str, shapes: Shapes, device: torch.device) -> str:
    """Return the Markdown table of one model."""
    steps: dict[str, Callable[[], None]] = {}
    first: dict[str, float] = {}
    memory: dict[str, float] = {}
    for title, make in CONTESTANTS.items():
        if title == "gradtx Muon + AdamW" and not name.startswith("GPT"):
            continue
        steps[title] = synchronized(make(on_device(shapes, device)), device)
        start = time.perf_counter()
        steps[title]()
        first[title] = time.perf_counter() - start
        steps[title]()
        memory[title] = extra_memory(steps[title], device)
    times = interleaved(steps, ROUNDS)
    reference = statistics.median(times["torch AdamW, fused"])
    lines = [
        f"## {name}",
        "",
        "| optimizer | ms (median) | ratio to fused | extra MB | first step, s | captured, ms |",
        "|---|---|---|---|---|---|",
    ]
    for title, own in times.items():
        median = statistics.median(own)
        replayed = captured(CONTESTANTS[title], shapes, device)
        lines.append(
            f"| {title} | {1e3 * median:.3f} | {median / reference:.2f} | {memory[title] / 1e6:.1f} | "
            f"{first[title]:.2f} | {replayed} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    arguments: Any = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --device cpu tries the script out")
    sections = [f"# Performance on a GPU\n\nWritten by `make gpu`: {machine()}."]
    for name, shapes in MODELS.items():
        sections.append(table(name, shapes, device))
        print(sections[-1], end="\n\n")
    if device.type == "cuda":
        PAGE.write_text("\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
