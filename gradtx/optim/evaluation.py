"""Evaluation mode: the evaluation weights temporarily replace the parameters of an optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtx.base.complex_views import as_real
from gradtx.base.dtensor import is_sharded, local
from gradtx.base.exact import CPU, exact_dtype
from gradtx.base.messages import warn_user
from gradtx.execution.context import Clock
from gradtx.execution.execute import evaluation_weights
from gradtx.optim.groups import params_of
from gradtx.optim.run import leaf_of
from gradtx.optim.state import States, as_slot

# The slot of the training weights in state dicts that were saved in evaluation mode.
TRAINED = "trained"


@dataclass(eq=False)
class Evaluation:
    """The training weights, while the parameters contain the evaluation weights.

    Attributes:
        trained: The training weights, by parameter.
        digests: What tells the evaluation weights of each parameter from others, if it is known: `.data` and
            collectives write them without a version.
    """

    trained: dict[Tensor, Tensor]
    digests: dict[Tensor, Tensor]

    @classmethod
    def start(cls, weights: dict[Tensor, Tensor]) -> Evaluation:
        """Copy the evaluation weights into the parameters."""
        trained = {param: param.detach().clone() for param in weights}
        for param, value in weights.items():
            param.copy_(value)
        return cls(trained, {param: _digest_of(param) for param in weights})

    def end(self) -> None:
        """Copy the training weights back into the parameters; warn if this discards other values."""
        written = [
            param
            for param, digest in self.digests.items()
            if not _digest_of(param).allclose(digest, rtol=0, atol=0, equal_nan=True)
        ]
        if written:
            warn_user(
                f"train: {len(written)} of {len(self.trained)} parameters were written after eval(), for example by "
                "loading a checkpoint; these values are lost, because the training weights are restored: load weights "
                "in training mode"
            )
        for param, value in self.trained.items():
            param.copy_(value)

    def check_training(self, who: str) -> None:
        """Check that the parameters contain the training weights.

        Raises:
            RuntimeError: If they contain evaluation weights.
        """
        if self.trained:
            raise RuntimeError(
                f"{who}: the parameters contain the evaluation weights; call optimizer.train() before step()"
            )

    def save(self, state_dict: dict[str, Any], params: Iterable[Tensor]) -> None:
        """Add the training weights to a state dict, whose entries are numbered in the order of `params`."""
        if any(map(is_sharded, self.trained)):
            warn_user(
                "state_dict: saved between eval() and train(); torch.distributed.checkpoint loads only the entries of "
                "a new optimizer, so it loses the training weights: call train() before saving"
            )
        for number, param in enumerate(params):
            if param in self.trained:
                entry = state_dict["state"].get(number, {})
                state_dict["state"][number] = {**entry, TRAINED: self.trained[param]}

    @classmethod
    def take(
        cls, state_dict: dict[str, Any], names: dict[Tensor, str]
    ) -> tuple[Evaluation | None, dict[str, Any]]:
        """Return the mode in which a state dict was saved, and the state dict without the training weights.

        Args:
            state_dict: The loaded state dict.
            names: The names of the parameters, in the order of the groups.

        Raises:
            ValueError: If weights have another shape or kind than their parameter.
        """
        entries = dict(state_dict["state"])
        trained: dict[Tensor, Tensor] = {}
        numbers = params_of(state_dict["param_groups"])
        for number, (param, name) in zip(numbers, names.items(), strict=False):
            entry = dict(entries.get(number, {}))
            if TRAINED in entry:
                what = f"state of parameter {name!r}: {TRAINED!r}"
                like = param.detach()
                trained[param] = as_slot(what, TRAINED, entry.pop(TRAINED), like)
                entries[number] = entry
        if not trained:
            return None, state_dict
        return cls(trained, {}), {**state_dict, "state": entries}


def _digest_of(param: Tensor) -> Tensor:
    """Return the sum and the norm of this process's entries, on the host."""
    entries = as_real(local(param.detach()))
    total = entries.sum(dtype=exact_dtype(entries))
    norm = torch.linalg.vector_norm(entries, dtype=exact_dtype(entries))
    return torch.stack([total, norm]).to(CPU)


def evaluated(states: States) -> dict[Tensor, Tensor]:
    """Return the evaluation weights, by parameter, for leaves with a link that provides them."""
    count = states.count(exact=True)
    clock = Clock(torch.tensor(count + 1, device=CPU))
    weights = {}
    states.adopt()
    for run, route, row in states.routes(count):
        for member in row:
            if member.layout.keys and states.of(member.param):
                leaf = leaf_of(run, member, clock)
                value = evaluation_weights(leaf, route.for_leaf(leaf))
                if value is not None:
                    weights[member.param] = leaf.in_callers_form(value)
    return weights
