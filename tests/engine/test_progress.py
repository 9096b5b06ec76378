"""The log line of a training run, and the repair of a metrics file after a killed run."""

from __future__ import annotations

import json
import logging
import re

import pytest
from detectron2.utils.events import EventStorage

from mask_former.engine.writers import CpuMetricPrinter, repair_metrics_file

LINE = '{"iteration": 19, "total_loss": 1.5}'


@pytest.mark.parametrize(
    "content, repaired",
    [
        (f"{LINE}\n{LINE}\n", f"{LINE}\n{LINE}\n"),
        (f"{LINE}\n{LINE[:12]}", f"{LINE}\n"),
        (f"{LINE}\n{{", f"{LINE}\n"),
        (LINE[:12], ""),
        (f"{LINE}\n{LINE}", f"{LINE}\n{LINE}\n"),  # only the line break is missing
        ("", ""),
    ],
)
def test_an_unfinished_last_line_is_removed(tmp_path, content, repaired):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    for _ in range(2):  # idempotent
        repair_metrics_file(path)
        assert path.read_text() == repaired
    with path.open("a") as file:
        file.write(f"{LINE}\n")
    for line in path.read_text().splitlines():
        assert json.loads(line)["iteration"] == 19


def test_a_writer_with_the_file_open_appends_after_the_complete_lines(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(f"{LINE}\n{LINE[:9]}")
    with path.open("a") as file:
        repair_metrics_file(path)
        file.write(f"{LINE}\n")
    assert path.read_text() == f"{LINE}\n{LINE}\n"


def test_a_missing_metrics_file_is_not_created(tmp_path):
    repair_metrics_file(tmp_path / "metrics.json")
    assert not list(tmp_path.iterdir())


def test_the_log_line_shows_losses_speed_eta_and_memory(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="detectron2.utils.events")
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with EventStorage(4) as storage:
        storage.put_scalars(total_loss=2.5, time=3.0, data_time=0.5, lr=0.25)
        CpuMetricPrinter(max_iter=25).write()
    (message,) = [record.getMessage() for record in caplog.records]
    for text in ("eta: 0:01:00", "iter: 4", "total_loss: 2.5", "time: 3.0", "lr: 0.25"):
        assert text in message
    megabytes = int(re.search(r"max_mem: (\d+)M$", message)[1])
    assert 50 < megabytes < 50_000
