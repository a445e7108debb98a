"""What happens, as Server-Sent Events: for the page, `ctl events` and `ctl top`.

Each client has a bounded queue; one that does not keep up is cut off, and finds what it missed
with Last-Event-ID. Once a second those who want it get a compact picture of all pools, made once
for all of them, and only the newest one.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from qgisd import errors
from qgisd.http.handler import Handler, operation
from qgisd.http.models import EventsQuery
from qgisd.supervisor.exchange import Service
from qgisd.supervisor.stats import Happening, PoolView

#: Events that are kept, and that may wait for one client.
_KEPT = 500
#: Clients at once.
_MOST_CLIENTS = 64
_STATS_S = 1.0
#: A comment after so long without anything, so that proxies and clients know the line is alive.
_BEAT_S = 15.0
#: A client that takes nothing for so long is gone.
_STALLED_S = 60.0


class Subscription:
    """One client. `next` gives what to send; `cut` is called if it does not keep up."""

    def __init__(self, stats: bool, cut: Callable[[], None]) -> None:
        self.wants_stats = stats
        self._cut = cut
        self._over = False
        self._events: deque[bytes] = deque()
        self._stats = b""
        self._some = asyncio.Event()

    def push(self, event: bytes) -> None:
        """One more event; too many, and the client is cut off."""
        self._events.append(event)
        self._some.set()
        if len(self._events) > _KEPT:
            self._cut()

    def push_stats(self, stats: bytes) -> None:
        """The newest picture; one that was not sent yet is of no use any more."""
        self._stats = stats
        self._some.set()

    def end(self) -> None:
        """It hears no more."""
        self._over = True
        self._some.set()

    async def next(self) -> bytes | None:
        """What there is to send; a comment if there is nothing for a while; None at the end."""
        try:
            await asyncio.wait_for(self._some.wait(), _BEAT_S)
        except asyncio.TimeoutError:
            return b": beat\n\n"
        self._some.clear()
        if self._over:
            return None
        data = b"".join(self._events) + self._stats
        self._events.clear()
        self._stats = b""
        return data


class Feed:
    """Keeps the last events and hands each to all who listen. picture: of all, for `stats`."""

    def __init__(self, picture: Callable[[], object]) -> None:
        self._picture = picture
        self._kept: deque[tuple[int, Happening]] = deque(maxlen=_KEPT)
        self._last = 0
        self._clients: set[Subscription] = set()
        self._timer: asyncio.TimerHandle | None = None

    def publish(self, happening: Happening) -> None:
        """Something happened."""
        self._last += 1
        self._kept.append((self._last, happening))
        if self._clients:
            event = _encode(self._last, happening)
            for client in list(self._clients):
                client.push(event)

    def subscribe(self, client: Subscription, since: int | None) -> None:
        """From now on; with `since`, also what came after the event of that number."""
        if since is not None and since <= self._last:
            for number, happening in self._kept:
                if number > since:
                    client.push(_encode(number, happening))
        self._clients.add(client)
        if client.wants_stats:
            client.push_stats(self._stats())
            if self._timer is None:
                self._tick()

    def unsubscribe(self, client: Subscription) -> None:
        """It has left."""
        self._clients.discard(client)

    @property
    def full(self) -> bool:
        """No room for one more."""
        return len(self._clients) >= _MOST_CLIENTS

    def _tick(self) -> None:
        self._timer = None
        clients = [client for client in self._clients if client.wants_stats]
        if clients:
            stats = self._stats()
            for client in clients:
                client.push_stats(stats)
            self._timer = asyncio.get_running_loop().call_later(_STATS_S, self._tick)

    def _stats(self) -> bytes:
        return b"event: stats\ndata: " + msgspec.json.encode(self._picture()) + b"\n\n"


def _encode(number: int, happening: Happening) -> bytes:
    fields = {name: getattr(happening, name) for name in happening.__dataclass_fields__}
    data = msgspec.json.encode({"id": number} | fields)
    return b"id: %d\nevent: event\ndata: %s\n\n" % (number, data)


def picture(
    pools: Mapping[str, Service], health: Callable[[], Mapping[str, object]]
) -> dict[str, object]:
    """All pools, without what seldom changes."""
    return {
        "time": round(time.time(), 3),
        "loop_lag_ms": health()["loop_lag_ms"],
        "pools": [_pool(service.view()) for service in pools.values()],
    }


def _pool(view: PoolView) -> dict[str, Any]:
    return {
        "pool": view.pool,
        "zygote": view.zygote,
        "draining": view.draining,
        "busy": view.busy,
        "slots": view.slots,
        "queued": view.queued,
        "memory_bytes": view.memory_bytes,
        "memory_limit_bytes": view.memory_limit_bytes,
        "workers": view.workers,
        "projects": [
            {
                "project": project.project,
                "state": project.state,
                "pinned": project.pinned,
                "queued": project.queued,
                "memory_bytes": project.memory_bytes,
                "breaker": project.breaker,
                "requests": project.requests,
                "cached": project.cached,
                "errors": project.errors,
                "answered": project.answered,
                "run_s": project.run_s,
                "workers": sum(generation.workers for generation in project.generations),
                "ended": project.ended,
            }
            for project in view.projects
        ],
    }


class Events(Handler):
    """/events"""

    _client: Subscription | None = None

    async def head(self, **path: str) -> None:
        """There would be no end to it."""
        self.set_header("Content-Type", "text/event-stream")
        self.finish()

    @operation({503: None}, media_type="text/event-stream")
    async def get(self, query: EventsQuery) -> None:
        """What happens, as Server-Sent Events, without end. `event` is something that happened;
        `stats`, about once a second, a picture of all pools. Last-Event-ID works as `since`."""
        feed = self.context.feed
        if feed.full:
            raise errors.Unavailable("too many clients listen to events")
        client = Subscription(query.stats, self._cut)
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")  # Nginx would hold events back
        feed.subscribe(client, self._since(query))
        self._client = client
        try:
            await self.flush()  # the head, before there is anything to tell
            while (data := await client.next()) is not None:
                self.write(data)
                await asyncio.wait_for(self.flush(), _STALLED_S)
        except StreamClosedError:
            pass
        except asyncio.TimeoutError:
            self._cut()
        finally:
            feed.unsubscribe(client)

    def _since(self, query: EventsQuery) -> int | None:
        last = self.request.headers.get("Last-Event-ID", "")
        return int(last) if last.isdecimal() and len(last) < 20 else query.since

    def _cut(self) -> None:
        connection = self.request.connection
        assert isinstance(connection, HTTP1Connection)
        connection.stream.close()

    def on_connection_close(self) -> None:
        if self._client is not None:
            self._client.end()
