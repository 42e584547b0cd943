"""Type checkers understand a user's script: they accept right code, and find each wrong argument."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = Path(__file__).parent / "typed"
RIGHT, WRONG = PAGES / "right.py", PAGES / "wrong.py"


def found_by_pyright(folder):
    """The (file, line) and rules of the errors that pyright finds, as it is set up for a user."""
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    for page in (RIGHT, WRONG):
        (folder / page.name).write_bytes(page.read_bytes())
    run = subprocess.run([*command, "--project", str(folder)], capture_output=True, text=True)
    found = {}
    for error in json.loads(run.stdout)["generalDiagnostics"]:
        place = Path(error["file"]).name, error["range"]["start"]["line"] + 1
        found.setdefault(place, set()).add(error.get("rule", error["message"]))
    return found


def found_by_mypy(folder):
    """The same of mypy, at its strictest."""
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-pretty"]
    # Decorated functions of a user have no annotation of what they return.
    command += ["--allow-untyped-defs", "--allow-untyped-calls", "--allow-incomplete-defs"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), str(RIGHT), str(WRONG)]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    found = {}
    for path, line, code in re.findall(r"^(.*?):(\d+): error: .*\[([\w-]+)\]$", run.stdout, re.MULTILINE):
        found.setdefault((Path(path).name, int(line)), set()).add(code)
    assert found, run.stdout + run.stderr
    return found


@pytest.mark.parametrize(("checker", "part"), [(found_by_pyright, 1), (found_by_mypy, 2)])
def test_a_type_checker_accepts_right_code_and_finds_every_wrong_argument(checker, part, tmp_path):
    marked = {}
    for number, line in enumerate(WRONG.read_text(encoding="utf-8").splitlines(), 1):
        mark = re.search(r"# ((?:report\w+ ?)+) \| ([\w -]+)$", line)
        if mark:
            marked[WRONG.name, number] = set(mark[part].split())
    assert len(marked) > 30
    assert checker(tmp_path) == marked


def test_the_right_code_runs():
    spec = importlib.util.spec_from_file_location("right", RIGHT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for script in module.SCRIPTS:
        script()
