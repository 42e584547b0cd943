"""`ChainOptimizer`, a torch.optim.Optimizer that runs any transformation."""

from __future__ import annotations

import contextlib
import functools
import numbers
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.arguments import tensors_in
from gradtx.base import torch_names as _torch
from gradtx.base.ambient import ambient, without_ambient
from gradtx.base.errors import Path
from gradtx.base.inputs import (
    listed_group,
    listed_params,
    without_repeats,
)
from gradtx.base.messages import describe
from gradtx.base.tree import tensors
from gradtx.distributed.layouts import team_of_group
from gradtx.links.record import recorded_in
from gradtx.optim.chain_checks import (
    IDLE_STEPS,
    check_scheduler,
    warn_of_engine_options,
    warn_of_idle_steps,
    warn_of_misspelt,
    warn_of_unread,
    warn_of_unread_rate,
)
from gradtx.optim.checkpoint import Checkpoint, check_structure, require
from gradtx.optim.core import Core
from gradtx.optim.device_counts import Scaling, check_capturable
from gradtx.optim.engine import Engine
from gradtx.optim.evaluation import Evaluation, evaluated
from gradtx.optim.explain import Explanation, explain
from gradtx.optim.groups import (
    CODES_KEY,
    OVERRIDDEN,
    SHAPES_KEY,
    WRAPPER_KEYS,
    Group,
    defaults_of,
    has_array,
    is_same,
    params_of,
    without_arrays,
)
from gradtx.optim.hessian import SEED, HessianSource
from gradtx.optim.own_gradients import (
    SAMPLES,
    lend_gradients,
    lend_zeros,
    mark_read,
)
from gradtx.optim.parameters import Members
from gradtx.optim.run import (
    Extras,
    MemoizedClosure,
    RepeatedResiduals,
    Weights,
    check_closure,
)
from gradtx.optim.state import States
from gradtx.optim.step import Step
from gradtx.plans.hyperparameters import each_item
from gradtx.state.layout import by_state_key
from gradtx.state.storage import check_patterns
from gradtx.transform import GradientTransformation, check_transformation

if TYPE_CHECKING:
    from gradtx.optim.release import ReleasedGradients


