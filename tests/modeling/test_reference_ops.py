"""Every model gives the same results with ``MODEL.REFERENCE_OPS`` as without it.

The networks run in double precision, so that their outputs agree up to rounding. Results are
computed from them in fp32, in bands or in one piece, which changes the last digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.swin import BasicLayer
from detectron2.structures import Instances
from torch import Tensor

from mask_former.ops import WholeMasks, is_reference
from tests.helpers.tiny_networks import MASK2FORMER, tiny_network

TEST = "MODEL.MASK_FORMER.TEST."
PANOPTIC = [f"{TEST}PANOPTIC_ON", True, f"{TEST}INSTANCE_ON", True, f"{TEST}OVERLAP_THRESHOLD", 0.1]
WINDOWS = ["TEST.SLIDING_WINDOW.SIZE", 64, "TEST.SLIDING_WINDOW.STRIDE", 40]
POINTS = ["MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 40]
CROSS_ENTROPY = ["MODEL.MASK_FORMER.MASK_TERM", "cross_entropy"]
IGNORE = ["MODEL.MASK_FORMER.MASK_IGNORE", True]

BACKBONES = ["resnet", "swin", "timm"]
families = pytest.mark.parametrize("family", [*BACKBONES, "mask2former"])


def pair(family: str, *opts: Any) -> list[Any]:
    """Return two models with equal weights: with fast kernels, and with reference versions."""
    pytest.importorskip("timm") if family == "timm" else None
    if family == "mask2former":
        family, opts = "resnet", (*MASK2FORMER, *opts)
    opts = (*opts, "MODEL.MASK_FORMER.DROPOUT", 0.0, "MODEL.SWIN.DROP_PATH_RATE", 0.0)
    fast, reference = (
        tiny_network(family, [*opts, "MODEL.REFERENCE_OPS", on]).double() for on in (False, True)
    )
    with torch.no_grad():  # so that attention weights differ between pixels
        for name, weight in fast.named_parameters():
            if "qkv.weight" in name:
                weight.mul_(50)
            if "sampling_offsets" in name:  # whole cells at first, where the gradient jumps
                weight.normal_()
    reference.load_state_dict(fast.state_dict())
    for model in (fast, reference):
        model.criterion.float()  # losses are computed in fp32
        model.sem_seg_head.register_forward_hook(spread)
    return [fast, reference]


def spread(head: Any, arguments: Any, outputs: dict[str, Any]) -> None:
    """Forward hook: spread the head's outputs, so that queries differ in class and location."""
    for layer in (outputs, *outputs.get("aux_outputs", ())):
        masks = layer["pred_masks"]
        std, mean = torch.std_mean(masks.detach(), (-2, -1), keepdim=True)
        layer["pred_masks"] = 3 * (masks - mean) / std
        generator = torch.Generator().manual_seed(0)
        offset = 3 * torch.randn(layer["pred_logits"].shape[1:], generator=generator)
        layer["pred_logits"] = layer["pred_logits"] + offset


