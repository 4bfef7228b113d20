"""The plan of the house, read from docs/explain/architecture.md: who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "cynosure"
PLAN = ROOT / "docs" / "explain" / "architecture.md"

# Floors from the ground up; the rooms of one floor are its wings.
FLOORS = [
    {"ground"}, {"data"}, {"pixels", "geometry"}, {"products", "solutions"}, {"pipelines"},
    {"faces"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FORBIDDEN_NAMES = {"utils", "helpers", "common", "base", "misc", "tools"}
MAX_MODULE_LINES = 600
MAX_MODULES_A_ROOM = 15
MAX_FUNCTION_LINES = 60
# A compiled loop keeps its state in local names; taking it apart would only pass them around.
MAX_KERNEL_LINES = 120
MAX_POSITIONAL = 7
# What a command line or a server hands over by keyword, one name an option.
BY_KEYWORD = {"faces.commands", "faces.server"}
# Modules that still have functions of more positional parameters; none is to be added.
TOO_MANY_PARAMETERS = {
    "geometry.match.pointing", "pixels.fitkernels", "pixels.kernels", "pixels.measure",
    "pixels.peakkernels", "pixels.psfkernels", "products.detector", "products.render",
}


def plan():
    """Return the modules of every room, and of each room within it, lowest first."""
    rooms = {}
    for line in PLAN.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 3 and cells[0].split(".")[0] in FLOOR_OF:
            rooms[cells[0]] = re.findall(r"`(\w+)`", cells[1])
    return rooms


def modules():
    """Return the files of all modules by dotted name without the package's."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__")] = path
    return found


MODULES = modules()
ROOMS = plan()
FILES = {name: path for name, path in MODULES.items() if name.split(".")[0] in FLOOR_OF}


def place(name):
    """Return where a module stands: its floor, its room, and its place in each room on the way.

    A room within a room has one place among the modules of that room, and an order of its own.
    """
    parts = name.split(".")
    order = [FLOOR_OF[parts[0]], parts[0]]
    for depth in range(1, len(parts)):
        order.append(ROOMS[".".join(parts[:depth])].index(parts[depth]))
    return order


def imports(path):
    """Return the modules of the house that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            inner = {f"{base}.{alias.name}" for alias in node.names}
            modules_of_base = {n for n in inner if n.removeprefix("cynosure.") in MODULES}
            found |= modules_of_base or {base}
    return sorted(
        n.removeprefix("cynosure.") for n in found
        if n.startswith("cynosure.") and n.removeprefix("cynosure.") in FILES
    )


def test_the_plan_names_every_module_and_no_other():
    standing = {room: set() for room in FLOOR_OF}
    for name in FILES:
        room, _, module = name.rpartition(".")
        if room:
            standing.setdefault(room, set()).add(module)
    assert {room: set(names) for room, names in ROOMS.items()} == standing


def test_no_room_is_a_corridor():
    """A room of more modules than can be seen at a glance wants rooms within it."""
    for room, names in ROOMS.items():
        assert len(names) <= MAX_MODULES_A_ROOM, f"{room} has {len(names)} modules in a row"


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_go_down(name):
    floor, room, *places = place(name)
    for other in imports(FILES[name]):
        their_floor, their_room, *theirs = place(other)
        if their_room == room:
            assert theirs < places, f"{name} imports {other}, later in its room"
        else:
            assert their_floor < floor, f"{name} imports {other}"


def test_a_wrong_import_would_be_found(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("import cynosure.data.tables\ndef f():\n    from cynosure.faces import cli\n")
    assert imports(bad) == ["data.tables", "faces.cli"]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_sizes_and_names(name):
    path = MODULES[name]
    assert path.stem not in FORBIDDEN_NAMES
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_MODULE_LINES, f"{path.name}: look for the seam"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            compiled = any("compiled" in ast.unparse(d) for d in node.decorator_list)
            most = MAX_KERNEL_LINES if compiled else MAX_FUNCTION_LINES
            assert lines <= most, f"{path.name}: {node.name} has {lines} lines"


def positional(function):
    """Return how many positional parameters a function has, beside `self` or `cls`."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


@pytest.mark.parametrize("name", sorted(set(MODULES) - TOO_MANY_PARAMETERS))
def test_parameters_are_few(name):
    """Past seven positional parameters a record is missing."""
    if name.rpartition(".")[0] in BY_KEYWORD:
        return
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            count = positional(node)
            assert count <= MAX_POSITIONAL, f"{name}: {node.name} has {count} parameters"


def test_modules_with_too_many_parameters_are_there():
    assert set(MODULES) >= TOO_MANY_PARAMETERS


def test_every_error_is_named():
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in ("Exception", "everything"), f"{path}:{node.lineno}"
                reraised = isinstance(node.body[-1], ast.Raise)
                assert caught != "BaseException" or reraised, f"{path}:{node.lineno}"


IMPORT_ALONE = """
import os, sys, warnings
import numpy, scipy.spatial, astropy.wcs, numba, pyarrow, click
bad = []
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        warnings.simplefilter("error")
        code = 1
        try:
            __import__(name)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        bad.append(name)
print(" ".join(bad))
"""


def test_every_module_can_be_imported_alone():
    names = [f"cynosure.{n}" if n else "cynosure" for n in MODULES if n != "__main__"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_ALONE, *names], capture_output=True,
        text=True, check=True,
    )
    assert done.stdout.strip() == "", done.stderr


def test_importing_the_package_is_quick():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import cynosure"], capture_output=True,
        text=True, check=True,
    )
    rows = [line.split("|") for line in done.stderr.splitlines() if line.count("|") == 2]
    loaded = {row[2].strip().split(".")[0] for row in rows}
    heavy = {"numpy", "scipy", "astropy", "numba", "matplotlib", "sqlalchemy", "pandas", "pyarrow"}
    assert not loaded & heavy
    total = next(int(row[1]) for row in rows if row[2].strip() == "cynosure")
    assert total < 300_000, "microseconds"


def test_public_names_are_lazy_and_listed():
    import cynosure

    assert set(cynosure.__all__) <= set(dir(cynosure))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = cynosure.nonsense
    from cynosure.ground.errors import CynosureError

    assert cynosure.CynosureError is CynosureError
