"""A folder on a network that stalls holds up nobody without end."""

import asyncio
from pathlib import Path

from qgisd.http.app import PublicApp, Route, Settings
from qgisd.http.limits import Limits
from qgisd.http.listen import Server, bind
from qgisd.supervisor.model import ProjectRef

SETTINGS = Settings((), 1 << 20, 1 << 16, (), (), "h", Limits(0, 0, 0, 0, False, False))


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
