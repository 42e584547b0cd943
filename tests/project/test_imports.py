"""`import gradtx` loads the core; each method is loaded at its first use, and a fault in one breaks that one."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import table

import gradtx
from gradtx.base import table as written
from gradtx.base.names import HOMES

ROOT = Path(gradtx.__file__).parent


def told(code, folder):
    """What a new process prints that imports gradtx from a folder."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_gradtx_loads_no_method_and_a_method_loads_what_it_is_made_of():
    rooms = ("gradtx.algorithms.", "gradtx.links.", "gradtx.combinators.", "gradtx.sweeps", "gradtx.optim")
    shown = f"print(*(name for name in sys.modules if name.startswith({rooms!r})))"
    assert told(f"import sys, gradtx; {shown}", ROOT.parent) == []
    loaded = told(f"import sys, gradtx; gradtx.lion; {shown}", ROOT.parent)
    assert [name for name in loaded if name.startswith("gradtx.algorithms.")] == ["gradtx.algorithms.lion"]


def test_the_table_of_names_is_up_to_date():
    assert table.TABLE.read_text(encoding="utf-8") == table.table(), "run make docs-tables"


def test_every_public_name_is_listed_by_dir_and_defined_where_the_table_says():
    assert set(gradtx.__all__) <= set(dir(gradtx))
    for name, home in HOMES.items():
        assert getattr(gradtx, name) is getattr(importlib.import_module(home), name), name
    for alias, class_name in written.CLASSES.items():
        assert getattr(gradtx.optim, class_name).__name__ == class_name
        assert getattr(gradtx, alias).spec.class_name == class_name


def test_a_syntax_error_in_one_method_breaks_that_method_alone(tmp_path):
    shutil.copytree(ROOT, tmp_path / "gradtx", ignore=shutil.ignore_patterns("__pycache__"))
    broken = tmp_path / "gradtx" / "algorithms" / "yogi.py"
    broken.write_text("def (\n", encoding="utf-8")
    code = """
import gradtx
from gradtx.base.table import CLASSES
broken = []
for name in (*gradtx.__all__, *CLASSES.values()):
    try:
        getattr(gradtx if name in gradtx.__all__ else gradtx.optim, name)
    except SyntaxError:
        broken.append(name)
print(*broken, gradtx.load_optimizer("lion").__name__)
"""
    assert told(code, tmp_path) == ["scale_by_yogi", "yogi", "Yogi", "Lion"]


@pytest.mark.parametrize("name", ["adamw", "AdamW"])
def test_an_optimizer_is_created_once(name):
    where = gradtx if name.islower() else gradtx.optim
    assert getattr(where, name) is getattr(where, name)


def test_each_optimizer_is_in_a_file_of_its_name_or_named_in_the_title_of_its_file():
    misplaced = []
    for alias in written.CLASSES:
        file = ROOT.joinpath(*written.MODULES[alias].split(".")).with_suffix(".py")
        title = file.read_text(encoding="utf-8").partition("\n")[0]
        if file.stem != alias and f"`{alias}`" not in title:
            misplaced.append((alias, title))
    assert misplaced == []


@pytest.mark.slow  # torch's tracer, in another process
def test_a_name_may_be_looked_up_first_inside_a_compiled_function(tmp_path):
    script = tmp_path / "step.py"  # torch reads the source
    script.write_text(
        """
import torch, gradtx

@torch.compile(fullgraph=True, backend="eager")
def step(params, grads):
    tx = gradtx.sgd(lr=gradtx.step_schedule(0.5, 3))
    updates, _ = tx.update(grads, tx.init(params), params)
    return gradtx.apply_updates(params, updates)

print(*step({"w": torch.ones(2)}, {"w": torch.ones(2)})["w"].tolist())
""",
        encoding="utf-8",
    )
    code = f"import runpy; runpy.run_path({str(script)!r})"
    assert told(code, ROOT.parent) == ["0.5", "0.5"]
