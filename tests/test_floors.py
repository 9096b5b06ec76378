"""Files import only from lower floors (docs/design.md) and in no cycle, and the lowest floors
need few other packages."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PACKAGE = ROOT / "mask_former"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(
    file for room in ("tools", "demo", "datasets") for file in (ROOT / room).rglob("*.py")
)
EXTERNAL = ("torch", "numpy", "scipy", "fvcore", "safetensors", "detectron2")

# A room is the first part of a module's name below mask_former. A file imports from its own room
# and from rooms on lower floors, wherever the import statement stands.
FLOORS = {
    "structures": 1,
    "registries": 1,
    "utils": 1,
    "ops": 1,
    "solver": 1,
    "layers": 2,
    "losses": 2,
    "data": 2,
    "inference": 3,
    "evaluation": 3,
    "visualization": 3,
    "modeling": 4,
    "config": 4,
    "results": 4,
    "huggingface": 4,
    "checkpoint": 5,
    "engine": 6,
    "export": 6,
    "predictor": 7,
    "report": 7,
    "cli": 8,
    "": 8,  # mask_former/__init__.py
}
FORBIDDEN = {"predictor": {"engine"}}
"""Room -> rooms on lower floors that it must not import: inference does not need training."""
SCRIPT_FLOOR = 9

# The lowest floors can be reused elsewhere: they need only these packages and Python's own.
NEEDS = {
    "structures": {"torch"},
    "registries": {"fvcore"},
    "ops": {"torch", "numpy", "triton"},  # triton: in one kernel, which is optional
    "layers": {"torch"},
    "losses": {"torch", "numpy", "scipy", "detectron2.config", "detectron2.projects.point_rend"},
    "inference": {"torch", "detectron2.structures"},
}


def module_of(file: Path) -> str:
    """Return a file's module: ``modeling.heads`` for ``mask_former/modeling/heads/__init__.py``."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """Return a module's room: ``modeling`` for ``modeling.heads``, "" for the package itself."""
    return module.partition(".")[0]


def resolve(node: ast.AST, file: Path) -> list[str]:
    """List the full dotted names of the modules that an import statement may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    base = node.module or ""
    if node.level:
        package = ["mask_former", *file.relative_to(PACKAGE).parent.parts]
        above = package[: len(package) - (node.level - 1)]
        base = ".".join([*above, *filter(None, [base])])
    # `from package import module` loads the module, `from module import name` does not
    named = [f"{base}.{alias.name}" for alias in node.names]
    return [name if is_module(name) else base for name in named]


def is_module(name: str) -> bool:
    """Return True if a dotted name is a module or a package of this project."""
    path = PACKAGE.parent / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@functools.cache
def imports(file: Path) -> list[str]:
    """List the names that a file imports, also inside functions."""
    nodes = ast.walk(ast.parse(file.read_text()))
    statements = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return [name for statement in statements for name in resolve(statement, file)]


def own_imports(file: Path) -> Iterator[str]:
    """Yield the modules of mask_former that a file imports, without the package's name."""
    for name in imports(file):
        if name == "mask_former" or name.startswith("mask_former."):
            yield name.removeprefix("mask_former").removeprefix(".")


def may_import(importer: str, imported: str) -> bool:
    """Return True if a file of one room may import a file of another one."""
    if imported == importer:
        return True
    if imported in FORBIDDEN.get(importer, ()):
        return False
    return FLOORS[imported] < FLOORS[importer] or importer == ""


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes of one cycle, in order, or an empty list."""
    state: dict[str, bool] = {}  # False: on the current path, True: finished

    def visit(node: str, path: list[str]) -> list[str]:
        state[node] = False
        for successor in sorted(graph.get(node, ())):
            if state.get(successor) is False:
                return path[path.index(successor) :]
            if successor not in state and (cycle := visit(successor, [*path, successor])):
                return cycle
        state[node] = True
        return []

    for start in sorted(graph):
        if start not in state and (cycle := visit(start, [start])):
            return cycle
    return []


each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: module_of(file) or "__init__")


@each_file
def test_a_file_imports_only_from_lower_floors(file: Path) -> None:
    importer = room_of(module_of(file))
    assert importer in FLOORS, f"{file.relative_to(ROOT)} is on no floor: add its room to FLOORS"
    for name in own_imports(file):
        imported = room_of(name)
        assert may_import(importer, imported), (
            f"{file.relative_to(ROOT)} is on floor {FLOORS[importer]} ({importer}) and imports "
            f"mask_former.{name} of floor {FLOORS[imported]} ({imported})"
        )


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_scripts_import_no_private_names_of_the_package(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mask_former"):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"{file.relative_to(ROOT)} imports {private} of {node.module}"


def test_no_imports_form_a_cycle() -> None:
    # Imports inside functions count: they hide a cycle, they do not remove it.
    graph = {module_of(file): set(own_imports(file)) - {module_of(file)} for file in FILES}
    assert find_cycle(graph) == []


@pytest.mark.parametrize("room", NEEDS)
def test_the_lowest_floors_need_few_other_packages(room: str) -> None:
    files = [file for file in FILES if room_of(module_of(file)) == room]
    assert files
    for file in files:
        for name in imports(file):
            if name.split(".")[0] in EXTERNAL:
                assert any(name == need or name.startswith(f"{need}.") for need in NEEDS[room]), (
                    f"{file.relative_to(ROOT)} imports {name}; {room} may import only "
                    f"{sorted(NEEDS[room])}"
                )


# The tests themselves


@pytest.mark.parametrize(
    "file, statement, expected",
    [
        ("losses/matcher.py", "from ..structures import Match", ["mask_former.structures"]),
        ("losses/matcher.py", "from .. import structures", ["mask_former.structures"]),
        ("losses/__init__.py", "from .matcher import X", ["mask_former.losses.matcher"]),
        ("losses/__init__.py", "from ..data import targets", ["mask_former.data.targets"]),
        ("modeling/heads/x.py", "from ...layers import MLP", ["mask_former.layers"]),
        ("__init__.py", "from .config import x", ["mask_former.config"]),
        ("x.py", "import mask_former.engine.trainer", ["mask_former.engine.trainer"]),
        ("x.py", "from mask_former import engine", ["mask_former.engine"]),
        ("x.py", "from torch.nn import functional", ["torch.nn"]),
    ],
)
def test_imports_are_resolved(file: str, statement: str, expected: list[str]) -> None:
    (node,) = ast.parse(statement).body
    assert resolve(node, PACKAGE / file) == expected


@pytest.mark.parametrize(
    "importer, imported, allowed",
    [
        ("modeling", "data", True),
        ("modeling", "config", False),
        ("config", "modeling", False),
        ("data", "losses", False),
        ("utils", "structures", False),
        ("engine", "export", False),
        ("export", "engine", False),
        ("predictor", "checkpoint", True),
        ("predictor", "export", True),
        ("predictor", "engine", False),
        ("cli", "engine", True),
        ("engine", "cli", False),
        ("cli", "", False),
        ("", "cli", True),
    ],
)
def test_imports_from_higher_floors_are_found(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


@pytest.mark.parametrize(
    "graph, cycle",
    [
        ({"a": {"b"}, "b": {"c"}}, []),
        ({"a": {"b"}, "b": {"a"}}, ["a", "b"]),
        ({"a": {"b", "c"}, "b": {"c"}, "c": {"d"}, "d": {"b"}}, ["b", "c", "d"]),
    ],
)
def test_cycles_are_found(graph: dict[str, set[str]], cycle: list[str]) -> None:
    assert find_cycle(graph) == cycle
