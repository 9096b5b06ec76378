#!/usr/bin/env python3
"""Build the source archive and the wheel, and try the wheel in an empty environment.

    python tools/release.py            # dist/*.tar.gz and dist/*.whl, from the committed files
    python tools/release.py --rehearse # with uncommitted files, without the checks before the build

The version is that of mask_former/__init__.py. Checks before the build: everything is committed,
CHANGELOG.md has a heading for the version and nothing under "Unreleased", and the tag is new.
Checks after it: the wheel holds every module, table, config and weight file; installed into an
empty environment, it segments a photo, and demo/demo.py draws the result. Tagging is up to you.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Files that the wheel has to hold: folder, suffixes (none: every file), folder in the wheel.
PACKAGED = (
    ("mask_former", (".py", ".json"), "mask_former"),
    ("configs", (".yaml",), "mask_former/configs"),
    ("model_zoo", (), "mask_former/model_zoo"),
)

# Run in the new environment, from an empty folder; matplotlib contains the photo.
PREDICT = """
import sys, matplotlib, mask_former
from pathlib import Path
from mask_former import MaskFormerPredictor
photo = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
result = MaskFormerPredictor.from_pretrained("camvid_semantic", device="cpu")(photo)
assert result.semantic.shape == result.image.shape[:2], result.semantic.shape
print(mask_former.__version__, mask_former.__file__, photo, sep="\\n")
"""


def git(*arguments: str, root: Path) -> str:
    """Run git in a checkout and return its output."""
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def source_files(root: Path, *, committed: bool) -> list[Path]:
    """List the files of a checkout that git does not ignore, relative to ``root``."""
    kinds = ["--cached"] if committed else ["--cached", "--others", "--exclude-standard"]
    names = git("ls-files", "-z", *kinds, root=root).split("\0")
    return sorted({Path(name) for name in names if name and (root / name).is_file()})


def read_version(root: Path) -> str:
    """Return ``__version__`` of the package, the only definition of the version."""
    file = root / "mask_former" / "__init__.py"
    found = re.findall(r'^__version__ = "(.+)"$', file.read_text(), flags=re.MULTILINE)
    if len(found) != 1:
        raise ValueError(f"{file}: expected one line '__version__ = \"…\"', found {len(found)}")
    return found[0]


def why_not_ready(version: str, changelog: str, status: str, tags: Iterable[str]) -> Iterator[str]:
    """Yield the reasons against releasing a version, one line each.

    Args:
        version: the version, such as "1.2.0".
        changelog: the text of CHANGELOG.md.
        status: the output of ``git status --porcelain``.
        tags: the tags of git.
    """
    if status:
        yield f"{len(status.splitlines())} files are changed or new: commit or remove them"
    sections = dict(re.findall(r"^## (\S+)[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.M | re.S))
    if sections.get("Unreleased", "").strip():
        yield f'CHANGELOG.md has lines under "Unreleased": give them the heading "## {version}"'
    if version not in sections:
        yield f'CHANGELOG.md has no heading "## {version}"'
    if f"v{version}" in tags:
        yield f"the tag v{version} exists: increase __version__ in mask_former/__init__.py"


def build(root: Path, files: Iterable[Path], output: Path) -> Path:
    """Build the source archive from a copy of ``files``, and the wheel from the source archive.

    Returns:
        The path of the wheel.
    """
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / file, folder / file)
        command = ["-m", "build", "--no-isolation", "--outdir", str(output.resolve())]
        subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True)
    return output / f"mask_former-{read_version(root)}-py3-none-any.whl"


def expected_in_wheel(files: Iterable[Path]) -> set[str]:
    """Return the names in the wheel of those files of the checkout that it must hold."""
    return {
        f"{target}/{file.relative_to(folder)}"
        for file in files
        for folder, suffixes, target in PACKAGED
        if file.is_relative_to(folder) and (not suffixes or file.suffix in suffixes)
    }


def check_wheel(wheel: Path, files: Iterable[Path]) -> int:
    """Return the number of files in the wheel.

    Raises:
        ValueError: if a file of the checkout is missing from it.
    """
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
    missing = sorted(expected_in_wheel(files) - set(held))
    if missing:
        raise ValueError(f"{wheel.name} lacks {len(missing)} files: {', '.join(missing[:5])}")
    return len(held)


def make_environment(folder: Path, wheel: Path, *, borrow: bool) -> Path:
    """Install the wheel and its requirements into a new environment.

    Args:
        folder: folder of the environment.
        wheel: path of the wheel.
        borrow: use the requirements of this environment, through a .pth file, to save time.

    Returns:
        The interpreter of the new environment.
    """
    if not borrow:
        install = [str(ROOT / "tools" / "install.py"), "--venv", str(folder), "--wheel", str(wheel)]
        subprocess.run([sys.executable, *install], check=True)
        return folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-qq", "--no-deps", wheel], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # a path in a .pth file adds packages, but not editable installs, which also use .pth files
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def try_wheel(python: Path, folder: Path, version: str) -> None:
    """Predict and draw with the wheel that is installed in an environment, from an empty folder.

    Raises:
        ValueError: if another package than the wheel's is imported, or nothing is drawn.
        subprocess.CalledProcessError: if the prediction or the demo fails.
    """
    folder.mkdir()

    def run(*arguments: str) -> list[str]:
        process = subprocess.run(
            [python, *arguments], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        process.check_returncode()
        return process.stdout.splitlines()

    found, path, photo = run("-c", PREDICT)[-3:]
    if found != version or not Path(path).is_relative_to(python.parents[1]):
        raise ValueError(f"found mask_former {found} at {path}, expected the wheel's {version}")
    run(str(ROOT / "demo" / "demo.py"), "--input", photo, "--output", "drawn")
    if not (folder / "drawn" / "grace_hopper.png").is_file():
        raise ValueError(f"demo/demo.py drew no {folder}/drawn/grace_hopper.png")


def release(root: Path, output: Path, *, rehearse: bool, borrow: bool) -> None:
    """Check, build and try a release.

    Raises:
        ValueError: if the version is not ready, or the wheel is incomplete or does not work.
        subprocess.CalledProcessError: if a command fails.
    """
    version = read_version(root)
    if not rehearse:
        status = git("status", "--porcelain", root=root)
        tags = git("tag", root=root).split()
        reasons = list(why_not_ready(version, (root / "CHANGELOG.md").read_text(), status, tags))
        if reasons:
            raise ValueError("\n  ".join([f"{version} is not ready:", *reasons]))
    files = source_files(root, committed=not rehearse)
    print(f"release: building {version} of {len(files)} files", flush=True)
    wheel = build(root, files, output)
    print(f"release: {wheel} holds {check_wheel(wheel, files)} files", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        python = make_environment(Path(temporary, "venv"), wheel.resolve(), borrow=borrow)
        print("release: predicting with it", flush=True)
        try_wheel(python, Path(temporary, "empty"), version)
    print(f"release: {version} works. To publish it: git tag v{version}, then upload {output}/")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="default: dist")
    parser.add_argument("--rehearse", action="store_true", help="include uncommitted files")
    parser.add_argument(
        "--borrow",
        action="store_true",
        help="use torch and other requirements of this environment; installing them takes 2.5 GB",
    )
    args = parser.parse_args(argv)
    try:
        release(ROOT, args.output, rehearse=args.rehearse, borrow=args.borrow)
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))[:200]
        detail = (error.stderr or b"")[-2000:]
        text = detail.decode(errors="replace") if isinstance(detail, bytes) else detail
        print(f"release: a command failed: {command}\n{text}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
