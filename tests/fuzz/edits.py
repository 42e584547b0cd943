"""Random edits between steps: each step is that of a new optimizer that loads the state just before it."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

import gradtx
from gradtx.base.dtensor import from_local_like, is_sharded, local

STEPS = 10
TOLERANCE = 1e-11  # sums in another order, over some steps
SHAPES = {"body.weight": (5, 4), "body.bias": (5,), "head.weight": (3, 5), "norm.weight": (5,), "scale": ()}

CHAINS: dict[str, Callable[[], Any]] = {
    "adamw": lambda: gradtx.adamw(lr=1e-2),
    "nadam": lambda: gradtx.nadam(lr=1e-2),
    "scheduled": lambda: gradtx.adamw(lr=gradtx.cosine_schedule(1e-2, 40)),
    "clip": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=1e-2)),
    "sgd": lambda: gradtx.sgd(lr=1e-2, momentum=0.9),
    "prodigy": lambda: gradtx.prodigy(lr=1.0),
    "schedule free": lambda: gradtx.schedule_free_adamw(lr=1e-2),
    "lamb": lambda: gradtx.lamb(lr=1e-2),
    "adafactor": lambda: gradtx.adafactor(lr=1e-2, relative_step=False),
    "muon": lambda: gradtx.muon(lr=1e-2, fallback=gradtx.adamw(lr=1e-2)),
    "lookahead": lambda: gradtx.chain(gradtx.adamw(lr=1e-2), gradtx.lookahead(k=2)),
    "accumulate": lambda: gradtx.accumulate(gradtx.adamw(lr=1e-2), every=2),
    "skip": lambda: gradtx.skip_nonfinite(gradtx.adamw(lr=1e-2)),
    "asgd": lambda: gradtx.asgd(lr=1e-2, t0=4.0),
    "partition": lambda: gradtx.partition(
        {"matrix": gradtx.lion(lr=1e-3), "rest": gradtx.adamw(lr=1e-2)}, {"matrix": "*.weight", "rest": "*"}
    ),
}
ONLY_WHOLE = ("adafactor",)  # whose rows and columns of shards need owners
MODES = ("lists", "compiled", "leaf by leaf", "released", "consuming", "capturable", "scaled")
RELEASABLE = ("adamw", "nadam", "scheduled", "sgd", "schedule free", "muon", "lookahead", "accumulate", "partition")


@dataclass
class Case:
    """An optimizer in training."""

    rng: random.Random
    chain: str
    mode: str
    shard: Callable[[Tensor], Tensor] | None = None
    params: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    optimizer: Any = None
    log: list[str] = field(default_factory=list[str])

    def begin(self) -> None:
        generator = torch.Generator().manual_seed(self.rng.randrange(2**30))
        for name, shape in SHAPES.items():
            value = torch.randn(shape, dtype=torch.float64, generator=generator)
            if self.shard is not None:
                if not value.ndim:
                    continue
                value = self.shard(value)
            self.params[name] = Parameter(value)
        self.optimizer = self.made([{"params": list(self.params.items())}])

    def made(self, groups: list[dict[str, Any]]) -> Any:
        options: dict[str, Any] = {
            "compiled": {"compile": True},
            "capturable": {"capturable": True},
            "scaled": {"amp_scaling": True},
        }.get(self.mode, {})
        optimizer = gradtx.as_optimizer(CHAINS[self.chain](), groups, **options)
        if self.mode == "released":
            optimizer.release_gradients()
        return optimizer

    def of_this_mode(self, optimizer: Any) -> Any:
        """A copy of an optimizer, whose gradients are not released."""
        if self.mode == "released":
            optimizer.release_gradients()
        return optimizer

    def renewed(self) -> tuple[Any, dict[str, Tensor]]:
        """A new optimizer with this state, and its parameters."""
        copied, params = copy.deepcopy((self.optimizer, self.params))
        saved = copied.state_dict()
        groups = []
        for group in copied.param_groups:
            names = group.get("param_names") or [name_of(params, param) for param in group["params"]]
            part: dict[str, Any] = {"params": list(zip(names, group["params"], strict=True))}
            if "label" in group:
                part["label"] = group["label"]
            groups.append(part)
        other = self.made(groups)
        other.load_state_dict(copy.deepcopy(saved))
        return other, params

    def take(self, optimizer: Any, params: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        with gradtx.eagerly() if self.mode == "leaf by leaf" else contextlib.nullcontext():
            if self.mode == "released":
                terms = [
                    (params[name] * value).sum() for name, value in gradients.items() if params[name].requires_grad
                ]
                if terms:
                    total = torch.stack([term.full_tensor() if is_sharded(term) else term for term in terms]).sum()
                    total.backward()
            else:
                for name, param in params.items():
                    present = gradients.get(name)
                    if param.grad is not None and present is not None and self.rng.random() < 0.5:
                        param.grad.copy_(present)
                    else:
                        param.grad = None if present is None else present.clone()
            if self.mode == "scaled":
                optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.ones(())
            optimizer.step(consume_gradients=self.mode == "consuming")

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of all parameters, or of some."""
        generator = torch.Generator().manual_seed(self.rng.randrange(2**30))
        share = self.rng.choice((1.0, 1.0, 1.0, 0.6))
        found = {}
        for name, param in self.params.items():
            value = torch.randn(param.shape, dtype=torch.float64, generator=generator)
            if self.rng.random() < share:
                found[name] = value if self.shard is None else self.shard(value)
        return found


