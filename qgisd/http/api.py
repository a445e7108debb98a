"""The REST API that `ctl` and the page speak: pools, projects, workers, the daemon itself.

Paths are templates as in OpenAPI; a project's name may hold slashes, plain or as %2F. Method
docstrings are what the API's own description shows.
"""

import sys
import time
from dataclasses import asdict
from typing import Any

from tornado.web import HTTPError

from qgisd import __version__, errors
from qgisd.http import control, feed, openapi
from qgisd.http.handler import Handler, operation
from qgisd.http.models import (
    ConfigReport,
    CrashReport,
    HealthReport,
    HistoryQuery,
    HistoryReport,
    HistoryRow,
    Index,
    LoadQuery,
    Pool,
    PoolRoute,
    ProjectQuery,
    Query,
    SlowRequest,
)
from qgisd.supervisor.exchange import Service
from qgisd.supervisor.stats import PluginView, PoolView, ProjectDetail, ProjectView, Result


class Root(Handler):
    """/"""

    @operation()
    async def get(self, query: Query) -> Index:
        """The daemon, and what you may do."""
        shown = self.chosen(query.pool)
        versions = [view.qgis for view in (service.view() for service in shown) if view.qgis]
        return Index(
            version=__version__,
            qgis=versions[0] if versions else "",
            python=sys.version.split()[0],
            started=_STARTED,
            uptime_s=round(time.time() - _STARTED, 1),
            role=self.caller.role.value,
            pools=[PoolRoute(pool=one.name, route=self.context.paths[one.name]) for one in shown],
        )


_STARTED = time.time()


class Stats(Handler):
    """/stats"""

    @operation()
    async def get(self, query: Query) -> list[PoolView]:
        """Every pool with its projects and workers."""
        return [service.view() for service in self.chosen(query.pool)]


class Pools(Handler):
    """/pools"""

    @operation()
    async def get(self, query: Query) -> list[Pool]:
        """The pools, without their projects and workers."""
        return [Pool.model_validate(service.view()) for service in self.chosen(query.pool)]


class Projects(Handler):
    """/projects"""

    @operation()
    async def get(self, query: Query) -> list[ProjectView]:
        """The projects that are loaded, loading or failed."""
        return [
            project for service in self.chosen(query.pool) for project in service.view().projects
        ]


class OneProject(Handler):
    """/projects/{project}"""

    @operation()
    async def get(self, query: Query, project: str) -> ProjectDetail:
        """One project, with its layers and how long each took to load."""

        async def find(service: Service) -> Any:
            key = (await service.resolve(project)).key
            detail = service.detail(key)
            if detail is None:
                raise errors.ProjectNotFound(f"{key} is not loaded")
            return detail

        found: ProjectDetail = await self.first(query.pool, project, find)
        return found

    @operation({422: Result})
    async def post(self, query: LoadQuery, project: str) -> Result:
        """Load a project before anybody asks for it; answers when it is done."""
        return self.settle(
            await self.first(
                query.pool, project, lambda service: service.orders.load(project, query.pin)
            )
        )

    @operation({422: Result})
    async def delete(self, query: Query, project: str) -> Result:
        """Unload a project; the next request loads it again. It is no longer pinned."""
        return self.settle(
            await self.first(query.pool, project, lambda service: service.orders.drop(project))
        )

    def settle(self, outcome: Result) -> Result:
        """The status of an outcome."""
        self.set_status(200 if outcome.ok else 422)
        return outcome


class LastCrash(Handler):
    """/projects/{project}/last-crash"""

    @operation()
    async def get(self, query: Query, project: str) -> CrashReport:
        """The last worker that a project lost over a request, and what it had been asked."""

        async def find(service: Service) -> CrashReport:
            key = (await service.resolve(project)).key
            crash = service.last_crash(key)
            if crash is None:
                raise errors.ProjectNotFound(f"{key} has lost no worker over a request")
            return CrashReport(pool=service.name, project=key, **asdict(crash))

        report: CrashReport = await self.first(query.pool, project, find)
        return report


class Reload(Handler):
    """/reload"""

    @operation({422: list[Result]})
    async def post(self, query: ProjectQuery) -> list[Result]:
        """Load one project anew, or QGIS, its plugins and all projects; answers when it is done,
        with a row per project, and one for the zygote by the name ""."""
        name = query.project
        if name is not None:
            rows = await self.first(query.pool, name, lambda service: service.orders.reload(name))
        else:
            rows = [
                row
                for service in self.chosen(query.pool)
                for row in await service.orders.reload(None)
            ]
        self.set_status(200 if all(row.ok for row in rows) else 422)
        return list(rows)


class History(Handler):
    """/history"""

    @operation()
    async def get(self, query: HistoryQuery) -> list[HistoryReport]:
        """What the projects did by the minute, for the last hour; the last row is not complete."""
        return [
            HistoryReport(
                pool=service.name,
                rows=[HistoryRow(**asdict(row)) for row in service.history(query.since)],
            )
            for service in self.chosen(query.pool)
        ]


class SlowLog(Handler):
    """/slowlog"""

    @operation()
    async def get(self, query: Query) -> list[SlowRequest]:
        """Requests that are or were slow, or ended at their deadline; oldest first."""
        return [
            SlowRequest(pool=service.name, **asdict(slow))
            for service in self.chosen(query.pool)
            for slow in service.slowlog()
        ]


class Plugins(Handler):
    """/plugins"""

    @operation()
    async def get(self, query: Query) -> list[PluginView]:
        """Server plugins, and whether they were loaded."""
        return [plugin for one in self.chosen(query.pool) for plugin in one.view().plugins]


class Health(Handler):
    """/health"""

    @operation()
    async def get(self, query: Query) -> HealthReport:
        """How the daemon itself is."""
        return HealthReport.model_validate(self.context.health())


class Effective(Handler):
    """/config"""

    @operation()
    async def get(self, query: Query) -> ConfigReport:
        """The configuration in force, and where each value came from. Secrets are not shown."""
        return ConfigReport.model_validate(self.context.configuration)


class OpenApi(Handler):
    """/openapi.json"""

    @operation()
    async def get(self, query: Query) -> dict[str, Any]:
        """This description."""
        return openapi.describe(ROUTES)


class Unknown(Handler):
    """Everything else."""

    async def prepare(self) -> None:
        raise HTTPError(404, "there is nothing at this path; /api/v1/openapi.json lists what is")


#: Template of a path below /api/v1 → its handler. The first that fits counts.
ROUTES: list[tuple[str, type[Handler]]] = [
    ("/", Root),
    ("/stats", Stats),
    ("/pools", Pools),
    ("/workers", control.Workers),
    ("/workers/{worker}", control.OneWorker),
    ("/requests", control.Requests),
    ("/requests/{request}", control.OneRequest),
    ("/projects", Projects),
    ("/projects/{project}/pin", control.Pin),
    ("/projects/{project}/last-crash", LastCrash),
    ("/projects/{project}", OneProject),
    ("/reload", Reload),
    ("/drain", control.Drain),
    ("/undrain", control.Undrain),
    ("/events", feed.Events),
    ("/history", History),
    ("/slowlog", SlowLog),
    ("/plugins", Plugins),
    ("/health", Health),
    ("/config", Effective),
    ("/openapi.json", OpenApi),
]
