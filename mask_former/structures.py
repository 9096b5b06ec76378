"""Data that modules exchange, and the legend of its names and shapes.

====== =======================================================================
symbol meaning
====== =======================================================================
B      images in the batch
K      classes of the dataset, without "no object"
Q      queries; each predicts one class and one mask
C      channels (``HIDDEN_DIM`` in the transformer, ``MASK_DIM`` in the masks)
H, W   the padded input, in pixels
h, w   the mask logits' grid: H/4, W/4
N      targets of one image
M      matched pairs of the whole batch
L      predictions that are supervised, one for each decoder layer; the last is the output
====== =======================================================================

Masks are indexed ``[row, column]``, row 0 on top. Class ids are contiguous, 0 … K-1; index K of the
class logits is "no object".
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict, cast

from torch import Tensor

__all__ = [
    "RESULTS",
    "Batch",
    "Match",
    "Outputs",
    "ParameterRows",
    "PixelFeatures",
    "Prediction",
    "Record",
    "SegmentInfo",
    "Size",
    "Target",
    "layer_predictions",
]

Size = tuple[int, int]
"""Height and width in pixels."""

Record = dict[str, Any]
"""One image of a dataset in detectron2's format: its file, its annotations, its size."""

Batch = list[dict[str, Any]]
"""Examples that mappers make from records, in the input format of detectron2's models."""

RESULTS = {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}
"""Kinds of results, the richest first, with detectron2's key of each in a model's output."""


class PixelFeatures(NamedTuple):
    """The maps that a pixel decoder returns."""

    mask_features: Tensor
    """B×MASK_DIM×h×w, per-pixel embeddings."""
    encoder_features: Tensor | None = None
    """B×C×h_n×w_n, the encoded coarsest map; None without an encoder."""
    multi_scale: tuple[Tensor, ...] = ()
    """B×C×h_i×w_i each, coarse to fine; empty if the decoder has only one scale."""


class _Prediction(TypedDict):
    pred_logits: Tensor
    """B×Q×(K+1), class logits; the last is "no object"."""
    pred_masks: Tensor
    """B×Q×h×w, mask logits at stride 4."""


class Prediction(_Prediction, total=False):
    """One prediction, such as that of a decoder layer."""

    queries: Tensor
    """B×Q×C, states of the queries from which the prediction was computed."""


class Outputs(Prediction, total=False):
    """Output of a head: the last prediction, and the earlier ones."""

    aux_outputs: list[Prediction]
    """The earlier predictions, first to last; empty without deep supervision."""


class _Target(TypedDict):
    labels: Tensor
    """N, int64, class ids in 0 … K-1."""
    masks: Tensor
    """N×H×W, bool."""


class Target(_Target, total=False):
    """The ground truth of one image."""

    valid: Tensor
    """H×W, bool: the pixels that mask losses and matching use. If missing: all."""


class Match(NamedTuple):
    """The matched pairs of one image: query ``queries[i]`` is matched to target ``targets[i]``."""

    queries: Tensor
    """int64, ascending, on the CPU."""
    targets: Tensor
    """int64, of the same length."""


class ParameterRows(NamedTuple):
    """Names of parameters that have one row for each class or for each query.

    Fine-tuning copies such rows from a checkpoint with other classes or queries.
    """

    classes: dict[str, int]
    """By parameter name, the number of rows after the K class rows: 1 for "no object", or 0."""
    queries: tuple[str, ...] = ()
    """Names of parameters with one row for each query."""


class SegmentInfo(TypedDict):
    """One segment of a panoptic result."""

    id: int
    """Value of the segment's pixels in the id map, from 1."""
    isthing: bool
    """A Python bool: detectron2's evaluator tests ``is True``."""
    category_id: int
    """Contiguous class id."""
    score: float
    """Class probability in (0, 1]; the maximum if segments were merged."""


def layer_predictions(outputs: Outputs) -> list[Prediction]:
    """Return all predictions, first to last."""
    last = {name: value for name, value in outputs.items() if name != "aux_outputs"}
    return [*outputs.get("aux_outputs", ()), cast(Prediction, last)]
