"""The result of one image, which can be drawn, and written to a file or a folder."""

from __future__ import annotations

import json
from pathlib import Path

from mask_former.utils.atomic_files import replace_text

from .arrays import ResultArrays
from .coco import instance_records, resolve_category_ids
from .files import FORMATS, is_image_suffix, missing_result, save_overlay, save_semantic
from .npz import save_npz
from .writer import ResultWriter

__all__ = ["Result"]


class Result(ResultArrays):
    """An image and its results: panoptic, instance and semantic; None for those not computed."""

    def save(self, path: str | Path, *formats: str, name: str | None = None) -> list[Path]:
        """Write the result; each file is written atomically.

        Args:
            path: a file, whose suffix determines its format (.png, .jpg, …: the drawn image; .npz:
                all arrays; .json: COCO's instance results; .png with the format "semantic-png":
                class ids), or a folder, which is created.
            formats: names from :data:`mask_former.results.FORMATS`; the default for a folder is
                "overlay". For the layout of a folder see :class:`mask_former.results.ResultWriter`.
            name: stem of the files in a folder. Default: the stem of ``file_name``, or "result".

        Returns:
            The files that were written.

        Raises:
            ValueError: if a format is unknown or does not fit the suffix, or its result is missing.
        """
        path = Path(path).expanduser()
        stem = name or (Path(self.file_name).stem if self.file_name else "result")
        fitting = [] if path.is_dir() else _formats_of(path.suffix.lower())
        if not fitting and not formats and path.suffix and not path.is_dir():
            raise ValueError(
                f"{path} is not a folder, and results cannot be written with its suffix: expected "
                "an image (.png, .jpg, …), .npz or .json. To write a folder of this name, give the "
                f"formats, from {', '.join(FORMATS)}."
            )
        if not fitting:
            with ResultWriter(path, formats or ["overlay"]) as writer:
                return writer.write(self, stem)
        chosen = formats or fitting[:1]
        if len(chosen) > 1 or chosen[0] not in fitting:
            raise ValueError(
                f"{path} can be written as {' or '.join(fitting)}, not as {', '.join(chosen)}: "
                "give a folder for these formats."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        _save_file(self, path, chosen[0], stem)
        return [path]


def _formats_of(suffix: str) -> list[str]:
    """List the formats that a file with this suffix may have, the default first."""
    if is_image_suffix(suffix):
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
        raise missing_result(format_name, "instance", result)
    else:
        ids = resolve_category_ids(result.classes, None)
        text = json.dumps(instance_records(result.instances, image_id, ids, path))
        replace_text(path, text)
