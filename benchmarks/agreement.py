"""Compare methods with their authors' code, and print the table of docs/conformance.md.

Usage: python benchmarks/agreement.py FOLDER, with a clone of each repository at FOLDER/owner+name. The files are read
at the commits below and run in float64, after the replacements in `DOUBLE` and in a comparison's `edits`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from torch import Tensor

import gradtx
from gradtx.state.random import Stream

STEPS, SEEDS = 20, (0, 1)
LEAST_LOSS = 50.0  # keeps losses positive, for steps that follow from the loss
SHAPES = {"wide": (5, 9), "tall": (12, 4), "square": (6, 6)}
DOUBLE = {
    ".bfloat16()": ".double()",
    ".float()": ".double()",
    "torch.bfloat16": "torch.float64",
    "torch.float32": "torch.float64",
    "!= torch.float:": "!= torch.float64:",
}
OLD_PYTHON = {  # type parameters and `override` are new in Python 3.12
    r"(def \w+)\[[^]]*\]\(": r"\1(",
    r"^class (\w+)\[[^]]*\]": r"class \1",
    r", override$|^ *@override$|^from typing import override$": "",
}
# gradtx uses a lower bound instead.
NO_EPS = {
    "keepdim=True) + 1e-7)": "keepdim=True))",
    "X.norm() + 1e-7)": "X.norm())",
}
SIGNED = {
    "full_matrices = False)": "full_matrices = False); U, Vh = SIGNED(U, Vh)",
    "full_matrices=False)": "full_matrices=False); U, Vh = SIGNED(U, Vh)",
}


@dataclass
class Comparison:
    """An algorithm in the authors' version and in that of gradtx.

    Attributes:
        name: The algorithm's name in the table.
        repository, commit: The location of the authors' code.
        files: The authors' files to import as one package, with the optimizer in the last file; or a whole package.
        settings: A description of the settings, for the table.
        theirs: A function of the module and the parameters by name that returns the authors' optimizer.
        ours: The transformation of gradtx.
        edits: Replacements in the authors' code: old text -> new text.
        changes: A description of these replacements, for the table.
        shapes: The shapes of the parameters.
        package, module: If a whole package is imported, its name and the module with the optimizer.
    """

    name: str
    repository: str
    commit: str
    files: tuple[str, ...]
    settings: str
    theirs: Callable[[Any, Mapping[str, Tensor]], Any]
    ours: gradtx.GradientTransformation
    edits: Mapping[str, str]
    changes: str
    shapes: Mapping[str, tuple[int, ...]]
    package: str = ""
    module: str = ""


def signed(u: Tensor, vh: Tensor) -> tuple[Tensor, Tensor]:
    """Flip singular vectors so that the largest entry of each is positive."""
    return _columns_signed(u), _columns_signed(vh.T).T


def _columns_signed(x: Tensor) -> Tensor:
    largest = x.gather(0, x.abs().argmax(0, keepdim=True))
    return x * largest.sign()


class Draws:
    """The random numbers of gradtx, in the order in which the authors' code draws them: by step, then by leaf."""

    def __init__(self, names: list[str]):
        self._names = names
        self._count = 0

    def __call__(self, like: Tensor) -> Tensor:
        step, leaf = divmod(self._count, len(self._names))
        self._count += 1
        return Stream(
            torch.tensor(0), torch.tensor(step + 1), self._names[leaf]
        ).normal(like)


def imported(comparison: Comparison, folder: Path) -> Any:
    """Import the module of the authors' optimizer after the replacements."""
    owner, name = comparison.repository.split("/")
    clone = folder / f"{owner}+{name}"
    clone = clone / "repo" if (clone / "repo").is_dir() else clone
    place = Path(tempfile.mkdtemp())
    package = comparison.package or f"authors_{len(sys.modules)}"
    command = ["git", "-C", str(clone), "archive", comparison.commit, *comparison.files]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(place, filter="data")
    if not comparison.package:
        (place / package).mkdir()
        (place / package / "__init__.py").touch()
        for file in comparison.files:
            (place / file).rename(place / package / Path(file).name)
    for file in place.rglob("*.py"):
        file.write_text(edited(file.read_text(), {**DOUBLE, **comparison.edits}))
    sys.path.insert(0, str(place))
    for known in [known for known in sys.modules if known.partition(".")[0] == package]:
        del sys.modules[known]
    module = importlib.import_module(
        f"{package}.{comparison.module or Path(comparison.files[-1]).stem}"
    )
    for known in [known for known in sys.modules if known.partition(".")[0] == package]:
        sys.modules[known].SIGNED = signed  # type: ignore[attr-defined]
        sys.modules[known].DRAWS = Draws(list(comparison.shapes))  # type: ignore[attr-defined]
    return module


