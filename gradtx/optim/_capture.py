"""Steps that a CUDA graph can capture, `capturable=True`: counts are on the device, and no tensor changes its place.

A graph repeats the kernels of a captured step without Python: on the same memory, with the numbers that the host had at
the capture. So the step itself advances counts, which are tensors, and writes new state into the tensors of the old.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gradtx.optim._member import Member
    from gradtx.optim._workings import Workings


def check_capturable(owner: str, workings: Workings) -> None:
    """Check that the chain's steps can be captured.

    Raises:
        ValueError: a link needs the host, or there are several devices.
    """
    for option, value in (("state_device", workings.offload), ("sum_over", workings.members.rank_sums)):
        if value is not None:
            raise ValueError(f"{owner}: capturable and {option} exclude each other")
    if workings.hessian.link is not None:
        raise ValueError(f"{owner}: capturable: the estimate of hessian_diag follows the count on the host; pass it")
    for operation in workings.members.block().walk():
        if not operation.compiles:
            link = ".".join(filter(None, operation.path))
            raise ValueError(f"{owner}: capturable: {link} reads counts or values on the host; use another link")
    if len({param.device for param in workings.members.by_param}) > 1:
        raise ValueError(f"{owner}: capturable: the parameters are on several devices; make an optimizer for each")


def is_captured(device: torch.device) -> bool:
    """Whether a CUDA graph records what happens on a device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def check_capture(owner: str, capturable: bool, stepping: Iterable[Member], others: Iterable[Member]) -> None:
    """Check that the step that is being captured may be repeated.

    Args:
        owner: The optimizer's class.
        capturable: Whether the optimizer was made for this.
        stepping: The parameters that step.
        others: Those that don't.

    Raises:
        RuntimeError: it would count on the host, or is the first step with these gradients.
    """
    if not capturable:
        raise RuntimeError(
            f"{owner}: a CUDA graph would repeat this step with the count of today; pass capturable=True to {owner}"
        )
    counts = {member.count for member in stepping}
    waiting = {member.count for member in others}
    if any(isinstance(count, int) for count in counts) or not counts.isdisjoint(waiting):
        raise RuntimeError(
            f"{owner}: the first step with these gradients makes state, which a CUDA graph can't repeat; call step() "
            "once in front of the capture"
        )
