"""Measure steps in which only some leaves have gradients: sparse experts, dropped layers, several heads, tasks in turn.

All leaves are of 64 x 64 but in the rows of models, which take their gradients from transformers' Switch transformer
and a BART that drops layers. Gradients are new tensors in each step, as after `zero_grad(set_to_none=True)`. One
thread; medians over rounds in which all contestants step in turn. Default steps are compared with torch's foreach
steps, compiled ones with its fused steps; where torch has no such optimizer, compiled steps with default ones.

python benchmarks/experts.py [--quick] [--only ROW ...]
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import importlib.util
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from common import SEED, Shapes, machine, ratio, seconds
from tqdm import tqdm

import gradtx

SHAPE = (64, 64)
Gradients = list[torch.Tensor | None]
Present = list[bool]
Make = Callable[[list[torch.nn.Parameter]], Any]


@dataclass
class Extent:
    """How much is measured.

    Attributes:
        rounds: The measured steps of a contestant.
        uneven: The share of a row's steps before those.
        processes: The processes that measure a first step.
    """

    rounds: int = 31
    uneven: float = 1.0
    processes: int = 3


QUICK = Extent(rounds=7, uneven=0.2, processes=1)


# Optimizers


def ours(make_tx: Callable[[], Any], compile: bool) -> Make:
    return lambda params: gradtx.as_optimizer(make_tx(), params, compile=compile)


class ClippedTorch:
    """torch's AdamW after torch's clipping."""

    def __init__(self, params: list[torch.nn.Parameter], fused: bool) -> None:
        self.params = params
        self.optimizer = torch.optim.AdamW(params, foreach=not fused, fused=fused)

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.params, 1.0, foreach=True)
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


def clipped(tx: Any) -> Any:
    return gradtx.chain(gradtx.clip_by_global_norm(1.0), tx)


TRANSFORMATIONS: dict[str, Callable[[], Any]] = {
    "AdamW": lambda: gradtx.adamw(lr=1e-3),
    "clip + AdamW": lambda: clipped(gradtx.adamw(lr=1e-3)),
    "Lion": lambda: gradtx.lion(lr=1e-4),
    "AdamP": lambda: gradtx.adamp(lr=1e-3),
    "clip + Muon": lambda: clipped(
        gradtx.muon(lr=1e-3, fallback=gradtx.adamw(lr=1e-3))
    ),
}
OF_TORCH: dict[str, dict[str, Make]] = {
    "AdamW": {
        "foreach": lambda params: torch.optim.AdamW(params, foreach=True),
        "fused": lambda params: torch.optim.AdamW(params, fused=True),
    },
    "clip + AdamW": {
        "foreach": lambda params: ClippedTorch(params, fused=False),
        "fused": lambda params: ClippedTorch(params, fused=True),
    },
}


def contestants(method: str) -> dict[str, Make]:
    make_tx = TRANSFORMATIONS[method]
    made = {"default": ours(make_tx, False), "compiled": ours(make_tx, True)}
    return {**made, **OF_TORCH.get(method, {})}


# Which leaves have gradients


def everything(leaves: int) -> Iterator[Present]:
    while True:
        yield [True] * leaves


def some(leaves: int, share: float) -> Iterator[Present]:
    """Yield a random share of the leaves for each step, or all where chance chooses none."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        chosen = (torch.rand(leaves, generator=generator) < share).tolist()
        yield chosen if any(chosen) else [True] * leaves


def experts(
    shared: int, layers: int, width: int = 8, active: int = 2
) -> Iterator[Present]:
    """Yield shared leaves and, for each layer, a random few of its experts."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        present = [True] * shared
        for _ in range(layers):
            order = torch.randperm(width, generator=generator)
            present += (order < active).tolist()
        yield present


def tasks(trunk: int, heads: int, leaves_of_head: int) -> Iterator[Present]:
    """Yield a shared trunk and the heads in turn."""
    while True:
        for task in range(heads):
            yield [True] * trunk + [
                head == task for head in range(heads) for _ in range(leaves_of_head)
            ]


def random_gradients(presence: Iterator[Present]) -> Iterator[Gradients]:
    generator = torch.Generator().manual_seed(SEED)
    kept: list[torch.Tensor] = []
    for present in presence:
        while len(kept) < len(present):
            kept.append(torch.randn(SHAPE, generator=generator))
        yield [
            gradient if has else None
            for gradient, has in zip(kept, present, strict=True)
        ]


def gradients_of(model: torch.nn.Module, words: int) -> Iterator[Gradients]:
    """Yield a model's gradients for random words."""
    params = [param for param in model.parameters() if param.requires_grad]
    torch.manual_seed(SEED)
    while True:
        model.zero_grad(set_to_none=True)
        sentence = torch.randint(2, words, (1, 6))
        model(input_ids=sentence, labels=sentence).loss.backward()
        yield [param.grad for param in params]


