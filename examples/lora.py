"""Fine-tune by adapters of low rank (LoRA) at many rates: AdamW, LoRA+, preconditioned pairs, LoRA-RITE.

Data: scikit-learn's digits. A small network learns the images; then its weights are frozen, and adapters B A of rank 4
in every layer learn the images turned by 90 degrees. LoRA+ multiplies the rate of B (`label_lora` and `partition`),
`precondition_pairs` divides each factor's gradient by the other factor's Gram matrix, and LoRA-RITE's direction does
not depend on how the product is split into factors. `wide` counts the rates that come near each method's best loss.
Run: `python examples/lora.py`. Prints a table and writes out/lora.png.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import gradtx

WIDTH, RANK, TRAIN, BATCH, PRETRAINING = 64, 4, 1000, 50, 400
RATES = tuple(10 ** (i / 2) for i in range(-7, 1))
BETAS = (0.9, 0.95)  # forgets the large first gradients of A, divided by a small B
NEAR = 0.1  # nats above the best rate's loss
PAIRS = {"*.lora_B": "*.lora_A"}

Data = tuple[Tensor, Tensor]


class Adapted(nn.Module):
    """A frozen layer plus the product of two factors, of which the second starts at 0."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        rows, columns = layer.weight.shape
        self.lora_A = nn.Parameter(torch.randn(RANK, columns) / columns**0.5)
        self.lora_B = nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.lora_A.T @ self.lora_B.T


def lora_plus(model: nn.Module) -> gradtx.GradientTransformation:
    """Adam, with 16 times the rate for B."""
    labels = gradtx.label_lora(model)
    ratio = gradtx.partition(
        {"lora_B": gradtx.scale(16.0), "lora_A": gradtx.chain()},
        lambda name, param: labels[name],
    )
    return gradtx.chain(gradtx.scale_by_adam(BETAS), ratio)


def preconditioned(model: nn.Module) -> gradtx.GradientTransformation:
    return gradtx.chain(gradtx.precondition_pairs(PAIRS), gradtx.scale_by_adam(BETAS))


DIRECTIONS: dict[str, Callable[[nn.Module], gradtx.GradientTransformation]] = {
    "Adam": lambda model: gradtx.scale_by_adam(BETAS),
    "LoRA+": lora_plus,
    "preconditioned pairs": preconditioned,
    "LoRA-RITE": lambda model: gradtx.scale_by_lora_rite(PAIRS, BETAS),
}


def digits(seed: int) -> tuple[list[Data], list[Data]]:
    """Return training and test images and labels, upright and turned."""
    images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x, y = images[order].float().view(-1, 8, 8) / 16, labels[order]
    tasks = []
    for of_task in (x, x.rot90(1, (1, 2))):
        flat = of_task.flatten(1)
        tasks.append([(flat[:TRAIN], y[:TRAIN]), (flat[TRAIN:], y[TRAIN:])])
    return tasks[0], tasks[1]


def train(
    model: nn.Module,
    tx: gradtx.GradientTransformation,
    data: Data,
    steps: int,
    seed: int,
    bar: tqdm,
) -> None:
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = gradtx.as_optimizer(tx, trained)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(TRAIN, (BATCH,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(data[0][batch]), data[1][batch]).backward()
        optimizer.step()
        bar.update()


def loss_of(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        return cross_entropy(model(data[0]), data[1]).nan_to_num(torch.inf).item()


def network(upright: Data, steps: int, seed: int, bar: tqdm) -> nn.Sequential:
    """Return a network that knows the upright images."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()),
        nn.Linear(WIDTH, 10),
    )
    train(model, gradtx.adamw(lr=3e-3), upright, steps, seed, bar)
    return model


def finetuned(
    before: nn.Sequential, name: str, rate: float, tasks: list[Data], steps, seed, bar
) -> float:
    """Return the loss on turned test images after training adapters."""
    torch.manual_seed(seed)
    model = copy.deepcopy(before)
    for i, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            model[i] = Adapted(layer)
    schedule = gradtx.cosine_schedule(rate, T_max=steps)
    tx = gradtx.chain(DIRECTIONS[name](model), gradtx.scale_by_learning_rate(schedule))
    bar.set_description(f"{name}, rate {rate:.1e}, seed {seed}")
    train(model, tx, tasks[0], steps, seed, bar)
    return loss_of(model, tasks[1])


def plot(losses: dict[str, Tensor], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    for name, of_method in losses.items():
        axes.plot(RATES, of_method.clamp(max=3.0), "o-", label=name)
    axes.set(xscale="log", xlabel="rate", ylabel="loss on turned test images (nats)")
    axes.set(title=f"Adapters of rank {RANK}, by rate; losses above 3 are shown at 3")
    axes.legend()
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--plot", type=Path, default=Path("out/lora.png"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # more threads do not help for tensors this small
    pretraining = min(PRETRAINING, 2 * options.steps)
    runs = len(DIRECTIONS) * len(RATES)
    total = options.seeds * (pretraining + runs * options.steps)
    losses = {name: torch.zeros(options.seeds, len(RATES)) for name in DIRECTIONS}
    with tqdm(total=total, unit=" steps", leave=False, disable=None) as bar:
        for seed in range(options.seeds):
            upright, turned = digits(seed)
            before = network(upright[0], pretraining, seed, bar)
            for name, of_method in losses.items():
                for i, rate in enumerate(RATES):
                    of_method[seed, i] = finetuned(
                        before, name, rate, turned, options.steps, seed, bar
                    )
    means = {name: of_method.mean(0) for name, of_method in losses.items()}
    print(
        f"loss on turned test images after {options.steps} steps, nats, by rate; seeds: {options.seeds}\n"
    )
    print(f"{'':22}{''.join(f'{rate:8.0e}' for rate in RATES)}{'best':>8}{'wide':>6}")
    closing = []
    for name, values in means.items():
        wide = int((values < values.min() + NEAR).sum())
        row = "".join(f"{value:8.2f}" for value in values.tolist())
        print(f"{name:22}{row}{values.min():8.2f}{wide:6}")
        closing.append(f"{name} {values.min():.2f} at best, {wide} rates near it")
    plot(means, options.plot)
    print(f"\nplot: {options.plot}\nloss: {'; '.join(closing)}")


if __name__ == "__main__":
    main()
