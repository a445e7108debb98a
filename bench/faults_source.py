"""What the fault scenario needs around the servers: a remote WMS that stops answering, projects,
a plugin that leaks, an nginx.
"""

import os
import shutil
import struct
import subprocess
import sys
import textwrap
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from bench import processes

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
_PLUGIN = """
from qgis.server import QgsServerFilter

_kept = []


class Leak(QgsServerFilter):
    def requestReady(self):
        size = self.serverInterface().requestHandler().parameterMap().get("LEAK")
        if size:
            _kept.append(b"x" * (int(size) << 20))


def serverClassFactory(interface):
    interface.registerFilter(Leak(interface), 50)
    return None
"""


class Source:
    """A WMS in threads of this process; `hangs` decides what becomes of its next requests."""

    def __init__(self) -> None:
        self.hangs = False
        self.over = threading.Event()
        handler = type("Handler", (_Handler,), {"source": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/wms?"

    def stop(self) -> None:
        """Let go of all it holds."""
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    source: Source

    def log_message(self, *_: object) -> None:
        """Not to the terminal."""

    def do_GET(self) -> None:
        if self.source.hangs:
            self.source.over.wait(300)
            return
        query = {key.upper(): value for key, value in parse_qsl(urlsplit(self.path).query)}
        if query.get("REQUEST") == "GetMap":
            kind, body = "image/png", _picture(int(query["WIDTH"]), int(query["HEIGHT"]))
        else:
            kind, body = "text/xml", _CAPABILITIES.format(url=self.source.url).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass


def _picture(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x40\xa0\x70" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def make_stuck(url: str, out: Path) -> None:
    """A project with one layer of that WMS, which must answer now."""
    out.parent.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("faults_project.py")
    result = subprocess.run(
        [sys.executable, str(script), url, str(out)], capture_output=True, text=True, timeout=120
    )
    if result.returncode:
        raise SystemExit(f"cannot make the project of a remote source: {result.stderr[-1000:]}")


def copy_light(projects: Path, name: str) -> Path:
    """A copy of the light project, beside its data, to be changed; its path."""
    path = projects / "light" / name
    shutil.copy(projects / "light" / "light.qgs", path)
    return path


def make_plugin(folder: Path) -> Path:
    """A plugin_path with the plugin that keeps LEAK MiB of a request."""
    home = folder / "plugins" / "leak"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text(textwrap.dedent(_PLUGIN))
    (home / "metadata.txt").write_text(
        "[general]\nname=leak\nserver=True\nversion=1\nqgisMinimumVersion=3.0\n"
    )
    return home.parent


def start_nginx(folder: Path, port: int, upstream: int) -> "subprocess.Popen[bytes]":
    """nginx on `port` before a server on `upstream`, as docs tell to set it up."""
    config = folder / "nginx.conf"
    temporary = "".join(
        f"{kind}_temp_path {folder / kind}; "
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"{'user root; ' if os.geteuid() == 0 else ''}worker_processes 1; daemon off; "
        f"pid {folder / 'nginx.pid'}; error_log {folder / 'nginx.log'};\n"
        "events { }\nhttp { access_log off; " + temporary + "\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_http_version 1.1; "
        f'proxy_set_header Connection ""; proxy_pass http://127.0.0.1:{upstream}; }} }} }}\n'
    )
    return processes.start(
        ["nginx", "-p", str(folder), "-c", str(config)], folder / "nginx.out", {}
    )
