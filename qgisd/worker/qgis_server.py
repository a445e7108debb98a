"""The backend that serves maps: QgsServer in a zygote, one QgsProject per snapshot.

API used: QgsServer.handleRequest(request, response, project), QGIS 3.22 and later.
"""

import math
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

from qgis.core import Qgis, QgsApplication, QgsNetworkAccessManager, QgsProject, QgsSettings
from qgis.PyQt.QtCore import QCoreApplication, QThreadPool
from qgis.server import (
    QgsBufferServerRequest,
    QgsBufferServerResponse,
    QgsServer,
    QgsServerRequest,
    QgsServerSettings,
)

from qgisd import wire
from qgisd.worker import features, fork, nesting, plugins, projects, warmup, writes
from qgisd.worker.backend import Answer, LoadError, Project, Started, WarmStep
from qgisd.worker.fork import HARMLESS_IN_ZYGOTE
from qgisd.worker_settings import ZygoteSettings

_METHODS = {
    "GET": QgsServerRequest.GetMethod,
    "HEAD": QgsServerRequest.HeadMethod,
    "POST": QgsServerRequest.PostMethod,
    "PUT": QgsServerRequest.PutMethod,
    "DELETE": QgsServerRequest.DeleteMethod,
    "PATCH": features.PATCH_METHOD,
}
#: What QGIS logs when a request fails whose first bytes are gone (qgsserverresponse.cpp).
_TOO_LATE = "Cannot write exception after header sent"
_SERVICES = ("WMS", "WFS", "WCS", "WMTS")


