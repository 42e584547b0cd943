"""Train the byte transformer of examples/muon_chars.py with coded state and rounded weights, and compare with float32.

For a given seed, every run has the same batches and initial weights. Its result is the loss of the last steps relative
to that of float32 with the same seed. With bfloat16 weights, the model still computes in float32, on the rounded
weights, so that only the optimizer differs.

    python benchmarks/precision.py [--steps 1000] [--seeds 3] [--only AdamW Lion] [--peers 300] [--report]

Each finished run is stored in a file under out/, so an interrupted study continues where it stopped. Prints the tables
of docs/performance.md and writes out/precision.png; with `--report` only from the runs already finished. `--peers 300`
instead runs the AdamW of torchao, bitsandbytes, optimi and heavyball, which must be installed (`pip install --no-deps
--target`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "examples"))

import matplotlib.pyplot as plt
import torch
from muon_chars import BATCH, Transformer, library, windows_of  # pyright: ignore[reportMissingImports]
from torch import Tensor
from tqdm import tqdm

import gradtx
from gradtx import (
    GradientTransformation,
    chain,
    compensate_rounding,
    round_stochastically,
    with_state_dtype,
)

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "out" / "precision"
LAST = 50  # steps whose losses are averaged
PEER_STEPS = 300
ROWS = (256, 1024, 4096)
EVERY = 10  # steps between the points of the plot
CODES = ["bfloat16+8", "bfloat16:stochastic", "float8", "int8", "int4", "factored"]
FLOAT32 = "float32"


def falling(lr: float, steps: int) -> gradtx.Schedule:
    return gradtx.warmup_cosine_schedule(
        steps, max_lr=lr, warmup_steps=max(steps // 10, 1)
    )


def muon_and_adamw(steps: int) -> GradientTransformation:
    return gradtx.muon(
        falling(5e-2, steps), ns_dtype=None, fallback=gradtx.adamw(falling(5e-3, steps))
    )


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


@dataclass(frozen=True)
class Plan:
    """The configuration of one run.

    Attributes:
        algorithm: The column of the table.
        mode: The row of the table.
        make: Builds the optimizer from named parameters.
        narrow: Whether weights are in bfloat16.
        seed: The seed of the initial weights and the batches.
        steps: The number of training steps.
    """

    algorithm: str
    mode: str
    make: Callable[[Any], torch.optim.Optimizer]
    narrow: bool
    seed: int
    steps: int

    def path(self, folder: Path) -> Path:
        """The file with the measurements of the run."""
        words = re.findall(r"[A-Za-z0-9+]+", f"{self.algorithm} {self.mode}")
        return folder / f"{'-'.join(words)}-{self.steps}-{self.seed}.json"


@dataclass
class Result:
    """The finished runs of one mode, by seed.

    Attributes:
        losses: The training losses of each run.
        state: Bytes of state per entry of the weights.
        milliseconds: The first decile of the optimizer's step times in each run.
    """

    losses: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    state: float = 0.0
    milliseconds: dict[int, float] = field(default_factory=dict[int, float])

    def add(self, seed: int, measured: dict[str, Any]) -> None:
        self.losses[seed] = measured["losses"]
        self.state = measured["state"]
        self.milliseconds[seed] = measured["milliseconds"]

    def last(self) -> dict[int, float]:
        """The final loss of each run: the mean over the last steps."""
        return {
            seed: statistics.fmean(of_run[-LAST:])
            for seed, of_run in self.losses.items()
        }

    def over(self, reference: Result) -> list[float]:
        """The ratios of the final losses to those of a reference with the same seeds."""
        others = reference.last()
        return [
            loss / others[seed] for seed, loss in self.last().items() if seed in others
        ]


class Narrow:
    """The bfloat16 weights of a model that computes in float32."""

    def __init__(self, model: Transformer):
        self._wide = dict(model.named_parameters())
        self.params = {
            name: param.detach().bfloat16().requires_grad_()
            for name, param in self._wide.items()
        }
        self.show()

    @torch.no_grad()
    def show(self) -> None:
        """Copy the weights into the model."""
        for name, param in self._wide.items():
            param.copy_(self.params[name])

    def take(self) -> None:
        """Copy the gradients from the model."""
        for name, param in self._wide.items():
            self.params[name].grad = (
                None if param.grad is None else param.grad.bfloat16()
            )


def train(plan: Plan, text: Tensor) -> dict[str, Any]:
    """Train once and return the measurements."""
    torch.manual_seed(plan.seed)
    model = Transformer()
    weights = Narrow(model) if plan.narrow else None
    optimizer = plan.make(
        list(weights.params.items() if weights else model.named_parameters())
    )
    batches = torch.Generator().manual_seed(plan.seed)
    losses: list[float] = []
    seconds: list[float] = []
    for _ in tqdm(
        range(plan.steps),
        desc=f"{plan.algorithm}, {plan.mode}",
        leave=False,
        disable=None,
    ):
        model.zero_grad()
        loss = model.loss(windows_of(text, BATCH, batches))
        loss.backward()
        if weights is not None:
            weights.take()
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        if weights is not None:
            weights.show()
        losses.append(loss.item())
    entries = sum(param.numel() for param in model.parameters())
    return {
        "losses": losses,
        "state": bytes_of(optimizer) / entries,
        "milliseconds": 1000 * statistics.quantiles(seconds, n=10)[0],
    }


def measured(plan: Plan, text: Tensor, folder: Path) -> dict[str, Any]:
    """Return the measurements of a run, from its file if there is one."""
    path = plan.path(folder)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        result = json.dumps(train(plan, text))
        path.write_text(result, encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def bytes_of(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of an optimizer's state, including nested dicts and tensor subclasses of other libraries."""
    sizes: dict[int, int] = {}
    waiting: list[Any] = list(optimizer.state.values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif hasattr(value, "__tensor_flatten__"):
            names, _ = value.__tensor_flatten__()
            waiting += [getattr(value, name) for name in names]
        elif isinstance(value, Tensor) and value.numel():
            sizes[value.data_ptr()] = value.numel() * value.element_size()
    return sum(sizes.values())


def adapter(tx: GradientTransformation) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda params: gradtx.as_optimizer(tx, params)


# Other libraries: AdamW at a constant learning rate.

NUMBERS: dict[str, Any] = {"lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.01}


def peer(
    module: str, name: str, **options: Any
) -> Callable[[Any], torch.optim.Optimizer]:
    """Return a factory for another library's class, which is imported on the first call."""

    def make(params: Any) -> torch.optim.Optimizer:
        optimizer_class = getattr(importlib.import_module(module), name)
        return optimizer_class([param for _, param in params], **NUMBERS, **options)

    return make


def ours(
    code: Any = None, *links: GradientTransformation
) -> Callable[[Any], torch.optim.Optimizer]:
    """Return a factory for the compiled AdamW of gradtx."""
    tx = chain(gradtx.adamw(**NUMBERS, state_dtype=code), *links)
    return lambda params: gradtx.as_optimizer(tx, params, compile=True)


PEERS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], bool]] = {
    "bitsandbytes, AdamW8bit": (peer("bitsandbytes.optim", "AdamW8bit"), False),
    "gradtx, bfloat16 weights, compensate_rounding(16)": (
        ours(None, compensate_rounding()),
        True,
    ),
    "optimi, bfloat16 weights, kahan_sum": (
        peer("optimi", "AdamW", kahan_sum=True),
        True,
    ),
    "gradtx, bfloat16 weights, compensate_rounding(8)": (
        ours(None, compensate_rounding(bits=8)),
        True,
    ),
    "gradtx, float32": (ours(), False),
    'gradtx, "bfloat16+8"': (ours("bfloat16+8"), False),
    'gradtx, "int8"': (ours("int8"), False),
    'gradtx, "float8"': (ours("float8"), False),
    'gradtx, "int4"': (ours("int4"), False),
    'gradtx, "factored"': (ours("factored"), False),
    "torchao, AdamW8bit": (peer("torchao.optim", "AdamW8bit"), False),
    "torchao, AdamWFp8": (peer("torchao.optim", "AdamWFp8"), False),
    "torchao, AdamW4bit": (peer("torchao.optim", "AdamW4bit"), False),
    'heavyball, ecc="bf16+8"': (peer("heavyball", "AdamW", ecc="bf16+8"), False),
    'heavyball, bfloat16 weights, param_ecc="bf16+8"': (
        peer("heavyball", "AdamW", param_ecc="bf16+8"),
        True,
    ),
}


