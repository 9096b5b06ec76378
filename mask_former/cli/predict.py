"""Draw or save what a trained model finds in images, in a video or with a camera.

python demo/demo.py --input street.jpg photos/ 'more/**/*.png' --output drawn
python demo/demo.py --weights output/mine --input photos --save semantic-png,npz --output out
python demo/demo.py --config-file F --video-input a.mp4 --output d --opts MODEL.WEIGHTS model.pth

Exit code: 0; 1 where an input or a frame failed (the others are done); 2 where nothing could begin.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.utils.logger import setup_logger
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mask_former.predictor.predictor import MaskFormerPredictor
from mask_former.results import Result, ResultWriter

from .media import VideoReader, VideoWriter, Window, find_images
from .options import (
    SetupError,
    add_model_options,
    add_result_options,
    dataset_ids_of,
    kinds_of,
    model_of,
    positive,
    predict_function,
    setting_up,
)
from .output_files import (
    DRAWN_IMAGE_SUFFIXES,
    DRAWN_VIDEO_SUFFIXES,
    OutputPlan,
    check_apart,
    distinct_names,
    plan_outputs,
)
from .run import Item, PredictionRun, Use, read_files, read_frames

logger = logging.getLogger("mask_former.demo")

DEFAULT_OUTPUT = "output/demo"
MIN_SIDE = 400
"""Smaller images are drawn enlarged by a whole factor, in pixels: names need room."""
WINDOW = "MaskFormer (q: quit)"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
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
    add("--recursive", action="store_true", help="look into the subfolders of folders, too")
    add(
        "--every-n",
        type=positive,
        default=1,
        metavar="N",
        help="only every N-th file or frame, from the first on",
    )
    add(
        "--output",
        metavar="PATH",
        help="a folder, made where it is not there; for one drawing also a file (.png, "
        f".jpg, … or .mp4, .avi). Images without --output and --show go to {DEFAULT_OUTPUT}; a "
        "video or camera without --output is shown in a window. Images smaller than "
        f"{MIN_SIDE} pixels are drawn enlarged by a whole factor",
    )
    add("--show", action="store_true", help="show in a window, too (any key: go on, q: quit)")
    add_result_options(parser)
    add_model_options(parser)
    args = parser.parse_args(argv)
    if len(args.opts) % 2:
        parser.error(f"--opts takes pairs KEY VALUE, found {len(args.opts)} words: {args.opts}")
    if args.legend and not args.input:
        parser.error("--legend is for images: its size changes, that of a video cannot")
    args.output = args.output or (DEFAULT_OUTPUT if args.input and not args.show else None)
    return args


class Demo:
    """A model, and what becomes of its results."""

    def __init__(self, args: argparse.Namespace, predictor: MaskFormerPredictor) -> None:
        """
        Raises:
            OSError, KeyError, ValueError: the arguments do not fit each other or the model.
        """
        shown = args.show or not args.output
        self.window = Window(WINDOW) if shown else None
        self.to_draw, kinds = kinds_of(args, predictor.kinds, shown or "overlay" in args.save)
        self.ids = dataset_ids_of(args, predictor)
        self.run = PredictionRun(predict_function(predictor, args, kinds), args.batch_size)
        self._formats = [name for name in args.save if name != "overlay"] if args.output else []
        self._args = args

    def plan(self, inputs: Sequence[Path], suffixes: tuple[str, ...]) -> OutputPlan | None:
        """Where drawings go, if any are kept.

        Raises:
            ValueError: see :func:`plan_outputs`.
        """
        if not self._args.output or "overlay" not in self._args.save:
            return None
        return plan_outputs(inputs, self.to_draw, self._args.output, suffixes)

    def writer(self, inputs: Sequence[Path]) -> AbstractContextManager[ResultWriter | None]:
        """Writes all formats but the drawings, where there are any.

        Raises:
            ValueError: --output is no folder, or an input lies where results go.
        """
        if not self._formats:
            return nullcontext()
        check_apart(inputs, self._args.output)
        category_ids = self.ids.category_ids if self.ids else None
        return ResultWriter(self._args.output, self._formats, category_ids=category_ids)

    def drawings(self, result: Result, scale: int = 1) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Yield each kind that is drawn, and its drawing."""
        options = {"threshold": self._args.confidence_threshold, "legend": self._args.legend}
        for kind in self.to_draw:
            yield kind, result.draw(kind, scale=scale, **options)

    def describe(self, result: Result) -> str:
        """Such as "3 panoptic segments"."""
        found = []
        for kind in self.to_draw or result.kinds:
            count = len(result.overlay(kind, self._args.confidence_threshold).regions)
            found.append(f"{count} {kind} segment{'s' * (count != 1)}")
        return ", ".join(found)


