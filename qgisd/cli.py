"""The command line: `qgisd serve`, `qgisd check`, `qgisd ctl VERB`.

Exit codes: 0 done, 1 it failed, 2 the command or the configuration is wrong.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from qgisd import __version__, config, ctl
from qgisd.errors import ConfigError

_FILE = click.option(
    "-c", "--config", "path", type=click.Path(path_type=Path), help="Configuration file."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qgisd")
def main() -> None:
    """Serve QGIS projects from a supervised tree of QGIS processes."""


def _load(
    path: Path | None, flags: dict[str, Any] | None = None, forgiving: bool = False
) -> config.Loaded:
    try:
        return config.load(path, os.environ, flags, forgiving)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"qgisd: {problem}", err=True)
        sys.exit(2)


@main.command()
@_FILE
@click.option("--listen", help="Overrides http.listen.")
def serve(path: Path | None, listen: str | None) -> None:
    """Run in the foreground until SIGTERM; systemd runs this."""
    from qgisd import daemon

    sys.exit(daemon.serve(_load(path, {"http.listen": listen} if listen else None)))


@main.command()
@_FILE
def check(path: Path | None) -> None:
    """Is the configuration valid, and is all there that serving needs?"""
    from qgisd import check as checks

    loaded = _load(path)
    findings = checks.run(loaded.config)
    for finding in findings:
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.what}")
        if finding.mend:
            click.echo(f"     {finding.mend}")
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


@main.command()
@click.argument("old", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def migrate(old: Path) -> None:
    """Print the configuration that does what OLD did, a file of py-qgis-server.

    OLD is its INI file, or a file of QGSRV_… variables. What has no counterpart is said in
    comments, and on standard error.
    """
    from qgisd import migrate as migration

    try:
        keys = migration.read(old)
        done = migration.translate(keys, lambda name: (old.parent / name).read_text("utf-8"))
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"qgisd: {old}: {problem}", err=True)
        sys.exit(2)
    for remark in done.remarks:
        click.echo(f"qgisd: {remark}", err=True)
    click.echo(done.toml(), nl=False)


@main.group(name="ctl")
@_FILE
@click.option("--admin", help="Admin listener; by default that of the configuration.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
@click.pass_context
def control(context: click.Context, path: Path | None, admin: str | None, as_json: bool) -> None:
    """Look at a running daemon, and tell it what to do."""
    context.obj = (admin or _load(path, forgiving=True).config.admin.listen, as_json)


def _call(context: click.Context, method: str, path: str, **query: str) -> Any:
    try:
        return ctl.fetch(context.obj[0], method, path, **query)
    except ctl.CtlError as error:
        click.echo(f"qgisd: {error}", err=True)
        sys.exit(1)


def _show(context: click.Context, content: Any, text: str) -> None:
    click.echo(json.dumps(content, indent=2) if context.obj[1] else text)


@control.command()
@click.pass_context
def stats(context: click.Context) -> None:
    """Pools in one line each."""
    content = _call(context, "GET", "/api/v1/stats")
    _show(context, content, ctl.stats_text(content))


@control.command()
@click.pass_context
def workers(context: click.Context) -> None:
    """Worker processes and what they do."""
    content = _call(context, "GET", "/api/v1/workers")
    _show(context, content, ctl.worker_rows(content))


@control.command()
@click.pass_context
def plugins(context: click.Context) -> None:
    """Server plugins, and whether they were loaded."""
    content = _call(context, "GET", "/api/v1/plugins")
    _show(context, content, ctl.plugin_rows(content))


@control.command()
@click.pass_context
def projects(context: click.Context) -> None:
    """Projects, their generations and errors."""
    content = _call(context, "GET", "/api/v1/projects")
    _show(context, content, ctl.project_rows(content))


@control.command()
@click.argument("project")
@click.option("--last-crash", is_flag=True, help="The last worker it lost over a request.")
@click.pass_context
def project(context: click.Context, project: str, last_crash: bool) -> None:
    """One project."""
    if last_crash:
        content = _call(context, "GET", ctl.project_path(project) + "/last-crash")
        _show(context, content, ctl.crash_text(content))
        return
    content = _call(context, "GET", ctl.project_path(project))
    _show(context, content, ctl.project_rows([content]))


@control.command()
@click.argument("project")
@click.option("--pin", is_flag=True, help="Keep it loaded, with a spare worker.")
@click.pass_context
def load(context: click.Context, project: str, pin: bool) -> None:
    """Load a project before anybody asks for it."""
    query = {"pin": "true"} if pin else {}
    content = _call(context, "POST", ctl.project_path(project), **query)
    _show(context, content, ctl.outcome_rows([content]))
    sys.exit(0 if content["ok"] else 1)


@control.command()
@click.argument("project", required=False)
@click.pass_context
def reload(context: click.Context, project: str | None) -> None:
    """Load PROJECT anew, or QGIS, plugins and all projects; returns when it is done."""
    query = {"project": project} if project else {}
    content = _call(context, "POST", "/api/v1/reload", **query)
    _show(context, content, ctl.outcome_rows(content))
    sys.exit(0 if all(row["ok"] for row in content) else 1)


@control.command("drop-project")
@click.argument("project")
@click.pass_context
def drop_project(context: click.Context, project: str) -> None:
    """Unload a project; the next request loads it again."""
    content = _call(context, "DELETE", ctl.project_path(project))
    _show(context, content, ctl.outcome_rows([content]))


@control.command()
@click.pass_context
def slowlog(context: click.Context) -> None:
    """Requests that were slow, or ended at their deadline, with what they were stuck in."""
    content = _call(context, "GET", "/api/v1/slowlog")
    _show(context, content, ctl.slow_rows(content))


@control.command()
@click.pass_context
def health(context: click.Context) -> None:
    """How the daemon itself is."""
    content = _call(context, "GET", "/api/v1/health")
    _show(context, content, "\n".join(f"{name}: {value}" for name, value in content.items()))


@control.command("config")
@click.pass_context
def show_config(context: click.Context) -> None:
    """The configuration in force, and where each value came from."""
    content = _call(context, "GET", "/api/v1/config")
    click.echo(json.dumps(content, indent=2))