class ChainOptimizer(_torch.TakesScaledGradients, torch.optim.Optimizer):
    """A GradientTransformation as a torch optimizer; returned by `as_optimizer`, base of the `gradtx.optim` classes."""

    _released: ReleasedGradients | None = None
    # The number of steps so far, none of which had a gradient; None after the first gradient.
    _idle_steps: int | None = 0

    @_torch.not_traced  # inside torch.compile, graphs break here
    @without_ambient
    def __init__(
        self,
        tx: GradientTransformation,
        params: Any = None,
        *,
        compile: bool | Engine = False,
        seed: int = 0,
        process_group: Any = None,
        state_device: torch.device | str | None = None,
        capturable: bool = False,
        amp_scaling: bool = False,
    ):
        who = type(self).__name__
        check_transformation(who, "tx", tx)
        offload = replicas = None
        # Imported only where they are needed: `import gradtx` stays short.
        from gradtx.optim.engine.lists import ListEngine

        back_ends: list[Engine] = [ListEngine()]
        if compile is not False:
            from gradtx.optim.engine.kernels import engine_for

            back_ends.insert(0, engine_for(compile))
        if state_device is not None:
            from gradtx.optim.offload import offload_for

            offload = offload_for(who, state_device, tx)
            if process_group is not None or capturable:
                other = "capturable" if capturable else "process_group"
                raise ValueError(f"{who}: {other} cannot be combined with state_device")
        if process_group is not None:
            replicas = team_of_group(f"{who}: process_group", process_group)
        members = Members(who, self._copy_hyperparameters(tx), replicas)
        states = States(members)
        self._core = Core(members, states, back_ends, offload, capturable, amp_scaling)
        self._hessian = HessianSource.of_chain(who, tx, seed)
        super().__init__(listed_params(who, params), {})
        if capturable:
            check_capturable(members)
        members.check_selectors()
        if not any(map(is_lazy, members.by_param)):  # otherwise slots are unknown
            check_patterns(states.seen_slots)
        self._take_defaults(defaults_of(members.groups))
        for engine in back_ends:
            engine.is_taken = True

    def _take_defaults(self, defaults: dict[str, Any]) -> None:
        """Set `defaults`, and note them: a group that is added gets those that were changed."""
        self.defaults, self._core.defaults = defaults, dict(defaults)

    def takes_scaled_gradients(self) -> bool:
        """Whether a GradScaler leaves unscaling and skipping to `step`: on request, or so that `step` can refuse it."""
        core, is_released = self._core, self._released is not None
        is_refused = is_released or self._hessian is not None or core.traits.exchanges
        is_refused = is_refused or core.traits.makes_gradient
        return core.amp_scaling or core.capturable or is_refused

    def _copy_hyperparameters(
        self, tx: GradientTransformation
    ) -> GradientTransformation:
        """Copy the transformation's hyperparameter tensors: schedulers write to them, and others may share them."""
        values = {
            entry.place: each_item(_cloned, entry.value)
            for entry in tx._entries()
            if tensors_in(entry.value)
        }
        return tx._replaced(values, checked=False) if values else tx

    @property
    def _tx(self) -> GradientTransformation:
        return self._core.members.tx

    @without_ambient
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with `defaults` for hyperparameters that the group does not specify.

        A partition splits the group into one group per label. Otherwise like torch's method, with the same errors.
        Parameters that still have state, from a group that was removed, keep it.
        """
        who = type(self).__name__
        core = self._up_to_date()
        if self._released is not None:
            self._released.check_closed()
        group = listed_group(who, param_group)
        group = without_repeats(self._checked_by_torch(group))
        keys = list(group)
        members, states = core.members, core.states
        for name, value in self.defaults.items():  # as in torch, if it was changed
            is_torchs = name == "differentiable"  # which copies have
            if not (is_torchs or is_same(value, core.defaults.get(name))):
                group.setdefault(name, value)
        if core.offload is not None:
            core.offload.check(group["params"])
        joining = members.joining(group)
        with core.at_state(joining.by_param, writes=False):
            for settings in joining.groups:
                if self._hessian is not None:
                    settings.group.setdefault(SEED, self._hessian.seed)
                states.check(settings, joining.by_param)
        # Warn before anything changes, because warnings may be turned into errors.
        warn_of_misspelt(who, keys, self._tx)
        warn_of_unread(who, joining.unread)
        warn_of_engine_options(who, group)
        members.admit(joining)
        for settings in joining.groups:
            self.param_groups.append(settings.group)
            settings.show(states.count)
        if self._released is not None:
            self._released.follow(members.by_param)

    def _checked_by_torch(self, param_group: Group) -> Group:
        """Return a group after torch's checks, without torch's defaults; the group is not added."""
        defaults, self.defaults = self.defaults, {}
        try:
            super().add_param_group(param_group)
        finally:
            self.defaults = defaults
        return self.param_groups.pop()

    def _up_to_date(self) -> Core:
        """Return the core, updated for changes to groups and state from outside."""
        core = self._core
        members = core.members
        core.states.by_param = self.state
        replaced = members.follow(self.param_groups)
        if replaced is not None:
            for param in replaced:
                # Left over when accelerate shards parameters; no step would use it again.
                self.state.pop(param, None)
            if self._released is not None:
                self._released.follow(members.by_param)
        return core

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
            RuntimeError: If the optimizer has `state_device` or `capturable`, if gradients are released already, or if
                `gradtx.watch` sees it; during backward, if a parameter receives a second gradient without `step()`; in
                `step`, if a GradScaler is used.

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
        from gradtx.optim.release import ReleasedGradients

        if self._released is not None and self._released.active:
            raise RuntimeError(
                f"{type(self).__name__}: gradients are already released; call handle.remove() first"
            )
        self._released = ReleasedGradients(self)
        return self._released

    @property
    def releases_gradients(self) -> bool:
        """Whether parameters step during backward (`release_gradients`)."""
        return self._released is not None and self._released.active

    @_torch.without_gradients
    def step(
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
                moves no parameter, unless the closure returns residuals: a rejected trial moves none.
            consume_gradients: Whether to set each `.grad` to None as soon as it is used, so that temporary tensors can
                reuse its memory. After the step all are None, also if a GradScaler skipped it.
            **extras: Inputs of links other than gradients. Extras by leaf are lists in parameter order or dicts by
                name. If `hessian_diag` is omitted, it is estimated at the steps that use it, from the gradients of
                `loss.backward(create_graph=True)` or with a closure that calls `loss.backward()`.

        Returns:
            The closure's first result.

        Raises:
            RuntimeError: If a sparse gradient does not list rows, or if a link needs all rows of it; if the parameters
                hold evaluation weights; if a closure computes no gradients although links call it again; or if a
                GradScaler is enabled and a closure is passed or `hessian_diag` has to be estimated.
            TypeError, ValueError: If an extra is unknown or missing, or if a hyperparameter is out of range. The
                optimizer is then unchanged.
        """
        if torch.compiler.is_compiling():  # a graph break: a step runs its own programs
            return self._step_untraced(
                closure,
                max_iter=max_iter,
                consume_gradients=consume_gradients,
                **extras,
            )
        if closure is not None and not callable(closure):
            raise TypeError(
                f"{type(self).__name__}: closure must be a function that computes the loss and its gradients, got "
                f"{describe(closure)}; pass a loss as step(value=loss)"
            )
        around = (
            ambient() if _torch.may_be_ambient() else None
        )  # only closures and other extras run in it
        if around is not None:
            closure, extras = around.around(closure), around.around_all(extras)
        step = (
            self._step if max_iter == 1 else functools.partial(self._iterate, max_iter)
        )
        if around is None:
            return step(closure, consume_gradients, extras)
        return around.suspend(step, closure, consume_gradients, extras)

    _step_untraced = _torch.not_traced(step)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch; for a chain that reads them, also drop the gradients of examples, `grad_sample`."""
        super().zero_grad(set_to_none)
        if "grad_sample" in self._tx.needs:
            for param in params_of(self.param_groups):
                param.grad_sample = None

    def _iterate(
        self,
        max_iter: int,
        closure: Callable[[], Any] | None,
        consume_gradients: bool,
        extras: Extras,
    ) -> Any:
        """Step repeatedly with one closure, and return its first result."""
        if closure is None or not isinstance(max_iter, int) or max_iter < 1:
            raise ValueError(
                f"{type(self).__name__}: max_iter={max_iter!r} must be an int of at least 1, and needs a closure"
            )
        params = params_of(self.param_groups)
        takes_residuals = self._core.traits.closure_extra == "residual_fn"
        repeated: Callable[[], Any] = MemoizedClosure(closure, params)
        if takes_residuals:
            repeated = RepeatedResiduals(closure)
        losses = []
        for _ in range(max_iter):
            before = Weights(params)
            losses.append(self._step(repeated, consume_gradients, dict(extras)))
            # A trial that is rejected is followed by another one with more damping.
            if before.are_present() and not takes_residuals:
                break
        return losses[0]

    def _step(
        self,
        closure: Callable[[], Any] | None,
        consume_gradients: bool,
        extras: Extras,
    ) -> Any:
        core = self._up_to_date()
        if not self.state and _torch.is_called_by_checkpoint():
            core.states.begin()
            core.states.keep_missed()
            return None
        scaling = self._checked(core, closure, extras)
        if scaling is not None and core.counts_on_host() and not scaling.proceed:
            self._end(core, scaling, consume_gradients)
            return None
        estimates = self._hessian is not None and "hessian_diag" not in extras
        if estimates:
            extras["hessian_diag"] = None
        loss = None
        if closure is not None and core.traits.closure_extra:
            self._take_closure(core.traits.closure_extra, closure, extras)
        elif closure is not None:
            loss = self._call(closure, extras, estimates)
            core = self._up_to_date()
            if core.members.repeated:
                core.members.refuse_repeated()
            if core.traits.calls_again:
                check_closure(core.members.by_param)
        step: Step | None = None
        if self._released is not None:
            step = self._released.ending(core)
        elif self._idle_steps is not None and not core.traits.makes_gradient:
            self._count_idle_step(core)
        at_state = contextlib.nullcontext()
        if core.offload is not None:
            core.offload.extras_on_host(extras)
            at_state = core.at_state(writes=True, consumes=consume_gradients)
        lent: list[Tensor] = []
        reads_samples = SAMPLES in core.traits.known_extras and SAMPLES not in extras
        core.agreement.is_done = False
        with at_state:
            try:
                if core.traits.makes_gradient:
                    lent = lend_gradients(core, extras, scaling)
                elif core.traits.exchanges:
                    lent = lend_zeros(core)
                if step is None:
                    step = Step(core, extras, scaling, consume_gradients)
                if self._hessian is not None:
                    self._hessian.supply(step, estimates)
                step.apply()
                if reads_samples:
                    mark_read(core)
            except Exception:
                core.agreement.report_failure(core.members)  # others must not wait
                core.states.undo()
                raise
            finally:
                core.states.created.clear()
                for param in lent:
                    param.grad = None
        if scaling is not None or consume_gradients:
            self._end(core, scaling, consume_gradients)
        return step.run.estimated_loss if core.traits.closure_extra else loss

    def _take_closure(
        self, extra: str, closure: Callable[[], Any], extras: Extras
    ) -> None:
        """Take a closure that calls no backward as an extra.

        Raises:
            TypeError: If the caller passed this extra, too.
        """
        if extras.get(extra) is not None:
            raise TypeError(
                f"{type(self).__name__}: the closure is {extra}; pass only one of the two"
            )
        extras[extra] = closure

    def _checked(
        self, core: Core, closure: Callable[[], Any] | None, extras: Extras
    ) -> Scaling | None:
        """Return what a GradScaler asks for.

        Raises:
            ValueError: If a parameter is twice in the groups.
            RuntimeError: If evaluation weights, released gradients or a scaler rule out a step with these arguments.
        """
        if core.members.repeated:
            core.members.refuse_repeated()
        scaling = None
        if getattr(self, "found_inf", None) is not None:
            scaling = Scaling.requested_by(self)
        if core.evaluation is not None:
            core.evaluation.check_training(type(self).__name__)
        if self._released is not None:
            self._released.check_step(extras, scaling)
        if closure is not None and (
            scaling is not None or _torch.is_called_by_scaler()
        ):
            # Its gradients would be scaled: a scaler unscales those that are there before the step.
            remedy = (
                "train in bfloat16, without a scaler"
                if core.traits.calls_again
                else "call step without a closure"
            )
            raise RuntimeError(
                f"closures are not supported under an enabled GradScaler: {remedy}"
            )
        return scaling

    def _call(self, closure: Callable[[], Any], extras: Extras, estimates: bool) -> Any:
        """Call a closure for the loss and its gradients, whose graphs are kept if the Hessian is estimated."""
        keeping_graphs = contextlib.nullcontext()
        if self._hessian is not None and estimates:
            keeping_graphs = self._hessian.keeping_graphs(self._core.states)
        with torch.enable_grad(), keeping_graphs:
            loss = closure()
        self._add_extras_of(closure, loss, extras)
        return loss

    def _end(
        self, core: Core, scaling: Scaling | None, consume_gradients: bool
    ) -> None:
        """Leave gradients as the caller expects them after a step, also after one that was skipped."""
        if scaling is not None:
            scaling.unscale(core.members.by_param)
        if consume_gradients:
            core.members.drop_gradients()  # those of frozen leaves are left

    def _add_extras_of(
        self, closure: Callable[[], Any], loss: Any, extras: Extras
    ) -> None:
        """Add the extras that a closure supplies, unless the caller passed them."""
        # Closures may return other objects if no link reads the loss.
        if isinstance(loss, Tensor):
            is_loss = loss.numel() == 1
            if is_loss:
                loss = loss.detach().reshape(()) if loss.ndim else loss.detach()
        else:
            is_loss = isinstance(loss, numbers.Real) and not isinstance(loss, bool)
        if is_loss or (loss is not None and "value" in self._tx.needs):
            extras.setdefault("value", loss)
        extras.setdefault("grad_fn", closure)
        extras.setdefault("value_fn", closure)

    def _count_idle_step(self, core: Core) -> None:
        """Warn once if no parameter had a gradient in the first steps: then nothing is trained."""
        assert self._idle_steps is not None
        self._idle_steps += 1
        is_idle = all(param.grad is None for param in core.members.by_param)
        if is_idle and self._idle_steps < IDLE_STEPS:
            return
        self._idle_steps = None
        if is_idle:
            warn_of_idle_steps(type(self).__name__)

    def __setattr__(self, name: str, value: Any) -> None:
        # torch's schedulers wrap `step` in a counter.
        if name == "step" and "_core" in self.__dict__:
            core, members = self._core, self._core.members
            if core.may_lack_rate:
                core.may_lack_rate = warn_of_unread_rate(members.who, members.groups)
            if not core.expects_scheduler:
                core.expects_scheduler = check_scheduler(members.who, members.groups)
        super().__setattr__(name, value)

    def expect_scheduler(self) -> None:
        """Allow schedulers to override schedules in the chain without a warning."""
        self._core.expects_scheduler = True

    @without_ambient
    def explain(self) -> Explanation:
        """Report how each parameter was updated in the last step, and why not in a faster way, as `Way` objects.

        The printed form counts the parameters for each way: kernels (`compile=True`), programs over lists of tensors
        (the default), or each parameter alone (rules that read values on the host, draw random numbers, or process
        whole trees). A program records each rule once, so a rule must depend only on its arguments.

        With `compile=True`, there is a line for each kernel of a step (`launches`), and the total: the bytes that
        kernels read and write, and the least if each tensor were read and written once (`bytes`, `least_bytes`).

        Example:
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = gradtx.optim.AdamW(model.named_parameters())
            >>> model(torch.ones(2)).sum().backward()
            >>> optimizer.step()
            >>> optimizer.explain()
            lists: 2 parameters (weight, bias)
            >>> optimizer.explain().launches  # with compile=True
            []
        """
        return explain(self._up_to_date())

    @torch.no_grad()
    def recorded(self) -> dict[str, float]:
        """Return what the `record` links of the chain have recorded in the last step, for any logger.

        The keys are those of `gradtx.recorded`. Reading waits for the device.

        Example:
            >>> model = torch.nn.Linear(2, 1, bias=False)
            >>> tx = gradtx.chain(gradtx.record(what=("max",)), gradtx.sgd(lr=0.1))
            >>> optimizer = gradtx.as_optimizer(tx, model.named_parameters())
            >>> model(torch.ones(2)).sum().backward()
            >>> optimizer.step()
            >>> optimizer.recorded()
            {'record/max/weight': 1.0}
        """
        stages: dict[Path, dict[str, Any]] = defaultdict(dict)
        for param, member in self._core.members.by_param.items():
            state = self.state.get(param, {})
            for (path, name), key in by_state_key(member.layout.shared):
                if key in state:
                    stages[path][name] = state[key]
            for (path, slot), key in by_state_key(member.layout.slots):
                if key in state:
                    stages[path].setdefault(slot, {})[member.name] = state[key]
        return recorded_in(stages)

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
        if self._core.evaluation is None:
            core = self._up_to_date()
            with core.at_state(writes=False):
                weights = evaluated(core.states)
            core.evaluation = Evaluation.start(weights)
            if core.watch is not None:
                core.watch.note_evaluation()

    @torch.no_grad()
    @without_ambient
    def train(self) -> None:
        """Restore the training weights after `eval`."""
        evaluation = self._core.evaluation
        if evaluation is not None:
            evaluation.end()
            self._core.evaluation = None

    @contextlib.contextmanager
    def eval_params(self) -> Generator[None, None, None]:
        """Replace the parameters with the evaluation weights inside a `with` block."""
        if self._core.evaluation is not None:  # evaluation mode is already active
            yield
            return
        self.eval()
        try:
            yield
        finally:
            self.train()

    @without_ambient
    def state_dict(self) -> dict[str, Any]:
        """Return a state dict in torch's format, with slots for every parameter that requires a gradient.

        Slots of a parameter without a gradient so far have their initial values. If parameters, or the work on them,
        are divided among ranks, all ranks must call it together. Slots that only the owner of a matrix keeps are then
        saved whole, or divided by rows if the parameter is sharded.
        """
        with _torch.around_save(self) as hooks:
            state_dict = self._saved()
        for hook in hooks:  # last, because they may save it, or replace all of it
            result = hook(self, state_dict)
            state_dict = state_dict if result is None else result
        return state_dict

    def _saved(self) -> dict[str, Any]:
        """Return the state dict, without the hooks."""
        core = self._up_to_date()
        members, states = core.members, core.states
        with core.at_state(writes=False):
            keeps = bool(self.state)
            if _torch.is_called_by_checkpoint():
                keeps = True
                states.keep_missed()
            saved, layouts = states.to_save(keeps)
        states.show_exactly()
        everything = self.state
        self.state = defaultdict(dict, saved)
        try:
            state_dict = super().state_dict()
        finally:
            self.state = everything
        for settings, group in zip(
            members.groups, state_dict["param_groups"], strict=True
        ):
            group |= {
                name: without_arrays(group[name])
                for name in settings.entries
                if has_array(group[name])
            }
            overridden = settings.overridden()
            if overridden is not None:
                group[OVERRIDDEN] = overridden
            of_params = list(map(layouts.__getitem__, settings.params))
            # Parameters share layouts: each in the place of the last one that has it.
            different = list(
                {id(layout): layout for layout in reversed(of_params)}.values()
            )
            codes: dict[str, str] = {}
            for layout in reversed(different):
                codes.update(layout.labels)
            of_wrappers: set[str] = set()
            for param, layout in zip(settings.params, of_params, strict=True):
                unknown = saved.get(param, {}).keys() - layout.keys
                if unknown:
                    of_wrappers |= states.keys_of_wrappers(param, unknown)
            if codes:
                group[CODES_KEY] = codes
            if any(layout.has_whole_codes for layout in different):
                group[SHAPES_KEY] = [list(param.shape) for param in settings.params]
            if of_wrappers:
                group[WRAPPER_KEYS] = sorted(of_wrappers)
        if core.evaluation is not None:
            core.evaluation.save(state_dict, params_of(self.param_groups))
        return state_dict

    @_torch.not_traced
    @without_ambient
    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load a state dict of this optimizer, or of the torch.optim class with the same slots.

        If it raises one of the errors below, the optimizer is unchanged. Tensors are copied, slot by slot, when the old
        state is free; the optimizer shares no memory with the state dict.

        Args:
            state_dict: A state dict as returned by `state_dict()`.
            strict: Whether a missing or unknown slot in an entry is an error. Otherwise a missing slot keeps its
                initial value, and an unknown one is kept in the state. Keys that a wrapper has written
                into the present state are always loaded. A parameter without an entry keeps its initial state in both
                cases.

        Raises:
            TypeError: If a state, group, entry or slot has another type.
            ValueError: If groups, slots, shapes or values do not match.
        """
        self._core.agreement.forget()  # this rank alone may fail below
        before, after = _torch.load_hooks(self)
        require(state_dict, Mapping, "load_state_dict: the argument", "a state dict")
        state_dict = dict(state_dict)
        for hook in before:
            state_dict = hook(self, state_dict) or state_dict
        core = self._up_to_date()
        by_param = core.members.by_param
        names = {param: by_param[param].name for param in params_of(self.param_groups)}
        check_structure(state_dict, list(names.values()))
        state_dict = self._accepted(state_dict)
        entries = state_dict["state"]
        is_lost = entries and not any((*entries.values(), *self.state.values()))
        if is_lost and _torch.is_called_by_checkpoint():
            self.state.clear()  # it has added empty entries
            raise ValueError(
                f"{type(self).__name__}: torch.distributed.checkpoint loads only what the optimizer has, and creates "
                "no state while there are gradients: call optimizer.zero_grad() before set_optimizer_state_dict"
            )
        evaluation, state_dict = Evaluation.take(state_dict, names)
        with core.at_state(writes=False):
            checkpoint = Checkpoint(state_dict, core.states, strict)
            checkpoint.install(core, self.state)
        core.evaluation = evaluation
        if self._released is not None:
            self._released.close()
        # In place: wrappers share the list.
        self.param_groups[:] = [settings.group for settings in core.members.groups]
        # Subclasses complete old groups there.
        if type(self).__setstate__ is not torch.optim.Optimizer.__setstate__:
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
        own = {"_core": self._core, "_hessian": self._hessian}
        return {**super().__getstate__(), **own}


def _cloned(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
