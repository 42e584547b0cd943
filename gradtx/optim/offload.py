"""Steps on the host for parameters on another device, which then stores only weights and gradients."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base.dtensor import is_sharded
from gradtx.base.exact import CPU
from gradtx.base.messages import describe
from gradtx.base.plain import is_plain
from gradtx.base.tree import map_tensors
from gradtx.execution.extras import FUNCTIONS
from gradtx.optim.chain_checks import warn_of_replicas
from gradtx.transform import GradientTransformation


def is_elsewhere(param: Tensor) -> bool:
    """Whether a parameter is on a device other than the host; tests replace this function."""
    return param.device != CPU


def to_host(tensor: Tensor, copy: Tensor) -> None:
    """Start copying a tensor to its host copy."""
    copy.copy_(tensor, non_blocking=True)


def to_device(copy: Tensor, tensor: Tensor) -> None:
    """Start copying a host copy back to its tensor."""
    tensor.copy_(copy, non_blocking=True)


@dataclass(eq=False)
class Visit:
    """A parameter whose data and gradient are temporarily replaced with copies on the host.

    Attributes:
        param: The parameter.
        weights: Its data on the device.
        gradient: Its gradient on the device, if any.
        copy: The copy of the weights on the host.
        copied_gradient: The copy of the gradient on the host.
    """

    param: Tensor
    weights: Tensor
    gradient: Tensor | None
    copy: Tensor
    copied_gradient: Tensor | None

    def begin(self) -> None:
        """Replace the parameter's data and gradient with the copies."""
        self.param.grad = None
        self.param.data = self.copy
        self.param.grad = self.copied_gradient

    def end(self, writes: bool) -> None:
        """Restore the device tensors, updated with the weights and the gradient on the host."""
        gradient = self.param.grad
        self.param.grad = None
        self.param.data = self.weights
        if writes:
            to_device(self.copy, self.param.detach())
        if gradient is None:
            return
        if self.gradient is None:
            self.param.grad = gradient.to(self.weights.device, copy=True)
            return
        if gradient is not self.copied_gradient:
            to_device(gradient, self.gradient)
        self.param.grad = self.gradient


class Offload:
    """Moves parameters to the host while an optimizer reads or writes them.

    `on_host` replaces each parameter's data and gradient with host copies, so that the optimizer runs on the host, and
    copies the new weights back at the end. Each step copies the weights in both directions, because user code may have
    written to `param.data` without changing a version counter. The copies keep the parameters' dtypes, so results and
    checkpoints equal those of parameters on the host.

    Args:
        who: The optimizer's class, for error messages.
    """

    def __init__(self, who: str):
        self._who = who
        # Memory for copies, reused across steps.
        self._weights: dict[Tensor, Tensor] = {}
        self._gradients: dict[Tensor, Tensor] = {}
        self._visits: list[Visit] = []

    def check(self, params: Iterable[Tensor]) -> None:
        """Check that parameters can be moved.

        Raises:
            ValueError: If a parameter is sharded, or if its data is a tensor subclass.
        """
        params = list(params)
        for param in params:
            if is_sharded(param):
                raise ValueError(
                    f"{self._who}: state_device does not support sharded parameters; pass CPUOffloadPolicy() to "
                    "fully_shard, which keeps the shards themselves on the host"
                )
            if not is_plain(param.data) and not is_lazy(param):
                raise ValueError(
                    f"{self._who}: state_device supports only plain tensors, got {describe(param.data)}"
                )
        warn_of_replicas(
            "state_device", params, "it loses its hooks when a parameter moves"
        )

    @contextlib.contextmanager
    def on_host(
        self,
        params: Iterable[Tensor],
        *,
        writes: bool,
        consumes: bool = False,
    ) -> Generator[None, None, None]:
        """Keep parameters on the host inside a `with` block.

        Args:
            params: The parameters.
            writes: Whether their values may change.
            consumes: Whether the gradients on the device are freed immediately.
        """
        if self._visits:
            yield
            return
        self._begin(params, reuses=True)
        for visit in self._visits if consumes else ():
            visit.gradient = None
        try:
            yield
        finally:
            self._end(writes)

    def _begin(self, params: Iterable[Tensor], reuses: bool) -> None:
        """Move parameters to the host; with `reuses`, gradients are copied into the memory of the last step."""
        visits = [
            self._visit(param, reuses)
            for param in params
            if not is_lazy(param) and not param.is_meta and is_elsewhere(param)
        ]
        for device in {visit.weights.device for visit in visits} - {CPU}:
            # Until the copies on the device's current stream are complete.
            torch.accelerator.current_stream(device).synchronize()
        for visit in visits:
            visit.begin()
        self._visits = visits

    def _end(self, writes: bool) -> None:
        """Move the parameters back to their devices."""
        visits, self._visits = self._visits, []
        for visit in visits:
            visit.end(writes)

    def _visit(self, param: Tensor, reuses: bool) -> Visit:
        """Start copying a parameter and its gradient to the host."""
        weights, gradient = param.data, param.grad
        copy = _memory_for(weights, self._weights, param)
        to_host(weights, copy)
        copied = None
        if gradient is not None and gradient.is_sparse:
            copied = gradient.to(CPU, copy=True)
        elif gradient is not None:
            kept = self._gradients if reuses else {}
            copied = _memory_for(gradient, kept, param)
            to_host(gradient, copied)
        return Visit(param, weights, gradient, copy, copied)

    def extras_on_host(self, extras: dict[str, Any]) -> None:
        """Move a step's extras to the host; functions are wrapped so that they run with parameters on their device."""
        for name, value in extras.items():
            extras[name] = (
                functools.partial(self._call_on_device, value)
                if name in FUNCTIONS
                else _on_host(value)
            )

    def _call_on_device(self, function: Callable[[], Any]) -> Any:
        """Call a closure with the parameters on their device, then move them and the new gradients to the host."""
        params = [visit.param for visit in self._visits]
        self._end(writes=True)
        try:
            return _on_host(function())
        finally:
            self._begin(params, reuses=False)  # the previous gradients are still in use

    def __reduce__(self) -> tuple[Any, ...]:
        return Offload, (self._who,)


def offload_for(who: str, state_device: Any, tx: GradientTransformation) -> Offload:
    """Create the offload that `state_device` requests.

    Raises:
        ValueError: If the device is not the host, or if the chain needs second derivatives, which are computed on the
            parameters' device.
    """
    if str(state_device) != "cpu":
        raise ValueError(
            f'{who}: state_device must be "cpu" or None, got {state_device!r}'
        )
    if "hessian_diag" in tx.needs:
        raise ValueError(
            f"{who}: state_device does not support chains that need 'hessian_diag'; omit state_device"
        )
    return Offload(who)


def _memory_for(tensor: Tensor, kept: dict[Tensor, Tensor], param: Tensor) -> Tensor:
    """Return the memory for a copy of a parameter's tensor, allocated again if the tensor's layout has changed."""
    copy = kept.get(param)
    if (
        copy is None
        or copy.dtype != tensor.dtype
        or copy.shape != tensor.shape
        or copy.stride() != tensor.stride()
    ):
        # Pinned, so that the device can access it directly.
        is_pinned = tensor.device != CPU
        copy = torch.empty_like(
            tensor, device=CPU, pin_memory=is_pinned, requires_grad=False
        )
        kept[param] = copy
    return copy


def _on_host(value: Any) -> Any:
    """Return a value with all its tensors on the host."""
    return map_tensors(Tensor.cpu, value)
