"""A watch on a GPU: training keeps its bits, the host waits for nothing more, and a measured step holds few leaves."""

import pytest
import torch

import gradtx
from tests.gpu.problem import Problem, on_host
from tests.references import compare_trees
from tests.tiers import by_day, each_case

STEPS, EVERY = 5, 3  # measured: 1 and 4, and before it a sample of the weights


def trained(case, gpu, is_watched):
    """Train; return the weights, what each step waited for, and what was seen."""
    problem, seen, waits = Problem(case, gpu.to), None, []
    if is_watched:
        seen = gradtx.watch(problem.optimizer, every=EVERY)
    for t in range(STEPS):
        extras = problem.prepare(t)
        with gpu.counting() as counted:
            problem.step(extras)
        waits.append(counted.waits)
    return problem, waits, seen


@each_case
def test_a_watch_keeps_bits_and_waits_for_nothing_at_other_steps(case, gpu):
    (problem, waits, _), (watched, watched_waits, seen) = (trained(case, gpu, which) for which in (False, True))
    compare_trees(watched.values(), problem.values(), 0.0)
    states = [
        {name: on_host(p.optimizer.state.get(param, {})) for name, param in p.params.items()}
        for p in (problem, watched)
    ]
    assert repr(states[0]) == repr(states[1])
    assert seen.samples
    # Until a step counts, the host reads the clocks of combinators; otherwise a watch waits for nothing.
    if not watched.optimizer._up_to_date().traits.clocks:
        unmeasured = [i for i in range(STEPS) if i + 1 not in seen.steps]
        assert [watched_waits[i] for i in unmeasured] == [waits[i] for i in unmeasured]
    assert repr(seen).startswith("2 of 5" if seen.begun == STEPS and not seen.uncounted else "")


CHAINS = {
    "adamw": gradtx.adamw(),
    "sgd": gradtx.sgd(lr=0.1),
    "clipped": gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw()),
    "lookahead": gradtx.chain(gradtx.adamw(), gradtx.lookahead(k=3)),
    "schedule-free": gradtx.schedule_free_adamw(),
    "8 bits": gradtx.adamw(state_dtype="int8"),
    "prodigy": gradtx.prodigy(),
    # Two of the iterations, which take half a minute on a CPU, hold as much as five.
    "muon": gradtx.partition(
        {"muon": gradtx.muon(lr=0.1, ns_steps=2), "rest": gradtx.adamw()}, {"muon": "w1*", "rest": "*"}
    ),
}
LEAVES, ENTRIES = 24, 512 * 256


@pytest.mark.parametrize("per", ["leaf", "all"])
@pytest.mark.parametrize("name", CHAINS)
@by_day(  # a chain in one way
    *(f"{name}-all" for name in ("adamw", "lookahead", "8 bits")),
    *(f"{name}-leaf" for name in ("clipped", "schedule-free")),
)
def test_a_measured_step_holds_few_leaves_more_and_waits_for_nothing(name, per, counted):
    generator = torch.Generator().manual_seed(0)
    start = {f"w{i}": torch.randn(512, 256, generator=generator) for i in range(LEAVES)}
    params = {leaf: torch.nn.Parameter(counted.to(value)) for leaf, value in start.items()}
    optimizer = gradtx.as_optimizer(CHAINS[name], list(params.items()))
    for param in params.values():
        param.grad = torch.ones_like(param)

    def peak():
        with counted.counting() as seen:
            optimizer.step()
        assert not seen.waits
        return seen.peak / 4 / ENTRIES

    optimizer.step()
    without = peak()
    with gradtx.watch(optimizer, every=2, per=per) as seen:
        peaks = [peak() for _ in range(3)]
    assert len(seen.steps) == 2
    samples = LEAVES * 4096 / ENTRIES
    # The gradient, the update before and after a link, and one without eps, or what a link computes.
    assert max(peaks) <= without + samples + 4
