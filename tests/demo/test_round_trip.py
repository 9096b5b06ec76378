"""COCO's own code gives the files of demo/demo.py the same scores as a direct evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model
from panopticapi.evaluation import pq_compute
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from mask_former.cli import predict
from mask_former.config.loading import load_cfg
from mask_former.data.datasets.catalog import register_tables
from mask_former.data.formats.coco_instances import instances_of_panoptic
from mask_former.data.formats.coco_panoptic import segments_info
from mask_former.data.shapes.writer import Settings, generate
from mask_former.engine import Trainer
from mask_former.predictor.predictor import MaskFormerPredictor
from tests.helpers.tiny_model import tiny_settings

DATASET, NUM_CLASSES, NUM_IMAGES = "shapes_panoptic_val", 12, 5


class Identity(nn.Module):
    """A backbone that returns the images."""

    def forward(self, images):
        return images


class NearlyRight(nn.Module):
    """A head that returns the ground truth of known images with errors.

    Some masks are shifted, some have a wrong class, some are missing.
    """

    def __init__(self, folder, mean, std):
        super().__init__()
        truth = json.loads((folder / "panoptic_val.json").read_text())
        self.mean, self.std = mean, std
        self.known = {}
        for annotation in truth["annotations"]:
            name = annotation["file_name"]
            pixels = np.asarray(Image.open(folder / "val" / name))
            colors = np.asarray(Image.open(folder / "panoptic_val" / name)).astype(np.int64)
            ids = colors @ np.array([1, 256, 256**2])
            self.known[self.key(pixels)] = (annotation["image_id"], ids, annotation)

    @staticmethod
    def key(pixels):
        return pixels.astype(np.uint8).tobytes()

    def forward(self, images):
        pixels = (images * self.std + self.mean).round().permute(0, 2, 3, 1).numpy()
        found = [self.guess(*self.known[self.key(one)]) for one in pixels]
        return {
            "pred_logits": torch.stack([f[0] for f in found]),
            "pred_masks": torch.stack([f[1] for f in found]),
        }

    def guess(self, seed, ids, annotation):
        g = torch.Generator().manual_seed(seed)
        queries = 20
        logits = torch.zeros(queries, NUM_CLASSES + 1)
        logits[:, -1] = 6.0
        masks = torch.full((queries, ids.shape[0] // 4, ids.shape[1] // 4), -8.0)
        for query, segment in enumerate(annotation["segments_info"]):
            fate = torch.rand((), generator=g)
            category = segment["category_id"] - 1
            if fate < 0.2:
                category = int(torch.randint(NUM_CLASSES, (), generator=g))
            logits[query] = torch.randn(NUM_CLASSES + 1, generator=g)
            logits[query, -1 if fate > 0.85 else category] = 5 + float(fate)
            inside = torch.from_numpy(ids == segment["id"])[::4, ::4].float()
            inside = inside.roll(int(fate > 0.4), dims=1)  # one cell away from the ground truth
            masks[query] = 6 * inside - 3 + 0.5 * torch.randn(inside.shape, generator=g)
        return logits, masks


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Write a dataset, and next to it a config and weights; return the folder."""
    root = tmp_path_factory.mktemp("round_trip")
    generate(root / "shapes_panoptic", Settings(num_train=1, num_val=NUM_IMAGES))
    register_tables(root)
    settings = tiny_settings(PANOPTIC_ON=True, INSTANCE_ON=True, SEMANTIC_ON=False)
    settings["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] = NUM_CLASSES
    settings["MODEL"]["MASK_FORMER"]["TEST"] |= {
        "OBJECT_MASK_THRESHOLD": 0.3,
        "OVERLAP_THRESHOLD": 0.5,
    }
    settings["DATASETS"] = {"TRAIN": [DATASET], "TEST": [DATASET]}
    settings["INPUT"] |= {"MIN_SIZE_TEST": 128, "MAX_SIZE_TEST": 320}
    settings["MODEL"]["WEIGHTS"] = str(root / "tiny.pth")
    settings["DATALOADER"] = {"NUM_WORKERS": 0}
    (root / "tiny.yaml").write_text(yaml.safe_dump(settings))
    cfg = load_cfg(str(root / "tiny.yaml"))
    torch.save({"model": build_model(cfg).state_dict()}, root / "tiny.pth")
    yield root
    register_tables()


def nearly_right(model, root):
    model.backbone = Identity()
    model.sem_seg_head = NearlyRight(root / "shapes_panoptic", model.pixel_mean, model.pixel_std)
    return model


@pytest.fixture(scope="module")
def direct(scene):
    """Return the metrics of `train_net.py --eval-only`, by task."""
    cfg = load_cfg(str(scene / "tiny.yaml"), ["OUTPUT_DIR", str(scene / "eval")])
    return Trainer.test(cfg, nearly_right(MaskFormerPredictor(cfg).model, scene))


@pytest.fixture
def save(scene, tmp_path, monkeypatch):
    """Return a function that runs demo/demo.py on the images and returns its output folder."""
    init = MaskFormerPredictor.__init__

    def nearly_right_one(self, *args, **kwargs):
        init(self, *args, **kwargs)
        nearly_right(self.model, scene)

    monkeypatch.setattr(MaskFormerPredictor, "__init__", nearly_right_one)
    monkeypatch.setattr(predict, "setup_logger", lambda **kwargs: None)

    def save(*options, formats="panoptic-coco,instances-coco"):
        images = str(scene / "shapes_panoptic" / "val")
        words = ["--config-file", str(scene / "tiny.yaml"), "--input", images, "--save", formats]
        assert predict.main([*words, "--output", str(tmp_path), "--batch-size", "2", *options]) == 0
        return tmp_path

    return save


def ids_from(source, scene):
    """Return the options for the ids of a registered dataset or of a JSON."""
    json_file = scene / "shapes_panoptic" / "panoptic_val.json"
    return {"dataset": ["--dataset", DATASET], "json": ["--coco-json", str(json_file)]}[source]


@pytest.mark.parametrize("source", ["dataset", "json"])
def test_saved_panoptic_results_have_the_scores_of_a_direct_evaluation(scene, direct, save, source):
    folder = save(*ids_from(source, scene))
    base = scene / "shapes_panoptic"
    scores = pq_compute(
        str(base / "panoptic_val.json"),
        str(folder / "panoptic.json"),
        str(base / "panoptic_val"),
        str(folder / "panoptic"),
    )
    expected = direct["panoptic_seg"]
    assert 20 < expected["PQ"] < 95
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for metric in ("pq", "sq", "rq"):
            found = 100 * scores[group][metric]
            assert found == pytest.approx(expected[f"{metric.upper()}{suffix}"], abs=1e-9)


@pytest.mark.parametrize("source", ["dataset", "json"])
def test_saved_instances_have_the_scores_of_a_direct_evaluation(scene, direct, save, source):
    folder = save(*ids_from(source, scene))
    base = scene / "shapes_panoptic"
    panoptic = json.loads((base / "panoptic_val.json").read_text())
    truth = COCO()
    truth.dataset = instances_of_panoptic(panoptic, base / "panoptic_val")
    truth.createIndex()
    for task in ("bbox", "segm"):
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "instances.json")), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert 5 < direct[task]["AP"] < 95
        for metric, found in zip(("AP", "AP50", "AP75"), evaluation.stats[:3], strict=True):
            assert 100 * found == pytest.approx(direct[task][metric], abs=1e-9)


