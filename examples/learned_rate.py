"""Learn the learning rate: by the gradient through whole training runs, and online by hypergradient descent.

Data: scikit-learn's digits, 1000 images for training, 400 for choosing and learning rates, 397 for testing. A small
network is trained with SGD and momentum. Through training: the final loss of a short run is differentiated with respect
to rate and momentum, from three starts. The best point of a grid of both is refined in the same way to rates at five
points in time. Online (Baydin et al. 2018, arXiv:1703.04782): after every step of a long run, the rate follows the
derivative of the new loss; fixed rates are the comparison. Tests use different seeds from those for choosing.
Run: `python examples/learned_rate.py`. Prints two tables and writes out/learned_rate.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

import gradtx

BATCH, SEEDS, MOMENTUM = 50, 4, 0.9
LONGER = 5  # length of the online runs, relative to those that are differentiated
GRID = torch.logspace(-3.5, 0.5, 17)
STARTS = torch.tensor([0.001, 0.01, 0.1])
MOMENTA = 1 - torch.logspace(-2, 0, 9)
KNOTS = 5

Params = dict[str, Tensor]


class Data(NamedTuple):
    """Return the images and labels of the three parts."""

    train: tuple[Tensor, Tensor]
    choose: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits() -> Data:
    numbers, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = numbers[order].float() / 16, labels[order]
    return Data(
        *zip(
            images.split([1000, 400, 397]), labels.split([1000, 400, 397]), strict=True
        )
    )


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


MODEL = network(0)


def loss_fn(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(functional_call(MODEL, params, (x,)), y)


def begin(seeds: range, steps: int) -> tuple[Params, Tensor]:
    """Return the initial weights and the image indices of every batch, (seeds, steps, BATCH), of several seeds."""
    starts = [
        {name: p.detach().clone() for name, p in network(seed).named_parameters()}
        for seed in seeds
    ]
    drawn = [
        torch.randint(
            1000, (steps, BATCH), generator=torch.Generator().manual_seed(seed)
        )
        for seed in seeds
    ]
    return gradtx.stack(starts), torch.stack(drawn)


def train(
    tx: gradtx.GradientTransformation, params: Params, batches: Tensor, data: Data
) -> Params:
    """Train one network: a pure function of its arguments, including the hyperparameters in `tx`."""
    step, state = gradtx.train_step(loss_fn, tx), tx.init(params)
    for batch in batches:
        params, state, _ = step(params, state, *(part[batch] for part in data.train))
    return params


# The hyperparameters learned through training, as logarithms and logits, and the chain built from them.


def constant(learned: Params, steps: int) -> gradtx.GradientTransformation:
    return gradtx.sgd(
        learned["log_lr"].exp(), momentum=learned["logit_momentum"].sigmoid()
    )


def scheduled(learned: Params, steps: int) -> gradtx.GradientTransformation:
    knots = torch.arange(KNOTS)

    def rate(step: Tensor) -> Tensor:
        """Interpolate the logarithm of the rate linearly between KNOTS points in time."""
        near = (1 - (step * (KNOTS - 1) / (steps - 1) - knots).abs()).clamp(min=0)
        return (near * learned["log_lr"]).sum().exp()

    return gradtx.sgd(
        gradtx.Schedule(rate), momentum=learned["logit_momentum"].sigmoid()
    )


Make = Callable[[Params, int], gradtx.GradientTransformation]


def end_loss(
    learned: Params, make: Make, params: Params, batches: Tensor, data: Data, part: str
) -> Tensor:
    """Return the loss after training on one part of the data, averaged over seeds."""
    run = partial(train, make(learned, batches.shape[1]), data=data)
    at_end = torch.vmap(run)(params, batches)
    return torch.vmap(loss_fn, in_dims=(0, None, None))(
        at_end, *getattr(data, part)
    ).mean()


def learn(
    make: Make,
    learned: Params,
    lr: float,
    count: int,
    steps: int,
    data: Data,
    bar: tqdm,
) -> list[tuple[Params, Tensor]]:
    """Descend along the gradient through training, from several starts at once; return all points with their losses."""
    params, batches = begin(range(SEEDS), steps)
    slope = torch.func.grad_and_value(
        lambda learned: end_loss(learned, make, params, batches, data, "choose")
    )
    # Clipping: beyond the largest stable rate, the gradient through training explodes, and one such value would
    # dominate Adam's average of squares.
    slower = gradtx.cosine_schedule(lr, T_max=count)
    tx = gradtx.chain(
        gradtx.clip_by_global_norm(1.0), gradtx.adam(slower, betas=(0.8, 0.95))
    )
    state = torch.vmap(tx.init)(learned)
    path = []
    for _ in range(count):
        grads, losses = torch.vmap(slope)(learned)
        path.append((learned, losses))
        updates, state = torch.vmap(tx.update)(grads, state, learned)
        learned = gradtx.apply_updates(learned, updates)
        bar.update()
        bar.set_postfix(loss=f"{losses.min():.3f}")
    return path


def best(path: list[tuple[Params, Tensor]], start: int) -> tuple[Params, float]:
    """Return the point with the lowest loss on the path from a start."""
    learned, losses = min(path, key=lambda point: point[1][start])
    return {name: value[start] for name, value in learned.items()}, losses[start].item()


def grid(momenta: Tensor, seeds: range, steps: int, data: Data, part: str) -> Tensor:
    """Return the final losses of every rate of GRID with every momentum, (rates, momenta), all in one run."""
    params, batches = begin(seeds, steps)

    def loss(lr: Tensor, momentum: Tensor) -> Tensor:
        learned = {"log_lr": lr.log(), "logit_momentum": momentum.logit()}
        return end_loss(learned, constant, params, batches, data, part)

    return torch.vmap(torch.vmap(loss, in_dims=(None, 0)), in_dims=(0, None))(
        GRID, momenta
    )


# Moves the logarithm of the rate, so about 5% per step at most.
RATE_TX = gradtx.adam(lr=0.05, betas=(0.9, 0.99))


def online(
    lr: Tensor, params: Params, batches: Tensor, data: Data
) -> tuple[Params, Tensor]:
    """Train one network while learning its rate; return the final weights and the rate of every step."""
    rate = {"log_lr": lr.log()}
    state, rate_state = (
        gradtx.sgd(lr, momentum=MOMENTUM).init(params),
        RATE_TX.init(rate),
    )
    by_rate = {name: torch.zeros_like(p) for name, p in params.items()}
    rates = []
    for batch in batches:
        grads = torch.func.grad(loss_fn)(params, *(part[batch] for part in data.train))
        # This loss depends on the last rate through the last update.
        slope = torch.stack(
            [(grads[name] * moved).sum() for name, moved in by_rate.items()]
        ).sum()
        change, rate_state = RATE_TX.update({"log_lr": slope}, rate_state)
        rate = gradtx.apply_updates(rate, change)
        rates.append(rate["log_lr"].exp())

        def update(
            log_lr: Tensor, grads: Params = grads, state: dict = state
        ) -> tuple[Params, dict]:
            return gradtx.sgd(log_lr.exp(), momentum=MOMENTUM).update(grads, state)

        # Forward mode: the update and its derivative with respect to the rate, at the cost of two updates.
        at, along = rate["log_lr"], torch.ones_like(rate["log_lr"])
        both: Any = torch.func.jvp(update, (at,), (along,), has_aux=True)
        updates, by_rate, state = both
        params = gradtx.apply_updates(params, updates)
    return params, torch.stack(rates)


def online_from_each(seeds: range, steps: int, data: Data) -> tuple[Tensor, Tensor]:
    """Return test losses, (rates,), and rates by step, (rates, steps), from every rate of GRID, averaged over seeds."""
    params, batches = begin(seeds, steps)
    run = torch.vmap(
        torch.vmap(partial(online, data=data), in_dims=(None, 0, 0)),
        in_dims=(0, None, None),
    )
    at_end, rates = run(GRID, params, batches)
    loss = torch.vmap(
        torch.vmap(loss_fn, in_dims=(0, None, None)), in_dims=(0, None, None)
    )
    return loss(at_end, *data.test).mean(1), rates.log().mean(1).exp()


class Choice(NamedTuple):
    """The result of one method of choosing hyperparameters: the choice, its validation loss, and the number of runs."""

    learned: Params
    loss: float
    make: Make
    runs: str


def from_grid(losses: Tensor, momenta: Tensor) -> Choice:
    i, j = divmod(int(losses.argmin()), len(momenta))
    learned = {"log_lr": GRID[i].log(), "logit_momentum": momenta[j].logit()}
    return Choice(learned, losses.min().item(), constant, f"{losses.numel()}")


def rates(choice: Choice, steps: int) -> list[float]:
    """Return the rate of every step."""
    lr: Any = choice.make(choice.learned, steps).hyperparams["lr"]
    return [
        float(lr(torch.tensor(n)) if isinstance(lr, gradtx.Schedule) else lr)
        for n in range(steps)
    ]


def plot(
    surface: Tensor,
    path: list[tuple[Params, Tensor]],
    choices: dict[str, Choice],
    steps: int,
    fixed: Tensor,
    moving: tuple[Tensor, Tensor],
    file: Path,
) -> None:
    figure, panels = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    (plane, schedule), (ends, courses) = panels
    drawn = plane.contourf(
        GRID, 1 - MOMENTA, surface.clamp(max=10).log10().T, levels=20, cmap="viridis_r"
    )
    figure.colorbar(drawn, ax=plane, label="log10 of the loss (nats), at most 1")
    for i in range(len(STARTS)):
        x = [point["log_lr"][i].exp() for point, _ in path]
        y = [1 - point["logit_momentum"][i].sigmoid() for point, _ in path]
        plane.plot(
            x,
            y,
            "o-",
            color=f"C{i + 1}",
            markersize=3,
            label=f"learned from {STARTS[i]:g}",
        )
    plane.set(
        title=f"Loss after {steps} steps, and ways down its gradient",
        ylabel="1 - momentum",
    )
    plane.set(
        xscale="log",
        yscale="log",
        xlabel="learning rate",
        xlim=(GRID[0].item(), GRID[-1].item()),
    )
    for i, (name, choice) in enumerate(choices.items(), 1):
        label = f"{name} (momentum {choice.learned['logit_momentum'].sigmoid():.2f})"
        schedule.plot(
            range(steps),
            rates(choice, steps),
            "--" if "grid" in name else "-",
            color=f"C{i}",
            label=label,
        )
    schedule.set(
        title="What was chosen",
        xlabel="step",
        ylabel="learning rate",
        yscale="log",
        ylim=(0.01, 3),
    )
    losses, course = moving
    ends.plot(GRID, fixed, color="grey", label="fixed rate")
    ends.plot(GRID, losses, color="C3", label="rate learned online")
    ends.set(
        title=f"Test loss after {course.shape[1]} steps",
        xlabel="first learning rate",
        xscale="log",
        yscale="log",
    )
    ends.set(ylabel="cross-entropy (nats)")
    for i in range(0, len(GRID), 4):
        courses.plot(course[i], color=f"C{i // 4}", label=f"from {GRID[i]:.2g}")
    best_rate = GRID[fixed.argmin()]
    courses.axhline(
        best_rate,
        color="grey",
        linestyle=":",
        label=f"best fixed rate, {best_rate:.2g}",
    )
    courses.set(
        title="The rate learned online (geometric mean of seeds)",
        xlabel="step",
        ylabel="learning rate",
    )
    courses.set(yscale="log")
    for axes in panels.flat:
        axes.legend(fontsize=8)
    for axes in (schedule, ends, courses):
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=75)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=60, help="of a run that is differentiated"
    )
    parser.add_argument(
        "--iterations", type=int, default=30, help="of learning through training"
    )
    parser.add_argument("--plot", type=Path, default=Path("out/learned_rate.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    data, steps, count = digits(), options.steps, options.iterations
    seen, unseen = range(SEEDS), range(SEEDS, 2 * SEEDS)
    with tqdm(
        total=2 * count + 3, unit=" iterations", leave=False, disable=None
    ) as bar:
        bar.set_description("grid")
        surface = grid(MOMENTA, seen, steps, data, "choose")
        bar.update()
        bar.set_description("one rate and momentum, through training")
        start = {"log_lr": STARTS.log(), "logit_momentum": torch.zeros(len(STARTS))}
        path = learn(constant, start, 0.3, count, steps, data, bar)
        column = int((MOMENTA - MOMENTUM).abs().argmin())
        choices = {
            f"learned from {rate:g}": Choice(
                *best(path, i), constant, f"{count} + gradients"
            )
            for i, rate in enumerate(STARTS)
        }
        choices[f"grid of rates, momentum {MOMENTUM:g}"] = from_grid(
            surface[:, [column]], MOMENTA[[column]]
        )
        choices["grid of rates and momenta"] = from_grid(surface, MOMENTA)
        coarse = choices["grid of rates and momenta"].learned
        bar.set_description(f"rates at {KNOTS} times and momentum")
        start = {
            "log_lr": coarse["log_lr"].expand(1, KNOTS),
            "logit_momentum": coarse["logit_momentum"].expand(1),
        }
        path_of_many = learn(scheduled, start, 0.1, count, steps, data, bar)
        choices["from there, a schedule"] = Choice(
            *best(path_of_many, 0), scheduled, f"{count} + gradients"
        )
        test = {
            name: end_loss(
                choice.learned, choice.make, *begin(unseen, steps), data, "test"
            ).item()
            for name, choice in choices.items()
        }
        bar.set_description("online")
        fixed = grid(MOMENTA[[column]], unseen, LONGER * steps, data, "test")[:, 0]
        bar.update()
        moving = online_from_each(unseen, LONGER * steps, data)
        bar.update()

    print(f"{steps} steps; losses are means of {SEEDS} seeds\n")
    print(
        f"{'':32}{'runs':>16}{'rates':>17}{'momentum':>10}{'loss':>9}{'test loss':>11}"
    )
    for name, choice in choices.items():
        used = rates(choice, steps)
        between = (
            f"{min(used):.2g} to {max(used):.2g}"
            if choice.make is scheduled
            else f"{used[0]:.2g}"
        )
        momentum = choice.learned["logit_momentum"].sigmoid()
        print(
            f"{name:32}{choice.runs:>16}{between:>17}{momentum:10.3f}{choice.loss:9.4f}{test[name]:11.4f}"
        )
    losses, course = moving
    print(f"\n{LONGER * steps} steps, momentum {MOMENTUM:g}, test loss\n")
    print(f"{'first rate':>10}{'fixed':>10}{'online':>10}{'last rate':>12}")
    for row in zip(
        GRID.tolist(),
        fixed.tolist(),
        losses.tolist(),
        course[:, -1].tolist(),
        strict=True,
    ):
        print("{:10.2g}{:10.4f}{:10.4f}{:12.2g}".format(*row))
    plot(surface, path, choices, steps, fixed, moving, options.plot)
    listed = ", ".join(
        f"{name} {test[name]:.4f}"
        for name in ("grid of rates and momenta", "from there, a schedule")
    )
    stable = GRID < 0.9
    spread = f"online from any rate up to {GRID[stable][-1]:.2g} {losses[stable].max():.4f} at most"
    print(f"\nplot: {options.plot}\ntest loss: {listed}; {spread}")


if __name__ == "__main__":
    main()
