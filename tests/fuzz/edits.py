"""Random edits between steps: each step is that of a new optimizer that loads the state just before it.

Gradients come and go in patterns, and groups have numbers of their own. In some sequences the new optimizer runs the
rules line by line.
"""

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
    "stale clip": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.5, stale=True), gradtx.adamw(lr=1e-2)),
    "int8": lambda: gradtx.adamw(lr=1e-2, state_dtype="int8"),
    "lion": lambda: gradtx.lion(lr=1e-3),
    "radam": lambda: gradtx.radam(lr=1e-2),
    "adan": lambda: gradtx.adan(lr=1e-2),
    "adamp": lambda: gradtx.adamp(lr=1e-2),
    "came": lambda: gradtx.came(lr=1e-2),
    "soap": lambda: gradtx.soap(lr=1e-2, precondition_frequency=2, eps=0.1),
    "rmsprop": lambda: gradtx.chain(gradtx.rmsprop(lr=1e-2, momentum=0.9), gradtx.lookahead(k=3)),
    "outer": lambda: gradtx.accumulate(gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.nadam(lr=1e-2)), every=3),
    "clip after": lambda: gradtx.chain(gradtx.scale_by_adam(), gradtx.clip_by_global_norm(0.5), gradtx.scale(-1e-2)),
    "by block": lambda: gradtx.chain(gradtx.clip_by_block_rms(0.5), gradtx.adamax(lr=1e-2)),
}
ONLY_WHOLE = ("adafactor", "came", "soap")  # whose rows and columns of shards need owners
# Whose numbers agree in all groups, or whose leaves may not have a group of their own.
ONE_GROUP = ("muon", "partition", "prodigy", "schedule free")
MODES = ("lists", "compiled", "leaf by leaf", "released", "consuming", "capturable", "scaled")
PATTERNS = ("all", "often", "seldom", "in turn", "one never", "later", "none at times")
RELEASABLE = (
    "stale clip", "int8", "lion", "radam", "adan", "rmsprop", "adamw", "nadam", "scheduled", "sgd", "schedule free",
    "muon", "lookahead", "accumulate", "partition",
)  # fmt: skip


@dataclass
class Case:
    """An optimizer in training."""

    rng: random.Random
    chain: str
    mode: str
    shard: Callable[[Tensor], Tensor] | None = None
    pattern: str = "often"
    is_eager: bool = False
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
        self.optimizer = self.made(self.divided(list(self.params.items())))
        self.settle()

    def divided(self, params: list[tuple[str, Tensor]]) -> list[dict[str, Any]]:
        """Groups of the parameters: one, some, or as many as there are."""
        number = 1 if self.chain in ONE_GROUP else self.rng.choice((1, 1, 2, len(params)))
        return [{"params": params[i::number]} for i in range(number)]

    def settle(self) -> None:
        """Give some groups numbers of their own."""
        groups = self.optimizer.param_groups
        for group in groups if len(groups) > 1 and self.rng.random() < 0.7 else ():
            if type(group["lr"]) is float:
                group["lr"] *= self.rng.choice((1.0, 0.5, 0.1))
            if self.rng.random() < 0.5 and "weight_decay" in group:
                group["weight_decay"] = self.rng.choice((0.0, 0.1))
            if self.rng.random() < 0.5 and len(group.get("betas", ())) == 2:
                group["betas"] = self.rng.choice(((0.9, 0.999), (0.8, 0.99), (0.0, 0.9)))

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
        is_skipped = float(self.rng.random() < 0.1)
        is_eager = self.mode == "leaf by leaf" or (self.is_eager and optimizer is not self.optimizer)
        with gradtx.eagerly() if is_eager else contextlib.nullcontext():
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
                optimizer.found_inf, optimizer.grad_scale = torch.tensor(is_skipped), torch.ones(())
            optimizer.step(consume_gradients=self.mode == "consuming")

    def present(self, t: int) -> list[str]:
        """The names of the parameters that have gradients in a step."""
        names, rng = list(self.params), self.rng
        if self.pattern == "all":
            return names if rng.random() < 0.8 else []
        if self.pattern == "in turn":
            return names[t % 3 :: 3]
        if self.pattern == "one never":
            return [name for name in names[1:] if rng.random() < 0.8]
        if self.pattern == "later":
            return names[max(0, len(names) - t) :]
        if self.pattern == "none at times" and rng.random() < 0.3:
            return []
        share = 0.3 if self.pattern == "seldom" else 0.7
        return [name for name in names if rng.random() < share]

    def gradients(self, t: int) -> dict[str, Tensor]:
        """Gradients of some parameters, in several layouts; some are zeros."""
        generator = torch.Generator().manual_seed(self.rng.randrange(2**30))
        found = {}
        for name in self.present(t):
            param = self.params[name]
            value = torch.randn(param.shape, dtype=torch.float64, generator=generator)
            kind = self.rng.random()
            if kind < 0.05:
                value = torch.zeros_like(value)
            elif self.shard is None and kind < 0.15 and value.ndim > 1:
                value = value.mT.contiguous().mT
            elif self.shard is None and kind < 0.2 and value.ndim:
                value = torch.stack([value, value], -1)[..., 0]
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
    """Of one parameter that has stepped, or of all."""
    states = [(name, case.optimizer.state.get(param, {})) for name, param in case.params.items()]
    states = [(name, state) for name, state in states if isinstance(state.get("step"), Tensor) and state["step"]]
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


