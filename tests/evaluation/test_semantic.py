"""Semantic evaluation: metrics and files equal detectron2's to the last digit."""

from __future__ import annotations

import json
import logging

import detectron2.evaluation as d2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import sem_seg_evaluation
from PIL import Image

from mask_former.evaluation.semantic import SemSegEvaluator, class_map

DATASET = "test_semantic_evaluation"
H, W, COUNT = 70, 50, 5


class Images:
    """Synthetic label maps, registered as a dataset, and partly correct scores.

    The last two classes never occur in the labels, and the last one not in the predictions either.
    """

    def __init__(self, folder, num_classes, ignore_label, other_ids=False):
        self.rng = np.random.default_rng(num_classes)
        dtype = np.uint16 if max(num_classes, ignore_label) > 255 else np.uint8
        self.records, self.scores = [], []
        for index in range(COUNT):
            classes = self.rng.choice(num_classes - 2, (H // 10, W // 10))
            labels = np.kron(classes, np.ones((10, 10), int))
            self.scores.append(self.score(labels, num_classes))
            labels[self.rng.random((H, W)) < 0.1] = ignore_label
            path = folder / f"{index}.png"
            Image.fromarray(labels.astype(dtype)).save(path)
            self.records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(path)})
        DatasetCatalog.register(DATASET, lambda: self.records)
        names = [f"class {i}" for i in range(num_classes)]
        meta = MetadataCatalog.get(DATASET).set(stuff_classes=names, ignore_label=ignore_label)
        if other_ids:
            ids = {2 * i + 1: i for i in range(num_classes)}
            meta.set(stuff_dataset_id_to_contiguous_id=ids)

    def score(self, labels, num_classes):
        scores = self.rng.random((num_classes, H, W), dtype=np.float32)
        scores[-1] = 0
        np.put_along_axis(scores, np.roll(labels, 3, axis=1)[None], 0.95, axis=0)
        return torch.from_numpy(scores)


@pytest.fixture
def make(tmp_path):
    yield lambda *args, **options: Images(tmp_path, *args, **options)
    if DATASET in DatasetCatalog.list():
        DatasetCatalog.remove(DATASET)
    if DATASET in MetadataCatalog.list():
        MetadataCatalog.remove(DATASET)


def theirs(**options):
    # detectron2's reader asks numpy not to copy, which numpy 2 refuses.
    def read(path, dtype):
        return np.array(Image.open(path), dtype=dtype)

    return d2.SemSegEvaluator(DATASET, sem_seg_loading_fn=read, **options)


def evaluate(evaluator, images):
    evaluator.reset()
    for record, scores in zip(images.records, images.scores, strict=True):
        evaluator.process([record], [{"sem_seg": scores}])
    return evaluator.evaluate()


@pytest.mark.parametrize(
    "num_classes, ignore_label, other_ids",
    [(4, 255, False), (11, 11, True), (30, 255, True), (5, 0, False), (300, 65535, False)],
)
def test_metrics_and_files_equal_detectron2s_to_the_last_digit(
    make, tmp_path, num_classes, ignore_label, other_ids
):
    images = make(num_classes, ignore_label, other_ids=other_ids)
    expected = evaluate(theirs(output_dir=str(tmp_path / "theirs")), images)["sem_seg"]
    found = evaluate(SemSegEvaluator(DATASET, output_dir=str(tmp_path / "ours")), images)["sem_seg"]
    assert list(found) == list(expected)
    np.testing.assert_array_equal([*found.values()], [*expected.values()])  # treats NaN as equal
    assert 0 < found["mIoU"] < 100 and any(np.isnan(v) for v in found.values())
    files = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "ours").iterdir())
    written = [
        json.loads((tmp_path / name / "sem_seg_predictions.json").read_text())
        for name in ("ours", "theirs")
    ]
    assert written[0] == written[1] and len(written[0]) > COUNT


