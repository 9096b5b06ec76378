"""The drawn scenes, how little colour alone reveals of them, and the dataset on disk."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from mask_former.data.datasets.catalog import read_table, register_tables
from mask_former.data.shapes import writer
from mask_former.data.shapes.scene import HEIGHT, OUTLINES, PATTERNS, WIDTH, scene

pytestmark = pytest.mark.usefixtures("restored_catalogs")

NUM_SCENES = 24
NAMES_OF_SCENE_0 = {1: "waves", 2: "dots", 3: "star", 4: "moon", 5: "heart", 6: "square"}
DIGEST_OF_SCENE_0 = "be00c20210103044"
Segments = list[tuple[str, np.ndarray]]  # class name and H×W mask


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray, dict[int, str]]]:
    return [scene((7, i)) for i in range(NUM_SCENES)]


# ------------------------------------------------------------------------------------ scenes


def test_classes_equal_those_of_the_table() -> None:
    table = read_table("shapes")
    things = [c.name for c in table.categories if c.isthing]
    stuff = [c.name for c in table.categories if not c.isthing]
    assert things == list(OUTLINES) and len(things) >= 6
    assert stuff == list(PATTERNS) and len(stuff) >= 4


def test_the_same_seed_gives_the_same_scene() -> None:
    for first, second in zip(scene((0, 1, 2)), scene((0, 1, 2)), strict=True):
        np.testing.assert_equal(first, second)
    assert not np.array_equal(scene(1)[0], scene(2)[0])


def test_a_scene_is_the_same_on_every_machine() -> None:
    image, ids, names = scene(0)
    digest = hashlib.sha256(image.tobytes() + ids.astype("<i4").tobytes())
    assert names == NAMES_OF_SCENE_0
    assert digest.hexdigest()[:16] == DIGEST_OF_SCENE_0, (
        "the drawing has changed: increase Settings.version in shapes/writer.py"
    )


def test_every_pixel_has_a_segment_and_every_segment_a_minimum_area(scenes: Any) -> None:
    for image, ids, names in scenes:
        assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
        assert ids.shape == (HEIGHT, WIDTH) and ids.dtype == np.int32
        assert {int(i) for i in np.unique(ids)} == set(names)
        for i, name in names.items():
            assert np.count_nonzero(ids == i) >= (600 if name in PATTERNS else 100), name


def test_a_scene_has_3_to_12_things_on_at_least_two_patterns(scenes: Any) -> None:
    counts = []
    for _, _, names in scenes:
        patterns = [name for name in names.values() if name in PATTERNS]
        assert 2 <= len(patterns) == len(set(patterns))
        counts.append(len(names) - len(patterns))
    assert min(counts) >= 3 and max(counts) <= 12 and len(set(counts)) > 4


def test_things_overlap_and_are_cut_by_the_border(scenes: Any) -> None:
    at_border = sum(
        any(names[int(i)] in OUTLINES for i in {*ids[0], *ids[-1], *ids[:, 0], *ids[:, -1]})
        for _, ids, names in scenes
    )
    assert at_border > NUM_SCENES // 2
    assert sum(bool(touching_things(*rest)) for _, *rest in scenes) > NUM_SCENES // 2


def touching_things(ids: np.ndarray, names: dict[int, str]) -> set[tuple[int, int]]:
    pairs = {*zip(ids[:, :-1].ravel(), ids[:, 1:].ravel(), strict=True)}
    return {(a, b) for a, b in pairs if a != b and {names[int(a)], names[int(b)]} <= set(OUTLINES)}


# ------------------------------------------------------------ segmentation by colour alone


def panoptic_quality(pairs: list[tuple[Segments, Segments]]) -> float:
    """Return the mean PQ over all classes in percent (Kirillov et al. 2019), in plain loops."""
    iou_sum, found, expected = (dict.fromkeys((*OUTLINES, *PATTERNS), 0.0) for _ in range(3))
    for prediction, ground_truth in pairs:
        for name, _ in prediction:
            found[name] += 1
        for name, true_mask in ground_truth:
            expected[name] += 1
            for other, mask in prediction:
                intersection = np.count_nonzero(mask & true_mask)
                if other == name and 2 * intersection > np.count_nonzero(mask | true_mask):
                    iou_sum[name] += intersection / np.count_nonzero(mask | true_mask)
    return float(np.mean([200 * iou_sum[n] / max(1, found[n] + expected[n]) for n in expected]))


def ground_truth_of(ids: np.ndarray, names: dict[int, str]) -> Segments:
    return [(name, ids == i) for i, name in names.items()]


def colour_components(
    image: np.ndarray, ids: np.ndarray, names: dict[int, str], clusters: int, min_area: int = 100
) -> Segments:
    """Cluster colours by k-means; give each connected component the class it mostly covers."""
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1.0)
    colours = image.reshape(-1, 3).astype(np.float32)
    labels = cv2.kmeans(colours, clusters, None, criteria, 1, cv2.KMEANS_PP_CENTERS)[1]
    segments: Segments = []
    for cluster in range(clusters):
        mask = (labels.reshape(ids.shape) == cluster).astype(np.uint8)
        count, components = cv2.connectedComponents(mask, connectivity=4)
        for component in range(1, count):
            segment = components == component
            if np.count_nonzero(segment) >= min_area:
                segments.append((names[int(np.bincount(ids[segment]).argmax())], segment))
    return segments


def with_fused_stuff(segments: Segments) -> Segments:
    """Merge stuff of the same class into one segment, as in COCO's panoptic format."""
    fused = [(name, mask) for name, mask in segments if name in OUTLINES]
    for pattern in PATTERNS:
        masks = [mask for name, mask in segments if name == pattern]
        if masks:
            fused.append((pattern, np.any(masks, axis=0)))
    return fused


