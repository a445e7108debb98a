"""Filter, access control, service and API."""

import json
import os
from pathlib import Path

from qgis.core import Qgis, QgsProject
from qgis.PyQt.QtCore import QRegularExpression
from qgis.PyQt.QtGui import QFontDatabase
from qgis.server import (
    QgsAccessControlFilter,
    QgsServerException,
    QgsServerFilter,
    QgsServerOgcApi,
    QgsServerOgcApiHandler,
    QgsService,
)

from lizmap_server import context


def said(interface, name: str) -> str | None:
    """A header, or else the parameter of that name; None where neither was given.

    The header is looked up in this case and no other, and an empty one counts as given.
    """
    handler = interface.requestHandler()
    value = handler.requestHeaders().get(name)
    if value is None:
        value = handler.parameterMap().get(name.removeprefix("X-").replace("-", "_").upper())
    return value


def groups_of(interface) -> list[str]:
    """[] where nobody says anything, which means that no rights are asked about."""
    text = said(interface, "X-Lizmap-User-Groups")
    return [] if text is None else [group.strip() for group in text.split(",")]


def config_of(interface) -> dict:
    """The file beside the project, found by configFilePath."""
    path = Path(interface.configFilePath() + ".cfg")
    return json.loads(path.read_text()) if path.exists() else {}


class Filter(QgsServerFilter):
    def requestReady(self) -> None:
        interface = self.serverInterface()
        groups, config = groups_of(interface), config_of(interface)
        acl = config.get("options", {}).get("acl")
        if groups and acl and not set(groups) & set(acl):
            refusal = QgsServerException("No ACL permissions", 403)
            interface.requestHandler().setServiceException(refusal)

    def responseComplete(self) -> None:
        project = QgsProject.instance()
        variables = project.customVariables()
        variables.pop("lizmap_user", None)
        project.setCustomVariables(variables)


class Access(QgsAccessControlFilter):
    def __init__(self, interface) -> None:
        super().__init__(interface)
        self._interface = interface

    def layerFilterSubsetString(self, layer) -> str:
        override = said(self._interface, "X-Lizmap-Override-Filter") or ""
        groups = groups_of(self._interface)
        if override.lower() in ("yes", "true", "y", "t", "1") or not groups:
            return ""
        wanted = config_of(self._interface).get("loginFilteredLayers", {}).get(layer.name())
        if not wanted:
            return ""
        values = [group.replace("'", "''") for group in [*filter(None, groups), "all"]]
        return " OR ".join(f"\"{wanted['filterAttribute']}\" = '{value}'" for value in values)

    def layerPermissions(self, layer):
        rights = super().layerPermissions(layer)
        project = QgsProject.instance()
        user = said(self._interface, "X-Lizmap-User") or ""
        project.setCustomVariables(project.customVariables() | {"lizmap_user": user})
        groups = groups_of(self._interface)
        settings = config_of(self._interface).get("layers", {}).get(layer.name(), {})
        visible = settings.get("group_visibility")
        if groups and visible and not set(groups) & set(visible):
            rights.canRead = False
        return rights

    def cacheKey(self) -> str:
        return "@@".join(groups_of(self._interface))


class Service(QgsService):
    """SERVICE=LIZMAP: what came of the request."""

    def __init__(self, interface) -> None:
        super().__init__()
        self._interface = interface

    def name(self) -> str:
        return "LIZMAP"

    def version(self) -> str:
        return "1.0.0"

    def executeRequest(self, request, response, project) -> None:
        handler = self._interface.requestHandler()
        seen = {
            "headers": {
                name: value
                for name, value in handler.requestHeaders().items()
                if name.lower().startswith("x-lizmap")
            },
            "parameters": {
                name: value
                for name, value in handler.parameterMap().items()
                if name.startswith("LIZMAP")
            },
            "groups": groups_of(self._interface),
            "config": self._interface.configFilePath(),
            "variables": project.customVariables(),
        }
        response.setHeader("Content-Type", "application/json")
        response.write(json.dumps(seen))


class ServerInfo(QgsServerOgcApiHandler):
    def path(self):
        return QRegularExpression("server.json")

    def summary(self) -> str:
        return "Server information"

    def description(self) -> str:
        return "Get info about the current QGIS server"

    def operationId(self) -> str:
        return "server"

    def linkTitle(self) -> str:
        return "server"

    def linkType(self):
        return getattr(QgsServerOgcApi, "Rel", QgsServerOgcApi).data

    def handleRequest(self, api_context) -> None:
        registry = api_context.serverInterface().serviceRegistry()
        services = ("WMS", "WFS", "WCS", "WMTS", "EXPRESSION", "LIZMAP")
        version, _, name = Qgis.QGIS_VERSION.partition("-")
        fonts = QFontDatabase() if hasattr(QFontDatabase(), "families") else QFontDatabase
        found = {
            "metadata": {"version": version, "name": name},
            "py_qgis_server": context.describe(),
            "services": [one for one in services if registry.getService(one)],
            "plugins": context.installed_plugins(("name", "version", "commitSha1")),
            "fonts": fonts.families(),
        }
        self.write({"qgis_server": found, "environment": {}}, api_context)


class Server:
    def __init__(self, interface) -> None:
        self._kept = [Filter(interface), Access(interface), Service(interface)]
        interface.registerFilter(self._kept[0], 50)
        interface.registerAccessControl(self._kept[1], 100)
        interface.serviceRegistry().registerService(self._kept[2])
        if os.environ.get("QGIS_SERVER_LIZMAP_REVEAL_SETTINGS", "").lower() in ("true", "1"):
            api = QgsServerOgcApi(interface, "/lizmap", "Lizmap", "The Lizmap API", "1.0")
            interface.serviceRegistry().registerApi(api)
            handler = ServerInfo()
            api.registerHandler(handler)
            self._kept += [api, handler]
