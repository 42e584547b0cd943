"""Find a fault in an optimizer: in one line with `gradtx.diagnose`, and by hand with `record` and the state by name.

Data: scikit-learn's digits. Four chains of the same links train the same perceptron. Three have one fault each: the
clip is after Adam instead of before it, the decay is too large, or Adam's eps is too large. The accuracy only shows
that all three learn badly. `gradtx.diagnose` trains each chain as an optimizer and names its fault. By hand, `record`
between the links and `exp_avg_sq` from the state identify it, also in loops of pure functions.
Run: `python examples/inspect_chain.py`. Prints a table and writes out/inspect_chain.png.
"""

from __future__ import annotations

import argparse
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

TRAIN, BATCH, BETA2 = 1347, 64, 0.99
STRIDE = 3  # draw every third step
CLIP, ADAM, DECAY = (
    gradtx.clip_by_global_norm(1.0),
    gradtx.scale_by_adam((0.9, BETA2)),
    gradtx.add_decayed_weights(0.01),
)
LINKS = {  # in the order of the chain
    "as it should be": {"clip": CLIP, "adam": ADAM, "decay": DECAY},
    "clip after Adam": {"adam": ADAM, "clip": CLIP, "decay": DECAY},
    "decay too large": {
        "clip": CLIP,
        "adam": ADAM,
        "decay": gradtx.add_decayed_weights(30.0),
    },
    "eps too large": {"clip": CLIP, "adam": ADAM.replace(eps=0.3), "decay": DECAY},
}
SIGNS = {  # ratios to check: 1, about 1 and 0 for a correct chain
    "clip": "what the clip leaves of the norm",
    "decay": "what the decay makes of the norm",
    "eps": "entries with √(exp_avg_sq) below eps",
}


