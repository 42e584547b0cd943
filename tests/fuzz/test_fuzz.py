"""A fixed number of seeds of the fuzz, for every run of the tests; `python -m tests.fuzz` goes on for longer."""

import pytest
import torch

import gradtx
from gradtx.pure import graph_node as graphs
from tests.fuzz import beside_torch, chains, edits, rules, sparse, states, watches, wide, wrappers


def by_night(seeds):
    return [pytest.param(seed, marks=pytest.mark.nightly) for seed in seeds]


@pytest.mark.parametrize("first", [0, *by_night(range(16, 1008, 16))])
def test_programs_of_random_rules_equal_the_rules_line_by_line(first):
    for seed in range(first, first + 16):
        rules.run(seed)


@pytest.mark.parametrize("seed", by_night(range(20)))
def test_compiled_random_rules_equal_the_rules_line_by_line(seed, monkeypatch):
    monkeypatch.setattr(graphs, "FEW_LEAVES", 1)
    rules.run(seed, rules.COMPILED)


@pytest.mark.parametrize("first", [72, *by_night(range(0, 152, 4))])
def test_random_chains_of_few_combinators_agree_in_all_ways_to_run_them(first):
    for seed in range(first, first + 4):
        wide.run(seed, chains.drawn_case)


@pytest.mark.parametrize("first", by_night(range(0, 120, 8)))
def test_random_chains_of_few_combinators_skip_gradients_that_are_not_finite(first):
    for seed in range(first, first + 8):
        wide.run_poisoned(seed, chains.drawn_case)


@pytest.mark.parametrize("first", [6, *by_night(range(0, 1000, 8))])
def test_random_chains_in_combinators_that_do_nothing_are_the_chains(first):
    accepted = sum(wrappers.check(seed) for seed in range(first, first + 4))
    assert accepted > 4


@pytest.mark.parametrize("first", [72, *by_night(range(0, 152, 8))])
def test_random_chains_under_vmap_over_rates_equal_a_loop(first):
    for seed in range(first, first + 8, 4):
        chains.run(seed)


@pytest.mark.parametrize("first", [9, *by_night(range(0, 39, 3))])
def test_random_chains_of_all_combinators_agree_in_all_ways_to_run_them(first):
    for seed in range(first, first + 3):
        wide.run(seed)


@pytest.mark.parametrize("first", [12, *by_night(range(0, 24, 3))])
def test_random_chains_of_all_combinators_skip_gradients_that_are_not_finite(first):
    for seed in range(first, first + 3):
        wide.run_poisoned(seed)


@pytest.mark.parametrize(("share", "is_fault"), [(0.5, False), (20.0, True)])
def test_rounding_that_a_chain_magnifies_is_no_fault_and_anything_more_is_one(share, is_fault):
    tx = gradtx.chain(gradtx.centralize(), gradtx.lion(lr=0.1))  # the sign of what equal entries leave
    gradients = [{"w": torch.full((2, 3), 0.1, dtype=torch.float64)}] * wide.STEPS
    case = wide.Case(tx, {"w": torch.zeros(2, 3, dtype=torch.float64)}, gradients, [{}] * wide.STEPS, False)
    expected = wide.functional(case)
    sensitivity = wide.Sensitivity(case, expected)
    assert sensitivity.check(expected, "the same")
    moved = {name: value + share * sensitivity.largest() for name, value in expected.items()}
    if is_fault:
        with pytest.raises(AssertionError, match=r"moved: .* apart, the last bits of gradients move it by"):
            sensitivity.check(moved, "moved")
    else:
        assert not sensitivity.check(moved, "moved")


@pytest.mark.parametrize("first", [1400, *by_night(range(0, 1500, 50))])
def test_damaged_states_are_refused_by_name_and_change_nothing(first):
    for seed in range(first, first + 50):
        states.run(seed)


@pytest.mark.parametrize("first", [80, *by_night(range(0, 1000, 20))])
def test_each_step_after_random_edits_is_that_of_a_new_optimizer_with_the_state(first):
    for seed in range(first, first + 20):
        edits.run(seed)


@pytest.mark.parametrize("first", [0, *by_night(range(20, 2000, 20))])
def test_steps_whose_gradients_come_and_go_are_those_of_torch_after_the_same_edits(first):
    for seed in range(first, first + 20):
        beside_torch.run(seed)


@pytest.mark.parametrize("first", [234, *by_night(range(0, len(watches.PAIRS), 6))])
def test_random_nested_chains_keep_their_bits_under_a_watch(first):
    for seed in range(first, first + 6):
        watches.run(seed)


@pytest.mark.parametrize("seed", by_night(range(1, len(watches.PAIRS), 27)))
def test_random_nested_chains_that_compile_keep_their_bits_under_a_watch(seed):
    watches.run(seed, "compiled")


@pytest.mark.parametrize("first", [90, *by_night(range(0, 400, 10))])
def test_random_chains_step_sparse_gradients_alike_in_all_ways_and_in_lazy_rows_as_dense_ones(first):
    for seed in range(first, first + 10):
        sparse.run(seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_chains_compile(seed):
    chains.check_compiled(seed)
