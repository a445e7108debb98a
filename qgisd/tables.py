"""What `qgisd ctl` prints for people: tables that fit their terminal, and texts."""

import json
import shlex
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any

Row = dict[str, Any]

#: A column is not cut to less, nor its heading.
_LEAST, _LEAST_HEADING = 8, 4


def table(rows: Sequence[Row], columns: Sequence[str], width: int | None = None) -> str:
    """Rows as columns of text. Within `width` the name of the only pool is left out, headings are
    cut, columns stand closer, and at last the widest are cut; None: nothing of that."""
    if not rows:
        return "none"
    if width is not None and len({row.get("pool") for row in rows}) == 1:
        columns = [column for column in columns if column != "pool"] or columns
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    lines = [[column.upper() for column in columns], *cells]
    contents = [max(map(len, column)) for column in zip(*cells, strict=True)]
    widths = [max(pair) for pair in zip(map(len, columns), contents, strict=True)]
    gaps, gap = len(columns) - 1, "  "
    if width is not None:
        least = sum(max(content, _LEAST_HEADING) for content in contents)
        gap = "  " if least + 2 * gaps <= width else " "
        _shrink(widths, contents, width - len(gap) * gaps)
    return "\n".join(
        gap.join(
            cut(text, room).ljust(room) for text, room in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def _shrink(widths: list[int], contents: list[int], room: int) -> None:
    """Take from headings wider than what is below them, then from the widest columns, one by one,
    until all fit or nothing is left to take."""
    floors = [max(content, _LEAST_HEADING) for content in contents]
    spare = [max(0, have - floor) for have, floor in zip(widths, floors, strict=True)]
    while sum(widths) > room and any(spare):
        index = spare.index(max(spare))
        widths[index] -= 1
        spare[index] -= 1
    while sum(widths) > room:
        widest = max(range(len(widths)), key=widths.__getitem__)
        if widths[widest] <= _LEAST:
            return
        widths[widest] -= 1


def cut(text: str, room: int) -> str:
    """`text` in at most `room` characters. Of a path, the end tells more than the start."""
    if len(text) <= room:
        return text
    return "…" + text[len(text) - room + 1 :] if "/" in text else text[: room - 1] + "…"


def cell(value: Any) -> str:
    """One value; "-" for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.1f}"
    return plain(str(value)) or "-"


def plain(text: str) -> str:
    """Without what steers a terminal: names and errors come from files of anybody's."""
    return "".join(
        "?" if unicodedata.category(each) in ("Cc", "Cf") and each != "\t" else each
        for each in text
    )


def when(seconds: float) -> str:
    """A moment, in local time."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def size(number: int | None) -> str | None:
    """Bytes, as MiB."""
    return None if number is None else f"{number / (1 << 20):.0f} MiB"


def _share(used: int | None, limit: int | None) -> str | None:
    """Bytes used, of those that may be."""
    if used is None or limit is None:
        return None
    return f"{used >> 20}/{limit >> 20} MiB"


def stats_text(pools: list[Row], width: int | None = None) -> str:
    """`ctl stats`: a pool in a line."""
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
                "memory": _share(pool["memory_bytes"], pool["memory_limit_bytes"]),
                "requests": sum(project["requests"] for project in pool["projects"]),
                "errors": sum(project["errors"] for project in pool["projects"]),
                "retried": sum(project["retried"] for project in pool["projects"]),
            }
        )
    columns = ["pool", "zygote", "qgis", "projects", "workers", "idle", "busy", "queued",
               "memory", "requests", "errors", "retried"]  # fmt: skip
    if any(pool["draining"] for pool in pools):
        columns.append("draining")
    return table(rows, columns, width)


def worker_rows(workers: list[Row], width: int | None = None) -> str:
    """`ctl workers`."""
    rows = [
        worker | {"private": size(worker["private_bytes"]), "gen": worker["generation"]}
        for worker in workers
    ]
    columns = ("pool", "id", "pid", "project", "gen", "state", "served", "age_s", "private",
               "request_class", "running_s", "request_id")  # fmt: skip
    return table(rows, columns, width)


def plugin_rows(plugins: list[Row], width: int | None = None) -> str:
    """`ctl plugins`: a line each, and below it why it failed, or what is special about it."""
    remarks = [
        f"{plain(plugin['name'])}: {plain(text)}"
        for plugin in plugins
        for text in (plugin["error"], plugin["note"])
        if text
    ]
    return "\n".join([table(plugins, ("pool", "name", "version", "state"), width), *remarks])


def current(project: Row) -> Row | None:
    """The generation that serves, or else the first there is."""
    serving = [one for one in project["generations"] if one["state"] == "serving"]
    return next(iter([*serving, *project["generations"]]), None)


def project_rows(projects: list[Row], width: int | None = None) -> str:
    """`ctl projects`: a line each, and below it what needs to be read."""
    rows, remarks = [], []
    for project in projects:
        now = current(project)
        rows.append(
            project
            | {
                "gen": now["number"] if now else None,
                "mode": now["mode"] if now else None,
                "layers": now["layers"] if now else None,
                "bad": len(now["bad_layers"]) if now else None,
                "load_s": now["load_ms"] / 1000 if now else None,
                "warm": now["warmup"] if now else None,
                "workers": sum(one["workers"] for one in project["generations"]),
                "memory": size(project["memory_bytes"]),
                "pin": "yes" if project["pinned"] else "",
            }
        )
        remarks += [f"{project['project']}: {text}" for text in _remarks(project, now)]
    columns = ("pool", "project", "state", "gen", "mode", "layers", "bad", "load_s", "warm",
               "memory", "workers", "queued", "requests", "errors", "pin")  # fmt: skip
    return "\n".join([table(rows, columns, width), *map(plain, remarks)])


def _remarks(project: Row, now: Row | None) -> list[str]:
    found = []
    if project["error"]:
        found.append(project["error"])
    if project["breaker"] != "closed":
        found.append(f"its breaker is {project['breaker']}: it failed too often")
    if now and now["why"]:
        found.append(f"loaded in each worker: {now['why']}")
    if now and now["warmup_why"]:
        done = now["warmup_detail"] or "nothing"
        found.append(f"warmed up by {done}: {now['warmup_why']}")
    for layer in now["bad_layers"] if now else []:
        found.append(f"bad layer {layer['name']} ({layer['provider']}): {layer['message']}")
    return found


def project_text(project: Row, width: int | None = None) -> str:
    """`ctl project NAME`: as in `ctl projects`, how its workers ended, and its layers, the
    slowest to load first."""
    parts = [project_rows([project], width)]
    ended = ", ".join(f"{reason} {count}" for reason, count in project["ended"].items())
    if ended:
        parts.append(f"workers ended: {ended}")
    if project["answered"]:
        mean = project["run_s"] / project["answered"]
        parts.append(f"answers of workers: {project['answered']}, {mean * 1000:.0f} ms on average")
    layers = sorted(project["contents"], key=lambda layer: -(layer["load_ms"] or 0.0))
    if layers:
        rows = [layer | {"valid": "yes" if layer["valid"] else "NO"} for layer in layers]
        parts.append("\n" + table(rows, ("name", "provider", "valid", "load_ms", "id"), width))
    return "\n".join(parts)


def crash_text(crash: Row) -> str:
    """`ctl project NAME --last-crash`: what was lost, and the requests as commands to repeat."""
    lines = [
        f"{crash['project']}: worker {crash['worker']} ended at {when(crash['when'])}: "
        f"{crash['reason']}, {crash['detail']}",
        "its last requests, oldest first; the last one was under way:",
    ]
    for seen in crash["requests"]:
        # What clients sent is hostile: -g and --data-raw, as curl would read files of "@…".
        words = ["curl", "-gsS", "-H", f"X-Request-Id: {seen['request_id']}"]
        if seen["method"] != "GET":
            words += ["-X", seen["method"]]
        if seen["body"]:
            kinds = [value for name, value in seen["headers"] if name.lower() == "content-type"]
            words += ["-H", f"Content-Type: {', '.join(kinds)}", "--data-raw", seen["body"]]
        lines.append("  " + shlex.join([*words, seen["url"]]))
    return "\n".join(map(plain, [*lines, *crash["stack"].splitlines()]))


def slow_rows(entries: list[Row]) -> str:
    """`ctl slowlog`: newest last, stacks below their line."""
    lines = []
    for entry in entries:
        lines.append(
            f"{when(entry['when'])} {entry['seconds']:.1f} s {entry['outcome']}: "
            f"{entry['project']} {entry['request_class']} {entry['request_id']} {entry['url']}"
        )
        lines += [f"    {line}" for line in entry["stack"].splitlines()]
    return "\n".join(map(plain, lines)) or "none"


def result_rows(results: list[Row], width: int | None = None) -> str:
    """`ctl reload`, `load`, `pin`, `drop-project` …: what came of it, a line each."""
    rows = [
        {
            "project": result["project"] or "(zygote)",
            "result": "ok" if result["ok"] else "FAILED",
            "detail": result["detail"],
        }
        for result in results
    ]
    return table(rows, ("project", "result", "detail"), width)


def story_text(story: Row) -> str:
    """`ctl why ID`: how a request ended, or where it is, and where its time went."""
    ended = story["outcome"] if story["state"] == "ended" else f"{story['state']} now"
    generation = f" generation {story['generation']}" if story["generation"] else ""
    status = f", status {story['status']}" if story["status"] else ""
    reason = f", and that worker ended: {story['reason']}" if story["reason"] else ""
    worker = f"worker {story['worker']}" if story["worker"] else "no worker had it"
    tries = f", {story['attempts']} attempts" if story["attempts"] > 1 else ""
    lines = [
        f"request {story['request_id']}: {story['request_class']} of "
        f"{story['project']}{generation}, pool {story['pool']}",
        f"{when(story['when'])}  {ended}{status}, {story['bytes']:,} bytes",
        *([story["detail"]] if story["detail"] else []),
        f"  queue   {story['queue_ms']:12,.1f} ms",
        f"  load    {story['load_ms']:12,.1f} ms",
        f"  render  {story['render_ms']:12,.1f} ms  {worker}{tries}{reason}",
        f"  total   {story['total_ms']:12,.1f} ms",
        f"{story['method']} {story['url']}",
    ]
    return "\n".join(map(plain, lines))


def request_rows(stories: list[Row], width: int | None = None) -> str:
    """Requests in flight, those that take longest first."""
    rows = [
        story
        | {
            "class": story["request_class"],
            "seconds": story["total_ms"] / 1000,
            "worker": story["worker"] or None,
        }
        for story in sorted(stories, key=lambda story: -story["total_ms"])
    ]
    columns = ("request_id", "project", "class", "state", "seconds", "worker", "url")
    return table(rows, columns, width)


def killed_rows(killed: list[Row], width: int | None = None) -> str:
    """`ctl kill`."""
    return table(killed, ("pool", "worker", "request_id", "detail"), width)


def drain_rows(states: list[Row], width: int | None = None) -> str:
    """`ctl drain`, `undrain`."""
    rows = [state | {"takes": "nothing" if state["draining"] else "requests"} for state in states]
    return table(rows, ("pool", "takes", "busy", "queued"), width)


def event_line(event: Row) -> str:
    """`ctl events`: one, in a line."""
    about = " ".join(filter(None, (event["pool"], event["project"])))
    request = f" (request {event['request_id']})" if event["request_id"] else ""
    return plain(f"{when(event['time'])} {event['kind']:16} {about}: {event['text']}{request}")


def config_rows(report: Row, width: int | None = None) -> str:
    """`ctl config`: each value, and where it came from."""
    rows = [
        {"key": key, "value": _value(value), "from": report["sources"].get(key, "default")}
        for key, value in _leaves(report["config"], "")
    ]
    return table(rows, ("key", "value", "from"), width)


def _leaves(tree: Row, prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
