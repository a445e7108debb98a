"""Every error qgisd raises on purpose: one small tree, with fields, without HTTP.

`http/errors.py` alone knows which status and which XML or JSON an error becomes.
"""

from dataclasses import dataclass


class QgisdError(Exception):
    """Root of the tree."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the configuration: where, what, and what to do."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class ConfigError(QgisdError):
    """The configuration cannot be used; `problems` holds all of them, not just the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class WireError(QgisdError):
    """A frame that is not of our protocol, of another version, or too large."""


class IllegalTransition(QgisdError):
    """A process was told to do what its state does not allow: a defect of qgisd."""


class StartError(QgisdError):
    """The daemon cannot start: a listener, the zygote or a directory fails."""


class RequestError(QgisdError):
    """A request that gets an error as its answer. `str(error)` may be shown to the client."""

    #: Seconds after which the client may try again, or None.
    retry_after: int | None = None

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.retry_after = retry_after


class BadRequest(RequestError):
    """The request itself is malformed."""


class Forbidden(RequestError):
    """Understood, and refused."""


class NotFound(RequestError):
    """No such URL."""


class ProjectNotFound(RequestError):
    """MAP names no project below the roots, or one outside them: the client cannot tell which."""


class Conflict(RequestError):
    """It fits more than one thing."""


class MethodNotAllowed(RequestError):
    """The URL does not take this HTTP method; `allowed` are those it takes."""

    def __init__(self, message: str, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class BodyTooLarge(RequestError):
    """The body is over `http.max_body`."""


class UrlTooLong(RequestError):
    """The URL is over `http.max_url`."""


class ProjectUnusable(RequestError):
    """The project file exists but cannot be served: not a project, truncated, bad layers."""


class Unavailable(RequestError):
    """Not now: queue full, draining, still loading, nothing to run it on."""

    retry_after = 5


class DeadlineExceeded(RequestError):
    """It ran for longer than its class allows and was ended."""


class EndedByOperator(RequestError):
    """Somebody who looks after this server ended it."""


class LoopDetected(RequestError):
    """Projects that draw each other, deeper than is allowed."""


class InternalError(RequestError):
    """QGIS, or a plugin, or we, met what nobody expected."""


class WorkerLost(RequestError):
    """The process that worked on it ended, more than once or on a request that must not repeat."""
