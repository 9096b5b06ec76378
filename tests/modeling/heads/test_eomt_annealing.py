"""The schedule of mask annealing."""

from __future__ import annotations

import pytest

from mask_former.config.keys import get_mask_former_cfg
from mask_former.modeling.heads.eomt_annealing import Annealing


def test_without_steps_masks_are_lifted_between_the_first_and_the_last_sixth() -> None:
    # the published schedule of 12 epochs of COCO for 3 blocks
    starts, ends = [14782, 36955, 59128], [29564, 51737, 73910]
    default, given = Annealing(), Annealing(start_steps=tuple(starts), end_steps=tuple(ends))
    for step in (0, 14781, 14782, 20000, 29563, 29564, 40000, 60000, 73909, 73910, 88692):
        assert default.remaining(step, 88692, 3) == given.remaining(step, 88692, 3)
    assert default.remaining(14782, 88692, 3) == [1, 1, 1]
    assert default.remaining(73910, 88692, 3) == [0, 0, 0]


def test_the_share_falls_with_the_power() -> None:
    annealing = Annealing(start_steps=(10,), end_steps=(20,), power=0.5)
    found = [annealing.remaining(step, 30, 1)[0] for step in (9, 10, 15, 20)]
    assert found == pytest.approx([1, 1, 0.5**0.5, 0])


def test_one_block_and_no_annealing() -> None:
    assert Annealing().remaining(30, 120, 1) == pytest.approx([0.5**0.9])
    assert Annealing(enabled=False).remaining(120, 120, 2) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("starts", "ends", "message"),
    [
        ([1, 2], [3, 4], "one number for each of the 3 blocks"),
        ([1, 2, 3], [], "one number for each of the 3 blocks"),
        ([1, 2, 9], [3, 4, 9], "less than its end"),
        ([-1, 2, 3], [3, 4, 9], "0 or more"),
        ([1, 2, 3], [3, 4, 10**9], r"set both lists to \[\]"),
    ],
)
def test_steps_that_do_not_fit_are_refused_by_name(starts, ends, message) -> None:
    cfg = get_mask_former_cfg()
    cfg.MODEL.EOMT.ANNEALING.START_STEPS, cfg.MODEL.EOMT.ANNEALING.END_STEPS = starts, ends
    with pytest.raises(ValueError, match=rf"(?s)MODEL\.EOMT\.ANNEALING.*{message}"):
        Annealing.from_config(cfg)
