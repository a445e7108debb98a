"""The projects that chaos is done to: what is asked of each, and which answers are right when.

A project file has versions, each with its pictures, made beforehand by a plain QgsServer. What a
client may get depends on what the file was like shortly before and during its request.
"""

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from tests.support import Response

PNG = b"\x89PNG\r\n\x1a\n"
#: States of a project file that are no version.
BROKEN, GONE = "broken", "gone"
#: Seconds that the state before may still be felt: a change is noticed, the load waits for
#: others and may itself be hit.
SETTLE_S = 20.0
#: Of these the client is told when to come again, or that it was the server's fault.
PASSING = (502, 503, 504)
#: What must not be in an error for clients.
SECRETS = (b"Traceback", b"password", b"/tmp/", b"/home/", b".gpkg")


@dataclass
class Subject:
    """One project."""

    #: MAP, and the path below the root.
    name: str
    path: Path
    #: Version → content of the file.
    contents: dict[str, bytes]
    queries: list[str]
    #: Those of `queries` that need the source that may be down.
    remote: frozenset[str] = frozenset()
    #: (version, query) → the right body.
    expected: dict[tuple[str, str], bytes] = field(default_factory=dict)
    #: When the file became what; times of the monotonic clock.
    history: list[tuple[float, str]] = field(default_factory=list)
    #: (from, to) when its source was out of order; the last may be open.
    sick: list[list[float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def key(self) -> str:
        return f"{self.name}.qgs"

    @property
    def version(self) -> str:
        """What the file is now."""
        return self.history[-1][1]

    def target(self, query: str) -> str:
        return f"/ows/?{urlencode({'MAP': self.name})}&{query}"

    def put(self, state: str, content: bytes | None) -> None:
        """Change the file: the way QGIS does, by a rename."""
        with self.lock:
            # Noted before it is done: until then the state before is allowed anyway.
            self.history.append((time.monotonic(), state))
            if content is None:
                self.path.unlink(missing_ok=True)
            else:
                fresh = self.path.with_suffix(".new")
                fresh.write_bytes(content)
                fresh.replace(self.path)

    def falls_sick(self) -> None:
        self.sick.append([time.monotonic(), float("inf")])

    def is_well(self) -> None:
        self.sick[-1][1] = time.monotonic()

    def states(self, begin: float, end: float) -> set[str]:
        """What the file was at any moment that still counts for a request from begin to end."""
        since = begin - SETTLE_S
        found: set[str] = set()
        with self.lock:
            for number, (when, state) in enumerate(self.history):
                later = self.history[number + 1][0] if number + 1 < len(self.history) else end
                if when <= end and (later >= since):
                    found.add(state)
                    if state == BROKEN:
                        # The version before it goes on being served, as long as it is broken.
                        good = [s for _, s in self.history[:number] if s not in (BROKEN, GONE)]
                        found.update(good[-1:])
        return found

    def was_sick(self, begin: float, end: float) -> bool:
        """Whether its source was out of order at a moment that still counts."""
        return any(since <= end and until >= begin - SETTLE_S for since, until in self.sick)

    def judge(self, query: str, answer: Response, begin: float, end: float) -> str:
        """What is wrong with an answer; "" if it is right or honest."""
        states = self.states(begin, end)
        streamed = answer.headers.get("Transfer-Encoding") == "chunked"
        if not answer.headers.get("X-Request-Id"):
            return f"{answer.status} without X-Request-Id"
        if not answer.complete:
            return "" if streamed else "cut, though of known length"
        if answer.status == 200:
            right = [self.expected[s, query] for s in states if (s, query) in self.expected]
            if answer.body in right:
                return ""
            if query in self.remote and self.was_sick(begin, end):
                return "" if answer.body.startswith(PNG) else f"no picture: {answer.body[:80]!r}"
            return f"wrong picture, {len(answer.body)} bytes; the file was {sorted(states)}"
        return self._judge_error(query, answer, states, begin, end)

    def _judge_error(
        self, query: str, answer: Response, states: set[str], begin: float, end: float
    ) -> str:
        if wrong := [secret for secret in SECRETS if secret in answer.body]:
            return f"{answer.status} tells too much: {wrong}"
        if b"Exception" not in answer.body:
            return f"{answer.status} is no exception report: {answer.body[:80]!r}"
        if answer.status in PASSING:
            if answer.status == 503 and not answer.headers.get("Retry-After", "").isdigit():
                return "503 without Retry-After"
            return ""
        if answer.status == 404 and GONE in states:
            return ""
        if answer.status == 422 and BROKEN in states:
            return ""
        if query in self.remote and self.was_sick(begin, end):
            return ""  # what QGIS says of a layer that it cannot draw
        return f"{answer.status} {answer.body[:300]!r}; the file was {sorted(states)}"


def wms(layers: str, box: str, size: tuple[int, int]) -> str:
    """A GetMap without MAP."""
    return urlencode(
        {
            "SERVICE": "WMS", "VERSION": "1.3.0", "REQUEST": "GetMap", "LAYERS": layers,
            "STYLES": "", "CRS": "EPSG:4326", "BBOX": box, "WIDTH": size[0], "HEIGHT": size[1],
            "FORMAT": "image/png",
        }
    )  # fmt: skip


def maps(layers: str) -> list[str]:
    """Four places."""
    boxes = ("-60,-180,85,180", "35,-10,60,30", "25,-125,50,-65", "-35,-75,5,-35")
    return [wms(layers, box, (220, 140)) for box in boxes]


def features(layer: str) -> str:
    """All of a layer as GeoJSON."""
    return (
        "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&OUTPUTFORMAT=application/json"
        f"&TYPENAME={layer}"
    )


def is_whole(body: bytes) -> bool:
    """A whole feature collection."""
    try:
        return bool(json.loads(body)["features"])
    except ValueError:
        return False
