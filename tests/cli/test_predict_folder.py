"""tools/predict_folder.py: several processes, restarts, and processes that are killed."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mask_former.cli import predict_folder
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_port
from tests.helpers.tiny_model import write_tiny_model
from tests.robustness.malice import NAME as HOSTILE_NAME
from tests.robustness.malice import assert_harmless

pytestmark = pytest.mark.subprocess

SCRIPT = ROOT / "tools" / "predict_folder.py"

FORMATS = "semantic-png,panoptic-coco,instances-coco,npz,overlay"
NAMES = ["a", "b", "c", "sub/a", "sub/d"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Use one thread, because torch's thread pool does not survive a fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Write a tiny model; return the options that name it."""
    folder = tmp_path_factory.mktemp("model")
    config, weights = write_tiny_model(folder, PANOPTIC_ON=True, INSTANCE_ON=True)
    return ["--config-file", str(config), "--opts", "MODEL.WEIGHTS", str(weights)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    """Return a folder with five images in `in`, and their results from one process in `whole`."""
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(NAMES):
        squares = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        path = folder / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(squares).resize((80, 60), Image.Resampling.NEAREST).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(words(tiny, "whole")) == [0]
    return folder


@pytest.fixture
def images(folder, tmp_path, monkeypatch):
    """Copy the images to `in` in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "in", "in")
    return Path("in")


@pytest.fixture
def undisturbed(folder, images):
    """Return the content of all files that one process writes for the images."""
    return content(folder / "whole")


def words(tiny, output="out", save=FORMATS):
    return ["--input", "in", "--recursive", "--output", output, "--save", save, *tiny]


def run_one(arguments, rank, count, port, before):
    """Run the command as one of the processes that torchrun starts."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    if before:
        before(rank)
    sys.exit(predict_folder.main(arguments))


def run(arguments, count=1, before=None):
    """Run ``count`` processes and return their exit codes; forks save seconds of imports."""
    context, port = multiprocessing.get_context("fork"), free_port()
    processes = [
        context.Process(target=run_one, args=(arguments, rank, count, port, before))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def content(folder):
    """Return the content of all files of a folder, except the records."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.parent.name != "records"
    }


def test_every_format_is_saved_under_the_names_of_the_images(undisturbed):
    expected = {"panoptic.json", "instances.json", "categories.json", "run.json"}
    for folder, suffix in {
        "semantic": "png",
        "panoptic": "png",
        "overlay": "png",
        "npz": "npz",
    }.items():
        expected |= {f"{folder}/{name}.{suffix}" for name in NAMES}
    assert set(undisturbed) == expected
    panoptic = json.loads(undisturbed["panoptic.json"])
    assert [a["file_name"] for a in panoptic["annotations"]] == [f"{n}.png" for n in NAMES]
    assert {r["image_id"] for r in json.loads(undisturbed["instances.json"])} == set(NAMES)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_save_the_same_files_as_one(undisturbed, tiny, count):
    assert run(words(tiny), count) == [0] * count
    assert content("out") == undisturbed
    shares = [len(path.read_text().splitlines()) for path in Path("out/records").glob("pan*")]
    assert sorted(shares) == {2: [2, 3], 3: [1, 2, 2]}[count]


def test_existing_results_are_skipped(folder, undisturbed, tiny):
    shutil.copytree(folder / "whole", "whole")
    times = {path: path.stat().st_mtime_ns for path in Path("whole").rglob("*.png")}
    assert run(words(tiny, "whole"), 2) == [0, 0]
    assert {path: path.stat().st_mtime_ns for path in Path("whole").rglob("*.png")} == times
    assert content("whole") == undisturbed
    (Path("whole") / "semantic" / "b.png").unlink()
    assert run(words(tiny, "whole"), 3) == [0, 0, 0]
    changed = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert {path.stem for path in changed} == {"b"}
    assert content("whole") == undisturbed


def dies_at(call):
    """Return a function that makes rank 0 kill itself (SIGKILL) while it writes a file."""

    def before(rank):
        if rank == 0:
            plant(call)

    return before


def plant(call):
    from mask_former.results import records, writer

    if call == "record":
        add = records.RecordFile.add

        def half_a_line(self, name, record):
            if name == "c":
                self._file.write(b'["c", {"ann')
                self._file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            add(self, name, record)

        records.RecordFile.add = half_a_line
        return

    def half_a_file(path):
        if path.name == "c.npz":
            path.with_name(f".{path.name}.{os.getpid()}.part").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    save = writer.save_npz

    def save_half(result, path, kinds):
        half_a_file(path)
        save(result, path, kinds)

    writer.save_npz = save_half


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("call", ["record", "npz"])
def test_a_run_that_was_killed_continues_and_ends_like_an_undisturbed_one(
    undisturbed, tiny, call, count
):
    codes = run(words(tiny), count, dies_at(call))
    assert codes[0] == -signal.SIGKILL
    assert 0 < len(list(Path("out/semantic").rglob("[!.]*.png"))) < 5
    # with another number of processes, each gets another share
    assert run(words(tiny), 3 - count) == [0] * (3 - count)
    found = {name: one for name, one in content("out").items() if not name.endswith(".part")}
    assert found == undisturbed


def test_a_process_that_is_killed_only_loses_its_own_share(undisturbed, tiny):
    assert run(words(tiny), 2, dies_at("record")) == [-signal.SIGKILL, 1]
    saved = {
        a["file_name"] for a in json.loads(Path("out/panoptic.json").read_text())["annotations"]
    }
    assert saved == {"a.png", "b.png", "sub/a.png"}  # the whole share of rank 1: b, sub/a
    saved = {r["image_id"] for r in json.loads(Path("out/instances.json").read_text())}
    assert saved == {"a", "b", "sub/a"}


def test_a_broken_image_is_reported_and_all_others_are_saved(images, tiny, capfd):
    (images / "b.png").write_text("text")
    assert run(words(tiny), 2) == [1, 1]
    printed = capfd.readouterr().out
    assert "in/b.png: cannot be read as an image" in printed
    assert "4 images done, 0 skipped, 1 failed: out" in printed
    kept = {
        a["file_name"] for a in json.loads(Path("out/panoptic.json").read_text())["annotations"]
    }
    assert kept == {f"{name}.png" for name in NAMES if name != "b"}


def test_continuing_a_run_with_other_options_is_refused(images, tiny, capfd):
    assert run(words(tiny, save="semantic-png")) == [0]
    assert run(["--confidence-threshold", "0.9", *words(tiny, save="semantic-png")]) == [2]
    assert "was started with --confidence-threshold None, now it is 0.9" in capfd.readouterr().out
    assert run(words(tiny, save="overlay")) == [0]  # more of the same results


@pytest.mark.parametrize("text", ["[1]", "5", "{", "[" * 100_000])
def test_options_of_an_earlier_run_that_cannot_be_read_are_named(text, images, tiny, capfd):
    Path("out").mkdir()
    Path("out/run.json").write_text(text)
    assert run(words(tiny, save="semantic-png")) == [2]
    printed = capfd.readouterr().out
    assert "out/run.json" in printed and "Traceback" not in printed


@pytest.fixture
def quiet(monkeypatch):
    """Prevent the command from replacing pytest's logging."""
    monkeypatch.setattr(predict_folder, "setup_logger", lambda **kwargs: None)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--input", "none", "--output", "out"], "--input none: no such folder"),
        (["--input", "empty", "--output", "out"], "empty: a folder without images"),
        (["--input", "in", "--output", "in/out", "--recursive"], "results would become inputs"),
        (["--input", "in", "--output", "in/a.png"], "is a file"),
        (["--input", "twice", "--output", "out"], "would both be saved as a"),
        (["--input", "in", "--output", "out", "--dataset", "none"], "no dataset 'none'"),
        (["--input", "in", "--output", "out", "--coco-json", "x.json"], "x.json"),
    ],
)
def test_unusable_arguments_are_an_error_of_one_line_and_exit_code_2(
    images, tiny, arguments, reason, caplog, quiet
):
    Path("empty").mkdir()
    Path("twice").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (8, 8)).save(Path("twice") / name)
    assert predict_folder.main([*arguments, *tiny]) == 2
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1 and reason in errors[0] and "\n" not in errors[0]
    assert not Path("out").exists()


