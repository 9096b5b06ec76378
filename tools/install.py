# Copyright the MaskFormer-on-detectron2 authors. Licensed under Apache-2.0 (see LICENSE).
"""Make a virtual environment and install everything into it at the tested versions.

    python3 tools/install.py [--venv .venv] [--lock FILE] [--wheel FILE]

`make install` runs it. It needs no compiler; after an interruption, run it again to continue.
pip accepts only the files whose sha256 the lock files name (written by tools/lock.py).
--lock installs other versions (tools/matrix.py); a lock without hashes is installed unchecked.
--wheel installs a built package and only its requirements, at the lock's versions, instead of the
checkout and the whole lock (tools/release.py).
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
CUDA_LOCK = REQUIREMENTS / "lock-cuda.txt"  # the packages of torch's CUDA build, for Linux
WHEEL_EXTRAS = "timm,opencv"  # optional requirements of the models of model_zoo/ and the demo

# Run by the interpreter of the new environment, to describe it.
PROBE = """
import json, sys, sysconfig
from importlib import metadata
names = {(d.metadata["Name"] or "").lower() for d in metadata.distributions()}
print(json.dumps({
    "python": list(sys.version_info[:2]),
    "site": sysconfig.get_paths()["purelib"],
    "own_detectron2": "detectron2" in names,
}))
"""


def log(text: str) -> None:
    """Print a line of progress."""
    print(f"install: {text}", flush=True)


def check_venv_works() -> None:
    """Exit with the command that fixes it if this Python cannot make an environment with pip."""
    if all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        return
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    sys.exit(
        f"install: {sys.executable} lacks the module ensurepip, so it cannot make a virtual "
        f"environment.\nOn Debian and Ubuntu: apt-get install python{version}-venv"
    )


def make_venv(folder: Path) -> Path:
    """Return the interpreter of the environment in `folder`, which is made if it does not work."""
    python = folder / "bin" / "python"
    check = [str(python), "-m", "pip", "--version"]
    if python.exists() and subprocess.run(check, capture_output=True).returncode == 0:
        return python
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        sys.exit(
            f"install: {folder} exists and is not a virtual environment; it is left alone.\n"
            f"Name another folder: make install VENV=..."
        )
    log(f"making {folder} with Python {sys.version.split()[0]}")
    check_venv_works()
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    return python


def probe(python: Path) -> dict:
    """Return the facts that PROBE prints about an environment."""
    output = subprocess.run([python, "-c", PROBE], check=True, capture_output=True, text=True)
    return json.loads(output.stdout)


def lock_file(python_version: tuple[int, int]) -> Path:
    """Return the lock for this Python: the newest numpy, scipy and Pillow do not support 3.10."""
    return REQUIREMENTS / ("lock-py311.txt" if python_version >= (3, 11) else "lock-py310.txt")


def pinned(lock: Path, name: str) -> str:
    """Return the lines `name==version` of a lock file, with the hashes."""
    found = re.search(rf"^{re.escape(name)}==(?:.*\\\n)*.*", lock.read_text(), flags=re.M)
    if not found:
        raise KeyError(f"{lock}: expected a line {name}==…, found none")
    return found[0]


def lock_options(lock: Path) -> list[str | Path]:
    """Return pip's options for a lock file: only files with these hashes are accepted.

    A lock with hashes has all packages, so pip need not look for more; with hashes, older versions
    of pip fail on requirements such as coverage[toml].
    """
    if "--hash=" in lock.read_text():
        return ["--no-deps", "--require-hashes", "-r", lock, "-r", CUDA_LOCK]
    log(f"{lock.name} has no hashes: what is downloaded is not checked")
    return ["-r", lock]


def install_all(python: Path, lock: Path | None = None, wheel: Path | None = None) -> None:
    """Install the locked packages, detectron2 and the project into the environment.

    Args:
        python: the environment's interpreter.
        lock: lock file; None: the one for this Python.
        wheel: built package to install with its requirements only; None: install the checkout,
            editable, with all locked packages.
    """
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def pip(command: str, *arguments: str | Path) -> None:
        # -qq hides pip's warnings, not its errors
        subprocess.run(
            [python, "-m", "pip", command, "-qq", *arguments], check=True, env=environment
        )

    facts = probe(python)
    lock = lock or lock_file(tuple(facts["python"]))
    # three pure Python packages have no wheel: they are built with the locked setuptools
    from_source = ("--no-build-isolation", "--use-pep517")
    with tempfile.TemporaryDirectory() as folder:
        tool = Path(folder, "setuptools.txt")
        tool.write_text(pinned(lock, "setuptools"))
        pip("install", "-r", tool)
        if wheel:
            log(f"installing {wheel.name} and its requirements (torch and others; 2.5 GB)")
            pip("download", *from_source, "--dest", folder, *lock_options(lock))
            only_these = ("--no-index", "--find-links", folder)
            pip("install", *from_source, *only_these, f"{wheel}[{WHEEL_EXTRAS}]")
        else:
            log(f"installing {lock.name} (torch and others; 2.5 GB the first time)")
            pip("install", *from_source, *lock_options(lock))
            pip("install", "--no-deps", "--require-hashes", "-r", REQUIREMENTS / "no-deps.txt")

    if facts["own_detectron2"]:
        log("keeping the installed detectron2")
    else:
        log("installing detectron2")
        install_detectron2(pip, Path(facts["site"]))

    if not wheel:
        log("installing mask_former (editable)")
        pip("install", "--no-build-isolation", "--no-deps", "--editable", ROOT)


def install_detectron2(pip: Callable[..., None], site: Path) -> None:
    """Install the wheel of requirements/detectron2.txt on any Python; see the comment there."""
    lock = REQUIREMENTS / "detectron2.txt"
    # pip installs a wheel of another Python only with --target; --upgrade replaces partial files
    any_python = ("--no-deps", "--only-binary=:all:", "--python-version", "3.10")
    pip("install", *any_python, "--upgrade", "--target", site, "--require-hashes", "-r", lock)
    shutil.rmtree(site / "tools")  # a stray package in the wheel, which hides others of this name
    for binary in (site / "detectron2").glob("_C*"):
        binary.unlink()  # of unknown origin; Python 3.10 would load it


def main() -> None:
    """Run the command; exit with a message if it fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="default: .venv")
    parser.add_argument(
        "--lock", type=Path, help="default: the one in requirements/ for this Python"
    )
    parser.add_argument("--wheel", type=Path, help="install this wheel instead of the checkout")
    args = parser.parse_args()
    folder = args.venv
    try:
        python = make_venv(folder)
        install_all(python, args.lock, args.wheel)
    except subprocess.CalledProcessError as error:
        command = " ".join(str(part) for part in error.cmd)
        sys.exit(f"install: a command failed; fix the error above and run this again:\n  {command}")
    except KeyboardInterrupt:
        sys.exit("install: interrupted; run it again to continue")
    log(f"done: {folder}")


if __name__ == "__main__":
    main()
