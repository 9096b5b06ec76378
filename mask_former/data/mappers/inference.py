"""The mapper of evaluation: the image alone."""

from __future__ import annotations

from typing import Any

from detectron2.data import DatasetMapper

from mask_former.data.mappers.base import ANNOTATION_KEYS

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
        """
        kept = {key: v for key, v in dataset_dict.items() if key not in ANNOTATION_KEYS}
        return super().__call__(kept)
