"""A cache filter: capabilities asked for with a header X-Keep are kept, and given again."""

from qgis.PyQt.QtCore import QByteArray
from qgis.server import QgsServerCacheFilter


class Cache(QgsServerCacheFilter):
    def __init__(self, interface) -> None:
        super().__init__(interface)
        self.documents: dict[str, bytes] = {}

    def getCachedDocument(self, project, request, key):
        return QByteArray(self.documents.get(request.headers().get("X-Keep", ""), b""))

    def setCachedDocument(self, document, project, request, key) -> bool:
        name = request.headers().get("X-Keep", "")
        if not name:
            return False
        text = bytes(document.toByteArray())
        self.documents[name] = text.replace(b"</Service>", b"<!-- kept --></Service>")
        return True

    def deleteCachedDocument(self, project, request, key) -> bool:
        return False

    def deleteCachedDocuments(self, project) -> bool:
        return False


def serverClassFactory(interface):
    kept = Cache(interface)
    interface.registerServerCache(kept, 100)
    return kept
