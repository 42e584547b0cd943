"""What the tests of the math share: a problem in float64, plain loops, ways to run both, and comparisons.

A *stepper* is a function `(grads, params) -> updates` with a memory of its own: the library's (`Transformed`), a plain
loop written from a paper (`Loop`, `WeightsLoop`), or a published optimizer (`Published`). `follows` runs two of them on
the problem and fails at the first leaf and step that differ, with both values.
"""

import copy
import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

import gradtx
from tests.compiler.expressions import wrong_operations

LONG = 32  # for what begins late
STEPS = 16
# Two ways to round the same float64 sums differ by 1e-16, 16 steps of feedback through the weights make up to 1e-12 of
# it, and an update of 1e-5 as the difference of two weights loses as much; any slip in a formula is far above.
TOLERANCE = 1e-10
# Other orders of the same roundings, which 16 steps of feedback amplify: 1e-15 to 1e-13 of the weights.
PUBLISHED = 1e-12
# Schedules for options, so that no step has the numbers of another.
RATE = gradtx.cosine_schedule(0.05, T_max=20, eta_min=0.002)
BETA = gradtx.linear_schedule(0.95, start_factor=0.5, total_iters=25)
DECAY = gradtx.linear_schedule(0.3, start_factor=1.0, end_factor=0.1, total_iters=25)


@cache
def _data() -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor, Tensor]]]:
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    params = {
        "matrix": draw(4, 3),
        "kernel": draw(3, 2, 2, 2),
        "rows": draw(3, 4),
        "whole": draw(3, 5),
        "bias": draw(5),
        "scalar": draw(),
    }
    return params, [(draw(8, 3), draw(8, 2, 2, 2), draw(8, 5)) for _ in range(LONG)]


def problem() -> dict[str, Tensor]:
    """The initial parameters.

    The gradient of `rows` is orthogonal to every row of it, that of `whole` to it as a whole only, the others' to
    nothing. Every step has data of its own, so gradients change their signs.
    """
    return {name: param.clone() for name, param in _data()[0].items()}


def gradients(params: dict[str, Tensor], t: int) -> dict[str, Tensor]:
    """The gradient of the loss of step `t` (from 1), a nonlinear function of all leaves."""
    x, images, target = _data()[1][t - 1]
    p = {name: param.detach().requires_grad_() for name, param in params.items()}
    hidden = torch.tanh(x @ p["matrix"].T) @ torch.nn.functional.normalize(p["rows"], dim=1).T
    output = torch.tanh(hidden @ (p["whole"] / p["whole"].norm()) + p["bias"]) * p["scalar"]
    seen = torch.tanh(images.flatten(1) @ p["kernel"].flatten(1).T).mean(dim=1)  # a convolution of one position
    loss = (output + seen[:, None] - target).square().mean()
    return dict(zip(p, torch.autograd.grad(loss, list(p.values())), strict=True))


class Transformed:
    """A transformation that keeps its state."""

    def __init__(self, tx: gradtx.GradientTransformation):
        self.tx, self.state = tx, None

    def __call__(self, grads: dict[str, Tensor], params: dict[str, Tensor]) -> dict[str, Tensor]:
        state = self.tx.init(params) if self.state is None else self.state
        updates, self.state = self.tx.update(grads, state, params)
        return updates


class Slots(types.SimpleNamespace):
    """What a plain loop remembers of one leaf: attributes that are 0 before they are set."""

    def __getattr__(self, name: str) -> float:
        return 0.0


class Loop:
    """A rule for one leaf, `rule(slots, t, g, p, **options) -> update`, run over a tree.

    Schedules among the options are resolved: update `t` uses `schedule(t - 1)`. A rule may note in `slots.seen` which
    of its branches ran; the notes of all leaves and steps are in `seen`.
    """

    def __init__(self, rule: Callable[..., Tensor], **options: Any):
        self.rule, self.options, self.seen = rule, options, set()
        self.slots: dict[str, Slots] = {}
        self.t = 0

    def __call__(self, grads: dict[str, Tensor], params: dict[str, Tensor]) -> dict[str, Tensor]:
        self.t += 1
        options = {name: _resolved(value, self.t - 1) for name, value in self.options.items()}
        for name in grads:
            self.slots.setdefault(name, Slots(seen=self.seen, name=name))
        return {name: self.rule(self.slots[name], self.t, g, params[name], **options) for name, g in grads.items()}


