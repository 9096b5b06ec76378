"""Save the config of a training so that its output folder can be moved or copied."""

from __future__ import annotations

import os
from pathlib import Path

from detectron2.config import CfgNode

from mask_former.data.datasets.custom import copy_table
from mask_former.utils.atomic_files import replace_text
from mask_former.utils.web import is_url

from .loading import plugin_comments

__all__ = ["save_config"]


def save_config(cfg: CfgNode, folder: Path) -> None:
    """Write ``config.yaml`` into ``folder``, and the dataset tables that it names.

    Paths of weights and tables inside ``folder`` become relative to it, because ``load_cfg`` looks
    there first. Other tables are copied into it; other weights keep their path.

    Args:
        cfg: the requested config, not that of ``resolve_device``, so that the config of a training
            on a CPU uses a GPU where one is available.
        folder: the output folder, which exists.
    """
    saved = cfg.clone()
    saved.defrost()
    saved.MODEL.WEIGHTS = _name_inside(cfg.MODEL.WEIGHTS, folder) or cfg.MODEL.WEIGHTS
    tables: list[str] = []
    for name in cfg.DATASETS.TABLES:
        inside = _name_inside(name, folder)
        if inside is None:
            inside = Path(name).name
            if inside in tables:  # tables of the same name, from different folders
                inside = f"{len(tables)}_{inside}"
            copy_table(Path(name).expanduser(), folder / inside)
        tables.append(inside)
    saved.DATASETS.TABLES = tables
    text = plugin_comments() + saved.dump()
    replace_text(folder / "config.yaml", text)


def _name_inside(name: str, folder: Path) -> str | None:
    """Return the name of a file relative to ``folder``, or None if the file is not in it."""
    plain, mark, query = name.partition("?")
    if not plain or is_url(plain):
        return None
    path, parent = (Path(os.path.abspath(os.path.expanduser(p))) for p in (plain, folder))
    if not path.is_relative_to(parent):
        return None
    return f"{path.relative_to(parent).as_posix()}{mark}{query}"
