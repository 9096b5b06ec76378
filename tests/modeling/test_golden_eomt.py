"""EoMT reproduces the published predictions, losses, gradients and parameter groups."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from mask_former.checkpoint.eomt_names import from_official, to_official
from mask_former.config.keys import get_mask_former_cfg
from mask_former.modeling import all_predictions
from mask_former.solver import build_optimizer
from mask_former.structures import Outputs, Target, layer_predictions
from tests.helpers.golden_cases import load_case, make_image, random_weight, unpack_masks
from tests.helpers.paths import ROOT

pytest.importorskip("timm")
pytestmark = pytest.mark.slow

CONFIGS = {
    "eomt_small": "dinov2/coco/panoptic/eomt_small_640_2x.yaml",
    "eomt_dinov3_small": "dinov3/coco/panoptic/eomt_small_640_2x.yaml",
}
ROTARY_FACTOR = 1.25  # in training mode, instead of a random one
real_rand = torch.rand


def draw(*size: Any, device: Any = None) -> Tensor:
    """Return the same points for each mask, and the same numbers for each shape."""
    size = size[0] if size and not isinstance(size[0], int) else size
    count = math.prod(size)
    if count == 1:
        return torch.tensor([math.log(ROTARY_FACTOR * 2) / math.log(4)])
    if size[-1] == 2 and len(size) > 1:
        points = real_rand(size[-2], 2, generator=torch.Generator().manual_seed(size[-2]))
        return points.expand(*size).clone()
    return real_rand(*size, generator=torch.Generator().manual_seed(count))


@contextmanager
def fixed_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace random numbers by those of the golden cases (rule R of their README)."""

    def uniform_(tensor: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
        return tensor.copy_(low + (high - low) * draw(*tensor.shape).view(tensor.shape))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", draw)
        patch.setattr(Tensor, "uniform_", uniform_)
        yield


def load_published(model: nn.Module) -> None:
    """Fill the published names with random values and load them through the renaming."""
    buffers = ("attn_mask_probs", "pixel_mean", "pixel_std", "empty_weight")
    official = {
        name: value if name.endswith(buffers) else random_weight(name, value.shape)
        for name, value in to_official(model.state_dict()).items()
    }
    missing, unexpected = model.load_state_dict(from_official(official), strict=False)
    assert not unexpected and all(name.endswith(".k_bias") for name in missing)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest) -> SimpleNamespace:
    """A golden case: its facts and arrays, config, model, normalised images and targets."""
    facts, arrays = load_case(request.param)
    cfg = get_mask_former_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / "eomt" / CONFIGS[request.param]))
    key = "MODEL.EOMT."
    opts = ["MODEL.DEVICE", "cpu", f"{key}IMAGE_SIZE", facts["img_size"]]
    opts += [f"{key}ANNEALING.START_STEPS", [], f"{key}ANNEALING.END_STEPS", []]
    opts += [f"{key}NUM_BLOCKS", facts["num_blocks"]]
    opts += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", facts["num_classes"]]
    opts += ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", facts["num_q"]]
    cfg.merge_from_list(opts)
    model = build_model(cfg)
    load_published(model)
    images = [make_image(i, tuple(facts["img_size"]), arrays, facts["image_seed"]) for i in (0, 1)]
    targets: list[Target] = [
        {
            "labels": torch.from_numpy(arrays[f"gt_classes{i}"]),
            "masks": unpack_masks(arrays[f"gt_masks{i}"], facts[f"gt_masks{i}_shape"]),
        }
        for i in (0, 1)
    ]
    tensor = model.preprocess([{"image": image} for image in images]).tensor
    return SimpleNamespace(
        facts=facts, arrays=arrays, cfg=cfg, model=model, images=tensor, targets=targets
    )


