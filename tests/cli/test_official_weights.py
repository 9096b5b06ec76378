"""Weights in the formats of the published ones are loaded completely, and can be evaluated."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.config.loading import load_cfg
from tests.helpers.miniature_datasets import ade20k
from tests.helpers.train_net_runs import (
    ROOT,
    SMALL_MODEL,
    SMALL_RUN,
    arguments,
    check_done,
    config_path,
    environment,
    pairs,
    results_of,
    run,
    run_in_turn,
)

MASKFORMER = "ade20k-150/maskformer_R50_bs16_160k.yaml"
PER_PIXEL = "ade20k-150/per_pixel_baseline_plus_R50_bs16_160k.yaml"
DATASET = "ade20k_sem_seg_val"
SMALL = {**SMALL_RUN, **SMALL_MODEL}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    ade20k(root, np.random.default_rng(0))
    return root


def random_weights(shapes, seed=0):
    """Draw an array for each name, scaled so that activations neither vanish nor explode."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1 and "query_embed" not in name:
            values *= np.sqrt(2 / np.prod(shape[1:]), dtype=np.float32)
        elif name.endswith(("norm.weight", "running_var")):
            values = 1 + 0.1 * np.abs(values)
        elif name == "criterion.empty_weight":  # class weights of the loss, "no object" last
            values = np.array([1.0] * (shape[0] - 1) + [0.1], dtype=np.float32)
        weights[name] = values
    return weights


def write_official(path, weights):
    """Write a file like detectron2's model zoo: a pickle of arrays, with its author."""
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "MaskFormer"}))


def predictions_of(output):
    """Return (class, mask) of all semantic segments, which are a stricter check than metrics."""
    segments = json.loads((output / "inference" / "sem_seg_predictions.json").read_text())
    return [(segment["category_id"], segment["segmentation"]["counts"]) for segment in segments]


# The published model


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return random weights with the names and shapes of the published R50, and their file."""
    facts = ROOT / "tests" / "golden" / "published_state_dicts.json.gz"
    shapes = json.loads(gzip.decompress(facts.read_bytes()))[MASKFORMER]
    path = tmp_path_factory.mktemp("weights") / "model_final.pkl"
    weights = random_weights(shapes)
    write_official(path, weights)
    return weights, path


def test_every_weight_of_the_published_model_is_loaded_from_the_file(published):
    weights, path = published
    model = build_model(load_cfg(str(config_path(MASKFORMER)), ["MODEL.DEVICE", "cpu"]))
    Checkpointer(model).load(str(path))
    loaded = model.state_dict()
    assert set(loaded) == set(weights)
    for name, values in weights.items():
        assert np.array_equal(loaded[name].numpy(), values), name


def test_the_published_model_evaluates_on_the_command_line(published, datasets, tmp_path):
    output = tmp_path / "output"
    settings = {**SMALL_RUN, "MODEL.WEIGHTS": published[1]}
    words = arguments(MASKFORMER, output, "--eval-only", settings=settings)
    run(words, cwd=tmp_path, environment=environment(datasets))
    results = results_of(output)
    assert list(results) == [DATASET] and list(results[DATASET]) == ["sem_seg"]
    assert 0 <= results[DATASET]["sem_seg"]["mIoU"] <= 100
    assert len({category for category, _ in predictions_of(output)}) > 1


# The same weights in every format

FORMATS = (".pkl", ".pth", ".safetensors")


def write(path: Path, weights) -> None:
    tensors = {name: torch.from_numpy(values) for name, values in weights.items()}
    if path.suffix == ".pkl":
        write_official(path, weights)
    elif path.suffix == ".pth":
        torch.save({"model": tensors}, path)
    else:
        save_file(tensors, path)


@pytest.fixture(scope="module")
def outputs(datasets, tmp_path_factory):
    """(config, file) -> the output folder of its evaluation; "other.pkl" has other weights."""
    folder = tmp_path_factory.mktemp("formats")
    outputs, runs = {}, {}
    for config in (MASKFORMER, PER_PIXEL):
        model = build_model(load_cfg(str(config_path(config)), pairs(SMALL)))
        shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
        names = [*(f"same{suffix}" for suffix in FORMATS), "other.pkl"]
        for name in names:
            output = folder / config / name
            output.parent.mkdir(parents=True, exist_ok=True)
            weights = output.with_name(f"weights_{name}")
            write(weights, random_weights(shapes, seed=int(name == "other.pkl")))
            outputs[config, name] = output
            settings = {**SMALL, "MODEL.WEIGHTS": weights}
            runs[output] = arguments(config, output, "--eval-only", settings=settings)
    run_in_turn(runs, cwd=folder, environment=environment(datasets))
    return outputs


@pytest.mark.subprocess
@pytest.mark.parametrize("config", [MASKFORMER, PER_PIXEL])
def test_every_format_of_the_same_weights_gives_the_same_results(outputs, config):
    first, *others = (outputs[config, f"same{suffix}"] for suffix in FORMATS)
    check_done(first)
    assert results_of(first)[DATASET]["sem_seg"]["mIoU"] is not None
    assert len({category for category, _ in predictions_of(first)}) > 1
    for output in others:
        check_done(output)
        assert results_of(output) == results_of(first)
        assert predictions_of(output) == predictions_of(first)


@pytest.mark.subprocess
@pytest.mark.parametrize("config", [MASKFORMER, PER_PIXEL])
def test_other_weights_give_other_results(outputs, config):
    output = outputs[config, "other.pkl"]
    check_done(output)
    assert predictions_of(output) != predictions_of(outputs[config, "same.pkl"])