def switch() -> Iterator[Gradients]:
    """A Switch transformer, of whose experts a sentence reaches a few."""
    transformers: Any = importlib.import_module("transformers")
    config = transformers.SwitchTransformersConfig(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=4,
        num_decoder_layers=4,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        num_heads=4,
        num_experts=16,
        decoder_start_token_id=0,
    )
    torch.manual_seed(SEED)
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    return gradients_of(model.train(), words=64)


def layer_drop() -> Iterator[Gradients]:
    """A BART that drops each of its layers with a probability of 0.2."""
    transformers: Any = importlib.import_module("transformers")
    config = transformers.BartConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=6,
        decoder_layers=6,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=32,
        encoder_layerdrop=0.2,
        decoder_layerdrop=0.2,
    )
    torch.manual_seed(SEED)
    model = transformers.BartForConditionalGeneration(config)
    return gradients_of(model.train(), words=64)


@dataclass
class Row:
    """A row of the tables of steps.

    Attributes:
        title: What is printed, with a place for the number of uneven steps.
        gradients: Makes the gradients of step after step.
        uneven: The steps before those that are measured.
    """

    title: str
    gradients: Callable[[], Iterator[Gradients]]
    uneven: int = 4


ROWS = {
    "all": Row(
        "161 leaves, all with gradients", lambda: random_gradients(everything(161))
    ),
    "some": Row(
        "161, a random 70% in each step", lambda: random_gradients(some(161, 0.7))
    ),
    "experts": Row(
        "132: 4 shared, then layers of 8 experts of which 2 have gradients, first steps",
        lambda: random_gradients(experts(4, 16)),
    ),
    "experts_later": Row(
        "the same, after {uneven} uneven steps",
        lambda: random_gradients(experts(4, 16)),
        uneven=60,
    ),
    "uneven": Row(
        "160, a random 30%, after {uneven} uneven steps",
        lambda: random_gradients(some(160, 0.3)),
        uneven=150,
    ),
    "few": Row(
        "32, a random 50%, after {uneven} uneven steps",
        lambda: random_gradients(some(32, 0.5)),
        uneven=50,
    ),
    "tasks": Row(
        "48: eight tasks in turn, a trunk of 16 and a head of 4 for each",
        lambda: random_gradients(tasks(16, 8, 4)),
        uneven=16,
    ),
    "switch": Row("a small Switch transformer, first steps", switch),
    "switch_later": Row("the same, after {uneven} uneven steps", switch, uneven=60),
    "layerdrop": Row("a small BART with LayerDrop", layer_drop),
}
OF_MODELS = ("switch", "switch_later", "layerdrop")


# Steps


def take(params: list[torch.nn.Parameter], gradients: Gradients) -> None:
    for param, gradient in zip(params, gradients, strict=True):
        if gradient is not None:
            param.grad = gradient.clone()


def parameters_like(shapes: Shapes) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(SEED)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes
    ]


def shapes_of(gradients: Iterator[Gradients]) -> Shapes:
    """Return the shapes of all leaves that have a gradient in one of the first steps; others are of the usual shape."""
    shapes: dict[int, tuple[int, ...]] = {}
    leaves = 0
    for _ in range(100):  # at least as many as are taken
        values = next(gradients)
        leaves = len(values)
        for i, gradient in enumerate(values):
            if gradient is not None:
                shapes[i] = tuple(gradient.shape)
        if len(shapes) == leaves:
            break
    return [shapes.get(i, SHAPE) for i in range(leaves)]


def uneven_steps(row: Row, extent: Extent) -> int:
    return max(4, round(row.uneven * extent.uneven))


