"""Measure step time, compile time and memory of optimizers on the tensors of real models, as ratios within one run.

In each round, every contestant steps once in turn. Ratios are medians over rounds, relative to
torch.optim.AdamW(fused=True). `make bench` runs this script, which prints tables and writes docs/step-time.png. The
caches of torch's compiler, which HeavyBall uses, are disabled.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from common import (
    Shapes,
    gpt,
    interleaved,
    log_ticks,
    machine,
    parameters,
    ratio,
    resnet50,
)

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

import gradtx

ROUNDS, WARM = 30, 10  # newly allocated memory is slow for the first few rounds
REFERENCE, LOOP = "torch AdamW, fused", "torch AdamW, loop"
Step = Callable[[], object]
MODELS = {"ResNet-50": resnet50(), "GPT, 12 layers": gpt()}
SMALL: dict[str, Shapes] = {
    "161 tensors of 64 x 64": [(64, 64)] * 161,
    "16 tensors of 64 x 64": [(64, 64)] * 16,
    "4 tensors of 16 x 16": [(16, 16)] * 4,
}


def contestants() -> dict[str, Callable[[list[torch.Tensor]], Step]]:
    """Return the functions that build each contestant's step. Gradients are set in advance and persist."""
    import adam_atan2_pytorch
    import adamp
    import heavyball
    import pytorch_optimizer

    def heavyball_adamw(params: list[torch.Tensor]) -> Step:
        optimizer, gradients = heavyball.AdamW(params), [param.grad for param in params]

        def step() -> None:
            # HeavyBall removes the gradients.
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient
            optimizer.step()

        return step

    clipped = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw())
    return {
        REFERENCE: lambda params: torch.optim.AdamW(params, fused=True).step,
        "torch AdamW, foreach": lambda params: (
            torch.optim.AdamW(params, foreach=True).step
        ),
        LOOP: lambda params: torch.optim.AdamW(params, foreach=False).step,
        "pytorch_optimizer AdamW": lambda params: pytorch_optimizer.AdamW(params).step,
        "HeavyBall AdamW, compiled": heavyball_adamw,
        "gradtx AdamW, compiled": lambda params: (
            gradtx.optim.AdamW(params, compile=True).step
        ),
        "gradtx AdamW": lambda params: gradtx.optim.AdamW(params).step,
        "gradtx clip + AdamW, compiled": lambda params: (
            gradtx.as_optimizer(clipped, params, compile=True).step
        ),
        "adamp AdamP": lambda params: adamp.AdamP(params).step,
        "gradtx AdamP, compiled": lambda params: (
            gradtx.optim.AdamP(params, compile=True).step
        ),
        "gradtx AdamP": lambda params: gradtx.optim.AdamP(params).step,
        "adam-atan2-pytorch": lambda params: adam_atan2_pytorch.AdamAtan2(params).step,
        "gradtx AdamAtan2, compiled": lambda params: (
            gradtx.optim.AdamAtan2(params, compile=True).step
        ),
        "gradtx AdamAtan2": lambda params: gradtx.optim.AdamAtan2(params).step,
    }


def compare(model: str, shapes: Shapes) -> dict[str, float]:
    """Print one model's table and return the ratios."""
    print(
        f"\n{model}: {len(shapes)} tensors, {sum(map(math.prod, shapes)) / 1e6:.1f} million entries, float32\n"
    )
    steps, first, memory = {}, {}, {}
    for name, make in tqdm(
        contestants().items(), desc="first steps", disable=None, leave=False
    ):
        steps[name] = make(parameters(shapes))
        start = time.perf_counter()
        steps[name]()
        first[name] = time.perf_counter() - start
        memory[name] = temporary(steps[name])
    times = interleaved(steps, ROUNDS, WARM)
    print(
        "| optimizer | ms (median) | ratio | ratio to torch's loop | memory, MB | first step, s |\n"
        "|---|---|---|---|---|---|"
    )
    ratios = {name: ratio(own, times[REFERENCE]) for name, own in times.items()}
    for name, own in times.items():
        print(
            f"| {name} | {1e3 * statistics.median(own):.1f} | {ratios[name]:.2f} | {ratio(own, times[LOOP]):.2f} | "
            f"{memory[name] / 1e6:.2f} | {first[name]:.1f} |"
        )
    return ratios


