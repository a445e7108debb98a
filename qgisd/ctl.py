"""`qgisd ctl`: a client of the admin listener, and tables for people."""

import http.client
import json
import shlex
import socket
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from qgisd.errors import QgisdError


class CtlError(QgisdError):
    """The daemon cannot be reached, or refused."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def call(admin: str, method: str, path: str, **query: str) -> tuple[int, Any]:
    """One call of the REST API: status and decoded JSON.

    admin: "unix:/path" or "host:port" (also "http://host:port"). Raises CtlError.
    """
    target = path + ("?" + urlencode(query) if query else "")
    connection: http.client.HTTPConnection
    if admin.startswith("unix:"):
        connection = _UnixConnection(admin[5:])
    else:
        connection = http.client.HTTPConnection(admin.removeprefix("http://").rstrip("/"))
    try:
        connection.request(method, target)
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise CtlError(f"no answer on {admin}: {error}. Does qgisd run? --admin names it") from None
    finally:
        connection.close()
    try:
        return response.status, json.loads(content)
    except ValueError:
        raise CtlError(f"{admin} answered {response.status} without JSON: not qgisd?") from None


def fetch(admin: str, method: str, path: str, **query: str) -> Any:
    """Like `call`, where anything but success is a CtlError with the daemon's words."""
    status, content = call(admin, method, path, **query)
    if status >= 400 and isinstance(content, dict) and "detail" in content and "ok" not in content:
        raise CtlError(str(content["detail"]))
    return content


def project_path(name: str) -> str:
    """The REST path of a project."""
    return "/api/v1/projects/" + quote(name, safe="")


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as columns of text, as wide as their content."""
    if not rows:
        return "none"
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    lines = [[column.upper() for column in columns], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    return str(value) or "-"


def worker_rows(workers: list[dict[str, Any]]) -> str:
    """`ctl workers`."""
    rows = [
        worker | {"private": _mebibytes(worker["private_bytes"]), "gen": worker["generation"]}
        for worker in workers
    ]
    columns = ("pool", "id", "pid", "project", "gen", "state", "served", "age_s", "private",
               "request_class", "running_s", "request_id")  # fmt: skip
    return table(rows, columns)


def plugin_rows(plugins: list[dict[str, Any]]) -> str:
    """`ctl plugins`: a line each, and below it why it failed, or what is special about it."""
    remarks = [
        f"{plugin['name']}: {text}"
        for plugin in plugins
        for text in (plugin["error"], plugin["note"])
        if text
    ]
    return "\n".join([table(plugins, ("pool", "name", "version", "state")), *remarks])


def _mebibytes(size: int | None) -> str | None:
    return None if size is None else f"{size / (1 << 20):.0f} MiB"


def project_rows(projects: list[dict[str, Any]]) -> str:
    """`ctl projects`: a line each, and below it what needs to be read."""
    rows, remarks = [], []
    for project in projects:
        current = next(
            (one for one in project["generations"] if one["state"] == "serving"),
            next(iter(project["generations"]), None),
        )
        rows.append(
            project
            | {
                "gen": current["number"] if current else None,
                "mode": current["mode"] if current else None,
                "layers": current["layers"] if current else None,
                "bad": len(current["bad_layers"]) if current else None,
                "load_s": current["load_ms"] / 1000 if current else None,
                "warm": current["warmup"] if current else None,
                "workers": sum(one["workers"] for one in project["generations"]),
                "memory": _mebibytes(project["memory_bytes"]),
                "pin": "yes" if project["pinned"] else "",
            }
        )
        name = project["project"]
        if project["error"]:
            remarks.append(f"{name}: {project['error']}")
        if project["breaker"] != "closed":
            remarks.append(f"{name}: its breaker is {project['breaker']}: it failed too often")
        if current and current["why"]:
            remarks.append(f"{name}: loaded in each worker: {current['why']}")
        if current and current["warmup_why"]:
            done = current["warmup_detail"] or "nothing"
            remarks.append(f"{name}: warmed up by {done}: {current['warmup_why']}")
        for layer in current["bad_layers"] if current else []:
            remarks.append(
                f"{name}: bad layer {layer['name']} ({layer['provider']}): {layer['message']}"
            )
    columns = ("pool", "project", "state", "gen", "mode", "layers", "bad", "load_s", "warm",
               "memory", "workers", "queued", "requests", "errors", "pin")  # fmt: skip
    return "\n".join([table(rows, columns), *remarks])


def crash_text(crash: dict[str, Any]) -> str:
    """`ctl project NAME --last-crash`: what was lost, and the requests as commands to repeat."""
    lines = [
        f"{crash['project']}: worker {crash['worker']} ended at {_time(crash['when'])}: "
        f"{crash['reason']}, {crash['detail']}",
        "its last requests, oldest first; the last one was under way:",
    ]
    for seen in crash["requests"]:
        words = ["curl", "-sS", "-H", f"X-Request-Id: {seen['request_id']}"]
        if seen["method"] != "GET":
            words += ["-X", seen["method"]]
        if seen["body"]:
            words += ["--data-binary", seen["body"]]
        lines.append("  " + shlex.join([*words, seen["url"]]))
    return "\n".join([*lines, *crash["stack"].splitlines()])


def slow_rows(entries: list[dict[str, Any]]) -> str:
    """`ctl slowlog`: newest last, stacks below their line."""
    lines = []
    for entry in entries:
        lines.append(
            f"{_time(entry['when'])} {entry['seconds']:.1f} s {entry['outcome']}: "
            f"{entry['project']} {entry['request_class']} {entry['request_id']} {entry['url']}"
        )
        lines += [f"    {line}" for line in entry["stack"].splitlines()]
    return "\n".join(lines) or "none"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def stats_text(pools: list[dict[str, Any]]) -> str:
    """`ctl stats`."""
    rows = []
    for pool in pools:
        states = [worker["state"] for worker in pool["workers"]]
        rows.append(
            pool
            | {
                "projects": len(pool["projects"]),
                "workers": len(states),
                "idle": states.count("idle"),
                "busy": f"{pool['busy']}/{pool['slots']}",
                "requests": sum(project["requests"] for project in pool["projects"]),
                "errors": sum(project["errors"] for project in pool["projects"]),
                "retried": sum(project["retried"] for project in pool["projects"]),
            }
        )
    columns = ("pool", "zygote", "qgis", "projects", "workers", "idle", "busy", "queued",
               "requests", "errors", "retried")  # fmt: skip
    return table(rows, columns)


def outcome_rows(outcomes: list[dict[str, Any]]) -> str:
    """`ctl reload`, `load`, `drop-project`: what happened, a line each."""
    rows = [
        {
            "project": outcome["project"] or "(zygote)",
            "result": "ok" if outcome["ok"] else "FAILED",
            "detail": outcome["detail"],
        }
        for outcome in outcomes
    ]
    return table(rows, ("project", "result", "detail"))