class QgisBackend:
    """See backend.Backend."""

    zygote_threads: tuple[str, ...] = HARMLESS_IN_ZYGOTE

    def __init__(self, settings: ZygoteSettings) -> None:
        self._settings = settings
        self._project: QgsProject | None = None
        self._response: _Response | None = None
        self._plugins = plugins.Plugins(
            settings.plugin_path or os.environ.get("QGIS_PLUGINPATH", ""),
            settings.plugins,
            settings.required_plugins,
            settings.py_qgis_server,
        )

    def start(self, begin: Callable[[str], None]) -> Started:
        """QgsApplication, QgsServer, plugins. Raises LoadError if a service module is missing."""
        QCoreApplication.setOrganizationName(QgsApplication.QGIS_ORGANIZATION_NAME)
        QCoreApplication.setOrganizationDomain(QgsApplication.QGIS_ORGANIZATION_DOMAIN)
        QCoreApplication.setApplicationName(QgsApplication.QGIS_APPLICATION_NAME)
        sys.excepthook = self._on_exception
        self._application = QgsApplication([], False, "", "server")
        self._server = QgsServer()
        seconds = self._settings.network_timeout_s
        QgsNetworkAccessManager.setTimeout(round(seconds * 1000))
        # QGIS tells libpq a connect_timeout of its own, 30 s, over PGCONNECT_TIMEOUT.
        QgsSettings().setValue("providers/PostgreSQL/default_timeout", math.ceil(seconds))
        nesting.start(self._settings.nesting_token)
        interface = self._server.serverInterface()
        registry = interface.serviceRegistry()
        services = [name for name in _SERVICES if registry.getService(name) is not None]
        if "WMS" not in services:
            raise LoadError("QGIS Server's modules are missing: apt-get install qgis-server")
        deferred = self._settings.threaded_plugins
        states = self._plugins.load(interface, deferred, self._staying, begin)
        root = features.features_root(registry)
        return Started(Qgis.QGIS_VERSION, root, services, states, threaded=self._plugins.threaded)

    def _staying(self) -> list[fork.Thread]:
        """Threads that no quiescing ends; at once if there are none."""
        return fork.wait_single_threaded(
            self.quiesce, self._settings.quiesce_s, self.zygote_threads
        )

    def _on_exception(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """What a plugin threw out of a method that QGIS calls: its request fails.

        Without a hook PyQt aborts the process. With one that only prints, QGIS goes on with the
        method's default, which for access control is to allow everything.
        """
        traceback.print_exception(kind, error, trace)
        name = self._plugins.culprit(trace)
        if name:
            print(f"the plugin {name} threw {kind.__name__}: {error}", file=sys.stderr)
        if self._response is not None:
            self._response.broken = f"{kind.__name__} in the plugin {name or 'of some kind'}"

    def load(self, path: str) -> Project:
        """Load the project that this process is for."""
        for name in self._settings.threaded_plugins:
            self._plugins.start(name)
            if self._plugins.failure(name):
                raise LoadError(f"the plugin {name} failed: {self._plugins.failure(name)}")
        if not path:  # what needs no project is asked of this process
            return self._with_plugins(Project(0, []))
        server_settings = QgsServerSettings()
        server_settings.load()
        self._project, project = projects.load(
            path, server_settings, self._settings.strict_layers, self._settings.watch_data
        )
        self._server.serverInterface().removeConfigCacheEntry(self._project.fileName())
        return self._with_plugins(project)

    def _with_plugins(self, project: Project) -> Project:
        why = "; ".join(
            f"the plugin {name} has {threads}"
            for name, threads in self._settings.threaded_plugins.items()
        )
        return replace(project, unforkable=why or project.unforkable)

    def quiesce(self) -> None:
        """End the network thread, and the pool threads that are idle (rule 1)."""
        QgsNetworkAccessManager.instance().clearConnectionCache()
        pool = QThreadPool.globalInstance()
        pool.setExpiryTimeout(1)
        pool.waitForDone(1000)
        QCoreApplication.processEvents()

    def warm_steps(self, project: str) -> list[WarmStep]:
        """Capabilities, then maps: see warmup.py."""
        return warmup.steps(project, self._project) if self._project else []

    def warmed_up(self) -> None:
        """The documents are of no use, as they name a host that there is not."""
        assert self._project is not None
        cache = self._server.serverInterface().capabilitiesCache()
        cache.removeCapabilitiesDocument(self._project.fileName())

    def forked(self) -> None:
        """Nothing: what QGIS needs is put right by the rules of the fork."""

    def idle(self) -> None:
        """Turn Qt's event loop: pooled connections expire by its timers."""
        QCoreApplication.processEvents()

    def handle(self, request: wire.Request, body: bytes, answer: Answer) -> None:
        """One call of QgsServer."""
        qgis_request = QgsBufferServerRequest(
            request.url,
            _METHODS.get(request.method, QgsServerRequest.GetMethod),
            dict(request.headers),
            body or None,
        )
        filtered = plugins.see_answers(self._server.serverInterface().filters())
        response = self._response = _Response(answer, filtered)
        nesting.enter(request.headers)
        try:
            # Access control of a plugin sets filters, too, whatever the request.
            opens = request.writes or writes.filters(request.url) or self._plugins.loaded()
            with writes.keeping_the_journal(bool(opens) and not writes.reads_on(request.method)):
                self._server.handleRequest(qgis_request, response, self._project)
        except Exception as error:  # a plugin's, out of a virtual method
            print(f"request failed: {type(error).__name__}: {error}", file=sys.stderr)
            response.broken = f"{type(error).__name__} in QgsServer.handleRequest"
        response.settle()


def _honest_status(status: int, body: bytes) -> int:
    """The status that fits an answer whose fault is the client's and whose status hides that.

    QGIS 3.22 says 200 for a SERVICE that it does not have, and 500 for a feature that is not
    there; the body is left as it is.
    """
    start = body[:600]
    if status == 200 and b'ServiceException code="Service configuration error"' in start:
        return 400
    if status == 500 and start.startswith(b"[{") and b"Invalid feature [" in start:
        return 404
    return status


class _Response(QgsBufferServerResponse):  # type: ignore[misc]
    """Gathers what QGIS writes and passes it on in large pieces.

    QGIS calls flush() once per feature. A message for each is what makes the predecessor 13
    times slower, and even a look at the buffer for each costs, so most calls only count.
    Where a plugin's filter looks at answers each call takes what is there, as it is to see each
    part once.
    """

    #: Bytes gathered before a piece is sent.
    PIECE = 256 << 10
    #: flush() calls between two looks at the buffer, at most.
    MOST_CALLS = 64

    def __init__(self, answer: Answer, filtered: bool) -> None:
        super().__init__()
        self._answer = answer
        self._filtered = filtered
        self._gathered = bytearray()
        self._begun = False
        self._calls = 0
        self._look_at = 1
        #: Kept, as sip takes 6 µs to wrap it anew, 30 ms for 5,000 features.
        self._buffer = self.io()
        #: Why the answer cannot be completed; "" while it can.
        self.broken = ""

    def flush(self) -> None:
        """Called by QGIS whenever it has written something worth sending."""
        if self._filtered:
            self._gathered += self._written()
            if len(self._gathered) >= self.PIECE:
                self._send(self._take())
            return
        self._calls += 1
        if self._calls < self._look_at:
            return
        size = self._buffer.pos()
        if size >= self.PIECE:
            self._send(self._take())
            self._calls, size = 0, 0
        if self._calls:
            # As many calls as would fill a piece at the present rate, but look early enough
            # not to gather much more where features grow.
            per_call = max(1, size // self._calls)
            self._look_at = self._calls + min(
                self.MOST_CALLS, max(1, (self.PIECE - size) // per_call // 2)
            )
        else:
            self._look_at = 1

    def clear(self) -> None:
        """QGIS begins anew: an exception takes the place of the answer."""
        self._gathered.clear()
        super().clear()

    def headersSent(self) -> bool:  # noqa: N802  (QGIS calls it)
        """True once the head is on its way: QGIS then writes no exception into the body."""
        return self._begun

    def sendError(self, code: int, message: str) -> None:  # noqa: N802  (QGIS calls it)
        """Internal errors of QGIS (5xx)."""
        if self._begun:
            self.broken = f"QGIS: {code} {message}"
        else:
            super().sendError(code, message)

    def finish(self) -> None:
        """QGIS calls it at the end, and at some errors; `settle` is what ends the answer."""

    def settle(self) -> None:
        """Send what is left, or say that the answer is broken."""
        if self._begun:
            self._messages().disconnect(self._listen)
        if self.broken and self._begun:
            self._answer.fail(self.broken)
        elif self.broken:
            self._answer.finish(500, [("Content-Type", "text/plain")], b"Internal Server Error")
        else:
            status, data = self.statusCode() or 200, self._take()
            if not self._begun:
                status = _honest_status(status, data)
            self._answer.finish(status, self._headers(), data)

    def _take(self) -> bytes:
        """All that was written and not sent."""
        if not self._gathered:
            return self._written()
        data = bytes(self._gathered) + self._written()
        self._gathered.clear()
        return data

    def _written(self) -> bytes:
        data = bytes(self._buffer.data()) or bytes(self.body())
        self.truncate()
        return data

    def _send(self, data: bytes) -> None:
        if self.broken:
            return  # what is not out yet need not go out
        if not self._begun:
            self._begun = True
            # From here on an error of QGIS shows in its log alone. Not before: it logs a dozen
            # messages for each map, and to hear them costs.
            self._messages().connect(self._listen)
            self._answer.begin(self.statusCode() or 200, self._headers())
        self._answer.write(data)

    @staticmethod
    def _messages() -> Any:
        return QgsApplication.messageLog().messageReceived[str, str, Qgis.MessageLevel]

    def _listen(self, message: str, tag: str, level: Any) -> None:
        if _TOO_LATE in message:
            self.broken = "QGIS met an error after the first bytes were out"

    def _headers(self) -> wire.Headers:
        return [(name, value) for name, value in self.headers().items() if name]