def draw_images(args: argparse.Namespace) -> int:
    """Draw or save every image of `--input`. Returns the exit code."""
    with setting_up():
        make_model = model_of(args)
        files, problems = find_images(args.input, args.recursive)
        for problem in problems:
            logger.error(problem)
        if not files:
            return 1
        files = files[:: args.every_n]
        demo = Demo(args, make_model())
        plan = demo.plan(files, DRAWN_IMAGE_SUFFIXES)
        names = plan.names if plan else distinct_names(file.stem for file in files)
        writer = demo.writer(files)
    with writer as results:
        items = read_files(zip(files, names, strict=True), demo.ids)
        bar = tqdm(items, total=len(files), unit="image", disable=None)
        demo.run.over(bar, partial(use_image, demo, plan, results))
    run, failed = demo.run, demo.run.failed + len(problems)
    verb = "drawn" if args.save == ["overlay"] else "done"
    counts = f"{run.done} of {len(files) + len(problems)} inputs {verb}"
    counts += f", {failed} failed" * bool(failed)
    logger.info(counts + (f": {args.output}" if args.output else ""))
    return 1 if failed else 0


def use_image(
    demo: Demo,
    plan: OutputPlan | None,
    writer: ResultWriter | None,
    item: Item,
    result: Result,
    seconds: float,
) -> bool:
    """Draw, save and show the result of one image; False where the user wants no more."""
    start = time.perf_counter()
    sides = result.image.shape[:2]
    scale = max(1, min(MIN_SIDE // min(sides), 4 * MIN_SIDE // max(sides)))
    written, go_on = [], True
    for kind, image in demo.drawings(result, scale):
        if plan:
            written.append(plan.files(item.name)[kind])
            Image.fromarray(image).save(written[-1], quality=95)
        if demo.window:
            go_on = demo.window.show(image) and go_on
    if writer:
        written += writer.write(replace(result, file_name=item.label), item.name, item.image_id)
    seconds += time.perf_counter() - start
    where = f" -> {', '.join(map(str, written))}" if written else ""
    logger.info(f"{item.label}: {demo.describe(result)}, {seconds:.2f} s{where}")
    return go_on


def draw_video(args: argparse.Namespace) -> int:
    """Draw or save a video, or what a camera sees, frame by frame. Returns the exit code."""
    with ExitStack() as stack:
        with setting_up():
            source = args.video_input if args.webcam is None else args.webcam
            make_model = model_of(args)
            reader = stack.enter_context(closing(VideoReader(source, args.every_n)))
            path = Path("webcam" if args.webcam is not None else source)
            demo = Demo(args, make_model())
            plan = demo.plan([path], DRAWN_VIDEO_SUFFIXES)
            videos = {
                kind: stack.enter_context(closing(VideoWriter(file, reader.fps)))
                for kind, file in (plan.files(path.stem) if plan else {}).items()
            }
            results = stack.enter_context(demo.writer([path]))
        whole = draw_frames(demo, reader, path.stem, partial(use_frame, demo, videos, results))
    places = [video.path for video in videos.values() if video.num_frames]
    failed = f", {demo.run.failed} failed" * bool(demo.run.failed)
    for place in [*places, *([args.output] if results else [])]:
        verb = "drawn" if place in places else "done"
        logger.info(f"{reader.name}: {demo.run.done} frames {verb}{failed}: {place}")
    return 0 if whole and not failed else 1


def draw_frames(demo: Demo, reader: VideoReader, name: str, use: Use) -> bool:
    """Go on until the video or the user's patience ends; False where a video was left early."""
    if reader.num_frames is None:
        logger.info("Ctrl-C ends it.")
    items = read_frames(reader, name)
    try:
        demo.run.over(tqdm(items, total=reader.num_frames, unit="frame", desc=reader.name), use)
    except KeyboardInterrupt:
        logger.info(f"{reader.name}: stopped after {demo.run.done} frames")
        return reader.num_frames is None
    return True


def use_frame(
    demo: Demo,
    videos: dict[str, VideoWriter],
    writer: ResultWriter | None,
    item: Item,
    result: Result,
    seconds: float,
) -> bool:
    """Draw, save and show the result of one frame; False where the user wants no more."""
    for kind, image in demo.drawings(result):
        if kind in videos:
            videos[kind].write(image)
        if demo.window and not demo.window.show(image, 1):
            return False
    if writer:
        writer.write(replace(result, file_name=f"{item.name}.png"), item.name)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: see the text on top."""
    args = parse_arguments(argv)
    setup_logger(name="mask_former")
    try:
        with logging_redirect_tqdm([logging.getLogger("mask_former")]):
            return draw_images(args) if args.input else draw_video(args)
    except SetupError as error:
        logger.error(str(error))
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted")
        return 130
