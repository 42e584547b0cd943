"""Print the memory that a load or a first step needs at its peak, in bytes; `beside.py` starts a process for each.

python benchmarks/beside_memory.py load default float32 20000000
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import gradtx

# Not those of `rows`, which sets the allocator to keep freed memory.
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "default": lambda params: gradtx.optim.AdamW(params),
    "compiled": lambda params: gradtx.optim.AdamW(params, compile=True),
    "foreach": lambda params: torch.optim.AdamW(params, foreach=True),
    "fused": lambda params: torch.optim.AdamW(params, fused=True),
}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(name: str) -> int:
    """Return the resident memory of this process (VmRSS) or its peak (VmHWM)."""
    lines = STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def peak_of(call: Callable[[], object]) -> int:
    """Return how much memory a call needs at its peak beyond what was there before."""
    CLEAR.write_text("5")  # reset the peak
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def with_gradient(dtype: torch.dtype, entries: int) -> torch.nn.Parameter:
    param = torch.nn.Parameter(torch.ones(entries // 4, 4, dtype=dtype))
    param.grad = torch.ones_like(param)
    return param


def load(make: Callable[[Any], Any], dtype: torch.dtype, entries: int) -> int:
    """Return the peak of a load into an optimizer that has not stepped, and of the step after it."""
    quarters = [with_gradient(dtype, entries // 4) for _ in range(4)]
    trained = make(quarters)
    trained.step()
    saved = trained.state_dict()
    optimizer = make([with_gradient(dtype, entries // 4) for _ in range(4)])

    def load_and_step() -> None:
        optimizer.load_state_dict(saved)
        optimizer.step()

    return peak_of(load_and_step)


def first_step(make: Callable[[Any], Any], dtype: torch.dtype, entries: int) -> int:
    optimizer = make([with_gradient(dtype, entries)])
    return peak_of(optimizer.step)


CASES = {"load": load, "first": first_step}


def main() -> None:
    case, mode, dtype, entries = sys.argv[1:]
    small = OPTIMIZERS[mode]([with_gradient(getattr(torch, dtype), 64)])
    small.step()  # what every first step loads into memory
    small.load_state_dict(small.state_dict())
    print(CASES[case](OPTIMIZERS[mode], getattr(torch, dtype), int(entries)))


if __name__ == "__main__":
    main()
