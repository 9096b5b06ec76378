#!/usr/bin/env python3
"""Draw what a trained model finds in pictures, in a video or before a camera.

demo/demo.py --config-file configs/camvid/maskformer_efficientnet_lite0_bs8.yaml \\
    --input street.jpg photos/ 'more/**/*.png' --output drawn --opts MODEL.WEIGHTS model.pth
demo/demo.py --config-file F --video-input drive.mp4 --output drawn --opts MODEL.WEIGHTS model.pth

Exit code: 0; 1 where an input could not be drawn (the others are); 2 where nothing could begin.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

import mask_former  # noqa: F401  (registers everything)
from mask_former.engine.inference_pipeline import InferencePipeline
from mask_former.engine.media import VideoReader, VideoWriter, Window, find_images, read_image
from mask_former.engine.outputs import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Outputs, plan_outputs
from mask_former.engine.setup import load_cfg
from mask_former.errors import one_line
from mask_former.visualization import (
    INSTANCE_THRESHOLD,
    RESULTS,
    Overlay,
    classes_of,
    draw,
    overlay_of,
)

logger = logging.getLogger("mask_former.demo")

DEFAULT_OUTPUT = "output/demo"
MIN_SIDE = 400
"""Smaller images are drawn enlarged by a whole factor, in pixels: names need room."""
WINDOW = "MaskFormer (q: quit)"
FAILURES = (OSError, ValueError, RuntimeError, MemoryError)
"""What one image or frame may fail with, out of memory among it, without ending the others."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="the model's YAML config")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, folders of images, or quoted globs"
    )
    source.add_argument(
        "--video-input", metavar="VIDEO", help="a video file or the URL of a stream"
    )
    source.add_argument(
        "--webcam", nargs="?", type=int, const=0, metavar="N", help="the N-th camera, from 0"
    )
    add(
        "--output",
        metavar="PATH",
        help="a folder, made where it is not there; for one image or video also a file (.png, "
        f".jpg, … or .mp4, .avi). Images without --output and --show go to {DEFAULT_OUTPUT}; a "
        "video or camera without --output is shown in a window. Images smaller than "
        f"{MIN_SIDE} pixels are drawn enlarged by a whole factor",
    )
    add("--show", action="store_true", help="show in a window, too (any key: go on, q: quit)")
    add(
        "--kinds",
        nargs="+",
        choices=list(RESULTS),
        help="what to draw, whether the config turns it on or not; several give one picture each, "
        "NAME_KIND.png. By default one kind, the richest that the config turns on: panoptic, else "
        "instance, else semantic",
    )
    add(
        "--confidence-threshold",
        type=_share,
        metavar="T",
        help="from 0 to 1. Panoptic: sets MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD, the class "
        "probability that a segment needs (default: the config's). Instance: instances that score "
        f"less are not drawn (default: {INSTANCE_THRESHOLD}). Semantic: pixels are left "
        "unpainted where the best class has a smaller share of the sum of all classes' scores "
        "(default: 0, every pixel is painted)",
    )
    add(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config values, the last option: --opts MODEL.WEIGHTS model.pth MODEL.DEVICE cpu",
    )
    args = parser.parse_args(argv)
    if len(args.opts) % 2:
        parser.error(f"--opts takes pairs KEY VALUE, found {len(args.opts)} words: {args.opts}")
    return args


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


class Demo:
    """A model and how its results are drawn."""

    def __init__(self, cfg: CfgNode, kinds: Sequence[str], threshold: float | None) -> None:
        """
        Args:
            cfg: of the model.
            kinds: what to draw, keys of `RESULTS`.
            threshold: what `--confidence-threshold` says; None: the defaults.
        """
        cfg = cfg.clone()
        cfg.defrost()
        test = cfg.MODEL.MASK_FORMER.TEST
        test.PANOPTIC_ON, test.INSTANCE_ON, test.SEMANTIC_ON = (kind in kinds for kind in RESULTS)
        if threshold is not None:
            test.OBJECT_MASK_THRESHOLD = threshold
        self.kinds = kinds
        self.threshold = threshold
        self.classes = classes_of(cfg)
        self.pipeline = InferencePipeline(cfg)

    def overlays(self, image: NDArray[np.uint8]) -> dict[str, Overlay]:
        """What the model finds in an image (H×W×3, RGB), by kind."""
        results = self.pipeline(image)
        return {
            kind: overlay_of(kind, results, self.classes, self.threshold) for kind in self.kinds
        }


def kinds_of(args: argparse.Namespace, cfg: CfgNode) -> list[str]:
    """What to draw: what `--kinds` says, or the richest kind that the config turns on."""
    on = [kind for kind in RESULTS if cfg.MODEL.MASK_FORMER.TEST[f"{kind.upper()}_ON"]]
    kinds = list(dict.fromkeys(args.kinds or on[:1]))
    if not kinds:
        raise ValueError(
            "The config turns on no result: give --kinds, or set one of MODEL.MASK_FORMER.TEST."
            "{SEMANTIC,PANOPTIC,INSTANCE}_ON."
        )
    return kinds


