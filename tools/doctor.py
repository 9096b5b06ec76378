# Copyright the MaskFormer-on-detectron2 authors. Licensed under Apache-2.0 (see LICENSE).
"""Report the installed versions, what is missing or incompatible, and the command that fixes it.

    python tools/doctor.py

The exit code is 1 if something must be fixed; warnings do not count. It needs only Python, so it
also runs if torch or detectron2 is missing or broken: `gather` collects the facts, importing the
large packages in a separate process, and each check is a pure function of these facts.
"""

from __future__ import annotations  # so that Python 3.8 gets as far as the version check

import importlib.util
import json
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
DETECTRON2_LOCK = TOOLS.parent / "requirements" / "detectron2.txt"

# use -> import names
REQUIRED = {
    "the model runs on them": ("torch", "torchvision"),
    "the framework this plugs into": ("detectron2",),
    "this project": ("mask_former",),
    "data, matching and checkpoints": ("numpy", "scipy", "PIL", "cv2", "safetensors"),
    "detectron2 imports them": (
        *("cloudpickle", "fvcore", "hydra", "iopath", "matplotlib", "omegaconf"),
        *("pycocotools", "tabulate", "tensorboard", "termcolor", "tqdm", "yacs"),
    ),
}
OPTIONAL = {
    "timm backbones": ("timm",),
    "panoptic quality": ("panopticapi",),
    "Cityscapes' metrics": ("cityscapesscripts", "pyquaternion"),
    "conversion of Hugging Face's models": ("transformers",),
    "preparation of COCO-Stuff-10K": ("h5py",),
}
MODULES = [name for uses in (REQUIRED, OPTIONAL) for names in uses.values() for name in names]
OPENCV = (
    *("opencv-python-headless", "opencv-python"),
    *("opencv-contrib-python-headless", "opencv-contrib-python"),
)
# the distributions that may contain a module of another name; the first is the one to install
DISTRIBUTIONS = {
    "PIL": ("pillow",),
    "cv2": OPENCV,
    "detectron2": ("detectron2", "sal-detectron2"),
    "hydra": ("hydra-core",),
    "mask_former": ("mask-former",),
    "panopticapi": ("panopticapi-lite", "panopticapi"),
}

# Modules to import, in this order: later ones may fail because of earlier ones.
TRIED = ("torch", "torchvision", "cv2", "detectron2.engine", "mask_former")
PROBE = """
import importlib, json, sys
def report(**facts):
    print("doctor:" + json.dumps(facts), flush=True)
for name in sys.argv[1:]:
    report(trying=name)
    try:
        importlib.import_module(name)
        report(done=name)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        report(done=name, error=type(error).__name__ + ": " + lines[-1])
torch = sys.modules.get("torch")
if torch:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    report(gpus=names, cuda=torch.version.cuda)
"""


@dataclass(frozen=True)
class Environment:
    """Facts about an interpreter and its packages; the checks use nothing else."""

    python: tuple[int, ...] = sys.version_info[:3]
    executable: str = sys.executable
    site_packages: str = sysconfig.get_paths()["purelib"]
    modules: frozenset[str] = frozenset()  # the MODULES that are installed
    distributions: dict[str, str] = field(default_factory=dict)  # name -> version
    import_errors: dict[str, str] = field(default_factory=dict)  # module -> last line of the error
    gpus: str = "-"
    detectron2_folder: str = ""
    detectron2_uses: frozenset[str] = frozenset()  # names removed from numpy or Pillow: "np.bool"
    stray_tools: str = ""  # folder of the package `tools` that detectron2's wheel left behind
    binaries: tuple[str, ...] = ()  # detectron2's compiled modules

    def version(self, module: str) -> str:
        """Return the version of a module, "" if it is missing."""
        if module not in self.modules:
            return ""
        names = DISTRIBUTIONS.get(module, (module,))
        return next((self.distributions[n] for n in names if n in self.distributions), "not known")

    def pip(self, *arguments: str) -> str:
        """Return the command line of pip with these arguments."""
        return " ".join([self.executable, "-m pip", *arguments])


@dataclass(frozen=True)
class Finding:
    """A problem, the command that fixes it, and whether it must be fixed."""

    text: str
    fix: str
    must: bool = True


def gather() -> Environment:
    """Collect the facts about the running interpreter."""
    specs = {name: importlib.util.find_spec(name) for name in MODULES}
    modules = frozenset(name for name, spec in specs.items() if spec)
    detectron2 = specs["detectron2"]
    folder = next(iter(detectron2.submodule_search_locations or ()), "") if detectron2 else ""
    errors, gpus = try_imports([name for name in TRIED if name.split(".")[0] in modules])
    return Environment(
        modules=modules,
        distributions=installed_distributions(),
        import_errors=errors,
        gpus=gpus,
        detectron2_folder=folder,
        detectron2_uses=dropped_names(Path(folder)) if folder else frozenset(),
        stray_tools=find_stray_tools(sys.path),
        binaries=tuple(sorted(map(str, Path(folder).glob("_C*")))) if folder else (),
    )


