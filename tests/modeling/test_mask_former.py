"""The meta-architecture: padding, targets, weighted losses, and results in any combination."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage

from mask_former.inference import instance_inference, panoptic_inference, semantic_inference
from mask_former.registries import LOSS_REGISTRY
from tests.helpers.tiny_model import DATASET, tiny_settings

CLASSES, QUERIES, THINGS = 4, 6, {2, 3}


@pytest.fixture(autouse=True)
def metadata():
    """Metadata in which the last two of 4 classes are things."""
    MetadataCatalog.pop(DATASET, None)
    MetadataCatalog.get(DATASET).set(thing_dataset_id_to_contiguous_id={7: 2, 9: 3})
    yield
    MetadataCatalog.pop(DATASET, None)


@pytest.fixture
def tiny(cfg):
    """The tiny model's config, with one more decoder layer and nothing random in training."""
    cfg.merge_from_other_cfg(CfgNode(tiny_settings()))
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 2
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.0
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.0
    cfg.MODEL.SEM_SEG_HEAD.NORM = "LN"
    return cfg


def build(cfg):
    """Build the model with scaled-up weights, so that its queries differ."""
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        model.sem_seg_head.predictor.query_embed.weight.mul_(10)
        model.sem_seg_head.predictor.class_embed.weight.mul_(10)
        for layer in model.sem_seg_head.predictor.mask_embed.layers:
            layer.weight.mul_(4)
    return model


def make_image(size=(48, 60), seed=0):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=g) * 255
    return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0].byte()