class WeightsLoop(Loop):
    """A `Loop` whose rule gives the new weights."""

    def __call__(self, grads: dict[str, Tensor], params: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: new - params[name] for name, new in super().__call__(grads, params).items()}


class TreeLoop(Loop):
    """A rule for a whole tree, `rule(slots, t, grads, params, **options) -> new weights`, trees by leaf name.

    `slots[name]` are those of a leaf, `slots[""]` those that leaves share.
    """

    def __call__(self, grads: dict[str, Tensor], params: dict[str, Tensor]) -> dict[str, Tensor]:
        self.t += 1
        options = {name: _resolved(value, self.t - 1) for name, value in self.options.items()}
        for name in ("", *grads):
            self.slots.setdefault(name, Slots(seen=self.seen, name=name))
        new = self.rule(self.slots, self.t, grads, params, **options)  # type: ignore[arg-type]
        return {name: new[name] - params[name] for name in new}


class WholeLoop:
    """A rule for all leaves as one long vector, `rule(slots, t, g, p, **options) -> new weights`.

    An option that is a dict by leaf name becomes a vector. `slots.sizes` has the number of entries of each leaf.
    """

    def __init__(self, rule: Callable[..., Tensor], **options: Any):
        self.rule, self.options, self.slots, self.t = rule, options, Slots(), 0

    def __call__(self, grads: dict[str, Tensor], params: dict[str, Tensor]) -> dict[str, Tensor]:
        self.t += 1
        sizes = self.slots.sizes = {name: param.numel() for name, param in params.items()}
        options = {name: _resolved(value, self.t - 1) for name, value in self.options.items()}
        for name, value in options.items():
            if isinstance(value, dict):
                options[name] = torch.cat(
                    [torch.full((n,), value[leaf], dtype=torch.float64) for leaf, n in sizes.items()]
                )
        g, p = (torch.cat([tree[name].flatten() for name in sizes]) for tree in (grads, params))
        pieces = self.rule(self.slots, self.t, g, p, **options).split(list(sizes.values()))
        return {n: piece.view_as(params[n]) - params[n] for n, piece in zip(sizes, pieces, strict=True)}


def _resolved(value: Any, step: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_resolved(item, step) for item in value)
    return float(value(step)) if isinstance(value, gradtx.Schedule) else value


