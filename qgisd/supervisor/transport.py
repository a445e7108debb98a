"""The ROUTER that all workers talk to, on the daemon's own loop: no broker, no second hop.

pyzmq's own loop integrations cost several times what a request may (baseline.md), so this reads
the socket's descriptor in a drain loop. That descriptor is edge-triggered: after every send and
every drain one must look again whether something has come.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import zmq

from qgisd import wire

#: Frames taken in one turn of the loop; then others get theirs.
_DRAIN = 64


def identity_of(pool: str, worker: int) -> bytes:
    """The identity of a worker's DEALER. Numbers are not used again, so neither is it."""
    return f"{pool}/{worker}".encode()


def parse_identity(identity: bytes) -> tuple[str, int]:
    """Pool and worker; ("", 0) for what is not of ours."""
    pool, _, worker = identity.decode("ascii", "replace").rpartition("/")
    return (pool, int(worker)) if worker.isdecimal() else ("", 0)


class Router:
    """`on_frames(identity, header, body)` is called for each message; body may be empty."""

    def __init__(self, folder: Path, on_frames: Callable[[bytes, bytes, bytes], None]) -> None:
        self._path = folder / "workers.sock"
        self.endpoint = f"ipc://{self._path}"
        self._on_frames = on_frames
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        # Both directions are bounded by what is asked of a worker: one request, its credit.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.bind(self.endpoint)
        os.chmod(self._path, 0o600)
        self._loop = asyncio.get_running_loop()
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._scheduled = False
        self._loop.add_reader(self._fd, self._drain)

    def send(self, identity: bytes, message: wire.ToWorker, body: bytes = b"") -> bool:
        """False if that worker is not connected (any more)."""
        frames = [identity, wire.encode(message)]
        if body:
            frames.append(body)
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        self._look_again()
        return True

    def close(self) -> None:
        """Stop, and remove the socket file."""
        self._loop.remove_reader(self._fd)
        self._socket.close()
        self._context.term()
        self._path.unlink(missing_ok=True)

    def _look_again(self) -> None:
        if not self._scheduled and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        if self._socket.closed:
            return
        for _ in range(_DRAIN):
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            if 2 <= len(frames) <= 3:
                self._on_frames(frames[0], frames[1], frames[2] if len(frames) == 3 else b"")
        self._look_again()
