"""Mistakes that users make, each planted here, with what they are told.

``python -m tests.helpers.planted_mistakes`` writes docs/troubleshooting.md from this table;
tests/config/test_guards.py plants them all and holds the page to the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.checkpoint.inference_data import read_inference_data
from mask_former.config.loading import load_cfg
from mask_former.data.datasets.catalog import read_table
from mask_former.evaluation.build import build_evaluator
from mask_former.losses import NonFiniteError
from mask_former.predictor.images import load_image
from mask_former.predictor.pretrained import find_pretrained
from mask_former.registries import MissingPluginError
from mask_former.solver.optimizer import build_optimizer
from tests.helpers import planting as p
from tests.helpers.damage import flip_a_bit
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import write_tiny_model

PAGE = ROOT / "docs" / "troubleshooting.md"


@dataclass(frozen=True)
class Mistake:
    """A mistake and its message."""

    plant: Callable[[Path], Any]
    """Makes the mistake, in an empty folder."""
    message: str
    """What is said; "…" stands for anything, such as names of files and lists."""
    means: str
    fix: str
    error: type[Exception] | None = ValueError
    """None: a warning in the log."""


def write(folder: Path, text: str, name: str = "x.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


_TABLE = """{
  "datasets": {"mine": {"kind": "sem_seg", "image_root": "a", "sem_seg_root": "b"}},
  "ignore_label": 1,
  "categories": [{"name": "road"}, {"name": "sky"}]
}"""

PLUGIN_CONFIG = """# needs --plugin my_decoder.py
MODEL: {SEM_SEG_HEAD: {PIXEL_DECODER_NAME: MyDecoder}}
"""

CONFIG = {
    "an unknown key": Mistake(
        lambda folder: p.config(folder, "MODEL.MASK_FORMER.NUM_QUERIES", 5),
        "…: there is no config key MODEL.MASK_FORMER.NUM_QUERIES; did you mean "
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES…",
        "No config key has that name.",
        "Use one of the suggested keys, or find it in `mask_former/config/keys.py`.",
        KeyError,
    ),
    "a value of another type": Mistake(
        lambda folder: p.config(folder, "SOLVER.MAX_ITER", "soon"),
        "SOLVER.MAX_ITER soon: Type mismatch (<class 'int'> vs. <class 'str'>) with values (… vs. "
        "soon) for config key: SOLVER.MAX_ITER",
        "The key expects a whole number, but the value is text.",
        "Write a value of the type that the message shows first.",
    ),
    "options after the keys": Mistake(
        lambda folder: load_cfg("", ["SEED", "1", "--resume"]),
        "Expected KEY VALUE pairs, got 3 words: SEED 1 --resume. Options such as --resume go "
        "before the first key.",
        "After the first key, only keys and values may follow.",
        "Move the options before the first key.",
    ),
    "a missing config file": Mistake(
        lambda folder: load_cfg(str(folder / "x.yaml")),
        "There is no config file …x.yaml (--config-file).",
        "The path is wrong; it is relative to the folder that the command runs in.",
        "Correct it.",
        FileNotFoundError,
    ),
    "a missing base of a config": Mistake(
        lambda folder: load_cfg(write(folder, "_BASE_: base.yaml")),
        "There is no config file …base.yaml (_BASE_ of …x.yaml).",
        "`_BASE_` is relative to the file that names it.",
        "Correct it in that file.",
        FileNotFoundError,
    ),
    "a file that is not a config": Mistake(
        lambda folder: load_cfg(write(folder, "- SEED")),
        "The config file … holds list …; expected keys and values, such as 'SEED: 1'.",
        "The file is YAML, but not a mapping of keys to values.",
        "Write `KEY: VALUE` lines, nested by group.",
    ),
    "a key that occurs twice": Mistake(
        lambda folder: load_cfg(write(folder, "SEED: 1\nSEED: 2")),
        "The config file …x.yaml is not plain YAML: the key SEED occurs twice,…line 2…",
        "Other YAML readers would use the last one without a warning.",
        "Remove one of them.",
    ),
    "a key without a value": Mistake(
        lambda folder: load_cfg(write(folder, "SOLVER:\n  BASE_LR:\nVERSION: 2")),
        "SOLVER.BASE_LR has no value; expected one, such as 0.001.",
        "There is nothing after the colon.",
        "Write a value, or remove the line.",
    ),
    "text in a list of numbers": Mistake(
        lambda folder: p.config(folder, "MODEL.PIXEL_MEAN", "['a', 'b', 'c']"),
        "MODEL.PIXEL_MEAN is ['a', 'b', 'c']: found 'a', expected a number.",
        "An item of a list has another type than those of the default.",
        "Write items of that type; in YAML, numbers have no quotes.",
    ),
    "a plug-in that is not loaded": Mistake(
        lambda folder: load_cfg(write(folder, PLUGIN_CONFIG)),
        "…x.yaml needs the plug-in my_decoder.py, which is not loaded: give --plugin my_decoder.py "
        "with the path of the file, or in Python call mask_former.load_plugin('my_decoder.py') "
        "first. Without it: MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is 'MyDecoder', which is not "
        "registered…",
        "The model was trained with a Python file of your own ([add a part](extend.md)).",
        "Give that file to the command, too.",
        MissingPluginError,
    ),
    "an unknown backbone": Mistake(
        lambda folder: p.config(folder, "MODEL.BACKBONE.NAME", "ResNet50"),
        "MODEL.BACKBONE.NAME is 'ResNet50', which is not registered. Known: "
        "[…'build_resnet_backbone'…].",
        "No plug-in has that name. The same holds for heads, pixel decoders and the other parts.",
        "Use a known one, or load the file that registers yours with `--plugin FILE`.",
        KeyError,
    ),
    "an unknown mapper": Mistake(
        lambda folder: p.config(folder, "INPUT.DATASET_MAPPER_NAME", "semantic"),
        "INPUT.DATASET_MAPPER_NAME is 'semantic', which is not registered. Known: "
        "[…'mask_former_semantic'…].",
        "No mapper has that name.",
        "Use a known one.",
        KeyError,
    ),
    "an unknown loss": Mistake(
        lambda folder: p.config(folder, "MODEL.MASK_FORMER.LOSSES", "['labels', 'boxes']"),
        "MODEL.MASK_FORMER.LOSSES is 'boxes', which is not registered. Known: […'masks'…].",
        "No loss has that name.",
        "Use known ones.",
        KeyError,
    ),
    "a crop larger than the padded side": Mistake(
        lambda folder: p.config(
            folder,
            *("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"),
            *("INPUT.CROP.SIZE", "[640, 640]", "INPUT.SIZE_DIVISIBILITY", 512),
        ),
        "INPUT.CROP.SIZE is [640, 640], larger than INPUT.SIZE_DIVISIBILITY = 512, the side that "
        "crops are padded to: set INPUT.SIZE_DIVISIBILITY to 640.",
        "Despite its name, `INPUT.SIZE_DIVISIBILITY` is a size, and crops must fit into it.",
        "Increase it, or make the crops smaller.",
    ),
    "a fraction of crops in per cent": Mistake(
        lambda folder: planted_trainer(
            folder, "INPUT.CROP.ENABLED", True, "INPUT.CROP.CLASS_UNIFORM", 30.0
        ),
        "INPUT.CROP.CLASS_UNIFORM is 30.0, expected a probability, 0 to 1.",
        "It is a fraction of the crops.",
        "Divide by 100.",
    ),
    "a standard deviation of 0": Mistake(
        lambda folder: p.config(folder, "MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"),
        "MODEL.PIXEL_MEAN is … and MODEL.PIXEL_STD [0.0, 1.0, 1.0]; expected a value for each "
        "channel in both, and deviations above 0.",
        "Pixels are divided by it.",
        "Use the values of the pre-trained backbone, for pixels in 0 … 255.",
    ),
    "a threshold in per cent": Mistake(
        lambda folder: p.config(folder, "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 80.0),
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD is 80.0; it must lie in [0, 1].",
        "Thresholds are fractions.",
        "Divide by 100.",
    ),
    "no queries": Mistake(
        lambda folder: p.config(folder, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 0),
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is 0; expected 1 or more.",
        "Each query predicts one mask.",
        "Set it to the largest number of targets in an image, or more.",
    ),
    "a negative weight": Mistake(
        lambda folder: p.config(folder, "MODEL.MASK_FORMER.DICE_WEIGHT", -1.0),
        "MODEL.MASK_FORMER.DICE_WEIGHT is -1.0; expected 0 or more.",
        "The loss would reward mistakes.",
        "Set it to 0 to turn the term off.",
    ),
    "all weights 0": Mistake(
        lambda folder: p.model(
            folder,
            *("MODEL.MASK_FORMER.CLASS_WEIGHT", 0.0, "MODEL.MASK_FORMER.MASK_WEIGHT", 0.0),
            *("MODEL.MASK_FORMER.DICE_WEIGHT", 0.0),
        ),
        "All matching weights are 0: nothing would decide the assignment.",
        "Queries and targets are matched with the weights of the losses.",
        "Set one of them above 0.",
    ),
    "points that are chosen from too few": Mistake(
        lambda folder: p.config(
            folder,
            *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 1024),
            *("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", 0.5),
        ),
        "MODEL.MASK_FORMER.OVERSAMPLE_RATIO is 0.5, expected 1 or more.",
        "The points of the losses are chosen from this many times as many.",
        "Leave it at 3.",
    ),
    "an unknown treatment of costs that are not finite": Mistake(
        lambda folder: p.config(folder, "MODEL.MASK_FORMER.MATCHER.ON_NONFINITE", "ignore"),
        "MODEL.MASK_FORMER.MATCHER.ON_NONFINITE is 'ignore'; it must be in ['raise', 'sanitize'].",
        "There are two treatments.",
        "Leave it at `raise`.",
    ),
    "classes to fine-tune from, without fine-tuning": Mistake(
        lambda folder: p.config(folder, "MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM", "mine"),
        "MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM is 'mine', but MODEL.MASK_FORMER.FINETUNE is "
        "False: set it to True, or FINETUNE_CLASSES_FROM to ''.",
        "The second key has no effect without the first.",
        "Set both or neither.",
    ),
    "the number of classes in detectron2's box heads": Mistake(
        lambda folder: p.config(
            folder, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 54, "MODEL.ROI_HEADS.NUM_CLASSES", 4
        ),
        "MODEL.ROI_HEADS.NUM_CLASSES is 4, but MODEL.META_ARCHITECTURE 'MaskFormer' does not read "
        "it, and MODEL.SEM_SEG_HEAD.NUM_CLASSES is still 54, detectron2's default: set the latter "
        "to the number of classes.",
        "detectron2's box heads have a key of their own, which our models do not read.",
        "Set `MODEL.SEM_SEG_HEAD.NUM_CLASSES`.",
    ),
    "keys of box heads": Mistake(
        lambda folder: p.config(
            folder, "MODEL.RPN.NMS_THRESH", 0.5, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.1
        ),
        "These keys belong to detectron2's box-based models, and MODEL.META_ARCHITECTURE "
        "'MaskFormer' does not read them: MODEL.ROI_HEADS.SCORE_THRESH_TEST, "
        "MODEL.RPN.NMS_THRESH. Remove them.",
        "They have no effect.",
        "Remove them; the thresholds of our models are in `MODEL.MASK_FORMER.TEST`.",
    ),
    "compiling a model that is not compiled": Mistake(
        lambda folder: p.config(
            folder, "MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.COMPILE", True
        ),
        "MODEL.COMPILE is True, but MODEL.META_ARCHITECTURE 'SemanticSegmentor' does not read it, "
        "only 'MaskFormer' does. Set it to False.",
        "It has no effect.",
        "Set it to False.",
    ),
    "a learning rate for SGD": Mistake(
        lambda folder: p.config(folder, "SOLVER.BASE_LR", 0.01),
        "SOLVER.BASE_LR is 0.01 with SOLVER.OPTIMIZER 'ADAMW'. A rate above 0.001 is usual for "
        "SGD; with AdamW, training may diverge. The published models use 0.0001.",
        "The steps of AdamW do not shrink with the gradient.",
        "Start with 0.0001.",
        None,
    ),
    "an unknown optimizer": Mistake(
        lambda folder: build_optimizer(
            p.config(folder, "SOLVER.OPTIMIZER", "ADAM"), nn.Linear(1, 1)
        ),
        "SOLVER.OPTIMIZER is 'ADAM'; it must be 'ADAMW' or 'SGD'.",
        "There are two optimizers.",
        "Use one of them.",
    ),
    "an unknown precision": Mistake(
        lambda folder: p.model(folder, "TEST.AMP.ENABLED", True, "TEST.AMP.DTYPE", "float8"),
        "TEST.AMP.DTYPE is 'float8'; it must be in ['bfloat16', 'float16'].",
        "Mixed precision supports two types.",
        "Use `bfloat16` if the device supports it.",
    ),
    "heads that do not divide the width": Mistake(
        lambda folder: p.model(folder, "MODEL.MASK_FORMER.NHEADS", 3),
        "A transformer of width 16 cannot be split into 3 heads; change "
        "MODEL.MASK_FORMER.HIDDEN_DIM (or MODEL.SEM_SEG_HEAD.CONVS_DIM) or NHEADS.",
        "All heads have the same number of channels.",
        "Make the width a multiple of the heads.",
    ),
    "a map that the backbone lacks": Mistake(
        lambda folder: p.model(folder, "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2', 'p3']"),
        "MODEL.SEM_SEG_HEAD.IN_FEATURES has ['p3']; the maps of the backbone are ['res2', "
        "'res3', 'res4', 'res5'].",
        "The backbone does not compute such a map.",
        "Name maps of the backbone.",
        KeyError,
    ),
    "an unknown map for the transformer": Mistake(
        lambda folder: p.model(folder, "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res6"),
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is 'res6'; expected one of […'res5'…].",
        "There is no such map.",
        "Use one of those in the message.",
        KeyError,
    ),
    "a baseline with too few queries": Mistake(
        lambda folder: p.model(
            folder,
            *("MODEL.META_ARCHITECTURE", "SemanticSegmentor"),
            *("MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselinePlusHead"),
        ),
        "PerPixelBaselinePlusHead has one query for each class, but "
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is 6 and MODEL.SEM_SEG_HEAD.NUM_CLASSES 4: set both "
        "to the number of classes.",
        "Its queries are the classes.",
        "Set both keys to one number.",
    ),
    "a pattern that freezes nothing": Mistake(
        lambda folder: planted_trainer(folder, "MODEL.FREEZE", "['backbon']"),
        "MODEL.FREEZE: 'backbon' matches no parameter of the model; similar: backbone…",
        "Nothing would be frozen.",
        "Take a name that the message shows, or a pattern with `*`.",
    ),
    "less than one batch a step": Mistake(
        lambda folder: planted_trainer(folder, "SOLVER.ACCUMULATE_STEPS", 0),
        "SOLVER.ACCUMULATE_STEPS is 0; expected 1 or more.",
        "It counts the batches whose gradients make a step.",
        "Set it to 1.",
    ),
    "weights that are not there": Mistake(
        lambda folder: planted_trainer(folder, "MODEL.WEIGHTS", folder / "x.pth").resume_or_load(
            False
        ),
        "There is no checkpoint …x.pth (MODEL.WEIGHTS).",
        "The path is wrong, seen from the folder that the command runs in or the config's.",
        "Correct it, or leave it empty to begin from random weights.",
        FileNotFoundError,
    ),
    "weights of a training that diverged": Mistake(
        lambda folder: Checkpointer(layer(1.0)).load(str(checkpoint(folder, math.nan))),
        "…x.pth: 1 of its 2 weight tensors are not finite, the first is bias. The file is "
        "damaged, or its training diverged: use an earlier checkpoint.",
        "Every result would be NaN.",
        "Take an earlier checkpoint, or train again at a lower learning rate.",
    ),
    "weights that were damaged on their way": Mistake(
        lambda folder: Checkpointer(layer(1.0)).load(str(flip_a_bit(checkpoint(folder, 0.0)))),
        "…x.pth is not a readable checkpoint: the checksum of its record …data… is wrong. It may "
        "be truncated or damaged: download or copy it again.",
        "The file was cut off or changed after it was written.",
        "Copy or download it again.",
    ),
    "a checkpoint that would run code": Mistake(
        lambda folder: Checkpointer(layer(1.0)).load(str(checkpoint(folder, 0.0, log=print))),
        "…x.pth was refused: loading it would run code (found: …print). Only tensors, numbers, "
        "strings and containers are loaded. If you made the file yourself, save it again as a "
        "dict of tensors, such as model.state_dict().",
        "Pickled Python objects may do anything when they are loaded. Many libraries pickle the "
        "whole model, but nothing distinguishes such a file from a malicious one.",
        "Get the weights as `.safetensors`, or as a dict of tensors.",
    ),
    "an evaluator without its result": Mistake(
        lambda folder: build_evaluator(
            p.config(folder, "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False),
            "camvid_sem_seg_val",
            str(folder),
        ),
        "The evaluation of 'camvid_sem_seg_val' needs semantic results, and the model has none: "
        "turn on MODEL.MASK_FORMER.TEST.{SEMANTIC,PANOPTIC,INSTANCE}_ON.",
        "Nothing could be measured.",
        "Turn on what the dataset measures.",
    ),
}


def planted_trainer(folder: Path, *opts: Any) -> Any:
    """A trainer on data without a mistake."""
    p.semantic(folder, p.labels(0, 1))
    return p.trainer(folder, *opts)


def layer(bias: float) -> nn.Linear:
    made = nn.Linear(20, 10)
    nn.init.constant_(made.bias, bias)
    return made


def checkpoint(folder: Path, bias: float, **extras: Any) -> Path:
    torch.save({"model": layer(bias).state_dict(), **extras}, folder / "x.pth")
    return folder / "x.pth"


def semantic_trainer(folder: Path, label_map: Any, *opts: Any, **options: Any) -> Any:
    p.semantic(folder, label_map, **options)
    return p.trainer(folder, *opts)


def instance_trainer(folder: Path, **annotation: Any) -> Any:
    p.instances(folder, **annotation)
    return p.trainer(folder, "INPUT.DATASET_MAPPER_NAME", "mask_former_instance")


def trainer_on(folder: Path, *opts: Any, **metadata: Any) -> Any:
    """A trainer on a dataset that is only described."""
    p.metadata(**metadata)
    return p.trainer(folder, *opts)


DATA = {
    "no dataset": Mistake(
        lambda folder: p.Trainer(p.config(folder)),
        "DATASETS.TRAIN is empty: name the datasets to train on, or give the files of your own "
        "dataset to tools/train_net.py (--train-images …).",
        "The config says nothing to learn from.",
        "See [own_data.md](own_data.md).",
    ),
    "a dataset that nobody registered": Mistake(
        lambda folder: p.Trainer(p.config(folder, "DATASETS.TRAIN", "('camvid_semseg_train',)")),
        "DATASETS.TRAIN has 'camvid_semseg_train', which is not registered; near it: "
        "…camvid_sem_seg_train….",
        "No dataset has that name, in `DATASETS.TRAIN` or `DATASETS.TEST`.",
        "Correct the name, or put your table's path into `DATASETS.TABLES`.",
        KeyError,
    ),
    "another number of classes than the data's": Mistake(
        lambda folder: trainer_on(folder, stuff_classes=["road", "sky"]),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 4, but the dataset 'planted_train' has 2 stuff_classes: "
        "set it to 2, or name another dataset in DATASETS.",
        "Labels beyond the classes would be an error in the loss, on a GPU a CUDA assert.",
        "Set the key to the number of classes in the table.",
    ),
    "evaluation on data with other classes": Mistake(
        lambda folder: semantic_trainer(
            folder, p.labels(0, 1), "DATASETS.TEST", "('camvid_sem_seg_val',)"
        ),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 4, but the dataset 'camvid_sem_seg_val' has 11 "
        "stuff_classes: set it to 11, or name another dataset in DATASETS.",
        "The scores would compare one class with another.",
        "Name a dataset in `DATASETS.TEST` that has the classes of the training set.",
    ),
    "an ignore label that is a class": Mistake(
        lambda folder: trainer_on(folder, stuff_classes=p.NAMES, ignore_label=0),
        "The dataset 'planted_train' has the ignore_label 0, which is a class id, for "
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 4: pixels of that class would not be learnt from. Set "
        "ignore_label in the dataset's metadata to 4 or more (65535 in 16-bit label maps), and "
        "those pixels with it.",
        "One value cannot mean both.",
        "Take 255, or 65535 for more than 255 classes. A background that counts is a class.",
    ),
    "an ignore label that is a class, in a table": Mistake(
        lambda folder: read_table(write(folder, _TABLE, "table.json")),
        "…table.json: `ignore_label` is 1, the pixel value of a class. Set it to a value that "
        "is not a class: 255, or 65535 in 16-bit label maps.",
        "One value cannot mean both.",
        "Take 255, or 65535 for more than 255 classes.",
    ),
    "a per-pixel model that ignores another label": Mistake(
        lambda folder: trainer_on(
            folder,
            *("MODEL.META_ARCHITECTURE", "SemanticSegmentor"),
            *("MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead"),
            stuff_classes=p.NAMES,
            ignore_label=65535,
        ),
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE is 255, but the dataset 'planted_train' has the "
        "ignore_label 65535: the loss of PerPixelBaselineHead would take those pixels for a class. "
        "Set MODEL.SEM_SEG_HEAD.IGNORE_VALUE to 65535.",
        "On a GPU it is a CUDA assert.",
        "Set the key.",
    ),
    "labels that start at 1": Mistake(
        lambda folder: semantic_trainer(folder, p.labels(1, 2, 3, 4)),
        "…a.png: found the class ids [4], expected 0..3 (MODEL.SEM_SEG_HEAD.NUM_CLASSES is 4). The "
        "ignore label, from the dataset's metadata, is 255. Do the labels start at 1, is another "
        "value meant to be ignored, or is it a map of other ids (colours, instances)?…",
        "A pixel has a value that is no class's.",
        "Write `1: NAME`, `2: NAME` … in the file of classes: see [own_data.md](own_data.md).",
    ),
    "a binary mask of 0 and 254": Mistake(
        lambda folder: semantic_trainer(
            folder,
            p.labels(0, 254),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2),
            classes=["background", "object"],
        ),
        "…a.png: found the class ids [254], expected 0..1 (MODEL.SEM_SEG_HEAD.NUM_CLASSES is 2)…",
        "A pixel has a value that is no class's.",
        "Write `0: background`, `254: object` in the file of classes.",
    ),
    "a value that the classes do not name": Mistake(
        lambda folder: semantic_trainer(
            folder, p.labels(7, 8, 9), classes=["7: road", "8: sky", "11: car", "12: bicyclist"]
        ),
        "…a.png: found the pixel values [9], expected [7, 8, 11, 12, 255], the ids of the classes "
        "and the ignore label. Give these values a class, or convert them to one of those…",
        "The file of classes gives each class a value, and this one has none.",
        "Add the class, or make those pixels the ignore label.",
    ),
    "colours in place of labels": Mistake(
        lambda folder: semantic_trainer(folder, p.picture()),
        "…a.png has 3 channels, expected one: a label map holds a class id at each pixel, not a "
        "colour. Convert its colours to class ids (an 8-bit or 16-bit greyscale or palette PNG)…",
        "The file is a picture of the labels.",
        "Convert it.",
    ),
    "a label map of another size": Mistake(
        lambda folder: semantic_trainer(folder, p.labels(0, 1)[:32]),
        "…a.png is 64×64 pixels (width×height, any EXIF rotation applied), its annotation …a.png "
        "is 64×32: they must have the same size. Is it another image's annotation, or was only one "
        "of the two resized?…",
        "Image and labels do not belong together, or one is rotated by its EXIF tag alone.",
        "Find the right partner, or make the labels anew.",
    ),
    "an image without labels": Mistake(
        lambda folder: semantic_trainer(
            folder,
            p.labels(0, 1),
            spoil=lambda image, label_file: label_file.rename(label_file.with_name("a_mask.png")),
        ),
        "…a.png has no partner 'a.*' in … (1 of 1 files have none): every image needs a label "
        "map of the same name.",
        "Images and label maps are paired by their names without the suffix.",
        "Rename or remove files.",
        FileNotFoundError,
    ),
    "a damaged image": Mistake(
        lambda folder: semantic_trainer(
            folder,
            p.labels(0, 1),
            spoil=lambda image, label_file: image.write_bytes(b"no image"),
        ),
        "…a.png, the 'file_name' of a dataset dict, cannot be read as an image: …. Restore the "
        "file, or remove it from the dataset…",
        "The file is cut off, or of another kind than its suffix says.",
        "Restore it.",
    ),
    "an image that was damaged on its way": Mistake(
        lambda folder: semantic_trainer(
            folder, p.labels(0, 1), spoil=lambda image, label_file: flip_a_bit(image)
        ),
        "…a.png, the 'file_name' of a dataset dict, cannot be read as an image: the PNG is "
        "damaged: the checksum at byte … is wrong. Restore the file, or remove it from the "
        "dataset…",
        "Readers that leave out the checksums show wrong pixels here.",
        "Copy it again.",
    ),
    "a folder that is not there": Mistake(
        lambda folder: p.register_semantic("mine", folder / "images", folder / "labels", p.NAMES),
        "…images is missing (absolute path: …images).",
        "The path is wrong; it is relative to the folder that the command runs in.",
        "Correct it.",
        FileNotFoundError,
    ),
    "images larger than the padded side": Mistake(
        lambda folder: next(
            iter(planted_trainer(folder, "INPUT.SIZE_DIVISIBILITY", 32)._trainer.data_loader)
        ),
        "…a.png: after augmentation it is 64×64 pixels (width×height), and "
        "INPUT.SIZE_DIVISIBILITY, the side that examples are padded to, is 32. Set "
        "INPUT.CROP.ENABLED to True with an INPUT.CROP.SIZE of at most 32 on either side, or "
        "INPUT.SIZE_DIVISIBILITY to 64 or more (-1 pads nothing here).",
        "In spite of its name `INPUT.SIZE_DIVISIBILITY` is a size, and images have to fit in.",
        "Crop, or raise it, or set it to -1.",
    ),
    "a mapper of another task": Mistake(
        lambda folder: planted_trainer(folder, "INPUT.DATASET_MAPPER_NAME", "mask_former_panoptic"),
        "…a.png: MaskFormerPanopticDatasetMapper needs ['pan_seg_file_name', 'segments_info'] in "
        "the dataset dict, and ['pan_seg_file_name', 'segments_info'] is missing; its keys are "
        "['file_name', 'sem_seg_file_name']. INPUT.DATASET_MAPPER_NAME that fits: "
        "mask_former_semantic.…",
        "The dataset has other annotations than the mapper reads.",
        "Take the mapper that is named.",
    ),
    "a negative area": Mistake(
        lambda folder: planted_trainer(folder, "INPUT.MIN_MASK_AREA", -1),
        "INPUT.MIN_MASK_AREA is -1, expected 0 or more pixels.",
        "Masks of fewer pixels are no targets; 0 keeps even the empty ones, as published.",
        "Set it to 1.",
    ),
    "an object without a mask": Mistake(
        lambda folder: instance_trainer(folder, segmentation=[]),
        "…instances.json: annotation id 5 of …a.png: its segmentation is [], expected a list of "
        "polygons or an RLE dict. Instance segmentation needs a mask for each object, a box is not "
        "enough: remove the annotation, or draw its mask.",
        "The annotation is a box alone.",
        "Draw the mask, or take it out.",
    ),
    "a mask of another image": Mistake(
        lambda folder: instance_trainer(folder, segmentation={"size": [5, 5], "counts": [25]}),
        "…instances.json: annotation id 5 of …a.png: its RLE has the keys ['counts', 'size'] and "
        "the size (5, 5) (height, width), expected 'counts' and 'size', which is the image's, (64, "
        "64). Is it another image's annotation, or was only the image resized?",
        "A run-length code is of one size, that of its image.",
        "Make it anew for the image.",
    ),
    "a polygon that is none": Mistake(
        lambda folder: instance_trainer(folder, segmentation=[[0, 0, math.nan, 0, 40, 40]]),
        "…instances.json: annotation id 5 of …a.png: a polygon is [0, 0, nan, 0, 40, 40], expected "
        "numbers, pixels in an image of (64, 64) (height, width). Remove the polygon, or "
        "correct it.",
        "A point is no number, or far outside the image. In pycocotools it ends the process.",
        "Remove the polygon, or correct it.",
    ),
    "a JSON that breaks off": Mistake(
        lambda folder: p.register_instances(
            "mine", folder, write(folder, '{"images": [', "instances.json")
        ),
        "…instances.json is not a JSON (…): restore the file.",
        "The file was not written or copied to its end.",
        "Write or copy it again.",
    ),
    "a category that the JSON does not list": Mistake(
        lambda folder: instance_trainer(folder, category_id=9),
        "…instances.json: annotation id 5 has category_id 9, which is not a thing of the table; "
        "expected one of [1, 2, 3, 4].",
        "`categories` has no such id.",
        "Add the category, or correct the annotation.",
    ),
}

_BROKEN_STEP = (
    "Learning rate: …. Precision: float32. Gradient norm: …. … of … weight tensors are not finite, "
    "… the first.\n"
    "The batch is in …nonfinite_batch.pth (mask_former.engine.nonfinite.load_batch reads it).\n"
    "Where weights are not finite or large, or the gradient norm is, training diverged: lower "
    "SOLVER.BASE_LR, clip more (SOLVER.CLIP_GRADIENTS), or turn SOLVER.AMP.ENABLED off, and go on "
    "with --resume from the last checkpoint. Otherwise look at the images and their labels."
)

TRAINING = {
    "training that diverged, seen in matching": Mistake(
        lambda folder: p.train(
            folder,
            [p.example()],
            [p.example(0, file_name="a.png"), p.example(file_name="b.png")],
            broken="backbone",
        ),
        "Image 1 of the batch, decoder layer 1 of 1: 12 of 12 matching costs are NaN or infinite "
        "(terms: class, mask, dice). The predictions are broken, which usually means that "
        "training diverged: lower SOLVER.BASE_LR, or look for broken images. "
        "MODEL.MASK_FORMER.MATCHER.ON_NONFINITE 'sanitize' matches nevertheless. (iteration 1)\n"
        "Images: b.png.\n" + _BROKEN_STEP,
        'Other codebases say "matrix contains invalid numeric entries" here.',
        "The message's last line weighs the reasons. The saved batch shows what the model saw.",
        NonFiniteError,
    ),
    "training that diverged, seen in a loss": Mistake(
        lambda folder: p.train(
            folder,
            [p.example(0, file_name="b.png")],
            broken="sem_seg_head.predictor.class_embed",
            opts=["MODEL.MASK_FORMER.DEC_LAYERS", 2],
        ),
        "The loss is not finite: loss_ce_0 (decoder layer 1 of 2) is nan; loss_ce (decoder layer 2 "
        "of 2) is nan. (iteration 0)\nImages: b.png.\n" + _BROKEN_STEP,
        "The step has not changed the weights.",
        "As above.",
        NonFiniteError,
    ),
    "more targets than queries": Mistake(
        lambda folder: p.train(folder, [p.example(9)]),
        "An image has 9 targets, and MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is 6: 3 of them are left "
        "out of the losses, and no result could contain them all. Set it to 9 or more. (This is "
        "logged once.)",
        "Each query predicts one target.",
        "Raise the key; `tools/check_dataset.py` counts the targets of all images.",
        None,
    ),
    "a label beyond the classes, from a mapper of your own": Mistake(
        lambda folder: p.train(folder, [p.example(label=4)]),
        "The targets of image 0 of the batch have the labels [4], but class ids are 0 … 3; set "
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES to the data's classes, or correct the data.",
        'It would quietly be learnt as "no object".',
        "Drop the ignore label's target in the mapper, or correct the number of classes.",
    ),
    "pixels to leave out, from a mapper that does not say which": Mistake(
        lambda folder: p.train(folder, [p.example()], opts=["MODEL.MASK_FORMER.MASK_IGNORE", True]),
        "a.png: MODEL.MASK_FORMER.MASK_IGNORE needs a 'valid' map of size (64, 64) (height, width) "
        "in the training example, and it is missing. The project's mappers make it where that key "
        "is True; add it to your own, or set the key to False.",
        "The key needs to know which pixels have a label.",
        "Add `valid` to the examples, or set the key to False.",
    ),
}

PREDICTION = {
    "a checkpoint without its config": Mistake(
        lambda folder: find_pretrained(write_tiny_model(folder)[1]),
        "…tiny.pth does not carry its config and classes, as checkpoints of others and of older "
        "trainings do not. Give the config that it was trained with: config_file=.",
        "The file holds weights alone, and these do not say what they are of.",
        "Name the config, or lay the checkpoint into a folder with it as `config.yaml`.",
    ),
    "a checkpoint whose config is damaged": Mistake(
        lambda folder: read_inference_data({"inference": "text"}, "x.pth"),
        "x.pth: its 'inference' entry, which should hold the model's config and classes, is "
        "damaged: it is a str, not 'config' and 'classes'. Name the config that the model was "
        "trained with: config_file=.",
        "Somebody else has changed the file, or uses that name for something else.",
        "As above.",
    ),
    "an image of fractions": Mistake(
        lambda folder: load_image(np.linspace(0, 1, 12).reshape(2, 2, 3)),
        "The image holds float64 values from 0 to 1; expected uint8 in 0 … 255: "
        "(255 * image).round(), then as uint8.",
        "It would be nearly black.",
        "Pass the image as it was read.",
    ),
    "an image with its channels first": Mistake(
        lambda folder: load_image(np.zeros((3, 48, 64), np.uint8)),
        "The array is 3×48×64; expected H×W×3 (RGB) or H×W: image.transpose(1, 2, 0)",
        "numpy arrays have their channels last, torch tensors first.",
        "Transpose the array.",
    ),
    "a GPU that is asked for and not there": Mistake(
        lambda folder: find_pretrained("camvid_semantic", device="cuda:99"),
        "device='cuda:99', but torch sees … GPUs: device='cpu'.",
        "Without `device` the CPU is taken where there is no GPU.",
        "Leave `device` out, or mend the driver (`python tools/doctor.py`).",
    ),
}

SECTIONS = {
    "The config": CONFIG,
    "The data": DATA,
    "While it trains": TRAINING,
    "The predictor": PREDICTION,
}
MISTAKES = {name: mistake for section in SECTIONS.values() for name, mistake in section.items()}


def page() -> str:
    """docs/troubleshooting.md."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield "# Troubleshooting\n"
    yield "What is said of common mistakes, what it means, and what helps. In the messages, … is"
    yield "what differs: files, numbers, names. All but the warnings end the run: mistakes in the"
    yield "config, missing files, and what is wrong in the 20 images of each dataset that are"
    yield "looked at, before its first step; another bad file when it is read"
    yield "(`tools/check_dataset.py` reads them all beforehand). Each is planted in a test;"
    yield "`python -m tests.helpers.planted_mistakes` writes this page from the table of them.\n"
    for title, section in SECTIONS.items():
        yield f"## {title}\n"
        for name, mistake in section.items():
            yield f"### {name[0].upper()}{name[1:]}\n"
            yield f"{'A warning:' if mistake.error is None else f'`{mistake.error.__name__}`:'}\n"
            yield f"```text\n{mistake.message}\n```\n"
            yield f"{mistake.means} **What helps:** {mistake.fix}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