class Published:
    """A torch optimizer, stepped from the given parameters with the given gradients."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer], **options: Any):
        self.make = lambda params: optimizer(params, **options)
        self.params: dict[str, Tensor] = {}

    def __call__(self, grads: dict[str, Tensor], params: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.params:
            self.params = {name: torch.nn.Parameter(param.clone()) for name, param in params.items()}
            self.optimizer = self.make(list(self.params.values()))
        for name, param in self.params.items():
            param.data.copy_(params[name])
            param.grad = grads[name].clone()
        self.advance()
        return {name: param.detach() - params[name] for name, param in self.params.items()}

    def advance(self) -> None:
        self.optimizer.step()


def negated(step: Any) -> Any:
    """A stepper that is handed the gradients of minus the loss, so that one which maximizes goes downhill."""
    step = Transformed(step) if isinstance(step, gradtx.GradientTransformation) else step
    return lambda grads, params: step({name: -g for name, g in grads.items()}, params)


def walk(
    step: Any, rate: float = 1.0, without: Sequence[str] = (), weights: bool = False, steps: int = STEPS
) -> Iterator[dict[str, Tensor]]:
    """Step by step, the updates, or the weights, which move by `rate` updates. Leaves in `without` are left out."""
    step = _stepper(step)
    params = problem()
    for t in range(1, steps + 1):
        grads = gradients(params, t)
        present = [name for name in params if name not in without]
        updates = step({name: grads[name] for name in present}, {name: params[name] for name in present})
        params = {name: params[name] + rate * updates[name] if name in updates else params[name] for name in params}
        yield params if weights else updates


def run(
    step: Any, rate: float = 1.0, without: Sequence[str] = (), weights: bool = False, steps: int = STEPS
) -> list[dict[str, Tensor]]:
    """`walk` to its end."""
    return list(walk(step, rate, without, weights, steps))


def _stepper(step: Any) -> Any:
    return Transformed(step) if isinstance(step, gradtx.GradientTransformation) else step


def follows(step: Any, reference: Any, rate: float = 1.0, *, tolerance: float = TOLERANCE, steps: int = STEPS) -> None:
    """Fail at the first step and leaf at which the updates of two steppers differ; say whose fault it is."""
    __tracebackhide__ = True

    def check(step: Any, reference: Any) -> None:
        __tracebackhide__ = True
        compare(walk(step, rate, steps=steps), walk(reference, rate, steps=steps), tolerance)

    _blaming(check, step, reference)


def weights_follow(
    step: Any, reference: Any, *, tolerance: float = TOLERANCE, without: Sequence[str] = (), steps: int = STEPS
) -> None:
    """As `follows`, for the weights: optimizers round them where they add an update."""
    __tracebackhide__ = True

    def check(step: Any, reference: Any) -> None:
        __tracebackhide__ = True
        walks = [walk(stepper, without=without, weights=True, steps=steps) for stepper in (step, reference)]
        compare(*walks, tolerance)

    _blaming(check, step, reference)


COMPILER_DIFFERS = "the rule itself agrees, line by line: look at the compiler, gradtx/compiler"
RULE_DIFFERS = "the rule differs line by line as well: look at the rule, or at its reference"


def _blaming(check: Callable[[Any, Any], None], step: Any, reference: Any) -> None:
    """Run a check of two steppers; if it fails, repeat it line by line, and say whether rule or compiler differs."""
    __tracebackhide__ = True
    again = copy.deepcopy(reference)  # before it remembers anything
    try:
        check(step, reference)
    except AssertionError as error:
        if not isinstance(step, gradtx.GradientTransformation):
            raise
        try:
            with gradtx.eagerly():
                check(step, again)
        except AssertionError:
            whose = RULE_DIFFERS
        else:
            whose = COMPILER_DIFFERS + first_slot_that_differs(step) + wrong_operations()
        raise AssertionError(f"{error}\n{whose}") from None


def first_slot_that_differs(tx: gradtx.GradientTransformation) -> str:
    """Where a program and the rule line by line first part on the problem: the slots of links come in their order."""
    compiled, by_line = Transformed(tx), Transformed(tx)
    params = problem()
    for t in range(1, STEPS + 1):
        grads = gradients(params, t)
        compiled(grads, params)
        with gradtx.eagerly():
            updates = by_line(grads, params)
        states = (dict(tree_flatten_with_path(stepper.state)[0]) for stepper in (compiled, by_line))
        for (path, slot), (_, expected) in zip(*(state.items() for state in states), strict=True):
            if not torch.allclose(slot.double(), expected.double(), rtol=TOLERANCE, equal_nan=True):
                return f"; first in {keystr(path)} of the state, at step {t}"
        params = {name: params[name] + updates[name] for name in params}
    return ""


def follows_along(
    step: Any, reference: Any, *, tolerance: float = TOLERANCE, without: Sequence[str] = (), steps: int = STEPS
) -> None:
    """As `follows`, for the weights that both give at every point of one path, that of the reference.

    For rules whose weights depend so strongly on every bit that two runs of their own would part.
    """
    __tracebackhide__ = True
    step, weights, expected_weights = _stepper(step), [], []

    def both(grads: dict[str, Tensor], params: dict[str, Tensor]) -> dict[str, Tensor]:
        updates, expected = step(grads, params), reference(grads, params)
        weights.append({name: params[name] + updates[name] for name in updates})
        expected_weights.append({name: params[name] + expected[name] for name in expected})
        return expected

    run(both, without=without, steps=steps)
    compare(weights, expected_weights, tolerance)


def compare(
    history: Iterable[dict[str, Tensor]], expected: Iterable[dict[str, Tensor]],
    tolerance: float = TOLERANCE, absolute: bool = False,
) -> None:  # fmt: skip
    """`compare_trees` of each step of two runs."""
    __tracebackhide__ = True
    for t, (tree, expected_tree) in enumerate(zip(history, expected, strict=True), start=1):
        compare_trees(tree, expected_tree, tolerance, absolute, f" at step {t}")


def compare_trees(
    tree: Mapping[str, Tensor], expected: Mapping[str, Tensor],
    tolerance: float = TOLERANCE, absolute: bool = False, when: str = "",
) -> None:  # fmt: skip
    """Fail at the first leaf that differs, with both values.

    The tolerance is relative to the largest entry of the expected leaf, unless it is `absolute`; 0 stands for equal
    values.
    """
    __tracebackhide__ = True
    if tree.keys() != expected.keys():
        raise AssertionError(f"leaves{when}: {list(tree)} instead of {list(expected)}")
    mismatches = {name: _mismatch(tree[name], expected[name], tolerance, absolute) for name in expected}
    wrong = [name for name, mismatch in mismatches.items() if mismatch]
    if wrong:
        also = f"; also {', '.join(map(repr, wrong[1:]))}" if wrong[1:] else ""
        raise AssertionError(f"leaf {wrong[0]!r}{when}: {mismatches[wrong[0]]}{also}")


def _mismatch(leaf: Tensor, expected: Tensor, tolerance: float, absolute: bool) -> str:
    """What is wrong with a leaf, or an empty text."""
    layouts = [(str(tensor.dtype), tuple(tensor.shape)) for tensor in (leaf, expected)]
    if layouts[0] != layouts[1]:
        return "{} {} instead of {} {}".format(*layouts[0], *layouts[1])
    finite = expected[expected.isfinite()].abs()
    size = 1.0 if absolute else finite.max().item() if finite.numel() else 0.0
    errors = (leaf - expected).abs().double()  # NaN, so not close, where one of them is, and where both are infinite
    errors = errors / size if size else torch.where(errors == 0, 0.0, math.inf)
    is_close = (errors < tolerance) | (errors == 0)
    if is_close.all():
        return ""
    worst = int(errors.nan_to_num(nan=math.inf).argmax())
    values = _told_apart(leaf.flatten()[worst].item(), expected.flatten()[worst].item())
    entry = tuple(int(index) for index in torch.unravel_index(torch.tensor(worst), leaf.shape))
    count = f"entry {entry}; {int((~is_close).sum())} of {leaf.numel()} entries differ; " if leaf.ndim else ""
    return f"{values[0]} instead of {values[1]} ({count}tolerance {tolerance:g})"


def _told_apart(value: float, expected: float) -> tuple[str, str]:
    """Two numbers with as many digits as show that they differ, and one more."""
    for digits in range(4, 18):
        texts = f"{value:.{digits}g}", f"{expected:.{digits}g}"
        if texts[0] != texts[1]:
            return f"{value:.{min(digits + 1, 17)}g}", f"{expected:.{min(digits + 1, 17)}g}"
    return repr(value), repr(expected)


def distance(history: Sequence[dict[str, Tensor]], expected: Sequence[dict[str, Tensor]]) -> float:
    """The largest difference of two lists of trees, to say that they differ: `compare` says that they agree."""
    return max(
        ((tree[name] - expected_tree[name]).abs().max() / expected_tree[name].abs().max()).item()
        for tree, expected_tree in zip(history, expected, strict=True)
        for name in expected_tree
    )


def first_update(tx: gradtx.GradientTransformation, grad: Any, param: Any = None, steps: int = 1) -> Any:
    """The update (the last of `steps` with one gradient) of a leaf of numbers, as numbers."""
    grad = torch.tensor(grad, dtype=torch.float64)
    param = torch.zeros_like(grad) if param is None else torch.tensor(param, dtype=torch.float64)
    step = Transformed(tx)
    for _ in range(steps):
        updates = step({"w": grad}, {"w": param})
    return updates["w"].tolist()


def finite_without_gradient(tx: gradtx.GradientTransformation) -> bool:
    """Whether three steps with zero gradients give finite updates for all leaves."""
    step, params = Transformed(tx), problem()
    zeros = {name: torch.zeros_like(param) for name, param in params.items()}
    return all(update.isfinite().all() for _ in range(3) for update in step(zeros, params).values())


def arguments(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Names and defaults of a rule or a factory, without what all rules and all factories have."""
    common = ["s", "t", "g", "p", "maximize", "state_dtype"]
    if hasattr(function, "spec") and function.spec.kind == "alias":
        common += ["mask", "cautious_decay"]  # with every weight_decay
    signature = inspect.signature(function)
    return [(name, parameter.default) for name, parameter in signature.parameters.items() if name not in common]


