"""Write soap_0_1.pt with the code of 0.1, as write.py says: states of `soap` from before it was `rotated`."""

import copy
import sys
from pathlib import Path

import torch

import gradtx

SHAPES = {"wide": (3, 5), "kernel": (4, 3, 2), "bias": (4,)}


def soap():
    return gradtx.soap(lr=0.02, eps=0.01, precondition_frequency=3)


def parameters():
    params = {}
    for name, shape in SHAPES.items():
        count = torch.Size(shape).numel()
        params[name] = torch.linspace(-1.0, 1.0, count, dtype=torch.float64).sin().reshape(shape)
    return params


def gradients(params, step):
    rng = torch.Generator().manual_seed(step)
    return {name: p + torch.randn(p.shape, generator=rng, dtype=p.dtype) for name, p in params.items()}


def train(tx, params, state, steps):
    for step in steps:
        updates, state = tx.update(gradients(params, step), state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


def train_optimizer(optimizer, weights, steps):
    for step in steps:
        for name, grad in gradients({name: weight.detach() for name, weight in weights.items()}, step).items():
            weights[name].grad = grad
        optimizer.step()


def write(file):
    tx, start = soap(), parameters()
    params, state = train(tx, start, tx.init(start), range(5))
    continued, _ = train(tx, params, state, range(5, 12))
    weights = {name: torch.nn.Parameter(value) for name, value in parameters().items()}
    optimizer = gradtx.as_optimizer(soap(), list(weights.items()))
    train_optimizer(optimizer, weights, range(5))
    saved = copy.deepcopy(optimizer.state_dict())
    torch.save({"params": params, "state": state, "optimizer": saved, "continued": continued}, file)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
