"""The place of the engine in pickles of version 0.1."""

from gradtx.optim.engine.compiled import CompiledEngine as Engine

__all__ = ["Engine"]
