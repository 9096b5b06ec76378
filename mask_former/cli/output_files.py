"""Where what is made of each input goes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "PICTURE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "OutputPlan",
    "Outputs",
    "check_apart",
    "distinct_names",
    "plan_outputs",
    "relative_names",
]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".avi")

Outputs = dict[str, Path]
"""The file of each kind of result of one input."""


@dataclass(frozen=True)
class OutputPlan:
    """The files of each input, made from its name when they are asked for."""

    names: list[str]
    """One an input, no two alike."""
    folder: Path
    endings: dict[str, str]
    """Of the files in the folder, by kind."""
    single: Path | None = None
    """The one file that is written instead."""

    def files(self, name: str) -> Outputs:
        """Those of an input, by kind."""
        return {k: self.single or self.folder / f"{name}{e}" for k, e in self.endings.items()}


def plan_outputs(
    inputs: Sequence[Path], kinds: Sequence[str], output: str, suffixes: tuple[str, ...]
) -> OutputPlan:
    """The files for each input; makes the folder they go to.

    In a folder, ``a/street.jpg`` becomes ``street.png``, or with several kinds ``street_KIND.png``;
    where another input has that name, ``street_2.png`` and so on.

    Args:
        inputs: their names without suffix become the outputs'; none of them is ever replaced.
        kinds: of results, one file each.
        output: a folder, or one file that ends in one of ``suffixes``.
        suffixes: of files that can be written; those in a folder get the first.

    Raises:
        ValueError: one file for several outputs, a file where a folder must be, or an output that
            would replace an input.
    """
    path = Path(output).expanduser()
    suffix = "" if path.is_dir() else path.suffix.lower()
    names = distinct_names(file.stem for file in inputs)
    if suffix in suffixes:
        if len(inputs) > 1 or len(kinds) > 1:
            raise ValueError(
                f"--output {output} is one file, but {len(inputs)} inputs × {len(kinds)} kinds of "
                "results are to be drawn: give a folder."
            )
        plan = OutputPlan(names, path.parent, dict.fromkeys(kinds, ""), path)
    elif suffix in PICTURE_SUFFIXES + VIDEO_SUFFIXES or path.is_file():
        raise ValueError(
            f"--output {output} is neither a folder nor a file that can be written here "
            f"({', '.join(suffixes)})."
        )
    else:
        several = len(kinds) > 1
        endings = {kind: f"_{kind}{suffixes[0]}" if several else suffixes[0] for kind in kinds}
        plan = OutputPlan(names, path, endings)
    _check_inputs_stay(inputs, plan, output)
    plan.folder.mkdir(parents=True, exist_ok=True)
    return plan


def _check_inputs_stay(inputs: Sequence[Path], plan: OutputPlan, output: str) -> None:
    there = {os.path.realpath(file): file for file in inputs}
    for name in plan.names:
        for file in plan.files(name).values():
            replaced = there.get(os.path.realpath(file))
            if replaced is not None:
                raise ValueError(f"--output {output} would replace the input {replaced}.")


def distinct_names(names: Iterable[str]) -> list[str]:
    """The names; one that comes again gets _2, _3 …"""
    taken: dict[str, None] = {}
    result = []
    for name in names:
        candidate, number = name, 1
        while candidate.lower() in taken:  # some file systems do not tell a.png from A.png
            number += 1
            candidate = f"{name}_{number}"
        taken[candidate.lower()] = None
        result.append(candidate)
    return result


def relative_names(files: Sequence[Path], folder: Path) -> Iterator[str]:
    """The paths within a folder, with "/" and without suffix: the same in every run.

    Raises:
        ValueError: two files differ in their suffix only.
    """
    taken: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(folder).with_suffix("").as_posix()
        other = taken.setdefault(name.lower(), file)  # some file systems take a and A for one
        if other is not file:
            raise ValueError(
                f"{other} and {file} would both be saved as {name}: move or rename one of them."
            )
        yield name


def check_apart(inputs: Iterable[Path], output: str | Path) -> None:
    """See that no input lies where results are written in folders of their own.

    Raises:
        ValueError: one does, or there is a file instead of a folder.
    """
    folder = Path(output).expanduser()
    if folder.is_file() or (not folder.is_dir() and folder.suffix in PICTURE_SUFFIXES):
        raise ValueError(f"--output {output} is a file; all formats but overlay need a folder.")
    base = os.path.realpath(folder)
    for file in inputs:
        path = os.path.realpath(file)
        if path.startswith(base + os.sep) and os.path.dirname(path) != base:
            raise ValueError(
                f"The input {file} lies in a subfolder of --output {output}, where results could "
                "replace it: give another folder."
            )
