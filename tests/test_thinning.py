"""Thinned products: the pairs that still meet, and what runs in any event."""

import itertools
from types import SimpleNamespace

import pytest

from tests.thinning import is_nightly, thinned


def item(decorators, parameters, name="test_of_something"):
    """As pytest makes it of a decorated test, for one case."""
    marks = {"thinned": [], "parametrize": []}
    for decorator in decorators:
        marks[decorator.mark.name].append(decorator.mark)
    return SimpleNamespace(
        originalname=name,
        callspec=SimpleNamespace(params=parameters),
        get_closest_marker=lambda of: next(iter(marks[of]), None),
        iter_markers=lambda of: iter(marks[of]),
    )


def kept(decorators, **sizes):
    """The positions of the cases that run by default."""
    axes = [pytest.mark.parametrize(name, range(size)) for name, size in sizes.items()]
    cases = []
    for positions in itertools.product(*map(range, sizes.values())):
        if not is_nightly(item([*decorators, *axes], dict(zip(sizes, positions, strict=True)))):
            cases.append(positions)
    return cases


def test_a_test_that_is_not_thinned_runs_whole():
    assert len(kept([], rule=5, mode=3)) == 15


def test_each_value_of_two_axes_meets_its_part_of_the_other():
    cases = kept([thinned(3)], rule=12, mode=3)
    assert len(cases) == 12
    assert {rule for rule, _ in cases} == set(range(12))
    for mode in range(3):
        assert sum(case[1] == mode for case in cases) == 4


def test_every_pair_meets_at_some_value_of_a_third_axis():
    cases = kept([thinned(2)], rule=5, mode=3, ranks=2)
    assert {case[:2] for case in cases} == set(itertools.product(range(5), range(3)))


def test_some_cases_run_in_any_event():
    cases = kept([thinned(4, always=lambda rule: rule < 3)], rule=9)
    assert {(0,), (1,), (2,)} <= set(cases)
    assert len(cases) < 6


def test_tests_of_the_same_cases_keep_different_ones():
    names = [f"test_{letter}" for letter in "abcdefgh"]
    axis = pytest.mark.parametrize("rule", [0])
    runs = [not is_nightly(item([thinned(4), axis], {"rule": 0}, name)) for name in names]
    assert any(runs)
    assert not all(runs)


def test_arguments_of_one_parametrization_are_one_axis():
    axis = pytest.mark.parametrize(("case", "places"), [(i, i) for i in range(4)])
    runs = [not is_nightly(item([thinned(2), axis], {"case": i, "places": i})) for i in range(4)]
    assert sum(runs) == 2


def test_a_fixture_is_an_axis_too():
    axis = pytest.mark.parametrize("rule", ["one", "two"])
    engines = ["plain", "traced"]
    cases = []
    for rule, engine in itertools.product(("one", "two"), engines):
        case = item([thinned(2), axis], {"rule": rule, "engine": engine})
        case._fixtureinfo = SimpleNamespace(name2fixturedefs={"engine": [SimpleNamespace(params=engines)]})
        if not is_nightly(case):
            cases.append((rule, engine))
    assert sorted(rule for rule, _ in cases) == ["one", "two"]
    assert sorted(engine for _, engine in cases) == engines
