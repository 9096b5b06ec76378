#!/usr/bin/env python3
"""Train or evaluate the model that a config describes.

python tools/train_net.py --config-file configs/camvid/maskformer_efficientnet_lite0_bs8.yaml
python tools/train_net.py --config-file F --eval-only MODEL.WEIGHTS model.safetensors
python tools/train_net.py --config-file F --eval-only TEST.AUG.ENABLED True  # scales and flips, too
python tools/train_net.py --config-file F --num-gpus 8 OUTPUT_DIR out SOLVER.BASE_LR 0.0002
torchrun --nproc-per-node 8 tools/train_net.py --config-file F

Your own data, with --val-images and --val-labels to evaluate on (docs/own_data.md):

python tools/train_net.py --config-file configs/custom/maskformer_semantic.yaml --train-images A \
    --train-labels B --classes classes.txt
python tools/train_net.py --config-file configs/custom/maskformer_instance.yaml --train-images A \
    --train-json x.json
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from detectron2.engine import default_argument_parser

import mask_former  # noqa: F401  (registers everything, in spawned processes too)
from mask_former.cli.command import add_plugin_argument
from mask_former.cli.custom_data import add_arguments, use_own_data
from mask_former.config.loading import plugins_named_in, read_cfg
from mask_former.engine import evaluate, train
from mask_former.engine.launch import run
from mask_former.registries import load_plugin, naming_missing_plugins


def main(args: argparse.Namespace) -> Mapping[str, Any]:
    """Run one process of the job and return the metrics."""
    for file in args.plugins:  # a spawned process has none
        load_plugin(file)
    cfg = read_cfg(args.config_file, args.opts)
    with naming_missing_plugins(args.config_file, plugins_named_in(args.config_file)):
        return (evaluate if args.eval_only else train)(cfg, resume=args.resume)


if __name__ == "__main__":
    parser = default_argument_parser(epilog=__doc__)
    add_arguments(parser)
    add_plugin_argument(parser)
    arguments = parser.parse_args()
    for file in arguments.plugins:
        load_plugin(file)
    use_own_data(arguments)
    run(main, arguments)
