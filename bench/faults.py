"""What becomes of requests when things go wrong: the three servers, fault by fault.

A row is a function: it gets a server that is not started yet and returns the text of its cell.
"""

import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench import client, processes
from bench.faults_load import Crowd, Curl, Download, at_once, forever, percentile
from bench.faults_source import Source, copy_light, make_plugin, make_stuck, start_nginx
from bench.processes import log
from bench.servers import Fcgi, PyQgisServer, Qgisd, Server, free_port
from bench.work import CAPABILITIES, LIGHT, PLACES, WORLD, maps
from qgisd import ctl

CONNECTIONS = 8
KILLS = 3
SETTLED_S = 10.0
#: After the order to start all workers anew: what is looked at, and the part that counts.
RESTART_S, WINDOW_S = 12, 5
LEAKING = 1000
_STUCK = "light/stuck.qgs"
#: GeoJSON of all of it takes seconds.
_LAYERS = ("us_counties", "states", "coastline", "countries", "lakes", "borders")
_LONG = (
    "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&OUTPUTFORMAT=application/json"
    f"&TYPENAME={','.join(_LAYERS)}"
)
#: A picture that takes far more seconds than are measured, and sends nothing before its end.
_SLOW = (
    "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetMap&STYLES=&FORMAT=image/png&CRS=EPSG:4326"
    f"&LAYERS={','.join(_LAYERS * 16)}&WIDTH=7000&HEIGHT=3500&BBOX=-90,-180,90,180&DPI=96"
)
_MAP = next(maps("countries")(0))
#: Where a row does not apply.
NONE = "–"


class FaultyQgisd(Qgisd):
    """With lines of [pool] of the row's own."""

    more = ""
    extra = ""

    def command(self) -> list[str]:
        command = super().command()
        config = Path(command[-1])
        text = config.read_text().replace("[pool.projects]", f"{self.more}\n[pool.projects]")
        if "project_workers" in self.more:
            text = text.replace(f"project_workers = {self.workers}\n", "", 1)
        config.write_text(text + self.extra)
        return command


class FaultyPyQgisServer(PyQgisServer):
    """With the file that restarts its workers when touched."""

    @property
    def monitor(self) -> Path:
        return self.folder / "restart"

    def environment(self) -> dict[str, str]:
        self.monitor.touch()
        return super().environment() | {"QGSRV_SERVER_RESTARTMON": str(self.monitor)}


KINDS: dict[str, type[Server]] = {
    "qgisd": FaultyQgisd, "fcgi": Fcgi, "v1": FaultyPyQgisServer,
}  # fmt: skip


@dataclass
class Faults:
    """Row → server → text."""

    cells: dict[str, dict[str, str]] = field(default_factory=dict)

    def put(self, row: str, server: str, text: str) -> None:
        log(f"{server}: {row}: {text}")
        self.cells.setdefault(row, {})[server] = text


Row = Callable[[Server], str]


def run(
    names: Sequence[str], shared: Path, cache: Path, projects: Path, workers: int, quick: bool
) -> Faults:
    """All rows, with the servers of these names."""
    found = Faults()
    source = Source()
    try:
        make_stuck(source.url, projects / _STUCK)
        for name in names:
            kind = KINDS[name]

            def make(kind: type[Server] = kind) -> Server:
                return kind(shared, cache, projects, workers)

            _one_server(found, make, source, quick)
    finally:
        source.stop()
    return found


def _one_server(found: Faults, make: Callable[[], Server], source: Source, quick: bool) -> None:
    """Each row on a server that was just started: what one does to it is not the next one's."""
    rows: dict[str, Row] = {
        f"{KILLS} × kill -9 under {CONNECTIONS} connections": lambda s: kills(s, quick),
        "kill in the middle of a long GetFeature": kill_in_stream,
        "client gone after 1 s of a long GetMap": client_gone,
        "queue full: 300 requests at once": queue_full,
        "a project replaced by an older file": older_file,
        "a project replaced by a broken file": broken_file,
        "all workers started anew under load": restart,
        f"SIGTERM under {CONNECTIONS} connections": sigterm,
        "a project stuck on a remote source, 20 clients on it; 4 on others": (
            lambda s: stuck(s, source, quick)
        ),
        "10 MiB leaked a request under a soft limit of 256 MiB": (lambda s: leak(s, quick)),
    }
    for title, row in rows.items():
        server = make()
        try:
            found.put(title, server.name, _guard(row, server))
        finally:
            server.stop()


def _guard(row: Row, server: Server) -> str:
    """A row that cannot be measured says so, and does not end the run."""
    try:
        return row(server)
    except (OSError, http.client.HTTPException, RuntimeError, ValueError, KeyError) as error:
        return f"not measured: {type(error).__name__} {error}"
    except SystemExit as error:  # it did not start, or does not serve
        return f"not measured: {str(error).splitlines()[0]}"


