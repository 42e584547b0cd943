"""What only a GPU can show, in named parts: correctness in parallel, then ratios of times from one run.

    python benchmarks/gpu.py                       # all parts, in less than 8 minutes
    python benchmarks/gpu.py --part equality       # one or several
    python benchmarks/gpu.py --plot gpu.png        # and a plot of the ratios (matplotlib)
    python benchmarks/gpu.py --device cpu --rounds 2 --part adamw   # tries the script out

It uses the interpreter that it is called with, and no network. Correctness runs on the GPU, and without one on the
pretended GPU of `tests/gpu`. Contestants whose package is absent are left out, and named.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # a machine with a GPU may not let anything be installed

import torch
from common import Shapes, gpt, machine, parameters, ratio, resnet50

import gradtx

Make = Callable[[list[Any]], Any]  # of parameters: an optimizer
Step = Callable[[], object]
STEPS = 4  # of one round, between two waits for the device
WARM = 3
PARTS: dict[str, Callable[[Any], None]] = {}
RATIOS: dict[str, float] = {}  # of gradtx to the reference, by contest and contestant


def part(function: Callable[[Any], None]) -> Callable[[Any], None]:
    PARTS[function.__name__] = function
    return function


# Correctness.


def tested(arguments: Any, *tests: str) -> None:
    """Run tests in parallel on the device."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if arguments.device == "cuda":
        environment["GRADTX_GPU"] = "cuda"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line"]
    command += ["-p", "no:cacheprovider"]
    if importlib.util.find_spec("pytest_benchmark") is not None:
        command += ["-p", "no:benchmark"]
    command += ["-n", str(min(12, os.cpu_count() or 1)), "-m", "not nightly", *tests]
    finished = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    lines = finished.stdout.strip().splitlines()
    shown = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR", "/"))]
    print("\n".join([*shown[:60], *lines[-1:]]) or finished.stderr[-2000:])


@part
def facts(arguments: Any) -> None:
    """What the pretended GPU knows of operations is still true."""
    tested(arguments, "tests/gpu/test_facts.py")


@part
def equality(arguments: Any) -> None:
    """All factories step as on the CPU, wait for nothing and can be captured."""
    tested(arguments, "tests/gpu/test_conformance.py")


@part
def ways(arguments: Any) -> None:
    """Scaled and coded steps, late gradients, several devices, checkpoints, helpers."""
    tested(
        arguments,
        "tests/gpu/test_ways.py",
        "tests/optim/scaling_and_capture/test_devices.py",
    )


@part
def kernels(arguments: Any) -> None:
    """All optimizers as kernels."""
    tested(arguments, "tests/gpu/test_kernels.py")


@part
def clients(arguments: Any) -> None:
    """Trainers of other projects."""
    tested(arguments, "tests/clients")


# Times.


def on_device(shapes: Shapes, device: torch.device) -> list[torch.Tensor]:
    params = []
    for param in parameters(shapes):
        moved = param.detach().to(device).requires_grad_()
        assert param.grad is not None
        moved.grad = param.grad.to(device)
        params.append(moved)
    return params


class Contest:
    """Steps that are timed in turns: until `step` returns (host), and until the device has finished (wall)."""

    def __init__(self, arguments: Any, title: str):
        self.device = torch.device(arguments.device)
        self.rounds = arguments.rounds or (20 if arguments.device == "cuda" else 1)
        self.title = title
        self.steps: dict[str, Step] = {}
        self.first: dict[str, float] = {}
        self.absent: list[str] = []

    def add(self, name: str, make: Callable[[], Step]) -> None:
        """Add a contestant, unless its package is absent."""
        try:
            step = make()
            start = time.perf_counter()
            step()
            self.wait()
        except ImportError as error:
            self.absent.append(f"{name} ({error.name})")
        except Exception as error:  # a failure is a result, which the table shows
            reason = str(error).strip().splitlines() or [""]
            self.absent.append(f"{name} ({type(error).__name__}: {reason[0][:70]})")
        else:
            self.first[name] = time.perf_counter() - start
            self.steps[name] = step

    def optimizers(self, shapes: Shapes, makes: dict[str, Make]) -> None:
        for name, make in makes.items():
            self.add(name, lambda make=make: make(on_device(shapes, self.device)).step)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def run(self, reference: str) -> None:
        host: dict[str, list[float]] = {name: [] for name in self.steps}
        wall: dict[str, list[float]] = {name: [] for name in self.steps}
        for round_ in range(self.rounds + WARM):
            for name, step in self.steps.items():
                self.wait()
                start = time.perf_counter()
                for _ in range(STEPS):
                    step()
                returned = time.perf_counter()
                self.wait()
                if round_ >= WARM:
                    host[name].append((returned - start) / STEPS)
                    wall[name].append((time.perf_counter() - start) / STEPS)
        print(f"### {self.title}; times relative to {reference}\n")
        print("| optimizer | wall, ms | ratio | host, ms | extra MB | first, s |")
        print("|---|---:|---:|---:|---:|---:|")
        for name in self.steps:
            relative = float("nan")
            if reference in wall:
                relative = ratio(wall[name], wall[reference])
                if name.startswith("gradtx"):
                    label = f"{self.title}: {name}, relative to {reference}"
                    RATIOS[label] = relative
            milliseconds = [1e3 * statistics.median(t[name]) for t in (wall, host)]
            print(
                f"| {name} | {milliseconds[0]:.3f} | {relative:.2f} | {milliseconds[1]:.3f} | "
                f"{self.extra_memory(name):.0f} | {self.first[name]:.2f} |"
            )
        if self.absent:
            print(f"\nLeft out: {'; '.join(self.absent)}.")
        print(flush=True)

    def extra_memory(self, name: str) -> float:
        """Return the peak megabytes of a step in addition to parameters, gradients and state."""
        if self.device.type != "cuda":
            return float("nan")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.steps[name]()
        return (torch.cuda.max_memory_allocated() - before) / 1e6