def named(item: Any) -> str | None:
    """The id of a test's parameter, the same in every process: no order of a set, no address of a function."""
    if isinstance(item, types.FunctionType | type):
        return item.__name__
    return None if isinstance(item, set) else re.sub(r" at 0x\w+", "", str(item))


def rates_left_by(make: Callable[[torch.optim.Optimizer], Any], steps: int, lr: float = 0.3) -> list[float]:
    """The rates that a torch scheduler leaves in an optimizer of this rate, of the first update on."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


# Maths that references of several files share.


def project(p: Tensor, g: Tensor, s: Tensor, delta: float, wd_ratio: float, eps: float) -> tuple[Tensor, float, str]:
    """AdamP's projection of a direction s: (s, r, the view that passed the test: "rows", "layer" or "none")."""
    for view, rows in (("rows", p.shape[0]), ("layer", 1)) if p.ndim > 1 else ():
        P, G, S = (x.reshape(rows, -1) for x in (p, g, s))
        norm_p, norm_g = P.norm(dim=1), G.norm(dim=1)
        cosine = (G * P).sum(dim=1).abs() / (norm_g.clamp(min=eps) * norm_p.clamp(min=eps))
        if cosine.max() < delta / math.sqrt(P.shape[1]):
            e = P / (norm_p[:, None] + eps)
            return (S - e * (e * S).sum(dim=1, keepdim=True)).reshape(p.shape), wd_ratio, view
    return s, 1.0, "none"


