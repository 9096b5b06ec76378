"""The pipeline that all training mappers share: read, check, augment, pad, make targets."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Instances
from numpy.typing import NDArray

from ..formats.readers import read_image
from ..instances import InstanceShapes
from ..targets import InstanceMasks, SegmentMap, pad_map
from ..transforms.augmentation import build_augmentation, build_lsj_augmentation

__all__ = ["Annotations", "TrainingMapper", "ignore_label_of", "lsj_settings", "settings"]

ANNOTATION_KEYS = frozenset(
    {"annotations", "segments_info", "pan_seg_file_name", "sem_seg_file_name", "label_map"}
)
"""Keys of a dataset dict that are not copied to an example."""


class Annotations(NamedTuple):
    """The annotation of one image, as a mapper reads it."""

    segments: SegmentMap | InstanceShapes
    sem_seg: NDArray[Any] | None
    """Class ids, H×W, uint8 or uint16; ``ignore_label`` for no class. None: no label map."""


class TrainingMapper:
    """Base class of mappers that turn a dataset dict into a training example.

    Subclasses define ``read_annotations``. An example has the dict's keys, except those of
    annotations, and

    - ``image``: 3×H×W, uint8, channels in the order of ``image_format``;
    - ``instances``: ``Instances((H, W))`` with ``gt_classes`` (N, int64) and ``gt_masks``
      (N×H×W, bool);
    - ``sem_seg``: H×W, int64, with the ignore label, if the mapper has a label map;
    - ``valid``: H×W, bool, with ``mask_ignore``: True for pixels of a target, False for unlabelled
      pixels, crowds and padding;
    - ``height``, ``width``: the size of the image on disk.
    """

    keeps_empty_masks = True
    """With ``min_mask_area`` 0, keep segments without a pixel in the crop as empty targets."""

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        ignore_label: int | None,
        size_divisibility: int = 0,
        num_classes: int | None = None,
        min_mask_area: int = 0,
        mask_ignore: bool = False,
        pad_value: int = 128,
        max_tries: int = 1,
    ) -> None:
        """Check and store the settings.

        Args:
            is_train: must be True; see Raises.
            augmentations: the augmentations of image and annotation, in order.
            image_format: "RGB" or "BGR".
            ignore_label: label of pixels without a class, in 0 … 65535; None: no ``sem_seg``, for
                mappers that do not need it.
            size_divisibility: side in pixels of the square that image and targets are padded to; 0
                or less: no padding.
            num_classes: K, to check annotations against; None: do not check them.
            min_mask_area: masks with fewer pixels after augmentation are dropped.
            mask_ignore: add ``valid`` to the example.
            pad_value: value that images are padded with, in 0 … 255.
            max_tries: number of times that an image is augmented until it has a target, at most.

        Raises:
            ValueError: if a value is out of range, or ``is_train`` is False, because evaluators
                read the annotations of test images themselves.
        """
        if not is_train:
            raise ValueError(
                f"{type(self).__name__} makes training examples only. For testing, use "
                "mask_former.data.mappers.InferenceMapper(cfg)."
            )
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}, expected 'RGB' or 'BGR'.")
        if ignore_label is not None and not 0 <= ignore_label <= np.iinfo(np.uint16).max:
            raise ValueError(
                f"The ignore label is {ignore_label}, expected a value that label maps of 8 or "
                "16 bits can hold: set ignore_label in the dataset's metadata to one in 0..65535."
            )
        if min_mask_area < 0:
            raise ValueError(f"INPUT.MIN_MASK_AREA is {min_mask_area}, expected 0 or more pixels.")
        if not 0 <= pad_value <= 255:
            raise ValueError(f"INPUT.PAD_VALUE is {pad_value}, expected 0 to 255, as in an image.")
        if max_tries < 1:
            raise ValueError(f"INPUT.MAX_TRIES is {max_tries}, expected 1 or more.")
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.ignore_label = ignore_label
        self.size_divisibility = size_divisibility
        self.num_classes = num_classes
        self.mask_ignore = mask_ignore
        self.pad_value = pad_value
        self.max_tries = max_tries
        self.min_mask_area = min_mask_area if self.keeps_empty_masks else max(1, min_mask_area)
        logging.getLogger(__name__).info(
            "[%s] Augmentations used in training: %s", type(self).__name__, augmentations
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of ``__init__``, with MaskFormer's augmentation and padding."""
        ignore_label = ignore_label_of(cfg.DATASETS.TRAIN)
        return settings(cfg, is_train) | {
            "augmentations": build_augmentation(cfg, ignore_label),
            "ignore_label": ignore_label,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY,
        }

    def read_annotations(self, dataset_dict: dict[str, Any], image: NDArray[Any]) -> Annotations:
        """Read and check the annotation of ``image`` (H×W×3, before augmentation)."""
        raise NotImplementedError

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read, augment and pad one image and its annotation.

        Args:
            dataset_dict: one image in detectron2's dataset format; it is not changed.

        Returns:
            The training example; see the class.

        Raises:
            FileNotFoundError: if a file is missing.
            KeyError: if the dict lacks the annotation.
            ValueError: if a file is damaged, image and annotation differ in size, a class id is out
                of range, or the augmented image is larger than the side that it is padded to.
        """
        image_file = dataset_dict["file_name"]
        example = {
            key: copy.deepcopy(value)
            for key, value in dataset_dict.items()
            if key not in ANNOTATION_KEYS
        }
        image = read_image(image_file, "file_name", self.image_format)
        detection_utils.check_image_size(example, image)  # adds height and width
        annotations = self.read_annotations(dataset_dict, image)
        for _ in range(self.max_tries):
            example |= self._augment(image, annotations, image_file)
            if len(example["instances"]):
                break
        return example

    def _augment(
        self, image: NDArray[Any], annotations: Annotations, image_file: str
    ) -> dict[str, Any]:
        """Augment and pad an image and its annotation once: all but the dict's keys."""
        segments, sem_seg = annotations
        inputs = T.AugInput(image, sem_seg=sem_seg)
        try:
            transforms = self.augmentations(inputs)
        except ValueError as error:
            raise ValueError(f"{image_file}: {error}") from error
        targets: SegmentMap | InstanceMasks
        if isinstance(segments, SegmentMap) and segments.index_map is sem_seg:
            # The label map is also the map of segments, so it is already transformed.
            targets = replace(segments, index_map=inputs.sem_seg)
        else:
            targets = segments.transform(transforms)

        size = self._padded_size(inputs.image, image_file)
        example: dict[str, Any] = {
            "image": torch.from_numpy(_pad_image(inputs.image, size, self.pad_value))
        }
        if inputs.sem_seg is not None:
            assert self.ignore_label is not None
            sem_seg = pad_map(inputs.sem_seg, size, self.ignore_label)
            example["sem_seg"] = torch.from_numpy(sem_seg.astype(np.int64))
        labels, masks = targets.targets(size, self.min_mask_area)
        example["instances"] = Instances(size, gt_classes=labels, gt_masks=masks)
        if self.mask_ignore:
            example["valid"] = targets.valid_mask(size)
        return example

    def require(self, dataset_dict: dict[str, Any], *keys: str) -> None:
        """Raise a KeyError that names a fitting mapper unless the dict has all ``keys``."""
        missing = [key for key in keys if key not in dataset_dict]
        if missing:
            raise KeyError(
                f"{dataset_dict['file_name']}: {type(self).__name__} needs {list(keys)} in the "
                f"dataset dict, and {missing} is missing; its keys are {sorted(dataset_dict)}. "
                f"{_fitting_mapper(dataset_dict)}"
            )

    def _padded_size(self, image: NDArray[Any], image_file: str) -> tuple[int, int]:
        height, width = image.shape[:2]
        side = self.size_divisibility
        if side <= 0:
            return height, width
        if max(height, width) > side:
            raise ValueError(
                f"{image_file}: after augmentation it is {width}×{height} pixels (width×height), "
                f"and INPUT.SIZE_DIVISIBILITY, the side that examples are padded to, is {side}. "
                f"Set INPUT.CROP.ENABLED to True with an INPUT.CROP.SIZE of at most {side} on "
                f"either side, or INPUT.SIZE_DIVISIBILITY to {max(height, width)} or more (-1: no "
                "padding)."
            )
        return side, side


