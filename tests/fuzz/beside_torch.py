"""Random steps and edits of an optimizer and of torch's of the same name, whose gradients come and go."""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Parameter

import gradtx

STEPS = 15
TOLERANCES = {"NAdam": 1e-5, "ASGD": 1e-5}  # torch rounds numbers of these to float32
SHAPES = ((5, 4), (5,), (3, 5), (5,), (), (5, 4), (2, 3))
# The name in both libraries, and options.
CLASSES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("AdamW", {"lr": 1e-2}),
    ("AdamW", {"lr": 1e-2, "amsgrad": True}),
    ("Adam", {"lr": 1e-2, "weight_decay": 0.01}),
    ("SGD", {"lr": 1e-2}),
    ("SGD", {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 1e-2, "momentum": 0.9, "dampening": 0.1}),
    ("NAdam", {"lr": 1e-2}),
    ("ASGD", {"lr": 1e-2, "t0": 4.0, "weight_decay": 0.01}),
    ("Adagrad", {"lr": 1e-2, "lr_decay": 0.1}),
    ("RMSprop", {"lr": 1e-2, "momentum": 0.9, "centered": True}),
    ("RMSprop", {"lr": 1e-2}),
    ("Adamax", {"lr": 1e-2}),
    ("RAdam", {"lr": 1e-2}),
    ("Adadelta", {"lr": 1.0}),
)
WAYS = ("lists", "lists", "compiled", "compiled", "leaf by leaf", "capturable", "consuming")
# Whose parameters may be complex in both libraries.
COMPLEX = ("AdamW", "Adam", "SGD", "Adagrad", "RMSprop")
# Whose counts say nothing that slots say, too.
COUNTED = ("AdamW", "Adam", "RAdam", "Adamax")


@dataclass
class Pair:
    """An optimizer, torch's, and the parameters of each."""

    rng: random.Random
    ours: Any
    theirs: Any
    params: list[Parameter]
    others: list[Parameter]
    is_counted: bool
    log: list[str] = field(default_factory=list[str])

    def of_both(self, index: int) -> list[tuple[Any, Parameter]]:
        return [(self.ours, self.params[index]), (self.theirs, self.others[index])]


def of_rate(pair: Pair) -> str:
    index, factor = pair.rng.randrange(len(pair.ours.param_groups)), pair.rng.choice((0.5, 1.5))
    for optimizer in (pair.ours, pair.theirs):
        optimizer.param_groups[index]["lr"] *= factor
    return f"rate of group {index}: times {factor}"


def of_decay(pair: Pair) -> str:
    index, decay = pair.rng.randrange(len(pair.ours.param_groups)), pair.rng.choice((0.0, 0.1))
    for optimizer in (pair.ours, pair.theirs):
        optimizer.param_groups[index]["weight_decay"] = decay
    return f"decay of group {index}: {decay}"


def of_count(pair: Pair) -> str | None:
    index, count = pair.rng.randrange(len(pair.params)), float(pair.rng.randint(1, 30))
    if not pair.is_counted or any(param not in optimizer.state for optimizer, param in pair.of_both(index)):
        return None
    for optimizer, param in pair.of_both(index):
        optimizer.state[param]["step"].fill_(count)
    return f"count of {index}: {count}"


def of_slot(pair: Pair) -> str | None:
    index = pair.rng.randrange(len(pair.params))
    states = [optimizer.state.get(param, {}) for optimizer, param in pair.of_both(index)]
    keys = [key for key in states[0] if key in states[1] and key.startswith(("exp_avg", "momentum_buffer"))]
    if not keys:
        return None
    key, is_replaced = pair.rng.choice(keys), pair.rng.random() < 0.5
    for state in states:
        if state[key] is None:
            return None
        if is_replaced:
            state[key] = state[key] * 0.9
        else:
            state[key].mul_(0.9)
    return f"slot of {index}: {key}, {'replaced' if is_replaced else 'in place'}"


def of_memory(pair: Pair) -> str:
    index, strides = pair.rng.randrange(len(pair.params)), pair.rng.random() < 0.3
    for _, param in pair.of_both(index):
        param.data = param.data.mT.contiguous().mT if strides and param.ndim > 1 else param.data * 0.9
    return f"memory of {index}{', transposed' if strides else ''}"


def of_state(pair: Pair) -> str:
    index = pair.rng.randrange(len(pair.params))
    for optimizer, param in pair.of_both(index):
        optimizer.state.pop(param, None)
    return f"no state of {index}"


