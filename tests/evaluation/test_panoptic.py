"""Panoptic evaluation: metrics and files equal detectron2's to the last digit."""

from __future__ import annotations

import json

import detectron2.evaluation as d2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from mask_former.evaluation import panoptic as panoptic_evaluation
from mask_former.evaluation.panoptic import COCOPanopticEvaluator

DATASET = "test_panoptic_evaluation"
H, W, BLOCK = 32, 48, 8
# Category id -> contiguous id; the JSON lists them in another order. 70 never occurs.
THINGS, STUFF = {7: 0, 3: 1, 70: 2}, {200: 3, 11: 4, 5: 5}
CATEGORIES = [200, 3, 70, 11, 7, 5]


class Images:
    """A synthetic dataset below a folder, and partly correct predictions."""

    def __init__(self, folder, count, seed=0):
        self.rng = np.random.default_rng(seed)
        self.root, self.json = folder / "panoptic", folder / "panoptic.json"
        self.root.mkdir()
        self.annotations, self.inputs, self.outputs = [], [], []
        for index in range(count):
            self.add(index)
        self.write()

    def add(self, index):
        # A third of the blocks belong to one large segment; 0 is void.
        numbers = self.rng.choice(9, (H // BLOCK, W // BLOCK), p=[0.1, 0.34] + [0.08] * 7)
        segments = np.kron(numbers, np.ones((BLOCK, BLOCK), int))
        ids = [0, *self.rng.choice(np.arange(1, 256**3), 9, replace=False).tolist()]
        classes = [None, *self.rng.choice([200, 3, 11, 7, 5], 9).tolist()]
        classes[3], classes[4] = classes[2], classes[2]  # 2 and 3: crowds of one class
        infos = [  # segment 9 exists only in the JSON
            {
                "id": ids[n],
                "category_id": classes[n],
                "iscrowd": int(n in (2, 3) and index % 2),
                "area": int((segments == n).sum()),
                "bbox": [0, 0, 1, 1],
            }
            for n in range(1, 10)
        ]
        map_ = np.array(ids)[segments]
        rgb = np.stack([map_ % 256, map_ // 256 % 256, map_ // 256**2], axis=-1)
        name = f"{index:03d}.png"
        Image.fromarray(rgb.astype(np.uint8)).save(self.root / name)
        self.annotations.append({"file_name": name, "image_id": index, "segments_info": infos})
        self.inputs.append({"file_name": f"images/{index:03d}.jpg", "image_id": index})
        self.outputs.append(self.prediction(segments, classes))

    def prediction(self, segments, classes):
        found = np.roll(segments, 1, axis=1)
        found[:, :BLOCK] = self.rng.choice(10, (H, BLOCK))
        contiguous, infos = THINGS | STUFF, []
        for n in np.unique(found[found > 0]).tolist():
            category = classes[n] if self.rng.random() < 0.8 else CATEGORIES[n % 2]
            info = {"id": n, "isthing": category in THINGS, "score": float(self.rng.random())}
            infos.append(info | {"category_id": contiguous[category]})
        return {"panoptic_seg": (torch.tensor(found, dtype=torch.int32), infos)}

    def write(self):
        categories = [{"id": c, "name": str(c), "isthing": int(c in THINGS)} for c in CATEGORIES]
        content = {"images": [{"id": a["image_id"]} for a in self.annotations]}
        content |= {"annotations": self.annotations, "categories": categories}
        self.json.write_text(json.dumps(content))
        MetadataCatalog.get(DATASET).set(
            panoptic_json=str(self.json),
            panoptic_root=str(self.root),
            thing_dataset_id_to_contiguous_id=THINGS,
            stuff_dataset_id_to_contiguous_id=STUFF,
        )


@pytest.fixture
def make(tmp_path):
    def images(count=7, seed=0):
        return Images(tmp_path, count, seed)

    yield images
    if DATASET in MetadataCatalog.list():
        MetadataCatalog.remove(DATASET)


def copies(outputs):
    """Copy outputs, because detectron2's evaluator modifies its input."""
    return [
        {"panoptic_seg": (ids.clone(), [dict(info) for info in infos])}
        for ids, infos in (output["panoptic_seg"] for output in outputs)
    ]


def evaluate(evaluator, images, order=None):
    evaluator.reset()
    outputs = copies(images.outputs)
    for index in range(len(outputs)) if order is None else order:
        evaluator.process([images.inputs[index]], [outputs[index]])
    return evaluator.evaluate()


@pytest.mark.parametrize("count, seed", [(1, 0), (2, 1), (7, 2), (30, 3), (31, 4)])
def test_metrics_and_files_equal_detectron2s_to_the_last_digit(make, tmp_path, count, seed):
    images = make(count, seed)
    expected = evaluate(d2.COCOPanopticEvaluator(DATASET, str(tmp_path / "theirs")), images)
    found = evaluate(COCOPanopticEvaluator(DATASET, str(tmp_path / "ours")), images)
    assert list(found["panoptic_seg"].items()) == list(expected["panoptic_seg"].items())
    assert 0 < found["panoptic_seg"]["PQ"] < 100
    written, theirs = (
        (tmp_path / name / "predictions.json").read_text() for name in ("ours", "theirs")
    )
    assert written == theirs


@pytest.mark.parametrize("cores", [1, 3])
def test_metrics_equal_detectron2s_for_any_number_of_cores(make, monkeypatch, cores):
    # The number of cores determines the order in which panopticapi sums up.
    images = make(20)
    monkeypatch.setattr("multiprocessing.cpu_count", lambda: cores)
    monkeypatch.setattr("mask_former.evaluation.panoptic_quality.cpu_count", lambda: cores)
    expected = evaluate(d2.COCOPanopticEvaluator(DATASET), images)
    assert evaluate(COCOPanopticEvaluator(DATASET), images) == expected


def test_the_order_of_the_images_and_the_ranks_is_irrelevant(make, monkeypatch):
    images = make(20)
    expected = evaluate(COCOPanopticEvaluator(DATASET), images)
    order = np.random.default_rng(0).permutation(20)
    assert evaluate(COCOPanopticEvaluator(DATASET), images, order) == expected
    evaluators = [COCOPanopticEvaluator(DATASET) for _ in range(3)]
    for rank, evaluator in enumerate(evaluators):
        evaluator.reset()
        mine = slice(rank, None, 3)
        evaluator.process(images.inputs[mine], copies(images.outputs[mine]))
    monkeypatch.setattr(
        comm, "gather", lambda _: [(e._matches, e._predictions) for e in evaluators]
    )
    assert evaluators[0].evaluate() == expected
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluators[1].evaluate() is None


def test_the_ground_truth_scores_100_and_stuff_alone_has_no_thing_metrics(make, tmp_path):
    images = make(4)
    for annotation, output in zip(images.annotations, images.outputs, strict=True):
        rgb = np.array(Image.open(images.root / annotation["file_name"]), dtype=int)
        ids = torch.from_numpy(rgb @ [1, 256, 256**2])
        infos = annotation["segments_info"] = [
            info | {"category_id": 11, "iscrowd": 0}
            for info in annotation["segments_info"]
            if (ids == info["id"]).any()
        ]
        own = [{"id": info["id"], "category_id": STUFF[11], "isthing": False} for info in infos]
        output["panoptic_seg"] = ids, own
    images.write()
    found = evaluate(COCOPanopticEvaluator(DATASET), images)["panoptic_seg"]
    for metric in ("PQ", "SQ", "RQ"):
        assert found[metric] == found[f"{metric}_st"] == 100
        assert np.isnan(found[f"{metric}_th"])  # where detectron2 divides by zero


def test_the_models_output_is_not_modified(make):
    images = make(2)
    before = copies(images.outputs)
    evaluator = COCOPanopticEvaluator(DATASET)
    evaluator.reset()
    evaluator.process(images.inputs, images.outputs)
    for output, old in zip(images.outputs, before, strict=True):
        assert output["panoptic_seg"][1] == old["panoptic_seg"][1]


def test_without_a_folder_nothing_is_written(make, tmp_path):
    images = make(2)
    before = set(tmp_path.rglob("*"))
    assert evaluate(COCOPanopticEvaluator(DATASET), images)
    assert set(tmp_path.rglob("*")) == before


# Mistakes


def test_an_image_without_prediction_is_an_error(make):
    images = make(4)
    with pytest.raises(ValueError, match=r"2 of 4 images of .*panoptic\.json.*image_id 1"):
        evaluate(COCOPanopticEvaluator(DATASET), images, order=[0, 3])


def with_segments(change):
    def prediction(images):
        ids, infos = images.outputs[0]["panoptic_seg"]
        images.outputs[0]["panoptic_seg"] = change(ids, infos)

    return prediction


def unlisted(ids, infos):
    return ids, infos[:-1]


def absent(ids, infos):
    return ids, [*infos, infos[0] | {"id": 99}]


def twice(ids, infos):
    return ids, [*infos, infos[0]]


def unknown_class(ids, infos):
    return ids, [infos[0] | {"category_id": 77}, *infos[1:]]


def smaller(ids, infos):
    return ids[:, :-1], infos


@pytest.mark.parametrize(
    "change, message",
    [
        (unlisted, "predicted ids are .*segments_info"),
        (absent, "predicted ids are .*99"),
        (twice, "each must occur once"),
        (unknown_class, "category_id 77.*not a category of .*panoptic.json"),
        (smaller, r"prediction is \(32, 47\).*000.png is \(32, 48\)"),
        (lambda ids, infos: (ids, None), "no segments_info"),
    ],
    ids=["unlisted", "absent", "twice", "class", "size", "no infos"],
)
def test_a_prediction_that_does_not_fit_is_an_error_that_names_the_image(make, change, message):
    images = make(1)
    evaluator = COCOPanopticEvaluator(DATASET)
    evaluator.reset()
    output = {"panoptic_seg": change(*images.outputs[0]["panoptic_seg"])}
    with pytest.raises(ValueError, match=f"images/000.jpg: .*{message}"):
        evaluator.process(images.inputs, [output])


def test_mistakes_in_the_ground_truth_are_errors_that_name_the_file(make):
    images = make(2)
    evaluator = COCOPanopticEvaluator(DATASET)
    evaluator.reset()
    with pytest.raises(ValueError, match=r"panoptic\.json has no annotation of the image_id 5"):
        evaluator.process([images.inputs[0] | {"image_id": 5}], images.outputs[:1])
    for change in ({"category_id": 999}, {"area": None}):
        segment = images.annotations[1]["segments_info"][0]
        kept = dict(segment)
        segment.update(change)
        if change.get("area", 0) is None:
            del segment["area"]
        images.write()
        with pytest.raises(ValueError, match=r"panoptic\.json: a segment of 001\.png.*(999|area)"):
            COCOPanopticEvaluator(DATASET)
        segment.update(kept)
    images.write()
    (images.root / "001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"001\.png"):
        evaluate(COCOPanopticEvaluator(DATASET), images)
    images.json.unlink()
    with pytest.raises(FileNotFoundError, match=r"panoptic\.json"):
        COCOPanopticEvaluator(DATASET)


def test_listed_segments_without_pixels_are_accepted_but_unlisted_ones_are_an_error(make):
    images = make(1)
    assert len(images.annotations[0]["segments_info"]) == 9  # the last has no pixel
    evaluate(COCOPanopticEvaluator(DATASET), images)
    del images.annotations[0]["segments_info"][0]
    images.write()
    with pytest.raises(ValueError, match=r"in the PNG but not in 'segments_info'"):
        evaluate(COCOPanopticEvaluator(DATASET), images)


def test_each_png_is_read_once(make, monkeypatch):
    images, read = make(3), []
    real = panoptic_evaluation.read_segment_map

    def count(path, ids, **options):
        read.append(path)
        return real(path, ids, **options)

    monkeypatch.setattr(panoptic_evaluation, "read_segment_map", count)
    evaluate(COCOPanopticEvaluator(DATASET), images)
    assert sorted(read) == sorted(str(images.root / a["file_name"]) for a in images.annotations)