def installed_distributions() -> dict[str, str]:
    """Return the version of every installed distribution by its normalised name."""
    from importlib import metadata

    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # an incompletely removed package has none
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def try_imports(names: list[str]) -> tuple[dict[str, str], str]:
    """Import modules in a separate process; return error lines by module, and the GPUs as text."""
    flags = [f"-{f}" for f, on in (("I", sys.flags.isolated), ("S", sys.flags.no_site)) if on]
    command = [sys.executable, *flags, "-c", PROBE, *names]
    # run in this folder: in others, a checkout might hide an installed package
    process = subprocess.run(command, capture_output=True, text=True, cwd=TOOLS)
    errors: dict[str, str] = {}
    gpus = "-"
    for line in process.stdout.splitlines():
        fact = json.loads(line[len("doctor:") :]) if line.startswith("doctor:") else {}
        if "trying" in fact:
            errors[fact["trying"]] = f"the interpreter crashed (exit code {process.returncode})"
        elif "error" in fact:
            errors[fact["done"]] = fact["error"]
        elif "done" in fact:
            del errors[fact["done"]]
        elif "gpus" in fact:
            seen = ", ".join(fact["gpus"]) or "none seen, so the CPU is used"
            gpus = f"{seen} (torch's CUDA: {fact['cuda'] or 'none'})"
    return errors, gpus


