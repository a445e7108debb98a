"""A rate limit for the log: what is said again and again is said a few times, then counted.

What is the same is a matter of logger, level and text, less numbers and ids; a record may have
another text for that, as `same`. Lines of requests (`safe`, see log.py), and of who changed what,
are never left out.
"""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

#: So many of the same are shown within a window; the rest is told as a number at its end.
BURST = 10
WINDOW_S = 60.0
#: Different messages that are counted at once; beyond that the oldest are forgotten.
_MOST = 1000
#: Request ids that are made here have 16 digits.
_NUMBERS = re.compile(r"\b[0-9a-f]{16}\b|\d+")
_COMPLETE = ("qgisd.admin",)

Key = tuple[str, int, str]


@dataclass(slots=True)
class _Seen:
    since: float
    count: int
    #: The last one that was left out.
    last: logging.LogRecord | None = None


class Repeats(logging.Filter):
    """On a handler. `show` takes the records that tell what was left out."""

    def __init__(
        self,
        show: Callable[[logging.LogRecord], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._show = show
        self._clock = clock
        self._seen: dict[Key, _Seen] = {}
        #: How many were left out since the start.
        self.left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show it."""
        if getattr(record, "safe", False) or getattr(record, "told", False):
            return True
        if record.name in _COMPLETE:
            return True
        same = getattr(record, "same", None) or record.getMessage()
        key = (record.name, record.levelno, _NUMBERS.sub("#", same))
        now = self._clock()
        seen = self._seen.get(key)
        if seen is not None and now - seen.since >= WINDOW_S:
            self._tell(key)
            seen = None
        if seen is None:
            if len(self._seen) >= _MOST:
                self._tell(next(iter(self._seen)))
            seen = self._seen[key] = _Seen(now, 0)
        seen.count += 1
        if seen.count <= BURST:
            return True
        seen.last = record
        self.left_out += 1
        return False

    def look(self) -> None:
        """Tell what was left out in windows that are over."""
        now = self._clock()
        for key in [key for key, seen in self._seen.items() if now - seen.since >= WINDOW_S]:
            self._tell(key)

    def finish(self) -> None:
        """Tell all that was left out."""
        for key in list(self._seen):
            self._tell(key)

    def _tell(self, key: Key) -> None:
        seen = self._seen.pop(key, None)
        if seen is None or seen.last is None:
            return
        times = seen.count - BURST
        text = f"{seen.last.getMessage()} … repeated {times} times in {WINDOW_S:g} s"
        changes = {"msg": text, "args": (), "exc_info": None, "exc_text": None, "told": True}
        self._show(logging.makeLogRecord(seen.last.__dict__ | changes))
