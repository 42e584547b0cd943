"""`sweep`: train one member per setting and seed."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradtx.base import tree as _tree
from gradtx.base.exact import exact_dtype
from gradtx.base.messages import describe
from gradtx.base.progress import progress_bar
from gradtx.functional import stack, unstack
from gradtx.sweeps.checkpoint import SweepCheckpoint
from gradtx.sweeps.members import Progress, Trainer, Trial, check_supplied
from gradtx.sweeps.result import Sweep, Training, training_of
from gradtx.sweeps.settings import (
    COLUMNS,
    Group,
    check_names,
    groups_of,
    name_of,
    settings_of,
)
from gradtx.transform import GradientTransformation

__all__ = ["sweep"]


def sweep(
    loss_fn: Callable[[Any, Any], Tensor],
    optimizer: Callable[..., GradientTransformation],
    params: Any,
    batches: Any,
    over: Any,
    *,
    seeds: int | Sequence[int] = 1,
    steps: int = 1000,
    eval_fn: Callable[[Any], Any] | None = None,
    every: int = 50,
    fixed: dict[str, Any] | None = None,
    members_at_once: int | None = None,
    compile: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    randomness: str = "error",
) -> Sweep:
    r"""Train one member per setting and seed, side by side, and compare them.

    Settings that differ in numbers (rates, decays, betas, the numbers of schedules) train in one `torch.vmap`; values
    that change structure (bools, strings, ints that are not rates, other kinds of schedules) make groups, which train
    one after the other. Each member trains as if it were alone: its results equal those of a plain loop with
    `tx.update` over the same batches.

    A member whose loss or weights are not finite stops: its weights stay at the last finite ones, its later records
    say `diverged`, with a loss of NaN, and no other member notices.

    Args:
        loss_fn: `loss_fn(params, batch)` returns the loss, a 0-d tensor. It must be pure.
        optimizer: A callable of keyword arguments that returns a transformation, such as `gradtx.adamw`. Links that
            need the loss or gradients at other points get them, and `hessian_diag` from one Rademacher vector per step
            that reads it, drawn by `hutchinson_hessian_diag` with a generator of the member's seed.
        params: The initial weights, a tree of tensors; or a function `seed -> tree`.
        batches: An iterable of batches, or a function `step -> batch`, with steps from 0. All members see the same
            batches. If several groups or chunks train, batches of an iterable are kept in memory.
        over: A dict from names of arguments to lists of values, of which all combinations are trained; or a list of
            dicts with the same names.
        seeds: The number of seeds, which are then 0, 1, ...; or a list of seeds. They reach `params` and the probes of
            Hessians.
        steps: The number of updates, >= 1.
        eval_fn: `eval_fn(params)` returns a 0-d tensor, or a dict of names and 0-d tensors. It gets the weights that
            `tx.eval_params` returns.
        every: The number of steps between records, >= 1. The last step is always recorded.
        fixed: Further arguments of `optimizer`.
        members_at_once: The largest number of members that train together; None for all. Memory grows in proportion:
            weights, state, gradients and activations of one run, times this number.
        compile: Whether to compile the step of all members, once per group and number of members: in the process, if
            later sweeps have the same `loss_fn` and `optimizer`, or a lambda of the same line that reads equal values.
        checkpoint: A file to which the sweep is saved at every record. A later call with the same arguments goes on
            where the file ends, with the same results bit for bit: it sets torch's generators as they were then.
        progress: Whether to show a progress bar, which needs tqdm; None for "if stderr is a terminal and tqdm is
            installed".
        randomness: As in `torch.vmap`: "error", "same" or "different" random numbers in the members' losses.

    Returns:
        A `Sweep` with the records and the final weights. After Ctrl-C it has the records so far, and `finished` is
        False.

    Raises:
        TypeError: If `optimizer` does not accept a name, or if an argument has the wrong type.
        ValueError: If a grid is empty, a value is out of range, the loss is not 0-d, trees of different seeds differ in
            shape, there are several seeds for one fixed tree, batches end early, a link needs an extra that a sweep
            cannot supply, two columns of the records have one name, or the checkpoint belongs to other arguments or has
            no folder.
        RuntimeError: If a link cannot run under `torch.vmap`.

    Example:
        >>> x = torch.linspace(-1, 1, 16)
        >>> loss_fn = lambda params, batch: (params["w"] * batch - 3 * batch).square().mean()
        >>> result = gradtx.sweep(
        ...     loss_fn,
        ...     gradtx.sgd,
        ...     {"w": torch.zeros(())},
        ...     lambda step: x,
        ...     over={"lr": [0.01, 0.1, 1.0]},
        ...     steps=20,
        ...     every=10,
        ... )
        >>> result.best()[0]["lr"], result.at_edge
        (1.0, ['lr'])
    """
    arguments = _checked_counts(steps, every, members_at_once)
    fixed = dict(fixed or {})
    settings = settings_of(over)
    name = _checked_name(optimizer, settings, fixed)
    make = functools.partial(optimizer, **fixed)
    for setting in settings:
        check_supplied(name, make(**setting))
    seed_list = _seed_list(seeds)
    params_of = _params_of(params, seed_list)
    feed = Batches(batches, steps)
    first_params = params_of(seed_list[0])
    taken = (*COLUMNS, *settings[0])
    _check_scalars(loss_fn, eval_fn, first_params, feed.at(0), taken)
    trainers: list[Trainer] = []
    for group in groups_of(make, settings):
        members = [Trial(i, seed) for i in group.settings for seed in seed_list]
        _check_vmap(group, members, loss_fn, params_of, feed.at(0), randomness)
        for chunk in _chunks(members, members_at_once):
            trainers.append(
                Trainer(group, chunk, loss_fn, eval_fn, params_of, compile, randomness)
            )
    feed.keeps = len(trainers) > 1
    arguments.update(
        optimizer=name,
        over=[describe(setting) for setting in settings],
        seeds=seed_list,
        fixed=describe(fixed),
        compile=compile,
        randomness=randomness,
        params=_summaries(first_params),
    )
    saved = SweepCheckpoint(checkpoint, arguments)
    runs: dict[Trial, Training] = {}
    bar = progress_bar("sweep", progress, steps * len(trainers), "steps")
    try:
        for i, trainer in enumerate(trainers):
            state = saved.load(i) or trainer.start()
            save = functools.partial(saved.save, i, state)
            try:
                _train(trainer, state, feed, steps, every, save, bar)
            finally:
                weights = unstack(state.params)
                for j, member in enumerate(trainer.members):
                    setting = settings[member.setting]
                    runs[member] = training_of(
                        setting, member, j, state.records, weights[j]
                    )
        finished = True
    except KeyboardInterrupt:
        finished = False
    finally:
        bar.close()
    order = itertools.starmap(Trial, itertools.product(range(len(settings)), seed_list))
    return Sweep(name, [runs[member] for member in order if member in runs], finished)


def _train(
    trainer: Trainer,
    state: Progress,
    feed: Batches,
    steps: int,
    every: int,
    save: Callable[..., None],
    bar: Any,
) -> None:
    """Train the members of one trainer up to the last step; record, save and show them at every record."""
    bar.update(state.step)
    for step in range(state.step, steps):
        trainer.advance(state, feed.at(step))
        bar.update()
        if state.step % every == 0 or state.step == steps:
            trainer.record(state)
            save(is_finished=state.step == steps)
            _show_best(bar, state)


def _checked_name(
    optimizer: Callable[..., GradientTransformation],
    settings: Sequence[dict[str, Any]],
    fixed: dict[str, Any],
) -> str:
    """Check that an optimizer can be made with these arguments, and return its name."""
    passed: Any = optimizer
    is_class = isinstance(passed, type) and issubclass(passed, Optimizer)
    if is_class or not callable(optimizer):
        hint = "; a transformation, not an optimizer, is swept" if is_class else ""
        raise TypeError(
            f"sweep: optimizer must be a callable such as gradtx.adamw, got {describe(optimizer)}{hint}"
        )
    check_names(optimizer, settings, fixed)
    return name_of(optimizer)


def _summaries(params: Any) -> list[str]:
    """Return a line for each tensor of a tree, by which a checkpoint recognizes it."""
    summaries: list[str] = []
    for leaf, tensor in _tree.named(params).items():
        entries = tensor.to(exact_dtype(tensor)).sum()
        kind = f"{tuple(tensor.shape)} {tensor.dtype}"
        summaries.append(f"{leaf}: {kind}, sum {entries:.17g}")
    return summaries


def _checked_counts(
    steps: int, every: int, members_at_once: int | None
) -> dict[str, Any]:
    counts = {"steps": steps, "every": every, "members_at_once": members_at_once}
    for name, count in counts.items():
        if count is None and name == "members_at_once":
            continue
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"sweep: {name} must be an int, got {describe(count)}")
        if count < 1:
            raise ValueError(f"sweep: {name} must be in [1, inf), got {count}")
    return counts


def _seed_list(seeds: Any) -> list[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        return list(range(seeds))
    if not isinstance(seeds, Sequence) or not all(type(seed) is int for seed in seeds):
        raise TypeError(
            f"sweep: seeds must be a number or a list of ints, got {describe(seeds)}"
        )
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"sweep: seeds must differ, got {describe(list(seeds))}")
    return list(seeds)


def _params_of(params: Any, seeds: Sequence[int]) -> Callable[[int], Any]:
    """Return the function that makes the initial weights of a seed."""
    if not seeds:
        raise ValueError("sweep: seeds is empty")
    if isinstance(params, torch.nn.Module):
        raise TypeError(
            f"sweep: params must be a tree of tensors or a function of the seed, got {describe(params)}; "
            "pass dict(model.named_parameters())"
        )
    if not callable(params):
        if len(seeds) > 1:
            raise ValueError(
                f"sweep: params is one tree, but there are {len(seeds)} seeds; pass a function seed -> tree"
            )
        start = _detached(params)
        return lambda seed: start
    trees = {seed: _detached(params(seed)) for seed in seeds}
    try:
        stack(trees.values())
    except (TypeError, ValueError) as error:
        raise type(error)(f"sweep: params of different seeds: {error}") from None
    return trees.__getitem__


def _detached(params: Any) -> Any:
    leaves, _ = _tree.flatten(params, "sweep: params")
    if not leaves or any(leaf is None for leaf in leaves.values()):
        raise TypeError("sweep: params must contain tensors only, without None")
    return _tree.map_tensors(Tensor.detach, params)


class Batches:
    """The batches of a sweep, from a function of the step or from an iterable.

    Attributes:
        keeps: Whether several chunks read the same batches, so that those of an iterable are kept.
    """

    keeps = True

    def __init__(self, source: Any, steps: int):
        self._function = source if callable(source) else None
        self._kept: dict[int, Any] = {}  # by step
        self._read = 0  # how many
        self._steps = steps
        if self._function is None:
            if not isinstance(source, Iterable):
                raise TypeError(
                    f"sweep: batches must be an iterable or a function of the step, got {describe(source)}"
                )
            if isinstance(source, Sized) and len(source) < steps:
                raise ValueError(
                    f"sweep: batches has {len(source)} batches, but steps is {steps}; "
                    "pass a function of the step, or fewer steps"
                )
            self._iterator: Iterator[Any] = iter(source)

    def at(self, step: int) -> Any:
        """Return the batch of a step."""
        if self._function is not None:
            return self._function(step)
        while self._read <= step:
            try:
                self._kept[self._read] = next(self._iterator)
            except StopIteration:
                raise ValueError(
                    f"sweep: batches ended after {self._read} of {self._steps} steps"
                ) from None
            self._read += 1
        batch = self._kept[step]
        if not self.keeps:
            self._kept.clear()
        return batch


def _check_scalars(
    loss_fn: Callable[..., Any],
    eval_fn: Callable[..., Any] | None,
    params: Any,
    batch: Any,
    taken: Sequence[str],
) -> None:
    """Check that losses and evaluations are 0-d tensors."""
    results = {"loss_fn": loss_fn(params, batch)}
    if eval_fn is not None:
        evaluated = eval_fn(params)
        if not isinstance(evaluated, dict):
            evaluated = {"eval_fn": evaluated}
        for name in taken:
            if name in evaluated:
                raise ValueError(
                    f"sweep: eval_fn returns {name!r}, which is another column of the records; rename it"
                )
        results.update(evaluated)
    for name, value in results.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"sweep: {name} must return a tensor, got {describe(value)}"
            )
        if value.ndim:
            raise ValueError(
                f"sweep: {name} must be 0-d, got shape {tuple(value.shape)}; take its mean or sum"
            )


def _check_vmap(
    group: Group,
    members: Sequence[Trial],
    loss_fn: Callable[..., Any],
    params_of: Callable[[int], Any],
    batch: Any,
    randomness: str,
) -> None:
    """Train two members for one step, so that what `torch.vmap` cannot run is known before the training."""
    few = [members[0], members[-1]]
    try:
        trainer = Trainer(group, few, loss_fn, None, params_of, False, randomness)
        trainer.advance(trainer.start(), batch)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        tx = group.with_scalars({})
        link = _unsuitable_link(tx, params_of(members[0].seed))
        culprit = f"{link} cannot run" if link else "loss_fn or a link cannot run"
        raise RuntimeError(f"sweep: {culprit} under torch.vmap: {error}") from error


def _unsuitable_link(tx: Any, params: Any) -> str | None:
    """Return the name of the first link that fails under vmap."""
    for link in tx._links():

        def updated(values: Any, link: Any = link) -> Any:
            return link.update(values, link.init(values), values)[0]

        try:
            torch.vmap(updated)(stack([params, params]))
        except RuntimeError as error:
            if "vmap" in str(error):
                return link._name
        except Exception:  # a link that needs extras
            continue
    return None


def _chunks(members: Sequence[Trial], most: int | None) -> Iterator[Sequence[Trial]]:
    """Divide members into chunks that differ by at most one member in size."""
    count = 1 if most is None else -(-len(members) // most)
    for chunk in torch.arange(len(members)).tensor_split(count):
        yield [members[i] for i in chunk.tolist()]


def _show_best(bar: Any, state: Progress) -> None:
    losses = state.records[state.step]["loss"]
    finite = losses[losses.isfinite()]
    if len(finite):
        bar.set_postfix_str(f"best loss {finite.min():.4g}")
