"""Contenders in turns (A B A B …): the machine drifts, so that only ratios of one turn count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from statistics import median, quantiles
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.modeling import build_model
from torch import Tensor
from tqdm import tqdm

from mask_former.modeling.mask_former import MaskFormer
from mask_former.predictor.trained_model import load_trained_model
from mask_former.registries import (
    DATASET_MAPPER_REGISTRY,
    load_plugins,
    loaded_plugins,
    lookup,
)

from .contenders import Contender, ModelContender, initial_weights
from .stopwatch import Peak, Stopwatch, peak_memory
from .textbook import build_textbook_model
from .transformers_peer import TransformersContender
from .work import Work

__all__ = ["Spec", "build_contenders", "measure", "measure_data", "measure_memory"]

CRITERION = ("matching", "losses", "criterion", "criterion backward")
"""The stages that are the criterion's."""


@dataclass(frozen=True)
class Spec:
    """What a contender is made of; it can travel to another process."""

    name: str
    cfg: CfgNode
    kind: str = "ours"
    """"ours", "textbook" or "transformers"."""
    trained: bool = False
    """Whether ``MODEL.WEIGHTS`` is loaded, a whole model's; random weights otherwise."""


def build_contenders(specs: Sequence[Spec], work: Work) -> list[Contender]:
    """All with the weights of the first, where they fit.

    Raises:
        ImportError, ValueError: if a peer is not there or cannot be the config's model.
        OSError, ValueError: see :func:`load_trained_model`.
    """
    first = specs[0]
    if first.trained:
        weights = load_trained_model(first.cfg).state_dict()
    else:
        weights = initial_weights(first.cfg, work.seed)
    return [_build(spec, work, weights) for spec in specs]


def _build(spec: Spec, work: Work, weights: Mapping[str, Tensor]) -> Contender:
    if spec.kind == "transformers":
        return TransformersContender(spec.name, spec.cfg, work, weights)
    build = build_textbook_model if spec.kind == "textbook" else build_model
    model = build(spec.cfg)
    if not isinstance(model, MaskFormer):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {type(model).__name__}; expected MaskFormer, whose stages "
            "are known."
        )
    return ModelContender(spec.name, spec.cfg, work, weights, model)


@dataclass
class _Record:
    """The seconds of one contender, an entry a turn."""

    stages: dict[str, list[float]] = field(default_factory=dict)
    alone: dict[str, list[float]] = field(default_factory=dict)
    """Laps of the network alone."""

    @property
    def totals(self) -> list[float]:
        return [sum(turn) for turn in zip(*self.stages.values(), strict=True)]

    @property
    def criterion(self) -> list[float]:
        parts = [self.stages[stage] for stage in CRITERION if stage in self.stages]
        return [sum(turn) for turn in zip(*parts, strict=True)]


def measure(
    contenders: Sequence[Contender], training: bool, *, iterations: int, warmup: int
) -> list[dict[str, Any]]:
    """Let all do their step, and the network alone, in turns.

    Args:
        contenders: the first is what the others are compared with.
        training: a training step, else inference.
        iterations: turns that count, after ``warmup`` that do not.

    Returns:
        For each: ``stages``, ``total`` and ``network`` as p50 and p95 in seconds, ratios as the
        median of all turns, ``largest_difference`` of logits from the first's.
    """
    expected = contenders[0].predict()
    differences = [_largest_difference(one.predict(), expected) for one in contenders]
    for contender in contenders:
        contender.prepare(training)
    records = [_Record() for _ in contenders]
    mode = "training" if training else "inference"
    for turn in tqdm(range(warmup + iterations), desc=f"turns of {mode}", disable=None):
        for contender, record in zip(contenders, records, strict=True):
            watch = Stopwatch(contender.device)
            contender.step(watch)
            stages, alone = watch.read(), {}
            if contender.network(watch):
                alone = watch.read()
            if turn >= warmup:
                _add(record.stages, stages)
                _add(record.alone, alone)
    return [
        {
            "name": contender.name,
            "mode": mode,
            "precision": str(contender.amp_dtype or torch.float32).removeprefix("torch."),
            "largest_difference": difference,
            **_summary(record),
            **_beside(record, records[0]),
        }
        for contender, record, difference in zip(contenders, records, differences, strict=True)
    ]


