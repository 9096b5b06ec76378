"""Checkpoints that the page offers; each is loaded when it is first used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from mask_former import MaskFormerPredictor

__all__ = ["Models", "display_names"]


class Models:
    """Predictors by name, of which the most recently used stay in memory. Thread-safe."""

    def __init__(
        self, sources: Sequence[str], load: Callable[[str], MaskFormerPredictor], keep: int
    ) -> None:
        """Set the checkpoints; none is loaded yet.

        Args:
            sources: paths, URLs or names of checkpoints; the first is the page's default.
            load: function that loads a source.
            keep: number of predictors that stay in memory, 1 or more.

        Raises:
            ValueError: if there is no source, or ``keep`` is below 1.
        """
        if not sources or keep < 1:
            raise ValueError(
                f"{len(sources)} checkpoints, {keep} kept in memory; expected 1 or more of both"
            )
        self._sources = dict(zip(display_names(sources), sources, strict=True))
        self._load = load
        self._keep = keep
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, MaskFormerPredictor] = OrderedDict()

    @property
    def names(self) -> list[str]:
        """Names of the checkpoints on the page, the default first."""
        return list(self._sources)

    @property
    def loaded(self) -> list[str]:
        """Names of the checkpoints in memory, the most recently used at the end."""
        return list(self._loaded)

    def get(self, name: str) -> MaskFormerPredictor:
        """Return a predictor by name, loading it first if necessary.

        Raises:
            KeyError: if the page does not offer this checkpoint.
            OSError, ValueError: if it cannot be loaded.
        """
        if name not in self._sources:
            raise KeyError(f"The page has no checkpoint {name!r}; expected one of {self.names}.")
        with self._lock:
            if name not in self._loaded:
                while len(self._loaded) >= self._keep:
                    self._loaded.popitem(last=False)  # before loading: both may not fit in memory
                self._loaded[name] = self._load(self._sources[name])
            self._loaded.move_to_end(name)
            return self._loaded[name]


def display_names(sources: Sequence[str]) -> list[str]:
    """Return a short name for each source: the shortest end of its path that is unique.

    Checkpoints of different runs often have the same file name; then the folder is added to it.

    Raises:
        ValueError: if a source is given twice.
    """
    paths = [Path(source) for source in dict.fromkeys(sources)]
    if len(paths) < len(sources):
        raise ValueError(f"A checkpoint is given twice: {list(sources)}. Remove one of them.")
    names = [path.name for path in paths]
    for length in range(2, max(len(path.parts) for path in paths) + 1):
        twice = {name for name in names if names.count(name) > 1}
        if not twice:
            break
        names = [
            "/".join(path.parts[-length:]) if name in twice else name
            for name, path in zip(names, paths, strict=True)
        ]
    return names
