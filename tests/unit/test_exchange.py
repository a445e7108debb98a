"""One answer on its way to a client: order of bytes, backlog, credit, slow and vanished clients."""

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgisd.errors import RequestError, Unavailable
from qgisd.supervisor.exchange import Buffering, Exchange, Order
from qgisd.supervisor.model import Job, ProjectRef
from qgisd.words import RequestClass

ORDER = Order(
    ProjectRef("a.qgs", "/srv/a.qgs", (1, 2, 3)), "GET", "http://h/ows/?", [], b"",
    RequestClass.MAP, True, 20.0, "id-1",
)  # fmt: skip

JOB = Job(1, "a.qgs", RequestClass.MAP, True, 0.0, 20.0)


class Client:
    """A sink whose reader takes something only when it is allowed to."""

    def __init__(self, wants_length: bool = False) -> None:
        self.wants_length = wants_length
        self.status = 0
        self.taken = bytearray()
        self.story: list[str] = []
        self.length: int | None = None
        self.takes = asyncio.Event()
        self.takes.set()
        self.broken = False
        #: What the kernel would hold, each time somebody looks; the last one stays.
        self.kernel = [100]

    def head(self, status: int, headers: Any, body: bytes, length: int | None) -> int:
        self.status = status
        self.story.append(f"head {status}")
        self.length = length
        self.taken += body
        return len(body)

    async def write(self, data: bytes | memoryview) -> None:
        if self.broken:
            raise OSError("broken pipe")
        await self.takes.wait()
        self.taken += data

    def unsent(self) -> int:
        return self.kernel.pop(0) if len(self.kernel) > 1 else self.kernel[0]

    def end(self) -> None:
        self.story.append("end")

    def fail(self, error: RequestError) -> None:
        self.status = 503
        self.story.append(f"fail {error}")

    def told(self, story: object) -> None:
        self.story.append("told")

    def abort(self, reason: str) -> None:
        self.story.append(f"abort {reason}")


class Line:
    """An exchange with its client, and what it tells the pool."""

    def __init__(self, memory: int = 100, spool: int = 1000, timeout_s: float = 30.0) -> None:
        self.client = Client()
        self.credit = 0
        self.held: list[bool] = []
        self.closed = 0
        self.exchange = Exchange(
            JOB,
            ORDER,
            self.client,
            Buffering(memory, spool, None, timeout_s),
            self._credit,
            lambda number, held: self.held.append(held),
            self._close,
        )

    def _credit(self, number: int, size: int) -> None:
        assert number == 1
        self.credit += size

    def _close(self, exchange: Exchange) -> None:
        self.closed += 1


async def until(true: Callable[[], object]) -> None:
    """Let the loop run until something is so."""

    async def turn() -> None:
        while not true():
            await asyncio.sleep(0)

    await asyncio.wait_for(turn(), 5)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 20)

    asyncio.run(bounded())


def test_a_small_answer_is_one_head_and_over() -> None:
    async def story() -> None:
        line = Line()
        line.exchange.head(200, [], b"all of it", True)
        assert line.client.story == ["head 200"] and line.client.taken == b"all of it"
        assert line.client.length == 9
        assert line.exchange.over and line.closed == 1 and line.exchange.sent == 9

    run(story)


def test_a_stream_comes_in_order_and_ends_once() -> None:
    async def story() -> None:
        line = Line()
        line.exchange.head(200, [], b"0", False)
        for piece in (b"1", b"22", b"333"):
            line.exchange.chunk(piece)
        line.exchange.end()
        await until(lambda: line.exchange.over)
        assert line.client.taken == b"0122333" and line.client.length is None
        assert line.client.story == ["head 200", "end"]
        assert line.closed == 1 and line.exchange.sent == 7

    run(story)


def test_an_end_after_everything_was_taken_ends_at_once() -> None:
    async def story() -> None:
        line = Line()
        line.exchange.head(200, [], b"", False)
        line.exchange.chunk(b"abc")
        await until(lambda: line.client.taken == b"abc")
        await asyncio.sleep(0)
        line.exchange.end()
        await until(lambda: line.exchange.over)
        assert line.client.story == ["head 200", "end"]

    run(story)


