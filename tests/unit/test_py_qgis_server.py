"""The stand-in for py-qgis-server: the names that plugins import, and what they say."""

import configparser
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

import qgisd
from qgisd.worker import py_qgis_server


@pytest.fixture
def installed() -> Iterator[dict[str, configparser.ConfigParser]]:
    """The loaded plugins; the stand-in is gone afterwards."""
    loaded: dict[str, configparser.ConfigParser] = {}
    py_qgis_server.install(lambda: loaded)
    yield loaded
    for name in [name for name in sys.modules if name.split(".")[0] == py_qgis_server.PACKAGE]:
        del sys.modules[name]


def test_the_names_are_where_they_are_looked_for(
    installed: dict[str, configparser.ConfigParser],
) -> None:
    version = importlib.import_module("pyqgisserver.version")
    assert version.__version__ == f"qgisd-{qgisd.__version__}"
    assert version.__manifest__.get("commitid") == "n/a"
    # Lizmap takes one with any of these words in it for unstable.
    assert not any(word in version.__version__ for word in ("pre", "alpha", "beta", "rc"))
    cache = importlib.import_module("pyqgisserver.qgscache.cachemanager")
    assert isinstance(cache.get_cacheservice(), py_qgis_server.NoCache)
    assert importlib.import_module("pyqgisserver").qgscache.cachemanager is cache


def test_plugins_are_those_that_are_loaded_when_asked(
    installed: dict[str, configparser.ConfigParser],
) -> None:
    plugins = importlib.import_module("pyqgisserver.plugins")
    assert list(plugins.plugin_list()) == []
    metadata = configparser.ConfigParser()
    metadata.read_string("[general]\nname=A plugin\ncommitNumber=3\n")
    installed["a"] = metadata
    assert list(plugins.plugin_list()) == ["a"]
    assert plugins.plugin_metadata("a") == {"general": {"name": "A plugin", "commitnumber": "3"}}
    assert plugins.plugin_metadata("b") == {}


def test_a_plugin_is_marked_as_py_qgis_server_marks_it() -> None:
    package = ModuleType("lizmap_server")
    py_qgis_server.mark(package)
    assert hasattr(package, "_is_py_qgis_server")
