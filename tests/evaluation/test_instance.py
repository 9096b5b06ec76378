"""Instance evaluation: COCO's AP for every ground-truth format and numbering of classes."""

from __future__ import annotations

import json

import detectron2.evaluation as d2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as coco_mask

from mask_former.evaluation.build import build_evaluator
from mask_former.evaluation.instance import COCOEvaluator

DATASET = "test_instance_evaluation"
H, W, BLOCK = 48, 64, 16
# Category id -> contiguous id: stuff lies in between, and the two orders differ.
THINGS, STUFF = {30: 1, 7: 3, 12: 4}, {5: 0, 40: 2}
NAMES = {30: "cat", 7: "dog", 12: "cow", 5: "wall", 40: "sky"}


class Scenes:
    """Synthetic panoptic annotations below a folder; every 16×16 block is a segment."""

    def __init__(self, folder, count=3, seed=0):
        rng = np.random.default_rng(seed)
        self.folder = folder
        (folder / "png").mkdir()
        self.images, self.annotations, self.objects = [], [], []
        for number in range(count):
            ids = np.arange(1, 13).reshape(H // BLOCK, W // BLOCK)
            ids = ids.repeat(BLOCK, 0).repeat(BLOCK, 1)
            ids[:4] = 0
            rgb = np.stack([ids, 0 * ids, 0 * ids], -1).astype(np.uint8)
            Image.fromarray(rgb).save(folder / "png" / f"{number}.png")
            categories = rng.permutation([*THINGS, *THINGS, *THINGS, *STUFF, 30]).tolist()
            infos = [
                {"id": i, "category_id": c, "area": int((ids == i).sum()), "iscrowd": 0}
                for i, c in enumerate(categories, start=1)
            ]
            size = {"height": H, "width": W}
            self.images.append({"id": number, "file_name": f"{number}.jpg", **size})
            self.annotations.append(
                {"image_id": number, "file_name": f"{number}.png", "segments_info": infos}
            )
            self.objects.append([(c, ids == i) for i, c in enumerate(categories, 1) if c in THINGS])

    def panoptic_json(self):
        categories = [
            {"id": c, "name": name, "isthing": int(c in THINGS)} for c, name in NAMES.items()
        ]
        content = {"images": self.images, "annotations": self.annotations, "categories": categories}
        path = self.folder / "panoptic.json"
        path.write_text(json.dumps(content))
        return {"panoptic_json": str(path), "panoptic_root": str(self.folder / "png")}

    def instance_json(self, first_id=1, complete=True):
        annotations = []
        for number, objects in enumerate(self.objects):
            for category, mask in objects:
                rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
                annotation = {
                    "id": first_id + len(annotations),
                    "image_id": number,
                    "category_id": category,
                    "segmentation": {"size": [H, W], "counts": rle["counts"].decode()},
                }
                if complete:
                    annotation["iscrowd"], annotation["area"] = 0, int(mask.sum())
                    annotation["bbox"] = coco_mask.toBbox(rle).tolist()
                annotations.append(annotation)
        categories = [{"id": c, "name": NAMES[c]} for c in THINGS]
        content = {"images": self.images, "annotations": annotations, "categories": categories}
        path = self.folder / "instances.json"
        path.write_text(json.dumps(content))
        return {"json_file": str(path)}

    def outputs(self, classes, change=lambda masks: masks):
        """Yield one output per image: its objects, with category ids mapped by ``classes``."""
        for objects in self.objects:
            masks = change(torch.from_numpy(np.stack([mask for _, mask in objects])))
            instances = Instances((H, W), pred_masks=masks)
            edges = [
                [f(mask.any(axis).nonzero()) + last for last, f in ((0, min), (1, max))]
                for mask in masks
                for axis in (0, 1)
            ]
            boxes = torch.tensor(edges, dtype=torch.float).reshape(-1, 2, 2).transpose(1, 2)
            instances.pred_boxes = Boxes(boxes.reshape(-1, 4))
            instances.scores = torch.ones(len(objects))
            instances.pred_classes = torch.tensor([classes[c] for c, _ in objects])
            yield {"instances": instances}


@pytest.fixture
def scenes(tmp_path):
    return Scenes(tmp_path)


@pytest.fixture
def dataset():
    """A function that sets the dataset's metadata, which is removed after the test."""
    yield lambda **metadata: MetadataCatalog.get(DATASET).set(**metadata)
    MetadataCatalog.pop(DATASET, None)
    DatasetCatalog.pop(DATASET, None)


def evaluate(scenes, evaluator, classes=THINGS, **options):
    evaluator.reset()
    for image, output in zip(scenes.images, scenes.outputs(classes, **options), strict=True):
        example = {"image_id": image["id"], "file_name": image["file_name"]}
        evaluator.process([example], [output])
    return evaluator.evaluate()


def assert_perfect(results):
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)
        for name in ("cat", "dog", "cow"):
            assert results[task][f"AP-{name}"] == pytest.approx(100)


