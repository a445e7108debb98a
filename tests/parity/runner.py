"""Asks qgisd and a plain QgsServer the same, and compares: the work behind the suite's tests.

Each side, the plain servers and each mode of qgisd, has a copy of all projects and a database of
its own, so that writes of one do not reach another. A source's answers are made once, by a plain
server that has been asked nothing else; every mode is compared with them.
"""

import io
import random
import re
import shutil
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageChops

from tests.e2e.helpers import Reference, difference, without_times
from tests.parity.cases import PDF, SIGNATURES, Case, cases_of
from tests.parity.sources import Source
from tests.support import Daemon, Response

#: Sources at work at once.
AT_ONCE = 2
#: Clients at once in the mode `random`, and workers for them.
CLIENTS = 4
#: Of the shuffling.
SEED = 20


@dataclass(frozen=True)
class Mode:
    """One way in which qgisd serves."""

    name: str
    #: In the table.
    letter: str
    about: str
    #: Lines of [pool].
    pool: str
    #: Of a project that is served this way, in the admin API.
    forked: bool = True
    shuffled: bool = False
    #: Sources left out.
    without: tuple[str, ...] = ()


_ONE = "workers = 4\nproject_workers = 1\n"
MODES = (
    Mode("cold", "C", "fork of a snapshot that has answered nothing", _ONE + 'warmup = "off"\n'),
    Mode("warm", "W", "fork of a snapshot that has drawn its layers", _ONE + 'warmup = "map"\n'),
    Mode("loaded", "L", "`snapshot = false`: the worker loads the project itself",
         _ONE + "snapshot = false\n", forked=False),
    Mode("random", "R", f"{CLIENTS} workers at once, requests in random order; without writes",
         f"workers = {CLIENTS * AT_ONCE}\nproject_workers = {CLIENTS}\n"
         "breaker_failures = 1000000\n", shuffled=True,
         # What these answer depends on what they were asked before, in a plain server too:
         # test_parity.py asks two of them.
         without=("wfs", "oapif", "vectortile")),
)  # fmt: skip
BY_NAME = {mode.name: mode for mode in MODES}

#: For requests that set a filter or change data by WFS-T: a plain server would switch a GeoPackage
#: to WAL, which connections opened before cannot read, so that extents and counts are 0 from then
#: on, and of two plain servers one answers empty. qgisd keeps the journal (worker/writes.py), and
#: so does the plain server here.
JOURNAL = {"OGR_SQLITE_JOURNAL": "DELETE"}
#: Why an answer in random order may differ: proven with plain servers in test_parity.py.
EXTENTS = (
    "an extent of a GeoPackage comes from its index (rounded) or from its features, by what was"
    " asked before; of plain servers too"
)
#: Qt asks FreeType for the outlines of letters, and is given them by what it has drawn before: some
#: parts of 2,048 of a letter's height apart. QGIS has no part in it: QPainterPath.addText, then
#: drawText in another size, then the same addText, on both Debians.
LETTERS = (
    "letters, by 0.05 points in PDF and SVG, 8 of 255 shades in PNG and 48 in JPEG at most, by what"
    " was drawn before; of plain servers too"
)
SHIFT = 0.05
#: Met are 4, of which JPEG makes up to 26: it rounds what it takes a block of pixels to be made of.
SHADES = {"image/png": 8, "image/jpeg": 48}
#: Which of several labels that fit equally well is drawn, at random, in one process (QGIS 3.40).
SEVERAL = "a plain server that is asked again draws this picture too: it has several"
TRIES = 20
_STREAM = re.compile(rb"stream\r?\n(.*?)\r?\nendstream", re.DOTALL)
#: Lengths and places in the file: objects that are a number, tables of places and where those are.
_PLACES = re.compile(
    rb" 0 obj\s+[0-9]+\s+endobj|xref\s.*?trailer|(startxref|/Prev)\s+[0-9]+", re.DOTALL
)
_NUMBER = re.compile(rb"-?[0-9]+(?:[.][0-9]+)?")
_DECIMALS = re.compile(rb"-?[0-9]+[.][0-9]{2,}")

#: (status of a plain server, of qgisd) with the same body → why they differ (_honest_status).
ON_PURPOSE = {
    (500, 404): "404 for a feature that is not there, where QGIS says 500",
    (200, 400): "400 for a SERVICE that is not there, where QGIS says 200",
}


