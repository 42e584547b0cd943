"""All factories on a GPU: their steps equal those on the CPU, wait for nothing and can be captured."""

import pytest

from tests.gpu.problem import Problem, assert_near, pure
from tests.tiers import each_case

# The same operations, but for the order of sums in batches of matrices.
TOLERANCE = 1e-7
# What has the host wait, at least in some steps: factorizations that report errors, and the trials of a search.
WAITING = {
    "asgo", "conda", "distributed_shampoo", "estimate_gradient", "fira", "galore", "line_search", "low_rank", "mezo",
    "mousse",
    "scalable_shampoo",
    "scale_by_distributed_shampoo", "scale_by_fira", "scale_by_lora_rite", "scale_by_scalable_shampoo",
    "scale_by_shampoo", "shampoo", "splus",
}  # fmt: skip
STEPS = 3  # one of them warm; every second and every third step of what has a period


@each_case
def test_steps_equal_those_on_the_cpu_wait_for_nothing_and_can_be_captured(case, gpu):
    expected = Problem(case, lambda tree: tree).run(range(STEPS))
    last = STEPS - 1
    problem = Problem(case, gpu.to).run(range(last))
    extras = problem.prepare(last)
    with gpu.counting() as seen:
        problem.step(extras)
    assert_near(problem.values(), expected.values(), TOLERANCE)
    assert repr(problem.optimizer.explain()) == repr(expected.optimizer.explain())
    if case.factory.__name__ in WAITING:
        with pytest.raises(ValueError, match=r"capturable: .* has the host wait"):
            Problem(case, gpu.to, capturable=True)
        return
    assert not seen.waits
    captured = Problem(case, gpu.to, capturable=True).run(range(last))
    extras = captured.prepare(last)
    with gpu.capturing():
        captured.step(extras)
    assert_near(captured.values(), expected.values(), TOLERANCE)


@each_case
def test_pure_updates_equal_those_on_the_cpu(case, gpu):
    assert_near(pure(case, gpu.to, 3), pure(case, lambda tree: tree, 3), TOLERANCE)
