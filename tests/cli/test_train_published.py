"""tools/train_net.py trains two steps on each published dataset in miniature, and evaluates."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

import mask_former  # noqa: F401  (registers the datasets)
from tests.helpers.miniature_datasets import COUNTS, write_all
from tests.helpers.train_net_runs import (
    SMALL_MODEL,
    SMALL_RUN,
    arguments,
    check_done,
    environment,
    results_of,
    run,
    run_in_turn,
)

pytestmark = pytest.mark.subprocess

CROP_64 = {"INPUT.CROP.SIZE": (64, 64), "INPUT.SIZE_DIVISIBILITY": 64}
# The model is hardly trained, so its confidence is low; it must find segments.
UNSURE = {
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.01,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,
}
ONE_ENCODER_LAYER = {"MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1}
MASK_LOSSES = {"loss_ce", "loss_mask", "loss_dice", "loss_ce_0", "loss_mask_0", "loss_dice_0"}
SEM_SEG = {"mIoU", "fwIoU", "mACC", "pACC"}
PANOPTIC = {f"{name}{of}" for name in ("PQ", "SQ", "RQ") for of in ("", "_th", "_st")}


@dataclass(frozen=True)
class Case:
    """A published config, and the expected results of its small run."""

    config: str
    dataset: str
    tasks: dict[str, set[str]]  # task -> metrics that must be numbers
    settings: dict[str, Any] = field(default_factory=dict)
    labels: str = ""  # folder of the ground truth of mIoU, below the folder of all datasets
    losses: set[str] = field(default_factory=lambda: MASK_LOSSES)


CASES = [
    Case(
        "ade20k-150/maskformer_R50_bs16_160k.yaml",
        "ade20k_sem_seg_val",
        {"sem_seg": SEM_SEG},
        CROP_64,
        labels="ADEChallengeData2016/annotations_detectron2/validation",
    ),
    Case(
        "ade20k-150-panoptic/maskformer_panoptic_R50_bs16_720k.yaml",
        "ade20k_panoptic_val",
        {"sem_seg": SEM_SEG, "panoptic_seg": PANOPTIC},
        {**CROP_64, **UNSURE, **ONE_ENCODER_LAYER},
        labels="ADEChallengeData2016/annotations_detectron2/validation",
    ),
    Case(
        "ade20k-full-847/maskformer_R50_bs16_200k.yaml",
        "ade20k_full_sem_seg_val",
        {"sem_seg": SEM_SEG},
        CROP_64,
        labels="ADE20K_2021_17_01/annotations_detectron2/validation",
    ),
    Case(
        "cityscapes-19/maskformer_R101_bs16_90k.yaml",
        "cityscapes_fine_sem_seg_val",
        {"sem_seg": {"IoU", "iIoU", "IoU_sup", "iIoU_sup"}},
        {"INPUT.CROP.SIZE": (32, 64)},
    ),
    Case(
        "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml",
        "coco_2017_val_panoptic",
        {"panoptic_seg": PANOPTIC},
        {"INPUT.CROP.SIZE": (32, 48), **UNSURE, **ONE_ENCODER_LAYER},
    ),
    Case(
        "coco-stuff-10k-171/maskformer_R50_bs32_60k.yaml",
        "coco_2017_test_stuff_10k_sem_seg",
        {"sem_seg": SEM_SEG},
        CROP_64,
        labels="coco/coco_stuff_10k/annotations_detectron2/test",
    ),
    Case(
        "coco-stuff-10k-171/per_pixel_baseline_plus_R50_bs32_60k.yaml",
        "coco_2017_test_stuff_10k_sem_seg",
        {"sem_seg": SEM_SEG},
        CROP_64,
        labels="coco/coco_stuff_10k/annotations_detectron2/test",
        losses={"loss_sem_seg", "loss_sem_seg_0"},
    ),
    Case(
        "mapillary-vistas-65/maskformer_R50_bs16_300k.yaml",
        "mapillary_vistas_sem_seg_val",
        {"sem_seg": SEM_SEG},
        CROP_64,
        labels="mapillary_vistas/validation/labels",
    ),
]


def every_case(cases: Sequence[Case] = CASES) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.config)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_all(root)
    return root


@pytest.fixture(scope="module")
def outputs(datasets, tmp_path_factory):
    """Run all cases; return config -> output folder."""
    folder = tmp_path_factory.mktemp("runs")
    outputs = {case.config: folder / str(number) for number, case in enumerate(CASES)}
    words = {
        outputs[case.config]: arguments(
            case.config,
            outputs[case.config],
            settings={**SMALL_RUN, **SMALL_MODEL, **case.settings},
        )
        for case in CASES
    }
    # One runs as a command of its own, the others in one process to save time.
    first = outputs[CASES[0].config]
    where = {"cwd": folder, "environment": environment(datasets)}
    run(words.pop(first), **where)
    run_in_turn(words, **where)
    return outputs


@pytest.fixture
def output(case, outputs):
    check_done(outputs[case.config])
    return outputs[case.config]


@every_case()
def test_two_steps_write_their_losses_and_a_complete_checkpoint(case, output):
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    (step,) = (line for line in lines if "total_loss" in line)
    losses = {name: value for name, value in step.items() if name.startswith("loss_")}
    assert step["iteration"] == 1 and set(losses) == case.losses
    assert all(math.isfinite(value) for value in losses.values())
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 1


@every_case()
def test_the_evaluation_has_the_metrics_of_the_dataset(case, output):
    results = results_of(output)
    assert list(results) == [case.dataset]
    assert set(results[case.dataset]) == set(case.tasks)
    for task, names in case.tasks.items():
        metrics = results[case.dataset][task]
        assert names <= set(metrics)
        for name in names:
            assert isinstance(metrics[name], float) and 0 <= metrics[name] <= 100


@every_case([case for case in CASES if case.labels])
def test_the_scored_classes_are_those_of_the_label_maps(case, output, datasets):
    meta = MetadataCatalog.get(case.dataset)
    files = list((datasets / case.labels).iterdir())
    assert len(files) == COUNTS["val"]
    labels = np.unique([np.array(Image.open(file)) for file in files])
    classes = {meta.stuff_classes[label] for label in labels if label != meta.ignore_label}
    metrics = results_of(output)[case.dataset]["sem_seg"]
    scored = {name for name, accuracy in metrics.items() if accuracy is not None}
    assert {name for name in scored if "ACC-" in name} == {f"ACC-{name}" for name in classes}


@every_case([case for case in CASES if "panoptic_seg" in case.tasks])
def test_every_image_has_segments_with_ids_of_the_dataset(case, output):
    content = json.loads((output / "inference" / "predictions.json").read_text())
    assert len(content["annotations"]) == COUNTS["val"]
    known = {category["id"] for category in content["categories"]}
    for image in content["annotations"]:
        found = {segment["category_id"] for segment in image["segments_info"]}
        assert found and found <= known
