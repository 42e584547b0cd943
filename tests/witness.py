"""What every optimizer computes and which texts compute it, to compare before and after a change of the engine.

`python -m tests.witness write FOLDER` before, `python -m tests.witness check FOLDER` after: weights and states of three
steps by each way, bit for bit; the texts of list programs, C++ and Triton; states and pickles that were saved before.
`--only PATTERN` takes some optimizers.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import copy
import fnmatch
import hashlib
import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.checkpoint import load as load_distributed
from torch.distributed.checkpoint import save as save_distributed
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from tqdm import tqdm

import gradtx
from gradtx.base.dtensor import local
from gradtx.compiler.triton import is_importable
from gradtx.distributed.redistribution import full_tensor
from tests.conformance import bits
from tests.examples import example_of

STEPS = 3
VARIANTS = ("leaves", "int8", "clip", "shards")
WAYS = ("line by line", "lists", "compiled", "released", "pure")
SAVED = ("adamw", "sgd", "muon", "soap", "prodigy", "schedule_free_adamw", "adafactor", "lion")


def chain_of(name: str, variant: str) -> Any:
    """An optimizer with the arguments of the tests."""
    factory = getattr(gradtx, name)
    options = example_of(factory)
    if variant == "int8":
        options["state_dtype"] = "int8"
    if variant in ("int8", "clip", "triton"):
        for size in {"block_size", "max_preconditioner_dim"} & options.keys():
            options[size] = 32  # these leaves would have thousands of tiny blocks
    tx = factory(**options)
    return gradtx.chain(gradtx.clip_by_global_norm(0.5), tx) if variant == "clip" else tx


def leaves_of(variant: str) -> dict[str, Tensor]:
    """Leaves of different kinds; with codes, as large as a block; or shards."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    if variant == "int8":
        return {"a.weight": drawn(64, 80), "a.bias": drawn(64)}
    if variant == "shards":
        mesh = init_device_mesh("cpu", (1,))
        whole = {"a.weight": drawn(6, 4), "a.bias": drawn(6), "b.weight": drawn(4, 6)}
        return {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in whole.items()}
    return {
        "a.weight": drawn(6, 4, dtype=torch.float64),
        "b.weight": drawn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "b.bias": drawn(6),
        "scale": drawn(dtype=torch.bfloat16),
    }


def loss_of(params: dict[str, Tensor]) -> Tensor:
    """A function with a different gradient in each entry."""
    terms = [(param.cos() * (i + 1)).sum() for i, param in enumerate(params.values())]
    return torch.stack([full_tensor(term).to(torch.float64) for term in terms]).sum()


def digest(tensors: list[Any]) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        value = local(tensor).detach() if isinstance(tensor, Tensor) else torch.tensor(tensor)
        total.update(f"{value.dtype} {tuple(value.shape)}".encode())
        total.update(bits(value).numpy().tobytes())
    return total.hexdigest()[:16]


def of_optimizer(optimizer: Any, params: dict[str, Tensor]) -> str:
    found: list[Any] = []
    for param in params.values():
        state = optimizer.state[param]
        found += [param, *(state[key] for key in sorted(state) if isinstance(state[key], Tensor))]
    return digest(found)


def stepped(optimizer: Any, params: dict[str, Tensor], steps: int = STEPS) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def by_way(name: str, variant: str, way: str) -> str:
    """What three steps by a way compute; the error, where they raise one."""
    tx = chain_of(name, variant)
    params = {name: torch.nn.Parameter(value) for name, value in leaves_of(variant).items()}
    if way == "pure":
        return pure(tx, params)
    optimizer = gradtx.as_optimizer(tx, list(params.items()), compile=way == "compiled")
    with gradtx.eagerly() if way == "line by line" else contextlib.nullcontext():
        if way == "released":
            optimizer.release_gradients()
            for _ in range(STEPS):
                loss_of(params).backward()
                optimizer.step()
        else:
            stepped(optimizer, params)
    return of_optimizer(optimizer, params)


def pure(tx: Any, leaves: dict[str, Tensor]) -> str:
    params = {name: value.detach().clone() for name, value in leaves.items()}
    state = tx.init(params)
    for _ in range(STEPS):
        gradients, loss = torch.func.grad_and_value(loss_of)(params)
        extras = {"value": loss} if "value" in tx.needs else {}
        if "grad_fn" in tx.needs:
            extras["grad_fn"] = torch.func.grad(loss_of)
        updates, state = tx.update(gradients, state, params, **extras)
        params = gradtx.apply_updates(params, updates)
    tensors, _ = torch.utils._pytree.tree_flatten(state)
    return digest([*params.values(), *(tensor for tensor in tensors if isinstance(tensor, Tensor))])


