"""An API: /hello/layers says which layers the project has, if there is one."""

from qgis.PyQt.QtCore import QRegularExpression
from qgis.server import QgsServerOgcApi, QgsServerOgcApiHandler


class Layers(QgsServerOgcApiHandler):
    def path(self):
        return QRegularExpression("/layers")

    def summary(self) -> str:
        return "layers"

    def description(self) -> str:
        return "The layers of the project"

    def operationId(self) -> str:
        return "layers"

    def linkTitle(self) -> str:
        return "layers"

    def linkType(self):
        return getattr(QgsServerOgcApi, "Rel", QgsServerOgcApi).data

    def handleRequest(self, context) -> None:
        project = context.project()
        names = sorted(layer.name() for layer in project.mapLayers().values()) if project else []
        self.write({"layers": names, "project": project is not None}, context)


def serverClassFactory(interface):
    api = QgsServerOgcApi(interface, "/hello", "Hello", "For tests", "1.0")
    kept = Layers()
    api.registerHandler(kept)
    interface.serviceRegistry().registerApi(api)
    return api, kept
