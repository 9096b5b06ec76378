"""Damaged files of every format that is read: each is read correctly, or refused by name.

For each mutation, a file is damaged and then used in the normal way, in a process of its own. The
result is compared with that of the undamaged file:

- "right": the same result; the damage is in a part that is not read.
- "refused": an expected error (`OUR_ERRORS`) that names the file.
- "plausible": another result, if the format cannot distinguish the damaged file from an intended
  one: for example another pixel in a JPEG, which has no checksum. The judges below detect
  everything that the format does allow to detect.
- "problem": a crash, a hang, an error of another type or without the file's name, or content that
  cannot be right.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.config.loading import load_cfg, resolve_device
from mask_former.config.nodes import leaves
from mask_former.data.datasets.loaders import load_instances, load_panoptic
from mask_former.data.datasets.table import read_table
from mask_former.predictor.images import load_image
from mask_former.results import load_npz
from tests.helpers import own_data
from tests.robustness.isolation import Outcome, isolated, limited
from tests.robustness.mutations import mutate_bytes, mutate_structure
from tests.robustness.samples import (
    instance_mapper,
    panoptic_mapper,
    semantic_mapper,
    write_checkpoints,
    write_config,
    write_images,
    write_result,
    write_rles,
    write_table,
)

OUR_ERRORS = (ValueError, KeyError, OSError)
_CONFIG_KEY = re.compile(r"\b[A-Z_0-9]+\.[A-Z_0-9.]+\b|\bSemSegFPNHead\b")
MEMORY = 4 << 30
"""Bytes that reading a small file may allocate in addition to the memory of the process."""
Judge = Callable[[Any, Any, str], "str | None"]


@dataclass(frozen=True)
class Sample:
    """A file that can be damaged."""

    kind: str
    path: Path
    use: Callable[[], Any]
    """Function that uses the file in the normal way; its results can be compared with ``==``."""
    judge: Judge
    """Function of the undamaged file's result, the damaged file's result and the kind of damage.
    It returns what cannot be right about the second result, or None."""
    structured: bool = False
    """True for JSON and YAML, whose values can be mutated."""
    mutate: Callable[[bytes, random.Random], tuple[str, bytes]] | None = None
    """Its own way to be damaged; None: those of files."""


@dataclass(frozen=True)
class Case:
    """One mutation and its verdict."""

    kind: str
    file: str
    damage: str
    seed: int
    verdict: str
    """"right", "refused", "plausible" or "problem"."""
    detail: str = ""
    seconds: float = 0.0


# Judges: each returns what cannot be right about a result that differs, or None


def must_be_the_same(expected: Any, found: Any, damage: str) -> str | None:
    """Reject every difference, for formats with checksums."""
    return "content that differs from what was written was accepted"


def may_have_other_pixels(expected: Any, found: Any, damage: str) -> str | None:
    """Reject incomplete images and impossible shapes, for images without checksums."""
    if damage in ("truncated", "empty", "another file"):
        return f"an image that is {damage} was accepted"
    height, width, channels = found[0]
    return None if channels == 3 and height > 0 and width > 0 else f"an image of shape {found[0]}"


def must_be_finite(expected: Any, found: Any, damage: str) -> str | None:
    """Reject incomplete files and values that are not finite, for weights without checksums."""
    if damage in ("truncated", "empty", "another file"):
        return f"a checkpoint that is {damage} was accepted"
    return None if found[1] else "weights that are not finite were accepted"


def must_be_targets(expected: Any, found: Any, damage: str) -> str | None:
    """Reject targets of another size than the image, of unknown classes, or without a pixel."""
    for size, labels, areas in found:
        if size not in {example[0] for example in expected}:
            return f"an example of the size {size}"
        if any(not 0 <= label < 2 for label in labels):
            return f"the classes {labels}"
        if any(not 0 < area <= size[0] * size[1] for area in areas):
            return f"masks of {areas} pixels"
    return None


def must_be_a_table(expected: Any, found: Any, damage: str) -> str | None:
    """Reject dataset tables with names that are not text, or ids and colours out of range."""
    names, ids, colors, ignored, paths = found
    if not all(isinstance(n, str) for n in (*names, *paths)) or "" in names:
        return f"names {names} or paths {paths}"
    if not all(type(i) is int and i >= 0 for i in (*ids, ignored)):
        return f"the ids {ids}, ignore label {ignored}"
    channels = [c for color in colors for c in (color if isinstance(color, list) else [color])]
    if len(channels) != 3 * len(colors) or not all(
        type(c) is int and 0 <= c < 256 for c in channels
    ):
        return f"the colours {colors}"
    return None


def must_be_a_config(expected: Any, found: Any, damage: str) -> str | None:
    """Reject configs with a value of another type than in the undamaged one."""
    for key, value in found.items():
        if key in expected and not _alike(expected[key], value):
            return f"{key} is {value!r} instead of {expected[key]!r}"
    return None


def _alike(one: Any, other: Any) -> bool:
    """Return True if the second value is of the first one's type; integers may replace floats."""
    if isinstance(one, bool) or isinstance(other, bool):
        return type(one) is type(other)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return isinstance(other, int) or math.isfinite(other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return not one or all(_alike(one[0], item) for item in other)
    return type(one) is type(other)


# Functions that use a file in the normal way


def _pixels(path: Path) -> Any:
    pixels = load_image(path).pixels
    return pixels.shape, hashlib.sha256(pixels.tobytes()).hexdigest()


def _targets(load: Callable[[], Sequence[dict[str, Any]]], mapper: Any) -> list[Any]:
    examples = [mapper(record) for record in load()]
    return [
        (
            tuple(example["instances"].image_size),
            example["instances"].gt_classes.tolist(),
            example["instances"].gt_masks.sum((1, 2)).tolist(),
        )
        for example in examples
    ]


def _training_pixels(record: Mapping[str, Any], mapper: Any) -> Any:
    example = mapper(dict(record))
    image, masks = example["image"].numpy(), example["instances"].gt_masks.numpy()
    digest = hashlib.sha256(image.tobytes() + masks.tobytes()).hexdigest()
    return (*image.shape[1:], image.shape[0]), digest, example["instances"].gt_classes.tolist()


def _weights(path: Path, model: torch.nn.Module) -> Any:
    Checkpointer(model, whole=True).load(str(path))
    state = model.state_dict()
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in state.values())).hexdigest()
    return digest, all(bool(v.isfinite().all()) for v in state.values() if v.is_floating_point())


