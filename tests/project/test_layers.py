"""No room of the package imports from above, and no module imports in a circle; imports for types count too."""

import ast
import functools
import graphlib
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "gradtx"
# Lowest first. A module belongs to the longest name that it starts with.
LAYERS = (
    ("base",),
    ("slots",),
    ("distributed",),
    ("state", "arguments"),
    ("compiler",),
    ("execution",),
    ("plans",),
    ("pure",),
    ("transform", "rules"),
    ("schedules",),
    ("maths",),
    ("curvature",),
    ("combinators",),
    ("links",),
    ("algorithms",),
    ("optim",),
    ("functional", "checkpoint", "hessian", "models", "registry", "model_memory", "multitask", "projections"),
    ("sweeps", "meta", "watching"),
    ("",),
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


@functools.cache
def imports_of(name):
    found = []
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gradtx":
            source = node.module.partition(".")[2]
            for imported in node.names:
                inner = f"{source}.{imported.name}".strip(".")
                found.append(inner if inner in MODULES else source)
    return found


def height_of(name):
    rooms = [room for room in HEIGHT if f"{name}.".startswith(f"{room}.") or not room]
    return HEIGHT[max(rooms, key=len)]


def test_each_room_of_the_table_exists():
    rooms = {name for module in MODULES for name in (module, module.partition(".")[0])}
    assert [room for room in HEIGHT if room not in rooms] == []


def test_the_page_on_design_has_a_row_of_each_room():
    table = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8").partition("## Rooms")[2]
    table = table.partition("`import gradtx`")[0]
    named = {name.removesuffix("/").removesuffix(".py") for name in re.findall(r"`([\w./]+)`", table)}
    assert {name.partition(".")[0] for name in MODULES if name} <= named


def test_no_module_imports_from_a_room_above():
    upward = [(name, other) for name in MODULES for other in imports_of(name) if height_of(other) > height_of(name)]
    assert upward == []


def test_the_optimizer_imports_nothing_of_pure_updates():
    """What both hosts need belongs to a room below them."""
    crossing = [
        (name, other)
        for name in MODULES
        for other in imports_of(name)
        if name.startswith("optim") and other.startswith("pure")
    ]
    assert crossing == []


def test_no_modules_import_in_a_circle():
    graphlib.TopologicalSorter({name: set(imports_of(name)) for name in MODULES}).prepare()


def test_no_packages_import_in_a_circle():
    packages = {}
    for name in filter(None, MODULES):
        package, *others = (each.partition(".")[0] for each in (name, *imports_of(name)))
        packages.setdefault(package, set()).update(others)
    for package, others in packages.items():
        others.discard(package)
    graphlib.TopologicalSorter(packages).prepare()


def test_the_root_has_at_most_twelve_modules():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_one_room_sends():
    sends = re.compile(r"\bdistributed\.(all_|broadcast|reduce|gather|scatter)|\.redistribute\(|\.full_tensor\(")
    senders = {name for name, path in MODULES.items() if sends.search(path.read_text(encoding="utf-8"))}
    assert {name for name in senders if not name.startswith("distributed.")} == set()


def test_a_class_name_has_one_meaning():
    homes = {}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.lstrip("_"), []).append(name)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def modules_named_in(tree):
    """The names by which a module refers to other modules."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = f"{node.module}.".removeprefix("gradtx.")
            names.update(alias.asname or alias.name for alias in node.names if source + alias.name in MODULES)
    return names


def test_no_module_assigns_to_a_global_of_another():
    assigned = []
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = modules_named_in(tree)
        for node in ast.walk(tree):
            is_written = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            if is_written and getattr(node.value, "id", None) in modules:
                assigned.append((name, ast.unparse(node)))
    assert assigned == []
