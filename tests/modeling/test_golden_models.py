"""Whole models reproduce the published logits, results, losses, gradients and first step."""

from __future__ import annotations

import json
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from mask_former.engine import Trainer
from mask_former.modeling import all_predictions
from mask_former.structures import layer_predictions
from tests.helpers.core_cases import point_grid
from tests.helpers.golden_cases import build_case_model, load_case, make_image, unpack_masks

pytestmark = pytest.mark.slow

CASES = (
    "ade20k150_maskformer_R50",
    "coco_panoptic_R50",
    "ade20k150_maskformer_swin_tiny",
    "ade20k150_per_pixel_R50",
    "mask2former_coco_panoptic_R50",
    "mask2former_ade20k_semantic_swin_tiny",
)


@pytest.fixture(scope="module", params=CASES)
def case(request) -> SimpleNamespace:
    """A golden case: expected facts and arrays, config, model and input examples."""
    facts, arrays = load_case(request.param)
    cfg, model = build_case_model(facts)
    if "num_points" in facts:  # those of a regular grid instead of random ones
        model.criterion.fixed_points = model.criterion.matcher.fixed_points = point_grid(112)
    inputs = []
    for index, (size, output) in enumerate(zip(facts["sizes"], facts["output_sizes"], strict=True)):
        masks = unpack_masks(arrays[f"gt_masks{index}"], facts[f"gt_masks{index}_shape"])
        instances = Instances(
            tuple(size),
            gt_classes=torch.from_numpy(arrays[f"gt_classes{index}"]),
            gt_masks=masks,
        )
        image = make_image(index, tuple(size), arrays, facts.get("seed", 7))
        example = {"image": image, "height": output[0], "width": output[1]}
        if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
            example["sem_seg"] = label_map(instances)
        else:
            example["instances"] = instances
        inputs.append(example)
    return SimpleNamespace(facts=facts, arrays=arrays, cfg=cfg, model=model, inputs=inputs)


def label_map(instances: Instances) -> torch.Tensor:
    """Return the H×W label map: 255 outside all masks, later masks over earlier ones."""
    labels = torch.full(instances.image_size, 255)
    for label, mask in zip(instances.gt_classes, instances.gt_masks, strict=True):
        labels[mask] = label
    return labels


@pytest.fixture(scope="module")
def evaluation(case) -> SimpleNamespace:
    """The case's model, run once for inference, with its inner outputs kept."""
    inner: dict[str, Any] = {}
    hooks = [
        case.model.backbone.register_forward_hook(
            lambda _, args, out: inner.update(padded=args[0].shape, features=out)
        ),
        case.model.sem_seg_head.register_forward_hook(
            lambda _, args, out: inner.update(out if isinstance(out, dict) else {})
        ),
    ]
    case.model.eval()
    with torch.no_grad():
        results = case.model(case.inputs)
    for hook in hooks:
        hook.remove()
    return SimpleNamespace(results=results, **inner)