def start(server: Server) -> None:
    """Up for a while, and all its workers have the light project.

    For a while: py-qgis-server takes a worker that dies in its first 5 s for a wrong setup, and
    ends itself. What is measured is a server that has been running.
    """
    settled = time.monotonic() + SETTLED_S
    server.start()
    server.warm(LIGHT, next(CAPABILITIES(0)))
    time.sleep(max(0.0, settled - time.monotonic()))


def light(server: Server, seed: int) -> Iterator[str]:
    """Targets: the light project, anywhere."""
    return (server.target(LIGHT, query) for query in maps("countries")(seed))


# rows


def kills(server: Server, quick: bool) -> str:
    """A third of the way each, the worker that works most."""
    start(server)
    wanted, ended = 600 if quick else 2000, ""
    with Crowd(server.port, light(server, 1), CONNECTIONS) as crowd:
        deadline = time.monotonic() + 75
        for number in range(1, KILLS + 1):
            reached = wanted * number // (KILLS + 1)
            _until(partial(_has, crowd, reached), deadline)
            try:
                os.kill(busiest(server, LIGHT), signal.SIGKILL)
            except RuntimeError:
                ended = f"; after kill {number - 1} the server has no workers any more"
                break
        _until(partial(_has, crowd, wanted), deadline)
    slowest = max(sample.seconds for sample in crowd.samples)
    what = f" ({crowd.what()})" if crowd.failed else ""
    failed = f"{len(crowd.failed)} of {len(crowd.samples):,} failed{what}"
    return f"{failed}, slowest {slowest:.2f} s{ended}"


def _has(crowd: Crowd, samples: int) -> bool:
    return len(crowd.samples) >= samples


def kill_in_stream(server: Server) -> str:
    """curl tells a whole answer from a cut one by its exit code."""
    start(server)
    direct = _killed_download(server, server.port)
    if not isinstance(server, FaultyQgisd):
        return direct
    port = free_port()
    front = start_nginx(server.folder, port, server.port)
    try:
        _until_open(port)
        return f"{direct}; through nginx: {_killed_download(server, port)}"
    finally:
        processes.end(front)


def _killed_download(server: Server, port: int) -> str:
    server.warm(WORLD, next(CAPABILITIES(0)))
    target = server.target(WORLD, _LONG)
    out = server.folder / "download"
    whole = Download(port, target, out).wait()
    out.unlink(missing_ok=True)
    download = Download(port, target, out)
    _until(lambda: download.size() > 200_000, time.monotonic() + 30)
    victim = busiest(server, WORLD)
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    result = download.wait()
    return _told(result, whole, result.end - killed)


def _told(result: Curl, whole: Curl, seconds: float) -> str:
    if result.size >= whole.size:
        return f"the answer was out already ({whole.size / 1e6:.0f} MB)"
    share = f"{result.size / whole.size:.0%} of {whole.size / 1e6:.0f} MB"
    ended = "well-ended" if result.code == 0 else f"curl exit {result.code}"
    return f"{result.status}, {ended}, {share}, {seconds:.2f} s after the kill"


def client_gone(server: Server) -> str:
    """Until the workers have rested for half a second."""
    start(server)
    server.warm(WORLD, next(CAPABILITIES(0)))
    begin = time.monotonic()
    whole = client.get(server.port, server.target(WORLD, _SLOW)).status == 200
    needs = f"{time.monotonic() - begin:.0f} s" if whole else "more than its deadline"
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as stream:
        request = f"GET {server.target(WORLD, _SLOW)} HTTP/1.1\r\nHost: t\r\n\r\n"
        stream.sendall(request.encode())
        time.sleep(1)
    gone = time.monotonic()
    last_busy, before = gone, _worker_cpu(server)
    while time.monotonic() - last_busy < 0.6 and time.monotonic() - gone < 60:
        time.sleep(0.1)
        now = _worker_cpu(server)
        # A worker that was killed takes its seconds out of the sum: that is no work.
        if now - before > 0.03:
            last_busy = time.monotonic()
        before = now
    return f"the worker is at rest {last_busy - gone:.1f} s later (undisturbed it needs {needs})"


def _worker_cpu(server: Server) -> float:
    return processes.cpu_s(server.worker_pids(WORLD))


