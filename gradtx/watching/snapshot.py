"""A snapshot of all that training changes outside of an optimizer: weights, gradients, modules and random streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradtx.base.dtensor import local
from gradtx.base.random_streams import RandomStreams
from gradtx.watching.modules import all_modules, modules_with

# Attributes of these types are kept. Lists, dicts and other objects are not: nothing says what belongs to them.
PLAIN = (Tensor, int, float, complex, str, type(None))
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Snapshot:
    """The weights of an optimizer, their gradients, the modules that have them, and random streams.

    Of other modules, which a loss may call as well, it has the gradients, the buffers and the mode.

    Args:
        params: The parameters.
    """

    def __init__(self, params: Iterable[Tensor]):
        trained = _by_id(params)
        modules = all_modules()
        models = modules_with(trained.values(), modules)
        beside = _by_id(param for model in models for param in model.parameters())
        every = _by_id(param for module in modules for param in module.parameters())
        self._weights = [_Kept(param) for param in trained.values()]
        # Perhaps a frozen model of any size.
        for identity, param in beside.items():
            if identity not in trained and _is_plain(param):
                self._weights.append(_Kept(param, on_host=True))
        self._gradients = [_KeptGradient(param) for param in (every | trained).values()]
        ids_of_models = set(map(id, models))
        self._modules = [
            _ModuleSnapshot(module, id(module) in ids_of_models) for module in modules
        ]
        self._streams = RandomStreams()

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back: the same tensors, with the values that they had."""
        for weight in self._weights:
            weight.restore()
        for gradient in self._gradients:
            gradient.restore()
        for module in self._modules:
            module.restore()
        self._streams.restore()


def _by_id(params: Iterable[Tensor]) -> dict[int, Tensor]:
    return {
        id(param): param for param in params if param.is_leaf and not is_lazy(param)
    }


class _Kept:
    """A tensor and its values."""

    def __init__(self, tensor: Tensor, on_host: bool = False):
        self._tensor = local(tensor.detach())
        self._values = (
            self._tensor.to("cpu", copy=True) if on_host else self._tensor.clone()
        )

    def restore(self) -> None:
        self._tensor.copy_(self._values)


class _KeptGradient:
    """Whether a parameter requires a gradient, and the one that it has."""

    def __init__(self, param: Tensor):
        self._param = param
        self._is_required = param.requires_grad
        self._gradient = param.grad
        self._kept = None if param.grad is None else _Kept(param.grad)

    def restore(self) -> None:
        if self._kept is not None:
            self._kept.restore()
        if self._param.grad is not self._gradient:
            self._param.grad = self._gradient
        if self._param.requires_grad != self._is_required:
            self._param.requires_grad_(self._is_required)


class _ModuleSnapshot:
    """The mode and the buffers of a module, also those that its code assigns in place of others.

    Args:
        module: The module.
        has_attributes: Whether it also has the tensors and numbers that are attributes, such as a count of calls.
    """

    def __init__(self, module: nn.Module, has_attributes: bool):
        self._module = module
        # Those of torch's own modules are not what a model computes: DDP has flags of what it has set up.
        self._has_attributes = has_attributes and not _is_of_torch(module)
        self._buffers = dict(_buffers_of(module))
        self._attributes = self._present()
        tensors = [*self._buffers.values(), *self._attributes.values()]
        self._kept = [_Kept(value) for value in tensors if _may_change(value)]

    def restore(self) -> None:
        for kept in self._kept:
            kept.restore()
        _put_back(_buffers_of(self._module), self._buffers)
        attributes = vars(self._module)
        for name in self._present().keys() - self._attributes.keys():
            del attributes[name]
        for name, value in self._attributes.items():
            if attributes.get(name, attributes) is not value:
                attributes[name] = value

    def _present(self) -> dict[str, Any]:
        """Return the attributes that are restored."""
        every = vars(self._module)
        kept = every.keys() & {"training"}
        if self._has_attributes:
            kept |= every.keys() - OF_EVERY_MODULE
        return {name: every[name] for name in kept if isinstance(every[name], PLAIN)}


def _put_back(buffers: dict[str, Any], saved: dict[str, Any]) -> None:
    """Make a dict of buffers what it was."""
    is_same = list(buffers) == list(saved) and all(
        buffers[name] is buffer for name, buffer in saved.items()
    )
    if not is_same:
        buffers.clear()
        buffers.update(saved)


def _buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the dict of a module's own buffers; an empty one for classes that keep them elsewhere."""
    buffers = vars(module).get("_buffers")
    return buffers if isinstance(buffers, dict) else {}


def _may_change(value: Any) -> bool:
    """Whether a value is a tensor that code can write into: torch refuses this for views of one entry as several."""
    if not isinstance(value, Tensor) or is_lazy(value) or value.is_inference():
        return False
    if not _is_plain(value):
        return False
    if value.layout is not torch.strided:
        return True
    pairs = zip(value.shape, value.stride(), strict=True)
    return all(stride > 0 or size < 2 for size, stride in pairs)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor can be written into: quantized weights need not allow it, and no forward pass changes them."""
    return type(local(tensor.detach())) is Tensor and not tensor.is_meta


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "torch"