def theirs(module: str, name: str, **options: Any) -> Make:
    """Return a class of another package, imported on use."""
    return lambda params: getattr(importlib.import_module(module), name)(
        params, **options
    )


def ours(name: str, **options: Any) -> Make:
    return lambda params: getattr(gradtx.optim, name)(params, **options)


def chained(tx: gradtx.GradientTransformation, **options: Any) -> Make:
    return lambda params: gradtx.as_optimizer(tx, params, **options)


class Clipped:
    """torch's clip, then its fused AdamW."""

    def __init__(self, params: list[Any]):
        self._params = params
        self._optimizer = torch.optim.AdamW(params, fused=True)

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._params, 1.0)
        self._optimizer.step()


GPT_SMALL = gpt(width=768, words=50304, length=1024)  # GPT-2 small, 124 million
MODELS: dict[str, Shapes] = {
    "GPT-2 small": GPT_SMALL,
    "ResNet-50": resnet50(),
    "161 of 64 x 64": [(64, 64)] * 161,
    "4 of 16 x 16": [(16, 16)] * 4,
}
ADAMW: dict[str, Make] = {
    "torch, fused": lambda params: torch.optim.AdamW(params, fused=True),
    "torch, foreach": lambda params: torch.optim.AdamW(params, foreach=True),
    "gradtx": ours("AdamW"),
    "gradtx, compiled": ours("AdamW", compile=True),
}


@part
def adamw(arguments: Any) -> None:
    """AdamW on four models, beside torch's."""
    for name, shapes in MODELS.items():
        contest = Contest(arguments, f"AdamW, {name}")
        contest.optimizers(shapes, ADAMW)
        contest.run("torch, fused")


@part
def clip(arguments: Any) -> None:
    """The norm of all gradients, then AdamW."""
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw())
    contest = Contest(arguments, "Clip and AdamW, GPT-2 small")
    contest.optimizers(
        GPT_SMALL,
        {
            "torch's clip, fused": Clipped,
            "gradtx": chained(tx),
            "gradtx, compiled": chained(tx, compile=True),
        },
    )
    contest.run("torch's clip, fused")


RELATIVE = {"relative_step": False}  # a rate of its own instead


@part
def peers(arguments: Any) -> None:
    """Methods that others have written by hand."""
    contestants = {
        "Lion": ("pytorch_optimizer", "Lion", "Lion", {}),
        "LAMB": ("pytorch_optimizer", "Lamb", "Lamb", {}),
        "Adan": ("pytorch_optimizer", "Adan", "Adan", {}),
        "AdamP": ("adamp", "AdamP", "AdamP", {}),
        "AdamAtan2": ("adam_atan2_pytorch.foreach", "AdamAtan2", "AdamAtan2", {}),
        "AdamAtan2 in a loop": ("adam_atan2_pytorch", "AdamAtan2", "AdamAtan2", {}),
        "AdaFactor": ("pytorch_optimizer", "AdaFactor", "AdaFactor", RELATIVE),
        "CAME": ("pytorch_optimizer", "CAME", "CAME", {}),
        "SM3": ("pytorch_optimizer", "SM3", "SM3", {}),
    }
    for title, (module, name, own, options) in contestants.items():
        contest = Contest(arguments, f"{title}, ResNet-50")
        contest.optimizers(
            resnet50(),
            {
                module.partition(".")[0]: theirs(module, name, lr=1e-3, **options),
                "gradtx": ours(own, lr=1e-3, **options),
                "gradtx, compiled": ours(own, lr=1e-3, compile=True, **options),
            },
        )
        contest.run(module.partition(".")[0])


