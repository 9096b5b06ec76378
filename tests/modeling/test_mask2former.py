"""Whole Mask2Former models: predictions in training and inference, results, reference kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from mask_former.inference import panoptic_inference
from mask_former.modeling import all_predictions
from mask_former.structures import layer_predictions
from tests.helpers.tiny_networks import MASK2FORMER, tiny_network

LAYERS = 5
"""Predictions of the tiny model."""


def example(seed: int = 0, count: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, 64, 96, generator=generator) > 0.5
    masks[2:3] = False  # cut off by a crop
    classes = torch.tensor([3, 0, 1]).repeat(3)[:count]
    instances = Instances((64, 96), gt_classes=classes, gt_masks=masks)
    return {"image": 255 * torch.rand(3, 64, 96, generator=generator), "instances": instances}


def count_predictions(model: Any, outputs: list[int]) -> None:
    """Append the number of predictions of each forward pass of the head to ``outputs``."""
    model.sem_seg_head.register_forward_hook(
        lambda head, arguments, out: outputs.append(len(layer_predictions(out)))
    )


@pytest.mark.parametrize("family", ["resnet", "swin"])
def test_every_parameter_gets_a_gradient_from_all_ten_losses(family: str) -> None:
    model = tiny_network(family, MASK2FORMER).train()
    losses = model([example(0), example(1)])
    names = {f"loss_{term}" for term in ("ce", "mask", "dice")}
    suffixes = ["", *(f"_{index}" for index in range(LAYERS - 1))]
    assert losses.keys() == {name + suffix for name in names for suffix in suffixes}
    sum(losses.values()).backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


@torch.no_grad()
def test_results_need_one_prediction_and_a_call_of_the_head_returns_all() -> None:
    model, counts = tiny_network("resnet", MASK2FORMER), []
    count_predictions(model, counts)
    model([example()])
    features = model.backbone(model.preprocess([example()]).tensor)
    model.sem_seg_head(features)
    with all_predictions(model):
        model.losses([example()])
    assert counts == [1, LAYERS, LAYERS]


@torch.no_grad()
@pytest.mark.parametrize("within", [False, True])
def test_the_panoptic_rule_of_the_config_decides_about_pixels_outside_all_masks(
    within: bool,
) -> None:
    key = "MODEL.MASK_FORMER.TEST."
    opts = [f"{key}PANOPTIC_ON", True, f"{key}SEGMENT_WITHIN_MASK", within]
    model = tiny_network("resnet", [*MASK2FORMER, *opts])
    (logits,) = model.predict([example()])
    found = logits.panoptic(thing_ids=(), object_mask_threshold=0.0, overlap_threshold=0.0)
    options = {"thing_ids": (), "object_mask_threshold": 0.0, "overlap_threshold": 0.0}
    expected = panoptic_inference(
        logits.mask_cls, logits.mask_pred, size=(64, 96), segment_within_mask=within, **options
    )
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1]
    ids, segments = model([example()])[0]["panoptic_seg"]
    assert torch.equal(ids, found[0]) and segments == found[1]


def test_images_without_targets_and_with_more_than_queries_are_trained() -> None:
    model = tiny_network("resnet", MASK2FORMER).train()
    for counts in ((0, 0), (0, 9)):
        total = sum(model([example(count=count) for count in counts]).values())
        assert total.isfinite()
        total.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_a_resnet_with_synchronised_norms_trains_on_a_cpu() -> None:
    opts = [*MASK2FORMER, "MODEL.RESNETS.NORM", "SyncBN", "MODEL.BACKBONE.FREEZE_AT", 0]
    model = tiny_network("resnet", opts).train()
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    before: Tensor = model.backbone.stem.conv1.norm.running_mean.clone()
    sum(model([example(0), example(1)]).values()).backward()
    assert not torch.equal(model.backbone.stem.conv1.norm.running_mean, before)
    assert model.backbone.stem.conv1.norm.weight.grad is not None
