"""Train or evaluate the model of a config, from a command or from Python."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.checkpoint.resuming import check_same_model
from mask_former.config.idle_keys import changed_keys
from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.loading import finish_cfg, resolve_device
from mask_former.utils.logs import escape_records
from mask_former.utils.weight_files import averaged_weights

from .dataset_checks import check_registered
from .folder_lock import training_alone_in
from .shared_memory import check_shared_memory
from .trainer import Trainer

__all__ = ["evaluate", "train"]

_LOGGERS = ("mask_former", "detectron2", "fvcore")


def train(cfg: CfgNode, *, resume: bool = False) -> Mapping[str, Any]:
    """Train the model of a config, as ``tools/train_net.py`` does.

    ``OUTPUT_DIR`` receives ``config.yaml``, ``log.txt``, the checkpoints, the metrics and the
    results of the evaluations. Without a GPU, training falls back to the CPU.

    Args:
        cfg: The config; it need not be validated or frozen.
        resume: Continue from the last checkpoint in ``OUTPUT_DIR``, if there is one.

    Returns:
        The metrics of the last evaluation, by task, or by dataset and task if there are several
        datasets; empty if nothing was evaluated, and in all processes except the main one.

    Raises:
        KeyError, FileNotFoundError, ValueError: If the config, its datasets or its weights are
            wrong. Raised before the first step.
    """
    with training_alone_in(Path(cfg.OUTPUT_DIR)), _started(cfg) as started:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
        trainer = Trainer(started)
        trainer.resume_or_load(resume)
        results = trainer.train()
        logging.getLogger(__name__).info(
            f"Training is complete. To use the model: python demo/demo.py --weights "
            f"{shlex.quote(cfg.OUTPUT_DIR)} --input IMAGE --output out"
        )
    return results


def evaluate(cfg: CfgNode, *, resume: bool = False) -> Mapping[str, Any]:
    """Evaluate the weights ``MODEL.WEIGHTS`` on ``DATASETS.TEST``, as ``--eval-only`` does.

    ``OUTPUT_DIR`` receives ``results.json``, ``log.txt`` and the predictions. The ``config.yaml``
    of a training run in this folder is not changed.

    Args:
        cfg: The config; it need not be validated or frozen. ``TEST.AUG.ENABLED`` also evaluates
            the semantic result with test-time augmentation, and ``MODEL.EMA.ENABLED`` the
            averaged weights.
        resume: Evaluate the last checkpoint in ``OUTPUT_DIR`` instead, if there is one.

    Returns:
        The metrics; see :func:`train`.

    Raises:
        KeyError, FileNotFoundError, ValueError: If the config, its datasets or its weights are
            wrong.
    """
    with _started(cfg) as started:
        started = resolve_device(started)
        check_shared_memory(started)
        check_registered(started, ["TEST"])
        model = Trainer.build_model(started)
        checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR, whole=True)
        content = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        # The file may have no averaged weights: find out before hours of evaluation.
        averaged = averaged_weights(content, cfg.MODEL.WEIGHTS) if cfg.MODEL.EMA.ENABLED else None
        if averaged is not None:
            check_same_model(averaged, model.state_dict())
        test = Trainer.test_with_TTA if cfg.TEST.AUG.ENABLED else Trainer.test
        results = test(started, model)
        if averaged is not None:
            model.load_state_dict(averaged)
            results = Trainer.test_average(started, model, results)
    return results


@contextmanager
def _started(cfg: CfgNode) -> Iterator[CfgNode]:
    """Start logging, check the config, report it, and seed the random number generators."""
    with logging_to(cfg.OUTPUT_DIR):
        cfg = cfg.clone()
        finish_cfg(cfg)
        rank = comm.get_rank()
        logger = logging.getLogger(__name__)
        logger.info(f"Rank of this process: {rank}. World size: {comm.get_world_size()}.")
        logger.info(f"Environment:\n{collect_env_info()}")
        logger.info(f"Command: {shlex.join(sys.argv)}")
        settings = changed_keys(cfg, get_mask_former_cfg())
        lines = "".join(f"\n  {key}: {value!r}" for key, value in settings.items())
        logger.info(f"Settings other than the defaults:{lines}")
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
        yield cfg


@contextmanager
def logging_to(folder: str) -> Iterator[None]:
    """Log to the console and to ``log.txt`` in ``folder`` within the context.

    detectron2's handlers are removed afterwards; otherwise a second training run in a notebook
    would print each line twice.
    """
    before = {}
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        before[logger] = (list(logger.handlers), logger.propagate, logger.level)
        setup_logger.cache_clear()  # otherwise it skips a logger that it has set up before
        setup_logger(
            folder,
            distributed_rank=comm.get_rank(),
            name=name,
            configure_stdout=not logger.handlers,
        )
        escape_records(logger)
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in before.items():
            logger.handlers[:] = handlers
            logger.propagate = propagate
            logger.setLevel(level)
