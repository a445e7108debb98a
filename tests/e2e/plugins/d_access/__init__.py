"""Access control by X-Lizmap-User-Groups, as Lizmap's plugin has it: group "north" sees the
countries whose names begin with N, "none" no lakes, anybody else everything."""

from qgis.server import QgsAccessControlFilter


class Access(QgsAccessControlFilter):
    def __init__(self, interface) -> None:
        super().__init__(interface)
        self._interface = interface

    def _group(self) -> str:
        headers = self._interface.requestHandler().requestHeaders()
        return headers.get("X-Lizmap-User-Groups", "")

    def layerFilterExpression(self, layer) -> str:
        north = self._group() == "north" and layer.name().lower() == "countries"
        return "\"name\" LIKE 'N%'" if north else super().layerFilterExpression(layer)

    def layerFilterSubsetString(self, layer) -> str:
        north = self._group() == "north" and layer.name().lower() == "countries"
        return "\"name\" LIKE 'N%'" if north else super().layerFilterSubsetString(layer)

    def layerPermissions(self, layer):
        rights = super().layerPermissions(layer)
        if self._group() == "none" and layer.name().lower() == "lakes":
            rights.canRead = False
        if self._group() == "broken":
            raise RuntimeError("access control that throws")
        return rights

    def cacheKey(self) -> str:
        return self._group()


def serverClassFactory(interface):
    kept = Access(interface)
    interface.registerAccessControl(kept, 100)
    return kept
