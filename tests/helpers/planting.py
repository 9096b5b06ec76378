"""A small config, a small dataset and a step of training, in which tests plant mistakes."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from mask_former.config.loading import load_cfg
from mask_former.data import register_instances, register_semantic
from mask_former.engine import Trainer
from mask_former.engine.folder_lock import training_alone_in
from mask_former.engine.shared_memory import check_shared_memory
from mask_former.engine.train_loop import TrainLoop
from mask_former.solver.optimizer import build_optimizer
from tests.helpers.tiny_model import NAMES, tiny_settings

SIZE = 64  # pixels
DATASET = "planted_train"


def config(folder: Path, *opts: Any) -> CfgNode:
    """Load the tiny model's config (4 classes, 6 queries) with overrides ``KEY, VALUE, …``."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tiny_settings()))
    small = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", "OUTPUT_DIR", folder]
    small += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "DATALOADER.NUM_WORKERS", 0]
    small += ["SOLVER.IMS_PER_BATCH", 1, "MODEL.SWIN.DROP_PATH_RATE", 0.0]
    return load_cfg(str(file), [str(word) for word in (*small, *opts)])


def model(folder: Path, *opts: Any) -> Any:
    """Build the model of :func:`config`."""
    torch.manual_seed(0)
    return build_model(config(folder, *opts))


def trainer(folder: Path, *opts: Any) -> Trainer:
    """Build a trainer on the planted dataset."""
    return Trainer(config(folder, "DATASETS.TRAIN", f"('{DATASET}',)", *opts))


def metadata(**entries: Any) -> None:
    """Set the metadata of the planted dataset, without images."""
    MetadataCatalog.pop(DATASET, None)
    MetadataCatalog.get(DATASET).set(**entries)


def save(path: Path, array: NDArray[Any]) -> Path:
    """Save an array as an image and return its path."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def noise_image(height: int = SIZE, width: int = SIZE) -> NDArray[np.uint8]:
    """Return an RGB image of noise, H×W×3."""
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


def labels(*values: int, dtype: Any = np.uint8) -> NDArray[Any]:
    """Return a label map of SIZE×SIZE pixels in which the values repeat in this order."""
    return np.resize(np.array(values, dtype=dtype), (SIZE, SIZE))


def semantic(
    folder: Path,
    label_map: NDArray[Any],
    *,
    classes: Any = NAMES,
    spoil: Callable[[Path, Path], Any] | None = None,
    **options: Any,
) -> None:
    """Register ``images/a.png`` with ``labels/a.png`` as the planted dataset.

    Args:
        label_map: content of ``labels/a.png``.
        classes: names, or lines ``VALUE: NAME``.
        spoil: function that is called with both files before they are registered.
        options: arguments of ``register_semantic``.
    """
    image = save(folder / "images" / "a.png", noise_image())
    label_file = save(folder / "labels" / "a.png", label_map)
    if spoil is not None:
        spoil(image, label_file)
    register_semantic(DATASET, image.parent, label_file.parent, classes, **options)


def instances(folder: Path, **annotation: Any) -> None:
    """Register an image with one annotation: a triangle of class 1, with entries replaced."""
    save(folder / "images" / "a.png", noise_image())
    entry = {"id": 5, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 40, 40]}
    entry |= {"segmentation": [[0, 0, 40, 0, 40, 40]], "area": 800, **annotation}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": SIZE, "width": SIZE}],
        "annotations": [entry],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)],
    }
    json_file = folder / "instances.json"
    json_file.write_text(json.dumps(content))
    register_instances(DATASET, folder / "images", json_file)


def example(count: int = 2, label: int = 1, file_name: str = "a.png") -> dict[str, Any]:
    """Return a training example with ``count`` targets of one class."""
    found = Instances((SIZE, SIZE))
    found.gt_classes = torch.full((count,), label)
    found.gt_masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    found.gt_masks[:, :32] = True
    image = torch.from_numpy(noise_image().transpose(2, 0, 1).copy())
    return {"image": image, "instances": found, "file_name": file_name}


def train_loop(folder: Path, *batches: list[dict[str, Any]], opts: Any = ()) -> TrainLoop:
    """Build a training loop of the tiny model on these batches, with config keys and values."""
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", True]
    clip += ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"]
    cfg = config(folder, *clip, *opts)
    torch.manual_seed(0)
    built = build_model(cfg).train()
    optimizer = build_optimizer(cfg, built)
    device = torch.device("cpu")
    loop = TrainLoop(built, batches, optimizer, device=device, output_dir=folder)
    loop._write_metrics = lambda *metrics: None  # type: ignore[method-assign]
    return loop


def make_nan(module: nn.Module) -> None:
    """Set all weights to NaN, as an update that is too large does."""
    for weight in module.parameters():
        nn.init.constant_(weight, float("nan"))


def train(
    folder: Path, *batches: list[dict[str, Any]], broken: str | None = None, opts: Any = ()
) -> TrainLoop:
    """Run one training step on each batch.

    Args:
        broken: name of a submodule whose weights become NaN before the last step.
        opts: config keys and values.
    """
    loop = train_loop(folder, *batches, opts=opts)
    for loop.iter in range(len(batches)):
        if broken is not None and loop.iter == len(batches) - 1:
            make_nan(loop.model.get_submodule(broken))
        loop.run_step()
    return loop


def train_in_a_taken_folder(folder: Path) -> None:
    """Start a training in a folder that another process has locked."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    other = context.Process(target=_hold, args=(folder, theirs))
    other.start()
    try:
        assert ours.recv() == "locked"
        with training_alone_in(folder):
            pass
    finally:
        ours.send("end")
        other.join()


def _hold(folder: Path, connection: Connection) -> None:
    """Lock a folder until the other end sends something."""
    with training_alone_in(folder):
        connection.send("locked")
        connection.recv()


def check_with_small_shared_memory(folder: Path) -> None:
    """Check the config of a training with 2 workers where 64 KiB are free."""
    usage = SimpleNamespace(free=2**16, total=2**16)
    with mock.patch("shutil.disk_usage", lambda _: usage):
        check_shared_memory(config(folder, "DATALOADER.NUM_WORKERS", 2))


@contextmanager
def warnings() -> Iterator[list[str]]:
    """Collect the warnings that the project logs inside the ``with`` block."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    listener = Listener(logging.WARNING)
    logger = logging.getLogger("mask_former")
    logger.addHandler(listener)
    try:
        yield found
    finally:
        logger.removeHandler(listener)
