# Copyright the MaskFormer-on-detectron2 authors. Licensed under Apache-2.0 (see LICENSE).
"""Report the installed versions, what is missing or incompatible, and the command that fixes it.

    python tools/doctor.py

Exits with 1 if something must be fixed; warnings do not fail. It needs nothing but Python, so
it also runs where torch or detectron2 is missing or broken: `gather` collects the facts, importing
the large packages in a process of their own, and each check is a pure function of these facts.
"""

from __future__ import annotations  # Python 3.8 then gets as far as the check that it is too old

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

# what it is for -> import names
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
# the distributions that may bring a module, where that is not its own name; the first is ours
DISTRIBUTIONS = {
    "PIL": ("pillow",),
    "cv2": OPENCV,
    "detectron2": ("detectron2", "sal-detectron2"),
    "hydra": ("hydra-core",),
    "mask_former": ("mask-former",),
    "panopticapi": ("panopticapi-lite", "panopticapi"),
}

# Imported for real, in this order; what comes later may fail because of what came before.
TRIED = ("torch", "torchvision", "cv2", "detectron2.engine", "mask_former")
PROBE = """
import importlib, json, sys
def tell(**facts):
    print("doctor:" + json.dumps(facts), flush=True)
for name in sys.argv[1:]:
    tell(trying=name)
    try:
        importlib.import_module(name)
        tell(done=name)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        tell(done=name, error=type(error).__name__ + ": " + lines[-1])
torch = sys.modules.get("torch")
if torch:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    tell(gpus=names, cuda=torch.version.cuda)
"""


@dataclass(frozen=True)
class Environment:
    """Facts about one interpreter and what is installed for it; every check reads only this."""

    python: tuple[int, ...] = sys.version_info[:3]
    executable: str = sys.executable
    site_packages: str = sysconfig.get_paths()["purelib"]
    modules: frozenset[str] = frozenset()  # those of MODULES that an import would find
    distributions: dict[str, str] = field(default_factory=dict)  # name -> version
    import_errors: dict[str, str] = field(default_factory=dict)  # of TRIED: last line of the error
    gpus: str = "-"
    detectron2_folder: str = ""
    detectron2_uses: frozenset[str] = frozenset()  # names that numpy or Pillow dropped: "np.bool"
    stray_tools: str = ""  # a package `tools` in site-packages that detectron2's wheel left there

    def version(self, module: str) -> str:
        """Return the version of a module, "" where it is missing."""
        if module not in self.modules:
            return ""
        names = DISTRIBUTIONS.get(module, (module,))
        return next((self.distributions[n] for n in names if n in self.distributions), "not known")

    def pip(self, *arguments: str) -> str:
        return " ".join([self.executable, "-m pip", *arguments])


@dataclass(frozen=True)
class Finding:
    """A problem, the command that fixes it, and whether it must be fixed."""

    text: str
    fix: str
    must: bool = True


def gather() -> Environment:
    """Collect the facts about the interpreter that runs this."""
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
    )


def installed_distributions() -> dict[str, str]:
    """Return the version of every installed distribution by its normalised name."""
    from importlib import metadata

    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a half removed package has none
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def try_imports(names: list[str]) -> tuple[dict[str, str], str]:
    """Import `names` in a process of their own; return the error lines by name, and the GPUs."""
    flags = [f"-{f}" for f, on in (("I", sys.flags.isolated), ("S", sys.flags.no_site)) if on]
    command = [sys.executable, *flags, "-c", PROBE, *names]
    # from this folder, as the tools see it: not from one where a checkout hides what is installed
    process = subprocess.run(command, capture_output=True, text=True, cwd=TOOLS)
    errors: dict[str, str] = {}
    gpus = "-"
    for line in process.stdout.splitlines():
        fact = json.loads(line[len("doctor:") :]) if line.startswith("doctor:") else {}
        if "trying" in fact:
            errors[fact["trying"]] = f"the interpreter died of it (exit code {process.returncode})"
        elif "error" in fact:
            errors[fact["done"]] = fact["error"]
        elif "done" in fact:
            del errors[fact["done"]]
        elif "gpus" in fact:
            seen = ", ".join(fact["gpus"]) or "none seen, so the CPU is used"
            gpus = f"{seen} (torch's CUDA: {fact['cuda'] or 'none'})"
    return errors, gpus


