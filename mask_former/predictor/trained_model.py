"""Build the trained model of a config."""

from __future__ import annotations

import os
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.config.loading import resolve_device
from mask_former.utils.downloads import local_weights
from mask_former.utils.web import is_url

__all__ = ["load_trained_model"]


def load_trained_model(cfg: CfgNode, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build the model of a config and load all its weights, in evaluation mode.

    Args:
        cfg: Config of the model.
        weights: The model's weights; ``MODEL.WEIGHTS`` is then only their name in messages. None:
            the weights in the file ``MODEL.WEIGHTS``.

    Raises:
        FileNotFoundError: If the file ``MODEL.WEIGHTS`` is missing.
        OSError: If it is a URL that cannot be downloaded.
        ValueError: If it is not set, is a URL that is refused, is damaged, or lacks weights of the
            model, for example because it holds only a backbone: random parameters would give random
            masks.
    """
    cfg, source = resolve_device(cfg), cfg.MODEL.WEIGHTS
    if weights is not None:
        model = build_model(cfg)
        Checkpointer(model, whole=True).load_weights(weights, source)
        return model.eval()
    if not source:
        raise ValueError("MODEL.WEIGHTS is not set: set it to a trained model's checkpoint.")
    if not is_url(source) and not os.path.isfile(source.partition("?")[0]):
        raise FileNotFoundError(f"There is no checkpoint {source} (MODEL.WEIGHTS).")
    model = build_model(cfg)
    try:
        Checkpointer(model, whole=True).load(local_weights(source))
    except OSError as error:
        raise OSError(f"MODEL.WEIGHTS {source} cannot be read: {error}") from error
    return model.eval()
