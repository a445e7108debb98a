"""The requests by which a snapshot with QGIS warms up: capabilities, then small maps of layers.

They have no identity and no client. A plugin knows them by the parameter QGISD_WARMUP, which is
also what keeps a plugin's cache, whatever it takes for its key, from giving their answers to
anybody; and by the host, which no client can reach.
"""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

from qgis.core import QgsCoordinateTransform, QgsCsException, QgsProject, QgsRectangle
from qgis.server import QgsServerProjectUtils

from qgisd import wire
from qgisd.worker import features
from qgisd.worker.backend import WarmStep

HOST = "warmup.qgisd.invalid"
#: Layers drawn with one request: a request costs as much as two layers.
_AT_ONCE = 8
_PIXELS = 256
#: A map shows the middle of its layers, this share of their extent in each direction: what is
#: wanted is that everything is opened, not that much is drawn.
_MIDDLE = 0.1
#: Providers that ask a server, whatever their source looks like.
_REMOTE_PROVIDERS = {
    "wms", "wfs", "oapif", "wcs", "arcgisfeatureserver", "arcgismapserver", "vectortile",
    "tiledscene", "sensorthings",
}  # fmt: skip
_REMOTE_SOURCE = re.compile(r"(https?|ftp)(:|%3a)//|/vsi(curl|s3|gs|az|swift|oss)", re.IGNORECASE)


def steps(key: str, project: QgsProject) -> list[WarmStep]:
    """What to ask of this project, the weakest step first."""

    def request(level: str, **parameters: str) -> wire.Request:
        query = urlencode({"QGISD_WARMUP": level} | parameters)
        url = f"http://{HOST}/ows/?MAP={quote(key)}&{query}"
        return wire.Request(0, "GET", url, [("Host", HOST), ("User-Agent", "qgisd-warmup")])

    capabilities = [
        request("capabilities", SERVICE="WMS", VERSION="1.3.0", REQUEST="GetCapabilities")
    ]
    if QgsServerProjectUtils.wfsLayerIds(project):
        capabilities.append(
            request("capabilities", SERVICE="WFS", VERSION="1.1.0", REQUEST="GetCapabilities")
        )
    maps = [request("map", **parameters) for parameters in _maps(project)]
    return [WarmStep("capabilities", capabilities), WarmStep("map", maps)]


def _maps(project: QgsProject) -> Iterator[dict[str, str]]:
    """Parameters of GetMaps that draw each local layer once, those seen first first."""
    crs = project.crs()
    if not crs.isValid() or not crs.authid():
        return
    layers = _local_layers(project)
    # One alone to begin with: it opens what all have in common.
    for first in [0, *range(1, len(layers), _AT_ONCE)]:
        some = layers[first : first + _AT_ONCE] if first else layers[:1]
        box = _box_of(some, project)
        if box.isEmpty() or not box.isFinite():
            continue
        box.scale(_MIDDLE)
        # The longer side has 256 pixels: QGIS stretches what does not fit.
        ratio = box.width() / box.height()
        corners = [box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()]
        yield {
            "SERVICE": "WMS",
            "VERSION": "1.1.1",  # x before y, whatever the coordinate system
            "REQUEST": "GetMap",
            "LAYERS": ",".join(_name_of(layer, project) for layer in some),
            "STYLES": "",
            "SRS": crs.authid(),
            "BBOX": ",".join(f"{corner:.9g}" for corner in corners),
            "WIDTH": str(max(1, round(_PIXELS * min(1.0, ratio)))),
            "HEIGHT": str(max(1, round(_PIXELS * min(1.0, 1 / ratio)))),
            "FORMAT": "image/png",
        }


def _box_of(layers: list[Any], project: QgsProject) -> QgsRectangle:
    """Around these layers, in the project's coordinate system."""
    box = QgsRectangle()
    for layer in layers:
        transform = QgsCoordinateTransform(layer.crs(), project.crs(), project)
        try:
            box.combineExtentWith(transform.transformBoundingBox(layer.extent()))
        except QgsCsException:
            continue
    return box


def _local_layers(project: QgsProject) -> list[Any]:
    """Layers that are published, valid and not asked of a server, the visible ones first.

    A server may be silent, may count what it is asked, and may be this very one.
    """
    restricted = set(QgsServerProjectUtils.wmsRestrictedLayers(project))
    root = project.layerTreeRoot()
    shown: list[Any] = []
    hidden: list[Any] = []
    for layer in root.layerOrder():
        if not layer.isValid() or not layer.isSpatial() or layer.name() in restricted:
            continue
        if is_remote(layer.providerType(), layer.source()) or "," in _name_of(layer, project):
            continue
        node = root.findLayer(layer)
        (shown if node is not None and node.isVisible() else hidden).append(layer)
    return shown + hidden


def is_remote(provider: str, source: str) -> bool:
    """Whether a layer's data come over HTTP or the like; databases count as near."""
    return provider.lower() in _REMOTE_PROVIDERS or bool(_REMOTE_SOURCE.search(source))


def _name_of(layer: Any, project: QgsProject) -> str:
    """What LAYERS calls it."""
    if QgsServerProjectUtils.wmsUseLayerIds(project):
        return str(layer.id())
    return str(features.short_name(layer) or layer.name())
