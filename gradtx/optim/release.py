"""Steps during backward: each parameter is updated as soon as its gradient is complete, which is then freed."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base import torch_names as _torch
from gradtx.base.ambient import without_ambient
from gradtx.execution.execute import Leaf, Operation
from gradtx.optim.chain_checks import warn_of_replicas
from gradtx.optim.core import Core
from gradtx.optim.device_counts import Scaling
from gradtx.optim.ranks import hand_over_loaded
from gradtx.optim.run import Extras, Member, OptimizerRun
from gradtx.optim.step import Step
from gradtx.optim.step_execution import StepExecution

WHO = "release_gradients"
AVERAGES_LATE = (
    "it averages gradients after their hooks have run, so each process would step with its own gradients; use "
    "fully_shard (FSDP2), or step(consume_gradients=True)"
)


# The remedy in error messages about links that need all gradients.
WAY_OUT = (
    "remove it from the chain, or call handle.remove() and step with all gradients, freeing each gradient after its "
    "use: step(consume_gradients=True)"
)


class SingleRun(OptimizerRun):
    """A run in which parameters step one at a time, so that sums over parameters are not available."""

    def combined(self, operation: Operation, waiting: list[tuple[Leaf, Any]]) -> Any:
        if operation.traits.of_leaf:
            return operation.combine(waiting)
        stage = ".".join(operation.path)
        raise RuntimeError(
            f"{WHO}: {stage} needs the gradients of all parameters; {WAY_OUT}"
        )


class OpenStep(Step):
    """A step that updates each parameter when its gradient arrives.

    Group values, counts and shared values are those at the time of the first gradient. New shared values are written
    when the step ends.

    Args:
        core: The core of the optimizer.

    Attributes:
        arrived: The parameters that this step has updated.
    """

    run_type = SingleRun
    begins_with_all = False

    def __init__(self, core: Core):
        super().__init__(core, {}, None, consumes=True)
        self.arrived: set[Member] = set()
        if core.traits.agree and len(self.groups) > 1:
            self._check_groups()

    def update(self, member: Member) -> None:
        """Update a parameter with its gradient, and free the gradient."""
        self._prepare(member)
        self.all_have_gradients = True
        self.arrived.add(member)
        eager = self._with_listed([member])
        bundles = []
        for engine in self.core.back_ends:
            if eager:
                bundles, eager = engine.bundles(self, eager, member)
        StepExecution(self).run(bundles, eager)
        member.param.grad = None

    def _prepare(self, member: Member) -> None:
        self._read([member])
        self._align_gradients([member])
        self._complete(self.groups[member.group], [member])
        if self.core.traits.owners_keep_slots:
            hand_over_loaded([member])

    def apply(self) -> None:
        """End the step: update the parameters whose hook has not run, and write new shared values."""
        for member in self.every:
            if member not in self.arrived and member.param.grad is not None:
                self._prepare(member)
        self.rows = [x for x in self._with_slots() if x not in self.arrived]
        members, self.all_have_gradients = self._stepping()
        self.members = self._with_listed(members)
        super().apply()


class ReleasedGradients:
    """The handle of `release_gradients`: parameters step during backward until `remove` is called.

    Args:
        optimizer: The `ChainOptimizer`.

    Raises:
        ValueError: If a link needs the gradients of all parameters or a closure.
        RuntimeError: If the optimizer does not support it, or is being watched.
    """

    def __init__(self, optimizer: Any):
        core = optimizer._up_to_date()
        self._who: str = core.members.who
        check_released(core)
        if core.watch is not None:
            raise RuntimeError(
                f"{WHO}: {self._who} is being watched, and a watch sees whole steps; call close() of what "
                "gradtx.watch(optimizer) returned first"
            )
        warn_of_replicas(WHO, core.members.by_param, AVERAGES_LATE)
        self._optimizer = weakref.ref(optimizer)
        self._lock = threading.RLock()  # autograd runs one thread per device
        self._hooks: dict[Tensor, Any] = {}
        self._open: OpenStep | None = None
        # The backward passes of the open step that have not ended: they are running, or have raised an error.
        self._running: set[int] = set()
        self.active = True
        self.follow(core.members.by_param)

    def __repr__(self) -> str:
        state = f"of {len(self._hooks)} parameters" if self.active else "removed"
        return f"<released gradients, {state}>"

    def remove(self) -> None:
        """Return to ordinary steps. A step that has begun ends with the next `step()`."""
        self.active = False
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        optimizer = self._optimizer()
        if optimizer is not None:
            for engine in optimizer._core.back_ends:
                engine.forget()

    def follow(self, params: Iterable[Tensor]) -> None:
        """Register gradient hooks on parameters that have none yet."""
        if not self.active:
            return
        for param in params:
            if param.requires_grad and param not in self._hooks and not is_lazy(param):
                register = param.register_post_accumulate_grad_hook
                self._hooks[param] = register(self._on_gradient)

    def check_step(self, extras: Extras, scaling: Scaling | None) -> None:
        """Check that a step with released gradients uses neither extras nor a GradScaler."""
        if self.active and extras:
            name = next(iter(extras))
            raise TypeError(
                f"{self._who}: step does not accept {name!r} while gradients are released: parameters have already "
                "been updated"
            )
        if self.active and scaling is not None:
            raise RuntimeError(
                f"{self._who}: a GradScaler cannot be used while gradients are released, because parameters step "
                "before it has read all gradients; train in bfloat16, or call handle.remove()"
            )

    def check_closed(self) -> None:
        """Check that no step has begun, whose parameters and group values are those of its first gradient."""
        if self._open is not None:
            raise RuntimeError(
                f"{self._who}: add_param_group: a step has begun with the first released gradient; call step() first"
            )

    def close(self) -> OpenStep | None:
        """Hand over the open step, which the caller must end; None if no gradient has arrived."""
        ending, self._open = self._open, None
        self._running.clear()
        return ending

    def ending(self, core: Core) -> OpenStep | None:
        """Hand over the step that ends now; None if no parameter has had a gradient.

        Gradients are freed also if no hook has run, as after `swap_tensors`, from which torch calls none: the next
        gradients must not be added to them.
        """
        step = self.close()
        if step is None and any(param.grad is not None for param in self._hooks):
            step = OpenStep(core)
        return step

    def _on_gradient(self, param: Tensor) -> None:
        """Update a parameter whose gradient is complete."""
        # Compiled autograd traces hooks.
        if torch.compiler.is_compiling():
            self._update_untraced(param)
        else:
            self._update(param)

    def _update(self, param: Tensor) -> None:
        optimizer = self._optimizer()
        if optimizer is None:
            self.remove()
            return
        with self._lock, torch.no_grad():
            try:
                self._step(optimizer, param)
            except BaseException:
                self.close()
                raise

    _update_untraced = _torch.not_traced(_update)

    @without_ambient
    def _step(self, optimizer: Any, param: Tensor) -> None:
        core: Core = optimizer._core
        member = core.members.by_param.get(param)
        if (
            self._open is not None
            and member is not None
            and member in self._open.arrived
        ):
            # A second gradient, which is allowed if a combinator counts calls.
            self._check_second(core, member)
            ending = self.close()
            assert ending is not None
            ending.apply()
        if self._open is None:
            core = optimizer._up_to_date()
            if core.members.repeated:
                core.members.refuse_repeated()
            if core.evaluation is not None:
                core.evaluation.check_training(self._who)
            member = core.members.by_param.get(param)
            if member is not None:
                self._open = OpenStep(core)
        if member is not None and self._open is not None:
            self._open.update(member)
            self._note_backward()

    def _note_backward(self) -> None:
        """Note the backward pass that is running, until it ends without an error."""
        number = _torch.current_backward()
        if number >= 0 and number not in self._running:
            self._running.add(number)
            _torch.after_backward(functools.partial(self._running.discard, number))

    def _check_second(self, core: Core, member: Member) -> None:
        """Check that a second gradient may end the step of the first one.

        Raises:
            RuntimeError: If no link counts calls, or if the backward pass of the first gradient has raised an error.
        """
        if not core.traits.takes_none:
            raise RuntimeError(
                f"{WHO}: parameter {member.name!r} has a second gradient, but was updated by the first; call "
                "step() after each backward, or accumulate gradients with accumulate(tx, every)"
            )
        if self._running - {_torch.current_backward()}:
            raise RuntimeError(
                f"{WHO}: parameter {member.name!r} has a second gradient, but the backward pass of the first has not "
                "ended: it has raised an error, and zero_grad() cannot take back gradients that are released; call "
                "step() to count that pass, or load a checkpoint"
            )


# Checks.


def check_released(core: Core) -> None:
    """Check that parameters may step one at a time.

    Raises:
        RuntimeError: If the optimizer has `state_device` or `capturable`.
        ValueError: If a link needs all gradients, or an input that is known only after backward.
    """
    tx = core.members.tx
    for option, excludes in (
        ("state_device", core.offload is not None),
        ("capturable", core.capturable),
    ):
        if excludes:
            raise RuntimeError(
                f"{core.members.who}: {WHO} cannot be combined with {option}, for which gradients must stay "
                "together; use step(consume_gradients=True)"
            )
    _, needs = tx._requirements()
    for typed, _, need in needs:
        if need != "params":
            raise ValueError(
                f"{WHO}: {typed} needs {need!r}, which is known only after backward; {WAY_OUT}"
            )
    for operation in core.members.expanded.route.walk():
        if operation.traits.waits or operation.traits.hessian_period:
            name = ".".join(operation.path)
            way_out = WAY_OUT
            if "clip_by_global_norm" in operation.path:
                way_out = f"pass stale=True to clip by the norm of the previous step, or {way_out}"
            raise ValueError(
                f"{WHO}: {name} needs the gradients of all parameters; {way_out}"
            )
