"""Differentiable steps for code that keeps a module: its weights become functions of the initial ones."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.messages import describe
from gradtx.transform import (
    GradientTransformation,
    apply_updates,
    check_transformation,
)

__all__ = ["MetaOptimizer"]


class MetaState(NamedTuple):
    """The weights and buffers of a module, and the state of its optimizer; None before the first step."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    state: dict[str, Any] | None


class MetaOptimizer:
    """Step a module's weights by a chain, and keep every step differentiable.

    `step` computes gradients that have gradients themselves, and puts new tensors in the place of the module's
    parameters. So `module(x)`, and any other method, computes with them, and a loss of it has a gradient by the initial
    parameters, by hyperparameters that are tensors, and by all that the inner losses depend on. Inside a `with` block,
    the module gets its own parameters and buffers back at the end:

        with gradtx.MetaOptimizer(net, gradtx.sgd(lr=0.1)) as inner:
            for _ in range(5):
                inner.step(loss_fn(net(x), y))
            outer_loss = loss_fn(net(new_x), new_y)
        outer_loss.backward()  # into the gradients of net.parameters()

    Use it for code that keeps a module; a function of parameters runs under `vmap` as well.

    Args:
        module: The module. Its parameters that require gradients are trained, shared ones once.
        tx: Any chain that needs no further evaluations of the loss (`sam` and line searches do).
        first_order: Take gradients for constants, as FOMAML does: memory does not grow with the steps.

    Raises:
        TypeError: If `module` is not a module, or `tx` not a transformation.
        ValueError: If no parameter requires gradients.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(net.weight)
        >>> with gradtx.MetaOptimizer(net, gradtx.sgd(lr=0.1)) as inner:
        ...     inner.step(net(torch.ones(1)).square().sum())  # 1 - 0.2
        ...     outer = net(torch.ones(1)).sum()
        >>> outer.backward()
        >>> outer.detach(), net.weight.grad, net.weight.data
        (tensor(0.8000), tensor([[0.8000]]), tensor([[1.]]))
    """

    def __init__(
        self,
        module: nn.Module,
        tx: GradientTransformation,
        *,
        first_order: bool = False,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"MetaOptimizer: needs a torch.nn.Module, got {describe(module)}; pass (module, tx)"
            )
        check_transformation("MetaOptimizer", "tx", tx)
        self.module = module
        self.tx = tx
        self.first_order = first_order
        self.state: dict[str, Any] | None = None
        self._before: list[MetaState] = []
        # A shared parameter has several uses.
        self._uses: dict[str, list[tuple[nn.Module, str]]] = {}
        names: dict[int, str] = {}
        for name, param in module.named_parameters(remove_duplicate=False):
            if param.requires_grad:
                name = names.setdefault(id(param), name)
                self._uses.setdefault(name, [])
        for owner in module.modules():
            for name, param in owner.named_parameters(recurse=False):
                if id(param) in names:
                    self._uses[names[id(param)]].append((owner, name))
        if not self._uses:
            raise ValueError(
                f"MetaOptimizer: no parameter of {type(module).__name__} requires gradients"
            )

    def step(self, loss: Tensor, **extras: Any) -> None:
        """Compute gradients of a loss of the module, and step its weights.

        Args:
            loss: The loss, a 0-d tensor, computed with the present weights.
            **extras: What links of the chain need, as in `tx.update`; `value` is the loss.

        Raises:
            ValueError: If the loss is not 0-d, or does not depend on the weights. Nothing changes then.
        """
        params = self.params
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ValueError(
                f"MetaOptimizer.step: the loss must be a 0-d tensor, got {describe(loss)}"
            )
        found: Any = (None,)
        if loss.requires_grad:
            found = torch.autograd.grad(
                loss,
                list(params.values()),
                create_graph=not self.first_order,
                allow_unused=True,
            )
        if all(gradient is None for gradient in found):
            raise ValueError(
                "MetaOptimizer.step: the loss does not depend on the module's present weights; compute it with the "
                "module after the last step"
            )
        grads = dict(zip(params, found, strict=True))
        seen = params
        if self.first_order:
            seen = {name: param.detach() for name, param in params.items()}
            loss = loss.detach()
        state = self.tx.init(seen) if self.state is None else self.state
        updates, state = self.tx.update(grads, state, seen, **{"value": loss, **extras})
        self._put(apply_updates(params, updates))
        self.state = state

    @property
    def params(self) -> dict[str, Tensor]:
        """The module's present weights by name: a new dict."""
        present: dict[str, Tensor] = {}
        for name, [(owner, attribute), *_] in self._uses.items():
            present[name] = getattr(owner, attribute)
        return present

    def extract(self) -> Any:
        """Return weights, buffers and state, to which `recover` returns.

        Weights and state are the tensors themselves with their graphs, buffers are copies.
        """
        buffers = {
            name: buffer.detach().clone()
            for name, buffer in self.module.named_buffers()
        }
        return MetaState(self.params, buffers, self.state)

    def recover(self, state: Any) -> None:
        """Return to the weights, buffers and state that `extract` returned.

        Raises:
            ValueError: If they are those of another module.
        """
        _tree.check_names(
            state.params, self._uses, "MetaOptimizer.recover", "the module"
        )
        self._put(state.params)
        self.state = state.state
        for prefix, owner in self.module.named_modules():
            for name, _ in list(owner.named_buffers(recurse=False)):
                # A new tensor: a graph may still need the values of the old one.
                full = f"{prefix}.{name}" if prefix else name
                if full in state.buffers:
                    _torch.put_buffer(owner, name, state.buffers[full].clone())

    def stop_gradient(self) -> None:
        """Cut the graph: the present weights and state become constants, of which later steps are functions."""
        detached = {
            name: param.detach().requires_grad_() for name, param in self.params.items()
        }
        self._put(detached)
        self.state = _tree.map_tensors(torch.Tensor.detach, self.state)

    def __enter__(self) -> Self:
        self._before.append(self.extract())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.recover(self._before.pop())

    def _put(self, params: dict[str, Tensor]) -> None:
        for name, uses in self._uses.items():
            for owner, attribute in uses:
                _torch.put_parameter(owner, attribute, params[name])