def edited(text: str, edits: Mapping[str, str]) -> str:
    """Apply the replacements to a file's text and make it valid for Python 3.11."""
    for old, new in edits.items():
        text = text.replace(old, new)
    for pattern, new in OLD_PYTHON.items():
        text = re.sub(pattern, new, text, flags=re.MULTILINE)
    return f"from __future__ import annotations\n{text}"


def difference(comparison: Comparison, module: Any, seed: int) -> float:
    """Return the largest distance between the two versions' final weights, relative to the distance they moved."""
    generator = torch.Generator().manual_seed(seed)
    start = {
        name: torch.randn(shape, generator=generator)
        for name, shape in comparison.shapes.items()
    }
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    ours = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    ours_optimizer = gradtx.as_optimizer(comparison.ours, ours.items())
    optimizer = comparison.theirs(module, theirs)
    for _ in range(STEPS):
        noise = {
            name: torch.randn(value.shape, generator=generator)
            for name, value in start.items()
        }
        values: list[float] = []
        for params in (theirs, ours):
            value = LEAST_LOSS
            for name, param in params.items():
                param.grad = noise[name] + 0.3 * param.detach().sin()
                value += float((noise[name] * param - 0.3 * param.cos()).sum())
            values.append(value)
        if "value" in comparison.ours.needs:
            optimizer.value = values[0]
            ours_optimizer.step(value=values[1])
        else:
            ours_optimizer.step()
        if comparison.name == "Dion" and not optimizer.state:
            give_start(optimizer, theirs, ours_optimizer)
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer.step()
    distances: list[float] = []
    for name, value in start.items():
        way = (ours[name] - value).norm()
        distances.append(float((ours[name] - theirs[name]).norm() / way))
    return max(distances)


def give_start(optimizer: Any, params: Mapping[str, Tensor], ours: Any) -> None:
    """Start the authors' Dion from the random matrices of gradtx."""
    first = ours._tx.init(dict(params))["scale_by_dion"]["Q"]
    for name, param in params.items():
        optimizer.state[param].update(
            momentum=torch.zeros_like(param), Q=first[name].clone()
        )


def matrices(params: Mapping[str, Tensor]) -> list[Tensor]:
    return list(params.values())


def low_rank_group(
    **options: Any,
) -> Callable[[Mapping[str, Tensor]], list[dict[str, Any]]]:
    return lambda params: [{"params": matrices(params), **options}]


def adamuon(module: Any, params: Mapping[str, Tensor]) -> Any:
    """Build AdaMuon for a single rank, without a process group."""

    def gathered(buffer: Tensor, value: Tensor, async_op: bool) -> Any:
        buffer.copy_(value.reshape(buffer.shape))
        return types.SimpleNamespace(wait=lambda: None)

    module.dist = types.SimpleNamespace(all_gather_into_tensor=gathered)
    return module.AdaMuon(
        matrices(params), lr=0.02, weight_decay=0.1, momentum=0.9, rank=0, world_size=1
    )


def scion(module: Any, params: Mapping[str, Tensor]) -> Any:
    norms = {
        "wide": "Spectral",
        "tall": "Sign",
        "square": "ColNorm",
        "rows": "RowNorm",
        "conv": "Auto",
        "bias": "Auto",
    }
    groups = [
        {"params": [param], "norm": norms[name], "scale": 3.0}
        for name, param in params.items()
    ]
    return module.Scion(groups, lr=0.02, momentum=0.1)


