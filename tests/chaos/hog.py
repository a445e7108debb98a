"""A server plugin that takes memory when a request says so.

LEAK: MiB that are never given back. TAKE: MiB that are held for some seconds. STUCK: seconds.
"""

import time

from qgis.server import QgsServerFilter

_kept = []


class Hog(QgsServerFilter):
    """Before QGIS does its work."""

    def requestReady(self):  # noqa: N802  (QGIS calls it)
        parameters = self.serverInterface().requestHandler().parameterMap()
        if parameters.get("LEAK"):
            _kept.append(b"x" * (int(parameters["LEAK"]) << 20))
        if parameters.get("TAKE"):
            taken = b"x" * (int(parameters["TAKE"]) << 20)
            time.sleep(3)
            del taken
        if parameters.get("STUCK"):
            time.sleep(float(parameters["STUCK"]))


def serverClassFactory(interface):  # noqa: N802  (QGIS calls it)
    """What QGIS calls."""
    interface.registerFilter(Hog(interface), 50)
    return
