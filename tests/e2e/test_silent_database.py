"""A database that takes connections and says nothing costs its project network_timeout_s."""

import socket
from collections.abc import Callable
from pathlib import Path

from tests.support import Daemon

PROJECT = """<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22.16" projectname="silent"><projectlayers>
<maplayer type="vector" geometry="Point"><id>roads</id><layername>roads</layername>
<datasource>dbname='x' host=127.0.0.1 port={port} user='u' password='p' sslmode=disable key='id'
 type=Point table="public"."roads" (geom)</datasource>
<provider encoding="UTF-8">postgres</provider></maplayer>
</projectlayers></qgis>
"""


def test_a_database_that_says_nothing_is_given_up_in_time(
    real_daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    """QGIS tells libpq 30 s of its own, whatever PGCONNECT_TIMEOUT says."""
    root = tmp_path / "roots"
    root.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (root / "silent.qgs").write_text(PROJECT.format(port=silent.getsockname()[1]))
        daemon = real_daemons(root, extra="[pool.qgis]\nnetwork_timeout_s = 2")
        answer = daemon.ows("silent", timeout=90, SERVICE="WMS", REQUEST="GetCapabilities")
    assert answer.status == 200, answer.body[:300]
    (generation,) = daemon.projects()["silent.qgs"]["generations"]
    assert [layer["name"] for layer in generation["bad_layers"]] == ["roads"]
    assert 1900 < generation["load_ms"] < 9000
