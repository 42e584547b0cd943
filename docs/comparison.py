"""Run the libraries of the README's comparison table and write the table: `make docs-tables`.

If a library cannot be imported, its cells keep the values of the last run (docs/comparison.json). TorchOpt needs the
graphviz package only for its plots, so a stub replaces it if it is missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import gradtx

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RECORD = Path(__file__).with_name("comparison.json")
ROWS = (
    "works on",
    "an optimizer is",
    "as a `torch.optim.Optimizer`",
    "one `torch.vmap` over learning rates",
    "reproduced step for step here",
)
# Module -> title, in the order of the columns.
LIBRARIES = {
    "gradtx": "gradtx",
    "torchopt": "TorchOpt",
    "optax": "optax",
    "pytorch_optimizer": "pytorch_optimizer",
    "torch.optim": "torch.optim",
}
FUNCTIONS, CLASS = "a value: a chain of pure functions", "a class"
RATES = torch.tensor([0.1, 0.2], dtype=torch.float64)
STEPS = 5
NOT_OF_TORCH = (
    "LBFGS",
    "SparseAdam",
)  # tests/optim/test_equals_torch.py runs the others; our LBFGS takes one step per call

# Optimizers of TorchOpt, and those of gradtx that take the same steps.
OF_TORCHOPT: dict[str, tuple[dict[str, Any], Any]] = {
    "sgd": (
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        gradtx.sgd(lr=0.1, momentum=0.9, nesterov=True),
    ),
    "adam": ({"lr": 0.1}, gradtx.adam(lr=0.1)),
    "adamw": ({"lr": 0.1, "weight_decay": 0.1}, gradtx.adamw(lr=0.1, weight_decay=0.1)),
    "adamax": ({"lr": 0.1}, gradtx.adamax(lr=0.1, eps=1e-6)),
    "adadelta": ({"lr": 0.1}, gradtx.adadelta(lr=0.1)),
    "adagrad": ({"lr": 0.1}, gradtx.adagrad(lr=0.1)),
    "radam": ({"lr": 0.1}, gradtx.radam(lr=0.1, eps=1e-6)),
    "rmsprop": ({"lr": 0.1, "momentum": 0.9}, gradtx.rmsprop(lr=0.1, momentum=0.9)),
}


def imported(name: str) -> Any:
    """Import a library.

    Raises:
        ImportError: If the library is not installed.
    """
    if name == "torchopt":
        try:
            importlib.import_module("graphviz")
        except ImportError:
            sys.modules["graphviz"] = types.SimpleNamespace(Digraph=object)  # type: ignore[assignment]
    return importlib.import_module(name)


def optimizer_classes(module: Any) -> list[type]:
    """Return the torch optimizers among the classes of a module, without torch's base class."""
    classes: list[type] = []
    for item in vars(module).values():
        if (
            isinstance(item, type)
            and issubclass(item, torch.optim.Optimizer)
            and item is not torch.optim.Optimizer
        ):
            classes.append(item)
    return classes


# A step of each library, as a function of the rate.


def start() -> torch.Tensor:
    return torch.tensor([1.0, -2.0], dtype=torch.float64)


def step_of_class(make: Any, lr: Any) -> torch.Tensor:
    weight = start().requires_grad_()
    optimizer = make([weight], lr=lr)
    weight.grad = weight.detach().clone()
    optimizer.step()
    return weight.detach()


def step_of_functions(
    tx: Any, apply: Callable[..., Any], **options: Any
) -> torch.Tensor:
    params = {"weight": start()}
    updates, _ = tx.update(
        {"weight": start()}, tx.init(params), params=params, **options
    )
    return apply(params, updates, **options)["weight"]


def runs_under_vmap(step: Callable[[Any], torch.Tensor]) -> str:
    """Return "yes" if a step works under `torch.vmap` over learning rates, else "no"."""
    expected = torch.stack([step(rate.item()) for rate in RATES])
    try:
        steps = torch.vmap(step)(RATES)
    except (RuntimeError, TypeError, ValueError):
        return "no"
    torch.testing.assert_close(steps, expected, rtol=1e-12, atol=0)
    return "yes"


def kind(optimizer: Any) -> str:
    return (
        FUNCTIONS
        if hasattr(optimizer, "init") and hasattr(optimizer, "update")
        else CLASS
    )


def of_gradtx(module: Any) -> tuple[str, ...]:
    classes = set(module.optim.__all__) - {"ChainOptimizer", "as_optimizer"}
    optimizer = module.as_optimizer(
        module.chain(module.centralize(), module.sgd(lr=0.1)),
        [start().requires_grad_()],
    )
    assert isinstance(optimizer, torch.optim.Optimizer)
    vmapped = runs_under_vmap(
        lambda lr: step_of_functions(module.adamw(lr=lr), module.apply_updates)
    )
    return (
        "torch tensors",
        kind(module.adamw()),
        f"any chain, and {len(classes)} classes",
        vmapped,
        "",
    )