def dropped_names(folder: Path) -> frozenset[str]:
    """Return the names used in `folder` that numpy 1.24 or Pillow 10 removed."""
    numpy, pillow = "bool|object|int|float|complex|str", "LINEAR|CUBIC|ANTIALIAS"
    dropped = re.compile(rf"\b(?:np\.(?:{numpy})|Image\.(?:{pillow}))\b")
    used: set[str] = set()
    for path in folder.rglob("*.py"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            used.update(dropped.findall(line.split("#")[0]))
    return frozenset(used)


def find_stray_tools(search_path: Iterable[str]) -> str:
    """Return the folder of the package `tools` that detectron2's wheel contains, or ""."""
    marks = ("__init__.py", "plain_train_net.py", "lazyconfig_train_net.py")
    for entry in map(Path, search_path):
        folder = entry / "tools"
        installed = entry.name in ("site-packages", "dist-packages")
        if installed and all((folder / name).is_file() for name in marks):
            return str(folder)
    return ""


def numbers(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version, (0, 0) if it is not known."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def check_python(env: Environment) -> Iterator[Finding]:
    """Report a Python that is too old."""
    if env.python < (3, 10):
        text = f"Python {'.'.join(map(str, env.python))} is too old, 3.10 or newer is needed"
        yield Finding(text, "make install PYTHON=python3.11  # or a newer one")


def check_missing(env: Environment) -> Iterator[Finding]:
    """Report missing packages, with one finding per use."""
    for uses, must in ((REQUIRED, True), (OPTIONAL, False)):
        for use, modules in uses.items():
            missing = [name for name in modules if name not in env.modules]
            if missing:
                names = " ".join(DISTRIBUTIONS.get(name, (name,))[0] for name in missing)
                fix = install_line(env, missing[0], names)
                yield Finding(f"missing: {names} ({use})", fix, must)


def install_line(env: Environment, module: str, distributions: str) -> str:
    """Return the command that installs a missing package and keeps the installed torch."""
    torch = numbers(env.version("torch"))
    if module == "detectron2":  # its wheel is tagged for Python 3.10, but works with every Python
        any_python = "--no-deps --only-binary=:all: --python-version 3.10 --upgrade"
        target = f"--target {env.site_packages} --require-hashes -r {DETECTRON2_LOCK}"
        stray = f"{env.site_packages}/tools {env.site_packages}/detectron2/_C*"
        return f"{env.pip('install', any_python, target)} && rm -r {stray}"
    if module == "mask_former":
        return env.pip("install --no-deps --editable", str(TOOLS.parent))
    if module in ("panopticapi", "cityscapesscripts"):  # their requirements are outdated
        return env.pip("install --no-deps", distributions)
    if module == "torchvision" and torch[0] == 2:
        return env.pip(f'install "torchvision==0.{torch[1] + 15}.*"')
    return env.pip("install", distributions)


def check_torch(env: Environment) -> Iterator[Finding]:
    """Report an old torch, or a torchvision other than 0.(N+15) for torch 2.N."""
    torch, vision = numbers(env.version("torch")), numbers(env.version("torchvision"))
    if (0, 0) < torch < (2, 6):
        text = f"torch {env.version('torch')} is too old, 2.6 or newer is needed"
        yield Finding(text, env.pip("install --upgrade torch torchvision"))
    elif torch[0] == 2 and vision not in ((0, 0), (0, torch[1] + 15)):
        versions = f"torchvision {env.version('torchvision')} and torch {env.version('torch')}"
        fix = install_line(env, "torchvision", "torchvision")
        yield Finding(f"{versions} are incompatible", fix)


def check_imports(env: Environment) -> Iterator[Finding]:
    """Report installed packages whose import fails, unless another finding explains the error."""
    headless = env.pip("install --force-reinstall --no-deps opencv-python-headless")
    vision = install_line(env, "torchvision", "torchvision")
    detectron2 = install_line(env, "detectron2", "detectron2")
    fixes = {
        "torch": env.pip("install --force-reinstall torch torchvision"),
        "torchvision": env.pip("uninstall -y torchvision;", vision),
        "cv2": env.pip("uninstall -y", *OPENCV, ";", headless),
        "detectron2.engine": f"build it again for this torch, or replace it: {detectron2}",
        "mask_former": "see the error; a problem listed above may be the cause",
    }
    explained = [f"No module named '{name}'" for name in MODULES if name not in env.modules]
    if any(check_torch(env)):
        explained.append("torchvision::")  # "operator torchvision::nms does not exist"
    if any(check_old_detectron2(env)):
        explained.append("has no attribute")
    for name, error in env.import_errors.items():
        if not any(text in error for text in explained):
            yield Finding(f"{name} is installed, but its import fails: {error}", fixes[name])
        explained.append(error)  # modules that import it fail with the same message


def check_old_detectron2(env: Environment) -> Iterator[Finding]:
    """Report a detectron2 that uses names removed in numpy 1.24 or Pillow 10 (0.6 and older)."""
    numpy, pillow = numbers(env.version("numpy")), numbers(env.version("PIL"))
    restored = {"np.bool"} if numpy >= (2, 0) else set()
    for module, prefix, too_new, fix in (
        ("numpy", "np.", numpy >= (1, 24), '"numpy<1.24"'),
        ("PIL", "Image.", pillow >= (10, 0), '"pillow<10"'),
    ):
        gone = sorted(name for name in env.detectron2_uses - restored if name.startswith(prefix))
        if gone and too_new:
            text = f"{module} {env.version(module)} is too new for this detectron2, which uses"
            yield Finding(f"{text} {', '.join(gone)}", env.pip("install", fix))


def check_stray_tools(env: Environment) -> Iterator[Finding]:
    """Report a package `tools` that hides other packages of this name."""
    if env.stray_tools:
        text = f"{env.stray_tools} was left by detectron2's wheel: `import tools` finds it"
        yield Finding(text, f"rm -r {env.stray_tools}")


def check_binary(env: Environment) -> Iterator[Finding]:
    """Report the binary of detectron2's wheel, whose origin nobody knows; a build's own is kept."""
    if env.binaries and "sal-detectron2" in env.distributions:
        text = "detectron2's wheel left a binary of unknown origin, which nothing here needs"
        yield Finding(f"{text}: {env.binaries[0]}", f"rm {' '.join(env.binaries)}")


def check_setuptools(env: Environment) -> Iterator[Finding]:
    """Warn about a setuptools without pkg_resources."""
    version = env.distributions.get("setuptools", "none")
    if "detectron2" in env.modules and not (0, 0) < numbers(version) < (81, 0):
        text = f"detectron2.model_zoo needs pkg_resources from setuptools<81; found {version}"
        yield Finding(text, env.pip('install "setuptools<81"'), must=False)


def check_opencv(env: Environment) -> Iterator[Finding]:
    """Warn about several distributions of OpenCV."""
    found = [name for name in OPENCV if name in env.distributions]
    if len(found) > 1:
        fix = env.pip("uninstall -y", *found, ";", env.pip("install", found[0]))
        yield Finding(f"{' and '.join(found)} overwrite each other's files", fix, must=False)


CHECKS = (
    *(check_python, check_missing, check_torch, check_old_detectron2),
    *(check_imports, check_stray_tools, check_binary, check_setuptools, check_opencv),
)


def examine(env: Environment) -> list[Finding]:
    """Return all findings, errors first; if Python is too old, nothing else is checked."""
    checks = CHECKS if env.python >= (3, 10) else (check_python,)
    findings = [finding for check in checks for finding in check(env)]
    return sorted(findings, key=lambda finding: not finding.must)


def print_table(env: Environment) -> None:
    """Print the versions, one per line."""
    rows = {"Python": f"{'.'.join(map(str, env.python))}  {env.executable}"}
    rows.update(platform=platform.platform(), GPU=env.gpus)
    rows.update({module: env.version(module) or "-" for module in MODULES})
    rows["detectron2"] += f"  {env.detectron2_folder}"
    rows["setuptools"] = env.distributions.get("setuptools", "-")
    for name, value in rows.items():
        print(f"{name:18}{value}")


def main() -> int:
    """Print the versions and the findings; return 1 if something must be fixed."""
    env = Environment()
    if not any(check_python(env)):
        env = gather()
    print_table(env)
    findings = examine(env)
    for finding in findings:
        print(f"\n{'FIX' if finding.must else 'warning'}: {finding.text}\n    {finding.fix}")
    wrong = sum(finding.must for finding in findings)
    everything = "`make install` makes .venv with everything at the tested versions"
    print(f"\n{wrong} to fix ({everything})" if wrong else "\nnothing is missing")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