def queue_full(server: Server) -> str:
    """More than any queue takes."""
    start(server)
    queries = maps("countries")(5)
    crowd = at_once(server.port, [server.target(LIGHT, next(queries)) for _ in range(300)])
    good = [sample for sample in crowd.samples if not sample.wrong]
    text = f"{len(good)} served, the last after {max((s.seconds for s in good), default=0):.1f} s"
    refused = [sample for sample in crowd.failed if sample.wrong.startswith("status")]
    if crowd.failed:
        times = [sample.seconds for sample in refused]
        told = sum(bool(sample.retry_after) for sample in refused)
        text += f"; {crowd.what()}"
        if refused:
            text += f" in {percentile(times, 0.5) * 1000:.0f} ms (median), {told} with Retry-After"
    return text + (f"; {crowd.refused} not connected" if crowd.refused else "")


def older_file(server: Server) -> str:
    """As `cp -p` of a backup does."""
    start(server)
    path = copy_light(server.projects, f"older-{server.name}.qgs")
    name = f"light/{path.name}"
    try:
        server.warm(name, _MAP)
        before = _get(server, name)[1]
        fresh = path.with_suffix(".new")
        fresh.write_bytes(_recoloured(path.read_bytes()))
        os.utime(fresh, (time.time() - 86400, time.time() - 86400))
        fresh.replace(path)
        begin = time.monotonic()
        while time.monotonic() - begin < 15:
            # All workers must have it, not only the one that was asked.
            bodies = [_get(server, name) for _ in range(4)]
            if all(status == 200 and body != before for status, body in bodies):
                return f"the new one after {time.monotonic() - begin:.1f} s"
            time.sleep(0.2)
        return "still the old one after 15 s"
    finally:
        path.unlink(missing_ok=True)


