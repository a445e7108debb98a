"""The command line: `qgisd serve`, `qgisd check`, `qgisd ctl VERB`.

Exit codes: 0 done, 1 it failed, 2 the command or the configuration is wrong; those of `ctl` are
in `verbs.py`.
"""

import os
import sys
from pathlib import Path
from typing import Any

import click

from qgisd import __version__, config
from qgisd.errors import ConfigError
from qgisd.verbs import control

_FILE = click.option(
    "-c", "--config", "path", type=click.Path(path_type=Path), help="Configuration file."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qgisd")
def main() -> None:
    """Serve QGIS projects from a supervised tree of QGIS processes."""


def _load(path: Path | None, flags: dict[str, Any] | None = None) -> config.Loaded:
    try:
        return config.load(path, os.environ, flags)
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


main.add_command(control)