def sampled(array: torch.Tensor, like: np.ndarray) -> np.ndarray:
    """Return the evenly spaced values of ``array`` that the golden file ``like`` keeps."""
    flat = array.detach().numpy().reshape(-1)
    return flat[:: flat.size // len(like)][: len(like)]


def assert_close(actual: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(sampled(actual, expected), expected, rtol=1e-4, atol=1e-4)


def test_the_batch_is_padded_as_published(case, evaluation):
    assert list(evaluation.padded) == case.facts["padded_shape"]


def test_backbone_maps_match_the_published_means(case, evaluation):
    means = {name: value.abs().mean().item() for name, value in evaluation.features.items()}
    assert means == pytest.approx(case.facts["feature_mean_abs"], rel=1e-4)


def test_predictions_match_the_published_ones(case, evaluation):
    if "pred_logits" not in case.arrays:
        return  # a per-pixel model has no query predictions
    assert_close(evaluation.pred_logits, case.arrays["pred_logits"])
    assert_close(evaluation.pred_masks[:, ::9], case.arrays["pred_masks_every9"])


def test_semantic_results_match_the_published_ones(case, evaluation):
    for index, result in enumerate(evaluation.results):
        semantic = result["sem_seg"]
        assert list(semantic.shape) == case.facts[f"sem_seg{index}_shape"]
        assert_close(semantic[:, ::7, ::7], case.arrays[f"sem_seg{index}_every7"])
        best = semantic.argmax(0)[::8, ::8].numpy()
        assert (best != case.arrays[f"sem_argmax{index}"]).mean() <= 1e-4


def test_panoptic_results_match_the_published_ones(case, evaluation):
    if "segments0" not in case.facts:
        assert all("panoptic_seg" not in result for result in evaluation.results)
        return
    for index, result in enumerate(evaluation.results):
        ids, segments = result["panoptic_seg"]
        assert (ids.numpy() != case.arrays[f"panoptic{index}"]).mean() <= 1e-4
        assert [
            {key: segment[key] for key in ("id", "isthing", "category_id")} for segment in segments
        ] == case.facts[f"segments{index}"]


def test_instance_results_match_the_published_ones(case, evaluation):
    for index, result in enumerate(evaluation.results):
        assert ("instances" in result) == (f"inst_scores{index}" in case.arrays)
        if "instances" in result:
            scores = result["instances"].scores.sort(descending=True).values
            np.testing.assert_allclose(scores, case.arrays[f"inst_scores{index}"], atol=1e-4)
            classes = result["instances"].pred_classes.sort().values
            expected = np.sort(case.arrays[f"inst_classes{index}"])
            np.testing.assert_array_equal(classes, expected)


@pytest.fixture(scope="module")
def step(case) -> SimpleNamespace:
    """One training step: losses, gradient norms, optimizer and parameter names."""
    case.model.train()
    optimizer = Trainer.build_optimizer(case.cfg, case.model)
    losses = case.model(case.inputs)
    sum(losses.values()).backward()
    names = {parameter: name for name, parameter in case.model.named_parameters()}
    grad_norms = {name: p.grad.norm().item() for p, name in names.items() if p.grad is not None}
    optimizer.step()
    return SimpleNamespace(losses=losses, grad_norms=grad_norms, optimizer=optimizer, names=names)


def test_all_layers_are_matched_as_published(case):
    if "matches_per_layer" not in case.facts:
        return
    model = case.model.eval()
    images = model.preprocess(case.inputs)
    with torch.no_grad(), all_predictions(model):
        layers = layer_predictions(model.network(images.tensor))
    matches = model.criterion.matcher.match_layers(
        layers, model.prepare_targets(case.inputs, images)
    )
    assert [
        [[list(pair) for pair in zip(*(one.tolist() for one in match), strict=True)] for match in m]
        for m in matches
    ] == [
        [[list(pair) for pair in zip(*image, strict=True)] for image in layer]
        for layer in case.facts["matches_per_layer"]
    ]


def test_losses_match_the_published_ones(case, step):
    losses = {name: value.item() for name, value in step.losses.items()}
    assert losses == pytest.approx(case.facts["losses"], rel=1e-4)


def test_gradient_norms_match_the_published_ones(case, step):
    expected = case.facts["grad_norms"]
    actual = {name: step.grad_norms[name] for name in expected}
    # abs: the gradient of a bias that a following norm cancels is only rounding error.
    assert actual == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_learning_rate_and_weight_decay_of_every_parameter_match_the_published_ones(case, step):
    names: dict[str, list[str]] = {}
    for group in step.optimizer.param_groups:
        key = json.dumps([group["lr"], group["weight_decay"]])
        names.setdefault(key, []).extend(step.names[parameter] for parameter in group["params"])
    assert {
        key: [len(value), zlib.crc32("\n".join(sorted(value)).encode())]
        for key, value in names.items()
    } == case.facts["param_groups_crc32"]


def test_one_step_clips_and_moves_the_parameters_as_published(case, step):
    moments = [state["exp_avg"].norm() for state in step.optimizer.state.values()]
    first_moment = torch.stack(moments).norm().item()
    assert first_moment == pytest.approx(case.facts["first_moment_norm"], rel=1e-3)
    state = dict(case.model.named_parameters())
    for name, expected in case.facts["param_norms_after_step"].items():
        assert state[name].norm().item() == pytest.approx(expected, rel=1e-4), name
