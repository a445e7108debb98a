"""Server plugins, loaded in the zygote, once, for all its forks, as QGIS Server finds them.

A plugin is a folder below `plugin_path` whose metadata.txt says `server=True` and whose package
has `serverClassFactory(serverIface)`.
"""

import configparser
import importlib
import sys
import traceback
from pathlib import Path

import qgis.utils
from qgis.server import QgsServerInterface


def find(plugin_path: str) -> dict[str, Path]:
    """Name → folder of every server plugin below the colon-separated folders."""
    found: dict[str, Path] = {}
    for folder in filter(None, plugin_path.split(":")):
        for metadata in sorted(Path(folder).glob("*/metadata.txt")):
            if _is_for_servers(metadata):
                found.setdefault(metadata.parent.name, metadata.parent)
    return found


def _is_for_servers(metadata: Path) -> bool:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(metadata, encoding="utf-8")
        return parser.getboolean("general", "server", fallback=False)
    except (configparser.Error, ValueError, OSError, UnicodeDecodeError):
        return False


def load_all(plugin_path: str, interface: QgsServerInterface) -> dict[str, str]:
    """Load each; name → "loaded", or what it threw. One that throws does not stop the pool."""
    qgis.utils.serverIface = interface
    states: dict[str, str] = {}
    for name, folder in find(plugin_path).items():
        if str(folder.parent) not in sys.path:
            sys.path.insert(0, str(folder.parent))
        try:
            package = importlib.import_module(name)
            qgis.utils.plugins[name] = package.serverClassFactory(interface)
            qgis.utils.server_active_plugins.append(name)
            states[name] = "loaded"
        except Exception as error:
            traceback.print_exc()
            states[name] = f"failed: {type(error).__name__}: {error}"[:500]
    return states
