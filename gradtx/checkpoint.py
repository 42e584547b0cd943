"""Save parameters and a state in one safetensors file, and load them bit for bit."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradtx import _tree
from gradtx._conversion import SUFFIXES, converted
from gradtx._runs import Memory
from gradtx._sharding import is_sharded
from gradtx._torch import readable

__all__ = ["load", "save"]

MOST = 3  # entries of each kind that an error lists


def save(path: str | os.PathLike[str], params: Any, state: Any) -> None:
    """Write parameters and a state to a safetensors file, or leave the old file as it was.

    Entries are named "params.<leaf>" and "state.<path>", and have the dtypes of the tensors. `save` writes a temporary
    file in the same folder and renames it when it is complete, so that a crash or a full disk costs no checkpoint.

    Args:
        path: The file, in a folder that exists.
        params: A tree of tensors.
        state: A tree of tensors: what `init` or `update` returned; also of an ensemble.

    Raises:
        ImportError: the package safetensors is missing.
        TypeError: a leaf that is neither tensor nor None, or whose values can't be read: inside a transform, on the
            meta device, sharded over processes (use `torch.distributed.checkpoint` for these).
        ValueError: two leaves with the same dotted name.
        OSError: the file can't be written.

    Example:
        >>> import tempfile, pathlib
        >>> tx, params = gradtx.adam(), {"w": torch.tensor([1.0, 2.0])}
        >>> state = tx.init(params)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "run.safetensors"
        ...     gradtx.save(path, params, state)
        ...     params, state = gradtx.load(path, params, state)
        >>> params["w"], state["step"]
        (tensor([1., 2.]), tensor(0))
    """
    safetensors = _safetensors("save")
    path = Path(path)
    memory = Memory()
    tensors = {}
    for name, leaf in _named("save", params, state)[0].items():
        if is_sharded(leaf) or not readable(leaf):
            raise TypeError(f"save: {name!r} has no values to write: it is divided, meta, or inside a transform")
        # The format has no shared memory and no strides.
        tensors[name] = memory.fresh(leaf.detach().contiguous())
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save: there is no folder {str(path.parent)!r}")
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        safetensors.torch.save_file(tensors, unfinished, metadata={"format": "pt"})
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())  # the name must not reach the disk before the content does
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], params: Any, state: Any) -> tuple[Any, Any]:
    """Read a file of `save`, after checking all its entries against trees of the same structure.

    Args:
        path: The file.
        params: Parameters built as for the saved run: names, shapes and dtypes count, values don't. They do not change.
        state: A state for them, such as `tx.init(params)`.

    Returns:
        `(params, state)`, new trees with the saved values, in the memory layouts and on the devices of the given trees.

    Raises:
        ImportError: the package safetensors is missing.
        FileNotFoundError: there is no such file.
        TypeError: a leaf that is neither tensor nor None.
        ValueError: the file is no complete safetensors file, or its entries differ from the trees; the error lists the
            first that are missing, unknown, or of another shape or dtype.

    Example:
        See `save`.
    """
    safetensors = _safetensors("load")
    path = Path(path)
    expected, unflatten = _named("load", params, state)
    if not path.is_file():
        raise FileNotFoundError(f"load: there is no file {str(path)!r}")
    try:
        saved = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"load: {str(path)!r} is no whole safetensors file ({error})") from error
    saved = _in_codes_of(state, saved)
    _check(path, saved, expected)
    tensors = {name: _filled(like, saved[name]) for name, like in expected.items()}
    tree = unflatten(tensors)
    return tree["params"], tree["state"]


def _safetensors(caller: str) -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"{caller}: needs the package safetensors: pip install safetensors") from error
    return safetensors


def _named(caller: str, params: Any, state: Any) -> tuple[dict[str, Tensor], Callable[[Mapping[str, Tensor]], Any]]:
    """All tensors by the names of their entries, and the function that rebuilds both trees from others."""
    leaves, unflatten = _tree.flatten_any({"params": params, "state": state}, caller)
    empty = dict.fromkeys(leaves)
    tensors = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    return tensors, lambda values: unflatten({**empty, **values})


def _in_codes_of(state: Any, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a file with their slots coded, or not, as in a state."""
    entries = dict(saved)
    for stage, slots in _stages(state, "state"):
        for leaf in {leaf for values in slots.values() for leaf in values}:
            names = {}
            for slot in (*slots, *(f"{slot}.{suffix}" for slot in slots for suffix in SUFFIXES)):
                names[slot] = f"{stage}.{slot}.{leaf}"
            of_leaf = {slot: saved[name] for slot, name in names.items() if name in saved}
            first = {slot: values[leaf] for slot, values in slots.items() if leaf in values}
            shape = _shape_of(first, of_leaf)
            for slot in of_leaf:
                del entries[names[slot]]
            for slot, tensor in converted(of_leaf, first, shape).items():
                entries[names[slot]] = tensor
    return entries


def _stages(tree: Any, path: str) -> Iterator[tuple[str, dict[str, dict[str, Tensor]]]]:
    """Every part of a state that has slots, with its dotted path and its slots: dicts of tensors by leaf."""
    if not isinstance(tree, dict):
        return
    slots = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value and all(isinstance(leaf, Tensor) for leaf in value.values()):
            slots[key] = value
        else:
            yield from _stages(value, f"{path}.{key}")
    if slots:
        yield path, slots


def _shape_of(first: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> torch.Size:
    """The shape of a leaf, as far as its slots tell: that of the largest."""
    shapes = [tensor.shape for tensor in (*first.values(), *saved.values())]
    return max(shapes, key=torch.Size.numel)


def _check(path: Path, saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise one error for all problems."""
    problems = []
    for kind, items in _problems(saved, expected).items():
        if items:
            problems.append(f"{kind}: {_first(items)}")
    if problems:
        raise ValueError(
            f"load: {str(path)!r} does not fit these params and this state; {'; '.join(problems)}; "
            "build them as when it was saved"
        )


def _problems(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Kind of problem -> entries."""
    missing, different = [], []
    for name, like in expected.items():
        if name not in saved:
            missing.append(repr(name))
        elif _form(saved[name]) != _form(like):
            different.append(f"{name!r} is {_form(saved[name])}, needs {_form(like)}")
    unknown = [repr(name) for name in sorted(saved) if name not in expected]
    return {"missing": missing, "unknown": unknown, "different": different}


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _first(items: list[str]) -> str:
    more = len(items) - MOST
    return ", ".join(items[:MOST]) + (f" and {more} more" if more > 0 else "")


def _filled(like: Tensor, value: Tensor) -> Tensor:
    """Copy a saved value into the memory layout of `like`, since the order of sums may depend on the layout."""
    device = torch.device("cpu") if like.is_meta else like.device
    return torch.empty_like(like, device=device, requires_grad=False).copy_(value)
