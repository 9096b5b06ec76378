#!/usr/bin/env python3
"""Compare the speed of panoptic and semantic evaluation with detectron2's evaluators.

python tools/benchmark_evaluation.py --images 200 --classes 150

The dataset is synthetic: blobs of classes, and predictions with some wrong classes and shifted
outlines. Both evaluators get the same outputs, interleaved, and must agree to the last digit. The
times cover process() for every image and evaluate(); CPU seconds are the sum over all processes.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import detectron2.evaluation as d2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mask_former.cli.command import make_parser
from mask_former.data.datasets.catalog import Category
from mask_former.data.formats.coco_panoptic import segments_info, write_ids, write_image, write_json
from mask_former.evaluation.panoptic import COCOPanopticEvaluator
from mask_former.evaluation.semantic import SemSegEvaluator

DATASET = "benchmark_evaluation"
SEGMENTS, IGNORE = 12, 255
REPEAT = 4  # number of different scenes; more would need memory for their K×H×W scores


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse(argv)
    if not 2 <= args.classes < IGNORE or args.images < 1:
        print(
            f"--classes is {args.classes} and --images {args.images}; expected 2 … {IGNORE - 1} "
            "classes and at least 1 image.",
            file=sys.stderr,
        )
        return 1
    torch.set_num_threads(args.threads)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", DeprecationWarning)  # from detectron2
        outputs = write_synthetic_data(Path(folder), args)
        print(f"{args.images} images of {args.size[1]}×{args.size[0]}, {args.classes} classes")
        for task, both in evaluators(Path(folder)).items():
            (wall, cpu), (their_wall, their_cpu) = measure(both, outputs, task).values()
            print(f"{task}, seconds: ours {wall:.2f} (CPU {cpu:.2f}), ", end="")
            print(f"detectron2 {their_wall:.2f} (CPU {their_cpu:.2f}); ", end="")
            print(f"{their_wall / wall:.1f} times as fast (CPU {their_cpu / cpu:.1f})")
    return 0


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    images: int
    classes: int
    size: Sequence[int]
    threads: int


def parse(argv: Sequence[str] | None) -> Arguments:
    """Parse the command line; exit with a message if it is invalid."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--images", type=int, default=200)
    add("--classes", type=int, default=150)
    add("--size", type=int, nargs=2, default=[480, 640], help="height and width")
    add("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    return Arguments(**vars(parser.parse_args(argv)))


def write_synthetic_data(folder: Path, args: Arguments) -> list[dict[str, Any]]:
    """Write and register the dataset; return the outputs of its different scenes."""
    rng = np.random.default_rng(0)
    scenes = [Scene(rng, args.classes, (args.size[0], args.size[1])) for _ in range(REPEAT)]
    (folder / "panoptic").mkdir()
    records, annotations = [], []
    for index in tqdm(range(args.images), desc="writing", disable=None):
        scene, name = scenes[index % REPEAT], f"{index}.png"
        write_image(folder / name, scene.labels)
        write_ids(folder / "panoptic" / name, scene.ids)
        annotations.append({"file_name": name, "image_id": index, "segments_info": scene.infos})
        files = {"file_name": f"{index}.jpg", "sem_seg_file_name": str(folder / name)}
        records.append(files | {"image_id": index})
    categories = [
        Category(f"class {i}", id=i + 1, isthing=is_thing(i)) for i in range(args.classes)
    ]
    images = [{"id": index} for index in range(args.images)]
    write_json(folder / "panoptic.json", categories, images, annotations)
    if DATASET in DatasetCatalog:
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).set(
        stuff_classes=[c.name for c in categories],
        ignore_label=IGNORE,
        panoptic_json=str(folder / "panoptic.json"),
        panoptic_root=str(folder / "panoptic"),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(args.classes) if is_thing(i)},
        stuff_dataset_id_to_contiguous_id={i + 1: i for i in range(args.classes)},
    )
    return [scene.output for scene in scenes]


def is_thing(index: int) -> bool:
    """Return True for every other class."""
    return index % 2 == 0


