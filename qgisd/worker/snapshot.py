"""A process that holds one loaded project and is forked for every worker of it.

It serves nothing itself. A project whose threads stay, or whose provider forbids it, is
reported as Mode.LOADED, and this process ends: its workers are then forked from the zygote and
load the project themselves (rule 6).
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable

from qgisd import channel, wire
from qgisd.words import Mode
from qgisd.worker import fork, rehearsal
from qgisd.worker.backend import Backend, LoadError, Project
from qgisd.worker.forkserver import ForkServer
from qgisd.worker.loop import run_worker
from qgisd.worker_settings import ZygoteSettings

#: Bad layers reported at most, and characters of what is said of one: all go into one control
#: message, also where each character takes three bytes.
_MOST_BAD_LAYERS = 100
_MOST_COMPLAINT = 300
#: Data files in one control message: the path of one has up to 1,000 bytes.
_FILES_AT_ONCE = 100
#: Layers told of, in all and in one message, and characters of their names.
_MOST_LAYERS = 1000
_LAYERS_AT_ONCE = 100
_MOST_TEXT = 100


def run_snapshot(
    backend: Backend, settings: ZygoteSettings, order: wire.ForkSnapshot, control: socket.socket
) -> None:
    """Load, report, and fork on command. Runs in a fork of the zygote and never returns."""
    fork.mark_process("qgisd-snapshot", 300)
    channel.send(control, wire.Loading())
    pace = fork.in_background if order.background else contextlib.nullcontext
    started = time.monotonic()
    try:
        with pace():
            project = backend.load(order.path)
    except LoadError as error:
        channel.send(control, wire.Failed(str(error)[:4000]))
        os._exit(0)
    load_ms = (time.monotonic() - started) * 1000
    _tell_layers(control, project.contents)

    def threads() -> list[fork.Thread]:
        return fork.wait_single_threaded(backend.quiesce, settings.quiesce_s)

    def announce(pid: int, pidfd: int) -> None:
        channel.send(control, wire.Forked(wire.rehearsal_token(order.generation), pid), [pidfd])

    why = _why_not_forked(settings, project, threads)
    warmed = rehearsal.Warmed()
    if not why:
        with pace():
            warmed = rehearsal.warm_up(backend, settings, order.project, load_ms / 1000, announce)
        why = _why_not_forked(settings, project, threads)
    mode = Mode.LOADED if why else Mode.FORKED
    fork.prepare_to_fork()
    files = list(project.data_files.items())
    for first in range(0, len(files), _FILES_AT_ONCE):
        channel.send(control, wire.DataFiles(dict(files[first : first + _FILES_AT_ONCE])))
    warmup = wire.WarmUp(warmed.level, warmed.detail[:500], warmed.why[:500])
    loaded = wire.Loaded(
        mode, why[:500], project.layers, short(project.bad_layers), load_ms, project.notes, warmup
    )
    channel.send(control, loaded)
    if mode is Mode.LOADED:
        os._exit(0)

    def child(message: wire.ToForker, descriptors: list[int]) -> None:
        assert isinstance(message, wire.ForkWorker)
        run_worker(backend, settings, message, warmed.map)

    ForkServer(control, settings.lifeline_fd, child, threads).run()


def short(bad_layers: list[wire.BadLayer]) -> list[wire.BadLayer]:
    """As many of them, and as much of each, as one message holds."""
    return [
        wire.BadLayer(layer.name[:_MOST_TEXT], layer.provider[:40], layer.message[:_MOST_COMPLAINT])
        for layer in bad_layers[:_MOST_BAD_LAYERS]
    ]


def _tell_layers(control: socket.socket, layers: list[wire.Layer]) -> None:
    told = [
        wire.Layer(
            layer.id[:_MOST_TEXT], layer.name[:_MOST_TEXT], layer.provider[:40], layer.valid,
            layer.load_ms,
        )
        for layer in layers[:_MOST_LAYERS]
    ]  # fmt: skip
    for first in range(0, len(told), _LAYERS_AT_ONCE):
        channel.send(control, wire.Layers(told[first : first + _LAYERS_AT_ONCE]))


def _why_not_forked(
    settings: ZygoteSettings, project: Project, threads: Callable[[], list[fork.Thread]]
) -> str:
    if not settings.snapshot:
        return "pool.snapshot is false"
    if project.unforkable:
        return project.unforkable
    staying = threads()
    if staying:
        return "threads stay: " + ", ".join(map(str, staying))
    return ""
