"""From files on disk to detectron2's standard dataset dicts. Nothing here opens an image."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def load_sem_seg(image_root: Path, sem_seg_root: Path) -> list[dict[str, Any]]:
    """Pair images and label maps of the same stem.

    Returns:
        dicts with `file_name` and `sem_seg_file_name`, ordered by stem.

    Raises:
        FileNotFoundError: an image without a label map, or the reverse, or none at all.
        ValueError: two files of one folder share a stem.
    """
    images, labels = files_by_stem(image_root), files_by_stem(sem_seg_root)
    _check_partners(images, labels, sem_seg_root)
    _check_partners(labels, images, image_root)
    return [
        {"file_name": str(images[stem]), "sem_seg_file_name": str(labels[stem])}
        for stem in sorted(images)
    ]


def files_by_stem(folder: Path) -> dict[str, Path]:
    """The image files of a folder (hidden ones and other suffixes left out), by stem."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in files:
            raise ValueError(f"{path} and {files[path.stem]} share a stem: remove one of them.")
        files[path.stem] = path
    if not files:
        raise FileNotFoundError(f"{folder} holds no file ending in one of {IMAGE_SUFFIXES}.")
    return files


def _check_partners(files: dict[str, Path], others: dict[str, Path], other_root: Path) -> None:
    lonely = sorted(files.keys() - others.keys())
    if lonely:
        raise FileNotFoundError(
            f"{files[lonely[0]]} has no partner '{lonely[0]}.*' in {other_root} ({len(lonely)} of "
            f"{len(files)} files have none): every image needs one label map of the same name."
        )


def load_panoptic(
    image_root: Path,
    panoptic_root: Path,
    panoptic_json: Path,
    *,
    contiguous_ids: Mapping[int, int],
    thing_ids: Collection[int],
    sem_seg_root: Path | None = None,
) -> list[dict[str, Any]]:
    """Read annotations in COCO panoptic format (Kirillov et al., Panoptic Segmentation, 2019).

    The image's name comes from the JSON's `images`; where an image is not listed there, from the
    annotation's own name with the suffix that is found on disk. detectron2's
    `load_coco_panoptic_json` takes every image to be a .jpg instead.

    Args:
        contiguous_ids: category id in the JSON -> contiguous id.
        thing_ids: the category ids, as in the JSON, that are things.
        sem_seg_root: a folder of label maps, `<stem>.png`, that go with the images.

    Returns:
        dicts with `file_name`, `image_id`, `pan_seg_file_name`, `segments_info` (`category_id`
        contiguous, `isthing` and `iscrowd`), `height` and `width` where the JSON has them, and
        `sem_seg_file_name` where there is a `sem_seg_root`.

    Raises:
        FileNotFoundError: a file that the JSON names is not there.
        ValueError: the JSON is broken, or has a category that is not in `contiguous_ids`.
    """
    content = _read_json(panoptic_json)
    images = {image["id"]: image for image in content["images"]}
    records = []
    for annotation in content["annotations"]:
        stem = os.path.splitext(annotation["file_name"])[0]
        image = images.get(annotation["image_id"], {})
        name = image.get("file_name") or _name_on_disk(image_root, stem, panoptic_json)
        record = {
            "file_name": str(image_root / name),
            "image_id": annotation["image_id"],
            "pan_seg_file_name": str(panoptic_root / annotation["file_name"]),
        }
        if sem_seg_root is not None:
            record["sem_seg_file_name"] = str(sem_seg_root / f"{stem}.png")
        _check_files(record, panoptic_json)
        record |= {key: image[key] for key in ("height", "width") if key in image}
        record["segments_info"] = [
            _segment(segment, contiguous_ids, thing_ids, f"{panoptic_json}: {name}")
            for segment in annotation["segments_info"]
        ]
        records.append(record)
    return records


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}): prepare the dataset again.") from error
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not content.get(key):
            raise ValueError(f"{path}: expected COCO panoptic format, but `{key}` is missing.")
    return content


def _name_on_disk(folder: Path, stem: str, panoptic_json: Path) -> str:
    for suffix in IMAGE_SUFFIXES:
        if (folder / (stem + suffix)).is_file():
            return stem + suffix
    raise FileNotFoundError(
        f"{panoptic_json}: the annotation '{stem}' has no entry in `images`, and there is no "
        f"{folder / stem} with one of the suffixes {IMAGE_SUFFIXES} either."
    )


def _check_files(record: dict[str, Any], panoptic_json: Path) -> None:
    for key in ("file_name", "pan_seg_file_name", "sem_seg_file_name"):
        if key in record and not os.path.isfile(record[key]):
            raise FileNotFoundError(
                f"{record[key]} is not there, but {panoptic_json} names it (image_id "
                f"{record['image_id']!r}): the dataset is incomplete, prepare it again."
            )


def _segment(
    segment: dict[str, Any],
    contiguous_ids: Mapping[int, int],
    thing_ids: Collection[int],
    where: str,
) -> dict[str, Any]:
    category = segment["category_id"]
    if category not in contiguous_ids:
        raise ValueError(
            f"{where}: segment {segment['id']} has category_id {category}, which is not in the "
            f"table; expected one of {sorted(contiguous_ids)}."
        )
    return {
        "iscrowd": 0,
        **segment,
        "category_id": contiguous_ids[category],
        "isthing": category in thing_ids,
    }
