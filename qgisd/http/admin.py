"""The admin listener: REST API, metrics and page, and everything public besides.

Who may is decided in one place, before any handler is made: `_Api.find_handler`.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.web import Application, HTTPError, RequestHandler

from qgisd.http import api, openapi
from qgisd.http.guard import SAFE_METHODS, Guard
from qgisd.http.handler import Context, Handler

_log = logging.getLogger("qgisd.admin")
#: What is not public: first segments of paths.
_OURS = ("", "api", "metrics", "ui")


@dataclass(frozen=True)
class Mount:
    """A handler beside the REST API: metrics, the page."""

    pattern: str
    handler: type[RequestHandler]
    settings: dict[str, Any] = field(default_factory=dict)
    #: Anybody may have it: files without data, such as the page that then asks for a token.
    open: bool = False


class _Refused(Handler):
    """Answers what the guard found."""

    def initialize(self, context: Context | None = None, error: HTTPError | None = None) -> None:
        self._error = error

    async def prepare(self) -> None:
        assert self._error is not None
        raise self._error


class _Api(Application):
    """A Tornado application behind a guard."""

    def __init__(self, guard: Guard, handlers: Any, open_paths: Sequence[str]) -> None:
        super().__init__(handlers, default_handler_class=api.Unknown, log_function=_log_change)
        self._guard = guard
        self._open = [re.compile(path) for path in open_paths]

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        try:
            if any(path.fullmatch(request.path) for path in self._open):
                self._guard.check_host(request)
            else:
                request.caller = self._guard.check(request)  # type: ignore[attr-defined]
        except HTTPError as error:
            return self.get_handler_delegate(request, _Refused, {"error": error})
        return super().find_handler(request, **kwargs)


def _log_change(handler: RequestHandler) -> None:
    """Who changed what: reading is not worth a line."""
    request = handler.request
    if request.method not in SAFE_METHODS or handler.get_status() in (401, 403, 421):
        caller = getattr(request, "caller", None)
        who = caller.name if caller else "nobody known"
        # One text each: repeats.py counts what is said again in the same words.
        _log.info(f"{request.method} {request.path[:200]} by {who}: {handler.get_status()}")


def make_api(guard: Guard, context: Context, mounts: Sequence[Mount] = ()) -> Application:
    """The REST API and what is mounted beside it."""
    handlers: list[tuple[str, type[RequestHandler], dict[str, Any]]] = [
        (openapi.pattern(template), handler, {"context": context})
        for template, handler in api.ROUTES
    ]
    handlers += [(mount.pattern, mount.handler, mount.settings) for mount in mounts]
    return _Api(guard, handlers, [mount.pattern for mount in mounts if mount.open])


class AdminApp(HTTPServerConnectionDelegate):
    """What is ours goes to the API, everything else to the public side."""

    def __init__(self, api: Application, public: HTTPServerConnectionDelegate) -> None:
        self._api = api
        self._public = public

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        return _Switch(self, server_conn, request_conn)

    def delegate(
        self, path: str, server_conn: object, request_conn: HTTPConnection
    ) -> tuple[HTTPMessageDelegate, bool]:
        """Who takes a request for `path`, and whether they take its body."""
        ours = path.partition("?")[0].split("/")[1:2] in [[name] for name in _OURS]
        target = self._api if ours else self._public
        return target.start_request(server_conn, request_conn), not ours


class _Switch(HTTPMessageDelegate):
    def __init__(self, app: AdminApp, server_conn: object, request_conn: HTTPConnection) -> None:
        self._app = app
        self._connections = server_conn, request_conn
        self._target: HTTPMessageDelegate | None = None
        self._takes_body = False

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Any:
        assert isinstance(start_line, RequestStartLine)
        self._target, self._takes_body = self._app.delegate(start_line.path, *self._connections)
        return self._target.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        assert self._target is not None
        # Nothing of ours takes a body; kept, that of somebody unknown could fill our memory.
        return self._target.data_received(chunk) if self._takes_body else None

    def finish(self) -> None:
        assert self._target is not None
        self._target.finish()

    def on_connection_close(self) -> None:
        if self._target is not None:
            self._target.on_connection_close()
