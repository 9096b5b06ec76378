"""Files are written past planted links, exports change at once, and folders have one training."""

from __future__ import annotations

from tests.robustness.writing import (
    export_on_a_full_disk,
    kill_exports,
    train_twice_at_once,
    write_next_to_links,
)


def test_nothing_is_written_through_links_at_predictable_temporary_names(tmp_path):
    count, problems = write_next_to_links(tmp_path)
    assert count > 5 and not problems


def test_an_export_on_a_full_disk_ends_with_a_message_and_leaves_the_earlier_one(tmp_path):
    message, problems = export_on_a_full_disk(tmp_path, "torchscript")
    assert not problems and message.startswith("export: ")
    file = tmp_path / "graphs" / "mask_former.ts"
    assert "File too large; nothing was changed" in message and str(file) in message


def test_exports_that_are_killed_leave_the_earlier_one(tmp_path):
    unfinished, problems = kill_exports(tmp_path, kills=2, seed=0)
    assert not problems and unfinished


def test_a_second_training_in_a_folder_is_refused_and_the_first_goes_on(tmp_path):
    message, problems = train_twice_at_once(tmp_path, iterations=3)
    assert not problems and "started" in message
