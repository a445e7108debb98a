"""What /metrics says of a real daemon that has seen every kind of end, and that Prometheus agrees.

One daemon for all; the dashboard and the alerts are asked of a real Prometheus that scrapes it.
"""

import http.client
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qgisd.http.metric_table import METRICS
from tests.e2e.helpers import need_program
from tests.process.tools import Raw, named, path
from tests.support import Daemon, eventually, free_port, start_daemon, write_fake_project

ETC = Path(__file__).resolve().parents[2] / "etc"
LOOK, ALL = "look-and-change-nothing", "do-whatever-you-like"


@dataclass
class Watched:
    """A daemon whose admin listener is on TCP, as Prometheus needs it."""

    daemon: Daemon
    port: int

    def ask(
        self, target: str, token: str = LOOK, method: str = "GET", accept: str = ""
    ) -> tuple[int, str, str]:
        """Status, content type and body."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            headers = {"Authorization": f"Bearer {token}", "Accept": accept}
            connection.request(method, target, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers.get("Content-Type", ""), answer.read().decode()

    def text(self) -> str:
        status, _, text = self.ask("/metrics")
        assert status == 200, text
        return text

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """(Name, labels) → value."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Of the one sample with these labels."""
        return self.samples()[name, frozenset(labels.items())]

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples that have these labels."""
        wanted = set(labels.items())
        return sum(
            value
            for (found, has), value in self.samples().items()
            if found == name and wanted <= has
        )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("metrics")
    for name in ("a", "b", "rare"):
        write_fake_project(folder / "projects" / f"{name}.qgs", text=name * 100)
    write_fake_project(folder / "projects" / "bad.qgs", fail="no database")
    port = free_port()
    daemon = start_daemon(
        folder / "daemon",
        folder / "projects",
        pool="workers = 2\nslow_s = 0.5\nlend_after_s = 60\nmemory_interval_s = 0.2\n"
        "request_timeout_s = 1.5\n"
        "stream_timeout_s = 1\ndisconnect_grace_s = 0.1\nbreaker_failures = 100",
        extra='[metrics]\ntop = 2\n[log]\nlevel = "warning"',
        environment={
            "QGISD_ADMIN__LISTEN": f"127.0.0.1:{port}",
            "QGISD_ADMIN__TOKENS": json.dumps([ALL]),
            "QGISD_ADMIN__READ_TOKENS": json.dumps([LOOK]),
        },
    )
    made = Watched(daemon, port)
    try:
        misbehave(made)
        yield made
    finally:
        assert daemon.stop() == 0


def misbehave(watched: Watched) -> None:
    """Bring about each end that a request may have."""
    daemon = watched.daemon
    for _ in range(4):
        assert ows(daemon, "a", REQUEST="GetMap") == 200
    assert [ows(daemon, "a", REQUEST="GetCapabilities") for _ in range(3)] == [200] * 3
    assert ows(daemon, "b", REQUEST="GetMap") == ows(daemon, "b", REQUEST="GetMap") == 200
    assert ows(daemon, "rare", REQUEST="GetMap") == 200
    assert ows(daemon, "a", REQUEST="GetMap", do="nonsense") == 400
    assert ows(daemon, "bad", REQUEST="GetMap") == 422
    assert ows(daemon, "a", REQUEST="GetMap", do="exit", code=3) == 502
    assert ows(daemon, "a", REQUEST="GetMap", do="hang") == 504
    assert ows(daemon, "nobody", REQUEST="GetMap") == 404
    with Raw(daemon) as client:
        client.get(path("a", SERVICE="WMS", REQUEST="GetMap", do="break"))
        client.rest()
    with Raw(daemon) as client:
        client.get(path("b", SERVICE="WMS", REQUEST="GetMap", do="text", s=5))
        eventually(lambda: watched.value("qgisd_slots_busy", pool="default") == 1)
    eventually(lambda: watched.value("qgisd_slots_busy", pool="default") == 0)
    eventually(lambda: watched.sum("qgisd_worker_ends_total", reason="disconnect") == 1)
    eventually(lambda: watched.sum("qgisd_memory_bytes", process="worker") > 0)


def ows(daemon: Daemon, project: str, **parameters: object) -> int:
    return daemon.ows(project, SERVICE="WMS", **parameters).status


# what is counted


def test_each_end_of_a_request_is_counted(watched: Watched) -> None:
    ends = {
        "ok": 7, "error": 1, "refused": 1, "failed": 1, "timeout": 1, "aborted": 1,
        "disconnected": 1, "cached": 0,
    }  # fmt: skip
    for outcome, count in ends.items():
        labels = {"pool": "default", "class": "map", "outcome": outcome}
        assert watched.value("qgisd_requests_total", **labels) == count, outcome
    labels = {"pool": "default", "class": "capabilities"}
    assert watched.value("qgisd_requests_total", outcome="cached", **labels) == 2
    assert watched.value("qgisd_requests_total", outcome="ok", **labels) == 1
    assert watched.sum("qgisd_requests_total") == 16
    assert watched.value("qgisd_request_retries_total", pool="default") == 1
    # 404 and the daemon's own health checks reached no pool.
    assert watched.value("qgisd_http_answers_total", code="404") == 1
    assert watched.sum("qgisd_http_answers_total", code="504") == 1


def test_times_are_those_of_the_requests(watched: Watched) -> None:
    labels = {"pool": "default", "class": "map"}
    count = watched.value("qgisd_request_duration_seconds_count", **labels)
    assert count == 13
    # All but the one whose project did not load were given to a worker.
    for part in ("queue", "render"):
        assert watched.value(f"qgisd_request_{part}_seconds_count", **labels) == 12, part
    # The one that hung for 1.5 s is beyond 1 s and within 2.5 s; nothing else comes near.
    buckets = [
        watched.value("qgisd_request_render_seconds_bucket", le=end, **labels)
        for end in ("1.0", "2.5", "300.0", "+Inf")
    ]
    assert buckets[1] - buckets[0] == 1 and buckets[1] == buckets[2] == buckets[3] == 12
    assert 1.5 <= watched.value("qgisd_request_render_seconds_sum", **labels) < 5
    # Each of the three projects, and the one that fails, made somebody wait for its load.
    assert watched.value("qgisd_request_load_seconds_count", **labels) == 4
    assert watched.value("qgisd_response_bytes_total", **labels) > 700


def test_processes_and_why_they_ended(watched: Watched) -> None:
    for reason, count in {"crash": 2, "deadline": 1, "disconnect": 1, "idle": 0}.items():
        ended = watched.value("qgisd_worker_ends_total", pool="default", reason=reason)
        assert ended == count, reason
    for reason, count in {"crash": 0, "deadline": 1, "disconnect": 1}.items():
        killed = watched.value("qgisd_worker_kills_total", pool="default", reason=reason)
        assert killed == count, reason
    assert watched.value("qgisd_forks_total", pool="default", process="zygote") == 1
    # a, b, rare, and bad at least once.
    assert watched.value("qgisd_forks_total", pool="default", process="snapshot") >= 4
    assert watched.value("qgisd_load_seconds_count", pool="default") == 3
    assert watched.value("qgisd_load_failures_total", pool="default") >= 1
    workers, snapshots = (
        len(named(watched.daemon, "worker")),
        len(named(watched.daemon, "snapshot")),
    )
    assert watched.sum("qgisd_workers") == workers
    assert watched.value("qgisd_snapshots", pool="default") == snapshots == 3
    assert watched.value("qgisd_projects", pool="default", state="serving") == 3
    assert watched.value("qgisd_projects", pool="default", state="failed") == 1


def test_memory_is_that_of_the_processes(watched: Watched) -> None:
    for process in ("zygote", "snapshot", "worker"):
        for kind in ("private", "shared"):
            size = watched.value("qgisd_memory_bytes", pool="default", process=process, kind=kind)
            assert 10_000 < size < 1 << 30, (process, kind)
    assert watched.value("qgisd_memory_limit_bytes", pool="default") <= 4 << 30
    assert watched.value("process_open_fds") > 5


def test_the_cache_tells_of_itself(watched: Watched) -> None:
    assert watched.value("qgisd_cache_hits_total", pool="default") == 2
    assert watched.value("qgisd_cache_misses_total", pool="default") == 1
    assert watched.value("qgisd_cache_entries", pool="default") == 1
    assert watched.value("qgisd_cache_bytes", pool="default") == 100


def test_of_projects_those_with_the_most_requests_are_told(watched: Watched) -> None:
    told = {
        dict(labels)["project"]
        for name, labels in watched.samples()
        if name == "qgisd_project_requests_total"
    }
    assert told == {"a.qgs", "b.qgs"}
    labels = {"pool": "default", "project": "b.qgs"}
    assert watched.value("qgisd_project_requests_total", outcome="ok", **labels) == 2
    assert watched.value("qgisd_project_up", **labels) == 1
    assert watched.value("qgisd_project_memory_bytes", **labels) > 0


def test_what_is_under_way_shows_at_once(watched: Watched) -> None:
    with Raw(watched.daemon) as client:
        client.get(path("b", SERVICE="WMS", REQUEST="GetPrint", do="text", s=1))
        eventually(lambda: watched.value("qgisd_slots_busy", pool="default") == 1)
        assert watched.value("qgisd_workers", pool="default", state="busy") == 1
        client.until(b"b" * 100)


def test_scrapes_are_not_counted_as_requests(watched: Watched) -> None:
    before = watched.sum("qgisd_requests_total"), watched.sum("qgisd_http_answers_total")
    for _ in range(5):
        watched.text()
    assert before == (watched.sum("qgisd_requests_total"), watched.sum("qgisd_http_answers_total"))


# who may, and in which form


def test_metrics_are_not_public_and_reading_is_enough(watched: Watched) -> None:
    assert watched.daemon.get("/metrics").status == 404
    assert watched.ask("/metrics", token="wrong")[0] == 401
    assert watched.ask("/metrics", method="HEAD")[0] == 200
    assert watched.ask("/metrics", token=ALL, method="POST")[0] == 405


def test_who_asks_for_openmetrics_gets_it(watched: Watched) -> None:
    _, kind, text = watched.ask("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


def test_what_is_told_is_what_the_table_says(watched: Watched) -> None:
    families = {family.name: family for family in text_string_to_metric_families(watched.text())}
    ours = {name for name in families if name.startswith("qgisd_")}
    assert ours == {metric.name.removesuffix("_total") for metric in METRICS}
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        assert family.samples, f"{metric.name} has no value"
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), metric.name


def test_promtool_finds_nothing_to_complain_of(watched: Watched) -> None:
    promtool = need_program("promtool")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=watched.text(), capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    rules = str(ETC / "prometheus" / "qgisd.rules.yml")
    done = subprocess.run(
        [promtool, "check", "rules", rules], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Prometheus, the dashboard and the alerts


@dataclass
class Prometheus:
    """A real one that scrapes the daemon."""

    port: int

    def get(self, target: str, **parameters: str) -> Any:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request("GET", f"{target}?{urlencode(parameters)}")
            answer = json.loads(connection.getresponse().read())
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        result: list[Any] = self.get("/api/v1/query", query=expression)["result"]
        return result


@pytest.fixture(scope="module")
def prometheus(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """With etc/prometheus/prometheus.yml, but for address, token and interval."""
    program, folder = need_program("prometheus"), tmp_path_factory.mktemp("prometheus")
    (folder / "token").write_text(LOOK)
    text = (ETC / "prometheus" / "prometheus.yml").read_text()
    for old, new in (
        ("127.0.0.1:7081", f"127.0.0.1:{watched.port}"),
        ("/etc/prometheus/qgisd.token", str(folder / "token")),
        ("scrape_interval: 15s", "scrape_interval: 500ms\n    scrape_timeout: 500ms"),
        ("  - qgisd.rules.yml", f"  - {ETC / 'prometheus' / 'qgisd.rules.yml'}"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "prometheus.yml").write_text(text)
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--config.file={folder / 'prometheus.yml'}",
             f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
    made = Prometheus(port)

    def scraped() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            found = made.query('count_over_time(up{job="qgisd"}[1m]) >= 3 and up{job="qgisd"} == 1')
        except (OSError, ValueError):  # it says in words that it is still starting
            return False
        return bool(found)

    try:
        eventually(scraped, timeout=30, period=0.1)
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


#: A comparison at the end of an alert's expression: without it there is always a value.
_THRESHOLD = re.compile(r"\s(?:==|>=|>)\s[^()]*$")
_SELECTOR = re.compile(r"\b(?:qgisd|process)_\w+(?:\{[^}]*\})?")


def test_each_panel_of_the_dashboard_has_something_to_show(prometheus: Prometheus) -> None:
    dashboard = json.loads((ETC / "grafana" / "qgisd.json").read_text())
    queries = [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]
    assert len(queries) > 40
    known = {variable["name"] for variable in dashboard["templating"]["list"]}
    for title, query in queries:
        used = set(re.findall(r"\$(\w+)", query)) - {"__rate_interval"}
        assert used <= known, title
        asked = query.replace("$__rate_interval", "1m")
        for name in used:
            asked = asked.replace(f"${name}", ".*")
        assert prometheus.query(asked), f"{title}: {asked}"
        assert_selectors(prometheus, asked)
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            labels = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert labels, variable
            rows = prometheus.query(labels[1].replace("$instance", ".*"))
            assert rows and all(labels[2] in row["metric"] for row in rows)


def test_each_alert_asks_for_what_there_is(prometheus: Prometheus) -> None:
    (group,) = prometheus.get("/api/v1/rules")["groups"]
    assert len(group["rules"]) >= 15
    for rule in group["rules"]:
        query = rule["query"]
        assert_selectors(prometheus, query)
        value, found = _THRESHOLD.subn("", query)
        assert found == 1, query
        if not value.startswith("absent("):
            assert prometheus.query(value), f"{rule['name']}: {value}"
        assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= labels_of(
            prometheus, value
        ), rule["name"]


def test_an_alert_fires_when_it_should_and_not_before(
    watched: Watched, prometheus: Prometheus
) -> None:
    rules = {
        rule["name"]: rule["query"]
        for rule in prometheus.get("/api/v1/rules")["groups"][0]["rules"]
    }
    # bad.qgs does not load, and requests failed; everything else is as it should be.
    firing = {name for name, query in rules.items() if prometheus.query(query)}
    assert "QgisdProjectDoesNotLoad" in firing
    quiet = {"QgisdGone", "QgisdNotReady", "QgisdZygoteDown", "QgisdSaturated", "QgisdQueueLong",
             "QgisdMemoryShort", "QgisdBreakerOpen", "QgisdDescriptorsShort",
             "QgisdLayersDoNotOpen"}  # fmt: skip
    assert firing & quiet == set()
    with Raw(watched.daemon) as one, Raw(watched.daemon) as other:
        for client, project in ((one, "a"), (other, "b")):
            client.get(path(project, SERVICE="WMS", REQUEST="GetPrint", do="text", s=30))
        eventually(lambda: prometheus.query(rules["QgisdSaturated"]))


def assert_selectors(prometheus: Prometheus, query: str) -> None:
    """Every series that a query names is there, whatever its value."""
    for selector in _SELECTOR.findall(query):
        assert prometheus.query(selector), f"{selector} selects nothing"


def labels_of(prometheus: Prometheus, query: str) -> set[str]:
    """Of the result of a query."""
    return {label for row in prometheus.query(query) for label in row["metric"]} | {"instance"}


# while it happens; last, as it adds to the counts


def test_what_is_slow_is_counted_while_it_is(watched: Watched) -> None:
    late = {"pool": "default", "class": "print"}
    assert watched.sum("qgisd_requests_slow") == 0
    with Raw(watched.daemon) as client:
        client.get(path("a", SERVICE="WMS", REQUEST="GetPrint", do="text", s=30))
        eventually(lambda: watched.value("qgisd_requests_slow", **late) == 1)
        found = watched.value("qgisd_project_requests_slow", pool="default", project="a.qgs")
        assert (found, watched.sum("qgisd_requests_slow")) == (1, 1)
    eventually(lambda: watched.sum("qgisd_requests_slow") == 0)
