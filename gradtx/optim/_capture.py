"""Steps that a CUDA graph can capture (`capturable=True`): counts are on the device, and tensors keep their memory.

A graph replays the kernels of a captured step without Python, on the same memory and with the host's numbers at the
time of capture. So counts are tensors that the step itself advances, and new state is written into the old tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gradtx.optim._member import Count, Member
    from gradtx.optim._parts import Parts


def check_capturable(owner: str, parts: Parts) -> None:
    """Check that steps of the chain can be captured.

    Raises:
        ValueError: If an option excludes `capturable`, if a link needs the host, or if there are several devices.
    """
    if parts.offload is not None:
        raise ValueError(f"{owner}: capturable cannot be combined with state_device")
    if parts.hessian.link is not None:
        raise ValueError(
            f"{owner}: capturable: hessian_diag is estimated at counts read on the host; pass hessian_diag to step()"
        )
    for operation in parts.members.block().walk():
        if not operation.compiles:
            link = ".".join(filter(None, operation.path))
            raise ValueError(
                f"{owner}: capturable: {link} reads counts or values on the host; use another link"
            )
    if len({param.device for param in parts.members.by_param}) > 1:
        raise ValueError(
            f"{owner}: capturable: the parameters are on several devices; create one optimizer per device"
        )


def is_captured(device: torch.device) -> bool:
    """Whether a CUDA graph is capturing the device's current stream."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def check_capture(
    owner: str, capturable: bool, members: Iterable[Member], takes_none: bool
) -> None:
    """Check that a graph may replay the step that is being captured.

    Args:
        owner: The optimizer's class, for error messages.
        capturable: Whether the optimizer was constructed with `capturable=True`.
        members: All parameters.
        takes_none: Whether those without a gradient step as well.

    Raises:
        RuntimeError: If the step would count on the host, or if it is the first step with these gradients.
    """
    if not capturable:
        raise RuntimeError(
            f"{owner}: a CUDA graph would replay this step with its present count; pass capturable=True to {owner}"
        )
    counts: set[int | Count] = set()
    waiting: set[int | Count] = set()
    for member in members:
        steps = takes_none or member.param.grad is not None
        (counts if steps else waiting).add(member.count)
    if any(isinstance(count, int) for count in counts) or counts & waiting:
        raise RuntimeError(
            f"{owner}: the first step with these gradients creates state, which a CUDA graph cannot replay; call "
            "step() once before the capture"
        )
