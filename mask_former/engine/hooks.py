"""Hooks of the trainer: averaged weights, best checkpoint, drawings, training progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.evaluator import inference_context
from numpy.typing import NDArray
from torch import nn

from mask_former.checkpoint.checkpointer import Checkpointer, unwrapped
from mask_former.checkpoint.inference_data import classes_of
from mask_former.data.datasets.classes import Classes
from mask_former.results import from_detectron2
from mask_former.utils.weight_files import read_checkpoint

from .ema import WeightAverage

__all__ = [
    "AverageWeights",
    "BestCheckpointer",
    "DrawPredictions",
    "LRScheduler",
    "ReportProgress",
]

_NUM_DRAWN = 3  # images


class AverageWeights(HookBase):
    """Hook that updates the averaged weights; must precede hooks that save or evaluate them."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def after_step(self) -> None:
        self.average.update(unwrapped(self.trainer.model), self.trainer.iter)
        # the state of the progress is not to be averaged
        _report_progress(self.average.module, self.trainer.iter + 1, self.trainer.max_iter)


class ReportProgress(HookBase):
    """Hook that reports the training progress to the head, for example for annealing.

    A head that depends on it has a method ``set_progress(step, max_steps)``, where ``step`` is the
    number of finished optimizer steps.
    """

    def before_train(self) -> None:
        self._report(self.trainer.start_iter)

    def after_step(self) -> None:
        self._report(self.trainer.iter + 1)

    def _report(self, step: int) -> None:
        _report_progress(unwrapped(self.trainer.model), step, self.trainer.max_iter)


def _report_progress(model: nn.Module, step: int, max_steps: int) -> None:
    head: Any = getattr(model, "sem_seg_head", None)
    if hasattr(head, "set_progress"):
        head.set_progress(step, max_steps)


class LRScheduler(hooks.LRScheduler):
    """detectron2's hook, which logs the rate of the new layers if the others are those of a ViT.

    detectron2 logs the most common rate. In a ViT, rates differ by block and start at 0.
    """

    def before_train(self) -> None:
        super().before_train()
        groups = self._optimizer.param_groups
        new = [index for index, group in enumerate(groups) if not group.get("is_vit", False)]
        if 0 < len(new) < len(groups):
            self._best_param_group_id = new[0]


class BestCheckpointer(hooks.BestCheckpointer):
    """detectron2's hook, which also continues after ``--resume`` and refuses an unknown metric.

    ``model_best.pth`` has an entry ``best`` with the metric's name, its value and the iteration;
    ``--resume`` does not continue from this file. Higher values are better, except for losses
    (``val_…``).
    """

    def __init__(self, cfg: CfgNode, checkpointer: Checkpointer) -> None:
        """Read the metric and its direction.

        Args:
            cfg: Config with the name of a metric in ``TEST.BEST_METRIC``.
            checkpointer: Checkpointer that writes ``model_best.pth``.

        Raises:
            ValueError: If nothing is evaluated during training.
        """
        metric, period = cfg.TEST.BEST_METRIC, cfg.TEST.EVAL_PERIOD
        if not cfg.DATASETS.TEST or period <= 0:
            raise ValueError(
                f"TEST.BEST_METRIC is {metric!r}, but with DATASETS.TEST "
                f"{tuple(cfg.DATASETS.TEST)} and TEST.EVAL_PERIOD {period} nothing is evaluated "
                "during training: set both, or leave TEST.BEST_METRIC empty."
            )
        mode = "min" if "val_" in metric and "loss" in metric else "max"
        super().__init__(period, checkpointer, metric, mode)

    def before_train(self) -> None:
        path = Path(self._checkpointer.save_dir) / f"{self._file_prefix}.pth"
        if self.trainer.start_iter == 0 or not path.is_file():
            return
        best = read_checkpoint(path).get("best", {})
        if best.get("metric") == self._val_metric:
            self.best_metric, self.best_iter = best["value"], best["iteration"]
            self._logger.info(f"The best {self._val_metric} so far is {self.best_metric:.5f}.")

    def _best_checking(self) -> None:
        latest = self.trainer.storage.latest()
        if self._val_metric not in latest:
            # Metrics of an evaluation have a "/" in their name, or are validation losses.
            known = sorted(name for name in latest if "/" in name or name.startswith("val_"))
            raise KeyError(
                f"TEST.BEST_METRIC is {self._val_metric!r}, which is not a metric of the "
                f"evaluation; expected one of {', '.join(known)}."
            )
        value, iteration = latest[self._val_metric]
        if self.best_metric is not None and not self._compare(value, self.best_metric):
            self._logger.info(
                f"{self._val_metric} is {value:.5f}; the best is {self.best_metric:.5f}, at "
                f"iteration {self.best_iter}."
            )
        elif math.isfinite(value):
            self._update_best(value, iteration)
            best = {"metric": self._val_metric, "value": value, "iteration": iteration}
            self._checkpointer.write(self._file_prefix, iteration=iteration, best=best)


class DrawPredictions(HookBase):
    """Hook that draws the predictions for a few test images, for TensorBoard."""

    def __init__(
        self, cfg: CfgNode, build_loader: Callable[[], Iterable[list[dict[str, Any]]]]
    ) -> None:
        """Read the settings and the classes.

        Args:
            cfg: Config with ``INPUT.FORMAT`` and, in ``VIS_PERIOD`` (> 0), the number of iterations
                between drawings.
            build_loader: Builds the loader of test images, of which the first few are drawn.
        """
        self.period = cfg.VIS_PERIOD
        self.image_format = cfg.INPUT.FORMAT
        self.classes = classes_of(cfg)
        self.build_loader = build_loader

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period:
            return
        model = unwrapped(self.trainer.model)
        with torch.no_grad(), inference_context(model):
            for number, batch in enumerate(islice(self.build_loader(), _NUM_DRAWN)):
                drawing = _draw(model, batch[0], self.image_format, self.classes)
                self.trainer.storage.put_image(f"predictions/{number}", drawing)


def _draw(
    model: nn.Module, example: dict[str, Any], image_format: str, classes: Classes
) -> NDArray[np.uint8]:
    """Draw the panoptic, else the instance, else the semantic result on the input: 3×H×W, RGB."""
    image = example["image"]
    results = model([{"image": image}])[0]
    pixels = image.numpy().transpose(1, 2, 0)
    if image_format == "BGR":
        pixels = pixels[..., ::-1]
    result = from_detectron2(results, np.ascontiguousarray(pixels), classes)
    return result.draw().transpose(2, 0, 1)
