"""Write the files of this folder with the code of 0.1: `git worktree add /tmp/old d9b3a1a`, then run this file there.

    cd /tmp/old && PYTHONPATH=. python <this file> <this folder>

The files hold what a user of 0.1 may have saved, and the numbers with which that version continued. Tests load them
with the current code. Do not write them again with a later version.
"""

import copy
import pickle
import sys
from pathlib import Path

import torch

import gradtx


def parameters():
    return {
        "body.weight": torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).reshape(2, 3),
        "body.bias": torch.linspace(0.5, 1.0, 3, dtype=torch.float64),
        "head.weight": torch.linspace(1.0, -2.0, 4, dtype=torch.float64),
    }


def gradients(params, step):
    """Deterministic, and different at every step."""
    grads = {}
    for i, (name, param) in enumerate(params.items()):
        grads[name] = (param * (1.0 + 0.3 * i) + 0.1 * (step + 1)).sin()
    return grads


def transformation():
    """A chain with all that selects leaves or calls."""
    body = gradtx.accumulate(gradtx.adamw(lr=gradtx.cosine_schedule(0.1, 20), weight_decay=0.1), every=2)
    head = gradtx.skip_nonfinite(gradtx.chain(gradtx.trace(0.9), gradtx.scale_by_learning_rate(torch.tensor(0.05))))
    parts = gradtx.partition({"body": body, "head": head}, {"head": "head.*", "body": "*"})
    return gradtx.chain(
        gradtx.clip_by_global_norm(2.0), gradtx.masked(gradtx.scale(0.5), "*.bias"), parts, gradtx.lookahead(k=2)
    )


def train(tx, params, state, steps):
    for step in steps:
        updates, state = tx.update(gradients(params, step), state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


def clipped_adamw(params):
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=0.1, amsgrad=True))
    return gradtx.as_optimizer(tx, list(params.items()))


def train_optimizer(optimizer, params, steps):
    for step in steps:
        for name, grad in gradients({name: param.detach() for name, param in params.items()}, step).items():
            params[name].grad = grad
        optimizer.step()


def factories():
    """Name of a public factory -> the pickle and the repr of a call, of all that can be pickled."""
    calls = {}
    for name in gradtx.__all__:
        spec = getattr(getattr(gradtx, name), "spec", None)
        if spec is None:
            continue
        example = spec.example(gradtx.adam()) if callable(spec.example) else spec.example
        try:
            tx = getattr(gradtx, name)(**example)
            calls[name] = (pickle.dumps(tx, protocol=4), repr(tx))
        except (TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
            print(f"left out: {name} ({error})")
    return calls


def write(folder):
    (folder / "factories_0_1.pkl").write_bytes(pickle.dumps(factories(), protocol=4))
    tx = transformation()
    params, state = train(tx, parameters(), tx.init(parameters()), range(3))
    continued, _ = train(tx, params, state, range(3, 6))
    (folder / "transformation_0_1.pkl").write_bytes(pickle.dumps(tx, protocol=4))
    torch.save({"params": params, "state": state, "continued": continued}, folder / "state_0_1.pt")

    weights = {name: torch.nn.Parameter(value) for name, value in parameters().items()}
    optimizer = clipped_adamw(weights)
    train_optimizer(optimizer, weights, range(3))
    params = {name: weight.detach().clone() for name, weight in weights.items()}
    state_dict = copy.deepcopy(optimizer.state_dict())  # not the tensors that the next steps write
    train_optimizer(optimizer, weights, range(3, 6))
    continued = {name: weight.detach() for name, weight in weights.items()}
    torch.save({"params": params, "optimizer": state_dict, "continued": continued}, folder / "optimizer_0_1.pt")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
