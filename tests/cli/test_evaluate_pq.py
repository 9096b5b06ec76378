"""The panoptic quality of label maps equals panopticapi's with each class as one segment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from mask_former.cli import evaluate_pq as tool

NAMES = ["sky", "road", "car", "tree", "never"]
K = len(NAMES)
DATASET = "pq_test_val"


def scene(generator, height=24, width=32):
    """Return labels (K: unlabelled) and a partly right prediction, with IoUs below and above ½."""
    labels = generator.integers(0, K - 1, (height // 8, width // 8)).repeat(8, 0).repeat(8, 1)
    prediction = np.roll(labels, generator.integers(-3, 4, 2), (0, 1))
    prediction[generator.random(labels.shape) < 0.2] = generator.integers(0, K - 1)
    labels[generator.random(labels.shape) < 0.1] = K
    top, left = generator.integers(0, 16, 2)
    labels[top : top + 8, left : left + 12] = K
    return labels, prediction


def scenes(number, seed=0):
    generator = np.random.default_rng(seed)
    return [scene(generator) for _ in range(number)]


# The numbers


def panopticapi_result(images, folder):
    """Run panopticapi on the same maps, each class one segment of id class + 1; 0 is unlabelled."""
    evaluation = pytest.importorskip("panopticapi.evaluation")
    annotations = []
    for index, pair in enumerate(images):
        both = []
        for kind, labels in zip(("gt", "pred"), pair, strict=True):
            ids = np.where(labels == K, 0, labels + 1).astype(np.uint8)
            (folder / kind).mkdir(exist_ok=True)
            rgb = np.stack([ids, np.zeros_like(ids), np.zeros_like(ids)], -1)
            Image.fromarray(rgb).save(folder / kind / f"{index}.png")
            segments = [
                {"id": int(i), "category_id": int(i) - 1, "iscrowd": 0, "area": int(area)}
                for i, area in zip(*np.unique(ids, return_counts=True), strict=True)
                if i
            ]
            info = {"image_id": index, "file_name": f"{index}.png", "segments_info": segments}
            both.append(info)
        annotations.append(tuple(both))
    categories = {i: {"isthing": 0} for i in range(K)}
    statistics = evaluation.pq_compute_single_core(
        0, annotations, str(folder / "gt"), str(folder / "pred"), categories
    )
    return statistics.pq_average(categories, isthing=None)


@pytest.mark.parametrize("seed", range(4))
def test_results_equal_panopticapis_with_each_class_as_one_segment(tmp_path, seed):
    images = scenes(12, seed)
    means, by_class = panopticapi_result(images, tmp_path)
    result = tool.evaluate(images, NAMES)
    assert 0 < means["pq"] < 1 and 0.5 < means["sq"] < 1
    assert result["classes"] == means["n"] == K - 1
    for metric in ("PQ", "SQ", "RQ"):
        assert result[metric] == pytest.approx(100 * means[metric.lower()], rel=1e-12)
        for index, name in enumerate(NAMES[:-1]):
            expected = 100 * by_class[index][metric.lower()]
            assert result[f"{metric}-{name}"] == pytest.approx(expected, rel=1e-12)


def test_segments_that_are_half_or_more_unlabelled_count_as_in_panopticapi(tmp_path):
    void, sky, road, car = K, 0, 1, 2
    row = np.array
    images = [
        # car: exactly half of it on void counts as a false positive; one pixel more does not
        (row([[void, void, sky, sky, sky]]), row([[car, car, car, car, sky]])),
        (row([[void, void, void, sky, sky]]), row([[car, car, car, car, car]])),
        # road: an IoU of ½ does not match; without the void pixel in the union, IoU is ⅔
        (row([[road, road, sky, sky]]), row([[road, sky, sky, sky]])),
        (row([[road, road, void, sky]]), row([[road, road, road, road]])),
    ]
    means, by_class = panopticapi_result(images, tmp_path)
    result = tool.evaluate(images, NAMES)
    assert result["PQ-car"] == by_class[car]["pq"] == 0 and means["n"] == 3
    assert result["PQ"] == pytest.approx(100 * means["pq"], rel=1e-12)
    assert result["RQ-road"] == pytest.approx(100 * by_class[road]["rq"], rel=1e-12)


def test_perfect_predictions_score_100_and_absent_classes_do_not_count():
    images = [(labels, labels) for labels, _ in scenes(3)]
    result = tool.evaluate(images, NAMES)
    assert [result[metric] for metric in ("PQ", "SQ", "RQ")] == [100, 100, 100]
    assert result["classes"] == K - 1 and "PQ-never" not in result


def test_a_dataset_without_a_labelled_pixel_is_refused():
    nothing = np.full((2, 2), K)
    with pytest.raises(ValueError, match="no labelled pixel"):
        tool.evaluate([(nothing, np.zeros((2, 2), int))], NAMES)


# The files


@pytest.fixture(params=[False, True], ids=["plain ids", "dataset ids"])
def dataset(request, tmp_path):
    """Register three images, and return their predictions by ``file_name``."""
    examples, predictions = [], {}
    for index, (labels, prediction) in enumerate(scenes(3)):
        stored = np.where(labels == K, 255, labels).astype(np.uint8)
        label_file = tmp_path / f"{index}_labels.png"
        Image.fromarray(stored).save(label_file)
        file_name = str(tmp_path / "images" / f"{index}.jpg")
        examples.append({"file_name": file_name, "sem_seg_file_name": str(label_file)})
        predictions[file_name] = prediction
    DatasetCatalog.register(DATASET, lambda: examples)
    metadata = {"stuff_classes": NAMES, "ignore_label": 255}
    if request.param:
        metadata["stuff_dataset_id_to_contiguous_id"] = {i: K - 1 - i for i in range(K)}
    MetadataCatalog.get(DATASET).set(**metadata)
    yield predictions
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def write_json(predictions, folder):
    """Write the predictions in the JSON format of detectron2's evaluator."""
    evaluator = SemSegEvaluator(DATASET, distributed=False)
    evaluator.reset()
    segments = []
    for file_name, labels in predictions.items():
        segments += evaluator.encode_json_sem_seg(labels, file_name)
    path = folder / "sem_seg_predictions.json"
    path.write_text(json.dumps(segments))
    return path