@contextlib.contextmanager
def texts_seen(texts: list[str]) -> Iterator[None]:
    """Note the texts of programs: those that Python compiles for gradtx, and those that a C++ compiler gets."""
    compile_python, run = builtins.compile, subprocess.run

    def noted(source: Any, filename: Any, *args: Any, **options: Any) -> Any:
        if isinstance(source, str) and "gradtx" in str(filename) and not str(filename).endswith(".py"):
            texts.append(source)
        return compile_python(source, filename, *args, **options)

    def noted_run(*args: Any, **options: Any) -> Any:
        if isinstance(options.get("input"), str):
            texts.append(options["input"])
        return run(*args, **options)

    builtins.compile, subprocess.run = noted, noted_run
    try:
        yield
    finally:
        builtins.compile, subprocess.run = compile_python, run


def triton_texts(name: str, variant: str) -> list[str]:
    """The texts of an optimizer's kernels for GPUs, where Triton is there."""
    if variant == "shards":
        return []
    from tests.gpu.compile_kernels import sources_of

    return sources_of(chain_of(name, "triton" if variant == "leaves" else variant))


def observed(name: str, variant: str, triton: bool) -> dict[str, Any]:
    """What an optimizer computes by each way, and by which texts that no earlier one had."""
    results: dict[str, Any] = {}
    texts: list[str] = []
    with warnings.catch_warnings(), texts_seen(texts):
        warnings.simplefilter("ignore")
        for way in WAYS:
            try:
                results[way] = by_way(name, variant, way)
            except Exception as error:
                results[way] = f"{type(error).__name__}: {error}"[:300]
        if triton:
            try:
                texts += triton_texts(name, variant)
            except Exception as error:
                results["triton"] = f"{type(error).__name__}: {error}"[:300]
    # In any order: it follows from that of sets.
    results["texts"] = sorted(hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts)
    return results


def everything(pattern: str, file: Path | None = None) -> dict[str, Any]:
    """What each optimizer gives; written to a file after each, if there is one, from which a later run goes on."""
    names = [name for name in sorted(gradtx.optim.classes.ALIASES.values()) if fnmatch.fnmatch(name, pattern)]
    has_triton = is_importable()
    found = json.loads(file.read_text()) if file is not None and file.exists() else {}
    for name, variant in tqdm([(name, variant) for name in names for variant in VARIANTS], unit="case"):
        case = f"{name}, {variant}"
        if file is None or case not in found:
            found[case] = observed(name, variant, has_triton)
            if file is not None:
                file.write_text(json.dumps(found, indent=1))
    return found


# What was saved.


def trained(name: str) -> tuple[Any, torch.nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 3))
    params = dict(module.named_parameters())
    optimizer = gradtx.as_optimizer(chain_of(name, "leaves"), list(params.items()))
    stepped(optimizer, params)
    return optimizer, module, params


def save(folder: Path) -> None:
    for name in SAVED:
        optimizer, module, params = trained(name)
        torch.save({"optimizer": optimizer.state_dict(), "model": module.state_dict()}, folder / f"{name}.pt")
        (folder / f"{name}.pickle").write_bytes(pickle.dumps((optimizer, params)))
        save_distributed(get_optimizer_state_dict(module, optimizer), checkpoint_id=folder / f"{name}.dcp")
        stepped(optimizer, params)
        (folder / f"{name}.txt").write_text(of_optimizer(optimizer, params))


def loads(folder: Path) -> list[str]:
    """What does not go on as before from what was saved."""
    faults = []
    for name in SAVED:
        expected = (folder / f"{name}.txt").read_text()
        for form in ("pt", "pickle", "dcp", "deepcopy"):
            try:
                optimizer, module, params = trained(name)
                if form == "pickle":
                    optimizer, params = pickle.loads((folder / f"{name}.pickle").read_bytes())
                elif form == "deepcopy":
                    optimizer, params = copy.deepcopy((optimizer, params))
                elif form == "pt":
                    saved = torch.load(folder / f"{name}.pt", weights_only=True)
                    optimizer = gradtx.as_optimizer(chain_of(name, "leaves"), list(params.items()))
                    optimizer.load_state_dict(saved["optimizer"])
                else:
                    optimizer = gradtx.as_optimizer(chain_of(name, "leaves"), list(params.items()))
                    state = get_optimizer_state_dict(module, optimizer)
                    load_distributed(state, checkpoint_id=folder / f"{name}.dcp")
                    set_optimizer_state_dict(module, optimizer, state)
                stepped(optimizer, params)
                if of_optimizer(optimizer, params) != expected:
                    faults.append(f"{name} from {form}: other bits")
            except Exception as error:
                faults.append(f"{name} from {form}: {type(error).__name__}: {error}"[:300])
    return faults


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    found = []
    for case in sorted(before.keys() & after.keys()):
        for way in sorted(before[case].keys() | after[case].keys()):
            old, new = before[case].get(way), after[case].get(way)
            if old != new:
                found.append(f"{case}, {way}: {old} before, {new} now")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.witness")
    parser.add_argument("action", choices=("write", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", help="a pattern of optimizers' names")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    file = arguments.folder / "results.json"
    if arguments.action == "write":
        arguments.folder.mkdir(parents=True, exist_ok=True)
        everything(arguments.only, file)
        save(arguments.folder)
        return 0
    found = differences(json.loads(file.read_text()), everything(arguments.only)) + loads(arguments.folder)
    print("\n".join(found) or "no difference")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