@dataclass(frozen=True)
class Result:
    """One case, compared."""

    case: Case
    #: "" where the answers are the same.
    difference: str
    #: What the answer was expected to hold, and does not.
    hollow: str
    #: Of an expected difference.
    cause: str = ""
    #: Until the whole answer had come.
    seconds: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where a side finds its copies."""

    roots: Path
    #: For QGIS: the service file and the password file of its own database.
    environment: dict[str, str] = field(default_factory=dict)


def hollow(case: Case, answer: Response) -> str:
    """What an answer lacks that shows success (or the error that was asked for)."""
    if case.holds is None:
        return ""
    well = answer.status < 300 if case.status < 300 else answer.status >= 400
    if not well:
        return f"status {answer.status}: {answer.body[:200]!r}"
    if case.holds in SIGNATURES:
        held = answer.body.startswith(case.holds)
    else:
        held = case.holds.lower() in answer.body.lower()
    return "" if held else f"no {case.holds!r} in {answer.body[:200]!r}"


def rounded(answer: Response) -> Response:
    """With numbers cut to six digits, where it is text."""
    kind = str(answer.headers.get("Content-Type", ""))
    if "image" in kind or "pdf" in kind:
        return answer
    body = _DECIMALS.sub(lambda match: b"%.6g" % float(match[0]), answer.body)
    return Response(answer.status, answer.headers, body, answer.complete)


def _unpacked(pdf: bytes) -> bytes:
    """What is in a PDF file, its streams unpacked, less their lengths and places in the file."""

    def content(stream: re.Match[bytes]) -> bytes:
        try:
            return zlib.decompress(stream[1])
        except zlib.error:
            return stream[1]

    return _STREAM.sub(content, _PLACES.sub(b"", without_times(pdf, "pdf")))


def _moved(left: bytes, right: bytes) -> bool:
    """Whether two drawings differ in places on the page alone, and by no more than SHIFT."""
    if _NUMBER.sub(b"", left) != _NUMBER.sub(b"", right):
        return False
    pairs = zip(_NUMBER.findall(left), _NUMBER.findall(right), strict=True)
    return all(one == other or abs(float(one) - float(other)) <= SHIFT for one, other in pairs)


def _shaded(ours: bytes, plain: bytes, limit: int) -> bool:
    """Whether two pictures differ by no more than so many shades anywhere."""
    left, right = (Image.open(io.BytesIO(body)).convert("RGBA") for body in (ours, plain))
    if left.size != right.size:
        return False
    return all(high <= limit for _, high in ImageChops.difference(left, right).getextrema())


def letters(ours: Response, plain: Response) -> bool:
    """Whether two answers differ as letters do (LETTERS) and not more."""
    kind = str(plain.headers.get("Content-Type", ""))
    if ours.status != plain.status or ours.headers.get("Content-Type") != kind:
        return False
    if ours.body.startswith(PDF) and plain.body.startswith(PDF):
        return _moved(_unpacked(ours.body), _unpacked(plain.body))
    if kind.startswith("image/svg"):
        return _moved(ours.body, plain.body)
    limit = SHADES.get(kind.partition(";")[0])
    return limit is not None and _shaded(ours.body, plain.body, limit)


def is_picture(answer: Response) -> bool:
    """Of pixels, or a PDF file."""
    return str(answer.headers.get("Content-Type", "")).startswith(("image/", "application/pdf"))


def draws_too(ask: Callable[[], Response], ours: Response) -> bool:
    """Whether one of TRIES answers is ours, byte for byte."""
    return any(not difference(ours, ask()) for _ in range(TRIES))


def compare(
    source: Source, case: Case, ours: Response, plain: Response, shuffled: bool = False
) -> Result:
    """The verdict on one case."""
    cause = ON_PURPOSE.get((plain.status, ours.status), "")
    if cause and ours.body == plain.body:
        plain = Response(ours.status, plain.headers, plain.body)
    else:
        cause = ""
    if shuffled and difference(ours, plain):
        if not difference(rounded(ours), rounded(plain)):
            ours, plain, cause = rounded(ours), rounded(plain), EXTENTS
        elif letters(ours, plain):
            ours, cause = plain, LETTERS
    unlikely = case.id in source.hollow or (case.writes and not source.editable)
    return Result(case, difference(ours, plain), "" if unlikely else hollow(case, ours), cause)


class Plain:
    """A plain QgsServer, and what it has answered."""

    def __init__(self, place: Place, folder: Path) -> None:
        self._place = place
        self._server = Reference(folder, environment=place.environment)

    def ask(self, source: Source, case: Case) -> Response:
        target = case.target(source).replace("/ogcapi", "/wfs3", 1)
        path = self._place.roots / f"{source.map}.qgs"
        journal = JOURNAL if "FILTER=" in target or case.method == "POST" else {}
        return self._server.ask(
            path, target, case.method, case.body.encode(), case.headers, journal
        )

    def get(self, path: Path, target: str) -> Response:
        return self._server.ask(path, target)

    def stop(self) -> None:
        self._server.stop()


class Suite:
    """All sides, started when first needed; results by mode and source."""

    def __init__(
        self,
        place: Callable[[str], Place],
        start: Callable[[Mode, Place], Daemon],
        folder: Callable[[str], Path],
        mercator: str,
    ) -> None:
        self._place = place
        self._start = start
        self._folder = folder
        self._mercator = mercator
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._others: list[Plain] = []
        self._daemons: dict[str, Daemon] = {}
        self._answers: dict[str, dict[str, Response]] = {}
        self._threads = ThreadPoolExecutor(AT_ONCE)
        self._results: dict[tuple[str, str], Future[list[Result]]] = {}

    def order(self, jobs: list[tuple[Mode, Source]]) -> None:
        """Begin with these, in this order."""
        for mode, source in jobs:
            self._results[mode.name, source.name] = self._threads.submit(self._run, mode, source)

    def results(self, mode: Mode, source: Source) -> list[Result]:
        """Of one mode and source; waits for it."""
        return self._results[mode.name, source.name].result()

    def done(self) -> dict[tuple[str, str], list[Result]]:
        """All results so far, by the names of mode and source."""
        return {
            key: future.result()
            for key, future in self._results.items()
            if future.done() and not future.cancelled() and future.exception() is None
        }

    def daemon(self, mode: Mode) -> Daemon:
        with self._lock:
            if mode.name not in self._daemons:
                self._daemons[mode.name] = self._start(mode, self._place(mode.name))
            return self._daemons[mode.name]

    @property
    def version(self) -> str:
        """Of QGIS, as in 3.22.16."""
        daemon = next(iter(self._daemons.values()))
        return str(daemon.api("GET", "/api/v1/stats")[0]["qgis"]).partition("-")[0]

    def another(self, mode: Mode) -> Daemon:
        """One more daemon of this mode, over copies of its own, for a test that disturbs it."""
        return self._start(mode, self._place("another"))

    def another_plain(self, name: str) -> "Plain":
        """One more plain server, over copies of its own; `stop` ends it."""
        server = Plain(self._place(name), self._folder(name))
        with self._lock:
            self._others.append(server)
        return server

    def path(self, source: Source, place: str = "plain") -> Path:
        """The project file of the plain servers, or of the one that has a place of its own."""
        return self._place(place).roots / f"{source.map}.qgs"

    def stop(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for plain in self._others:
            plain.stop()

    def cases(self, source: Source) -> list[Case]:
        """What is asked of a source, in this order."""
        return cases_of(source, self._mercator)

    @contextmanager
    def _fresh(self, place: str, source: Source) -> Iterator[Plain]:
        """A plain server for one source: what it has drawn before is in its letters (LETTERS)."""
        plain = Plain(self._place(place), self._folder(f"{place}-{source.name}"))
        try:
            yield plain
        finally:
            plain.stop()

    def answers(self, source: Source) -> dict[str, Response]:
        """Case → what a plain server answers, asked in the order of the corpus."""
        with self._lock:
            lock = self._locks.setdefault(source.name, threading.Lock())
        with lock:
            if source.name not in self._answers:
                with self._fresh("plain", source) as plain:
                    self._answers[source.name] = {
                        case.id: plain.ask(source, case) for case in self.cases(source)
                    }
            return self._answers[source.name]

    def _run(self, mode: Mode, source: Source) -> list[Result]:
        daemon, plain = self.daemon(mode), self.answers(source)
        cases = self.cases(source)
        if mode.shuffled:
            cases = [case for case in cases if not case.writes]
            random.Random(SEED).shuffle(cases)
            with ThreadPoolExecutor(CLIENTS) as clients:
                ours = list(clients.map(lambda case: ask(daemon, source, case), cases))
        else:
            ours = [ask(daemon, source, case) for case in cases]
        project = daemon.projects()[f"{source.map}.qgs"]
        (generation,) = project["generations"]
        assert generation["mode"] == ("forked" if mode.forked else "loaded"), generation
        lost = {
            why: count for why, count in project["ended"].items() if why not in ("idle", "stop")
        }
        assert not lost, f"workers of {source.map} ended: {lost}"
        daemon.api("DELETE", f"/api/v1/projects/{quote(source.map, safe='')}")
        results = [
            replace(compare(source, case, answer, plain[case.id], mode.shuffled), seconds=seconds)
            for case, (answer, seconds) in zip(cases, ours, strict=True)
        ]
        odd = [
            place
            for place, (result, (answer, _)) in enumerate(zip(results, ours, strict=True))
            if result.difference and not result.case.writes and is_picture(answer)
        ]
        if odd:
            with self._fresh("again", source) as other:
                for place in odd:
                    case, answer = cases[place], ours[place][0]
                    if draws_too(lambda case=case: other.ask(source, case), answer):
                        results[place] = replace(results[place], difference="", cause=SEVERAL)
        return results


def ask(daemon: Daemon, source: Source, case: Case) -> tuple[Response, float]:
    """One case, to qgisd: the answer, and the seconds it took."""
    body = case.body.encode() if case.body else None
    started = time.monotonic()
    answer = daemon.request(case.method, case.target(source), body, case.headers, timeout=60)
    return answer, time.monotonic() - started


def copy_side(made: Path, side: Path, database: str) -> Path:
    """A copy of all projects for one side, in which PostgreSQL's database is its own."""
    shutil.copytree(made, side)
    for path in side.glob("*/*.qgs"):
        text = path.read_text()
        if "dbname='gis'" in text:
            path.write_text(text.replace("dbname='gis'", f"dbname='{database}'"))
    return side


def copy_database(dsn: str, database: str) -> None:
    """A copy of the database gis. Nobody may be connected to it."""
    subprocess.run(
        ["psql", "-qd", dsn.replace("dbname=gis", "dbname=postgres"), "-c",
         f"CREATE DATABASE {database} TEMPLATE gis"],
        check=True,
    )  # fmt: skip
