"""The parameters of an optimizer as the leaves of a run, each with a flat dict of state; and the closures it calls."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy

from gradtx.base import torch_names as _torch
from gradtx.base import tree as _tree
from gradtx.base.dtensor import local
from gradtx.base.errors import Path
from gradtx.base.exact import CPU
from gradtx.base.jacobian import GraphJacobian, Jacobian, Vectorizer
from gradtx.base.tree import check_names
from gradtx.base.vectors import JointVector
from gradtx.distributed.layouts import Team
from gradtx.distributed.redistribution import distributed_like, gradient_like
from gradtx.distributed.rows import GatheredJacobian, RowsOfRanks, assembled
from gradtx.distributed.sums import total
from gradtx.execution.context import Clock
from gradtx.execution.execute import Leaf, Route
from gradtx.execution.extras import as_scalar
from gradtx.execution.runs import Run, moved_along
from gradtx.state.layout import Layout, State

# Up to this count, float32 holds every whole number.
FLOAT32_COUNTS = 2**24
# The key of the updates that the parameter with the most updates has missed, in the states of all parameters.
MISSED = "missed_updates"
# Of a parameter without slots.
NO_LAYOUT = Layout({}, {})


@dataclass(eq=False)
class DeviceCount:
    """A step count on the device; parameters with the same count share one object.

    Attributes:
        made: The number of steps made, 0-d int64.
        bound: An upper bound known to the host, which includes skipped steps.
        least: A lower bound, without those that may have been skipped.
        behind: An upper bound of what the largest count has more.
    """

    made: Tensor
    bound: int
    least: int
    behind: int

    @property
    def most(self) -> int:
        """The number of steps as far as the host knows it without synchronizing."""
        return int(self.made) if self.made.device.type == "cpu" else self.bound

    @property
    def fewest(self) -> int:
        """The number of steps of which the host is certain without synchronizing."""
        return int(self.made) if self.made.device.type == "cpu" else self.least

    def follow(self, step: Tensor) -> None:
        """Take the value of a state's tensor `step` on the device, which may have been written without a version."""
        # float32 may have rounded a count that a graph has advanced.
        is_own_count = step == self.made.to(step.dtype)
        self.made.copy_(torch.where(is_own_count, self.made, step.to(torch.int64)))

    def after(self, increment: int | Tensor) -> DeviceCount:
        """Return the count after a step that adds `increment`."""
        least = self.least if isinstance(increment, Tensor) else self.least + increment
        return DeviceCount(self.made + increment, self.most + 1, least, self.behind)


def most_of(count: int | DeviceCount) -> int:
    """Return the largest value that a count may have, as far as the host knows it without synchronizing."""
    return count.most if isinstance(count, DeviceCount) else count