def steps(row: Row, method: str, extent: Extent) -> dict[str, list[float]]:
    """Return the seconds of each contestant's steps, in which all take copies of the same gradients."""
    shapes = shapes_of(row.gradients())
    params = {name: parameters_like(shapes) for name in contestants(method)}
    optimizers = {
        name: make(params[name]) for name, make in contestants(method).items()
    }
    uneven = uneven_steps(row, extent)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    source = row.gradients()
    gc.collect()
    gc.disable()
    for step in tqdm(
        range(uneven + extent.rounds), desc=method, disable=None, leave=False
    ):
        gradients = next(source)
        for name, optimizer in optimizers.items():
            take(params[name], gradients)
            duration = seconds(optimizer.step)
            optimizer.zero_grad()
            if step >= uneven:
                times[name].append(duration)
    gc.enable()
    return times


def cells(times: dict[str, list[float]]) -> list[str]:
    default, compiled = times["default"], times["compiled"]
    milliseconds = [1e3 * statistics.median(own) for own in (default, compiled)]
    over_foreach, over_fused = "", ""
    if "foreach" in times:
        over_foreach = f"{ratio(default, times['foreach']):.2f}"
        over_fused = f"{ratio(compiled, times['fused']):.2f}"
    return [
        f"{milliseconds[0]:.2f}",
        over_foreach,
        f"{milliseconds[1]:.2f}",
        over_fused,
        f"{ratio(compiled, default):.2f}",
    ]


def has_transformers() -> bool:
    return importlib.util.find_spec("transformers") is not None


