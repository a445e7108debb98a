"""A stand-in for py-qgis-server's package, for plugins that look for it.

Lizmap's plugin (3liz/qgis-lizmap-server-plugin 2.15.3, lizmap_server/context) tells by a mark on
its own package that py-qgis-server runs it, and then imports four names of that; Lizmap Web Client
refuses a server where it finds neither this nor QJazz, unless allowFcgi is on. Here are the mark
and the four names, saying what is so with qgisd.
"""

import configparser
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from qgisd import __version__

PACKAGE = "pyqgisserver"


class NoCache:
    """What py-qgis-server has as its cache of projects. Lizmap's plugin asks for it and does not
    use it; there is none here, since a process holds one project."""


def mark(package: ModuleType) -> None:
    """What py-qgis-server writes on each plugin, between import and serverClassFactory."""
    package._is_py_qgis_server = True  # type: ignore[attr-defined]


def install(loaded: Callable[[], dict[str, configparser.ConfigParser]]) -> None:
    """Make `pyqgisserver` and the modules below it that plugins import.

    loaded: name → metadata of the plugins that are loaded.
    """

    def plugin_list() -> Iterator[str]:
        return iter(loaded())

    def plugin_metadata(plugin: str) -> dict[str, dict[str, str]]:
        found = loaded().get(plugin)
        return {name: dict(found[name]) for name in found.sections()} if found else {}

    def get_cacheservice() -> NoCache:
        return NoCache()

    version = f"qgisd-{__version__}"
    contents: dict[str, dict[str, Any]] = {
        "": {},
        ".plugins": {"plugin_list": plugin_list, "plugin_metadata": plugin_metadata},
        ".qgscache": {},
        ".qgscache.cachemanager": {"get_cacheservice": get_cacheservice},
        ".version": {
            "__version__": version,
            "__manifest__": {"version": version, "commitid": "n/a", "buildid": "n/a"},
        },
    }
    for suffix, names in contents.items():
        module = ModuleType(PACKAGE + suffix, "Made by qgisd.")
        module.__path__ = []
        vars(module).update(names)
        sys.modules[module.__name__] = module
        above, _, last = module.__name__.rpartition(".")
        if above:
            setattr(sys.modules[above], last, module)
