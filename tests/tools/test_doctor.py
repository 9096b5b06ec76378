"""tools/doctor.py: findings in simulated environments, and a run in a bare interpreter."""

import subprocess
import sys
from dataclasses import replace

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script

DOCTOR = ROOT / "tools" / "doctor.py"

doctor = load_script("tools/doctor.py")

HEALTHY = doctor.Environment(
    python=(3, 11, 7),
    executable="python",
    site_packages="/site",
    modules=frozenset(doctor.MODULES),
    distributions={
        "torch": "2.14.1",
        "torchvision": "0.29.1+cu130",
        "numpy": "2.4.6",
        "pillow": "13.0.0",
        "sal-detectron2": "0.7.2",
        "opencv-python-headless": "5.0.0.93",
        "setuptools": "80.10.2",
    },
)


def with_versions(**versions):
    """Return the healthy environment with other versions; `_` in a name stands for `-`."""
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    return replace(HEALTHY, distributions={**HEALTHY.distributions, **named})


def without(*modules):
    return replace(HEALTHY, modules=HEALTHY.modules - set(modules))


def only_finding(env):
    findings = doctor.examine(env)
    assert len(findings) == 1, findings
    return findings[0]


def test_a_healthy_environment_has_no_findings():
    assert doctor.examine(HEALTHY) == []


def test_an_old_python_is_the_only_finding_however_much_else_is_missing():
    finding = only_finding(doctor.Environment(python=(3, 9, 18)))
    assert finding.must and "Python 3.9.18 is too old" in finding.text


def test_the_fix_of_a_missing_detectron2_removes_what_the_pinned_wheel_brings_besides():
    finding = only_finding(without("detectron2"))
    assert finding.must and finding.text.startswith("missing: detectron2")
    lock = ROOT / "requirements" / "detectron2.txt"
    assert finding.fix == (
        "python -m pip install --no-deps --only-binary=:all: --python-version 3.10 --upgrade "
        f"--target /site --require-hashes -r {lock} && rm -r /site/tools /site/detectron2/_C*"
    )
    pin = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
    assert f"sal-detectron2==0.7.2 --hash=sha256:{pin}" in lock.read_text()


def test_missing_packages_of_one_purpose_are_one_finding_with_their_names_on_pypi():
    finding = only_finding(without("omegaconf", "hydra", "fvcore"))
    assert finding.must and finding.fix == "python -m pip install fvcore hydra-core omegaconf"


@pytest.mark.parametrize("module", ["timm", "panopticapi", "cityscapesscripts"])
def test_missing_optional_packages_are_warnings(module):
    finding = only_finding(without(module))
    assert not finding.must and module in finding.text


@pytest.mark.parametrize("module", ["panopticapi", "cityscapesscripts"])
def test_packages_with_stale_requirements_are_installed_without_them(module):
    assert "--no-deps" in only_finding(without(module)).fix


def test_the_fix_of_a_missing_torchvision_installs_the_version_for_the_installed_torch():
    finding = only_finding(without("torchvision"))
    assert finding.must and finding.fix == 'python -m pip install "torchvision==0.29.*"'


@pytest.mark.parametrize(
    ("torch", "torchvision"), [("2.6.0", "0.21.0"), ("2.10.0", "0.25.0"), ("2.14.1+cpu", "0.29.0")]
)
def test_compatible_torch_and_torchvision_pass(torch, torchvision):
    assert doctor.examine(with_versions(torch=torch, torchvision=torchvision)) == []


@pytest.mark.parametrize(
    ("torch", "torchvision", "fitting"),
    [("2.14.1", "0.28.0", "0.29"), ("2.7.0", "0.21.2", "0.22"), ("2.6.0", "0.29.1", "0.21")],
)
def test_incompatible_torch_and_torchvision_are_found(torch, torchvision, fitting):
    env = with_versions(torch=torch, torchvision=torchvision)
    error = "RuntimeError: operator torchvision::nms does not exist"
    env = replace(env, import_errors={"torchvision": error, "detectron2.engine": error})
    finding = only_finding(env)  # the import errors are consequences, not further findings
    assert finding.must and torch in finding.text and torchvision in finding.text
    assert finding.fix == f'python -m pip install "torchvision=={fitting}.*"'


