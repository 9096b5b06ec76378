"""Convert checkpoints of Hugging Face's MaskFormer and Mask2Former to this project, and back.

    python tools/convert_hf_maskformer.py FOLDER --output DIR [--dataset coco_2017_val_panoptic]
    python tools/convert_hf_maskformer.py --to-hf CONFIG WEIGHTS --output DIR

The first command writes config.yaml and model.safetensors with all that MaskFormerPredictor needs;
MaskFormerPredictor can also read FOLDER directly. --dataset names the dataset that the checkpoint
was trained on, which defines the thing classes and the results that are turned on; without it,
these are only semantic ones. The second command writes config.json, preprocessor_config.json and
model.safetensors for MaskFormerForInstanceSegmentation.from_pretrained, or
Mask2FormerForUniversalSegmentation.from_pretrained. Neither command needs transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from safetensors.torch import save_file

from mask_former.checkpoint.inference_data import classes_of, inference_data
from mask_former.checkpoint.weights_fit import check_finite, compare, decides_outputs
from mask_former.config.loading import cfg_from_settings, load_cfg
from mask_former.data.datasets.catalog import check_dataset_exists
from mask_former.huggingface import (
    TITLES,
    ConvertedCheckpoint,
    read_huggingface_folder,
    to_huggingface_config,
    to_huggingface_names,
    to_huggingface_processor,
)
from mask_former.predictor.trained_model import load_trained_model
from mask_former.registries import load_plugins
from mask_former.utils.atomic_files import replace_file, replace_text
from mask_former.utils.bounded_files import read_text
from mask_former.utils.weight_files import CLASS_NAMES, read_checkpoint, write_weights

from .backbone_conversion import build_checked
from .command import add_plugin_argument, exit_code, make_parser

__all__ = ["ConvertHFArguments", "main", "parse"]


@dataclass(frozen=True)
class ConvertHFArguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    folder: Path | None
    to_hf: Sequence[Path] | None
    output: Path
    dataset: str | None
    class_names: Path | None
    plugins: Sequence[str]


def parse(argv: Sequence[str] | None) -> ConvertHFArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = make_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("folder", nargs="?", type=Path, help=f"folder of a transformers {TITLES}")
    source.add_argument("--to-hf", nargs=2, type=Path, metavar=("CONFIG", "WEIGHTS"))
    parser.add_argument("--output", required=True, type=Path, help="the folder to write")
    parser.add_argument("--dataset", help="with FOLDER: the registered dataset of its classes")
    parser.add_argument(
        "--class-names", type=Path, help="with --to-hf: a file with one class name per line"
    )
    add_plugin_argument(parser)
    return ConvertHFArguments(**vars(parser.parse_args(argv)))


def from_huggingface(folder: Path, output: Path, dataset: str | None = None) -> list[Path]:
    """Convert the folder of a transformers model, and return the paths of the written files.

    Args:
        folder: See :func:`~mask_former.huggingface.read_huggingface_folder`, also for errors.
        output: A folder, created if needed.
        dataset: The registered dataset whose classes the checkpoint has.

    Raises:
        KeyError: If the dataset is unknown.
        ValueError: If it has other classes, or the weights do not fit their config.
    """
    checkpoint = read_huggingface_folder(folder)
    settings, weights, names = checkpoint
    if dataset is not None:
        set_dataset(settings, dataset)
    check_fit(checkpoint, folder)
    config_file, weights_file = output / "config.yaml", output / "model.safetensors"
    settings["MODEL"]["WEIGHTS"] = weights_file.name  # found next to the config
    write_weights(weights, weights_file, names, inference_entry(settings, names))
    text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
    text = f"# From a checkpoint of transformers, by tools/convert_hf_maskformer.py.\n{text}"
    replace_text(config_file, text)
    return [config_file, weights_file]


def inference_entry(settings: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Build the ``inference`` entry: the weights' class names, with the dataset's colours."""
    cfg = cfg_from_settings(settings, [], "config.yaml")
    return inference_data(cfg, replace(classes_of(cfg), names=list(names)))


