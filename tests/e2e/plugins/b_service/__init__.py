"""SERVICE=COUNT: how often this process was asked, which is the state of the plugin."""

import json
import os

from qgis.server import QgsService
from qgis.utils import pluginMetadata, server_active_plugins, server_plugins

LOADED_BY = os.getpid()


class Count(QgsService):
    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def name(self) -> str:
        return "COUNT"

    def version(self) -> str:
        return "1.0.0"

    def executeRequest(self, request, response, project) -> None:
        self.asked += 1
        response.setHeader("Content-Type", "application/json")
        found = {
            "asked": self.asked,
            "pid": os.getpid(),
            "loaded_by": LOADED_BY,
            "title": project.title(),
            "active": sorted(server_active_plugins),
            "known": sorted(server_plugins),
            "version": pluginMetadata("b_service", "version"),
        }
        response.write(json.dumps(found))


def serverClassFactory(interface):
    kept = Count()
    interface.serviceRegistry().registerService(kept)
    return kept
