"""Files of a few bytes that would take all memory or time, never end, or start a program."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.cli.dataset_ids import DatasetIds
from mask_former.config.loading import load_cfg
from mask_former.data.datasets.class_files import read_classes
from mask_former.data.datasets.loaders import load_instances, load_panoptic
from mask_former.data.datasets.table import read_table
from mask_former.data.formats.readers import read_label_map
from mask_former.huggingface import read_huggingface_folder
from mask_former.predictor.images import load_image
from mask_former.predictor.predictor import MaskFormerPredictor
from mask_former.results import load_npz
from mask_former.utils.weight_files import read_checkpoint, read_extras
from tests.helpers import own_data
from tests.helpers.paths import ROOT
from tests.robustness.isolation import isolated, limited
from tests.robustness.malice import MARKER

Readers = dict[str, Callable[[], Any]]
"""By the name of a file that its error has to contain: a function that reads the file."""

MEMORY = 1 << 28
"""Bytes that reading one of the files may take beyond what the process has."""
SECONDS = 20.0

DEEP = 30_000


def instances(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Callable[[], Any]:
    """Write a COCO JSON with ``change`` made to it; returns its loader."""
    images, path = own_data.write_instances(folder)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return partial(load_instances, images, path, contiguous_ids={1: 0, 3: 1})


def tables(folder: Path) -> Readers:
    """Tables that name code."""
    (folder / "evil.py").write_text(f"open({str(folder / MARKER)!r}, 'w')\n")
    table = {
        "generator": "evil",
        "datasets": {"d": {"kind": "sem_seg", "image_root": "i", "sem_seg_root": "l"}},
        "categories": [{"name": "road"}],
    }
    (folder / "table.json").write_text(json.dumps(table))
    (folder / "x.yaml").write_text(f"DATASETS: {{TABLES: [{folder / 'table.json'}]}}\n")
    return {
        "table.json": lambda: read_table(folder / "table.json"),
        "table.json ": lambda: load_cfg(str(folder / "x.yaml")),
    }


def yaml_aliases(folder: Path) -> Readers:
    """Configs that stand for 10^10 values, or whose bases do."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 11)]
    text = "MODEL:\n  a0: &a0 {x: 1}\n"
    text += "".join(f"  a{i}: &a{i} {{l: *a{i - 1}, r: *a{i - 1}}}\n" for i in range(1, 30))
    (folder / "keys.yaml").write_text(text)
    (folder / "list.yaml").write_text("".join(f"- {line.partition(': ')[2]}\n" for line in lines))
    (folder / "circle.yaml").write_text("SEED: &a [*a]\n")
    merged = [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60)]
    (folder / "merged.yaml").write_text("a0: &a0 {x: 1}\n" + "".join(merged))
    for i in range(20):
        (folder / f"base{i}.yaml").write_text(f"_BASE_: [base{i + 1}.yaml, base{i + 1}.yaml]\n")
    (folder / "base20.yaml").write_text("SEED: 1\n")
    (folder / "self.yaml").write_text("_BASE_: self.yaml\n")
    model = {"inference": {"config": text, "classes": []}, "model": {"a": ONE}}
    torch.save(model, folder / "carried.pth")
    names = ("keys", "list", "circle", "merged", "base0", "self")
    return {
        **{f"{name}.yaml": partial(load_cfg, str(folder / f"{name}.yaml")) for name in names},
        "carried.pth": partial(MaskFormerPredictor.from_pretrained, folder / "carried.pth"),
    }


ONE = torch.ones(1)

NESTED_NAME = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(40))
"""Opcodes of a tuple that holds the same tuple twice, 40 levels deep."""


