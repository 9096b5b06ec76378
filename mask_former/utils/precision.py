"""The number formats of mixed precision, as configs name them."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["amp_dtype"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def amp_dtype(node: Any, key: str) -> torch.dtype | None:
    """The dtype that a config node with ``ENABLED`` and ``DTYPE`` asks for; None where it is off.

    Args:
        node: the node.
        key: its name, for the message.

    Raises:
        ValueError: for another dtype.
    """
    if not node.ENABLED:
        return None
    if node.DTYPE not in _DTYPES:
        raise ValueError(f"{key}.DTYPE is {node.DTYPE!r}; it must be in {list(_DTYPES)}.")
    return _DTYPES[node.DTYPE]
