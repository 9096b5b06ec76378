"""Common mistakes of users: code that makes each one, its message, its meaning and its fix.

``python -m tests.helpers.planted_mistakes`` writes docs/troubleshooting.md from these tables;
tests/docs/test_troubleshooting.py makes every mistake, and compares the page with the tables.
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
    """A mistake and its row on the troubleshooting page."""

    plant: Callable[[Path], Any]
    """Function that makes the mistake in an empty folder."""
    message: str
    """The message of the error or warning; "…" matches any text, such as a file name or a list."""
    means: str
    """The meaning or the cause, in a sentence."""
    fix: str
    error: type[Exception] | None = ValueError
    """The type of the error, or None if the message is a warning in the log."""


def write(folder: Path, text: str, name: str = "x.yaml") -> str:
    """Write a text file and return its path."""
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
        "An item of the list has another type than the items of the default value.",
        "Write items of the expected type; in YAML, numbers have no quotes.",
    ),
    "a plug-in that is not loaded": Mistake(
        lambda folder: load_cfg(write(folder, PLUGIN_CONFIG)),
        "…x.yaml needs the plug-in my_decoder.py, which is not loaded: give --plugin my_decoder.py "
        "with the path of the file, or in Python call mask_former.load_plugin('my_decoder.py') "
        "first. Without it: MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is 'MyDecoder', which is not "
        "registered…",
        "The model was trained with a Python file of your own ([add a part](extend.md)).",
        "Pass that file to this command, too.",
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
    "a fraction of crops as a percentage": Mistake(
        lambda folder: planted_trainer(
            folder, "INPUT.CROP.ENABLED", True, "INPUT.CROP.CLASS_UNIFORM", 30.0
        ),
        "INPUT.CROP.CLASS_UNIFORM is 30.0, expected a probability, 0 to 1.",
        "The value is a fraction of the crops.",
        "Divide it by 100.",
    ),
    "a standard deviation of 0": Mistake(
        lambda folder: p.config(folder, "MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"),
        "MODEL.PIXEL_MEAN is … and MODEL.PIXEL_STD [0.0, 1.0, 1.0]; expected a value for each "
        "channel in both, and standard deviations above 0.",
        "Pixels are divided by the standard deviation.",
        "Use the values of the pre-trained backbone, for pixels in 0 … 255.",
    ),
    "a threshold as a percentage": Mistake(
        lambda folder: p.config(folder, "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 80.0),
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD is 80.0; it must lie in [0, 1].",
        "Thresholds are fractions.",
        "Divide it by 100.",
    ),
    "no queries": Mistake(
        lambda folder: p.config(folder, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 0),
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is 0; expected 1 or more.",
        "Each query predicts one mask.",
        "Set it to at least the largest number of targets in an image.",
    ),
    "a negative weight": Mistake(
        lambda folder: p.config(folder, "MODEL.MASK_FORMER.DICE_WEIGHT", -1.0),
        "MODEL.MASK_FORMER.DICE_WEIGHT is -1.0; expected 0 or more.",
        "A negative weight would reward mistakes.",
        "Set it to 0 to turn the term off.",
    ),
    "all weights 0": Mistake(
        lambda folder: p.model(
            folder,
            *("MODEL.MASK_FORMER.CLASS_WEIGHT", 0.0, "MODEL.MASK_FORMER.MASK_WEIGHT", 0.0),
            *("MODEL.MASK_FORMER.DICE_WEIGHT", 0.0),
        ),
        "All matching weights are 0, so all assignments would cost the same: set CLASS_WEIGHT, "
        "MASK_WEIGHT or DICE_WEIGHT of MODEL.MASK_FORMER above 0.",
        "The weights of the losses are also those of the matching costs.",
        "Set at least one of them above 0.",
    ),
    "an oversampling ratio below 1": Mistake(
        lambda folder: p.config(
            folder,
            *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 1024),
            *("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", 0.5),
        ),
        "MODEL.MASK_FORMER.OVERSAMPLE_RATIO is 0.5, expected 1 or more.",
        "It is the number of candidate points for each point that is used in the losses.",
        "Leave it at 3.",
    ),
    "an unknown treatment of non-finite matching costs": Mistake(
        lambda folder: p.config(folder, "MODEL.MASK_FORMER.MATCHER.ON_NONFINITE", "ignore"),
        "MODEL.MASK_FORMER.MATCHER.ON_NONFINITE is 'ignore'; it must be in ['raise', 'sanitize'].",
        "Non-finite costs either raise an error or are replaced.",
        "Leave it at `raise`.",
    ),
    "classes to fine-tune from, without fine-tuning": Mistake(
        lambda folder: p.config(folder, "MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM", "mine"),
        "MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM is 'mine', but MODEL.MASK_FORMER.FINETUNE is "
        "False: set it to True, or FINETUNE_CLASSES_FROM to ''.",
        "The second key has no effect without the first.",
        "Set both or neither.",
    ),
    "the number of classes in the key of detectron2's box heads": Mistake(
        lambda folder: p.config(
            folder, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 54, "MODEL.ROI_HEADS.NUM_CLASSES", 4
        ),
        "MODEL.ROI_HEADS.NUM_CLASSES is 4, but MODEL.META_ARCHITECTURE 'MaskFormer' does not read "
        "it, and MODEL.SEM_SEG_HEAD.NUM_CLASSES is still 54, detectron2's default: set the latter "
        "to the number of classes.",
        "detectron2's box heads have their own key, which our models do not read.",
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
    "compiling a model that does not support it": Mistake(
        lambda folder: p.config(
            folder, "MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.COMPILE", True
        ),
        "MODEL.COMPILE is True, but MODEL.META_ARCHITECTURE 'SemanticSegmentor' does not read it, "
        "only 'MaskFormer' does. Set it to False.",
        "The key has no effect on this model.",
        "Set it to False.",
    ),
    "a learning rate for SGD": Mistake(
        lambda folder: p.config(folder, "SOLVER.BASE_LR", 0.01),
        "SOLVER.BASE_LR is 0.01 with SOLVER.OPTIMIZER 'ADAMW'. A rate above 0.001 is usual for "
        "SGD; with AdamW, training may diverge. The published models use 0.0001.",
        "The size of AdamW's steps depends on the learning rate, not on the size of the gradient.",
        "Start with 0.0001.",
        None,
    ),
    "an unknown optimizer": Mistake(
        lambda folder: build_optimizer(
            p.config(folder, "SOLVER.OPTIMIZER", "ADAM"), nn.Linear(1, 1)
        ),
        "SOLVER.OPTIMIZER is 'ADAM'; it must be 'ADAMW' or 'SGD'.",
        "No other optimizer is supported.",
        "Use one of these two.",
    ),
    "an unknown precision": Mistake(
        lambda folder: p.model(folder, "TEST.AMP.ENABLED", True, "TEST.AMP.DTYPE", "float8"),
        "TEST.AMP.DTYPE is 'float8'; expected one of ['bfloat16', 'float16'].",
        "Mixed precision supports two types.",
        "Use `bfloat16` if the device supports it.",
    ),
    "a number of heads that does not divide the width": Mistake(
        lambda folder: p.model(folder, "MODEL.MASK_FORMER.NHEADS", 3),
        "A transformer of width 16 cannot be split into 3 heads; change "
        "MODEL.MASK_FORMER.HIDDEN_DIM (or MODEL.SEM_SEG_HEAD.CONVS_DIM) or NHEADS.",
        "All heads have the same number of channels.",
        "Make the width a multiple of the number of heads.",
    ),
    "a feature map that the backbone lacks": Mistake(
        lambda folder: p.model(folder, "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2', 'p3']"),
        "MODEL.SEM_SEG_HEAD.IN_FEATURES has ['p3']; the maps of the backbone are ['res2', "
        "'res3', 'res4', 'res5'].",
        "The backbone does not compute a feature map of that name.",
        "Use the names in the message.",
        KeyError,
    ),
    "a feature map that is listed twice": Mistake(
        lambda folder: p.config(folder, "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2', 'res2']"),
        "MODEL.SEM_SEG_HEAD.IN_FEATURES is ['res2', 'res2']: 'res2' is listed twice; remove one.",
        "Each map is used once.",
        "Remove the second one.",
    ),
    "a ResNet that does not exist": Mistake(
        lambda folder: p.config(
            folder, "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 51
        ),
        "MODEL.RESNETS.DEPTH is 51; expected one of (18, 34, 50, 101, 152).",
        "detectron2 builds ResNets of these depths only.",
        "Use one of them; `build_timm_backbone` has others.",
    ),
    "a norm that does not exist": Mistake(
        lambda folder: p.model(folder, "MODEL.SEM_SEG_HEAD.NORM", "BatchNorm"),
        "MODEL.SEM_SEG_HEAD.NORM is 'BatchNorm'; expected a norm of detectron2: BN, SyncBN, "
        "FrozenBN, GN or LN, or '' for none.",
        "No norm has that name.",
        "Use one of the names in the message.",
    ),
    "a width that the norm cannot divide": Mistake(
        lambda folder: p.model(folder, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 48),
        "MODEL.SEM_SEG_HEAD.NORM is 'GN', which does not fit maps of 48 channels: …divisible…",
        "GN has 32 groups of equal size.",
        "Set `MODEL.SEM_SEG_HEAD.CONVS_DIM` to a multiple of 32, or use another norm.",
    ),
    "a stride that no mask has": Mistake(
        lambda folder: p.model(folder, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 3),
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE is 3, but the mask features of BasePixelDecoder have "
        "stride 4: set the key to 4.",
        "The key states the stride of the finest map, at which masks are predicted.",
        "Set it to the number in the message.",
    ),
    "one map for a decoder that attends to three": Mistake(
        lambda folder: (
            p.model(
                folder,
                *(
                    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
                    "MultiScaleMaskedTransformerDecoder",
                ),
            )
            .eval()
            .predict([p.example()])
        ),
        "MultiScaleMaskedTransformerDecoder attends to 3 maps, but got 1: "
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE names them…",
        "Mask2Former's decoder needs the maps of its own pixel decoder.",
        "Begin with a config of `configs/mask2former`.",
    ),
    "a timm model from somewhere else": Mistake(
        lambda folder: p.model(
            folder,
            *("MODEL.BACKBONE.NAME", "build_timm_backbone"),
            *("MODEL.TIMM.NAME", "hf-hub:timm/resnet18.a1_in1k"),
        ),
        "MODEL.TIMM.NAME is 'hf-hub:timm/resnet18.a1_in1k', which is not one of timm …'s own "
        "models; other names could make it load any folder or web page. …",
        "A config must not make this machine fetch a model while another one is built.",
        "Use a name that `timm.list_models()` lists.",
    ),
    "an unknown feature map for the transformer": Mistake(
        lambda folder: p.model(folder, "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res6"),
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is 'res6'; expected one of […'res5'…].",
        "No feature map has that name.",
        "Use one of the names in the message.",
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
        "Each query of this baseline predicts one fixed class.",
        "Set both keys to the same number.",
    ),
    "a pattern that freezes nothing": Mistake(
        lambda folder: planted_trainer(folder, "MODEL.FREEZE", "['backbon']"),
        "MODEL.FREEZE: 'backbon' matches no parameter of the model; similar: backbone…",
        "Nothing would be frozen.",
        "Use a name from the message, or a pattern with `*`.",
    ),
    "less than one batch per step": Mistake(
        lambda folder: planted_trainer(folder, "SOLVER.ACCUMULATE_STEPS", 0),
        "SOLVER.ACCUMULATE_STEPS is 0; expected 1 or more.",
        "It is the number of batches whose gradients are accumulated for one step.",
        "Set it to 1.",
    ),
    "a missing checkpoint": Mistake(
        lambda folder: planted_trainer(folder, "MODEL.WEIGHTS", folder / "x.pth").resume_or_load(
            False
        ),
        "There is no checkpoint …x.pth (MODEL.WEIGHTS).",
        "The path is wrong; it is relative to the folder that the command runs in, or to that of "
        "the config.",
        "Correct it, or leave it empty to start from random weights.",
        FileNotFoundError,
    ),
    "weights of a training run that diverged": Mistake(
        lambda folder: Checkpointer(layer(1.0)).load(str(checkpoint(folder, math.nan))),
        "…x.pth: 1 of its 2 weight tensors are not finite, the first is bias. The file is "
        "damaged, or its training diverged: use an earlier checkpoint.",
        "Every result would be NaN.",
        "Use an earlier checkpoint, or train again with a lower learning rate.",
    ),
    "a checkpoint that was damaged in transfer": Mistake(
        lambda folder: Checkpointer(layer(1.0)).load(str(flip_a_bit(checkpoint(folder, 0.0)))),
        "…x.pth is not a readable checkpoint: the checksum of its record …data… is wrong. It may "
        "be truncated or damaged: download or copy it again.",
        "The file was truncated or changed after it was written.",
        "Copy or download it again.",
    ),
    "a checkpoint that would run code": Mistake(
        lambda folder: Checkpointer(layer(1.0)).load(str(checkpoint(folder, 0.0, log=print))),
        "…x.pth was refused: loading it would run code (found: …print). Only tensors, numbers, "
        "strings and containers are loaded. If you made the file yourself, save it again as a "
        "dict of tensors, such as model.state_dict().",
        "Pickled Python objects can run any code when they are loaded. Many libraries pickle the "
        "whole model, but nothing distinguishes such a file from a malicious one.",
        "Get the weights as `.safetensors`, or as a dict of tensors.",
    ),
    "a URL that leads out of a folder": Mistake(
        lambda folder: load_cfg(write(folder, "_BASE_: http://example.org/../x.yaml")),
        "'http://example.org/../x.yaml' was refused: its path holds '..' or '.', which may lead "
        "out of a folder; write it without. It is named in _BASE_ of …x.yaml.",
        "Such a URL could make a program write files anywhere.",
        "If you trust who wrote it, write the URL without the dots.",
    ),
    "a URL of a private network in a config": Mistake(
        lambda folder: load_cfg(write(folder, "_BASE_: http://127.0.0.1:9/x.yaml")),
        "http://127.0.0.1:9/x.yaml was refused: its address 127.0.0.1 belongs to this machine or "
        "to a private network, which no file and no redirect may make it ask. If you trust the "
        "URL, give it yourself, such as MODEL.WEIGHTS URL or --weights URL on the command line. "
        "It is named in _BASE_ of …x.yaml.",
        "A config of somebody else could make this machine ask servers that only it can reach.",
        "Give the URL of weights on the command line, or download the file first.",
    ),
    "a training that is continued with another model": Mistake(
        lambda folder: resumed(folder, 3, 4),
        "…model_0000001.pth cannot be resumed: weight has shape (2, 3), the model expects (2, 4). "
        "--resume continues a training with its own model, optimizer and settings. To start a new "
        "one from these weights, leave out --resume, name another OUTPUT_DIR and set MODEL.WEIGHTS "
        "…model_0000001.pth, and MODEL.MASK_FORMER.FINETUNE True if its classes or queries are "
        "others.",
        "The optimizer's state belongs to the weights of the checkpoint, row by row.",
        "Use the config that the training began with, or fine-tune as the message describes.",
    ),
    "windows that overlap too much": Mistake(
        lambda folder: p.config(
            folder,
            *("TEST.SLIDING_WINDOW.SIZE", 512, "TEST.SLIDING_WINDOW.STRIDE", 1),
        ),
        "TEST.SLIDING_WINDOW.STRIDE is 1 pixels with the SIZE 512, which gives too many windows: "
        "expected 64 … SIZE pixels (0: 2/3 of the SIZE).",
        "Each window is one run of the network: a photo would take hours.",
        "Leave the stride at 0.",
    ),
    "an evaluation of results that the model does not output": Mistake(
        lambda folder: build_evaluator(
            p.config(folder, "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False),
            "camvid_sem_seg_val",
            str(folder),
        ),
        "The evaluation of 'camvid_sem_seg_val' needs semantic results, and the model has none: "
        "turn on MODEL.MASK_FORMER.TEST.{SEMANTIC,PANOPTIC,INSTANCE}_ON.",
        "There would be nothing to evaluate.",
        "Turn on the results that the dataset evaluates.",
    ),
}


def planted_trainer(folder: Path, *opts: Any) -> Any:
    """Build a trainer on the planted dataset, with correct annotations."""
    p.semantic(folder, p.labels(0, 1))
    return p.trainer(folder, *opts)


def layer(bias: float) -> nn.Linear:
    """Build a linear layer whose biases all have one value."""
    made = nn.Linear(20, 10)
    nn.init.constant_(made.bias, bias)
    return made


def checkpoint(folder: Path, bias: float, **extras: Any) -> Path:
    """Save the weights of :func:`layer`, and further entries, as ``x.pth``."""
    torch.save({"model": layer(bias).state_dict(), **extras}, folder / "x.pth")
    return folder / "x.pth"


def resumed(folder: Path, old: int, new: int) -> None:
    """Save the state of a layer with ``old`` inputs, and resume one with ``new`` inputs from it."""
    for inputs in (old, new):
        made = nn.Linear(inputs, 2)
        optimizer = torch.optim.SGD(made.parameters(), 0.1)
        checkpointer = Checkpointer(made, str(folder), optimizer=optimizer)
        checkpointer.resume_or_load("", resume=True)
        checkpointer.save("model_0000001")


def semantic_trainer(folder: Path, label_map: Any, *opts: Any, **options: Any) -> Any:
    """Build a trainer on one image with this label map; ``options``: see `planting.semantic`."""
    p.semantic(folder, label_map, **options)
    return p.trainer(folder, *opts)


def instance_trainer(folder: Path, **annotation: Any) -> Any:
    """Build a trainer on one image with an annotation of which some entries are replaced."""
    p.instances(folder, **annotation)
    return p.trainer(folder, "INPUT.DATASET_MAPPER_NAME", "mask_former_instance")


def trainer_on(folder: Path, *opts: Any, **metadata: Any) -> Any:
    """Build a trainer on a dataset of which only the metadata exists."""
    p.metadata(**metadata)
    return p.trainer(folder, *opts)


DATA = {
    "no dataset": Mistake(
        lambda folder: p.Trainer(p.config(folder)),
        "DATASETS.TRAIN is empty: name the datasets to train on, or give the files of your own "
        "dataset to tools/train_net.py (--train-images …).",
        "The config names no training dataset.",
        "See [own_data.md](own_data.md).",
    ),
    "a dataset that nobody registered": Mistake(
        lambda folder: p.Trainer(p.config(folder, "DATASETS.TRAIN", "('camvid_semseg_train',)")),
        "DATASETS.TRAIN has 'camvid_semseg_train', which is not registered; similar: "
        "…camvid_sem_seg_train….",
        "`DATASETS.TRAIN` or `DATASETS.TEST` has the name of an unknown dataset.",
        "Correct the name, or add the path of your table to `DATASETS.TABLES`.",
        KeyError,
    ),
    "a number of classes that differs from the dataset's": Mistake(
        lambda folder: trainer_on(folder, stuff_classes=["road", "sky"]),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 4, but the dataset 'planted_train' has 2 stuff_classes: "
        "set it to 2, or name another dataset in DATASETS.",
        "Class ids out of range would fail in the loss; on a GPU, with a CUDA assert.",
        "Set the key to the number of classes in the table.",
    ),
    "evaluation on a dataset with other classes": Mistake(
        lambda folder: semantic_trainer(
            folder, p.labels(0, 1), "DATASETS.TEST", "('camvid_sem_seg_val',)"
        ),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 4, but the dataset 'camvid_sem_seg_val' has 11 "
        "stuff_classes: set it to 11, or name another dataset in DATASETS.",
        "Predictions of one class would be compared with ground truth of another.",
        "Name a dataset in `DATASETS.TEST` that has the classes of the training set.",
    ),
    "an ignore label that is a class": Mistake(
        lambda folder: trainer_on(folder, stuff_classes=p.NAMES, ignore_label=0),
        "The dataset 'planted_train' has the ignore_label 0, which is a class id, because "
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 4: training would skip the pixels of that class. Set "
        "ignore_label in the dataset's metadata to 4 or more (65535 in 16-bit label maps), and "
        "give that label to the pixels to ignore.",
        "One pixel value cannot mean both.",
        "Use 255, or 65535 for more than 255 classes. A background that is evaluated is a class.",
    ),
    "an ignore label that is a class, in a table": Mistake(
        lambda folder: read_table(write(folder, _TABLE, "table.json")),
        "…table.json: `ignore_label` is 1, the pixel value of a class. Set it to a value that "
        "is not a class: 255, or 65535 in 16-bit label maps.",
        "One pixel value cannot mean both.",
        "Use 255, or 65535 for more than 255 classes.",
    ),
    "a per-pixel model with another ignore label": Mistake(
        lambda folder: trainer_on(
            folder,
            *("MODEL.META_ARCHITECTURE", "SemanticSegmentor"),
            *("MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead"),
            stuff_classes=p.NAMES,
            ignore_label=65535,
        ),
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE is 255, but the dataset 'planted_train' has the "
        "ignore_label 65535: the loss of PerPixelBaselineHead would treat those pixels as a class. "
        "Set MODEL.SEM_SEG_HEAD.IGNORE_VALUE to 65535.",
        "On a GPU, this would fail with a CUDA assert.",
        "Set the key to the ignore label of the dataset.",
    ),
    "labels that start at 1": Mistake(
        lambda folder: semantic_trainer(folder, p.labels(1, 2, 3, 4)),
        "…a.png: found the class ids [4], expected 0..3 (MODEL.SEM_SEG_HEAD.NUM_CLASSES is 4). The "
        "ignore label, from the dataset's metadata, is 255. Do the labels start at 1, is another "
        "value meant to be ignored, or is it a map of other ids (colours, instances)?…",
        "A pixel has a value that is not a class id.",
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
        "A pixel has a value that is not a class id.",
        "Write `0: background`, `254: object` in the file of classes.",
    ),
    "a pixel value without a class": Mistake(
        lambda folder: semantic_trainer(
            folder, p.labels(7, 8, 9), classes=["7: road", "8: sky", "11: car", "12: bicyclist"]
        ),
        "…a.png: found the pixel values [9], expected [7, 8, 11, 12, 255], the ids of the classes "
        "and the ignore label. Give these values a class, or convert them to one of those…",
        "The file of classes assigns a pixel value to each class, and this value is not among "
        "them.",
        "Add the class, or set those pixels to the ignore label.",
    ),
    "a colour image instead of a label map": Mistake(
        lambda folder: semantic_trainer(folder, p.noise_image()),
        "…a.png has 3 channels, expected one: a label map holds a class id at each pixel, not a "
        "colour. Convert its colours to class ids (an 8-bit or 16-bit greyscale or palette PNG)…",
        "The file shows each class as a colour.",
        "Convert the colours to class ids.",
    ),
    "a label map of another size": Mistake(
        lambda folder: semantic_trainer(folder, p.labels(0, 1)[:32]),
        "…a.png is 64×64 pixels (width×height, any EXIF rotation applied), its annotation …a.png "
        "is 64×32: they must have the same size. Is it another image's annotation, or was only one "
        "of the two resized?…",
        "The two files do not belong together, or only one of them has an EXIF rotation.",
        "Find the matching file, or create the label map again.",
    ),
    "an image without labels": Mistake(
        lambda folder: semantic_trainer(
            folder,
            p.labels(0, 1),
            spoil=lambda image, label_file: label_file.rename(label_file.with_name("a_mask.png")),
        ),
        "…a.png has no partner 'a.*' in … (1 of 1 files have none): every image needs a label "
        "map of the same name.",
        "Images and label maps are paired by their file names without the suffix.",
        "Rename the label map, or remove the image.",
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
        "The file is truncated, or its format does not match its suffix.",
        "Restore it.",
    ),
    "an image that was damaged in transfer": Mistake(
        lambda folder: semantic_trainer(
            folder, p.labels(0, 1), spoil=lambda image, label_file: flip_a_bit(image)
        ),
        "…a.png, the 'file_name' of a dataset dict, cannot be read as an image: the PNG is "
        "damaged: the checksum at byte … is wrong. Restore the file, or remove it from the "
        "dataset…",
        "Readers that do not verify checksums return wrong pixels.",
        "Copy the file again.",
    ),
    "a missing folder": Mistake(
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
        "INPUT.SIZE_DIVISIBILITY to 64 or more (-1: no padding).",
        "Despite its name, `INPUT.SIZE_DIVISIBILITY` is a size, and images must fit into it.",
        "Crop the images, increase the key, or set it to -1.",
    ),
    "a mapper for another task": Mistake(
        lambda folder: planted_trainer(folder, "INPUT.DATASET_MAPPER_NAME", "mask_former_panoptic"),
        "…a.png: MaskFormerPanopticDatasetMapper needs ['pan_seg_file_name', 'segments_info'] in "
        "the dataset dict, and ['pan_seg_file_name', 'segments_info'] is missing; its keys are "
        "['file_name', 'sem_seg_file_name']. Set INPUT.DATASET_MAPPER_NAME to "
        "mask_former_semantic or mask_former_semantic_lsj.…",
        "The dataset does not have the annotations that the mapper reads.",
        "Use the mapper that the message names.",
    ),
    "a negative minimum area": Mistake(
        lambda folder: planted_trainer(folder, "INPUT.MIN_MASK_AREA", -1),
        "INPUT.MIN_MASK_AREA is -1, expected 0 or more pixels.",
        "Masks with fewer pixels are left out of the targets; 0 keeps empty masks, as in the "
        "published code.",
        "Set it to 1.",
    ),
    "an object without a mask": Mistake(
        lambda folder: instance_trainer(folder, segmentation=[]),
        "…instances.json: annotation id 5 of …a.png: its segmentation is [], expected a list of "
        "polygons or an RLE dict. Instance segmentation needs a mask for each object, a box is not "
        "enough: remove the annotation, or draw its mask.",
        "The annotation has only a box.",
        "Draw the mask, or remove the annotation.",
    ),
    "a mask of another image": Mistake(
        lambda folder: instance_trainer(folder, segmentation={"size": [5, 5], "counts": [25]}),
        "…instances.json: annotation id 5 of …a.png: its RLE has the keys ['counts', 'size'] and "
        "the size (5, 5) (height, width), expected 'counts' and 'size', which is the image's, (64, "
        "64). Is it another image's annotation, or was only the image resized?",
        "A run-length encoding (RLE) has the size of its image.",
        "Create it again for this image.",
    ),
    "an invalid polygon": Mistake(
        lambda folder: instance_trainer(folder, segmentation=[[0, 0, math.nan, 0, 40, 40]]),
        "…instances.json: annotation id 5 of …a.png: a polygon is [0, 0, nan, 0, 40, 40], expected "
        "numbers: pixel coordinates in an image of (64, 64) (height, width). Remove the polygon, "
        "or correct it.",
        "A coordinate is not a number, or far outside the image. pycocotools would crash.",
        "Remove the polygon, or correct it.",
    ),
    "a truncated JSON": Mistake(
        lambda folder: p.register_instances(
            "mine", folder, write(folder, '{"images": [', "instances.json")
        ),
        "…instances.json is not a JSON file (…): restore it.",
        "The file was not written or copied completely.",
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
    "such as ….\n"
    "The batch is in …nonfinite_batch.pth (mask_former.engine.nonfinite.load_batch reads it).\n"
    "If weights or the gradient norm are large or not finite, training diverged: lower "
    "SOLVER.BASE_LR, clip gradients more strongly (SOLVER.CLIP_GRADIENTS), or turn off "
    "SOLVER.AMP.ENABLED, and continue from the last checkpoint with --resume. Otherwise inspect "
    "the images and their labels."
)

TRAINING = {
    "a second training in the same folder": Mistake(
        p.train_in_a_taken_folder,
        "OUTPUT_DIR …: another training writes there (process … on …, started …). Wait until it "
        "ends or stop it, or set OUTPUT_DIR to another folder.",
        "Two trainings would mix their checkpoints and metrics. The lock ends with its process, so "
        "a run that was killed does not block the next one; `--eval-only` is never refused. On a "
        "file system without locks there is only a warning.",
        "Stop the process that the message names, or give this run its own folder.",
    ),
    "too little shared memory": Mistake(
        p.check_with_small_shared_memory,
        "/dev/shm has 0.1 MiB free of 0.1 MiB, expected 16 MiB or more; 2 DataLoader workers pass "
        "images there. Set DATALOADER.NUM_WORKERS to a smaller number (0 needs no shared memory), "
        "or give the container more: docker run --shm-size=8g (elsewhere: mount -o "
        "remount,rw,size=8G /dev/shm).",
        "Containers have 64 MiB by default. If that is enough to start but not for the images of "
        "all workers, training ends with an `OSError` that has the same advice.",
        "Start the container with `--shm-size=8g`, or set `DATALOADER.NUM_WORKERS 0`.",
    ),
    "training that diverged, detected in matching": Mistake(
        lambda folder: p.train(
            folder,
            [p.example()],
            [p.example(0, file_name="a.png"), p.example(file_name="b.png")],
            broken="backbone",
        ),
        "Image 1 of the batch, decoder layer 1 of 1: 12 of 12 matching costs are NaN or infinite "
        "(terms: class, mask, dice). The predictions are broken, which usually means that "
        "training diverged: lower SOLVER.BASE_LR, or look for broken images. "
        "MODEL.MASK_FORMER.MATCHER.ON_NONFINITE 'sanitize' replaces such costs and continues. "
        "(iteration 1)\nImages: b.png.\n" + _BROKEN_STEP,
        'Other codebases say "matrix contains invalid numeric entries" here.',
        "The last line of the message distinguishes the causes. The saved batch has the images "
        "and targets of the step.",
        NonFiniteError,
    ),
    "training that diverged, detected in a loss": Mistake(
        lambda folder: p.train(
            folder,
            [p.example(0, file_name="b.png")],
            broken="sem_seg_head.predictor.class_embed",
            opts=["MODEL.MASK_FORMER.DEC_LAYERS", 2],
        ),
        "The loss is not finite: loss_ce_0 (decoder layer 1 of 2) is nan; loss_ce (decoder layer 2 "
        "of 2) is nan. (iteration 0)\nImages: b.png.\n" + _BROKEN_STEP,
        "The failing step has not changed the weights.",
        "See the previous entry.",
        NonFiniteError,
    ),
    "more targets than queries": Mistake(
        lambda folder: p.train(folder, [p.example(9)]),
        "An image has 9 targets, but MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is 6: 3 of them are left "
        "out of the losses, and no prediction can contain them all. Set the key to 9 or more. "
        "(This is logged once.)",
        "Each query predicts at most one target.",
        "Increase the key; `tools/check_dataset.py` counts the targets of all images.",
        None,
    ),
    "a class id out of range, from your own mapper": Mistake(
        lambda folder: p.train(folder, [p.example(label=4)]),
        "The targets of image 0 of the batch have the labels [4], but class ids are 0 … 3; set "
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES to the dataset's number of classes, or correct the labels.",
        'The model would silently learn it as "no object".',
        "Drop the target of the ignore label in the mapper, or correct the number of classes.",
    ),
    "pixels to ignore, with a mapper that does not mark them": Mistake(
        lambda folder: p.train(folder, [p.example()], opts=["MODEL.MASK_FORMER.MASK_IGNORE", True]),
        "a.png: MODEL.MASK_FORMER.MASK_IGNORE needs a 'valid' map of size (64, 64) (height, width) "
        "in the training example, but it is missing. The project's mappers add it if that key is "
        "True; let your mapper add it too, or set the key to False.",
        "The losses need to know which pixels have a label.",
        "Add `valid` to the examples, or set the key to False.",
    ),
}

PREDICTION = {
    "a checkpoint without its config": Mistake(
        lambda folder: find_pretrained(write_tiny_model(folder)[1]),
        "…tiny.pth has no config and classes, because other code or an older version of this one "
        "wrote it. Give the config that it was trained with: config_file=….",
        "The file has only weights, from which the model cannot be built.",
        "Name the config, or put it next to the checkpoint as `config.yaml`.",
    ),
    "a checkpoint whose config is damaged": Mistake(
        lambda folder: read_inference_data({"inference": "text"}, "x.pth"),
        "x.pth: its 'inference' entry, which should hold the model's config and classes, is "
        "damaged: it is a str, not 'config' and 'classes'. Name the config that the model was "
        "trained with: config_file=.",
        "The file was changed, or another program uses that name for something else.",
        "Name the config, as above.",
    ),
    "an image with values from 0 to 1": Mistake(
        lambda folder: load_image(np.linspace(0, 1, 12).reshape(2, 2, 3)),
        "The image holds float64 values from 0 to 1; expected uint8 in 0 … 255: "
        "use (255 * image).round(), converted to uint8.",
        "As 8-bit values, the image would be almost black.",
        "Pass the image as it was read.",
    ),
    "an image with its channels first": Mistake(
        lambda folder: load_image(np.zeros((3, 48, 64), np.uint8)),
        "The array is 3×48×64; expected H×W×3 (RGB) or H×W: use image.transpose(1, 2, 0).",
        "Images in numpy arrays have the channels last, in torch tensors first.",
        "Transpose the array.",
    ),
    "a missing GPU": Mistake(
        lambda folder: find_pretrained("camvid_semantic", device="cuda:99"),
        "device='cuda:99', but torch sees … GPUs: use device='cpu'.",
        "Without `device`, the predictor uses the CPU if there is no GPU.",
        "Leave `device` out, or fix the driver (`python tools/doctor.py`).",
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
    """Return the content of docs/troubleshooting.md."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield "# Troubleshooting\n"
    yield "The messages of common mistakes, with their meaning and the fix. In the messages, …"
    yield "stands for text that varies: files, numbers, names. Every error ends the run. Mistakes"
    yield "in the config, missing files, and bad files in a sample of 20 images of each dataset are"
    yield "found before the first step; other bad files are found when they are read, or beforehand"
    yield "by `tools/check_dataset.py`. A test makes each of these mistakes;"
    yield "`python -m tests.helpers.planted_mistakes` writes this page.\n"
    for title, section in SECTIONS.items():
        yield f"## {title}\n"
        for name, mistake in section.items():
            yield f"### {name[0].upper()}{name[1:]}\n"
            yield f"{'A warning:' if mistake.error is None else f'`{mistake.error.__name__}`:'}\n"
            yield f"```text\n{mistake.message}\n```\n"
            yield f"{mistake.means} **Fix:** {mistake.fix}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