def make_example(size=(48, 60), labels=(1, 3), seed=0, mask_size=None, bit_masks=False):
    """Return an example with one random rectangle as the mask of each label."""
    g = torch.Generator().manual_seed(seed + 100)
    masks = torch.zeros(len(labels), *(mask_size or size), dtype=torch.bool)
    for mask in masks:
        top, left = (int(torch.randint(0, side // 2, (1,), generator=g)) for side in mask.shape)
        mask[top : top + 20, left : left + 25] = True
    instances = Instances(size, gt_classes=torch.tensor(labels, dtype=torch.int64))
    instances.gt_masks = BitMasks(masks) if bit_masks else masks
    return {"image": make_image(size, seed), "instances": instances}


def losses_of(model, examples):
    model.train()
    return {name: value.item() for name, value in model(examples).items()}


def results_of(model, examples):
    model.eval()
    with torch.no_grad():
        return model(examples)


# Training


def test_training_returns_the_weighted_losses_of_every_layer(tiny):
    node = tiny.MODEL.MASK_FORMER
    node.CLASS_WEIGHT, node.MASK_WEIGHT, node.DICE_WEIGHT = 2.0, 5.0, 3.0
    model = build(tiny)
    examples = [make_example(), make_example(seed=1)]
    weighted = losses_of(model, examples)
    model.criterion.loss_weights = {}
    plain = losses_of(model, examples)
    weights = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 3.0}
    expected = {
        name + suffix: weight * plain[name + suffix]
        for name, weight in weights.items()
        for suffix in ("", "_0")
    }
    assert weighted == pytest.approx(expected, rel=1e-5)
    assert all(value > 0 for value in plain.values())


def test_matching_costs_have_the_weights_of_the_losses(tiny):
    tiny.MODEL.MASK_FORMER.CLASS_WEIGHT = 2.0
    tiny.MODEL.MASK_FORMER.MASK_WEIGHT = 5.0
    tiny.MODEL.MASK_FORMER.DICE_WEIGHT = 3.0
    matcher = build(tiny).criterion.matcher
    assert (matcher.class_weight, matcher.mask_weight, matcher.dice_weight) == (2.0, 5.0, 3.0)


def test_every_parameter_gets_a_finite_gradient(tiny):
    model = build(tiny).train()
    sum(model([make_example(), make_example(seed=1)]).values()).backward()
    names = {
        name
        for name, value in model.named_parameters()
        if value.grad is None or not value.grad.isfinite().all()
    }
    assert names == set()


def test_training_works_with_and_without_an_event_storage(tiny):
    model = build(tiny)
    without = losses_of(model, [make_example()])
    with EventStorage():
        assert losses_of(model, [make_example()]) == pytest.approx(without, rel=1e-6)


def test_bit_masks_and_tensors_give_equal_losses(tiny):
    model = build(tiny)
    tensors = losses_of(model, [make_example(), make_example(seed=1)])
    wrapped = losses_of(model, [make_example(bit_masks=True), make_example(seed=1, bit_masks=True)])
    assert wrapped == tensors


def test_target_masks_are_padded_with_false_on_the_right_and_below(tiny):
    model = build(tiny)
    small = make_example((48, 60), labels=(1, 3))
    large = make_example((80, 70), labels=(2,), seed=1)
    images = model.preprocess([small, large])
    targets = model.prepare_targets([small, large], images)
    assert tuple(images.tensor.shape) == (2, 3, 96, 96)
    for target, example in zip(targets, [small, large], strict=True):
        masks = example["instances"].gt_masks
        expected = torch.zeros(len(masks), 96, 96, dtype=torch.bool)
        expected[:, : masks.shape[1], : masks.shape[2]] = masks
        assert torch.equal(target["masks"], expected)
        assert torch.equal(target["labels"], example["instances"].gt_classes)


def test_masks_larger_than_the_batch_are_refused_not_cropped(tiny):
    model = build(tiny).train()
    wrong = {**make_example((48, 60), mask_size=(48, 100)), "file_name": "street.png"}
    with pytest.raises(ValueError, match=r"street\.png.*\(48, 100\).*larger.*\(64, 64\)"):
        model([wrong])


def with_valid(example):
    """Return the example with only the pixels left of column 30 valid."""
    valid = torch.zeros(example["instances"].gt_masks.shape[-2:], dtype=torch.bool)
    valid[:, :30] = True
    return {**example, "valid": valid}


def test_invalid_pixels_and_padding_do_not_change_the_losses(tiny):
    tiny.MODEL.MASK_FORMER.MASK_IGNORE = True
    model = build(tiny)
    example = with_valid(make_example((48, 60)))
    (target,) = model.prepare_targets([example], model.preprocess([example]))
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[:48, :30] = True
    assert torch.equal(target["valid"], expected)
    losses = losses_of(model, [example])
    changed = make_example((48, 60))
    changed["instances"].gt_masks[..., 30:] ^= True
    assert losses_of(model, [with_valid(changed)]) == losses
    model.mask_ignore = False  # the published losses ignore the example's "valid"
    assert losses_of(model, [example]) == losses_of(model, [make_example((48, 60))]) != losses


def test_the_error_for_a_missing_or_wrong_map_of_valid_pixels_names_the_image(tiny):
    tiny.MODEL.MASK_FORMER.MASK_IGNORE = True
    model = build(tiny).train()
    example = {**make_example((48, 60)), "file_name": "street.png"}
    with pytest.raises(ValueError, match=r"street\.png: .*MASK_IGNORE.*\(48, 60\).*it is missing"):
        model([example])
    example["valid"] = torch.ones(48, 61, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"street\.png: .*its size is \(48, 61\)"):
        model([example])


def test_a_model_trains_with_sampled_points(tiny):
    dense = losses_of(build(tiny), [make_example()])
    tiny.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 500
    model = build(tiny)
    assert model.criterion.point_rule is model.criterion.matcher.point_rule
    torch.manual_seed(0)
    losses = losses_of(model, [make_example()])
    assert losses.keys() == dense.keys() and losses != dense
    sum(model([make_example()]).values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("others", [0, 1])
def test_an_image_without_targets_trains(tiny, others):
    model = build(tiny).train()
    examples = [make_example(labels=()), *[make_example(seed=1)] * others]
    losses = model(examples)
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert (losses["loss_mask"] > 0) == (losses["loss_dice"] > 0) == bool(others)
    grad = model.sem_seg_head.predictor.class_embed.weight.grad
    assert grad.isfinite().all() and grad.abs().sum() > 0


def test_a_custom_loss_adds_its_term_with_weight_1(tiny):
    @LOSS_REGISTRY.register(name="_confidence")
    def confidence(batch):
        terms = [layer["pred_logits"].square().mean() for layer in batch.layers]
        return {"loss_confidence": torch.stack(terms)}

    try:
        plain = losses_of(build(tiny), [make_example()])
        tiny.MODEL.MASK_FORMER.LOSSES = ["labels", "masks", "_confidence"]
        model = build(tiny)
        found = losses_of(model, [make_example()])
        images = model.preprocess([make_example()])
        outputs = model.sem_seg_head(model.backbone(images.tensor))
    finally:
        LOSS_REGISTRY._obj_map.pop("_confidence")
    added = {
        "loss_confidence_0": outputs["aux_outputs"][0]["pred_logits"].square().mean().item(),
        "loss_confidence": outputs["pred_logits"].square().mean().item(),
    }
    assert found == pytest.approx({**plain, **added}, rel=1e-5)


# Input


@pytest.mark.parametrize(
    ("divisibility", "expected"),
    [(0, (70, 81)), (10, (70, 90)), (32, (96, 96)), (-1, (96, 96))],
)
def test_images_are_padded_with_0_to_the_divisor(tiny, divisibility, expected):
    tiny.MODEL.MASK_FORMER.SIZE_DIVISIBILITY = divisibility
    model = build(tiny)
    assert model.size_divisibility == (32 if divisibility < 0 else divisibility)
    examples = [{"image": make_image((70, 60))}, {"image": make_image((45, 81), seed=1)}]
    batch = model.preprocess(examples).tensor
    assert tuple(batch.shape) == (2, 3, *expected)
    mean, std = (torch.tensor(v) for v in (tiny.MODEL.PIXEL_MEAN, tiny.MODEL.PIXEL_STD))
    for found, example in zip(batch, examples, strict=True):
        height, width = example["image"].shape[-2:]
        for channel in range(3):
            normalised = (example["image"][channel].float() - mean[channel]) / std[channel]
            torch.testing.assert_close(found[channel, :height, :width], normalised)
        assert not found[:, height:].any() and not found[:, :, width:].any()


def test_the_pixel_mean_and_deviation_are_not_in_the_state_dict(tiny):
    model = build(tiny)
    assert {"pixel_mean", "pixel_std"}.isdisjoint(model.state_dict())
    assert tuple(model.pixel_mean.shape) == tuple(model.pixel_std.shape) == (3, 1, 1)


def test_the_input_is_not_modified(tiny):
    example = make_example()
    image, masks = example["image"].clone(), example["instances"].gt_masks.clone()
    model = build(tiny)
    losses_of(model, [example])
    results_of(model, [example])
    assert torch.equal(example["image"], image)
    assert torch.equal(example["instances"].gt_masks, masks)


# Results


@pytest.mark.parametrize("flags", list(itertools.product([True, False], repeat=3)))
def test_any_combination_of_results_can_be_requested(tiny, flags):
    test = tiny.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON, test.PANOPTIC_ON, test.INSTANCE_ON = flags
    (result,) = results_of(build(tiny), [{"image": make_image(), "height": 90, "width": 70}])
    names = ("sem_seg", "panoptic_seg", "instances")
    assert list(result) == [name for name, on in zip(names, flags, strict=True) if on]
    if "sem_seg" in result:
        assert tuple(result["sem_seg"].shape) == (CLASSES, 90, 70)
    if "panoptic_seg" in result:
        ids, segments = result["panoptic_seg"]
        assert tuple(ids.shape) == (90, 70)
        assert {segment["id"] for segment in segments} == set(ids.unique().tolist()) - {0}
    if "instances" in result:
        assert result["instances"].image_size == (90, 70)
        assert set(result["instances"].pred_classes.tolist()) <= THINGS


def test_without_an_output_size_results_have_the_image_size(tiny):
    examples = [{"image": make_image((48, 60))}, {"image": make_image((70, 45), seed=1)}]
    results = results_of(build(tiny), examples)
    assert [tuple(one["sem_seg"].shape) for one in results] == [(4, 48, 60), (4, 70, 45)]


def resize(x, size):
    return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("before", [True, False])
def test_masks_are_upsampled_cropped_and_resized_in_the_configured_order(tiny, before):
    tiny.MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = before
    model = build(tiny)
    example = {"image": make_image((48, 60)), "height": 90, "width": 70}
    (result,) = results_of(model, [example])
    with torch.no_grad():
        images = model.preprocess([example])
        outputs = model.sem_seg_head(model.backbone(images.tensor))
    mask_cls = outputs["pred_logits"][0]
    masks = resize(outputs["pred_masks"][0], (64, 64))[:, :48, :60]
    if before:
        expected = semantic_inference(mask_cls, resize(masks, (90, 70)))
    else:
        expected = resize(semantic_inference(mask_cls, masks), (90, 70))
    torch.testing.assert_close(result["sem_seg"], expected, rtol=1e-5, atol=1e-6)


def test_all_results_use_the_resized_masks_and_the_configured_thresholds(tiny):
    test = tiny.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON = test.PANOPTIC_ON = test.INSTANCE_ON = True
    test.OBJECT_MASK_THRESHOLD, test.OVERLAP_THRESHOLD = 0.3, 0.4
    tiny.TEST.DETECTIONS_PER_IMAGE = 9
    model = build(tiny)
    example = {"image": make_image((48, 60)), "height": 90, "width": 70}
    (result,) = results_of(model, [example])
    with torch.no_grad():
        images = model.preprocess([example])
        outputs = model.sem_seg_head(model.backbone(images.tensor))
    mask_cls = outputs["pred_logits"][0]
    masks = resize(resize(outputs["pred_masks"][0], (64, 64))[:, :48, :60], (90, 70))
    torch.testing.assert_close(result["sem_seg"], semantic_inference(mask_cls, masks))
    ids, segments = panoptic_inference(
        mask_cls, masks, thing_ids=THINGS, object_mask_threshold=0.3, overlap_threshold=0.4
    )
    assert segments
    assert torch.equal(result["panoptic_seg"][0], ids)
    assert result["panoptic_seg"][1] == segments
    found = instance_inference(mask_cls, masks, topk=9, thing_ids=THINGS)
    assert 0 < len(found) < 9
    assert torch.equal(result["instances"].pred_classes, found.pred_classes)
    assert torch.equal(result["instances"].pred_masks, found.pred_masks)
    torch.testing.assert_close(result["instances"].scores, found.scores)


@pytest.mark.parametrize("flags", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)], ids=str)
@torch.no_grad()
def test_results_computed_from_the_logits_equal_the_forward_passs(tiny, flags):
    test = tiny.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON, test.PANOPTIC_ON, test.INSTANCE_ON = map(bool, flags)
    test.OBJECT_MASK_THRESHOLD, test.OVERLAP_THRESHOLD = 0.3, 0.4
    model = build(tiny).eval()
    examples = [{"image": make_image((48, 60)), "height": 90, "width": 70}]
    examples.append({"image": make_image((70, 45), seed=1)})
    for logits, expected in zip(model.predict(examples), model(examples), strict=True):
        if "sem_seg" in expected:
            assert torch.equal(logits.semantic_scores(), expected["sem_seg"])
            assert torch.equal(logits.semantic_map()[0], expected["sem_seg"].argmax(0))
        if "panoptic_seg" in expected:
            ids, segments = logits.panoptic(
                thing_ids=THINGS, object_mask_threshold=0.3, overlap_threshold=0.4
            )
            assert torch.equal(ids, expected["panoptic_seg"][0])
            assert segments == expected["panoptic_seg"][1]
        if "instances" in expected:
            found = logits.instances(topk=model.inference.topk, thing_ids=THINGS)
            for name, value in expected["instances"].get_fields().items():
                other = found.get(name)
                if name == "pred_boxes":
                    value, other = value.tensor, other.tensor
                assert torch.equal(value, other), name


def test_predicting_in_training_mode_is_refused(tiny):
    with pytest.raises(ValueError, match=r"training mode: call \.eval\(\)"):
        build(tiny).train().predict([{"image": make_image()}])


def test_an_images_result_does_not_depend_on_its_batch_mates(tiny):
    model = build(tiny)
    # both are padded to 64×64
    one, two = {"image": make_image((48, 60))}, {"image": make_image((50, 40), seed=1)}
    together = results_of(model, [one, two])
    swapped = results_of(model, [two, one])
    for index, example in enumerate([one, two]):
        (alone,) = results_of(model, [example])
        for other in (together[index], swapped[1 - index]):
            torch.testing.assert_close(other["sem_seg"], alone["sem_seg"], rtol=1e-4, atol=1e-5)


# Building


@pytest.mark.parametrize("classes", [1, 7])
def test_the_number_of_classes_may_differ_from_the_metadata(tiny, classes):
    MetadataCatalog.get(DATASET).set(stuff_classes=["a", "b", "c", "d"])
    tiny.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
    model = build(tiny)
    (result,) = results_of(model, [{"image": make_image()}])
    assert result["sem_seg"].shape[0] == classes
    assert all(value >= 0 for value in losses_of(model, [make_example(labels=(0,))]).values())


def test_thing_classes_come_from_the_training_datasets_metadata(tiny):
    tiny.DATASETS.TEST = ("another_val",)
    assert build(tiny).thing_ids == THINGS
    tiny.DATASETS.TRAIN = ()
    assert build(tiny).thing_ids == set()


def test_without_things_in_the_metadata_every_class_may_be_an_instance(tiny):
    tiny.DATASETS.TRAIN = ()
    tiny.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    (result,) = results_of(build(tiny), [{"image": make_image()}])
    assert set(result["instances"].pred_classes.tolist()) - THINGS


def test_the_error_for_an_unknown_loss_lists_the_known_ones(tiny):
    tiny.MODEL.MASK_FORMER.LOSSES = ["labels", "unheard"]
    with pytest.raises(KeyError, match=r"LOSSES is 'unheard'.*'labels', 'masks'"):
        build(tiny)