def name_of(params: dict[str, Tensor], param: Tensor) -> str:
    return next(name for name, other in params.items() if other is param)


# What a user does to tensors, in the same object or not.


def in_place(tensor: Any) -> None:
    local(tensor.detach()).mul_(0.9)


def through_data(tensor: Any) -> None:
    local(tensor.detach()).data.mul_(0.9)


def through_numpy(tensor: Any) -> None:
    values = local(tensor.detach()).numpy()
    values[...] = values * 0.9


def other_memory(tensor: Any) -> None:
    """`.data` takes another tensor, as trainers do that gather all weights in one buffer."""
    if is_sharded(tensor):
        tensor._local_tensor = tensor._local_tensor * 0.9
    else:
        tensor.data = tensor.data * 0.9


def other_strides(tensor: Any) -> None:
    if not is_sharded(tensor) and tensor.ndim > 1:
        tensor.data = tensor.data.mT.contiguous().mT


def swapped(tensor: Any) -> None:
    gradient, tensor.grad = tensor.grad, None
    value = tensor.detach()
    other = from_local_like(local(value) * 0.9, value)
    torch.utils.swap_tensors(tensor, Parameter(other) if isinstance(tensor, Parameter) else other)
    tensor.grad = gradient


WRITES = (in_place, through_data, through_numpy, other_memory, other_strides, swapped)


def of_weight(case: Case) -> str:
    write = case.rng.choice(WRITES)
    name = case.rng.choice(list(case.params))
    write(case.params[name])
    return f"{write.__name__}: {name}"


def of_all_weights(case: Case) -> str:
    write = case.rng.choice(WRITES)
    for param in case.params.values():
        write(param)
    return f"{write.__name__}: all weights"


def slots_of(case: Case) -> Iterator[tuple[str, str, Any]]:
    for name, param in case.params.items():
        for key, value in case.optimizer.state.get(param, {}).items():
            if isinstance(value, Tensor) and value.ndim and value.is_floating_point():
                yield name, key, value


def of_slot(case: Case) -> str | None:
    slots = list(slots_of(case))
    if not slots:
        return None
    write = case.rng.choice(WRITES)
    name, key, value = case.rng.choice(slots)
    write(value)
    return f"{write.__name__}: {key} of {name}"


def of_slot_replaced(case: Case) -> str | None:
    slots = list(slots_of(case))
    if not slots:
        return None
    name, key, value = case.rng.choice(slots)
    case.optimizer.state[case.params[name]][key] = value * 0.9
    return f"replaced: {key} of {name}"


def of_count(case: Case) -> str | None:
    """Of one parameter, or of all."""
    states = [(name, case.optimizer.state.get(param, {})) for name, param in case.params.items()]
    states = [(name, state) for name, state in states if isinstance(state.get("step"), Tensor)]
    if not states:
        return None
    count = float(case.rng.randint(1, 30))
    if case.rng.random() < 0.5:
        states = [case.rng.choice(states)]
    way = case.rng.choice(("fill_", "data", "numpy", "replaced"))
    for _, state in states:
        step = state["step"]
        if way == "fill_":
            step.fill_(count)
        elif way == "data":
            step.data.fill_(count)
        elif way == "numpy":
            step.numpy()[...] = count
        else:
            state["step"] = torch.full_like(step, count)
    return f"count {count} by {way}: {[name for name, _ in states]}"


# Of groups.


def of_rate(case: Case) -> str:
    group = case.rng.choice(case.optimizer.param_groups)
    present, factor = group["lr"], case.rng.choice((0.5, 1.5))
    if isinstance(present, Tensor):
        present.data.mul_(factor)
    elif isinstance(present, np.ndarray):
        present[...] = present * factor
    else:
        kind = case.rng.choice((float, torch.tensor, np.array))
        group["lr"] = kind(present * factor)
    return f"rate from {present}: {group['lr']!r}"


def of_decay(case: Case) -> str | None:
    groups = [group for group in case.optimizer.param_groups if "weight_decay" in group]
    if not groups:
        return None
    group = case.rng.choice(groups)
    group["weight_decay"] = case.rng.choice((0.0, 0.1))
    return f"decay {group['weight_decay']}"


