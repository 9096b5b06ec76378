"""Store of one value per session, for a limited number of sessions and a limited time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Sessions"]

T = TypeVar("T")


class Sessions(Generic[T]):
    """Values by session; the least recently used is dropped first. Thread-safe."""

    def __init__(
        self, capacity: int, lifetime: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Set the limits.

        Args:
            capacity: number of sessions whose value is kept, 1 or more.
            lifetime: seconds without use after which a session's value is dropped.
            clock: function that returns the time in seconds.

        Raises:
            ValueError: if ``capacity`` or ``lifetime`` is not positive.
        """
        if capacity < 1 or lifetime <= 0:
            raise ValueError(f"capacity {capacity} and lifetime {lifetime} must be positive")
        self.capacity = capacity
        self.lifetime = lifetime
        self._clock = clock
        self._lock = threading.Lock()
        self._values: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def put(self, session: str, value: T) -> None:
        """Keep a value, in place of the session's previous one."""
        with self._lock:
            self._values[session] = (self._clock(), value)
            self._values.move_to_end(session)
            self._forget()

    def get(self, session: str) -> T | None:
        """Return the session's value or None (missing or dropped); this counts as a use."""
        with self._lock:
            self._forget()
            if session not in self._values:
                return None
            value = self._values[session][1]
            self._values[session] = (self._clock(), value)
            self._values.move_to_end(session)
            return value

    def drop(self, session: str) -> None:
        """Drop the session's value, if it has one."""
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