def of_group(pair: Pair) -> str | None:
    if len(pair.params) > 9:
        return None
    shape, rate = pair.rng.choice(SHAPES), pair.rng.choice((1e-2, 1e-3))
    for optimizer, params in ((pair.ours, pair.params), (pair.theirs, pair.others)):
        params.append(Parameter(torch.full(shape, 0.5, dtype=torch.float64)))
        optimizer.add_param_group({"params": [params[-1]], "lr": rate})
    return f"group of shape {shape}, with rate {rate}"


def loaded(pair: Pair) -> str:
    for optimizer in (pair.ours, pair.theirs):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return "its own state dict"


def zeroed(pair: Pair) -> str:
    for optimizer in (pair.ours, pair.theirs):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.zeros_like(param)
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()
    return "a step with zeros"


EDITS: tuple[Callable[[Pair], str | None], ...] = (
    of_rate, of_rate, of_decay, of_count, of_count, of_slot, of_memory, of_memory, of_state, of_group, loaded, zeroed,
)  # fmt: skip


def begun(rng: random.Random) -> tuple[Pair, str, str]:
    """A pair, with its name and the way it runs."""
    name, options = rng.choice(CLASSES)
    way = rng.choice(WAYS)
    options = {**options, **({"compile": True} if way == "compiled" else {})}
    own_options = {**options, **({"capturable": True} if way == "capturable" else {})}
    number = rng.choice((1, 1, 2, 3, len(SHAPES)))
    generator = torch.Generator().manual_seed(rng.randrange(2**30))
    share = rng.choice((0.0, 0.3)) if name in COMPLEX and not options.get("amsgrad") else 0.0
    dtypes = [torch.complex128 if rng.random() < share else torch.float64 for _ in SHAPES]
    values = [torch.randn(shape, dtype=dtype, generator=generator) for shape, dtype in zip(SHAPES, dtypes, strict=True)]
    rates = [rng.choice((1.0, 0.3)) for _ in range(number)]
    optimizers: list[Any] = []
    of_both: list[list[Parameter]] = []
    for package in (gradtx.optim, torch.optim):
        params = [Parameter(value.clone()) for value in values]
        groups = [{"params": params[i::number], "lr": options["lr"] * rates[i]} for i in range(number)]
        used = own_options if package is gradtx.optim else {k: v for k, v in options.items() if k != "compile"}
        more = {} if package is gradtx.optim else {"foreach": False}
        optimizers.append(getattr(package, name)(groups, **used, **more))
        of_both.append(params)
    return Pair(rng, *optimizers, *of_both, name in COUNTED), name, way


def step(pair: Pair, way: str, share: float) -> None:
    """A step in which some parameters have gradients."""
    generator = torch.Generator().manual_seed(pair.rng.randrange(2**30))
    present: list[int] = []
    for i, (param, other) in enumerate(zip(pair.params, pair.others, strict=True)):
        param.grad = other.grad = None
        gradient = torch.randn(param.shape, dtype=param.dtype, generator=generator)
        if pair.rng.random() < share:
            present.append(i)
            is_transposed = gradient.ndim > 1 and pair.rng.random() < 0.1
            param.grad = gradient.mT.contiguous().mT if is_transposed else gradient.clone()
            other.grad = gradient
    pair.log.append(f"gradients of {present}")
    with gradtx.eagerly() if way == "leaf by leaf" else contextlib.nullcontext():
        pair.ours.step(consume_gradients=way == "consuming")
    pair.theirs.step()


def run(seed: int) -> str:
    """Run steps and edits of both; raise an AssertionError that tells them if weights differ."""
    rng = random.Random(seed)
    pair, name, way = begun(rng)
    share = rng.choice((1.0, 0.7, 0.3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for t in range(STEPS):
            edits = [rng.choice(EDITS) for _ in range(rng.choice((0, 0, 1, 2)))]
            pair.log += [done for done in (edit(pair) for edit in edits) if done]
            step(pair, way, share)
            check(pair, f"seed {seed}, {name}, {way}, step {t}", TOLERANCES.get(name, 1e-10))
    return "held"


def check(pair: Pair, what: str, tolerance: float) -> None:
    for i, (param, other) in enumerate(zip(pair.params, pair.others, strict=True)):
        found, expected = (tensor.detach() for tensor in (param, other))
        if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
            history = "\n  ".join(pair.log)
            raise AssertionError(f"{what}: parameter {i} is\n{found}\nin place of\n{expected}\n  {history}")
