"""Build the trained model of a config, and prepare images for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from numpy.typing import NDArray
from torch import Tensor, nn

from mask_former.checkpoint.checkpointer import Checkpointer

__all__ = ["InputPipeline", "load_trained_model"]


class InputPipeline:
    """Inference preprocessing: resize and convert an image as the evaluation loader does."""

    def __init__(self, cfg: CfgNode) -> None:
        """Read the settings of a config.

        Args:
            cfg: with the input size (``INPUT.MIN_SIZE_TEST``, ``INPUT.MAX_SIZE_TEST``) and the
                channel order (``INPUT.FORMAT``).

        Raises:
            ValueError: if the channel order is neither RGB nor BGR.
        """
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; expected 'RGB' or 'BGR'.")
        self.image_format = cfg.INPUT.FORMAT
        self.resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """Prepare one image for the model.

        Args:
            image: H×W×3, RGB.

        Returns:
            ``image`` (3×h×w, uint8), and ``height`` and ``width`` of the results.

        Raises:
            ValueError: if the image is so thin that it would be resized to nothing.
        """
        height, width = image.shape[:2]
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        resize = self.resize.get_transform(image)
        new_height, new_width = getattr(resize, "new_h", height), getattr(resize, "new_w", width)
        if not new_height or not new_width:
            raise ValueError(
                f"{width}×{height} pixels is too thin: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST make "
                f"{new_width}×{new_height} of it."
            )
        pixels = np.ascontiguousarray(resize.apply_image(image).transpose(2, 0, 1))
        return {"image": torch.from_numpy(pixels), "height": height, "width": width}


def load_trained_model(cfg: CfgNode, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build the model of a config and load all its weights, in evaluation mode.

    Args:
        cfg: config of the model.
        weights: the model's weights; ``MODEL.WEIGHTS`` is then only their name in messages. None:
            those of the file ``MODEL.WEIGHTS``.

    Raises:
        FileNotFoundError: if ``MODEL.WEIGHTS`` is a file that is missing.
        OSError: if it is a URL that cannot be fetched.
        ValueError: if it is not set, is broken, or lacks weights of the model, as the weights of a
            backbone do: parameters left random would give random masks.
    """
    source = cfg.MODEL.WEIGHTS
    if weights is not None:
        model = build_model(cfg)
        Checkpointer(model, whole=True).load_weights(weights, source)
        return model.eval()
    if not source:
        raise ValueError("MODEL.WEIGHTS is not set: give the checkpoint of a trained model.")
    if "://" not in source and not os.path.isfile(source.partition("?")[0]):
        raise FileNotFoundError(f"There is no checkpoint {source} (MODEL.WEIGHTS).")
    model = build_model(cfg)
    try:
        Checkpointer(model, whole=True).load(source)
    except (OSError, AssertionError) as error:  # fvcore asserts that the file exists
        raise OSError(f"MODEL.WEIGHTS {source} cannot be read: {error}") from error
    return model.eval()
