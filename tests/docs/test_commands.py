"""The commands and the code that the docs show work.

The parser of its script parses each command, in a block or in backticks; configs and their keys
must exist. Some commands that take seconds are run.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch.distributed.run import get_args_parser

import mask_former  # noqa: F401  (registers everything)
from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.loading import read_cfg
from mask_former.utils.weight_files import read_checkpoint
from tests.helpers.pages import PAGES, ROOT, Block, blocks, blocks_of, name_of, text_of

SHELL = {"", "bash", "sh"}
OTHER_LANGUAGES = {"python", "yaml", "json", "text", "nginx"}
PROGRAMS = (
    *("python", ".venv/bin/python", "torchrun", "make", "pip", "git"),
    *("sbatch", ".ci/run", "export"),
)
COMMAND = re.compile(rf"\s*(?:[A-Z_0-9]+=\S+ )*(?:{'|'.join(map(re.escape, PROGRAMS))})\s")
CODE = re.compile(r"`+([^`]+)`+")
WITHOUT_COMMANDS = {
    "CHANGELOG.md",  # old entries show commands of their release
    *("docs/index.md", "docs/paper_to_code.md", "docs/predict.md"),
    *(name_of(page) for page in PAGES if page.parent.name == "api"),
    "tests/golden/README.md",
}


def logical_lines(text: str) -> Iterator[str]:
    """Yield lines with their continuations, without comments, with the block's variables set."""
    variables: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        if match := re.fullmatch(r"([A-Z]+)=(\S+)", line):
            variables[match[1]] = match[2]
        elif line:
            yield line


def words_of(line: str) -> list[str]:
    """Split a command into words, without "[…]" around optional arguments and without "…"."""
    line = re.sub(r"(?<=\s)\[(?=--|KEY)|(?<=[\w.…])\](?=\s|$)", "", line)
    words = [word for word in shlex.split(line) if word not in ("…", "KEY", "VALUE")]
    while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=\S*", words[0]):  # variables of the environment
        words = words[1:]
    return words


def lines_of(page: Path) -> Iterator[str]:
    """Yield the commands of a page: the lines of its blocks, and commands in backticks."""
    for block in blocks_of(page):
        if block.language in SHELL:
            yield from filter(words_of, logical_lines(block.text))
    for code in CODE.findall(text_of(page)):
        if COMMAND.match(code):
            yield " ".join(code.split())


COMMANDS = list(
    dict.fromkeys(
        (name_of(page), line)
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for line in lines_of(page)
    )
)


def commands(*programs: str) -> list[tuple[str, list[str]]]:
    """List (page, words) of all commands that run one of these programs."""
    return [(page, words) for page, line in COMMANDS if (words := words_of(line))[0] in programs]


class Parsed(BaseException):
    """Raised after a script has parsed its arguments, so that it does nothing else."""


