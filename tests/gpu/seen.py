"""What ran on a GPU during a block of a test."""

from __future__ import annotations

from collections import Counter


class Seen:
    """What ran on the device during a block.

    Attributes:
        launches: The number of kernels.
        kernels: That number by operation.
        slow: That number by operation on lists off their fast route.
        waits: What made the host wait.
        bytes: The bytes that kernels read and wrote.
        peak: The most bytes that were allocated at one time, beyond those from before the block.
    """

    def __init__(self) -> None:
        self.launches = 0
        self.kernels: Counter[str] = Counter()
        self.slow: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.bytes = 0
        self.peak = 0
        self.held = 0
