"""Find wrong labels by the gradient of a trained model: weights of examples, learned through a minimum.

Data: scikit-learn's digits, 500 for training of which 40% have a wrong label, 300 with right labels for validation, the
rest for the test. The inner problem is logistic regression, in which every training image has a weight; the outer loss
is that of the validation images at the minimum (hyper-cleaning, Franceschi et al. 2017). `gradtx.minimize` returns the
minimum with its gradient by all weights, from one linear solve. Each outer step starts where the last minimum was.
Run: `python examples/clean_labels.py`. Prints a table and writes out/clean_labels.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import gradtx

TRAIN, VALIDATION, WRONG = 500, 300, 0.4
DECAY = 1e-2
INNER_STEPS, CLOSE = 1000, 1e-4  # the norm of the gradient where inner training stops

Params = dict[str, Tensor]


class Digits(NamedTuple):
    x: Tensor
    y: Tensor
    is_wrong: Tensor  # of training images
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits() -> Digits:
    generator = torch.Generator().manual_seed(0)
    pixels, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=generator)
    x, y = pixels[order].float() / 16, labels[order]
    is_wrong = torch.rand(TRAIN, generator=generator) < WRONG
    shift = torch.randint(1, 10, (TRAIN,), generator=generator)
    given = torch.where(is_wrong, (y[:TRAIN] + shift) % 10, y[:TRAIN])
    end = TRAIN + VALIDATION
    held_out = (x[TRAIN:end], y[TRAIN:end]), (x[end:], y[end:])
    return Digits(x[:TRAIN], given, is_wrong, *held_out)


def inner_loss(params: Params, scores: Tensor, x: Tensor, y: Tensor) -> Tensor:
    losses = cross_entropy(x @ params["w"] + params["b"], y, reduction="none")
    squares = params["w"].square().sum() + params["b"].square().sum()
    return (scores.sigmoid() * losses).mean() + DECAY / 2 * squares


def outer_loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(x @ params["w"] + params["b"], y)


def accuracy(params: Params, x: Tensor, y: Tensor) -> float:
    return ((x @ params["w"] + params["b"]).argmax(1) == y).float().mean().item()


def trained(start: Params, scores: Tensor, data: Digits) -> Params:
    tx = gradtx.sgd(lr=1.0, momentum=0.9, nesterov=True)
    return gradtx.minimize(
        tx,
        inner_loss,
        start,
        scores,
        data.x,
        data.y,
        steps=INNER_STEPS,
        until=CLOSE,
        tolerance=1e-4,
        nondiff=("x", "y"),
    )


class Run(NamedTuple):
    scores: Tensor
    validation: list[float]
    test: list[float]


def learn(data: Digits, steps: int) -> Run:
    """Learn the scores of all training images, of which the sigmoids are the weights."""
    scores, params = torch.zeros(TRAIN), zeros()
    tx = gradtx.adam(lr=0.3)
    state, run = tx.init(scores), Run(scores, [], [])

    def after_training(scores: Tensor, start: Params) -> tuple[Tensor, Params]:
        params = trained(start, scores, data)
        return outer_loss(params, *data.validation), params

    for _ in tqdm(range(steps), unit=" outer steps", leave=False, disable=None):
        gradient, (loss, params) = torch.func.grad_and_value(
            after_training, has_aux=True
        )(scores, params)
        run.validation.append(loss.item())
        run.test.append(accuracy(params, *data.test))
        updates, state = tx.update(gradient, state, scores)
        scores = gradtx.apply_updates(scores, updates)
    return run._replace(scores=scores)


def zeros() -> Params:
    return {"w": torch.zeros(64, 10), "b": torch.zeros(10)}


def plot(run: Run, data: Digits, references: dict[str, float], path: Path) -> None:
    figure, (by_step, weights, images) = plt.subplots(
        1, 3, figsize=(16, 4.8), layout="constrained"
    )
    by_step.plot(run.test, label="learned weights")
    for i, (name, value) in enumerate(references.items()):
        by_step.axhline(value, color=f"C{i + 1}", linestyle="--", label=name)
    by_step.set(title="Test accuracy", xlabel="outer step")
    by_step.legend(fontsize=9)
    by_step.grid(alpha=0.3)
    of_images = run.scores.sigmoid()
    parts = [of_images[~data.is_wrong].numpy(), of_images[data.is_wrong].numpy()]
    weights.hist(parts, bins=20, label=["right label", "wrong label"], stacked=True)
    weights.set(title="Training images by learned weight", xlabel="weight")
    weights.legend(fontsize=9)
    least = of_images.argsort()[:24]
    padded = torch.nn.functional.pad(data.x[least].reshape(3, 8, 8, 8), (3, 1, 1, 1))
    tiles = padded.permute(0, 2, 1, 3).reshape(30, 96)
    images.imshow(tiles.numpy(), cmap="gray_r")
    for place, i in enumerate(least.tolist()):
        row, column = divmod(place, 8)
        images.text(12 * column, 10 * row + 3, str(data.y[i].item()), color="C3")
    images.set(
        title="The 24 least weights, with the labels given", xticks=[], yticks=[]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="outer steps")
    parser.add_argument("--plot", type=Path, default=Path("out/clean_labels.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    data = digits()
    known = torch.where(data.is_wrong, -20.0, 20.0)
    references = {
        "all weights equal": accuracy(
            trained(zeros(), torch.zeros(TRAIN), data), *data.test
        ),
        "wrong labels left out": accuracy(trained(zeros(), known, data), *data.test),
    }
    run = learn(data, options.steps)
    last = accuracy(trained(zeros(), run.scores, data), *data.test)
    below = run.scores < 0
    print(f"{data.is_wrong.sum()} of {TRAIN} labels are wrong\n")
    print(f"{'':26}{'test accuracy':>14}")
    for name, value in {**references, "learned weights": last}.items():
        print(f"{name:26}{value:14.3f}")
    caught = (below & data.is_wrong).sum() / data.is_wrong.sum()
    lost = (below & ~data.is_wrong).sum() / (~data.is_wrong).sum()
    print(
        f"\nweights below a half: {caught:.0%} of the wrong labels, {lost:.0%} of the right ones"
    )
    plot(run, data, references, options.plot)
    figures = ", ".join(f"{name} {value:.3f}" for name, value in references.items())
    print(f"\nplot: {options.plot}\ntest accuracy: {figures}, learned {last:.3f}")


if __name__ == "__main__":
    main()