def write_folder(predictions, folder):
    path = folder / "maps"
    path.mkdir()
    for file_name, labels in predictions.items():
        Image.fromarray(labels.astype(np.uint8)).save(path / f"{Path(file_name).stem}.png")
    return path


def run(predictions, *options):
    return tool.main(["--dataset", DATASET, "--predictions", str(predictions), *map(str, options)])


@pytest.mark.parametrize("write", [write_json, write_folder])
def test_the_command_reads_detectron2s_json_and_folders(dataset, tmp_path, capsys, write):
    output = tmp_path / "results" / "pq.json"
    assert run(write(dataset, tmp_path), "--json", output) == 0
    expected = tool.evaluate(scenes(3), NAMES)
    assert json.loads(output.read_text()) == {DATASET: {"semantic_pq": expected}}
    head, numbers = capsys.readouterr().out.splitlines()
    assert head.split() == ["PQ", "SQ", "RQ", "classes"]
    assert numbers.split() == [*(f"{expected[m]:.2f}" for m in ("PQ", "SQ", "RQ")), "4"]


def test_a_file_that_detectron2s_evaluator_wrote_is_read(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("detectron2.evaluation.sem_seg_evaluation._CV2_IMPORTED", False)
    evaluator = SemSegEvaluator(
        DATASET,
        distributed=False,
        output_dir=str(tmp_path),
        sem_seg_loading_fn=lambda path, dtype: np.array(Image.open(path), dtype),
    )
    evaluator.reset()
    for file_name, labels in dataset.items():
        scores = torch.nn.functional.one_hot(torch.from_numpy(labels), K).permute(2, 0, 1)
        evaluator.process([{"file_name": file_name}], [{"sem_seg": scores}])
    evaluator.evaluate()
    assert run(tmp_path / "sem_seg_predictions.json") == 0
    assert f"{tool.evaluate(scenes(3), NAMES)['PQ']:.2f}" in capsys.readouterr().out


def broken_json(dataset, folder, change):
    path = write_json(dataset, folder)
    segments = json.loads(path.read_text())
    change(segments)
    path.write_text(json.dumps(segments))
    return path


def rename(segments):
    for segment in segments:
        segment["file_name"] = segment["file_name"].replace("0.jpg", "9.jpg")


def shrink(segments):
    segments[1]["segmentation"] = {"size": [1, 2], "counts": "02"}


@pytest.mark.parametrize(
    "change, expected",
    [
        (rename, ["no prediction for", "0.jpg", "9.jpg"]),
        (lambda segments: segments[0].update(category_id=77), ["0.jpg", "no category_id 77"]),
        (lambda segments: segments.insert(0, segments[0]), ["0.jpg", "overlaps another"]),
        (lambda segments: segments[0].pop("segmentation"), ["not a list of segments"]),
        (shrink, ["0.jpg", "masks of [24, 32] and of [1, 2] (H, W)"]),
    ],
)
def test_a_mistake_in_the_json_is_an_error_of_one_line(dataset, tmp_path, capsys, change, expected):
    assert run(broken_json(dataset, tmp_path, change)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    for words in expected:
        assert words in error


def test_a_mistake_in_label_maps_is_an_error_of_one_line(dataset, tmp_path, capsys):
    folder = write_folder(dataset, tmp_path)

    def fails_with(*expected, predictions=folder):
        assert run(predictions) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert all(words in error for words in expected), error

    Image.fromarray(np.full((24, 32), 99, np.uint8)).save(folder / "0.png")
    fails_with("0.png has the labels [99]; expected 0 … 4, and 255")
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(folder / "0.png")
    fails_with("0.png has 3 channels")
    Image.fromarray(np.zeros((24, 31), np.uint8)).save(folder / "0.png")
    fails_with("0.jpg", "prediction is (24, 31)", "0_labels.png are (24, 32)")
    (folder / "0.png").unlink()
    fails_with("0.png")
    fails_with("no.json", predictions=tmp_path / "no.json")
    (tmp_path / "text.json").write_text("no json")
    fails_with("text.json is not a list of segments", predictions=tmp_path / "text.json")


def test_an_unknown_or_unsuitable_dataset_is_an_error_of_one_line(tmp_path, capsys):
    assert tool.main(["--dataset", "no_such", "--predictions", str(tmp_path)]) == 1
    assert "no dataset 'no_such'" in capsys.readouterr().err
    assert tool.main(["--dataset", "coco_2017_val", "--predictions", str(tmp_path)]) == 1
    assert "has no semantic labels" in capsys.readouterr().err
