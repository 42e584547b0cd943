"""The random streams that a process shares, so that what must have no effect can leave them as they are."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


class RandomStreams:
    """The states of the generators of torch, of Python, and of NumPy if it is loaded, as they are now."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._devices = (
            torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        )
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy: Any = None if numpy is None else numpy.random.get_state()

    def restore(self) -> None:
        """Set the generators back to these states."""
        torch.set_rng_state(self._cpu)
        if self._devices:
            torch.cuda.set_rng_state_all(self._devices)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
