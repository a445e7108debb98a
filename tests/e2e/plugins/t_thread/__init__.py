"""Opens a thread at import, which counts; SERVICE=TICKS says how far it has come."""

import json
import os
import threading

from qgis.server import QgsService

ticks = 0
asked = threading.Condition()


def _count() -> None:
    global ticks
    while True:
        with asked:
            asked.wait()
            ticks += 1
            asked.notify_all()


threading.Thread(target=_count, name="ticker", daemon=True).start()


class Ticks(QgsService):
    def name(self) -> str:
        return "TICKS"

    def version(self) -> str:
        return "1.0.0"

    def executeRequest(self, request, response, project) -> None:
        with asked:
            before = ticks
            asked.notify_all()
            lives = asked.wait_for(lambda: ticks > before, timeout=5)
        response.setHeader("Content-Type", "application/json")
        response.write(json.dumps({"lives": lives, "pid": os.getpid()}))


def serverClassFactory(interface):
    kept = Ticks()
    interface.serviceRegistry().registerService(kept)
    return kept
