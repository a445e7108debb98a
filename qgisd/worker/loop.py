"""A worker: one request at a time, over a DEALER, until told to stop or killed.

The loop knows nothing of QGIS: a backend answers. It leaves by os._exit, as unwinding would
politely close connections that belong to the snapshot (rule 3).
"""

import faulthandler
import os
import signal
import sys
import time
from typing import NoReturn

import zmq

from qgisd import wire
from qgisd.worker import fork
from qgisd.worker.backend import Backend, LoadError
from qgisd.worker.rehearsal import Ignored
from qgisd.worker_settings import ZygoteSettings

#: Milliseconds after which a worker that was forked for somebody would have been asked.
_ASKED_MS = 20


class _Stopped(Exception):
    """The daemon asked this worker to end."""


def run_worker(
    backend: Backend,
    settings: ZygoteSettings,
    order: wire.ForkWorker,
    first_map: wire.Request | None = None,
) -> NoReturn:
    """Connect, say Ready, answer. Runs in a fork of a snapshot, or of the zygote with a path.

    first_map: drawn for nobody while nobody asks. A fork's first map of a heavy project takes three
    times as long as later ones, as it copies thousands of pages; after this one, less than twice.
    """
    fork.mark_process("qgisd-worker", 600)
    if order.path is not None:
        try:
            backend.load(order.path)
        except LoadError as error:
            print(f"worker {order.worker}: cannot load {order.path}: {error}", flush=True)
            os._exit(1)
        fork.return_memory()
    backend.forked()
    context = zmq.Context(io_threads=1)
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.IDENTITY, order.identity.encode())
    dealer.setsockopt(zmq.LINGER, 1000)
    dealer.setsockopt(zmq.SNDHWM, 0)  # bounded by credit, not by message count
    dealer.connect(order.endpoint)
    # A file in memory, for faulthandler: a worker stuck in C++ can still say where.
    stack_fd = os.memfd_create("stack")
    faulthandler.register(signal.SIGUSR1, stack_fd, all_threads=False)
    dealer.send(wire.encode(wire.Ready(os.getpid(), stack_fd)))
    worker = _Worker(backend, dealer, settings.window, fork.own_memory())
    if first_map is not None and not dealer.poll(_ASKED_MS):
        backend.handle(first_map, b"", Ignored())
    try:
        while True:
            worker.serve_one()
    except _Stopped:
        pass
    dealer.close()
    context.term()
    os._exit(0)


class _Worker:
    def __init__(
        self, backend: Backend, dealer: "zmq.Socket[bytes]", window: int, memory: int
    ) -> None:
        self._backend = backend
        self._dealer = dealer
        self._window = window
        #: What it had when it came up, bytes.
        self._memory = memory

    def serve_one(self) -> None:
        """Wait for one frame and do what it says. Raises _Stopped."""
        header, *body = self._dealer.recv_multipart()
        message = wire.decode_to_worker(header)
        if isinstance(message, wire.Request):
            answer = _Answer(self._dealer, message.id, self._window, self._memory)
            self._backend.handle(message, body[0] if body else b"", answer)
        elif isinstance(message, wire.Ping):
            self._backend.idle()
            self._dealer.send(wire.encode(wire.Pong(message.number)))
        elif isinstance(message, wire.Stop):
            raise _Stopped
        # A Credit here is for a request that has ended: nothing waits for it.


class _Answer:
    """The way of one answer to the daemon (backend.Answer)."""

    def __init__(self, dealer: "zmq.Socket[bytes]", request: int, window: int, memory: int) -> None:
        self._dealer = dealer
        self._request = request
        self._window = window
        self._memory = memory
        self._unacknowledged = 0
        self._begun = False
        self._started = time.monotonic()

    def begin(self, status: int, headers: wire.Headers) -> None:
        self._begun = True
        head = wire.Head(self._request, status, headers, False, self._busy_ms())
        self._dealer.send(wire.encode(head))

    def write(self, data: bytes) -> None:
        while self._unacknowledged >= self._window:
            self._take_credit()
        self._unacknowledged += len(data)
        self._dealer.send_multipart([wire.encode(wire.Chunk(self._request)), data], copy=False)

    def finish(self, status: int, headers: wire.Headers, data: bytes) -> None:
        if not self._begun:
            busy, grown = self._busy_ms(), self._grown()
            head = wire.Head(self._request, status, headers, True, busy, grown)
            self._dealer.send_multipart([wire.encode(head), data], copy=len(data) < 65536)
            return
        if data:
            self.write(data)
        self._dealer.send(wire.encode(wire.End(self._request, self._busy_ms(), self._grown())))

    def fail(self, message: str) -> None:
        self._dealer.send(wire.encode(wire.Broken(self._request, message[:2000])))

    def _busy_ms(self) -> float:
        return (time.monotonic() - self._started) * 1000

    def _grown(self) -> int:
        return max(0, fork.own_memory() - self._memory)

    def _take_credit(self) -> None:
        message = wire.decode_to_worker(self._dealer.recv_multipart()[0])
        if isinstance(message, wire.Credit) and message.id == self._request:
            self._unacknowledged -= message.size
        elif isinstance(message, (wire.Stop, wire.Request)):
            # Never sent to a busy worker. We stand inside C++ here, where an exception would be
            # printed and swallowed, so end: the daemon sees a crash and forks another.
            print(f"{type(message).__name__} while an answer is under way", file=sys.stderr)
            os._exit(70)
