"""All factories on a pretended GPU: their steps equal those on the CPU, wait for nothing, and can be captured."""

import pytest

from tests.conformance import each_case, of_each_kind, plain_cases
from tests.gpu.pretend import to_gpu
from tests.gpu.problem import Problem, pure, worst

PLAIN, OF_EACH_KIND = plain_cases(), of_each_kind()
# The same operations, but for the order of sums in batches of matrices.
TOLERANCE = 1e-7
# What has the host wait, at least in some steps: factorizations that report errors, and the trials of a search.
WAITING = {
    "conda", "distributed_shampoo", "fira", "galore", "line_search", "low_rank", "scalable_shampoo",
    "scale_by_distributed_shampoo", "scale_by_fira", "scale_by_lora_rite", "scale_by_scalable_shampoo",
    "scale_by_shampoo", "shampoo", "splus",
}  # fmt: skip
STEPS = 4


EXPECTED = {}


def expected(case):
    """The problem after all steps on the CPU."""
    if str(case) not in EXPECTED:
        EXPECTED[str(case)] = Problem(case, lambda tree: tree).run(range(STEPS))
    return EXPECTED[str(case)]


@each_case(PLAIN)
def test_steps_equal_those_on_the_cpu_and_wait_for_nothing(case, gpu):
    problem = Problem(case, to_gpu).run(range(STEPS - 1))
    extras = problem.prepare(STEPS - 1)
    with gpu.counting() as seen:
        problem.step(extras)
    assert worst(problem.values(), expected(case).values()) < TOLERANCE
    assert repr(problem.optimizer.explain()) == repr(expected(case).optimizer.explain())
    assert not seen.waits or case.factory.__name__ in WAITING


@each_case(PLAIN)
def test_a_step_is_captured_or_refused_by_name(case, gpu):
    if case.factory.__name__ in WAITING:
        with pytest.raises(ValueError, match=r"capturable: .* has the host wait"):
            Problem(case, to_gpu, capturable=True)
        return
    problem = Problem(case, to_gpu, capturable=True).run(range(STEPS - 1))
    extras = problem.prepare(STEPS - 1)
    with gpu.capturing():
        problem.step(extras)
    assert worst(problem.values(), expected(case).values()) < TOLERANCE


@each_case(PLAIN, OF_EACH_KIND)
def test_pure_updates_equal_those_on_the_cpu(case):
    assert worst(pure(case, to_gpu, 3), pure(case, lambda tree: tree, 3)) < TOLERANCE
