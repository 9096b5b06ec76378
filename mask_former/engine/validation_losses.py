"""Training losses on the test datasets, whose images are resized as in testing."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.modeling import SemanticSegmentor
from detectron2.utils import comm
from torch import Tensor, nn

from mask_former.modeling import all_predictions
from mask_former.modeling.heads.per_pixel_baseline import segmentor_losses
from mask_former.registries import DATASET_MAPPER_REGISTRY, lookup
from mask_former.structures import Batch
from mask_former.utils.precision import amp_dtype

from .shared_memory import SharingMapper

__all__ = [
    "build_validation_loader",
    "evaluation_mode",
    "preserved_randomness",
    "validation_losses",
]


_SEED = 0


def build_validation_loader(cfg: CfgNode, dataset_name: str) -> Any:
    """Build a loader of test examples, by the training mapper without random augmentation.

    A batch has one example, and each process loads its share of the dataset. Images are resized as
    in testing, and are not padded; with large-scale jitter, they are resized to fit into
    ``INPUT.IMAGE_SIZE``, and padded to it.
    """
    cfg = _without_augmentation(cfg)
    key = "INPUT.DATASET_MAPPER_NAME"
    make_mapper = lookup(DATASET_MAPPER_REGISTRY, cfg.INPUT.DATASET_MAPPER_NAME, key)
    mapper = SharingMapper(make_mapper(cfg, is_train=True))
    return build_detection_test_loader(cfg, dataset_name, mapper=mapper)


def _without_augmentation(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,)
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0  # fit images into INPUT.IMAGE_SIZE
    return cfg


def validation_losses(
    cfg: CfgNode, model: nn.Module, build_loader: Callable[[CfgNode, str], Iterable[Batch]]
) -> dict[str, Any]:
    """Compute the weighted losses, averaged over the batches of all processes.

    The mode of the model and the state of the random number generators are restored.

    Args:
        cfg: Config with the datasets (``DATASETS.TEST``) and the precision of training
            (``SOLVER.AMP``).
        model: Model without a distributed wrapper, because numbers of batches may differ by rank.
        build_loader: Builds the loader of this process's share of a dataset.

    Returns:
        In the main process, ``val_<loss>`` and their sum ``val_total_loss``, by dataset if there
        are several; in other processes, an empty dict.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    dtype = amp_dtype(cfg.SOLVER.AMP, "SOLVER.AMP")
    autocast = torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)
    results = {}
    with evaluation_mode(model), torch.no_grad(), preserved_randomness(device):
        for name in cfg.DATASETS.TEST:
            results[name] = _averages(_sums(model, build_loader(cfg, name), autocast))
    if not comm.is_main_process():
        return {}
    for name, losses in results.items():
        text = "  ".join(f"{key}: {value:.4g}" for key, value in losses.items())
        logging.getLogger(__name__).info(f"Losses on {name}: {text}")
    return next(iter(results.values())) if len(results) == 1 else results


def _sums(model: nn.Module, loader: Iterable[Batch], autocast: Any) -> Counter[str]:
    """Sum the losses of this process by name; the entry ``""`` is its number of batches."""
    sums: Counter[str] = Counter()
    for batch in loader:
        with autocast:
            losses = _losses_of(model, batch)
        sums.update({name: float(value) for name, value in losses.items()})
        sums[""] += 1
    return sums


def _averages(sums: Counter[str]) -> dict[str, float]:
    """Average the losses over the batches of all processes."""
    total: Counter[str] = Counter()
    for part in comm.all_gather(sums):
        total.update(part)
    batches = total.pop("", 0)
    losses = {f"val_{name}": value / batches for name, value in total.items()}
    return {**losses, "val_total_loss": sum(losses.values())}


def _losses_of(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Compute the weighted losses of a model in evaluation mode, that is, without dropout."""
    if isinstance(model, SemanticSegmentor):
        return segmentor_losses(model, batch)
    losses: Any = getattr(model, "losses", None)
    if losses is None:
        raise ValueError(
            f"TEST.VAL_LOSS is True, but the model {type(model).__name__} has no method "
            "losses(batched_inputs), which computes them in evaluation mode: add it, or set the "
            "key to False."
        )
    with all_predictions(model):
        return losses(batch)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode within the context, then restore the mode of each module.

    Modes may differ: a frozen norm, for example, is in evaluation mode during training.
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in before:  # parents first, because train() also sets the children
            module.train(mode)


@contextmanager
def preserved_randomness(device: torch.device) -> Iterator[None]:
    """Use a fixed random seed within the context, then restore the random number generators."""
    python, numpy = random.getstate(), np.random.get_state()
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        random.seed(_SEED)
        np.random.seed(_SEED)
        torch.manual_seed(_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
