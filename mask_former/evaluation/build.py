"""Choose the evaluators of a dataset, and write their results as plain numbers."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, LVISEvaluator

from mask_former.utils.atomic_files import replace_text

from .cityscapes import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from .instance import COCOEvaluator
from .panoptic import COCOPanopticEvaluator
from .semantic import SemSegEvaluator

__all__ = ["build_evaluator", "write_results"]

_KNOWN_TYPES = {
    "sem_seg": ("semantic",),
    "coco_panoptic_seg": ("panoptic", "instance", "semantic"),
    "ade20k_panoptic_seg": ("semantic", "panoptic", "instance"),
    "mapillary_vistas_panoptic_seg": ("panoptic", "instance", "semantic"),
    "coco": ("instance",),
    "cityscapes_sem_seg": ("cityscapes_semantic",),
    "cityscapes_instance": ("cityscapes_instance",),
    "cityscapes_panoptic_seg": ("panoptic", "cityscapes_semantic", "cityscapes_instance"),
    "lvis": ("lvis",),
}
"""Tasks that each ``evaluator_type`` of a dataset's metadata measures."""


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Build the evaluators for a dataset's ``evaluator_type`` and a model's results.

    Args:
        cfg: Config; ``MODEL.MASK_FORMER.TEST.*_ON`` choose the model's results, and
            ``TEST.SAVE_PREDICTIONS`` also writes semantic and panoptic predictions to files.
        dataset_name: A registered dataset.
        output_folder: Folder for predictions; None: ``OUTPUT_DIR/inference``.

    Raises:
        ModuleNotFoundError: If the type is "lvis", and LVIS's package is not installed.
        ValueError: If the type is unknown, or the model has none of the results that it measures.
    """
    folder = output_folder or str(Path(cfg.OUTPUT_DIR) / "inference")
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _KNOWN_TYPES:
        raise ValueError(
            f"The dataset {dataset_name!r} has the evaluator_type {kind!r}; set it in the "
            f"metadata to one of {sorted(_KNOWN_TYPES)}."
        )
    test = cfg.MODEL.MASK_FORMER.TEST
    saved = folder if cfg.TEST.SAVE_PREDICTIONS else None
    makers = {
        "semantic": (
            test.SEMANTIC_ON,
            lambda: SemSegEvaluator(dataset_name, output_dir=saved),
        ),
        "panoptic": (
            test.PANOPTIC_ON,
            lambda: COCOPanopticEvaluator(dataset_name, output_dir=saved),
        ),
        "instance": (test.INSTANCE_ON, lambda: COCOEvaluator(dataset_name, output_dir=folder)),
        "cityscapes_semantic": (test.SEMANTIC_ON, lambda: CityscapesSemSegEvaluator(dataset_name)),
        "cityscapes_instance": (
            test.INSTANCE_ON,
            lambda: CityscapesInstanceEvaluator(dataset_name),
        ),
        "lvis": (test.INSTANCE_ON, lambda: _lvis_evaluator(dataset_name, folder)),
    }
    tasks = _measurable(dataset_name, kind)
    evaluators = [make() for on, make in (makers[task] for task in tasks) if on]
    if not evaluators:
        raise ValueError(
            f"The evaluation of {dataset_name!r} needs {' or '.join(tasks)} results, "
            "and the model has none: turn on "
            "MODEL.MASK_FORMER.TEST.{SEMANTIC,PANOPTIC,INSTANCE}_ON."
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _measurable(dataset_name: str, kind: str) -> list[str]:
    """List the tasks of an evaluator type, without the semantic one if there are no label maps."""
    tasks = list(_KNOWN_TYPES[kind])
    has_maps = MetadataCatalog.get(dataset_name).get("sem_seg_root") is not None
    if kind == "coco_panoptic_seg" and not has_maps:
        tasks.remove("semantic")
        logging.getLogger(__name__).info(
            f"{dataset_name} has no label maps (sem_seg_root in its metadata), so that semantic "
            "results are not evaluated."
        )
    return tasks


def _lvis_evaluator(dataset_name: str, folder: str) -> DatasetEvaluator:
    if find_spec("lvis") is None:
        raise ModuleNotFoundError(
            f"The evaluation of {dataset_name!r} needs LVIS's package, which is missing: "
            "pip install lvis"
        )
    return LVISEvaluator(dataset_name, output_dir=folder)


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write ``{dataset: {task: {metric: number}}}`` as JSON; NaN and infinity become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(results), indent=2) + "\n"
    replace_text(path, text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    number = float(value)
    return number if math.isfinite(number) else None
