"""tools/release.py: reasons against a release, and the content of the wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script

release = load_script("tools/release.py")

READY = {"changelog": "# Changelog\n\n## 1.2.0\n\n- New.\n", "status": "", "tags": ["v1.1.0"]}


def test_a_committed_version_with_its_heading_is_ready():
    assert not list(release.why_not_ready("1.2.0", **READY))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": " M a.py\n?? b.py\n"}, "2 files are changed or new"),
        ({"changelog": "## Unreleased\n\n- Newer.\n\n## 1.2.0\n\n- New.\n"}, 'under "Unreleased"'),
        ({"changelog": "## 1.1.0\n\n- Old.\n"}, 'no heading "## 1.2.0"'),
        ({"tags": ["v1.2.0"]}, "the tag v1.2.0 exists: increase __version__"),
    ],
)
def test_each_reason_against_a_release_is_named(change, reason):
    (found,) = release.why_not_ready("1.2.0", **READY | change)
    assert reason in found


def test_an_unreleased_heading_with_nothing_under_it_may_stay():
    changelog = "## Unreleased\n\n## 1.2.0 (2026-01-31)\n\n- New.\n"
    assert not list(release.why_not_ready("1.2.0", **READY | {"changelog": changelog}))


@pytest.mark.subprocess
def test_the_version_is_in_one_file_only():
    version = release.read_version(ROOT)
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    for name in ("setup.py", "pyproject.toml", "CITATION.cff"):
        assert f'"{version}"' not in (ROOT / name).read_text()
        assert f"\nversion: {version}" not in (ROOT / name).read_text()
    command = [sys.executable, "setup.py", "--version"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.split()[-1] == version


def test_a_package_without_its_version_is_refused_with_the_file(tmp_path):
    (tmp_path / "mask_former").mkdir()
    (tmp_path / "mask_former" / "__init__.py").write_text("version = 1\n")
    with pytest.raises(ValueError, match=r"mask_former/__init__\.py: expected one line"):
        release.read_version(tmp_path)


def test_the_wheel_has_modules_tables_configs_and_the_zoo_and_nothing_else():
    names = (
        *("mask_former/losses/matcher.py", "mask_former/data/tables/camvid.json"),
        *("configs/a/b.yaml", "model_zoo/x.safetensors", "model_zoo/x.md"),
        *("mask_former/notes.txt", "configs/README.md", "tests/test_a.py", "setup.py"),
    )
    assert release.expected_in_wheel(map(Path, names)) == {
        "mask_former/losses/matcher.py",
        "mask_former/data/tables/camvid.json",
        "mask_former/configs/a/b.yaml",
        "mask_former/model_zoo/x.safetensors",
        "mask_former/model_zoo/x.md",
    }


def test_a_wheel_without_a_config_is_refused_by_name(tmp_path):
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mask_former/__init__.py", "")
    assert release.check_wheel(wheel, [Path("mask_former/__init__.py")]) == 1
    with pytest.raises(ValueError, match=r"lacks 1 files: mask_former/configs/a\.yaml"):
        release.check_wheel(wheel, [Path("mask_former/__init__.py"), Path("configs/a.yaml")])


def test_ignored_files_are_never_built_and_untracked_ones_only_in_a_rehearsal(tmp_path):
    for name, text in {"a.py": "", "new.py": "", "x.log": "", ".gitignore": "*.log"}.items():
        (tmp_path / name).write_text(text)
    release.git("init", "-q", root=tmp_path)
    release.git("add", "a.py", ".gitignore", root=tmp_path)
    committed = release.source_files(tmp_path, committed=True)
    assert committed == [Path(".gitignore"), Path("a.py")]
    assert set(release.source_files(tmp_path, committed=False)) == {*committed, Path("new.py")}


@pytest.fixture
def environment(tmp_path):
    """Return a function that writes a fake interpreter, which reports a package and may draw."""

    def make(package: Path, draws: bool) -> Path:
        python = tmp_path / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        draw = "mkdir drawn; touch drawn/grace_hopper.png" if draws else "true"
        found = f"echo 1.2.0; echo {package}; echo photo.jpg"
        python.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then {found}; else {draw}; fi\n')
        python.chmod(0o755)
        return python

    return make


def test_a_wheel_passes_if_its_own_package_predicts_and_draws(environment, tmp_path):
    python = environment(tmp_path / "venv" / "lib" / "mask_former.py", draws=True)
    release.try_wheel(python, tmp_path / "empty", "1.2.0")
    with pytest.raises(ValueError, match=r"found mask_former 1\.2\.0 at .*expected the wheel's 2"):
        release.try_wheel(python, tmp_path / "again", "2.0.0")


def test_importing_the_checkouts_package_instead_of_the_wheels_is_an_error(environment, tmp_path):
    python = environment(ROOT / "mask_former" / "__init__.py", draws=True)
    with pytest.raises(ValueError, match="expected the wheel's"):
        release.try_wheel(python, tmp_path / "empty", "1.2.0")


def test_a_demo_that_draws_nothing_is_an_error(environment, tmp_path):
    python = environment(tmp_path / "venv" / "lib" / "mask_former.py", draws=False)
    with pytest.raises(ValueError, match=r"drew no .*grace_hopper\.png"):
        release.try_wheel(python, tmp_path / "empty", "1.2.0")


def test_a_step_that_fails_is_reported_with_its_command_and_exit_code_1(monkeypatch, capsys):
    def fail(*_, **__):
        raise subprocess.CalledProcessError(1, ["python", "-m", "build"], stderr=b"no setuptools")

    monkeypatch.setattr(release, "release", fail)
    assert release.main([]) == 1
    assert "a command failed: python -m build\nno setuptools" in capsys.readouterr().err


def test_nothing_is_built_if_the_version_is_not_ready(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(release, "git", lambda *_, **__: " M mask_former/__init__.py\n")
    monkeypatch.setattr(release, "build", lambda *_: os._exit(3))
    assert release.main(["--output", str(tmp_path)]) == 1
    assert "is not ready:\n  1 files are changed or new" in capsys.readouterr().err
