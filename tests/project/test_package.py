"""What the wheel and the source distribution contain."""

import functools
import importlib
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from types import FunctionType
from typing import get_type_hints

import pytest

import gradtx

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2]))"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the sources, in a folder with the name that `git clone` gives it: that of the package."""
    source = tmp_path_factory.mktemp("package") / "gradtx"
    source.mkdir()
    shutil.copytree(ROOT / "gradtx", source / "gradtx", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    return source


def build(kind, source, folder):
    """Return the path of what setuptools builds of the sources: a wheel, an sdist or an editable wheel."""
    folder.mkdir()
    command = [sys.executable, "-W", "ignore", "-c", BUILD, kind, str(folder)]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder / run.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def distributions(clone):
    return {kind: build(kind, clone, clone.parent / kind) for kind in ("wheel", "sdist")}


@pytest.fixture(scope="module")
def outside(clone):
    """A script beside the clone, and a Python for which the clone is installed as `pip install -e .` installs it."""
    environment = clone.parent / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    paths = sysconfig.get_paths("venv", vars={"base": str(environment)})
    packages = Path(paths["purelib"])
    with zipfile.ZipFile(build("editable", clone, clone.parent / "editable")) as wheel:
        wheel.extractall(packages)
    # torch and the rest; Python reads no .pth files in a folder that one names, so no other gradtx comes with them.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    script = clone.parent / "train.py"
    script.write_text(
        "import gradtx\nfrom gradtx.optim import Lion\n\nprint(gradtx.__file__, gradtx.adamw(lr=1e-3), Lion)\n"
    )
    return python, script


def run_in(folder, *command):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_script_beside_a_clone_imports_an_editable_installation(outside, clone):
    python, script = outside
    run = run_in(clone.parent, python, script)
    assert run.returncode == 0, run.stderr
    assert str(clone / "gradtx" / "__init__.py") in run.stdout


@pytest.mark.slow
def test_pyright_finds_the_types_of_an_editable_installation_from_outside_of_it(outside, clone):
    python, script = outside
    script = script.with_name("typed.py")
    script.write_text("import gradtx\n\nreveal_type(gradtx.adamw())\ngradtx.adamw(rate=1.0)\n")
    run = run_in(clone.parent, sys.executable, "-m", "pyright", "--pythonpath", python, script)
    assert 'Type of "gradtx.adamw()" is "GradientTransformation"' in run.stdout, run.stdout
    assert 'No parameter named "rate"' in run.stdout


def modules():
    """The modules, and the files from which type checkers take their types."""
    patterns = ("*.py", "*.pyi", "py.typed")
    paths = {path for pattern in patterns for path in (ROOT / "gradtx").rglob(pattern)}
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_the_wheel_has_all_modules_types_and_the_licence_and_nothing_else(distributions):
    names = set(zipfile.ZipFile(distributions["wheel"]).namelist())
    of_package = {name for name in names if name.startswith("gradtx/")}
    assert of_package == modules() > {"gradtx/py.typed", "gradtx/__init__.pyi"}
    others = {name.partition("/")[0] for name in names - of_package}
    assert others == {f"gradtx-{gradtx.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_source_distribution_has_what_a_build_needs(distributions):
    prefix = f"gradtx-{gradtx.__version__}/"
    with tarfile.open(distributions["sdist"]) as archive:
        names = {name.removeprefix(prefix) for name in archive.getnames()}
    assert modules() | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_metadata_names_the_project_and_what_it_was_tested_with(distributions):
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        metadata = wheel.read(f"gradtx-{gradtx.__version__}.dist-info/METADATA").decode()
    fields = metadata.partition("\n\n")[0].splitlines()
    for name in ("Changelog", "Documentation", "Issues", "Source"):
        assert any(field.startswith(f"Project-URL: {name}, https://") for field in fields), name
    assert "Requires-Dist: torch>=2.10" in fields
    assert [field for field in fields if field.startswith("Classifier: Programming Language :: Python :: 3.")] == [
        f"Classifier: Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)
    ]


PACKAGES = {"gradtx": gradtx, "gradtx.optim": gradtx.optim, "gradtx.schedules": gradtx.schedules}


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_every_public_name_is_found_under_its_own_module_as_configuration_files_look_it_up(package):
    for name in package.__all__:
        value = getattr(package, name)
        if isinstance(value, type | FunctionType):
            place, *parts = f"{value.__module__}.{value.__qualname__}".split(".")
            assert functools.reduce(getattr, parts, importlib.import_module(place)) is value, name
            if package is gradtx:
                assert value.__module__ == "gradtx"
            assert pickle.loads(pickle.dumps(value)) is value


def test_annotations_of_public_classes_are_found_by_tools_that_read_types():
    classes = {name: value for name in gradtx.__all__ if isinstance(value := getattr(gradtx, name), type)}
    del classes["ModelOptimizer"]  # as torch's classes, it has annotations for type checkers only
    assert classes
    for value in classes.values():
        get_type_hints(value)


def test_pickles_that_name_the_module_that_defines_a_function_load():
    assert pickle.loads(b"cgradtx.algorithms.adam\nadamw\n.") is gradtx.adamw
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=0.5))
    for old in (b"gradtx.algorithms.adam", b"gradtx.algorithms.clipping"):
        assert old not in pickle.dumps(tx)
    assert repr(pickle.loads(pickle.dumps(tx))) == repr(tx)
