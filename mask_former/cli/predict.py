"""Draw or save the results of a trained model for images, a video or a camera.

python demo/demo.py --input street.jpg photos/ 'more/**/*.png' --output drawn
python demo/demo.py --weights output/mine --input photos --save semantic-png,npz --output out
python demo/demo.py --config-file F --video-input a.mp4 --output d --opts MODEL.WEIGHTS model.pth

Exit code: 0; 1 if an input or a frame failed (the others are done); 2 if it could not start.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
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
from mask_former.results.files import save_image
from mask_former.utils.errors import one_line, printable
from mask_former.utils.logs import escape_records

from .command import SetupError, make_parser, setting_up
from .media import VideoReader, VideoWriter, Window, find_images
from .options import (
    ModelArguments,
    ResultArguments,
    add_model_options,
    add_result_options,
    collect,
    model_arguments,
    positive,
)
from .output_files import (
    DRAWN_IMAGE_SUFFIXES,
    DRAWN_VIDEO_SUFFIXES,
    OutputPlan,
    check_apart,
    distinct_names,
    plan_outputs,
)
from .prediction import choose_kinds, dataset_ids, model_loader, predict_function
from .run import Item, PredictionRun, Use, read_files, read_frames

logger = logging.getLogger("mask_former.demo")

DEFAULT_OUTPUT = "output/demo"
MIN_SIDE = 400
"""Side in pixels; smaller images are drawn upsampled by an integer factor, to fit the labels."""
WINDOW = "MaskFormer (q: quit)"


@dataclass(frozen=True)
class PredictArguments:
    """The arguments of the command."""

    input: tuple[str, ...] | None
    """Images, folders and globs; None for a video or camera."""
    video_input: str | None
    webcam: int | None
    recursive: bool
    every_n: int
    output: str | None
    show: bool
    results: ResultArguments
    model: ModelArguments


def parse(argv: Sequence[str] | None) -> PredictArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = make_parser(__doc__)
    _add_inputs(parser)
    add = parser.add_argument
    add(
        "--output",
        metavar="PATH",
        help="a folder, created if missing; for one drawing also a file (.png, "
        f".jpg, … or .mp4, .avi). Default: {DEFAULT_OUTPUT} for images without --show; a "
        "video or camera without --output is shown in a window. Images smaller than "
        f"{MIN_SIDE} pixels are drawn upsampled by an integer factor",
    )
    add("--show", action="store_true", help="also show in a window (any key: continue, q: quit)")
    add_result_options(parser)
    add_model_options(parser)
    given = parser.parse_args(argv)
    given.model = model_arguments(parser, given)
    given.results = collect(ResultArguments, given)
    if given.legend and not given.input:
        parser.error("--legend is only for images: its size varies, that of a video cannot")
    given.output = given.output or (DEFAULT_OUTPUT if given.input and not given.show else None)
    return collect(PredictArguments, given)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help="images, folders, quoted globs")
    source.add_argument("--video-input", metavar="VIDEO", help="a video file or a stream's URL")
    source.add_argument(
        "--webcam", nargs="?", type=int, const=0, metavar="N", help="the N-th camera, from 0"
    )
    add("--recursive", action="store_true", help="search the subfolders of folders, too")
    help_ = "take only every N-th file or frame, from the first on"
    add("--every-n", type=positive, default=1, metavar="N", help=help_)


class Demo:
    """A model, and the outputs that its results go to."""

    def __init__(self, args: PredictArguments, predictor: MaskFormerPredictor) -> None:
        """Choose the results to compute, and open the window if they are shown.

        Raises:
            OSError, KeyError, ValueError: If the arguments do not fit each other or the model.
        """
        results = args.results
        shown = args.show or not args.output
        self.window = Window(WINDOW) if shown else None
        draw = shown or "overlay" in results.save
        self.to_draw, kinds = choose_kinds(results, predictor.kinds, draw)
        self.ids = dataset_ids(results, predictor.classes)
        predict = predict_function(predictor, kinds, results, args.model.batch_size)
        self.run = PredictionRun(predict, args.model.batch_size)
        self._results = results
        self._output = args.output

    def plan(self, inputs: Sequence[Path], suffixes: tuple[str, ...]) -> OutputPlan | None:
        """Choose the drawings' files (:func:`plan_outputs`); None if drawings are not saved."""
        if not self._output or "overlay" not in self._results.save:
            return None
        return plan_outputs(inputs, self.to_draw, self._output, suffixes)

    def writer(self, inputs: Sequence[Path]) -> AbstractContextManager[ResultWriter | None]:
        """Create the writer of all formats except drawings; the context is None if there are none.

        Raises:
            ValueError: If --output is not a folder, or an input lies in one of its subfolders.
        """
        formats = [name for name in self._results.save if name != "overlay"]
        if not self._output or not formats:
            return nullcontext()
        check_apart(inputs, self._output)
        category_ids = self.ids.category_ids if self.ids else None
        return ResultWriter(self._output, formats, category_ids=category_ids)

    def drawings(self, result: Result, scale: int = 1) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Yield each kind that is drawn, and its drawing, H×W×3, RGB."""
        threshold, legend = self._results.confidence_threshold, self._results.legend
        for kind in self.to_draw:
            yield kind, result.draw(kind, threshold=threshold, legend=legend, scale=scale)

    def describe(self, result: Result) -> str:
        """Describe the number of segments of each kind, such as "3 panoptic segments"."""
        found = []
        for kind in self.to_draw or result.kinds:
            count = len(result.overlay(kind, self._results.confidence_threshold).regions)
            found.append(f"{count} {kind} segment{'s' * (count != 1)}")
        return ", ".join(found)


def draw_images(args: PredictArguments) -> int:
    """Draw or save every image of ``--input`` and return the exit code."""
    with setting_up():
        load = model_loader(args.model)
        files, problems = find_images(args.input or (), args.recursive)
        for problem in problems:
            logger.error(printable(problem))
        if not files:
            return 1
        files = files[:: args.every_n]
        demo = Demo(args, load())
        plan = demo.plan(files, DRAWN_IMAGE_SUFFIXES)
        names = plan.names if plan else distinct_names(file.stem for file in files)
        writer = demo.writer(files)
    with writer as results:
        items = read_files(zip(files, names, strict=True), demo.ids)
        bar = tqdm(items, total=len(files), unit="image", disable=None)
        demo.run.over(bar, partial(use_image, demo, plan, results))
    run, failed = demo.run, demo.run.failed + len(problems)
    verb = "drawn" if args.results.save == ("overlay",) else "done"
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
    """Draw, save and show the result of one image; return False if the user quits."""
    start = time.perf_counter()
    sides = result.image.shape[:2]
    scale = max(1, min(MIN_SIDE // min(sides), 4 * MIN_SIDE // max(sides)))
    written, go_on = [], True
    for kind, image in demo.drawings(result, scale):
        if plan:
            written.append(plan.files(item.name)[kind])
            save_image(Image.fromarray(image), written[-1])
        if demo.window:
            go_on = demo.window.show(image) and go_on
    if writer:
        written += writer.write(replace(result, file_name=item.label), item.name, item.image_id)
    seconds += time.perf_counter() - start
    where = f" -> {', '.join(map(str, written))}" if written else ""
    logger.info(printable(f"{item.label}: {demo.describe(result)}, {seconds:.2f} s{where}"))
    return go_on


def draw_video(args: PredictArguments) -> int:
    """Draw or save a video, or the frames of a camera, and return the exit code."""
    source = args.webcam if args.video_input is None else args.video_input
    assert source is not None, "the parser requires one of the inputs"
    with ExitStack() as stack:
        with setting_up():
            load = model_loader(args.model)
            reader = stack.enter_context(closing(VideoReader(source, args.every_n)))
            path = Path(args.video_input or "webcam")
            demo = Demo(args, load())
            plan = demo.plan([path], DRAWN_VIDEO_SUFFIXES)
            videos = {
                kind: stack.enter_context(closing(VideoWriter(file, reader.fps)))
                for kind, file in (plan.files(path.stem) if plan else {}).items()
            }
            results = stack.enter_context(demo.writer([path]))
        complete = draw_frames(demo, reader, path.stem, partial(use_frame, demo, videos, results))
    drawn = [video.path for video in videos.values() if video.num_frames]
    failed = f", {demo.run.failed} failed" * bool(demo.run.failed)
    for output in [*drawn, *([args.output] if results else [])]:
        verb = "drawn" if output in drawn else "done"
        logger.info(f"{reader.name}: {demo.run.done} frames {verb}{failed}: {output}")
    return 0 if complete and not failed else 1


def draw_frames(demo: Demo, reader: VideoReader, name: str, use: Use) -> bool:
    """Run to the end of the video or to Ctrl-C; return False if Ctrl-C cut a video file short."""
    if reader.num_frames is None:
        logger.info("Press Ctrl-C to stop.")
    items = read_frames(reader, name)
    bar = tqdm(items, total=reader.num_frames, unit="frame", desc=printable(reader.name))
    try:
        demo.run.over(bar, use)
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
    """Draw, save and show the result of one frame; return False if the user quits."""
    for kind, image in demo.drawings(result):
        if kind in videos:
            videos[kind].write(image)
        if demo.window and not demo.window.show(image, 1):
            return False
    if writer:
        writer.write(replace(result, file_name=f"{item.name}.png"), item.name)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see the module's docstring."""
    args = parse(argv)
    setup_logger(name="mask_former")
    escape_records(logging.getLogger("mask_former"))
    try:
        with logging_redirect_tqdm([logging.getLogger("mask_former")]):
            return draw_images(args) if args.input else draw_video(args)
    except SetupError as error:
        logger.error(str(error))
        return 2
    except OSError as error:  # an output that many images or frames share cannot be finished
        logger.error(one_line(error))
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted")
        return 130