class Scene:
    """Synthetic image: its ground truth, and the output of a simulated model."""

    def __init__(self, rng: np.random.Generator, num_classes: int, size: tuple[int, int]) -> None:
        blobs = [cv2.resize(rng.normal(size=(6, 8)), size[::-1]) for _ in range(SEGMENTS)]
        self.ids = np.argmax(blobs, axis=0) + 1
        self.ids[:9] = 0
        classes = rng.integers(num_classes, size=SEGMENTS + 1)
        self.labels = np.where(self.ids > 0, classes[self.ids], IGNORE).astype(np.uint8)
        present = np.unique(self.ids[self.ids > 0]).tolist()
        self.infos = segments_info(self.ids, {n: int(classes[n]) + 1 for n in present})
        found = np.roll(self.ids, 4, axis=(0, 1))
        guessed = np.where(rng.random(SEGMENTS + 1) < 0.7, classes, (classes + 1) % num_classes)
        scores = rng.random((num_classes, *size), dtype=np.float32)
        np.put_along_axis(scores, guessed[found][None], 1, axis=0)
        infos = [
            {"id": n, "category_id": int(guessed[n]), "isthing": is_thing(int(guessed[n]))}
            for n in np.unique(found[found > 0]).tolist()
        ]
        self.output = {
            "sem_seg": torch.from_numpy(scores),
            "panoptic_seg": (torch.from_numpy(found.astype(np.int32)), infos),
        }


def evaluators(folder: Path) -> dict[str, dict[str, d2.DatasetEvaluator]]:
    """Build both evaluators of each task; all of them write their predictions."""

    def read(path: str, dtype: Any) -> NDArray[Any]:
        # detectron2's own function asks numpy not to copy, which numpy 2 refuses.
        return np.array(Image.open(path), dtype=dtype)

    ours, theirs = str(folder / "ours"), str(folder / "theirs")
    return {
        "panoptic": {
            "ours": COCOPanopticEvaluator(DATASET, ours),
            "detectron2": d2.COCOPanopticEvaluator(DATASET, theirs),
        },
        "semantic": {
            "ours": SemSegEvaluator(DATASET, output_dir=ours),
            "detectron2": d2.SemSegEvaluator(DATASET, output_dir=theirs, sem_seg_loading_fn=read),
        },
    }


def measure(
    evaluators: dict[str, d2.DatasetEvaluator], outputs: Sequence[dict[str, Any]], task: str
) -> dict[str, list[float]]:
    """Measure wall and CPU seconds of each evaluator, interleaved image by image.

    Raises:
        ValueError: if their metrics differ.
    """
    seconds = {name: [0.0, 0.0] for name in evaluators}

    def timed(name: str, do: Callable[[], Any]) -> Any:
        cpu, wall = sum(os.times()[:4]), time.perf_counter()
        result = do()
        seconds[name][0] += time.perf_counter() - wall
        seconds[name][1] += sum(os.times()[:4]) - cpu  # including children that have ended
        return result

    for evaluator in evaluators.values():
        evaluator.reset()
    for index, record in enumerate(tqdm(DatasetCatalog.get(DATASET), desc=task, disable=None)):
        for name, evaluator in evaluators.items():
            output = outputs[index % REPEAT]
            ids, infos = output["panoptic_seg"]
            own = {**output, "panoptic_seg": (ids, [dict(info) for info in infos])}
            timed(name, partial(evaluator.process, [record], [own]))
    found = [timed(name, partial(finish, e)) for name, e in evaluators.items()]
    ours, theirs = ([(k, float(v)) for k, v in metrics.items()] for metrics in found)
    if repr(ours) != repr(theirs):  # nan is nan
        raise ValueError(f"The metrics differ: {ours} and {theirs}.")
    return seconds


def finish(evaluator: d2.DatasetEvaluator) -> dict[str, float]:
    """Return the metrics of all images."""
    (metrics,) = evaluator.evaluate().values()
    gc.collect()  # ends detectron2's process pool
    return metrics


if __name__ == "__main__":
    sys.exit(main())