def _with_pickle(source: Path, target: Path, data: bytes, compression: int) -> None:
    """Copy a ``.pth`` with another ``data.pkl``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for record in old.infolist():
            is_pickle = record.filename.endswith("data.pkl")
            kind = compression if is_pickle else zipfile.ZIP_STORED
            new.writestr(record.filename, data if is_pickle else old.read(record), kind, 1)


def pickle_names(folder: Path) -> Readers:
    """Checkpoints whose names, sizes or numbers never end."""
    nested = b"\x80\x02}" + NESTED_NAME + b"Ns."
    (folder / "nested.pkl").write_bytes(nested)
    (folder / "nested.old.pth").write_bytes(nested)
    (folder / "memo.pkl").write_bytes(b"\x80\x02}r" + struct.pack("<I", 2**28) + b".")
    empty = b"\x80\x02}X\x01\0\0\0acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    shape = b"\x8a\x08" + (2**40).to_bytes(8, "little") + b"\x85"
    (folder / "empty.pkl").write_bytes(empty + shape + b"U\x01b\x87Rs.")
    torch.save({"model": {"weight": torch.zeros(1).expand(2**36)}}, folder / "wide.pth")
    torch.save({"a": ONE}, folder / "x.pth")
    _with_pickle(folder / "x.pth", folder / "nested.pth", nested, zipfile.ZIP_STORED)
    many = pickle.dumps({"a": bytes(1 << 27)})
    _with_pickle(folder / "x.pth", folder / "deflated.pth", many, zipfile.ZIP_DEFLATED)
    checkpoints = ("nested.pkl", "nested.old.pth", "memo.pkl", "empty.pkl", "nested.pth")
    model = torch.nn.Linear(2, 2)
    return {
        **{name: partial(Checkpointer(model).load, str(folder / name)) for name in checkpoints},
        "wide.pth": partial(Checkpointer(model).load, str(folder / "wide.pth")),
        "deflated.pth": partial(read_checkpoint, folder / "deflated.pth"),
        "deflated.pth ": partial(read_extras, folder / "deflated.pth"),
    }


def rles(folder: Path) -> Readers:
    """COCO JSONs that claim images of any size."""

    def huge(side: int, segmentation: Any) -> Callable[[dict[str, Any]], Any]:
        def change(content: dict[str, Any]) -> None:
            content["images"][0].update(height=side, width=side)
            for annotation in content["annotations"]:
                del annotation["area"]
                annotation["segmentation"] = segmentation

        return change

    far, size = [0, 0, 9e7, 0, 9e7, 9e7], {"size": [60_000, 60_000]}
    zigzag = [v for i in range(50_000) for v in (0, 0, 60_000, i % 3)]
    return {
        "far/x.json": instances(folder / "far", huge(10**7, [far])),
        "short/x.json": instances(folder / "short", huge(60_000, {**size, "counts": "111"})),
        "list/x.json": instances(folder / "list", huge(60_000, {**size, "counts": [1, 1]})),
        "zigzag/x.json": instances(folder / "zigzag", huge(60_000, [zigzag])),
    }


def eps(folder: Path) -> Readers:
    """An EPS that calls itself a PNG, for which Pillow starts the Ghostscript that it finds."""
    program = folder / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{folder / MARKER}'\n")
    program.chmod(0o755)
    path = folder / "x.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")

    sys.path.append(str(ROOT / "demo"))
    is_video = importlib.import_module("page.uploads").is_video

    def with_program(read: Callable[[Path], Any]) -> Any:
        os.environ["PATH"] = f"{program.parent}:{os.environ['PATH']}"
        return read(path)

    return {
        "x.png": partial(with_program, load_image),
        "x.png ": partial(with_program, is_video),
        "x.png  ": partial(with_program, lambda path: read_label_map(str(path))),
    }


def _readers_of(folder: Path) -> Readers:
    """The reader of each kind of file, by the name that the file has to have."""
    panoptic = {"contiguous_ids": {1: 0}, "thing_ids": {1}}
    return {
        "table.json": partial(read_table, folder / "table.json"),
        "x.json": partial(load_instances, folder, folder / "x.json", contiguous_ids={1: 0}),
        "p.json": partial(load_panoptic, folder, folder, folder / "p.json", **panoptic),
        "ids.json": partial(DatasetIds.of_json, folder / "ids.json", ["a"]),
        "x.yaml": partial(load_cfg, str(folder / "x.yaml")),
        "classes.txt": partial(read_classes, folder / "classes.txt"),
        "image.png": partial(load_image, folder / "image.png"),
        "labels.png": partial(read_label_map, str(folder / "labels.png")),
        "config.json": partial(read_huggingface_folder, folder),
        "x.pth": partial(read_checkpoint, folder / "x.pth"),
        "x.npz": partial(load_npz, folder / "x.npz"),
    }


def pipes(folder: Path) -> Readers:
    """Named pipes that nobody writes into."""
    readers = _readers_of(folder)
    for name in readers:
        os.mkfifo(folder / name)
    folder_name = {folder.name: partial(MaskFormerPredictor.from_pretrained, folder)}
    return readers | folder_name


def links(folder: Path) -> Readers:
    """Links to a device that never ends."""
    readers = _readers_of(folder)
    for name in readers:
        (folder / name).symlink_to("/dev/zero")
    return readers


def deep_nesting(folder: Path) -> Readers:
    """JSON and YAML with 30,000 levels."""
    text = "[" * DEEP + "]" * DEEP
    readers = _readers_of(folder)
    for name in ("table.json", "x.json", "p.json", "ids.json", "config.json"):
        (folder / name).write_text(f'{{"images": {text}, "datasets": {text}}}')
    (folder / "x.yaml").write_text(f"SEED: {text}\n")
    save_file({"a": ONE}, folder / "x.safetensors", {"class_names": text})
    carried = {"config": f"MODEL: {text}", "classes": []}
    torch.save({"model": {"a": ONE}, "inference": carried}, folder / "carried.pth")
    np.savez(folder / "x.npz", size=np.array([4, 4]), classes=np.array(text))
    kept = [name for name in readers if (folder / name).exists()]
    return {
        **{name: readers[name] for name in kept},
        "x.safetensors": partial(read_checkpoint, folder / "x.safetensors"),
        "carried.pth": partial(MaskFormerPredictor.from_pretrained, folder / "carried.pth"),
    }


def results(folder: Path) -> Readers:
    """Results that claim more than they hold, and those that fail only when they are drawn."""
    classes = np.array(json.dumps([{"name": "a", "color": [1, 2, 3], "isthing": True}]))
    ids = np.zeros((4, 4), np.int16)

    def write(name: str, **arrays: Any) -> Callable[[], Any]:
        content = {"size": np.array([4, 4]), "classes": classes, **arrays}
        np.savez_compressed(folder / name, **content)
        return lambda: load_npz(folder / name).draw()

    colours = json.dumps([{"name": "a", "color": [10**6, 2, 3], "isthing": True}])
    segments = {"panoptic_ids": ids, "panoptic_segments": np.array('["x"]')}
    objects = {
        "instance_masks": np.zeros((1, 4, 1), np.uint8),
        "instance_boxes": np.zeros((1, 4), np.float32),
        "instance_scores": np.ones(1, np.float32),
        "instance_class_ids": np.array([77]),
    }
    readers = {
        "side.npz": write("side.npz", size=np.array([10**6, 10**6])),
        "class.npz": write("class.npz", semantic=ids + 99),
        "segments.npz": write("segments.npz", **segments),
        "object.npz": write("object.npz", **objects),
        "colour.npz": write("colour.npz", semantic=ids, classes=np.array(colours)),
        "zeros.npz": write("zeros.npz", semantic=np.zeros((8192, 8192), np.uint8)),
    }
    good = folder / "colour.npz"
    np.lib.format.write_array(head := io.BytesIO(), np.zeros(1, np.uint8))
    claim = head.getvalue().replace(b"(1,), }" + b" " * 12, b"(1099511627776,), }")
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(folder / "header.npz", "w") as new:
        for record in old.infolist():
            is_semantic = record.filename == "semantic.npy"
            new.writestr(record.filename, claim if is_semantic else old.read(record))
    return {**readers, "header.npz": partial(load_npz, folder / "header.npz")}


KINDS: dict[str, Callable[[Path], Readers]] = {
    "table": tables,
    "YAML aliases": yaml_aliases,
    "pickle names": pickle_names,
    "RLE": rles,
    "EPS": eps,
    "named pipes": pipes,
    "links": links,
    "deep nesting": deep_nesting,
    "npz": results,
}
"""By the name of a kind: a function that writes its files, and returns how each is read."""


def problems_of(kind: str, folder: Path) -> list[str]:
    """Read the files of a kind; returns a line for each that is not refused by its name."""
    problems = []
    for name, read in KINDS[kind](folder).items():
        outcome = isolated(limited, read, MEMORY, timeout=SECONDS)
        if not outcome.ended_well:
            problems.append(f"{name}: it hung or crashed: {outcome}")
        elif not isinstance(outcome.error, ValueError | OSError):
            problems.append(f"{name}: expected a ValueError, found {outcome}")
        elif name.strip() not in str(outcome.error):
            problems.append(f"{name}: the error does not name it: {outcome.error}")
    if (folder / MARKER).exists():
        problems.append("a program was started")
    return problems
