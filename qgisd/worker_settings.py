"""What the daemon tells a zygote at its start, as JSON in one environment variable."""

import os

import msgspec

VARIABLE = "QGISD_ZYGOTE"
#: Rendering takes all the processor it gets; the daemon, which hands out the work, goes first.
NICE = 5


class ZygoteSettings(msgspec.Struct, frozen=True):
    """Settings of the processes of one pool; the environment itself carries QGIS's own."""

    pool: str
    #: "qgis" or "fake".
    backend: str
    #: Descriptor numbers inherited over exec.
    control_fd: int
    lifeline_fd: int
    #: Folders with server plugins, colon-separated.
    plugin_path: str
    #: Plugins to load, in this order; empty: all there are.
    plugins: list[str]
    #: Plugins without which the pool does not start.
    required_plugins: list[str]
    #: True: plugins that look for py-qgis-server find it.
    py_qgis_server: bool
    #: True: a project with a bad layer does not load.
    strict_layers: bool
    #: Seconds that QGIS waits for a remote service.
    network_timeout_s: float
    #: Seconds that threads get to end before a project is declared unforkable.
    quiesce_s: float
    #: By which the daemon knows what its own workers ask for.
    nesting_token: str
    #: Bytes of an answer that may be on their way to the daemon before a worker waits.
    window: int
    #: False: nobody wants to know the data files of a project.
    watch_data: bool
    #: False: no project is forked, each worker loads its own (`snapshot = false`).
    snapshot: bool
    #: How far a snapshot warms up: "off", "capabilities" or "map"; and seconds that may take.
    warmup: str
    warmup_s: float
    #: Plugins that left threads behind at a first start, name → the threads: they are loaded by
    #: each worker, since a process with threads cannot be forked (rule 1).
    threaded_plugins: dict[str, str] = {}

    def to_environment(self) -> dict[str, str]:
        """The one variable that carries all of it."""
        return {VARIABLE: msgspec.json.encode(self).decode()}

    @classmethod
    def from_environment(cls) -> "ZygoteSettings":
        """Read it in the zygote. Raises KeyError or msgspec.ValidationError: the daemon's fault."""
        return msgspec.json.decode(os.environ.pop(VARIABLE), type=cls)
