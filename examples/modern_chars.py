"""Compare AdEMAMix, MARS, Schedule-Free and Prodigy inside Schedule-Free with AdamW on a small byte transformer.

Data: the source files of Python's standard library. A tenth of the files is used to choose the learning rates, another
tenth to evaluate the final runs. A sweep trains all rates of an optimizer at once: one `torch.vmap` over stacked
networks, with the rate as a tensor. The final runs, at the best rate and with three other seeds, also form one
ensemble. Batches and initial weights depend only on the seed, so losses with the same seed can be subtracted.
Run: `python examples/modern_chars.py`. Prints a table and writes out/modern_chars.png.
"""

from __future__ import annotations

import argparse
import platform
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import gradtx

BYTES = 128  # ASCII
CONTEXT, WIDTH, HEADS, BLOCKS, BATCH = 32, 32, 4, 2, 16
JUDGED = 256  # windows for measuring a loss
EVERY = 20
# Positions that attention must ignore.
LATER = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1)
BETAS, DECAY = (0.9, 0.95), 0.1
SWEEP_SEED, SEEDS = 100, (0, 1, 2)

Params = dict[str, Tensor]
Transformation = gradtx.GradientTransformation


def falling(rate: gradtx.Scalar, steps: int) -> gradtx.Schedule:
    return gradtx.warmup_cosine_schedule(steps, max_lr=rate, warmup_steps=steps // 10)


def adamw(rate: gradtx.Scalar, steps: int) -> Transformation:
    return gradtx.adamw(falling(rate, steps), betas=BETAS, weight_decay=DECAY)


def ademamix(rate: gradtx.Scalar, steps: int) -> Transformation:
    return gradtx.ademamix(
        falling(rate, steps),
        # The default of 0.9999 averages over more steps than the run has.
        betas=(*BETAS, 0.99),
        weight_decay=DECAY,
        alpha_warmup=steps,
        beta3_warmup=steps,
    )


def mars(rate: gradtx.Scalar, steps: int) -> Transformation:
    """Return MARS with AdamW's betas, so that the gradient correction is the only difference."""
    return gradtx.mars_adamw(
        falling(rate, steps), betas=BETAS, weight_decay=DECAY, weight_decay_1d=DECAY
    )


def schedule_free(rate: gradtx.Scalar, steps: int) -> Transformation:
    """Return the control for Prodigy in Schedule-Free, which needs a rate but no schedule."""
    return gradtx.schedule_free_adamw(rate, betas=BETAS, weight_decay=DECAY)


def prodigy(factor: gradtx.Scalar, steps: int) -> Transformation:
    """Return Prodigy, which finds the rate, in Schedule-Free, which replaces the schedule and the first average."""
    base = gradtx.prodigy(betas=(0.0, BETAS[1]), beta3=0.99, weight_decay=DECAY)
    return gradtx.schedule_free(base, lr=factor, beta=BETAS[0])


RATES = [2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2]
FACTORS = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]  # multiples of the rate that Prodigy finds
METHODS: dict[str, tuple[Callable[..., Transformation], list[float]]] = {
    "AdamW": (adamw, RATES),
    "AdEMAMix": (ademamix, RATES),
    "MARS": (mars, RATES),
    "Schedule-Free AdamW": (schedule_free, RATES),
    "Prodigy in Schedule-Free": (prodigy, FACTORS),
}


