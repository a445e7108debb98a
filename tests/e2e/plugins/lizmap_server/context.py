"""Who runs this plugin: py-qgis-server, or QGIS's own executable."""

import sys


def describe() -> dict[str, object]:
    """The "py_qgis_server" part of server.json, which Lizmap Web Client looks at."""
    if not hasattr(sys.modules["lizmap_server"], "_is_py_qgis_server"):
        return {"found": False, "version": "not used"}
    from pyqgisserver.qgscache.cachemanager import get_cacheservice
    from pyqgisserver.version import __manifest__, __version__

    assert get_cacheservice() is not None
    return {
        "found": True,
        "name": "Py-QGIS-Server",
        "version": __version__,
        "build_id": __manifest__.get("buildid"),
        "commit_id": __manifest__.get("commitid"),
        "stable": not any(word in __version__ for word in ("pre", "alpha", "beta", "rc")),
    }


def installed_plugins(keys: tuple[str, ...]) -> dict[str, dict[str, object]]:
    """Name → some of its metadata, as whoever runs us tells."""
    if hasattr(sys.modules["lizmap_server"], "_is_py_qgis_server"):
        from pyqgisserver.plugins import plugin_list, plugin_metadata

        found = {name: plugin_metadata(name)["general"] for name in plugin_list()}
    else:
        from qgis.utils import pluginMetadata, server_active_plugins

        found = {
            name: {key.lower(): pluginMetadata(name, key) for key in keys}
            for name in server_active_plugins
        }
    return {
        name: {key: general.get(key.lower()) for key in keys} for name, general in found.items()
    }
