"""The switch between fast kernels and their reference versions."""

from __future__ import annotations

import threading

import pytest

from mask_former.ops import is_reference, reference_ops


def test_the_switch_is_off_outside_and_on_inside_its_context() -> None:
    assert not is_reference()
    with reference_ops():
        assert is_reference()
    assert not is_reference()


def test_a_nested_context_that_is_not_enabled_changes_nothing() -> None:
    with reference_ops(False):
        assert not is_reference()
    with reference_ops(), reference_ops(False):
        assert is_reference()


def test_an_error_inside_the_context_restores_the_switch() -> None:
    with pytest.raises(RuntimeError), reference_ops():
        raise RuntimeError
    assert not is_reference()


def test_another_thread_is_not_affected() -> None:
    seen = []
    with reference_ops():
        thread = threading.Thread(target=lambda: seen.append(is_reference()))
        thread.start()
        thread.join()
    assert seen == [False]
