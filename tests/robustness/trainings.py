"""Tiny trainings with a failure or a measurement; each is run in a process of its own."""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from detectron2.data import build_detection_train_loader
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from mask_former.config.loading import load_cfg
from mask_former.engine import Trainer
from mask_former.engine.launch import JobArguments
from tests.helpers import own_data
from tests.helpers.tiny_model import write_tiny_model
from tests.helpers.tiny_trainer import TinyTrainer, make_example

SETTINGS = {
    "DATASETS.TEST": "()",
    "SOLVER.IMS_PER_BATCH": 2,
    "MODEL.MASK_FORMER.DROPOUT": 0.0,
    "MODEL.SWIN.DROP_PATH_RATE": 0.0,
    "SEED": 3,
}


def tiny_cfg(config: Path, output: Path, **more: Any) -> Any:
    """Load the config of :func:`write_tiny_model` for a training; seed all random generators.

    Args:
        more: config keys, with ``__`` instead of dots.
    """
    output.mkdir(exist_ok=True)
    changed = {key.replace("__", "."): value for key, value in more.items()}
    settings = {**SETTINGS, "OUTPUT_DIR": output, **changed}
    cfg = load_cfg(str(config), [str(word) for pair in settings.items() for word in pair])
    seed_all_rng(cfg.SEED)
    return cfg


class At(HookBase):
    """Calls a function before one iteration."""

    def __init__(self, iteration: int, action: Any) -> None:
        self.iteration, self.action = iteration, action

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            self.action()


class SameImages(TinyTrainer):
    """A trainer that always sees the same two images."""

    loaders: ClassVar[list[Any]] = []


def train_on_a_full_disk(config: Path, output: Path, limit: int, iteration: int) -> None:
    """Train, or resume; from ``iteration`` on, no file can be larger than ``limit`` bytes."""
    cfg = tiny_cfg(config, output, SOLVER__MAX_ITER=6, SOLVER__CHECKPOINT_PERIOD=1)
    trainer = SameImages(cfg)
    trainer.resume_or_load(resume=True)
    trainer.register_hooks([At(iteration, lambda: limit_files(limit))])
    trainer.train()


def limit_files(size: int) -> None:
    """Let no file grow beyond ``size`` bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class DyingMapper:
    """Makes examples, until it ends its process without an error message."""

    def __init__(self, end: str) -> None:
        self.end = end

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        if record["seed"] == 5:
            if self.end == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL)
        return make_example(record["seed"])


def train_with_a_dying_worker(config: Path, output: Path, end: str) -> None:
    """Train with a data worker that exits ("exit"), or that the system kills ("kill")."""

    class WithWorkers(Trainer):
        @classmethod
        def build_train_loader(cls, cfg: Any) -> Any:
            return build_detection_train_loader(
                [{"seed": seed} for seed in range(6)],
                mapper=DyingMapper(end),
                total_batch_size=2,
                aspect_ratio_grouping=False,
                num_workers=1,
            )

    trainer = WithWorkers(tiny_cfg(config, output, SOLVER__MAX_ITER=50))
    trainer.resume_or_load(resume=False)
    trainer.train()


def resident_mebibytes() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


PARTS = (0.1, 0.5, 1.0)
"""The fractions of a run at which the memory is measured."""


class WatchMemory(HookBase):
    """Records the resident memory at ``PARTS`` of the training."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done in [round(part * self.trainer.max_iter) for part in PARTS]:
            self.seen.append(resident_mebibytes())


def memory_of_training(folder: Path, steps: int) -> list[float]:
    """Train on image files, with flips and crops; return the mebibytes in use at ``PARTS``."""
    from mask_former.data.datasets.custom import register_semantic

    config, _ = write_tiny_model(folder, SEMANTIC_ON=True)
    own_data.write_semantic_folder(folder, (0, 1), count=8)
    names = ["sky", "road", "car", "bicyclist"]
    register_semantic("memory_train", folder / "i", folder / "l", names)
    cfg = tiny_cfg(
        config,
        folder / "output",
        DATASETS__TRAIN="('memory_train',)",
        SOLVER__MAX_ITER=steps,
        SOLVER__CHECKPOINT_PERIOD=max(1, steps // 20),
        DATALOADER__NUM_WORKERS=0,
        INPUT__MIN_SIZE_TRAIN="(64, 72, 80)",
        INPUT__MAX_SIZE_TRAIN=128,
        INPUT__CROP__ENABLED=True,
        INPUT__CROP__TYPE="absolute",
        INPUT__CROP__SIZE="(64, 64)",
        INPUT__SIZE_DIVISIBILITY=64,
    )
    trainer, watch = Trainer(cfg), WatchMemory()
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([watch])
    trainer.train()
    return watch.seen


def memory_of_prediction(folder: Path, count: int) -> list[float]:
    """Predict ``count`` images of 16 sizes; return the mebibytes in use at ``PARTS``."""
    import mask_former

    config, weights = write_tiny_model(folder, PANOPTIC_ON=True, SEMANTIC_ON=True, INSTANCE_ON=True)
    predictor = mask_former.MaskFormerPredictor.from_pretrained(weights, config_file=config)
    files = [folder / f"{number}.png" for number in range(16)]
    for number, file in enumerate(files):
        own_data.write_image(file, (40 + number, 56 + 2 * number), seed=number)
    seen, marks = [], [round(part * count) for part in PARTS]
    for number, _ in enumerate(predictor.stream(files[i % 16] for i in range(count)), start=1):
        if number in marks:
            seen.append(resident_mebibytes())
    return seen


@dataclass(frozen=True, kw_only=True)
class RankArguments(JobArguments):
    """Arguments of :func:`train_in_ranks`."""

    end: str
    dying: int
    resume: bool
    eval_only: bool


def train_in_ranks(args: RankArguments) -> None:
    """Run one of several processes of a training, in which the rank ``args.dying`` fails."""
    torch.set_num_threads(1)
    folder = Path(args.config_file).parent
    (folder / f"rank{comm.get_rank()}").write_text(str(os.getpid()))
    cfg = tiny_cfg(Path(args.config_file), folder / "output", SOLVER__MAX_ITER=10_000)
    trainer = SameImages(cfg)
    trainer.resume_or_load(resume=False)
    if comm.get_rank() == args.dying:
        trainer.register_hooks([At(3, lambda: _die(args.end, folder / "died"))])
    trainer.train()


def _die(end: str, mark: Path) -> None:
    mark.touch()
    if end == "raise":
        raise ValueError("an error in one of two processes")
    if end == "machine":
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getppid() if end == "command" else os.getpid(), signal.SIGKILL)
