"""What the tests of the core share: comparisons bit for bit, a small problem, and the table of all factories."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

import gradtx
from tests.examples import PAIR, example_of, is_determined

# Trees.


def tensors(tree: Any) -> dict[str, Tensor]:
    """Every tensor of a tree by its path."""
    leaves, _ = _pytree.tree_flatten_with_path(tree)
    return {_pytree.keystr(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def snapshot(tree: Any) -> Any:
    return _pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, tree)


def bits(tensor: Tensor) -> Tensor:
    """The memory of a tensor as bytes, so that NaN equals NaN and -0 differs from 0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_same(actual: Any, expected: Any) -> None:
    """The same structure, dtypes, shapes and bits."""
    got, wanted = tensors(actual), tensors(expected)
    assert list(got) == list(wanted)
    assert _pytree.tree_structure(actual) == _pytree.tree_structure(expected)
    for path, tensor in got.items():
        other = wanted[path]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), path
        assert torch.equal(bits(tensor), bits(other)), f"{path}: {tensor} is not {other}"


def assert_close(actual: Any, expected: Any, rtol: float, atol: float = 0.0) -> None:
    """The same structure, and values within tolerances; dtypes and shapes as they are."""
    got, wanted = tensors(actual), tensors(expected)
    assert set(got) == set(wanted)
    for path, tensor in got.items():
        torch.testing.assert_close(tensor, wanted[path], rtol=rtol, atol=atol, msg=lambda text, p=path: f"{p}: {text}")


def layout(tree: Any) -> dict[str, tuple]:
    return {path: (tuple(tensor.shape), tensor.dtype) for path, tensor in tensors(tree).items()}


@contextlib.contextmanager
def untouched(*trees: Any) -> Iterator[None]:
    """The block changes no bit of these trees, not even by writing what was there."""
    before, versions = snapshot(trees), {path: tensor._version for path, tensor in tensors(trees).items()}
    yield
    assert_same(trees, before)
    written = [path for path, tensor in tensors(trees).items() if tensor._version != versions[path]]
    assert not written, f"written in place, with the same values: {written}; compute a new tensor instead"


def assert_finite(found: Mapping[str, Any], who: str, remedy: str) -> None:
    """No tensor has an entry that is NaN or infinite; the message has the names of those that have, and the remedy."""
    bad = []
    for name, tree in found.items():
        for path, tensor in tensors(tree).items():
            wrong = tensor[~tensor.isfinite()].tolist()
            if wrong:
                bad.append(f"{name}{path}: {wrong[0]}, {len(wrong)} of {tensor.numel()} entries")
    if bad:
        raise AssertionError("\n  ".join([f"{who} is not finite:", *bad]) + f"\n{remedy} (see CONTRIBUTING.md)")


def assert_own_memory(outputs: Any, *inputs: Any) -> None:
    """No tensor of `outputs` shares memory with one of `inputs`, or with another output."""
    taken = {
        tensor.untyped_storage().data_ptr(): f"input {path}"
        for path, tensor in tensors(inputs).items()
        if _used(tensor)
    }
    for path, tensor in tensors(outputs).items():
        if _used(tensor):
            pointer = tensor.untyped_storage().data_ptr()
            assert pointer not in taken, f"output {path} shares memory with {taken[pointer]}"
            taken[pointer] = f"output {path}"


