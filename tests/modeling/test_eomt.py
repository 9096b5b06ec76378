"""Whole EoMT models: masked attention, annealing, results, memory, compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from mask_former.engine.ema import WeightAverage
from mask_former.engine.hooks import AverageWeights
from mask_former.modeling import all_predictions
from mask_former.structures import layer_predictions
from tests.helpers.tiny_networks import tiny_eomt

pytest.importorskip("timm")

BLOCKS = 3


def example(size: tuple[int, int] = (64, 96), seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(3, *size, generator=generator) > 0.5
    instances = Instances(size, gt_classes=torch.tensor([3, 0, 1]), gt_masks=masks)
    return {"image": 255 * torch.rand(3, *size, generator=generator), "instances": instances}


def attention_masks(model: Any) -> list[Tensor | None]:
    """Record the mask of every attention of the head."""
    seen: list[Tensor | None] = []
    for block in model.sem_seg_head.blocks:
        block.attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs.get("attn_mask")), with_kwargs=True
        )
    return seen


@pytest.mark.parametrize("vit", ["test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_every_parameter_gets_a_gradient_and_each_prediction_is_supervised(vit: str) -> None:
    model = tiny_eomt(vit=vit).train()
    losses = model([example(), example(seed=1)])
    suffixes = ["", *(f"_{index}" for index in range(BLOCKS))]
    expected = {f"loss_{term}{s}" for term in ("ce", "mask", "dice") for s in suffixes}
    assert losses.keys() == expected
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_query_attends_to_the_patches_of_its_mask_and_to_all_other_tokens() -> None:
    model = tiny_eomt()
    seen = attention_masks(model)
    with torch.no_grad(), all_predictions(model):
        outputs = model.network(model.preprocess([example()]).tensor)
    head = model.sem_seg_head
    assert len(seen) == BLOCKS
    for allowed, prediction in zip(seen, layer_predictions(outputs), strict=False):
        masks = F.interpolate(prediction["pred_masks"], (4, 6), mode="bilinear") > 0
        assert allowed is not None and 0 < masks.float().mean() < 1
        start = 6 + 1  # queries and the class token
        assert torch.equal(allowed[0, 0, :6, start:], masks[0].flatten(1))
        assert allowed[0, 0, :, :start].all() and allowed[0, 0, 6:].all()
    assert head.num_before_patches == start


def test_evaluation_is_masked_until_training_has_lifted_all_masks() -> None:
    model = tiny_eomt()
    images = model.preprocess([example()]).tensor
    model.sem_seg_head.set_progress(0, 600)
    seen = attention_masks(model)
    with torch.no_grad():
        masked = model.network(images)
        assert masked["aux_outputs"] == [] and all(mask is not None for mask in seen)
        seen.clear()
        model.sem_seg_head.set_progress(600, 600)
        plain = model.network(images)
        assert seen == [None] * BLOCKS
    assert not torch.allclose(masked["pred_masks"], plain["pred_masks"])


def test_masks_of_some_queries_are_lifted_at_random_while_they_are_annealed() -> None:
    model = tiny_eomt(["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 200]).train()
    head = model.sem_seg_head
    head.set_progress(150, 600)  # the first block, at half of its range
    seen = attention_masks(model)
    torch.manual_seed(0)
    model.network(model.preprocess([example()]).tensor)
    rows = [mask[0, 0, :200, head.num_before_patches :] for mask in seen if mask is not None]
    lifted = [row.all(-1).float().mean().item() for row in rows]
    assert lifted[0] == pytest.approx(1 - 0.5**0.9, abs=0.12) and lifted[1] < 0.2


def test_lifting_all_masks_equals_attention_without_masks() -> None:
    model = tiny_eomt()
    images = model.preprocess([example()]).tensor
    head = model.sem_seg_head
    with torch.no_grad():
        head.set_progress(600, 600)
        plain = model.network(images)
        head._is_masked = (True,) * BLOCKS  # masks are made, and the random draws lift them all
        lifted = model.network(images)
    torch.testing.assert_close(plain["pred_masks"], lifted["pred_masks"], atol=1e-5, rtol=1e-4)


def test_the_progress_is_in_the_checkpoint() -> None:
    model, other = tiny_eomt(), tiny_eomt()
    model.sem_seg_head.set_progress(300, 600)
    other.load_state_dict(model.state_dict())
    found, expected = (one.sem_seg_head.attn_mask_probs for one in (other, model))
    assert torch.equal(found, expected) and 0 < expected[1] < 1
    model.sem_seg_head.set_progress(600, 600)
    other.load_state_dict(model.state_dict())
    seen = attention_masks(other)
    with torch.no_grad():
        other.network(other.preprocess([example()]).tensor)
    assert seen == [None] * BLOCKS


def test_without_masked_attention_training_supervises_the_last_prediction_only() -> None:
    model = tiny_eomt(["MODEL.EOMT.MASKED_ATTENTION", False]).train()
    seen = attention_masks(model)
    assert model([example()]).keys() == {"loss_ce", "loss_mask", "loss_dice"}
    assert seen == [None] * BLOCKS


def test_averaged_weights_have_the_progress_of_the_trained_ones() -> None:
    model = tiny_eomt()
    average = WeightAverage(model, 0.999)

    class Trainer:
        iter, max_iter = 599, 600

    hook = AverageWeights(average)
    hook.trainer = Trainer()
    hook.trainer.model = model
    hook.after_step()  # the first step is a copy
    model.sem_seg_head.set_progress(600, 600)
    hook.after_step()
    assert average.module.sem_seg_head.attn_mask_probs.tolist() == [0] * BLOCKS


def test_recomputed_blocks_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        model = tiny_eomt(["MODEL.ACTIVATION_CHECKPOINTING", recompute]).train()
        torch.manual_seed(0)
        sum(model([example()]).values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


def test_small_images_are_padded_with_black_and_large_ones_are_refused() -> None:
    model = tiny_eomt()
    image = example()["image"][:, :40, :50]
    batch = model.preprocess([{"image": image}])
    mean, std = model.pixel_mean[:, :, None], model.pixel_std[:, :, None]
    assert batch.image_sizes == [(40, 50)]
    assert torch.allclose(batch.tensor[0, :, 40:], (-mean / std)[..., 0], atol=1e-6)
    with pytest.raises(ValueError, match=r"65×96 pixels .* built for 64×96: set TEST\.RESIZE"):
        model.preprocess([example((65, 96))])


@torch.no_grad()
def test_results_have_the_size_of_the_original_image() -> None:
    key = "MODEL.MASK_FORMER.TEST."
    opts = [f"{key}SEMANTIC_ON", True, f"{key}PANOPTIC_ON", True, f"{key}INSTANCE_ON", True]
    result = tiny_eomt(opts)([example((40, 96)) | {"height": 80, "width": 190}])[0]
    assert tuple(result["sem_seg"].shape) == (4, 80, 190)
    assert tuple(result["panoptic_seg"][0].shape) == (80, 190)
    assert tuple(result["instances"].pred_masks.shape[1:]) == (80, 190)


@torch.no_grad()
def test_evenly_spaced_windows_are_averaged() -> None:
    opts = ["MODEL.EOMT.IMAGE_SIZE", [64, 64], "TEST.SLIDING_WINDOW.SIZE", 64]
    model = tiny_eomt([*opts, "TEST.SLIDING_WINDOW.MODE", "even"])
    image = example((64, 100))["image"]
    scores = model.predict([{"image": image}])[0].semantic_scores()
    left, right = (
        model.predict([{"image": image[..., part]}])[0].semantic_scores()
        for part in (slice(0, 64), slice(36, 100))
    )
    expected = torch.cat(
        (left[..., :36], (left[..., 36:] + right[..., :28]) / 2, right[..., 28:]), 2
    )
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_without_masks_the_network_is_one_compiled_graph() -> None:
    model = tiny_eomt()
    model.sem_seg_head.set_progress(600, 600)
    images = model.preprocess([example()]).tensor
    explained = torch._dynamo.explain(lambda x: model.sem_seg_head(model.backbone(x)))(images)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.EOMT.VIT", "resnet18"], r"MODEL\.EOMT\.VIT is 'resnet18', which is not a plain"),
        (["MODEL.EOMT.VIT", "vit_smal"], r"MODEL\.EOMT\.VIT is 'vit_smal', which is not one of"),
        (["MODEL.EOMT.NUM_BLOCKS", 6], r"MODEL\.EOMT\.NUM_BLOCKS is 6, expected 1 … 5"),
        (["MODEL.EOMT.IMAGE_SIZE", [64, 90]], r"MODEL\.EOMT\.IMAGE_SIZE is \[64, 90\]"),
        (["MODEL.BACKBONE.NAME", "build_resnet_backbone"], "'build_eomt_vit_backbone'"),
        (["MODEL.MASK_FORMER.MASK_LOSS_DIVISOR", "pairs"], "'targets' or 'matched'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(opts: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_eomt(opts)
