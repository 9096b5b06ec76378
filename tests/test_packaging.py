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
ALL_LOCKS = (*LOCKS, *("lock-cuda.txt", "no-deps.txt", "app.txt", "docs.txt", "detectron2.txt"))
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


def lock_lines(name):
    """List the requirements of a lock file as text, each with its hashes."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def read_lock(name):
    """List the requirements of a lock file, in order."""
    return [Requirement(line.split("--hash=")[0]) for line in lock_lines(name)]


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
    required = [[r.name for r in read_lock(lock.replace(".txt", ".in"))] for lock in LOCKS]
    assert required[0] == required[1] and "torch" in required[0]


def test_every_lock_file_is_known():
    assert {path.name for path in (ROOT / "requirements").glob("*.txt")} == set(ALL_LOCKS)


@pytest.mark.parametrize("lock", ALL_LOCKS)
def test_every_requirement_of_a_lock_has_a_hash_and_a_version(lock):
    assert lock_lines(lock)
    for line in lock_lines(lock):
        requirement, *hashes = line.split("--hash=")
        assert re.fullmatch(r"[\w.-]+==[\w.]+( *;.*)?", requirement.strip()), line
        assert hashes, line
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip()) for one in hashes), line


@pytest.mark.parametrize("lock", [name for name in ALL_LOCKS if name != "detectron2.txt"])
def test_a_lock_has_what_its_source_names(lock):
    if lock == "lock-cuda.txt":
        assert all(re.match(r"nvidia-|cuda-|triton", r.name) for r in read_lock(lock))
        return
    named = {(r.name, str(r.specifier)) for r in read_lock(lock.replace(".txt", ".in"))}
    assert named <= {(r.name, str(r.specifier)) for r in read_lock(lock)}


@pytest.mark.parametrize("lock", ["app.txt", "docs.txt"])
@pytest.mark.parametrize(
    ("main", "python"), [("lock-py310.txt", "3.10"), ("lock-py311.txt", "3.13")]
)
def test_the_page_and_the_site_keep_the_locked_versions(lock, main, python):
    """`make app` replaces Pillow and `make docs` markdown-it-py, which their .in files pin."""
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    wanted = [r for r in read_lock(lock) if not r.marker or r.marker.evaluate(here)]
    versions = {canonicalize_name(r.name): next(iter(r.specifier)).version for r in wanted}
    assert len(versions) == len(wanted)
    locked = pinned_versions(main)
    changed = {name for name in versions if locked.get(name, versions[name]) != versions[name]}
    assert changed <= {"pillow" if lock == "app.txt" else "markdown-it-py"}


def test_the_readme_and_the_site_link_to_the_security_policy():
    assert "](SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert "](../SECURITY.md)" in index and "\n../SECURITY\n" in index  # the second: the menu


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
