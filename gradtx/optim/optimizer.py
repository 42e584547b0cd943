"""`ChainOptimizer`, a torch.optim.Optimizer that runs any transformation."""

from __future__ import annotations

import contextlib
import functools
import numbers
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from gradtx.arguments import tensors_in
from gradtx.base import torch_names as _torch
from gradtx.base.ambient import ambient, without_ambient
from gradtx.base.inputs import (
    listed_group,
    listed_params,
    without_repeats,
)
from gradtx.base.messages import describe
from gradtx.base.tree import tensors
from gradtx.distributed.layouts import team_of_group
from gradtx.execution.context import Clock
from gradtx.execution.execute import Block
from gradtx.execution.pure import evaluation_weights
from gradtx.optim._capture import check_capturable
from gradtx.optim._chain_checks import (
    IDLE_STEPS,
    warn_of_engine_options,
    warn_of_idle_steps,
    warn_of_misspelt,
    warn_of_unread,
)
from gradtx.optim._device_counts import Scaling
from gradtx.optim._evaluation import Evaluation
from gradtx.optim._explain import Explanation, explain
from gradtx.optim._groups import (
    CODES,
    ENGINE_OPTIONS,
    OVERRIDDEN,
    Group,
    Values,
    cycled_alike,
    each_item,
    is_same,
    params_of,
)
from gradtx.optim._hessian import HessianStep
from gradtx.optim._load_state_dict import Checkpoint
from gradtx.optim._match_saved import check_form, require
from gradtx.optim._ownership import states_of_owners
from gradtx.optim._parameters import CPU, Members
from gradtx.optim._parts import HessianSource, Parts
from gradtx.optim._run import check_closure
from gradtx.optim._state import Initial, States
from gradtx.optim._step import KnownClosure, Step, Weights
from gradtx.optim._step_input import Extras
from gradtx.transform import GradientTransformation, check_transformation

if TYPE_CHECKING:
    from gradtx.optim._release import ReleasedGradients


