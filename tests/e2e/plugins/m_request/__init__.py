"""Misbehaves at request time, as ?BAD= says: throw, service, exit."""

import sys

from qgis.server import QgsServerFilter, QgsService


class Bad(QgsServerFilter):
    def requestReady(self) -> None:
        what = self.serverInterface().requestHandler().parameterMap().get("BAD")
        if what == "throw":
            raise ValueError("thrown for a test")
        if what == "exit":
            sys.exit(3)


class BadService(QgsService):
    def name(self) -> str:
        return "BAD"

    def version(self) -> str:
        return "1.0.0"

    def executeRequest(self, request, response, project) -> None:
        if request.parameters().get("HOW") == "exit":
            sys.exit(3)
        raise ValueError("thrown by a service")


def serverClassFactory(interface):
    kept = Bad(interface), BadService()
    interface.registerFilter(kept[0], 10)
    interface.serviceRegistry().registerService(kept[1])
    return kept
