"""The errors that end a command before it begins."""

from __future__ import annotations

import pytest
import torch

from mask_former.cli.command import SetupError, setting_up


@pytest.mark.parametrize("size", [2**50, 2**62])
def test_a_model_for_which_there_is_no_memory_is_a_mistake_in_the_config(size):
    with pytest.raises(SetupError, match=r"not enough memory .*MODEL.MASK_FORMER"), setting_up():
        torch.empty(size, 16)
    with pytest.raises(SetupError, match=r"not enough memory"), setting_up():
        raise MemoryError


def test_other_errors_of_a_running_model_keep_their_type():
    with pytest.raises(RuntimeError, match="a bug"), setting_up():
        raise RuntimeError("a bug")
