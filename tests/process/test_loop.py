"""Nothing holds up the daemon's loop: asyncio's own debug mode tells of callbacks over 100 ms."""

import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from qgisd.health import Health
from tests.support import Daemon, eventually, write_fake_project

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def large_xml() -> bytes:
    """A Transaction of 12 MB, 200,000 elements: parsing it takes a good part of a second."""
    inside = b"<a b='c'>some text of a property that is not short</a>" * 200_000
    return b'<Transaction service="WFS" version="1.1.0">' + inside + b"</Transaction>"


def test_no_callback_takes_long(daemons: Callable[..., Daemon], fake_roots: Path) -> None:
    for number in range(20):
        write_fake_project(fake_roots / f"p{number}.qgs", text="x" * 1000, load_s=0.02)
    daemon = daemons(
        fake_roots,
        environment={"PYTHONASYNCIODEBUG": "1"},
        pool="memory_interval_s = 0.2\nworkers = 3",
    )
    failures: list[str] = []

    def ask(target: str, **options: object) -> None:
        answer = daemon.request(
            "POST" if "body" in options else "GET",
            target,
            timeout=60,
            **options,  # type: ignore[arg-type]
        )
        if answer.status not in (200, 503):
            failures.append(f"{target[:60]}: {answer.status} {answer.body[:200]!r}")

    xml = large_xml()
    work = [
        *(lambda n=n: ask(f"/ows/?MAP=p{n}&do=text") for n in range(20)),
        *(lambda: ask("/ows/?MAP=a&do=chunks&n=40&size=1000000") for _ in range(3)),
        *(lambda: ask("/ows/?MAP=a&do=echo", body=xml) for _ in range(3)),
        lambda: ask("/ows/", body=b"MAP=a&do=text&x=" + b"y" * 900_000, headers=FORM),
        *(lambda: ask("/ows/?MAP=b&do=crash&unless_served=0") for _ in range(2)),
    ]
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    daemon.ctl("reload")
    assert not [failure for failure in failures if "crash" not in failure]
    slow = [line for line in daemon.log().splitlines() if "Executing" in line and "took" in line]
    assert not slow, "\n".join(slow)
    assert daemon.api("GET", "/api/v1/health")["socket_folder"] is True


def test_a_form_too_long_to_be_a_url_is_refused(
    daemons: Callable[..., Daemon], fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    body = b"MAP=a&do=text&x=" + b"y" * (2 << 20)
    answer = daemon.request("POST", "/ows/", body=body, headers=FORM)
    assert answer.status == 413 and b"a form has at most" in answer.body
    assert daemon.ows("a", do="text").status == 200


def test_a_socket_folder_that_somebody_cleans_away_is_told(
    daemons: Callable[..., Daemon], fake_roots: Path
) -> None:
    daemon = daemons(fake_roots)
    assert daemon.ows("a", do="text").status == 200
    (folder,) = [
        path for path in daemon.folder.rglob("workers") if (path / "workers.sock").exists()
    ]
    kept = folder.rename(folder.with_name("away"))
    eventually(lambda: f"{folder} is gone, no worker can connect" in daemon.log())
    assert daemon.api("GET", "/api/v1/health")["socket_folder"] is False
    kept.rename(folder)
    eventually(lambda: daemon.api("GET", "/api/v1/health")["socket_folder"])


def test_descriptors_that_run_out_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (4, 4))
    health = Health(tmp_path, [])
    for _ in range(3):
        health._look()
    assert caplog.text.count("of 4 descriptors are in use") == 1
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 20, 1 << 20))
    health._look()
    assert "1048576" not in caplog.text