class Block(nn.Module):
    """Causal attention and a perceptron, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.inputs, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = (
            self.inputs(self.norm1(x)).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2)
        )
        query, key, value = heads.chunk(3, dim=1)
        # Explicit, because torch has no batching rule for scaled_dot_product_attention on a CPU.
        scores = query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        mixed = scores.masked_fill(LATER, -torch.inf).softmax(-1) @ value
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Predicts the next byte at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = (
            nn.Embedding(BYTES, WIDTH),
            nn.Embedding(CONTEXT, WIDTH),
        )
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, BYTES)
        for embedding in (self.bytes, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.bytes(text) + self.places.weight)))


MODEL = Transformer()


def first_weights(seed: int) -> Params:
    torch.manual_seed(seed)
    return {name: param.detach() for name, param in Transformer().named_parameters()}


def loss_fn(params: Params, windows: Tensor) -> Tensor:
    """Return the loss in nats per byte. Each window has one byte more than the context."""
    logits = functional_call(MODEL, params, (windows[:, :-1],))
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def library() -> list[Tensor]:
    """Return the bytes of the standard library's modules for training, for choosing rates and for the final runs."""
    texts = [b"", b"", b""]
    for i, file in enumerate(
        sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    ):
        use = {4: 1, 9: 2}.get(i % 10, 0)
        texts[use] += file.read_text(encoding="utf-8", errors="ignore").encode(
            "ascii", "ignore"
        )
    return [
        torch.frombuffer(bytearray(text), dtype=torch.uint8).long() for text in texts
    ]


def windows_of(text: Tensor, count: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - CONTEXT, (count, 1), generator=generator)
    return text[starts + torch.arange(CONTEXT + 1)]


class Ensemble:
    """Networks that one optimizer trains together, with a rate and a seed per member."""

    def __init__(
        self,
        make: Callable[..., Transformation],
        rates: list[float],
        seeds: list[int],
        steps: int,
    ):
        def init(rate: Tensor, params: Params) -> dict:
            return make(rate, steps).init(params)

        def update(
            rate: Tensor, grads: Params, state: dict, params: Params
        ) -> tuple[Params, dict]:
            updates, state = make(rate, steps).update(grads, state, params)
            return gradtx.apply_updates(params, updates), state

        def loss(rate: Tensor, params: Params, state: dict, windows: Tensor) -> Tensor:
            return loss_fn(make(rate, steps).eval_params(state, params), windows)

        self.grads_of = torch.vmap(grad(loss_fn))
        self.update = torch.vmap(update)
        self.loss = torch.vmap(loss, in_dims=(0, 0, 0, None))
        self.rates = torch.tensor(rates)
        self.params = gradtx.stack(first_weights(seed) for seed in seeds)
        self.state = torch.vmap(init)(self.rates, self.params)
        self.batches = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.update_seconds: list[float] = []
        self.step_seconds: list[float] = []
        self.losses: list[Tensor] = []  # per member, at each mark

    def step(self, text: Tensor) -> None:
        windows = torch.stack(
            [windows_of(text, BATCH, batches) for batches in self.batches]
        )
        start = time.perf_counter()
        grads = self.grads_of(self.params, windows)
        middle = time.perf_counter()
        self.params, self.state = self.update(
            self.rates, grads, self.state, self.params
        )
        end = time.perf_counter()
        self.update_seconds.append(end - middle)
        self.step_seconds.append(end - start)

    def measure(self, windows: Tensor) -> None:
        self.losses.append(self.loss(self.rates, self.params, self.state, windows))

    def bytes_per_weight(self) -> float:
        weights = sum(param.numel() for param in self.params.values())
        return sum(leaf.nbytes for leaf in tree_leaves(self.state)) / weights


def train(
    ensembles: dict[str, Ensemble],
    text: Tensor,
    judge: Tensor,
    marks: list[int],
    bar: tqdm,
) -> None:
    """Train all ensembles in turn, step by step, so that noise of the machine affects all equally."""
    for step in range(1, marks[-1] + 1):
        for ensemble in ensembles.values():
            ensemble.step(text)
            bar.update()
        if step in marks:
            for ensemble in ensembles.values():
                ensemble.measure(judge)


def with_range(values: Tensor, sign: str = "") -> str:
    mean, low, high = values.mean(), values.amin(), values.amax()
    return f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def verdict(differences: Tensor) -> str:
    """Describe a difference over seeds, which counts only if it has the same sign in all of them."""
    if (differences < 0).all():
        return "lower for every seed"
    if (differences > 0).all():
        return "higher for every seed"
    return "no difference: the sign depends on the seed"


