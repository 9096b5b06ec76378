"""Switch between the fast kernels of this folder and their plain reference versions.

``MODEL.REFERENCE_OPS True`` sets it for a model. Modules that own a kernel (Swin's attention,
timm's depthwise convolutions) read the key once, when they are built. Functions (losses, inference)
ask :func:`is_reference` when they are called; the model calls them inside :func:`reference_ops`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["is_reference", "reference_ops"]

_REFERENCE: ContextVar[bool] = ContextVar("mask_former_reference_ops", default=False)


def is_reference() -> bool:
    """Return True inside :func:`reference_ops`; each thread has its own state."""
    return _REFERENCE.get()


@contextmanager
def reference_ops(enabled: bool = True) -> Iterator[None]:
    """Run the reference versions inside this context.

    A backward pass follows the choice of its forward pass, wherever it runs. Do not yield from a
    generator inside this context, because its caller would be inside, too.

    Args:
        enabled: False changes nothing, so that a model without the switch keeps a caller's state.
    """
    token = _REFERENCE.set(enabled or is_reference())
    try:
        yield
    finally:
        _REFERENCE.reset(token)
