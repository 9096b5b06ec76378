"""The mapper of the evaluation loader, which reads images only."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import detection_utils

from ..formats.readers import read_image
from ..transforms.inference import InferencePreprocessing
from .base import ANNOTATION_KEYS

__all__ = ["InferenceMapper"]


class InferenceMapper:
    """Turn a dataset dict into a model's input, without its annotations.

    detectron2's mapper would also decode, resize and return every label map, although the
    evaluators read them themselves.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Read the settings of a config; see ``InferencePreprocessing``."""
        self.preprocess = InferencePreprocessing(cfg)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read and preprocess one image.

        Args:
            dataset_dict: one image in detectron2's dataset format; it is not changed.

        Returns:
            The dict without its annotations, with ``image``, ``height`` and ``width`` as
            ``InferencePreprocessing`` returns them.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if the file is damaged or not an image, or the image is too thin.
        """
        file_name = dataset_dict["file_name"]
        example = {key: v for key, v in dataset_dict.items() if key not in ANNOTATION_KEYS}
        image = read_image(file_name, "file_name", "RGB")
        detection_utils.check_image_size(example, image)
        try:
            return example | self.preprocess(image)
        except ValueError as error:
            raise ValueError(f"{file_name}: {error}") from error