def _table(path: Path) -> Any:
    table = read_table(path)
    entries = table.categories
    paths = [p for d in table.datasets.values() for p in (d.image_root, d.sem_seg_root or "-")]
    return (
        table.names,
        [c.id for c in entries if c.id is not None],
        [c.color for c in entries if c.color is not None],
        table.ignore_label,
        [*table.datasets, *paths],
    )


def _config(path: Path) -> Any:
    from detectron2.modeling import build_model

    cfg = resolve_device(load_cfg(str(path)))
    build_model(cfg)
    return dict(leaves(cfg))


def _result(path: Path) -> Any:
    result = load_npz(path)
    drawings = [result.draw(kind).tobytes() for kind in result.kinds]
    return result.kinds, hashlib.sha256(b"".join(drawings)).hexdigest()


# Samples


def all_samples(folder: Path) -> list[Sample]:
    """Write a file of each format below an empty folder, and return the samples."""
    makers = (
        _image_samples,
        _label_samples,
        _json_samples,
        _config_samples,
        _checkpoint_samples,
        _result_samples,
    )
    return [sample for make in makers for sample in make(folder)]


def _image_samples(folder: Path) -> Iterator[Sample]:
    for path in write_images(folder / "images"):
        judge = must_be_the_same if path.suffix == ".png" else may_have_other_pixels
        yield Sample("image", path, partial(_pixels, path), judge)
    own_data.write_semantic_folder(folder / "trained", (0, 1))
    for number, suffix in enumerate((".png", ".jpg")):
        path = folder / "trained" / f"image{suffix}"
        own_data.write_image(path)
        labels = folder / "trained" / "l" / f"{number}.png"
        record = {"file_name": str(path), "sem_seg_file_name": str(labels)}
        judge = must_be_the_same if suffix == ".png" else may_have_other_pixels
        yield Sample("image", path, partial(_training_pixels, record, semantic_mapper()), judge)


def _label_samples(folder: Path) -> Iterator[Sample]:
    own_data.write_semantic_folder(folder / "labelled", (0, 1), count=1)
    for mode in ("L", "P", "I;16"):
        path = folder / "labelled" / f"labels_{mode.replace(';', '_')}.png"
        labels = own_data.halves(0, 1).astype(np.uint16 if mode == "I;16" else np.uint8)
        image = Image.fromarray(labels)
        if mode == "P":
            image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(path)
        image_file = str(folder / "labelled" / "i" / "0.jpg")
        record = {"file_name": image_file, "sem_seg_file_name": str(path)}
        use = partial(_training_pixels, record, semantic_mapper())
        yield Sample("label", path, use, must_be_the_same)
    images, json_file, segments = own_data.write_panoptic(_new(folder / "segments"))
    load = partial(
        load_panoptic,
        images,
        segments,
        json_file,
        contiguous_ids={2: 0, 4: 1},
        thing_ids={4},
    )
    use = partial(_targets, load, panoptic_mapper())
    yield Sample("label", segments / "a.png", use, must_be_the_same)


