"""A fixed number of seeds of the fuzz, for every run of the tests; `python -m tests.fuzz` goes on for longer."""

import pytest

from gradtx.optim.engine import compiled
from tests.fuzz import chains, states
from tests.thinning import thinned


@thinned(3)
@pytest.mark.parametrize("first", range(0, 150, 15))
def test_random_chains_agree_in_all_ways_to_run_them(first):
    for seed in range(first, first + 15):
        chains.run(seed)


@thinned(5)
@pytest.mark.parametrize("first", range(0, 1500, 100))
def test_damaged_states_are_refused_by_name_and_change_nothing(first):
    for seed in range(first, first + 100):
        states.run(seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_chains_compile(seed, monkeypatch):
    monkeypatch.setattr(compiled, "WIDTH", 2)  # short programs compile sooner
    chains.check_compiled(seed)