def broken_file(server: Server) -> str:
    """Half of it, as a copy that was interrupted leaves it."""
    start(server)
    path = copy_light(server.projects, f"broken-{server.name}.qgs")
    name = f"light/{path.name}"
    try:
        server.warm(name, _MAP)
        before = _get(server, name)[1]
        content = path.read_bytes()
        fresh = path.with_suffix(".new")
        fresh.write_bytes(content[: len(content) // 2])
        fresh.replace(path)
        workers = set(server.worker_pids(name))
        counts: dict[str, int] = {}
        end = time.monotonic() + 6
        while time.monotonic() < end:
            status, body = _get(server, name)
            what = "the last good picture" if status == 200 and body == before else f"{status}"
            counts[what] = counts.get(what, 0) + 1
            time.sleep(0.1)
        text = ", ".join(f"{count} × {what}" for what, count in counts.items())
        lost = len(workers - set(server.worker_pids(name)))
        if isinstance(server, FaultyQgisd):
            rows = ctl.fetch(server.admin, "GET", "/api/v1/projects")
            state = [row["state"] for row in rows if row["project"] == name]
            return f"{text}; `ctl projects`: {', '.join(state)}"
        return text + (f"; {lost} workers lost" if lost else "")
    finally:
        path.unlink(missing_ok=True)


def restart(server: Server) -> str:
    """`ctl reload`, or what comes next to it."""
    if not isinstance(server, (FaultyQgisd, FaultyPyQgisServer)):
        return NONE
    start(server)
    told = ""
    with Crowd(server.port, light(server, 7), CONNECTIONS) as crowd:
        time.sleep(5)
        begin = time.monotonic()
        if isinstance(server, FaultyQgisd):
            ctl.fetch(server.admin, "POST", "/api/v1/reload")
            told = f", done in {time.monotonic() - begin:.1f} s"
        else:
            server.monitor.write_text("now")  # looked at every 3 s
        time.sleep(max(0.0, begin + RESTART_S - time.monotonic()))
    steady = crowd.rate(begin - 4, begin)

    def worst(seconds: int) -> float:
        starts = (begin + at for at in range(RESTART_S - seconds + 1))
        return min(crowd.rate(since, since + seconds) for since in starts) / steady

    return (
        f"{len(crowd.failed)} of {len(crowd.samples):,} lost, throughput of steady: "
        f"{worst(WINDOW_S):.2f} in the worst {WINDOW_S} s, {worst(1):.2f} in the worst second{told}"
    )


def sigterm(server: Server) -> str:
    """Lost is what was sent and got no whole answer, or a 5xx."""
    if isinstance(server, Fcgi):
        return NONE
    start(server)
    process = server.process
    assert process is not None
    crowd = Crowd(server.port, light(server, 9), CONNECTIONS, 40, stop_when_refused=True)
    with crowd:
        time.sleep(2)
        begin = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        while process.poll() is None and time.monotonic() - begin < 40:
            time.sleep(0.01)
        end = time.monotonic()
        hung = process.poll() is None
    if hung:
        processes.end(process)
    what = f" ({crowd.what()})" if crowd.failed else ""
    ended = "still there after 40 s" if hung else f"ends in {end - begin:.1f} s"
    return f"{len(crowd.failed)} of {len(crowd.samples):,} lost{what}, {ended}"


def stuck(server: Server, source: Source, quick: bool) -> str:
    """Two workers more than the rows before; a project may not have all of them.

    From the first moment, and past the first deadlines: the way there is part of it.
    """
    seconds = 8.0 if quick else 30.0
    server.workers = 4
    if isinstance(server, FaultyQgisd):
        server.more = "project_workers = 0"
    source.hangs = False
    others = [
        server.target(LIGHT, _MAP),
        server.target(PLACES, next(maps("places")(0))),
    ]
    try:
        server.start()
        for project in (LIGHT, PLACES, _STUCK):
            server.warm(project, next(CAPABILITIES(0)))
        picture = "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetMap&STYLES=&FORMAT=image/png&LAYERS=wms"
        remote = server.target(
            _STUCK, f"{picture}&CRS=EPSG:4326&BBOX=-90,-180,90,180&WIDTH=400&HEIGHT=200"
        )
        with Crowd(server.port, forever(*others), 4, 30) as calm:
            time.sleep(seconds)
        source.hangs = True
        with Crowd(server.port, forever(remote), 20, 30, patient=True):
            with Crowd(server.port, forever(*others), 4, 30) as disturbed:
                time.sleep(seconds)
            source.over.set()  # let go, so that the end does not take for ever
        return (
            f"p95 of the others {calm.p95():.0f} → {disturbed.p95():,.0f} ms "
            f"(× {disturbed.p95() / calm.p95():.1f}), {len(disturbed.failed)} of "
            f"{len(disturbed.samples):,} failed"
            + (f" ({disturbed.what()})" if disturbed.failed else "")
        )
    finally:
        source.hangs = False
        source.over.clear()


def leak(server: Server, quick: bool) -> str:
    """Every answer is asked to keep 10 MiB."""
    if not isinstance(server, FaultyQgisd):
        return NONE
    wanted = 200 if quick else LEAKING
    server.more = 'worker_memory = "256MiB"\nmemory_interval_s = 0.5'
    server.extra = f'[pool.qgis]\nplugin_path = "{make_plugin(server.folder)}"\n'
    start(server)
    largest = 0
    targets = (f"{target}&LEAK=10" for target in light(server, 11))
    with Crowd(server.port, targets, 4) as crowd:
        deadline = time.monotonic() + 120
        while len(crowd.samples) < wanted and time.monotonic() < deadline:
            largest = max([largest, *_private(server.worker_pids(LIGHT))])
            time.sleep(0.05)
    rows = ctl.fetch(server.admin, "GET", "/api/v1/projects")
    ended: dict[str, Any] = next(row["ended"] for row in rows if row["project"] == LIGHT)
    what = f" ({crowd.what()})" if crowd.failed else ""
    return (
        f"{len(crowd.failed)} of {len(crowd.samples):,} failed{what}, a worker has at most "
        f"{largest} MiB, workers ended: {json.dumps(ended)}"
    )


# help


def busiest(server: Server, project: str) -> int:
    """The worker that uses most CPU right now. Raises RuntimeError if there is none for long."""
    _until(lambda: bool(server.worker_pids(project)), time.monotonic() + 30)
    pids = server.worker_pids(project)
    if not pids:
        raise RuntimeError("it has no workers any more")
    before = {pid: processes.cpu_s([pid]) for pid in pids}
    time.sleep(0.1)
    return max(pids, key=lambda pid: processes.cpu_s([pid]) - before[pid])


def _private(pids: Sequence[int]) -> list[int]:
    """MiB of private memory of each."""
    found = []
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found.append(sum(int(line.split()[1]) for line in lines if "Private_" in line) >> 10)
    return found


def _get(server: Server, name: str) -> tuple[int, bytes]:
    """Status and body of one map; status 0 if there was no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with closing(connection):
        try:
            connection.request("GET", server.target(name, _MAP))
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""


def _recoloured(content: bytes) -> bytes:
    return re.sub(rb'"(\d+),(\d+),(\d+),255"', rb'"\3,\1,\2,255"', content)


def _until(condition: Callable[[], bool], deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


def _until_open(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
                return
        except OSError:
            time.sleep(0.05)


def render(found: Faults, titles: dict[str, str]) -> str:
    """The table."""
    names = list(dict.fromkeys(name for cells in found.cells.values() for name in cells))
    lines = [["what happens", *(titles[name] for name in names)], ["---"] * (len(names) + 1)]
    for row, cells in found.cells.items():
        lines.append([row, *(cells.get(name, NONE) for name in names)])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    about = (
        "Light project, a server at a time; closed loops of keep-alive connections. Failed is what "
        "got no whole and right answer, timeouts of the client (90 s) included. The row of the "
        "stuck project: 4 workers each, and qgisd's default that one project may not have all of "
        "them."
    )
    return f"### Faults\n\n{about}\n\n{table}"
