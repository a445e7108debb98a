"""The breaker of a project: what fails again and again is refused for a while. Pure.

Closed, requests pass. Too many failures in a window open it, and requests of this project are
answered 503 at once, without costing a worker. After a pause one request is let through as a
probe: its success closes the breaker, its failure opens it for twice as long.
"""

from collections import deque
from enum import Enum

from qgisd.supervisor.states import advance


class BreakerState(Enum):
    """See the module."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


B = BreakerState

BREAKER = {
    (B.CLOSED, "trip"): B.OPEN,
    (B.OPEN, "pause over"): B.HALF_OPEN,
    (B.HALF_OPEN, "success"): B.CLOSED,
    (B.HALF_OPEN, "trip"): B.OPEN,
}


class Breaker:
    """One project's. Times are seconds of the caller's clock; requests go by their numbers."""

    def __init__(self, failures: int, window_s: float, pause_s: float, longest_s: float) -> None:
        self._limit = failures
        self._window_s = window_s
        self._pause_s = self._first_pause_s = pause_s
        self._longest_s = longest_s
        #: Of the last failures: when, of which request, and how many had succeeded before.
        self._failures: deque[tuple[float, int, int]] = deque(maxlen=failures)
        self._successes = 0
        self._until = 0.0
        self._probe = 0
        self.state = B.CLOSED

    def refuses(self, now: float, request: int) -> int | None:
        """Seconds after which to try again if a request may not pass now, else None.

        Asking is taking: the request that is let through half open is the probe.
        """
        if self.state is B.OPEN and now >= self._until:
            self.state = advance(BREAKER, self.state, "pause over", "breaker")
            self._probe = 0
        if self.state is B.CLOSED:
            return None
        if self.state is B.HALF_OPEN and not self._probe:
            self._probe = request
            return None
        return max(1, round(self._until - now)) if self.state is B.OPEN else 1

    def failed(self, now: float, request: int) -> bool:
        """A worker was lost over a request. True if that opened the breaker.

        A request that is tried twice counts once. Among many that succeed, a few that fail are no
        reason to refuse all: kills are cheap.
        """
        if any(seen == request for _, seen, _ in self._failures):
            return False
        self._failures.append((now, request, self._successes))
        if self.state is B.OPEN:
            return False
        if self.state is B.HALF_OPEN:
            self._pause_s = min(self._longest_s, self._pause_s * 2)
        else:
            since, _, succeeded_before = self._failures[0]
            if (
                len(self._failures) < self._limit
                or now - since > self._window_s
                or self._successes - succeeded_before >= self._limit
            ):
                return False
        self.state = advance(BREAKER, self.state, "trip", "breaker")
        self._until = now + self._pause_s
        return True

    def succeeded(self) -> bool:
        """A request of the project came to its end. True if that closed the breaker."""
        self._successes += 1
        if self.state is not B.HALF_OPEN:
            return False
        self.state = advance(BREAKER, self.state, "success", "breaker")
        self._failures.clear()
        self._pause_s = self._first_pause_s
        return True

    def abandoned(self, request: int) -> None:
        """A request ended without telling anything; if it was the probe, another may pass."""
        if self._probe == request:
            self._probe = 0

    def reset(self) -> None:
        """The project has another file now: what failed may work."""
        self.state = B.CLOSED
        self._failures.clear()
        self._pause_s = self._first_pause_s
