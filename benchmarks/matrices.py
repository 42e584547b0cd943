"""Compare step times of matrix methods (Muon + AdamW, SOAP, PSGD) with other packages on the tensors of a GPT.

Another table has Muon's relatives beside it, on the hidden matrices alone.

`python benchmarks/matrices.py` prints the tables of docs/performance.md. Packages that are not installed are
left out. `--peers` names folders with modules that are on no package index: `dion` (microsoft/dion), `soap`
(nikhilvyas/SOAP) and `kron_torch` (evanatyourservice/kron_torch).
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

from common import Shapes, gpt, interleaved, machine, parameters, ratio

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import torch
from tqdm import tqdm

import gradtx

Step = Callable[[], object]
Make = Callable[[list[torch.Tensor]], Step]
MUON: dict[str, Any] = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
ADAMW: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.0}
TORCH_MUON = "torch Muon + AdamW, fused"
FREQUENCY = 10  # steps between renewals of SOAP's bases
KRON: dict[str, Any] = {"lr": 3e-4, "weight_decay": 0.01}
SOAP: dict[str, Any] = {
    "lr": 3e-3,
    "betas": (0.95, 0.95),
    "weight_decay": 0.01,
    "precondition_frequency": FREQUENCY,
}


def is_hidden(shape: torch.Size) -> bool:
    """Whether a GPT's tensor is a hidden matrix, not a token or position embedding."""
    return len(shape) == 2 and max(shape) <= 4 * min(shape)