def test_a_torch_older_than_setup_py_requires_is_found():
    finding = only_finding(with_versions(torch="2.5.1", torchvision="0.20.1"))
    assert finding.must and "2.5.1 is too old" in finding.text
    assert '"torch>=2.6"' in (ROOT / "setup.py").read_text()


def test_a_detectron2_that_cannot_be_imported_is_found_with_the_errors_last_line():
    error = "ImportError: detectron2/_C.so: undefined symbol: _ZN2at"
    finding = only_finding(replace(HEALTHY, import_errors={"detectron2.engine": error}))
    assert finding.must and error in finding.text and "--require-hashes" in finding.fix


def test_an_error_that_breaks_several_imports_is_one_finding():
    error = "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"
    errors = {"cv2": error, "detectron2.engine": error, "mask_former": error}
    finding = only_finding(replace(HEALTHY, import_errors=errors))
    assert finding.text.startswith("cv2") and "opencv-python-headless" in finding.fix


def test_an_import_that_fails_because_of_a_missing_package_is_not_another_finding():
    env = without("fvcore")
    errors = {"detectron2.engine": "ModuleNotFoundError: No module named 'fvcore'"}
    assert "missing: fvcore" in only_finding(replace(env, import_errors=errors)).text


@pytest.mark.parametrize(
    ("used", "numpy", "found"),
    [
        ("np.bool", "1.23.5", False),
        ("np.bool", "1.24.0", True),
        ("np.bool", "1.26.4", True),
        ("np.bool", "2.0.0", False),  # numpy 2 has the name again
        ("np.object", "2.4.6", True),
    ],
)
def test_numpy_is_too_new_for_a_detectron2_that_uses_names_it_removed(used, numpy, found):
    env = replace(with_versions(numpy=numpy), detectron2_uses=frozenset([used]))
    findings = doctor.examine(env)
    assert len(findings) == found
    if found:
        assert findings[0].must and numpy in findings[0].text and used in findings[0].text
        assert "numpy<1.24" in findings[0].fix


@pytest.mark.parametrize(("pillow", "found"), [("9.5.0", False), ("10.0.0", True)])
def test_pillow_is_too_new_for_a_detectron2_that_uses_names_it_removed(pillow, found):
    env = replace(with_versions(pillow=pillow), detectron2_uses=frozenset(["Image.LINEAR"]))
    error = "AttributeError: module 'PIL.Image' has no attribute 'LINEAR'"
    findings = doctor.examine(
        replace(env, import_errors={"detectron2.engine": error} if found else {})
    )
    assert len(findings) == found
    if found:
        assert findings[0].must and "pillow<10" in findings[0].fix


def test_removed_names_are_found_in_code_but_not_in_comments_or_longer_names(tmp_path):
    (tmp_path / "data").mkdir()
    code = "mask.astype(np.bool)\nnp.bool_(1)  # np.object\nnp.float32, Image.BILINEAR\n"
    (tmp_path / "data" / "masks.py").write_text(code)
    assert doctor.dropped_names(tmp_path) == {"np.bool"}
    (tmp_path / "transform.py").write_text("def f(interp=Image.LINEAR): ...\n")
    assert doctor.dropped_names(tmp_path) == {"np.bool", "Image.LINEAR"}


def test_a_stray_tools_package_must_be_removed():
    finding = only_finding(replace(HEALTHY, stray_tools="/site/tools"))
    assert finding.must and finding.fix == "rm -r /site/tools"


def make_tools(folder, *names):
    (folder / "tools").mkdir(parents=True)
    for name in names:
        (folder / "tools" / name).touch()


