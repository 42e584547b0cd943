"""A method's tests have the name of its file."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [path for folder in ("algorithms", "links") for path in sorted((ROOT / "gradtx" / folder).glob("[!_]*.py"))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_each_method_and_each_file_of_links_has_its_tests(path):
    tests = ROOT / "tests" / path.parent.name / f"test_{path.name}"
    assert tests.exists(), f"write the tests of {path.name} in {tests.relative_to(ROOT)}"


@pytest.mark.parametrize("folder", ["algorithms", "links"])
def test_each_file_of_tests_is_that_of_a_method(folder):
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / folder).glob("test_*.py")}
    assert tested <= {path.stem for path in MODULES}