def test_the_ground_truth_has_a_panoptic_quality_of_100(scenes: Any) -> None:
    pairs = [(ground_truth_of(*rest), ground_truth_of(*rest)) for _, *rest in scenes]
    assert panoptic_quality(pairs) == pytest.approx(100)


@pytest.mark.parametrize("clusters", [3, 4, 6, 8])
def test_colour_clusters_and_components_stay_below_30_even_with_the_true_classes(
    scenes: Any, clusters: int
) -> None:
    components = [colour_components(*s, clusters) for s in scenes]
    ground_truth = [ground_truth_of(*rest) for _, *rest in scenes]
    fused = [with_fused_stuff(segments) for segments in components]
    assert 0 < panoptic_quality(list(zip(components, ground_truth, strict=True))) < 30
    assert 0 < panoptic_quality(list(zip(fused, ground_truth, strict=True))) < 30


def test_mean_colours_do_not_reveal_the_classes() -> None:
    """The segment of another scene with the nearest mean colour mostly has another class."""
    colours, classes = [], []
    for i in range(60):
        image, ids, names = scene((8, i))
        for segment_id, name in names.items():
            colours.append(image[ids == segment_id].mean(axis=0))
            classes.append((i, name))
    hits = []
    for i, (number, name) in enumerate(classes):
        distances = np.linalg.norm(np.array(colours) - colours[i], axis=1)
        distances[[j for j, (other, _) in enumerate(classes) if other == number]] = np.inf
        hits.append(classes[int(distances.argmin())][1] == name)
    assert np.mean(hits) < 0.2