def as_step(count: int | DeviceCount, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a count as it is kept in a state: a tensor of `dtype`, as in torch.optim, or of float64 if it is large."""
    most = count.bound if isinstance(count, DeviceCount) else count
    if most > FLOAT32_COUNTS:
        dtype = torch.float64
    if isinstance(count, DeviceCount):
        return count.made.to(dtype)
    return torch.tensor(float(count), dtype=dtype, device="cpu")


class TensorKind(NamedTuple):
    """The properties of a parameter that its slots depend on, or of a slot."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> TensorKind:
        return cls(tensor.shape, tensor.dtype, tensor.device)

    def __str__(self) -> str:
        return f"{self.dtype} of shape {tuple(self.shape)} on {self.device}"


# Of a parameter (None) and of each of its slots (its key).
Kinds: TypeAlias = Mapping[str | None, TensorKind]


def kinds_of(param: Tensor, layout: Layout, state: State) -> Kinds:
    """Return the kinds of a parameter and of its slots; a slot that is no tensor has none."""
    kinds: dict[str | None, TensorKind] = {None: TensorKind.of(param)}
    for key in layout.slot_keys:
        if isinstance(state.get(key), Tensor):
            kinds[key] = TensorKind.of(state[key])
    return kinds


def zero_steps() -> Tensor:
    """Return the count before any step."""
    is_double = torch.get_default_dtype() == torch.float64  # as in torch.optim
    return torch.tensor(
        0.0, dtype=torch.float64 if is_double else torch.float32, device=CPU
    )


def stand_in(param: Tensor, dtype: torch.dtype, stride: tuple[int, ...]) -> Tensor:
    """Return a tensor like a gradient of a parameter, of which only the type and the layout matter."""
    like = param.detach()
    if like.dtype == dtype and like.stride() == stride:
        return like
    like = torch.empty_strided(param.shape, stride, dtype=dtype, device=param.device)
    like.untyped_storage().resize_(0)
    return like


@dataclass(eq=False)
class Member:
    """One parameter of an optimizer.

    Attributes:
        name: The name used by selectors, extras and error messages; unique in the optimizer.
        param: The parameter.
        choices: Each selector's decision for the parameter.
        layout: The layout of its state; without keys before its slots are created.
        fresh: Slots that nothing has used so far, by key: its first gradient creates them again.
        made_for: The structure of its group for which the slots were created.
        owner: The rank that keeps the slots of rules that need the whole parameter, if it is divided: an index into the
            ranks of `team_for`. None if there are no such slots.
        state: Its state, looked up for the current step.
        count: The number of steps it has made, looked up for the current step.
        group: The index of its group, looked up for the current step.
        kinds: The kind of the parameter (None) and of each slot (its key) when they were last found to fit together.
        listed: The name in `param_names` of its group; empty if it has none there.
        gradient_dtype: The dtype of its gradient when a plan was last made with one.
        device_count: A tensor `step` whose value is known to be `count` without a read, and that tensor's version.
    """

    name: str
    param: Tensor
    choices: dict[Path, Any] = field(default_factory=lambda: {})
    layout: Layout = NO_LAYOUT
    fresh: dict[str, FreshSlot] = field(default_factory=lambda: {})
    made_for: Any = None
    owner: int | None = None
    state: State = field(default_factory=lambda: {})
    count: int | DeviceCount = 0
    group: int = 0
    device_count: tuple[Tensor, int] | None = None
    listed: str = ""
    kinds: Kinds = field(default_factory=lambda: {})
    gradient_dtype: torch.dtype | None = None

    def count_in(self, state: State) -> int | DeviceCount:
        """Return the number of steps the parameter has made, without synchronizing if the device counts."""
        step = state.get("step", 0)
        if isinstance(self.count, DeviceCount) and self.device_count is not None:
            tensor, counted_at = self.device_count
            if tensor is step and version(tensor) == counted_at:
                made = self.count.made
                # The host need not wait for a count of its own.
                is_elsewhere = made.device.type != "cpu"
                if is_elsewhere or torch.equal(tensor, made.to(tensor.dtype)):
                    return self.count
        return int(step)

    def present_kinds(self) -> Kinds:
        """Return the present kinds of the parameter and of its slots; a slot that is no tensor has none."""
        return kinds_of(self.param, self.layout, self.state)

    def likely_gradient(self) -> Tensor:
        """Return the parameter's gradient, or a tensor without values that is like the one it will have."""
        gradient = self.param.grad
        if gradient is not None:
            self.gradient_dtype = gradient.dtype
            return gradient
        dtype = self.gradient_dtype or self.param.dtype
        return stand_in(self.param, dtype, self.param.stride())

    def set_count(self, count: int | DeviceCount) -> None:
        """Record the value of the state's tensor `step`, which the caller knows without reading it."""
        self.count = count
        if isinstance(count, DeviceCount):
            step = self.state["step"]
            self.device_count = step, version(step)
        else:
            self.device_count = None

    def mark_fresh(self, state: State) -> None:
        """Record that nothing has used the slots of a state so far."""
        self.fresh = {
            key: FreshSlot(tensor) for key, tensor in state.items() if key != "step"
        }

    def used(self, state: State) -> State:
        """Return the state without fresh slots, unless the user has written them."""
        return {
            key: value
            for key, value in state.items()
            if key not in self.fresh or self.fresh[key].is_written(value)
        }

    @property
    def has_moved_in(self) -> bool:
        """Whether the user has given it the state of another parameter, which no step has seen."""
        return not (self.layout.keys or self.fresh) and len(self.state) > 1

    def __getstate__(self) -> dict[str, Any]:
        # A copied tensor counts its writes from 0, and would later have the recorded version with another value.
        return {**self.__dict__, "device_count": None}


class FreshSlot:
    """A slot that nothing has used, and the values with which it was created.

    A slot with one value in all entries, as most have, needs no copy to tell later whether it was written: a broadcast
    into it raises no version.
    """

    def __init__(self, slot: Tensor):
        self._slot = slot
        values = comparable(slot)
        self._values: Tensor | None = None
        if not values.is_meta:
            first = values[:1].clone()
            self._values = first if bool((values == first).all()) else values.clone()

    def is_written(self, present: Any) -> bool:
        """Whether the present slot is another one, or has other values."""
        if present is not self._slot:
            return True
        values = comparable(present)
        if self._values is None or values.is_meta:
            return False
        is_moved = values.device != self._values.device
        return is_moved or not bool((values == self._values).all())


def comparable(slot: Tensor) -> Tensor:
    """Return a slot's entries on this process, as bytes where torch compares no numbers."""
    values = local(slot.detach()).reshape(-1)
    return values.view(torch.uint8) if values.dtype.itemsize == 1 else values


GRAD = operator.attrgetter("grad")  # of a parameter
COUNT = operator.attrgetter("count")
STATE = operator.attrgetter("state")
PARAM = operator.attrgetter("param")
GRADIENT = operator.attrgetter("param.grad")

STEP = operator.itemgetter("step")


def missed_in(states: Iterable[State]) -> Any:
    """Return the updates that the parameter with the most updates has missed, of the first state that has them.

    Schedules follow the updates in which any parameter had a gradient: these, and the largest count. In a step of all
    parameters both rise, so that only other steps write them. None stands for 0.
    """
    for state in states:
        if MISSED in state:
            return state[MISSED]
    return None


def version(tensor: Tensor) -> int:
    """Return the version counter of a tensor's local part, which counts in-place writes."""
    return _torch.version_of(local(tensor))


def check_closure(params: Iterable[Tensor]) -> None:
    """Check that a closure that links call again has computed gradients.

    Raises:
        RuntimeError: If no parameter has a gradient.
    """
    if all(param.grad is None for param in params):
        raise RuntimeError(
            "the closure computed no gradients; it must call zero_grad() and backward(), and return the loss"
        )


class Weights:
    """The weights of some parameters at one time."""

    def __init__(self, params: Sequence[Tensor]):
        self._params = [param for param in params if not is_lazy(param)]
        self._values = [param.detach().clone() for param in self._params]

    def are_present(self) -> bool:
        """Whether the parameters have these weights."""
        differences = {
            str(i): param.detach() != value
            for i, (param, value) in enumerate(
                zip(self._params, self._values, strict=True)
            )
        }
        return not total(differences)  # over all shards, so that all ranks decide alike


class RepeatedResiduals:
    """A closure that returns residuals, whose Jacobian is kept where a trial step was rejected."""

    def __init__(self, closure: Callable[[], Any]):
        self._closure = closure
        self._sources: list[Tensor] = []
        self._weights: Weights | None = None
        self._jacobian: Jacobian | None = None

    def __call__(self) -> Any:
        return self._closure()

    def keep(self, jacobian: Jacobian, sources: list[Tensor]) -> None:
        """Keep the Jacobian at the present weights."""
        self._jacobian, self._sources = jacobian, sources
        self._weights = Weights(sources)

    def jacobian_at(self, sources: list[Tensor]) -> Jacobian | None:
        """Return the Jacobian if the weights are those of the last step, and if it was computed as a matrix."""
        if self._jacobian is None or self._weights is None:
            return None
        are_same = list(map(id, sources)) == list(map(id, self._sources))
        if not are_same or not self._weights.are_present():
            return None
        # The graph is of no use any more: trials have written the weights.
        return self._jacobian.kept()


class MemoizedClosure:
    """A closure that is not called again at the weights of the lowest loss, where line searches end."""

    def __init__(self, closure: Callable[[], Any], params: Sequence[Tensor]):
        self._closure = closure
        self._params = params
        self._weights: Weights | None = None
        self._loss: Any = None
        self._gradients: list[Tensor | None] = []

    def __call__(self) -> Any:
        if self._weights is not None and self._weights.are_present():
            for param, gradient in zip(self._params, self._gradients, strict=True):
                param.grad = gradient
            return self._loss
        weights = Weights(self._params)
        loss = self._closure()
        if self._weights is None or loss < self._loss:
            self._weights, self._loss = weights, loss
            self._gradients = [param.grad for param in self._params]
        return loss


Leaves: TypeAlias = dict[str, Tensor]  # by name
Extras: TypeAlias = dict[str, Any]
Trees = Mapping[str, Mapping[str, Any]]  # extras by leaf: name -> leaf name -> tensor


class OptimizerRun(Run):
    """A call of `init` or `update` for the parameters of an optimizer.

    Args:
        state: The optimizer's state, by parameter.
        members: The optimizer's parameters.
        initial: Whether this is a call of `init`.

    Attributes:
        state: The optimizer's state, by parameter.
        functions: The closure, as `grad_fn` and `value_fn`.
        team: The ranks that share the parameters, and whose residuals belong to one loss; None for this process alone.
        route: The expanded chain, of the run of `Members.expanded`.
    """

    functions: Mapping[str, Callable[[], Any]]
    team: Team | None = None
    _follows_loss = False
    route: Route

    def __init__(
        self,
        state: Mapping[Any, dict[str, Any]],
        members: Mapping[Tensor, Member],
        initial: bool,
    ):
        super().__init__()
        self.initial = initial
        self.device = next(iter(members)).device if members else CPU
        self.state = state
        self._members = members

    def scalars(self, path: Path) -> Leaves:
        for param, member in self._members.items():
            state = self.state.get(param)
            if state and path in member.layout.shared:
                keys = member.layout.shared[path]
                return {name: state[key] for name, key in keys.items()}
        return {}

    def slots(self, path: Path, leaf: Leaf) -> Leaves:
        return {} if self.initial else super().slots(path, leaf)

    def choice(self, path: Path, leaf: Leaf, selector: Any) -> Any:
        choices = leaf.key.choices
        if path not in choices:
            chooser = self.resolved(selector, self._params_by_name)
            choices[path] = chooser.choose(leaf.name, leaf.key.param)
        return choices[path]

    def show(self, members: Mapping[Tensor, Member]) -> None:
        """Let selectors that ask functions of the whole tree see these parameters.

        Whoever shows them takes them back: a run and its route refer to each other, and would keep them alive.
        """
        self._members = members
        self._resolved.clear()

    def _params_by_name(self) -> dict[str, Tensor]:
        return {member.name: param for param, member in self._members.items()}

    def whole(self, values: dict[str, Any]) -> Any:
        return values

    def by_name(self, tree: Any) -> dict[str, Any]:
        leaves, _ = _tree.flatten_real(tree, "updates returned by a plain function")
        return leaves

    def gradients_at(self, values: Leaves) -> Leaves:
        with self._moved_to(values) as params:
            self.functions["grad_fn"]()
            return _gradients(params, values)

    def value_along(
        self,
        origin: Leaves,
        direction: Leaves,
        length: Tensor,
        sloped: bool,
    ) -> tuple[Tensor, Tensor | None]:
        with self._moved_to(moved_along(origin, direction, length)) as params:
            loss = self.functions["value_fn"]()
            value = as_scalar("the result of value_fn", loss).detach()
            if not sloped:
                return value, None
            if self._follows_loss:  # whose closure calls no backward
                if not loss.requires_grad:
                    raise ValueError(
                        "line_search: conditions='strong_wolfe' needs the slope of a loss that ranks share, which is "
                        "not computed; use conditions='armijo'"
                    )
                loss.backward()
            gradients = _gradients(params, direction)
            return value, total(
                {name: gradients[name] * direction[name] for name in direction}
            )

    def linearized(
        self,
        extra: str,
        finish: Vectorizer,
        params: Leaves,
    ) -> Jacobian:
        function = self.functions[extra]
        by_name = {member.name: param for param, member in self._members.items()}
        sources = [by_name[name] for name in params]
        keeps = isinstance(function, RepeatedResiduals)
        kept = function.jacobian_at(sources) if keeps else None
        if kept is not None:
            return kept
        with self._hidden_gradients():

            def computed() -> Any:
                result = function()
                self._check_no_backward(extra)
                return result

            parts, division = self._assembled(finish, computed)
        if not any(part.requires_grad for part in parts):
            raise RuntimeError(
                f"{extra}: its result has no graph; compute it from the parameters of the optimizer, without "
                "torch.no_grad(), inference_mode() and detach(), and with autograd.grad(..., create_graph=True)"
            )
        # All products have the wider of the two dtypes.
        joint = JointVector(list(params.values()), parts[0].dtype)
        with torch.enable_grad():
            parts = [part.to(joint.dtype) for part in parts]
        jacobian: Jacobian = GraphJacobian(parts, sources, joint)
        if division is not None:
            jacobian = GatheredJacobian(jacobian, division)
        if keeps:
            function.keep(jacobian, sources)
        return jacobian

    def evaluated(
        self,
        extra: str,
        finish: Vectorizer,
        params: Leaves,
    ) -> Tensor:
        with self._moved_to(params):
            parts, division = self._assembled(finish, self.functions[extra])
        vector = torch.cat(parts).detach()
        return vector if division is None else division.gathered(vector)

    def _assembled(
        self, finish: Vectorizer, function: Callable[[], Any]
    ) -> tuple[list[Tensor], RowsOfRanks | None]:
        """Return the parts of this rank's vector, and how those of ranks make one if there are several."""
        if self.team is None or self.team.size == 1:
            return finish.parts(function()), None
        if not finish.is_loss:
            raise ValueError(
                f"{finish.who}: outputs_fn cannot be combined with process_group, since a loss of outputs sees the "
                "labels of one rank; pass residual_fn, whose residuals are those of all ranks together"
            )
        return assembled(self.team, finish, function)

    def _check_no_backward(self, extra: str) -> None:
        """Check that a function that computes residuals has left gradients alone.

        Raises:
            RuntimeError: If a parameter has one.
        """
        if any(param.grad is not None for param in self._members if not is_lazy(param)):
            raise RuntimeError(
                f"{extra}: the closure called backward(), but this chain computes derivatives itself; return the "
                "residuals and do not call backward"
            )

    def follow_loss(
        self, extra: str, finish: Vectorizer, loss_of: Callable[[Tensor], Tensor]
    ) -> None:
        if self.functions.get("value_fn") is not None:
            return
        function = self.functions[extra]

        def value_fn() -> Tensor:
            parts, division = self._assembled(finish, function)
            vector = torch.cat(parts)
            return loss_of(vector if division is None else division.gathered(vector))

        self._follows_loss = True
        self.functions = {**self.functions, "value_fn": value_fn}

    def typical_call(self, how: str) -> str:
        return f"step(closure), where the closure returns residuals, or step({how})"

    def tensor_of(self, leaf: Leaf) -> Tensor:
        return leaf.key.param.detach()

    def losses_along(
        self, estimator: Any, points: list[tuple[int, Any]], leaves: list[Leaf]
    ) -> list[Tensor]:
        """Move the parameters in place, along a direction and back, without copies."""
        losses: list[Tensor] = []
        for sample, length in points:
            for leaf in leaves:
                estimator.shift_(sample, leaf.stream_name, self.tensor_of(leaf), length)
            try:
                losses.append(self._loss_without_backward())
            finally:
                for leaf in leaves:
                    estimator.shift_(
                        sample, leaf.stream_name, self.tensor_of(leaf), -length
                    )
        return losses

    def _loss_without_backward(self) -> Tensor:
        try:
            value = self.functions["value_fn"]()
        except RuntimeError as error:
            if "does not require grad" in str(error):
                error.add_note(
                    "estimate_gradient: the closure returns the loss and must not call backward()"
                )
            raise
        return as_scalar("the result of value_fn", value).detach().clone()

    @contextlib.contextmanager
    def _moved_to(self, values: Leaves) -> Generator[Leaves, None, None]:
        """Set parameters to other weights, without gradients, and restore both at the end."""
        params = {member.name: param for param, member in self._members.items()}
        check_names(
            values,
            [name for name in params if name in values],
            "params",
            "the optimizer's parameters",
        )
        with self._hidden_gradients() as all_params:
            saved = [(param, param.detach().clone()) for param in all_params]
            try:
                with torch.no_grad():
                    for name, value in values.items():
                        params[name].copy_(distributed_like(value, params[name]))
                yield params
            finally:
                with torch.no_grad():
                    for param, value in saved:
                        param.copy_(value)

    @contextlib.contextmanager
    def _hidden_gradients(self) -> Generator[list[Tensor], None, None]:
        """Let the parameters have no gradients inside, where autograd records; restore these at the end."""
        params = [param for param in self._members if not is_lazy(param)]
        gradients = [param.grad for param in params]
        for param in params:
            param.grad = None
        try:
            with torch.enable_grad():
                yield params
        finally:
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient


def _gradients(params: Leaves, likes: Leaves) -> Leaves:
    """Return the gradients that a closure has computed, in the dtypes of `likes`."""
    check_closure(params.values())
    gradients = {}
    for name, like in likes.items():
        param = params[name]
        gradients[name] = torch.zeros_like(like)
        if param.grad is not None:
            gradient = gradient_like(param.grad.detach(), param)
            gradients[name] = gradient.to(like.dtype)
    return gradients


def leaf_of(
    run: OptimizerRun,
    member: Member,
    clock: Clock,
    gradient: Tensor | None = None,
    extras: dict[str, Any] | None = None,
    shown: Tensor | None = None,
) -> Leaf:
    """Create the leaf of a parameter for a run, with its state; `shown` replaces the parameter's values.

    A lazy parameter, which has no shape yet, becomes an empty leaf.
    """
    param = member.param
    if shown is None:
        shown = (
            torch.empty(0, dtype=param.dtype, device=CPU)
            if is_lazy(param)
            else param.detach()
        )
    update = None if gradient is None else gradient.detach()
    leaf = Leaf(run, member.name, update, shown, extras or {}, clock)
    leaf.key = member
    leaf.layout = member.layout if member.layout.keys else None
    leaf.state = run.state.get(param, {})
    return leaf


def never_trains(param: Tensor) -> bool:
    """Whether a parameter cannot have a gradient, such as the packed integer weights of a quantized model."""
    return isinstance(param, Parameter) and not (
        param.is_floating_point() or param.is_complex()
    )


def clock_after(count: int | DeviceCount) -> Clock:
    """Return the clock of the step that follows `count` steps."""
    if isinstance(count, DeviceCount):
        return Clock(count.made + 1, least=count.least + 1)
    return Clock(torch.tensor(count + 1, device=CPU), count + 1)
