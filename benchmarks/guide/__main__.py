"""Run the guide's benchmark: `python -m benchmarks.guide --task digits [--optimizers adamw,muon] [--seeds 3]`.

Results are stored in benchmarks/guide/results, one file per task, after each optimizer; what a file has is not run
again, unless `--again` asks for it. PROTOCOL.md says what is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import gradtx
from benchmarks.guide.entries import Entry, entries
from benchmarks.guide.results import FOLDER, mean_of
from benchmarks.guide.tasks import TASKS, Task
from benchmarks.guide.toys import run_toys

RATES, FACTOR, WIDENINGS = 7, 3.0, 6
RECORDS = 20  # of a run; the last is the mean of the last 5% of the losses
LIMIT = 20 * 60  # seconds per optimizer and task


def grid(centre: float) -> list[float]:
    """Return the rates around a centre."""
    half = RATES // 2
    return [centre * FACTOR**i for i in range(-half, half + 1)]


def train(
    task: Task,
    entry: Entry,
    rates: list[float],
    seeds: Sequence[int],
    steps: int,
    **options: Any,
) -> gradtx.Sweep:
    over: dict[str, list[Any]] = {"rate": rates}
    if len(entry.decays) > 1:
        over["weight_decay"] = list(entry.decays)
    return gradtx.sweep(
        task.loss,
        entry.make(steps),
        task.params,
        task.batch,
        over,
        seeds=seeds,
        steps=steps,
        every=max(1, steps // RECORDS),
        eval_fn=task.held_out,
        progress=False,
        **options,
    )


def seconds_needed(task: Task, entry: Entry, seeds: Sequence[int], steps: int) -> float:
    """Estimate the time of the first grid from two short runs."""
    times: list[float] = []
    for count in (2, 6):
        start = time.perf_counter()
        train(task, entry, grid(entry.centre), seeds, count)
        times.append(time.perf_counter() - start)
    return times[0] + (times[1] - times[0]) / 4 * steps


def rows_of(result: gradtx.Sweep, key: str) -> list[dict[str, Any]]:
    """Return a row per setting: rate, weight decay, the final value of each seed (None if it diverged)."""
    rows: dict[tuple[float, float], dict[str, Any]] = {}
    last = max(record["step"] for record in result.records)
    for record in result.records:
        if record["step"] != last:
            continue
        setting = record["rate"], record.get("weight_decay", 0.0)
        row = rows.setdefault(
            setting, {"rate": setting[0], "decay": setting[1], "final": []}
        )
        final = record[key]
        row["final"].append(
            None if record["diverged"] or not math.isfinite(final) else _short(final)
        )
    return list(rows.values())


def curve_of(result: gradtx.Sweep, row: dict[str, Any]) -> list[float]:
    """Return the mean loss of a setting at each record."""
    by_step: dict[int, list[float]] = {}
    for record in result.records:
        if (
            record["rate"] == row["rate"]
            and record.get("weight_decay", 0.0) == row["decay"]
        ):
            by_step.setdefault(record["step"], []).append(record["loss"])
    return [_short(statistics.fmean(values)) for values in by_step.values()]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def measure(task: Task, entry: Entry, seeds: Sequence[int]) -> dict[str, Any]:
    """Train an optimizer at all rates, and widen the grid until the best is inside."""
    steps = task.steps // entry.gradients
    start = time.perf_counter()
    all_seeds, seeds = seeds, seeds[: task.grid_seeds]
    estimate = seconds_needed(task, entry, seeds, steps)
    if estimate > LIMIT and len(seeds) > 1:
        estimate /= len(seeds)
        seeds = all_seeds = seeds[:1]
    if estimate > LIMIT:
        return {"skipped": f"would take {estimate / 60:.0f} minutes"}
    key = "loss" if task.held_out is None else "eval"
    rows: list[dict[str, Any]] = []
    curves: dict[int, list[float]] = {}
    rates, widened = grid(entry.centre), 0
    while True:
        result = train(task, entry, rates, seeds, steps)
        new = rows_of(result, key)
        for row in new:
            curves[id(row)] = curve_of(result, row)
        rows = sorted([*rows, *new], key=lambda row: (row["decay"], row["rate"]))
        best = min(rows, key=mean_of)
        tried = sorted({row["rate"] for row in rows})
        at_low, at_high = best["rate"] == tried[0], best["rate"] == tried[-1]
        if not (at_low or at_high) or widened == WIDENINGS:
            break
        widened += 1
        step = 1 / FACTOR if at_low else FACTOR
        rates = [best["rate"] * step, best["rate"] * step**2]
    if len(seeds) < len(all_seeds):
        rates = [best["rate"] * FACTOR**i for i in (-1, 0, 1)]
        inner = dataclasses.replace(entry, decays=(best["decay"],))
        result = train(
            task, inner, rates, all_seeds, steps, fixed={"weight_decay": best["decay"]}
        )
        again = [{**row, "decay": best["decay"]} for row in rows_of(result, key)]
        places = {(round(math.log(row["rate"]), 6), row["decay"]) for row in again}
        rows = [
            row
            for row in rows
            if (round(math.log(row["rate"]), 6), row["decay"]) not in places
        ]
        rows = sorted([*rows, *again], key=lambda row: (row["decay"], row["rate"]))
        best = min(again, key=mean_of)
        curves[id(best)] = curve_of(result, {**best, "decay": 0.0})
    state = entry.make(steps)(rate=entry.centre).init(task.params(0))
    return {
        "centre": entry.centre,
        "rows": [{**row, "rate": _short(row["rate"])} for row in rows],
        "curve": curves[id(best)],
        "seeds": len(all_seeds),
        "steps": steps,
        "gradients": entry.gradients,
        "widened": widened,
        "at_edge": bool(at_low or at_high),
        "state": _short(floats_of(state) / floats_of(task.params(0))),
        "seconds": round(time.perf_counter() - start),
    }


def floats_of(tree: Any) -> int:
    if isinstance(tree, torch.Tensor):
        return tree.numel() if tree.ndim else 0
    return (
        sum(floats_of(value) for value in tree.values())
        if isinstance(tree, dict)
        else 0
    )


def machine() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "gradtx": gradtx.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "date": datetime.date.today().isoformat(),
    }


def save(path: Path, content: dict[str, Any]) -> None:
    """Write results, an optimizer per line, so that differences are readable."""
    head = json.dumps({k: v for k, v in content.items() if k != "optimizers"})
    lines = [
        f"{json.dumps(name)}: {json.dumps(row)}"
        for name, row in sorted(content["optimizers"].items())
    ]
    body = ",\n".join(lines)
    new = path.with_suffix(".new")
    new.write_text(f'{head[:-1]}, "optimizers": {{\n{body}\n}}}}\n', encoding="utf-8")
    new.replace(path)


def run_task(
    task: Task, chosen: list[str], seeds: Sequence[int], again: bool, folder: Path
) -> None:
    path = folder / f"{task.name}.json"
    content = {"task": task.name, "seeds": len(seeds), "optimizers": {}}
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
    content["machine"] = machine()
    todo = [name for name in chosen if again or name not in content["optimizers"]]
    known = entries()
    for name in (bar := tqdm(todo, desc=task.name, disable=None)):
        bar.set_postfix_str(name)
        try:
            content["optimizers"][name] = measure(task, known[name], seeds)
        except (RuntimeError, TypeError, ValueError) as error:
            content["optimizers"][name] = {
                "skipped": " ".join(str(error).split())[:200]
            }
        save(path, content)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guide", description=__doc__
    )
    parser.add_argument("--task", choices=[*TASKS, "toys", "all"], default="all")
    parser.add_argument(
        "--optimizers", help="names, separated by commas; all by default"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--again", action="store_true", help="also what is already measured"
    )
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="the folder of the results"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    names = list(entries())
    chosen = options.optimizers.split(",") if options.optimizers else names
    for name in chosen:
        if name not in names:
            parser.error(f"unknown optimizer {name!r}; known: {', '.join(names)}")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    for task in (
        TASKS.values()
        if options.task == "all"
        else [TASKS[n] for n in TASKS if n == options.task]
    ):
        run_task(task, chosen, seeds, options.again, options.out)
    if options.task in ("toys", "all"):
        run_toys(chosen, options.again, options.out, save, machine())


if __name__ == "__main__":
    main()
