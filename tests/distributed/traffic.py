"""Counts the messages of a process, and the bytes that it sends to others."""

from __future__ import annotations

from typing import Any
from unittest import mock

from torch import distributed
from torch.profiler import ProfilerActivity, profile

SPACE = "c10d::"


class Traffic:
    """Counts collectives by torch's profiler: a dispatch mode would have steps run leaf by leaf.

    Attributes:
        messages: The name of each.
        bytes: What `all_to_all_single` sends to other ranks.
        reduced: The bytes of each `all_reduce`.
        gathered: The bytes that each `all_gather` sends to each rank.
    """

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.bytes = 0
        self.reduced: list[int] = []
        self.gathered: list[int] = []
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._send = distributed.all_to_all_single
        self._reduce = distributed.all_reduce
        self._gather = distributed.all_gather
        self._patch = mock.patch.multiple(
            distributed, all_to_all_single=self._counted, all_reduce=self._measured, all_gather=self._weighed
        )

    @property
    def count(self) -> int:
        return len(self.messages)

    def _counted(self, received: Any, sent: Any, sizes_in: Any, sizes_out: Any, **options: Any) -> Any:
        stay = sizes_out[distributed.get_rank(options["group"])]
        self.bytes += (sum(sizes_out) - stay) * sent.element_size()
        return self._send(received, sent, sizes_in, sizes_out, **options)

    def _measured(self, tensor: Any, *args: Any, **options: Any) -> Any:
        self.reduced.append(tensor.numel() * tensor.element_size())
        return self._reduce(tensor, *args, **options)

    def _weighed(self, received: Any, sent: Any, *args: Any, **options: Any) -> Any:
        self.gathered.append(sent.numel() * sent.element_size())
        return self._gather(received, sent, *args, **options)

    def __enter__(self) -> Traffic:
        self._patch.start()
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        self._patch.stop()
        for event in self._profile.events() or []:
            name = event.name.removeprefix(SPACE)
            if name not in (event.name, "barrier"):
                self.messages.append(name)
