#!/usr/bin/env python3
"""Serve a web page for trying out models: drop an image or a video in, and see the results.

python demo/app.py                                      the models of model_zoo/
python demo/app.py --weights output/mine/model_final.pth output/other
python demo/app.py --weights W.pkl --config-file F      a checkpoint without a config

Requires `pip install -r requirements/app.txt`. The page loads nothing from the web and sends
nothing there; unless --host is given, only this machine can open it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

try:
    import gradio  # noqa: F401
except ImportError:
    sys.exit("demo/app.py needs Gradio: pip install -r requirements/app.txt (or: make app)")

import yaml
from page.handlers import Page
from page.layout import build, launch
from page.limits import Limits
from page.models import Models

from mask_former import MaskFormerPredictor
from mask_former.cli.command import add_plugin_argument, make_parser
from mask_former.cli.options import collect, positive
from mask_former.predictor.sources import packaged_models
from mask_former.registries import load_plugins
from mask_former.utils.errors import one_line


@dataclass(frozen=True)
class PageArguments:
    """The arguments of the command."""

    weights: tuple[str, ...]
    config_file: str | None
    device: str | None
    host: str
    port: int
    queue_size: int
    keep_models: int
    sessions: int
    limits: Limits
    plugins: tuple[str, ...]


def parse(argv: Sequence[str] | None) -> PageArguments:
    """Parse the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add(
        "--weights",
        nargs="+",
        default=[],
        metavar="PATH",
        help="checkpoints, output folders of training runs, URLs or names of model_zoo/, offered "
        "besides those of model_zoo/; the first is loaded at the start, others when chosen",
    )
    add("--config-file", metavar="FILE", help="config of the --weights that contain none")
    add("--device", help="such as cpu or cuda:1; default: a GPU if there is one")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (%(default)s)")
    add("--port", type=int, default=7860, help="(%(default)s)")
    add(
        "--queue-size",
        type=positive,
        default=16,
        metavar="N",
        help="requests that may wait; later ones are refused (%(default)s)",
    )
    add(
        "--keep-models",
        type=positive,
        default=2,
        metavar="N",
        help="checkpoints that stay in memory (%(default)s)",
    )
    add(
        "--sessions",
        type=positive,
        default=16,
        metavar="N",
        help="visitors whose last image is kept for the sliders (%(default)s)",
    )
    Limits.add_options(parser)
    add_plugin_argument(parser)
    given = parser.parse_args(argv)
    given.limits = collect(Limits, given)
    return collect(PageArguments, given)


def make_models(args: PageArguments) -> Models:
    """Import the plug-ins, name the checkpoints to choose from, and load the first."""
    load_plugins(args.plugins)
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


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM, which systemd and Docker send, end the page as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C or SIGTERM and return the exit code."""
    args = parse(argv)
    with terminable(), tempfile.TemporaryDirectory(prefix="mask_former_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads are deleted when the page ends
        try:
            page = Page(make_models(args), args.limits, Path(folder), args.sessions)
            blocks = build(page)
            address = launch(blocks, args.host, args.port, args.queue_size, args.limits)
        except (OSError, KeyError, ValueError, ImportError, yaml.YAMLError) as error:
            print(f"app: {one_line(error)}", file=sys.stderr)
            return 1
        print(f"app: {address} (Ctrl-C stops it)", flush=True)
        blocks.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
