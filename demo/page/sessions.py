"""Store of one value per session, bounded in number, memory and time."""

from __future__ import annotations

import math
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
        self,
        capacity: int,
        lifetime: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        size: Callable[[T], float] = lambda value: 0,
        max_size: float = math.inf,
        per_owner: float = math.inf,
    ) -> None:
        """Set the limits.

        Args:
            capacity: number of sessions whose value is kept, 1 or more.
            lifetime: seconds without use after which a session's value is dropped.
            clock: function that returns the time in seconds.
            size: function that returns the size of a value, which may change.
            max_size: size of all values together.
            per_owner: number of sessions of one owner whose value is kept.

        Raises:
            ValueError: if ``capacity`` or ``lifetime`` is not positive.
        """
        if capacity < 1 or lifetime <= 0:
            raise ValueError(f"capacity {capacity} and lifetime {lifetime} must be positive")
        self.capacity = capacity
        self.lifetime = lifetime
        self._clock = clock
        self._size = size
        self._max_size = max_size
        self._per_owner = per_owner
        self._lock = threading.Lock()
        self._values: OrderedDict[str, tuple[float, T, str]] = OrderedDict()

    def put(self, session: str, value: T, owner: str = "") -> None:
        """Keep a value, in place of the session's previous one.

        Args:
            session: name of the session, which its client chooses.
            value: the value.
            owner: the client, whose sessions replace each other if it has many.
        """
        with self._lock:
            self._values.pop(session, None)
            own = [name for name, (_, _, other) in self._values.items() if other == owner]
            if len(own) >= self._per_owner:
                del self._values[own[0]]
            self._values[session] = (self._clock(), value, owner)
            self._forget()

    def get(self, session: str) -> T | None:
        """Return the session's value or None (missing or dropped); this counts as a use."""
        with self._lock:
            self._forget()
            if session not in self._values:
                return None
            _, value, owner = self._values[session]
            self._values[session] = (self._clock(), value, owner)
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
        sizes = [self._size(value) for _, value, _ in self._values.values()]
        total = sum(sizes)
        for size in sizes:
            used = next(iter(self._values.values()))[0]
            if used > oldest and len(self._values) <= self.capacity and total <= self._max_size:
                break
            self._values.popitem(last=False)
            total -= size
