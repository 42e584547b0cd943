"""The table of when tests run."""

import ast
import subprocess
import sys

import pytest

from tests import tiers
from tests.tiers import PROPERTIES, SETS, TESTS_FOLDER, cases_of, name_of, names_of

ROWS = [(module, name) for module, rows in PROPERTIES.items() for name in rows]


def path_of(module):
    return TESTS_FOLDER / f"{module.replace('.', '/')}.py"


@pytest.mark.parametrize("module", PROPERTIES)
def test_each_row_is_that_of_a_test(module):
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    decorated = {
        node.name: {ast.unparse(decorator) for decorator in node.decorator_list}
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    for name in PROPERTIES[module]:
        assert decorated[name] & {"each_case", "each_set", "each_pack"}, name


def test_a_property_without_a_row_is_told_what_to_add():
    def test_something_new(case):
        pass

    missing = "PROPERTIES has no row of test_something_new in project.test_tiers; add it"
    with pytest.raises(pytest.UsageError, match=missing):
        tiers.each_case(test_something_new)


@pytest.mark.parametrize(("module", "name"), ROWS, ids=[name for _, name in ROWS])
def test_a_tier_has_cases_of_the_one_after_it_only(module, name):
    night, day, quick = ({*map(name_of, cases_of(names))} if names else set() for names in PROPERTIES[module][name])
    assert night
    assert day & night or not day
    assert quick & day or not quick


def test_quick_has_a_case_of_each_property_that_calls_neither_torchs_compiler_nor_a_slow_file():
    without = {
        name for module, rows in PROPERTIES.items() for name, (_, _, quick) in rows.items()
        if not quick and not tiers.is_left_out_of_quick(path_of(module))
    }  # fmt: skip
    assert without == {
        "test_a_compiled_step_of_members_with_their_own_numbers_is_one_graph",
        "test_a_compiled_training_step_is_one_graph_for_twenty_steps_of_new_numbers",
        "test_a_compiled_update_equals_the_eager_one",
        "test_vmap_of_a_compiled_step_equals_the_vmap_of_the_step",
    }


def test_each_set_of_cases_is_in_use():
    used = {
        part for rows in PROPERTIES.values() for row in rows.values() for names in row for part in names.split(" + ")
    }
    assert used - {""} == set(SETS)


def test_a_class_is_found_by_its_factory_and_the_other_way_round():
    assert names_of("AdamW") == names_of("adamw") == {"adamw", "AdamW"}
    assert names_of("scale_by_adam") == {"scale_by_adam"}


def test_an_unknown_name_is_told_the_nearest_one():
    with pytest.raises(SystemExit, match="gradtx has no factory or class 'sadm'; did you mean 'sadam'"):
        tiers.main("sadm")


@pytest.mark.slow  # another process, which collects all tests
@pytest.mark.nightly  # another process collects all tests
def test_the_tests_of_a_name_are_listed_by_tier():
    command = [sys.executable, "-m", "tests.tiers", "Yogi"]
    told = subprocess.run(command, cwd=TESTS_FOLDER.parent, capture_output=True, text=True, check=True).stdout
    quick, _, rest = told.partition("make test, also")
    day, _, night = rest.partition("make test-all, also")
    assert "tests/algorithms/test_yogi.py::test_the_weights_follow_the_loop" in quick
    assert "test_conformance.py::test_updates_and_slots_keep_shapes_and_dtypes" in day
    assert "test_conformance.py::test_updates_and_slots_keep_shapes_and_dtypes" in night
