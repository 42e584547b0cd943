"""Train one member per setting and seed in a vmapped loop, and compare the members."""

from gradtx.sweeps.result import Sweep
from gradtx.sweeps.run import sweep

__all__ = ["Sweep", "sweep"]
