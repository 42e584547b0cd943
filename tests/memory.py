"""The memory of a call, as torch's allocator hands it out."""

from collections.abc import Callable
from typing import Any

import torch


def sizes_of(call: Callable[[], object]) -> list[int]:
    """The bytes of all allocations of a call, and those of releases as negative numbers, in order."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    profiler: Any = profile.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def most_of(sizes: list[int]) -> int:
    """The most bytes that are held at a time."""
    held = most = 0
    for size in sizes:
        held += size
        most = max(most, held)
    return most
