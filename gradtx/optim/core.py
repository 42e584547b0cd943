"""The core of an optimizer that its steps, checkpoints and copies share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from gradtx.base.errors import Path
from gradtx.optim.evaluation import Evaluation
from gradtx.optim.groups import Values
from gradtx.optim.outline import ChainTraits
from gradtx.optim.parameters import Members
from gradtx.optim.ranks import Agreement
from gradtx.optim.state import States

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gradtx.execution.execute import Task
    from gradtx.optim.offload import Offload


class StepObserver(Protocol):
    """Sees the operations of a step."""

    def enter(self, leaf: Any, operation: Any) -> None: ...

    def check(self, leaf: Any) -> None: ...

    def copies(self, step: Any, bundles: Iterable[Any]) -> Iterable[Task]:
        """Return tasks that do once more, without any effect, what bundles do, and that it sees."""
        ...


class StepWatch(Protocol):
    """Sees the steps of an optimizer."""

    def begin(self, step: Any) -> StepObserver | None:
        """Return what is to see the operations of a step that has passed its checks, or None."""
        ...

    def end(self) -> None:
        """Called when the leaves of the step have been processed."""
        ...

    def note_evaluation(self) -> None:
        """Called when the parameters get the evaluation weights."""
        ...


@dataclass(eq=False)
class Core:
    """The core of an optimizer.

    Attributes:
        members: The parameters and groups.
        states: The states of the parameters.
        back_ends: The `Engine`s, in the order in which they take parameters: that of `compile=` if requested, and the
            one for lists.
        offload: Moves parameters to the host for each step, if requested.
        capturable: Whether CUDA graphs may capture steps.
        amp_scaling: Whether `step` unscales gradients and skips steps for a GradScaler.
        evaluation: The training weights, while the parameters contain the evaluation weights. Not an attribute of the
            optimizer, because Lightning's wrapper inherits the optimizer's methods, so attributes that these methods
            set would end up on the wrapper.
        expects_scheduler: Whether schedulers may override schedules of the chain without a (further) warning.
        may_lack_rate: Whether a rate that is written into groups may be read by no link, without a warning so far.
        agreement: Compares this rank's steps with those of other ranks.
        agreed: The values of each group whose hyperparameters are known to agree, as the last check saw them.
        last_counts: The counts after the last step (`LastCounts`), if they are known.
        defaults: The optimizer's `defaults`, as it was made with.
        alone: The names of the parameters that the last step of a chain without plans has updated, each alone.
        ways: How its rules for whole trees have computed, in words, by path.
        listed: The rows that the last step updated of parameters with sparse gradients (`ListedMember`).
        disjoint: Where the parameters of the last step with sparse gradients are, none of which shares memory, and
            which these were.
        watch: Sees the steps (`gradtx.watch`), if any does; a copy of the optimizer has none.
    """

    members: Members
    states: States
    back_ends: list[Any]
    offload: Offload | None
    capturable: bool
    amp_scaling: bool
    evaluation: Evaluation | None = None
    expects_scheduler: bool = False
    may_lack_rate: bool = True
    agreement: Agreement = field(default_factory=Agreement)
    agreed: list[Values] = field(default_factory=list[Values])
    last_counts: Any = None
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    alone: list[str] = field(default_factory=list[str])
    ways: dict[Path, str] = field(default_factory=dict[Path, str])
    listed: Sequence[Any] = ()
    disjoint: Any = None
    watch: StepWatch | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copied tensor counts its writes from 0, and would later have the recorded version with another value.
        state = {**self.__dict__, "last_counts": None, "listed": (), "watch": None}
        state["disjoint"] = None
        # The traits have arguments of links, which may be functions.
        state.pop("traits", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__.pop("traits", None)  # they follow from the chain

    def at_state(
        self, params: Iterable[Tensor] | None = None, **changes: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Keep parameters on their state's device inside a `with` block.

        Args:
            params: The parameters; all by default.
            **changes: As for `Offload.on_host`.
        """
        if self.offload is None:
            return contextlib.nullcontext()
        params = self.members.by_param if params is None else params
        return self.offload.on_host(params, **changes)

    @functools.cached_property
    def traits(self) -> ChainTraits:
        """The traits of the chain."""
        return self.members.traits

    def counts_on_host(self) -> bool:
        """Whether the host must know the counts even under a GradScaler."""
        devices = {param.device for param in self.members.by_param}
        is_needed = self.traits.needs_host_counts and not self.capturable
        return is_needed or len(devices) > 1
