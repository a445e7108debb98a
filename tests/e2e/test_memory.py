"""Memory: a worker that leaks is replaced between requests, one that explodes is killed, and the
pool as a whole keeps its budget.
"""

import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import psutil
import pytest

from qgisd.supervisor import watchdog
from tests.e2e.helpers import ProjectSet, in_parallel, private_bytes, worker_pids
from tests.process.tools import alive, named
from tests.support import Daemon, Response, eventually

StartDaemon = Callable[..., Daemon]
MIB = 1 << 20
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="session")
def leaky_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin_path whose plugin keeps LEAK MiB of each request, and holds TAKE MiB during it."""
    folder = tmp_path_factory.mktemp("plugins") / "leak"
    folder.mkdir()
    (folder / "metadata.txt").write_text(
        "[general]\nname=leak\nserver=True\nversion=1\nqgisMinimumVersion=3.0\n"
    )
    (folder / "__init__.py").write_text(
        textwrap.dedent(
            """
            import time
            from qgis.server import QgsServerFilter

            _kept = []


            class Leak(QgsServerFilter):
                def requestReady(self):
                    parameters = self.serverInterface().requestHandler().parameterMap()
                    if parameters.get("LEAK"):
                        _kept.append(b"x" * (int(parameters["LEAK"]) << 20))
                    if parameters.get("TAKE"):
                        taken = b"x" * (int(parameters["TAKE"]) << 20)
                        time.sleep(float(parameters.get("HOLD", "5")))
                        del taken


            def serverClassFactory(interface):
                interface.registerFilter(Leak(interface), 50)
                return None
            """
        )
    )
    return folder.parent


@pytest.fixture
def leaky_daemon(
    real_daemons: StartDaemon, world: ProjectSet, leaky_plugin: Path
) -> Callable[..., Daemon]:
    """Starts a daemon with the plugin; `pool` are further lines of [pool]."""

    def start(pool: str, projects: str = "") -> Daemon:
        return real_daemons(
            world.path.parents[1], pool=pool, projects=projects,
            extra=f'[pool.qgis]\nplugin_path = "{leaky_plugin}"',
        )  # fmt: skip

    return start


def target(project: str = "world/world", layers: str = "countries", **more: object) -> str:
    """A small map."""
    return "/ows/?" + urlencode(
        {
            "MAP": project, "SERVICE": "WMS", "VERSION": "1.3.0", "REQUEST": "GetMap",
            "LAYERS": layers, "STYLES": "", "CRS": "EPSG:4326", "WIDTH": 200, "HEIGHT": 100,
            "BBOX": "-60,-180,85,180", "FORMAT": "image/png",
        }
        | more
    )  # fmt: skip


def pss(pids: list[int]) -> int:
    """Bytes of all of them, shared pages divided among those that share them."""
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_full_info().pss
        except psutil.Error:
            continue
    return total


def ended(daemon: Daemon, project: str = "world/world.qgs") -> dict[str, int]:
    """Reason → workers of the project that ended for it."""
    return daemon.projects()[project]["ended"]


def largest_worker(daemon: Daemon) -> int:
    """Private bytes of the worker that has most."""
    sizes = [0]
    for pid in worker_pids(daemon):
        try:
            sizes.append(private_bytes(pid))
        except OSError:
            continue
    return max(sizes)


def test_leaking_workers_are_replaced_and_no_request_fails(
    leaky_daemon: Callable[..., Daemon],
) -> None:
    """10 MiB a request under 256 MiB: 3 GB are leaked in all."""
    daemon = leaky_daemon(
        'worker_memory = "256MiB"\nmemory_interval_s = 0.5\nworkers = 2\nproject_workers = 2'
    )
    wanted = daemon.get(target()).body
    assert wanted.startswith(PNG)
    peaks = []

    def client(number: int) -> list[Response]:
        found = []
        for at in range(75):
            found.append(daemon.get(target(LEAK=10), timeout=60))
            if at % 5 == 0 and number == 0:
                peaks.append(largest_worker(daemon))
        return found

    answers = [answer for row in in_parallel(4, client) for answer in row]
    failed = [(answer.status, answer.body[:200]) for answer in answers if answer.status != 200]
    assert failed == []
    assert len(answers) == 300
    assert all(answer.body == wanted for answer in answers)
    # Twice the soft limit, where it would be killed, and what a sample may come late.
    assert max(peaks) < 640 * MIB
    counts = ended(daemon)
    assert counts.get("memory", 0) >= 5
    assert set(counts) <= {"memory"}


def test_a_worker_that_leaks_faster_than_it_is_looked_at_is_replaced_in_time(
    leaky_daemon: Callable[..., Daemon],
) -> None:
    """Between two looks at the default interval it could take many times its limit."""
    daemon = leaky_daemon('worker_memory = "256MiB"\nworkers = 1\nproject_workers = 1')
    answers = [daemon.get(target(LEAK=40, WIDTH=20, HEIGHT=10), timeout=60) for _ in range(60)]
    failed = [(answer.status, answer.body[:200]) for answer in answers if answer.status != 200]
    assert failed == []
    eventually(lambda: largest_worker(daemon) < 512 * MIB, timeout=15)
    assert set(ended(daemon)) == {"memory"}


def test_a_worker_over_the_hard_limit_is_killed_in_its_request(
    leaky_daemon: Callable[..., Daemon],
) -> None:
    """It does not get to finish; the request is tried once more, as the first worker may have
    leaked before, and then told."""
    daemon = leaky_daemon('worker_memory = "128MiB"\nmemory_interval_s = 0.2\nworkers = 2')
    assert daemon.get(target()).status == 200
    begin = time.monotonic()
    answer = daemon.get(target(TAKE=600, HOLD=30), timeout=60)
    assert time.monotonic() - begin < 10
    assert answer.status == 502
    assert b"memory" in answer.body and b"ServiceException" in answer.body
    assert ended(daemon) == {"memory": 2}
    assert daemon.get(target()).status == 200


def test_what_a_request_takes_for_a_moment_is_its_own_affair(
    leaky_daemon: Callable[..., Daemon],
) -> None:
    """Over the soft limit during a request, and back below it: the answer comes."""
    daemon = leaky_daemon('worker_memory = "256MiB"\nmemory_interval_s = 0.2\nworkers = 2')
    wanted = daemon.get(target()).body
    answer = daemon.get(target(TAKE=350, HOLD=1), timeout=60)
    assert answer.status == 200 and answer.body == wanted


def test_an_idle_snapshot_is_evicted_when_the_pool_needs_memory(
    leaky_daemon: Callable[..., Daemon],
) -> None:
    """Idle workers first, then the snapshot that is not pinned; the pinned project serves on."""
    options = 'worker_memory = "4GiB"\nmemory_interval_s = 0.3\nworkers = 3\n'
    pinned = 'pinned = ["world/world"]'

    def warm(daemon: Daemon) -> None:
        assert daemon.get(target()).status == 200
        assert daemon.get(capabilities("many/p0000")).status == 200

    trial = leaky_daemon(options, pinned)
    warm(trial)
    rest = pss(trial.pids())
    trial.stop()
    budget = rest + 80 * MIB
    daemon = leaky_daemon(f'{options}memory = "{budget}B"\n', pinned)
    warm(daemon)
    assert daemon.projects()["many/p0000.qgs"]["state"] == "serving"
    assert daemon.get(target(LEAK=200)).status == 200

    def evicted() -> bool:
        found = daemon.projects().get("many/p0000.qgs")
        return found is None or found["state"] == "unloaded"

    eventually(evicted, timeout=10)
    assert "evicted: the pool is over its memory" in daemon.log()
    # At last the one that leaked is killed, and there is room again.
    eventually(lambda: pss(daemon.pids()) < budget, timeout=15, period=0.2)
    assert daemon.get(target(), timeout=60).status == 200
    eventually(lambda: daemon.get(capabilities("many/p0000"), timeout=60).status == 200, timeout=10)
    assert daemon.projects()["world/world.qgs"]["loads"] == 1
    assert "crash" not in ended(daemon)


def capabilities(project: str) -> str:
    """A request that every project answers."""
    return "/ows/?" + urlencode(
        {"MAP": project, "SERVICE": "WMS", "VERSION": "1.3.0", "REQUEST": "GetCapabilities"}
    )


def test_where_nothing_can_be_evicted_further_projects_are_refused(
    leaky_daemon: Callable[..., Daemon],
) -> None:
    """A budget below what the pinned project needs: that one is served, whatever it takes."""
    daemon = leaky_daemon(
        'memory = "60MiB"\nmemory_interval_s = 0.3\nworkers = 2', 'pinned = ["world/world"]'
    )
    eventually(lambda: "the pool is over its memory" in daemon.log(), timeout=10)
    answer = daemon.get(capabilities("many/p0000"))
    assert answer.status == 503, answer.body[:300]
    assert int(answer.headers["Retry-After"]) > 0
    assert b"memory" in answer.body and b"ServiceException" in answer.body
    assert "many/p0000.qgs" not in daemon.projects()
    # Kills for the pool's sake must not become an answer, nor a storm.
    before = time.monotonic()
    for number in range(30):
        answer = daemon.get(target(WIDTH=200 + number), timeout=30)
        assert answer.status == 200, answer.body[:300]
        time.sleep(0.1)
    elapsed = time.monotonic() - before
    counts = ended(daemon)
    assert "crash" not in counts and "deadline" not in counts
    assert sum(counts.values()) <= elapsed / 0.3 + 5, counts
    assert len(named(daemon, "zygote")) == 1


def test_a_worker_killed_for_memory_leaves_nothing(leaky_daemon: Callable[..., Daemon]) -> None:
    """Its pid ends, and its project gets another worker at once."""
    daemon = leaky_daemon('worker_memory = "128MiB"\nmemory_interval_s = 0.2\nworkers = 2')
    assert daemon.get(target()).status == 200
    (pid,) = worker_pids(daemon)
    daemon.get(target(LEAK=600), timeout=60)
    eventually(lambda: not alive(pid), timeout=10)
    assert daemon.get(target()).status == 200
    assert pid not in worker_pids(daemon)


# limits of the cgroup, in a tree that stands for /sys/fs/cgroup


@pytest.fixture
def cgroups(tmp_path: Path) -> Iterator["Cgroups"]:
    """An empty tree."""
    (tmp_path / "fs").mkdir()
    yield Cgroups(tmp_path / "fs", tmp_path / "membership")


class Cgroups:
    """A fake tree of control groups and what /proc/self/cgroup says."""

    def __init__(self, root: Path, membership: Path) -> None:
        self._root = root
        self._membership = membership

    def belong(self, *lines: str) -> None:
        self._membership.write_text("".join(f"{line}\n" for line in lines))

    def put(self, path: str, text: str) -> None:
        file = self._root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def limit(self) -> int | None:
        return watchdog.cgroup_limit(self._root, self._membership)


def test_the_limit_of_version_2_is_the_lowest_on_the_way_up(cgroups: Cgroups) -> None:
    cgroups.belong("0::/system.slice/qgisd.service")
    cgroups.put("system.slice/qgisd.service/memory.max", "max")
    assert cgroups.limit() is None
    cgroups.put("system.slice/memory.max", str(8 << 30))
    assert cgroups.limit() == 8 << 30
    cgroups.put("system.slice/qgisd.service/memory.max", str(4 << 30))
    cgroups.put("system.slice/qgisd.service/memory.high", str(3 << 30))
    assert cgroups.limit() == 3 << 30


def test_inside_a_container_the_limit_is_at_the_root(cgroups: Cgroups) -> None:
    cgroups.belong("0::/")
    cgroups.put("memory.max", str(2 << 30))
    assert cgroups.limit() == 2 << 30


def test_the_limit_of_version_1(cgroups: Cgroups) -> None:
    cgroups.belong("5:cpu,cpuacct:/", "4:memory:/docker/0123", "0::/")
    cgroups.put("memory/docker/0123/memory.limit_in_bytes", str(1 << 30))
    cgroups.put("memory/memory.limit_in_bytes", str((1 << 63) - 4096))
    assert cgroups.limit() == 1 << 30


def test_the_huge_number_of_version_1_is_no_limit(cgroups: Cgroups) -> None:
    cgroups.belong("4:memory:/")
    cgroups.put("memory/memory.limit_in_bytes", str((1 << 63) - 4096))
    assert cgroups.limit() is None


def test_without_cgroups_there_is_no_limit(cgroups: Cgroups) -> None:
    assert cgroups.limit() is None
    cgroups.belong("0::/nowhere/at/all")
    assert cgroups.limit() is None