def dion2(module: Any, params: Mapping[str, Tensor]) -> Any:
    def orthogonalized(x: Tensor, epsilon: Any = None) -> Tensor:
        leaves = {"x": x.reshape(-1, *x.shape[-2:])}
        tx = gradtx.orthogonalize("polar_express", view="batch")
        return tx.update(leaves, tx.init(leaves))[0]["x"].reshape(x.shape)

    options = {"lr": 0.02, "fraction": 0.4, "ef_decay": 0.9, "weight_decay": 0.1}
    return module.Dion2(matrices(params), **options, newton_schulz_func=orthogonalized)


def schedule_free_plus(module: Any, params: Mapping[str, Tensor]) -> Any:
    """Build ScheduleFree+, whose step takes the loss that `difference` has set."""

    class WithValue(module.AdamCScheduleFreePlusPaper):
        value = 0.0

        def step(self, closure: Any = None) -> Any:
            return self.step_func(self.value)

    optimizer = WithValue(
        matrices(params), lr=0.5, weight_decay=20.0, r=1.0, sf_beta1_anneal_steps=10
    )
    optimizer.train()
    return optimizer


def smmf() -> gradtx.GradientTransformation:
    betas = (
        gradtx.Schedule(lambda step: 0.9 * 0.99**step),
        gradtx.Schedule(lambda step: 1 - (step + 1.0) ** -0.8),
    )
    rule = gradtx.scale_by_adam(betas, correct_bias=False)
    return gradtx.chain(
        gradtx.with_state_dtype(rule, "factored", min_size=0),
        gradtx.add_decayed_weights(0.1),
        gradtx.scale_by_learning_rate(0.02),
    )


def prodigy_schedule_free(module: Any, params: Mapping[str, Tensor]) -> Any:
    optimizer = module.ProdigyPlusScheduleFree(
        matrices(params),
        lr=0.5,
        weight_decay=0.1,
        d0=1e-3,
        schedulefree_c=20,
        split_groups=False,
        factored=False,
    )
    optimizer.train()
    return optimizer


TRANSFORMERS = {
    "from transformers.utils.versions import require_version": "require_version = str"
}
DION_PARTS = (
    "newton_schulz_triton",
    "polar_express",
    "opt_utils",
    "scalar_opts",
    "megabatch_base",
    "dion2",
)
LOW_RANK = {"rank": 3, "update_proj_gap": 5, "proj_type": "std"}
SCION_SHAPES = {**SHAPES, "rows": (7, 3), "conv": (4, 3, 2, 2), "bias": (5,)}
SCION_KINDS = {
    "wide": "spectral", "tall": "sign", "square": gradtx.lmo("column"), "rows": "row", "conv": "conv", "bias": "bias",
}  # fmt: skip
KRON_EDITS = {
    "torch.finfo(torch.float64).eps, dtype=G.dtype": "2.0**-23, dtype=G.dtype",
    "    G += eps.sqrt()": "    G = G + eps.sqrt()",
    "V = torch.randn_like(G)": "V = DRAWS(G)",
    "self.rng.random() < 0.01 and do_update": "do_update and self._prob_step % 7 == 0",
}

