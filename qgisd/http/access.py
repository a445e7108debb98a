"""A line in the log for each request, and how many answers of which status there were.

A request that reached a pool has a story, and its line tells where the time went; one that was
answered here has none.
"""

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING

from qgisd.log import redact
from qgisd.supervisor.story import Story

if TYPE_CHECKING:
    from qgisd.http.connection import Connection

_log = logging.getLogger("qgisd.http")
#: Characters of a path that are shown where there is no project.
_PATH = 200


class Access:
    """Of one listener's side."""

    def __init__(self) -> None:
        #: By status; 0 are those that ended before an answer had begun.
        self.answers: Counter[int] = Counter()

    def ended(self, connection: "Connection", sent: int, why: str, story: Story | None) -> None:
        """A request has come to its end; why: what is to be said besides."""
        self.answers[connection.status] += 1
        if not _log.isEnabledFor(logging.INFO):
            return
        total_ms = (time.monotonic() - connection.started) * 1000
        if story is None:
            target, went, result = redact(connection.path[:_PATH]), "", "-"
        else:
            target, result = story.project, story.outcome.value
            went = (
                f" (queue {story.queue_ms:.1f}, load {story.load_ms:.1f}, "
                f"render {story.render_ms:.1f}), generation {story.generation}, "
                f"worker {story.worker}"
            )
        text = (
            f"{connection.request_id} {connection.method} {target} "
            f"{connection.request_class or '-'} {result} {connection.status or '-'} "
            f"{sent} bytes in {total_ms:.1f} ms{went}"
        )
        if why:
            text += f", {redact(why)}"

        def fields() -> dict[str, object]:
            return _fields(connection, sent, total_ms, why, story)

        # Made by hand: nobody asks for the line of code, and to find it out costs.
        record = _log.makeRecord(
            _log.name, logging.INFO, __file__, 0, text, (), None,
            extra={"fields": fields, "safe": True},
        )  # fmt: skip
        _log.handle(record)


def _fields(
    connection: "Connection", sent: int, total_ms: float, why: str, story: Story | None
) -> dict[str, object]:
    """What JSON and the journal say of it. Times in milliseconds, of the client's wait in all."""
    fields: dict[str, object] = {
        "request_id": connection.request_id,
        "method": connection.method,
        "status": connection.status,
        "bytes": sent,
        "total_ms": round(total_ms, 1),
    }
    if story is None:
        return fields | {"path": redact(connection.path[:_PATH]), "detail": redact(why)}
    row = story.row()
    del row["when"], row["url"], row["total_ms"]
    pool = connection.service.name if connection.service is not None else ""
    return row | fields | {"pool": pool}
