"""Prints to standard output, at import and for every request."""

from qgis.server import QgsServerFilter

print("the talker was imported")


class Talker(QgsServerFilter):
    def requestReady(self) -> None:
        print("the talker heard of a request")


def serverClassFactory(interface):
    kept = Talker(interface)
    interface.registerFilter(kept, 300)
    return kept
