#!/usr/bin/env python3
"""Convert MaskFormer checkpoints of Hugging Face's transformers to ours, and ours to theirs.

    python tools/convert_hf_maskformer.py FOLDER --output DIR [--dataset coco_2017_val_panoptic]
    python tools/convert_hf_maskformer.py --to-hf CONFIG WEIGHTS --output DIR

The first writes config.yaml and model.safetensors, with the class names and all else that
MaskFormerPredictor needs (which takes FOLDER itself, too). --dataset names the dataset that the
checkpoint was trained on, which says what things are; without it the model gives semantic results.
The second writes config.json, preprocessor_config.json and model.safetensors for
MaskFormerForInstanceSegmentation.from_pretrained. transformers itself is not needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from safetensors.torch import save_file

from mask_former.checkpoint.inference_data import classes_of, inference_data
from mask_former.checkpoint.weights_fit import compare
from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.loading import cfg_from_settings, load_cfg
from mask_former.huggingface import (
    ConvertedCheckpoint,
    read_huggingface_folder,
    to_huggingface_config,
    to_huggingface_names,
    to_huggingface_processor,
)
from mask_former.predictor.inference_pipeline import load_trained_model
from mask_former.utils.atomic_files import replace_file
from mask_former.utils.errors import message_of
from mask_former.utils.weight_files import CLASS_NAMES, read_checkpoint, write_weights


def from_huggingface(folder: Path, output: Path, dataset: str | None = None) -> list[Path]:
    """Convert a folder of theirs. Returns the files written.

    Args:
        folder: see :func:`~mask_former.huggingface.read_huggingface_folder`, as for errors.
        output: a folder, which is made.
        dataset: the registered dataset whose classes the checkpoint has.

    Raises:
        KeyError: for an unknown dataset.
        ValueError: if it has other classes, or the weights do not fit the config beside them.
    """
    checkpoint = read_huggingface_folder(folder)
    settings, weights, names = checkpoint
    if dataset is not None:
        set_dataset(settings, dataset)
    check_fit(checkpoint, folder)
    config_file, weights_file = output / "config.yaml", output / "model.safetensors"
    settings["MODEL"]["WEIGHTS"] = weights_file.name  # found beside the config, wherever that is
    write_weights(weights, weights_file, names, carried_data(settings, names))
    text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
    text = f"# From a transformers MaskFormer, by tools/convert_hf_maskformer.py.\n{text}"
    replace_file(config_file, lambda part: part.write_text(text, encoding="utf-8"))
    return [config_file, weights_file]


def carried_data(settings: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What the weights carry for inference; the names are theirs, the rest is the dataset's."""
    cfg = cfg_from_settings(settings, [], "config.yaml")
    return inference_data(cfg, replace(classes_of(cfg), names=list(names)))


def set_dataset(settings: dict[str, Any], dataset: str) -> None:
    """Name the dataset in the config; panoptic results where it has things and stuff."""
    if dataset not in DatasetCatalog:
        raise KeyError(f"There is no dataset {dataset!r}; known are {', '.join(DatasetCatalog)}.")
    metadata = MetadataCatalog.get(dataset)
    known = metadata.get("stuff_classes", None) or metadata.get("thing_classes", None) or []
    classes = settings["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"]
    if len(known) != classes:
        raise ValueError(
            f"--dataset {dataset} has {len(known)} classes, the checkpoint {classes}: name the "
            "dataset that it was trained on, or none."
        )
    settings["DATASETS"] = {"TRAIN": [dataset], "TEST": [dataset]}
    if "panoptic" in metadata.get("evaluator_type", ""):
        settings["MODEL"]["MASK_FORMER"]["TEST"]["PANOPTIC_ON"] = True


def check_fit(checkpoint: ConvertedCheckpoint, folder: Path) -> None:
    """See that the model of the config has the names and shapes of the weights, no more, no less.

    Raises:
        ValueError: otherwise; names the first that differs.
    """
    cfg = get_mask_former_cfg()
    cfg.merge_from_other_cfg(CfgNode(checkpoint.settings))
    cfg.MODEL.DEVICE = "cpu"
    fit = compare(checkpoint.weights, build_model(cfg).state_dict())
    # what the config gives anyway: files may lack it
    missing = [name for name in fit.missing if not name.startswith("criterion.")]
    differences = [
        *(f"{name} is missing" for name in missing),
        *(f"{name} has shape {file}, not {model}" for name, (file, model) in fit.reshaped.items()),
        *(f"{name} is one too many" for name in fit.unused),
    ]
    if differences:
        raise ValueError(
            f"{folder}: the weights do not fit config.json: {len(differences)} differences, in our "
            f"names {'; '.join(differences[:3])}. Do both files belong to one checkpoint of a "
            "MaskFormerForInstanceSegmentation?"
        )


def to_huggingface(
    config: Path, weights: Path, output: Path, names_file: Path | None = None
) -> list[Path]:
    """Convert a model of ours. Returns the files written.

    Args:
        config, weights: its config file, and a checkpoint of the whole model.
        output: a folder, which is made.
        names_file: the class names, one a line; None: those in the checkpoint, else the dataset's.

    Raises:
        FileNotFoundError: if there is no such file.
        KeyError, ValueError: if a file is broken, the weights are not the model's, there are no
            class names, or transformers' MaskFormer cannot hold the model.
    """
    cfg = load_cfg(str(config), ["MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", "cpu"])
    names = find_class_names(cfg, weights, names_file)
    their_config = to_huggingface_config(cfg, names)
    state = to_huggingface_names(load_trained_model(cfg).state_dict())
    output.mkdir(parents=True, exist_ok=True)
    weights_file = output / "model.safetensors"
    # transformers asks for the format
    replace_file(weights_file, lambda part: save_file(state, part, {"format": "pt"}))
    config_file, processor_file = output / "config.json", output / "preprocessor_config.json"
    write_json(their_config, config_file)
    write_json(to_huggingface_processor(cfg), processor_file)
    return [config_file, processor_file, weights_file]


def write_json(content: dict[str, Any], path: Path) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def find_class_names(cfg: CfgNode, weights: Path, names_file: Path | None) -> list[str]:
    """The class names of a model, from the first that has them: file, checkpoint, dataset."""
    if names_file is not None:
        return names_file.read_text(encoding="utf-8").splitlines()
    names = read_checkpoint(weights).get(CLASS_NAMES) or classes_of(cfg).known_names
    if names is None:
        raise ValueError(
            f"Neither {weights} nor a dataset of DATASETS.TRAIN or TEST names the "
            f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES} classes: give a file with one name a line as "
            "--class-names."
        )
    return list(names)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("folder", nargs="?", type=Path, help="of a transformers MaskFormer")
    source.add_argument("--to-hf", nargs=2, type=Path, metavar=("CONFIG", "WEIGHTS"))
    parser.add_argument("--output", required=True, type=Path, help="the folder to write")
    parser.add_argument("--dataset", help="from theirs: the registered dataset of its classes")
    parser.add_argument("--class-names", type=Path, help="to theirs: a file with one name a line")
    args = parser.parse_args(argv)
    try:
        if args.to_hf:
            config, weights = args.to_hf
            files = to_huggingface(config, weights, args.output, args.class_names)
        else:
            files = from_huggingface(args.folder, args.output, args.dataset)
    except (KeyError, OSError, ValueError) as error:
        print(f"convert_hf_maskformer: {message_of(error)}", file=sys.stderr)
        return 1
    print(f"Written: {', '.join(map(str, files))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
