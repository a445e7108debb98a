"""Writes to the project: ?TITLE=x in the worker's memory, and with &SAVE=1 to its file."""

from qgis.core import QgsProject
from qgis.server import QgsServerFilter


class Writer(QgsServerFilter):
    def responseComplete(self) -> None:
        parameters = self.serverInterface().requestHandler().parameterMap()
        if parameters.get("TITLE"):
            project = QgsProject.instance()
            project.setTitle(parameters["TITLE"])
            if parameters.get("SAVE"):
                project.write()


def serverClassFactory(interface):
    kept = Writer(interface)
    interface.registerFilter(kept, 200)
    return kept
