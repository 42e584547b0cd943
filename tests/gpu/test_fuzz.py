"""Random rules on a GPU, over lists and by kernels, give what they give line by line on the CPU."""

import contextlib

import pytest

from tests.fuzz import rules
from tests.fuzz.test_fuzz import by_night


@pytest.mark.parametrize("first", [0, *by_night(range(6, 300, 6))])
def test_random_rules_over_lists_on_a_gpu(first, gpu):
    ways = {
        "by lists": lambda case: rules.by_optimizer(case, gpu.to),
        "captured": lambda case: rules.by_optimizer(case, gpu.to, capturable=True),
    }
    for seed in range(first, first + 6):
        rules.run(seed, ways)


@pytest.mark.parametrize("first", by_night(range(0, 60, 6)))
def test_random_rules_by_kernels_on_a_gpu(first, gpu):
    interpreting = contextlib.nullcontext
    if not gpu.is_real:
        pytest.importorskip("triton", reason="needs Triton, which builds of torch for the CPU do not bring along")
        from tests.gpu.interpreted import interpreting
    with interpreting():
        for seed in range(first, first + 6):
            rules.run(seed, {"kernels": lambda case: rules.by_optimizer(case, gpu.to, compile=True)})