def test_the_binary_of_detectron2s_wheel_must_be_removed_and_that_of_a_build_is_kept():
    binary = "/site/detectron2/_C.cpython-310-x86_64-linux-gnu.so"
    finding = only_finding(replace(HEALTHY, binaries=(binary,)))
    assert finding.must and binary in finding.text and finding.fix == f"rm {binary}"
    versions = {name: v for name, v in HEALTHY.distributions.items() if name != "sal-detectron2"}
    own = {**versions, "detectron2": "0.6"}
    assert doctor.examine(replace(HEALTHY, binaries=(binary,), distributions=own)) == []


def test_the_stray_tools_package_is_recognized_by_its_files(tmp_path):
    files = ("__init__.py", "plain_train_net.py", "lazyconfig_train_net.py", "train_net.py")
    make_tools(tmp_path / "site-packages", *files)
    found = doctor.find_stray_tools(["", str(tmp_path / "site-packages")])
    assert found == str(tmp_path / "site-packages" / "tools")


def test_other_packages_named_tools_are_left_alone(tmp_path):
    make_tools(tmp_path / "site-packages", "__init__.py", "train_net.py")
    make_tools(
        tmp_path / "checkout", "__init__.py", "plain_train_net.py", "lazyconfig_train_net.py"
    )
    search_path = [tmp_path / "site-packages", tmp_path / "checkout", ROOT]
    assert doctor.find_stray_tools(map(str, search_path)) == ""


@pytest.mark.parametrize(("setuptools", "warned"), [("80.9.0", False), ("81.0.0", True)])
def test_a_setuptools_without_pkg_resources_is_a_warning(setuptools, warned):
    findings = doctor.examine(with_versions(setuptools=setuptools))
    assert [finding.must for finding in findings] == [False] * warned


def test_two_opencvs_are_a_warning_that_names_both():
    finding = only_finding(with_versions(opencv_python="4.11.0"))
    assert not finding.must and "opencv-python-headless and opencv-python" in finding.text


@pytest.mark.parametrize("name", ["opencv-python", "opencv-contrib-python"])
def test_another_opencv_distribution_is_accepted(name):
    others = {k: v for k, v in HEALTHY.distributions.items() if not k.startswith("opencv")}
    assert doctor.examine(replace(HEALTHY, distributions={**others, name: "4.11.0"})) == []


def test_errors_come_before_warnings():
    findings = doctor.examine(without("timm", "scipy"))
    assert [finding.must for finding in findings] == [True, False]


def test_imports_run_in_a_process_and_the_last_line_of_an_error_is_kept(tmp_path, monkeypatch):
    (tmp_path / "fine.py").write_text("print('noise')")
    (tmp_path / "broken.py").write_text("raise ImportError('first line\\nlast line')")
    (tmp_path / "deadly.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    errors, gpus = doctor.try_imports(["fine", "broken", "deadly"])
    assert errors == {
        "broken": "ImportError: last line",
        "deadly": "the interpreter crashed (exit code 7)",
    }
    assert gpus == "-"


@pytest.mark.parametrize(
    ("env", "code"), [(HEALTHY, 0), (without("timm"), 0), (without("torch"), 1)]
)
def test_the_exit_code_is_1_only_if_there_is_an_error(env, code, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "gather", lambda: env)
    assert doctor.main() == code
    assert ("nothing is missing" in capsys.readouterr().out) == (code == 0)


@pytest.mark.subprocess
@pytest.mark.parametrize("flags", [("-S", "-E"), ("-I", "-S")])
def test_it_runs_in_a_bare_interpreter_and_lists_missing_packages(flags, tmp_path):
    command = [sys.executable, *flags, str(DOCTOR)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 1 and process.stderr == ""
    for name in ("torch", "detectron2", "numpy", "omegaconf"):
        assert name in process.stdout.split("FIX", 1)[1]
