"""?SLEEP=seconds: so long it takes."""

import time

from qgis.server import QgsServerFilter


class Slow(QgsServerFilter):
    def requestReady(self) -> None:
        time.sleep(float(self.serverInterface().requestHandler().parameterMap().get("SLEEP", "0")))


def serverClassFactory(interface):
    kept = Slow(interface)
    interface.registerFilter(kept, 400)
    return kept