@part
def matrices(arguments: Any) -> None:
    """Muon on the 72 matrices of a transformer of width 768, and PSGD Kron on 24."""
    width = 768 if arguments.device == "cuda" else 48
    kinds = [(3, 1), (1, 1), (4, 1), (1, 4)]
    shapes: Shapes = [(width * rows, width * columns) for rows, columns in kinds] * 18
    contest = Contest(arguments, f"Muon, 72 matrices of width {width}")
    contest.optimizers(
        shapes,
        {
            "torch": lambda params: torch.optim.Muon(params),
            "Keller Jordan": theirs("muon", "SingleDeviceMuon", lr=0.02),
            "Emerging-Optimizers": theirs(
                "emerging_optimizers.orthogonalized_optimizers",
                "Muon",
                nesterov=True,  # as the others do
            ),
            "gradtx": ours("Muon"),
            "gradtx, compiled": ours("Muon", compile=True),
        },
    )
    contest.run("torch")
    contest = Contest(arguments, "PSGD Kron, 24 matrices")
    contest.optimizers(
        shapes[:24],
        {
            "pytorch_optimizer": theirs("pytorch_optimizer", "Kron"),
            "gradtx": chained(gradtx.psgd_kron()),
        },
    )
    contest.run("pytorch_optimizer")


@part
def coded(arguments: Any) -> None:
    """AdamW with 8-bit state, beside 32-bit state."""
    contest = Contest(arguments, "AdamW with 8-bit state, GPT-2 small")
    contest.optimizers(
        GPT_SMALL,
        {
            "torch, fused, float32": ADAMW["torch, fused"],
            "torchao, 8 bits": theirs("torchao.optim", "AdamW8bit"),
            "gradtx, int8": ours("AdamW", state_dtype="int8"),
            "gradtx, int8, compiled": ours("AdamW", state_dtype="int8", compile=True),
        },
    )
    contest.run("torch, fused, float32")


@part
def pure(arguments: Any) -> None:
    """Pure updates with AdamW, and their application."""

    def ours(shapes: Shapes, compiled: bool) -> Step:
        tx = gradtx.adamw()
        tensors = on_device(shapes, torch.device(arguments.device))
        grads = {str(i): p.grad for i, p in enumerate(tensors)}
        params: Any = {str(i): p.detach() for i, p in enumerate(tensors)}
        state = tx.init(params)

        def update(grads: Any, state: Any, params: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return gradtx.apply_updates(params, updates), state

        call = torch.compile(update) if compiled else update

        def step() -> None:
            nonlocal params, state
            params, state = call(grads, state, params)

        return step

    def optax_step(shapes: Shapes) -> Step:
        import jax
        import optax

        tx = optax.adamw(1e-3)
        tensors: Any = parameters(shapes)
        grads = [jax.numpy.asarray(p.grad.numpy()) for p in tensors]
        params: Any = [jax.numpy.asarray(p.detach().numpy()) for p in tensors]
        state = tx.init(params)

        @jax.jit
        def update(grads: Any, state: Any, params: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        def step() -> None:
            nonlocal params, state
            params, state = update(grads, state, params)
            jax.block_until_ready(params)

        return step

    def torchopt_step(shapes: Shapes) -> Step:
        torchopt: Any = importlib.import_module("torchopt")

        tx = torchopt.adamw(1e-3)
        tensors = on_device(shapes, torch.device(arguments.device))
        grads = {str(i): p.grad for i, p in enumerate(tensors)}
        params: Any = {str(i): p.detach() for i, p in enumerate(tensors)}
        state = tx.init(params)

        def step() -> None:
            nonlocal params, state
            updates, state = tx.update(grads, state, params=params, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)

        return step

    for name in ("161 of 64 x 64", "GPT-2 small"):
        contest = Contest(arguments, f"Pure AdamW, {name}")
        shapes = MODELS[name]
        contest.add("optax, jit", lambda shapes=shapes: optax_step(shapes))
        contest.add("TorchOpt", lambda shapes=shapes: torchopt_step(shapes))
        contest.add("gradtx", lambda shapes=shapes: ours(shapes, False))
        if name != "GPT-2 small" or arguments.long:
            contest.add(
                "gradtx, torch.compile", lambda shapes=shapes: ours(shapes, True)
            )
        contest.run("optax, jit")


def plot(path: Path) -> None:
    """Draw the ratio of each contestant of gradtx to the reference of its contest."""
    import matplotlib.pyplot as plt

    labels = list(RATIOS)[::-1]
    figure, axes = plt.subplots(
        figsize=(9, 1 + 0.25 * len(labels)), layout="constrained"
    )
    axes.barh(labels, [RATIOS[label] for label in labels])
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("time of a step, relative to the reference")
    axes.tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, help="20 on a GPU, else 1")
    parser.add_argument(
        "--long", action="store_true", help="compile a step of all of GPT-2 as well"
    )
    parser.add_argument("--plot", type=Path, help="file for a plot of all ratios")
    arguments = parser.parse_args()
    print(f"{machine()}\n")
    for name in PARTS:
        if name in arguments.part:
            start = time.perf_counter()
            print(f"## {name}: {PARTS[name].__doc__}\n", flush=True)
            PARTS[name](arguments)
            print(f"({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)
    if arguments.plot is not None and RATIOS:
        plot(arguments.plot)


if __name__ == "__main__":
    main()
