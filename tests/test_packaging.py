"""The wheel, the lock files and the Makefile have everything that an installation needs."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.paths import ROOT

LOCKS = ("lock-py310.txt", "lock-py311.txt")
EXTRAS = ("dev", "timm", "opencv", "huggingface", "coco-stuff")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the sources, because a build leaves files behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    for name in ("mask_former", "configs", "model_zoo"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (path,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def requirements(wheel, extra=""):
    """List the requirements of the wheel itself, or of one extra."""
    found = map(Requirement, metadata(wheel).get_all("Requires-Dist"))
    if extra:
        return [r for r in found if r.marker and r.marker.evaluate({"extra": extra})]
    return [r for r in found if not r.marker]


def read_lock(name):
    """List the requirements of a lock file, in order."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements" / name).open())
    return [Requirement(line) for line in lines if line]


def pinned_versions(name):
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in read_lock(name)}


def files(folder, pattern):
    """Return the paths of matching files of a folder, relative to the checkout, without caches."""
    found = (ROOT / folder).rglob(pattern)
    return {str(p.relative_to(ROOT)) for p in found if p.is_file() and "__pycache__" not in p.parts}


def test_the_wheel_has_every_module_and_table(wheel):
    expected = files("mask_former", "*.py") | files("mask_former", "*.json")
    assert expected <= set(wheel.namelist())


def test_the_wheel_has_the_configs_and_the_model_zoo_inside_the_package(wheel):
    expected = {
        f"mask_former/{name}" for name in files("configs", "*.yaml") | files("model_zoo", "*")
    }
    assert expected and expected <= set(wheel.namelist())


def test_the_wheel_has_only_the_package_and_its_licence(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {re.sub(r"-.*\.dist-info", ".dist-info", top) for top in tops} == {
        "mask_former",
        "mask_former.dist-info",
    }
    licences = {Path(name).name for name in wheel.namelist() if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}


def test_installed_versions_of_torch_opencv_and_detectron2_are_kept(wheel):
    names = {canonicalize_name(r.name) for r in requirements(wheel)}
    assert not names & {"detectron2", "sal-detectron2", "opencv-python", "panopticapi-lite"}
    operators = {s.operator for r in requirements(wheel) for s in r.specifier}
    assert operators <= {">="}  # an upper bound would replace what the user has


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_meets_every_requirement_of_the_package_and_its_extras(wheel, lock):
    needed = [r for extra in ("", *EXTRAS) for r in requirements(wheel, extra)]
    pinned = pinned_versions(lock)
    for requirement in needed:
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} and {version}"


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_pins_each_package_once_and_none_of_torchs_own_cuda_packages(lock):
    locked = read_lock(lock)
    assert all([s.operator for s in r.specifier] == ["=="] and not r.url for r in locked)
    names = [canonicalize_name(r.name) for r in locked]
    assert len(names) == len(set(names))
    assert not [name for name in names if re.match(r"nvidia-|cuda-|triton", name)]


def test_both_locks_require_the_same_packages():
    required = []
    for lock in LOCKS:
        text = (ROOT / "requirements" / lock).read_text().split("# what those bring")[0]
        required.append(re.findall(r"^([\w-]+)==", text, flags=re.MULTILINE))
    assert required[0] == required[1] and "torch" in required[0]


@pytest.mark.parametrize("lock", LOCKS)
def test_the_locked_torch_and_torchvision_are_compatible(lock):
    pinned = pinned_versions(lock)
    torch_minor, vision_minor = (int(pinned[n].split(".")[1]) for n in ("torch", "torchvision"))
    assert vision_minor == torch_minor + 15


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments):
    command = ["make", "-C", str(ROOT), "--no-print-directory", *arguments]
    # independent of the make that may run these tests
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@needs_make
def test_make_lists_its_targets_and_all_of_them_are_phony():
    listed = re.findall(r"^  make ([\w-]+) ", make().stdout, flags=re.MULTILINE)
    assert {"install", "demo", "test", "lint", "doctor", "clean"} <= set(listed)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert sorted(phony.split()) == sorted(listed)


@needs_make
@pytest.mark.parametrize("program", ["exit 1", None])
def test_a_python_that_is_too_old_or_missing_is_refused_by_name(program, tmp_path):
    python = tmp_path / "python2.7"
    if program:
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(0o755)
    process = make("install", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert process.returncode != 0 and not (tmp_path / "venv").exists()
    assert f"{python} was not found or is older than Python 3.10" in process.stderr
