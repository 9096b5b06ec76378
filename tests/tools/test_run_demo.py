"""`make demo`: steps that an earlier run finished are skipped, interrupted ones continue."""

import json
import os
import sys

import pytest

from tests.helpers.scripts import load_script

# Stand-ins for the project's scripts: they log their arguments, and write the same files.
TRAIN_NET = """
import json, sys
from pathlib import Path
arguments = sys.argv[1:]
output = Path(arguments[arguments.index("OUTPUT_DIR") + 1])
output.mkdir(parents=True, exist_ok=True)
kind = next((a for a in ("--eval-only", "--resume") if a in arguments), "train")
with open("calls", "a") as file:
    print(kind, file=file)
if kind != "--eval-only":
    (output / "last_checkpoint").write_text("model_0000009.pth")
    if Path("fail").exists():
        sys.exit(3)
    (output / "model_final.pth").write_text("weights")
if not Path("no_results").exists() or kind == "--eval-only":
    scores = {"shapes_panoptic_val": {"panoptic_seg": {"PQ": 71.25}}}
    (output / "results.json").write_text(json.dumps(scores))
"""
DEMO = """
import sys
from pathlib import Path
arguments = sys.argv[1:]
images = arguments[arguments.index("--input") + 1 : arguments.index("--output")]
output = Path(arguments[arguments.index("--output") + 1])
output.mkdir(parents=True, exist_ok=True)
is_photo = "camvid_panoptic" in arguments
for image in images:
    name = Path(image).stem + ".png" if is_photo else Path(image).name
    (output / name).write_text("drawing")
with open("calls", "a") as file:
    print("photos" if is_photo else "demo", *(images if is_photo else [len(images)]), file=file)
"""


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """Return a function that runs tools/run_demo.py in a made-up repository and lists the calls."""
    module = load_script("tools/run_demo.py")
    for path, code in {"tools/train_net.py": TRAIN_NET, "demo/demo.py": DEMO}.items():
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(code)
    images = tmp_path / "data" / "shapes_panoptic" / "val"
    images.mkdir(parents=True)
    for i in range(10):
        (images / f"{i}.jpg").write_text("image")
    weights = tmp_path / "model_zoo" / "camvid_panoptic.safetensors"
    weights.parent.mkdir()
    weights.write_text("weights")
    photo = tmp_path / "site" / "with_a_photo" / "images" / "temple.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_text("image")
    (photo.parents[1] / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(module, "PHOTO", ("with_a_photo", "images/temple.jpg"))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))

    def run(*arguments):
        (tmp_path / "calls").write_text("")
        monkeypatch.setattr(sys, "argv", ["run_demo.py", *arguments])
        module.main()
        return (tmp_path / "calls").read_text().splitlines()

    return run


def test_the_first_run_segments_a_photo_trains_draws_and_names_the_output_folders(
    demo, tmp_path, capsys
):
    assert demo() == [f"photos {tmp_path}/site/with_a_photo/images/temple.jpg", "train", "demo 8"]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "street scenes" in line and "output/photos_demo" in line]
    last_line = lines[-1]
    assert "PQ 71.2" in last_line and "output/shapes_demo/images" in last_line


def test_the_second_run_skips_everything_and_reports_it(demo, capsys):
    demo()
    capsys.readouterr()
    assert demo() == []
    assert capsys.readouterr().out.count("done already") == 3


def test_photos_from_the_command_line_are_segmented_in_every_run(demo, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path / "data")
    mine = f"photos {tmp_path}/data/a.jpg {tmp_path}/data/holiday"
    assert demo("--photos", "a.jpg", "holiday") == [mine, "train", "demo 8"]
    assert demo("--photos", "a.jpg", "holiday") == [mine]


def test_without_the_package_of_the_photo_the_other_steps_run(demo, tmp_path, capsys):
    (tmp_path / "site/with_a_photo/images/temple.jpg").unlink()
    assert demo() == ["train", "demo 8"]
    assert "name yours with --photos" in capsys.readouterr().out


def test_an_error_of_photos_does_not_refer_to_the_training_log(demo, tmp_path):
    (tmp_path / "demo" / "demo.py").write_text("raise SystemExit(4)")
    with pytest.raises(SystemExit, match=r"photos failed \(exit code 4\); see the error above$"):
        demo()


def test_a_photo_is_segmented_again_after_the_weights_change(demo, tmp_path):
    demo()
    weights = tmp_path / "model_zoo" / "camvid_panoptic.safetensors"
    later = weights.stat().st_mtime + 60
    os.utime(weights, (later, later))
    (again,) = demo()
    assert again.startswith("photos ")


def test_a_failed_training_is_reported_and_resumed_by_the_next_run(demo, tmp_path):
    (tmp_path / "fail").touch()
    with pytest.raises(SystemExit, match=r"training failed \(exit code 3\).*shapes_demo/log.txt"):
        demo()
    (tmp_path / "fail").unlink()
    assert demo() == ["--resume", "demo 8"]  # and the photo is done


def test_weights_without_results_are_evaluated(demo, tmp_path):
    (tmp_path / "no_results").touch()
    assert demo()[1:] == ["train", "--eval-only", "demo 8"]


def test_results_and_drawings_of_older_weights_are_made_again(demo, tmp_path):
    demo()
    weights = tmp_path / "output" / "shapes_demo" / "model_final.pth"
    later = weights.stat().st_mtime + 60
    os.utime(weights, (later, later))
    assert demo() == ["--eval-only", "demo 8"]


def test_a_pq_below_the_minimum_fails_after_drawing(demo, tmp_path):
    with pytest.raises(SystemExit, match=r"PQ 71\.2 is below 80"):
        demo("--minimum-pq", "80")
    assert (tmp_path / "output" / "shapes_demo" / "images" / "0.jpg").exists()


def test_the_error_about_missing_held_out_images_names_the_command_that_writes_them(demo, tmp_path):
    for image in (tmp_path / "data" / "shapes_panoptic" / "val").iterdir():
        image.unlink()
    with pytest.raises(SystemExit, match=r"no images in .*val; .*prepare_shapes\.py"):
        demo()


def test_the_minimum_pq_is_compared_with_the_results_file(demo, tmp_path):
    demo()
    results = tmp_path / "output" / "shapes_demo" / "results.json"
    scores = json.loads(results.read_text())
    scores["shapes_panoptic_val"]["panoptic_seg"]["PQ"] = 12.5
    results.write_text(json.dumps(scores))
    with pytest.raises(SystemExit, match=r"PQ 12\.5 is below 60"):
        demo("--minimum-pq", "60")
