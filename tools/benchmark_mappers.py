#!/usr/bin/env python3
"""Compare the CPU time per training example with that of a plain mapper.

python tools/benchmark_mappers.py --config-file configs/ade20k-150/maskformer_R50_bs16_160k.yaml
python tools/benchmark_mappers.py --config-file configs/camvid/F.yaml --own-data --rounds 5

The images are synthetic; --own-data reads images of the config's dataset instead. The
plain mapper runs detectron2's augmentations one after another on 64-bit label maps, creates the
masks one at a time and pads last. Both run interleaved, image by image, with the same seeds.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.structures import BitMasks, Instances
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mask_former.cli.command import make_parser
from mask_former.config.loading import load_cfg
from mask_former.registries import DATASET_MAPPER_REGISTRY, lookup
from mask_former.utils.errors import message_of

SEGMENTS = 12  # segments of a synthetic image
NOISE = 6.0  # standard deviation, for pixels in 0 … 255; gives JPEGs of about 3 bits per pixel
Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        cfg = load_cfg(args.config_file, args.opts)
        key = "INPUT.DATASET_MAPPER_NAME"
        ours = lookup(DATASET_MAPPER_REGISTRY, cfg.INPUT.DATASET_MAPPER_NAME, key)(cfg, True)
        with tempfile.TemporaryDirectory() as folder:
            if args.own_data:
                records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
                records = records[: args.images]
            else:
                records = write_synthetic_data(
                    Path(folder), args.images, (args.size[0], args.size[1]), cfg
                )
            seconds = measure({"ours": ours, "plain": plain_mapper(cfg)}, records, args.rounds)
    except (KeyError, OSError, ValueError) as error:
        print(f"benchmark_mappers.py: {message_of(error)}", file=sys.stderr)
        return 1
    medians = {name: 1000 * statistics.median(found) for name, found in seconds.items()}
    print(f"{args.config_file}: CPU milliseconds per image, median of {len(seconds['ours'])}")
    print(f"  ours {medians['ours']:.2f}, plain {medians['plain']:.2f}")
    print(f"  {medians['plain'] / medians['ours']:.2f} times as fast")
    return 0


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    config_file: str
    own_data: bool
    size: Sequence[int]
    images: int
    rounds: int
    opts: Sequence[str]


def parse(argv: Sequence[str] | None) -> Arguments:
    """Parse the command line; exit with a message if it is invalid."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--config-file", required=True)
    add("--own-data", action="store_true", help="use the first images of DATASETS.TRAIN")
    add(
        "--size", type=int, nargs=2, default=[512, 683], help="height and width of synthetic images"
    )
    add("--images", type=int, default=16)
    add("--rounds", type=int, default=8, help="measured examples per image")
    add("opts", nargs="...", help="KEY VALUE … of the config")
    return Arguments(**vars(parser.parse_args(argv)))


