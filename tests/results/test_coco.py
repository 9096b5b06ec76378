"""Saved results, loaded by COCO's evaluators, give the scores of a direct evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from panopticapi.evaluation import pq_compute
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask_former.data.formats.coco_instances import instances_of_panoptic
from mask_former.evaluation.instance import COCOEvaluator
from mask_former.evaluation.panoptic import COCOPanopticEvaluator
from mask_former.results import PanopticResult, Result, ResultWriter, from_detectron2
from tests.helpers.scenes import CATEGORY_IDS, CLASSES, write_dataset

DATASET = "test_saved_results"


@pytest.fixture
def scenes(tmp_path):
    """Scenes with predictions, whose ground truth is a registered dataset."""
    found = write_dataset(tmp_path / "ground_truth")
    of_kind = {
        kind: {d: c for c, d in CATEGORY_IDS.items() if CLASSES.is_thing[c] == (kind == "thing")}
        for kind in ("thing", "stuff")
    }
    MetadataCatalog.get(DATASET).set(
        panoptic_json=str(tmp_path / "ground_truth" / "panoptic.json"),
        panoptic_root=str(tmp_path / "ground_truth" / "panoptic"),
        json_file=None,
        thing_dataset_id_to_contiguous_id=of_kind["thing"],
        stuff_dataset_id_to_contiguous_id=of_kind["stuff"],
    )
    yield found
    MetadataCatalog.pop(DATASET, None)


def save(scenes, folder, formats, **options):
    with ResultWriter(folder, formats, category_ids=CATEGORY_IDS, **options) as writer:
        for scene in scenes:
            result = from_detectron2(scene.outputs, scene.image, CLASSES)
            writer.write(result, scene.name, scene.image_id)


def evaluate(evaluator, scenes):
    evaluator.reset()
    for scene in scenes:
        example = {"image_id": scene.image_id, "file_name": f"{scene.name}.jpg"}
        evaluator.process([example], [scene.outputs])
    return evaluator.evaluate()


# Round trips


def test_panoptic_results_give_panopticapi_the_scores_of_a_direct_evaluation(scenes, tmp_path):
    save(scenes, tmp_path / "saved", ["panoptic-coco"])
    found = pq_compute(
        str(tmp_path / "ground_truth/panoptic.json"), str(tmp_path / "saved/panoptic.json")
    )
    direct = evaluate(COCOPanopticEvaluator(DATASET), scenes)["panoptic_seg"]
    assert 20 < direct["PQ"] < 95
    for group, ending in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for metric in ("PQ", "SQ", "RQ"):
            assert 100 * found[group][metric.lower()] == direct[f"{metric}{ending}"]


def test_instance_results_give_pycocotools_the_scores_of_a_direct_evaluation(scenes, tmp_path):
    save(scenes, tmp_path / "saved", ["instances-coco"])
    panoptic = json.loads((tmp_path / "ground_truth/panoptic.json").read_text())
    path = tmp_path / "ground_truth/instances.json"
    path.write_text(json.dumps(instances_of_panoptic(panoptic, tmp_path / "ground_truth/panoptic")))
    ground_truth = COCO(str(path))
    found = ground_truth.loadRes(str(tmp_path / "saved/instances.json"))
    direct = evaluate(COCOEvaluator(DATASET), scenes)
    for task in ("bbox", "segm"):
        evaluation = COCOeval(ground_truth, found, task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert 20 < direct[task]["AP"] < 95
        for index, metric in enumerate(("AP", "AP50", "AP75")):
            assert 100 * evaluation.stats[index] == direct[task][metric]


# Contents of the files


def test_the_panoptic_json_describes_every_image_segment_and_class(scenes, tmp_path):
    save(scenes, tmp_path / "saved", ["panoptic-coco"])
    content = json.loads((tmp_path / "saved/panoptic.json").read_text())
    assert [(c["id"], c["name"], c["isthing"]) for c in content["categories"]] == [
        (CATEGORY_IDS[i], name, int(CLASSES.is_thing[i])) for i, name in enumerate(CLASSES.names)
    ]
    assert [image["id"] for image in content["images"]] == [scene.image_id for scene in scenes]
    for scene, image, entry in zip(scenes, content["images"], content["annotations"], strict=True):
        assert entry["image_id"] == image["id"]
        assert (image["height"], image["width"]) == scene.image.shape[:2]
        rgb = np.asarray(Image.open(tmp_path / "saved/panoptic" / entry["file_name"])).astype(int)
        ids, segments = scene.outputs["panoptic_seg"]
        assert (rgb @ [1, 256, 256**2] == ids.numpy()).all()
        for info, segment in zip(entry["segments_info"], segments, strict=True):
            y, x = np.nonzero(ids.numpy() == segment["id"])
            box = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert (info["id"], info["area"], info["bbox"]) == (segment["id"], len(y), box)
            assert info["category_id"] == CATEGORY_IDS[segment["category_id"]]
            assert info["score"] == segment["score"] and info["iscrowd"] == 0


def test_instances_are_saved_with_mask_and_box_as_left_top_width_height(scenes, tmp_path):
    save(scenes[:1], tmp_path / "saved", ["instances-coco"])
    entries = json.loads((tmp_path / "saved/instances.json").read_text())
    result = from_detectron2(scenes[0].outputs, scenes[0].image, CLASSES).instances
    assert len(entries) == len(result) > 1
    assert [entry["score"] for entry in entries] == sorted(result.scores.tolist(), reverse=True)
    for entry, mask, class_id in zip(entries, result.masks, result.class_ids, strict=True):
        assert (coco_mask.decode(entry["segmentation"]) == mask).all()
        y, x = np.nonzero(mask)
        assert entry["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert entry["category_id"] == CATEGORY_IDS[class_id]
        assert entry["image_id"] == scenes[0].image_id


def test_default_category_ids_count_from_1_and_image_ids_are_the_names(scenes, tmp_path):
    result = from_detectron2(scenes[0].outputs, scenes[0].image, CLASSES, "a/street.jpg")
    result.save(tmp_path / "saved", "panoptic-coco", "instances-coco")
    content = json.loads((tmp_path / "saved/panoptic.json").read_text())
    entries = json.loads((tmp_path / "saved/instances.json").read_text())
    categories = json.loads((tmp_path / "saved/categories.json").read_text())
    assert categories == content["categories"]
    assert [c["id"] for c in categories] == list(range(1, len(CLASSES.names) + 1))
    infos = content["annotations"][0]["segments_info"]
    classes = [segment["category_id"] for segment in result.panoptic.segments]
    assert [info["category_id"] for info in infos] == [c + 1 for c in classes]
    assert [e["category_id"] for e in entries] == [c + 1 for c in result.instances.class_ids]
    assert {e["image_id"] for e in [*entries, *content["annotations"]]} == {"street"}
    assert content["images"][0]["file_name"] == "street.jpg"


def test_images_without_segments_have_entries_too(tmp_path):
    image = np.zeros((6, 8, 3), np.uint8)
    panoptic = PanopticResult(np.zeros((6, 8), np.int32), [])
    Result(image, CLASSES, panoptic=panoptic).save(tmp_path, "panoptic-coco")
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert content["annotations"][0]["segments_info"] == []
    assert not np.asarray(Image.open(tmp_path / "panoptic/result.png")).any()


# Errors


def test_missing_and_duplicate_category_ids_are_errors(scenes, tmp_path):
    class_id = int(scenes[0].outputs["instances"].pred_classes[0])
    ids = {c: d for c, d in CATEGORY_IDS.items() if c != class_id}
    result = from_detectron2(scenes[0].outputs, scenes[0].image, CLASSES)
    writer = ResultWriter(tmp_path, ["instances-coco"], category_ids=ids)
    with pytest.raises(ValueError, match=rf"000101: class {class_id} has no category id"):
        writer.write(result, "000101")
    with pytest.raises(ValueError, match="gives two classes the same id"):
        ResultWriter(tmp_path / "b", ["instances-coco"], category_ids={0: 4, 1: 4}).write(
            result, "a"
        )


def test_ids_and_segments_that_do_not_match_are_an_error(tmp_path):
    image, ids = np.zeros((6, 8, 3), np.uint8), np.ones((6, 8), np.int32)
    segments = [{"id": 2, "isthing": True, "category_id": 0, "score": 0.5}]
    with pytest.raises(ValueError, match=r"has the ids \[1\], but the segments have \[2\]"):
        Result(image, CLASSES, panoptic=PanopticResult(ids, segments)).save(
            tmp_path, "panoptic-coco"
        )
    assert not (tmp_path / "panoptic").joinpath("result.png").exists()
