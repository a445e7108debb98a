"""Random requests in four workers a project, while workers are killed: all answers are right.

    python -m tests.parity.long [--requests 10000] [--heavy 200] [--seed 1]

Makes mixed, postgres, remote and heavy of ../shared/make_projects.py, asks a plain QgsServer a
seeded set of requests of each, and then qgisd the same at random, 8 clients at once, with a
SIGKILL for a random worker after every `--kill-every` answers. Prints what came of it; exit code 1
if an answer was wrong. A request that a kill met may fail honestly (502, or a connection cut
short), which is counted apart.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.helpers import Reference, difference, make_sets, postgresql, without_box
from tests.support import Daemon, Response, eventually, free_port, marked, start_daemon

CLIENTS = 8
#: Each request of the plain server is asked of qgisd so many times, as a rule.
REPEATS = 5


@dataclass(frozen=True)
class Subject:
    """A project that is asked."""

    map: str
    path: Path
    layers: Sequence[str]
    #: Of these, those with features.
    vectors: Sequence[str]
    #: Of these, those whose extent depends on what was asked before (WFS, GeoPackage; a plain
    #: server's too, test_parity.py): the box of a whole GetFeature is not compared.
    growing: Sequence[str] = ()


@dataclass(frozen=True)
class Question:
    subject: Subject
    target: str
    growing: bool


@dataclass
class Outcome:
    """What came of a run."""

    right: int = 0
    kills: int = 0
    wrong: list[str] = field(default_factory=list)
    #: Honest failures, by status; "cut" is a connection that ended within an answer.
    failed: Counter[str] = field(default_factory=Counter)


def question(rng: random.Random, subject: Subject) -> Question:
    """A random request for a map, for information, a legend, or features."""
    x, y, width = rng.uniform(-150, 120), rng.uniform(-50, 50), rng.choice([5, 20, 60])
    box = f"BBOX={y:.4f},{x:.4f},{y + width / 2:.4f},{x + width:.4f}"
    count = rng.choice([1, 1, 2, 3])
    layers = rng.sample(list(subject.layers), min(count, len(subject.layers)))
    names = ",".join(layers)
    vector = rng.choice(list(subject.vectors))
    wms = f"SERVICE=WMS&VERSION=1.3.0&LAYERS={names}&STYLES=&CRS=EPSG:4326&{box}"
    kind = rng.choice(["map", "map", "map", "info", "legend", "features", "features", "tile"])
    if kind == "map":
        form = rng.choice(["image/png", "image/png", "image/jpeg"])
        query = f"{wms}&REQUEST=GetMap&WIDTH=256&HEIGHT=256&FORMAT={form}"
    elif kind == "info":
        form = rng.choice(["application/json", "text/xml", "text/plain"])
        query = (
            f"{wms}&REQUEST=GetFeatureInfo&WIDTH=256&HEIGHT=256&I=128&J=128&INFO_FORMAT={form}"
            f"&QUERY_LAYERS={names}&FEATURE_COUNT=3"
        )
    elif kind == "legend":
        query = (
            f"SERVICE=WMS&VERSION=1.3.0&REQUEST=GetLegendGraphic&LAYER={vector}&FORMAT=image/png"
        )
    elif kind == "features":
        form = rng.choice(["application/json", "GML3"])
        query = (
            f"SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME={vector}"
            f"&STARTINDEX={rng.randrange(50)}&MAXFEATURES={rng.randrange(1, 30)}"
            f"&OUTPUTFORMAT={form}"
        )
    else:
        width = rng.choice([128, 256])
        query = f"{wms}&REQUEST=GetMap&WIDTH={width}&HEIGHT={width}&FORMAT=image/png&TILED=TRUE"
    growing = kind == "features" and vector in subject.growing
    return Question(subject, f"/ows/?MAP={subject.map}&{query}", growing)


def verdict(asked: Question, ours: Response, plain: Response, outcome: Outcome) -> None:
    """Count one answer."""
    if not ours.complete:
        outcome.failed["cut"] += 1
    elif ours.status in (502, 503, 504) and plain.status == 200:
        outcome.failed[str(ours.status)] += 1
    else:
        if asked.growing:
            ours, plain = without_box(ours), without_box(plain)
        found = difference(ours, plain)
        if found:
            outcome.wrong.append(f"{asked.target}: {found}")
        else:
            outcome.right += 1


def run(
    daemon: Daemon,
    subjects: Sequence[Subject],
    plain: Callable[[Subject, str], Response],
    requests: int,
    kill_every: int,
    seed: int,
) -> Outcome:
    """Ask `requests` times at random, 8 at once, and kill a worker after every `kill_every`."""
    rng = random.Random(seed)
    each = max(1, requests // REPEATS // len(subjects))
    questions = [question(rng, subject) for subject in subjects for _ in range(each)]
    with ThreadPoolExecutor(len(subjects)) as threads:
        answers = list(threads.map(lambda asked: plain(asked.subject, asked.target), questions))
    order = [rng.randrange(len(questions)) for _ in range(requests)]
    outcome, lock, done = Outcome(), threading.Lock(), 0

    def ask(number: int) -> None:
        nonlocal done
        ours = daemon.get(questions[number].target, timeout=60)
        with lock:
            verdict(questions[number], ours, answers[number], outcome)
            done += 1
            due = done % kill_every == 0
        if due:
            outcome.kills += kill_one(daemon, rng)

    with ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(ask, order))
    return outcome


def kill_one(daemon: Daemon, rng: random.Random) -> int:
    """SIGKILL a random worker, by its pid; how many that were."""
    pids = sorted(row["pid"] for row in daemon.workers())
    if not pids:
        return 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(pids), signal.SIGKILL)
        return 1
    return 0


def _subjects(roots: Path) -> list[Subject]:
    files = ("shp", "gpkg", "geojson", "fgb", "sqlite", "csv", "virtual")
    tables = ("countries", "states", "lakes", "coastline", "borders", "us_counties")
    heavy = [f"{tables[number % 6]}_{number}" for number in range(24)]
    postgres = [f"{table}_{copy}" for table in tables for copy in range(4)]
    return [
        Subject("mixed/mixed", roots / "mixed/mixed.qgs", ("tif", *files), files,
                ("gpkg", "virtual")),
        Subject("postgres/postgres", roots / "postgres/postgres.qgs", postgres, postgres),
        # Without its WFS layer, whose answers depend on what was asked before: test_parity.py.
        Subject("remote/remote", roots / "remote/remote.qgs", ("wms", "borders"), ("borders",),
                ("borders",)),
        Subject("heavy/heavy", roots / "heavy/heavy.qgs", heavy, heavy, heavy),
    ]  # fmt: skip


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--heavy", type=int, default=200, metavar="LAYERS")
    parser.add_argument("--kill-every", type=int, default=50, metavar="ANSWERS")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    daemons: list[Daemon] = []
    references: dict[str, Reference] = {}
    with tempfile.TemporaryDirectory(prefix="qgisd-long-") as top, postgresql() as dsn:
        roots = Path(top) / "roots"
        try:
            make_sets(roots, "--only", "world", "mixed", "--heavy", str(options.heavy))
            make_sets(roots, "--only", "--postgres", dsn)
            listen = f"127.0.0.1:{free_port()}"
            daemons.append(start_daemon(
                Path(top) / "upstream", roots, backend="qgis", listen=listen, pool="workers = 4"
            ))  # fmt: skip
            make_sets(roots, "--only", "--remote", f"http://{listen}/ows/?MAP=world/world.qgs")
            daemons.append(start_daemon(
                Path(top) / "daemon", roots, backend="qgis",
                pool='workers = 16\nproject_workers = 4\nmemory = "16GiB"\n'
                "breaker_failures = 1000000",
            ))  # fmt: skip
            subjects = _subjects(roots)
            for subject in subjects:
                references[subject.map] = Reference(Path(top) / subject.path.stem)
            began = time.monotonic()
            outcome = run(
                daemons[1], subjects,
                lambda subject, target: references[subject.map].ask(subject.path, target),
                options.requests, options.kill_every, options.seed,
            )  # fmt: skip
            print(
                f"{options.requests} requests, seed {options.seed}, {outcome.kills} kills,"
                f" {time.monotonic() - began:.0f} s, the plain server's part included:"
                f" {outcome.right} right,"
                f" {len(outcome.wrong)} wrong, {sum(outcome.failed.values())} failed honestly"
                f" {dict(outcome.failed)}"
            )
            for line in outcome.wrong[:20]:
                print(line[:1000])
        finally:
            for reference in references.values():
                reference.stop()
            for daemon in reversed(daemons):
                daemon.stop()
        for daemon in daemons:
            eventually(lambda daemon=daemon: not marked(daemon.mark), timeout=10)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
