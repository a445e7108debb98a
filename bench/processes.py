"""Processes: their trees, memory and CPU from /proc, and an end to all that was started."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_TICK = os.sysconf("SC_CLK_TCK")


def log(text: str) -> None:
    """Progress, for the person who waits."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def adopt_orphans() -> None:
    """Whatever loses its parent becomes our child, so that `end_all` finds it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(
    command: list[str], log_path: Path, environment: dict[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a server; it gets SIGTERM should this process die."""
    with log_path.open("ab") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *command],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def parents() -> dict[int, int]:
    """Pid → pid of its parent, of all processes that are no zombies."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields and fields[0] not in ("Z", "X"):
                found[int(entry.name)] = int(fields[1])
    return found


def tree(root: int) -> list[int]:
    """`root` and all below it."""
    above = parents()
    found = [root] if root in above else []
    level = [root]
    while level:
        level = [pid for pid, parent in above.items() if parent in level]
        found += level
    return found


def children(pid: int) -> list[int]:
    """The pids of its living children."""
    return [child for child, parent in parents().items() if parent == pid]


def command_of(pid: int) -> str:
    """The command line of a process, "" if it is gone."""
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return ""


def pss(pids: list[int]) -> float:
    """MiB of all of them together, shared pages divided among those that share them."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def cpu_s(pids: list[int]) -> float:
    """User and system seconds that they have used so far, all threads."""
    total = 0
    for pid in pids:
        fields = _stat(pid)
        if fields:
            total += int(fields[11]) + int(fields[12])
    return total / _TICK


def machine_cpu_s() -> float:
    """Seconds that all processors together have been busy so far; stolen time is busy."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    idle = int(fields[3]) + int(fields[4])
    return (sum(map(int, fields)) - idle) / _TICK


def end(process: "subprocess.Popen[bytes]", timeout_s: float = 15) -> None:
    """SIGTERM to the server, and SIGKILL to what is left of its tree."""
    pids = tree(process.pid)
    if process.poll() is None:
        process.terminate()
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        process.poll()
        if not _living(pids):
            return
        time.sleep(0.05)
    for pid in _living(pids):
        _signal(pid, signal.SIGKILL)
    process.wait(10)


def end_all() -> None:
    """SIGKILL to every process below this one. For the way out only."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for pid in tree(os.getpid())[1:]:
            _signal(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.05)


def _living(pids: list[int]) -> list[int]:
    above = parents()
    return [pid for pid in pids if pid in above]


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third, the state, on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
