"""Kernels of parameters with other slots, axes and groups share launches, which changes no bit."""

import functools
import re

import pytest
import torch

import gradtx
from gradtx.optim.engine.kernels import KernelEngine
from tests.gpu.problem import on_host
from tests.gpu.test_kernels import compiled_without_a_gpu, running, set_gradients  # noqa: F401
from tests.tiers import by_day

SHAPES = [(4, 3, 7, 7), (16, 4, 1, 1), (8, 8, 3, 3), (10, 32), (0, 5), (4,), (1030,), ()]
CHAINS = {
    "adafactor": gradtx.adafactor,
    "came": lambda: gradtx.came(lr=0.01),
    "adamp": lambda: gradtx.adamp(lr=0.01),
    "adamw in int8": lambda: gradtx.adamw(lr=0.01, state_dtype="int8"),
    "clip": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.adafactor()),
}


class Apart(KernelEngine):
    """Each text has launches of its own."""

    def tasks(self, bundles):
        return bundles


def trained(counted, make, engine):
    """Parameters in two groups after some steps, in the first of which some have no gradient, and the last launches."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES]
    params = {f"p{i}": torch.nn.Parameter(counted.to(value)) for i, value in enumerate(values)}
    named = list(params.items())
    optimizer = gradtx.as_optimizer(make(), [{"params": named[::2]}, {"params": named[1::2]}], compile=engine)
    for t in range(4):
        set_gradients(params, t, ("p1", "p5") if t == 0 else ())
        optimizer.step()
    with counted.counting() as seen:  # gradients are where they were
        optimizer.step()
    states = [optimizer.state[param] for param in params.values()]
    # Counts differ: the scalars of each count are sent, at most once for each text.
    copies = seen.kernels["copy_"]
    assert copies <= 3
    return on_host((list(params.values()), states)), seen.launches - copies, optimizer.explain()


@functools.cache  # two tests look at it
def sharing(counted, chain):
    return trained(counted, CHAINS[chain], True)


@by_day("clip", "adafactor")
@pytest.mark.parametrize("chain", CHAINS)
def test_sharing_launches_changes_no_bit(chain, counted):
    found, launches, explanation = sharing(counted, chain)
    expected, more, _ = trained(counted, CHAINS[chain], Apart())
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert {item.way for item in explanation} == {"kernels"}, explanation
    assert launches < more


@by_day("adafactor")
@pytest.mark.parametrize("chain", ["adafactor", "came", "adamp"])
def test_explain_counts_launches_that_are_shared_once(chain, counted):
    _, launches, explanation = sharing(counted, chain)
    assert len(explanation.launches) == launches
    assert explanation.launches[-1].parameters < len(SHAPES) == explanation.launches[0].parameters


def test_shared_launches_compile_without_a_gpu_and_without_spills(gpu):
    output = compiled_without_a_gpu("90", ["--together", "adafactor"])
    names = re.findall(r"3 texts, adafactor (\w+): .* 0 local", output)
    assert names == ["stage0", "combine0", "stage1_last_stage"]
