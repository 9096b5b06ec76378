"""Save the results of a trained model for the images of a folder, on any number of machines.

    python tools/predict_folder.py --weights W --input FOLDER --output DIR --save semantic-png
    torchrun --nproc-per-node 8 tools/predict_folder.py --weights W --input FOLDER --output DIR

Under torchrun each process takes its share of the files. The same command continues where an
earlier run ended or was killed: images whose results exist are skipped.

Exit code: 0; 1 if an image failed or a process was lost (the other images are done); 2 if the
command could not start.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.utils.logger import setup_logger
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mask_former.results import Result, ResultWriter, merge_records
from mask_former.utils.atomic_files import replace_text
from mask_former.utils.bounded_files import UnreadableFile, read_json
from mask_former.utils.errors import short
from mask_former.utils.logs import escape_records

from .command import SetupError, make_parser, setting_up
from .media import find_images
from .options import (
    ModelArguments,
    ResultArguments,
    add_model_options,
    add_result_options,
    collect,
    model_arguments,
)
from .output_files import check_apart, relative_names
from .prediction import choose_kinds, dataset_ids, model_loader, predict_function
from .ranks import Ranks
from .run import Item, PredictionRun, read_files

logger = logging.getLogger("mask_former.predict_folder")

SETTINGS = "run.json"
"""File in the output folder with the options that the results depend on."""


@dataclass(frozen=True)
class PredictFolderArguments:
    """The arguments of the command."""

    input: Path
    recursive: bool
    output: Path
    results: ResultArguments
    model: ModelArguments


def parse(argv: Sequence[str] | None) -> PredictFolderArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--input", required=True, type=Path, metavar="FOLDER", help="folder of images")
    add("--recursive", action="store_true", help="search its subfolders, too")
    add(
        "--output",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="created if missing; shared by all processes. Results have the names of the images",
    )
    add_result_options(parser)
    add_model_options(parser)
    given = parser.parse_args(argv)
    given.model = model_arguments(parser, given)
    given.results = collect(ResultArguments, given)
    return collect(PredictFolderArguments, given)


def files_of(args: PredictFolderArguments) -> list[tuple[Path, str]]:
    """Find the images and the names of their results, in the same order in every process.

    Raises:
        FileNotFoundError, ValueError: If the folder is missing or has no images, results would
            become inputs or replace them, or two images would get the same name.
    """
    if not args.input.is_dir():
        raise FileNotFoundError(f"--input {args.input}: no such folder")
    if args.recursive and args.output.resolve().is_relative_to(args.input.resolve()):
        raise ValueError(
            f"--output {args.output} lies in --input {args.input}: with --recursive, results would "
            "become inputs. Give another --output."
        )
    files, problems = find_images([str(args.input)], args.recursive)
    if problems:
        raise FileNotFoundError(problems[0])
    check_apart(files, args.output)
    return list(zip(files, relative_names(files, args.input), strict=True))


def check_settings(args: PredictFolderArguments) -> None:
    """Check that the output folder was started with the same options; store them in a new folder.

    Raises:
        ValueError: If an option differs; the message names it.
    """
    text = json.dumps(_decisive(args), indent=1, default=str)
    path = args.output / SETTINGS
    args.output.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        replace_text(path, text)
        return
    before = read_json(path)
    if not isinstance(before, dict):
        raise UnreadableFile(
            f"{path} is {short(before)}, expected the options of an earlier run: remove the file, "
            "or give another --output."
        )
    for name, value in json.loads(text).items():
        if before.get(name) != value:
            raise ValueError(
                f"{args.output} was started with --{name.replace('_', '-')} "
                f"{short(before.get(name), 200)}, now it is {value}: results would mix. Give "
                "another --output."
            )


def _decisive(args: PredictFolderArguments) -> dict[str, Any]:
    """Return the options that the results depend on."""
    model, results = args.model, args.results
    return {
        "input": args.input,
        "weights": model.weights,
        "config_file": model.config_file,
        "opts": model.opts,
        "plugin": model.plugins or None,
        "kinds": results.kinds,
        "confidence_threshold": results.confidence_threshold,
        "palette": results.palette,
        "legend": results.legend,
        "dataset": results.dataset,
        "coco_json": results.coco_json,
    }


def predict_share(args: PredictFolderArguments, ranks: Ranks) -> tuple[int, int, int]:
    """Save the results of this process's images, except those that exist.

    Returns:
        The numbers of images that were done, that failed, and that were skipped.
    """
    results = args.results
    with setting_up():
        load = model_loader(replace(args.model, device=args.model.device or ranks.device))
        share = ranks.share(files_of(args))
        predictor = load()
        _, kinds = choose_kinds(results, predictor.kinds, "overlay" in results.save)
        ids = dataset_ids(results, predictor.classes)
        check_settings(args)
        writer = ResultWriter(
            args.output,
            results.save,
            kinds=results.kinds,
            category_ids=ids.category_ids if ids else None,
            part=ranks.rank,
            drawing={"threshold": results.confidence_threshold, "legend": results.legend},
        )
    with writer:
        left = [(file, name) for file, name in share if not writer.has(name)]
        predict = predict_function(predictor, kinds, results, args.model.batch_size)
        run = PredictionRun(predict, args.model.batch_size)
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
    """Save the result of one image; the run always continues."""
    writer.write(replace(result, file_name=item.label), item.name, item.image_id)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see the module's docstring."""
    args = parse(argv)
    setup_logger(name="mask_former")
    escape_records(logging.getLogger("mask_former"))
    try:
        with ExitStack() as stack:
            with setting_up():
                ranks = Ranks.from_environment()
                stack.enter_context(ranks.connected())
            if ranks.rank:
                logging.getLogger("mask_former").setLevel(logging.WARNING)
            stack.enter_context(logging_redirect_tqdm([logging.getLogger("mask_former")]))
            counts = predict_share(args, ranks)
            total = ranks.finish(counts, partial(merge_records, args.output))
    except SetupError as error:
        logger.error(str(error))
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted; the same command continues from here")
        return 130
    if total is None:
        logger.error(f"{args.output}: run the same command again for the missing results")
        return 1
    done, failed, skipped = total
    logger.info(f"{done} images done, {skipped} skipped, {failed} failed: {args.output}")
    return 1 if failed else 0
