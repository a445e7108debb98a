"""The admin listener: the REST API that `ctl` speaks, and everything public besides.

A Unix socket by default, whose file mode says who may. Errors are RFC 7807 JSON.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.web import Application, HTTPError, RequestHandler

from qgisd import errors
from qgisd.http.errors import status_of
from qgisd.supervisor.exchange import Service


class _Handler(RequestHandler):
    pools: Mapping[str, Service]

    def initialize(self, pools: Mapping[str, Service]) -> None:
        self.pools = pools

    def chosen(self) -> list[Service]:
        """The pools that ?pool= names, or all."""
        name = self.get_query_argument("pool", "")
        if not name:
            return list(self.pools.values())
        if name not in self.pools:
            raise HTTPError(404, f"there is no pool {name!r}; there are {', '.join(self.pools)}")
        return [self.pools[name]]

    def reply(self, content: object) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(content, default=_plain) + "\n")

    async def first(self, project: str, do: Callable[[Service], Any]) -> Any:
        """The result of `do` for the first pool that has the project."""
        error: errors.RequestError = errors.ProjectNotFound(f"no such project: {project}")
        for service in self.chosen():
            try:
                return await do(service)
            except errors.ProjectNotFound as missing:
                error = missing
        raise error

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        detail = "internal error"
        if isinstance(error, errors.RequestError):
            status_code, detail = status_of(error), str(error)
        elif isinstance(error, HTTPError):
            detail = error.log_message or self._reason
        self.set_status(status_code)
        self.set_header("Content-Type", "application/problem+json")
        problem = {"type": "about:blank", "title": self._reason, "status": status_code}
        self.finish(json.dumps(problem | {"detail": detail}) + "\n")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, errors.RequestError):
            super().log_exception(typ, value, tb)


def _plain(content: Any) -> Any:
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        return dataclasses.asdict(content)
    raise TypeError(f"{type(content)} has no place in an answer")


class Stats(_Handler):
    """GET: every pool with its projects and workers."""

    def get(self) -> None:
        self.reply([service.view() for service in self.chosen()])


class Workers(_Handler):
    """GET: the workers of all pools."""

    def get(self) -> None:
        self.reply(
            [
                {"pool": service.name} | dataclasses.asdict(worker)
                for service in self.chosen()
                for worker in service.view().workers
            ]
        )


class Projects(_Handler):
    """GET: the projects of all pools that are loaded, loading or failed."""

    def get(self) -> None:
        self.reply(
            [
                {"pool": service.name} | dataclasses.asdict(project)
                for service in self.chosen()
                for project in service.view().projects
            ]
        )


class OneProject(_Handler):
    """GET one project; DELETE unloads it; POST loads it (?pin=true keeps it)."""

    async def get(self, name: str) -> None:
        async def find(service: Service) -> Any:
            key = (await service.resolve(name)).key
            for project in service.view().projects:
                if project.project == key:
                    return {"pool": service.name} | dataclasses.asdict(project)
            raise errors.ProjectNotFound(f"{key} is not loaded")

        self.reply(await self.first(name, find))

    async def post(self, name: str) -> None:
        pin = self.get_query_argument("pin", "") == "true"
        outcome = await self.first(name, lambda service: service.orders.load(name, pin))
        self.set_status(200 if outcome["ok"] else 422)
        self.reply(outcome)

    async def delete(self, name: str) -> None:
        self.reply(await self.first(name, lambda service: service.orders.drop(name)))


class LastCrash(_Handler):
    """GET: the last worker that a project lost over a request, and what it had been asked."""

    async def get(self, name: str) -> None:
        async def find(service: Service) -> Any:
            key = (await service.resolve(name)).key
            crash = service.last_crash(key)
            if crash is None:
                raise errors.ProjectNotFound(f"{key} has lost no worker over a request")
            return {"pool": service.name, "project": key} | dataclasses.asdict(crash)

        self.reply(await self.first(name, find))


class SlowLog(_Handler):
    """GET: requests that were slow, or ended at their deadline; oldest first."""

    def get(self) -> None:
        self.reply(
            [
                {"pool": service.name} | dataclasses.asdict(slow)
                for service in self.chosen()
                for slow in service.slowlog()
            ]
        )


class Health(RequestHandler):
    """GET: how the daemon itself is."""

    def initialize(self, health: Callable[[], object]) -> None:
        self.health = health

    def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(self.health()) + "\n")


class Reload(_Handler):
    """POST: reload ?project=, or everything; answers when it is done, a row per project."""

    async def post(self) -> None:
        name = self.get_query_argument("project", "")
        if name:
            rows = await self.first(name, lambda service: service.orders.reload(name))
        else:
            rows = [row for service in self.chosen() for row in await service.orders.reload(None)]
        self.set_status(200 if all(row["ok"] for row in rows) else 422)
        self.reply(rows)


class Effective(RequestHandler):
    """GET: the configuration in force, with where each value came from."""

    def initialize(self, configuration: object) -> None:
        self.configuration = configuration

    def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(self.configuration) + "\n")


def make_api(
    pools: Mapping[str, Service], configuration: object, health: Callable[[], object]
) -> Application:
    """The REST API."""
    shared = {"pools": pools}
    return Application(
        [
            (r"/api/v1/stats", Stats, shared),
            (r"/api/v1/workers", Workers, shared),
            (r"/api/v1/projects", Projects, shared),
            (r"/api/v1/projects/(.+)/last-crash", LastCrash, shared),
            (r"/api/v1/projects/(.+)", OneProject, shared),
            (r"/api/v1/slowlog", SlowLog, shared),
            (r"/api/v1/health", Health, {"health": health}),
            (r"/api/v1/reload", Reload, shared),
            (r"/api/v1/config", Effective, {"configuration": configuration}),
        ],
        log_function=lambda handler: None,
    )


class AdminApp(HTTPServerConnectionDelegate):
    """/api/ goes to the REST API, everything else to the public side."""

    def __init__(self, api: Application, public: HTTPServerConnectionDelegate) -> None:
        self._api = api
        self._public = public

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        return _Switch(self, server_conn, request_conn)

    def delegate(
        self, path: str, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        """Who takes a request for `path`."""
        target = self._api if path.startswith("/api/") else self._public
        return target.start_request(server_conn, request_conn)


class _Switch(HTTPMessageDelegate):
    def __init__(self, app: AdminApp, server_conn: object, request_conn: HTTPConnection) -> None:
        self._app = app
        self._connections = server_conn, request_conn
        self._target: HTTPMessageDelegate | None = None

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Any:
        assert isinstance(start_line, RequestStartLine)
        self._target = self._app.delegate(start_line.path, *self._connections)
        return self._target.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        assert self._target is not None
        return self._target.data_received(chunk)

    def finish(self) -> None:
        assert self._target is not None
        self._target.finish()

    def on_connection_close(self) -> None:
        if self._target is not None:
            self._target.on_connection_close()
