"""What the public side owes its clients before a pool has their request."""

import asyncio
from pathlib import Path

import pytest

from qgisd.http.app import PublicApp, Route, Settings
from qgisd.http.limits import Limits
from qgisd.http.listen import Server, bind
from qgisd.supervisor.model import ProjectRef

SETTINGS = Settings((), 1 << 20, 1 << 16, (), (), "h", "", Limits(0, 0, 0, 0, False, False))


class Stalled:
    """A pool that finds no end of looking for a project."""

    api_root = "/wfs3"

    def known(self, name: str) -> ProjectRef | None:
        return None

    async def resolve(self, name: str) -> ProjectRef:
        await asyncio.Event().wait()
        raise AssertionError


def test_a_project_that_is_not_found_in_time_is_a_504(tmp_path: Path) -> None:
    async def ask() -> bytes:
        route = Route("", Stalled(), lambda project, cls: 0.2)  # type: ignore[arg-type]
        server = Server(PublicApp(SETTINGS, [route]))
        address = tmp_path / "http.sock"
        server.add_sockets(bind(f"unix:{address}"))
        reader, writer = await asyncio.open_unix_connection(address)
        writer.write(b"GET /ows/?MAP=a&SERVICE=WMS HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = await reader.readuntil(b"</ServiceExceptionReport>")
        writer.close()
        server.stop()
        await server.close_all_connections()
        return answer

    answer = asyncio.run(asyncio.wait_for(ask(), 10))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 504 ") and b"not looked up within 0.2 s" in body
    (line,) = [line for line in head.split(b"\r\n") if line.startswith(b"X-Request-Id: ")]
    assert line.partition(b": ")[2] in body


def test_one_connection_too_many_is_told_to_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not left to wait: to accept it takes a descriptor, and without one the loop has no rest."""

    async def asked(address: Path) -> bytes:
        reader, writer = await asyncio.open_unix_connection(address)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer

    async def ask() -> None:
        server = Server(PublicApp(SETTINGS, []))
        server.most = 2
        address = tmp_path / "http.sock"
        server.add_sockets(bind(f"unix:{address}"))
        kept = [await asyncio.open_unix_connection(address) for _ in range(2)]
        while len(server._connections) < 2:
            await asyncio.sleep(0)
        reader, writer = await asyncio.open_unix_connection(address)
        refused = await reader.read()
        writer.close()
        assert refused.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1" in refused
        assert "2 connections are open" in caplog.text
        kept[0][1].write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await kept[0][0].readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
        for _, writer in kept:
            writer.close()
        while server.connected:
            await asyncio.sleep(0)
        assert (await asked(address)).startswith(b"HTTP/1.1 200 ")
        server.stop()
        await server.close_all_connections()

    asyncio.run(asyncio.wait_for(ask(), 10))
