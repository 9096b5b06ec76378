"""Small valid files of every format, and the mappers that read them without augmentation."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file

from mask_former.config.loading import load_cfg
from mask_former.data.datasets.classes import Classes
from mask_former.data.formats.rle import encode_mask
from mask_former.data.mappers import (
    DETRPanopticDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from mask_former.results import InstanceResult, PanopticResult, Result
from mask_former.results.npz import save_npz
from tests.helpers import own_data
from tests.helpers.tiny_model import write_tiny_model

IMAGE_SUFFIXES = (".png", ".jpg", ".webp", ".tif", ".gif", ".bmp")
CLASSES = 2


def _settings(**more: Any) -> dict[str, Any]:
    return {"augmentations": [], "image_format": "RGB", "num_classes": CLASSES, **more}


def semantic_mapper() -> Any:
    return MaskFormerSemanticDatasetMapper(True, **_settings(ignore_label=255))


def panoptic_mapper() -> Any:
    return DETRPanopticDatasetMapper(True, **_settings(ignore_label=None))


def instance_mapper() -> Any:
    return MaskFormerInstanceDatasetMapper(True, **_settings(ignore_label=None))


def write_images(folder: Path) -> list[Path]:
    """Write an image in each format, and return the paths."""
    paths = [folder / f"image{suffix}" for suffix in IMAGE_SUFFIXES]
    for path in paths:
        own_data.write_image(path)
    return paths


def write_rles(folder: Path) -> tuple[Path, Path]:
    """Write an image with two RLEs, one of them without area and box; returns as `own_data`."""
    images, path = own_data.write_instances(folder)
    content = json.loads(path.read_text())
    first, second = content["annotations"]
    for annotation, value in ((first, 1), (second, 0)):
        mask = own_data.halves(value, 1 - value)
        annotation["segmentation"] = encode_mask(mask.astype(np.uint8))
    del second["area"], second["bbox"]
    path.write_text(json.dumps(content))
    return images, path


def write_result(folder: Path) -> Path:
    """Write a result of all kinds as .npz."""
    labels = own_data.halves(0, 1).astype(np.int32)
    segments: list[Any] = [
        {"id": i + 1, "isthing": True, "category_id": i, "score": 0.5} for i in (0, 1)
    ]
    instances = InstanceResult(
        np.stack([labels == 1]),
        np.array([[32, 0, 64, 48]], np.float32),
        np.ones(1, np.float32),
        np.array([1]),
        ["car"],
    )
    classes = Classes(["road", "car"], [(128, 64, 128), (0, 0, 142)], [False, True])
    panoptic = PanopticResult(labels + 1, segments)
    image = np.zeros((*own_data.SIZE, 3), np.uint8)
    save_npz(Result(image, classes, labels, None, panoptic, instances), folder / "result.npz")
    return folder / "result.npz"


def write_table(folder: Path) -> Path:
    """Write a table of a custom dataset for semantic segmentation, and return its path."""
    content = {
        "ignore_label": 255,
        "datasets": {
            "mine_train": {"kind": "sem_seg", "image_root": "i", "sem_seg_root": "l"},
            "mine_val": {"kind": "sem_seg", "image_root": "i2", "sem_seg_root": "l2"},
        },
        "categories": [
            {"name": "road", "id": 3, "color": [128, 64, 128]},
            {"name": "car", "id": 7, "color": [0, 0, 142], "isthing": True},
        ],
    }
    path = folder / "table.json"
    path.write_text(json.dumps(content, indent=1))
    return path


def write_config(folder: Path) -> Path:
    """Write the config of the tiny model, and return its path."""
    return write_tiny_model(folder, SEMANTIC_ON=True)[0]


def write_checkpoints(folder: Path) -> tuple[list[Path], torch.nn.Module]:
    """Write the tiny model's weights in each format; return the paths and the model."""
    config, source = write_tiny_model(folder, SEMANTIC_ON=True)
    model = build_model(load_cfg(str(config)))
    weights = torch.load(source, weights_only=True)["model"]
    paths = [folder / name for name in ("new.pth", "old.pth", "x.safetensors", "x.pkl")]
    torch.save({"model": weights, "iteration": 7}, paths[0])
    torch.save({"model": weights}, paths[1], _use_new_zipfile_serialization=False)
    save_file(weights, paths[2])
    arrays = {name: value.numpy() for name, value in weights.items()}
    paths[3].write_bytes(pickle.dumps({"model": arrays, "__author__": "me"}))
    return paths, model
