"""Interleaved measurements: a machine's speed drifts, so only ratios in a round are reliable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
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
from mask_former.utils.timing import interleave, timed

from .benchmarked_models import BenchmarkedMaskFormer, BenchmarkedModel, initial_weights
from .reference import build_reference_model
from .stopwatch import Peak, peak_memory
from .transformers_peer import BenchmarkedTransformersModel
from .workload import Workload

__all__ = ["ModelSpec", "build_models", "measure", "measure_data", "measure_memory"]

CRITERION = ("matching", "losses", "criterion", "criterion backward")
"""Stages that belong to the criterion."""


@dataclass(frozen=True)
class ModelSpec:
    """Description of a benchmarked model, which can be sent to another process."""

    name: str
    cfg: CfgNode
    kind: str = "ours"
    """Implementation: "ours", "textbook" or "transformers"."""
    trained: bool = False
    """Load the whole model's weights from ``MODEL.WEIGHTS``; otherwise they are random."""


def build_models(specs: Sequence[ModelSpec], workload: Workload) -> list[BenchmarkedModel]:
    """Build models, all with the weights of the first if they fit.

    Raises:
        ImportError, ValueError: if a peer is not installed, or does not support the config.
        OSError, ValueError: see :func:`load_trained_model`.
    """
    first = specs[0]
    if first.trained:
        weights = load_trained_model(first.cfg).state_dict()
    else:
        weights = initial_weights(first.cfg, workload.seed)
    return [_build(spec, workload, weights) for spec in specs]


def _build(spec: ModelSpec, workload: Workload, weights: Mapping[str, Tensor]) -> BenchmarkedModel:
    if spec.kind == "transformers":
        return BenchmarkedTransformersModel(spec.name, spec.cfg, workload, weights)
    build = build_reference_model if spec.kind == "textbook" else build_model
    model = build(spec.cfg)
    if not isinstance(model, MaskFormer):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {type(model).__name__}; expected MaskFormer, because only "
            "its stages can be measured."
        )
    return BenchmarkedMaskFormer(spec.name, spec.cfg, workload, weights, model)


@dataclass
class _Record:
    """Seconds of one model, one entry per round."""

    stages: dict[str, list[float]] = field(default_factory=dict)
    alone: dict[str, list[float]] = field(default_factory=dict)
    """Stages of the network alone."""

    @classmethod
    def of(cls, rounds: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> _Record:
        """Collect the stages, and those of the network alone, of all rounds."""
        record = cls()
        for pair in rounds:
            for columns, seconds in zip((record.stages, record.alone), pair, strict=True):
                for name, value in seconds.items():
                    columns.setdefault(name, []).append(value)
        return record

    @property
    def totals(self) -> list[float]:
        return [sum(stages) for stages in zip(*self.stages.values(), strict=True)]

    @property
    def criterion(self) -> list[float]:
        parts = [self.stages[stage] for stage in CRITERION if stage in self.stages]
        return [sum(stages) for stages in zip(*parts, strict=True)]


def measure(
    models: Sequence[BenchmarkedModel], training: bool, *, iterations: int, warmup: int
) -> list[dict[str, Any]]:
    """Run a step of each model and its network alone, interleaved.

    Args:
        models: The models; the others are compared with the first.
        training: Run steps of training; otherwise inference.
        iterations: Number of rounds that count.
        warmup: Number of rounds before them that do not.

    Returns:
        For each model ``stages``, ``total`` and ``network`` as p50 and p95 in seconds, ratios as
        the median over the rounds, and ``largest_difference`` of logits from the first model's.
    """
    expected = models[0].predict()
    differences = [_largest_difference(model.predict(), expected) for model in models]
    for model in models:
        model.prepare(training)
    mode = "training" if training else "inference"
    with tqdm(total=warmup + iterations, desc=f"rounds of {mode}", disable=None) as progress:
        rounds = interleave(
            [partial(_step_and_network, model) for model in models],
            iterations,
            warmup=warmup,
            after_round=progress.update,
        )
    records = [_Record.of(own) for own in rounds]
    return [
        {
            "name": model.name,
            "mode": mode,
            "precision": str(model.amp_dtype or torch.float32).removeprefix("torch."),
            "largest_difference": difference,
            **_summary(record),
            **_ratios(record, records[0]),
        }
        for model, record, difference in zip(models, records, differences, strict=True)
    ]


def _step_and_network(model: BenchmarkedModel) -> tuple[dict[str, float], dict[str, float]]:
    return model.step(), model.network_alone()


def _largest_difference(
    found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]
) -> float | None:
    """Compare class and mask logits; return None if their shapes differ."""
    pairs = list(zip(found, expected, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return None
    return max(float((one - other).abs().max()) for one, other in pairs)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the 95th percentile."""
    high = quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    return {"p50": median(seconds), "p95": high}


def _ratio(above: Sequence[float], below: Sequence[float]) -> float | None:
    """Return the median ratio over the rounds; None if one side was not measured."""
    if not above or not below:
        return None
    return median(one / other for one, other in zip(above, below, strict=True))


def _summary(record: _Record) -> dict[str, Any]:
    network, maps = record.alone.get("network", []), record.alone.get("semantic_map", [])
    with_map = [sum(both) for both in zip(network, maps, strict=False)]
    return {
        "stages": {stage: percentiles(seconds) for stage, seconds in record.stages.items()},
        "total": percentiles(record.totals),
        "network": percentiles(network) if network else None,
        "total_over_network": _ratio(record.totals, network),
        "semantic_map": percentiles(maps) if maps else None,
        "semantic_map_total_over_network": _ratio(with_map, network),
    }


def _ratios(record: _Record, first: _Record) -> dict[str, Any]:
    """Divide the times of a model by those of the first model."""
    mine, other = record.alone.get("network", []), first.alone.get("network", [])
    return {
        "times_the_first": _ratio(record.totals, first.totals),
        "network_times_the_first": _ratio(mine, other),
        "criterion_times_the_first": _ratio(record.criterion, first.criterion),
    }


def measure_memory(
    specs: Sequence[ModelSpec], workload: Workload, training: bool
) -> list[dict[str, Any]]:
    """Measure the peak memory of a step of each model, in a separate process each.

    Returns:
        For each model ``peak_mib``, see :class:`Peak`, and ``memory_times_the_first``.
    """
    peaks = []
    for spec in tqdm(specs, desc="peak memory", disable=None):
        with ProcessPoolExecutor(
            max_workers=1,
            mp_context=get_context("spawn"),
            initializer=load_plugins,
            initargs=(loaded_plugins(),),
        ) as pool:
            threads = torch.get_num_threads()
            peaks.append(pool.submit(_peak, spec, workload, training, threads).result())
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


def _peak(spec: ModelSpec, workload: Workload, training: bool, threads: int) -> Peak:
    torch.set_num_threads(threads)
    (model,) = build_models([spec], workload)
    model.prepare(training)
    for _ in range(2):
        model.step()  # one-time allocations
    return peak_memory(model.step, model.device)


def measure_data(cfg: CfgNode, training: bool, images: int, iterations: int) -> dict[str, float]:
    """Measure the seconds (p50, p95) in which one process reads and maps a batch of the dataset.

    Raises:
        FileNotFoundError: if the dataset is missing.
        ValueError: if the config names no dataset.
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
    endless = cycle(records)

    def map_batch() -> None:
        for record in islice(endless, images):
            mapper(record)

    with tqdm(total=1 + iterations, desc="batches of data", disable=None) as progress:
        (seconds,) = interleave([timed(map_batch)], iterations, after_round=progress.update)
    return percentiles(seconds)
