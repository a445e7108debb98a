"""A plain QgsServer in a process of its own, to compare with: what everybody else runs.

Started by the tests as `python tests/e2e/reference.py`: a request per line of JSON on stdin, an
answer per line on stdout. Knows nothing of qgisd. The project is loaded the way a plain server
loads it, by QgsConfigCache with the server's settings, and the request sees the URL that
qgisd's client used, so that capabilities can be compared byte for byte.
"""

import base64
import json
import os
import sys
from typing import Any

import qgis.utils
from qgis.core import QgsApplication
from qgis.server import (
    QgsBufferServerRequest,
    QgsBufferServerResponse,
    QgsConfigCache,
    QgsServer,
    QgsServerRequest,
    QgsServerSettings,
)

METHODS = {
    "GET": QgsServerRequest.GetMethod,
    "HEAD": QgsServerRequest.HeadMethod,
    "POST": QgsServerRequest.PostMethod,
    "PUT": QgsServerRequest.PutMethod,
    "DELETE": QgsServerRequest.DeleteMethod,
    "PATCH": getattr(QgsServerRequest, "PatchMethod", QgsServerRequest.PostMethod),
}


def answer(server: QgsServer, settings: QgsServerSettings, asked: dict[str, Any]) -> dict[str, Any]:
    """One request, answered."""
    project = QgsConfigCache.instance().project(asked["path"], settings)
    if project is None:
        return {"status": 0, "headers": {}, "body": ""}
    body = base64.b64decode(asked["body"])
    request = QgsBufferServerRequest(
        asked["url"], METHODS[asked["method"]], asked["headers"], body or None
    )
    response = QgsBufferServerResponse()
    os.environ.update(asked["environment"])
    try:
        server.handleRequest(request, response, project)
    finally:
        for name in asked["environment"]:
            del os.environ[name]
    return {
        "status": response.statusCode() or 200,
        "headers": response.headers(),
        "body": base64.b64encode(bytes(response.body())).decode(),
    }


def load_plugins(server: QgsServer, path: str, names: list[str]) -> None:
    """Server plugins, as QgsServer::initPython and qgis.utils load them."""
    qgis.utils.serverIface = server.serverInterface()
    qgis.utils.plugin_paths = [path]
    qgis.utils.updateAvailablePlugins()
    sys.path.insert(0, path)
    for name in names:
        assert qgis.utils.loadPlugin(name) and qgis.utils.startServerPlugin(name), name


def main() -> None:
    """Answer until stdin ends."""
    # Whatever QGIS or GDAL prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    application = QgsApplication([], False, "", "server")
    server = QgsServer()
    settings = QgsServerSettings()
    settings.load()
    if len(sys.argv) > 1:
        load_plugins(server, sys.argv[1], sys.argv[2:])
    for line in sys.stdin:
        print(json.dumps(answer(server, settings, json.loads(line))), file=answers, flush=True)
    del application
    os._exit(0)  # taking QGIS down in order can crash


if __name__ == "__main__":
    main()