def test_perfect_predictions_of_a_panoptic_dataset_have_an_ap_of_100(scenes, dataset, tmp_path):
    dataset(**scenes.panoptic_json(), json_file=None, thing_dataset_id_to_contiguous_id=THINGS)
    before = set(MetadataCatalog.list())
    assert_perfect(evaluate(scenes, COCOEvaluator(DATASET, str(tmp_path / "out"))))
    assert set(MetadataCatalog.list()) == before
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert {entry["category_id"] for entry in written} == set(THINGS)


@pytest.mark.parametrize("first_id, complete", [(1, True), (0, True), (0, False)])
def test_perfect_predictions_have_an_ap_of_100_with_ids_from_0_and_missing_keys(
    scenes, dataset, first_id, complete
):
    """COCO's code treats the id 0 as "no match", and fails without area or box."""
    dataset(**scenes.instance_json(first_id, complete), thing_dataset_id_to_contiguous_id=THINGS)
    assert_perfect(evaluate(scenes, COCOEvaluator(DATASET)))


def test_without_an_id_map_classes_are_the_categories_by_ascending_id(scenes, dataset):
    dataset(**scenes.instance_json())
    assert_perfect(evaluate(scenes, COCOEvaluator(DATASET), {7: 0, 12: 1, 30: 2}))


def shifted(masks):
    """Shift mask i by i pixels to the right."""
    return torch.stack([mask.roll(index, dims=1) for index, mask in enumerate(masks)])


def test_imperfect_predictions_have_detectron2s_ap(scenes, dataset):
    ids = {7: 0, 12: 1, 30: 2}
    files = scenes.instance_json()
    dataset(**files, thing_dataset_id_to_contiguous_id=ids, thing_classes=["dog", "cow", "cat"])
    found = evaluate(scenes, COCOEvaluator(DATASET), ids, change=shifted)
    expected = evaluate(scenes, d2.COCOEvaluator(DATASET), ids, change=shifted)
    for task in ("bbox", "segm"):
        assert found[task] == pytest.approx(expected[task], rel=0, abs=0, nan_ok=True)
    assert 5 < found["segm"]["AP"] < 95


def test_without_predictions_the_ap_of_boxes_and_masks_is_nan(scenes, dataset):
    dataset(**scenes.panoptic_json(), json_file=None, thing_dataset_id_to_contiguous_id=THINGS)
    evaluator = COCOEvaluator(DATASET)
    evaluator.reset()
    for image, output in zip(scenes.images, scenes.outputs(THINGS), strict=True):
        evaluator.process([{"image_id": image["id"]}], [{"instances": output["instances"][:0]}])
    results = evaluator.evaluate()
    assert set(results) == {"bbox", "segm"}
    assert np.isnan(results["segm"]["AP"]) and np.isnan(results["bbox"]["AP"])


def test_swapped_classes_have_an_ap_of_0(scenes, dataset):
    dataset(**scenes.panoptic_json(), json_file=None, thing_dataset_id_to_contiguous_id=THINGS)
    swapped = {30: 1, 7: 4, 12: 3}
    results = evaluate(scenes, COCOEvaluator(DATASET), swapped)["segm"]
    assert results["AP-cat"] == pytest.approx(100)
    assert results["AP-dog"] == results["AP-cow"] == pytest.approx(0)


def test_crowds_of_a_panoptic_dataset_are_ignored(scenes, dataset):
    for annotation in scenes.annotations:
        crowd = next(s for s in annotation["segments_info"] if s["category_id"] in THINGS)
        crowd["iscrowd"] = 1
    dataset(**scenes.panoptic_json(), json_file=None, thing_dataset_id_to_contiguous_id=THINGS)
    scenes.objects = [objects[1:] for objects in scenes.objects]
    assert_perfect(evaluate(scenes, COCOEvaluator(DATASET)))


