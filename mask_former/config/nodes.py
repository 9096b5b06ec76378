"""Access to the keys of a config by their full names, such as ``MODEL.DEVICE``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode

__all__ = ["as_list", "get", "leaves"]


def get(cfg: CfgNode, key: str) -> Any:
    """Return the value of a key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full name of every key, and its value."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def as_list(value: Any) -> list[Any]:
    """Return the items of a list or tuple; another value is the only item."""
    return list(value) if isinstance(value, list | tuple) else [value]
