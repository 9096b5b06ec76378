"""Output paths for each input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "DRAWN_IMAGE_SUFFIXES",
    "DRAWN_VIDEO_SUFFIXES",
    "OutputFiles",
    "OutputPlan",
    "check_apart",
    "distinct_names",
    "plan_outputs",
    "relative_names",
]

DRAWN_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
DRAWN_VIDEO_SUFFIXES = (".mp4", ".avi")

OutputFiles = dict[str, Path]
"""The output file of each kind of result of one input."""


@dataclass(frozen=True)
class OutputPlan:
    """Output files of any number of inputs, derived from their names."""

    names: list[str]
    """A distinct name for each input."""
    folder: Path
    endings: dict[str, str]
    """Endings of the files in the folder, by kind of result."""
    single: Path | None = None
    """The only output file, if ``--output`` is a file instead of a folder."""

    def files(self, name: str) -> OutputFiles:
        """Return the output files of an input."""
        return {k: self.single or self.folder / f"{name}{e}" for k, e in self.endings.items()}


def plan_outputs(
    inputs: Sequence[Path], kinds: Sequence[str], output: str, suffixes: tuple[str, ...]
) -> OutputPlan:
    """Choose the output files of each input, and create their folder.

    In a folder, ``a/street.jpg`` becomes ``street.png``, or with several kinds ``street_KIND.png``;
    if another input has that name, ``street_2.png`` and so on.

    Args:
        inputs: Input files; the outputs get their names without suffix, and never replace them.
        kinds: Kinds of results, one file each.
        output: A folder, or one file that ends in one of ``suffixes``.
        suffixes: Suffixes that can be written; files in a folder get the first.

    Raises:
        ValueError: If ``output`` is one file but there are several outputs, is a file of another
            kind, or would replace an input.
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
    elif suffix in DRAWN_IMAGE_SUFFIXES + DRAWN_VIDEO_SUFFIXES or path.is_file():
        raise ValueError(
            f"--output {output} is neither a folder nor a file that can be written here "
            f"({', '.join(suffixes)})."
        )
    else:
        several = len(kinds) > 1
        endings = {kind: f"_{kind}{suffixes[0]}" if several else suffixes[0] for kind in kinds}
        plan = OutputPlan(names, path, endings)
    _check_inputs_kept(inputs, plan, output)
    plan.folder.mkdir(parents=True, exist_ok=True)
    return plan


def _check_inputs_kept(inputs: Sequence[Path], plan: OutputPlan, output: str) -> None:
    existing = {os.path.realpath(file): file for file in inputs}
    for name in plan.names:
        for file in plan.files(name).values():
            replaced = existing.get(os.path.realpath(file))
            if replaced is not None:
                raise ValueError(
                    f"--output {output} would replace the input {replaced}: give another output."
                )


def distinct_names(names: Iterable[str]) -> list[str]:
    """Return the names, with _2, _3 … added to those that occur again."""
    taken: dict[str, None] = {}
    result = []
    for name in names:
        candidate, number = name, 1
        while candidate.lower() in taken:  # file systems may ignore case
            number += 1
            candidate = f"{name}_{number}"
        taken[candidate.lower()] = None
        result.append(candidate)
    return result


def relative_names(files: Sequence[Path], folder: Path) -> Iterator[str]:
    """Yield the paths relative to a folder, with "/" and without suffix, the same in every run.

    Raises:
        ValueError: If two files differ only in their suffix or in case.
    """
    taken: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(folder).with_suffix("").as_posix()
        other = taken.setdefault(name.lower(), file)  # file systems may ignore case
        if other is not file:
            raise ValueError(
                f"{other} and {file} would both be saved as {name}: move or rename one of them."
            )
        yield name


def check_apart(inputs: Iterable[Path], output: str | Path) -> None:
    """Check that no input lies in a subfolder of the output, where results are written.

    Raises:
        ValueError: If an input does, or the output is a file.
    """
    folder = Path(output).expanduser()
    if folder.is_file() or (not folder.is_dir() and folder.suffix in DRAWN_IMAGE_SUFFIXES):
        raise ValueError(f"--output {output} is a file; all formats but overlay need a folder.")
    base = os.path.realpath(folder)
    for file in inputs:
        path = os.path.realpath(file)
        if path.startswith(base + os.sep) and os.path.dirname(path) != base:
            raise ValueError(
                f"The input {file} lies in a subfolder of --output {output}, where results could "
                "replace it: give another folder."
            )
