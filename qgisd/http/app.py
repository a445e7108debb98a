"""The public listener: from a request to an order, by path.

/ows/, /ows/p/PROJECT, /wfs3/…, /ogcapi/… and the enabled QGIS APIs, below the route of each
pool; /healthz and /readyz.
"""

import asyncio
import json
import logging
import secrets
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import unquote

from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPConnection,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
)

from qgisd import errors
from qgisd.http import forwarded, limits, ows
from qgisd.http.access import Access
from qgisd.http.connection import Connection
from qgisd.http.errors import ows_form
from qgisd.supervisor.exchange import Order, Service
from qgisd.supervisor.model import MOST_DEPTH, NO_PROJECT, ProjectRef
from qgisd.supervisor.story import Story
from qgisd.wire import Headers
from qgisd.words import RequestClass

_log = logging.getLogger("qgisd.http")
_METHODS = {
    "ows": ("GET", "HEAD", "POST", "OPTIONS"),
    "api": ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"),
    "status": ("GET", "HEAD", "OPTIONS"),
}
#: Requests of WMS that are answered from the cache: those that QGIS itself keeps as long as it has
#: the project. Capabilities of WFS tell extents and counts, which follow the data.
_KEPT = ("GETCAPABILITIES", "GETPROJECTSETTINGS")
#: Headers that say nothing about an answer. All others are part of what it is kept by, those that
#: tell who somebody is above all.
_IRRELEVANT = {
    "accept-encoding", "cache-control", "dnt", "host", "if-modified-since", "if-none-match",
    "origin", "pragma", "priority", "referer", "user-agent", "x-forwarded-for", "x-real-ip",
    "x-request-id",
}  # fmt: skip
_WRITES = ("POST", "PUT", "PATCH", "DELETE")
#: A body of more bytes is parsed in a thread: the loop must not stand still for it.
_LARGE_BODY = 64 << 10
#: Bytes of a query or form in which SERVICE and VERSION are looked for, to word an error.
_LOOK = 2000


@dataclass(frozen=True)
class Route:
    """One pool and the paths below which it is served."""

    prefix: str
    service: Service
    #: Seconds until an answer must have begun, by project key and class.
    timeout_s: Callable[[str, RequestClass], float]


@dataclass(frozen=True)
class Settings:
    """What the public listener is told by the configuration."""

    trusted_proxies: Sequence[str]
    max_body: int
    max_url: int
    cors_origins: Sequence[str]
    #: First path segments of further QGIS APIs, e.g. "/lizmap".
    apis: Sequence[str]
    fallback_host: str
    nesting_token: str
    limits: limits.Limits