COMPARISONS = [
    Comparison(
        "Muon",
        "KellerJordan/Muon",
        "857d1adc159e098212f828d927460782d3da59e9",
        ("muon.py",),
        "momentum 0.9, decay 0.1",
        lambda module, params: module.SingleDeviceMuon(
            matrices(params), lr=0.02, weight_decay=0.1, momentum=0.9
        ),
        gradtx.muon(lr=0.02, weight_decay=0.1, momentum=0.9, ns_dtype=torch.float64),
        NO_EPS,
        "norm without + 1e-7",
        SHAPES,
    ),
    Comparison(
        "MuonEq",
        "MaeChd/muon-eq",
        "99b6c8b8f6d8b7d3424e85606d76302a71a8ea79",
        ("llm-opt-baseline-gpu/llm-baselines/src/optim/muoneq.py",),
        "rows and columns, power 0.25, clip 2, momentum 0.9, decay 0.1",
        lambda module, params: module.MuonEq(
            lr=0.02,
            wd=0.1,
            muon_params=matrices(params),
            momentum=0.9,
            normalize_mode="rowcol",
            rowcol_scale_exponent=-0.25,
            rowcol_clip=2.0,
        ),
        gradtx.muon_eq(
            lr=0.02,
            weight_decay=0.1,
            momentum=0.9,
            normalize="both",
            power=0.25,
            clip=2.0,
        ),
        NO_EPS,
        "norm without + 1e-7",
        SHAPES,
    ),
    Comparison(
        "ScheduleFree+",
        "facebookresearch/schedule_free",
        "70785b53e778d0e872c0bbb75ff4ee54ee10c291",
        ("schedulefree/adamc_schedulefree_plus_paper.py",),
        "r 1, annealed over 10 steps, decay 20",
        schedule_free_plus,
        gradtx.schedule_free_plus(
            lr=0.5, weight_decay=20.0, r=1.0, sf_beta1_anneal_steps=10
        ),
        {},
        "none",
        {**SHAPES, "bias": (5,)},
    ),
    Comparison(
        "Prodigy with Schedule-Free",
        "LoganBooker/prodigy-plus-schedule-free",
        "338cf401f1d32ed0a69a3ca6b908008a974e9399",
        ("prodigyplus/core_optimiser.py", "prodigyplus/prodigy_plus_schedulefree.py"),
        "d0 1e-3, C 20, decay 0.1, one d, second moments not factored",
        prodigy_schedule_free,
        gradtx.prodigy_schedule_free(
            lr=0.5, weight_decay=0.1, d0=1e-3, decoupling_c=20.0
        ),
        {},
        "none",
        {**SHAPES, "bias": (5,)},
    ),
    Comparison(
        'SMMF, as "factored" state',
        "eai-lab/SMMF",
        "edb98aadffdd6e4dd67f8bb412d35b07881b52d9",
        ("SMMF/SMMF.py",),
        "growth 0.99, decay_rate -0.8, decay 0.1",
        lambda module, params: module.SMMF(
            matrices(params),
            lr=0.02,
            weight_decay=0.1,
            growth_rate=0.99,
            decay_rate=-0.8,
        ),
        smmf(),
        {},
        "none",
        {**SHAPES, "conv": (4, 3, 2, 2), "bias": (5,)},
    ),
    Comparison(
        "NorMuon",
        "zichongli5/NorMuon",
        "d45c9a4280d758e2cf0b2b8333765d040e953937",
        ("normuon.py",),
        "momentum 0.9, beta2 0.8, decay 0.1",
        lambda module, params: module.SingleDeviceNorMuon(
            matrices(params), lr=0.02, weight_decay=0.1, momentum=0.9, beta2=0.8
        ),
        gradtx.normuon(lr=0.02, weight_decay=0.1, momentum=0.9, beta2=0.8),
        {**NO_EPS, "vnorm_new.add_(1e-10)": "vnorm_new"},
        "norms without + 1e-7, + 1e-10",
        SHAPES,
    ),
    Comparison(
        "AdaMuon",
        "Chongjie-Si/AdaMuon",
        "369f0b3bd9d97f82bb8ba81664207ac513e233b0",
        ("gpt2/models/optimizers/adamuon.py",),
        "sign, rescale rms, betas 0.9, decay 0.1",
        adamuon,
        gradtx.adamuon(
            lr=0.02,
            weight_decay=0.1,
            betas=(0.9, 0.9),
            sign=True,
            rescale="rms",
            correct_bias=False,
            adjust_lr_fn="none",
        ),
        {
            **NO_EPS,
            'device="cuda"': 'device="cpu"',
            'addcmul_(1 - group["momentum"], g, g)': 'addcmul_(g, g, value=1 - group["momentum"])',
        },
        "norm without + 1e-7; one process; order of arguments of addcmul_",
        SHAPES,
    ),
    Comparison(
        "Dion",
        "microsoft/dion",
        "0a059a4542e5aa74b40dcd1dce363836c7afcd48",
        ("dion/scalar_opts.py", "dion/dion_simple.py"),
        "rank 3, mu 0.9, decay 0.1",
        lambda module, params: module.Dion(
            matrices(params), lr=0.02, mu=0.9, weight_decay=0.1, rank=3
        ),
        gradtx.dion(lr=0.02, mu=0.9, weight_decay=0.1, rank=3),
        {},
        "our random start",
        SHAPES,
    ),
    Comparison(
        "Dion2",
        "microsoft/dion",
        "0a059a4542e5aa74b40dcd1dce363836c7afcd48",
        tuple(f"dion/{name}.py" for name in DION_PARTS),
        "fraction 0.4, ef_decay 0.9, decay 0.1",
        dion2,
        gradtx.dion2(lr=0.02, fraction=0.4, ef_decay=0.9, weight_decay=0.1),
        {},
        "our polar iteration, by its argument",
        SHAPES,
    ),
    Comparison(
        "SOAP",
        "nikhilvyas/SOAP",
        "a1e553530fde97d0e6b307d7c82ac6d38b072340",
        ("soap.py",),
        "betas 0.9, 0.8, shampoo_beta 0.7, renewed every 4, decay 0.1",
        lambda module, params: module.SOAP(
            matrices(params),
            lr=0.02,
            betas=(0.9, 0.8),
            shampoo_beta=0.7,
            weight_decay=0.1,
            precondition_frequency=4,
        ),
        gradtx.soap(
            lr=0.02,
            betas=(0.9, 0.8),
            shampoo_beta=0.7,
            weight_decay=0.1,
            precondition_frequency=4,
        ),
        {},
        "none",
        SHAPES,
    ),
    Comparison(
        "PSGD Kron",
        "evanatyourservice/kron_torch",
        "884427c32bc45e8293e20c26c85e4ccc4f68c9d1",
        ("kron_torch/kron.py",),
        "b1 0.8, precond_lr 0.2, random probes, decay 0.1",
        lambda module, params: module.Kron(
            matrices(params),
            lr=0.02,
            b1=0.8,
            weight_decay=0.1,
            precond_lr=0.2,
            precond_dtype=torch.float64,
        ),
        gradtx.psgd_kron(
            lr=0.02,
            b1=0.8,
            weight_decay=0.1,
            precond_lr=0.2,
            probes="random",
            balance_every=7,
            seed=0,
        ),
        KRON_EDITS,
        "noise added out of place; our probes; balanced every 7 updates, not by chance",
        SHAPES,
    ),
    Comparison(
        "GaLore",
        "jiaweizzhao/GaLore",
        "2cc66f88cce189e505affbb91042a8e77f5bf4e9",
        ("galore_torch/galore_projector.py", "galore_torch/adamw.py"),
        "rank 3, renewed every 5, decay 0.1",
        lambda module, params: module.AdamW(
            low_rank_group(scale=0.5, **LOW_RANK)(params),
            lr=0.02,
            weight_decay=0.1,
            no_deprecation_warning=True,
        ),
        gradtx.galore(lr=0.02, weight_decay=0.1, rank=3, update_proj_gap=5, scale=0.5),
        {**SIGNED, **TRANSFORMERS, "from .galore_projector_tensor import": "#"},
        "our signs of singular vectors",
        SHAPES,
    ),
    Comparison(
        "APOLLO",
        "zhuhanqing/APOLLO",
        "76b34725abcbd45aa47d8fdf831c8b5ba6d34dde",
        (
            "apollo_torch/svd_projector.py",
            "apollo_torch/random_projector.py",
            "apollo_torch/apollo.py",
        ),
        "svd, channel, rank 3, scale 0.5, renewed every 5, decay 0.1",
        lambda module, params: module.AdamW(
            low_rank_group(proj="svd", scale_type="channel", scale=0.5, **LOW_RANK)(
                params
            ),
            lr=0.02,
            weight_decay=0.1,
        ),
        gradtx.apollo_low_rank(
            lr=0.02,
            weight_decay=0.1,
            rank=3,
            update_proj_gap=5,
            scale=0.5,
            projection="svd",
        ),
        {**SIGNED, **TRANSFORMERS},
        "our signs of singular vectors",
        SHAPES,
    ),
    Comparison(
        "Fira",
        "xichen-fy/Fira",
        "5c28b13408282b3ee65386b110318659412ddad9",
        ("optimizer_torch/gradient_projection.py", "optimizer_torch/fira_adamw.py"),
        "rank 3, alpha 0.5, renewed every 5, decay 0.1",
        lambda module, params: module.AdamW(
            low_rank_group(alpha=0.5, **LOW_RANK)(params),
            lr=0.02,
            weight_decay=0.1,
            no_deprecation_warning=True,
        ),
        gradtx.fira(lr=0.02, weight_decay=0.1, rank=3, update_proj_gap=5, scale=0.5),
        {**SIGNED, **TRANSFORMERS},
        "our signs of singular vectors",
        SHAPES,
    ),
    Comparison(
        "Scion",
        "LIONS-EPFL/scion",
        "f58a393e010395a5913176be5673d8839caa6285",
        ("scion.py",),
        "six kinds, momentum 0.1, scale 3, constrained",
        scion,
        gradtx.scion(lr=0.02, momentum=0.1, scale=3.0, kinds=SCION_KINDS),
        NO_EPS,
        "norm without + 1e-7",
        SCION_SHAPES,
    ),
    Comparison(
        "NAMO",
        "NVIDIA-NeMo/Emerging-Optimizers",
        "fd7729267109a8848709e9406bf19e53e970c3f4",
        ("emerging_optimizers",),
        "betas 0.9, 0.8, decay 0.1",
        lambda module, params: module.AdaptiveMuon(
            matrices(params),
            lr=0.02,
            momentum=0.9,
            weight_decay=0.1,
            moment2_method="namo",
            beta2=0.8,
            fp32_matmul_prec="highest",
        ),
        gradtx.namo(lr=0.02, weight_decay=0.1, betas=(0.9, 0.8)),
        {},
        "none",
        SHAPES,
        "emerging_optimizers",
        "orthogonalized_optimizers.adaptive_muon",
    ),
    Comparison(
        "PolarGrad",
        "NVIDIA-NeMo/Emerging-Optimizers",
        "fd7729267109a8848709e9406bf19e53e970c3f4",
        ("emerging_optimizers",),
        "momentum 0.9, decay 0.1",
        lambda module, params: module.PolarGrad(
            matrices(params), lr=0.02, momentum=0.9, weight_decay=0.1
        ),
        gradtx.polargrad(lr=0.02, momentum=0.9, weight_decay=0.1),
        {},
        "none",
        SHAPES,
        "emerging_optimizers",
        "orthogonalized_optimizers.polargrad",
    ),
    Comparison(
        "Muown",
        "NVIDIA-NeMo/Emerging-Optimizers",
        "fd7729267109a8848709e9406bf19e53e970c3f4",
        ("emerging_optimizers",),
        "momentum 0.9, betas 0.8, 0.9, decay 0.1",
        lambda module, params: module.Muown(
            matrices(params),
            lr=0.02,
            momentum=0.9,
            weight_decay=0.1,
            betas=(0.8, 0.9),
            fp32_matmul_prec="highest",
        ),
        gradtx.muown(lr=0.02, momentum=0.9, weight_decay=0.1, betas=(0.8, 0.9)),
        {},
        "none",
        SHAPES,
        "emerging_optimizers",
        "contrib.muown",
    ),
]


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_default_dtype(torch.float64)
    print(f"{STEPS} steps, torch {torch.__version__}\n")
    print(
        "| algorithm | code, commit | settings | replaced in their code | largest difference |"
    )
    print("|---|---|---|---|---|")
    for comparison in COMPARISONS:
        largest = 0.0
        for seed in SEEDS:
            largest = max(
                largest, difference(comparison, imported(comparison, folder), seed)
            )
        code = f"{comparison.repository}, {comparison.commit[:7]}"
        print(
            f"| {comparison.name} | {code} | {comparison.settings} | {comparison.changes} | {largest:.0e} |"
        )


if __name__ == "__main__":
    with torch.no_grad():
        main()
