"""What became of one request: how it ended, and where its time went. Pure.

Kept for a while by `recorder.py`, for `ctl why`, the log and the metrics. Making one costs next
to nothing, as every request does; what is dear, such as text, is made when somebody asks.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qgisd.errors import DeadlineExceeded, RequestError
from qgisd.log import redact
from qgisd.words import Outcome, Reason, RequestClass

if TYPE_CHECKING:
    from qgisd.supervisor.exchange import Order
    from qgisd.supervisor.model import Job

#: Characters kept of what clients and errors may make as long as they like.
_URL = 1000
_DETAIL = 500


@dataclass(slots=True)
class Story:
    """One request. Times in milliseconds; several attempts are added up."""

    request_id: str
    #: When it came in, seconds since 1970.
    when: float
    project: str
    #: The load of the project that answered; 0 if none was asked.
    generation: int
    request_class: RequestClass
    method: str
    #: As far as it is kept, and not redacted.
    url: str
    outcome: Outcome
    #: Of HTTP; 0 if no answer had begun.
    status: int
    #: Until a worker took it up, less `load_ms`.
    queue_ms: float
    #: Until its project was loaded.
    load_ms: float
    #: In workers. That of a long answer holds what they waited for a slow client.
    render_ms: float
    #: From its arrival to the last byte that the client took.
    total_ms: float
    #: Of the body, as far as it was sent.
    bytes: int
    #: The last one that had it, or 0.
    worker: int
    #: How many workers had it.
    attempts: int
    #: Why a worker that had it ended, if one did.
    reason: Reason | None
    #: What the client was told in an error, or why it was cut off.
    detail: str

    def row(self) -> dict[str, object]:
        """For people and JSON: rounded, redacted, plain values."""
        times = ("queue_ms", "load_ms", "render_ms", "total_ms")
        row: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        row |= {name: round(getattr(self, name), 1) for name in times}
        row |= {"request_class": self.request_class.value, "outcome": self.outcome.value}
        reason = self.reason.value if self.reason is not None else ""
        return row | {"url": redact(self.url), "detail": redact(self.detail), "reason": reason}


def tell(
    order: "Order",
    job: "Job",
    now: float,
    clock: float,
    outcome: Outcome,
    status: int,
    sent: int,
    reason: Reason | None,
    detail: str,
) -> Story:
    """The story of a request at `now`, as its job has it. clock: now, in seconds since 1970."""
    render = job.worked
    if job.running:
        render += now - job.started
    url = order.url
    return Story(
        order.request_id,
        clock - (now - job.arrived),
        job.project,
        job.generation,
        order.cls,
        order.method,
        url if len(url) <= _URL else url[:_URL],
        outcome,
        status,
        (job.waited - job.load_waited) * 1000,
        job.load_waited * 1000,
        render * 1000,
        (now - job.arrived) * 1000,
        sent,
        job.worker,
        job.attempts,
        reason,
        detail if len(detail) <= _DETAIL else detail[:_DETAIL],
    )


def outcome_of(error: RequestError, attempts: int) -> Outcome:
    """How a request ended that was answered with this error, after so many attempts."""
    if isinstance(error, DeadlineExceeded):
        return Outcome.TIMEOUT
    return Outcome.FAILED if attempts else Outcome.REFUSED
