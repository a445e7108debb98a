"""What the processes of a pool write to their standard output and error: QGIS's messages above all.

Each process has a pipe of its own. A worker works on one request at a time and writes before it
answers, so that what is in its pipe when an answer comes belongs to that request; what it wrote
before it died is there as well. Nothing is asked of Python in the worker for it: to listen to
QgsMessageLog costs for each of a dozen messages a map (QGIS filters by level before it writes).
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping

from qgisd import wire
from qgisd.supervisor.model import Worker

#: Bytes read at once. Who writes more has to wait for `_PAUSE_S`: a worker that writes without end
#: must not keep the daemon busy.
_PIECE = 64 << 10
_PAUSE_S = 0.1
#: Characters of one message that are kept, and of one line that has no end.
_LONGEST = 8 << 10

#: QgsMessageLogConsole::formatLogMessage: time, level, tag, process.
_QGIS = re.compile(r"\d\d:\d\d:\d\d (NONE|INFO|SUCCESS|WARNING|CRITICAL) (.*?)\[\d+\]: (.*)")
_LEVELS = {"WARNING": logging.WARNING, "CRITICAL": logging.ERROR}
#: The beginnings of what others write.
_OTHERS = (
    ("Traceback (most recent call last)", logging.ERROR),
    ("Fatal Python error", logging.ERROR),
    ("ERROR ", logging.ERROR),  # GDAL
    # What every start of QGIS says.
    ("QStandardPaths: ", logging.DEBUG),
    ('"Loading native module', logging.DEBUG),
    ("Warning 1: Unable to find driver", logging.DEBUG),
)
#: What QGIS warns of in daily life: its own cache of capabilities, and that of rule 3 of the fork.
_DAILY = re.compile(r"(?:Set |Found )?W\w+ capabilities document .*in cache|inotify_add_watch\(")

Message = tuple[int, str, str]


def messages(lines: list[str]) -> Iterator[Message]:
    """Level, tag and text. Lines that follow a message of QGIS, or a traceback, are part of it."""
    level, tag, text = 0, "", ""
    for line in lines:
        match = _QGIS.fullmatch(line)
        begins = match or line.startswith(tuple(start for start, _ in _OTHERS))
        if not begins and level and (tag or level == logging.ERROR):
            text = f"{text}\n{line}"[:_LONGEST]
            continue
        if level:
            yield level, tag, text.rstrip()
        if match:
            level, tag, text = _LEVELS.get(match[1], logging.INFO), match[2], match[3]
            level = logging.DEBUG if _DAILY.match(text) else level
        elif _DAILY.match(line):
            level, tag, text = logging.DEBUG, "", line
        else:
            found = (level for start, level in _OTHERS if line.startswith(start))
            level, tag, text = next(found, logging.WARNING), "", line
    if level:
        yield level, tag, text.rstrip()


class Pipe:
    """One process's. Made on a running loop; `writer` is for the process, and to be closed here."""

    def __init__(self, heard: Callable[[list[str]], None]) -> None:
        self._heard = heard
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader, self._readable)
        self._rest = b""

    def take(self) -> int:
        """Pass on what is there now; how many bytes that was, or -1 if there will be no more."""
        try:
            data = os.read(self._reader, _PIECE)
        except BlockingIOError:
            return 0
        if data:
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > _LONGEST:
                lines.append(self._rest)
                self._rest = b""
            if lines:
                self._heard([line[:_LONGEST].decode("utf-8", "replace") for line in lines if line])
        return len(data) or -1

    def close(self) -> None:
        """Its process has ended: the last words."""
        while self.take() == _PIECE:
            pass
        if self._rest:
            self._heard([self._rest.decode("utf-8", "replace")])
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        self._reader = -1

    def _readable(self) -> None:
        size = self.take()
        if size == _PIECE:
            self._loop.remove_reader(self._reader)
            self._loop.call_later(_PAUSE_S, self._resume)
        elif size < 0:
            # All who could write have closed it; its process may be about to end.
            self._loop.remove_reader(self._reader)

    def _resume(self) -> None:
        if self._reader >= 0:
            self._loop.add_reader(self._reader, self._readable)


class Hearing:
    """Of one pool: logs what is heard, with who wrote it and over which request.

    Processes go by their tokens (see wire), or "zygote N". request_id: of a job.
    """

    def __init__(
        self, pool: str, workers: Mapping[int, Worker], request_id: Callable[[int], str]
    ) -> None:
        self._pool = pool
        self._workers = workers
        self._request_id = request_id
        self._log = logging.getLogger(f"qgisd.qgis.{pool}")
        self._pipes: dict[str, Pipe] = {}

    def open(self, token: str) -> int:
        """For a process that is about to be: the descriptor it is to write to, to be closed."""
        pipe = self._pipes[token] = Pipe(lambda lines: self._heard(token, lines))
        return pipe.writer

    def take(self, token: str) -> None:
        """What it wrote so far belongs to what it does now."""
        pipe = self._pipes.get(token)
        if pipe is not None:
            pipe.take()

    def close(self, token: str) -> None:
        """It has ended, or will never be."""
        pipe = self._pipes.pop(token, None)
        if pipe is not None:
            pipe.close()

    def close_all(self) -> None:
        """All have ended."""
        for token in list(self._pipes):
            self.close(token)

    def _heard(self, token: str, lines: list[str]) -> None:
        about = self._about(token)
        who = about.get("request_id") or token.partition(" ")[0]
        for level, tag, text in messages(lines):
            said = ": ".join(str(part) for part in (about.get("project"), tag, text) if part)
            fields = about | {"tag": tag} if tag else about
            # The same text is a repeat, whoever asked (repeats.py).
            self._log.log(level, f"{who} {said}", extra={"fields": fields, "same": said})

    def _about(self, token: str) -> dict[str, str | int]:
        """Whose process it is, and over which request."""
        about: dict[str, str | int] = {"pool": self._pool}
        if token.startswith("snapshot "):
            about["generation"], about["project"] = wire.parse_snapshot_token(token)
        elif token.startswith("worker "):
            about["worker"] = number = wire.parse_worker_token(token)
            worker = self._workers.get(number)
            if worker is not None:
                about["project"], about["generation"] = worker.project, worker.generation
                about["request_id"] = self._request_id(worker.job)
        return about
