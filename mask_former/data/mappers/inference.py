"""The mapper of evaluation: the image alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T

from ..formats.readers import read_image
from .base import ANNOTATION_KEYS

__all__ = ["InferenceMapper"]


class InferenceMapper(DatasetMapper):
    """detectron2's mapper for testing, which does not see annotations.

    Left to itself it would decode, resize and hand on every label map, which evaluators read for
    themselves.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: one image in detectron2's dataset format; it is not changed.

        Returns:
            the dict without its annotations, and ``image``, 3×H×W, uint8, resized as
            ``INPUT.MIN_SIZE_TEST`` says; ``height`` and ``width`` are the file's.

        Raises:
            FileNotFoundError, ValueError: the file is not there, or is no image.
        """
        kept = {key: v for key, v in dataset_dict.items() if key not in ANNOTATION_KEYS}
        image = read_image(kept["file_name"], "file_name", self.image_format)
        detection_utils.check_image_size(kept, image)  # adds height and width
        inputs = T.AugInput(image)
        try:
            self.augmentations(inputs)
        except ValueError as error:  # Pillow's, of a picture that is too thin
            raise ValueError(
                f"{kept['file_name']}: {image.shape[1]}×{image.shape[0]} pixels (width×height) "
                f"cannot be resized as INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST say: {error}."
            ) from error
        kept["image"] = torch.as_tensor(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))
        return kept
