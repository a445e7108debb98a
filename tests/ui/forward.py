"""A TCP port that leads to a Unix socket, as `ssh -L 8080:/run/qgisd/admin.sock` makes one."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support import eventually


@contextlib.contextmanager
def forwarded(path: Path) -> Iterator[int]:
    """The port, open until the end of the block; afterwards no thread of it is left."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_now: set[socket.socket] = set()
    pumps: list[threading.Thread] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                inner = socket.socket(socket.AF_UNIX)
                open_now.update((client, inner))
                with contextlib.suppress(OSError):
                    inner.connect(str(path))
                for ends in ((client, inner), (inner, client)):
                    thread = threading.Thread(target=pump, args=ends)
                    thread.start()
                    pumps.append(thread)

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(10)
        for end in open_now:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        eventually(lambda: not any(thread.is_alive() for thread in pumps))
        for end in (listener, *open_now):
            end.close()