def dropped_names(folder: Path) -> frozenset[str]:
    """Return the names that numpy 1.24 or Pillow 10 dropped and that the files in `folder` use."""
    numpy, pillow = "bool|object|int|float|complex|str", "LINEAR|CUBIC|ANTIALIAS"
    dropped = re.compile(rf"\b(?:np\.(?:{numpy})|Image\.(?:{pillow}))\b")
    used: set[str] = set()
    for path in folder.rglob("*.py"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            used.update(dropped.findall(line.split("#")[0]))
    return frozenset(used)


def find_stray_tools(search_path: Iterable[str]) -> str:
    """Return the folder of the package `tools` that detectron2's wheel brings, "" where none is."""
    marks = ("__init__.py", "plain_train_net.py", "lazyconfig_train_net.py")
    for entry in map(Path, search_path):
        folder = entry / "tools"
        installed = entry.name in ("site-packages", "dist-packages")
        if installed and all((folder / name).is_file() for name in marks):
            return str(folder)
    return ""


def numbers(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version, (0, 0) where it is not known."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def check_python(env: Environment) -> Iterator[Finding]:
    if env.python < (3, 10):
        text = f"Python {'.'.join(map(str, env.python))} is too old, 3.10 or newer is needed"
        yield Finding(text, "make install PYTHON=python3.11  # or another newer one")


def check_missing(env: Environment) -> Iterator[Finding]:
    """One finding for the packages that share a use."""
    for uses, must in ((REQUIRED, True), (OPTIONAL, False)):
        for use, modules in uses.items():
            missing = [name for name in modules if name not in env.modules]
            if missing:
                names = " ".join(DISTRIBUTIONS.get(name, (name,))[0] for name in missing)
                fix = install_line(env, missing[0], names)
                yield Finding(f"missing: {names} ({use})", fix, must)


def install_line(env: Environment, module: str, distributions: str) -> str:
    """Return the line that installs what is missing and leaves the user's own torch alone."""
    torch = numbers(env.version("torch"))
    if module == "detectron2":  # its wheel is tagged for Python 3.10 and serves every Python
        any_python = "--no-deps --only-binary=:all: --python-version 3.10 --upgrade"
        target = f"--target {env.site_packages} --require-hashes -r {DETECTRON2_LOCK}"
        return f"{env.pip('install', any_python, target)} && rm -r {env.site_packages}/tools"
    if module == "mask_former":
        return env.pip("install --no-deps --editable", str(TOOLS.parent))
    if module in ("panopticapi", "cityscapesscripts"):  # what they require is stale
        return env.pip("install --no-deps", distributions)
    if module == "torchvision" and torch[0] == 2:
        return env.pip(f'install "torchvision==0.{torch[1] + 15}.*"')
    return env.pip("install", distributions)


def check_torch(env: Environment) -> Iterator[Finding]:
    """torch 2.N fits torchvision 0.(N+15): 2.6 and 0.21, 2.14 and 0.29."""
    torch, vision = numbers(env.version("torch")), numbers(env.version("torchvision"))
    if (0, 0) < torch < (2, 6):
        text = f"torch {env.version('torch')} is too old, 2.6 or newer is needed"
        yield Finding(text, env.pip("install --upgrade torch torchvision"))
    elif torch[0] == 2 and vision not in ((0, 0), (0, torch[1] + 15)):
        versions = f"torchvision {env.version('torchvision')} and torch {env.version('torch')}"
        fix = install_line(env, "torchvision", "torchvision")
        yield Finding(f"{versions} do not fit each other", fix)


def check_imports(env: Environment) -> Iterator[Finding]:
    """Report packages that exist and cannot be imported, unless another finding explains it."""
    headless = env.pip("install --force-reinstall --no-deps opencv-python-headless")
    vision = install_line(env, "torchvision", "torchvision")
    detectron2 = install_line(env, "detectron2", "detectron2")
    fixes = {
        "torch": env.pip("install --force-reinstall torch torchvision"),
        "torchvision": env.pip("uninstall -y torchvision;", vision),
        "cv2": env.pip("uninstall -y", *OPENCV, ";", headless),
        "detectron2.engine": f"build it again for this torch, or replace it: {detectron2}",
        "mask_former": "see the error; it may follow from what is named above",
    }
    explained = [f"No module named '{name}'" for name in MODULES if name not in env.modules]
    if any(check_torch(env)):
        explained.append("torchvision::")  # "operator torchvision::nms does not exist"
    if any(check_old_detectron2(env)):
        explained.append("has no attribute")
    for name, error in env.import_errors.items():
        if not any(text in error for text in explained):
            yield Finding(f"{name} is installed but cannot be used: {error}", fixes[name])
        explained.append(error)  # what imports it fails in the same words


def check_old_detectron2(env: Environment) -> Iterator[Finding]:
    """detectron2 0.6 and older use names that numpy 1.24 and Pillow 10 dropped."""
    numpy, pillow = numbers(env.version("numpy")), numbers(env.version("PIL"))
    back = {"np.bool"} if numpy >= (2, 0) else set()
    for module, prefix, too_new, fix in (
        ("numpy", "np.", numpy >= (1, 24), '"numpy<1.24"'),
        ("PIL", "Image.", pillow >= (10, 0), '"pillow<10"'),
    ):
        gone = sorted(name for name in env.detectron2_uses - back if name.startswith(prefix))
        if gone and too_new:
            text = f"{module} {env.version(module)} is too new for this detectron2, which uses"
            yield Finding(f"{text} {', '.join(gone)}", env.pip("install", fix))


def check_stray_tools(env: Environment) -> Iterator[Finding]:
    if env.stray_tools:
        text = f"{env.stray_tools} was left by detectron2's wheel: `import tools` finds it"
        yield Finding(text, f"rm -r {env.stray_tools}")


def check_setuptools(env: Environment) -> Iterator[Finding]:
    version = env.distributions.get("setuptools", "none")
    if "detectron2" in env.modules and not (0, 0) < numbers(version) < (81, 0):
        text = f"detectron2.model_zoo needs pkg_resources, of setuptools<81; found {version}"
        yield Finding(text, env.pip('install "setuptools<81"'), must=False)


def check_opencv(env: Environment) -> Iterator[Finding]:
    found = [name for name in OPENCV if name in env.distributions]
    if len(found) > 1:
        fix = env.pip("uninstall -y", *found, ";", env.pip("install", found[0]))
        yield Finding(f"{' and '.join(found)} overwrite each other's files", fix, must=False)


CHECKS = (
    *(check_python, check_missing, check_torch, check_old_detectron2),
    *(check_imports, check_stray_tools, check_setuptools, check_opencv),
)


def examine(env: Environment) -> list[Finding]:
    """Return all findings, errors first; on too old a Python nothing else is checked."""
    checks = CHECKS if env.python >= (3, 10) else (check_python,)
    findings = [finding for check in checks for finding in check(env)]
    return sorted(findings, key=lambda finding: not finding.must)


def print_table(env: Environment) -> None:
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
