"""detectron2's norms by name, with errors that name the config key."""

from __future__ import annotations

from detectron2.layers import get_norm
from torch import nn

__all__ = ["build_norm"]


def build_norm(name: str, channels: int, key: str) -> nn.Module | None:
    """Create a norm of detectron2, or None for the name "".

    Args:
        name: detectron2's name of the norm.
        channels: of the maps that it normalises.
        key: Where the name stands, for error messages.

    Raises:
        ValueError: if detectron2 has no such norm, or it does not fit the number of channels.
    """
    try:
        norm: nn.Module | None = get_norm(name, channels)
    except KeyError as error:
        raise ValueError(
            f"{key} is {name!r}; expected a norm of detectron2: BN, SyncBN, FrozenBN, GN or LN, "
            "or '' for none."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{key} is {name!r}, which does not fit maps of {channels} channels: {error}."
        ) from error
    return norm