def write_synthetic_data(
    folder: Path, count: int, size: tuple[int, int], cfg: CfgNode
) -> list[dict[str, Any]]:
    """Write JPEGs of noisy coloured blobs and PNGs of their annotations; return dataset dicts."""
    rng = np.random.default_rng(0)
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    ignore_label = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("ignore_label")
    records = []
    for index in range(count):
        blobs = [cv2.resize(rng.normal(size=(6, 8)), size[::-1]) for _ in range(SEGMENTS)]
        segments = np.argmax(blobs, axis=0)
        noise = rng.normal(0, NOISE, (*size, 3))
        image = rng.integers(0, 256, (SEGMENTS, 3))[segments] + noise
        present = np.unique(segments).tolist()
        classes = rng.choice(num_classes, SEGMENTS, replace=num_classes < SEGMENTS)
        labels = classes[segments]
        labels[:9] = ignore_label
        ids = segments + 1 + 256 * (segments + 1)
        rgb = np.stack([ids % 256, ids // 256, 0 * ids], axis=-1)
        dtype = np.uint8 if ignore_label < 256 else np.uint16
        paths = [folder / f"{index}{end}" for end in (".jpg", "_labels.png", "_segments.png")]
        arrays = [np.clip(image, 0, 255).astype(np.uint8), labels.astype(dtype), rgb]
        for path, array in zip(paths, arrays, strict=True):
            Image.fromarray(array.astype(np.uint8) if array is rgb else array).save(path)
        infos = [{"id": 257 * (i + 1), "category_id": int(classes[i])} for i in present]
        keys = ("file_name", "sem_seg_file_name", "pan_seg_file_name")
        files = {key: str(path) for key, path in zip(keys, paths, strict=True)}
        records.append(files | {"image_id": index, "segments_info": infos})
    return records


def measure(
    mappers: dict[str, Mapper], records: list[dict[str, Any]], rounds: int
) -> dict[str, list[float]]:
    """Measure the CPU seconds of each example, after a round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in mappers}
    for seed in tqdm(range(rounds + 1), desc="rounds", disable=None):
        for index, record in enumerate(records):
            for name, mapper in mappers.items():
                np.random.seed(1000 * seed + index)
                random.seed(1000 * seed + index)
                start = time.process_time()
                mapper(record)
                if seed:
                    seconds[name].append(time.process_time() - start)
    return seconds


# The plain mapper


def plain_mapper(cfg: CfgNode) -> Mapper:
    """Make the mapper that the config names, in its simplest form."""
    name = cfg.INPUT.DATASET_MAPPER_NAME
    ignore_label = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("ignore_label", 255)
    augmentations = plain_augmentations(cfg, ignore_label)
    sides = {"detr_panoptic": -1, "coco_panoptic_lsj": cfg.INPUT.IMAGE_SIZE}
    pad = sides.get(name, cfg.INPUT.SIZE_DIVISIBILITY)

    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        image = detection_utils.read_image(record["file_name"], format=cfg.INPUT.FORMAT)
        sem_seg = None
        if name not in sides and "sem_seg_file_name" in record:
            sem_seg = detection_utils.read_image(record["sem_seg_file_name"]).astype(np.float64)
        inputs = T.AugInput(image, sem_seg=sem_seg)
        transforms = T.AugmentationList(augmentations)(inputs)
        tensor = torch.as_tensor(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))
        padding = [0, pad - tensor.shape[2], 0, pad - tensor.shape[1]] if pad > 0 else [0] * 4
        example = {"image": F.pad(tensor, padding, value=128)}
        if sem_seg is not None:
            labels = torch.as_tensor(inputs.sem_seg.astype(np.int64))
            example["sem_seg"] = F.pad(labels, padding, value=ignore_label)
        if name == "mask_former_semantic":
            classes, masks = plain_classes(example["sem_seg"].numpy(), ignore_label)
        else:
            classes, masks = plain_segments(record, transforms, padding)
        instances = Instances(example["image"].shape[-2:])
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        instances.gt_masks = BitMasks(
            torch.stack([torch.from_numpy(np.ascontiguousarray(mask.copy())) for mask in masks])
        ).tensor
        return example | {"instances": instances}

    return mapper


def plain_classes(labels: NDArray, ignore_label: int) -> tuple[list[int], list[NDArray]]:
    """Return the class ids in an H×W label map, and a mask of each."""
    classes = [int(c) for c in np.unique(labels) if c != ignore_label]
    return classes, [labels == c for c in classes]


def plain_segments(
    record: dict[str, Any], transforms: T.TransformList, padding: list[int]
) -> tuple[list[int], list[NDArray]]:
    """Return the class ids of a panoptic annotation's segments, and a mask of each."""
    rgb = detection_utils.read_image(record["pan_seg_file_name"], "RGB")
    rgb = transforms.apply_segmentation(rgb).astype(np.int64)
    ids = torch.from_numpy(rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2])
    padded = F.pad(ids, padding, value=0).numpy()
    infos = [info for info in record["segments_info"] if not info.get("iscrowd", 0)]
    return [info["category_id"] for info in infos], [padded == info["id"] for info in infos]


def plain_augmentations(cfg: CfgNode, ignore_label: int) -> list[T.Augmentation]:
    """Return detectron2's own augmentations, each applied separately."""
    resize = T.ResizeShortestEdge(
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    )
    flip, crop = T.RandomFlip(), cfg.INPUT.CROP
    if cfg.INPUT.DATASET_MAPPER_NAME == "coco_panoptic_lsj":
        side = cfg.INPUT.IMAGE_SIZE
        scale = T.ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, side, side)
        return [flip, scale, T.FixedSizeCrop((side, side), pad=False)]
    if cfg.INPUT.DATASET_MAPPER_NAME == "detr_panoptic":
        first = T.ResizeShortestEdge((400, 500, 600), sample_style="choice")
        both = T.AugmentationList([first, T.RandomCrop(crop.TYPE, crop.SIZE)])
        return [flip, *([T.RandomApply(both, prob=0.5)] if crop.ENABLED else []), resize]
    steps = [resize]
    if crop.ENABLED:
        limit = crop.SINGLE_CATEGORY_MAX_AREA
        steps.append(T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, limit, ignore_label))
    if cfg.INPUT.COLOR_AUG_SSD:
        steps.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    return [*steps, flip]


if __name__ == "__main__":
    sys.exit(main())
