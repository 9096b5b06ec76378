"""tools/install.py: refused environments, the choice of the lock, and the commands that run."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script

install = load_script("tools/install.py")


@pytest.mark.parametrize(
    ("version", "lock"),
    [((3, 10), "lock-py310.txt"), ((3, 11), "lock-py311.txt"), ((3, 13), "lock-py311.txt")],
)
def test_python_3_10_has_its_own_lock(version, lock):
    assert install.lock_file(version).name == lock
    assert install.lock_file(version).is_file()


@pytest.mark.parametrize("lock", ["lock-py310.txt", "lock-py311.txt"])
def test_the_build_tool_is_pinned_below_the_setuptools_without_pkg_resources(lock):
    name, version = install.pinned(ROOT / "requirements" / lock, "setuptools").split("==")
    assert name == "setuptools" and int(version.split(".")[0]) < 81


def test_the_error_about_a_missing_ensurepip_names_the_debian_package(monkeypatch):
    find_spec = importlib.util.find_spec
    hidden = lambda name: None if name == "ensurepip" else find_spec(name)  # noqa: E731
    monkeypatch.setattr(install.importlib.util, "find_spec", hidden)
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    with pytest.raises(SystemExit, match=f"lacks the module ensurepip.*\n.*{package}"):
        install.check_venv_works()


def test_a_folder_that_is_not_an_environment_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="is not a virtual environment; it is left alone"):
        install.make_venv(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_broken_environment_is_made_again_and_a_working_one_is_kept(tmp_path):
    folder = tmp_path / "venv"
    folder.mkdir()
    (folder / "pyvenv.cfg").touch()  # as if interrupted before pip was installed
    python = install.make_venv(folder)
    (folder / "mark").touch()
    assert install.make_venv(folder) == python and (folder / "mark").exists()
    facts = install.probe(python)
    assert facts["python"] == list(sys.version_info[:2]) and not facts["own_detectron2"]
    assert Path(facts["site"]).is_relative_to(folder)


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """Return the commands that an installation would run, and the facts about its Python."""
    commands = []
    (tmp_path / "tools").mkdir()
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "_C.cpython-310-x86_64-linux-gnu.so").touch()
    facts = {"python": [3, 11], "site": str(tmp_path), "own_detectron2": False}
    monkeypatch.setattr(install, "probe", lambda python: facts)
    monkeypatch.setattr(install.subprocess, "run", lambda command, **_: commands.append(command))
    return commands, facts


@pytest.mark.parametrize("own", [False, True])
def test_an_installed_detectron2_is_kept_and_otherwise_what_its_wheel_brings_besides_is_removed(
    own, installation, tmp_path
):
    commands, facts = installation
    facts["own_detectron2"] = own
    install.install_all(Path("python"))
    lock = ROOT / "requirements" / "detectron2.txt"
    assert any(lock in command for command in commands) != own
    assert (tmp_path / "tools").exists() == own
    assert any((tmp_path / "detectron2").iterdir()) == own
    assert commands[-1][-2:] == ["--editable", ROOT]


def test_a_wheel_installs_only_its_requirements_from_files_that_were_checked(installation):
    commands, _ = installation
    install.install_all(Path("python"), wheel=Path("dist/a.whl"))
    lock = ROOT / "requirements" / "lock-py311.txt"
    (of_wheel,) = [command for command in commands if "dist/a.whl[timm,opencv]" in command]
    (downloads,) = [command for command in commands if "download" in command]
    assert "--require-hashes" in downloads and lock in downloads
    assert "--no-index" in of_wheel and "--no-deps" not in of_wheel
    folder = downloads[downloads.index("--dest") + 1]
    assert of_wheel[of_wheel.index("--find-links") + 1] == folder
    assert not any("install" in command and lock in command for command in commands)
    assert not any("--editable" in command for command in commands)


@pytest.mark.parametrize("wheel", [None, Path("dist/a.whl")])
def test_nothing_is_installed_from_the_index_without_its_hash(installation, wheel):
    commands, _ = installation
    install.install_all(Path("python"), wheel=wheel)
    (build_tool, *others) = commands
    assert build_tool[3:6] == ["install", "-qq", "-r"]
    for command in others:
        local = "--no-index" in command or ("--editable" in command and "--no-deps" in command)
        assert local or "--require-hashes" in command, command


def test_the_build_tool_is_installed_with_its_hashes():
    lock = ROOT / "requirements" / "lock-py311.txt"
    first, *hashes = install.pinned(lock, "setuptools").splitlines()
    assert first.endswith("\\") and hashes
    assert all(line.strip().startswith("--hash=sha256:") for line in hashes)
    with pytest.raises(KeyError, match="expected a line nothing==…, found none"):
        install.pinned(lock, "nothing")


def test_a_lock_without_hashes_is_installed_with_a_word_about_it(installation, tmp_path, capsys):
    commands, _ = installation
    lock = tmp_path / "old.txt"
    lock.write_text("setuptools==80.1\nnumpy==1.26.4\n")
    install.install_all(Path("python"), lock)
    (own,) = [command for command in commands if lock in command]
    assert "--require-hashes" not in own
    assert "old.txt has no hashes: what is downloaded is not checked" in capsys.readouterr().out
