"""Load datasets on disk as detectron2's standard dataset dicts.

No image is opened, except for the PNGs of panoptic annotations that are converted to instances.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.structures import BoxMode

from ..formats.coco_instances import check_segmentation, complete, compress, instances_of_panoptic
from ..formats.coco_json import image_size, located_errors, read_json

_PANOPTIC, _INSTANCES = "COCO panoptic format", "COCO instance format"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def load_sem_seg(image_root: Path, sem_seg_root: Path) -> list[dict[str, Any]]:
    """Pair images and label maps of the same stem (file name without suffix).

    Returns:
        Dicts with ``file_name`` and ``sem_seg_file_name``, ordered by stem.

    Raises:
        FileNotFoundError: if an image or a label map has no partner, or a folder has no image.
        ValueError: if two files of one folder have the same stem.
    """
    images, labels = files_by_stem(image_root), files_by_stem(sem_seg_root)
    _check_partners(images, labels, sem_seg_root)
    _check_partners(labels, images, image_root)
    return [
        {"file_name": str(images[stem]), "sem_seg_file_name": str(labels[stem])}
        for stem in sorted(images)
    ]


def files_by_stem(folder: Path) -> dict[str, Path]:
    """List the image files of a folder by stem; hidden files and other suffixes are skipped."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in files:
            raise ValueError(f"{path} and {files[path.stem]} share a stem: remove or rename one.")
        files[path.stem] = path
    if not files:
        raise FileNotFoundError(f"{folder} has no file with one of the suffixes {IMAGE_SUFFIXES}.")
    return files