def set_dataset(settings: dict[str, Any], dataset: str) -> None:
    """Set the dataset in the config, and turn on the results that the dataset evaluates."""
    check_dataset_exists(dataset)
    metadata = MetadataCatalog.get(dataset)
    known = metadata.get("stuff_classes", None) or metadata.get("thing_classes", None) or []
    classes = settings["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"]
    if len(known) != classes:
        raise ValueError(
            f"--dataset {dataset} has {len(known)} classes, the checkpoint {classes}: give the "
            "dataset that it was trained on, or omit --dataset."
        )
    settings["DATASETS"] = {"TRAIN": [dataset], "TEST": [dataset]}
    evaluator = metadata.get("evaluator_type", "")
    if "panoptic" in evaluator:
        settings["MODEL"]["MASK_FORMER"]["TEST"]["PANOPTIC_ON"] = True
    elif evaluator in ("coco", "cityscapes_instance"):
        settings["MODEL"]["MASK_FORMER"]["TEST"] |= {"INSTANCE_ON": True, "SEMANTIC_ON": False}


def check_fit(checkpoint: ConvertedCheckpoint, folder: Path) -> None:
    """Check that the model of the config has exactly the names and shapes of the weights.

    Raises:
        ValueError: If not, or a setting or a weight is impossible; the message names the first.
    """
    state = build_checked(checkpoint.settings, folder, build_model).state_dict()
    fit = compare(checkpoint.weights, state)
    missing = [name for name in fit.missing if decides_outputs(name, state[name])]
    if differences := replace(fit, missing=missing).differences():
        raise ValueError(
            f"{folder}: the weights do not fit config.json: {len(differences)} differences, with "
            f"this project's names: {'; '.join(differences[:3])}. Both files must belong to one "
            f"checkpoint of a transformers {TITLES}."
        )
    check_finite(checkpoint.weights, state, str(folder))


def to_huggingface(
    config: Path, weights: Path, output: Path, names_file: Path | None = None
) -> list[Path]:
    """Convert a model of this project, and return the paths of the written files.

    Args:
        config: The model's config file.
        weights: A checkpoint of the whole model.
        output: A folder, created if needed.
        names_file: File with one class name per line; default: the checkpoint's names, else the
            dataset's.

    Raises:
        FileNotFoundError: If a file is missing.
        KeyError, ValueError: If a file is damaged, the weights do not fit the model, class names
            are missing, or transformers does not support the model.
    """
    cfg = load_cfg(str(config), ["MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", "cpu"])
    names = find_class_names(cfg, weights, names_file)
    their_config = to_huggingface_config(cfg, names)
    state = to_huggingface_names(load_trained_model(cfg).state_dict())
    output.mkdir(parents=True, exist_ok=True)
    weights_file = output / "model.safetensors"
    # transformers refuses a file whose metadata lacks the format.
    replace_file(weights_file, lambda part: save_file(state, part, {"format": "pt"}))
    config_file, processor_file = output / "config.json", output / "preprocessor_config.json"
    write_json(their_config, config_file)
    write_json(to_huggingface_processor(cfg), processor_file)
    return [config_file, processor_file, weights_file]


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write readable JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    replace_text(path, text)


def find_class_names(cfg: CfgNode, weights: Path, names_file: Path | None) -> list[str]:
    """Return the class names of a model, from ``names_file``, the checkpoint or the dataset."""
    if names_file is not None:
        return read_text(names_file).splitlines()
    names = read_checkpoint(weights).get(CLASS_NAMES) or classes_of(cfg).known_names
    if names is None:
        raise ValueError(
            f"Neither {weights} nor a dataset of DATASETS.TRAIN or TEST names the "
            f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES} classes: give a file with one name per line "
            "with --class-names."
        )
    return list(names)


def run(arguments: ConvertHFArguments) -> int:
    """Convert in the direction that the arguments give, and return the exit code."""
    load_plugins(arguments.plugins)
    output = arguments.output
    if arguments.to_hf is not None:
        config, weights = arguments.to_hf
        files = to_huggingface(config, weights, output, arguments.class_names)
    else:
        assert arguments.folder is not None
        files = from_huggingface(arguments.folder, output, arguments.dataset)
    print(f"Written: {', '.join(map(str, files))}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse(argv)
    return exit_code("convert_hf_maskformer", lambda: run(arguments))