class ChainOptimizer(_torch.TakesScaledGradients, torch.optim.Optimizer):
    """A GradientTransformation as a torch optimizer; returned by `as_optimizer`, base of the `gradtx.optim` classes."""

    _released: ReleasedGradients | None = None
    # The number of steps so far, none of which had a gradient; None after the first gradient.
    _idle_steps: int | None = 0
    # A copy of the original `defaults`; None before the first group is complete.
    _made_defaults: Values | None = None

    @without_ambient
    def __init__(
        self,
        tx: GradientTransformation,
        params: Any = None,
        *,
        compile: bool | str | Mapping[str, Any] = False,
        seed: int = 0,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        **numbers: Any,
    ):
        owner = type(self).__name__
        if numbers:
            name = next(iter(numbers))
            raise TypeError(
                f"{owner}: got an unexpected argument {name!r}: hyperparameters belong to the transformation. To "
                "build the equivalent of another optimizer, pass its transformation to gradtx.as_optimizer(tx, params)"
            )
        check_transformation(owner, "tx", tx)
        engine = offload = None
        # Imported only where they are needed: the compiler's modules take long.
        if compile is not False:
            from gradtx.optim.engine.compiled import CompiledEngine
            from gradtx.optim.engine.inductor import compiler_options

            engine = CompiledEngine(compiler_options(compile))
        if state_device is not None:
            from gradtx.optim._offload import offload_for

            offload = offload_for(owner, state_device, tx)
        members = Members(owner, self._copy_hyperparameters(tx))
        self._parts = Parts(
            members,
            States(members),
            HessianSource(owner, tx, seed),
            engine,
            offload=offload,
            capturable=capturable,
        )
        if process_group is not None:
            if state_device is not None:
                raise ValueError(
                    f"{owner}: state_device cannot be combined with process_group"
                )
            members.replicas = team_of_group(f"{owner}: process_group", process_group)
        super().__init__(listed_params(owner, params), {})
        if capturable:
            check_capturable(owner, self._parts)
        members.check_selectors()
        self._parts.states.check_patterns()
        self.defaults = cycled_alike(members.views)
        self._made_defaults = dict(self.defaults)

    def _copy_hyperparameters(
        self, tx: GradientTransformation
    ) -> GradientTransformation:
        """Copy the transformation's hyperparameter tensors: schedulers write to them, and others may share them."""
        values = {
            entry.place: each_item(entry.value, _cloned)
            for entry in tx._entries()
            if tensors_in(entry.value)
        }
        return tx._replaced(values, checked=False) if values else tx

    @property
    def _tx(self) -> GradientTransformation:
        return self._parts.members.tx

    @property
    def _engine(self) -> Any:
        return self._parts.engine

    @without_ambient
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with defaults for hyperparameters that the group does not specify.

        A partition splits the group into one group per label. Otherwise like torch's method, with the same errors.
        Parameters that still have state, from a group that was removed, keep it.
        """
        owner = type(self).__name__
        parts = self._up_to_date()
        group = listed_group(owner, param_group)
        group = without_repeats(self._checked_by_torch(group))
        keys = list(group)
        members, states = parts.members, parts.states
        self._take_written_defaults(group)
        if self._parts.offload is not None:
            self._parts.offload.check(group["params"])
        joining = members.joining(group)
        first_states: list[dict[Tensor, Initial]] = []
        with self._parts.with_state(joining.by_param, writes=False):
            for view in joining.views:
                self._parts.hessian.mark(view.group)
                first_states.append(states.outline(view, joining.by_param))
        # Warn before anything changes, because warnings may be turned into errors.
        warn_of_misspelt(owner, keys, self._tx._entries())
        warn_of_unread(owner, joining.unread)
        warn_of_engine_options(owner, group)
        members.admit(joining)
        for view, first in zip(joining.views, first_states, strict=True):
            self.param_groups.append(view.group)
            states.keep(view, first)
        for view in joining.views:
            view.show(states.count)
        if self._released is not None:
            self._released.follow(members.by_param)

    def _take_written_defaults(self, group: Group) -> None:
        """Copy values that were written to `defaults` into a new group; other defaults come from the chain."""
        made = self._made_defaults
        for name, value in self.defaults.items():
            is_written = made is not None and not is_same(value, made.get(name))
            if is_written and name not in ENGINE_OPTIONS:
                group.setdefault(name, value)

    def _checked_by_torch(self, param_group: Group) -> Group:
        """Return a group after torch's checks, without torch's defaults; the group is not added."""
        size, defaults = len(self.param_groups), self.defaults
        self.defaults = {}
        try:
            super().add_param_group(param_group)
            return self.param_groups[-1]
        finally:
            del self.param_groups[size:]
            self.defaults = defaults

    def _up_to_date(self) -> Parts:
        """Return the parts, updated for changes to groups and state from outside."""
        members, states = self._parts.members, self._parts.states
        states.by_param = self.state
        for param in members.follow(self.param_groups, states.count):
            # Left over when accelerate shards parameters; no step would use it again.
            self.state.pop(param, None)
        if self._released is not None:
            self._released.follow(members.by_param)
        return self._parts

    @without_ambient
    def release_gradients(self) -> ReleasedGradients:
        """Step during backward: each parameter is updated as soon as its gradient is complete, and `.grad` set to None.

        At most one gradient is therefore kept, apart from those that backward is still accumulating. `step()` ends the
        step: it advances schedules and counts and calls hooks, and must be called after each backward as usual.
        Results equal those of ordinary steps bit for bit. Learning rates are read at the first gradient. With
        `accumulate(tx, every)`, gradients are accumulated in the state.

        Returns:
            A handle; `handle.remove()` returns to ordinary steps.

        Raises:
            ValueError: If a link needs all gradients together (a sum over leaves, a closure, a rule for whole trees),
                or an input that is known only after backward.
            RuntimeError: If the optimizer has `state_device` or `capturable`, or if gradients are released already;
                during backward, if a parameter receives a second gradient without `step()`; in `step`, if a GradScaler
                is used.

        Example:
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = gradtx.optim.AdamW(model.parameters())
            >>> handle = optimizer.release_gradients()
            >>> model(torch.ones(2)).sum().backward()
            >>> model.weight.grad is None
            True
            >>> optimizer.step()
            >>> handle.remove()
        """
        from gradtx.optim._release import ReleasedGradients

        if self._parts.offload is not None:
            raise RuntimeError(
                f"{type(self).__name__}: release_gradients cannot be combined with state_device, whose steps "
                "copy all gradients together; use step(consume_gradients=True)"
            )
        if self._parts.capturable:
            raise RuntimeError(
                f"{type(self).__name__}: release_gradients cannot be combined with capturable: "
                "a CUDA graph keeps gradients"
            )
        if self._released is not None and self._released.active:
            raise RuntimeError(
                f"{type(self).__name__}: gradients are already released; call handle.remove() first"
            )
        self._released = ReleasedGradients(self)
        return self._released

    def _check_training(self) -> None:
        """Check that the parameters contain the training weights."""
        evaluation = self._parts.evaluation
        if evaluation is not None and evaluation.changes_weights():
            raise RuntimeError(
                f"{type(self).__name__}: the parameters contain the evaluation weights; call optimizer.train() "
                "before step()"
            )

    def _check_released(self, extras: Extras) -> None:
        """Check that a step with released gradients uses neither extras nor a GradScaler."""
        if self._released is None or not self._released.active:
            return
        owner = type(self).__name__
        if extras:
            name = next(iter(extras))
            raise TypeError(
                f"{owner}: step does not accept {name!r} while gradients are released: parameters have already been "
                "updated"
            )
        if Scaling.requested_by(self) is not None:
            raise RuntimeError(
                f"{owner}: a GradScaler cannot be used while gradients are released, because parameters step before "
                "it has read all gradients; train in bfloat16, or call handle.remove()"
            )

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        max_iter: int = 1,
        consume_gradients: bool = False,
        **extras: Any,
    ) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradients and returns the loss; links may call it again.
            max_iter: Number of updates with this closure, which then must not change its data. Each update starts with
                the loss and gradients that a line search has already computed there. Updates end early if one of them
                moves no parameter.
            consume_gradients: Whether to set each `.grad` to None as soon as it is used, so that temporary tensors can
                reuse its memory. After the step all are None, also if a GradScaler skipped it.
            **extras: Inputs of links other than gradients. Extras by leaf are lists in parameter order or dicts by
                name. If `hessian_diag` is omitted, it is estimated at the steps that use it, from the gradients of
                `loss.backward(create_graph=True)` or with a closure that calls `loss.backward()`.

        Returns:
            The closure's first result.

        Raises:
            RuntimeError: If a gradient is sparse, if the parameters hold evaluation weights, if a closure computes no
                gradients although links call it again, or if a GradScaler is enabled and a closure is passed or
                `hessian_diag` has to be estimated.
            TypeError, ValueError: If an extra is unknown or missing, or if a hyperparameter is out of range. The
                optimizer is then unchanged.
        """
        if torch.compiler.is_compiling():  # a graph break: a step runs its own programs
            return self._step_untraced(closure, max_iter, consume_gradients, extras)
        return self._plain_step(closure, max_iter, consume_gradients, extras)

    def _plain_step(
        self,
        closure: Callable[[], Any] | None,
        max_iter: int,
        consume_gradients: bool,
        extras: Extras,
    ) -> Any:
        """Step without the caller's autocast and default device, in which only closures and other extras run."""
        if closure is not None and not callable(closure):
            raise TypeError(
                f"{type(self).__name__}: closure must be a function that computes the loss and its gradients, got "
                f"{describe(closure)}; pass a loss as step(value=loss)"
            )
        step = (
            self._step if max_iter == 1 else functools.partial(self._iterate, max_iter)
        )
        around = ambient()
        if around is None:
            return step(closure, consume_gradients, extras)
        closure, extras = around.around(closure), around.around_all(extras)
        return around.suspend(step, closure, consume_gradients, extras)

    def _iterate(
        self,
        max_iter: int,
        closure: Callable[[], Any] | None,
        consume_gradients: bool,
        extras: Extras,
    ) -> Any:
        """Step repeatedly with one closure, and return its first result."""
        if closure is None or max_iter < 1:
            raise ValueError(
                f"{type(self).__name__}: max_iter={max_iter!r} must be at least 1, and needs a closure"
            )
        params = params_of(self.param_groups)
        known = KnownClosure(closure, params)
        losses: list[Any] = []
        for _ in range(max_iter):
            before = Weights(params)
            losses.append(self._step(known, consume_gradients, dict(extras)))
            if before.are_present():
                break
        return losses[0]

    def _step(
        self,
        closure: Callable[[], Any] | None,
        consume_gradients: bool,
        extras: Extras,
    ) -> Any:
        self._check_training()
        self._check_released(extras)
        parts = self._up_to_date()
        scaling = Scaling.requested_by(self)
        if scaling is not None:
            if closure is not None:
                remedy = (
                    "train in bfloat16, without a scaler"
                    if self._calls_again()
                    else "call step without a closure"
                )
                raise RuntimeError(
                    f"closures are not supported under an enabled GradScaler: {remedy}"
                )
            if parts.counts_on_host() and not scaling.proceed:
                scaling.unscale(parts.members.by_param)
                if consume_gradients:
                    parts.members.drop_gradients()
                return None
        loss = None
        hessian = HessianStep(parts, extras) if parts.hessian.link else None
        if closure is not None:
            with torch.enable_grad(), hessian or contextlib.nullcontext():
                loss = closure()
            self._add_extras_of(closure, loss, extras)
            parts = self._up_to_date()
            if self._calls_again():
                check_closure(parts.members.by_param)
        open_step = None
        if self._released is not None:
            open_step = self._released.close()
        elif self._idle_steps is not None:
            self._count_idle_step(parts)
        if parts.offload is not None:
            parts.offload.extras_on_host(extras)
        at_state = parts.at_state(
            writes=True, consumes=consume_gradients, unscales=scaling is not None
        )
        with at_state, parts.states.undone_on_failure():
            step = open_step or self._checked_step(extras, scaling, consume_gradients)
            if hessian is not None:
                hessian.supply(step)
            step.finish()
        if consume_gradients:
            parts.members.drop_gradients()  # those of frozen leaves are left
        return loss

    def _add_extras_of(
        self, closure: Callable[[], Any], loss: Any, extras: Extras
    ) -> None:
        """Add the extras that a closure supplies, unless the caller passed them."""
        # Closures may return other objects if no link reads the loss.
        is_loss = isinstance(loss, numbers.Real) and not isinstance(loss, bool)
        if isinstance(loss, Tensor) and loss.numel() == 1:
            loss, is_loss = loss.detach().reshape(()), True
        if is_loss or (loss is not None and "value" in self._tx.needs):
            extras.setdefault("value", loss)
        extras.setdefault("grad_fn", closure)
        extras.setdefault("value_fn", closure)

    def _calls_again(self) -> bool:
        """Whether a link calls the closure at other weights."""
        return not {"grad_fn", "value_fn"}.isdisjoint(self._tx.needs)

    def _count_idle_step(self, parts: Parts) -> None:
        """Warn once if no parameter had a gradient in the first steps: then nothing is trained."""
        assert self._idle_steps is not None
        self._idle_steps += 1
        is_idle = all(param.grad is None for param in parts.members.by_param)
        if is_idle and self._idle_steps < IDLE_STEPS:
            return
        self._idle_steps = None
        if is_idle:
            warn_of_idle_steps(type(self).__name__)

    _step_untraced = _torch.not_traced(_plain_step)

    def _checked_step(
        self, extras: Extras, scaling: Scaling | None, consumes: bool
    ) -> Step:
        """Create a step, which runs all checks; report a failure so that other ranks do not wait."""
        members = self._parts.members
        try:
            return Step(self._parts, extras, scaling, consumes)
        except Exception:
            self._parts.agreement.report_failure(
                members.by_param.values(), members.replicas
            )
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        # torch's schedulers wrap `step` in a counter.
        if name == "step" and "_parts" in self.__dict__:
            for view in self._parts.members.views:
                view.check_schedulers(attaching=True)
        super().__setattr__(name, value)

    def expect_scheduler(self) -> None:
        """Allow the next scheduler to override schedules in the chain without a warning."""
        for view in self._up_to_date().members.views:
            view.expects_scheduler = True

    @without_ambient
    def explain(self) -> Explanation:
        """Report how each parameter was updated in the last step, and why not in a faster way, as `Way` objects.

        The printed form counts the parameters for each way: compiled programs (`compile=`), programs over lists of
        tensors (the default), or each parameter alone (rules that read values on the host, draw random numbers, or
        process whole trees). A program records each rule once, so a rule must depend only on its arguments.

        Example:
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = gradtx.optim.AdamW(model.named_parameters())
            >>> model(torch.ones(2)).sum().backward()
            >>> optimizer.step()
            >>> optimizer.explain()
            lists: 2 parameters (weight, bias)
        """
        return explain(self._up_to_date())

    # Evaluation weights.

    @torch.no_grad()
    @without_ambient
    def eval(self) -> None:
        """Replace the parameters with the evaluation weights until `train` is called.

        Trainers call this before an evaluation, as for schedule-free optimizers. It has no effect without links that
        average weights, or if it was already called. Weights that are loaded or written meanwhile are lost: `train`
        restores those from before, and warns. FSDP2 modules that still hold gathered parameters after a forward pass
        without backward, such as the root, do not see the new weights before `module.reshard()`; this also applies to
        `train`.
        """
        if self._parts.evaluation is None:
            parts = self._up_to_date()
            with parts.at_state(writes=False):
                weights = self._evaluated(parts)
            self._parts.evaluation = Evaluation.start(weights)

    @torch.no_grad()
    @without_ambient
    def train(self) -> None:
        """Restore the training weights after `eval`."""
        evaluation = self._parts.evaluation
        if evaluation is not None:
            evaluation.end()
            self._parts.evaluation = None

    @contextlib.contextmanager
    def eval_params(self) -> Generator[None, None, None]:
        """Replace the parameters with the evaluation weights inside a `with` block."""
        if self._parts.evaluation is not None:  # evaluation mode is already active
            yield
            return
        self.eval()
        try:
            yield
        finally:
            self.train()

    def _evaluated(self, parts: Parts) -> dict[Tensor, Tensor]:
        """Return the evaluation weights, by parameter, for leaves with a link that provides them."""
        members, states = parts.members, parts.states
        run, count = states.run(), states.exact_count()
        clock = Clock(torch.tensor(count + 1, device=CPU))
        weights: dict[Tensor, Tensor] = {}
        for view in members.views:
            block = Block.of(view.chain(view.values()), run, count)
            for param in view.group["params"]:
                member = members.by_param[param]
                states.accept_moved(view, member)
                if member.layout is not None and not states.is_unused(member):
                    leaf = states.leaf(run, member, clock)
                    value = evaluation_weights(leaf, block.for_leaf(leaf))
                    if value is not None:
                        weights[param] = leaf.in_callers_form(value)
        run.commits.clear()  # breaks a reference cycle with the run
        return weights

    @without_ambient
    def state_dict(self) -> dict[str, Any]:
        """Return a state dict in torch's format, with slots for every parameter that requires a gradient.

        Slots of a parameter without a gradient so far have their initial values. If parameters, or the work on them,
        are divided among ranks, all ranks must call it together. Slots that only the owner of a matrix keeps are then
        saved whole, or divided by rows if the parameter is sharded.
        """
        parts = self._up_to_date()
        evaluation = parts.evaluation
        with parts.at_state(writes=False):
            parts.states.create_all(matches_groups=evaluation is None)
        parts.states.show_exactly()
        state_dict = self._state_dict_of_members()
        views = parts.members.views
        for view, group in zip(views, state_dict["param_groups"], strict=True):
            overridden = view.overridden()
            if overridden is not None:
                group[OVERRIDDEN] = overridden
            codes: dict[str, str] = {}
            for param in view.group["params"]:
                layout = parts.members.by_param[param].layout
                codes.update({} if layout is None else layout.labels)
            if codes:
                group[CODES] = codes
        if evaluation is not None:
            evaluation.save(state_dict, params_of(self.param_groups))
        return state_dict

    def _state_dict_of_members(self) -> dict[str, Any]:
        """Return torch's state dict, without the state of parameters that were removed from the groups."""
        members = self._parts.members.by_param
        everything = cast("defaultdict[Any, Any]", self.state)
        member_states = {
            key: value
            for key, value in everything.items()
            if not isinstance(key, Tensor) or key in members
        }
        owner_states = states_of_owners(
            members, member_states, self._parts.members.replicas
        )
        if len(member_states) == len(everything) and not owner_states:
            return super().state_dict()
        member_states.update(owner_states)
        self.state = defaultdict(dict, member_states)
        try:
            return super().state_dict()
        finally:
            self.state = everything

    @_torch.not_traced
    @without_ambient
    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:  # type: ignore[override]
        """Load a state dict of this optimizer, or of the torch.optim class with the same slots.

        If it raises one of the errors below, the optimizer is unchanged.

        Args:
            state_dict: A state dict as returned by `state_dict()`.
            strict: Whether a missing or unknown slot in an entry is an error. Otherwise a missing slot keeps its
                initial value, and an unknown one is kept in the state, with a warning. Keys that a wrapper has written
                into the present state are always loaded. A parameter without an entry keeps its initial state in both
                cases.

        Raises:
            TypeError: If a state, group, entry or slot has another type.
            ValueError: If groups, slots, shapes or values do not match.
        """
        before, after = _torch.load_hooks(self)
        require(state_dict, Mapping, "load_state_dict: the argument", "a state dict")
        state_dict = dict(state_dict)
        for hook in before:
            state_dict = hook(self, state_dict) or state_dict
        parts = self._up_to_date()
        by_param = parts.members.by_param
        names = {param: by_param[param].name for param in params_of(self.param_groups)}
        check_form(state_dict, list(names.values()))
        state_dict = self._accepted(state_dict)
        evaluation, state_dict = Evaluation.take(state_dict, names)
        with parts.at_state(writes=False):
            Checkpoint(state_dict, parts.states, strict).load()
        parts.evaluation = evaluation
        if self._released is not None:
            self._released.close()
        # In place: wrappers share the list.
        self.param_groups[:] = [view.group for view in parts.members.views]
        # Subclasses complete old groups there.
        if type(self).__setstate__ is not ChainOptimizer.__setstate__:
            self.__setstate__({"state": self.state, "param_groups": self.param_groups})
        for hook in after:
            hook(self)

    def _accepted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return a state dict without options that the class fixes; raise an error for unsupported values of these."""
        return state_dict

    def __deepcopy__(self, memo: dict[int, Any]) -> ChainOptimizer:
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__setstate__(deepcopy(self.__getstate__(), memo))
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse a pickle that torch could not load; copies do not need one."""
        for tensor in tensors(dict(self.state)):
            if tensor.dtype == torch.float8_e4m3fn:
                raise TypeError(
                    f"{type(self).__name__}: torch cannot load pickles of float8 tensors, which the state contains; "
                    "save the state dict instead: torch.save(optimizer.state_dict(), path)"
                )
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        self._parts.states.forget_used()
        return {**super().__getstate__(), "_parts": self._parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if hasattr(self, "_parts") and state.keys() <= {"state", "param_groups"}:
            super().__setstate__(state)  # the next call adapts to the changes
            return
        super().__setstate__(state)
        parts = self._parts
        parts.states.by_param = self.state
        parts.states.note_copies()


def _cloned(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
