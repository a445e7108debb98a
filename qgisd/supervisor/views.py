"""What others may see of a pool: the part of exchange.Service that only looks."""

import asyncio

from qgisd.supervisor.exchange import Exchange
from qgisd.supervisor.history import History, Minute
from qgisd.supervisor.machine import Machine
from qgisd.supervisor.recorder import SENDING, Crash, Recorder, Slow, story_of
from qgisd.supervisor.stats import PoolView, ProjectDetail, detail_of, view_of
from qgisd.supervisor.story import Story
from qgisd.supervisor.tree import Tree


class Views:
    """Base of pool.Pool, whose parts it looks at."""

    name: str
    recorder: Recorder
    _loop: asyncio.AbstractEventLoop
    _machine: Machine
    _tree: Tree
    _exchanges: dict[int, Exchange]
    _history: History

    def ready(self) -> list[str]:
        machine = self._machine
        missing = []
        if machine.stopping:
            missing.append("shutting down")
        if machine.draining:
            missing.append(f"pool {self.name}: draining")
        if machine.zygote.state.value != "up":
            missing.append(f"pool {self.name}: the zygote is {machine.zygote.state.value}")
        loaded = {key for key, project in machine.projects.items() if project.serving}
        for key in machine.pinned - loaded:
            missing.append(f"pool {self.name}: pinned project {key} is not loaded")
        return missing

    def view(self) -> PoolView:
        ids = {number: exchange.order.request_id for number, exchange in self._exchanges.items()}
        return view_of(self.name, self._machine, self._loop.time(), ids, self._tree.started)

    def detail(self, project: str) -> ProjectDetail | None:
        record = self._machine.projects.get(project)
        return detail_of(self.name, record, self._machine) if record is not None else None

    def in_flight(self) -> list[tuple[str, Story]]:
        now = self._loop.time()
        return [
            (
                exchange.job.state.value if exchange.number in self._machine.jobs else SENDING,
                story_of(exchange, now),
            )
            for exchange in self._exchanges.values()
        ]

    def story(self, request_id: str) -> Story | None:
        for exchange in self._exchanges.values():
            if exchange.order.request_id == request_id:
                return story_of(exchange, self._loop.time())
        return self.recorder.find(request_id)

    def stories(self) -> list[Story]:
        return list(self.recorder.stories.values())

    def history(self, since: int) -> list[Minute]:
        return self._history.rows(since, self._loop.time())

    def slowlog(self) -> list[Slow]:
        return sorted([*self.recorder.slow, *self.slow_now()], key=lambda slow: slow.when)

    def slow_now(self) -> list[Slow]:
        return self.recorder.slow_now(self.in_flight())

    def last_crash(self, project: str) -> Crash | None:
        return self.recorder.crashes.get(project)