def caution_weights(direction: Tensor, gradient: Tensor, factor: float) -> Tensor:
    """1 where the signs agree, else `factor`, over the mean of that."""
    weights = torch.where(direction * gradient > 0, torch.ones_like(direction), factor)
    return weights / max(weights.mean().item(), 1e-5)


def placed_by_rank(values: Tensor, p: Tensor) -> Tensor:
    """The i-th smallest of `values` where `p` has its i-th smallest entry."""
    ranks = [0] * p.numel()
    for rank, index in enumerate(sorted(range(p.numel()), key=p.flatten().tolist().__getitem__)):
        ranks[index] = rank
    return values.flatten().sort().values[ranks].reshape(p.shape)


def unit_norm(x: Tensor) -> Tensor:
    """The norm of every index of dimension 0, in a shape that broadcasts; of all of a leaf with 0 or 1 dimensions."""
    return x.norm() if x.ndim <= 1 else x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


def global_norm(tree: dict[str, Tensor]) -> float:
    """The norm of all leaves together."""
    return math.sqrt(sum(x.square().sum().item() for x in tree.values()))


def adam_moments(s: Slots, t: int, g: Tensor, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The averages of g and of its square, m and v in the slots, both without their bias."""
    b1, b2 = betas
    s.m = b1 * s.m + (1 - b1) * g
    s.v = b2 * s.v + (1 - b2) * g**2
    return s.m / (1 - b1**t), s.v / (1 - b2**t)


def rectifier(t: int, b2: float, threshold: float) -> float | None:
    """RAdam's r_t, or None where rho_t has not passed the threshold."""
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
    if rho <= threshold:
        return None
    return math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))


