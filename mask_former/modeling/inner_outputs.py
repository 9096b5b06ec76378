"""What the parts of the network give on the way to its result."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.evaluation.evaluator import inference_context
from torch import Tensor, nn

from mask_former.structures import layer_predictions

from .heads.mask_former_head import MaskFormerHead
from .mask_former import MaskFormer

__all__ = ["DecoderLayerOutput", "InnerOutputs", "inner_outputs"]


@dataclass(frozen=True, eq=False)
class DecoderLayerOutput:
    """What one decoder layer knows and says."""

    query_states: Tensor | None
    """B×Q×C, after the decoder's final norm; None of a predictor without ``query_states()``."""
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
    """B×CONVS_DIM×h_n×w_n, the encoder's map of a pixel decoder that has an encoder, else None."""
    layers: list[DecoderLayerOutput]
    """The decoder's layers, first to last: the last one says what the model does. Of a predictor
    without ``query_states()`` those that it predicts from in evaluation."""
    input_size: tuple[int, int]
    """(H, W), pixels."""
    image_sizes: list[tuple[int, int]]
    """(height, width) of each image in the input, at its top left; the rest is padding."""


def inner_outputs(
    model: nn.Module, images: Tensor | list[dict[str, Any]], *, grad: bool = False
) -> InnerOutputs:
    """Run the network once, in evaluation mode, and keep what its parts give.

    Images are run whole, also where the model has a sliding window. Backbone, pixel decoder and
    predictor may be any that keep their contracts.

    Args:
        model: a :class:`~mask_former.MaskFormer`; it is left in the mode that it is in.
        images: what ``model`` takes, one dict an image with ``image`` 3×H×W; or one image 3×H×W or
            several B×3×H×W. Values 0 … 255 in the channel order of ``INPUT.FORMAT``.
        grad: keep the graph, so that gradients reach the weights and the images.

    Raises:
        ValueError: for a model of another architecture or head, and for a tensor of another shape.
    """
    if not (isinstance(model, MaskFormer) and isinstance(model.sem_seg_head, MaskFormerHead)):
        head = type(getattr(model, "sem_seg_head", None)).__name__
        raise ValueError(
            f"The model is a {type(model).__name__} with a {head}; expected a MaskFormer with a "
            "MaskFormerHead (MODEL.META_ARCHITECTURE, MODEL.SEM_SEG_HEAD.NAME)."
        )
    with ExitStack() as stack:
        stack.enter_context(inference_context(model))
        stack.enter_context(torch.set_grad_enabled(grad))
        batch = model._preprocess(_examples(images))
        if model.inference_dtype is not None:
            stack.enter_context(torch.autocast(model.device.type, model.inference_dtype))
        head = model.sem_seg_head
        features = model.backbone(batch.tensor)
        mask_features, encoded = head.pixel_decoder.forward_features(features)
        feature_map = head.feature_map(features, mask_features, encoded)
        height, width = batch.tensor.shape[-2:]
        return InnerOutputs(
            backbone=features,
            mask_features=mask_features,
            encoder_memory=encoded,
            layers=_layers(head.predictor, feature_map, mask_features),
            input_size=(height, width),
            image_sizes=[(int(size[0]), int(size[1])) for size in batch.image_sizes],
        )


def _examples(images: Tensor | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The batch as the model takes it."""
    if not isinstance(images, Tensor):
        return images
    if images.ndim not in (3, 4) or images.shape[-3] != 3:
        raise ValueError(
            f"The images are a tensor of shape {tuple(images.shape)}; expected one image 3×H×W or "
            "several B×3×H×W, values 0 … 255."
        )
    return [{"image": image} for image in (images if images.ndim == 4 else images[None])]


def _layers(predictor: Any, feature_map: Tensor, mask_features: Tensor) -> list[DecoderLayerOutput]:
    """Every layer where the predictor can show them, else what it predicts."""
    if not hasattr(predictor, "query_states"):
        predictions = layer_predictions(predictor(feature_map, mask_features))
        return [DecoderLayerOutput(None, **prediction) for prediction in predictions]
    states = predictor.query_states(feature_map)
    predictions = predictor.predict(states, mask_features)
    return [
        DecoderLayerOutput(query_states, **prediction)
        for query_states, prediction in zip(states, predictions, strict=True)
    ]
