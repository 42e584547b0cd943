"""Take the chain of a training record apart: train without one of its links at a time, and compare.

The chain is that of docs/howto/records.md for the hidden matrices of modded-nanogpt's track 1; everything else of a
small transformer trains with AdamW. Data: bytes of Python's standard library; every tenth file is held out.
`gradtx.sweep` trains each variant at five rates with three seeds.
Run: `python examples/records_chars.py`. Prints a table and writes out/records_chars.png.
"""

from __future__ import annotations

import argparse
import math
import platform
import sysconfig
from pathlib import Path
from statistics import fmean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

import gradtx

CONTEXT, WIDTH, HEADS, BLOCKS, BATCH = 32, 32, 4, 2, 8
ADAMW_RATE = 2e-2  # of what is not a hidden matrix: the best one of AdamW alone
Params = dict[str, Tensor]
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
A, B, C = POLAR_EXPRESS[0]
ITERATION = ((A / 1.02, B / 1.02**3, C / 1.02**5), *POLAR_EXPRESS[1:])
LINKS = {
    "momentum": lambda lr: gradtx.trace_ema(0.95, nesterov=True),
    "direction": lambda lr: gradtx.orthogonalize(ITERATION, eps=1e-6),
    "neurons": lambda lr: gradtx.normalize_neurons(0.9, axis="long"),
    "decay": lambda lr: gradtx.add_decayed_weights(
        gradtx.Schedule(lambda step: 1.2 * lr(step)), cautious="inclusive"
    ),
    "shape": lambda lr: gradtx.scale_by_shape(),
}
# What takes the place of a link.
ABLATIONS = {
    "no momentum": ("momentum", lambda lr: gradtx.chain()),
    # No iterations: divided by its norm.
    "not orthogonalized": ("direction", lambda lr: gradtx.orthogonalize(steps=0)),
    "no scales of neurons": ("neurons", lambda lr: gradtx.chain()),
    "decay, not cautious": (
        "decay",
        lambda lr: gradtx.add_decayed_weights(
            gradtx.Schedule(lambda step: 1.2 * lr(step))
        ),
    ),
    "no decay": ("decay", lambda lr: gradtx.chain()),
    "no factor of shape": ("shape", lambda lr: gradtx.chain()),
}
# The middle of each grid; 0.02 for all others.
MIDDLE = {"no momentum": 8e-2, "not orthogonalized": 5e-3}
RECORD, ADAMW, MUON = "track 1", "AdamW", "Muon"
VARIANTS = (ADAMW, MUON, RECORD, *ABLATIONS)


