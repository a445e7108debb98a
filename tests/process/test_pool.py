"""A pool whose surroundings fail it: without a daemon, and without a process."""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qgisd import wire
from qgisd.errors import RequestError
from qgisd.supervisor import events as e
from qgisd.supervisor import watchdog
from qgisd.supervisor.catalog import Catalog
from qgisd.supervisor.exchange import Buffering, Order
from qgisd.supervisor.model import ProjectRef
from qgisd.supervisor.pool import MemoryBudget, Pool
from qgisd.supervisor.transport import Router
from qgisd.words import RequestClass
from tests.unit.driver import limits

REF = ProjectRef("a.qgs", "/nowhere/a.qgs", (1, 1, 1))
ORDER = Order(REF, "GET", "http://h/", [], b"", RequestClass.MAP, True, 20.0, "an id")


def no_process(control: int, lifeline: int) -> dict[str, str]:
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


def run(folder: Path, test: Callable[[Pool, list[str]], Any], interval_s: float = 3600.0) -> None:
    """In a pool that cannot start a process; what it gave up with goes into the list."""

    async def story() -> None:
        gave_up: list[str] = []
        router = Router(folder, lambda identity, header, body: None)
        pool = Pool(
            "default",
            limits(),
            Catalog({}),
            router,
            Buffering(1000, 1000, None, 30.0),
            3600.0,
            "",
            MemoryBudget(1 << 30, interval_s),
            0,
            dict.fromkeys(RequestClass, 5.0),
            False,
            folder,
            no_process,
            gave_up.append,
            lambda happening: None,
        )
        try:
            await test(pool, gave_up)
        finally:
            await pool.stop(0.0)
            router.close()

    asyncio.run(asyncio.wait_for(story(), 20))


class Sink:
    """A client, at the other end of a line that may be broken."""

    status = 0
    wants_length = False

    def __init__(self, broken: bool) -> None:
        self.broken = broken
        self.failed: list[str] = []
        self.aborted: list[str] = []

    def head(self, status: int, headers: object, body: bytes, length: int | None) -> int:
        raise RuntimeError("a defect")

    def fail(self, error: RequestError) -> None:
        if self.broken:
            raise RuntimeError("a defect")
        self.failed.append(str(error))

    def abort(self, reason: str) -> None:
        self.aborted.append(reason)

    def told(self, story: object) -> None:
        pass


def test_what_fails_for_one_request_leaves_the_others_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(pool: Pool, gave_up: list[str]) -> None:
        clients = [Sink(False), Sink(True), Sink(False)]
        for client in clients:
            pool.submit(ORDER, client)  # type: ignore[arg-type]
        pool._handle(e.Vanished("a.qgs"))
        assert [client.failed for client in clients] == [
            ["no such project"],
            [],
            ["no such project"],
        ]
        assert "cannot carry out Fail" in caplog.text
        assert not pool._exchanges, "none is left to wait for ever"

    run(tmp_path, test)


def test_an_answer_that_cannot_be_passed_on_is_cut_and_the_next_frame_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(pool: Pool, gave_up: list[str]) -> None:
        client = Sink(False)
        number = pool.submit(ORDER, client).number  # type: ignore[arg-type]
        monkeypatch.setattr(pool, "_current", lambda worker, job: pool._exchanges.get(job))
        pool.on_frames(1, wire.encode(wire.Head(number, 200, [], True, 1.0)), b"hello")
        assert client.aborted == ["internal error"] and not pool._exchanges
        assert "a defect" in caplog.text

    run(tmp_path, test)


def test_a_zygote_that_cannot_be_started_is_one_that_ended(tmp_path: Path) -> None:
    async def test(pool: Pool, gave_up: list[str]) -> None:
        pool.start([])
        assert gave_up == ["it cannot be started: [Errno 11] Resource temporarily unavailable"]
        pool._machine.ever_up = True
        pool._handle(e.ReloadOrdered(None))
        assert pool._machine.successor is None

    run(tmp_path, test)


def test_memory_is_watched_on_after_a_look_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = []

    def look(
        pids: object, total: int, share: float
    ) -> tuple[dict[str, tuple[int, int]], e.MemorySampled]:
        looks.append(total)
        if len(looks) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        if len(looks) == 2:
            raise RuntimeError("a defect")
        return {}, e.MemorySampled({}, {}, 2 << 30, total)

    monkeypatch.setattr(watchdog, "look", look)

    async def test(pool: Pool, gave_up: list[str]) -> None:
        pool.start([])
        while not pool._machine.over_budget:
            await asyncio.sleep(0)
        assert "cannot look at the memory" in caplog.text and "a defect" in caplog.text

    run(tmp_path, test, interval_s=0.01)
