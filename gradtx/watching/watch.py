"""`watch`: measure what each link does while an optimizer trains."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gradtx.base import torch_names as _torch
from gradtx.base.errors import Path
from gradtx.base.exact import Schedule, python_scalar
from gradtx.base.inputs import check_count
from gradtx.base.messages import describe
from gradtx.execution.execute import Leaf
from gradtx.optim.listed import ListedMember
from gradtx.optim.optimizer import ChainOptimizer
from gradtx.optim.step import Step
from gradtx.watching.alike import StepLinks
from gradtx.watching.kept_gradients import StepGradients
from gradtx.watching.links import Link, links_by_stage
from gradtx.watching.micro_batches import Cycle
from gradtx.watching.observer import samples_of
from gradtx.watching.sample import Sample, prefixes_of
from gradtx.watching.seen import Seen, check_writer

__all__ = ["watch"]

Per = Literal["leaf", "all"]


def watch(optimizer: Any, every: int = 50, per: Per = "leaf", log: Any = None) -> Seen:
    r"""Measure what each link of an optimizer's chain does, at one step of `every`, without a change to training.

    Leaves that a program processes are measured on copies, whose links run one by one before the program; where all
    links are elementwise, those of leaves of one shape run together. All other leaves are measured as they step. So
    weights, state, checkpoints and torch's random streams are bit for bit those without a watch, in all modes, also
    with a rule of your own that draws from these streams or counts its calls: no program runs the first, and the second
    is called for each copy, too, if a program runs it. The first step is measured, then one of `every` that updates
    weights (not one in which `accumulate` only collects, or that a `GradScaler` skips in it).
    With $u$ the update that leaves a link, $g$ the gradient and $p$ the weights, `seen.records` has for each leaf and
    link:

    - `norm_before`, `norm_after`, and `change`, their ratio;
    - `update_to_weight` $\lVert u \rVert / \lVert p \rVert$, and `cos_grad`, the cosine of $u$ and $g$;
    - `decided`, the share of entries that a bound or an eps decides: that a clip changes, or whose update eps more
      than halves, or at which `scale_by_atan2` saturates, or whose trust ratio is 1. NaN for other links, for the eps
      of a rule that waits for sums, and for that of a rule of your own that no program runs;
    - `crushed`, of a link with coded state, the share of the entries that receive something and have the smallest code.

    Of links that solve a linear system, as `gauss_newton` and `levenberg_marquardt`, `seen.solves` has for each
    measured step what they measure: `damping` or `radius`, `gain` (the decrease of the loss over the predicted one),
    `rejected` (1 for a trial that is not taken), `products` and `relative_residual` of "cg" and "lsmr", `condition` of
    others.

    The row "step" is that of the whole chain: from gradient to update, also with `lost`, the share of moving entries
    whose weight rounds to what it was, and `cos_last`, the cosine with the update of the step before, in a sample of
    4096 entries of each leaf. Of a leaf with a sparse gradient, the rows that step are measured, and no `cos_last`.

    A measured step holds the temporary memory of a few leaves more than other steps, and these samples. Where a link
    needs a sum over all leaves behind a rule with state, as a clip behind LAMB, it also holds the new state of all
    leaves that are measured alone. On a GPU, the host waits only when figures are read (`log`, `postfix`, ...), and
    for the clock of combinators that do not update weights in every step, which it reads until the next step that does.

    Args:
        optimizer: An optimizer of gradtx, or a trainer's wrapper around one.
        every: The number of steps from one measurement to the next, >= 1.
        per: "leaf" for each leaf, or "all" for the whole tree: one row for each link.
        log: Called with a dict of floats after each measured step, or once its loss is noted: `wandb.log`,
            `mlflow.log_metrics`, Lightning's `self.log_dict`. The key "watch/step" is the number of the step. Or
            a TensorBoard `SummaryWriter`.

    Returns:
        What is seen, a `Seen`, also a context manager: it ends with the block, or with `close()`.

    Raises:
        TypeError: If `optimizer` is not an optimizer of gradtx, or `log` is neither kind.
        ValueError: If `every` is below 1, or `per` is unknown.
        RuntimeError: If another watch sees the optimizer, or if its gradients are released during backward, which a
            watched optimizer refuses in turn.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> tx = gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.sgd(lr=0.5))
        >>> optimizer = gradtx.as_optimizer(tx, model.named_parameters())
        >>> with gradtx.watch(optimizer, every=2) as seen:
        ...     for _ in range(4):
        ...         optimizer.zero_grad()
        ...         model(torch.tensor([3.0, 4.0])).sum().backward()
        ...         optimizer.step()
        >>> clip = seen.records[0]
        >>> clip["step"], clip["leaf"], clip["link"], clip["norm_before"], clip["decided"]
        (1, 'weight', 'clip_by_global_norm', 5.0, 1.0)
        >>> f"{clip['norm_after']:.3f}", seen.steps
        ('0.100', [1, 3])
    """
    chain_optimizer = optimizer_of("watch", optimizer)
    check_count("watch: every", every)
    if per not in ("leaf", "all"):
        raise ValueError(f"watch: per must be 'leaf' or 'all', got {per!r}")
    if log is not None:
        check_writer("watch: log", log)
    seen = Seen(chain_optimizer, every)
    Watcher(chain_optimizer, seen, every, per)
    seen.log_to = log
    return seen


def optimizer_of(who: str, optimizer: Any) -> ChainOptimizer:
    """Return an optimizer of gradtx without a trainer's wrapper.

    Raises:
        TypeError: If it is none.
    """
    inner, wrapped = optimizer, getattr(optimizer, "optimizer", None)
    # Lightning's wrapper is an instance of the class that it wraps, without what this class sets up.
    while wrapped is not None and (
        not isinstance(inner, ChainOptimizer) or isinstance(wrapped, ChainOptimizer)
    ):
        inner, wrapped = wrapped, getattr(wrapped, "optimizer", None)
    if not isinstance(inner, ChainOptimizer):
        raise TypeError(
            f"{who}: needs an optimizer of gradtx, whose links are known, got {describe(optimizer)}; "
            "gradtx.optim has the classes of torch.optim, and as_optimizer(tx, params) creates one from a chain"
        )
    return inner


class Watcher:
    """Decides which steps of an optimizer are measured, and measures them.

    Args:
        optimizer: The optimizer.
        seen: Takes the measurements.
        every, per: As for `watch`.
    """

    def __init__(self, optimizer: ChainOptimizer, seen: Seen, every: int, per: Per):
        self._seen, self._every, self._per = seen, every, per
        self._begun = 0
        self._skipped: Any = (
            0  # by a GradScaler on the device, which is not read during training
        )
        # The next step that counts gives the sample with which that after it is compared, or is measured.
        self._next: Literal["sample", "measure"] | None = "measure"
        self._weights: dict[str, Tensor] = {}
        self._gradients: StepGradients | None = None
        self._cycle = Cycle()
        self._observed: Observed | None = None
        core = optimizer._up_to_date()
        if core.watch is not None:
            raise RuntimeError(
                f"watch: {core.members.who} is being watched already; call close() of what the first watch returned"
            )
        if optimizer.releases_gradients:
            raise RuntimeError(
                "watch: gradients are released during backward, one leaf at a time; call handle.remove() first"
            )
        core.watch = self
        hook = optimizer.register_step_post_hook(self._after_step)
        core_alive = weakref.ref(core)  # what is seen outlives the optimizer

        def close() -> None:
            hook.remove()
            core = core_alive()
            if core is not None:
                core.watch = None

        seen._on_close(close)

    # Called by each step.

    def begin(self, step: Step) -> StepLinks | None:
        self._observed = None
        self._begun += 1
        self._seen.with_gradient.note(step)
        increment = step.counts.increment
        if isinstance(increment, Tensor):
            self._skipped = self._skipped + (1 - increment.to(torch.int64))
        if self._next is None and self._begun % self._every == 0:
            self._next = "sample"
        # While gradients are released, leaves have stepped before this.
        is_late = _torch.is_captured(step.device) or not step.begins_with_all
        if self._next is None or is_late:
            return None
        if step.core.traits.clocks and step.is_skipped():
            return None  # no call of a cycle
        is_counted = step.is_counted()
        is_in_cycle = not is_counted or self._cycle.calls > 0
        if self._next == "measure" and is_in_cycle:
            self._cycle.add(step)
        if not is_counted:
            self._seen.uncounted += 1
            return None
        weights, self._weights = self._weights, _weights_of(step)
        last, self._gradients = self._gradients, StepGradients(step, self._begun)
        if self._next == "sample":
            self._next, self._cycle = "measure", Cycle()
            return None
        self._next = "measure" if self._every == 1 else None
        observer = StepLinks(LinksOf(step).of_leaf, weights)
        self._observed = Observed(step, observer)
        if last is not None:
            self._observed.kept = self._gradients.products_with(last)
            if self._every > 1 and last.call == self._begun - 1:
                self._observed.earlier = last.squares()
        return observer

    def end(self) -> None:
        if self._observed is None:
            return
        observed = self._observed
        step, observer = observed.step, observed.observer
        cycle, self._cycle, self._observed = self._cycle, Cycle(), None
        micro_batches = cycle.note(observer.rows, observer.links)
        loss = step.scalars.get("value")
        run = step.made_run
        if loss is None and run is not None:
            loss = run.estimated_loss  # of a closure that calls no backward
        if isinstance(loss, Tensor):
            loss = loss.detach()  # a graph would keep all weights and activations
        updates = step.counts.updates
        number = updates + 1 if isinstance(updates, int) else self._begun
        sample = Sample(
            number,
            observer.rows,
            _values_of_groups(step),
            loss,
            _without_gradient(step),
            self._seen.calls,
            self._per,
            micro_batches,
            observed.kept,
            observed.earlier,
            observer.order,
            {} if run is None else _by_link(run.measured),
        )
        seen = self._seen
        seen._add(sample, observer.links)
        seen._note_params({m.name: m.param for m in step.core.members.every})
        seen.schedules = _schedules_of(step)

    def note_evaluation(self) -> None:
        self._seen.evaluations += 1

    def _after_step(self, *arguments: Any) -> None:
        """Count the calls of `step`, also those that a GradScaler skipped, and log what is new."""
        self._seen.calls += 1
        self._seen.begun, self._seen.skipped = self._begun, self._skipped
        self._seen._log_finished()


@dataclass
class Observed:
    """A step that is measured.

    Attributes:
        step: The step.
        observer: Sees its leaves.
        kept, earlier: As for `Sample`.
    """

    step: Step
    observer: StepLinks
    kept: Tensor | None = None
    earlier: tuple[list[str], Tensor] | None = None


class LinksOf:
    """The links of the chains of a step's leaves."""

    def __init__(self, step: Step):
        self._step = step
        self._links: dict[tuple[int, torch.device], Mapping[Path, Link]] = {}

    def of_leaf(self, leaf: Leaf) -> Mapping[Path, Link]:
        """Return the link of each stage of a leaf's chain."""
        group, device = leaf.key.group, leaf.key.param.device
        if (group, device) not in self._links:
            settings = self._step.groups[group]
            tx = settings.chain(settings.values(), device)
            self._links[group, device] = links_by_stage(tx, leaf.run.stages)
        return self._links[group, device]


