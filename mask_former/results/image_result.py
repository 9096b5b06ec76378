"""One result to one file, or to a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mask_former.utils.atomic_files import replace_file

from .arrays import Result
from .coco import instance_records, resolve_category_ids
from .files import FORMATS, is_picture, missing, save_overlay, save_semantic
from .npz import save_npz
from .writer import ResultWriter

__all__ = ["save"]


def save(result: Result, path: Path, formats: Sequence[str], name: str | None) -> list[Path]:
    """See :meth:`Result.save`."""
    stem = name or (Path(result.file_name).stem if result.file_name else "result")
    fitting = [] if path.is_dir() else _formats_of(path.suffix.lower())
    if not fitting and not formats and path.suffix and not path.is_dir():
        raise ValueError(
            f"{path} is no folder, and no file that can be written: expected a picture (.png, "
            ".jpg, …), .npz or .json; for a folder of such a name say the formats, of "
            f"{', '.join(FORMATS)}."
        )
    if not fitting:
        with ResultWriter(path, formats or ["overlay"]) as writer:
            return writer.write(result, stem)
    chosen = list(formats) or fitting[:1]
    if len(chosen) > 1 or chosen[0] not in fitting:
        raise ValueError(
            f"{path} can be written as {' or '.join(fitting)}, not as {', '.join(chosen)}: "
            "give a folder for these."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _save_file(result, path, chosen[0], stem)
    return [path]


def _formats_of(suffix: str) -> list[str]:
    """What one file of a suffix may be, the usual one first."""
    if is_picture(suffix):
        return ["overlay", "semantic-png"] if suffix == ".png" else ["overlay"]
    return {".npz": ["npz"], ".json": ["instances-coco"]}.get(suffix, [])


def _save_file(result: Result, path: Path, format_name: str, image_id: str) -> None:
    if format_name == "overlay":
        save_overlay(result, path, None, {})
    elif format_name == "semantic-png":
        save_semantic(result, path)
    elif format_name == "npz":
        save_npz(result, path)
    elif result.instances is None:
        raise missing(format_name, "instance", result)
    else:
        ids = resolve_category_ids(result.classes, None)
        text = json.dumps(instance_records(result.instances, image_id, ids, path))
        replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