def transformation(name: str, rate: float) -> gradtx.GradientTransformation:
    """Return a chain of the links with a record after each."""
    recorded = [
        gradtx.chain(link, gradtx.record(place)) for place, link in LINKS[name].items()
    ]
    return gradtx.chain(
        gradtx.record("gradient"),
        *recorded,
        gradtx.scale_by_learning_rate(rate),
        gradtx.record("rate"),
    )


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and labels, and test images and labels."""
    images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order].float() / 16, labels[order]
    return images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:]


class Run:
    """A chain and the measurements from its state."""

    def __init__(self, name: str):
        self.name = name
        self.places = ["gradient", *LINKS[name], "rate"]
        self.norms: dict[str, list[float]] = {place: [] for place in self.places}
        self.signs: dict[str, list[float]] = {sign: [] for sign in SIGNS}
        self.accuracies: list[float] = []

    def train(self, steps: int, rate: float, bar: tqdm) -> Run:
        train_x, train_y, test_x, test_y = digits()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        params = {name: p.detach().clone() for name, p in model.named_parameters()}

        def loss_of(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(functional_call(model, params, (x,)), y)

        tx = transformation(self.name, rate)
        state = tx.init(params)
        gradients = grad(loss_of)
        generator = torch.Generator().manual_seed(1)
        bar.set_description(self.name)
        for step in range(1, steps + 1):
            batch = torch.randint(TRAIN, (BATCH,), generator=generator)
            updates, state = tx.update(
                gradients(params, train_x[batch], train_y[batch]), state, params
            )
            params = gradtx.apply_updates(params, updates)
            self.look(state, step, LINKS[self.name]["adam"].hyperparams["eps"])
            with torch.no_grad():
                right = functional_call(model, params, (test_x,)).argmax(1) == test_y
            self.accuracies.append(100 * right.float().mean().item())
            bar.update()
        return self

    def look(self, state: dict[str, Any], step: int, eps: float) -> None:
        now = {place: gradtx.get(state, place).item() for place in self.places}
        for place, norm in now.items():
            self.norms[place].append(norm)
        before = {place: now[self.places[i]] for i, place in enumerate(self.places[1:])}
        squares = torch.cat(
            [x.flatten() for x in gradtx.get(state, "exp_avg_sq").values()]
        )
        # The pixels in the corners are black in all images.
        squares = squares[squares > 0]
        roots = (squares / (1 - BETA2**step)).sqrt()
        self.signs["clip"].append(now["clip"] / before["clip"])
        self.signs["decay"].append(now["decay"] / before["decay"])
        self.signs["eps"].append((roots < eps).float().mean().item())


def diagnosed(name: str, steps: int, rate: float) -> list[gradtx.Finding]:
    """Train an optimizer of the same links, without records, and return what is wrong with it."""
    train_x, train_y, _, _ = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    links = gradtx.chain(*LINKS[name].values(), gradtx.scale_by_learning_rate(rate))
    optimizer = gradtx.as_optimizer(links, model.named_parameters())
    generator = torch.Generator().manual_seed(1)

    def step() -> Tensor:
        batch = torch.randint(TRAIN, (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])
        loss.backward()
        optimizer.step()
        return loss

    return gradtx.diagnose(optimizer, step, steps)


def plot(runs: list[Run], path: Path) -> None:
    figure, grid = plt.subplots(2, 4, figsize=(16, 7.5), layout="constrained")
    panels: list[Any] = list(grid.flat)
    colors = {"gradient": "C0", "clip": "C1", "adam": "C2", "decay": "C3", "rate": "C4"}
    for run, axes in zip(runs, panels[:4], strict=True):
        for i, (place, norms) in enumerate(run.norms.items()):
            # The lines of a link that changes nothing and of the link before it coincide: the later one is dashed.
            dashes = (0, (4, 3)) if i % 2 else "-"
            label = place if place == "gradient" else f"after {place}"
            axes.plot(
                range(1, len(norms) + 1, STRIDE),
                norms[::STRIDE],
                color=colors[place],
                linestyle=dashes,
                label=label,
            )
        axes.set(title=run.name, yscale="log", ylabel="norm of the update")
    low = min(min(min(norms) for norms in run.norms.values()) for run in runs)
    high = max(max(max(norms) for norms in run.norms.values()) for run in runs)
    for axes in panels[:4]:
        axes.set_ylim(low / 2, high * 2)
    for i, run in enumerate(runs):
        steps = range(1, len(run.accuracies) + 1, STRIDE)
        # Each line is thinner than the one before, so that coinciding lines remain visible.
        style: dict[str, Any] = {
            "color": f"C{i + 5}",
            "label": run.name,
            "linewidth": (5.0, 3.2, 2.0, 1.0)[i],
        }
        panels[4].plot(steps, run.accuracies[::STRIDE], **style)
        for (sign, values), axes in zip(run.signs.items(), panels[5:], strict=True):
            axes.plot(steps, values[::STRIDE], **style)
            axes.set_title(SIGNS[sign], fontsize=10)
    panels[4].set(ylabel="right answers on the test images (%)")
    panels[4].set_title("all that one sees otherwise", fontsize=10)
    panels[5].set(ylabel="norm after / before", yscale="log")
    panels[6].set(ylabel="norm after / before", yscale="log")
    panels[7].set(ylabel="share", ylim=(-0.05, 1.05))
    for axes in panels:
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    for first_of_row in (panels[0], panels[4]):
        first_of_row.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--plot", type=Path, default=Path("out/inspect_chain.png"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    with tqdm(
        total=len(LINKS) * options.steps, unit=" steps", leave=False, disable=None
    ) as bar:
        runs = [Run(name).train(options.steps, options.rate, bar) for name in LINKS]
    print("what gradtx.diagnose says\n")
    for name in LINKS:
        findings = diagnosed(name, options.steps, options.rate)
        print(f"{name}: {findings[0] if findings else 'no finding'}")
    print(f"\nby hand: mean of {options.steps} steps; accuracy after them\n")
    print(
        f"{'':18}{'test accuracy':>15}"
        + "".join(f"{told:>40}" for told in SIGNS.values())
    )
    closing = []
    for run in runs:
        signs = [sum(values) / len(values) for values in run.signs.values()]
        print(
            f"{run.name:18}{run.accuracies[-1]:14.1f}%"
            + "".join(f"{value:40.3f}" for value in signs)
        )
        closing.append(f"{run.name} {run.accuracies[-1]:.1f}%")
    plot(runs, options.plot)
    print(f"\nplot: {options.plot}\ntest accuracy: {'; '.join(closing)}")


if __name__ == "__main__":
    main()
