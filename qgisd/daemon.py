"""The composition root: from a configuration to a running daemon, and to its end.

Everything is made here and handed to whoever needs it; no other module knows them all.
"""

import asyncio
import faulthandler
import gc
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import sys
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from qgisd import config as configuration
from qgisd import log, secret_files, wire
from qgisd.config import Config, Loaded, Pool
from qgisd.errors import StartError
from qgisd.health import Health, raise_descriptor_limit
from qgisd.http import limits, listen, ui
from qgisd.http.admin import AdminApp, Mount, make_api
from qgisd.http.app import PublicApp, Route, Settings
from qgisd.http.feed import Feed, picture
from qgisd.http.guard import Guard
from qgisd.http.handler import Context
from qgisd.http.metrics import Metrics, Scrape
from qgisd.repeats import WINDOW_S, Repeats
from qgisd.service import SystemdUnit
from qgisd.supervisor import policy
from qgisd.supervisor.catalog import Catalog
from qgisd.supervisor.exchange import Buffering
from qgisd.supervisor.model import Limits
from qgisd.supervisor.pool import MemoryBudget
from qgisd.supervisor.pool import Pool as RunningPool
from qgisd.supervisor.process import become_subreaper
from qgisd.supervisor.transport import Router, parse_identity
from qgisd.words import RequestClass
from qgisd.worker_settings import ZygoteSettings

_log = logging.getLogger("qgisd")
#: Bytes of an answer on their way from a worker to the daemon.
_WINDOW = 2 << 20
#: Longest head of a request that is read at all; http.max_url, below it, is answered with 414.
_MAX_HEAD = 2 << 20
#: Share of the descriptors that connections of clients may have.
_FOR_CLIENTS = 0.8
#: Seconds between two looks at whether all is answered.
_LOOK_S = 0.02
#: Without a request on its open connections for so long, the daemon ends: what a proxy sends right
#: after it has connected is still answered.
_QUIET_S = 0.1
#: A request that has begun to come may take so long to be whole: an upload that stands still must
#: not hold up a restart, for which everybody waits.
_ARRIVAL_S = 3.0
#: QGIS_SERVER_LOG_LEVEL by pool.qgis.log_level.
_QGIS_LEVELS = {"info": "0", "warning": "1", "critical": "2"}
#: Removed from the environment of a zygote: they change what QGIS or Qt does behind our back.
_UNWANTED = {
    "DISPLAY", "WAYLAND_DISPLAY", "QGIS_PROJECT_FILE", "PYTHONHOME",
    # What is between systemd and the daemon.
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY",
}  # fmt: skip


def serve(loaded: Loaded) -> int:
    """Run until told to stop. The exit code: 0, or 1 if it could not start."""
    faulthandler.enable()  # systemd's watchdog sends SIGABRT: say where we stood
    repeats = log.configure(loaded.config.log.level, loaded.config.log.format)
    try:
        return asyncio.run(Daemon(loaded, repeats).run())
    finally:
        repeats.finish()


