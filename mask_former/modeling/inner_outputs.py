"""Intermediate feature maps and query states of one forward pass, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.evaluation.evaluator import inference_context
from torch import Tensor, nn

__all__ = ["DecoderLayerOutput", "InnerOutputs", "inner_outputs"]


@dataclass(frozen=True, eq=False)
class DecoderLayerOutput:
    """The state of the queries after one decoder layer, and the prediction made from it."""

    query_states: Tensor | None
    """B×Q×C, after the decoder's final norm; None if the decoder does not return them."""
    pred_logits: Tensor
    """B×Q×(K+1), class logits; the last is "no object"."""
    pred_masks: Tensor
    """B×Q×h×w, mask logits."""


@dataclass(frozen=True, eq=False)
class InnerOutputs:
    """The maps and states of one forward pass. H×W is the padded input."""

    backbone: dict[str, Tensor]
    """Every map of the backbone by name: B×C_i×h_i×w_i; ``res2`` … at strides 4, 8, 16, 32."""
    mask_features: Tensor
    """B×MASK_DIM×H/4×W/4, the pixel decoder's per-pixel embeddings."""
    encoder_memory: Tensor | None
    """B×CONVS_DIM×h_n×w_n, the encoder's map if the pixel decoder has an encoder, else None."""
    layers: list[DecoderLayerOutput]
    """The decoder's layers, first to last; the last one is the model's output."""
    input_size: tuple[int, int]
    """(H, W), pixels."""
    image_sizes: list[tuple[int, int]]
    """(height, width) of each image, which lies at the top left of the padded input."""


def inner_outputs(
    model: nn.Module, images: Tensor | list[dict[str, Any]], *, grad: bool = False
) -> InnerOutputs:
    """Run the network once, in evaluation mode, and return what its parts computed.

    Images are processed whole, even if the model has a sliding window. Any backbone, pixel decoder
    and transformer decoder that fulfil their contracts can be used.

    Args:
        model: a model with ``preprocess()`` and a head with ``inner_outputs()``, such as a
            :class:`~mask_former.MaskFormer`; its mode does not change.
        images: the model's input, one dict for each image with ``image`` 3×H×W; or one image 3×H×W
            or several B×3×H×W. Values 0 … 255 in the channel order of ``INPUT.FORMAT``.
        grad: record the graph, so that gradients reach the weights and the images.

    Raises:
        ValueError: if the model lacks one of those methods, or a tensor has another shape.
    """
    head: Any = getattr(model, "sem_seg_head", None)
    if not (hasattr(model, "preprocess") and hasattr(head, "inner_outputs")):
        raise ValueError(
            f"The model is a {type(model).__name__} with a {type(head).__name__}; expected a "
            "MaskFormer with a MaskFormerHead (MODEL.META_ARCHITECTURE, MODEL.SEM_SEG_HEAD.NAME)."
        )
    network: Any = model
    with (
        inference_context(model),
        torch.set_grad_enabled(grad),
        network.inference_precision(),
    ):
        batch = network.preprocess(_examples(images))
        features = network.backbone(batch.tensor)
        pixels, predictions = head.inner_outputs(features)
        height, width = batch.tensor.shape[-2:]
        return InnerOutputs(
            backbone=features,
            mask_features=pixels.mask_features,
            encoder_memory=pixels.encoder_features,
            layers=[
                DecoderLayerOutput(
                    prediction.get("queries"), prediction["pred_logits"], prediction["pred_masks"]
                )
                for prediction in predictions
            ],
            input_size=(height, width),
            image_sizes=[(int(size[0]), int(size[1])) for size in batch.image_sizes],
        )


def _examples(images: Tensor | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Convert images to the list of dicts that the model takes."""
    if not isinstance(images, Tensor):
        return images
    if images.ndim not in (3, 4) or images.shape[-3] != 3:
        raise ValueError(
            f"The images are a tensor of shape {tuple(images.shape)}; expected one image 3×H×W or "
            "several B×3×H×W, values 0 … 255."
        )
    return [{"image": image} for image in (images if images.ndim == 4 else images[None])]