def test_the_log_has_one_line_for_each_class(make, monkeypatch):
    records = []
    listener = logging.Handler()  # other tests may leave handlers on parent loggers
    monkeypatch.setattr(listener, "emit", records.append)
    logger = logging.getLogger(SemSegEvaluator.__module__)
    monkeypatch.setattr(logger, "handlers", [listener])
    logger.setLevel(logging.INFO)
    images = make(4, 255)
    found = evaluate(SemSegEvaluator(DATASET), images)["sem_seg"]
    logger.setLevel(logging.NOTSET)
    (record,) = records
    message = record.getMessage()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in message.splitlines()[1:]]
    names = MetadataCatalog.get(DATASET).stuff_classes
    assert [row[0] for row in rows[2:]] == [*names, "mean"]
    assert rows[-1][1:] == [f"{found['mIoU']:.2f}", f"{found['mACC']:.2f}"]


def test_boundary_metrics_are_missing_where_detectron2_has_none(make, monkeypatch):
    monkeypatch.setattr(sem_seg_evaluation, "_CV2_IMPORTED", False)
    images = make(4, 255)
    expected, found = (evaluate(e, images)["sem_seg"] for e in (theirs(), SemSegEvaluator(DATASET)))
    assert list(found) == list(expected) and not any("Boundary" in name for name in found)
    np.testing.assert_array_equal([*found.values()], [*expected.values()])


def test_the_counts_of_several_ranks_are_added(make, monkeypatch):
    images = make(4, 255)
    expected = evaluate(SemSegEvaluator(DATASET), images)["sem_seg"]
    ranks = [SemSegEvaluator(DATASET) for _ in range(2)]
    for rank, evaluator in enumerate(ranks):
        evaluator.reset()
        outputs = [{"sem_seg": scores} for scores in images.scores[rank::2]]
        evaluator.process(images.records[rank::2], outputs)
    parts = {id(getattr(ranks[0], name)): [getattr(e, name) for e in ranks] for name in STATE}
    monkeypatch.setattr(sem_seg_evaluation, "all_gather", lambda own: parts[id(own)])
    found = ranks[0].evaluate()["sem_seg"]
    np.testing.assert_array_equal([*found.values()], [*expected.values()])


STATE = ("_conf_matrix", "_b_conf_matrix", "_predictions")


def test_without_a_folder_nothing_is_kept_or_written(make, tmp_path):
    images = make(4, 255)
    before = set(tmp_path.rglob("*"))
    evaluator = SemSegEvaluator(DATASET)
    evaluate(evaluator, images)
    assert evaluator._predictions == [] and set(tmp_path.rglob("*")) == before


# Parts


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 1, 1), (11, 100, 30), (257, 49, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_class_map_holds_the_first_of_the_best_classes(shape, dtype):
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(20, shape, generator=g).to(dtype)  # many are equal
    found = class_map(scores)
    assert found.dtype == (np.uint16 if shape[0] > 256 else np.uint8)
    # torch guarantees the first of equal values for max(dim), not for argmax
    assert (found == scores.max(dim=0).indices.numpy()).all()


def test_scores_that_differ_only_in_double_precision_are_distinguished():
    scores = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64).view(2, 1, 1)
    assert class_map(scores) == 1


def test_scores_may_be_a_view_and_require_gradients():
    scores = torch.rand(40, 30, 7, requires_grad=True).permute(2, 0, 1)
    assert (class_map(scores) == scores.argmax(0).numpy()).all()


# Mistakes


def test_labels_that_are_not_a_class_are_an_error_that_names_the_file(make, tmp_path):
    images = make(4, 255)
    labels = np.full((H, W), 4, dtype=np.uint8)
    labels[0, :2] = 9, 255
    Image.fromarray(labels).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"0\.png.*\[4, 9\]; expected 0 … 3, and 255"):
        evaluate(SemSegEvaluator(DATASET), images)


def test_label_maps_of_another_size_or_missing_ones_are_errors_that_name_the_file(make, tmp_path):
    images = make(4, 255)
    images.scores[0] = images.scores[0][:, :-1]
    with pytest.raises(ValueError, match=r"0\.jpg.*\(69, 50\).*0\.png is \(70, 50\)"):
        evaluate(SemSegEvaluator(DATASET), images)
    (tmp_path / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.png"):
        evaluate(SemSegEvaluator(DATASET), images)