def compare_small() -> None:
    """Print the time of AdamW on few or small tensors, where host overhead matters."""
    contestants = {
        "torch, fused": lambda params: torch.optim.AdamW(params, fused=True).step,
        "torch, foreach": lambda params: torch.optim.AdamW(params, foreach=True).step,
        "torch, loop": lambda params: torch.optim.AdamW(params, foreach=False).step,
        "gradtx": lambda params: gradtx.optim.AdamW(params).step,
        "gradtx, compiled": lambda params: (
            gradtx.optim.AdamW(params, compile=True).step
        ),
    }
    print("\nAdamW on small tensors, ms per step (median)\n")
    print(f"| tensors | {' | '.join(contestants)} |\n|---|{'---|' * len(contestants)}")
    for name, shapes in SMALL.items():
        steps = {
            title: repeated(make(parameters(shapes)), 20)
            for title, make in contestants.items()
        }
        times = interleaved(steps, ROUNDS, WARM)
        medians = [f"{1e3 * statistics.median(own) / 20:.3f}" for own in times.values()]
        print(f"| {name} | {' | '.join(medians)} |")


def repeated(step: Step, count: int) -> Step:
    def steps() -> None:
        for _ in range(count):
            step()

    return steps


def temporary(step: Step) -> int:
    """Return the peak number of bytes that a step allocates in addition to parameters, gradients and state."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        # The profiler knows the size of replaced state only if it recorded the allocation.
        step()
        with torch.profiler.record_function("measured"):
            step()
    results: Any = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted(results.events(), key=lambda event: event.start_ns())
    begin = next(event.start_ns() for event in events if event.name() == "measured")
    changes = [
        event.nbytes()
        for event in events
        if event.name() == "[memory]" and event.start_ns() >= begin
    ]
    return max(itertools.accumulate(changes), default=0)


def first_step(name: str) -> float:
    """Return the seconds of the first step in a new process."""
    code = (
        "import sys, time; sys.path.insert(0, 'benchmarks')\n"
        "from common import parameters, resnet50\nimport torch, gradtx\n"
        f"optimizer = gradtx.optim.{name}(parameters(resnet50()), compile=True)\n"
        "start = time.perf_counter(); optimizer.step(); print(time.perf_counter() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def functional_step() -> tuple[float, float]:
    """Return the milliseconds of a whole functional training step, eager and under torch.compile."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(256, 512), torch.nn.Tanh(), torch.nn.Linear(512, 10)
    )
    params = {name: param.detach().clone() for name, param in model.named_parameters()}
    x, y, tx = torch.randn(64, 256), torch.randint(10, (64,)), gradtx.adamw()

    def loss(params: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(
            torch.func.functional_call(model, params, (x,)), y
        )

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(torch.func.grad(loss)(params), state, params)
        return gradtx.apply_updates(params, updates), state

    compiled = torch.compile(step)
    state = tx.init(params)
    times = interleaved(
        {
            "eager": lambda: step(params, state),
            "compiled": lambda: compiled(params, state),
        },
        ROUNDS,
    )
    return 1e3 * statistics.median(times["eager"]), 1e3 * statistics.median(
        times["compiled"]
    )


def main() -> None:
    warnings.filterwarnings("ignore")
    packages = ", ".join(
        f"{name} {version(name)}"
        for name in ("adamp", "adam-atan2-pytorch", "heavyball", "pytorch_optimizer")
    )
    print(machine(), packages, sep=", ")
    results = {model: compare(model, shapes) for model, shapes in MODELS.items()}
    draw(results)
    compare_small()
    print("\nFirst compiled step in a new process (ResNet-50), in seconds\n")
    for name in ("AdamW", "AdamP"):
        print(f"- {name}: {first_step(name):.1f}")
    eager, compiled = functional_step()
    print(
        f"\nA whole functional training step (two layers, AdamW): {eager:.2f} ms, under torch.compile {compiled:.2f} ms"
    )


def draw(results: dict[str, dict[str, float]]) -> None:
    names = [name for name in next(iter(results.values())) if name != REFERENCE][::-1]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for i, (model, ratios) in enumerate(results.items()):
        places = [place + 0.2 - 0.4 * i for place in range(len(names))]
        axes.barh(places, [ratios[name] for name in names], height=0.38, label=model)
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set(
        xlabel="step time / that of torch's fused AdamW (logarithmic)", xscale="log"
    )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    log_ticks(axes, [1, 1.5, 2, 3, 5, 10])
    axes.legend()
    figure.savefig("docs/step-time.png", dpi=110)


if __name__ == "__main__":
    main()
