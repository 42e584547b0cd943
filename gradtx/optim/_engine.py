"""The place of the engine in pickles of version 0.1."""

from gradtx.optim.engine import Engine

__all__ = ["Engine"]
