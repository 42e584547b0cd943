"""Module path of the engine in pickles written by version 0.1."""

from gradtx.optim.engine.compiled import CompiledEngine as Engine

__all__ = ["Engine"]
