"""Learn digits with differential privacy: clip every image's gradient, add noise to their sum, step with any chain.

Data: scikit-learn's digits. `vmap(grad)` computes a gradient for each image, the same `vmap` runs the library's
`clip_by_global_norm` on each of them, and a link of ten lines adds the noise. Every step uses all training images, so
the privacy loss follows from the noise multiplier alone, without a theory of sampling. Another `vmap` trains a member
for each noise multiplier. The random numbers have public seeds and come from a generator that is not cryptographic: the
example measures the cost of the noise and does not provide a safe release. Epsilon applies to the weights; it covers
neither the norms that are shown nor the choice of the learning rates, which were chosen with another seed.
Run: `python examples/private_digits.py`. Prints a table and writes out/private_digits.png.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad
from tqdm import tqdm

import gradtx

TRAIN = 1347  # three quarters of the images
# Noise relative to the clipping threshold.
MULTIPLIERS = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0)
CLIP, DELTA = 1.0, 1e-5
RATES = {"linear": 2.0, "perceptron": 1.0}

Data = tuple[Tensor, Tensor, Tensor, Tensor]
Params = dict[str, Tensor]


@gradtx.per_tensor(elementwise=True, random=True)
def add_gaussian_noise(std: gradtx.NonNegative, seed: int = 0):
    """Add independent normal noise to every entry, determined by the seed, the step count and the leaf's name.

    Args:
        std: Standard deviation, >= 0.
        seed: The seed of the random numbers.
    """

    def update(update, state, param, ctx):
        return update + std * ctx.rng.normal(update), state

    return update


def epsilon(multiplier: float, steps: int, delta: float = DELTA) -> float:
    """Return the least epsilon for which `steps` releases of a sum of clipped gradients are (epsilon, delta)-private.

    For data sets that differ by one added or removed image, the sums differ by at most the clipping threshold, so each
    step is a Gaussian mechanism with sensitivity 1 and noise `multiplier`. A sequence of `steps` mechanisms, each of
    which may depend on the previous ones, is as private as a single one with mu = sqrt(steps) / multiplier (Dong, Roth
    and Su 2019, arXiv:1905.02383), whose delta is known exactly (Balle and Wang 2018, arXiv:1805.06530).
    """
    if multiplier == 0:
        return math.inf
    mu = math.sqrt(steps) / multiplier

    def normal_cdf(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    # Upper bound from concentrated privacy.
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    for _ in range(60):
        middle = (low + high) / 2
        spent = normal_cdf(mu / 2 - middle / mu) - math.exp(middle) * normal_cdf(
            -mu / 2 - middle / mu
        )
        low, high = (middle, high) if spent > delta else (low, middle)
    return high


def digits(seed: int) -> Data:
    """Return training images and labels, and test images and labels."""
    images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    # 16 is the largest value of the format, not of the data.
    images, labels = images[order].float() / 16, labels[order]
    return images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:]


def network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if name == "linear":
        return nn.Linear(64, 10)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def clipped_mean(model: nn.Module, params: Params, x: Tensor, y: Tensor) -> Params:
    """Return the sum of the clipped per-image gradients, divided by TRAIN."""
    clip = gradtx.clip_by_global_norm(CLIP)

    def clipped(x: Tensor, y: Tensor) -> Params:
        grads = grad(
            lambda params: nn.functional.cross_entropy(
                functional_call(model, params, (x,)), y
            )
        )(params)
        return clip.update(grads, clip.init(params))[0]

    # Division by a constant, not by a count: the number of images is also private.
    return {name: g.sum(0) / TRAIN for name, g in torch.vmap(clipped)(x, y).items()}


def transformation(
    multiplier: Tensor, rate: float, seed: int
) -> gradtx.GradientTransformation:
    return gradtx.chain(
        gradtx.record("signal"),
        add_gaussian_noise(multiplier * CLIP / TRAIN, seed=seed),
        # Later links receive only the noisy mean, so they cost no privacy, and any chain works here.
        gradtx.trace(0.9),
        gradtx.scale_by_learning_rate(rate),
    )


class Run:
    """A model with one seed, trained with all noise multipliers at once."""

    def __init__(self, name: str, seed: int):
        self.name, self.seed = name, seed
        self.model = network(name, seed)
        self.size = sum(p.numel() for p in self.model.parameters())

    def train(self, steps: int, bar: tqdm) -> Run:
        train_x, train_y, test_x, test_y = digits(self.seed)
        multipliers = torch.tensor(MULTIPLIERS, dtype=torch.float64)
        start = {name: p.detach().clone() for name, p in self.model.named_parameters()}

        def made(multiplier: Tensor) -> gradtx.GradientTransformation:
            return transformation(multiplier, RATES[self.name], self.seed)

        def step(
            multiplier: Tensor, params: Params, state: dict[str, Any]
        ) -> tuple[Params, dict[str, Any]]:
            grads = clipped_mean(self.model, params, train_x, train_y)
            updates, state = made(multiplier).update(grads, state, params)
            return gradtx.apply_updates(params, updates), state

        bar.set_description(f"{self.name}, seed {self.seed}")
        params = {
            name: p.expand(len(MULTIPLIERS), *p.shape) for name, p in start.items()
        }
        state = torch.vmap(lambda multiplier, params: made(multiplier).init(params))(
            multipliers, params
        )
        signals = []
        for _ in range(steps):
            params, state = torch.vmap(step)(multipliers, params, state)
            signals.append(state["record"]["signal"])
            bar.update()
        self.signal = torch.stack(signals).mean(0)
        self.noise = multipliers * CLIP / TRAIN * math.sqrt(self.size)
        answers = torch.vmap(
            lambda params: functional_call(self.model, params, (test_x,))
        )(params).argmax(-1)
        self.accuracy = 100 * (answers == test_y).double().mean(-1)
        return self


def spread(runs: list[Run], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean, minimum and maximum accuracy over the seeds, for each noise multiplier."""
    values = torch.stack([run.accuracy for run in runs if run.name == name])
    return values.mean(0), values.amin(0), values.amax(0)


