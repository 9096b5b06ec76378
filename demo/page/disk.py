"""Bound the space that uploads and archives take on the disk."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["make_room"]


def make_room(folder: Path, needed: float, limit: float) -> bool:
    """Delete the oldest files of a folder until it has room.

    Args:
        folder: folder of the uploads and archives; its subfolders count.
        needed: bytes that will be written.
        limit: bytes that the folder may hold in all.

    Returns:
        Whether there is room; False if ``needed`` alone exceeds the limit.
    """
    if needed > limit:
        return False
    files = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # deleted meanwhile
            if path.is_file():
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
    excess = sum(size for _, size, _ in files) + needed - limit
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        if path.parent != folder:
            with suppress(OSError):  # not empty
                path.parent.rmdir()
        excess -= size
    return True