def settings(cfg: CfgNode, is_train: bool) -> dict[str, Any]:
    """Read the arguments that all training mappers share from a config."""
    return {
        "is_train": is_train,
        "image_format": cfg.INPUT.FORMAT,
        "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "min_mask_area": cfg.INPUT.MIN_MASK_AREA,
        "mask_ignore": cfg.MODEL.MASK_FORMER.MASK_IGNORE,
        "pad_value": cfg.INPUT.PAD_VALUE,
        "max_tries": cfg.INPUT.MAX_TRIES,
    }


def lsj_settings(cfg: CfgNode, is_train: bool) -> dict[str, Any]:
    """Read the arguments of training mappers with large-scale jitter, by default without labels."""
    return settings(cfg, is_train) | {
        "augmentations": build_lsj_augmentation(cfg),
        "ignore_label": None,
        "size_divisibility": cfg.INPUT.IMAGE_SIZE,
    }


def ignore_label_of(datasets: tuple[str, ...]) -> int:
    """Return the ignore label in the metadata of all ``datasets``.

    Raises:
        ValueError: if it is missing, or differs between datasets.
    """
    labels = {name: MetadataCatalog.get(name).get("ignore_label") for name in datasets}
    if len(set(labels.values())) != 1 or None in labels.values():
        raise ValueError(
            f"DATASETS.TRAIN: the metadata's ignore_label is {labels}, expected the same value "
            "for all training sets. Set it: MetadataCatalog.get(name).set(ignore_label=255)."
        )
    return next(iter(labels.values()))


def _pad_image(image: NDArray[Any], size: tuple[int, int], value: int) -> NDArray[Any]:
    """Convert H×W×3 to 3×``size``, padded with ``value`` at the right and bottom."""
    height, width, channels = image.shape
    make = np.empty if (height, width) == size else partial(np.full, fill_value=value)
    padded = make((channels, *size), dtype=image.dtype)
    for channel, values in enumerate(cv2.split(image)):  # faster than a transpose
        padded[channel, :height, :width] = values
    return padded


def _fitting_mapper(dataset_dict: dict[str, Any]) -> str:
    fitting = []
    if {"pan_seg_file_name", "segments_info"} <= dataset_dict.keys():
        fitting += ["mask_former_panoptic", "detr_panoptic", "coco_panoptic_lsj"]
    if "sem_seg_file_name" in dataset_dict:
        fitting += ["mask_former_semantic", "mask_former_semantic_lsj"]
    if "annotations" in dataset_dict:
        fitting += ["mask_former_instance", "coco_instance_lsj"]
    if not fitting:
        return "No mapper for mask targets fits such a dict: check what DATASETS.TRAIN loads."
    return f"Set INPUT.DATASET_MAPPER_NAME to {' or '.join(fitting)}."
