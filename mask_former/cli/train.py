r"""Train or evaluate the model of a config.

python tools/train_net.py --config-file configs/camvid/maskformer_efficientnet_lite0_bs8.yaml
python tools/train_net.py --config-file F --eval-only MODEL.WEIGHTS model.safetensors
python tools/train_net.py --config-file F --eval-only TEST.AUG.ENABLED True  # also with TTA
python tools/train_net.py --config-file F --num-gpus 8 OUTPUT_DIR out SOLVER.BASE_LR 0.0002
torchrun --nproc-per-node 8 tools/train_net.py --config-file F

Your own dataset, with --val-images and --val-labels to evaluate on (docs/own_data.md):

python tools/train_net.py --config-file configs/custom/maskformer_semantic.yaml --train-images A \
    --train-labels B --classes classes.txt
python tools/train_net.py --config-file configs/custom/maskformer_instance.yaml --train-images A \
    --train-json x.json

Exit code: 0; 2 after a mistake in the arguments, the config or the data, reported in one line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from traceback import walk_tb

from detectron2.engine import default_argument_parser
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from mask_former.config.loading import plugins_named_in, read_cfg
from mask_former.engine import evaluate, train
from mask_former.engine.launch import JobArguments, run
from mask_former.registries import load_plugins, naming_missing_plugins
from mask_former.utils.errors import one_line

from .command import FAILURES, add_plugin_argument
from .custom_data import CustomData, add_custom_data_arguments, use_custom_data

__all__ = ["TrainArguments", "main", "parse"]

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class TrainArguments(JobArguments):
    """Arguments of the command; the help of :func:`parse` explains them."""

    resume: bool
    eval_only: bool
    data: CustomData
    plugins: Sequence[str]


def parse(argv: Sequence[str] | None) -> TrainArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = default_argument_parser(epilog=__doc__)
    add_custom_data_arguments(parser)
    add_plugin_argument(parser)
    values = vars(parser.parse_args(argv))
    data = CustomData(**{field.name: values.pop(field.name) for field in fields(CustomData)})
    arguments = TrainArguments(data=data, **values)
    if not arguments.config_file:
        parser.exit(
            2,
            "train_net: --config-file is missing: give the YAML file of a config, such as "
            "configs/custom/maskformer_semantic.yaml for your own dataset.\n",
        )
    return arguments


def run_process(arguments: TrainArguments) -> None:
    """Train or evaluate in one process of the job."""
    config_file = arguments.config_file
    with _reporting_mistakes(), naming_missing_plugins(config_file, plugins_named_in(config_file)):
        cfg = read_cfg(config_file, arguments.opts)
        (evaluate if arguments.eval_only else train)(cfg, resume=arguments.resume)


@contextmanager
def _reporting_mistakes() -> Iterator[None]:
    """Exit with one line and code 2 after a user's mistake; leave other errors alone."""
    try:
        yield
    except FAILURES as error:
        if not _is_mistake(error):
            raise
        process = f" (process {comm.get_rank()})" if comm.get_world_size() > 1 else ""
        print(f"train_net{process}: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _is_mistake(error: BaseException) -> bool:
    """Return True if a check of this package raised ``error`` before the first step.

    Other errors keep their traceback: those during training or evaluation, and bugs of this
    package or of a plug-in, such as the ``KeyError`` of a dict.
    """
    code = [frame.f_code for frame, _ in walk_tb(error.__traceback__)]
    started = any(one.__code__ in code for one in (TrainerBase.train, inference_on_dataset))
    is_own = isinstance(error, OSError) or Path(code[-1].co_filename).is_relative_to(_PACKAGE)
    return is_own and not started and " " in one_line(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse(argv)
    with _reporting_mistakes():
        load_plugins(arguments.plugins)
        opts = use_custom_data(
            arguments.data, arguments.config_file, arguments.opts, evaluation=arguments.eval_only
        )
        try:
            run(run_process, replace(arguments, opts=opts))
        except ProcessExitedException as error:  # it has reported why
            return error.exit_code
    return 0
