"""The landing page of QGIS, an API that needs no project: `http.apis` and two variables."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.e2e.helpers import EXAMPLES, Reference, assert_same
from tests.support import Daemon


def test_the_landing_page_is_that_of_a_plain_server(
    daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(EXAMPLES / "world", root)
    settings = {
        "QGIS_SERVER_LANDING_PAGE_PREFIX": "/catalog",
        "QGIS_SERVER_LANDING_PAGE_PROJECTS_DIRECTORIES": str(root),
    }
    env = ", ".join(f'{name} = "{value}"' for name, value in settings.items())
    daemon = daemons(
        root, backend="qgis", http='apis = ["/catalog"]', extra=f"[pool.qgis]\nenv = {{ {env} }}"
    )
    plain = Reference(tmp_path / "plain", environment=settings)
    try:
        found = daemon.get("/catalog/index.json")
        for path in ("index.json", "index.html", "", "map/nothing.json"):
            target = f"/catalog/{path}"
            assert_same(daemon.get(target), plain.ask(root / "world.qgs", target))
    finally:
        plain.stop()
    (project,) = json.loads(found.body)["projects"]
    assert found.status == 200 and project["title"]
    assert str(root).encode() not in found.body
