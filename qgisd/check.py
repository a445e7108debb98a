"""`qgisd check`: what is missing on this machine, in plain words, and how to get it.

QGIS is looked at from a process of its own: the daemon's side never imports it.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qgisd.config import Config, Pool

#: Runs in another process, with the interpreter that zygotes get. Prints one JSON object.
_PROBE = """
import json, sys
found = {}
try:
    from qgis.core import Qgis, QgsApplication
    found["qgis"] = Qgis.QGIS_VERSION
    from qgis.server import QgsServer
    from qgis.PyQt.QtGui import QFontDatabase
    application = QgsApplication([], False)
    server = QgsServer()
    registry = server.serverInterface().serviceRegistry()
    found["services"] = [n for n in ("WMS", "WFS", "WCS", "WMTS") if registry.getService(n)]
    database = QFontDatabase() if hasattr(QFontDatabase(), "families") else QFontDatabase
    found["fonts"] = len(database.families())
except ImportError as error:
    found["missing"] = str(error)
print("\\n" + json.dumps(found), flush=True)
import os
os._exit(0)
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    ok: bool
    what: str
    #: What to do about it; "" where nothing is to be done.
    mend: str = ""


def run(config: Config) -> list[Finding]:
    """Look at everything the configuration needs."""
    findings: list[Finding] = []
    if any(pool.backend == "qgis" for pool in config.all_pools().values()):
        findings += _qgis()
    for name, pool in config.all_pools().items():
        for prefix, folder in pool.projects.roots.items():
            findings.append(_root(name, prefix, Path(folder)))
        homes = [Path(home) for home in _plugin_path(pool).split(":") if home]
        for home in homes:
            findings += _plugins(name, home)
        findings += [
            Finding(
                False,
                f"pool {name}: the required plugin {plugin} is not below plugin_path",
                "install it there, or take it out of pool.qgis.required_plugins",
            )
            for plugin in pool.qgis.required_plugins
            if not any((home / plugin / "metadata.txt").exists() for home in homes)
        ]
    for listen in (config.http.listen, config.admin.listen):
        if listen.startswith("unix:"):
            findings.append(_socket_folder(Path(listen[5:]).parent))
    return findings


def _qgis() -> list[Finding]:
    install = "apt-get install --no-install-recommends python3-qgis qgis-server"
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen", "QGIS_SERVER_LOG_LEVEL": "2"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        found = json.loads(done.stdout.decode().strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return [
            Finding(False, "QGIS does not start", f"try: QT_QPA_PLATFORM=offscreen {sys.executable}"
                    " -c 'from qgis.server import QgsServer; QgsServer()'")
        ]  # fmt: skip
    if "missing" in found:
        why = (
            f"{install}; and run qgisd with /usr/bin/python3 (a virtual environment needs "
            "--system-site-packages): PyQGIS belongs to the interpreter of the distribution"
        )
        return [Finding(False, f"no PyQGIS for {sys.executable}: {found['missing']}", why)]
    findings = [Finding(True, f"QGIS {found['qgis']} for {sys.executable}")]
    lacking = sorted({"WMS", "WFS", "WCS", "WMTS"} - set(found["services"]))
    if lacking:
        findings.append(Finding(False, f"no service modules for {', '.join(lacking)}", install))
    else:
        findings.append(Finding(True, f"services {', '.join(found['services'])}"))
    if found["fonts"]:
        findings.append(Finding(True, f"{found['fonts']} font families"))
    else:
        findings.append(
            Finding(False, "no fonts: labels would be empty", "apt-get install fonts-dejavu-core")
        )
    return findings


def _root(pool: str, prefix: str, folder: Path) -> Finding:
    what = f"pool {pool}: root {prefix} is {folder}"
    if not folder.is_dir():
        return Finding(False, f"{what}, which is no folder", f"mkdir -p {folder}")
    if not os.access(folder, os.R_OK | os.X_OK):
        return Finding(False, f"{what}, which this user cannot read", f"chmod o+rx {folder}")
    projects = sum(1 for suffix in ("qgs", "qgz") for _ in folder.rglob(f"*.{suffix}"))
    return Finding(True, f"{what}, with {projects} projects")


def _plugin_path(pool: Pool) -> str:
    """As a zygote has it (worker/qgis_server.py)."""
    variable = "QGIS_PLUGINPATH"
    given = pool.qgis.env.get(variable) or os.environ.get(variable, "")
    return pool.qgis.plugin_path or given


def _plugins(pool: str, folder: Path) -> list[Finding]:
    if not folder.is_dir():
        return [Finding(False, f"pool {pool}: plugin folder {folder} is not there")]
    findings = []
    for plugin in sorted(path for path in folder.iterdir() if path.is_dir()):
        if plugin.name.startswith(".") or plugin.name == "__pycache__":
            continue  # git's and Python's own
        metadata = plugin / "metadata.txt"
        what = f"pool {pool}: plugin {plugin.name}"
        if not metadata.exists():
            findings.append(Finding(False, f"{what} has no metadata.txt", f"remove {plugin}"))
        elif "server=true" not in metadata.read_text(errors="replace").lower().replace(" ", ""):
            findings.append(Finding(True, f"{what} is not for servers (no server=True)"))
        else:
            findings.append(Finding(True, f"{what} is for servers"))
    return findings


def _socket_folder(folder: Path) -> Finding:
    nearest = folder
    while not nearest.exists():
        nearest = nearest.parent
    if os.access(nearest, os.W_OK | os.X_OK):
        return Finding(True, f"sockets can be made in {folder}")
    return Finding(
        False,
        f"this user cannot make sockets in {folder}",
        "systemd makes it (RuntimeDirectory=qgisd); by hand, set admin.listen to another path",
    )
