"""/metrics for Prometheus, on the admin listener.

Made anew for each scrape from the views and counts of the pools; no registry is shared. Names
follow https://prometheus.io/docs/practices/naming/: seconds and bytes, `_total` for what only
grows. No label has more values than the configuration or the code has words for, but `project`,
and of projects those with the most requests are told (`metrics.projects`).
"""

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from qgisd import __version__
from qgisd.config import Metrics as Settings
from qgisd.http.handler import Handler
from qgisd.http.metric_table import METRICS
from qgisd.supervisor.exchange import Service
from qgisd.supervisor.measures import BOUNDS, Histogram
from qgisd.supervisor.stats import PoolView, ProjectView
from qgisd.words import Reason, RequestClass

#: States of workers, projects and generations as views call them.
_WORKERS = ("starting", "idle", "busy", "retiring", "stopping", "killing")
_PROJECTS = ("serving", "stale", "loading", "failed", "unloaded")
_GENERATIONS = ("pending", "loading", "warming", "serving", "retired", "failed")
_FAMILIES: dict[str, Any] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}


class Scrape(Collector):
    """What prometheus_client asks at each scrape."""

    def __init__(
        self,
        pools: Mapping[str, Service],
        health: Callable[[], Mapping[str, Any]],
        answers: Mapping[int, int],
        settings: Settings,
    ) -> None:
        self._pools = pools
        self._health = health
        self._answers = answers
        self._settings = settings

    def collect(self) -> Iterable[Metric]:
        """All metrics, with their values of now."""
        self._families: dict[str, Any] = {
            metric.name: _FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
            for metric in METRICS
        }
        health = self._health()
        self._add("qgisd_build_info", 1, __version__, platform.python_version())
        self._add("qgisd_loop_lag_seconds", health["loop_lag_ms"] / 1000)
        self._add("qgisd_accept_backlog", health["backlog"])
        for status, count in sorted(self._answers.items()):
            self._add("qgisd_http_answers_total", count, str(status))
        for name, service in self._pools.items():
            view = service.view()
            self._requests(name, service)
            self._state(name, view)
            self._add("qgisd_ready", not service.ready(), name)
            self._counts(name, service)
            told = list(self._told(service, view))
            for project in told:
                self._one_project(name, project, service, view)
            self._slow(name, service, told)
        return self._families.values()

    def _add(self, name: str, value: float, *labels: str) -> None:
        self._families[name].add_metric(labels, float(value))

    def _add_histogram(self, name: str, values: Histogram, *labels: str) -> None:
        ends = [*(str(bound) for bound in BOUNDS), "+Inf"]
        buckets = list(zip(ends, accumulate(values.counts), strict=True))
        self._families[name].add_metric(labels, buckets, values.sum)

    def _requests(self, pool: str, service: Service) -> None:
        for cls, of in service.measures.classes.items():
            for outcome, count in of.outcomes.items():
                self._add("qgisd_requests_total", count, pool, cls.value, outcome.value)
            self._add_histogram("qgisd_request_queue_seconds", of.queue, pool, cls.value)
            self._add_histogram("qgisd_request_load_seconds", of.load, pool, cls.value)
            self._add_histogram("qgisd_request_render_seconds", of.render, pool, cls.value)
            self._add_histogram("qgisd_request_duration_seconds", of.total, pool, cls.value)
            self._add("qgisd_response_bytes_total", of.bytes, pool, cls.value)

    def _slow(self, pool: str, service: Service, projects: Iterable[str]) -> None:
        slow = service.slow_now()
        by_class = Counter(one.request_class for one in slow)
        for cls in RequestClass:
            self._add("qgisd_requests_slow", by_class[cls.value], pool, cls.value)
        by_project = Counter(one.project for one in slow)
        for key in projects:
            self._add("qgisd_project_requests_slow", by_project[key], pool, key)

    def _state(self, pool: str, view: PoolView) -> None:
        if view.qgis:
            self._add("qgisd_qgis_info", 1, pool, view.qgis)
        self._add("qgisd_zygote_up", view.zygote == "up", pool)
        self._add("qgisd_queue_length", view.queued, pool)
        self._add("qgisd_slots", view.slots, pool)
        self._add("qgisd_slots_busy", view.busy, pool)
        self._add("qgisd_slots_lent", view.lent, pool)
        self._add("qgisd_snapshots", view.snapshots, pool)
        generations = [one for project in view.projects for one in project.generations]
        for name, states, found in (
            ("qgisd_workers", _WORKERS, Counter(worker.state for worker in view.workers)),
            ("qgisd_projects", _PROJECTS, Counter(project.state for project in view.projects)),
            ("qgisd_generations", _GENERATIONS, Counter(one.state for one in generations)),
        ):
            for state in states:
                self._add(name, found[state], pool, state)
        bad = sum(len(one.bad_layers) for one in generations if one.state == "serving")
        self._add("qgisd_bad_layers", bad, pool)
        opened = sum(project.breaker == "open" for project in view.projects)
        self._add("qgisd_breakers_open", opened, pool)

    def _counts(self, pool: str, service: Service) -> None:
        measures, cache = service.measures, service.cache
        for (process, kind), size in measures.memory.items():
            self._add("qgisd_memory_bytes", size, pool, process, kind)
        if measures.memory_limit:
            self._add("qgisd_memory_limit_bytes", measures.memory_limit, pool)
        for process in ("zygote", "snapshot", "worker"):
            self._add("qgisd_forks_total", measures.forks[process], pool, process)
        for reason in Reason:
            self._add("qgisd_worker_ends_total", measures.ends[reason], pool, reason.value)
            self._add("qgisd_worker_kills_total", measures.kills[reason], pool, reason.value)
        self._add("qgisd_request_retries_total", measures.retries, pool)
        self._add_histogram("qgisd_load_seconds", measures.loads, pool)
        self._add("qgisd_load_failures_total", measures.failed_loads, pool)
        self._add("qgisd_cache_hits_total", cache.hits, pool)
        self._add("qgisd_cache_misses_total", cache.misses, pool)
        self._add("qgisd_cache_bytes", cache.used, pool)
        self._add("qgisd_cache_limit_bytes", cache.size, pool)
        self._add("qgisd_cache_entries", len(cache), pool)

    def _told(self, service: Service, view: PoolView) -> Iterator[str]:
        """Keys of the projects that are told one by one."""
        counted = service.measures.projects
        if self._settings.projects == "all":
            yield from sorted({project.project for project in view.projects} | set(counted))
        elif self._settings.projects == "top":
            ranks = sorted(counted, key=lambda key: (-counted[key].requests, key))
            yield from ranks[: self._settings.top]

    def _one_project(self, pool: str, key: str, service: Service, view: PoolView) -> None:
        of = service.measures.projects.get(key)
        if of is not None:
            for outcome, count in of.outcomes.items():
                self._add("qgisd_project_requests_total", count, pool, key, outcome.value)
            self._add("qgisd_project_render_seconds_total", of.render_s, pool, key)
        found = [project for project in view.projects if project.project == key]
        workers = [worker for worker in view.workers if worker.project == key]
        private = sum(worker.private_bytes or 0 for worker in workers)
        self._add("qgisd_project_workers", len(workers), pool, key)
        self._add("qgisd_project_up", any(_serves(project) for project in found), pool, key)
        failing = any(project.state in ("stale", "failed") for project in found)
        self._add("qgisd_project_failing", failing, pool, key)
        queued = sum(project.queued for project in found)
        self._add("qgisd_project_queue_length", queued, pool, key)
        shared = sum(project.memory_bytes or 0 for project in found)
        self._add("qgisd_project_memory_bytes", private + shared, pool, key)
        serving = [
            one for project in found for one in project.generations if one.state == "serving"
        ]
        self._add("qgisd_project_generation", serving[0].number if serving else 0, pool, key)
        for one in serving:
            self._add("qgisd_project_load_seconds", one.load_ms / 1000, pool, key)
            self._add("qgisd_project_bad_layers", len(one.bad_layers), pool, key)


def _serves(project: ProjectView) -> bool:
    return project.state in ("serving", "stale")


class Metrics(Handler):
    """GET: all metrics, in Prometheus' text format or OpenMetrics, as asked for."""

    def initialize(self, scrape: Scrape) -> None:  # type: ignore[override]
        self._scrape = scrape

    async def get(self) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._scrape)
        ProcessCollector(registry=registry)
        encode, content_type = choose_encoder(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", content_type)
        self.finish(encode(registry))
