"""Save what a trained model finds in the images of a folder, on any number of machines.

    python tools/predict_folder.py --weights W --input FOLDER --output DIR --save semantic-png
    torchrun --nproc-per-node 8 tools/predict_folder.py --weights W --input FOLDER --output DIR

Under torchrun each process takes its share of the files. The same command goes on where an earlier
run ended or was killed: what is there already is passed over.

Exit code: 0; 1 where an image failed or a process was lost (the others are done); 2 where nothing
could begin.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.utils.logger import setup_logger
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mask_former.results import Result, ResultWriter, merge_records
from mask_former.utils.atomic_files import replace_file

from .media import find_images
from .options import (
    SetupError,
    add_model_options,
    add_result_options,
    dataset_ids_of,
    kinds_of,
    model_of,
    predict_function,
    setting_up,
)
from .output_files import check_apart, relative_names
from .ranks import Ranks
from .run import Item, PredictionRun, read_files

logger = logging.getLogger("mask_former.predict_folder")

DECISIVE = (
    *("input", "weights", "config_file", "opts", "kinds", "confidence_threshold"),
    *("palette", "legend", "dataset", "coco_json"),
)
"""The options that the results depend on."""
SETTINGS = "run.json"
"""Holds their values, in the output."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", required=True, type=Path, metavar="FOLDER", help="its images are taken")
    add("--recursive", action="store_true", help="look into its subfolders, too")
    add(
        "--output",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="is made; all processes must see the same. Results have the names of the images",
    )
    add_result_options(parser)
    add_model_options(parser)
    args = parser.parse_args(argv)
    if len(args.opts) % 2:
        parser.error(f"--opts takes pairs KEY VALUE, found {len(args.opts)} words: {args.opts}")
    return args


def files_of(args: argparse.Namespace) -> list[tuple[Path, str]]:
    """The images and the names of their results, in the same order in every process.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, nothing in it, the output would mix
            with it, or two images would get one name.
    """
    if not args.input.is_dir():
        raise FileNotFoundError(f"--input {args.input}: no such folder")
    if args.recursive and args.output.resolve().is_relative_to(args.input.resolve()):
        raise ValueError(
            f"--output {args.output} lies in --input {args.input}: with --recursive, results would "
            "become inputs."
        )
    files, problems = find_images([str(args.input)], args.recursive)
    if problems:
        raise FileNotFoundError(problems[0])
    check_apart(files, args.output)
    return list(zip(files, relative_names(files, args.input), strict=True))


def check_settings(args: argparse.Namespace) -> None:
    """See that what the output folder has already was made with the same options; note them.

    Raises:
        ValueError: an option differs; names it.
    """
    settings = {name: _plain(getattr(args, name)) for name in DECISIVE}
    path = args.output / SETTINGS
    args.output.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        text = json.dumps(settings, indent=1)
        replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"{args.output} was begun with --{name.replace('_', '-')} {before.get(name)}, now "
                f"it is {value}: results would mix. Give another --output."
            )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def predict_share(args: argparse.Namespace, ranks: Ranks) -> tuple[int, int, int]:
    """Save the results of this process's images that are not there yet.

    Returns:
        how many were done, have failed, and were there already.
    """
    with setting_up():
        make_model = model_of(args)
        share = ranks.share(files_of(args))
        predictor = make_model()
        _, kinds = kinds_of(args, predictor.kinds, "overlay" in args.save)
        ids = dataset_ids_of(args, predictor)
        check_settings(args)
        writer = ResultWriter(
            args.output,
            args.save,
            kinds=args.kinds,
            category_ids=ids.category_ids if ids else None,
            part=ranks.rank,
            drawing={"threshold": args.confidence_threshold, "legend": args.legend},
        )
    with writer:
        left = [(file, name) for file, name in share if not writer.has(name)]
        run = PredictionRun(predict_function(predictor, args, kinds), args.batch_size)
        interval = 0.1 if sys.stderr.isatty() else 30.0
        bar = tqdm(
            read_files(left, ids),
            total=len(left),
            unit="image",
            mininterval=interval,
            disable=ranks.rank > 0,
        )
        run.over(bar, partial(save, writer))
    return run.done, run.failed, len(share) - len(left)


def save(writer: ResultWriter, item: Item, result: Result, seconds: float) -> bool:
    """Save the result of one image; goes on in any case."""
    writer.write(replace(result, file_name=item.label), item.name, item.image_id)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: see the text on top."""
    args = parse_arguments(argv)
    setup_logger(name="mask_former")
    try:
        with ExitStack() as stack:
            with setting_up():
                ranks = Ranks.from_environment()
                stack.enter_context(ranks.connected())
            if ranks.rank:
                logging.getLogger("mask_former").setLevel(logging.WARNING)
            args.device = args.device or ranks.device
            stack.enter_context(logging_redirect_tqdm([logging.getLogger("mask_former")]))
            counts = predict_share(args, ranks)
            total = ranks.finish(counts, partial(merge_records, args.output))
    except SetupError as error:
        logger.error(str(error))
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted; the same command goes on from here")
        return 130
    if total is None:
        logger.error(f"{args.output}: run the same command again for what is missing")
        return 1
    done, failed, there = total
    logger.info(f"{done} images done, {there} were there, {failed} failed: {args.output}")
    return 1 if failed else 0
