"""What was asked before things went wrong: the last requests of each worker, and the slow log.

Bounded in number and size. Nothing here decides anything; `ctl slowlog` and
`ctl project NAME --last-crash` read it.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from qgisd.log import redact
from qgisd.supervisor.exchange import Exchange, Order
from qgisd.supervisor.story import Story, tell
from qgisd.words import Outcome, Reason, RequestClass

#: State of a request whose worker is done with it, while its client takes the rest.
SENDING = "sending"
#: Outcome of a slow request that was answered in the end.
ANSWERED = "answered"
_PER_WORKER = 10
_ANSWERED = (Outcome.OK, Outcome.CACHED, Outcome.ERROR)
_SLOW_KEPT = 200
#: Some 2 KiB each.
_STORIES_KEPT = 2000
#: Bytes of a body that are kept: enough for a filter.
_BODY = 16 << 10
#: Kept out of what is shown: they let whoever reads it in.
_SECRET_HEADERS = ("authorization", "cookie")


@dataclass(frozen=True)
class Seen:
    """One request, such that it can be asked again."""

    request_id: str
    method: str
    url: str
    headers: list[tuple[str, str]]
    body: str

    @classmethod
    def of(cls, order: Order) -> "Seen":
        """Without secrets, and with as much of the body as is kept."""
        headers = [
            (name, value if name.lower().startswith("x-lizmap-") else _redacted(name, value))
            for name, value in order.headers
            if name.lower() not in _SECRET_HEADERS
        ]
        body = order.body[:_BODY].decode("utf-8", "replace")
        return cls(order.request_id, order.method, redact(order.url), headers, redact(body))


def _redacted(name: str, value: str) -> str:
    return redact(f"{name}: {value}").partition(": ")[2]


@dataclass(frozen=True)
class Crash:
    """A worker that was lost over a request, and what it had been asked, oldest first."""

    when: float
    worker: int
    reason: str
    detail: str
    requests: list[Seen]
    stack: str


@dataclass(frozen=True)
class Slow:
    """A request that took longer than it should, or was ended for that."""

    when: float
    request_id: str
    project: str
    request_class: str
    url: str
    seconds: float
    outcome: str
    worker: int
    stack: str = ""

    @classmethod
    def of(cls, story: Story, when: float, outcome: str) -> "Slow":
        """As the story has it so far. when: since when it counts as slow, or its end."""
        return cls(
            when, story.request_id, story.project, story.request_class.value, redact(story.url),
            round(story.total_ms / 1000, 3), outcome, story.worker,
        )  # fmt: skip


@dataclass
class Recorder:
    """Of one pool."""

    #: Seconds from which on a request of a class is slow.
    slow_s: Mapping[RequestClass, float]
    #: Told of each that is.
    on_slow: Callable[[Slow], None]
    slow: deque[Slow] = field(default_factory=lambda: deque(maxlen=_SLOW_KEPT))
    crashes: dict[str, Crash] = field(default_factory=dict)
    #: By number of the job, in the order in which they ended.
    stories: OrderedDict[int, Story] = field(default_factory=OrderedDict)
    _last: dict[int, deque[Order]] = field(default_factory=dict)
    _stacks: dict[int, str] = field(default_factory=dict)

    def sent(self, worker: int, order: Order) -> None:
        """A request goes to a worker."""
        if len(order.body) > _BODY:  # ten bodies of http.max_body for each worker add up
            order = replace(order, body=order.body[:_BODY])
        self._last.setdefault(worker, deque(maxlen=_PER_WORKER)).append(order)

    def at_work(self, worker: int) -> Order:
        """What a worker that has a request was given."""
        return self._last[worker][-1]

    def autopsy(self, worker: int, stack: str) -> None:
        """What a worker was doing when it was about to be killed."""
        self._stacks[worker] = redact(stack)

    def ended(self, worker: int, project: str, reason: Reason, detail: str, job: int) -> None:
        """A worker is gone; over a request if `reason` says so. job: what it had, or 0."""
        if job in self.stories:
            self.stories[job].reason = reason
        orders = self._last.pop(worker, None)
        stack = self._stacks.pop(worker, "")
        if not orders:
            return
        if reason in (Reason.CRASH, Reason.DEADLINE, Reason.MEMORY):
            seen = [Seen.of(order) for order in orders]
            self.crashes[project] = Crash(time.time(), worker, reason.value, detail, seen, stack)
        if reason is Reason.DEADLINE or (reason is Reason.OPERATOR and job):
            last = orders[-1]
            whose = "by an operator" if reason is Reason.OPERATOR else "at its deadline"
            # A stream ends at a deadline of its own.
            story = self.stories.get(job)
            seconds = last.timeout_s if story is None else story.total_ms / 1000
            killed = Slow(
                time.time(), last.request_id, project, last.cls.value, redact(last.url),
                round(seconds, 3), f"killed {whose}", worker, stack,
            )  # fmt: skip
            place = self._place(killed)
            if place is None:
                self._is_slow(killed)
            else:  # its end is known already; now also what it was stuck in
                self.slow[place] = killed

    def finished(self, exchange: Exchange, now: float) -> Story:
        """A request has come to its end at `now`, of the loop's clock."""
        story = self.stories[exchange.number] = story_of(exchange, now)
        if len(self.stories) > _STORIES_KEPT:
            self.stories.popitem(last=False)
        if self._took_long(story):
            ended = ANSWERED if story.outcome in _ANSWERED else story.outcome.value
            self._is_slow(Slow.of(story, time.time(), ended))
        return story

    def slow_now(self, under_way: Iterable[tuple[str, Story]]) -> list[Slow]:
        """Which of these take longer than they should; their outcome is the state they are in.

        What a slow client still takes is not among them: nothing waits for it.
        """
        return [
            Slow.of(story, story.when + self.slow_s[story.request_class], state)
            for state, story in under_way
            if state != SENDING and self._took_long(story)
        ]

    def _took_long(self, story: Story) -> bool:
        return story.total_ms >= self.slow_s[story.request_class] * 1000

    def _place(self, slow: Slow) -> int | None:
        """Where the end of this request by this worker is told, if it is."""
        for place in reversed(range(len(self.slow))):
            other = self.slow[place]
            if (other.request_id, other.worker) == (slow.request_id, slow.worker):
                return place if other.outcome != ANSWERED else None
        return None

    def _is_slow(self, slow: Slow) -> None:
        self.slow.append(slow)
        self.on_slow(slow)

    def find(self, request_id: str) -> Story | None:
        """The last request of this id that ended, if it is kept."""
        last_first = reversed(self.stories.values())
        return next((story for story in last_first if story.request_id == request_id), None)

    def forget(self, project: str) -> None:
        """The project has another file now."""
        self.crashes.pop(project, None)


def story_of(exchange: Exchange, now: float) -> Story:
    """What became of a request so far, at `now` of the loop's clock."""
    return tell(
        exchange.order,
        exchange.job,
        now,
        time.time(),
        exchange.outcome,
        exchange.status,
        exchange.sent,
        exchange.reason,
        exchange.detail,
    )