def rectified(
    s: Slots, t: int, m: Tensor, v: Tensor, betas: tuple[float, float], eps: float, threshold: float, sgd: bool
) -> Tensor:
    """The direction of RAdam and of AdaBelief from m and v with their bias; which phase it was is noted in `seen`."""
    b1, b2 = betas
    r = rectifier(t, b2, threshold)
    s.seen.add("held" if r is None else "rectified")
    m = m / (1 - b1**t)
    return (m if sgd else 0 * m) if r is None else r * m * math.sqrt(1 - b2**t) / (v.sqrt() + eps)


def belief_moments(s: Slots, g: Tensor, betas: tuple[float, float], eps: float, amsgrad: bool) -> tuple[Tensor, Tensor]:
    """AdaBelief's averages of g and of (g - m)^2, the latter's maximum with amsgrad, both with their bias."""
    b1, b2 = betas
    s.m = b1 * s.m + (1 - b1) * g
    s.v = b2 * s.v + (1 - b2) * (g - s.m) ** 2 + eps
    s.top = torch.maximum(s.top + 0 * s.v, s.v)
    return s.m, s.top if amsgrad else s.v


def yogi_moments(s: Slots, t: int, g: Tensor, betas: tuple[float, float], initial: float) -> tuple[Tensor, Tensor]:
    """Yogi's averages, with their bias; the three cases of its sign one by one."""
    b1, b2 = betas
    s.m = b1 * s.m + (1 - b1) * g
    v = torch.full_like(g, initial) if t == 1 else s.v
    s.v = torch.where(v > g**2, v - (1 - b2) * g**2, torch.where(v < g**2, v + (1 - b2) * g**2, v))
    s.seen.update((v > g**2).flatten().tolist())
    return s.m, s.v


def friction(s: Slots, g: Tensor) -> Tensor:
    """diffGrad's xi."""
    xi = 1 / (1 + torch.exp(-(s.previous - g).abs()))
    s.previous = g
    return xi


def softplus(x: Tensor, b: float) -> Tensor:
    """log(1 + exp(bx)) / b, and x where b x > 20, entry by entry."""
    values = [y if b * y > 20 else math.log1p(math.exp(b * y)) / b for y in x.flatten().tolist()]
    return torch.tensor(values, dtype=x.dtype).reshape(x.shape)


class StableDecay:
    """The paper's loop over a whole tree: v of every leaf first, then their common mean, then the directions."""

    def __init__(self, **options: Any):
        self.options, self.t = options, 0
        self.m, self.v, self.top = {}, {}, {}

    def __call__(self, grads: dict[str, Tensor], params: dict[str, Tensor]) -> dict[str, Tensor]:
        options = {name: _resolved(value, self.t) for name, value in self.options.items()}
        return self.directions(grads, params, **options)

    def directions(self, grads, params, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4, amsgrad=False):
        self.t += 1
        b1, b2 = betas
        square, entries = 0.0, 0
        for name, g in grads.items():
            self.m[name] = b1 * self.m.get(name, 0) + (1 - b1) * g
            self.v[name] = b2 * self.v.get(name, 0) + (1 - b2) * g**2
            self.top[name] = torch.maximum(self.top.get(name, 0 * g), self.v[name])
            square += ((self.top if amsgrad else self.v)[name] / (1 - b2**self.t)).sum().item()
            entries += g.numel()
        decay = weight_decay / math.sqrt(square / entries) if square else 0.0
        found = {}
        for name, p in params.items():
            v = (self.top if amsgrad else self.v)[name] / (1 - b2**self.t)
            found[name] = self.m[name] / (1 - b1**self.t) / (v.sqrt() + eps) + decay * p
        return found