class Daemon:
    """All that runs, from start to stop."""

    def __init__(self, loaded: Loaded, repeats: Repeats) -> None:
        self._loaded = loaded
        self._repeats = repeats
        self._config: Config = loaded.config
        self._pools: dict[str, RunningPool] = {}
        self._servers: list[listen.Server] = []
        self._app: PublicApp | None = None
        self._router: Router | None = None
        self._unit = SystemdUnit(self._pools)
        #: Addresses that are ours to forget.
        self._bound: list[str] = []
        #: By which we know what our own workers ask for.
        self._nesting_token = (
            self._config.http.nesting_token.get_secret_value() or secrets.token_hex(16)
        )
        self._failure = ""
        self._stop = asyncio.Event()
        self._now = False

    async def run(self) -> int:
        """Start, wait for a signal, stop."""
        gc.freeze()  # what is imported lives as long as we do: nothing there to collect
        runtime, temporary = configuration.runtime_dir(self._config, os.environ)
        try:
            runtime.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._prepare_signals()
            become_subreaper()
            self._start(runtime)
        except (StartError, OSError) as error:
            _log.critical("cannot start: %s", error)
            self._failure = str(error)
            self._stop.set()
        await self._wait_ready()
        await self._stop.wait()
        await self._shut_down()
        if temporary:
            shutil.rmtree(runtime, ignore_errors=True)
        return 1 if self._failure else 0

    def _prepare_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._unit.hangup)

    def _on_signal(self) -> None:
        # The second one means now.
        self._now = self._stop.is_set()
        self._stop.set()

    def _start(self, runtime: Path) -> None:
        handed = listen.handed_over(os.environ)
        if "http" in handed and self._config.http.listen != configuration.Http().listen:
            _log.warning("http.listen is not used: systemd hands over the socket (qgisd.socket)")
        public = handed.get("http") or self._bind(self._config.http.listen)
        admin = handed.get("admin") or self._bind(self._config.admin.listen)
        self._guard = Guard(self._config.admin)
        self._guard.check_listeners(admin)
        sockets = runtime / "workers"
        sockets.mkdir(mode=0o700, exist_ok=True)
        self._router = Router(sockets, self._on_frames)
        most = int(raise_descriptor_limit() * _FOR_CLIENTS)
        self._health = Health(sockets, public)
        self._feed = Feed(partial(picture, self._pools, self._health.report))
        self._watching = [
            asyncio.ensure_future(self._health.watch()),
            asyncio.ensure_future(self._tell_repeats()),
        ]
        for name, pool in self._config.all_pools().items():
            self._pools[name] = self._make_pool(name, pool, runtime)
        self._listen(public, admin)
        self._servers[0].most = most
        for name, pool in self._config.all_pools().items():
            self._pools[name].start(pool.projects.pinned)
        self._unit.start()

    def _bind(self, address: str) -> list[socket.socket]:
        sockets = listen.bind(address)
        self._bound.append(address)
        return sockets

    def _make_pool(self, name: str, pool: Pool, runtime: Path) -> RunningPool:
        assert self._router is not None
        http = self._config.http
        profile = runtime / "pools" / name
        shutil.rmtree(profile / wire.WORKER_FOLDERS, ignore_errors=True)
        for folder in ("", "qgis", "cache"):
            (profile / folder).mkdir(mode=0o700, parents=True, exist_ok=True)

        def environment(control: int, lifeline: int) -> dict[str, str]:
            token = self._nesting_token
            return zygote_environment(name, pool, profile, token, control, lifeline)

        return RunningPool(
            name,
            limits_of(pool),
            Catalog(pool.projects.roots),
            self._router,
            Buffering(http.buffer, http.spool, None, http.client_timeout_s),
            pool.projects.check_interval_s,
            pool.restart_file,
            MemoryBudget(pool.memory, pool.memory_interval_s, share_of(pool, self._config)),
            pool.cache,
            {cls: pool.class_slow_s.get(cls, pool.slow_s) for cls in RequestClass},
            pool.native_stacks,
            profile,
            environment,
            self._give_up,
            self._feed.publish,
        )

    def _give_up(self, message: str) -> None:
        _log.critical("cannot start: %s", message)
        self._failure = message
        self._stop.set()

    def _on_frames(self, identity: bytes, header: bytes, body: bytes) -> None:
        name, worker = parse_identity(identity)
        pool = self._pools.get(name)
        if pool is not None:
            pool.on_frames(worker, header, body)

    def _listen(self, public: list[socket.socket], admin: list[socket.socket]) -> None:
        http = self._config.http
        self._addresses = [listen.address_of(socket) for socket in public]
        address = next((one for one in self._addresses if not one.startswith("unix:")), "localhost")
        settings = Settings(
            http.trusted_proxies,
            http.max_body,
            http.max_url,
            http.cors_origins,
            http.apis,
            address,
            self._nesting_token,
            limits.Limits(**self._config.limits.model_dump()),
        )
        routes = [
            Route(pool.route, self._pools[name], partial(timeout_of, pool))
            for name, pool in self._config.all_pools().items()
        ]
        app = self._app = PublicApp(settings, routes)
        paths = {name: pool.route for name, pool in self._config.all_pools().items()}
        context = Context(
            self._pools, paths, describe(self._loaded), self._health.report, self._feed
        )
        scrape = Scrape(self._pools, self._health.report, app.access.answers, self._config.metrics)
        mounts = [Mount("/metrics", Metrics, {"scrape": scrape}), *ui.MOUNTS]
        api = make_api(self._guard, context, mounts)
        for delegate, sockets in ((app, public), (AdminApp(api, app), admin)):
            server = listen.Server(
                delegate,
                max_header_size=_MAX_HEAD,
                max_body_size=1 << 62,  # http.max_body is enforced with an answer, not a cut
                max_buffer_size=_MAX_HEAD + (1 << 20),
                idle_connection_timeout=75,
                body_timeout=http.client_timeout_s,
            )
            server.add_sockets(sockets)
            self._servers.append(server)

    async def _wait_ready(self) -> None:
        """Tell systemd, and the person at the terminal, when what is pinned has been loaded.

        Serving begins with the zygotes, before that; a pinned project that fails holds up nothing.
        """
        while not self._stop.is_set():
            if all(pool.settled() for pool in self._pools.values()):
                self._unit.ready()
                _log.info("ready on %s", ", ".join(self._addresses))
                return
            await asyncio.sleep(0.05)

    async def _shut_down(self) -> None:
        limit = 0.0 if self._failure else self._config.daemon.shutdown_timeout_s
        self._unit.stopping(limit)
        _log.info("stopping")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit
        # The files first: whoever finds none knows at once that nobody listens.
        for address in self._bound:
            listen.forget(address)
        for server in self._servers:
            server.stop()
            # What comes on connections that are open is still answered; then they close.
            server.conn_params.no_keep_alive = True
        await self._answer_the_rest(deadline)
        left = 0.0 if self._now else max(0.0, deadline - loop.time())
        stops = [asyncio.ensure_future(pool.stop(left)) for pool in self._pools.values()]
        watch = asyncio.ensure_future(self._watch_for_now())
        await asyncio.gather(*stops)
        watch.cancel()
        for server in self._servers:
            await server.close_all_connections()
        if self._router is not None:
            self._router.close()
        self._unit.close()

    async def _answer_the_rest(self, deadline: float) -> None:
        """Until nothing is under way, and nothing more comes on connections that are open."""
        loop = asyncio.get_running_loop()
        quiet_at = loop.time() + _QUIET_S
        arrived_at = loop.time() + _ARRIVAL_S
        while self._app and not self._now and loop.time() < deadline:
            if self._app.busy if loop.time() < arrived_at else self._app.working:
                quiet_at = loop.time() + _QUIET_S
            elif loop.time() >= quiet_at or not any(one.connected for one in self._servers):
                # A proxy that sees its connection closed now sends elsewhere: no 503 for it.
                await self._servers[0].close_all_connections()
                return
            await asyncio.sleep(_LOOK_S)

    async def _tell_repeats(self) -> None:
        while True:
            await asyncio.sleep(WINDOW_S / 4)
            self._repeats.look()

    async def _watch_for_now(self) -> None:
        while not self._now:
            await asyncio.sleep(0.05)
        for pool in self._pools.values():
            pool.stop_now()