def peer_plans(steps: int) -> list[Plan]:
    return [
        Plan("peers", mode, make, narrow, 0, steps)
        for mode, (make, narrow) in PEERS.items()
    ]


def peer_table(folder: Path, steps: int) -> list[str]:
    """Return the table of the finished runs of other libraries."""
    results: dict[str, Result] = {}
    for plan in peer_plans(steps):
        path = plan.path(folder)
        if path.exists():
            results[plan.mode] = Result()
            results[plan.mode].add(
                plan.seed, json.loads(path.read_text(encoding="utf-8"))
            )
    lines = [
        "| AdamW | bytes of state per entry | ms per step | loss |",
        "|---|---:|---:|---:|",
    ]
    for mode in sorted(results, key=lambda mode: -results[mode].state):
        (milliseconds,) = results[mode].milliseconds.values()
        lines.append(
            f"| {mode} | {results[mode].state:.2f} | {milliseconds:.1f} | {losses(results[mode])} |"
        )
    return lines


# The time of coded steps.


def step_times(compile: bool, rounds: int = 30) -> dict[str, list[float]]:
    """Time AdamW with each code in turn, and return the median milliseconds of a step for each size, by code."""
    times: dict[str, list[float]] = {}
    for rows in ROWS:
        optimizers: dict[str, torch.optim.Optimizer] = {}
        for code in (None, *CODES):
            params = [torch.nn.Parameter(torch.randn(rows, 1024)) for _ in range(6)]
            for param in params:
                param.grad = torch.randn_like(param)
            optimizer = gradtx.optim.AdamW(
                params, lr=1e-3, compile=compile, state_dtype=code
            )
            optimizer.step()
            optimizers[code or FLOAT32] = optimizer
        of_steps: dict[str, list[float]] = {code: [] for code in optimizers}
        for _ in tqdm(range(rounds), desc=f"{rows} rows", leave=False, disable=None):
            for code, optimizer in optimizers.items():
                start = time.perf_counter()
                optimizer.step()
                of_steps[code].append(1000 * (time.perf_counter() - start))
        for code, milliseconds in of_steps.items():
            times.setdefault(code, []).append(statistics.median(milliseconds))
    return times


