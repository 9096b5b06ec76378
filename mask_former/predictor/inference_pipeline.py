"""From a config to its trained model, and from a picture to what that takes."""

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
    """What the evaluation of a config makes of a picture before the model has it."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: has the input's size (``INPUT.MIN_SIZE_TEST``, ``INPUT.MAX_SIZE_TEST``) and
                channel order (``INPUT.FORMAT``).

        Raises:
            ValueError: for another order than RGB and BGR.
        """
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; expected 'RGB' or 'BGR'.")
        self.image_format = cfg.INPUT.FORMAT
        self.resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """The model's input: ``image`` (3×h×w, uint8) and the output's ``height`` and ``width``.

        Args:
            image: H×W×3, RGB.

        Raises:
            ValueError: if the image is so thin that nothing is left of it at the network's size.
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
    """The model of a config with all its weights, in evaluation mode.

    Args:
        cfg: of the model.
        weights: where they are not those of the file ``MODEL.WEIGHTS``, which then only names
            where they come from.

    Raises:
        FileNotFoundError: if ``MODEL.WEIGHTS`` is a file that is not there.
        OSError: if it is a URL that cannot be fetched.
        ValueError: if it is not set, broken, or lacks weights of the model, as a backbone's alone
            does: what is random gives random masks.
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
    except (OSError, AssertionError) as error:  # fvcore asserts that there is a file
        raise OSError(f"MODEL.WEIGHTS {source} cannot be read: {error}") from error
    return model.eval()
