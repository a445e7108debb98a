"""A backend without QGIS that misbehaves on command, for tests of supervision.

Shipped with the package: same processes, same fork, same wire, selected by `backend = "fake"`.
It never stands in for QGIS in a test of what QGIS does.

A project is a text file of `key = value` lines; a request's query says what to do:

    project    load_s · fail · crash · hang · thread (seconds it lives, or "stay")
               boot_hang · boot_crash (of workers)
               layers · bad (what a layer complains of) · text (answered by /?do=text)
               data (path of a data file, or several)
               warm_capabilities · warm_map (queries, space between them: what it is warmed up by)
    request    do=text | pid | echo | show | chunks&n=&size=&pause= | hang | exit&code=
               | crash&signal=&after=head | leak&mb= | garbage | break | stop (SIGSTOP)
               | stubborn (ignores SIGTERM, then hangs) | thread | learn&word= | learned
               | program (starts one that never ends)
    both       say (written to standard error first) · times
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

from qgisd import wire
from qgisd.datafiles import version_of
from qgisd.worker.backend import Answer, LoadError, Project, Started, WarmStep


class FakeBackend:
    """See the module."""

    zygote_threads: tuple[str, ...] = ()

    def __init__(self, watch_data: bool) -> None:
        self._watch_data = watch_data
        self._project: dict[str, str] = {}
        self._leak: list[bytes] = []
        self._served = 0
        self._learned: list[str] = []

    def start(self, begin: Callable[[str], None]) -> Started:
        """Fails, or dawdles, as $QGISD_FAKE_START says: "fail", or seconds."""
        order = os.environ.get("QGISD_FAKE_START", "")
        if order == "fail":
            raise LoadError("the fake zygote was told to fail")
        if order:
            begin("dawdling on command")
            time.sleep(float(order))
        return Started("fake", "/wfs3", ["FAKE"], [])

    def load(self, path: str) -> Project:
        """Read the file and do what it says."""
        self._project = {"text": "no project"}
        if path:
            with open(path) as file:
                lines = [line.split("=", 1) for line in file if "=" in line]
            self._project = {key.strip(): value.strip() for key, value in lines}
        _say(self._project)
        if "crash" in self._project:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in self._project:
            _hang()
        time.sleep(float(self._project.get("load_s", "0")))
        if "fail" in self._project:
            raise LoadError(self._project["fail"])
        if not self._project:
            raise LoadError("not a project")
        if "thread" in self._project:
            life = self._project["thread"]
            seconds = 3600.0 if life == "stay" else float(life)
            threading.Thread(target=time.sleep, args=(seconds,), daemon=True).start()
        watched = self._project.get("data", "").split() if self._watch_data else []
        data = {name: version_of(name) for name in watched}
        count = int(self._project.get("layers", "1"))
        contents = [wire.Layer(f"id{n}", f"layer {n}", "fake", True, 1.5) for n in range(count)]
        complaint = self._project.get("bad")
        bad = [wire.BadLayer("bad", "fake", complaint)] if complaint else []
        return Project(count, bad, data_files=data, contents=contents)

    def quiesce(self) -> None:
        """Nothing to end."""

    def warm_steps(self, project: str) -> list[WarmStep]:
        """Those that the project names."""
        return [
            WarmStep(level, [wire.Request(0, "GET", f"/?{query}", []) for query in queries.split()])
            for level in ("capabilities", "map")
            if (queries := self._project.get(f"warm_{level}"))
        ]

    def warmed_up(self) -> None:
        """Nobody counts those."""
        self._served = 0

    def forked(self) -> None:
        """Hang or crash, if the project says so."""
        if "boot_hang" in self._project:
            _hang()
        if "boot_crash" in self._project:
            os.kill(os.getpid(), signal.SIGSEGV)

    def idle(self) -> None:
        """Nothing to turn."""

    def handle(self, request: wire.Request, body: bytes, answer: Answer) -> None:
        """Do what `do` says."""
        query = dict(parse_qsl(urlsplit(request.url).query))
        self._served += 1
        self._request = request
        _say(query)
        text = [("Content-Type", "text/plain")]
        action = getattr(self, "_do_" + query.get("do", "text"), None)
        if action is None:
            answer.finish(400, text, b"no such trick")
            return
        result = action(query, body, answer)
        if result is not None:
            answer.finish(200, text, result)

    def _do_text(self, query: dict[str, str], body: bytes, answer: Answer) -> bytes:
        time.sleep(float(query.get("s", "0")))
        return self._project.get("text", "").encode()

    def _do_pid(self, query: dict[str, str], body: bytes, answer: Answer) -> bytes:
        return str(os.getpid()).encode()

    def _do_show(self, query: dict[str, str], body: bytes, answer: Answer) -> bytes:
        request = self._request
        seen = {"method": request.method, "url": request.url, "headers": request.headers}
        return json.dumps(seen | {"body": body.decode("utf-8", "replace")}).encode()

    def _do_echo(self, query: dict[str, str], body: bytes, answer: Answer) -> bytes:
        return body

    def _do_head(self, query: dict[str, str], body: bytes, answer: Answer) -> None:
        head = int(query.get("status", "200")), [(query["name"], query["value"])]
        if query.get("stream"):
            answer.begin(*head)
        answer.finish(*head, b"hello")

    def _do_chunks(self, query: dict[str, str], body: bytes, answer: Answer) -> None:
        answer.begin(200, [("Content-Type", "application/octet-stream")])
        for number in range(int(query.get("n", "3"))):
            time.sleep(float(query.get("pause", "0")))
            answer.write(bytes([65 + number % 26]) * int(query.get("size", "10")))
        answer.finish(200, [], b"")

    def _do_hang(self, query: dict[str, str], body: bytes, answer: Answer) -> None:
        _hang()

    def _do_stubborn(self, query: dict[str, str], body: bytes, answer: Answer) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _hang()

    def _do_crash(self, query: dict[str, str], body: bytes, answer: Answer) -> None:
        if query.get("after") == "head":
            answer.begin(200, [("Content-Type", "text/plain")])
            answer.write(b"half of it")
            time.sleep(0.1)  # what is sent leaves by ZeroMQ's thread; a crash would take it along
        if "unless_served" in query and self._served > int(query["unless_served"]):
            answer.finish(200, [("Content-Type", "text/plain")], b"survived")
            return
        os.kill(os.getpid(), int(query.get("signal", signal.SIGSEGV)))

    def _do_exit(self, query: dict[str, str], body: bytes, answer: Answer) -> None:
        os._exit(int(query.get("code", "0")))

    def _do_leak(self, query: dict[str, str], body: bytes, answer: Answer) -> bytes:
        self._leak.append(os.urandom(1 << 20) * int(query.get("mb", "1")))
        return b"leaked"

    def _do_garbage(self, query: dict[str, str], body: bytes, answer: Answer) -> None:
        answer._dealer.send(b"\xffgarbage")  # type: ignore[attr-defined]
        _hang()

    def _do_thread(self, query: dict[str, str], body: bytes, answer: Answer) -> bytes:
        threading.Thread(target=_hang, daemon=True).start()
        return b"started"

    def _do_program(self, query: dict[str, str], body: bytes, answer: Answer) -> bytes:
        program = subprocess.Popen(["sleep", "3600"])
        return f"{os.getpid()} {program.pid}".encode()

    def _do_learn(self, query: dict[str, str], body: bytes, answer: Answer) -> bytes:
        self._learned.append(query["word"])
        return b"learned"

    def _do_learned(self, query: dict[str, str], body: bytes, answer: Answer) -> bytes:
        return " ".join(self._learned).encode()

    def _do_break(self, query: dict[str, str], body: bytes, answer: Answer) -> None:
        answer.begin(200, [("Content-Type", "text/plain")])
        answer.write(b"half of it")
        answer.fail("told to break")

    def _do_stop(self, query: dict[str, str], body: bytes, answer: Answer) -> bytes:
        os.kill(os.getpid(), signal.SIGSTOP)
        return b"resumed"


def _say(order: dict[str, str]) -> None:
    for _ in range(int(order.get("times", "1")) if "say" in order else 0):
        os.write(2, order["say"].encode() + b"\n")


def _hang() -> None:
    while True:
        time.sleep(3600)