def _used(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > 0


# A problem: parameters of all ranks, and a gradient field that depends on them smoothly.

SHAPES = {"conv": (2, 3, 2, 2), "matrix": (3, 4), "vector": (5,), "scalar": ()}
ALL_SHAPES = {**SHAPES, **PAIR}


@functools.cache
def drawn(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise(
    seed: int = 0, shapes: Mapping[str, tuple] = SHAPES, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> dict[str, Tensor]:
    """A dict of normal numbers, the same in every call. Not for the inside of vmap, which refuses randomness."""
    return {
        name: (scale * drawn(1000 * seed + i, tuple(shape))).to(dtype) for i, (name, shape) in enumerate(shapes.items())
    }


def loss(params: Mapping[str, Tensor], shift: Tensor | float = 0.0) -> Tensor:
    """What `field` is the gradient of, plus `shift` for every entry."""
    terms = ((0.25 * p.square() - 0.15 * (2 * p).cos() + (_offset(n, p) + shift) * p).sum() for n, p in params.items())
    return sum(terms, torch.zeros(()))


def field(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A gradient that depends smoothly on the parameters, entry by entry."""
    return {name: (0.5 * p + 0.3 * (2 * p).sin() + _offset(name, p)).to(p.dtype) for name, p in params.items()}


def residuals(params: Mapping[str, Tensor]) -> Tensor:
    """Two residuals for each entry, and one of all: more than parameters, with a Jacobian of full rank."""
    parts = []
    for name in sorted(params):
        p = params[name].to(torch.promote_types(params[name].dtype, torch.float32))
        offset = torch.as_tensor(_offset(name, p)).to(p)
        parts += [0.6 * p + 0.3 * p.sin() + offset, 0.2 * p.square() - 0.1]
    total = torch.stack([0.1 * part.sum() for part in parts[1::2]]).sum()
    return torch.cat([part.reshape(-1) for part in (*parts, total)])


def loss_of_outputs(outputs: Tensor) -> Tensor:
    """A convex loss, of which `residuals` are the outputs."""
    return ((2 * outputs).cosh().log() + 0.1 * outputs.square()).mean()


_OFFSETS = noise(7)


def _offset(name: str, p: Tensor) -> Tensor | float:
    return _OFFSETS[name] if SHAPES.get(name) == p.shape else 0.25


def as_double(tree: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() for name, x in tree.items()}


def examples_of(gradient: Tensor) -> Tensor:
    """Gradients of three examples, some of which clipping shortens."""
    return torch.stack([0.1 * gradient, gradient, -0.3 * gradient * gradient])


def extras(tx: gradtx.GradientTransformation, params: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `tx` says it needs beyond gradients and parameters."""
    known = {
        # in float64 and in name order, so that the loss depends on neither dtype nor order
        "value": lambda: sum(params[name].double().square().sum() for name in sorted(params)),
        "value_fn": lambda: loss,
        "grad_fn": lambda: field,
        "hessian_diag": lambda: {name: 1.0 + 0.6 * (2 * p.to(torch.float64)).cos() for name, p in params.items()},
    }
    # Three examples, of which clipping shortens one or two.
    known["grad_sample"] = lambda: {n: examples_of(g) for n, g in field(as_double(params)).items()}
    known["max_logits"] = lambda: {"layer": torch.tensor([150.0], dtype=torch.float64)}
    return {need: known[need]() for need in tx.needs if need != "params" and need not in FUNCTIONS} | functions(tx)


# What chains with the curvature of the model are functions of, in place of gradients.
FUNCTIONS = {"residual_fn": residuals, "outputs_fn": residuals, "loss_of_outputs": loss_of_outputs}


def functions(tx: gradtx.GradientTransformation) -> dict[str, Any]:
    """The functions that `tx` takes in place of gradients: residuals, or else outputs with a loss of them."""
    kinds, _ = tx._requirements()
    if "residual_fn" in kinds:
        return {"residual_fn": residuals}
    return {name: function for name, function in FUNCTIONS.items() if name in kinds}


def step_extras(tx: gradtx.GradientTransformation, params: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `step` of a torch optimizer is given of it: the closure is apart, and finds the parameters itself."""
    known = extras(tx, {name: param.detach() for name, param in params.items()})
    known.pop("grad_fn", None)
    for name in ("residual_fn", "outputs_fn"):
        if name in known:
            known[name] = lambda: residuals(params)
    if "value_fn" in known:
        known["value_fn"] = lambda: loss({name: param.detach() for name, param in params.items()})
    return known


def step(tx: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    return tx.update(grads, state, params, **extras(tx, params))


def first_state(tx: gradtx.GradientTransformation, params: Any) -> Any:
    """The state of `init`; None where it says that no rule of its kind can start from weights of 0."""
    try:
        return tx.init(params)
    except ValueError as error:
        if "has initial norm 0" not in str(error):
            raise
        return None


def train(tx: gradtx.GradientTransformation, params: Any, steps: int) -> Any:
    """The parameters after some steps along the field."""
    state = tx.init(params)
    for _ in range(steps):
        updates, state = step(tx, field(params), state, params)
        params = gradtx.apply_updates(params, updates)
    return params


# The table.


def not_finite(tree: Any) -> dict[str, str]:
    """Where the floating-point tensors of a tree are nan, inf or -inf, by path; their finite entries count as 0."""
    flat = {path: tensor.detach().flatten() for path, tensor in tensors(tree).items() if tensor.is_floating_point()}
    return {path: str(torch.where(x.isfinite(), 0.0, x.double()).tolist()) for path, x in flat.items()}


def after_a_bad_gradient(
    tx: gradtx.GradientTransformation, params: Mapping[str, Tensor], bad: float, **options: Any
) -> dict[str, str]:
    """Where weights and state of an optimizer are not finite after three steps, the first with a bad entry per leaf."""
    leaves = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
    optimizer = gradtx.as_optimizer(tx, leaves.items(), **options)
    for t in range(3):
        for name, grad in noise(t + 3, {name: tuple(x.shape) for name, x in params.items()}).items():
            grad = grad.clone()  # noise is drawn once
            if t == 0:
                grad.view(-1)[0] = bad
            leaves[name].grad = grad.to(leaves[name])
        optimizer.step(**step_extras(tx, leaves))
    return not_finite([dict(leaves), [optimizer.state[leaf] for leaf in leaves.values()]])


class Float(NamedTuple):
    """A float hyperparameter of a case: an argument, or an entry of one; the name is that in `hyperparams`."""

    name: str
    index: int | None
    value: float  # of the case, or where that is too small for a difference quotient another

    def __str__(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"


EXAMPLES: dict[tuple[Any, str], gradtx.GradientTransformation] = {}  # of a factory's cases by name
FLOAT_SETS: dict[tuple[Any, str], list[list[Float]]] = {}


class Case(NamedTuple):
    """A factory and arguments to call it with."""

    factory: Any
    arguments: dict[str, Any]
    label: str = ""

    def __str__(self) -> str:
        return f"{self.factory.__name__}{self.label and '-' + self.label}"

    @property
    def example(self) -> gradtx.GradientTransformation:
        """One transformation for all who ask what it is; to step, make one."""
        key = self.factory, str(self)
        if key not in EXAMPLES:
            EXAMPLES[key] = self.make()
        return EXAMPLES[key]

    def make(self, changes: Mapping[Float, Any] | None = None, **options: Any) -> gradtx.GradientTransformation:
        """The transformation, some of its float hyperparameters changed."""
        arguments, inner = {**self.arguments, **options}, {}
        own = self.factory.spec.arguments.by_name
        for place, value in (changes or {}).items():
            into = arguments if place.name in own else inner
            if place.index is None:
                into[place.name] = value
            else:
                default = own[place.name].default if place.name in own else self.example.hyperparams[place.name]
                entries = list(into.get(place.name, default))
                entries[place.index] = value
                into[place.name] = tuple(entries)
        tx = self.factory(**arguments)
        return tx.replace(**inner) if inner else tx

    def noise(
        self,
        seed: int = 0,
        shapes: Mapping[str, tuple] = SHAPES,
        dtype: torch.dtype = torch.float64,
        scale: float = 1.0,
    ) -> dict[str, Tensor]:
        """`noise` of the leaves that the case takes."""
        rules = [link for link in self.example._links() if link._spec.kind == "rule"]
        bounds = [link._spec.option("dims", link._arguments) or (0, math.inf) for link in rules]
        least, most = max((a for a, _ in bounds), default=0), min((b for _, b in bounds), default=math.inf)
        if "pairs" in self.factory.spec.arguments.by_name:
            shapes = {**shapes, **PAIR}
        return noise(seed, {name: shape for name, shape in shapes.items() if least <= len(shape) <= most}, dtype, scale)

    def is_determined(self) -> bool:
        """Whether all rules that it comes down to are."""
        return all(map(is_determined, self.example._every_link()))

    def floats(self) -> list[Float]:
        """Its float hyperparameters, and those of transformations among its arguments, where they can be changed."""
        choices: list[list[Float]] = []
        for entry in self.example._entries():
            for i, number in _numbers(entry.argument.kind, entry.value):
                choices.append([Float(entry.name, i, near) for near in _near(number)])
        firsts = [near[0] for near in choices]
        if self._takes(firsts):  # as most do; else one by one
            return firsts
        places: list[Float] = []
        for near in choices:
            places += [place for place in near if self._takes([place])][:1]
        return places

    def float_sets(self) -> list[list[Float]]:
        """All float hyperparameters, first come first served in sets that may be switched on together."""
        key = self.factory, str(self)
        if key not in FLOAT_SETS:
            FLOAT_SETS[key] = self._float_sets()
        return FLOAT_SETS[key]

    def _float_sets(self) -> list[list[Float]]:
        places = self.floats()
        if self._takes(places):
            return [places] if places else []
        sets: list[list[Float]] = []
        for place in places:
            for chosen in sets:
                if self._takes([*chosen, place]):
                    chosen.append(place)
                    break
            else:
                sets.append([place])
        return sets

    def _takes(self, places: list[Float]) -> bool:
        try:
            self.make({place: place.value for place in places})
        except ValueError:
            return False
        return True


def _numbers(kind: str, value: Any) -> Iterable[tuple[int | None, Any]]:
    """The floats in an argument, with their indices."""
    if kind == "betas":
        return enumerate(value)
    return [(None, value)] if kind == "scalar" else []


def _near(value: float | None) -> tuple[float, ...]:
    """Values near another that are not off, and that float64 can take differences at; not all may be in range."""
    if value is None:
        return (0.3,)
    return (0.75 * value, 1.25 * value) if abs(value) >= 0.01 else (0.1,)


@functools.cache
def factories() -> list[Any]:
    """Everything public that was made by a decorator: rules, trees, combinators, aliases."""
    return [found for name in gradtx.__all__ if hasattr(found := getattr(gradtx, name), "spec")]


def example(factory: Any) -> dict[str, Any]:
    """Arguments for a factory."""
    return example_of(factory)


@functools.cache
def plain_cases() -> list[Case]:
    """Every factory with the arguments of tests/examples.py; a test of its own says whether these are enough."""
    cases = [Case(factory, example(factory)) for factory in factories()]
    return [case for case in cases if _can_be_made(case)]


def _can_be_made(case: Case) -> bool:
    try:
        case.make()
    except (TypeError, ValueError):
        return False
    return True


@functools.cache
def all_cases() -> list[Case]:
    """Every factory as declared, with its switched-off numbers on, and then with each of its switches turned.

    Numbers may exclude each other, so they are switched on in both orders. A combination that the factory refuses is
    no case.
    """
    cases: list[Case] = []
    for case in plain_cases():
        seen = []
        for arguments, label in _variants(case):
            variant = Case(case.factory, arguments, label)
            if arguments not in seen and _can_be_made(variant):
                seen.append(arguments)
                cases.append(variant)
    return cases


# Every fourth alias, once; by name, so that a new alias does not exchange the others.
A_QUARTER = (
    "a2grad", "adabound", "adagc", "adam", "adamax", "adamp", "adan", "adashift", "adopt", "amos", "avagrad",
    "conda", "dadapt_adan", "dion", "fadam", "ftrl", "gravity", "kl_soap", "lbfgs", "mars_adamw", "msvag", "muown",
    "noisy_sgd", "optimistic_gradient_descent", "polar_adam_atan2", "psgd_pro", "ranger", "sadam",
    "schedule_free_sgd", "sgdp", "signsgd", "soap", "spam", "stable_spam", "yogi",
)  # fmt: skip


@functools.cache
def chosen_aliases() -> list[Case]:
    """A quarter of the aliases, and for each combinator the first alias that contains it.

    An alias is a chain of links that are cases themselves. Properties that trace or differentiate run on all links, but
    only on these aliases.
    """
    combinators = {case.factory.__name__ for case in plain_cases() if case.factory.spec.kind == "combinator"}
    aliases = [case for case in plain_cases() if case.factory.spec.kind == "alias"]
    chosen = []
    for case in aliases:
        contained = combinators & _names_of_links(case)
        if case.factory.__name__ in A_QUARTER or contained:
            chosen.append(case)
        combinators -= contained
    return chosen


@functools.cache
def lean_cases() -> list[Case]:
    """All cases but those of aliases with a switch turned, for tests that found the same faults in the links' cases.

    Deliberate faults in switched code of links were found in the cases of the links; faults in switched code of aliases
    show when they are made under vmap, in dtypes, memory, needs and slots, which have all cases.
    """
    cases = []
    for case in all_cases():
        has_switch = "-" in case.label
        if case.factory.spec.kind != "alias" or not has_switch:
            cases.append(case)
    return cases


@functools.cache
def costly_cases() -> list[Case]:
    """All cases of rules and combinators, and the chosen aliases, for tests that take long."""
    return [case for case in all_cases() if case.factory.spec.kind != "alias" or case in chosen_aliases()]


def links() -> list[Case]:
    """All cases of rules and combinators: aliases are chains of these."""
    return [case for case in all_cases() if case.factory.spec.kind != "alias"]


def plain_links() -> list[Case]:
    """Rules and combinators as their decorators say to call them."""
    return [case for case in links() if not case.label]


# For tests of what one place in the library does for all links: one link of each kind.
OF_EACH_KIND = (
    "scale", "scale_by_adam", "scale_by_adam-on-amsgrad", "scale_by_learning_rate", "add_decayed_weights-on",  # entries
    "scale_by_aggmo", "amplify_slow_gradients_window",  # lists of slots
    "clip_by_norm", "scale_by_lars", "scale_by_adafactor", "scale_by_sm3",  # a leaf, its rows and columns
    "clip_by_global_norm", "scale_by_prodigy", "scale_by_avagrad", "pcgrad",  # the whole tree, with shared numbers
    "orthogonalize", "scale_by_shampoo", "scale_by_kl_shampoo", "scale_by_psgd_kron", "lmo",  # matrices
    "add_noise", "stochastic_round", "compensate_rounding",  # random numbers, roundings
    "average", "schedule_free", "scale_by_polyak", "scale_by_hessian", "scale_by_mars",  # other inputs and outputs
    "scale_by_gauss_newton", "levenberg_marquardt",  # functions in place of gradients
    "accumulate", "skip_nonfinite", "partition", "masked", "freeze", "lookahead", "restart", "sam", "graft", "rotated",
    "low_rank", "blocks", "mechanize", "with_state_dtype",
    "adamw", "sgd-on-nesterov", "muon", "soap", "lbfgs", "prodigy", "schedule_free_adamw", "adafactor",
)  # fmt: skip


def of_each_kind() -> list[Case]:
    return [case for case in all_cases() if str(case) in OF_EACH_KIND]


Pack = tuple[Case, ...]  # cases that stand in one chain


def is_estimate(case: Case) -> bool:
    """Whether it makes a gradient from losses, whose rounding errors a small length divides."""
    return case.factory.__name__ in ("estimate_gradient", "mezo")


@functools.cache
def packs_of_rules() -> list[Pack]:
    """All rules in chains of at most ten, so that a test which traces a step traces the core once for all of them."""
    packs: list[list[Case]] = []
    for case in plain_cases():
        if case.factory.spec.kind not in ("rule", "tree") or functions(case.example):  # which dynamo does not trace
            continue
        for pack in packs:
            if len(pack) < 10 and set(pack[0].noise()) == set(case.noise()) and _can_follow(pack, case):
                pack.append(case)
                break
        else:
            packs.append([case])
    return list(map(tuple, packs))


def _can_follow(pack: list[Case], case: Case) -> bool:
    try:
        gradtx.chain(*(each.make() for each in pack), case.make())
    except ValueError:
        return False
    return True


def floats_of(pack: Pack) -> list[tuple[int, Float]]:
    """Float hyperparameters that can be changed together, with the positions of their cases."""
    places = []
    for i, case in enumerate(pack):
        places.extend((i, place) for place in next(iter(case.float_sets()), []))
    return places


def chain_of(pack: Pack, changes: Mapping[tuple[int, Float], Any]) -> gradtx.GradientTransformation:
    """The chain of a pack, some of its float hyperparameters changed."""
    links = []
    for i, case in enumerate(pack):
        links.append(case.make({place: value for (position, place), value in changes.items() if position == i}))
    return gradtx.chain(*links)


@functools.cache
def composed_cases() -> list[Case]:
    """Chosen aliases, combinators, and the rules that none of these aliases contains: each rule is traced once.

    Deliberate faults that break the tracing of a rule broke its aliases too.
    """
    in_aliases: set[str] = set()
    for case in chosen_aliases():
        in_aliases |= _names_of_links(case)
    cases = []
    for case in plain_cases():
        kind = case.factory.spec.kind
        is_chosen = kind == "combinator" or case in chosen_aliases()
        if is_chosen or (kind == "rule" and case.factory.__name__ not in in_aliases):
            cases.append(case)
    return cases


def _names_of_links(case: Case) -> set[str]:
    """The names of the links that a case comes down to, those of branches too."""
    return {link._name for link in case.example._every_link()}


def _variants(case: Case) -> Iterator[tuple[dict[str, Any], str]]:
    yield case.arguments, ""
    table = case.factory.spec.arguments.all
    values = {a.name: case.arguments.get(a.name, a.default) for a in table if a.kind == "scalar"}
    off = [name for name, value in values.items() if value == case.factory.spec.arguments.by_name[name].range.off]
    absent = [name for name, value in values.items() if value is None]
    # `maximize`, which every alias takes, has its own test; its cases found none of 18 deliberate faults alone.
    added = case.factory.spec.arguments.added
    switches = [argument for argument in table if argument.kind == "bool" and argument.name not in added]
    required = {argument.name: case.arguments[argument.name] for argument in table if argument.required}
    yield from _pairs(case, absent)
    for label, order in (("on", off), ("reversed", off[::-1])):
        lively = dict(case.arguments)
        for name in order:
            with contextlib.suppress(ValueError):
                case.factory(**lively, **{name: 0.5})
                lively[name] = 0.5
        yield lively, label
        for switch in switches:
            flipped = {switch.name: not case.arguments.get(switch.name, switch.default)}
            some = ({**case.arguments, name: 0.5, **flipped} for name in (*off, *absent))  # where all is refused
            variants = ({**lively, **flipped}, *some, {**required, **flipped})
            yield (
                next((v for v in variants if _can_be_made(Case(case.factory, v))), variants[0]),
                f"{label}-{switch.name}",
            )


def _pairs(case: Case, absent: list[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Numbers that are only taken together with another one."""
    for name, other in itertools.permutations(absent, 2):
        alone = Case(case.factory, {**case.arguments, name: 0.5})
        together = {**alone.arguments, other: 0.5}
        if not _can_be_made(alone) and _can_be_made(Case(case.factory, together)):
            yield together, f"{name}-with-{other}"


def has_slots(case: Case) -> bool:
    """Whether it keeps anything by leaf."""
    slots = (path for path in tensors(case.make().init(case.noise())) if "['members']" not in path)
    return any(path.endswith(tuple(f"['{name}']" for name in SHAPES)) for path in slots)


# What cannot be.


class Exemption(NamedTuple):
    """Cases for which a test has to fail, and why."""

    test: str
    cases: tuple[str, ...]  # patterns
    reason: str
    raises: type[Exception] = AssertionError
    by_rounding: bool = False  # whether it fails depends on the kernels of the machine

    def covers(self, case: str) -> bool:
        return any(fnmatch.fnmatchcase(case, pattern) for pattern in self.cases)


EXEMPTIONS = [
    Exemption(
        "test_reverse_and_forward_derivatives_by_every_float_and_by_the_first_weights_are_difference_quotients",
        ("*soap-on-merge_dims", "*soap-on-precondition_1d", "rotated-on-merge_dims", "rotated-on-precondition_1d"),
        "The statistics of a leaf with a single dimension initially have rank 1 and a repeated eigenvalue 0. Rounding "
        "determines its eigenvectors, so the basis jumps with any change and has no derivative. The computed "
        "derivative omits these rotations and is finite. With all switches, the same applies to weights with a "
        "dimension that is larger by two or more than the product of the others; the tests use no such leaves.",
    ),
    Exemption(
        "test_reverse_and_forward_derivatives_by_every_float_and_by_the_first_weights_are_difference_quotients",
        ("project_tangent",),
        "The rows of the test's weights are longer than 1, so the update grows with their square: after five steps the "
        "weights are 1e9, and third derivatives exceed the tolerance.",
    ),
    Exemption(
        "test_vmap_over_every_float_and_over_stacked_weights_and_states_equals_a_loop",
        ("*soap-on-precondition_1d", "rotated-on-precondition_1d"),
        "As above: batched kernels round differently, and so choose a different basis for the repeated eigenvalue.",
        by_rounding=True,
    ),
    Exemption(
        "test_vmap_of_a_compiled_step_equals_the_vmap_of_the_step",
        ("*",),
        "torch does not support transforms of compiled functions (pytorch/pytorch#128711). Compile the transformed "
        "step instead: `torch.compile(torch.vmap(step))`.",
        torch._dynamo.exc.Unsupported,
    ),
]


def exemptions_of(test: Any, case: Case) -> list[pytest.MarkDecorator]:
    """Marks of a test that has to fail for a case."""
    return [
        pytest.mark.xfail(reason=entry.reason, raises=entry.raises, strict=not entry.by_rounding)
        for entry in EXEMPTIONS
        if entry.test == test.__name__ and entry.covers(str(case))
    ]
