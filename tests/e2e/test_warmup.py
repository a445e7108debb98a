"""Warm snapshots with real QGIS: what is asked of them, by whom it is seen, and what it changes.

That answers stay those of a plain server is shown by the parity suite, which runs warmed up.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qgisd.worker import warmup
from tests.e2e.helpers import ProjectSet
from tests.support import Daemon

StartDaemon = Callable[..., Daemon]

#: Notes what it sees; keeps documents by parameters alone, as many plugins do; fails now and then.
PLUGIN = """
import json, os
from qgis.PyQt.QtCore import QByteArray
from qgis.server import QgsServerCacheFilter, QgsServerFilter

SEEN = os.path.join(os.path.dirname(__file__), "seen")
kept = {}

class Notes(QgsServerFilter):
    def requestReady(self):
        handler = self.serverInterface().requestHandler()
        note = {"parameters": handler.parameterMap(), "headers": handler.requestHeaders()}
        with open(SEEN, "a") as file:
            file.write(json.dumps(note) + "\\n")
        if "map" == handler.parameterMap().get("QGISD_WARMUP"):
            raise RuntimeError("no map for nobody")

class Kept(QgsServerCacheFilter):
    def key(self, request):
        return json.dumps(sorted(request.parameters().items()))

    def getCachedDocument(self, project, request, key):
        return kept.get(self.key(request), QByteArray())

    def setCachedDocument(self, document, project, request, key):
        kept[self.key(request)] = document.toByteArray()
        return True

def serverClassFactory(interface):
    interface.registerFilter(Notes(interface), 1)
    interface.registerServerCache(Kept(interface), 1)
    return Notes
"""

CAPABILITIES = {"SERVICE": "WMS", "VERSION": "1.3.0", "REQUEST": "GetCapabilities"}
MAP = {
    "SERVICE": "WMS", "VERSION": "1.3.0", "REQUEST": "GetMap", "STYLES": "", "CRS": "EPSG:4326",
    "BBOX": "-90,-180,90,180", "WIDTH": 100, "HEIGHT": 50, "FORMAT": "image/png",
}  # fmt: skip


def test_a_snapshot_is_warmed_up_and_plugins_know_it(
    real_daemons: StartDaemon, demo: ProjectSet, roots: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugins" / "notes"
    plugin.mkdir(parents=True)
    (plugin / "metadata.txt").write_text("[general]\nname=notes\nserver=True\n")
    (plugin / "__init__.py").write_text(PLUGIN)
    daemon = real_daemons(
        roots,
        pool='warmup = "map"\nwarmup_s = 60',
        extra=f'[pool.qgis]\nplugin_path = "{plugin.parent}"',
    )
    answer = daemon.ows(demo.name, **CAPABILITIES)
    assert answer.status == 200
    assert b"<WMS_Capabilities" in answer.body
    assert warmup.HOST.encode() not in answer.body
    # The plugin keeps it, by its parameters; a warm-up's would have been found there.
    kept = daemon.ows(demo.name, **CAPABILITIES)
    assert kept.body.partition(b"?>")[2] == answer.body.partition(b"?>")[2]
    picture = daemon.ows(demo.name, **MAP, LAYERS=demo.vector)
    assert picture.body.startswith(b"\x89PNG")
    (project,) = [row for row in daemon.api("GET", "/api/v1/projects") if row["requests"]]
    (generation,) = project["generations"]
    assert (generation["mode"], generation["warmup"]) == ("forked", "map")
    assert generation["warmup_why"] == ""
    notes = [json.loads(line) for line in (plugin / "seen").read_text().splitlines()]
    marked = [note["parameters"] for note in notes if "QGISD_WARMUP" in note["parameters"]]
    kinds = [(each["QGISD_WARMUP"], each["SERVICE"], each["REQUEST"]) for each in marked]
    assert set(kinds) == {
        ("capabilities", "WMS", "GetCapabilities"),
        ("capabilities", "WFS", "GetCapabilities"),
        ("map", "WMS", "GetMap"),
    }
    # Each in the rehearsal, and again in the snapshot.
    assert all(kinds.count(kind) % 2 == 0 for kind in kinds)
    for note in notes:
        ours = "QGISD_WARMUP" in note["parameters"]
        assert (note["headers"].get("Host") == warmup.HOST) is ours
        if ours:
            assert set(note["headers"]) <= {"Host", "User-Agent"}


@pytest.mark.parametrize(
    ("provider", "source", "remote"),
    [
        ("ogr", "/srv/data/world.gpkg|layername=countries", False),
        ("postgres", "service='gis' key='id' table=\"public\".\"roads\" (geom)", False),
        ("delimitedtext", "file:///srv/data/places.csv?xField=x&yField=y", False),
        ("memory", "Point?crs=EPSG:4326", False),
        ("wms", "contextualWMSLegend=0&url=https://tiles.example/wms&layers=a", True),
        ("WFS", "pagingEnabled='true' url='http://wfs.example' typename='a'", True),
        ("OAPIF", "url='somewhere' typename='a'", True),
        ("gdal", "/vsicurl/https://data.example/a.tif", True),
        ("virtual", "?layer=WFS:url%3D'https%3A//wfs.example':a:UTF-8&query=select", True),
        ("vectortile", "type=mbtiles&url=/srv/a.mbtiles", True),
    ],
)
def test_layers_that_ask_a_server_are_not_drawn(provider: str, source: str, remote: bool) -> None:
    assert warmup.is_remote(provider, source) is remote