def plot(runs: list[Run], steps: int, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    noisy = list(MULTIPLIERS[1:])
    for i, name in enumerate(RATES):
        same = [run for run in runs if run.name == name]
        mean, low, high = spread(runs, name)
        left.plot(
            noisy,
            mean[1:],
            "o-",
            color=f"C{i}",
            label=f"{name}, {same[0].size} weights",
        )
        left.fill_between(
            noisy, low[1:], high[1:], color=f"C{i}", alpha=0.15, linewidth=0
        )
        left.axhline(
            mean[0].item(),
            color=f"C{i}",
            linestyle=":",
            label=f"{name}, clipped, no noise",
        )
        signal = torch.stack([run.signal for run in same]).mean(0)
        right.plot(
            noisy,
            signal[1:],
            "o-",
            color=f"C{i}",
            label=f"{name}: mean of clipped gradients",
        )
        right.plot(
            noisy,
            same[0].noise[1:],
            "--",
            color=f"C{i}",
            label=f"{name}: noise (expected)",
        )
    left.set(title="What privacy costs", ylabel="right answers on the test images (%)")
    right.set(title="Why: signal and noise in a step", ylabel="norm", yscale="log")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(noisy, [f"{m:g}\nε {epsilon(m, steps):.2g}" for m in noisy])
        axes.set_xlabel(f"noise multiplier, and ε of {steps} steps at δ = {DELTA:g}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, default=Path("out/private_digits.png"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    with tqdm(
        total=len(RATES) * options.seeds * options.steps,
        unit=" steps",
        leave=False,
        disable=None,
    ) as bar:
        runs = [
            Run(name, seed).train(options.steps, bar)
            for name in RATES
            for seed in range(options.seeds)
        ]
    print(
        f"right answers on the test images after {options.steps} steps, mean of {options.seeds} seeds (range)\n"
    )
    spent = [epsilon(multiplier, options.steps) for multiplier in MULTIPLIERS]
    print(
        f"{'noise multiplier':26}"
        + "".join(f"{multiplier:19g}" for multiplier in MULTIPLIERS)
    )
    print(
        f"{f'epsilon at delta {DELTA:g}':26}"
        + "".join(f"{each:19.2f}" for each in spent)
    )
    closing = []
    for name in RATES:
        mean, low, high = (x.tolist() for x in spread(runs, name))
        cells = [
            f"{m:.1f}% ({a:.1f}-{b:.1f}%)"
            for m, a, b in zip(mean, low, high, strict=True)
        ]
        print(f"{name:26}" + "".join(f"{cell:>19}" for cell in cells))
        closing.append(
            f"{name} {mean[0]:.1f}% without noise, {mean[-1]:.1f}% at epsilon {spent[-1]:.2f}"
        )
    plot(runs, options.steps, options.plot)
    print(f"\nplot: {options.plot}\ntest accuracy: {'; '.join(closing)}")


if __name__ == "__main__":
    main()