def set_probabilities(case: SimpleNamespace, kind: str) -> None:
    values = {"unmasked": [0.0], "masked": [1.0], "mixed": case.facts["mixed_probs"]}[kind]
    count = case.facts["num_blocks"]
    case.model.sem_seg_head.set_shares(values * count if len(values) == 1 else values)


def compare(case: SimpleNamespace, kind: str, outputs: Outputs) -> None:
    predictions = layer_predictions(outputs)
    for name, step in (("pred_logits", 1), ("pred_masks", case.facts["query_step"])):
        found = torch.stack([p[name][:, ::step] for p in predictions]).detach()
        if name == "pred_masks":
            found = found[..., ::2, ::7, ::7]
        expected = torch.from_numpy(case.arrays[f"{kind}_{name}"])
        found = found[0] if kind == "unmasked" else found
        error = (found - expected).abs() / (1 + expected.abs())
        assert found.shape == expected.shape and error.max() < 1e-4, name


@torch.no_grad()
def test_evaluation_without_masks_gives_one_prediction_the_published_one(case) -> None:
    set_probabilities(case, "unmasked")
    outputs = case.model.eval().sem_seg_head(case.model.backbone(case.images))
    assert outputs["aux_outputs"] == []
    compare(case, "unmasked", outputs)


@pytest.mark.parametrize("kind", ["masked", "mixed"])
@torch.no_grad()
def test_all_predictions_before_and_after_the_last_blocks_are_the_published_ones(
    case, kind, monkeypatch
) -> None:
    set_probabilities(case, kind)
    case.model.eval()
    with fixed_numbers(monkeypatch), all_predictions(case.model):
        compare(case, kind, case.model.sem_seg_head(case.model.backbone(case.images)))


def test_losses_gradients_and_their_norms_are_the_published_ones(case, monkeypatch) -> None:
    model, facts = case.model.train(), case.facts
    set_probabilities(case, "masked")
    with fixed_numbers(monkeypatch):
        outputs = model.sem_seg_head(model.backbone(case.images))
        losses = model.criterion(outputs, case.targets)
    names = {"loss_ce": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}
    blocks = facts["num_blocks"]
    suffixes = {"": "", **{f"_{i}": f"_block_{i - blocks}" for i in range(blocks)}}
    expected = {
        ours + suffix: facts["losses"]["masked"][theirs + suffixes[suffix]]
        for ours, theirs in names.items()
        for suffix in suffixes
    }
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=1e-4)
    weights = model.criterion.loss_weights
    total = sum(weights[name.rstrip("_0123456789")] * value for name, value in losses.items())
    model.zero_grad()
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    official = to_official({**model.state_dict(), **gradients})
    found = {name: official[name].norm().item() for name in facts["grad_norms"]}
    assert found == pytest.approx(facts["grad_norms"], rel=2e-3, abs=2e-3)
    squares = sum(gradient.double().square().sum().item() for gradient in gradients.values())
    assert math.sqrt(squares) == pytest.approx(facts["grad_norm_before_clipping"], rel=1e-3)


@pytest.mark.parametrize(("variant", "last_blocks"), [("default", True), ("l2_off", False)])
def test_learning_rates_and_weight_decays_are_the_published_ones(
    case, variant, last_blocks
) -> None:
    cfg = case.cfg.clone()
    cfg.merge_from_list(["SOLVER.LAYER_DECAY", 0.8, "SOLVER.LAYER_DECAY_LAST_BLOCKS", last_blocks])
    groups = build_optimizer(cfg, case.model).param_groups
    by_parameter = {id(group["params"][0]): group for group in groups}
    for kind, position in (("lr", 0), ("weight_decay", 1)):
        values = {
            name: torch.full_like(parameter, by_parameter[id(parameter)][kind])
            for name, parameter in case.model.named_parameters()
        }
        official = to_official({**case.model.state_dict(), **values})
        for name, expected in case.facts["param_groups"][variant].items():
            np.testing.assert_allclose(official[name], expected[position], rtol=1e-6, err_msg=name)