def test_a_dataset_without_annotation_files_is_converted_by_detectron2(scenes, dataset, tmp_path):
    ids = {7: 0, 12: 1, 30: 2}
    records = []
    for image, objects in zip(scenes.images, scenes.objects, strict=True):
        annotations = []
        for category, mask in objects:
            rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            box = {"bbox": coco_mask.toBbox(rle).tolist(), "bbox_mode": 1}
            annotations.append({"category_id": ids[category], "segmentation": rle, **box})
        size = {"height": H, "width": W, "image_id": image["id"]}
        records.append({"file_name": image["file_name"], **size, "annotations": annotations})
    DatasetCatalog.register(DATASET, lambda: records)
    dataset(thing_classes=["dog", "cow", "cat"], thing_dataset_id_to_contiguous_id=ids)
    assert_perfect(evaluate(scenes, COCOEvaluator(DATASET, str(tmp_path / "out")), ids))


def test_the_prediction_is_not_modified(scenes, dataset):
    dataset(**scenes.panoptic_json(), json_file=None, thing_dataset_id_to_contiguous_id=THINGS)
    evaluator = COCOEvaluator(DATASET)
    evaluator.reset()
    output = next(scenes.outputs(THINGS))
    before = output["instances"].pred_classes.clone()
    evaluator.process([{"image_id": 0}], [output])
    assert torch.equal(output["instances"].pred_classes, before)


@pytest.mark.parametrize("kind", ["coco_panoptic_seg", "ade20k_panoptic_seg"])
def test_ap_and_pq_are_both_measured_on_a_panoptic_dataset(cfg, scenes, dataset, kind, tmp_path):
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON, test.PANOPTIC_ON, test.INSTANCE_ON = False, True, True
    dataset(
        **scenes.panoptic_json(),
        json_file=None,
        evaluator_type=kind,
        thing_dataset_id_to_contiguous_id=THINGS,
        stuff_dataset_id_to_contiguous_id=STUFF,
    )
    evaluator = build_evaluator(cfg, DATASET)
    evaluator.reset()
    for image, annotation, output in zip(
        scenes.images, scenes.annotations, scenes.outputs(THINGS), strict=True
    ):
        png = np.asarray(Image.open(scenes.folder / "png" / annotation["file_name"]))
        infos = [
            {
                "id": s["id"],
                "category_id": (THINGS | STUFF)[s["category_id"]],
                "isthing": s["category_id"] in THINGS,
            }
            for s in annotation["segments_info"]
        ]
        output["panoptic_seg"] = torch.from_numpy(png[..., 0].astype(np.int32)), infos
        evaluator.process([{"image_id": image["id"], "file_name": image["file_name"]}], [output])
    results = evaluator.evaluate()
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert_perfect(results)


# Errors


def test_a_predicted_class_that_is_not_a_thing_is_an_error(scenes, dataset):
    dataset(**scenes.panoptic_json(), json_file=None, thing_dataset_id_to_contiguous_id=THINGS)
    message = r"0\.jpg: an instance has the class 0, which is not a thing of .*one of \[1, 3, 4\]"
    with pytest.raises(ValueError, match=message):
        evaluate(scenes, COCOEvaluator(DATASET), {30: 0, 7: 0, 12: 0})


def test_the_error_for_a_missing_json_names_it(dataset, tmp_path):
    dataset(json_file=str(tmp_path / "gone.json"), panoptic_json="p.json")
    with pytest.raises(FileNotFoundError, match=r"gone\.json, the json_file of .*INSTANCE_ON to F"):
        COCOEvaluator(DATASET)


def test_categories_that_differ_from_the_metadata_are_an_error(scenes, dataset):
    dataset(**scenes.instance_json(), thing_dataset_id_to_contiguous_id={30: 0, 7: 1})
    with pytest.raises(ValueError, match=r"have the ids \[7, 12, 30\], .*metadata \[7, 30\]"):
        COCOEvaluator(DATASET)


def test_broken_ground_truth_is_an_error_that_names_the_annotation(scenes, dataset):
    files = scenes.instance_json(complete=False)
    with open(files["json_file"]) as file:
        content = json.load(file)
    content["annotations"][2]["segmentation"] = []
    with open(files["json_file"], "w") as file:
        json.dump(content, file)
    dataset(**files)
    with pytest.raises(ValueError, match=rf"ground truth of {DATASET}: annotation id 3: its seg"):
        COCOEvaluator(DATASET)
