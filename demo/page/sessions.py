"""What the page remembers of each visitor: one thing a session, few sessions, not for long."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Sessions"]

T = TypeVar("T")


class Sessions(Generic[T]):
    """Values by session. The one that was not used for longest goes first; safe between threads."""

    def __init__(
        self, capacity: int, lifetime: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            capacity: of how many sessions something is kept, at least 1.
            lifetime: seconds without use after which a session's value is dropped.
            clock: says the time in seconds.

        Raises:
            ValueError: if nothing could be kept.
        """
        if capacity < 1 or lifetime <= 0:
            raise ValueError(f"capacity {capacity} and lifetime {lifetime} must be positive")
        self.capacity = capacity
        self.lifetime = lifetime
        self._clock = clock
        self._lock = threading.Lock()
        self._values: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def put(self, session: str, value: T) -> None:
        """Remember a value in place of the one that the session had."""
        with self._lock:
            self._values[session] = (self._clock(), value)
            self._values.move_to_end(session)
            self._forget()

    def get(self, session: str) -> T | None:
        """The session's value, which counts as a use; None where it has none (any more)."""
        with self._lock:
            self._forget()
            if session not in self._values:
                return None
            value = self._values[session][1]
            self._values[session] = (self._clock(), value)
            self._values.move_to_end(session)
            return value

    def drop(self, session: str) -> None:
        """Forget the session's value, if it has one."""
        with self._lock:
            self._values.pop(session, None)

    def __len__(self) -> int:
        with self._lock:
            self._forget()
            return len(self._values)

    def _forget(self) -> None:
        oldest = self._clock() - self.lifetime
        while self._values:
            used, _ = next(iter(self._values.values()))
            if used > oldest and len(self._values) <= self.capacity:
                break
            self._values.popitem(last=False)