def image(size: tuple[int, int], seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(coarse.double(), size=size, mode="bilinear")[0]


def examples() -> list[dict[str, Any]]:
    """Return two images with targets and a map of valid pixels each."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for seed, size in enumerate([(64, 80), (70, 60)]):
        masks = F.interpolate(torch.rand(1, 3, 4, 5, generator=generator), size=size)[0] > 0.5
        instances = Instances(size, gt_classes=torch.tensor([3, 0, 1]), gt_masks=masks)
        valid = torch.rand(size, generator=generator) > 0.2
        made.append({"image": image(size, seed), "instances": instances, "valid": valid})
    return made


def run(function: Callable[[Any], Any], models: list[Any]) -> list[Any]:
    with torch.no_grad():
        return [function(model) for model in models]


@pytest.mark.parametrize("family", BACKBONES)
@pytest.mark.parametrize("order", [False, True], ids=["resized after", "resized before"])
def test_semantic_results_equal_the_references(family: str, order: bool) -> None:
    models = pair(family, f"{TEST}SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE", order)
    batch = [{"image": image((64, 80)), "height": 50, "width": 90}, {"image": image((70, 60), 1)}]
    for found, expected in zip(*run(lambda model: model(batch), models), strict=True):
        torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-4, atol=1e-5)
    for found, expected in zip(*run(lambda model: model.predict(batch), models), strict=True):
        assert_same_map(found.semantic_map(), expected.semantic_map())


def assert_same_map(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Compare classes and scores; a class may differ only where two scores are nearly equal."""
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    assert (found[0] == expected[0]).float().mean() > 0.999
    assert len(expected[0].unique()) > 1


@families
def test_panoptic_and_instance_results_equal_the_references(family: str) -> None:
    models = pair(family, *PANOPTIC)
    batch = [{"image": image((64, 80)), "height": 50, "width": 90}]
    (found,), (expected,) = run(lambda model: model(batch), models)
    (ids, segments), (expected_ids, expected_segments) = (
        found["panoptic_seg"],
        expected["panoptic_seg"],
    )
    assert (ids == expected_ids).float().mean() > 0.999
    assert len(segments) == len(expected_segments) > 0
    for one, other in zip(segments, expected_segments, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    one, other = found["instances"], expected["instances"]
    assert one.pred_classes.tolist() == other.pred_classes.tolist()
    assert (one.pred_masks == other.pred_masks).float().mean() > 0.999
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-6)


@families
def test_sliding_window_results_equal_the_references(family: str) -> None:
    models = pair(family, *WINDOWS)
    batch = [{"image": image((100, 140)), "height": 130, "width": 120}]
    (found,), (expected,) = run(lambda model: model(batch), models)
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-4, atol=1e-5)
    (logits,), (reference,) = run(lambda model: model.predict(batch), models)
    assert_same_map(logits.semantic_map(), reference.semantic_map())


@pytest.mark.parametrize(
    ("family", "opts"),
    [
        ("resnet", []),
        ("swin", []),
        ("timm", []),
        ("mask2former", []),
        ("swin", CROSS_ENTROPY),
        ("swin", IGNORE),
        ("swin", POINTS),
        ("swin", [*POINTS, *CROSS_ENTROPY, *IGNORE]),
    ],
    ids=str,
)
def test_losses_and_gradients_equal_the_references(family: str, opts: list[Any]) -> None:
    losses, gradients = [], []
    for model in pair(family, *opts, "MODEL.MASK_FORMER.DEC_LAYERS", 2):
        torch.manual_seed(0)  # the same sampled points
        values = model.train()(examples())
        sum(values.values()).backward()
        losses.append({name: value.item() for name, value in values.items()})
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, expected in gradients[1].items():
        if expected is None:
            assert gradients[0][name] is None
            continue
        scale = max(expected.abs().max().item(), 1e-6)
        torch.testing.assert_close(
            gradients[0][name], expected, rtol=1e-3, atol=1e-4 * scale, msg=f"{name}: {{}}"
        )


def test_the_reference_model_runs_the_reference_versions() -> None:
    fast, reference = pair("swin", *PANOPTIC)
    kinds = [{type(module) for module in model.backbone.modules()} for model in (fast, reference)]
    assert BasicLayer in kinds[1] and BasicLayer not in kinds[0]
    batch = [{"image": image((64, 80))}]
    (logits,) = run(lambda model: model.predict(batch)[0], [reference])
    assert isinstance(logits.image_masks, WholeMasks)
    seen = []
    for model in (fast, reference):
        criterion = model.criterion.forward
        model.criterion.forward = lambda *args, criterion=criterion, **options: (
            seen.append(is_reference()) or criterion(*args, **options)
        )
        model.train()(examples())
    assert seen == [False, True] and not is_reference()
