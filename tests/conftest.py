"""Fixtures shared by all tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Daemon, eventually, marked, start_daemon, write_fake_project

# NumPy, which some tests bring in, starts OpenBLAS's threads: tests of the fork count threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons; afterwards each is stopped and nothing of it may be left."""
    started: list[Daemon] = []

    def start(roots: Path, **options: object) -> Daemon:
        daemon = start_daemon(tmp_path / f"daemon{len(started)}", roots, **options)  # type: ignore[arg-type]
        started.append(daemon)
        return daemon

    yield start
    for daemon in started:
        daemon.stop()
    for daemon in started:
        eventually(lambda daemon=daemon: not marked(daemon.mark), timeout=5)
        left = [path.name for path in daemon.folder.rglob("*.sock")]
        assert not left, f"socket files left: {left}"


@pytest.fixture
def fake_roots(tmp_path: Path) -> Path:
    """A project root with two well-behaved projects of the fake backend."""
    root = tmp_path / "projects"
    write_fake_project(root / "a.qgs", text="hello")
    write_fake_project(root / "b.qgs", text="other")
    return root
