"""What all handlers of the REST API have in common: queries in, models out, errors as RFC 7807.

A handler's method is an operation: its annotations say what it takes and gives, its docstring
what it does, and `openapi.py` reads both.
"""

import functools
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError
from tornado.web import HTTPError, RequestHandler

from qgisd import errors
from qgisd.http.errors import status_of
from qgisd.http.guard import Caller
from qgisd.supervisor.exchange import Service

if TYPE_CHECKING:
    from qgisd.http.feed import Feed

_log = logging.getLogger("qgisd.admin")


@dataclass(frozen=True)
class Context:
    """What the handlers work on."""

    pools: Mapping[str, Service]
    #: Pool → its route, see config.Pool.
    paths: Mapping[str, str]
    configuration: Mapping[str, object]
    health: Callable[[], Mapping[str, object]]
    feed: "Feed"


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    query: type[BaseModel]
    #: Name → type of what stands in the path.
    path: dict[str, "TypeAdapter[Any]"]
    returns: "TypeAdapter[Any]"
    text: str
    #: Statuses that it may give besides 200 and those that any operation gives, with their type:
    #: None for a problem.
    also: Mapping[int, Any] = field(default_factory=dict)
    media_type: str = "application/json"


def operation(
    also: Mapping[int, Any] | None = None, media_type: str = "application/json"
) -> Callable[[Callable[..., Any]], Callable[..., Awaitable[None]]]:
    """Make an operation of a method `async def get(self, query: Query, name: str) -> Model`."""

    def wrap(method: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        hints = get_type_hints(method)
        returns, query = hints.pop("return"), hints.pop("query")
        described = Operation(
            query,
            {name: TypeAdapter(hint) for name, hint in hints.items()},
            TypeAdapter(returns),
            method.__doc__ or "",
            also or {},
            media_type,
        )

        @functools.wraps(method)
        async def run(self: "Handler", **given: str) -> None:
            asked = self.read_query(query)
            path = {name: self.read(name, of, given[name]) for name, of in described.path.items()}
            result = await method(self, asked, **path)
            if media_type == "application/json":
                self.set_header("Content-Type", media_type)
                self.finish(described.returns.dump_json(result) + b"\n")

        run.operation = described  # type: ignore[attr-defined]
        return run

    return wrap


class Handler(RequestHandler):
    """Base of all."""

    context: Context

    def initialize(self, context: Context | None = None) -> None:
        if context is not None:
            self.context = context

    @property
    def caller(self) -> Caller:
        """Who asks: admin.make_api's application has made sure."""
        found: Caller = self.request.caller  # type: ignore[attr-defined]
        return found

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Server", "qgisd")

    async def head(self, **path: str) -> None:
        """As GET; Tornado leaves the body out."""
        await self.get(**path)  # type: ignore[misc]

    def read_query(self, model: type[BaseModel]) -> Any:
        """The query as `model`. Raises HTTPError 400, naming the parameter."""
        given: dict[str, Any] = {}
        for name in self.request.query_arguments:
            values = self.get_query_arguments(name)
            given[name] = values[0] if len(values) == 1 else values
        try:
            return model.model_validate(given)
        except ValidationError as error:
            detail = error.errors()[0]
            name = ".".join(map(str, detail["loc"]))
            raise HTTPError(400, _safe(f"query parameter {name}: {detail['msg']}")) from None

    def read(self, name: str, of: "TypeAdapter[Any]", text: str) -> Any:
        """One part of the path."""
        try:
            return of.validate_strings(text)
        except ValidationError as error:
            raise HTTPError(400, _safe(f"{name}: {error.errors()[0]['msg']}")) from None

    def chosen(self, pool: str | None) -> list[Service]:
        """The pool of that name, or all. Raises HTTPError 404."""
        if pool is None:
            return list(self.context.pools.values())
        if pool not in self.context.pools:
            known = ", ".join(self.context.pools)
            raise HTTPError(404, _safe(f"there is no pool {pool!r}; there are {known}"))
        return [self.context.pools[pool]]

    async def first(
        self, pool: str | None, project: str, do: Callable[[Service], Awaitable[Any]]
    ) -> Any:
        """The result of `do` for the first pool that has the project."""
        error: errors.RequestError = errors.ProjectNotFound(f"no such project: {project}")
        for service in self.chosen(pool):
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
            if error.retry_after is not None:
                self.set_header("Retry-After", str(error.retry_after))
        elif isinstance(error, HTTPError):
            # Tornado doubles the per cent signs of a text without arguments.
            detail = error.log_message % error.args if error.log_message else self._reason
        if status_code == 401:
            self.set_header("WWW-Authenticate", 'Bearer realm="qgisd"')
        if status_code == 405:
            self.set_header("Allow", ", ".join(self._allowed()))
            detail = f"this path takes {', '.join(self._allowed())}"
        self.set_status(status_code)
        self.set_header("Content-Type", "application/problem+json")
        problem = {"type": "about:blank", "title": self._reason, "status": status_code}
        self.finish(json.dumps(problem | {"detail": detail}) + "\n")

    def _allowed(self) -> list[str]:
        methods = [
            name
            for name in self.SUPPORTED_METHODS
            if hasattr(getattr(type(self), name.lower()), "operation")
        ]
        return methods + ["HEAD"] * ("GET" in methods)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, (errors.RequestError, HTTPError)):
            _log.error("%s %s", self.request.method, self.request.path, exc_info=(typ, value, tb))


def _safe(text: str) -> str:
    return text[:500]
