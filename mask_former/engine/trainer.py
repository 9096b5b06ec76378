"""detectron2's ``DefaultTrainer`` with our mappers, optimizer, evaluators and checkpoints."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter
from torch import nn

from mask_former.checkpoint.checkpointer import Checkpointer, unwrapped
from mask_former.checkpoint.finetuning import Finetuning
from mask_former.checkpoint.inference_data import classes_of, inference_data
from mask_former.checkpoint.provenance import run_metadata
from mask_former.checkpoint.resuming import check_form, check_progress
from mask_former.config.loading import resolve_device
from mask_former.config.saving import save_config
from mask_former.data.mappers import InferenceMapper
from mask_former.evaluation.build import build_evaluator
from mask_former.modeling.test_time_augmentation import SemanticSegmentorWithTTA
from mask_former.registries import DATASET_MAPPER_REGISTRY, lookup
from mask_former.solver.freezing import freeze
from mask_former.solver.optimizer import build_optimizer
from mask_former.solver.schedules import build_lr_scheduler
from mask_former.utils.atomic_files import remove_parts
from mask_former.utils.errors import short
from mask_former.utils.precision import amp_dtype
from mask_former.utils.weight_files import EMA

from .dataset_checks import check_classes, check_registered, checked_training_set
from .ema import WeightAverage
from .folder_lock import training_alone_in
from .hooks import AverageWeights, BestCheckpointer, DrawPredictions, LRScheduler, ReportProgress
from .results_file import add_results, keep_results
from .shared_memory import SharingMapper, check_shared_memory
from .train_loop import TrainLoop
from .validation_losses import build_validation_loader, validation_losses
from .writers import build_writers, repair_metrics_file

__all__ = ["Trainer"]


class Trainer(DefaultTrainer):
    """Trainer of a config's model, on GPUs or, without a GPU, on the CPU."""

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer.__init__, which wraps the model for a GPU and needs one for AMP.
        TrainerBase.__init__(self)
        self._requested_cfg = cfg
        self._last_eval_results: Mapping[str, Any] = {}
        cfg = resolve_device(cfg)
        check_shared_memory(cfg)
        check_classes(cfg, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self.average = WeightAverage.from_config(cfg, model)
        device = torch.device(cfg.MODEL.DEVICE)
        ddp_options = {"device_ids": None} if device.type == "cpu" else {}
        model = create_ddp_model(model, broadcast_buffers=False, **ddp_options)
        self._trainer = TrainLoop(
            model,
            self.build_train_loader(cfg),
            optimizer,
            amp_dtype=amp_dtype(cfg.SOLVER.AMP, "SOLVER.AMP"),
            device=device,
            accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
            output_dir=Path(cfg.OUTPUT_DIR),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            class_names=classes_of(cfg).known_names,
            inference=inference_data(cfg),
            finetuning=Finetuning.from_config(cfg),
            metadata=run_metadata(cfg),
            trainer=weakref.proxy(self),
        )
        if self.average is not None:
            self.checkpointer.add_checkpointable(EMA, self.average)
        self.cfg, self.start_iter, self.max_iter = cfg, 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Scale a config from ``SOLVER.REFERENCE_WORLD_SIZE`` to ``num_workers`` processes.

        Besides detectron2's keys, ``MODEL.EMA.START_ITER`` and ``VIS_PERIOD`` are scaled.

        Raises:
            ValueError: If the reference does not divide the batch size.
        """
        reference, images = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
        if reference < 0 or (reference and images % reference):
            raise ValueError(
                f"SOLVER.REFERENCE_WORLD_SIZE is {reference} and SOLVER.IMS_PER_BATCH {images}; "
                "expected 0 (no scaling), or a number of processes that divides the batch."
            )
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is not cfg:
            scaled.defrost()
            for node, key in ((scaled.MODEL.EMA, "START_ITER"), (scaled, "VIS_PERIOD")):
                node[key] = round(node[key] * reference / num_workers)
            annealing = scaled.MODEL.EOMT.ANNEALING
            lists = ((annealing, "START_STEPS"), (annealing, "END_STEPS"))
            for node, key in (*lists, (scaled.SOLVER, "WARMUP_STEPS")):
                node[key] = [int(step * reference / num_workers) for step in node[key]]
            scaled.freeze()
        return scaled

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model, with the parts that ``MODEL.FREEZE`` names frozen."""
        model: nn.Module = build_model(resolve_device(cfg))
        freeze(model, cfg.MODEL.FREEZE)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
        total = sum(p.numel() for p in model.parameters()) / 1e6
        text = f"{trained:.1f} of {total:.1f} million parameters are trained."
        logging.getLogger(__name__).info(text)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Build the schedule that ``SOLVER.LR_SCHEDULER_NAME`` names."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Build detectron2's loader with the mapper that ``INPUT.DATASET_MAPPER_NAME`` names."""
        key = "INPUT.DATASET_MAPPER_NAME"
        mapper = lookup(DATASET_MAPPER_REGISTRY, cfg.INPUT.DATASET_MAPPER_NAME, key)
        check_registered(cfg)
        mapper = mapper(cfg, is_train=True)
        dataset = checked_training_set(cfg, mapper)
        return build_detection_train_loader(cfg, mapper=SharingMapper(mapper), dataset=dataset)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build detectron2's loader of test images, without annotations."""
        mapper = SharingMapper(InferenceMapper(cfg))
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_validation_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build the loader of a test dataset with targets, for ``TEST.VAL_LOSS``."""
        return build_validation_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Mapping[str, Any]:
        """Evaluate on every dataset of ``DATASETS.TEST``, and write ``results.json``.

        Returns:
            Metrics by task; by dataset and task if there are several datasets.
        """
        check_classes(cfg, cfg.DATASETS.TEST)
        return keep_results(cfg, super().test(cfg, model, evaluators))

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> Mapping[str, Any]:
        """Evaluate as :meth:`test` does, then the semantic result with test-time augmentation.

        Returns:
            The metrics of :meth:`test` and ``sem_seg_TTA`` (predictions: ``inference_TTA``).

        Raises:
            ValueError: Before the evaluation, if the model or a dataset has no semantic result.
        """
        with_tta = SemanticSegmentorWithTTA(cfg, model)
        evaluators = cls._build_semantic_evaluators(cfg, Path(cfg.OUTPUT_DIR) / "inference_TTA")
        results = cls.test(cfg, model)
        return add_results(cfg, results, super().test(cfg, with_tta, evaluators), "TTA")

    @classmethod
    def test_average(
        cls, cfg: CfgNode, averaged: nn.Module, results: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Evaluate the averaged weights, with predictions in the folder ``inference_EMA``.

        Returns:
            ``results`` and, for each task, an entry such as ``sem_seg_EMA``.
        """
        folder = str(Path(cfg.OUTPUT_DIR) / "inference_EMA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        return add_results(cfg, results, super().test(cfg, averaged, evaluators), "EMA")

    @classmethod
    def _build_semantic_evaluators(cls, cfg: CfgNode, folder: Path) -> list[DatasetEvaluator]:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.MASK_FORMER.TEST.update(PANOPTIC_ON=False, INSTANCE_ON=False)
        try:
            return [cls.build_evaluator(cfg, name, str(folder)) for name in cfg.DATASETS.TEST]
        except ValueError as error:
            text = "Test-time augmentation (TEST.AUG.ENABLED) supports only the semantic result"
            raise ValueError(f"{text}: {error}") from error

    def build_hooks(self) -> list[HookBase]:
        """Build detectron2's hooks and those that the config asks for."""
        cfg = self.cfg
        built = super().build_hooks()
        built = [LRScheduler() if type(h) is hooks.LRScheduler else h for h in built]
        (index,) = (i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        built[index] = hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate)
        if cfg.TEST.VAL_LOSS:
            built.insert(index, hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._validate))
        averaging = [AverageWeights(self.average)] if self.average is not None else []
        built[2:2] = [*averaging, ReportProgress()]  # after the timer and the schedule
        if not comm.is_main_process():
            return built
        if cfg.VIS_PERIOD > 0 and cfg.DATASETS.TEST:
            name = cfg.DATASETS.TEST[0]
            built.insert(-1, DrawPredictions(cfg, lambda: self.build_test_loader(cfg, name)))
        if cfg.TEST.BEST_METRIC:
            built.append(BestCheckpointer(cfg, self.checkpointer))
        return built

    def train(self) -> Mapping[str, Any]:
        """Train up to ``SOLVER.MAX_ITER``, and write the config and results to ``OUTPUT_DIR``.

        Returns:
            The metrics of the last evaluation, in the main process; see :meth:`test`.

        Raises:
            ValueError: if another training writes into ``OUTPUT_DIR``.
        """
        folder = Path(self.cfg.OUTPUT_DIR)
        with training_alone_in(folder):
            if comm.is_main_process():
                save_config(self._requested_cfg, folder)
            super().train()
        return self._last_eval_results

    def _evaluate(self) -> Mapping[str, Any]:
        results = self.test(self.cfg, self.model)
        if self.average is not None:
            results = self.test_average(self.cfg, self.average.module, results)
        self._last_eval_results = results
        return results

    def _validate(self) -> Mapping[str, Any]:
        return validation_losses(self.cfg, unwrapped(self.model), self.build_validation_loader)

    def after_train(self) -> None:
        """Run detectron2's hooks; an error in them never hides the one that ended training."""
        is_failing = sys.exc_info()[1] is not None
        try:
            super().after_train()
        except OSError as error:  # on a full disk the writers fail as well
            if not is_failing:
                raise
            logging.getLogger(__name__).error(f"The metrics cannot be written either: {error}")

    def build_writers(self) -> list[EventWriter]:
        return build_writers(self.cfg, self.max_iter)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if a state from a file does not continue this training."""
        check_progress(state["iteration"], self.max_iter)
        self._trainer.check_state(state["_trainer"])
        check_form(self.state_dict().get("hooks", {}), state.get("hooks", {}), "the hooks' state")

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint of ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``.

        Raises:
            ValueError: In all processes, if they continue from different iterations.
        """
        if resume and comm.is_main_process():
            remove_parts(Path(self.cfg.OUTPUT_DIR))
        super().resume_or_load(resume)
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise ValueError(
                f"The processes found different checkpoints in {self.cfg.OUTPUT_DIR}, and would "
                f"continue at the iterations {short(starts)}, by rank: all machines must see the "
                "same OUTPUT_DIR. Copy the newest checkpoint and last_checkpoint to all of them."
            )
        if self.start_iter == 0:
            return
        if self.start_iter == self.max_iter:
            logging.getLogger(__name__).warning(
                f"Nothing is left to train: SOLVER.MAX_ITER is {self.max_iter}, and was reached."
            )
        if isinstance(self.scheduler, WarmupPolyLR):
            # The checkpoint restored the old SOLVER.MAX_ITER; the config may have another one.
            self.scheduler.max_iters = self.max_iter
        if comm.is_main_process():
            repair_metrics_file(Path(self.cfg.OUTPUT_DIR) / "metrics.json")
        if self.cfg.SEED >= 0:
            # Otherwise the sampler would repeat the images of the first iterations.
            seed_all_rng(self.cfg.SEED + comm.get_rank() + self.start_iter)
            self._trainer.reset_data_loader(lambda: self.build_train_loader(self.cfg))
