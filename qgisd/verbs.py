"""The verbs of `qgisd ctl`: each is one or two calls of the REST API, and a table.

Exit codes: 0 done, 1 it failed or was refused, 2 the command or the configuration is wrong,
3 nobody answers there, 4 not allowed.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from qgisd import config, ctl, tables
from qgisd.errors import ConfigError

#: Where a token is looked for; a command line is seen by all users of a machine.
TOKEN_VARIABLE = "QGISD_ADMIN_TOKEN"
_LOOK_S = 0.2
#: Nobody waits for longer after a TAB.
_COMPLETION_S = 2.0
_HARMLESS = re.compile(r"[\w./@+,:=-]+")


@dataclass
class Client:
    """What the options of `ctl` say."""

    admin: str
    token: str
    pool: str | None
    as_json: bool
    #: Columns that tables may take; None: as many as they like.
    width: int | None

    def call(self, method: str, path: str, **query: str) -> Any:
        """One call, of the pool if one is named. Ends the command with a message if it fails."""
        if self.pool is not None:
            query["pool"] = self.pool
        try:
            return ctl.fetch(self.admin, method, "/api/v1" + path, self.token, **query)
        except ctl.CtlError as error:
            stop(error)

    def show(self, content: Any, text: str) -> None:
        """As JSON, or for people."""
        click.echo(json.dumps(content, indent=2) if self.as_json else text)


def stop(error: ctl.CtlError) -> Any:
    """End the command with the words and the code of an error."""
    click.echo(f"qgisd: {tables.plain(str(error))}", err=True)
    sys.exit(error.code)


def _terminal() -> int | None:
    """Columns of the terminal; None where there is none, so that a pipe gets all."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _read_token(path: Path | None) -> str:
    if path is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        return path.read_text(encoding="utf-8").split()[0]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise click.BadParameter(f"{path}: {error or 'is empty'}") from None


class _Verbs(click.Group):
    """Its verbs take --json as well, as one is used to write it there."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params.append(
            click.Option(
                ["--json"],
                is_flag=True,
                expose_value=False,
                callback=_as_json,
                help="JSON instead of tables.",
            )
        )
        super().add_command(cmd, name)


def _as_json(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    # While a shell completes, nobody has made a client.
    if wanted and isinstance(context.obj, Client):
        context.obj.as_json = True


@click.group(name="ctl", cls=_Verbs)
@click.option("-c", "--config", "path", type=click.Path(path_type=Path), help="Configuration file.")
@click.option("--admin", help="Admin listener; by default that of the configuration.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help=f"File with a token, for a listener on TCP; otherwise ${TOKEN_VARIABLE} is used.",
)
@click.option("--pool", help="Only this pool.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
@click.option(
    "--width",
    type=click.IntRange(min=20),
    help="Columns that tables may take; by default those of the terminal, in a pipe all they need.",
)
@click.pass_context
def control(
    context: click.Context,
    path: Path | None,
    admin: str | None,
    token_file: Path | None,
    pool: str | None,
    as_json: bool,
    width: int | None,
) -> None:
    """Look at a running daemon, and tell it what to do.

    Exit codes: 0 done, 1 it failed or was refused, 2 the command or the configuration is wrong,
    3 no daemon answers there, 4 not allowed.
    """
    token = _read_token(token_file)
    if admin is None:
        admin, own = _configured(path)
        token = token or own
    context.obj = Client(admin, token, pool, as_json, width or _terminal())


def _configured(path: Path | None) -> tuple[str, str]:
    """The listener, and a token for one on TCP if its secret is ours to read: `systemctl reload` is
    a `ctl` with the daemon's user and credentials."""
    try:
        admin = config.load(path, os.environ, None, True).config.admin
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"qgisd: {problem}", err=True)
        sys.exit(2)
    if admin.listen.startswith("unix:") or not admin.tokens:
        return admin.listen, ""
    return admin.listen, admin.tokens[0].get_secret_value()


def _known_projects(context: click.Context, _: click.Parameter, begun: str) -> list[str]:
    """For the shell's completion: nothing, rather than an error, and soon.

    Shells take names as they are: what they would expand or run is not offered.
    """
    ctl.SILENCE_S = _COMPLETION_S
    options = context.parent.params if context.parent is not None else {}
    try:
        admin, token = options.get("admin"), _read_token(options.get("token_file"))
        if not admin:
            admin, own = _configured(options.get("path"))
            token = token or own
        rows = ctl.fetch(admin, "GET", "/api/v1/projects", token)
        names = [row["project"] for row in rows]
        return [name for name in names if name.startswith(begun) and _HARMLESS.fullmatch(name)]
    except (ctl.CtlError, click.ClickException, SystemExit):
        return []


