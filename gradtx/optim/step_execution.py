"""How a step computes: bundles and single leaves run, and write what they have computed."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gradtx.base.ambient import SWITCH, note_program
from gradtx.base.dtensor import is_sharded
from gradtx.distributed.collectives import Relay
from gradtx.execution.execute import Leaf, Operation, execute
from gradtx.optim.core import StepObserver
from gradtx.optim.listed import ListedMember
from gradtx.optim.run import Member
from gradtx.optim.step_leaves import check_fits


@dataclass(eq=False)
class StepExecution:
    """Runs the bundles and the single leaves of one step, and writes their results.

    Args:
        step: The `Step`.
        observer: Sees leaves that run alone, if one does.
    """

    step: Any
    observer: StepObserver | None = None

    def run(self, bundles: list[Any], eager: list[Member]) -> None:
        """Run bundles and single leaves, and write the results of each as soon as it has finished.

        No parameter may change before the last call of a closure, or before the last message of other ranks.
        """
        done: list[Any] = []  # bundles, which have written their results
        try:
            if self.observer is not None and self._can_rehearse_first(eager):
                copies = self.observer.copies(self.step, bundles)
                execute(copies, operator.methodcaller("release"), self.observer)
                self.observer = None
            if eager or self.observer is not None or self.step.core.members.are_divided:
                self._run_all(bundles, eager, done)
            elif self.step.made_run is not None:
                execute(bundles, done.append)
            else:  # bundles that need no run do not wait for each other
                for bundle in bundles:
                    bundle.at = 0
                    bundle.start(bundle.operations[0])
                    done.append(bundle)
        except Exception as error:
            failed = [bundle for bundle in bundles if bundle not in done]
            # Otherwise all ranks would have to run the rules again.
            if failed and not self.step.core.members.are_divided:
                note_program(error, functools.partial(self.run_again, failed))
            raise
        finally:
            if done:
                self.step.counts.count_up(done)
                if self.step.listed:
                    self._put_back(done)

    def _put_back(self, bundles: list[Any]) -> None:
        """Write the listed rows of bundles that are done into their parameters."""
        for bundle in bundles:
            for member in bundle.stepping:
                if isinstance(member, ListedMember):
                    member.put_back()

    def _run_all(
        self, bundles: list[Any], eager: list[Member], done: list[Any]
    ) -> None:
        """Run bundles, which are added to `done` one at a time, and single leaves; those that send messages first."""
        finished: list[Leaf] = []
        keeps = always_keeps = self.step.core.traits.calls_again or SWITCH.raises_on_nan

        def finish(task: Any) -> None:
            if not isinstance(task, Leaf):
                done.append(task)
            elif task.only_follows:
                task.release()
            elif keeps:
                finished.append(task)
            else:
                self._write(task)

        if eager:
            self.step.counts.are_replaced = True
            check_fits(self.step.core, eager)
        communicating: list[Any] = []
        silent = bundles
        if self.step.core.members.are_divided:
            communicating, silent, eager = self._by_messages(bundles, eager)
        if communicating:
            keeps = True
            execute(communicating, finish, self.observer, self._end_messages)
            keeps = always_keeps
            while finished and not keeps:
                self._write(finished.pop(0))
        leaves = itertools.chain(silent, self.step.leaves.in_turn(eager))
        if self.observer is not None:
            leaves = itertools.chain(self._rehearsed(silent), leaves)
        execute(leaves, finish, self.observer)
        for leaf in finished:
            self._write(leaf)

    def _by_messages(
        self, bundles: list[Any], eager: list[Member]
    ) -> tuple[list[Any], list[Any], list[Member]]:
        """Return the tasks that may send messages, and the bundles and single members that need none."""
        sending = [bundle for bundle in bundles if len(bundle.operations) > 1]
        tasks: list[Any] = []
        if self.observer is not None:
            tasks += self._rehearsed(sending)
        tasks += sending
        silent = [bundle for bundle in bundles if len(bundle.operations) == 1]
        alone = []
        for leaf in self.step.leaves.in_turn(eager):
            is_shard = is_sharded(leaf.key.param)
            if any(_may_send(operation, is_shard) for operation in leaf.operations):
                tasks.append(leaf)
            else:
                alone.append(leaf.key)
                leaf.release()
        if tasks and self.step.core.agreement.has_several_teams:
            self.step.run.relay = Relay()
        return tasks, silent, alone

    def _end_messages(self) -> None:
        """Raise a failure of which the messages of this step have reported."""
        relay = self.step.run.relay
        if relay is not None:
            relay.end()

    def run_again(self, bundles: list[Any]) -> None:
        """Run the rules of bundles for each leaf alone, without writing the results."""
        for bundle in bundles:
            execute(self.step.leaves.in_turn(bundle.stepping))

    def _can_rehearse_first(self, eager: list[Member]) -> bool:
        """Whether the leaves of bundles can run once more before these, and so without holding memory beside them.

        They need the sums of the step itself if other leaves add to these, or if sums need messages.
        """
        members = self.step.core.members
        return not (eager or members.are_divided) and not any(
            is_sharded(member.param) for member in self.step.members
        )

    def _copies_of(self, bundles: list[Any]) -> Iterable[Leaf]:
        """Return the leaves of bundles once more, for the observer.

        Leaves in no bundle are seen as they step, because their rules may draw random numbers, or call the closure.
        """
        members = [member for bundle in bundles for member in bundle.stepping]
        return self.step.rehearsal().in_turn(members) if members else ()

    def _rehearsed(self, bundles: list[Any]) -> Iterator[Leaf]:
        """Yield copies of the leaves of bundles that only follow these, and come before them: bundles write weights."""
        for leaf in self._copies_of(bundles):
            leaf.only_follows = True
            yield leaf

    def _write(self, leaf: Leaf) -> None:
        """Write the new slots, the count and the parameter of a leaf that has finished.

        This is the only place where parameters of eager leaves are changed.
        """
        step, update = self.step, leaf.result()
        # Not collected for all leaves in advance, because freed memory of replaced state may be reused for a later
        # leaf's new state.
        taken = leaf.memory()
        # Programs know the slots of a leaf that runs alone in this step since it has no gradient.
        is_absent = step.takes_none and leaf.key.param.grad is None
        are_written = step.core.capturable or is_absent
        new_slots = leaf.new_slots(taken, are_written)
        if are_written:
            update = None if update is None else leaf.run.memory.unshared(update, taken)
            for key, value in new_slots.items():
                leaf.state[key].copy_(value)
        else:
            leaf.state.update(new_slots)
        # Combinators may return one without a gradient.
        if update is not None:
            if leaf.counts:
                step.counts.count_up_leaf(leaf)
            leaf.inputs[1].add_(update)
        if isinstance(leaf.key, ListedMember):
            leaf.key.put_back()
        if step.consumes:
            leaf.key.param.grad = None
        leaf.release()


def _may_send(operation: Operation, is_shard: bool) -> bool:
    """Whether an operation may send messages for a leaf."""
    traits = operation.traits
    sends = traits.waits or traits.of_leaf or traits.exchanges
    # Others run on DTensors, whose operations send what they need.
    return sends or (is_shard and not traits.elementwise)
