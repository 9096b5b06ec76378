"""Limit how often each client may do something."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable

__all__ = ["Rate", "client_name"]


class Rate:
    """At most ``per_minute`` events of each client, as a bucket of tokens. Thread-safe.

    A client may use its whole minute at once, then one event every ``60 / per_minute`` seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Set the rate; ``clock`` returns the time in seconds."""
        self._per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._full_at: dict[str, float] = {}  # client -> time at which its bucket is full again

    def allows(self, client: str) -> bool:
        """Return whether the client may act now; if so, the event counts."""
        with self._lock:
            now, token = self._clock(), 60 / self._per_minute
            self._full_at = {name: full for name, full in self._full_at.items() if full > now}
            full_at = max(now, self._full_at.get(client, now)) + token
            if full_at > now + 60 + token / 2:  # half a token against rounding
                return False
            self._full_at[client] = full_at
            return True


def client_name(host: str) -> str:
    """Return the name under which the limits count an address.

    One subscriber has at least a /64 network of IPv6 addresses, so the whole network is one client.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # such as the name of a Unix socket
        return host
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