def _check_partners(files: dict[str, Path], others: dict[str, Path], other_root: Path) -> None:
    unpaired = sorted(files.keys() - others.keys())
    if unpaired:
        raise FileNotFoundError(
            f"{files[unpaired[0]]} has no partner '{unpaired[0]}.*' in {other_root} "
            f"({len(unpaired)} of {len(files)} files have none): every image needs a label map of "
            "the same name."
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

    The image's name comes from the JSON's ``images``, or, if the image is not listed there, is the
    annotation's name with the suffix found on disk. detectron2's ``load_coco_panoptic_json``
    instead assumes that every image is a .jpg.

    Args:
        image_root: the folder of the images.
        panoptic_root: the folder of the annotations' PNGs.
        panoptic_json: the annotations.
        contiguous_ids: category id in the JSON -> contiguous id.
        thing_ids: category ids of the things, as in the JSON.
        sem_seg_root: the folder of the images' label maps, ``<stem>.png``, if there is one.

    Returns:
        Dicts with ``file_name``, ``image_id``, ``pan_seg_file_name``, ``segments_info`` (with a
        contiguous ``category_id``, ``isthing`` and ``iscrowd``), ``height`` and ``width`` if the
        JSON has them, and ``sem_seg_file_name`` if ``sem_seg_root`` is given.

    Raises:
        FileNotFoundError: if a file that the JSON names is missing.
        ValueError: if the JSON is malformed, or has a category that is not in ``contiguous_ids``.
    """
    content = read_json(panoptic_json, _PANOPTIC)
    with located_errors(panoptic_json, _PANOPTIC):
        return list(
            _panoptic_records(
                content,
                Sources(image_root, panoptic_root, panoptic_json, sem_seg_root),
                contiguous_ids,
                thing_ids,
            )
        )


class Sources(NamedTuple):
    """The folders and the JSON of a panoptic dataset."""

    image_root: Path
    panoptic_root: Path
    panoptic_json: Path
    sem_seg_root: Path | None


def _panoptic_records(
    content: Mapping[str, Any],
    sources: Sources,
    contiguous_ids: Mapping[int, int],
    thing_ids: Collection[int],
) -> Iterator[dict[str, Any]]:
    image_root, panoptic_root, panoptic_json, sem_seg_root = sources
    images = {image["id"]: image for image in content["images"]}
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
        if "height" in image or "width" in image:
            height, width = image_size(image, str(panoptic_json))
            record |= {"height": height, "width": width}
        record["segments_info"] = [
            _segment(segment, contiguous_ids, thing_ids, f"{panoptic_json}: {name}")
            for segment in annotation["segments_info"]
        ]
        yield record


def _name_on_disk(folder: Path, stem: str, panoptic_json: Path) -> str:
    for suffix in IMAGE_SUFFIXES:
        if (folder / (stem + suffix)).is_file():
            return stem + suffix
    raise FileNotFoundError(
        f"{panoptic_json}: the annotation '{stem}' has no entry in `images`, and no file "
        f"{folder / stem} with one of the suffixes {IMAGE_SUFFIXES} exists."
    )


def _check_files(record: dict[str, Any], panoptic_json: Path) -> None:
    for key in ("file_name", "pan_seg_file_name", "sem_seg_file_name"):
        if key in record and not os.path.isfile(record[key]):
            raise FileNotFoundError(
                f"{record[key]} is missing, but {panoptic_json} names it (image_id "
                f"{record['image_id']!r}). Restore the file, or remove the image from the JSON."
            )


def _segment(
    segment: dict[str, Any],
    contiguous_ids: Mapping[int, int],
    thing_ids: Collection[int],
    where: str,
) -> dict[str, Any]:
    number, category = segment["id"], segment["category_id"]
    if category not in contiguous_ids:
        raise ValueError(
            f"{where}: segment {number} has category_id {category}, which is not in the "
            f"table; expected one of {sorted(contiguous_ids)}."
        )
    return {
        "iscrowd": 0,
        **segment,
        "category_id": contiguous_ids[category],
        "isthing": category in thing_ids,
    }


def load_instances(
    image_root: Path,
    json_file: Path | None = None,
    *,
    contiguous_ids: Mapping[int, int],
    panoptic_json: Path | None = None,
    panoptic_root: Path | None = None,
) -> list[dict[str, Any]]:
    """Read annotations in COCO instance format, as polygons or RLEs.

    Args:
        image_root: the folder of the images.
        json_file: the annotations; None: convert the things of panoptic annotations.
        contiguous_ids: category id in the JSON -> contiguous id.
        panoptic_json, panoptic_root: the JSON and the PNGs of the panoptic annotations, if there is
            no ``json_file``; every PNG is read.

    Returns:
        Dicts with ``file_name``, ``image_id``, ``height``, ``width`` and ``annotations``: dicts of
        ``id``, ``category_id`` (contiguous), ``segmentation``, ``iscrowd``, ``bbox`` and
        ``bbox_mode``.

    Raises:
        FileNotFoundError: if a file that the JSON names is missing.
        ValueError: if the JSON is malformed; the message names the annotation.
    """
    if json_file is None:
        if panoptic_json is None or panoptic_root is None:
            raise ValueError("Instances need a json_file, or panoptic_json and panoptic_root.")
        source = panoptic_json
        content = read_json(source, _PANOPTIC)
        with located_errors(source, _PANOPTIC):
            content = instances_of_panoptic(content, panoptic_root)
    else:
        source = json_file
        content = read_json(source, _INSTANCES)
    with located_errors(source, _INSTANCES):
        return _instance_records(content, source, image_root, contiguous_ids)


def _instance_records(
    content: Mapping[str, Any], source: Path, image_root: Path, contiguous_ids: Mapping[int, int]
) -> list[dict[str, Any]]:
    records = {image["id"]: _image_record(image, image_root, source) for image in content["images"]}
    seen: set[Any] = set()
    for annotation in content["annotations"]:
        where = f"{source}: annotation id {annotation.get('id')!r}"
        _check_annotation(annotation, records, contiguous_ids, where)
        if annotation["id"] in seen:
            raise ValueError(f"{where} occurs twice: give each annotation a unique id.")
        seen.add(annotation["id"])
        record = records[annotation["image_id"]]
        record["annotations"].append(_instance(annotation, record, contiguous_ids, where))
    return list(records.values())


def _image_record(image: Mapping[str, Any], image_root: Path, source: Path) -> dict[str, Any]:
    missing = [key for key in ("file_name", "height", "width") if key not in image]
    if missing:
        raise ValueError(f"{source}: the image with the id {image['id']!r} lacks {missing}.")
    height, width = image_size(image, str(source))
    record = {
        "file_name": str(image_root / image["file_name"]),
        "image_id": image["id"],
        "height": height,
        "width": width,
        "annotations": [],
    }
    _check_files(record, source)
    return record


def _check_annotation(
    annotation: Mapping[str, Any],
    records: Mapping[Any, Any],
    contiguous_ids: Mapping[int, int],
    where: str,
) -> None:
    missing = [k for k in ("id", "image_id", "category_id", "segmentation") if k not in annotation]
    if missing:
        raise ValueError(f"{where} of image_id {annotation.get('image_id')!r} lacks {missing}.")
    if annotation["image_id"] not in records:
        raise ValueError(
            f"{where} has the image_id {annotation['image_id']!r}, which is not in `images`: "
            "remove it, or list the image."
        )
    if annotation["category_id"] not in contiguous_ids:
        raise ValueError(
            f"{where} has category_id {annotation['category_id']}, which is not a thing of the "
            f"table; expected one of {sorted(contiguous_ids)}."
        )


def _instance(
    annotation: Mapping[str, Any],
    record: Mapping[str, Any],
    contiguous_ids: Mapping[int, int],
    where: str,
) -> dict[str, Any]:
    size = (record["height"], record["width"])
    where = f"{where} of {record['file_name']}"
    check_segmentation(annotation["segmentation"], size, where)
    full = complete(annotation, size, where)
    return {
        "id": annotation["id"],
        "category_id": contiguous_ids[annotation["category_id"]],
        "segmentation": compress(annotation["segmentation"], size, where),
        "iscrowd": full["iscrowd"],
        "bbox": full["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
    }