def tables_of_times(path: Path) -> list[str]:
    """Return tables of the time of AdamW on six matrices with two threads, the median of 30 interleaved steps."""
    if not path.exists():
        return []
    times: dict[str, dict[str, list[float]]] = json.loads(
        path.read_text(encoding="utf-8")
    )
    return [
        "Compiled:",
        "",
        *_table_of_times(times["compiled"]),
        "",
        "Default mode:",
        "",
        *_table_of_times(times["default"]),
        "",
    ]


def _table_of_times(times: dict[str, list[float]]) -> list[str]:
    lines = [
        f"| state | {' | '.join(f'{rows} x 1024' for rows in ROWS)} |",
        "|---|" + "---:|" * len(ROWS),
    ]
    for code, milliseconds in times.items():
        cells: list[str] = []
        for value, first in zip(milliseconds, times[FLOAT32], strict=True):
            cells.append(f"{value:.1f} ms ({value / first:.1f})")
        lines.append(f"| {code} | {' | '.join(cells)} |")
    return lines


def modes_of(
    name: str, steps: int
) -> dict[str, tuple[Callable[[Any], torch.optim.Optimizer], bool]]:
    """Return the modes to train an algorithm in: how to build the optimizer, and whether weights are in bfloat16."""
    tx = ALGORITHMS[name](steps)
    modes: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], bool]] = {
        FLOAT32: (adapter(tx), False)
    }
    for code in CODES:
        # Refused: its squares have other coordinates.
        if name == "SOAP" and code == "factored":
            continue
        modes[f'state "{code}"'] = adapter(with_state_dtype(tx, code)), False
    for title, link in ROUNDINGS.items():
        modes[f"bfloat16 weights, {title}"] = (
            adapter(chain(with_state_dtype(tx, torch.float32), link)),
            True,
        )
    return modes


def plans_of(names: list[str], steps: int, seeds: int) -> list[Plan]:
    """Return all runs. Those with several seeds, which get a range in the table, come first."""
    plans: list[Plan] = []
    for name in names:
        for mode, (make, narrow) in modes_of(name, steps).items():
            of_mode = seeds if _has_bar(name, mode) else 1
            plans += [
                Plan(name, mode, make, narrow, seed, steps) for seed in range(of_mode)
            ]
    return sorted(
        plans, key=lambda plan: (not _has_bar(plan.algorithm, plan.mode), plan.seed)
    )


def _has_bar(name: str, mode: str) -> bool:
    return mode in (FLOAT32, 'state "int8"') or (
        name == "AdamW" and mode.startswith("bfloat16 weights")
    )


def cell(result: Result, reference: Result) -> str:
    """Format the losses of a mode relative to those of float32, in percent."""
    ratios = [100 * (ratio - 1) for ratio in result.over(reference)]
    if not ratios:
        return ""
    if len(ratios) == 1:
        return f"{ratios[0]:+.2f}%"
    return (
        f"{statistics.fmean(ratios):+.2f}% ({min(ratios):+.2f} to {max(ratios):+.2f})"
    )