def _add(columns: dict[str, list[float]], seconds: Mapping[str, float]) -> None:
    for name, value in seconds.items():
        columns.setdefault(name, []).append(value)


def _largest_difference(
    found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]
) -> float | None:
    """Of class and mask logits; None where they are not of one shape."""
    pairs = list(zip(found, expected, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return None
    return max(float((one - other).abs().max()) for one, other in pairs)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The median and what 95 % of the turns stay below."""
    high = quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    return {"p50": median(seconds), "p95": high}


def _ratio(above: Sequence[float], below: Sequence[float]) -> float | None:
    """The median over turns; None where one of them was not measured."""
    if not above or not below:
        return None
    return median(one / other for one, other in zip(above, below, strict=True))


def _summary(record: _Record) -> dict[str, Any]:
    network, maps = record.alone.get("network", []), record.alone.get("semantic_map", [])
    with_map = [sum(turn) for turn in zip(network, maps, strict=False)]
    return {
        "stages": {stage: percentiles(seconds) for stage, seconds in record.stages.items()},
        "total": percentiles(record.totals),
        "network": percentiles(network) if network else None,
        "total_over_network": _ratio(record.totals, network),
        "semantic_map": percentiles(maps) if maps else None,
        "semantic_map_total_over_network": _ratio(with_map, network),
    }


def _beside(record: _Record, first: _Record) -> dict[str, Any]:
    """How many times the first's time this one takes."""
    mine, other = record.alone.get("network", []), first.alone.get("network", [])
    return {
        "times_the_first": _ratio(record.totals, first.totals),
        "network_times_the_first": _ratio(mine, other),
        "criterion_times_the_first": _ratio(record.criterion, first.criterion),
    }


def measure_memory(specs: Sequence[Spec], work: Work, training: bool) -> list[dict[str, Any]]:
    """The peak of a step of each contender, each in a process of its own.

    Returns:
        For each: ``peak_mib``, see :class:`Peak`, and ``memory_times_the_first``.
    """
    peaks = []
    for spec in tqdm(specs, desc="peaks of memory", disable=None):
        with ProcessPoolExecutor(
            max_workers=1,
            mp_context=get_context("spawn"),
            initializer=load_plugins,
            initargs=(loaded_plugins(),),
        ) as pool:
            threads = torch.get_num_threads()
            peaks.append(pool.submit(_peak, spec, work, training, threads).result())
    return [
        {
            "peak_mib": peak._asdict(),
            "memory_times_the_first": {
                key: mine / first if mine is not None and first else None
                for key, mine, first in zip(Peak._fields, peak, peaks[0], strict=True)
            },
        }
        for peak in peaks
    ]


def _peak(spec: Spec, work: Work, training: bool, threads: int) -> Peak:
    torch.set_num_threads(threads)
    (contender,) = build_contenders([spec], work)
    contender.prepare(training)
    watch = Stopwatch(contender.device)
    for _ in range(2):
        contender.step(watch)  # what is made once
    return peak_memory(lambda: contender.step(watch), contender.device)


def measure_data(cfg: CfgNode, training: bool, images: int, iterations: int) -> dict[str, float]:
    """Seconds (p50, p95) in which one process reads and maps a batch of the config's dataset.

    Raises:
        FileNotFoundError: if the dataset is not there.
        ValueError: if the config names none.
    """
    key = "TRAIN" if training else "TEST"
    if not cfg.DATASETS[key]:
        raise ValueError(f"--data needs a dataset, but DATASETS.{key} is empty.")
    records = get_detection_dataset_dicts(cfg.DATASETS[key], filter_empty=False)
    if training:
        name = cfg.INPUT.DATASET_MAPPER_NAME
        mapper = lookup(DATASET_MAPPER_REGISTRY, name, "INPUT.DATASET_MAPPER_NAME")(cfg, True)
    else:
        mapper = DatasetMapper(cfg, is_train=False)
    watch, seconds = Stopwatch(torch.device("cpu")), []
    for turn in tqdm(range(1 + iterations), desc="batches of data", disable=None):
        watch.start()
        for index in range(turn * images, (turn + 1) * images):
            mapper(records[index % len(records)])
        watch.lap("data")
        seconds.append(watch.read()["data"])
    return percentiles(seconds[1:])
