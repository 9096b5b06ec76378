"""tools/train_net.py on instances: instance training, and instance results of panoptic models."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mask_former.data.formats.coco_instances import instances_of_panoptic
from mask_former.data.shapes.writer import Settings, generate
from tests.cli.test_train import TINY
from tests.helpers.miniature_datasets import coco_panoptic
from tests.helpers.train_net_runs import (
    SMALL_MODEL,
    SMALL_RUN,
    arguments,
    check_done,
    environment,
    results_of,
    run_in_turn,
)

pytestmark = pytest.mark.subprocess

INSTANCES_ON = {"MODEL.MASK_FORMER.TEST.INSTANCE_ON": True}
# The model is hardly trained, so its confidence is low; its results must include things.
UNSURE = {"MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0, "TEST.DETECTIONS_PER_IMAGE": 1000}
SMALL = {
    **SMALL_RUN,
    **SMALL_MODEL,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "INPUT.CROP.SIZE": (64, 64),
    "INPUT.SIZE_DIVISIBILITY": 64,
}
BOTH = {"panoptic_seg", "bbox", "segm"}
COCO_PANOPTIC = "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml"
RUNS = {  # name: config, settings, evaluated dataset, tasks
    "instances": (
        "shapes/maskformer_instance_tiny.yaml",
        {**TINY, "SOLVER.MAX_ITER": 2},
        "shapes_instances_val",
        {"bbox", "segm"},
    ),
    "panoptic": (
        "shapes/maskformer_panoptic_tiny.yaml",
        {**TINY, "SOLVER.MAX_ITER": 2, **INSTANCES_ON, "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True},
        "shapes_panoptic_val",
        BOTH,
    ),
    "coco": (
        "coco-instance/maskformer_instance_R50_bs16_50ep.yaml",
        SMALL,
        "coco_2017_val",
        {"bbox", "segm"},
    ),
    "coco_panoptic": (
        COCO_PANOPTIC,
        {**SMALL, **INSTANCES_ON, **UNSURE},
        "coco_2017_val_panoptic",
        BOTH,
    ),
}


def write_coco(root):
    """Write COCO in miniature; its instances are the things of its panoptic annotations."""
    coco_panoptic(root, np.random.default_rng(0))
    annotations = root / "coco" / "annotations"
    for split in ("train2017", "val2017"):
        panoptic = json.loads((annotations / f"panoptic_{split}.json").read_text())
        instances = instances_of_panoptic(panoptic, root / "coco" / f"panoptic_{split}")
        (annotations / f"instances_{split}.json").write_text(json.dumps(instances))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    generate(folder / "data" / "shapes_panoptic", Settings(num_train=8, num_val=4))
    write_coco(folder / "data")
    runs = {
        folder / name: arguments(config, folder / name, settings=settings)
        for name, (config, settings, _, _) in RUNS.items()
    }
    run_in_turn(runs, cwd=folder, environment=environment(folder / "data"))
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_instances_are_trained_and_evaluated(name, outputs):
    _, _, dataset, tasks = RUNS[name]
    check_done(outputs / name)
    results = results_of(outputs / name)
    assert list(results) == [dataset]
    assert set(results[dataset]) == tasks
    for task in tasks:
        metric = results[dataset][task]["PQ" if task == "panoptic_seg" else "AP"]
        assert metric is not None and math.isfinite(metric) and 0 <= metric <= 100
    lines = [json.loads(line) for line in (outputs / name / "metrics.json").open()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert losses and all(math.isfinite(loss) for loss in losses)
