"""Examples to draw, from a dataset's files or from the data pipeline of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.structures import BitMasks, Instances
from numpy.typing import NDArray

from mask_former.data.datasets.classes import Classes
from mask_former.data.formats.coco_instances import decode_segmentation
from mask_former.data.formats.readers import (
    check_classes,
    check_same_size,
    read_image,
    read_segment_map,
)
from mask_former.data.mappers.base import ignore_label_of
from mask_former.data.mappers.semantic import read_sem_seg
from mask_former.registries import DATASET_MAPPER_REGISTRY, lookup
from mask_former.structures import Record

from .overlay import Overlay, mask_overlay, panoptic_overlay

__all__ = ["Example", "ModelInputs", "annotated_example"]


@dataclass(frozen=True)
class Example:
    """An image and its N targets."""

    image: NDArray[np.uint8]
    """H×W×3, RGB."""
    overlay: Overlay
    """One region for each target."""
    class_ids: list[int]
    """N class ids."""
    areas: list[int]
    """N areas, in pixels."""
    padding: NDArray[np.bool_]
    """H×W, True for pixels that the mapper added."""
    has_targets: bool = True
    """False for evaluation, in which the model gets no targets."""

    @property
    def void(self) -> NDArray[np.bool_]:
        """H×W, True for pixels of the image that belong to no target."""
        return (self.overlay.ids == 0) & ~self.padding & self.has_targets


def annotated_example(record: Record, classes: Classes, dataset: str) -> Example:
    """Read an image and its panoptic, semantic or instance annotation from their files.

    Args:
        record: The image's dataset dict.
        classes: The K classes.
        dataset: Name of the dataset, whose metadata contains the ignore label.

    Raises:
        FileNotFoundError, KeyError, ValueError: if the annotation is missing or damaged.
    """
    image = read_image(record["file_name"], "file_name", "RGB")
    for key, read in _READERS.items():
        if key in record:
            overlay, class_ids = read(record, image, classes, dataset)
            areas = np.bincount(overlay.ids.ravel(), minlength=len(class_ids) + 1)[1:].tolist()
            return Example(image, overlay, class_ids, areas, np.zeros(image.shape[:2], bool))
    raise KeyError(
        f"{record['file_name']}: expected one of {list(_READERS)} in the dataset dict, found "
        f"{sorted(record)}."
    )


def _panoptic(
    record: Record, image: NDArray[np.uint8], classes: Classes, dataset: str
) -> tuple[Overlay, list[int]]:
    file, infos = record["pan_seg_file_name"], record["segments_info"]
    class_ids = _checked_classes(infos, classes, file)
    ids = read_segment_map(file, [info["id"] for info in infos])
    check_same_size(image, record["file_name"], ids, file)
    things = [info.get("isthing", True) for info in infos]
    overlay = _overlay_of_map(ids, range(1, len(infos) + 1), class_ids, things, classes)
    return _mark_crowds(overlay, infos), class_ids


def _semantic(
    record: Record, image: NDArray[np.uint8], classes: Classes, dataset: str
) -> tuple[Overlay, list[int]]:
    ignore_label = ignore_label_of((dataset,))
    labels = read_sem_seg(record, image, ignore_label, len(classes.names))
    present = np.setdiff1d(labels, [ignore_label])
    class_ids = present.tolist()
    ids = labels.astype(np.int32) + 1  # 0 and the ignore label are not painted
    things = [False] * len(class_ids)
    return _overlay_of_map(ids, present + 1, class_ids, things, classes), class_ids


def _instances(
    record: Record, image: NDArray[np.uint8], classes: Classes, dataset: str
) -> tuple[Overlay, list[int]]:
    annotations = record["annotations"]
    where = f"'annotations' of {record['file_name']}"
    class_ids = _checked_classes(annotations, classes, where)
    size = image.shape[:2]
    masks = np.zeros((len(annotations), *size), bool)
    for mask, annotation in zip(masks, annotations, strict=True):
        where = f"{record['file_name']}: annotation {annotation.get('id', '')}"
        mask[:] = decode_segmentation(annotation.get("segmentation"), size, where)
    return _mark_crowds(mask_overlay(masks, class_ids, classes), annotations), class_ids


_READERS = {
    "pan_seg_file_name": _panoptic,
    "sem_seg_file_name": _semantic,
    "annotations": _instances,
}
"""Readers by the key of the dataset dict, the richest annotation first."""


def _checked_classes(infos: Sequence[Record], classes: Classes, where: str) -> list[int]:
    class_ids = [info["category_id"] for info in infos]
    hint = "Does the config belong to another dataset?"
    check_classes(class_ids, len(classes.names), where, hint)
    return class_ids


def _mark_crowds(overlay: Overlay, infos: Sequence[Record]) -> Overlay:
    """Add "(crowd)" to the labels of crowds, which training leaves out."""
    regions = [
        region._replace(label=f"{region.label} (crowd)") if info.get("iscrowd", 0) else region
        for region, info in zip(overlay.regions, infos, strict=True)
    ]
    return replace(overlay, regions=regions)


def _overlay_of_map(
    ids: NDArray[Any],
    segment_ids: Iterable[int],
    class_ids: Sequence[int],
    things: Sequence[bool],
    classes: Classes,
) -> Overlay:
    segments: Any = [  # without a score: this is the ground truth
        {"id": int(i), "category_id": class_id, "isthing": thing}
        for i, class_id, thing in zip(segment_ids, class_ids, things, strict=True)
    ]
    return panoptic_overlay(ids, segments, classes)


def _with_masks(
    image: NDArray[np.uint8],
    class_ids: list[int],
    masks: NDArray[np.bool_],
    classes: Classes,
    size: tuple[int, ...],
) -> Example:
    """Build an example from masks N×H×W and an image H×W×3 that is padded outside ``size``."""
    padding = np.ones(image.shape[:2], bool)
    padding[: size[0], : size[1]] = False
    areas = masks.sum((1, 2)).tolist()
    return Example(image, mask_overlay(masks, class_ids, classes), class_ids, areas, padding)


def _masks_of(instances: Instances) -> tuple[list[int], NDArray[np.bool_]]:
    """Return class ids (N) and masks (N×H×W) of training instances."""
    if not len(instances):  # detectron2 adds masks only to instances
        return [], np.zeros((0, *instances.image_size), bool)
    masks = instances.gt_masks
    masks = masks.tensor if isinstance(masks, BitMasks) else masks
    return instances.gt_classes.tolist(), masks.numpy().astype(bool)


class ModelInputs:
    """Dataset images as the data pipeline of training or evaluation feeds them to the model.

    Args:
        cfg: A config, with ``INPUT.DATASET_MAPPER_NAME``.
        classes: The K classes.
        is_train: Use the training mapper; otherwise that of evaluation, without targets.

    Raises:
        KeyError: if the mapper that the config names is not registered.
    """

    def __init__(self, cfg: CfgNode, classes: Classes, is_train: bool) -> None:
        key = "INPUT.DATASET_MAPPER_NAME"
        mapper_type: Any = DatasetMapper
        if is_train:
            mapper_type = lookup(DATASET_MAPPER_REGISTRY, cfg.INPUT.DATASET_MAPPER_NAME, key)
        self.mapper = mapper_type(cfg, is_train=is_train)
        self.classes = classes
        self.is_train = is_train
        self.datasets = cfg.DATASETS.TRAIN
        self.is_bgr = cfg.INPUT.FORMAT == "BGR"
        self.size: tuple[int, ...] | None = None
        augment = getattr(self.mapper, "augmentations", None)
        if augment is not None:
            self.mapper.augmentations = partial(self._augment, augment)

    def _augment(self, augment: Callable[[Any], Any], inputs: Any) -> Any:
        transforms = augment(inputs)
        self.size = inputs.image.shape[:2]  # before the mapper pads
        return transforms

    def __call__(self, record: Record) -> Example:
        """Read, augment and pad an image. Errors of the mapper are passed on."""
        example = self.mapper(record)
        image = example["image"].numpy().transpose(1, 2, 0)
        image = np.ascontiguousarray(image[..., ::-1] if self.is_bgr else image)
        if self.is_train and "instances" in example:
            targets = _masks_of(example["instances"])
        elif self.is_train and "sem_seg" in example:
            labels = example["sem_seg"].numpy()
            present = np.setdiff1d(labels, [ignore_label_of(self.datasets)])
            targets = present.tolist(), labels == present[:, None, None]
        else:  # in evaluation, the model does not use a label map
            nothing = Overlay(np.zeros(image.shape[:2], np.int32), [])
            return Example(image, nothing, [], [], nothing.ids > 0, has_targets=False)
        return _with_masks(image, *targets, self.classes, self.size or image.shape[:2])