def _by_link(
    measured: Mapping[Path, Mapping[str, Tensor]],
) -> dict[str, dict[str, Tensor]]:
    """Return what links have measured by their names, without graphs."""
    return {
        ".".join(path): {name: value.detach() for name, value in values.items()}
        for path, values in measured.items()
    }


def _weights_of(step: Step) -> dict[str, Tensor]:
    """Return a sample of the weights of each leaf that does not have a sparse gradient."""
    members = [
        member
        for member in step.members
        if not is_lazy(member.param) and not isinstance(member, ListedMember)
    ]
    samples = samples_of([member.param for member in members])
    return {m.name: sample for m, sample in zip(members, samples, strict=True)}


def _without_gradient(step: Step) -> list[str]:
    """Return the names of the leaves that have no gradient."""
    every = step.core.members.every
    return [
        member.name
        for member, has_gradient in zip(every, step.have_gradients, strict=True)
        if not has_gradient
    ]


def _prefixes_of(step: Step) -> list[str]:
    return prefixes_of([settings.group for settings in step.groups])


def _values_of_groups(step: Step) -> dict[str, float]:
    """Return the numbers of each group; for schedules, what this step uses."""
    numbers: dict[str, float] = {}
    for prefix, settings in zip(_prefixes_of(step), step.groups, strict=True):
        for name in settings.entries:
            value = python_scalar(settings.group[name])
            if type(value) in (int, float):
                numbers[f"{prefix}{name}"] = float(value)
    return numbers


def _schedules_of(step: Step) -> dict[str, Schedule]:
    """Return the schedules of each group that no scheduler has replaced."""
    schedules: dict[str, Schedule] = {}
    for prefix, settings in zip(_prefixes_of(step), step.groups, strict=True):
        for name in settings.shown:
            source = settings.sources[name]
            if isinstance(source, Schedule):
                schedules[f"{prefix}{name}"] = source
    return schedules