def limits_of(pool: Pool) -> Limits:
    """The figures of a pool, with what 0 stands for worked out."""
    return Limits(
        workers=pool.workers,
        project_workers=pool.project_workers or policy.default_project_workers(pool.workers),
        max_loads=pool.max_loads or policy.default_max_loads(configuration.cores()),
        queue=pool.queue,
        project_queue=pool.project_queue,
        zygote_timeout_s=pool.zygote_timeout_s,
        load_timeout_s=pool.load_timeout_s,
        boot_timeout_s=pool.boot_timeout_s,
        stream_timeout_s=pool.stream_timeout_s,
        stop_timeout_s=pool.stop_timeout_s,
        disconnect_grace_s=pool.disconnect_grace_s,
        idle_worker_s=pool.idle_worker_s,
        ping_interval_s=pool.ping_interval_s,
        ping_timeout_s=pool.ping_timeout_s,
        on_demand=pool.projects.on_demand,
        print_workers=pool.print_workers,
        lend_after_s=pool.lend_after_s,
        lent_workers=pool.lent_workers or pool.workers,
        worker_memory=pool.worker_memory,
        max_requests=pool.max_requests,
        breaker_failures=pool.breaker_failures,
        breaker_window_s=pool.breaker_window_s,
        breaker_pause_s=pool.breaker_pause_s,
        overrides=tuple(
            (pattern, override.workers, override.queue)
            for pattern, override in pool.overrides.items()
        ),
        backoff_limit_s=pool.backoff_limit_s,
        data_reload_s=pool.projects.data_reload_s,
        # Longer than from one look to the next: nothing changed between two.
        data_settle_s=pool.projects.check_interval_s * 1.5,
    )


