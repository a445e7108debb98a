"""One HTTP request of one client: its parts as they come in, its answer as it goes out.

Works on Tornado's HTTP1Connection, below RequestHandler, whose cost per request is more than
all that the daemon may spend (baseline.md). What a request means is `app.py`'s matter.
"""

import fcntl
import re
import socket
import struct
import sys
import termios
import time
from collections.abc import Awaitable
from http.client import responses
from typing import TYPE_CHECKING

from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)

from qgisd.errors import InternalError, RequestError
from qgisd.http import errors
from qgisd.wire import Headers

if TYPE_CHECKING:
    from qgisd.http.app import PublicApp
    from qgisd.supervisor.exchange import Exchange, Service
    from qgisd.supervisor.story import Story

#: Hop-by-hop in answers; Tornado decides on these.
_NOT_FORWARDED = {"connection", "keep-alive", "transfer-encoding", "content-length", "server"}
#: An oversized body is read to its end, so that the client reads the answer, up to so many times
#: the limit.
_DISCARD = 16
_ABORT = struct.pack("ii", 1, 0)
#: What a header cannot carry (RFC 9110 5.5 and 5.1): a line break would end the head early.
_NOT_IN_VALUES = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Answers without a body, whatever QGIS wrote.
_BODILESS = (204, 304)


class Connection(HTTPMessageDelegate):
    """A request, and the sink of its answer (exchange.Sink)."""

    def __init__(self, app: "PublicApp", http: HTTP1Connection) -> None:
        self._app = app
        self._http = http
        self._body: list[bytes] = []
        self._size = 0
        self._too_large = False
        self._head_only = False
        self._answered = False
        self._form: str | None = None
        self._version = ""
        self.peer = ""
        self.trusted = False
        #: forwarded.identifies
        self.identified = False
        self.request_id = ""
        self.method = ""
        self.path = ""
        self.query = ""
        self.headers = HTTPHeaders()
        self.service: Service | None = None
        self.exchange: Exchange | None = None
        self.started = 0.0
        #: A pool was given it, and will tell its story.
        self.ordered = False
        #: All of the request has come.
        self.whole = False
        #: For the log line.
        self.status = 0
        self.request_class = ""

    @property
    def form(self) -> str:
        """Which form an error takes (errors.ows_form), by what can be told from the URL."""
        if self._form is None:
            self._form = self._app.form_of(self)
        return self._form

    @form.setter
    def form(self, form: str) -> None:
        self._form = form

    @property
    def context(self) -> object:
        """Tornado's, with the address of the peer."""
        return self._http.context

    # what comes in (HTTPMessageDelegate)

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, RequestStartLine)
        self.started = time.monotonic()
        self.method = start_line.method
        self._version = start_line.version
        self.path, _, self.query = start_line.path.partition("?")
        self.headers = headers
        self._head_only = self.method == "HEAD"
        self._app.opened(self, start_line)
        length = headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and int(length) > self._app.max_body:
            self._too_large = True
            waits = headers.get("Expect", "").lower() == "100-continue"
            if waits or int(length) > _DISCARD * self._app.max_body:
                self._app.body_too_large(self)
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self._size += len(chunk)
        if self._size > self._app.max_body:
            self._too_large = True
            self._body.clear()
            if self._size > _DISCARD * self._app.max_body and not self._answered:
                self._app.body_too_large(self)
        else:
            self._body.append(chunk)
        return None

    def finish(self) -> None:
        self.whole = True
        if self._answered:
            return
        # Tornado tells the delegate of a close only while it reads; from here on one has to ask.
        self._http.set_close_callback(self.on_connection_close)
        if self._too_large:
            self._app.body_too_large(self)
        else:
            self._app.serve(self)

    def on_connection_close(self) -> None:
        if self.exchange is not None and self.service is not None:
            self.service.leave(self.exchange)
        if not self._answered or self.exchange is not None:
            self._app.closed(self, "client gone")
        self.exchange = None

    @property
    def body(self) -> bytes:
        """The whole body; at most http.max_body bytes."""
        return b"".join(self._body)

    # what goes out (exchange.Sink)

    @property
    def wants_length(self) -> bool:
        return self._version == "HTTP/1.0"

    def head(self, status: int, headers: Headers, body: bytes, length: int | None) -> int:
        self._answered = True
        whole = length == len(body)
        if not 200 <= status <= 599 or (
            status >= 500 and whole and not body.lstrip().startswith((b"<", b"{", b"["))
        ):
            # QGIS's bare "Internal Server Error", or what is no status: in the protocol's form.
            error = InternalError("QGIS met an internal error")
            status, headers, body = errors.render(error, self.form, self.request_id)
            length = len(body)
        if status == 200 and whole and self._has(headers):
            status = 304
        if status in _BODILESS:
            body, length = b"", None
        bodiless = self._head_only or status in _BODILESS
        self.status = status
        out = HTTPHeaders()
        for name, value in headers:
            if name.lower() not in _NOT_FORWARDED and _TOKEN.fullmatch(name):
                # As UTF-8, like QGIS itself; plugins put file names there, and line breaks.
                if not value.isascii():
                    value = value.encode("utf-8", "replace").decode("latin-1")
                out.add(name, _NOT_IN_VALUES.sub(" ", value).strip())
        for name, value in self._app.common_headers(self):
            if name == "Vary":
                out.add(name, value)
            else:
                out[name] = value
        if length is not None:
            out["Content-Length"] = str(length)
        start = ResponseStartLine("", status, responses.get(status, "Unknown"))
        sent = 0 if bodiless else len(body)
        self._http.write_headers(start, out, body[:sent])
        if whole:
            self._complete(sent)
        elif bodiless or length == len(body):
            # The rest would only be thrown away.
            exchange, self.exchange = self.exchange, None
            self._complete(0)
            if exchange is not None and self.service is not None:
                self.service.leave(exchange, satisfied=True)
        return sent

    def _has(self, headers: Headers) -> bool:
        """The client has this very answer already (If-None-Match, RFC 9110 13.1.2)."""
        wanted = self.headers.get("If-None-Match", "")
        if not wanted or self.method not in ("GET", "HEAD"):
            return False
        tags = {tag.strip().removeprefix("W/") for tag in wanted.split(",")}
        return any(name == "ETag" and value in tags for name, value in headers)

    def write(self, data: bytes | memoryview) -> Awaitable[None]:
        # Its stream takes both; only its annotation does not say so.
        return self._http.write(data)  # type: ignore[arg-type]

    def unsent(self) -> int:
        stream = self._http.stream
        if stream.closed():
            return 0
        # SIOCOUTQ, tcp(7) and unix(7); TIOCOUTQ is its number.
        return int.from_bytes(fcntl.ioctl(stream.socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def end(self) -> None:
        self._complete(self.exchange.sent if self.exchange else 0)

    def fail(self, error: RequestError) -> None:
        status, headers, body = errors.render(error, self.form, self.request_id)
        self.head(status, headers, body, len(body))

    def abort(self, reason: str) -> None:
        """Reset rather than close: HTTP/1.0 ends a body by closing, and a proxy that speaks it
        must not take the cut for the end."""
        stream = self._http.stream
        if stream.socket is not None and stream.socket.family != socket.AF_UNIX:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self.exchange = None
        self._answered = True
        stream.close()
        self._app.closed(self, f"aborted: {reason}")

    def told(self, story: "Story") -> None:
        self._app.told(self, story)

    def _complete(self, sent: int) -> None:
        self.exchange = None
        self._http.finish()
        self._app.done(self, sent)