def test_without_a_dataset_ids_are_consecutive_and_the_json_lists_them(save, scene):
    folder = save()
    content = json.loads((folder / "panoptic.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [
        f"{i:06d}.png" for i in range(NUM_IMAGES)
    ]
    assert [c["id"] for c in content["categories"]] == list(range(1, NUM_CLASSES + 1))
    for annotation in content["annotations"]:
        colors = np.asarray(Image.open(folder / "panoptic" / annotation["file_name"]))
        ids = colors.astype(np.int32) @ np.array([1, 256, 256**2], np.int32)
        known = {info["id"]: info["category_id"] for info in annotation["segments_info"]}
        infos = [
            {key: value for key, value in info.items() if key != "score"}
            for info in annotation["segments_info"]
        ]
        assert segments_info(ids, known) == infos


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"categories": [{"id": 1, "name": "dog"}]}, "none of its categories (dog) is a class"),
        ({"categories": [{"id": 1, "name": "disc"}]}, "no category for 11 classes"),
        ({"images": [{"id": 1}]}, "expected COCO's `images`, each with file_name"),
    ],
)
def test_a_json_with_other_classes_or_entries_is_refused(
    scene, save, tmp_path, change, reason, caplog
):
    content = json.loads((scene / "shapes_panoptic" / "panoptic_val.json").read_text())
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content | change))
    with pytest.raises(AssertionError, match="assert 2 == 0"):
        save("--coco-json", str(path))
    assert reason in caplog.text


def test_an_image_that_the_dataset_lacks_is_named_and_the_others_are_saved(
    scene, save, tmp_path, caplog
):
    content = json.loads((scene / "shapes_panoptic" / "panoptic_val.json").read_text())
    del content["images"][1]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(AssertionError, match="assert 1 == 0"):
        save("--coco-json", str(path))
    assert "000001.png: " in caplog.text and "has no image named 000001.png" in caplog.text
    saved = json.loads((tmp_path / "panoptic.json").read_text())
    assert [a["image_id"] for a in saved["annotations"]] == [1, 3, 4, 5]
