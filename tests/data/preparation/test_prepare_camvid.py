"""datasets/prepare_camvid.py, run on folders with a few tiny images."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from mask_former.data.datasets.catalog import read_table, register_tables
from tests.helpers.scripts import load_script

pytestmark = pytest.mark.usefixtures("restored_catalogs")

SKY, ROAD, CAR, PEDESTRIAN, UNLABELLED, VOID = 0, 3, 8, 9, 11, 255


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("datasets/prepare_camvid.py")


def street() -> np.ndarray:
    """Return a 20×30 label map: sky, road, cars (64 and 60 pixels), pedestrian (4), a void row."""
    labels = np.full((20, 30), ROAD, np.uint8)
    labels[:6] = SKY
    labels[8:16, 2:10] = CAR
    labels[8:14, 12:22] = CAR
    labels[8:10, 26:28] = PEDESTRIAN
    labels[19] = UNLABELLED
    return labels


def write_pair(image: Path, label: Path, labels: np.ndarray | None = None) -> None:
    labels = street() if labels is None else labels
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (*street().shape, 3), np.uint8)
    Image.fromarray(pixels).save(image)
    Image.fromarray(labels).save(label)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source with images/<split> and annotations/<split> for two of the three splits."""
    folder = tmp_path / "source"
    for split in ("train", "val"):
        write_pair(folder / f"images/{split}/a.jpg", folder / f"annotations/{split}/a.png")
    return folder


def read_ids(path: Path) -> np.ndarray:
    rgb = np.asarray(Image.open(path)).astype(int)
    return rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_labels_are_kept_and_unlabelled_becomes_the_ignore_label(
    script: ModuleType, source: Path, tmp_path: Path
) -> None:
    script.prepare(source, tmp_path / "out")
    found = np.asarray(Image.open(tmp_path / "out/annotations/train/a.png"))
    expected = street()
    expected[expected == UNLABELLED] = VOID
    np.testing.assert_array_equal(found, expected)
    image = "images/train/a.jpg"
    assert (tmp_path / "out" / image).read_bytes() == (source / image).read_bytes()


def test_segments_are_stuff_classes_and_large_components_of_thing_classes(
    script: ModuleType, source: Path, tmp_path: Path
) -> None:
    script.prepare(source, tmp_path / "out")
    content = json.loads((tmp_path / "out/panoptic_train.json").read_text())
    (annotation,) = content["annotations"]
    ids = read_ids(tmp_path / "out/panoptic_train/a.png")
    found = {s["id"]: (s["category_id"], s["area"], s["bbox"]) for s in annotation["segments_info"]}
    assert sorted(found.values()) == [
        (SKY, 180, [0, 0, 30, 6]),
        (ROAD, 13 * 30 - 64 - 60 - 4, [0, 6, 30, 13]),
        (CAR, 60, [12, 8, 10, 6]),
        (CAR, 64, [2, 8, 8, 8]),
    ]
    for segment_id, (category, area, _) in found.items():
        assert {int(v) for v in street()[ids == segment_id]} == {category}
        assert np.count_nonzero(ids == segment_id) == area
    assert set(np.unique(ids[street() == PEDESTRIAN])) == {0}, (
        "components below 50 pixels must be void"
    )
    assert set(np.unique(ids[street() == UNLABELLED])) == {0}


def test_components_connect_across_corners_and_may_have_the_minimum_area(
    script: ModuleType,
) -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[0:5, 0:5] = CAR
    labels[5:10, 5:10] = CAR  # touches the first at a corner: 50 pixels together
    labels[15:17, 0:12] = PEDESTRIAN
    ids, categories = script.panoptic_ids(labels, read_table("camvid"), min_area=50)
    assert sorted(categories.values()) == [SKY, CAR]
    (car,) = (i for i, category in categories.items() if category == CAR)
    np.testing.assert_array_equal(ids == car, labels == CAR)
    _, categories = script.panoptic_ids(labels, read_table("camvid"), min_area=51)
    assert sorted(categories.values()) == [SKY]


@pytest.mark.parametrize("base", [".", "CamVid"])
def test_the_original_download_gives_the_same_labels(
    script: ModuleType, tmp_path: Path, base: str
) -> None:
    folder = tmp_path / "SegNet"
    for split in ("train", "val", "test"):
        write_pair(folder / base / split / "b.png", folder / base / f"{split}annot" / "b.png")
    script.prepare(folder, tmp_path / "out")
    for split in ("train", "val", "test"):
        assert (tmp_path / f"out/images/{split}/b.png").exists()
        assert (tmp_path / f"out/panoptic_{split}/b.png").exists()
        labels = np.asarray(Image.open(tmp_path / f"out/annotations/{split}/b.png"))
        assert labels.max() == VOID and labels[0, 0] == SKY


