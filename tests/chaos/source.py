"""A remote WMS of the tests that misbehaves on command."""

import re
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

GOOD, HANG, DRIP, GARBAGE, ERROR = "good", "hang", "drip", "garbage", "error"

_CAPABILITIES = """<?xml version="1.0" encoding="UTF-8"?>
<WMS_Capabilities version="1.3.0" xmlns="http://www.opengis.net/wms"
 xmlns:xlink="http://www.w3.org/1999/xlink"><Service><Name>WMS</Name><Title>source</Title>
<OnlineResource xlink:href="{url}"/></Service><Capability><Request>
<GetCapabilities><Format>text/xml</Format><DCPType><HTTP><Get><OnlineResource xlink:href="{url}"/>
</Get></HTTP></DCPType></GetCapabilities>
<GetMap><Format>image/png</Format><DCPType><HTTP><Get><OnlineResource xlink:href="{url}"/></Get>
</HTTP></DCPType></GetMap></Request><Exception><Format>XML</Format></Exception>
<Layer><Title>source</Title><CRS>EPSG:4326</CRS><EX_GeographicBoundingBox>
<westBoundLongitude>-180</westBoundLongitude><eastBoundLongitude>180</eastBoundLongitude>
<southBoundLatitude>-90</southBoundLatitude><northBoundLatitude>90</northBoundLatitude>
</EX_GeographicBoundingBox><BoundingBox CRS="EPSG:4326" minx="-90" miny="-180" maxx="90"
 maxy="180"/><Layer queryable="0"><Name>colour</Name><Title>colour</Title></Layer></Layer>
</Capability></WMS_Capabilities>
"""


class Source:
    """The server; `mode` is what it does to requests that come from now on."""

    def __init__(self) -> None:
        self.mode = GOOD
        #: Set when it ends, so that those it holds are let go.
        self.over = threading.Event()
        handler = type("Handler", (_Handler,), {"source": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/wms?"

    def stop(self) -> None:
        """Let all go and close."""
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    source: Source

    def log_message(self, *_: object) -> None:
        """Not to the terminal."""

    def do_GET(self) -> None:
        mode = self.source.mode
        try:
            if mode == HANG:
                self.source.over.wait(120)
            elif mode == GARBAGE:
                self._send(200, "image/png", bytes(range(256)) * 20)
            elif mode == ERROR:
                self._send(500, "text/plain", b"broken")
            else:
                self._answer(drip=mode == DRIP)
        except OSError:
            pass  # the client had enough

    def _answer(self, drip: bool) -> None:
        query = {key.upper(): value for key, value in parse_qsl(urlsplit(self.path).query)}
        if query.get("REQUEST") == "GetMap":
            width, height = int(query["WIDTH"]), int(query["HEIGHT"])
            kind, body = "image/png", _picture(width, height)
        else:
            kind, body = "text/xml", _CAPABILITIES.format(url=self.source.url).encode()
            assert re.search(rb"WMS_Capabilities", body)
        if not drip:
            self._send(200, kind, body)
            return
        self._head(200, kind, len(body))
        for at in range(len(body)):
            self.wfile.write(body[at : at + 1])
            if self.source.over.wait(1):
                return

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self._head(status, kind, len(body))
        self.wfile.write(body)

    def _head(self, status: int, kind: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _picture(width: int, height: int) -> bytes:
    """A PNG of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = (b"\0" + b"\x40\xa0\x70" * width) * height
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
