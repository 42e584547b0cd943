"""Bundles whose kernels share launches on a GPU: parameters with other slots, axes or groups, whose texts differ."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from gradtx.compiler import triton
from gradtx.execution.execute import LeafTerms, Steps, Task
from gradtx.optim.explain import Launch
from gradtx.plans.phases import RecordedPhase


class JointBundles(Task):
    """Bundles that run together: in each phase, the first kernels of all bundles are a launch, then the second ones.

    Args:
        bundles: Bundles of kernels on one device, whose phases end at the same sums.
    """

    writes = True

    def __init__(self, bundles: list[Any]):
        first = bundles[0]
        self.name, self.device = first.name, first.device
        self.operations = first.operations
        self.run = None
        self.bundles = bundles
        self.stepping = [member for bundle in bundles for member in bundle.stepping]

    def start(self, operation: Any) -> Steps | None:
        running: list[tuple[Any, RecordedPhase, Any, Tensor]] = []
        sequences: list[list[triton.Call]] = []
        self.run = self.bundles[0].run
        for bundle in self.bundles:
            bundle.at = self.at
            phase = bundle.operations[self.at]
            inputs = bundle.inputs(phase)
            calls, by_leaf = inputs.kernels.calls(inputs)
            running.append((bundle, phase, inputs, by_leaf))
            sequences.append(calls)
        with torch.accelerator.device_index(self.device.index):
            triton.launch_in_turn(sequences)
        terms = LeafTerms()
        for bundle, phase, inputs, by_leaf in running:
            terms += bundle.processed(phase, inputs, by_leaf) or ()
        if operation.operation is not None:
            return self._wait(terms)
        self.run = None
        return None

    def _wait(self, terms: LeafTerms) -> Steps:
        total = yield terms
        for bundle in self.bundles:
            bundle.receive(bundle.operations[self.at], total)

    def launches(self) -> list[list[Launch]]:
        """Return the launches of each phase."""
        phases = []
        for of_phase in zip(*(x.launches() for x in self.bundles), strict=True):
            together = itertools.zip_longest(*of_phase)
            phases.append([_shared(list(filter(None, row))) for row in together])
        return phases


def tasks_of(bundles: list[Any]) -> list[Any]:
    """Return bundles as tasks: together, if they wait for the same sums on one device whose launches are shared."""
    together: dict[Any, list[Any]] = {}
    for i, bundle in enumerate(bundles):
        barriers = tuple(phase.barrier for phase in bundle.operations)
        is_shared = bundle.kernels[0].shares_launches
        key = (bundle.device, barriers) if is_shared else i
        together.setdefault(key, []).append(bundle)
    return [
        JointBundles(alike) if len(alike) > 1 else alike[0]
        for alike in together.values()
    ]


def _shared(launches: list[Launch]) -> Launch:
    """Return several launches as one."""
    kernels = dict.fromkeys(launch.kernel for launch in launches)
    return Launch(
        "_".join(kernels),
        sum(launch.parameters for launch in launches),
        sum(launch.read for launch in launches),
        sum(launch.written for launch in launches),
        sum(launch.again for launch in launches),
    )