def test_without_an_address_several_processes_are_refused(images, tiny, monkeypatch, caplog, quiet):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert predict_folder.main(words(tiny)) == 2
    assert "WORLD_SIZE is 2, but MASTER_ADDR is not set: use torchrun" in caplog.text


def test_it_runs_under_torchrun(folder, undisturbed, tiny, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), str(SCRIPT), *words(tiny)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "5 images done, 0 skipped, 0 failed: out" in done.stdout
    assert set(content("out")) == set(undisturbed)
    for name in NAMES:  # new processes do not know this one's class names, so JSONs differ
        found, expected = (
            np.asarray(Image.open(base / "semantic" / f"{name}.png"))
            for base in (Path("out"), folder / "whole")
        )
        assert (found == expected).all()


def test_names_of_files_neither_forge_lines_of_the_log_nor_command_the_terminal(
    images, tiny, capfd
):
    (images / "a.png").rename(images / f"{HOSTILE_NAME}.png")
    (images / "b.png").rename(images / f"b{HOSTILE_NAME}.png")
    (images / f"b{HOSTILE_NAME}.png").write_bytes(b"damaged")
    assert run(words(tiny, save="semantic-png")) == [1]
    output = "".join(capfd.readouterr())
    assert_harmless(output)
    assert "cannot be read as an image" in output and r"a\n[11-28" in output
    assert Path("out", "semantic", f"{HOSTILE_NAME}.png").is_file()