def losses(result: Result) -> str:
    """Format the final losses of a mode: the mean and the range over seeds."""
    last = list(result.last().values())
    if len(last) < 2:
        return "".join(f"{loss:.3f}" for loss in last)
    return f"{statistics.fmean(last):.3f} ({min(last):.3f} to {max(last):.3f})"


def table_of_losses(results: dict[str, dict[str, Result]]) -> list[str]:
    lines = [
        f"| mode | {' | '.join(results)} |",
        "|---|" + "---:|" * len(results),
    ]
    for mode in next(iter(results.values())):
        if not any(modes[mode].losses for modes in results.values()):
            continue
        cells = [mode]
        for modes in results.values():
            reference = modes[FLOAT32]
            cells.append(
                losses(reference) if mode == FLOAT32 else cell(modes[mode], reference)
            )
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def table_of_peers(folder: Path, steps: int) -> list[str]:
    rows = peer_table(folder, steps)
    if len(rows) == 2:
        return []
    return [
        *rows,
        "",
        *_not_run(folder, steps),
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions())}.",
        "",
    ]


def _not_run(folder: Path, steps: int) -> list[str]:
    missing = [
        plan.mode for plan in peer_plans(steps) if not plan.path(folder).exists()
    ]
    return [f"Not run yet: {'; '.join(missing)}.", ""] if missing else []


def versions() -> list[tuple[str, str]]:
    """Return the names and versions of the other libraries that are installed."""
    installed: list[tuple[str, str]] = []
    for name in ("torchao", "bitsandbytes", "torch-optimi", "heavyball"):
        try:
            installed.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def plot(modes: dict[str, Result], title: str) -> None:
    """Plot each mode's loss relative to that of float32, so that nearly equal curves remain distinguishable."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    reference = modes[FLOAT32]
    for mode, result in modes.items():
        seeds = result.losses.keys() & reference.losses.keys()
        if not seeds or mode == FLOAT32:
            continue
        ratios = torch.tensor([result.losses[seed] for seed in seeds]) / torch.tensor(
            [reference.losses[seed] for seed in seeds]
        )
        smooth = ratios.mean(0).unfold(0, EVERY, EVERY).mean(1)
        axes.plot(
            range(EVERY, EVERY * len(smooth) + 1, EVERY),
            100 * (smooth - 1),
            label=mode,
            linewidth=1,
        )
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set(xlabel="step", ylabel="training loss over that of float32, %", title=title)
    axes.legend(frameon=False, fontsize="small")
    CACHE.parent.mkdir(exist_ok=True)
    figure.savefig(CACHE.parent / "precision.png", dpi=120)


def report(plans: list[Plan], folder: Path, steps: int) -> dict[str, dict[str, Result]]:
    """Return the results of the finished runs."""
    results: dict[str, dict[str, Result]] = {}
    for name in ALGORITHMS:
        results[name] = {mode: Result() for mode in modes_of(name, steps)}
    for plan in plans:
        path = plan.path(folder)
        if path.exists():
            results[plan.algorithm][plan.mode].add(
                plan.seed, json.loads(path.read_text(encoding="utf-8"))
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS)
    )
    parser.add_argument(
        "--peers",
        type=int,
        metavar="STEPS",
        help="run other libraries' optimizers for so many steps",
    )
    parser.add_argument(
        "--times", action="store_true", help="measure the time of coded steps instead"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="print the tables of the runs that are through",
    )
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="the folder that keeps finished runs"
    )
    options = parser.parse_args()
    plans = plans_of(options.only, options.steps, options.seeds)
    options.cache.mkdir(parents=True, exist_ok=True)
    times = options.cache / "times.json"
    if options.times:
        torch.set_num_threads(2)
        by_way = {"compiled": step_times(True), "default": step_times(False)}
        times.write_text(json.dumps(by_way), encoding="utf-8")
    elif not options.report:
        torch.set_num_threads(1)  # more threads barely help for tensors this small
        text, _ = library()
        for plan in tqdm(
            peer_plans(options.peers) if options.peers else plans,
            desc="runs",
            disable=None,
        ):
            measured(plan, text, options.cache)
    results = report(
        plans_of(list(ALGORITHMS), options.steps, options.seeds),
        options.cache,
        options.steps,
    )
    for name, modes in results.items():
        for mode, result in modes.items():
            if result.losses:
                print(
                    f"{name:14}{mode:44} loss {losses(result)}, {result.state:5.2f} bytes an entry"
                )
    lines = table_of_losses(results) + table_of_peers(
        options.cache, options.peers or PEER_STEPS
    )
    lines += tables_of_times(times)
    print("\n".join(lines))
    plot(results["AdamW"], "AdamW")


if __name__ == "__main__":
    main()
