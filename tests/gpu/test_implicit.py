"""Solutions on a GPU: everything is on the device of the arguments."""

import pytest
import torch
from torch.func import grad

import gradtx


def loss(w, x, y, decay):
    return (x @ w - y).square().sum() / 2 + decay * w.square().sum() / 2


def solver(start, x, y, decay):
    for _ in range(300):
        start = start - 0.02 * (x.T @ (x @ start - y) + decay * start)
    return start


@pytest.mark.parametrize("solve", ["cg", "gmres", "bicgstab", "dense"])
def test_gradients_of_solutions_on_a_gpu_are_those_on_the_host(gpu, solve):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=generator), torch.randn(12, generator=generator)
    solved = gradtx.custom_root(grad(loss), solve=solve, tolerance=1e-4)(solver)

    def by_steps(decay, x, y, start):
        tx = gradtx.sgd(0.02)
        return gradtx.minimize(tx, loss, start, x, y, decay, steps=300, until=1e-4, solve=solve, tolerance=1e-4)

    def slopes(move):
        found = []
        for function in (lambda decay, x, y, start: solved(start, x, y, decay), by_steps):
            args = [move(tensor) for tensor in (torch.tensor(0.7), x, y, torch.zeros(4))]
            decay = args[0].requires_grad_()
            function(decay, *args[1:]).sum().backward()
            found.append(decay.grad.cpu().clone())
        return found

    torch.testing.assert_close(slopes(gpu.to), slopes(torch.clone), rtol=1e-3, atol=1e-5)