def parse(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Let a script parse its arguments, without running it further."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **options):
        raise Parsed(original(self, *args, **options))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except Parsed as parsed:
        return parsed.args[0]
    except SystemExit as error:
        pytest.fail(f"{script} refuses {shlex.join(arguments)} (exit code {error.code})")
    pytest.fail(f"{script} did not parse its arguments")


def check_config(args: argparse.Namespace) -> None:
    """Check that the config file exists if it is the project's, and that all keys are known."""
    name = str(getattr(args, "config_file", None) or "")
    if name.startswith(("configs/", "docs/", "model_zoo/")):
        assert (ROOT / name).is_file(), f"there is no {name}"
    else:
        name = ""  # a placeholder, or a user's file
    opts = [str(value) for value in getattr(args, "opts", None) or []]
    read_cfg(str(ROOT / name) if name else "", opts)


def script_of(page: str, words: list[str]) -> tuple[str, list[str]]:
    """Return the script that a command runs, and its arguments."""
    if words[0] == "torchrun":
        args = get_args_parser().parse_args(words[1:])
        return args.training_script, args.training_script_args
    return words[1], words[2:]


SCRIPTS = [
    (page, words)
    for page, words in commands("python", ".venv/bin/python", "torchrun")
    if words[1] != "-m"
]


def test_all_pages_except_those_listed_have_commands() -> None:
    assert len(SCRIPTS) > 60
    assert {name_of(page) for page in PAGES} - {page for page, _ in COMMANDS} == WITHOUT_COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_command_is_in_a_block_that_these_tests_do_not_read(page: Path) -> None:
    languages = {block.language for block in blocks_of(page) if block.language[:1] != "{"}
    assert languages <= SHELL | OTHER_LANGUAGES
    indented = re.findall(r"^(?: {4}|\t).+", text_of(page), re.MULTILINE)
    assert not [line for line in indented if COMMAND.match(line)], "put it between ```"


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_each_line_of_a_block_of_commands_is_a_command(page: str, line: str) -> None:
    assert words_of(line)[0] in PROGRAMS


@pytest.mark.parametrize(
    ("page", "words"),
    SCRIPTS,
    ids=[f"{page}: {shlex.join(words)}"[:120] for page, words in SCRIPTS],
)
def test_a_script_accepts_the_arguments_in_the_docs(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, arguments = script_of(page, words)
    assert (ROOT / script).is_file(), f"{page}: there is no {script}"
    if not re.search("argparse|mask_former.cli", (ROOT / script).read_text(encoding="utf-8")):
        has_arguments = script.startswith(("datasets/", "demo/"))
        assert not arguments or has_arguments, f"{script} has no arguments"
        if not script.startswith("datasets/"):
            return
    if script == "demo/app.py":
        pytest.importorskip("gradio", reason="make app installs it (requirements/app.txt)")
    check_config(parse(script, arguments, monkeypatch))


def test_an_unknown_option_and_an_unknown_key_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.fail.Exception, match="refuses"):
        parse("tools/publish_weights.py", ["a", "b.safetensors", "--halve"], monkeypatch)
    args = argparse.Namespace(config_file="CONFIG", opts=["MODEL.NO_SUCH_KEY", "1"])
    with pytest.raises(KeyError, match="NO_SUCH_KEY"):
        check_config(args)
    for name in ("configs/no.yaml", "docs/examples/no.yaml", "model_zoo/no.yaml"):
        with pytest.raises(AssertionError, match=f"there is no {name}"):
            check_config(argparse.Namespace(config_file=name, opts=[]))


def test_modules_that_are_run_exist() -> None:
    modules = [(page, words[2]) for page, words in commands("python") if words[1] == "-m"]
    assert {page for page, _ in modules} >= {"CONTRIBUTING.md", "datasets/README.md"}
    for page, module in modules:
        assert importlib.util.find_spec(module), f"{page}: python -m {module}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page, words in commands("make"):
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: make {target}"
        for name in (word.split("=")[0] for word in words[1:] if "=" in word):
            assert f"$({name})" in makefile, f"{page}: make {name}="


def test_pip_installs_extras_and_files_that_exist() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for page, words in commands("pip"):
        for extra in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
            assert all(f'"{name}": [' in setup for name in extra.split(",")), f"{page}: {extra}"
        for option, file in pairwise(words):
            if option == "-r":
                assert (ROOT / file).is_file(), f"{page}: {file}"


@pytest.mark.subprocess
def test_the_slurm_script_is_valid_bash_and_runs_a_valid_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = ROOT / "docs" / "examples" / "train.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    (line,) = [one for one in logical_lines(script.read_text()) if one.startswith("srun ")]
    words = shlex.split(line.replace("$SLURM_NNODES", "2").replace("$", ""))[1:]
    file, arguments = script_of("", words)
    args = parse(file, arguments, monkeypatch)
    check_config(args)
    assert args.resume


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.page)
def test_python_code_compiles_and_imports_existing_names(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level:
            continue
        if str(node.module).startswith("mask_former"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.page)
def test_yaml_has_known_keys(block: Block) -> None:
    settings = yaml.safe_load(block.text)
    settings.pop("_BASE_", None)
    cfg = get_mask_former_cfg()
    cfg.merge_from_other_cfg(type(cfg)(settings))


# Commands that take seconds are run exactly as on their page.


def write_files(folder: Path) -> None:
    """Write the input files of the commands below, with the names that the pages use."""
    for name in ("A", "B", "output/mine", "output/camvid_semantic", "model_zoo"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(2):
        pixels = random.integers(256, size=(48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "A" / f"{index}.jpg")
        Image.fromarray(pixels[..., 0] // 128).save(folder / "B" / f"{index}.png")
    Image.fromarray(pixels).save(folder / "street.jpg")
    (folder / "classes.txt").write_text("background\nobject\n")

    images = [{"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64} for i in range(2)]
    outline = {"bbox": [4, 4, 20, 20], "segmentation": [[4, 4, 24, 4, 24, 24]], "area": 200}
    objects = [{"id": i, "image_id": i, "category_id": 1, "iscrowd": 0} | outline for i in range(2)]
    classes = [{"id": 1, "name": "object"}]
    own = {"images": images, "annotations": objects, "categories": classes}
    (folder / "x.json").write_text(json.dumps(own))

    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "CONFIG").write_text("_BASE_: configs/shapes/maskformer_panoptic_tiny.yaml\n")
    mine = {"kind": "sem_seg", "image_root": "../../A", "sem_seg_root": "../../B"}
    table = {"datasets": {"mine": mine}, "categories": [{"id": 0, "name": "a"}, *classes]}
    (folder / "output" / "mine" / "custom_table.json").write_text(json.dumps(table))
    (folder / "output" / "mine" / "config.yaml").write_text(
        "_BASE_: ../../configs/custom/maskformer_semantic.yaml\n"
        "DATASETS: {TABLES: [custom_table.json], TRAIN: [mine]}\n"
        "MODEL: {SEM_SEG_HEAD: {NUM_CLASSES: 2}}\n"
    )

    weights = read_checkpoint(ROOT / "model_zoo" / "camvid_semantic.safetensors")
    torch.save(weights, folder / "output" / "camvid_semantic" / "model_final.pth")
    card = ROOT / "model_zoo" / "camvid_semantic.yaml"
    (folder / "model_zoo" / card.name).write_text(card.read_text())


RUN = [  # page, command, a file that it writes
    ("README.md", "python tools/check_dataset.py --images A --labels B --classes classes.txt", ""),
    ("GETTING_STARTED.md", "python tools/doctor.py", ""),
    ("GETTING_STARTED.md", "python tools/analyze_model.py --config-file CONFIG --size 512", ""),
    ("docs/own_data.md", "python tools/check_dataset.py --images A --json x.json", ""),
    (
        "docs/own_data.md",
        "python tools/visualize_data.py --config-file output/mine/config.yaml --output drawn "
        "--num 20",
        "drawn/1.png",
    ),
    (
        "docs/own_data.md",
        "python datasets/prepare_shapes.py --num-train 20 --num-val 1 --output datasets/shapes20",
        "datasets/shapes20/panoptic_val.json",
    ),
    ("docs/predict_command.md", "python demo/demo.py --input street.jpg", "output/demo/street.png"),
    (
        "model_zoo/camvid_semantic.md",
        "python tools/publish_weights.py output/camvid_semantic/model_final.pth "
        "model_zoo/camvid_semantic.safetensors --config-file model_zoo/camvid_semantic.yaml",
        "model_zoo/camvid_semantic.safetensors",
    ),
]


@pytest.mark.parametrize(("page", "command", "made"), RUN)
def test_a_cheap_command_works(
    page: str, command: str, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [" ".join(["python", *words[1:]]) for where, words in SCRIPTS if where == page]
    assert command in shown, f"{page} no longer shows this command: update RUN"
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    _, script, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    # detectron2's logger would keep writing to this test's standard output in later tests
    monkeypatch.setattr("detectron2.utils.logger.setup_logger", lambda **kwargs: None)
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        DatasetCatalog.pop("mine", None)
        MetadataCatalog.pop("mine", None)
    assert not end.value.code
    assert (tmp_path / made).exists()


@pytest.mark.subprocess
def test_make_alone_lists_the_targets() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "make docs" in shown and "make demo" in shown