_PROJECT = click.argument("project", shell_complete=_known_projects)


def _path(project: str, below: str = "") -> str:
    return f"/projects/{quote(project, safe='')}{below}"


# looking


def _looks(name: str, path: str, text: Callable[[Any, int | None], str], about: str) -> None:
    """A verb that shows what one path says."""

    @control.command(name, help=about)
    @click.pass_obj
    def verb(client: Client) -> None:
        content = client.call("GET", path)
        client.show(content, text(content, client.width))


_looks("stats", "/stats", tables.stats_text, "Pools in one line each.")
_looks("workers", "/workers", tables.worker_rows, "Worker processes and what they do.")
_looks("projects", "/projects", tables.project_rows, "Projects, their generations and errors.")
_looks("requests", "/requests", tables.request_rows, "Requests that have not ended.")
_looks("plugins", "/plugins", tables.plugin_rows, "Server plugins, and whether they were loaded.")
_looks(
    "slowlog",
    "/slowlog",
    lambda entries, _: tables.slow_rows(entries),
    "Requests that are or were slow, or ended at their deadline, with what they were stuck in.",
)
_looks(
    "health",
    "/health",
    lambda report, _: "\n".join(f"{name}: {value}" for name, value in report.items()),
    "How the daemon itself is.",
)
_looks(
    "config",
    "/config",
    tables.config_rows,
    "The configuration in force, and where each value came from.",
)


@control.command()
@_PROJECT
@click.option("--last-crash", is_flag=True, help="The last worker it lost over a request.")
@click.pass_obj
def project(client: Client, project: str, last_crash: bool) -> None:
    """One project, with its layers."""
    if last_crash:
        content = client.call("GET", _path(project, "/last-crash"))
        client.show(content, tables.crash_text(content))
        return
    content = client.call("GET", _path(project))
    client.show(content, tables.project_text(content, client.width))


@control.command()
@click.argument("request_id")
@click.pass_obj
def why(client: Client, request_id: str) -> None:
    """The story of one request: queue, load, render, bytes, worker, and how it ended.

    REQUEST_ID is what X-Request-Id said, in the answer or in the log.
    """
    content = client.call("GET", f"/requests/{quote(request_id, safe='')}")
    client.show(content, tables.story_text(content))


@control.command()
@click.option("--since", type=int, help="First what came after the event of this number.")
@click.pass_obj
def events(client: Client, since: int | None) -> None:
    """What happens, as it happens, until Ctrl-C."""
    query = {"stats": "false"} | ({} if since is None else {"since": str(since)})
    try:
        for _, event in ctl.events(client.admin, client.token, **query):
            if client.pool in (None, event["pool"]):
                click.echo(json.dumps(event) if client.as_json else tables.event_line(event))
    except KeyboardInterrupt:
        return
    except ctl.CtlError as error:
        stop(error)


@control.command()
@click.option("--once", is_flag=True, help="One picture, and no more.")
@click.option(
    "--interval", type=click.FloatRange(0.2, 60), default=2.0, show_default=True, help="Seconds."
)
@click.pass_obj
def top(client: Client, once: bool, interval: float) -> None:
    """Pools, what is busy, and the requests that take longest; refreshed until Ctrl-C."""
    before: dict[tuple[str, str], Any] = {}
    looked = time.monotonic()
    try:
        while True:
            pools, stories = client.call("GET", "/stats"), client.call("GET", "/requests")
            now = time.monotonic()
            if client.as_json:
                click.echo(json.dumps({"pools": pools, "requests": stories}))
            else:
                _draw(_picture(pools, stories, before, now - looked, client.width), once)
            if once:
                return
            before, looked = {(row["pool"], row["project"]): row for row in _projects(pools)}, now
            time.sleep(interval)
    except KeyboardInterrupt:
        return


def _projects(pools: list[Any]) -> list[Any]:
    return [project for pool in pools for project in pool["projects"]]


