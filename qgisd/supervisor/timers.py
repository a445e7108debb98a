"""Deadlines by name, earliest first. Pure: the time is an argument."""

import heapq
from collections.abc import Hashable, Iterator


class Timers:
    """At most one deadline per key; setting it again moves it."""

    def __init__(self) -> None:
        self._when: dict[Hashable, float] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._order = 0

    def set(self, key: Hashable, when: float) -> None:
        """Set or move the deadline of `key` to `when`, in the caller's clock, seconds."""
        self._when[key] = when
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, key))
        if len(self._heap) > 64 + 4 * len(self._when):
            self._compact()

    def cancel(self, key: Hashable) -> None:
        """Forget `key`; nothing happens if it has no deadline."""
        self._when.pop(key, None)

    def next(self) -> float | None:
        """The earliest deadline, or None."""
        while self._heap and self._when.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[Hashable]:
        """Remove and yield each key whose deadline is not after `now`, earliest first."""
        while (when := self.next()) is not None and when <= now:
            key = heapq.heappop(self._heap)[2]
            del self._when[key]
            yield key

    def _compact(self) -> None:
        # Moved and cancelled deadlines stay in the heap; without this they pile up under load.
        self._heap = [entry for entry in self._heap if self._when.get(entry[2]) == entry[0]]
        heapq.heapify(self._heap)