def test_credit_is_given_at_once_while_there_is_room_though_the_client_takes_nothing() -> None:
    async def story() -> None:
        line = Line(memory=100, spool=1000)
        line.client.takes.clear()
        line.exchange.head(200, [], b"", False)
        for _ in range(9):
            line.exchange.chunk(b"x" * 100)
        assert line.credit == 900 and line.held == []
        line.exchange.abort("enough")

    run(story)


def test_credit_is_withheld_when_too_much_is_kept_and_given_when_it_is_taken() -> None:
    async def story() -> None:
        line = Line(memory=100, spool=300)
        line.client.takes.clear()
        line.exchange.head(200, [], b"", False)
        for _ in range(6):
            line.exchange.chunk(b"x" * 100)
        given = line.credit
        assert given <= 400 and line.held == [True], "told once"
        line.client.takes.set()
        await until(lambda: line.credit == 600)
        assert line.held == [True, False]
        line.exchange.end()
        await until(lambda: line.exchange.over)
        assert line.client.taken == b"x" * 600

    run(story)


def test_what_does_not_fit_in_memory_is_in_an_unlinked_file(tmp_path: Path) -> None:
    async def story() -> None:
        line = Line()
        line.exchange = Exchange(
            JOB, ORDER, line.client, Buffering(100, 10_000, str(tmp_path), 30.0), line._credit,
            lambda number, held: None, line._close,
        )  # fmt: skip
        line.client.takes.clear()
        line.exchange.head(200, [], b"", False)
        for number in range(50):
            line.exchange.chunk(bytes([number]) * 100)
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()]
        spools = [link for link in links if link.startswith(str(tmp_path))]
        assert len(spools) == 1 and list(tmp_path.iterdir()) == []
        line.client.takes.set()
        line.exchange.end()
        await until(lambda: line.exchange.over)
        assert line.client.taken == b"".join(bytes([number]) * 100 for number in range(50))
        left = [os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()]
        assert not [link for link in left if link.startswith(str(tmp_path))], "closed"

    run(story)


