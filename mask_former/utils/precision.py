"""Data types of mixed precision, as named in configs."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["amp_dtype"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def amp_dtype(node: Any, key: str) -> torch.dtype | None:
    """Return the dtype of mixed precision, or None if it is off.

    Args:
        node: Config node with ``ENABLED`` and ``DTYPE``.
        key: Full name of the node, for the error message.

    Raises:
        ValueError: If ``DTYPE`` is unknown.
    """
    if not node.ENABLED:
        return None
    if node.DTYPE not in _DTYPES:
        raise ValueError(f"{key}.DTYPE is {node.DTYPE!r}; expected one of {list(_DTYPES)}.")
    return _DTYPES[node.DTYPE]