def rates_of(variant: str, count: int) -> list[float]:
    """Return rates, each twice the last."""
    middle = MIDDLE.get(variant, 2e-2)
    return [middle * 2.0 ** (i - (count - 1) // 2) for i in range(count)]


def is_hidden(name: str, param: Tensor) -> bool:
    return name.startswith("block") and param.ndim == 2


def optimizer(variant: str, lr: float, steps: int) -> gradtx.GradientTransformation:
    def falling(lr: float) -> gradtx.Schedule:
        return gradtx.warmup_cosine_schedule(steps, max_lr=lr, warmup_steps=steps // 10)

    adamw = gradtx.adamw(
        falling(lr if variant == ADAMW else ADAMW_RATE),
        betas=(0.9, 0.95),
        weight_decay=0.1,
    )
    if variant == ADAMW:
        return adamw
    if variant == MUON:
        hidden = gradtx.muon(falling(lr), weight_decay=0.1, ns_dtype=None)
    else:
        links = dict(LINKS)
        if variant in ABLATIONS:
            name, instead = ABLATIONS[variant]
            links[name] = instead
        hidden = gradtx.chain(
            *(link(falling(lr)) for link in links.values()),
            gradtx.scale_by_learning_rate(falling(lr)),
        )
    return gradtx.partition(
        {"hidden": hidden, "rest": adamw}, {"hidden": is_hidden, "rest": "*"}
    )


# The model, a function of its weights.


def weights(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)

    def linear(rows: int, columns: int) -> Tensor:
        bound = 1 / math.sqrt(columns)
        return (2 * torch.rand(rows, columns, generator=generator) - 1) * bound

    params = {
        "bytes": torch.randn(256, WIDTH, generator=generator) * 0.05,
        "places": torch.randn(CONTEXT, WIDTH, generator=generator) * 0.05,
        "head": linear(256, WIDTH),
    }
    for i in range(BLOCKS):
        for name in ("query", "key", "value", "out"):
            params[f"block{i}.{name}"] = linear(WIDTH, WIDTH)
        params[f"block{i}.up"] = linear(4 * WIDTH, WIDTH)
        params[f"block{i}.down"] = linear(WIDTH, 4 * WIDTH)
    return params


def normalized(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def loss_fn(params: Params, windows: Tensor) -> Tensor:
    """Return the loss in nats per byte. Each window has one byte more than the context."""
    tokens, targets = windows[:, :-1], windows[:, 1:]
    later = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
    x = params["bytes"][tokens] + params["places"]
    for i in range(BLOCKS):
        of = {
            name.partition(".")[2]: p
            for name, p in params.items()
            if name.startswith(f"block{i}.")
        }
        y = normalized(x)
        query, key, value = (
            (y @ of[name].T).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH / HEADS)
        mixed = scores.masked_fill(later, -1e9).softmax(-1) @ value
        x = x + mixed.transpose(1, 2).flatten(-2) @ of["out"].T
        x = x + functional.gelu(normalized(x) @ of["up"].T) @ of["down"].T
    logits = normalized(x) @ params["head"].T
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


# The data.


def library() -> tuple[Tensor, Tensor]:
    """Return the bytes of the standard library's modules, for training and held out."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    held_out = b"".join(file.read_bytes() for file in files[9::10])
    train = b"".join(f.read_bytes() for i, f in enumerate(files) if i % 10 != 9)
    parts = [
        torch.frombuffer(bytearray(part), dtype=torch.uint8).long()
        for part in (train, held_out)
    ]
    return parts[0], parts[1]


def windows_of(text: Tensor, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - CONTEXT, (count, 1), generator=generator)
    return text[starts + torch.arange(CONTEXT + 1)]


class Tuned:
    """A variant at its best rate.

    Attributes:
        rates, means: The grid, and the mean of the held-out loss over seeds at each rate.
        rate: The best one.
        losses: The held-out loss of each seed there.
        is_at_edge: Whether the grid ends there.
    """

    def __init__(self, result: gradtx.Sweep, rates: list[float]):
        rows = {row["lr"]: row for row in result.best("held out", n=len(rates))}
        self.rate = next(iter(rows))
        self.rates, self.means = rates, [rows[rate]["mean"] for rate in rates]
        self.is_at_edge = len(rates) > 2 and self.rate in (rates[0], rates[-1])
        at_best = [r for r in result.records if r["lr"] == self.rate]
        last = max(record["step"] for record in at_best)
        self.losses = [r["held out"] for r in at_best if r["step"] == last]

    @property
    def spread(self) -> float:
        return stdev(self.losses) if len(self.losses) > 1 else 0.0

    def minus(self, other: Tuned) -> tuple[float, float]:
        """Return the mean difference of losses and its deviation, over seeds with equal initial weights."""
        both = zip(self.losses, other.losses, strict=True)
        differences = [a - b for a, b in both]
        deviation = stdev(differences) if len(differences) > 1 else 0.0
        return fmean(differences), deviation


def plot(tuned: dict[str, Tuned], path: Path) -> None:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1, 1.2)
    )
    for variant, each in tuned.items():
        if variant in (ADAMW, MUON, RECORD):
            left.plot(each.rates, each.means, "o-", label=variant)
    left.set(xscale="log", xlabel="rate", ylabel="held-out loss (nats per byte)")
    rates = tuned[RECORD].rates
    left.minorticks_off()
    left.set_xticks(rates, [f"{rate:g}" for rate in rates])
    left.legend(fontsize=8)
    others = [variant for variant in tuned if variant != RECORD]
    for y, variant in enumerate(reversed(others)):
        mean, deviation = tuned[variant].minus(tuned[RECORD])
        right.errorbar(mean, y, xerr=deviation, fmt="o", color=f"C{y % 10}", capsize=3)
    right.axvline(0, color="black", linewidth=0.8)
    right.set_yticks(range(len(others)), others[::-1])
    right.set(xlabel="loss minus that of the record (deviation over seeds)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rates", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, default=Path("out/records_chars.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text, rest = library()
    unseen = windows_of(rest, 64, 0)
    print(
        f"{len(text):,} bytes to train with, {len(rest):,} held out, of Python {platform.python_version()}"
    )
    tuned: dict[str, Tuned] = {}
    with tqdm(VARIANTS, leave=False, disable=None) as bar:
        for variant in bar:
            bar.set_postfix_str(variant)
            rates = rates_of(variant, options.rates)
            result = gradtx.sweep(
                loss_fn,
                optimizer,
                weights,
                lambda step: windows_of(text, BATCH, 1 + step),
                over={"lr": rates},
                seeds=options.seeds,
                steps=options.steps,
                eval_fn=lambda params: {"held out": loss_fn(params, unseen)},
                every=options.steps,
                fixed={"variant": variant, "steps": options.steps},
                progress=False,
            )
            tuned[variant] = Tuned(result, rates)
    print(f"\n{'':22}{'best rate':>10}{'held-out loss':>18}{'minus the record':>21}")
    within: list[str] = []
    for variant, each in tuned.items():
        mean, deviation = each.minus(tuned[RECORD])
        edge = "*" if each.is_at_edge else " "
        line = f"{variant:22}{each.rate:9.3g}{edge}{fmean(each.losses):10.3f} ± {each.spread:.3f}"
        if variant != RECORD:
            line += f"{mean:+13.3f} ± {deviation:.3f}"
            if abs(mean) <= max(deviation, each.spread, tuned[RECORD].spread):
                within.append(variant)
                line += "  within the spread"
        print(line)
    plot(tuned, options.plot)
    print(
        f"* at the edge of its rates; ± deviation over {options.seeds} seeds\nplot: {options.plot}"
    )
    print(
        f"held-out loss after {options.steps} steps, nats per byte: "
        + ", ".join(f"{v} {fmean(tuned[v].losses):.3f}" for v in (ADAMW, MUON, RECORD))
        + f"; within the spread of the record: {', '.join(within) or 'none'}"
    )


if __name__ == "__main__":
    main()
