"""The first process of a pool: the server started, plugins loaded, no project.

`python -m qgisd.worker.zygote`, exec'd by the daemon, so that nothing of its loop, sockets or
threads leaks in. It forks snapshots, and workers where a project must be loaded by each.
"""

import os
import socket
import sys
from typing import NoReturn

import msgspec

from qgisd import channel, wire
from qgisd.worker import fork, snapshot
from qgisd.worker.backend import Backend, LoadError
from qgisd.worker.forkserver import ForkServer
from qgisd.worker.loop import run_worker
from qgisd.worker_settings import NICE, ZygoteSettings


def make_backend(settings: ZygoteSettings) -> Backend:
    """The backend that the pool asked for; QGIS is imported here and only here."""
    if settings.backend == "fake":
        from qgisd.worker.fake import FakeBackend

        return FakeBackend(settings.watch_data)
    from qgisd.worker.qgis_server import QgisBackend

    return QgisBackend(settings)


def start_again(settings: ZygoteSettings, threaded: dict[str, str]) -> NoReturn:
    """Exec this process anew, to be rid of the threads of plugins, and leave those to workers."""
    for name, threads in threaded.items():
        print(f"the plugin {name} has {threads}: starting again without it", file=sys.stderr)
    known = settings.threaded_plugins | threaded
    settings = msgspec.structs.replace(settings, threaded_plugins=known)
    os.set_inheritable(settings.control_fd, True)
    os.set_inheritable(settings.lifeline_fd, True)
    os.execve(
        sys.executable,
        [sys.executable, "-m", __spec__.name],
        os.environ | settings.to_environment(),
    )


def main() -> None:
    """Start, say so, fork on command. Exit code 1 if the server does not come up."""
    settings = ZygoteSettings.from_environment()
    control = socket.socket(fileno=settings.control_fd)
    control.set_inheritable(False)
    os.set_inheritable(settings.lifeline_fd, False)
    fork.bind_lifeline(settings.lifeline_fd)
    fork.mark_process("qgisd-zygote", 100)
    if not settings.threaded_plugins:
        os.nice(NICE)
    try:
        # One that replaces another comes up while workers serve, and nobody waits for the first.
        with fork.in_background():
            backend = make_backend(settings)
            started = backend.start(lambda what: channel.send(control, wire.Starting(what)))
    except (LoadError, ImportError) as error:
        channel.send(control, wire.Failed(str(error)[:2000]))
        sys.exit(1)
    if started.threaded:
        start_again(settings, started.threaded)

    def threads() -> list[fork.Thread]:
        return fork.wait_single_threaded(
            backend.quiesce, settings.quiesce_s, backend.zygote_threads
        )

    def child(message: wire.ToForker, descriptors: list[int]) -> None:
        if isinstance(message, wire.ForkSnapshot):
            snapshot.run_snapshot(backend, settings, message, socket.socket(fileno=descriptors[0]))
        else:
            run_worker(backend, settings, message)

    fork.prepare_to_fork()
    channel.send(
        control,
        wire.ZygoteReady(
            started.qgis, started.api_root, started.services, started.plugins, started.notes
        ),
    )
    ForkServer(control, settings.lifeline_fd, child, threads).run()


if __name__ == "__main__":
    main()
