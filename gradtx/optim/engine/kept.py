"""Save compiled programs as text in inductor's cache, so that later processes run them without importing inductor.

If the programs are already compiled, importing inductor takes longer than everything else in a process's first step.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import GraphModule, Node

from gradtx import _torch

logger = logging.getLogger("gradtx")
FOLDER = "gradtx"


def kept_program(
    place: Path, assumptions: _torch.Assumptions
) -> Callable[..., Any] | None:
    """Return the program saved in a file, if an earlier process has written one that can be used."""
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        program = _torch.run_kernels(
            _torch.Kernels(content["method"], content["libraries"])
        )
        return program if assumptions.add(content["assumptions"]) else None
    except (
        OSError,
        ImportError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        SyntaxError,
    ):
        # inductor compiles it again.
        logger.debug("no program in %s", place, exc_info=True)
        return None


def keep(
    place: Path, program: Callable[..., Any], assumptions: _torch.Assumptions
) -> None:
    """Save a program that was compiled under assumptions about sizes, if it is simple enough."""
    kernels = _torch.kernels_of(program)
    if kernels is None or _torch.was_loaded(program):
        return
    try:
        content = {
            "method": kernels.method,
            "libraries": kernels.libraries,
            "assumptions": assumptions.added(),
        }
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=place.parent, delete=False, encoding="utf-8"
        ) as file:
            json.dump(content, file)
        # Atomically, since other processes may be reading it.
        os.replace(file.name, place)
    except (OSError, AttributeError):
        logger.debug("the program could not be saved in %s", place, exc_info=True)


def place_of(graph: GraphModule, options: Mapping[str, Any]) -> Path | None:
    """Return the file of a graph's program, named by a digest of all it depends on; None if it must not be saved."""
    folder, settings = _torch.compiler_cache(), _torch.compiler_settings()
    if (
        folder is None
        or settings is None
        or not _torch.compiles_at_once(graph, options)
    ):
        return None
    if graph.graph.find_nodes(op="get_attr"):  # constants, which have no text form
        return None
    facts = [
        _surroundings(),
        settings,
        repr(sorted(options.items())),
        str(torch.get_num_threads()),
    ]
    facts += [_text_of(node) for node in graph.graph.nodes]
    digest = hashlib.sha256("\n".join(facts).encode())
    return folder / FOLDER / f"{digest.hexdigest()}.json"


def _text_of(node: Node) -> str:
    value = node.meta.get("val")
    facts: list[Any] = [node.op, node.name, _target_of(node), node.args, node.kwargs]
    if isinstance(value, Tensor):
        facts += [value.dtype, value.device]
        for size in (*value.shape, *value.stride(), value.storage_offset()):
            facts += _size(size)
    elif isinstance(value, SymInt):
        facts += _size(value)
    return repr(facts)


def _target_of(node: Node) -> str:
    """Return the name of a node's target, without the address in a function's repr."""
    name = getattr(node.target, "__qualname__", None)
    return str(node.target) if name is None else f"{node.target.__module__}.{name}"


def _size(size: Any) -> tuple[Any, ...]:
    """Return a size as text, with the size of the examples, since inductor may plan loops for it."""
    return (str(size), _torch.hint_of(size)) if isinstance(size, SymInt) else (size,)


@functools.cache
def _surroundings() -> str:
    """Return the versions, environment variables and processor that programs depend on."""
    modules = (Path(_torch.__file__), Path(__file__))
    codes = [hashlib.sha256(module.read_bytes()).hexdigest() for module in modules]
    environment = sorted(
        item
        for item in os.environ.items()
        if item[0].startswith(("ATEN", "TORCH", "CXX", "CPLUS"))
    )
    return repr(
        [
            torch.__version__,
            torch.version.git_version,
            *codes,
            environment,
            platform.machine(),
            _processor(),
        ]
    )


def _processor() -> str:
    """Return the processor's instruction sets, as far as the system reports them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
