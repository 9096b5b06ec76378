"""Every command and every piece of code that the docs show is one that works.

Commands are parsed by their own script's parser, configs are found, keys resolve; those that take
seconds are run.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image
from torch.distributed.run import get_args_parser

import mask_former  # noqa: F401  (registers everything)
from mask_former.config import get_mask_former_cfg
from mask_former.engine.setup import read_cfg

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "GETTING_STARTED.md", "CONTRIBUTING.md")),
    ROOT / "MODEL_ZOO.md",
    ROOT / "datasets" / "README.md",
    *sorted((ROOT / "model_zoo").glob("*.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
PROGRAMS = ("python", ".venv/bin/python", "torchrun", "make", "pip", "git", "sbatch", ".ci/run")


class Block(NamedTuple):
    page: str
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for _, kind, content in FENCE.findall(text):
            if kind == language:
                found.append(Block(str(page.relative_to(ROOT)), kind, content))
    return found


def logical_lines(text: str) -> Iterator[str]:
    """Lines with their continuations, without comments, with the block's own variables put in."""
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
    """A command's words; "[…]" around what may be left out and "…" for more of it go."""
    line = re.sub(r"(?<=\s)\[(?=--|KEY)|(?<=[\w.…])\](?=\s|$)", "", line)
    words = [word for word in shlex.split(line) if word not in ("…", "KEY", "VALUE")]
    while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=\S*", words[0]):  # variables of the environment
        words = words[1:]
    return words


COMMANDS = list(
    dict.fromkeys(
        (block.page, line)
        for language in ("", "bash", "sh")
        for block in blocks(language)
        for line in logical_lines(block.text)
        if words_of(line)
    )
)


def commands(*programs: str) -> list[tuple[str, list[str]]]:
    return [(page, words) for page, line in COMMANDS if (words := words_of(line))[0] in programs]


class Parsed(BaseException):
    """Raised in the place of what a script would do once its arguments are parsed."""


def parse(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a script makes of its arguments; it does nothing else."""
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
    pytest.fail(f"{script} has parsed nothing")


def check_config(args: argparse.Namespace) -> None:
    """The config file is there, if it is the project's; its keys and those given resolve."""
    name = str(getattr(args, "config_file", None) or "")
    if name.startswith(("configs/", "model_zoo/")):
        assert (ROOT / name).is_file(), f"there is no {name}"
    else:
        name = ""  # a placeholder, or a file of the user's own
    opts = [str(value) for value in getattr(args, "opts", None) or []]
    read_cfg(str(ROOT / name) if name else "", opts)


def script_of(page: str, words: list[str]) -> tuple[str, list[str]]:
    """The script that a command runs, and its arguments."""
    if words[0] == "torchrun":
        args = get_args_parser().parse_args(words[1:])
        return args.training_script, args.training_script_args
    return words[1], words[2:]


SCRIPTS = [
    (page, words)
    for page, words in commands("python", ".venv/bin/python", "torchrun")
    if words[1] != "-m"
]


def test_there_are_commands_on_the_pages() -> None:
    assert len(SCRIPTS) > 60
    assert {page for page, _ in SCRIPTS} >= {"README.md", "GETTING_STARTED.md", "docs/recipes.md"}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_each_line_of_a_block_of_commands_is_a_command(page: str, line: str) -> None:
    assert words_of(line)[0] in PROGRAMS


@pytest.mark.parametrize(
    ("page", "words"),
    SCRIPTS,
    ids=[f"{page}: {shlex.join(words)}"[:120] for page, words in SCRIPTS],
)
def test_a_script_takes_what_the_docs_give_it(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, arguments = script_of(page, words)
    assert (ROOT / script).is_file(), f"{page}: there is no {script}"
    if "argparse" not in (ROOT / script).read_text(encoding="utf-8"):
        assert not arguments or script.startswith(("datasets/", "demo/")), f"{script} takes nothing"
        if not script.startswith("datasets/"):
            return
    check_config(parse(script, arguments, monkeypatch))


def test_an_unknown_option_and_an_unknown_key_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.fail.Exception, match="refuses"):
        parse("tools/publish_weights.py", ["a", "b.safetensors", "--halve"], monkeypatch)
    args = argparse.Namespace(config_file="CONFIG", opts=["MODEL.NO_SUCH_KEY", "1"])
    with pytest.raises(KeyError, match="NO_SUCH_KEY"):
        check_config(args)
    with pytest.raises(AssertionError, match="there is no configs/no"):
        check_config(argparse.Namespace(config_file="configs/no.yaml", opts=[]))


def test_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page, words in commands("make"):
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: make {target}"
        for name in (word.split("=")[0] for word in words[1:] if "=" in word):
            assert f"$({name})" in makefile, f"{page}: make {name}="


def test_pip_is_given_extras_and_files_that_are_there() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for page, words in commands("pip"):
        for extra in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
            assert all(f'"{name}": [' in setup for name in extra.split(",")), f"{page}: {extra}"
        for option, file in pairwise(words):
            if option == "-r":
                assert (ROOT / file).is_file(), f"{page}: {file}"


def test_slurm_script_is_bash_and_runs_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    script = ROOT / "docs" / "examples" / "train.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    (line,) = [one for one in logical_lines(script.read_text()) if one.startswith("srun ")]
    words = shlex.split(line.replace("$SLURM_NNODES", "2").replace("$", ""))[1:]
    file, arguments = script_of("", words)
    args = parse(file, arguments, monkeypatch)
    check_config(args)
    assert args.resume


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.page)
def test_python_compiles_and_imports_what_is_there(block: Block) -> None:
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


# What takes seconds is run, as it stands on its page.


def own_data(folder: Path) -> None:
    for name, kind in (("A", "jpg"), ("B", "png")):
        (folder / name).mkdir()
        for index in range(2):
            shape = (16, 20, 3) if kind == "jpg" else (16, 20)
            pixels = np.random.default_rng(index).integers(2, size=shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.{kind}")
    (folder / "classes.txt").write_text("background\nobject\n")


RUN = {
    "README.md": "python tools/check_dataset.py --images A --labels B --classes classes.txt",
    "GETTING_STARTED.md": "python tools/doctor.py",
}


@pytest.mark.parametrize(("page", "command"), RUN.items())
def test_a_cheap_command_works(
    page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [" ".join(["python", *words[1:]]) for where, words in SCRIPTS if where == page]
    assert command in shown, f"{page} no longer shows it: take another"
    own_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    _, script, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert not end.value.code


def test_make_alone_lists_the_targets() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "make docs" in shown and "make demo" in shown