def in_another_order(case: Case) -> str:
    group = case.rng.choice(case.optimizer.param_groups)
    group["params"].reverse()
    if "param_names" in group:
        group["param_names"].reverse()
    return "reversed"


def replaced(case: Case) -> str | None:
    """Another object in the place of a parameter, with its state."""
    if case.mode == "released" and case.chain == "accumulate":
        return None
    name = case.rng.choice(list(case.params))
    old = case.params[name]
    new = Parameter(old.detach().clone())
    for group in case.optimizer.param_groups:
        group["params"][:] = [new if param is old else param for param in group["params"]]
    if old in case.optimizer.state:
        case.optimizer.state[new] = case.optimizer.state.pop(old)
    case.params[name] = new
    return f"replaced: {name}"


def without_state(case: Case) -> str:
    name = case.rng.choice(list(case.params))
    case.optimizer.state.pop(case.params[name], None)
    return f"no state: {name}"


# Of the optimizer.


def saved(case: Case) -> str:
    case.optimizer.state_dict()
    return "state_dict()"


def loaded(case: Case) -> str:
    case.optimizer.load_state_dict(copy.deepcopy(case.optimizer.state_dict()))
    return "its own state dict"


def copied(case: Case) -> str:
    optimizer, case.params = copy.deepcopy((case.optimizer, case.params))
    case.optimizer = case.of_this_mode(optimizer)
    return "deepcopy"


def pickled(case: Case) -> str | None:
    if case.shard is not None:
        return None
    optimizer, case.params = pickle.loads(pickle.dumps((case.optimizer, case.params)))
    case.optimizer = case.of_this_mode(optimizer)
    return "pickle"


def evaluated(case: Case) -> str:
    case.optimizer.eval()
    case.optimizer.train()
    return "eval() and train()"


def frozen(case: Case) -> str:
    name = case.rng.choice(list(case.params))
    param = case.params[name]
    param.requires_grad_(not param.requires_grad)
    return f"requires_grad {param.requires_grad}: {name}"


EDITS = (
    of_weight, of_weight, of_all_weights, of_slot, of_slot, of_slot_replaced, of_count, of_count, of_rate, of_decay,
    in_another_order, replaced, without_state, saved, loaded, copied, pickled, evaluated, frozen,
)  # fmt: skip


def run(seed: int, shard: Callable[[Tensor], Tensor] | None = None) -> str:
    """Run a sequence of edits and steps; raise an AssertionError that tells it if a step differs."""
    rng = random.Random(seed)
    chain = rng.choice([name for name in CHAINS if shard is None or name not in ONLY_WHOLE])
    modes = [mode for mode in MODES if mode != "released" or chain in RELEASABLE]
    if shard is not None:
        modes = [mode for mode in modes if mode in ("lists", "compiled", "leaf by leaf", "released")]
    case = Case(rng, chain, rng.choice(modes), shard)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.begin()
        for t in range(STEPS):
            with torch.no_grad():
                edits = [rng.choice(EDITS) for _ in range(rng.choice((0, 0, 1, 1, 2)))]
                case.log += [f"{t}: {done}" for done in (edit(case) for edit in edits) if done]
            check_step(case, seed, t)
    return "held"


def check_step(case: Case, seed: int, t: int) -> None:
    """Take a step with this optimizer and with a new one, and compare them."""
    gradients = case.gradients()
    case.log.append(f"{t}: gradients of {sorted(gradients)}")
    other, params = case.renewed()
    state_of_rng = case.rng.getstate()
    case.take(other, params, gradients)
    case.rng.setstate(state_of_rng)
    case.take(case.optimizer, case.params, gradients)
    what = f"seed {seed}, {case.chain}, {case.mode}, step {t}"
    history = "\n  ".join(case.log)
    for name, param in case.params.items():
        expected = {"weight": params[name], **other.state.get(params[name], {})}
        found = {"weight": param, **case.optimizer.state.get(param, {})}
        for tree in (expected, found):  # a device that counts may note that it has missed none
            if tree.get("missed_updates", 1) == 0:
                del tree["missed_updates"]
        if expected.keys() != found.keys() and len(expected) > 2 and len(found) > 2:
            raise AssertionError(f"{what}: {name} has {sorted(found)}, not {sorted(expected)}\n  {history}")
        for key in expected.keys() & found.keys():
            a, b = (torch.as_tensor(local(tree[key])).detach() for tree in (found, expected))
            if a.shape != b.shape or not torch.allclose(
                a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
            ):
                raise AssertionError(f"{what}: {key} of {name} is\n{a}\nin place of\n{b}\n  {history}")
