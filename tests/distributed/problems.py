"""Models of odd sizes, their batches, and chains of every kind, for one process and for many."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import gradtx
from gradtx import chain
from gradtx.base.dtensor import from_local_like, local
from tests.optim.chains import CHAINS as OF_ONE_PROCESS
from tests.optim.chains import add_noise, gradient_ahead, scale_by_value

STEPS = 6

# Sums in float64 in another order.
TOLERANCE = 1e-10


class Model(torch.nn.Module):
    """Between two processes nothing divides evenly, and the last layer has entries on the first process only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = torch.nn.Conv2d(2, 3, 2)
        self.body = torch.nn.Linear(3, 5)
        self.norm = torch.nn.LayerNorm(5)
        self.head = torch.nn.Linear(5, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.image(x).mean(dim=(2, 3)).tanh())).tanh())


@contextlib.contextmanager
def engine(kind: str) -> Iterator[bool]:
    """What to pass as `compile` inside of the block, for "eager" or "compiled" steps; engines that give up raise."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(compile=True runs )?steps (run )?over lists")
        yield kind != "eager"


def bundled(optimizer: Any) -> int:
    """How many leaves kernels updated in the last step."""
    return [item.way for item in optimizer.explain()].count("kernels")


def batch(t: int) -> Tensor:
    """Inputs of step `t`, the same in every process."""
    generator = torch.Generator().manual_seed(t)
    return torch.randn(8, 2, 3, 3, generator=generator, dtype=torch.float64)


def loss_of(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return (model(x) - 1).square().mean()


def sharded(model: torch.nn.Module | None = None) -> torch.nn.Module:
    """The model divided among all processes; it gets the whole batch in each."""
    model = Model() if model is None else copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    fully_shard(model.body, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sharded_twice(model: torch.nn.Module) -> torch.nn.Module:
    """Tensor parallelism inside FSDP2: the body's rows are divided twice, in another order than ranks have."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "part"))
    parallelize_module(model, mesh["part"], {"body": ColwiseParallel(output_layouts=Replicate())})
    return fully_shard(model, mesh=mesh["shard"])


def train(
    model: torch.nn.Module, optimizer: Any, steps: int = STEPS, start: int = 0, closure: bool = False
) -> list[float]:
    """The losses of some steps."""
    losses = []
    for t in range(start, start + steps):

        def evaluate(t: int = t) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch(t))
            loss.backward()
            return loss

        loss = evaluate() if not closure else None
        stepped = optimizer.step(evaluate) if closure else optimizer.step()
        losses.append((stepped if loss is None else loss).item())
    return losses


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece, on every process."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def weights(model: torch.nn.Module) -> list[Tensor]:
    return [whole(param) for param in model.parameters()]


def states(model: torch.nn.Module, optimizer: Any) -> list[dict[str, Tensor]]:
    return [{key: whole(value) for key, value in optimizer.state[param].items()} for param in model.parameters()]


def assert_close(actual: Iterable[Any], expected: Iterable[Any]) -> None:
    torch.testing.assert_close(list(actual), list(expected), rtol=TOLERANCE, atol=TOLERANCE)


# Chains.


@gradtx.per_tensor(needs=("params",))
def scale_by_trust_ratio():
    """As in LAMB: one norm of each leaf and of its update."""

    def update(update, state, param, ctx):
        length, size = param.square().sum().sqrt(), update.square().sum().sqrt()
        usable = (length > 0) & (size > 0)
        return update * torch.where(usable, length / torch.where(usable, size, 1.0), 1.0), state

    return update


@gradtx.per_tensor(elementwise=True, shared={"d": lambda h: h["d0"], "numerator": 0.0}, agree=("d0",))
def scale_by_estimated_distance(d0: gradtx.Scalar = 1e-2):
    """As in D-Adaptation: sums over all leaves give the size of the step, which all share."""

    def init(param):
        return {"total": torch.zeros_like(param)}

    def update(update, state, param, ctx):
        d, total = state["d"], state["total"] + state["d"] * update
        sums = yield {"product": (update * state["total"]).sum(), "size": total.abs().sum()}
        numerator = state["numerator"] + d * sums["product"]
        estimate = 2 * numerator / (sums["size"] + 1e-12)
        yield d * update, {"total": total, "d": torch.maximum(d, estimate), "numerator": numerator}

    return init, update


