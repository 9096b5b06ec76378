"""A saved config is read again, also if two of its values are one list."""

from __future__ import annotations

from mask_former.config.loading import read_cfg
from mask_former.config.saving import save_config


def test_values_that_share_a_list_are_saved_without_aliases(config, tmp_path):
    cfg = config().clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("a", "b")
    save_config(cfg, tmp_path)
    assert "&" not in (tmp_path / "config.yaml").read_text()
    saved = read_cfg(str(tmp_path / "config.yaml"), None)
    assert saved.DATASETS.TRAIN == saved.DATASETS.TEST == ("a", "b")
