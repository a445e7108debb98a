"""The part of the REST API that acts on what runs: requests, workers, pins, drain."""

from qgisd import errors
from qgisd.http.handler import Handler, operation
from qgisd.http.models import DrainState, ProjectQuery, Query, StoryReport
from qgisd.supervisor.exchange import Service
from qgisd.supervisor.stats import Killed, Result, WorkerView
from qgisd.supervisor.story import Story


class Workers(Handler):
    """/workers"""

    @operation()
    async def get(self, query: ProjectQuery) -> list[WorkerView]:
        """The worker processes."""
        return [
            worker
            for service in self.chosen(query.pool)
            for worker in service.view().workers
            if query.project in (None, worker.project)
        ]


class OneWorker(Handler):
    """/workers/{worker}"""

    @operation({409: None})
    async def delete(self, query: Query, worker: int) -> Killed:
        """Kill a worker. The request that it has gets an error, or is cut off."""
        having = [
            service
            for service in self.chosen(query.pool)
            if any(each.id == worker for each in service.view().workers)
        ]
        if len(having) > 1:
            names = ", ".join(service.name for service in having)
            raise errors.Conflict(f"several pools have a worker {worker}, say which: {names}")
        killed = having[0].orders.kill_worker(worker) if having else None
        if killed is None:
            raise errors.NotFound(f"there is no worker {worker}, or it is being killed")
        return killed


class Requests(Handler):
    """/requests"""

    @operation()
    async def get(self, query: ProjectQuery) -> list[StoryReport]:
        """The requests that have not ended, oldest first."""
        return [
            report(service.name, state, story)
            for service in self.chosen(query.pool)
            for state, story in service.in_flight()
            if query.project in (None, story.project)
        ]


class OneRequest(Handler):
    """/requests/{request}"""

    @operation()
    async def get(self, query: Query, request: str) -> StoryReport:
        """The story of a request, by its X-Request-Id: of one in flight, or of the last that
        ended, as far as they are kept."""
        found = None
        for service in self.chosen(query.pool):
            for state, story in service.in_flight():
                if story.request_id == request:
                    return report(service.name, state, story)
            ended = service.story(request)
            if ended is not None and (found is None or ended.when > found[1].when):
                found = service.name, ended
        if found is None:
            raise errors.NotFound(f"no request {request[:100]} is in flight or among the last")
        return report(found[0], "ended", found[1])

    @operation()
    async def delete(self, query: Query, request: str) -> list[Killed]:
        """End a request, and kill the worker that has it. Its client gets an error, or is cut
        off. If several have this id, all of them."""
        killed = [
            each
            for service in self.chosen(query.pool)
            for each in service.orders.kill_request(request)
        ]
        if not killed:
            raise errors.NotFound(f"no request {request[:100]} is in flight")
        return killed


def report(pool: str, state: str, story: Story) -> StoryReport:
    """A story as the API tells it."""
    return StoryReport.model_validate({"pool": pool, "state": state} | story.row())


class Pin(Handler):
    """/projects/{project}/pin"""

    @operation({422: Result})
    async def put(self, query: Query, project: str) -> Result:
        """Keep a project loaded, with a spare worker; loads it if need be, and waits for that."""
        result: Result = await self.first(
            query.pool, project, lambda service: service.orders.load(project, True)
        )
        self.set_status(200 if result.ok else 422)
        return result

    @operation()
    async def delete(self, query: Query, project: str) -> Result:
        """Keep a project no longer than it is used. It is not unloaded by this."""
        result: Result = await self.first(
            query.pool, project, lambda service: service.orders.unpin(project)
        )
        return result


class Drain(Handler):
    """/drain"""

    @operation()
    async def post(self, query: Query) -> list[DrainState]:
        """Take no new requests (503), and say so on /readyz; what runs comes to its end."""
        return _drain(self.chosen(query.pool), True)


class Undrain(Handler):
    """/undrain"""

    @operation()
    async def post(self, query: Query) -> list[DrainState]:
        """Take requests again."""
        return _drain(self.chosen(query.pool), False)


def _drain(services: list[Service], on: bool) -> list[DrainState]:
    for service in services:
        service.orders.drain(on)
    return [
        DrainState(pool=view.pool, draining=view.draining, busy=view.busy, queued=view.queued)
        for view in (service.view() for service in services)
    ]
