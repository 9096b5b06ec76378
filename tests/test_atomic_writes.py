"""Every file that a command writes passes through mask_former/utils/atomic_files.py.

A direct writer is recognised by its target: the temporary file that ``replace_file`` passes to its
callback is called ``part``, and memory is called ``buffer``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

SOURCES = sorted(
    file
    for room in ("mask_former", "tools", "demo", "datasets")
    for file in (ROOT / room).rglob("*.py")
)
METHODS = {"write_text", "write_bytes", "touch"}
"""Methods of a path that write it."""
FUNCTIONS = {
    *("save", "savez", "savez_compressed", "savefig", "save_file", "imsave", "imwrite", "tofile"),
    *("dump", "VideoWriter", "copy", "copy2", "copyfile", "copyfileobj", "make_archive"),
    *("NamedTemporaryFile", "mkstemp", "truncate"),
}
"""Functions and methods that write one of their arguments."""
TARGETS = {"part", "buffer", "file"}
"""Names of targets that are safe; how a ``file`` was opened is looked at where it was."""

DIRECT = {
    ("demo/onnx_example.py", "save"): "runs without this package",
    (
        "demo/page/image_results.py",
        "make_archive",
    ): "in a new folder of its own",
    ("demo/page/image_results.py", "save"): "Result.save, which is atomic",
    ("mask_former/cli/media.py", "VideoWriter"): "the part is its text: str(part)",
    ("mask_former/engine/writers.py", "open"): "appends to metrics.json",
    ("mask_former/engine/writers.py", "truncate"): "cuts off an incomplete line of metrics.json",
    ("mask_former/engine/folder_lock.py", "fdopen"): "the lock has to be one file",
    ("mask_former/results/records.py", "open"): "appends records",
    ("tools/benchmark_mappers.py", "save"): "into a temporary folder",
    ("tools/install.py", "write_text"): "runs without this package",
    ("tools/lock.py", "write_text"): "files under version control, by their developer",
    ("tools/matrix.py", "open"): "runs without this package",
    ("tools/matrix.py", "write_text"): "runs without this package",
    ("tools/profiling/stopwatch.py", "write_text"): "a setting of the system",
    ("tools/release.py", "copy"): "into a temporary folder",
    ("tools/release.py", "write_text"): "into a temporary environment",
}
"""Writers that stay, by file and function, each with its reason."""


def direct_writers(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and function of each call that may write a file directly."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        values = [ast.unparse(value) for value in (*node.args, *(k.value for k in node.keywords))]
        if isinstance(node.func, ast.Attribute):
            values.append(ast.unparse(node.func.value))
        if _writes(name, node) and not TARGETS.intersection(values):
            yield node.lineno, name


def _writes(name: str, node: ast.Call) -> bool:
    if name in ("open", "fdopen"):
        words = [a.value for a in (*node.args, *(k.value for k in node.keywords))
                 if isinstance(a, ast.Constant) and isinstance(a.value, str)]  # fmt: skip
        return any(set(word) <= set("rwaxbt+") and set(word) & set("wax+") for word in words)
    if name in ("dump", "copy"):  # with one argument, to a text; without one, of a dict
        return len(node.args) > 1
    if name == "VideoWriter":  # OpenCV's; ours has the same name
        return isinstance(node.func, ast.Attribute)
    return name in METHODS or name in FUNCTIONS


@pytest.mark.parametrize("file", [str(file.relative_to(ROOT)) for file in SOURCES])
def test_no_source_writes_a_file_directly(file: str) -> None:
    if file == "mask_former/utils/atomic_files.py":
        return
    found = [
        f"{file}:{line}: {name} writes a file directly; use mask_former.utils.atomic_files"
        for line, name in direct_writers((ROOT / file).read_text(encoding="utf-8"))
        if (file, name) not in DIRECT
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("file", "name"), DIRECT)
def test_every_exception_is_still_needed(file: str, name: str) -> None:
    assert name in [found for _, found in direct_writers(Path(ROOT / file).read_text())]


@pytest.mark.parametrize(
    "code",
    [
        "{}.write_text(text)",
        "{}.write_bytes(b'')",
        "open({}, 'w')",
        "{}.open('ab')",
        "{}.open(mode='x')",
        "PathManager.open({}, 'w')",
        "image.save({})",
        "torch.save(content, {})",
        "json.dump(content, {})",
        "np.savez({}, a=a)",
        "cv2.VideoWriter({}, code, 25, size)",
        "figure.savefig({}, dpi=100)",
        "shutil.copyfile(source, {})",
    ],
)
def test_a_writer_is_found_unless_it_writes_the_temporary_file(code: str) -> None:
    for path in ("path", "(folder / 'a')", "os.path.join(folder, 'a.json')"):
        assert list(direct_writers(code.format(path)))
    assert not list(direct_writers(code.format("part")))


@pytest.mark.parametrize(
    "code", ["path.open()", "path.open('rb')", "yaml.safe_dump(x)", "cfg.dump()", "a.copy()"]
)
def test_a_reader_is_not_found(code: str) -> None:
    assert not list(direct_writers(code))