@gradtx.per_tensor(needs=("params",))
def keep_views():
    """State that would change with the parameter, if it were kept as it is returned."""

    def view(tensor):  # another object, of the same memory
        return from_local_like(local(tensor), tensor)

    def init(param):
        return {"before": view(param), "last": torch.zeros_like(param)}

    def update(update, state, param, ctx):
        direction = update + 0.1 * state["last"] + 0.1 * (param - state["before"])
        return direction, {"before": view(param), "last": view(update)}

    return init, update


@gradtx.whole_tree
def divide_otherwise():
    """Updates come back divided along another dimension, as products of matrices may."""

    def update(updates, state, params, ctx):
        return {
            name: u.redistribute(placements=[Shard(1)]) if isinstance(u, DTensor) and u.ndim > 1 else u
            for name, u in updates.items()
        }, state

    return update


CHAINS = {
    "clip and adamw": chain(gradtx.clip_by_global_norm(0.1), gradtx.adamw(lr=1e-2)),
    "sgd": gradtx.sgd(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamp": gradtx.adamp(lr=1e-2, weight_decay=0.1, delta=2.0),
    "trust ratio": chain(gradtx.scale_by_adam(), scale_by_trust_ratio(), gradtx.scale_by_learning_rate(1e-2)),
    "normalize": chain(gradtx.normalize_by_std(), gradtx.sgd(lr=1e-2)),
    "centralize": chain(gradtx.centralize(), gradtx.adamw(lr=1e-2)),
    "clip leaves": chain(gradtx.clip_by_norm(0.1), gradtx.clip_adaptive(0.1), gradtx.sgd(lr=0.1)),
    "distance": chain(scale_by_estimated_distance(), gradtx.scale_by_learning_rate(1.0)),
    "cautious": gradtx.adam_atan2(lr=1e-2, weight_decay=0.1, cautious_factor=0.3, orthog_grad=True),
    "regenerate": gradtx.adam_atan2(lr=1e-2, regen_reg_rate=0.1, wasserstein_reg=True),
    "random": chain(add_noise(), gradtx.sgd(lr=1e-2)),
    "schedule": gradtx.adamw(lr=gradtx.warmup_cosine_schedule(10, max_lr=1e-2, warmup_steps=2)),
    "accumulate": gradtx.accumulate(chain(gradtx.clip_by_global_norm(0.1), gradtx.adamp(lr=1e-2)), every=2),
    "skip": gradtx.skip_nonfinite(chain(gradtx.clip_by_global_norm(0.1), gradtx.adamw(lr=1e-2))),
    "partition": gradtx.partition(
        {"weight": chain(gradtx.clip_by_global_norm(0.1), gradtx.adamp(lr=1e-2)), "bias": gradtx.sgd(lr=0.1)},
        {"weight": "*.weight", "bias": "*"},
    ),
    "by predicate": chain(
        gradtx.masked(gradtx.add_decayed_weights(0.1), lambda name, param: param.ndim > 1), gradtx.adam(lr=1e-2)
    ),
    "freeze": chain(gradtx.clip_by_global_norm(0.1), gradtx.adamw(lr=1e-2), gradtx.freeze("body.*")),
    "lookahead": chain(gradtx.adamp(lr=1e-2), gradtx.lookahead(k=2), gradtx.average(decay=0.9)),
    "record": chain(gradtx.record("norm"), gradtx.adamw(lr=1e-2)),
    "views": chain(keep_views(), gradtx.sgd(lr=0.1)),
    **{name: OF_ONE_PROCESS[name] for name in ("whole tree", "plain functions", "two sums", "twice")},
    "bounded": chain(gradtx.sgd(lr=0.1), gradtx.map_after_step(torch.tanh)),
    "divided otherwise": chain(gradtx.sgd(lr=0.1), divide_otherwise()),
}

WITH_CLOSURES = {
    "value": chain(scale_by_value(), gradtx.adamp(lr=1e-2)),
    "gradients elsewhere": chain(divide_otherwise(), gradient_ahead(), gradtx.adamp(lr=1e-2)),
}
