"""Learn initial weights from which a few steps fit a new sine wave to ten points: MAML, and with learned inner rates.

Data (Finn et al. 2017, arXiv:1703.03400): waves of amplitude 0.1 to 5 and any phase. A task is one wave, sampled at ten
points in [-5, 5]. MAML's outer gradient is computed through the inner step, with vmap for all tasks of a batch at once.
It is compared with weights trained on the waves without inner steps, with equally many batches and points, and
fine-tuned at their best rate, which was chosen on other tasks than those shown.
Run: `python examples/maml_sine.py`. Prints a table and writes out/maml_sine.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import pi
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

import gradtx

TASKS, POINTS = 25, 10
INNER = 10  # steps shown on a new task; MAML trains for the first one
RATE = 0.01  # inner rate, if it is not learned
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)  # for the network trained without inner steps
LAYERS = {"first": "0.*", "second": "2.*", "last": "4.*"}

Params = dict[str, Tensor]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )


MODEL = network(0)


class Tasks(NamedTuple):
    """Return points for training and for evaluation, each (tasks, points, 1), and the waves."""

    x: Tensor
    y: Tensor
    new_x: Tensor
    new_y: Tensor
    amplitude: Tensor
    phase: Tensor


def draw(count: int, generator: torch.Generator, new: int = POINTS) -> Tasks:
    amplitude = 0.1 + 4.9 * torch.rand(count, 1, 1, generator=generator)
    phase = pi * torch.rand(count, 1, 1, generator=generator)
    x = 10 * torch.rand(count, POINTS, 1, generator=generator) - 5
    new_x = 10 * torch.rand(count, new, 1, generator=generator) - 5
    return Tasks(
        x,
        amplitude * (x - phase).sin(),
        new_x,
        amplitude * (new_x - phase).sin(),
        amplitude,
        phase,
    )


def loss_fn(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(functional_call(MODEL, params, (x,)), y)


def inner(rates: Params) -> gradtx.GradientTransformation:
    """Return gradient descent with one rate per layer, which may be learned."""
    return gradtx.partition(
        {layer: gradtx.sgd(rates[layer]) for layer in LAYERS}, LAYERS
    )


def adapted(
    params: Params, rates: Params, x: Tensor, y: Tensor, steps: int
) -> list[Params]:
    """Return the weights before and after every step on one task."""
    tx = inner(rates)
    step, state = gradtx.train_step(loss_fn, tx), tx.init(params)
    path = [params]
    for _ in range(steps):
        params, state, _ = step(params, state, x, y)
        path.append(params)
    return path


# The outer parameters, {"params": ..., "log_rates": ...}, and the losses of a batch of tasks.

Learned = dict[str, Params]


def first(rate: float) -> Learned:
    params = {name: p.detach().clone() for name, p in network(0).named_parameters()}
    return {
        "params": params,
        "log_rates": {layer: torch.tensor(rate).log() for layer in LAYERS},
    }


def errors(learned: Learned, tasks: Tasks, steps: int) -> Tensor:
    """Return mean squared errors on the new points before and after every inner step, (tasks, steps + 1)."""
    rates = {layer: log.exp() for layer, log in learned["log_rates"].items()}

    def of_a_task(x: Tensor, y: Tensor, new_x: Tensor, new_y: Tensor) -> Tensor:
        path = adapted(learned["params"], rates, x, y, steps)
        return torch.stack([loss_fn(params, new_x, new_y) for params in path])

    return torch.vmap(of_a_task)(*tasks[:4])


def maml_loss(learned: Learned, tasks: Tasks) -> Tensor:
    return errors(learned, tasks, 1)[:, -1].mean()


def plain_loss(learned: Learned, tasks: Tasks) -> Tensor:
    """Return the loss of one network for all waves, without inner steps, on the points of both kinds."""
    x, y = torch.cat([tasks.x, tasks.new_x], 1), torch.cat([tasks.y, tasks.new_y], 1)
    return loss_fn(learned["params"], x.flatten(0, 1), y.flatten(0, 1))


class Method(NamedTuple):
    """The outer parameters and their training."""

    loss: Callable[[Learned, Tasks], Tensor]
    learns_rates: bool = False

    def outer(self, steps: int) -> gradtx.GradientTransformation:
        weights = gradtx.adam(gradtx.cosine_schedule(2e-3, T_max=steps))
        rates = (
            gradtx.adam(gradtx.cosine_schedule(1e-2, T_max=steps))
            if self.learns_rates
            else gradtx.freeze("*")
        )
        each = gradtx.partition(
            {"weights": weights, "rates": rates},
            {"weights": "params.*", "rates": "log_rates.*"},
        )
        # A task whose inner step overshoots has a far larger gradient than the others.
        return gradtx.chain(gradtx.clip_by_global_norm(10.0), each)

    def learn(self, steps: int, bar: tqdm) -> Learned:
        tx, generator = self.outer(steps), torch.Generator().manual_seed(0)
        learned = first(RATE)
        step, state = gradtx.train_step(self.loss, tx), tx.init(learned)
        for n in range(steps):
            learned, state, loss = step(learned, state, draw(TASKS, generator))
            bar.update()
            if n % 50 == 0:
                bar.set_postfix(loss=f"{loss:.2f}")
        return learned


METHODS = {
    "trained without inner steps": Method(plain_loss),
    "MAML": Method(maml_loss),
    "MAML, rates learned": Method(maml_loss, learns_rates=True),
}


def with_best_rate(learned: Learned, tasks: Tasks) -> Learned:
    """Return the inner rate from RATES, shared by all layers, with the lowest error after all steps."""
    tries = [{**learned, "log_rates": first(rate)["log_rates"]} for rate in RATES]
    return min(
        tries,
        key=lambda tried: (
            errors(tried, tasks, INNER)[:, -1].mean().nan_to_num(nan=float("inf"))
        ),
    )


def plot(
    learned: dict[str, Learned], measured: dict[str, Tensor], tasks: Tasks, path: Path
) -> None:
    figure, (by_step, *examples) = plt.subplots(
        1, 3, figsize=(16, 5), layout="constrained"
    )
    for i, (name, values) in enumerate(measured.items()):
        mean, margin = values.mean(0), 1.96 * values.std(0) / len(values) ** 0.5
        by_step.plot(mean, "o-", markersize=3, color=f"C{i}", label=name)
        by_step.fill_between(
            range(INNER + 1),
            mean - margin,
            mean + margin,
            color=f"C{i}",
            alpha=0.2,
            linewidth=0,
        )
    by_step.set(
        title=f"Error on {len(tasks.x)} new waves (mean, 95% interval)", yscale="log"
    )
    by_step.set(xlabel="steps on ten points", ylabel="mean square error")
    x = torch.linspace(-5, 5, 200)[:, None]
    for example, axes in enumerate(examples):
        axes.plot(
            x,
            tasks.amplitude[example] * (x - tasks.phase[example]).sin(),
            color="grey",
            label="the wave",
        )
        axes.plot(tasks.x[example], tasks.y[example], "ko", label="the ten points")
        for i, (name, one) in enumerate(learned.items()):
            rates = {layer: log.exp() for layer, log in one["log_rates"].items()}
            steps = 1 if METHODS[name].loss is maml_loss else INNER
            params = adapted(
                one["params"], rates, tasks.x[example], tasks.y[example], steps
            )[-1]
            label = f"{name}, {steps} step{'s'[: steps - 1]}"
            axes.plot(
                x, functional_call(MODEL, params, (x,)), color=f"C{i}", label=label
            )
        axes.set(title=f"New wave {example + 1}", xlabel="x", ylabel="y")
    for axes in (by_step, *examples):
        axes.grid(alpha=0.3)
    by_step.legend(fontsize=8)
    figure.legend(
        *examples[0].get_legend_handles_labels(),
        loc="outside lower right",
        ncols=5,
        fontsize=8,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="outer steps")
    parser.add_argument("--plot", type=Path, default=Path("out/maml_sine.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    learned = {}
    with tqdm(
        total=len(METHODS) * options.steps, unit=" steps", leave=False, disable=None
    ) as bar:
        for name, method in METHODS.items():
            bar.set_description(name)
            learned[name] = method.learn(options.steps, bar)
    plain = next(iter(METHODS))
    learned[plain] = with_best_rate(
        learned[plain], draw(200, torch.Generator().manual_seed(1), new=100)
    )
    tasks = draw(500, torch.Generator().manual_seed(2), new=100)
    measured = {
        name: errors(one, tasks, INNER).detach() for name, one in learned.items()
    }

    print(
        f"mean square error on {len(tasks.x)} new waves, and half of its 95% interval\n"
    )
    print(
        f"{'':30}{'no step':>15}{'1 step':>15}{'5 steps':>15}{f'{INNER} steps':>15}   inner rates: {', '.join(LAYERS)}"
    )
    for name, values in measured.items():
        cells = [
            f"{values[:, n].mean():.3f} ± {1.96 * values[:, n].std() / len(values) ** 0.5:.3f}"
            for n in (0, 1, 5, INNER)
        ]
        rates = ", ".join(
            f"{learned[name]['log_rates'][layer].exp():.3g}" for layer in LAYERS
        )
        print(f"{name:30}{''.join(f'{cell:>15}' for cell in cells)}   {rates}")
    plot(learned, measured, tasks, options.plot)
    ends = [
        f"{name} {values[:, 1].mean():.3f} and {values[:, -1].mean():.3f}"
        for name, values in measured.items()
    ]
    print(f"\nplot: {options.plot}\nerror after 1 and {INNER} steps: {', '.join(ends)}")


if __name__ == "__main__":
    main()