class SetupError(Exception):
    """Nothing can begin; the message says why, in one line."""


@contextmanager
def setting_up() -> Iterator[None]:
    """Turn what a wrong option, config or checkpoint raises into a `SetupError`."""
    try:
        yield
    except (OSError, KeyError, ValueError, ImportError, AssertionError, yaml.YAMLError) as error:
        # AssertionError: how yacs refuses a KEY that does not exist
        raise SetupError(one_line(error)) from error


def draw_images(args: argparse.Namespace) -> int:
    """Draw every image of `--input`. Returns the exit code."""
    output = args.output or (None if args.show else DEFAULT_OUTPUT)
    with setting_up():
        cfg = load_cfg(args.config_file, args.opts)
        kinds = kinds_of(args, cfg)
        files, problems = find_images(args.input)
        for problem in problems:
            logger.error(problem)
        if not files:
            return 1
        plan = plan_outputs(files, kinds, output, PICTURE_SUFFIXES) if output else [{}] * len(files)
        window = Window(WINDOW) if args.show else None
        demo = Demo(cfg, kinds, args.confidence_threshold)
    drawn, failed = 0, len(problems)
    for file, outputs in zip(files, plan, strict=True):
        try:
            go_on = draw_image(demo, file, outputs, window)
        except FAILURES as error:
            failed += 1
            text = one_line(error)
            logger.error(text if text.startswith(str(file)) else f"{file}: {text}")
            continue
        drawn += 1
        if not go_on:
            break
    where = f": {output}" if output else ""
    logger.info(f"{drawn} of {len(files) + len(problems)} inputs drawn{where}")
    return 1 if failed else 0


def draw_image(demo: Demo, file: Path, outputs: Outputs, window: Window | None) -> bool:
    """Draw one image; False where the user wants no more."""
    start = time.perf_counter()
    image = read_image(file)
    sides = image.shape[:2]
    scale = max(1, min(MIN_SIDE // min(sides), 4 * MIN_SIDE // max(sides)))
    found, go_on = [], True
    for kind, overlay in demo.overlays(image).items():
        picture = draw(image, overlay, scale=scale)
        count = len(overlay.regions)
        found.append(f"{count} {kind} segment{'s' * (count != 1)}")
        if kind in outputs:
            Image.fromarray(picture).save(outputs[kind], quality=95)
        if window:
            go_on = window.show(picture) and go_on
    where = f" -> {', '.join(map(str, outputs.values()))}" if outputs else ""
    logger.info(f"{file}: {', '.join(found)}, {time.perf_counter() - start:.2f} s{where}")
    return go_on


def draw_video(args: argparse.Namespace) -> int:
    """Draw a video, or what a camera sees, frame by frame. Returns the exit code."""
    with ExitStack() as stack:
        with setting_up():
            cfg = load_cfg(args.config_file, args.opts)
            kinds = kinds_of(args, cfg)
            source = args.video_input if args.webcam is None else args.webcam
            reader = stack.enter_context(closing(VideoReader(source)))
            path = Path("webcam" if args.webcam is not None else source)
            plan = plan_outputs([path], kinds, args.output, VIDEO_SUFFIXES) if args.output else [{}]
            window = Window(WINDOW) if args.show or not args.output else None
            demo = Demo(cfg, kinds, args.confidence_threshold)
            writers = {
                kind: stack.enter_context(closing(VideoWriter(path, reader.fps)))
                for kind, path in plan[0].items()
            }
        whole = draw_frames(demo, reader, writers, window)
    for writer in writers.values():
        if writer.num_frames:
            logger.info(f"{reader.name}: {writer.num_frames} frames drawn: {writer.path}")
    return 0 if whole else 1


def draw_frames(
    demo: Demo, reader: VideoReader, writers: dict[str, VideoWriter], window: Window | None
) -> bool:
    """Draw until the video or the user's patience ends; False where the video broke off."""
    frames = 0
    if reader.num_frames is None:
        logger.info("Ctrl-C ends it.")
    try:
        for frame in tqdm(reader, total=reader.num_frames, unit="frame", desc=reader.name):
            for kind, overlay in demo.overlays(frame).items():
                picture = draw(frame, overlay)
                if kind in writers:
                    writers[kind].write(picture)
                if window and not window.show(picture, 1):
                    return True
            frames += 1
    except KeyboardInterrupt:
        logger.info(f"{reader.name}: stopped after {frames} frames")
        return reader.num_frames is None
    except FAILURES as error:
        logger.error(f"{reader.name}, frame {frames}: {one_line(error)}")
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: see the text on top."""
    args = parse_arguments(argv)
    setup_logger(name="mask_former")
    try:
        return draw_images(args) if args.input else draw_video(args)
    except SetupError as error:
        logger.error(str(error))
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
