"""What a reader of the code may rely on: one meaning for a word, and functions that fit a screen."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import gradtx

PACKAGE = Path(gradtx.__file__).parent
SCREEN = 60  # lines of a body
# The classes that a word of docs/design.md names. Other classes have other words.
CLASSES_OF = {
    "number": set(),
    "scalar": {"ScalarFunction", "Scalars"},
    "place": set(),
    "kind": {"LeafKind", "TensorKind"},
    "plan": {"ListedPlan", "MemoryPlan", "Plan", "StepPlan", "TreePlan"},
    "run": {"Run", "BlockRun", "OptimizerRun", "RecordedRun", "SingleRun", "SpaceRun", "TreeRun"},
    "count": {"DeviceCount", "LastCounts", "OfCount", "StepCounts"},
    "hyperparameter": {"Hyperparameters"},
}
# What a function or an attribute may still call so, and why.
NUMBERS = {
    "is_number",  # a number of Python, which a user passes
    "number_on",
    "_check_number",
    "without_number",  # the number at the end of `exp_avg_1`
    "annealed_number",  # how many
    "as_number",
    "number",
    "numbers",
}


def parts(name):
    return [word.lower().removesuffix("s") for word in re.findall(r"[a-z]+|[A-Z][a-z]*", name)]


def nodes():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path, node


def body_of(function):
    body = function.body
    is_documented = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    return body[1:] if is_documented else body


def test_functions_fit_a_screen():
    long = []
    for path, node in nodes():
        if isinstance(node, ast.FunctionDef):
            body = body_of(node)
            if body and (body[-1].end_lineno or 0) - body[0].lineno >= SCREEN:
                long.append(f"{path.relative_to(PACKAGE)}: {node.name}")
    assert long == []


def test_a_word_names_the_classes_of_one_meaning():
    found = defaultdict(set)
    for _, node in nodes():
        if isinstance(node, ast.ClassDef):
            for word in set(parts(node.name)) & CLASSES_OF.keys():
                found[word].add(node.name)
    assert dict(found) == {word: names for word, names in CLASSES_OF.items() if names}


def test_hyperparameters_scalars_and_constants_are_not_called_numbers():
    functions = {node.name for _, node in nodes() if isinstance(node, ast.FunctionDef)}
    attributes = {
        node.attr for _, node in nodes() if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert {name for name in functions | attributes if "number" in parts(name)} <= NUMBERS


def test_a_name_says_what_it_holds():
    """No variable is called `given`, `each` or `one`; `new` stands only beside `old`, in the same scope."""
    vague = []
    for path, function in nodes():
        if not isinstance(function, ast.FunctionDef):
            continue
        names = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
        names |= {
            node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        allowed = {"new"} if "old" in names or "pairwise" in ast.unparse(function) else set()
        found = {"given", "each", "new", "one"} & names - allowed
        vague += [f"{path.relative_to(PACKAGE)}: {function.name}: {name}" for name in sorted(found)]
    assert vague == []
