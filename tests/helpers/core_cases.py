"""Seeded inputs for losses and inference, and their reference results in ``golden/``.

``python -m tests.helpers.core_cases`` computes the reference results again, with our code. Do so
only while the tests against the published code's results in ``../shared/golden`` pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mask_former.inference import (
    instance_inference,
    panoptic_inference,
    semantic_inference,
    semantic_map,
)
from mask_former.losses import CrossEntropyTerm, HungarianMatcher, PointRule, SetCriterion
from tests.helpers.golden_cases import GOLDEN

WEIGHTS = {"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
MASK2FORMER_WEIGHTS = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
NO_OBJECT_WEIGHT = 0.1
MASK2FORMER_BATCH: dict[str, Any] = {"seed": 5, "counts": (6, 0, 9)}
"""Arguments of :func:`random_batch` for Mask2Former's case."""


def random_masks(count: int, size: tuple[int, int], seed: int, scale: float = 2.0) -> Tensor:
    """Return ``count`` smooth mask logits N×H×W, about ±``scale``; blobs are ¼ of a side wide."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, count, 5, 5, generator=g) * scale
    return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0]


def random_batch(
    *,
    seed: int = 0,
    layers: int = 3,
    counts: Sequence[int] = (3, 0, 7),
    queries: int = 6,
    classes: int = 5,
    grid: tuple[int, int] = (5, 7),
    size: tuple[int, int] = (12, 17),
) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """Return outputs of ``layers`` decoder layers, and ``counts[i]`` targets for image i.

    Args:
        grid: height and width of the predicted masks.
        size: height and width of the target masks.
    """
    g = torch.Generator().manual_seed(seed)
    images = len(counts)
    predictions = []
    for layer in range(layers):
        logits = 2 * torch.randn(images, queries, classes + 1, generator=g)
        masks = random_masks(images * queries, grid, 1000 * seed + layer)
        predictions.append(
            {"pred_logits": logits, "pred_masks": masks.view(images, queries, *grid).clone()}
        )
    targets = [
        {
            "labels": torch.randint(classes, (count,), generator=g),
            "masks": random_masks(count, size, 1000 * seed + 100 + image) > 0
            if count
            else torch.zeros(0, *size, dtype=torch.bool),
        }
        for image, count in enumerate(counts)
    ]
    return {**predictions[-1], "aux_outputs": predictions[:-1]}, targets


def layers_of(outputs: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Return the predictions of all layers, first to last."""
    last = {name: outputs[name] for name in ("pred_logits", "pred_masks")}
    return [*outputs.get("aux_outputs", []), last]


def pairs_of(match: tuple[Tensor, Tensor]) -> list[tuple[int, int]]:
    """Return the (query, target) pairs of one image's match."""
    return list(zip(match[0].tolist(), match[1].tolist(), strict=True))


def build_criterion(
    classes: int = 5, no_object_weight: float = NO_OBJECT_WEIGHT, **shared: Any
) -> SetCriterion:
    """Build the published criterion, with weights 1, 20 and 1 for class, mask and dice terms.

    Args:
        shared: arguments of both matcher and criterion, such as the mask term.
    """
    matcher = HungarianMatcher(*WEIGHTS.values(), **shared)
    return SetCriterion(classes, matcher, no_object_weight=no_object_weight, **shared)


def mask2former_criterion(classes: int) -> SetCriterion:
    """Build Mask2Former's criterion, which reads its masks at a regular grid of 112×112 points."""
    rule = PointRule(112**2, padding="zeros", targets="bilinear")
    shared = {"mask_term": CrossEntropyTerm(), "point_rule": rule}
    matcher = HungarianMatcher(*MASK2FORMER_WEIGHTS.values(), **shared)
    criterion = SetCriterion(classes, matcher, no_object_weight=NO_OBJECT_WEIGHT, **shared)
    criterion.fixed_points = matcher.fixed_points = point_grid(112)
    return criterion


def point_grid(side: int) -> Tensor:
    """Return the centres (x, y) of ``side``×``side`` equal parts of the image, row by row."""
    centre = (torch.arange(side) + 0.5) / side
    return torch.stack([centre.repeat(side), centre.repeat_interleave(side)], 1)


def weighted_total(losses: dict[str, Tensor], weights: dict[str, float] = WEIGHTS) -> Tensor:
    """Return the sum of all losses, each times the weight of its term."""
    return sum(
        (weights["_".join(name.split("_")[:2])] * value for name, value in losses.items()),
        start=torch.zeros(()),
    )


