"""A file imports only from lower floors (DESIGN.md, section 3), and knows no more than it must."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mask_former"
FILES = sorted(PACKAGE.rglob("*.py"))
EXTERNAL = ("torch", "numpy", "scipy", "fvcore", "safetensors", "detectron2")

# The longest prefix of a module's name decides. Within a floor, modules import each other only
# where they share their prefix; on the top floor they may.
FLOORS = {
    "structures": 0,
    "layers": 0,
    "registries": 0,
    "colors": 0,
    "precision": 0,
    "errors": 0,
    "files": 0,
    "losses": 1,
    "inference": 1,
    "checkpoint": 1,
    "data.targets": 1,
    "labels": 1,
    "classes": 1,
    "modeling": 2,
    "data": 2,
    "visualization": 2,
    "legend": 2,
    "huggingface": 2,
    "registration": 3,
    "validation": 3,
    "results": 3,
    "config": 4,
    "postprocessing": 5,
    "inner_outputs": 5,
    "engine": 5,
    "export": 5,
    "prediction": 5,
    "predictor": 5,
    "test_time_augmentation": 5,
    "": 5,  # mask_former/__init__.py
}

# Floors 0 and 1 are for others to reuse: these packages and Python's own are all they need.
NEEDS = {
    "structures": {"torch"},
    "layers": {"torch"},
    "registries": {"fvcore"},
    "precision": {"torch"},
    "errors": set(),
    "losses": {"torch", "numpy", "scipy", "detectron2.projects.point_rend"},
    "inference": {"torch", "detectron2.structures"},
    "checkpoint": {"torch", "numpy", "safetensors"},
    "data.targets": {"torch", "numpy"},
}


def module_of(file):
    """``modeling.heads`` of ``mask_former/modeling/heads/__init__.py``."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module):
    """The entry of ``FLOORS`` that a module belongs to."""
    while module not in FLOORS and module:
        module = module.rpartition(".")[0]
    return module


def resolve(node, file):
    """The full dotted names that an import statement may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = ["mask_former", *file.relative_to(PACKAGE).parent.parts]
        above = package[: len(package) - (node.level - 1)]
        base = ".".join([*above, *filter(None, [base])])
    # `from package import module` loads the module, `from module import name` does not
    named = [f"{base}.{alias.name}" for alias in node.names]
    return [name if is_module(name) else base for name in named]


def is_module(name):
    path = PACKAGE.parent / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports(file):
    """The names that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from resolve(node, file)


def own_imports(file):
    """The modules of this package among them, without the package's name."""
    for name in imports(file):
        if name == "mask_former" or name.startswith("mask_former."):
            yield name.removeprefix("mask_former").removeprefix(".")


def may_import(importer, imported):
    if imported == importer:
        return True
    floors = FLOORS[importer], FLOORS[imported]
    return floors[1] < floors[0] or floors == (5, 5)


each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: module_of(file) or "__init__")


@each_file
def test_a_file_imports_only_from_lower_floors(file):
    importer = part_of(module_of(file))
    for name in own_imports(file):
        imported = part_of(name)
        assert may_import(importer, imported), (
            f"{file.relative_to(PACKAGE.parent)} is on floor {FLOORS[importer]} ({importer}) and "
            f"imports mask_former.{name} of floor {FLOORS[imported]} ({imported})"
        )


@each_file
def test_every_file_has_a_floor_of_its_own(file):
    module = module_of(file)
    assert part_of(module) or not module, (
        f"{file.relative_to(PACKAGE.parent)} is on no floor: add it to FLOORS in this test and to "
        "the design"
    )


@pytest.mark.parametrize("part", NEEDS)
def test_the_lower_floors_need_little_of_others(part):
    files = [file for file in FILES if part_of(module_of(file)) == part]
    assert files
    for file in files:
        for name in imports(file):
            if name.split(".")[0] in EXTERNAL:
                assert any(name == need or name.startswith(f"{need}.") for need in NEEDS[part]), (
                    f"{file.relative_to(PACKAGE.parent)} imports {name}; floor {FLOORS[part]} "
                    f"makes do with {sorted(NEEDS[part])}"
                )


# The test itself


@pytest.mark.parametrize(
    "file, statement, expected",
    [
        ("losses/matcher.py", "from ..structures import Match", ["mask_former.structures"]),
        ("losses/matcher.py", "from .. import structures", ["mask_former.structures"]),
        ("losses/__init__.py", "from .matcher import X", ["mask_former.losses.matcher"]),
        ("losses/__init__.py", "from ..data import targets", ["mask_former.data.targets"]),
        ("modeling/heads/x.py", "from ...layers import MLP", ["mask_former.layers"]),
        ("__init__.py", "from .config import x", ["mask_former.config"]),
        ("config.py", "import mask_former.engine.trainer", ["mask_former.engine.trainer"]),
        ("config.py", "from mask_former import engine", ["mask_former.engine"]),
        ("config.py", "from torch.nn import functional", ["torch.nn"]),
    ],
)
def test_imports_are_resolved(file, statement, expected):
    (node,) = ast.parse(statement).body
    assert resolve(node, PACKAGE / file) == expected


@pytest.mark.parametrize(
    "importer, imported, allowed",
    [
        ("modeling", "data", False),
        ("data", "modeling", False),
        ("data", "data.targets", True),
        ("data.targets", "data", False),
        ("modeling", "checkpoint", True),
        ("layers", "structures", False),
        ("registration", "config", False),
        ("config", "registration", True),
        ("config", "", False),
        ("engine", "config", True),
        ("", "engine", True),
    ],
)
def test_floors_are_told_apart(importer, imported, allowed):
    assert may_import(importer, imported) is allowed