def plot(
    sweeps: dict[str, Ensemble],
    finals: dict[str, Ensemble],
    marks: list[int],
    path: Path,
) -> None:
    plt.rcParams.update({"font.size": 11})
    figure, (rates, curves, gaps) = plt.subplots(
        3, 1, figsize=(5, 11), layout="constrained"
    )
    baseline = torch.stack(finals["AdamW"].losses)
    start = len(marks) // 5  # earlier losses would need a wider axis
    for i, (name, final) in enumerate(finals.items()):
        sweep, color = sweeps[name], f"C{i}"
        positions = torch.arange(len(sweep.rates))
        rates.plot(positions, sweep.losses[-1], "o-", color=color)
        losses = torch.stack(final.losses)
        for panel, values in ((curves, losses), (gaps, losses - baseline)):
            late = values[start:]
            panel.plot(marks[start:], late.mean(1), color=color, label=name)
            panel.fill_between(
                marks[start:],
                late.amin(1),
                late.amax(1),
                color=color,
                alpha=0.2,
                linewidth=0,
            )
    labels = [
        f"{rate:g}\n×{factor:g}" for rate, factor in zip(RATES, FACTORS, strict=True)
    ]
    rates.set_xticks(range(len(labels)), labels)
    rates.set(
        title="Sweep: final loss by rate", xlabel="rate; ×: factor for Prodigy's rate"
    )
    curves.set(
        title=f"Held-out loss, {len(SEEDS)} seeds (mean and range)", xlabel="step"
    )
    gaps.set(title="The same, minus AdamW with that seed", xlabel="step")
    for panel in (rates, curves, gaps):
        panel.set_ylabel("nats per byte")
        panel.grid(alpha=0.3)
    curves.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--plot", type=Path, default=Path("out/modern_chars.png"))
    options = parser.parse_args(arguments)
    steps: int = options.steps
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    text, *rest = library()
    for_rates, unseen = (
        windows_of(each, JUDGED, torch.Generator().manual_seed(0)) for each in rest
    )
    marks = [*range(EVERY, steps, EVERY), steps]
    print(
        f"{len(text):,} bytes to train with, of Python {platform.python_version()}; {steps} steps"
    )
    sweeps, finals = {}, {}
    with tqdm(
        total=2 * len(METHODS) * steps, unit=" steps", leave=False, disable=None
    ) as bar:
        bar.set_description("sweep of rates")
        for name, (make, grid) in METHODS.items():
            sweeps[name] = Ensemble(make, grid, [SWEEP_SEED] * len(grid), steps)
        train(sweeps, text, for_rates, [steps], bar)
        bar.set_description(f"{len(SEEDS)} seeds")
        for name, (make, grid) in METHODS.items():
            best = grid[int(sweeps[name].losses[-1].nan_to_num(torch.inf).argmin())]
            finals[name] = Ensemble(make, [best] * len(SEEDS), list(SEEDS), steps)
        train(finals, text, unseen, marks, bar)

    print(
        f"\n{'':25}{'rate':>6}{'held-out loss (range)':>26}{'minus AdamW (range)':>29}",
        end="",
    )
    print(f"{'state B/weight':>16}{'step ms':>9}{'update ms':>11}")
    conclusions = []
    for name, final in finals.items():
        end = final.losses[-1]
        differences = end - finals["AdamW"].losses[-1]
        milliseconds = [
            1000 * median(seconds)
            for seconds in (final.step_seconds, final.update_seconds)
        ]
        print(
            f"{name:25}{final.rates[0]:6g}{with_range(end):>26}{with_range(differences, '+'):>29}",
            end="",
        )
        print(
            f"{final.bytes_per_weight():16.1f}{milliseconds[0]:9.1f}{milliseconds[1]:11.1f}"
        )
        if name != "AdamW":
            conclusions.append(f"{name} {verdict(differences)}")
    sizes = gradtx.get(finals["Prodigy in Schedule-Free"].state, "d")
    print("\nrates that Prodigy found: " + ", ".join(f"{size:.2g}" for size in sizes))
    plot(sweeps, finals, marks, options.plot)
    print(f"\nplot: {options.plot}\nagainst AdamW: {'; '.join(conclusions)}")


if __name__ == "__main__":
    main()
