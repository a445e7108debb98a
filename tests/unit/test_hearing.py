"""What processes write: where one message ends and the next begins, and pipes that end or flood."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

import pytest

from qgisd.supervisor import hearing
from qgisd.supervisor.hearing import Hearing, Pipe, messages
from qgisd.supervisor.model import Worker

W, E, I, D = logging.WARNING, logging.ERROR, logging.INFO, logging.DEBUG  # noqa: E741


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["11:34:24 WARNING Server[29531]: hello"], [(W, "Server", "hello")]),
        (["11:34:24 CRITICAL My Tag[1]: a[2]: b"], [(E, "My Tag", "a[2]: b")]),
        (["11:34:24 INFO S[1]: x", "11:34:24 SUCCESS T[1]: y"], [(I, "S", "x"), (I, "T", "y")]),
        (
            ["11:34:24 WARNING Server[1]: <a>", " <b/>", "</a>", "", "11:34:25 INFO T[1]: next"],
            [(W, "Server", "<a>\n <b/>\n</a>"), (I, "T", "next")],
        ),
        (["plain", "and plain"], [(W, "", "plain"), (W, "", "and plain")]),
        (
            ["Traceback (most recent call last):", '  File "x"', "ValueError: y", "ERROR 1: z"],
            [
                (E, "", 'Traceback (most recent call last):\n  File "x"\nValueError: y'),
                (E, "", "ERROR 1: z"),
            ],
        ),
        (['"Loading native module x"', "a"], [(D, "", '"Loading native module x"'), (W, "", "a")]),
        (
            ["11:34:24 WARNING Server[1]: Set WMS capabilities document in cache",
             "11:34:24 WARNING Server[1]: WMS capabilities document not found in cache"],
            [(D, "Server", "Set WMS capabilities document in cache"),
             (D, "Server", "WMS capabilities document not found in cache")],
        ),
        (["inotify_add_watch(/x) failed: (Invalid argument)"],
         [(D, "", "inotify_add_watch(/x) failed: (Invalid argument)")]),
        ([], []),
    ],
)  # fmt: skip
def test_lines_become_messages(lines: list[str], expected: list[hearing.Message]) -> None:
    assert list(messages(lines)) == expected


def test_a_message_is_kept_as_far_as_is_decent() -> None:
    lines = ["11:34:24 WARNING Server[1]: begins", *["y" * 1000] * 100]
    ((_, _, text),) = messages(lines)
    assert text.startswith("begins") and len(text) == 8192


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 20)

    asyncio.run(bounded())


async def until(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def test_lines_are_passed_on_as_they_come_and_the_last_one_at_the_end() -> None:
    async def story() -> None:
        heard: list[str] = []
        pipe = Pipe(heard.extend)
        os.write(pipe.writer, b"one\ntwo\nthr")
        await until(lambda: heard)
        assert heard == ["one", "two"]
        os.write(pipe.writer, b"ee\n\xff last")
        assert pipe.take() == 9 and heard == ["one", "two", "three"]
        os.close(pipe.writer)
        pipe.close()
        assert heard == ["one", "two", "three", "\ufffd last"]

    run(story)


def test_a_pipe_whose_writers_are_gone_is_not_looked_at_again() -> None:
    async def story() -> None:
        pipe = Pipe(lambda lines: None)
        os.close(pipe.writer)
        await asyncio.sleep(0)
        assert pipe.take() == -1
        await until(lambda: not asyncio.get_running_loop().remove_reader(pipe._reader))
        pipe.close()

    run(story)


def test_who_writes_without_end_has_to_wait() -> None:
    async def story() -> None:
        heard: list[str] = []
        pipe = Pipe(heard.extend)
        os.set_blocking(pipe.writer, False)
        written, loop = 0, asyncio.get_running_loop()
        until_s = loop.time() + 0.5
        while loop.time() < until_s:
            try:
                written += os.write(pipe.writer, b"x" * 1023 + b"\n")
            except BlockingIOError:
                await asyncio.sleep(0.001)
        # 64 KiB every 0.1 s, and what the pipe itself holds.
        assert 64 << 10 < written < 10 * (64 << 10)
        os.close(pipe.writer)
        pipe.close()
        assert sum(len(line) + 1 for line in heard) == written

    run(story)


def test_a_line_without_end_is_cut() -> None:
    async def story() -> None:
        heard: list[str] = []
        pipe = Pipe(heard.extend)
        os.write(pipe.writer, b"y" * 20_000)
        pipe.take()
        assert [len(line) for line in heard] == [8192]
        os.close(pipe.writer)
        pipe.close()

    run(story)


def test_what_is_logged_tells_whose_it_is(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        worker = Worker(7, "a.qgs", 3, 0.0, job=11)
        listens = Hearing("p", {7: worker}, lambda job: f"id-{job}")
        for token in ("worker 7", "worker 8", "snapshot 3 a.qgs", "zygote 1"):
            writer = listens.open(token)
            os.write(writer, b"11:34:24 WARNING Tag[1]: 100 % of it\n")
            os.close(writer)
            listens.take(token)
            listens.close(token)
        listens.take("worker 7")
        listens.close_all()

    with caplog.at_level(logging.INFO):
        run(story)
    assert [record.getMessage() for record in caplog.records] == [
        "id-11 a.qgs: Tag: 100 % of it", "worker Tag: 100 % of it",
        "snapshot a.qgs: Tag: 100 % of it", "zygote Tag: 100 % of it",
    ]  # fmt: skip
    assert [vars(record)["fields"] for record in caplog.records] == [
        {"pool": "p", "worker": 7, "project": "a.qgs", "generation": 3, "request_id": "id-11",
         "tag": "Tag"},
        {"pool": "p", "worker": 8, "tag": "Tag"},
        {"pool": "p", "project": "a.qgs", "generation": 3, "tag": "Tag"},
        {"pool": "p", "tag": "Tag"},
    ]  # fmt: skip