def share_of(pool: Pool, config: Config) -> float:
    """Of the cgroup's memory, by what each pool is configured to have."""
    return pool.memory / max(1, sum(other.memory for other in config.all_pools().values()))


def timeout_of(pool: Pool, project: str, cls: RequestClass) -> float:
    """Seconds until an answer must have begun: by class, else by project, else the pool's."""
    if cls in pool.class_timeouts_s:
        return pool.class_timeouts_s[cls]
    if cls is RequestClass.PRINT:
        return pool.print_timeout_s
    for pattern, override in pool.overrides.items():
        if fnmatchcase(project, pattern) and override.request_timeout_s is not None:
            return override.request_timeout_s
    return pool.request_timeout_s


def zygote_environment(
    name: str, pool: Pool, profile: Path, nesting_token: str, control: int, lifeline: int
) -> dict[str, str]:
    """The whole environment of a zygote: ours, less what disturbs, plus what QGIS needs."""
    settings = ZygoteSettings(
        pool=name,
        backend=pool.backend,
        control_fd=control,
        lifeline_fd=lifeline,
        plugin_path=pool.qgis.plugin_path,
        plugins=pool.qgis.plugins,
        required_plugins=pool.qgis.required_plugins,
        py_qgis_server=pool.qgis.py_qgis_server,
        strict_layers=pool.projects.bad_layers == "strict",
        network_timeout_s=pool.qgis.network_timeout_s,
        quiesce_s=pool.quiesce_s,
        nesting_token=nesting_token,
        window=_WINDOW,
        watch_data=pool.projects.watch_data,
        snapshot=pool.snapshot,
        warmup=pool.warmup,
        warmup_s=pool.warmup_s,
    )
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in _UNWANTED and not key.startswith((secret_files.PREFIX, "LISTEN_"))
    }
    fixed = {
        "QT_QPA_PLATFORM": "offscreen",
        # XML attributes in the same order in every worker, whatever it was forked from.
        "QT_HASH_SEED": "0",
        "HOME": str(profile),
        "XDG_RUNTIME_DIR": str(profile),
        "XDG_CACHE_HOME": str(profile / "cache"),
        "QGIS_OPTIONS_PATH": str(profile / "qgis"),
        "QGIS_CUSTOM_CONFIG_PATH": str(profile / "qgis"),
        "QGIS_DISABLE_MESSAGE_HOOKS": "1",
        "QGIS_NO_OVERRIDE_IMPORT": "1",
        "QGIS_SERVER_LOG_STDERR": "1",
        "QGIS_SERVER_LOG_LEVEL": _QGIS_LEVELS[pool.qgis.log_level],
        "QT_LOGGING_RULES": "*.debug=false;*.warning=false",
        "PGCONNECT_TIMEOUT": str(math.ceil(pool.qgis.network_timeout_s)),
        # OpenBLAS (by way of GDAL) starts a thread per core as soon as it is loaded: rule 1.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        # Lizmap's plugin reports each start to its makers, by a thread of Qt's network: rule 1.
        "3LIZ_SKIP_STATS": "1",
    }
    fake = {key: value for key, value in os.environ.items() if key.startswith("QGISD_FAKE_")}
    return kept | fixed | pool.qgis.env | fake | settings.to_environment()


def describe(loaded: Loaded) -> dict[str, object]:
    """The effective configuration for `ctl config`, without secrets and values of qgis.env."""
    tree: Any = secret_files.masked(loaded.config.model_dump(mode="json"), loaded.sources)
    for pool in [tree["pool"], *tree["pools"].values()]:
        if isinstance(pool["qgis"]["env"], dict):
            pool["qgis"]["env"] = dict.fromkeys(pool["qgis"]["env"], "***")
    return {"config": tree, "sources": loaded.sources, "python": sys.version.split()[0]}