def print_steps(method: str, names: list[str], extent: Extent) -> None:
    print(f"\n{method}\n")
    print(
        "| leaves | default, ms | over foreach | compiled, ms | over fused | compiled over default |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    for name in names:
        row = ROWS[name]
        title = row.title.format(uneven=uneven_steps(row, extent))
        if name in OF_MODELS and not has_transformers():
            print(f"| {title} | skipped: transformers is not installed |||||")
            continue
        values = cells(steps(row, method, extent))
        print(f"| {title} | {' | '.join(values)} |", flush=True)


# Pure updates


def pure(leaves: int, extent: Extent) -> dict[str, list[float]]:
    """Return the seconds of `update` and of its definition, `gradtx.eagerly()`, on the same trees."""
    tx: Any = gradtx.adamw(lr=1e-3)
    names = [f"layers.{i}.weight" for i in range(leaves)]
    params = dict(zip(names, parameters_like([SHAPE] * leaves), strict=True))
    params = {name: param.detach() for name, param in params.items()}
    states = {way: tx.init(params) for way in ("update", "definition")}
    times: dict[str, list[float]] = {way: [] for way in states}

    def update(way: str, tree: dict[str, torch.Tensor | None]) -> None:
        _, states[way] = tx.update(tree, states[way], params)

    def definition(tree: dict[str, torch.Tensor | None]) -> None:
        with gradtx.eagerly():
            update("definition", tree)

    source = random_gradients(some(leaves, 0.7))
    for step in tqdm(
        range(4 + extent.rounds), desc=f"pure, {leaves}", disable=None, leave=False
    ):
        tree = dict(zip(names, next(source), strict=True))
        own = seconds(lambda tree=tree: update("update", tree))
        theirs = seconds(lambda tree=tree: definition(tree))
        if step >= 4:
            times["update"].append(own)
            times["definition"].append(theirs)
    return times


def print_pure(extent: Extent) -> None:
    print("\nPure updates of AdamW, None for a random 30%, another in each call\n")
    print("| leaves | update, ms | over the definition |\n|---|---:|---:|")
    for leaves in (16, 64):
        times = pure(leaves, extent)
        milliseconds = 1e3 * statistics.median(times["update"])
        over = ratio(times["update"], times["definition"])
        print(f"| {leaves} | {milliseconds:.2f} | {over:.2f} |", flush=True)


# Launches


def launches_after_uneven_steps(method: str, extent: Extent) -> tuple[int, int]:
    """Return the launches of kernels in a step of some leaves, and in one of all leaves."""
    params = parameters_like([SHAPE] * 160)
    optimizer = contestants(method)["compiled"](params)
    source = random_gradients(some(160, 0.3))
    for _ in tqdm(
        range(round(150 * extent.uneven)), desc=method, disable=None, leave=False
    ):
        take(params, next(source))
        optimizer.step()
        optimizer.zero_grad()
    of_some = len(optimizer.explain().launches)
    take(params, next(random_gradients(everything(160))))
    optimizer.step()
    return of_some, len(optimizer.explain().launches)


def launches_of_groups(groups: int) -> int:
    """Return the launches of kernels where groups have other rates."""
    params = parameters_like([SHAPE] * 160)
    take(params, next(random_gradients(everything(160))))
    settings = [
        {"params": params[i::groups], "lr": 1e-3 * 0.9**i} for i in range(groups)
    ]
    optimizer = gradtx.optim.AdamW(settings, compile=True)
    optimizer.step()
    return len(optimizer.explain().launches)


def print_launches(extent: Extent) -> None:
    steps_before = round(150 * extent.uneven)
    print(f"\nLaunches of kernels, 160 leaves after {steps_before} uneven steps\n")
    print("| | some leaves | all leaves |\n|---|---:|---:|")
    for method in ("AdamW", "clip + AdamW"):
        of_some, of_all = launches_after_uneven_steps(method, extent)
        print(f"| {method} | {of_some} | {of_all} |", flush=True)


def print_groups(extent: Extent) -> None:
    print("\nLaunches of kernels, AdamW, 160 leaves in groups with other rates\n")
    print("| groups | launches |\n|---|---:|")
    for groups in (1, 23, 160):
        print(f"| {groups} | {launches_of_groups(groups)} |", flush=True)


# First steps

FIRST_STEP = """
import time
import torch, gradtx
torch.set_num_threads(1)
params = [torch.nn.Parameter(torch.ones(shape)) for shape in {shapes}]
for param in params:
    param.grad = torch.ones_like(param)
optimizer = {optimizer}
start = time.perf_counter()
optimizer.step()
print(time.perf_counter() - start)
"""
OPTIMIZERS = {
    "foreach": "torch.optim.AdamW(params, foreach=True)",
    "default": "gradtx.optim.AdamW(params)",
    "compiled": "gradtx.optim.AdamW(params, compile=True)",
}
LISTS_OF_SHAPES: dict[str, Shapes] = {
    "40 leaves of one shape": [SHAPE] * 40,
    "40 leaves of 40 shapes": [(44 + i, 64) for i in range(40)],
}


def first_step(optimizer: str, shapes: Shapes) -> float:
    """Return the seconds of the first step in a new process."""
    code = FIRST_STEP.format(shapes=shapes, optimizer=OPTIMIZERS[optimizer])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def print_first_steps(extent: Extent) -> None:
    print("\nFirst step of AdamW in a new process, ms\n")
    print(f"| | {' | '.join(OPTIMIZERS)} |\n|---|{'---:|' * len(OPTIMIZERS)}")
    for title, shapes in LISTS_OF_SHAPES.items():
        values: list[str] = []
        for optimizer in tqdm(OPTIMIZERS, desc=title, disable=None, leave=False):
            durations = [first_step(optimizer, shapes) for _ in range(extent.processes)]
            values.append(f"{1e3 * statistics.median(durations):.0f}")
        print(f"| {title} | {' | '.join(values)} |", flush=True)


OTHER_TABLES: dict[str, Callable[[Extent], None]] = {
    "pure": print_pure,
    "launches": print_launches,
    "groups": print_groups,
    "first": print_first_steps,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    choices = [*ROWS, *OTHER_TABLES]
    parser.add_argument("--quick", action="store_true", help="few steps of each row")
    parser.add_argument(
        "--only", nargs="+", choices=choices, default=choices, metavar="ROW",
        help=f"rows to print, of {', '.join(choices)}",
    )  # fmt: skip
    arguments = parser.parse_args()
    extent = copy.copy(QUICK if arguments.quick else Extent())
    torch.set_num_threads(1)
    print(machine())
    rows = [name for name in ROWS if name in arguments.only]
    if rows:
        for method in tqdm(TRANSFORMATIONS, desc="methods", disable=None, leave=False):
            print_steps(method, rows, extent)
    for name, print_table in OTHER_TABLES.items():
        if name in arguments.only:
            print_table(extent)


if __name__ == "__main__":
    main()