def _picture(
    pools: list[Any],
    stories: list[Any],
    before: dict[tuple[str, str], Any],
    seconds: float,
    room: int | None,
) -> str:
    rows = []
    for row in _projects(pools):
        old = before.get((row["pool"], row["project"]))
        per_s = latency = None
        if old is not None:
            per_s = (row["requests"] - old["requests"]) / seconds
            answered = row["answered"] - old["answered"]
            latency = 1000 * (row["run_s"] - old["run_s"]) / answered if answered > 0 else None
        busy = sum(story["state"] == "running" and story["pool"] == row["pool"]
                   and story["project"] == row["project"] for story in stories)  # fmt: skip
        rows.append(
            row
            | {
                "busy": busy,
                "workers": sum(one["workers"] for one in row["generations"]),
                "memory": tables.size(row["memory_bytes"]),
                "req/s": per_s,
                "mean_ms": latency,
            }
        )
    rows.sort(key=lambda row: (-row["busy"], -row["queued"], -(row["req/s"] or 0), row["project"]))
    columns = ("project", "state", "busy", "queued", "workers", "memory", "req/s", "mean_ms",
               "requests", "errors")  # fmt: skip
    return "\n".join(
        [
            tables.stats_text(pools, room),
            "",
            tables.request_rows(stories, room) if stories else "no requests under way",
            "",
            tables.table(rows, columns, room),
        ]
    )


def _draw(text: str, once: bool) -> None:
    if once or not sys.stdout.isatty():
        click.echo(text)
        return
    lines = text.splitlines()[: shutil.get_terminal_size().lines - 1]
    click.clear()
    click.echo("\n".join(lines))


# acting


def _results(client: Client, content: Any) -> None:
    """Show what came of orders; fail if one did."""
    rows = content if isinstance(content, list) else [content]
    client.show(content, tables.result_rows(rows, client.width))
    sys.exit(0 if all(row["ok"] for row in rows) else 1)


@control.command()
@_PROJECT
@click.option("--pin", is_flag=True, help="Keep it loaded, with a spare worker.")
@click.pass_obj
def load(client: Client, project: str, pin: bool) -> None:
    """Load a project before anybody asks for it."""
    _results(client, client.call("POST", _path(project), **({"pin": "true"} if pin else {})))


@control.command()
@click.argument("project", required=False, shell_complete=_known_projects)
@click.pass_obj
def reload(client: Client, project: str | None) -> None:
    """Load PROJECT anew, or QGIS, plugins and all projects; returns when it is done."""
    query = {"project": project} if project else {}
    _results(client, client.call("POST", "/reload", **query))


@control.command()
@_PROJECT
@click.pass_obj
def pin(client: Client, project: str) -> None:
    """Keep a project loaded, with a spare worker, until the daemon ends."""
    _results(client, client.call("PUT", _path(project, "/pin")))


@control.command()
@_PROJECT
@click.pass_obj
def unpin(client: Client, project: str) -> None:
    """Keep a project no longer than it is used; it is not unloaded by this."""
    _results(client, client.call("DELETE", _path(project, "/pin")))


@control.command("drop-project")
@_PROJECT
@click.pass_obj
def drop_project(client: Client, project: str) -> None:
    """Unload a project; the next request loads it again."""
    _results(client, client.call("DELETE", _path(project)))


@control.command()
@click.argument("what", type=click.Choice(["worker", "request"]))
@click.argument("number_or_id")
@click.pass_obj
def kill(client: Client, what: str, number_or_id: str) -> None:
    """End a worker by its number, or a request by its id; its client gets an error."""
    content = client.call("DELETE", f"/{what}s/{quote(number_or_id, safe='')}")
    rows = content if isinstance(content, list) else [content]
    client.show(content, tables.killed_rows(rows, client.width))


@control.command()
@click.option("--wait", is_flag=True, help="Return when what runs has come to its end.")
@click.pass_obj
def drain(client: Client, wait: bool) -> None:
    """Take no new requests (503, and /readyz says so); what runs comes to its end."""
    content = client.call("POST", "/drain")
    while wait and client.call("GET", "/requests"):
        time.sleep(_LOOK_S)
    client.show(content, tables.drain_rows(content, client.width))


@control.command()
@click.pass_obj
def undrain(client: Client) -> None:
    """Take requests again."""
    content = client.call("POST", "/undrain")
    client.show(content, tables.drain_rows(content, client.width))