def _json_samples(folder: Path) -> Iterator[Sample]:
    images, json_file, segments = own_data.write_panoptic(_new(folder / "panoptic"))
    panoptic = partial(
        load_panoptic, images, segments, json_file, contiguous_ids={2: 0, 4: 1}, thing_ids={4}
    )
    use = partial(_targets, panoptic, panoptic_mapper())
    yield Sample("JSON", json_file, use, must_be_targets, structured=True)
    images, json_file = own_data.write_instances(_new(folder / "instances"))
    instances = partial(load_instances, images, json_file, contiguous_ids={1: 0, 3: 1})
    use = partial(_targets, instances, instance_mapper())
    yield Sample("JSON", json_file, use, must_be_targets, structured=True)
    images, json_file = write_rles(_new(folder / "rles"))
    rles = partial(load_instances, images, json_file, contiguous_ids={1: 0, 3: 1})
    use = partial(_targets, rles, instance_mapper())
    yield Sample("JSON", json_file, use, must_be_targets, structured=True)
    table = write_table(_new(folder / "table"))
    yield Sample("JSON", table, partial(_table, table), must_be_a_table, structured=True)


def _config_samples(folder: Path) -> Iterator[Sample]:
    path = write_config(_new(folder / "config"))
    yield Sample("YAML", path, partial(_config, path), must_be_a_config, structured=True)


def _checkpoint_samples(folder: Path) -> Iterator[Sample]:
    paths, model = write_checkpoints(_new(folder / "checkpoints"))
    for path in paths:
        judge = must_be_the_same if path.name == "new.pth" else must_be_finite
        yield Sample("checkpoint", path, partial(_weights, path, model), judge)


def _result_samples(folder: Path) -> Iterator[Sample]:
    path = write_result(_new(folder / "results"))
    yield Sample("result", path, partial(_result, path), must_be_the_same)


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


# The run


def fuzz(samples: Sequence[Sample], seeds: range) -> Iterator[Case]:
    """Run one case per seed, cycling through the kinds of files; a seed determines its case."""
    kinds = list(dict.fromkeys(sample.kind for sample in samples))
    undamaged: dict[Path, Any] = {}
    for seed in seeds:
        rng = random.Random(seed)
        kind = kinds[seed % len(kinds)]
        sample = rng.choice([sample for sample in samples if sample.kind == kind])
        if sample.path not in undamaged:
            first = isolated(limited, sample.use, MEMORY)
            assert first.error is None and first.ended_well, f"{sample.path}: {first.trace}"
            undamaged[sample.path] = first.value
        yield _one(sample, undamaged[sample.path], seed, rng)


def _one(sample: Sample, expected: Any, seed: int, rng: random.Random) -> Case:
    content = sample.path.read_bytes()
    use_structure = sample.structured and rng.random() < 0.7
    mutate = sample.mutate or (mutate_structure if use_structure else mutate_bytes)
    damage, damaged = mutate(content, rng)
    try:
        sample.path.write_bytes(damaged)
        outcome = isolated(limited, sample.use, MEMORY)
    finally:
        sample.path.write_bytes(content)
    verdict, detail = _verdict(sample, expected, outcome, damage)
    name = f"{sample.path.parent.name}/{sample.path.name}"
    return Case(sample.kind, name, damage, seed, verdict, detail, outcome.seconds)


def _verdict(sample: Sample, expected: Any, outcome: Outcome, damage: str) -> tuple[str, str]:
    if outcome.timed_out:
        return "problem", f"hung for {outcome.seconds:.0f} s"
    if outcome.signal is not None:
        return "problem", f"the process ended with {outcome.signal}"
    if outcome.error is not None:
        text = str(outcome.error)
        if not isinstance(outcome.error, OUR_ERRORS):
            return "problem", f"{text}\n{outcome.trace}"
        names = [sample.path.name]
        if sample.kind == "YAML":  # an impossible value may be reported by its key alone
            names += _CONFIG_KEY.findall(text)
        if sample.kind == "JSON":  # mappers only know the entry of an image, not the JSON
            names.append("a.png")
        if sample.kind == "URL":  # the error of a URL names the URL
            names.append("://")
        if not any(name in text for name in names):
            return "problem", f"the error does not name the file: {text}\n{outcome.trace}"
        return "refused", text
    if outcome.value == expected:
        return "right", ""
    wrong = sample.judge(expected, outcome.value, damage)
    return ("problem", wrong) if wrong else ("plausible", damage)


def table_of(cases: Sequence[Case]) -> list[list[Any]]:
    """Return a row for each kind: number of mutations, and number of each verdict."""
    verdicts = ("right", "refused", "plausible", "problem")
    rows = []
    for kind in dict.fromkeys(case.kind for case in cases):
        counts = Counter(case.verdict for case in cases if case.kind == kind)
        rows.append([kind, sum(counts.values()), *(counts[verdict] for verdict in verdicts)])
    return rows
