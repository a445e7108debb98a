"""What a stuck worker is doing, told just before it is killed. Blocking; runs in a thread.

Python's side by faulthandler, which answers a signal even while C++ holds the GIL; where the
kernel waits from /proc; C++'s side by gdb, if that is wanted and installed.
"""

import contextlib
import shutil
import signal
import subprocess
import time
from pathlib import Path

_GDB_S = 10


def examine(pid: int, pidfd: int, stack_fd: int, native: bool) -> str:
    """Stacks as text. pidfd keeps `pid` from being somebody else's meanwhile.

    stack_fd: number of the file, in that process, into which faulthandler writes.
    """
    parts = []
    dump = Path(f"/proc/{pid}/fd/{stack_fd}")
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGUSR1)
        deadline = time.monotonic() + 0.2
        text = ""
        while not text.strip() and time.monotonic() < deadline:
            time.sleep(0.01)
            text = dump.read_text(errors="replace")
        parts.append(text.strip())
    except OSError:
        pass
    for name in ("wchan", "stack"):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/{name}").read_text().strip()
            if text and text != "0":
                parts.append(f"kernel {name}: {text}")
    if native and (gdb := shutil.which("gdb")):
        parts.append(_native(gdb, pid))
    return "\n".join(filter(None, parts))


def _native(gdb: str, pid: int) -> str:
    command = [gdb, "-p", str(pid), "-batch", "-nx", "-ex", "thread apply all backtrace 40"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_GDB_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.decode(errors="replace").splitlines()
    return "\n".join(line for line in lines if line.startswith(("#", "Thread")))
