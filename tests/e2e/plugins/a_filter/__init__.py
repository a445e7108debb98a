"""Marks every answer, and says what it saw of the request."""

from qgis.server import QgsServerFilter


class Filter(QgsServerFilter):
    def requestReady(self) -> None:
        handler = self.serverInterface().requestHandler()
        handler.setResponseHeader("X-Config-File", self.serverInterface().configFilePath())
        user = handler.requestHeaders().get("X-Lizmap-User")
        handler.setResponseHeader("X-Saw-User", "none" if user is None else f"<{user}>")

    def sendResponse(self) -> None:
        """Called for each part of a large answer, which is to be seen once."""
        handler = self.serverInterface().requestHandler()
        if handler.parameterMap().get("MARK"):
            part = bytes(handler.body())
            handler.clearBody()
            handler.appendBody(part.replace(b'"Feature"', b'"Feature", "marks": 1'))

    def responseComplete(self) -> None:
        handler = self.serverInterface().requestHandler()
        if handler.parameterMap().get("SHOUT"):
            body = bytes(handler.body())
            handler.clearBody()
            handler.appendBody(body.upper())


def serverClassFactory(interface):
    kept = Filter(interface)
    interface.registerFilter(kept, 100)
    return kept
