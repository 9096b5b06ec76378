"""Where the drawing of each input goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["PICTURE_SUFFIXES", "VIDEO_SUFFIXES", "Outputs", "plan_outputs"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".avi")

Outputs = dict[str, Path]
"""The file of each kind of result of one input."""


def plan_outputs(
    inputs: Sequence[Path], kinds: Sequence[str], output: str, suffixes: tuple[str, ...]
) -> list[Outputs]:
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
    if suffix in suffixes:
        if len(inputs) > 1 or len(kinds) > 1:
            raise ValueError(
                f"--output {output} is one file, but {len(inputs)} inputs × {len(kinds)} kinds of "
                "results are to be drawn: give a folder."
            )
        folder, plan = path.parent, [dict.fromkeys(kinds, path) for _ in inputs]
    elif suffix in PICTURE_SUFFIXES + VIDEO_SUFFIXES or path.is_file():
        raise ValueError(
            f"--output {output} is neither a folder nor a file that can be written here "
            f"({', '.join(suffixes)})."
        )
    else:
        folder, plan = path, _in_folder(path, inputs, kinds, suffixes[0])
    written = {file.resolve() for files in plan for file in files.values()}
    for file in inputs:
        if file.resolve() in written:
            raise ValueError(f"--output {output} would replace the input {file}.")
    folder.mkdir(parents=True, exist_ok=True)
    return plan


def _in_folder(
    folder: Path, inputs: Sequence[Path], kinds: Sequence[str], suffix: str
) -> list[Outputs]:
    endings = {kind: f"_{kind}{suffix}" if len(kinds) > 1 else suffix for kind in kinds}
    return [
        {kind: folder / f"{name}{ending}" for kind, ending in endings.items()}
        for name in _distinct(file.stem for file in inputs)
    ]


def _distinct(names: Iterable[str]) -> list[str]:
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
