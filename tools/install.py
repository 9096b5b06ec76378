# Copyright the MaskFormer-on-detectron2 authors. Licensed under Apache-2.0 (see LICENSE).
"""Make a virtual environment and install everything into it at the tested versions.

    python3 tools/install.py [--venv .venv] [--lock FILE] [--wheel FILE]

`make install` runs it. It needs no compiler; when interrupted, run it again and it goes on.
--lock takes other versions (tools/matrix.py). --wheel takes a built package and what it asks for,
at the lock's versions, in place of the checkout and the whole lock (tools/release.py).
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
WHEEL_EXTRAS = "timm,opencv"  # what the models of model_zoo/ and the demo need besides it

# The new environment's own interpreter runs it to describe itself.
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


def say(text: str) -> None:
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
    """Return the interpreter of the environment in `folder`; made again if it does not work."""
    python = folder / "bin" / "python"
    check = [str(python), "-m", "pip", "--version"]
    if python.exists() and subprocess.run(check, capture_output=True).returncode == 0:
        return python
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        sys.exit(
            f"install: {folder} exists and is not a virtual environment; it is left alone.\n"
            f"Name another folder: make install VENV=..."
        )
    say(f"making {folder} with Python {sys.version.split()[0]}")
    check_venv_works()
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    return python


def probe(python: Path) -> dict:
    output = subprocess.run([python, "-c", PROBE], check=True, capture_output=True, text=True)
    return json.loads(output.stdout)


def lock_file(python_version: tuple[int, int]) -> Path:
    """Return the lock for this Python: the newest numpy, scipy and Pillow have left 3.10."""
    return REQUIREMENTS / ("lock-py311.txt" if python_version >= (3, 11) else "lock-py310.txt")


def pinned(lock: Path, name: str) -> str:
    """Return the line `name==version` of a lock file, without its comment."""
    lines = (line.split("#")[0].strip() for line in lock.read_text().splitlines())
    return next(line for line in lines if line.startswith(f"{name}=="))


def install_all(python: Path, lock: Path | None = None, wheel: Path | None = None) -> None:
    """Install the locked packages, detectron2 and the project into the environment.

    Args:
        python: the environment's interpreter.
        lock: None: the one for this Python.
        wheel: the project as it was built, with nothing but what it requires; None: the checkout,
            editable, with all that is locked.
    """
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def pip(*arguments: str | Path) -> None:
        # -qq hides pip's warnings, not its errors
        subprocess.run(
            [python, "-m", "pip", "install", "-qq", *arguments], check=True, env=environment
        )

    facts = probe(python)
    lock = lock or lock_file(tuple(facts["python"]))
    # three pure Python packages come as source: they are built with the locked setuptools
    from_source = ("--no-build-isolation", "--use-pep517")
    pip(pinned(lock, "setuptools"))
    if wheel:
        say(f"installing {wheel.name} and what it requires (torch and the rest; 2.5 GB)")
        pip(*from_source, "--constraint", lock, f"{wheel}[{WHEEL_EXTRAS}]")
    else:
        say(f"installing {lock.name} (torch and the rest; 2.5 GB the first time)")
        pip(*from_source, "-r", lock)
        pip("--no-deps", "-r", REQUIREMENTS / "no-deps.txt")

    if facts["own_detectron2"]:
        say("keeping the detectron2 that is installed there")
    else:
        say("installing detectron2")
        install_detectron2(pip, Path(facts["site"]))

    if not wheel:
        say("installing mask_former (editable)")
        pip("--no-build-isolation", "--no-deps", "--editable", ROOT)


def install_detectron2(pip: Callable[..., None], site: Path) -> None:
    """Install the wheel of requirements/detectron2.txt on any Python; see the comment there."""
    lock = REQUIREMENTS / "detectron2.txt"
    # pip takes a wheel of another Python only with --target; --upgrade replaces a broken-off try
    any_python = ("--no-deps", "--only-binary=:all:", "--python-version", "3.10")
    pip(*any_python, "--upgrade", "--target", site, "--require-hashes", "-r", lock)
    shutil.rmtree(site / "tools")  # the wheel's stray package: `import tools` would find it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="default: .venv")
    parser.add_argument("--lock", type=Path, help="default: the one of requirements/ that fits")
    parser.add_argument("--wheel", type=Path, help="install it in place of the editable checkout")
    args = parser.parse_args()
    folder = args.venv
    try:
        python = make_venv(folder)
        install_all(python, args.lock, args.wheel)
    except subprocess.CalledProcessError as error:
        command = " ".join(str(part) for part in error.cmd)
        sys.exit(f"install: this failed, its error is above; fix it and run again:\n  {command}")
    except KeyboardInterrupt:
        sys.exit("install: interrupted; run it again to go on")
    say(f"done: {folder}")


if __name__ == "__main__":
    main()
