"""What differs between the versions of QGIS that are supported, told by what is there: all of it.

Never by a version number: distributions patch, and builds leave things out.
"""

from typing import Any

from qgis.core import Qgis, QgsProject
from qgis.server import QgsServerRequest, QgsServerSettings

#: PATCH came later; before, such a request is a POST.
PATCH_METHOD = getattr(QgsServerRequest, "PatchMethod", QgsServerRequest.PostMethod)
#: Name of OGC API Features in the registry: a draft up to QGIS 3.
FEATURES_APIS = ("OGC WFS3 (Draft)", "OGC API - Features")


def read_flags(settings: QgsServerSettings) -> Any:
    """Flags of QgsProject::read; the enum moved from QgsProject to Qgis with 3.26."""
    home = getattr(Qgis, "ProjectReadFlag", None)
    if home is not None and hasattr(home, "DontStoreOriginalStyles"):
        flags = Qgis.ProjectReadFlags() | home.DontStoreOriginalStyles
        trust, layouts = home.TrustLayerMetadata, home.DontLoadLayouts
    else:
        flags = QgsProject.ReadFlags() | QgsProject.FlagDontStoreOriginalStyles
        trust, layouts = QgsProject.FlagTrustLayerMetadata, QgsProject.FlagDontLoadLayouts
    if settings.trustLayerMetadata():
        flags |= trust
    if settings.getPrintDisabled():
        flags |= layouts
    # Since 3.28; before, no flag and no setting.
    read_only = getattr(home, "ForceReadOnlyLayers", None)
    if read_only is not None and hasattr(settings, "forceReadOnlyLayers"):
        if settings.forceReadOnlyLayers():
            flags |= read_only
    return flags


def new_project() -> QgsProject:
    """Without the style database where QgsProject can be told so (3.26), as the server does."""
    if hasattr(Qgis, "ProjectCapabilities"):
        return QgsProject(None, Qgis.ProjectCapabilities())
    return QgsProject()


def features_root(registry: Any) -> str:
    """Path of OGC API Features: "/wfs3", or "/ogcapi" from QGIS 4 on."""
    apis = (registry.getApi(name) for name in FEATURES_APIS)
    return next((str(api.rootPath()) for api in apis if api is not None), "/wfs3")


def short_name(layer: Any) -> str:
    """The name of a layer for services, "" if it has none; moved with 3.38."""
    properties = layer.serverProperties() if hasattr(layer, "serverProperties") else layer
    if hasattr(properties, "shortName"):
        return str(properties.shortName())
    return str(layer.shortName())