class PublicApp(HTTPServerConnectionDelegate):
    """Makes a Connection for each request, and decides what becomes of it."""

    def __init__(self, settings: Settings, routes: Sequence[Route]) -> None:
        self._settings = settings
        self.max_body = settings.max_body
        self._trust = forwarded.Trust(settings.trusted_proxies)
        self._routes = sorted(routes, key=lambda route: -len(route.prefix))
        self._apis = ("/wfs3", "/ogcapi", *settings.apis)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[Connection] = set()
        self.access = Access()

    @property
    def busy(self) -> bool:
        """A request has come, or comes, whose answer is not complete."""
        return bool(self._open)

    @property
    def working(self) -> bool:
        """A request has come, all of it, whose answer is not complete."""
        return any(connection.whole for connection in self._open)

    # life of a connection

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        assert isinstance(request_conn, HTTP1Connection)
        return Connection(self, request_conn)

    def opened(self, connection: Connection, start_line: RequestStartLine) -> None:
        """Its head has come: whom it is from, and its number."""
        context = connection.context
        unix = getattr(context, "address_family", None) == socket.AF_UNIX
        connection.peer = "unix" if unix else str(getattr(context, "remote_ip", ""))
        connection.trusted = self._trust.trusts(connection.peer)
        connection.identified = forwarded.identifies(connection.headers, connection.trusted)
        connection.request_id = forwarded.request_id(
            connection.headers, connection.trusted, secrets.token_hex(8)
        )
        self._open.add(connection)

    def done(self, connection: Connection, sent: int) -> None:
        """Its answer is complete."""
        self._open.discard(connection)
        if not connection.ordered:
            self.access.ended(connection, sent, "", None)

    def closed(self, connection: Connection, why: str) -> None:
        """It ended without a complete answer."""
        if connection in self._open:
            self._open.discard(connection)
            if not connection.ordered:
                self.access.ended(connection, 0, why, None)

    def told(self, connection: Connection, story: Story) -> None:
        """A pool has come to the end of its request."""
        self.access.ended(connection, story.bytes, story.detail, story)

    def common_headers(self, connection: Connection) -> Headers:
        """Headers of every answer."""
        headers = [("X-Request-Id", connection.request_id), ("Server", "qgisd")]
        headers.append(("X-Content-Type-Options", "nosniff"))
        # Also where nobody asked by Origin: a cache gives the answer to those who do.
        allowed = self._settings.cors_origins
        if "*" in allowed:
            headers.append(("Access-Control-Allow-Origin", "*"))
        elif allowed:
            headers.append(("Vary", "Origin"))
            origin = connection.headers.get("Origin", "")
            if origin in allowed:
                headers.append(("Access-Control-Allow-Origin", origin))
        return headers

    # from a request to an order

    def body_too_large(self, connection: Connection) -> None:
        """Answer 413, in the form of the protocol asked for."""
        connection.fail(errors.BodyTooLarge(f"a body has at most {self.max_body} bytes here"))

    def serve(self, connection: Connection) -> None:
        """All of it has come: answer, or order an answer."""
        try:
            if "#" in connection.path:
                raise errors.BadRequest("a URL is sent without its #")
            if len(connection.path) + len(connection.query) > self._settings.max_url:
                raise errors.UrlTooLong(
                    f"a URL has at most {self._settings.max_url} bytes here; send a POST form"
                )
            self._route(connection)
        except errors.RequestError as error:
            connection.fail(error)
        except Exception:
            # A defect of ours must cost one request, not the connection's loop.
            _log.exception("request %s", connection.request_id)
            connection.fail(errors.InternalError("internal error"))

    def form_of(self, connection: Connection) -> str:
        """The error form for a request that was not, or could not be, parsed."""
        if not any(_is_ows(connection.path, route.prefix) for route in self._routes):
            return ""
        start = connection.query[:_LOOK]
        body = connection.body[:_LOOK]
        if connection.method == "POST" and not body.lstrip().startswith(b"<"):
            start += "&" + body.decode("ascii", "replace")
        found: dict[str, str] = {}
        for pair in start.split("&"):
            name, _, value = pair.partition("=")
            found.setdefault(name.upper(), value)
        return ows_form(found.get("SERVICE", ""), found.get("VERSION", ""))

    def _route(self, connection: Connection) -> None:
        path = connection.path
        if path in ("/healthz", "/readyz"):
            self._check_method(connection, "status")
            if connection.method != "OPTIONS":
                self._status(connection)
            return
        for route in self._routes:
            if not route.prefix or path == route.prefix or path.startswith(route.prefix + "/"):
                below = path[len(route.prefix) :]
                if _is_ows(path, route.prefix):
                    self._serve_ows(connection, route, unquote(below[7:]).rstrip("/"))
                    return
                for api in self._apis:
                    # Lizmap looks for its API below the address of OWS, unless told where it is.
                    if any(
                        at == api or at.startswith((api + "/", api + "."))
                        for at in (below, below.removeprefix("/ows"))
                    ):
                        self._serve_api(connection, route, below, api in self._settings.apis)
                        return
        raise errors.NotFound("nothing is served at this path; OWS is at /ows/")

    def _check_method(self, connection: Connection, kind: str) -> None:
        """Raises MethodNotAllowed; answers OPTIONS, CORS preflights included."""
        allowed = ", ".join(_METHODS[kind])
        if connection.method not in _METHODS[kind]:
            raise errors.MethodNotAllowed(f"this path takes {allowed}", _METHODS[kind])
        if connection.method == "OPTIONS":
            asked = connection.headers.get("Access-Control-Request-Headers", "")
            headers = [("Allow", allowed), ("Access-Control-Allow-Methods", allowed)]
            if asked:
                headers.append(("Access-Control-Allow-Headers", asked[:1000]))
            headers.append(("Access-Control-Max-Age", "86400"))
            connection.head(200, headers, b"", 0)

    def _serve_ows(self, connection: Connection, route: Route, project: str) -> None:
        self._check_method(connection, "ows")
        if connection.method == "OPTIONS":
            return
        read = partial(
            self._read_ows,
            connection.method,
            connection.query,
            connection.headers.get("Content-Type", ""),
            connection.body,
            connection.identified,
        )
        if len(connection.body) <= _LARGE_BODY:
            self._order_ows(connection, route, project, read())
            return

        async def read_aside() -> None:
            request = await asyncio.get_running_loop().run_in_executor(None, read)
            if connection in self._open:
                self._order_ows(connection, route, project, request)

        self._spawn(connection, read_aside(), route.timeout_s("", RequestClass.FEATURE))

    def _read_ows(
        self, method: str, query: str, content_type: str, body: bytes, trusted: bool
    ) -> ows.OwsRequest:
        """Parse, and cut down to the limits. Raises BadRequest and its like."""
        request = ows.parse(method, query, content_type, body, trusted)
        most = self._settings.limits.features
        if not request.body:
            query = limits.clamp_query(request.query, request.parameters, most)
            return replace(request, query=query)
        if request.parameters["REQUEST"].upper() == "GETFEATURE":
            body = limits.clamp_xml(request.body, request.attributes, most)
            return replace(request, body=body)
        return request

    def _order_ows(
        self, connection: Connection, route: Route, project: str, request: ows.OwsRequest
    ) -> None:
        parameters = request.parameters
        connection.form = ows_form(
            parameters.get("SERVICE", ""),
            parameters.get("VERSION", "") or parameters.get("ACCEPTVERSIONS", ""),
        )
        limits.check(parameters, self._settings.limits)
        kept = (
            request.method == "GET"
            and parameters.get("SERVICE", "").upper() == "WMS"
            and parameters.get("REQUEST", "").upper() in _KEPT
        )
        self._order(
            connection,
            route,
            project or self._project_of(connection, parameters),
            request.method,
            f"{connection.path}?{request.query}",
            request.body,
            request.cls,
            request.idempotent,
            kept,
        )

    def _serve_api(
        self, connection: Connection, route: Route, below: str, needs_none: bool
    ) -> None:
        """needs_none: this API may answer without a project."""
        self._check_method(connection, "api")
        if connection.method == "OPTIONS":
            return
        query, pairs = ows.believed_query(connection.query, connection.identified)
        writes = connection.method in _WRITES
        body = connection.body if writes else b""
        ows.check_api(pairs, connection.headers.get_list("Content-Type"), body)
        ows.check_identity(body, connection.identified)
        # Not what is written: QGIS takes a MAP in a body for that of a project to load.
        needs_none = needs_none and not writes
        maps = ows.by_name([pair for pair in pairs if pair[0].upper() == "MAP"])
        name = self._project_of(connection, maps, needs_none)
        path = connection.path
        root = route.service.api_root
        if below.startswith("/ogcapi") and root != "/ogcapi":
            path = path[: len(path) - len(below)] + root + below[len("/ogcapi") :]
        if not writes and limits.lists_items(path):
            query = limits.clamp_items(query, self._settings.limits.features)
        self._order(
            connection,
            route,
            name,
            "GET" if connection.method == "HEAD" else connection.method,
            f"{path}?{query}" if query else path,
            body,
            RequestClass.WRITE if writes else RequestClass.API,
            not writes,
            False,
        )

    def _project_of(
        self, connection: Connection, parameters: dict[str, str], needs_none: bool = False
    ) -> str:
        """What MAP says; "" only where no project is needed."""
        name = parameters.get("MAP", "")
        if not name and connection.identified:
            name = connection.headers.get("X-Qgis-Project", "")
        if not name and not needs_none:
            raise errors.BadRequest("no project: give MAP=…, or use /ows/p/PROJECT")
        return name

    def _order(
        self,
        connection: Connection,
        route: Route,
        name: str,
        method: str,
        target: str,
        body: bytes,
        cls: RequestClass,
        idempotent: bool,
        kept: bool,
    ) -> None:
        base = forwarded.public_base(
            connection.headers, connection.trusted, "http", self._settings.fallback_host
        )
        if not connection.trusted and "X-Lizmap-User" in connection.headers:
            _log.warning(
                "%s is not one of http.trusted_proxies: its X-Lizmap-* count for nothing",
                connection.peer,
            )
        headers = forwarded.believed(
            connection.headers, connection.trusted, connection.identified, base
        )
        depth, ours = forwarded.depth(connection.headers, self._settings.nesting_token)
        if depth > MOST_DEPTH:
            raise errors.LoopDetected(f"projects that draw each other {depth} levels deep")
        if not ours:
            depth = 0  # only what our workers wait for goes before the rest
        connection.service = route.service
        connection.request_class = cls.value

        def submit(ref: ProjectRef) -> None:
            connection.ordered = True
            order = Order(
                ref, method, base + target, headers, body, cls, idempotent,
                route.timeout_s(ref.key, cls),
                connection.request_id, depth, _cache_key(base + target, headers) if kept else "",
            )  # fmt: skip
            exchange = route.service.submit(order, connection)
            if not exchange.over:
                connection.exchange = exchange

        ref = route.service.known(name) if name else NO_PROJECT
        if ref is not None:
            submit(ref)
            return

        async def resolve() -> None:
            found = await route.service.resolve(name)
            if connection in self._open:
                submit(found)

        self._spawn(connection, resolve(), route.timeout_s(name, cls))

    def _spawn(
        self, connection: Connection, work: Coroutine[None, None, None], limit: float
    ) -> None:
        """Go on with a request beside the loop's other work; its errors are its answer.

        limit: seconds. Nobody has a deadline for it yet, and a folder on a network may stall.
        """

        async def guarded() -> None:
            try:
                await asyncio.wait_for(work, limit)
            except asyncio.TimeoutError:
                if connection in self._open:
                    message = f"the project was not looked up within {limit:g} s"
                    connection.fail(errors.DeadlineExceeded(message))
            except errors.RequestError as error:
                if connection in self._open:
                    connection.fail(error)
            except Exception:
                _log.exception("request %s", connection.request_id)
                if connection in self._open:
                    connection.fail(errors.InternalError("internal error"))

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # status

    def _status(self, connection: Connection) -> None:
        missing: list[str] = []
        if connection.path == "/readyz":
            for route in self._routes:
                missing += route.service.ready()
        state = "unavailable" if missing else "ok"
        body = json.dumps({"status": state, "missing": missing}).encode() + b"\n"
        headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
        connection.head(503 if missing else 200, headers, body, len(body))


def _is_ows(path: str, prefix: str) -> bool:
    below = path[len(prefix) :] if path.startswith(prefix) else ""
    return below in ("/ows", "/ows/") or below.startswith("/ows/p/")


def _cache_key(url: str, headers: Headers) -> str:
    relevant = sorted(
        f"{name}: {value}"
        for name, value in headers
        if name.lower() not in _IRRELEVANT and not name.lower().startswith("sec-")
    )
    return "\n".join([url, *relevant])