# ----------------------------------------------------------------------------------- on disk


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes_panoptic"
    writer.generate(folder, writer.Settings(num_train=3, num_val=2))
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_files_hold_the_scenes(dataset: Path) -> None:
    for number, split in enumerate(("train", "val")):
        content = json.loads((dataset / f"panoptic_{split}.json").read_text())
        categories = {c["id"]: c["name"] for c in content["categories"]}
        for index, annotation in enumerate(content["annotations"]):
            image, ids, names = scene((0, number, index))
            name = annotation["file_name"]
            np.testing.assert_array_equal(np.asarray(Image.open(dataset / split / name)), image)
            rgb = np.asarray(Image.open(dataset / f"panoptic_{split}" / name)).astype(int)
            np.testing.assert_array_equal(rgb @ [1, 256, 256**2], ids)
            for segment in annotation["segments_info"]:
                assert categories[segment["category_id"]] == names[segment["id"]]
                assert segment["area"] == np.count_nonzero(ids == segment["id"])
                x, y, width, height = segment["bbox"]
                inside = ids[y : y + height, x : x + width] == segment["id"]
                assert np.count_nonzero(inside) == segment["area"]
                assert inside[0].any() and inside[-1].any()
                assert inside[:, 0].any() and inside[:, -1].any()


def test_panopticapi_scores_the_dataset_against_itself_with_100(dataset: Path) -> None:
    evaluation = pytest.importorskip("panopticapi.evaluation")
    json_file, folder = str(dataset / "panoptic_val.json"), str(dataset / "panoptic_val")
    result = evaluation.pq_compute(json_file, json_file, folder, folder)
    assert result["All"]["pq"] == pytest.approx(1)


def test_training_and_validation_scenes_differ(dataset: Path) -> None:
    images = [p.read_bytes() for split in ("train", "val") for p in (dataset / split).iterdir()]
    assert len(set(images)) == 5


def test_the_catalog_draws_the_dataset_on_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "DEFAULT", writer.Settings(num_train=2, num_val=1))
    register_tables(tmp_path / "none" / "yet")
    with caplog.at_level("INFO"):
        records = DatasetCatalog.get("shapes_panoptic_train")
    assert "train 2 of 2" in caplog.text
    assert len(records) == 2
    assert all(Path(record["file_name"]).is_file() for record in records)
    for segment in (s for record in records for s in record["segments_info"]):
        assert segment["isthing"] is (segment["category_id"] < len(OUTLINES))
    before = snapshot(tmp_path)
    assert len(DatasetCatalog.get("shapes_panoptic_val")) == 1
    assert snapshot(tmp_path) == before


@pytest.mark.subprocess
def test_concurrent_processes_write_one_complete_dataset(tmp_path: Path, dataset: Path) -> None:
    settings = writer.Settings(num_train=3, num_val=2)
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "shapes_panoptic", settings)
    processes = [context.Process(target=writer.generate, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert snapshot(tmp_path / "shapes_panoptic") == snapshot(dataset)
    assert not list(tmp_path.glob(".*partial*"))


def test_a_killed_run_leaves_no_dataset(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings = tmp_path / "shapes_panoptic", writer.Settings(num_train=3, num_val=2)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer.generate(folder, settings)
    assert not folder.exists()
    writer.generate(folder, settings)
    assert snapshot(folder) == snapshot(dataset)


def test_an_existing_dataset_is_kept_if_it_has_the_requested_settings(dataset: Path) -> None:
    before = snapshot(dataset)
    writer.generate(dataset, writer.Settings(num_train=3, num_val=2))
    writer.generate(dataset)
    assert snapshot(dataset) == before


def test_settings_that_differ_from_those_on_disk_are_an_error(
    dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"num_train=3.*num_train=4.*Remove it"):
        writer.generate(dataset, writer.Settings(num_train=4, num_val=2))
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="was not made by"):
        writer.generate(tmp_path / "other")


def test_scenes_of_another_version_of_the_drawing_are_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "shapes_panoptic"
    writer.generate(folder, writer.Settings(num_train=1, num_val=1, version=0))
    with pytest.raises(ValueError, match=r"version=0.*version=1"):
        writer.generate(folder)


def test_a_split_needs_at_least_one_scene() -> None:
    with pytest.raises(ValueError, match="at least one scene"):
        writer.Settings(num_val=0)