def test_the_written_files_are_readable_by_the_catalog(
    script: ModuleType, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    assert script.main(["--source", str(source)]) == 0
    register_tables()
    (semantic,) = DatasetCatalog.get("camvid_sem_seg_val")
    (panoptic,) = DatasetCatalog.get("camvid_panoptic_val")
    for key, value in semantic.items():
        assert panoptic[key] == value
    assert (panoptic["height"], panoptic["width"]) == (20, 30)
    assert [s["isthing"] for s in panoptic["segments_info"]] == [False, False, True, True]


def test_a_missing_split_is_skipped_with_one_line(
    script: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.prepare(source, tmp_path / "out")
    assert capsys.readouterr().out.count("test: skipped, because") == 1
    assert not list((tmp_path / "out").rglob("*test*"))


def test_a_second_run_changes_nothing(script: ModuleType, source: Path, tmp_path: Path) -> None:
    script.prepare(source, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    script.prepare(source, tmp_path / "out")
    assert snapshot(tmp_path / "out") == before


def test_an_interrupted_run_is_completed_by_the_next(
    script: ModuleType, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.prepare(source, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(script, "write_ids", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            script.prepare(source, tmp_path / "out")
    assert not (tmp_path / "out/panoptic_train.json").exists(), "the JSON must be written last"
    script.prepare(source, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((20, 30), 12, np.uint8), r"\[12\].*0 to 10.*11"),
        (np.full((20, 30), 255, np.uint8), r"\[255\]"),
        (np.zeros((20, 29), np.uint8), "29×20.*30×20"),
        (np.zeros((20, 30, 3), np.uint8), "single-channel"),
        (np.zeros((20, 30), np.uint16), "single-channel 8-bit"),
    ],
)
def test_a_wrong_label_map_is_an_error_that_names_it(
    script: ModuleType,
    source: Path,
    tmp_path: Path,
    labels: np.ndarray,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = source / "annotations/val/a.png"
    write_pair(source / "images/val/a.jpg", path, labels)
    with pytest.raises(ValueError, match=message) as error:
        script.prepare(source, tmp_path / "out")
    assert str(path) in str(error.value)
    capsys.readouterr()
    assert script.main(["--source", str(source), "--output", str(tmp_path / "out")]) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["images/val/a.jpg", "annotations/val/a.png"])
def test_a_broken_file_is_an_error_that_names_it(
    script: ModuleType, source: Path, tmp_path: Path, name: str
) -> None:
    path = source / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="cannot be read as an image") as error:
        script.prepare(source, tmp_path / "out")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["images/val/a.jpg", "annotations/val/a.png"])
def test_a_missing_file_is_an_error_that_names_its_partner(
    script: ModuleType, source: Path, tmp_path: Path, name: str
) -> None:
    for folder in ("images/val", "annotations/val"):
        (source / folder / "z.png").write_bytes(b"")
    (source / name).unlink()
    with pytest.raises(FileNotFoundError, match="no partner 'a"):
        script.prepare(source, tmp_path / "out")


def test_an_incomplete_split_and_no_split_at_all_are_errors(
    script: ModuleType, source: Path, tmp_path: Path
) -> None:
    (source / "images/test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"annotations.test is missing"):
        script.prepare(source, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no CamVid in"):
        script.prepare(tmp_path / "nowhere", tmp_path / "out")


def test_source_and_output_must_differ(script: ModuleType, source: Path) -> None:
    with pytest.raises(ValueError, match="two different folders"):
        script.prepare(source, source)


def test_files_in_the_output_that_are_not_from_the_source_are_an_error(
    script: ModuleType, source: Path, tmp_path: Path
) -> None:
    script.prepare(source, tmp_path / "out")
    (tmp_path / "out/images/train/other.jpg").touch()
    with pytest.raises(ValueError, match=r"images.train holds 1 files .*other\.jpg"):
        script.prepare(source, tmp_path / "out")


@pytest.fixture
def drives(tmp_path: Path) -> Path:
    folder = tmp_path / "drives"
    for split, names in {"train": ("A1_0", "A1_1", "B2_0", "B22_0"), "val": ("C3_0",)}.items():
        for name in names:
            write_pair(
                folder / f"images/{split}/{name}.jpg", folder / f"annotations/{split}/{name}.png"
            )
    return folder


def test_a_held_out_drive_becomes_the_validation_split(
    script: ModuleType, drives: Path, tmp_path: Path
) -> None:
    output = tmp_path / "held_out/camvid"
    assert script.main(["--source", f"{drives}", "--output", f"{output}", "--hold-out", "B2"]) == 0
    for split, names in {"train": ["A1_0", "A1_1", "B22_0"], "val": ["B2_0"]}.items():
        assert sorted(p.stem for p in (output / "images" / split).iterdir()) == names
        assert sorted(p.stem for p in (output / "annotations" / split).iterdir()) == names
        content = json.loads((output / f"panoptic_{split}.json").read_text())
        assert [image["file_name"] for image in content["images"]] == [f"{n}.jpg" for n in names]


def test_an_unknown_drive_is_an_error_that_names_the_known_ones(
    script: ModuleType, drives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert script.main(["--source", f"{drives}", "--output", f"{output}", "--hold-out", "C3"]) == 1
    message = "--hold-out C3: the training images have the drives ['A1', 'B2', 'B22']"
    assert message in capsys.readouterr().err
    assert not output.exists()
