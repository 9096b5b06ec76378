#!/usr/bin/env python3
"""A page to try models on: drop a picture or a video in, and look at what is found.

python demo/app.py                                      the models of model_zoo/
python demo/app.py --weights output/mine/model_final.pth output/other
python demo/app.py --weights W.pkl --config-file F      a checkpoint that does not say what it is

Needs `pip install -r requirements/app.txt`. Nothing is fetched from the web and nothing is sent
there; only this machine reaches the page unless --host says otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

try:
    import gradio  # noqa: F401
except ImportError:
    sys.exit("demo/app.py needs Gradio: pip install -r requirements/app.txt (or: make app)")

import yaml
from page.handlers import Page
from page.layout import build, launch
from page.models import Models
from page.uploads import Limits

from mask_former import MaskFormerPredictor
from mask_former.predictor.pretrained import packaged_models
from mask_former.utils.errors import one_line


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--weights",
        nargs="+",
        default=[],
        metavar="PATH",
        help="checkpoints, output folders of trainings, URLs or names of model_zoo/, to choose "
        "from besides those of model_zoo/; the first is loaded at once, others when chosen",
    )
    add("--config-file", metavar="FILE", help="of the --weights that do not carry their config")
    add("--device", help="such as cpu or cuda:1; default: a GPU where there is one")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all (%(default)s)")
    add("--port", type=int, default=7860, help="(%(default)s)")
    add(
        "--queue-size",
        type=_positive,
        default=16,
        metavar="N",
        help="requests that may wait; who comes after them is told to try later (%(default)s)",
    )
    add(
        "--keep-models",
        type=_positive,
        default=2,
        metavar="N",
        help="checkpoints that stay in memory (%(default)s)",
    )
    add(
        "--sessions",
        type=_positive,
        default=16,
        metavar="N",
        help="visitors whose picture is kept, for their sliders; one each (%(default)s)",
    )
    add(
        "--max-megapixels",
        type=float,
        default=Limits.megapixels,
        metavar="N",
        help="of a picture, in millions of pixels (%(default)s)",
    )
    add(
        "--max-frames",
        type=_positive,
        default=Limits.frames,
        metavar="N",
        help="of a video; the rest is left out (%(default)s)",
    )
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def make_models(args: argparse.Namespace) -> Models:
    """The checkpoints to choose from; the first of them is loaded."""
    zoo = packaged_models()

    def load(source: str) -> MaskFormerPredictor:
        config_file = None if source in zoo else args.config_file
        return MaskFormerPredictor.from_pretrained(
            source, config_file=config_file, device=args.device
        )

    sources = list(dict.fromkeys([*args.weights, *zoo]))
    models = Models(sources, load, args.keep_models)
    models.get(models.names[0])
    return models


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C. Returns the exit code."""
    args = parse_arguments(argv)
    with tempfile.TemporaryDirectory(prefix="mask_former_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads are gone when the page ends
        try:
            limits = Limits(args.max_megapixels, args.max_frames)
            page = Page(make_models(args), limits, Path(folder), args.sessions)
            blocks = build(page)
            address = launch(blocks, args.host, args.port, args.queue_size)
        except (OSError, KeyError, ValueError, ImportError, yaml.YAMLError) as error:
            print(f"app: {one_line(error)}", file=sys.stderr)
            return 1
        print(f"app: {address} (Ctrl-C ends it)", flush=True)
        blocks.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
