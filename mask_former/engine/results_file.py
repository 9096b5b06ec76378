"""The file ``results.json`` of a training or an evaluation: metrics by dataset and task."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from mask_former.evaluation.build import write_results

__all__ = ["add_results", "keep_results"]


def keep_results(cfg: CfgNode, results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write ``results.json`` in the main process, the only one that has results."""
    if not comm.is_main_process():
        return OrderedDict()
    if cfg.DATASETS.TEST:
        write_results(Path(cfg.OUTPUT_DIR) / "results.json", _by_dataset(cfg, results))
    return results


def add_results(
    cfg: CfgNode, results: Mapping[str, Any], others: Mapping[str, Any], suffix: str
) -> Mapping[str, Any]:
    """Add other results of the same tasks under the names ``sem_seg_<suffix>`` and so on."""
    if comm.is_main_process():
        by_dataset = _by_dataset(cfg, results)
        for name, tasks in _by_dataset(cfg, others).items():
            by_dataset[name].update({f"{task}_{suffix}": tasks[task] for task in tasks})
    return keep_results(cfg, results)


def _by_dataset(cfg: CfgNode, results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the results by dataset; detectron2 omits the name if there is only one."""
    names = cfg.DATASETS.TEST
    return {names[0]: results} if len(names) == 1 else results
