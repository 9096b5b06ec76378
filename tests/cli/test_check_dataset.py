"""tools/check_dataset.py: output and exit code for valid and for broken datasets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask_former.cli import check_dataset

HEIGHT, WIDTH, COUNT = 40, 64, 6


@pytest.fixture
def data(tmp_path):
    """Write six images, left half sky, right half road, with an ignored stripe at the top."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:, 32:], labels[:4] = 1, 255
    for number in range(COUNT):
        Image.new("RGB", (WIDTH, HEIGHT), (10, 200, 30)).save(tmp_path / f"images/{number}.png")
        Image.fromarray(labels).save(tmp_path / f"labels/{number}.png")
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    return tmp_path


def run(data, *arguments):
    words = ["--images", data / "images", "--labels", data / "labels"]
    words += ["--classes", data / "classes.txt", "--workers", 1, *arguments]
    return check_dataset.main([str(word) for word in words])


def output(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_valid_dataset_gives_matching_config_lines_and_exit_code_0(data, capsys):
    assert run(data) == 0
    lines = output(capsys)
    assert lines[-1] == "6 images: 0 errors, 0 notes"
    assert not any(line.startswith(("error", "note")) for line in lines)
    start = lines.index("Config lines that fit the data:")
    config = yaml.safe_load("\n".join(lines[start + 1 : -1]))
    assert config["MODEL"]["SEM_SEG_HEAD"] == {"NUM_CLASSES": 2, "IGNORE_VALUE": 255}
    assert config["INPUT"]["DATASET_MAPPER_NAME"] == "mask_former_semantic"


def test_the_table_has_images_and_share_of_each_class_and_of_other_labels(data, capsys):
    run(data)
    rows = [line.split() for line in output(capsys)]
    assert ["0", "sky", "6", "45.000%"] in rows and ["1", "road", "6", "45.000%"] in rows
    assert ["255", "(ignored)", "6", "10.000%"] in rows


def test_errors_are_listed_by_file_and_the_exit_code_is_1(data, capsys):
    (data / "labels/1.png").unlink()
    (data / "images/2.png").write_bytes(b"no image")
    assert run(data) == 1
    lines = output(capsys)
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 2
    assert errors[0].startswith(f"error: {data}/images/1.png: has no partner")
    assert errors[1].startswith(f"error: {data}/images/2.png, the 'file_name'")
    assert lines[-1] == "5 images: 2 errors, 0 notes"


def test_a_broken_file_is_one_error_line_and_the_others_are_checked(data, capsys):
    (data / "labels/1.png").write_bytes(b"")
    (data / "images/2.png").write_bytes((data / "images/2.png").read_bytes()[:70])
    assert run(data) == 1
    lines = output(capsys)
    assert lines[0].startswith(f"error: {data}/labels/1.png, the 'sem_seg_file_name'")
    assert "it is empty. Restore the file" in lines[0]
    assert "images/2.png" in lines[1] and "the PNG is truncated after 70 bytes" in lines[1]
    assert ["0", "sky", "5", "45.000%"] in [line.split() for line in lines]
    assert lines[-1] == "6 images: 2 errors, 0 notes"


def test_notes_alone_give_exit_code_0(data, capsys):
    (data / "classes.txt").write_text("sky\nroad\nbus\n")
    assert run(data) == 0
    lines = output(capsys)
    assert lines[0] == "note: classes: 1 of 3 never occur: bus."
    assert lines[-1] == "6 images: 0 errors, 1 notes"


def test_a_long_list_of_findings_is_cut_but_their_summary_is_kept(data, capsys):
    (data / "classes.txt").write_text("sky\n")
    report = data / "report.json"
    assert run(data, "--show", 2, "--json-report", report) == 1
    lines = output(capsys)
    assert len([line for line in lines if line.startswith("error: /")]) == 2
    assert lines[2] == "… and 4 more (--show, --json-report)"
    assert lines[3].startswith("error: labels: Over all label maps, the labels are 0..1, 255")
    content = json.loads(report.read_text())
    assert len(content["findings"]) == 7 and content["images"] == COUNT
    assert content["classes"] == [{"name": "sky", "images": 6, "pixels": 6 * 32 * 36}]
    assert content["labels"]["1"] == 6 * 32 * 36


def test_several_processes_give_the_same_output(data, capsys):
    (data / "images/2.png").write_bytes(b"no image")
    assert run(data) == 1
    alone = output(capsys)
    assert run(data, "--workers", 2) == 1
    assert output(capsys) == alone


def test_the_ignore_label_can_be_set(data, capsys):
    assert run(data, "--ignore-label", 254) == 1
    assert any("255 be ignored? Then set it as the ignore label" in line for line in output(capsys))


def test_class_names_may_have_pixel_values(data, capsys):
    (data / "classes.txt").write_text("1: road\n0: sky\n")
    assert run(data) == 0
    assert ["0", "road", "6", "45.000%"] in [line.split() for line in output(capsys)]


# The contact sheet


def colors_in(path):
    return set(map(tuple, np.asarray(Image.open(path)).reshape(-1, 3).tolist()))


def test_the_sheet_shows_the_images_with_their_labels(data, capsys):
    sheet = data / "new" / "sheet.png"
    sheet.parent.mkdir()
    assert run(data, "--sheet", sheet, "--sheet-num", 4) == 0
    assert f"{sheet}: 4 images drawn" in output(capsys)
    assert len(colors_in(sheet)) > 4
    assert (10, 200, 30) not in colors_in(sheet)  # every pixel is painted or hatched


def test_unknown_labels_are_drawn_too_and_broken_images_are_left_out(data, capsys):
    (data / "classes.txt").write_text("sky\n")
    (data / "images/0.png").write_bytes(b"no image")
    assert run(data, "--sheet", data / "sheet.png") == 1
    assert f"{data}/sheet.png: 5 images drawn" in output(capsys)


# Other sources


def test_a_coco_json_is_checked(data, capsys):
    square = [[4.0, 4, 20, 4, 20, 20, 4, 20]]
    entry = {"id": 1, "image_id": 0, "category_id": 1, "segmentation": square}
    content = {
        "images": [{"id": 0, "file_name": "0.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [entry],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = data / "instances.json"
    path.write_text(json.dumps(content))
    words = ["--images", str(data / "images"), "--json", str(path), "--workers", "1"]
    words += ["--sheet", str(data / "sheet.png")]
    assert check_dataset.main(words) == 0
    lines = output(capsys)
    assert "mask_former_instance" in " ".join(lines)
    assert f"{data}/sheet.png: 1 images drawn" in lines
    entry["category_id"] = 2
    path.write_text(json.dumps(content))
    assert check_dataset.main(words) == 1
    assert "category_id [2]" in output(capsys)[0]


def test_a_registered_dataset_is_checked(data, capsys):
    files = [
        {"file_name": f"{data}/images/{i}.png", "sem_seg_file_name": f"{data}/labels/{i}.png"}
        for i in range(COUNT)
    ]
    DatasetCatalog.register("checked_by_tool", lambda: files)
    MetadataCatalog.get("checked_by_tool").set(stuff_classes=["sky", "road"], ignore_label=255)
    try:
        words = ["--dataset", "checked_by_tool", "--workers", "1"]
        assert check_dataset.main(words) == 0
        assert output(capsys)[-1] == "6 images: 0 errors, 0 notes"
        files[3]["sem_seg_file_name"] = f"{data}/nowhere.png"
        assert check_dataset.main(words) == 1
        assert f"{data}/nowhere.png" in output(capsys)[0]
    finally:
        DatasetCatalog.remove("checked_by_tool")
        MetadataCatalog.remove("checked_by_tool")


# Mistakes in the command


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "found none of them"),
        (["--images", "a"], "found ['images']"),
        (["--dataset", "x", "--json", "y"], "found ['dataset', 'json']"),
        (["--dataset", "x", "--ignore-label", "3"], "--ignore-label needs --labels"),
        (["--dataset", "x", "--workers", "0"], "--workers is 0"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(options, expected, capsys):
    with pytest.raises(SystemExit, match="2"):
        check_dataset.main(options)
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--dataset", "nowhere"], "There is no dataset 'nowhere'"),
        (["--images", "/nowhere", "--json", "/nowhere.json"], "/nowhere.json is missing"),
        (["--images", "/a", "--labels", "/b", "--classes", "/c"], "is missing"),
    ],
)
def test_a_missing_input_is_an_error_of_one_line_and_exit_code_1(options, expected, capsys):
    assert check_dataset.main(options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("check_dataset: ") and expected in line
