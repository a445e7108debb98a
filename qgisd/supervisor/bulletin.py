"""What a pool tells the world: into the log, and to those who listen to events."""

import logging
import time
from collections.abc import Callable

from qgisd.log import redact
from qgisd.supervisor import events as e
from qgisd.supervisor.recorder import Slow
from qgisd.supervisor.stats import Happening
from qgisd.words import NoteKind


class Bulletin:
    """Of one pool. publish: hands it to all who listen."""

    def __init__(
        self, pool: str, log: logging.Logger, publish: Callable[[Happening], None]
    ) -> None:
        self._pool = pool
        self._log = log
        self._publish = publish

    def note(self, do: e.Note) -> None:
        """Something of the machine."""
        prefix = f"{do.project}: " if do.project else ""
        fields = {"pool": self._pool, "project": do.project}
        self._log.log(do.level, prefix + do.text, extra={"fields": fields})
        self._publish(
            Happening(
                time=time.time(),
                kind=do.kind,
                level=logging.getLevelName(do.level).lower(),
                pool=self._pool,
                project=do.project,
                generation=do.generation or None,
                worker=do.worker or None,
                reason=do.reason.value if do.reason else "",
                request_id="",
                text=redact(do.text),
            )
        )

    def slow(self, slow: Slow) -> None:
        """A request that took long: the log has a line for each anyway."""
        self._publish(
            Happening(
                time=slow.when,
                kind=NoteKind.REQUEST_SLOW,
                level="warning",
                pool=self._pool,
                project=slow.project,
                generation=None,
                worker=slow.worker or None,
                reason="",
                request_id=slow.request_id,
                text=f"{slow.request_class}: {slow.outcome} after {slow.seconds:.1f} s",
            )
        )