def _descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 300), st.integers(0, 2000))
def test_whatever_the_rhythm_every_byte_comes_once_and_in_order(
    seed: int, memory: int, spool: int
) -> None:
    async def story() -> None:
        dice = random.Random(seed)
        line = Line(memory, spool)
        sent = bytearray(b"head")
        line.exchange.head(200, [], b"head", False)
        for _ in range(60):
            step = dice.randrange(4)
            if step == 0:
                line.client.takes.set()
            elif step == 1:
                line.client.takes.clear()
            elif step == 2:
                for _ in range(dice.randrange(5)):
                    await asyncio.sleep(0)
            elif not line.held or not line.held[-1]:
                data = dice.randbytes(dice.randrange(1, 400))
                sent += data
                line.exchange.chunk(data)
        line.client.takes.set()
        line.exchange.end()
        await until(lambda: line.exchange.over)
        assert line.client.taken == sent
        assert line.credit == len(sent) - 4, "all credit is given back"
        assert line.held == [True, False] * (len(line.held) // 2)
        assert line.client.story == ["head 200", "end"]

    run(story)


def test_a_client_that_takes_nothing_for_too_long_is_cut() -> None:
    async def story() -> None:
        line = Line(timeout_s=0.02)
        line.client.takes.clear()
        line.exchange.head(200, [], b"", False)
        line.exchange.chunk(b"x")
        line.exchange.end()
        await until(lambda: line.exchange.over)
        assert line.client.story == ["head 200", "abort the client took nothing for 0.02 s"]
        assert line.closed == 1

    run(story)


def test_a_client_on_a_slow_line_is_not_cut_while_it_takes_anything() -> None:
    async def story() -> None:
        line = Line(timeout_s=0.01)
        line.client.takes.clear()
        line.client.kernel = [100, 80, 60, 40, 40]
        line.exchange.head(200, [], b"", False)
        line.exchange.chunk(b"x")
        await until(lambda: len(line.client.kernel) == 1)
        assert line.client.story == ["head 200"]
        await until(lambda: line.exchange.over)
        assert line.client.story[-1].startswith("abort the client took nothing")

    run(story)


def test_a_large_whole_answer_is_cut_too_if_the_client_takes_nothing() -> None:
    async def story() -> None:
        line = Line(timeout_s=0.02)
        line.client.takes.clear()
        body = os.urandom(1 << 20)
        line.exchange.head(200, [], body, True)
        await until(lambda: line.exchange.over)
        assert line.client.story[-1].startswith("abort")
        slow = Line()
        slow.exchange.head(200, [], body, True)
        await until(lambda: slow.exchange.over)
        assert slow.client.taken == body and slow.client.length == len(body)

    run(story)


def test_a_client_whose_connection_breaks_is_cut() -> None:
    async def story() -> None:
        line = Line()
        line.client.broken = True
        line.exchange.head(200, [], b"", False)
        line.exchange.chunk(b"x")
        await until(lambda: line.exchange.over)
        assert line.client.story == ["head 200", "abort cannot write: broken pipe"]
        line.exchange.end()
        line.exchange.abort("again")
        assert line.closed == 1 and len(line.client.story) == 2

    run(story)


def test_what_comes_after_the_client_has_gone_is_acknowledged_and_dropped() -> None:
    async def story() -> None:
        line = Line()
        line.exchange.head(200, [], b"", False)
        line.exchange.gone(False)
        line.exchange.chunk(b"x" * 5000)
        assert line.credit == 5000 and line.held == []
        line.exchange.end()
        line.exchange.fail(Unavailable("late"))
        await asyncio.sleep(0)
        assert line.client.story == ["head 200"] and line.closed == 1

    run(story)


def test_an_abort_while_the_client_is_slow_ends_it_once_and_writes_no_more() -> None:
    async def story() -> None:
        line = Line(memory=100, spool=10_000)
        line.client.takes.clear()
        line.exchange.head(200, [], b"", False)
        for _ in range(20):
            line.exchange.chunk(b"x" * 100)
        await asyncio.sleep(0)
        line.exchange.abort("the worker died")
        line.client.takes.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert line.client.story == ["head 200", "abort the worker died"]
        assert len(line.client.taken) <= 100 and line.closed == 1

    run(story)


def test_an_error_before_the_head_is_the_answer() -> None:
    async def story() -> None:
        line = Line()
        line.exchange.fail(Unavailable("full"))
        line.exchange.fail(Unavailable("again"))
        assert line.client.story == ["fail full"] and line.exchange.over and line.closed == 1

    run(story)


SMALL_DISK = """
import asyncio, resource, signal
from tests.unit.test_exchange import Line
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a file ends in the middle of a write

async def story():
    line = Line(memory=0, spool=10_000)
    line.client.takes.clear()
    line.exchange.head(200, [], b"", False)
    line.exchange.chunk(b"a" * 600)
    try:
        line.exchange.chunk(b"b" * 600)
    except OSError:
        print("refused")
        return
    line.client.takes.set()
    line.exchange.end()
    while not line.exchange.over:
        await asyncio.sleep(0)
    print("whole" if line.client.taken == b"a" * 600 + b"b" * 600 else "corrupt")

asyncio.run(asyncio.wait_for(story(), 5))
"""


def test_a_disk_that_is_full_in_the_middle_of_a_write_is_an_error_and_not_a_hole() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.strip() == "refused", done.stderr[-500:]


@pytest.mark.parametrize("ending", ["abort", "gone"])
def test_a_slow_client_that_ends_leaves_no_task(ending: str) -> None:
    async def story() -> None:
        line = Line()
        line.client.takes.clear()
        line.exchange.head(200, [], b"", False)
        line.exchange.chunk(b"x")
        await asyncio.sleep(0)
        line.exchange.abort("x") if ending == "abort" else line.exchange.gone(False)
        line.client.takes.set()
        await until(lambda: len(asyncio.all_tasks()) <= 3)

    run(story)