def split(params: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the hidden matrices and all other parameters."""
    matrices = [param for param in params[2:] if is_hidden(param.shape)]
    others = [
        *params[:2],
        *(param for param in params[2:] if not is_hidden(param.shape)),
    ]
    return matrices, others


def both(first: Step, second: Step) -> Step:
    def step() -> None:
        first()
        second()

    return step


def with_gradients(optimizer: Any, params: list[torch.Tensor]) -> Step:
    """Return a step that restores the gradients first, for optimizers that remove them."""
    gradients = [param.grad for param in params]

    def step() -> None:
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = gradient
        optimizer.step()

    return step


# Muon for matrices, AdamW for the rest.


def torch_muon(params: list[torch.Tensor]) -> Step:
    matrices, others = split(params)
    return both(
        torch.optim.Muon(matrices, **MUON).step,
        torch.optim.AdamW(others, fused=True, **ADAMW).step,
    )


def pytorch_optimizer_muon(params: list[torch.Tensor]) -> Step:
    matrices, others = split(params)
    groups = [
        {"params": matrices, "use_muon": True},
        {"params": others, "use_muon": False},
    ]
    return (
        installed("pytorch_optimizer")
        .Muon(groups, **MUON, adamw_betas=ADAMW["betas"])
        .step
    )


def heavyball_muon(params: list[torch.Tensor]) -> Step:
    matrices, others = split(params)
    heavyball = installed("heavyball")
    muon = heavyball.Muon(
        matrices, lr=MUON["lr"], betas=(0.95, 0.95), weight_decay=MUON["weight_decay"]
    )
    return both(
        with_gradients(muon, matrices),
        with_gradients(heavyball.AdamW(others, **ADAMW), others),
    )


def dion_muon(params: list[torch.Tensor]) -> Step:
    matrices, others = split(params)
    options = {
        "lr": MUON["lr"],
        "mu": MUON["momentum"],
        "weight_decay": MUON["weight_decay"],
        "nesterov": True,
    }
    groups = [
        {"params": matrices},
        {
            "params": others,
            "algorithm": "adamw",
            "lr": ADAMW["lr"],
            "weight_decay": 0.0,
        },
    ]
    return installed("dion").Muon(groups, use_polar_express=False, **options).step


def gradtx_muon(**options: Any) -> Make:
    """Return Muon and AdamW combined by `partition`; `options` are those of `muon`, and `compile`."""
    compiled = options.pop("compile", False)

    def make(params: list[torch.Tensor]) -> Step:
        matrices, _ = split(params)
        chosen = {id(param) for param in matrices}
        named = {f"p{i}": param for i, param in enumerate(params)}
        names = tuple(name for name, param in named.items() if id(param) in chosen)
        branches = {
            "matrices": gradtx.muon(**MUON, **options),
            "rest": gradtx.adamw(**ADAMW),
        }
        tx = gradtx.partition(branches, {"matrices": names, "rest": "*"})
        return gradtx.as_optimizer(tx, list(named.items()), compile=compiled).step

    return make


# SOAP for all parameters.


def author_soap(params: list[torch.Tensor]) -> Step:
    return installed("soap").SOAP(params, **SOAP).step


def heavyball_soap(params: list[torch.Tensor]) -> Step:
    options = {
        **SOAP,
        "use_precond_schedule": False,
        "merge_dims": False,
        "max_precond_dim": 10000,
    }
    return with_gradients(installed("heavyball").SOAP(params, **options), params)


def gradtx_soap(compile: bool) -> Make:
    return lambda params: gradtx.optim.SOAP(params, **SOAP, compile=compile).step


# PSGD Kron for all parameters, whose factors are updated in each of the first 500 steps.


def author_kron(params: list[torch.Tensor]) -> Step:
    return installed("kron_torch").Kron(params, **KRON).step


def pytorch_optimizer_kron(params: list[torch.Tensor]) -> Step:
    return installed("pytorch_optimizer").Kron(params, **KRON).step


def heavyball_kron(params: list[torch.Tensor]) -> Step:
    return with_gradients(installed("heavyball").PSGDKron(params, **KRON), params)


def gradtx_kron(probes: Literal["expected", "random"]) -> Make:
    return lambda params: gradtx.optim.PSGDKron(params, **KRON, probes=probes).step


def gradtx_of_matrices(name: str, compile: bool) -> Make:
    """Return a method with its defaults, in float32, for the hidden matrices."""
    options = {"ns_dtype": None} if name == "muon" else {}

    def make(params: list[torch.Tensor]) -> Step:
        tx = getattr(gradtx, name)(**options)
        return gradtx.as_optimizer(tx, split(params)[0], compile=compile).step

    return make


def installed(name: str) -> Any:
    return importlib.import_module(name)


MUONS: dict[str, Make] = {
    TORCH_MUON: torch_muon,
    "pytorch_optimizer Muon": pytorch_optimizer_muon,
    "HeavyBall Muon + AdamW, compiled": heavyball_muon,
    "dion Muon, compiled": dion_muon,
    "gradtx Muon + AdamW": gradtx_muon(),
    "gradtx Muon + AdamW, compiled": gradtx_muon(compile=True),
    "gradtx, iteration in float32": gradtx_muon(ns_dtype=None),
    "gradtx, iteration in float32, compiled": gradtx_muon(ns_dtype=None, compile=True),
}
RELATIVES = (
    *("muon", "muon_eq", "normuon", "adamuon", "mud", "mano", "namo_d", "adago"),
    *("sinkgd", "aro", "asgo", "mousse", "cosmos", "soap"),
)
AUTHOR_SOAP = "nikhilvyas SOAP"
SOAPS: dict[str, Make] = {
    AUTHOR_SOAP: author_soap,
    "HeavyBall SOAP, compiled": heavyball_soap,
    "gradtx SOAP": gradtx_soap(False),
    "gradtx SOAP, compiled": gradtx_soap(True),
}
AUTHOR_KRON = "kron_torch"
KRONS: dict[str, Make] = {
    AUTHOR_KRON: author_kron,
    "pytorch_optimizer Kron": pytorch_optimizer_kron,
    "HeavyBall PSGDKron, compiled": heavyball_kron,
    "gradtx PSGDKron": gradtx_kron("expected"),
    "gradtx PSGDKron, random probes": gradtx_kron("random"),
}


def steps_of(
    contestants: dict[str, Make], shapes: Shapes
) -> tuple[dict[str, Step], dict[str, float], list[str]]:
    """Return the available contestants' steps, the seconds of their first steps, and why others are missing."""
    steps: dict[str, Step] = {}
    first: dict[str, float] = {}
    missing: list[str] = []
    for name, make in tqdm(
        contestants.items(), desc="first steps", disable=None, leave=False
    ):
        try:
            step = make(parameters(shapes))
            start = time.perf_counter()
            step()
        except Exception as error:
            # An error of another package becomes a line below the table.
            reason = str(error).strip().splitlines() or [""]
            missing.append(f"{name}: {type(error).__name__}: {reason[0][:120]}")
            continue
        steps[name] = step
        first[name] = time.perf_counter() - start
    return steps, first, missing


def table(
    title: str,
    contestants: dict[str, Make],
    shapes: Shapes,
    reference: str,
    rounds: int,
    per_round: int,
) -> str:
    """Return a Markdown table of each contestant's step time."""
    steps, first, missing = steps_of(contestants, shapes)
    times = interleaved(
        {name: repeated(step, per_round) for name, step in steps.items()}, rounds, 1
    )
    against = reference if reference in times else next(iter(times))
    lines = [
        f"{title}: {len(shapes)} tensors, {sum(map(math.prod, shapes)) / 1e6:.1f} million entries, float32.",
        "",
        "| optimizer | ms per step (median) | minimum | ratio to the first row | first step, s |",
        "|---|---|---|---|---|",
    ]
    for name, own in times.items():
        median, least = (
            1e3 * value / per_round for value in (statistics.median(own), min(own))
        )
        share = ratio(own, times[against])
        lines.append(
            f"| {name} | {median:.1f} | {least:.1f} | {share:.2f} | {first[name]:.1f} |"
        )
    lines += [f"\nLeft out: {reason}" for reason in missing]
    return "\n".join(lines)


def repeated(step: Step, count: int) -> Step:
    def steps() -> None:
        for _ in range(count):
            step()

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--width", type=int, default=384, help="width of the GPT for Muon"
    )
    parser.add_argument(
        "--soap-width", type=int, default=128, help="width of the GPT for SOAP, PSGD"
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--peers", nargs="*", default=[], help="folders with further modules"
    )
    parser.add_argument(
        "--only",
        choices=("muon", "relatives", "soap", "psgd"),
        help="print only this table",
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    sys.path.extend(arguments.peers)
    torch.set_num_threads(arguments.threads)
    if arguments.only in (None, "muon"):
        shapes = gpt(arguments.width, arguments.layers)
        title = f"Muon, a GPT of {arguments.layers} layers, width {arguments.width}"
        print(table(title, MUONS, shapes, TORCH_MUON, arguments.rounds, 1), flush=True)
    shapes = gpt(arguments.soap_width, arguments.layers, words=1024)
    size = f"{arguments.layers} layers, width {arguments.soap_width}"
    if arguments.only in (None, "relatives"):
        title = f"Muon's relatives, matrices of a GPT of {size}"
        contestants = {
            f"{name}{', compiled' if compile else ''}": gradtx_of_matrices(
                name, compile
            )
            for name in RELATIVES
            for compile in (False, True)
        }
        print(
            table(title, contestants, shapes, "muon", arguments.rounds, FREQUENCY),
            flush=True,
        )
    if arguments.only in (None, "soap"):
        title = f"SOAP, a GPT of {size}, bases renewed every {FREQUENCY} steps"
        print(
            table(title, SOAPS, shapes, AUTHOR_SOAP, arguments.rounds, FREQUENCY),
            flush=True,
        )
    if arguments.only in (None, "psgd"):
        title = f"PSGD Kron, a GPT of {size}, factors updated in every step"
        print(table(title, KRONS, shapes, AUTHOR_KRON, arguments.rounds, 1), flush=True)
    print(machine(), f"of which {arguments.threads} were used")


if __name__ == "__main__":
    main()