def of_torchopt(module: Any) -> tuple[str, ...]:
    def step(lr: Any) -> torch.Tensor:
        return step_of_functions(
            module.adamw(lr=lr), module.apply_updates, inplace=False
        )

    same = [name for name in OF_TORCHOPT if takes_the_same_steps(module, name)]
    classes = optimizer_classes(module)
    return (
        "torch tensors",
        kind(module.adamw()),
        f"{len(classes)} classes" if classes else "no",
        runs_under_vmap(step),
        f"{len(same)} of {len(OF_TORCHOPT)} optimizers",
    )


def takes_the_same_steps(module: Any, name: str) -> bool:
    options, ours = OF_TORCHOPT[name]
    theirs = getattr(module, name)(**options)
    params, here = {"weight": start()}, {"weight": start()}
    state, state_here = theirs.init(params), ours.init(here)
    for step in range(STEPS):
        gradient = {"weight": start() * (step - 1.5)}
        updates, state = theirs.update(gradient, state, params=params, inplace=False)
        params = module.apply_updates(params, updates, inplace=False)
        updates, state_here = ours.update(gradient, state_here, here)
        here = gradtx.apply_updates(here, updates)
    # TorchOpt corrects biases in float32.
    return torch.allclose(params["weight"], here["weight"], rtol=0, atol=1e-5)


def of_optax(module: Any) -> tuple[str, ...]:
    import jax  # type: ignore[import-not-found]

    tx, params = module.adamw(0.1), jax.numpy.ones(2)
    updates, _ = tx.update(params, tx.init(params), params)
    assert isinstance(updates, jax.Array)
    return "jax arrays", kind(tx), "–", "–", calls_of_optax()


def calls_of_optax() -> str:
    """Return the number of calls that tests/test_optax_names.py runs in both libraries."""
    names = runpy.run_path(str(ROOT / "docs" / "optax_names.py"))
    calls = 0
    for rows in names["SECTIONS"].values():
        calls += sum(row.mark == "=" for row in rows)
    return f"{calls} calls"


def of_pytorch_optimizer(module: Any) -> tuple[str, ...]:
    classes = optimizer_classes(module.optimizer) or optimizer_classes(module)
    assert classes
    count = len(module.optimizer.OPTIMIZER_LIST)
    vmapped = runs_under_vmap(lambda lr: step_of_class(module.AdamP, lr))
    return (
        "torch tensors",
        kind(module.AdamP),
        f"{count} classes",
        vmapped,
        "its classes, with the exceptions stated",
    )


def of_torch(module: Any) -> tuple[str, ...]:
    classes = optimizer_classes(module)
    both = [cls for cls in classes if cls.__name__ not in NOT_OF_TORCH]
    vmapped = runs_under_vmap(lambda lr: step_of_class(module.AdamW, lr))
    reproduced = f"{len(both)} of {len(classes)} classes"
    return (
        "torch tensors",
        kind(module.AdamW),
        f"{len(classes)} classes",
        vmapped,
        reproduced,
    )


MEASURES: dict[str, Callable[[Any], tuple[str, ...]]] = {
    "gradtx": of_gradtx,
    "torchopt": of_torchopt,
    "optax": of_optax,
    "pytorch_optimizer": of_pytorch_optimizer,
    "torch.optim": of_torch,
}


def column(name: str) -> dict[str, Any]:
    """Measure a column of the table.

    Raises:
        ImportError: If the library is not installed.
    """
    module = imported(name)
    version = (
        "" if name in ("gradtx", "torch.optim") else importlib.metadata.version(name)
    )
    return {"version": version, "cells": list(MEASURES[name](module))}


def measured(record: dict[str, Any]) -> dict[str, Any]:
    """Measure all columns; those of libraries that are not installed are taken from the record."""
    columns: dict[str, Any] = {}
    for name in LIBRARIES:
        try:
            columns[name] = column(name)
        except ImportError:
            columns[name] = record[name]
    return columns


def table(columns: dict[str, Any]) -> str:
    titles = [
        f"{title} {columns[name]['version']}".strip()
        for name, title in LIBRARIES.items()
    ]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for i, row in enumerate(ROWS):
        cells = " | ".join(columns[name]["cells"][i] for name in LIBRARIES)
        lines.append(f"| {row} | {cells} |")
    return "\n".join(lines).replace("|  |", "| |")


def page(columns: dict[str, Any]) -> str:
    """Return the README with this table."""
    text = README.read_text(encoding="utf-8")
    return re.sub(
        r"\| \| gradtx \|.*?\n\n",
        lambda _: table(columns) + "\n\n",
        text,
        count=1,
        flags=re.DOTALL,
    )


def main() -> None:
    columns = measured(json.loads(RECORD.read_text(encoding="utf-8")))
    RECORD.write_text(
        json.dumps(columns, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    README.write_text(page(columns), encoding="utf-8")
    print("wrote", RECORD, "and the table of", README)


if __name__ == "__main__":
    main()
