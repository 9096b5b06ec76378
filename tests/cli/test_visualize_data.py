"""tools/visualize_data.py: a page for each image, with unlabelled pixels marked, and a legend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask_former.cli import visualize_data
from mask_former.data.datasets.classes import Classes
from mask_former.visualization.examples import Example
from mask_former.visualization.overlay import Overlay, Region
from tests.helpers.tiny_model import COLORS, NAMES, tiny_settings

CLASSES = Classes(NAMES, [tuple(color) for color in COLORS], [False] * len(NAMES))
DATASET = "visualized"
HEIGHT, WIDTH, IGNORE = 40, 60, 255


def make_example(**changes):
    """Make an example: class 2 twice at the left, then class 0, then void; padding at the bottom.

    A fourth target, of class 2, is empty.
    """
    ids = np.zeros((50, 60), np.int32)
    ids[:20, :20], ids[20:40, :20], ids[:40, 20:45] = 1, 2, 3
    padding = np.zeros((50, 60), bool)
    padding[40:] = True
    class_ids = [2, 2, 0, 2]
    regions = [Region(NAMES[class_id], CLASSES.colors[class_id]) for class_id in class_ids]
    image = np.full((50, 60, 3), 100, np.uint8)
    areas = [400, 400, 1000, 0]
    fields = {"class_ids": class_ids, "areas": areas, "padding": padding, **changes}
    return Example(image, Overlay(ids, regions), **fields)


# Pages


def test_void_and_padding_are_hatched_differently_and_targets_are_painted():
    example = make_example()
    plain, painted = visualize_data.paint(example, 1.0)
    assert (plain == 100).all()
    ids, inside = example.overlay.ids, np.zeros((50, 60), bool)
    inside[5:38, 2:58] = True  # without labels, outlines and the border
    void = painted[inside & example.void]
    assert set(map(tuple, void.tolist())) == {(50 + 64,) * 3, (50 + 127,) * 3}
    padding = painted[42:]
    assert set(map(tuple, padding.reshape(-1, 3).tolist())) == {(50,) * 3, (50 + 48,) * 3}
    sky = painted[38, 22:40]  # half the colour, half the image
    assert np.abs(sky.astype(int) - (np.array(COLORS[0]) + 100) // 2).max() <= 1
    assert ids[38, 30] == 3


def test_a_test_image_is_not_hatched():
    example = make_example(has_targets=False, padding=np.zeros((50, 60), bool))
    assert not example.void.any()


@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_scaling_keeps_the_position_of_each_pixel(factor):
    _, small = visualize_data.paint(make_example(), 1.0)
    _, scaled = visualize_data.paint(make_example(), factor)
    assert scaled.shape == (50 * factor, 60 * factor, 3)
    for y, x in ((45, 30), (30, 55), (38, 30), (15, 50)):
        at = scaled[int(y * factor), int(x * factor)].astype(int)
        gray = len(set(small[y, x].tolist())) == 1
        assert gray == (len(set(at.tolist())) == 1)  # painted or not


@pytest.mark.parametrize(
    ("size", "factor"),
    [
        ((128, 160), 5),
        ((360, 480), 2),
        ((512, 512), 1),
        ((700, 900), 1),
        ((1024, 2048), 960 / 2048),
    ],
)
def test_small_images_are_upsampled_by_an_integer_factor_and_large_ones_downsampled(size, factor):
    assert visualize_data.page_factor(*size) == factor


def test_the_legend_has_the_number_of_targets_and_the_share_of_pixels_of_each_class():
    rows = visualize_data.legend_rows(make_example(), CLASSES)
    assert [row.name for row in rows] == ["sky", "car ×3 (1 empty)", "in no target", "padding"]
    assert [row.share for row in rows] == pytest.approx([x / 3000 for x in (1000, 800, 600, 600)])
    assert (rows[0].swatch == COLORS[0]).all() and (rows[1].swatch == COLORS[2]).all()
    assert "4 targets, 1 of them empty" in visualize_data.headline(
        make_example(), {"file_name": ""}
    )


def test_the_legend_has_all_classes_even_if_they_are_many():
    count = 60
    colors = [(4 * i, 255 - 4 * i, 7) for i in range(count)]
    classes = Classes(
        [f"a class with a long name {i}" for i in range(count)], colors, [False] * count
    )
    ids = np.arange(count, dtype=np.int32).reshape(1, count) + 1
    regions = [Region(name, color) for name, color in zip(classes.names, colors, strict=True)]
    example = Example(
        np.zeros((1, count, 3), np.uint8),
        Overlay(ids, regions),
        list(range(count)),
        [1] * count,
        np.zeros((1, count), bool),
    )
    page = np.asarray(visualize_data.draw_page(example, {"file_name": "x.png"}, classes))
    legend = page[:, 2 * (visualize_data.MAX_SIDE + visualize_data.GAP) :]
    present = set(map(tuple, legend.reshape(-1, 3).tolist()))
    assert set(colors) <= present


def test_names_in_the_sheet_do_not_extend_beyond_their_cell():
    cells = [("a name that is far too long for its small image", np.zeros((30, 80, 3), np.uint8))]
    sheet = np.asarray(visualize_data.draw_sheet(cells * 3))
    margin, gap = visualize_data.GAP, slice(visualize_data.GAP + 80, 2 * visualize_data.GAP + 80)
    assert (sheet[:, :margin] == 255).all() and (sheet[:, gap] == 255).all()


# The command


@pytest.fixture
def dataset(tmp_path):
    """Register ten images, two of the same name; the i-th one has gray 20·i and class i % 4."""
    records = []
    for i in range(10):
        folder = tmp_path / "images" / f"{i // 9}"
        folder.mkdir(parents=True, exist_ok=True)
        name = "0" if i == 9 else f"{i}"
        labels = np.full((HEIGHT, WIDTH), i % 4, np.uint8)
        labels[:, :20] = IGNORE
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 20 * i, np.uint8)).save(folder / f"{name}.png")
        Image.fromarray(labels).save(folder / f"{name}_labels.png")
        records.append(
            {
                "file_name": str(folder / f"{name}.png"),
                "sem_seg_file_name": str(folder / f"{name}_labels.png"),
            }
        )
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).set(
        ignore_label=IGNORE, stuff_classes=NAMES, stuff_colors=COLORS, evaluator_type="sem_seg"
    )
    yield records
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


@pytest.fixture
def config(tmp_path):
    settings = tiny_settings()
    settings["DATASETS"] = {"TRAIN": [DATASET], "TEST": [DATASET]}
    settings["INPUT"] |= {"MIN_SIZE_TRAIN": [HEIGHT], "SIZE_DIVISIBILITY": 64}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(*arguments):
    return visualize_data.main([str(argument) for argument in arguments])


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_page_for_each_image_and_a_sheet_are_written(dataset, config, tmp_path, capsys):
    output = tmp_path / "new" / "drawn"
    assert run("--config-file", config, "--output", output, "--num", 99, "--sheet") == 0
    expected = [f"{i}.png" for i in range(9)] + ["0_2.png", "contact_sheet.png"]
    assert names_in(output) == sorted(expected)
    assert "10 of 10 images drawn" in capsys.readouterr().out


def test_the_images_are_spread_over_the_dataset(dataset, config, tmp_path):
    assert run("--config-file", config, "--output", tmp_path / "out", "--num", 4) == 0
    assert names_in(tmp_path / "out") == ["0.png", "0_2.png", "3.png", "6.png"]


def page_of_sky(config, output, *options):
    """Run the command; return the page of image 4, which has gray 80 and the class sky."""
    assert run("--config-file", config, "--output", output, "--num", 3, *options) == 0
    return np.asarray(Image.open(output / "4.png"))


def test_a_seed_fixes_the_augmentation(dataset, config, tmp_path):
    jitter = ["INPUT.COLOR_AUG_SSD", "True"]
    one, same, other = (
        page_of_sky(config, tmp_path / f"{index}", "--seed", seed, *jitter)
        for index, seed in enumerate((1, 1, 2))
    )
    assert one.shape == same.shape and (one == same).all()
    assert one.shape != other.shape or (one != other).any()


def test_annotations_are_drawn_on_the_image_file_and_mapper_outputs_are_padded(
    dataset, config, tmp_path
):
    gap, top = visualize_data.GAP, visualize_data.TEXT + 3 * visualize_data.GAP
    annotation = page_of_sky(config, tmp_path / "a", "--source", "annotation", "--split", "test")
    width = WIDTH * round(visualize_data.page_factor(HEIGHT, WIDTH))
    inside = annotation[top + 5 : top + 100, gap + 5 : gap + width - 5]
    assert (inside == 80).all()
    legend = annotation[:, -200:].reshape(-1, 3).tolist()
    assert COLORS[0] in legend and COLORS[2] not in legend
    mapped = page_of_sky(config, tmp_path / "m")
    side = 64 * round(visualize_data.page_factor(64, 64))
    assert (mapped[top + side - 5, gap + side - 5] == 128).all()


def test_pages_of_evaluation_inputs_have_no_targets(dataset, config, tmp_path):
    page = page_of_sky(config, tmp_path / "t", "--split", "test")
    assert set(page[60:, 20:-20].reshape(-1).tolist()) <= {80, 255}


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_drawn(
    dataset, config, tmp_path, capsys
):
    broken = Path(dataset[3]["file_name"])
    broken.write_bytes(b"no image")
    Path(dataset[5]["sem_seg_file_name"]).unlink()
    assert run("--config-file", config, "--output", tmp_path / "out", "--num", 99) == 1
    assert len(names_in(tmp_path / "out")) == 8
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("visualize_data: ")]
    assert len(lines) == 2
    assert str(broken) in lines[0] and dataset[5]["sem_seg_file_name"] in lines[1]
    assert "8 of 10 images drawn" in captured.out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--split", "test", "DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        (["DATASETS.TRAIN", "('nowhere',)"], "nowhere"),
        (["INPUT.DATASET_MAPPER_NAME", "no_mapper"], "no_mapper"),
        (["INPUT.FORMATT", "RGB"], "did you mean INPUT.FORMAT"),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"], "expected 0..1"),
    ],
)
def test_a_mistake_is_an_error_of_one_line_and_exit_code_1(
    dataset, config, tmp_path, options, expected, capsys
):
    assert run("--config-file", config, "--output", tmp_path / "out", *options) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("visualize_data: ") and expected in line for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_a_dataset_is_never_overwritten(dataset, config, tmp_path, capsys):
    folder = Path(dataset[0]["file_name"]).parent
    assert run("--config-file", config, "--output", folder, "--num", 1) == 1
    assert "would replace the input" in capsys.readouterr().err
