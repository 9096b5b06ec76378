"""From a config to results for a picture: build, load, resize, run."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from numpy.typing import NDArray
from torch import nn

from .checkpointer import Checkpointer

__all__ = ["InferencePipeline", "load_trained_model"]


class InferencePipeline:
    """A trained model with the input pipeline of its evaluation."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: names the model, its weights and the input's size (``INPUT.MIN_SIZE_TEST``,
                ``INPUT.MAX_SIZE_TEST``) and channel order (``INPUT.FORMAT``).

        Raises:
            OSError, ValueError: see :func:`load_trained_model`.
        """
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; expected 'RGB' or 'BGR'.")
        self.model = load_trained_model(cfg)
        self.image_format = cfg.INPUT.FORMAT
        self.resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """The results at the image's own size: see :meth:`mask_former.MaskFormer.forward`.

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
        example = {"image": torch.from_numpy(pixels), "height": height, "width": width}
        return self.model([example])[0]


def load_trained_model(cfg: CfgNode) -> nn.Module:
    """The model of a config with all its weights, in evaluation mode.

    Raises:
        FileNotFoundError: if ``MODEL.WEIGHTS`` is a file that is not there.
        OSError: if it is a URL that cannot be fetched.
        ValueError: if it is not set, broken, or lacks weights of the model, as a backbone's alone
            does: what is random gives random masks.
    """
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise ValueError("MODEL.WEIGHTS is not set: give the checkpoint of a trained model.")
    if "://" not in weights and not os.path.isfile(weights.partition("?")[0]):
        raise FileNotFoundError(f"There is no checkpoint {weights} (MODEL.WEIGHTS).")
    model = build_model(cfg)
    try:
        Checkpointer(model, whole=True).load(weights)
    except (OSError, AssertionError) as error:  # fvcore asserts that there is a file
        raise OSError(f"MODEL.WEIGHTS {weights} cannot be read: {error}") from error
    return model.eval()