def run_criterion(
    criterion: SetCriterion,
    outputs: dict[str, Any],
    targets: list[dict[str, Tensor]],
    weights: dict[str, float] = WEIGHTS,
) -> dict[str, Any]:
    """Compute the losses, their weighted total, the matches of every layer, and the gradients.

    The gradients of the total have the shapes of the logits of all layers: L×B×Q×(K+1) for
    classes, L×B×Q×h×w for masks.
    """
    layers = [
        {name: value.detach().clone().requires_grad_() for name, value in layer.items()}
        for layer in layers_of(outputs)
    ]
    losses = criterion({**layers[-1], "aux_outputs": layers[:-1]}, targets)
    total = weighted_total(losses, weights)
    total.backward()
    return {
        "losses": {name: value.item() for name, value in losses.items()},
        "total_weighted": total.item(),
        "matches_per_layer": [
            [
                [queries.tolist(), numbers.tolist()]
                for queries, numbers in criterion.matcher(layer, targets)
            ]
            for layer in layers
        ],
        "grad_logits": torch.stack([layer["pred_logits"].grad for layer in layers]).numpy(),
        "grad_masks": torch.stack([layer["pred_masks"].grad for layer in layers]).numpy(),
    }


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation allocates.

    A view of an input, such as the result of a ``detach`` in torch 2.6, takes no memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        for value in out if isinstance(out, list | tuple) else [out]:
            # .item() returns a Python number
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in given:
                self.elements = max(self.elements, value.numel())
        return out


# Inference: 14 queries, 6 classes of which 0 to 2 are things, masks resized from 10×13 to 24×31.
THINGS = (0, 1, 2)
FULL_SIZE = (24, 31)
PANOPTIC_CASES: dict[str, dict[str, Any]] = {
    "default": {"object_mask_threshold": 0.8, "overlap_threshold": 0.8},
    "loose": {"object_mask_threshold": 0.5, "overlap_threshold": 0.3},
    "all": {"object_mask_threshold": 0.0, "overlap_threshold": 0.0},
    "none": {"object_mask_threshold": 1.1, "overlap_threshold": 0.8},
    "fuse_some": {
        "object_mask_threshold": 0.3,
        "overlap_threshold": 0.2,
        "label_ids_to_fuse": [1, 4],
    },
    "fuse_nothing": {
        "object_mask_threshold": 0.3,
        "overlap_threshold": 0.2,
        "label_ids_to_fuse": [],
    },
}


def inference_inputs(seed: int = 8) -> tuple[Tensor, Tensor]:
    """Return class logits 14×7 of confident queries, and mask logits 14×10×13 of small masks."""
    g = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(14, 7, generator=g), random_masks(14, (10, 13), seed, scale=6.0) - 4


def inference_figures() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Compute the facts and arrays of semantic, panoptic and instance results."""
    mask_cls, mask_pred = inference_inputs()
    facts: dict[str, Any] = {"cases": {}}
    arrays = {
        "semantic": semantic_inference(mask_cls, mask_pred, FULL_SIZE).numpy(),
        "semantic_map": semantic_map(mask_cls, mask_pred, FULL_SIZE).numpy().astype(np.uint8),
    }
    for name, options in PANOPTIC_CASES.items():
        ids, segments = panoptic_inference(
            mask_cls, mask_pred, thing_ids=THINGS, size=FULL_SIZE, **options
        )
        arrays[f"panoptic_{name}"] = ids.numpy().astype(np.uint8)
        facts["cases"][name] = {"segments_info": segments}
    found = instance_inference(mask_cls, mask_pred, topk=20, thing_ids=THINGS, size=FULL_SIZE)
    order = found.scores.argsort(descending=True)
    facts["instances"] = {
        "scores": found.scores[order].tolist(),
        "classes": found.pred_classes[order].tolist(),
        "boxes": found.pred_boxes.tensor[order].tolist(),
        "areas": found.pred_masks[order].flatten(1).sum(1).tolist(),
    }
    return facts, arrays


def _write(name: str, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    (GOLDEN / f"{name}.json").write_text(json.dumps(facts) + "\n")
    np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)


if __name__ == "__main__":
    figures = run_criterion(build_criterion(), *random_batch())
    gradients = {name: figures.pop(name) for name in ("grad_logits", "grad_masks")}
    _write("criterion", figures, gradients)
    batch = random_batch(**MASK2FORMER_BATCH)
    figures = run_criterion(mask2former_criterion(5), *batch, MASK2FORMER_WEIGHTS)
    gradients = {"grad_logits": figures.pop("grad_logits")}
    gradients["grad_masks_every3"] = figures.pop("grad_masks")[..., ::3, ::3, ::3]
    _write("mask2former_criterion", figures, gradients)
    _write("inference_functions", *inference_figures())


def logits_and_masks(pairs=5, pixels=23, seed=0):
    """Return logits and masks, pairs×pixels each; the last masks are empty, full and one pixel."""
    g = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(pairs, pixels, generator=g)
    masks = torch.rand(pairs, pixels, generator=g) > 0.5
    masks[-3], masks[-2], masks[-1] = False, True, False
    masks[-1, 4] = True
    return logits, masks.float()