def added(case: Case) -> str | None:
    """Another parameter, in a group of its own."""
    if case.shard is not None or case.chain in ONE_GROUP or len(case.params) > 8:
        return None
    name = f"more{case.rng.randrange(2**20)}.weight"
    shape = case.rng.choice(((5, 4), (2, 2), (5,), ()))
    case.params[name] = Parameter(torch.full(shape, 0.5, dtype=torch.float64))
    case.optimizer.add_param_group({"params": [(name, case.params[name])]})
    return f"added: {name} {shape}"


def removed(case: Case) -> str | None:
    """A parameter leaves its group."""
    if len(case.params) < 4 or case.mode == "released":
        return None
    name = case.rng.choice(list(case.params))
    param = case.params[name]
    if any(len(group["params"]) == 1 and group["params"][0] is param for group in case.optimizer.param_groups):
        return None
    del case.params[name]
    for group in case.optimizer.param_groups:
        kept = [i for i, x in enumerate(group["params"]) if x is not param]
        if "param_names" in group:
            group["param_names"][:] = [group["param_names"][i] for i in kept]
        group["params"][:] = [group["params"][i] for i in kept]
    case.optimizer.state.pop(param, None)
    return f"removed: {name}"


def of_group(case: Case) -> str:
    case.settle()
    return f"groups: {[group['lr'] for group in case.optimizer.param_groups]}"


# Of the optimizer.


def zeroed(case: Case) -> str:
    """Gradients of the last step become zeros, or none, in place."""
    to_none = case.rng.random() < 0.5
    case.optimizer.zero_grad(set_to_none=to_none)
    return f"zero_grad({to_none})"


def watched(case: Case) -> str | None:
    """Some steps under a watch."""
    if case.mode in ("released", "capturable", "scaled") or case.shard is not None:
        return None
    seen = gradtx.watch(case.optimizer)
    gradients = case.gradients(case.rng.randrange(STEPS))
    case.take(case.optimizer, case.params, gradients)
    seen.close()
    return f"step under a watch: {sorted(gradients)}"


def line_by_line(case: Case) -> str:
    """A step without programs."""
    gradients = case.gradients(case.rng.randrange(STEPS))
    with gradtx.eagerly(), torch.enable_grad():
        case.take(case.optimizer, case.params, gradients)
    return f"eagerly: {sorted(gradients)}"


def without_check(case: Case) -> str:
    """Another step, which nothing looks at: loading a state in others does not renew what it is compared with."""
    gradients = case.gradients(case.rng.randrange(STEPS))
    with torch.enable_grad():
        case.take(case.optimizer, case.params, gradients)
    return f"step: {sorted(gradients)}"


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
    in_another_order, replaced, without_state, saved, loaded, copied, pickled, evaluated, frozen, added, removed,
    of_group, zeroed, watched, line_by_line, without_check, without_check, without_check,
)  # fmt: skip


def run(seed: int, shard: Callable[[Tensor], Tensor] | None = None) -> str:
    """Run a sequence of edits and steps; raise an AssertionError that tells it if a step differs."""
    rng = random.Random(seed)
    chain = rng.choice([name for name in CHAINS if shard is None or name not in ONLY_WHOLE])
    modes = [mode for mode in MODES if mode != "released" or chain in RELEASABLE]
    if shard is not None:
        modes = [mode for mode in modes if mode in ("lists", "compiled", "leaf by leaf", "released")]
    case = Case(rng, chain, rng.choice(modes), shard, rng.choice(PATTERNS), rng.random() < 0.3)
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
    gradients = case.gradients(t)
    case.log.append(f"{t}: gradients of {sorted(gradients)}")
    other, params = case.renewed()
    state_of_rng = case.rng.getstate()
    case.take(other, params, gradients)
    case.rng.setstate(state_of_rng)
    case.take(case.optimizer, case.params, gradients)
    against = "eagerly" if case.is_eager else "new"
    what = f"seed {seed}, {case.chain}, {case.mode}, {case.pattern}, {against}, step {t}"
    history = "\n  ".join(case.log)
    for name, param in case.params.items():
        expected = {"weight": params[name], **other.state.get(params[name], {})}
        found = {"weight": param, **case.optimizer.state.get(param, {})}
        if not (found.get("step", 0) or expected.get("step", 0)):  # its first gradient creates its slots again
            expected, found = {"weight": params[name]}, {"weight": param}
        for tree in (expected, found):  # compared at the end: a parameter that has never stepped may lack it
            tree.pop("missed_updates", None)
        if expected.keys() != found.keys() and len(expected) > 2 and len(found) > 2:
            raise AssertionError(f"{what}: {name} has {sorted(found)}, not {sorted(expected)}\n  {history}")
        for key in expected.keys() & found.keys():
            a, b = (torch.as_tensor(local(tree[key])).detach() for tree in (found, expected))
            if a.shape != b.shape or not torch.allclose(
                a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
            ):
                raise AssertionError(f"{what}: {key} of {name} is\n{a}\nin place of\n{b}\n  {history}")
    if missed_by(case.optimizer) != missed_by(other):
        missed = f"missed updates are {missed_by(case.optimizer)}, not {missed_by(other)}"
        raise AssertionError(f"{what}: {missed}\n  {history}")


def missed_by(optimizer: Any) -> int:
    """The updates that the parameter with the most updates has missed; none may be noted as none or as 0."""
    missed = [int(state["missed_updates"]) for state in optimizer.state.values() if "missed_updates" in state]
    return missed[0] if missed else 0
