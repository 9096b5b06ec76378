"""Learning-rate schedules."""

from __future__ import annotations

import pytest
import torch

from mask_former.config.keys import get_mask_former_cfg
from mask_former.solver import build_lr_scheduler, eomt_factors


def two_stage_cfg():
    cfg = get_mask_former_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupTwoStagePolyLR"
    cfg.SOLVER.WARMUP_STEPS, cfg.SOLVER.MAX_ITER = [4, 6], 20
    return cfg


def test_the_vit_stands_still_until_the_new_layers_are_warm() -> None:
    cfg = two_stage_cfg()
    vit, other = zip(*(eomt_factors(cfg, step) for step in range(21)), strict=True)
    assert other[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert other[12] == pytest.approx(0.5**0.9) and other[20] == 0
    assert vit[:4] == (0, 0, 0, 0) and vit[4:11] == pytest.approx([i / 6 for i in range(7)])
    assert vit[15] == pytest.approx(0.5**0.9) and vit[20] == 0


def test_groups_follow_the_schedule_of_their_kind() -> None:
    groups = [{"params": [torch.zeros(1)], "lr": 2.0, "is_vit": True}]
    groups += [{"params": [torch.zeros(1)], "lr": 3.0}]
    optimizer = torch.optim.SGD(groups)
    scheduler = build_lr_scheduler(two_stage_cfg(), optimizer)
    for step in range(12):
        vit, other = eomt_factors(two_stage_cfg(), step)
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx([2 * vit, 3 * other])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("steps", [[4], [4, 5, 6], [10, 10]])
def test_warm_ups_that_do_not_fit_are_refused_by_name(steps: list[int]) -> None:
    cfg = two_stage_cfg()
    cfg.SOLVER.WARMUP_STEPS = steps
    optimizer = torch.optim.SGD([torch.zeros(1)])
    with pytest.raises(ValueError, match=r"SOLVER\.WARMUP_STEPS is .* together less than MAX_ITER"):
        build_lr_scheduler(cfg, optimizer)
