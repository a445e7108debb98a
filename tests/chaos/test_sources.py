"""Sources that were away when a project was loaded, and come back."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.chaos.disorder import Postgres
from tests.chaos.source import ERROR, GOOD, HANG, Source
from tests.chaos.subjects import Subject
from tests.support import Daemon, eventually

#: Seconds until a project has noticed that its source is back.
HEAL_S = 25.0
POOL = "workers = 2\nbackoff_limit_s = 4"
QGIS = "[pool.qgis]\nnetwork_timeout_s = 2"
StartDaemon = Callable[..., Daemon]


def by_name(subjects: list[Subject], name: str) -> Subject:
    """One of them."""
    return next(subject for subject in subjects if subject.name == name)


def is_right(daemon: Daemon, subject: Subject) -> bool:
    """The first of its pictures."""
    query = subject.queries[0]
    answer = daemon.get(subject.target(query), timeout=60)
    return answer.status == 200 and answer.body == subject.expected["v1", query]


def test_a_project_loaded_without_its_database_heals(
    daemons: StartDaemon, root: Path, subjects: list[Subject], dsn: str
) -> None:
    """PostgreSQL is started after qgisd, as happens after a power cut."""
    subject, server = by_name(subjects, "postgres/postgres"), Postgres(dsn)
    server.stop()
    try:
        daemon = daemons(root, backend="qgis", pool=POOL, extra=QGIS)
        assert not is_right(daemon, subject)
        server.start()
        eventually(lambda: is_right(daemon, subject), timeout=HEAL_S, period=0.3)
    finally:
        server.end()


@pytest.mark.parametrize("mode", [HANG, ERROR])
def test_a_project_loaded_without_its_remote_source_heals(
    daemons: StartDaemon, root: Path, subjects: list[Subject], source: Source, mode: str
) -> None:
    """The WMS comes to its senses later."""
    subject = by_name(subjects, "remote/remote")
    source.mode = mode
    daemon = daemons(root, backend="qgis", pool=POOL, extra=QGIS)
    assert not is_right(daemon, subject)
    source.mode = GOOD
    eventually(lambda: is_right(daemon, subject), timeout=HEAL_S, period=0.3)


def test_a_worker_that_waits_for_its_source_uses_no_processor(
    daemons: StartDaemon, root: Path, subjects: list[Subject], source: Source
) -> None:
    """Qt's event loop rests: what it polls was once readable for ever, at most of a core."""
    subject = by_name(subjects, "remote/remote")
    daemon = daemons(root, backend="qgis", pool=POOL, extra=QGIS)
    assert is_right(daemon, subject)
    source.mode = HANG
    waiting = threading.Thread(target=is_right, args=(daemon, subject))
    waiting.start()
    (row,) = eventually(
        lambda: [
            row
            for row in daemon.api("GET", "/api/v1/workers")
            if row["project"] == subject.key and row["running_s"] > 0.3
        ]
    )
    worker = psutil.Process(row["pid"])
    before, begin = sum(worker.cpu_times()[:2]), time.monotonic()
    waiting.join(60)
    seconds = time.monotonic() - begin
    assert seconds > 1, "it did not wait"
    assert sum(worker.cpu_times()[:2]) - before < 0.3 * seconds
